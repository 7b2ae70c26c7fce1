//! Where two disks differ: the table, files of the ESP down to the sections of a UKI, else the first byte of a partition.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};
use fs_err as fs;
use object::read::pe::PeFile64;
use object::{Object, ObjectSection};

use super::Finding;
use crate::digest::Digest;
use crate::image::fat::Reader;
use crate::image::gpt::{self, Partition, Table};
use crate::sys;

/// Bytes compared at once.
const CHUNK: usize = 1 << 20;

/// Compares two raw disks. Empty if they have the same bytes.
pub fn disks(first: &Path, second: &Path) -> Result<Vec<Finding>> {
    let mut open = [fs::File::open(first)?, fs::File::open(second)?];
    let lens = [open[0].metadata()?.len(), open[1].metadata()?.len()];
    if lens[0] != lens[1] {
        return Ok(vec![finding("disk", "", "length", lens[0], lens[1])]);
    }
    let Some(at) = differs(&mut open, 0, lens[0])? else { return Ok(Vec::new()) };
    let mut tables = Vec::new();
    for (file, path) in open.iter_mut().zip([first, second]) {
        tables.push(
            gpt::read(file, 512).with_context(|| format!("reading the partitions of {}", path.display()))?,
        );
    }
    let mut findings = table(&tables[0], &tables[1]);
    if !findings.is_empty() {
        return Ok(findings);
    }
    for partition in &tables[0].partitions {
        sys::check_interrupt()?;
        let Some(at) = differs(&mut open, partition.offset, partition.size)? else { continue };
        let found = if partition.kind == gpt::ESP { esp(&open, partition)? } else { Vec::new() };
        if found.is_empty() {
            let field = format!("byte {at} of partition {}", partition.name);
            let [a, b] = bytes(&mut open, partition.offset + at)?;
            findings.push(finding(step(partition), "", &field, a, b));
        } else {
            findings.extend(found);
        }
    }
    if findings.is_empty() {
        let [a, b] = bytes(&mut open, at)?;
        findings.push(finding("disk", "", &format!("byte {at}, outside of all partitions,"), a, b));
    }
    Ok(findings)
}

fn finding(step: &str, file: &str, field: &str, first: impl ToString, second: impl ToString) -> Finding {
    Finding {
        step: step.to_owned(),
        name: String::new(),
        file: file.to_owned(),
        field: field.to_owned(),
        first: first.to_string(),
        second: second.to_string(),
    }
}

fn step(partition: &Partition) -> &'static str {
    if partition.kind == gpt::ESP { "boot" } else { "root" }
}

/// The first offset, counted from `from`, at which `len` bytes differ.
fn differs(files: &mut [fs::File; 2], from: u64, len: u64) -> io::Result<Option<u64>> {
    let mut buffers = [vec![0; CHUNK], vec![0; CHUNK]];
    let mut at = 0;
    while at < len {
        let n = usize::try_from(len - at).unwrap_or(CHUNK).min(CHUNK);
        for (file, buffer) in files.iter_mut().zip(&mut buffers) {
            file.seek(SeekFrom::Start(from + at))?;
            file.read_exact(&mut buffer[..n])?;
        }
        let [a, b] = &buffers;
        if a[..n] != b[..n] {
            let inside = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(0);
            return Ok(Some(at + inside as u64));
        }
        at += n as u64;
    }
    Ok(None)
}

fn bytes(files: &mut [fs::File; 2], at: u64) -> io::Result<[String; 2]> {
    let mut found = [0_u8; 2];
    for (file, byte) in files.iter_mut().zip(&mut found) {
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(std::slice::from_mut(byte))?;
    }
    Ok(found.map(|b| format!("{b:#04x}")))
}

fn table(a: &Table, b: &Table) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut compare = |field: String, first: String, second: String| {
        if first != second {
            findings.push(finding("disk", "", &field, first, second));
        }
    };
    compare("the disk's GUID".to_owned(), a.guid.to_string(), b.guid.to_string());
    compare(
        "number of partitions".to_owned(),
        a.partitions.len().to_string(),
        b.partitions.len().to_string(),
    );
    for (index, (p, q)) in a.partitions.iter().zip(&b.partitions).enumerate() {
        let mut field = |what: &str, first: String, second: String| {
            compare(format!("{what} of partition {}", index + 1), first, second);
        };
        field("name", p.name.clone(), q.name.clone());
        field("type", p.kind.to_string(), q.kind.to_string());
        field("GUID", p.guid.to_string(), q.guid.to_string());
        field("offset", p.offset.to_string(), q.offset.to_string());
        field("size", p.size.to_string(), q.size.to_string());
        field("attributes", p.attributes.to_string(), q.attributes.to_string());
    }
    findings
}

