//! Reference tools judge the parts of a real image.
//!
//! They come out of the lock (tool set `judges` in images/tools.toml), so that the verdict is the same on every machine. Each
//! test says how the tool would have seen the fault it looks for.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy spares only the functions marked #[test]"
)]

mod cilium;
#[path = "../common/mod.rs"]
mod common;
mod disk;
mod edge;
mod kernel;
mod linux;
mod seal;
mod secrets;
mod verbs;

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::images;
use kiln::exec::{Command, Tool};
use kiln::manifest::{Manifest, PartitionInfo};

fn judge(program: &str) -> Command {
    static TREE: OnceLock<PathBuf> = OnceLock::new();
    let tree = TREE.get_or_init(|| images::tools("judges"));
    Tool::from_tree(tree, program).unwrap().command()
}

fn read(command: &Command) -> String {
    String::from_utf8_lossy(&command.read().unwrap_or_else(|e| panic!("{e}"))).into_owned()
}

fn image() -> &'static (PathBuf, Manifest) {
    static IMAGE: OnceLock<(PathBuf, Manifest)> = OnceLock::new();
    IMAGE.get_or_init(|| (images::image("server", "amd64"), images::manifest("server", "amd64")))
}

fn partition(name: &str) -> &'static PartitionInfo {
    let found = image().1.disk.partitions.iter().find(|p| p.name.starts_with(name));
    found.unwrap_or_else(|| panic!("no partition {name}: {:?}", image().1.disk.partitions))
}

/// A partition as a file of its own.
fn part(name: &str) -> tempfile::NamedTempFile {
    let partition = partition(name);
    let mut disk = fs_err::File::open(&image().0).unwrap();
    disk.seek(SeekFrom::Start(partition.offset)).unwrap();
    let mut file = tempfile::NamedTempFile::new_in(images::folder()).unwrap();
    std::io::copy(&mut disk.take(partition.size), &mut file).unwrap();
    file.flush().unwrap();
    file
}

/// The file at `path` of the ESP, taken out by mtools.
fn from_esp(path: &str, to: &Path) {
    let place = format!("{}@@{}", image().0.display(), partition("esp").offset);
    judge("usr/bin/mtools")
        .args(["-c", "mcopy", "-n", "-i", &place, &format!("::/{path}")])
        .arg(to)
        .run()
        .unwrap();
}

fn uki() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(images::folder()).unwrap();
    let version = &image().1.version;
    from_esp(&format!("EFI/Linux/kiln_{version}+3.efi"), &folder.path().join("kiln.efi"));
    folder
}

#[test]
fn sfdisk_finds_the_table_in_order_and_reads_what_the_manifest_says() {
    let verdict = read(&judge("usr/sbin/sfdisk").arg("--verify").arg(&image().0));
    assert!(verdict.contains("No errors detected"), "{verdict}");
    let table: serde_json::Value =
        serde_json::from_str(&read(&judge("usr/sbin/sfdisk").arg("--json").arg(&image().0))).unwrap();
    let found = table["partitiontable"]["partitions"].as_array().unwrap();
    let wanted = &image().1.disk.partitions;
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        assert_eq!(found["start"].as_u64().unwrap() * 512, wanted.offset, "{wanted:?}");
        assert_eq!(found["size"].as_u64().unwrap() * 512, wanted.size, "{wanted:?}");
        assert_eq!(found["name"], wanted.name.as_str());
        assert!(found["uuid"].as_str().unwrap().eq_ignore_ascii_case(&wanted.guid));
        assert!(found["type"].as_str().unwrap().eq_ignore_ascii_case(&wanted.kind));
    }
}

#[test]
fn sgdisk_finds_no_problem_in_either_table() {
    let verdict = read(&judge("usr/sbin/sgdisk").arg("-v").arg(&image().0));
    assert!(verdict.contains("No problems found"), "{verdict}");
}

