//! What is known of a machine: its boots, its states, its console, its health.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::context::Context;
use crate::error::Failure;
use crate::qemu::console::Position;
use crate::qemu::health::{self, Expected, Watch};
use crate::qemu::machine::Machine;
use crate::qemu::ready::{self, LOST, Parser, Ready};
use crate::scenario::result::{
    Boot, BootEnd, ConsoleLine, Finding, NodeState, Severity, StateChange, Timeline, Unit,
};
use crate::scenario::spec::Pattern;

/// Lines of the present boot that are kept for steps that look for one.
const LINES: usize = 10_000;
/// Lines of an excerpt.
const TAIL: usize = 40;

/// Whether a machine has power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Power {
    Off,
    On,
}

/// What is known of a machine.
#[derive(Debug)]
pub(super) struct Told {
    name: String,
    pub(super) power: Power,
    boots: Vec<Boot>,
    began: Instant,
    states: Vec<StateChange>,
    /// The console since this boot began; the end of the one before it if nothing came yet.
    lines: VecDeque<ConsoleLine>,
    /// Lines of `lines` that are of earlier boots.
    earlier: usize,
    /// Lines that came so far, those not counted by which systemd shows that a job is still running.
    heard: u64,
    parser: Parser,
    ready: Option<Ready>,
    /// How the present boot is about to end, by somebody's order.
    leaving: Option<BootEnd>,
    health: Watch,
    /// Findings that were passed on.
    passed_on: usize,
}

impl Told {
    pub(super) fn new(name: &str, health: Watch) -> Self {
        Told {
            name: name.to_owned(),
            power: Power::Off,
            boots: Vec::new(),
            began: Instant::now(),
            states: vec![StateChange::default()],
            lines: VecDeque::new(),
            earlier: 0,
            heard: 0,
            parser: Parser::default(),
            ready: None,
            leaving: None,
            health,
            passed_on: 0,
        }
    }

    fn state(&self) -> NodeState {
        self.states.last().map_or(NodeState::Off, |change| change.state)
    }

    fn enter(&mut self, context: &Context<'_>, state: NodeState) {
        if self.state() != state {
            self.states.push(StateChange { at_ms: context.now(), state });
            context.events.node_state(&self.name, state);
        }
    }

    /// A boot begins: the machine is being switched on, or was reset.
    pub(super) fn begin(&mut self, context: &Context<'_>) {
        let number = u32::try_from(self.boots.len()).unwrap_or(u32::MAX).saturating_add(1);
        self.began = Instant::now();
        self.boots.push(Boot { number, began_ms: context.now(), ..Boot::default() });
        self.earlier = self.lines.len();
        self.parser = Parser::default();
        self.ready = None;
        self.leaving = None;
        self.enter(context, NodeState::Firmware);
    }

    fn end(&mut self, context: &Context<'_>, how: BootEnd) {
        let now = context.now();
        if let Some(boot) = self.boots.last_mut().filter(|boot| boot.ended_ms.is_none()) {
            boot.ended_ms = Some(now);
            boot.ended = how;
        }
    }

    /// Somebody is about to end the present boot in this way.
    pub(super) fn leaving(&mut self, how: BootEnd) {
        self.leaving = Some(how);
        match how {
            BootEnd::Crash => self.health.expect(Expected::Crash),
            BootEnd::Cut => self.health.expect(Expected::PowerCut),
            BootEnd::Refused => self.health.expect(Expected::Damage),
            _ => {}
        }
    }

    /// It is off now.
    pub(super) fn off(&mut self, context: &Context<'_>) {
        self.power = Power::Off;
        let how = self.leaving.take().unwrap_or(BootEnd::Off);
        self.end(context, how);
        self.ready = None;
        self.enter(context, if how == BootEnd::Off { NodeState::Off } else { NodeState::Down });
    }

    /// QEMU says that the machine was reset.
    pub(super) fn reset(&mut self, context: &Context<'_>) {
        // Firmware may reset the machine before it starts a loader: that is no boot of its own.
        if self.state() == NodeState::Firmware && self.leaving.is_none() {
            return;
        }
        let how = self.leaving.take();
        self.end(context, how.unwrap_or(BootEnd::Panic));
        if how.is_none() {
            let line = self.lines.back().map(|line| line.text.clone()).unwrap_or_default();
            let console =
                vec![crate::scenario::result::ConsoleExcerpt { node: self.name.clone(), lines: self.tail() }];
            let what = "it restarted and nobody told it to".to_owned();
            context.incident(Some(&self.name), what, format!("its last line was: {line}"), console);
        }
        self.begin(context);
    }

    /// QEMU ended and nobody asked for it.
    pub(super) fn died(&mut self, context: &Context<'_>, failure: &Failure) {
        // A guest that switches itself off by order is not dead.
        if self.leaving == Some(BootEnd::Off) {
            return;
        }
        self.power = Power::Off;
        self.leaving = None;
        self.end(context, BootEnd::Died);
        self.ready = None;
        self.enter(context, NodeState::Down);
        let console =
            vec![crate::scenario::result::ConsoleExcerpt { node: self.name.clone(), lines: self.tail() }];
        context.incident(Some(&self.name), failure.to_string(), failure.hints().join("\n"), console);
    }

    pub(super) fn paused(&mut self, context: &Context<'_>, paused: bool) {
        let running = if self.ready.is_some() { NodeState::Ready } else { NodeState::Userspace };
        self.enter(context, if paused { NodeState::Paused } else { running });
    }

