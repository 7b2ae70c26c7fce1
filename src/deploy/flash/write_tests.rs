//! The writer against disks that behave badly: what a device-mapper target or QEMU's blkdebug would do, on memory.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::{Mutex, MutexGuard};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;
use crate::cluster::secret::Value;
use crate::deploy::flash::Facts;
use crate::image::disk::{self, Slot};
use crate::image::fat::{self, FileSystem};
use crate::image::gpt::{self, Wanted};
use crate::tree::TreePath;

const MIB: u64 = 1 << 20;

/// What is wrong with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Writes behind this fall back onto the beginning.
    Wraps(u64),
    /// Writes behind this are dropped, reads give zeros.
    Drops(u64),
    /// This byte is kept with a bit turned over.
    Bit(u64),
    /// Writing this byte fails.
    Write(u64),
    /// Reading this byte fails.
    Read(u64),
    /// No more than 64 KiB are taken or given at once.
    Short,
    /// Nothing is ever kept, and nobody is told.
    Ignores,
    /// The power goes with this write, counted from 0; of what was not flushed, a part is kept.
    Cut(u64),
}

struct State {
    bytes: Vec<u8>,
    /// Written since the last flush, in order: offset and bytes.
    pending: Vec<(u64, Vec<u8>)>,
    writes: u64,
    fault: Fault,
    off: bool,
}

/// A disk in memory.
struct Fake {
    state: Mutex<State>,
    size: u64,
    sector: u32,
    /// What discarded bytes become; `None` for a disk that cannot discard.
    discards: Option<u8>,
    zeroes: bool,
}

