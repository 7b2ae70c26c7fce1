//! DHCP for machines that boot over the network (RFC 2131; PXE 2.1; RFC 4578; UEFI specification 24.7, HTTP Boot).
//!
//! | server | port 67 | port 4011 |
//! |---|---|---|
//! | beside another (proxy) | OFFER without an address, with the boot file | ACK with the boot file |
//! | alone, with `--dhcp-range` | addresses too | ACK with the boot file |
//!
//! The boot file is iPXE for firmware, by TFTP or as a URL where HTTP Boot asks; the node's script for iPXE; our base URL for the vendor
//! class `kiln-node`. Who is not in cluster.toml gets no answer, and neither does a node that is to boot from its disk: firmware then goes
//! on with its next boot option.

pub mod lease;
pub mod packet;
pub mod serve;

use std::net::{Ipv4Addr, SocketAddrV4};

use self::packet::{Message, Reply, Request, option};
use super::board::{Inner, Stranger, Tone};
use super::site::{Firmware, Mode, Node, Site};
use super::table;
use crate::lock::time;

/// The vendor class of our own initrd.
pub const OWN_CLASS: &[u8] = b"kiln-node";
/// Relays that a packet may have passed (RFC 1542, 4.1.1): more is a loop.
const HOPS: u8 = 16;
/// PXE 2.1, 2.1: option 43 with PXE_DISCOVERY_CONTROL (6) = 8, "use the boot file of this offer", and the end.
const USE_THIS_FILE: [u8; 4] = [6, 1, 8, 255];
/// PXE 2.1: the boot item that a client chose, which the answer repeats.
const BOOT_ITEM: u8 = 71;

/// Which socket a packet came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// 67, DHCP.
    Dhcp,
    /// 4011, the boot service of PXE.
    Boot,
}

/// What kind of client asks for a boot file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Firmware, by TFTP.
    Pxe,
    /// Firmware, by HTTP.
    Http,
    /// Our own initrd.
    Own,
    /// An operating system that wants an address only.
    None,
}

/// The ports that answers are sent to.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// Of relays, and ours.
    pub server: u16,
    /// Of clients.
    pub client: u16,
}

/// The answer to a packet that came from `from`, and where it goes. `None` for everything that is not ours to answer.
pub fn answer(
    site: &Site,
    inner: &mut Inner,
    port: Port,
    from: SocketAddrV4,
    request: &Request,
    ports: Ports,
) -> Option<(Reply, SocketAddrV4)> {
    let relay = request.giaddr;
    let strange =
        |address: Ipv4Addr| address.is_multicast() || address.is_broadcast() || address == site.address;
    if request.hops > HOPS || strange(relay) || strange(request.ciaddr) {
        return None;
    }
    let class = class(request);
    let Some(node) = site.nodes.get(&request.mac) else {
        if class != Class::None {
            stranger(inner, request);
        }
        return None;
    };
    note_asked(site, inner, node, request, class);
    let seen = inner.nodes.get(&request.mac).cloned().unwrap_or_default();
    let boots = class != Class::None && site.answers(node, &seen);
    let reply = match port {
        Port::Boot => {
            let asks = matches!(request.message, Message::Request | Message::Inform);
            (asks && boots).then(|| boot_options(site, request, class, Reply::new(Message::Ack))).flatten()?
        }
        Port::Dhcp if site.range.is_none() => {
            // Our own initrd would take an offer without an address for a broken server.
            let asks = request.message == Message::Discover && class != Class::Own;
            (asks && boots)
                .then(|| boot_options(site, request, class, Reply::new(Message::Offer)))
                .flatten()?
        }
        Port::Dhcp => {
            let reply = lease::answer(site, inner, node, request)?;
            let booted = (boots && reply.message() != Message::Nak)
                .then(|| boot_options(site, request, class, reply.clone()))
                .flatten();
            booted.unwrap_or(reply)
        }
    };
    let reply = reply.option(option::SERVER, site.address.octets());
    // RFC 2131, 4.1. A client without an address is not there for ARP yet, so what it gets is broadcast.
    let to = match port {
        Port::Boot if !from.ip().is_unspecified() => from,
        Port::Boot => SocketAddrV4::new(Ipv4Addr::BROADCAST, ports.client),
        Port::Dhcp if !relay.is_unspecified() => SocketAddrV4::new(relay, ports.server),
        Port::Dhcp if !request.ciaddr.is_unspecified() && reply.message() != Message::Nak => {
            SocketAddrV4::new(request.ciaddr, ports.client)
        }
        Port::Dhcp => SocketAddrV4::new(Ipv4Addr::BROADCAST, ports.client),
    };
    Some((reply, to))
}

