//! Switches with real sockets and threads.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::PathBuf;

use super::*;

const SOON: Duration = Duration::from_secs(20);
const A: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0xa];
const B: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0xb];
const ALL: [u8; 6] = [0xff; 6];

fn frame(to: [u8; 6], from: [u8; 6], text: &str) -> Vec<u8> {
    [&to[..], &from, &[0x88, 0xb5], text.as_bytes()].concat()
}

/// A switch, a folder for its sockets, and a port to connect to.
struct Rig {
    switch: Switch,
    folder: tempfile::TempDir,
    path: PathBuf,
    port: PortId,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let switch = Switch::new("lan", 7).unwrap();
        let path = folder.path().join("server.sock");
        let port = switch.port("server", &path).unwrap();
        Rig { switch, folder, path, port }
    }

    /// Does what QEMU does.
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        assert!(self.switch.is_connected(self.port).unwrap());
        stream
    }
}

fn send(mut stream: &UnixStream, frame: &[u8]) {
    let mut bytes = Vec::new();
    frame::append(&mut bytes, frame);
    stream.write_all(&bytes).unwrap();
}

fn receive(mut stream: &UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame).unwrap();
    frame
}

#[test]
fn frames_pass_between_a_socket_and_a_tap_both_ways() {
    let rig = Rig::new();
    let node = rig.connect();
    let mut tap = rig.switch.tap("edge").unwrap();
    send(&node, &frame(ALL, A, "who is there"));
    assert_eq!(tap.receive(SOON).unwrap().unwrap(), frame(ALL, A, "who is there"));
    tap.send(&frame(A, B, "me")).unwrap();
    assert_eq!(receive(&node), frame(A, B, "me"));
    assert_eq!(tap.receive(Duration::ZERO).unwrap(), None);
    let counters = rig.switch.counters(rig.port).unwrap();
    assert_eq!((counters.from_node.frames, counters.from_node.bytes), (1, 26));
    assert_eq!((counters.to_node.frames, counters.to_node.bytes), (1, 16));
    assert_eq!((counters.connections, counters.refused), (1, 0));
    assert_eq!(rig.switch.find("edge").unwrap(), Some(tap.port()));
}

#[test]
fn frames_may_come_in_any_pieces_and_be_of_any_length() {
    let rig = Rig::new();
    let node = rig.connect();
    let mut tap = rig.switch.tap("edge").unwrap();
    let mut bytes = Vec::new();
    frame::append(&mut bytes, &frame(ALL, A, "byte by byte"));
    for byte in bytes {
        (&node).write_all(&[byte]).unwrap();
    }
    assert_eq!(tap.receive(SOON).unwrap().unwrap(), frame(ALL, A, "byte by byte"));
    for length in [14, 1514, 9018, 65_550, MAX_FRAME] {
        let mut long = frame(ALL, A, "");
        long.extend((long.len()..length).map(|n| n as u8));
        send(&node, &long);
        assert!(tap.receive(SOON).unwrap().unwrap() == long, "{length}");
    }
    assert_eq!(tap.send(&[0xff; MAX_FRAME + 1]).unwrap_err().kind, Kind::Internal);
}

#[test]
fn a_node_may_vanish_and_come_back_and_the_cable_stays_as_it_was() {
    let rig = Rig::new();
    let mut tap = rig.switch.tap("edge").unwrap();
    rig.switch.set(rig.port, Direction::ToNode, Conditions::CUT).unwrap();
    for round in 1..=20 {
        let node = rig.connect();
        (&node).write_all(&[0, 0, 0, 99, 1, 2, 3]).unwrap();
        drop(node);
        assert!(!rig.switch.is_connected(rig.port).unwrap());
        tap.send(&frame(A, B, "into the void")).unwrap();
        let node = rig.connect();
        send(&node, &frame(ALL, A, "again"));
        assert_eq!(tap.receive(SOON).unwrap().unwrap(), frame(ALL, A, "again"));
        assert_eq!(rig.switch.counters(rig.port).unwrap().connections, 2 * round);
    }
    assert!(rig.switch.conditions(rig.port, Direction::ToNode).unwrap().cut);
    assert!(!rig.switch.conditions(rig.port, Direction::FromNode).unwrap().cut);
}