impl Fake {
    fn new(size: u64, fault: Fault) -> Self {
        // What was there before: an old system, and a pattern everywhere else.
        let mut bytes = vec![0x5A; size as usize];
        let part = Wanted {
            kind: gpt::LINUX_DATA,
            guid: uuid::Uuid::from_u128(3),
            name: "old".into(),
            size: MIB,
            attributes: 0,
        };
        let table = Table { size, ..gpt::plan(uuid::Uuid::from_u128(2), 512, &[part]).unwrap() };
        table.write(&mut Cursor::new(&mut bytes)).unwrap();
        let state = State { bytes, pending: Vec::new(), writes: 0, fault, off: false };
        Fake { state: Mutex::new(state), size, sector: 512, discards: Some(0), zeroes: true }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The power is back, and so is what was wrong.
    fn again(&self, fault: Fault) {
        let mut state = self.state();
        (state.off, state.fault, state.writes) = (false, fault, 0);
    }

    fn boots(&self) -> bool {
        let state = self.state();
        let sector = self.sector as usize;
        let last = match state.fault {
            Fault::Wraps(real) => (state.bytes.len() - sector) % real as usize,
            // Nothing is read there.
            Fault::Drops(_) => sector,
            _ => state.bytes.len() - sector,
        };
        let table = |at: usize| &state.bytes[at..at + 8] == b"EFI PART";
        state.bytes[510..512] == [0x55, 0xAA] || table(sector) || table(last)
    }
}

fn io_error() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Medium for Fake {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector(&self) -> u32 {
        self.sector
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.state();
        let length = bytes.len() as u64;
        assert!(
            at.is_multiple_of(self.sector.into()) && length.is_multiple_of(self.sector.into()),
            "direct I/O"
        );
        assert_eq!(bytes.as_ptr().align_offset(512), 0, "direct I/O");
        let n = if state.fault == Fault::Short { bytes.len().min(65_536) } else { bytes.len() };
        match state.fault {
            _ if state.off => return Err(io_error()),
            Fault::Read(bad) if (at..at + length).contains(&bad) => return Err(io_error()),
            Fault::Wraps(real) => {
                (0..n).for_each(|i| bytes[i] = state.bytes[((at + i as u64) % real) as usize]);
            }
            Fault::Drops(real) if at >= real => bytes.fill(0),
            _ => bytes[..n].copy_from_slice(&state.bytes[at as usize..][..n]),
        }
        Ok(n)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let mut state = self.state();
        let length = bytes.len() as u64;
        assert!(
            at.is_multiple_of(self.sector.into()) && length.is_multiple_of(self.sector.into()),
            "direct I/O"
        );
        assert_eq!(bytes.as_ptr().align_offset(512), 0, "direct I/O");
        let n = if state.fault == Fault::Short { bytes.len().min(65_536) } else { bytes.len() };
        state.writes += 1;
        match state.fault {
            _ if state.off => return Err(io_error()),
            Fault::Write(bad) if (at..at + length).contains(&bad) => return Err(io_error()),
            Fault::Wraps(real) => {
                (0..n).for_each(|i| state.bytes[((at + i as u64) % real) as usize] = bytes[i]);
                return Ok(n);
            }
            Fault::Drops(real) if at >= real => return Ok(n),
            Fault::Ignores => return Ok(n),
            _ => {}
        }
        let before = state.bytes[at as usize..][..n].to_vec();
        state.bytes[at as usize..][..n].copy_from_slice(&bytes[..n]);
        state.pending.push((at, before));
        match state.fault {
            Fault::Bit(bad) if (at..at + length).contains(&bad) => state.bytes[bad as usize] ^= 4,
            Fault::Cut(number) if state.writes > number => {
                state.off = true;
                // In the order of the disk's own choice: the last ones are undone first, some not at all.
                let mut random = StdRng::seed_from_u64(number);
                for (at, before) in std::mem::take(&mut state.pending).into_iter().rev() {
                    let keep = random.gen_range(0..=before.len() / 512) * 512;
                    state.bytes[at as usize + keep..][..before.len() - keep].copy_from_slice(&before[keep..]);
                }
                return Err(io_error());
            }
            _ => {}
        }
        Ok(n)
    }

    fn discard(&self, at: u64, length: u64) -> io::Result<()> {
        let mut state = self.state();
        let Some(byte) = self.discards else { return Err(io::ErrorKind::Unsupported.into()) };
        state.bytes[at as usize..][..length as usize].fill(byte);
        Ok(())
    }

    fn zero(&self, at: u64, length: u64) -> io::Result<()> {
        let mut state = self.state();
        if !self.zeroes {
            return Err(io::ErrorKind::Unsupported.into());
        }
        state.bytes[at as usize..][..length as usize].fill(0);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state();
        state.pending.clear();
        if state.off { Err(io_error()) } else { Ok(()) }
    }
}

struct Nobody;

impl Watch for Nobody {
    fn begin(&self, _: Phase, _: u64) {}
    fn advance(&self, _: u64) {}
}

/// An image of 79 MiB: an ESP, a hash tree with a hole and a root of noise.
fn image() -> (&'static [u8], Facts) {
    static IMAGE: std::sync::OnceLock<(Vec<u8>, Facts)> = std::sync::OnceLock::new();
    let (bytes, facts) = IMAGE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            fs_err::write(dir.path().join(name), bytes).unwrap();
            dir.path().join(name)
        };
        let mut esp = Cursor::new(vec![0; 66 << 20]);
        let uki = (TreePath::new("EFI/Linux/kiln_1+3.efi").unwrap(), fat::Source::Bytes(vec![9; 5 << 20]));
        let files = BTreeMap::from([uki]);
        let system = FileSystem {
            size: 66 << 20,
            sector: 512,
            serial: 1,
            label: "ESP".into(),
            epoch: 1_700_000_000,
            files,
        };
        fat::write(&system, &mut esp).unwrap();
        let mut noise = vec![0; (7 << 20) + 4096];
        StdRng::seed_from_u64(5).fill(&mut noise[..]);
        let mut hash = vec![0; 3 << 20];
        hash[..8192].copy_from_slice(&noise[..8192]);
        let slot = |kind, name: &str, content| Slot {
            partition: Wanted {
                kind,
                guid: uuid::Uuid::new_v5(&kind, name.as_bytes()),
                name: name.into(),
                size: 0,
                attributes: 0,
            },
            content,
        };
        let slots = [
            slot(gpt::ESP, "esp", file("esp", esp.get_ref())),
            slot(gpt::ROOT_VERITY_X86_64, "verity-a", file("hash", &hash)),
            slot(gpt::ROOT_X86_64, "root-a", file("root", &noise)),
        ];
        let raw = fs_err::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(dir.path().join("raw"))
            .unwrap();
        let written = disk::write(uuid::Uuid::from_u128(8), 512, &slots, raw.file()).unwrap();
        let bytes = fs_err::read(dir.path().join("raw")).unwrap();
        let facts = Facts { digest: written.digest, size: bytes.len() as u64, epoch: 1_700_000_000 };
        (bytes, facts)
    });
    (bytes, *facts)
}

fn source() -> Source<'static> {
    let (bytes, facts) = image();
    Source::new(Box::new(bytes), facts).unwrap()
}

fn token() -> Credential {
    Credential { name: "k3s.token".to_owned(), value: Value::new("secret"), secret: true }
}

fn run(disk: &Fake, options: &Options<'_>) -> Result<Written, Failure> {
    write(disk, "/dev/fake", source(), options, &mut Journal::none(), &Nobody)
}

