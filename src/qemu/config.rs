//! What a machine is, and the QEMU arguments that say so.
//!
//! [`MachineConfig::to_args`] is a pure function of the configuration and of the [`Places`] in the run folder. Devices and
//! block nodes are given as JSON, which QEMU takes since 6.2 and which needs no escaping of commas in paths.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use uuid::Uuid;

use super::accel::Accel;
use super::firmware::Firmware;
use super::tpm::Tpm;
use crate::arch::Arch;
use crate::error::{Failure, Kind};

/// How an image file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl Format {
    /// QEMU's name of the format.
    pub fn word(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// The controller a disk hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// `virtio-blk-pci`
    VirtioBlk,
    /// `nvme`
    Nvme,
    /// `ide-hd` on an AHCI controller
    Ahci,
    /// `usb-storage` on an xHCI controller
    UsbStorage,
}

/// What holds the bytes of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// An image, opened read-only; writes go to a qcow2 overlay in the run folder. Flushes are dropped: this disk keeps all
    /// that was written whenever the machine stops.
    Overlay {
        /// The image.
        path: PathBuf,
        /// Its layout.
        format: Format,
        /// The size in bytes that the guest sees; at least the image's. First boot fills the difference with root-B and /var.
        size: Option<u64>,
    },
    /// The unix socket of a disk that somebody serves by NBD under the empty name, see [`super::disk`]. It gets the guest's flushes.
    Export(PathBuf),
}

/// Sizes of a disk's sectors: what can be addressed and what is written as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sectors {
    /// 512 bytes, both.
    #[default]
    Native512,
    /// 512e: 512 bytes on a medium of 4096.
    Emulated512,
    /// 4Kn: 4096 bytes, both. Images have partition tables in units of 512 and boot from it when they were flashed onto it; AHCI cannot
    /// have it.
    Native4096,
}

impl Sectors {
    /// Logical and physical size in bytes.
    pub fn sizes(self) -> (u32, u32) {
        match self {
            Sectors::Native512 => (512, 512),
            Sectors::Emulated512 => (512, 4096),
            Sectors::Native4096 => (4096, 4096),
        }
    }
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Where its bytes are.
    pub backing: Backing,
    /// Its controller.
    pub bus: Bus,
    /// Its sectors.
    pub sectors: Sectors,
    /// The serial number the guest sees, at most 20 bytes.
    pub serial: String,
}

impl Disk {
    /// The image at `path` under an overlay.
    pub fn overlay(path: PathBuf, format: Format, size: Option<u64>, bus: Bus, serial: &str) -> Self {
        let backing = Backing::Overlay { path, format, size };
        Disk { backing, bus, sectors: Sectors::default(), serial: serial.to_owned() }
    }

    /// The served disk at `socket`.
    pub fn export(socket: PathBuf, bus: Bus, serial: &str) -> Self {
        let backing = Backing::Export(socket);
        Disk { backing, bus, sectors: Sectors::default(), serial: serial.to_owned() }
    }
}

/// The model of a network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicModel {
    /// `virtio-net-pci`
    Virtio,
    /// `e1000e`
    E1000e,
    /// `igb`
    Igb,
}

/// What a network card is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// QEMU's own NAT (libslirp): the guest reaches what the host reaches.
    User {
        /// TCP ports on 127.0.0.1, and those of the guest that they lead to.
        forward: Vec<(u16, u16)>,
    },
    /// A unix socket that somebody listens on; each frame is preceded by its length as 32 bits big-endian.
    Stream(PathBuf),
}

/// Whether the firmware asks for something to boot by a network card, before it looks at the disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Netboot {
    /// It does not.
    Off,
    /// By all that it can: PXE first.
    Any,
    /// By UEFI HTTP Boot alone, as firmware does whose PXE is switched off.
    Http,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Its model.
    pub model: NicModel,
    /// Its hardware address, as in `52:54:00:00:00:01`.
    pub mac: String,
    /// What it is plugged into.
    pub link: Link,
    /// Whether the machine boots by it.
    pub netboot: Netboot,
}

/// What the machine starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// UEFI, then the disk's own boot loader: what hardware does.
    Firmware(Firmware),
    /// The BIOS of old PCs (SeaBIOS), which images do not boot by: for network boot.
    Bios,
    /// A kernel handed over by QEMU, for tests of parts.
    Kernel {
        /// The kernel image.
        kernel: PathBuf,
        /// The initial RAM disk.
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        cmdline: String,
    },
}

