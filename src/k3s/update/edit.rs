//! Edits of TOML files that people wrote: single values are put in the places of others, so that comments and order stay.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use fs_err as fs;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::version::Version;
use crate::error::{Failure, Kind};

/// A file of a project, as it is and as it will be.
#[derive(Debug)]
pub(super) struct Edit {
    /// Its path in the project.
    pub(super) name: String,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Edit {
    /// Reads the file `name` of the project in `dir`.
    pub(super) fn open(dir: &Path, name: &str) -> Result<Self> {
        let old = fs::read(dir.join(name))
            .map_err(|error| Failure::new(Kind::Input, format!("{name} cannot be read")).because(error))?;
        Ok(Edit { name: name.to_owned(), new: old.clone(), old })
    }

    /// The text as it will be.
    pub(super) fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.new).map_err(|error| {
            Failure::new(Kind::Input, format!("{} is no text", self.name)).because(error).into()
        })
    }

    /// Whether anything changes.
    pub(super) fn changes(&self) -> bool {
        self.old != self.new
    }

    /// Other content altogether.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.new = bytes.to_vec();
    }

    /// Puts another text in the place of the one at `key`.
    ///
    /// # Errors
    /// There is none, or the new one could not stand between quotes.
    pub(super) fn set(&mut self, key: &[&str], value: &str) -> Result<()> {
        if value.contains(['"', '\\']) || value.chars().any(char::is_control) {
            return Err(self.refuse(key, format!("`{}` is no plain text", value.escape_debug())));
        }
        let (_, span) = self.find(key)?;
        self.splice(span, &format!("\"{value}\""));
        Ok(())
    }

    /// Puts the version `new` in the place of `old` in the text at `key`, however it is spelled there.
    ///
    /// # Errors
    /// `old` is not in it.
    pub(super) fn replace(&mut self, key: &[&str], old: &Version, new: &Version) -> Result<()> {
        let (_, span) = self.find(key)?;
        let text = self.text()?.get(span.clone()).unwrap_or_default();
        let moved = moved(text, old, new);
        let moved = moved
            .ok_or_else(|| self.refuse(key, format!("it does not name {old}, so it cannot be moved")))?;
        self.splice(span, &moved);
        Ok(())
    }

    /// Takes out the line with `key` and its value.
    ///
    /// # Errors
    /// It is not there, or something else stands on its line.
    pub(super) fn remove(&mut self, key: &[&str]) -> Result<()> {
        let (start, span) = self.find(key)?;
        let text = self.text()?;
        let from = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let to = text[span.end..].find('\n').map_or(text.len(), |at| span.end + at + 1);
        let rest = text[span.end..to].trim();
        if !text[from..start].trim().is_empty() || !(rest.is_empty() || rest.starts_with('#')) {
            return Err(self.refuse(key, "something else stands on its line; take it out by hand".to_owned()));
        }
        self.splice(from..to, "");
        Ok(())
    }

    fn splice(&mut self, span: Range<usize>, with: &str) {
        self.new.splice(span, with.bytes());
    }

    /// Where the key begins and where its value stands; items of arrays go by their numbers.
    fn find(&self, key: &[&str]) -> Result<(usize, Range<usize>)> {
        let missing = || self.refuse(key, "it is not there".to_owned());
        let table = DeTable::parse(self.text()?).map_err(|error| {
            Failure::new(Kind::Input, format!("{} cannot be used", self.name))
                .because(anyhow::anyhow!("{error}"))
        })?;
        let (first, rest) = key.split_first().ok_or_else(missing)?;
        let (mut start, mut value) = item(table.get_ref(), first).ok_or_else(missing)?;
        for part in rest {
            let below = match value.get_ref() {
                DeValue::Table(table) => item(table, part),
                DeValue::Array(array) => part
                    .parse::<usize>()
                    .ok()
                    .and_then(|at| array.get(at))
                    .map(|item| (item.span().start, item)),
                _ => None,
            };
            (start, value) = below.ok_or_else(missing)?;
        }
        Ok((start, value.span()))
    }

    fn refuse(&self, key: &[&str], why: String) -> anyhow::Error {
        Failure::new(Kind::Input, format!("{}: `{}`: {why}", self.name, key.join("."))).into()
    }
}

fn item<'a, 'i>(table: &'a DeTable<'i>, key: &str) -> Option<(usize, &'a Spanned<DeValue<'i>>)> {
    let (name, value) = table.iter().find(|(name, _)| name.get_ref() == key)?;
    Some((name.span().start, value))
}

/// `text` with the version `new` in the place of `old`, as it is or as URLs have it; nothing if it is not there.
pub(super) fn moved(text: &str, old: &Version, new: &Version) -> Option<String> {
    let mut result = text.to_owned();
    for (from, to) in [(old.encoded(), new.encoded()), (old.to_string(), new.to_string())] {
        // A longer number is another version.
        let whole = |at: usize| !text[at + from.len()..].starts_with(|c: char| c.is_ascii_digit());
        if text.match_indices(&from).all(|(at, _)| whole(at)) {
            result = result.replace(&from, &to);
        }
    }
    (result != text).then_some(result)
}

