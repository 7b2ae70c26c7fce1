//! A scenario with every name resolved.
//!
//! Times: a *limit* is what something may take under KVM; the engine multiplies it by the measured factor of the accelerator.
//! Every other time (`wait`, `at`, `for`, a cable's delay) is meant as it is written.

mod steps;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::steps::{
    Action, Allow, Check, Expect, Fault, FaultKind, Invariant, Nodes, PowerCuts, Run, Step, When,
};
use super::words::{Day, Fraction, Mac, Name, Rate, Span, Subnet};
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
    /// What [`Scenario::leave_out_long`] took out of them.
    pub left_out: Vec<Step>,
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

    /// Takes the steps out that are marked as long, as `--short` does, and the faults that come after them. The steps are told as skipped.
    pub fn leave_out_long(&mut self) {
        let mut places = Vec::new();
        for step in std::mem::take(&mut self.steps) {
            let to = if step.long { &mut self.left_out } else { &mut self.steps };
            places.push((!step.long).then_some(to.len()));
            to.push(step);
        }
        self.faults.retain_mut(|fault| match &mut fault.when {
            When::After(step) => places.get(*step).copied().flatten().map(|place| *step = place).is_some(),
            When::At(_) | When::Random { .. } => true,
        });
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
    /// The day that its clock shows whenever it is switched on; `None`: this machine's time.
    pub clock: Option<Day>,
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
    /// Whether it must be refused, for its damage or for what it is given.
    pub doomed: bool,
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

    /// Whether it starts K3s: it was given a token, and K3s is not held back.
    pub fn starts_k3s(&self) -> bool {
        let held_back = |name: &String| name.starts_with("systemd.unit-dropin.k3s.service");
        !self.doomed && self.credentials.contains_key("k3s.token") && !self.credentials.keys().any(held_back)
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
