//! YAML as the programs of a node read it: K3s' `config.yaml` and `registries.yaml`, through Go's gopkg.in/yaml.v2.
//!
//! The parser is a crate's; here its events become a tree that knows its lines, with the types that yaml.v2 gives to plain words (YAML 1.1:
//! `yes` and `on` are booleans). What yaml.v2 takes silently in an unexpected way (a key twice, a second document) is a mistake here.
//!
//! These files hold passwords: no message has any of their text, only lines, columns and kinds of values.

use std::collections::BTreeMap;
use std::fmt;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

/// The most nodes of a document, those behind aliases counted each time, and the deepest nesting: far more than any real file has.
const MOST: usize = 10_000;
const DEEPEST: usize = 64;

/// A value and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Its line, from 1 on.
    pub line: usize,
    /// Its column in characters, from 1 on.
    pub column: usize,
}

/// A value with the type that yaml.v2 gives to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `null`, `~` or nothing at all.
    Null,
    /// `true`, `yes`, `on` or their opposite, and how it was written.
    Bool(bool, String),
    /// A number as it was written.
    Number(String),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// Keys and values in the order of the file. No key is there twice.
    Map(Vec<(Node, Node)>),
}

/// What is wrong with a text of YAML. It quotes nothing of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1 on.
    pub line: usize,
    /// The column in characters, from 1 on.
    pub column: usize,
    /// The reason, half a sentence.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.why)
    }
}

impl std::error::Error for Problem {}

impl Node {
    /// What kind of value it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(..) => "true or false",
            Value::Number(_) => "a number",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a table of keys and values",
        }
    }

    /// What a Go program gets that reads it as a string: numbers and booleans as they were written. `None` for lists, tables and nothing.
    pub fn scalar(&self) -> Option<&str> {
        match &self.value {
            Value::Bool(_, text) | Value::Number(text) | Value::Text(text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// The value of a key, where it is a table that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let Value::Map(pairs) = &self.value else { return None };
        pairs.iter().find(|(name, _)| name.scalar() == Some(key)).map(|(_, value)| value)
    }

    /// A problem at this place.
    pub fn problem(&self, why: impl Into<String>) -> Problem {
        Problem { line: self.line, column: self.column, why: why.into() }
    }
}

/// Reads the one document of `bytes`; an empty text is [`Value::Null`].
///
/// # Errors
/// The first mistake and its place. It quotes nothing of the text.
pub fn read(bytes: &[u8]) -> Result<Node, Problem> {
    let text = text(bytes)?;
    let mut tree = Tree::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            // Its words quote one character at most, in this one message.
            let why = match error.info() {
                info if info.starts_with("unexpected character") => {
                    "a value cannot begin with this character"
                }
                "simple key expect ':'" | "simple key expected" => {
                    "a key has no `:` behind it, here or in the line before"
                }
                "mapping values are not allowed in this context" => {
                    "`: ` cannot stand here: put the value into quotes, or look at how far the line is indented"
                }
                info => info,
            };
            at(*error.marker(), why)
        })?;
        tree.event(event, span.start)?;
    }
    Ok(tree.root.unwrap_or(Node { value: Value::Null, line: 1, column: 1 }))
}

/// The text without a byte order mark; what is no text at all is refused with its place.
fn text(bytes: &[u8]) -> Result<&str, Problem> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        let why = "it is UTF-16, as some editors of Windows save it: save it as UTF-8";
        return Err(Problem { line: 1, column: 1, why: why.to_owned() });
    }
    let place = |before: &str, why: String| {
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Problem { line, column, why }
    };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned();
        place(&before, "it is not UTF-8".to_owned())
    })?;
    // A mark is no character of the file, and yaml.v2 passes over it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let control = |c: char| c.is_control() && !"\t\r\n\u{85}".contains(c);
    if let Some((index, c)) = text.char_indices().find(|(_, c)| control(*c)) {
        return Err(place(&text[..index], format!("a control character, U+{:04X}", u32::from(c))));
    }
    Ok(text)
}

fn at(mark: Marker, why: impl Into<String>) -> Problem {
    Problem { line: mark.line().max(1), column: mark.col() + 1, why: why.into() }
}

/// A list or a table whose end has not come yet.
struct Open {
    node: Node,
    anchor: usize,
    /// A key whose value has not come yet.
    key: Option<Node>,
}

#[derive(Default)]
struct Tree {
    root: Option<Node>,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    count: usize,
}

