//! Reader of [sysusers.d](https://www.freedesktop.org/software/systemd/man/latest/sysusers.d.html) files.
//!
//! A file of the same name in `/etc/sysusers.d` replaces the one in `/usr/lib/sysusers.d`. Lines are `TYPE NAME ID GECOS HOME SHELL`
//! with quotes; types `u`, `u!`, `g`, `m` and `r`. `r` only tells systemd where to look for free ids and is of no use
//! here, where no id is looked for.

use std::collections::BTreeMap;

use crate::rootfs::step::{StepError, names, text};
use crate::tree::{Tree, TreePath};

/// Folders, the later ones winning.
const FOLDERS: [&str; 2] = ["usr/lib/sysusers.d", "etc/sysusers.d"];
/// Shell of a user whose line names none.
const NO_SHELL: &str = "/usr/sbin/nologin";

/// One line that asks for something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The file it stands in.
    pub path: TreePath,
    /// Its number, from 1.
    pub number: usize,
    /// What it asks for.
    pub what: What,
}

impl Line {
    /// The file, absolute, for messages.
    pub fn file(&self) -> String {
        format!("/{}", self.path)
    }
}

/// Where an id comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Id {
    /// `-`: any free one.
    Open,
    /// A number.
    Fixed(u32),
    /// A path: the owner of that file.
    OwnerOf(String),
}

/// What a line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// `u`, `u!`
    User {
        /// Login name.
        name: String,
        /// User id.
        id: Id,
        /// Primary group by name or number if it is not the one of the user's own name.
        group: Option<String>,
        /// Comment.
        gecos: String,
        /// Home directory.
        home: String,
        /// Login shell.
        shell: String,
        /// `u!`: the account is expired.
        expired: bool,
    },
    /// `g`
    Group {
        /// Its name.
        name: String,
        /// Group id.
        id: Id,
    },
    /// `m`
    Member {
        /// Who.
        user: String,
        /// Becomes a member of this.
        group: String,
    },
}

/// All lines of all files, sorted by file name, then line.
pub fn read(tree: &Tree) -> Result<Vec<Line>, StepError> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for folder in FOLDERS {
        for name in names(tree, folder).into_iter().filter(|n| n.ends_with(".conf")) {
            files.insert(name.clone(), format!("{folder}/{name}"));
        }
    }
    let mut lines = Vec::new();
    for path in files.into_values() {
        // A link to /dev/null switches the file off.
        let Some(text) = text(tree, &path)? else { continue };
        let path = TreePath::new(&path)?;
        for (index, line) in text.lines().enumerate() {
            match parse(line) {
                Ok(None) => {}
                Ok(Some(what)) => lines.push(Line { path: path.clone(), number: index + 1, what }),
                Err(reason) => return Err(StepError::Line { path, line: index + 1, reason }),
            }
        }
    }
    Ok(lines)
}

/// One line; `None` for blank lines, comments and `r`.
pub fn parse(line: &str) -> Result<Option<What>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let mut fields = words(line)?.into_iter().map(|w| if w == "-" { String::new() } else { w });
    let mut next = || fields.next().unwrap_or_default();
    let (kind, name, id) = (next(), plain(next())?, plain(next())?);
    if name.is_empty() && kind != "r" {
        return Err("a name is missing in the second field".to_owned());
    }
    match kind.as_str() {
        "u" | "u!" => {
            let (id, group) = match id.split_once(':') {
                Some((id, group)) if !id.starts_with('/') => (id, Some(group.to_owned())),
                _ => (id.as_str(), None),
            };
            let (gecos, home, shell) = (plain(next())?, plain(next())?, plain(next())?);
            let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
            if [&gecos, &home, &shell].iter().any(|f| f.contains([':', '\n'])) {
                return Err("a field holds a `:`, which would end it in /etc/passwd".to_owned());
            }
            let id = parse_id(id)?;
            let home = or(home, "/");
            let shell = or(shell, if id == Id::Fixed(0) { "/bin/sh" } else { NO_SHELL });
            Ok(Some(What::User { name, id, group, gecos, home, shell, expired: kind == "u!" }))
        }
        "g" => Ok(Some(What::Group { name, id: parse_id(&id)? })),
        "m" if id.is_empty() => Err("`m` needs a user and a group".to_owned()),
        "m" => Ok(Some(What::Member { user: name, group: id })),
        "r" => Ok(None),
        other => Err(format!("`{other}` is no type: u, u!, g, m and r are")),
    }
}

fn parse_id(text: &str) -> Result<Id, String> {
    if text.is_empty() || text == "-" {
        Ok(Id::Open)
    } else if text.starts_with('/') {
        Ok(Id::OwnerOf(text.to_owned()))
    } else {
        let number = text.parse().ok().filter(|n| *n < u32::MAX - 1);
        number.map(Id::Fixed).ok_or_else(|| format!("`{text}` is no id: a number, a path or `-` is"))
    }
}

/// Replaces `%%`. Other specifiers depend on the machine that runs, so that a build has no value for them.
fn plain(text: String) -> Result<String, String> {
    let rest = text.replace("%%", "");
    match rest.find('%') {
        Some(_) => Err(format!("`{text}` has a specifier whose value is not known in a build")),
        None => Ok(text.replace("%%", "%")),
    }
}

/// Splits at blanks; `"…"` and `'…'` keep blanks, `\` keeps the next character.
fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', _) => word.get_or_insert_default().extend(chars.next()),
            (c, Some(q)) if c == q => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::step::put;
    use crate::tree::Entry;

    #[test]
    fn reads_every_form_of_line() {
        let user = |line: &str| match parse(line).unwrap().unwrap() {
            What::User { name, id, group, gecos, home, shell, expired } => {
                (name, id, group, gecos, home, shell, expired)
            }
            other => panic!("{other:?}"),
        };
        let s = str::to_owned;
        assert_eq!(
            user("u! a 5:60 \"A B\" /home /bin/sh"),
            (s("a"), Id::Fixed(5), Some(s("60")), s("A B"), s("/home"), s("/bin/sh"), true)
        );
        assert_eq!(user("u a -:nogroup").2, Some(s("nogroup")));
        assert_eq!(user("u a /usr/bin/x").1, Id::OwnerOf(s("/usr/bin/x")));
        assert_eq!(user("u root 0").5, "/bin/sh");
        assert_eq!(parse("g kvm"), Ok(Some(What::Group { name: s("kvm"), id: Id::Open })));
        assert_eq!(parse("r - 500-900"), Ok(None));
        for bad in ["x a", "u", "u a b", "u a - \"x", "m a", "u %u -", "u a - \"x:y\""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_in_etc_replaces_the_one_of_a_package() {
        let mut tree = Tree::new();
        put(&mut tree, "usr/lib/sysusers.d/a.conf", Entry::file(0o644, "u a 1", "p")).unwrap();
        put(&mut tree, "usr/lib/sysusers.d/b.conf", Entry::file(0o644, "u b 2", "p")).unwrap();
        put(&mut tree, "etc/sysusers.d/a.conf", Entry::symlink("/dev/null", "p")).unwrap();
        let lines = read(&tree).unwrap();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].file(), "/usr/lib/sysusers.d/b.conf");
    }
}
