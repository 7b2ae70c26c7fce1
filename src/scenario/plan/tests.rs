//! Plans as they are told.

use super::*;
use crate::qemu::accel::Accel;

const TEXT: &str = r#"
schema = 1
description = "two nodes and what becomes of them"
limit = "5min"
[network.lan]
subnet = "10.77.0.0/24"
[node.a]
profile = "agent"
memory = "2GiB"
nics = [{ network = "lan", address = "10.77.0.11" }]
[node.b]
profile = "server"
flavour = "metal"
boot = "manual"
cpus = 1
disks = [{ bus = "nvme", size = "8GiB" }, { size = "64MiB" }]
nics = [{ network = "lan", model = "igb", address = "none" }]
[[step]]
name = "b comes up"
on = ["b"]
start = true
[[step]]
name = "both answer"
run = "true"
[[step]]
name = "a loses power again and again"
on = ["a"]
power_cuts = { count = 5, write = "true", verify = "true" }
[[step]]
name = "b goes away"
on = ["b"]
power_off = true
[[fault]]
random = { first = "10s", every = "1min", count = 2 }
node = "a"
kind = "reboot"
[[fault]]
after = "both answer"
node = "a"
kind = "pause"
for = "3s"
[[invariant]]
name = "nothing is on fire"
run = "true"
"#;

fn scenario() -> Scenario {
    Scenario::parse("two", "qemu/two.toml", TEXT, &BTreeSet::new()).unwrap()
}

const TCG: Calibration = Calibration { accel: Accel::Tcg, cpus: 2, slowdown: 5.0, others: 0.0 };

#[test]
fn a_plan_says_what_is_done_what_it_takes_and_how_long() {
    let plan = Plan::new(&scenario(), 7, &TCG);
    insta::assert_snapshot!(plan.lines().join("\n"), @r#"
    qemu/two.toml: two nodes and what becomes of them

    TCG, 2 cores: about 4 minutes
    limits are 8.0 times those of the file: 5.0 for TCG, by the CPU time of a test guest; times 1.6 since 2 nodes share 2 cores
    the run is given up after 40 minutes; a step before its limit if no machine does anything for the time that the file gives it
    2 nodes, 3072 MiB of memory and 3 virtual CPUs at once; 9 boots; seed 7

    nodes
      a  agent           2048 MiB  2 CPUs  virtio 8GiB              lan virtio 10.77.0.11
      b  server (metal)  1024 MiB  1 CPU   nvme 8GiB, virtio 64MiB  lan igb none

    steps
      1  start       b comes up                     b
      2  ready       a, b are ready                 a, b
      3  run         both answer                    a, b
      4  power_cuts  a loses power again and again  a
      5  power_off   b goes away                    b

    faults
      57.6 s               reboot  a
      109.7 s              reboot  a
      after `both answer`  pause   a

    before each step
      nothing is on fire
    "#);
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["boots"], 2 + 5 + 2);
    assert_eq!(json["steps"][1]["implied"], true);
    assert_eq!(json["peak"]["memory"], 3u64 << 30);
}

#[test]
fn more_power_cuts_take_longer_and_the_limit_of_the_run_grows() {
    let plain = Plan::new(&scenario(), 1, &TCG);
    let mut more = scenario();
    more.set_cuts(1000);
    let long = Plan::new(&more, 1, &TCG);
    assert!(long.seconds > plain.seconds + 995 * 20, "{} {}", plain.seconds, long.seconds);
    assert!(long.limit_seconds > long.seconds && long.boots == plain.boots + 995);
    let kvm =
        Plan::new(&scenario(), 1, &Calibration { accel: Accel::Kvm, cpus: 8, slowdown: 1.0, others: 0.0 });
    assert!(kvm.seconds < plain.seconds / 3 && kvm.limit_seconds == 300);
}

#[test]
fn times_are_told_as_people_guess_them() {
    for (seconds, text) in [
        (0, "10 seconds"),
        (41, "50 seconds"),
        (99, "100 seconds"),
        (100, "2 minutes"),
        (359, "6 minutes"),
        (5399, "90 minutes"),
        (7200, "2 hours"),
    ] {
        assert_eq!(about(seconds), text);
    }
}

#[test]
fn the_shipped_scenarios_take_no_longer_than_people_wait_for() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let estimates =
        ["smoke", "three-node", "join", "k3s-faults", "cilium", "networks", "nfs", "hardware", "faults"].map(
            |name| {
                let plan = Plan::new(&Scenario::load(dir, name).unwrap(), 1, &TCG);
                assert!(plan.limit_seconds > 2 * plan.seconds, "{name}: its limit leaves no room");
                format!(
                    "{name}: {} with {} and {}",
                    plan.estimate,
                    counted(plan.boots, "boot"),
                    counted(plan.steps.len(), "step")
                )
            },
        );
    insta::assert_snapshot!(estimates.join("\n"), @r#"
    smoke: TCG, 2 cores: about 100 seconds with 2 boots and 9 steps
    three-node: TCG, 2 cores: about 27 minutes with 6 boots and 25 steps
    join: TCG, 2 cores: about 10 minutes with 8 boots and 19 steps
    k3s-faults: TCG, 2 cores: about 21 minutes with 7 boots and 20 steps
    cilium: TCG, 2 cores: about 11 minutes with 2 boots and 13 steps
    networks: TCG, 2 cores: about 6 minutes with 6 boots and 27 steps
    nfs: TCG, 2 cores: about 4 minutes with 5 boots and 24 steps
    hardware: TCG, 2 cores: about 3 minutes with 4 boots and 10 steps
    faults: TCG, 2 cores: about 7 minutes with 12 boots and 22 steps
    "#);
}

#[test]
fn nodes_that_are_on_one_after_the_other_take_no_more_than_one() {
    let text = r#"
schema = 1
description = "x"
[node.a]
profile = "agent"
[node.b]
profile = "agent"
boot = "manual"
memory = "2GiB"
[[step]]
name = "a goes"
power_off = true
[[step]]
name = "b comes"
on = ["b"]
start = true
"#;
    let scenario = Scenario::parse("x", "x.toml", text, &BTreeSet::new()).unwrap();
    assert_eq!(peak(&scenario), Peak { nodes: 1, memory: 2 << 30, cpus: 2 });
}
