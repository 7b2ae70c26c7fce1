//! Which disk is meant, and whether it may be written.
//!
//! A disk is meant if it is the only one that fits a contract, or if it was named. Then everything that speaks against it is told at once.
//! What it holds can be overwritten if it is named by its word; that it is in use, or the system's own disk, nothing overrides.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::OFlags;
use serde::Serialize;

use super::device::{Bus, Disk, Machine};
use super::layout::{SMALL, too_small};
use super::medium::BlockDevice;
use super::signature::{self, Class, Signature};
use crate::error::{Failure, Kind};
use crate::spec::cluster::DiskContract;
use crate::spec::nearest;
use crate::ui::{human_bytes, plain};

/// Words that `--overwrite` takes.
pub const MEMBERS: [&str; 9] =
    ["bcache", "bitlocker", "ceph", "hibernation", "luks", "lvm", "raid", "vmfs", "zfs"];

/// What a disk or somebody else calls itself, in one line.
fn line(text: &str) -> String {
    plain(text).replace('\n', " ")
}

/// A disk and what is on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// The disk.
    #[serde(flatten)]
    pub disk: Disk,
    /// What was found on it; empty if it could not be read.
    pub holds: Vec<Signature>,
    /// Why it could not be read.
    pub unread: Option<String>,
}

/// How a disk is asked for.
#[derive(Debug, Clone, Default)]
pub struct Wish<'a> {
    /// What it must be; nothing is picked by a contract that says nothing.
    pub contract: DiskContract,
    /// Its name, such as `/dev/sda` or one below `/dev/disk/by-id`.
    pub device: Option<&'a Path>,
    /// Words of [`MEMBERS`] whose loss is accepted.
    pub overwrite: &'a [String],
    /// What is to be kept is never overwritten, whatever words there are: a person empties the disk.
    pub only_blank: bool,
    /// Bytes that it must have.
    pub least: u64,
}

impl Candidate {
    /// Looks at a disk.
    pub fn look(disk: Disk) -> Self {
        let (holds, unread) = match signature::read(&disk) {
            Ok(holds) => (holds, None),
            // Without the path, which stands beside it.
            Err(error) => (Vec::new(), Some(error.kind().to_string())),
        };
        Candidate { disk, holds, unread }
    }

    /// All disks of the machine that may be meant without being named.
    pub fn all(machine: &Machine) -> Vec<Self> {
        machine.disks().into_iter().map(Candidate::look).collect()
    }

    /// What is on it, in a few words.
    pub fn summary(&self) -> String {
        if let Some(why) = &self.unread {
            return format!("not known: {}", line(why));
        }
        let mut parts: Vec<String> = Vec::new();
        for found in &self.holds {
            let place = found.part.as_ref().map_or(String::new(), |part| format!(" on {part}"));
            parts.push(format!("{}{place}", line(&found.text)));
        }
        if parts.is_empty() { "nothing known".to_owned() } else { parts.join("; ") }
    }

    /// Why it may not be written, each reason in half a sentence; with what overrides it, if anything does.
    pub fn objections(&self, wish: &Wish<'_>) -> Vec<(String, Option<String>)> {
        let disk = &self.disk;
        let mut found: Vec<(String, Option<String>)> = Vec::new();
        let mut say = |why: String| found.push((why, None));
        if disk.system {
            say("this machine runs from it".to_owned());
        }
        let list = |names: &[String]| names.iter().map(|name| line(name)).collect::<Vec<_>>().join(", ");
        if !disk.mounts.is_empty() {
            say(format!("it is mounted on {}", list(&disk.mounts)));
        }
        if !disk.swaps.is_empty() {
            say(format!("it is swap space in use ({})", list(&disk.swaps)));
        }
        if !disk.holders.is_empty() {
            say(format!("it is used by {}", list(&disk.holders)));
        }
        if disk.read_only {
            say("it is read-only".to_owned());
        }
        if disk.size < wish.least {
            say(too_small("it", disk.size, wish.least, "the image").to_string());
        }
        if let Some(why) = &self.unread {
            say(format!("it cannot be read: {}", line(why)));
        }
        for member in self.holds.iter().filter(|found| found.class == Class::Member) {
            if !wish.overwrite.iter().any(|word| word == member.kind) {
                let place = member.part.as_deref().unwrap_or(&disk.name);
                let why = format!("{place} is {}", article(&member.text));
                let way = if wish.only_blank {
                    emptied(&disk.path)
                } else {
                    format!("--overwrite {}", member.kind)
                };
                found.push((why, Some(way)));
            }
        }
        found
    }

