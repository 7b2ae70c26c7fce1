//! `index.html`: the report for people, one file that needs nothing else.
//!
//! The order is that of a reader's questions: did it pass; what failed and what shows it; when did what happen ([`timeline`]); the
//! steps; where boot time went ([`boots`]); and the facts ([`facts`]). There is no script in it. Its own security policy
//! allows its own style (by digest) and nothing else, so that text of a guest that got past the escaping could still do nothing.
//!
//! The page stays below about 2 MB: what nodes said has a budget, [`FAILED`] and [`REST`].

mod boots;
mod facts;
mod failures;
mod steps;
mod timeline;

use std::cell::Cell;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::digest::Digest;
use crate::scenario::result::{Outcome, Run};
use crate::ui::human_time;

/// The style of the page.
const STYLE: &str = include_str!("style.css");

/// So many bytes of outputs and consoles, as they stand in the page, may show what failed.
const FAILED: usize = 600_000;
/// And so many may show everything else.
const REST: usize = 300_000;

/// The page while it is written.
struct Page<'a> {
    run: &'a Run,
    /// What is left of [`FAILED`] or [`REST`].
    left: Cell<usize>,
}

/// The text of `index.html`, of a run that went through [`super::clean`].
pub(super) fn render(run: &Run) -> String {
    let page = Page { run, left: Cell::new(FAILED) };
    page.whole().into_string()
}

impl Page<'_> {
    fn whole(&self) -> Markup {
        let run = self.run;
        let outcome = &run.verdict.outcome;
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{}'; img-src data:; base-uri 'none'; form-action 'none'",
            BASE64_STANDARD.encode(Digest::of(STYLE.as_bytes()).as_bytes())
        );
        let failures = self.failures();
        self.left.set(REST);
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(policy);
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="generator" content=(format!("kiln {}", run.kiln_version));
                    title { (glyph(outcome)) " " (run.scenario.name) " " (outcome.word()) " · kiln test" }
                    link rel="icon" href=(icon(outcome));
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    (self.head())
                    main {
                        (failures)
                        (self.skipped())
                        (self.warnings())
                        (self.timeline())
                        (self.steps())
                        (self.happenings())
                        (self.boots())
                        (self.links())
                        (self.machines())
                        (self.consoles())
                        (self.environment())
                    }
                    footer {
                        "kiln " (run.kiln_version) " · " (run.started) " · the same as data: "
                        a href="report.json" { "report.json" } ", " a href="junit.xml" { "junit.xml" }
                    }
                }
            }
        }
    }

    /// The verdict, and what a person wants to know beside it.
    fn head(&self) -> Markup {
        let run = self.run;
        let verdict = &run.verdict;
        let calibration = run.accelerator.calibration;
        html! {
            header.(verdict.outcome.word()) {
                p.verdict {
                    span.badge { (glyph(&verdict.outcome)) }
                    strong { (verdict.outcome.word()) }
                }
                h1 { (run.scenario.name) }
                p.about { (run.scenario.description) }
                @if let Outcome::Failed { why } | Outcome::Skipped { why } = &verdict.outcome {
                    p.why { (why) }
                }
                dl.figures {
                    div { dt { "passed" } dd { (verdict.passed) } }
                    div.failed[verdict.failed > 0] { dt { "failed" } dd { (verdict.failed) } }
                    div.skipped[verdict.skipped > 0] { dt { "skipped" } dd { (verdict.skipped) } }
                    div { dt { "took" } dd { (human_time(Duration::from_millis(run.duration_ms))) } }
                    div {
                        dt { "accelerator" }
                        dd {
                            (run.accelerator.name)
                            @if calibration > 1.0 { small { (format!(" × {calibration:.1}")) } }
                        }
                    }
                    div { dt { "seed" } dd { (run.seed) } }
                }
                nav aria-label="Sections" {
                    @if verdict.failed > 0 { a href="#failed" { "What failed" } }
                    a href="#timeline" { "Timeline" }
                    a href="#steps" { "Steps" }
                    a href="#boots" { "Boots" }
                    a href="#links" { "Links" }
                    a href="#machines" { "Machines" }
                    a href="#consoles" { "Consoles" }
                    a href="#environment" { "Environment" }
                }
            }
        }
    }

    /// Whether `texts` and so many bytes of markup still go into the page; they are taken from the budget.
    fn affords(&self, markup: usize, texts: &[&str]) -> bool {
        // As long as the longest escape, `&quot;`.
        let escaped = |text: &&str| text.len() + 5 * text.bytes().filter(|b| b"<>&\"".contains(b)).count();
        self.afford(markup + texts.iter().map(escaped).sum::<usize>())
    }

    /// Takes `wanted` bytes from the budget; false if they are not there.
    fn afford(&self, wanted: usize) -> bool {
        let left = self.left.get().checked_sub(wanted);
        if let Some(left) = left {
            self.left.set(left);
        }
        left.is_some()
    }
}

/// A sign for an outcome, so that colour is not the only one.
fn glyph(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "✓",
        Outcome::Failed { .. } => "✕",
        Outcome::Skipped { .. } => "–",
    }
}

/// A dot in the colour of the verdict, for the tab.
fn icon(outcome: &Outcome) -> String {
    let color = match outcome {
        Outcome::Passed => "1a7f4b",
        Outcome::Failed { .. } => "c0262d",
        Outcome::Skipped { .. } => "9a6b00",
    };
    format!(
        "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E\
         %3Ccircle cx='8' cy='8' r='7' fill='%23{color}'/%3E%3C/svg%3E"
    )
}

/// `83.1 s`.
fn seconds(ms: u64) -> String {
    format!("{:.1} s", ms as f64 / 1000.0)
}

/// A length as part of another one, in percent, as SVG spells it.
fn percent(part: u64, whole: u64) -> String {
    let share = if whole == 0 { 0.0 } else { part.min(whole) as f64 * 100.0 / whole as f64 };
    format!("{share:.2}%")
}

/// The URL of a file beside the report. Nothing but a relative path can come out, whatever came in.
fn beside(path: &str) -> String {
    let mut url = "./".to_owned();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => url.push(char::from(byte)),
            _ => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}
