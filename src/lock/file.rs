//! The file `images/kiln.lock`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::time;
use super::wanted::SetId;
use crate::arch::Arch;
use crate::digest::{Digest, Hasher};
use crate::error::{Failure, Kind};
use crate::spec;

/// Version of the file's shape.
const SCHEMA: u32 = 1;

const HEADER: &str = "# Written by `kiln update`; not to be edited. It names every package that goes into an image or makes one.\n";

/// Everything that the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Version of the file's shape.
    pub schema: u32,
    /// Digest of what the TOML files asked for when this was resolved.
    pub spec: Digest,
    /// The states of the suites that packages were taken from.
    pub suite: Vec<LockedSuite>,
    /// Which packages make a set, sorted by kind, name, architecture.
    pub set: Vec<LockedSet>,
    /// All packages, sorted by name, version, architecture.
    pub package: Vec<LockedPackage>,
}

/// A state of a suite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedSuite {
    /// `trixie`.
    pub name: String,
    /// `debian`, `debian-security`.
    pub archive: String,
    /// The Release file's own date, `2026-09-12T07:55:41Z`.
    pub date: String,
    /// Digest of the signed InRelease file.
    pub inrelease: Digest,
    /// A moment at which the snapshot archive has this state, `20260912T135541Z`.
    pub snapshot: String,
}

/// The packages of a profile or tool set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedSet {
    /// Which set.
    #[serde(flatten)]
    pub id: SetId,
    /// What was asked for, to explain a stale lock.
    pub wants: Vec<String>,
    /// `name version`, sorted; the architecture is the set's, or `all`.
    pub packages: Vec<String>,
}

/// A package file of Debian's archive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// Its name.
    pub name: String,
    /// Its whole version.
    pub version: String,
    /// `amd64`, `arm64` or `all`.
    pub arch: String,
    /// The suite it was found in.
    pub suite: String,
    /// Path on a mirror, below the archive.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Of the whole .deb file.
    pub sha256: Digest,
}

impl LockedPackage {
    /// `name version arch`, as people see it.
    pub fn title(&self) -> String {
        format!("{} {} {}", self.name, self.version, self.arch)
    }
}

impl Lock {
    /// The lock's place in a project.
    pub fn path(project: &Path) -> PathBuf {
        project.join("images/kiln.lock")
    }

    /// A lock without packages yet.
    pub(super) fn new(spec: Digest) -> Self {
        Lock { schema: SCHEMA, spec, suite: Vec::new(), set: Vec::new(), package: Vec::new() }
    }