#[test]
fn fsck_erofs_reads_all_and_what_it_extracts_is_what_the_manifest_lists() {
    let root = part("root-");
    judge("usr/bin/fsck.erofs").arg(root.path()).run().unwrap();
    let files = kiln::manifest::read_files(&images::folder().join("out/server.json")).unwrap();
    let (mut compared, mut links) = (0, 0);
    for (path, info) in &files {
        let at = extracted().join("root").join(path.trim_start_matches('/'));
        match info.kind.as_str() {
            "file" => {
                let digest = kiln::digest::Digest::of_reader(fs_err::File::open(&at).unwrap()).unwrap().0;
                assert_eq!(Some(digest), info.sha256, "{path}");
                compared += 1;
            }
            "link" => {
                let target = fs_err::read_link(&at).unwrap();
                assert_eq!(target.to_str(), info.target.as_deref(), "{path}");
                links += 1;
            }
            _ => {}
        }
    }
    assert!(compared > 2000 && links > 200, "{compared} files and {links} links were compared");
}

#[test]
fn dump_erofs_sees_owners_and_modes_of_the_manifest() {
    let root = part("root-");
    for path in ["/etc/passwd", "/usr/bin/bash", "/usr/lib/systemd/systemd", "/tmp"] {
        let files = kiln::manifest::read_files(&images::folder().join("out/server.json")).unwrap();
        let info = &files[path];
        let said = read(&judge("usr/bin/dump.erofs").arg(format!("--path={path}")).arg(root.path()));
        // It prints the nine permission bits only.
        let mode = format!("Access: 0{}/", &info.mode[info.mode.len() - 3..]);
        assert!(
            said.contains(&format!("Uid: {}", info.uid)) && said.contains(&mode),
            "{path} {info:?}: {said}"
        );
    }
}

#[test]
fn veritysetup_accepts_the_tree_with_the_root_hash_and_refuses_it_with_another() {
    let (root, tree) = (part("root-"), part("verity-"));
    let verify = |hash: &str| {
        judge("usr/sbin/veritysetup").arg("verify").arg(root.path()).arg(tree.path()).arg(hash).run()
    };
    let hash = image().1.root_hash.to_string();
    verify(&hash).unwrap();
    let other: String = hash.chars().rev().collect();
    verify(&other).expect_err("another hash must not fit");
    // And a byte somewhere in the middle of the data.
    let mut file = fs_err::OpenOptions::new().write(true).open(root.path()).unwrap();
    file.seek(SeekFrom::Start(partition("root-").size / 2)).unwrap();
    file.write_all(b"kiln was here").unwrap();
    verify(&hash).expect_err("changed data must not fit");
}

#[test]
fn the_esp_passes_fsck_and_holds_what_firmware_looks_for() {
    let esp = part("esp");
    judge("usr/sbin/fsck.fat").arg("-n").arg(esp.path()).run().unwrap();
    let place = format!("{}@@{}", image().0.display(), partition("esp").offset);
    let list = read(&judge("usr/bin/mtools").args(["-c", "mdir", "-/", "-b", "-i", &place, "::"]));
    let version = &image().1.version;
    for path in [
        "EFI/BOOT/BOOTX64.EFI".to_owned(),
        format!("EFI/Linux/kiln_{version}+3.efi"),
        "loader/loader.conf".to_owned(),
    ] {
        assert!(list.lines().any(|l| l.eq_ignore_ascii_case(&format!("::/{path}"))), "{path}: {list}");
    }
}

