//! What a run will do, what it takes, and about how long: told before anything starts.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::calibrate::{Calibration, KVM_BOOT};
use super::seeded::{self, Moment};
use super::spec::{Action, BootWhen, Check, FaultKind, Name, Node, Scenario, Step};
use crate::qemu::config::{Bus, NicModel};

/// What the nodes take that are on at the same time, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Peak {
    /// How many.
    pub nodes: usize,
    /// Bytes of their memory.
    pub memory: u64,
    /// Their virtual CPUs.
    pub cpus: u32,
}

/// The most that is on at once, by the steps. Memory, CPUs and number may have their peaks at different steps.
pub fn peak(scenario: &Scenario) -> Peak {
    let mut on: BTreeSet<&Name> =
        scenario.nodes().filter(|n| n.boot == BootWhen::Auto).map(|n| &n.name).collect();
    let mut peak = Peak::default();
    let mut look = |on: &BTreeSet<&Name>| {
        let nodes = || on.iter().filter_map(|name| scenario.nodes.get(*name));
        peak.nodes = peak.nodes.max(on.len());
        peak.memory = peak.memory.max(nodes().map(|n| n.memory.bytes()).sum());
        peak.cpus = peak.cpus.max(nodes().map(|n| n.cpus).sum());
    };
    look(&on);
    for step in &scenario.steps {
        match step.action {
            Action::Start => on.extend(step.on.iter()),
            Action::PowerOff | Action::Refused(_) => on.retain(|name| !step.on.has(name)),
            _ => continue,
        }
        look(&on);
    }
    peak
}

/// Times under KVM of what is no boot: a script through the door, an orderly shutdown, a check that asks several things.
const SCRIPT: Duration = Duration::from_millis(300);
const SHUTDOWN: Duration = Duration::from_secs(2);
const CHECK: Duration = Duration::from_millis(800);
/// And for the kernel contract, which loads every module and makes every device.
const CONTRACT: Duration = Duration::from_secs(5);
/// A step that tries again until something holds.
const UNTIL: Duration = Duration::from_secs(1);
/// `panic=` of the images' command line (images/node.toml): a kernel that panicked waits so long before it reboots.
const PANIC: Duration = Duration::from_secs(10);
/// Reading the images twice to compare their digests, making disks and networks, taking all down.
const AROUND: Duration = Duration::from_secs(6);

/// What a run will do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The scenario's name.
    pub scenario: String,
    /// Its file.
    pub file: String,
    /// What it says of itself.
    pub description: String,
    /// What everything random comes from.
    pub seed: u64,
    /// `KVM` or `TCG`.
    pub accelerator: String,
    /// CPUs of the host that kiln may use.
    pub host_cpus: u32,
    /// What the limits of steps are multiplied by.
    pub factor: f64,
    /// How much of it is for the accelerator and the CPU, by the CPU time that a test guest took.
    pub slowdown: f64,
    /// How much of it is for nodes that share the CPUs.
    pub crowd: f64,
    /// How much of it is for what else runs on the machine.
    pub busy: f64,
    /// CPUs that other programs want just now.
    pub other_cpus: f64,
    /// The same for people.
    pub reasons: Vec<String>,
    /// About how long it takes.
    pub seconds: u64,
    /// The same for people: `TCG, 2 cores: about 6 minutes`.
    pub estimate: String,
    /// After so long it is given up.
    pub limit_seconds: u64,
    /// How often a node boots.
    pub boots: u64,
    /// What is on at the same time.
    pub peak: Peak,
    /// The machines, by name.
    pub nodes: Vec<PlannedNode>,
    /// The steps, in order.
    pub steps: Vec<PlannedStep>,
    /// The faults: by time, then by step.
    pub faults: Vec<PlannedFault>,
    /// What must hold before each step.
    pub invariants: Vec<String>,
}

/// A machine of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedNode {
    /// Its name.
    pub name: String,
    /// Whose image it boots.
    pub profile: String,
    /// The variant of the image.
    pub flavour: Option<String>,
    /// Bytes of memory.
    pub memory: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Disks, such as `nvme 8GiB`.
    pub disks: Vec<String>,
    /// Network cards, such as `lan igb 10.77.0.11`.
    pub nics: Vec<String>,
}

/// A step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedStep {
    /// From 1.
    pub number: usize,
    /// What it proves.
    pub name: String,
    /// Its action.
    pub action: String,
    /// For whom.
    pub nodes: Vec<String>,
    /// What it may take here, in milliseconds.
    pub limit_ms: u64,
    /// Whether kiln put it in.
    pub implied: bool,
}

/// A fault of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedFault {
    /// Milliseconds after all nodes were ready; `None` if it comes after a step.
    pub at_ms: Option<u64>,
    /// The step it comes after.
    pub after: Option<String>,
    /// Whom it hits.
    pub node: String,
    /// What it is: `power_cut`, `reboot`, `crash`, `pause` or `link`.
    pub kind: String,
}