    fn refuse(&self, wish: &Wish<'_>) -> Result<(), Failure> {
        let objections = self.objections(wish);
        if objections.is_empty() {
            return Ok(());
        }
        let why: Vec<&str> = objections.iter().map(|(why, _)| why.as_str()).collect();
        let name = self.disk.path.display();
        let mut failure = Failure::new(Kind::Store, format!("{name} is not written: {}", why.join("; ")));
        let mut overrides: Vec<&str> = objections.iter().filter_map(|(_, way)| way.as_deref()).collect();
        let all = overrides.len() == objections.len();
        overrides.dedup();
        if !all {
            let disk = &self.disk;
            let busy = !(disk.mounts.is_empty() && disk.swaps.is_empty() && disk.holders.is_empty());
            // Nothing helps with a disk that this machine runs from.
            let remedies = [
                (disk.system, "take another disk; nothing overrides this"),
                (!disk.system && disk.size < wish.least, SMALL),
                (!disk.system && self.unread.is_some(), "run as root: `sudo kiln flash …`"),
                (
                    !disk.system && disk.read_only,
                    "switch its write protection off: the lock of a card, `blockdev --setrw`; or take another disk",
                ),
                (
                    !disk.system && busy,
                    "unmount it, switch it off (swapoff, vgchange -an, mdadm --stop, cryptsetup close), or take another disk",
                ),
            ];
            for (_, remedy) in remedies.into_iter().filter(|(applies, _)| *applies) {
                failure = failure.hint(remedy);
            }
        }
        if !overrides.is_empty() {
            failure = failure.hint(format!("if what is on it can be lost: {}", overrides.join(" ")));
        }
        Err(failure)
    }
}

/// The commands that make the disk at `path` blank. The first takes away what the second would ask about; the second also works on disks
/// that cannot discard, and leaves no boot code and no entries of a table.
pub(super) fn emptied(path: &Path) -> String {
    let path = path.display();
    format!("`wipefs -a {path} && blkdiscard -z {path}`")
}

fn article(text: &str) -> String {
    match text {
        _ if text.starts_with("a ") || text.starts_with("locked") || text.starts_with("Ceph") => {
            text.to_owned()
        }
        _ => format!("a {text}"),
    }
}

/// Checks words of `--overwrite`.
///
/// # Errors
/// [`Kind::Input`] with the near word.
pub fn check_words(overwrite: &[String]) -> Result<(), Failure> {
    for word in overwrite {
        if !MEMBERS.contains(&word.as_str()) {
            let mut failure = Failure::new(Kind::Input, format!("--overwrite knows no `{}`", line(word)));
            if let Some(near) = nearest(word, MEMBERS) {
                failure = failure.hint(format!("did you mean `{near}`?"));
            }
            return Err(failure.hint(format!("known are {}", MEMBERS.join(", "))));
        }
    }
    Ok(())
}

/// The disk that is meant, if it may be written.
///
/// # Errors
/// [`Kind::Input`]: no disk or several fit the contract, with a table of all and why each does not; what was named is no disk, or does
/// not fit. [`Kind::Store`]: what speaks against it.
pub fn choose(machine: &Machine, wish: &Wish<'_>) -> Result<Candidate, Failure> {
    check_words(wish.overwrite)?;
    let chosen = match wish.device {
        Some(device) => named(machine, device)?,
        None => by_contract(machine, &wish.contract)?,
    };
    if let Some(why) = chosen.disk.misfit(&wish.contract) {
        let text = format!(
            "{} is not the disk of the contract ({}): {}",
            chosen.disk.path.display(),
            wish.contract,
            line(&why)
        );
        return Err(Failure::new(Kind::Store, text)
            .hint("take the disk that the contract means, or change `disk` of the node in cluster.toml"));
    }
    chosen.refuse(wish)?;
    nobody_writes(machine, &chosen.disk)?;
    Ok(chosen)
}

/// Programs that do not take a disk for themselves, as virtual machines do, are in no list of the kernel.
fn nobody_writes(machine: &Machine, disk: &Disk) -> Result<(), Failure> {
    let writers = machine.writers(disk);
    if writers.is_empty() {
        return Ok(());
    }
    let text = format!("{} is not written: {} can write to it", disk.path.display(), writers.join(", "));
    Err(Failure::new(Kind::Store, text).hint("end that first, or take another disk"))
}