    /// Reads and checks the lock of the project in `dir`. A missing, hand-edited or inconsistent one is an error that names
    /// `kiln update`.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = Self::path(dir);
        match spec::text::read(&path) {
            Ok(text) => Self::parse(&text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(Failure::new(Kind::Lock, "images/kiln.lock is missing")
                    .hint("run `kiln update` to make it")
                    .into())
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Parses the text of a lock: its own digest first, then its shape, then that all references lead somewhere.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |why: String| {
            Failure::new(Kind::Lock, format!("images/kiln.lock {why}"))
                .hint("run `kiln update`, or restore the file with git")
        };
        let start =
            text.find("digest = \"").ok_or_else(|| refuse("has no digest of its own text".to_owned()))?;
        let (line, body) = text[start..].split_once('\n').unwrap_or((&text[start..], ""));
        let written: Digest = line["digest = \"".len()..]
            .trim_end_matches('"')
            .parse()
            .map_err(|_| refuse("has a damaged digest line".to_owned()))?;
        if &text[..start] != HEADER || Digest::of(body.as_bytes()) != written {
            return Err(refuse(
                "was edited by hand, or damaged: its text does not have its digest".to_owned(),
            )
            .into());
        }
        let lock: Lock = spec::parse("images/kiln.lock", body)
            .map_err(|e| anyhow::Error::from(refuse("cannot be read".to_owned()).because(e)))?;
        if lock.schema != SCHEMA {
            return Err(refuse(format!("has schema {}, this kiln reads schema {SCHEMA}", lock.schema)).into());
        }
        for set in &lock.set {
            for package in &set.packages {
                if lock.find(package, set.id.arch).is_none() {
                    return Err(
                        refuse(format!("names `{package}` in {} and does not describe it", set.id)).into()
                    );
                }
            }
        }
        for package in &lock.package {
            if !lock.suite.iter().all(|s| time::parse_iso(&s.date).is_some()) {
                return Err(refuse("has a suite with a date that is none".to_owned()).into());
            }
            if !lock.suite.iter().any(|s| s.name == package.suite) {
                return Err(refuse(format!(
                    "takes {} from an unknown suite {}",
                    package.name, package.suite
                ))
                .into());
            }
            // The path becomes part of a URL, never of a local path; still nothing strange may stand there.
            if package.path.split('/').any(|part| part.is_empty() || part == "..") {
                return Err(
                    refuse(format!("has a strange path for {}: {}", package.name, package.path)).into()
                );
            }
        }
        Ok(lock)
    }

    /// The package written as `name version` in a set of `arch`.
    fn find(&self, reference: &str, arch: Arch) -> Option<&LockedPackage> {
        let (name, version) = reference.split_once(' ')?;
        let from = self.package.partition_point(|p| (p.name.as_str(), p.version.as_str()) < (name, version));
        let same = self.package[from..].iter().take_while(|p| p.name == name && p.version == version);
        same.into_iter().find(|p| p.arch == arch.debian() || p.arch == "all")
    }

    /// The packages of a set, sorted by name.
    pub fn packages(&self, set: &LockedSet) -> Vec<&LockedPackage> {
        // parse() and resolve made sure that every reference leads somewhere.
        set.packages.iter().filter_map(|reference| self.find(reference, set.id.arch)).collect()
    }

    /// The set with this id.
    pub fn set(&self, id: &SetId) -> Option<&LockedSet> {
        self.set.iter().find(|s| s.id == *id)
    }

    /// The suite's locked state.
    pub fn suite(&self, name: &str) -> Option<&LockedSuite> {
        self.suite.iter().find(|s| s.name == name)
    }

    /// The age of the lock: the date of its newest suite, seconds since 1970 UTC. Every file of an image has it as its time.
    pub fn epoch(&self) -> i64 {
        self.suite.iter().filter_map(|s| time::parse_iso(&s.date)).max().unwrap_or(0)
    }

    /// Version of the images made from this lock: the day of [`Lock::epoch`], and the beginning of the digest of all its packages.
    pub fn version(&self) -> String {
        let mut hasher = Hasher::new();
        for package in &self.package {
            hasher.update(package.sha256.as_bytes());
        }
        let day = time::compact(self.epoch());
        format!("{}-{}", day.split('T').next().unwrap_or_default(), &hasher.finish().to_string()[..8])
    }

    /// The file's text: header, digest of the rest, the rest in a stable order.
    pub fn text(&self) -> Result<String> {
        let body = toml::to_string(self)?;
        Ok(format!("{HEADER}digest = \"{}\"\n{body}", Digest::of(body.as_bytes())))
    }

    /// Writes the lock of the project in `dir`, atomically, and not at all if nothing changed. Says whether it did.
    pub fn save(&self, dir: &Path) -> Result<bool> {
        let path = Self::path(dir);
        let text = self.text()?;
        if spec::text::read(&path).is_ok_and(|old| old == text) {
            return Ok(false);
        }
        let folder = path.parent().expect("the lock lies in images/");
        let mut temp = tempfile::Builder::new().prefix(".kiln.lock.").tempfile_in(folder)?;
        std::io::Write::write_all(&mut temp, text.as_bytes())?;
        std::os::unix::fs::PermissionsExt::set_mode(&mut temp.as_file().metadata()?.permissions(), 0o644);
        fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        temp.as_file().sync_all()?;
        temp.persist(&path).map_err(|e| e.error)?;
        Ok(true)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::wanted::SetKind;
    use super::*;

    pub(in super::super) fn sample() -> Lock {
        let package = |name: &str, arch: &str| LockedPackage {
            name: name.into(),
            version: "1.0-1".into(),
            arch: arch.into(),
            suite: "trixie".into(),
            path: format!("pool/main/{name}_1.0-1_{arch}.deb"),
            size: 10,
            sha256: Digest::of(name.as_bytes()),
        };
        Lock {
            schema: SCHEMA,
            spec: Digest::of(b"spec"),
            suite: vec![LockedSuite {
                name: "trixie".into(),
                archive: "debian".into(),
                date: "2026-09-12T07:55:41Z".into(),
                inrelease: Digest::of(b"x"),
                snapshot: "20260912T135541Z".into(),
            }],
            set: vec![LockedSet {
                id: SetId { kind: SetKind::Profile, name: "server".into(), arch: Arch::Amd64 },
                wants: vec!["dash".into()],
                packages: vec!["adduser 1.0-1".into(), "dash 1.0-1".into()],
            }],
            package: vec![package("adduser", "all"), package("dash", "amd64"), package("dash", "arm64")],
        }
    }

    #[test]
    fn a_lock_is_read_back_as_it_was_and_an_unchanged_one_is_not_written() {
        let lock = sample();
        assert_eq!(Lock::parse(&lock.text().unwrap()).unwrap(), lock);
        assert_eq!(
            lock.packages(&lock.set[0]).iter().map(|p| p.title()).collect::<Vec<_>>(),
            ["adduser 1.0-1 all", "dash 1.0-1 amd64"]
        );
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("images")).unwrap();
        assert!(lock.save(dir.path()).unwrap());
        assert!(!lock.save(dir.path()).unwrap());
        assert_eq!(Lock::load(dir.path()).unwrap(), lock);
    }

    #[test]
    fn an_edited_lock_is_refused_wherever_the_edit_is() {
        let text = sample().text().unwrap();
        let edits = [
            text.replace("size = 10", "size = 11"),
            text.replacen("digest = \"", "digest = \"0", 1),
            text.replacen("# Written", "# written", 1),
            text.lines().filter(|l| !l.starts_with("digest")).collect::<Vec<_>>().join("\n"),
            format!("{text}\n# a comment"),
            text[..text.len() / 2].to_owned(),
            String::new(),
        ];
        for edit in edits {
            let error = Lock::parse(&edit).unwrap_err();
            let report = crate::error::report(&error);
            assert_eq!(report.kind, Kind::Lock, "{error:#}");
            assert!(report.hints[0].contains("kiln update"), "{error:#}");
        }
    }

    #[test]
    fn a_reference_that_leads_nowhere_is_refused() {
        let mut lock = sample();
        lock.set[0].packages.push("vim 9".into());
        let error = Lock::parse(&lock.text().unwrap()).unwrap_err();
        assert!(
            error.to_string().contains("names `vim 9` in profile server (amd64) and does not describe it"),
            "{error:#}"
        );
    }
}