/// A whole machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineConfig {
    /// The name in messages and of the process.
    pub name: String,
    /// The architecture.
    pub arch: Arch,
    /// Memory in MiB.
    pub memory: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// How guest code is run.
    pub accel: Accel,
    /// What it starts from.
    pub boot: Boot,
    /// Its disks, the one to boot from first.
    pub disks: Vec<Disk>,
    /// Its network cards.
    pub nics: Vec<Nic>,
    /// systemd credentials, handed over in SMBIOS type 11 strings: name and bytes (systemd.system-credentials(7)).
    pub credentials: Vec<(String, Vec<u8>)>,
    /// Words that systemd-stub adds to the kernel's command line (systemd-stub(7)); ignored under Secure Boot.
    pub cmdline_extra: Option<String>,
    /// virtio-serial ports: name in the guest's /dev/virtio-ports.
    pub ports: Vec<String>,
    /// End QEMU instead of rebooting the guest.
    pub no_reboot: bool,
    /// The UUID in SMBIOS, which the image makes the machine id of; `None`: all zero, and the guest makes an id up.
    pub uuid: Option<Uuid>,
    /// The day that its clock shows whenever it is switched on, as 2027-06-30; `None`: this machine's time (UTC).
    pub clock: Option<String>,
    /// A screen, for pictures by [`super::machine::Machine::screenshot`]. Firmware and kernel write on it as well as on the serial line.
    pub screen: bool,
    /// A virtio console (/dev/hvc0), whose socket waits for somebody to attach to it.
    pub shell: bool,
    /// A TPM 2.0, whose state is in the run folder and so stays as long as the disks do.
    pub tpm: Option<Tpm>,
}

/// Where the files of a running machine are. All are made by [`super::machine`].
#[derive(Debug, Clone)]
pub struct Places {
    /// The run folder.
    pub folder: PathBuf,
    /// QEMU's own data, `ROOT/usr/share`.
    pub share: PathBuf,
}

impl Places {
    /// The control socket.
    pub fn qmp(&self) -> PathBuf {
        self.folder.join("qmp.sock")
    }
    /// The serial line's socket.
    pub fn console(&self) -> PathBuf {
        self.folder.join("console.sock")
    }
    /// The socket of a virtio-serial port.
    pub fn port(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.sock"))
    }
    /// The socket of the virtio console.
    pub fn shell(&self) -> PathBuf {
        self.folder.join("shell.sock")
    }
    /// The control socket of the TPM.
    pub fn tpm(&self) -> PathBuf {
        self.folder.join("tpm.sock")
    }
    /// What the TPM keeps while it is off; without it, it is another TPM.
    pub fn tpm_state(&self) -> PathBuf {
        self.folder.join("tpm")
    }
    /// The copy of the variable store.
    pub fn vars(&self) -> PathBuf {
        self.folder.join("vars.fd")
    }
    /// The overlay of disk `index`.
    pub fn overlay(&self, index: usize) -> PathBuf {
        self.folder.join(format!("disk{index}.qcow2"))
    }
    /// The SMBIOS string number `index`.
    pub fn smbios(&self, index: usize) -> PathBuf {
        self.folder.join(format!("smbios{index}.txt"))
    }
}

