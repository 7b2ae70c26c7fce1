//! The thread that serves TFTP. Each transfer has a port of its own (RFC 1350, 4) and is a row in a table: nothing waits for a client.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::packet::{self, BLOCK, Code, Packet, Read, Refusal};
use crate::deploy::pxe::board::{Board, Tone};
use crate::deploy::pxe::content::Content;
use crate::deploy::pxe::net;
use crate::deploy::pxe::site::Site;
use crate::scenario::spec::Mac;

/// Transfers at once.
const TRANSFERS: usize = 4096;
/// Transfers at once for one client; firmware has one, and a second after it gave up on the first.
const PER_CLIENT: usize = 4;
/// Times that the same packets are sent without anything coming back.
const TRIES: u32 = 6;
/// Time until the first repetition; it doubles with each.
const PATIENCE: Duration = Duration::from_millis(700);
/// No transfer of boot programs takes longer.
const LONGEST: Duration = Duration::from_secs(600);
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
const BURST: usize = 256;
/// The key of the socket for requests; transfers count from 1.
const REQUESTS: u64 = 0;

/// The content of a name that is served: iPXE by its name, a node's UKI as `MAC/uki.efi`. Nothing else is there, whatever the name looks like.
fn find<'a>(site: &'a Site, board: &Board, name: &str) -> Option<&'a Content> {
    if let Some(program) = site.programs.get(name) {
        return Some(program);
    }
    let mac: Mac = name.strip_suffix("/uki.efi")?.parse().ok()?;
    let node = site.nodes.get(&mac)?;
    let seen = board.seen(mac);
    (site.mode(node, &seen) != crate::deploy::pxe::site::Mode::Local)
        .then(|| site.image(node, &seen))?
        .map(|image| &image.uki)
}

/// A transfer.
struct Transfer<'a> {
    socket: UdpSocket,
    peer: SocketAddrV4,
    name: String,
    content: &'a Content,
    block: usize,
    window: u64,
    /// The acknowledgement of options, while it is not acknowledged itself.
    options: Option<Vec<u8>>,
    /// Blocks that have come.
    done: u64,
    /// Blocks of the whole; the last one is shorter than the others, and may be empty.
    blocks: u64,
    wait: Duration,
    tries: u32,
    due: Instant,
    begun: Instant,
}

/// What becomes of a transfer.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Goes,
    Done,
    /// The client ended it: firmware that only asked for the size does.
    Left,
    Lost(&'static str),
}

impl Transfer<'_> {
    /// Sends what the client is waiting for.
    fn send(&mut self) -> io::Result<()> {
        if let Some(options) = &self.options {
            return ignore_full(self.socket.send(options));
        }
        let mut buffer = vec![0; 4 + self.block];
        for number in self.done + 1..=(self.done + self.window).min(self.blocks) {
            let read = self.content.read_at(&mut buffer[4..], (number - 1) * self.block as u64)?;
            buffer[..2].copy_from_slice(&[0, 3]);
            // It goes round after 65535, which every client with large files expects.
            buffer[2..4].copy_from_slice(&(number as u16).to_be_bytes());
            ignore_full(self.socket.send(&buffer[..4 + read]))?;
        }
        Ok(())
    }

    fn advance(&mut self, now: Instant) -> Fate {
        self.tries = 0;
        self.due = now + self.wait;
        if self.options.is_none() && self.done == self.blocks {
            return Fate::Done;
        }
        match self.send() {
            Ok(()) => Fate::Goes,
            Err(_) => Fate::Lost("it cannot be reached"),
        }
    }

    fn on_packet(&mut self, bytes: &[u8], now: Instant) -> Fate {
        let number = match packet::parse(bytes) {
            Ok(Some(Packet::Ack(number))) => number,
            Ok(Some(Packet::Error)) => return Fate::Left,
            _ => return Fate::Goes,
        };
        if self.options.is_some() {
            if number != 0 {
                return Fate::Goes;
            }
            self.options = None;
            return self.advance(now);
        }
        // How far the number is ahead of the last that was acknowledged. One that says nothing new gets no answer, or each packet that
        // was sent twice would be for the rest of the transfer ("Sorcerer's Apprentice", RFC 1123, 4.2.3.1).
        let ahead = u64::from(number.wrapping_sub(self.done as u16));
        if ahead == 0 || ahead > self.window.min(self.blocks - self.done) {
            return Fate::Goes;
        }
        self.done += ahead;
        self.advance(now)
    }

    fn on_time(&mut self, now: Instant) -> Fate {
        if now.duration_since(self.begun) > LONGEST {
            return Fate::Lost("it is too slow");
        }
        if now < self.due {
            return Fate::Goes;
        }
        self.tries += 1;
        if self.tries >= TRIES {
            return Fate::Lost("it does not answer");
        }
        self.due = now + self.wait * (1 << self.tries.min(4));
        match self.send() {
            Ok(()) => Fate::Goes,
            Err(_) => Fate::Lost("it cannot be reached"),
        }
    }
}