#[test]
fn a_second_connection_replaces_the_first() {
    let rig = Rig::new();
    let mut tap = rig.switch.tap("edge").unwrap();
    let first = rig.connect();
    // Half a frame must not be taken for the start of the second one's first.
    (&first).write_all(&[0, 0, 0, 99, 1, 2, 3]).unwrap();
    let second = rig.connect();
    send(&second, &frame(ALL, A, "from the second"));
    assert_eq!(tap.receive(SOON).unwrap().unwrap(), frame(ALL, A, "from the second"));
    assert_eq!((&first).read(&mut [0; 8]).unwrap(), 0, "the first was closed");
    tap.send(&frame(ALL, B, "to the second")).unwrap();
    assert_eq!(receive(&second), frame(ALL, B, "to the second"));
    // Two that come together: the later one stays.
    let (_third, fourth) = (UnixStream::connect(&rig.path).unwrap(), rig.connect());
    tap.send(&frame(ALL, B, "to the fourth")).unwrap();
    assert_eq!(receive(&fourth), frame(ALL, B, "to the fourth"));
}

#[test]
fn a_hostile_length_closes_that_connection_alone() {
    let rig = Rig::new();
    let mut tap = rig.switch.tap("edge").unwrap();
    let other_path = rig.folder.path().join("other.sock");
    rig.switch.port("other", &other_path).unwrap();
    let other = UnixStream::connect(&other_path).unwrap();
    other.set_read_timeout(Some(SOON)).unwrap();
    for (round, length) in [u32::MAX, MAX_FRAME as u32 + 1, 1 << 31].into_iter().enumerate() {
        let node = rig.connect();
        send(&node, &frame(ALL, A, "good"));
        (&node).write_all(&length.to_be_bytes()).unwrap();
        // What was sent before counts, what comes after does not.
        assert_eq!(tap.receive(SOON).unwrap().unwrap(), frame(ALL, A, "good"));
        assert_eq!(receive(&other), frame(ALL, A, "good"));
        let mut rest = Vec::new();
        // Closed with bytes unread or without: an end or a reset.
        let _ = (&node).read_to_end(&mut rest);
        assert!(rest.is_empty());
        assert!(!rig.switch.is_connected(rig.port).unwrap());
        assert_eq!(rig.switch.counters(rig.port).unwrap().refused, round as u64 + 1);
    }
    tap.send(&frame(ALL, B, "all is well")).unwrap();
    assert_eq!(receive(&other), frame(ALL, B, "all is well"));
    send(&rig.connect(), &frame(ALL, A, "here again"));
    assert_eq!(tap.receive(SOON).unwrap().unwrap(), frame(ALL, A, "here again"));
}

#[test]
fn a_node_that_does_not_read_keeps_nobody_waiting_and_reads_on_later() {
    let rig = Rig::new();
    let stopped = rig.connect();
    let (mut from, mut to) = (rig.switch.tap("from").unwrap(), rig.switch.tap("to").unwrap());
    let numbered = |number: u32| {
        let mut frame = frame(ALL, B, "");
        frame.extend(number.to_be_bytes());
        frame.resize(9000, 0);
        frame
    };
    // 9 MB, much more than its queue and the kernel's.
    for number in 0..1000 {
        from.send(&numbered(number)).unwrap();
        assert!(to.receive(SOON).unwrap().unwrap() == numbered(number), "frame {number}");
    }
    let counters = rig.switch.counters(rig.port).unwrap().to_node;
    assert_eq!(counters.frames + counters.dropped.queue, 1000);
    assert!(counters.dropped.queue > 0 && counters.frames > 100, "{counters:?}");
    // The queue drops the newest: what it kept is the beginning, whole and in order.
    for number in 0..u32::try_from(counters.frames).unwrap() {
        assert!(receive(&stopped) == numbered(number), "frame {number}");
    }
    from.send(&numbered(5000)).unwrap();
    assert!(receive(&stopped) == numbered(5000));
}

#[test]
fn a_delayed_frame_is_not_early_and_conditions_change_while_it_is_under_way() {
    let rig = Rig::new();
    let (mut from, mut to) = (rig.switch.tap("from").unwrap(), rig.switch.tap("to").unwrap());
    let delay = Duration::from_millis(30);
    let late = Conditions { delay, ..Conditions::default() };
    rig.switch.set(to.port(), Direction::ToNode, late).unwrap();
    let start = Instant::now();
    from.send(&frame(ALL, A, "late")).unwrap();
    assert_eq!(to.receive(SOON).unwrap().unwrap(), frame(ALL, A, "late"));
    assert!(start.elapsed() >= delay);
    // An hour, unless the cable is healed.
    let never = Conditions { delay: Conditions::MAX_DELAY, ..Conditions::default() };
    rig.switch.set(to.port(), Direction::ToNode, never).unwrap();
    from.send(&frame(ALL, A, "healed")).unwrap();
    rig.switch.set(to.port(), Direction::ToNode, Conditions::default()).unwrap();
    assert_eq!(to.receive(SOON).unwrap().unwrap(), frame(ALL, A, "healed"));
}

