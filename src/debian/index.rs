//! Packages files: what a suite offers.
//!
//! [`parse`] reads the whole file in one pass and keeps only records that fit the architecture. Relation fields are kept
//! as text and read by [`PackageRecord::relations`] when the solver gets there: of the 68,000 packages of a suite it
//! looks at a few hundred. Source: the Debian wiki's RepositoryFormat, Debian Policy 5.3.

use std::io::BufRead;

use serde::{Deserialize, Serialize};

use super::control::{ControlError, Stanza, Stanzas};
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

/// Why an index could not be read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file is not made of stanzas.
    #[error(transparent)]
    Stanza(#[from] ControlError),
    /// A stanza that is no package.
    #[error("line {line}: package `{package}`: {reason}")]
    Record {
        /// First line of the stanza, from 1.
        line: u64,
        /// Its name, as far as there is one.
        package: String,
        /// What is wrong.
        reason: String,
    },
}

/// Reads the records of a Packages file for which `keep` says true; it is asked with name and architecture, before the
/// rest of the stanza is looked at.
pub fn parse<R: BufRead>(
    reader: R,
    mut keep: impl FnMut(&str, &str) -> bool,
) -> Result<Vec<PackageRecord>, IndexError> {
    let mut records = Vec::new();
    let mut stanzas = Stanzas::new(reader);
    while let Some(stanza) = stanzas.read()? {
        let mut known = Known::default();
        for (name, value) in stanza.iter() {
            known.take(name, value);
        }
        let refuse = |reason: String| IndexError::Record {
            line: stanza.line(),
            package: known.package.escape_debug().take(100).collect(),
            reason,
        };
        if !is_package_name(known.package) {
            return Err(refuse("its name is not a package name".to_owned()));
        }
        if !is_architecture_name(known.architecture) {
            return Err(refuse("its architecture is not one".to_owned()));
        }
        if keep(known.package, known.architecture) {
            records.push(known.record(&stanza).map_err(refuse)?);
        }
    }
    Ok(records)
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
        let version = DebVersion::new(self.version).map_err(|e| e.to_string())?;
        let sha256 = self.sha256.parse().map_err(|_| "it has no SHA256 field with a digest".to_owned())?;
        let size = self.size.parse().map_err(|_| "it has no Size field with a number".to_owned())?;
        if !is_clean_path(self.filename) {
            return Err("its Filename is not a path below the root of a mirror".to_owned());
        }
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

    fn read(text: &str) -> Result<Vec<PackageRecord>, IndexError> {
        parse(text.as_bytes(), |_, arch| arch == "amd64" || arch == "all")
    }

    #[test]
    fn reads_what_the_solver_and_the_fetcher_need() {
        let text = stanza(
            "Essential: yes\nMulti-Arch: foreign\nPriority: required\nSource: dash-src (1:2)\nInstalled-Size: 191\nPre-Depends: libc6 (>= 2.38)\nProvides: sh-shell (= 1), posix-sh",
        );
        let record = &read(&text).unwrap()[0];
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
        assert_eq!(&*read(&stanza("")).unwrap()[0].source, "dash");
    }

    #[test]
    fn other_architectures_are_left_out_before_they_are_read() {
        let text = stanza("") + "\nPackage: foreign\nArchitecture: s390x\nVersion: not a version\n";
        assert_eq!(read(&text).unwrap().len(), 1);
    }

    #[test]
    fn refuses_records_that_could_not_be_fetched_safely() {
        for (from, to, reason) in [
            ("Package: dash", "Package: ../dash", "not a package name"),
            ("pool/main", "../../etc", "not a path below"),
            ("pool/main", "/pool", "not a path below"),
            ("pool/main", "pool//main", "not a path below"),
            ("Size: 97052", "Size: x", "no Size"),
            (SHA, "abc", "no SHA256"),
            ("0.5.12-12\nArch", "-\nArch", "not a Debian version"),
            ("Size", "Package: bb\nSize", "stands there twice"),
        ] {
            let error = read(&stanza("").replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(reason) && error.starts_with("line 1"), "{to}: {error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(cut in 0usize..200, junk in "\\PC{0,20}", at in 0usize..180) {
            let mut text = stanza("Provides: a (= 1)");
            text.truncate(cut.max(at));
            text.insert_str(at.min(text.len()), &junk);
            for record in parse(text.as_bytes(), |_, _| true).unwrap_or_default() {
                let _ = (record.provided(), record.relations(Field::Depends));
            }
        }
    }
}