/// A full queue loses the packet, as the network may: it is sent again.
fn ignore_full(sent: io::Result<usize>) -> io::Result<()> {
    match sent {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

struct Server<'a> {
    site: &'a Site,
    board: &'a Board,
    poll: OwnedFd,
    transfers: BTreeMap<u64, Transfer<'a>>,
    next: u64,
}

/// Serves what is asked for by `requests` until `stop`.
///
/// # Errors
/// The kernel refuses to watch the sockets.
pub fn serve(site: &Site, board: &Board, requests: &UdpSocket, stop: &AtomicBool) -> anyhow::Result<()> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&poll, requests, epoll::EventData::new_u64(REQUESTS), epoll::EventFlags::IN)?;
    let mut server = Server { site, board, poll, transfers: BTreeMap::new(), next: 1 };
    let mut events = Vec::with_capacity(512);
    let mut looked = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        events.clear();
        if epoll::wait(&server.poll, spare_capacity(&mut events), Some(&TICK)).is_err() {
            continue;
        }
        let now = Instant::now();
        for event in &events {
            match event.data.u64() {
                REQUESTS => server.requests(requests, now),
                key => server.transfer(key, now),
            }
        }
        if now.duration_since(looked) >= Duration::from_millis(100) {
            looked = now;
            server.times(now);
        }
    }
    Ok(())
}

