//! A way into a segment from outside: a TCP port of this machine that leads to one of a guest.
//!
//! The segment of a [`super::switch::Switch`] is nowhere but in this program, so whoever connects is passed on by a small host of our own
//! that is plugged into the switch: its TCP is smoltcp's. It listens on 127.0.0.1 only.
//!
//! ```text
//! client ── 127.0.0.1:PORT ──> [Forward] ── TCP of smoltcp, Tap ──> switch ──> guest
//! ```

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration as Time, Instant as Moment};
use smoltcp::wire::{EthernetAddress, IpCidr};

use super::switch::Tap;
use crate::error::{Failure, Kind};

/// Our card; locally administered, and none that [`crate::scenario`] gives to a node.
const MAC: [u8; 6] = [0x02, 0x6b, 0x69, 0x6c, 0x6e, 0x01];
/// Bytes of a frame's payload.
const MTU: usize = 1500;
/// Bytes on their way in each direction of a connection.
const BUFFER: usize = 64 * 1024;
/// Connections at once; more wait in the listener's queue.
const MOST: usize = 64;
/// How long a guest may be silent.
const PATIENCE: Time = Time::from_secs(60);
/// How often a guest that has nothing to say is asked whether it is there: to smoltcp every silence is one, and a watch, or a client that
/// does not read for a while, may be silent for hours. What it is asked it answers also while we have no room for what it has to say.
const ASK: Time = Time::from_secs(15);
/// Frames taken at once: as much as both directions of a connection can hold.
const FRAMES: usize = 128;
/// How long to sleep at most before looking whether we are to end.
const LOOK: Duration = Duration::from_millis(100);
/// The first port of ours; they are used in turn (RFC 6335, 6).
const FIRST_PORT: u16 = 49_152;

/// A port of this machine that leads to a guest. Dropping it ends its thread and all connections.
#[derive(Debug)]
pub struct Forward {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Forward {
    /// Leads from a free port of 127.0.0.1 to `to`, as the host `from` on the segment of `tap`. `from` must be free there, and `to` be
    /// in its subnet.
    ///
    /// # Errors
    /// [`Kind::Tool`] when the system gives no port or thread.
    pub fn start(tap: Tap, from: Ipv4Net, to: SocketAddrV4) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let started = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| {
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            let mut host = Host::new(tap, listener, from, to);
            let ours = Arc::clone(&stop);
            let thread = std::thread::Builder::new()
                .name(format!("forward {to}"))
                .spawn(move || while !ours.load(Ordering::Relaxed) && host.turn() {})?;
            Ok((address, thread))
        });
        let (address, thread) = started.map_err(|error| {
            Failure::new(Kind::Tool, format!("no port of this machine can lead to {to}")).because(error)
        })?;
        Ok(Forward { address, stop, thread: Some(thread) })
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Somebody who connected, and the connection to the guest that is theirs.
struct Connection {
    client: TcpStream,
    socket: SocketHandle,
    /// The client has said all that it will say.
    said: bool,
    /// The client was told that the guest has said all.
    told: bool,
}

/// Our host on the segment.
struct Host {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    listener: TcpListener,
    connections: Vec<Connection>,
    to: SocketAddrV4,
    next_port: u16,
    begun: Instant,
}

impl Host {
    fn new(tap: Tap, listener: TcpListener, from: Ipv4Net, to: SocketAddrV4) -> Self {
        let mut wire = Wire::new(tap);
        let mut config = Config::new(EthernetAddress(MAC).into());
        // Sequence numbers are nobody's secret here: whoever is on the segment is in this program.
        config.random_seed = u64::from(u32::from(from.addr()));
        let mut interface = Interface::new(config, &mut wire, Moment::ZERO);
        interface.update_ip_addrs(|addresses| {
            // The list has room for one: it was empty.
            let _ = addresses.push(IpCidr::new(from.addr().into(), from.prefix_len()));
        });
        Host {
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
            listener,
            connections: Vec::new(),
            to,
            next_port: FIRST_PORT,
            begun: Instant::now(),
        }
    }

    /// One turn of the loop; false when the switch is gone.
    fn turn(&mut self) -> bool {
        self.accept();
        self.wire.receive();
        self.poll();
        let sockets = &mut self.sockets;
        self.connections.retain_mut(|connection| {
            let socket: &mut tcp::Socket<'_> = sockets.get_mut(connection.socket);
            let open = connection.pump(socket);
            if !open && socket.state() != tcp::State::TimeWait {
                // The guest is told by the poll below.
                socket.abort();
            }
            open
        });
        self.poll();
        self.wire.send();
        self.forget();
        if !self.wire.gone {
            self.wait();
        }
        !self.wire.gone
    }

