//! Addresses for a network without another DHCP server.
//!
//! A node has the address that cluster.toml gives it, or one of the range for as long as it asks again. Nobody else gets one. What is not
//! ours is never refused: only a request that names this server is (RFC 2131, 4.3.2).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::super::board::{Inner, Lease, Tone};
use super::super::site::{Node, Site};
use super::packet::{Message, Reply, Request, option};
use crate::lock::time;

/// Seconds of a lease.
const TIME: u32 = 3600;
/// Seconds that an address rests after somebody said that it is in use.
const REST: i64 = 600;

/// The answer to a node's packet; `None` where silence is right.
pub(super) fn answer(site: &Site, inner: &mut Inner, node: &Node, request: &Request) -> Option<Reply> {
    let named = request.address(option::SERVER);
    let mac = request.mac;
    match request.message {
        Message::Discover => {
            let address = address(site, inner, node, request)?;
            Some(grant(site, node, Message::Offer, address))
        }
        // Another server's offer was taken.
        Message::Request if named.is_some_and(|server| server != site.address) => {
            inner.node(mac).lease = None;
            None
        }
        Message::Request => {
            let address = address(site, inner, node, request)?;
            let wants = request.address(option::REQUESTED_ADDRESS).unwrap_or(request.ciaddr);
            if wants == address {
                let seen = inner.node(mac);
                seen.at(address);
                return Some(grant(site, node, Message::Ack, address));
            }
            // Without our name on it, it may be the business of a server that we do not hear.
            named.is_some().then(|| Reply::new(Message::Nak))
        }
        Message::Decline if named == Some(site.address) => {
            let address = request.address(option::REQUESTED_ADDRESS)?;
            let text = format!("{} found {address} in use by another machine", node.name);
            inner.note("conflict", Tone::Bad, Some(&node.name), Some(mac), text);
            if inner.nodes.get(&mac).and_then(|seen| seen.lease).is_some_and(|lease| lease.address == address)
            {
                inner.declined.insert(address, time::now() + REST);
                inner.node(mac).lease = None;
            }
            None
        }
        Message::Release if named == Some(site.address) => {
            let seen = inner.node(mac);
            if seen.lease.is_some_and(|lease| lease.address == request.ciaddr) {
                seen.lease = None;
            }
            None
        }
        Message::Inform => {
            let address = site.subnet.contains(&request.ciaddr).then_some(Ipv4Addr::UNSPECIFIED)?;
            Some(grant(site, node, Message::Ack, address))
        }
        _ => None,
    }
}

/// The address of a node; one of the range is leased to it, or its lease is made longer.
fn address(site: &Site, inner: &mut Inner, node: &Node, request: &Request) -> Option<Ipv4Addr> {
    if let Some(address) = node.address {
        return Some(address);
    }
    // The range is of our own network; a relay's node cannot use it.
    if !request.giaddr.is_unspecified() && !site.subnet.contains(&request.giaddr) {
        return None;
    }
    let (first, last) = site.range?;
    let now = time::now();
    inner.declined.retain(|_, until| *until > now);
    let mine = inner.nodes.get(&request.mac).and_then(|seen| seen.lease).map(|lease| lease.address);
    let taken: BTreeSet<Ipv4Addr> = inner
        .nodes
        .iter()
        .filter(|(mac, _)| **mac != request.mac)
        .filter_map(|(_, seen)| seen.lease.filter(|lease| lease.until > now))
        .map(|lease| lease.address)
        .chain(inner.declined.keys().copied())
        .chain(site.reserved.iter().copied())
        .collect();
    let fits = |address: &Ipv4Addr| (first..=last).contains(address) && !taken.contains(address);
    let wished = request.address(option::REQUESTED_ADDRESS);
    let known = [mine, wished].into_iter().flatten().find(fits);
    let found = known.or_else(|| (u32::from(first)..=u32::from(last)).map(Ipv4Addr::from).find(fits));
    let Some(address) = found else {
        let text = format!("{} gets no address: {first}-{last} is all given away", node.name);
        inner.note("refused", Tone::Bad, Some(&node.name), Some(request.mac), text);
        return None;
    };
    // An offer is kept for the client, too: it asks for it in a moment.
    inner.node(request.mac).lease = Some(Lease { address, until: now + i64::from(TIME) });
    Some(address)
}

