//! Whole flashes onto loop devices.

use std::io::{Cursor, Write as _};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use kiln::deploy::flash::signature;
use kiln::image::{fat, gpt};
use rustix::process::{Pid, Signal, kill_process};

use crate::common::run::{Env, Run, files_below, is_root, skipped};
use crate::disk::{After, Failing, Loop, has, host, image, noise, tool};

const UNPROVEN: [&str; 2] = ["--unproven", "a test of kiln"];

fn flash(env: &Env, image: &Path, disks: &[&Loop], more: &[&str]) -> Run {
    let mut args = vec!["flash", "--image", image.to_str().unwrap()];
    for disk in disks {
        args.extend(["--device", &disk.path, "--yes", disk.name()]);
    }
    args.extend(more);
    if !more.contains(&UNPROVEN[0]) {
        args.extend(UNPROVEN);
    }
    env.kiln(&args)
}

/// The judges' word about the table of a disk.
fn judged(disk: &Loop) {
    if has("sfdisk") {
        let run = host("sfdisk", &["--verify", &disk.path]);
        let said = format!("{}{}", run.stdout, run.stderr);
        assert!(said.contains("No errors detected"), "{said}");
    }
    if has("sgdisk") {
        let run = host("sgdisk", &["--verify", &disk.path]);
        assert!(run.stdout.contains("No problems found"), "{}", run.text());
    }
}

/// That the parts of the image are on the disk.
#[track_caller]
fn same_parts(disk: &Loop, image: &Path, sector: u32, esp_too: bool) {
    let image = fs_err::read(image).unwrap();
    let mut file = fs_err::File::open(&disk.file).unwrap();
    let table = gpt::read(&mut file, sector).unwrap();
    assert_eq!(table.size, disk.size(), "the backup is at the end of the disk");
    let from = gpt::read_primary(&image, 512).unwrap();
    for (part, from) in table.partitions.iter().zip(&from.partitions) {
        let same = || {
            disk.at(part.offset, from.size as usize) == image[from.offset as usize..][..from.size as usize]
        };
        assert!((part.kind == gpt::ESP && !esp_too) || same(), "{}", part.name);
    }
}

#[test]
fn a_disk_of_either_sector_size_holds_the_image_and_the_judges_agree() {
    let env = Env::new();
    let raw = image(&env, 40);
    for sector in [512, 4096] {
        // Whatever was there before is gone, at the end of the disk too.
        env.write("disk", noise(350));
        let Some(disk) = Loop::new(&env, "disk", 350, sector) else { return };
        let run = flash(&env, &raw, &[&disk], &["--json"]).ok();
        let receipt = &run.json()[0];
        same_parts(&disk, &raw, sector, sector == 512);
        judged(&disk);
        assert_eq!(receipt["device"]["path"], disk.path.as_str());
        assert_eq!(
            (&receipt["device"]["sector"], &receipt["device"]["size"]),
            (&sector.into(), &(350_u64 << 20).into())
        );
        assert_eq!(
            receipt["image"]["sha256"],
            kiln::digest::Digest::of(&fs_err::read(&raw).unwrap()).to_string()
        );
        assert_eq!(
            (&receipt["proof"]["is"], &receipt["proof"]["reason"]),
            (&"unproven".into(), &"a test of kiln".into())
        );
        let verified = receipt["work"]["verified"].as_u64().unwrap();
        assert!(verified >= 110 << 20, "{receipt}");
        let kept = files_below(&env.path("home/.local/state/kiln"));
        assert!(kept.iter().all(|file| file.starts_with("receipts/")) && !kept.is_empty(), "{kept:?}");
        // What is there now is known for what it is.
        let found = signature::of_file(&disk.file, sector).unwrap();
        assert_eq!((found[0].kind, found[0].text.as_str()), ("kiln", "a node of kiln, version 20260101-abc"));
        assert!(!found.iter().any(|found| found.class == signature::Class::Member), "{found:?}");
        drop(disk);
        fs_err::remove_file(env.path("disk")).unwrap();
    }
}

