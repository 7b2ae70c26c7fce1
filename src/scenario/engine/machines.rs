//! From nodes of the file to machines: disks, credentials, QEMU's configuration.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::net::Net;
use super::node::Node;
use super::watch::Told;
use crate::arch::Arch;
use crate::qemu::accel::Accel;
use crate::qemu::config::{Boot, Disk, Link, MachineConfig, Netboot, Nic};
use crate::qemu::disk::{Export, Options};
use crate::qemu::firmware::Firmware;
use crate::qemu::health::{AllowList, Expected, Watch};
use crate::qemu::{door, ready};
use crate::scenario::damage;
use crate::scenario::edge::{self, EdgeConfig};
use crate::scenario::identity::{self, Identity};
use crate::scenario::plan::peak;
use crate::scenario::spec::model::DOMAIN;
use crate::scenario::spec::{self, Action, Scenario};

/// How long an address from the edge's DHCP server holds.
const LEASE: Duration = Duration::from_secs(3600);

/// All machines, none of them switched on.
pub(super) fn make<'a>(
    setup: &super::Setup<'a>,
    net: &Net,
    folder: &Path,
    allow: &Arc<AllowList>,
) -> anyhow::Result<BTreeMap<spec::Name, Node<'a>>> {
    let mut nodes = BTreeMap::new();
    for (index, node) in setup.scenario.nodes().enumerate() {
        let image =
            super::cluster::image(setup.images, node).map_err(|trouble| anyhow::anyhow!(trouble.why))?;
        let mut exports = Vec::new();
        let mut disks = Vec::new();
        for (number, disk) in node.disks.iter().enumerate() {
            // Short names: the path of a socket has 107 bytes.
            let name = format!("d{index}-{number}");
            let size = disk.size.bytes();
            let export = if number == 0 {
                Export::serve(Options { size: Some(size), ..Options::of_image(folder, &name, &image.path) })?
            } else {
                Export::serve(Options::empty(folder, &name, size))?
            };
            disks.push(Disk::export(export.socket().to_owned(), disk.bus, &format!("kiln-{number}")));
            exports.push(export);
        }
        if let (Some(part), Some(disk)) = (node.damage, exports.first()) {
            let flip = damage::flip(&image.path, &image.manifest, part)?;
            disk.flip(flip.offset, flip.xor);
        }
        let nics = (node.cables().zip(&node.nics))
            .map(|(cable, nic)| Nic {
                model: nic.model,
                mac: nic.mac.to_string(),
                link: Link::Stream(net.socket(&cable).map(Path::to_owned).unwrap_or_default()),
                netboot: Netboot::Off,
            })
            .collect();
        let mut credentials = ready::credentials();
        credentials.extend(door::credentials());
        credentials.extend(identity(setup.scenario, node)?);
        if let Some(serves) = &node.serves {
            credentials.extend(edge::credentials(&served(setup.scenario, node, serves))?);
        }
        if setup.shells {
            credentials.extend(super::shell::credentials());
        }
        let own = node.credentials.iter().map(|(name, text)| (name.clone(), text.clone().into_bytes()));
        // A scenario of a real cluster brings what its nodes are told of their network.
        credentials.retain(|(name, _)| !node.credentials.contains_key(name));
        credentials.extend(own);
        let screen =
            |step: &spec::Step| matches!(step.action, Action::Screenshot(_)) && step.on.has(&node.name);
        let config = MachineConfig {
            name: node.name.to_string(),
            arch: Arch::Amd64,
            memory: u32::try_from(node.memory.bytes() >> 20).unwrap_or(u32::MAX),
            cpus: node.cpus,
            accel: setup.accel,
            boot: Boot::Firmware(Firmware::find(&std::path::absolute(setup.tools)?, Arch::Amd64)?),
            disks,
            nics,
            credentials,
            cmdline_extra: patience(setup),
            ports: Node::ports(),
            clock: node.clock.as_ref().map(ToString::to_string),
            no_reboot: false,
            uuid: Some(node.uuid),
            screen: setup.scenario.steps.iter().any(screen),
            shell: setup.shells,
            tpm: None,
        };
        config.validate()?;
        let health = Watch::new(&node.name, setup.accel == Accel::Tcg, Arc::clone(allow));
        if node.doomed {
            health.expect(Expected::Damage);
        }
        let told = Told::new(&node.name, health);
        let made = Node::new(node, setup.tools, config, folder.to_owned(), exports, told);
        nodes.insert(node.name.clone(), made);
    }
    Ok(nodes)
}

