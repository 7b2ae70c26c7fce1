//! A Unified Kernel Image: systemd's boot stub with kernel, initrd and command line as further sections of one PE file.
//!
//! ```text
//! headers   the stub's, with more entries in the section table
//! .text ... the stub's own sections as they are; .sbat with the entries of the kernel and of the image
//! .osrel .cmdline [.dtb] .uname .linux .initrd [.ucode]      each at a new page in memory, a new 512 bytes in the file
//! ```
//!
//! [`assemble`] is pure: the same parts give the same bytes, and the parts are in the file as they came, but for a gzipped kernel,
//! which firmware could not load and [`kernel`] unpacks. They are the bytes that ukify writes. [`sections`] reads any PE file back. Sources: UAPI Unified Kernel Image
//! specification; systemd-stub(7), ukify(1); Microsoft PE format.

mod pe;

use std::borrow::Cow;
use std::io::{self, Read, Write};

pub use pe::Section;

/// Section holds bytes that are data.
const DATA: u32 = 0x0000_0040;
/// Section holds code.
const CODE: u32 = 0x0000_0020;
/// Section can be read.
const READ: u32 = 0x4000_0000;
/// A kernel is unpacked up to this; a larger one is a mistake or an attack.
const MAX_KERNEL: u64 = 256 << 20;

/// The entry that says how the image was put together; the one that ukify writes.
const UKI_SBAT: &str = "uki,1,UKI,uki,1,https://uapi-group.org/specifications/specs/unified_kernel_image/";

/// What a Unified Kernel Image is made of.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// systemd's stub of the wanted architecture: `linuxx64.efi.stub` or `linuxaa64.efi.stub`.
    pub stub: &'a [u8],
    /// `/usr/lib/os-release`: names the entry in the boot menu.
    pub os_release: &'a str,
    /// The kernel command line, in one line.
    pub cmdline: &'a str,
    /// The kernel's release, `uname -r`.
    pub uname: &'a str,
    /// The kernel: a PE file, as `vmlinuz` of x86-64 and arm64 are, or a gzipped one.
    pub linux: &'a [u8],
    /// The initrd: cpio archives, one behind the other in their order.
    pub initrd: &'a [&'a [u8]],
    /// A flattened device tree.
    pub dtb: Option<&'a [u8]>,
    /// An uncompressed cpio archive with CPU microcode.
    pub ucode: Option<&'a [u8]>,
}

/// Why parts do not make an image, or a file is no PE file.
#[derive(Debug, thiserror::Error)]
pub enum UkiError {
    /// Not a PE file that can be understood.
    #[error("{what} is no PE file: {reason}")]
    Pe {
        /// `the boot stub`, `the kernel` or `the file`.
        what: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// A stub that carries a signature, which new sections would break.
    #[error("the boot stub is signed, and new sections would break its signature: take the unsigned one")]
    Signed,
    /// A stub that has one of the sections already.
    #[error("the boot stub has a section {0} already: take systemd's `linux*.efi.stub`")]
    Taken(&'static str),
    /// No room for the section table.
    #[error("the boot stub's headers have room for {room} more sections, but {needed} are needed")]
    Headers {
        /// Entries that fit.
        room: usize,
        /// Entries that are needed.
        needed: usize,
    },
    /// An `.sbat` section that cannot take the new entries.
    #[error(
        "the boot stub's .sbat section has {room} bytes, but {needed} are needed with the entries of the kernel"
    )]
    Sbat {
        /// Bytes of the section in the file.
        room: usize,
        /// Bytes of all entries.
        needed: usize,
    },
    /// Kernel and stub of different architectures.
    #[error(
        "the kernel is for machine {kernel:#06x}, the boot stub for {stub:#06x}: take both from the same architecture"
    )]
    Machine {
        /// PE machine of the kernel.
        kernel: u16,
        /// PE machine of the stub.
        stub: u16,
    },
    /// A text that the stub or the kernel would misread.
    #[error("{section} {reason}")]
    Text {
        /// The section it was for.
        section: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// More than PE can address.
    #[error("the image would be larger than the 4 GiB of a PE file")]
    TooLarge,
    /// Unpacking the kernel or writing failed.
    #[error("unified kernel image: {0}")]
    Io(#[from] io::Error),
}

/// The kernel as firmware can load it: a PE file as it is, be it a plain one or one that unpacks itself (EFI zboot), and a gzipped
/// one unpacked.
pub fn kernel(bytes: &[u8]) -> Result<Cow<'_, [u8]>, UkiError> {
    if bytes.starts_with(&[0x1F, 0x8B]) {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(bytes).take(MAX_KERNEL).read_to_end(&mut plain)?;
        return Ok(Cow::Owned(plain));
    }
    Ok(Cow::Borrowed(bytes))
}

