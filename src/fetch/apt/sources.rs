//! Where apt gets packages: sources.list(5), in both of its formats.
//!
//! The rules are those of apt-pkg/sourcelist.cc and apt-pkg/tagfile.cc. apt reads nothing at all when one entry is malformed; here that entry
//! alone is left out.

use std::path::Path;

use fs_err as fs;

use super::{LeftOut, is_false, parts, quote_word};
use crate::url::Url;

/// Code names and suite names that tell an apt source of Debian itself from one of somebody else: a third party's
/// repository has other names, or the same with a suffix of its own.
const RELEASES: [&str; 12] = [
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// The architectures that apt asks a source for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::fetch) struct Architectures {
    /// None: all that the machine has.
    only: Option<Vec<String>>,
    without: Vec<String>,
}

impl Architectures {
    /// Whether the source is asked for packages of `arch`; those for `all` machines come with any.
    pub(in crate::fetch) fn has(&self, arch: &str) -> bool {
        let named = self.only.as_ref().is_none_or(|only| only.iter().any(|a| a == arch));
        arch == "all" || (named && !self.without.iter().any(|a| a == arch))
    }
}

/// A place that apt gets packages of Debian itself from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::fetch) struct Source {
    /// `debian` or `debian-security`.
    pub(in crate::fetch) archive: &'static str,
    /// As apt has it: `http:`, `file:`, `mirror+file:` …
    pub(in crate::fetch) url: Url,
    pub(in crate::fetch) architectures: Architectures,
    /// `file:line`.
    pub(in crate::fetch) at: String,
}

/// What is found in files, and what is left out of them.
struct Found<'a> {
    arch: &'a str,
    sources: Vec<Source>,
    left_out: &'a mut Vec<LeftOut>,
}

/// Reads `sources.list` and the files of `sources.list.d`. `arch` is what `$(ARCH)` stands for.
pub(super) fn read(file: &Path, folder: &Path, arch: &str, left_out: &mut Vec<LeftOut>) -> Vec<Source> {
    let first = file.is_file().then(|| file.to_owned());
    let files: Vec<_> = first.into_iter().chain(parts(folder, &["list", "sources"], left_out)).collect();
    let mut found = Found { arch, sources: Vec::new(), left_out };
    for file in files {
        match fs::read(&file) {
            Ok(bytes) => {
                let (text, name) = (String::from_utf8_lossy(&bytes), file.display().to_string());
                if file.extension().is_some_and(|e| e == "sources") {
                    found.deb822(&text, &name);
                } else {
                    found.one_line(&text, &name);
                }
            }
            Err(error) => found.left_out.push(LeftOut::unreadable(&file, &error)),
        }
    }
    found.sources
}

/// The archive that a suite of Debian itself belongs to; `None` for anybody else's.
fn archive_of(suite: &str) -> Option<&'static str> {
    // Before bullseye the security suite was spelled `buster/updates`.
    let (release, rest) = suite.split_once(['-', '/']).unwrap_or((suite, ""));
    if !RELEASES.contains(&release) {
        return None;
    }
    match rest {
        "updates" if suite.contains('/') => Some("debian-security"),
        "security" => Some("debian-security"),
        "" | "updates" | "proposed-updates" | "backports" | "backports-sloppy" => Some("debian"),
        _ => None,
    }
}

/// Why kiln asks nobody by this scheme; `None` if it does.
pub(in crate::fetch) fn unusable(url: &Url) -> Option<String> {
    let scheme = url.scheme();
    let after = url.exposed().get(scheme.len() + 1..).unwrap_or_default();
    let list = if scheme == "mirror" { Some("http") } else { scheme.strip_prefix("mirror+") };
    match list.unwrap_or(scheme) {
        "" => Some("it is no URL".to_owned()),
        "http" | "https" => match after.strip_prefix("//").map(|rest| rest.split(['/', '?', '#']).next()) {
            Some(Some(host)) if !host.is_empty() => None,
            _ => Some("its URL names no host".to_owned()),
        },
        "file" | "copy" => {
            let path = Url::new(format!("file:{after}")).file();
            path.is_none().then(|| "its URL names no file of this machine".to_owned())
        }
        other => Some(format!("kiln does not fetch by `{}`", crate::ui::plain(other))),
    }
}