    /// A line of the console.
    pub(super) fn line(&mut self, context: &Context<'_>, line: &str) {
        let at_ms = context.now();
        context.events.console_line(&self.name, line);
        // It says that a job runs as long as it does (systemd's manager.c): who waits for ever says so for ever.
        self.heard += u64::from(!line.contains("job is running for "));
        self.lines.push_back(ConsoleLine { at_ms, text: line.to_owned() });
        if self.lines.len() > LINES {
            self.lines.pop_front();
            self.earlier = self.earlier.saturating_sub(1);
        }
        // The first lines of Linux (init/main.c) and of systemd as PID 1 (src/core/main.c).
        if self.state() == NodeState::Firmware && line.contains("Linux version ") {
            self.enter(context, NodeState::Kernel);
        } else if self.state() == NodeState::Kernel
            && line.contains("systemd")
            && line.contains("running in system mode")
        {
            self.enter(context, NodeState::Userspace);
        }
        self.health.line(Duration::from_millis(at_ms), line);
        self.pass_on(context);
    }

    /// Passes new findings on; one that makes it useless to wait for the machine ends the run.
    fn pass_on(&mut self, context: &Context<'_>) {
        let all = self.health.findings();
        for found in all.iter().skip(self.passed_on) {
            let finding = finding(found);
            context.events.finding(&finding);
            if found.is_bad() && found.severity == health::Severity::Fatal {
                let console = vec![crate::scenario::result::ConsoleExcerpt {
                    node: self.name.clone(),
                    lines: self.tail(),
                }];
                let what = format!("{}: {}", found.about, found.line);
                context.incident(Some(&self.name), what, found.look.to_owned(), console);
            }
        }
        self.passed_on = all.len();
    }

    /// A line of the report of readiness.
    pub(super) fn report(&mut self, context: &Context<'_>, machine: &Machine, line: &str) {
        let Some(mut ready) = self.parser.line(line) else { return };
        ready::complete(machine, &self.boot(), &mut ready);
        if let Some(boot) = self.boots.last_mut() {
            boot.ready_ms = Some(context.now());
            boot.timeline = Some(stages(&ready));
        }
        if ready.is_good() {
            self.enter(context, NodeState::Ready);
        }
        self.ready = Some(ready);
        self.health.expect_nothing();
    }

    /// The present boot, as [`crate::qemu::ready`] knows boots.
    pub(super) fn boot(&self) -> ready::Boot {
        ready::Boot { begin: self.began, console: Position::default(), before: None }
    }

    /// The units of the present boot, told at the end.
    pub(super) fn units(&mut self, told: &crate::qemu::timeline::Timeline) {
        if let Some(timeline) = self.boots.last_mut().and_then(|boot| boot.timeline.as_mut()) {
            timeline.units = Timeline::slowest(told.units.iter().filter_map(unit).collect());
            timeline.critical_chain = told.chain.iter().filter_map(unit).collect();
        }
    }

    pub(super) fn ready(&self) -> Option<&Ready> {
        self.ready.as_ref()
    }

    /// What the machine is waiting for, as it last said.
    pub(super) fn jobs(&self) -> String {
        self.parser.jobs().join("\n")
    }

    /// Lines that came so far and say that something happened.
    pub(super) fn heard(&self) -> u64 {
        self.heard
    }

    pub(super) fn boots(&self) -> usize {
        self.boots.len()
    }

    /// The line of this boot that says that the machine will not come up.
    pub(super) fn lost(&self) -> Option<String> {
        let of_boot = self.lines.iter().skip(self.earlier);
        of_boot.map(|line| &line.text).find(|text| LOST.iter().any(|lost| text.contains(lost))).cloned()
    }

    /// The first line of this boot with `pattern` in it.
    pub(super) fn find(&self, pattern: &Pattern) -> Option<String> {
        self.lines.iter().skip(self.earlier).map(|line| &line.text).find(|text| pattern.is_in(text)).cloned()
    }

    /// The last lines.
    pub(super) fn tail(&self) -> Vec<ConsoleLine> {
        self.lines.iter().skip(self.lines.len().saturating_sub(TAIL)).cloned().collect()
    }

    /// Boots and states, for the report.
    pub(super) fn history(&self) -> (Vec<Boot>, Vec<StateChange>) {
        (self.boots.clone(), self.states.clone())
    }

    /// What the health scanner found, with the lines that came after each.
    pub(super) fn findings(&self) -> Vec<Finding> {
        self.health.findings().iter().map(finding).collect()
    }
}

fn finding(found: &health::Finding) -> Finding {
    let at_ms = super::context::millis(found.at);
    let line = |text: &String| ConsoleLine { at_ms, text: text.clone() };
    let here = std::iter::once(&found.line);
    let expected = found.expected.map(|what| format!("brought about by the run: {what:?}"));
    Finding {
        node: found.node.clone(),
        at_ms,
        rule: found.rule.to_owned(),
        severity: match found.severity {
            health::Severity::Warning => Severity::Warning,
            health::Severity::Error => Severity::Error,
            health::Severity::Fatal => Severity::Fatal,
        },
        line: found.line.clone(),
        excerpt: found.before.iter().chain(here).chain(&found.after).map(line).collect(),
        allowed_by: found.allowed.clone().or(expected),
    }
}

fn stages(ready: &Ready) -> Timeline {
    let stages = &ready.stages;
    Timeline {
        firmware_ms: stages.firmware,
        loader_ms: stages.loader,
        kernel_ms: stages.kernel,
        initrd_ms: stages.initrd,
        userspace_ms: stages.userspace,
        ..Timeline::default()
    }
}

fn unit(unit: &crate::qemu::timeline::Unit) -> Option<Unit> {
    Some(Unit { name: unit.name.clone(), start_ms: unit.start, end_ms: unit.end? })
}
