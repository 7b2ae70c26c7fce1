//! Releases of K3s on a server of the test: as upstream's are, less the programs.

use std::collections::BTreeMap;

use kiln::digest::Digest;

use super::mirror::Mirror;

/// What surrounds the list of modules in a Go program.
const BEFORE: &[u8] = b"\x30\x77\xaf\x0c\x92\x74\x08\x02\x41\xe1\xc1\x07\xe6\xd6\x18\xe6";
const AFTER: &[u8] = b"\xf9\x32\x43\x31\x86\x18\x20\x72\x00\x82\x42\x10\x41\x16\xd8\xf2";

/// A program with a compressed archive of programs in it, the first of which says what it was made of.
pub fn program(version: &str, arch: &str, containerd: &str) -> Vec<u8> {
    let modules = format!(
        "path\tk3s\ndep\tgithub.com/containerd/containerd/v2\tv2.0.0\n=>\tgithub.com/k3s-io/containerd/v2\t{containerd}\th1:x=\n\
         dep\tgithub.com/opencontainers/runc\tv1.2.6\th1:y=\n"
    );
    let k3s = [format!("{version} for {arch}").as_bytes(), BEFORE, modules.as_bytes(), AFTER].concat();
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in [("./bin/k3s", k3s.as_slice()), ("./bin/containerd-shim-runc-v2", b"shim")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, name, bytes).unwrap();
    }
    let archive = zstd::encode_all(tar.into_inner().unwrap().as_slice(), 3).unwrap();
    [b"\x7fELF the wrapper ".as_slice(), &archive, b" and its constants"].concat()
}

/// The files of a release by their paths on a server: both architectures, the lists of digests, the list of images.
pub fn release(version: &str, containerd: &str, coredns: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = version.replace('+', "%2B");
    let mut files = BTreeMap::new();
    for (arch, name) in [("amd64", "k3s"), ("arm64", "k3s-arm64")] {
        let program = program(version, arch, containerd);
        let list =
            format!("{}  {name}\n{}  k3s-airgap-images-{arch}.tar\n", Digest::of(&program), Digest::of(b"-"));
        files.insert(format!("{folder}/{name}"), program);
        files.insert(format!("{folder}/sha256sum-{arch}.txt"), list.into_bytes());
    }
    let images = format!(
        "docker.io/rancher/mirrored-coredns-coredns:{coredns}\ndocker.io/rancher/mirrored-pause:3.6\n"
    );
    files.insert(format!("{folder}/k3s-images.txt"), images.into_bytes());
    files
}

/// The answer of a channel server, with channels and their newest releases.
pub fn channels(newest: &[(&str, &str)]) -> Vec<u8> {
    let data: Vec<_> =
        newest.iter().map(|(id, latest)| serde_json::json!({ "id": id, "latest": latest })).collect();
    serde_json::json!({ "type": "collection", "data": data }).to_string().into_bytes()
}

/// images/k3s.toml with the release `version` on `mirror`.
pub fn layer(mirror: &Mirror, version: &str) -> String {
    let (base, folder) = (&mirror.base, version.replace('+', "%2B"));
    let digest = |arch: &str| Digest::of(&program(version, arch, "v2.0.5-k3s1"));
    format!(
        "# Of the cluster: {version}\nschema = 1\ndescription = \"K3s {version}\"   # shown\n\n[k3s]\nversion = \"{version}\"\n\
         source = [\"k3s\"]   # where nobody has the release\ncni = \"flannel\"\n\n[k3s.release]\nchannels = \"{base}/channels\"\n\
         urls = [\"{base}/{folder}\", \"{base}/mirror/{version}\"]\n\
         amd64 = {{ name = \"k3s\", sha256 = \"{}\" }}   # PCs\narm64 = {{ name = \"k3s-arm64\", sha256 = \"{}\" }}\n",
        digest("amd64"),
        digest("arm64")
    )
}
