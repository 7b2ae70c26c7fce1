//! Running the program under test, with nothing of this machine's settings.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// How a run ended and what it said.
#[derive(Debug)]
pub struct Run {
    /// The exit code; 128 and the signal's number if one ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(output: &Output) -> Self {
        let status = output.status;
        Run {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Both streams and the code, for messages of failed tests.
    pub fn text(&self) -> String {
        format!("code {}\n--- stdout\n{}--- stderr\n{}", self.code, self.stdout, self.stderr)
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.text());
        self
    }

    /// The run must have failed with `code`, printed no result, and said each of `words` on stderr.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{}", self.text());
        assert_eq!(self.stdout, "", "an error prints no result: {}", self.text());
        assert!(self.stderr.starts_with("error: ") || self.stderr.contains("\nerror: "), "{}", self.text());
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not said:\n{}", self.text());
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.text());
        self
    }

    /// As [`Run::fails`] for a verb that prints its findings before it fails.
    #[track_caller]
    pub fn fails_with_result(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{}", self.text());
        let said = format!("{}{}", self.stdout, self.stderr);
        for word in words {
            assert!(said.contains(word), "`{word}` is not said:\n{}", self.text());
        }
        self
    }

    /// Stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

/// The program under test.
pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_kiln"))
}

/// A host program, for what only the test may do: mount, unshare.
#[expect(
    clippy::disallowed_methods,
    reason = "tests start the program as a person would, not as kiln starts its tools"
)]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// A home, a store, an apt folder and room for a project, all empty. The network ends at this machine: what is not on
/// 127.0.0.1 is asked of a proxy that nobody runs.
#[derive(Debug)]
pub struct Env {
    dir: tempfile::TempDir,
}

impl Default for Env {
    fn default() -> Self {
        Self::new()
    }
}

impl Env {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("kiln-test-").tempdir().unwrap();
        for name in ["home", "apt", "project", "tmp"] {
            fs_err::create_dir(dir.path().join(name)).unwrap();
        }
        Env { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    pub fn project(&self) -> PathBuf {
        self.path("project")
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs_err::read_to_string(self.path(name)).unwrap()
    }

    /// Replaces text in a file, which must have it.
    #[track_caller]
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "{name} has no `{from}`");
        self.write(name, text.replacen(from, to, 1));
    }

    /// Mirrors that apt would use: base URLs of the archive `debian`, in order.
    pub fn mirrors(&self, bases: &[&str]) {
        let lines: String = bases.iter().map(|base| format!("deb {base} trixie main\n")).collect();
        self.write("apt/sources.list", lines);
    }

    pub fn command(&self) -> Command {
        let mut command = command(program());
        command
            .env_clear()
            .current_dir(self.project())
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("KILN_STORE", self.store())
            .env("KILN_APT_DIR", self.path("apt"))
            .env("HTTPS_PROXY", "http://127.0.0.1:9")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn kiln(&self, args: &[&str]) -> Run {
        Run::of(&self.command().args(args).output().unwrap())
    }

    /// Everything in the store and below `tmp` of it that is under way: there must be none after any run.
    pub fn leftovers(&self) -> Vec<String> {
        files_below(&self.store().join("tmp")).into_iter().filter(|path| !path.ends_with(".lock")).collect()
    }
}

/// All files below `dir`, relative, sorted; nothing if there is no such folder.
pub fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(folder) = todo.pop() {
        let Ok(entries) = fs_err::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                todo.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

/// Says that a test could not be done here, where people and CI logs see it.
///
/// Not by `eprintln!`: the test harness keeps what that prints of a test that passes to itself.
pub fn skipped(reason: &str) {
    use std::io::Write;
    std::io::stderr().write_all(format!("SKIPPED: {reason}\n").as_bytes()).unwrap();
}

/// Whether this process is root in the machine, which some faults can only be made by.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