/// Differences of two ESPs by file; for EFI programs by section.
fn esp(files: &[fs::File; 2], partition: &Partition) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut readers = Vec::new();
    for file in files {
        let part =
            Part { file: file.file().try_clone()?, offset: partition.offset, size: partition.size, at: 0 };
        readers.push(Reader::new(part).context("reading the ESP")?);
    }
    let [a, b] = &mut readers[..] else { return Ok(findings) };
    let (in_a, in_b) = (paths(a)?, paths(b)?);
    for path in in_a.iter().chain(in_b.iter().filter(|path| !in_a.contains(path))) {
        match (in_a.contains(path), in_b.contains(path)) {
            (true, true) => {
                let (one, two) = (a.read(path)?, b.read(path)?);
                if one != two {
                    findings.extend(program(path, &one, &two));
                }
            }
            (there, _) => {
                let word = |there| if there { "there" } else { "missing" };
                findings.push(finding("boot", path, "the file", word(there), word(!there)));
            }
        }
    }
    if findings.is_empty() && (a.serial, &a.label) != (b.serial, &b.label) {
        let text = |r: &Reader<Part>| format!("{:08x} {}", r.serial, r.label);
        findings.push(finding("boot", "", "serial number and label of the ESP", text(a), text(b)));
    }
    Ok(findings)
}

fn paths(reader: &mut Reader<Part>) -> Result<Vec<String>> {
    Ok(reader.list()?.into_iter().filter(|node| !node.directory).map(|node| node.path).collect())
}

/// The sections of an EFI program that differ, or the whole file if that is no program or none does.
fn program(path: &str, one: &[u8], two: &[u8]) -> Vec<Finding> {
    let digest = |bytes: &[u8]| format!("sha256:{}", Digest::of(bytes).short());
    let mut findings = Vec::new();
    if let (Ok(a), Ok(b)) = (PeFile64::parse(one), PeFile64::parse(two)) {
        for section in a.sections() {
            let Ok(name) = section.name() else { continue };
            let (x, y) = (section.data().unwrap_or_default(), b.section_by_name(name));
            let y = y.as_ref().and_then(|s| s.data().ok()).unwrap_or_default();
            if x != y {
                let step = match name {
                    ".initrd" => "initrd",
                    ".linux" | ".uname" => "kernel",
                    _ => "boot",
                };
                findings.push(finding(step, path, &format!("section {name}"), digest(x), digest(y)));
            }
        }
    }
    if findings.is_empty() {
        findings.push(finding("boot", path, "its bytes", digest(one), digest(two)));
    }
    findings
}

/// A stretch of a file, as a file of its own.
#[derive(Debug)]
struct Part {
    file: std::fs::File,
    offset: u64,
    size: u64,
    at: u64,
}

