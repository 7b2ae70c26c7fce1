//! Networks and nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{ALL, EVERY, MOST_NODES};
use crate::digest::Digest;
use crate::scenario::identity;
use crate::scenario::problems::{Part, Problems, spot};
use crate::scenario::spec::file::{AddressFile, DhcpFile, File, NicFile, NodeFile, ServesFile};
use crate::scenario::spec::model::{Address, Dhcp, Disk, EDGE, Network, Nic, Node, Serves};
use crate::scenario::spec::words::{Mac, Name};
use crate::spec::Size;

const MEMORY: Size = Size::mib(1024);
const CPUS: u32 = 2;
const DISK: Disk = Disk { bus: crate::qemu::config::Bus::VirtioBlk, size: Size::mib(8 << 10) };
const MTU: u16 = 1500;

/// UEFI, a UKI and its unpacked initrd do not fit in less.
const LEAST_MEMORY: Size = Size::mib(256);
/// QEMU's q35 takes no more.
const MOST_CPUS: u32 = 255;
/// Each has a PCI slot of its own, and q35 has 32.
const MOST_DISKS: usize = 8;
/// As with disks.
const MOST_NICS: usize = 8;

pub(super) fn networks(shape: &File, problems: &mut Problems<'_>) -> BTreeMap<Name, Network> {
    let mut networks: BTreeMap<Name, Network> = BTreeMap::new();
    for (name, file) in &shape.network {
        let mtu = file.mtu.unwrap_or(MTU);
        // 1280 is the least for IPv6 (RFC 8200, 5); 9216 is what jumbo switches carry.
        if !(1280..=9216).contains(&mtu) {
            problems.add(
                spot!["network", name.as_str(), "mtu"],
                format!("an mtu of {mtu} is not from 1280 to 9216"),
            );
        }
        if file.subnet.net().network().is_ipv6() {
            let text = format!("{} is a subnet of IPv6: nodes are given IPv4 addresses", file.subnet);
            problems.add(spot!["network", name.as_str(), "subnet"], text);
        }
        let (ours, overlaps) = (file.subnet.net(), |other: &&Network| {
            other.subnet.net().contains(&file.subnet.net()) || file.subnet.net().contains(&other.subnet.net())
        });
        if let Some(other) = networks.values().find(overlaps) {
            let text = format!("{ours} overlaps {} of the network `{}`", other.subnet, other.name);
            problems.add(spot!["network", name.as_str(), "subnet"], text);
        }
        if !shape.node.values().any(|node| node.nics.iter().any(|nic| *name == *nic.network)) {
            problems.add(spot!["network", name.as_str()], format!("no node is on the network `{name}`"));
        }
        networks.insert(name.clone(), Network { name: name.clone(), subnet: file.subnet, mtu });
    }
    networks
}

pub(super) fn nodes(
    scenario: &str,
    shape: &File,
    networks: &BTreeMap<Name, Network>,
    machines: &BTreeSet<String>,
    problems: &mut Problems<'_>,
) -> BTreeMap<Name, Node> {
    match shape.node.len() {
        0 => {
            problems
                .add(spot![], "there is no node")
                .hint("write `[node.server]` with `profile = \"server\"`");
        }
        n if n > MOST_NODES => {
            problems.add(spot!["node"], format!("{n} nodes are too many: {MOST_NODES} is the most"));
        }
        _ => {}
    }
    let mut nodes = BTreeMap::new();
    let mut macs = Macs::new(shape, problems);
    for (name, file) in &shape.node {
        let at = |part: &str| spot!["node", name.as_str(), part];
        if [ALL, EVERY].contains(&name.as_str()) {
            problems.add(
                spot!["node", Part::Name(name.to_string())],
                format!("no node can be called `{name}`: it stands for several"),
            );
        }
        let memory = file.memory.unwrap_or(MEMORY);
        if memory < LEAST_MEMORY {
            problems.add(
                at("memory"),
                format!("{memory} of memory do not boot a node: give at least {LEAST_MEMORY}"),
            );
        }
        let cpus = file.cpus.unwrap_or(CPUS);
        if !(1..=MOST_CPUS).contains(&cpus) {
            problems.add(at("cpus"), format!("{cpus} CPUs: give 1 to {MOST_CPUS}"));
        }
        let uuid = identity::machine_uuid(scenario, name);
        let node = Node {
            name: name.clone(),
            profile: file.profile.clone(),
            product: file.profile != EDGE && !machines.contains(&file.profile),
            flavour: file.flavour,
            memory,
            cpus,
            boot: file.boot,
            clock: file.clock.clone(),
            disks: disks(name, file, problems),
            nics: nics(scenario, name, file, networks, &mut macs, problems),
            uuid,
            credentials: credentials(name, file, problems),
            damage: file.damage.as_ref().map(|damage| damage.partition),
            doomed: file.doomed || file.damage.is_some(),
            serves: None,
        };
        nodes.insert(name.clone(), node);
    }
    for (name, file) in &shape.node {
        let Some(serves) = file.serves.as_ref() else { continue };
        if let Some(served) = serve(&nodes, name, serves, networks, problems)
            && let Some(node) = nodes.get_mut(name)
        {
            node.serves = Some(served);
        }
    }
    one_server_each(&nodes, problems);
    addresses(&nodes, problems);
    nodes
}

