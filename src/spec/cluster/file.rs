//! The shape of a cluster.toml, as serde reads it and `kiln dev schema cluster` prints it. Names, addresses and sizes are texts here:
//! they are read in [`super::check`], so that all that is wrong is told at once.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::disk::{DiskBus, DisklessState};
use super::seal::Seal;
use crate::spec::Role;

/// A real cluster: its nodes, where they are and what each is to be.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    /// Version of this file's shape; 1.
    pub schema: u32,
    /// The cluster's name. Machine ids follow from it and a node's name: another name makes other machines of them.
    pub name: String,
    /// Where nodes find K3s: `https://` and the address of a server. Default: the first server's address and port 6443.
    pub endpoint: Option<String>,
    /// Who may log in as root by ssh: lines of authorized_keys, or `@` and the path of a file that has some (`~/` is the home of
    /// whoever runs kiln).
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// Ethernet segments by name.
    #[serde(default)]
    pub network: BTreeMap<String, NetworkFile>,
    /// Machines by name, which is also their host name.
    #[serde(default)]
    pub node: BTreeMap<String, NodeFile>,
    /// Addresses that services of type LoadBalancer get, such as `192.168.50.240/28`.
    pub lb_pool: Option<String>,
    /// The NFS server beside the cluster.
    pub nfs: Option<NfsFile>,
    /// The router that is told about the addresses of services by BGP.
    pub bgp: Option<BgpFile>,
    /// The key under which nodes keep their secrets on their disks: a node that was flashed puts them under it at its first boot.
    /// Default: `null`, the key that everybody has. Credentials that come by firmware or network (`kiln test --cluster`, diskless nodes) lie
    /// on no disk.
    pub seal: Option<Seal>,
    /// Where secrets are.
    #[serde(default)]
    pub secret: SecretsFile,
}

/// An Ethernet segment, and what its nodes are told of it.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetworkFile {
    /// Its addresses, such as `192.168.50.0/24`.
    pub subnet: String,
    /// The default route. K3s does not start on a node that has none.
    pub gateway: Option<String>,
    /// Name servers: IPv4 or IPv6 addresses.
    #[serde(default)]
    pub dns: Vec<String>,
    /// Time servers: addresses or host names. Without one, nodes ask those of Debian.
    #[serde(default)]
    pub ntp: Vec<String>,
    /// The domain in which short names are looked up.
    pub domain: Option<String>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NodeFile {
    /// What it does in the cluster.
    pub role: Role,
    /// Whose image it gets: a file in profiles/, without `.toml`. Default: the one that is named as the role.
    pub profile: Option<String>,
    /// The network that it is on. Default: the one that has its address, or the only one.
    pub network: Option<String>,
    /// The hardware address of its network card. Without it, its address goes to every wired card, and it cannot boot from the network.
    pub mac: Option<String>,
    /// Its address, or `dhcp`.
    pub address: String,
    /// The default route, if it is not its network's.
    pub gateway: Option<String>,
    /// Name servers, if they are not its network's.
    pub dns: Option<Vec<String>>,
    /// Which of its disks the image is written to; all that is given must fit. Without it, a device must be named when it is flashed.
    #[serde(default)]
    pub disk: DiskFile,
    /// Where its `/var` lies when `kiln pxe` runs it diskless. On a disk it stays over reboots, and the disk, that of `disk`, holds nothing else.
    #[serde(default)]
    pub diskless_state: DisklessState,
    /// Labels of the node in Kubernetes.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Taints of the node in Kubernetes: `KEY=VALUE:EFFECT` or `KEY:EFFECT`.
    #[serde(default)]
    pub taints: Vec<String>,
    /// The key under which it keeps its secrets on its disk, if it is not the cluster's.
    pub seal: Option<Seal>,
}

/// Which disk of a machine is meant.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskFile {
    /// Its serial number (`lsblk -o SERIAL`).
    pub serial: Option<String>,
    /// Its World Wide Name (`lsblk -o WWN`).
    pub wwn: Option<String>,
    /// Its model (`lsblk -o MODEL`); `*` is any text.
    pub model: Option<String>,
    /// What it hangs on.
    pub bus: Option<DiskBus>,
    /// Its exact size: `500107862016B`, `32GiB`, `500GB`.
    pub size: Option<String>,
    /// Its least size.
    pub min_size: Option<String>,
    /// Its largest size.
    pub max_size: Option<String>,
}

/// An NFS server.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NfsFile {
    /// Its address or host name.
    pub server: String,
    /// The folder that it exports.
    pub path: String,
}

/// A router that speaks BGP.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BgpFile {
    /// The autonomous system of the nodes.
    pub asn: u32,
    /// The router's address.
    pub peer: String,
    /// The autonomous system of the router.
    pub peer_asn: u32,
}

/// Where secrets are.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SecretsFile {
    /// The cluster's token, by which nodes join: `kiln token new` makes one.
    pub token: Option<SecretFile>,
    /// The hash of root's password, as crypt(5) has it. Without it root is locked.
    pub root_password: Option<SecretFile>,
    /// K3s' registries.yaml.
    pub registries: Option<SecretFile>,
}

/// Where a secret is: exactly one of `file`, `env` and `command`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum SecretFile {
    /// Where it is.
    Reference(ReferenceFile),
    /// Anything else, which is refused: the secret itself, say.
    #[schemars(skip)]
    Other(serde::de::IgnoredAny),
}

/// Where a secret is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReferenceFile {
    /// A file, relative to the folder of cluster.toml.
    pub file: Option<String>,
    /// A variable of the environment.
    pub env: Option<String>,
    /// A program that prints it, and its arguments.
    pub command: Option<Vec<String>>,
}
