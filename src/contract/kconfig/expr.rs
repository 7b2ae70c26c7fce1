//! Conditions of the Kconfig language.

use std::fmt;

use crate::contract::config::{Config, Value};

/// The value of a condition: n < m < y, and `&&` is the smaller, `||` the larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Off.
    No,
    /// A module.
    Module,
    /// On.
    Yes,
}

impl Level {
    /// The level of a symbol's value; what is neither y nor m is off.
    pub fn of(value: Option<&Value>) -> Self {
        match value {
            Some(Value::Yes) => Level::Yes,
            Some(Value::Module) => Level::Module,
            _ => Level::No,
        }
    }
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// A symbol.
    Symbol(String),
    /// `y`, `m`, `n`, or a text in quotes.
    Constant(String),
    /// `$(…)`: what a command said when Kconfig ran.
    Macro(String),
    /// `!a`
    Not(Box<Expr>),
    /// `a && b`
    And(Box<Expr>, Box<Expr>),
    /// `a || b`
    Or(Box<Expr>, Box<Expr>),
    /// `a = b` and its like: the operator as it stands there.
    Compare(String, Box<Expr>, Box<Expr>),
}

/// Why a text is no condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no condition")]
pub struct ExprError(pub String);

/// How deep parentheses and `!` may be nested; Linux 6.12 needs 5.
const DEPTH: usize = 64;

impl Expr {
    /// Reads a condition that takes the whole of `text`.
    pub fn parse(text: &str) -> Result<Self, ExprError> {
        let wrong = || ExprError(text.trim().to_owned());
        let tokens = tokens(text).ok_or_else(wrong)?;
        let mut rest = tokens.as_slice();
        let expr = or(&mut rest, 0).ok_or_else(wrong)?;
        if rest.is_empty() { Ok(expr) } else { Err(wrong()) }
    }

    /// Its value under `config`.
    pub fn level(&self, config: &Config) -> Level {
        match self {
            Expr::Symbol(name) => Level::of(config.get(name)),
            Expr::Constant(text) => match text.as_str() {
                "y" => Level::Yes,
                "m" => Level::Module,
                _ => Level::No,
            },
            Expr::Macro(_) => Level::Yes,
            Expr::Not(inner) => match inner.level(config) {
                Level::No => Level::Yes,
                Level::Module => Level::Module,
                Level::Yes => Level::No,
            },
            Expr::And(a, b) => a.level(config).min(b.level(config)),
            Expr::Or(a, b) => a.level(config).max(b.level(config)),
            Expr::Compare(operator, a, b) => {
                if compare(operator, &a.text(config), &b.text(config)) {
                    Level::Yes
                } else {
                    Level::No
                }
            }
        }
    }

    /// What stands for it in a comparison.
    fn text(&self, config: &Config) -> String {
        match self {
            Expr::Symbol(name) => match config.get(name) {
                Some(Value::Text(text)) => text.clone(),
                Some(value) => value.to_string(),
                None if is_number(name) => name.clone(),
                None => "n".to_owned(),
            },
            Expr::Constant(text) | Expr::Macro(text) => text.clone(),
            other => match other.level(config) {
                Level::No => "n".to_owned(),
                Level::Module => "m".to_owned(),
                Level::Yes => "y".to_owned(),
            },
        }
    }

    /// Adds the smallest parts that keep this below `wanted`: of a conjunction those that do, of anything else the whole.
    pub(super) fn below<'a>(&'a self, wanted: Level, config: &Config, parts: &mut Vec<&'a Expr>) {
        if self.level(config) >= wanted {
            return;
        }
        match self {
            Expr::And(a, b) => {
                a.below(wanted, config, parts);
                b.below(wanted, config, parts);
            }
            other => parts.push(other),
        }
    }

    /// Adds the symbols in it.
    fn symbols<'a>(&'a self, names: &mut Vec<&'a str>) {
        match self {
            Expr::Symbol(name) => {
                if !is_number(name) && !names.contains(&name.as_str()) {
                    names.push(name);
                }
            }
            Expr::Constant(_) | Expr::Macro(_) => {}
            Expr::Not(inner) => inner.symbols(names),
            Expr::And(a, b) | Expr::Or(a, b) | Expr::Compare(_, a, b) => {
                a.symbols(names);
                b.symbols(names);
            }
        }
    }

    /// For people: the condition, and what its symbols are.
    pub fn with_values(&self, config: &Config) -> String {
        let mut names = Vec::new();
        self.symbols(&mut names);
        let value = |name: &str| config.get(name).map_or("n".to_owned(), Value::to_string);
        match (self, names.as_slice()) {
            (_, []) => self.to_string(),
            (Expr::Symbol(name), _) => format!("{name}, which is {}", value(name)),
            _ => {
                let said: Vec<String> =
                    names.iter().map(|name| format!("{name} is {}", value(name))).collect();
                format!("{self}, where {}", said.join(", "))
            }
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expr::Symbol(name) | Expr::Macro(name) => f.write_str(name),
            Expr::Constant(text) if matches!(text.as_str(), "y" | "m" | "n") => f.write_str(text),
            Expr::Constant(text) => write!(f, "\"{text}\""),
            Expr::Not(inner) => match **inner {
                Expr::And(..) | Expr::Or(..) | Expr::Compare(..) => write!(f, "!({inner})"),
                _ => write!(f, "!{inner}"),
            },
            Expr::And(a, b) => {
                let side =
                    |e: &Expr| if matches!(e, Expr::Or(..)) { format!("({e})") } else { e.to_string() };
                write!(f, "{} && {}", side(a), side(b))
            }
            Expr::Or(a, b) => write!(f, "{a} || {b}"),
            Expr::Compare(operator, a, b) => write!(f, "{a} {operator} {b}"),
        }
    }
}

