use std::time::Duration;

use super::super::table::AGEING;
use super::*;
use proptest::prelude::*;

const A: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0xa];
const B: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0xb];
const C: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0xc];
const ALL: [u8; 6] = [0xff; 6];
const IP: [u8; 2] = [0x08, 0x00];

/// Three ports that are up, and what time it is.
struct Segment {
    fabric: Fabric,
    now: Instant,
}

impl Segment {
    fn new() -> Self {
        let mut fabric = Fabric::new("lan", 7);
        for name in ["a", "b", "c"] {
            let port = fabric.add(name);
            fabric.up(port);
        }
        Segment { fabric, now: Instant::now() }
    }

    /// The node at `port` sends; gives the ports where the frame came out, unchanged.
    fn send(&mut self, port: usize, frame: &[u8]) -> Vec<usize> {
        self.fabric.receive(port, frame, self.now);
        self.arrivals()
            .into_iter()
            .map(|(port, found)| {
                assert!(found == frame, "changed on the way");
                port
            })
            .collect()
    }

    fn arrivals(&mut self) -> Vec<(usize, Vec<u8>)> {
        let mut found = Vec::new();
        for (index, port) in self.fabric.ports.iter_mut().enumerate() {
            while let Some(frame) = frame::first(port.outbox.pending()).unwrap() {
                found.push((index, frame.to_vec()));
                port.outbox.take(PREFIX + frame.len());
            }
        }
        found
    }

    fn set(&mut self, port: usize, direction: Direction, conditions: Conditions) {
        self.fabric.set(port, direction, conditions, self.now);
    }

    fn wait(&mut self, time: Duration) -> Option<Instant> {
        self.now += time;
        self.fabric.advance(self.now)
    }
}

fn frame(to: [u8; 6], from: [u8; 6], tail: &[u8]) -> Vec<u8> {
    [&to[..], &from, tail, &[0x5a; 46]].concat()
}

#[test]
fn unknown_receivers_are_flooded_and_known_ones_are_not() {
    let mut lan = Segment::new();
    assert_eq!(lan.send(0, &frame(B, A, &IP)), [1, 2]);
    assert_eq!(lan.send(1, &frame(A, B, &IP)), [0]);
    assert_eq!(lan.send(0, &frame(B, A, &IP)), [1]);
    assert_eq!(lan.send(0, &frame(A, B, &IP)), [0; 0], "the receiver is where it came from");
}

#[test]
fn a_silent_address_is_forgotten() {
    let mut lan = Segment::new();
    lan.send(1, &frame(ALL, B, &IP));
    lan.wait(AGEING - Duration::from_nanos(1));
    assert_eq!(lan.send(0, &frame(B, A, &IP)), [1]);
    lan.wait(Duration::from_nanos(1));
    assert_eq!(lan.send(0, &frame(B, A, &IP)), [1, 2]);
}

#[test]
fn broadcast_and_multicast_reach_all_others() {
    let mut lan = Segment::new();
    for to in [ALL, [1, 0, 0x5e, 0, 0, 0xfb], [0x33, 0x33, 0, 0, 0, 1]] {
        assert_eq!(lan.send(2, &frame(to, C, &IP)), [0, 1]);
    }
}

#[test]
fn a_gratuitous_arp_moves_an_address() {
    let mut lan = Segment::new();
    lan.send(1, &frame(ALL, B, &IP));
    assert_eq!(lan.send(0, &frame(B, A, &IP)), [1]);
    let arp =
        [&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1], &B[..], &[10, 77, 0, 99], &[0; 6], &[10, 77, 0, 99]].concat();
    assert_eq!(lan.send(2, &frame(ALL, B, &arp)), [0, 1]);
    assert_eq!(lan.send(0, &frame(B, A, &IP)), [2]);
}

