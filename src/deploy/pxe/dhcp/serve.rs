//! The thread that answers DHCP.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::packet::Request;
use super::{Port, Ports, answer};
use crate::deploy::pxe::board::{Board, Tone};
use crate::deploy::pxe::net;
use crate::deploy::pxe::site::Site;
use crate::scenario::spec::Mac;

/// Answers that a machine gets within [`PERIOD`]: firmware, iPXE and initrd together ask some ten times per boot.
const ANSWERS: u32 = 30;
const PERIOD: Duration = Duration::from_secs(10);
/// Machines whose answers are counted at once.
const COUNTED: usize = 8192;
/// How soon the end is noticed.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// Packets read from one socket before the others have their turn.
const BURST: usize = 256;

/// How many answers each machine got lately.
#[derive(Debug, Default)]
struct Limit(BTreeMap<Mac, (Instant, u32)>);

impl Limit {
    fn allows(&mut self, mac: Mac, now: Instant) -> bool {
        if self.0.len() >= COUNTED {
            self.0.retain(|_, (since, _)| now.duration_since(*since) < PERIOD);
            if self.0.len() >= COUNTED {
                return false;
            }
        }
        let (since, count) = self.0.entry(mac).or_insert((now, 0));
        if now.duration_since(*since) >= PERIOD {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count <= ANSWERS
    }
}

/// Answers what comes by both pairs of sockets until `stop`. `port` is ours for DHCP.
pub fn serve(
    site: &Site,
    board: &Board,
    dhcp: &[UdpSocket; 2],
    boot: &[UdpSocket; 2],
    port: u16,
    stop: &AtomicBool,
) {
    let ports = Ports { server: port, client: port.saturating_add(1) };
    let mut limit = Limit::default();
    let sockets = [
        (Port::Dhcp, &dhcp[0], &dhcp[1]),
        (Port::Dhcp, &dhcp[1], &dhcp[1]),
        (Port::Boot, &boot[0], &boot[1]),
        (Port::Boot, &boot[1], &boot[1]),
    ];
    while !stop.load(Ordering::Relaxed) {
        let mut fds = sockets.map(|(_, socket, _)| PollFd::new(socket, PollFlags::IN));
        if poll(&mut fds, Some(&TICK)).is_err() {
            continue;
        }
        for (port, hears, sends) in sockets {
            for _ in 0..BURST {
                if !one(site, board, port, (hears, sends), ports, &mut limit) {
                    break;
                }
            }
        }
    }
}

/// Reads a packet and answers it. False when there is none.
fn one(
    site: &Site,
    board: &Board,
    port: Port,
    (hears, sends): (&UdpSocket, &UdpSocket),
    ports: Ports,
    limit: &mut Limit,
) -> bool {
    // One byte more than the longest that is read, so that a longer one is known.
    let mut buffer = [0; 4097];
    let (length, from) = match hears.recv_from(&mut buffer) {
        Ok(received) => received,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return false,
        // What an earlier answer met on its way is told here, and matters to nobody.
        Err(_) => return true,
    };
    let Some(from) = net::v4(from) else { return true };
    let request = match Request::parse(&buffer[..length]) {
        Ok(request) => request,
        Err(error) => {
            tracing::debug!(%from, %error, "packet dropped");
            return true;
        }
    };
    if !limit.allows(request.mac, Instant::now()) {
        tracing::debug!(mac = %request.mac, "asks too often");
        return true;
    }
    let answer = answer(site, &mut board.lock(), port, from, &request, ports);
    let Some((reply, to)) = answer else { return true };
    if let Err(error) = sends.send_to(&reply.bytes(&request), to) {
        let text = format!("the answer to {} at {to} could not be sent: {error}", request.mac);
        board.lock().note("error", Tone::Bad, None, Some(request.mac), text);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::pxe::site::tests::card;

    #[test]
    fn who_asks_too_often_gets_no_answer_for_a_while() {
        let mut limit = Limit::default();
        let start = Instant::now();
        let answered = (0..100).filter(|_| limit.allows(card(), start)).count();
        assert_eq!(answered, ANSWERS as usize);
        assert!(limit.allows(card(), start + PERIOD));
    }

    #[test]
    fn invented_addresses_fill_no_memory() {
        let mut limit = Limit::default();
        let start = Instant::now();
        for n in 0..20_000_u32 {
            let [_, a, b, c] = n.to_be_bytes();
            limit.allows(super::super::packet::mac([2, 0, 0, a, b, c]).unwrap(), start);
        }
        assert!(limit.0.len() <= COUNTED);
        assert!(limit.allows(card(), start + PERIOD), "after a while all is well again");
    }
}