/// Whether a word without quotes is a number; it stands for itself then.
fn is_number(word: &str) -> bool {
    word.starts_with("0x") || word.strip_prefix('-').unwrap_or(word).bytes().all(|b| b.is_ascii_digit())
}

/// Kconfig compares numbers as numbers and everything else as text (scripts/kconfig/expr.c, expr_calc_value()).
fn compare(operator: &str, a: &str, b: &str) -> bool {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => i128::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    let order = match (number(a), number(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => a.cmp(b),
    };
    match operator {
        "=" => order.is_eq(),
        "!=" => order.is_ne(),
        "<" => order.is_lt(),
        "<=" => order.is_le(),
        ">" => order.is_gt(),
        _ => order.is_ge(),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Macro(String),
    Operator(&'static str),
}

/// Longest first, so that `!=` is not taken for `!`.
const OPERATORS: [&str; 11] = ["&&", "||", "!=", "<=", ">=", "!", "=", "<", ">", "(", ")"];

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, after) = if let Some(operator) = OPERATORS.iter().find(|o| rest.starts_with(**o)) {
            (Token::Operator(operator), &rest[operator.len()..])
        } else if first == '"' || first == '\'' {
            let (text, after) = super::parse::quoted(rest)?;
            (Token::Text(text), after)
        } else if let Some(inner) = rest.strip_prefix("$(") {
            let end = closing(inner)? + 3;
            (Token::Macro(rest[..end].to_owned()), &rest[end..])
        } else if first == '#' {
            break;
        } else {
            let end =
                rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_-./".contains(c))).unwrap_or(rest.len());
            if end == 0 {
                return None;
            }
            (Token::Word(rest[..end].to_owned()), &rest[end..])
        };
        tokens.push(token);
        rest = after.trim_start();
    }
    Some(tokens)
}

/// Where the parenthesis closes that was opened before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    for (at, c) in text.char_indices() {
        match c {
            '(' => open += 1,
            ')' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(at);
        }
    }
    None
}

fn or(tokens: &mut &[Token], depth: usize) -> Option<Expr> {
    let mut left = and(tokens, depth)?;
    while let Some((Token::Operator("||"), rest)) = tokens.split_first() {
        *tokens = rest;
        left = Expr::Or(Box::new(left), Box::new(and(tokens, depth)?));
    }
    Some(left)
}

fn and(tokens: &mut &[Token], depth: usize) -> Option<Expr> {
    let mut left = unary(tokens, depth)?;
    while let Some((Token::Operator("&&"), rest)) = tokens.split_first() {
        *tokens = rest;
        left = Expr::And(Box::new(left), Box::new(unary(tokens, depth)?));
    }
    Some(left)
}

fn unary(tokens: &mut &[Token], depth: usize) -> Option<Expr> {
    if depth > DEPTH {
        return None;
    }
    let (first, rest) = tokens.split_first()?;
    *tokens = rest;
    let left = match first {
        Token::Operator("!") => return Some(Expr::Not(Box::new(unary(tokens, depth + 1)?))),
        Token::Operator("(") => {
            let inner = or(tokens, depth + 1)?;
            let (Token::Operator(")"), rest) = tokens.split_first()? else { return None };
            *tokens = rest;
            return Some(inner);
        }
        Token::Operator(_) => return None,
        other => atom(other),
    };
    match tokens.split_first() {
        Some((Token::Operator(o @ ("=" | "!=" | "<" | "<=" | ">" | ">=")), rest)) => {
            let (right, rest) = rest.split_first()?;
            if matches!(right, Token::Operator(_)) {
                return None;
            }
            *tokens = rest;
            Some(Expr::Compare((*o).to_owned(), Box::new(left), Box::new(atom(right))))
        }
        _ => Some(left),
    }
}

fn atom(token: &Token) -> Expr {
    match token {
        Token::Word(word) if matches!(word.as_str(), "y" | "m" | "n") => Expr::Constant(word.clone()),
        Token::Word(word) => Expr::Symbol(word.clone()),
        Token::Text(text) if text.starts_with("$(") => Expr::Macro(text.clone()),
        Token::Text(text) => Expr::Constant(text.clone()),
        Token::Macro(text) => Expr::Macro(text.clone()),
        Token::Operator(text) => Expr::Constant((*text).to_owned()),
    }
}
