//! The machines.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::labels::{labels, taints};
use super::{address, misplaced, name_servers, of_role, value};
use crate::scenario::problems::{Part, Problems, spot};
use crate::scenario::spec::{Mac, Name};
use crate::spec::cluster::file::{DiskFile, File, NodeFile};
use crate::spec::cluster::{Addressing, DiskContract, DisklessState, Endpoint, Network, Node, Seal};
use crate::spec::{Host, Profile, Project, Role};

/// Words that stand for several nodes where kiln takes names of nodes, and what every machine calls itself.
const RESERVED: [&str; 3] = ["all", "every", "localhost"];

pub(super) fn nodes(
    shape: &File,
    networks: &BTreeMap<Name, Network>,
    project: &Project,
    problems: &mut Problems<'_>,
) -> BTreeMap<Name, Node> {
    if shape.node.is_empty() {
        problems
            .add(spot![], "there is no node")
            .hint("write `[node.server]` with `role = \"server\"` and its `address`");
    }
    let mut nodes = BTreeMap::new();
    let mut taken = Taken::default();
    for (name, file) in &shape.node {
        let here = spot!["node", Part::Name(name.clone())];
        let read = value::<Name>(name, here.clone(), problems);
        if RESERVED.contains(&name.as_str()) {
            problems.add(here, format!("no node can be called `{name}`: that word has a meaning of its own"));
        }
        // Under a name that is none, the rest is looked at all the same.
        if let Some(mut node) = node(name, read, file, networks, project, &mut taken, problems) {
            node.seal = file.seal.or(shape.seal).unwrap_or_default();
            nodes.insert(node.name.clone(), node);
        }
    }
    taken.tell(networks, problems);
    nodes
}

/// Who has what only one may have, in the order in which it is found.
#[derive(Default)]
struct Taken {
    macs: BTreeMap<Mac, Vec<String>>,
    addresses: BTreeMap<Ipv4Addr, Vec<String>>,
    serials: BTreeMap<(&'static str, String), Vec<String>>,
}

impl Taken {
    fn tell(&self, networks: &BTreeMap<Name, Network>, problems: &mut Problems<'_>) {
        let twice = |names: &[String], key: &str, what: String, problems: &mut Problems<'_>| {
            let Some((first, others)) = names.split_first() else { return };
            for name in others {
                problems.add(spot!["node", name.as_str(), key], format!("{what} of `{first}`, too"));
            }
        };
        for (mac, names) in &self.macs {
            twice(names, "mac", format!("{mac} is the hardware address"), problems);
        }
        for (address, names) in &self.addresses {
            twice(names, "address", format!("{address} is the address"), problems);
            let gateway = networks.values().find(|network| network.gateway == Some(*address));
            if let (Some(network), Some(name)) = (gateway, names.first()) {
                let text = format!("{address} is the gateway of the network `{}`", network.name);
                problems.add(spot!["node", name.as_str(), "address"], text);
            }
        }
        for ((key, serial), names) in &self.serials {
            twice(names, "disk", format!("the {key} {serial} is that of the disk"), problems);
        }
    }
}

