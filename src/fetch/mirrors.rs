//! Where Debian's archives are: the machine's own apt sources, the snapshot archive, what the user sets.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;

/// The archive of all past states of Debian's archives (snapshot.debian.org).
pub const SNAPSHOT: &str = "https://snapshot.debian.org/archive";

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

/// Base URLs per archive (`debian`, `debian-security`), in the order in which they are asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirrors {
    apt: Vec<(String, String)>,
    extra: Vec<String>,
}

impl Mirrors {
    /// Reads the machine's apt sources (folder `KILN_APT_DIR`, else /etc/apt), then `KILN_DEBIAN_MIRROR` and the `mirrors` of
    /// kiln's own configuration. Sources that cannot be read are no error: a machine without apt has none.
    pub fn of_machine() -> Result<Self> {
        let apt = std::env::var_os("KILN_APT_DIR").map_or_else(|| PathBuf::from("/etc/apt"), PathBuf::from);
        let mut mirrors = Mirrors { apt: apt_sources(&apt), extra: Vec::new() };
        if let Ok(text) = std::env::var("KILN_DEBIAN_MIRROR") {
            mirrors.extra.extend(text.split_whitespace().map(str::to_owned));
        }
        mirrors.extra.extend(crate::config::Config::load()?.mirrors);
        Ok(mirrors)
    }

    /// Base URLs of `archive` without a trailing slash. `snapshot` is a time such as `20260912T135541Z`.
    pub fn bases(&self, archive: &str, snapshot: Option<&str>) -> Vec<String> {
        let apt = self.apt.iter().filter(|(a, _)| a == archive).map(|(_, url)| url.clone());
        let snapshot = snapshot.map(|time| format!("{SNAPSHOT}/{archive}/{time}"));
        let extra = self.extra.iter().map(|url| {
            let url = url.trim_end_matches('/');
            if url.contains("{archive}") {
                url.replace("{archive}", archive)
            } else {
                format!("{url}/{archive}")
            }
        });
        let mut bases: Vec<String> = Vec::new();
        for base in apt.chain(snapshot).chain(extra) {
            if !bases.contains(&base) {
                bases.push(base);
            }
        }
        bases
    }
}

fn apt_sources(dir: &Path) -> Vec<(String, String)> {
    let mut files = vec![dir.join("sources.list")];
    if let Ok(entries) = fs::read_dir(dir.join("sources.list.d")) {
        let mut more: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        more.sort();
        files.extend(more);
    }
    let mut found = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let sources = match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => deb822(&text),
            Some("list") => one_line(&text),
            _ => continue,
        };
        for source in sources {
            if !found.contains(&source) {
                found.push(source);
            }
        }
    }
    found
}

/// The archive that a suite of Debian itself belongs to; `None` for anybody else's.
fn archive_of(suite: &str) -> Option<&'static str> {
    // Before bullseye the security suite was spelled `buster/updates`.
    let (release, rest) = suite.split_once(['-', '/']).unwrap_or((suite, ""));
    if !RELEASES.contains(&release) {
        return None;
    }
    match rest.trim_end_matches('/') {
        "security" => Some("debian-security"),
        "" | "updates" | "proposed-updates" | "backports" | "backports-sloppy" => Some("debian"),
        _ => None,
    }
}

fn add(sources: &mut Vec<(String, String)>, uri: &str, suite: &str) {
    if let Some(archive) = archive_of(suite)
        && (uri.starts_with("http://") || uri.starts_with("https://"))
    {
        sources.push((archive.to_owned(), uri.trim_end_matches('/').to_owned()));
    }
}

/// The format of `*.sources`, sources.list(5).
fn deb822(text: &str) -> Vec<(String, String)> {
    let mut sources = Vec::new();
    for stanza in text.split("\n\n") {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in stanza.lines().filter(|l| !l.starts_with('#')) {
            match line.split_once(':') {
                Some((name, value)) if !line.starts_with([' ', '\t']) => {
                    fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
                }
                _ => {
                    if let Some(last) = fields.last_mut() {
                        last.1 = format!("{} {}", last.1, line.trim());
                    }
                }
            }
        }
        let field = |name: &str| fields.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str());
        if field("enabled").eq_ignore_ascii_case("no")
            || !field("types").split_whitespace().any(|t| t == "deb")
        {
            continue;
        }
        for uri in field("uris").split_whitespace() {
            for suite in field("suites").split_whitespace() {
                add(&mut sources, uri, suite);
            }
        }
    }
    sources
}

/// The one-line format of `*.list`, sources.list(5): `deb [options] uri suite components`.
fn one_line(text: &str) -> Vec<(String, String)> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb ").or_else(|| line.strip_prefix("deb\t")) else { continue };
        let rest = rest.trim_start();
        let rest =
            if rest.starts_with('[') { rest.split_once(']').map_or("", |(_, after)| after) } else { rest };
        let mut words = rest.split_whitespace();
        if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
            add(&mut sources, uri, suite);
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sources_of_debian_itself_are_mirrors_of_it() {
        let text = "Types: deb\nURIs: http://a.test/debian/ http://b.test/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n\
                    Types: deb\nURIs: http://a.test/debian-security\nSuites: bookworm-security\n\n\
                    Types: deb-src\nURIs: http://src.test/debian\nSuites: trixie\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://off.test/debian\nSuites: trixie\n\n\
                    Types: deb\nURIs: https://third.test/apt\nSuites: bookworm-pgdg\n";
        let found = deb822(text);
        let archives: Vec<_> = found.iter().map(|(a, u)| format!("{a} {u}")).collect();
        assert!(archives.contains(&"debian http://b.test/debian".to_owned()), "{archives:?}");
        assert!(archives.contains(&"debian-security http://a.test/debian-security".to_owned()));
        assert!(
            archives
                .iter()
                .all(|a| !a.contains("src.test") && !a.contains("off.test") && !a.contains("third.test"))
        );
    }

    #[test]
    fn one_line_sources_with_options_and_comments_are_read() {
        let text = "# deb http://no.test/debian trixie main\ndeb [arch=amd64 signed-by=/k] http://m.test/debian trixie main\n\
                    deb http://m.test/security trixie-security main\ndeb cdrom:[x]/ trixie main\ndeb https://x.test/cloud cloud-sdk-trixie main\n";
        assert_eq!(
            one_line(text),
            [
                ("debian".to_owned(), "http://m.test/debian".to_owned()),
                ("debian-security".to_owned(), "http://m.test/security".to_owned())
            ]
        );
    }

    #[test]
    fn the_machine_comes_first_then_the_snapshot_then_what_is_set() {
        let mirrors = Mirrors {
            apt: vec![("debian".into(), "http://m.test/debian".into())],
            extra: vec!["http://x.test/".into(), "http://y.test/{archive}/pool".into()],
        };
        assert_eq!(
            mirrors.bases("debian", Some("20260912T135541Z")),
            [
                "http://m.test/debian",
                "https://snapshot.debian.org/archive/debian/20260912T135541Z",
                "http://x.test/debian",
                "http://y.test/debian/pool"
            ]
        );
        assert_eq!(Mirrors::default().bases("debian", None), [""; 0]);
    }
}
