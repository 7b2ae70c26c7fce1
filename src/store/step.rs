//! Steps: cached units of work, named by their inputs.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::{Store, lock_file, remove_tree};
use crate::digest::Digest;
use crate::error::{Failure, Kind, Place, WritesTo};

/// What a step is: its kind, the thing it works on, the version of the code that does it, and everything it reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepKey {
    /// `unpack`, `compress`, `image` …; a folder name.
    pub kind: String,
    /// A package, a profile …; a folder name, so `/` is not in it.
    pub name: String,
    /// Raised by hand when the code of the step changes its output.
    pub version: u32,
    /// Input name to its digest or literal value.
    pub inputs: BTreeMap<String, String>,
}

impl StepKey {
    /// A key without inputs yet; see [`StepKey::input`].
    pub fn new(kind: &str, name: &str, version: u32) -> Self {
        StepKey { kind: kind.to_owned(), name: name.replace('/', "_"), version, inputs: BTreeMap::new() }
    }

    /// Adds an input: a digest, or a short value as it is.
    #[must_use]
    pub fn input(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.inputs.insert(name.to_owned(), value.to_string());
        self
    }

    /// The digest of kind, name, version and inputs. Fields are length-prefixed, so no two keys share an encoding.
    pub fn digest(&self) -> Digest {
        let mut bytes = Vec::new();
        let mut field = |text: &str| {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        field(&self.kind);
        field(&self.name);
        field(&self.version.to_string());
        for (name, value) in &self.inputs {
            field(name);
            field(value);
        }
        Digest::of(&bytes)
    }
}

/// Why a step has to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// Nothing of this kind and name was ever built in this store.
    New,
    /// It was built from other inputs; the names of those that differ.
    Changed(Vec<String>),
    /// The code of the step has another version.
    Code {
        /// Version of the newest output in the store.
        old: u32,
        /// Version of this kiln.
        new: u32,
    },
    /// An output is missing or has another length or digest.
    Damaged(String),
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Miss::New => f.write_str("never built here"),
            Miss::Changed(names) => write!(f, "{} changed", names.join(", ")),
            Miss::Code { old, new } => write!(f, "kiln's code for it changed ({old} -> {new})"),
            Miss::Damaged(what) => write!(f, "its output was damaged: {what}"),
        }
    }
}

/// What lies beside the outputs of a step, as `step.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepRecord {
    /// What the step was.
    pub key: StepKey,
    /// Path below the step's folder to size and digest, regular files only.
    pub outputs: BTreeMap<String, Output>,
    /// Other store paths that must live as long as this one, relative to the store.
    #[serde(default)]
    pub needs: Vec<String>,
}

/// An output file of a step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Output {
    /// Bytes.
    pub size: u64,
    /// Of the whole file.
    pub sha256: Digest,
}

/// A finished step in the store.
#[derive(Debug, Clone)]
pub struct StepDir {
    path: PathBuf,
    record: StepRecord,
}

impl StepDir {
    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An output file.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Key and outputs.
    pub fn record(&self) -> &StepRecord {
        &self.record
    }

    /// Digest of the output `name`; a bug if the step does not have it.
    pub fn digest(&self, name: &str) -> Result<Digest> {
        let output = self.record.outputs.get(name);
        let missing =
            || Failure::new(Kind::Internal, format!("step {} has no output {name}", self.path.display()));
        Ok(output.ok_or_else(missing)?.sha256)
    }

