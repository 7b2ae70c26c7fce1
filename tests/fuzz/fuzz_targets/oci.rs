//! OCI layouts of others, in archives. Parts of the input are parted by a byte 0: the index, then blobs. In each `@N` becomes the digest and `#N`
//! the length of part N behind it, so that digests do not hide what is read when they are right.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

mod file;

use std::io;

use kiln::digest::Digest;
use kiln::oci::read::Layout;
use libfuzzer_sys::fuzz_target;

fn replace(bytes: &mut Vec<u8>, from: &[u8], to: &[u8]) {
    while let Some(at) = bytes.windows(from.len()).position(|window| window == from) {
        bytes.splice(at..at + from.len(), to.iter().copied());
    }
}

/// A header of tar, and the bytes behind it.
fn member(archive: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive.extend(header);
    archive.extend(bytes);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

fuzz_target!(|data: &[u8]| {
    // As it is.
    look(data);
    let mut parts: Vec<Vec<u8>> = data.split(|byte| *byte == 0).take(8).map(<[u8]>::to_vec).collect();
    for number in (1..parts.len()).rev() {
        let (digest, length) = (Digest::of(&parts[number]).to_string(), parts[number].len().to_string());
        for before in &mut parts[..number] {
            replace(before, format!("@{number}").as_bytes(), digest.as_bytes());
            replace(before, format!("#{number}").as_bytes(), length.as_bytes());
        }
    }
    let mut archive = Vec::new();
    member(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    for (number, part) in parts.iter().enumerate() {
        let name = if number == 0 { "index.json".to_owned() } else { format!("blobs/sha256/{}", Digest::of(part)) };
        member(&mut archive, &name, part);
    }
    archive.resize(archive.len() + 1024, 0);
    look(&archive);
});

fn look(archive: &[u8]) {
    let Ok(layout) = Layout::open(&file::holding(archive)) else { return };
    let Ok(images) = layout.images() else { return };
    for image in images.iter().take(16) {
        let _ = (layout.verify(image), image.digest(), image.size());
        for layer in &image.manifest.layers {
            let _ = layout.copy(layer, &mut io::sink());
        }
    }
}
