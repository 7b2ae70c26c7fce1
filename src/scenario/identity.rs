//! Who a node is, as the systemd credentials by which real nodes are told, too.
//!
//! | credential | read by | source |
//! |---|---|---|
//! | `system.hostname` | PID 1 | systemd.system-credentials(7) |
//! | `system.machine_id` | PID 1 | systemd.system-credentials(7), machine-id(5) |
//! | `network.network.50-nicI` | systemd-network-generator, which writes /run/systemd/network | systemd-network-generator.service(8) |
//! | `ssh.authorized_keys.root` | systemd-tmpfiles, provision.conf | systemd.system-credentials(7) |

use std::net::{IpAddr, Ipv4Addr};

use uuid::Uuid;

use crate::error::{Failure, Kind};
use crate::spec::Host;

/// Who a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its host name, without a domain.
    pub name: String,
    /// Its machine id, the same at each boot; see [`machine_uuid`].
    pub uuid: Uuid,
    /// Its network cards.
    pub nics: Vec<Nic>,
    /// Lines of authorized_keys(5) for root; without one sshd does not start.
    pub ssh_keys: Vec<String>,
}

/// A network card, known by its hardware address: names such as `enp0s3` depend on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// As in `52:54:00:00:00:01`; without it, every wired card is meant.
    pub mac: Option<String>,
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
        /// Name servers.
        dns: Vec<IpAddr>,
        /// The domain in which short names are looked up.
        domain: Option<String>,
        /// Time servers, for systemd-timesyncd.
        ntp: Vec<Host>,
    },
    /// From a DHCP server, with route, name server, domain and time server.
    Dhcp,
}

/// A machine id that follows from the scenario and the node's name, so that it is the same in each run and differs between nodes.
pub fn machine_uuid(scenario: &str, node: &str) -> Uuid {
    const NAMES: Uuid = uuid::uuid!("6f0b4b4e-2f0c-4a7e-9a54-0d7a1c3b9e21");
    Uuid::new_v5(&NAMES, format!("{scenario}/{node}").as_bytes())
}

/// The credential that keeps a unit of the image from starting (systemd.system-credentials(7), `systemd.unit-dropin.*`): a condition that
/// never holds. `None` if `unit` is no name of a unit.
pub fn held_back(unit: &str) -> Option<(String, String)> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-@".contains(&b);
    let (name, kind) = unit.rsplit_once('.')?;
    let whole = !name.is_empty() && !kind.is_empty() && unit.bytes().all(fits) && !unit.starts_with('.');
    whole.then(|| (format!("systemd.unit-dropin.{unit}~kiln"), "[Unit]\nConditionPathExists=!/\n".to_owned()))
}

/// The credentials, name and bytes.
///
/// # Errors
/// [`Kind::Input`], naming the node and the value, when one does not fit in its place.
pub fn credentials(identity: &Identity) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let name = &identity.name;
    let refuse = |why: String| Err(Failure::new(Kind::Input, format!("node `{name}`: {why}")));
    if !is_label(name) {
        return refuse("that is no host name: write letters, digits and `-`, 63 at most".to_owned());
    }
    let mut list = vec![
        ("system.hostname".to_owned(), name.clone()),
        ("system.machine_id".to_owned(), identity.uuid.simple().to_string()),
    ];
    for (index, nic) in identity.nics.iter().enumerate() {
        if let Some(mac) = nic.mac.as_deref().filter(|mac| !is_mac(mac)) {
            return refuse(format!("`{mac}` is no hardware address, write 52:54:00:12:34:56"));
        }
        if let Address::Static { prefix, domain, .. } = &nic.address {
            if *prefix > 32 {
                return refuse(format!("a network part of {prefix} bits, give 32 at most"));
            }
            if let Some(domain) = domain.as_deref().filter(|domain| !is_domain(domain)) {
                return refuse(format!("`{domain}` is no domain"));
            }
        }
        list.push((format!("network.network.50-nic{index}"), network(nic)));
    }
    if identity.ssh_keys.iter().any(|key| key.trim().is_empty() || key.contains(char::is_control)) {
        return refuse("an ssh key must be one line of authorized_keys".to_owned());
    }
    if !identity.ssh_keys.is_empty() {
        list.push(("ssh.authorized_keys.root".to_owned(), identity.ssh_keys.join("\n") + "\n"));
    }
    Ok(list.into_iter().map(|(name, text)| (name, text.into_bytes())).collect())
}

