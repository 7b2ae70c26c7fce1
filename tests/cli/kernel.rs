//! `kiln kernel` and the kernel contract, on a kernel package of a few files.

use crate::common::archive::{Archive, xz};
use crate::common::mirror::Mirror;
use crate::common::run::Env;

const RELEASE: &str = "6.12.9+test";

const CONFIG: &str = "# Linux/x86 6.12.9 Kernel Configuration\n\
    CONFIG_BPF=y\nCONFIG_VXLAN=m\nCONFIG_WIREGUARD=m\nCONFIG_EROFS_FS=m\n# CONFIG_NETKIT is not set\n";

const CONTRACT: &str = r#"
schema = 1
title = "Cilium 1.18"

[feature.base]
description = "the datapath"
source = "https://docs.example/base"
[feature.base.symbols]
BPF = { want = "y", why = "programs" }

[feature.tunnel]
description = "packets in packets"
source = "https://docs.example/tunnel"
needs = ["cilium.base"]
[feature.tunnel.symbols]
VXLAN = { want = "y|m", module = "vxlan", why = "the tunnel" }

[feature.wireguard]
description = "encryption"
source = "https://docs.example/wireguard"
[feature.wireguard.symbols]
WIREGUARD = { want = "y|m", module = "wireguard", why = "the tunnel" }

[feature.netkit]
description = "fast devices"
source = "https://docs.example/netkit"
[feature.netkit.symbols]
NETKIT = { want = "y", why = "the devices", known-since = "6.7" }

[feature.future]
description = "not yet"
source = "https://docs.example/future"
linux = "7.5"
[feature.future.symbols]
TELEPORT = { want = "y", why = "no wires", known-since = "7.4" }

[feature.past]
description = "not any more"
source = "https://docs.example/past"
[feature.past.symbols]
CARRIER_PIGEON = { want = "y", why = "before wires", absent-since = "5.2" }

[feature.root]
description = "the root"
source = "https://docs.example/root"
early = true
[feature.root.symbols]
EROFS_FS = { want = "y|m", module = "erofs", why = "the file system" }
"#;

/// A relocatable file without sections: the least that passes as a module.
fn module() -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([1_u16, 62].into_iter().flat_map(u16::to_le_bytes));
    elf.extend(1_u32.to_le_bytes());
    elf.extend([0_u64; 3].into_iter().flat_map(u64::to_le_bytes));
    elf.extend(0_u32.to_le_bytes());
    elf.extend([64_u16, 0, 0, 64, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    xz(&elf)
}

/// A project with a kernel and a profile that asks for `features`, locked.
fn project(features: &[&str], rest: &str) -> (Env, Mirror) {
    let (env, mut archive) = (Env::new(), Archive::sample());
    let modules = format!("usr/lib/modules/{RELEASE}");
    let ko = module();
    let files = [
        (format!("boot/vmlinuz-{RELEASE}"), b"kernel".as_slice()),
        (format!("boot/config-{RELEASE}"), CONFIG.as_bytes()),
        (format!("{modules}/kernel/drivers/net/vxlan.ko.xz"), &ko),
        (format!("{modules}/kernel/drivers/net/wireguard.ko.xz"), &ko),
        (format!("{modules}/kernel/fs/erofs.ko.xz"), &ko),
        (format!("{modules}/modules.builtin"), b"kernel/fs/ext4/ext4.ko\n"),
        (format!("{modules}/modules.order"), b""),
    ];
    let files: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (path.as_str(), *bytes)).collect();
    archive.add("linux-image-cloud-amd64", "6.12.9-1", "", &files);
    archive.publish();
    let mirror = Mirror::serve(&archive.files);
    env.mirrors(&[&mirror.base]);
    Archive::project(&env, &["hello"]);
    env.write("project/images/kernel/cilium.toml", CONTRACT);
    let profile = env.read("project/profiles/server.toml");
    env.write("project/profiles/server.toml", format!("{profile}features = {features:?}\n{rest}"));
    env.kiln(&["update"]).ok();
    (env, mirror)
}

const KEEPS_EROFS: &str = "[kernel.initrd]\nmodules = [\"erofs\"]\n";

