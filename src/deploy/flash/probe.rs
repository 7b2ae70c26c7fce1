//! Finding devices that have less room than they say.
//!
//! A stick with a forged size takes writes behind its end and drops them, or lets them fall onto what is at its beginning (the tool f3 of
//! Michel Machado describes both). So sectors all over the device get contents of their own, and are looked at twice:
//!
//! - before minutes are spent on writing, in another order: that finds sizes that are forged as they mostly are;
//! - those behind the image once more when the image was written. By then no cache of the device holds them, and where writes fall back the
//!   image lies over them, wherever the true end is: they stand so close together that one of them falls onto the image.

use super::medium::{Aligned, Medium};
use super::source::HEAD;
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::ui::human_bytes;

/// Bytes of a marker: the largest sector.
const MARKER: usize = 4096;
/// Markers at even distances, beside those at powers of two.
const EVEN: u64 = 61;
/// What a marker begins with; its offset follows.
const MAGIC: &[u8; 16] = b"kiln size marker";

/// The most markers behind the image: each costs a cheap stick some hundredths of a second.
const MOST: u64 = 256;

/// Places of markers, in order, and what tells those of this run from others.
pub(super) struct Markers {
    places: Vec<u64>,
    round: Digest,
}

fn aligned(at: u64) -> u64 {
    at / MARKER as u64 * MARKER as u64
}

/// All over a device. One that lets writes fall back ignores the upper bits of an address, so its true size is a power of two: then markers at
/// the larger powers of two fall onto the one at 0. Those at even distances find the end of one that drops them.
fn everywhere(size: u64) -> Vec<u64> {
    let last = aligned(size - MARKER as u64);
    let even = (0..=EVEN).map(|i| aligned(last / EVEN * i));
    let powers = (20..64).map(|bits| 1 << bits).take_while(|at| *at < last);
    even.chain(powers).chain([0, last]).collect()
}

/// From `end`, where the image ends, up to `tail`. If the true end is anywhere between them, a stretch as long as the image behind it falls
/// onto the image, and one of these is in that stretch.
fn behind(end: u64, tail: u64) -> Vec<u64> {
    let Some(last) = tail.checked_sub(MARKER as u64).map(aligned).filter(|last| *last >= end) else {
        return Vec::new();
    };
    let image = aligned(end - HEAD - MARKER as u64);
    let apart = image.max(aligned((last - end) / MOST) + MARKER as u64);
    (end.next_multiple_of(MARKER as u64)..last)
        .step_by(usize::try_from(apart).unwrap_or(usize::MAX))
        .chain([last])
        .collect()
}

fn marker(at: u64, round: &Digest) -> Aligned {
    let mut bytes = Aligned::new(MARKER);
    let mut block = *Digest::of(&[round.as_bytes() as &[u8], &at.to_le_bytes()].concat()).as_bytes();
    for piece in bytes.chunks_mut(32) {
        piece.copy_from_slice(&block);
        block = *Digest::of(&block).as_bytes();
    }
    bytes[..16].copy_from_slice(MAGIC);
    bytes[16..24].copy_from_slice(&at.to_le_bytes());
    bytes
}

/// Probes all of `medium`, whose contents are lost.
pub(super) fn probe(medium: &dyn Medium, name: &str) -> Result<(), Failure> {
    let markers = Markers::new(everywhere(medium.size()), name);
    markers.write(medium, name)?;
    medium.flush().map_err(|error| failed(name, 0, error))?;
    markers.check(medium, name)
}

fn failed(name: &str, at: u64, error: std::io::Error) -> Failure {
    Failure::new(Kind::Store, format!("probing the size of {name} failed at byte {at}"))
        .hint("it is worn out, or smaller than it says: take another one")
        .because(error)
}

impl Markers {
    fn new(mut places: Vec<u64>, name: &str) -> Self {
        places.sort_unstable();
        places.dedup();
        // Markers of an earlier run must not be taken for those of this one.
        let now = crate::lock::time::precise();
        Markers { places, round: Digest::of(format!("{name} {now:?}").as_bytes()) }
    }

    /// Those between the end of the image and the end of the disk.
    pub(super) fn behind(end: u64, tail: u64, name: &str) -> Self {
        Markers::new(behind(end, tail), name)
    }

    /// Writes all of them.
    pub(super) fn write(&self, medium: &dyn Medium, name: &str) -> Result<(), Failure> {
        let write = |at: &u64| {
            medium.write_all(&marker(*at, &self.round), *at).map_err(|error| failed(name, *at, error))
        };
        self.places.iter().try_for_each(write)
    }

    /// Reads all of them.
    pub(super) fn check(&self, medium: &dyn Medium, name: &str) -> Result<(), Failure> {
        let mut found = Aligned::new(MARKER);
        // Every second one up, the others down, so that no device's read-ahead or small cache has it.
        let up = self.places.iter().step_by(2);
        let down = self.places.iter().skip(1).step_by(2).rev();
        let mut wrong: Vec<(u64, Option<u64>)> = Vec::new();
        for at in up.chain(down) {
            medium.read_all(&mut found, *at).map_err(|error| failed(name, *at, error))?;
            if *found != *marker(*at, &self.round) {
                let other = u64::from_le_bytes(found[16..24].try_into().expect("8 bytes"));
                let is_marker = found[..16] == *MAGIC && *found == *marker(other, &self.round);
                wrong.push((*at, is_marker.then_some(other)));
            }
        }
        wrong.sort_unstable();
        let Some((first, _)) = wrong.first() else { return Ok(()) };
        // What fell back onto the beginning came from as far behind it as the device is large.
        let wrapped =
            wrong.iter().filter_map(|(at, other)| other.as_ref()?.checked_sub(*at)).filter(|n| *n > 0).min();
        let why = match wrapped {
            Some(real) => {
                format!("what is written behind {} falls back onto its beginning", human_bytes(real))
            }
            None => format!("what is written at byte {first} ({}) is not kept", human_bytes(*first)),
        };
        let text = format!("{name} says it has {}, and that is not true: {why}", human_bytes(medium.size()));
        Err(Failure::new(Kind::Store, text)
            .hint("its size is forged or it is worn out: take another one; its contents are lost"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wherever_the_true_end_is_one_marker_behind_it_falls_onto_the_image() {
        const MIB: u64 = 1 << 20;
        for (end, tail) in [
            (77 * MIB, 254 * MIB),
            (77 * MIB, 9_000 * MIB + 512),
            (700 * MIB, 120_000 * MIB),
            (5 * MIB, 6 * MIB),
        ] {
            let places = behind(end, tail);
            assert!(
                places.iter().all(|at| at % 4096 == 0 && *at >= end && *at + 4096 <= tail),
                "{end} {tail}"
            );
            assert!(places.len() as u64 <= MOST + 2);
            // Up to where so little would fall back that nothing of it reaches the image.
            for real in (end..tail.saturating_sub(end)).step_by((7 * MIB + 512) as usize) {
                let hit = |at: &u64| *at >= real + HEAD && *at + 4096 <= real + end;
                assert!(places.iter().any(hit), "{end} {tail} {real}");
            }
        }
        assert!(behind(77 * MIB, 77 * MIB).is_empty());
        let many = behind(77 * MIB, 1 << 44);
        assert!((MOST - 1..=MOST + 2).contains(&(many.len() as u64)), "{}", many.len());
    }
}
