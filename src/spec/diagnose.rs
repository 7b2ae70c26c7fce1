//! TOML mistakes with file, line, caret and a suggestion, as rustc shows them.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use anyhow::Result;
use serde::de::DeserializeOwned;

use super::{SCHEMA, text};
use crate::error::{Failure, Kind};

/// Parses the text of the TOML file that people know as `name`. Unknown keys get the nearest known one.
pub fn parse<T: DeserializeOwned>(name: &str, text: &str) -> Result<T> {
    let text = text::normal(text);
    toml::from_str(&text).map_err(|error| explain(name, &text, &error).into())
}

/// A file of another version has other keys: that it is one is the better message.
pub(crate) fn check_schema(file: &str, text: &str) -> Result<(), Failure> {
    let Ok(table) = text.parse::<toml::Table>() else { return Ok(()) };
    match table.get("schema").and_then(toml::Value::as_integer) {
        Some(schema) if schema != i64::from(SCHEMA) => Err(Failure::new(
            Kind::Input,
            format!("{file} has schema {schema}, this kiln reads schema {SCHEMA}"),
        )
        .hint("use the kiln that the file was written for")),
        _ => Ok(()),
    }
}

fn explain(name: &str, text: &str, error: &toml::de::Error) -> Failure {
    let message = error.message().lines().next().unwrap_or("it cannot be read").to_owned();
    let place = place(name, text, error.span().unwrap_or(0..0));
    let mut failure = Failure::new(Kind::Input, format!("{name} cannot be used: {message}\n{place}"));
    if let Some(near) = suggestion(&message) {
        failure = failure.hint(format!("did you mean `{near}`?"));
    }
    failure
}

/// The lines that show the bytes `span` of `text`, with a caret. The title above them is printed by ui like any other error.
pub(crate) fn place(name: &str, text: &str, span: Range<usize>) -> String {
    let start = text.floor_char_boundary(span.start.min(text.len()));
    let end = text.ceil_char_boundary(span.end.clamp(start, text.len()));
    let snippet = Snippet::source(text).path(name).annotation(AnnotationKind::Primary.span(start..end));
    let rendered =
        Renderer::plain().render(&[Group::with_title(Level::ERROR.primary_title("")).element(snippet)]);
    rendered.lines().skip(1).collect::<Vec<_>>().join("\n")
}

/// serde says: unknown field `x`, expected one of `a`, `b` (or: unknown variant). The nearest of the expected ones, if it
/// is near enough to be a typing mistake.
fn suggestion(message: &str) -> Option<String> {
    let (found, expected) = message.split_once(", expected ")?;
    if !found.starts_with("unknown ") {
        return None;
    }
    let found = found.split('`').nth(1)?;
    nearest(found, expected.split('`').skip(1).step_by(2)).map(str::to_owned)
}

/// The candidate nearest to `word`, if it is near enough to be a typing mistake.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|c| (strsim::jaro_winkler(word, c), c))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::super::Layer;
    use super::*;

    #[test]
    fn an_unknown_key_is_shown_with_line_and_the_nearest_known_one() {
        let text = "schema = 1\n\n[packages]\ninstal = [\"dash\"]\n";
        let error = parse::<Layer>("images/node.toml", text).unwrap_err();
        let failure = error.downcast_ref::<Failure>().unwrap();
        insta::assert_snapshot!(failure, @r#"
        images/node.toml cannot be used: unknown field `instal`, expected one of `install`, `remove`, `without`, `provided`
         --> images/node.toml:4:1
          |
        4 | instal = ["dash"]
          | ^^^^^^
        "#);
        assert_eq!(failure.hints(), ["did you mean `install`?"]);
    }

    #[test]
    fn the_place_in_a_file_with_crlf_is_the_one_in_a_file_with_lf() {
        let text = "schema = 1\n# a\n\n[packages]\ninstal = [\"dash\"]\n";
        let told = |text: &str| parse::<Layer>("images/node.toml", text).unwrap_err().to_string();
        assert_eq!(told(&text.replace('\n', "\r\n")), told(text));
        assert!(told(text).contains("images/node.toml:5:1"));
    }

    #[test]
    fn a_wrong_type_and_broken_toml_name_the_place() {
        for (text, place) in
            [("schema = \"one\"\n", "x.toml:1:10"), ("schema = 1\n[packages\n", "x.toml:2:10")]
        {
            let error = parse::<Layer>("x.toml", text).unwrap_err().to_string();
            assert!(error.contains(place), "{error}");
        }
    }
}