#[test]
fn vlans_pass_with_their_tags_and_learn_apart() {
    let mut lan = Segment::new();
    let tagged = |to, from, vlan: u8| frame(to, from, &[0x81, 0x00, 0x60, vlan, 0x08, 0x00]);
    lan.send(1, &tagged(ALL, B, 5));
    assert_eq!(lan.send(0, &tagged(B, A, 5)), [1]);
    assert_eq!(lan.send(0, &tagged(B, A, 6)), [1, 2]);
    assert_eq!(lan.send(0, &frame(B, A, &IP)), [1, 2]);
    assert_eq!(lan.send(0, &frame(B, A, &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 9])), [1], "the outer tag counts");
}

#[test]
fn jumbo_frames_and_the_longest_ones_pass() {
    let mut lan = Segment::new();
    for length in [14, 60, 1514, 9018, 65_550, frame::MAX_FRAME] {
        let mut long = frame(ALL, A, &IP);
        long.resize(length, 0x77);
        assert_eq!(lan.send(0, &long), [1, 2], "{length}");
    }
}

#[test]
fn frames_for_the_neighbour_and_no_frames_at_all_end_here() {
    let mut lan = Segment::new();
    let lldp = frame([0x01, 0x80, 0xc2, 0, 0, 0x0e], A, &[0x88, 0xcc]);
    assert_eq!(lan.send(0, &lldp), [0; 0]);
    assert_eq!(lan.send(0, &frame([0x01, 0x80, 0xc2, 0, 0, 0x10], A, &IP)), [1, 2]);
    for broken in [&[][..], &[0xff; 13], &frame(B, ALL, &IP)] {
        assert_eq!(lan.send(0, broken), [0; 0]);
    }
    let dropped = lan.fabric.ports[0].counters.from_node.dropped;
    assert_eq!(dropped, Drops { malformed: 3, link_local: 1, ..Drops::default() });
}

#[test]
fn a_cut_cable_passes_nothing_and_one_cut_one_way_passes_the_other_way() {
    let mut lan = Segment::new();
    lan.send(1, &frame(ALL, B, &IP));
    lan.set(0, Direction::FromNode, Conditions::CUT);
    assert_eq!(lan.send(0, &frame(B, A, &IP)), [0; 0]);
    assert_eq!(lan.send(1, &frame(A, B, &IP)), [0, 2]);
    lan.set(0, Direction::ToNode, Conditions::CUT);
    assert_eq!(lan.send(1, &frame(A, B, &IP)), [2]);
    lan.set(0, Direction::FromNode, Conditions::default());
    assert_eq!(lan.send(0, &frame(B, A, &IP)), [1]);
    let counters = lan.fabric.ports[0].counters;
    assert_eq!((counters.from_node.dropped.cut, counters.to_node.dropped.cut), (1, 1));
    assert_eq!((counters.from_node.frames, counters.to_node.frames), (2, 2));
}

#[test]
fn delays_of_both_cables_add_up_and_the_order_stays() {
    let mut lan = Segment::new();
    let millis = Duration::from_millis;
    lan.set(0, Direction::FromNode, Conditions { delay: millis(3), ..Conditions::default() });
    lan.set(
        1,
        Direction::ToNode,
        Conditions { delay: millis(4), jitter: millis(4), ..Conditions::default() },
    );
    for number in 0..50 {
        assert!(lan.send(0, &frame(ALL, A, &[0x08, 0x00, number])).is_empty());
    }
    assert_eq!(lan.wait(millis(3) - Duration::from_nanos(1)), Some(lan.now + Duration::from_nanos(1)));
    assert!(lan.arrivals().is_empty());
    lan.wait(Duration::from_nanos(1));
    assert_eq!(lan.arrivals().iter().filter(|(port, _)| *port == 2).count(), 50);
    lan.wait(millis(8));
    let numbers: Vec<u8> = lan.arrivals().into_iter().map(|(_, frame)| frame[14]).collect();
    assert_eq!(numbers, (0..50).collect::<Vec<u8>>());
    assert_eq!(lan.wait(millis(0)), None);
}

