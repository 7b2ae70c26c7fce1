//! The store: where everything that was fetched or built lies, named by what it is.
//!
//! ```text
//! $KILN_STORE/                     default: $XDG_DATA_HOME/kiln/store
//!   CACHEDIR.TAG                   backup programs leave it out (bford.info/cachedir)
//!   version                        layout number; another number is refused, never converted silently
//!   objects/ab/<sha256>            bytes that came from outside, verified before they appear here
//!   partial/<sha256>               a download under way; kept on failure, so that the next try resumes
//!   steps/<kind>/<name>/<key>/     outputs of a step and step.json, which lists them with digests
//!   tmp/<unique>/                  staging; a live one is locked, a dead one is swept by the next kiln
//!   failed/<name>/                 log of a build that failed, and its folders if somebody asked; `store gc` takes it
//!   roots/<name>.json              what a project still needs; keeps it from `store gc`
//!   lock                           shared by every user of the store, exclusive for gc
//! ```
//!
//! Nothing appears in `objects` or `steps` but by an atomic rename of something complete, so a kill -9 at any point leaves
//! only a dead folder in `tmp`. Two builds at once wait for each other per step ([`Store::step`]) and per object
//! ([`Store::object_lock`]). The step key is a digest of kind, name, version and all inputs ([`StepKey`]).
//!
//! Reading: [`Store::open`], [`Store::object`], [`Store::step`]; upkeep: [`Store::list`], [`Store::gc`], [`Store::verify`].

mod gc;
mod step;
mod upkeep;

pub use gc::{GcReport, Root};
pub use step::{Miss, Outcome, Output, Staging, StepDir, StepKey, StepRecord};
pub use upkeep::{Damage, Item, ItemKind};

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use fs_err as fs;

use crate::digest::Digest;
use crate::error::{Failure, Kind, Place, WritesTo};

/// Number of the layout above; a store with another number is refused.
const LAYOUT: &str = "1";

/// An open store. Cheap to clone; holds a shared lock on the store until the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    _shared: Arc<File>,
}

