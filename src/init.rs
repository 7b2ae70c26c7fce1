//! `kiln init`: a new project out of this program, the same as the one in kiln's own repository, its lock included: it builds as it is.

use std::path::Path;

use anyhow::Result;
use fs_err as fs;

use crate::error::{Failure, Kind};

/// A file of a new project: its path, and its bytes in this repository.
macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../", $path)))),*]
    };
}

/// Every file of images/, profiles/ and qemu/; a test sees that none is forgotten.
const FILES: &[(&str, &[u8])] = files![
    "images/containers/coredns.toml",
    "images/containers/local-path-provisioner.toml",
    "images/containers/metrics-server.toml",
    "images/containers/nfs.toml",
    "images/containers/pause.toml",
    "images/containers/toolbox.toml",
    "images/debian.toml",
    "images/files/identity",
    "images/files/install",
    "images/files/kiln-identity.service",
    "images/files/kiln-install.service",
    "images/files/kiln-seal.service",
    "images/files/kiln-watch.service",
    "images/files/seal",
    "images/files/ssh-host-key",
    "images/files/watch",
    "images/k3s.toml",
    "images/k3s/clock",
    "images/k3s/join",
    "images/k3s/joined",
    "images/k3s/k3s.service",
    "images/k3s/kiln-k3s-joined.service",
    "images/k3s/kiln-k3s.service",
    "images/k3s/manifests/coredns.yaml",
    "images/k3s/manifests/local-path.yaml",
    "images/k3s/manifests/metrics-server.yaml",
    "images/k3s/pin",
    "images/k3s/prepare",
    "images/k3s/route",
    "images/kernel/README",
    "images/kernel/boot.toml",
    "images/kernel/cilium.toml",
    "images/kernel/container.toml",
    "images/kernel/flannel.toml",
    "images/kernel/fragments/README",
    "images/kernel/fragments/arm64.config",
    "images/kernel/fragments/base.config",
    "images/kernel/fragments/node-x86.config",
    "images/kernel/fragments/node.config",
    "images/kernel/fragments/vm-x86.config",
    "images/kernel/fragments/vm.config",
    "images/kernel/fragments/x86.config",
    "images/kernel/hardening.toml",
    "images/kernel/k3s.toml",
    "images/kernel/machine.toml",
    "images/kernel/nfs.toml",
    "images/kernel/sources/node.toml",
    "images/kernel/sources/vm.toml",
    "images/kernel/systemd.toml",
    "images/keys/README",
    "images/keys/debian-archive-trixie-automatic.asc",
    "images/keys/debian-archive-trixie-security-automatic.asc",
    "images/keys/debian-archive-trixie-stable.asc",
    "images/kiln.lock",
    "images/node.toml",
    "images/recipes/cni-flannel/build.sh",
    "images/recipes/cni-flannel/module/go.mod",
    "images/recipes/cni-flannel/module/go.sum",
    "images/recipes/cni-flannel/module/main.go",
    "images/recipes/cni-flannel/module/main_test.go",
    "images/recipes/cni-flannel/recipe.toml",
    "images/recipes/coredns/build.sh",
    "images/recipes/coredns/module/go.mod",
    "images/recipes/coredns/module/go.sum",
    "images/recipes/coredns/module/main.go",
    "images/recipes/coredns/recipe.toml",
    "images/recipes/k3s-config/build.sh",
    "images/recipes/k3s-config/module/go.mod",
    "images/recipes/k3s-config/module/go.sum",
    "images/recipes/k3s-config/module/main.go",
    "images/recipes/k3s-config/module/main_test.go",
    "images/recipes/k3s-config/recipe.toml",
    "images/recipes/k3s/build.sh",
    "images/recipes/k3s/module/cmd/containerd-shim-runc-v2/main.go",
    "images/recipes/k3s/module/cmd/k3s/main.go",
    "images/recipes/k3s/module/go.mod",
    "images/recipes/k3s/module/go.sum",
    "images/recipes/k3s/recipe.toml",
    "images/recipes/local-path-provisioner/build.sh",
    "images/recipes/local-path-provisioner/module/go.mod",
    "images/recipes/local-path-provisioner/module/go.sum",
    "images/recipes/local-path-provisioner/recipe.toml",
    "images/recipes/metrics-server/build.sh",
    "images/recipes/metrics-server/module/go.mod",
    "images/recipes/metrics-server/module/go.sum",
    "images/recipes/metrics-server/recipe.toml",
    "images/tools.toml",
    "profiles/agent.toml",
    "profiles/server.toml",
    "qemu/cilium.toml",
    "qemu/faults.toml",
    "qemu/hardware.toml",
    "qemu/join.toml",
    "qemu/k3s-faults.toml",
    "qemu/kernel-node.toml",
    "qemu/kernel-vm.toml",
    "qemu/machines/agent-vm.toml",
    "qemu/machines/bare.toml",
    "qemu/machines/edge.toml",
    "qemu/machines/edge/dnsmasq.service",
    "qemu/machines/edge/exports",
    "qemu/machines/edge/generator",
    "qemu/machines/edge/nfs.conf",
    "qemu/machines/server-cilium.toml",
    "qemu/machines/server-metal.toml",
    "qemu/machines/server-node.toml",
    "qemu/networks.toml",
    "qemu/nfs.toml",
    "qemu/smoke.toml",
    "qemu/three-node.toml",
];

