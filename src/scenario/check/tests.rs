//! Scenarios against a project, an image and a machine that they do not fit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::*;
use crate::built::tests::{file, sample};
use crate::manifest;

fn project() -> Project {
    Project::load(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn large() -> Host {
    Host { cpus: 64, memory: 1 << 40, folder: "/tmp".into(), space: 1 << 40 }
}

fn scenario(text: &str) -> Scenario {
    let text = format!("schema = 1\ndescription = \"x\"\n{text}");
    Scenario::parse("test", "qemu/test.toml", &text, &BTreeSet::new()).unwrap()
}

const NOW: i64 = 1_789_199_741; // 2026-09-12

#[track_caller]
fn refused(text: &str, out: &Path, host: &Host) -> String {
    let error = check(&scenario(text), &project(), out, host, Accel::Tcg, NOW).unwrap_err();
    let report = crate::error::report(&error);
    report
        .chain
        .into_iter()
        .chain(report.hints.into_iter().map(|h| format!("hint: {h}")))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn what_the_project_does_not_have_is_told() {
    let text = r#"
limit = "10s"
[network.lan]
subnet = "10.77.0.0/24"
[node.a]
profile = "sever"
[node.b]
profile = "agent"
flavour = "metal"
[node.c]
profile = "agent"
disks = [{ size = "4GiB" }]
nics = [{ network = "lan", model = "igb", address = "none" }]
[node.d]
profile = "agent"
disks = [{ bus = "usb", size = "8GiB" }, { bus = "ahci", size = "1MiB" }]
[[step]]
name = "u"
copy = { from = "src", to = "/tmp/x" }
[[step]]
name = "v"
copy = { from = "none.txt", to = "/tmp/x" }
[[step]]
name = "w"
wait = "10s"
[[allow]]
pattern = "x"
reason = "slow"
until = "2026-09-11"
[[allow]]
pattern = "y"
reason = "slow"
until = "2026-09-12"
"#;
    let seen = refused(text, Path::new("/nowhere"), &large());
    insta::assert_snapshot!(seen.replace(env!("CARGO_MANIFEST_DIR"), "DIR"), @r#"
    qemu/test.toml cannot be used: 9 things are wrong

    the steps wait for 10 s in all, and the run may take 10s
     --> qemu/test.toml:4:1
      |
    4 | limit = "10s"
      | ^^^^^

    there is no profile `sever` in profiles/ or qemu/machines/
     --> qemu/test.toml:8:11
      |
    8 | profile = "sever"
      |           ^^^^^^^
      = help: did you mean `server`?

    `agent` has no variant with the metal kernel
      --> qemu/test.toml:11:11
       |
    11 | flavour = "metal"
       |           ^^^^^^^
      = help: write qemu/machines/agent-metal.toml with `extends = ["profiles/agent"]` and `kernel.flavour = "metal"`, then `kiln update`

    a disk of 4GiB is too small for both slots and /var of `agent`
      --> qemu/test.toml:14:19
       |
    14 | disks = [{ size = "4GiB" }]
       |                   ^^^^^^
      = help: give it at least 5252MiB

    the image of `agent` has no driver for the network card igb
      --> qemu/test.toml:15:36
       |
    15 | nics = [{ network = "lan", model = "igb", address = "none" }]
       |                                    ^^^^^
      = help: the kernel for hardware has more drivers: write `flavour = "metal"`

    the image of `agent` has no driver for disks on usb
      --> qemu/test.toml:18:18
       |
    18 | disks = [{ bus = "usb", size = "8GiB" }, { bus = "ahci", size = "1MiB" }]
       |                  ^^^^^
      = help: the kernel for hardware has more drivers: write `flavour = "metal"`

    DIR/src cannot be copied: it is no file
      --> qemu/test.toml:21:17
       |
    21 | copy = { from = "src", to = "/tmp/x" }
       |                 ^^^^^

    DIR/none.txt cannot be copied: there is no such file
      --> qemu/test.toml:24:17
       |
    24 | copy = { from = "none.txt", to = "/tmp/x" }
       |                 ^^^^^^^^^^

    this entry counted until 2026-09-11 only
      --> qemu/test.toml:31:9
       |
    31 | until = "2026-09-11"
       |         ^^^^^^^^^^^^
      = help: mend what it let pass (slow), or look again and set a later day
    "#);
}

#[test]
fn what_the_machine_does_not_have_is_told() {
    let text = "[node.a]\nprofile = \"agent\"\n[node.b]\nprofile = \"agent\"\nmemory = \"2GiB\"\n";
    let small = Host { cpus: 1, memory: 2 << 30, folder: "/var/tmp".into(), space: 100 << 20 };
    insta::assert_snapshot!(refused(text, Path::new("/nowhere"), &small), @r#"
    qemu/test.toml cannot be used: 2 things are wrong

    2 nodes at once want 4784 MiB of memory (with QEMU itself and a reserve), this machine has 2048 MiB left
      = help: give the nodes less memory, switch some on later (`boot = "manual"`), or end other programs

    /var/tmp has 100 MiB left, and 2 nodes write about 512 MiB
      = help: free some space, or set TMPDIR to a folder that has more
    "#);
    let enough = Host { cpus: 1, ..large() };
    let (scenario, project) = (scenario(text), project());
    let checked = check(&scenario, &project, Path::new("/nowhere"), &enough, Accel::Kvm, NOW).unwrap();
    insta::assert_snapshot!(checked.notes.join("\n"), @r#"
    4 virtual CPUs share the 1 of this machine: everything takes longer, and limits grow with it
    "#);
    let images: Vec<_> = checked.images.iter().map(|(n, p)| (n.name.as_str(), p.name.as_str())).collect();
    assert_eq!(images, [("a", "agent"), ("b", "agent")]);
}

#[test]
fn the_list_of_files_of_a_built_image_says_which_drivers_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let write = |modules: &[&str]| {
        let files: BTreeMap<String, manifest::FileInfo> = modules
            .iter()
            .map(|m| (format!("/usr/lib/modules/6.12/kernel/{m}.ko"), file("file", "linux")))
            .collect();
        manifest::write_json(&dir.path().join("server.json"), &sample().manifest).unwrap();
        manifest::write_json(&dir.path().join("server.files.json"), &files).unwrap();
    };
    let text = r#"
[network.lan]
subnet = "10.77.0.0/24"
[node.a]
profile = "server"
disks = [{ bus = "usb", size = "8GiB" }, { bus = "nvme", size = "1GiB" }]
nics = [{ network = "lan", model = "igb", address = "none" }]
"#;
    write(&["virtio_blk", "virtio_net"]);
    insta::assert_snapshot!(refused(text, dir.path(), &large()), @r#"
    qemu/test.toml cannot be used: 2 things are wrong

    the image of `server` has no driver for disks on usb
     --> qemu/test.toml:8:18
      |
    8 | disks = [{ bus = "usb", size = "8GiB" }, { bus = "nvme", size = "1GiB" }]
      |                  ^^^^^
      = help: the kernel for hardware has more drivers: write `flavour = "metal"`

    the image of `server` has no driver for the network card igb
     --> qemu/test.toml:9:36
      |
    9 | nics = [{ network = "lan", model = "igb", address = "none" }]
      |                                    ^^^^^
      = help: the kernel for hardware has more drivers: write `flavour = "metal"`
    "#);
    write(&["usb-storage", "igb"]);
    check(&scenario(text), &project(), dir.path(), &large(), Accel::Tcg, NOW).unwrap();
}

#[test]
fn a_disk_that_is_just_large_enough_has_room_for_everything() {
    let project = project();
    let profile = project.profile("server").unwrap();
    // ESP 96 MiB, two slots of 2 GiB with 17 MiB of hashes each, /var 1 GiB, and the ends.
    assert_eq!(least_disk(profile), Some((96 + 2 * (2048 + 17) + 1024 + 2) << 20));
}

#[test]
fn every_shipped_scenario_fits_this_project() {
    let project = project();
    let list = Scenario::list(&project.dir);
    let names: Vec<&str> = list.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "cilium",
            "faults",
            "hardware",
            "join",
            "k3s-faults",
            "kernel-node",
            "kernel-vm",
            "networks",
            "nfs",
            "smoke",
            "three-node"
        ]
    );
    for (name, scenario) in &list {
        let scenario = scenario.as_ref().unwrap_or_else(|e| panic!("{name}: {e}"));
        let checked = check(scenario, &project, Path::new("/nowhere"), &large(), Accel::Tcg, NOW);
        checked.unwrap_or_else(|e| panic!("{name}: {e}"));
        for step in &scenario.steps {
            assert!(!step.implied, "{name}: nobody waits for {}", step.on);
            let scripts = match &step.action {
                Action::Run(run) => vec![&run.script],
                Action::PowerCuts(cuts) => vec![&cuts.write, &cuts.verify],
                _ => continue,
            };
            for script in scripts {
                let shell = crate::exec::Tool::host("/bin/sh");
                let read = shell.command().args(["-n", "-c", script.source()]).run();
                read.unwrap_or_else(|e| panic!("{name}: {}: {e}", step.name));
            }
        }
    }
}
