//! `report.json`: a [`Run`] as it is, for programs.

use crate::scenario::result::Run;

/// The text of `report.json`.
///
/// # Errors
/// None that a writer into memory could meet.
pub fn render(run: &Run) -> serde_json::Result<String> {
    let mut text = serde_json::to_string_pretty(run)?;
    text.push('\n');
    Ok(text)
}
