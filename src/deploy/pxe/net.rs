//! The sockets: one address on one interface, on which broadcasts come in and from which answers leave.
//!
//! A DHCP socket that is bound to an address hears no broadcast, and one that is bound to none may answer by the wrong interface. So there
//! are two of each: one that hears everything on the interface, and one bound to our address, which hears what is sent to it and sends.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};

use anyhow::Result;
use fs_err as fs;
use ipnet::Ipv4Net;
use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::{Failure, Kind};
use crate::spec::cluster::Cluster;

/// Where the server stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Our address.
    pub address: Ipv4Addr,
    /// Its network.
    pub subnet: Ipv4Net,
    /// The interface that has it.
    pub interface: String,
}

/// A route of this machine without a gateway: a network that an interface is in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    interface: String,
    subnet: Ipv4Net,
}

/// Reads /proc/net/route (proc_pid_net(5)): name, destination, gateway, flags, …, mask as the eighth column; addresses are hexadecimal in the
/// byte order of the machine.
fn links(table: &str) -> Vec<Link> {
    let mut links: Vec<Link> = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let address = |at: usize| {
                Some(Ipv4Addr::from(u32::from_str_radix(fields.get(at)?, 16).ok()?.to_ne_bytes()))
            };
            let subnet = Ipv4Net::with_netmask(address(1)?, address(7)?).ok()?;
            let direct = address(2)?.is_unspecified() && subnet.prefix_len() > 0;
            direct.then(|| Link { interface: (*fields[0]).to_owned(), subnet })
        })
        .collect();
    links.sort_by_key(|link| std::cmp::Reverse(link.subnet.prefix_len()));
    links
}

/// The address by which this machine speaks to `other`.
fn own_address(other: Ipv4Addr) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Connecting a UDP socket sends nothing: it asks the routing table.
    socket.connect((other, 9)).ok()?;
    match socket.local_addr().ok()? {
        SocketAddr::V4(address) => Some(*address.ip()),
        SocketAddr::V6(_) => None,
    }
}

impl Place {
    /// The place of `address`, or, without one, the place in a network of `cluster`.
    ///
    /// # Errors
    /// [`Kind::Input`]: this machine is in none of the networks, in several, or does not have the address.
    pub fn find(address: Option<Ipv4Addr>, cluster: &Cluster) -> Result<Self> {
        let table = fs::read_to_string("/proc/net/route").unwrap_or_default();
        let links = links(&table);
        match address {
            Some(address) => Self::of(address, &links),
            None => {
                let mut found = Vec::new();
                for network in cluster.networks.values() {
                    let there = network.subnet.hosts().next().and_then(own_address);
                    found.extend(there.filter(|address| network.subnet.contains(address)));
                }
                found.sort();
                found.dedup();
                match found[..] {
                    [address] => Self::of(address, &links),
                    [] => Err(Failure::new(
                        Kind::Input,
                        format!("this machine is in no network of {}", cluster.file),
                    )
                    .hint("give the address to serve from: --address 192.168.50.2")
                    .into()),
                    _ => {
                        let all: Vec<String> = found.iter().map(ToString::to_string).collect();
                        let text = format!("this machine is in several networks of {}", cluster.file);
                        Err(Failure::new(Kind::Input, text)
                            .hint(format!("choose with --address one of {}", all.join(", ")))
                            .into())
                    }
                }
            }
        }
    }

    fn of(address: Ipv4Addr, links: &[Link]) -> Result<Self> {
        if address.is_loopback() {
            // Its routes are in the table `local`, which /proc does not show.
            let subnet = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
            return Ok(Place { address, subnet, interface: "lo".to_owned() });
        }
        let refuse = |why: &str| {
            Failure::new(Kind::Input, format!("{address} {why}"))
                .hint("`ip -4 address` lists the addresses of this machine")
        };
        let socket =
            UdpSocket::bind((address, 0)).map_err(|e| refuse("is no address of this machine").because(e))?;
        drop(socket);
        let link = links.iter().find(|link| link.subnet.contains(&address));
        let link = link.ok_or_else(|| refuse("has no network: no route leads into it"))?;
        Ok(Place { address, subnet: link.subnet, interface: link.interface.clone() })
    }
}

/// Ports of the server.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// DHCP, 67; clients have the next one.
    pub dhcp: u16,
    /// The boot service, 4011.
    pub boot: u16,
    /// TFTP, 69.
    pub tftp: u16,
    /// HTTP.
    pub http: u16,
}

/// All sockets, open.
#[derive(Debug)]
pub struct Sockets {
    /// DHCP: what hears broadcasts, and what has our address.
    pub dhcp: [UdpSocket; 2],
    /// The boot service, the same two.
    pub boot: [UdpSocket; 2],
    /// TFTP requests.
    pub tftp: UdpSocket,
    /// HTTP.
    pub http: TcpListener,
}

