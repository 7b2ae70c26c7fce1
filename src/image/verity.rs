//! dm-verity: a tree of SHA-256 digests over a file, whose root digest vouches for every block of it.
//!
//! ```text
//! hash file = superblock | top level | ... | lowest level      all in blocks of 4096 bytes
//! level     = digests of 32 bytes, 128 to a block, the last block filled up with zeros
//! digest    = sha256(salt, block of 4096 bytes)
//! ```
//!
//! The lowest level holds the digests of the data blocks, each level above those of the blocks below, and the [`RootHash`] is the
//! digest of the one block on top. [`format`](fn@format) reads the data once, with several threads, and writes the bytes that
//! `veritysetup format` would write for the same salt and UUID; the lowest level (1/128 of the data) is held in memory.
//! [`verify`] finds the block that is wrong. Source of the form: cryptsetup's on-disk format page and
//! `Documentation/admin-guide/device-mapper/verity.rst` of Linux.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::digest::Digest;

/// Size of data and hash blocks in bytes: the page size, which every kernel takes.
pub const BLOCK: usize = 4096;
const DIGEST: usize = 32;
const PER_BLOCK: usize = BLOCK / DIGEST;
const SIGNATURE: &[u8; 8] = b"verity\0\0";
/// Room for the salt in the superblock.
const MAX_SALT: usize = 256;
/// Digests that a thread makes before it asks for more work: 4 MiB of data.
const UNIT: usize = 1024;

/// What a hash tree is made with, besides the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// Put before every block that is hashed; at most 256 bytes.
    pub salt: Vec<u8>,
    /// Names the pair of data and tree; no part of the hash.
    pub uuid: Uuid,
}

/// The digest on top of a hash tree: the `roothash=` of a kernel command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootHash(Digest);

impl RootHash {
    /// A root hash that was read or written as a digest.
    pub fn new(digest: Digest) -> Self {
        RootHash(digest)
    }

    /// The digest.
    pub fn digest(&self) -> Digest {
        self.0
    }

