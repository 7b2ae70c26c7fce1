//! What kiln needs to know of an ELF file: how it is started, what it links to, what it opens at run time.
//!
//! [`read`] takes the whole file and never panics, whatever the bytes are; damaged parts are an [`ElfError`]. [`Elf`] can
//! be stored as JSON, so that a package is looked at once. The words are those of the
//! [ELF gABI](https://gabi.xinuos.com) and of systemd's
//! [ELF dlopen metadata](https://systemd.io/ELF_DLOPEN_METADATA/).

use object::elf::{
    DT_NEEDED, DT_NULL, DT_RPATH, DT_RUNPATH, DT_SONAME, DT_STRSZ, DT_STRTAB, NT_GNU_BUILD_ID, PT_DYNAMIC,
    PT_GNU_PROPERTY, PT_INTERP, PT_NOTE,
};
use object::read::elf::{Dyn, FileHeader, NoteIterator, ProgramHeader, SectionHeader};
use object::{Endianness, FileKind};
use serde::{Deserialize, Serialize};

use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::rootfs::step::StepError;
use crate::tree::Tree;

/// Note type of `.note.dlopen` (systemd's `ELF_NOTE_DLOPEN_TYPE`), in the name space `FDO`.
const NOTE_DLOPEN: u32 = 0x407c_0c0a;
/// Longest first line that [`shebang`] looks at: `BINPRM_BUF_SIZE` of linux/binfmts.h.
const SHEBANG_BYTES: usize = 256;
/// The longest string taken from a file; longer ones are cut off as damage (`PATH_MAX` of Linux).
const STRING_BYTES: usize = 4096;

/// Facts of one ELF file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elf {
    /// 32 or 64.
    pub bits: u8,
    /// Whether numbers are stored highest byte first.
    pub big_endian: bool,
    /// `e_machine`: 62 x86-64, 183 AArch64 …
    pub machine: u16,
    /// `e_type`: 1 relocatable, 2 executable, 3 shared object or position-independent executable.
    pub kind: u16,
    /// `PT_INTERP`: the loader that the kernel starts.
    pub interpreter: Option<String>,
    /// `DT_SONAME`.
    pub soname: Option<String>,
    /// `DT_NEEDED`, in file order.
    pub needed: Vec<String>,
    /// `DT_RUNPATH`, split at `:`.
    pub runpath: Vec<String>,
    /// `DT_RPATH`, split at `:`.
    pub rpath: Vec<String>,
    /// Libraries it may open at run time.
    pub dlopen: Vec<Dlopen>,
    /// Whether it carries a GNU build id.
    pub build_id: bool,
    /// Whether there is a dynamic section at all: false for static programs and kernel modules.
    pub dynamic: bool,
}

/// How much a library that is opened at run time is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Only for rarely used features.
    Suggested,
    /// Expected on a usual system; what a note without priority means.
    Recommended,
    /// The program's main job fails without it.
    Required,
}

/// One entry of a `.note.dlopen` note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dlopen {
    /// Short name of the feature, empty if the note names none.
    #[serde(default)]
    pub feature: String,
    /// A sentence for people.
    #[serde(default)]
    pub description: String,
    /// How much it is needed.
    #[serde(default = "recommended")]
    pub priority: Priority,
    /// Any one of these is enough, the first is preferred.
    pub soname: Vec<String>,
}

fn recommended() -> Priority {
    Priority::Recommended
}

/// The facts of many files, by the digest of their content.
pub type Facts = BTreeMap<Digest, Elf>;

/// Adds to `facts` every ELF file of `tree` that is not in them yet. Kernel modules are left out: `depmod` reads those.
/// A file that begins as ELF and is damaged is an error, since no package ships one on purpose; but in a folder `testdata`, where
/// Go keeps what its tests read (`go help test`), there are some.
pub fn scan(tree: &Tree, facts: &mut Facts) -> Result<(), StepError> {
    for (path, entry) in tree.iter() {
        let Some(content) = entry.content() else { continue };
        let test_data = path.split('/').any(|part| part == "testdata");
        if content.size() < 20 || path.ends_with(".ko") || test_data || facts.contains_key(&content.digest())
        {
            continue;
        }
        let failed = |source| StepError::Read { path: path.clone(), source };
        let mut magic = [0; 4];
        content.read_exact_at(&mut magic, 0).map_err(failed)?;
        if &magic != b"\x7fELF" {
            continue;
        }
        let found = read(&content.read().map_err(failed)?).map_err(|e| failed(std::io::Error::other(e)))?;
        facts.extend(found.map(|elf| (content.digest(), elf)));
    }
    Ok(())
}

