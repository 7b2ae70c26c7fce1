//! Where the parts of an image go on a disk.
//!
//! On a disk with sectors of 512 bytes every partition keeps its place, and only the table's end moves. On one with sectors of 4096
//! bytes (4Kn) the table is written anew in those sectors, and the ESP is made larger, for FAT32 needs 65525 clusters of at least one
//! sector; what follows it moves along. The root is found by its name and its hash, so its place does not matter.
//!
//! With `--keep-state` what stood behind the place of the image stays: `/var` as it is, and the second slot, emptied.

use uuid::Uuid;

use super::source::HEAD;
use crate::error::{Failure, Kind};
use crate::image::gpt::{self, ALIGNMENT, Partition, Table};
use crate::ui::human_bytes;

/// The least ESP with sectors of 4096 bytes.
const LARGE_ESP: u64 = 260 << 20;

/// A stretch of the image and its place on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    /// First byte in the image.
    pub(super) from: u64,
    /// First byte on the disk.
    pub(super) to: u64,
    /// Bytes of it in the image.
    pub(super) length: u64,
    /// Bytes of it on the disk; other than [`Move::length`] for the ESP alone.
    pub(super) room: u64,
    /// Whether it is the ESP.
    pub(super) esp: bool,
}

/// What a disk will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// Its table.
    pub(super) table: Table,
    /// What is copied, in the order of the image.
    pub(super) moves: Vec<Move>,
    /// The first byte behind what is copied.
    pub(super) end: u64,
    /// Whether something behind that stays.
    pub(super) keeps: bool,
}

/// Plans for a disk of `size` bytes with `sector` the image whose table is `image`. `old` is the disk's own table, if its state is to
/// be kept. `name` is the disk, for errors.
pub(super) fn plan(
    image: &Table,
    size: u64,
    sector: u32,
    old: Option<&Table>,
    name: &str,
) -> Result<Layout, Failure> {
    if sector != 512 && sector != 4096 {
        let text = format!("{name} has sectors of {sector} bytes: only 512 and 4096 are known");
        return Err(Failure::new(Kind::Store, text)
            .hint("format it for one of these, as `sg_format` does, or take another disk"));
    }
    let mut parts = image.partitions.clone();
    parts.sort_by_key(|part| part.offset);
    let mut moves = Vec::new();
    let mut shift = 0;
    for part in &mut parts {
        let esp = part.kind == gpt::ESP;
        let (from, length) = (part.offset, part.size);
        if from < HEAD || !from.is_multiple_of(ALIGNMENT) || !length.is_multiple_of(ALIGNMENT) {
            let what = format!("partition `{}` of the image is not aligned to 1 MiB", part.name);
            return Err(Failure::new(Kind::Input, what).hint("build it again with this kiln"));
        }
        part.offset += shift;
        if esp && sector > image.sector && length < LARGE_ESP {
            part.size = LARGE_ESP;
            shift += LARGE_ESP - length;
        }
        moves.push(Move { from, to: part.offset, length, room: part.size, esp });
    }
    let end = parts.last().map_or(HEAD, |part| part.offset + part.size);
    if end + ALIGNMENT > size {
        return Err(too_small(name, size, end + ALIGNMENT, "the image"));
    }
    let kept = old.map(|old| kept(old, end, size, &parts, name)).transpose()?;
    let keeps = kept.is_some();
    parts.extend(kept.unwrap_or_default());
    Ok(Layout { table: Table { guid: image.guid, sector, size, partitions: parts }, moves, end, keeps })
}

/// What to do about a disk that has no room.
pub(super) const SMALL: &str = "take a larger disk, or make slot or var smaller in [disk] of the profile";

/// The refusal of a disk that has no room.
pub(super) fn too_small(name: &str, size: u64, needed: u64, what: &str) -> Failure {
    let text = format!(
        "{name} is too small: it has {} ({size} bytes), {what} needs {} ({needed} bytes)",
        human_bytes(size),
        human_bytes(needed)
    );
    Failure::new(Kind::Store, text).hint(SMALL)
}

