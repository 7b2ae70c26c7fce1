//! `kiln cluster`, `kiln token` and `kiln test --cluster`.

use std::os::unix::fs::PermissionsExt as _;

use crate::common::run::Env;

const PUBLIC: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILe1Wpjme+Bad9jFbOt/iAvwYmbBinj+ARsSGtOMdGwQ me@home";

/// A project as `kiln init` writes it, with the cluster of the README.
pub(super) fn homelab() -> Env {
    let env = Env::new();
    env.kiln(&["init", env.project().to_str().unwrap()]).ok();
    let readme = fs_err::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let section = readme.split("## The real cluster").nth(1).unwrap();
    let text = section.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    env.write("project/cluster.toml", text.replace("@/home/me/.ssh/id_ed25519.pub", PUBLIC));
    env.write("project/secrets/token", "open-sesame\n");
    let token = env.path("project/secrets/token");
    fs_err::set_permissions(token, std::fs::Permissions::from_mode(0o600)).unwrap();
    env
}

/// The line of cluster.toml that begins with `text`.
pub(crate) fn line(env: &Env, text: &str) -> String {
    let file = env.read("project/cluster.toml");
    let line = file.lines().position(|line| line.starts_with(text)).unwrap_or_else(|| panic!("no {text}"));
    format!("cluster.toml:{}:", line + 1)
}

#[test]
fn the_example_of_the_readme_fits() {
    let env = homelab();
    let run = env.kiln(&["cluster", "check"]).ok();
    assert!(run.stderr.contains("the cluster homelab of 3 nodes"), "{}", run.text());
    assert!(!run.stderr.contains("warning"), "{}", run.text());
    let json = env.kiln(&["--json", "cluster", "check"]).ok().json();
    assert_eq!((json["nodes"].as_u64(), json["warnings"].as_array().map(Vec::len)), (Some(3), Some(0)));
}

#[test]
fn each_mistake_is_told_with_its_line() {
    for (from, to, place, words) in [
        (
            "bc:24:11:00:00:12",
            "bc:24:11:00:00:11",
            "mac = \"bc:24:11:00:00:11\"",
            "is the hardware address of `agent-1`, too",
        ),
        ("bc:24:11:00:00:12", "01:24:11:00:00:12", "mac = \"01", "of a group"),
        ("bc:24:11:00:00:12", "bc:24", "mac = \"bc:24\"", "is no hardware address"),
        (
            "\"192.168.50.111\"",
            "\"192.168.50.100\"",
            "address = \"192.168.50.100\"",
            "is the address of `agent-1`, too",
        ),
        ("\"192.168.50.111\"", "\"192.168.50.255\"", "address = \"192.168.50.255\"", "broadcast"),
        (
            "\"192.168.50.111\"",
            "\"192.168.50.0\"",
            "address = \"192.168.50.0\"",
            "of the network `lan` itself",
        ),
        ("\"192.168.50.111\"", "\"192.168.50.1\"", "address = \"192.168.50.1\"", "is the gateway"),
        ("\"192.168.50.111\"", "\"192.168.51.1\"", "address = \"192.168.51.1\"", "is in no network"),
        ("\"192.168.50.111\"", "\"192.168.50.111/24\"", "address = \"192.168.50.111/24\"", "has a prefix"),
        (
            "gateway = \"192.168.3.1\"",
            "gateway = \"192.168.4.1\"",
            "gateway = \"192.168.4.1\"",
            "cannot be reached",
        ),
        ("gateway = \"192.168.3.1\"\n", "", "address = \"192.168.3.100\"", "has no gateway"),
        ("\"192.168.3.0/24\"", "\"10.42.7.0/24\"", "subnet = \"10.42.7.0/24\"", "the addresses of pods"),
        ("[node.agent-2]", "[node.Agent_2]", "[node.Agent_2]", "is no name"),
        ("[node.agent-2]", "[node.all]", "[node.all]", "a meaning of its own"),
        ("role = \"server\"", "role = \"agent\"", "role = \"agent\"", "there is no server"),
        (
            "[node.agent-2]\nrole = \"agent\"",
            "[node.agent-2]\nrole = \"server\"",
            "role = \"server\"",
            "SQLite",
        ),
        ("role = \"server\"", "role = \"server\"\nprofile = \"srver\"", "profile", "did you mean `server`?"),
        ("role = \"server\"", "role = \"server\"\nprofile = \"agent\"", "profile", "of the role agent"),
        (
            "name = \"homelab\"",
            "name = \"homelab\"\nendpoint = \"https://192.168.50.9:6443\"",
            "endpoint",
            "no server has",
        ),
        (
            "name = \"homelab\"",
            "name = \"homelab\"\nlb-pool = \"192.168.50.96/28\"",
            "lb-pool",
            "the address of `server`",
        ),
        (
            "name = \"homelab\"",
            "name = \"homelab\"\nlb-pool = \"10.43.0.0/24\"",
            "lb-pool",
            "the addresses of services",
        ),
        ("\"Samsung SSD 9*\"", "\"[\"", "disk = { model", "is no pattern"),
        (
            "name = \"homelab\"",
            "name = \"homelab\"\nseal = \"tpm\"",
            "seal = ",
            "expected one of `null`, `tpm2`, `host`, `host+tpm2`",
        ),
        ("40GiB", "40", "disk = { bus = \"scsi\"", "is no size of a disk"),
        ("\"example.org/rack\"", "\"node-role.kubernetes.io/x\"", "labels", "the API server refuses it"),
        (
            "token = { file = \"secrets/token\" }",
            "token = { file = \"a\", env = \"B\" }",
            "token",
            "exactly one of",
        ),
        ("token = { file = \"secrets/token\" }", "", "[node.agent-1]", "there is no token"),
    ] {
        let env = homelab();
        env.edit("project/cluster.toml", from, to);
        let run = env.kiln(&["cluster", "check"]).fails(1, &[words]);
        // Of several lines that begin so, the later one is wrong.
        let file = env.read("project/cluster.toml");
        let lines = file.lines().enumerate().filter(|(_, line)| line.starts_with(place));
        let found =
            lines.map(|(index, _)| format!("cluster.toml:{}:", index + 1)).any(|at| run.stderr.contains(&at));
        assert!(found, "{place} is not pointed at\n{}", run.text());
    }
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let env = homelab();
    env.edit("project/cluster.toml", "bc:24:11:00:00:12", "bc:24:11:00:00:10");
    env.edit("project/cluster.toml", "192.168.50.111", "192.168.50.255");
    env.edit("project/cluster.toml", "name = \"homelab\"", "name = \"home lab\"");
    let run = env.kiln(&["cluster", "check"]).fails(1, &["3 things are wrong"]);
    let places: Vec<Option<usize>> = ["home lab", "is the hardware address", "broadcast"]
        .iter()
        .map(|words| run.stderr.find(words))
        .collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{}", run.text());
}

