//! The terminal while a run goes on.

use super::Events;
use crate::scenario::result::Run;
use crate::ui::Ui;

/// Shows a run on the terminal, and sums it up at the end.
#[derive(Debug)]
pub struct Progress {
    ui: Ui,
}

impl Progress {
    /// For a run of `nodes` (in the scenario's order) and so many steps.
    pub fn new(ui: &Ui, _nodes: &[String], _steps: u32) -> Self {
        Progress { ui: ui.clone() }
    }

    /// Takes the live lines away and prints what came of the run: what failed, where, the evidence, and where the report is.
    pub fn finish(self, run: &Run, files: &super::Files) {
        self.ui.status(run.verdict.outcome.word(), files.json.display().to_string());
    }
}

impl Events for Progress {}
