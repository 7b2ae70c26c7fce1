//! Writing an image and reading it back.
//!
//! ```text
//! file, zstd ─►▒ image's digest, cut ─►▒ zeros? ─►▒ write or zero ─►░ read back what is 64 MiB behind, compare
//!                                                  this thread      only where the device allows
//! ```
//!
//! Every byte is hashed once on its way to the disk and once on its way back: a stretch is known again by the digest of the image up to its
//! end, for which the state of the image's digest at its beginning is kept.
//!
//! The order is what makes a disk that was left half-written boot nothing, neither the new system nor the old one:
//!
//! 1. the first MiB is made zero, then the old backup table, then what else is at the end, each flushed and seen to be zero;
//! 2. everything but the first MiB is written, flushed and read back; the image has had the digest of its manifest;
//! 3. the backup table at the end, flushed and read back;
//! 4. the first MiB with the table, but for the first sector, flushed and read back;
//! 5. the first sector, without which nobody takes the disk for one with a table. A drive writes a sector whole or not at all.
//!
//! What is zero in the image is discarded or made zero by the device if it can, and read back like the rest: what a device gives for
//! discarded bytes is not promised.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::esp;
use super::journal::Journal;
use super::layout::{Layout, Move, plan, too_small};
use super::medium::{ALIGNMENT, Aligned, Medium};
use super::probe::{Markers, probe};
use super::source::{HEAD, Source};
use crate::cluster::Credential;
use crate::digest::{Digest, Hasher};
use crate::error::{Failure, Kind};
use crate::image::gpt::Table;
use crate::image::is_zero;
use crate::sys;

/// Bytes of a write; large enough for the queue of a disk, small enough that a stick answers Ctrl-C soon.
const CHUNK: usize = 4 << 20;
/// Chunks that wait between two threads.
const AHEAD: usize = 3;
/// What is read back while more is written lies so far behind that no page cache and no small cache of the device has it.
const LAG: u64 = 64 << 20;
/// Every so-manieth of these is read again in the end: what is written later must not fall onto it.
const AGAIN: u64 = 8;
/// How often what was written is flushed and noted in the journal.
const MARK: Duration = Duration::from_secs(2);
/// Bytes that are discarded at once: seconds on a slow card, during which nobody can press Ctrl-C.
const DISCARD: u64 = 16 << 30;
/// What is made zero at the end of the disk: the backup table, and labels that RAID and ZFS keep there. All of a backup table's header is in
/// the last [`ALIGNMENT`] bytes of it, and nothing else of a disk with a table.
const TAIL: u64 = 2 << 20;

/// What the work is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The old system goes, and the device is probed.
    Preparing,
    /// The image is written.
    Writing,
    /// What was written is read back.
    Verifying,
    /// The partition table is written.
    Finishing,
}

/// Who is told about progress, from any thread.
pub trait Watch: Sync {
    /// A phase of so many bytes begins.
    fn begin(&self, phase: Phase, bytes: u64);
    /// So many more bytes of it are done.
    fn advance(&self, bytes: u64);
}

/// How an image is to be written.
#[derive(Debug, Clone, Default)]
pub struct Options<'a> {
    /// Credentials that are put onto the ESP.
    pub identity: &'a [Credential],
    /// Leave what stands behind the place of the image: `/var` and the second slot.
    pub keep_state: bool,
    /// Bytes that the disk must have for the first boot, which makes the second slot and `/var`; 0 to ask for what is written only.
    pub least: u64,
    /// Read back while more is written; for devices on which that does not hurt.
    pub overlap: bool,
    /// Look for a device that has less room than it says.
    pub probe: bool,
}

/// What was done to a disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// Bytes that were sent to the device.
    pub written: u64,
    /// Bytes that are zero in the image and were discarded or made zero by the device.
    pub zeroed: u64,
    /// Bytes that an earlier run had written, as reading them showed.
    pub resumed: u64,
    /// Bytes that were read back and compared.
    pub verified: u64,
    /// Seconds from the first byte to the flush behind the last one.
    pub write_seconds: f64,
    /// Seconds of reading back after that.
    pub verify_seconds: f64,
    /// SHA-256 over the digests of all chunks in their order: the same for disks with the same contents.
    pub content: Option<Digest>,
}