/// Writes all files of `edits` that change in the project in `dir`: all of them or none. Gives their names.
///
/// # Errors
/// One cannot be written, or somebody else changed it meanwhile.
pub(super) fn write(dir: &Path, edits: &[Edit]) -> Result<Vec<String>> {
    let mut ready = Vec::new();
    for edit in edits.iter().filter(|edit| edit.changes()) {
        let path = dir.join(&edit.name);
        if fs::read(&path)? != edit.old {
            let text = format!("{} was changed by somebody else meanwhile; nothing is written", edit.name);
            return Err(Failure::new(Kind::Input, text).hint("run the same command again").into());
        }
        let folder = path.parent().context("a file of a project lies in a folder")?;
        let mut temp = tempfile::Builder::new().prefix(".kiln.update.").tempfile_in(folder)?;
        std::io::Write::write_all(&mut temp, &edit.new)?;
        fs::set_permissions(temp.path(), fs::metadata(&path)?.permissions())?;
        temp.as_file().sync_all()?;
        ready.push((temp, path, edit));
    }
    let mut written: Vec<&Edit> = Vec::new();
    for (temp, path, edit) in ready {
        if let Err(error) = temp.persist(&path) {
            // All that can go wrong here is a folder that was taken away: what was written before is put back as well as can be.
            written.iter().for_each(|edit| drop(fs::write(dir.join(&edit.name), &edit.old)));
            return Err(error.error).with_context(|| format!("writing {}", edit.name));
        }
        written.push(edit);
    }
    Ok(written.iter().map(|edit| edit.name.clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# K3s v1.33.3+k3s1, and é
description = "K3s v1.33.3+k3s1"

[k3s]
version = 'v1.33.3+k3s1' # this one
source = ["k3s"]   # where nobody has it
[k3s.release]
urls = ["https://a.example/v1.33.3%2Bk3s1", "https://b.example/v1.33.3+k3s10"]
amd64 = { name = "k3s", sha256 = "abc" } # the file
"#;

    fn edit(text: &str) -> Edit {
        Edit { name: "images/k3s.toml".into(), old: text.into(), new: text.into() }
    }

    fn versions() -> (Version, Version) {
        ("v1.33.3+k3s1".parse().unwrap(), "v1.34.0+k3s2".parse().unwrap())
    }

    #[test]
    fn single_values_move_and_all_else_stays() {
        let (old, new) = versions();
        let mut edit = edit(TEXT);
        edit.replace(&["description"], &old, &new).unwrap();
        edit.set(&["k3s", "version"], new.as_str()).unwrap();
        edit.replace(&["k3s", "release", "urls", "0"], &old, &new).unwrap();
        edit.set(&["k3s", "release", "amd64", "sha256"], "def").unwrap();
        edit.remove(&["k3s", "source"]).unwrap();
        let expected = TEXT
            .replace("\"K3s v1.33.3+k3s1\"", "\"K3s v1.34.0+k3s2\"")
            .replace("'v1.33.3+k3s1'", "\"v1.34.0+k3s2\"")
            .replace("v1.33.3%2Bk3s1", "v1.34.0%2Bk3s2")
            .replace("\"abc\"", "\"def\"")
            .replace("source = [\"k3s\"]   # where nobody has it\n", "");
        assert_eq!(edit.text().unwrap(), expected);
    }

    #[test]
    fn what_is_not_there_is_named_with_its_file() {
        let (old, new) = versions();
        let mut edit = edit(TEXT);
        let errors = [
            (
                edit.set(&["k3s", "release", "arm64", "sha256"], "x"),
                "`k3s.release.arm64.sha256`: it is not there",
            ),
            (edit.set(&["k3s", "version", "x"], "x"), "`k3s.version.x`: it is not there"),
            (edit.set(&["k3s", "version"], "a\"b"), "is no plain text"),
            (edit.replace(&["k3s", "release", "urls", "1"], &old, &new), "does not name v1.33.3+k3s1"),
            (edit.remove(&["k3s", "release", "amd64", "name"]), "something else stands on its line"),
        ];
        for (result, why) in errors {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(why) && error.starts_with("images/k3s.toml: "), "{error}");
        }
        assert!(!edit.changes());
    }

    #[test]
    fn files_are_written_together_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "same"] {
            fs::write(dir.path().join(name), "old").unwrap();
        }
        let open = |name: &str| Edit::open(dir.path(), name).unwrap();
        let mut edits = [open("a"), open("b"), open("same")];
        edits[0].put(b"new");
        edits[1].put(b"new");
        fs::write(dir.path().join("b"), "theirs").unwrap();
        let error = write(dir.path(), &edits).unwrap_err().to_string();
        assert!(error.contains("b was changed by somebody else"), "{error}");
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left behind");
        fs::write(dir.path().join("b"), "old").unwrap();
        assert_eq!(write(dir.path(), &edits).unwrap(), ["a", "b"]);
        assert_eq!(fs::read(dir.path().join("b")).unwrap(), b"new");
    }
}
