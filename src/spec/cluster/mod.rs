//! cluster.toml: the real cluster that a project's images are for.
//!
//! ```toml
//! schema = 1
//! name = "homelab"
//!
//! [network.lan]
//! subnet = "192.168.50.0/24"
//! gateway = "192.168.50.1"
//! dns = ["192.168.50.1"]
//!
//! [node.server]
//! role = "server"
//! mac = "bc:24:11:00:00:10"
//! address = "192.168.50.100"
//! disk = { serial = "drive-scsi0" }
//!
//! [node.agent-1]
//! role = "agent"
//! mac = "bc:24:11:00:00:11"
//! address = "192.168.50.111"
//! disk = { bus = "nvme", min-size = "30GiB" }
//! labels = { "example.org/rack" = "a" }
//!
//! [secret]
//! token = { file = "secrets/token" }    # or { env = "K3S_TOKEN" }, or { command = ["pass", "show", "homelab/token"] }
//! ```
//!
//! Every key is described in [`mod@file`], which `kiln dev schema cluster` prints as a JSON schema for editors. [`Cluster::read`] reads
//! the file in three moves: what looks like a secret is masked, serde reads the shape, then everything is looked at together and all
//! that is wrong is told at once, each thing with its line.
//!
//! Secrets are references here ([`Secret`]); what they are is asked for by [`crate::cluster`], which makes a node's credentials.

mod check;
mod disk;
pub mod file;
mod seal;
mod secret;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;
use ipnet::Ipv4Net;
use serde::Serialize;

pub use self::disk::{DiskBus, DiskContract, DiskSize, DisklessState, ModelGlob};
pub use self::seal::Seal;
pub use self::secret::{Found, Look, Secret};
use super::{Host, Project, Role};
use crate::error::{Failure, Kind};
use crate::scenario::spec::{Mac, Name};

/// The file's name where nobody says another.
pub const FILE: &str = "cluster.toml";

/// A real cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cluster {
    /// Its name.
    pub name: Name,
    /// The file, as people know it.
    pub file: String,
    /// The file's folder, absolute: commands of secrets run in it.
    #[serde(skip)]
    pub folder: PathBuf,
    /// Where nodes find K3s; the address is one of a server.
    pub endpoint: Endpoint,
    /// Lines of authorized_keys(5) for root.
    pub ssh_keys: Vec<String>,
    /// Ethernet segments by name.
    pub networks: BTreeMap<Name, Network>,
    /// Machines by name; at least one server.
    pub nodes: BTreeMap<Name, Node>,
    /// Addresses of services of type LoadBalancer.
    pub lb_pool: Option<Ipv4Net>,
    /// The NFS server beside the cluster.
    pub nfs: Option<Nfs>,
    /// The router that is told about the addresses of services.
    pub bgp: Option<Bgp>,
    /// Where secrets are.
    pub secrets: Secrets,
    /// What is not wrong but should be looked at, each with its place in the file.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

/// Where nodes find K3s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Of a server.
    pub address: Ipv4Addr,
    /// 6443 unless the file says otherwise.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("https://{}:{}", self.address, self.port))
    }
}

impl Serialize for Endpoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An Ethernet segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Its name.
    pub name: Name,
    /// Its addresses.
    pub subnet: Ipv4Net,
    /// The default route of its nodes.
    pub gateway: Option<Ipv4Addr>,
    /// Their name servers.
    pub dns: Vec<IpAddr>,
    /// Their time servers.
    pub ntp: Vec<Host>,
    /// The domain in which they look up short names.
    pub domain: Option<String>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Node {
    /// Its name, which is its host name too.
    pub name: Name,
    /// What it does in the cluster.
    pub role: Role,
    /// Whose image it gets.
    pub profile: String,
    /// The network that it is on.
    pub network: Name,
    /// The hardware address of its network card.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// How it gets its address.
    pub addressing: Addressing,
    /// Which of its disks the image is written to.
    pub disk: DiskContract,
    /// Where its `/var` lies when it runs diskless.
    pub diskless_state: DisklessState,
    /// Its labels in Kubernetes.
    pub labels: BTreeMap<String, String>,
    /// Its taints in Kubernetes, `KEY=VALUE:EFFECT` or `KEY:EFFECT`.
    pub taints: Vec<String>,
    /// The key under which it keeps its secrets on its disk.
    pub seal: Seal,
}

