//! What went wrong, of which kind, and what to do about it.
//!
//! Inside kiln, errors are [`anyhow::Error`] chains. Where the kind matters to a caller or to the exit code, or where
//! there is a remedy to name, a [`Failure`] is put in the chain. [`report`] finds it again at the edge.

use std::fmt;
use std::io;
use std::path::Path;

/// The kind of a failure; fixes the exit code of the program (see [`Kind::exit_code`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file that a person wrote (TOML, a .deb, a key) says something impossible.
    Input,
    /// The lock is missing, stale or edited by hand.
    Lock,
    /// The network or a mirror did not deliver what the lock names.
    Fetch,
    /// A child process (QEMU, a judge) failed.
    Tool,
    /// The store or the output folder cannot be used: full, read-only, damaged beyond repair.
    Store,
    /// A check, a comparison or a boot that was asked for did not pass.
    Test,
    /// A broken promise inside kiln: a bug.
    Internal,
    /// Ctrl-C or SIGTERM.
    Interrupted,
}

impl Kind {
    /// The process exit code: 1 input, 3 lock, 4 fetch, 5 tool, 6 store or device, 7 test, 70 internal (sysexits
    /// EX_SOFTWARE), 130 interrupted (128 + SIGINT). 2 is clap's for wrong usage.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Input => 1,
            Kind::Lock => 3,
            Kind::Fetch => 4,
            Kind::Tool => 5,
            Kind::Store => 6,
            Kind::Test => 7,
            Kind::Internal => 70,
            Kind::Interrupted => 130,
        }
    }

    /// The word for this kind in `--json` output.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Input => "input",
            Kind::Lock => "lock",
            Kind::Fetch => "fetch",
            Kind::Tool => "tool",
            Kind::Store => "store",
            Kind::Test => "test",
            Kind::Internal => "internal",
            Kind::Interrupted => "interrupted",
        }
    }
}

/// An error with a kind and, mostly, a remedy. Build it with [`Failure::new`] and [`Failure::hint`].
#[derive(Debug)]
pub struct Failure {
    /// Fixes the exit code.
    pub kind: Kind,
    message: String,
    hints: Vec<String>,
    source: Option<anyhow::Error>,
    /// Whether it says what to do about a file system that takes nothing more.
    placed: bool,
}

impl Failure {
    /// A failure that says `message`: the thing and the reason, in one sentence without a full stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Failure { kind, message: message.into(), hints: Vec::new(), source: None, placed: false }
    }

    /// Adds what the person can do: a command, a flag, a file to look at.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Adds the error underneath, printed as `caused by`.
    #[must_use]
    pub fn because(mut self, source: impl Into<anyhow::Error>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Its remedies are also for a device or file system that takes nothing more: [`report`] adds no other one.
    #[must_use]
    pub fn placed(mut self) -> Self {
        self.placed = true;
        self
    }

    /// The remedies named so far.
    pub fn hints(&self) -> &[String] {
        &self.hints
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| &**e as &(dyn std::error::Error + 'static))
    }
}

/// An error chain made flat: what [`crate::ui`] prints and `--json` carries.
#[derive(Debug)]
pub struct Report {
    /// The kind found in the chain, [`Kind::Input`] if nobody named one.
    pub kind: Kind,
    /// Outermost message first.
    pub chain: Vec<String>,
    /// All remedies of the chain, outermost first, each once.
    pub hints: Vec<String>,
}

/// A place that kiln writes to, and so the remedies when it takes nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The store.
    Store,
    /// A folder that `--out` names.
    Out,
    /// The folder of `TMPDIR`.
    Temp,
    /// Any other.
    Other,
}

/// Why a file system takes nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// ENOSPC
    Full,
    /// EDQUOT
    Quota,
    /// EFBIG
    TooLarge,
    /// EROFS
    ReadOnly,
}