#[test]
fn a_full_queue_drops_and_counts_while_others_get_all() {
    let mut lan = Segment::new();
    let big = {
        let mut big = frame(ALL, A, &IP);
        big.resize(9000, 1);
        big
    };
    let mut got = 0;
    for _ in 0..300 {
        lan.fabric.receive(0, &big, lan.now);
        // The node at port 2 reads, the one at port 1 does not.
        let waiting = lan.fabric.ports[2].outbox.pending().len();
        got += waiting / (PREFIX + 9000);
        lan.fabric.ports[2].outbox.take(waiting);
    }
    let (slow, quick) = (&lan.fabric.ports[1], &lan.fabric.ports[2]);
    assert_eq!((got, quick.counters.to_node.frames, quick.counters.to_node.dropped.queue), (300, 300, 0));
    let fits = QUEUE / (PREFIX + 9000);
    assert_eq!(slow.counters.to_node.frames, fits as u64);
    assert_eq!(slow.counters.to_node.dropped, Drops { queue: 300 - fits as u64, ..Drops::default() });
    assert_eq!(slow.outbox.pending().len(), fits * (PREFIX + 9000));
}

#[test]
fn a_queue_that_never_runs_empty_stays_small() {
    let mut outbox = Outbox::default();
    for _ in 0..5000 {
        while outbox.push(&[3; 1500]) {}
        outbox.take(1504 * 300);
    }
    assert!(outbox.bytes.capacity() <= 2 * QUEUE, "{}", outbox.bytes.capacity());
    assert!(
        outbox.pending().len().is_multiple_of(1504) && outbox.pending().starts_with(&[0, 0, 0x05, 0xdc, 3])
    );
}

#[test]
fn a_node_that_left_gets_nothing_and_its_address_may_be_anywhere() {
    let mut lan = Segment::new();
    lan.send(1, &frame(ALL, B, &IP));
    lan.set(1, Direction::ToNode, Conditions { delay: Duration::from_secs(1), ..Conditions::default() });
    lan.fabric.receive(0, &frame(B, A, &IP), lan.now);
    lan.fabric.down(1);
    assert_eq!(lan.send(0, &frame(B, A, &IP)), [2]);
    lan.wait(Duration::from_secs(1));
    assert!(lan.arrivals().is_empty());
    assert_eq!(lan.fabric.ports[1].counters.to_node.dropped, Drops { down: 1, ..Drops::default() });
    lan.fabric.up(1);
    assert!(!lan.fabric.conditions(1, Direction::ToNode).delay.is_zero(), "the cable is as it was");
}

/// A switch in its simplest form: all that was ever heard.
#[derive(Default)]
struct Model(Vec<(u16, u8, usize, Instant)>);

impl Model {
    fn send(&mut self, port: usize, to: u8, from: u8, vlan: u16, now: Instant) -> Vec<usize> {
        self.0.push((vlan, from, port, now));
        let last = self.0.iter().rev().find(|(v, mac, ..)| (*v, *mac) == (vlan, to));
        let others = (0..3).filter(|p| *p != port);
        match last {
            Some((.., home, seen)) if now - *seen < AGEING => others.filter(|p| p == home).collect(),
            _ => others.collect(),
        }
    }
}

proptest! {
    #[test]
    fn frames_go_where_the_simplest_switch_sends_them(
        steps in prop::collection::vec((0..3_usize, 0..4_u8, 0..4_u8, 0..3_u16, 0..200_u64), 1..60)
    ) {
        let (mut lan, mut model) = (Segment::new(), Model::default());
        for (port, to, from, vlan, seconds) in steps {
            lan.wait(Duration::from_secs(seconds));
            let mac = |number: u8| [0x52, 0x54, 0, 0, 1, number];
            let tag = if vlan == 0 { vec![0x08, 0x00] } else { vec![0x81, 0x00, 0x20, vlan as u8, 0x08, 0x00] };
            let expected = model.send(port, to, from, vlan, lan.now);
            prop_assert_eq!(lan.send(port, &frame(mac(to), mac(from), &tag)), expected);
        }
    }
}
