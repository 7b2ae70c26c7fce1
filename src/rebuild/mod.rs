//! `kiln build --check`: the same image a second time from nothing, and where the two differ if they do.
//!
//! The second build has a store of its own, in which there are only the packages' files (hard links to objects of the first store;
//! unpacking compares their digests with the lock again), another output folder and another number of threads. Equal are the bytes of
//! the disk, of the manifest, of the list of files and of every other format that was asked for. If they are not, three
//! comparisons say where, from the cause on: outputs of steps with the same key ([`steps`]), files of the root
//! ([`files`]), bytes of the disks ([`disks()`]).

mod disks;

pub use disks::disks;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::diff;
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::formats::{self, Format};
use crate::k3s;
use crate::linux;
use crate::lock::SetKind;
use crate::manifest::{self, FileInfo};
use crate::packages::Work;
use crate::pipeline::{self, Target};
use crate::spec::Profile;
use crate::store::{ItemKind, StepRecord, Store};
use crate::sys;

/// Findings that an error names; `--json` has all.
const SHOWN: usize = 20;

/// A place where two builds differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The step that made it: `unpack`, `compress`, `root`, `boot`, `disk` …
    pub step: String,
    /// Package, profile or tool set that the step worked on; empty if that is not known.
    pub name: String,
    /// File in the image, or output of the step; empty for what is no file.
    pub file: String,
    /// What of it differs: `sha256`, `mode`, `bytes` …
    pub field: String,
    /// In the first build.
    pub first: String,
    /// In the second.
    pub second: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}", self.step)?;
        if !self.name.is_empty() {
            write!(f, ", {}", self.name)?;
        }
        if !self.file.is_empty() {
            write!(f, ", {}", self.file)?;
        }
        write!(f, ": {} {} -> {}", self.field, diff::short(&self.first), diff::short(&self.second))
    }
}

/// What two builds of the same lock came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// All bytes were the same.
    pub same: bool,
    /// Digest of the first disk, read again.
    pub first: Digest,
    /// Digest of the second.
    pub second: Digest,
    /// Threads of both builds.
    pub threads: [usize; 2],
    /// Where they differ, the cause first.
    pub findings: Vec<Finding>,
}

impl Verdict {
    /// An error of kind test if the builds differ.
    pub fn into_result(self, target: &Target<'_>) -> Result<Self> {
        if self.same {
            return Ok(self);
        }
        let mut text = format!(
            "{} is not reproducible: its disk has the sha256 {}…, then {}…",
            target.raw().display(),
            self.first.short(),
            self.second.short()
        );
        for finding in self.findings.iter().take(SHOWN) {
            text.push_str(&format!("\n  {finding}"));
        }
        if self.findings.len() > SHOWN {
            text.push_str(&format!("\n  … and {} more, all with --json", self.findings.len() - SHOWN));
        }
        Err(Failure::new(Kind::Test, text)
            .hint("the first line names the step to look at; if an output was edited by hand, remove it and build again")
            .into())
    }
}

/// Builds `target`, which was just built with `work`, a second time and compares.
pub fn check(work: &Work<'_>, target: &Target<'_>, wanted: &[Format]) -> Result<Verdict> {
    let staging = work.store.staging()?;
    let (store, out) = (Store::open(&staging.file("store"))?, staging.file("out"));
    fs::create_dir(&out)?;
    give_sources(work, target.profile, target.arch, &store)?;
    let threads = work.threads + 1;
    work.ui.status("Checking", format!("{} again from nothing, with {threads} threads", target.stem()));
    let again = Work { store: &store, threads, ..*work };
    let second = Target { out: &out, ..target.clone() };
    let (described, _) = pipeline::build(&again, &second)?;
    let mut findings = Vec::new();
    let mut compare = |step: &str, first: &Path, second: &Path| -> Result<[Digest; 2]> {
        sys::check_interrupt()?;
        let digests = [digest(first)?, digest(second)?];
        if digests[0] != digests[1] {
            findings.push(Finding {
                step: step.to_owned(),
                file: first.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                field: "sha256".to_owned(),
                first: digests[0].to_string(),
                second: digests[1].to_string(),
                ..Finding::default()
            });
        }
        Ok(digests)
    };
    let [first_disk, second_disk] = compare("disk", &target.raw(), &second.raw())?;
    let manifests = [manifest::path(target), manifest::path(&second)];
    compare("manifest", &manifests[0], &manifests[1])?;
    let lists = manifests.each_ref().map(|m| manifest::files_path(m));
    compare("manifest", &lists[0], &lists[1])?;
    for format in wanted {
        formats::write(&again, &second, &described, *format)?;
        compare("format", &format.path(target), &format.path(&second))?;
    }
    let same = findings.is_empty();
    if !same {
        let mut causes = steps(work.store, &store)?;
        causes.extend(files(&manifest::read_files(&manifests[0])?, &manifest::read_files(&manifests[1])?));
        causes.extend(disks(&target.raw(), &second.raw())?);
        causes.append(&mut findings);
        findings = causes;
    }
    Ok(Verdict { same, first: first_disk, second: second_disk, threads: [work.threads, threads], findings })
}

