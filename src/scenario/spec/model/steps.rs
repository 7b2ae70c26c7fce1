//! What is done, and what happens beside it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::words::{Day, Name, Pattern, Span};
use super::{Cable, Conditions};
use crate::scenario::spec::text::Text;

/// Nodes by name, sorted, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes(BTreeSet<Name>);

impl Nodes {
    /// `None` if there is none.
    pub fn new(names: impl IntoIterator<Item = Name>) -> Option<Self> {
        let names: BTreeSet<Name> = names.into_iter().collect();
        (!names.is_empty()).then_some(Nodes(names))
    }

    /// Their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Name> {
        self.0.iter()
    }

    /// Whether `name` is one of them.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// How many there are; never 0.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(Name::as_str).collect();
        f.write_str(&names.join(", "))
    }
}

/// One thing that is done.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What it proves, for people; no two steps of a file have the same.
    pub name: String,
    /// On which nodes, all at the same time. `all` and `every` have been resolved to the nodes that are up then (for `start`:
    /// that are off).
    pub on: Nodes,
    /// What is done.
    pub action: Action,
    /// What it may take under KVM, on each node; [`Action::PowerCuts`]: all of it.
    pub limit: Span,
    /// The file does not have it: it waits for nodes that the next step needs and nobody waited for.
    pub implied: bool,
    /// The nodes that answer when it begins, if no fault strikes; on these invariants are asked.
    pub up: BTreeSet<Name>,
    /// A short run leaves it out.
    pub long: bool,
}

/// What a step does. Where it speaks of "the node", it does so for each node of the step.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Switches the node on; does not wait for it.
    Start,
    /// Waits until its boot has ended, and well: multi-user and no failed unit.
    Ready,
    /// Runs a script.
    Run(Run),
    /// Waits until the unit is active. Ends at once when the unit has failed.
    Unit(String),
    /// Waits until somebody listens on this TCP port of the node.
    Port(u16),
    /// Waits until the node's console, from the beginning of this boot, has a line that the pattern is in.
    Console(Pattern),
    /// Puts a file into the node, mode 0644.
    Copy {
        /// The file: absolute, or relative to the project.
        from: PathBuf,
        /// Absolute path in the node.
        to: String,
    },
    /// Takes a file out of the node, into the report's folder.
    Fetch {
        /// Absolute path in the node.
        from: String,
        /// File name in the report's folder, in a folder per node.
        to: String,
    },
    /// Reboots it in order and waits until it is ready again.
    Reboot,
    /// Lets its kernel panic and waits until it is ready again.
    Crash,
    /// Pulls the plug, so that what was not flushed is lost; plugs it in again, and waits until it is ready.
    PowerCut,
    /// Switches it off in order. It stays off.
    PowerOff,
    /// Stops its CPUs.
    Pause,
    /// Lets them go on.
    Resume,
    /// Keeps a picture of its screen.
    Screenshot(String),
    /// Changes cables: all that `conditions` does not name is perfect from now on.
    Link {
        /// The cables, one of each node.
        cables: Vec<Cable>,
        /// What they do from now on.
        conditions: Conditions,
    },
    /// Brings all cables of the nodes back to what they were in the beginning.
    Heal {
        /// The cables.
        cables: Vec<Cable>,
    },
    /// A check that is built into kiln.
    Check {
        /// Which.
        check: Check,
        /// Try again until it holds, within the limit.
        until: bool,
    },
    /// The node must stop for this reason: its console has a line with the pattern, and it does not get ready.
    Refused(Pattern),
    /// Pulls the plug again and again, see [`PowerCuts`].
    PowerCuts(PowerCuts),
    /// Does nothing for so long.
    Wait(Span),
}

impl Action {
    /// The key that names it in a file.
    pub fn word(&self) -> &'static str {
        match self {
            Action::Start => "start",
            Action::Ready => "ready",
            Action::Run(_) => "run",
            Action::Unit(_) => "unit",
            Action::Port(_) => "port",
            Action::Console(_) => "console",
            Action::Copy { .. } => "copy",
            Action::Fetch { .. } => "fetch",
            Action::Reboot => "reboot",
            Action::Crash => "crash",
            Action::PowerCut => "power_cut",
            Action::PowerOff => "power_off",
            Action::Pause => "pause",
            Action::Resume => "resume",
            Action::Screenshot(_) => "screenshot",
            Action::Link { .. } => "link",
            Action::Heal { .. } => "heal",
            Action::Check { .. } => "check",
            Action::Refused(_) => "refused",
            Action::PowerCuts(_) => "power_cuts",
            Action::Wait(_) => "wait",
        }
    }
}

/// A script and what is expected of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// For /bin/sh, as root; it begins with nothing set but `set -eu`.
    pub script: Text,
    /// What must come of it.
    pub expect: Expect,
    /// Try again until it is as expected, within the limit.
    pub until: bool,
    /// Keep its trimmed output under this name.
    pub save: Option<Name>,
}

