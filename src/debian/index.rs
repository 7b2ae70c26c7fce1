//! Packages files: what a suite offers.
//!
//! [`parse`] reads the whole file in one pass and keeps only records that fit the architecture. Relation fields are kept
//! as text and read by [`PackageRecord::relations`] when the solver gets there: of the 68,000 packages of a suite it
//! looks at a few hundred. Source: the Debian wiki's RepositoryFormat, Debian Policy 5.3.

use std::io::BufRead;

use serde::{Deserialize, Serialize};

use super::control::{ControlError, NOT_UTF8, Stanza, Stanzas};
use super::relation::{self, Alternatives, Operator, RelationError};
use super::version::DebVersion;
use super::{is_architecture_name, is_package_name};
use crate::digest::Digest;

/// What `Multi-Arch` says of a package.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MultiArch {
    /// It serves packages of its own architecture only.
    #[default]
    No,
    /// It can be installed for several architectures at once.
    Same,
    /// It serves packages of any architecture.
    Foreign,
    /// It serves packages of any architecture that ask with `:any`.
    Allowed,
}

/// The fields of one stanza that matter for resolution and download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageRecord {
    /// Name of the binary package.
    pub name: String,
    /// Its version.
    pub version: DebVersion,
    /// `all` or an architecture.
    pub architecture: String,
    /// Which architectures it serves.
    pub multi_arch: MultiArch,
    /// `Essential: yes`: everything may rely on it without saying so.
    pub essential: bool,
    /// `Protected: yes`: needed to boot.
    pub protected: bool,
    /// `required`, `important`, `standard`, `optional` or `extra`.
    pub priority: Box<str>,
    /// Archive section.
    pub section: Box<str>,
    /// Name of the source package.
    pub source: Box<str>,
    /// Version of the source package, if it differs from that of the binary one.
    pub source_version: Option<Box<str>>,
    /// Text of `Depends`.
    pub depends: Box<str>,
    /// Text of `Pre-Depends`.
    pub pre_depends: Box<str>,
    /// Text of `Recommends`.
    pub recommends: Box<str>,
    /// Text of `Provides`.
    pub provides: Box<str>,
    /// Text of `Conflicts`.
    pub conflicts: Box<str>,
    /// Text of `Breaks`.
    pub breaks: Box<str>,
    /// Text of `Replaces`.
    pub replaces: Box<str>,
    /// Path below the root of the mirror: relative, without `..`.
    pub filename: Box<str>,
    /// Length of the .deb in bytes.
    pub size: u64,
    /// Digest of the .deb.
    pub sha256: Digest,
    /// Estimate of the unpacked size, in KiB; 0 if the index does not say.
    pub installed_size: u64,
}

/// A name that a package stands in for, with the version it claims, if any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provided {
    /// Name of the virtual (or real) package.
    pub name: String,
    /// Only a versioned one satisfies a relation with a version (Policy 7.5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<DebVersion>,
}

/// Which relation field of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `Depends`
    Depends,
    /// `Pre-Depends`
    PreDepends,
    /// `Recommends`
    Recommends,
    /// `Conflicts`
    Conflicts,
    /// `Breaks`
    Breaks,
    /// `Replaces`
    Replaces,
}

/// A stanza of an index that is no usable package. apt passes over such stanzas too; one bad package must not hide the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// First line of the stanza, or the line that cannot be read; from 1.
    pub line: u64,
    /// Its name as far as there is one, without control characters.
    pub package: String,
    /// What is wrong.
    pub reason: String,
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let package = if self.package.is_empty() { "a package without a name" } else { &self.package };
        write!(f, "{package} (line {}): {}", self.line, self.reason)
    }
}

/// What a Packages file offers.
#[derive(Debug, Default)]
pub struct Index {
    /// The packages that were asked for.
    pub records: Vec<PackageRecord>,
    /// The stanzas that cannot be used, in the order of the file.
    pub skipped: Vec<Skipped>,
}