/// Gives the store `to` all that an image of `profile` is made from and that takes the network or a compiler: packages, container
/// images' packages, K3s' release, and what recipes built. What a build makes of these itself is left out.
///
/// # Errors
/// A recipe of the profile is not in the store of `work`; files that cannot be linked or copied.
pub fn give_sources(work: &Work<'_>, profile: &Profile, arch: Arch, to: &Store) -> Result<()> {
    let sets =
        [(SetKind::Profile, profile.name.as_str()), (SetKind::Tool, "boot"), (SetKind::Tool, "initrd")];
    let of_containers = k3s::sets(work, profile).into_iter().map(|name| (SetKind::Tool, name));
    for (kind, name) in sets.into_iter().chain(of_containers) {
        for package in work.locked.packages(kind, name, arch)? {
            link_object(work.store, to, package.sha256, package.size)?;
        }
    }
    if let Some(source) = &profile.layer.kernel.source {
        // Compiling it again is what `kiln recipe build --check` is for, and takes as long as the first time.
        link(&linux::built(work, source)?, work.store.root(), to.root())?;
    }
    for path in k3s::taken(work, profile, arch)? {
        link(&path, work.store.root(), to.root())?;
    }
    Ok(())
}

fn digest(path: &Path) -> Result<Digest> {
    let file = fs::File::open(path).context("reading an output of the two builds")?;
    Ok(Digest::of_reader(file)?.0)
}

/// Makes an object of one store one of the other too, by a hard link, or by a copy where links cannot be made. An object that is
/// missing is left out: the build fetches it.
fn link_object(from: &Store, to: &Store, digest: Digest, size: u64) -> Result<()> {
    let (Some(old), new) = (from.object(digest, size), to.object_path(digest)) else { return Ok(()) };
    if new.exists() {
        return Ok(());
    }
    fs::create_dir_all(new.parent().expect("objects lie in folders"))?;
    if fs::hard_link(&old, &new).is_err() {
        fs::copy(&old, &new)?;
    }
    Ok(())
}

/// Gives the store in `to` what lies at `path` in the store in `from`: an object, or the folder of a step.
fn link(path: &Path, from: &Path, to: &Path) -> Result<()> {
    let new = to.join(path.strip_prefix(from).unwrap_or(path));
    if path.is_symlink() {
        fs::os::unix::fs::symlink(fs::read_link(path)?, new)?;
    } else if path.is_dir() {
        fs::create_dir_all(&new)?;
        for entry in fs::read_dir(path)? {
            link(&entry?.path(), from, to)?;
        }
    } else {
        fs::create_dir_all(new.parent().expect("a store holds folders"))?;
        if fs::hard_link(path, &new).is_err() {
            fs::copy(path, &new)?;
        }
    }
    Ok(())
}

/// Steps that had the same key in both stores, and so the same inputs, and other outputs, or whose outputs in the first store were
/// changed since: the causes of a difference. In the order in which a build makes them.
pub fn steps(first: &Store, second: &Store) -> Result<Vec<Finding>> {
    /// Order of the kinds in a build; a kind that is not here comes last.
    const ORDER: [&str; 6] = ["unpack", "kernel", "compress", "root", "initrd", "boot"];
    let mut findings = Vec::new();
    for item in second.list()?.into_iter().filter(|item| item.kind == ItemKind::Step) {
        let path = second.root().join(&item.path).join("step.json");
        let record: StepRecord = serde_json::from_slice(&fs::read(&path)?)
            .with_context(|| format!("{} is damaged", path.display()))?;
        // A step with another key has other inputs: it follows from one that is told here.
        let Ok(old) = first.find_step(&record.key) else { continue };
        let finding = |file: &str, field: &str, first: String, second: String| Finding {
            step: record.key.kind.clone(),
            name: record.key.name.clone(),
            file: file.to_owned(),
            field: field.to_owned(),
            first,
            second,
        };
        if let Some(damage) = old.damage()? {
            findings.push(finding("", "its output in the store:", damage, "whole".to_owned()));
        }
        let outputs = &old.record().outputs;
        for name in outputs.keys().chain(record.outputs.keys().filter(|n| !outputs.contains_key(*n))) {
            let digest =
                |o: Option<&crate::store::Output>| o.map_or("(missing)".to_owned(), |o| o.sha256.to_string());
            let (a, b) = (digest(outputs.get(name)), digest(record.outputs.get(name)));
            if a != b {
                findings.push(finding(name, "sha256", a, b));
            }
        }
    }
    let rank = |f: &Finding| ORDER.iter().position(|kind| *kind == f.step).unwrap_or(ORDER.len());
    findings.sort_by(|a, b| (rank(a), &a.name, &a.file).cmp(&(rank(b), &b.name, &b.file)));
    Ok(findings)
}