impl Plan {
    /// The plan of `scenario` with everything random from `seed`, on a machine that was measured.
    pub fn new(scenario: &Scenario, seed: u64, calibration: &Calibration) -> Self {
        let peak = peak(scenario);
        let factor = calibration.factor(peak.nodes);
        let seconds = estimate(scenario, calibration).as_secs();
        let cores = if calibration.cpus == 1 { "core" } else { "cores" };
        let accelerator = calibration.accel.word();
        Plan {
            scenario: scenario.name.clone(),
            file: scenario.file.clone(),
            description: scenario.description.clone(),
            seed,
            accelerator: accelerator.to_owned(),
            host_cpus: calibration.cpus,
            factor,
            slowdown: calibration.slowdown,
            crowd: calibration.crowd(peak.nodes),
            busy: calibration.busy(peak.nodes),
            other_cpus: calibration.others,
            reasons: calibration.why(peak.nodes),
            seconds,
            estimate: format!("{accelerator}, {} {cores}: about {}", calibration.cpus, about(seconds)),
            limit_seconds: scenario.limit.scaled(factor).as_secs(),
            boots: boots(scenario),
            peak,
            nodes: scenario.nodes().map(node).collect(),
            steps: scenario.steps.iter().enumerate().map(|(index, s)| step(index, s, factor)).collect(),
            faults: faults(scenario, seed),
            invariants: scenario.invariants.iter().map(|invariant| invariant.name.clone()).collect(),
        }
    }

    /// For people, line by line.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{}: {}", self.file, self.description), String::new()];
        lines.push(self.estimate.clone());
        if self.factor > 1.0 {
            lines.push(format!(
                "limits are {:.1} times those of the file: {}",
                self.factor,
                self.reasons.join("; times ")
            ));
        } else {
            lines.push("limits are those of the file".to_owned());
        }
        lines.push(format!(
            "the run is given up after {}; a step before its limit if no machine does anything for the time that the file gives it",
            about(self.limit_seconds)
        ));
        lines.push(format!(
            "{}, {} MiB of memory and {} virtual CPUs at once; {}; seed {}",
            counted(self.peak.nodes, "node"),
            self.peak.memory >> 20,
            self.peak.cpus,
            counted(self.boots, "boot"),
            self.seed
        ));
        let rows = self.nodes.iter().map(|node| {
            let image = match &node.flavour {
                Some(flavour) => format!("{} ({flavour})", node.profile),
                None => node.profile.clone(),
            };
            vec![
                node.name.clone(),
                image,
                format!("{} MiB", node.memory >> 20),
                counted(node.cpus, "CPU"),
                node.disks.join(", "),
                node.nics.join(", "),
            ]
        });
        section(&mut lines, "nodes", rows.collect());
        let rows = self.steps.iter().map(|step| {
            vec![step.number.to_string(), step.action.clone(), step.name.clone(), step.nodes.join(", ")]
        });
        section(&mut lines, "steps", rows.collect());
        let rows = self.faults.iter().map(|fault| {
            let when = match (&fault.after, fault.at_ms) {
                (Some(step), _) => format!("after `{step}`"),
                (None, at) => format!("{:.1} s", at.unwrap_or(0) as f64 / 1000.0),
            };
            vec![when, fault.kind.clone(), fault.node.clone()]
        });
        section(&mut lines, "faults", rows.collect());
        let rows = self.invariants.iter().map(|name| vec![name.clone()]);
        section(&mut lines, "before each step", rows.collect());
        lines
    }
}

/// A heading and a table whose columns are as wide as their widest cell.
fn section(lines: &mut Vec<String>, heading: &str, rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        return;
    }
    lines.extend([String::new(), heading.to_owned()]);
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let length = |row: &Vec<String>, column: usize| row.get(column).map_or(0, |cell| cell.chars().count());
    let width = |column| rows.iter().map(|row| length(row, column)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, " {cell:width$} ");
        }
        lines.push(line.trim_end().to_owned());
    }
}

fn counted(number: impl TryInto<u64>, what: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A length of time as a person would guess it.
pub fn about(seconds: u64) -> String {
    match seconds {
        0..100 => format!("{} seconds", seconds.div_ceil(10).max(1) * 10),
        100..5400 => counted((seconds + 30) / 60, "minute"),
        _ => counted((seconds + 1800) / 3600, "hour"),
    }
}

fn node(node: &Node) -> PlannedNode {
    let disk = |disk: &super::spec::Disk| {
        let bus = match disk.bus {
            Bus::VirtioBlk => "virtio",
            Bus::Nvme => "nvme",
            Bus::Ahci => "ahci",
            Bus::UsbStorage => "usb",
        };
        format!("{bus} {}", disk.size)
    };
    let nic = |nic: &super::spec::Nic| {
        let model = match nic.model {
            NicModel::Virtio => "virtio",
            NicModel::E1000e => "e1000e",
            NicModel::Igb => "igb",
        };
        format!("{} {model} {}", nic.network, nic.address)
    };
    PlannedNode {
        name: node.name.to_string(),
        profile: node.profile.clone(),
        flavour: node.flavour.map(|flavour| flavour.to_string()),
        memory: node.memory.bytes(),
        cpus: node.cpus,
        disks: node.disks.iter().map(disk).collect(),
        nics: node.nics.iter().map(nic).collect(),
    }
}

fn step(index: usize, step: &Step, factor: f64) -> PlannedStep {
    let limit = match &step.action {
        Action::Wait(span) => span.duration(),
        Action::PowerCuts(cuts) => step.limit.scaled(factor).saturating_mul(cuts.count),
        _ => step.limit.scaled(factor),
    };
    PlannedStep {
        number: index + 1,
        name: step.name.clone(),
        action: step.action.word().to_owned(),
        nodes: step.on.iter().map(Name::to_string).collect(),
        limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        implied: step.implied,
    }
}

fn faults(scenario: &Scenario, seed: u64) -> Vec<PlannedFault> {
    let planned = |strike: seeded::Strike<'_>| {
        let (at_ms, after) = match strike.moment {
            Moment::At(at) => (Some(u64::try_from(at.as_millis()).unwrap_or(u64::MAX)), None),
            Moment::After(step) => (None, scenario.steps.get(step).map(|step| step.name.clone())),
        };
        PlannedFault {
            at_ms,
            after,
            node: strike.fault.node.to_string(),
            kind: strike.fault.kind.word().to_owned(),
        }
    };
    seeded::strikes(scenario, seed).into_iter().map(planned).collect()
}

