//! Finding devices that have less room than they say, before minutes are spent on writing.
//!
//! A stick with a forged size takes writes behind its end and drops them, or lets them fall onto what is at its beginning (the tool f3 of
//! Michel Machado describes both). So a few sectors all over the device get contents of their own, and are read in another order.

use super::medium::{Aligned, Medium};
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::ui::human_bytes;

/// Bytes of a marker: the largest sector.
const MARKER: usize = 4096;
/// Markers at even distances, beside those at powers of two.
const EVEN: u64 = 61;
/// What a marker begins with; its offset follows.
const MAGIC: &[u8; 16] = b"kiln size marker";

/// Where markers go, in order. A device that lets writes fall back ignores the upper bits of an address, so its true size is a power of two:
/// then markers at the larger powers of two fall onto the one at 0. Those at even distances find the end of one that drops them.
fn places(size: u64) -> Vec<u64> {
    let aligned = |at: u64| at / MARKER as u64 * MARKER as u64;
    let last = aligned(size - MARKER as u64);
    let even = (0..=EVEN).map(|i| aligned(last / EVEN * i));
    let powers = (20..64).map(|bits| 1 << bits).take_while(|at| *at < last);
    let mut places: Vec<u64> = even.chain(powers).chain([0, last]).collect();
    places.sort_unstable();
    places.dedup();
    places
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

/// Probes `medium`, whose contents are lost.
pub(super) fn probe(medium: &dyn Medium, name: &str) -> Result<(), Failure> {
    let failed = |at: u64, error: std::io::Error| {
        Failure::new(Kind::Store, format!("probing the size of {name} failed at byte {at}"))
            .hint("it is worn out, or smaller than it says: take another one")
            .because(error)
    };
    let size = medium.size();
    // Markers of an earlier run must not be taken for those of this one.
    let now = crate::lock::time::precise();
    let round = Digest::of(format!("{name} {size} {now:?}").as_bytes());
    let places = places(size);
    for at in &places {
        medium.write_all(&marker(*at, &round), *at).map_err(|error| failed(*at, error))?;
    }
    medium.flush().map_err(|error| failed(0, error))?;
    let mut found = Aligned::new(MARKER);
    // From the middle outwards, so that no device's read-ahead or small cache has it: every second one up, the others down.
    let up = places.iter().step_by(2);
    let down = places.iter().skip(1).step_by(2).rev();
    let mut wrong: Vec<(u64, Option<u64>)> = Vec::new();
    for at in up.chain(down) {
        medium.read_all(&mut found, *at).map_err(|error| failed(*at, error))?;
        if *found != *marker(*at, &round) {
            let other = u64::from_le_bytes(found[16..24].try_into().expect("8 bytes"));
            let is_marker = found[..16] == *MAGIC && *found == *marker(other, &round);
            wrong.push((*at, is_marker.then_some(other)));
        }
    }
    wrong.sort_unstable();
    let Some((first, _)) = wrong.first() else { return Ok(()) };
    // What fell back onto the beginning came from as far behind it as the device is large.
    let wrapped =
        wrong.iter().filter_map(|(at, other)| other.as_ref()?.checked_sub(*at)).filter(|n| *n > 0).min();
    let why = match wrapped {
        Some(real) => format!("what is written behind {} falls back onto its beginning", human_bytes(real)),
        None => format!("what is written at byte {first} ({}) is not kept", human_bytes(*first)),
    };
    let text = format!("{name} says it has {}, and that is not true: {why}", human_bytes(size));
    Err(Failure::new(Kind::Store, text)
        .hint("its size is forged or it is worn out: take another one; its contents are lost"))
}