/// Writes the image of `parts` and says its length in bytes.
pub fn assemble(parts: &Parts<'_>, mut out: impl Write) -> Result<u64, UkiError> {
    let stub = pe::Headers::parse(parts.stub, "the boot stub")?;
    let linux = kernel(parts.linux)?;
    let inner = pe::Headers::parse(&linux, "the kernel")?;
    if inner.machine != stub.machine {
        return Err(UkiError::Machine { kernel: inner.machine, stub: stub.machine });
    }
    text(".cmdline", parts.cmdline, true)?;
    text(".uname", parts.uname, true)?;
    text(".osrel", parts.os_release, false)?;
    let mut initrd = Vec::new();
    for segment in parts.initrd {
        // The kernel looks for the next archive at a multiple of 4.
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        initrd.extend_from_slice(segment);
    }

    // The order of ukify; the stub goes by names.
    let wanted = [
        (".osrel", Some(parts.os_release.as_bytes()), DATA),
        (".cmdline", Some(parts.cmdline.as_bytes()), DATA),
        (".dtb", parts.dtb, DATA),
        (".uname", Some(parts.uname.as_bytes()), DATA),
        (".linux", Some(&linux[..]), CODE),
        (".initrd", Some(&initrd[..]), DATA),
        (".ucode", parts.ucode, DATA),
    ];
    let new: Vec<pe::New<'_>> = wanted
        .into_iter()
        .filter_map(|(name, bytes, kind)| {
            let bytes = bytes.filter(|bytes| !bytes.is_empty())?;
            Some(pe::New { name, bytes, characteristics: READ | kind })
        })
        .collect();
    let sbat = revocation(&stub, &inner);
    let image = stub.append(parts.stub, &new, sbat.as_bytes(), inner.nx_compatible())?;
    let mut length = image.start.len() as u64;
    out.write_all(&image.start)?;
    for (section, padding) in new.iter().zip(image.padding) {
        out.write_all(section.bytes)?;
        out.write_all(&vec![0; padding])?;
        length += (section.bytes.len() + padding) as u64;
    }
    out.flush()?;
    Ok(length)
}

/// The `.sbat` of the image: the entries of stub and kernel, and one for the form of the image itself, so that shim can revoke
/// each of them. Empty if the stub has none.
fn revocation(stub: &pe::Headers<'_>, kernel: &pe::Headers<'_>) -> String {
    let entries = |headers: &pe::Headers<'_>| {
        let section = headers.sections.iter().find(|s| s.name == ".sbat")?;
        let text = str::from_utf8(section.bytes).ok()?.trim_end_matches('\0');
        text.starts_with("sbat,").then(|| text.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    let Some(mut lines) = entries(stub) else { return String::new() };
    // Each text begins with the entry of the form itself, which must be there once and first.
    lines.extend(entries(kernel).into_iter().flatten().skip(1));
    lines.push(UKI_SBAT.to_owned());
    // shim reads it as one C string.
    lines.join("\n") + "\n\0"
}

/// The sections of a PE file, in the order of its table.
pub fn sections(bytes: &[u8]) -> Result<Vec<Section<'_>>, UkiError> {
    Ok(pe::Headers::parse(bytes, "the file")?.sections)
}