/// The systemd.network(5) file of a card. `Type=ether` leaves out what is made on top of the card with its address, such as a VLAN.
/// Nobody in a scenario advertises IPv6 routers, so nobody waits for one; a name server or a time server at an IPv6 address is behind one.
fn network(nic: &Nic) -> String {
    let mut text = match &nic.mac {
        Some(mac) => format!("[Match]\nType=ether\nMACAddress={mac}\n"),
        // As the image's own 90-dhcp.network has it: what a CNI makes is named otherwise.
        None => "[Match]\nType=ether\nName=en* eth*\n".to_owned(),
    };
    if let Some(mtu) = nic.mtu {
        text.push_str(&format!("\n[Link]\nMTUBytes={mtu}\n"));
    }
    let v6 = match &nic.address {
        Address::Dhcp => false,
        Address::Static { dns, ntp, .. } => dns.iter().any(IpAddr::is_ipv6) || ntp.iter().any(Host::is_v6),
    };
    text.push_str(&format!("\n[Network]\nIPv6AcceptRA={}\n", if v6 { "yes" } else { "no" }));
    match &nic.address {
        Address::Dhcp => text.push_str("DHCP=ipv4\n\n[DHCPv4]\nUseDomains=yes\n"),
        Address::Static { address, prefix, gateway, dns, domain, ntp } => {
            text.push_str(&format!("Address={address}/{prefix}\n"));
            let lines = gateway.iter().map(|value| format!("Gateway={value}\n"));
            let lines = lines.chain(dns.iter().map(|value| format!("DNS={value}\n")));
            text.extend(lines.chain(ntp.iter().map(|value| format!("NTP={value}\n"))));
            if let Some(domain) = domain {
                text.push_str(&format!("Domains={domain}\n"));
            }
        }
    }
    text
}

/// Whether `text` is one part of a host name (RFC 1123, section 2.1).
pub(super) fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether `text` is a domain without a dot at its end.
pub(crate) fn is_domain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// Whether `text` is an Ethernet address as people write it.
pub(super) fn is_mac(text: &str) -> bool {
    text.len() == 17
        && text.split(':').count() == 6
        && text.split(':').all(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Identity {
        Identity {
            name: "agent-1".to_owned(),
            uuid: machine_uuid("three-node", "agent-1"),
            nics: vec![
                Nic {
                    mac: Some("52:54:00:00:00:01".to_owned()),
                    address: Address::Static {
                        address: Ipv4Addr::new(10, 77, 0, 12),
                        prefix: 24,
                        gateway: Some(Ipv4Addr::new(10, 77, 0, 1)),
                        dns: vec![Ipv4Addr::new(10, 77, 0, 1).into()],
                        domain: Some("cluster.test".to_owned()),
                        ntp: vec![Ipv4Addr::new(10, 77, 0, 1).into()],
                    },
                    mtu: Some(9000),
                },
                Nic { mac: Some("52:54:00:00:00:02".to_owned()), address: Address::Dhcp, mtu: None },
            ],
            ssh_keys: vec!["ssh-ed25519 AAAA test".to_owned()],
        }
    }

    #[test]
    fn a_node_is_told_its_name_its_id_its_addresses_and_who_may_log_in() {
        let text: String = credentials(&node())
            .unwrap()
            .into_iter()
            .map(|(name, bytes)| format!("== {name}\n{}\n", String::from_utf8(bytes).unwrap()))
            .collect();
        insta::assert_snapshot!(text);
    }

    #[test]
    fn machine_ids_are_the_same_in_each_run_and_differ_between_nodes_and_scenarios() {
        assert_eq!(machine_uuid("a", "b"), machine_uuid("a", "b"));
        assert_ne!(machine_uuid("a", "b"), machine_uuid("a", "c"));
        assert_ne!(machine_uuid("a", "b"), machine_uuid("c", "b"));
    }

    #[test]
    fn what_would_become_another_line_of_a_file_is_refused() {
        let with = |change: fn(&mut Identity)| {
            let mut node = node();
            change(&mut node);
            credentials(&node).unwrap_err().to_string()
        };
        assert!(with(|n| n.name = "a\nb".to_owned()).contains("no host name"));
        assert!(with(|n| n.name = "-a".to_owned()).contains("no host name"));
        assert!(with(|n| n.nics[0].mac = Some("52:54:00:00:00".to_owned())).contains("no hardware address"));
        assert!(
            with(|n| n.nics[1].mac = Some("52:54:00:00:00:1\n".to_owned())).contains("no hardware address")
        );
        assert!(with(|n| n.ssh_keys = vec!["a\nb".to_owned()]).contains("one line"));
        let prefix = |n: &mut Identity| {
            if let Address::Static { prefix, .. } = &mut n.nics[0].address {
                *prefix = 33;
            }
        };
        assert!(with(prefix).contains("33 bits"));
        let domain = |n: &mut Identity| {
            if let Address::Static { domain, .. } = &mut n.nics[0].address {
                *domain = Some("a..b".to_owned());
            }
        };
        assert!(with(domain).contains("no domain"));
    }
}
