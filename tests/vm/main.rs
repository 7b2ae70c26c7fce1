//! Real images boot in the QEMU of the lock, and damaged ones do not.
//!
//! Nothing of a test is in an image: what a node is asked comes in by SMBIOS credentials ([`node`]). At most two machines run at
//! once, whatever the number of test threads.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy spares only the functions marked #[test]"
)]

mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod contract;
mod door;
mod flash_disk;
mod flashed;
mod netboot;
mod node;
mod power;
mod scenarios;
mod sealed;

use std::time::Duration;

use common::{images, run::Run};
use kiln::arch::Arch;
use kiln::digest::Digest;
use kiln::error::Kind;
use kiln::qemu::accel::Accel;
use kiln::qemu::config::Format;
use kiln::scenario::calibrate::Calibration;
use node::{Setup, Slot, only_in_full};

fn digest(path: &std::path::Path) -> Digest {
    Digest::of_reader(fs_err::File::open(path).unwrap()).unwrap().0
}

/// `kiln run --until ready --json` on the shared store; the report.
fn until_ready(args: &[&str]) -> serde_json::Value {
    let project = images::project();
    let mut command = images::kiln();
    command.args(["run", "--until", "ready", "--json", "--limit", "150", "-C"]).arg(project).args(args);
    let run = Run::of(&command.output().unwrap()).ok();
    let report = run.json();
    assert_eq!(report["ready"]["state"], "running", "{}", run.text());
    assert_eq!(report["ready"]["failed"].as_array().unwrap().len(), 0, "{}", run.text());
    assert_eq!(report["ready"]["verity"], true, "{}", run.text());
    assert_eq!(report["powered_off"], true, "{}", run.text());
    report
}

const SSH_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIH0kq0VdIQEbBjm2ZXTRbKxJ4X1kzQmBWvXg0Yw0Fcbb test";
/// SHA-512 crypt(3) of some word.
const HASH: &str = "$6$kilnkilnkilnkiln$6mC0xkXk0zqCkVvKqGfZC9zL8HhO9vQ0bE3yX1m0WmF5o1jJ8s5cS3o5p3q5r7t9v1x3z5A7C9E1G3I5K7M9O1";

fn identity() -> Vec<(String, Vec<u8>)> {
    [
        ("system.hostname", "oven-7"),
        ("ssh.authorized_keys.root", SSH_KEY),
        ("passwd.hashed-password.root", HASH),
    ]
    .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
    .to_vec()
}

#[test]
fn a_server_is_verified_and_read_only_takes_its_identity_from_credentials_and_keeps_var() {
    let image = images::image("bare", "amd64");
    let before = digest(&image);
    let setup = Setup { credentials: identity(), ..Setup::of(&image) };
    let mut first = setup.boot();
    let ready = first.ready();
    assert!(ready.is_good(), "{ready:?}");
    assert_eq!(ready.hostname, "oven-7");
    assert!(ready.root.starts_with("erofs ") && ready.root.contains("ro"), "{}", ready.root);
    let facts = first.facts();

    for place in ["root", "etc", "usr", "remount", "device"] {
        assert_eq!(facts.one(&format!("write-{place}")), "no", "{facts:?}");
    }
    assert_eq!(facts.one("write-var"), "yes", "{facts:?}");
    assert!(facts.one("verity").ends_with(" verity V"), "{facts:?}");
    assert!(facts.one("cmdline").contains(&images::manifest("bare", "amd64").root_hash.to_string()));

    // root-B is there for the next version, and /var has the rest of a disk of 12 GiB.
    let sizes: Vec<u64> =
        facts.all("partition").iter().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    assert_eq!(sizes.len(), 6, "ESP, two verity, two roots, var: {facts:?}");
    assert!(sizes.iter().sum::<u64>() > (12u64 << 30) - (64 << 20), "the disk is filled: {facts:?}");
    let var: Vec<&str> = facts.one("var").split(' ').collect();
    assert_eq!(var[1], "ext4", "{facts:?}");
    assert!(var[2].parse::<u64>().unwrap() > 6 << 30, "{facts:?}");

    assert_eq!(facts.one("authorized"), SSH_KEY);
    assert_eq!(facts.one("shadow"), HASH);
    assert_eq!(facts.all("open-account"), [""; 0], "no account without credentials may be open");
    assert_eq!(facts.one("ssh"), "active", "a node with a key lets its owner in");
    assert_eq!(facts.one("marker"), "", "the first boot finds an empty /var");
    assert_eq!(ready.machine_id.len(), 32);
    let folder = first.power_off();

    // The same disk once more.
    let mut second =
        Setup { image: folder.join("disk0.qcow2"), format: Format::Qcow2, disk: None, ..setup }.boot();
    let again = second.ready();
    assert!(again.is_good(), "{again:?}");
    let more = second.facts();
    assert_eq!(more.one("marker"), "was here", "{more:?}");
    assert_eq!(more.one("host-key"), facts.one("host-key"), "the node's ssh key is made once");
    assert_eq!(more.all("partition"), facts.all("partition"));
    drop(second);
    fs_err::remove_dir_all(folder).unwrap();
    assert_eq!(digest(&image), before, "a run never writes the image");
}

