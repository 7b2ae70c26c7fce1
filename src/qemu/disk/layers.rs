//! The bytes of one disk: an image that is never written, what was written over it, and what undoes all that was not flushed.
//!
//! ```text
//! overlay   a sparse file as large as the disk; `present` says which blocks of it count
//! image     below it; past its end everything is zero
//! undo      the blocks in `saved` as they were at the last flush; `dirty` says which blocks were changed since
//! ```
//!
//! Writes go to the overlay at once. Before the first change of a block since the last flush its old content is copied to
//! `undo`, if the overlay had it; if not, forgetting the block undoes the change. So a flush costs next to nothing, which guests ask
//! for often, and a power cut has to work for what it takes away, which is rare.
//!
//! What a power cut takes: the cache of a drive writes back in any order, so each block of [`BLOCK`] bytes has its own fate. It
//! depends on the seed and the number of the block alone. The seed also gives the share of blocks that survive: none in one of eight cuts
//! (the cache was all there was), all in another (the process died, the drive did not), else anything between. A write with "force unit
//! access" makes all of the blocks that it touches durable.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use fs_err as fs;
use fs_err::os::unix::fs::FileExt as _;
use roaring::RoaringBitmap;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use super::Cut;

/// What a drive writes back as a whole; the page of a guest's cache too.
pub(super) const BLOCK: u64 = 4096;
/// The unit that a torn block is torn into.
const SECTOR: u64 = 512;
/// Numbers of blocks have 32 bits.
pub(super) const LARGEST: u64 = BLOCK << 32;
/// How much of a file is copied at once.
const CHUNK: u64 = 256 << 10;
/// How many saved blocks may lie in the undo file over a flush: making it empty costs more than using it again.
const UNDO_KEPT: u64 = (16 << 20) / BLOCK;

/// A raw image, opened read-only.
#[derive(Debug)]
pub(super) struct Image {
    file: fs::File,
    len: u64,
}

impl Image {
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        let file = fs::File::open(path)?;
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(std::io::Error::other(format!("{} is no regular file", path.display())));
        }
        Ok(Image { file, len: about.len() })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Layers {
    image: Option<Image>,
    size: u64,
    torn: bool,
    overlay: File,
    undo: File,
    present: RoaringBitmap,
    dirty: RoaringBitmap,
    saved: RoaringBitmap,
    /// Blocks that were copied to the undo file since it was last made empty.
    undo_used: u64,
}

impl Layers {
    /// Makes the files, without a name, in `folder`. `size` is at least the image's and at most [`LARGEST`].
    pub(super) fn new(folder: &Path, image: Option<Image>, size: u64, torn: bool) -> std::io::Result<Self> {
        let (overlay, undo) = (tempfile::tempfile_in(folder)?, tempfile::tempfile_in(folder)?);
        let layers = Layers {
            image,
            size,
            torn,
            overlay,
            undo,
            present: RoaringBitmap::new(),
            dirty: RoaringBitmap::new(),
            saved: RoaringBitmap::new(),
            undo_used: 0,
        };
        layers.overlay.set_len(layers.whole())?;
        layers.undo.set_len(layers.whole())?;
        Ok(layers)
    }

    /// The size in whole blocks.
    fn whole(&self) -> u64 {
        self.size.next_multiple_of(BLOCK)
    }

    pub(super) fn unflushed(&self) -> u64 {
        self.dirty.len()
    }

