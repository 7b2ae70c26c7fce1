//! The scripts of images/k3s/ as a node's shell runs them, on folders of the test's own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};

use base64::Engine;

use crate::common::run::{Run, command};
use crate::common::{images, tools};

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

    /// A program that goes before the machine's own.
    fn put_program(&self, name: &str, script: &str) {
        let path = format!("bin/{name}");
        self.put(&path, script);
        fs_err::set_permissions(self.path(&path), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs_err::read_to_string(self.path(path)).unwrap()
    }

    /// Runs a script of images/k3s, or of another folder beside it.
    fn run(&self, script: &str) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/k3s").join(script);
        // What this machine's curl is told (proxies, ~/.curlrc), a node's is not.
        command("sh")
            .arg(&script)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("CREDENTIALS_DIRECTORY", self.path("credentials"))
            .env("KILN_SHARE", self.path("share"))
            .env("KILN_RUN", self.path("run"))
            .env("KILN_DATA", self.path("data"))
            .env("KILN_NODE", self.path("node"))
            .env("KILN_CONSOLE", self.path("console"))
            .env("KILN_SYNCHRONIZED", self.path("timesync/synchronized"))
            .env("KILN_EPOCH", self.path("epoch"))
            .env("KILN_UPTIME", self.path("uptime"))
            .env("KILN_RTC", self.path("rtc"))
            .env("KILN_K3S", self.path("k3s"))
            .env("KILN_CONFIG", if script.ends_with("prepare") { k3s_config() } else { Path::new("") })
            .env("KILN_ONCE", "yes")
            .env("KILN_LIMIT_NEW", "1")
            .env("KILN_LIMIT_WRONG", "2")
            .env("STATE_DIRECTORY", self.path("state"))
            .env("KILN_CMDLINE", self.path("cmdline"))
            .env("KILN_PAUSE", "0.01")
            .env("KILN_SLOW", "1")
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display()))
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

