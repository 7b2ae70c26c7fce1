//! The terminal while a run goes on, and the few lines that sum it up.
//!
//! On a terminal every node has a live line (its state, how long it is in it, its console's last line) and so has every step
//! under way; what is over becomes a plain line above them. Elsewhere only plain lines come.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::problems::{Problem, problems, skips};
use super::{Events, Files, clean};
use crate::scenario::result::{
    Evidence, Fault, Finding, Incident, Invariant, NodeState, Outcome, Run, Severity, Step, text,
};
use crate::ui::{Bar, Ui, human_time, plain};

/// So many problems are told in full at the end; the report has them all.
const TOLD: usize = 5;
/// So many lines of an output or a console are told.
const LINES: usize = 8;

/// Shows a run on the terminal; the engine tells it what happens.
#[derive(Debug)]
pub struct Progress {
    ui: Ui,
    steps: u32,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Shared {
    nodes: Vec<NodeLine>,
    running: BTreeMap<u32, StepLine>,
}

#[derive(Debug)]
struct NodeLine {
    name: String,
    state: NodeState,
    /// When it was switched on or reset.
    booted: Option<Instant>,
    /// Only on a terminal.
    bar: Option<Bar>,
    console: String,
}

impl NodeLine {
    fn draw(&self) {
        if let Some(bar) = &self.bar {
            bar.message(format!("{:<9} {}", self.state.word(), self.console));
        }
    }
}

#[derive(Debug)]
struct StepLine {
    name: String,
    bar: Option<Bar>,
}

impl Progress {
    /// For a run of `nodes`, in the scenario's order, and so many steps.
    pub fn new(ui: &Ui, nodes: &[String], steps: u32) -> Self {
        let nodes = nodes
            .iter()
            .map(|name| NodeLine {
                name: name.clone(),
                state: NodeState::Off,
                booted: None,
                bar: ui.live().then(|| ui.state_line(name)),
                console: String::new(),
            })
            .collect::<Vec<_>>();
        for node in &nodes {
            node.draw();
        }
        Progress { ui: ui.clone(), steps, shared: Mutex::new(Shared { nodes, running: BTreeMap::new() }) }
    }

