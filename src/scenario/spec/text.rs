//! Scripts and outputs with `{name}` in them.

use std::collections::BTreeMap;

/// Text in which `{name}` stands for what an earlier step saved under that name, and `{node}` for the name of the node it is
/// used on. Any other brace is itself: shell's `${x}` and awk's `{print}` need no escape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    source: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Plain(String),
    Reference(String),
}

/// What `{node}` is.
pub const NODE: &str = "node";

impl Text {
    /// Reads `source`; only `known` names are references.
    pub fn new(source: &str, known: &dyn Fn(&str) -> bool) -> Self {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = source;
        while let Some(open) = rest.find('{') {
            let (before, from) = rest.split_at(open);
            plain.push_str(before);
            let inner = from.get(1..).unwrap_or_default();
            match inner.split_once('}') {
                Some((name, after)) if !plain.ends_with('$') && (name == NODE || known(name)) => {
                    if !plain.is_empty() {
                        parts.push(Part::Plain(std::mem::take(&mut plain)));
                    }
                    parts.push(Part::Reference(name.to_owned()));
                    rest = after;
                }
                _ => {
                    plain.push('{');
                    rest = inner;
                }
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Plain(plain));
        }
        Text { source: source.to_owned(), parts }
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The names it refers to, `node` left out.
    pub fn references(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Reference(name) if name != NODE => Some(name.as_str()),
            _ => None,
        })
    }

    /// The text for `node`. `saved` has what was saved, by name and node; a node's own counts, else the only one there is.
    ///
    /// # Errors
    /// The name of which nothing, or nothing clear, was saved.
    pub fn fill(&self, node: &str, saved: &Saved) -> Result<String, String> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Plain(plain) => text.push_str(plain),
                Part::Reference(name) if name == NODE => text.push_str(node),
                Part::Reference(name) => {
                    text.push_str(saved.get(name, node).ok_or_else(|| name.clone())?);
                }
            }
        }
        Ok(text)
    }
}

/// What steps saved: trimmed outputs by name and node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved(BTreeMap<String, BTreeMap<String, String>>);

impl Saved {
    /// Keeps `value` as what `node` saved under `name`; a later one takes the place of an earlier one.
    pub fn set(&mut self, name: &str, node: &str, value: &str) {
        self.0.entry(name.to_owned()).or_default().insert(node.to_owned(), value.trim().to_owned());
    }

    /// What `name` means on `node`: its own value, else the only one there is.
    pub fn get(&self, name: &str, node: &str) -> Option<&str> {
        let values = self.0.get(name)?;
        let only = || if values.len() == 1 { values.values().next() } else { None };
        values.get(node).or_else(only).map(String::as_str)
    }
}