fn grant(site: &Site, node: &Node, message: Message, address: Ipv4Addr) -> Reply {
    let mut reply = Reply::new(message).your_address(address);
    if !address.is_unspecified() {
        reply = reply.option(option::LEASE_TIME, TIME.to_be_bytes());
    }
    let network = node.network.as_ref().or(site.network.as_ref());
    let subnet = network.map_or(site.subnet, |network| network.subnet);
    reply = reply.option(option::SUBNET_MASK, subnet.netmask().octets());
    let Some(network) = network else { return reply };
    reply
        .addresses(option::ROUTER, network.gateway.as_slice())
        .addresses(option::DNS, &network.dns_v4())
        .addresses(option::NTP, &network.ntp_v4())
        .option(option::DOMAIN, network.domain.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::super::site::Mode;
    use super::super::super::site::tests::{CARD, card};
    use super::super::packet::tests::packet;
    use super::super::{Port, Ports, answer};
    use super::*;
    use std::net::SocketAddrV4;

    fn site() -> Site {
        let mut site = super::super::super::site::tests::site(Mode::Diskless);
        site.range = Some((Ipv4Addr::new(192, 168, 50, 1), Ipv4Addr::new(192, 168, 50, 4)));
        site
    }

    fn ask(site: &Site, inner: &mut Inner, bytes: &[u8]) -> Option<(Reply, SocketAddrV4)> {
        let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
        let ports = Ports { server: 67, client: 68 };
        answer(site, inner, Port::Dhcp, from, &Request::parse(bytes).unwrap(), ports)
    }

    const US: &[u8] = &[192, 168, 50, 2];
    const THIRD: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 3);

    #[test]
    fn a_node_gets_an_address_with_its_network_and_keeps_it() {
        let (site, mut inner) = (site(), Inner::default());
        let discover = packet(1, CARD, &[(60, b"PXEClient"), (93, &[0, 7])]);
        let (offer, to) = ask(&site, &mut inner, &discover).unwrap();
        // .1 is the router, .2 are we.
        assert_eq!((offer.yiaddr(), offer.boot_file()), (THIRD, "snponly.efi"));
        assert_eq!(to.to_string(), "255.255.255.255:68");
        assert_eq!(offer.get(option::SUBNET_MASK), Some(&[255, 255, 255, 0][..]));
        assert_eq!(offer.get(option::ROUTER), Some(&[192, 168, 50, 1][..]));
        assert_eq!(offer.get(option::DOMAIN), Some(&b"lab.example"[..]));
        let request = packet(3, CARD, &[(54, US), (50, &THIRD.octets())]);
        let (ack, _) = ask(&site, &mut inner, &request).unwrap();
        assert_eq!((ack.message(), ack.yiaddr(), ack.boot_file()), (Message::Ack, THIRD, ""));
        // The running system makes it longer, by its own address.
        let mut renew = packet(3, CARD, &[]);
        renew[12..16].copy_from_slice(&THIRD.octets());
        let (ack, to) = ask(&site, &mut inner, &renew).unwrap();
        assert_eq!((ack.message(), to.to_string().as_str()), (Message::Ack, "192.168.50.3:68"));
        assert_eq!(inner.nodes[&card()].addresses, [THIRD]);
    }

    #[test]
    fn only_what_names_us_is_refused() {
        let (site, mut inner) = (site(), Inner::default());
        let wrong = [192, 168, 50, 99];
        let nak = ask(&site, &mut inner, &packet(3, CARD, &[(54, US), (50, &wrong)])).unwrap();
        assert_eq!((nak.0.message(), nak.1.to_string().as_str()), (Message::Nak, "255.255.255.255:68"));
        assert!(ask(&site, &mut inner, &packet(3, CARD, &[(50, &wrong)])).is_none());
        assert!(
            ask(&site, &mut inner, &packet(3, CARD, &[(54, &[192, 168, 50, 9]), (50, &wrong)])).is_none()
        );
        assert!(
            ask(&site, &mut inner, &packet(1, [2, 0, 0, 0, 0, 1], &[])).is_none(),
            "strangers get no address"
        );
    }

    #[test]
    fn a_declined_address_rests_and_a_full_range_is_told() {
        let (site, mut inner) = (site(), Inner::default());
        ask(&site, &mut inner, &packet(1, CARD, &[])).unwrap();
        assert!(ask(&site, &mut inner, &packet(4, CARD, &[(54, US), (50, &THIRD.octets())])).is_none());
        let (offer, _) = ask(&site, &mut inner, &packet(1, CARD, &[(50, &THIRD.octets())])).unwrap();
        assert_eq!(offer.yiaddr(), Ipv4Addr::new(192, 168, 50, 4));
        inner.declined.insert(offer.yiaddr(), i64::MAX);
        assert!(ask(&site, &mut inner, &packet(1, CARD, &[])).is_none());
        assert!(inner.take_notes().last().unwrap().text.contains("all given away"));
    }

    #[test]
    fn a_node_with_an_address_of_its_own_has_that_even_behind_a_relay() {
        let (mut site, mut inner) = (site(), Inner::default());
        let own = Ipv4Addr::new(192, 168, 3, 100);
        site.nodes.get_mut(&card()).unwrap().address = Some(own);
        let mut discover = packet(1, CARD, &[]);
        discover[24..28].copy_from_slice(&[192, 168, 3, 1]);
        let (offer, to) = ask(&site, &mut inner, &discover).unwrap();
        assert_eq!((offer.yiaddr(), to.to_string().as_str()), (own, "192.168.3.1:67"));
        site.nodes.get_mut(&card()).unwrap().address = None;
        assert!(ask(&site, &mut inner, &discover).is_none(), "an address of the range is of no use there");
    }
}
