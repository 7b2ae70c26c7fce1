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
const PIECE: usize = 1 << WINDOW_LOG;
/// The same in logical clusters.
pub(super) const PIECE_CLUSTERS: u32 = (PIECE / BLOCK_LEN) as u32;
/// Raw bytes that one thread takes at a time. Pieces do not cross runs.
pub(super) const RUN: u64 = 1 << 20;
/// A frame that leaves more than this of its last block empty is tried again with a shorter piece.
const WASTE: usize = 1024;

/// A row of logical clusters (4 KiB of raw bytes each) that is decompressed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct Extent {
    /// Raw length in units of 4 KiB; the last extent of a file ends where the file ends.
    pub clusters: u32,
    /// Blocks on disk: fewer than `clusters` if compressed, as many if stored as they are.
    pub blocks: u32,
}

impl Extent {
    /// Whether the blocks hold the raw bytes.
    pub fn is_plain(self) -> bool {
        self.blocks == self.clusters
    }
}

impl From<(u32, u32)> for Extent {
    fn from((clusters, blocks): (u32, u32)) -> Self {
        Extent { clusters, blocks }
    }
}

impl From<Extent> for (u32, u32) {
    fn from(extent: Extent) -> Self {
        (extent.clusters, extent.blocks)
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
    fn run(&mut self, mut raw: &[u8]) -> io::Result<Run> {
        let mut run = Run::default();
        while !raw.is_empty() {
            // Two halves rather than a full piece and a short one: short pieces compress badly.
            let mut take = match raw.len() {
                all @ 0..=PIECE => all,
                more if more < 2 * PIECE => more.div_ceil(2).next_multiple_of(BLOCK_LEN),
                _ => PIECE,
            };
            let mut len = self.context.compress2(&mut self.frame[..], &raw[..take]).map_err(zstd_error)?;
            let empty = len.next_multiple_of(BLOCK_LEN) - len;
            if empty > WASTE && len > BLOCK_LEN {
                // What fits in one block fewer, if the piece is equally dense everywhere.
                let fit = take as u64 * (len - len % BLOCK_LEN) as u64 / len as u64;
                let shorter = fit as usize / BLOCK_LEN * BLOCK_LEN;
                if shorter > 0 && shorter < take {
                    let again =
                        self.context.compress2(&mut self.second[..], &raw[..shorter]).map_err(zstd_error)?;
                    if again <= len - len % BLOCK_LEN {
                        (take, len) = (shorter, again);
                        std::mem::swap(&mut self.frame, &mut self.second);
                    }
                }
            }
            let clusters = take.div_ceil(BLOCK_LEN);
            let blocks = len.div_ceil(BLOCK_LEN);
            if blocks + clusters.div_ceil(16) <= clusters {
                // Zeros go before the frame: the last block is full (EROFS_FEATURE_INCOMPAT_ZERO_PADDING).
                let pad = blocks * BLOCK_LEN - len;
                run.bytes.resize(run.bytes.len() + pad, 0);
                run.bytes.extend(&self.frame[..len]);
                run.extents.push(Extent { clusters: clusters as u32, blocks: blocks as u32 });
            } else {
                run.bytes.extend(&raw[..take]);
                run.bytes.resize(run.bytes.len().next_multiple_of(BLOCK_LEN), 0);
                run.extents.push(Extent { clusters: clusters as u32, blocks: clusters as u32 });
            }
            raw = &raw[take..];
        }
        Ok(run)
    }
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
            let text = "the bytes do not have this digest any more";
            return Err(named(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
    }
    let start = n * RUN;
    let mut raw = vec![0; RUN.min(content.size() - start) as usize];
    content.read_exact_at(&mut raw, start).map_err(named)?;
    Ok(raw)
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
    in_order(
        level,
        threads,
        jobs.len(),
        |i| read_run(jobs[i].0, jobs[i].1),
        |i, run| {
            let (content, n) = jobs[i];
            out.write_all(&run.bytes)?;
            if n == 0 {
                let file = ZFile { size: content.size(), block: at, extents: Vec::new() };
                index.files.insert(content.digest(), file);
            }
            let file =
                index.files.get_mut(&content.digest()).expect("inserted with the first run of the file");
            for extent in run.extents {
                super::pack::push(&mut file.extents, extent);
            }
            at += run.bytes.len() as u64 / BLOCK;
            Ok(())
        },
    )?;
    Ok(index)
}