/// What every disk must hold in the end: the image's parts in their places, a table at both ends.
#[track_caller]
fn holds_the_image(disk: &Fake) {
    let (image, _) = image();
    let state = disk.state();
    let table = gpt::read(&mut Cursor::new(&state.bytes), disk.sector).unwrap();
    assert_eq!(table.size, disk.size);
    let original = gpt::read_primary(image, 512).unwrap();
    for (part, from) in table.partitions.iter().zip(&original.partitions) {
        let of = |bytes: &[u8], at: u64| Digest::of(&bytes[at as usize..][..from.size as usize]);
        if part.kind != gpt::ESP {
            assert_eq!(of(&state.bytes, part.offset), of(image, from.offset), "{}", part.name);
        }
    }
}

#[test]
fn a_disk_gets_the_image_and_nothing_of_the_old_one_stays_in_it() {
    for (overlap, discards, zeroes) in
        [(false, Some(0), true), (true, Some(0xFF), true), (false, None, true), (true, None, false)]
    {
        let disk = Fake { discards, zeroes, ..Fake::new(150 * MIB, Fault::None) };
        let done = run(&disk, &Options { overlap, probe: true, ..Options::default() }).unwrap();
        holds_the_image(&disk);
        let (image, facts) = image();
        assert!(disk.state().bytes[MIB as usize..][..76 << 20] == image[1 << 20..][..76 << 20]);
        assert!(done.verified >= facts.size - 2 * MIB && done.resumed == 0, "{done:?}");
        if discards == Some(0) {
            assert!(done.zeroed > 40 * MIB && done.written < 40 * MIB, "{done:?}");
        }
        assert_eq!(done.zeroed > 0, zeroes, "{done:?}");
    }
}

#[test]
fn identity_is_on_the_esp_and_4kn_disks_get_tables_and_file_systems_of_their_own() {
    let token = token();
    for sector in [512, 4096] {
        let disk = Fake { sector, ..Fake::new(400 * MIB, Fault::None) };
        run(&disk, &Options { identity: std::slice::from_ref(&token), ..Options::default() }).unwrap();
        holds_the_image(&disk);
        let state = disk.state();
        let table = gpt::read(&mut Cursor::new(&state.bytes), sector).unwrap();
        let esp = &table.partitions[0];
        let bytes = &state.bytes[esp.offset as usize..][..esp.size as usize];
        assert_eq!(u32::from(u16::from_le_bytes([bytes[11], bytes[12]])), sector);
        let mut reader = fat::Reader::new(Cursor::new(bytes)).unwrap();
        assert!(
            reader.read("loader/credentials/k3s.token.cred").unwrap() == crate::cluster::sealed::seal(&token)
        );
        assert_eq!(reader.read("EFI/Linux/kiln_1+3.efi").unwrap().len(), 5 << 20);
    }
}

#[test]
fn compressed_images_and_those_that_are_not_what_the_manifest_says() {
    let (bytes, facts) = image();
    let pressed = zstd::encode_all(bytes, 1).unwrap();
    let disk = Fake::new(150 * MIB, Fault::None);
    let source = Source::compressed(&pressed[..], facts).unwrap();
    write(&disk, "d", source, &Options::default(), &mut Journal::none(), &Nobody).unwrap();
    holds_the_image(&disk);

    let mut other = bytes.to_vec();
    other[70 << 20] ^= 1;
    let longer = [bytes, &[0]].concat();
    let wrong = Facts { digest: Digest::of(b"other"), ..facts };
    for (bytes, facts, why) in [
        (&other[..], facts, "its sha256 is"),
        (&bytes[..bytes.len() - 512], facts, "ends before"),
        (&bytes[..9 << 20], facts, "ends before"),
        (&longer[..], facts, "has more than"),
        (bytes, wrong, "its sha256 is"),
    ] {
        let disk = Fake::new(150 * MIB, Fault::None);
        let source = Source::new(Box::new(bytes), facts).unwrap();
        let error =
            write(&disk, "d", source, &Options::default(), &mut Journal::none(), &Nobody).unwrap_err();
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(text.contains(why), "{text}");
        assert!(!disk.boots());
    }
    assert!(Source::new(Box::new(&bytes[512..]), facts).is_err());
    assert!(Source::compressed(&pressed[..100], facts).is_err());
    let broken = Source::compressed(&pressed[..pressed.len() / 2], facts).unwrap();
    let disk = Fake::new(150 * MIB, Fault::None);
    write(&disk, "d", broken, &Options::default(), &mut Journal::none(), &Nobody).unwrap_err();
    assert!(!disk.boots());
}

