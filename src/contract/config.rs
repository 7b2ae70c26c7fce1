//! Kconfig's output format, the `.config` of a kernel.
//!
//! Four kinds of lines count (Linux, Documentation/kbuild/kconfig.rst and scripts/kconfig/confdata.c): `CONFIG_X=y` and `=m`,
//! `CONFIG_X="text"`, `CONFIG_X=12` or `=0x1f`, and `# CONFIG_X is not set`. A symbol that is in none of them is hidden.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The prefix of every symbol in a .config.
const PREFIX: &str = "CONFIG_";

/// Why a text is no .config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct ConfigError {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

/// What a .config says of a symbol.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// `=y`: built in.
    Yes,
    /// `=m`: a module.
    Module,
    /// `is not set`.
    No,
    /// A text, without its quotes and escapes.
    Text(String),
    /// A number as it stands there, decimal or `0x…`.
    Number(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Yes => f.write_str("y"),
            Value::Module => f.write_str("m"),
            Value::No => f.write_str("n"),
            Value::Number(number) => f.write_str(number),
            Value::Text(text) => write!(f, "\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        }
    }
}

impl FromStr for Value {
    type Err = String;

    /// Reads what stands behind the `=`.
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = |text: &str, radix| !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
        match text {
            "y" => Ok(Value::Yes),
            "m" => Ok(Value::Module),
            "n" => Ok(Value::No),
            _ if text.starts_with('"') => unquote(text).map(Value::Text),
            _ if digits(text.strip_prefix('-').unwrap_or(text), 10)
                || text.strip_prefix("0x").or(text.strip_prefix("0X")).is_some_and(|hex| digits(hex, 16)) =>
            {
                Ok(Value::Number(text.to_owned()))
            }
            _ => Err(format!("`{text}` is neither y, m, n, a number nor a text in quotes")),
        }
    }
}

/// A text in quotes, in which `\` makes the next character stand for itself (scripts/kconfig/confdata.c, conf_unescape()).
fn unquote(text: &str) -> Result<String, String> {
    let open = || format!("{text} has no closing quote");
    let mut chars = text.strip_prefix('"').ok_or_else(open)?.chars();
    let mut out = String::new();
    loop {
        match chars.next().ok_or_else(open)? {
            '"' => break,
            '\\' => out.push(chars.next().ok_or_else(open)?),
            c => out.push(c),
        }
    }
    if chars.as_str().is_empty() {
        Ok(out)
    } else {
        Err(format!("`{}` follows the closing quote", chars.as_str()))
    }
}

/// Whether `name` can be a symbol: Kconfig's names are letters, digits and `_`.
pub fn is_symbol(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// What one line of a .config or of a fragment says: a symbol (without `CONFIG_`) and its value, or nothing.
pub(super) fn line(text: &str) -> Result<Option<(&str, Value)>, String> {
    let text = text.trim();
    if let Some(comment) = text.strip_prefix('#') {
        // Only this very comment has a meaning; `# CONFIG_X is needed because …` is one for people.
        let unset = comment.trim().strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(" is not set"));
        return Ok(unset.filter(|name| is_symbol(name)).map(|name| (name, Value::No)));
    }
    if text.is_empty() {
        return Ok(None);
    }
    let wrong =
        || format!("`{}` is neither `CONFIG_X=…` nor a comment", text.chars().take(80).collect::<String>());
    let (name, value) = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('=')).ok_or_else(wrong)?;
    if !is_symbol(name) {
        return Err(wrong());
    }
    Ok(Some((name, value.parse()?)))
}

/// A kernel's .config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    values: BTreeMap<String, Value>,
    version: Option<Version>,
}

impl Config {
    /// Reads the text of a .config. Of two lines on one symbol the later counts, as Kconfig does it.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut config = Config::default();
        for (number, text) in text.lines().enumerate() {
            let at = |why| ConfigError { line: number + 1, why };
            if let Some((name, value)) = line(text).map_err(at)? {
                config.values.insert(name.to_owned(), value);
            } else if config.version.is_none() {
                config.version = heading(text);
            }
        }
        Ok(config)
    }

    /// What it says of `symbol` (without `CONFIG_`); `None` if nothing.
    pub fn get(&self, symbol: &str) -> Option<&Value> {
        self.values.get(symbol)
    }

    /// All symbols that it mentions, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The kernel's version, from the heading that Kconfig writes.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// Sets a symbol.
    pub fn set(&mut self, symbol: &str, value: Value) {
        self.values.insert(symbol.to_owned(), value);
    }
}

/// The version in `# Linux/x86 6.12.117 Kernel Configuration`.
fn heading(line: &str) -> Option<Version> {
    let rest = line.strip_prefix("# Linux/")?.strip_suffix(" Kernel Configuration")?;
    rest.split_once(' ')?.1.parse().ok()
}

impl fmt::Display for Config {
    /// The lines of a .config, sorted by symbol.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.iter() {
            match value {
                Value::No => writeln!(f, "# {PREFIX}{name} is not set")?,
                value => writeln!(f, "{PREFIX}{name}={value}")?,
            }
        }
        Ok(())
    }
}

/// A version of Linux, as far as symbols come and go with it: `6.12`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct Version {
    /// 6 of 6.12.
    pub major: u16,
    /// 12 of 6.12.
    pub minor: u16,
}

impl FromStr for Version {
    type Err = String;

    /// Reads `6.12`, and the beginning of `6.12.117+deb13-cloud-amd64` or `6.12-rc1`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| -> Option<u16> {
            let all = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse().ok().filter(|_| all)
        };
        let read = || {
            let (major, rest) = text.split_once('.')?;
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            Some(Version { major: number(major)?, minor: number(&rest[..end])? })
        };
        read().ok_or_else(|| format!("`{text}` is no version of Linux: write \"6.12\""))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