/// The program of the image that reads K3s' configuration.
fn k3s_config() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let output = images::kiln()
            .args(["recipe", "build", "k3s-config", "-C", env!("CARGO_MANIFEST_DIR")])
            .output()
            .unwrap();
        let run = Run::of(&output).ok();
        Path::new(run.stdout.trim()).join("usr/lib/kiln/k3s-config")
    })
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
fn what_k3s_has_imported_is_listed_for_it_to_pin_and_nothing_else() {
    let node = Node::new("agent");
    node.put("credentials/k3s.token", "secret");
    node.put("credentials/k3s.config", "server: https://10.0.0.1:6443\n");
    let (old, new) = ("pause-0123456789ab.tar", "pause-2-0123456789ab.tar");
    for name in [old, new] {
        node.put(&format!("share/containers/{name}"), "bytes");
    }
    node.put("share/k3s/references", "pause kiln.invalid/pause:3\npause-2 kiln.invalid/pause-2:1\n");
    node.prepared();
    let images = node.path("data/agent/images");
    // The lists, and what stands in all of them.
    let lists = || -> (Vec<String>, String) {
        assert!(node.run("pin").status.success());
        let names = fs_err::read_dir(&images).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut lists: Vec<String> = names.filter(|name| name.ends_with(".txt")).collect();
        lists.sort();
        let text = lists.iter().map(|name| node.read(&format!("data/agent/images/{name}"))).collect();
        (lists, text)
    };
    let nothing = (Vec::new(), String::new());
    assert_eq!(lists(), nothing);

    // As K3s writes it (pkg/agent/containerd/watcher.go).
    let entry = |name: &str| {
        let path = images.join(format!("kiln-{name}"));
        format!(r#""{}":{{"size":5,"modTime":"2026-11-28T08:00:00Z"}}"#, path.display())
    };
    let imported = |names: &[&str]| {
        let entries: Vec<String> = names.iter().map(|name| entry(name)).collect();
        node.put("data/agent/images/.cache.json", &format!("{{{}}}", entries.join(",")));
    };
    node.put("data/agent/containerd/io.containerd.metadata.v1.bolt/meta.db", "bytes");
    imported(&[old]);
    let (first, text) = lists();
    assert_eq!(text, "kiln.invalid/pause:3\n");
    imported(&[old, new]);
    let (second, text) = lists();
    assert_eq!(text, "kiln.invalid/pause-2:1\nkiln.invalid/pause:3\n");
    assert_eq!(second.len(), 2, "one image that is missing would leave the others without a pin");
    assert!(!second.contains(&first[0]), "K3s would not look into it again");

    // A newer archive of that name, which K3s has not seen.
    imported(&["pause-ba9876543210.tar", new]);
    assert_eq!(lists().1, "kiln.invalid/pause-2:1\n");
    // The power went while that one's image was tried: this one's may not be what is imported now.
    node.prepared();
    assert_eq!(node.read("data/agent/images/.cache.json"), "");
    imported(&[old, new]);
    node.prepared();
    assert_eq!(lists().0.len(), 2);

    // containerd's database is gone: everything is imported anew.
    node.put("data/agent/containerd/io.containerd.metadata.v1.bolt/meta.db", "");
    assert_eq!(lists(), nothing);
    assert_eq!(node.read("data/agent/images/.cache.json"), "");

    // Where nothing was prepared there is nothing to do.
    fs_err::remove_dir_all(&images).unwrap();
    assert!(node.run("pin").status.success() && !images.exists());
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
    node.refused("prepare", &["line 1: the server of this node is \"http://10.0.0.1:6443\"", "https://"]);
    node.put("credentials/k3s.config", "server: https://10.0.0.1:6443\ntoken: secret\n");
    node.refused("prepare", &["holds a token", "k3s.token"]);
    node.put("credentials/k3s.config", "server: 'https://10.0.0.1:6443'\n");
    node.prepared();
    assert_eq!(node.read("run/k3s/server"), "https://10.0.0.1:6443\n");
    assert!(!node.path("data/server").exists());
}

#[test]
fn the_configuration_of_a_node_is_read_as_yaml_or_refused_with_the_line() {
    let node = Node::new("agent");
    node.put("credentials/k3s.token", "secret");
    for text in [
        "server: https://192.168.50.100:6443 # the NUC\n",
        "server: https://192.168.50.100:6443\r\nnode-name: Rack-1\r\n",
        "\"server\": \"https://192.168.50.100:6443\"\n",
        "{\"server\": \"https://192.168.50.100:6443\"}",
        "server:\n  https://192.168.50.100:6443\n",
        "server : 'https://192.168.50.100:6443/'\n",
        "\u{feff}# server: https://10.0.0.9:6443\nnode-label: [\"server: x\"]\nserver: https://192.168.50.100:6443\n",
    ] {
        node.put("credentials/k3s.config", text);
        node.prepared();
        assert_eq!(node.read("run/k3s/server"), "https://192.168.50.100:6443\n", "{text:?}");
        assert_eq!(node.read("run/k3s/config.yaml.d/60-node.yaml"), text, "K3s reads the very same");
        assert_eq!(node.path("run/k3s/node-name").exists(), text.contains("node-name"), "{text:?}");
    }
    for (text, words) in [
        ("", "this agent knows no server"),
        ("# server: https://10.0.0.1:6443\n", "this agent knows no server"),
        ("server:\n- https://a:6443\n- https://b:6443\n", "line 1: `server` has 2 values"),
        ("server: https://a:6443\nserver: https://b:6443\n", "line 2: the key \"server\" is there twice"),
        ("server: https://a:6443\n---\nnode-name: b\n", "a second document at line 3"),
        ("node-name: a\n\tserver: https://a:6443\n", "is not YAML: line 2"),
        ("node-name: a\nserver: \"https://a:6443\n", "is not YAML: line 2"),
        ("server: https://a:6443 the NUC\n", "line 1: the server of this node is"),
        ("server:https://a:6443\n", "line 1"),
        ("server: https://a:6443\n{\"token\": \"hunter2\"}\n", "line 2"),
        ("{\"server\": \"https://a:6443\", \"token\": \"hunter2\"}\n", "line 1 holds a token"),
        ("server: https://a:6443\nkubelet-arg:\n- max-pods: 110\n", "line 3: \"kubelet-arg\" has a mapping"),
        ("\u{1b}[31mserver: x\n", "line 1"),
    ] {
        node.put("credentials/k3s.config", text);
        node.refused(
            "prepare",
            &["the credential k3s.config", words][usize::from(words.contains("knows no"))..],
        );
        let said = String::from_utf8(node.run("prepare").stderr).unwrap();
        assert!(!said.contains("hunter2") && !said.contains('\u{1b}'), "{said:?}");
    }
    node.put("credentials/k3s.config", "server: https://10.0.0.1:6443\n");
    node.put("credentials/k3s.registries", "mirrors:\n\tdocker.io: {}\n");
    node.refused("prepare", &["the credential k3s.registries is not YAML: line 2"]);
}

#[test]
fn a_node_without_a_gateway_says_so_on_its_console_once() {
    let node = Node::new("server");
    let console = || fs_err::read_to_string(node.path("console")).unwrap_or_default();
    let answers = |four: &str, address: &str, six: &str| {
        let cases = [("-4 route", four), ("-4 -o", address), ("-6 route", six)]
            .map(|(words, answer)| format!("'{words}'*) printf '%s' '{answer}' ;;\n"));
        node.put_program("ip", &format!("#!/bin/sh\ncase \"$*\" in\n{}esac\n", cases.concat()));
    };
    let (address, six) = ("2: eth0 inet 10.0.0.2/24 scope global eth0", "default via fe80::1 dev eth0");
    answers("default via 10.0.0.1 dev eth0", address, "");
    assert!(node.run("route").status.success() && console().is_empty());
    answers("", "", six);
    assert!(node.run("route").status.success() && console().is_empty(), "{}", console());
    // A router announces itself by IPv6, and nobody routes IPv4.
    answers("", address, six);
    for _ in 0..2 {
        assert!(node.run("route").status.success(), "K3s may have been told what it needs");
    }
    assert_eq!(console().matches("has no gateway").count(), 1);
    assert!(
        console().contains("  -> give it one: `gateway` of its network in cluster.toml"),
        "{}",
        console()
    );
}

#[test]
fn what_is_started_again_and_again_or_takes_long_is_named_on_the_console_with_its_last_words() {
    let node = Node::new("server");
    node.put_program("systemctl", "#!/bin/sh\ncat \"$HOME/units\"\n");
    node.put_program("journalctl", "#!/bin/sh\necho \"$*\" >>\"$HOME/asked\"\ncat \"$HOME/journal\"\n");
    node.put(
        "journal",
        "time=\"2026-11-28T08:00:00Z\" level=info msg=\"Starting\"\n\
         time=\"2026-11-28T08:00:01Z\" level=fatal msg=\"flannel: \\\"Unable to find default route\\\"\u{1b}[31m\"\nlast line\n  -> do this\n",
    );
    let look = |up: u32, times: u32, active: &str, sub: &str, begun: u32, since: u32| {
        node.put("uptime", &format!("{up}.50 9.00\n"));
        node.put(
            "units",
            &format!(
                "NRestarts=0\nId=a.service\nActiveState=active\nSubState=running\nInactiveExitTimestampMonotonic=1\nActiveEnterTimestampMonotonic=2\n\n\
                 NRestarts=9\nId=getty@tty1.service\nActiveState=activating\nSubState=auto-restart\n\n\
                 NRestarts={times}\nId=k3s.service\nInvocationID=0123\nActiveState={active}\nSubState={sub}\n\
                 InactiveExitTimestampMonotonic={begun}000000\nActiveEnterTimestampMonotonic={since}000000\n",
            ),
        );
        fs_err::write(node.path("console"), "").unwrap();
        let output = node.run("../files/watch");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        node.read("console")
    };
    assert_eq!(look(50, 0, "activating", "start", 20, 0), "");
    assert_eq!(look(70, 1, "activating", "start", 65, 0), "", "once is no matter");
    let said = look(120, 2, "activating", "auto-restart", 65, 0);
    assert!(
        said.starts_with("kiln: k3s.service was started again 2 times in 50 s and does not stay up"),
        "{said}"
    );
    assert!(said.contains(r#"; it said last: flannel: "Unable to find default route"#), "{said}");
    assert!(said.contains("\n  -> journalctl -b -u k3s.service") && !said.contains('\u{1b}'), "{said}");
    assert_eq!(look(160, 3, "activating", "start", 155, 0), "", "it was said a moment ago");
    assert!(look(230, 4, "active", "running", 200, 220).contains("4 times in 2 min"));
    // Up, for two minutes; what was before does not count any more.
    assert_eq!(look(400, 4, "active", "running", 200, 220), "");
    assert_eq!(look(500, 5, "activating", "start", 490, 220), "");
    assert!(look(600, 6, "activating", "start", 590, 220).contains("2 times"));

    // Somebody started it by hand: systemd counts from there.
    assert_eq!(look(640, 1, "activating", "start", 590, 220), "");
    assert!(look(660, 2, "activating", "start", 590, 220).contains("2 times"));

    // One that never comes up, whose unit is not started again.
    assert_eq!(look(889, 2, "activating", "start", 590, 220), "");
    node.put("journal", "waiting for https://10.0.0.1:6443 to answer\n  -> do this\n");
    let said = look(900, 2, "activating", "start-pre", 590, 220);
    let words = "kiln: k3s.service has been starting for 5 min; it said last: waiting for https://10.0.0.1:6443 to answer\n";
    assert!(said.starts_with(words), "{said}");
    assert!(node.read("asked").lines().last().unwrap().ends_with("_SYSTEMD_INVOCATION_ID=0123"));
    assert_eq!(look(960, 2, "activating", "start-pre", 590, 220), "");
    assert!(look(1300, 2, "activating", "start-pre", 590, 220).contains("starting for 11 min"));
}

/// The program by which a node asks its server and tells it things.
fn curl() -> String {
    tools::script("curl").expect("the judges of the lock have it")
}

/// The certificate of the CA of a [`Supervisor`].
const CA: &str = "the CA's certificate";

/// What K3s' supervisor answers to the questions of `join`.
#[derive(Default)]
struct Supervisor {
    /// To the one for a kubelet's certificate; where it is empty, it hangs up.
    status: &'static str,
    /// What its lines `Date:` say, one after the other and from the start again.
    dates: Vec<String>,
    /// How often it has no CA yet.
    new: u32,
    /// How often its API is not up yet.
    starting: u32,
    /// How often it takes longer than a second for the certificate.
    busy: u32,
}

impl Supervisor {
    fn says(status: &'static str) -> Self {
        Self { status, ..Self::default() }
    }

    /// Its address. Each time it is asked for a certificate or for its API, the headers that a client proves itself by are sent to the test.
    fn start(mut self) -> (String, Receiver<Vec<String>>) {
        let mut dates = std::mem::take(&mut self.dates).into_iter().cycle();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let lines =
                    BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
                let lines: Vec<String> = lines.collect();
                let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
                let (status, body) = match path {
                    "/cacerts" if take_one(&mut self.new) => ("500 Internal Server Error", "{}"),
                    "/cacerts" => ("200 OK", CA),
                    "/readyz" if take_one(&mut self.starting) => ("503 Service Unavailable", ""),
                    "/readyz" => ("401 Unauthorized", ""),
                    _ => {
                        if take_one(&mut self.busy) {
                            std::thread::sleep(std::time::Duration::from_millis(1100));
                        }
                        (self.status, "")
                    }
                };
                let date = dates.next().map(|date| format!("Date: {date}\r\n")).unwrap_or_default();
                let head = format!(
                    "HTTP/1.1 {status}\r\n{date}Content-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let head = if status.is_empty() { String::new() } else { head };
                stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).ok();
                if path != "/cacerts" {
                    let proof =
                        |line: &String| line.starts_with("Authorization:") || line.starts_with("k3s-Node-");
                    sender.send(lines.into_iter().filter(proof).collect()).ok();
                }
            }
        });
        (address, receiver)
    }
}