#[test]
fn short_writes_and_reads_are_gone_on_with() {
    let disk = Fake::new(150 * MIB, Fault::Short);
    run(&disk, &Options { overlap: true, probe: true, ..Options::default() }).unwrap();
    holds_the_image(&disk);
}

#[test]
fn every_bad_byte_is_found_and_the_disk_does_not_boot() {
    // In the ESP, in zeros, in the root, in the table at the end, in the table at the beginning.
    for at in [20 * MIB + 5, 69 * MIB + 7, 73 * MIB + 1, 150 * MIB - 500, 600] {
        for overlap in [false, true] {
            let disk = Fake { discards: None, zeroes: false, ..Fake::new(150 * MIB, Fault::Bit(at)) };
            let error = run(&disk, &Options { overlap, ..Options::default() }).unwrap_err();
            assert_eq!(error.kind, Kind::Store);
            let text = error.to_string();
            assert!(
                text.contains("/dev/fake") && (text.contains("does not hold") || text.contains("not keep")),
                "{at}: {text}"
            );
            assert!(!error.hints().is_empty());
            // A first MiB that cannot be made zero ends it before anything else is touched.
            assert!(at == 600 || !disk.boots(), "{at}");
        }
    }
    for fault in [
        Fault::Write(73 * MIB),
        Fault::Read(73 * MIB),
        Fault::Write(150 * MIB - 1),
        Fault::Read(150 * MIB - 1),
    ] {
        let disk = Fake::new(150 * MIB, fault);
        let error = run(&disk, &Options { overlap: true, ..Options::default() }).unwrap_err();
        assert!(error.to_string().contains("failed at byte"), "{error}");
        // What lies behind an error of the first writes is the old disk, which was not touched.
        assert!(
            !disk.boots() || matches!(fault, Fault::Write(at) | Fault::Read(at) if at > 149 * MIB),
            "{fault:?}"
        );
    }
}

#[test]
fn a_disk_that_keeps_nothing_and_disks_that_lie_about_their_size_are_found_at_once() {
    let disk = Fake::new(150 * MIB, Fault::Ignores);
    assert!(run(&disk, &Options::default()).unwrap_err().to_string().contains("does not keep them"));
    for (fault, word) in [
        (Fault::Wraps(64 * MIB), "falls back"),
        (Fault::Wraps(128 * MIB), "falls back onto its beginning"),
        (Fault::Drops(100 * MIB), "not kept"),
    ] {
        let disk = Fake::new(256 * MIB, fault);
        let error = run(&disk, &Options { probe: true, ..Options::default() }).unwrap_err();
        // A tail that is dropped reads as zeros, which is what was written to it.
        assert!(error.to_string().contains("is not true") && error.to_string().contains(word), "{error}");
        assert!(disk.state().writes < 100, "before anything long was written");
    }
    // What the markers do not find, such as a size that is no power of two, reading everything back does.
    for fault in [Fault::Wraps(64 * MIB), Fault::Wraps(40 * MIB), Fault::Drops(70 * MIB)] {
        for (overlap, discards) in [(true, Some(0)), (false, Some(0xFF)), (false, None)] {
            let disk = Fake { discards, ..Fake::new(256 * MIB, fault) };
            let result = run(&disk, &Options { overlap, ..Options::default() });
            assert!(result.is_err() && !disk.boots(), "{fault:?} {overlap} {discards:?}");
        }
    }
}

#[test]
fn the_power_may_go_at_any_moment_and_the_disk_boots_nothing_or_everything() {
    let folder = tempfile::tempdir().unwrap();
    // One that must be written in full.
    let new = |fault| Fake { discards: None, zeroes: false, ..Fake::new(150 * MIB, fault) };
    let whole = new(Fault::None);
    run(&whole, &Options::default()).unwrap();
    let writes = whole.state().writes;
    assert!(writes > 10);
    for number in 1..writes + 2 {
        let disk = new(Fault::Cut(number));
        let mut journal = Journal::open(folder.path(), &format!("disk {number}"), false).unwrap();
        let result = write(&disk, "d", source(), &Options::default(), &mut journal, &Nobody);
        if number >= writes {
            result.unwrap();
            continue;
        }
        result.unwrap_err();
        // With the last write the table may or may not have come; everything else is there by then.
        if disk.boots() && number < 3 {
            // The first two writes take the tables away; what they describe is all there still.
            assert!(
                disk.state().bytes[MIB as usize..148 << 20].iter().all(|byte| *byte == 0x5A),
                "cut {number}"
            );
        } else if disk.boots() {
            assert!(number >= writes - 2, "cut {number} of {writes}");
            let state = disk.state();
            let (image, _) = image();
            assert!(state.bytes[MIB as usize..][..76 << 20] == image[1 << 20..][..76 << 20], "cut {number}");
        }
        disk.again(Fault::None);
        let mut journal = Journal::open(folder.path(), &format!("disk {number}"), false).unwrap();
        write(&disk, "d", source(), &Options::default(), &mut journal, &Nobody).unwrap();
        holds_the_image(&disk);
        assert!(Journal::open(folder.path(), &format!("disk {number}"), false).unwrap().record().is_none());
    }
}