/// A stretch of the disk and what it must hold.
#[derive(Debug, Clone)]
struct Extent {
    at: u64,
    length: u64,
    /// `None` for zeros.
    seal: Option<Seal>,
}

/// What tells bytes from all others: with what was hashed `before` them, they have this digest.
#[derive(Debug, Clone)]
struct Seal {
    before: Hasher,
    digest: Digest,
}

impl Seal {
    /// Of bytes by themselves.
    fn of(bytes: &[u8]) -> Self {
        Seal { before: Hasher::new(), digest: Digest::of(bytes) }
    }

    fn fits(&self, bytes: &[u8]) -> bool {
        let mut hasher = self.before.clone();
        hasher.update(bytes);
        hasher.finish() == self.digest
    }
}

/// A stretch that nobody has looked at.
struct Raw {
    at: u64,
    length: usize,
    bytes: Aligned,
    /// `None` for what is not of the image.
    seal: Option<Seal>,
}

/// A stretch on its way to the disk.
struct Piece {
    extent: Extent,
    /// As long as the extent, or longer; nothing for zeros.
    bytes: Option<Aligned>,
}

/// The disk under work.
struct Work<'a> {
    medium: &'a dyn Medium,
    name: &'a str,
    watch: &'a dyn Watch,
    /// Bytes below this were written by an earlier run, if reading shows so.
    resume: u64,
    /// Whether everything was discarded, so that zeros may be there already.
    discarded: bool,
    /// Whether the device makes zeros by itself.
    zeroes: bool,
    /// Whether something was written after other things were read back.
    mended: bool,
    /// For what is read back.
    buffer: Aligned,
    done: Written,
}

/// Writes the image onto `medium`, which people know as `name`. The journal says how far an earlier run came and is told how far this one
/// comes.
///
/// # Errors
/// [`Kind::Input`] for an image that is not what it should be, [`Kind::Store`] for a disk that is too small or does not keep what is
/// written, [`Kind::Interrupted`]. After any error behind the first write the disk boots nothing.
pub fn write(
    medium: &dyn Medium,
    name: &str,
    source: Source<'_>,
    options: &Options<'_>,
    journal: &mut Journal,
    watch: &dyn Watch,
) -> Result<Written, Failure> {
    let old = options.keep_state.then(|| journal.old_table(medium, name)).transpose()?;
    let layout = plan(source.table(), medium.size(), medium.sector(), old.as_ref(), name)?;
    if medium.size() < options.least {
        return Err(too_small(name, medium.size(), options.least, "the image with its second slot and /var"));
    }
    let resume = journal.begin(&source.facts(), medium, old.as_ref())?;
    let done = Written::default();
    let mut work = Work {
        medium,
        name,
        watch,
        resume,
        discarded: false,
        zeroes: true,
        mended: false,
        buffer: Aligned::new(CHUNK),
        done,
    };
    work.prepare(&layout, options)?;
    let markers =
        (options.probe && !layout.keeps).then(|| Markers::behind(layout.end, work.tail(&layout), name));
    markers.as_ref().map_or(Ok(()), |markers| markers.write(medium, name))?;
    work.stream(&layout, source, options, journal)?;
    markers.as_ref().map_or(Ok(()), |markers| markers.check(medium, name))?;
    work.finish(&layout.table)?;
    journal.finished()?;
    Ok(work.done)
}

