use super::*;
use proptest::prelude::*;

fn link(conditions: Conditions) -> Link {
    let mut link = Link::new(7, "lan\0agent-1\0to node");
    link.set(conditions, Instant::now(), &mut Drops::default());
    link
}

/// Sends `count` numbered frames at once; gives the numbers that came out at once.
fn send(link: &mut Link, count: u32, drops: &mut Drops) -> Vec<u32> {
    let now = Instant::now();
    (0..count).flat_map(|n| vec![n; link.enter(&n.to_be_bytes(), now, drops)]).collect()
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn the_generator_is_the_published_one() {
    // The first values for the state 1234567, as other implementations give them.
    let mut generator = SplitMix64(1_234_567);
    let first: Vec<u64> = (0..3).map(|_| generator.next()).collect();
    assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
}

#[test]
fn the_same_seed_loses_the_same_frames_and_another_name_or_seed_loses_others() {
    let lossy = Conditions { loss: 0.1, ..Conditions::default() };
    let mut drops = Drops::default();
    let passed = send(&mut link(lossy), 10_000, &mut drops);
    let lost: Vec<u32> = (0..10_000).filter(|n| passed.binary_search(n).is_err()).collect();
    // Fixed for ever: a replay of a run depends on it.
    assert_eq!((lost.len(), &lost[..6]), (1008, &[3, 5, 6, 12, 21, 27][..]));
    assert_eq!(drops, Drops { loss: lost.len() as u64, ..Drops::default() });
    assert!((900..1100).contains(&lost.len()), "and it is near the share asked for");
    assert_eq!(send(&mut link(lossy), 10_000, &mut drops), passed);
    for (seed, label) in
        [(8, "lan\0agent-1\0to node"), (7, "lan\0agent-1\0from node"), (7, "lan\0agent-2\0to node")]
    {
        let mut other = Link::new(seed, label);
        other.set(lossy, Instant::now(), &mut drops);
        assert_ne!(send(&mut other, 10_000, &mut drops), passed, "{seed} {label}");
    }
}

#[test]
fn what_is_lost_does_not_depend_on_other_conditions_or_on_frames_before_them() {
    let mut drops = Drops::default();
    let passed = send(&mut link(Conditions { loss: 0.2, ..Conditions::default() }), 500, &mut drops);
    let mut other = link(Conditions { duplicate: 0.5, ..Conditions::default() });
    send(&mut other, 33, &mut drops);
    other.set(Conditions { loss: 0.2, duplicate: 0.5, ..Conditions::default() }, Instant::now(), &mut drops);
    let mut twice = send(&mut other, 500, &mut drops);
    twice.dedup();
    assert_eq!(twice, passed);
}

#[test]
fn the_share_of_doubles_is_as_asked_for() {
    let mut drops = Drops::default();
    let doubled = |share: f64, drops: &mut Drops| {
        send(&mut link(Conditions { duplicate: share, ..Conditions::default() }), 1000, drops).len() - 1000
    };
    assert_eq!((doubled(0.0, &mut drops), doubled(1.0, &mut drops)), (0, 1000));
    assert!((200..300).contains(&doubled(0.25, &mut drops)));
    assert_eq!(drops.total(), 0);
}

#[test]
fn nothing_passes_a_cut_cable_and_what_was_under_way_is_lost() {
    let mut drops = Drops::default();
    let mut cable = link(Conditions { delay: millis(5), ..Conditions::default() });
    assert!(send(&mut cable, 3, &mut drops).is_empty());
    let now = Instant::now();
    cable.set(Conditions::CUT, now, &mut drops);
    assert_eq!((drops.cut, cable.next(), cable.arrived(now + millis(9))), (3, None, None));
    assert!(send(&mut cable, 2, &mut drops).is_empty());
    assert_eq!(drops, Drops { cut: 5, ..Drops::default() });
    cable.set(Conditions::default(), now, &mut drops);
    assert_eq!(send(&mut cable, 2, &mut drops), [0, 1]);
}

#[test]
fn a_delayed_frame_arrives_on_time_and_not_before() {
    let mut cable = link(Conditions { delay: millis(20), ..Conditions::default() });
    let now = Instant::now();
    assert_eq!(cable.enter(b"frame", now, &mut Drops::default()), 0);
    assert_eq!(cable.next(), Some(now + millis(20)));
    assert_eq!(cable.arrived(now + millis(20) - Duration::from_nanos(1)), None);
    assert_eq!(cable.arrived(now + millis(20)).as_deref(), Some(&b"frame"[..]));
    assert_eq!((cable.next(), cable.held_bytes), (None, 0));
}

#[test]
fn a_healed_cable_brings_late_frames_forward_and_none_overtakes_them() {
    let mut drops = Drops::default();
    let now = Instant::now();
    let mut cable = link(Conditions { delay: Conditions::MAX_DELAY, ..Conditions::default() });
    cable.enter(b"old", now, &mut drops);
    cable.set(Conditions::default(), now, &mut drops);
    assert_eq!(cable.enter(b"new", now, &mut drops), 0, "it must not overtake");
    let arrived: Vec<_> = std::iter::from_fn(|| cable.arrived(now)).collect();
    assert_eq!(arrived, [Box::from(&b"old"[..]), Box::from(&b"new"[..])]);
    assert_eq!(cable.enter(b"next", now, &mut drops), 1);
}

#[test]
fn a_rate_spaces_frames_and_drops_what_would_wait_too_long() {
    let mut drops = Drops::default();
    // 1250 bytes at 1 Mbit/s take 10 ms.
    let slow = Conditions { rate: Some(1_000_000), ..Conditions::default() };
    let mut cable = link(slow);
    let now = Instant::now();
    for _ in 0..20 {
        cable.enter(&[0; 1250], now, &mut drops);
    }
    let mut arrivals = Vec::new();
    while let Some(at) = cable.next() {
        arrivals.push(u64::try_from((at - now).as_millis()).unwrap());
        cable.arrived(at).unwrap();
    }
    // The last one waits for the 100 ms that are allowed.
    assert_eq!(arrivals, (1..=11).map(|n| n * 10).collect::<Vec<u64>>());
    assert_eq!(drops, Drops { queue: 9, ..Drops::default() });
    let later = now + Duration::from_secs(1);
    cable.enter(&[0; 125], later, &mut drops);
    assert_eq!(cable.next(), Some(later + millis(1)), "an idle wire takes it at once");
}

#[test]
fn setting_the_same_rate_again_does_not_empty_its_queue() {
    let mut drops = Drops::default();
    let slow = Conditions { rate: Some(1_000_000), ..Conditions::default() };
    let mut cable = link(slow);
    let now = Instant::now();
    for _ in 0..5 {
        cable.enter(&[0; 1250], now, &mut drops);
    }
    cable.set(Conditions { loss: 0.1, ..slow }, now, &mut drops);
    assert!(cable.arrived(now).is_none());
    assert_eq!(cable.held.back().map(|held| held.due), Some(now + millis(50)));
}

#[test]
fn jitter_is_around_the_delay() {
    let conditions = Conditions { delay: millis(20), jitter: millis(5), ..Conditions::default() };
    let mut cable = link(conditions);
    let travels: Vec<Duration> = (0..1000).map(|_| cable.travel()).collect();
    let (least, most) = (travels.iter().min().unwrap(), travels.iter().max().unwrap());
    assert!(*least >= millis(15) && *least < millis(16) && *most > millis(24) && *most <= millis(25));
    let mut wild = link(Conditions { delay: millis(1), jitter: millis(500), ..Conditions::default() });
    assert!((0..100).any(|_| wild.travel().is_zero()), "never under way for less than nothing");
}

#[test]
fn impossible_conditions_are_refused_with_the_bound() {
    let default = Conditions::default;
    for (conditions, word) in [
        (Conditions { loss: 1.5, ..default() }, "loss of 1.5"),
        (Conditions { loss: f64::NAN, ..default() }, "0 to 1"),
        (Conditions { duplicate: -0.1, ..default() }, "duplicate"),
        (Conditions { delay: Duration::MAX, ..default() }, "an hour"),
        (Conditions { rate: Some(0), ..default() }, "1000 bit/s"),
    ] {
        let failure = conditions.validate().unwrap_err();
        assert_eq!(failure.kind, Kind::Input);
        assert!(failure.to_string().contains(word), "{failure}");
    }
    Conditions { loss: 1.0, delay: Conditions::MAX_DELAY, rate: Some(u64::MAX), ..default() }
        .validate()
        .unwrap();
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let share = prop_oneof![Just(0.0), 0.0..=1.0];
    let time = || {
        prop_oneof![Just(0_u64), 0..50_000_000_u64, Just(3_600_000_000_000)].prop_map(Duration::from_nanos)
    };
    let rate = prop::option::of(prop_oneof![Conditions::MIN_RATE..10_000_000_000, Just(u64::MAX)]);
    (prop::bool::weighted(0.1), share.clone(), share, time(), time(), rate).prop_map(
        |(cut, loss, duplicate, delay, jitter, rate)| Conditions {
            cut,
            loss,
            duplicate,
            delay,
            jitter,
            rate,
        },
    )
}

proptest! {
    /// Whatever is set and sent: no frame appears, vanishes uncounted or overtakes, and memory has its bound.
    #[test]
    fn frames_are_conserved_in_order_and_within_bounds(
        steps in prop::collection::vec((prop::option::weighted(0.2, conditions()), 0..3_000_000_u64, 1..300_u32), 1..40),
        seed: u64,
    ) {
        let mut cable = Link::new(seed, "a");
        let mut drops = Drops::default();
        let (mut sent, mut number, mut now) = (0_u64, 0_u32, Instant::now());
        let mut out: Vec<u32> = Vec::new();
        for (change, nanos, count) in steps {
            if let Some(conditions) = change {
                conditions.validate().unwrap();
                cable.set(conditions, now, &mut drops);
            }
            now += Duration::from_nanos(nanos);
            while let Some(frame) = cable.arrived(now) {
                out.push(u32::from_be_bytes(*frame.first_chunk().unwrap()));
            }
            for _ in 0..count {
                let mut frame = vec![0; 64 * number as usize % 9000];
                frame.splice(0..0, number.to_be_bytes());
                for _ in 0..cable.enter(&frame, now, &mut drops) {
                    out.push(number);
                }
                number += 1;
                sent += 1;
            }
            prop_assert!(cable.held_bytes <= UNDER_WAY);
        }
        prop_assert!(out.is_sorted());
        let doubles = out.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64;
        let held = cable.held.len() as u64;
        let known = out.len() as u64 - doubles + drops.total() + held;
        // Of a frame that came twice one copy may be held or dropped, so up to that many are counted twice.
        prop_assert!(known >= sent && known <= 2 * sent, "{known} of {sent}");
        let last = cable.held.back().map(|held| held.due);
        if let Some(last) = last {
            while cable.arrived(last).is_some() {}
        }
        prop_assert_eq!((cable.held_bytes, cable.next()), (0, None));
    }
}
