//! The threads that serve HTTP: each waits for many connections at once (epoll), and none waits for one.
//!
//! A connection holds a buffer for the head of a request and the bytes of a short answer; contents go from file to socket in the kernel
//! (sendfile(2)). Whoever is slow costs one row of a table, and not for long:
//!
//! | limit | |
//! |---|---|
//! | [`HEAD_TIME`] | from the first byte of a request to its last |
//! | [`IDLE_TIME`] | between requests |
//! | [`PROGRESS_TIME`], [`PROGRESS`] | at least so many bytes of an answer are taken in each such time |
//! | [`CONNECTIONS`], [`PER_CLIENT`] | at once, of all and of one address |

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::request::{self, Head, LONGEST_HEAD};
use super::route::{Answer, Body, answer};
use crate::deploy::pxe::board::{Board, Tone};
use crate::deploy::pxe::content::Content;
use crate::deploy::pxe::site::{Node, Site};

/// A request's head and body must be there within this.
pub const HEAD_TIME: Duration = Duration::from_secs(10);
/// A connection without a request is closed after this.
pub const IDLE_TIME: Duration = Duration::from_secs(15);
/// How often an answer's progress is looked at.
pub const PROGRESS_TIME: Duration = Duration::from_secs(30);
/// Bytes that a client must take within [`PROGRESS_TIME`]: 2 KiB a second, less than a modem.
pub const PROGRESS: u64 = 64 * 1024;
/// Connections at once.
pub const CONNECTIONS: usize = 4096;
/// Connections at once of one address.
pub const PER_CLIENT: usize = 32;

/// Bytes that one connection is given before the others have their turn.
const TURN: usize = 1 << 20;
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// The key of the listening socket; connections count from 1.
const LISTENER: u64 = 0;
/// Connections taken before others have their turn.
const BURST: usize = 64;

/// Connections by address, of all threads.
#[derive(Debug, Default)]
pub struct Clients(Mutex<HashMap<Ipv4Addr, usize>>);

impl Clients {
    /// Counts a connection.
    ///
    /// # Errors
    /// The status and the text for one that is too many.
    fn enter(&self, client: Ipv4Addr) -> Result<(), (u16, &'static str)> {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.values().sum::<usize>() >= CONNECTIONS {
            return Err((503, "the server has too many connections, try again"));
        }
        let count = clients.entry(client).or_default();
        if *count >= PER_CLIENT {
            return Err((429, "this client has too many connections"));
        }
        *count += 1;
        Ok(())
    }

    fn leave(&self, client: Ipv4Addr) {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&client);
            }
        }
    }
}

/// What is still to be sent of an answer.
struct Sending<'a> {
    bytes: Vec<u8>,
    at: usize,
    content: Option<(&'a Content, Range<u64>)>,
    node: Option<&'a Node>,
    keep: bool,
}

struct Connection<'a> {
    stream: TcpStream,
    peer: Ipv4Addr,
    input: Vec<u8>,
    /// The head of a request whose body is not all there.
    head: Option<Head>,
    sending: Option<Sending<'a>>,
    /// The client has said all that it will say.
    ended: bool,
    /// When it is closed unless something happens.
    deadline: Instant,
    /// Bytes sent since the progress was last looked at.
    moved: u64,
    writes: bool,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Closes,
}

struct Server<'a> {
    site: &'a Site,
    board: &'a Board,
    clients: &'a Clients,
    poll: OwnedFd,
    connections: BTreeMap<u64, Connection<'a>>,
    next: u64,
}

/// Serves connections of `listener` until `stop`. Several threads may do so with the same listener and the same `clients`.
///
/// # Errors
/// The kernel refuses to watch the socket.
pub fn serve(
    site: &Site,
    board: &Board,
    clients: &Clients,
    listener: &TcpListener,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let flags = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
    epoll::add(&poll, listener, epoll::EventData::new_u64(LISTENER), flags)?;
    let mut server = Server { site, board, clients, poll, connections: BTreeMap::new(), next: 1 };
    let mut events = Vec::with_capacity(512);
    let mut looked = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        events.clear();
        if epoll::wait(&server.poll, spare_capacity(&mut events), Some(&TICK)).is_err() {
            continue;
        }
        for event in &events {
            match event.data.u64() {
                LISTENER => server.accept(listener),
                key => server.turn(key),
            }
        }
        let now = Instant::now();
        if now.duration_since(looked) >= Duration::from_millis(200) {
            looked = now;
            server.times(now);
        }
    }
    Ok(())
}