impl Work<'_> {
    fn fail(&self, doing: &str, at: u64, error: io::Error) -> Failure {
        let text = format!("{doing} {} failed at byte {at}", self.name);
        let failure = Failure::new(Kind::Store, text).placed();
        let hint = match error.kind() {
            io::ErrorKind::StorageFull => {
                "it does not boot as it is now; it takes nothing from this byte on, so it is smaller than it says: take another disk"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "it became read-only: switch its write protection off (the lock of a card, `blockdev --setrw`) and run the same command, or take another disk"
            }
            _ => {
                "it does not boot as it is now; plug it in again and run the same command, which resumes, or take another disk"
            }
        };
        failure.hint(hint).because(error)
    }

    /// Ends the work once Ctrl-C was pressed.
    fn interrupted(&self) -> Result<(), Failure> {
        if !sys::interrupted() {
            return Ok(());
        }
        Err(Failure::new(Kind::Interrupted, format!("interrupted: {} does not boot as it is now", self.name))
            .hint("run the same command again, which resumes; --restart begins anew"))
    }

    /// Takes the old system away, and sees what kind of device this is.
    fn prepare(&mut self, layout: &Layout, options: &Options<'_>) -> Result<(), Failure> {
        self.watch.begin(Phase::Preparing, 0);
        let size = self.medium.size();
        self.wipe(0, HEAD)?;
        // By itself: firmware takes the backup where the first table is gone, and would start an old system whose end is half wiped.
        let header = ALIGNMENT as u64;
        self.wipe(size - header, header)?;
        let tail = self.tail(layout);
        self.wipe(tail, size - tail)?;
        if self.resume > 0 {
            return Ok(());
        }
        if options.probe && !layout.keeps {
            probe(self.medium, self.name)?;
            self.wipe(0, HEAD)?;
            self.wipe(tail, size - tail)?;
        }
        let end = if layout.keeps { layout.end } else { tail };
        let mut at = HEAD;
        while at < end {
            let length = DISCARD.min(end - at);
            if let Err(error) = self.medium.discard(at, length) {
                tracing::debug!(%error, name = self.name, at, "discard");
                return Ok(());
            }
            at += length;
            self.interrupted()?;
        }
        self.discarded = true;
        Ok(())
    }

    /// Where that begins which is made zero at the end.
    fn tail(&self, layout: &Layout) -> u64 {
        let size = self.medium.size();
        if layout.keeps { layout.table.backup().0 } else { size - TAIL.min(size - layout.end) }
    }

    /// Writes zeros and sees that they are there.
    fn wipe(&self, at: u64, length: u64) -> Result<(), Failure> {
        let mut bytes = Aligned::new(usize::try_from(length).unwrap_or(0));
        self.medium.write_all(&bytes, at).map_err(|error| self.fail("writing", at, error))?;
        self.medium.flush().map_err(|error| self.fail("flushing", at, error))?;
        bytes.fill(1);
        self.medium.read_all(&mut bytes, at).map_err(|error| self.fail("reading back", at, error))?;
        if is_zero(&bytes) {
            return Ok(());
        }
        let text = format!(
            "{} takes writes and does not keep them: byte {at} and what follows is what it was",
            self.name
        );
        Err(Failure::new(Kind::Store, text)
            .hint("it is write-protected, worn out, or smaller than it says: take another one"))
    }

    /// Everything but the table.
    fn stream(
        &mut self,
        layout: &Layout,
        mut source: Source<'_>,
        options: &Options<'_>,
        journal: &mut Journal,
    ) -> Result<(), Failure> {
        let total: u64 = layout.moves.iter().map(|it| it.room).sum();
        self.watch.begin(Phase::Writing, total);
        let began = Instant::now();
        let (medium, name) = (self.medium, self.name);
        let bad = AtomicBool::new(false);
        let mut extents: Vec<Extent> = Vec::new();
        let left = thread::scope(|scope| {
            let (raw, sorting) = sync_channel(AHEAD);
            let (pieces, coming) = sync_channel(AHEAD);
            let (used, unused) = channel();
            let identity = options.identity;
            let sector = medium.sector();
            scope.spawn(source.ahead());
            scope.spawn(move || read(source, &layout.moves, sector, identity, &raw, &unused));
            scope.spawn(move || sort(&sorting, &pieces));
            let (behind, checker) = if options.overlap {
                let (behind, written) = channel();
                let bad = &bad;
                (Some(behind), Some(scope.spawn(move || follow(medium, name, &written, bad))))
            } else {
                (None, None)
            };
            let wrote = self.write_pieces(&coming, &used, behind.as_ref(), &bad, &mut extents, journal);
            drop((coming, behind));
            // An error of the checker came first and is the reason for one of the writer.
            let checked =
                checker.map(|thread| thread.join().expect("the checker does not panic")).transpose();
            let checked = checked?;
            wrote?;
            Ok::<_, Failure>(checked)
        })?;
        self.medium.flush().map_err(|error| self.fail("flushing", 0, error))?;
        self.done.write_seconds = began.elapsed().as_secs_f64();

        let began = Instant::now();
        match left {
            Some((verified, left)) => {
                self.done.verified += verified;
                self.verify_all(&left)?;
            }
            None => self.verify_all(&extents)?,
        }
        // On a disk that lies about its size what was mended lies over something else.
        if self.mended {
            self.discarded = false;
            self.verify_all(&extents)?;
        }
        self.done.verify_seconds = began.elapsed().as_secs_f64();
        let zeros = Digest::of(b"");
        let digest = |extent: &Extent| *extent.seal.as_ref().map_or(zeros, |seal| seal.digest).as_bytes();
        let all: Vec<u8> = extents.iter().flat_map(digest).collect();
        self.done.content = Some(Digest::of(&all));
        Ok(())
    }

    fn write_pieces(
        &mut self,
        coming: &Receiver<Result<Piece, Failure>>,
        used: &Sender<Aligned>,
        behind: Option<&Sender<Extent>>,
        bad: &AtomicBool,
        extents: &mut Vec<Extent>,
        journal: &mut Journal,
    ) -> Result<(), Failure> {
        let mut marked = Instant::now();
        for piece in coming {
            let Piece { extent, bytes } = piece?;
            match bytes {
                Some(bytes) => {
                    self.put(&bytes, &extent)?;
                    // The reader may be at its end already.
                    let _ = used.send(bytes);
                }
                None => self.zeros(&extent)?,
            }
            if let Some(behind) = behind {
                // Gone after an error, which `bad` tells.
                let _ = behind.send(extent.clone());
            }
            self.watch.advance(extent.length);
            if bad.load(Ordering::Relaxed) {
                return Err(Failure::new(
                    Kind::Store,
                    format!("{} does not keep what is written", self.name),
                ));
            }
            if marked.elapsed() >= MARK || sys::interrupted() {
                self.medium.flush().map_err(|error| self.fail("flushing", extent.at, error))?;
                journal.mark(extent.at + extent.length)?;
                marked = Instant::now();
            }
            extents.push(extent);
            self.interrupted()?;
        }
        Ok(())
    }

    /// Whether an earlier run left at `extent` what should be there.
    fn is_there(&mut self, extent: &Extent) -> bool {
        let there = extent.at + extent.length <= self.resume
            && check(self.medium, self.name, extent, &mut self.buffer).is_ok();
        self.done.resumed += if there { extent.length } else { 0 };
        there
    }

    fn put(&mut self, bytes: &Aligned, extent: &Extent) -> Result<(), Failure> {
        if self.is_there(extent) {
            return Ok(());
        }
        let length = usize::try_from(extent.length).unwrap_or(0);
        self.medium
            .write_all(&bytes[..length], extent.at)
            .map_err(|error| self.fail("writing", extent.at, error))?;
        self.done.written += extent.length;
        Ok(())
    }

    /// What was discarded is mostly zero already: reading back shows it, and what is not is put right then.
    fn zeros(&mut self, extent: &Extent) -> Result<(), Failure> {
        if self.is_there(extent) {
            return Ok(());
        }
        if !self.discarded {
            return self.make_zero(extent);
        }
        self.done.zeroed += extent.length;
        Ok(())
    }

    fn make_zero(&mut self, extent: &Extent) -> Result<(), Failure> {
        if self.zeroes {
            match self.medium.zero(extent.at, extent.length) {
                Ok(()) => {
                    self.done.zeroed += extent.length;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Unsupported => self.zeroes = false,
                Err(error) => return Err(self.fail("writing", extent.at, error)),
            }
        }
        let zeros = Aligned::new(usize::try_from(extent.length).unwrap_or(0));
        self.medium.write_all(&zeros, extent.at).map_err(|error| self.fail("writing", extent.at, error))?;
        self.done.written += extent.length;
        Ok(())
    }

    /// Reads back and compares, while a thread reads on.
    fn verify_all(&mut self, extents: &[Extent]) -> Result<(), Failure> {
        self.watch.begin(Phase::Verifying, extents.iter().map(|extent| extent.length).sum());
        let (medium, name) = (self.medium, self.name);
        thread::scope(|scope| {
            let (read, coming) = sync_channel(AHEAD);
            let (used, unused) = channel::<Aligned>();
            scope.spawn(move || {
                for extent in extents {
                    let mut buffer = unused.try_recv().unwrap_or_else(|_| Aligned::new(CHUNK));
                    let found = fetch(medium, name, extent, &mut buffer).map(|()| buffer);
                    if read.send(found).is_err() {
                        return;
                    }
                }
            });
            for (extent, found) in extents.iter().zip(coming) {
                let found = found.and_then(|buffer| {
                    let same = compare(name, extent, &buffer);
                    // The reader may be at its end already.
                    let _ = used.send(buffer);
                    same
                });
                self.settle(extent, found)?;
                self.watch.advance(extent.length);
                self.interrupted()?;
            }
            Ok(())
        })
    }

    /// Reads back and compares.
    fn verify(&mut self, extent: &Extent) -> Result<(), Failure> {
        let found = check(self.medium, self.name, extent, &mut self.buffer);
        self.settle(extent, found)
    }

    /// What was found is right, or it is mended.
    fn settle(&mut self, extent: &Extent, found: Result<(), Failure>) -> Result<(), Failure> {
        if found.is_err() && extent.seal.is_none() && self.discarded {
            // It is none of the devices on which discarded bytes are zero.
            self.done.zeroed -= extent.length;
            self.make_zero(extent)?;
            self.mended = true;
            self.medium.flush().map_err(|error| self.fail("flushing", extent.at, error))?;
            check(self.medium, self.name, extent, &mut self.buffer)?;
        } else {
            found?;
        }
        self.done.verified += extent.length;
        Ok(())
    }

    /// The table, which makes the disk one that boots.
    fn finish(&mut self, table: &Table) -> Result<(), Failure> {
        self.watch.begin(Phase::Finishing, 0);
        let (at, backup) = table.backup();
        self.last(&backup, at)?;
        let mut head = table.primary();
        head.resize(usize::try_from(HEAD).unwrap_or(0), 0);
        let (first, rest) = head.split_at(table.sector as usize);
        let written = self.last(rest, table.sector.into()).and_then(|()| self.last(first, 0));
        if written.is_err() {
            // Nobody knows what is there now. What cannot be made zero could not be written either.
            let _ = self.wipe(0, HEAD).and_then(|()| self.wipe(at, backup.len() as u64));
        }
        written
    }

    fn last(&mut self, bytes: &[u8], at: u64) -> Result<(), Failure> {
        let aligned = Aligned::of(bytes);
        self.medium
            .write_all(&aligned[..bytes.len()], at)
            .map_err(|error| self.fail("writing", at, error))?;
        self.medium.flush().map_err(|error| self.fail("flushing", at, error))?;
        let length = bytes.len() as u64;
        let extent = Extent { at, length, seal: Some(Seal::of(bytes)) };
        self.done.written += length;
        self.verify(&extent)
    }
}