    /// Re-reads every output and compares digests; the first difference is the answer.
    pub fn damage(&self) -> Result<Option<String>> {
        for (name, output) in &self.record.outputs {
            match fs::File::open(self.file(name)) {
                Ok(file) => {
                    let (digest, size) = Digest::of_reader(file)?;
                    if (digest, size) != (output.sha256, output.size) {
                        return Ok(Some(format!("{name} does not have its digest any more")));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Ok(Some(format!("{name} is missing")));
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(None)
    }
}

/// Takes down size and digest of every regular file below `folder`, by its path below `base`, and takes away the right to write.
fn seal(base: &Path, folder: &Path, outputs: &mut BTreeMap<String, Output>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(folder)? {
        let (entry, path) = {
            let entry = entry?;
            let path = entry.path();
            (entry, path)
        };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            seal(base, &path, outputs)?;
        } else if kind.is_file() {
            let (sha256, size) = Digest::of_reader(fs::File::open(&path)?)?;
            let mode = entry.metadata()?.permissions().mode();
            fs::set_permissions(&path, std::fs::Permissions::from_mode(mode & 0o555))?;
            let name = path.strip_prefix(base).unwrap_or(&path).display().to_string();
            outputs.insert(name, Output { size, sha256 });
        }
    }
    Ok(())
}

/// A private folder in the store's `tmp`; gone when dropped, unless it was published.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Staging {
    pub(super) fn create(base: PathBuf) -> Result<Self> {
        let lock_path = base.with_extension("lock");
        let lock = lock_file(&lock_path)?;
        remove_tree(&base)?;
        fs::create_dir(&base)?;
        Ok(Staging { path: base, lock_path, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Nothing to tell anybody here: what cannot be removed now is swept when the store is opened next.
        remove_tree(&self.path).ok();
        fs::remove_file(&self.lock_path).ok();
    }
}

/// The result of [`Store::step`].
#[derive(Debug)]
pub struct Outcome {
    /// The outputs.
    pub dir: StepDir,
    /// Why it ran; `None` if it was there.
    pub miss: Option<Miss>,
}

impl Store {
    /// Where a step with this key lies, or would lie.
    pub fn step_path(&self, key: &StepKey) -> PathBuf {
        self.root.join("steps").join(&key.kind).join(&key.name).join(&key.digest().to_string()[..32])
    }

    /// The finished step, if it is there and its outputs have their lengths. Digests are checked by whoever reads the
    /// outputs whole, and by [`Store::verify`].
    pub fn find_step(&self, key: &StepKey) -> Result<StepDir, Miss> {
        let path = self.step_path(key);
        let text = match fs::read(path.join("step.json")) {
            Ok(text) => text,
            Err(_) if !path.exists() => return Err(self.explain(key)),
            Err(e) => return Err(Miss::Damaged(e.to_string())),
        };
        let record: StepRecord =
            serde_json::from_slice(&text).map_err(|e| Miss::Damaged(format!("step.json: {e}")))?;
        if record.key != *key {
            return Err(Miss::Damaged("step.json names another step".to_owned()));
        }
        for (name, output) in &record.outputs {
            match fs::metadata(path.join(name)) {
                Ok(meta) if meta.len() == output.size => {}
                Ok(_) => return Err(Miss::Damaged(format!("{name} has another length"))),
                Err(_) => return Err(Miss::Damaged(format!("{name} is missing"))),
            }
        }
        Ok(StepDir { path, record })
    }

    /// Gives the outputs of the step `key`, running `work` if they are not in the store. `work` writes files into the
    /// staging folder and returns the store paths (relative) that must live as long as the outputs. Two processes that ask
    /// for the same step wait for each other; one of them works.
    pub fn step(
        &self,
        key: &StepKey,
        mut started: impl FnMut(&Miss),
        work: impl FnOnce(&Staging) -> Result<Vec<String>>,
    ) -> Result<Outcome> {
        if let Ok(dir) = self.find_step(key) {
            return Ok(Outcome { dir, miss: None });
        }
        let lock = self.root.join("tmp").join(format!("step-{}.lock", key.digest()));
        let _lock = lock_file(&lock).writes_to(Place::Store, &self.root)?;
        let miss = match self.find_step(key) {
            Ok(dir) => return Ok(Outcome { dir, miss: None }),
            Err(miss) => miss,
        };
        started(&miss);
        let staging = self.staging()?;
        // What the work writes is in the staging folder.
        let dir = work(&staging)
            .and_then(|needs| self.publish_step(key, &staging, needs))
            .writes_to(Place::Store, &self.root)?;
        Ok(Outcome { dir, miss: Some(miss) })
    }

    fn publish_step(&self, key: &StepKey, staging: &Staging, needs: Vec<String>) -> Result<StepDir> {
        let mut outputs = BTreeMap::new();
        seal(staging.path(), staging.path(), &mut outputs)?;
        let record = StepRecord { key: key.clone(), outputs, needs };
        fs::write(staging.file("step.json"), serde_json::to_vec_pretty(&record)?)?;
        let path = self.step_path(key);
        fs::create_dir_all(path.parent().expect("steps lie in folders"))?;
        // What stands there already is damaged, or find_step would have taken it.
        if path.exists() {
            let aside = staging.path().with_extension("old");
            fs::rename(&path, &aside)?;
            remove_tree(&aside)?;
        }
        fs::rename(staging.path(), &path)
            .with_context(|| format!("publishing step {} {}", key.kind, key.name))?;
        Ok(StepDir { path, record })
    }

    /// Removes the outputs of a step, for instance because they turned out damaged while being read.
    pub fn forget_step(&self, key: &StepKey) -> Result<()> {
        remove_tree(&self.step_path(key))
    }

    /// Compares `key` with the newest step of the same kind and name.
    fn explain(&self, key: &StepKey) -> Miss {
        let folder = self.root.join("steps").join(&key.kind).join(&key.name);
        let Ok(entries) = fs::read_dir(folder) else { return Miss::New };
        let newest = entries
            .filter_map(|e| e.ok())
            .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())))
            .max()
            .and_then(|(_, path)| fs::read(path.join("step.json")).ok())
            .and_then(|text| serde_json::from_slice::<StepRecord>(&text).ok());
        let Some(old) = newest else { return Miss::New };
        if old.key.version != key.version {
            return Miss::Code { old: old.key.version, new: key.version };
        }
        let names: std::collections::BTreeSet<&String> =
            old.key.inputs.keys().chain(key.inputs.keys()).collect();
        let changed = |name: &&&String| old.key.inputs.get(**name) != key.inputs.get(**name);
        Miss::Changed(names.iter().filter(changed).map(|n| (*n).clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::store;
    use super::*;

    fn build(store: &Store, key: &StepKey, text: &str) -> Outcome {
        store
            .step(
                key,
                |_| {},
                |staging| {
                    fs::write(staging.file("out"), text)?;
                    Ok(vec![])
                },
            )
            .unwrap()
    }

    #[test]
    fn a_step_runs_once_and_says_why_it_ran() {
        let (_dir, store) = store();
        let key = StepKey::new("unpack", "dash", 1).input("deb", "abc");
        assert_eq!(build(&store, &key, "one").miss, Some(Miss::New));
        let again = build(&store, &key, "two");
        assert_eq!(again.miss, None);
        assert_eq!(fs::read_to_string(again.dir.file("out")).unwrap(), "one");
        let other = StepKey::new("unpack", "dash", 1).input("deb", "abd").input("drop", "x");
        assert_eq!(build(&store, &other, "two").miss, Some(Miss::Changed(vec!["deb".into(), "drop".into()])));
        let newer = StepKey { version: 2, ..key };
        assert_eq!(build(&store, &newer, "three").miss, Some(Miss::Code { old: 1, new: 2 }));
    }

    #[test]
    fn a_damaged_output_is_made_again() {
        let (_dir, store) = store();
        let key = StepKey::new("unpack", "dash", 1);
        let first = build(&store, &key, "one").dir;
        assert_eq!(first.damage().unwrap(), None);
        fs::remove_file(first.file("out")).unwrap();
        assert!(matches!(build(&store, &key, "one").miss, Some(Miss::Damaged(_))));
        let out = first.file("out");
        fs::set_permissions(&out, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        fs::write(&out, "eno").unwrap();
        assert_eq!(first.damage().unwrap().unwrap(), "out does not have its digest any more");
    }

    #[test]
    fn a_step_that_fails_leaves_nothing() {
        let (_dir, store) = store();
        let key = StepKey::new("unpack", "dash", 1);
        let failed = store.step(
            &key,
            |_| {},
            |staging| {
                fs::write(staging.file("half"), "x")?;
                anyhow::bail!("no")
            },
        );
        assert!(failed.is_err());
        assert!(store.find_step(&key).is_err());
        let left: Vec<_> =
            fs::read_dir(store.root().join("tmp")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|n| n.to_string_lossy().ends_with(".lock")), "{left:?}");
    }

    #[test]
    fn two_threads_ask_and_one_works() {
        let (_dir, store) = store();
        let key = StepKey::new("unpack", "dash", 1);
        let ran = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    store
                        .step(
                            &key,
                            |_| {},
                            |staging| {
                                ran.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                                std::thread::sleep(std::time::Duration::from_millis(20));
                                fs::write(staging.file("out"), "x")?;
                                Ok(vec![])
                            },
                        )
                        .unwrap();
                });
            }
        });
        assert_eq!(ran.into_inner(), 1);
    }

    #[test]
    fn keys_differ_when_only_the_borders_of_fields_do() {
        let a = StepKey::new("k", "n", 1).input("a", "bc");
        let b = StepKey::new("k", "n", 1).input("ab", "c");
        assert_ne!(a.digest(), b.digest());
    }
}
