//! What is wrong with a scenario file: all of it at once, each with its place in the text.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Failure, Kind};
use crate::spec::{nearest, place};

/// A way into a TOML document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The value of a key.
    Key(String),
    /// An item of a list.
    Item(usize),
    /// The key itself, not its value.
    Name(String),
}

impl From<&str> for Part {
    fn from(key: &str) -> Self {
        Part::Key(key.to_owned())
    }
}

impl From<usize> for Part {
    fn from(index: usize) -> Self {
        Part::Item(index)
    }
}

/// `spot!["step", 3, "on"]`: the way to what is wrong.
macro_rules! spot {
    ($($part:expr),* $(,)?) => {
        Vec::<$crate::scenario::problems::Part>::from([$($crate::scenario::problems::Part::from($part)),*])
    };
}
pub(crate) use spot;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where; empty if it is nowhere in the file.
    pub spot: Vec<Part>,
    /// The thing and the reason, half a sentence.
    pub message: String,
    /// What to do about it.
    pub hints: Vec<String>,
}

impl Problem {
    /// Adds a remedy.
    pub fn hint(&mut self, hint: impl Into<String>) -> &mut Self {
        self.hints.push(hint.into());
        self
    }

    /// Adds the one of `candidates` that `word` may have meant, or else all of them.
    pub fn near<'a>(&mut self, word: &str, candidates: impl IntoIterator<Item = &'a str>) -> &mut Self {
        let candidates: Vec<&str> = candidates.into_iter().collect();
        match nearest(word, candidates.iter().copied()) {
            Some(near) => self.hint(format!("did you mean `{near}`?")),
            None if candidates.is_empty() => self,
            None => self.hint(format!("there is {}", candidates.join(", "))),
        }
    }
}

/// Everything that is wrong with one file.
#[derive(Debug)]
pub struct Problems<'a> {
    file: &'a str,
    text: &'a str,
    list: Vec<Problem>,
}

impl<'a> Problems<'a> {
    /// Nothing yet is wrong with `file`, which has this `text`.
    pub fn new(file: &'a str, text: &'a str) -> Self {
        Problems { file, text, list: Vec::new() }
    }

