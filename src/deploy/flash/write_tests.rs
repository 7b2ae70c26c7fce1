//! The writer against disks that behave badly.

use std::collections::BTreeMap;
use std::io::Cursor;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use super::*;
use crate::cluster::secret::Value;
use crate::deploy::flash::Facts;
use crate::deploy::flash::fake::{BLOCK, Fake, Fault, MIB};
use crate::image::disk::{self, Slot};
use crate::image::fat::{self, FileSystem};
use crate::image::gpt::{self, Wanted};
use crate::tree::TreePath;

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
    // Found before anything long is written.
    for (fault, word) in [
        (Fault::Wraps(64 * MIB), "falls back"),
        (Fault::Wraps(128 * MIB), "falls back onto its beginning"),
        (Fault::Drops(100 * MIB), "not kept"),
        (Fault::Drops(250 * MIB + 512), "not kept"),
    ] {
        // Not a whole number of MiB, nor of the sectors of a marker.
        let disk = Fake::new(256 * MIB + 3 * 512, fault);
        let error = run(&disk, &Options { probe: true, ..Options::default() }).unwrap_err();
        // A tail that is dropped reads as zeros, which is what was written to it.
        assert!(error.to_string().contains("is not true") && error.to_string().contains(word), "{error}");
        assert!(disk.state().operations < 100, "before anything long was written");
    }
    // What was at the end of it is there still.
    for real in [200 * MIB, 100 * MIB + 512] {
        let disk = Fake::new(256 * MIB, Fault::Stale(real));
        let error = run(&disk, &Options { probe: true, ..Options::default() }).unwrap_err();
        assert!(error.to_string().contains("does not keep them"), "{error}");
        assert!(
            error.hints()[0].contains("smaller than it says") && disk.state().operations < 9,
            "{error:?}"
        );
    }
    // What they do not find, the second look does: caches, and sizes that are no power of two, wherever the end is.
    for fault in [
        Fault::Caches(100 * MIB),
        Fault::Wraps(100 * MIB),
        Fault::Wraps(90 * MIB + 512),
        Fault::Wraps(150 * MIB - 4096),
    ] {
        let disk = Fake { discards: None, ..Fake::new(256 * MIB, fault) };
        let error = run(&disk, &Options { probe: true, ..Options::default() }).unwrap_err();
        assert!(error.to_string().contains("is not true") && !disk.boots(), "{fault:?}: {error}");
    }
    // Where it was not looked for, or the image does not fit, reading everything back finds it.
    for fault in [Fault::Wraps(64 * MIB), Fault::Wraps(40 * MIB), Fault::Drops(70 * MIB)] {
        for (overlap, discards) in [(true, Some(0)), (false, Some(0xFF)), (false, None)] {
            let disk = Fake { discards, ..Fake::new(256 * MIB, fault) };
            let result = run(&disk, &Options { overlap, ..Options::default() });
            assert!(result.is_err() && !disk.boots(), "{fault:?} {overlap} {discards:?}");
        }
    }
}

/// What whoever starts a disk finds after a cut: if there is a trace of a table, all that it describes is there, old or new.
/// The new one has `end` bytes.
#[track_caller]
fn boots_nothing_or_all(disk: &Fake, old: &Fake, new: &Fake, end: usize, why: &str) {
    let same = |other: &Fake, end: usize| {
        let place = MIB as usize..end;
        disk.state().bytes[place.clone()] == other.state().bytes[place]
    };
    assert!(!disk.boots() || same(new, end) || same(old, disk.size as usize - BLOCK), "{why}");
}

#[test]
fn the_power_may_go_at_any_moment_and_the_disk_boots_nothing_or_everything() {
    let folder = tempfile::tempdir().unwrap();
    // One that must be written in full.
    let new = |fault| Fake { discards: None, zeroes: false, ..Fake::new(150 * MIB, fault) };
    let (old, whole) = (new(Fault::None), new(Fault::None));
    run(&whole, &Options::default()).unwrap();
    let operations = whole.state().operations;
    assert!(operations > 20);
    for after in 0..operations {
        let disk = new(Fault::Cut { after, seed: after });
        let open = || Journal::open(folder.path(), &format!("disk {after}"), false).unwrap();
        write(&disk, "d", source(), &Options::default(), &mut open(), &Nobody).unwrap_err();
        let why = format!("cut after {after} of {operations}");
        boots_nothing_or_all(&disk, &old, &whole, 77 << 20, &why);
        disk.again(Fault::None);
        write(&disk, "d", source(), &Options::default(), &mut open(), &Nobody).unwrap();
        assert!(disk.state().bytes == whole.state().bytes, "cut after {after}");
        assert!(open().record().is_none());
    }
}

