//! An image that lies on disk already, known by the manifest beside it: what `diff`, `why` and `sbom` look at.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;

use crate::error::{Failure, Kind};
use crate::manifest::{self, FileInfo, Manifest};
use crate::spec::nearest;

/// Endings of the files that a manifest describes.
pub(crate) const IMAGES: [&str; 3] = [".raw", ".raw.zst", ".qcow2"];

/// A built image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// Its manifest's file.
    pub path: PathBuf,
    /// What the manifest says.
    pub manifest: Manifest,
    /// Every file of its root by absolute path.
    pub files: BTreeMap<String, FileInfo>,
}

impl Built {
    /// Finds the image that `name` means: a manifest (`out/server.json`), an image beside its manifest (`out/server.raw`), or the
    /// name of something in the folder `out` (`server`, `server-arm64`).
    pub fn find(name: &str, out: &Path) -> Result<Self> {
        Self::read(&locate(name, out)?)
    }

    /// Reads a manifest and the list of files that belongs to it.
    pub fn read(path: &Path) -> Result<Self> {
        let manifest = manifest::read(path)?;
        let list = manifest::files_path(path);
        if !list.is_file() {
            let text = format!("{} has no list of files: {} is missing", path.display(), list.display());
            return Err(Failure::new(Kind::Input, text)
                .hint("`kiln build` writes both; copy them together")
                .into());
        }
        Ok(Built { path: path.to_owned(), manifest, files: manifest::read_files(path)? })
    }

    /// The names of all images in the folder `out`, sorted.
    pub fn names(out: &Path) -> Vec<String> {
        let Ok(entries) = fs::read_dir(out) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .filter_map(|name| name.strip_suffix(".files.json").map(str::to_owned))
            .filter(|stem| out.join(format!("{stem}.json")).is_file())
            .collect();
        names.sort();
        names
    }
}

/// The manifest that `name` means.
pub fn locate(name: &str, out: &Path) -> Result<PathBuf> {
    let there = |path: PathBuf, hint: String| {
        if path.is_file() {
            return Ok(path);
        }
        Err(Failure::new(Kind::Input, format!("there is no manifest {}", path.display())).hint(hint).into())
    };
    if let Some(stem) = IMAGES.iter().find_map(|end| name.strip_suffix(end)) {
        return there(
            PathBuf::from(format!("{stem}.json")),
            format!("`kiln build` writes it beside {name}; copy both"),
        );
    }
    if name.ends_with(".json") || name.contains('/') {
        return there(PathBuf::from(name), "name a manifest, an image beside one, or a profile".to_owned());
    }
    let names = Built::names(out);
    if names.iter().any(|n| n == name) {
        return Ok(out.join(format!("{name}.json")));
    }
    let mut failure =
        Failure::new(Kind::Input, format!("no image `{name}` has been built in {}", out.display()));
    if let Some(near) = nearest(name, names.iter().map(String::as_str)) {
        failure = failure.hint(format!("did you mean `{near}`?"));
    }
    Err(failure.hint(format!("run `kiln build --profile {name}` first")).into())
}