#[test]
fn a_compressed_image_is_the_same_and_a_changed_one_makes_nothing_that_boots() {
    let env = Env::new();
    let raw = image(&env, 20);
    let Some(disk) = Loop::new(&env, "disk", 200, 512) else { return };
    let bytes = fs_err::read(&raw).unwrap();
    let zst = raw.with_extension("raw.zst");
    fs_err::write(&zst, zstd::encode_all(&bytes[..], 1).unwrap()).unwrap();
    flash(&env, &zst, &[&disk], &[]).ok();
    same_parts(&disk, &raw, 512, true);
    // One byte of the image is another one, as after a bad download.
    let mut other = bytes.clone();
    other[80 << 20] ^= 1;
    fs_err::write(&zst, zstd::encode_all(&other[..], 1).unwrap()).unwrap();
    flash(&env, &zst, &[&disk], &[]).fails(1, &["not the one that its manifest describes", "does not boot"]);
    assert!(!disk.boots(512));
    fs_err::write(&zst, &zstd::encode_all(&bytes[..], 1).unwrap()[..1 << 20]).unwrap();
    flash(&env, &zst, &[&disk], &[]).fails(1, &["reading the image failed"]);
    assert!(!disk.boots(512));
    flash(&env, &raw, &[&disk], &[]).ok();
    assert!(disk.boots(512));
}