fn disks(name: &Name, file: &NodeFile, problems: &mut Problems<'_>) -> Vec<Disk> {
    let Some(disks) = &file.disks else { return vec![DISK] };
    let spot = || spot!["node", name.as_str(), "disks"];
    if disks.is_empty() {
        problems.add(spot(), format!("`{name}` has no disk, so no image to boot"));
    }
    if disks.len() > MOST_DISKS {
        problems.add(spot(), format!("{} disks are too many: {MOST_DISKS} is the most", disks.len()));
    }
    disks.iter().map(|disk| Disk { bus: disk.bus.into(), size: disk.size }).collect()
}

/// Credentials by which kiln itself tells a node who it is.
const OWN: [&str; 2] = ["system.hostname", "system.machine_id"];

fn credentials(name: &Name, file: &NodeFile, problems: &mut Problems<'_>) -> BTreeMap<String, String> {
    for credential in file.credentials.keys() {
        let spot = spot!["node", name.as_str(), "credentials", Part::Name(credential.clone())];
        // credential_name_valid() of systemd allows any file name; qemu::config allows these.
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-@~".contains(&b);
        if credential.is_empty() || credential.starts_with('.') || !credential.bytes().all(fits) {
            let shown = credential.escape_debug();
            problems.add(
                spot,
                format!(
                    "credential name `{shown}` may hold letters, digits, `.`, `_`, `-`, `~` and `@` only"
                ),
            );
        } else if OWN.contains(&credential.as_str()) {
            problems
                .add(spot, format!("{credential} is derived from the node's name"))
                .hint("name the node otherwise");
        } else if credential.starts_with("kiln.") || credential.starts_with("systemd.extra-unit.kiln-") {
            problems.add(spot, format!("{credential} is kiln's own, by which it enters the node"));
        }
    }
    let mut credentials = file.credentials.clone();
    for (index, unit) in file.without.iter().enumerate() {
        match identity::held_back(unit) {
            Some((name, text)) => drop(credentials.insert(name, text)),
            None => drop(problems.add(
                spot!["node", name.as_str(), "without", index],
                format!("`{unit}` is no name of a unit: write such as `k3s.service`"),
            )),
        }
    }
    credentials
}

fn nics(
    scenario: &str,
    node: &Name,
    file: &NodeFile,
    networks: &BTreeMap<Name, Network>,
    macs: &mut Macs,
    problems: &mut Problems<'_>,
) -> Vec<Nic> {
    if file.nics.len() > MOST_NICS {
        let text = format!("{} network cards are too many: {MOST_NICS} is the most", file.nics.len());
        problems.add(spot!["node", node.as_str(), "nics"], text);
    }
    let mut nics: Vec<Nic> = Vec::new();
    for (index, card) in file.nics.iter().enumerate() {
        let at = |part: &str| spot!["node", node.as_str(), "nics", index, part];
        let Some(network) = networks.get(card.network.as_str()) else {
            let known = networks.keys().map(Name::as_str);
            let problem = problems.add(at("network"), format!("there is no network `{}`", card.network));
            problem.near(&card.network, known);
            if networks.is_empty() {
                problem.hint(format!("write `[network.{}]` with a subnet", card.network));
            }
            continue;
        };
        if nics.iter().any(|nic| nic.network == network.name) {
            let text = format!("`{node}` has two cards on the network `{}`", network.name);
            problems.add(at("network"), text).hint("give each card a network of its own");
            continue;
        }
        nics.push(Nic {
            network: network.name.clone(),
            model: card.model.into(),
            mac: card.mac.unwrap_or_else(|| macs.next(scenario, node, index)),
            address: address(card, network, at("address"), problems),
        });
    }
    nics
}