/// Manifests and lists of files for tests of the modules that read them.
#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::arch::Arch;
    use crate::digest::Digest;
    use crate::inventory::go::{Go, Module};
    use crate::inventory::{Component, Container, FromRecipe, Made, Program};
    use crate::manifest::{DiskInfo, PackageInfo, PartitionInfo, SCHEMA, Sizes};
    use crate::spec::Role;

    pub(crate) fn package(version: &str, depends: &str, provides: &str) -> PackageInfo {
        PackageInfo {
            version: version.to_owned(),
            arch: "amd64".to_owned(),
            source: String::new(),
            sha256: Digest::of(format!("{version} {depends}").as_bytes()),
            path: "pool/main/x.deb".to_owned(),
            depends: depends.to_owned(),
            provides: provides.to_owned(),
            base: false,
            scripts: Vec::new(),
        }
    }

    pub(crate) fn file(kind: &str, from: &str) -> FileInfo {
        FileInfo {
            kind: kind.to_owned(),
            mode: "0644".to_owned(),
            uid: 0,
            gid: 0,
            size: 0,
            sha256: None,
            target: None,
            xattrs: BTreeMap::new(),
            from: from.to_owned(),
        }
    }

    pub(crate) fn link(target: &str, from: &str) -> FileInfo {
        FileInfo { target: Some(target.to_owned()), ..file("link", from) }
    }

    fn program(path: &str, go: Option<Go>) -> Program {
        Program { path: path.to_owned(), sha256: Digest::of(path.as_bytes()), go }
    }

    /// A program of two modules, of which all have the second.
    fn go(package: &str, path: &str, version: &str) -> Option<Go> {
        let module = |path: &str, version: &str| Module {
            path: path.to_owned(),
            version: version.to_owned(),
            sum: None,
            replaces: None,
        };
        Some(Go {
            version: "go1.24.4".to_owned(),
            package: package.to_owned(),
            modules: vec![module(path, version), module("golang.org/x/sys", "v0.23.0")],
        })
    }

    fn recipe(name: &str, commit: Option<&str>) -> FromRecipe {
        FromRecipe {
            recipe: name.to_owned(),
            outputs: Digest::of(name.as_bytes()),
            commit: commit.map(str::to_owned),
            go_modules: Some(Digest::of(b"modules")),
            source_set: None,
        }
    }

    /// K3s of a recipe, as the manifest of an image has it.
    pub(crate) fn k3s() -> Component {
        let commit = "ec165b106313a7906d04c4e5ba3913f893a43002";
        let module = "v1.33.0-rc1.0.20250715012353-ec165b106313";
        Component {
            version: "v1.33.3+k3s1".to_owned(),
            arch: "amd64".to_owned(),
            description: "K3s from its modules".to_owned(),
            made: Made::Recipe(recipe("k3s", Some(commit))),
            programs: vec![program(
                "/usr/bin/k3s",
                go("kiln.invalid/k3s/cmd/k3s", "github.com/k3s-io/k3s", module),
            )],
        }
    }

    /// CoreDNS in a container image with a package of Debian that is nowhere else.
    pub(crate) fn coredns() -> Container {
        Container {
            reference: "kiln.invalid/coredns:1.12.1".to_owned(),
            description: "CoreDNS".to_owned(),
            digest: Digest::of(b"coredns"),
            file: "/usr/share/kiln/containers/coredns-1089b7fe6081.tar".to_owned(),
            image: None,
            set: Some("container-coredns".to_owned()),
            recipe: Some(recipe("coredns", None)),
            packages: [("tini".to_owned(), package("0.19-1", "", ""))].into(),
            programs: vec![program(
                "/coredns",
                go("kiln.invalid/coredns", "github.com/coredns/coredns", "v1.12.1"),
            )],
        }
    }

    pub(crate) fn sample() -> Built {
        let mut base = package("13.8", "", "base");
        base.base = true;
        let packages = [
            ("base-files", base),
            ("curl", package("8.14-2", "libcurl4t64 (= 8.14-2), libc6 (>= 2.38)", "")),
            ("libc6", package("2.41-12", "", "")),
            ("libcurl4t64", package("8.14-2", "libssl3 | libssl3t64 (>= 3), libc6 (>= 2.41)", "")),
            (
                "libssl3t64",
                PackageInfo {
                    source: "openssl (3.5-1)".to_owned(),
                    ..package("3.5-1+b1", "", "libssl3 (= 3.5)")
                },
            ),
        ];
        let files = [
            ("/bin", link("usr/bin", "base-files")),
            ("/etc", file("dir", "base-files")),
            (
                "/etc/hosts",
                FileInfo { size: 10, sha256: Some(Digest::of(b"hosts")), ..file("file", "kiln:files") },
            ),
            ("/etc/passwd", file("file", "kiln:accounts")),
            ("/usr/bin/curl", file("file", "curl")),
            ("/usr/bin/k3s", file("file", "k3s")),
            ("/usr/bin/kubectl", link("k3s", "k3s")),
            ("/usr/share/kiln/containers", file("dir", "k3s-containers")),
            ("/usr/share/kiln/containers/coredns-1089b7fe6081.tar", file("file", "k3s-containers")),
        ];
        Built {
            path: "out/server.json".into(),
            manifest: Manifest {
                k3s: None,
                schema: SCHEMA,
                kiln: "0.1.0".to_owned(),
                profile: "server".to_owned(),
                role: Some(Role::Server),
                arch: Arch::Amd64,
                version: "20260912-abcdef01".to_owned(),
                epoch: 1_789_199_741,
                disk: DiskInfo {
                    file: "server.raw".to_owned(),
                    size: 4 << 20,
                    sha256: Digest::of(b"disk"),
                    partitions: vec![PartitionInfo {
                        name: "esp".to_owned(),
                        kind: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b".to_owned(),
                        guid: "83f71d07-7219-58f2-bff1-37ac3a4115d3".to_owned(),
                        offset: 1 << 20,
                        size: 2 << 20,
                    }],
                },
                root_hash: Digest::of(b"root"),
                uki: Digest::of(b"uki"),
                cmdline: vec!["quiet".to_owned()],
                kernel: "6.12.1".to_owned(),
                modules: 10,
                features: [("cilium.base".to_owned(), 15)].into(),
                sizes: Sizes { root: 100, root_metadata: 10, files: 300, uki: 50, initrd: 20 },
                os: crate::manifest::Os { id: "debian".to_owned(), version: "13".to_owned() },
                packages: packages.map(|(name, p)| (name.to_owned(), p)).into(),
                boot: [("busybox-static".to_owned(), package("1.37-6", "", ""))].into(),
                components: [("k3s".to_owned(), k3s())].into(),
                containers: [("coredns".to_owned(), coredns())].into(),
                suites: [("trixie".to_owned(), ("2026-09-12T07:55:41Z".to_owned(), Digest::of(b"s")))].into(),
                units: vec!["ssh.service".to_owned()],
                steps: [("root".to_owned(), "90e5ee63ec99".to_owned())].into(),
                notes: Vec::new(),
            },
            files: files.map(|(path, f)| (path.to_owned(), f)).into(),
        }
    }

    #[test]
    fn an_image_is_found_by_manifest_disk_and_name_and_near_names_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let built = sample();
        let at = dir.path().join("server.json");
        manifest::write_json(&at, &built.manifest).unwrap();
        let path = at.display().to_string();
        assert!(Built::find(&path, dir.path()).unwrap_err().to_string().contains("has no list of files"));
        manifest::write_json(&manifest::files_path(&at), &built.files).unwrap();
        for name in ["server", &path, &path.replace(".json", ".raw"), &path.replace(".json", ".raw.zst")] {
            let found = Built::find(name, dir.path()).unwrap();
            assert_eq!((&found.manifest, &found.files, &found.path), (&built.manifest, &built.files, &at));
        }
        let error = Built::find("servr", dir.path()).unwrap_err();
        assert_eq!(crate::error::report(&error).hints[0], "did you mean `server`?");
        assert!(Built::find("other/server.json", dir.path()).is_err());
    }
}