impl Server<'_> {
    fn requests(&mut self, requests: &UdpSocket, now: Instant) {
        let mut buffer = [0; 1024];
        for _ in 0..BURST {
            let (length, from) = match requests.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => continue,
            };
            let Some(from) = net::v4(from) else { continue };
            let refusal = match packet::parse(&buffer[..length]) {
                Ok(Some(Packet::Read(read))) => self.begin(&read, from, now).err(),
                Ok(_) => None,
                Err(refusal) => Some(refusal),
            };
            if let Some(refusal) = refusal {
                tracing::debug!(%from, text = refusal.1, "TFTP refused");
                let _ = requests.send_to(&packet::error(refusal), SocketAddrV4::new(*from.ip(), from.port()));
            }
        }
    }

    fn begin(&mut self, read: &Read, peer: SocketAddrV4, now: Instant) -> Result<(), Refusal> {
        // A request that is repeated because our answer was lost, or was slow, is one transfer.
        if self.transfers.values().any(|t| t.peer == peer) {
            return Ok(());
        }
        let content = find(self.site, self.board, &read.name);
        let content = content.ok_or((Code::NotFound, "there is no such file here"))?;
        if self.transfers.len() >= TRANSFERS {
            return Err((Code::Undefined, "the server has too much to do, try again"));
        }
        if self.transfers.values().filter(|t| t.peer.ip() == peer.ip()).count() >= PER_CLIENT {
            return Err((Code::Undefined, "this client has too many transfers"));
        }
        let busy = (Code::Undefined, "the server has no port left, try again");
        let socket = net::transfer(self.site.address, peer).map_err(|error| {
            tracing::debug!(%error, "no socket for a transfer");
            busy
        })?;
        let key = self.next;
        self.next += 1;
        let flags = epoll::EventFlags::IN;
        epoll::add(&self.poll, &socket, epoll::EventData::new_u64(key), flags).map_err(|_| busy)?;
        let block = read.block.unwrap_or(BLOCK);
        let wait = read.timeout.map_or(PATIENCE, |seconds| Duration::from_secs(u64::from(seconds.min(10))));
        let mut transfer = Transfer {
            socket,
            peer,
            name: read.name.clone(),
            content,
            block,
            window: read.window.map_or(1, u64::from),
            options: packet::options(read, content.len),
            done: 0,
            blocks: content.len / block as u64 + 1,
            wait,
            tries: 0,
            due: now + wait,
            begun: now,
        };
        if transfer.send().is_ok() {
            self.transfers.insert(key, transfer);
        }
        Ok(())
    }

    fn transfer(&mut self, key: u64, now: Instant) {
        let Some(transfer) = self.transfers.get_mut(&key) else { return };
        let mut buffer = [0; 1024];
        let mut fate = Fate::Goes;
        for _ in 0..BURST {
            match transfer.socket.recv(&mut buffer) {
                Ok(length) => fate = transfer.on_packet(&buffer[..length], now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Its port is closed: the client is gone.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fate = Fate::Left,
                Err(_) => fate = Fate::Lost("it cannot be reached"),
            }
            if fate != Fate::Goes {
                break;
            }
        }
        self.end(key, &fate);
    }

    fn times(&mut self, now: Instant) {
        let fates: Vec<(u64, Fate)> =
            self.transfers.iter_mut().map(|(key, transfer)| (*key, transfer.on_time(now))).collect();
        fates.iter().for_each(|(key, fate)| self.end(*key, fate));
    }

    fn end(&mut self, key: u64, fate: &Fate) {
        if *fate == Fate::Goes {
            return;
        }
        let Some(transfer) = self.transfers.remove(&key) else { return };
        let ip = *transfer.peer.ip();
        let mut inner = self.board.lock();
        let node = whose(self.site, &inner.nodes, ip);
        let name = node.map(|(_, node)| node.name.as_str());
        let mac = node.map(|(mac, _)| mac);
        match fate {
            Fate::Done => {
                if let Some((_, node)) = node {
                    node.sent.fetch_add(transfer.content.len, Ordering::Relaxed);
                }
                let text = format!("{} to {} by TFTP", transfer.name, name.unwrap_or(&ip.to_string()));
                inner.note("sent", Tone::Good, name, mac, text);
            }
            Fate::Lost(why) => {
                let text = format!("{} to {ip} by TFTP was given up: {why}", transfer.name);
                inner.note("lost", Tone::Notice, name, mac, text);
            }
            Fate::Left | Fate::Goes => {}
        }
    }
}