#[test]
fn the_uki_on_the_esp_is_the_one_of_the_manifest_and_carries_the_root_hash() {
    let folder = uki();
    let bytes = fs_err::read(folder.path().join("kiln.efi")).unwrap();
    assert_eq!(kiln::digest::Digest::of(&bytes), image().1.uki);
    let tree = images::tools("judges");
    let python = fs_err::read_dir(tree.join("usr/bin"))
        .unwrap()
        .filter_map(|e| e.unwrap().file_name().into_string().ok())
        .find(|name| name.starts_with("python3."))
        .expect("systemd-ukify needs a python3.N");
    let said = judge(&format!("usr/bin/{python}"))
        .env("PYTHONHOME", tree.join("usr"))
        .env("PYTHONPATH", tree.join("usr/lib/python3/dist-packages"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(tree.join("usr/bin/ukify"))
        .arg("inspect")
        .arg(folder.path().join("kiln.efi"))
        .arg("--json=short")
        .read()
        .unwrap_or_else(|e| panic!("{e}"));
    let said: serde_json::Value = serde_json::from_slice(&said).unwrap();
    let sections = said.as_object().unwrap();
    for name in [".linux", ".initrd", ".cmdline", ".osrel", ".uname"] {
        assert!(sections.contains_key(name), "{name}: {said}");
    }
    let text = sections[".cmdline"]["text"].as_str().unwrap();
    assert!(text.contains(&format!("roothash={}", image().1.root_hash)), "{text}");
    assert_eq!(sections[".uname"]["text"].as_str().unwrap().trim(), image().1.kernel);
    assert!(sections[".osrel"]["text"].as_str().unwrap().contains(&image().1.version));
}

/// The initrd of the UKI, unpacked by zstd; it goes with the folder.
fn from_initrd() -> (tempfile::TempDir, PathBuf) {
    let folder = uki();
    let bytes = fs_err::read(folder.path().join("kiln.efi")).unwrap();
    let sections = kiln::image::uki::sections(&bytes).unwrap();
    let initrd = sections.iter().find(|s| s.name == ".initrd").unwrap();
    let packed = folder.path().join("initrd.zst");
    fs_err::write(&packed, initrd.bytes).unwrap();
    judge("usr/bin/zstd").arg("-t").arg(&packed).run().unwrap();
    let plain = folder.path().join("initrd");
    judge("usr/bin/zstd").args(["-q", "-d", "-o"]).arg(&plain).arg(&packed).run().unwrap();
    (folder, plain)
}

#[test]
fn zstd_and_cpio_read_the_initrd_of_the_uki() {
    let (_folder, plain) = from_initrd();
    let list = read(&judge("usr/bin/cpio").args(["-t", "--quiet", "-F"]).arg(&plain));
    for path in ["init", "bin/busybox", "bin/dmsetup", "usr/lib/libc.so.6"] {
        assert!(list.lines().any(|l| l == path), "{path}: {list}");
    }
}

/// The root as fsck.erofs extracts it, once for all tests that look into it.
fn extracted() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        // At a fixed place: a static is never dropped, so a temporary folder would stay.
        let folder = images::folder().join("extracted");
        fs_err::remove_dir_all(&folder).ok();
        fs_err::create_dir(&folder).unwrap();
        let root = part("root-");
        judge("usr/bin/fsck.erofs")
            .arg(format!("--extract={}", folder.join("root").display()))
            .args(["--no-preserve", "--no-xattrs"])
            .arg(root.path())
            .run()
            .unwrap();
        folder
    })
}

/// What Go writes into a program says from which modules it was made (golang.org/x, debug/buildinfo), whatever its `--version` was told to say.
#[test]
fn k3s_is_made_of_the_kubernetes_and_the_containerd_that_belong_to_it() {
    let program = fs_err::read(extracted().join("root/usr/bin/k3s")).unwrap();
    let origin = image().1.k3s.as_ref().unwrap();
    let mut lines = vec![
        r"=>\tgithub\.com/k3s-io/kubernetes\tv1\.33\.3-k3s1\t".to_owned(),
        r"=>\tgithub\.com/k3s-io/containerd/v2\tv2\.0\.5-k3s2\t".to_owned(),
    ];
    if let Some(commit) = &origin.commit {
        lines.push(format!(r"dep\tgithub\.com/k3s-io/k3s\tv1\.33\.[0-9A-Za-z.-]+-{}\t", &commit[..12]));
    }
    for line in lines {
        assert!(regex_automata::meta::Regex::new(&line).unwrap().is_match(&program), "{line} is not in it");
    }
}

