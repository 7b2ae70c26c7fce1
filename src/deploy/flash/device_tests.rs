//! Made-up machines, as sysfs and proc would describe them.

use super::*;
use crate::deploy::flash::claim::{self, Candidate, Wish, choose, confirm};
use crate::error::Kind;

/// A machine in a folder.
struct Made(tempfile::TempDir);

impl Made {
    fn new() -> Self {
        let made = Made(tempfile::tempdir().unwrap());
        for folder in
            ["sys/block", "sys/class/block", "sys/dev/block", "dev/disk/by-id", "proc/self", "run/udev/data"]
        {
            fs::create_dir_all(made.0.path().join(folder)).unwrap();
        }
        made
    }

    fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, to: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::os::unix::fs::symlink(to, path).unwrap();
    }

    /// A disk below `bus`, a path below /sys/devices; `gib` large. Says its folder.
    fn disk(&self, bus: &str, name: &str, number: &str, gib: u64) -> String {
        let at = format!("sys/devices/{bus}/block/{name}");
        self.write(&format!("{at}/dev"), format!("{number}\n"));
        self.write(&format!("{at}/size"), format!("{}\n", gib << 21));
        self.write(&format!("{at}/removable"), "0\n");
        self.write(&format!("{at}/ro"), "0\n");
        self.write(&format!("{at}/queue/logical_block_size"), "512\n");
        self.write(&format!("{at}/queue/physical_block_size"), "4096\n");
        self.write(&format!("dev/{name}"), "");
        for list in ["sys/block", "sys/class/block"] {
            self.link(
                &format!("{list}/{name}"),
                &format!("../{}devices/{bus}/block/{name}", if list == "sys/block" { "" } else { "../" }),
            );
        }
        self.link(&format!("sys/dev/block/{number}"), &format!("../../devices/{bus}/block/{name}"));
        at
    }

    /// A partition of the disk at `at`.
    fn part(&self, at: &str, name: &str, number: &str, start: u64, sectors: u64) {
        for (file, value) in [
            ("dev", number.to_owned()),
            ("partition", "1".into()),
            ("start", start.to_string()),
            ("size", sectors.to_string()),
        ] {
            self.write(&format!("{at}/{name}/{file}"), value + "\n");
        }
        let below = at.strip_prefix("sys/").unwrap();
        self.write(&format!("dev/{name}"), "");
        self.link(&format!("sys/class/block/{name}"), &format!("../../{below}/{name}"));
        self.link(&format!("sys/dev/block/{number}"), &format!("../../{below}/{name}"));
    }

    fn machine(&self) -> Machine {
        Machine::at(self.0.path())
    }
}

