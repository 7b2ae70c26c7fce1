//! Where one byte of an image is flipped, so that the image must be refused.

use std::path::Path;

use anyhow::{Context, Result};
use fs_err as fs;
use rustix::fs::{SeekFrom, seek};

use super::spec::DamagedPart;
use crate::error::{Failure, Kind};
use crate::manifest::{Manifest, PartitionInfo};

/// A byte of a disk, and what it is changed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flip {
    /// From the disk's beginning.
    pub offset: u64,
    /// The byte is XORed with it.
    pub xor: u8,
}

/// The superblock of erofs lies at byte 1024 (`EROFS_SUPER_OFFSET` of the kernel's erofs_fs.h) and is read first of all.
const SUPERBLOCK: u64 = 1024 + 100;
/// The hash tree's top is the block behind the superblock of dm-verity, and every read goes through it.
const TOP: u64 = 4096 + 5;

/// Where the raw disk at `image`, which `manifest` describes, is damaged in `part`.
///
/// # Errors
/// [`Kind::Input`] when the image is not the one of the manifest.
pub fn flip(image: &Path, manifest: &Manifest, part: DamagedPart) -> Result<Flip> {
    let find = |prefix: &str| -> Result<&PartitionInfo, Failure> {
        let found = manifest.disk.partitions.iter().find(|p| p.name.starts_with(prefix));
        found.ok_or_else(|| {
            let text = format!("{} has no partition `{prefix}` by its manifest", image.display());
            Failure::new(Kind::Input, text).hint("`kiln build` makes it anew")
        })
    };
    match part {
        DamagedPart::Root => Ok(Flip { offset: find("root-")?.offset + SUPERBLOCK, xor: 1 }),
        DamagedPart::Verity => Ok(Flip { offset: find("verity-")?.offset + TOP, xor: 1 }),
        DamagedPart::Uki => {
            let esp = find("esp")?;
            let word = format!("roothash={}", manifest.root_hash);
            let bytes =
                read(image, esp).with_context(|| format!("reading the ESP of {}", image.display()))?;
            let found = bytes.windows(word.len()).position(|window| window == word.as_bytes());
            let last = word.bytes().last().unwrap_or(b'0');
            let other = if last == b'0' { b'1' } else { b'0' };
            let begin = found.ok_or_else(|| {
                Failure::new(
                    Kind::Input,
                    format!("{} has another root hash than its manifest", image.display()),
                )
                .hint("`kiln build` makes both anew")
            })?;
            let inside = u64::try_from(begin + word.len() - 1).unwrap_or(0);
            Ok(Flip { offset: esp.offset + inside, xor: last ^ other })
        }
    }
}

/// The bytes of a partition, up to the last that is not a hole.
fn read(image: &Path, partition: &PartitionInfo) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let file = fs::File::open(image)?;
    seek(&file, SeekFrom::Start(partition.offset))?;
    let mut bytes = Vec::new();
    file.take(partition.size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::built::tests::sample;

    #[test]
    fn one_byte_of_each_part_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("x.raw");
        let mut manifest = sample().manifest;
        let part = |name: &str, offset, size| PartitionInfo {
            name: name.to_owned(),
            kind: String::new(),
            guid: String::new(),
            offset,
            size,
        };
        manifest.disk.partitions =
            vec![part("esp", 512, 4096), part("verity-0", 8192, 8192), part("root-0", 16384, 8192)];
        let word = format!("quiet roothash={}", manifest.root_hash);
        let mut disk = vec![0; 32768];
        disk[1000..1000 + word.len()].copy_from_slice(word.as_bytes());
        fs::write(&image, &disk).unwrap();
        let flip = |part| super::flip(&image, &manifest, part);
        assert_eq!(flip(DamagedPart::Root).unwrap(), Flip { offset: 16384 + 1124, xor: 1 });
        assert_eq!(flip(DamagedPart::Verity).unwrap(), Flip { offset: 8192 + 4101, xor: 1 });
        let Flip { offset, xor } = flip(DamagedPart::Uki).unwrap();
        let at = usize::try_from(offset).unwrap();
        assert_eq!(at, 1000 + word.len() - 1);
        assert!((disk[at] ^ xor).is_ascii_hexdigit() && xor != 0, "still a digit, and another one");
        fs::write(&image, vec![0; 32768]).unwrap();
        assert!(
            super::flip(&image, &manifest, DamagedPart::Uki)
                .unwrap_err()
                .to_string()
                .contains("another root hash")
        );
    }
}
