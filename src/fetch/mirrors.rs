//! Where Debian's archives are: the machine's own apt sources, the snapshot archive, what the user sets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use super::apt::{Apt, LeftOut, unusable};
use super::{Fetcher, list};
use crate::ui::Ui;
use crate::url::Url;

/// The archive of all past states of Debian's archives (snapshot.debian.org).
pub const SNAPSHOT: &str = "https://snapshot.debian.org/archive";

/// Variable with further mirrors.
const VARIABLE: &str = "KILN_DEBIAN_MIRROR";

/// What a mirror is asked for; the words of lists of mirrors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum For {
    /// Release files and indexes.
    #[default]
    Index,
    /// Packages.
    Package,
}

impl For {
    pub(super) fn word(self) -> &'static str {
        match self {
            For::Index => "index",
            For::Package => "deb",
        }
    }
}

/// What is wanted of a mirror. An empty text means any.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// `debian`, `debian-security`.
    pub archive: &'a str,
    /// A time of the snapshot archive, such as `20260912T135541Z`; without it that archive is not asked.
    pub snapshot: Option<&'a str>,
    /// Metadata or packages.
    pub kind: For,
    /// Any of these architectures, in Debian's names.
    pub architectures: &'a [&'a str],
    /// Name of the suite.
    pub suite: &'a str,
    /// Name of the component.
    pub component: &'a str,
}

/// The base of an archive, without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Where it is.
    pub url: Url,
    /// Who names it: `file:line`, a variable.
    pub from: String,
}

/// A mirror that the user set.
#[derive(Debug, Clone)]
struct Extra {
    url: Url,
    from: String,
}

/// All that this machine knows about mirrors.
#[derive(Debug, Clone, Default)]
pub struct Mirrors {
    apt: Arc<Apt>,
    extra: Vec<Extra>,
    /// Lists of mirrors that were read, by the source that names them.
    lists: BTreeMap<Url, Vec<list::Entry>>,
    left_out: Vec<LeftOut>,
}

impl Mirrors {
    /// Reads the machine's apt settings (folder `KILN_APT_DIR`, else /etc/apt), then `KILN_DEBIAN_MIRROR` and the `mirrors` of
    /// kiln's own configuration. What cannot be read or used is in [`Mirrors::left_out`].
    ///
    /// # Errors
    /// kiln's own configuration cannot be read.
    pub fn of_machine() -> Result<Self> {
        let apt = std::env::var_os("KILN_APT_DIR").filter(|v| !v.is_empty());
        let apt = Apt::of_machine(&apt.map_or_else(|| PathBuf::from("/etc/apt"), PathBuf::from));
        let variable = std::env::var(VARIABLE).unwrap_or_default();
        let config = crate::config::Config::load()?.mirrors;
        let file = crate::config::Config::path().map_or_else(String::new, |path| path.display().to_string());
        let extra = variable.split_whitespace().map(|url| (url, VARIABLE.to_owned()));
        let extra = extra.chain(config.iter().map(|url| (url.as_str(), file.clone())));
        Ok(Self::with(apt, extra))
    }

    fn with<'a>(apt: Apt, extra: impl Iterator<Item = (&'a str, String)>) -> Self {
        let mut mirrors = Mirrors { left_out: apt.left_out.clone(), apt: Arc::new(apt), ..Self::default() };
        for (url, from) in extra {
            let url = Url::new(url.trim_end_matches('/'));
            match unusable(&url) {
                Some(why) => mirrors.left_out.push(LeftOut::malformed(from, format!("{url}: {why}"))),
                None => mirrors.extra.push(Extra { url, from }),
            }
        }
        mirrors
    }

    /// apt's settings for the way to the mirrors.
    pub(super) fn apt(&self) -> Arc<Apt> {
        Arc::clone(&self.apt)
    }

    /// Reads the lists of mirrors that sources name. One that cannot be read is left out: other mirrors may do.
    pub fn read_lists(&mut self, fetcher: &Fetcher<'_>) {
        let sources = self.apt.sources.iter().map(|source| (&source.url, &source.at));
        let named = sources.chain(self.extra.iter().map(|extra| (&extra.url, &extra.from)));
        let (mut lists, mut left_out) = (BTreeMap::new(), Vec::new());
        for (url, at) in named {
            let Some(location) = list::location(url).filter(|_| !lists.contains_key(url)) else { continue };
            let read =
                fetcher.get(&location, list::MAX_LIST).and_then(|bytes| Ok(list::unpack(&location, bytes)?));
            let entries = match read {
                Ok(bytes) => list::parse(&String::from_utf8_lossy(&bytes), &location, &mut left_out),
                Err(error) => {
                    left_out.push(LeftOut::new(at.clone(), format!("the list of mirrors {error:#}")));
                    Vec::new()
                }
            };
            lists.insert(url.clone(), entries);
        }
        self.lists = lists;
        self.left_out.extend(left_out);
    }

    /// Says what of this machine's settings is not used, once in a run: mistakes always, the rest with `-v`.
    pub fn say_left_out(&self, ui: &Ui) {
        static SAID: AtomicBool = AtomicBool::new(false);
        if SAID.swap(true, Ordering::Relaxed) {
            return;
        }
        for left in &self.left_out {
            // apt refuses these as well, or they were given to kiln itself.
            if left.mistake {
                ui.warn(left.to_string());
            } else {
                ui.detail("Left out", left.to_string());
            }
        }
    }

    /// What of the machine's settings is not used, and why.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Sources of apt that have an archive, but not for these architectures.
    pub fn of_other_machines(&self, wanted: &Wanted<'_>) -> Vec<LeftOut> {
        let sources = self.apt.sources.iter().filter(|source| source.archive == wanted.archive);
        let others =
            sources.filter(|source| !wanted.architectures.iter().any(|arch| source.architectures.has(arch)));
        let why = |url: &Url| {
            format!("{url}: it is for other architectures than {}", wanted.architectures.join(" and "))
        };
        others.map(|source| LeftOut::new(source.at.clone(), why(&source.url))).collect()
    }

    /// The places that may have what is wanted, in the order in which they are asked.
    pub fn of(&self, wanted: &Wanted<'_>) -> Vec<Mirror> {
        let mut mirrors: Vec<Mirror> = Vec::new();
        let mut add = |url: Url, from: String| {
            if !mirrors.iter().any(|mirror| mirror.url == url) {
                mirrors.push(Mirror { url, from });
            }
        };
        for source in self.apt.sources.iter().filter(|source| source.archive == wanted.archive) {
            let any = wanted.architectures.is_empty();
            if !any && !wanted.architectures.iter().any(|arch| source.architectures.has(arch)) {
                continue;
            }
            match self.lists.get(&source.url) {
                Some(entries) => {
                    for entry in list::choose(entries, wanted) {
                        add(entry.url.clone(), format!("{}, {}", source.at, entry.at));
                    }
                }
                None if list::location(&source.url).is_none() => add(source.url.clone(), source.at.clone()),
                None => {}
            }
        }
        if let Some(time) = wanted.snapshot {
            let url = Url::new(format!("{SNAPSHOT}/{}/{time}", wanted.archive));
            add(url, "the snapshot archive".to_owned());
        }
        for extra in &self.extra {
            match self.lists.get(&extra.url) {
                Some(entries) => {
                    for entry in list::choose(entries, wanted) {
                        add(of_archive(&entry.url, wanted.archive), format!("{}, {}", extra.from, entry.at));
                    }
                }
                None if list::location(&extra.url).is_none() => {
                    add(of_archive(&extra.url, wanted.archive), extra.from.clone());
                }
                None => {}
            }
        }
        mirrors
    }
}

