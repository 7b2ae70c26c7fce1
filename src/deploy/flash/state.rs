//! The disk on which a node that runs diskless keeps its `/var`: nothing is on it but that.
//!
//! ```text
//! 0      1 MiB                                    end - 1 MiB
//! table  /var (ext4), whose GUID is the node's    table
//! ```
//!
//! It is made only where nothing is, and the table comes last, first its copy at the end of the disk, then the one at the beginning. What was
//! interrupted before the copy is whole holds nothing but pieces of this very table, and is made again. From then on the file system is never
//! made again: if the table at the beginning is missing, it alone is written. The disk is known by the GUID of its one partition.

use std::fmt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::claim::{self, Candidate, Wish, choose};
use super::device::{Disk, Machine};
use super::medium::{Aligned, BlockDevice, Medium};
use super::signature::{Class, Signature};
use crate::error::{Failure, Kind};
use crate::exec::Tool;
use crate::image::gpt::{self, ALIGNMENT, Partition, Table};
use crate::image::is_zero;
use crate::scenario::identity::machine_uuid;
use crate::sys;

/// The program of e2fsprogs that makes the file system, where a node has it.
const MKFS: &str = "/usr/sbin/mkfs.ext4";
/// Bytes at either end of a disk, in which a table lies, and which are zero on a blank one.
const END: usize = 1 << 20;
/// The partition's label, by which the node's udev rule finds it.
const LABEL: &str = "var";

/// Where a node's state is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The disk.
    pub disk: Disk,
    /// The device of the partition.
    pub partition: PathBuf,
    /// Whether it was made now.
    pub made: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = &self.disk;
        let serial = disk.serial.as_deref().unwrap_or("none");
        let how = if self.made { "made now" } else { "as it was left" };
        write!(f, "/var is on {} (serial {serial}), {how}", disk.path.display())
    }
}

/// What is on a disk that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// The node's state.
    Own,
    /// Nothing, or pieces of the node's own table.
    Blank,
    /// The node's state, but for the table at the beginning.
    Headless,
    /// Something else.
    Other(String),
}

/// The GUID of the partition with the state of a node.
pub fn guid(cluster: &str, node: &str) -> Uuid {
    Uuid::new_v5(&machine_uuid(cluster, node), b"state")
}

/// The table of a disk of `size` bytes with the state `guid`.
fn table(guid: Uuid, size: u64, sector: u32) -> Table {
    let partition = Partition {
        kind: gpt::VAR,
        guid,
        name: LABEL.to_owned(),
        offset: ALIGNMENT,
        size: (size / ALIGNMENT).saturating_sub(2) * ALIGNMENT,
        attributes: 0,
    };
    Table { guid: Uuid::new_v5(&guid, b"disk"), sector, size, partitions: vec![partition] }
}

/// Chooses the disk of `wish` by the rules of flashing, and makes the state `guid` on it if it is blank. Nothing that is on a disk is
/// overwritten, whatever `wish` allows.
///
/// # Errors
/// As [`choose`] and [`claim::open`]; [`Kind::Store`]: something else is on the disk, or the device fails.
pub fn ready(machine: &Machine, wish: &Wish<'_>, guid: Uuid) -> Result<Place, Failure> {
    let wish = &Wish { overwrite: &[], only_blank: true, ..wish.clone() };
    let mut chosen = choose(machine, wish)?;
    let path = chosen.disk.path.clone();
    let fail = |what: &str| broken(what, &path);
    let mut device = claim::open(machine, &chosen, wish)?;
    let table = table(guid, device.size(), device.sector());
    let mut found = look(&device, &chosen, &table).map_err(fail("reading"))?;
    if found == Found::Headless {
        write_table(&device, &table).map_err(fail("writing the partition table of"))?;
        sys::reread_partitions(device.file()).map_err(fail("reading the new partition table of"))?;
        drop(device);
        chosen = Candidate::look(machine.disk(&chosen.disk.name).ok_or_else(|| unseen(&path))?);
        device = claim::open(machine, &chosen, wish)?;
        found = look(&device, &chosen, &table).map_err(fail("reading"))?;
    }
    let made = match found {
        Found::Own => false,
        Found::Blank => {
            make(machine, &chosen, wish, device, &table)?;
            true
        }
        Found::Headless => {
            let error = std::io::Error::other("the device does not keep what is written there");
            return Err(fail("writing the partition table of")(error));
        }
        Found::Other(what) => {
            let text = format!("{} is not taken for /var: {what}", path.display());
            let empty = claim::emptied(&path);
            return Err(Failure::new(Kind::Store, text)
                .hint(format!("only a blank disk is taken, or one that holds the state of this very node; if all that is on it can be lost: {empty}"))
                .hint("or let `disk` of the node in cluster.toml mean another disk"));
        }
    };
    let disk = machine.disk(&chosen.disk.name);
    let part = disk.as_ref().and_then(|disk| disk.partitions.iter().find(|part| part.offset == ALIGNMENT));
    let part = part.ok_or_else(|| unseen(&path))?;
    let partition = PathBuf::from("/dev").join(part.name.replace('!', "/"));
    Ok(Place { disk: chosen.disk, partition, made })
}