/// A project with a cluster whose only node is `server`.
fn cluster(env: &Env, contract: &str) {
    env.kiln(&["init", env.project().to_str().unwrap()]).ok();
    env.write(
        "project/cluster.toml",
        format!(
            "schema = 1\nname = \"home\"\n[network.lan]\nsubnet = \"192.168.50.0/24\"\ngateway = \"192.168.50.1\"\n\
             [node.alpha]\nrole = \"server\"\naddress = \"192.168.50.100\"\ndisk = {contract}\n\
             [secret]\ntoken = {{ file = \"token\" }}\n"
        ),
    );
    env.write("project/token", "open-sesame\n");
    fs_err::set_permissions(env.path("project/token"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
}

#[test]
fn a_node_gets_its_identity_and_only_a_disk_that_fits_its_contract() {
    let env = Env::new();
    cluster(&env, "{ min-size = \"1GiB\" }");
    let raw = image(&env, 20);
    let Some(disk) = Loop::new(&env, "disk", 6000, 512) else { return };
    let node = |more: &[&str]| {
        let args = ["flash", "--node", "alpha", "--device", &disk.path, "--yes", disk.name()];
        env.kiln(&[&args[..], &UNPROVEN, more].concat())
    };
    let run = node(&["--json"]).ok();
    let receipt = &run.json()[0];
    assert_eq!(
        (&receipt["cluster"], &receipt["node"], &receipt["role"]),
        (&"home".into(), &"alpha".into(), &"server".into())
    );
    assert!(!run.text().contains("open-sesame") && !receipt.to_string().contains("open-sesame"));
    same_parts(&disk, &raw, 512, false);
    judged(&disk);
    let esp = disk.at(1 << 20, 66 << 20);
    let mut reader = fat::Reader::new(Cursor::new(esp)).unwrap();
    let names: Vec<String> =
        reader.list().unwrap().into_iter().filter(|n| !n.directory).map(|n| n.path).collect();
    for name in ["system.hostname", "network.network.50-nic0", "k3s.config", "k3s.token"] {
        assert!(names.contains(&format!("loader/credentials/{name}.cred")), "{names:?}");
    }
    if has("systemd-creds") {
        env.write("k3s.token", reader.read("loader/credentials/k3s.token.cred").unwrap());
        let run = host("systemd-creds", &["decrypt", env.path("k3s.token").to_str().unwrap(), "-"]);
        assert_eq!(run.stdout, "open-sesame");
    }
    // Without an identity the ESP is that of the image.
    node(&["--no-identity"]).ok();
    same_parts(&disk, &raw, 512, true);
    // The contract is held against a disk that is named, too.
    let before = kiln::digest::Digest::of(&disk.at(0, 4 << 20));
    cluster_contract(&env, "{ bus = \"nvme\" }");
    node(&[]).fails(6, &["is not the disk of the contract (bus nvme)", "its bus is loop"]);
    cluster_contract(&env, "{ min-size = \"7GB\" }");
    node(&[]).fails(6, &["is not the disk of the contract"]);
    // And nothing is picked by chance: loop devices are no candidates, and an empty contract means nothing.
    cluster_contract(&env, "{ serial = \"NO-SUCH-DISK\" }");
    let pick = |env: &Env| env.kiln(&[&["flash", "--node", "alpha"], &UNPROVEN[..]].concat());
    pick(&env).fails(1, &["no disk of this machine fits the contract (serial NO-SUCH-DISK)", "WHY NOT"]);
    cluster_contract(&env, "{}");
    pick(&env).fails(1, &["is empty", "--device"]);
    assert_eq!(kiln::digest::Digest::of(&disk.at(0, 4 << 20)), before);
    // Room for the image is not room for the node.
    cluster_contract(&env, "{ min-size = \"100MiB\" }");
    drop(disk);
    fs_err::remove_file(env.path("disk")).unwrap();
    let Some(disk) = Loop::new(&env, "disk", 2000, 512) else { return };
    let args = ["flash", "--node", "alpha", "--device", &disk.path, "--yes", disk.name()];
    env.kiln(&[&args[..], &UNPROVEN].concat()).fails(6, &["is too small"]);
}

fn cluster_contract(env: &Env, contract: &str) {
    let old = env.read("project/cluster.toml");
    let line = old.lines().find(|line| line.starts_with("disk = ")).unwrap();
    env.edit("project/cluster.toml", line, &format!("disk = {contract}"));
}

/// Begins to flash an image that comes through a pipe, so that the moment can be chosen.
fn slowly(env: &Env, disk: &Loop) -> (Child, fs_err::File) {
    fs_err::create_dir_all(env.path("slow")).unwrap();
    let pipe = env.path("slow/server.raw");
    host("mkfifo", &[pipe.to_str().unwrap()]);
    fs_err::copy(env.project().join("out/server.json"), env.path("slow/server.json")).unwrap();
    let mut child = env
        .command()
        .args(["flash", "--image", pipe.to_str().unwrap(), "--device", &disk.path, "--yes", disk.name()])
        .args(UNPROVEN)
        .spawn()
        .unwrap();
    // Opening a pipe waits for its reader, which may have ended for another reason.
    let open = |flags| fs_err::OpenOptions::new().write(true).custom_flags(flags).open(&pipe);
    let end = Instant::now() + Duration::from_secs(60);
    let held = loop {
        match open(libc::O_NONBLOCK) {
            Ok(held) => break held,
            Err(error) => {
                assert!(child.try_wait().unwrap().is_none() && Instant::now() < end, "nobody reads: {error}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    };
    let into = open(0).unwrap();
    drop(held);
    (child, into)
}

#[test]
fn ctrl_c_says_that_the_disk_does_not_boot_and_how_to_go_on() {
    let env = Env::new();
    let raw = image(&env, 60);
    let Some(disk) = Loop::new(&env, "disk", 300, 512) else { return };
    let bytes = fs_err::read(&raw).unwrap();
    let (child, mut into) = slowly(&env, &disk);
    into.write_all(&bytes[..90 << 20]).unwrap();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    // It is noticed with the next piece, and then nobody reads the rest.
    into.write_all(&bytes[90 << 20..]).ok();
    drop(into);
    let run = Run::of(&child.wait_with_output().unwrap());
    run.fails(130, &["interrupted", &disk.path, "does not boot", "which resumes"]);
    assert!(!disk.boots(512));
    let run = flash(&env, &raw, &[&disk], &["--json"]).ok();
    assert!(run.json()[0]["work"]["resumed"].as_u64().unwrap() > 0, "{}", run.text());
    same_parts(&disk, &raw, 512, true);
}

#[test]
fn a_kill_in_the_middle_leaves_nothing_that_boots_and_the_next_run_resumes() {
    let env = Env::new();
    let raw = image(&env, 120);
    let Some(disk) = Loop::new(&env, "disk", 400, 512) else { return };
    // The disk of an old system.
    flash(&env, &raw, &[&disk], &[]).ok();
    assert!(disk.boots(512));

    let bytes = fs_err::read(&raw).unwrap();
    let (mut child, mut into) = slowly(&env, &disk);
    into.write_all(&bytes[..100 << 20]).unwrap();
    // After two seconds what was written is flushed and noted, with the next piece that comes.
    std::thread::sleep(Duration::from_millis(2500));
    into.write_all(&bytes[100 << 20..130 << 20]).unwrap();
    let journal = env.path(&format!("home/.local/state/kiln/flash/{}.json", disk.name()));
    let end = Instant::now() + Duration::from_secs(60);
    let noted = || {
        let text = fs_err::read_to_string(&journal).unwrap_or_default();
        serde_json::from_str::<serde_json::Value>(&text).ok()?["written"].as_u64()
    };
    while noted().unwrap_or(0) < 60 << 20 {
        assert!(Instant::now() < end, "nothing is noted: {:?}", noted());
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drop(into);
    assert!(!disk.boots(512), "neither the old system nor the new one");

    let run = flash(&env, &raw, &[&disk], &["--json"]).ok();
    let resumed = run.json()[0]["work"]["resumed"].as_u64().unwrap();
    assert!((60 << 20..120 << 20).contains(&resumed), "{}", run.text());
    same_parts(&disk, &raw, 512, true);
    judged(&disk);
    assert!(!journal.exists());
}

#[test]
fn a_disk_that_fails_does_not_hurt_the_other_one() {
    if !is_root() {
        return skipped("a small tmpfs needs root");
    }
    let env = Env::new();
    let raw = image(&env, 40);
    let Some(good) = Loop::new(&env, "good", 300, 512) else { return };
    // A disk whose writes fail when 30 MiB are there: its file is in a tmpfs that is too small for it.
    let small = env.path("small");
    fs_err::create_dir(&small).unwrap();
    host("mount", &["-t", "tmpfs", "-o", "size=30m", "none", small.to_str().unwrap()]);
    let after = After::new(&["umount", small.to_str().unwrap()]);
    let file = small.join("bad");
    fs_err::File::create(&file).unwrap().set_len(300 << 20).unwrap();
    let bad = Loop::over(&file, 512).unwrap();
    let run = flash(&env, &raw, &[&good, &bad], &[]);
    let (boots, text) = (bad.boots(512), run.text());
    let path = bad.path.clone();
    drop(bad);
    drop(after);
    assert!(!run.stderr.contains("store gc"), "{}", run.stderr);
    run.fails(6, &["1 of 2 disks are not done", &path, "failed at byte"]);
    assert!(!boots, "{text}");
    same_parts(&good, &raw, 512, true);
    judged(&good);
}

#[test]
fn an_error_of_the_device_is_told_with_its_place_and_nothing_boots() {
    let env = Env::new();
    let raw = image(&env, 100);
    for (kind, words) in [("read", "reading back"), ("write", "writing")] {
        let Some(failing) = Failing::new(&env, kind, 300) else { return };
        // Through the page cache: what was written in the same second is read from there, and no error is met (FUSE forgets what it has
        // when the time of the file changes, which QEMU says is now).
        let disk = Loop::past_cache(&failing.file).unwrap();
        // Sector 300000 is in the root: the piece of 4 MiB that holds it is named.
        let run = flash(&env, &raw, &[&disk], &[]);
        run.fails(
            6,
            &[&format!("{words} {} failed at byte 15", disk.path), "Input/output error", "does not boot"],
        );
        assert!(!disk.boots(512), "{kind}");
    }
}

#[test]
fn state_survives_a_flash_that_keeps_it() {
    let env = Env::new();
    let raw = image(&env, 20);
    let Some(disk) = Loop::new(&env, "disk", 400, 512) else { return };
    if !has("sfdisk") {
        return skipped("sfdisk makes the partition of /var");
    }
    flash(&env, &raw, &[&disk], &["--keep-state"]).fails(6, &["cannot be kept"]);
    flash(&env, &raw, &[&disk], &[]).ok();
    // What the first boot does: /var behind the slots.
    let script = env.path("tmp/script");
    fs_err::write(
        &script,
        "start=200MiB, size=150MiB, type=4D21B016-B534-45C2-A9FB-5C16E091FD2D, name=var\n",
    )
    .unwrap();
    let input = fs_err::File::open(&script).unwrap().into_file();
    let run = tool("sfdisk").args(["--append", "--no-reread", &disk.path]).stdin(input).output().unwrap();
    Run::of(&run).ok();
    let var = noise(150);
    {
        let file = fs_err::OpenOptions::new().write(true).open(&disk.file).unwrap();
        std::os::unix::fs::FileExt::write_all_at(file.file(), &var, 200 << 20).unwrap();
    }
    let run = flash(&env, &raw, &[&disk], &["--keep-state", "--json"]).ok();
    assert_eq!(run.json()[0]["kept_state"], true);
    judged(&disk);
    let bytes = disk.bytes();
    assert!(bytes[200 << 20..350 << 20] == var);
    let table = gpt::read(&mut Cursor::new(&bytes), 512).unwrap();
    assert_eq!(table.partitions.last().map(|part| part.name.as_str()), Some("var"));
}