/// The base of an archive at a place that the user set: `{archive}` in it becomes its name, and without that the name is appended. A folder
/// of this machine that is itself the base of an archive is taken as it is.
fn of_archive(url: &Url, archive: &str) -> Url {
    if url.exposed().contains("{archive}") {
        return Url::new(url.exposed().replace("{archive}", archive));
    }
    let below = url.below(archive);
    let is_base = |url: &Url| url.file().is_some_and(|path| Path::new(&path).join("dists").is_dir());
    if is_base(url) && !is_base(&below) { url.clone() } else { below }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;

    fn mirrors(sources: &str, extra: &[&str]) -> Mirrors {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("sources.list"), sources).unwrap();
        let apt = Apt::of_machine(dir.path());
        Mirrors::with(apt, extra.iter().map(|url| (*url, VARIABLE.to_owned())))
    }

    fn urls(mirrors: &Mirrors, wanted: &Wanted<'_>) -> Vec<String> {
        mirrors.of(wanted).iter().map(|mirror| mirror.url.exposed().to_owned()).collect()
    }

    #[test]
    fn the_machine_comes_first_then_the_snapshot_then_what_is_set() {
        let of = mirrors(
            "deb http://m.test/debian trixie main\ndeb http://m.test/debian trixie-updates main\n",
            &["http://x.test/", "http://y.test/{archive}/pool"],
        );
        let wanted = Wanted { archive: "debian", snapshot: Some("20260912T135541Z"), ..Wanted::default() };
        assert_eq!(
            urls(&of, &wanted),
            [
                "http://m.test/debian",
                "https://snapshot.debian.org/archive/debian/20260912T135541Z",
                "http://x.test/debian",
                "http://y.test/debian/pool"
            ]
        );
        assert!(of.of(&wanted)[0].from.ends_with("sources.list:1"));
        assert_eq!(urls(&Mirrors::default(), &Wanted { archive: "debian", ..Wanted::default() }), [""; 0]);
    }

    #[test]
    fn a_source_of_other_architectures_is_not_asked_and_that_is_said() {
        let of = mirrors("deb [arch=armhf] http://m.test/debian trixie main\n", &[]);
        let wanted = Wanted { archive: "debian", architectures: &["amd64", "arm64"], ..Wanted::default() };
        assert_eq!(urls(&of, &wanted), [""; 0]);
        let said = of.of_other_machines(&wanted);
        assert!(
            said.len() == 1 && said[0].to_string().contains("other architectures than amd64 and arm64"),
            "{said:?}"
        );
    }

    #[test]
    fn folders_of_this_machine_may_be_the_base_itself() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        let of = mirrors("", &[&url, "gopher://h/x", "nothing"]);
        let wanted = Wanted { archive: "debian", ..Wanted::default() };
        assert_eq!(urls(&of, &wanted), [format!("{url}/debian")]);
        fs::create_dir_all(dir.path().join("dists")).unwrap();
        assert_eq!(urls(&of, &wanted), std::slice::from_ref(&url));
        fs::create_dir_all(dir.path().join("debian/dists")).unwrap();
        assert_eq!(urls(&of, &wanted), [format!("{url}/debian")]);
        assert!(of.left_out().len() == 2 && of.left_out()[0].mistake, "{:?}", of.left_out());
    }
}
