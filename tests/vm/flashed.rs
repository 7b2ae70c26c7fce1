//! A disk that was flashed, with an identity on its ESP, boots and is who it was told to be.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

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

#[test]
fn a_flashed_disk_boots_and_takes_its_identity_from_its_esp() {
    let image = images::image("bare", "amd64");
    let manifest = images::manifest("bare", "amd64");
    let dir = tempfile::Builder::new().prefix("kiln-flashed-").tempdir_in(images::folder()).unwrap();
    let path = dir.path().join("disk");
    let file = fs_err::OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.set_len(12 << 30).unwrap();
    let credential = |name: &str, value: &str| Credential {
        name: name.to_owned(),
        value: Value::new(value),
        secret: false,
    };
    let identity = [
        credential("system.hostname", "flashed-3"),
        credential("network.network.50-nic0", "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n"),
        credential("ssh.authorized_keys.root", super::SSH_KEY),
        credential("passwd.hashed-password.root", super::HASH),
    ];
    let facts = Facts { digest: manifest.disk.sha256, size: manifest.disk.size, epoch: manifest.epoch };
    let source = Source::open(&image, facts).unwrap();
    let options = Options { identity: &identity, ..Options::default() };
    write(&Disk(file.into_file()), "a file", source, &options, &mut Journal::none(), &Nobody).unwrap();

    let mut node = Setup { disk: None, ..Setup::of(&path) }.boot();
    let ready = node.ready();
    assert!(ready.is_good(), "{ready:?}");
    assert_eq!(ready.hostname, "flashed-3");
    let facts = node.facts();
    assert_eq!(facts.one("authorized"), super::SSH_KEY);
    assert_eq!(facts.one("shadow"), super::HASH);
    assert_eq!(facts.all("partition").len(), 6, "the first boot makes the second slot and /var: {facts:?}");
}
