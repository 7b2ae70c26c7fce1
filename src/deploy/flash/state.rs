//! The disk on which a node that runs diskless keeps its `/var`: nothing is on it but that.
//!
//! ```text
//! 0      1 MiB                                    end - 1 MiB
//! table  /var (ext4), whose GUID is the node's    table
//! ```
//!
//! It is made only where nothing is, and the table comes last: what was interrupted is still blank, and is made again. From then on the disk
//! is known by the GUID of its one partition, and is never made again.

use std::fmt;
use std::path::PathBuf;

use uuid::Uuid;

use super::claim::{self, Candidate, Wish, choose};
use super::device::{Disk, Machine};
use super::medium::{Aligned, BlockDevice, Medium};
use super::signature::Class;
use crate::error::{Failure, Kind};
use crate::exec::Tool;
use crate::image::gpt::{self, ALIGNMENT, Partition, Table};
use crate::image::is_zero;
use crate::scenario::identity::machine_uuid;
use crate::sys;

/// The program of e2fsprogs that makes the file system, where a node has it.
const MKFS: &str = "/usr/sbin/mkfs.ext4";
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
    /// Nothing, or only what may be lost.
    Blank,
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

/// Chooses the disk of `wish` by the rules of flashing, and makes the state `guid` on it if it is blank.
///
/// # Errors
/// As [`choose`] and [`claim::open`]; [`Kind::Store`]: something else is on the disk, or the device fails.
pub fn ready(machine: &Machine, wish: &Wish<'_>, guid: Uuid) -> Result<Place, Failure> {
    let chosen = choose(machine, wish)?;
    let name = chosen.disk.path.display().to_string();
    let fail = |error: std::io::Error| Failure::new(Kind::Store, name.clone()).because(error);
    let device = claim::open(machine, &chosen, wish)?;
    let made = match look(&device, &chosen, wish, guid).map_err(fail)? {
        Found::Own => false,
        Found::Blank => {
            make(machine, &chosen, wish, device, guid)?;
            true
        }
        Found::Other(what) => {
            return Err(Failure::new(Kind::Store, format!("{name} is not taken for /var: {what}"))
                .hint("only a blank disk is taken, or one that holds the state of this very node: empty it (`wipefs -a`, then `blkdiscard`)")
                .hint("or let `disk` of the node in cluster.toml mean another disk"));
        }
    };
    let disk = machine.disk(&chosen.disk.name);
    let part = disk.as_ref().and_then(|disk| disk.partitions.iter().find(|part| part.offset == ALIGNMENT));
    let part = part.ok_or_else(|| {
        Failure::new(Kind::Store, format!("the kernel does not see the partition of {name}"))
            .hint("start the machine again")
    })?;
    let partition = PathBuf::from("/dev").join(part.name.replace('!', "/"));
    Ok(Place { disk: chosen.disk, partition, made })
}