/// What git should pass over in a new project.
const IGNORE: (&str, &[u8]) = (".gitignore", b"/out\n");

/// What may lie in a folder that still counts as empty.
const PASSED_OVER: [&str; 1] = [".git"];

/// Writes a new project into `dir`, which must be empty or not there yet. Gives the paths of its files.
pub fn init(dir: &Path) -> Result<Vec<String>> {
    refuse_full(dir)?;
    let mut written = Vec::new();
    for (path, bytes) in FILES.iter().chain([&IGNORE]) {
        let to = dir.join(path);
        fs::create_dir_all(to.parent().expect("every file lies in the project's folder"))?;
        fs::write(&to, bytes)?;
        fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        written.push((*path).to_owned());
    }
    Ok(written)
}

fn refuse_full(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    for entry in entries {
        let name = entry?.file_name();
        if !PASSED_OVER.iter().any(|passed| name == *passed) {
            let text = format!("{} is not empty: it has `{}`", dir.display(), name.display());
            return Err(Failure::new(Kind::Input, text)
                .hint("name a folder that is not there yet; nothing was written")
                .into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Lock;
    use crate::spec::{FOLDERS, Project};
    use std::collections::BTreeSet;

    fn below(dir: &Path, path: &str, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir.join(path)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{path}/{}", entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                below(dir, &path, found);
            } else {
                found.insert(path);
            }
        }
    }

    #[test]
    fn no_file_of_a_project_is_forgotten() {
        let mut found = BTreeSet::new();
        for folder in FOLDERS {
            below(Path::new(env!("CARGO_MANIFEST_DIR")), folder, &mut found);
        }
        assert_eq!(FILES.iter().map(|(path, _)| (*path).to_owned()).collect::<BTreeSet<_>>(), found);
    }

    #[test]
    fn a_new_project_loads_and_its_lock_fits() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("a/new");
        assert_eq!(init(&to).unwrap().len(), FILES.len() + 1);
        let project = Project::load(&to).unwrap();
        Lock::load(&to).unwrap().check(&project).unwrap();
    }

    #[test]
    fn a_folder_with_something_in_it_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".git")).unwrap();
        fs::write(dir.path().join("notes"), "x").unwrap();
        let error = init(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("is not empty: it has `notes`"), "{error}");
        assert!(!dir.path().join("images").exists());
        fs::remove_file(dir.path().join("notes")).unwrap();
        init(dir.path()).unwrap();
    }
}
