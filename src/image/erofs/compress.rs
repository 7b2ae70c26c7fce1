//! One file's bytes to ready clusters, wherever they will lie in an image.
//!
//! A file is cut into raw pieces of at most 128 KiB, all multiples of 4 KiB but the last; each piece is one zstd frame in
//! as few blocks as hold it, or lies there as it is when compression does not save at least a sixteenth. A piece whose
//! frame would leave much of its last block empty is shortened so that it ends shortly before a block does.
//!
//! Work is shared out in runs of [`RUN`] bytes, so that one large file keeps all threads busy too; the cuts depend on the
//! bytes alone, never on the number of threads.

use std::io::{self, Write};
use std::sync::mpsc;

use serde::{Deserialize, Serialize};
use zstd::zstd_safe::{self, CCtx, CParameter};

use super::ErofsError;
use super::format::{BLOCK, WINDOW_LOG};
use super::pack::{ZFile, ZIndex};
use crate::digest::Digest;
use crate::tree::Content;

/// Bytes of one block, for slices.
const BLOCK_LEN: usize = BLOCK as usize;
/// Raw bytes of the largest piece: the most that a read of 4 KiB has to decompress.
pub(super) const PIECE: usize = 1 << WINDOW_LOG;
/// Raw bytes that one thread takes at a time. Pieces do not cross runs.
pub(super) const RUN: u64 = 1 << 20;
/// A frame that leaves more than this of its last block empty is tried again with a shorter piece.
const WASTE: usize = 512;
/// Bytes by which such a try aims below the full blocks, so that most succeed at once.
const MARGIN: usize = 128;
/// How often it is tried.
const TRIES: usize = 2;

/// Raw bytes that are read at once, and the blocks that hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u32)", into = "(u64, u32)")]
pub struct Extent {
    /// Raw length in bytes.
    pub raw: u64,
    /// Blocks on disk: as many as the raw bytes need if they are stored as they are, fewer if compressed.
    pub blocks: u32,
}

impl Extent {
    /// Whether the blocks hold the raw bytes.
    pub fn is_plain(self) -> bool {
        u64::from(self.blocks) == self.raw.div_ceil(BLOCK)
    }
}

impl From<(u64, u32)> for Extent {
    fn from((raw, blocks): (u64, u32)) -> Self {
        Extent { raw, blocks }
    }
}

impl From<Extent> for (u64, u32) {
    fn from(extent: Extent) -> Self {
        (extent.raw, extent.blocks)
    }
}

/// A run made ready: its extents, and their blocks back to back.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) extents: Vec<Extent>,
    pub(super) bytes: Vec<u8>,
}

/// zstd with the parameters that every frame of an image shares.
struct Coder {
    context: CCtx<'static>,
    frame: Vec<u8>,
    second: Vec<u8>,
}

fn zstd_error(code: usize) -> io::Error {
    io::Error::other(format!("zstd: {}", zstd_safe::get_error_name(code)))
}

impl Coder {
    fn new(level: u8) -> io::Result<Self> {
        let mut context = CCtx::create();
        for parameter in [
            CParameter::CompressionLevel(i32::from(level)),
            // The kernel makes its window from the superblock's record and refuses a frame that needs more.
            CParameter::WindowLog(u32::from(WINDOW_LOG)),
            CParameter::ChecksumFlag(false),
            CParameter::ContentSizeFlag(true),
        ] {
            context.set_parameter(parameter).map_err(zstd_error)?;
        }
        let room = || vec![0; zstd_safe::compress_bound(PIECE)];
        Ok(Coder { context, frame: room(), second: room() })
    }

    /// Cuts and compresses one run.
    fn run(&mut self, all: &[u8]) -> io::Result<Run> {
        let mut run = Run::default();
        let mut at = 0;
        while at < all.len() {
            let raw = &all[at..];
            // Two halves rather than a full piece and a short one: short pieces compress badly.
            let mut take = match raw.len() {
                all @ 0..=PIECE => all,
                more if more < 2 * PIECE => more.div_ceil(2).next_multiple_of(BLOCK_LEN),
                _ => PIECE,
            };
            let mut len = self.context.compress2(&mut self.frame[..], &raw[..take]).map_err(zstd_error)?;
            if worthwhile(take, len) {
                // The last piece of a run stays whole: what is cut off it would need a block of its own.
                if take < raw.len() {
                    (take, len) = self.shorten(raw, take, len)?;
                }
                let blocks = len.div_ceil(BLOCK_LEN);
                // Zeros go before the frame: the last block is full (EROFS_FEATURE_INCOMPAT_ZERO_PADDING).
                run.bytes.resize(run.bytes.len() + blocks * BLOCK_LEN - len, 0);
                run.bytes.extend(&self.frame[..len]);
                run.extents.push(Extent { raw: take as u64, blocks: blocks as u32 });
            } else {
                // The kernel refuses a stored extent that reaches into the next cluster, so the first one only fills up
                // the cluster that the piece before it began to use.
                if at % BLOCK_LEN != 0 {
                    take = take.min(BLOCK_LEN - at % BLOCK_LEN);
                }
                run.bytes.extend(&raw[..take]);
                run.bytes.resize(run.bytes.len().next_multiple_of(BLOCK_LEN), 0);
                run.extents.push(Extent { raw: take as u64, blocks: take.div_ceil(BLOCK_LEN) as u32 });
            }
            at += take;
        }
        Ok(run)
    }