fn look(device: &dyn Medium, chosen: &Candidate, wish: &Wish<'_>, guid: Uuid) -> std::io::Result<Found> {
    let (size, sector) = (device.size(), device.sector());
    let mut head = Aligned::new(1 << 20);
    device.read_all(&mut head, 0)?;
    if let Ok(found) = gpt::read_primary(&head, sector)
        && let [part] = found.partitions.as_slice()
        && part.kind == gpt::VAR
        && part.name == LABEL
    {
        if part.guid != guid {
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
    let lost = |kind: &str| wish.overwrite.iter().any(|word| word == kind);
    let stays = |found: &&super::signature::Signature| found.class != Class::Member || !lost(found.kind);
    if chosen.holds.iter().any(|found| stays(&found)) {
        return Ok(Found::Other(format!("it holds {}", chosen.summary())));
    }
    let mut tail = Aligned::new(1 << 20);
    device.read_all(&mut tail, size - (1 << 20))?;
    // What nobody knows may be somebody's all the same.
    if chosen.holds.is_empty() && !(is_zero(&head) && is_zero(&tail)) {
        return Ok(Found::Other("its first or its last MiB is not empty".to_owned()));
    }
    Ok(Found::Blank)
}

fn make(
    machine: &Machine,
    chosen: &Candidate,
    wish: &Wish<'_>,
    device: BlockDevice,
    guid: Uuid,
) -> Result<(), Failure> {
    let (size, sector) = (device.size(), device.sector());
    let table = table(guid, size, sector);
    let path = &chosen.disk.path;
    let fail = |what: &str| {
        let text = format!("{what} {}", path.display());
        move |error: std::io::Error| Failure::new(Kind::Store, text).because(error)
    };
    {
        let device: &dyn Medium = &device;
        let zeros = Aligned::new(1 << 20);
        let empty = device.write_all(&zeros, 0).and_then(|()| device.write_all(&zeros, size - (1 << 20)));
        empty.and_then(|()| device.flush()).map_err(fail("emptying"))?;
    }
    // The program wants the disk for itself.
    drop(device);
    let part = &table.partitions[0];
    let mkfs = Tool::host(MKFS).command().args(["-q", "-F", "-L", LABEL, "-E"]);
    mkfs.arg(format!("offset={}", part.offset)).arg(path).arg(format!("{}k", part.size >> 10)).run()?;
    let device = claim::open(machine, chosen, wish)?;
    {
        let device: &dyn Medium = &device;
        let (at, backup) = table.backup();
        // In whole sectors: the copy at the end of the disk ends with it.
        let written = device
            .write_all(&Aligned::of(&backup)[..backup.len()], at)
            .and_then(|()| device.flush())
            .and_then(|()| device.write_all(&Aligned::of(&table.primary()), 0))
            .and_then(|()| device.flush());
        written.map_err(fail("writing the partition table of"))?;
    }
    sys::reread_partitions(device.file()).map_err(fail("reading the new partition table of"))
}

#[cfg(test)]
mod tests {
    use super::super::device::Bus;
    use super::super::signature::Signature;
    use super::*;
    use std::io;

    const SIZE: u64 = 8 << 20;

    /// A disk that is only read.
    struct Bytes(Vec<u8>);

    impl Medium for Bytes {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn sector(&self) -> u32 {
            512
        }

        fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
            bytes.copy_from_slice(&self.0[at as usize..][..bytes.len()]);
            Ok(bytes.len())
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

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

    fn found(bytes: &[u8], holds: Vec<Signature>, overwrite: &[&str]) -> Found {
        let overwrite: Vec<String> = overwrite.iter().map(|word| (*word).to_owned()).collect();
        let wish = Wish { overwrite: &overwrite, ..Wish::default() };
        look(&Bytes(bytes.to_vec()), &chosen(holds), &wish, guid("homelab", "agent-1")).unwrap()
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
            assert_eq!((table.partitions[0].offset, table.partitions[0].size), (1 << 20, 6 << 20));
        }
        assert_ne!(guid("homelab", "agent-1"), guid("homelab", "agent-2"));
    }

    #[test]
    fn only_a_blank_disk_is_taken_and_one_with_the_state_of_this_node() {
        let empty = vec![0; SIZE as usize];
        assert_eq!(found(&empty, vec![], &[]), Found::Blank);
        // What was interrupted behind the first MiB has no table yet.
        let mut begun = empty.clone();
        begun[2 << 20] = 1;
        assert_eq!(found(&begun, vec![], &[]), Found::Blank);
        for at in [0, SIZE as usize - 1] {
            let mut used = empty.clone();
            used[at] = 1;
            other(&found(&used, vec![], &[]), "is not empty");
        }
        let ext4 = || signature("ext4", Class::Content, Some("sda1"));
        let gpt = || signature("gpt", Class::Table, None);
        let own = with(&table(guid("homelab", "agent-1"), SIZE, 512));
        assert_eq!(found(&own, vec![gpt(), ext4()], &[]), Found::Own);
        other(&found(&own, vec![gpt()], &[]), "no file system in it any more");
        other(
            &found(&with(&table(guid("homelab", "agent-2"), SIZE, 512)), vec![gpt(), ext4()], &[]),
            "another node",
        );
        // A node that was installed has a partition of that name, too, and more.
        let mut node = table(guid("homelab", "agent-1"), SIZE, 512);
        node.partitions[0].size = 1 << 20;
        node.partitions.push(Partition {
            guid: Uuid::from_u128(5),
            offset: 3 << 20,
            ..node.partitions[0].clone()
        });
        other(&found(&with(&node), vec![gpt(), ext4()], &[]), "it holds gpt; ext4 on sda1");
        // The words of --overwrite mean what they mean for flashing, and nothing more.
        let luks = || signature("luks", Class::Member, None);
        other(&found(&empty, vec![luks()], &["lvm"]), "it holds luks");
        assert_eq!(found(&empty, vec![luks()], &["luks"]), Found::Blank);
        other(&found(&empty, vec![luks(), gpt()], &["luks"]), "it holds luks; gpt");
    }
}
