//! What a build left behind: looked at, brought into a form that depends on nothing but its content, and named by one digest.
//!
//! Folders are 0755, files 0755 if their owner may run them and 0644 if not (the store takes the right to write away), every time is the
//! build's, hard links are copies. Refused is what can mean something else elsewhere: set-id bits, devices, pipes, sockets, links that
//! lead out of the output, names that are no UTF-8, and the path of the build folder in a file.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use fs_err as fs;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher};
use crate::error::{self, Failure};
use crate::sys;

/// What stands at a path of an output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Node {
    /// A folder.
    Dir,
    /// A file.
    File {
        /// Whether it can be run.
        executable: bool,
        /// Bytes.
        size: u64,
        /// Of its content.
        sha256: Digest,
    },
    /// A symbolic link; its target stays within the output.
    Link {
        /// What it holds.
        target: String,
    },
}

/// All of an output: path, relative, `/` between parts, to what stands there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OutputTree(pub BTreeMap<String, Node>);

impl OutputTree {
    /// One digest over all of it: of its JSON, which has one spelling.
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).expect("a tree always serialises"))
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.0.values().map(|node| if let Node::File { size, .. } = node { *size } else { 0 }).sum()
    }
}

/// More folders in each other than any output has that somebody wanted.
const DEEPEST: usize = 100;

/// Whether files may hold the path of the build folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paths<'a> {
    /// They are sources that somebody else wrote.
    Any,
    /// They were built: it would be the build's own, unless it begins with one of these.
    NoBuild(&'a [String]),
}

/// Copies everything below `from`, which nobody changes meanwhile, to the new folder `to` in canonical form.
///
/// # Errors
/// [`error::Kind::Input`] for what the module comment says is refused, with its path.
pub(super) fn publish(from: &Path, to: &Path, epoch: i64, paths: Paths<'_>) -> Result<OutputTree> {
    // What a build put in the place of the folder could lead anywhere, and kiln may be root there.
    if !fs::symlink_metadata(from).is_ok_and(|meta| meta.is_dir()) {
        return Err(
            refuse("", "the build put something else in its place", "leave /build/out a folder").into()
        );
    }
    let mut tree = OutputTree::default();
    let copy = Copy { from, to, epoch, paths };
    fs::create_dir(to)?;
    copy.folder("", &mut tree)?;
    copy.finish("", false)?;
    Ok(tree)
}

struct Copy<'a> {
    from: &'a Path,
    to: &'a Path,
    epoch: i64,
    paths: Paths<'a>,
}

