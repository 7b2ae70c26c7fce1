//! Kconfig files to symbols.

use std::collections::BTreeSet;

use super::expr::Expr;
use super::{Definition, Kconfig};
use crate::contract::config::is_symbol;

/// Most files that one kernel may have; Linux 6.12 has 1,812, of which one architecture reads about 1,500.
const MAX_FILES: usize = 10_000;

/// Why Kconfig files cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {why}")]
pub struct KconfigError {
    /// The file, below the source tree.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub why: String,
}

/// A block that is open: its conditions hold for everything in it.
#[derive(Debug)]
struct Scope {
    end: &'static str,
    depends: Vec<Expr>,
    /// `visible if`: conditions for the prompts in it only.
    visible: Vec<Expr>,
    /// Its number, if it is a choice.
    choice: Option<usize>,
}

/// What the properties that follow belong to.
#[derive(Debug, Clone, PartialEq)]
enum Target {
    Symbol(String),
    Scope,
    Nothing,
}

struct Reader<'a> {
    open: &'a mut dyn FnMut(&str) -> Option<String>,
    variables: &'a [(&'a str, &'a str)],
    read: BTreeSet<String>,
    scopes: Vec<Scope>,
    choices: usize,
    target: Target,
    kconfig: Kconfig,
}

/// Reads the file `root` and all that it sources. `open` gives the text of a file of the source tree by its path below it; `variables`
/// stand for `$(NAME)` in the paths: `SRCARCH` is `x86` or `arm64`.
pub fn read(
    root: &str,
    variables: &[(&str, &str)],
    open: &mut dyn FnMut(&str) -> Option<String>,
) -> Result<Kconfig, KconfigError> {
    let mut reader = Reader {
        open,
        variables,
        read: BTreeSet::new(),
        scopes: Vec::new(),
        choices: 0,
        target: Target::Nothing,
        kconfig: Kconfig::default(),
    };
    reader.file(root, root, 0, false)?;
    Ok(reader.kconfig)
}