#[test]
fn a_secret_in_the_file_is_refused_and_not_shown() {
    let env = homelab();
    for secret in ["\"plain-sesame\"", "{ text = \"plain-sesame\" }", "[\"plain-sesame\"]"] {
        let env_text = env.read("project/cluster.toml");
        env.edit("project/cluster.toml", "{ file = \"secrets/token\" }", secret);
        let at = line(&env, "token =");
        let run = env
            .kiln(&["cluster", "check"])
            .fails(1, &["no secret stands in this file", &at, "{ env = \"NAME\" }"]);
        assert!(!run.stderr.contains("plain-sesame"), "{}", run.text());
        env.write("project/cluster.toml", env_text);
    }
}

#[test]
fn a_secret_that_others_may_read_or_nobody_is_warned_about() {
    let env = homelab();
    let token = env.path("project/secrets/token");
    fs_err::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    let run = env.kiln(&["cluster", "check"]).ok();
    assert!(
        run.stderr.contains("mode 0644") && run.stderr.contains(&line(&env, "token =")),
        "{}",
        run.text()
    );
    fs_err::remove_file(&token).unwrap();
    let run = env.kiln(&["cluster", "check"]).ok();
    assert!(run.stderr.contains("cannot be read") && run.stderr.contains("kiln token new"), "{}", run.text());
}