fn broken(what: &str, path: &Path) -> impl Fn(std::io::Error) -> Failure + use<> {
    let text = format!("{what} {} failed", path.display());
    move |error| {
        Failure::new(Kind::Store, text.clone())
            .hint("the kernel's log (`dmesg`) says more; put another disk in, or let `disk` of the node in cluster.toml mean another")
            .because(error)
    }
}

fn unseen(path: &Path) -> Failure {
    let text = format!("{} is not taken for /var: the kernel does not see its partition", path.display());
    Failure::new(Kind::Store, text).hint("start the machine again")
}

fn look(device: &dyn Medium, chosen: &Candidate, table: &Table) -> std::io::Result<Found> {
    let (size, sector) = (device.size(), device.sector());
    let mut head = Aligned::new(END);
    device.read_all(&mut head, 0)?;
    if let Ok(found) = gpt::read_primary(&head, sector)
        && let [part] = found.partitions.as_slice()
        && part.kind == gpt::VAR
        && part.name == LABEL
    {
        if part.guid != table.partitions[0].guid {
            return Ok(Found::Other("it holds the state of another node".to_owned()));
        }
        // A damaged one is for a person to look at: made anew it would be empty.
        let whole = chosen.holds.iter().any(|found| found.part.is_some() && found.kind == "ext4");
        return Ok(if whole {
            Found::Own
        } else {
            Found::Other("it holds the state of this node, and no file system in it any more".to_owned())
        });
    }
    let mut tail = Aligned::new(END);
    device.read_all(&mut tail, size - END as u64)?;
    let (own_head, own_tail) = ends(table);
    // The power may go between any two sectors.
    let left = |bytes: &[u8], own: &[u8]| {
        let mut sectors = bytes.chunks(sector as usize).zip(own.chunks(sector as usize));
        sectors.all(|(bytes, own)| is_zero(bytes) || bytes == own)
    };
    let ours = left(&head, &own_head) && left(&tail, &own_tail);
    let empty = is_zero(&head) && is_zero(&tail);
    // Half a table looks like a table, and like one with a file system in it. What is part of something larger does not come from us.
    let strange = |found: &Signature| empty || found.class == Class::Member;
    if chosen.holds.iter().any(|found| !ours || strange(found)) {
        return Ok(Found::Other(format!("it holds {}", chosen.summary())));
    }
    // What nobody knows may be somebody's all the same.
    if !ours {
        return Ok(Found::Other("its first or its last MiB is not empty".to_owned()));
    }
    Ok(if tail[..] == own_tail[..] { Found::Headless } else { Found::Blank })
}

/// The first and the last bytes of a disk with `table`.
fn ends(table: &Table) -> (Vec<u8>, Vec<u8>) {
    let (mut head, mut tail) = (vec![0; END], vec![0; END]);
    let primary = table.primary();
    head[..primary.len()].copy_from_slice(&primary);
    // It ends where the disk does.
    let (_, backup) = table.backup();
    tail[END - backup.len()..].copy_from_slice(&backup);
    (head, tail)
}

fn make(
    machine: &Machine,
    chosen: &Candidate,
    wish: &Wish<'_>,
    device: BlockDevice,
    table: &Table,
) -> Result<(), Failure> {
    let path = &chosen.disk.path;
    let fail = |what: &str| broken(what, path);
    empty(&device).map_err(fail("emptying"))?;
    // The program wants the disk for itself.
    drop(device);
    let part = &table.partitions[0];
    let mkfs = Tool::host(MKFS).command().args(["-q", "-F", "-L", LABEL, "-E"]);
    mkfs.arg(format!("offset={}", part.offset)).arg(path).arg(format!("{}k", part.size >> 10)).run()?;
    let device = claim::open(machine, chosen, wish)?;
    write_table(&device, table).map_err(fail("writing the partition table of"))?;
    sys::reread_partitions(device.file()).map_err(fail("reading the new partition table of"))
}