#[test]
fn two_runs_with_the_same_seed_lose_the_same_frames() {
    let run = |seed| {
        let switch = Switch::new("lan", seed).unwrap();
        let (mut from, mut to) = (switch.tap("from").unwrap(), switch.tap("to").unwrap());
        let bad = Conditions { loss: 0.3, duplicate: 0.2, ..Conditions::default() };
        switch.set(from.port(), Direction::FromNode, bad).unwrap();
        for number in 0..200 {
            from.send(&frame(ALL, A, &format!("{number}"))).unwrap();
        }
        switch.set(from.port(), Direction::FromNode, Conditions::default()).unwrap();
        from.send(&frame(ALL, A, "end")).unwrap();
        let mut got = Vec::new();
        while got.last() != Some(&frame(ALL, A, "end")) {
            got.push(to.receive(SOON).unwrap().unwrap());
        }
        got
    };
    let first = run(1);
    let mut once = first.clone();
    once.dedup();
    assert!(once.len() < 180 && once.len() < first.len(), "{} of {}", once.len(), first.len());
    assert_eq!(run(1), first);
    assert_ne!(run(2), first);
}

#[test]
fn a_capture_is_whole_while_the_switch_still_runs() {
    let rig = Rig::new();
    let mut tap = rig.switch.tap("edge").unwrap();
    let node = rig.connect();
    let file = rig.folder.path().join("server.pcapng");
    rig.switch.capture(rig.port, &file).unwrap();
    let empty = fs_err::read(&file).unwrap();
    assert_eq!(empty[..4], 0x0a0d_0d0a_u32.to_le_bytes());
    rig.switch.set(rig.port, Direction::FromNode, Conditions::CUT).unwrap();
    send(&node, &frame(ALL, A, "cut off, but sent"));
    tap.send(&frame(ALL, B, "received")).unwrap();
    receive(&node);
    let counters = rig.switch.counters(rig.port).unwrap();
    assert_eq!((counters.uncaptured, counters.from_node.dropped.cut), (0, 1));
    let bytes = fs_err::read(&file).unwrap();
    for text in ["cut off, but sent", "received"] {
        assert!(bytes.windows(text.len()).any(|part| part == text.as_bytes()), "{text}");
    }
    let failure = rig.switch.capture(rig.port, &rig.folder.path().join("no/file")).unwrap_err();
    assert_eq!(failure.kind, Kind::Store);
}

#[test]
fn what_is_impossible_is_refused_with_the_reason() {
    let rig = Rig::new();
    let fail = |result: Result<PortId, Failure>| result.unwrap_err();
    let long = rig.folder.path().join("x".repeat(120));
    let failure = fail(rig.switch.port("long", &long));
    assert_eq!(failure.kind, Kind::Input);
    assert!(failure.hints()[0].contains("TMPDIR"));
    let failure = fail(rig.switch.port("other", &rig.path));
    assert!(failure.to_string().contains("server.sock"), "{failure}");
    let taken = rig.folder.path().join("taken.sock");
    let failure = fail(rig.switch.port("server", &taken));
    assert!(failure.to_string().contains("two ports of a network are called server"), "{failure}");
    assert!(!taken.exists());
    let lossy = Conditions { loss: 2.0, ..Conditions::default() };
    assert_eq!(rig.switch.set(rig.port, Direction::ToNode, lossy).unwrap_err().kind, Kind::Input);
    // Nothing of it did any harm.
    drop(rig.connect());
}

#[test]
fn nothing_is_left_of_a_dropped_switch() {
    let rig = Rig::new();
    let node = rig.connect();
    let mut tap = rig.switch.tap("edge").unwrap();
    node.shutdown(Shutdown::Write).unwrap();
    let Rig { switch, path, folder, .. } = rig;
    // The join in there says that the thread has ended.
    drop(switch);
    assert!(!path.exists());
    assert_eq!(tap.receive(SOON).unwrap_err().kind, Kind::Internal);
    assert!(tap.send(&frame(ALL, B, "anybody?")).is_err());
    assert_eq!((&node).read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
}
