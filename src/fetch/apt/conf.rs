//! apt's configuration, apt.conf(5): a tree of options, here a flat list of paths such as `acquire::http::proxy`.
//!
//! The grammar is that of `ReadConfigFile` in apt-pkg/contrib/configuration.cc: braces nest, `::` joins, a value is quoted or one word,
//! `//` and `#` begin comments outside of quotes, `/* */` may span lines, `#clear` and `#include` are commands. A file that apt cannot
//! read stops apt; here what stands before the mistake counts, and the mistake is noted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::{LeftOut, parts};

/// Files that include each other, at most.
const DEPTH: usize = 10;

/// A value and where it was set, `file:line`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::fetch) struct Value {
    pub(in crate::fetch) text: String,
    pub(in crate::fetch) at: String,
}

/// What the files say. `Debug` is not derived: a proxy's URL may hold a password.
#[derive(Clone, Default, PartialEq, Eq)]
pub(in crate::fetch) struct Conf {
    values: BTreeMap<String, Value>,
}

impl std::fmt::Debug for Conf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl Conf {
    /// Reads the file that `APT_CONFIG` names, then `apt.conf.d`, then `apt.conf` of the folder `apt`.
    pub(super) fn of_machine(apt: &Path, left_out: &mut Vec<LeftOut>) -> Self {
        let mut conf = Conf::default();
        if let Some(file) = std::env::var_os("APT_CONFIG").filter(|v| !v.is_empty()) {
            conf.read(Path::new(&file), 0, left_out);
        }
        for file in parts(&apt.join("apt.conf.d"), &["conf", ""], left_out) {
            conf.read(&file, 0, left_out);
        }
        let main = apt.join("apt.conf");
        if main.is_file() {
            conf.read(&main, 0, left_out);
        }
        conf
    }

    /// That of one text, for tests.
    #[cfg(test)]
    pub(in crate::fetch) fn of_text(text: &str, file: &Path) -> Self {
        let mut conf = Conf::default();
        conf.parse(text, file, 0, &mut Vec::new()).unwrap();
        conf
    }

    /// The value of an option; none and an empty one are the same to apt.
    pub(in crate::fetch) fn find(&self, path: &str) -> Option<&Value> {
        self.values.get(&path.to_ascii_lowercase()).filter(|value| !value.text.is_empty())
    }

    fn clear(&mut self, path: &str) {
        let path = path.to_ascii_lowercase();
        let below = format!("{path}::");
        self.values.retain(|name, _| *name != path && !name.starts_with(&below));
    }

    fn read(&mut self, file: &Path, depth: usize, left_out: &mut Vec<LeftOut>) {
        let bytes = match fs::read(file) {
            Ok(bytes) => bytes,
            Err(error) => return left_out.push(LeftOut::unreadable(file, &error)),
        };
        let text = String::from_utf8_lossy(&bytes);
        if let Err((line, why)) = self.parse(&text, file, depth, left_out) {
            left_out.push(LeftOut::malformed(
                format!("{}:{line}", file.display()),
                format!("{why}; what follows is not read"),
            ));
        }
    }

