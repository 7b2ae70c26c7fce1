//! `kiln dev bench switch`: what the switch of the machines' network carries and how long a frame takes.
//!
//! Two ports, frames fed into one socket and read from the other as QEMU would, no machines. *Carried*: a thread sends as fast as
//! the receiver takes, with at most [`WINDOW`] bytes between them, so nothing may be lost. *Latency*: one frame at a time, from
//! before it is written to after it was read; two threads must be woken for it, so it is more than what the switch adds. As a
//! measure of that, the last row is the same frame through a socket and a thread that only copies.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::qemu::switch::Switch;
use crate::sys;

/// Lengths of the frames: the shortest, the usual, jumbo.
const LENGTHS: [usize; 3] = [64, 1500, 9000];

/// Bytes that are under way at most: less than the switch's queue.
const WINDOW: usize = 512 << 10;

/// Bytes that are sent with one system call.
const CHUNK: usize = 64 << 10;

/// A length of frames.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Bytes of each frame.
    pub frame: usize,
    /// Frames that were carried.
    pub frames: u64,
    /// Megabits of frames per second.
    pub mbit: f64,
    /// Frames per second.
    pub rate: f64,
    /// Microseconds that a frame takes: half of them at most this.
    pub p50: f64,
    /// 99 of 100 of them at most this.
    pub p99: f64,
}

/// What the benchmark found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Whether the program was compiled without optimisation.
    pub debug: bool,
    /// By length of the frames.
    pub cases: Vec<Case>,
    /// Latency of a frame of 64 bytes through a thread that only copies, p50 and p99 in microseconds.
    pub copied: (f64, f64),
}

/// Measures for `time` per length.
pub fn bench(time: Duration) -> Result<Results> {
    let mut cases = Vec::new();
    for length in LENGTHS {
        let mut wire = Wire::new(length)?;
        let (frames, seconds) = wire.carry(time)?;
        let times = wire.latency(time)?;
        let rate = frames as f64 / seconds;
        let mbit = rate * length as f64 * 8.0 / 1e6;
        cases.push(Case {
            frame: length,
            frames,
            mbit,
            rate,
            p50: percentile(&times, 50),
            p99: percentile(&times, 99),
        });
    }
    let times = Wire::copying(LENGTHS[0])?.latency(time)?;
    let copied = (percentile(&times, 50), percentile(&times, 99));
    Ok(Results { debug: cfg!(debug_assertions), cases, copied })
}

/// Two sockets and what is between them.
struct Wire {
    from: UnixStream,
    to: UnixStream,
    /// A frame as it is on the wire.
    frame: Vec<u8>,
    between: Option<Between>,
}

/// What carries frames from one socket to the other.
struct Between {
    _switch: Switch,
    _folder: tempfile::TempDir,
}

impl Wire {
    fn new(length: usize) -> Result<Wire> {
        let folder = tempfile::tempdir()?;
        let switch = Switch::new("bench", 1)?;
        let connect = |name: &str| -> Result<UnixStream> {
            let path = folder.path().join(name);
            let port = switch.port(name, &path)?;
            let stream = UnixStream::connect(&path)?;
            anyhow::ensure!(switch.is_connected(port)?, "port {name} has no connection");
            Ok(stream)
        };
        let (from, to) = (connect("from")?, connect("to")?);
        // The receiver speaks first, so that the switch knows where it is.
        let mut wire = Wire { from, to, frame: frame(length, 2, 1), between: None };
        wire.to.write_all(&frame(length, 1, 2))?;
        wire.from.read_exact(&mut vec![0; length + 4])?;
        wire.between = Some(Between { _switch: switch, _folder: folder });
        Ok(wire)
    }