#[test]
fn a_node_is_shown_with_what_it_is_told_and_no_secret() {
    let env = homelab();
    let run = env.kiln(&["--json", "-vv", "cluster", "show", "--node", "agent-2"]).ok();
    assert!(!run.text().contains("open-sesame"), "{}", run.text());
    let json = run.json();
    assert_eq!(json["addressing"]["static"]["address"], "192.168.3.100");
    assert_eq!(json["disk"]["bus"], "nvme");
    let credential = |name: &str| {
        json["credentials"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap().clone()
    };
    let config = credential("k3s.config")["text"].as_str().unwrap().to_owned();
    assert_eq!(config, "server: https://192.168.50.100:6443\nnode-ip: \"192.168.3.100\"\n");
    let network = credential("network.network.50-nic0")["text"].as_str().unwrap().to_owned();
    for part in [
        "MACAddress=bc:24:11:00:00:12",
        "Address=192.168.3.100/24",
        "Gateway=192.168.3.1",
        "DNS=192.168.50.1",
    ] {
        assert!(network.contains(part), "{network}");
    }
    assert!(credential("k3s.token")["text"].is_null());
    env.kiln(&["cluster", "show", "--node", "agent-3"]).fails(1, &["has no node `agent-3`", "did you mean"]);
    let all = env.kiln(&["cluster", "show"]).ok();
    assert!(
        all.stdout.contains("192.168.50.111/24 on lan") && !all.stdout.contains("open-sesame"),
        "{}",
        all.text()
    );
}

#[test]
fn the_key_for_secrets_is_the_nodes_or_else_the_clusters_and_shown() {
    let env = homelab();
    let seal = |node: &str| {
        let json = env.kiln(&["--json", "cluster", "show", "--node", node]).ok().json();
        let told = json["credentials"].as_array().unwrap().iter().find(|c| c["name"] == "kiln.seal");
        (
            json["seal"].as_str().unwrap().to_owned(),
            told.map(|told| told["text"].as_str().unwrap().to_owned()),
        )
    };
    assert_eq!(seal("agent-1"), ("null".to_owned(), None));
    env.edit("project/cluster.toml", "name = \"homelab\"", "name = \"homelab\"\nseal = \"tpm2\"");
    env.edit("project/cluster.toml", "[node.agent-2]", "[node.agent-2]\nseal = \"host+tpm2\"");
    env.edit("project/cluster.toml", "[node.server]", "[node.server]\nseal = \"null\"");
    env.edit("project/cluster.toml", "[secret]", "[secret]\nroot-password = { env = \"HASH\" }");
    let told = |key: &str| Some(format!("{key}\nk3s.token\npasswd.hashed-password.root\n"));
    assert_eq!(seal("agent-1"), ("tpm2".to_owned(), told("tpm2")));
    assert_eq!(seal("agent-2"), ("host+tpm2".to_owned(), told("host+tpm2")));
    assert_eq!(seal("server"), ("null".to_owned(), None));
    let text = env.kiln(&["cluster", "show", "--node", "agent-1"]).ok().stdout;
    assert!(text.contains("\nseal     tpm2\n") && text.contains("\nkiln.seal\n  tpm2\n"), "{text}");
    let schema = env.kiln(&["dev", "schema", "cluster"]).ok().stdout;
    assert!(schema.contains("host+tpm2") && schema.contains("at its first boot"), "{schema}");
}

#[test]
fn a_key_where_there_is_no_secret_is_warned_about() {
    let env = Env::new();
    env.kiln(&["init", env.project().to_str().unwrap()]).ok();
    env.write(
        "project/cluster.toml",
        "schema = 1\nname = \"lone\"\nseal = \"host\"\n[network.lan]\nsubnet = \"192.168.50.0/24\"\ngateway = \"192.168.50.1\"\n\
         [node.server]\nrole = \"server\"\naddress = \"192.168.50.100\"\n",
    );
    let run = env.kiln(&["cluster", "check"]).ok();
    assert!(
        run.stderr.contains(&line(&env, "seal =")) && run.stderr.contains("nothing is sealed"),
        "{}",
        run.text()
    );
}

#[test]
fn a_token_is_for_its_owner_alone_and_never_overwritten() {
    let env = Env::new();
    let path = env.path("token");
    let out = path.to_str().unwrap();
    let run = env.kiln(&["token", "new", "--out", out]).ok();
    let token = env.read("token");
    assert_eq!(fs_err::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(
        token.trim_end().len() == 64 && token.trim_end().bytes().all(|b| b.is_ascii_hexdigit()),
        "{token}"
    );
    assert!(
        !run.text().contains(token.trim_end()) && run.stderr.contains("token = { file ="),
        "{}",
        run.text()
    );
    env.kiln(&["token", "new", "--out", out]).fails(1, &["is there already"]);
    assert_eq!(env.read("token"), token);
    let [one, two] = [0, 1].map(|_| env.kiln(&["token", "new"]).ok().stdout);
    assert_ne!(one, two);
}

#[test]
fn the_scenario_of_the_cluster_has_its_nodes_and_machines_for_what_is_beside_them() {
    let env = homelab();
    let file = env.path("project/cluster.toml");
    let run = env.kiln(&["test", "--plan", "--accel", "tcg", "--cluster", file.to_str().unwrap()]);
    // Images are not baked here, and a small machine may lack the memory: what counts is that the scenario was made and looked at.
    assert!(!run.stderr.contains("is none") && !run.stderr.contains("panicked"), "{}", run.text());
}
