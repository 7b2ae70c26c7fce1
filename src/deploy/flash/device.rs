//! The disks of a machine, from sysfs and proc alone: no udev and no program is needed.
//!
//! ```text
//! /sys/block/NAME            size, removable, ro, queue/*, device/*, wwid, serial, holders, slaves   sysfs-block(5), ABI/stable/sysfs-block
//!            NAME/PART       partition, start, size, holders
//! /run/udev/data/bMAJ:MIN    serial numbers as udev knows them, if it runs
//! /proc/self/mountinfo       proc_pid_mountinfo(5)
//! /proc/swaps                proc_swaps(5)
//! /proc/PID/fd, fdinfo       proc_pid_fd(5), proc_pid_fdinfo(5)
//! /dev/disk/by-id            names that stay
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use fs_err as fs;
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};
use serde::Serialize;

use crate::spec::cluster::{DiskBus, DiskContract};

/// Where this machine, or a made-up one, is described.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
    /// As [`block_device`].
    opened: fn(&Path) -> Option<String>,
}

/// What a disk hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// One that a contract can name.
    Known(DiskBus),
    /// An SD card or soldered flash memory.
    Mmc,
    /// A file that is used as a disk.
    Loop,
    /// Anything else, such as what device-mapper makes.
    Other,
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bus::Known(bus) => bus.fmt(f),
            Bus::Mmc => f.pad("mmc"),
            Bus::Loop => f.pad("loop"),
            Bus::Other => f.pad("other"),
        }
    }
}

impl Serialize for Bus {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A partition that the kernel knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// As in `sda1`.
    pub name: String,
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    #[serde(skip)]
    number: String,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// As in `sda`.
    pub name: String,
    /// As in `/dev/sda`.
    pub path: PathBuf,
    /// Names in /dev/disk/by-id.
    pub stable: Vec<String>,
    /// What the maker calls it.
    pub model: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Other spellings of the serial number, by other ways to ask for it.
    #[serde(skip)]
    pub serials: Vec<String>,
    /// World Wide Name, as `lsblk -o WWN` shows it.
    pub wwn: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical sector.
    pub sector: u32,
    /// Bytes of a physical sector.
    pub physical_sector: u32,
    /// What it hangs on.
    pub bus: Bus,
    /// Whether the kernel says that its medium can be taken out.
    pub removable: bool,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Whether it has heads that move.
    pub rotational: bool,
    /// Major and minor number, `8:0`.
    pub number: String,
    /// A number that the kernel gives to no other disk until the next boot (Linux 5.15).
    pub sequence: Option<u64>,
    /// Its partitions.
    pub partitions: Vec<Part>,
    /// Where it or a part of it is mounted.
    pub mounts: Vec<String>,
    /// Parts of it that are swap space in use.
    pub swaps: Vec<String>,
    /// Devices that lie on it: device-mapper (LVM, LUKS, verity), md, bcache, loop devices.
    pub holders: Vec<String>,
    /// Whether this machine runs from it.
    pub system: bool,
}

impl Disk {
    /// What a person types to say that this disk is meant: its serial number, or its name if it has none.
    pub fn word(&self) -> &str {
        self.serial.as_deref().unwrap_or(&self.name)
    }

    /// Whether `text` is the serial number, in any of its spellings, or for a disk without one its name or path.
    pub fn is(&self, text: &str) -> bool {
        let text = text.trim();
        let named = self.serial.is_none() && (text == self.name || Path::new(text) == self.path);
        named || self.serials.iter().any(|serial| serial == text)
    }

