//! The only place where child processes are made.
//!
//! A [`Tool`] is a program, of the host ([`Tool::host`], for judges in tests) or out of a tree of unpacked packages
//! ([`Tool::from_tree`], for the product). A [`Command`] is one call of it and promises:
//!
//! - the environment is `LC_ALL=C.UTF-8`, `TZ=UTC`, a fixed `PATH` and what [`Command::env`] adds; stdin is empty or what
//!   [`Command::input`] gives; a program of the
//!   person who started kiln has that person's environment ([`Command::as_person`]);
//! - the child has its own process group, so Ctrl-C at the terminal reaches kiln alone, and the whole group is killed when kiln ends
//!   or the [`Child`] is dropped, even by SIGKILL (see [`crate::sys::die_with_parent`]);
//! - an error carries the command line, quoted for pasting into a shell, and the last [`STDERR_TAIL`] bytes of stderr.
//!
//! | call | stdout | ends |
//! |---|---|---|
//! | [`Command::run`] | dropped | waits for success |
//! | [`Command::read`] | returned | waits for success |
//! | [`Command::answer`] | returned | waits for any end |
//! | [`Command::spawn`] | dropped or to a file | [`Child`] kills on drop |
//! | [`Command::supervised`] | as said, stderr too | as `spawn`, and the child is asked to end first |
//!
//! [`replace`] makes no child but another program of this process: the last step into a sandbox.

mod child;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

pub use child::Child;

/// What [`Tool::kiln`] runs in tests.
static KILN: OnceLock<PathBuf> = OnceLock::new();

/// Tests of this library are programs of their own: they name the real kiln here, once, before they build recipes.
pub fn use_kiln(program: impl Into<PathBuf>) {
    // The first one stays; all tests of a run mean the same program.
    let _ = KILN.set(program.into());
}