impl Copy<'_> {
    fn folder(&self, below: &str, tree: &mut OutputTree) -> Result<()> {
        let mut names = Vec::new();
        let folder = self.from.join(below);
        // A build may have taken its own right to look away.
        fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755))?;
        for entry in fs::read_dir(&folder)? {
            let name = entry?.file_name();
            let name = name.into_string().map_err(|name| {
                refuse(below, &format!("the name {name:?} in it is no UTF-8"), "give it another one")
            })?;
            names.push(name);
        }
        names.sort();
        for name in names {
            sys::check_interrupt()?;
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            self.one(&path, tree)?;
        }
        Ok(())
    }

    fn one(&self, path: &str, tree: &mut OutputTree) -> Result<()> {
        if path.matches('/').count() > DEEPEST {
            let top = path.split('/').next().unwrap_or_default();
            let text = format!("it is more than {DEEPEST} folders deep");
            return Err(refuse(top, &text, "no system takes paths without end").into());
        }
        let (from, to) = (self.from.join(path), self.to.join(path));
        let meta = fs::symlink_metadata(&from)?;
        let kind = meta.file_type();
        if kind.is_symlink() {
            let target = fs::read_link(&from)?.into_os_string().into_string();
            let target = target.map_err(|_| refuse(path, "its target is no UTF-8", "give it another one"))?;
            check_link(path, &target)?;
            fs::os::unix::fs::symlink(&target, &to)?;
            tree.0.insert(path.to_owned(), Node::Link { target });
            return self.finish(path, true);
        }
        if meta.mode() & 0o6000 != 0 && !kind.is_dir() {
            return Err(refuse(
                path,
                "it has a set-id bit",
                "take it away; an image's own files can have one",
            )
            .into());
        }
        if kind.is_dir() {
            fs::create_dir(&to)?;
            tree.0.insert(path.to_owned(), Node::Dir);
            self.folder(path, tree)?;
        } else if kind.is_file() {
            let executable = meta.mode() & 0o100 != 0;
            // Its other names, if it has some, are still to be looked at: the right to run it stays.
            fs::set_permissions(&from, std::fs::Permissions::from_mode(meta.mode() & 0o777 | 0o400))?;
            let (sha256, size) = self.file(path, &from, &to)?;
            let mode = if executable { 0o755 } else { 0o644 };
            fs::set_permissions(&to, std::fs::Permissions::from_mode(mode))?;
            tree.0.insert(path.to_owned(), Node::File { executable, size, sha256 });
        } else {
            let what = match () {
                () if kind.is_socket() => "a socket",
                () if kind.is_fifo() => "a named pipe",
                () => "a device",
            };
            let text = format!("it is {what}, not a file, a folder or a link");
            return Err(refuse(path, &text, "remove it at the end of the script").into());
        }
        self.finish(path, false)
    }

    /// Copies a file, hashing what passes and looking for the build folder's path.
    fn file(&self, path: &str, from: &Path, to: &Path) -> Result<(Digest, u64)> {
        let (mut input, mut output) = (fs::File::open(from)?, fs::File::create_new(to)?);
        let foreign = if let Paths::NoBuild(foreign) = self.paths { foreign } else { &[] };
        let (mut hasher, mut search) = (Hasher::new(), Search::new(foreign));
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = input.read(&mut buffer)?;
            let chunk = buffer.get(..count).unwrap_or_default();
            if let (Paths::NoBuild(_), Some(found)) = (self.paths, search.find(chunk)) {
                let text = format!("it holds the path of the build folder: `{found}`");
                let hint = "have the compiler leave such paths out (`-ffile-prefix-map=/build=.` for C, `-trimpath` for Go), or list the beginning of what is no path of this build in `foreign-paths` of the recipe";
                return Err(refuse(path, &text, hint).into());
            }
            if chunk.is_empty() {
                let size = hasher.len();
                return Ok((hasher.finish(), size));
            }
            hasher.update(chunk);
            output.write_all(chunk)?;
        }
    }

    /// Sets the time of what was made at `path`.
    fn finish(&self, path: &str, link: bool) -> Result<()> {
        let time = Timespec { tv_sec: self.epoch, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        let flags = if link { AtFlags::SYMLINK_NOFOLLOW } else { AtFlags::empty() };
        let to = self.to.join(path);
        utimensat(CWD, &to, &times, flags).with_context(|| format!("setting the time of {}", to.display()))
    }
}

/// Whether a link stays within the output wherever that lies. `..` only at its beginning: further on it would depend on what other
/// links lead to.
fn check_link(path: &str, target: &str) -> Result<(), Failure> {
    let depth = path.matches('/').count();
    let up = target.split('/').take_while(|part| *part == "..").count();
    let later = target.split('/').skip(up).any(|part| part == "..");
    if target.starts_with('/') || up > depth || later {
        let text = format!("this link leads to `{target}`, which may be outside of the output");
        return Err(refuse(path, &text, "make it relative, with `..` at its beginning only"));
    }
    Ok(())
}

fn refuse(path: &str, why: &str, hint: &str) -> Failure {
    let shown = if path.is_empty() { "out".to_owned() } else { format!("out/{path}") };
    Failure::new(error::Kind::Input, format!("{shown}: {why}")).hint(hint)
}

