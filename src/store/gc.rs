//! What may go: everything that no root reaches.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::step::StepRecord;
use super::{Store, remove_tree};
use crate::digest::Digest;
use crate::error::{Failure, Kind};

/// A project's claim on the store: written at each build, read by [`Store::gc`] and [`Store::why`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Folder of the project; a root whose folder is gone counts no more.
    pub project: PathBuf,
    /// What was built: `server amd64`.
    pub what: String,
    /// Store paths that it needs, relative to the store.
    pub needs: BTreeSet<String>,
}

/// What [`Store::gc`] did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Store paths that went, relative to the store, sorted.
    pub removed: Vec<String>,
    /// Bytes freed.
    pub bytes: u64,
    /// Store paths that stay.
    pub kept: usize,
}

impl Store {
    /// Records that `project` needs these paths for `what`; replaces what it needed before.
    pub fn set_root(&self, root: &Root) -> Result<()> {
        let name = Digest::of(format!("{}\0{}", root.project.display(), root.what).as_bytes()).short();
        let path = self.root.join("roots").join(format!("{name}.json"));
        let text = serde_json::to_vec_pretty(root)?;
        if fs::read(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        let staging = self.staging()?;
        fs::write(staging.file("root"), text)?;
        fs::rename(staging.file("root"), path)?;
        Ok(())
    }

    /// All roots whose project is still there.
    pub fn roots(&self) -> Result<Vec<Root>> {
        let mut roots = Vec::new();
        for entry in fs::read_dir(self.root.join("roots"))? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let root: Root = match serde_json::from_slice(&fs::read(&path)?) {
                Ok(root) => root,
                Err(e) => {
                    let text = format!("gc root {} cannot be read", path.display());
                    return Err(Failure::new(Kind::Store, text)
                        .hint("remove that file and build the project again")
                        .because(e)
                        .into());
                }
            };
            if root.project.exists() {
                roots.push(root);
            }
        }
        roots.sort_by(|a, b| (&a.project, &a.what).cmp(&(&b.project, &b.what)));
        Ok(roots)
    }

    /// All paths that some root reaches, relative to the store.
    pub fn reachable(&self) -> Result<BTreeSet<String>> {
        let mut seen = BTreeSet::new();
        let mut todo: Vec<String> = self.roots()?.into_iter().flat_map(|r| r.needs).collect();
        while let Some(path) = todo.pop() {
            if !seen.insert(path.clone()) {
                continue;
            }
            if let Ok(text) = fs::read(self.root.join(&path).join("step.json"))
                && let Ok(record) = serde_json::from_slice::<StepRecord>(&text)
            {
                todo.extend(record.needs);
            }
        }
        Ok(seen)
    }

    /// Removes all that no root reaches, and downloads that were never finished. With `dry_run` only says what would go.
    /// Refused while another kiln uses the store.
    pub fn gc(&self, dry_run: bool) -> Result<GcReport> {
        // The shared lock that this store holds itself must not stand in the way of the exclusive one, so the lock is
        // converted: flock on the same open file replaces the mode.
        if !dry_run && self._shared.try_lock().is_err() {
            return Err(Failure::new(Kind::Store, "another kiln is using the store")
                .hint("wait for it to end, or look with `kiln store gc --dry-run`")
                .into());
        }
        let keep = self.reachable()?;
        let mut report = GcReport::default();
        for item in self.list()? {
            if keep.contains(&item.path) {
                report.kept += 1;
                continue;
            }
            report.bytes += item.bytes;
            if !dry_run {
                remove_tree(&self.root.join(&item.path))?;
            }
            report.removed.push(item.path);
        }
        if !dry_run {
            for entry in fs::read_dir(self.root.join("roots"))? {
                let path = entry?.path();
                if serde_json::from_slice::<Root>(&fs::read(&path)?).is_ok_and(|root| !root.project.exists())
                {
                    fs::remove_file(&path)?;
                }
            }
            prune_empty(&self.root.join("steps"))?;
            prune_empty(&self.root.join("objects"))?;
            self._shared.lock_shared()?;
        }
        Ok(report)
    }