impl MachineConfig {
    /// Refuses what QEMU or the guest would refuse later and less clearly.
    ///
    /// # Errors
    /// [`Kind::Input`], naming the machine, the value and the bound.
    pub fn validate(&self) -> Result<(), Failure> {
        let refuse = |what: String| Err(Failure::new(Kind::Input, format!("machine {}: {what}", self.name)));
        if self.name.is_empty() || !self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return refuse("the name may hold letters, digits and - only".to_owned());
        }
        if self.memory < 128 {
            return refuse(format!("{} MiB of memory do not boot a node, give at least 128", self.memory));
        }
        if !(1..=255).contains(&self.cpus) {
            return refuse(format!("{} CPUs: give 1 to 255", self.cpus));
        }
        for disk in &self.disks {
            if disk.serial.is_empty() || disk.serial.len() > 20 || !disk.serial.is_ascii() {
                return refuse(format!("disk serial `{}` must have 1 to 20 ASCII characters", disk.serial));
            }
            if disk.bus == Bus::Ahci && disk.sectors == Sectors::Native4096 {
                return refuse(format!(
                    "disk `{}`: an AHCI disk cannot have logical sectors of 4096 bytes",
                    disk.serial
                ));
            }
        }
        for (index, disk) in self.disks.iter().enumerate() {
            if self.disks.iter().take(index).any(|other| other.serial == disk.serial) {
                return refuse(format!("two disks have the serial `{}`", disk.serial));
            }
        }
        for (index, nic) in self.nics.iter().enumerate() {
            let octets: Vec<_> = nic.mac.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
            if octets.len() != 6 || nic.mac.len() != 17 || octets.iter().any(Result::is_err) {
                return refuse(format!("`{}` is no hardware address, write 52:54:00:12:34:56", nic.mac));
            }
            if self.nics.iter().take(index).any(|other| other.mac == nic.mac) {
                return refuse(format!("two network cards have the address {}", nic.mac));
            }
        }
        if self.arch == Arch::Arm64 && self.tpm == Some(Tpm::Crb) {
            return refuse("ARM machines have a TPM with registers (TIS) only".to_owned());
        }
        for (name, _) in &self.credentials {
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@~".contains(&b)) {
                return refuse(format!(
                    "credential name `{name}` may hold letters, digits, `.`, `_`, `-`, `~` and `@` only"
                ));
            }
        }
        if matches!(self.boot, Boot::Kernel { .. }) {
            if self.arch == Arch::Arm64 && !self.credentials.is_empty() {
                return refuse(
                    "a kernel started directly on aarch64 sees no SMBIOS, so no credentials".to_owned(),
                );
            }
            if self.cmdline_extra.is_some() {
                return refuse(
                    "extra words reach the kernel through systemd-stub only, not a direct kernel".to_owned(),
                );
            }
        } else if self.disks.is_empty() && !self.nics.iter().any(|nic| nic.netboot != Netboot::Off) {
            return refuse("firmware needs a disk or a network to boot from".to_owned());
        } else if self.boot == Boot::Bios && self.arch != Arch::Amd64 {
            return refuse(format!("{} machines have no BIOS", self.arch));
        } else if self.boot == Boot::Bios && self.nics.iter().any(|nic| nic.netboot == Netboot::Http) {
            return refuse("a BIOS boots by PXE, not by HTTP".to_owned());
        }
        Ok(())
    }

    /// The SMBIOS type 11 strings, in order: one credential each (`io.systemd.credential.binary:NAME=BASE64`), then the
    /// extra command line.
    pub fn smbios_strings(&self) -> Vec<String> {
        let credential = |(name, bytes): &(String, Vec<u8>)| {
            format!("io.systemd.credential.binary:{name}={}", base64(bytes))
        };
        let extra = |words: String| format!("io.systemd.stub.kernel-cmdline-extra={words}");
        self.credentials.iter().map(credential).chain(self.extra_words().map(extra)).collect()
    }

    /// Words beyond the image's own command line, for a PC that is translated on a busy host (both are in the kernel's
    /// kernel-parameters.txt):
    ///
    /// * `no_timer_check`: its timer's interrupts come so late that Linux takes them for broken and panics ("IO-APIC + timer
    ///   doesn't work!"). Under KVM Linux gives itself this word.
    /// * `tsc=reliable`: Linux compares the TSC with ticks that came late, takes the TSC for the one that is wrong, and reads
    ///   the time from the ACPI timer instead: each time by an exit to QEMU, and Go programs read it all the time. QEMU's TSC
    ///   follows the host's clock, whatever the guest missed.
    fn extra_words(&self) -> Option<String> {
        let trust =
            (self.accel == Accel::Tcg && self.arch == Arch::Amd64).then_some("no_timer_check tsc=reliable");
        let words: Vec<&str> = self.cmdline_extra.as_deref().into_iter().chain(trust).collect();
        (!words.is_empty()).then(|| words.join(" "))
    }

    /// QEMU's arguments.
    pub fn to_args(&self, places: &Places) -> Vec<String> {
        let mut args = Args::default();
        // `-S`: the guest starts on kiln's word, when kiln listens, so that the first line of firmware is not lost.
        args.flag("-no-user-config").flag("-nodefaults").flag("-S");
        args.pair("-name", format!("{},process=kiln-{}", self.name, self.name));
        // Firmware tables, option ROMs and key maps come from the same tree as QEMU itself.
        for data in ["qemu", "seabios"] {
            args.pair("-L", text(&places.share.join(data)));
        }
        let machine = match self.arch {
            Arch::Amd64 => "q35,vmport=off,hpet=off",
            Arch::Arm64 => "virt,gic-version=3",
        };
        args.pair("-machine", machine);
        args.pair("-accel", self.accel.argument()).pair("-cpu", self.accel.cpu(self.arch));
        args.pair("-smp", self.cpus.to_string()).pair("-m", format!("{}M", self.memory));
        args.pair("-display", "none").pair("-rtc", self.rtc());
        if self.no_reboot {
            args.flag("-no-reboot");
        }
        if let Some(uuid) = self.uuid {
            args.pair("-uuid", uuid.to_string());
        }
        self.boot_args(&mut args, places);
        args.device(&json!({"driver": "virtio-rng-pci", "id": "rng0"}));
        args.pair("-chardev", format!("socket,id=qmp,path={},server=on,wait=off", comma(&places.qmp())));
        args.pair("-mon", "chardev=qmp,mode=control");
        args.pair(
            "-chardev",
            format!("socket,id=console,path={},server=on,wait=off", comma(&places.console())),
        );
        args.pair("-serial", "chardev:console");
        if self.shell || !self.ports.is_empty() {
            args.device(&json!({"driver": "virtio-serial-pci", "id": "serial0"}));
        }
        for (index, port) in self.ports.iter().enumerate() {
            let path = comma(&places.port(port));
            args.pair("-chardev", format!("socket,id=port{index},path={path},server=on,wait=off"));
            args.device(&json!({"driver": "virtserialport", "bus": "serial0.0", "chardev": format!("port{index}"), "name": port}));
        }
        if self.shell {
            let path = comma(&places.shell());
            args.pair("-chardev", format!("socket,id=shell,path={path},server=on,wait=off"));
            args.device(&json!({"driver": "virtconsole", "bus": "serial0.0", "chardev": "shell"}));
        }
        let cards = self.nics.iter().filter(|nic| nic.netboot != Netboot::Off).count();
        for (index, disk) in self.disks.iter().enumerate() {
            disk_args(&mut args, index, disk, &places.overlay(index), cards);
        }
        for (index, nic) in self.nics.iter().enumerate() {
            nic_args(&mut args, index, nic);
        }
        if let Some(tpm) = self.tpm {
            tpm_args(&mut args, self.arch, tpm, &places.tpm());
        }
        if self.screen {
            args.device(&screen(self.arch));
        }
        for index in 0..self.smbios_strings().len() {
            args.pair("-smbios", format!("type=11,path={}", comma(&places.smbios(index))));
        }
        args.0
    }

    fn rtc(&self) -> String {
        match &self.clock {
            Some(day) => format!("base={day}T00:00:00,clock=host"),
            None => "base=utc,clock=host".to_owned(),
        }
    }

    fn boot_args(&self, args: &mut Args, places: &Places) {
        match &self.boot {
            Boot::Firmware(firmware) => {
                args.blockdev(&json!({"driver": "file", "node-name": "code", "filename": text(&firmware.code), "read-only": true}));
                args.blockdev(
                    &json!({"driver": "file", "node-name": "vars", "filename": text(&places.vars())}),
                );
                args.pair("-machine", "pflash0=code,pflash1=vars");
                if self.nics.iter().any(|nic| nic.netboot == Netboot::Http) {
                    // What the firmware offers for each card (edk2, OvmfPkg/README).
                    for version in ["IPv4", "IPv6"] {
                        args.pair("-fw_cfg", format!("name=opt/org.tianocore/{version}PXESupport,string=no"));
                    }
                }
            }
            // QEMU's own choice for a PC.
            Boot::Bios => {}
            Boot::Kernel { kernel, initrd, cmdline } => {
                args.pair("-kernel", text(kernel)).pair("-append", cmdline.as_str());
                if let Some(initrd) = initrd {
                    args.pair("-initrd", text(initrd));
                }
            }
        }
    }
}