    /// Why a contract does not fit; `None` if all that it says does.
    pub fn misfit(&self, contract: &DiskContract) -> Option<String> {
        let found =
            |what: &str, found: Option<&str>| format!("its {what} is {}", found.unwrap_or("not known"));
        if contract.serial.as_ref().is_some_and(|serial| !self.serials.contains(&serial.trim().to_owned())) {
            return Some(found("serial", self.serial.as_deref()));
        }
        let same = |a: &str, b: &str| wwn(a).eq_ignore_ascii_case(&wwn(b));
        if contract.wwn.as_ref().is_some_and(|wanted| !self.wwn.as_ref().is_some_and(|own| same(own, wanted)))
        {
            return Some(found("WWN", self.wwn.as_deref()));
        }
        if contract
            .model
            .as_ref()
            .is_some_and(|model| !self.model.as_ref().is_some_and(|own| model.matches(own)))
        {
            return Some(found("model", self.model.as_deref()));
        }
        if contract.bus.is_some_and(|bus| self.bus != Bus::Known(bus)) {
            return Some(format!("its bus is {}", self.bus));
        }
        (!contract.fits_size(self.size)).then(|| format!("its size is {} bytes", self.size))
    }
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        Machine::at("/")
    }

    /// One whose `sys`, `proc`, `run` and `dev` are below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Machine { root: root.into(), opened: block_device }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let bytes = fs::read(self.root.join(path)).ok()?;
        let text: String =
            String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control() || *c == '\n').collect();
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.root.join(path)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// All disks that may be meant without being named: no loop devices, no RAM, nothing that lies on other disks, nothing of no size.
    pub fn disks(&self) -> Vec<Disk> {
        self.names("sys/block")
            .iter()
            .filter(|name| !is_virtual(name))
            .filter_map(|name| self.disk(name))
            .filter(|disk| disk.size > 0)
            .collect()
    }

    /// The disk `name`, as in `sda`; `None` if there is none, or if it is a partition.
    pub fn disk(&self, name: &str) -> Option<Disk> {
        let sys = PathBuf::from("sys/block").join(name);
        let number = self.text(sys.join("dev"))?;
        let partitions = self.partitions(&sys, name);
        let devices: BTreeSet<&str> =
            [name].into_iter().chain(partitions.iter().map(|p| p.name.as_str())).collect();
        let numbers: BTreeSet<&str> =
            [number.as_str()].into_iter().chain(partitions.iter().map(|p| p.number.as_str())).collect();
        let serials = self.serials(&sys, &number);
        Some(Disk {
            path: Path::new("/dev").join(name.replace('!', "/")),
            stable: self.stable(name),
            model: self.model(&sys),
            serial: serials.first().cloned(),
            wwn: self.wwn(&sys),
            size: self.number(sys.join("size")).unwrap_or(0).saturating_mul(512),
            sector: self.small(&sys, "queue/logical_block_size"),
            physical_sector: self.small(&sys, "queue/physical_block_size"),
            bus: self.bus(&sys, name),
            removable: self.number(sys.join("removable")) == Some(1),
            read_only: self.number(sys.join("ro")) == Some(1),
            rotational: self.number(sys.join("queue/rotational")) == Some(1),
            sequence: self.number(sys.join("diskseq")),
            mounts: self.mounts(&devices, &numbers),
            swaps: self.swaps(&devices),
            holders: self.holders(&sys, &partitions, &devices, &numbers),
            system: self.system_disks().contains(name),
            name: name.to_owned(),
            serials,
            number,
            partitions,
        })
    }

    /// Where `path` of the machine is; what is relative is so to the folder of this process.
    fn below(&self, path: &Path) -> Option<PathBuf> {
        let path = std::path::absolute(path).ok()?;
        fs::canonicalize(self.root.join(path.strip_prefix("/").unwrap_or(&path))).ok()
    }

    /// What is at `path`, if there is anything.
    pub fn kind(&self, path: &Path) -> Option<std::fs::FileType> {
        Some(fs::metadata(self.below(path)?).ok()?.file_type())
    }

    /// The name in sysfs of the device at `path`, whatever link that is.
    pub fn resolve(&self, path: &Path) -> Option<String> {
        let real = self.below(path)?;
        let root = fs::canonicalize(self.path("")).ok()?;
        let name = real.strip_prefix(root.join("dev")).ok()?.to_str()?.replace('/', "!");
        (!name.is_empty() && self.path("sys/class/block").join(&name).exists()).then_some(name)
    }

    /// Other processes that have `disk` or a part of it open for writing, by whatever name, as far as this person may know.
    pub fn writers(&self, disk: &Disk) -> Vec<String> {
        let parts = disk.partitions.iter().map(|part| &part.number);
        let numbers: BTreeSet<&String> = parts.chain([&disk.number]).collect();
        let own = std::process::id().to_string();
        let processes =
            self.names("proc").into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
        let mut found = Vec::new();
        for process in processes.filter(|process| *process != own) {
            let at = Path::new("proc").join(&process);
            let writes = self.names(at.join("fd")).iter().any(|file| {
                let open = (self.opened)(&self.root.join(&at).join("fd").join(file));
                // proc_pid_fdinfo(5): flags in octal, the lowest two of which are the access mode.
                let writes = || {
                    let info = self.text(at.join("fdinfo").join(file)).unwrap_or_default();
                    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or_default();
                    matches!(flags.trim().bytes().last(), Some(b'1' | b'2' | b'5' | b'6'))
                };
                open.is_some_and(|number| numbers.contains(&number)) && writes()
            });
            // What this process starts has all that is open here until it has become another program.
            let status = || self.text(at.join("status")).unwrap_or_default();
            let ours =
                || status().lines().any(|line| line.strip_prefix("PPid:").map(str::trim) == Some(&own));
            if writes && !ours() {
                let name = self.text(at.join("comm")).unwrap_or_else(|| "a process".to_owned());
                found.push(format!("{} ({process})", crate::ui::plain(&name)));
            }
        }
        found
    }

    /// Lets the kernel give a SCSI disk up, which a stick is: its cache is flushed, and it is gone until it is plugged in anew
    /// (`delete` of sysfs, Documentation/scsi/scsi_mid_low_api.rst). Says whether that was done.
    pub fn give_up(&self, disk: &Disk) -> bool {
        let delete = self.path("sys/block").join(&disk.name).join("device/delete");
        // A file that is not there is not made: nothing would come of it.
        let written =
            fs::OpenOptions::new().write(true).open(delete).and_then(|mut file| file.write_all(b"1"));
        if let Err(error) = &written {
            tracing::debug!(%error, "eject");
        }
        written.is_ok()
    }

    /// The disk on which the partition `name` lies, if it is one.
    pub fn disk_of_partition(&self, name: &str) -> Option<String> {
        let link = fs::canonicalize(self.path("sys/class/block").join(name)).ok()?;
        link.join("partition").exists().then(|| link.parent()?.file_name()?.to_str().map(str::to_owned))?
    }

    fn small(&self, sys: &Path, name: &str) -> u32 {
        self.number(sys.join(name)).and_then(|n| u32::try_from(n).ok()).unwrap_or(512)
    }

    fn partitions(&self, sys: &Path, disk: &str) -> Vec<Part> {
        let mut parts: Vec<Part> = self
            .names(sys)
            .into_iter()
            .filter(|name| {
                name.starts_with(disk) && self.path("").join(sys).join(name).join("partition").exists()
            })
            .filter_map(|name| {
                let at = sys.join(&name);
                let bytes = |what: &str| self.number(at.join(what)).unwrap_or(0).saturating_mul(512);
                Some(Part {
                    offset: bytes("start"),
                    size: bytes("size"),
                    number: self.text(at.join("dev"))?,
                    name,
                })
            })
            .collect();
        parts.sort_by_key(|part| part.offset);
        parts
    }

    fn stable(&self, name: &str) -> Vec<String> {
        let folder = self.path("dev/disk/by-id");
        let points_here = |link: &String| {
            fs::read_link(folder.join(link)).is_ok_and(|to| to.file_name().is_some_and(|file| file == name))
        };
        self.names("dev/disk/by-id").into_iter().filter(points_here).collect()
    }

    fn model(&self, sys: &Path) -> Option<String> {
        // SCSI and NVMe; an SD card has a name.
        self.text(sys.join("device/model")).or_else(|| self.text(sys.join("device/name")))
    }

    /// The serial number in all its spellings, the one that `lsblk -o SERIAL` shows first.
    fn serials(&self, sys: &Path, number: &str) -> Vec<String> {
        let udev = self.text(format!("run/udev/data/b{number}")).unwrap_or_default();
        let known = |key: &str| {
            let line = udev
                .lines()
                .find_map(|line| line.strip_prefix("E:")?.strip_prefix(key)?.strip_prefix('='))?;
            Some(line.to_owned())
        };
        let mut serials: Vec<String> = [
            known("ID_SCSI_SERIAL"),
            known("ID_SERIAL_SHORT"),
            self.text(sys.join("serial")),
            self.text(sys.join("device/serial")),
            self.vital(sys, "device/vpd_pg80").map(|page| String::from_utf8_lossy(&page).into_owned()),
        ]
        .into_iter()
        .flatten()
        .chain(self.designators(sys))
        .chain(self.usb_serial(sys))
        .map(|serial| serial.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned())
        .filter(|serial| !serial.is_empty())
        .collect();
        let mut seen = BTreeSet::new();
        serials.retain(|serial| seen.insert(serial.clone()));
        serials
    }

    /// A page of vital product data without its header of four bytes (SPC-4, 7.8).
    fn vital(&self, sys: &Path, page: &str) -> Option<Vec<u8>> {
        let bytes = fs::read(self.root.join(sys).join(page)).ok()?;
        let length = usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]));
        bytes.get(4..4 + length).map(<[u8]>::to_vec)
    }

    /// Names in ASCII that a SCSI disk gives itself in page 0x83 (SPC-4, 7.8.6): QEMU puts its `drive-scsi0` there.
    fn designators(&self, sys: &Path) -> Vec<String> {
        let page = self.vital(sys, "device/vpd_pg83").unwrap_or_default();
        let (mut found, mut rest) = (Vec::new(), page.as_slice());
        while let [set, kind, _, length, more @ ..] = rest {
            let Some(bytes) = more.get(..usize::from(*length)) else { break };
            // Code set 2 is ASCII; type 0 is the vendor's own, about the unit itself (association 0).
            if set & 0x0F == 2 && kind & 0x3F == 0 {
                found.push(String::from_utf8_lossy(bytes).into_owned());
            }
            rest = &more[usize::from(*length)..];
        }
        found
    }

    /// The serial number of the USB device above the disk.
    fn usb_serial(&self, sys: &Path) -> Option<String> {
        let device = fs::canonicalize(self.root.join(sys)).ok()?;
        let usb = device.ancestors().find(|folder| folder.join("idVendor").exists())?;
        fs::read_to_string(usb.join("serial")).ok()
    }

    fn wwn(&self, sys: &Path) -> Option<String> {
        let text = self.text(sys.join("wwid")).or_else(|| self.text(sys.join("device/wwid")))?;
        // SCSI says `t10.` and a text where a disk has no number of its own.
        let number = ["naa.", "eui.", "nvme.", "uuid."].iter().any(|kind| text.starts_with(kind));
        number.then(|| text.strip_prefix("naa.").map_or(text.clone(), |digits| format!("0x{digits}")))
    }

    fn bus(&self, sys: &Path, name: &str) -> Bus {
        let link = fs::read_link(self.root.join(sys)).or_else(|_| fs::canonicalize(self.root.join(sys)));
        let link = link.unwrap_or_default();
        let part = |begin: &str| {
            link.iter().filter_map(|part| part.to_str()).any(|part| {
                part.strip_prefix(begin)
                    .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
            })
        };
        let named = |begin: &str| name.starts_with(begin);
        match () {
            () if part("usb") => Bus::Known(DiskBus::Usb),
            () if named("nvme") => Bus::Known(DiskBus::Nvme),
            () if named("vd") => Bus::Known(DiskBus::Virtio),
            () if named("sd") && part("ata") => Bus::Known(DiskBus::Sata),
            () if named("sd") => Bus::Known(DiskBus::Scsi),
            () if named("mmcblk") => Bus::Mmc,
            () if named("loop") => Bus::Loop,
            () => Bus::Other,
        }
    }

    /// Mount points of devices with these names or numbers.
    fn mounts(&self, devices: &BTreeSet<&str>, numbers: &BTreeSet<&str>) -> Vec<String> {
        let text = self.text("proc/self/mountinfo").unwrap_or_default();
        let mut found: Vec<String> = text
            .lines()
            .filter_map(|line| {
                let (first, second) = line.split_once(" - ")?;
                let fields: Vec<&str> = first.split(' ').collect();
                let source = second.split(' ').nth(1)?;
                // Btrfs has a number of its own for each mount; its source is what it was mounted from.
                let device = unescape(source);
                let name = device.strip_prefix("/dev/").map(|name| name.replace('/', "!"));
                let here = numbers.contains(*fields.get(2)?)
                    || name.is_some_and(|name| devices.contains(name.as_str()));
                here.then(|| Some(unescape(fields.get(4)?)))?
            })
            .collect();
        found.sort();
        found.dedup();
        found
    }

    fn swaps(&self, devices: &BTreeSet<&str>) -> Vec<String> {
        let text = self.text("proc/swaps").unwrap_or_default();
        text.lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next()?.strip_prefix("/dev/"))
            .filter(|name| devices.contains(name))
            .map(str::to_owned)
            .collect()
    }

    fn holders(
        &self,
        sys: &Path,
        parts: &[Part],
        devices: &BTreeSet<&str>,
        numbers: &BTreeSet<&str>,
    ) -> Vec<String> {
        let mut found: Vec<String> = self.names(sys.join("holders"));
        for part in parts {
            found.extend(self.names(sys.join(&part.name).join("holders")));
        }
        // Loop devices are in no list of holders.
        for name in self.names("sys/block").into_iter().filter(|name| name.starts_with("loop")) {
            let file = self.text(format!("sys/block/{name}/loop/backing_file")).unwrap_or_default();
            // The name by which it was opened, of which a device may have many. A file elsewhere may lie on a server that does not answer.
            let is_ours = |name: &str| {
                let number = || (self.opened)(&self.path("dev").join(name));
                devices.contains(name) || number().is_some_and(|number| numbers.contains(number.as_str()))
            };
            if file.strip_prefix("/dev/").is_some_and(is_ours) {
                found.push(name);
            }
        }
        let mut found: Vec<String> = found
            .into_iter()
            .map(|name| match self.text(format!("sys/block/{name}/dm/name")) {
                Some(mapped) => format!("{name} ({mapped})"),
                None => name,
            })
            .collect();
        found.sort();
        found.dedup();
        found
    }

    /// The disks that this machine runs from: what is below `/`, `/usr`, `/boot`, the ESP and `/var`.
    fn system_disks(&self) -> BTreeSet<String> {
        const SYSTEM: [&str; 7] = ["/", "/usr", "/boot", "/boot/efi", "/efi", "/var", "/sysroot"];
        let mut todo: Vec<String> = Vec::new();
        let text = self.text("proc/self/mountinfo").unwrap_or_default();
        for line in text.lines() {
            let Some((first, second)) = line.split_once(" - ") else { continue };
            let fields: Vec<&str> = first.split(' ').collect();
            if fields.get(4).is_some_and(|point| SYSTEM.contains(point)) {
                let number = fields.get(2).copied().unwrap_or_default();
                let link = fs::read_link(self.path(&format!("sys/dev/block/{number}")));
                let link = link.ok().and_then(|link| Some(link.file_name()?.to_str()?.to_owned()));
                let source = second.split(' ').nth(1).and_then(|source| source.strip_prefix("/dev/"));
                todo.extend(link);
                todo.extend(source.map(|name| name.replace('/', "!")));
            }
        }
        let (mut disks, mut seen) = (BTreeSet::new(), BTreeSet::new());
        while let Some(name) = todo.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            let whole = self.disk_of_partition(&name).unwrap_or(name);
            let below = self.names(format!("sys/block/{whole}/slaves"));
            todo.extend(below);
            disks.insert(whole);
        }
        disks
    }
}

