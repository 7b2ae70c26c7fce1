//! `/etc/ld.so.cache` and the soname links: what `ldconfig` would make, for any architecture on any host.
//!
//! ```text
//! header   48 bytes: magic "glibc-ld.so.cache1.1", count, bytes of strings, byte order, offset of the extensions
//! entries  24 bytes each: flags, name, path (offsets from the start of the file), 0, hwcap
//! strings  NUL-terminated; a name that ends another string is stored once
//! extensions  generator, and the names of glibc-hwcaps subdirectories
//! ```
//!
//! The format is `struct cache_file_new` of glibc's `sysdeps/generic/dl-cache.h`. [`ldcache`] writes it for the directories that
//! `/etc/ld.so.conf` names and the built-in ones, in the order that the loader's binary search relies on.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use crate::rootfs::elf::{Elf, Facts};
use crate::rootfs::step::{StepError, put, text};
use crate::tree::{Entry, Kind, Tree, TreePath};

/// Owner of what this step makes.
const STEP: &str = "kiln:ldcache";
/// `DL_CACHE_HWCAP_EXTENSION`: the low half of `hwcap` is an index into the list of subdirectory names.
const HWCAP_EXTENSION: u64 = 1 << 62;
/// `cache_extension_magic`.
const EXTENSION_MAGIC: u32 = 0xeaa4_2174;
/// How deep `include` lines may nest, so that a file that includes itself ends.
const INCLUDES: usize = 8;

/// What the loader of an architecture looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loader {
    /// `e_machine` of its libraries.
    pub machine: u16,
    /// `flags` of their entries: the ABI in the high byte, `FLAG_ELF_LIBC6` (3) in the low one.
    pub flags: u32,
    /// Debian's multiarch name.
    pub triplet: &'static str,
}

/// x86-64: `FLAG_X8664_LIB64 | FLAG_ELF_LIBC6`.
pub const AMD64: Loader = Loader { machine: 62, flags: 0x0303, triplet: "x86_64-linux-gnu" };
/// AArch64: `FLAG_AARCH64_LIB64 | FLAG_ELF_LIBC6`.
pub const ARM64: Loader = Loader { machine: 183, flags: 0x0a03, triplet: "aarch64-linux-gnu" };

/// One library as the cache names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// What programs ask for: the soname.
    pub name: String,
    /// Where it lies, absolute, as the loader will open it.
    pub path: String,
    /// Name of the glibc-hwcaps subdirectory (`x86-64-v3`) if it lies in one.
    pub hwcaps: Option<String>,
}

/// Makes missing soname links and writes `/etc/ld.so.cache`; returns what is in it, in file order.
pub fn ldcache(tree: &mut Tree, loader: &Loader, facts: &Facts) -> Result<Vec<Library>, StepError> {
    let mut libraries = Vec::new();
    for (dir, hwcaps) in directories(tree, loader)? {
        for (soname, file) in in_directory(tree, &dir, loader, facts)? {
            if soname != file {
                put(tree, &format!("{dir}/{soname}"), Entry::symlink(file, STEP))?;
            }
            let path = format!("{dir}/{soname}");
            libraries.push(Library { name: soname, path, hwcaps: hwcaps.clone() });
        }
    }
    // A stable sort: of two equal names the one in the earlier directory stays first.
    libraries.sort_by(|a, b| compare(&b.name, &a.name).then_with(|| b.hwcaps.cmp(&a.hwcaps)));
    put(tree, "etc/ld.so.cache", Entry::file(0o644, encode(&libraries, loader), STEP))?;
    Ok(libraries)
}

/// The directories that the loader searches without a cache or with one, absolute, each once (by where it leads), with the
/// hwcaps subdirectory that it is, in `ldconfig`'s order.
pub fn directories(tree: &Tree, loader: &Loader) -> Result<Vec<(String, Option<String>)>, StepError> {
    let mut dirs = Vec::new();
    configured(tree, "etc/ld.so.conf", INCLUDES, &mut dirs)?;
    let triplet = loader.triplet;
    dirs.extend([format!("/lib/{triplet}"), format!("/usr/lib/{triplet}"), "/lib".into(), "/usr/lib".into()]);
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for dir in dirs {
        let Some((real, entry)) = tree.follow(&dir) else { continue };
        if !entry.is_dir() || !seen.insert(real.clone()) {
            continue;
        }
        found.push((dir.clone(), None));
        let hwcaps = format!("{real}/glibc-hwcaps");
        for (path, entry) in tree.children(&hwcaps) {
            if entry.is_dir() && !path.name().starts_with('.') && seen.insert(path.clone()) {
                found.push((format!("{dir}/glibc-hwcaps/{}", path.name()), Some(path.name().to_owned())));
            }
        }
    }
    Ok(found)
}