    /// A thread that panicked while it held the lines leaves them as good as they were.
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the live lines away and tells what came of the run: what failed, where, what shows it, and where the report is.
    pub fn finish(self, run: &Run, files: &Files) {
        // Drops the live lines, wherever the run was interrupted.
        *self.shared() = Shared { nodes: Vec::new(), running: BTreeMap::new() };
        // Only numbers that are no numbers cannot be cleaned, and they are not printed here.
        let cleaned = clean::clean(run);
        let run = cleaned.as_ref().unwrap_or(run);
        let ui = &self.ui;
        let problems = problems(run);
        for problem in problems.iter().take(TOLD) {
            tell(ui, problem);
        }
        if problems.len() > TOLD {
            ui.bad("Failed", format!("and {} more, see the report", problems.len() - TOLD));
        }
        for skip in skips(run) {
            ui.notice("Skipped", format!("{} {}: {}", skip.count, skip.what, text::first_line(&skip.why)));
        }
        ui.status("Report", files.html.display().to_string());
        if run.verdict.outcome.is_failed() {
            for log in run.nodes.iter().filter_map(|node| node.console_log.as_deref()) {
                ui.status("Log", files.folder.join(log).display().to_string());
            }
            for pcap in run.links.iter().filter_map(|link| link.pcap.as_deref()) {
                ui.status("Capture", files.folder.join(pcap).display().to_string());
            }
        }
        let line = format!("{}: {}", run.scenario.name, counts(run));
        match &run.verdict.outcome {
            Outcome::Passed => ui.status("Passed", line),
            Outcome::Skipped { why } => ui.notice("Skipped", format!("{line}: {why}")),
            Outcome::Failed { .. } => ui.bad("Failed", line),
        }
    }
}

/// `15 passed, 1 failed, 1 skipped in 6 m 12 s`.
pub(super) fn counts(run: &Run) -> String {
    let verdict = &run.verdict;
    let mut parts = vec![format!("{} passed", verdict.passed)];
    for (count, word) in [(verdict.failed, "failed"), (verdict.skipped, "skipped")] {
        if count > 0 {
            parts.push(format!("{count} {word}"));
        }
    }
    format!("{} in {}", parts.join(", "), human_time(Duration::from_millis(run.duration_ms)))
}

fn tell(ui: &Ui, problem: &Problem<'_>) {
    let at = problem.at_ms.map(|ms| format!(" at {}", seconds(ms))).unwrap_or_default();
    ui.bad("Failed", format!("{} {}{at}", problem.subject, problem.name));
    ui.quote(first_lines(problem.why, LINES));
    if let Some(evidence) = problem.evidence.first() {
        ui.quote(answer(evidence));
    }
    if let Some(stuck) = problem.stuck {
        let told = stuck.jobs.iter().map(|job| format!("waiting for {job}"));
        let told = told.chain(stuck.failed_units.iter().map(|unit| format!("failed: {unit}")));
        ui.quote(told.chain(stuck.stacks.iter().cloned()).take(2 * LINES).collect::<Vec<_>>().join("\n"));
    }
    for (node, lines) in &problem.console {
        let Some(last) = lines.last() else { continue };
        ui.quote(format!("console of {node}, up to {}:", seconds(last.at_ms)));
        for line in lines.iter().skip(lines.len().saturating_sub(LINES)) {
            ui.quote(format!("  {}", line.text));
        }
    }
}

/// What a node answered, in a few lines.
fn answer(evidence: &Evidence) -> String {
    let mut said = format!("{}: {}", evidence.node, text::first_line(&evidence.command));
    if let Some(status) = evidence.status {
        said.push_str(&format!(" (exit {status})"));
    }
    if let Some(expected) = &evidence.expected {
        said.push_str(&format!("\n  expected: {}", first_lines(expected, LINES).replace('\n', "\n  ")));
    }
    for (name, output) in [("stdout", &evidence.stdout), ("stderr", &evidence.stderr)] {
        if !output.trim().is_empty() {
            said.push_str(&format!("\n  {name}: {}", last_lines(output, LINES).replace('\n', "\n  ")));
        }
    }
    said
}

fn first_lines(text: &str, count: usize) -> String {
    text.trim().lines().take(count).collect::<Vec<_>>().join("\n")
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

/// `83.1 s`.
fn seconds(ms: u64) -> String {
    format!("{:.1} s", ms as f64 / 1000.0)
}

/// One line of a guest, fit to be shown: plain, and no wider than a wide terminal.
fn one_line(text: &str) -> String {
    plain(text::first_line(text)).replace(['\n', '\t'], " ").chars().take(400).collect()
}

impl Events for Progress {
    fn node_state(&self, node: &str, state: NodeState) {
        let mut shared = self.shared();
        let Some(line) = shared.nodes.iter_mut().find(|line| line.name == node) else { return };
        let before = std::mem::replace(&mut line.state, state);
        if before == state {
            return;
        }
        if let Some(bar) = &line.bar {
            bar.restart();
        }
        if state == NodeState::Firmware {
            line.booted = Some(Instant::now());
            line.console.clear();
        }
        line.draw();
        let took = line.booted.map_or(Duration::ZERO, |booted| booted.elapsed());
        match state {
            NodeState::Firmware => self.ui.status("Booting", node),
            NodeState::Ready if before == NodeState::Paused => self.ui.status("Resumed", node),
            NodeState::Ready => self.ui.status("Ready", format!("{node} {}", human_time(took))),
            NodeState::Paused => self.ui.notice("Paused", node),
            NodeState::Down => self.ui.notice("Down", node),
            NodeState::Off => self.ui.detail("Off", node),
            NodeState::Kernel | NodeState::Userspace => {
                self.ui.detail(if state == NodeState::Kernel { "Kernel" } else { "Userspace" }, node);
            }
        }
    }

    fn console_line(&self, node: &str, line: &str) {
        if !self.ui.live() || line.trim().is_empty() {
            return;
        }
        let mut shared = self.shared();
        if let Some(lane) = shared.nodes.iter_mut().find(|lane| lane.name == node) {
            lane.console = one_line(line);
            lane.draw();
        }
    }

    fn step_began(&self, number: u32, name: &str, nodes: &[String]) {
        let bar = self.ui.live().then(|| self.ui.state_line(&format!("Step {number}/{}", self.steps)));
        if let Some(bar) = &bar {
            bar.message(format!("{name} ({})", nodes.join(", ")));
        }
        self.ui.detail("Step", format!("{number}/{} {name} begins on {}", self.steps, nodes.join(", ")));
        self.shared().running.insert(number, StepLine { name: name.to_owned(), bar });
    }

    fn step_retry(&self, number: u32, attempt: u32, why: &str) {
        let shared = self.shared();
        if let Some(line) = shared.running.get(&number) {
            let text = format!("{}, attempt {attempt}: {}", line.name, one_line(why));
            if let Some(bar) = &line.bar {
                bar.message(text.clone());
            }
            self.ui.detail("Retry", text);
        }
    }

    fn step_ended(&self, step: &Step) {
        drop(self.shared().running.remove(&step.number));
        let line = format!("{}/{} {}", step.number, self.steps, step.name);
        let took = human_time(Duration::from_millis(step.duration_ms));
        match &step.outcome {
            Outcome::Passed if step.attempts > 1 => {
                self.ui.status("Step", format!("{line} ... ok {took} ({} attempts)", step.attempts));
            }
            Outcome::Passed => self.ui.status("Step", format!("{line} ... ok {took}")),
            Outcome::Failed { why } => {
                self.ui.bad("Failed", format!("{line} ... after {took}: {}", one_line(why)));
            }
            // Told once per reason at the end: a step that fails mostly takes all that follow with it.
            Outcome::Skipped { why } => self.ui.detail("Skipped", format!("{line}: {}", one_line(why))),
        }
    }

    fn fault(&self, fault: &Fault) {
        self.ui.notice("Fault", format!("{}: {}", fault.node, what(fault)));
    }

    fn healed(&self, fault: &Fault) {
        self.ui.status("Healed", format!("{}: {}", fault.node, what(fault)));
    }

    fn broken(&self, invariant: &Invariant) {
        let why = one_line(invariant.outcome.why());
        self.ui.bad("Failed", format!("invariant {}: {why}", invariant.name));
    }

    fn finding(&self, finding: &Finding) {
        let line = format!("{}: {}: {}", finding.node, finding.rule, one_line(&finding.line));
        match &finding.allowed_by {
            Some(reason) => self.ui.detail("Allowed", format!("{line} ({reason})")),
            None if finding.severity == Severity::Warning => self.ui.notice("Console", line),
            None => self.ui.bad("Console", line),
        }
    }

    fn incident(&self, incident: &Incident) {
        let whose = incident.node.as_deref().map(|node| format!("{node}: ")).unwrap_or_default();
        self.ui.bad("Failed", format!("{whose}{}", one_line(&incident.what)));
    }

    fn note(&self, word: &str, text: &str) {
        self.ui.status(word, one_line(text));
    }
}

/// `power_cut`, or `link: lan cut`.
fn what(fault: &Fault) -> String {
    let kind = fault.kind.replace('_', " ");
    if fault.detail.is_empty() { kind } else { format!("{kind}: {}", fault.detail) }
}
