//! The switch without its sockets: frames go in at a port with the time, and come out as bytes for the sockets of other ports.
//!
//! ```text
//! node's socket -> receive -> cable from node -> forward -> cable to node -> outbox -> node's socket
//!                     |                             |                          |
//!                  capture                   table of addresses             capture
//! ```
//!
//! Nothing here waits or asks the clock, so tests say what time it is.

use std::time::Instant;

use super::frame::{self, Header, PREFIX};
use super::link::{Conditions, Direction, Link};
use super::pcap::Capture;
use super::table::Table;
use super::{Counters, Drops};

/// Bytes that wait for a node to read them at most, besides the kernel's socket buffer: the packet buffer of a small switch.
pub(super) const QUEUE: usize = 1 << 20;

/// Frames on their way into a socket.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// How many of them the socket has taken.
    taken: usize,
}

impl Outbox {
    /// False when there is no room for the frame.
    fn push(&mut self, frame: &[u8]) -> bool {
        if self.pending().len() + PREFIX + frame.len() > QUEUE {
            return false;
        }
        if self.taken >= QUEUE / 2 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        frame::append(&mut self.bytes, frame);
        true
    }

    /// The bytes that the socket should take next.
    pub(super) fn pending(&self) -> &[u8] {
        self.bytes.get(self.taken..).unwrap_or_default()
    }

    /// The socket took `count` bytes.
    pub(super) fn take(&mut self, count: usize) {
        self.taken += count;
        if self.taken >= self.bytes.len() {
            self.bytes.clear();
            self.taken = 0;
        }
    }
}

#[derive(Debug)]
pub(super) struct Port {
    pub(super) name: String,
    /// Somebody is connected.
    up: bool,
    from_node: Link,
    to_node: Link,
    pub(super) outbox: Outbox,
    pub(super) counters: Counters,
    capture: Option<Capture>,
}

impl Port {
    fn link(&self, direction: Direction) -> &Link {
        match direction {
            Direction::ToNode => &self.to_node,
            Direction::FromNode => &self.from_node,
        }
    }

    fn record(&mut self, direction: Direction, frame: &[u8], now: Instant) {
        if let Some(capture) = &mut self.capture {
            self.counters.uncaptured += u64::from(!capture.add(direction, frame, now));
        }
    }

    /// A frame is at the end of the cable to the node.
    fn hand_over(&mut self, frame: &[u8], now: Instant) {
        let to = &mut self.counters.to_node;
        if !self.up {
            to.dropped.down += 1;
        } else if !self.outbox.push(frame) {
            to.dropped.queue += 1;
        } else {
            to.frames += 1;
            to.bytes += frame.len() as u64;
            self.record(Direction::ToNode, frame, now);
        }
    }

    /// A frame leaves the switch for the node.
    fn deliver(&mut self, frame: &[u8], now: Instant) {
        for _ in 0..self.to_node.enter(frame, now, &mut self.counters.to_node.dropped) {
            self.hand_over(frame, now);
        }
    }
}

/// All ports of a segment and the table of addresses.
#[derive(Debug)]
pub(super) struct Fabric {
    name: String,
    seed: u64,
    pub(super) ports: Vec<Port>,
    table: Table,
}

impl Fabric {
    pub(super) fn new(name: &str, seed: u64) -> Self {
        Fabric { name: name.to_owned(), seed, ports: Vec::new(), table: Table::default() }
    }

    /// Adds a port where nobody is connected yet; returns its index.
    pub(super) fn add(&mut self, name: &str) -> usize {
        let link = |direction: &str| Link::new(self.seed, &format!("{}\0{name}\0{direction}", self.name));
        self.ports.push(Port {
            name: name.to_owned(),
            up: false,
            from_node: link("from node"),
            to_node: link("to node"),
            outbox: Outbox::default(),
            counters: Counters::default(),
            capture: None,
        });
        self.ports.len() - 1
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.ports.iter().position(|port| port.name == name)
    }