impl Reader<'_> {
    fn file(&mut self, path: &str, from: &str, line: usize, optional: bool) -> Result<(), KconfigError> {
        let wrong = |why: String| KconfigError { file: from.to_owned(), line, why };
        // A file that sources itself, directly or not, would never end. None of Linux's is sourced twice for one architecture.
        if !self.read.insert(path.to_owned()) {
            return Err(wrong(format!("{path} is sourced twice")));
        }
        if self.read.len() > MAX_FILES {
            return Err(wrong(format!("more than {MAX_FILES} files are sourced")));
        }
        let Some(text) = (self.open)(path) else {
            return if optional { Ok(()) } else { Err(wrong(format!("there is no file {path}"))) };
        };
        let depth = self.scopes.len();
        let mut lines = Lines { text: text.lines(), number: 0, waiting: None };
        while let Some((number, line)) = lines.next() {
            self.line(path, number, line.trim(), &mut lines)?;
        }
        self.target = Target::Nothing;
        if self.scopes.len() != depth {
            let end = self.scopes.last().map_or("a block", |scope| scope.end);
            return Err(KconfigError {
                file: path.to_owned(),
                line: lines.number,
                why: format!("`{end}` is missing"),
            });
        }
        Ok(())
    }

    fn line(
        &mut self,
        file: &str,
        number: usize,
        line: &str,
        lines: &mut Lines<'_>,
    ) -> Result<(), KconfigError> {
        let wrong = |why: String| KconfigError { file: file.to_owned(), line: number, why };
        let (word, rest) =
            line.split_at(line.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(line.len()));
        let rest = rest.trim();
        let expr = |text: &str| Expr::parse(text).map_err(|e| wrong(e.to_string()));
        let condition = |text: &str| -> Result<Vec<Expr>, KconfigError> {
            match text.trim().strip_prefix("if").filter(|rest| rest.starts_with([' ', '\t', '(', '!'])) {
                Some(rest) => Ok(vec![expr(rest)?]),
                None => Ok(Vec::new()),
            }
        };
        match word {
            "config" | "menuconfig" => {
                let name = rest.split_whitespace().next().unwrap_or_default();
                if !is_symbol(name) {
                    return Err(wrong(format!("`{name}` is no name of a symbol")));
                }
                let depends = self.scopes.iter().flat_map(|scope| scope.depends.clone()).collect();
                let place = format!("{file}:{number}");
                let symbol = self.kconfig.symbols.entry(name.to_owned()).or_default();
                let choice = self.scopes.iter().rev().find_map(|scope| scope.choice);
                symbol.definitions.push(Definition { place, depends, prompt: None, choice });
                self.target = Target::Symbol(name.to_owned());
            }
            "if" => self.push("endif", vec![expr(rest)?]),
            "menu" => self.push("endmenu", Vec::new()),
            "choice" => self.push("endchoice", Vec::new()),
            "endif" | "endmenu" | "endchoice" => {
                self.target = Target::Nothing;
                if self.scopes.pop().is_none_or(|scope| scope.end != word) {
                    return Err(wrong(format!("`{word}` closes nothing")));
                }
            }
            "source" | "osource" | "rsource" | "orsource" => {
                let (path, _) =
                    quoted(rest).ok_or_else(|| wrong(format!("`{rest}` is no path in quotes")))?;
                let mut path = path;
                for (name, value) in self.variables {
                    path = path.replace(&format!("$({name})"), value);
                }
                if word.contains("rs") {
                    path =
                        file.rsplit_once('/').map_or(path.clone(), |(folder, _)| format!("{folder}/{path}"));
                }
                self.target = Target::Nothing;
                self.file(&path, file, number, word.starts_with('o'))?;
            }
            "comment" | "mainmenu" => self.target = Target::Nothing,
            "depends" => {
                let on = rest.strip_prefix("on").ok_or_else(|| wrong("`depends` without `on`".to_owned()))?;
                self.depends(expr(on)?);
            }
            "visible" => {
                if let (Target::Scope, Some(scope)) = (&self.target, self.scopes.last_mut()) {
                    scope.visible.extend(condition(rest)?);
                }
            }
            "bool" | "tristate" | "string" | "int" | "hex" | "prompt" => {
                if let Some((_, after)) = quoted(rest) {
                    self.prompt(condition(after)?);
                }
            }
            "select" => {
                let (name, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                let condition = condition(after)?.pop().unwrap_or(Expr::Constant("y".to_owned()));
                if let Target::Symbol(selector) = &self.target {
                    let by = (selector.clone(), condition);
                    self.kconfig.symbols.entry(name.to_owned()).or_default().selected_by.push(by);
                }
            }
            "help" | "---help---" => lines.skip_help(),
            // Values and preprocessor lines: nothing that is asked of these files depends on them.
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, end: &'static str, depends: Vec<Expr>) {
        let choice = (end == "endchoice").then(|| {
            self.choices += 1;
            self.choices
        });
        self.scopes.push(Scope { end, depends, visible: Vec::new(), choice });
        self.target = if end == "endif" { Target::Nothing } else { Target::Scope };
    }

    fn depends(&mut self, condition: Expr) {
        match &self.target {
            Target::Symbol(name) => {
                let symbol = self.kconfig.symbols.get_mut(name);
                if let Some(definition) = symbol.and_then(|s| s.definitions.last_mut()) {
                    definition.depends.push(condition);
                }
            }
            Target::Scope => {
                if let Some(scope) = self.scopes.last_mut() {
                    scope.depends.push(condition);
                }
            }
            Target::Nothing => {}
        }
    }

    fn prompt(&mut self, conditions: Vec<Expr>) {
        let Target::Symbol(name) = &self.target else { return };
        let visible = self.scopes.iter().flat_map(|scope| scope.visible.clone());
        let conditions = visible.chain(conditions).collect();
        if let Some(definition) = self.kconfig.symbols.get_mut(name).and_then(|s| s.definitions.last_mut()) {
            definition.prompt = Some(conditions);
        }
    }
}

/// Lines with continuations joined, counted from 1.
struct Lines<'a> {
    text: std::str::Lines<'a>,
    number: usize,
    waiting: Option<&'a str>,
}

impl<'a> Lines<'a> {
    fn raw(&mut self) -> Option<&'a str> {
        let line = self.waiting.take().or_else(|| self.text.next())?;
        self.number += 1;
        Some(line)
    }

    /// The next line with its number; comments and empty ones are passed over.
    fn next(&mut self) -> Option<(usize, String)> {
        loop {
            let first = self.raw()?;
            let number = self.number;
            if first.trim().is_empty() || first.trim_start().starts_with('#') {
                continue;
            }
            let mut line = first.to_owned();
            while let Some(shorter) = line.strip_suffix('\\') {
                line = format!("{shorter} {}", self.raw().unwrap_or_default());
            }
            return Some((number, line));
        }
    }

    /// Passes over a help text: it ends at the first line that is indented less than its own first one.
    fn skip_help(&mut self) {
        let mut indent = None;
        while let Some(line) = self.raw() {
            if line.trim().is_empty() {
                continue;
            }
            let columns = columns(line);
            if columns == 0 || columns < *indent.get_or_insert(columns) {
                self.waiting = Some(line);
                self.number -= 1;
                return;
            }
        }
    }
}

/// Width of the white space at the beginning; a tab goes to the next multiple of 8.
fn columns(line: &str) -> usize {
    let mut columns = 0;
    for c in line.chars() {
        match c {
            ' ' => columns += 1,
            '\t' => columns = (columns / 8 + 1) * 8,
            _ => break,
        }
    }
    columns
}

/// The text in quotes at the beginning of `text`, and what follows it.
pub(super) fn quoted(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut out = String::new();
    let mut chars = text[1..].char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => out.push(chars.next()?.1),
            c if c == quote => return Some((out, &text[at + 2..])),
            c => out.push(c),
        }
    }
    None
}