/// The partitions of a node's disk that stay: those behind the image, `/var` among them.
fn kept(old: &Table, end: u64, size: u64, new: &[Partition], name: &str) -> Result<Vec<Partition>, Failure> {
    let refuse = |why: String| {
        Failure::new(Kind::Store, format!("the state on {name} cannot be kept: {why}"))
            .hint("without --keep-state the whole disk is written anew, and what is on /var is lost")
    };
    let is = |part: &Partition, kinds: &[Uuid]| kinds.contains(&part.kind);
    let slots = [gpt::ROOT_X86_64, gpt::ROOT_VERITY_X86_64, gpt::ROOT_ARM64, gpt::ROOT_VERITY_ARM64];
    let mut parts = old.partitions.clone();
    parts.sort_by_key(|part| part.offset);
    let (first, rest): (Vec<_>, Vec<_>) = parts.into_iter().partition(|part| part.offset < end);
    if let Some(other) = first.iter().find(|part| part.kind != gpt::ESP && !is(part, &slots)) {
        return Err(refuse(format!("the new image would lie over the partition `{}`", other.name)));
    }
    // The three that the image brings, and no others: a second slot in their place would be cut in half.
    if first.len() != new.len() || first.first().is_none_or(|part| part.kind != gpt::ESP) {
        return Err(refuse(format!(
            "{} partitions lie where the image has {}, so it is no disk of a node, or the image needs more room than its slot has",
            first.len(),
            new.len()
        )));
    }
    let vars: Vec<&Partition> = rest.iter().filter(|part| part.kind == gpt::VAR).collect();
    if vars.len() != 1 {
        return Err(refuse(format!(
            "there are {} partitions of the type of /var, and one is needed",
            vars.len()
        )));
    }
    if let Some(other) = rest.iter().find(|part| part.kind != gpt::VAR && !is(part, &slots)) {
        return Err(refuse(format!("partition `{}` is none of a node", other.name)));
    }
    let last = rest.iter().map(|part| part.offset + part.size).max().unwrap_or(end);
    let room = Table { size, ..old.clone() };
    if last > room.backup().0 {
        return Err(refuse("its partitions end behind the end of the disk".to_owned()));
    }
    Ok(rest
        .into_iter()
        .map(|part| {
            if part.kind == gpt::VAR {
                return part;
            }
            // What the second slot held has no entry in the new boot loader. `_empty` is systemd-sysupdate's word for that. It could be
            // the very version that is written now, and two partitions must not have one GUID.
            let twice = new.iter().any(|other| other.guid == part.guid);
            let guid = if twice { Uuid::new_v5(&part.guid, b"second slot") } else { part.guid };
            Partition { guid, name: "_empty".to_owned(), ..part }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;

    const MIB: u64 = 1 << 20;

    fn part(kind: Uuid, name: &str, offset: u64, size: u64) -> Partition {
        let guid = Uuid::new_v5(&kind, name.as_bytes());
        Partition {
            kind,
            guid,
            name: name.to_owned(),
            offset: offset * MIB,
            size: size * MIB,
            attributes: 1 << 60,
        }
    }

    fn image() -> Table {
        let partitions = vec![
            part(gpt::ESP, "esp", 1, 96),
            part(gpt::ROOT_VERITY_X86_64, "verity-new", 97, 17),
            part(gpt::ROOT_X86_64, "root-new", 114, 200),
        ];
        Table { guid: Uuid::from_u128(7), sector: 512, size: 315 * MIB, partitions }
    }

    /// The disk of a node that has run: its root grew, the second slot and /var are there.
    fn node() -> Table {
        let partitions = vec![
            part(gpt::ESP, "esp", 1, 96),
            part(gpt::ROOT_VERITY_X86_64, "verity-old", 97, 17),
            part(gpt::ROOT_X86_64, "root-old", 114, 2048),
            part(gpt::ROOT_VERITY_X86_64, "verity-b", 2162, 17),
            part(gpt::ROOT_X86_64, "root-b", 2179, 2048),
            part(gpt::VAR, "var", 4227, 1000),
        ];
        Table { guid: Uuid::from_u128(9), sector: 512, size: 6000 * MIB, partitions }
    }

    #[test]
    fn parts_keep_their_places_on_a_disk_of_the_same_sectors() {
        let layout = plan(&image(), 1000 * MIB, 512, None, "sda").unwrap();
        assert_eq!(layout.table, Table { size: 1000 * MIB, ..image() });
        assert!(layout.moves.iter().all(|it| it.from == it.to && it.length == it.room));
        assert_eq!(layout.moves.iter().map(|it| it.esp).collect::<Vec<_>>(), [true, false, false]);
    }

    #[test]
    fn on_4kn_the_esp_grows_and_the_rest_moves_along() {
        let layout = plan(&image(), 1000 * MIB, 4096, None, "sda").unwrap();
        let places: Vec<_> = layout.table.partitions.iter().map(|p| (p.offset / MIB, p.size / MIB)).collect();
        assert_eq!(places, [(1, 260), (261, 17), (278, 200)]);
        let moves: Vec<_> = layout
            .moves
            .iter()
            .map(|it| (it.from / MIB, it.to / MIB, it.length / MIB, it.room / MIB))
            .collect();
        assert_eq!(moves, [(1, 1, 96, 260), (97, 261, 17, 17), (114, 278, 200, 200)]);
    }

    #[test]
    fn a_disk_that_is_too_small_is_refused_with_both_sizes() {
        let error = plan(&image(), 314 * MIB, 512, None, "/dev/sda").unwrap_err().to_string();
        assert!(
            error.contains("/dev/sda is too small") && error.contains(&(315 * MIB).to_string()),
            "{error}"
        );
        assert!(plan(&image(), 315 * MIB, 512, None, "sda").is_ok());
        assert!(plan(&image(), 315 * MIB, 4096, None, "sda").is_err());
        assert!(
            plan(&image(), 999 * MIB, 520, None, "sda")
                .unwrap_err()
                .to_string()
                .contains("sectors of 520 bytes")
        );
    }

    #[test]
    fn the_state_of_a_node_keeps_its_place_and_the_second_slot_is_emptied() {
        let layout = plan(&image(), 6000 * MIB, 512, Some(&node()), "sda").unwrap();
        let parts = &layout.table.partitions;
        assert_eq!(parts[5], node().partitions[5]);
        assert_eq!((parts[3].name.as_str(), parts[4].name.as_str()), ("_empty", "_empty"));
        assert_eq!((parts[4].guid, parts[4].offset), (node().partitions[4].guid, 2179 * MIB));
        // The version that was in the second slot is written to the first.
        let mut twice = node();
        twice.partitions[4].guid = image().partitions[2].guid;
        let layout = plan(&image(), 6000 * MIB, 512, Some(&twice), "sda").unwrap();
        let guids: std::collections::BTreeSet<_> = layout.table.partitions.iter().map(|p| p.guid).collect();
        assert_eq!(guids.len(), 6);
    }

    #[test]
    fn state_that_is_none_of_a_node_or_in_the_way_is_refused() {
        let refused = |change: &dyn Fn(&mut Table, &mut Table)| {
            let (mut image, mut node) = (image(), node());
            change(&mut image, &mut node);
            let error = plan(&image, 6000 * MIB, 512, Some(&node), "sda").unwrap_err();
            assert!(report(&anyhow::Error::from(error)).hints[0].contains("--keep-state"));
            plan(&image, 6000 * MIB, 512, Some(&node), "sda").unwrap_err().to_string()
        };
        assert!(refused(&|_, node| drop(node.partitions.pop())).contains("0 partitions of the type of /var"));
        assert!(refused(&|_, node| node.partitions[1].kind = gpt::LINUX_DATA).contains("would lie over"));
        assert!(refused(&|_, node| node.partitions[4].kind = gpt::LINUX_DATA).contains("is none of a node"));
        assert!(
            refused(&|image, _| image.partitions[2].size = 2100 * MIB).contains("more room than its slot")
        );
        assert!(refused(&|_, node| node.partitions.truncate(0)).contains("no disk of a node"));
        assert!(refused(&|_, node| node.partitions[5].size = 9000 * MIB).contains("behind the end"));
    }
}
