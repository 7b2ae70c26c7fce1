//! An Ethernet segment in user space: a learning switch whose ports are unix sockets, and whose cables can be cut, slowed down and
//! listened to. No root, no bridge, no port number of the host.
//!
//! ```text
//! Switch (one segment, one thread)
//!   ├── handle     calls from other threads
//!   ├── event      sockets and timers, all in one loop
//!   ├── frame      frames on a socket, Ethernet header
//!   ├── fabric     ports, forwarding, counters
//!   │     ├── table    which address lives where
//!   │     ├── link     one direction of a cable: cut, loss, delay, ...
//!   │     └── pcap     captures
//!   └── tap        a port for this program itself
//! ```
//!
//! QEMU connects to the socket of a port ([`super::config::Link::Stream`]), once and when it starts: the port must be there before.
//! It may vanish and come back at any time, as a machine that is power-cycled; conditions, counters and captures belong to the port
//! and stay. A second connection replaces the first.
//!
//! # What it does as a switch
//!
//! Addresses are learned per VLAN and forgotten after five silent minutes or when the node disconnects; frames for unknown
//! addresses and for groups go to all other ports. VLAN tags pass untouched and every port is in every VLAN. Frames for the
//! neighbour alone (pause, LACP, LLDP) are not passed on, as by any bridge. Frames up to [`MAX_FRAME`] pass.
//!
//! # Bounds
//!
//! A node that does not read fills its own queue of 1 MiB, then its frames are dropped and counted; nobody else waits. Memory per
//! port is at most 12 MiB: 0.25 to receive, 2 for the queue (1 MiB of frames, and room to move them), 9 for delayed frames (4 in
//! each direction, and their index), 0.5 for a capture. The table of addresses has 8192 entries. A capture file ends at 1 GiB.
//!
//! # Repeatability
//!
//! Whether a frame is lost, doubled or late is decided by generators of its own for each port, direction and kind of decision, seeded
//! from the run's seed: see [`Conditions`]. The same frames in the same order meet the same fate.

mod event;
mod fabric;
mod frame;
mod handle;
mod link;
mod pcap;
mod table;
mod tap;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

pub use frame::MAX_FRAME;
pub use link::{Conditions, Direction};
pub use tap::Tap;

use crate::error::{Failure, Kind};
use event::State;
use handle::Handle;
use pcap::Capture;

/// A port of one [`Switch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(usize);

/// Why frames were dropped, in one direction of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Drops {
    /// The cable was cut.
    pub cut: u64,
    /// By the share that is lost.
    pub loss: u64,
    /// The node reads too slowly, or the wire is too slow.
    pub queue: u64,
    /// Nobody is connected.
    pub down: u64,
    /// No Ethernet frame, or its sender is no address.
    pub malformed: u64,
    /// Meant for the switch itself, such as LLDP.
    pub link_local: u64,
}

impl Drops {
    /// All of them.
    pub fn total(&self) -> u64 {
        let Drops { cut, loss, queue, down, malformed, link_local } = self;
        cut + loss + queue + down + malformed + link_local
    }
}

/// What passed in one direction of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Traffic {
    /// From the node: frames that it sent, dropped ones too. To the node: frames put into its queue, doubles too.
    pub frames: u64,
    /// The bytes of these frames, from the Ethernet header on.
    pub bytes: u64,
    /// Frames that got no further.
    pub dropped: Drops,
}

/// What happened at a port since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    /// Sent by the node.
    pub from_node: Traffic,
    /// Sent to the node.
    pub to_node: Traffic,
    /// How often somebody connected.
    pub connections: u64,
    /// Connections that were closed because they announced a frame beyond [`MAX_FRAME`].
    pub refused: u64,
    /// Frames that passed but are not in the capture, because the disk or the file was full.
    pub uncaptured: u64,
}

/// One Ethernet segment. Dropping it ends its thread, closes all connections and removes the sockets.
#[derive(Debug)]
pub struct Switch {
    name: String,
    handle: Handle,
}

impl Switch {
    /// A switch without ports. `name` is that of the segment; together with `seed` and the ports' names it fixes what
    /// [`Conditions`] do to each frame.
    ///
    /// # Errors
    /// [`Kind::Tool`] when the system gives no thread or descriptor.
    pub fn new(name: &str, seed: u64) -> Result<Switch, Failure> {
        let handle = Handle::start(name, seed).map_err(|error| {
            Failure::new(Kind::Tool, format!("network {name}: the switch cannot start")).because(error)
        })?;
        Ok(Switch { name: name.to_owned(), handle })
    }

