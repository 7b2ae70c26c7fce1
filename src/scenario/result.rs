//! What a run of a scenario was and what came of it: plain data, filled by the engine, read by the reports.
//!
//! Every time is in milliseconds since the run began, by the host's clock, unless its field says otherwise. Paths are relative
//! to the folder of the report, with `/`. Text that guests wrote is kept as it came but for two things, see [`text`]: it is
//! valid UTF-8 and it is bounded. It is never trusted: the writers of [`super::report`] clean and escape it for their format.
//!
//! The JSON of [`Run`] is a promise to other programs: a field is only added; taking one away or giving it another meaning
//! raises [`SCHEMA`].

pub mod text;
mod verdict;

use serde::{Deserialize, Serialize};

pub use verdict::{Outcome, Verdict};

/// The version of the shape of [`Run`] as JSON.
pub const SCHEMA: u32 = 1;

/// One run of one scenario. The engine makes it with [`Run::new`], fills it, and ends with [`Run::judge`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The version of kiln that ran it.
    pub kiln_version: String,
    /// What was run.
    pub scenario: Scenario,
    /// The seed of everything random: the same seed gives the same faults.
    pub seed: u64,
    /// When it began, RFC 3339 in UTC.
    pub started: String,
    /// How long it took, from the first preparation to the last check.
    pub duration_ms: u64,
    /// The machine it ran on.
    pub host: Host,
    /// What ran the guests' code.
    pub accelerator: Accelerator,
    /// The image files, each once.
    pub images: Vec<Image>,
    /// The machines, in the scenario's order.
    pub nodes: Vec<Node>,
    /// The steps, in the scenario's order; those that were never reached are skipped and say why.
    pub steps: Vec<Step>,
    /// The faults that were injected beside the steps, by time.
    pub faults: Vec<Fault>,
    /// What had to hold before each step.
    pub invariants: Vec<Invariant>,
    /// What the consoles said that no healthy node says, by time.
    pub findings: Vec<Finding>,
    /// What went wrong outside of any step: QEMU ended, a limit of the whole run, Ctrl-C. Each one fails the run.
    pub incidents: Vec<Incident>,
    /// What fails nothing, but should be put right, such as an entry of the allow-list that nothing needs any more.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The cables.
    pub links: Vec<Link>,
    /// The most memory that kiln itself used (VmHWM of proc_pid_status(5)); QEMU is not in it.
    pub peak_memory_kib: u64,
    /// What came of it all.
    pub verdict: Verdict,
}

/// The scenario file of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    /// Its name: the file name without `.toml`.
    pub name: String,
    /// What it says of itself.
    pub description: String,
    /// The path of the file, as the person gave it.
    pub file: String,
    /// The SHA-256 of the file, in hex.
    pub sha256: String,
}

/// The machine that ran the scenario.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// CPUs that kiln may use.
    pub cpus: u32,
    /// Memory that kiln may use, in MiB.
    pub memory_mib: u64,
    /// `uname -sr`.
    pub kernel: String,
}

/// What ran the guests' code.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Accelerator {
    /// `KVM` or `TCG`.
    pub name: String,
    /// Why this one, half a sentence.
    pub reason: String,
    /// How many times longer everything may take than under KVM, as measured; 1 under KVM.
    pub calibration: f64,
}

/// An image file that nodes were started from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The profile it is of.
    pub profile: String,
    /// The variant of the profile, if it is not the plain one.
    pub flavour: Option<String>,
    /// The path of the file, as the person would type it.
    pub file: String,
    /// The SHA-256 of the whole file before the first node started, in hex.
    pub sha256_before: String,
    /// The same after the last one ended; `None` if the run did not get to it.
    pub sha256_after: Option<String>,
    /// The root hash of dm-verity, in hex.
    pub root_hash: String,
    /// The kernel in it, as `uname -r` says.
    pub kernel: String,
}