/// A node that starts K3s takes so many times as long until it is up, as three-node was measured, and so do scripts on it, which call kubectl.
const K3S_BOOT: u32 = 5;
const K3S_SCRIPT: u32 = 10;

/// How often a node boots: in the beginning, by steps, by faults.
fn boots(scenario: &Scenario) -> u64 {
    let beginning = scenario.nodes().filter(|n| n.boot == BootWhen::Auto).count() as u64;
    let steps = scenario.steps.iter().map(|step| {
        step.on.len() as u64
            * match &step.action {
                Action::Start | Action::Reboot | Action::Crash | Action::PowerCut => 1,
                Action::PowerCuts(cuts) => u64::from(cuts.count),
                _ => 0,
            }
    });
    let faults = scenario.faults.iter().map(|fault| match (&fault.kind, fault.when) {
        (FaultKind::Pause { .. } | FaultKind::Link { .. }, _) => 0,
        (_, super::spec::When::Random { count, .. }) => u64::from(count),
        _ => 1,
    });
    beginning + steps.sum::<u64>() + faults.sum::<u64>()
}

/// About how long a run takes. Faults beside the steps are not in it: a step that one of them holds up takes longer.
fn estimate(scenario: &Scenario, calibration: &Calibration) -> Duration {
    let mut booting: BTreeSet<&Name> =
        scenario.nodes().filter(|n| n.boot == BootWhen::Auto).map(|n| &n.name).collect();
    let mut sum = AROUND;
    for step in &scenario.steps {
        let nodes = step.on.len();
        let starts_k3s = |name: &Name| scenario.nodes.get(name).is_some_and(Node::starts_k3s);
        let work = if step.on.iter().any(starts_k3s) { K3S_SCRIPT } else { 1 };
        let scaled = |time: Duration| time.mul_f64(calibration.factor(nodes));
        let boot = calibration.boot(nodes) * if work > 1 { K3S_BOOT } else { 1 };
        sum += match &step.action {
            Action::Start => {
                booting.extend(step.on.iter());
                Duration::ZERO
            }
            // All that boot do so at once, whoever is waited for.
            Action::Ready | Action::Refused(_) => {
                let waited = step.on.iter().any(|name| booting.contains(name));
                let heavier = if booting.iter().any(|name| starts_k3s(name)) { K3S_BOOT } else { 1 };
                let time = if waited { calibration.boot(booting.len()) * heavier } else { scaled(SCRIPT) };
                booting.clear();
                time
            }
            Action::Reboot => scaled(SHUTDOWN) + boot,
            Action::Crash => PANIC + boot,
            Action::PowerCut => boot,
            Action::PowerCuts(cuts) => {
                (cuts.within.duration() / 2 + boot + scaled(2 * SCRIPT)).saturating_mul(cuts.count)
            }
            Action::PowerOff => scaled(SHUTDOWN),
            Action::Wait(span) => span.duration(),
            Action::Check { check: Check::Contract, .. } => scaled(CONTRACT),
            Action::Check { .. } => scaled(CHECK),
            Action::Run(run) if run.until => scaled(UNTIL) * work,
            Action::Console(_) => scaled(KVM_BOOT / 2),
            Action::Run(_) => scaled(SCRIPT) * work,
            Action::Unit(_) | Action::Port(_) | Action::Copy { .. } | Action::Fetch { .. } => scaled(SCRIPT),
            Action::Pause
            | Action::Resume
            | Action::Screenshot(_)
            | Action::Link { .. }
            | Action::Heal { .. } => Duration::ZERO,
        };
        let asked = scenario.invariants.iter().filter(|i| i.on.iter().any(|name| step.up.contains(name)));
        sum +=
            asked.map(|invariant| SCRIPT.mul_f64(calibration.factor(invariant.on.len()))).sum::<Duration>();
    }
    sum
}

#[cfg(test)]
mod tests;