impl Read for Part {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let n = buf.len().min(left);
        let n = std::os::unix::fs::FileExt::read_at(&self.file, &mut buf[..n], self.offset + self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Part {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::disk::{self, Node, Slot};
    use crate::image::fat;
    use crate::image::verity::RootHash;
    use crate::tree::TreePath;
    use std::os::unix::fs::FileExt;

    /// A disk with an ESP of these files, a hash tree and a root.
    fn disk(dir: &Path, name: &str, esp: &[(&str, &[u8])], root: &[u8]) -> std::path::PathBuf {
        let path = |part: &str| dir.join(format!("{name}.{part}"));
        let files = esp
            .iter()
            .map(|(path, bytes)| (TreePath::new(path).unwrap(), fat::Source::Bytes(bytes.to_vec())));
        let system = fat::FileSystem {
            size: 40 << 20,
            sector: 512,
            serial: 7,
            label: "ESP".to_owned(),
            epoch: 1_700_000_000,
            files: files.collect(),
        };
        let mut out = fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(path("esp"))
            .unwrap();
        fat::write(&system, &mut out).unwrap();
        fs::write(path("verity"), [1; 4096]).unwrap();
        fs::write(path("root"), root).unwrap();
        let node = Node {
            architecture: disk::Architecture::X86_64,
            root_hash: RootHash::new(Digest::of(b"root")),
            esp: path("esp"),
            verity: path("verity"),
            root: path("root"),
            verity_size: 0,
            root_size: 0,
        };
        let (guid, slots): (_, Vec<Slot>) = disk::node_slots(&node);
        let raw = path("raw");
        disk::write(guid, 512, &slots, fs::File::create(&raw).unwrap().file()).unwrap();
        raw
    }

    fn lines(first: &Path, second: &Path) -> Vec<String> {
        disks(first, second).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn files_of_the_esp_and_bytes_of_the_root_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let first =
            disk(dir.path(), "a", &[("loader/loader.conf", b"timeout 0"), ("a.efi", b"one")], &[0; 8192]);
        let same =
            disk(dir.path(), "b", &[("loader/loader.conf", b"timeout 0"), ("a.efi", b"one")], &[0; 8192]);
        assert_eq!(lines(&first, &same), Vec::<String>::new());
        let mut root = [0; 8192];
        root[5000] = 9;
        let other = disk(dir.path(), "c", &[("loader/loader.conf", b"timeout 1"), ("b.efi", b"one")], &root);
        let (name, sha) = ("root-", |text: &[u8]| format!("sha256:{}", Digest::of(text).short()));
        let found = lines(&first, &other);
        let conf = found.iter().find(|l| l.contains("loader.conf")).unwrap();
        assert_eq!(
            *conf,
            format!(
                "step boot, loader/loader.conf: its bytes {} -> {}",
                sha(b"timeout 0"),
                sha(b"timeout 1")
            )
        );
        assert!(found.iter().any(|l| l == "step boot, a.efi: the file there -> missing"), "{found:?}");
        assert!(found.iter().any(|l| l == "step boot, b.efi: the file missing -> there"), "{found:?}");
        let last = found.last().unwrap();
        assert!(last.starts_with(&format!("step root: byte 5000 of partition {name}")), "{last}");
        assert!(last.ends_with("0x00 -> 0x09"), "{last}");
    }

    #[test]
    fn a_uki_is_told_by_section() {
        let uki = |initrd: &[u8], cmdline: &str| {
            let pe = crate::image::uki::tests::small_pe(0x8664, 1024);
            let parts = crate::image::uki::Parts {
                stub: &pe,
                os_release: "ID=debian\n",
                cmdline,
                uname: "6.12",
                linux: &pe,
                initrd: &[initrd],
                dtb: None,
                ucode: None,
            };
            let mut bytes = Vec::new();
            crate::image::uki::assemble(&parts, &mut bytes).unwrap();
            bytes
        };
        let places = |a: &[u8], b: &[u8]| -> Vec<(String, String)> {
            program("a.efi", a, b).into_iter().map(|f| (f.step, f.field)).collect()
        };
        let place = |step: &str, section: &str| (step.to_owned(), format!("section {section}"));
        let one = uki(b"0707010", "quiet");
        assert_eq!(places(&one, &uki(b"0707011", "quiet")), [place("initrd", ".initrd")]);
        assert_eq!(places(&one, &uki(b"0707010", "debug")), [place("boot", ".cmdline")]);
    }

    #[test]
    fn a_byte_between_partitions_and_another_length_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let first = disk(dir.path(), "a", &[("a.efi", b"one")], &[1; 4096]);
        let second = dir.path().join("second.raw");
        fs::copy(&first, &second).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&second).unwrap();
        file.file().write_all_at(&[0xAB], 500_000).unwrap();
        assert_eq!(
            lines(&first, &second),
            ["step disk: byte 500000, outside of all partitions, 0x00 -> 0xab"]
        );
        file.set_len(file.metadata().unwrap().len() + 512).unwrap();
        assert!(lines(&first, &second)[0].starts_with("step disk: length "));
    }

    #[test]
    fn another_table_is_told_field_by_field() {
        let dir = tempfile::tempdir().unwrap();
        let first = disk(dir.path(), "a", &[("a.efi", b"one")], &[1; 4096]);
        let table = gpt::read(&mut fs::File::open(&first).unwrap(), 512).unwrap();
        let mut other = table.clone();
        other.partitions[2].name = "elsewhere".to_owned();
        let found = super::table(&table, &other);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].field.as_str(), found[0].second.as_str()), ("name of partition 3", "elsewhere"));
    }
}