    /// Reads from `offset` on; the range must lie in the disk.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        let end = offset + into.len() as u64;
        let mut rest = into;
        for (run, present) in runs(blocks(offset..end), |block| self.present.contains(block)) {
            let bytes = bytes(&run);
            let (from, to) = (bytes.start.max(offset), bytes.end.min(end));
            let (part, more) = rest.split_at_mut(usize::try_from(to - from).unwrap_or(rest.len()));
            rest = more;
            if present {
                self.overlay.read_exact_at(part, from)?;
            } else {
                self.read_image(from, part)?;
            }
        }
        Ok(())
    }

    fn read_image(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        let len = self.image.as_ref().map_or(0, Image::len);
        let there = len.saturating_sub(offset).min(into.len() as u64);
        let (data, zero) = into.split_at_mut(usize::try_from(there).unwrap_or(0));
        zero.fill(0);
        match &self.image {
            Some(image) if !data.is_empty() => image.file.read_exact_at(data, offset),
            _ => Ok(()),
        }
    }

    /// Writes from `offset` on; the range must lie in the disk. With `fua` it outlives a power cut.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> std::io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let range = offset..offset + data.len() as u64;
        let touched = blocks(range.clone());
        if !fua {
            self.remember(touched.clone())?;
        }
        self.complete(touched.start, &range)?;
        self.complete(touched.end - 1, &range)?;
        self.overlay.write_all_at(data, offset)?;
        self.present.insert_range(touched.clone());
        if fua {
            self.settle(touched);
        }
        Ok(())
    }

    /// Makes `range` zero: with holes where whole blocks are, so that it costs no space.
    pub(super) fn zero(&mut self, range: Range<u64>, fua: bool) -> std::io::Result<()> {
        let touched = blocks(range.clone());
        let inner = range.start.div_ceil(BLOCK)..range.end / BLOCK;
        if inner.start >= inner.end {
            let length = usize::try_from(range.end - range.start).unwrap_or(0);
            return self.write(range.start, &vec![0; length], fua);
        }
        let edge = [0; BLOCK as usize];
        for edge_range in [range.start..inner.start * BLOCK, inner.end * BLOCK..range.end] {
            let length = usize::try_from(edge_range.end - edge_range.start).unwrap_or(0);
            self.write(edge_range.start, edge.get(..length).unwrap_or_default(), false)?;
        }
        let image = self.image.as_ref().map_or(0, Image::len).div_ceil(BLOCK);
        let inner = number(inner.start)..number(inner.end);
        // What is neither in the overlay nor in the image is zero already.
        let runs = runs(inner, |block| self.present.contains(block) || u64::from(block) < image);
        for (run, _) in runs.into_iter().filter(|(_, there)| *there) {
            self.remember(run.clone())?;
            punch(&self.overlay, bytes(&run))?;
            self.present.insert_range(run);
        }
        if fua {
            self.settle(touched);
        }
        Ok(())
    }

    /// Everything written so far outlives a power cut from now on.
    pub(super) fn flush(&mut self) -> std::io::Result<()> {
        self.dirty.clear();
        self.saved.clear();
        if self.undo_used > UNDO_KEPT {
            self.undo.set_len(0)?;
            self.undo.set_len(self.whole())?;
            self.undo_used = 0;
        }
        Ok(())
    }

    /// The power goes; see the module.
    pub(super) fn cut(&mut self, seed: u64) -> std::io::Result<Cut> {
        let mut cut = Cut::default();
        let share = survivors(seed);
        for block in std::mem::take(&mut self.dirty) {
            let dice = mix(seed ^ mix(u64::from(block)));
            let tear = self.torn && dice >> 8 & 0xf == 0;
            if tear && (1..ALL).contains(&share) {
                self.tear(block, dice >> 16)?;
                cut.torn += 1;
            } else if dice & 0xff < share {
                cut.kept += 1;
            } else {
                if self.saved.contains(block) {
                    copy(&self.undo, &self.overlay, bytes(&(block..block + 1)))?;
                } else {
                    self.present.remove(block);
                }
                cut.dropped += 1;
            }
        }
        self.flush()?;
        Ok(cut)
    }

    /// Gives each sector of a dirty block back that has its bit clear in `survive`.
    fn tear(&mut self, block: u32, survive: u64) -> std::io::Result<()> {
        let start = u64::from(block) * BLOCK;
        let mut sector = [0; SECTOR as usize];
        for index in (0..BLOCK / SECTOR).filter(|index| survive >> index & 1 == 0) {
            let at = start + index * SECTOR;
            if self.saved.contains(block) {
                self.undo.read_exact_at(&mut sector, at)?;
            } else {
                self.read_image(at, &mut sector)?;
            }
            self.overlay.write_all_at(&sector, at)?;
        }
        Ok(())
    }

    /// Notes that blocks are about to change, and saves those that would be lost by it.
    fn remember(&mut self, touched: Range<u32>) -> std::io::Result<()> {
        if self.dirty.contains_range(touched.clone()) {
            return Ok(());
        }
        let lost = |block| self.present.contains(block) && !self.dirty.contains(block);
        for (run, _) in runs(touched.clone(), lost).into_iter().filter(|(_, lost)| *lost) {
            copy(&self.overlay, &self.undo, bytes(&run))?;
            self.undo_used += u64::from(run.end - run.start);
            self.saved.insert_range(run);
        }
        self.dirty.insert_range(touched);
        Ok(())
    }

    /// Fills a block that is not in the overlay with what it is now, unless `range` covers all of it.
    fn complete(&self, block: u32, range: &Range<u64>) -> std::io::Result<()> {
        let all = bytes(&(block..block + 1));
        if self.present.contains(block) || (range.start <= all.start && all.end <= range.end) {
            return Ok(());
        }
        let mut content = [0; BLOCK as usize];
        self.read_image(all.start, &mut content)?;
        self.overlay.write_all_at(&content, all.start)
    }

    /// Blocks as they are now outlive a power cut.
    fn settle(&mut self, touched: Range<u32>) {
        self.dirty.remove_range(touched.clone());
        self.saved.remove_range(touched);
    }
}

