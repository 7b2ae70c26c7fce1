//! The shape of a scenario file, as serde reads it and `kiln dev schema scenario` prints it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::model::{Bgp, BootWhen, Check, Cut, DamagedPart};
use super::words::{Day, Fraction, Mac, Name, Pattern, Rate, Span, Subnet};
use crate::qemu::config;
use crate::spec::{Flavour, Size};

/// A scenario: a cluster of baked images in QEMU, and what is done to it.
///
/// Lengths of time are written `250ms`, `5s`, `2min`, `1h`; sizes `64MiB`, `2GiB`; rates `64kbit`, `10Mbit`, `1Gbit`. A `limit` is
/// what something may take under KVM and grows with a slower accelerator; every other time is meant as it is written.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Version of this file's shape; 1.
    pub schema: u32,
    /// One sentence for people: what the scenario proves.
    pub description: String,
    /// Limit of the whole run. Default 10min.
    pub limit: Option<Span>,
    /// What everything random comes from; the same seed gives the same faults. Default 1; `--seed` wins.
    pub seed: Option<u64>,
    /// Ethernet segments by name: each has a switch of its own.
    #[serde(default)]
    pub network: BTreeMap<Name, NetworkFile>,
    /// Machines by name, which is also their host name.
    #[serde(default)]
    pub node: BTreeMap<Name, NodeFile>,
    /// What cables are like in the beginning. Those not named here are perfect.
    #[serde(default)]
    pub link: Vec<LinkFile>,
    /// What is done, one after the other.
    #[serde(default)]
    pub step: Vec<StepFile>,
    /// What happens beside the steps.
    #[serde(default)]
    pub fault: Vec<FaultFile>,
    /// What must hold before each step.
    #[serde(default)]
    pub invariant: Vec<InvariantFile>,
    /// Health findings that are let pass.
    #[serde(default)]
    pub allow: Vec<AllowFile>,
}

/// An Ethernet segment.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkFile {
    /// Its addresses, such as `10.77.0.0/24`.
    pub subnet: Subnet,
    /// Bytes of a frame's payload, 1280 to 9216. Default 1500.
    pub mtu: Option<u16>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeFile {
    /// Whose image it boots: a file in profiles/ or qemu/machines/, without `.toml`.
    pub profile: String,
    /// Boot the variant of the image with this kernel.
    pub flavour: Option<Flavour>,
    /// Its memory. Default 1GiB.
    pub memory: Option<Size>,
    /// Its virtual CPUs. Default 2.
    pub cpus: Option<u32>,
    /// `auto` (default): it is switched on when the run begins; `manual`: by a step `start`.
    #[serde(default)]
    pub boot: BootWhen,
    /// The day that its clock shows whenever it is switched on, as after its battery died. Default: this machine's time.
    pub clock: Option<Day>,
    /// Its disks. The first holds the image, the others are empty. Default: one virtio disk of 8GiB.
    pub disks: Option<Vec<DiskFile>>,
    /// Its network cards, at most one on each network.
    #[serde(default)]
    pub nics: Vec<NicFile>,
    /// systemd credentials, beyond identity, network and keys, which kiln derives.
    #[serde(default)]
    pub credentials: BTreeMap<String, String>,
    /// Units of the image that do not start on it: what the scenario is not about. They are held back by a credential, so the image is
    /// still the one that is flashed.
    #[serde(default)]
    pub without: Vec<String>,
    /// Flip a byte in what it sees of its disk. It must then be `refused`.
    pub damage: Option<DamageFile>,
    /// It is given something else that it must refuse, such as a wrong token. It must then be `refused`.
    #[serde(default)]
    pub doomed: bool,
    /// What it does for others; only for the profile `edge`.
    pub serves: Option<ServesFile>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskFile {
    /// What it hangs on. Default virtio.
    #[serde(default)]
    pub bus: DiskBus,
    /// The size that the node sees.
    pub size: Size,
}

/// What a disk hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskBus {
    /// virtio-blk
    #[default]
    Virtio,
    /// NVMe
    Nvme,
    /// SATA
    Ahci,
    /// A stick on xHCI
    Usb,
}

