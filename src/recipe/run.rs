//! One build in one sandbox: its folders, its environment, its log, and how it came out.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;
use rustix::fs::{CWD, Gid, Uid, chownat};

use super::spec::{Limits, RecipeFile};
use crate::error::{Failure, Kind};
use crate::packages::Work;
use crate::sandbox::{self, BUILD, Bounds, Plan, Report, outside_id};
use crate::store::Staging;
use crate::ui::human_bytes;

/// Lines of a log that an error shows.
const LAST_LINES: usize = 20;
/// Longer ones are cut in errors and in progress.
const LINE: usize = 400;
/// A log longer than this is a build that has lost its way; a kernel's has 2 MB.
const LONGEST_LOG: u64 = 64 << 20;

/// The shell's word for a child that SIGXFSZ ended.
const TOO_LONG: i32 = 128 + libc::SIGXFSZ;

/// What may differ between two builds of the same thing, and must not show in the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Circumstances {
    /// Processors, and what KILN_JOBS says.
    pub(super) cores: usize,
    /// The program's umask.
    pub(super) umask: u32,
    /// Seconds that the machine seems to run longer than it does.
    pub(super) uptime: u64,
}

impl Circumstances {
    /// Those of an ordinary build.
    pub(super) fn usual(cores: usize) -> Self {
        Circumstances { cores, umask: 0o022, uptime: 0 }
    }

    /// As unlike `self` as can be.
    pub(super) fn other(self) -> Self {
        let cores = if self.cores == 1 { 2 } else { 1 };
        Circumstances { cores, umask: 0o077, uptime: 400 * 86_400 }
    }
}

/// A build that can be run.
pub(super) struct Job<'a> {
    /// For messages: `recipe hello`.
    pub(super) title: String,
    /// Name for what a failed build leaves.
    pub(super) name: &'a str,
    /// Of the failure, if its program fails.
    pub(super) kind: Kind,
    /// Root of the sandbox.
    pub(super) root: PathBuf,
    /// /inputs/recipe.
    pub(super) files: &'a BTreeMap<String, RecipeFile>,
    /// The other things in /inputs.
    pub(super) inputs: BTreeMap<String, PathBuf>,
    /// See [`Plan::covers`].
    pub(super) covers: BTreeMap<String, PathBuf>,
    /// Program and arguments.
    pub(super) command: Vec<String>,
    /// Environment besides kiln's own.
    pub(super) env: BTreeMap<String, String>,
    /// SOURCE_DATE_EPOCH.
    pub(super) epoch: i64,
    /// Whether it has the network.
    pub(super) network: bool,
    /// What it may use.
    pub(super) limits: &'a Limits,
}

/// The folder in which builds run, gone when dropped.
#[derive(Debug)]
pub(super) struct Site {
    staging: Staging,
}

impl Site {
    /// What the build left in /build/out.
    pub(super) fn out(&self) -> PathBuf {
        self.staging.file("build/out")
    }

    /// Leaves the log in the store as that of a failed build of `name`, and the folders too if asked. Gives hints that lead there.
    pub(super) fn keep(&self, work: &Work<'_>, name: &str, folders: bool) -> Result<Vec<String>> {
        let parts: &[&str] = if folders { &["log", "build", "tmp"] } else { &["log"] };
        let kept = work.store.keep_failed(name, &self.staging, parts)?;
        let mut hints = vec![format!("the whole log: {}", kept.join("log").display())];
        if folders {
            let enter = format!("enter it as the build saw it with `kiln recipe enter {name}`");
            hints.push(format!("its folder: {}; {enter}", kept.join("build").display()));
        }
        Ok(hints)
    }

    /// What it said.
    pub(super) fn log(&self) -> PathBuf {
        self.staging.file("log")
    }
}