    /// Adds one.
    pub fn add(&mut self, spot: Vec<Part>, message: impl Into<String>) -> &mut Problem {
        self.list.push(Problem { spot, message: message.into(), hints: Vec::new() });
        let last = self.list.len() - 1;
        &mut self.list[last]
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Each of them as it is shown when nothing else is wrong, in the order of the file.
    pub fn texts(self) -> Vec<String> {
        let (file, text) = (self.file, self.text);
        let shown = |(span, problem): (Option<Range<usize>>, Problem)| {
            let hints = problem.hints.iter().map(|hint| format!("\n  = help: {hint}"));
            let place = shown(file, text, span).unwrap_or_default();
            format!("{}{place}{}", problem.message, hints.collect::<String>())
        };
        self.placed().into_iter().map(shown).collect()
    }

    /// All with their places, in the order of the file.
    fn placed(self) -> Vec<(Option<Range<usize>>, Problem)> {
        let table = DeTable::parse(self.text).ok();
        let mut placed: Vec<(Option<Range<usize>>, Problem)> = self
            .list
            .into_iter()
            .map(|problem| (table.as_ref().and_then(|t| find(t, &problem.spot)), problem))
            .collect();
        placed.sort_by_key(|(span, _)| span.as_ref().map_or(usize::MAX, |s| s.start));
        placed
    }

    /// One failure of all of them, in the order of the file; `None` if there is none.
    pub fn failure(self) -> Option<Failure> {
        let (file, text_of) = (self.file, self.text);
        let mut placed = self.placed();
        if placed.len() > 1 {
            let mut text = format!("{file} cannot be used: {} things are wrong", placed.len());
            for (span, problem) in placed {
                text.push_str(&format!(
                    "\n\n{}{}",
                    problem.message,
                    shown(file, text_of, span).unwrap_or_default()
                ));
                for hint in problem.hints {
                    text.push_str(&format!("\n  = help: {hint}"));
                }
            }
            return Some(Failure::new(Kind::Input, text));
        }
        let (span, problem) = placed.pop()?;
        let text = format!(
            "{file} cannot be used: {}{}",
            problem.message,
            shown(file, text_of, span).unwrap_or_default()
        );
        Some(problem.hints.into_iter().fold(Failure::new(Kind::Input, text), Failure::hint))
    }
}

/// The place of a problem, below its message. Only the first line of what is wrong: a script of twenty lines tells nothing.
fn shown(file: &str, text: &str, span: Option<Range<usize>>) -> Option<String> {
    let span = span?;
    let end = text.get(span.clone()).and_then(|t| t.find('\n')).map_or(span.end, |n| span.start + n);
    Some(format!("\n{}", place(file, text, span.start..end)))
}

/// The bytes that `spot` leads to; where it leads nowhere, those of the last thing on the way.
fn find(table: &Spanned<DeTable<'_>>, spot: &[Part]) -> Option<Range<usize>> {
    let (first, rest) = spot.split_first()?;
    let (key, value) = entry(table.get_ref(), first)?;
    if matches!(first, Part::Name(_)) {
        return Some(key);
    }
    let mut here = value;
    for part in rest {
        let next = match (here.get_ref(), part) {
            (DeValue::Array(items), Part::Item(index)) => items.get(*index),
            (DeValue::Table(table), part) => match entry(table, part) {
                Some((key, _)) if matches!(part, Part::Name(_)) => return Some(key),
                Some((_, value)) => Some(value),
                None => None,
            },
            _ => None,
        };
        let Some(next) = next else { break };
        here = next;
    }
    Some(here.span())
}

fn entry<'t, 'i>(table: &'t DeTable<'i>, part: &Part) -> Option<(Range<usize>, &'t Spanned<DeValue<'i>>)> {
    let (Part::Key(name) | Part::Name(name)) = part else { return None };
    let (key, value) = table.iter().find(|(key, _)| key.get_ref() == name)?;
    Some((key.span(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "a = [1, 2]\n[[step]]\nname = \"x\"\n[[step]]\nname = \"y\"\nrun = \"\"\"\none\ntwo\n\"\"\"\n";

    fn all(problems: impl Fn(&mut Problems<'_>)) -> Failure {
        let mut list = Problems::new("x.toml", TEXT);
        problems(&mut list);
        list.failure().unwrap()
    }

    #[test]
    fn one_problem_is_shown_as_any_mistake_in_toml() {
        let failure = all(|p| {
            p.add(spot!["a", 1], "2 is too much").hint("take 1");
        });
        insta::assert_snapshot!(failure, @r#"
        x.toml cannot be used: 2 is too much
         --> x.toml:1:9
          |
        1 | a = [1, 2]
          |         ^
        "#);
        assert_eq!(failure.hints(), ["take 1"]);
    }

    #[test]
    fn several_problems_come_in_the_order_of_the_file_with_those_of_no_place_last() {
        let failure = all(|p| {
            p.add(spot![], "the host is too small").hint("buy one");
            p.add(spot!["step", 1, "run"], "a long value has one line shown");
            p.add(spot!["step", 1, Part::Name("name".to_owned())], "a key");
            p.add(spot!["step", 0, "missing"], "what is not there is shown by what it is missing from")
                .near("nam", ["name", "limit"]);
        });
        insta::assert_snapshot!(failure, @r#"
        x.toml cannot be used: 4 things are wrong

        what is not there is shown by what it is missing from
         --> x.toml:2:1
          |
        2 | [[step]]
          | ^^^^^^^^
          = help: did you mean `name`?

        a key
         --> x.toml:5:1
          |
        5 | name = "y"
          | ^^^^

        a long value has one line shown
         --> x.toml:6:7
          |
        6 | run = """
          |       ^^^

        the host is too small
          = help: buy one
        "#);
    }

    #[test]
    fn nothing_wrong_is_no_failure() {
        assert!(Problems::new("x.toml", TEXT).failure().is_none());
    }
}
