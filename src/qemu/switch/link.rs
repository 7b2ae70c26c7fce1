//! One direction of one cable: what its conditions do to the frames on it.
//!
//! A frame meets the conditions in this order: cut, loss, duplicate, rate (it waits until those before it have left), delay and
//! jitter. Frames never overtake each other: a cable is no network of many ways, and a guest's TCP would take it for loss.
//!
//! Decisions come from generators that are seeded by the seed of the run, the names of segment and port, the direction and the
//! kind of decision, and a generator is asked only while its condition is set. So the same frames meet the same fate in each run,
//! whatever is set on other cables and whichever frames passed before.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Drops;
use super::frame::MAX_FRAME;
use crate::digest::Digest;
use crate::error::{Failure, Kind};

/// Bytes of frames that are under way in one direction of a cable at most, with [`OVERHEAD`]: 80 ms of 400 Mbit/s.
pub(super) const UNDER_WAY: usize = 4 << 20;

/// What a frame that is under way costs beyond its bytes.
const OVERHEAD: usize = size_of::<Held>() + 16;

/// The longest wait for a free wire; a frame that would wait longer is dropped, as by a port whose buffer is full.
pub(super) const QUEUE_TIME: Duration = Duration::from_millis(100);

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the switch to the node.
    ToNode,
    /// From the node to the switch.
    FromNode,
}

/// What a direction of a cable does to its frames. The default is a perfect cable.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Conditions {
    /// Nothing passes.
    pub cut: bool,
    /// The share of frames that is lost, 0 to 1.
    pub loss: f64,
    /// The share of frames that comes twice, 0 to 1.
    pub duplicate: f64,
    /// How long a frame is under way.
    pub delay: Duration,
    /// How much longer or shorter, evenly distributed; a frame is never under way for less than nothing.
    pub jitter: Duration,
    /// Bits per second of frames, headers included; `None` for no limit. Frames wait at most 100 ms for those before them.
    pub rate: Option<u64>,
}

impl Conditions {
    /// A cable that is cut.
    pub const CUT: Conditions = Conditions {
        cut: true,
        loss: 0.0,
        duplicate: 0.0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        rate: None,
    };
    /// The longest [`delay`](Self::delay) and [`jitter`](Self::jitter).
    pub const MAX_DELAY: Duration = Duration::from_secs(3600);
    /// The lowest [`rate`](Self::rate).
    pub const MIN_RATE: u64 = 1000;

    /// Refuses what no cable does.
    ///
    /// # Errors
    /// [`Kind::Input`], naming the value and its bounds.
    pub fn validate(&self) -> Result<(), Failure> {
        let refuse = |what: String| Err(Failure::new(Kind::Input, what));
        for (name, share) in [("loss", self.loss), ("duplicate", self.duplicate)] {
            if !(0.0..=1.0).contains(&share) {
                return refuse(format!("{name} of {share}: a share is 0 to 1"));
            }
        }
        for (name, time) in [("delay", self.delay), ("jitter", self.jitter)] {
            if time > Self::MAX_DELAY {
                return refuse(format!("{name} of {time:?}: a frame is under way for an hour at most"));
            }
        }
        match self.rate {
            Some(rate) if rate < Self::MIN_RATE => Err(Failure::new(
                Kind::Input,
                format!("rate of {rate} bit/s: the lowest is {} bit/s", Self::MIN_RATE),
            )
            .hint("cut the cable if nothing may pass")),
            _ => Ok(()),
        }
    }

    fn is_timed(&self) -> bool {
        !self.delay.is_zero() || !self.jitter.is_zero() || self.rate.is_some()
    }
}

/// A frame that is under way.
#[derive(Debug)]
struct Held {
    due: Instant,
    frame: Box<[u8]>,
}

/// One direction of a cable.
#[derive(Debug)]
pub(super) struct Link {
    conditions: Conditions,
    loss: SplitMix64,
    duplicate: SplitMix64,
    jitter: SplitMix64,
    /// When the last frame has left, with a rate.
    busy_until: Option<Instant>,
    /// Frames under way, the next to arrive first.
    held: VecDeque<Held>,
    held_bytes: usize,
}

impl Link {
    /// A perfect cable. `label` names the direction of the cable among all of the run.
    pub(super) fn new(seed: u64, label: &str) -> Self {
        let generator = |what: &str| SplitMix64::new(seed, &format!("{label}\0{what}"));
        Link {
            conditions: Conditions::default(),
            loss: generator("loss"),
            duplicate: generator("duplicate"),
            jitter: generator("jitter"),
            busy_until: None,
            held: VecDeque::new(),
            held_bytes: 0,
        }
    }

