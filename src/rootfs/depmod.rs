//! What `depmod` writes for `/usr/lib/modules/VERSION`: dependencies, aliases and symbols of kernel modules, as text and as the
//! binary indexes that `modprobe` and udev search.
//!
//! [`depmod`] does all of it on a [`Tree`]; [`Modules`] is the result, of which [`closure::closure`] takes the part that a set of
//! modules needs. Modules must be uncompressed (`.ko`). The reference is kmod's `depmod(8)`, `modules.dep(5)`.

pub mod closure;
mod index;
mod module;

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use crate::rootfs::step::{StepError, bytes, put, text};
use crate::tree::{Content, Entry, Tree, TreePath};

use index::Index;
use module::Module;
pub use module::{ModuleError, name_of};

/// Owner of what this step makes.
const STEP: &str = "kiln:depmod";

/// Why the modules of a kernel cannot be indexed.
#[derive(Debug, thiserror::Error)]
pub enum DepmodError {
    /// A file could not be read from or put in the tree.
    #[error(transparent)]
    Step(#[from] StepError),
    /// There is no such directory.
    #[error("/usr/lib/modules/{0} has no modules: choose a kernel package of this version")]
    NoModules(String),
    /// A module is damaged.
    #[error("/{path}")]
    Module {
        /// The module.
        path: TreePath,
        /// What is wrong with it.
        source: ModuleError,
    },
    /// A module is still compressed.
    #[error("/{0} is compressed: modules must be unpacked before they are indexed")]
    Compressed(TreePath),
    /// Modules need each other in a circle, so that none can be loaded first.
    #[error("modules depend on each other in a circle: {}", .0.join(", "))]
    Circle(Vec<String>),
}

/// Everything known of the modules of one kernel.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Modules {
    /// By name (with `_`), in no load order.
    pub by_name: BTreeMap<String, Loadable>,
    /// Names of what is compiled into the kernel, with their path as `modules.builtin` gives it.
    pub builtin: BTreeMap<String, String>,
}

/// One loadable module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loadable {
    /// Path relative to the directory of the kernel version: `kernel/fs/erofs/erofs.ko`.
    pub path: String,
    /// Names of all modules that must be loaded before it.
    pub needs: Vec<String>,
    /// Names from `softdep` lines (`pre:` and `post:`), as written there; some may be aliases.
    pub soft: Vec<String>,
    /// Names from `weakdep` lines: used if there, not loaded before.
    pub weak: Vec<String>,
    /// Patterns by which hardware and programs ask for it.
    pub aliases: Vec<String>,
    /// Firmware files that it may ask for, relative to `/usr/lib/firmware`.
    pub firmware: Vec<String>,
}

/// A module in the order that fixes priorities: that of `modules.order`, then by path.
struct Ordered {
    path: String,
    module: Module,
    needs: Vec<usize>,
    rank: usize,
}

/// Reads all modules of kernel `version` and writes its `modules.*` files.
pub fn depmod(tree: &mut Tree, version: &str) -> Result<Modules, DepmodError> {
    let base = format!("usr/lib/modules/{version}");
    let order = text(tree, &format!("{base}/modules.order"))?.unwrap_or_default();
    let builtin = text(tree, &format!("{base}/modules.builtin"))?.unwrap_or_default();
    let modinfo = bytes(tree, &format!("{base}/modules.builtin.modinfo"))?.unwrap_or_default();

    let mut modules = load(tree, &base, &order)?;
    // A kernel may have everything built in; then it has a list of that.
    if modules.is_empty() && builtin.is_empty() {
        return Err(DepmodError::NoModules(version.to_owned()));
    }
    let owner_of = link(&mut modules);
    rank(&mut modules)?;
    let closed: Vec<Vec<usize>> = (0..modules.len()).map(|i| all_needs(&modules, i)).collect();

    for (name, bytes) in files(&modules, &closed, &owner_of, &builtin, &modinfo) {
        put(tree, &format!("{base}/{name}"), Entry::file(0o644, bytes, STEP))?;
    }
    let mut result = Modules {
        by_name: BTreeMap::new(),
        builtin: builtin.lines().map(|l| (name_of(l), l.to_owned())).collect(),
    };
    for (module, needs) in modules.iter().zip(&closed) {
        let deps = |key: &str| -> Vec<String> {
            let lines = module.module.values(key).flat_map(str::split_whitespace);
            lines.filter(|w| !matches!(*w, "pre:" | "post:")).map(|w| w.replace('-', "_")).collect()
        };
        let loadable = Loadable {
            path: module.path.clone(),
            needs: needs.iter().filter_map(|i| modules.get(*i)).map(|m| m.module.name.clone()).collect(),
            soft: deps("softdep"),
            weak: deps("weakdep"),
            aliases: module.module.values("alias").map(str::to_owned).collect(),
            firmware: module.module.values("firmware").map(str::to_owned).collect(),
        };
        result.by_name.insert(module.module.name.clone(), loadable);
    }
    Ok(result)
}