impl Image {
    /// Whether the run left the file as it was.
    pub fn outcome(&self) -> Outcome {
        match &self.sha256_after {
            Some(after) if *after == self.sha256_before => Outcome::Passed,
            Some(_) => Outcome::failed(format!("{} was changed by the run", self.file)),
            None => Outcome::skipped("the run ended before the file was read again"),
        }
    }
}

/// A machine of the scenario.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name in the scenario.
    pub name: String,
    /// The profile of its image.
    pub profile: String,
    /// The variant of the image, if it is not the plain one.
    pub flavour: Option<String>,
    /// What it is there for: `product` or `edge`.
    pub role: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Its disks; the first one holds the image.
    pub disks: Vec<Disk>,
    /// Its network cards.
    pub nics: Vec<Nic>,
    /// Every time it was switched on or restarted, in order.
    pub boots: Vec<Boot>,
    /// Every change of its state, by time; the first one is at 0.
    pub states: Vec<StateChange>,
    /// The path of the whole console log.
    pub console_log: Option<String>,
    /// The console's last lines.
    pub console_tail: Vec<ConsoleLine>,
    /// What it was doing when the run gave up on it; `None` if it did not.
    pub stuck: Option<Stuck>,
}

/// A disk of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// `virtio`, `nvme`, `ahci` or `usb`.
    pub bus: String,
    /// Its size in bytes, as the guest sees it.
    pub size: u64,
}

/// A network card of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The network it is plugged into.
    pub network: String,
    /// `virtio`, `e1000e` or `igb`.
    pub model: String,
    /// The hardware address.
    pub mac: String,
    /// The IP address the scenario gave it, or `dhcp`.
    pub address: String,
}

/// One boot of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Counted from 1.
    pub number: u32,
    /// When the machine was switched on or reset.
    pub began_ms: u64,
    /// When the guest said that its boot had ended; `None` if it never did.
    pub ready_ms: Option<u64>,
    /// When this boot was over; `None` if the node was up when the run ended.
    pub ended_ms: Option<u64>,
    /// What ended it.
    pub ended: BootEnd,
    /// Where its time went; `None` if the guest could not be asked.
    pub timeline: Option<Timeline>,
}

/// What ended a boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootEnd {
    /// Nothing: the node was up when the run ended.
    #[default]
    Up,
    /// Switched off in order.
    Off,
    /// Restarted in order.
    Reboot,
    /// The plug was pulled.
    Cut,
    /// Its kernel was made to crash, by a step or a fault.
    Crash,
    /// Its kernel stopped of its own: a panic nobody asked for.
    Panic,
    /// Its firmware, initrd or kernel refused to go on, as with a damaged image.
    Refused,
    /// QEMU ended and nobody asked for it.
    Died,
    /// It did not get ready in time.
    Hung,
}

impl BootEnd {
    /// The end in words: `restarted`.
    pub fn words(self) -> &'static str {
        match self {
            BootEnd::Up => "up at the end",
            BootEnd::Off => "switched off",
            BootEnd::Reboot => "restarted",
            BootEnd::Cut => "power cut",
            BootEnd::Crash => "crashed on purpose",
            BootEnd::Panic => "kernel panic",
            BootEnd::Refused => "refused to boot",
            BootEnd::Died => "QEMU ended",
            BootEnd::Hung => "hung",
        }
    }
}

/// Where the time of a boot went, as systemd-analyze(1) counts it. Durations in milliseconds; a stage that firmware or initrd
/// do not tell of is 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Power-on to boot loader.
    pub firmware_ms: u64,
    /// Boot loader and stub.
    pub loader_ms: u64,
    /// The kernel to its first process.
    pub kernel_ms: u64,
    /// The initrd.
    pub initrd_ms: u64,
    /// The root's first process to the end of the initial jobs.
    pub userspace_ms: u64,
    /// The units that took longest, slowest first, as [`Timeline::slowest`] chooses them.
    pub units: Vec<Unit>,
    /// The chain of units that the end of boot waited for, last one first (`systemd-analyze critical-chain`).
    pub critical_chain: Vec<Unit>,
}