#[test]
fn a_second_run_writes_only_what_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let open = |restart| Journal::open(folder.path(), "disk", restart).unwrap();
    let disk = Fake::new(150 * MIB, Fault::Write(150 * MIB - 1));
    disk.again(Fault::None);
    run(&disk, &Options::default()).unwrap();
    // As an interrupted run leaves it: everything but the tables, and the journal says so.
    let table = Table { size: disk.size, ..gpt::read_primary(image().0, 512).unwrap() };
    let interrupted = |upto: u64| {
        let mut journal = open(true);
        journal.begin(&source().facts(), &disk, None).unwrap();
        journal.mark(upto).unwrap();
    };
    interrupted(75 * MIB);
    disk.state().bytes[40 << 20] ^= 1;
    let done = write(&disk, "d", source(), &Options::default(), &mut open(false), &Nobody).unwrap();
    assert!(done.resumed > 60 * MIB && done.resumed < 75 * MIB, "{done:?}");
    holds_the_image(&disk);
    assert!(
        disk.state().bytes[1 << 20..76 << 20] == image().0[1 << 20..76 << 20],
        "what was wrong was put right"
    );
    interrupted(75 * MIB);
    let done = write(&disk, "d", source(), &Options::default(), &mut open(true), &Nobody).unwrap();
    assert_eq!(done.resumed, 0, "--restart");
    assert_eq!(gpt::read(&mut Cursor::new(&disk.state().bytes), 512).unwrap(), table);
}

#[test]
fn state_stays_where_it_is_and_survives_an_interrupted_run() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Journal::open(folder.path(), "disk", false).unwrap();
    let disk = Fake::new(200 * MIB, Fault::None);
    run(&disk, &Options::default()).unwrap();
    // The first boot made /var.
    let mut table = gpt::read(&mut Cursor::new(&disk.state().bytes), 512).unwrap();
    let var = gpt::Partition {
        kind: gpt::VAR,
        guid: uuid::Uuid::from_u128(77),
        name: "var".into(),
        offset: 120 * MIB,
        size: 79 * MIB,
        attributes: gpt::GROW_FILE_SYSTEM,
    };
    table.partitions.push(var.clone());
    let kept: Vec<u8> = (0..79 * MIB).map(|i| (i % 251) as u8).collect();
    {
        let mut state = disk.state();
        table.write(&mut Cursor::new(&mut state.bytes)).unwrap();
        state.bytes[120 << 20..199 << 20].copy_from_slice(&kept);
    }
    let options = Options { keep_state: true, probe: true, ..Options::default() };
    disk.again(Fault::Write(73 * MIB));
    write(&disk, "d", source(), &options, &mut open(), &Nobody).unwrap_err();
    assert!(!disk.boots());
    disk.again(Fault::None);
    let error = write(&disk, "d", source(), &Options::default(), &mut open(), &Nobody).unwrap_err();
    assert!(error.hints()[0].contains("--keep-state"), "/var is not lost by a forgotten flag: {error}");
    write(&disk, "d", source(), &options, &mut open(), &Nobody).unwrap();
    let state = disk.state();
    assert!(state.bytes[120 << 20..199 << 20] == kept);
    let table = gpt::read(&mut Cursor::new(&state.bytes), 512).unwrap();
    assert_eq!(table.partitions.last(), Some(&var));
    drop(state);
    holds_the_image(&disk);
}

#[test]
fn disks_without_room_or_state_are_left_alone() {
    let disk = Fake::new(60 * MIB, Fault::None);
    assert!(run(&disk, &Options::default()).unwrap_err().to_string().contains("is too small"));
    assert_eq!(disk.state().writes, 0);
    let disk = Fake::new(150 * MIB, Fault::None);
    let needs = Options { least: 151 * MIB, ..Options::default() };
    assert!(run(&disk, &needs).unwrap_err().to_string().contains("second slot and /var"));
    assert!(
        run(&disk, &Options { keep_state: true, ..Options::default() })
            .unwrap_err()
            .to_string()
            .contains("cannot be kept")
    );
    assert_eq!(disk.state().writes, 0);
    assert!(disk.boots());
}
