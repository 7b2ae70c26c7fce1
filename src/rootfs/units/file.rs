//! The text of a unit file: sections of `Key=value` lines.

use std::collections::{BTreeMap, BTreeSet};

/// Values by section and key, in order, drop-ins included. An empty value takes back those before it, as in systemd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitFile {
    values: BTreeMap<(String, String), Vec<String>>,
    sections: BTreeSet<String>,
}

impl UnitFile {
    /// Adds a file or drop-in. Lines outside of this syntax are left out, as systemd does after a warning.
    pub fn add(&mut self, text: &str) {
        let mut section = String::new();
        let mut joined = String::new();
        for line in text.lines() {
            let line = line.trim();
            if line.starts_with(['#', ';']) || (line.is_empty() && joined.is_empty()) {
                continue;
            }
            if let Some(head) = line.strip_suffix('\\') {
                joined.push_str(head);
                joined.push(' ');
                continue;
            }
            joined.push_str(line);
            let line = std::mem::take(&mut joined);
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                name.clone_into(&mut section);
                self.sections.insert(section.clone());
            } else if let Some((key, value)) = line.split_once('=') {
                let values = self.values.entry((section.clone(), key.trim().to_owned())).or_default();
                match value.trim() {
                    "" => values.clear(),
                    value => values.push(value.to_owned()),
                }
            }
        }
    }

    /// Whether there is a section of that name.
    pub fn has(&self, section: &str) -> bool {
        self.sections.contains(section)
    }

    /// All values of a key, one per line of the file.
    pub fn values<'a>(&'a self, section: &str, key: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.values.get(&(section.to_owned(), key.to_owned())).into_iter().flatten().map(String::as_str)
    }

    /// All values of a key, split at blanks.
    pub fn words<'a>(&'a self, section: &str, key: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.values(section, key).flat_map(str::split_whitespace)
    }
}

/// systemd's words for yes.
pub(super) fn is_true(word: &str) -> bool {
    matches!(word.to_ascii_lowercase().as_str(), "1" | "yes" | "y" | "true" | "t" | "on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_lines_skips_comments_and_resets_on_empty_values() {
        let mut file = UnitFile::default();
        file.add("[Service]\nExecStart=/a \\\n# inside\n  -b\n; c\nExecStop=/x\n");
        assert_eq!(file.words("Service", "ExecStart").collect::<Vec<_>>(), ["/a", "-b"]);
        file.add("[Service]\nExecStart=\nExecStart=/c\n[Install]\n");
        assert_eq!(file.values("Service", "ExecStart").collect::<Vec<_>>(), ["/c"]);
        assert!(file.has("Install") && !file.has("Unit"));
    }
}
