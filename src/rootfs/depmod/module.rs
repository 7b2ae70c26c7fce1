//! One kernel module: its `.modinfo`, what it exports and what it imports.

use std::collections::BTreeSet;

use object::read::elf::{FileHeader, SectionHeader, Sym};
use object::{Endianness, FileKind};

use crate::rootfs::elf::aligned;

/// Bytes of one entry of `__versions` on 64-bit kernels: a CRC of 8 and a name of 56 (`struct modversion_info`).
const VERSION_ENTRY: usize = 64;

/// Why a file ending in `.ko` is no module.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ModuleError {
    /// Not a 64-bit ELF file.
    #[error("not a 64-bit ELF file")]
    NotElf,
    /// A table points outside the file.
    #[error("damaged module: {0}")]
    Damaged(String),
}

impl From<object::read::Error> for ModuleError {
    fn from(error: object::read::Error) -> Self {
        ModuleError::Damaged(error.to_string())
    }
}

/// What `depmod` needs of a module.
#[derive(Debug, Default)]
pub(super) struct Module {
    pub(super) name: String,
    /// `key=value` pairs of `.modinfo` in file order.
    info: Vec<(String, String)>,
    pub(super) exports: Vec<String>,
    /// Undefined symbols in the order of the symbol table, then what only `__versions` names.
    pub(super) imports: Vec<String>,
}

