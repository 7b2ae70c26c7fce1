//! A scenario with every name resolved.
//!
//! Times: a *limit* is what something may take under KVM; the engine multiplies it by the measured factor of the accelerator.
//! Every other time (`wait`, `at`, `for`, a cable's delay) is meant as it is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::words::{Day, Fraction, Mac, Name, Pattern, Rate, Span, Subnet, Text};
use crate::qemu::config::{Bus, NicModel};
use crate::spec::{Flavour, Size};

/// A scenario: a cluster, and what is done to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// The file's name without `.toml`.
    pub name: String,
    /// The file, as people know it: `qemu/smoke.toml`.
    pub file: String,
    /// The file's text.
    pub text: String,
    /// One sentence for people.
    pub description: String,
    /// Limit of the whole run.
    pub limit: Span,
    /// What everything random comes from, unless the command line says otherwise.
    pub seed: u64,
    /// Ethernet segments by name.
    pub networks: BTreeMap<Name, Network>,
    /// Machines by name; at least one.
    pub nodes: BTreeMap<Name, Node>,
    /// What cables are like in the beginning; each cable at most once.
    pub links: Vec<Link>,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// What happens beside the steps.
    pub faults: Vec<Fault>,
    /// What must hold before each step.
    pub invariants: Vec<Invariant>,
    /// Health findings that are let pass.
    pub allow: Vec<Allow>,
}

impl Scenario {
    /// Lets every step with power cuts have `count` rounds, as `--cuts` does. The limit of the run grows with them.
    pub fn set_cuts(&mut self, count: u32) {
        let mut more = std::time::Duration::ZERO;
        for step in &mut self.steps {
            if let Action::PowerCuts(cuts) = &mut step.action {
                more += step.limit.duration().saturating_mul(count.saturating_sub(cuts.count));
                cuts.count = count;
            }
        }
        self.limit = self.limit.longer(more);
    }

    /// The nodes, in the order of their names.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The card at a cable's end. Cables are only made for cards that are there.
    pub fn nic(&self, cable: &Cable) -> Option<&Nic> {
        self.nodes.get(&cable.node)?.nics.get(cable.nic)
    }

    /// Every cable there is, in the order of nodes and their cards.
    pub fn cables(&self) -> Vec<Cable> {
        self.nodes().flat_map(Node::cables).collect()
    }

    /// What `cable` is like in the beginning, and whether it is recorded.
    pub fn beginning(&self, cable: &Cable) -> (Conditions, bool) {
        let link = self.links.iter().find(|link| link.cable == *cable);
        link.map_or((Conditions::default(), false), |link| (link.conditions, link.pcap))
    }

    /// The address on `network` of the node whose `serves` fits: where that network's nodes find a service.
    pub fn server(&self, network: &str, fits: impl Fn(&Serves) -> bool) -> Option<(&Node, IpAddr)> {
        let serving = self.nodes().filter(|node| node.serves.as_ref().is_some_and(&fits));
        serving.filter_map(|node| Some((node, node.address_on(network)?))).next()
    }

    /// The addresses on `node`'s networks of the other nodes whose `serves` fits.
    pub fn servers_of<'a>(
        &'a self,
        node: &'a Node,
        fits: impl Fn(&Serves) -> bool + 'a,
    ) -> impl Iterator<Item = IpAddr> + 'a {
        let others = self
            .nodes()
            .filter(move |other| other.name != node.name && other.serves.as_ref().is_some_and(&fits));
        others.flat_map(|other| node.nics.iter().filter_map(|nic| other.address_on(&nic.network)))
    }
}

/// An Ethernet segment: a switch of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: Name,
    /// Its addresses.
    pub subnet: Subnet,
    /// Bytes of a frame's payload; 1500 if the file says nothing.
    pub mtu: u16,
}

/// A machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its name, which is its host name too.
    pub name: Name,
    /// Whose image it boots.
    pub profile: String,
    /// Whether it is a node of the cluster, not a machine beside it such as the edge.
    pub product: bool,
    /// The variant of the image; `None`: the profile as it is.
    pub flavour: Option<Flavour>,
    /// Its memory.
    pub memory: Size,
    /// Its virtual CPUs.
    pub cpus: u32,
    /// When it is switched on.
    pub boot: BootWhen,
    /// Its disks, at least one; the first holds the image, the others are empty.
    pub disks: Vec<Disk>,
    /// Its network cards; at most one on each network.
    pub nics: Vec<Nic>,
    /// Of its firmware, and so its machine id; version 5, from the names of scenario and node.
    pub uuid: Uuid,
    /// systemd credentials beyond those that kiln derives.
    pub credentials: BTreeMap<String, String>,
    /// What of its disk is damaged. Such a node must be refused; it never gets ready.
    pub damage: Option<DamagedPart>,
    /// What it does for others; only on the edge machine.
    pub serves: Option<Serves>,
}

