//! The scripts of images/k3s/ as a node's shell runs them, on folders of the test's own.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::common::run::command;

struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new(role: &str) -> Self {
        let node = Node { dir: tempfile::tempdir().unwrap() };
        for (path, text) in [
            ("share/k3s/role", format!("{role}\n").as_str()),
            ("share/k3s/config.yaml", "cluster-dns: \"10.43.0.10\"\n"),
            ("share/k3s/kubelet.conf", "kind: KubeletConfiguration\n"),
            ("share/k3s/manifests/coredns.yaml", "kind: Service\n"),
            ("share/containers/pause-0123.tar", "bytes"),
            ("credentials/none", ""),
        ] {
            node.put(path, text);
        }
        node
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        fs_err::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs_err::write(self.path(path), text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs_err::read_to_string(self.path(path)).unwrap()
    }

    fn run(&self, script: &str) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/k3s").join(script);
        command("sh")
            .arg(script)
            .env("CREDENTIALS_DIRECTORY", self.path("credentials"))
            .env("KILN_SHARE", self.path("share"))
            .env("KILN_RUN", self.path("run"))
            .env("KILN_DATA", self.path("data"))
            .output()
            .unwrap()
    }

    fn prepared(&self) {
        let output = self.run("prepare");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[track_caller]
    fn refused(&self, script: &str, words: &[&str]) {
        let output = self.run(script);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        for word in words.iter().chain(&["  -> "]) {
            assert!(text.contains(word), "`{word}` is not in {text}");
        }
    }
}

#[test]
fn a_nodes_credentials_are_laid_over_the_defaults_of_the_image_and_nobody_else_reads_them() {
    let node = Node::new("server");
    node.put("credentials/k3s.token", "secret\r\n");
    node.put("credentials/k3s.config", "node-label: [a=b]\n");
    node.prepared();
    assert_eq!(node.read("run/k3s/config.yaml"), "cluster-dns: \"10.43.0.10\"\n");
    assert_eq!(node.read("run/k3s/token"), "secret");
    assert!(node.read("run/k3s/config.yaml.d/50-token.yaml").starts_with("token-file: \""));
    assert_eq!(node.read("run/k3s/config.yaml.d/60-node.yaml"), "node-label: [a=b]\n");
    for name in ["token", "config.yaml.d/60-node.yaml"] {
        let mode = fs_err::metadata(node.path("run/k3s").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
    assert_eq!(node.read("data/server/manifests/kiln-coredns.yaml"), "kind: Service\n");
    assert_eq!(node.read("data/agent/images/kiln-pause-0123.tar"), "bytes");
    assert_eq!(node.read("data/agent/images/.cache.json"), "");

    // Another image, and credentials that were taken away: nothing of the old is left, and what K3s remembers stays.
    node.put("data/agent/images/.cache.json", "{}");
    fs_err::rename(
        node.path("share/containers/pause-0123.tar"),
        node.path("share/containers/pause-4567.tar"),
    )
    .unwrap();
    fs_err::rename(node.path("share/k3s/manifests/coredns.yaml"), node.path("share/k3s/manifests/dns.yaml"))
        .unwrap();
    fs_err::remove_file(node.path("credentials/k3s.config")).unwrap();
    fs_err::remove_file(node.path("credentials/k3s.token")).unwrap();
    node.put("data/agent/images/mine.tar", "a person's");
    node.put("data/server/manifests/mine.yaml", "a person's");
    node.prepared();
    assert!(
        !node.path("run/k3s/token").exists() && !node.path("run/k3s/config.yaml.d/60-node.yaml").exists()
    );
    let names = |folder: &str| {
        let mut names: Vec<String> = fs_err::read_dir(node.path(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("data/agent/images"), [".cache.json", "kiln-pause-4567.tar", "mine.tar"]);
    assert_eq!(names("data/server/manifests"), ["kiln-dns.yaml", "mine.yaml"]);
    assert_eq!(node.read("data/agent/images/.cache.json"), "{}");
}

#[test]
fn an_agent_without_what_it_needs_says_what_that_is() {
    let node = Node::new("agent");
    node.refused("prepare", &["this agent has no token", "k3s.token"]);
    node.put("credentials/k3s.token", "\n");
    node.refused("prepare", &["k3s.token is empty"]);
    node.put("credentials/k3s.token", "secret");
    node.refused("prepare", &["this agent knows no server", "https://"]);
    node.put("credentials/k3s.config", "server: http://10.0.0.1:6443\n");
    node.refused("prepare", &["the server of this agent is http://10.0.0.1:6443"]);
    node.put("credentials/k3s.config", "server: https://10.0.0.1:6443\ntoken: secret\n");
    node.refused("prepare", &["holds a token", "k3s.token"]);
    node.put("credentials/k3s.config", "server: 'https://10.0.0.1:6443'\n");
    node.prepared();
    assert_eq!(node.read("run/k3s/server"), "https://10.0.0.1:6443\n");
    assert!(!node.path("data/server").exists());
}
