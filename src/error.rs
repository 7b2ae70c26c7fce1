//! What went wrong, of which kind, and what to do about it.
//!
//! Inside kiln, errors are [`anyhow::Error`] chains. Where the kind matters to a caller or to the exit code, or where
//! there is a remedy to name, a [`Failure`] is put in the chain. [`report`] finds it again at the edge.

use std::fmt;

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
}

impl Failure {
    /// A failure that says `message`: the thing and the reason, in one sentence without a full stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Failure { kind, message: message.into(), hints: Vec::new(), source: None }
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

/// Walks the chain of `error`. The innermost [`Failure`] fixes the kind, since it stood nearest to the cause; an
/// I/O error that says the disk is full or read-only is a [`Kind::Store`] failure wherever it came from.
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
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            let hint = match io.kind() {
                std::io::ErrorKind::StorageFull => "free some space, or `kiln store gc`",
                std::io::ErrorKind::ReadOnlyFilesystem => {
                    "set KILN_STORE or --out to a folder that can be written"
                }
                std::io::ErrorKind::QuotaExceeded => "free some of the disk quota, or `kiln store gc`",
                _ => continue,
            };
            report.kind = Kind::Store;
            if !report.hints.iter().any(|h| h == hint) {
                report.hints.push(hint.to_owned());
            }
        }
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

    #[test]
    fn a_full_disk_is_a_store_failure_wherever_it_happens() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let report = report(&Err::<(), _>(full).context("writing out/server.raw").unwrap_err());
        assert_eq!(report.kind.exit_code(), 6);
        assert!(report.hints[0].contains("kiln store gc"));
    }
}