#[test]
fn an_image_without_credentials_offers_nobody_a_way_in() {
    let image = images::image("bare", "amd64");
    let node = Setup { report: false, ..Setup::of(&image) }.boot();
    node.machine.console.wait_for("login:", node.limit()).unwrap();
    // The ports that a test would use are there, and nobody listens on them.
    for port in &node.machine.ports {
        port.send(b"\nhello kiln\nid\n").ok();
        assert_eq!(port.next_line(Duration::from_secs(5)), None, "{}", port.name());
    }
    node.machine.console.send(b"root\n").unwrap();
    node.machine.console.wait_for("Password:", node.limit()).unwrap();
    node.machine.console.send(b"\n").unwrap();
    node.machine.console.wait_for("Login incorrect", node.limit()).unwrap();
}

#[test]
fn an_image_boots_from_qcow2_by_the_command_line() {
    if only_in_full() {
        return;
    }
    let _slot = Slot::wait();
    images::build("bare", "amd64", "qcow2");
    let image = images::folder().join("out/bare.qcow2");
    let before = digest(&image);
    let report =
        until_ready(&["--image", image.to_str().unwrap(), "--credential", "system.hostname=agent-1"]);
    assert_eq!(report["ready"]["hostname"], "agent-1");
    assert_eq!(digest(&image), before);
}

#[test]
fn an_arm64_image_boots() {
    let _slot = Slot::wait();
    images::build("bare", "arm64", "raw");
    let out = images::folder().join("out");
    let report = until_ready(&["--profile", "bare", "--arch", "arm64", "--out", out.to_str().unwrap()]);
    assert!(report["ready"]["kernel"].as_str().unwrap().ends_with("-cloud-arm64"), "{report}");
}

/// Boots a copy of a bare node in which `damage` was done; the node must go down because of it, at once and for that reason.
#[track_caller]
fn refused(name: &str, damage: impl Fn(&mut [u8], &kiln::manifest::Manifest)) {
    let image = images::image("bare", "amd64");
    let manifest = images::manifest("bare", "amd64");
    let folder = tempfile::Builder::new().prefix("kiln-damaged-").tempdir_in(images::folder()).unwrap();
    let copy = folder.path().join(format!("{name}.raw"));
    let mut bytes = fs_err::read(&image).unwrap();
    damage(&mut bytes, &manifest);
    fs_err::write(&copy, bytes).unwrap();
    let mut node = Setup::of(&copy).boot();
    let error = node.try_ready().expect_err("a damaged image must not get ready");
    assert_eq!(error.kind, Kind::Test, "{error}");
    let text = format!("{error}\n{}", error.hints().join("\n"));
    assert!(text.contains("Kernel panic - not syncing"), "{text}");
    assert!(text.contains("verity"), "{text}");
}

fn partition<'m>(manifest: &'m kiln::manifest::Manifest, name: &str) -> &'m kiln::manifest::PartitionInfo {
    let found = manifest.disk.partitions.iter().find(|p| p.name.starts_with(name));
    found.unwrap_or_else(|| panic!("no partition {name}: {:?}", manifest.disk.partitions))
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

#[test]
fn a_flipped_byte_in_the_root_is_refused() {
    // In the superblock of erofs (byte 1024), which is read first of all.
    refused("root", |disk, manifest| disk[at(partition(manifest, "root-").offset) + 1024 + 100] ^= 1);
}

#[test]
fn a_flipped_byte_in_the_hash_tree_is_refused() {
    // In the top of the tree, the block behind the superblock: every read goes through it.
    refused("tree", |disk, manifest| disk[at(partition(manifest, "verity-").offset) + 4096 + 5] ^= 1);
}

#[test]
fn another_root_hash_in_the_uki_is_refused() {
    refused("uki", |disk, manifest| {
        let word = format!("roothash={}", manifest.root_hash);
        let esp = partition(manifest, "esp");
        let range = at(esp.offset)..at(esp.offset + esp.size);
        let found = disk[range.clone()].windows(word.len()).position(|w| w == word.as_bytes()).unwrap();
        // The last digit: the partitions are found by the first ones, so that the root is opened and then refused.
        let digit = &mut disk[range.start + found + word.len() - 1];
        *digit = if *digit == b'0' { b'1' } else { b'0' };
    });
}

#[test]
fn a_guest_of_a_few_instructions_tells_how_slow_guests_are_here() {
    for arch in [Arch::Amd64, Arch::Arm64] {
        let set = if arch == Arch::Amd64 { "qemu" } else { "qemu-arm64" };
        let measure = || Calibration::measure(&images::tools(set), arch, Accel::Tcg, 2).unwrap();
        let first = measure();
        // The host would have to be thirty times as fast as today's to translate as quickly as it runs.
        assert!(first.slowdown > 1.0 && first.slowdown.is_finite(), "{first:?}");
        assert_eq!(measure(), first, "measured once in a process");
    }
}

#[test]
fn the_checker_of_slots_lets_two_machines_run_and_not_three() {
    let (first, second) = (Slot::wait(), Slot::wait());
    assert!(Slot::now().is_none());
    drop((first, second));
}