/// `cards` network cards come before the disks in the order of what is booted.
fn disk_args(args: &mut Args, index: usize, disk: &Disk, overlay: &Path, cards: usize) {
    let node = format!("disk{index}");
    args.blockdev(&match &disk.backing {
        // The overlay lives as long as the run: a flush to the host's disk would cost time and prove nothing. A power cut of
        // the guest is not one of the host.
        Backing::Overlay { .. } => json!({
            "driver": "qcow2", "node-name": node, "discard": "unmap", "cache": {"no-flush": true},
            "file": {"driver": "file", "filename": text(overlay), "discard": "unmap", "cache": {"no-flush": true}},
        }),
        Backing::Export(socket) => json!({
            "driver": "nbd", "node-name": node, "discard": "unmap",
            "server": {"type": "unix", "path": text(socket)},
        }),
    });
    let mut device = json!({"drive": node, "id": format!("dev-{node}"), "serial": disk.serial, "bootindex": cards + index});
    // QEMU's own choice would stop the machine when the disk says that it is full. `nvme` always reports.
    if matches!(disk.backing, Backing::Export(_)) && disk.bus != Bus::Nvme {
        device["rerror"] = json!("report");
        device["werror"] = json!("report");
    }
    if disk.sectors != Sectors::default() {
        let (logical, physical) = disk.sectors.sizes();
        device["logical_block_size"] = json!(logical);
        device["physical_block_size"] = json!(physical);
    }
    let driver = match disk.bus {
        Bus::VirtioBlk => "virtio-blk-pci",
        Bus::Nvme => "nvme",
        Bus::Ahci => {
            args.device(&json!({"driver": "ich9-ahci", "id": format!("ahci{index}")}));
            device["bus"] = json!(format!("ahci{index}.0"));
            "ide-hd"
        }
        Bus::UsbStorage => {
            args.device(&json!({"driver": "qemu-xhci", "id": format!("usb{index}")}));
            device["bus"] = json!(format!("usb{index}.0"));
            "usb-storage"
        }
    };
    device["driver"] = json!(driver);
    args.device(&device);
}

