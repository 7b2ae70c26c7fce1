//! [`Check::Disk`](crate::scenario::spec::Check::Disk): what first boot made of the disk.

use super::{Facts, Known, Verdict};
use crate::rootfs;
use crate::scenario::spec::Node;

pub(super) const SCRIPT: &str = r#"
part=$(readlink -f /dev/kiln/var)
disk=$(readlink -f "/sys/class/block/${part##*/}/..")
disk=${disk##*/}
bytes=$(($(cat "/sys/class/block/$disk/size") * 512))
block=$(cat "/sys/class/block/$disk/queue/logical_block_size")
echo "size $bytes"
for number in /sys/class/block/$disk/*/partition; do
  one=${number%/partition}
  # The kernel does not learn the names of partitions that systemd-repart adds; udev does.
  echo "part $(($(cat "$one/start") * 512)) $(($(cat "$one/size") * 512)) $(lsblk -ndo PARTLABEL "/dev/${one##*/}")"
done
echo "backup $(dd "if=/dev/$disk" "bs=$block" "skip=$((bytes / block - 1))" count=1 2>/dev/null | head -c 8)"
for word in $(cat /proc/cmdline); do
  case $word in roothash=*) echo "roothash ${word#roothash=}" ;; esac
done
echo "fs $(findmnt -no FSTYPE /var) $(($(stat -f -c '%S * %b' /var)))"
"#;

/// What may be left free: alignment, and both copies of the GPT.
const SPARE: u64 = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Part<'a> {
    start: u64,
    size: u64,
    label: &'a str,
}

fn part(text: &str) -> Option<Part<'_>> {
    let mut words = text.splitn(3, ' ');
    let mut number = || words.next()?.parse::<u64>().ok();
    let (start, size) = (number()?, number()?);
    start.checked_add(size)?;
    Some(Part { start, size, label: words.next().unwrap_or("") })
}

pub(super) fn judge(known: &Known<'_>, node: &Node, facts: &Facts<'_>, verdict: &mut Verdict) {
    let name = &node.name;
    let whole = node.disks.first().map_or(0, |disk| disk.size.bytes());
    verdict.equal(name, "a disk of", &whole.to_string(), facts.one("size"));
    verdict.equal(name, "at the end of the disk, a backup", "EFI PART", facts.one("backup"));
    let mut parts: Vec<Part<'_>> = facts.all("part").filter_map(part).collect();
    parts.sort();
    let list =
        || parts.iter().map(|p| format!("{} {} {}", p.start, p.size, p.label)).collect::<Vec<_>>().join(", ");
    for (one, next) in parts.iter().zip(parts.iter().skip(1)) {
        if one.start + one.size > next.start {
            verdict.wrong(name, format!("{} ends before {} begins", one.label, next.label), list());
        }
    }
    let short = facts.one("roothash").get(..16).unwrap_or("?");
    let labels = ["esp".to_owned(), format!("verity-{short}"), format!("root-{short}"), "var".to_owned()];
    let sizes = |label: &str| parts.iter().filter(|p| p.label == label).map(|p| p.size).collect::<Vec<_>>();
    for label in &labels {
        if sizes(label).len() != 1 {
            verdict.wrong(name, format!("one partition `{label}`"), list());
        }
    }
    if let Some(slot) = known.profiles.get(name).and_then(|profile| rootfs::slot(profile).ok()) {
        let mut empty = sizes("_empty");
        empty.sort_unstable();
        if empty != [rootfs::state::verity_slot(slot), slot.bytes()] {
            verdict.wrong(name, format!("an empty slot of {slot} with its hash partition"), list());
        }
        if sizes(&format!("root-{short}")) != [slot.bytes()] {
            verdict.wrong(name, format!("a root that has grown to {slot}"), list());
        }
    }
    let used: u64 = parts.iter().map(|p| p.size).fold(0, u64::saturating_add);
    if used.saturating_add(SPARE) < whole {
        verdict.wrong(name, "partitions that fill the disk", format!("{used} of {whole} bytes"));
    }
    // ext4 keeps some for itself: inode tables and the journal are a twentieth of 1 GiB.
    let var = sizes("var").first().copied().unwrap_or(0);
    let (kind, bytes) = facts.one("fs").split_once(' ').unwrap_or(("", ""));
    if kind != "ext4" || bytes.parse::<u64>().unwrap_or(0) < var / 10 * 9 {
        verdict.wrong(name, format!("an ext4 on /var that fills its {var} bytes"), facts.one("fs"));
    }
}