/// Reads every `.ko` below `base`, on all cores; the order of the result does not depend on how many there are.
fn load(tree: &Tree, base: &str, order: &str) -> Result<Vec<Ordered>, DepmodError> {
    let place: HashMap<&str, usize> = order.lines().rev().zip((0..order.lines().count()).rev()).collect();
    let mut found: Vec<(usize, TreePath, Content)> = Vec::new();
    for (path, entry) in tree.below(base) {
        let Some(content) = entry.content() else { continue };
        if [".ko.xz", ".ko.zst", ".ko.gz"].iter().any(|end| path.ends_with(end)) {
            return Err(DepmodError::Compressed(path.clone()));
        }
        if path.ends_with(".ko") {
            let at = place.get(&path[base.len() + 1..]).copied().unwrap_or(usize::MAX);
            found.push((at, path.clone(), content.clone()));
        }
    }
    found.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    let read = |(_, path, content): &(usize, TreePath, Content)| {
        let bytes = content.read().map_err(|source| StepError::Read { path: path.clone(), source })?;
        let module = module::read(path, &bytes)
            .map_err(|source| DepmodError::Module { path: path.clone(), source })?;
        let path = path[base.len() + 1..].to_owned();
        Ok(Ordered { path, module, needs: Vec::new(), rank: 0 })
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let share = found.len().div_ceil(cores).max(1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = found
            .chunks(share)
            .map(|part| scope.spawn(move || part.iter().map(read).collect::<Result<Vec<_>, DepmodError>>()))
            .collect();
        let mut modules = Vec::with_capacity(found.len());
        for worker in workers {
            modules.extend(worker.join().expect("reading a module does not panic")?);
        }
        Ok(modules)
    })
}

/// Finds who exports what each module needs; returns the owner of every symbol. As in kmod, of two exporters the last wins.
fn link(modules: &mut [Ordered]) -> BTreeMap<String, usize> {
    let mut owner_of = BTreeMap::new();
    for (index, module) in modules.iter().enumerate() {
        for symbol in &module.module.exports {
            owner_of.insert(symbol.clone(), index);
        }
    }
    for (index, module) in modules.iter_mut().enumerate() {
        let mut needs = Vec::new();
        for symbol in &module.module.imports {
            let name = symbol.strip_prefix('.').unwrap_or(symbol);
            if let Some(owner) = owner_of.get(name).filter(|o| **o != index && !needs.contains(*o)) {
                needs.push(*owner);
            }
        }
        module.needs = needs;
    }
    owner_of
}

/// Ranks modules so that one stands before all it needs, with kmod's tie-breaks (last root first), and sorts `needs` by rank.
fn rank(modules: &mut [Ordered]) -> Result<(), DepmodError> {
    let mut users = vec![0_usize; modules.len()];
    modules.iter().flat_map(|m| &m.needs).for_each(|n| users[*n] += 1);
    let mut roots: Vec<usize> = (0..modules.len()).filter(|i| users[*i] == 0).collect();
    let mut ranked = 0;
    while let Some(index) = roots.pop() {
        modules[index].rank = ranked;
        ranked += 1;
        for need in modules[index].needs.clone() {
            users[need] -= 1;
            if users[need] == 0 {
                roots.push(need);
            }
        }
    }
    if ranked < modules.len() {
        let rest = modules.iter().zip(&users).filter(|(_, n)| **n > 0);
        return Err(DepmodError::Circle(rest.map(|(m, _)| m.module.name.clone()).collect()));
    }
    Ok(())
}

/// All that `index` needs, directly or not, in the order in which `modules.dep` lists it (load from the end).
fn all_needs(modules: &[Ordered], index: usize) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::new();
    let mut todo = modules[index].needs.clone();
    while let Some(next) = todo.pop() {
        if !found.contains(&next) {
            found.push(next);
            todo.extend(&modules[next].needs);
        }
    }
    found.sort_by_key(|i| modules[*i].rank);
    found
}