    /// The GPT partition UUIDs of the data and of its hash tree: the first and the last 128 bits of the root hash, by which
    /// systemd finds them (Discoverable Partitions Specification, "root verity").
    pub fn partition_uuids(&self) -> (Uuid, Uuid) {
        let (first, last) = self.0.as_bytes().split_at(16);
        let uuid = |half: &[u8]| Uuid::from_slice(half).expect("half of 32 bytes is the 16 of a UUID");
        (uuid(first), uuid(last))
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A stretch of a file or device: a whole file, or a partition in an image of a disk.
#[derive(Debug, Clone, Copy)]
pub struct Extent<'a> {
    /// Where it lies.
    pub file: &'a File,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl<'a> Extent<'a> {
    /// All of `file`.
    pub fn whole(file: &'a File) -> io::Result<Self> {
        Ok(Extent { file, offset: 0, len: file.metadata()?.len() })
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        if at.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(buffer, self.offset + at)
    }
}

/// Why a hash tree cannot be made, or does not fit its data.
#[derive(Debug, thiserror::Error)]
pub enum VerityError {
    /// Data that is empty or ends in the middle of a block.
    #[error(
        "{0} bytes of data are not a whole number of 4096-byte blocks, and at least one; pad the file with zeros"
    )]
    Size(u64),
    /// A salt that the superblock has no room for.
    #[error("a salt of {0} bytes is longer than the 256 of a dm-verity superblock")]
    Salt(usize),
    /// The superblock is missing or describes another form than the one of this module.
    #[error("dm-verity superblock: {0}")]
    Superblock(&'static str),
    /// The hash tree is for other data.
    #[error("the hash tree is for {tree} blocks of data, but there are {data}")]
    Length {
        /// Blocks that the superblock names.
        tree: u64,
        /// Blocks that are there.
        data: u64,
    },
    /// The block on top does not have the root hash.
    #[error("the tree has the root hash {found}, not {wanted}: it is damaged or belongs to another image")]
    Root {
        /// The root hash that was asked for.
        wanted: RootHash,
        /// The one on disk.
        found: RootHash,
    },
    /// A block of the tree does not have the digest that the level above holds.
    #[error("hash block {block} (level {level}, 0 is the lowest) is damaged")]
    HashBlock {
        /// Level, counted from the data.
        level: usize,
        /// Number of the block in the hash file; the superblock is 0.
        block: u64,
    },
    /// A data block does not have its digest.
    #[error("data block {block} (byte {offset} on) is damaged")]
    DataBlock {
        /// Its number.
        block: u64,
        /// Its first byte in the data.
        offset: u64,
    },
    /// Reading or writing failed.
    #[error("dm-verity hash tree: {0}")]
    Io(#[from] io::Error),
}

/// The length in bytes of the hash file over `data` bytes, superblock included. Fails if `data` is not in whole blocks.
pub fn hash_file_size(data: u64) -> Result<u64, VerityError> {
    Ok((1 + levels(blocks(data)?).iter().sum::<u64>()) * BLOCK as u64)
}

/// Writes the hash file over `data` to `out` with `threads` threads; the bytes do not depend on `threads`.
pub fn format(
    data: Extent<'_>,
    parameters: &Parameters,
    threads: NonZeroUsize,
    mut out: impl Write,
) -> Result<RootHash, VerityError> {
    let salt = &parameters.salt;
    if salt.len() > MAX_SALT {
        return Err(VerityError::Salt(salt.len()));
    }
    let count = blocks(data.len)?;
    let mut salted = Sha256::new();
    salted.update(salt);
    let mut lowest = vec![0; usize::try_from(count).map_err(|_| VerityError::Size(data.len))? * DIGEST];
    let work = Mutex::new(lowest.chunks_mut(UNIT * DIGEST).enumerate());
    each(threads, || {
        let mut buffer = vec![0; UNIT * BLOCK];
        loop {
            let Some((unit, digests)) = work.lock().expect("no thread panics in next()").next() else {
                return Ok(());
            };
            let bytes = &mut buffer[..digests.len() / DIGEST * BLOCK];
            data.read(bytes, (unit * UNIT * BLOCK) as u64)?;
            hash_blocks(&salted, bytes, digests);
        }
    })?;

    // From the lowest level to the top; the file wants them the other way round.
    let mut tree = vec![lowest];
    while let Some(below) = tree.last_mut().filter(|level| level.len() > DIGEST) {
        below.resize(below.len().next_multiple_of(BLOCK), 0);
        let mut level = vec![0; below.len() / BLOCK * DIGEST];
        hash_blocks(&salted, below, &mut level);
        tree.push(level);
    }
    let root = tree.pop().and_then(|top| <[u8; DIGEST]>::try_from(top).ok());
    let root = RootHash(Digest::from_bytes(root.expect("the loop ends at a level of one digest")));

    let mut superblock = [0; BLOCK];
    superblock[..8].copy_from_slice(SIGNATURE);
    superblock[8..12].copy_from_slice(&1_u32.to_le_bytes()); // version of the superblock
    superblock[12..16].copy_from_slice(&1_u32.to_le_bytes()); // hash type: salt before the block
    superblock[16..32].copy_from_slice(parameters.uuid.as_bytes());
    superblock[32..38].copy_from_slice(b"sha256");
    superblock[64..68].copy_from_slice(&(BLOCK as u32).to_le_bytes()); // data block size
    superblock[68..72].copy_from_slice(&(BLOCK as u32).to_le_bytes()); // hash block size
    superblock[72..80].copy_from_slice(&count.to_le_bytes());
    superblock[80..82].copy_from_slice(&(salt.len() as u16).to_le_bytes());
    superblock[88..88 + salt.len()].copy_from_slice(salt);
    out.write_all(&superblock)?;
    for level in tree.iter().rev() {
        out.write_all(level)?;
    }
    out.flush()?;
    Ok(root)
}

/// Reads the parameters and the number of data blocks from the superblock at the start of `hashes`.
pub fn superblock(hashes: Extent<'_>) -> Result<(Parameters, u64), VerityError> {
    let mut block = [0; BLOCK];
    hashes.read(&mut block, 0)?;
    let u32_at = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().expect("4 bytes"));
    if &block[..8] != SIGNATURE {
        return Err(VerityError::Superblock("the signature `verity` is missing"));
    }
    if (u32_at(8), u32_at(12)) != (1, 1) {
        return Err(VerityError::Superblock("only version 1 with hash type 1 is known"));
    }
    if &block[32..39] != b"sha256\0" || (u32_at(64), u32_at(68)) != (BLOCK as u32, BLOCK as u32) {
        return Err(VerityError::Superblock("only sha256 over 4096-byte blocks is known"));
    }
    let salt = usize::from(u16::from_le_bytes([block[80], block[81]]));
    if salt > MAX_SALT {
        return Err(VerityError::Superblock("the salt is longer than its room"));
    }
    let uuid = Uuid::from_slice(&block[16..32]).expect("16 bytes");
    let count = u64::from_le_bytes(block[72..80].try_into().expect("8 bytes"));
    Ok((Parameters { salt: block[88..88 + salt].to_vec(), uuid }, count))
}

