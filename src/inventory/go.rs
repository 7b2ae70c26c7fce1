//! What a Go program says of itself: the Go that compiled it and the modules that are linked into it.
//!
//! Go's linker writes this into the ELF section `.go.buildinfo`. Since Go 1.18 both texts lie in the section itself (cmd/link/internal/ld,
//! data.go; debug/buildinfo reads it): 16 bytes with a magic number, the size of a pointer and flags, padding up to byte 32, then the
//! version and the list of modules, each behind its length as an unsigned varint. `go version -m` prints the same.

use object::{Object, ObjectSection};
use serde::{Deserialize, Serialize};

use crate::rootfs::elf::aligned;

/// First bytes of the section.
const MAGIC: &[u8; 14] = b"\xff Go buildinf:";
/// Where the flags stand.
const FLAGS: usize = 15;
/// The flag that the texts lie in the section; without it there are pointers to them, as Go before 1.18 wrote.
const INLINE: u8 = 2;
/// Where the texts begin.
const TEXTS: usize = 32;
/// The list of modules stands between two marks of this length (runtime/debug, modinfo).
const MARK: usize = 16;
/// What a main module that was compiled out of a folder has for a version.
const DEVEL: &str = "(devel)";

/// What a Go program was compiled of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Go {
    /// The Go that compiled it, `go1.24.4`.
    pub version: String,
    /// Path of its main package; empty if it does not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub package: String,
    /// The modules in it, sorted by path. Its own is there if it has a version.
    pub modules: Vec<Module>,
}

/// A Go module that is linked into a program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Module {
    /// Path of the module whose code this is.
    pub path: String,
    /// Its version, `v1.2.3`; empty if it came out of a folder.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Its sum as go.sum has it, `h1:…`, if the program says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum: Option<String>,
    /// The module whose place it takes by a `replace` of go.mod, if that has another path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
}

/// What the ELF file `elf` says; `None` if it is not a Go program, or one of a Go before 1.18, or damaged.
pub fn read(elf: &[u8]) -> Option<Go> {
    aligned(elf, |elf| {
        let file = object::File::parse(elf).ok()?;
        section(file.section_by_name(".go.buildinfo")?.data().ok()?)
    })
}

fn section(data: &[u8]) -> Option<Go> {
    if !data.starts_with(MAGIC) || data.get(FLAGS)? & INLINE == 0 {
        return None;
    }
    let mut rest = data.get(TEXTS..)?;
    let version = text(&mut rest)?;
    let list = text(&mut rest)?;
    // Without modules the list is empty, marks and all.
    let list = list.get(MARK..list.len().checked_sub(MARK)?).unwrap_or_default();
    Some(modules(std::str::from_utf8(version).ok()?, std::str::from_utf8(list).ok()?))
}

/// Takes a text behind its length.
fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        // Nothing in a program is longer than four of these.
        if shift > 27 {
            return None;
        }
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let (text, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(text)
}

/// Reads the lines of runtime/debug's BuildInfo: `path PACKAGE`, `mod PATH VERSION [SUM]`, `dep PATH VERSION [SUM]`, and
/// `=> PATH VERSION [SUM]` for what takes the place of the module in the line above; between them tabs.
fn modules(version: &str, list: &str) -> Go {
    let mut go = Go { version: version.split(' ').next().unwrap_or_default().to_owned(), ..Go::default() };
    for line in list.lines() {
        let mut words = line.split('\t');
        let word = words.next().unwrap_or_default();
        let mut next = || words.next().unwrap_or_default().to_owned();
        match word {
            "path" => go.package = next(),
            "mod" | "dep" => {
                let (path, version, sum) = (next(), next(), next());
                let sum = Some(sum).filter(|sum| !sum.is_empty());
                go.modules.push(Module { path, version, sum, replaces: None });
            }
            "=>" => {
                let (path, version, sum) = (next(), next(), next());
                // In the place of a module there may be a folder, which has no version: the code is then still called by the module's path.
                if let Some(last) = go.modules.last_mut()
                    && !path.starts_with(['.', '/'])
                {
                    let replaced = std::mem::replace(&mut last.path, path);
                    last.replaces = Some(replaced).filter(|replaced| *replaced != last.path);
                    (last.version, last.sum) = (version, Some(sum).filter(|sum| !sum.is_empty()));
                }
            }
            _ => {}
        }
    }
    // The program's own module, compiled out of a folder: that is the program itself.
    go.modules.retain(|module| !module.path.is_empty() && module.version != DEVEL);
    go.modules.sort();
    go.modules.dedup_by(|a, b| a.path == b.path && a.version == b.version);
    go
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const LIST: &str = "path\tkiln.invalid/k3s/cmd/k3s\nmod\tkiln.invalid/k3s\t(devel)\t\n\
        dep\tgithub.com/flannel-io/flannel\tv0.27.0\th1:abc=\n\
        dep\tgithub.com/cilium/ebpf\tv0.17.3\n=>\tgithub.com/cilium/ebpf\tv0.12.3\t\n\
        dep\tk8s.io/api\tv1.33.3\n=>\tgithub.com/k3s-io/kubernetes/staging/src/k8s.io/api\tv1.33.3-k3s1\th1:def=\n\
        dep\texample.org/here\tv1.0.0\n=>\t./here\t\t\nbuild\t-trimpath=true\n";

    /// A section as Go's linker makes it.
    pub(in crate::inventory) fn made(version: &str, list: &str) -> Vec<u8> {
        let varint = |mut n: usize| {
            let mut out = Vec::new();
            while n >= 0x80 {
                out.push(n as u8 | 0x80);
                n >>= 7;
            }
            out.push(n as u8);
            out
        };
        let list = format!("{}{list}{}", "0w".repeat(8), "x2".repeat(8));
        let mut data = [MAGIC.as_slice(), &[8, INLINE], &[0; 16]].concat();
        for text in [version, &list] {
            data.extend(varint(text.len()));
            data.extend(text.as_bytes());
        }
        data
    }

    #[test]
    fn modules_are_those_that_were_compiled_and_not_those_that_were_replaced() {
        let go = section(&made("go1.24.4 X:nocoverageredesign", LIST)).unwrap();
        assert_eq!((go.version.as_str(), go.package.as_str()), ("go1.24.4", "kiln.invalid/k3s/cmd/k3s"));
        let lines: Vec<String> = go
            .modules
            .iter()
            .map(|m| format!("{} {} {:?} {:?}", m.path, m.version, m.sum.as_deref(), m.replaces.as_deref()))
            .collect();
        assert_eq!(
            lines,
            [
                "example.org/here v1.0.0 None None",
                "github.com/cilium/ebpf v0.12.3 None None",
                "github.com/flannel-io/flannel v0.27.0 Some(\"h1:abc=\") None",
                "github.com/k3s-io/kubernetes/staging/src/k8s.io/api v1.33.3-k3s1 Some(\"h1:def=\") Some(\"k8s.io/api\")",
            ]
        );
    }

    #[test]
    fn what_is_not_a_go_program_or_is_damaged_says_nothing() {
        let whole = made("go1.24.4", LIST);
        for end in 0..whole.len() {
            assert_eq!(section(&whole[..end]), None, "{end}");
        }
        let mut old = whole.clone();
        old[FLAGS] = 0;
        assert_eq!(section(&old), None);
        assert_eq!(read(b"\x7fELF"), None);
        assert_eq!(read(b"#!/bin/sh\n"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = section(&[MAGIC.as_slice(), &[8, INLINE], &[0; 16], &bytes].concat());
            let _ = read(&[b"\x7fELF\x02\x01\x01".as_slice(), &bytes].concat());
        }
    }
}
