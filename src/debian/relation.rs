//! The language of Depends and its kin.
//!
//! ```text
//!   libc6 (>= 2.38), awk:any | mawk [linux-any] <!nocheck>
//!   `---- and, by commas      `---- or, by bars: first choice first
//! ```
//!
//! [`parse`] gives a list of [`Alternatives`], all of which must hold. Sources: Debian Policy 7.1, deb-control(5) for
//! architecture qualifiers, deb-src-control(5) for restrictions (binary packages have none, but the grammar is one).

use std::fmt;

use super::is_architecture_name;
use super::version::{DebVersion, VersionError};

/// How a version must stand to the one that a relation names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `<<`
    Earlier,
    /// `<=`
    EarlierOrEqual,
    /// `=`
    Equal,
    /// `>=`
    LaterOrEqual,
    /// `>>`
    Later,
}

impl Operator {
    /// Whether `version` stands so to `wanted`.
    pub fn holds(self, version: &DebVersion, wanted: &DebVersion) -> bool {
        match self {
            Operator::Earlier => version < wanted,
            Operator::EarlierOrEqual => version <= wanted,
            Operator::Equal => version == wanted,
            Operator::LaterOrEqual => version >= wanted,
            Operator::Later => version > wanted,
        }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operator::Earlier => "<<",
            Operator::EarlierOrEqual => "<=",
            Operator::Equal => "=",
            Operator::LaterOrEqual => ">=",
            Operator::Later => ">>",
        })
    }
}

/// The part of a relation behind the colon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArchQualifier {
    /// `:any`: any architecture will do, if the package is `Multi-Arch: allowed`.
    Any,
    /// `:native`: the architecture of the build.
    Native,
    /// One architecture by name.
    Named(String),
}

/// One package name with what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Name of a real or a virtual package.
    pub name: String,
    /// `:any`, `:native` or `:amd64`.
    pub qualifier: Option<ArchQualifier>,
    /// `(>= 1.0)`.
    pub version: Option<(Operator, DebVersion)>,
    /// `[amd64 linux-any]` or `[!armhf]`: the relation counts only on these architectures; empty means on all.
    pub architectures: Vec<String>,
    /// `<!nocheck> <cross stage1>`: it counts only when one of the groups is true; empty means always.
    pub profiles: Vec<Vec<String>>,
}

/// Relations of which one is enough; the first is the maintainer's choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alternatives(pub Vec<Relation>);

/// Why the text of a relation field could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RelationError {
    /// A relation that is not of the grammar.
    #[error("`{text}` is not a package relation: {reason}")]
    Grammar {
        /// The relation, shortened.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A relation whose version is none.
    #[error("in the relation `{text}`")]
    Version {
        /// The relation, shortened.
        text: String,
        /// What is wrong with it.
        #[source]
        source: VersionError,
    },
}

impl Relation {
    /// `name`, any version, everywhere.
    pub fn named(name: &str) -> Self {
        Relation {
            name: name.to_owned(),
            qualifier: None,
            version: None,
            architectures: Vec::new(),
            profiles: Vec::new(),
        }
    }

    /// Whether the relation counts on the Linux architecture `arch` with no build profile active.
    pub fn counts_on(&self, arch: &str) -> bool {
        let named = |term: &str| arch_matches(term.strip_prefix('!').unwrap_or(term), arch);
        let arch_ok = match self.architectures.first() {
            None => true,
            // All terms of a list are negated or none is (Policy 7.1).
            Some(first) if first.starts_with('!') => !self.architectures.iter().any(|t| named(t)),
            Some(_) => self.architectures.iter().any(|t| named(t)),
        };
        let profile_ok = self.profiles.is_empty()
            || self.profiles.iter().any(|group| group.iter().all(|p| p.starts_with('!')));
        arch_ok && profile_ok
    }

