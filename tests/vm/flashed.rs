//! A disk that was flashed, with an identity on its ESP, boots and is who it was told to be, on every bus and with sectors of either size;
//! flashed anew it has what it had, if asked to; and one whose flash was cut off boots nothing.

use std::path::Path;
use std::sync::Mutex;

use kiln::cluster::Credential;
use kiln::cluster::secret::Value;
use kiln::deploy::flash::journal::Journal;
use kiln::deploy::flash::{Facts, Medium, Options, Source, Watch, Written, write};
use kiln::error::Failure;
use kiln::qemu::config::{Bus, Disk, Sectors};
use kiln::qemu::disk::{Cut, Export, Options as DiskOptions};
use kiln::scenario::identity::held_back;
use kiln::scenario::seeded::Stream;

use super::common::images;
use super::flash_disk::{Cutter, InFile, Nobody, Off, Served};
use super::node::{Setup, Slot, only_in_full};
use super::power;

pub(super) fn credential(name: &str, value: &str, secret: bool) -> Credential {
    Credential { name: name.to_owned(), value: Value::new(value), secret }
}

/// Flashes the image of `profile` onto `medium`.
fn flash(
    medium: &dyn Medium,
    profile: &str,
    identity: &[Credential],
    keep_state: bool,
    journal: &mut Journal,
) -> Result<Written, Failure> {
    flash_watched(medium, profile, identity, keep_state, journal, &Nobody)
}

fn flash_watched(
    medium: &dyn Medium,
    profile: &str,
    identity: &[Credential],
    keep_state: bool,
    journal: &mut Journal,
    watch: &dyn Watch,
) -> Result<Written, Failure> {
    let image = images::image(profile, "amd64");
    let manifest = images::manifest(profile, "amd64");
    let facts = Facts { digest: manifest.disk.sha256, size: manifest.disk.size, epoch: manifest.epoch };
    let source = Source::open(&image, facts).unwrap();
    let options = Options { identity, keep_state, probe: true, ..Options::default() };
    write(medium, "a disk", source, &options, journal, watch)
}

/// Flashes the file `path`, which is made if it is not there.
pub(super) fn flash_file(path: &Path, sector: u32, profile: &str, identity: &[Credential], keep_state: bool) {
    let mut options = fs_err::OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(path).unwrap();
    file.set_len(12 << 30).unwrap();
    let medium = InFile(file.into_file(), sector);
    flash(&medium, profile, identity, keep_state, &mut Journal::none()).unwrap();
}