    pub(super) fn conditions(&self) -> Conditions {
        self.conditions
    }

    /// Sets the conditions for frames from now on. Of the frames under way, a cut loses all, and a shorter delay brings those
    /// forward that would come later than a frame sent now.
    pub(super) fn set(&mut self, conditions: Conditions, now: Instant, drops: &mut Drops) {
        if conditions.rate != self.conditions.rate {
            self.busy_until = None;
        }
        self.conditions = conditions;
        if conditions.cut {
            drops.cut += self.held.len() as u64;
            self.held.clear();
            self.held_bytes = 0;
            self.busy_until = None;
        }
        let leaves = self.busy_until.map_or(now, |until| until.max(now));
        let latest = leaves + conditions.delay + conditions.jitter;
        for held in &mut self.held {
            held.due = held.due.min(latest);
        }
    }

    /// A frame enters the cable. Returns how many of it come out at once; those that come later are given by [`Link::arrived`].
    pub(super) fn enter(&mut self, frame: &[u8], now: Instant, drops: &mut Drops) -> usize {
        let conditions = self.conditions;
        if conditions.cut {
            drops.cut += 1;
            return 0;
        }
        if conditions.loss > 0.0 && self.loss.share() < conditions.loss {
            drops.loss += 1;
            return 0;
        }
        let twice = conditions.duplicate > 0.0 && self.duplicate.share() < conditions.duplicate;
        let copies = 1 + usize::from(twice);
        // Nothing may overtake what is still under way.
        if !conditions.is_timed() && self.held.is_empty() {
            return copies;
        }
        for _ in 0..copies {
            if !self.hold(frame, now) {
                drops.queue += 1;
            }
        }
        0
    }

    /// False when there is no room for it.
    fn hold(&mut self, frame: &[u8], now: Instant) -> bool {
        let cost = frame.len() + OVERHEAD;
        let leaves = match self.conditions.rate {
            None => now,
            Some(rate) => {
                let free = self.busy_until.map_or(now, |until| until.max(now));
                if free - now > QUEUE_TIME {
                    return false;
                }
                // At most MAX_FRAME bits at MIN_RATE: far from the end of u64.
                let nanos = frame.len().min(MAX_FRAME) as u64 * 8 * 1_000_000_000 / rate.max(1);
                free + Duration::from_nanos(nanos)
            }
        };
        if self.held_bytes + cost > UNDER_WAY {
            return false;
        }
        if self.conditions.rate.is_some() {
            self.busy_until = Some(leaves);
        }
        let mut due = leaves + self.travel();
        if let Some(last) = self.held.back() {
            due = due.max(last.due);
        }
        self.held.push_back(Held { due, frame: frame.into() });
        self.held_bytes += cost;
        true
    }

    /// How long the next frame is under way: `delay - jitter` to `delay + jitter`, as tc-netem(8) has it.
    fn travel(&mut self) -> Duration {
        let Conditions { delay, jitter, .. } = self.conditions;
        if jitter.is_zero() {
            return delay;
        }
        let more = jitter.mul_f64(2.0 * self.jitter.share());
        (delay + more).saturating_sub(jitter)
    }

    /// The next frame that has arrived by `now`.
    pub(super) fn arrived(&mut self, now: Instant) -> Option<Box<[u8]>> {
        if self.next()? > now {
            return None;
        }
        let held = self.held.pop_front()?;
        self.held_bytes -= held.frame.len() + OVERHEAD;
        Some(held.frame)
    }

    /// When the next frame arrives.
    pub(super) fn next(&self) -> Option<Instant> {
        self.held.front().map(|held| held.due)
    }
}

/// SplitMix64 of Steele, Lea and Flood (Fast splittable pseudorandom number generators, OOPSLA 2014), with the constants of
/// Vigna's prng.di.unimi.it/splitmix64.c: 64 bits of state, passes BigCrush, and the same everywhere for ever.
#[derive(Debug, Clone)]
struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator of its own for each seed and label.
    fn new(seed: u64, label: &str) -> Self {
        let digest = Digest::of(format!("kiln switch {seed}\0{label}").as_bytes());
        let mut state = [0; 8];
        state.copy_from_slice(digest.as_bytes().first_chunk::<8>().unwrap_or(&[0; 8]));
        SplitMix64(u64::from_le_bytes(state))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly distributed in 0 to 1, without 1: the upper 53 bits, which a double holds exactly.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