impl<'a> Server<'a> {
    fn accept(&mut self, listener: &TcpListener) {
        for _ in 0..BURST {
            let (stream, peer) = match listener.accept() {
                Ok((stream, SocketAddr::V4(peer))) => (stream, *peer.ip()),
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of files, most likely: those that are open end, and then this goes on.
                    tracing::debug!(%error, "accept");
                    std::thread::sleep(Duration::from_millis(10));
                    return;
                }
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if let Err((status, text)) = self.clients.enter(peer) {
                let mut stream = stream;
                let bytes = head_bytes(&Answer::refusal(status, text), text.len() as u64 + 1, false);
                // One try: whoever comes too often is owed no more.
                let _ = stream.write(&[&bytes[..], text.as_bytes(), b"\n"].concat());
                continue;
            }
            let _ = stream.set_nodelay(true);
            let key = self.next;
            self.next += 1;
            let watched =
                epoll::add(&self.poll, &stream, epoll::EventData::new_u64(key), epoll::EventFlags::IN);
            if watched.is_err() {
                self.clients.leave(peer);
                continue;
            }
            let connection = Connection {
                stream,
                peer,
                input: Vec::new(),
                head: None,
                sending: None,
                ended: false,
                deadline: Instant::now() + IDLE_TIME,
                moved: 0,
                writes: false,
            };
            self.connections.insert(key, connection);
            self.turn(key);
        }
    }

    fn turn(&mut self, key: u64) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if connection.turn(self.site, self.board) == Fate::Closes {
            self.close(key);
            return;
        }
        let writes = connection.sending.is_some();
        if writes != connection.writes {
            connection.writes = writes;
            // While an answer is sent nothing is read: a client that only asks fills no memory.
            let flags = if writes { epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
            let data = epoll::EventData::new_u64(key);
            if epoll::modify(&self.poll, &connection.stream, data, flags).is_err() {
                self.close(key);
            }
        }
    }

    fn close(&mut self, key: u64) {
        if let Some(connection) = self.connections.remove(&key) {
            self.clients.leave(connection.peer);
        }
    }

    fn times(&mut self, now: Instant) {
        let mut late = Vec::new();
        for (key, connection) in &mut self.connections {
            if now < connection.deadline {
                continue;
            }
            if connection.sending.is_some() && connection.moved >= PROGRESS {
                connection.moved = 0;
                connection.deadline = now + PROGRESS_TIME;
                continue;
            }
            late.push(*key);
            if let Some(node) = connection.sending.as_ref().and_then(|sending| sending.node) {
                let text = format!(
                    "{} at {} took too little in {PROGRESS_TIME:?}: its transfer was ended",
                    node.name, connection.peer
                );
                self.board.lock().note("lost", Tone::Notice, Some(&node.name), None, text);
            }
        }
        late.into_iter().for_each(|key| self.close(key));
    }
}

impl<'a> Connection<'a> {
    /// Does what can be done without waiting.
    fn turn(&mut self, site: &'a Site, board: &Board) -> Fate {
        loop {
            if self.sending.is_some() {
                match self.send() {
                    Ok(true) => {}
                    Ok(false) => return Fate::Stays,
                    Err(_) => return Fate::Closes,
                }
                let keep = self.sending.take().is_some_and(|sending| sending.keep);
                if !keep {
                    return self.farewell();
                }
                let now = Instant::now();
                self.deadline = now + if self.input.is_empty() { IDLE_TIME } else { HEAD_TIME };
            }
            // What was pipelined may be a whole request already.
            match self.next(site, board) {
                Some(sending) => self.sending = Some(sending),
                None if self.ended => return Fate::Closes,
                None => match self.receive() {
                    Ok(true) => {}
                    Ok(false) => return Fate::Stays,
                    Err(_) => return Fate::Closes,
                },
            }
            if self.sending.is_some() {
                (self.moved, self.deadline) = (0, Instant::now() + PROGRESS_TIME);
            }
        }
    }