/// The files by name. Texts are those of kmod 34, which trixie has.
fn files(
    modules: &[Ordered],
    closed: &[Vec<usize>],
    owner_of: &BTreeMap<String, usize>,
    builtin: &str,
    modinfo: &[u8],
) -> Vec<(&'static str, Vec<u8>)> {
    let mut dep = String::new();
    let mut alias = "# Aliases extracted from modules themselves.\n".to_owned();
    let mut softdep = "# Soft dependencies extracted from modules themselves.\n".to_owned();
    let mut weakdep = "# Weak dependencies extracted from modules themselves.\n".to_owned();
    let mut symbols = "# Aliases for symbols, used by symbol_request().\n".to_owned();
    let mut devname = String::new();
    let (mut dep_bin, mut alias_bin, mut symbols_bin) = (Index::new(), Index::new(), Index::new());
    let say = |out: &mut String, text: std::fmt::Arguments<'_>| {
        out.write_fmt(text).expect("a String takes all text");
    };
    for (priority, (module, needs)) in modules.iter().zip(closed).enumerate() {
        let (name, priority) = (&module.module.name, priority as u32);
        let mut line = format!("{}:", module.path);
        needs.iter().for_each(|i| say(&mut line, format_args!(" {}", modules[*i].path)));
        say(&mut dep, format_args!("{line}\n"));
        dep_bin.insert(name, &line, priority);
        for value in module.module.values("alias") {
            say(&mut alias, format_args!("alias {value} {name}\n"));
            if let Some(key) = normal_alias(value) {
                alias_bin.insert(&key, name, priority);
            }
        }
        for value in module.module.values("softdep") {
            say(&mut softdep, format_args!("softdep {name} {value}\n"));
        }
        for value in module.module.values("weakdep") {
            say(&mut weakdep, format_args!("weakdep {name} {value}\n"));
        }
        if let Some((node, number)) = module.module.device() {
            if devname.is_empty() {
                devname.push_str("# Device nodes to trigger on-demand module loading.\n");
            }
            say(&mut devname, format_args!("{name} {node} {number}\n"));
        }
    }
    for (symbol, owner) in owner_of {
        let name = &modules[*owner].module.name;
        say(&mut symbols, format_args!("alias symbol:{symbol} {name}\n"));
        symbols_bin.insert(&format!("symbol:{symbol}"), name, *owner as u32);
    }
    let (mut builtin_bin, mut builtin_alias) = (Index::new(), Index::new());
    for line in builtin.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_alphabetic())) {
        builtin_bin.insert(&name_of(line), "", 0);
    }
    for entry in modinfo.split(|b| *b == 0) {
        let entry = String::from_utf8_lossy(entry);
        let Some((name, value)) = entry.split_once('.') else { continue };
        if let Some(key) = value.strip_prefix("alias=").and_then(normal_alias) {
            builtin_alias.insert(&key, name, 0);
        }
    }
    vec![
        ("modules.dep", dep.into_bytes()),
        ("modules.dep.bin", dep_bin.encode()),
        ("modules.alias", alias.into_bytes()),
        ("modules.alias.bin", alias_bin.encode()),
        ("modules.softdep", softdep.into_bytes()),
        ("modules.weakdep", weakdep.into_bytes()),
        ("modules.symbols", symbols.into_bytes()),
        ("modules.symbols.bin", symbols_bin.encode()),
        ("modules.builtin.bin", builtin_bin.encode()),
        ("modules.builtin.alias.bin", builtin_alias.encode()),
        ("modules.devname", devname.into_bytes()),
    ]
}