/// Why a file that begins as ELF cannot be read as ELF.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ElfError {
    /// A header or table points outside the file or contradicts itself.
    #[error("damaged ELF file: {0}")]
    Damaged(String),
    /// The JSON of a `.note.dlopen` note does not have the shape of the specification.
    #[error("damaged .note.dlopen note: {0}")]
    Note(String),
}

impl From<object::read::Error> for ElfError {
    fn from(error: object::read::Error) -> Self {
        ElfError::Damaged(error.to_string())
    }
}

/// The facts of `data`, or `None` if it is no ELF file (it does not begin with `\x7fELF`).
pub fn read(data: &[u8]) -> Result<Option<Elf>, ElfError> {
    if !data.starts_with(b"\x7fELF") {
        return Ok(None);
    }
    aligned(data, |data| match FileKind::parse(data) {
        Ok(FileKind::Elf32) => parse::<object::elf::FileHeader32<Endianness>>(data).map(Some),
        Ok(FileKind::Elf64) => parse::<object::elf::FileHeader64<Endianness>>(data).map(Some),
        _ => Err(ElfError::Damaged("unknown class".to_owned())),
    })
}

/// Calls `look` with `data` at an address that is a multiple of 8, as `object` wants its structures.
pub(crate) fn aligned<T>(data: &[u8], look: impl FnOnce(&[u8]) -> T) -> T {
    if data.as_ptr().addr().is_multiple_of(8) {
        return look(data);
    }
    let mut words = vec![0_u64; data.len().div_ceil(8)];
    let copy = &mut object::pod::bytes_of_slice_mut(&mut words)[..data.len()];
    copy.copy_from_slice(data);
    look(copy)
}

fn parse<H: FileHeader<Endian = Endianness>>(data: &[u8]) -> Result<Elf, ElfError> {
    let header = H::parse(data)?;
    let endian = header.endian()?;
    let mut elf = Elf {
        bits: if header.is_class_64() { 64 } else { 32 },
        big_endian: header.is_big_endian(),
        machine: header.e_machine(endian),
        kind: header.e_type(endian),
        ..Elf::default()
    };
    let segments = header.program_headers(endian, data)?;
    for segment in segments {
        match segment.p_type(endian) {
            PT_INTERP => {
                elf.interpreter = segment.interpreter(endian, data)?.map(string);
            }
            PT_DYNAMIC => {
                if let Some(entries) = segment.dynamic(endian, data)? {
                    elf.dynamic = true;
                    linkage::<H>(&mut elf, endian, entries, segments, data)?;
                }
            }
            PT_NOTE | PT_GNU_PROPERTY => {
                if let Some(found) = segment.notes(endian, data)? {
                    notes(&mut elf, endian, found)?;
                }
            }
            _ => {}
        }
    }
    if segments.is_empty() {
        // Relocatable files (kernel modules) have sections only.
        for section in header.section_headers(endian, data)? {
            if let Some(found) = section.notes(endian, data)? {
                notes(&mut elf, endian, found)?;
            }
        }
    }
    Ok(elf)
}

/// Reads the dynamic section: the names lie in the string table at the address `DT_STRTAB`.
fn linkage<H: FileHeader<Endian = Endianness>>(
    elf: &mut Elf,
    endian: Endianness,
    entries: &[H::Dyn],
    segments: &[H::ProgramHeader],
    data: &[u8],
) -> Result<(), ElfError> {
    let value = |wanted: i64| {
        entries
            .iter()
            .take_while(|e| e.tag(endian) != DT_NULL)
            .find(|e| e.tag(endian) == wanted)
            .map(|e| e.val(endian))
    };
    let (Some(address), Some(size)) = (value(DT_STRTAB), value(DT_STRSZ)) else { return Ok(()) };
    let mut strings = None;
    for segment in segments {
        if segment.p_type(endian) == object::elf::PT_LOAD {
            strings = strings.or(segment.data_range(endian, data, address, size).ok().flatten());
        }
    }
    let strings = strings.ok_or_else(|| {
        ElfError::Damaged("the string table of the dynamic section is in no segment".to_owned())
    })?;
    let name = |offset: u64| -> Result<String, ElfError> {
        let bytes = usize::try_from(offset).ok().and_then(|at| strings.get(at..)).ok_or_else(|| {
            ElfError::Damaged("a name of the dynamic section lies outside the string table".to_owned())
        })?;
        Ok(string(bytes.split(|b| *b == 0).next().unwrap_or_default()))
    };
    let list = |text: String| text.split(':').filter(|p| !p.is_empty()).map(str::to_owned).collect();
    for entry in entries {
        let offset = entry.val(endian);
        match entry.tag(endian) {
            DT_NULL => break,
            DT_NEEDED => elf.needed.push(name(offset)?),
            DT_SONAME => elf.soname = Some(name(offset)?),
            DT_RUNPATH => elf.runpath = list(name(offset)?),
            DT_RPATH => elf.rpath = list(name(offset)?),
            _ => {}
        }
    }
    Ok(())
}