/// What must come of a script. Without any wish: exit code 0.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Expect {
    /// The exit code must not be 0.
    pub fails: bool,
    /// The trimmed output must be just this.
    pub stdout: Option<Text>,
    /// The pattern must be in the output.
    pub matches: Option<Pattern>,
    /// The trimmed outputs of the nodes must be all the same (`Some(true)`) or all different (`Some(false)`).
    pub equal: Option<bool>,
}

/// Pulling the plug again and again. Each round: `write` is begun, the plug is pulled at a random moment of `within` (from the
/// seed, see [`crate::scenario::seeded`]), the node boots again, and `verify` must succeed.
#[derive(Debug, Clone, PartialEq)]
pub struct PowerCuts {
    /// Rounds; the command line may say otherwise.
    pub count: u32,
    /// A script that goes on writing until the plug is pulled. If it ends, the round fails.
    pub write: Text,
    /// A script that judges what is on the disk.
    pub verify: Text,
    /// The plug is pulled so long after `write` began, at most.
    pub within: Span,
}

/// The checks that are built into kiln, because they look at several nodes or at what the images were made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// Each node has its own name as host name, its own UUID as machine id, and on each card the fixed address that the file
    /// gives it, by the card's hardware address; no machine id, host name or boot id is on two nodes.
    Identity,
    /// Nodes of the same profile and flavour run the same root hash, kernel and IMAGE_VERSION, and these are the ones in the
    /// image's manifest.
    SameImage,
    /// systemd says `running`: boot has ended and no unit has failed.
    Units,
    /// The clock is synchronised (timedatectl), with the edge where that serves NTP, and within 2 s of this machine's.
    Clock,
    /// Each node pings each other node that is up, at each fixed address on a network that both are on or that a router leads to;
    /// where the edge serves DNS, the names of these nodes have these addresses.
    Reach,
    /// `/` is erofs on a dm-verity device that is verified, mounted read-only; nothing can be written to /, /usr and /etc.
    ReadonlyRoot,
    /// The boot disk has ESP, both root slots with their hash partitions, and /var, which fills the disk; nothing overlaps and
    /// the backup GPT is at the disk's end.
    Disk,
    /// Every sysctl of the profile has the value that the profile says.
    Sysctls,
    /// The running kernel has all that the features of the profile need: the .config in the image says so, modules load, and the
    /// devices, mounts, rules and BPF programs that the features are about can be made.
    Contract,
}

impl Check {
    /// As it is written in the file.
    pub fn word(self) -> &'static str {
        match self {
            Check::Identity => "identity",
            Check::SameImage => "same-image",
            Check::Units => "units",
            Check::Clock => "clock",
            Check::Reach => "reach",
            Check::ReadonlyRoot => "readonly-root",
            Check::Disk => "disk",
            Check::Sysctls => "sysctls",
            Check::Contract => "contract",
        }
    }
}

/// A fault: what happens beside the steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// When.
    pub when: When,
    /// To whom.
    pub node: Name,
    /// What.
    pub kind: FaultKind,
}

/// When a fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// So long after the nodes that are switched on in the beginning were all ready.
    At(Span),
    /// When this step (an index of [`super::Scenario::steps`]) has passed.
    After(usize),
    /// Again and again at random times, from the seed.
    Random {
        /// When it may begin, counted as in [`When::At`].
        first: Span,
        /// One happens in each stretch of this length.
        every: Span,
        /// How many.
        count: u32,
    },
}

/// What a fault does.
#[derive(Debug, Clone, PartialEq)]
pub enum FaultKind {
    /// As [`Action::PowerCut`].
    PowerCut,
    /// As [`Action::Reboot`].
    Reboot,
    /// As [`Action::Crash`].
    Crash,
    /// CPUs stop, and go on after a while.
    Pause {
        /// How long.
        lasts: Span,
    },
    /// A cable changes, and is as before after a while.
    Link {
        /// The cable.
        cable: Cable,
        /// What it does meanwhile.
        conditions: Conditions,
        /// How long.
        lasts: Span,
    },
}

impl FaultKind {
    /// The word that names it in a file.
    pub fn word(&self) -> &'static str {
        match self {
            FaultKind::PowerCut => "power_cut",
            FaultKind::Reboot => "reboot",
            FaultKind::Crash => "crash",
            FaultKind::Pause { .. } => "pause",
            FaultKind::Link { .. } => "link",
        }
    }
}

/// What must hold before each step, on those of its nodes that are up.
#[derive(Debug, Clone, PartialEq)]
pub struct Invariant {
    /// What it says, for people.
    pub name: String,
    /// On which nodes.
    pub on: Nodes,
    /// A script for /bin/sh.
    pub run: Text,
    /// What must come of it; never `equal`.
    pub expect: Expect,
    /// What it may take under KVM.
    pub limit: Span,
}

/// A health finding that is let pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Allow {
    /// In the console's line.
    pub pattern: Pattern,
    /// On this node; `None`: on any.
    pub node: Option<Name>,
    /// Why.
    pub reason: String,
    /// The last day it counts, in UTC.
    pub until: Day,
}