fn configured(tree: &Tree, file: &str, depth: usize, dirs: &mut Vec<String>) -> Result<(), StepError> {
    let Some(text) = text(tree, file)? else { return Ok(()) };
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(pattern) = line.strip_prefix("include").filter(|p| p.starts_with([' ', '\t'])) {
            let pattern = pattern.trim();
            let wrong = |reason: &str| StepError::Line {
                path: TreePath::new(file).expect("a file that was read has a valid path"),
                line: number + 1,
                reason: format!("`include {pattern}`: {reason}"),
            };
            let (dir, name) = pattern.rsplit_once('/').ok_or_else(|| wrong("name an absolute path"))?;
            let (before, after) = name.split_once('*').unwrap_or((name, ""));
            if depth == 0 {
                return Err(wrong("includes nest too deep"));
            }
            for found in crate::rootfs::step::names(tree, dir) {
                let fits = if name.contains('*') {
                    !found.starts_with('.')
                        && found.len() >= before.len() + after.len()
                        && found.starts_with(before)
                        && found.ends_with(after)
                } else {
                    found == name
                };
                if fits {
                    configured(tree, &format!("{}/{found}", dir.trim_matches('/')), depth - 1, dirs)?;
                }
            }
        } else if line.starts_with('/') {
            dirs.push(line.trim_end_matches('/').to_owned());
        }
    }
    Ok(())
}

/// The libraries of one directory: soname to the file that is to stand behind it. Equal when there is nothing to link.
fn in_directory(
    tree: &Tree,
    dir: &str,
    loader: &Loader,
    facts: &Facts,
) -> Result<BTreeMap<String, String>, StepError> {
    let Some(real) = tree.resolve(dir)? else { return Ok(BTreeMap::new()) };
    let mut found: BTreeMap<String, (String, bool)> = BTreeMap::new();
    for (path, entry) in tree.children(&real) {
        let name = path.name();
        let is_library = name.starts_with("lib") || name.starts_with("ld-") || name.starts_with("ld.so.");
        if !is_library || !name.contains(".so") || name.ends_with(".dpkg-new") {
            continue;
        }
        let Some(elf) = library(tree, path, loader, facts) else { continue };
        let soname = elf.soname.as_deref().unwrap_or(name);
        let mut link = matches!(entry.kind, Kind::Symlink { .. });
        // A link with another name than the soname is a file of its own, but for `libx.so` that `ld` uses.
        if link && name != soname && !(name.ends_with(".so") && soname.starts_with(name)) {
            link = false;
        }
        let soname = if link { name } else { soname };
        match found.get_mut(soname) {
            None => {
                found.insert(soname.to_owned(), (name.to_owned(), link));
            }
            Some((best, best_link)) => {
                // A file wins over a link; of two files the higher version.
                let better = match (link, *best_link) {
                    (false, true) => true,
                    (true, false) => false,
                    _ => compare(best, name) == Ordering::Less,
                };
                if better {
                    (*best, *best_link) = (name.to_owned(), link);
                }
            }
        }
    }
    let present = |soname: &String, file: &String| {
        let both = (tree.resolve(&format!("{real}/{soname}")), tree.resolve(&format!("{real}/{file}")));
        matches!(both, (Ok(Some(a)), Ok(Some(b))) if a == b)
    };
    Ok(found
        .into_iter()
        .map(
            |(soname, (file, _))| {
                if present(&soname, &file) { (soname.clone(), soname) } else { (soname, file) }
            },
        )
        .collect())
}

fn library<'a>(tree: &Tree, path: &str, loader: &Loader, facts: &'a Facts) -> Option<&'a Elf> {
    let (_, entry) = tree.follow(path)?;
    let elf = facts.get(&entry.content()?.digest())?;
    (elf.machine == loader.machine && elf.kind == object::elf::ET_DYN && elf.dynamic).then_some(elf)
}

