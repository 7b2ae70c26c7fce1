//! A run whose text is fit to be shown: the one place where what guests wrote is made harmless and bounded, for all formats but
//! JSON.

use serde_json::Value;

use crate::scenario::result::{Run, text};
use crate::ui::plain;

/// More lines than this of one console or list are not shown.
const LINES: usize = 400;

/// A copy of `run` in which every text, whatever its field, went through [`plain`] and is bounded. It goes by way of JSON so that
/// no field can be forgotten.
///
/// # Errors
/// A number in it is none (the calibration factor).
pub(super) fn clean(run: &Run) -> serde_json::Result<Run> {
    let mut value = serde_json::to_value(run)?;
    walk(&mut value);
    serde_json::from_value(value)
}

fn walk(value: &mut Value) {
    match value {
        Value::String(string) => *string = plain(&text::excerpt(string.as_bytes())),
        Value::Array(items) => {
            // Consoles and stacks: the end says most. Lists of other things keep all.
            if items.len() > LINES && items.iter().all(is_line) {
                items.drain(..items.len() - LINES);
            }
            items.iter_mut().for_each(walk);
        }
        Value::Object(fields) => fields.values_mut().for_each(walk),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_line(value: &Value) -> bool {
    match value {
        Value::String(_) => true,
        Value::Object(fields) => fields.len() == 2 && fields.contains_key("text"),
        _ => false,
    }
}