impl Module {
    /// All values of `key`.
    pub(super) fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.info.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The device node that loads this module when opened: name below `/dev` and `c10:237`-like number.
    pub(super) fn device(&self) -> Option<(&str, String)> {
        let (mut node, mut number) = (None, None);
        for alias in self.values("alias") {
            let numbered = |prefix: &str, letter: char| {
                let (major, minor) = alias.strip_prefix(prefix)?.split_once('-')?;
                let minor = minor.split(|c: char| !c.is_ascii_digit()).next()?;
                Some(format!("{letter}{}:{}", major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
            };
            if let Some(name) = alias.strip_prefix("devname:") {
                node = Some(name);
            } else if let Some(found) = numbered("char-major-", 'c').or_else(|| numbered("block-major-", 'b'))
            {
                number = Some(found);
            }
            if node.is_some() && number.is_some() {
                break;
            }
        }
        Some((node?, number?))
    }
}

/// The name of the module in the file at `path`: without directories and extensions, `-` as `_`.
pub fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

pub(super) fn read(path: &str, data: &[u8]) -> Result<Module, ModuleError> {
    aligned(data, |data| match FileKind::parse(data) {
        Ok(FileKind::Elf64) => parse(path, data),
        _ => Err(ModuleError::NotElf),
    })
}

fn parse(path: &str, data: &[u8]) -> Result<Module, ModuleError> {
    let header = object::elf::FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, data)?;
    let section = |name: &str| -> Result<&[u8], ModuleError> {
        Ok(match sections.section_by_name(endian, name.as_bytes()) {
            Some((_, section)) => section.data(endian, data)?,
            None => &[],
        })
    };
    let texts = |bytes: &[u8]| -> Vec<String> {
        let parts = bytes.split(|b| *b == 0).filter(|t| !t.is_empty());
        parts.map(|t| String::from_utf8_lossy(t).into_owned()).collect()
    };
    let mut module = Module { name: name_of(path), ..Module::default() };
    for pair in texts(section(".modinfo")?) {
        if let Some((key, value)) = pair.split_once('=') {
            module.info.push((key.to_owned(), value.to_owned()));
        }
    }
    let symbols = sections.symbols(endian, data, object::elf::SHT_SYMTAB)?;
    let mut seen = BTreeSet::new();
    for symbol in symbols.iter().skip(1) {
        let name = String::from_utf8_lossy(symbol.name(endian, symbols.strings())?);
        if let Some(exported) = name.strip_prefix("__crc_") {
            module.exports.push(exported.to_owned());
        } else if symbol.st_shndx(endian) == object::elf::SHN_UNDEF && !name.is_empty() {
            seen.insert(name.to_string());
            module.imports.push(name.into_owned());
        }
    }
    if module.exports.is_empty() {
        module.exports = texts(section("__ksymtab_strings")?);
    }
    for entry in section("__versions")?.chunks_exact(VERSION_ENTRY) {
        let name = entry[8..].split(|b| *b == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name);
        if !seen.contains(name.as_ref()) {
            module.imports.push(name.into_owned());
        }
    }
    Ok(module)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A relocatable x86-64 file with `.modinfo`, exported names in `__ksymtab_strings` and undefined symbols.
    pub(in crate::rootfs) fn sample(info: &[&str], exports: &[&str], imports: &[&str]) -> Vec<u8> {
        let join =
            |texts: &[&str]| texts.iter().flat_map(|t| [t.as_bytes(), &[0]].concat()).collect::<Vec<u8>>();
        let mut strings = vec![0];
        let mut symbols = vec![0; 24];
        for name in imports {
            symbols.extend((strings.len() as u32).to_le_bytes());
            symbols.extend([0x10, 0, 0, 0]); // global, undefined section
            symbols.extend([0; 16]);
            strings.extend(join(&[name]));
        }
        let names = join(&["", ".modinfo", "__ksymtab_strings", ".symtab", ".strtab"]);
        // Offset of the name, type, bytes, section of strings, size of an entry.
        let sections: [(u32, u32, Vec<u8>, u32, u64); 6] = [
            (0, 0, Vec::new(), 0, 0),
            (1, 1, join(info), 0, 0),
            (10, 1, join(exports), 0, 0),
            (28, 2, symbols, 4, 24),
            (36, 3, strings, 0, 0),
            (0, 3, names, 0, 0),
        ];
        let bytes: usize = sections.iter().map(|s| s.2.len().next_multiple_of(8)).sum();
        let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        out.extend([1_u16, 62].into_iter().flat_map(u16::to_le_bytes));
        out.extend(1_u32.to_le_bytes());
        out.extend([0, 0, 64 + bytes as u64].into_iter().flat_map(u64::to_le_bytes));
        out.extend(0_u32.to_le_bytes());
        out.extend([64_u16, 0, 0, 64, 6, 5].into_iter().flat_map(u16::to_le_bytes));
        let mut headers = Vec::new();
        for (name, kind, data, link, entry) in sections {
            headers.extend([name, kind].into_iter().flat_map(u32::to_le_bytes));
            headers
                .extend([0, 0, out.len() as u64, data.len() as u64].into_iter().flat_map(u64::to_le_bytes));
            headers.extend([link, 0].into_iter().flat_map(u32::to_le_bytes));
            headers.extend([8, entry].into_iter().flat_map(u64::to_le_bytes));
            out.extend(&data);
            out.resize(out.len().next_multiple_of(8), 0);
        }
        out.extend(headers);
        out
    }

    #[test]
    fn names_drop_folders_and_endings() {
        assert_eq!(name_of("kernel/net/nf-conn.ko.xz"), "nf_conn");
        assert_eq!(name_of("snd-hda.ko"), "snd_hda");
    }

    #[test]
    fn a_device_needs_a_name_and_a_number() {
        let with = |aliases: &[&str]| Module {
            info: aliases.iter().map(|a| ("alias".to_owned(), (*a).to_owned())).collect(),
            ..Module::default()
        };
        let fuse = with(&["fs-fuse", "devname:fuse", "char-major-10-229"]);
        assert_eq!(fuse.device(), Some(("fuse", "c10:229".to_owned())));
        assert_eq!(with(&["devname:fuse", "char-major-10-*"]).device(), None);
    }

    #[test]
    fn other_files_are_refused() {
        assert_eq!(read("a.ko", b"text").unwrap_err(), ModuleError::NotElf);
        assert!(matches!(
            read("a.ko", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0"),
            Err(ModuleError::Damaged(_) | ModuleError::NotElf)
        ));
    }
}