/// Units have 90 s to start, and devices to appear, on a machine of ordinary speed (systemd-system.conf(5)). An emulated one
/// gets as much longer as everything else (kernel-command-line(7)); under KVM nothing is said.
fn patience(setup: &super::Setup<'_>) -> Option<String> {
    let factor = setup.calibration.factor(peak(setup.scenario).nodes);
    let seconds = (90.0 * factor.min(20.0)).round();
    (factor > 1.0).then(|| {
        format!("systemd.default_timeout_start_sec={seconds} systemd.default_device_timeout_sec={seconds}")
    })
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// Who a node is: the same credentials by which real nodes are told.
fn identity(scenario: &Scenario, node: &spec::Node) -> Result<Vec<(String, Vec<u8>)>, crate::error::Failure> {
    let nics = node.nics.iter().filter_map(|nic| {
        let served = |fits: fn(&spec::Serves) -> bool| {
            let (server, address) = scenario.server(&nic.network, fits)?;
            (server.name != node.name).then_some(address).and_then(v4)
        };
        let address = match nic.address {
            spec::Address::None => return None,
            spec::Address::Dhcp => identity::Address::Dhcp,
            spec::Address::Fixed { ip, prefix } => identity::Address::Static {
                address: v4(ip)?,
                prefix,
                gateway: served(|serves| serves.router),
                dns: served(|serves| serves.dns).map(IpAddr::V4).into_iter().collect(),
                domain: served(|serves| serves.dns).map(|_| DOMAIN.to_owned()),
                ntp: served(|serves| serves.ntp).map(Into::into).into_iter().collect(),
            },
        };
        let mtu = scenario.networks.get(&nic.network).map(|network| network.mtu).filter(|mtu| *mtu != 1500);
        Some(identity::Nic { mac: Some(nic.mac.to_string()), address, mtu: mtu.map(u32::from) })
    });
    identity::credentials(&Identity {
        name: node.name.to_string(),
        uuid: node.uuid,
        nics: nics.collect(),
        ssh_keys: Vec::new(),
    })
}

/// What the edge machine is to do in this scenario.
fn served(scenario: &Scenario, node: &spec::Node, serves: &spec::Serves) -> EdgeConfig {
    let interfaces = node.nics.iter().filter_map(|nic| match nic.address {
        spec::Address::Fixed { ip, prefix } => {
            Some(edge::Interface { network: nic.network.to_string(), address: v4(ip)?, prefix })
        }
        _ => None,
    });
    let hosts = scenario.nodes().flat_map(|node| {
        node.nics.iter().filter(|nic| nic.address != spec::Address::None).map(|nic| edge::Host {
            name: node.name.to_string(),
            mac: nic.mac.to_string(),
            address: nic.address.fixed().and_then(v4),
            dhcp: nic.address == spec::Address::Dhcp,
        })
    });
    let peers = |asn: u32| {
        let cluster = scenario.nodes().filter(|other| other.product);
        let own: Vec<&spec::Name> = node.nics.iter().map(|nic| &nic.network).collect();
        cluster
            .filter_map(|other| {
                let address = own.iter().find_map(|network| other.address_on(network)).and_then(v4)?;
                Some(edge::Peer { name: other.name.to_string(), address, asn })
            })
            .collect()
    };
    EdgeConfig {
        domain: DOMAIN.to_owned(),
        interfaces: interfaces.collect(),
        hosts: hosts.collect(),
        dhcp: serves.dhcp.as_ref().and_then(|dhcp| {
            let network = dhcp.network.to_string();
            Some(edge::Dhcp { network, first: v4(dhcp.first)?, last: v4(dhcp.last)?, lease: LEASE })
        }),
        dns: serves.dns,
        ntp: serves.ntp,
        nfs: serves.nfs.clone(),
        router: serves.router,
        bgp: serves.bgp.map(|bgp| edge::Bgp { asn: bgp.asn, peers: peers(bgp.peer_asn) }),
    }
}
