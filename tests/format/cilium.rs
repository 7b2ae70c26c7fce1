//! An image for a cluster whose pods Cilium connects: erofs-utils take the files out, kubectl reads what a server applies.

use std::path::PathBuf;

use super::common::{images, tools};
use super::{judge, read};

/// The files of the root file system of a profile's image.
struct Root {
    image: PathBuf,
    offset: u64,
    paths: Vec<String>,
}

impl Root {
    fn of(profile: &str) -> Self {
        let image = images::image(profile, "amd64");
        let manifest = images::manifest(profile, "amd64");
        let root = manifest.disk.partitions.iter().find(|part| part.name.starts_with("root-")).unwrap();
        let files = kiln::manifest::read_files(&image.with_extension("json")).unwrap();
        Root { offset: root.offset, paths: files.into_keys().collect(), image }
    }

    fn read(&self, path: &str) -> String {
        let offset = format!("--offset={}", self.offset);
        let dump = judge("usr/bin/dump.erofs").args(["--cat", &format!("--path={path}"), &offset]);
        read(&dump.arg(&self.image))
    }

    /// The names that go on from `start`.
    fn below(&self, start: &str) -> Vec<&str> {
        self.paths.iter().filter_map(|path| path.strip_prefix(start)).collect()
    }
}

/// The kinds of the objects in manifests, as kubectl reads them.
fn kinds(manifests: &[String]) -> Vec<String> {
    let folder = tempfile::tempdir_in(images::folder()).unwrap();
    let mut list = "resources:\n".to_owned();
    for (number, text) in manifests.iter().enumerate() {
        fs_err::write(folder.path().join(format!("{number}.yaml")), text).unwrap();
        list.push_str(&format!("- {number}.yaml\n"));
    }
    fs_err::write(folder.path().join("kustomization.yaml"), list).unwrap();
    let read = tools::host("kubectl", &["kustomize", folder.path().to_str().unwrap()]);
    let mut kinds: Vec<String> =
        read.stdout.lines().filter_map(|line| line.strip_prefix("kind: ")).map(str::to_owned).collect();
    kinds.sort_unstable();
    kinds
}

#[test]
fn with_cilium_a_server_applies_its_chart_and_its_addresses_and_k3s_connects_no_pods() {
    let root = Root::of("server-cilium");
    let names = root.below("/usr/share/kiln/k3s/manifests/");
    assert!(names.contains(&"cilium.yaml") && names.contains(&"cilium-lb.yaml"), "{names:?}");
    let manifests: Vec<String> = ["cilium", "cilium-lb"]
        .map(|name| root.read(&format!("/usr/share/kiln/k3s/manifests/{name}.yaml")))
        .into();
    assert_eq!(
        kinds(&manifests),
        [
            "CiliumBGPAdvertisement",
            "CiliumBGPClusterConfig",
            "CiliumBGPPeerConfig",
            "CiliumL2AnnouncementPolicy",
            "CiliumLoadBalancerIPPool",
            "HelmChart"
        ]
    );
    assert!(manifests[1].contains("192.168.50.240/28"), "{}", manifests[1]);

    let config = root.read("/usr/share/kiln/k3s/config.yaml");
    for line in [r#"flannel-backend: "none""#, "disable-network-policy: true", "disable-kube-proxy: true"] {
        assert!(config.lines().any(|other| other == line), "no {line} in {config}");
    }
    assert!(!config.contains("disable-helm-controller"), "who installs the chart? {config}");
    assert!(root.read("/usr/lib/sysctl.d/99-kiln-cilium.conf").contains("net.ipv4.conf.lxc*.rp_filter = 0"));
    assert!(root.read("/usr/lib/systemd/network/05-kiln-cilium.network").contains("Unmanaged=yes"));
}

#[test]
fn a_profile_s_container_images_come_beside_those_of_its_layers() {
    let root = Root::of("server-cilium");
    let archives = root.below("/usr/share/kiln/containers/");
    let references = root.read("/usr/share/kiln/k3s/references");
    for name in ["pause", "toolbox", "nfs"] {
        assert!(archives.iter().any(|archive| archive.starts_with(&format!("{name}-"))), "{archives:?}");
        assert!(references.lines().any(|line| line.starts_with(&format!("{name} "))), "{references}");
    }
    let plain = Root::of("server");
    assert!(plain.below("/usr/share/kiln/k3s/manifests/").iter().all(|name| !name.contains("cilium")));
    assert!(plain.below("/usr/share/kiln/containers/").iter().all(|archive| !archive.starts_with("nfs-")));
}
