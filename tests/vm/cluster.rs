//! A server that a person runs by `kiln run`, and what they do with it from outside.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::common::images;
use super::common::run::{Run, command};
use super::common::tools;
use super::node::{Slot, only_in_full};

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

#[test]
fn a_kubeconfig_fetched_from_a_running_server_works_from_outside() {
    if only_in_full() {
        return;
    }
    let _slot = Slot::all();
    images::image("server", "amd64");
    let dir = tempfile::Builder::new().prefix("kiln-cluster-").tempdir_in(images::folder()).unwrap();
    let (key, config) = (dir.path().join("key"), dir.path().join("kubeconfig"));
    let programs = dir.path().join("bin");
    tools::folder(&programs, &["curl", "kubectl", "ssh", "ssh-keygen"]);
    let run_program = |name: &str, args: &[&str]| {
        let mut program = command(programs.join(name));
        Run::of(&program.args(args).env("KUBECONFIG", &config).stdin(Stdio::null()).output().unwrap())
    };
    let kubectl = |args: &[&str]| run_program("kubectl", args);
    let others = dir.path().join("others");
    for key in [&key, &others] {
        run_program("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key.display().to_string()]).ok();
    }
    let (ssh, api) = (port(), port());
    let log = fs_err::File::create(dir.path().join("log")).unwrap().into_file();
    let mut run = images::kiln();
    run.args(["run", "--profile", "server", "--memory", "3072", "--limit", "600"])
        .args(["--credential", "system.hostname=alpha"])
        .args(["--credential", &format!("ssh.authorized_keys.root=@{}.pub", key.display())])
        .args(["--ssh", &ssh.to_string(), "--forward", &format!("{api}:6443"), "-C"])
        .arg(images::project())
        .arg("--out")
        .arg(images::folder().join("out"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    let mut node = Node(run.spawn().unwrap());
    let path = std::env::join_paths([programs.as_os_str(), "/usr/bin".as_ref(), "/bin".as_ref()]).unwrap();
    let mut attempt = |key: &Path| {
        assert!(
            node.0.try_wait().unwrap().is_none(),
            "{}",
            fs_err::read_to_string(dir.path().join("log")).unwrap()
        );
        let mut fetch = images::kiln();
        fetch
            .args(["kubeconfig", "127.0.0.1", "--port", &ssh.to_string(), "--name", "home"])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i"])
            .arg(key)
            .env("PATH", &path)
            .args(["--server", &format!("127.0.0.1:{api}"), "--out"])
            .arg(&config);
        Run::of(&fetch.output().unwrap())
    };
    let end = Instant::now() + Duration::from_secs(900);
    loop {
        let fetched = attempt(&key);
        let nodes = (fetched.code == 0).then(|| kubectl(&["get", "nodes", "--no-headers"]));
        if nodes.as_ref().is_some_and(|nodes| nodes.stdout.contains(" Ready ")) {
            break;
        }
        assert!(Instant::now() < end, "{}\n{}", fetched.text(), nodes.map(|n| n.text()).unwrap_or_default());
        std::thread::sleep(Duration::from_secs(3));
    }
    let mode = PermissionsExt::mode(&fs_err::metadata(&config).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "it is the administrator's key");
    let ours = kubectl(&["version", "--client", "-o", "json"]).ok();
    assert!(!ours.stdout.contains("v1.33.3"), "a person's kubectl is any other: {}", ours.stdout);
    let version = "jsonpath={.status.nodeInfo.kubeletVersion}";
    assert_eq!(kubectl(&["get", "node", "alpha", "-o", version]).ok().stdout, "v1.33.3+k3s1");
    assert_eq!(kubectl(&["config", "current-context"]).ok().stdout.trim(), "home");
    let text = fs_err::read_to_string(&config).unwrap();
    assert!(text.contains(&format!("https://127.0.0.1:{api}")), "no address but the one that was forwarded");
    // Nobody comes in without the key, to the node or to its API, and what is there stays.
    let refused = attempt(&others);
    assert!(refused.code != 0 && refused.stderr.contains("Permission denied"), "{}", refused.text());
    assert_eq!(fs_err::read_to_string(&config).unwrap(), text);
    let nodes = format!("https://127.0.0.1:{api}/api/v1/nodes");
    let answer =
        run_program("curl", &["--silent", "--insecure", "--write-out", " %{http_code}", &nodes]).ok();
    assert!(answer.stdout.ends_with(" 401"), "{}", answer.stdout);
}