impl Tree {
    fn event(&mut self, event: Event<'_>, mark: Marker) -> Result<(), Problem> {
        let node = |value: Value| Node { value, line: mark.line().max(1), column: mark.col() + 1 };
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(at(mark, "a second document begins, and only the first is read"))
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let value = if plain { typed(&text) } else { Value::Text(text.into_owned()) };
                self.whole(node(value), anchor, mark)
            }
            Event::SequenceStart(anchor, _) => self.begin(node(Value::List(Vec::new())), anchor, mark),
            Event::MappingStart(anchor, _) => self.begin(node(Value::Map(Vec::new())), anchor, mark),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { mut node, anchor, .. }) => {
                    merge(&mut node)?;
                    self.whole(node, anchor, mark)
                }
                None => Ok(()),
            },
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(found) => {
                    self.count += size(&found);
                    // It is told where it stands, not where it was written.
                    self.whole(node(found.value), 0, mark)
                }
                None => Err(at(mark, "an alias inside of what it stands for")),
            },
            _ => Ok(()),
        }
    }

    fn begin(&mut self, node: Node, anchor: usize, mark: Marker) -> Result<(), Problem> {
        if self.open.len() >= DEEPEST {
            return Err(at(mark, format!("more than {DEEPEST} lists and tables inside of each other")));
        }
        self.open.push(Open { node, anchor, key: None });
        Ok(())
    }

    /// Puts a node that is complete where it belongs.
    fn whole(&mut self, node: Node, anchor: usize, mark: Marker) -> Result<(), Problem> {
        self.count += 1;
        if self.count > MOST {
            return Err(at(mark, format!("more than {MOST} values")));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut open.node.value {
            Value::List(items) => items.push(node),
            Value::Map(pairs) => match open.key.take() {
                None => {
                    if matches!(node.value, Value::List(_) | Value::Map(_)) {
                        return Err(node.problem(format!("{} stands where a key belongs", node.kind())));
                    }
                    let first = pairs.iter().find(|(key, _)| key.value == node.value && !is_merge(key));
                    if let Some((first, _)) = first {
                        return Err(
                            node.problem(format!("this key is there already, in line {}", first.line))
                        );
                    }
                    open.key = Some(node);
                }
                Some(key) => pairs.push((key, node)),
            },
            _ => {}
        }
        Ok(())
    }
}

/// The number of nodes in `node`.
fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(size).sum(),
        Value::Map(pairs) => pairs.iter().map(|(_, value)| 1 + size(value)).sum(),
        _ => 0,
    }
}

fn is_merge(key: &Node) -> bool {
    key.value == Value::Text("<<".to_owned())
}

/// Takes `<<` out of a table: the keys of the tables that it names stand for those that are not there (yaml.org/type/merge.html).
fn merge(node: &mut Node) -> Result<(), Problem> {
    let Value::Map(pairs) = &mut node.value else { return Ok(()) };
    let (merges, mut own): (Vec<_>, Vec<_>) = pairs.drain(..).partition(|(key, _)| is_merge(key));
    for (_, value) in merges {
        let place = (value.line, value.column);
        let tables = match value.value {
            Value::List(items) => items,
            other => vec![Node { value: other, line: place.0, column: place.1 }],
        };
        for table in tables {
            let Value::Map(pairs) = table.value else {
                return Err(table.problem("`<<` takes a table or a list of tables"));
            };
            for (key, value) in pairs {
                if !own.iter().any(|(known, _)| known.value == key.value) {
                    own.push((key, value));
                }
            }
        }
    }
    *pairs = own;
    Ok(())
}

/// The type of a plain word (resolve.go of yaml.v2).
fn typed(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Value::Bool(true, text.to_owned())
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Value::Bool(false, text.to_owned())
        }
        _ if is_number(text) => Value::Number(text.to_owned()),
        _ => Value::Text(text.to_owned()),
    }
}