impl From<DiskBus> for config::Bus {
    fn from(bus: DiskBus) -> Self {
        match bus {
            DiskBus::Virtio => config::Bus::VirtioBlk,
            DiskBus::Nvme => config::Bus::Nvme,
            DiskBus::Ahci => config::Bus::Ahci,
            DiskBus::Usb => config::Bus::UsbStorage,
        }
    }
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NicFile {
    /// The network it is plugged into.
    pub network: String,
    /// Its model. Default virtio.
    #[serde(default)]
    pub model: NicCard,
    /// An address of the network, `dhcp`, or `none`.
    pub address: AddressFile,
    /// Its hardware address. Default: one that follows from the names of scenario and node.
    pub mac: Option<Mac>,
}

/// The model of a network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NicCard {
    /// virtio-net
    #[default]
    Virtio,
    /// Intel 82574L
    E1000e,
    /// Intel 82576
    Igb,
}

impl From<NicCard> for config::NicModel {
    fn from(card: NicCard) -> Self {
        match card {
            NicCard::Virtio => config::NicModel::Virtio,
            NicCard::E1000e => config::NicModel::E1000e,
            NicCard::Igb => config::NicModel::Igb,
        }
    }
}

/// How a card gets its address: `dhcp`, `none`, or the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub enum AddressFile {
    /// It has none.
    None,
    /// By DHCP.
    Dhcp,
    /// This one.
    Fixed(IpAddr),
}

impl<'de> Deserialize<'de> for AddressFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "none" => Ok(AddressFile::None),
            "dhcp" => Ok(AddressFile::Dhcp),
            other => other.parse().map(AddressFile::Fixed).map_err(|_| {
                let other = other.escape_debug();
                de::Error::custom(format!(
                    "`{other}` is no address: write one such as \"10.77.0.11\", \"dhcp\" or \"none\""
                ))
            }),
        }
    }
}

/// What is damaged.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DamageFile {
    /// The part of the disk.
    pub partition: DamagedPart,
}

/// What the edge machine does for others. It does it on every network that it has an address on, DHCP on the one named.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServesFile {
    /// A DHCP server.
    pub dhcp: Option<DhcpFile>,
    /// A DNS server that knows NODE.cluster.test for all nodes.
    #[serde(default)]
    pub dns: bool,
    /// An NTP server.
    #[serde(default)]
    pub ntp: bool,
    /// Folders below /srv that are exported by NFS v3 and v4.2.
    #[serde(default)]
    pub nfs: Vec<String>,
    /// The default gateway of its networks' nodes.
    #[serde(default)]
    pub router: bool,
    /// A BGP speaker.
    pub bgp: Option<Bgp>,
}

/// A DHCP server.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DhcpFile {
    /// The network it serves.
    pub network: String,
    /// First and last address that it gives out.
    pub range: [IpAddr; 2],
}

/// What a cable is like in the beginning.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkFile {
    /// The node at its end.
    pub node: String,
    /// The network at its other end; may be left out if the node has one card.
    pub network: Option<String>,
    /// Record its frames in a file that Wireshark opens.
    #[serde(default)]
    pub pcap: bool,
    /// Whether it is cut.
    #[serde(default)]
    pub cut: CutFile,
    /// Share of frames that are lost, 0 to 1.
    #[serde(default)]
    pub loss: Fraction,
    /// How long each frame is held.
    #[serde(default)]
    pub delay: Span,
    /// How much longer a frame may be held, at most.
    #[serde(default)]
    pub jitter: Span,
    /// Share of frames that come twice, 0 to 1.
    #[serde(default)]
    pub duplicate: Fraction,
    /// The most that passes.
    pub rate: Option<Rate>,
}

/// What a cable does from now on. What is not named is perfect.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConditionsFile {
    /// The network at the cable's other end; may be left out if the node has one card.
    pub network: Option<String>,
    /// Whether it is cut.
    #[serde(default)]
    pub cut: CutFile,
    /// Share of frames that are lost, 0 to 1.
    #[serde(default)]
    pub loss: Fraction,
    /// How long each frame is held.
    #[serde(default)]
    pub delay: Span,
    /// How much longer a frame may be held, at most.
    #[serde(default)]
    pub jitter: Span,
    /// Share of frames that come twice, 0 to 1.
    #[serde(default)]
    pub duplicate: Fraction,
    /// The most that passes.
    pub rate: Option<Rate>,
}

