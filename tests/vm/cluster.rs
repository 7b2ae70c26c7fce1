//! A server that a person runs by `kiln run`, and what they do with it from outside.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::common::images;
use super::common::run::{Run, command, skipped};
use super::node::Slot;

/// A TCP port of 127.0.0.1 that nobody listens on.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The node, switched off when the test ends.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).ok();
        self.0.wait().ok();
    }
}

fn has(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|dir| dir.join(program).is_file())
}

fn kubectl(config: &Path, args: &[&str]) -> Run {
    // The one that was built for the image, on this machine; users come with any other.
    let recipe = images::store().join("steps/recipe/k3s");
    let built =
        fs_err::read_dir(recipe).unwrap().map(|entry| entry.unwrap().path().join("out/usr/bin/kubectl"));
    let program = built.into_iter().find(|path| path.exists()).expect("K3s was built for the image");
    Run::of(&command(program).args(args).env("KUBECONFIG", config).output().unwrap())
}

#[test]
fn a_kubeconfig_fetched_from_a_running_server_works_from_outside() {
    if !has("ssh") || !has("ssh-keygen") {
        return skipped("`kiln kubeconfig` needs an ssh client");
    }
    let _slot = Slot::all();
    images::image("server", "amd64");
    let dir = tempfile::Builder::new().prefix("kiln-cluster-").tempdir_in(images::folder()).unwrap();
    let (key, config) = (dir.path().join("key"), dir.path().join("kubeconfig"));
    Run::of(&command("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).output().unwrap())
        .ok();
    let (ssh, api) = (port(), port());
    let log = fs_err::File::create(dir.path().join("log")).unwrap().into_file();
    let mut run = images::kiln();
    run.args(["run", "--profile", "server", "--memory", "3072", "--limit", "600"])
        .args(["--credential", "system.hostname=alpha", "--credential", "k3s.token=of-a-test"])
        .args(["--credential", &format!("ssh.authorized_keys.root=@{}.pub", key.display())])
        .args(["--ssh", &ssh.to_string(), "--forward", &format!("{api}:6443"), "-C"])
        .arg(images::project())
        .arg("--out")
        .arg(images::folder().join("out"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    let mut node = Node(run.spawn().unwrap());
    let mut attempt = || {
        assert!(
            node.0.try_wait().unwrap().is_none(),
            "{}",
            fs_err::read_to_string(dir.path().join("log")).unwrap()
        );
        let mut fetch = images::kiln();
        fetch
            .args(["kubeconfig", "127.0.0.1", "--port", &ssh.to_string(), "--name", "home"])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i"])
            .arg(&key)
            .args(["--server", &format!("127.0.0.1:{api}"), "--out"])
            .arg(&config);
        Run::of(&fetch.output().unwrap())
    };
    let end = Instant::now() + Duration::from_secs(900);
    loop {
        let fetched = attempt();
        let nodes = (fetched.code == 0).then(|| kubectl(&config, &["get", "nodes", "--no-headers"]));
        if nodes.as_ref().is_some_and(|nodes| nodes.stdout.contains(" Ready ")) {
            break;
        }
        assert!(Instant::now() < end, "{}\n{}", fetched.text(), nodes.map(|n| n.text()).unwrap_or_default());
        std::thread::sleep(Duration::from_secs(3));
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs_err::metadata(&config).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "it is the administrator's key");
    let node =
        kubectl(&config, &["get", "node", "alpha", "-o", "jsonpath={.status.nodeInfo.kubeletVersion}"]).ok();
    assert_eq!(node.stdout, "v1.33.3+k3s1");
    let context = kubectl(&config, &["config", "current-context"]).ok();
    assert_eq!(context.stdout.trim(), "home");
    // No address but the one that a person forwarded, and nobody without the key.
    assert!(fs_err::read_to_string(&config).unwrap().contains(&format!("https://127.0.0.1:{api}")));
}