impl Job<'_> {
    /// Runs it. `seen` gets each line of its log; `keep` says that a failed build's folders stay.
    ///
    /// # Errors
    /// The build failed: then its log stays in the store until it passes, and the failure shows its end. Or it could not be begun.
    pub(super) fn run(
        &self,
        work: &Work<'_>,
        how: Circumstances,
        keep: bool,
        seen: &dyn Fn(&str),
    ) -> Result<Site> {
        let site = Site { staging: work.store.staging()? };
        let plan = self.plan(&site.staging, how)?;
        let mut log = Log::create(&site.log(), &self.title, seen)?;
        let report = sandbox::run(&plan, site.staging.path(), &mut |bytes| log.take(bytes));
        let (last, too_long) = log.finish()?;
        let failure = match report {
            Ok(Report::Exit(0)) => return Ok(site),
            Ok(report) => self.failure(&report),
            Err(failure) if too_long => failure,
            Err(failure) => return Err(failure.into()),
        };
        let hints = site.keep(work, self.name, keep)?;
        let mut text = failure.to_string();
        let mut show = |title: &str, lines: &mut dyn Iterator<Item = &String>| {
            text.push_str(title);
            lines.for_each(|line| text.push_str(&format!("\n  | {line}")));
        };
        if let Some((number, lines)) = last.trouble {
            show(&format!("; line {number} of its log looks like the cause:"), &mut lines.iter());
        }
        if !last.lines.is_empty() {
            show("; the end of its log:", &mut last.lines.iter());
        }
        let mut shown = Failure::new(failure.kind, text);
        for hint in failure.hints().iter().chain(&hints) {
            shown = shown.hint(hint);
        }
        Err(shown.into())
    }

    fn failure(&self, report: &Report) -> Failure {
        let title = &self.title;
        match report {
            Report::Exit(TOO_LONG) => self.stopped("a program of it wrote a file longer than limits.file"),
            Report::Exit(code) => Failure::new(self.kind, format!("{title} failed with code {code}")),
            Report::Signal(libc::SIGXFSZ) => self.stopped("it wrote a file longer than limits.file"),
            Report::Signal(signal) => {
                Failure::new(self.kind, format!("{title} was killed by signal {signal}"))
            }
            Report::Bound(text) => self.stopped(text),
            Report::Full(text) => Failure::new(Kind::Store, format!("{title} was stopped: {text}"))
                .hint("free some space, or `kiln store gc`"),
            // sandbox::run makes an error of it.
            Report::Setup { what, error, .. } => Failure::new(Kind::Internal, format!("{what}: {error}")),
        }
    }

    fn stopped(&self, why: &str) -> Failure {
        Failure::new(Kind::Tool, format!("{} was stopped: {why}", self.title))
            .hint("if it needs so much, say so in [limits] of its recipe.toml")
    }

    /// Makes the folders and says what stands where.
    pub(super) fn plan(&self, staging: &Staging, how: Circumstances) -> Result<Plan> {
        for folder in ["build", "build/out", "tmp"] {
            make_folder(&staging.file(folder))?;
        }
        self.lay_inputs(staging)?;
        Ok(self.plan_with(staging, &staging.file("build"), &staging.file("tmp"), how))
    }

    /// Makes /inputs/recipe.
    pub(super) fn lay_inputs(&self, staging: &Staging) -> Result<()> {
        lay_files(self.files, &staging.file("recipe"))
    }

    /// The plan for folders that are there.
    pub(super) fn plan_with(&self, staging: &Staging, build: &Path, tmp: &Path, how: Circumstances) -> Plan {
        let mut inputs = self.inputs.clone();
        inputs.insert("recipe".to_owned(), staging.file("recipe"));
        let mut env = self.env.clone();
        for (name, value) in [
            ("PATH", "/usr/bin:/bin:/usr/sbin:/sbin".to_owned()),
            ("HOME", BUILD.to_owned()),
            ("USER", "build".to_owned()),
            ("LOGNAME", "build".to_owned()),
            ("SHELL", "/bin/sh".to_owned()),
            ("TMPDIR", "/tmp".to_owned()),
            ("LC_ALL", "C.UTF-8".to_owned()),
            ("TZ", "UTC".to_owned()),
            ("SOURCE_DATE_EPOCH", self.epoch.to_string()),
            ("KILN_JOBS", how.cores.to_string()),
            ("KILN_OUT", format!("{BUILD}/out")),
        ] {
            env.insert(name.to_owned(), value);
        }
        let limits = self.limits;
        Plan {
            root: self.root.clone(),
            build: build.to_owned(),
            tmp: tmp.to_owned(),
            inputs,
            covers: self.covers.clone(),
            command: self.command.clone(),
            env,
            network: self.network,
            terminal: false,
            cores: how.cores,
            umask: how.umask,
            uptime: how.uptime,
            bounds: Bounds {
                memory: limits.memory.bytes(),
                processes: limits.processes.into(),
                disk: limits.disk.bytes(),
                file: limits.file.bytes(),
                seconds: limits.time.duration().as_secs(),
            },
            report: staging.file("report"),
        }
    }
}

/// A folder for the sandbox's user.
fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir(path)?;
    let (user, group) = outside_id();
    chownat(CWD, path, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)), rustix::fs::AtFlags::empty())?;
    Ok(())
}

/// Writes the files of a recipe into the new folder `to`.
fn lay_files(files: &BTreeMap<String, RecipeFile>, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for (path, file) in files {
        let path = to.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, &file.bytes)?;
        let mode = if file.executable { 0o755 } else { 0o644 };
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    }
    Ok(())
}

/// Writes down what a build says, and keeps its end for errors.
struct Log<'a> {
    file: fs::File,
    title: &'a str,
    seen: &'a dyn Fn(&str),
    written: u64,
    line: Vec<u8>,
    count: usize,
    last: VecDeque<String>,
    trouble: Option<(usize, Vec<String>)>,
}

/// What an error shows of a log.
struct Excerpt {
    /// Its end.
    lines: VecDeque<String>,
    /// The first line that names an error, with its number and the two before it, if the end does not have it: make goes on with other
    /// things after a failure.
    trouble: Option<(usize, Vec<String>)>,
}

/// How compilers, linkers, git and make begin to tell of an error.
const TROUBLE: [&str; 4] = ["error:", "fatal:", "undefined reference", "*** ["];