/// A World Wide Name without what says its kind.
fn wwn(text: &str) -> String {
    let text = text.trim();
    ["0x", "naa.", "wwn-0x"].iter().find_map(|kind| text.strip_prefix(kind)).unwrap_or(text).to_owned()
}

/// The number, `8:0`, of the block device that a path leads to. What a link in /proc/PID/fd says is the name that the process used, in a
/// container often one of its own; where it leads is the device itself.
fn block_device(link: &Path) -> Option<String> {
    // Nobody is asked for news of a file: a file server that is gone would not answer.
    let about = rustix::fs::statx(CWD, link, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE).ok()?;
    let block = FileType::from_raw_mode(about.stx_mode.into()).is_block_device();
    block.then(|| format!("{}:{}", about.stx_rdev_major, about.stx_rdev_minor))
}

/// Devices that are no disks of the machine.
fn is_virtual(name: &str) -> bool {
    let begins = [
        "loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd", "drbd", "rbd", "zd", "bcache", "mtdblock",
        "pmem",
    ];
    let boot = name.starts_with("mmcblk") && (name.contains("boot") || name.contains("rpmb"));
    boot || begins.iter().any(|begin| name.starts_with(begin))
}

/// Mount points have blanks and backslashes in octal (proc_pid_mountinfo(5)).
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