    /// The roots that reach `path` (relative to the store), each with the chain of steps that leads there.
    pub fn why(&self, path: &str) -> Result<Vec<(Root, Vec<String>)>> {
        let mut answers = Vec::new();
        for root in self.roots()? {
            let mut todo: Vec<Vec<String>> = root.needs.iter().map(|n| vec![n.clone()]).collect();
            let mut seen = BTreeSet::new();
            while let Some(chain) = todo.pop() {
                let last = chain.last().expect("chains are never empty").clone();
                if last == path {
                    answers.push((root.clone(), chain));
                    break;
                }
                if !seen.insert(last.clone()) {
                    continue;
                }
                if let Ok(text) = fs::read(self.root.join(&last).join("step.json"))
                    && let Ok(record) = serde_json::from_slice::<StepRecord>(&text)
                {
                    todo.extend(record.needs.into_iter().map(|next| {
                        let mut longer = chain.clone();
                        longer.push(next);
                        longer
                    }));
                }
            }
        }
        Ok(answers)
    }
}

/// Removes empty folders below `dir`, not `dir` itself.
fn prune_empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            prune_empty(&path)?;
            fs::remove_dir(&path).ok();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::StepKey;
    use super::super::tests::store;
    use super::*;

    #[test]
    fn gc_keeps_what_roots_reach_and_nothing_else() {
        let (dir, store) = store();
        let (kept, _) = store.put_object(b"kept").unwrap();
        let (lost, lost_path) = store.put_object(b"lost").unwrap();
        let relative = |d: Digest| format!("objects/{}/{d}", &d.to_string()[..2]);
        let key = StepKey::new("unpack", "x", 1);
        store.step(&key, |_| {}, |_| Ok(vec![relative(kept)])).unwrap();
        let step = store.step_path(&key).strip_prefix(store.root()).unwrap().display().to_string();
        let project = dir.path().join("project");
        fs::create_dir(&project).unwrap();
        let root = Root { project: project.clone(), what: "server".into(), needs: [step.clone()].into() };
        store.set_root(&root).unwrap();

        let dry = store.gc(true).unwrap();
        assert_eq!(dry.removed, [relative(lost)]);
        assert!(lost_path.exists(), "a dry run removes nothing");
        assert_eq!(store.gc(false).unwrap(), dry);
        assert!(!lost_path.exists());
        assert!(store.object(kept, 4).is_some());
        assert_eq!(store.why(&relative(kept)).unwrap(), [(root, vec![step, relative(kept)])]);

        fs::remove_dir(&project).unwrap();
        assert_eq!(store.gc(false).unwrap().removed.len(), 2, "a project that is gone claims nothing");
        assert_eq!(store.roots().unwrap(), []);
    }

    #[test]
    fn the_remains_of_a_failed_build_stay_until_gc_and_newer_ones_take_their_place() {
        let (_dir, store) = store();
        for text in ["first", "second"] {
            let staging = store.staging().unwrap();
            fs::write(staging.file("log"), text).unwrap();
            fs::create_dir(staging.file("build")).unwrap();
            let parts: &[&str] = if text == "first" { &["log", "build"] } else { &["log"] };
            assert_eq!(store.keep_failed("x", &staging, parts).unwrap(), store.failed_path("x"));
        }
        assert_eq!(fs::read_to_string(store.failed_path("x").join("log")).unwrap(), "second");
        assert!(!store.failed_path("x").join("build").exists());
        let report = store.gc(false).unwrap();
        assert_eq!((report.removed, report.bytes), (vec!["failed/x".to_owned()], 6));
        assert!(!store.failed_path("x").exists());
        store.forget_failed("x").unwrap();
    }

    #[test]
    fn gc_is_refused_while_another_user_is_there() {
        let (_dir, store) = store();
        let other = Store::open(store.root()).unwrap();
        assert!(other.gc(false).unwrap_err().to_string().contains("another kiln"));
        assert!(other.gc(true).is_ok());
    }
}
