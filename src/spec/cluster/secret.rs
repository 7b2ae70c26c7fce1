//! Secrets of a cluster: only where each is, never what it is.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::Failure;

/// Where a secret is. What it is, is asked for only when a node is given it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Secret {
    /// In a file; absolute.
    File(PathBuf),
    /// In a variable of kiln's environment.
    Env(String),
    /// What a program prints: the program and its arguments, such as `["pass", "show", "homelab/token"]`. It runs in the folder of
    /// cluster.toml.
    Command(Vec<String>),
}

impl std::fmt::Display for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Secret::File(path) => write!(f, "the file {}", path.display()),
            Secret::Env(name) => write!(f, "the variable {name}"),
            Secret::Command(words) => write!(f, "the command `{}`", words.join(" ")),
        }
    }
}

/// What a look into a secret found.
#[derive(Debug)]
pub enum Found {
    /// It is there, and what it should be.
    Good,
    /// It cannot be read here; on the machine that gives it to nodes it may.
    Missing(Failure),
    /// No node could use it.
    Wrong(Failure),
}

/// Looks into the secret of a key; commands run in the folder.
pub type Look<'a> = dyn Fn(&'static str, &Secret, &Path) -> Found + 'a;

/// The table of secrets, in which every text that is no reference is one.
pub(super) const TABLE: &str = "secret";
/// The keys of references.
pub(super) const WAYS: [&str; 3] = ["file", "env", "command"];

/// `text` with a `*` for each byte of what looks like a secret: errors quote lines of the file, and end in logs. The text keeps its
/// length, its lines and its meaning, and so does every place in it.
pub(super) fn mask(text: &str) -> String {
    let (table, _) = DeTable::parse_recoverable(text);
    let mut spans = Vec::new();
    for (key, value) in table.get_ref() {
        if key.get_ref() == TABLE {
            strings(value, &mut spans);
        } else {
            private_keys(value, &mut spans);
        }
    }
    let mut bytes = text.as_bytes().to_vec();
    for span in spans {
        let Some(part) = bytes.get_mut(span) else { continue };
        // Between the quotes, of which there are three for a text of several lines. Quotes within are masked as the rest is.
        let long = part.starts_with(b"\"\"\"") || part.starts_with(b"'''");
        let quotes = if long { 3 } else { 1 };
        let end = part.len().saturating_sub(quotes);
        for byte in part.iter_mut().take(end).skip(quotes).filter(|byte| !b"\n\r".contains(byte)) {
            *byte = b'*';
        }
    }
    // Bytes of a character of several become as many `*`.
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

/// Every text in the table of secrets that does not stand behind the key of a reference.
fn strings(value: &Spanned<DeValue<'_>>, spans: &mut Vec<Range<usize>>) {
    match value.get_ref() {
        DeValue::Table(table) => {
            for (key, value) in table {
                let reference = WAYS.iter().any(|way| key.get_ref() == way);
                if !reference {
                    strings(value, spans);
                }
            }
        }
        DeValue::Array(items) => items.iter().for_each(|item| strings(item, spans)),
        DeValue::String(_) => spans.push(value.span()),
        _ => {}
    }
}

/// The private half of a key where the public one belongs.
fn private_keys(value: &Spanned<DeValue<'_>>, spans: &mut Vec<Range<usize>>) {
    match value.get_ref() {
        DeValue::Table(table) => table.iter().for_each(|(_, value)| private_keys(value, spans)),
        DeValue::Array(items) => items.iter().for_each(|item| private_keys(item, spans)),
        DeValue::String(text) if crate::spec::ssh::is_private(text) => spans.push(value.span()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_masked_and_every_place_stays_where_it_is() {
        let text = "name = \"a\"\n[secret]\ntoken = \"sésame\"\nother = { text = 'x y', file = \"f\" }\nthird = \"\"\"one\ntwo\"\"\"\n";
        let masked = mask(text);
        assert_eq!(
            masked,
            "name = \"a\"\n[secret]\ntoken = \"*******\"\nother = { text = '***', file = \"f\" }\nthird = \"\"\"***\n***\"\"\"\n"
        );
        assert_eq!(masked.len(), text.len());
        assert!(mask("ssh-keys = [\"-----BEGIN OPENSSH PRIVATE KEY-----\"]").ends_with("*\"]"));
    }

    #[test]
    fn a_file_that_ends_in_the_middle_is_masked_too() {
        let masked = mask("[secret]\ntoken = \"sesame\"\n[node.a\n");
        assert!(!masked.contains("sesame"), "{masked}");
    }
}