fn node(
    name: &str,
    read: Option<Name>,
    file: &NodeFile,
    networks: &BTreeMap<Name, Network>,
    project: &Project,
    taken: &mut Taken,
    problems: &mut Problems<'_>,
) -> Option<Node> {
    let at = |key: &str| spot!["node", name, key];
    let profile = profile(name, file, project, problems);
    let mac = file.mac.as_ref().and_then(|text| mac(text, at("mac"), problems));
    if let Some(mac) = mac {
        taken.macs.entry(mac).or_default().push(name.to_owned());
    }
    let disk = disk(name, &file.disk, problems);
    for (key, serial) in [("serial", &disk.serial), ("wwn", &disk.wwn)] {
        if let Some(serial) = serial {
            taken.serials.entry((key, serial.clone())).or_default().push(name.to_owned());
        }
    }
    if file.diskless_state == DisklessState::Disk && disk.is_empty() {
        let text = format!("nothing says which disk of `{name}` its state may be put on");
        problems.add(at("diskless-state"), text).hint("write `disk = { serial = \"…\" }` for it");
    }
    labels(name, file, problems);
    taints(name, file, problems);
    let gateway = file.gateway.as_ref().and_then(|text| address(text, at("gateway"), problems));
    let dns = file.dns.as_ref().map(|texts| name_servers(texts, &at("dns"), problems));
    let wanted = match file.address.as_str() {
        "dhcp" => None,
        text => Some(fixed(text, at("address"), problems)?),
    };
    if let Some(address) = wanted {
        taken.addresses.entry(address).or_default().push(name.to_owned());
    }
    let network = network(name, file, wanted, networks, problems)?;
    if let Some(why) = gateway.and_then(|gateway| misplaced(gateway, network.subnet, &network.name)) {
        problems.add(at("gateway"), format!("the gateway cannot be reached: {why}"));
    }
    let addressing = match wanted {
        None => {
            for (key, given) in [("gateway", file.gateway.is_some()), ("dns", file.dns.is_some())] {
                if given {
                    problems
                        .add(at(key), format!("`{name}` is told its {key} by DHCP"))
                        .hint("leave it out, or write the node's address");
                }
            }
            Addressing::Dhcp
        }
        Some(address) => {
            if let Some(why) = misplaced(address, network.subnet, &network.name) {
                problems.add(at("address"), format!("`{name}` cannot have this address: {why}"));
            }
            let dns = dns.unwrap_or_else(|| network.dns.clone());
            if let Some(server) = network.ntp.iter().find(|server| matches!(server, Host::Name(_)))
                && dns.is_empty()
            {
                let text =
                    format!("`{name}` has no name server by which it could find the time server `{server}`");
                problems
                    .add(at("address"), text)
                    .hint(format!("write `dns` in [network.{}], or the address in `ntp`", network.name));
            }
            Addressing::Static {
                address,
                prefix: network.subnet.prefix_len(),
                gateway: gateway.or(network.gateway),
                dns,
                ntp: network.ntp.clone(),
                domain: network.domain.clone(),
            }
        }
    };
    Some(Node {
        name: read?,
        role: file.role,
        profile,
        network: network.name.clone(),
        mac,
        addressing,
        disk,
        diskless_state: file.diskless_state,
        labels: file.labels.clone(),
        taints: file.taints.clone(),
        seal: Seal::default(),
    })
}

/// The address of a node. One with its prefix is told apart from a mistake: the prefix is the network's.
fn fixed(text: &str, spot: Vec<Part>, problems: &mut Problems<'_>) -> Option<Ipv4Addr> {
    if let Some((address, _)) = text.split_once('/')
        && address.parse::<Ipv4Addr>().is_ok()
    {
        problems.add(spot, format!("`{}` has a prefix", text.escape_debug())).hint(format!(
            "write \"{address}\": how many bits the network has is said by `subnet` of its network"
        ));
        return None;
    }
    let address = text.parse::<Ipv4Addr>().ok();
    if address.is_none() {
        let text = text.escape_debug();
        problems.add(
            spot,
            format!("`{text}` is no address: write an IPv4 address such as \"192.168.50.111\", or \"dhcp\""),
        );
    }
    address
}

fn mac(text: &str, spot: Vec<Part>, problems: &mut Problems<'_>) -> Option<Mac> {
    let plain = colons(text);
    if plain == "00:00:00:00:00:00" {
        problems
            .add(spot, "no card has the hardware address 00:00:00:00:00:00")
            .hint("write it as `ip link` shows it, or leave it out");
        return None;
    }
    match plain.parse() {
        Ok(mac) => Some(mac),
        Err(_) => {
            let first = plain.split(':').next().and_then(|byte| u8::from_str_radix(byte, 16).ok());
            let group = plain.split(':').count() == 6 && first.is_some_and(|byte| byte & 1 == 1);
            let why = if group {
                format!("`{}` is the hardware address of a group, not of a card", text.escape_debug())
            } else {
                format!("`{}` is no hardware address of a card", text.escape_debug())
            };
            problems.add(spot, why).hint("write it as `ip link` shows it: \"bc:24:11:00:00:10\"");
            None
        }
    }
}

/// A hardware address with colons and small letters. Windows writes it with `-`, Cisco's switches as `bc24.1100.0010`, stickers without anything.
fn colons(text: &str) -> String {
    let small = text.to_lowercase();
    let digits: String = small.chars().filter(|c| !".-:".contains(*c)).collect();
    let groups = |separator: char, length: usize| small.split(separator).all(|group| group.len() == length);
    let whole = digits.len() == 12 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if whole && (groups('-', 2) || groups('.', 4) || groups(' ', 12)) {
        let pairs: Vec<&str> = (0..6).filter_map(|at| digits.get(at * 2..at * 2 + 2)).collect();
        return pairs.join(":");
    }
    small
}