    /// The name of the segment.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds a port that listens on a new socket at `path`. `name` is that of whoever is plugged in, once on each segment.
    ///
    /// # Errors
    /// [`Kind::Input`] when the name is taken or the path too long for a socket, [`Kind::Tool`] when the socket cannot be made.
    pub fn port(&self, name: &str, path: &Path) -> Result<PortId, Failure> {
        let made = UnixListener::bind(path).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        let listener = made.map_err(|error| {
            let (kind, hint) = match error.kind() {
                std::io::ErrorKind::InvalidInput => (Kind::Input, "set TMPDIR to a shorter path"),
                std::io::ErrorKind::AddrInUse => (Kind::Tool, "use a new folder for each run"),
                _ => (Kind::Tool, "the folder must exist and be writable"),
            };
            let what = format!("network {}: no socket can be made at {}", self.name, path.display());
            Failure::new(kind, what).hint(hint).because(error)
        })?;
        let (name, path) = (name.to_owned(), path.to_owned());
        self.call(move |state| state.listen(&name, listener, path))?
    }

    /// Adds a port for this program: frames are sent and received by the [`Tap`], until it is dropped.
    ///
    /// # Errors
    /// [`Kind::Input`] when the name is taken, [`Kind::Tool`] when the system gives no sockets.
    pub fn tap(&self, name: &str) -> Result<Tap, Failure> {
        let pair = UnixStream::pair().and_then(|(near, far)| {
            near.set_nonblocking(true)?;
            far.set_nonblocking(true)?;
            Ok((near, far))
        });
        let (near, far) = pair.map_err(|error| {
            Failure::new(Kind::Tool, format!("network {}: no tap {name}", self.name)).because(error)
        })?;
        let label = format!("{name} on network {}", self.name);
        let name = name.to_owned();
        let port = self.call(move |state| state.plug(&name, far))??;
        Ok(Tap::new(label, port, near))
    }

    /// The port of that name.
    ///
    /// # Errors
    /// [`Kind::Internal`] when the thread has ended, as for all calls below.
    pub fn find(&self, name: &str) -> Result<Option<PortId>, Failure> {
        let name = name.to_owned();
        self.call(move |state| state.fabric.find(&name).map(PortId))
    }

    /// Sets what one direction of the cable does from now on. Frames under way are lost when it is cut, and otherwise arrive no
    /// later than one sent now.
    ///
    /// # Errors
    /// [`Kind::Input`] for impossible conditions.
    pub fn set(&self, port: PortId, direction: Direction, conditions: Conditions) -> Result<(), Failure> {
        conditions.validate()?;
        self.call(move |state| state.fabric.set(port.0, direction, conditions, Instant::now()))
    }

    /// What one direction of the cable does now.
    ///
    /// # Errors
    /// See [`Switch::find`].
    pub fn conditions(&self, port: PortId, direction: Direction) -> Result<Conditions, Failure> {
        self.call(move |state| state.fabric.conditions(port.0, direction))
    }

    /// Writes all frames of `port` to a new pcapng file from now on, as tcpdump on the node would: what it sends before anything
    /// happens to it, what it gets after everything has. What was captured is in the file when the next call of this switch
    /// returns, and without one some microseconds after it passed: a program that is killed leaves it behind.
    ///
    /// # Errors
    /// [`Kind::Store`] when the file cannot be made.
    pub fn capture(&self, port: PortId, file: &Path) -> Result<(), Failure> {
        let epoch = (crate::lock::time::precise(), Instant::now());
        let (path, segment) = (file.to_owned(), self.name.clone());
        let made = self.call(move |state| {
            let Some(name) = state.fabric.ports.get(port.0).map(|port| port.name.clone()) else {
                return Ok(());
            };
            let description = format!("{name} on network {segment}");
            let capture = Capture::create(&path, &name, &description, epoch, pcap::LIMIT)?;
            state.fabric.capture(port.0, capture);
            Ok(())
        })?;
        made.map_err(|error: std::io::Error| {
            Failure::new(Kind::Store, format!("network {}: no capture can be written", self.name))
                .because(error)
        })
    }

    /// What happened at `port` so far.
    ///
    /// # Errors
    /// See [`Switch::find`].
    pub fn counters(&self, port: PortId) -> Result<Counters, Failure> {
        self.call(move |state| state.fabric.ports.get(port.0).map(|port| port.counters).unwrap_or_default())
    }

    /// Whether somebody is connected to `port`; whoever connected before this call is seen by it.
    ///
    /// # Errors
    /// See [`Switch::find`].
    pub fn is_connected(&self, port: PortId) -> Result<bool, Failure> {
        self.call(move |state| state.fabric.is_up(port.0))
    }

    /// Has the thread do something, after what sockets had to say before.
    fn call<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut State) -> R + Send + 'static,
    ) -> Result<R, Failure> {
        self.handle.call(job).ok_or_else(|| {
            Failure::new(Kind::Internal, format!("network {}: the switch has ended", self.name))
        })
    }
}

/// How long to wait at most before looking at Ctrl-C.
const LOOK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