/// Reads `extent` back and compares.
fn check(medium: &dyn Medium, name: &str, extent: &Extent, buffer: &mut Aligned) -> Result<(), Failure> {
    fetch(medium, name, extent, buffer)?;
    compare(name, extent, buffer)
}

fn fetch(medium: &dyn Medium, name: &str, extent: &Extent, buffer: &mut Aligned) -> Result<(), Failure> {
    let bytes = &mut buffer[..usize::try_from(extent.length).unwrap_or(0)];
    medium.read_all(bytes, extent.at).map_err(|error| {
        Failure::new(Kind::Store, format!("reading back {name} failed at byte {}", extent.at))
            .hint("it does not boot as it is now; take another disk")
            .because(error)
    })
}

fn compare(name: &str, extent: &Extent, buffer: &Aligned) -> Result<(), Failure> {
    let Extent { at, length, seal } = extent;
    let bytes = &buffer[..usize::try_from(*length).unwrap_or(0)];
    let (right, found) = match seal {
        None => (is_zero(bytes), "not zero"),
        Some(seal) => (seal.fits(bytes), "others"),
    };
    if right {
        return Ok(());
    }
    let text = format!(
        "{name} does not hold what was written to it: {length} bytes from byte {at} are {found} (sha256 {})",
        Digest::of(bytes)
    );
    Err(Failure::new(Kind::Store, text)
        .hint("it does not boot as it is now; the disk is worn out, its cable is bad, or it is smaller than it says: take another one"))
}