impl Store {
    /// `KILN_STORE`, else `$XDG_DATA_HOME/kiln/store`, else `~/.local/share/kiln/store`.
    pub fn default_path() -> Result<PathBuf> {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(path) = set("KILN_STORE") {
            return std::path::absolute(path).context("making KILN_STORE absolute");
        }
        let data =
            set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share"))).ok_or_else(|| {
                Failure::new(Kind::Store, "neither KILN_STORE nor XDG_DATA_HOME nor HOME is set")
                    .hint("set KILN_STORE to a folder for the store")
            })?;
        Ok(data.join("kiln/store"))
    }

    /// Opens the store at `root`, making it if it is not there, and sweeps what dead processes left in `tmp`.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_at(root).writes_to(Place::Store, root)
    }

    fn open_at(root: &Path) -> Result<Self> {
        let fail = |e: io::Error| {
            Failure::new(Kind::Store, format!("the store {} cannot be used", root.display()))
                .hint("set KILN_STORE to a folder that can be written")
                .because(e)
        };
        for dir in ["objects", "partial", "steps", "tmp", "failed", "roots"] {
            fs::create_dir_all(root.join(dir)).map_err(fail)?;
        }
        let version = root.join("version");
        match fs::read_to_string(&version) {
            Ok(found) if found.trim() == LAYOUT => {}
            Ok(found) => {
                let text = format!(
                    "the store {} has layout {}, this kiln uses {LAYOUT}",
                    root.display(),
                    found.trim()
                );
                return Err(Failure::new(Kind::Store, text)
                    .hint("use the kiln that made it, or set KILN_STORE to another folder")
                    .into());
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let tag = "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is kiln's store; it can be made again.\n";
                fs::write(root.join("CACHEDIR.TAG"), tag).map_err(fail)?;
                fs::write(&version, format!("{LAYOUT}\n")).map_err(fail)?;
            }
            Err(e) => return Err(fail(e).into()),
        }
        let lock = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(root.join("lock"))
            .map_err(fail)?
            .into_file();
        lock.lock_shared().map_err(fail)?;
        let store = Store { root: root.to_owned(), _shared: Arc::new(lock) };
        store.sweep()?;
        Ok(store)
    }

    /// The folder of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the object with this digest lies, or would lie.
    pub fn object_path(&self, digest: Digest) -> PathBuf {
        let name = digest.to_string();
        self.root.join("objects").join(&name[..2]).join(&name)
    }

    /// Where a download of this digest is collected.
    pub fn partial_path(&self, digest: Digest) -> PathBuf {
        self.root.join("partial").join(digest.to_string())
    }

    /// The object's path, if it is there with the right length. The digest was checked when it was published and is
    /// checked again by whoever reads it whole.
    pub fn object(&self, digest: Digest, size: u64) -> Option<PathBuf> {
        let path = self.object_path(digest);
        let meta = fs::metadata(&path).ok()?;
        (meta.is_file() && meta.len() == size).then_some(path)
    }

    /// Waits until no other process or thread collects this object, then keeps it so until the guard is dropped.
    pub fn object_lock(&self, digest: Digest) -> Result<File> {
        let path = self.root.join("tmp").join(format!("{digest}.lock"));
        lock_file(&path)
    }

    /// Publishes a complete, verified file as object `digest`; `from` must lie in the store. Nothing is synced: a power
    /// cut can leave a name with too few bytes, which [`Store::object`] sees by the length and readers by the digest.
    pub fn publish_object(&self, digest: Digest, from: &Path) -> Result<PathBuf> {
        let to = self.object_path(digest);
        let folder = to.parent().expect("objects lie in folders");
        fs::create_dir_all(folder)
            .and_then(|()| fs::set_permissions(from, std::os::unix::fs::PermissionsExt::from_mode(0o444)))
            .and_then(|()| fs::rename(from, &to))
            .writes_to(Place::Store, &self.root)?;
        Ok(to)
    }

    /// Puts `bytes` in as an object.
    pub fn put_object(&self, bytes: &[u8]) -> Result<(Digest, PathBuf)> {
        let digest = Digest::of(bytes);
        if let Some(path) = self.object(digest, bytes.len() as u64) {
            return Ok((digest, path));
        }
        let staging = self.staging()?;
        let temp = staging.path().join("object");
        fs::write(&temp, bytes).writes_to(Place::Store, &self.root)?;
        Ok((digest, self.publish_object(digest, &temp)?))
    }

    /// Removes an object that turned out damaged; the next fetch brings it again.
    pub fn forget_object(&self, digest: Digest) -> Result<()> {
        match fs::remove_file(self.object_path(digest)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// A new private folder in `tmp`, removed when the guard is dropped.
    pub fn staging(&self) -> Result<Staging> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let base = self.root.join("tmp").join(format!("{}-{count}", std::process::id()));
        Staging::create(base).writes_to(Place::Store, &self.root)
    }

    /// Where the remains of the last failed build of `name` lie, or would lie.
    pub fn failed_path(&self, name: &str) -> PathBuf {
        self.root.join("failed").join(name)
    }

    /// Keeps `parts` of a staging folder as the remains of a failed build of `name`, in the place of older ones.
    pub fn keep_failed(&self, name: &str, staging: &Staging, parts: &[&str]) -> Result<PathBuf> {
        let to = self.failed_path(name);
        remove_tree(&to)?;
        fs::create_dir(&to)?;
        for part in parts {
            fs::rename(staging.file(part), to.join(part))?;
        }
        Ok(to)
    }

    /// Removes the remains of failed builds of `name`.
    pub fn forget_failed(&self, name: &str) -> Result<()> {
        remove_tree(&self.failed_path(name))
    }

    /// Removes staging folders and lock files whose owner is gone.
    fn sweep(&self) -> Result<()> {
        for entry in fs::read_dir(self.root.join("tmp"))? {
            let path = entry?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let lock = if name.ends_with(".lock") { path.clone() } else { path.with_extension("lock") };
            // A live owner holds the lock. Both the folder and the lock go only while we hold it ourselves; a racing
            // sweeper finds nothing, which is fine.
            let Ok(file) = fs::OpenOptions::new().write(true).open(&lock).map(fs::File::into_file) else {
                if !name.ends_with(".lock") {
                    remove_tree(&path)?;
                }
                continue;
            };
            if file.try_lock().is_err() {
                continue;
            }
            let folder = lock.with_extension("");
            if folder.is_dir() {
                remove_tree(&folder)?;
            }
            match fs::remove_file(&lock) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Opens and locks `path` exclusively, and makes sure that the file locked is still the one at `path`: a sweeper may have
/// removed it between opening and locking.
fn lock_file(path: &Path) -> Result<File> {
    use std::os::unix::fs::MetadataExt;
    loop {
        let file = fs::OpenOptions::new().create(true).append(true).open(path)?.into_file();
        file.lock().with_context(|| format!("locking {}", path.display()))?;
        let ours = file.metadata()?;
        match fs::metadata(path) {
            Ok(now) if (now.dev(), now.ino()) == (ours.dev(), ours.ino()) => return Ok(file),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Removes a folder whose files and sub-folders may be read-only. Something that is gone already is fine.
///
/// Folders below are brought to the top one by one, so that it does not matter how deep they lie: a build can make some whose path no
/// system call takes. Where they cannot be moved, in a lower layer of an overlay (overlayfs.rst, "Renaming directories"), they go from below.
fn remove_tree(path: &Path) -> Result<()> {
    use rustix::fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, chmodat, openat, renameat, statat, unlinkat,
    };
    use rustix::io::Errno;
    let gone = |error: Errno| if error == Errno::NOENT { Ok(()) } else { Err(error) };
    let context = || format!("removing {}", path.display());
    if !fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()) {
        return unlinkat(CWD, path, AtFlags::empty()).or_else(gone).with_context(context);
    }
    let mine = Mode::RWXU;
    let remove = || -> rustix::io::Result<()> {
        chmodat(CWD, path, mine, AtFlags::empty())?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let top = openat(CWD, path, flags, Mode::empty())?;
        let mut folders = vec![c".".to_owned()];
        let mut number = 0_u64;
        while let Some(folder) = folders.pop() {
            let at_top = folder.as_c_str() == c".";
            let mut again = false;
            let open = openat(&top, &folder, flags, Mode::empty())?;
            for entry in Dir::read_from(&open)? {
                let entry = entry?;
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                let kind = match entry.file_type() {
                    FileType::Unknown => {
                        FileType::from_raw_mode(statat(&open, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
                    }
                    kind => kind,
                };
                if kind != FileType::Directory {
                    unlinkat(&open, name, AtFlags::empty()).or_else(gone)?;
                    continue;
                }
                chmodat(&open, name, mine, AtFlags::empty())?;
                if at_top {
                    folders.push(name.to_owned());
                    continue;
                }
                loop {
                    number += 1;
                    let to = std::ffi::CString::new(format!("{number}.removed")).unwrap_or_default();
                    match renameat(&open, name, &top, &to) {
                        Ok(()) => folders.push(to),
                        Err(Errno::XDEV) => {
                            if !again {
                                again = true;
                                folders.push(folder.clone());
                            }
                            let below = [folder.as_bytes(), b"/", name.to_bytes()].concat();
                            folders.push(std::ffi::CString::new(below).unwrap_or_default());
                        }
                        // Somebody had that idea before.
                        Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => continue,
                        Err(error) => return Err(error),
                    }
                    break;
                }
            }
            if !at_top && !again {
                unlinkat(&top, &folder, AtFlags::REMOVEDIR).or_else(gone)?;
            }
        }
        unlinkat(CWD, path, AtFlags::REMOVEDIR)
    };
    remove().or_else(gone).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        (dir, store)
    }

    #[test]
    fn an_object_is_there_only_with_the_right_length() {
        let (_dir, store) = store();
        let (digest, path) = store.put_object(b"hello").unwrap();
        assert_eq!(store.object(digest, 5), Some(path.clone()));
        assert_eq!(store.object(digest, 6), None);
        store.forget_object(digest).unwrap();
        assert_eq!(store.object(digest, 5), None);
    }

    #[test]
    fn opening_sweeps_dead_staging_and_spares_live() {
        let (_dir, store) = store();
        let dead = store.root().join("tmp/1-1");
        fs::create_dir_all(dead.join("sub")).unwrap();
        fs::write(dead.join("sub/half"), "x").unwrap();
        fs::set_permissions(dead.join("sub"), std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
        let live = store.staging().unwrap();
        let again = Store::open(store.root()).unwrap();
        assert!(!dead.exists());
        assert!(live.path().exists());
        let path = live.path().to_owned();
        drop(live);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(again.root().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_goes_however_deep_and_closed_it_is_and_links_are_not_followed() {
        let (dir, store) = store();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let tree = store.root().join("tmp/1-1");
        fs::create_dir_all(tree.join("1.removed/full")).unwrap();
        fs::write(tree.join("2.removed"), "x").unwrap();
        fs::os::unix::fs::symlink(&outside, tree.join("1.removed/link")).unwrap();
        let closed = |path: &Path| {
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o0)).unwrap();
        };
        // Ten times 400 letters and slashes are more than PATH_MAX, so it is put together from below.
        let (mut chain, mut number) = (dir.path().join("chain"), 0);
        fs::create_dir(&chain).unwrap();
        while number < 12 {
            number += 1;
            let above = dir.path().join(format!("above-{number}"));
            let deepest = above.join(["x".repeat(200), "y".repeat(200)].join("/"));
            fs::create_dir_all(&deepest).unwrap();
            fs::rename(&chain, deepest.join("z")).unwrap();
            chain = above;
        }
        fs::rename(&chain, tree.join("1.removed/full/deep")).unwrap();
        closed(&tree.join("1.removed/full"));
        let again = Store::open(store.root()).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "x");
        remove_tree(&again.root().join("tmp/none")).unwrap();
    }

    #[test]
    fn a_store_of_another_layout_is_refused() {
        let (_dir, store) = store();
        fs::write(store.root().join("version"), "99\n").unwrap();
        let error = Store::open(store.root()).unwrap_err();
        assert!(error.to_string().contains("has layout 99, this kiln uses 1"), "{error}");
    }
}
