//! Disks to write to and a small image to write.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use kiln::image::disk::{self, Slot};
use kiln::image::fat::{self, FileSystem};
use kiln::image::gpt::{self, Wanted};
use kiln::tree::TreePath;
use rustix::process::{Pid, Signal, kill_process};

use crate::common::run::{Env, command, is_root, skipped};
pub(crate) use crate::common::tools::{has, host, tool};

/// A loop device over a sparse file; detached when dropped.
#[derive(Debug)]
pub(crate) struct Loop {
    pub(crate) path: String,
    pub(crate) file: PathBuf,
}

impl Loop {
    /// `None`, and said why, where there can be none.
    pub(crate) fn new(env: &Env, name: &str, mib: u64, sector: u32) -> Option<Self> {
        if !is_root() || !has("losetup") || !Path::new("/dev/loop-control").exists() {
            skipped("loop devices need root, losetup and the loop driver");
            return None;
        }
        let file = env.path(name);
        let disk = fs_err::OpenOptions::new().create(true).truncate(false).write(true).open(&file).unwrap();
        disk.set_len(mib << 20).unwrap();
        Self::over(&file, sector)
    }

    /// Over a file that is there.
    pub(crate) fn over(file: &Path, sector: u32) -> Option<Self> {
        Self::attach(file, &["--sector-size", &sector.to_string()])
    }

    /// Every read and write of which is one of the file's, past the page cache that lies between the two.
    pub(crate) fn past_cache(file: &Path) -> Option<Self> {
        Self::attach(file, &["--direct-io=on"])
    }

    fn attach(file: &Path, options: &[&str]) -> Option<Self> {
        let args = [&["--find", "--show", "--partscan"], options, &[file.to_str().unwrap()]].concat();
        let run = host("losetup", &args);
        Some(Loop { path: run.stdout.trim().to_owned(), file: file.to_owned() })
    }

    /// As in `loop3`, which is what a person types for a disk without a serial number.
    pub(crate) fn name(&self) -> &str {
        self.path.strip_prefix("/dev/").unwrap()
    }

    /// All bytes; a large disk is read by [`Loop::at`].
    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs_err::read(&self.file).unwrap()
    }

    pub(crate) fn at(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let file = fs_err::File::open(&self.file).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(file.file(), &mut bytes, offset).unwrap();
        bytes
    }

    pub(crate) fn size(&self) -> u64 {
        fs_err::metadata(&self.file).unwrap().len()
    }

    /// Whether firmware would find anything to start.
    pub(crate) fn boots(&self, sector: u64) -> bool {
        let table = |at: u64| self.at(at, 8) == b"EFI PART";
        self.at(510, 2) == [0x55, 0xAA] || table(sector) || table(self.size() - sector)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        command("losetup").args(["--detach", &self.path]).output().ok();
    }
}

/// A host command that is run when this is dropped, so that a test that fails leaves no mount.
#[derive(Debug)]
pub(crate) struct After(Vec<String>);

impl After {
    pub(crate) fn new(words: &[&str]) -> Self {
        After(words.iter().map(|word| (*word).to_owned()).collect())
    }
}

impl Drop for After {
    fn drop(&mut self) {
        command(&self.0[0]).args(&self.0[1..]).output().ok();
    }
}

/// A file whose sector 300000 fails, by QEMU's blkdebug behind FUSE.
#[derive(Debug)]
pub(crate) struct Failing {
    pub(crate) file: PathBuf,
    daemon: Child,
}