/// glibc's `_dl_cache_libcmp`: numbers inside names compare as numbers, and after letters.
fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        match (a.first(), b.first()) {
            (None, None) => return Ordering::Equal,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let order = number(&mut a).cmp(&number(&mut b));
                if order.is_ne() {
                    return order;
                }
            }
            (Some(x), Some(_)) if x.is_ascii_digit() => return Ordering::Greater,
            (Some(_), Some(y)) if y.is_ascii_digit() => return Ordering::Less,
            (x, y) if x == y => (a, b) = (&a[1..], &b[1..]),
            (x, y) => return x.cmp(&y),
        }
    }
}

/// Takes a number off `text`, wrapping as the loader's `int` does not have to: names with 20 digits do not exist.
fn number(text: &mut &[u8]) -> u64 {
    let mut value = 0_u64;
    while let Some((digit, rest)) = text.split_first().filter(|(d, _)| d.is_ascii_digit()) {
        value = value.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
        *text = rest;
    }
    value
}

/// Strings of the cache with their offsets, each stored once and a tail of another not at all.
struct Strings {
    offsets: BTreeMap<String, u32>,
    bytes: Vec<u8>,
}

impl Strings {
    fn new<'a>(all: impl Iterator<Item = &'a str>, start: usize) -> Self {
        // Sorted by reversed text, highest first, a tail stands directly behind a string that ends in it.
        let mut reversed: Vec<(Vec<u8>, &str)> = all.map(|s| (s.bytes().rev().collect(), s)).collect();
        reversed.sort_by(|a, b| b.cmp(a));
        reversed.dedup();
        let mut strings = Strings { offsets: BTreeMap::new(), bytes: Vec::new() };
        let mut last: Option<(&[u8], usize)> = None;
        for (key, text) in &reversed {
            let at = match last {
                Some((whole, at)) if whole.starts_with(key) => at + whole.len() - key.len(),
                _ => {
                    let at = start + strings.bytes.len();
                    strings.bytes.extend_from_slice(text.as_bytes());
                    strings.bytes.push(0);
                    last = Some((key, at));
                    at
                }
            };
            strings.offsets.insert((*text).to_owned(), at as u32);
        }
        strings
    }

    fn at(&self, text: &str) -> u32 {
        self.offsets[text]
    }
}