/// Checks every block of `data` against the tree in `hashes`, and the tree against `root`. The error names the first block that
/// is wrong: the tree is checked from the top down, then the data from its start.
pub fn verify(
    data: Extent<'_>,
    hashes: Extent<'_>,
    root: RootHash,
    threads: NonZeroUsize,
) -> Result<(), VerityError> {
    let (parameters, count) = superblock(hashes)?;
    let there = blocks(data.len)?;
    if there != count {
        return Err(VerityError::Length { tree: count, data: there });
    }
    let mut salted = Sha256::new();
    salted.update(&parameters.salt);

    let mut above = root.0.as_bytes().to_vec();
    let mut first = 1;
    for (level, length) in levels(count).into_iter().enumerate().rev() {
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| VerityError::Size(data.len))? * BLOCK];
        hashes.read(&mut bytes, first * BLOCK as u64)?;
        let mut digests = vec![0; bytes.len() / BLOCK * DIGEST];
        hash_blocks(&salted, &bytes, &mut digests);
        if let Some(wrong) = first_difference(&digests, &above) {
            if first == 1 {
                let found = digests.try_into().expect("the top level is one block");
                return Err(VerityError::Root { wanted: root, found: RootHash(Digest::from_bytes(found)) });
            }
            return Err(VerityError::HashBlock { level, block: first + wrong as u64 });
        }
        first += length;
        above = bytes;
    }

    let wrong = Mutex::new(None::<u64>);
    let work = Mutex::new((0..count).step_by(UNIT).zip(above.chunks(UNIT * DIGEST)));
    each(threads, || {
        let (mut buffer, mut digests) = (vec![0; UNIT * BLOCK], vec![0; UNIT * DIGEST]);
        loop {
            let Some((start, wanted)) = work.lock().expect("no thread panics in next()").next() else {
                return Ok(());
            };
            let n = UNIT.min(usize::try_from(count - start).unwrap_or(UNIT));
            let (bytes, digests) = (&mut buffer[..n * BLOCK], &mut digests[..n * DIGEST]);
            data.read(bytes, start * BLOCK as u64)?;
            hash_blocks(&salted, bytes, digests);
            if let Some(at) = first_difference(digests, wanted) {
                let block = start + at as u64;
                let mut wrong = wrong.lock().expect("no thread panics while it holds the lock");
                *wrong = Some(wrong.map_or(block, |known| known.min(block)));
            }
        }
    })?;
    match wrong.into_inner().expect("no thread panics while it holds the lock") {
        Some(0) if levels(count).is_empty() => {
            // One block of data: its digest is the root hash itself.
            let mut found = [0; DIGEST];
            let mut bytes = [0; BLOCK];
            data.read(&mut bytes, 0)?;
            hash_blocks(&salted, &bytes, &mut found);
            Err(VerityError::Root { wanted: root, found: RootHash(Digest::from_bytes(found)) })
        }
        Some(block) => Err(VerityError::DataBlock { block, offset: block * BLOCK as u64 }),
        None => Ok(()),
    }
}