fn class(request: &Request) -> Class {
    match request.option(option::CLASS) {
        Some(class) if class.starts_with(b"PXEClient") => Class::Pxe,
        Some(class) if class.starts_with(b"HTTPClient") => Class::Http,
        Some(class) if class == OWN_CLASS => Class::Own,
        _ => Class::None,
    }
}

/// Adds what `request` is to boot to `reply`; nothing for firmware that we have no program for.
fn boot_options(site: &Site, request: &Request, class: Class, reply: Reply) -> Option<Reply> {
    let base = site.base();
    if class == Class::Own {
        return Some(reply.option(option::CLASS, OWN_CLASS).option(option::BOOT_FILE, &base));
    }
    let firmware = request.arch().map(Firmware::from_code)?;
    let script = || format!("{base}boot/{}/script.ipxe", request.mac);
    let file = match (request.is_ipxe(), class) {
        (true, _) => script(),
        (false, Class::Http) => format!("{base}ipxe/{}", firmware.program()?),
        (false, _) => firmware.program()?.to_owned(),
    };
    let mut reply = reply.next_server(site.address).file(&file);
    if let Some(uuid) = request.option(option::UUID) {
        reply = reply.option(option::UUID, uuid);
    }
    if class == Class::Http {
        return Some(reply.option(option::CLASS, "HTTPClient").text(option::BOOT_FILE, &file));
    }
    // Old firmware reads the field, and stumbles over an option that it did not ask for. A name that is too long for the field is in the
    // option alone.
    if request.asks_for(option::BOOT_FILE) || reply.boot_file() != file {
        reply = reply.text(option::BOOT_FILE, &file);
    }
    if request.asks_for(option::TFTP_SERVER) {
        reply = reply.text(option::TFTP_SERVER, &site.address.to_string());
    }
    let mut vendor = Vec::new();
    if let Some(item) = boot_item(request) {
        vendor.extend([BOOT_ITEM, 4]);
        vendor.extend(item);
    }
    vendor.extend(USE_THIS_FILE);
    Some(reply.option(option::CLASS, "PXEClient").option(option::VENDOR, vendor))
}

/// The boot item in the client's option 43, of four bytes.
fn boot_item(request: &Request) -> Option<[u8; 4]> {
    let mut rest = request.option(option::VENDOR)?;
    while let [code, tail @ ..] = rest {
        match code {
            0 => rest = tail,
            255 => return None,
            _ => {
                let (length, tail) = tail.split_first()?;
                let value = tail.get(..usize::from(*length))?;
                if *code == BOOT_ITEM {
                    return value.try_into().ok();
                }
                rest = &tail[value.len()..];
            }
        }
    }
    None
}

fn stranger(inner: &mut Inner, request: &Request) {
    let now = time::now();
    let stranger = Stranger {
        arch: request.arch(),
        class: request.class(),
        uuid: request.uuid().map(|uuid| uuid.to_string()),
        first: now,
        last: now,
    };
    let what = request.arch().map_or("a machine".to_owned(), |arch| Firmware::from_code(arch).to_string());
    if inner.stranger(request.mac, stranger) {
        let text = format!("{} is in no cluster.toml and got no answer ({what})", request.mac);
        inner.note(table::UNKNOWN, Tone::Notice, None, Some(request.mac), text);
    }
}

/// Remembers that a node asked, by what firmware, and what address it asks another server for.
fn note_asked(site: &Site, inner: &mut Inner, node: &Node, request: &Request, class: Class) {
    let now = time::now();
    let before = inner.nodes.get(&request.mac).cloned().unwrap_or_default();
    let seen = inner.node(request.mac);
    let firmware = matches!(class, Class::Pxe | Class::Http).then(|| request.arch()).flatten();
    // iPXE does not know that HTTP Boot started it.
    let by_http = matches!(seen.firmware(), Some(Firmware::Http(_))) && request.is_ipxe();
    if let Some(code) = firmware.filter(|_| !by_http) {
        seen.arch = Some(code);
    }
    let theirs = [Some(request.ciaddr), request.address(option::REQUESTED_ADDRESS)];
    if request.message == Message::Request {
        for address in theirs.into_iter().flatten().filter(|a| !a.is_unspecified()) {
            seen.at(address);
        }
    }
    if class == Class::None {
        return;
    }
    seen.asked = Some(now);
    let seen = seen.clone();
    // A machine asks several times within a second.
    if before.asked.is_some_and(|at| now - at < 5) && before.arch == seen.arch {
        return;
    }
    let what = match (request.is_ipxe(), class, seen.firmware()) {
        (true, ..) => "iPXE".to_owned(),
        (_, Class::Own, _) => "its initrd".to_owned(),
        (_, _, Some(firmware)) => firmware.to_string(),
        _ => "unknown firmware".to_owned(),
    };
    let (tone, text) = match (site.refusal(node, &seen), site.mode(node, &seen)) {
        (Some(why), _) => (Tone::Bad, format!("{} ({what}) is not served: {why}", node.name)),
        (None, Mode::Local) => (Tone::Good, format!("{} ({what}): it boots from its disk", node.name)),
        (None, mode) => (Tone::Good, format!("{} ({what}): {}", node.name, mode.word())),
    };
    inner.note("asked", tone, Some(&node.name), Some(request.mac), text);
}

