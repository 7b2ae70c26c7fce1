//! Answers of nodes as they should be, and each check with one thing wrong.

use std::path::Path;

use super::*;
use crate::arch::Arch;
use crate::built::tests::sample;
use crate::spec::Project;

const TEXT: &str = r#"
schema = 1
description = "x"
[network.lan]
subnet = "10.77.0.0/24"
[node.a]
profile = "agent"
disks = [{ size = "8GiB" }]
nics = [{ network = "lan", address = "10.77.0.11", mac = "52:54:00:00:00:0a" }]
[node.b]
profile = "agent"
nics = [{ network = "lan", address = "10.77.0.12", mac = "52:54:00:00:00:0b" }]
[node.edge]
profile = "edge"
nics = [{ network = "lan", address = "10.77.0.1", mac = "52:54:00:00:00:0e" }]
serves = { dns = true, ntp = true }
"#;

const NOW: i64 = 1_789_199_741;

/// Judges answers of `a`, and of `b` where there is one; what is wrong, one a line.
fn judge(check: Check, a: &str, b: Option<&str>) -> Vec<String> {
    let scenario = Scenario::parse("test", "qemu/test.toml", TEXT, &BTreeSet::new()).unwrap();
    let project = Project::load(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let agent = project.profile("agent").unwrap();
    let manifest = sample().manifest;
    let names: Vec<Name> = ["a", "b"].map(|n| n.parse().unwrap()).into();
    let known = Known {
        scenario: &scenario,
        up: &scenario.nodes.keys().cloned().collect(),
        profiles: &names.iter().map(|n| (n.clone(), agent)).collect(),
        manifests: &names.iter().map(|n| (n.clone(), &manifest)).collect(),
        probes: &BTreeMap::new(),
    };
    let uuid = |name: &str| scenario.nodes[name].uuid.simple().to_string();
    let answers = names.iter().zip([Some(a), b]).filter_map(|(name, text)| {
        let text = text?
            .replace("UUID-A", &uuid("a"))
            .replace("UUID-B", &uuid("b"))
            .replace("HASH", &manifest.root_hash.to_string())
            .replace("KERNEL", &manifest.kernel)
            .replace("VERSION", &manifest.version);
        Some((name.clone(), Answer { text, asked: NOW, answered: NOW + 1 }))
    });
    let wrong = check.judge(&known, &answers.collect());
    wrong.iter().map(|w| format!("{}: expected {}, found {}", w.node, w.expected, w.found)).collect()
}

/// `good` has nothing wrong; with `from` replaced by `to` there is just `wrong`.
#[track_caller]
fn spoiled(check: Check, good: &str, changes: &[(&str, &str, &str)]) {
    assert_eq!(judge(check, good, None), Vec::<String>::new());
    for (from, to, wrong) in changes {
        assert!(good.contains(from), "{from}");
        let seen = judge(check, &good.replace(from, to), None).join("\n");
        assert!(seen.contains(wrong), "{from} -> {to}: {seen}");
    }
}

#[test]
fn a_node_is_who_it_was_told_to_be() {
    let a = "hostname a\nmachine-id UUID-A\nboot-id 1\ncard enp1s0 52:54:00:00:00:0a\naddress enp1s0 10.77.0.11\naddress cilium_host 10.42.0.1\n";
    spoiled(
        Check::Identity,
        a,
        &[
            ("hostname a", "hostname localhost", "expected the host name a, found localhost"),
            ("machine-id UUID-A", "machine-id 0", "the machine id"),
            ("00:0a", "00:0c", "a card with the address 52:54:00:00:00:0a, found enp1s0 52:54:00:00:00:0c"),
            ("10.77.0.11", "10.77.0.111", "10.77.0.11 on enp1s0, found enp1s0 10.77.0.111"),
        ],
    );
    let b = a
        .replace("hostname a", "hostname b")
        .replace("UUID-A", "UUID-B")
        .replace("00:0a", "00:0b")
        .replace("0.11", "0.12");
    assert_eq!(judge(Check::Identity, a, Some(&b)), ["b: expected another boot-id than a, found 1"]);
    assert_eq!(judge(Check::Identity, a, Some(&b.replace("boot-id 1", "boot-id 2"))), Vec::<String>::new());
}

#[test]
fn a_node_runs_the_image_of_its_manifest() {
    spoiled(
        Check::SameImage,
        "kernel KERNEL\nversion VERSION\nroot verity HASH\n",
        &[
            ("HASH", "00", "found verity 00"),
            ("KERNEL", "5.10", "the kernel 6.12.1, found 5.10"),
            ("VERSION", "", "found nothing"),
        ],
    );
}

#[test]
fn units_are_all_well() {
    spoiled(
        Check::Units,
        "state running\n",
        &[
            (
                "state running",
                "state degraded\nfailed x.service\nlog it died",
                "degraded, failed units: x.service\nit died",
            ),
            (
                "state running",
                "state running\nrestart k3s.service 7 auto-restart",
                "running, failed units: \nk3s.service does not stay up: started again 7 times, now auto-restart",
            ),
        ],
    );
    assert_eq!(judge(Check::Units, "", None).len(), 1, "no answer is no good one");
}

#[test]
fn clocks_follow_edge_and_show_the_right_time() {
    spoiled(
        Check::Clock,
        &format!("synchronised yes\nserver 10.77.0.1\nnow {}\n", NOW + 3),
        &[
            ("yes", "no", "a synchronised clock: yes, found no"),
            ("10.77.0.1", "10.77.0.9", "time from 10.77.0.1, found 10.77.0.9"),
            (&(NOW + 3).to_string(), &(NOW + 4).to_string(), "a time from"),
            (&(NOW + 3).to_string(), &(NOW - 3).to_string(), "a time from"),
        ],
    );
}

#[test]
fn everybody_is_reached_by_address_and_name() {
    spoiled(
        Check::Reach,
        "reached b 10.77.0.12\nreached edge 10.77.0.1\nname b.cluster.test 10.77.0.12\nname edge.cluster.test 10.77.0.1\n",
        &[
            ("reached b 10.77.0.12", "", "an echo from b at 10.77.0.12, found nothing"),
            (
                "name b.cluster.test 10.77.0.12",
                "name b.cluster.test 10.77.0.13",
                "b.cluster.test at 10.77.0.12, found b.cluster.test 10.77.0.13",
            ),
        ],
    );
}

#[test]
fn the_root_is_verified_and_nothing_writes_to_it() {
    spoiled(
        Check::ReadonlyRoot,
        "root erofs   ro,relatime\nverity 0 1024 verity V\nvar writable\n",
        &[
            ("erofs", "ext4", "a root of erofs"),
            ("ro,", "rw,errors=remount-ro,", "a root of erofs, read-only"),
            ("verity V", "verity C", "vouches for"),
            ("var writable", "written /etc\nvar writable", "/etc cannot be written, found it was written"),
            ("var writable", "", "/var is writable"),
        ],
    );
}

#[test]
fn sysctls_are_those_of_the_profile() {
    let project = Project::load(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let good: String =
        project.profile("agent").unwrap().layer.sysctl.iter().map(|(k, v)| format!("{k} {v}\n")).collect();
    spoiled(
        Check::Sysctls,
        &good,
        &[
            ("vm.overcommit_memory 1", "vm.overcommit_memory 0", "vm.overcommit_memory = 1, found 0"),
            ("kernel.panic 10", "", "kernel.panic = 10, found nothing"),
        ],
    );
}

#[test]
fn first_boot_filled_the_disk() {
    let mib = |n: u64| n << 20;
    let rest = (8 << 30) - mib(1 + 96 + 2 * (17 + 2048) + 1);
    let mut at = mib(1);
    let mut parts = String::new();
    for (size, label) in [
        (mib(96), "esp"),
        (mib(17), "verity-0123456789abcdef"),
        (mib(2048), "root-0123456789abcdef"),
        (mib(17), "_empty"),
        (mib(2048), "_empty"),
        (rest, "var"),
    ] {
        writeln!(parts, "part {at} {size} {label}").unwrap();
        at += size;
    }
    let good = format!(
        "size {}\nbackup EFI PART\nroothash {}\n{parts}fs ext4 {}\n",
        8u64 << 30,
        "0123456789abcdef".repeat(4),
        rest / 100 * 96
    );
    spoiled(
        Check::Disk,
        &good,
        &[
            ("EFI PART", "", "a backup EFI PART, found nothing"),
            (" var\n", " data\n", "one partition `var`"),
            (&format!("{} verity", mib(17)), &format!("{} verity", mib(18)), "ends before"),
            (&format!("{} _empty\n", mib(2048)), &format!("{} _empty\n", mib(1024)), "an empty slot of 2GiB"),
            (&format!("{} root", mib(2048)), &format!("{} root", mib(189)), "a root that has grown to 2GiB"),
            (&format!("{rest} var"), &format!("{} var", rest - mib(100)), "partitions that fill the disk"),
            ("fs ext4", "fs xfs", "an ext4 on /var"),
            (&format!("{}\n", rest / 100 * 96), "1000000\n", "an ext4 on /var"),
            (&format!("size {}", 8u64 << 30), "size 1", "a disk of 8589934592, found 1"),
        ],
    );
    assert!(judge(Check::Disk, "", None).len() > 5, "no answer is no good one");
    assert!(!judge(Check::Disk, "part 18446744073709551615 1 x\npart -1 z\npart\n", None).is_empty());
}

#[test]
fn a_running_kernel_holds_its_contract_and_every_feature_has_an_answer() {
    let good = "ok cilium.base CONFIG_BPF=y\nok cilium.base a BPF program on a device\nended 0\n";
    spoiled(
        Check::Contract,
        good,
        &[
            (
                "ok cilium.base a BPF program on a device\nended 0",
                "no cilium.base a BPF program on a device: Operation not permitted (2)\nended 1",
                "a: expected for cilium.base: a BPF program on a device, found Operation not permitted (2)",
            ),
            ("ended 0\n", "", "expected probes that ended with 0, found nothing"),
            ("ended 0", "ended 2", "expected probes that ended with 0, found 2"),
            ("cilium.base", "cilium.other", "expected an answer about cilium.base, found nothing"),
        ],
    );
}

#[test]
fn nodes_are_asked_in_scripts_that_a_shell_can_read() {
    let scenario = Scenario::parse("test", "qemu/test.toml", TEXT, &BTreeSet::new()).unwrap();
    let project = Project::load(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let agent = project.profile("agent").unwrap();
    let features = &agent.layer.kernel.features;
    let probes = crate::contract::probe_script(&project.contracts, features, Arch::Amd64).unwrap();
    let known = Known {
        scenario: &scenario,
        up: &["a", "b", "edge"].map(|n| n.parse().unwrap()).into(),
        profiles: &[("a".parse().unwrap(), agent)].into(),
        manifests: &BTreeMap::new(),
        probes: &[("a".parse().unwrap(), probes.as_str())].into(),
    };
    let node = &scenario.nodes["a"];
    for check in [
        Check::Identity,
        Check::SameImage,
        Check::Units,
        Check::Clock,
        Check::Reach,
        Check::ReadonlyRoot,
        Check::Disk,
        Check::Sysctls,
        Check::Contract,
    ] {
        let script = check.script(&known, node);
        let shell = crate::exec::Tool::host("/bin/sh");
        shell.command().args(["-n", "-c", &script]).run().unwrap_or_else(|e| panic!("{check:?}: {e}"));
    }
    let reach = Check::Reach.script(&known, node);
    assert!(
        reach.contains("reach b 10.77.0.12 &\n")
            && reach.contains("look edge.cluster.test &\n")
            && !reach.contains("reach a "),
        "{reach}"
    );
}