fn text(section: &'static str, text: &str, one_line: bool) -> Result<(), UkiError> {
    let refuse = |reason| Err(UkiError::Text { section, reason });
    if text.trim().is_empty() {
        return refuse("is empty");
    }
    if text.contains('\0') {
        return refuse("holds a NUL byte, where it would end");
    }
    if one_line && text.contains('\n') {
        return refuse("holds a line break: join it to one line");
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::digest::Digest;
    use proptest::prelude::*;

    const X86_64: u16 = 0x8664;
    const ARM64: u16 = 0xAA64;

    /// A PE file with one section of code; `room` bytes of headers.
    pub(crate) fn small_pe(machine: u16, room: u32) -> Vec<u8> {
        let mut pe = vec![0; room as usize];
        let mut put = |at: usize, bytes: &[u8]| pe[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"MZ");
        put(0x3C, &0x40_u32.to_le_bytes());
        put(0x40, b"PE\0\0");
        put(0x44, &machine.to_le_bytes());
        put(0x46, &1_u16.to_le_bytes()); // sections
        put(0x54, &240_u16.to_le_bytes()); // optional header
        put(0x58, &0x20B_u16.to_le_bytes());
        put(0x58 + 32, &4096_u32.to_le_bytes()); // section alignment
        put(0x58 + 36, &512_u32.to_le_bytes()); // file alignment
        put(0x58 + 56, &0x2000_u32.to_le_bytes()); // image
        put(0x58 + 60, &room.to_le_bytes()); // headers
        put(0x58 + 64, &7_u32.to_le_bytes()); // checksum
        put(0x58 + 70, &0x100_u16.to_le_bytes()); // NX compatible
        put(0x58 + 108, &16_u32.to_le_bytes()); // data directories
        put(0x148, b".text\0\0\0");
        put(0x150, &5_u32.to_le_bytes());
        put(0x154, &0x1000_u32.to_le_bytes());
        put(0x158, &512_u32.to_le_bytes());
        put(0x15C, &room.to_le_bytes());
        pe.resize(room as usize + 512, 0xCC);
        pe
    }

    fn parts<'a>(stub: &'a [u8], linux: &'a [u8]) -> Parts<'a> {
        Parts {
            stub,
            os_release: "ID=debian\nPRETTY_NAME=\"kiln\"\n",
            cmdline: "console=ttyS0 roothash=00",
            uname: "6.12.0",
            linux,
            initrd: &[b"0707012", b"second"],
            dtb: None,
            ucode: None,
        }
    }

    fn assembled(parts: &Parts<'_>) -> Result<Vec<u8>, UkiError> {
        let mut bytes = Vec::new();
        let length = assemble(parts, &mut bytes)?;
        assert_eq!(length, bytes.len() as u64);
        Ok(bytes)
    }

    #[test]
    fn every_part_is_in_its_section_and_the_bytes_are_the_known_ones() {
        for machine in [X86_64, ARM64] {
            let (stub, linux) = (small_pe(machine, 1024), small_pe(machine, 512));
            let parts = Parts { dtb: Some(b"tree"), ucode: Some(b"micro"), ..parts(&stub, &linux) };
            let bytes = assembled(&parts).unwrap();
            let sections = sections(&bytes).unwrap();
            let found: Vec<(&str, &[u8])> = sections.iter().map(|s| (s.name.as_str(), s.bytes)).collect();
            let wanted: [(&str, &[u8]); 8] = [
                (".text", &[0xCC; 5]),
                (".osrel", parts.os_release.as_bytes()),
                (".cmdline", b"console=ttyS0 roothash=00"),
                (".dtb", b"tree"),
                (".uname", b"6.12.0"),
                (".linux", &linux),
                (".initrd", b"0707012\0second"),
                (".ucode", b"micro"),
            ];
            assert_eq!(found, wanted);
            let places: Vec<u32> = sections.iter().map(|s| s.address).collect();
            assert!(places.is_sorted_by(|a, b| a < b) && places.iter().all(|a| a % 4096 == 0));
            let image = u32::from_le_bytes(bytes[0x58 + 56..0x58 + 60].try_into().unwrap());
            assert_eq!(image, places.last().unwrap() + 4096);
            assert_eq!(bytes[0x58 + 64..0x58 + 68], [0; 4], "the checksum");
            if machine == X86_64 {
                assert_eq!(
                    Digest::of(&bytes).to_string(),
                    "a50f54ccefbf32e34add7aeb2dba907c7fc5bc6d972c778fffe2a0ae20c28e33",
                    "if the change is meant, put the new digest here"
                );
            }
        }
    }

    #[test]
    fn a_gzipped_kernel_is_unpacked() {
        let (stub, linux) = (small_pe(ARM64, 1024), small_pe(ARM64, 512));
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&linux).unwrap();
        let packed = packed.finish().unwrap();
        assert!(assembled(&parts(&stub, &packed)).unwrap() == assembled(&parts(&stub, &linux)).unwrap());
    }

    /// A PE file whose one section is `.sbat` with `text`.
    fn with_sbat(text: &str, room: u32) -> Vec<u8> {
        let mut pe = small_pe(X86_64, room);
        pe[0x148..0x150].copy_from_slice(b".sbat\0\0\0");
        pe[0x150..0x154].copy_from_slice(&(text.len() as u32).to_le_bytes());
        pe[room as usize..].fill(0);
        pe[room as usize..room as usize + text.len()].copy_from_slice(text.as_bytes());
        pe
    }

    #[test]
    fn revocation_entries_of_stub_kernel_and_image_are_joined() {
        let stub = with_sbat("sbat,1,SBAT Version\nstub,1,S\n", 1024);
        let linux = with_sbat("sbat,1,SBAT Version\nlinux,1,L\n", 512);
        let bytes = assembled(&parts(&stub, &linux)).unwrap();
        let sections = sections(&bytes).unwrap();
        let wanted = format!("sbat,1,SBAT Version\nstub,1,S\nlinux,1,L\n{UKI_SBAT}\n\0");
        assert_eq!(
            (sections[0].name.as_str(), str::from_utf8(sections[0].bytes).unwrap()),
            (".sbat", wanted.as_str())
        );
        let full = with_sbat(&format!("sbat,1\n{}\n", "x".repeat(450)), 1024);
        assert!(matches!(assembled(&parts(&full, &linux)), Err(UkiError::Sbat { room: 512, .. })));
    }

    #[test]
    fn the_image_is_nx_compatible_only_if_its_kernel_is() {
        let (stub, mut linux) = (small_pe(X86_64, 1024), small_pe(X86_64, 512));
        let flags = |bytes: &[u8]| bytes[0x58 + 71] & 1;
        assert_eq!(flags(&assembled(&parts(&stub, &linux)).unwrap()), 1);
        linux[0x58 + 71] = 0;
        assert_eq!(flags(&assembled(&parts(&stub, &linux)).unwrap()), 0);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let (stub, linux) = (small_pe(X86_64, 1024), small_pe(X86_64, 512));
        let fine = parts(&stub, &linux);
        let arm = small_pe(ARM64, 512);
        assert!(matches!(assembled(&Parts { linux: &arm, ..fine }), Err(UkiError::Machine { .. })));
        let tight = small_pe(X86_64, 512);
        assert!(matches!(
            assembled(&Parts { stub: &tight, ..fine }),
            Err(UkiError::Headers { room: 3, needed: 5 })
        ));
        assert!(matches!(assembled(&Parts { cmdline: "a\nb", ..fine }), Err(UkiError::Text { .. })));
        assert!(matches!(assembled(&Parts { uname: " ", ..fine }), Err(UkiError::Text { .. })));
        assert!(matches!(assembled(&Parts { linux: b"\x7fELF", ..fine }), Err(UkiError::Pe { .. })));
        let mut signed = stub.clone();
        signed[0x58 + 112 + 4 * 8] = 1;
        assert!(matches!(assembled(&Parts { stub: &signed, ..fine }), Err(UkiError::Signed)));
        let uki = assembled(&fine).unwrap();
        assert!(matches!(assembled(&Parts { stub: &uki, ..fine }), Err(UkiError::Taken(".osrel"))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_or_the_writer_panic(
            flips in proptest::collection::vec((0_usize..1100, any::<u8>()), 1..12),
            cut in 0_usize..1536,
        ) {
            let mut stub = small_pe(X86_64, 1024);
            for (at, byte) in flips {
                stub[at] = byte;
            }
            let linux = small_pe(X86_64, 512);
            let _ = assembled(&parts(&stub, &linux));
            let _ = sections(&stub[..cut]);
        }
    }
}
