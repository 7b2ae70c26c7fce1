//! What differs between two images, from their manifests and lists of files. The disks themselves are not read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::built::Built;
use crate::debian::version::DebVersion;
use crate::inventory::{Component, Container};
use crate::manifest::{FileInfo, Manifest, PackageInfo};
use crate::ui::human_bytes;

/// Everything that differs between two images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The disks have the same digest, and manifests and files say the same.
    pub same: bool,
    /// Single values of the manifest: profile, version, kernel, digests …
    pub facts: Vec<Fact>,
    /// Debian packages of the root, the ESP and the initrd, then what else is in the root, and container images.
    pub packages: Vec<PackageChange>,
    /// Units that systemd starts.
    pub units: Words,
    /// Words of the kernel command line.
    pub cmdline: Words,
    /// Sizes in bytes.
    pub sizes: Vec<Fact>,
    /// Files of the root.
    pub files: Vec<FileChange>,
}

/// A value that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What it is.
    pub what: String,
    /// In the first image.
    pub old: String,
    /// In the second.
    pub new: String,
}

/// What one list has and the other does not, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// Only in the second image.
    pub added: Vec<String>,
    /// Only in the first.
    pub removed: Vec<String>,
}

/// How something differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Only in the second image.
    Added,
    /// Only in the first.
    Removed,
    /// A later version, for a package.
    Upgraded,
    /// An earlier version, for a package.
    Downgraded,
    /// In both, with a difference.
    Changed,
}

/// A package that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageChange {
    /// Its name.
    pub name: String,
    /// How; `changed` means the same version with other bytes.
    pub change: Change,
    /// `root`, `boot` for ESP and initrd, or `container` for a container image.
    pub place: String,
    /// Version in the first image.
    pub old: Option<String>,
    /// Version in the second.
    pub new: Option<String>,
}

/// A file of the root that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// Its absolute path.
    pub path: String,
    /// How.
    pub change: Change,
    /// Package or `kiln:STEP` that put it there, in the second image if it has it.
    pub from: String,
    /// The fields that differ, for a changed one.
    pub fields: Vec<Fact>,
}

/// Compares `old` with `new`.
pub fn diff(old: &Built, new: &Built) -> Difference {
    let (a, b) = (&old.manifest, &new.manifest);
    let mut packages = package_changes("root", &a.packages, &b.packages);
    packages.extend(package_changes("boot", &a.boot, &b.boot));
    let version = |component: &Component| component.version.clone();
    packages.extend(other_changes("root", &a.components, &b.components, version));
    let version = |container: &Container| container.tag().to_owned();
    packages.extend(other_changes("container", &a.containers, &b.containers, version));
    let mut difference = Difference {
        same: false,
        facts: facts(a, b),
        packages,
        units: words(&a.units, &b.units),
        cmdline: words(&a.cmdline, &b.cmdline),
        sizes: sizes(a, b),
        files: file_changes(&old.files, &new.files),
    };
    // Whole manifests are compared too: an order or a field that no list here shows is a difference all the same.
    difference.same = a == b && difference.files.is_empty();
    difference
}

fn facts(a: &Manifest, b: &Manifest) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut fact = |what: &str, old: &dyn Display, new: &dyn Display| {
        let (old, new) = (old.to_string(), new.to_string());
        if old != new {
            facts.push(Fact { what: what.to_owned(), old, new });
        }
    };
    fact("profile", &a.profile, &b.profile);
    let role = |m: &Manifest| m.role.map_or_else(|| "(none)".to_owned(), |role| role.to_string());
    fact("role", &role(a), &role(b));
    fact("arch", &a.arch, &b.arch);
    fact("version", &a.version, &b.version);
    fact("time", &crate::lock::time::iso(a.epoch), &crate::lock::time::iso(b.epoch));
    fact("kiln", &a.kiln, &b.kiln);
    fact("kernel", &a.kernel, &b.kernel);
    fact("kernel modules", &a.modules, &b.modules);
    let k3s = |m: &Manifest| match &m.k3s {
        Some(k3s) => format!("{}, {}", k3s.version, k3s.described()),
        None => "(none)".to_owned(),
    };
    fact("K3s", &k3s(a), &k3s(b));
    fact("kernel command line", &a.cmdline.join(" "), &b.cmdline.join(" "));
    let none = || "(none)".to_owned();
    for name in a.suites.keys().chain(b.suites.keys()).collect::<BTreeSet<_>>() {
        let date = |m: &Manifest| m.suites.get(name).map_or_else(none, |(date, _)| date.clone());
        fact(&format!("suite {name}"), &date(a), &date(b));
    }
    for kind in a.steps.keys().chain(b.steps.keys()).collect::<BTreeSet<_>>() {
        let key = |m: &Manifest| m.steps.get(kind).cloned().unwrap_or_else(none);
        fact(&format!("key of step {kind}"), &key(a), &key(b));
    }
    fact("root hash", &a.root_hash, &b.root_hash);
    fact("sha256 of the UKI", &a.uki, &b.uki);
    fact("sha256 of the disk", &a.disk.sha256, &b.disk.sha256);
    fact("notes of the checks", &a.notes.len(), &b.notes.len());
    facts
}

