//! Reports of a run: what a person watches while it goes on, and the files that are left when it is over.
//!
//! ```text
//! engine ── Events ──> live      terminal: live lines, or plain ones
//!    └──── Run ──────> json      report.json, for programs
//!                      junit     junit.xml, for CI
//!                      html      index.html, for people
//! ```
//!
//! Everything that guests wrote is untrusted text: each writer cleans and escapes it for its format.

mod clean;
pub mod html;
pub mod json;
pub mod junit;
pub mod live;
mod problems;
#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use fs_err as fs;

use super::result::{Fault, Finding, Incident, Invariant, NodeState, Run, Step};

/// What the engine tells while a run goes on. It is called from several threads, and never waits for anything slow. Every
/// method does nothing by default; `()` is the listener that hears nothing.
pub trait Events: Send + Sync {
    /// The state of `node` is another one from now on.
    fn node_state(&self, _node: &str, _state: NodeState) {}

    /// `node` wrote a whole line to its console.
    fn console_line(&self, _node: &str, _line: &str) {}

    /// Step `number` (from 1) begins on `nodes`.
    fn step_began(&self, _number: u32, _name: &str, _nodes: &[String]) {}

    /// Attempt `attempt` (from 1) of step `number` did not succeed and another one will follow.
    fn step_retry(&self, _number: u32, _attempt: u32, _why: &str) {}

    /// A step is over; also told of steps that were skipped without having begun.
    fn step_ended(&self, _step: &Step) {}

    /// A fault was injected.
    fn fault(&self, _fault: &Fault) {}

    /// A fault was healed.
    fn healed(&self, _fault: &Fault) {}

    /// An invariant was found broken.
    fn broken(&self, _invariant: &Invariant) {}

    /// A console said what no healthy node says.
    fn finding(&self, _finding: &Finding) {}

    /// Something went wrong outside of any step.
    fn incident(&self, _incident: &Incident) {}

    /// Anything else a person should read: a word (`Planned`) and what it is about.
    fn note(&self, _word: &str, _text: &str) {}
}

impl Events for () {}

/// The files of a report, each a path that can be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The folder they are in.
    pub folder: PathBuf,
    /// `report.json`, for programs; see [`json`].
    pub json: PathBuf,
    /// `junit.xml`, for CI; see [`junit`].
    pub junit: PathBuf,
    /// `index.html`, for people; see [`html`].
    pub html: PathBuf,
}

/// Writes the report of a judged run into `folder`, which is made. What was there under the same names is replaced.
///
/// # Errors
/// The folder cannot be written.
pub fn write(run: &Run, folder: &Path) -> anyhow::Result<Files> {
    fs::create_dir_all(folder)?;
    let files = Files {
        folder: folder.to_owned(),
        json: folder.join("report.json"),
        junit: folder.join("junit.xml"),
        html: folder.join("index.html"),
    };
    fs::write(&files.json, json::render(run)?)?;
    let run = clean::clean(run);
    fs::write(&files.junit, junit::render(&run)?)?;
    fs::write(&files.html, html::render(&run))?;
    Ok(files)
}