/// The thread that checks what was written while more is written; says how much, and what is left to check after the last flush.
fn follow(
    medium: &dyn Medium,
    name: &str,
    written: &Receiver<Extent>,
    bad: &AtomicBool,
) -> Result<(u64, Vec<Extent>), Failure> {
    let mut buffer = Aligned::new(CHUNK);
    let (mut queue, mut queued, mut verified) = (VecDeque::<Extent>::new(), 0, 0);
    let (mut again, mut count) = (Vec::new(), 0);
    for extent in written {
        if extent.seal.is_none() {
            again.push(extent);
            continue;
        }
        queued += extent.length;
        queue.push_back(extent);
        while queued > LAG {
            let Some(oldest) = queue.pop_front() else { break };
            check(medium, name, &oldest, &mut buffer).inspect_err(|_| bad.store(true, Ordering::Relaxed))?;
            queued -= oldest.length;
            verified += oldest.length;
            if count % AGAIN == 0 {
                again.push(oldest);
            }
            count += 1;
        }
    }
    again.extend(queue);
    Ok((verified, again))
}

/// The thread that reads the image and cuts it.
fn read(
    source: Source<'_>,
    moves: &[Move],
    sector: u32,
    identity: &[Credential],
    raw: &SyncSender<Result<Raw, Failure>>,
    unused: &Receiver<Aligned>,
) {
    if let Err(Some(failure)) = cut(source, moves, sector, identity, raw, unused) {
        // Gone if the writer failed before.
        let _ = raw.send(Err(failure));
    }
}