/// `true`: both ways; `"in"`: the node hears nothing; `"out"`: the node is not heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CutFile(pub Cut);

impl JsonSchema for CutFile {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cut".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "true: both ways; \"in\": the node hears nothing; \"out\": the node is not heard.",
            "enum": [true, false, "in", "out"]
        })
    }
}

impl<'de> Deserialize<'de> for CutFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ways;
        impl Visitor<'_> for Ways {
            type Value = Cut;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, \"in\" or \"out\"")
            }
            fn visit_bool<E: de::Error>(self, both: bool) -> Result<Cut, E> {
                Ok(if both { Cut::Both } else { Cut::Whole })
            }
            fn visit_str<E: de::Error>(self, way: &str) -> Result<Cut, E> {
                match way {
                    "in" => Ok(Cut::In),
                    "out" => Ok(Cut::Out),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }
        }
        deserializer.deserialize_any(Ways).map(CutFile)
    }
}

/// Nodes by name, or `all` (nodes with a product profile) or `every` (the other machines too): those of them that are up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct On(pub Vec<String>);

impl JsonSchema for On {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "On".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "Nodes by name; `all`: the nodes with a product profile that are up; `every`: the machines beside them too.",
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
        })
    }
}

impl<'de> Deserialize<'de> for On {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Vec<String>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("names of nodes in a list, \"all\" or \"every\"")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Vec<String>, E> {
                Ok(vec![name.to_owned()])
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = list.next_element()? {
                    names.push(name);
                }
                Ok(names)
            }
        }
        deserializer.deserialize_any(Names).map(On)
    }
}

/// One thing that is done: exactly one action, and what goes with it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepFile {
    /// What it proves, for people. No two steps have the same name.
    pub name: String,
    /// On which nodes, all at the same time. Default `all`.
    pub on: Option<On>,
    /// `kiln test --short` leaves it out. No other step may build on what it does.
    #[serde(default)]
    pub long: bool,

    /// Action: switch the node on. It is not waited for.
    #[serde(default)]
    pub start: bool,
    /// Action: wait until boot has ended, with no failed unit.
    #[serde(default)]
    pub ready: bool,
    /// Action: run a script with /bin/sh as root (`set -eu`); it must end with exit code 0. `{name}` is what an earlier step saved
    /// under that name, `{node}` the node's name; every other brace is the shell's.
    pub run: Option<String>,
    /// Action: wait until this systemd unit is active.
    pub unit: Option<String>,
    /// Action: wait until something listens on this TCP port.
    pub port: Option<u16>,
    /// Action: wait until a line of the console, since the node was last switched on, has this regular expression in it.
    pub console: Option<Pattern>,
    /// Action: put a file into the node.
    pub copy: Option<CopyFile>,
    /// Action: take a file out of the node into the report's folder.
    pub fetch: Option<FetchFile>,
    /// Action: reboot in order and wait until the node is ready again.
    #[serde(default)]
    pub reboot: bool,
    /// Action: let the kernel panic and wait until the node is ready again.
    #[serde(default)]
    pub crash: bool,
    /// Action: pull the plug, so that what was not flushed to the disk is lost, plug it in and wait until the node is ready again.
    #[serde(default)]
    pub power_cut: bool,
    /// Action: switch off in order. The node stays off until a step `start`.
    #[serde(default)]
    pub power_off: bool,
    /// Action: stop the node's CPUs.
    #[serde(default)]
    pub pause: bool,
    /// Action: let the node's CPUs go on.
    #[serde(default)]
    pub resume: bool,
    /// Action: keep a picture of the node's screen under this name.
    pub screenshot: Option<String>,
    /// Action: change a cable of the node.
    pub link: Option<ConditionsFile>,
    /// Action: bring the node's cables back to what they were in the beginning.
    #[serde(default)]
    pub heal: bool,
    /// Action: a check that is built into kiln.
    pub check: Option<Check>,
    /// Action: the damaged or doomed node must stop, and say a line on its console with this regular expression in it.
    pub refused: Option<Pattern>,
    /// Action: pull the plug again and again, at moments that follow from the seed.
    pub power_cuts: Option<PowerCutsFile>,
    /// Action: do nothing for so long.
    pub wait: Option<Span>,

    /// With an action that waits for the node: how long it may take. With `power_cuts`: each round.
    pub limit: Option<Span>,
    /// With `run` or `check`: try again until it succeeds.
    #[serde(default)]
    pub until: bool,
    /// With `run`: it must end with an exit code other than 0.
    #[serde(default)]
    pub fails: bool,
    /// With `run`: its trimmed output must be just this. `{name}` and `{node}` are as in `run`.
    pub stdout: Option<String>,
    /// With `run`: this regular expression must be in its trimmed output; `^` and `$` are its begin and end, with `(?m)` those of lines.
    pub matches: Option<Pattern>,
    /// With `run`: all nodes must give the same output.
    #[serde(default)]
    pub equal: bool,
    /// With `run`: no two nodes may give the same output.
    #[serde(default)]
    pub distinct: bool,
    /// With `run`: keep its trimmed output under this name.
    pub save: Option<Name>,
}