/// The number of blocks in `data` bytes.
fn blocks(data: u64) -> Result<u64, VerityError> {
    if data == 0 || !data.is_multiple_of(BLOCK as u64) {
        Err(VerityError::Size(data))
    } else {
        Ok(data / BLOCK as u64)
    }
}

/// The number of blocks of each level over `data` blocks, the lowest first.
fn levels(data: u64) -> Vec<u64> {
    std::iter::successors(Some(data), |below| Some(below.div_ceil(PER_BLOCK as u64)))
        .take_while(|below| *below > 1)
        .map(|below| below.div_ceil(PER_BLOCK as u64))
        .collect()
}

/// Fills `digests` with the digest of each block of `bytes`; `salted` has taken the salt already.
fn hash_blocks(salted: &Sha256, bytes: &[u8], digests: &mut [u8]) {
    for (block, digest) in bytes.chunks_exact(BLOCK).zip(digests.chunks_exact_mut(DIGEST)) {
        digest.copy_from_slice(&salted.clone().chain_update(block).finalize());
    }
}

/// The first place, counted in digests, where `wanted` is not what was `found`.
fn first_difference(found: &[u8], wanted: &[u8]) -> Option<usize> {
    found.chunks_exact(DIGEST).zip(wanted.chunks_exact(DIGEST)).position(|(found, wanted)| found != wanted)
}