/// Looks for `/build/` at the beginning of a path, over the borders of chunks.
struct Search<'a> {
    foreign: &'a [String],
    /// Bytes that a hit needs behind its first, to be told from those that are let pass.
    ahead: usize,
    /// What was not judged yet, and one byte before it if there is one.
    tail: Vec<u8>,
    before: usize,
}

impl<'a> Search<'a> {
    const NEEDLE: &'static [u8] = b"/build/";

    fn new(foreign: &'a [String]) -> Self {
        let ahead = foreign.iter().map(String::len).fold(Self::NEEDLE.len(), usize::max);
        Search { foreign, ahead, tail: Vec::new(), before: 0 }
    }

    /// The first path in what has come so far; an empty chunk is the end.
    fn find(&mut self, chunk: &[u8]) -> Option<String> {
        /// As much of it as an error shows.
        const SHOWN: usize = 60;
        let inside = |b: &u8| b.is_ascii_alphanumeric() || b"_-./+~".contains(b);
        let bytes = [self.tail.as_slice(), chunk].concat();
        let end = if chunk.is_empty() { bytes.len() } else { bytes.len().saturating_sub(self.ahead) };
        let found = memchr::memmem::find_iter(&bytes, Self::NEEDLE).find(|at| {
            let rest = bytes.get(*at..).unwrap_or_default();
            // `lib/modules/6.12/build/` is another path.
            let begins = at.checked_sub(1).and_then(|before| bytes.get(before)).is_none_or(|b| !inside(b));
            (self.before..end).contains(at)
                && begins
                && !self.foreign.iter().any(|foreign| rest.starts_with(foreign.as_bytes()))
        });
        if let Some(at) = found {
            let path = bytes.iter().skip(at).take_while(|b| inside(b)).take(SHOWN).copied().collect();
            return Some(String::from_utf8(path).unwrap_or_default());
        }
        if end > 0 {
            self.tail = bytes.get(end - 1..).unwrap_or_default().to_vec();
            self.before = 1;
        } else {
            self.tail = bytes;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("from")).unwrap();
            Place { dir }
        }

        fn at(&self, name: &str) -> std::path::PathBuf {
            self.dir.path().join("from").join(name)
        }

        fn publish(&self) -> Result<OutputTree> {
            publish(
                &self.dir.path().join("from"),
                &self.dir.path().join("to"),
                1_000_000_000,
                Paths::NoBuild(&[]),
            )
        }