    pub(super) fn parse(
        &mut self,
        text: &str,
        file: &Path,
        depth: usize,
        left_out: &mut Vec<LeftOut>,
    ) -> Result<(), (usize, &'static str)> {
        let mut scopes: Vec<String> = Vec::new();
        let mut parent = String::new();
        let mut buffer = String::new();
        let mut in_comment = false;
        let mut number = 0;
        for line in text.lines() {
            number += 1;
            let content = without_comments(line.trim(), &mut in_comment);
            let mut quoted = false;
            let mut start = 0;
            for (at, c) in content.char_indices() {
                quoted ^= c == '"';
                if quoted || !matches!(c, '{' | ';' | '}') {
                    continue;
                }
                join(&mut buffer, &content[start..at]);
                start = at + 1;
                if buffer.is_empty() {
                    match c {
                        '{' => return Err((number, "a block starts without a name")),
                        '}' => parent = scopes.pop().unwrap_or_default(),
                        _ => {}
                    }
                    continue;
                }
                let (mut tag, word) = words(&buffer).map_err(|why| (number, why))?;
                buffer.clear();
                let mut value = word;
                if c == '{' {
                    scopes.push(parent.clone());
                    parent = path(&parent, &tag);
                    tag.clear();
                } else if value.is_none() {
                    // One word alone is an entry of a list.
                    value = Some(std::mem::take(&mut tag));
                }
                if let Some(command) = tag.strip_prefix('#') {
                    let argument = value.unwrap_or_default();
                    if !parent.is_empty() {
                        return Err((number, "a command may stand outside of blocks only"));
                    }
                    match command {
                        "clear" => self.clear(&argument),
                        "include" => self.include(&argument, depth, left_out).map_err(|why| (number, why))?,
                        "x-apt-configure-index" => {}
                        _ => return Err((number, "a command that apt does not have")),
                    }
                } else if let Some(text) = value {
                    let name = if c == '{' { parent.clone() } else { path(&parent, &tag) };
                    if text == "#clear" && tag.is_empty() {
                        return Err((number, "#clear needs the name of an option"));
                    }
                    // Entries of lists have no name; none of them matters here.
                    if !tag.is_empty() || c == '{' {
                        let at = format!("{}:{number}", file.display());
                        self.values.insert(name.to_ascii_lowercase(), Value { text, at });
                    }
                }
                if c == '}' {
                    parent = scopes.pop().unwrap_or_default();
                }
            }
            join(&mut buffer, &content[start..]);
        }
        if buffer.is_empty() { Ok(()) } else { Err((number, "the last option does not end with `;`")) }
    }

    fn include(
        &mut self,
        argument: &str,
        depth: usize,
        left_out: &mut Vec<LeftOut>,
    ) -> Result<(), &'static str> {
        if depth >= DEPTH {
            return Err("files include each other too deeply");
        }
        let files = if argument.len() > 2 && argument.ends_with('/') {
            parts(Path::new(argument), &["conf", ""], left_out)
        } else {
            vec![PathBuf::from(argument)]
        };
        for file in files {
            self.read(&file, depth + 1, left_out);
        }
        Ok(())
    }
}

fn path(parent: &str, tag: &str) -> String {
    if parent.is_empty() { tag.to_owned() } else { format!("{parent}::{tag}") }
}

/// What follows on another line is parted by a space.
fn join(buffer: &mut String, text: &str) {
    let text = text.trim();
    if !buffer.is_empty() && !text.is_empty() {
        buffer.push(' ');
    }
    buffer.push_str(text);
}

/// A line without its comments; quotes protect what looks like one.
fn without_comments(line: &str, in_comment: &mut bool) -> String {
    let mut out = String::new();
    let mut quoted = false;
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        if *in_comment {
            match rest.split_once("*/") {
                Some((_, after)) => {
                    rest = after;
                    *in_comment = false;
                    continue;
                }
                None => break,
            }
        }
        let command =
            ["#clear", "#include", "#x-apt-configure-index"].iter().any(|word| rest.starts_with(word));
        if !quoted && (rest.starts_with("//") || (c == '#' && !command)) {
            break;
        }
        if !quoted && rest.starts_with("/*") {
            *in_comment = true;
            rest = &rest[2..];
            continue;
        }
        quoted ^= c == '"';
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// The name of an option and its value, if there is one.
fn words(text: &str) -> Result<(String, Option<String>), &'static str> {
    let mut rest = text;
    let tag = super::quote_word(&mut rest).ok_or("an option cannot be read")?;
    if rest.is_empty() {
        return Ok((tag, None));
    }
    if let Some(word) = c_word(rest) {
        return Ok((tag, Some(word)));
    }
    let word = super::quote_word(&mut rest).ok_or("a value cannot be read")?;
    if rest.is_empty() { Ok((tag, Some(word))) } else { Err("something follows the value of an option") }
}