/// Runs `work` in `threads` threads and gives the first error.
fn each(threads: NonZeroUsize, work: impl Fn() -> io::Result<()> + Sync) -> io::Result<()> {
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads.get()).map(|_| scope.spawn(&work)).collect();
        running.into_iter().try_for_each(|thread| thread.join().expect("hashing does not panic"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const FOUR: NonZeroUsize = NonZeroUsize::new(4).unwrap();

    fn parameters() -> Parameters {
        Parameters {
            salt: (0..32).collect(),
            uuid: Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        }
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// `blocks` blocks, all different.
    fn data(blocks: usize) -> File {
        let mut bytes = vec![0; blocks * BLOCK];
        bytes
            .chunks_exact_mut(BLOCK)
            .enumerate()
            .for_each(|(i, b)| b[..8].copy_from_slice(&(i as u64).to_le_bytes()));
        file(&bytes)
    }

    fn formatted(data: &File, threads: usize) -> (File, RootHash) {
        let mut hashes = tempfile::tempfile().unwrap();
        let threads = NonZeroUsize::new(threads).unwrap();
        let root = format(Extent::whole(data).unwrap(), &parameters(), threads, &mut hashes).unwrap();
        let size = hash_file_size(data.metadata().unwrap().len()).unwrap();
        assert_eq!(hashes.metadata().unwrap().len(), size);
        (hashes, root)
    }

    fn check(data: &File, hashes: &File, root: RootHash) -> Result<(), VerityError> {
        verify(Extent::whole(data).unwrap(), Extent::whole(hashes).unwrap(), root, FOUR)
    }

    fn flip(file: &File, at: u64) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }

    #[test]
    fn the_tree_is_the_one_that_veritysetup_makes() {
        // From `veritysetup format --salt $(printf %02x {0..31}) --uuid …` 2.6.1 over the same data.
        for (blocks, root, hashes) in [
            (
                1,
                "4ce3ecf32c133bf6321901b6092219474b6ac91a19d0304621d629e6bb9987dc",
                "443bf1651a8d49eabfbc0108c61dec7d2f0043ed3596a11d058a4e38a48b46e4",
            ),
            (
                2,
                "7c8420191d9250f8d75e13e56b300292afce0d0bf1c2515baf5a6326cc9ad89f",
                "c2f30e38150880b276677a12150c9e79112284254c5e8c5a7df1532ab912122e",
            ),
            (
                128,
                "4f1c23580fa1b601d08525c47b320f18c4029317a0d4b94f8776a9b7381be987",
                "ee78a0308d7fb44c4f2ea953317ac8d1126fe5b3bbfc89badcfb5f95e253f6e6",
            ),
            (
                129,
                "8378b1c4c95bcbcb32a532e3f8a4a1e4bc5e97e04d700521feea295c6a330a5a",
                "23cd8d18c81e355f67408633cd98d6d91d116e83c925880d1fbf328a728d8d42",
            ),
            (
                300,
                "8b3be5694618a0dff8415cdc812cd6787fe92b4211d2896385111d73b5144386",
                "20b4d6481d4e915bb6e87b23af4aec993d34eabf3aba57f872e93853e357abf1",
            ),
            (
                20000,
                "2c75e919e7ab0991e84d37531eb94a324ed4124cd5e7629be26c54f06c6091ab",
                "0cfc6e2768112525a1e3fa40011b9eb65aeeb1c384d0d4cfa7d4d5fae4e2db29",
            ),
        ] {
            let (mut file, found) = formatted(&data(blocks), 3);
            let mut bytes = Vec::new();
            io::Seek::rewind(&mut file).unwrap();
            file.read_to_end(&mut bytes).unwrap();
            assert_eq!(
                (found.to_string().as_str(), Digest::of(&bytes).to_string().as_str()),
                (root, hashes),
                "{blocks} blocks"
            );
        }
    }

    #[test]
    fn the_first_damaged_block_is_named_at_every_level() {
        let data = data(20_000);
        let (hashes, root) = formatted(&data, 2);
        check(&data, &hashes, root).unwrap();
        flip(&data, 17_000 * 4096 + 99);
        flip(&data, 1500 * 4096);
        assert!(matches!(check(&data, &hashes, root), Err(VerityError::DataBlock { block: 1500, .. })));
        // Levels of 157, 2 and 1 blocks behind the superblock.
        flip(&hashes, 5 * 4096);
        assert!(matches!(check(&data, &hashes, root), Err(VerityError::HashBlock { level: 0, block: 5 })));
        flip(&hashes, 3 * 4096);
        assert!(matches!(check(&data, &hashes, root), Err(VerityError::HashBlock { level: 1, block: 3 })));
        flip(&hashes, 4096);
        assert!(matches!(check(&data, &hashes, root), Err(VerityError::Root { .. })));
    }

    #[test]
    fn a_single_block_has_no_tree_and_is_still_checked() {
        let data = data(1);
        let (hashes, root) = formatted(&data, 1);
        check(&data, &hashes, root).unwrap();
        flip(&data, 4000);
        assert!(matches!(check(&data, &hashes, root), Err(VerityError::Root { .. })));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (odd, none) = (file(&[0; 5000]), file(&[]));
        for data in [&odd, &none] {
            let made = format(Extent::whole(data).unwrap(), &parameters(), FOUR, io::sink());
            assert!(matches!(made, Err(VerityError::Size(_))));
        }
        let long = Parameters { salt: vec![0; 257], ..parameters() };
        let data = data(300);
        let made = format(Extent::whole(&data).unwrap(), &long, FOUR, io::sink());
        assert!(matches!(made, Err(VerityError::Salt(257))));
        let (hashes, root) = formatted(&data, 1);
        let short = Extent { file: &data, offset: 0, len: 4096 * 299 };
        let checked = verify(short, Extent::whole(&hashes).unwrap(), root, FOUR);
        assert!(matches!(checked, Err(VerityError::Length { tree: 300, data: 299 })));
        for at in [0, 8, 12, 32, 64, 68, 81] {
            let (hashes, _) = formatted(&data, 1);
            flip(&hashes, at);
            assert!(matches!(check(&data, &hashes, root), Err(VerityError::Superblock(_))), "byte {at}");
        }
        assert!(matches!(check(&data, &file(&[0; 99]), root), Err(VerityError::Io(_))));
    }

    #[test]
    fn the_partition_uuids_are_the_halves_of_the_root_hash() {
        let root = RootHash::new(
            "00112233445566778899aabbccddeeff0123456789abcdeffedcba9876543210".parse().unwrap(),
        );
        let (data, hashes) = root.partition_uuids();
        assert_eq!(data.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(hashes.to_string(), "01234567-89ab-cdef-fedc-ba9876543210");
    }
}