/// The thread that looks for zeros, for the image's digest keeps the reader busy.
fn sort(raw: &Receiver<Result<Raw, Failure>>, pieces: &SyncSender<Result<Piece, Failure>>) {
    for stretch in raw {
        let piece = stretch.map(|Raw { at, length, bytes, seal }| {
            let stretch = &bytes[..length];
            let seal = (!is_zero(stretch)).then(|| seal.unwrap_or_else(|| Seal::of(stretch)));
            let bytes = seal.is_some().then_some(bytes);
            Piece { extent: Extent { at, length: length as u64, seal }, bytes }
        });
        if pieces.send(piece).is_err() {
            return;
        }
    }
}

/// `Err(None)`: the writer is gone.
fn cut(
    mut source: Source<'_>,
    moves: &[Move],
    sector: u32,
    identity: &[Credential],
    raw: &SyncSender<Result<Raw, Failure>>,
    unused: &Receiver<Aligned>,
) -> Result<(), Option<Failure>> {
    let failed = |error: io::Error| {
        Some(
            Failure::new(Kind::Input, "reading the image failed")
                .hint("the disk does not boot as it is now; run the same command again, which resumes")
                .because(error),
        )
    };
    let send = |stretch: Raw| raw.send(Ok(stretch)).map_err(|_| None);
    let buffer = || unused.try_recv().unwrap_or_else(|_| Aligned::new(CHUNK));
    let epoch = source.facts().epoch;
    for it in moves {
        source.skip(it.from, &mut buffer()).map_err(failed)?;
        if it.esp && (!identity.is_empty() || it.room != it.length) {
            let mut image = vec![0; usize::try_from(it.length).unwrap_or(0)];
            source.read(&mut image).map_err(failed)?;
            let esp = esp::compose(&image, it.room, sector, epoch, identity).map_err(Some)?;
            drop(image);
            for (piece, at) in esp.chunks(CHUNK).zip((it.to..).step_by(CHUNK)) {
                let mut bytes = buffer();
                bytes[..piece.len()].copy_from_slice(piece);
                send(Raw { at, length: piece.len(), bytes, seal: None })?;
            }
            continue;
        }
        let mut done = 0;
        while done < it.length {
            let length = CHUNK.min(usize::try_from(it.length - done).unwrap_or(CHUNK));
            let mut bytes = buffer();
            let before = source.hasher().clone();
            source.read(&mut bytes[..length]).map_err(failed)?;
            let seal = Some(Seal { before, digest: source.hasher().clone().finish() });
            send(Raw { at: it.to + done, length, bytes, seal })?;
            done += length as u64;
        }
    }
    source.finish(&mut buffer()).map_err(Some)
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