#[cfg(test)]
mod tests {
    use super::super::board::Seen;
    use super::super::site::tests::{ADDRESS, CARD, card, site};
    use super::packet::tests::packet;
    use super::*;

    const PORTS: Ports = Ports { server: 67, client: 68 };
    const NOBODY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);

    fn ask(site: &Site, inner: &mut Inner, port: Port, bytes: &[u8]) -> Option<(Reply, SocketAddrV4)> {
        let from = if port == Port::Boot { "192.168.50.77:2070".parse().unwrap() } else { NOBODY };
        answer(site, inner, port, from, &Request::parse(bytes).unwrap(), PORTS)
    }

    fn discover(arch: u8, class: &[u8], more: &[(u8, &[u8])]) -> Vec<u8> {
        let mut options: Vec<(u8, &[u8])> = vec![(60, class)];
        let arch = [0, arch];
        options.push((93, &arch));
        options.extend(more);
        packet(1, CARD, &options)
    }

    #[test]
    fn each_firmware_is_offered_its_ipxe_and_ipxe_its_script() {
        let site = site(Mode::Diskless);
        let mut inner = Inner::default();
        for (arch, class, more, file) in [
            (0, &b"PXEClient:Arch:00000"[..], &[][..], "undionly.kpxe"),
            (7, b"PXEClient:Arch:00007", &[], "snponly.efi"),
            (9, b"PXEClient", &[], "snponly.efi"),
            (16, b"HTTPClient:Arch:00016", &[], "http://192.168.50.2:8067/ipxe/snponly.efi"),
            (
                7,
                b"PXEClient",
                &[(77, &b"iPXE"[..])],
                "http://192.168.50.2:8067/boot/bc:24:11:00:00:11/script.ipxe",
            ),
        ] {
            let (reply, to) = ask(&site, &mut inner, Port::Dhcp, &discover(arch, class, more)).unwrap();
            assert_eq!(reply.boot_file(), file);
            assert_eq!((reply.message(), reply.yiaddr()), (Message::Offer, Ipv4Addr::UNSPECIFIED));
            assert_eq!(to.to_string(), "255.255.255.255:68");
            assert_eq!(reply.get(option::SERVER), Some(&ADDRESS.octets()[..]));
            let http = class.starts_with(b"HTTP");
            assert_eq!(reply.get(option::CLASS), Some(if http { &b"HTTPClient"[..] } else { b"PXEClient" }));
            assert_eq!(reply.get(option::VENDOR).is_some(), !http);
            assert_eq!(reply.get(option::BOOT_FILE).is_some(), http, "PXE did not ask for it");
            // Who asks for options gets them with a NUL in the end, and the field all the same.
            let more = [more, &[(55, &[66, 67][..])]].concat();
            let (reply, _) = ask(&site, &mut inner, Port::Dhcp, &discover(arch, class, &more)).unwrap();
            assert_eq!(reply.boot_file(), file);
            assert_eq!(reply.get(option::BOOT_FILE), Some(format!("{file}\0").as_bytes()));
            assert_eq!(reply.get(option::TFTP_SERVER), (!http).then_some(&b"192.168.50.2\0"[..]));
        }
        // Firmware that is older than option 93.
        let old = packet(1, CARD, &[(60, b"PXEClient:Arch:00000:UNDI:002001")]);
        assert_eq!(ask(&site, &mut inner, Port::Dhcp, &old).unwrap().0.boot_file(), "undionly.kpxe");
        // What has no program gets no answer: UEFI of 32 bits, and arm64 without an image.
        for arch in [6, 15, 11, 200] {
            assert!(
                ask(&site, &mut inner, Port::Dhcp, &discover(arch, b"PXEClient", &[])).is_none(),
                "{arch}"
            );
        }
    }

    #[test]
    fn the_boot_service_answers_where_it_was_asked_from_and_repeats_the_item() {
        let site = site(Mode::Install);
        let mut inner = Inner::default();
        let request = packet(
            3,
            CARD,
            &[(60, b"PXEClient"), (93, &[0, 7]), (43, &[71, 4, 0x80, 0, 0, 1, 255]), (55, &[67])],
        );
        let (reply, to) = ask(&site, &mut inner, Port::Boot, &request).unwrap();
        assert_eq!((reply.message(), to.to_string().as_str()), (Message::Ack, "192.168.50.77:2070"));
        assert_eq!(reply.get(option::VENDOR), Some(&[71, 4, 0x80, 0, 0, 1, 6, 1, 8, 255][..]));
        assert_eq!(reply.get(option::BOOT_FILE), Some(&b"snponly.efi\0"[..]));
        for own in [3, 8] {
            let (reply, _) =
                ask(&site, &mut inner, Port::Boot, &packet(own, CARD, &[(60, b"kiln-node")])).unwrap();
            assert_eq!(reply.get(option::BOOT_FILE), Some(&b"http://192.168.50.2:8067/"[..]));
        }
        assert!(
            ask(&site, &mut inner, Port::Boot, &packet(1, CARD, &[(60, b"PXEClient"), (93, &[0, 7])]))
                .is_none()
        );
    }

    #[test]
    fn strangers_systems_and_installed_nodes_get_no_answer() {
        let site = site(Mode::Install);
        let mut inner = Inner::default();
        let other = [0xbc, 0x24, 0x11, 9, 9, 9];
        let stranger = packet(1, other, &[(60, b"PXEClient\x1b[31m"), (93, &[0, 7])]);
        assert!(ask(&site, &mut inner, Port::Dhcp, &stranger).is_none());
        assert!(ask(&site, &mut inner, Port::Dhcp, &stranger).is_none());
        assert_eq!(inner.strangers.values().next().unwrap().class, "PXEClient.[31m");
        assert_eq!(inner.take_notes().len(), 1, "once is enough");
        // A phone in the same network is nobody's business.
        assert!(ask(&site, &mut inner, Port::Dhcp, &packet(1, [2, 0, 0, 0, 0, 1], &[])).is_none());
        assert_eq!(inner.strangers.len(), 1);
        assert!(ask(&site, &mut inner, Port::Dhcp, &packet(1, CARD, &[])).is_none());
        inner.node(card()).installed = Some(1);
        assert!(ask(&site, &mut inner, Port::Dhcp, &discover(7, b"PXEClient", &[])).is_none());
        assert!(
            ask(&site, &mut inner, Port::Boot, &packet(3, CARD, &[(60, b"PXEClient"), (93, &[0, 7])]))
                .is_none()
        );
    }

    #[test]
    fn a_bios_that_would_install_is_told_why_by_a_script() {
        let site = site(Mode::Install);
        let mut inner = Inner::default();
        let (reply, _) = ask(&site, &mut inner, Port::Dhcp, &discover(0, b"PXEClient", &[])).unwrap();
        assert_eq!(reply.boot_file(), "undionly.kpxe");
        let note = inner.take_notes().pop().unwrap();
        assert!(note.tone == Tone::Bad && note.text.contains("switch it to UEFI"), "{note:?}");
    }

    #[test]
    fn loops_and_answers_to_ourselves_are_dropped() {
        let site = site(Mode::Diskless);
        let mut inner = Inner::default();
        let changed = |at: usize, bytes: &[u8]| {
            let mut packet = discover(7, b"PXEClient", &[]);
            packet[at..at + bytes.len()].copy_from_slice(bytes);
            packet
        };
        for packet in [
            changed(24, &ADDRESS.octets()),
            changed(24, &[255; 4]),
            changed(24, &[224, 0, 0, 1]),
            changed(12, &ADDRESS.octets()),
            changed(12, &[255; 4]),
            changed(3, &[17]),
        ] {
            assert!(ask(&site, &mut inner, Port::Dhcp, &packet).is_none());
        }
        let (_, to) = ask(&site, &mut inner, Port::Dhcp, &changed(24, &[192, 168, 3, 1])).unwrap();
        assert_eq!(to.to_string(), "192.168.3.1:67");
    }

    #[test]
    fn what_another_server_gives_a_node_is_remembered() {
        let site = site(Mode::Diskless);
        let mut inner = Inner::default();
        let request = packet(
            3,
            CARD,
            &[(60, b"PXEClient"), (93, &[0, 7]), (54, &[192, 168, 50, 1]), (50, &[192, 168, 50, 9])],
        );
        assert!(ask(&site, &mut inner, Port::Dhcp, &request).is_none());
        let seen: &Seen = &inner.nodes[&card()];
        assert_eq!(seen.addresses, [Ipv4Addr::new(192, 168, 50, 9)]);
    }
}