fn named(machine: &Machine, device: &Path) -> Result<Candidate, Failure> {
    let no = |why: &str, hint: String| {
        Err(Failure::new(Kind::Input, format!("{} {why}", device.display())).hint(hint))
    };
    let list = || "`kiln flash --list` shows the disks of this machine".to_owned();
    let Some(name) = machine.resolve(device) else {
        let Some(kind) = machine.kind(device) else {
            let near = Path::new("/dev").join(device);
            let known = device.is_relative() && machine.resolve(&near).is_some();
            let hint = if known { format!("did you mean {}?", near.display()) } else { list() };
            return no("is not there", hint);
        };
        let what = match () {
            () if kind.is_dir() => "is a folder, no disk",
            () if kind.is_file() => "is a file, no disk",
            () => "is no disk",
        };
        return no(what, list());
    };
    if let Some(disk) = machine.disk_of_partition(&name) {
        return no("is a partition", format!("name the whole disk: --device /dev/{disk}"));
    }
    match machine.disk(&name) {
        Some(disk) if disk.size > 0 => Ok(Candidate::look(disk)),
        Some(_) => no("has no medium in it", "put it in, or take another disk".to_owned()),
        None => no("is no disk", list()),
    }
}

fn by_contract(machine: &Machine, contract: &DiskContract) -> Result<Candidate, Failure> {
    let all = Candidate::all(machine);
    let no = |why: String, reasons: &[String]| {
        Failure::new(Kind::Input, format!("{why}{}", lines_below(&table(&all, Some(reasons)))))
    };
    if contract.is_empty() {
        let none = vec!["the contract says nothing".to_owned(); all.len()];
        return Err(no(
            "the node's disk contract is empty, and by such a one no disk is picked".to_owned(),
            &none,
        )
        .hint(
            "write `disk = { serial = \"…\" }` for the node in cluster.toml, or name a disk with --device",
        ));
    }
    let reasons: Vec<Option<String>> = all.iter().map(|candidate| candidate.disk.misfit(contract)).collect();
    let fitting: Vec<&Candidate> =
        all.iter().zip(&reasons).filter(|(_, why)| why.is_none()).map(|(candidate, _)| candidate).collect();
    let words: Vec<String> =
        reasons.iter().map(|why| why.clone().unwrap_or_else(|| "fits".to_owned())).collect();
    match fitting.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(no(format!("no disk of this machine fits the contract ({contract})"), &words)
            .hint("plug the disk in, or correct `disk` of the node in cluster.toml")),
        several => {
            Err(no(format!("{} disks fit the contract ({contract}), and one must", several.len()), &words)
                .hint("say which: `disk = { serial = \"…\" }` for the node in cluster.toml, or --device"))
        }
    }
}

fn lines_below(lines: &[String]) -> String {
    lines.iter().fold(String::new(), |mut text, line| {
        // Writing to a String does not fail.
        let _ = write!(text, "\n  {line}");
        text
    })
}

/// The disks as lines of a table; `reasons` is a last column.
pub fn table(candidates: &[Candidate], reasons: Option<&[String]>) -> Vec<String> {
    let dash = |text: Option<&str>| line(text.unwrap_or("-"));
    let mut rows: Vec<Vec<String>> =
        vec![["DEVICE", "SIZE", "BUS", "MODEL", "SERIAL"].map(str::to_owned).to_vec()];
    rows[0].push(if reasons.is_some() { "WHY NOT" } else { "HOLDS" }.to_owned());
    for (number, candidate) in candidates.iter().enumerate() {
        let disk = &candidate.disk;
        let last = match reasons {
            Some(reasons) => reasons.get(number).map(|why| line(why)).unwrap_or_default(),
            None => {
                let mut text = candidate.summary();
                for (why, _) in
                    candidate.objections(&Wish { overwrite: &MEMBERS.map(str::to_owned), ..Wish::default() })
                {
                    // The summary said so.
                    if !why.starts_with("it cannot be read") {
                        let _ = write!(text, "; {why}");
                    }
                }
                text
            }
        };
        rows.push(vec![
            disk.path.display().to_string(),
            human_bytes(disk.size),
            disk.bus.to_string(),
            dash(disk.model.as_deref()),
            dash(disk.serial.as_deref()),
            last,
        ]);
    }
    if candidates.is_empty() {
        return vec!["(no disks)".to_owned()];
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (text, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{text:width$}  ");
            }
            line.push_str(&row[5]);
            line
        })
        .collect()
}