#[test]
fn ldconfig_reads_our_cache_and_finds_each_library_where_it_says() {
    let root = extracted().join("root");
    let said = read(&judge("usr/sbin/ldconfig").arg("-p").arg("-C").arg(root.join("etc/ld.so.cache")));
    let entries: Vec<&str> =
        said.lines().filter_map(|l| l.split_once(" => ").map(|(_, path)| path)).collect();
    assert!(entries.len() > 80, "{said}");
    for path in &entries {
        let at = root.join(path.trim_start_matches('/'));
        assert!(at.exists(), "{path} of the cache is not in the root");
    }
    // The same root, cached by ldconfig itself, has the same libraries.
    let ours: std::collections::BTreeSet<&str> =
        said.lines().filter(|l| l.contains(" => ")).map(str::trim).collect();
    let theirs = extracted().join("theirs.cache");
    judge("usr/sbin/ldconfig")
        .args(["-X", "-r"])
        .arg(&root)
        .arg("-C")
        .arg("/ldconfig-test.cache")
        .run()
        .unwrap();
    fs_err::rename(root.join("ldconfig-test.cache"), &theirs).unwrap();
    let said = read(&judge("usr/sbin/ldconfig").arg("-p").arg("-C").arg(&theirs));
    let reference: std::collections::BTreeSet<&str> =
        said.lines().filter(|l| l.contains(" => ")).map(str::trim).collect();
    assert_eq!(ours, reference);
}

