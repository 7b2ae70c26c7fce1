//! apt's settings of this machine: which archives it uses, how it reaches them, and who it is there.
//!
//! Read as apt reads them, or noted as [`LeftOut`] with the reason. apt itself need not be installed.

mod auth;
mod conf;
mod sources;

use std::fmt;
use std::path::{Path, PathBuf};

use fs_err as fs;

pub(super) use auth::{Answer, Auth};
pub(super) use conf::Conf;
pub(super) use sources::{Source, unusable};

use crate::url::Url;

/// Names that apt passes over without a word (`Dir::Ignore-Files-Silently`, apt.conf(5)): copies of editors and of dpkg.
const SILENT: [&str; 8] =
    ["~", ".disabled", ".bak", ".save", ".orig", ".distUpgrade", ".dpkg-dist", ".dpkg-old"];

/// A part of apt's settings that kiln does not use, and why. It holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// `file:line`, a file, or a variable.
    pub at: String,
    /// Why it is not used.
    pub why: String,
    /// A mistake of a person: apt refuses it too.
    pub mistake: bool,
}

impl LeftOut {
    pub(super) fn new(at: impl Into<String>, why: impl Into<String>) -> Self {
        LeftOut { at: at.into(), why: why.into(), mistake: false }
    }

    pub(super) fn malformed(at: impl Into<String>, why: impl Into<String>) -> Self {
        LeftOut { mistake: true, ..Self::new(at, why) }
    }

    pub(super) fn unreadable(file: &Path, error: &std::io::Error) -> Self {
        let why = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "it may not be read by this user".to_owned(),
            kind => format!("it cannot be read: {kind}"),
        };
        Self::new(file.display().to_string(), why)
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::ui::plain(&format!("{}: {}", self.at, self.why)))
    }
}

/// apt's settings.
#[derive(Debug, Clone, Default)]
pub(super) struct Apt {
    pub(super) conf: Conf,
    pub(super) auth: Auth,
    pub(super) sources: Vec<Source>,
    pub(super) left_out: Vec<LeftOut>,
}

impl Apt {
    /// Reads the folder `dir`, `/etc/apt` by default; a machine without apt has no settings.
    pub(super) fn of_machine(dir: &Path) -> Self {
        let mut left_out = Vec::new();
        let conf = Conf::of_machine(dir, &mut left_out);
        // `Dir::Etc::…` are relative to apt's folder, as apt has them by default.
        let place = |option: &str, usual: &str| {
            dir.join(conf.find(&format!("Dir::Etc::{option}")).map_or(usual, |value| value.text.as_str()))
        };
        let auth =
            Auth::read(&place("netrc", "auth.conf"), &place("netrcparts", "auth.conf.d"), &mut left_out);
        let arch = conf
            .find("APT::Architecture")
            .map(|value| value.text.clone())
            .or_else(|| Some(crate::arch::Arch::host()?.debian().to_owned()));
        let sources = sources::read(
            &place("sourcelist", "sources.list"),
            &place("sourceparts", "sources.list.d"),
            arch.as_deref().unwrap_or_default(),
            &mut left_out,
        );
        for name in ["Proxy-Auto-Detect", "ProxyAutoDetect"] {
            for scheme in ["http", "https"] {
                if let Some(value) = conf.find(&format!("Acquire::{scheme}::{name}")) {
                    let why = format!(
                        "Acquire::{scheme}::{name}: kiln does not run the program that finds a proxy; set Acquire::{scheme}::Proxy or {scheme}_proxy"
                    );
                    left_out.push(LeftOut::new(value.at.clone(), why));
                }
            }
        }
        Apt { conf, auth, sources, left_out }
    }
}

