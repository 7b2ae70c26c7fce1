//! A disk that was flashed, with an identity on its ESP, boots and is who it was told to be; flashed anew it has what it had, if asked to.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use kiln::cluster::Credential;
use kiln::cluster::secret::Value;
use kiln::deploy::flash::journal::Journal;
use kiln::deploy::flash::{Facts, Medium, Options, Phase, Source, Watch, write};

use super::common::images;
use super::node::Setup;

/// A file in place of a disk.
struct Disk(File);

impl Medium for Disk {
    fn size(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    fn sector(&self) -> u32 {
        512
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read_at(bytes, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.0.write_at(bytes, at)
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn zero(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

struct Nobody;

impl Watch for Nobody {
    fn begin(&self, _: Phase, _: u64) {}
    fn advance(&self, _: u64) {}
}

pub(super) fn credential(name: &str, value: &str, secret: bool) -> Credential {
    Credential { name: name.to_owned(), value: Value::new(value), secret }
}

/// An empty disk of 12 GiB.
pub(super) fn empty(path: &Path) {
    fs_err::File::create(path).unwrap().set_len(12 << 30).unwrap();
}

/// Flashes the image of the profile `bare` onto the file `path`.
pub(super) fn flash(path: &Path, identity: &[Credential], keep_state: bool) {
    let image = images::image("bare", "amd64");
    let manifest = images::manifest("bare", "amd64");
    let file = fs_err::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let facts = Facts { digest: manifest.disk.sha256, size: manifest.disk.size, epoch: manifest.epoch };
    let source = Source::open(&image, facts).unwrap();
    let options = Options { identity, keep_state, ..Options::default() };
    write(&Disk(file.into_file()), "a file", source, &options, &mut Journal::none(), &Nobody).unwrap();
}

/// What a node of this name is told.
pub(super) fn identity(name: &str) -> Vec<Credential> {
    vec![
        credential("system.hostname", name, false),
        credential("network.network.50-nic0", "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n", false),
        credential("ssh.authorized_keys.root", super::SSH_KEY, false),
        credential("passwd.hashed-password.root", super::HASH, true),
    ]
}

/// The disk that a node left in its run folder, as the raw disk `to`.
pub(super) fn left(folder: &Path, to: &Path) {
    let qemu = kiln::exec::Tool::from_tree(&images::tools("qemu"), "usr/bin/qemu-img").unwrap();
    qemu.command().args(["convert", "-O", "raw"]).arg(folder.join("disk0.qcow2")).arg(to).run().unwrap();
}

#[test]
fn a_flashed_disk_boots_takes_its_identity_from_its_esp_and_keeps_its_state_when_asked() {
    images::image("bare", "amd64");
    let dir = tempfile::Builder::new().prefix("kiln-flashed-").tempdir_in(images::folder()).unwrap();
    let path = dir.path().join("disk");
    empty(&path);
    flash(&path, &identity("flashed-3"), false);
    let mut node = Setup { disk: None, ..Setup::of(&path) }.boot();
    let ready = node.ready();
    assert!(ready.is_good(), "{ready:?}");
    assert_eq!(ready.hostname, "flashed-3");
    let first = node.facts();
    assert_eq!(first.one("authorized"), super::SSH_KEY);
    assert_eq!(first.one("shadow"), super::HASH);
    assert_eq!(first.one("marker"), "", "an empty /var");
    assert_eq!(first.all("partition").len(), 6, "the first boot makes the second slot and /var: {first:?}");
    let folder = node.power_off();

    // The disk as the node left it, flashed anew.
    let next = dir.path().join("next");
    left(&folder, &next);
    flash(&next, &identity("flashed-4"), true);
    let mut node = Setup { disk: None, ..Setup::of(&next) }.boot();
    let ready = node.ready();
    assert!(ready.is_good(), "{ready:?}");
    assert_eq!(ready.hostname, "flashed-4");
    let second = node.facts();
    assert_eq!(second.one("marker"), "was here", "/var is what it was: {second:?}");
    assert_eq!(second.one("host-key"), first.one("host-key"));
    assert_eq!(second.all("partition"), first.all("partition"));
    drop(node);
    fs_err::remove_dir_all(folder).unwrap();
}
