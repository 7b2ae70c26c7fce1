//! What is beside the nodes: addresses of services, the NFS server, the router.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::{address, host, overlap};
use crate::scenario::problems::{Problems, spot};
use crate::scenario::spec::Name;
use crate::spec::cluster::file::File;
use crate::spec::cluster::{Bgp, Network, Nfs, Node};
use crate::spec::{Host, K3s, Project, Role};

/// What K3s is told on a server; without one that is known, its defaults.
fn k3s<'a>(nodes: &BTreeMap<Name, Node>, project: &'a Project) -> Option<(&'a str, &'a K3s)> {
    let servers = nodes.values().filter(|node| node.role == Role::Server);
    let mut profiles = servers.filter_map(|node| project.profiles.get(&node.profile));
    profiles.find_map(|profile| Some((profile.name.as_str(), profile.layer.k3s.as_ref()?)))
}

/// The addresses inside the cluster, which nothing outside may have.
fn inside(nodes: &BTreeMap<Name, Node>, project: &Project) -> [(&'static str, Ipv4Net); 2] {
    let standard = K3s::default();
    let k3s = k3s(nodes, project).map_or(&standard, |(_, k3s)| k3s);
    [("pods", k3s.cluster_cidr()), ("services", k3s.service_cidr())]
}

/// No network may have addresses of pods or services.
pub(super) fn taken(
    networks: &BTreeMap<Name, Network>,
    project: &Project,
    nodes: &BTreeMap<Name, Node>,
    problems: &mut Problems<'_>,
) {
    for network in networks.values() {
        for (whose, cidr) in inside(nodes, project) {
            if overlap(network.subnet, cidr) {
                problems
                    .add(
                        spot!["network", network.name.as_str(), "subnet"],
                        format!("{} overlaps {cidr}, the addresses of {whose}", network.subnet),
                    )
                    .hint("set `cluster-cidr` or `service-cidr` in [k3s] of the images to others");
            }
        }
    }
}

pub(super) fn lb_pool(
    shape: &File,
    nodes: &BTreeMap<Name, Node>,
    networks: &BTreeMap<Name, Network>,
    project: &Project,
    problems: &mut Problems<'_>,
) -> Option<Ipv4Net> {
    let text = shape.lb_pool.as_ref()?;
    let spot = || spot!["lb-pool"];
    let pool = match text.parse::<Ipv4Net>() {
        Ok(pool) if pool.trunc() == pool => pool,
        Ok(pool) => {
            problems.add(spot(), format!("`{text}` has bits of a host: the pool is \"{}\"", pool.trunc()));
            return None;
        }
        Err(_) => {
            problems
                .add(spot(), format!("`{}` is no pool of addresses", text.escape_debug()))
                .hint("write one such as \"192.168.50.240/28\"");
            return None;
        }
    };
    for (whose, cidr) in inside(nodes, project) {
        if overlap(pool, cidr) {
            problems.add(spot(), format!("{pool} overlaps {cidr}, the addresses of {whose}"));
        }
    }
    for node in nodes.values() {
        if let Some(address) = node.address().filter(|address| pool.contains(address)) {
            problems.add(spot(), format!("{pool} has {address} in it, the address of `{}`", node.name));
        }
    }
    let mut others: Vec<(String, Ipv4Addr)> = Vec::new();
    for network in networks.values() {
        others.extend(network.gateway.map(|a| (format!("the gateway of `{}`", network.name), a)));
        others.extend(
            network.dns_v4().into_iter().map(|a| (format!("a name server of `{}`", network.name), a)),
        );
        others.extend(
            network.ntp_v4().into_iter().map(|a| (format!("a time server of `{}`", network.name), a)),
        );
    }
    let nfs = shape.nfs.as_ref().and_then(|nfs| nfs.server.parse().ok());
    others.extend(nfs.map(|a| ("the NFS server".to_owned(), a)));
    let mut told = Vec::new();
    for (whose, address) in others {
        if pool.contains(&address) && !told.contains(&address) {
            problems.add(spot(), format!("{pool} has {address} in it, {whose}"));
            told.push(address);
        }
    }
    let baked = k3s(nodes, project).and_then(|(name, k3s)| Some((name, k3s.cilium.as_ref()?.lb_pool?)));
    if let Some((profile, baked)) = baked
        && baked != IpNet::V4(pool)
    {
        problems
            .add(spot(), format!("the image of `{profile}` gives out {baked}"))
            .hint("write the same in `lb-pool` of [k3s.cilium], or leave it out here");
    }
    Some(pool)
}

pub(super) fn nfs(shape: &File, nodes: &BTreeMap<Name, Node>, problems: &mut Problems<'_>) -> Option<Nfs> {
    let file = shape.nfs.as_ref()?;
    let plain = file.path.starts_with('/')
        && !file.path.contains(char::is_control)
        && !file.path.split('/').any(|part| part == "..");
    if !plain {
        problems
            .add(spot!["nfs", "path"], format!("`{}` is no exported folder", file.path.escape_debug()))
            .hint("write its path on the server, such as \"/srv/nfs/k8s\"");
    }
    let server = host(&file.server, spot!["nfs", "server"], problems)?;
    let is = |node: &Node| match &server {
        Host::Address(address) => node.address().map(IpAddr::V4) == Some(*address),
        Host::Name(name) => name == node.name.as_str(),
    };
    if let Some(node) = nodes.values().find(|node| is(node)) {
        problems.add(
            spot!["nfs", "server"],
            format!("{server} is `{}`, a node of the cluster, which exports nothing", node.name),
        );
    }
    Some(Nfs { server, path: file.path.clone() })
}

pub(super) fn bgp(
    shape: &File,
    nodes: &BTreeMap<Name, Node>,
    project: &Project,
    problems: &mut Problems<'_>,
) -> Option<Bgp> {
    let file = shape.bgp.as_ref()?;
    for (key, asn) in [("asn", file.asn), ("peer-asn", file.peer_asn)] {
        // RFC 7607 and RFC 7300 reserve the first and the last, RFC 6793 has 23456 stand for others.
        if [0, 23_456, 65_535, u32::MAX].contains(&asn) {
            problems
                .add(spot!["bgp", key], format!("{asn} is the number of no autonomous system"))
                .hint("private ones are 64512 to 65534");
        }
    }
    let peer = address(&file.peer, spot!["bgp", "peer"], problems)?;
    if peer.is_unspecified() || peer.is_multicast() || peer.is_loopback() || peer.is_broadcast() {
        problems.add(spot!["bgp", "peer"], format!("{peer} is not the address of a router"));
    }
    if let Some(node) = nodes.values().find(|node| node.address() == Some(peer)) {
        problems.add(
            spot!["bgp", "peer"],
            format!("{peer} is the address of `{}`, which is no router", node.name),
        );
    }
    let baked = k3s(nodes, project).and_then(|(name, k3s)| Some((name, k3s.cilium.as_ref()?.bgp.as_ref()?)));
    if let Some((profile, baked)) = baked {
        let ours = (peer.to_string(), file.asn, file.peer_asn);
        if (baked.peer.to_string(), baked.asn, baked.peer_asn) != ours {
            problems
                .add(
                    spot!["bgp"],
                    format!(
                        "the image of `{profile}` speaks as AS {} with {}, AS {}",
                        baked.asn, baked.peer, baked.peer_asn
                    ),
                )
                .hint("write the same in `bgp` of [k3s.cilium], or leave it out here");
        }
    }
    Some(Bgp { asn: file.asn, peer, peer_asn: file.peer_asn })
}
