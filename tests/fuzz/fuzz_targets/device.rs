//! What the kernel tells of a disk: vital product data and texts come from the disk itself, mount points from whoever mounts. Parts of the input are
//! parted by a line `--`.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

mod file;

use kiln::deploy::flash::claim::{Candidate, Wish, table};
use kiln::deploy::flash::device::Machine;
use libfuzzer_sys::fuzz_target;

/// Files of a made-up machine, in the order of the parts.
const FILES: [&str; 9] = [
    "sys/block/sda/device/vpd_pg83",
    "sys/block/sda/device/vpd_pg80",
    "sys/block/sda/device/wwid",
    "sys/block/sda/size",
    "sys/block/sda/sda1/start",
    "sys/block/sda/device/model",
    "proc/self/mountinfo",
    "proc/swaps",
    "run/udev/data/b8:0",
];

fuzz_target!(|data: &[u8]| {
    let root = file::folder();
    let write = |path: &str, bytes: &[u8]| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("it is below the root")).expect("memory is there");
        std::fs::write(path, bytes).expect("memory is there");
    };
    write("sys/block/sda/dev", b"8:0");
    write("sys/block/sda/sda1/dev", b"8:1");
    write("sys/block/sda/sda1/partition", b"1");
    write("sys/block/sda/sda1/size", b"99999999999999999999");
    let mut rest = data;
    for path in FILES {
        let end = rest.windows(4).position(|window| window == b"\n--\n").unwrap_or(rest.len());
        write(path, &rest[..end]);
        rest = rest.get(end + 4..).unwrap_or_default();
    }
    for disk in Machine::at(&root).disks() {
        let candidate = Candidate { disk, holds: Vec::new(), unread: None };
        let _ = (candidate.objections(&Wish::default()), candidate.summary());
        assert!(table(&[candidate], None).iter().all(|line| !line.contains(['\n', '\u{1b}'])));
    }
});
