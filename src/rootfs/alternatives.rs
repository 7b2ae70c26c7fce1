//! `/etc/alternatives`: one of several programs behind a common name, chosen by a declared table instead of by priorities.
//!
//! ```text
//! /usr/bin/pager -> /etc/alternatives/pager -> /usr/bin/less
//! ```

use crate::rootfs::step::{StepError, put};
use crate::tree::{Entry, Kind, Tree, TreePath};

/// Owner of what this step makes.
const STEP: &str = "kiln:alternatives";

/// One choice and the links that go with it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Alternative {
    /// Name in `/etc/alternatives`.
    pub name: String,
    /// The common path, such as `/usr/bin/pager`.
    pub link: String,
    /// What stands behind it, such as `/usr/bin/less`.
    pub target: String,
    /// Further links that follow the choice (`iptables-save` with `iptables`), each with a target of its own.
    #[serde(default)]
    pub slaves: Vec<Alternative>,
}

/// Why an alternative cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum AlternativeError {
    /// The tree refused the link.
    #[error(transparent)]
    Step(#[from] StepError),
    /// Nothing stands at the target.
    #[error(
        "alternative `{name}`: there is no {target}: add the package that has it, or choose another target"
    )]
    NoTarget {
        /// Name of the alternative.
        name: String,
        /// The path that leads nowhere.
        target: String,
    },
    /// A package has a real file at the common path.
    #[error("alternative `{name}`: {link} is a file of package {owner}, not a link")]
    Occupied {
        /// Name of the alternative.
        name: String,
        /// The common path.
        link: String,
        /// Who has it.
        owner: String,
    },
}

/// Makes both links of every alternative in `table`. A missing target is an error for an alternative and leaves out a slave: the
/// package may have been stripped of manual pages.
pub fn alternatives(tree: &mut Tree, table: &[Alternative]) -> Result<(), AlternativeError> {
    for choice in table {
        if !present(tree, &choice.target) {
            let (name, target) = (choice.name.clone(), choice.target.clone());
            return Err(AlternativeError::NoTarget { name, target });
        }
        set(tree, choice)?;
        for slave in &choice.slaves {
            if present(tree, &slave.target) {
                set(tree, slave)?;
            }
        }
    }
    Ok(())
}

fn present(tree: &Tree, path: &str) -> bool {
    tree.follow(path).is_some()
}

fn set(tree: &mut Tree, choice: &Alternative) -> Result<(), AlternativeError> {
    let (parent, name) = choice.link.rsplit_once('/').unwrap_or(("", &choice.link));
    let at = match tree.resolve(parent).map_err(StepError::from)? {
        Some(parent) => format!("{parent}/{name}"),
        None => choice.link.trim_start_matches('/').to_owned(),
    };
    if let Some(found) = tree.get(&at).filter(|e| !matches!(e.kind, Kind::Symlink { .. })) {
        let (name, link, owner) = (choice.name.clone(), choice.link.clone(), found.owner.to_string());
        return Err(AlternativeError::Occupied { name, link, owner });
    }
    let middle = format!("/etc/alternatives/{}", choice.name);
    put(tree, &middle, Entry::symlink(choice.target.clone(), STEP))?;
    put(tree, &choice.link, Entry::symlink(middle, STEP))?;
    Ok(())
}

/// Links of packages that go through `/etc/alternatives` to a name that nobody has set.
pub fn unset(tree: &Tree) -> Vec<(TreePath, String)> {
    let links = tree.iter().filter_map(|(path, entry)| match &entry.kind {
        Kind::Symlink { target } => Some((path, target.strip_prefix("/etc/alternatives/")?)),
        _ => None,
    });
    links
        .filter(|(_, name)| tree.get(&format!("etc/alternatives/{name}")).is_none())
        .map(|(p, n)| (p.clone(), n.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(name: &str, link: &str, target: &str, slaves: Vec<Alternative>) -> Alternative {
        Alternative { name: name.into(), link: link.into(), target: target.into(), slaves }
    }

    #[test]
    fn sets_both_links_and_the_slaves_that_are_there() {
        let mut tree = Tree::new();
        for file in ["usr/sbin/iptables-nft", "usr/sbin/iptables-nft-save"] {
            put(&mut tree, file, Entry::file(0o755, "", "iptables")).unwrap();
        }
        let slaves = vec![
            choice("iptables-save", "/usr/sbin/iptables-save", "/usr/sbin/iptables-nft-save", vec![]),
            choice("iptables.8", "/usr/share/man/iptables.8", "/usr/share/man/iptables-nft.8", vec![]),
        ];
        alternatives(
            &mut tree,
            &[choice("iptables", "/usr/sbin/iptables", "/usr/sbin/iptables-nft", slaves)],
        )
        .unwrap();
        assert_eq!(tree.resolve("usr/sbin/iptables").unwrap().unwrap().as_str(), "usr/sbin/iptables-nft");
        assert!(tree.follow("usr/sbin/iptables-save").is_some());
        assert!(tree.get("etc/alternatives/iptables.8").is_none());
        assert!(unset(&tree).is_empty());
    }

    #[test]
    fn refuses_a_missing_target_and_a_real_file_at_the_link() {
        let mut tree = Tree::new();
        put(&mut tree, "usr/bin/awk", Entry::file(0o755, "", "gawk")).unwrap();
        put(&mut tree, "usr/bin/x", Entry::symlink("/etc/alternatives/x", "p")).unwrap();
        let missing =
            alternatives(&mut tree, &[choice("a", "/usr/bin/a", "/usr/bin/none", vec![])]).unwrap_err();
        assert!(matches!(missing, AlternativeError::NoTarget { .. }));
        let file =
            alternatives(&mut tree, &[choice("awk", "/usr/bin/awk", "/usr/bin/awk", vec![])]).unwrap_err();
        assert!(matches!(file, AlternativeError::Occupied { .. }));
        assert_eq!(unset(&tree), [(TreePath::new("usr/bin/x").unwrap(), "x".to_owned())]);
    }
}