    /// Closes our half first, and reads what is there: closing with bytes unread would reset the connection, and the client might lose the
    /// end of the answer (RFC 9112, 9.6).
    fn farewell(&mut self) -> Fate {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        let mut sink = [0; 4096];
        for _ in 0..16 {
            match self.stream.read(&mut sink) {
                Ok(n) if n > 0 => {}
                _ => break,
            }
        }
        Fate::Closes
    }

    /// Reads what came. False when there is nothing for now.
    fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 8192];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(true);
                }
                Ok(n) => {
                    if self.input.is_empty() && self.head.is_none() {
                        self.deadline = Instant::now() + HEAD_TIME;
                    }
                    self.input.extend_from_slice(&buffer[..n]);
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The answer to the next request, if all of it is there.
    fn next(&mut self, site: &'a Site, board: &Board) -> Option<Sending<'a>> {
        if self.head.is_none() {
            // Empty lines before a request are let pass (RFC 9112, 2.2); httparse does.
            match request::parse(&self.input) {
                Ok(None) => return None,
                Ok(Some((head, size))) => {
                    self.input.drain(..size);
                    if head.expects && self.input.is_empty() && head.length > 0 {
                        // Without room for it the client sends its body after a while all the same.
                        let _ = self.stream.write(b"HTTP/1.1 100 Continue\r\n\r\n");
                    }
                    self.head = Some(head);
                }
                Err((status, text)) => {
                    self.input.clear();
                    return Some(whole(Answer::refusal(status, text), false, false));
                }
            }
        }
        let length = usize::try_from(self.head.as_ref()?.length).ok()?;
        if self.input.len() < length {
            return None;
        }
        let head = self.head.take()?;
        let body: Vec<u8> = self.input.drain(..length).collect();
        if self.input.capacity() > 4 * LONGEST_HEAD {
            self.input.shrink_to(LONGEST_HEAD);
        }
        Some(whole(answer(site, board, self.peer, &head, &body), head.method == "HEAD", head.keep))
    }

    /// Sends as much as the client takes, up to a turn. True when all is sent.
    fn send(&mut self) -> io::Result<bool> {
        let Some(sending) = &mut self.sending else { return Ok(true) };
        while sending.at < sending.bytes.len() {
            match self.stream.write(&sending.bytes[sending.at..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    sending.at += n;
                    self.moved += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let Some((content, range)) = &mut sending.content else { return Ok(true) };
        let mut turn = TURN;
        while range.start < range.end {
            if turn == 0 {
                return Ok(false);
            }
            let piece = usize::try_from(range.end - range.start).unwrap_or(turn).min(turn);
            let mut at = content.offset + range.start;
            match rustix::fs::sendfile(&self.stream, &*content.file, Some(&mut at), piece) {
                // Somebody made the file shorter; what was promised cannot be sent any more.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    range.start += n as u64;
                    self.moved += n as u64;
                    turn -= n;
                    if let Some(node) = sending.node {
                        node.sent.fetch_add(n as u64, Ordering::Relaxed);
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

/// All that is to be sent of an answer; `bare` leaves out what follows the headers.
fn whole(answer: Answer<'_>, bare: bool, keep: bool) -> Sending<'_> {
    let length = match &answer.body {
        Body::Bytes(bytes) => bytes.len() as u64,
        Body::Content(_, range) => range.end - range.start,
    };
    let mut bytes = head_bytes(&answer, length, keep);
    let mut content = None;
    match answer.body {
        _ if bare => {}
        Body::Bytes(text) => bytes.extend(text),
        Body::Content(of, range) => content = Some((of, range)),
    }
    Sending { bytes, at: 0, content, node: answer.node, keep }
}

fn head_bytes(answer: &Answer<'_>, length: u64, keep: bool) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {} {}\r\nServer: kiln\r\n", answer.status, reason(answer.status));
    // An answer without content has no length either (RFC 9110, 8.6).
    if answer.status != 204 {
        text.push_str(&format!("Content-Length: {length}\r\n"));
    }
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(if keep { "Connection: keep-alive\r\n\r\n" } else { "Connection: close\r\n\r\n" });
    text.into_bytes()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        206 => "Partial Content",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "Error",
    }
}