impl<'a> Log<'a> {
    fn create(path: &Path, title: &'a str, seen: &'a dyn Fn(&str)) -> Result<Self> {
        let file = fs::File::create(path)?;
        let (line, last) = (Vec::new(), VecDeque::new());
        Ok(Log { file, title, seen, written: 0, line, count: 0, last, trouble: None })
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let full =
            |e: std::io::Error| Failure::new(Kind::Store, "a build's log cannot be written").because(e);
        self.file.write_all(bytes).map_err(full)?;
        self.written += bytes.len() as u64;
        if self.written > LONGEST_LOG {
            let text =
                format!("{} was stopped: its log has more than {}", self.title, human_bytes(LONGEST_LOG));
            return Err(Failure::new(Kind::Tool, text).hint("see what it repeats, or have it say less"));
        }
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                // What a line holds past that is in the file.
                _ if self.line.len() < LINE => self.line.push(*byte),
                _ => {}
            }
        }
        Ok(())
    }

    fn end_line(&mut self) {
        let text = plain(&self.line);
        self.line.clear();
        self.count += 1;
        if text.trim().is_empty() {
            return;
        }
        (self.seen)(&text);
        self.last.push_back(text);
        if self.trouble.is_none() && self.last.back().is_some_and(|l| TROUBLE.iter().any(|t| l.contains(t))) {
            let shown = self.last.iter().skip(self.last.len().saturating_sub(3)).cloned().collect();
            self.trouble = Some((self.count, shown));
        }
        if self.last.len() > LAST_LINES {
            self.last.pop_front();
        }
    }

    /// What to show, and whether it got too long.
    fn finish(mut self) -> Result<(Excerpt, bool)> {
        if !self.line.is_empty() {
            self.end_line();
        }
        self.file.flush()?;
        let trouble = self.trouble.filter(|(number, _)| self.count - number >= LAST_LINES);
        Ok((Excerpt { lines: self.last, trouble }, self.written > LONGEST_LOG))
    }
}

/// A line without what would play with a terminal: escape sequences of colours and all other control characters.
fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            // A control sequence ends with a letter (ECMA-48, 5.4).
            chars.by_ref().skip_while(|c| *c == '[').find(char::is_ascii_alphabetic);
        } else if c == '\t' {
            plain.push(' ');
        } else if !c.is_control() {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_log_is_kept_whole_and_its_end_is_shown_without_control_characters() {
        let dir = tempfile::tempdir().unwrap();
        let lines = RefCell::new(Vec::new());
        let seen = |line: &str| lines.borrow_mut().push(line.to_owned());
        let mut log = Log::create(&dir.path().join("log"), "recipe x", &seen).unwrap();
        let mut all = Vec::new();
        for number in 0..30 {
            all.extend(format!("line {number}\n\n").bytes());
        }
        all.extend(b"\x1b[1;31merror:\x1b[0m a\tb\xff\r\n");
        all.extend(vec![b'x'; 1000]);
        for chunk in all.chunks(7) {
            log.take(chunk).unwrap();
        }
        let (last, too_long) = log.finish().unwrap();
        assert!(!too_long);
        assert_eq!(fs::read(dir.path().join("log")).unwrap(), all);
        assert_eq!(last.lines.len(), LAST_LINES);
        assert_eq!(last.lines[LAST_LINES - 2], "error: a b\u{fffd}");
        assert_eq!(last.lines[LAST_LINES - 1], "x".repeat(LINE));
        assert_eq!(last.trouble, None, "the end shows it");
        assert_eq!(lines.borrow().len(), 32);
    }

    #[test]
    fn the_first_error_is_shown_when_the_end_of_a_log_is_about_other_things() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::create(&dir.path().join("log"), "recipe x", &|_| {}).unwrap();
        log.take(b"\n  CC a.o\n  GENKEY key\n/bin/sh: openssl: not found\nmake[3]: *** [Makefile:53: key] Error 127\n").unwrap();
        for number in 0..30 {
            log.take(format!("  CC {number}.o\n").as_bytes()).unwrap();
        }
        log.take(b"make: *** [Makefile:1: all] Error 2\n").unwrap();
        let (number, lines) = log.finish().unwrap().0.trouble.unwrap();
        assert_eq!(number, 5);
        assert_eq!(
            lines,
            ["  GENKEY key", "/bin/sh: openssl: not found", "make[3]: *** [Makefile:53: key] Error 127"]
        );
    }

    #[test]
    fn a_log_without_end_ends_the_build() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::create(&dir.path().join("log"), "recipe x", &|_| {}).unwrap();
        let chunk = vec![b'y'; 1 << 20];
        let end = (0..100).find_map(|_| log.take(&chunk).err()).unwrap();
        assert!(end.to_string().contains("recipe x was stopped: its log has more than"), "{end}");
    }

    #[test]
    fn other_circumstances_differ_in_everything() {
        for cores in [1, 2, 7] {
            let (usual, other) = (Circumstances::usual(cores), Circumstances::usual(cores).other());
            assert!(usual.cores != other.cores && usual.umask != other.umask && usual.uptime != other.uptime);
        }
    }
}