fn sizes(a: &Manifest, b: &Manifest) -> Vec<Fact> {
    let pairs = [
        ("disk", a.disk.size, b.disk.size),
        ("root", a.sizes.root, b.sizes.root),
        ("root metadata", a.sizes.root_metadata, b.sizes.root_metadata),
        ("files, uncompressed", a.sizes.files, b.sizes.files),
        ("UKI", a.sizes.uki, b.sizes.uki),
        ("initrd", a.sizes.initrd, b.sizes.initrd),
    ];
    let differ = pairs.into_iter().filter(|(_, old, new)| old != new);
    differ
        .map(|(what, old, new)| Fact { what: what.to_owned(), old: old.to_string(), new: new.to_string() })
        .collect()
}

fn words(old: &[String], new: &[String]) -> Words {
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (old.iter().collect(), new.iter().collect());
    Words {
        added: new.difference(&old).map(|w| (*w).clone()).collect(),
        removed: old.difference(&new).map(|w| (*w).clone()).collect(),
    }
}

fn package_changes(
    place: &str,
    old: &BTreeMap<String, PackageInfo>,
    new: &BTreeMap<String, PackageInfo>,
) -> Vec<PackageChange> {
    let mut changes = Vec::new();
    for name in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let (a, b) = (old.get(name), new.get(name));
        let change = match (a, b) {
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
            (Some(a), Some(b)) if a == b => continue,
            (Some(a), Some(b)) => match (a.version.parse::<DebVersion>(), b.version.parse::<DebVersion>()) {
                (Ok(a), Ok(b)) if a < b => Change::Upgraded,
                (Ok(a), Ok(b)) if a > b => Change::Downgraded,
                _ => Change::Changed,
            },
        };
        let version = |p: Option<&PackageInfo>| p.map(|p| p.version.clone());
        changes.push(PackageChange {
            name: name.clone(),
            change,
            place: place.to_owned(),
            old: version(a),
            new: version(b),
        });
    }
    changes
}

/// What is not a Debian package, and so has no version that Debian's order is for: another one is a change.
fn other_changes<T: PartialEq>(
    place: &str,
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
    version: impl Fn(&T) -> String,
) -> Vec<PackageChange> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let change = |name: &String| {
        let (a, b) = (old.get(name), new.get(name));
        let change = match (a, b) {
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
            (Some(a), Some(b)) if a == b => return None,
            _ => Change::Changed,
        };
        Some(PackageChange {
            name: name.clone(),
            change,
            place: place.to_owned(),
            old: a.map(&version),
            new: b.map(&version),
        })
    };
    names.into_iter().filter_map(change).collect()
}

/// Files that differ between two lists, by path.
pub fn file_changes(old: &BTreeMap<String, FileInfo>, new: &BTreeMap<String, FileInfo>) -> Vec<FileChange> {
    let mut changes = Vec::new();
    for path in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let (change, from, fields) = match (old.get(path), new.get(path)) {
            (Some(a), Some(b)) if a == b => continue,
            (Some(a), Some(b)) => (Change::Changed, &b.from, fields(a, b)),
            (Some(a), None) => (Change::Removed, &a.from, Vec::new()),
            (None, Some(b)) => (Change::Added, &b.from, Vec::new()),
            (None, None) => continue,
        };
        changes.push(FileChange { path: path.clone(), change, from: from.clone(), fields });
    }
    changes
}

