//! What the machine `edge` serves in one run: plain values in, systemd credentials out.
//!
//! The image of `edge` has all daemons and starts none: the unit of each has `ConditionCredential=` with the name of its
//! configuration, so a daemon runs when, and only when, its credential is there.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::error::Failure;

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
    /// How long a lease holds, at least two minutes.
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

/// The credentials, name and bytes; none for what is not served.
///
/// # Errors
/// [`crate::error::Kind::Input`], naming the value, when one does not fit in its place.
pub fn credentials(config: &EdgeConfig) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let _ = config;
    Ok(Vec::new())
}