/// The files of a folder that apt reads: those that end in one of `extensions` ("" for none) and whose names have no odd characters
/// (`GetListOfFilesInDir` in apt-pkg/contrib/fileutl.cc), sorted.
fn parts(folder: &Path, extensions: &[&str], left_out: &mut Vec<LeftOut>) -> Vec<PathBuf> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            left_out.push(LeftOut::unreadable(folder, &error));
            return Vec::new();
        }
    };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || SILENT.iter().any(|end| name.ends_with(end)) || file.is_dir() {
            return false;
        }
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        let odd = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ':' | '.'));
        let why = if !file.is_file() {
            "it is not a regular file"
        } else if !extensions.contains(&extension) || (extension.is_empty() && name.ends_with('.')) {
            "apt does not read files with this ending"
        } else if name.contains(odd) {
            "apt does not read files whose names have other characters than letters, digits, `_`, `-`, `:` and `.`"
        } else {
            return true;
        };
        left_out.push(LeftOut::new(file.display().to_string(), why));
        false
    });
    files
}

/// Takes a word off the beginning of a text: `"` and `[]` keep blanks together, `%41` is decoded (`ParseQuoteWord` in
/// apt-pkg/contrib/strutl.cc). `None` at the end, and if a quote or a bracket is not closed.
fn quote_word(text: &mut &str) -> Option<String> {
    let rest = text.trim_start_matches(' ');
    let mut closing = None;
    let mut end = rest.len();
    for (at, c) in rest.char_indices() {
        match closing {
            Some(wanted) if c == wanted => closing = None,
            Some(_) => {}
            None if c == '"' => closing = Some('"'),
            None if c == '[' => closing = Some(']'),
            None if c.is_ascii_whitespace() => {
                end = at;
                break;
            }
            None => {}
        }
    }
    if rest.is_empty() || closing.is_some() {
        return None;
    }
    let (word, after) = rest.split_at(end);
    *text = after.trim_start();
    Some(crate::url::decode(&word.replace('"', "")))
}

/// apt's words for no: `StringToBool` in apt-pkg/contrib/strutl.cc.
pub(super) fn is_false(text: &str) -> bool {
    let number = text.strip_prefix(['+', '-']).unwrap_or(text);
    let number = number.strip_prefix("0x").or(number.strip_prefix("0X")).unwrap_or(number);
    (!number.is_empty() && number.bytes().all(|b| b == b'0'))
        || ["no", "false", "without", "off", "disable"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// A URL's host as apt compares it, and its port.
fn host_and_port(url: &Url) -> (String, Option<String>) {
    let site = url.site();
    let host = site.split_once("://").map_or(site.as_str(), |(_, host)| host);
    match host.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (host.trim_matches(['[', ']']).to_owned(), Some(port.to_owned()))
        }
        _ => (host.trim_matches(['[', ']']).to_owned(), None),
    }
}

/// The host that settings such as `Acquire::http::Proxy::HOST` name.
pub(super) fn host(url: &Url) -> String {
    host_and_port(url).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_no_and_yes_are_those_of_apt() {
        for no in ["no", "No", "FALSE", "without", "off", "disable", "0", "00", "0x0", "-0"] {
            assert!(is_false(no), "{no}");
        }
        for yes in ["yes", "", "1", "nope", "no no", "0x", "10", "disabled"] {
            assert!(!is_false(yes), "{yes}");
        }
    }

    #[test]
    fn only_the_files_that_apt_reads_are_read() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "b.list",
            "a.sources",
            "a:b.list",
            "a..list",
            "a b.list",
            "a+b.list",
            "é.list",
            "a.LIST",
            "a",
            ".a.list",
            "a.list~",
            "a.list.dpkg-old",
            "a.list.bak",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join("d.list")).unwrap();
        let mut left_out = Vec::new();
        let found = parts(dir.path(), &["list", "sources"], &mut left_out);
        let names: Vec<_> = found.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a..list", "a.sources", "a:b.list", "b.list"]);
        assert_eq!(left_out.len(), 5, "{left_out:?}");
        assert_eq!(parts(&dir.path().join("none"), &["list"], &mut left_out), [""; 0].map(PathBuf::from));
    }

    #[test]
    fn words_are_taken_with_their_quotes() {
        let mut text = "deb  \"a b\"c [x y]z %41%zz \"open";
        let mut words = Vec::new();
        while let Some(word) = quote_word(&mut text) {
            words.push(word);
        }
        assert_eq!((words.join("|").as_str(), text), ("deb|a bc|[x y]z|A%zz", "\"open"));
    }
}