fn address(card: &NicFile, network: &Network, spot: Vec<Part>, problems: &mut Problems<'_>) -> Address {
    match card.address {
        AddressFile::None => Address::None,
        AddressFile::Dhcp => Address::Dhcp,
        AddressFile::Fixed(ip) => {
            if !network.subnet.has_host(ip) {
                let text = format!(
                    "{ip} is no address of a node in {}, the network `{}`",
                    network.subnet, network.name
                );
                problems.add(spot, text);
            }
            Address::Fixed { ip, prefix: network.subnet.prefix() }
        }
    }
}

/// Hardware addresses that are taken.
struct Macs(BTreeSet<Mac>);

impl Macs {
    /// Those that the file gives come first, so that none is derived that it gives later.
    fn new(shape: &File, problems: &mut Problems<'_>) -> Self {
        let mut taken = BTreeSet::new();
        for (name, node) in &shape.node {
            for (index, nic) in node.nics.iter().enumerate() {
                if let Some(mac) = nic.mac
                    && !taken.insert(mac)
                {
                    let spot = spot!["node", name.as_str(), "nics", index, "mac"];
                    problems.add(spot, format!("two network cards have the address {mac}"));
                }
            }
        }
        Macs(taken)
    }

    /// The first free one of those that follow from the names.
    fn next(&mut self, scenario: &str, node: &Name, index: usize) -> Mac {
        let mut round = 0u32;
        loop {
            let digest = Digest::of(format!("mac {scenario}/{node}/{index}/{round}").as_bytes());
            let [a, b, c, ..] = *digest.as_bytes();
            let mac = Mac::qemu([a, b, c]);
            if self.0.insert(mac) {
                return mac;
            }
            round += 1;
        }
    }
}

fn serve(
    nodes: &BTreeMap<Name, Node>,
    name: &Name,
    file: &ServesFile,
    networks: &BTreeMap<Name, Network>,
    problems: &mut Problems<'_>,
) -> Option<Serves> {
    let node = nodes.get(name)?;
    let at = |part: &str| spot!["node", name.as_str(), "serves", part];
    if node.profile != EDGE {
        problems
            .add(
                spot!["node", name.as_str(), "serves"],
                format!("`{name}` has the profile `{}`, which serves nobody", node.profile),
            )
            .hint(format!("only a node with the profile `{EDGE}` does"));
        return None;
    }
    if !node.nics.iter().any(|nic| nic.address.fixed().is_some()) {
        let text = format!("`{name}` serves others but has no fixed address by which they could find it");
        problems.add(spot!["node", name.as_str(), "serves"], text);
    }
    for (index, path) in file.nfs.iter().enumerate() {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"/_-.".contains(&b);
        let parts = || path.split('/').skip(1);
        if !path.starts_with("/srv/")
            || !path.bytes().all(fits)
            || parts().any(|p| ["", ".", ".."].contains(&p))
        {
            problems
                .add(spot!["node", name.as_str(), "serves", "nfs", index], format!("`{}` cannot be exported", path.escape_debug()))
                .hint("write a folder below /srv, such as \"/srv/nfs/a\": letters, digits, `_`, `-` and `.` only");
        } else if file.nfs.iter().take(index).any(|other| other == path) {
            problems.add(
                spot!["node", name.as_str(), "serves", "nfs", index],
                format!("`{path}` is exported twice"),
            );
        }
    }
    for (key, asn) in file.bgp.iter().flat_map(|bgp| [("asn", bgp.asn), ("peer_asn", bgp.peer_asn)]) {
        // RFC 7607 and RFC 7300 reserve the first and the last, RFC 6793 has 23456 stand for others.
        if [0, 23_456, 65_535, u32::MAX].contains(&asn) {
            let spot = spot!["node", name.as_str(), "serves", "bgp", key];
            problems
                .add(spot, format!("{asn} is the number of no autonomous system"))
                .hint("private ones are 64512 to 65534");
        }
    }
    Some(Serves {
        dhcp: file.dhcp.as_ref().and_then(|dhcp| serve_dhcp(node, dhcp, networks, &at("dhcp"), problems)),
        dns: file.dns,
        ntp: file.ntp,
        nfs: file.nfs.clone(),
        router: file.router,
        bgp: file.bgp,
    })
}