/// A file to put into a node.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyFile {
    /// A file, relative to the project.
    pub from: String,
    /// Absolute path in the node.
    pub to: String,
}

/// A file to take out of a node.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FetchFile {
    /// Absolute path in the node.
    pub from: String,
    /// Name of the file in the report's folder.
    pub to: String,
}

/// Pulling the plug again and again. Each round: `write` begins, the plug is pulled at a random moment, the node boots, and
/// `verify` must succeed.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PowerCutsFile {
    /// Rounds. `--cuts` wins.
    pub count: u32,
    /// A script that writes until the plug is pulled.
    pub write: String,
    /// A script that judges what is on the disk.
    pub verify: String,
    /// The plug is pulled so long after `write` began, at most. Default 5s.
    pub within: Option<Span>,
}

/// What happens beside the steps. Exactly one of `at`, `after` and `random`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultFile {
    /// So long after the nodes that are switched on in the beginning were all ready.
    pub at: Option<Span>,
    /// When the step of this name has passed.
    pub after: Option<String>,
    /// At random times, from the seed.
    pub random: Option<RandomFile>,
    /// To whom.
    pub node: String,
    /// What.
    pub kind: FaultWord,
    /// How long a pause or the change of a cable lasts.
    #[serde(rename = "for")]
    pub lasts: Option<Span>,
    /// With `kind = "link"`: what the cable does meanwhile.
    pub link: Option<ConditionsFile>,
}

/// Random times: one fault in each stretch of `every`, the first stretch beginning at `first`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RandomFile {
    /// When it may begin, after the nodes were all ready.
    pub first: Span,
    /// Length of a stretch.
    pub every: Span,
    /// How many faults.
    pub count: u32,
}

/// What a fault does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FaultWord {
    /// Pulls the plug and plugs it in again.
    PowerCut,
    /// Reboots in order.
    Reboot,
    /// Lets the kernel panic.
    Crash,
    /// Stops the CPUs for a while.
    Pause,
    /// Changes a cable for a while.
    Link,
}

/// What must hold before each step, on those of its nodes that are up.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InvariantFile {
    /// What it says, for people.
    pub name: String,
    /// On which nodes. Default `all`.
    pub on: Option<On>,
    /// A script for /bin/sh; it must end with exit code 0.
    pub run: String,
    /// It must end with an exit code other than 0.
    #[serde(default)]
    pub fails: bool,
    /// Its trimmed output must be just this; `{node}` is the node's name.
    pub stdout: Option<String>,
    /// This regular expression must be in its trimmed output.
    pub matches: Option<Pattern>,
    /// How long it may take. Default 30s.
    pub limit: Option<Span>,
}

/// A health finding that is let pass.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AllowFile {
    /// A regular expression in the console's line.
    pub pattern: Pattern,
    /// Only on this node.
    pub node: Option<String>,
    /// Why.
    pub reason: String,
    /// The last day that it counts, as 2027-06-30. After that the entry is an error.
    pub until: Day,
}