/// Takes both tables away.
fn empty(device: &dyn Medium) -> std::io::Result<()> {
    let zeros = Aligned::new(END);
    device.write_all(&zeros, 0)?;
    device.write_all(&zeros, device.size() - END as u64)?;
    device.flush()
}

/// Writes both tables, the one that says that all is there last.
fn write_table(device: &dyn Medium, table: &Table) -> std::io::Result<()> {
    let (at, backup) = table.backup();
    // In whole sectors: the copy at the end of the disk ends with it.
    device.write_all(&Aligned::of(&backup)[..backup.len()], at)?;
    device.flush()?;
    device.write_all(&Aligned::of(&table.primary()), 0)?;
    device.flush()
}

#[cfg(test)]
mod tests {
    use super::super::device::Bus;
    use super::super::fake::{Fake, Fault};
    use super::super::signature;
    use super::*;
    use std::io;

    const SIZE: u64 = 4 << 20;

    fn signature(kind: &'static str, class: Class, part: Option<&str>) -> Signature {
        Signature { kind, class, text: kind.to_owned(), part: part.map(str::to_owned) }
    }

    fn chosen(holds: Vec<Signature>) -> Candidate {
        let disk = Disk {
            name: "sda".to_owned(),
            path: "/dev/sda".into(),
            stable: Vec::new(),
            model: None,
            serial: None,
            serials: Vec::new(),
            wwn: None,
            size: SIZE,
            sector: 512,
            physical_sector: 512,
            bus: Bus::Other,
            removable: false,
            read_only: false,
            rotational: false,
            number: "8:0".to_owned(),
            sequence: None,
            partitions: Vec::new(),
            mounts: Vec::new(),
            swaps: Vec::new(),
            holders: Vec::new(),
            system: false,
        };
        Candidate { disk, holds, unread: None }
    }

    fn own(sector: u32) -> Table {
        table(guid("homelab", "agent-1"), SIZE, sector)
    }

    fn found(bytes: &[u8], holds: Vec<Signature>) -> Found {
        let disk = Fake::new(SIZE, Fault::None);
        disk.state().bytes.copy_from_slice(bytes);
        look(&disk, &chosen(holds), &own(512)).unwrap()
    }

    fn with(table: &Table) -> Vec<u8> {
        let mut disk = io::Cursor::new(vec![0; SIZE as usize]);
        table.write(&mut disk).unwrap();
        disk.into_inner()
    }

    #[track_caller]
    fn other(found: &Found, words: &str) {
        assert!(matches!(found, Found::Other(why) if why.contains(words)), "{found:?}");
    }

    #[test]
    fn the_table_has_one_partition_between_the_tables_and_is_a_sound_one() {
        for (size, sector) in [(SIZE, 512), (SIZE + 5 * 4096, 4096)] {
            let table = table(guid("homelab", "agent-1"), size, sector);
            let mut disk = io::Cursor::new(vec![0; size as usize]);
            table.write(&mut disk).unwrap();
            assert_eq!(gpt::read(&mut disk, sector).unwrap(), table);
            assert_eq!((table.partitions[0].offset, table.partitions[0].size), (1 << 20, 2 << 20));
        }
        assert_ne!(guid("homelab", "agent-1"), guid("homelab", "agent-2"));
    }

