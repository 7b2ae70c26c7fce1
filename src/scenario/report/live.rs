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
            bar.message(self.text());
        }
    }

    /// What stands behind the name and the time.
    fn text(&self) -> String {
        format!("{:<9} {}", self.state.word(), self.console)
    }
}

#[derive(Debug)]
struct StepLine {
    name: String,
    bar: Option<Bar>,
}

/// How a line is told.
#[derive(Debug, Clone, Copy)]
enum Tone {
    Good,
    Notice,
    Bad,
    /// Only with `-v`.
    Detail,
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

    /// One line, whatever a guest put into it.
    fn say(&self, tone: Tone, word: &str, text: &str) {
        let text = one_line(text);
        match tone {
            Tone::Good => self.ui.status(word, text),
            Tone::Notice => self.ui.notice(word, text),
            Tone::Bad => self.ui.bad(word, text),
            Tone::Detail => self.ui.detail(word, text),
        }
    }

    /// A thread that panicked while it held the lines leaves them as good as they were.
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the live lines away and tells what came of the run: what failed, where, what shows it, and where the report is.
    pub fn finish(self, run: &Run, files: &Files) {
        // Drops the live lines, wherever the run was interrupted.
        *self.shared() = Shared { nodes: Vec::new(), running: BTreeMap::new() };
        let run = &clean::clean(run);
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
        for warning in &run.warnings {
            ui.warn(text::first_line(warning));
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
    let at = problem.at_ms.map(|ms| format!(", at {}", seconds(ms))).unwrap_or_default();
    ui.bad("Failed", format!("{}: {}{at}", problem.subject, problem.name));
    // The line of a console comes with the lines around it.
    if problem.line.is_none() || problem.console.iter().all(|(_, lines)| lines.is_empty()) {
        ui.quote(first_lines(problem.why, LINES));
    }
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
        // A terminal that is stopped must not stop the threads that read the consoles.
        drop(shared);
        match state {
            NodeState::Firmware => self.say(Tone::Good, "Booting", node),
            NodeState::Ready if before == NodeState::Paused => self.say(Tone::Good, "Resumed", node),
            NodeState::Ready => self.say(Tone::Good, "Ready", &format!("{node} {}", human_time(took))),
            NodeState::Paused => self.say(Tone::Notice, "Paused", node),
            NodeState::Down => self.say(Tone::Notice, "Down", node),
            NodeState::Off => self.say(Tone::Detail, "Off", node),
            NodeState::Kernel | NodeState::Userspace => {
                self.say(Tone::Detail, if state == NodeState::Kernel { "Kernel" } else { "Userspace" }, node);
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
        let bar = self
            .ui
            .live()
            .then(|| self.ui.state_line(&format!("Step {}/{}", number.min(self.steps), self.steps)));
        if let Some(bar) = &bar {
            bar.message(one_line(&format!("{name} ({})", nodes.join(", "))));
        }
        self.say(
            Tone::Detail,
            "Step",
            &format!("{number}/{} {name} begins on {}", self.steps, nodes.join(", ")),
        );
        self.shared().running.insert(number, StepLine { name: name.to_owned(), bar });
    }

    fn step_retry(&self, number: u32, attempt: u32, why: &str) {
        let shared = self.shared();
        let Some(line) = shared.running.get(&number) else { return };
        let text = one_line(&format!("{}, attempt {attempt}: {why}", line.name));
        if let Some(bar) = &line.bar {
            bar.message(text.clone());
        }
        drop(shared);
        self.say(Tone::Detail, "Retry", &text);
    }

    fn step_ended(&self, step: &Step) {
        drop(self.shared().running.remove(&step.number));
        // The last one is no step of the scenario: every run ends with it.
        let number =
            if step.number > self.steps { String::new() } else { format!("{}/{} ", step.number, self.steps) };
        let line = format!("{number}{}", step.name);
        let took = human_time(Duration::from_millis(step.duration_ms));
        match &step.outcome {
            Outcome::Passed if step.attempts > 1 => {
                self.say(Tone::Good, "Step", &format!("{line} ... ok {took} ({} attempts)", step.attempts));
            }
            Outcome::Passed => self.say(Tone::Good, "Step", &format!("{line} ... ok {took}")),
            Outcome::Failed { why } => {
                self.say(Tone::Bad, "Failed", &format!("step {line} ... after {took}: {why}"));
            }
            // Told once per reason at the end: a step that fails mostly takes all that follow with it.
            Outcome::Skipped { why } => self.say(Tone::Detail, "Skipped", &format!("{line}: {why}")),
        }
    }

    fn fault(&self, fault: &Fault) {
        self.say(Tone::Notice, "Fault", &format!("{}: {}", fault.node, what(fault)));
    }

    fn healed(&self, fault: &Fault) {
        self.say(Tone::Good, "Healed", &format!("{}: {}", fault.node, what(fault)));
    }

    fn broken(&self, invariant: &Invariant) {
        let why = invariant.outcome.why();
        self.say(Tone::Bad, "Failed", &format!("invariant {}: {why}", invariant.name));
    }

    fn finding(&self, finding: &Finding) {
        let line = format!("{}: {}: {}", finding.node, finding.rule, finding.line);
        match &finding.allowed_by {
            Some(reason) => self.say(Tone::Detail, "Allowed", &format!("{line} ({reason})")),
            None if finding.severity == Severity::Warning => self.say(Tone::Notice, "Console", &line),
            None => self.say(Tone::Bad, "Console", &line),
        }
    }

    fn incident(&self, incident: &Incident) {
        let whose = incident.node.as_deref().map(|node| format!("{node}: ")).unwrap_or_default();
        self.say(Tone::Bad, "Failed", &format!("{whose}{}", incident.what));
    }

    fn note(&self, word: &str, text: &str) {
        self.say(Tone::Good, word, text);
    }
}

/// `power_cut`, or `link: lan cut`.
fn what(fault: &Fault) -> String {
    let kind = fault.kind.replace('_', " ");
    if fault.detail.is_empty() { kind } else { format!("{kind}: {}", fault.detail) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::report::sample::{HOSTILE, hostile, rich};
    use crate::ui::Verbosity;

    fn files() -> Files {
        Files {
            folder: "out/test/three-node".into(),
            json: "out/test/three-node/report.json".into(),
            junit: "out/test/three-node/junit.xml".into(),
            html: "out/test/three-node/index.html".into(),
        }
    }

    /// Tells a progress all that happened in `run`, as the engine would.
    fn tell_all(progress: &Progress, run: &Run) {
        for node in &run.nodes {
            for change in &node.states {
                progress.node_state(&node.name, change.state);
                progress.console_line(&node.name, "[    0.1] Linux version 6.12");
            }
        }
        for step in &run.steps {
            if step.attempts > 0 {
                progress.step_began(step.number, &step.name, &step.nodes);
                for attempt in 1..step.attempts {
                    progress.step_retry(step.number, attempt, "not yet");
                }
            }
            progress.step_ended(step);
        }
        for fault in &run.faults {
            progress.fault(fault);
            if fault.until_ms.is_some() {
                progress.healed(fault);
            }
        }
        run.findings.iter().for_each(|finding| progress.finding(finding));
        run.incidents.iter().for_each(|incident| progress.incident(incident));
        for invariant in run.invariants.iter().filter(|invariant| invariant.outcome.is_failed()) {
            progress.broken(invariant);
        }
    }

    fn names(run: &Run) -> Vec<String> {
        run.nodes.iter().map(|node| node.name.clone()).collect()
    }

    #[test]
    fn a_run_is_told_in_plain_lines_and_summed_up() {
        let run = rich();
        let (ui, lines) = Ui::kept(Verbosity::Normal, false);
        let progress = Progress::new(&ui, &names(&run), 14);
        progress.note("Planned", "TCG, 2 cores: about 6 minutes");
        tell_all(&progress, &run);
        progress.finish(&run, &files());
        let mut settings = insta::Settings::clone_current();
        // How long this test took from one state to the next.
        settings.add_filter(r"(Ready \S+) \d+\.\d s", "$1 0.0 s");
        settings.bind(|| insta::assert_snapshot!("terminal", lines.lock().unwrap()));
    }

    #[test]
    fn hostile_text_cannot_write_to_the_terminal_on_its_own() {
        let run = hostile();
        for live in [false, true] {
            let (ui, lines) = Ui::kept(Verbosity::Verbose, live);
            let progress = Progress::new(&ui, &names(&run), 14);
            tell_all(&progress, &run);
            for node in &run.nodes {
                progress.console_line(&node.name, HOSTILE);
            }
            progress.step_began(1, "a step", &[]);
            progress.step_retry(1, 1, HOSTILE);
            for node in &progress.shared().nodes {
                assert!(!node.text().contains(char::is_control), "{:?}", node.text());
            }
            progress.finish(&run, &files());
            let lines = lines.lock().unwrap();
            assert!(lines.lines().count() > 60, "{lines}");
            let bad = lines.lines().find(|line| line.contains(char::is_control) || line.contains('\u{202e}'));
            assert_eq!(bad, None);
        }
    }

    #[test]
    fn many_threads_tell_at_once_and_a_step_that_never_ended_is_forgotten() {
        let names: Vec<String> = (0..8).map(|n| format!("node-{n}")).collect();
        let (ui, lines) = Ui::kept(Verbosity::Normal, true);
        let progress = Progress::new(&ui, &names, 100);
        std::thread::scope(|scope| {
            for (number, name) in names.iter().enumerate() {
                let progress = &progress;
                scope.spawn(move || {
                    for n in 0..200 {
                        progress.console_line(name, &format!("line {n}"));
                        progress.node_state(name, [NodeState::Firmware, NodeState::Ready][n % 2]);
                    }
                    progress.step_began(number as u32, "a step", &[]);
                });
            }
        });
        assert_eq!(progress.shared().running.len(), 8);
        progress.finish(&rich(), &files());
        let lines = lines.lock().unwrap();
        assert_eq!(lines.matches("       Ready node-3").count(), 100);
        assert!(
            lines.ends_with("Failed three-node: 13 passed, 4 failed, 5 skipped in 6 m 12 s\n"),
            "{lines}"
        );
    }

    #[test]
    fn only_the_state_of_known_nodes_is_told_and_only_when_it_changes() {
        let (ui, lines) = Ui::kept(Verbosity::Normal, false);
        let progress = Progress::new(&ui, &["a".to_owned()], 1);
        for (node, state) in [
            ("a", NodeState::Firmware),
            ("a", NodeState::Firmware),
            ("b", NodeState::Firmware),
            ("a", NodeState::Paused),
            ("a", NodeState::Ready),
        ] {
            progress.node_state(node, state);
        }
        assert_eq!(*lines.lock().unwrap(), "     Booting a\n      Paused a\n     Resumed a\n");
    }
}