fn is_number(text: &str) -> bool {
    let bare = text.replace('_', "");
    let digits = bare.strip_prefix(['-', '+']).unwrap_or(&bare);
    let all = |text: &str, fits: fn(char) -> bool| !text.is_empty() && text.chars().all(fits);
    let based =
        |prefix: &str, fits: fn(char) -> bool| digits.strip_prefix(prefix).is_some_and(|d| all(d, fits));
    let float = || {
        let (mantissa, exponent) =
            digits.split_once(['e', 'E']).map_or((digits, None), |(m, e)| (m, Some(e)));
        let exponent =
            exponent.is_none_or(|e| all(e.strip_prefix(['-', '+']).unwrap_or(e), |c| c.is_ascii_digit()));
        let dots = mantissa.matches('.').count() <= 1;
        let body = mantissa.replace('.', "");
        exponent && dots && all(&body, |c| c.is_ascii_digit())
    };
    based("0x", |c| c.is_ascii_hexdigit())
        || based("0o", |c| ('0'..='7').contains(&c))
        || based("0b", |c| "01".contains(c))
        || [".inf", ".Inf", ".INF"].contains(&digits)
        || [".nan", ".NaN", ".NAN"].contains(&text)
        || float()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: impl AsRef<[u8]>) -> String {
        read(text.as_ref()).unwrap_err().to_string()
    }

    #[test]
    fn a_setting_is_found_however_it_is_written() {
        for text in [
            "server: https://192.168.50.100:6443\n",
            "server: https://192.168.50.100:6443 # the NUC\n",
            "server: https://192.168.50.100:6443\r\nnode-label:\r\n- a=b\r\n",
            "\"server\": 'https://192.168.50.100:6443'",
            "{\"server\": \"https://192.168.50.100:6443\", \"node-ip\": \"192.168.50.1\"}",
            "{\n\t\"server\": \"https://192.168.50.100:6443\"\n}\n",
            "server:\n  https://192.168.50.100:6443\n",
            "server: >-\n  https://192.168.50.100:6443\n",
            "---\nserver: https://192.168.50.100:6443\n...\n",
            "\u{feff}server: https://192.168.50.100:6443\n",
            "? server\n: https://192.168.50.100:6443\n",
            "a: &s https://192.168.50.100:6443\nserver: *s\n",
            "a: &t {server: \"https://192.168.50.100:6443\"}\n<<: *t\n",
        ] {
            let node = read(text.as_bytes()).unwrap_or_else(|why| panic!("{text:?}: {why}"));
            let server = node.get("server").and_then(Node::scalar);
            assert_eq!(server, Some("https://192.168.50.100:6443"), "{text:?}");
        }
    }

    #[test]
    fn plain_words_have_the_types_that_a_go_program_gives_them() {
        let text = "[yes, Off, ~, '', 0x1f, 1_000, 1.5e3, .5, 'no', \"1\", 1.2.3.4, .inf, -, v1, e, !!str 5]";
        let Value::List(items) = read(text.replace("-,", "'-',").as_bytes()).unwrap().value else { panic!() };
        let kinds: Vec<&str> = items.iter().map(Node::kind).collect();
        let (yes, number, word) = ("true or false", "a number", "a text");
        assert_eq!(
            kinds,
            [
                yes, yes, "nothing", word, number, number, number, number, word, word, word, number, word,
                word, word, word
            ]
        );
        assert_eq!(items[4].scalar(), Some("0x1f"));
    }

    #[test]
    fn mistakes_are_told_with_their_line_and_without_the_text() {
        for (text, place) in [
            ("a: b: sesame\n", "line 1"),
            ("a: 1\nsesame\n", "line 3, column 1: a key has no `:` behind it, here or in the line before"),
            ("a:\n\tsesame: 1\n", "line 2"),
            ("a: [sesame\n", "line"),
            ("a: \"sesame\n", "line"),
            ("a: @sesame\n", "line 1"),
            ("a: *sesame\n", "line 1"),
            ("a: 1\nsesame: 2\nsesame: 3\n", "line 3, column 1: this key is there already, in line 2"),
            ("a: 1\n---\nsesame: 2\n", "line 2, column 1: a second document"),
            ("a: &x [*x]\n", "line 1"),
            ("{[sesame]: 1}", "stands where a key belongs"),
            ("<<: sesame\n", "`<<` takes a table"),
            ("a: \u{1b}[31msesame\n", "line 1, column 4: a control character, U+001B"),
        ] {
            let why = problem(text);
            assert!(why.contains(place) && !why.contains("sesame"), "{text:?}: {why}");
        }
        assert!(problem(b"a: 1\nb: \xe9sesame").starts_with("line 2, column 4: it is not UTF-8"));
        assert!(problem(b"\xff\xfea\0:\0").contains("save it as UTF-8"));
    }

    #[test]
    fn a_small_text_cannot_stand_for_a_huge_one() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..20 {
            let names = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{names}]\n"));
        }
        assert!(problem(&text).contains("more than 10000 values"));
        assert!(problem("[".repeat(100_000)).starts_with("line 1"));
        assert!(problem("- ".repeat(100_000)).contains("inside of each other"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-a:&*<!|>'\"\\[\\]{},#? \t\r\n0-9%@.]{0,60}") {
            let _ = read(text.as_bytes());
        }
    }
}
