//! What the machine `edge` serves in one run: plain values in, systemd credentials out.
//!
//! The image of `edge` (qemu/machines/edge.toml) has all daemons and starts none. A generator in it enables NAME.service for each
//! credential `edge.NAME`, and the unit reads its configuration from there:
//!
//! | credential | unit | format |
//! |---|---|---|
//! | `edge.dnsmasq` | DHCP and DNS | dnsmasq(8), one option per line |
//! | `edge.chrony` | NTP | chrony.conf(5) |
//! | `edge.nfs-server` | nfsd with mountd, statd, nfsdcld, rpcbind | exports(5) |
//! | `edge.bird` | BGP | BIRD 2 |
//! | `sysctl.extra` | systemd-sysctl makes it a router | sysctl.d(5) |
//!
//! Another server is a unit in the image, which nothing enables, and its credential here.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::identity::{is_domain, is_label, is_mac};
use crate::error::{Failure, Kind};

/// What `edge` serves. Its own identity is made by [`super::identity`], as for all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EdgeConfig {
    /// The domain of all nodes, `cluster.test`.
    pub domain: String,
    /// The interfaces of `edge` itself.
    pub interfaces: Vec<Interface>,
    /// Every network card of every node, those of `edge` included.
    pub hosts: Vec<Host>,
    /// Addresses for who asks.
    pub dhcp: Option<Dhcp>,
    /// Whether the names of the hosts are answered.
    pub dns: bool,
    /// Whether the time is served; the clock of `edge` is right by definition.
    pub ntp: bool,
    /// Folders below /srv that are exported by NFS 3 and 4.2, made when they are not there.
    pub nfs: Vec<String>,
    /// Whether packets are forwarded from one network to another.
    pub router: bool,
    /// Sessions with routers in the cluster.
    pub bgp: Option<Bgp>,
}

/// An interface of `edge`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The scenario's name of the network.
    pub network: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Bits of the network part.
    pub prefix: u8,
}

/// A network card of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The node's name, without a domain.
    pub name: String,
    /// Its hardware address, as in `52:54:00:00:00:01`.
    pub mac: String,
    /// Its address; `None` only with `dhcp`, which then takes one out of the range.
    pub address: Option<Ipv4Addr>,
    /// Whether it asks for its address.
    pub dhcp: bool,
}

/// A DHCP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dhcp {
    /// The network on which it answers.
    pub network: String,
    /// First address for who is not in the list of hosts.
    pub first: Ipv4Addr,
    /// Last one.
    pub last: Ipv4Addr,
    /// How long a lease holds, two minutes or more.
    pub lease: Duration,
}

/// A BGP speaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bgp {
    /// Its autonomous system.
    pub asn: u32,
    /// Whom it speaks with.
    pub peers: Vec<Peer>,
}

/// The other end of a BGP session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The node's name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its autonomous system.
    pub asn: u32,
}

/// dnsmasq makes shorter leases longer without a word.
const SHORTEST_LEASE: Duration = Duration::from_secs(120);

/// Where exports lie: /srv is on /var, which is the node's own file system.
const EXPORTS: &str = "/srv/";

/// The credentials, name and bytes; none for what is not served.
///
/// # Errors
/// [`Kind::Input`], naming the value, when one does not fit in its place.
pub fn credentials(config: &EdgeConfig) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    check(config)?;
    let mut list = Vec::new();
    if config.dns || config.dhcp.is_some() {
        list.push(("edge.dnsmasq", dnsmasq(config)?));
    }
    if config.ntp {
        list.push(("edge.chrony", CHRONY.to_owned()));
    }
    if !config.nfs.is_empty() {
        list.push(("edge.nfs-server", exports(&config.nfs)));
    }
    if let Some(bgp) = &config.bgp {
        list.push(("edge.bird", bird(config, bgp)?));
    }
    if config.router {
        list.push(("sysctl.extra", ROUTER.to_owned()));
    }
    Ok(list.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect())
}

fn refuse(why: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Input, format!("edge: {why}"))
}

/// Every text that is written into a file must be what it is said to be; else it could be another line of that file.
fn check(config: &EdgeConfig) -> Result<(), Failure> {
    if !is_domain(&config.domain) {
        return Err(refuse(format!("`{}` is no domain", config.domain)));
    }
    if config.interfaces.is_empty() {
        return Err(refuse("it is on no network").hint("give it a network card with an address"));
    }
    for interface in &config.interfaces {
        if interface.prefix > 32 {
            let text = format!("network {}: a network part of {} bits", interface.network, interface.prefix);
            return Err(refuse(text).hint("give 32 at most"));
        }
    }
    for host in &config.hosts {
        if !is_label(&host.name) {
            return Err(refuse(format!("`{}` is no host name", host.name)));
        }
        if !is_mac(&host.mac) {
            return Err(refuse(format!("{}: `{}` is no hardware address", host.name, host.mac)));
        }
        if host.address.is_none() && !host.dhcp {
            return Err(refuse(format!("{} has no address and does not ask for one", host.name)));
        }
    }
    for (index, path) in config.nfs.iter().enumerate() {
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if !path.strip_prefix(EXPORTS).is_some_and(|rest| rest.split('/').all(plain)) {
            return Err(refuse(format!("`{path}` cannot be exported"))
                .hint(format!("write a folder below {EXPORTS}, of letters, digits, `.`, `_` and `-`")));
        }
        if config.nfs.iter().take(index).any(|other| other == path) {
            return Err(refuse(format!("{path} is exported twice")));
        }
    }
    Ok(())
}

fn mask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))
}