/// The bytes of the cache for `libraries`, which are in file order.
fn encode(libraries: &[Library], loader: &Loader) -> Vec<u8> {
    let start = 48 + 24 * libraries.len();
    let hwcaps: BTreeSet<&str> = libraries.iter().filter_map(|l| l.hwcaps.as_deref()).collect();
    let texts = libraries.iter().flat_map(|l| [l.name.as_str(), l.path.as_str()]);
    let strings = Strings::new(texts.chain(hwcaps.iter().copied()), start);
    let extensions = (start + strings.bytes.len()).next_multiple_of(4);

    let mut out = b"glibc-ld.so.cache1.1".to_vec();
    let word = |out: &mut Vec<u8>, value: u32| out.extend(value.to_le_bytes());
    word(&mut out, libraries.len() as u32);
    word(&mut out, strings.bytes.len() as u32);
    word(&mut out, 2); // cache_file_new_flags_endian_little, then padding
    word(&mut out, extensions as u32);
    out.resize(48, 0);
    for library in libraries {
        let index = library.hwcaps.as_deref().and_then(|h| hwcaps.iter().position(|x| *x == h));
        word(&mut out, loader.flags);
        word(&mut out, strings.at(&library.name));
        word(&mut out, strings.at(&library.path));
        word(&mut out, 0);
        out.extend(index.map_or(0, |i| HWCAP_EXTENSION | i as u64).to_le_bytes());
    }
    out.extend(&strings.bytes);
    out.resize(extensions, 0);

    // Tags: 0 generator, 1 hwcaps; each with flags 0, offset and size of its data, which follow the list.
    let generator = b"kiln";
    let count = 1 + u32::from(!hwcaps.is_empty());
    let data = extensions as u32 + 8 + 16 * count;
    word(&mut out, EXTENSION_MAGIC);
    word(&mut out, count);
    let sizes = [(0, generator.len() as u32), (1, 4 * hwcaps.len() as u32)];
    let mut at = data;
    for (tag, size) in &sizes[..count as usize] {
        [*tag, 0, at, *size].into_iter().for_each(|v| word(&mut out, v));
        at += size;
    }
    out.extend(generator);
    hwcaps.iter().for_each(|h| word(&mut out, strings.at(h)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::elf::{scan, tests::sample};

    fn tree() -> Tree {
        let mut tree = Tree::new();
        let lib = |soname| Entry::file(0o755, sample("", Some(soname), &[], ""), "pkg");
        let dir = "usr/lib/x86_64-linux-gnu";
        put(&mut tree, "usr/lib/a", Entry::dir(0o755, "p")).unwrap();
        put(&mut tree, "lib", Entry::symlink("usr/lib", "base-files")).unwrap();
        put(
            &mut tree,
            "etc/ld.so.conf",
            Entry::file(0o644, "include /etc/ld.so.conf.d/*.conf\n", "libc-bin"),
        )
        .unwrap();
        put(
            &mut tree,
            "etc/ld.so.conf.d/x.conf",
            Entry::file(0o644, "# c\n/lib/x86_64-linux-gnu\n/none\n", "libc6"),
        )
        .unwrap();
        for (name, soname) in [
            ("libz.so.1.3", "libz.so.1"),
            ("libz.so.1.10", "libz.so.1"),
            ("libg.so.10", "libg.so.10"),
            ("libg.so.9", "libg.so.9"),
        ] {
            put(&mut tree, &format!("{dir}/{name}"), lib(soname)).unwrap();
        }
        put(&mut tree, &format!("{dir}/glibc-hwcaps/x86-64-v3/libz.so.1"), lib("libz.so.1")).unwrap();
        put(&mut tree, &format!("{dir}/libz.so"), Entry::symlink("libz.so.1.10", "dev")).unwrap();
        put(&mut tree, &format!("{dir}/libscript.so"), Entry::file(0o644, "INPUT(x)", "dev")).unwrap();
        tree
    }

    #[test]
    fn links_sonames_to_the_highest_version_and_sorts_for_the_loader() {
        let mut tree = tree();
        let mut facts = Facts::new();
        scan(&tree, &mut facts).unwrap();
        let found = ldcache(&mut tree, &AMD64, &facts).unwrap();
        let listing: Vec<_> = found.iter().map(|l| (l.name.as_str(), l.path.as_str())).collect();
        let dir = "/lib/x86_64-linux-gnu";
        assert_eq!(
            listing,
            [
                ("libz.so.1", format!("{dir}/glibc-hwcaps/x86-64-v3/libz.so.1").as_str()),
                ("libz.so.1", &format!("{dir}/libz.so.1")),
                ("libz.so", &format!("{dir}/libz.so")),
                ("libg.so.10", &format!("{dir}/libg.so.10")),
                ("libg.so.9", &format!("{dir}/libg.so.9")),
            ]
        );
        let link = tree.get("usr/lib/x86_64-linux-gnu/libz.so.1").unwrap();
        assert_eq!(link.kind, Kind::Symlink { target: "libz.so.1.10".into() });
        assert_eq!(&*link.owner, "kiln:ldcache");
    }

    #[test]
    fn names_are_stored_as_tails_of_their_paths() {
        let library = Library { name: "liba.so".into(), path: "/lib/liba.so".into(), hwcaps: None };
        let bytes = encode(&[library], &ARM64);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((word(20), word(24), word(28)), (1, 13, 2));
        assert_eq!((word(48), word(52), word(56)), (0x0a03, 72 + 5, 72));
        assert_eq!(&bytes[72..85], b"/lib/liba.so\0");
        assert_eq!(word(word(32) as usize), EXTENSION_MAGIC);
    }

    #[test]
    fn numbers_in_names_compare_as_numbers() {
        assert_eq!(compare("libx.so.9", "libx.so.10"), Ordering::Less);
        assert_eq!(compare("liba1", "libab"), Ordering::Greater);
        assert_eq!(compare("liba", "liba.so"), Ordering::Less);
    }
}