impl Refused {
    fn of(cause: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let kind = match (cause.downcast_ref::<io::Error>(), cause.downcast_ref::<rustix::io::Errno>()) {
            (Some(error), _) => error.kind(),
            (None, Some(errno)) => io::Error::from(*errno).kind(),
            (None, None) => return None,
        };
        Some(match kind {
            io::ErrorKind::StorageFull => Refused::Full,
            io::ErrorKind::QuotaExceeded => Refused::Quota,
            io::ErrorKind::FileTooLarge => Refused::TooLarge,
            io::ErrorKind::ReadOnlyFilesystem => Refused::ReadOnly,
            _ => return None,
        })
    }

    fn text(self, path: &Path) -> String {
        let path = path.display();
        match self {
            Refused::Full => format!("the file system of {path} is full"),
            Refused::Quota => format!("the disk quota for {path} is used up"),
            Refused::TooLarge => format!("the file system of {path} takes no file of this size"),
            Refused::ReadOnly => format!("the file system of {path} is read-only"),
        }
    }

    fn hint(self, place: Place) -> String {
        let elsewhere = match place {
            Place::Store => "set KILN_STORE to a folder on another file system",
            Place::Out => "name a folder on another file system with --out",
            Place::Temp => "set TMPDIR to a folder on another file system",
            Place::Other => "",
        };
        let here = match (self, place) {
            (Refused::Full, Place::Store) => "free some space there, run `kiln store gc`",
            (Refused::Quota, Place::Store) => "free some of the quota, run `kiln store gc`",
            (Refused::Full, _) => "free some space there",
            (Refused::Quota, _) => "free some of the quota",
            (Refused::TooLarge, Place::Other) => {
                "write to another file system (FAT takes 4 GiB at most), or raise `ulimit -f`"
            }
            (Refused::TooLarge, _) => "raise `ulimit -f` if that is the limit",
            (Refused::ReadOnly, Place::Other) => {
                "mount it writable, or write to a folder that can be written"
            }
            (Refused::ReadOnly, _) => "mount it writable",
        };
        if elsewhere.is_empty() { here.to_owned() } else { format!("{here}, or {elsewhere}") }
    }
}

/// Why the file system that `error` is about takes nothing more, unless somebody who knew it better has said so.
fn refused(error: &anyhow::Error) -> Option<Refused> {
    if error.chain().any(|cause| cause.downcast_ref::<Failure>().is_some_and(|failure| failure.placed)) {
        return None;
    }
    error.chain().find_map(Refused::of)
}

