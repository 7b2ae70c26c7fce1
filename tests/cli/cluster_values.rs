//! `kiln cluster check` on values that look right: keys, secrets, taints, labels, hosts, routes.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use super::cluster::{homelab, line};
use crate::common::run::{Env, command, skipped};

const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAILe1Wpjme+Bad9jFbOt/iAvwYmbBinj+ARsSGtOMdGwQ";

/// Checks the cluster with `from` changed to `to`, and puts the file back.
fn with(env: &Env, from: &str, to: &str) -> crate::common::run::Run {
    let text = env.read("project/cluster.toml");
    env.edit("project/cluster.toml", from, to);
    let run = env.kiln(&["cluster", "check"]);
    env.write("project/cluster.toml", text);
    run
}

/// Checks the cluster with this text as a file of keys.
fn with_key(env: &Env, text: &[u8]) -> crate::common::run::Run {
    env.write("project/key.pub", text);
    let given = format!("ssh-ed25519 {KEY} me@home");
    with(env, &given, "@key.pub")
}

#[test]
fn a_key_that_sshd_would_pass_over_is_refused_and_one_that_it_takes_is_given_to_the_node() {
    let env = homelab();
    for (text, words) in [
        (format!("ssh-ed25519 {}", &KEY[..60]), "cut off"),
        (format!("ssh-ed25519 {}", KEY.replacen("Bad9", "B*d9", 1)), "base64 does not have"),
        (format!("ssh-rsa {KEY}"), "the key itself is `ssh-ed25519`"),
        (
            format!("ssh-ed25519 {KEY}\nssh-dss AAAAB3NzaC1kc3MAAACB\n"),
            "line 2 of the file: OpenSSH takes no DSA",
        ),
        (format!("no-such-option ssh-ed25519 {KEY}"), "`no-such-option`"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n".to_owned(), "ssh-keygen -y"),
        ("# none\n".to_owned(), "there is no key"),
    ] {
        let run = with_key(&env, text.as_bytes()).fails(1, &[words, "cluster.toml:"]);
        assert!(!run.text().contains("b3Bl") && !run.text().contains(&KEY[30..]), "{}", run.text());
    }
    // In the file itself: a private key without its first line, which is shown nowhere.
    let body = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW";
    let run = with(&env, &format!("ssh-ed25519 {KEY} me@home"), body).fails(1, &["private half"]);
    assert!(!run.text().contains("b3Bl"), "{}", run.text());
    for text in [
        format!("\u{feff}ssh-ed25519 {KEY}\tme@home\r\n").into_bytes(),
        [format!("ssh-ed25519 {KEY} J").as_bytes(), b"\xfcrgen\n"].concat(),
        format!("# mine\n\nfrom=\"10.0.0.0/8\" ssh-ed25519 {KEY}\n").into_bytes(),
    ] {
        with_key(&env, &text).ok();
    }
    let home = env.path("home");
    fs_err::create_dir_all(home.join(".ssh")).unwrap();
    fs_err::write(home.join(".ssh/id.pub"), format!("\u{feff}ssh-ed25519 {KEY}\tJ\r\n")).unwrap();
    env.edit("project/cluster.toml", &format!("ssh-ed25519 {KEY} me@home"), "@~/.ssh/id.pub");
    let output = env
        .command()
        .env("HOME", &home)
        .args(["--json", "cluster", "show", "--node", "server"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let json = crate::common::run::Run::of(&output).ok().json();
    let keys =
        json["credentials"].as_array().unwrap().iter().find(|c| c["name"] == "ssh.authorized_keys.root");
    assert_eq!(keys.unwrap()["text"], format!("ssh-ed25519 {KEY} J\n"));
    with(&env, "@~/", "@~me/").fails(1, &["home folders of other people", "whole path"]);
}

/// ssh-keygen of this machine and kiln say the same of each file.
#[test]
fn ssh_keygen_agrees() {
    if command("ssh-keygen").arg("-?").output().is_err() {
        return skipped("there is no ssh-keygen");
    }
    let env = homelab();
    let generated = |kind: &str, bits: &str| {
        let path = env.path(&format!("{kind}-{bits}"));
        let mut made = command("ssh-keygen");
        made.args(["-q", "-N", "", "-C", "me", "-t", kind, "-f"]).arg(&path);
        if bits != "0" {
            made.args(["-b", bits]);
        }
        assert!(made.stdin(Stdio::null()).status().unwrap().success());
        env.read(&format!("{kind}-{bits}.pub"))
    };
    let keys = [
        ("ed25519", "0"),
        ("ecdsa", "256"),
        ("ecdsa", "384"),
        ("ecdsa", "521"),
        ("rsa", "1024"),
        ("rsa", "2048"),
    ];
    for (kind, bits) in keys {
        let key = generated(kind, bits);
        let words: Vec<&str> = key.split_whitespace().collect();
        let (name, blob) = (words[0], words[1]);
        let middle = blob.len() / 2;
        for text in [
            key.clone(),
            format!("{name}\t{blob}\tx"),
            format!("{name} {}", &blob[..middle / 4 * 4]),
            format!("{name} {}", &blob[..blob.len() - 1]),
            format!("{name} {}-{}", &blob[..middle], &blob[middle + 1..]),
            format!("{name} {blob}AAAA"),
            format!("ssh-dss {blob}"),
            format!("{name}x {blob}"),
        ] {
            env.write("project/judged", &text);
            let judged = command("ssh-keygen").arg("-lf").arg(env.path("project/judged")).output().unwrap();
            let run = with_key(&env, text.as_bytes());
            let (ours, theirs) = (run.code == 0, judged.status.success());
            assert_eq!(ours, theirs, "{text}\n{}", run.text());
        }
    }
}

#[test]
fn the_key_of_a_machine_that_is_only_run_is_looked_at_too() {
    let env = Env::new();
    env.kiln(&["init", env.project().to_str().unwrap()]).ok();
    let run = |value: &str| {
        let given = format!("ssh.authorized_keys.root={value}");
        env.kiln(&["run", "--profile", "bare", "--credential", &given])
    };
    run(&format!("ssh-rsa {KEY}")).fails(1, &["ssh.authorized_keys.root", "the key itself is `ssh-ed25519`"]);
    run("").fails(1, &["there is no key in it"]);
    env.write("key", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n");
    let said = run(&format!("@{}", env.path("key").display())).fails(1, &["private half"]);
    assert!(!said.text().contains("b3Bl"), "{}", said.text());
    let said =
        env.kiln(&["run", "--profile", "bare", "--credential", "open-sesame"]).fails(1, &["NAME=VALUE"]);
    assert!(!said.text().contains("sesame"), "{}", said.text());
}

#[test]
fn what_is_wrong_with_a_secret_is_told_and_the_secret_is_not() {
    let env = homelab();
    let token = "token = { file = \"secrets/token\" }";
    for (content, words) in [
        ("", "is empty"),
        ("\n", "is empty"),
        ("TOKEN=sesame\n", "begins with a name"),
        ("\"sesame\"\n", "in quotes"),
        ("open sesame\n", "one word without blanks"),
        ("sesame\nsesame\n", "more than one line"),
        ("K10sesame::server:sesame\n", "64 hexadecimal digits"),
        ("abcdef.0123456789abcdef\n", "k3s token create"),
    ] {
        env.write("project/secrets/token", content);
        let run = env.kiln(&["cluster", "check"]).fails(1, &[words, &line(&env, "token =")]);
        assert!(!run.text().contains("sesame"), "{}", run.text());
    }
    env.write("project/secrets/token", "open-sesame\r\n");
    env.kiln(&["cluster", "check"]).ok();

    env.write("project/secrets/registries", "mirrors:\n  docker.io:\n    endpoints: [https://sesame]\n");
    let path = env.path("project/secrets/registries");
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    for (ways, words) in [
        ("registries = { file = \"secrets/registries\" }", "line 3, column 5: "),
        ("registries = { command = [\"/bin/cat\", \"secrets/registries\"] }", "did you mean `endpoint`?"),
        ("registries = { command = [\"/bin/echo\", \"a: b: sesame\"] }", "put the value into quotes"),
        ("root-password = { command = [\"/bin/echo\", \"plain-sesame\"] }", "must begin with $"),
        ("root-password = { command = [\"/bin/echo\", \"$6$salt$plain-sesame\"] }", "cut off"),
    ] {
        let run = with(&env, token, &format!("{token}\n{ways}")).fails(1, &["the secret `", words]);
        // The command's own words are in the file, and shown from there.
        assert!(ways.contains("echo") || !run.text().contains("sesame"), "{}", run.text());
    }
    // Beside all else that is wrong.
    env.write("project/secrets/token", "TOKEN=sesame");
    with(&env, "192.168.50.111", "192.168.50.255")
        .fails(1, &["2 things are wrong", "broadcast", "begins with a name"]);
    env.write("project/secrets/token", "open-sesame");

    // By a variable; without it there is nothing to look at, which is no mistake of the file.
    let by_env = |value: Option<&str>| {
        let text = env.read("project/cluster.toml");
        env.edit("project/cluster.toml", token, "token = { env = \"KILN_TEST_TOKEN\" }");
        let mut program = env.command();
        if let Some(value) = value {
            program.env("KILN_TEST_TOKEN", value);
        }
        let output = program.args(["cluster", "check"]).stdin(Stdio::null()).output().unwrap();
        env.write("project/cluster.toml", text);
        crate::common::run::Run::of(&output)
    };
    let run = by_env(Some("'sesame'")).fails(1, &["in quotes", "KILN_TEST_TOKEN"]);
    assert!(!run.text().contains("sesame"), "{}", run.text());
    assert!(by_env(None).ok().stderr.contains("KILN_TEST_TOKEN is not set"));
}

#[test]
fn labels_and_taints_are_those_that_a_node_can_register_with() {
    let env = homelab();
    let label = |key: &str| with(&env, "\"example.org/rack\"", &format!("{key:?}"));
    for key in [
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "beta.kubernetes.io/instance-type",
        "topology.kubernetes.io/zone",
        "node.kubernetes.io/anything",
    ] {
        label(key).ok();
    }
    for key in
        ["failure-domain.beta.kubernetes.io/rack", "node-role.kubernetes.io/worker", "kubernetes.io/rack"]
    {
        label(key).fails(1, &["the API server refuses it", &line(&env, "labels")]);
    }
    let taints = |list: &str| with(&env, "role = \"server\"", &format!("role = \"server\"\ntaints = {list}"));
    taints("[\"a=b:NoSchedule\", \"a=b:NoExecute\", \"c:NoSchedule\"]").ok();
    for (list, words) in [
        ("[\"a=b:NoSchedule\", \"a=c:NoSchedule\"]", "has key and effect of `a=b:NoSchedule`"),
        ("[\"a:NoSchedule\", \"a:NoSchedule\"]", "once"),
        ("[\"a=b:NoSchedul\"]", "did you mean `NoSchedule`?"),
        ("[\"/a:NoSchedule\"]", "its key"),
        ("[\"node.cloudprovider.kubernetes.io/uninitialized=true:NoSchedule\"]", "twice"),
    ] {
        taints(list).fails(1, &[words]);
    }
}

#[test]
fn hosts_are_named_where_their_reader_takes_names() {
    let env = homelab();
    let lan = "dns = [\"192.168.50.1\"]";
    env.edit(
        "project/cluster.toml",
        lan,
        "dns = [\"192.168.50.1\", \"fd00::53\"]\nntp = [\"0.debian.pool.ntp.org\", \"fd00::123\"]",
    );
    let json = env.kiln(&["--json", "cluster", "show", "--node", "agent-1"]).ok().json();
    let told =
        json["credentials"].as_array().unwrap().iter().find(|c| c["name"] == "network.network.50-nic0");
    let told = told.unwrap()["text"].as_str().unwrap().to_owned();
    for words in
        ["DNS=192.168.50.1\nDNS=fd00::53\nNTP=0.debian.pool.ntp.org\nNTP=fd00::123\n", "IPv6AcceptRA=yes\n"]
    {
        assert!(told.contains(words), "{told}");
    }
    for (server, shown) in [("nas.lan", "nas.lan:/srv"), ("fd00::20", "[fd00::20]:/srv")] {
        let text = env.read("project/cluster.toml");
        env.edit("project/cluster.toml", "server = \"192.168.50.20\"", &format!("server = {server:?}"));
        let shows = env.kiln(&["cluster", "show"]).ok().stdout;
        assert!(shows.contains(shown), "{shows}");
        env.write("project/cluster.toml", text);
    }
    let gateway = "gateway = \"192.168.50.1\"";
    for (from, to, words) in [
        ("\"fd00::53\"", "\"dns.lan\"", "which only a name server could find"),
        ("\"fd00::53\"", "\"127.0.0.1\"", "the node itself"),
        ("\"fd00::53\"", "\"fe80::1\"", "on one network card"),
        ("\"fd00::53\"", "\"0.0.0.0\"", "any address"),
        ("\"fd00::123\"", "\"ff02::101\"", "a group"),
        ("\"fd00::123\"", "\"https://ntp.lan\"", "write the host alone, such as \"ntp.lan\""),
        ("\"fd00::123\"", "\"192.168.50\"", "neither an address nor a host name"),
        ("dns = [\"192.168.50.1\", \"fd00::53\"]\n", "", "no name server by which it could find"),
        ("server = \"192.168.50.20\"", "server = \"agent-1\"", "which exports nothing"),
        (gateway, "gateway = \"fd00::1\"", "nodes are given IPv4 addresses"),
        (gateway, "gateway = \"router.lan\"", "is a host name, and only an address"),
        (
            "name = \"homelab\"",
            "name = \"homelab\"\nendpoint = \"https://nuc.lan:6443\"",
            "`nuc.lan` is a host name",
        ),
    ] {
        with(&env, from, to).fails(1, &[words]);
    }
}

#[test]
fn a_node_without_a_default_route_is_refused_where_k3s_would_not_start() {
    let env = homelab();
    let gateway = "gateway = \"192.168.50.1\"\n";
    let run = with(&env, gateway, "").fails(1, &["K3s does not start on a node without a default route"]);
    assert!(run.stderr.contains("[network.lan]"), "{}", run.text());
    // A gateway of its own is as good.
    with(&env, "address = \"192.168.50.111\"", "address = \"192.168.50.111\"\ngateway = \"192.168.50.2\"")
        .ok();
    for (subnet, words) in [("127.0.0.0/8", "a machine itself"), ("169.254.0.0/16", "choose themselves")] {
        with(&env, "\"192.168.3.0/24\"", &format!("{subnet:?}")).fails(1, &[words]);
    }
}

#[test]
fn hardware_addresses_are_read_as_windows_switches_and_stickers_write_them() {
    let env = homelab();
    for mac in ["BC-24-11-00-00-12", "bc24.1100.0012", "BC2411000012"] {
        with(&env, "bc:24:11:00:00:12", mac).ok();
    }
    for (mac, words) in [
        ("bc24.1100.0010", "is the hardware address of"),
        ("00:00:00:00:00:00", "no card has"),
        ("bc:24:11:0:0:12", "is no hardware address"),
        ("0124.1100.0012", "of a group"),
    ] {
        with(&env, "bc:24:11:00:00:12", mac).fails(1, &[words]);
    }
}