/// The program `name` of the person who started kiln: the first of PATH that can be run. Folders of PATH that depend on the working folder
/// do not count.
pub fn on_path(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let runs = |path: &PathBuf| {
        fs_err::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(runs)
}

/// Becomes `program` in `folder`, with this environment and nothing else; stdin is empty unless it is to stay, stdout and stderr stay.
/// Returns only if that fails.
pub fn replace(
    program: &str,
    args: &[String],
    env: &std::collections::BTreeMap<String, String>,
    folder: &str,
    stdin: bool,
) -> std::io::Error {
    use std::os::unix::process::CommandExt;
    #[allow(clippy::disallowed_methods)] // this is the one door
    std::process::Command::new(program)
        .args(args)
        .env_clear()
        .envs(env)
        .current_dir(folder)
        .stdin(if stdin { std::process::Stdio::inherit() } else { std::process::Stdio::null() })
        .exec()
}

/// How much of a child's stderr is kept for errors: enough for a message, too little for a flood.
pub const STDERR_TAIL: usize = 4096;

/// Why a child did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such program.
    #[error("program {program} not found at {path}")]
    NotFound {
        /// The name of the tool.
        program: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The kernel refused to start it.
    #[error("cannot start {program}: {source}\n  command: {line}")]
    Start {
        /// The name of the tool.
        program: String,
        /// The command line, for pasting.
        line: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It ended with a code other than 0.
    #[error("{program} ended with code {code}{}\n  command: {line}", tail(stderr))]
    Exit {
        /// The name of the tool.
        program: String,
        /// Its exit code.
        code: i32,
        /// The end of its stderr.
        stderr: String,
        /// The command line, for pasting.
        line: String,
    },
    /// A signal ended it.
    #[error("{program} was killed by signal {signal}{}\n  command: {line}", tail(stderr))]
    Signal {
        /// The name of the tool.
        program: String,
        /// The number, signal(7).
        signal: i32,
        /// The end of its stderr.
        stderr: String,
        /// The command line, for pasting.
        line: String,
    },
    /// It did not end in time and was killed.
    #[error("{program} did not end within {limit:?} and was killed{}\n  command: {line}", tail(stderr))]
    Timeout {
        /// The name of the tool.
        program: String,
        /// The limit.
        limit: Duration,
        /// The end of its stderr.
        stderr: String,
        /// The command line, for pasting.
        line: String,
    },
    /// Ctrl-C came while waiting; the child was killed.
    #[error("{program} was stopped: interrupted")]
    Interrupted {
        /// The name of the tool.
        program: String,
    },
    /// Reading its output or waiting for it failed.
    #[error("talking to {program}: {source}")]
    Io {
        /// The name of the tool.
        program: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl From<Error> for crate::error::Failure {
    fn from(error: Error) -> Self {
        use crate::error::{Failure, Kind};
        let kind = if matches!(error, Error::Interrupted { .. }) { Kind::Interrupted } else { Kind::Tool };
        Failure::new(kind, error.to_string())
    }
}

/// The stderr part of a message: nothing when there is none.
fn tail(stderr: &str) -> String {
    let stderr = stderr.trim_end();
    if stderr.is_empty() { String::new() } else { format!(":\n{stderr}") }
}

/// A program and what must stand before its name to start it.
#[derive(Debug, Clone)]
pub struct Tool {
    name: String,
    program: PathBuf,
    /// Dynamic loader and its arguments, ending before the program.
    loader: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl Tool {
    /// A program of the host, by absolute path: judges of the tests, and kiln itself in the benchmark.
    pub fn host(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        let name = name_of(&program);
        Tool { name, program, loader: Vec::new(), env: Vec::new() }
    }

    /// `program` (such as `usr/bin/qemu-img`) out of `root`, a folder in which Debian packages for this host's
    /// architecture are unpacked. It is started through the tree's own dynamic loader with the tree's libraries only
    /// (ld.so(8): `--inhibit-cache --library-path`), so it runs alike on any distribution.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the program or the loader is not in the tree.
    pub fn from_tree(root: &Path, program: &str) -> Result<Self, Error> {
        let (triple, loader) = match std::env::consts::ARCH {
            "aarch64" => ("aarch64-linux-gnu", "usr/lib/ld-linux-aarch64.so.1"),
            _ => ("x86_64-linux-gnu", "usr/lib64/ld-linux-x86-64.so.2"),
        };
        let root =
            std::path::absolute(root).map_err(|source| Error::Io { program: program.to_owned(), source })?;
        let (path, loader) = (root.join(program), root.join(loader));
        let name = name_of(&path);
        for wanted in [&path, &loader] {
            if !wanted.exists() {
                return Err(Error::NotFound { program: name, path: wanted.clone() });
            }
        }
        let mut libraries = OsString::new();
        for folder in ["usr/lib/{triple}", "usr/lib", "usr/lib/{triple}/systemd", "usr/lib/{triple}/swtpm"] {
            if !libraries.is_empty() {
                libraries.push(":");
            }
            libraries.push(root.join(folder.replace("{triple}", triple)));
        }
        let loader = vec![
            loader.into(),
            "--inhibit-cache".into(),
            "--library-path".into(),
            libraries,
            "--argv0".into(),
            name.clone().into(),
        ];
        // QEMU loads modules by an absolute path of its build; the host's own would be of another version.
        let modules = root.join("usr/lib").join(triple).join("qemu");
        Ok(Tool { name, program: path, loader, env: vec![("QEMU_MODULE_DIR".into(), modules.into())] })
    }

    /// This very program: the link leads to it even if its file was replaced since.
    pub fn kiln() -> Self {
        let program = KILN.get().cloned().unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
        Tool { name: "kiln".to_owned(), ..Tool::host(program) }
    }

    /// The last part of the program's path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A call of it without arguments.
    pub fn command(&self) -> Command {
        Command {
            tool: self.clone(),
            args: Vec::new(),
            env: self.env.clone(),
            folder: None,
            limit: None,
            stdout: None,
            input: None,
            as_person: false,
        }
    }
}

fn name_of(program: &Path) -> String {
    program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()
}

/// One call of a [`Tool`].
#[derive(Debug, Clone)]
pub struct Command {
    tool: Tool,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    folder: Option<PathBuf>,
    limit: Option<Duration>,
    stdout: Option<PathBuf>,
    input: Option<Vec<u8>>,
    as_person: bool,
}

impl Command {
    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments in order.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the otherwise clean environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Gives it kiln's own environment, as the person who started kiln has it: for programs of that person, such as one that knows a
    /// secret by an agent's socket. None of it is shown in a command line.
    #[must_use]
    pub fn as_person(mut self) -> Self {
        self.as_person = true;
        self
    }

    /// Runs it in `folder` instead of kiln's own.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Kills it after `limit`; counts for [`Command::run`] and [`Command::read`].
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Writes its stdout to a new file; counts for [`Command::spawn`].
    #[must_use]
    pub fn stdout_to(mut self, path: impl Into<PathBuf>) -> Self {
        self.stdout = Some(path.into());
        self
    }

    /// Gives it these bytes on stdin, and then the end of the file; not for secrets, and not for [`Command::supervised`].
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// The whole command line, quoted for a POSIX shell, with its folder and the variables that are its own.
    pub fn line(&self) -> String {
        let mut line = String::new();
        if let Some(folder) = &self.folder {
            let _ = write!(line, "cd {} && ", quote(folder.as_os_str()));
        }
        for (name, value) in &self.env {
            let _ = write!(line, "{}={} ", name.to_string_lossy(), quote(value));
        }
        let program = self.tool.program.as_os_str();
        let words = self.tool.loader.iter().map(OsString::as_os_str).chain([program]);
        for word in words.chain(self.args.iter().map(OsString::as_os_str)) {
            line.push_str(&quote(word));
            line.push(' ');
        }
        line.truncate(line.trim_end().len());
        line
    }

    /// Runs it to its end; success is code 0.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(&self) -> Result<(), Error> {
        self.spawn()?.finish(self.limit)
    }

    /// Runs it to its end and returns its stdout.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn read(&self) -> Result<Vec<u8>, Error> {
        let (bytes, ended) = self.answer()?;
        ended.map(|()| bytes)
    }

    /// Runs it to its end and returns its stdout and how it ended: for programs that say on stdout why they fail.
    ///
    /// # Errors
    /// It could not be started, or its output could not be read.
    pub fn answer(&self) -> Result<(Vec<u8>, Result<(), Error>), Error> {
        let (mut child, stdout) = Child::start(self, true)?;
        let reader = std::thread::spawn(move || {
            use std::io::Read as _;
            let mut bytes = Vec::new();
            match stdout {
                Some(mut pipe) => pipe.read_to_end(&mut bytes).map(|_| bytes),
                None => Ok(bytes),
            }
        });
        let ended = child.finish(self.limit);
        let bytes = reader.join().unwrap_or_else(|_| Err(std::io::Error::other("reader thread panicked")));
        match bytes {
            Ok(bytes) => Ok((bytes, ended)),
            Err(source) => {
                ended?;
                Err(Error::Io { program: self.tool.name.clone(), source })
            }
        }
    }

    /// Starts it and returns at once.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::Start`].
    pub fn spawn(&self) -> Result<Child, Error> {
        Ok(Child::start(self, false)?.0)
    }

    /// Starts it with stdout and stderr both leading to `out`. Its stdin is a pipe, closed when the [`Child`] is killed or dropped: a
    /// program that ends by itself then, having put things in order, gets the time for it.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::Start`].
    pub fn supervised(&self, out: std::os::fd::OwnedFd) -> Result<Child, Error> {
        Child::supervised(self, out)
    }
}

/// One word for a POSIX shell: as it is when nothing in it is special, else in single quotes.
fn quote(word: &OsStr) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&b);
    if !word.is_empty() && word.as_bytes().iter().copied().all(plain) {
        return word.to_string_lossy().into_owned();
    }
    format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests;
