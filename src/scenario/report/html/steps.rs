//! The steps as a list: one line each, which opens to what the nodes answered.

use std::time::Duration;

use maud::{Markup, html};

use super::failures::files;
use super::{Page, glyph, seconds};
use crate::scenario::result::{Outcome, Step};
use crate::ui::human_time;

/// Of what went right so many bytes per output are shown.
const SHORT: usize = 800;
/// And so many answers per step.
const ANSWERS: usize = 6;

impl Page<'_> {
    pub(super) fn steps(&self) -> Markup {
        html! {
            section #steps {
                h2 { "Steps" }
                div.rows.steps {
                    div.row.head aria-hidden="true" {
                        span {} span.number { "#" } span { "step" } span { "action" } span { "nodes" }
                        span.number { "began" } span.number { "took" }
                    }
                    @for step in &self.run.steps { (self.step(step)) }
                }
            }
        }
    }

    /// The nodes of a step, in a few words.
    fn nodes_of(&self, step: &Step) -> String {
        match step.nodes.len() {
            count if count > 1 && count == self.run.nodes.len() => "every node".to_owned(),
            count if count > 3 => format!("{count} nodes"),
            _ => step.nodes.join(", "),
        }
    }

    fn step(&self, step: &Step) -> Markup {
        let word = step.outcome.word();
        let reached = step.attempts > 0 || !step.outcome.is_skipped();
        let row = html! {
            span.sign title=(word) { (glyph(&step.outcome)) }
            span.number { (step.number) }
            span.name {
                (step.name)
                @if step.attempts > 1 { " " span.note.attempts { (step.attempts) " attempts" } }
                @if let Outcome::Skipped { why } = &step.outcome { " " span.note { "skipped: " (why) } }
            }
            span.kind { (step.kind.replace('_', " ")) }
            span.nodes title=(step.nodes.join(", ")) { (self.nodes_of(step)) }
            span.number { @if reached { (seconds(step.began_ms)) } }
            span.number { @if reached { (seconds(step.duration_ms)) } }
        };
        let id = format!("step-{}", step.number);
        if step.evidence.is_empty() && step.files.is_empty() && !step.outcome.is_failed() {
            return html! { div.row.step.(word) id=(id) { (row) } };
        }
        html! {
            details.step.(word) id=(id) {
                summary.row { (row) }
                div.inside {
                    @match &step.outcome {
                        Outcome::Failed { why } => {
                            pre.why { (why) }
                            p.note { "All that shows it is under " a href="#failed" { "What failed" } "." }
                        }
                        _ => {
                            @for evidence in step.evidence.iter().take(ANSWERS) { (self.evidence(evidence, SHORT)) }
                            @if step.evidence.len() > ANSWERS {
                                p.note { (step.evidence.len() - ANSWERS) " more answers are in report.json." }
                            }
                        }
                    }
                    @if let Some(limit) = step.limit_ms { p.note { "limit on this host: " (human_time(Duration::from_millis(limit))) } }
                    (files(&step.files))
                }
            }
        }
    }
}