    /// Without a switch: a thread reads and writes. It ends with the sockets.
    fn copying(length: usize) -> Result<Wire> {
        let ((from, mut in_between), (mut out, to)) = (UnixStream::pair()?, UnixStream::pair()?);
        std::thread::Builder::new().name("bench copy".to_owned()).spawn(move || {
            let mut buffer = vec![0; CHUNK];
            while let Ok(count @ 1..) = in_between.read(&mut buffer) {
                if out.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
        })?;
        Ok(Wire { from, to, frame: frame(length, 2, 1), between: None })
    }

    /// Sends for `time`; gives how many frames came and in how many seconds.
    fn carry(&mut self, time: Duration) -> Result<(u64, f64)> {
        let per_chunk = (CHUNK / self.frame.len()).max(1);
        let chunk = self.frame.repeat(per_chunk);
        let window = WINDOW / chunk.len();
        let (room, taken) = mpsc::channel();
        for _ in 0..window {
            room.send(())?;
        }
        let mut from = self.from.try_clone()?;
        let length = chunk.len();
        let start = Instant::now();
        let sender = std::thread::Builder::new().name("bench send".to_owned()).spawn(move || {
            let mut chunks = 0_u64;
            // The receiver hangs up when the time is over.
            while taken.recv().is_ok() {
                from.write_all(&chunk)?;
                chunks += 1;
            }
            Ok::<u64, std::io::Error>(chunks)
        })?;
        self.to.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut buffer = vec![0; CHUNK];
        let (mut came, mut told) = (0, 0);
        while start.elapsed() < time {
            sys::check_interrupt()?;
            came += self.to.read(&mut buffer).context("a frame was lost in the switch")?;
            while came - told >= length {
                told += length;
                // The sender has failed if it does not listen; its error follows.
                let _ = room.send(());
            }
        }
        drop(room);
        // It does not wait for us: the switch has room for all that is still under way.
        let chunks = sender.join().map_err(|_| anyhow::anyhow!("the sender of the benchmark ended"))??;
        let left = usize::try_from(chunks)? * length - came;
        self.to.read_exact(&mut vec![0; left]).context("a frame was lost in the switch")?;
        Ok((chunks * per_chunk as u64, start.elapsed().as_secs_f64()))
    }

    /// Microseconds of single frames, sorted.
    fn latency(&mut self, time: Duration) -> Result<Vec<f64>> {
        let mut buffer = vec![0; self.frame.len()];
        let mut times = Vec::new();
        let end = Instant::now() + time;
        while times.is_empty() || Instant::now() < end {
            sys::check_interrupt()?;
            let start = Instant::now();
            self.from.write_all(&self.frame)?;
            self.to.read_exact(&mut buffer)?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    }
}

/// An Ethernet frame of `length` bytes between two invented addresses, with its length before it.
fn frame(length: usize, to: u8, from: u8) -> Vec<u8> {
    let mut frame = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    frame.extend([0x52, 0x54, 0, 0, 0, to, 0x52, 0x54, 0, 0, 0, from, 0x88, 0xb5]);
    frame.resize(length + 4, 0x5a);
    frame
}

/// The value below which `share` percent of the sorted `values` lie.
fn percentile(values: &[f64], share: usize) -> f64 {
    let at = values.len() * share / 100;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or_default()
}

impl Results {
    /// The table as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<12} {:>10} {:>12} {:>12} {:>10} {:>10}",
            "frame bytes", "frames", "Mbit/s", "frames/s", "p50 us", "p99 us"
        )];
        for Case { frame, frames, mbit, rate, p50, p99 } in &self.cases {
            lines.push(format!("{frame:<12} {frames:>10} {mbit:>12.0} {rate:>12.0} {p50:>10.1} {p99:>10.1}"));
        }
        let (p50, p99) = self.copied;
        lines.push(format!("{:<12} {:>10} {:>12} {:>12} {p50:>10.1} {p99:>10.1}", "64, copied", "", "", ""));
        let build = if self.debug { "unoptimised program" } else { "optimised program" };
        lines.push(format!("one switch, two ports, one way, no frame lost, {build}"));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 99)), (101.0, 199.0));
        assert_eq!((percentile(&[7.0], 99), percentile(&[], 50)), (7.0, 0.0));
    }

    #[test]
    fn every_length_is_measured_and_printed_as_a_table() {
        let results = bench(Duration::from_millis(20)).unwrap();
        assert_eq!(results.cases.iter().map(|case| case.frame).collect::<Vec<_>>(), LENGTHS);
        assert!(results.cases.iter().all(|case| case.frames > 0 && 0.0 < case.p50 && case.p50 <= case.p99));
        let case = Case { frame: 1500, frames: 1000, mbit: 1234.4, rate: 102_864.0, p50: 12.34, p99: 45.6 };
        let results = Results { debug: true, cases: vec![case], copied: (9.0, 30.0) };
        insta::assert_snapshot!(results.lines().join("\n"), @r"
        frame bytes      frames       Mbit/s     frames/s     p50 us     p99 us
        1500               1000         1234       102864       12.3       45.6
        64, copied                                               9.0       30.0
        one switch, two ports, one way, no frame lost, unoptimised program
        ");
        let text = serde_json::to_string(&results).unwrap();
        assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results);
    }
}
