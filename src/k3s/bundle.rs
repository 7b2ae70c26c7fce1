//! The programs in K3s' release: a program that carries all others and unpacks them to /var when it is first run.
//!
//! Upstream's scripts/package-cli packs them into a tar archive, compresses that with zstd and puts it, as it is, among the wrapper's
//! constants; the wrapper itself (cmd/k3s) does nothing but unpack and run. So the archive is found by the magic number of a zstd frame
//! (RFC 8878, 3.1.1) behind which a tar header stands.

use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use fs_err as fs;
use memchr::memmem;

/// First bytes of a zstd frame.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// What is taken of it; the rest Debian's packages bring.
const PROGRAMS: [&str; 2] = ["k3s", "containerd-shim-runc-v2"];
/// Names by which K3s' program is another one.
pub(super) const LINKS: [&str; 4] = ["containerd", "crictl", "ctr", "kubectl"];
/// The most that one program may unpack to, bytes.
const LARGEST: u64 = 1 << 30;
/// The window that upstream compresses with may be larger than zstd's usual one.
const WINDOW_LOG: u32 = 27;

/// Unpacks the programs of `release`, whose version must be `version`, to the folder `to`, which is made.
///
/// # Errors
/// There is no such archive in it, a program is missing from it, or K3s' is of another version.
pub(super) fn unpack(release: &[u8], version: &str, to: &Path) -> Result<()> {
    let mut frames = memmem::find_iter(release, &MAGIC).map(|at| &release[at..]);
    let Some(frame) = frames.find(|frame| is_tar(frame)) else {
        bail!("it has no archive of programs in it; is it a release of K3s?");
    };
    fs::create_dir_all(to)?;
    let mut missing = PROGRAMS.to_vec();
    let mut archive = tar::Archive::new(decoder(frame)?);
    for entry in archive.entries().context("the archive in it")? {
        let mut entry = entry.context("the archive in it")?;
        let path = entry.path().context("the archive in it")?.into_owned();
        let path = path.strip_prefix(".").unwrap_or(&path);
        let found = missing.iter().position(|name| path == Path::new("bin").join(name));
        let Some(name) = found.filter(|_| entry.header().entry_type().is_file()).map(|i| missing.remove(i))
        else {
            continue;
        };
        if entry.size() > LARGEST {
            bail!("its bin/{name} unpacks to {} bytes", entry.size());
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).with_context(|| format!("unpacking its bin/{name}"))?;
        if name == "k3s" && memmem::find(&bytes, version.as_bytes()).is_none() {
            bail!("its bin/k3s is not {version}");
        }
        let file = to.join(name);
        fs::write(&file, bytes)?;
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    if let Some(name) = missing.first() {
        bail!("it has no bin/{name} in it");
    }
    for name in LINKS {
        fs::os::unix::fs::symlink("k3s", to.join(name))?;
    }
    Ok(())
}

fn decoder(frame: &[u8]) -> io::Result<impl Read + '_> {
    let mut decoder = zstd::Decoder::with_buffer(frame)?.single_frame();
    decoder.window_log_max(WINDOW_LOG)?;
    Ok(decoder)
}

/// Whether a tar archive begins in this frame: `ustar` stands at byte 257 of a header (tar(5)).
fn is_tar(frame: &[u8]) -> bool {
    let mut header = [0; 512];
    decoder(frame).and_then(|mut decoder| decoder.read_exact(&mut header)).is_ok()
        && header[257..].starts_with(b"ustar")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As upstream's are made, less the programs: noise, a magic number that begins nothing, the archive, noise.
    fn release(files: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut folder = tar::Header::new_gnu();
        folder.set_entry_type(tar::EntryType::Directory);
        folder.set_size(0);
        tar.append_data(&mut folder, "./bin/", io::empty()).unwrap();
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o755);
            tar.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        let archive = zstd::encode_all(tar.into_inner().unwrap().as_slice(), 3).unwrap();
        let magic: &[u8] = &MAGIC;
        [b"\x7fELF noise ", magic, b" more noise ", &archive, b"\0\0constants"].concat()
    }

    #[test]
    fn programs_are_found_and_linked() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("usr/bin");
        let files = [
            ("./bin/runc", "no"),
            ("./bin/k3s", "is v1.2.3+k3s4"),
            ("./bin/containerd-shim-runc-v2", "shim"),
        ];
        unpack(&release(&files), "v1.2.3+k3s4", &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("kubectl")).unwrap(), "is v1.2.3+k3s4");
        assert_eq!(fs::read_to_string(to.join("containerd-shim-runc-v2")).unwrap(), "shim");
        assert_eq!(fs::read_dir(&to).unwrap().count(), PROGRAMS.len() + LINKS.len());
    }

    #[test]
    fn what_is_no_release_or_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let whole = [("./bin/k3s", "is v1.2.3+k3s4"), ("./bin/containerd-shim-runc-v2", "shim")];
        let cases: [(Vec<u8>, &str); 4] = [
            (b"<html>not found</html>".to_vec(), "no archive of programs"),
            (release(&whole[..1]), "no bin/containerd-shim-runc-v2"),
            (release(&[("./bin/k3s", "is v1.2.4+k3s1"), whole[1]]), "is not v1.2.3+k3s4"),
            (release(&whole)[..120].to_vec(), ""),
        ];
        for (bytes, why) in cases {
            let error = unpack(&bytes, "v1.2.3+k3s4", &dir.path().join("bin")).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{error:#}");
        }
    }
}
