//! `kiln doctor`: is this machine and this project fit for work? Each check says what it found and, if that is not well, the remedy.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::error::report;
use crate::fetch::{Fetcher, For, Mirror, Mirrors, Wanted};
use crate::lock::{Lock, Locked, SetId, SetKind};
use crate::qemu::accel::{self, Accel};
use crate::spec::Project;
use crate::store::Store;
use crate::ui::{Ui, human_bytes};
use crate::{sandbox, tools};

/// Room for packages, steps and images of both profiles with several states of the lock.
const ROOM: u64 = 5_000_000_000;
/// Less than this is not enough for one build.
const LEAST_ROOM: u64 = 1_000_000_000;
/// A lock older than this misses security updates.
const OLD_LOCK: i64 = 60 * 86_400;
/// Larger than any InRelease file by far.
const MAX_RELEASE: u64 = 16 << 20;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Well.
    Ok,
    /// Neither well nor ill: good to know.
    Note,
    /// Work goes on, with less comfort or speed.
    Warn,
    /// Work cannot go on.
    Fail,
}

impl State {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Note => "note",
            State::Warn => "warn",
            State::Fail => "fail",
        }
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at: `project`, `lock`, `store` …
    pub check: String,
    /// How it came out.
    pub state: State,
    /// What was found.
    pub text: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// Where to look.
#[derive(Debug)]
pub struct Patient<'a> {
    /// The folder of the project, or why there is none.
    pub project: Result<PathBuf>,
    /// The folder of the store, which need not be there yet.
    pub store: Result<PathBuf>,
    /// Whether mirrors are asked.
    pub online: bool,
    /// For progress.
    pub ui: &'a Ui,
}

struct Record(Vec<Finding>);

impl Record {
    fn add(&mut self, check: &str, state: State, text: impl Into<String>) {
        self.0.push(Finding { check: check.to_owned(), state, text: text.into(), remedy: None });
    }

    fn add_with(&mut self, check: &str, state: State, text: impl Into<String>, remedy: &str) {
        self.add(check, state, text);
        if let Some(last) = self.0.last_mut() {
            last.remedy = Some(remedy.to_owned());
        }
    }

    fn failed(&mut self, check: &str, error: &anyhow::Error) {
        let report = report(error);
        self.add(check, State::Fail, report.chain.join(": "));
        if let Some(last) = self.0.last_mut() {
            last.remedy = (!report.hints.is_empty()).then(|| report.hints.join("; "));
        }
    }
}

/// Runs every check.
pub fn examine(patient: &Patient<'_>) -> Vec<Finding> {
    let mut record = Record(Vec::new());
    let project = project(patient, &mut record);
    let locked = project.as_ref().and_then(|project| lock(project, &mut record));
    let store = store(patient, &mut record);
    host(locked.as_ref(), &mut record);
    mirrors(patient, project.as_ref(), locked.as_ref(), store.as_ref(), &mut record);
    kvm(locked.as_ref(), store.as_ref(), &mut record);
    clock(locked.as_ref().map(|l| l.lock().epoch()), crate::lock::time::now(), &mut record);
    terminal(&mut record);
    namespaces(Path::new("/proc/sys"), rustix::process::geteuid().is_root(), &mut record);
    record.0
}

fn project(patient: &Patient<'_>, record: &mut Record) -> Option<Project> {
    let dir = match &patient.project {
        Ok(dir) => dir,
        Err(error) => {
            record.failed("project", error);
            return None;
        }
    };
    match Project::load(dir) {
        Ok(project) => {
            let names = |of: Vec<&String>| of.into_iter().cloned().collect::<Vec<_>>().join(", ");
            let mut text =
                format!("{}: profiles {}", dir.display(), names(project.profiles.keys().collect()));
            if !project.machines.is_empty() {
                text.push_str(&format!("; machines {}", names(project.machines.keys().collect())));
            }
            record.add("project", State::Ok, text);
            Some(project)
        }
        Err(error) => {
            record.failed("project", &error);
            None
        }
    }
}

fn lock(project: &Project, record: &mut Record) -> Option<Locked> {
    match Lock::load(&project.dir).and_then(|lock| lock.check(project)) {
        Ok(locked) => {
            let lock = locked.lock();
            let text = format!(
                "images/kiln.lock fits the TOML files: {} packages of {}",
                lock.package.len(),
                crate::lock::time::iso(lock.epoch())
            );
            record.add("lock", State::Ok, text);
            Some(locked)
        }
        Err(error) => {
            record.failed("lock", &error);
            None
        }
    }
}