    /// Whether a package of this version, under this name, is what the relation asks for. Architecture is not looked at.
    pub fn accepts(&self, version: &DebVersion) -> bool {
        self.version.as_ref().is_none_or(|(operator, wanted)| operator.holds(version, wanted))
    }
}

/// Whether the architecture wildcard or name `term` covers the Linux architecture `arch` (Policy 11.1.1).
fn arch_matches(term: &str, arch: &str) -> bool {
    match term.split_once('-') {
        _ if term == arch || term == "any" => true,
        Some((os, "any")) => os == "linux",
        Some(("any" | "linux", cpu)) => cpu == arch,
        _ => false,
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.qualifier {
            Some(ArchQualifier::Any) => f.write_str(":any")?,
            Some(ArchQualifier::Native) => f.write_str(":native")?,
            Some(ArchQualifier::Named(arch)) => write!(f, ":{arch}")?,
            None => {}
        }
        if let Some((operator, version)) = &self.version {
            write!(f, " ({operator} {version})")?;
        }
        if !self.architectures.is_empty() {
            write!(f, " [{}]", self.architectures.join(" "))?;
        }
        for group in &self.profiles {
            write!(f, " <{}>", group.join(" "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Alternatives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, relation) in self.0.iter().enumerate() {
            write!(f, "{}{relation}", if at == 0 { "" } else { " | " })?;
        }
        Ok(())
    }
}

/// Reads the value of a relation field. Empty parts between commas are left out, as dpkg does.
pub fn parse(text: &str) -> Result<Vec<Alternatives>, RelationError> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.split('|').map(|one| parse_one(one.trim())).collect::<Result<_, _>>().map(Alternatives)
        })
        .collect()
}