impl Sockets {
    /// Opens them all, for [`Place`] alone: what comes by another interface is not heard.
    ///
    /// # Errors
    /// [`Kind::Input`]: a port is taken, or this user may not have it.
    pub fn open(place: &Place, wanted: Wanted) -> Result<Self> {
        let both = |what: &str, port: u16| -> Result<[UdpSocket; 2]> {
            let own = udp(place, place.address, port).map_err(|e| refused(what, place, port, e))?;
            let all = udp(place, Ipv4Addr::UNSPECIFIED, port).map_err(|e| refused(what, place, port, e))?;
            Ok([all, own])
        };
        let http = tcp(place.address, wanted.http).map_err(|e| refused("HTTP", place, wanted.http, e))?;
        let tftp =
            udp(place, place.address, wanted.tftp).map_err(|e| refused("TFTP", place, wanted.tftp, e))?;
        Ok(Sockets {
            dhcp: both("DHCP", wanted.dhcp)?,
            boot: both("the boot service", wanted.boot)?,
            tftp,
            http,
        })
    }
}

fn udp(place: &Place, address: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_broadcast(true)?;
    // A rack that is switched on at once asks at once. The kernel gives what it may give.
    socket.set_recv_buffer_size(4 << 20).ok();
    socket.set_nonblocking(true)?;
    let at = SocketAddr::from((address, port)).into();
    if address.is_unspecified() {
        socket.set_reuse_address(true)?;
        socket.bind_device(Some(place.interface.as_bytes()))?;
        socket.bind(&at)?;
    } else {
        // Shared only after it is ours: a port that another program has is an error, the second socket of ours is not.
        socket.bind(&at)?;
        socket.set_reuse_address(true)?;
    }
    Ok(socket.into())
}

/// A socket for one TFTP transfer, on our address and a port of its own: it hears nobody but `peer`.
///
/// # Errors
/// This process has too many files open, or the machine no port left.
pub fn transfer(address: Ipv4Addr, peer: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddrV4::new(address, 0))?;
    socket.connect(peer)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn tcp(address: Ipv4Addr, port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((address, port)).into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn refused(what: &str, place: &Place, port: u16, error: io::Error) -> anyhow::Error {
    let at = format!("{}:{port}", place.address);
    let failure = match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::new(Kind::Input, format!("{what} may not be served at {at} by this user"))
            .hint("run it with sudo: it gives root up once the ports are open")
            .hint("or let kiln have ports below 1024: sudo setcap cap_net_bind_service,cap_net_raw+ep \"$(command -v kiln)\""),
        io::ErrorKind::AddrInUse => Failure::new(Kind::Input, format!("{what} cannot be served at {at}: another program has the port"))
            .hint(format!("`ss -lnp 'sport = :{port}'` says which; a DHCP server on this very machine must be moved or given the PXE options itself"))
            .hint("HTTP can have another port: --http-port"),
        _ => Failure::new(Kind::Input, format!("{what} cannot be served at {at}")),
    };
    failure.because(error).into()
}

/// The hardware address behind `address`, as the kernel's neighbour table has it (/proc/net/arp, proc_pid_net(5)). `None` for machines behind
/// a router, and for this one.
pub fn neighbour(address: Ipv4Addr) -> Option<crate::scenario::spec::Mac> {
    let table = fs::read_to_string("/proc/net/arp").ok()?;
    let wanted = address.to_string();
    let line = table.lines().skip(1).find(|line| line.split_whitespace().next() == Some(&wanted))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// Lets this process have as many files open as its limit can be raised to: each transfer is one.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "open files");
    }
}

/// The IPv4 half of an address; nothing here listens on another.
pub fn v4(address: SocketAddr) -> Option<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_network_of_an_address_names_its_interface() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0132A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            wide\t0000A8C0\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            eth0\t0032A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            broken\tx\n";
        let links = links(table);
        // The table is in the byte order of the machine that runs the test.
        if cfg!(target_endian = "little") {
            let found: Vec<_> = links.iter().map(|l| (l.interface.as_str(), l.subnet.to_string())).collect();
            assert_eq!(
                found,
                [("eth0", "192.168.50.0/24".to_owned()), ("wide", "192.168.0.0/16".to_owned())]
            );
        }
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        let error = Place::of(Ipv4Addr::new(192, 0, 2, 77), &[]).unwrap_err();
        assert!(error.to_string().contains("192.0.2.77 is no address of this machine"), "{error}");
        assert_eq!(Place::of(Ipv4Addr::LOCALHOST, &[]).unwrap().interface, "lo");
    }
}
