//! QEMU's own block layer is the client of the disks that kiln serves.

use std::path::Path;

use kiln::exec::{Command, Error, Tool};
use kiln::qemu::disk::{Cut, Export, Fault, Options};

use super::common::images;

const MIB: u64 = 1 << 20;

fn qemu(program: &str) -> Command {
    Tool::from_tree(&images::tools("qemu"), program).unwrap().command()
}

fn address(export: &Export) -> String {
    format!("nbd+unix:///?socket={}", export.socket().display())
}

/// `qemu-io` with `commands` one after the other; without `writeback` it would force each write to the medium.
fn io(export: &Export, commands: &[&str]) -> Result<(), Error> {
    let mut command = qemu("usr/bin/qemu-io").args(["-f", "raw", "-t", "writeback"]);
    for text in commands {
        command = command.args(["-c", text]);
    }
    command.arg(address(export)).run()
}

/// As [`io`], but the program crashes at the end; else it would flush.
fn io_and_crash(export: &Export, commands: &[&str]) {
    let error = io(export, &[commands, &["abort"]].concat()).unwrap_err();
    assert!(matches!(error, Error::Signal { signal: 6, .. }), "{error}");
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Bytes that are nowhere alike, with holes.
fn image(path: &Path) {
    let mut bytes = vec![0; 9 << 20];
    let mut state = 1_u32;
    for (at, byte) in bytes.iter_mut().enumerate() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if at >> 19 & 3 != 2 {
            *byte = state.to_be_bytes()[0];
        }
    }
    fs_err::write(path, &bytes).unwrap();
}

#[test]
fn qemu_img_reads_an_image_through_a_served_disk_and_writes_it_to_another() {
    let folder = folder();
    let raw = folder.path().join("image.raw");
    image(&raw);
    let before = fs_err::read(&raw).unwrap();
    let from =
        Export::serve(Options { size: Some(64 * MIB), ..Options::of_image(folder.path(), "from", &raw) })
            .unwrap();
    let to = Export::serve(Options::empty(folder.path(), "to", 64 * MIB)).unwrap();
    let compare =
        |a: &str, b: &str| qemu("usr/bin/qemu-img").args(["compare", "-f", "raw", "-F", "raw", a, b]).run();
    // Lengths differ, and what is beyond the shorter one is zero: qemu-img takes them for the same.
    compare(raw.to_str().unwrap(), &address(&from)).unwrap();
    compare(raw.to_str().unwrap(), &address(&to)).unwrap_err();
    qemu("usr/bin/qemu-img")
        .args(["convert", "-n", "-f", "raw", "-O", "raw", &address(&from), &address(&to)])
        .run()
        .unwrap();
    compare(raw.to_str().unwrap(), &address(&to)).unwrap();
    assert_eq!(to.unflushed(), 0, "qemu-img flushes at its end");
    io(&from, &["write -P 7 0 64k"]).unwrap();
    compare(raw.to_str().unwrap(), &address(&from)).unwrap_err();
    assert!(fs_err::read(&raw).unwrap() == before, "the image was written");
    assert_eq!((from.trouble(), to.trouble()), (None, None));
}

#[test]
fn a_power_cut_takes_from_qemu_what_it_did_not_flush() {
    let folder = folder();
    let export = Export::serve(Options::empty(folder.path(), "d", 64 * MIB)).unwrap();
    let (mut dropped, mut kept) = (0, 0);
    for seed in 0..12 {
        io_and_crash(
            &export,
            &[
                "write -z 0 16M",
                "write -P 1 0 1M",
                "write -P 2 8M 1M",
                "flush",
                "write -P 3 1M 1M",
                "write -P 4 8M 512k",
                "write -f -P 5 4M 1M",
                "discard 9M 1M",
            ],
        );
        let cut = export.power_cut(seed).unwrap();
        dropped += cut.dropped;
        kept += cut.kept;
        io(
            &export,
            &[
                "read -P 1 0 1M",
                "read -P 2 8704k 512k",
                "read -P 5 4M 1M",
                "read -P 0 9M 7M",
                "read -P 0 2M 2M",
            ],
        )
        .unwrap_or_else(|e| panic!("seed {seed}, {cut:?}: {e}"));
    }
    assert!(dropped > 100 && kept > 100, "{dropped} blocks were dropped, {kept} kept");
}

#[test]
fn qemu_flushes_at_an_orderly_end_and_nothing_is_lost() {
    let folder = folder();
    let export = Export::serve(Options::empty(folder.path(), "d", MIB)).unwrap();
    io(&export, &["write -P 1 0 1M"]).unwrap();
    for seed in 0..20 {
        assert_eq!(export.power_cut(seed).unwrap(), Cut::default());
    }
    io(&export, &["read -P 1 0 1M"]).unwrap();
}

#[test]
fn qemu_sees_injected_faults_and_damage() {
    let folder = folder();
    let options = Options { block_size: 4096, ..Options::empty(folder.path(), "d", MIB) };
    let export = Export::serve(options).unwrap();
    io(&export, &["write -P 1 0 1M"]).unwrap();
    export.flip(70_000, 1);
    io(&export, &["read -P 1 0 64k"]).unwrap();
    io(&export, &["read -P 1 64k 64k"]).unwrap_err();
    for (fault, command) in [
        (Fault::ReadError(0..1), "read 0 4k"),
        (Fault::WriteError(4096..4097), "write 4k 4k"),
        (Fault::NoSpace { from: 8192 }, "write 8k 4k"),
    ] {
        export.inject(fault);
        let error = io(&export, &[command]).unwrap_err();
        assert!(matches!(error, Error::Exit { code: 1, .. }), "{error}");
        export.heal();
        io(&export, &[command]).unwrap();
    }
}