/// Reads one relation, without commas and bars.
pub fn parse_one(text: &str) -> Result<Relation, RelationError> {
    let shown = || text.escape_debug().take(120).collect::<String>();
    let refuse = |reason| Err(RelationError::Grammar { text: shown(), reason });
    let name_end = text.find(|c: char| c.is_whitespace() || "([<:".contains(c)).unwrap_or(text.len());
    let (name, mut rest) = text.split_at(name_end);
    // Provides in the wild carry names with capitals and underscores, so only what separates is excluded.
    let in_name = |b: u8| b.is_ascii_alphanumeric() || b"+-._".contains(&b);
    if name.is_empty() || name.len() > 200 || !name.bytes().all(in_name) {
        return refuse("it does not start with a package name");
    }
    let mut relation = Relation::named(name);
    if let Some(behind) = rest.strip_prefix(':') {
        let end = behind.find(|c: char| c.is_whitespace() || "([<".contains(c)).unwrap_or(behind.len());
        let (arch, behind) = behind.split_at(end);
        relation.qualifier = Some(match arch {
            "any" => ArchQualifier::Any,
            "native" => ArchQualifier::Native,
            arch if is_architecture_name(arch) => ArchQualifier::Named(arch.to_owned()),
            _ => return refuse("there is no architecture behind the colon"),
        });
        rest = behind;
    }
    rest = rest.trim_start();
    if let Some(behind) = rest.strip_prefix('(') {
        let Some((inside, behind)) = behind.split_once(')') else { return refuse("the `(` is not closed") };
        let inside = inside.trim();
        let operator_end = inside.find(|c: char| !"<>=".contains(c)).unwrap_or(inside.len());
        let (operator, version) = inside.split_at(operator_end);
        let operator = match operator {
            "<<" => Operator::Earlier,
            // Policy 7.1: the obsolete `<` and `>` meant "or equal".
            "<=" | "<" => Operator::EarlierOrEqual,
            "=" => Operator::Equal,
            ">=" | ">" => Operator::LaterOrEqual,
            ">>" => Operator::Later,
            _ => return refuse("the version has no operator of << <= = >= >>"),
        };
        let version = DebVersion::new(version.trim())
            .map_err(|source| RelationError::Version { text: shown(), source })?;
        relation.version = Some((operator, version));
        rest = behind.trim_start();
    }
    if let Some(behind) = rest.strip_prefix('[') {
        let Some((inside, behind)) = behind.split_once(']') else { return refuse("the `[` is not closed") };
        relation.architectures = inside.split_whitespace().map(str::to_owned).collect();
        let negated = relation.architectures.iter().filter(|a| a.starts_with('!')).count();
        if relation.architectures.is_empty() || (negated != 0 && negated != relation.architectures.len()) {
            return refuse("a list of architectures is empty or negates only some of them");
        }
        rest = behind.trim_start();
    }
    while let Some(behind) = rest.strip_prefix('<') {
        let Some((inside, behind)) = behind.split_once('>') else { return refuse("the `<` is not closed") };
        relation.profiles.push(inside.split_whitespace().map(str::to_owned).collect());
        rest = behind.trim_start();
    }
    if !rest.is_empty() {
        return refuse("there is something behind its end");
    }
    Ok(relation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_every_part_and_writes_it_back() {
        let text =
            "libc6 (>= 2.38), awk:any | mawk:amd64 (<< 1:2~rc1) [linux-any !x] <!nocheck> <cross stage1>";
        assert!(parse(text).is_err(), "a list that mixes negated and plain");
        let text =
            "libc6 (>= 2.38), awk:any | mawk:amd64 (<< 1:2~rc1) [linux-any arm64] <!nocheck> <cross stage1>";
        let all = parse(text).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[1].0.len(), 2);
        assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "), text);
        let loose = parse(" a(=1) ,, b  (  >>2 )[amd64]<!x>,\n c:native , d (> 1), e (< 1)").unwrap();
        let written: Vec<String> = loose.iter().map(ToString::to_string).collect();
        assert_eq!(written, ["a (= 1)", "b (>> 2) [amd64] <!x>", "c:native", "d (>= 1)", "e (<= 1)"]);
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn versions_are_held_against_the_operator() {
        let version = DebVersion::new("1.0-1").unwrap();
        for (relation, holds) in [
            ("a (<< 1.0-1)", false),
            ("a (<= 1.0-1)", true),
            ("a (= 1.0-1)", true),
            ("a (= 1.0)", false),
            ("a (>= 1.0)", true),
            ("a (>> 1.0-1)", false),
            ("a (>> 1.0-1~)", true),
            ("a", true),
        ] {
            assert_eq!(parse_one(relation).unwrap().accepts(&version), holds, "{relation}");
        }
    }

    #[test]
    fn restrictions_count_on_the_right_architecture() {
        for (relation, counts) in [
            ("a", true),
            ("a [amd64]", true),
            ("a [arm64]", false),
            ("a [!amd64]", false),
            ("a [!arm64 !i386]", true),
            ("a [linux-any]", true),
            ("a [hurd-any]", false),
            ("a [any-amd64]", true),
            ("a [any]", true),
            ("a <!nocheck>", true),
            ("a <cross>", false),
            ("a <cross> <!stage1>", true),
        ] {
            assert_eq!(parse_one(relation).unwrap().counts_on("amd64"), counts, "{relation}");
        }
    }

    #[test]
    fn refuses_what_is_no_relation_and_says_why() {
        for (bad, reason) in [
            ("a | ", "does not start with a package name"),
            ("(>= 1)", "does not start with a package name"),
            ("a (1)", "no operator"),
            ("a (>= 1", "`(` is not closed"),
            ("a (>= x)", "in the relation"),
            ("a [amd64", "`[` is not closed"),
            ("a []", "list of architectures is empty"),
            ("a <x", "`<` is not closed"),
            ("a b", "behind its end"),
            ("a:", "behind the colon"),
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains(reason), "{bad}: {error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "[a-z0-9(){}\\[\\]<>=!:|, .~é-]{0,40}") {
            if let Ok(all) = parse(&text) {
                for one in &all {
                    prop_assert_eq!(parse(&one.to_string()).unwrap(), vec![one.clone()]);
                }
            }
        }
    }
}