/// Blocks out of 256 that survive: all of them.
const ALL: u64 = 256;

/// How many blocks of 256 survive the cut with this seed.
fn survivors(seed: u64) -> u64 {
    let dice = mix(seed);
    match dice & 7 {
        0 => 0,
        1 => ALL,
        _ => dice >> 8 & 0xff,
    }
}

/// The output function of SplitMix64: every bit of the result hangs on every bit of `value`
/// (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// The number of a block; a disk has no more than fit ([`LARGEST`]).
fn number(block: u64) -> u32 {
    u32::try_from(block).unwrap_or(u32::MAX)
}

/// The blocks that a range of bytes touches.
fn blocks(range: Range<u64>) -> Range<u32> {
    number(range.start / BLOCK)..number(range.end.div_ceil(BLOCK))
}

fn bytes(run: &Range<u32>) -> Range<u64> {
    u64::from(run.start) * BLOCK..u64::from(run.end) * BLOCK
}

/// Parts of `range` in order, each with what `what` says of all its blocks.
fn runs(range: Range<u32>, what: impl Fn(u32) -> bool) -> Vec<(Range<u32>, bool)> {
    let mut runs: Vec<(Range<u32>, bool)> = Vec::new();
    for block in range {
        let answer = what(block);
        match runs.last_mut() {
            Some((run, same)) if *same == answer => run.end = block + 1,
            _ => runs.push((block..block + 1, answer)),
        }
    }
    runs
}

/// Copies a range between sparse files, holes as holes.
fn copy(from: &File, to: &File, range: Range<u64>) -> std::io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        // One block is sooner copied than asked about.
        let single = range.end - range.start <= BLOCK;
        let data = if single { at } else { next_data(from, at)?.min(range.end) };
        if at < data {
            punch(to, at..data)?;
        }
        at = data;
        let end = if single { range.end } else { (at + CHUNK).min(range.end) };
        let mut buffer = vec![0; usize::try_from(end - at).unwrap_or(0)];
        from.read_exact_at(&mut buffer, at)?;
        to.write_all_at(&buffer, at)?;
        at = end;
    }
    Ok(())
}

/// Where data come next in a sparse file; `u64::MAX` when none do (lseek(2), SEEK_DATA).
fn next_data(file: &File, at: u64) -> std::io::Result<u64> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(data),
        Err(Errno::NXIO) => Ok(u64::MAX),
        Err(error) => Err(error.into()),
    }
}

/// Makes a range zero and gives its space back; a file system that has no holes gets zeroes written.
fn punch(file: &File, range: Range<u64>) -> std::io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, range.start, range.end - range.start) {
        Ok(()) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    let zeroes = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
    let mut at = range.start;
    while at < range.end {
        let length = usize::try_from((range.end - at).min(CHUNK)).unwrap_or(0);
        file.write_all_at(zeroes.get(..length).unwrap_or_default(), at)?;
        at += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