/// The profile of the machine at the cluster's edge, the only one that serves others.
pub const EDGE: &str = "edge";

/// The domain of all nodes; `.test` is reserved (RFC 6761).
pub const DOMAIN: &str = "cluster.test";

impl Node {
    /// Its fixed address on `network`.
    pub fn address_on(&self, network: &str) -> Option<IpAddr> {
        self.nics.iter().find(|nic| nic.network == *network)?.address.fixed()
    }

    /// Its cables, in the order of its cards.
    pub fn cables(&self) -> impl Iterator<Item = Cable> + '_ {
        self.nics.iter().enumerate().map(|(nic, card)| Cable {
            node: self.name.clone(),
            nic,
            network: card.network.clone(),
        })
    }
}

/// When a node is switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BootWhen {
    /// When the run begins.
    #[default]
    Auto,
    /// By a step `start`.
    Manual,
}

/// A disk of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// What it hangs on.
    pub bus: Bus,
    /// The size that the node sees.
    pub size: Size,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// What it is plugged into.
    pub network: Name,
    /// Its model.
    pub model: NicModel,
    /// Its hardware address: the file's, or one that follows from the names of scenario and node and the card's number.
    pub mac: Mac,
    /// How it gets its address.
    pub address: Address,
}

/// How a network card gets its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// None is given to it.
    None,
    /// By DHCP.
    Dhcp,
    /// This one, by a credential.
    Fixed {
        /// Inside the network's subnet.
        ip: IpAddr,
        /// The subnet's.
        prefix: u8,
    },
}

impl Address {
    /// The address, if it is known beforehand.
    pub fn fixed(self) -> Option<IpAddr> {
        match self {
            Address::Fixed { ip, .. } => Some(ip),
            Address::None | Address::Dhcp => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::None => f.write_str("none"),
            Address::Dhcp => f.write_str("dhcp"),
            Address::Fixed { ip, .. } => ip.fmt(f),
        }
    }
}

/// What of a node's disk has one byte flipped, in what the node sees; the image itself is not touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DamagedPart {
    /// The superblock of the root file system.
    Root,
    /// The top of the hash tree.
    Verity,
    /// The root hash in the unified kernel image on the ESP: its last digit, so that the partitions are found.
    Uki,
}

/// What the edge machine does for others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Serves {
    /// A DHCP server.
    pub dhcp: Option<Dhcp>,
    /// A DNS server with `NODE.cluster.test` for all nodes.
    pub dns: bool,
    /// An NTP server.
    pub ntp: bool,
    /// Exported folders, NFS v3 and v4.2.
    pub nfs: Vec<String>,
    /// A router between the networks it is on: the default gateway of their nodes.
    pub router: bool,
    /// A BGP speaker.
    pub bgp: Option<Bgp>,
}

/// A DHCP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dhcp {
    /// The network it serves.
    pub network: Name,
    /// The first address it gives out.
    pub first: IpAddr,
    /// The last one.
    pub last: IpAddr,
}

/// A BGP speaker (RFC 4271, RFC 6793).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bgp {
    /// Its own autonomous system.
    pub asn: u32,
    /// That of the nodes.
    pub peer_asn: u32,
}

/// The cable between a node's card and its network's switch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cable {
    /// The node.
    pub node: Name,
    /// The number of its card, from 0.
    pub nic: usize,
    /// The network.
    pub network: Name,
}

impl fmt::Display for Cable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node, self.network)
    }
}

/// What a cable does to frames, the same both ways but for a one-way cut. The default is a perfect cable.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Conditions {
    /// Whether frames are lost altogether.
    pub cut: Cut,
    /// Share of frames that are lost.
    pub loss: Fraction,
    /// How long each frame is held.
    pub delay: Span,
    /// How much longer a frame may be held, at most.
    pub jitter: Span,
    /// Share of frames that come twice.
    pub duplicate: Fraction,
    /// The most that passes.
    pub rate: Option<Rate>,
}

/// Which way a cable is cut, seen from the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cut {
    /// Not at all.
    #[default]
    Whole,
    /// The node hears nothing, but is heard.
    In,
    /// The node is not heard, but hears.
    Out,
    /// Both ways.
    Both,
}

/// What a cable is like in the beginning.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// The cable.
    pub cable: Cable,
    /// What it does to frames.
    pub conditions: Conditions,
    /// Whether its frames are recorded.
    pub pcap: bool,
}

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
    /// When this step (an index of [`Scenario::steps`]) has passed.
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