#[test]
fn a_kernel_with_all_that_is_asked_for_passes_and_each_demand_is_a_row() {
    let (env, _mirror) = project(&["cilium.tunnel", "cilium.past", "cilium.root"], KEEPS_EROFS);
    let run = env.kiln(&["kernel", "check", "--profile", "server"]).ok();
    insta::assert_snapshot!(run.stdout, @r"
    server (amd64): Linux 6.12.9+test
      4 features, 4 demands: all met

    FEATURE           WANTED  HAS  MODULE  VERDICT  SOURCE
    cilium.base (Cilium 1.18)
      BPF             y       y    -       ok       1
    cilium.past (Cilium 1.18)
      CARRIER_PIGEON  y       -    -       gone     2
        unknown to Linux 6.12: gone since 5.2
    cilium.root (Cilium 1.18)
      EROFS_FS        y or m  m    erofs   ok       3
    cilium.tunnel (Cilium 1.18)
      VXLAN           y or m  m    vxlan   ok       4

    SOURCES
      1  https://docs.example/base
      2  https://docs.example/past
      3  https://docs.example/root
      4  https://docs.example/tunnel
    ");

    let value = env.kiln(&["kernel", "check", "--json"]).ok().json();
    let checked = &value[0];
    assert_eq!((checked["profile"].as_str(), checked["kernel"].as_str()), (Some("server"), Some(RELEASE)));
    assert_eq!((checked["linux"].as_str(), checked["arch"].as_str()), (Some("6.12"), Some("amd64")));
    assert_eq!(checked["met"], true);
    assert_eq!(checked["features"]["cilium.base"], 1);
    let rows = checked["rows"].as_array().unwrap();
    let vxlan = rows.iter().find(|row| row["symbol"] == "VXLAN").unwrap();
    assert_eq!(
        vxlan,
        &serde_json::json!({
            "feature": "cilium.tunnel", "component": "Cilium 1.18", "symbol": "VXLAN", "wanted": "y or m", "has": "m",
            "module": "vxlan", "verdict": "ok", "finding": null, "remedy": null, "why": "the tunnel",
            "source": "https://docs.example/tunnel",
        })
    );
    let pigeon = rows.iter().find(|row| row["symbol"] == "CARRIER_PIGEON").unwrap();
    assert_eq!((&pigeon["verdict"], &pigeon["has"]), (&"gone".into(), &serde_json::Value::Null));
}

#[test]
fn a_build_with_a_kernel_that_lacks_something_says_who_needs_it_and_what_would_help() {
    let drop = "[kernel.modules]\ndrop = [\"kernel/drivers/net/wire*\"]\n";
    let (env, _mirror) =
        project(&["cilium.netkit", "cilium.wireguard", "cilium.future", "cilium.past", "cilium.root"], drop);
    let run = env.kiln(&["build", "--profile", "server"]).fails(1, &[]);
    let error = run.stderr.split_once("error: ").unwrap().1;
    insta::assert_snapshot!(error, @r#"
    the kernel 6.12.9+test does not have what the features of server need (5 findings)
      cilium.future (Cilium 1.18) needs Linux 7.5 or later: Linux 6.12 cannot do it yet
        for: not yet [https://docs.example/future]
        -> a kernel of Linux 7.5 or later
      cilium.future (Cilium 1.18) needs CONFIG_TELEPORT=y: unknown to Linux 6.12: it came with 7.4
        for: no wires [https://docs.example/future]
        -> a kernel of Linux 7.4 or later
      cilium.netkit (Cilium 1.18) needs CONFIG_NETKIT=y: it is not set
        for: the devices [https://docs.example/netkit]
        -> a kernel with CONFIG_NETKIT=y
      cilium.root (Cilium 1.18) needs CONFIG_EROFS_FS=y or m: its module erofs is not in the initrd, where it is needed to open the root
        for: the file system [https://docs.example/root]
        -> add "erofs" to `kernel.initrd.modules`
      cilium.wireguard (Cilium 1.18) needs CONFIG_WIREGUARD=y or m: its module kernel/drivers/net/wireguard.ko is not in the image: `kernel.modules.drop` has "kernel/drivers/net/wire*"
        for: the tunnel [https://docs.example/wireguard]
        -> take "kernel/drivers/net/wire*" out of `kernel.modules.drop`
    hint: `kiln kernel check --profile server --arch amd64` prints the whole table
    hint: a feature that the node does without goes out of `kernel.features`
    "#);
    assert!(!env.path("project/out/server.raw").exists());

    // The table has the same answers and ends as a check that did not pass.
    let run = env
        .kiln(&["kernel", "check", "--profile", "server"])
        .fails_with_result(7, &["cilium.netkit", "it is not set", "not met: server (5)"]);
    let first: Vec<&str> = run.stdout.lines().take(5).collect();
    assert_eq!(
        first,
        [
            "server (amd64): Linux 6.12.9+test",
            "  5 features, 6 demands: 5 NOT MET",
            "",
            "not met by the kernel of server (amd64):",
            "  cilium.future (Cilium 1.18) needs Linux 7.5 or later: Linux 6.12 cannot do it yet",
        ]
    );
    // Profiles with one result share a table.
    let profile = env.read("project/profiles/server.toml");
    env.write("project/profiles/twin.toml", &profile);
    env.write("project/qemu/machines/spare.toml", &profile);
    env.kiln(&["update"]).ok();
    let run = env
        .kiln(&["kernel", "check"])
        .fails_with_result(7, &["server, twin (amd64): Linux 6.12.9+test", "not met: server (5), twin (5)"]);
    assert_eq!(run.stdout.matches("\nFEATURE ").count(), 1, "{}", run.text());
    // Machines of scenarios have kernels like any other.
    env.kiln(&["kernel", "diff", "server", "spare", "--exit-code"]).ok();
    env.kiln(&["kernel", "diff", "server", "spar"]).fails(1, &["did you mean `spare`?"]);
}

#[test]
fn a_feature_that_there_is_not_names_the_file_and_the_near_one() {
    let (env, _mirror) = project(&[], "");
    env.edit("project/profiles/server.toml", "features = []", "features = [\"cilium.wiregard\"]");
    env.kiln(&["kernel", "check"]).fails(
        1,
        &[
            "profiles/server.toml: kernel.features",
            "no kernel feature `cilium.wiregard`",
            "did you mean `cilium.wireguard`?",
        ],
    );
}

#[test]
fn a_contract_with_a_mistake_is_shown_with_its_place() {
    let (env, _mirror) = project(&["cilium.base"], "");
    let good = env.read("project/images/kernel/cilium.toml");
    for (from, to, words) in [
        (
            "want = \"y\", why = \"programs\"",
            "wnat = \"y\", why = \"programs\"",
            &["images/kernel/cilium.toml:9", "did you mean `want`?"][..],
        ),
        (
            "want = \"y\", why = \"programs\"",
            "want = \"yes\", why = \"programs\"",
            &["images/kernel/cilium.toml:9", "expected one of `y`, `m`, `y|m`, `n`"],
        ),
        ("module = \"vxlan\", ", "", &["images/kernel/cilium.toml: tunnel: VXLAN: it may be a module"]),
        ("[\"cilium.base\"]", "[\"cilium.bsae\"]", &["tunnel: there is no kernel feature `cilium.bsae`"]),
        ("schema = 1", "schema = 9", &["images/kernel/cilium.toml has schema 9"]),
        ("known-since = \"6.7\"", "known-since = \"six\"", &["`six` is no version of Linux"]),
    ] {
        env.write("project/images/kernel/cilium.toml", good.replacen(from, to, 1));
        env.kiln(&["kernel", "features"]).fails(1, words);
    }
}

#[test]
fn features_are_listed_with_the_profiles_that_ask_for_them() {
    let (env, _mirror) = project(&["cilium.tunnel"], "");
    let run = env.kiln(&["kernel", "features"]).ok();
    insta::assert_snapshot!(run.stdout, @r"
    server asks for:
      cilium.base       the datapath
      cilium.tunnel     packets in packets
    no profile asks for:
      cilium.future     not yet
      cilium.netkit     fast devices
      cilium.past       not any more
      cilium.root       the root
      cilium.wireguard  encryption
    ");
    let value = env.kiln(&["kernel", "features", "--json"]).ok().json();
    assert_eq!(value[4]["feature"], "cilium.root", "{value}");
    assert_eq!(value.as_array().unwrap().len(), 7);
}

#[test]
fn two_kernels_are_compared_by_features_and_then_by_symbols() {
    let (env, _mirror) = project(&["cilium.base"], KEEPS_EROFS);
    env.write(
        "project/other.config",
        CONFIG.replace("# CONFIG_NETKIT is not set", "CONFIG_NETKIT=y").replace("CONFIG_VXLAN=m\n", ""),
    );
    let run = env.kiln(&["kernel", "diff", "server", "other.config"]).ok();
    insta::assert_snapshot!(run.stdout, @r"
    features that server has and other.config lacks: 1
      cilium.tunnel: packets in packets
        it lacks VXLAN
    features that other.config has and server lacks: 1
      cilium.netkit: fast devices
        it lacks NETKIT
    symbols that differ: 2
      NETKIT: n -> y
      VXLAN: m -> -
    ");
    let value = env.kiln(&["kernel", "diff", "server", "other.config", "--json"]).ok().json();
    assert_eq!(value["same"], false);
    assert_eq!(value["features"][0]["feature"], "cilium.netkit");
    assert_eq!(
        (&value["features"][0]["first"], &value["features"][0]["lacks"][0]),
        (&false.into(), &"NETKIT".into())
    );
    assert_eq!(value["symbols"][1], serde_json::json!({ "symbol": "VXLAN", "first": "m", "second": null }));
    env.kiln(&["kernel", "diff", "server", "other.config", "--exit-code"]).fails_with_result(7, &["differ"]);
    env.kiln(&["kernel", "diff", "server", "server", "--exit-code"]).ok();
}

#[test]
fn what_is_no_kernel_is_refused() {
    let (env, _mirror) = project(&["cilium.base"], "");
    env.write("project/text", "hello\n");
    env.write("project/headless.config", "CONFIG_BPF=y\n");
    for (name, words) in [
        ("text", &["text is no .config of a kernel: line 1"][..]),
        ("headless.config", &["no heading", "that names the version"]),
        (
            "sever",
            &[
                "`sever` is no profile, no kernel from source, no image and no .config file",
                "did you mean `server`?",
            ],
        ),
        ("out/server.json", &["there is no manifest out/server.json"]),
    ] {
        env.kiln(&["kernel", "diff", "server", name]).fails(1, words);
    }
}