impl Interface {
    /// Whether `address` is on this interface's network.
    fn reaches(&self, address: Ipv4Addr) -> bool {
        let mask = mask(self.prefix);
        self.address & mask == address & mask
    }
}

/// dnsmasq(8). There is nobody to ask for other names, so they do not exist (`local=/#/`); without that line the answer
/// would be REFUSED, after which resolvers try again.
fn dnsmasq(config: &EdgeConfig) -> Result<String, Failure> {
    let mut lines: Vec<String> = vec![
        // Sockets follow the addresses, so that dnsmasq may start before the network is up.
        "bind-dynamic".into(),
        "no-resolv".into(),
        "no-hosts".into(),
        "user=dnsmasq".into(),
        "group=dnsmasq".into(),
        format!("domain={}", config.domain),
    ];
    lines.extend(config.interfaces.iter().map(|interface| format!("listen-address={}", interface.address)));
    if config.dns {
        lines.push("local=/#/".into());
        for host in &config.hosts {
            if let Some(address) = host.address {
                lines.push(format!("host-record={0}.{1},{0},{address}", host.name, config.domain));
            }
        }
    } else {
        lines.push("port=0".into());
    }
    if let Some(dhcp) = &config.dhcp {
        lines.extend(dhcp_lines(config, dhcp)?);
    }
    Ok(lines.join("\n") + "\n")
}

fn dhcp_lines(config: &EdgeConfig, dhcp: &Dhcp) -> Result<Vec<String>, Failure> {
    let Some(interface) = config.interfaces.iter().find(|i| i.network == dhcp.network) else {
        return Err(refuse(format!(
            "it gives addresses on the network {}, on which it is not",
            dhcp.network
        )));
    };
    let Dhcp { first, last, lease, .. } = *dhcp;
    if first > last || !interface.reaches(first) || !interface.reaches(last) {
        let subnet = interface.address & mask(interface.prefix);
        return Err(refuse(format!("{first} to {last} is no range of {subnet}/{}", interface.prefix)));
    }
    if lease < SHORTEST_LEASE {
        let shortest = SHORTEST_LEASE.as_secs();
        return Err(refuse(format!("a lease of {} s, give {shortest} s or more", lease.as_secs())));
    }
    let mut lines = vec![
        "dhcp-authoritative".into(),
        "dhcp-rapid-commit".into(),
        // Else each new lease waits for an answer to a ping of its address.
        "no-ping".into(),
        "dhcp-leasefile=/var/lib/dnsmasq/leases".into(),
        format!("dhcp-range={first},{last},{},{}", mask(interface.prefix), lease.as_secs()),
    ];
    // An option without a value is not sent; unsaid, dnsmasq would name itself as router and name server.
    let itself = |serves: bool| if serves { format!(",{}", interface.address) } else { String::new() };
    lines.push(format!("dhcp-option=option:router{}", itself(config.router)));
    lines.push(format!("dhcp-option=option:dns-server{}", itself(config.dns)));
    if config.ntp {
        lines.push(format!("dhcp-option=option:ntp-server{}", itself(true)));
    }
    for host in config.hosts.iter().filter(|host| host.dhcp) {
        let address = host.address.map(|address| format!(",{address}")).unwrap_or_default();
        lines.push(format!("dhcp-host={},{}{address}", host.mac, host.name));
    }
    Ok(lines)
}

/// chrony.conf(5): with no source of its own the machine's clock is the time. Nobody administers it over the network.
const CHRONY: &str = "local stratum 8\nallow\ncmdport 0\n";

/// sysctl.d(5).
const ROUTER: &str = "net.ipv4.ip_forward=1\nnet.ipv6.conf.all.forwarding=1\n";

/// exports(5). Root of a client is root: a node writes as whoever its pods run as.
fn exports(paths: &[String]) -> String {
    paths.iter().map(|path| format!("{path} *(rw,sync,no_root_squash,no_subtree_check)\n")).collect()
}

/// BIRD's configuration: what peers announce goes into the kernel, several ways to one network side by side; nothing is
/// announced to them.
fn bird(config: &EdgeConfig, bgp: &Bgp) -> Result<String, Failure> {
    let first = config.interfaces.first().ok_or_else(|| refuse("it is on no network"))?;
    let mut text = format!(
        "log stderr all;\n\
         router id {};\n\n\
         protocol device {{}}\n\n\
         protocol kernel {{\n  merge paths on;\n  ipv4 {{ import none; export where source = RTS_BGP; }};\n}}\n",
        first.address
    );
    for (index, peer) in bgp.peers.iter().enumerate() {
        if !is_label(&peer.name) {
            return Err(refuse(format!("`{}` is no host name", peer.name)));
        }
        let Some(interface) = config.interfaces.iter().find(|i| i.reaches(peer.address)) else {
            return Err(refuse(format!(
                "the BGP peer {} at {} is on none of its networks",
                peer.name, peer.address
            )));
        };
        if bgp.peers.iter().take(index).any(|other| other.address == peer.address) {
            return Err(refuse(format!("two BGP peers have the address {}", peer.address)));
        }
        if bgp.asn == 0 || peer.asn == 0 {
            return Err(refuse("0 is no autonomous system (RFC 7607)"));
        }
        // Quoted, a name may hold `-`. The number tells two addresses of one node apart.
        text.push_str(&format!(
            "\nprotocol bgp '{}-{index}' {{\n  local {} as {};\n  neighbor {} as {};\n  ipv4 {{ import all; export none; }};\n}}\n",
            peer.name, interface.address, bgp.asn, peer.address, peer.asn
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