impl Timeline {
    /// So many units are kept of one boot: runs have thousands of boots, and a node hundreds of units.
    pub const UNITS: usize = 40;

    /// The slowest of `units`, slowest first, at most [`Timeline::UNITS`]; those that took no time are left out.
    pub fn slowest(mut units: Vec<Unit>) -> Vec<Unit> {
        units.retain(|unit| unit.took_ms() > 0);
        units.sort_by(|a, b| b.took_ms().cmp(&a.took_ms()).then_with(|| a.name.cmp(&b.name)));
        units.truncate(Self::UNITS);
        units
    }
}

/// A systemd unit on its way up; times since this boot began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// The name with its suffix.
    pub name: String,
    /// When its start began.
    pub start_ms: u64,
    /// When it was active.
    pub end_ms: u64,
}

impl Unit {
    /// How long its start took.
    pub fn took_ms(&self) -> u64 {
        self.end_ms.saturating_sub(self.start_ms)
    }
}

/// What a node is seen to be doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Not switched on, or off in order.
    #[default]
    Off,
    /// Switched on; firmware and boot loader.
    Firmware,
    /// The kernel and its initrd.
    Kernel,
    /// The root's services are starting.
    Userspace,
    /// Boot has ended, the node can be used.
    Ready,
    /// Its CPUs are stopped from outside.
    Paused,
    /// Not running and not in order: cut, crashed, refused or died.
    Down,
}

impl NodeState {
    /// The word people see.
    pub fn word(self) -> &'static str {
        match self {
            NodeState::Off => "off",
            NodeState::Firmware => "firmware",
            NodeState::Kernel => "kernel",
            NodeState::Userspace => "userspace",
            NodeState::Ready => "ready",
            NodeState::Paused => "paused",
            NodeState::Down => "down",
        }
    }
}

/// A change of a node's state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateChange {
    /// When.
    pub at_ms: u64,
    /// What it is from then on.
    pub state: NodeState,
}

/// A line of a console.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleLine {
    /// When its end came.
    pub at_ms: u64,
    /// What it said.
    pub text: String,
}

/// Lines of a console around a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleExcerpt {
    /// Whose console.
    pub node: String,
    /// The lines, by time.
    pub lines: Vec<ConsoleLine>,
}

/// What a node was doing when the run gave up on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stuck {
    /// The jobs that systemd was waiting for, one a line.
    pub jobs: Vec<String>,
    /// The units that had failed.
    pub failed_units: Vec<String>,
    /// Kernel stacks of tasks that hung, or of all CPUs; one a line.
    pub stacks: Vec<String>,
}

/// A step of the scenario and what came of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its place in the scenario, counted from 1.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// The nodes it was for.
    pub nodes: Vec<String>,
    /// Its action: `run`, `unit`, `reboot` …
    pub kind: String,
    /// When it began; 0 if it never did.
    pub began_ms: u64,
    /// How long it took.
    pub duration_ms: u64,
    /// How long it could have taken on this host; `None` if the limit was the run's own.
    pub limit_ms: Option<u64>,
    /// How often it was tried; 0 if it never was.
    pub attempts: u32,
    /// What came of it.
    pub outcome: Outcome,
    /// What shows that, per node and command.
    pub evidence: Vec<Evidence>,
    /// The consoles around a failure; empty if it passed.
    pub console: Vec<ConsoleExcerpt>,
    /// Files it left beside the report: screenshots, files fetched from nodes.
    pub files: Vec<String>,
}

/// What was done on a node and what it answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The node.
    pub node: String,
    /// The command, or what was looked at, in words.
    pub command: String,
    /// The exit status; `None` if it was no command, or did not end.
    pub status: Option<i32>,
    /// Standard output, see [`text::excerpt`].
    pub stdout: String,
    /// Standard error, see [`text::excerpt`].
    pub stderr: String,
    /// What would have been right, in words; `None` where the exit status says it all.
    pub expected: Option<String>,
    /// Whether this is what was wrong. Reports show it first; a failed step may have good evidence of other nodes too.
    pub failed: bool,
}