fn take_one(left: &mut u32) -> bool {
    let some = *left > 0;
    *left = left.saturating_sub(1);
    some
}

fn agent(curl: &str, server: &str, token: &str) -> Node {
    let node = Node::new("agent");
    node.put_program("curl", curl);
    node.put("run/k3s/server", &format!("{server}\n"));
    node.put("run/k3s/token", token);
    node.put("run/k3s/node-name", "rack-1\n");
    node.put("node/none", "");
    node
}

#[test]
fn an_agent_asks_as_a_node_whatever_its_token_looks_like() {
    let curl = curl();
    let (address, asked) = Supervisor::says("200 OK").start();
    let digest = kiln::digest::Digest::of(CA.as_bytes());
    let basic = base64::engine::general_purpose::STANDARD.encode("node:se:cret");
    for (token, proof) in [
        ("node:se:cret".to_owned(), format!("Authorization: Basic {basic}")),
        (format!("K10{digest}::server:se:cret"), format!("Authorization: Basic {basic}")),
        (format!("K10{digest}::node:se:cret"), format!("Authorization: Basic {basic}")),
        (
            format!("K10{digest}::abcdef.0123456789abcdef"),
            "Authorization: Bearer abcdef.0123456789abcdef".to_owned(),
        ),
        ("abcdef.0123456789abcdef".to_owned(), "Authorization: Bearer abcdef.0123456789abcdef".to_owned()),
    ] {
        let node = agent(&curl, &address, &token);
        let output = node.run("join");
        assert!(output.status.success(), "{token}: {}", String::from_utf8_lossy(&output.stderr));
        let password = format!("k3s-Node-Password: {}", node.read("node/password").trim_end());
        assert_eq!(password.len(), "k3s-Node-Password: ".len() + 32);
        assert!(asked.recv().unwrap().is_empty(), "whether its API is up it is asked without the token");
        assert_eq!(asked.recv().unwrap(), [proof, "k3s-Node-Name: rack-1".to_owned(), password], "{token}");
        assert!(!node.path("console").exists() && !node.path("run/k3s/curl").exists());
    }
}