    /// The first `take` bytes of `raw` made a frame of `len` bytes: looks for a shorter piece whose frame fills its blocks
    /// better, and says its length and that of its frame.
    fn shorten(&mut self, raw: &[u8], take: usize, len: usize) -> io::Result<(usize, usize)> {
        let full = len / BLOCK_LEN * BLOCK_LEN;
        if full == 0 || len - full > BLOCK_LEN - WASTE {
            return Ok((take, len));
        }
        let mut guess = (take, len);
        for _ in 0..TRIES {
            // As if the piece were equally dense everywhere, and a little less.
            let shorter = guess.0 * (full - MARGIN) / guess.1;
            if shorter < 2 * BLOCK_LEN || shorter >= take {
                break;
            }
            let again = self.context.compress2(&mut self.second[..], &raw[..shorter]).map_err(zstd_error)?;
            if again <= full {
                // A cut that no longer saves a block has to be stored as it is: then the longer piece is better.
                if !worthwhile(shorter, again) {
                    break;
                }
                std::mem::swap(&mut self.frame, &mut self.second);
                return Ok((shorter, again));
            }
            guess = (shorter, again);
        }
        Ok((take, len))
    }
}

/// Whether a frame of `len` bytes is kept for `raw` bytes: it has to save a sixteenth of the blocks, and at least one.
fn worthwhile(raw: usize, len: usize) -> bool {
    let clusters = raw.div_ceil(BLOCK_LEN);
    len.div_ceil(BLOCK_LEN) + clusters.div_ceil(16) <= clusters
}

/// How many runs `size` bytes make.
pub(super) fn runs(size: u64) -> u64 {
    size.div_ceil(RUN)
}

/// Reads and compresses runs `0..count` on `threads` threads and gives them to `sink` in order. `read(n)` is the raw
/// bytes of run `n`. Threads take turns, each at most two runs ahead of the sink, so memory stays at a few MiB per thread.
pub(super) fn in_order(
    level: u8,
    threads: usize,
    count: usize,
    read: impl Fn(usize) -> Result<Vec<u8>, ErofsError> + Sync,
    mut sink: impl FnMut(usize, Run) -> Result<(), ErofsError>,
) -> Result<(), ErofsError> {
    let threads = threads.clamp(1, count.max(1));
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..threads)
            .map(|lane| {
                let (send, receive) = mpsc::sync_channel(2);
                let read = &read;
                scope.spawn(move || {
                    let mut coder = Coder::new(level);
                    for n in (lane..count).step_by(threads) {
                        let run = match &mut coder {
                            Ok(coder) => read(n).and_then(|raw| coder.run(&raw).map_err(ErofsError::Io)),
                            Err(e) => Err(ErofsError::Io(io::Error::other(e.to_string()))),
                        };
                        let failed = run.is_err();
                        // A closed channel means that another lane or the sink failed: nobody waits for more.
                        if send.send(run).is_err() || failed {
                            return;
                        }
                    }
                });
                receive
            })
            .collect();
        for n in 0..count {
            let run = lanes[n % threads].recv().map_err(|_| {
                ErofsError::Io(io::Error::other("a compression thread ended before its work did"))
            })??;
            sink(n, run)?;
        }
        Ok(())
    })
}

/// The raw bytes of run `n` of `content`. The first run of a file also proves the file's digest, so that a damaged pack
/// is an error and never ends up in an image.
fn read_run(content: &Content, n: u64) -> Result<Vec<u8>, ErofsError> {
    let named = |source| ErofsError::Read { digest: content.digest(), source };
    if content.size() <= RUN {
        return content.read().map_err(named);
    }
    if n == 0 {
        let (digest, _) = Digest::of_reader(content.reader()).map_err(named)?;
        if digest != content.digest() {
            return Err(named(not_this_digest()));
        }
    }
    let start = n * RUN;
    let mut raw = vec![0; RUN.min(content.size() - start) as usize];
    content.read_exact_at(&mut raw, start).map_err(named)?;
    Ok(raw)
}

/// What is said of content that changed under its digest.
pub(super) fn not_this_digest() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the bytes do not have this digest any more")
}

/// Compresses every file of `files` that does not belong in the packed inode (see [`super::SMALL`]) into `out`, in the
/// order given, each content once. The bytes written and the index depend on the contents, their order and `level` (1 to
/// 19) only.
///
/// Small files are passed over: they are compressed together when an image is written.
///
/// # Errors
/// A content that cannot be read or does not have its digest, `out` failing, a level out of range.
pub fn compress_tree<'a>(
    files: impl IntoIterator<Item = &'a Content>,
    level: u8,
    threads: usize,
    out: &mut dyn Write,
) -> Result<ZIndex, ErofsError> {
    super::check_level(level)?;
    let mut index = ZIndex::new(level);
    let mut seen = std::collections::BTreeSet::new();
    let mut jobs = Vec::new();
    for content in files {
        if content.size() > super::SMALL && seen.insert(content.digest()) {
            jobs.extend((0..runs(content.size())).map(|n| (content, n)));
        }
    }
    let mut at = 0;
    let mut crc = crc32fast::Hasher::new();
    in_order(
        level,
        threads,
        jobs.len(),
        |i| read_run(jobs[i].0, jobs[i].1),
        |i, run| {
            let (content, n) = jobs[i];
            out.write_all(&run.bytes)?;
            if n == 0 {
                let file = ZFile { size: content.size(), block: at, extents: Vec::new(), crc: 0 };
                index.files.insert(content.digest(), file);
                crc.reset();
            }
            crc.update(&run.bytes);
            let file =
                index.files.get_mut(&content.digest()).expect("inserted with the first run of the file");
            for extent in run.extents {
                super::pack::push(&mut file.extents, extent);
            }
            file.crc = crc.clone().finalize();
            at += run.bytes.len() as u64 / BLOCK;
            Ok(())
        },
    )?;
    Ok(index)
}