/// A workstation: it runs from an encrypted NVMe disk, and has a SATA disk with swap, two sticks, a QEMU disk and things that are no disks.
fn workstation() -> Made {
    let made = Made::new();
    let nvme = made.disk("pci0000:00/0000:00:1d.0/nvme/nvme0", "nvme0n1", "259:0", 476);
    made.write(&format!("{nvme}/device/model"), "Samsung SSD 980 PRO 500GB               \n");
    made.write(&format!("{nvme}/device/serial"), "S5GYNX0R123456      \n");
    made.write(&format!("{nvme}/wwid"), "eui.0025385b71b0a1b2\n");
    made.part(&nvme, "nvme0n1p1", "259:1", 2048, 1 << 20);
    made.part(&nvme, "nvme0n1p2", "259:2", 2048 + (1 << 20), 900 << 20);
    made.write(&format!("{nvme}/nvme0n1p2/holders/dm-0"), "");
    let dm = made.disk("virtual", "dm-0", "252:0", 400);
    made.write(&format!("{dm}/dm/name"), "root\n");
    made.write(&format!("{dm}/slaves/nvme0n1p2"), "");

    let sata = made.disk("pci0000:00/0000:00:17.0/ata2/host1/target1:0:0/1:0:0:0", "sda", "8:0", 931);
    made.write(&format!("{sata}/device/vendor"), "ATA     \n");
    made.write(&format!("{sata}/device/model"), "ST1000DM010-2EP1\n");
    made.write(&format!("{sata}/device/wwid"), "naa.5000c500a1b2c3d4\n");
    made.write(&format!("{sata}/device/vpd_pg80"), b"\0\x80\0\x14            ZN1ABCDE");
    made.write(&format!("{sata}/queue/rotational"), "1\n");
    made.part(&sata, "sda1", "8:1", 2048, 1 << 20);

    for (name, number, port, serial) in
        [("sdb", "8:16", "1-1", "0123456789AB"), ("sdc", "8:32", "1-2", "0123456789CD")]
    {
        let bus = format!("pci0000:00/0000:00:14.0/usb1/{port}/{port}:1.0/host6/target6:0:0/6:0:0:0");
        let usb = made.disk(&bus, name, number, 28);
        made.write(&format!("{usb}/removable"), "1\n");
        made.write(&format!("{usb}/device/model"), "Ultra Fit\u{1b}[31m\n");
        made.write(&format!("sys/devices/pci0000:00/0000:00:14.0/usb1/{port}/idVendor"), "0781\n");
        made.write(&format!("sys/devices/pci0000:00/0000:00:14.0/usb1/{port}/serial"), format!("{serial}\n"));
        made.link(&format!("dev/disk/by-id/usb-SanDisk_{serial}-0:0"), &format!("../../{name}"));
    }
    let scsi = made.disk("pci0000:00/0000:00:05.0/virtio3/host2/target2:0:0/2:0:0:0", "sdd", "8:48", 40);
    made.write(&format!("{scsi}/device/model"), "QEMU HARDDISK\n");
    made.write(&format!("{scsi}/device/vpd_pg83"), b"\0\x83\0\x0f\x02\0\0\x0bdrive-scsi0");
    made.disk("pci0000:00/0000:00:06.0/virtio4", "vda", "254:0", 20);
    made.write("sys/block/vda/serial", "disk-of-vm\n");
    for (name, number) in [("loop0", "7:0"), ("zram0", "253:0"), ("sr0", "11:0"), ("mmcblk0boot0", "179:8")] {
        made.disk("virtual", name, number, 1);
    }
    made.write("sys/block/loop0/loop/backing_file", "/dev/sdd\n");
    made.disk("pci0000:00/0000:00:14.0/usb1/1-3", "sde", "8:64", 0);
    made.write(
        "proc/self/mountinfo",
        "22 1 252:0 / / rw,relatime shared:1 - ext4 /dev/mapper/root rw\n\
         30 22 259:1 / /mnt/efi rw - vfat /dev/nvme0n1p1 rw\n\
         31 22 0:45 /sub /mnt/a\\040b rw - btrfs /dev/sda1 rw,subvol=/sub\n",
    );
    made.write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/sda1  partition 100 0 -2\n");
    made
}