/// Whether a person said that `disk` is meant.
///
/// A contract with the serial number or the WWN of the disk says it. Any other one may fit a disk of this machine by chance, and a name
/// such as `/dev/sdb` may mean another disk than a minute ago: then somebody types the serial number, on the terminal or as `yes`.
///
/// # Errors
/// [`Kind::Input`]: what was typed is not the serial number, or nobody is there to type it.
pub fn confirm(
    disk: &Disk,
    wish: &Wish<'_>,
    yes: &[String],
    ask: impl FnOnce(&str) -> Option<String>,
) -> Result<(), Failure> {
    let (path, word) = (disk.path.display(), line(disk.word()));
    let known = wish.contract.serial.is_some() || wish.contract.wwn.is_some();
    if known || yes.iter().any(|yes| disk.is(yes)) {
        return Ok(());
    }
    let what = if disk.serial.is_some() { "serial number" } else { "name, for it has no serial number" };
    if !yes.is_empty() {
        let text = format!("{path} is not written: --yes does not give its {what}");
        return Err(Failure::new(Kind::Input, text).hint(format!("if this disk is meant: --yes {word}")));
    }
    match ask(&format!("everything on {path} will be lost; type its {what} ({word}) to go on")) {
        Some(answer) if disk.is(&answer) => Ok(()),
        Some(_) => Err(Failure::new(Kind::Input, format!("{path} is not written: that is not its {what}"))
            .hint("nothing was changed; `kiln flash --list` shows the serial numbers")),
        None => Err(Failure::new(
            Kind::Input,
            format!("{path} is not written: nobody is there to type its {what}"),
        )
        .hint(format!("if this disk is meant: --yes {word}"))),
    }
}

/// Takes the disk for this process alone and looks once more whether it is the one that was chosen.
///
/// # Errors
/// [`Kind::Store`]: somebody else uses it, or it is another disk by now.
pub fn open(machine: &Machine, chosen: &Candidate, wish: &Wish<'_>) -> Result<BlockDevice, Failure> {
    let disk = &chosen.disk;
    let name = disk.path.display();
    let flags = OFlags::EXCL | OFlags::DIRECT;
    let mut options = fs_err::OpenOptions::new();
    options.read(true).write(true).custom_flags(flags.bits() as i32);
    let mut file = options.open(&disk.path).map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => Failure::new(Kind::Store, format!("{name} is in use"))
            .hint("another kiln flashes it, or something holds it that this machine's lists do not show: look at lsblk and lsof"),
        io::ErrorKind::PermissionDenied => {
            Failure::new(Kind::Store, format!("{name} cannot be opened")).hint("run as root: `sudo kiln flash …`").because(error)
        }
        _ => Failure::new(Kind::Store, format!("{name} cannot be opened")).because(error),
    })?;
    let other = |why: &str| {
        Err(Failure::new(Kind::Store, format!("{name} is another disk than a moment ago: {why}"))
            .hint("nothing was written; run the command again"))
    };
    let meta = file.metadata().map_err(|error| Failure::new(Kind::Store, error.to_string()))?;
    if !meta.file_type().is_block_device() {
        return other("it is no block device");
    }
    let number = format!("{}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let size = io::Seek::seek(&mut file, io::SeekFrom::End(0)).unwrap_or(0);
    let Some(now) = machine.disk(&disk.name) else { return other("it is gone") };
    for (what, same) in [
        ("its device number", number == disk.number && now.number == disk.number),
        ("its size", size == disk.size && now.size == disk.size),
        ("its serial number", now.serials == disk.serials && now.wwn == disk.wwn && now.model == disk.model),
        ("it was unplugged meanwhile", now.sequence == disk.sequence),
    ] {
        if !same {
            return other(what);
        }
    }
    // Whatever began to use it meanwhile.
    nobody_writes(machine, &now)?;
    Candidate::look(now).refuse(wish)?;
    Ok(BlockDevice::new(file, size, disk.sector))
}

/// Whether reading back while writing is free: disks with queues and without heads do both at once, on a machine with
/// [`enough_cores`]. Else both together would take longer than one after the other.
pub fn overlaps(disk: &Disk) -> bool {
    use crate::spec::cluster::DiskBus::{Nvme, Sata, Scsi, Virtio};
    let queued = matches!(disk.bus, Bus::Known(Nvme | Sata | Scsi | Virtio) | Bus::Loop);
    enough_cores() && queued && !disk.rotational && !disk.removable
}

/// Whether each of the four threads that write and read back has a core.
pub fn enough_cores() -> bool {
    std::thread::available_parallelism().is_ok_and(|cores| cores.get() >= 4)
}