        #[track_caller]
        fn refused(&self, words: &str) {
            let error = self.publish().unwrap_err();
            let report = error::report(&error);
            assert!(report.chain[0].contains(words), "{error:#}");
            assert_eq!(report.kind, error::Kind::Input);
            assert_eq!(report.hints.len(), 1);
        }
    }

    #[test]
    fn two_trees_that_differ_in_modes_times_and_links_come_out_the_same() {
        let digests: Vec<Digest> = [0o644, 0o600]
            .into_iter()
            .map(|mode| {
                let place = Place::new();
                fs::create_dir_all(place.at("lib/deep")).unwrap();
                fs::write(place.at("lib/a"), "a").unwrap();
                fs::write(place.at("run"), "r").unwrap();
                fs::set_permissions(place.at("run"), PermissionsExt::from_mode(mode | 0o100)).unwrap();
                fs::set_permissions(place.at("lib/a"), PermissionsExt::from_mode(mode)).unwrap();
                fs::os::unix::fs::symlink("../a", place.at("lib/deep/up")).unwrap();
                if mode == 0o644 {
                    fs::hard_link(place.at("lib/a"), place.at("b")).unwrap();
                } else {
                    fs::write(place.at("b"), "a").unwrap();
                }
                fs::set_permissions(place.at("lib/deep"), PermissionsExt::from_mode(mode | 0o100)).unwrap();
                let tree = place.publish().unwrap();
                for name in ["", "lib", "lib/a", "lib/deep/up", "run"] {
                    let meta = fs::symlink_metadata(place.dir.path().join("to").join(name)).unwrap();
                    assert_eq!(
                        (meta.mtime(), meta.nlink() > 1 && !meta.is_dir()),
                        (1_000_000_000, false),
                        "{name}"
                    );
                }
                let mode = |name: &str| {
                    fs::metadata(place.dir.path().join("to").join(name)).unwrap().mode() & 0o7777
                };
                assert_eq!([mode("lib"), mode("lib/a"), mode("run")], [0o755, 0o644, 0o755]);
                tree.digest()
            })
            .collect();
        assert_eq!(digests[0], digests[1]);
    }

    #[test]
    fn what_means_something_else_elsewhere_is_refused_by_its_path() {
        let place = Place::new();
        fs::write(place.at("su"), "x").unwrap();
        fs::set_permissions(place.at("su"), PermissionsExt::from_mode(0o4755)).unwrap();
        place.refused("out/su: it has a set-id bit");

        let place = Place::new();
        rustix::fs::mknodat(CWD, place.at("pipe"), rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
        place.refused("out/pipe: it is a named pipe");

        let place = Place::new();
        let _socket = std::os::unix::net::UnixListener::bind(place.at("socket")).unwrap();
        place.refused("out/socket: it is a socket");

        let place = Place::new();
        let (outside, from) = (place.dir.path().join("outside"), place.at(""));
        fs::create_dir(&outside).unwrap();
        fs::set_permissions(&outside, PermissionsExt::from_mode(0o700)).unwrap();
        fs::remove_dir(&from).unwrap();
        fs::os::unix::fs::symlink(&outside, place.dir.path().join("from")).unwrap();
        place.refused("out: the build put something else in its place");
        assert_eq!(fs::metadata(&outside).unwrap().mode() & 0o777, 0o700, "nothing outside is touched");

        let place = Place::new();
        let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"a\xffb");
        fs::write(place.at("").join(name), "x").unwrap();
        place.refused("is no UTF-8");
    }

    #[test]
    fn a_link_that_may_lead_out_is_refused_and_one_that_stays_is_not() {
        for (path, target) in [
            ("a", "/etc/passwd"),
            ("a", ".."),
            ("d/a", "../../x"),
            ("d/a", "../b/../../x"),
            ("a", "b/../c"),
            ("d/a", "/build/out/x"),
        ] {
            assert!(check_link(path, target).is_err(), "{path} -> {target}");
        }
        for (path, target) in
            [("a", "b"), ("d/a", "../b"), ("d/e/a", "../../b/c"), ("a", "./b"), ("a", "..x")]
        {
            check_link(path, target).unwrap();
        }
    }

    #[test]
    fn the_build_folder_is_found_over_the_border_of_chunks_and_other_paths_are_not() {
        let foreign = ["/build/cancel".to_owned()];
        // In two chunks, cut at `border`.
        let search = |text: &[u8], border: usize| {
            let mut search = Search::new(&foreign);
            [&text[..border], &text[border..], b""].into_iter().find_map(|chunk| search.find(chunk))
        };
        for border in 0..=14 {
            assert_eq!(
                search(b"one /build/src/a.c two", border).as_deref(),
                Some("/build/src/a.c"),
                "{border}"
            );
            assert_eq!(search(b"/build/        ", border).as_deref(), Some("/build/"), "{border}");
            assert_eq!(search(b"x/lib/6.12/build/a \0/build", border), None, "{border}");
            assert_eq!(search(b"a \0/build/cancel/b", border), None, "{border}");
            assert_eq!(search(b" /build/cancel /build/c", border).as_deref(), Some("/build/c"), "{border}");
        }
        let place = Place::new();
        fs::write(place.at("a.out"), b"\0\0/build/hello.c\0").unwrap();
        place.refused("out/a.out: it holds the path of the build folder: `/build/hello.c`");
    }
}
