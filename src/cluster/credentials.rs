//! A node's credentials.

use serde_json::json;

use super::seal;
use super::secret::{Keeper, Value};
use crate::error::Failure;
use crate::scenario::identity::{self, Identity, Nic};
use crate::spec::Role;
use crate::spec::cluster::{Addressing, Cluster, Node};

/// A systemd credential: its name and its bytes, which are shown nowhere, secret or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// As in `k3s.token`.
    pub name: String,
    /// What the node reads.
    pub value: Value,
    /// Whether it must be kept from others.
    pub secret: bool,
}

/// Everything that `node` is told, in a fixed order:
///
/// | credential | from |
/// |---|---|
/// | `system.hostname` | its name |
/// | `system.machine_id` | the names of cluster and node; systemd takes it from firmware or from memory, not from an ESP |
/// | `network.network.50-nic0` | its MAC and addresses |
/// | `ssh.authorized_keys.root` | `ssh-keys` |
/// | `k3s.config` | the endpoint, its address, labels and taints |
/// | `k3s.token`, `k3s.registries`, `passwd.hashed-password.root` | `[secret]`, asked for now |
/// | `kiln.seal` | `seal`, and the names of the line above |
///
/// # Errors
/// As [`Keeper::get`]; [`Kind::Input`] for a secret that is not what its key says.
///
/// [`Kind::Input`]: crate::error::Kind::Input
pub fn credentials(
    cluster: &Cluster,
    node: &Node,
    keeper: &mut Keeper<'_>,
) -> Result<Vec<Credential>, Failure> {
    let mut list = plain(cluster, node)?;
    let secrets = [
        ("token", "k3s.token", &cluster.secrets.token),
        ("registries", "k3s.registries", &cluster.secrets.registries),
        ("root-password", "passwd.hashed-password.root", &cluster.secrets.root_password),
    ];
    for (key, name, secret) in secrets {
        let Some(secret) = secret else { continue };
        let value = keeper.get(key, secret)?;
        super::judge::judge(key, secret, &value)?;
        list.push(Credential { name: name.to_owned(), value, secret: true });
    }
    let secret = list.iter().filter(|credential| credential.secret);
    let order = seal::order(node.seal, secret.map(|credential| credential.name.as_str()));
    list.extend(order);
    Ok(list)
}

/// The credentials of `node` that are no secret.
///
/// # Errors
/// [`Kind::Input`](crate::error::Kind::Input) for a value that does not fit in its place; a cluster that was read has none.
pub fn plain(cluster: &Cluster, node: &Node) -> Result<Vec<Credential>, Failure> {
    let address = match &node.addressing {
        Addressing::Dhcp => identity::Address::Dhcp,
        Addressing::Static { address, prefix, gateway, dns, ntp, domain } => identity::Address::Static {
            address: *address,
            prefix: *prefix,
            gateway: *gateway,
            dns: dns.clone(),
            domain: domain.clone(),
            ntp: ntp.clone(),
        },
    };
    let identity = Identity {
        name: node.name.to_string(),
        uuid: identity::machine_uuid(&cluster.name, &node.name),
        nics: vec![Nic { mac: node.mac.map(|mac| mac.to_string()), address, mtu: None }],
        ssh_keys: cluster.ssh_keys.clone(),
    };
    let open = |name: String, bytes: Vec<u8>| Credential { name, value: Value::new(bytes), secret: false };
    let mut list: Vec<Credential> =
        identity::credentials(&identity)?.into_iter().map(|(name, bytes)| open(name, bytes)).collect();
    list.push(open("k3s.config".to_owned(), k3s_config(cluster, node).into_bytes()));
    Ok(list)
}

/// K3s' configuration of a node: flags of `k3s server` and `k3s agent` (docs.k3s.io/cli). YAML whose values are written as JSON; the
/// line `server` is what images/k3s/prepare looks for.
fn k3s_config(cluster: &Cluster, node: &Node) -> String {
    let mut lines = Vec::new();
    let first = cluster.first_server().is_some_and(|first| first.name == node.name);
    if node.role == Role::Agent || !first {
        lines.push(format!("server: {}", cluster.endpoint));
    } else if cluster.endpoint.port != 6443 {
        lines.push(format!("https-listen-port: {}", cluster.endpoint.port));
    }
    if let Some(address) = node.address() {
        lines.push(format!("node-ip: {}", json!(address.to_string())));
    }
    if !node.labels.is_empty() {
        let labels: Vec<String> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        lines.push(format!("node-label: {}", json!(labels)));
    }
    if !node.taints.is_empty() {
        lines.push(format!("node-taint: {}", json!(node.taints)));
    }
    lines.join("\n") + "\n"
}
