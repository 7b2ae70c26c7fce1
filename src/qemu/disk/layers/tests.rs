use proptest::prelude::*;

use super::*;

/// Blocks of the disk that tests use: the last one is cut short, the image ends in the middle of one.
const SIZE: u64 = 40 * BLOCK + 3 * SECTOR;
const IMAGE: u64 = 10 * BLOCK + 700;

fn image_bytes() -> Vec<u8> {
    (0..IMAGE).map(|at| u8::try_from(at % 251).unwrap() | 1).collect()
}

fn disk(torn: bool) -> (tempfile::TempDir, Layers) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.raw");
    fs::write(&path, image_bytes()).unwrap();
    let layers = Layers::new(folder.path(), Some(Image::open(&path).unwrap()), SIZE, torn).unwrap();
    (folder, layers)
}

fn all(layers: &Layers) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(SIZE).unwrap()];
    layers.read(0, &mut bytes).unwrap();
    bytes
}

/// The first seed with this share of survivors.
fn seed_with(share: impl Fn(u64) -> bool) -> u64 {
    (0..1000).find(|seed| share(survivors(*seed))).unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Write { at: u64, length: u64, byte: u8, fua: bool },
    Zero { at: u64, length: u64, fua: bool },
    Flush,
    Cut(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = (0..SIZE, prop_oneof![1..600_u64, 1..4 * BLOCK, 1..SIZE], any::<bool>());
    let place = place.prop_map(|(at, length, whole)| {
        // Half of the requests as file systems send them, half at odd places.
        let (at, length) =
            if whole { (at / BLOCK * BLOCK, length.next_multiple_of(BLOCK)) } else { (at, length) };
        (at, length.min(SIZE - at))
    });
    let fua = prop::bool::weighted(0.2);
    let step = prop_oneof![
        6 => (place.clone(), any::<u8>(), fua)
            .prop_map(|((at, length), byte, fua)| Step::Write { at, length, byte, fua }),
        2 => (place, fua).prop_map(|((at, length), fua)| Step::Zero { at, length, fua }),
        2 => Just(Step::Flush),
        2 => any::<u64>().prop_map(Step::Cut),
    ];
    prop::collection::vec(step, 1..40)
}

/// What a disk must hold: what was flushed, and what is read.
struct Model {
    flushed: Vec<u8>,
    now: Vec<u8>,
}

impl Model {
    fn put(&mut self, at: u64, length: u64, byte: u8, fua: bool) {
        let range = usize::try_from(at).unwrap()..usize::try_from(at + length).unwrap();
        self.now[range.clone()].fill(byte);
        if fua {
            let block = usize::try_from(BLOCK).unwrap();
            let whole = range.start / block * block..range.end.next_multiple_of(block).min(self.now.len());
            self.flushed[whole.clone()].copy_from_slice(&self.now[whole]);
        }
    }

    /// Looks at each unit that may have its own fate, and goes on from what the disk has made of it.
    fn cut(&mut self, found: Vec<u8>, unit: u64) {
        let unit = usize::try_from(unit).unwrap();
        for (index, part) in found.chunks(unit).enumerate() {
            let range = index * unit..index * unit + part.len();
            assert!(
                part == &self.flushed[range.clone()] || part == &self.now[range],
                "unit {index} is neither as flushed nor as written"
            );
        }
        self.flushed.clone_from(&found);
        self.now = found;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn after_a_power_cut_each_block_is_as_flushed_or_as_written(steps in steps(), torn in any::<bool>()) {
        let (_folder, mut layers) = disk(torn);
        let mut bytes = image_bytes();
        bytes.resize(usize::try_from(SIZE).unwrap(), 0);
        let mut model = Model { flushed: bytes.clone(), now: bytes };
        for step in steps {
            match step {
                Step::Write { at, length, byte, fua } => {
                    layers.write(at, &vec![byte; usize::try_from(length).unwrap()], fua).unwrap();
                    model.put(at, length, byte, fua);
                }
                Step::Zero { at, length, fua } => {
                    layers.zero(at..at + length, fua).unwrap();
                    model.put(at, length, 0, fua);
                }
                Step::Flush => {
                    layers.flush().unwrap();
                    model.flushed.clone_from(&model.now);
                }
                Step::Cut(seed) => {
                    let dirty = layers.unflushed();
                    let cut = layers.cut(seed).unwrap();
                    prop_assert_eq!(cut.dropped + cut.kept + cut.torn, dirty);
                    prop_assert!(torn || cut.torn == 0);
                    prop_assert_eq!(layers.unflushed(), 0);
                    let unit = if torn { SECTOR } else { BLOCK };
                    model.cut(all(&layers), unit);
                }
            }
            prop_assert!(all(&layers) == model.now, "what is read is what was written");
        }
    }

    #[test]
    fn a_read_of_any_range_is_that_range_of_the_whole(at in 0..SIZE, length in 0..SIZE) {
        let (_folder, mut layers) = disk(false);
        layers.write(5 * BLOCK + 100, &[7; 9000], false).unwrap();
        layers.zero(2 * BLOCK..4 * BLOCK, false).unwrap();
        layers.write(30 * BLOCK, &[9; 5], false).unwrap();
        let length = length.min(SIZE - at);
        let mut part = vec![0xee; usize::try_from(length).unwrap()];
        layers.read(at, &mut part).unwrap();
        let range = usize::try_from(at).unwrap()..usize::try_from(at + length).unwrap();
        prop_assert_eq!(&part, &all(&layers)[range]);
    }
}

#[test]
fn a_new_disk_is_the_image_and_zeroes() {
    let (_folder, layers) = disk(true);
    let mut expected = image_bytes();
    expected.resize(usize::try_from(SIZE).unwrap(), 0);
    assert!(all(&layers) == expected);
}

#[test]
fn a_cut_that_takes_all_takes_what_is_not_flushed_and_nothing_else() {
    let (_folder, mut layers) = disk(true);
    layers.write(0, &[1; 8192], false).unwrap();
    layers.flush().unwrap();
    layers.write(20 * BLOCK, &[2; 4096], true).unwrap();
    let flushed = all(&layers);
    // Over what was flushed, over the image, where nothing was, and as a hole.
    for at in [BLOCK, 5 * BLOCK, 30 * BLOCK] {
        layers.write(at + 10, &[3; 4096], false).unwrap();
    }
    layers.zero(0..BLOCK, false).unwrap();
    layers.zero(20 * BLOCK..21 * BLOCK, false).unwrap();
    assert!(all(&layers) != flushed);
    let cut = layers.cut(seed_with(|share| share == 0)).unwrap();
    assert_eq!(cut, Cut { dropped: 8, kept: 0, torn: 0 });
    assert!(all(&layers) == flushed);
    // And the next time nothing is left to take.
    assert_eq!(layers.cut(1).unwrap(), Cut::default());
}

#[test]
fn a_cut_that_takes_nothing_keeps_what_was_never_flushed() {
    let (_folder, mut layers) = disk(true);
    layers.write(100, &[1; 30_000], false).unwrap();
    let written = all(&layers);
    let cut = layers.cut(seed_with(|share| share == ALL)).unwrap();
    assert_eq!(cut, Cut { dropped: 0, kept: 8, torn: 0 });
    assert!(all(&layers) == written);
}

#[test]
fn the_fate_of_a_block_hangs_on_the_seed_and_its_number_and_not_on_the_order_of_writes() {
    let write = |order: &[u64], seed| {
        let (_folder, mut layers) = disk(true);
        for block in order {
            layers.write(block * BLOCK, &[0xff; BLOCK as usize], false).unwrap();
        }
        let cut = layers.cut(seed).unwrap();
        (cut, all(&layers))
    };
    let blocks: Vec<u64> = (0..40).collect();
    let backwards: Vec<u64> = blocks.iter().rev().copied().collect();
    let (mut mixed, mut torn) = (0, 0);
    for seed in 0..64 {
        let once = write(&blocks, seed);
        assert_eq!(once, write(&backwards, seed));
        mixed += usize::from(once.0.dropped > 0 && once.0.kept > 0);
        torn += once.0.torn;
    }
    // Three of four cuts take a part; one block of sixteen is torn in them.
    assert!(mixed > 32, "{mixed}");
    assert!((20..400).contains(&torn), "{torn}");
}

#[test]
fn all_shares_of_survivors_occur() {
    let shares: std::collections::BTreeSet<u64> = (0..4000).map(survivors).collect();
    assert!(shares.len() > 250, "{}", shares.len());
    let none = (0..4000).filter(|seed| survivors(*seed) == 0).count();
    assert!((400..700).contains(&none), "{none}");
}

#[test]
fn holes_and_what_a_flush_made_unneeded_take_no_space() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let size = 64 << 30;
    let mut layers = Layers::new(folder.path(), None, size, true).unwrap();
    let space = |file: &File| file.metadata().unwrap().blocks() * 512;
    // A disk of 64 GiB is wiped, twice, and loses power.
    layers.zero(0..size, false).unwrap();
    assert_eq!(layers.unflushed(), 0, "what is zero already is not changed");
    layers.write(0, &vec![1; 32 << 20], false).unwrap();
    layers.flush().unwrap();
    layers.zero(0..size, false).unwrap();
    assert_eq!(layers.unflushed(), (32 << 20) / BLOCK);
    assert!(space(&layers.overlay) < 1 << 20, "{}", space(&layers.overlay));
    assert!(space(&layers.undo) >= 32 << 20, "{}", space(&layers.undo));
    layers.flush().unwrap();
    assert!(space(&layers.undo) < 1 << 20, "{}", space(&layers.undo));
    // Holes are saved as holes.
    layers.zero(0..size, false).unwrap();
    assert!(space(&layers.undo) < 1 << 20, "{}", space(&layers.undo));
    layers.cut(seed_with(|share| share == 0)).unwrap();
    let mut part = vec![1; 1 << 20];
    layers.read(0, &mut part).unwrap();
    assert!(part.iter().all(|byte| *byte == 0));
}

#[test]
fn an_image_must_be_a_file() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Image::open(folder.path()).unwrap_err().to_string().contains("no regular file"));
    assert!(Image::open(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
}
