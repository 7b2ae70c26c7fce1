//! Other formats of a disk that was built: `server.raw.zst` to download and flash, `server.qcow2` for hosts of virtual machines.
//!
//! They follow from the raw disk alone and have the same bytes whatever the number of threads. The manifest does not name them: it
//! follows from the lock, and which formats there are is the choice of whoever builds.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Place, WritesTo};
use crate::image::{qcow2, zst};
use crate::manifest::{self, Manifest, Stamp};
use crate::packages::Work;
use crate::pipeline::Target;
use crate::store::Store;

/// zstd level of `.raw.zst`. The root in it is compressed already, so higher levels take longer for nothing.
const ZST_LEVEL: i32 = 3;
/// zstd level of qcow2's clusters.
const QCOW2_LEVEL: i32 = 3;
/// Raised when a writer makes other bytes of the same disk.
const VERSION: u32 = 1;

/// A format beside the raw disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// The disk in one zstd frame.
    RawZst,
    /// QEMU's format, version 3, clusters compressed by zstd: QEMU 5.1 and later read it.
    Qcow2,
}

impl Format {
    /// The ending of its files' names.
    pub fn ending(self) -> &'static str {
        match self {
            Format::RawZst => "raw.zst",
            Format::Qcow2 => "qcow2",
        }
    }

    /// Its file for a target.
    pub fn path(self, target: &Target<'_>) -> PathBuf {
        target.out.join(format!("{}.{}", target.stem(), self.ending()))
    }
}

/// A file in another format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// File name.
    pub file: String,
    /// Bytes.
    pub size: u64,
    /// Of all its bytes.
    pub sha256: Digest,
    /// Whether it had to be written.
    pub written: bool,
}

/// What the store remembers of a file.
#[derive(Serialize, Deserialize)]
struct Remembered {
    disk: Digest,
    version: u32,
    size: u64,
    sha256: Digest,
    stamp: Stamp,
}

/// Writes the disk of `target`, which `manifest` describes, in another format, unless it is there and nobody touched it.
pub fn write(work: &Work<'_>, target: &Target<'_>, manifest: &Manifest, format: Format) -> Result<Written> {
    let path = format.path(target);
    let file = format!("{}.{}", target.stem(), format.ending());
    let memory = memory(work.store, &path)?;
    let disk = manifest.disk.sha256;
    if let Some(Remembered { size, sha256, .. }) = current(&memory, disk, &path) {
        return Ok(Written { file, size, sha256, written: false });
    }
    let spinner = work.ui.spinner("Writing", path.display().to_string());
    let temp = tempfile::Builder::new()
        .prefix(&format!(".{file}."))
        .suffix(".part")
        .tempfile_in(target.out)
        .writes_to(Place::Out, target.out)?;
    press(&target.raw(), format, work.threads, temp.as_file())
        .with_context(|| format!("writing {}", path.display()))
        .writes_to(Place::Out, target.out)?;
    let (sha256, size) = Digest::of_reader(fs::File::open(temp.path())?)?;
    fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    temp.persist(&path).map_err(|e| e.error).with_context(|| format!("writing {}", path.display()))?;
    drop(spinner);
    let stamp = Stamp::of(&path).with_context(|| format!("{} is gone", path.display()))?;
    manifest::write_json(&memory, &Remembered { disk, version: VERSION, size, sha256, stamp })
        .writes_to(Place::Store, work.store.root())?;
    Ok(Written { file, size, sha256, written: true })
}

fn press(raw: &Path, format: Format, threads: usize, out: &std::fs::File) -> Result<()> {
    let mut out = std::io::BufWriter::with_capacity(1 << 20, out);
    match format {
        Format::RawZst => {
            zst::write(raw, ZST_LEVEL, u32::try_from(threads).unwrap_or(1), &mut out)?;
        }
        Format::Qcow2 => {
            let threads = std::num::NonZeroUsize::new(threads).unwrap_or(std::num::NonZeroUsize::MIN);
            qcow2::write(raw, qcow2::Compression::Zstd(QCOW2_LEVEL), threads, &mut out)?;
        }
    }
    out.flush()?;
    Ok(())
}

fn memory(store: &Store, path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).context("making the output folder absolute")?;
    let name = Digest::of(path.as_os_str().as_encoded_bytes()).short();
    Ok(store.root().join("roots").join(format!("{name}.out")))
}

/// What is remembered, if it is of this disk and this code, and the file is the one that was written.
fn current(memory: &Path, disk: Digest, path: &Path) -> Option<Remembered> {
    let remembered: Remembered = serde_json::from_slice(&fs::read(memory).ok()?).ok()?;
    let same = remembered.disk == disk
        && remembered.version == VERSION
        && Stamp::of(path).as_ref() == Some(&remembered.stamp);
    same.then_some(remembered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_current_until_the_disk_the_code_or_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (path, memory) = (dir.path().join("server.qcow2"), dir.path().join("memory"));
        fs::write(&path, "bytes").unwrap();
        let disk = Digest::of(b"disk");
        assert!(current(&memory, disk, &path).is_none());
        let remember = |version| {
            let stamp = Stamp::of(&path).unwrap();
            let it = Remembered { disk, version, size: 5, sha256: Digest::of(b"bytes"), stamp };
            manifest::write_json(&memory, &it).unwrap();
        };
        remember(VERSION);
        assert_eq!(current(&memory, disk, &path).unwrap().size, 5);
        assert!(current(&memory, Digest::of(b"other"), &path).is_none());
        remember(VERSION + 1);
        assert!(current(&memory, disk, &path).is_none());
        remember(VERSION);
        fs::write(&path, "other").unwrap();
        assert!(current(&memory, disk, &path).is_none());
    }

    #[test]
    fn formats_have_the_same_bytes_whatever_the_number_of_threads() {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("disk.raw");
        let bytes: Vec<u8> = (0..3_u32 << 20).map(|i| ((i / 7) ^ (i >> 9)) as u8).collect();
        fs::write(&raw, bytes).unwrap();
        for format in [Format::RawZst, Format::Qcow2] {
            let outputs = [1, 3].map(|threads| {
                let path = dir.path().join(format!("{threads}.{}", format.ending()));
                press(&raw, format, threads, fs::File::create(&path).unwrap().file()).unwrap();
                fs::read(path).unwrap()
            });
            assert!(!outputs[0].is_empty() && outputs[0] == outputs[1], "{format:?}");
        }
    }
}