fn notes<H: FileHeader<Endian = Endianness>>(
    elf: &mut Elf,
    endian: Endianness,
    mut notes: NoteIterator<'_, H>,
) -> Result<(), ElfError> {
    // Notes of unusual alignment end the walk instead of failing the file: the loader ignores them as well.
    while let Ok(Some(note)) = notes.next() {
        match (note.name(), note.n_type(endian)) {
            (b"GNU", NT_GNU_BUILD_ID) => elf.build_id = true,
            (b"FDO", NOTE_DLOPEN) => {
                let text = note.desc().split(|b| *b == 0).next().unwrap_or_default();
                let found: Vec<Dlopen> =
                    serde_json::from_slice(text).map_err(|e| ElfError::Note(e.to_string()))?;
                for entry in found {
                    if !elf.dlopen.contains(&entry) {
                        elf.dlopen.push(entry);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(STRING_BYTES)]).into_owned()
}

/// The interpreter line of a script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shebang {
    /// What the kernel starts.
    pub interpreter: String,
    /// The rest of the line, which the kernel gives as one argument.
    pub argument: Option<String>,
}

impl Shebang {
    /// The program that runs the script in the end: for `#!/usr/bin/env [-S] NAME` it is `NAME`, to be found in `PATH`.
    pub fn program(&self) -> &str {
        if !matches!(self.interpreter.as_str(), "/usr/bin/env" | "/bin/env") {
            return &self.interpreter;
        }
        let words = self.argument.as_deref().unwrap_or_default().split_whitespace();
        words.into_iter().find(|w| !w.starts_with('-') && !w.contains('=')).unwrap_or(&self.interpreter)
    }
}

/// Reads `#!` as Linux does (fs/binfmt_script.c); `None` if `data` is no script.
pub fn shebang(data: &[u8]) -> Option<Shebang> {
    let line = data.strip_prefix(b"#!")?;
    let line = &line[..line.len().min(SHEBANG_BYTES)];
    let line = line.split(|b| *b == b'\n' || *b == 0).next()?;
    let line = String::from_utf8_lossy(line);
    let line = line.trim_matches([' ', '\t']);
    let (interpreter, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    if interpreter.is_empty() {
        return None;
    }
    let rest = rest.trim_matches([' ', '\t']);
    Some(Shebang {
        interpreter: interpreter.to_owned(),
        argument: (!rest.is_empty()).then(|| rest.to_owned()),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A small x86-64 ELF file with an interpreter, a dynamic section and one `.note.dlopen` note.
    pub(crate) fn sample(interpreter: &str, soname: Option<&str>, needed: &[&str], dlopen: &str) -> Vec<u8> {
        let mut strings = vec![0];
        let mut dynamic: Vec<(u64, u64)> = Vec::new();
        let mut add = |tag: i64, text: &str| {
            dynamic.push((tag as u64, strings.len() as u64));
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
        };
        needed.iter().for_each(|n| add(DT_NEEDED, n));
        soname.iter().for_each(|n| add(DT_SONAME, n));
        let mut note = Vec::new();
        if !dlopen.is_empty() {
            let mut text = dlopen.as_bytes().to_vec();
            text.push(0);
            note.extend([4_u32, text.len() as u32, NOTE_DLOPEN].into_iter().flat_map(u32::to_le_bytes));
            note.extend(b"FDO\0");
            note.extend(&text);
            note.resize(note.len().next_multiple_of(8), 0);
        }
        let mut interp = interpreter.as_bytes().to_vec();
        interp.push(0);
        let segments = 3 + u16::from(!interpreter.is_empty());
        let strings_at = 64 + 56 * u64::from(segments);
        let interp_at = strings_at + strings.len() as u64;
        let note_at = (interp_at + interp.len() as u64).next_multiple_of(8);
        let dynamic_at = note_at + note.len() as u64;
        dynamic.extend([(DT_STRTAB as u64, strings_at), (DT_STRSZ as u64, strings.len() as u64), (0, 0)]);
        let end = dynamic_at + 16 * dynamic.len() as u64;
        let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        out.extend([3_u16, 62].into_iter().flat_map(u16::to_le_bytes));
        out.extend(1_u32.to_le_bytes());
        out.extend([0_u64, 64, 0].into_iter().flat_map(u64::to_le_bytes));
        out.extend(0_u32.to_le_bytes());
        out.extend([64, 56, segments, 64, 0, 0].into_iter().flat_map(u16::to_le_bytes));
        let mut segment = |kind: u32, at: u64, size: u64| {
            out.extend([kind, 4].into_iter().flat_map(u32::to_le_bytes));
            out.extend([at, at, at, size, size, 8].into_iter().flat_map(u64::to_le_bytes));
        };
        segment(object::elf::PT_LOAD, 0, end);
        segment(PT_DYNAMIC, dynamic_at, end - dynamic_at);
        segment(PT_NOTE, note_at, dynamic_at - note_at);
        if !interpreter.is_empty() {
            segment(PT_INTERP, interp_at, interp.len() as u64);
        }
        out.extend(strings);
        out.extend(interp);
        out.resize(note_at as usize, 0);
        out.extend(note);
        out.extend(dynamic.into_iter().flat_map(|(a, b)| [a, b]).flat_map(u64::to_le_bytes));
        out
    }

    const NOTE: &str =
        r#"[{"feature":"zstd","description":"logs","priority":"required","soname":["libzstd.so.1"]}]"#;

    #[test]
    fn reads_linkage_interpreter_and_dlopen_notes_at_any_address() {
        let bytes = sample("/lib64/ld.so", Some("libx.so.1"), &["libc.so.6", "libm.so.6"], NOTE);
        let elf = read(&bytes).unwrap().unwrap();
        assert_eq!((elf.bits, elf.machine, elf.kind), (64, 62, 3));
        assert_eq!(elf.interpreter.as_deref(), Some("/lib64/ld.so"));
        assert_eq!(elf.soname.as_deref(), Some("libx.so.1"));
        assert_eq!(elf.needed, ["libc.so.6", "libm.so.6"]);
        assert_eq!(elf.dlopen[0].priority, Priority::Required);
        assert_eq!(elf.dlopen[0].soname, ["libzstd.so.1"]);
        let mut shifted = vec![0];
        shifted.extend(&bytes);
        assert_eq!(read(&shifted[1..]).unwrap().unwrap(), elf, "an odd address changes nothing");
        let json = serde_json::to_string(&elf).unwrap();
        assert_eq!(serde_json::from_str::<Elf>(&json).unwrap(), elf);
    }

    #[test]
    fn a_note_without_priority_is_recommended_and_a_broken_one_refused() {
        let bytes = sample("", None, &[], r#"[{"soname":["liba.so"]}]"#);
        assert_eq!(read(&bytes).unwrap().unwrap().dlopen[0].priority, Priority::Recommended);
        assert!(matches!(read(&sample("", None, &[], "[{}]")), Err(ElfError::Note(_))));
    }

    #[test]
    fn other_files_are_no_elf_and_a_cut_one_is_damaged() {
        assert_eq!(read(b"#!/bin/sh"), Ok(None));
        let bytes = sample("/ld.so", None, &["a"], "");
        assert!(matches!(read(&bytes[..bytes.len() - 40]), Err(ElfError::Damaged(_))));
    }

    #[test]
    fn shebangs_are_read_as_the_kernel_does() {
        let of = |s: &str| shebang(s.as_bytes()).map(|s| s.program().to_owned());
        assert_eq!(of("#! /bin/sh -e\nx").as_deref(), Some("/bin/sh"));
        assert_eq!(of("#!/usr/bin/env -S A=1 python3 -u\n").as_deref(), Some("python3"));
        assert_eq!(of("#!/usr/bin/perl").as_deref(), Some("/usr/bin/perl"));
        assert_eq!(of("#!\n"), None);
        assert_eq!(shebang(b"#!/bin/awk -f x \n").unwrap().argument.as_deref(), Some("-f x"));
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(at in 0_usize..600, value: u8, cut in 0_usize..700) {
            let mut bytes = sample("/ld.so", Some("s"), &["a", "b"], NOTE);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(cut.max(4));
            let _ = read(&bytes);
        }

        #[test]
        fn any_bytes_after_the_magic_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = b"\x7fELF".to_vec();
            bytes.extend(&tail);
            let _ = (read(&bytes), shebang(&tail));
        }
    }
}
