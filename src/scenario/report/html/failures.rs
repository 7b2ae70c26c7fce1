//! What failed, with what shows it, and what was skipped.

use maud::{Markup, html};

use super::{Page, beside, seconds};
use crate::scenario::report::problems::{Problem, problems, skips};
use crate::scenario::result::{ConsoleLine, Evidence};

/// More problems than this are only counted: the first ones are why a person came.
const SHOWN: usize = 40;
/// At most so many pieces of evidence per problem.
const EVIDENCE: usize = 16;

impl Page<'_> {
    pub(super) fn failures(&self) -> Markup {
        let all = problems(self.run);
        // A verdict that nothing in particular led to, such as that of a scenario without steps, stands in the head.
        if all.is_empty() {
            return html! {};
        }
        html! {
            section #failed {
                h2 { "What failed" }
                @for problem in all.iter().take(SHOWN) { (self.problem(problem)) }
                @if all.len() > SHOWN {
                    p.note { (all.len() - SHOWN) " more are in " a href="report.json" { "report.json" } "." }
                }
            }
        }
    }

    fn problem(&self, problem: &Problem<'_>) -> Markup {
        html! {
            article.problem {
                header {
                    h3 {
                        span.subject { (problem.subject) }
                        " " (problem.name)
                    }
                    p.where {
                        @for node in &problem.nodes { span.node { (node) } }
                        @if let Some(at) = problem.at_ms { span.time { "at " (seconds(at)) } }
                    }
                }
                @if !problem.why.trim().is_empty() { pre.why { (problem.why.trim()) } }
                @for evidence in problem.evidence.iter().take(EVIDENCE) { (self.evidence(evidence, usize::MAX)) }
                @if problem.evidence.len() > EVIDENCE {
                    p.note { (problem.evidence.len() - EVIDENCE) " more answers are in report.json." }
                }
                @if let Some(stuck) = problem.stuck {
                    @for (what, lines) in [
                        ("waiting for", &stuck.jobs),
                        ("failed units", &stuck.failed_units),
                        ("kernel stacks", &stuck.stacks),
                    ] {
                        @let text = lines.join("\n");
                        @if !lines.is_empty() && self.affords(100, &[&text]) {
                            figure { figcaption { (what) } pre { (text) } }
                        }
                    }
                }
                @for (node, lines) in &problem.console { (self.console(node, lines, problem.line)) }
                (files(problem.files))
            }
        }
    }

    /// What a node answered; each output at most `most` bytes long.
    pub(super) fn evidence(&self, evidence: &Evidence, most: usize) -> Markup {
        let (stdout, stderr) = (head(&evidence.stdout, most), head(&evidence.stderr, most));
        let expected = head(evidence.expected.as_deref().unwrap_or_default(), most);
        if !self.affords(600, &[&evidence.command, stdout, stderr, expected]) {
            return html! { p.note { "An answer of " (evidence.node) " is left out to keep this page small: see report.json." } };
        }
        html! {
            div.evidence.bad[evidence.failed] {
                p.asked {
                    span.node { (evidence.node) }
                    code { (evidence.command.trim()) }
                    @if let Some(status) = evidence.status {
                        span.exit.bad[status != 0] { "exit " (status) }
                    }
                }
                @if let Some(expected) = &evidence.expected { (output("expected", expected, most)) }
                (output("stdout", &evidence.stdout, most))
                (output("stderr", &evidence.stderr, most))
            }
        }
    }

    /// Lines of a console with their times; `marked` is pointed at.
    pub(super) fn console(&self, node: &str, lines: &[ConsoleLine], marked: Option<&str>) -> Markup {
        let (Some(first), Some(last)) = (lines.first(), lines.last()) else { return html! {} };
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        if !self.affords(200 + lines.len() * 70, &texts) {
            return html! { p.note { "The console of " (node) " is left out to keep this page small." } };
        }
        html! {
            figure {
                figcaption {
                    "console of " span.node { (node) } " "
                    span.time { (seconds(first.at_ms)) " to " (seconds(last.at_ms)) }
                }
                pre.console {
                    @for line in lines {
                        @let hit = marked.is_some_and(|marked| marked == line.text);
                        span.line.hit[hit] {
                            span.at { (format!("{:.3}", line.at_ms as f64 / 1000.0)) }
                            " " (line.text) "\n"
                        }
                    }
                }
            }
        }
    }

    pub(super) fn skipped(&self) -> Markup {
        let all = skips(self.run);
        if all.is_empty() {
            return html! {};
        }
        html! {
            section #skipped {
                h2 { "What was skipped" }
                div.rows {
                    @for skip in &all {
                        details {
                            summary.flat { strong.count { (skip.count) " " (skip.what) } span { (skip.why) } }
                            ul { @for name in &skip.names { li { (name) } } }
                        }
                    }
                }
            }
        }
    }
}

fn output(name: &str, text: &str, most: usize) -> Markup {
    let text = text.trim_end();
    if text.trim().is_empty() {
        return html! {};
    }
    let shown = head(text, most);
    html! {
        div.output {
            span.name { (name) }
            pre { (shown) @if shown.len() < text.len() { "\n[… " (text.len() - shown.len()) " bytes more in report.json …]" } }
        }
    }
}

/// The first `most` bytes of a text, or one less where a character would be cut.
fn head(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or(text)
}

/// Links to files beside the report.
pub(super) fn files(paths: &[String]) -> Markup {
    html! {
        @if !paths.is_empty() {
            p.files { @for path in paths { a href=(beside(path)) { (path) } " " } }
        }
    }
}