    #[test]
    fn only_a_blank_disk_is_taken_and_one_with_the_state_of_this_node() {
        let empty = vec![0; SIZE as usize];
        assert_eq!(found(&empty, vec![]), Found::Blank);
        // What was interrupted behind the first MiB has no table yet.
        let mut begun = empty.clone();
        begun[2 << 20] = 1;
        assert_eq!(found(&begun, vec![]), Found::Blank);
        for at in [0, SIZE as usize - 1] {
            let mut used = empty.clone();
            used[at] = 1;
            other(&found(&used, vec![]), "is not empty");
        }
        let ext4 = || signature("ext4", Class::Content, Some("sda1"));
        let gpt = || signature("gpt", Class::Table, None);
        let of_another = with(&table(guid("homelab", "agent-2"), SIZE, 512));
        let whole = with(&own(512));
        assert_eq!(found(&whole, vec![gpt(), ext4()]), Found::Own);
        other(&found(&whole, vec![gpt()]), "no file system in it any more");
        other(&found(&of_another, vec![gpt(), ext4()]), "another node");
        // Without the table at the beginning, or half of it, the other one says whose it is.
        let behead = |disk: &[u8], length: usize| {
            let mut disk = disk.to_vec();
            disk[..length].fill(0);
            disk
        };
        for length in [512, 1024, 1 << 20] {
            assert_eq!(found(&behead(&whole, length), vec![gpt(), ext4()]), Found::Headless, "{length}");
            other(&found(&behead(&of_another, length), vec![gpt(), ext4()]), "it holds gpt; ext4 on sda1");
            other(&found(&behead(&of_another, length), vec![]), "is not empty");
        }
        // A node that was installed has a partition of that name, too, and more.
        let mut node = own(512);
        node.partitions[0].size = 1 << 20;
        node.partitions.push(Partition {
            guid: Uuid::from_u128(5),
            offset: 2 << 20,
            ..node.partitions[0].clone()
        });
        other(&found(&with(&node), vec![gpt(), ext4()]), "it holds gpt; ext4 on sda1");
        // What is known only to the kernel, or part of something larger, is not ours.
        let luks = || signature("luks", Class::Member, None);
        other(&found(&empty, vec![luks()]), "it holds luks");
        other(&found(&empty, vec![ext4()]), "it holds ext4 on sda1");
        other(&found(&behead(&whole, 512), vec![gpt(), luks()]), "it holds gpt; luks");
    }

    /// What [`ready`] sees of a disk whose partition the kernel may know: from the table at the end, if the protective MBR is there.
    fn seen(disk: &Fake, table: &Table, known: bool) -> Found {
        let bytes = disk.state().bytes.clone();
        let part = &table.partitions[0];
        let known = usize::from(known && bytes[510..512] == [0x55, 0xAA]);
        let known = [("sda1".to_owned(), part.offset, part.size)][..known].to_vec();
        let holds = signature::of_disk(&mut io::Cursor::new(bytes), SIZE, table.sector, "sda", &known);
        look(disk, &chosen(holds), table).unwrap()
    }

    /// Makes the state as [`make`] does, with one block of ext4 for the file system.
    fn make(disk: &Fake, table: &Table) -> io::Result<()> {
        let medium: &dyn Medium = disk;
        empty(medium)?;
        let mut block = [0; 4096];
        block[1024 + 56..][..2].copy_from_slice(&[0x53, 0xEF]);
        block[1024 + 96] = 0x40;
        medium.write_all(&Aligned::of(&block), table.partitions[0].offset)?;
        medium.flush()?;
        write_table(medium, table)
    }

    /// Goes on as [`ready`] does.
    fn go_on(disk: &Fake, table: &Table, known: bool) -> io::Result<Found> {
        let found = seen(disk, table, known);
        match &found {
            Found::Blank => make(disk, table)?,
            Found::Headless => write_table(disk, table)?,
            Found::Own | Found::Other(_) => {}
        }
        Ok(found)
    }

    #[test]
    fn the_power_may_go_at_any_moment_and_the_state_is_made_all_the_same() {
        let (mut blank, mut headless, mut whole) = (0, 0, 0);
        for (sector, known) in [(512, false), (512, true), (4096, false), (4096, true)] {
            let table = own(sector);
            let new = |fault| {
                let disk = Fake { sector, ..Fake::new(SIZE, fault) };
                disk.state().bytes.fill(0);
                disk
            };
            let made = new(Fault::None);
            make(&made, &table).unwrap();
            let operations = made.state().operations;
            assert_eq!(operations, 9);
            for (after, seed) in (0..operations).flat_map(|after| (0..6).map(move |seed| (after, seed))) {
                let why = format!("sector {sector}, known {known}, cut after {after}, seed {seed}");
                let disk = new(Fault::Cut { after, seed });
                make(&disk, &table).unwrap_err();
                // Once more on the way.
                disk.again(Fault::Cut { after: (after + seed) % operations, seed: after });
                let _ = go_on(&disk, &table, known);
                disk.again(Fault::None);
                match go_on(&disk, &table, known).unwrap() {
                    Found::Blank => blank += 1,
                    Found::Headless => headless += 1,
                    Found::Own => whole += 1,
                    Found::Other(other) => panic!("{why}: {other}"),
                }
                assert_eq!(seen(&disk, &table, known), Found::Own, "{why}");
                assert!(disk.state().bytes == made.state().bytes, "{why}");
            }
        }
        assert!(blank > 0 && headless > 0 && whole > 0, "{blank} {headless} {whole}");
    }
}