fn folder() -> tempfile::TempDir {
    images::image("bare", "amd64");
    tempfile::Builder::new().prefix("kiln-flashed-").tempdir_in(images::folder()).unwrap()
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
    let dir = folder();
    let path = dir.path().join("disk");
    flash_file(&path, 512, "bare", &identity("flashed-3"), false);
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
    flash_file(&next, 512, "bare", &identity("flashed-4"), true);
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

/// Flashes an image onto a disk of this kind and boots it.
#[track_caller]
fn boots(profile: &str, name: &str, bus: Bus, sectors: Sectors) {
    let dir = folder();
    let path = dir.path().join("disk");
    flash_file(&path, sectors.sizes().0, profile, &identity(name), false);
    // Credentials of the firmware go before those on the ESP, and these here are only about K3s, which is not what this is about.
    let without = ["k3s.service", "kiln-k3s.service"].map(|unit| held_back(unit).unwrap());
    let credentials = without.map(|(name, text)| (name, text.into_bytes())).to_vec();
    let mut node = Setup { disk: None, bus, sectors, credentials, ..Setup::of(&path) }.boot();
    let ready = node.ready();
    assert!(ready.is_good(), "{name}: {ready:?}");
    assert_eq!(ready.hostname, name);
    let facts = node.facts();
    assert_eq!(facts.one("authorized"), super::SSH_KEY, "{name}");
    assert!(facts.one("verity").ends_with(" verity V"), "{name}: {facts:?}");
    let sizes: Vec<u64> =
        facts.all("partition").iter().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    assert_eq!(sizes.len(), 6, "{name}: the first boot makes the second slot and /var: {facts:?}");
    assert!(sizes.iter().sum::<u64>() > (12 << 30) - (64 << 20), "{name}: the disk is filled: {facts:?}");
}

#[test]
fn a_flashed_stick_boots() {
    boots("server-metal", "on-usb", Bus::UsbStorage, Sectors::Native512);
}

#[test]
fn a_flashed_sata_disk_boots() {
    if !only_in_full() {
        boots("server-metal", "on-sata", Bus::Ahci, Sectors::Emulated512);
    }
}

#[test]
fn a_flashed_nvme_disk_boots() {
    if !only_in_full() {
        boots("bare", "on-nvme", Bus::Nvme, Sectors::Native512);
    }
}

#[test]
fn a_flashed_nvme_disk_with_sectors_of_4096_bytes_boots() {
    boots("bare", "on-nvme-4kn", Bus::Nvme, Sectors::Native4096);
}

#[test]
fn a_flashed_virtio_disk_with_sectors_of_4096_bytes_boots() {
    if !only_in_full() {
        boots("bare", "on-virtio-4kn", Bus::VirtioBlk, Sectors::Native4096);
    }
}

/// Switches a machine with that disk on; the firmware must find nothing on it to start.
#[track_caller]
fn finds_nothing(folder: &Path, export: &Export, why: &str) {
    let _slot = Slot::wait();
    let disk = Disk::export(export.socket().to_owned(), Bus::VirtioBlk, "d");
    let machine = power::start(folder, kiln::arch::Arch::Amd64, vec![disk]);
    // The next thing that it tries is its own shell.
    let said = machine.console.wait_for("starting Boot0002", power::LIMIT).unwrap();
    let started = ["starting Boot0001", "Linux version"].iter().any(|words| said.contains(words));
    assert!(!started && said.contains("failed to load Boot0001"), "{why}: {said}");
}

/// Boots that disk; the node must be ready and have this name.
#[track_caller]
fn is_whole(export: &Export, name: &str) {
    let mut node = Setup::of_export(export.socket()).boot();
    let ready = node.ready();
    assert!(ready.is_good(), "{ready:?}");
    assert_eq!(ready.hostname, name);
    let folder = node.power_off();
    fs_err::remove_dir_all(folder).unwrap();
}

/// A served disk with an image on it for a node of this name, and how many requests that took.
fn served(folder: &Path, name: &str) -> (Export, u64) {
    let export = Export::serve(DiskOptions::empty(folder, "disk", 12 << 30)).unwrap();
    let medium = Served::new(&export, Off::Never);
    flash(&medium, "bare", &identity(name), false, &mut Journal::none()).unwrap();
    let requests = medium.done();
    (export, requests)
}

#[test]
fn a_flash_whose_power_is_cut_leaves_nothing_that_boots_and_is_resumed() {
    let dir = folder();
    let (export, _) = served(dir.path(), "old");
    let mut stream = Stream::new(20_261_128, "flash");
    let journal = || Journal::open(&dir.path().join("flash"), "disk", false).unwrap();
    let mut written = 0;
    for pause in [250, 600] {
        // While the image is written: nothing of the old system that would boot is there any more, and the tables are not there yet.
        let cut = pause + 100 + stream.below(200);
        let medium = Served::new(&export, Off::Never);
        let cutter = Cutter { medium: &medium, pause, cut, progress: Mutex::default() };
        flash_watched(&medium, "bare", &identity("new"), false, &mut journal(), &cutter).unwrap_err();
        drop(medium);
        let lost = export.power_cut(stream.number()).unwrap();
        finds_nothing(dir.path(), &export, &format!("after {cut} thousandths: {lost:?}"));
        let before = std::mem::replace(&mut written, journal().record().unwrap().written);
        assert!(written > before, "the second run came further: {written}, {before}");
    }
    let medium = Served::new(&export, Off::Never);
    let done = flash(&medium, "bare", &identity("new"), false, &mut journal()).unwrap();
    assert!(done.resumed > 0, "what was flushed is there: {done:?}");
    drop(medium);
    // The power goes when the last flush was answered: all of it stays.
    export.power_cut(stream.number()).unwrap();
    is_whole(&export, "new");
}

/// Seeds of a power cut by which the first block of a disk is lost and kept.
fn seeds() -> [u64; 2] {
    let folder = tempfile::tempdir().unwrap();
    let export = Export::serve(DiskOptions::empty(folder.path(), "small", 1 << 20)).unwrap();
    let keeps = |seed: &u64| {
        Served::new(&export, Off::Never).write_at(&[7; 512], 0).unwrap();
        export.power_cut(*seed).unwrap().kept == 1
    };
    [(0..).find(|seed| !keeps(seed)).unwrap(), (0..).find(keeps).unwrap()]
}

#[test]
fn a_cut_among_the_last_writes_leaves_all_or_nothing() {
    if only_in_full() {
        return;
    }
    let dir = folder();
    let (export, requests) = served(dir.path(), "first");
    let [loses, keeps] = seeds();
    let cut_after = |off: Off, seed: u64| {
        let medium = Served::new(&export, off);
        flash(&medium, "bare", &identity("second"), false, &mut Journal::none()).unwrap_err();
        drop(medium);
        export.power_cut(seed).unwrap()
    };
    cut_after(Off::Flushed(requests - 2), keeps);
    finds_nothing(dir.path(), &export, "the table at the end is there");
    cut_after(Off::Flushed(requests - 1), keeps);
    finds_nothing(dir.path(), &export, "all is there but the first sector");
    // Now the last write came, and the power goes before its flush.
    assert_eq!(cut_after(Off::Unflushed(requests), loses).kept, 0);
    finds_nothing(dir.path(), &export, "the first sector was lost");
    assert_eq!(cut_after(Off::Unflushed(requests), keeps), Cut { kept: 1, ..Cut::default() });
    is_whole(&export, "second");
}