/// How a node gets its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Addressing {
    /// From a DHCP server, with route, name server and time server.
    Dhcp,
    /// This one.
    Static {
        /// The address.
        address: Ipv4Addr,
        /// Bits of the network part.
        prefix: u8,
        /// The default route.
        gateway: Option<Ipv4Addr>,
        /// Name servers.
        dns: Vec<IpAddr>,
        /// Time servers.
        ntp: Vec<Host>,
        /// The domain in which short names are looked up.
        domain: Option<String>,
    },
}

/// An NFS server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nfs {
    /// Its address or name.
    pub server: Host,
    /// The folder that it exports, absolute.
    pub path: String,
}

/// A router that speaks BGP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Bgp {
    /// The autonomous system of the nodes.
    pub asn: u32,
    /// The router's address.
    pub peer: Ipv4Addr,
    /// The autonomous system of the router.
    pub peer_asn: u32,
}

/// Where secrets are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Secrets {
    /// The cluster's token; there is one where agents are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// The hash of root's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_password: Option<Secret>,
    /// K3s' registries.yaml.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registries: Option<Secret>,
}

impl Network {
    /// Name servers that DHCP can name, which has no other addresses than those of IPv4.
    pub fn dns_v4(&self) -> Vec<Ipv4Addr> {
        self.dns.iter().filter_map(|address| Host::Address(*address).v4()).collect()
    }

    /// Time servers that DHCP can name, likewise.
    pub fn ntp_v4(&self) -> Vec<Ipv4Addr> {
        self.ntp.iter().filter_map(Host::v4).collect()
    }
}

impl Node {
    /// Its address, if it is known beforehand.
    pub fn address(&self) -> Option<Ipv4Addr> {
        match &self.addressing {
            Addressing::Static { address, .. } => Some(*address),
            Addressing::Dhcp => None,
        }
    }
}

impl Cluster {
    /// Reads and checks the file `path` for the images of `project`.
    ///
    /// # Errors
    /// [`Kind::Input`]: the file cannot be read, or everything that is wrong with it, each thing with its line.
    pub fn read(path: &Path, project: &Project) -> Result<Self> {
        Self::read_with(path, project, None)
    }

    /// As [`Cluster::read`], and looks into each secret: what is wrong with one is told beside all else, what cannot be read is warned about.
    ///
    /// # Errors
    /// As [`Cluster::read`].
    pub fn read_and_look(path: &Path, project: &Project, look: &Look<'_>) -> Result<Self> {
        Self::read_with(path, project, Some(look))
    }

    fn read_with(path: &Path, project: &Project, look: Option<&Look<'_>>) -> Result<Self> {
        let file = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| {
            let failure = Failure::new(Kind::Input, format!("{file} cannot be read")).because(error);
            failure.hint(format!("README.md has an example of a {FILE}; or name another file"))
        })?;
        let path = std::path::absolute(path)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        check::read(&file, &secret::mask(&text), folder, project, look)
    }

    /// Reads `text`, which people know as `file` and which lies in `folder` (absolute).
    ///
    /// # Errors
    /// As [`Cluster::read`].
    pub fn parse(file: &str, text: &str, folder: &Path, project: &Project) -> Result<Self> {
        check::read(file, &secret::mask(text), folder, project, None)
    }

    /// The node `name`.
    ///
    /// # Errors
    /// [`Kind::Input`] with the near name and all of them.
    pub fn node(&self, name: &str) -> Result<&Node, Failure> {
        self.nodes.get(name).ok_or_else(|| {
            let mut failure = Failure::new(Kind::Input, format!("{} has no node `{name}`", self.file));
            if let Some(near) = super::nearest(name, self.nodes.keys().map(Name::as_str)) {
                failure = failure.hint(format!("did you mean `{near}`?"));
            }
            let names: Vec<&str> = self.nodes.keys().map(Name::as_str).collect();
            failure.hint(format!("nodes: {}", names.join(", ")))
        })
    }

    /// The node with this hardware address.
    pub fn by_mac(&self, mac: Mac) -> Option<&Node> {
        self.nodes.values().find(|node| node.mac == Some(mac))
    }

    /// The network of a node.
    pub fn network_of(&self, node: &Node) -> Option<&Network> {
        self.networks.get(&node.network)
    }

    /// The server that the endpoint names.
    pub fn first_server(&self) -> Option<&Node> {
        self.nodes
            .values()
            .find(|node| node.role == Role::Server && node.address() == Some(self.endpoint.address))
    }
}
