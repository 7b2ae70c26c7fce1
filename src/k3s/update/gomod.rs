//! go.mod (<https://go.dev/ref/mod#go-mod-file>), as much of it as a move to another release of K3s needs.

use std::collections::{BTreeMap, BTreeSet};

use super::version::Version;

/// K3s' own module.
pub(super) const K3S: &str = "github.com/k3s-io/k3s";
/// Kubernetes, which K3s takes from a repository of its own, parts of it (`k8s.io/api`) from folders there.
const KUBERNETES: &str = "k8s.io/kubernetes";
const FORK: &str = "github.com/k3s-io/kubernetes";

/// A go.mod. What `go mod tidy` finds out itself is not kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct GoMod {
    module: String,
    go: String,
    /// Module to its least version, and whether only other modules need it.
    require: BTreeMap<String, (String, bool)>,
    /// Module, or module and version, to what stands in its place.
    replace: BTreeMap<String, String>,
    exclude: BTreeSet<String>,
}

impl GoMod {
    /// Reads the text of a go.mod.
    ///
    /// # Errors
    /// The number of a line that is none, in words.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut found = GoMod::default();
        let mut block = None;
        for (number, line) in text.lines().enumerate() {
            let (code, comment) = line.split_once("//").unwrap_or((line, ""));
            let mut words: Vec<&str> = code.split_whitespace().collect();
            match (block, words.as_slice()) {
                (_, []) => continue,
                (Some(_), [")"]) => {
                    block = None;
                    continue;
                }
                (None, [verb, "("]) => {
                    block = Some(*verb);
                    continue;
                }
                _ => {}
            }
            let verb = block.unwrap_or_else(|| words.remove(0));
            let arrow = words.iter().position(|word| *word == "=>");
            match (verb, words.as_slice(), arrow) {
                ("module", [name], _) => found.module = (*name).to_owned(),
                ("go", [version], _) => found.go = (*version).to_owned(),
                ("require", [module, version], _) => {
                    let indirect = comment.trim().starts_with("indirect");
                    found.require.insert((*module).to_owned(), ((*version).to_owned(), indirect));
                }
                ("exclude", [_, _], _) => {
                    found.exclude.insert(words.join(" "));
                }
                ("replace", _, Some(at @ 1..=2)) if (at + 2..=at + 3).contains(&words.len()) => {
                    found.replace.insert(words[..at].join(" "), words[at + 1..].join(" "));
                }
                ("module" | "go" | "require" | "exclude" | "replace", ..) => {
                    return Err(format!("line {} is no line of a go.mod", number + 1));
                }
                // What else there is concerns the module that says it.
                _ => {}
            }
        }
        if found.module.is_empty() || found.go.is_empty() {
            return Err("it names no module or no version of Go".to_owned());
        }
        Ok(found)
    }

    /// The version of a module that is built: of what stands in its place, if something does.
    pub(super) fn version(&self, module: &str) -> Option<&str> {
        let (required, _) = self.require.get(module)?;
        let placed = self.replace.get(module).or_else(|| self.replace.get(&format!("{module} {required}")));
        Some(placed.and_then(|placed| placed.split(' ').nth(1)).unwrap_or(required))
    }

    /// This module, of which K3s is a part, moved to `release`, whose source is `k3s`, a version of K3s' module with the go.mod `upstream`.
    ///
    /// A module's replacements count for itself only, so upstream's are taken over, and its versions with them. Kubernetes becomes that of
    /// the release whatever revision was found, for the programs will say that they are it.
    pub(super) fn moved(&self, upstream: &GoMod, k3s: &str, release: &Version) -> GoMod {
        let mut moved = GoMod { module: self.module.clone(), ..upstream.clone() };
        for (_, indirect) in moved.require.values_mut() {
            *indirect = true;
        }
        for (module, (version, _)) in self.require.iter().filter(|(_, (_, indirect))| !indirect) {
            let entry = moved.require.entry(module.clone()).or_insert_with(|| (version.clone(), false));
            entry.1 = false;
        }
        moved.require.insert(K3S.to_owned(), (k3s.to_owned(), false));
        let (old, new) = (upstream.kubernetes(), release.kubernetes());
        let of_parts = |version: &str| version.replacen("v1.", "v0.", 1);
        for (module, (version, _)) in
            moved.require.iter_mut().filter(|(module, _)| module.starts_with("k8s.io/"))
        {
            if module == KUBERNETES {
                *version = new.to_owned();
            } else if old.as_deref().is_some_and(|old| *version == of_parts(old)) {
                *version = of_parts(new);
            }
        }
        for placed in moved.replace.values_mut() {
            let Some((path, _)) = placed.split_once(' ') else { continue };
            if path == FORK || path.starts_with(&format!("{FORK}/")) {
                *placed = format!("{path} {}", release.tag());
            }
        }
        moved
    }

    /// The Kubernetes in it, `v1.33.3`.
    pub(super) fn kubernetes(&self) -> Option<String> {
        let tag = self.version(KUBERNETES)?;
        Some(tag.split_once("-k3s").map_or(tag, |(version, _)| version).to_owned())
    }

    /// The text that [`GoMod::parse`] reads.
    pub(super) fn text(&self) -> String {
        let mut text = format!("module {}\n\ngo {}\n", self.module, self.go);
        let mut block = |verb: &str, lines: Vec<String>| {
            if !lines.is_empty() {
                text.push_str(&format!("\n{verb} (\n\t{}\n)\n", lines.join("\n\t")));
            }
        };
        block("replace", self.replace.iter().map(|(old, new)| format!("{old} => {new}")).collect());
        block("exclude", self.exclude.iter().cloned().collect());
        let required = |wanted: bool| {
            let of_kind = self.require.iter().filter(|(_, (_, indirect))| *indirect == wanted);
            let tail = if wanted { " // indirect" } else { "" };
            of_kind.map(|(module, (version, _))| format!("{module} {version}{tail}")).collect()
        };
        block("require", required(false));
        block("require", required(true));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPSTREAM: &str = "module github.com/k3s-io/k3s

go 1.24.4

toolchain go1.24.5
exclude example.org/broken v1.0.0

replace (
	github.com/containerd/containerd/v2 => github.com/k3s-io/containerd/v2 v2.0.5-k3s2
	k8s.io/api => github.com/k3s-io/kubernetes/staging/src/k8s.io/api v1.33.2-k3s1
	k8s.io/klog => github.com/k3s-io/klog v1.0.0-k3s2 // k3s-release-1.x
	k8s.io/kubernetes => github.com/k3s-io/kubernetes v1.33.2-k3s1
)

retract [v1.0.0, v1.1.0] // no release

require (
	github.com/containerd/containerd/v2 v2.0.5
	github.com/k3s-io/kine v0.13.17
	k8s.io/api v0.33.2
	k8s.io/kubernetes v1.33.2
)

require github.com/urfave/cli/v2 v2.27.7 // indirect
";

    const OURS: &str = "module kiln.invalid/k3s

go 1.24.0

replace k8s.io/api => github.com/k3s-io/kubernetes/staging/src/k8s.io/api v1.32.0-k3s1

require (
	github.com/k3s-io/k3s v1.32.0
	github.com/urfave/cli/v2 v2.20.0
	example.org/own v1.0.0
	example.org/gone v1.0.0 // indirect
)
";

    #[test]
    fn versions_are_those_of_replacements() {
        let found = GoMod::parse(UPSTREAM).unwrap();
        assert_eq!(found.version("github.com/containerd/containerd/v2"), Some("v2.0.5-k3s2"));
        assert_eq!(found.version("github.com/k3s-io/kine"), Some("v0.13.17"));
        assert_eq!(found.version("k8s.io/klog"), None, "it is not required");
        assert_eq!(found.kubernetes().as_deref(), Some("v1.33.2"));
        assert_eq!(GoMod::parse(&found.text()).unwrap(), found);
    }

    #[test]
    fn a_module_moves_to_upstreams_versions_and_to_the_kubernetes_of_the_release() {
        let (ours, upstream) = (GoMod::parse(OURS).unwrap(), GoMod::parse(UPSTREAM).unwrap());
        let moved = ours.moved(&upstream, "v1.33.1-0.2025-abc", &"v1.33.3+k3s1".parse().unwrap());
        insta::assert_snapshot!(moved.text(), @r"
        module kiln.invalid/k3s

        go 1.24.4

        replace (
        	github.com/containerd/containerd/v2 => github.com/k3s-io/containerd/v2 v2.0.5-k3s2
        	k8s.io/api => github.com/k3s-io/kubernetes/staging/src/k8s.io/api v1.33.3-k3s1
        	k8s.io/klog => github.com/k3s-io/klog v1.0.0-k3s2
        	k8s.io/kubernetes => github.com/k3s-io/kubernetes v1.33.3-k3s1
        )

        exclude (
        	example.org/broken v1.0.0
        )

        require (
        	example.org/own v1.0.0
        	github.com/k3s-io/k3s v1.33.1-0.2025-abc
        	github.com/urfave/cli/v2 v2.27.7
        )

        require (
        	github.com/containerd/containerd/v2 v2.0.5 // indirect
        	github.com/k3s-io/kine v0.13.17 // indirect
        	k8s.io/api v0.33.3 // indirect
        	k8s.io/kubernetes v1.33.3 // indirect
        )
        ");
    }

    #[test]
    fn the_recipes_own_module_is_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/images/recipes/k3s/module/go.mod");
        let found = GoMod::parse(&fs_err::read_to_string(path).unwrap()).unwrap();
        assert!(found.version(K3S).is_some() && found.kubernetes().is_some());
    }

    #[test]
    fn what_is_no_go_mod_is_refused() {
        for (text, why) in [
            ("", "names no module"),
            ("<html>not found</html>\n", "names no module"),
            ("module a\ngo 1.24\nrequire b\n", "line 3"),
            ("module a\ngo 1.24\nreplace (\n\tb =>\n)\n", "line 4"),
            ("module a\ngo 1.24\nreplace b v1 x => c v1\n", "line 3"),
        ] {
            let error = GoMod::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