/// An alias as the index stores it: `-` is `_` outside of brackets. `None` if a bracket is not closed.
fn normal_alias(alias: &str) -> Option<String> {
    let mut inside = false;
    let mut out = String::with_capacity(alias.len());
    for c in alias.chars() {
        match c {
            '[' => inside = true,
            ']' if !inside => return None,
            ']' => inside = false,
            _ => {}
        }
        out.push(if c == '-' && !inside { '_' } else { c });
    }
    (!inside).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::module::tests::sample;
    use super::*;
    use crate::tree::Kind;

    fn tree(modules: &[(&str, Vec<u8>)]) -> Tree {
        let mut tree = Tree::new();
        let base = "usr/lib/modules/6.1";
        for (path, bytes) in modules {
            put(&mut tree, &format!("{base}/{path}"), Entry::file(0o644, bytes.clone(), "linux")).unwrap();
        }
        let mut add = |name: &str, text: &str| {
            put(&mut tree, &format!("{base}/{name}"), Entry::file(0o644, text, "linux")).unwrap();
        };
        add("modules.order", "kernel/fs/z-fs.ko\nkernel/lib/crc.ko\n");
        add("modules.builtin", "kernel/fs/ext4.ko\n");
        add("modules.builtin.modinfo", "ext4.alias=fs-ext4\0ext4.license=GPL\0");
        tree
    }

    fn read(tree: &Tree, name: &str) -> String {
        let bytes = bytes(tree, &format!("usr/lib/modules/6.1/{name}")).unwrap().unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn writes_dependencies_aliases_symbols_and_devices() {
        let mut tree = tree(&[
            ("kernel/lib/crc.ko", sample(&[], &["crc"], &["helper"])),
            ("kernel/lib/help.ko", sample(&[], &["helper"], &["printk"])),
            (
                "kernel/fs/z-fs.ko",
                sample(
                    &[
                        "alias=fs-z",
                        "alias=devname:z",
                        "alias=char-major-10-9",
                        "softdep=pre: crc",
                        "weakdep=x",
                        "firmware=z.bin",
                    ],
                    &[],
                    &["crc", "helper", "printk"],
                ),
            ),
        ]);
        let modules = depmod(&mut tree, "6.1").unwrap();
        assert_eq!(
            read(&tree, "modules.dep"),
            "kernel/fs/z-fs.ko: kernel/lib/crc.ko kernel/lib/help.ko\nkernel/lib/crc.ko: kernel/lib/help.ko\nkernel/lib/help.ko:\n"
        );
        assert!(
            read(&tree, "modules.alias")
                .ends_with("alias fs-z z_fs\nalias devname:z z_fs\nalias char-major-10-9 z_fs\n")
        );
        assert!(read(&tree, "modules.symbols").ends_with("alias symbol:crc crc\nalias symbol:helper help\n"));
        assert!(read(&tree, "modules.devname").ends_with("z_fs z c10:9\n"));
        assert!(read(&tree, "modules.softdep").ends_with("softdep z_fs pre: crc\n"));
        assert!(read(&tree, "modules.weakdep").ends_with("weakdep z_fs x\n"));
        assert!(read(&tree, "modules.builtin.bin").contains("xt4"));
        assert!(read(&tree, "modules.builtin.alias.bin").contains("s_ext4\0"));
        let fs = &modules.by_name["z_fs"];
        assert_eq!(
            (fs.needs.as_slice(), fs.firmware.as_slice()),
            (&["crc".into(), "help".into()][..], &["z.bin".into()][..])
        );
        assert!(modules.builtin.contains_key("ext4"));
        let dep = tree.get("usr/lib/modules/6.1/modules.dep").unwrap();
        assert!(matches!(dep.kind, Kind::File(_)) && &*dep.owner == "kiln:depmod");
    }

    #[test]
    fn circles_compressed_and_damaged_modules_are_refused() {
        let circle = [("a.ko", sample(&[], &["a"], &["b"])), ("b.ko", sample(&[], &["b"], &["a"]))];
        let error = depmod(&mut tree(&circle), "6.1").unwrap_err();
        assert_eq!(error.to_string(), "modules depend on each other in a circle: a, b");
        let error = depmod(&mut tree(&[("a.ko.xz", vec![])]), "6.1").unwrap_err();
        assert!(matches!(error, DepmodError::Compressed(_)));
        let mut cut = sample(&["a=b"], &[], &["x"]);
        cut.truncate(cut.len() - 100);
        let error = depmod(&mut tree(&[("a.ko", cut)]), "6.1").unwrap_err();
        assert!(matches!(error, DepmodError::Module { .. }), "{error}");
        assert!(matches!(depmod(&mut Tree::new(), "6.1"), Err(DepmodError::NoModules(_))));
        let mut builtin = Tree::new();
        put(
            &mut builtin,
            "usr/lib/modules/6.1/modules.builtin",
            Entry::file(0o644, "kernel/fs/erofs/erofs.ko\n", ""),
        )
        .unwrap();
        let all = depmod(&mut builtin, "6.1").unwrap();
        assert!(all.by_name.is_empty() && all.builtin.contains_key("erofs"));
        assert!(builtin.get("usr/lib/modules/6.1/modules.builtin.bin").is_some());
    }

    #[test]
    fn aliases_are_normalised_outside_of_brackets() {
        assert_eq!(normal_alias("a-b[c-d]-e").as_deref(), Some("a_b[c-d]_e"));
        assert_eq!(normal_alias("a[b"), None);
        assert_eq!(normal_alias("a]b"), None);
    }
}
