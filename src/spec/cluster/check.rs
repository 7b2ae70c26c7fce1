//! From the shape of a cluster.toml to a cluster: every text is read, and everything that does not fit is told at once.

mod labels;
mod nodes;
mod outside;
mod secrets;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::str::FromStr;

use anyhow::Result;
use ipnet::Ipv4Net;

use super::file::{File, NetworkFile};
use super::{Cluster, Endpoint, Look, Network, Node};
use crate::scenario::problems::{Part, Problems, spot};
use crate::scenario::spec::{Name, Subnet};
use crate::spec::{Host, Project, Role, parse};

/// K3s' port for nodes and for kubectl (docs.k3s.io/installation/requirements).
const PORT: u16 = 6443;

/// Reads the masked `text` of `file`; with `look`, what its secrets are, too.
pub(super) fn read(
    file: &str,
    text: &str,
    folder: &Path,
    project: &Project,
    look: Option<&Look<'_>>,
) -> Result<Cluster> {
    crate::spec::check_schema(file, text)?;
    let shape: File = parse(file, text)?;
    let mut problems = Problems::new(file, text);
    let name = value::<Name>(&shape.name, spot!["name"], &mut problems);
    let networks = networks(&shape, &mut problems);
    let nodes = nodes::nodes(&shape, &networks, project, &mut problems);
    let servers = nodes::servers(&shape, &nodes, project, &mut problems);
    let endpoint = endpoint(&shape, &servers, &mut problems);
    nodes::routes(&nodes, &networks, endpoint, project, &mut problems);
    let lb_pool = outside::lb_pool(&shape, &nodes, &networks, project, &mut problems);
    let nfs = outside::nfs(&shape, &nodes, &mut problems);
    let bgp = outside::bgp(&shape, &nodes, project, &mut problems);
    outside::taken(&networks, project, &nodes, &mut problems);
    let ssh_keys = secrets::ssh_keys(&shape, folder, &mut problems);
    let mut warnings = Problems::new(file, text);
    let secrets = secrets::secrets(&shape, folder, &nodes, look, &mut problems, &mut warnings);
    if let Some(failure) = problems.failure() {
        return Err(failure.into());
    }
    let (Some(name), Some(endpoint)) = (name, endpoint) else {
        let failure = crate::error::Failure::new(
            crate::error::Kind::Internal,
            format!("{file}: something was wrong and nobody told"),
        );
        return Err(failure.into());
    };
    Ok(Cluster {
        name,
        file: file.to_owned(),
        folder: folder.to_owned(),
        endpoint,
        ssh_keys,
        networks,
        nodes,
        lb_pool,
        nfs,
        bgp,
        secrets,
        warnings: warnings.texts(),
    })
}

/// Reads a value, or tells why it is none.
fn value<T: FromStr<Err = String>>(text: &str, spot: Vec<Part>, problems: &mut Problems<'_>) -> Option<T> {
    match text.parse() {
        Ok(value) => Some(value),
        Err(why) => {
            problems.add(spot, why);
            None
        }
    }
}

/// Reads the IPv4 address of a gateway or a router. What else names a host is refused with the reason: nodes are given IPv4 addresses alone.
fn address(text: &str, spot: Vec<Part>, problems: &mut Problems<'_>) -> Option<Ipv4Addr> {
    let address = text.parse::<Ipv4Addr>().ok();
    if address.is_none() {
        let shown = text.escape_debug();
        let why = match text.parse::<Host>() {
            Ok(host) if host.is_v6() => {
                format!(
                    "`{shown}` is an IPv6 address, and nodes are given IPv4 addresses: they reach this by IPv4 alone"
                )
            }
            Ok(_) => format!("`{shown}` is a host name, and only an address can stand here"),
            Err(_) => format!("`{shown}` is not an IPv4 address"),
        };
        problems.add(spot, format!("{why}: write one such as \"192.168.50.1\""));
    }
    address
}

/// Reads a list of name servers, which systemd-networkd takes as addresses (systemd.network(5), DNS=).
fn name_servers(texts: &[String], spot: &[Part], problems: &mut Problems<'_>) -> Vec<IpAddr> {
    let mut read = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match host(text, [spot, &spot![index]].concat(), problems) {
            Some(Host::Address(address)) => read.push(address),
            Some(Host::Name(name)) => {
                problems
                    .add(
                        [spot, &spot![index]].concat(),
                        format!("`{name}` is a host name, which only a name server could find"),
                    )
                    .hint("write the address of the name server, such as \"192.168.50.1\" or \"fd00::1\"");
            }
            None => {}
        }
    }
    read
}

/// Reads a list of time servers, which systemd-timesyncd takes as addresses or names (timesyncd.conf(5), NTP=).
fn time_servers(texts: &[String], spot: &[Part], problems: &mut Problems<'_>) -> Vec<Host> {
    let read = texts
        .iter()
        .enumerate()
        .filter_map(|(index, text)| host(text, [spot, &spot![index]].concat(), problems));
    read.collect()
}

/// Reads the address or the name of a host that others ask for something.
fn host(text: &str, spot: Vec<Part>, problems: &mut Problems<'_>) -> Option<Host> {
    let host: Host = value(text, spot.clone(), problems)?;
    let why = match &host {
        Host::Address(address) if address.is_unspecified() => "stands for any address, not for a host",
        Host::Address(address) if address.is_multicast() => "is the address of a group, not of a host",
        Host::Address(IpAddr::V4(Ipv4Addr::BROADCAST)) => "is the address of all hosts",
        Host::Address(address) if address.is_loopback() => {
            "is the node itself, which serves nothing of the kind"
        }
        Host::Address(IpAddr::V6(address)) if link_local(*address) => {
            "is an address on one network card, whose names differ between machines: write one that does not begin with fe80"
        }
        Host::Name(name) if name == "localhost" => "is the node itself, which serves nothing of the kind",
        _ => return Some(host),
    };
    problems.add(spot, format!("`{host}` {why}"));
    None
}