/// Quoted strings, parted by blanks that count as one; `None` if something is not quoted.
fn c_word(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (inside, after) = rest.strip_prefix('"')?.split_once('"')?;
        out.push_str(inside);
        rest = after.trim_start();
        if rest.len() < after.len() && !rest.is_empty() {
            out.push(' ');
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Conf, Result<(), (usize, &'static str)>, Vec<LeftOut>) {
        let (mut conf, mut left_out) = (Conf::default(), Vec::new());
        let result = conf.parse(text, Path::new("f"), 0, &mut left_out);
        (conf, result, left_out)
    }

    #[test]
    fn the_tree_is_read_as_apt_reads_it() {
        let (conf, result, _) = parse(
            "Acquire { http { Proxy \"http://p1:1\"; Proxy::h.example \"DIRECT\"; }; };\n\
             Acquire::https::CaInfo \"/x\"; Acquire::http::Proxy \"http://p2\" { g.example \"http://g\"; };\n\
             /* a\n b */ Acquire::https { Verify-Peer \"false\"; // c\n # d\n Empty \"\";\n\
             SslCert\n  \"/a b\"\n; };\n#clear Acquire::https::Verify-Peer;\nacquire::HTTPS::host.example::CaInfo \"/y\"; /* x */\n\
             List { \"a\"; \"b;}\"; };\nL:: \"c\";",
        );
        assert_eq!(result, Ok(()));
        let of = |path: &str| conf.find(path).map(|value| (value.text.as_str(), value.at.as_str()));
        assert_eq!(of("Acquire::http::Proxy"), Some(("http://p2", "f:2")));
        assert_eq!(of("acquire::http::proxy::H.example"), Some(("DIRECT", "f:1")));
        assert_eq!(of("Acquire::http::Proxy::g.example"), Some(("http://g", "f:2")));
        assert_eq!(of("Acquire::https::CaInfo"), Some(("/x", "f:2")));
        assert_eq!(of("Acquire::https::host.example::cainfo"), Some(("/y", "f:11")));
        assert_eq!(of("Acquire::https::SslCert"), Some(("/a b", "f:9")));
        assert_eq!((of("Acquire::https::Verify-Peer"), of("Acquire::https::Empty")), (None, None));
    }

    #[test]
    fn mistakes_are_noted_with_their_line_and_without_values() {
        for (text, line, why) in [
            ("A \"1\";\nB \"s3cr3t\" \"2\" x;", 2, "something follows"),
            ("A \"1\";\n{ B \"1\"; };", 2, "without a name"),
            ("A \"1\";\nB \"s3cr3t\"\n", 2, "does not end"),
            ("A { #clear B; };", 1, "outside of blocks"),
            ("#clear;", 1, "needs the name"),
            ("A \"1\";\nB \"s3cr3t;", 2, "does not end"),
        ] {
            let (conf, result, _) = parse(text);
            let (at, reason) = result.unwrap_err();
            assert!(at == line && reason.contains(why), "{text}: {at} {reason}");
            assert!(!format!("{conf:?}").contains("s3cr3t"));
        }
    }

    #[test]
    fn files_are_included_and_a_circle_ends() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/a.conf"), "A \"1\";").unwrap();
        fs::write(dir.path().join("d/b.txt"), "B \"1\";").unwrap();
        let circle = dir.path().join("c");
        fs::write(&circle, format!("C \"1\";\n#include \"{}\";\n", circle.display())).unwrap();
        let (conf, result, left_out) =
            parse(&format!("#include \"{}/d/\";\n#include \"{}\";", dir.path().display(), circle.display()));
        assert_eq!(result, Ok(()));
        assert!(conf.find("a").is_some() && conf.find("b").is_none() && conf.find("c").is_some());
        assert!(left_out.iter().any(|l| l.to_string().contains("too deeply")), "{left_out:?}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z:{}\";#/* \n]{0,80}") {
            let _ = parse(&text);
        }
    }
}