#[test]
fn an_agent_that_may_not_join_says_why_on_its_console_once() {
    let curl = curl();
    let other = format!("K10{}::server:secret", "0".repeat(64));
    for (status, token, words) in [
        ("401 Unauthorized", "secret", ["does not take this node's token", "k3s.token"]),
        (
            "403 Forbidden",
            "secret",
            ["knows another machine by the name rack-1", "kubectl delete node rack-1"],
        ),
        ("200 OK", other.as_str(), ["not the server that the token is from", "node-token"]),
    ] {
        let node = agent(&curl, &Supervisor::says(status).start().0, token);
        node.refused("join", &words);
        let told = node.read("console");
        assert!(
            told.starts_with("k3s: this node cannot join http://127.0.0.1:") && told.contains(words[1]),
            "{told}"
        );
        assert!(!told.contains("secret"), "{told}");
        fs_err::remove_file(node.path("console")).unwrap();
        node.refused("join", &words);
        assert!(!node.path("console").exists(), "{token}: it was said already");
    }
}

#[test]
fn an_agent_whose_clock_is_not_the_servers_does_not_join_and_shows_both() {
    let curl = curl();
    let dates = ["10:00:00", "10:01:00"].map(|time| format!("Mon, 06 Jan 2020 {time} GMT"));
    let supervisor = Supervisor { dates: dates.to_vec(), ..Supervisor::says("200 OK") };
    let node = agent(&curl, &supervisor.start().0, "secret");
    node.refused("join", &["its clock shows 2020-01-06T10:00Z, this node's 20", "time server"]);
    fs_err::remove_file(node.path("console")).unwrap();
    node.refused("join", &["its clock shows 2020-01-06T10:01Z"]);
    assert!(!node.path("console").exists(), "a minute later it is the same");
    // A second more or less is no matter.
    let now = command("date").args(["-u", "-R"]).output().unwrap().stdout;
    let now = String::from_utf8(now).unwrap().trim().replace("+0000", "GMT");
    let supervisor = Supervisor { dates: vec![now], ..Supervisor::says("200 OK") };
    let node = agent(&curl, &supervisor.start().0, "secret");
    assert!(node.run("join").status.success() && !node.path("console").exists());
}