/// fe80::/10.
fn link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

/// Why no node can have an address of a network, if so: the kubelet takes none that is not a host's own (`validateNodeIP`).
fn special(subnet: Ipv4Net) -> Option<&'static str> {
    let of = |text: &str| text.parse::<Ipv4Net>().is_ok_and(|range| overlap(range, subnet));
    if of("127.0.0.0/8") {
        Some("addresses of a machine itself (127.0.0.0/8)")
    } else if of("224.0.0.0/3") {
        Some("addresses of groups and reserved ones (224.0.0.0/3)")
    } else if of("169.254.0.0/16") {
        Some("addresses that machines choose themselves (169.254.0.0/16)")
    } else if of("0.0.0.0/8") {
        Some("addresses that stand for no host (0.0.0.0/8)")
    } else {
        None
    }
}

/// Whether `address` may be a host's in `subnet`, as half a sentence if it may not.
fn misplaced(address: Ipv4Addr, subnet: Ipv4Net, network: &Name) -> Option<String> {
    if !subnet.contains(&address) {
        Some(format!("{address} is not in {subnet}, the network `{network}`"))
    } else if address == subnet.network() {
        Some(format!("{address} is the address of the network `{network}` itself, {subnet}"))
    } else if address == subnet.broadcast() {
        Some(format!("{address} is the broadcast address of the network `{network}`, {subnet}"))
    } else {
        None
    }
}

fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

fn networks(shape: &File, problems: &mut Problems<'_>) -> BTreeMap<Name, Network> {
    let mut networks: BTreeMap<Name, Network> = BTreeMap::new();
    for (name, file) in &shape.network {
        let Some(name) = value::<Name>(name, spot!["network", Part::Name(name.clone())], problems) else {
            continue;
        };
        if let Some(network) = network(&name, file, problems) {
            if let Some(other) = networks.values().find(|other| overlap(other.subnet, network.subnet)) {
                let text =
                    format!("{} overlaps {} of the network `{}`", network.subnet, other.subnet, other.name);
                problems.add(spot!["network", name.as_str(), "subnet"], text);
            }
            networks.insert(name, network);
        }
    }
    networks
}

fn network(name: &Name, file: &NetworkFile, problems: &mut Problems<'_>) -> Option<Network> {
    let at = |key: &str| spot!["network", name.as_str(), key];
    let gateway = file.gateway.as_ref().and_then(|text| address(text, at("gateway"), problems));
    let dns = name_servers(&file.dns, &at("dns"), problems);
    let ntp = time_servers(&file.ntp, &at("ntp"), problems);
    if let Some(domain) = &file.domain
        && !crate::scenario::identity::is_domain(domain)
    {
        problems.add(at("domain"), format!("`{}` is no domain", domain.escape_debug()));
    }
    let subnet: Subnet = value(&file.subnet, at("subnet"), problems)?;
    let ipnet::IpNet::V4(subnet) = subnet.net() else {
        problems.add(at("subnet"), format!("{subnet} is a subnet of IPv6: nodes are given IPv4 addresses"));
        return None;
    };
    if let Some(what) = special(subnet) {
        problems
            .add(at("subnet"), format!("no node can have an address in {subnet}: there are {what} in it"));
    }
    if let Some(why) = gateway.and_then(|gateway| misplaced(gateway, subnet, name)) {
        problems.add(at("gateway"), format!("the gateway cannot be reached: {why}"));
    }
    Some(Network { name: name.clone(), subnet, gateway, dns, ntp, domain: file.domain.clone() })
}

/// Where nodes find K3s.
fn endpoint(shape: &File, servers: &[&Node], problems: &mut Problems<'_>) -> Option<Endpoint> {
    let Some(text) = &shape.endpoint else {
        // A server without an address has been told already.
        return servers
            .iter()
            .find_map(|node| node.address())
            .map(|address| Endpoint { address, port: PORT });
    };
    let read = || {
        let rest = text.strip_prefix("https://")?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) =
            rest.split_once(':').map_or((rest, Some(PORT)), |(host, port)| (host, port.parse().ok()));
        Some(Endpoint { address: host.parse().ok()?, port: port.filter(|port| *port > 0)? })
    };
    let Some(endpoint) = read() else {
        let host =
            text.strip_prefix("https://").unwrap_or_default().split(['/', ':']).next().unwrap_or_default();
        let why = match host.parse::<Host>() {
            Ok(Host::Name(name)) => format!(
                "`{}` is not an endpoint of K3s: `{name}` is a host name, and nodes join by the address of a server",
                text.escape_debug()
            ),
            _ => format!("`{}` is not an endpoint of K3s", text.escape_debug()),
        };
        problems
            .add(spot!["endpoint"], why)
            .hint("write `https://` and the address of a server, such as \"https://192.168.50.100:6443\"");
        return None;
    };
    if !servers.iter().any(|node| node.address() == Some(endpoint.address)) {
        let known: Vec<String> = servers
            .iter()
            .filter_map(|node| Some(format!("{} of `{}`", node.address()?, node.name)))
            .collect();
        let problem =
            problems.add(spot!["endpoint"], format!("no server has the address {}", endpoint.address));
        if !known.is_empty() {
            problem.hint(format!("servers have {}", known.join(", ")));
        }
    }
    Some(endpoint)
}

/// The nodes that run K3s' control plane.
fn of_role(nodes: &BTreeMap<Name, Node>, role: Role) -> Vec<&Node> {
    nodes.values().filter(|node| node.role == role).collect()
}