fn store(patient: &Patient<'_>, record: &mut Record) -> Option<Store> {
    let path = match &patient.store {
        Ok(path) => path,
        Err(error) => {
            record.failed("store", error);
            return None;
        }
    };
    let opened = if path.exists() {
        match Store::open(path) {
            Ok(store) => {
                record.add("store", State::Ok, path.display().to_string());
                Some(store)
            }
            Err(error) => {
                record.failed("store", &error);
                return None;
            }
        }
    } else {
        record.add(
            "store",
            State::Note,
            format!("{} is not there yet; the first build makes it", path.display()),
        );
        None
    };
    let Some(there) = path.ancestors().find(|p| p.is_dir()) else { return opened };
    if opened.is_none() && rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_err() {
        let text = format!("{} cannot be made: {} may not be written", path.display(), there.display());
        record.add_with("store", State::Fail, text, "set KILN_STORE to a folder that can be written");
    }
    match rustix::fs::statvfs(there) {
        Ok(stat) => space(stat.f_bavail.saturating_mul(stat.f_frsize), record),
        Err(error) => record.add("space", State::Warn, format!("cannot be told: {error}")),
    }
    match holes(there) {
        Ok((sparse, reflink)) => {
            let word = |yes| if yes { "yes" } else { "no" };
            let text = format!("sparse files: {}, shared blocks (reflink): {}", word(sparse), word(reflink));
            if sparse {
                record.add("file system", State::Ok, text);
            } else {
                record.add_with(
                    "file system",
                    State::Warn,
                    text,
                    "images take their full size; use ext4, xfs or btrfs",
                );
            }
        }
        Err(error) => record.add("file system", State::Warn, format!("cannot be told: {error}")),
    }
    opened
}

fn space(free: u64, record: &mut Record) {
    let text = format!("{} free where the store is", human_bytes(free));
    let remedy = "free some, run `kiln store gc`, or set KILN_STORE to a larger disk";
    match free {
        ROOM.. => record.add("space", State::Ok, text),
        LEAST_ROOM.. => record.add_with("space", State::Warn, format!("{text}; 5 GB are wise"), remedy),
        _ => record.add_with("space", State::Fail, format!("{text}; a build needs 1 GB"), remedy),
    }
}

/// Whether files in `folder` can have holes, and whether they can share blocks (FICLONE, ioctl_ficlone(2)).
fn holes(folder: &Path) -> std::io::Result<(bool, bool)> {
    const SIZE: u64 = 8 << 20;
    let (one, two) = (tempfile::tempfile_in(folder)?, tempfile::tempfile_in(folder)?);
    one.set_len(SIZE)?;
    let sparse = one.metadata()?.blocks() * 512 < SIZE / 2;
    Ok((sparse, rustix::fs::ioctl_ficlone(&two, &one).is_ok()))
}

fn host(locked: Option<&Locked>, record: &mut Record) {
    let Some(arch) = Arch::host() else {
        let text = format!("kiln has no tools for {} machines", std::env::consts::ARCH);
        record.add_with("machine", State::Warn, text, "`kiln build` works here, `kiln run` does not");
        return;
    };
    let id = SetId { kind: SetKind::Tool, name: "qemu".to_owned(), arch };
    let has = locked.is_none_or(|locked| locked.lock().set(&id).is_some());
    if has {
        record.add("machine", State::Ok, format!("{arch}, {} processors", crate::cli::threads(None)));
    } else {
        let text = format!("{arch}: the lock has no QEMU for this machine");
        let remedy =
            "add it to set.qemu.architectures in images/tools.toml and run `kiln update`; builds need none";
        record.add_with("machine", State::Warn, text, remedy);
    }
}

fn mirrors(
    patient: &Patient<'_>,
    project: Option<&Project>,
    locked: Option<&Locked>,
    store: Option<&Store>,
    record: &mut Record,
) {
    let mut mirrors = match Mirrors::of_machine() {
        Ok(mirrors) => mirrors,
        Err(error) => return record.failed("mirrors", &error),
    };
    // Looking makes no store: without one nobody is asked.
    let fetcher = store.and_then(|store| Fetcher::of_mirrors(store, patient.ui, &mirrors).ok());
    if let (true, Some(fetcher)) = (patient.online, &fetcher) {
        mirrors.read_lists(fetcher);
    }
    let Some(project) = project else { return left_out(mirrors.left_out(), record) };
    let archs: Vec<&str> = project.archive.architectures.iter().map(|arch| arch.debian()).collect();
    let mut others = Vec::new();
    let mut done = Vec::new();
    for suite in project.archive.suite.iter() {
        if done.contains(&&suite.archive) {
            continue;
        }
        done.push(&suite.archive);
        let snapshot = locked.and_then(|l| l.lock().suite(&suite.name)).map(|s| s.snapshot.as_str());
        let wanted = Wanted {
            archive: &suite.archive,
            snapshot,
            kind: For::Index,
            architectures: &archs,
            suite: &suite.name,
            component: "",
        };
        others.extend(mirrors.of_other_machines(&wanted));
        archive(patient, &wanted, &mirrors.of(&wanted), fetcher.as_ref(), record);
    }
    left_out(&[mirrors.left_out(), &others].concat(), record);
}

