//! Switching machines on and off, by what their firmware says: no image is needed, the disks are empty.

use std::path::Path;
use std::time::Duration;

use kiln::arch::Arch;
use kiln::error::Kind;
use kiln::qemu::accel::Accel;
use kiln::qemu::config::{Boot, Bus, Disk, MachineConfig, Sectors};
use kiln::qemu::disk::{Cut, Export, Options};
use kiln::qemu::firmware::Firmware;
use kiln::qemu::machine::Machine;

use super::common::images;
use super::node::Slot;

/// What firmware says when no disk has a boot loader: it comes to its shell, which has listed the disks.
const NOTHING: &str = "Press ESC in 5 seconds";
pub(super) const LIMIT: Duration = Duration::from_secs(300);

pub(super) fn start(folder: &Path, arch: Arch, disks: Vec<Disk>) -> Machine {
    let tools = images::tools(if arch == Arch::Arm64 { "qemu-arm64" } else { "qemu" });
    let config = MachineConfig {
        name: "power".to_owned(),
        arch,
        memory: 256,
        cpus: 1,
        accel: Accel::Tcg,
        boot: Boot::Firmware(Firmware::find(&tools, arch).unwrap()),
        disks,
        nics: Vec::new(),
        credentials: Vec::new(),
        cmdline_extra: None,
        ports: vec!["kiln.port".to_owned()],
        clock: None,
        no_reboot: false,
        uuid: None,
        screen: true,
        shell: false,
        tpm: None,
    };
    Machine::start(&tools, &config, Some(folder)).unwrap()
}

#[test]
fn a_machine_keeps_disks_and_logs_through_reset_and_power_cut() {
    let _slot = Slot::wait();
    let folder = tempfile::tempdir().unwrap();
    let kinds = [
        (Bus::VirtioBlk, Sectors::Native512),
        (Bus::Nvme, Sectors::Native4096),
        (Bus::Ahci, Sectors::Emulated512),
        (Bus::UsbStorage, Sectors::Native512),
        (Bus::VirtioBlk, Sectors::Native4096),
    ];
    let mut exports = Vec::new();
    let mut disks = Vec::new();
    for (index, (bus, sectors)) in kinds.into_iter().enumerate() {
        let name = format!("d{index}");
        let options =
            Options { block_size: sectors.sizes().0, ..Options::empty(folder.path(), &name, 64 << 20) };
        let export = Export::serve(options).unwrap();
        disks.push(Disk { sectors, ..Disk::export(export.socket().to_owned(), bus, &name) });
        exports.push(export);
    }
    let read = || exports.iter().map(|export| export.counters().reads).collect::<Vec<_>>();
    let mut machine = start(folder.path(), Arch::Amd64, disks);
    let said = machine.console.wait_for(NOTHING, LIMIT).unwrap();
    for device in ["Pci(0x3,0x0)", "NVMe(0x1,", "Sata(0x0,", "USB(0x0,", "Pci(0x7,0x0)"] {
        assert!(said.contains(device), "{device}: {said}");
    }
    let first = read();
    assert!(first.iter().all(|reads| *reads > 0), "firmware looks at the disk on every bus: {first:?}");

    let picture = folder.path().join("screen.png");
    machine.screenshot(&picture).unwrap();
    let picture = fs_err::read(picture).unwrap();
    assert!(picture.starts_with(b"\x89PNG"));
    assert!(picture.len() > 4096, "{} bytes: an empty screen has less", picture.len());

    machine.pause().unwrap();
    assert_eq!(machine.qmp.status().unwrap(), "paused");
    machine.resume().unwrap();
    assert_eq!(machine.qmp.status().unwrap(), "running");
    machine.reset().unwrap();
    machine.console.wait_for(NOTHING, LIMIT).unwrap();
    assert_eq!(machine.starts(), 1);

    let process = machine.id();
    assert!(machine.power_on().unwrap_err().to_string().contains("is on already"));
    machine.power_cut();
    assert!(!machine.is_on().unwrap());
    assert!(machine.check_alive().unwrap_err().to_string().contains("its plug was pulled"));
    for export in &exports {
        assert_eq!(export.power_cut(1).unwrap(), Cut::default(), "nobody wrote");
    }
    let before = read();
    machine.power_on().unwrap();
    machine.console.wait_for(NOTHING, LIMIT).unwrap();
    machine.check_alive().unwrap();
    assert_ne!(machine.id(), process);
    assert!(read().iter().zip(&before).all(|(now, before)| now > before), "each disk is there again");

    let run = machine.keep();
    drop(machine);
    let log = fs_err::read_to_string(run.join("console.log")).unwrap();
    let told: Vec<&str> =
        log.lines().filter(|line| line.contains("switched on again") || line.contains(NOTHING)).collect();
    assert_eq!(told.len(), 4, "three boots and one mark: {told:?}");
    assert!(told[2].ends_with("---- switched on again (start 2) ----"), "{told:?}");
}

#[test]
fn an_arm_machine_has_a_picture_too() {
    let _slot = Slot::wait();
    let folder = tempfile::tempdir().unwrap();
    let export = Export::serve(Options::empty(folder.path(), "d", 64 << 20)).unwrap();
    let disk = Disk::export(export.socket().to_owned(), Bus::VirtioBlk, "d");
    let mut machine = start(folder.path(), Arch::Arm64, vec![disk]);
    machine.console.wait_for(NOTHING, LIMIT).unwrap();
    let picture = folder.path().join("screen.png");
    machine.screenshot(&picture).unwrap();
    assert!(fs_err::metadata(&picture).unwrap().len() > 4096);
    assert!(export.counters().reads > 0);
    let run = machine.folder().to_owned();
    drop(machine);
    assert!(!run.exists());
}

#[test]
fn a_machine_whose_qemu_was_killed_from_outside_says_so_and_can_be_switched_on_again() {
    let _slot = Slot::wait();
    let folder = tempfile::tempdir().unwrap();
    let export = Export::serve(Options::empty(folder.path(), "d", 64 << 20)).unwrap();
    let disk = Disk::export(export.socket().to_owned(), Bus::VirtioBlk, "d");
    let mut machine = start(folder.path(), Arch::Amd64, vec![disk]);
    for (signal, told) in [
        (rustix::process::Signal::KILL, "was killed from outside by signal 9 (SIGKILL)"),
        (rustix::process::Signal::TERM, "was ended from outside by signal 15 from pid"),
    ] {
        let pid = i32::try_from(machine.id()).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
        // Whoever talks to it next is told the cause, not that a socket closed.
        let failure = loop {
            if let Err(failure) = machine.pause() {
                break failure;
            }
        };
        assert_eq!(failure.kind, Kind::Tool);
        let text = failure.to_string();
        assert!(text.contains(&format!("QEMU of machine power (process {pid}) {told}")), "{text}");
        assert_eq!(machine.check_alive().unwrap_err().to_string(), text);
        machine.power_on().unwrap();
        machine.console.wait_for("BdsDxe", LIMIT).unwrap();
    }
}