/// Reads the records of a Packages file for which `keep` says true; it is asked with name and architecture, before the
/// rest of the stanza is looked at. A stanza that cannot be used is noted and passed over.
///
/// # Errors
/// The reader failed, or a stanza is longer than [`super::control::MAX_STANZA`].
pub fn parse<R: BufRead>(reader: R, mut keep: impl FnMut(&str, &str) -> bool) -> Result<Index, ControlError> {
    let shown = |name: &str| -> String { name.chars().take(100).flat_map(char::escape_debug).collect() };
    let mut index = Index::default();
    let mut stanzas = Stanzas::lenient(reader);
    loop {
        let stanza = match stanzas.read() {
            Ok(Some(stanza)) => stanza,
            Ok(None) => return Ok(index),
            Err(ControlError::Line { line, reason }) => {
                let package = shown(&stanzas.refused("Package").unwrap_or_default());
                index.skipped.push(Skipped { line, package, reason: reason.to_owned() });
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut known = Known::default();
        for (name, value) in stanza.iter() {
            known.take(name, value);
        }
        let read = if !is_package_name(known.package) {
            Err("its name is not a package name".to_owned())
        } else if !is_architecture_name(known.architecture) {
            Err("its architecture is not one".to_owned())
        } else if keep(known.package, known.architecture) {
            known.record(&stanza).map(Some)
        } else {
            Ok(None)
        };
        match read {
            Ok(record) => index.records.extend(record),
            Err(reason) => {
                let package = shown(known.package);
                index.skipped.push(Skipped { line: stanza.line(), package, reason });
            }
        }
    }
}

/// The values of a stanza by the fields that matter: one pass over the stanza instead of one per field.
#[derive(Default)]
struct Known<'a> {
    package: &'a str,
    version: &'a str,
    architecture: &'a str,
    multi_arch: &'a str,
    essential: &'a str,
    protected: &'a str,
    priority: &'a str,
    section: &'a str,
    source: &'a str,
    depends: &'a str,
    pre_depends: &'a str,
    recommends: &'a str,
    provides: &'a str,
    conflicts: &'a str,
    breaks: &'a str,
    replaces: &'a str,
    filename: &'a str,
    size: &'a str,
    sha256: &'a str,
    installed_size: &'a str,
}

impl<'a> Known<'a> {
    fn take(&mut self, name: &str, value: &'a str) {
        // Indexes are written by one program with one spelling; apt reads field names without regard to case, so here too.
        let slot = match name {
            _ if name.len() > 14 => return,
            n if n.eq_ignore_ascii_case("Package") => &mut self.package,
            n if n.eq_ignore_ascii_case("Version") => &mut self.version,
            n if n.eq_ignore_ascii_case("Architecture") => &mut self.architecture,
            n if n.eq_ignore_ascii_case("Multi-Arch") => &mut self.multi_arch,
            n if n.eq_ignore_ascii_case("Essential") => &mut self.essential,
            n if n.eq_ignore_ascii_case("Protected") => &mut self.protected,
            n if n.eq_ignore_ascii_case("Priority") => &mut self.priority,
            n if n.eq_ignore_ascii_case("Section") => &mut self.section,
            n if n.eq_ignore_ascii_case("Source") => &mut self.source,
            n if n.eq_ignore_ascii_case("Depends") => &mut self.depends,
            n if n.eq_ignore_ascii_case("Pre-Depends") => &mut self.pre_depends,
            n if n.eq_ignore_ascii_case("Recommends") => &mut self.recommends,
            n if n.eq_ignore_ascii_case("Provides") => &mut self.provides,
            n if n.eq_ignore_ascii_case("Conflicts") => &mut self.conflicts,
            n if n.eq_ignore_ascii_case("Breaks") => &mut self.breaks,
            n if n.eq_ignore_ascii_case("Replaces") => &mut self.replaces,
            n if n.eq_ignore_ascii_case("Filename") => &mut self.filename,
            n if n.eq_ignore_ascii_case("Size") => &mut self.size,
            n if n.eq_ignore_ascii_case("SHA256") => &mut self.sha256,
            n if n.eq_ignore_ascii_case("Installed-Size") => &mut self.installed_size,
            _ => return,
        };
        *slot = value;
    }

    fn record(&self, stanza: &Stanza<'_>) -> Result<PackageRecord, String> {
        if let Some(name) = stanza.repeated() {
            return Err(format!("the field {name} stands there twice"));
        }
        let used = [
            ("Version", self.version),
            ("Source", self.source),
            ("Section", self.section),
            ("Priority", self.priority),
            ("Filename", self.filename),
            ("Depends", self.depends),
            ("Pre-Depends", self.pre_depends),
            ("Recommends", self.recommends),
            ("Provides", self.provides),
            ("Conflicts", self.conflicts),
            ("Breaks", self.breaks),
            ("Replaces", self.replaces),
        ];
        // Other fields, such as a description in Latin-1, are nobody's concern here; apt does not mind them either.
        if let Some((name, _)) = used.iter().find(|(_, value)| value.bytes().any(|b| b == NOT_UTF8)) {
            return Err(format!("its field {name} is not UTF-8"));
        }
        if self.version.is_empty() {
            return Err("it has no Version".to_owned());
        }
        let version = DebVersion::new(self.version).map_err(|e| e.to_string())?;
        let sha256 = self.sha256.parse().map_err(|_| "it has no SHA256 field with a digest".to_owned())?;
        let size = self.size.parse().map_err(|_| "it has no Size field with a number".to_owned())?;
        if !is_clean_path(self.filename) {
            return Err("its Filename is not a path below the root of a mirror".to_owned());
        }
        relation::parse(self.provides).map_err(|e| format!("its field Provides: {e}"))?;
        // `Source: name (version)`; without the field, source and package have one name.
        let (source, source_version) = match self.source.split_once('(') {
            Some((name, version)) => (name.trim(), Some(version.trim_end_matches(')').trim().into())),
            None => (self.source, None),
        };
        let multi_arch = match self.multi_arch {
            "same" => MultiArch::Same,
            "foreign" => MultiArch::Foreign,
            "allowed" => MultiArch::Allowed,
            _ => MultiArch::No,
        };
        Ok(PackageRecord {
            name: self.package.to_owned(),
            version,
            architecture: self.architecture.to_owned(),
            multi_arch,
            essential: self.essential == "yes",
            protected: self.protected == "yes",
            priority: self.priority.into(),
            section: self.section.into(),
            source: if source.is_empty() { self.package } else { source }.into(),
            source_version,
            depends: self.depends.into(),
            pre_depends: self.pre_depends.into(),
            recommends: self.recommends.into(),
            provides: self.provides.into(),
            conflicts: self.conflicts.into(),
            breaks: self.breaks.into(),
            replaces: self.replaces.into(),
            filename: self.filename.into(),
            size,
            sha256,
            // A few packages of third parties leave it out; nothing depends on it.
            installed_size: self.installed_size.parse().unwrap_or(0),
        })
    }
}

/// A relative path of plain components: it goes into URLs and must stay below the mirror's root.
pub(super) fn is_clean_path(path: &str) -> bool {
    let path = path.strip_prefix("./").unwrap_or(path);
    let part = |p: &str| {
        !p.is_empty() && p != "." && p != ".." && p.bytes().all(|b| b.is_ascii_graphic() && b != b'\\')
    };
    !path.is_empty() && path.split('/').all(part)
}

impl PackageRecord {
    /// The relations of one field. An error names the relation; the caller knows the package.
    pub fn relations(&self, field: Field) -> Result<Vec<Alternatives>, RelationError> {
        relation::parse(match field {
            Field::Depends => &self.depends,
            Field::PreDepends => &self.pre_depends,
            Field::Recommends => &self.recommends,
            Field::Conflicts => &self.conflicts,
            Field::Breaks => &self.breaks,
            Field::Replaces => &self.replaces,
        })
    }

    /// What it provides. Policy 7.5 allows only `=` there, so anything else counts as unversioned.
    pub fn provided(&self) -> Result<Vec<Provided>, RelationError> {
        let relations = relation::parse(&self.provides)?;
        let one = |r: relation::Relation| Provided {
            name: r.name,
            version: r
                .version
                .and_then(|(operator, version)| (operator == Operator::Equal).then_some(version)),
        };
        Ok(relations.into_iter().flat_map(|a| a.0).map(one).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHA: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn stanza(more: &str) -> String {
        format!(
            "Package: dash\nVersion: 0.5.12-12\nArchitecture: amd64\nFilename: pool/main/d/dash/dash_0.5.12-12_amd64.deb\nSize: 97052\nSHA256: {SHA}\n{more}\n"
        )
    }

    fn index(text: &[u8]) -> Index {
        parse(text, |_, arch| arch == "amd64" || arch == "all").unwrap()
    }

    fn read(text: &str) -> Vec<PackageRecord> {
        let index = index(text.as_bytes());
        assert_eq!(index.skipped, []);
        index.records
    }

    #[test]
    fn reads_what_the_solver_and_the_fetcher_need() {
        let text = stanza(
            "Essential: yes\nMulti-Arch: foreign\nPriority: required\nSource: dash-src (1:2)\nInstalled-Size: 191\nPre-Depends: libc6 (>= 2.38)\nProvides: sh-shell (= 1), posix-sh",
        );
        let record = &read(&text)[0];
        assert_eq!(
            (record.name.as_str(), record.version.as_str(), record.size),
            ("dash", "0.5.12-12", 97052)
        );
        assert!(record.essential && !record.protected && record.multi_arch == MultiArch::Foreign);
        assert_eq!((&*record.source, record.source_version.as_deref()), ("dash-src", Some("1:2")));
        assert_eq!(record.relations(Field::PreDepends).unwrap()[0].to_string(), "libc6 (>= 2.38)");
        let provided = record.provided().unwrap();
        assert_eq!(
            (provided[0].version.as_ref().unwrap().as_str(), provided[1].version.is_none()),
            ("1", true)
        );
        assert_eq!(&*read(&stanza(""))[0].source, "dash");
    }

    #[test]
    fn other_architectures_are_left_out_before_they_are_read() {
        let text = stanza("") + "\nPackage: foreign\nArchitecture: s390x\nVersion: not a version\n";
        assert_eq!(read(&text).len(), 1);
    }

    #[test]
    fn passes_over_records_that_could_not_be_used_safely_and_keeps_the_others() {
        for (from, to, reason) in [
            ("Package: dash", "Package: ../dash", "not a package name"),
            ("pool/main", "../../etc", "not a path below"),
            ("pool/main", "/pool", "not a path below"),
            ("pool/main", "pool//main", "not a path below"),
            ("Size: 97052", "Size: x", "no Size"),
            (SHA, "abc", "no SHA256"),
            ("0.5.12-12\nArch", "-\nArch", "not a Debian version"),
            ("0.5.12-12\nArch", "v1.2.3\nArch", "not a Debian version"),
            ("Version: 0.5.12-12\n", "", "no Version"),
            ("Size:", "Size", "no colon"),
            ("Size: 97052", "Provides: a (>>\nSize: 97052", "Provides"),
            ("Size", "Package: bb\nSize", "stands there twice"),
        ] {
            let text = format!("{}\n{}", stanza("").replace(from, to), stanza("").replace("dash", "good"));
            let index = index(text.as_bytes());
            assert_eq!(index.records.len(), 1, "{to}");
            let skipped = index.skipped[0].to_string();
            assert!(index.skipped.len() == 1 && skipped.contains(reason), "{to}: {skipped}");
        }
    }

    #[test]
    fn only_fields_that_are_used_must_be_utf8() {
        let text = |field: &[u8]| [stanza("").trim_end().as_bytes(), b"\n", field, b"\n"].concat();
        assert_eq!(index(&text(b"Description: caf\xe9")).records.len(), 1);
        let skipped = index(&text(b"Depends: caf\xe9")).skipped;
        assert_eq!(skipped[0].to_string(), "dash (line 1): its field Depends is not UTF-8");
        let skipped = index(b"Package: \xe9\x1b[31m\nVersion: 1\n").skipped;
        assert!(skipped[0].package.chars().all(|c| !c.is_control()), "{skipped:?}");
    }

    proptest! {
        #[test]
        fn never_panics(cut in 0usize..200, junk in "\\PC{0,20}", at in 0usize..180) {
            let mut text = stanza("Provides: a (= 1)");
            text.truncate(cut.max(at));
            text.insert_str(at.min(text.len()), &junk);
            for record in parse(text.as_bytes(), |_, _| true).unwrap().records {
                let _ = (record.provided(), record.relations(Field::Depends));
            }
        }
    }
}