fn fields(a: &FileInfo, b: &FileInfo) -> Vec<Fact> {
    // Destructured so that a new field cannot be forgotten here.
    let FileInfo { kind, mode, uid, gid, size, sha256, target, xattrs, from } = a;
    let none = || "(none)".to_owned();
    let mut facts = Vec::new();
    let mut fact = |what: &str, old: String, new: String| {
        if old != new {
            facts.push(Fact { what: what.to_owned(), old, new });
        }
    };
    fact("kind", kind.clone(), b.kind.clone());
    fact("mode", mode.clone(), b.mode.clone());
    fact("uid", uid.to_string(), b.uid.to_string());
    fact("gid", gid.to_string(), b.gid.to_string());
    fact("size", size.to_string(), b.size.to_string());
    let digest = |d: &Option<crate::digest::Digest>| d.map_or_else(none, |d| d.to_string());
    fact("sha256", digest(sha256), digest(&b.sha256));
    fact("target", target.clone().unwrap_or_else(none), b.target.clone().unwrap_or_else(none));
    for name in xattrs.keys().chain(b.xattrs.keys()).collect::<BTreeSet<_>>() {
        let value = |x: &BTreeMap<String, String>| x.get(name).cloned().unwrap_or_else(none);
        fact(&format!("xattr {name}"), value(xattrs), value(&b.xattrs));
    }
    fact("from", from.clone(), b.from.clone());
    facts
}

impl Difference {
    /// The difference as lines of text; at most `limit` files are listed.
    pub fn lines(&self, limit: usize) -> Vec<String> {
        let mut lines = Vec::new();
        if self.same {
            lines.push("no difference".to_owned());
            return lines;
        }
        for fact in &self.facts {
            lines.push(format!("{}: {} -> {}", fact.what, short(&fact.old), short(&fact.new)));
        }
        for fact in &self.sizes {
            lines.push(format!("size of {}: {}", fact.what, grown(&fact.old, &fact.new)));
        }
        section(&mut lines, "packages", self.packages.len());
        for package in &self.packages {
            let place = match package.place.as_str() {
                "boot" => " (in ESP or initrd)",
                "container" => " (container image)",
                _ => "",
            };
            let versions = match (&package.old, &package.new) {
                (Some(old), Some(new)) if old == new => {
                    format!("{old}: same version, other bytes or relations")
                }
                (Some(old), Some(new)) => format!("{old} -> {new}"),
                (old, new) => old.clone().or_else(|| new.clone()).unwrap_or_default(),
            };
            lines.push(format!("  {} {} {versions}{place}", sign(package.change), package.name));
        }
        for (title, words) in [("units", &self.units), ("command line", &self.cmdline)] {
            section(&mut lines, title, words.added.len() + words.removed.len());
            lines.extend(words.removed.iter().map(|w| format!("  - {w}")));
            lines.extend(words.added.iter().map(|w| format!("  + {w}")));
        }
        section(&mut lines, "files", self.files.len());
        for file in self.files.iter().take(limit) {
            let fields: Vec<String> = file
                .fields
                .iter()
                .map(|f| format!("{} {} -> {}", f.what, short(&f.old), short(&f.new)))
                .collect();
            let fields = if fields.is_empty() { String::new() } else { format!(": {}", fields.join(", ")) };
            lines.push(format!("  {} {} [{}]{fields}", sign(file.change), file.path, file.from));
        }
        if self.files.len() > limit {
            lines.push(format!("  … and {} more; --all lists them", self.files.len() - limit));
        }
        lines
    }
}

fn section(lines: &mut Vec<String>, title: &str, count: usize) {
    if count > 0 {
        lines.push(format!("{title}: {count} differ"));
    }
}

fn sign(change: Change) -> &'static str {
    match change {
        Change::Added => "+",
        Change::Removed => "-",
        Change::Upgraded => "^",
        Change::Downgraded => "v",
        Change::Changed => "~",
    }
}