#[test]
fn modprobe_resolves_dependencies_by_our_indexes() {
    let release = &image().1.kernel;
    let root = extracted().join("root");
    let show = |module: &str| {
        judge("usr/bin/kmod")
            .args(["modprobe", "--show-depends", "-S", release, "-d"])
            .arg(&root)
            .arg(module)
            .read()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    // kmod chooses by the name it is called by; as `kmod` it knows only list and static-nodes, so modprobe is a link to it.
    let said = match show("vxlan") {
        Ok(said) => said,
        Err(_) => read(
            &judge("usr/sbin/modprobe").args(["--show-depends", "-S", release, "-d"]).arg(&root).arg("vxlan"),
        ),
    };
    assert!(said.contains("udp_tunnel.ko") && said.lines().last().unwrap().contains("vxlan.ko"), "{said}");
}

#[test]
fn qemu_img_finds_the_same_disk_in_qcow2_and_no_fault() {
    let tree = images::tools("qemu");
    images::build("server", "amd64", "raw,qcow2");
    let qcow2 = images::folder().join("out/server.qcow2");
    let qemu_img = || Tool::from_tree(&tree, "usr/bin/qemu-img").unwrap().command();
    let said = read(&qemu_img().arg("check").arg(&qcow2));
    assert!(said.contains("No errors were found"), "{said}");
    let info: serde_json::Value =
        serde_json::from_str(&read(&qemu_img().args(["info", "--output=json"]).arg(&qcow2))).unwrap();
    assert_eq!(info["virtual-size"].as_u64().unwrap(), image().1.disk.size);
    qemu_img().args(["compare", "-f", "raw", "-F", "qcow2"]).arg(&image().0).arg(&qcow2).run().unwrap();
}

#[test]
fn zstd_unpacks_the_compressed_disk_to_the_same_bytes() {
    images::build("server", "amd64", "raw,raw.zst");
    let packed = images::folder().join("out/server.raw.zst");
    let plain = tempfile::NamedTempFile::new_in(images::folder()).unwrap();
    judge("usr/bin/zstd").args(["-q", "-d", "-f", "-o"]).arg(plain.path()).arg(&packed).run().unwrap();
    let digest = kiln::digest::Digest::of_reader(fs_err::File::open(plain.path()).unwrap()).unwrap().0;
    assert_eq!(digest, image().1.disk.sha256);
}

#[test]
fn the_manifest_has_the_digest_of_the_disk() {
    let digest = kiln::digest::Digest::of_reader(fs_err::File::open(&image().0).unwrap()).unwrap().0;
    assert_eq!(digest, image().1.disk.sha256);
}

#[test]
fn dpkg_orders_the_locks_versions_as_we_do() {
    use kiln::debian::version::DebVersion;
    let lock = kiln::lock::Lock::load(images::project()).unwrap();
    let mut versions: Vec<String> = lock.package.iter().map(|p| p.version.clone()).collect();
    versions.sort();
    versions.dedup();
    // Neighbours in plain text order are often near each other in Debian's; a hundred pairs keep it short.
    for pair in versions.windows(2).step_by(versions.len().div_ceil(100)) {
        let (a, b) = (&pair[0], &pair[1]);
        let ours = a.parse::<DebVersion>().unwrap().cmp(&b.parse::<DebVersion>().unwrap());
        let dpkg =
            |operator: &str| judge("usr/bin/dpkg").args(["--compare-versions", a, operator, b]).run().is_ok();
        let theirs = match (dpkg("lt"), dpkg("eq")) {
            (true, _) => std::cmp::Ordering::Less,
            (_, true) => std::cmp::Ordering::Equal,
            _ => std::cmp::Ordering::Greater,
        };
        assert_eq!(ours, theirs, "{a} and {b}");
    }
}

#[test]
fn tcpdump_reads_a_capture_of_the_switch_while_it_is_being_written() {
    use kiln::qemu::switch::{Conditions, Direction, Switch};
    use std::time::Duration;
    let folder = tempfile::tempdir_in(images::folder()).unwrap();
    let file = folder.path().join("agent-1.pcapng");
    let switch = Switch::new("lan", 1).unwrap();
    let (mut agent, mut other) = (switch.tap("agent-1").unwrap(), switch.tap("edge").unwrap());
    switch.capture(agent.port(), &file).unwrap();
    let arp = |from: u8, tag: &[u8], ip: u8| {
        let mac = [0x52, 0x54, 0, 0, 0, from];
        let ask = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1];
        [&[0xff; 6], &mac[..], tag, &ask, &mac, &[10, 77, 0, from], &[0; 6], &[10, 77, 0, ip]].concat()
    };
    let mut receive = |frame: &[u8]| {
        other.send(frame).unwrap();
        assert_eq!(agent.receive(Duration::from_secs(20)).unwrap().unwrap(), frame);
    };
    receive(&arp(1, &[], 2));
    receive(&arp(3, &[0x81, 0x00, 0x00, 0x07], 4));
    let mut jumbo = arp(5, &[], 6);
    jumbo.resize(9018, 0);
    receive(&jumbo);
    // What the node sends is captured although nobody gets it.
    switch.set(agent.port(), Direction::FromNode, Conditions::CUT).unwrap();
    agent.send(&arp(7, &[], 8)).unwrap();
    assert_eq!(switch.counters(agent.port()).unwrap().from_node.dropped.cut, 1);

    // As root it would become a user of its own, whom not every machine has.
    let tcpdump =
        judge("usr/bin/tcpdump").args(["-Z", "root", "-nn", "-e", "-tt", "--time-stamp-precision=nano"]);
    let said = read(&tcpdump.arg("-r").arg(&file));
    let lines: Vec<&str> = said.lines().collect();
    let wanted = [
        ["52:54:00:00:00:01 > ff:ff:ff:ff:ff:ff", "length 42: Request who-has 10.77.0.2 tell 10.77.0.1"],
        ["vlan 7, p 0, ethertype ARP", "who-has 10.77.0.4 tell 10.77.0.3"],
        ["length 9018:", "who-has 10.77.0.6 tell 10.77.0.5"],
        ["52:54:00:00:00:07 > ff:ff:ff:ff:ff:ff", "who-has 10.77.0.8 tell 10.77.0.7"],
    ];
    assert_eq!(lines.len(), wanted.len(), "{said}");
    for (line, parts) in lines.iter().zip(wanted) {
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
    let times: Vec<f64> = lines.iter().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    assert!(times.is_sorted() && times[0] > 1.7e9, "{said}");
    // Nine digits, or the file's nanoseconds were not understood.
    assert!(lines.iter().all(|line| line.find(' ').unwrap() - line.find('.').unwrap() == 10), "{said}");
}

#[test]
fn the_root_says_which_image_it_is_and_which_kiln_made_it() {
    let text = fs_err::read_to_string(extracted().join("root/usr/lib/os-release")).unwrap();
    let manifest = &image().1;
    for line in [
        "IMAGE_ID=kiln-server".to_owned(),
        format!("IMAGE_VERSION={}", manifest.version),
        format!("KILN_VERSION={}", manifest.kiln),
    ] {
        assert_eq!(text.lines().filter(|other| **other == line).count(), 1, "{line}\n{text}");
    }
}