fn contract(text: &str) -> DiskContract {
    // Written as people write it, by way of the reader of cluster.toml.
    let file = format!(
        "schema = 1\nname = \"x\"\n[network.lan]\nsubnet = \"192.0.2.0/24\"\ngateway = \"192.0.2.1\"\n[node.a]\nrole = \"server\"\naddress = \"192.0.2.9\"\ndisk = {text}\n"
    );
    let project = crate::spec::Project::load(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let cluster = crate::spec::cluster::Cluster::parse("c", &file, Path::new("/"), &project).unwrap();
    cluster.node("a").unwrap().disk.clone()
}

#[test]
fn disks_are_what_sysfs_says_and_what_is_none_is_left_out() {
    let made = workstation();
    let disks = made.machine().disks();
    let facts: Vec<String> = disks
        .iter()
        .map(|d| {
            let serial = d.serial.as_deref().unwrap_or("-");
            format!(
                "{} {} {} {} {serial} {}",
                d.name,
                d.size >> 30,
                d.bus,
                d.wwn.as_deref().unwrap_or("-"),
                d.model.as_deref().unwrap_or("-")
            )
        })
        .collect();
    assert_eq!(
        facts,
        [
            "nvme0n1 476 nvme eui.0025385b71b0a1b2 S5GYNX0R123456 Samsung SSD 980 PRO 500GB",
            "sda 931 sata 0x5000c500a1b2c3d4 ZN1ABCDE ST1000DM010-2EP1",
            "sdb 28 usb - 0123456789AB Ultra Fit[31m",
            "sdc 28 usb - 0123456789CD Ultra Fit[31m",
            "sdd 40 scsi - drive-scsi0 QEMU HARDDISK",
            "vda 20 virtio - disk-of-vm -",
        ]
    );
    let by = |name: &str| disks.iter().find(|disk| disk.name == name).unwrap();
    assert_eq!(by("nvme0n1").holders, ["dm-0 (root)"]);
    assert_eq!(by("nvme0n1").mounts, ["/mnt/efi"]);
    assert_eq!(
        (by("sda").mounts.as_slice(), by("sda").swaps.as_slice()),
        (&["/mnt/a b".to_owned()][..], &["sda1".to_owned()][..])
    );
    assert_eq!(by("sdd").holders, ["loop0"]);
    let system: Vec<&str> = disks.iter().filter(|disk| disk.system).map(|disk| disk.name.as_str()).collect();
    assert_eq!(system, ["nvme0n1"], "through the encrypted volume");
    assert_eq!(by("sdb").stable, ["usb-SanDisk_0123456789AB-0:0"]);
    assert_eq!((by("sdb").removable, by("sda").rotational, by("sda").physical_sector), (true, true, 4096));
    assert_eq!(by("nvme0n1").partitions[1].offset, (2048 + (1 << 20)) * 512);
}

#[test]
fn udev_knows_serial_numbers_that_sysfs_does_not_tell() {
    let made = workstation();
    made.write("run/udev/data/b8:16", "S:disk/by-id/x\nE:ID_SERIAL=SanDisk_4C53\nE:ID_SERIAL_SHORT=4C53\n");
    let disk = made.machine().disk("sdb").unwrap();
    assert_eq!(disk.serials, ["4C53", "0123456789AB"]);
    assert!(disk.is("4C53") && disk.is(" 0123456789AB ") && !disk.is("sdb") && !disk.is(""));
    assert!(disk.misfit(&contract("{ serial = \"0123456789AB\" }")).is_none());
}

#[test]
fn exactly_one_disk_must_fit_the_contract() {
    let made = workstation();
    let machine = made.machine();
    let pick = |text: &str| choose(&machine, &Wish { contract: contract(text), ..Wish::default() });
    // The made-up disks cannot be opened: which one was meant, the refusal says.
    for (text, name) in [
        ("{ serial = \"drive-scsi0\" }", "/dev/sdd"),
        ("{ wwn = \"0x5000C500A1B2C3D4\" }", "/dev/sda"),
        ("{ wwn = \"eui.0025385b71b0a1b2\" }", "/dev/nvme0n1"),
        ("{ model = \"Samsung SSD 9*\", bus = \"nvme\" }", "/dev/nvme0n1"),
        ("{ bus = \"sata\" }", "/dev/sda"),
        ("{ bus = \"scsi\", min-size = \"40GiB\" }", "/dev/sdd"),
    ] {
        let error = pick(text).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{name} is not written: ")), "{text}: {error}");
    }
    let error = pick("{ bus = \"usb\" }").unwrap_err();
    assert_eq!(error.kind, Kind::Input);
    let text = error.to_string();
    assert!(text.contains("2 disks fit the contract (bus usb), and one must"), "{text}");
    for line in ["/dev/sdb", "0123456789CD", "fits", "its bus is nvme"] {
        assert!(text.contains(line), "{text}");
    }
    assert!(!text.contains('\u{1b}'));
    let text = pick("{ serial = \"nobody\" }").unwrap_err().to_string();
    assert!(
        text.contains("no disk of this machine fits") && text.contains("its serial is ZN1ABCDE"),
        "{text}"
    );
    assert!(pick("{}").unwrap_err().to_string().contains("is empty"));
}

#[test]
fn a_disk_that_is_named_is_found_by_every_name_and_partitions_are_none() {
    let made = workstation();
    let machine = made.machine();
    let named = |path: &str| {
        choose(&machine, &Wish { device: Some(Path::new(path)), ..Wish::default() }).unwrap_err()
    };
    assert!(
        named("/dev/disk/by-id/usb-SanDisk_0123456789CD-0:0")
            .to_string()
            .starts_with("/dev/sdc is not written")
    );
    let part = named("/dev/nvme0n1p1");
    assert!(part.to_string().contains("is a partition") && part.hints()[0].contains("--device /dev/nvme0n1"));
    assert!(named("/dev/sde").to_string().contains("has no medium"));
    assert!(named("/dev/sdx").to_string().contains("is not there"));
    assert!(named("/dev/../etc/passwd").to_string().contains("is not there"));
    made.write("etc/passwd", "");
    assert!(named("/dev/../etc/passwd").to_string().contains("is a file, no disk"));
    assert!(named("/dev").to_string().contains("is a folder, no disk"));
    let near = named("sdc");
    assert!(
        near.to_string().contains("sdc is not there") && near.hints()[0] == "did you mean /dev/sdc?",
        "{near:?}"
    );
    let text = named("/dev/sda").to_string();
    for why in ["mounted on /mnt/a b", "swap space in use (sda1)"] {
        assert!(text.contains(why), "{text}");
    }
    assert!(named("/dev/nvme0n1").to_string().contains("used by dm-0 (root)"));
    let wish = Wish {
        device: Some(Path::new("/dev/sdb")),
        contract: contract("{ bus = \"nvme\" }"),
        ..Wish::default()
    };
    assert!(
        choose(&machine, &wish)
            .unwrap_err()
            .to_string()
            .contains("is not the disk of the contract (bus nvme): its bus is usb")
    );
}

#[test]
fn a_person_types_the_serial_number_unless_the_contract_has_it() {
    let made = workstation();
    let disk = made.machine().disk("sdb").unwrap();
    let nobody = |_: &str| -> Option<String> { None };
    let types = |text: &str| {
        let text = text.to_owned();
        move |_: &str| Some(text)
    };
    let wish = Wish::default();
    confirm(&disk, &wish, &[], types("0123456789AB")).unwrap();
    for wrong in ["", "y", "yes", "0123456789CD", "sdb", "/dev/sdb"] {
        let error = confirm(&disk, &wish, &[], types(wrong)).unwrap_err();
        assert!(error.to_string().contains("is not its serial number"), "{error}");
        confirm(&disk, &wish, &[wrong.to_owned()], nobody).unwrap_err();
    }
    let error = confirm(&disk, &wish, &[], nobody).unwrap_err();
    assert!(error.hints()[0].contains("--yes 0123456789AB"), "{error}");
    confirm(&disk, &wish, &["x".to_owned(), "0123456789AB".to_owned()], nobody).unwrap();
    // A contract that could fit another disk tomorrow is no confirmation.
    confirm(&disk, &Wish { contract: contract("{ bus = \"usb\" }"), ..Wish::default() }, &[], nobody)
        .unwrap_err();
    confirm(
        &disk,
        &Wish { contract: contract("{ serial = \"0123456789AB\" }"), ..Wish::default() },
        &[],
        nobody,
    )
    .unwrap();
    // A disk without a serial number goes by its name.
    let nameless = Disk { serial: None, serials: Vec::new(), ..disk };
    confirm(&nameless, &wish, &[], types("sdb")).unwrap();
    confirm(&nameless, &wish, &["/dev/sdb".to_owned()], nobody).unwrap();
}

#[test]
fn a_loop_device_holds_a_disk_by_whatever_name_it_was_opened() {
    let made = workstation();
    made.disk("virtual", "loop1", "7:1", 1);
    made.write("sys/block/loop1/loop/backing_file", "/dev/of-a-container/xvdc\n");
    let opened = |path: &Path| path.ends_with("dev/of-a-container/xvdc").then(|| "254:0".to_owned());
    let machine = Machine { opened, ..made.machine() };
    let holders = |name: &str| machine.disk(name).unwrap().holders;
    assert_eq!(holders("vda"), ["loop1"]);
    assert_eq!(holders("sdd"), ["loop0"]);
    assert!(holders("sdb").is_empty());
}

#[test]
fn programs_that_have_a_disk_open_for_writing_are_named() {
    let made = workstation();
    let open = |process: &str, name: &str, file: u8, to: &str, flags: &str| {
        made.write(&format!("proc/{process}/comm"), format!("{name}\n"));
        made.link(&format!("proc/{process}/fd/{file}"), to);
        made.write(
            &format!("proc/{process}/fdinfo/{file}"),
            format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t20\n"),
        );
    };
    open("41", "qemu-system-x86", 9, "/dev/sda1", "02104002");
    open("42", "udevd", 3, "/dev/sda", "02100000");
    open("43", "dd\u{1b}[31m", 1, "/dev/sdb", "0100001");
    open("44", "sh", 0, "/dev/sdbx", "0100002");
    open("45", "guest", 7, "/dev/xvdc", "0100002");
    open("46", "raid", 4, "/dev/cciss/c0d0p1", "0100002");
    open("47", "kiln", 5, "/dev/sdc", "0100002");
    made.write("proc/46/status", "Name:\traid\nPPid:\t1\n");
    made.write("proc/47/status", format!("Name:\tkiln\nPPid:\t{}\n", std::process::id()));
    open(&std::process::id().to_string(), "kiln", 5, "/dev/sdc", "0100002");
    let cciss = made.disk("pci0000:00/0000:00:07.0/cciss0/c0d0", "cciss!c0d0", "104:0", 40);
    made.part(&cciss, "cciss!c0d0p1", "104:1", 2048, 1 << 20);
    // Only root can make devices, so what the links lead to is said here.
    let opened = |link: &Path| {
        let to = fs::read_link(link).unwrap_or_default();
        let numbers = [
            ("/dev/sda", "8:0"),
            ("/dev/sda1", "8:1"),
            ("/dev/sdb", "8:16"),
            ("/dev/sdc", "8:32"),
            ("/dev/xvdc", "254:0"),
            ("/dev/cciss/c0d0p1", "104:1"),
        ];
        numbers.iter().find(|(name, _)| to == Path::new(name)).map(|(_, number)| (*number).to_owned())
    };
    let machine = Machine { opened, ..made.machine() };
    let writers = |name: &str| machine.writers(&machine.disk(name).unwrap());
    assert_eq!(writers("sda"), ["qemu-system-x86 (41)"]);
    assert_eq!(writers("sdb"), ["dd[31m (43)"]);
    assert_eq!(writers("vda"), ["guest (45)"], "by a name that only the program knows");
    assert_eq!(writers("cciss!c0d0"), ["raid (46)"]);
    assert!(writers("sdc").is_empty() && writers("sdd").is_empty());
    // The real question, of this process: nothing that it has open is a disk, whatever it may be called.
    assert_eq!(block_device(Path::new("/proc/self/fd/0")), None);
    assert_eq!(block_device(Path::new("/proc/self/fd/none")), None);
}

#[test]
fn texts_of_several_lines_stay_in_their_row() {
    let made = workstation();
    made.write("sys/block/sdb/device/model", "Ultra\nFit\n");
    made.write("proc/self/mountinfo", "31 22 8:16 / /mnt/a\\012b rw - vfat /dev/sdb rw\n");
    let all = Candidate::all(&made.machine());
    let rows = claim::table(&all, None);
    assert!(rows.len() == all.len() + 1 && rows.iter().all(|row| !row.contains('\n')), "{rows:#?}");
    assert!(
        rows.iter().any(|row| row.contains("Ultra Fit") && row.contains("mounted on /mnt/a b")),
        "{rows:#?}"
    );
}

#[test]
fn a_stick_is_given_up_and_what_cannot_be_is_not() {
    let made = workstation();
    let machine = made.machine();
    let stick = machine.disk("sdb").unwrap();
    assert!(!machine.give_up(&stick) && !made.0.path().join("sys/block/sdb/device/delete").exists());
    made.write("sys/block/sdb/device/delete", "");
    assert!(machine.give_up(&stick));
    assert_eq!(fs::read(made.0.path().join("sys/block/sdb/device/delete")).unwrap(), b"1");
}

#[test]
fn a_machine_without_sysfs_has_no_disks() {
    let made = Made(tempfile::tempdir().unwrap());
    assert!(made.machine().disks().is_empty() && made.machine().disk("sda").is_none());
    let error = choose(&made.machine(), &Wish { contract: contract("{ bus = \"usb\" }"), ..Wish::default() })
        .unwrap_err();
    assert!(error.to_string().contains("(no disks)"), "{error}");
}
