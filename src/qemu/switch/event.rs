//! The thread of a switch: one epoll(7) loop over all sockets, the timer for delayed frames, and calls from other threads (see
//! [`super::handle`]).

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::PortId;
use super::fabric::Fabric;
use super::frame::{self, MAX_FRAME, PREFIX};
use super::handle::Job;
use crate::error::{Failure, Kind};

/// What is read from a socket at once: several of the longest frames, thousands of short ones.
const INBOX: usize = 256 << 10;
const _: () = assert!(INBOX >= PREFIX + MAX_FRAME, "the longest frame must fit");

/// What the kernel shall hold of what was sent to a node; it cuts this to net.core.wmem_max.
const SOCKET_BUFFER: usize = 1 << 20;

/// How long a port rests after its listener failed, as it does without free descriptors.
const REST: Duration = Duration::from_millis(100);

/// What woke the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Wake,
    Timer,
    Listener(usize),
    Stream(usize),
}

impl Token {
    fn data(self) -> EventData {
        EventData::new_u64(match self {
            Token::Wake => 0,
            Token::Timer => 1,
            Token::Listener(port) => 2 + 2 * port as u64,
            Token::Stream(port) => 3 + 2 * port as u64,
        })
    }

    fn of(data: EventData) -> Token {
        let number = data.u64();
        let port = || usize::try_from(number / 2 - 1).unwrap_or(usize::MAX);
        match number {
            0 => Token::Wake,
            1 => Token::Timer,
            number if number % 2 == 0 => Token::Listener(port()),
            _ => Token::Stream(port()),
        }
    }
}

/// A listening socket; its file goes when it is dropped.
#[derive(Debug)]
struct Door {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Door {
    fn drop(&mut self) {
        // Somebody may have removed the whole folder already.
        let _ = fs_err::remove_file(&self.path);
    }
}

/// The sockets of one port.
#[derive(Debug, Default)]
struct Endpoint {
    /// None for a tap.
    door: Option<Door>,
    /// The listener is not looked at before this moment.
    rests_until: Option<Instant>,
    stream: Option<UnixStream>,
    /// The loop waits for the node to read.
    blocked: bool,
    inbox: Vec<u8>,
    /// How many bytes of `inbox` came from the socket.
    filled: usize,
}

/// Everything that the thread owns.
#[derive(Debug)]
pub(super) struct State {
    pub(super) fabric: Fabric,
    endpoints: Vec<Endpoint>,
    epoll: OwnedFd,
    timer: OwnedFd,
    /// What the timer is set to.
    alarm: Option<Instant>,
}

impl State {
    pub(super) fn new(name: &str, seed: u64, wake: &OwnedFd) -> io::Result<State> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // The time-outs of epoll_wait(2) have milliseconds, a timer descriptor has nanoseconds.
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        epoll::add(&epoll, wake, Token::Wake.data(), EventFlags::IN)?;
        epoll::add(&epoll, &timer, Token::Timer.data(), EventFlags::IN)?;
        Ok(State { fabric: Fabric::new(name, seed), endpoints: Vec::new(), epoll, timer, alarm: None })
    }

    /// Adds a port that listens.
    pub(super) fn listen(
        &mut self,
        name: &str,
        listener: UnixListener,
        path: PathBuf,
    ) -> Result<PortId, Failure> {
        let door = Door { listener, path };
        let token = Token::Listener(self.endpoints.len());
        epoll::add(&self.epoll, &door.listener, token.data(), EventFlags::IN)
            .map_err(|error| watch_failure(name, error.into()))?;
        let port = self.add(name, Endpoint { door: Some(door), ..Endpoint::default() })?;
        Ok(PortId(port))
    }

    /// Adds a port whose node is connected already.
    pub(super) fn plug(&mut self, name: &str, stream: UnixStream) -> Result<PortId, Failure> {
        let port = self.add(name, Endpoint::default())?;
        self.connect(port, stream).map_err(|error| watch_failure(name, error))?;
        Ok(PortId(port))
    }

    fn add(&mut self, name: &str, endpoint: Endpoint) -> Result<usize, Failure> {
        if self.fabric.find(name).is_some() {
            return Err(Failure::new(Kind::Input, format!("two ports of a network are called {name}")));
        }
        self.endpoints.push(endpoint);
        Ok(self.fabric.add(name))
    }

