//! From the shape of a cluster.toml to a cluster: every text is read, and everything that does not fit is told at once.

mod nodes;
mod outside;
mod secrets;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::str::FromStr;

use anyhow::Result;
use ipnet::Ipv4Net;

use super::file::{File, NetworkFile};
use super::{Cluster, Endpoint, Network, Node};
use crate::scenario::problems::{Part, Problems, spot};
use crate::scenario::spec::{Name, Subnet};
use crate::spec::{Project, Role, parse};

/// K3s' port for nodes and for kubectl (docs.k3s.io/installation/requirements).
const PORT: u16 = 6443;

/// Reads the masked `text` of `file`.
pub(super) fn read(file: &str, text: &str, folder: &Path, project: &Project) -> Result<Cluster> {
    crate::spec::check_schema(file, text)?;
    let shape: File = parse(file, text)?;
    let mut problems = Problems::new(file, text);
    let name = value::<Name>(&shape.name, spot!["name"], &mut problems);
    let networks = networks(&shape, &mut problems);
    let nodes = nodes::nodes(&shape, &networks, project, &mut problems);
    let servers = nodes::servers(&shape, &nodes, project, &mut problems);
    let endpoint = endpoint(&shape, &servers, &mut problems);
    nodes::routes(&nodes, &networks, endpoint, &mut problems);
    let lb_pool = outside::lb_pool(&shape, &nodes, &networks, project, &mut problems);
    let nfs = outside::nfs(&shape, &nodes, &mut problems);
    let bgp = outside::bgp(&shape, &nodes, project, &mut problems);
    outside::taken(&networks, project, &nodes, &mut problems);
    let ssh_keys = secrets::ssh_keys(&shape, folder, &mut problems);
    let mut warnings = Problems::new(file, text);
    let secrets = secrets::secrets(&shape, folder, &nodes, &mut problems, &mut warnings);
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

/// Reads an IPv4 address, which a node is given.
fn address(text: &str, spot: Vec<Part>, problems: &mut Problems<'_>) -> Option<Ipv4Addr> {
    let address = text.parse::<Ipv4Addr>().ok();
    if address.is_none() {
        let text = text.escape_debug();
        problems.add(spot, format!("`{text}` is no IPv4 address: write one such as \"192.168.50.100\""));
    }
    address
}

/// Reads a list of addresses.
fn addresses(texts: &[String], spot: &[Part], problems: &mut Problems<'_>) -> Vec<Ipv4Addr> {
    let read = texts
        .iter()
        .enumerate()
        .filter_map(|(index, text)| address(text, [spot, &spot![index]].concat(), problems));
    read.collect()
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
    let dns = addresses(&file.dns, &at("dns"), problems);
    let ntp = addresses(&file.ntp, &at("ntp"), problems);
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
        problems
            .add(spot!["endpoint"], format!("`{}` is no endpoint of K3s", text.escape_debug()))
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