    /// A node is connected, or another one than before: what waited for the old one is lost.
    pub(super) fn up(&mut self, port: usize) {
        self.down(port);
        if let Some(port) = self.ports.get_mut(port) {
            port.up = true;
            port.counters.connections += 1;
        }
    }

    /// Nobody is connected any more. Its addresses are forgotten, as by a switch that sees a link go down.
    pub(super) fn down(&mut self, port: usize) {
        self.table.forget(port);
        if let Some(port) = self.ports.get_mut(port) {
            port.up = false;
            port.outbox = Outbox::default();
        }
    }

    pub(super) fn is_up(&self, port: usize) -> bool {
        self.ports.get(port).is_some_and(|port| port.up)
    }

    /// Captures what passes `port` from now on.
    pub(super) fn capture(&mut self, port: usize, capture: Capture) {
        if let Some(port) = self.ports.get_mut(port) {
            port.capture = Some(capture);
        }
    }

    /// What was captured is in the files.
    pub(super) fn flush_captures(&mut self) {
        for capture in self.ports.iter_mut().filter_map(|port| port.capture.as_mut()) {
            capture.flush();
        }
    }

    pub(super) fn set(&mut self, port: usize, direction: Direction, conditions: Conditions, now: Instant) {
        let Some(port) = self.ports.get_mut(port) else { return };
        match direction {
            Direction::ToNode => port.to_node.set(conditions, now, &mut port.counters.to_node.dropped),
            Direction::FromNode => port.from_node.set(conditions, now, &mut port.counters.from_node.dropped),
        }
    }

    pub(super) fn conditions(&self, port: usize, direction: Direction) -> Conditions {
        self.ports.get(port).map(|port| port.link(direction).conditions()).unwrap_or_default()
    }

    /// The node at `port` has sent `frame`.
    pub(super) fn receive(&mut self, port: usize, frame: &[u8], now: Instant) {
        let Some(from) = self.ports.get_mut(port) else { return };
        from.counters.from_node.frames += 1;
        from.counters.from_node.bytes += frame.len() as u64;
        from.record(Direction::FromNode, frame, now);
        for _ in 0..from.from_node.enter(frame, now, &mut from.counters.from_node.dropped) {
            self.forward(port, frame, now);
        }
    }

    /// A frame came into the switch through `port`: to the port where its receiver lives, else to all others.
    fn forward(&mut self, port: usize, frame: &[u8], now: Instant) {
        let header = Header::read(frame);
        let Some(header) = header.filter(|header| !header.is_link_local()) else {
            if let Some(from) = self.ports.get_mut(port) {
                let Drops { malformed, link_local, .. } = &mut from.counters.from_node.dropped;
                *(if header.is_some() { link_local } else { malformed }) += 1;
            }
            return;
        };
        self.table.learn(header.vlan, header.from, port, now);
        let known = if header.is_flooded() { None } else { self.table.find(header.vlan, header.to, now) };
        match known {
            // The receiver is where the frame came from, and has it.
            Some(to) if to == port => {}
            Some(to) => {
                if let Some(to) = self.ports.get_mut(to) {
                    to.deliver(frame, now);
                }
            }
            None => {
                for (index, to) in self.ports.iter_mut().enumerate() {
                    if index != port && to.up {
                        to.deliver(frame, now);
                    }
                }
            }
        }
    }

    /// Moves on what has arrived at the end of its cable by `now`. Returns when the next frame arrives.
    pub(super) fn advance(&mut self, now: Instant) -> Option<Instant> {
        for index in 0..self.ports.len() {
            while let Some(frame) = self.ports.get_mut(index).and_then(|port| port.from_node.arrived(now)) {
                self.forward(index, &frame, now);
            }
        }
        for port in &mut self.ports {
            while let Some(frame) = port.to_node.arrived(now) {
                port.hand_over(&frame, now);
            }
        }
        self.ports.iter().flat_map(|port| [port.from_node.next(), port.to_node.next()]).flatten().min()
    }
}

#[cfg(test)]
#[path = "fabric_tests.rs"]
mod tests;
