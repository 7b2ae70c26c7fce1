//! Which modules a set of wanted ones needs: for module filters of a profile and for the initrd.

use std::collections::{BTreeMap, BTreeSet};

use globset::GlobBuilder;

use super::{Modules, name_of};

/// Why a list of wanted modules cannot be satisfied.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ClosureError {
    /// Neither a module nor part of the kernel.
    #[error("no module `{name}` in this kernel{}", near.iter().map(|n| format!(", did you mean `{n}`")).collect::<String>())]
    Unknown {
        /// As asked for.
        name: String,
        /// Names that look alike, best first, three at most.
        near: Vec<String>,
    },
    /// The pattern is no glob.
    #[error("`{pattern}` is no pattern: {reason}")]
    Pattern {
        /// As asked for.
        pattern: String,
        /// What the glob parser says.
        reason: String,
    },
    /// A pattern that fits nothing.
    #[error("pattern `{0}` fits no module of this kernel: correct it or take it out")]
    Nothing(String),
}

/// The names of all modules that `wanted` names and all that those need, hard and soft. What is built in counts as there
/// and is left out. A wanted entry with `*`, `?`, `[` or `{` is a glob: over paths such as `kernel/net/**` if it holds a `/`,
/// else over names such as `virtio_*`. `-` and `_` are the same in names.
pub fn closure<'a>(
    modules: &Modules,
    wanted: impl IntoIterator<Item = &'a str>,
) -> Result<BTreeSet<String>, ClosureError> {
    let mut todo = Vec::new();
    for wish in wanted {
        if wish.contains(['*', '?', '[', '{']) {
            todo.extend(matching(modules, wish)?);
            continue;
        }
        let name = name_of(wish);
        if modules.by_name.contains_key(&name) {
            todo.push(name);
        } else if !modules.builtin.contains_key(&name) {
            return Err(ClosureError::Unknown { name: wish.to_owned(), near: near(modules, &name) });
        }
    }
    let aliases = soft_aliases(modules);
    let mut found = BTreeSet::new();
    while let Some(name) = todo.pop() {
        let Some(module) = modules.by_name.get(&name) else { continue };
        if !found.insert(name) {
            continue;
        }
        todo.extend(module.needs.iter().cloned());
        for soft in &module.soft {
            // A soft dependency may name an alias (`crc32c`) and may be absent: the kernel does without.
            match modules.by_name.contains_key(soft) {
                true => todo.push(soft.clone()),
                false => todo.extend(aliases.get(soft).into_iter().flatten().cloned()),
            }
        }
    }
    Ok(found)
}

/// Aliases without wildcards, as softdeps use them, to their modules.
fn soft_aliases(modules: &Modules) -> BTreeMap<String, Vec<String>> {
    let mut map: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, module) in &modules.by_name {
        for alias in module.aliases.iter().filter(|a| !a.contains(['*', '?', '['])) {
            map.entry(alias.replace('-', "_")).or_default().push(name.clone());
        }
    }
    map
}

fn matching(modules: &Modules, pattern: &str) -> Result<Vec<String>, ClosureError> {
    let over_paths = pattern.contains('/');
    let text = if over_paths { pattern.to_owned() } else { pattern.replace('-', "_") };
    let glob = GlobBuilder::new(&text).literal_separator(true).build();
    let glob = glob
        .map_err(|e| ClosureError::Pattern { pattern: pattern.to_owned(), reason: e.kind().to_string() })?
        .compile_matcher();
    let fits = |name: &str, path: &str| glob.is_match(if over_paths { path } else { name });
    let found: Vec<String> = modules
        .by_name
        .iter()
        .filter(|(name, module)| fits(name, &module.path))
        .map(|(name, _)| name.clone())
        .collect();
    if found.is_empty() && !modules.builtin.iter().any(|(name, path)| fits(name, path)) {
        return Err(ClosureError::Nothing(pattern.to_owned()));
    }
    Ok(found)
}

fn near(modules: &Modules, name: &str) -> Vec<String> {
    let all = modules.by_name.keys().chain(modules.builtin.keys());
    let mut scored: Vec<(f64, &String)> = all.map(|n| (strsim::jaro_winkler(n, name), n)).collect();
    scored.retain(|(score, _)| *score > 0.85);
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(3).map(|(_, n)| n.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::depmod::Loadable;

    fn sample() -> Modules {
        let mut modules = Modules::default();
        let mut add = |name: &str, path: &str, needs: &[&str], soft: &[&str], aliases: &[&str]| {
            let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
            let module = Loadable {
                path: path.into(),
                needs: own(needs),
                soft: own(soft),
                aliases: own(aliases),
                ..Loadable::default()
            };
            modules.by_name.insert(name.into(), module);
        };
        add("erofs", "kernel/fs/erofs/erofs.ko", &["netfs"], &["crc32c"], &[]);
        add("netfs", "kernel/fs/netfs/netfs.ko", &[], &[], &[]);
        add("crc32c_generic", "kernel/crypto/crc32c_generic.ko", &[], &[], &["crc32c"]);
        add("virtio_blk", "kernel/drivers/block/virtio_blk.ko", &[], &["gone"], &[]);
        modules.builtin.insert("virtio_pci".into(), "kernel/drivers/virtio/virtio_pci.ko".into());
        modules
    }

    #[test]
    fn follows_hard_and_soft_dependencies_and_counts_builtin_as_there() {
        let found = closure(&sample(), ["erofs", "virtio-pci"]).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["crc32c_generic", "erofs", "netfs"]);
    }

    #[test]
    fn globs_go_over_names_or_paths() {
        assert_eq!(closure(&sample(), ["virtio-*"]).unwrap().len(), 1);
        assert_eq!(closure(&sample(), ["kernel/fs/**"]).unwrap().len(), 3);
        assert_eq!(closure(&sample(), ["nothing_*"]), Err(ClosureError::Nothing("nothing_*".into())));
        assert!(matches!(closure(&sample(), ["a[*"]), Err(ClosureError::Pattern { .. })));
    }

    #[test]
    fn an_unknown_module_is_refused_with_near_names() {
        let error = closure(&sample(), ["erofz"]).unwrap_err();
        assert_eq!(error.to_string(), "no module `erofz` in this kernel, did you mean `erofs`");
    }
}