#[test]
fn cuts_by_chance_on_all_kinds_of_disks_never_leave_half_a_system() {
    let folder = tempfile::tempdir().unwrap();
    let token = token();
    let mut traces = 0;
    for seed in 0..16 {
        let mut random = StdRng::seed_from_u64(seed);
        let discards = *[None, Some(0), Some(0xFF)].choose(&mut random).unwrap();
        let (zeroes, overlap, probe) = (random.gen_bool(0.5), random.gen_bool(0.5), random.gen_bool(0.5));
        let identity = if random.gen_bool(0.5) { std::slice::from_ref(&token) } else { &[] };
        let sector = *[512, 512, 4096].choose(&mut random).unwrap();
        let size = if sector == 512 { 150 } else { 345 } * MIB + u64::from(sector) * random.gen_range(0..9);
        let options = Options { identity, overlap, probe, ..Options::default() };
        let new = |fault| Fake { sector, discards, zeroes, ..Fake::new(size, fault) };
        let (old, whole) = (new(Fault::None), new(Fault::None));
        run(&whole, &options).unwrap();
        let end = if sector == 512 { 77 << 20 } else { 271 << 20 };
        let disk = new(Fault::None);
        let open = || Journal::open(folder.path(), &format!("disk {seed}"), false).unwrap();
        // Once or twice in a row; the second time near the end, where it matters most.
        for near in [false, true].into_iter().take(random.gen_range(1..=2)) {
            let operations = whole.state().operations;
            let after = random.gen_range(if near { operations - 9 } else { 0 }..operations);
            disk.again(Fault::Cut { after, seed });
            let result = write(&disk, "d", source(), &options, &mut open(), &Nobody);
            assert!(result.is_err() || near, "a run that resumes has less to do");
            let why = format!("seed {seed}, cut after {after} of {operations}");
            boots_nothing_or_all(&disk, &old, &whole, end, &why);
            traces += u32::from(disk.boots());
        }
        disk.again(Fault::None);
        write(&disk, "d", source(), &options, &mut open(), &Nobody).unwrap();
        holds_the_image(&disk);
        assert!(disk.state().bytes[..end] == whole.state().bytes[..end], "seed {seed}");
    }
    assert!(traces > 0, "cuts at both ends of the work were among them");
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

/// The disk of a node that has run, its /var, and what is on that.
fn of_a_node() -> (Fake, gpt::Partition, Vec<u8>) {
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
    let mut state = disk.state();
    table.write(&mut Cursor::new(&mut state.bytes)).unwrap();
    state.bytes[120 << 20..199 << 20].copy_from_slice(&kept);
    drop(state);
    (disk, var, kept)
}

#[test]
fn state_stays_where_it_is_and_survives_interrupted_runs() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Journal::open(folder.path(), "disk", false).unwrap();
    let (disk, var, kept) = of_a_node();
    let options = Options { keep_state: true, probe: true, ..Options::default() };
    disk.again(Fault::Write(73 * MIB));
    write(&disk, "d", source(), &options, &mut open(), &Nobody).unwrap_err();
    assert!(!disk.boots());
    disk.again(Fault::None);
    let error = write(&disk, "d", source(), &Options::default(), &mut open(), &Nobody).unwrap_err();
    assert!(error.hints()[0].contains("--keep-state"), "/var is not lost by a forgotten flag: {error}");
    // The power goes a dozen times, from the first write to nearly the last, in runs that begin anew; nothing else than what is kept here
    // knows where /var is.
    let anew = || Journal::open(folder.path(), "disk", true).unwrap();
    let uncut = of_a_node().0;
    uncut.again(Fault::None);
    write(&uncut, "d", source(), &options, &mut Journal::none(), &Nobody).unwrap();
    let operations = uncut.state().operations;
    assert!(operations > 12, "{operations}");
    for after in (0..12).map(|part| part * operations / 12) {
        disk.again(Fault::Cut { after, seed: after });
        write(&disk, "d", source(), &options, &mut anew(), &Nobody).unwrap_err();
        assert!(disk.state().operations > after, "it did not come as far as cut {after} of {operations}");
        assert!(disk.state().bytes[120 << 20..199 << 20] == kept, "cut after {after} of {operations}");
    }
    disk.again(Fault::None);
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
    assert_eq!(disk.state().operations, 0);
    let disk = Fake::new(150 * MIB, Fault::None);
    let needs = Options { least: 151 * MIB, ..Options::default() };
    assert!(run(&disk, &needs).unwrap_err().to_string().contains("second slot and /var"));
    assert!(
        run(&disk, &Options { keep_state: true, ..Options::default() })
            .unwrap_err()
            .to_string()
            .contains("cannot be kept")
    );
    assert_eq!(disk.state().operations, 0);
    assert!(disk.boots());
}