impl Found<'_> {
    fn leave(&mut self, at: &str, why: impl Into<String>) {
        self.left_out.push(LeftOut::new(at, why));
    }

    fn malformed(&mut self, at: &str, why: impl Into<String>) {
        self.left_out.push(LeftOut::malformed(at, why));
    }

    /// One URL and one suite.
    fn add(&mut self, at: &str, uri: &str, suite: &str, architectures: &Architectures) {
        let suite = suite.replace("$(ARCH)", self.arch);
        let url = Url::new(uri.replace("$(ARCH)", self.arch).trim_end_matches('/'));
        let shown = crate::ui::plain(&suite);
        if !url.exposed().contains(':') {
            return self.malformed(at, format!("`{url}` is no URL"));
        }
        if suite.ends_with('/') {
            return self
                .leave(at, format!("{url} {shown}: an exact path is not a Debian archive with suites"));
        }
        let Some(archive) = archive_of(&suite) else {
            return self.leave(at, format!("{url} {shown}: not a suite of Debian itself"));
        };
        if let Some(why) = unusable(&url) {
            return self.leave(at, format!("{url} {shown}: {why}"));
        }
        let source = Source { archive, url, architectures: architectures.clone(), at: at.to_owned() };
        let same = |other: &Source| {
            other.archive == source.archive
                && other.url == source.url
                && other.architectures == source.architectures
        };
        if !self.sources.iter().any(same) {
            self.sources.push(source);
        }
    }

    /// The format of `*.sources`. Stanzas end at empty lines; a line of blanks continues the field before it, and of a field that stands
    /// there twice the last counts.
    fn deb822(&mut self, text: &str, file: &str) {
        let mut fields: Vec<(String, String)> = Vec::new();
        let mut first = 0;
        for (number, line) in text.split('\n').enumerate().map(|(n, line)| (n + 1, line)) {
            let line = line.strip_suffix('\r').unwrap_or(line);
            if line.starts_with('#') {
                continue;
            }
            if line.is_empty() {
                self.stanza(&std::mem::take(&mut fields), &format!("{file}:{first}"));
                continue;
            }
            if fields.is_empty() {
                first = number;
            }
            let at = format!("{file}:{number}");
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = fields.last_mut() {
                    *value = format!("{value} {}", line.trim());
                } else if !line.trim().is_empty() {
                    self.malformed(&at, "a continued line without a field before it");
                }
                continue;
            }
            let Some((name, value)) = line.split_once(':') else {
                self.malformed(&at, "a line must be `Field: value`");
                // As with apt, whatever else the stanza says does not count.
                fields.push((String::new(), String::new()));
                continue;
            };
            let name = name.trim().to_ascii_lowercase();
            if let Some(before) = fields.iter().position(|(other, _)| *other == name) {
                let why = format!(
                    "`{}` stands there twice, and the last counts; only an empty line ends an entry",
                    crate::ui::plain(&name)
                );
                self.leave(&at, why);
                fields.remove(before);
            }
            fields.push((name, value.trim().to_owned()));
        }
        self.stanza(&fields, &format!("{file}:{first}"));
    }

    fn stanza(&mut self, fields: &[(String, String)], at: &str) {
        let field = |name: &str| fields.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value.trim());
        let words = |name: &str| field(name).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        // The empty name is that of a line that could not be read.
        if fields.is_empty() || fields.iter().any(|(name, _)| name.is_empty()) {
            return;
        }
        let types = words("types");
        if types.is_empty() {
            return self.malformed(at, "the entry has no `Types`");
        }
        if is_false(field("enabled")) {
            return self.leave(at, format!("`Enabled: {}`", crate::ui::plain(field("enabled"))));
        }
        if let Some(unknown) = types.iter().find(|t| !matches!(t.as_str(), "deb" | "deb-src")) {
            return self.malformed(at, format!("`{}` is not a source type", crate::ui::plain(unknown)));
        }
        if !types.iter().any(|t| t == "deb") {
            return self.leave(at, "it is for source packages only");
        }
        let (uris, suites, components) = (words("uris"), words("suites"), words("components"));
        if uris.is_empty() || suites.is_empty() {
            return self.malformed(at, "the entry has no `URIs` or no `Suites`");
        }
        if let Some(suite) = suites.iter().find(|suite| suite.ends_with('/') != components.is_empty()) {
            return self.malformed(at, components_wrong(suite));
        }
        // `FindMultiValue` takes commas as parts of words.
        let architectures = Architectures {
            only: Some(words("architectures"))
                .filter(|list| !list.is_empty())
                .map(|list| [list, words("architectures-add")].concat()),
            without: words("architectures-remove"),
        };
        for uri in &uris {
            for suite in &suites {
                self.add(at, uri, suite, &architectures);
            }
        }
    }

    /// The one-line format of `*.list`: `deb [options] uri suite components`.
    fn one_line(&mut self, text: &str, file: &str) {
        for (number, line) in text.lines().enumerate().map(|(n, line)| (n + 1, line)) {
            let at = format!("{file}:{number}");
            let line = without_comment(line).trim();
            if line.is_empty() {
                continue;
            }
            match line.split_once([' ', '\t', '\u{b}']) {
                Some(("deb", rest)) => {
                    if let Err(why) = self.entry(&at, rest) {
                        self.malformed(&at, why);
                    }
                }
                Some(("deb-src", _)) => self.leave(&at, "it is for source packages only"),
                Some((other, _)) => {
                    self.malformed(&at, format!("`{}` is not a source type", crate::ui::plain(other)));
                }
                None => self.malformed(&at, "a line must be `deb URI suite component`"),
            }
        }
    }

    fn entry(&mut self, at: &str, rest: &str) -> Result<(), String> {
        let mut rest = rest.trim();
        let mut architectures = Architectures::default();
        if let Some(after) = rest.strip_prefix('[') {
            rest = after.trim_start();
            loop {
                if let Some(after) = rest.strip_prefix(']') {
                    rest = after.trim_start();
                    break;
                }
                let before = rest;
                let mut option = quote_word(&mut rest).ok_or("its options do not end with `]`")?;
                // The last option may have the bracket at its end.
                if let Some(bare) = option.strip_suffix(']') {
                    option = bare.to_owned();
                    let at = before.len() - rest.len();
                    let bracket = before[..at].rfind(']').ok_or("its options cannot be read")?;
                    rest = &before[bracket..];
                }
                let (name, value) = option.split_once('=').ok_or("an option is not `name=value`")?;
                if name.is_empty() || value.is_empty() {
                    return Err("an option is not `name=value`".to_owned());
                }
                let list = value.split(',').map(str::to_owned).collect();
                match name {
                    "arch" => architectures.only = Some(list),
                    "arch+" => {
                        architectures.only = architectures.only.take().map(|only| [only, list].concat());
                    }
                    "arch-" => architectures.without = list,
                    _ => {}
                }
            }
        }
        let uri = quote_word(&mut rest).ok_or("it names no URI")?;
        let suite = quote_word(&mut rest).ok_or("it names no suite")?;
        let component = quote_word(&mut rest);
        if suite.ends_with('/') != component.is_none() {
            return Err(components_wrong(&suite));
        }
        self.add(at, &uri, &suite, &architectures);
        Ok(())
    }
}

fn components_wrong(suite: &str) -> String {
    let shown = crate::ui::plain(suite);
    if suite.ends_with('/') {
        format!("the exact path `{shown}` has no components")
    } else {
        format!("it names no component of `{shown}`")
    }
}

/// What stands before the comment of a line; `#` inside of `[…]` is none.
fn without_comment(line: &str) -> &str {
    let mut open = 0_i32;
    for (at, c) in line.char_indices() {
        match c {
            '[' => open += 1,
            ']' => open -= 1,
            '#' if open <= 0 => return &line[..at],
            _ => {}
        }
    }
    line
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
