//! A node that was asked to keeps its secrets under a key that only it has: after its first boot its disk is of no use to others, and the
//! node still has them. `swtpm` plays its TPM.

use std::io::{Cursor, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

use kiln::cluster::{Credential, seal, sealed};
use kiln::image::fat::Reader;
use kiln::qemu::config::Format;
use kiln::qemu::tpm::Tpm;
use kiln::qemu::{door, ready};
use kiln::spec::cluster::Seal;

use super::common::images;
use super::flashed::{credential, flash_file, identity, left};
use super::node::{Node, Setup, only_in_full};

const TOKEN: &str = "K10of-a-cluster-that-nobody-else-may-join";
/// What a unit is given that wants the token.
const ASK: &str =
    "systemd-run -q --pipe --wait -p ImportCredential=k3s.token sh -c 'cat $CREDENTIALS_DIRECTORY/k3s.token'";

/// A disk that was flashed for a node with a token and a password, under the key `key`; and both.
fn flashed(path: &Path, key: Seal) -> [Credential; 2] {
    let secrets =
        [credential("k3s.token", TOKEN, true), credential("passwd.hashed-password.root", super::HASH, true)];
    let mut told = identity("sealed-1");
    told.retain(|credential| !credential.secret);
    told.extend(secrets.clone());
    told.extend(seal::order(key, ["k3s.token", "passwd.hashed-password.root"]));
    flash_file(path, 512, "bare", &told, false);
    secrets
}

/// The ESP of a raw disk.
fn esp(disk: &Path) -> Vec<u8> {
    let manifest = images::manifest("bare", "amd64");
    let place = manifest.disk.partitions.iter().find(|partition| partition.name == "esp").unwrap();
    let mut file = fs_err::File::open(disk).unwrap();
    file.seek(SeekFrom::Start(place.offset)).unwrap();
    let mut bytes = Vec::new();
    file.take(place.size).read_to_end(&mut bytes).unwrap();
    bytes
}

fn has(bytes: &[u8], text: &[u8]) -> bool {
    memchr::memmem::find(bytes, text).is_some()
}

/// What the files of the secrets hold. The rest of the ESP changes with each boot: the loader's random seed, the count of tries.
fn files(disk: &Path) -> [Vec<u8>; 3] {
    let mut reader = Reader::new(Cursor::new(esp(disk))).unwrap();
    ["k3s.token", "passwd.hashed-password.root", seal::SPARE]
        .map(|name| reader.read(&format!("loader/credentials/{name}.cred")).unwrap())
}

/// Whether the secrets can be read by whoever holds this disk; all are told the same.
#[track_caller]
fn is_open(disk: &Path, secrets: &[Credential]) -> bool {
    let esp = esp(disk);
    let mut reader = Reader::new(Cursor::new(&esp)).unwrap();
    let mut read = |name: &str| reader.read(&format!("loader/credentials/{name}.cred")).unwrap();
    assert!(read("system.hostname").starts_with(b"BYRp2vb1QySABUnaD46i+"), "it is no secret");
    let open: Vec<bool> = secrets
        .iter()
        .map(|secret| {
            let value = secret.value.expose();
            assert!(!has(&esp, value), "{} is there in clear", secret.name);
            let flashed = sealed::seal(secret);
            let file = read(&secret.name);
            assert_eq!(file.len(), seal::room(value.len()), "the file is as long as it was");
            // Every block of the disk is looked at: the file that was, what is free, and the spare.
            let there = has(&esp, flashed.trim_ascii_end());
            assert_eq!(file.starts_with(flashed.trim_ascii_end()), there, "{}", secret.name);
            there
        })
        .collect();
    assert!(open.iter().all(|one| *one == open[0]), "{open:?}");
    let spare = read(seal::SPARE);
    assert!(spare.iter().all(|byte| *byte == b'\n'), "the spare file is empty");
    open[0]
}

fn boot(disk: &Path, format: Format, tpm: Option<Tpm>) -> Node {
    // What is on /var under a key is for this machine id alone.
    let uuid = Some(uuid::Uuid::from_u128(0x6b69_6c6e));
    Setup { disk: None, door: true, tpm, format, no_reboot: false, uuid, ..Setup::of(disk) }.boot()
}

/// Waits until the node is up; what it gives a unit that wants the token, and root's password.
#[track_caller]
fn given(node: &mut Node, failed: &[&str]) -> (String, String) {
    let ready = node.ready();
    let door = node.door();
    let limit = node.limit();
    door.connect(limit).unwrap();
    let journal = door.run("journalctl -b -u kiln-seal -u kiln-identity -o cat", limit).unwrap().text();
    assert_eq!(ready.failed, failed, "{ready:?}\n{journal}");
    let token = door.run(ASK, limit).unwrap().stdout;
    let shadow = door.succeed("sed -n 's/^root:\\([^:]*\\):.*/\\1/p' /etc/shadow", limit).unwrap().stdout;
    (String::from_utf8_lossy(&token).into_owned(), String::from_utf8_lossy(&shadow).trim().to_owned())
}

/// The same machine, switched on again.
#[track_caller]
fn again(node: &mut Node, failed: &[&str]) -> (String, String) {
    node.machine.power_on().unwrap();
    given(node, failed)
}

/// Switches the node off in order; its disk is `to`.
#[track_caller]
fn off(node: &mut Node, to: &Path) {
    ready::power_off(&node.machine, 0).unwrap();
    let limit = node.limit();
    assert!(node.machine.ended(limit).unwrap(), "{}", node.machine.console.last_lines(20));
    left(node.machine.folder(), to);
}

#[test]
fn secrets_go_under_the_key_of_the_nodes_tpm_when_it_has_one_and_no_other_tpm_opens_them() {
    if only_in_full() {
        return;
    }
    let all = || (TOKEN.to_owned(), super::HASH.to_owned());
    images::image("bare", "amd64");
    let dir = tempfile::Builder::new().prefix("kiln-sealed-").tempdir_in(images::folder()).unwrap();
    let [disk, next, last] = ["disk", "next", "last"].map(|name| dir.path().join(name));
    let secrets = flashed(&disk, Seal::Tpm2);
    assert!(is_open(&disk, &secrets), "this machine cannot use that one's TPM");

    // The TPM is switched off in the firmware.
    let mut node = boot(&disk, Format::Raw, None);
    assert_eq!(given(&mut node, &["kiln-seal.service"]), all());
    node.machine.console.wait_for("this machine has no TPM 2.0", Duration::ZERO).unwrap();
    off(&mut node, &next);
    assert!(is_open(&next, &secrets), "nothing was lost");
    drop(node);

    let mut node = boot(&next, Format::Raw, Some(Tpm::Crb));
    assert_eq!(given(&mut node, &[]), all());
    // A TPM whose driver is late is waited for: that is nothing if this systemd has no such target.
    let door = node.door();
    let ask = "systemctl show -P After kiln-seal.service; systemctl show -P LoadState tpm2.target";
    let told = door.succeed(ask, node.limit()).unwrap().text();
    let (after, state) = told.rsplit_once('\n').unwrap();
    assert!(after.split(' ').any(|unit| unit == "tpm2.target") && state == "loaded", "{told}");
    off(&mut node, &disk);
    assert!(!is_open(&disk, &secrets));
    assert_eq!(again(&mut node, &[]), all());
    off(&mut node, &last);
    assert!(files(&last) == files(&disk), "there is nothing to do at later boots");

    // The disk, in another machine.
    fs_err::remove_dir_all(node.machine.folder().join("tpm")).unwrap();
    assert_eq!(again(&mut node, &["kiln-seal.service"]), (String::new(), "*".to_owned()));
    for secret in &secrets {
        let told = format!("the secret {} is under the key `tpm2` of another machine", secret.name);
        node.machine.console.wait_for(&told, Duration::ZERO).unwrap();
    }
}

#[test]
fn secrets_go_under_the_key_on_the_nodes_var_and_are_there_at_each_boot() {
    let all = (TOKEN.to_owned(), super::HASH.to_owned());
    images::image("bare", "amd64");
    let dir = tempfile::Builder::new().prefix("kiln-sealed-").tempdir_in(images::folder()).unwrap();
    let (disk, next) = (dir.path().join("disk"), dir.path().join("next"));
    let secrets = flashed(&disk, Seal::Host);
    let mut node = boot(&disk, Format::Raw, None);
    assert_eq!(given(&mut node, &[]), all);
    off(&mut node, &next);
    assert!(!is_open(&next, &secrets));
    assert_eq!(again(&mut node, &[]), all);
    let door = node.door();
    let key = door.succeed("stat -c '%a %u %m' /var/lib/systemd/credential.secret", node.limit()).unwrap();
    assert_eq!(key.text().trim(), "400 0 /var", "{}", door::Output::describe(&key));
}