    /// The loop. Ends when the handle is dropped.
    pub(super) fn run(&mut self, jobs: &mpsc::Receiver<Job>, wake: &OwnedFd) {
        let mut events = Vec::new();
        loop {
            let now = Instant::now();
            let next = self.fabric.advance(now);
            for port in 0..self.endpoints.len() {
                self.flush(port);
            }
            self.fabric.flush_captures();
            let rests = self.endpoints.iter().filter_map(|endpoint| endpoint.rests_until).min();
            self.set_alarm([next, rests].into_iter().flatten().min(), now);

            let Ok(called) = self.look(&mut events, None) else { return };
            if !called {
                continue;
            }
            // Each call has added one. What sockets had to say before these calls is known by now: so handle it first.
            let mut calls = [0; 8];
            if rustix::io::read(wake, &mut calls).is_err() {
                continue;
            }
            if self.look(&mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_err() {
                return;
            }
            // Whoever asks may look into the files next.
            self.fabric.flush_captures();
            for _ in 0..u64::from_ne_bytes(calls) {
                match jobs.try_recv() {
                    Ok(job) => job(self),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
        }
    }

    /// Waits for events and handles them; true when one of them is a call.
    ///
    /// # Errors
    /// epoll_wait(2) fails for descriptors that are not ours or not open: that cannot be, and going on would spin.
    fn look(&mut self, events: &mut Vec<epoll::Event>, limit: Option<&Timespec>) -> io::Result<bool> {
        events.clear();
        // Room for all there are, or some would be looked at later than they were there.
        events.reserve(2 + 2 * self.endpoints.len());
        match epoll::wait(&self.epoll, spare_capacity(events), limit) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut called = false;
        for event in events {
            match Token::of(event.data) {
                Token::Wake => called = true,
                Token::Timer => self.alarm_rang(),
                Token::Listener(port) => self.accept(port),
                Token::Stream(port) => self.receive(port),
            }
        }
        Ok(called)
    }

    fn set_alarm(&mut self, at: Option<Instant>, now: Instant) {
        if at == self.alarm {
            return;
        }
        // Zero would switch the timer off.
        let left = at.map(|at| at.saturating_duration_since(now).max(Duration::from_nanos(1)));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = left.map_or(zero, |left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let timer = Itimerspec { it_interval: zero, it_value };
        if rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer).is_ok() {
            self.alarm = at;
        }
    }

    fn alarm_rang(&mut self) {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.alarm = None;
        let now = Instant::now();
        for port in 0..self.endpoints.len() {
            let Some(endpoint) = self.endpoints.get_mut(port) else { return };
            if endpoint.rests_until.is_some_and(|until| until <= now) {
                endpoint.rests_until = None;
                if let Some(door) = &endpoint.door {
                    let _ =
                        epoll::add(&self.epoll, &door.listener, Token::Listener(port).data(), EventFlags::IN);
                }
            }
        }
    }

    /// Takes the newest of the connections that wait.
    fn accept(&mut self, port: usize) {
        loop {
            let Some(endpoint) = self.endpoints.get_mut(port) else { return };
            let Some(Door { listener, .. }) = &endpoint.door else { return };
            match listener.accept() {
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_err() || self.connect(port, stream).is_err() {
                        self.close(port);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(_) => {
                    // Without free descriptors the connection stays in the queue, and the loop would spin over it.
                    let _ = epoll::delete(&self.epoll, listener);
                    endpoint.rests_until = Some(Instant::now() + REST);
                    return;
                }
            }
        }
    }

    fn connect(&mut self, port: usize, stream: UnixStream) -> io::Result<()> {
        // Smaller is well, too.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SOCKET_BUFFER);
        epoll::add(&self.epoll, &stream, Token::Stream(port).data(), EventFlags::IN)?;
        if let Some(endpoint) = self.endpoints.get_mut(port) {
            endpoint.stream = Some(stream);
            endpoint.blocked = false;
            endpoint.inbox.resize(INBOX, 0);
            endpoint.filled = 0;
        }
        self.fabric.up(port);
        Ok(())
    }

    fn close(&mut self, port: usize) {
        if let Some(endpoint) = self.endpoints.get_mut(port) {
            endpoint.stream = None;
            endpoint.inbox = Vec::new();
            endpoint.filled = 0;
        }
        self.fabric.down(port);
    }

    /// The node has sent something, reads again, or is gone.
    fn receive(&mut self, port: usize) {
        let Some(endpoint) = self.endpoints.get_mut(port) else { return };
        let Some(mut stream) = endpoint.stream.as_ref() else { return };
        match stream.read(endpoint.inbox.get_mut(endpoint.filled..).unwrap_or_default()) {
            Ok(0) => return self.close(port),
            Ok(count) => endpoint.filled += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return self.close(port),
        }
        let now = Instant::now();
        let mut rest = endpoint.inbox.get(..endpoint.filled).unwrap_or_default();
        loop {
            match frame::first(rest) {
                Ok(Some(frame)) => {
                    self.fabric.receive(port, frame, now);
                    rest = rest.get(PREFIX + frame.len()..).unwrap_or_default();
                }
                Ok(None) => break,
                Err(_) => {
                    if let Some(port) = self.fabric.ports.get_mut(port) {
                        port.counters.refused += 1;
                    }
                    return self.close(port);
                }
            }
        }
        let left = rest.len();
        endpoint.inbox.copy_within(endpoint.filled - left..endpoint.filled, 0);
        endpoint.filled = left;
        // At once, not after the other ports have been read too: that would be their time on this frame's way.
        for port in 0..self.endpoints.len() {
            self.flush(port);
        }
    }

    /// Gives the socket what it takes.
    fn flush(&mut self, port: usize) {
        let Some(endpoint) = self.endpoints.get_mut(port) else { return };
        let Some(outbox) = self.fabric.ports.get_mut(port).map(|port| &mut port.outbox) else { return };
        let Some(mut stream) = endpoint.stream.as_ref() else { return };
        let mut blocked = false;
        while !outbox.pending().is_empty() && !blocked {
            match stream.write(outbox.pending()) {
                Ok(count) => outbox.take(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => blocked = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.close(port),
            }
        }
        if blocked != endpoint.blocked {
            let flags = if blocked { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            if epoll::modify(&self.epoll, stream, Token::Stream(port).data(), flags).is_ok() {
                endpoint.blocked = blocked;
            }
        }
    }
}

fn watch_failure(name: &str, error: io::Error) -> Failure {
    Failure::new(Kind::Tool, format!("port {name}: its socket cannot be watched")).because(error)
}