fn serve_dhcp(
    node: &Node,
    file: &DhcpFile,
    networks: &BTreeMap<Name, Network>,
    spot: &[Part],
    problems: &mut Problems<'_>,
) -> Option<Dhcp> {
    let at = |part: &str| [spot, &spot![part]].concat();
    let Some(network) = networks.get(file.network.as_str()) else {
        let known = networks.keys().map(Name::as_str);
        problems
            .add(at("network"), format!("there is no network `{}`", file.network))
            .near(&file.network, known);
        return None;
    };
    let Some(own) = node.address_on(&network.name) else {
        let text = format!("`{}` has no fixed address on the network `{}`", node.name, network.name);
        problems.add(at("network"), text);
        return None;
    };
    let [first, last] = file.range;
    let inside = [first, last].into_iter().all(|ip| ip.is_ipv4() && network.subnet.has_host(ip));
    if !inside || first > last {
        let text = format!("{first} to {last} is no range of addresses in {}", network.subnet);
        problems.add(at("range"), text).hint("DHCP gives out IPv4 addresses, from the first to the last");
    } else if (first..=last).contains(&own) {
        problems.add(at("range"), format!("{own} of `{}` itself is in its range", node.name));
    }
    Some(Dhcp { network: network.name.clone(), first, last })
}

/// No two nodes do the same for a network: its nodes would not know whom to believe.
fn one_server_each(nodes: &BTreeMap<Name, Node>, problems: &mut Problems<'_>) {
    let mut routers: BTreeMap<&Name, &Name> = BTreeMap::new();
    let mut leases: BTreeMap<&Name, &Name> = BTreeMap::new();
    for node in nodes.values() {
        let Some(serves) = &node.serves else { continue };
        for nic in node.nics.iter().filter(|nic| serves.router && nic.address.fixed().is_some()) {
            if let Some(other) = routers.insert(&nic.network, &node.name) {
                let text =
                    format!("the network `{}` has two routers, `{other}` and `{}`", nic.network, node.name);
                problems.add(spot!["node", node.name.as_str(), "serves", "router"], text);
            }
        }
        if let Some(dhcp) = &serves.dhcp
            && let Some(other) = leases.insert(&dhcp.network, &node.name)
        {
            let text =
                format!("the network `{}` has two DHCP servers, `{other}` and `{}`", dhcp.network, node.name);
            problems.add(spot!["node", node.name.as_str(), "serves", "dhcp"], text);
        }
    }
    for node in nodes.values() {
        for (index, nic) in node.nics.iter().enumerate() {
            if nic.address == Address::Dhcp && !leases.contains_key(&nic.network) {
                problems
                    .add(
                        spot!["node", node.name.as_str(), "nics", index, "address"],
                        format!("nobody gives out addresses on the network `{}`", nic.network),
                    )
                    .hint(format!("give a node with the profile `{EDGE}` a card there and `serves.dhcp`, or write the address"));
            }
        }
    }
}

/// No address is used twice, or given out by DHCP too.
fn addresses(nodes: &BTreeMap<Name, Node>, problems: &mut Problems<'_>) {
    let mut taken: BTreeMap<IpAddr, &Name> = BTreeMap::new();
    let ranges: Vec<&Dhcp> = nodes.values().filter_map(|n| n.serves.as_ref()?.dhcp.as_ref()).collect();
    for node in nodes.values() {
        for (index, nic) in node.nics.iter().enumerate() {
            let Some(ip) = nic.address.fixed() else { continue };
            let spot = spot!["node", node.name.as_str(), "nics", index, "address"];
            if let Some(other) = taken.insert(ip, &node.name) {
                problems.add(spot, format!("{ip} is the address of `{other}`, too"));
            } else if ranges.iter().any(|dhcp| {
                dhcp.network == nic.network
                    && (dhcp.first..=dhcp.last).contains(&ip)
                    && !serves_itself(node, dhcp)
            }) {
                problems
                    .add(spot, format!("{ip} is also given out by DHCP on the network `{}`", nic.network));
            }
        }
    }
}

/// Its own address in its own range has been told already.
fn serves_itself(node: &Node, dhcp: &Dhcp) -> bool {
    node.serves.as_ref().is_some_and(|serves| serves.dhcp.as_ref() == Some(dhcp))
}