/// A fault that was injected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// When it began.
    pub at_ms: u64,
    /// When it was healed; `None` if it is over at once or was never healed.
    pub until_ms: Option<u64>,
    /// Whom it hit.
    pub node: String,
    /// `power_cut`, `reboot`, `crash`, `pause` or `link`.
    pub kind: String,
    /// What exactly, for people: `lan: cut inwards`.
    pub detail: String,
}

/// What had to hold before each step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Invariant {
    /// Its name.
    pub name: String,
    /// The nodes it was asked on.
    pub nodes: Vec<String>,
    /// How often it was checked.
    pub checked: u32,
    /// When it was first broken.
    pub broken_ms: Option<u64>,
    /// What came of it; skipped if it was never checked.
    pub outcome: Outcome,
    /// What showed that it was broken.
    pub evidence: Vec<Evidence>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth to be known; fails nothing.
    Warning,
    /// Fails the run.
    #[default]
    Error,
    /// Fails the run, and the node cannot go on.
    Fatal,
}

impl Severity {
    /// The word people see.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
            Severity::Fatal => "fatal",
        }
    }
}

/// Something on a console that no healthy node says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Whose console.
    pub node: String,
    /// When the line came.
    pub at_ms: u64,
    /// The rule that knows it: `panic`, `oom`, `hung-task` …
    pub rule: String,
    /// How bad it is.
    pub severity: Severity,
    /// The line.
    pub line: String,
    /// The lines around it.
    pub excerpt: Vec<ConsoleLine>,
    /// The reason of the entry that lets it pass; `None` if nothing does.
    pub allowed_by: Option<String>,
}

impl Finding {
    /// Whether it fails the run.
    pub fn counts(&self) -> bool {
        self.severity > Severity::Warning && self.allowed_by.is_none()
    }
}

/// Something that went wrong outside of any step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// When.
    pub at_ms: u64,
    /// Whom it hit; `None` for the whole run.
    pub node: Option<String>,
    /// What it was, one sentence without a full stop.
    pub what: String,
    /// What is known of it, for people; may have lines.
    pub detail: String,
    /// The consoles around it.
    pub console: Vec<ConsoleExcerpt>,
}

/// A cable between a node and a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The node.
    pub node: String,
    /// The network.
    pub network: String,
    /// What the node sent.
    pub sent: Traffic,
    /// What the node was given.
    pub received: Traffic,
    /// The path of the capture.
    pub pcap: Option<String>,
}

/// Counters of one direction of a cable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Ethernet frames that went through.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that were lost because the scenario said so: cut, loss.
    pub lost: u64,
    /// Frames that were lost because a queue was full.
    pub dropped: u64,
}

impl Run {
    /// A run that has not begun. The caller fills in the rest.
    pub fn new(scenario: Scenario, seed: u64, started: String) -> Self {
        Run {
            schema: SCHEMA,
            kiln_version: env!("CARGO_PKG_VERSION").to_owned(),
            scenario,
            seed,
            started,
            duration_ms: 0,
            host: Host::default(),
            accelerator: Accelerator::default(),
            images: Vec::new(),
            nodes: Vec::new(),
            steps: Vec::new(),
            faults: Vec::new(),
            invariants: Vec::new(),
            findings: Vec::new(),
            incidents: Vec::new(),
            warnings: Vec::new(),
            links: Vec::new(),
            peak_memory_kib: 0,
            verdict: Verdict::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_units_the_slowest_are_kept() {
        let unit = |n: u64| Unit { name: format!("{n}.service"), start_ms: 5, end_ms: 5 + n % 100 };
        let kept = Timeline::slowest((0..500).map(unit).collect());
        assert_eq!(kept.len(), Timeline::UNITS);
        assert_eq!((kept[0].name.as_str(), kept[0].took_ms()), ("199.service", 99));
        assert!(kept.is_sorted_by_key(|unit| std::cmp::Reverse(unit.took_ms())));
        assert!(Timeline::slowest(vec![unit(0), unit(100)]).is_empty());
    }
}