/// Fields of files of the root that differ; the step is `root` for files of packages, else that which made the file.
pub fn files(first: &BTreeMap<String, FileInfo>, second: &BTreeMap<String, FileInfo>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for change in diff::file_changes(first, second) {
        let (step, name) = match change.from.strip_prefix("kiln:") {
            Some(step) => (step.to_owned(), String::new()),
            None => ("root".to_owned(), change.from.clone()),
        };
        let finding = |field: &str, a: &str, b: &str| Finding {
            step: step.clone(),
            name: name.clone(),
            file: change.path.clone(),
            field: field.to_owned(),
            first: a.to_owned(),
            second: b.to_owned(),
        };
        match change.change {
            diff::Change::Added => findings.push(finding("the file", "missing", "there")),
            diff::Change::Removed => findings.push(finding("the file", "there", "missing")),
            _ => findings.extend(change.fields.iter().map(|f| finding(&f.what, &f.old, &f.new))),
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::built::tests::sample;
    use crate::store::StepKey;

    fn store(text: &str) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        for (kind, name, text) in
            [("root", "server", text), ("unpack", "dash", text), ("unpack", "bash", "same")]
        {
            let key = StepKey::new(kind, name, 1).input("deb", "abc");
            store.step(&key, |_| {}, |s| Ok(fs::write(s.file("data"), text).map(|()| vec![])?)).unwrap();
        }
        let key = StepKey::new("boot", "server", 1).input("root", text);
        store.step(&key, |_| {}, |s| Ok(fs::write(s.file("data"), text).map(|()| vec![])?)).unwrap();
        (dir, store)
    }

    #[test]
    fn a_step_with_the_same_inputs_and_other_outputs_is_the_cause_and_what_follows_is_not() {
        let ((_a, first), (_b, second)) = (store("one"), store("two"));
        let found = steps(&first, &second).unwrap();
        let names: Vec<_> =
            found.iter().map(|f| (f.step.as_str(), f.name.as_str(), f.file.as_str())).collect();
        assert_eq!(names, [("unpack", "dash", "data"), ("root", "server", "data")]);
        assert_eq!(found[0].first, Digest::of(b"one").to_string());
        assert_eq!(steps(&first, &first).unwrap(), []);
    }

    #[test]
    fn an_output_that_was_changed_in_the_store_is_told() {
        let ((_a, first), (_b, second)) = (store("one"), store("one"));
        assert_eq!(steps(&first, &second).unwrap(), []);
        let path = first.step_path(&StepKey::new("root", "server", 1).input("deb", "abc")).join("data");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        fs::write(&path, "eno").unwrap();
        let found = steps(&first, &second).unwrap();
        assert_eq!(
            found[0].to_string(),
            "step root, server: its output in the store: data does not have its digest any more -> whole"
        );
    }

    #[test]
    fn files_name_package_or_step_and_the_field() {
        let (first, mut second) = (sample().files, sample().files);
        second.get_mut("/usr/bin/curl").unwrap().mode = "0755".to_owned();
        second.get_mut("/etc/passwd").unwrap().uid = 7;
        second.remove("/bin");
        let lines: Vec<String> = files(&first, &second).iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "step root, base-files, /bin: the file there -> missing",
                "step accounts, /etc/passwd: uid 0 -> 7",
                "step root, curl, /usr/bin/curl: mode 0644 -> 0755",
            ]
        );
        assert_eq!(files(&first, &first), []);
    }

    #[test]
    fn an_object_is_linked_into_the_other_store_and_one_that_is_not_there_is_left_out() {
        let ((_a, first), (_b, second)) = (store("one"), store("one"));
        let (digest, _) = first.put_object(b"deb").unwrap();
        link_object(&first, &second, digest, 3).unwrap();
        link_object(&first, &second, digest, 3).unwrap();
        assert_eq!(fs::read(second.object(digest, 3).unwrap()).unwrap(), b"deb");
        let absent = Digest::of(b"absent");
        link_object(&first, &second, absent, 6).unwrap();
        assert!(second.object(absent, 6).is_none());
    }

    #[test]
    fn a_verdict_of_two_different_builds_is_a_failed_test_that_names_the_place() {
        let project = crate::spec::Project::load(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let target = Target {
            profile: project.profile("server").unwrap(),
            arch: crate::arch::Arch::Amd64,
            out: Path::new("out"),
        };
        let (first, second) = (sample().files, {
            let mut files = sample().files;
            files.get_mut("/etc/hosts").unwrap().gid = 5;
            files
        });
        let digests = (Digest::of(b"a"), Digest::of(b"b"));
        let verdict =
            |same, findings| Verdict { same, first: digests.0, second: digests.1, threads: [2, 3], findings };
        let error = verdict(false, files(&first, &second)).into_result(&target).unwrap_err();
        let report = crate::error::report(&error);
        assert_eq!(report.kind.exit_code(), 7);
        assert!(report.chain[0].contains("step files, /etc/hosts: gid 0 -> 5"), "{}", report.chain[0]);
        let same = verdict(true, vec![]).into_result(&target).unwrap();
        let text = serde_json::to_string(&same).unwrap();
        assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), same);
    }
}
