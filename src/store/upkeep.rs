//! Looking at the store: what is in it, and is it still what it was.

use std::path::Path;

use anyhow::Result;
use fs_err as fs;
use serde::Serialize;

use super::step::StepRecord;
use super::{Store, remove_tree};
use crate::digest::Digest;

/// What a thing in the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ItemKind {
    /// Bytes from outside.
    Object,
    /// A download that was not finished.
    Partial,
    /// Outputs of a step.
    Step,
    /// What a failed build left.
    Failed,
}

/// A thing in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What it is.
    pub kind: ItemKind,
    /// Relative to the store.
    pub path: String,
    /// `unpack dash` for a step, empty otherwise.
    pub title: String,
    /// Bytes of its files.
    pub bytes: u64,
}

/// A thing in the store that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Relative to the store.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
}

impl Store {
    /// Everything in the store, sorted by path.
    pub fn list(&self) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        let mut files = |folder: &Path, kind: ItemKind| -> Result<()> {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                let (path, bytes) = (self.relative(&entry.path()), entry.metadata()?.len());
                items.push(Item { kind, path, title: String::new(), bytes });
            }
            Ok(())
        };
        for shard in fs::read_dir(self.root.join("objects"))? {
            files(&shard?.path(), ItemKind::Object)?;
        }
        files(&self.root.join("partial"), ItemKind::Partial)?;
        for kind in fs::read_dir(self.root.join("steps"))? {
            for name in fs::read_dir(kind?.path())? {
                for key in fs::read_dir(name?.path())? {
                    let path = key?.path();
                    let bytes = size_below(&path)?;
                    let path = self.relative(&path);
                    let title = path.split('/').skip(1).take(2).collect::<Vec<_>>().join(" ");
                    items.push(Item { kind: ItemKind::Step, path, title, bytes });
                }
            }
        }
        for name in fs::read_dir(self.root.join("failed"))? {
            let path = name?.path();
            // A build may have left folders that cannot be looked into; they can still be removed.
            let (bytes, path) = (size_below(&path).unwrap_or(0), self.relative(&path));
            let title = path.split('/').skip(1).collect();
            items.push(Item { kind: ItemKind::Failed, path, title, bytes });
        }
        items.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(items)
    }

    /// `path` as it is written in roots, records and reports.
    pub fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    /// Reads everything and compares it with its digest. What is damaged is removed if `repair`, so that the next build
    /// makes or fetches it again.
    pub fn verify(&self, repair: bool, mut seen: impl FnMut(&Item)) -> Result<Vec<Damage>> {
        let mut damage = Vec::new();
        for item in self.list()? {
            seen(&item);
            let path = self.root.join(&item.path);
            let what = match item.kind {
                ItemKind::Partial | ItemKind::Failed => None,
                ItemKind::Object => {
                    let (digest, _) = Digest::of_reader(fs::File::open(&path)?)?;
                    let name = item.path.rsplit('/').next().unwrap_or_default();
                    (digest.to_string() != name).then(|| format!("its bytes have the digest {digest}"))
                }
                ItemKind::Step => {
                    match fs::read(path.join("step.json")).map(|t| serde_json::from_slice::<StepRecord>(&t)) {
                        Ok(Ok(record)) => match self.find_step(&record.key) {
                            Ok(dir) => dir.damage()?,
                            Err(miss) => Some(miss.to_string()),
                        },
                        Ok(Err(e)) => Some(format!("step.json: {e}")),
                        Err(e) => Some(e.to_string()),
                    }
                }
            };
            if let Some(what) = what {
                if repair {
                    remove_tree(&path)?;
                }
                damage.push(Damage { path: item.path, what });
            }
        }
        Ok(damage)
    }
}

fn size_below(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes +=
            if entry.file_type()?.is_dir() { size_below(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::StepKey;
    use super::super::tests::store;
    use super::*;

    #[test]
    fn verify_finds_a_flipped_byte_and_repair_removes_the_thing() {
        let (_dir, store) = store();
        let (digest, path) = store.put_object(b"good").unwrap();
        let key = StepKey::new("unpack", "x", 1);
        store.step(&key, |_| {}, |s| Ok(fs::write(s.file("data"), "abc").map(|()| vec![])?)).unwrap();
        assert_eq!(store.verify(false, |_| {}).unwrap(), []);

        for file in [&path, &store.step_path(&key).join("data")] {
            fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
            let mut bytes = fs::read(file).unwrap();
            bytes[1] ^= 1;
            fs::write(file, bytes).unwrap();
        }
        let damage = store.verify(true, |_| {}).unwrap();
        assert_eq!(damage.len(), 2, "{damage:?}");
        assert!(damage[1].what.contains("data does not have its digest"), "{damage:?}");
        assert!(store.object(digest, 4).is_none());
        assert!(store.find_step(&key).is_err());
        assert_eq!(store.verify(false, |_| {}).unwrap(), []);
    }
}