/// The mirrors of one archive, in the order in which they are asked.
fn archive(
    patient: &Patient<'_>,
    wanted: &Wanted<'_>,
    mirrors: &[Mirror],
    fetcher: Option<&Fetcher<'_>>,
    record: &mut Record,
) {
    let check = format!("mirrors of {}", wanted.archive);
    let remedy =
        "set KILN_DEBIAN_MIRROR, or `mirrors` in kiln's config.toml; packages in the store need none";
    let described = |number: usize, mirror: &Mirror| {
        let way = fetcher.map(|fetcher| fetcher.way(&mirror.url)).unwrap_or_default();
        let way: String = way.iter().map(|part| format!("; {part}")).collect();
        format!("{}. {} ({}){way}", number + 1, mirror.url, mirror.from)
    };
    let (true, Some(fetcher)) = (patient.online, fetcher) else {
        let why = if patient.online { "there is no store yet" } else { "--offline" };
        record.add(&check, State::Note, format!("{} known, not asked: {why}", mirrors.len()));
        for (number, mirror) in mirrors.iter().enumerate() {
            record.add(&check, State::Note, described(number, mirror));
        }
        return;
    };
    let spinner = patient.ui.spinner("Asking", check.clone());
    let folder = |mirror: &Mirror| mirror.url.below(&format!("dists/{}", wanted.suite));
    let ask = |mirror: &Mirror| match fetcher.find(&folder(mirror).below("InRelease"), MAX_RELEASE) {
        Ok(None) => fetcher.get(folder(mirror).below("Release"), MAX_RELEASE),
        Ok(Some(found)) => Ok(found),
        Err(error) => Err(error),
    };
    let answers: Vec<Result<Vec<u8>>> = mirrors.iter().map(ask).collect();
    drop(spinner);
    let count = answers.iter().filter(|answer| answer.is_ok()).count();
    if mirrors.is_empty() {
        record.add_with(&check, State::Fail, "none is known", remedy);
    } else if count == 0 {
        record.add_with(&check, State::Fail, "none answers", remedy);
    } else {
        record.add(&check, State::Ok, format!("{count} of {} answer", mirrors.len()));
    }
    for (number, (mirror, answer)) in mirrors.iter().zip(&answers).enumerate() {
        let text = described(number, mirror);
        match answer {
            Ok(_) => record.add(&check, State::Ok, text),
            Err(error) => {
                record.add(&check, State::Warn, format!("{text}: {}", report(error).chain.join(": ")));
            }
        }
    }
}

/// What of the machine's settings for apt is not used.
fn left_out(list: &[crate::fetch::LeftOut], record: &mut Record) {
    for left in list {
        let state = if left.mistake { State::Warn } else { State::Note };
        record.add("left out", state, left.to_string());
    }
}

fn kvm(locked: Option<&Locked>, store: Option<&Store>, record: &mut Record) {
    let Some(arch) = Arch::host() else { return };
    let root = locked.zip(store).and_then(|(locked, store)| tools::find(locked, store, "qemu"));
    let Some(root) = root else {
        record.add("KVM", State::Note, "not looked: run `kiln run` once, which brings QEMU");
        return;
    };
    match accel::prove(&root, arch) {
        Ok(choice) if choice.accel == Accel::Kvm => record.add("KVM", State::Ok, choice.reason),
        Ok(choice) => {
            let remedy = "guests run under TCG, ten to thirty times slower; load the kvm module, join the group kvm, \
                          or switch on nested virtualisation";
            record.add_with("KVM", State::Warn, choice.reason, remedy);
        }
        Err(error) => record.failed("KVM", &error.into()),
    }
}