#[test]
fn an_agent_waits_for_a_server_that_starts_and_asks_nothing_that_costs_it() {
    let curl = curl();
    let (address, asked) = Supervisor { new: 2, starting: 3, ..Supervisor::says("200 OK") }.start();
    let node =
        agent(&curl, &address, &format!("K10{}::node:secret", kiln::digest::Digest::of(CA.as_bytes())));
    assert!(node.run("join").status.success());
    let told = ["asked for its CA it answers HTTP 500", "its API is not up yet"];
    assert_eq!(
        node.read("console"),
        told.map(|what| format!("k3s: waiting for {address}: {what}\n")).concat()
    );
    let proofs: Vec<usize> = asked.try_iter().map(|proof| proof.len()).collect();
    assert_eq!(proofs, [0, 0, 0, 0, 3], "four times without the token, then once with it");

    // A server may have no API at all.
    let (address, asked) = Supervisor { starting: 1000, ..Supervisor::says("200 OK") }.start();
    assert!(agent(&curl, &address, "secret").run("join").status.success());
    assert_eq!(asked.try_iter().filter(|proof| !proof.is_empty()).count(), 1);
}

#[test]
fn an_agent_lets_a_busy_server_do_its_work_but_not_for_ever() {
    let curl = curl();
    for (busy, questions) in [(2, 3), (100, 12)] {
        let (address, asked) = Supervisor { busy, ..Supervisor::says("200 OK") }.start();
        let node = agent(&curl, &address, "secret");
        assert!(node.run("join").status.success());
        let told = format!("k3s: {address} is busy: this node joins when it answers sooner\n");
        assert_eq!(node.read("console"), told, "once");
        assert_eq!(asked.try_iter().filter(|proof| !proof.is_empty()).count(), questions);
    }
    // One that hangs up is not busy: what that means is K3s' to say.
    let (address, asked) = Supervisor::says("").start();
    let node = agent(&curl, &address, "secret");
    assert!(node.run("join").status.success() && !node.path("console").exists());
    assert_eq!(asked.try_iter().filter(|proof| !proof.is_empty()).count(), 1);
    // Whose token is wrong hears so at once.
    let (address, asked) = Supervisor { busy: 100, ..Supervisor::says("401 Unauthorized") }.start();
    agent(&curl, &address, "secret").refused("join", &["does not take this node's token"]);
    assert_eq!(asked.try_iter().filter(|proof| !proof.is_empty()).count(), 1);
}