    fn now(&self) -> Moment {
        Moment::from_millis(i64::try_from(self.begun.elapsed().as_millis()).unwrap_or(i64::MAX))
    }

    fn poll(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
    }

    fn accept(&mut self) {
        while self.connections.len() < MOST {
            let Ok((client, _)) = self.listener.accept() else { return };
            let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
            let mut socket = tcp::Socket::new(buffer(), buffer());
            socket.set_timeout(Some(PATIENCE));
            socket.set_keep_alive(Some(ASK));
            socket.set_nagle_enabled(false);
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            // A client that cannot be served sees its connection end.
            let ready = client.set_nonblocking(true).is_ok() && client.set_nodelay(true).is_ok();
            if ready
                && socket.connect(self.interface.context(), (*self.to.ip(), self.to.port()), port).is_ok()
            {
                let socket = self.sockets.add(socket);
                self.connections.push(Connection { client, socket, said: false, told: false });
            }
        }
    }

    /// Drops sockets whose connection is gone, once they have said what they had to.
    fn forget(&mut self) {
        let used: Vec<SocketHandle> = self.connections.iter().map(|connection| connection.socket).collect();
        let done: Vec<SocketHandle> =
            self.sockets.iter().map(|(handle, _)| handle).filter(|handle| !used.contains(handle)).collect();
        for handle in done {
            self.sockets.remove(handle);
        }
    }

    /// How long to sleep if nobody says anything.
    fn nap(&mut self) -> Duration {
        if self.wire.more {
            return Duration::ZERO;
        }
        let now = self.now();
        let delay = self.interface.poll_delay(now, &self.sockets);
        delay.map_or(LOOK, |delay| Duration::from(delay).min(LOOK))
    }

    /// Sleeps until somebody has something to say.
    fn wait(&mut self) {
        let limit = self.nap();
        let mut fds = vec![PollFd::new(&self.wire.tap, PollFlags::IN)];
        if self.connections.len() < MOST {
            fds.push(PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN));
        }
        for connection in &self.connections {
            let socket = self.sockets.get::<tcp::Socket<'_>>(connection.socket);
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !connection.said && socket.can_send());
            flags.set(PollFlags::OUT, socket.can_recv());
            if !flags.is_empty() {
                fds.push(PollFd::from_borrowed_fd(connection.client.as_fd(), flags));
            }
        }
        let limit = Timespec { tv_sec: 0, tv_nsec: i64::from(limit.subsec_nanos()) };
        // Whatever it says, a signal too, the next turn looks at everybody.
        let _ = poll(&mut fds, Some(&limit));
    }
}

impl Connection {
    /// Moves what can be moved both ways; false when the connection is over.
    fn pump(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        while !self.said && socket.can_send() {
            let read = socket.send(|room| match self.client.read(room) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match read {
                Ok(Ok(0)) => {
                    self.said = true;
                    socket.close();
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => break,
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(_)) | Err(_) => return false,
            }
        }
        while socket.can_recv() {
            let written = socket.recv(|bytes| match self.client.write(bytes) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match written {
                Ok(Ok(count)) if count > 0 => {}
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => break,
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                _ => return false,
            }
        }
        let answered = !matches!(socket.state(), tcp::State::SynSent);
        if answered && !self.told && !socket.may_recv() && !socket.can_recv() {
            self.told = true;
            // A client that is gone already needs no word.
            let _ = self.client.shutdown(Shutdown::Write);
        }
        socket.can_recv() || !matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait)
    }
}

/// Our cable.
struct Wire {
    tap: Tap,
    received: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
    /// There may be frames that were not taken, and nobody will be woken for them: the tap has read them.
    more: bool,
    /// The switch has ended.
    gone: bool,
}

impl Wire {
    fn new(tap: Tap) -> Self {
        Wire { tap, received: VecDeque::new(), sent: VecDeque::new(), more: false, gone: false }
    }

    fn receive(&mut self) {
        self.more = false;
        while self.received.len() < FRAMES {
            match self.tap.receive(Duration::ZERO) {
                Ok(Some(frame)) => self.received.push_back(frame),
                Ok(None) => return,
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
        self.more = true;
    }

    fn send(&mut self) {
        while let Some(frame) = self.sent.pop_front() {
            if self.tap.send(&frame).is_err() {
                self.gone = true;
                return;
            }
        }
    }
}

impl phy::Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Moment) -> Option<(Received, Sending<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Received(frame), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _: Moment) -> Option<Sending<'_>> {
        Some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        // smoltcp counts the header of 14 bytes as well.
        capabilities.max_transmission_unit = MTU + 14;
        capabilities
    }
}

/// A frame that came.
struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

/// Room for a frame that goes.
struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        self.0.push_back(frame);
        result
    }
}

#[cfg(test)]
mod tests;