/// Results of work that writes below a path.
pub trait WritesTo<T> {
    /// Where the error is that a file system takes nothing more, says that it is the one of `path`, and what to do about it. All other
    /// errors stay as they are.
    ///
    /// # Errors
    /// That of the work.
    fn writes_to(self, place: Place, path: &Path) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WritesTo<T> for Result<T, E> {
    fn writes_to(self, place: Place, path: &Path) -> anyhow::Result<T> {
        self.map_err(|error| {
            let error = error.into();
            match refused(&error) {
                Some(why) => Failure::new(Kind::Store, why.text(path))
                    .hint(why.hint(place))
                    .placed()
                    .because(error)
                    .into(),
                None => error,
            }
        })
    }
}

/// Walks the chain of `error`. The innermost [`Failure`] fixes the kind, since it stood nearest to the cause; an
/// I/O error that says a file system is full or read-only is a [`Kind::Store`] failure wherever it came from.
pub fn report(error: &anyhow::Error) -> Report {
    let mut report = Report { kind: Kind::Input, chain: Vec::new(), hints: Vec::new() };
    for cause in error.chain() {
        // Errors of libraries and lines of people's files may hold URLs with passwords.
        let text = crate::url::scrub(&cause.to_string());
        if report.chain.last() != Some(&text) {
            report.chain.push(text);
        }
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            report.kind = failure.kind;
            for hint in failure.hints() {
                let hint = crate::url::scrub(hint);
                if !report.hints.contains(&hint) {
                    report.hints.push(hint);
                }
            }
        }
        if Refused::of(cause).is_some() {
            report.kind = Kind::Store;
        }
    }
    if let Some(why) = refused(error) {
        // Errors of files name their paths.
        let temp = std::env::temp_dir();
        let temp = temp.to_string_lossy();
        let of_temp = temp.len() > 1 && report.chain.iter().any(|text| text.contains(&*temp));
        report.hints.push(why.hint(if of_temp { Place::Temp } else { Place::Other }));
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn report_takes_the_kind_nearest_to_the_cause_and_every_hint_once() {
        let inner = Failure::new(Kind::Fetch, "mirror said 404").hint("kiln update debian");
        let outer: anyhow::Error =
            Failure::new(Kind::Lock, "package gone").hint("kiln update debian").because(inner).into();
        let report = report(&outer.context("building server"));
        assert_eq!(report.kind, Kind::Fetch);
        assert_eq!(report.chain, ["building server", "package gone", "mirror said 404"]);
        assert_eq!(report.hints, ["kiln update debian"]);
    }

    fn io(kind: io::ErrorKind) -> io::Error {
        kind.into()
    }

    #[test]
    fn a_full_disk_is_a_store_failure_wherever_it_happens_and_not_always_the_store_s() {
        let error = Err::<(), _>(io(io::ErrorKind::StorageFull)).context("writing /mnt/x/a").unwrap_err();
        let report = report(&error);
        assert_eq!(report.kind.exit_code(), 6);
        assert_eq!(report.hints, ["free some space there"]);
    }

    #[test]
    fn the_remedy_is_for_the_file_system_that_refused() {
        let path = Path::new("/mnt/x");
        for (kind, place, text, words) in [
            (io::ErrorKind::StorageFull, Place::Store, "is full", ["kiln store gc", "KILN_STORE"]),
            (io::ErrorKind::QuotaExceeded, Place::Store, "quota", ["kiln store gc", "KILN_STORE"]),
            (io::ErrorKind::StorageFull, Place::Out, "is full", ["free some space there", "--out"]),
            (io::ErrorKind::QuotaExceeded, Place::Out, "quota", ["free some of the quota", "--out"]),
            (io::ErrorKind::ReadOnlyFilesystem, Place::Out, "read-only", ["mount it writable", "--out"]),
            (io::ErrorKind::FileTooLarge, Place::Out, "this size", ["ulimit -f", "--out"]),
            (io::ErrorKind::StorageFull, Place::Temp, "is full", ["free some space there", "TMPDIR"]),
        ] {
            // Who is nearer to the cause knows better.
            let inner = Err::<(), _>(io(kind)).context("a step").writes_to(place, path);
            let error = inner.writes_to(Place::Store, Path::new("/store")).unwrap_err();
            let report = report(&error);
            assert_eq!(report.kind, Kind::Store);
            assert!(report.chain[0].contains("/mnt/x") && report.chain[0].contains(text), "{report:?}");
            assert_eq!(report.hints.len(), 1, "{report:?}");
            assert!(words.iter().all(|word| report.hints[0].contains(word)), "{report:?}");
            assert!(place == Place::Store || !report.hints[0].contains("store"), "{report:?}");
        }
    }

    #[test]
    fn other_errors_are_not_taken_for_a_full_file_system() {
        let error = Err::<(), _>(io(io::ErrorKind::NotFound)).writes_to(Place::Out, Path::new("/x"));
        let report = report(&error.unwrap_err());
        assert_eq!((report.kind, report.hints.len(), report.chain.len()), (Kind::Input, 0, 1));
        let errno = anyhow::Error::from(rustix::io::Errno::NOSPC).context("removing");
        assert_eq!(super::report(&errno).kind, Kind::Store);
    }

    #[test]
    fn an_error_of_a_temporary_file_names_the_variable() {
        let file = std::env::temp_dir().join("kiln-x");
        let error =
            Err::<(), _>(io(io::ErrorKind::StorageFull)).context(format!("writing {}", file.display()));
        assert!(report(&error.unwrap_err()).hints[0].contains("TMPDIR"));
    }
}