/// The node at an address, as far as its requests told.
fn whose<'a>(
    site: &'a Site,
    seen: &BTreeMap<Mac, crate::deploy::pxe::board::Seen>,
    ip: Ipv4Addr,
) -> Option<(Mac, &'a crate::deploy::pxe::site::Node)> {
    let by_lease = seen.iter().find(|(_, seen)| seen.addresses.last() == Some(&ip)).map(|(mac, _)| *mac);
    let mac =
        by_lease.or_else(|| site.nodes.iter().find(|(_, n)| n.address == Some(ip)).map(|(mac, _)| *mac))?;
    Some((mac, site.nodes.get(&mac)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::pxe::site::Mode;
    use crate::deploy::pxe::site::tests::{card, site};

    #[test]
    fn only_names_of_the_table_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let board = Board::open(dir.path()).unwrap();
        let site = site(Mode::Install);
        assert!(find(&site, &board, "snponly.efi").is_some());
        assert!(find(&site, &board, "bc:24:11:00:00:11/uki.efi").is_some());
        for name in [
            "",
            "/",
            "/snponly.efi",
            "../../etc/passwd",
            "/etc/passwd",
            "./snponly.efi",
            "SNPONLY.EFI",
            "snponly.efi/..",
            "bc:24:11:00:00:12/uki.efi",
            "bc:24:11:00:00:11/../uki.efi",
            "bc:24:11:00:00:11/image.raw",
            "\\snponly.efi",
        ] {
            assert!(find(&site, &board, name).is_none(), "{name}");
        }
        board.lock().node(card()).installed = Some(1);
        assert!(find(&site, &board, "bc:24:11:00:00:11/uki.efi").is_none(), "it boots from its disk");
    }

    /// A transfer of `len` bytes to a socket of ours.
    fn transfer<'a>(content: &'a Content, block: usize, window: u64) -> (Transfer<'a>, UdpSocket) {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(client.local_addr().unwrap()).unwrap();
        let now = Instant::now();
        let peer = net::v4(client.local_addr().unwrap()).unwrap();
        let blocks = content.len / block as u64 + 1;
        let transfer = Transfer {
            socket,
            peer,
            name: String::new(),
            content,
            block,
            window,
            options: None,
            done: 0,
            blocks,
            wait: PATIENCE,
            tries: 0,
            due: now,
            begun: now,
        };
        (transfer, client)
    }

    fn blocks(client: &UdpSocket, count: usize) -> Vec<u16> {
        let mut buffer = [0; 2000];
        (0..count)
            .map(|_| {
                client.recv(&mut buffer).unwrap();
                u16::from_be_bytes([buffer[2], buffer[3]])
            })
            .collect()
    }

    fn ack(number: u16) -> Vec<u8> {
        [&[0, 4][..], &number.to_be_bytes()].concat()
    }

    #[test]
    fn a_window_goes_on_behind_what_was_acknowledged_and_ends_with_a_short_block() {
        let content = Content::kept(&[7; 32], &std::env::temp_dir()).unwrap();
        let (mut transfer, client) = transfer(&content, 8, 3);
        let now = Instant::now();
        transfer.send().unwrap();
        assert_eq!(blocks(&client, 3), [1, 2, 3]);
        // The third was lost.
        assert_eq!(transfer.on_packet(&ack(2), now), Fate::Goes);
        assert_eq!(blocks(&client, 3), [3, 4, 5]);
        for nothing_new in [2, 0, 9, 65_535] {
            assert_eq!(transfer.on_packet(&ack(nothing_new), now), Fate::Goes);
        }
        assert_eq!(transfer.done, 2);
        // 32 bytes are four blocks and an empty one.
        assert_eq!(transfer.on_packet(&ack(5), now), Fate::Done);
        client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(client.recv(&mut [0; 100]).is_err(), "nothing was sent for what said nothing new");
    }

    #[test]
    fn block_numbers_go_round() {
        let content = Content::kept(&vec![1; 8 * 70_000], &std::env::temp_dir()).unwrap();
        let (mut transfer, client) = transfer(&content, 8, 1);
        transfer.done = 65_534;
        transfer.send().unwrap();
        assert_eq!(blocks(&client, 1), [65_535]);
        assert_eq!(transfer.on_packet(&ack(65_535), Instant::now()), Fate::Goes);
        assert_eq!(blocks(&client, 1), [0]);
        assert_eq!(transfer.on_packet(&ack(0), Instant::now()), Fate::Goes);
        assert_eq!(blocks(&client, 1), [1]);
        assert_eq!(transfer.done, 65_536);
    }

    #[test]
    fn a_silent_client_is_given_up_and_one_that_leaves_is_let_go() {
        let content = Content::kept(&[7; 32], &std::env::temp_dir()).unwrap();
        let (mut transfer, client) = transfer(&content, 8, 1);
        let mut now = Instant::now();
        let mut sent = 0;
        let fate = loop {
            now += Duration::from_secs(20);
            match transfer.on_time(now) {
                Fate::Goes => sent += 1,
                fate => break fate,
            }
        };
        assert_eq!((sent, fate), (5, Fate::Lost("it does not answer")));
        assert_eq!(blocks(&client, 5), [1; 5]);
        assert_eq!(transfer.on_packet(b"\0\x05\0\0\0", now), Fate::Left);
        assert_eq!(transfer.on_time(now + LONGEST), Fate::Lost("it is too slow"));
    }
}