impl Failing {
    /// One on which `kind`, `read` or `write`, fails; `None`, and said why, where QEMU or FUSE is not there.
    pub(crate) fn new(env: &Env, kind: &str, mib: u64) -> Option<Self> {
        if !is_root() || !has("qemu-storage-daemon") || !Path::new("/dev/fuse").exists() {
            skipped("errors of a device are injected by qemu-storage-daemon over FUSE, as root");
            return None;
        }
        let (raw, file) = (env.path(&format!("{kind}.raw")), env.path(&format!("{kind}.disk")));
        fs_err::File::create(&raw).unwrap().set_len(mib << 20).unwrap();
        fs_err::write(&file, "").unwrap();
        let rule = serde_json::json!({ "event": "none", "iotype": kind, "errno": 5, "sector": 300_000, "once": false });
        let node = serde_json::json!({ "node-name": "d", "driver": "blkdebug", "image": "f", "inject-error": [rule] });
        let daemon = tool("qemu-storage-daemon")
            .args(["--blockdev", &format!("node-name=f,driver=file,filename={}", raw.display())])
            .args(["--blockdev", &node.to_string()])
            .args([
                "--export",
                &format!("type=fuse,id=e,node-name=d,mountpoint={},writable=on", file.display()),
            ])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut failing = Failing { file, daemon };
        let end = Instant::now() + Duration::from_secs(20);
        while fs_err::metadata(&failing.file).map_or(0, |meta| meta.len()) == 0 {
            if failing.daemon.try_wait().unwrap().is_some() || Instant::now() > end {
                skipped("this qemu-storage-daemon exports nothing over FUSE");
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(failing)
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        // Asked to end, it unmounts.
        kill_process(Pid::from_child(&self.daemon), Signal::TERM).ok();
        self.daemon.wait().ok();
    }
}

/// A small image beside its manifest, `out/server.raw` of `env`: an ESP of 66 MiB, a hash tree with a hole, `root` MiB of noise.
pub(crate) fn image(env: &Env, root: usize) -> PathBuf {
    let out = env.project().join("out");
    fs_err::create_dir_all(&out).unwrap();
    let part = |name: &str, bytes: &[u8]| {
        env.write(name, bytes);
        env.path(name)
    };
    let mut esp = Cursor::new(vec![0; 66 << 20]);
    let uki = (TreePath::new("EFI/Linux/kiln_20260101-abc+3.efi").unwrap(), fat::Source::Bytes(noise(5)));
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
    let mut hash = vec![0; 3 << 20];
    hash[..8192].fill(7);
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
        slot(gpt::ESP, "esp", part("tmp/esp", esp.get_ref())),
        slot(gpt::ROOT_VERITY_X86_64, "verity-0123", part("tmp/hash", &hash)),
        slot(gpt::ROOT_X86_64, "root-0123", part("tmp/root", &noise(root))),
    ];
    let raw = out.join("server.raw");
    let file =
        fs_err::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&raw).unwrap();
    let written = disk::write(uuid::Uuid::from_u128(8), 512, &slots, file.file()).unwrap();
    let partitions: Vec<_> = written
        .table
        .partitions
        .iter()
        .map(|p| serde_json::json!({ "name": p.name, "kind": p.kind.to_string(), "guid": p.guid.to_string(), "offset": p.offset, "size": p.size }))
        .collect();
    let digest = written.digest.to_string();
    let manifest = serde_json::json!({
        "schema": 1, "kiln": "0.1.0", "profile": "server", "role": "server", "arch": "amd64", "version": "20260101-abc",
        "epoch": 1_700_000_000, "root_hash": digest, "uki": digest, "cmdline": [], "kernel": "6.12", "modules": 0,
        "disk": { "file": "server.raw", "size": written.table.size, "sha256": digest, "partitions": partitions },
        "sizes": { "root": 0, "root_metadata": 0, "files": 0, "uki": 0, "initrd": 0 },
        "packages": {}, "boot": {}, "suites": {}, "units": [], "steps": {}, "notes": [],
    });
    env.write("project/out/server.json", manifest.to_string());
    env.write("project/out/server.files.json", "{}");
    raw
}

/// MiB of bytes that no file system and no compression makes small.
pub(crate) fn noise(mib: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ mib as u64;
    let mut bytes = Vec::with_capacity(mib << 20);
    while bytes.len() < mib << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}