/// Whose image a node gets.
fn profile(name: &str, file: &NodeFile, project: &Project, problems: &mut Problems<'_>) -> String {
    let wanted = file.profile.clone().unwrap_or_else(|| file.role.to_string());
    let at = |key: &str| spot!["node", name, key];
    match project.profiles.get(&wanted) {
        None => {
            let key = if file.profile.is_some() { "profile" } else { "role" };
            problems
                .add(at(key), format!("there is no profile `{wanted}` in profiles/"))
                .near(&wanted, project.profiles.keys().map(String::as_str));
        }
        Some(profile) if profile.role() != Some(file.role) => {
            let is = profile.role().map_or("of no role".to_owned(), |role| format!("of the role {role}"));
            let fit = project.profiles.values().filter(|profile| profile.role() == Some(file.role));
            let fit: Vec<&str> = fit.map(|profile| profile.name.as_str()).collect();
            let key = if file.profile.is_some() { "profile" } else { "role" };
            let problem = problems.add(
                at(key),
                format!("`{name}` is to be {}, and the profile `{wanted}` is {is}", an(file.role)),
            );
            if !fit.is_empty() {
                problem.hint(format!("profiles of that role: {}", fit.join(", ")));
            }
        }
        Some(_) => {}
    }
    wanted
}

fn an(role: Role) -> &'static str {
    match role {
        Role::Server => "a server",
        Role::Agent => "an agent",
    }
}

/// The network of a node: as said, or the one that has its address, or the only one.
fn network<'a>(
    name: &str,
    file: &NodeFile,
    wanted: Option<Ipv4Addr>,
    networks: &'a BTreeMap<Name, Network>,
    problems: &mut Problems<'_>,
) -> Option<&'a Network> {
    let at = |key: &str| spot!["node", name, key];
    if let Some(said) = &file.network {
        let found = networks.get(said.as_str());
        if found.is_none() {
            problems
                .add(at("network"), format!("there is no network `{}`", said.escape_debug()))
                .near(said, networks.keys().map(Name::as_str));
        }
        return found;
    }
    if let Some(address) = wanted {
        let found = networks.values().find(|network| network.subnet.contains(&address));
        if found.is_none() {
            let known: Vec<String> =
                networks.values().map(|n| format!("{} (`{}`)", n.subnet, n.name)).collect();
            let problem = problems.add(at("address"), format!("{address} is in no network"));
            match known.is_empty() {
                true => problem.hint("write `[network.lan]` with `subnet` and `gateway`"),
                false => {
                    problem.hint(format!("there is {}; write another `[network.NAME]`", known.join(", ")))
                }
            };
        }
        return found;
    }
    let mut all = networks.values();
    match (all.next(), all.next()) {
        (Some(only), None) => Some(only),
        (None, _) => {
            problems
                .add(at("address"), format!("`{name}` is on no network"))
                .hint("write `[network.lan]` with its `subnet`");
            None
        }
        (Some(_), Some(_)) => {
            let names: Vec<&str> = networks.keys().map(Name::as_str).collect();
            problems
                .add(at("address"), format!("nothing says on which network `{name}` asks for its address"))
                .hint(format!("write `network` with one of {}", names.join(", ")));
            None
        }
    }
}

fn disk(name: &str, file: &DiskFile, problems: &mut Problems<'_>) -> DiskContract {
    let at = |key: &str| spot!["node", name, "disk", key];
    let word = |key: &'static str, text: &Option<String>, problems: &mut Problems<'_>| {
        let text = text.as_ref()?.trim();
        if text.is_empty() || text.contains(char::is_control) {
            problems
                .add(at(key), format!("the {key} is empty or has control characters"))
                .hint(format!("leave it out, or write what `lsblk -o {}` shows", key.to_uppercase()));
        }
        Some(text.to_owned())
    };
    let contract = DiskContract {
        serial: word("serial", &file.serial, problems),
        wwn: word("wwn", &file.wwn, problems),
        model: file.model.as_ref().and_then(|text| value(text, at("model"), problems)),
        bus: file.bus,
        size: file.size.as_ref().and_then(|text| value(text, at("size"), problems)),
        min_size: file.min_size.as_ref().and_then(|text| value(text, at("min-size"), problems)),
        max_size: file.max_size.as_ref().and_then(|text| value(text, at("max-size"), problems)),
    };
    if let (Some(least), Some(most)) = (contract.min_size, contract.max_size)
        && least > most
    {
        problems.add(at("min-size"), format!("no disk has at least {least} and at most {most}"));
    }
    if let Some(size) = contract.size
        && !contract.fits_size(size.bytes())
    {
        problems.add(at("size"), format!("a disk of {size} is not within `min-size` and `max-size`"));
    }
    contract
}