/// Digests are cut to what people compare.
pub(crate) fn short(text: &str) -> String {
    text.parse::<crate::digest::Digest>()
        .map_or_else(|_| text.to_owned(), |digest| format!("{}…", digest.short()))
}

fn grown(old: &str, new: &str) -> String {
    match (old.parse::<u64>(), new.parse::<u64>()) {
        (Ok(a), Ok(b)) => {
            let sign = if b >= a { '+' } else { '-' };
            format!("{} -> {} ({sign}{})", human_bytes(a), human_bytes(b), human_bytes(a.abs_diff(b)))
        }
        _ => format!("{old} -> {new}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::built::tests::{file, package, sample};
    use crate::digest::Digest;

    #[test]
    fn an_image_does_not_differ_from_itself() {
        let difference = diff(&sample(), &sample());
        assert!(difference.same);
        assert_eq!(difference.lines(9), ["no difference"]);
    }

    #[test]
    fn every_kind_of_difference_is_told_by_name() {
        let (old, mut new) = (sample(), sample());
        new.manifest.kernel = "6.12.2".to_owned();
        new.manifest.disk.sha256 = Digest::of(b"other");
        new.manifest.sizes.root = 50_000_000;
        new.manifest.cmdline = vec!["debug".to_owned()];
        new.manifest.units.push("a.service".to_owned());
        new.manifest.packages.remove("curl");
        new.manifest.packages.insert("wget".to_owned(), package("1", "", ""));
        new.manifest.packages.get_mut("libc6").unwrap().version = "2.41-9".to_owned();
        new.manifest.packages.get_mut("base-files").unwrap().version = "13.10".to_owned();
        new.manifest.boot.get_mut("busybox-static").unwrap().sha256 = Digest::of(b"x");
        new.manifest.components.get_mut("k3s").unwrap().version = "v1.34.1+k3s1".to_owned();
        new.manifest.containers.get_mut("coredns").unwrap().digest = Digest::of(b"x");
        new.files.remove("/usr/bin/curl");
        new.files.insert("/usr/bin/wget".to_owned(), file("file", "wget"));
        let hosts = new.files.get_mut("/etc/hosts").unwrap();
        hosts.mode = "0600".to_owned();
        hosts.sha256 = Some(Digest::of(b"new"));
        hosts.xattrs.insert("security.capability".to_owned(), "01".to_owned());
        let difference = diff(&old, &new);
        insta::assert_snapshot!(difference.lines(9).join("\n"), @r"
        kernel: 6.12.1 -> 6.12.2
        kernel command line: quiet -> debug
        sha256 of the disk: 1044dec7206e… -> d9298a10d1b0…
        size of root: 100 B -> 50.00 MB (+50.00 MB)
        packages: 7 differ
          ^ base-files 13.8 -> 13.10
          - curl 8.14-2
          v libc6 2.41-12 -> 2.41-9
          + wget 1
          ~ busybox-static 1.37-6: same version, other bytes or relations (in ESP or initrd)
          ~ k3s v1.33.3+k3s1 -> v1.34.1+k3s1
          ~ coredns 1.12.1: same version, other bytes or relations (container image)
        units: 1 differ
          + a.service
        command line: 2 differ
          - quiet
          + debug
        files: 3 differ
          ~ /etc/hosts [kiln:files]: mode 0644 -> 0600, sha256 4f8a2cc398d8… -> 11507a0e2f5e…, xattr security.capability (none) -> 01
          - /usr/bin/curl [curl]
          + /usr/bin/wget [wget]
        ");
        assert_eq!(difference.lines(1).last().unwrap(), "  … and 2 more; --all lists them");
        let text = serde_json::to_string(&difference).unwrap();
        assert_eq!(serde_json::from_str::<Difference>(&text).unwrap(), difference);
    }

    #[test]
    fn a_difference_that_no_list_shows_is_still_one() {
        let (old, mut new) = (sample(), sample());
        new.manifest.disk.partitions[0].size += 512;
        assert!(!diff(&old, &new).same);
        new = sample();
        new.manifest.cmdline.push("quiet".to_owned());
        assert_eq!(diff(&old, &new).facts.len(), 1);
    }
}
