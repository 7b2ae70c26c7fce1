//! Everything random of a run, from its seed: the same seed gives the same faults at the same moments, on any machine.
//!
//! Each use has a stream of its own, named by what it is for. So a step that is added or a fault that is taken away leaves the
//! moments of the others as they were, and round 500 of a power cut step is the same whether 10 or 1000 rounds are run.

use std::time::Duration;

use super::spec::{Fault, Scenario, Span, When};
use crate::digest::Digest;

/// A stream of random numbers: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014). Not a secret,
/// and never to change: a seed in an old report must give the old run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream(u64);

impl Stream {
    /// The stream of `seed` for `what`.
    pub fn new(seed: u64, what: &str) -> Self {
        Stream(derive(seed, what))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number below `end`; 0 if that is 0. The bias of the multiplication is below 1/2^32 for the numbers used here.
    pub fn below(&mut self, end: u64) -> u64 {
        let product = u128::from(self.number()) * u128::from(end);
        u64::try_from(product >> 64).unwrap_or(0)
    }

    /// The next length of time below `end`, to the millisecond.
    pub fn time(&mut self, end: Span) -> Duration {
        Duration::from_millis(self.below(u64::try_from(end.duration().as_millis()).unwrap_or(u64::MAX)))
    }
}

/// A seed for `what` out of the run's: for disks that lose writes and cables that lose frames.
pub fn derive(seed: u64, what: &str) -> u64 {
    let digest = Digest::of(format!("kiln scenario {seed} {what}").as_bytes());
    digest.as_bytes().iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte))
}

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// So long after the nodes that are switched on in the beginning were all ready.
    At(Duration),
    /// When this step (an index of [`Scenario::steps`]) has passed.
    After(usize),
}

/// A fault that strikes once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Strike<'a> {
    /// When.
    pub moment: Moment,
    /// Which of the scenario's faults, from 0.
    pub index: usize,
    /// How many of it struck before.
    pub round: u32,
    /// What, and whom.
    pub fault: &'a Fault,
}

/// Every strike of every fault: those with a time in its order, then those after steps in the order of the steps.
pub fn strikes(scenario: &Scenario, seed: u64) -> Vec<Strike<'_>> {
    let mut strikes = Vec::new();
    for (index, fault) in scenario.faults.iter().enumerate() {
        let strike = |moment, round| Strike { moment, index, round, fault };
        match fault.when {
            When::At(span) => strikes.push(strike(Moment::At(span.duration()), 0)),
            When::After(step) => strikes.push(strike(Moment::After(step), 0)),
            When::Random { first, every, count } => {
                let mut stream = Stream::new(seed, &format!("fault {index}"));
                for round in 0..count {
                    let begin = first.duration() + every.duration().saturating_mul(round);
                    strikes.push(strike(Moment::At(begin + stream.time(every)), round));
                }
            }
        }
    }
    strikes.sort_by_key(|strike| (strike.moment, strike.index, strike.round));
    strikes
}

/// How long after the writing of `round` began on `node` the step `step` pulls its plug: below `within`.
pub fn cut(seed: u64, step: &str, node: &str, round: u32, within: Span) -> Duration {
    Stream::new(seed, &format!("cut {step} {node} {round}")).time(within)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn scenario() -> Scenario {
        let text = r#"
schema = 1
description = "x"
[node.a]
profile = "agent"
[[step]]
name = "s"
ready = true
[[fault]]
random = { first = "10s", every = "30s", count = 4 }
node = "a"
kind = "power_cut"
[[fault]]
after = "s"
node = "a"
kind = "reboot"
[[fault]]
at = "1s"
node = "a"
kind = "crash"
"#;
        Scenario::parse("x", "x.toml", text, &BTreeSet::new()).unwrap()
    }

    fn moments(seed: u64) -> Vec<Moment> {
        strikes(&scenario(), seed).iter().map(|s| s.moment).collect()
    }

    #[test]
    fn a_seed_gives_the_same_faults_forever_and_another_seed_gives_others() {
        insta::assert_snapshot!(format!("{:?}\n{:?}", moments(7), moments(8)), @r#"
        [At(1s), At(33.802s), At(59.83s), At(72.551s), At(124.287s), After(0)]
        [At(1s), At(16.753s), At(61.616s), At(85.668s), At(115.754s), After(0)]
        "#);
        let cuts: Vec<_> =
            [(7, 0), (7, 500), (8, 0)].map(|(s, round)| cut(s, "s", "a", round, Span::secs(5))).into();
        insta::assert_snapshot!(format!("{cuts:?} {}", derive(7, "disk a")), @r#"
        [4.033s, 88ms, 4.885s] 15540573448908625687
        "#);
        assert_ne!(cut(7, "s", "a", 500, Span::secs(5)), cut(7, "s", "a", 501, Span::secs(5)));
        assert_ne!(cut(7, "s", "a", 0, Span::secs(5)), cut(7, "s", "b", 0, Span::secs(5)));
    }

    #[test]
    fn one_random_fault_strikes_in_each_stretch() {
        for seed in 0..200 {
            let scenario = scenario();
            let strikes: Vec<_> = strikes(&scenario, seed).into_iter().filter(|s| s.index == 0).collect();
            for (round, strike) in strikes.iter().enumerate() {
                let begin = Duration::from_secs(10 + 30 * round as u64);
                let end = begin + Duration::from_secs(30);
                assert!(strike.moment >= Moment::At(begin) && strike.moment < Moment::At(end), "{strike:?}");
                assert_eq!(strike.round as usize, round);
            }
        }
    }

    #[test]
    fn numbers_below_an_end_are_spread_over_all_of_it() {
        let mut stream = Stream::new(1, "spread");
        let mut counts = [0u32; 10];
        (0..10_000).for_each(|_| counts[usize::try_from(stream.below(10)).unwrap()] += 1);
        assert!(counts.iter().all(|n| (800..1200).contains(n)), "{counts:?}");
        assert_eq!((stream.below(0), stream.below(1)), (0, 0));
    }

    #[test]
    fn the_generator_is_the_published_one() {
        // The first numbers of SplitMix64 from the state 1234567 (rosettacode.org, Pseudo-random numbers/Splitmix64).
        let mut stream = Stream(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| stream.number()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }
}