fn tpm_args(args: &mut Args, arch: Arch, tpm: Tpm, socket: &Path) {
    args.pair("-chardev", format!("socket,id=tpm-control,path={}", comma(socket)));
    args.pair("-tpmdev", "emulator,id=tpm0,chardev=tpm-control");
    let driver = match (tpm, arch) {
        (Tpm::Crb, _) => "tpm-crb",
        (Tpm::Tis, Arch::Amd64) => "tpm-tis",
        (Tpm::Tis, Arch::Arm64) => "tpm-tis-device",
    };
    args.device(&json!({"driver": driver, "tpmdev": "tpm0"}));
}

/// A device that firmware has a driver for and that a kernel can go on drawing on without one of its own.
fn screen(arch: Arch) -> Value {
    match arch {
        // OVMF draws without the VGA BIOS in the option ROM.
        Arch::Amd64 => json!({"driver": "VGA", "id": "screen", "romfile": ""}),
        Arch::Arm64 => json!({"driver": "ramfb", "id": "screen"}),
    }
}

fn nic_args(args: &mut Args, index: usize, nic: &Nic) {
    let id = format!("net{index}");
    let netdev = match &nic.link {
        Link::User { forward } => {
            let forward =
                forward.iter().map(|(here, there)| format!(",hostfwd=tcp:127.0.0.1:{here}-:{there}"));
            format!("user,id={id}{}", forward.collect::<String>())
        }
        Link::Stream(path) => {
            format!("stream,id={id},server=off,addr.type=unix,addr.path={}", comma(path))
        }
    };
    args.pair("-netdev", netdev);
    let driver = match nic.model {
        NicModel::Virtio => "virtio-net-pci",
        NicModel::E1000e => "e1000e",
        NicModel::Igb => "igb",
    };
    let mut device = json!({"driver": driver, "netdev": id, "mac": nic.mac});
    if nic.netboot != Netboot::Off {
        device["bootindex"] = json!(index);
    } else {
        // No option ROM: the machine boots from disk, and network boot would cost each start some seconds.
        device["romfile"] = json!("");
    }
    args.device(&device);
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.to_owned());
        self
    }
    fn pair(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.0.extend([name.to_owned(), value.into()]);
        self
    }
    fn device(&mut self, device: &Value) {
        self.pair("-device", device.to_string());
    }
    fn blockdev(&mut self, node: &Value) {
        self.pair("-blockdev", node.to_string());
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A path inside a comma-separated option: a comma is written twice.
fn comma(path: &Path) -> String {
    text(path).replace(',', ",,")
}

/// Base64 of RFC 4648 section 4, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |acc, &b| acc << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            if place <= chunk.len() {
                out.push(char::from(ALPHABET[(group >> (18 - 6 * place) & 63) as usize]));
            } else {
                out.push('=');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