#[test]
fn a_new_server_and_a_node_behind_its_image_wait_for_the_time_and_no_others_do() {
    let told = |node: &Node| fs_err::read_to_string(node.path("console")).unwrap_or_default();
    let booted = |role: &str, since_epoch: u32| {
        let node = Node::new(role);
        node.put("epoch", "");
        node.put("timesync/none", "");
        node.put("uptime", &format!("{}.50 9.00\n", 1_000_000 - i64::from(since_epoch)));
        let epoch = fs_err::File::open(node.path("epoch")).unwrap();
        let made = epoch.metadata().unwrap().modified().unwrap();
        epoch.file().set_modified(made - std::time::Duration::from_secs(1_000_000)).unwrap();
        node
    };
    let run = |node: &Node| {
        let output = node.run("clock");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    // Advanced to the day of the image when it was switched on, be it an agent or a server.
    let node = booted("agent", 3);
    run(&node);
    assert!(
        told(&node).contains("clock was behind") && told(&node).contains("waiting up to 2 s"),
        "{}",
        told(&node)
    );
    assert!(
        told(&node).contains("no time server has answered") && told(&node).contains("  -> "),
        "{}",
        told(&node)
    );
    fs_err::remove_file(node.path("console")).unwrap();
    run(&node);
    assert_eq!(told(&node), "", "it waits once");

    let node = booted("server", 900_000);
    let k3s = node.path("k3s");
    rustix::fs::mknodat(rustix::fs::CWD, &k3s, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let read = std::thread::spawn(move || {
        let mut k3s = fs_err::OpenOptions::new().write(true).open(k3s).unwrap();
        let mut bytes = 0;
        loop {
            match k3s.write(&[0; 4096]) {
                Ok(count) => bytes += count,
                Err(end) => return (bytes, end.kind()),
            }
        }
    });
    run(&node);
    assert!(told(&node).contains("this server is new"), "{}", told(&node));
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !read.is_finished() {
        assert!(std::time::Instant::now() < end, "K3s is not read, or by somebody who outlives the wait");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let (bytes, end) = read.join().unwrap();
    assert!(bytes > 0 && end == std::io::ErrorKind::BrokenPipe, "{bytes} bytes, {end}");
    let node = booted("server", 900_000);
    node.put("data/server/tls/server-ca.crt", "");
    run(&node);
    let other = booted("agent", 900_000);
    run(&other);
    let synchronized = booted("server", 3);
    synchronized.put("timesync/synchronized", "");
    run(&synchronized);
    assert_eq!([told(&node), told(&other), told(&synchronized)].concat(), "");

    // Up for long before, and with an empty battery: what systemd makes of the clock is not what the machine shows.
    let empty = booted("agent", 900_000);
    empty.put("rtc", "946684830\n");
    run(&empty);
    assert!(told(&empty).contains("clock was behind"), "{}", told(&empty));
    // Switched on in the very minute for which its image was made, by a clock that goes right.
    let right = booted("agent", 3);
    right.put("rtc", "4102444800\n");
    run(&right);
    assert_eq!(told(&right), "");

    // Where nobody asks for the time nobody waits, and it is said all the same.
    let node = booted("server", 3);
    fs_err::remove_dir_all(node.path("timesync")).unwrap();
    run(&node);
    assert!(!told(&node).contains("waiting") && told(&node).contains("no time server"), "{}", told(&node));
}

/// A node whose kubelet is known as `rack-1` and is Ready when it is asked for the third time, and a `kiln pxe` that answers the events
/// that it is told with these codes, one after the other; the paths and bodies are sent to the test.
fn joining(curl: &str, codes: &[&'static str]) -> (Node, String, Receiver<(String, String)>) {
    let node = Node::new("agent");
    node.put_program("curl", curl);
    node.put("data/agent/kubelet.kubeconfig", "");
    node.put("state/none", "");
    node.put("cmdline", "roothash=00 ro\n");
    node.put_program(
        "kubectl",
        "#!/bin/sh
case \"$*\" in
  *agent/kubelet.kubeconfig*whoami*) printf system:node:rack-1 ;;
  *agent/kubelet.kubeconfig*'get node rack-1 '*)
    echo >>\"$STATE_DIRECTORY/asked\"
    [ \"$(wc -l <\"$STATE_DIRECTORY/asked\")\" -ge \"$(cat \"$STATE_DIRECTORY/after\" 2>/dev/null || echo 3)\" ] && printf 'True v1.33.3+k3s1' || printf 'False v1.33.3+k3s1'
    ;;
  *) exit 1 ;;
esac
",
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}/", listener.local_addr().unwrap());
    let (sender, receiver) = channel();
    let codes = codes.to_vec();
    std::thread::spawn(move || {
        for (mut stream, code) in listener.incoming().flatten().zip(codes) {
            let mut reader = BufReader::new(&stream);
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                reader.read_until(b'\n', &mut head).unwrap();
            }
            let head = String::from_utf8(head).unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            sender.send((head.lines().next().unwrap().to_owned(), String::from_utf8(body).unwrap())).unwrap();
            write!(stream, "HTTP/1.1 {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        }
    });
    (node, base, receiver)
}

#[track_caller]
fn tells(node: &Node) -> String {
    let output = node.run("joined");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "whatever happens, the unit does not fail: {text}");
    text
}

#[test]
fn a_node_that_is_ready_tells_the_server_that_started_it_once() {
    let curl = curl();
    let event = |mac: &str| {
        (
            format!("POST /v1/node/{mac}/event HTTP/1.1"),
            r#"{"event":"joined","detail":"Ready, v1.33.3+k3s1"}"#.to_owned(),
        )
    };
    // An installed one, by its credential: the server is away at first, and hears it once, also when the node starts again.
    let (node, base, told) = joining(&curl, &["503 Service Unavailable", "204 No Content", "204 No Content"]);
    node.put("credentials/kiln.report", &format!("{base}v1/node/52:54:00:00:50:11/event"));
    tells(&node);
    assert_eq!(
        [told.recv().unwrap(), told.recv().unwrap()],
        [event("52:54:00:00:50:11"), event("52:54:00:00:50:11")]
    );
    tells(&node);
    assert!(told.try_recv().is_err(), "it told it already");

    // One that somebody has to mend first, who comes the next day.
    let (node, base, told) = joining(&curl, &["204 No Content"]);
    node.put("credentials/kiln.report", &format!("{base}v1/node/52:54:00:00:50:13/event"));
    node.put("state/after", "500");
    tells(&node);
    assert_eq!(told.recv().unwrap(), event("52:54:00:00:50:13"));

    // A diskless one, by the words of its kernel command line, at each boot.
    let (node, base, told) = joining(&curl, &["204 No Content", "204 No Content"]);
    node.put("cmdline", &format!("ro kiln.netboot={base} kiln.net=52:54:00:00:50:12,192.0.2.1,255.0.0.0,\n"));
    tells(&node);
    tells(&node);
    assert_eq!(
        [told.recv().unwrap(), told.recv().unwrap()],
        [event("52:54:00:00:50:12"), event("52:54:00:00:50:12")]
    );
}

#[test]
fn a_node_whose_server_is_gone_gives_up_and_one_that_none_started_tells_nobody() {
    let curl = curl();
    let (node, base, _told) = joining(&curl, &[]);
    assert!(tells(&node).contains("nobody is told"));
    assert!(!node.path("state/asked").exists(), "nor is the API asked");
    node.put("credentials/kiln.report", "file:///etc/passwd");
    assert!(tells(&node).contains("nobody is told"));
    node.put("credentials/kiln.report", "http://127.0.0.1:1/v1/node/x/event");
    assert!(tells(&node).contains("does not hear that this node joined"), "{base}");
    assert!(!node.path("state/joined").exists());
    assert_eq!(fs_err::read_to_string(node.path("state/asked")).unwrap().lines().count(), 3);
}