fn clock(locked: Option<i64>, now: i64, record: &mut Record) {
    let text = crate::lock::time::iso(now);
    match locked {
        Some(locked) if now < locked => {
            let text = format!("{text} is before the lock, {}", crate::lock::time::iso(locked));
            record.add_with(
                "clock",
                State::Fail,
                text,
                "set the clock: signatures of the future are refused",
            );
        }
        Some(locked) if now - locked > OLD_LOCK => {
            let text = format!("{text}; the lock is {} days old", (now - locked) / 86_400);
            record.add_with("clock", State::Warn, text, "run `kiln outdated`, then `kiln update`");
        }
        _ => record.add("clock", State::Ok, text),
    }
}

fn terminal(record: &mut Record) {
    let word = |yes| if yes { "a terminal" } else { "no terminal" };
    let text = format!(
        "stdin is {}, stderr is {}",
        word(std::io::stdin().is_terminal()),
        word(std::io::stderr().is_terminal())
    );
    record.add("terminal", State::Note, text);
}

/// Recipes are built in user namespaces; images are not.
fn namespaces(sys: &Path, root: bool, record: &mut Record) {
    let remedies = sandbox::hints(sys, root);
    if remedies.is_empty() {
        return record.add("user namespaces", State::Ok, "allowed, as recipes need them");
    }
    let text = "forbidden here: recipes cannot be built; all else works";
    record.add_with("user namespaces", State::Warn, text, &remedies.join("; "));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::Verbosity;
    use fs_err as fs;

    fn record(run: impl FnOnce(&mut Record)) -> Finding {
        let mut record = Record(Vec::new());
        run(&mut record);
        record.0.pop().unwrap()
    }

    #[test]
    fn a_healthy_project_passes_and_one_that_is_none_fails_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let ui = Ui::new(Verbosity::Quiet, false);
        let project = Project::find(Path::new(env!("CARGO_MANIFEST_DIR")));
        let store = Ok(dir.path().join("store"));
        let findings = examine(&Patient { project, store, online: false, ui: &ui });
        assert!(findings.iter().all(|f| f.state != State::Fail), "{findings:?}");
        assert!(findings.iter().any(|f| f.check == "lock" && f.state == State::Ok), "{findings:?}");
        assert!(!dir.path().join("store").exists(), "looking makes nothing");

        let store = Ok(dir.path().join("store"));
        let findings =
            examine(&Patient { project: Project::find(dir.path()), store, online: false, ui: &ui });
        let failed = findings.iter().find(|f| f.state == State::Fail).unwrap();
        assert!(failed.remedy.as_ref().unwrap().contains("kiln init"), "{failed:?}");
        let text = serde_json::to_string(&findings).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Finding>>(&text).unwrap(), findings);
    }

    #[test]
    fn space_and_clock_are_judged_by_their_limits() {
        for (free, state) in [(6_000_000_000, State::Ok), (2_000_000_000, State::Warn), (9, State::Fail)] {
            assert_eq!(record(|r| space(free, r)).state, state);
        }
        for (locked, state) in [
            (Some(1000), State::Ok),
            (Some(1001), State::Fail),
            (Some(-6_000_000), State::Warn),
            (None, State::Ok),
        ] {
            assert_eq!(record(|r| clock(locked, 1000, r)).state, state, "{locked:?}");
        }
    }

    #[test]
    fn a_store_of_another_layout_and_one_that_cannot_be_made_fail() {
        let dir = tempfile::tempdir().unwrap();
        let ui = Ui::new(Verbosity::Quiet, false);
        fs::write(dir.path().join("version"), "99\n").unwrap();
        let look = |path: &Path| {
            let mut record = Record(Vec::new());
            let patient = Patient {
                project: Err(anyhow::anyhow!("x")),
                store: Ok(path.to_owned()),
                online: false,
                ui: &ui,
            };
            store(&patient, &mut record);
            record.0
        };
        let found = look(dir.path());
        assert!(found[0].state == State::Fail && found[0].text.contains("layout 99"), "{found:?}");
        let found = look(Path::new("/proc/self/store"));
        assert!(found.iter().any(|f| f.state == State::Fail || f.check == "file system"), "{found:?}");
    }

    #[test]
    fn user_namespaces_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let told = |root| record(|r| namespaces(dir.path(), root, r));
        assert!(told(true).remedy.unwrap().contains("CONFIG_USER_NS"));
        for folder in ["user", "kernel"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join("user/max_user_namespaces"), "1000\n").unwrap();
        assert_eq!(told(false).state, State::Ok);
        fs::write(dir.path().join("kernel/apparmor_restrict_unprivileged_userns"), "1\n").unwrap();
        assert_eq!((told(false).state, told(true).state), (State::Warn, State::Ok));
        assert!(told(false).remedy.unwrap().contains("sysctl -w"));
    }
}