/// The servers, the one of the least name first; and whether there are as many as the datastore allows.
pub(super) fn servers<'a>(
    shape: &File,
    nodes: &'a BTreeMap<Name, Node>,
    project: &Project,
    problems: &mut Problems<'_>,
) -> Vec<&'a Node> {
    let servers = of_role(nodes, Role::Server);
    let wanted = |role: Role| shape.node.iter().filter(move |(_, file)| file.role == role);
    if wanted(Role::Server).next().is_none()
        && let Some((agent, _)) = wanted(Role::Agent).next()
    {
        problems
            .add(
                spot!["node", agent.as_str(), "role"],
                format!("`{agent}` is an agent, and there is no server that it could join"),
            )
            .hint("give one node `role = \"server\"`");
    }
    for server in &servers {
        if server.address().is_none() {
            problems
                .add(
                    spot!["node", server.name.as_str(), "address"],
                    format!(
                        "`{}` is a server: the others could not find it at an address that DHCP may change",
                        server.name
                    ),
                )
                .hint("write its address");
        }
    }
    let profile = |node: &Node| project.profiles.get(&node.profile);
    if servers.len() > 1
        && let Some(second) = servers.iter().skip(1).find(|node| profile(node).is_some_and(on_sqlite))
    {
        problems
            .add(
                spot!["node", second.name.as_str(), "role"],
                format!(
                    "`{}` is the second server, and K3s keeps its data in SQLite, which one server alone can have",
                    second.name
                ),
            )
            .hint("make it an agent, or give the profile a datastore for several: `cluster-init = true` or `datastore-endpoint` in [k3s.config]");
    }
    servers
}

/// Whether K3s has its default datastore (docs.k3s.io/datastore).
fn on_sqlite(profile: &Profile) -> bool {
    let config = profile.layer.k3s.as_ref().map(|k3s| &k3s.config);
    let says = |key: &str| config.and_then(|config| config.get(key)).is_some();
    let etcd = config.and_then(|config| config.get("cluster-init")) == Some(&serde_json::Value::Bool(true));
    !etcd && !says("datastore-endpoint")
}

/// Whether each node has a default route: K3s does not start without one (docs.k3s.io/installation/airgap, Default Network Route), and from
/// another network the server is not reached without it, nor can the server answer.
pub(super) fn routes(
    nodes: &BTreeMap<Name, Node>,
    networks: &BTreeMap<Name, Network>,
    endpoint: Option<Endpoint>,
    project: &Project,
    problems: &mut Problems<'_>,
) {
    let of_k3s =
        |node: &&Node| project.profiles.get(&node.profile).is_none_or(|profile| profile.layer.k3s.is_some());
    let home = endpoint.and_then(|at| networks.values().find(|network| network.subnet.contains(&at.address)));
    let far = |node: &Node| home.is_some_and(|home| node.network != home.name);
    let first_far = nodes.values().find(|node| far(node));
    for node in nodes.values().filter(of_k3s) {
        let Addressing::Static { gateway: None, address, .. } = &node.addressing else { continue };
        let why = match (endpoint, first_far) {
            (Some(endpoint), _) if far(node) => {
                format!("`{}` has no gateway, and {endpoint} is in another network", node.name)
            }
            (Some(endpoint), Some(other)) if endpoint.address == *address => format!(
                "`{}` has no gateway, and cannot answer `{}`, which is in another network",
                node.name, other.name
            ),
            _ => format!(
                "`{}` has no gateway, and K3s does not start on a node without a default route",
                node.name
            ),
        };
        let problem = problems.add(spot!["node", node.name.as_str(), "address"], why);
        problem.hint(format!("write `gateway` in [network.{}]", node.network));
        if !far(node) && first_far.is_none() {
            problem.hint("where there is no router, any free address of the network will do: K3s looks for the route and its card, and sends nothing there");
        }
    }
}
