//! Good and bad scenarios, as a person writes them.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::error::report;

/// A small cluster to which tests add what they are about.
const CLUSTER: &str = r#"schema = 1
description = "a test"
[network.lan]
subnet = "10.77.0.0/24"
[network.wan]
subnet = "192.168.3.0/24"
[node.server]
profile = "server"
nics = [{ network = "lan", address = "10.77.0.11" }]
[node.agent-1]
profile = "agent"
nics = [{ network = "lan", address = "10.77.0.21" }, { network = "wan", model = "igb", address = "dhcp" }]
[node.agent-2]
profile = "agent"
boot = "manual"
[node.broken]
profile = "agent"
boot = "manual"
damage = { partition = "uki" }
[node.edge]
profile = "edge"
nics = [
  { network = "lan", address = "10.77.0.1" },
  { network = "wan", address = "192.168.3.1" },
]
serves = { dhcp = { network = "wan", range = ["192.168.3.100", "192.168.3.199"] }, ntp = true, router = true }
"#;

fn parse(text: &str) -> anyhow::Result<Scenario> {
    Scenario::parse("test", "qemu/test.toml", text, &BTreeSet::new())
}

#[track_caller]
fn with(text: &str) -> Scenario {
    parse(&format!("{CLUSTER}{text}")).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn all_is_who_is_up_and_who_nobody_waited_for_is_waited_for() {
    let scenario = with(
        r#"
[[step]]
name = "first"
run = "true"
[[step]]
name = "second comes up"
on = "agent-2"
start = true
[[step]]
name = "all of them"
run = "true"
[[step]]
name = "pull"
on = ["agent-1"]
power_cut = true
[[step]]
name = "everybody"
on = "every"
check = "units"
[[step]]
name = "off"
on = ["agent-1"]
power_off = true
[[step]]
name = "the rest"
limit = "5s"
unit = "ssh.service"
[[step]]
name = "broken"
on = "broken"
start = true
[[step]]
name = "refused"
refused = "bad"
"#,
    );
    let seen: Vec<String> = scenario
        .steps
        .iter()
        .map(|s| {
            let up: Vec<&str> = s.up.iter().map(Name::as_str).collect();
            format!("{}: {} {} [{}] {} {}", s.name, s.action.word(), s.on, up.join(" "), s.limit, s.implied)
        })
        .collect();
    insta::assert_snapshot!(seen.join("\n"), @r#"
    agent-1, server are ready: ready agent-1, server [] 1min true
    first: run agent-1, server [agent-1 server] 30s false
    second comes up: start agent-2 [agent-1 server] 1min false
    agent-2 is ready: ready agent-2 [agent-1 server] 1min true
    all of them: run agent-1, agent-2, server [agent-1 agent-2 server] 30s false
    pull: power_cut agent-1 [agent-1 agent-2 server] 90s false
    edge is ready: ready edge [agent-1 agent-2 server] 1min true
    everybody: check agent-1, agent-2, edge, server [agent-1 agent-2 edge server] 30s false
    off: power_off agent-1 [agent-1 agent-2 edge server] 1min false
    the rest: unit agent-2, server [agent-2 edge server] 5s false
    broken: start broken [agent-2 edge server] 1min false
    refused: refused broken [agent-2 edge server] 1min false
    "#);
}

#[test]
fn names_derive_addresses_and_ids_that_never_change() {
    let scenario = with("[[step]]\nname = \"x\"\nready = true\n");
    let mut text = String::new();
    for node in scenario.nodes() {
        writeln!(text, "{} {} product={} {} {}", node.name, node.uuid, node.product, node.memory, node.cpus)
            .unwrap();
        for nic in &node.nics {
            writeln!(text, "  {} {} {:?} {:?}", nic.network, nic.mac, nic.model, nic.address).unwrap();
        }
    }
    insta::assert_snapshot!(text, @r#"
    agent-1 543c1932-c75a-555c-8b9e-86f9b88d605a product=true 1GiB 2
      lan 52:54:00:12:ff:23 Virtio Fixed { ip: 10.77.0.21, prefix: 24 }
      wan 52:54:00:b7:13:36 Igb Dhcp
    agent-2 3896b9b6-fe00-51ed-acee-8c9ec3df4fb7 product=true 1GiB 2
    broken 663578f4-db3b-51a4-9191-34ffe2544b83 product=true 1GiB 2
    edge 7a37a52f-5a0d-5553-bceb-3da4193bd820 product=false 1GiB 2
      lan 52:54:00:93:79:50 Virtio Fixed { ip: 10.77.0.1, prefix: 24 }
      wan 52:54:00:5b:34:52 Virtio Fixed { ip: 192.168.3.1, prefix: 24 }
    server a691a43d-ca11-5d9d-85d5-8e9bd3d27bbd product=true 1GiB 2
      lan 52:54:00:60:8d:97 Virtio Fixed { ip: 10.77.0.11, prefix: 24 }
    "#);
    let other = Scenario::parse("other", "x.toml", CLUSTER, &BTreeSet::from(["agent".to_owned()])).unwrap();
    assert_ne!(other.nodes["server"].uuid, scenario.nodes["server"].uuid);
    assert_ne!(other.nodes["server"].nics[0].mac, scenario.nodes["server"].nics[0].mac);
    assert!(!other.nodes["agent-1"].product && other.nodes["server"].product);
    let (edge, address) = scenario.server("wan", |s| s.ntp).unwrap();
    assert_eq!((edge.name.as_str(), address.to_string().as_str()), ("edge", "192.168.3.1"));
    assert!(scenario.server("wan", |s| s.dns).is_none());
}

#[test]
fn saved_texts_are_filled_in_and_other_braces_are_left_to_the_shell() {
    let scenario = with(
        r#"
[[step]]
name = "save"
on = ["server"]
run = "cat /etc/machine-id"
save = "id"
[[step]]
name = "use"
on = ["agent-1"]
run = "echo {id} ${id} {other} {print} {node} {"
stdout = "{id}"
"#,
    );
    let Some(Action::Run(run)) = scenario.steps.last().map(|s| &s.action) else { panic!("no run") };
    let mut saved = text::Saved::default();
    assert_eq!(run.script.fill("agent-1", &saved), Err("id".to_owned()));
    saved.set("id", "server", " abc\n");
    assert_eq!(run.script.fill("agent-1", &saved).unwrap(), "echo abc ${id} {other} {print} agent-1 {");
    saved.set("id", "agent-1", "def");
    assert_eq!(run.expect.stdout.as_ref().unwrap().fill("agent-1", &saved).unwrap(), "def");
    assert!(run.script.fill("agent-2", &saved).is_err(), "two values, none of them its own");
}

#[test]
fn cables_faults_and_what_is_let_pass_are_resolved() {
    let scenario = with(
        r#"
[[link]]
node = "agent-1"
network = "wan"
delay = "2ms"
loss = 0.5
rate = "10Mbit"
pcap = true
[[step]]
name = "cut"
on = ["agent-1"]
link = { network = "lan", cut = "in" }
[[step]]
name = "heal"
on = ["agent-1"]
heal = true
[[fault]]
after = "cut"
node = "server"
kind = "link"
for = "10s"
link = { cut = true, jitter = "1ms", duplicate = 1 }
[[fault]]
random = { first = "10s", every = "30s", count = 5 }
node = "agent-1"
kind = "power_cut"
[[invariant]]
name = "edge answers"
on = "edge"
run = "true"
[[allow]]
pattern = "hung .* task"
node = "edge"
reason = "slow"
until = "2027-06-30"
"#,
    );
    let Scenario { links, faults, invariants, allow, steps, .. } = &scenario;
    insta::assert_debug_snapshot!((links, faults, invariants, allow, steps.last().map(|s| &s.action)));
    let wan = &scenario.cables()[1];
    assert_eq!(scenario.beginning(wan), (links[0].conditions, true));
    assert_eq!(scenario.nic(wan).map(|n| n.network.as_str()), Some("wan"));
}

/// Everything that a person can get wrong; what kiln says to it.
#[test]
fn mistakes_are_told_with_their_line() {
    let cases = include_str!("mistakes.toml.txt").split("## ").skip(1).map(|case| {
        let (name, text) = case.split_once('\n').unwrap();
        let whole = text.starts_with("schema");
        (name, if whole { text.to_owned() } else { format!("{CLUSTER}{text}") })
    });
    let mut all = String::new();
    for (case, text) in cases {
        let error = parse(&text).map(|_| ()).expect_err(case);
        let report = report(&error);
        assert_eq!(report.kind.exit_code(), 1, "{case}");
        writeln!(all, "## {case}\n{}", report.chain.join("\ncaused by: ")).unwrap();
        for hint in report.hints {
            writeln!(all, "hint: {hint}").unwrap();
        }
        all.push('\n');
    }
    insta::assert_snapshot!(all);
}

#[test]
fn more_than_a_hundred_nodes_are_too_many() {
    let cluster = |n: u32| {
        let nodes: String = (0..n).map(|i| format!("[node.n{i}]\nprofile = \"agent\"\n")).collect();
        parse(&format!("schema = 1\ndescription = \"x\"\n{nodes}"))
    };
    assert_eq!(cluster(100).unwrap().nodes.len(), 100);
    assert!(cluster(101).unwrap_err().to_string().contains("101 nodes are too many"));
}

#[test]
fn scenarios_are_found_by_name_and_path_and_near_names_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("qemu");
    fs_err::create_dir_all(folder.join("machines")).unwrap();
    let error = Scenario::load(dir.path(), "smoke").unwrap_err();
    assert_eq!(report(&error).hints, ["qemu/ has no scenario; `kiln init DIR` writes some"]);
    fs_err::write(folder.join("smoke.toml"), CLUSTER).unwrap();
    fs_err::write(folder.join("bad.toml"), "schema = 1\n").unwrap();
    fs_err::write(folder.join("machines/agent.toml"), "").unwrap();
    let smoke = Scenario::load(dir.path(), "smoke").unwrap();
    assert_eq!((smoke.name.as_str(), smoke.file.as_str()), ("smoke", "qemu/smoke.toml"));
    assert!(!smoke.nodes["agent-1"].product, "a file in qemu/machines is no product");
    let error = Scenario::load(dir.path(), "smok").unwrap_err();
    assert_eq!(
        report(&error).hints,
        ["did you mean `smoke`?", "scenarios: bad, smoke; or the path of a file"]
    );
    let list = Scenario::list(dir.path());
    let seen: Vec<_> = list.iter().map(|(name, s)| (name.as_str(), s.is_ok())).collect();
    assert_eq!(seen, [("bad", false), ("smoke", true)]);

    let outside = dir.path().join("mine.toml");
    fs_err::write(&outside, CLUSTER).unwrap();
    let path = outside.display().to_string();
    let mine = Scenario::load(Path::new("/nowhere"), &path).unwrap();
    assert_eq!((mine.name, mine.file), ("mine".to_owned(), path));
    assert!(
        Scenario::load(dir.path(), "none/there.toml").unwrap_err().to_string().contains("cannot be read")
    );
    let odd = dir.path().join("a b.toml");
    fs_err::write(&odd, CLUSTER).unwrap();
    assert!(Scenario::load(dir.path(), &odd.display().to_string()).is_err());
}

#[test]
fn words_are_read_as_they_are_written() {
    for text in ["250ms", "5s", "2min", "1h"] {
        assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
    }
    assert_eq!("90s".parse::<Span>().unwrap().scaled(2.5).as_secs(), 225);
    assert_eq!("120s".parse::<Span>().unwrap().to_string(), "2min");
    for wrong in ["", "5", "s", "-1s", "1.5s", "1 s", "5sec", "99999999999h", "18446744073709551616ms"] {
        assert!(wrong.parse::<Span>().is_err(), "{wrong}");
    }
    for (text, bits) in [("64kbit", 64_000), ("10Mbit", 10_000_000), ("1Gbit", 1_000_000_000)] {
        let rate: Rate = text.parse().unwrap();
        assert_eq!((rate.bits(), rate.to_string().as_str()), (bits, text));
    }
    for wrong in ["0Mbit", "10", "10MB", "99999999999999999999Gbit"] {
        assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
    }
    for wrong in [
        "00:00:00:00:00:00",
        "01:00:00:00:00:01",
        "52:54:00:00:00",
        "52:54:00:00:00:0",
        "52:54:00:00:00:00:00",
        "+2:54:00:00:00:01",
    ] {
        assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
    }
    for wrong in ["", "-a", "a-", "A", "a_b", "1a", "a.b", &"a".repeat(33)] {
        assert!(wrong.parse::<Name>().is_err(), "{wrong}");
    }
    assert!("fd00:77::/64".parse::<Subnet>().unwrap().has_host("fd00:77::ffff".parse().unwrap()));
    let net: Subnet = "10.0.0.0/30".parse().unwrap();
    let hosts: Vec<bool> = (0..4).map(|n| net.has_host([10, 0, 0, n].into())).collect();
    assert_eq!(hosts, [false, true, true, false]);
}

/// Pieces of which the generator below makes scenarios that are almost right.
const PIECES: &[&str] = &[
    "[node.a]\nprofile = \"agent\"\n",
    "[node.edge]\nprofile = \"edge\"\n",
    "boot = \"manual\"\n",
    "damage = { partition = \"root\" }\n",
    "[network.lan]\nsubnet = \"10.0.0.0/24\"\n",
    "nics = [{ network = \"lan\", address = \"10.0.0.2\" }]\n",
    "serves = { dns = true }\n",
    "[[step]]\nname = \"s\"\n",
    "on = [\"a\"]\n",
    "on = \"every\"\n",
    "run = \"echo {x}\"\n",
    "save = \"x\"\n",
    "ready = true\n",
    "start = true\n",
    "pause = true\n",
    "refused = \"x\"\n",
    "link = { cut = true }\n",
    "heal = true\n",
    "wait = \"1s\"\n",
    "limit = \"0s\"\n",
    "[[fault]]\nnode = \"a\"\nkind = \"link\"\n",
    "at = \"1s\"\n",
    "for = \"1s\"\n",
    "[[link]]\nnode = \"a\"\n",
    "power_cuts = { count = 1, write = \"a\", verify = \"b\" }\n",
    "[[invariant]]\nname = \"i\"\nrun = \"true\"\n",
    "[[allow]]\npattern = \".\"\nreason = \"r\"\nuntil = \"2027-01-01\"\n",
    "é = \"ü\"\n",
    "\"\"\"",
    "x",
    "[",
];

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        let _ = parse(&text);
        let _ = parse(&format!("{CLUSTER}{text}"));
    }

    #[test]
    fn no_mix_of_right_pieces_makes_it_panic(picks in proptest::collection::vec(0..PIECES.len(), 0..25)) {
        let body: String = picks.into_iter().map(|i| PIECES[i]).collect();
        if let Ok(scenario) = parse(&format!("schema = 1\ndescription = \"x\"\n{body}")) {
            prop_assert!(scenario.steps.iter().all(|s| s.on.len() > 0));
        }
    }
}

#[test]
fn a_short_run_leaves_long_steps_out_with_the_faults_that_come_after_them() {
    let mut scenario = with(
        r#"
[[step]]
name = "first"
long = true
run = "true"
[[step]]
name = "second"
run = "true"
[[fault]]
after = "first"
node = "server"
kind = "reboot"
[[fault]]
after = "second"
node = "server"
kind = "pause"
for = "1s"
"#,
    );
    scenario.leave_out_long();
    let names = |steps: &[Step]| steps.iter().map(|step| step.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&scenario.left_out), ["first"]);
    let second = scenario.steps.iter().position(|step| step.name == "second").unwrap();
    assert!(scenario.faults.iter().all(|fault| fault.when == When::After(second)), "{:?}", scenario.faults);
    assert_eq!(scenario.faults.len(), 1);
}
