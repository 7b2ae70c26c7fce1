//! Contracts, kernels and differences that are small enough to read.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::check::{Dropped, ModuleSet, Offer, Table, Verdict, check};
use super::config::{Config, ConfigError, Value, Version};
use super::data::{Component, Contracts, DataError};
use super::diff::diff;
use super::probe::{Finding, probe_script};
use super::show::{self, Shown};
use crate::arch::Arch;

const CONFIG: &str = "#
# Automatically generated file; DO NOT EDIT.
# Linux/x86 6.12.117 Kernel Configuration
#
CONFIG_NET=y
CONFIG_VXLAN=m
# CONFIG_NETKIT is not set
CONFIG_HZ=250
CONFIG_PHYSICAL_START=0x1000000
CONFIG_BASE=-12
CONFIG_LSM=\"lockdown,bpf\"
CONFIG_CMDLINE=\"a \\\"b\\\" \\\\\"
# CONFIG_NETKIT is not set because nobody asked
";

fn config(text: &str) -> Config {
    Config::parse(text).unwrap()
}

fn contracts(files: &[(&str, &str)]) -> Result<Contracts, DataError> {
    let parse = |(name, text): &(&str, &str)| -> (String, Component) {
        ((*name).to_owned(), crate::spec::parse(name, text).unwrap())
    };
    Contracts::new(files.iter().map(parse).collect::<BTreeMap<_, _>>())
}

const NET: &str = r#"
schema = 1
title = "Net 1.0"

[feature.tunnel]
description = "packets in packets"
source = "https://net.example/needs"
needs = ["base.all"]
[feature.tunnel.symbols]
VXLAN = { want = "y|m", module = "vxlan", why = "the tunnel" }

[feature.netkit]
description = "fast devices"
source = "https://net.example/needs"
linux = "6.8"
[feature.netkit.symbols]
NETKIT = { want = "y", why = "the devices", known-since = "6.7" }
OLD_MODE = { want = "y", why = "needed once", absent-since = "5.2", source = "an old page" }

[[feature.netkit.probe]]
what = "a pair that isn't veth"
run = '''
device netkit
ip link show 'kiln-probe'
'''

[feature.quiet]
description = "no debugging"
source = "https://net.example/needs"
[feature.quiet.symbols]
DEBUG = { want = "n", why = "slow" }
ARM_ONLY = { want = "y", why = "only there", arch = ["arm64"] }
SIGNED = { want = "y", why = "no strangers", only-with = "MODULES" }
"#;

const BASE: &str = r#"
schema = 1
title = "Base"
[feature.all]
description = "everything"
source = "Linux 6.12"
early = true
[feature.all.symbols]
NET = { want = "y", why = "network" }
DISK = { want = "y|m", module = "disk", why = "the root" }
"#;

fn both() -> Contracts {
    contracts(&[("net", NET), ("base", BASE)]).unwrap()
}

fn judged(features: &[&str], text: &str, version: &str, modules: Option<&ModuleSet>) -> Table {
    let config = config(text);
    let offer = Offer { config: &config, version: version.parse().unwrap(), arch: Arch::Amd64, modules };
    let features: Vec<String> = features.iter().map(|f| (*f).to_owned()).collect();
    check(&both(), &features, offer).unwrap()
}

fn verdict(table: &Table, symbol: &str) -> Verdict {
    table.rows.iter().find(|r| r.symbol == symbol).unwrap_or_else(|| panic!("{table:#?}")).verdict
}

#[test]
fn a_config_is_read_with_all_its_kinds_of_values_and_its_version() {
    let config = config(CONFIG);
    assert_eq!(config.version().unwrap().to_string(), "6.12");
    assert_eq!(config.get("NET"), Some(&Value::Yes));
    assert_eq!(config.get("VXLAN"), Some(&Value::Module));
    assert_eq!(config.get("NETKIT"), Some(&Value::No));
    assert_eq!(config.get("HZ"), Some(&Value::Number("250".to_owned())));
    assert_eq!(config.get("PHYSICAL_START"), Some(&Value::Number("0x1000000".to_owned())));
    assert_eq!(config.get("BASE"), Some(&Value::Number("-12".to_owned())));
    assert_eq!(config.get("LSM"), Some(&Value::Text("lockdown,bpf".to_owned())));
    assert_eq!(config.get("CMDLINE"), Some(&Value::Text("a \"b\" \\".to_owned())));
    assert_eq!(config.get("GENEVE"), None);
    assert_eq!(Config::parse(&config.to_string()).unwrap().get("CMDLINE"), config.get("CMDLINE"));
}

#[test]
fn a_line_that_kconfig_never_writes_is_an_error_with_its_number() {
    for (text, line, word) in [
        ("CONFIG_NET=y\nNET=y\n", 2, "`NET=y` is neither"),
        ("\n\nCONFIG_NET=yes\n", 3, "`yes` is neither y, m, n"),
        ("CONFIG_NET\n", 1, "neither"),
        ("CONFIG_LSM=\"a\n", 1, "no closing quote"),
        ("CONFIG_LSM=\"a\" b\n", 1, "` b` follows"),
        ("CONFIG_A-B=y\n", 1, "neither"),
        ("\u{7f}ELF\u{1}\u{2}", 1, "neither"),
    ] {
        let ConfigError { line: at, why } = Config::parse(text).unwrap_err();
        assert_eq!(at, line, "{text}");
        assert!(why.contains(word), "{why}");
    }
}

#[test]
fn versions_are_read_from_releases_and_compared_as_numbers() {
    let version = |text: &str| text.parse::<Version>();
    assert!(version("6.12.117+deb13-cloud-amd64").unwrap() > version("6.7").unwrap());
    assert_eq!(version("6.12-rc1").unwrap(), version("6.12").unwrap());
    for wrong in ["6", "", "six.one", "6-12", ".", "6.", "+6.1", "99999999.1", "ä.ö", "12345ä6"] {
        assert!(version(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_kernel_that_has_everything_is_met_with_the_features_that_others_need() {
    let table = judged(&["net.tunnel"], "CONFIG_NET=y\nCONFIG_VXLAN=m\nCONFIG_DISK=y\n", "6.12", None);
    assert!(table.met, "{table:#?}");
    assert_eq!(table.features, BTreeMap::from([("base.all".to_owned(), 2), ("net.tunnel".to_owned(), 1)]));
}

#[test]
fn missing_hidden_unknown_and_gone_are_four_answers() {
    let text = "# CONFIG_NETKIT is not set\n";
    let table = judged(&["net.netkit"], text, "6.12", None);
    assert_eq!((verdict(&table, "linux"), verdict(&table, "NETKIT")), (Verdict::Ok, Verdict::Missing));
    assert_eq!(verdict(&table, "OLD_MODE"), Verdict::Gone);
    // Silence in a version that has the symbol: something it depends on is off.
    let hidden = judged(&["net.netkit"], "", "6.12", None);
    assert_eq!(verdict(&hidden, "NETKIT"), Verdict::Missing);
    let row = hidden.unmet().next().unwrap();
    assert!(row.finding.as_ref().unwrap().contains("hidden"), "{row:?}");
    // Silence in a version that has not: the version is the reason.
    let old = judged(&["net.netkit"], "", "6.1", None);
    assert_eq!((verdict(&old, "linux"), verdict(&old, "NETKIT")), (Verdict::Unknown, Verdict::Unknown));
    // A backport counts, whatever the version says.
    assert_eq!(verdict(&judged(&["net.netkit"], "CONFIG_NETKIT=y\n", "6.1", None), "NETKIT"), Verdict::Ok);
    // A kernel so old that it should still have the symbol.
    assert_eq!(verdict(&judged(&["net.netkit"], "", "5.1", None), "OLD_MODE"), Verdict::Missing);
}

#[test]
fn off_is_off_whether_said_or_not_and_other_machines_are_not_asked() {
    for (text, met) in [("", true), ("# CONFIG_DEBUG is not set\n", true), ("CONFIG_DEBUG=y\n", false)] {
        let table = judged(&["net.quiet"], text, "6.12", None);
        assert_eq!(table.met, met, "{text}");
        assert_eq!(
            table.rows.len(),
            1,
            "ARM_ONLY is not asked of amd64, SIGNED of no kernel without modules"
        );
    }
    assert!(!judged(&["net.quiet"], "CONFIG_MODULES=y\n", "6.12", None).met);
    assert!(judged(&["net.quiet"], "CONFIG_MODULES=y\nCONFIG_SIGNED=y\n", "6.12", None).met);
}

#[test]
fn a_module_must_be_in_the_image_and_an_early_one_in_the_initrd() {
    let text = "CONFIG_NET=y\nCONFIG_VXLAN=m\nCONFIG_DISK=m\n";
    let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    let whole = ModuleSet { root: set(&["vxlan", "disk"]), initrd: set(&["disk"]), ..ModuleSet::default() };
    assert!(judged(&["net.tunnel"], text, "6.12", Some(&whole)).met);

    let late = ModuleSet { initrd: set(&[]), ..whole.clone() };
    let table = judged(&["net.tunnel"], text, "6.12", Some(&late));
    assert_eq!((verdict(&table, "VXLAN"), verdict(&table, "DISK")), (Verdict::Ok, Verdict::Dropped));
    assert!(table.unmet().next().unwrap().remedy.as_ref().unwrap().contains("kernel.initrd.modules"));

    let dropped = |by: Option<&str>| {
        let path = "kernel/drivers/net/vxlan/vxlan.ko".to_owned();
        BTreeMap::from([("vxlan".to_owned(), Dropped { path, by: by.map(str::to_owned) })])
    };
    for (missing, word) in [
        (
            dropped(Some("kernel/drivers/net/**")),
            "take \"kernel/drivers/net/**\" out of `kernel.modules.drop`",
        ),
        (dropped(None), "add \"vxlan\" to `kernel.modules.keep`"),
        (BTreeMap::new(), "a kernel package with the module vxlan"),
    ] {
        let modules = ModuleSet { root: set(&["disk"]), dropped: missing, ..whole.clone() };
        let table = judged(&["net.tunnel"], text, "6.12", Some(&modules));
        assert_eq!(verdict(&table, "VXLAN"), Verdict::Dropped);
        assert_eq!(table.unmet().next().unwrap().remedy.as_deref(), Some(word));
    }

    // Code in the kernel: the kernel's list of it must say so, and a symbol that is m only for Kconfig is content with it.
    let inside = ModuleSet { builtin: set(&["disk"]), ..whole.clone() };
    assert_eq!(
        verdict(&judged(&["base.all"], "CONFIG_NET=y\nCONFIG_DISK=y\n", "6.12", Some(&inside)), "DISK"),
        Verdict::Ok
    );
    let lying = judged(&["base.all"], "CONFIG_NET=y\nCONFIG_DISK=y\n", "6.12", Some(&whole));
    assert_eq!(verdict(&lying, "DISK"), Verdict::Dropped);
    let neither = ModuleSet {
        root: set(&["vxlan"]),
        initrd: set(&[]),
        builtin: set(&["disk"]),
        ..ModuleSet::default()
    };
    assert!(judged(&["net.tunnel"], text, "6.12", Some(&neither)).met);
}

#[test]
fn the_table_says_what_is_wanted_found_and_what_would_help() {
    let table = judged(&["net.netkit", "net.tunnel"], "CONFIG_NET=y\nCONFIG_DISK=m\n", "6.6", None);
    let shown = Shown { profiles: vec!["one", "two"], arch: Arch::Amd64, kernel: "6.6.1-net", table: &table };
    insta::assert_snapshot!(show::lines(&[shown]).join("\n"), @"
    one, two (amd64): Linux 6.6.1-net
      3 features, 6 demands: 3 NOT MET

    not met by the kernel of one, two (amd64):
      net.netkit (Net 1.0) needs Linux 6.8 or later: Linux 6.6 cannot do it yet
        for: fast devices [https://net.example/needs]
        -> a kernel of Linux 6.8 or later
      net.netkit (Net 1.0) needs CONFIG_NETKIT=y: unknown to Linux 6.6: it came with 6.7
        for: the devices [https://net.example/needs]
        -> a kernel of Linux 6.7 or later
      net.tunnel (Net 1.0) needs CONFIG_VXLAN=y or m: it is hidden: an option that it depends on is off
        for: the tunnel [https://net.example/needs]
        -> a kernel with CONFIG_VXLAN=y or =m

    FEATURE     WANTED        HAS  MODULE  VERDICT  SOURCE
    base.all (Base)
      DISK      y or m        m    disk    ok       1
      NET       y             y    -       ok       1
    net.netkit (Net 1.0)
      linux     6.8 or later  6.6  -       UNKNOWN  2
      NETKIT    y             -    -       UNKNOWN  2
      OLD_MODE  y             -    -       gone     3
        unknown to Linux 6.6: gone since 5.2
    net.tunnel (Net 1.0)
      VXLAN     y or m        -    vxlan   MISSING  2

    SOURCES
      1  Linux 6.12
      2  https://net.example/needs
      3  an old page
    ");
}

#[test]
fn contracts_that_say_something_impossible_are_refused() {
    for (from, to, word) in [
        ("module = \"vxlan\", ", "", "tunnel: VXLAN: it may be a module: name it"),
        (
            "NETKIT = {",
            "CONFIG_NETKIT = {",
            "netkit: CONFIG_NETKIT: write the symbol's name without `CONFIG_`",
        ),
        ("want = \"n\", ", "want = \"n\", module = \"x\", ", "quiet: DEBUG: it may not be a module"),
        ("known-since = \"6.7\"", "known-since = \"6.7\", absent-since = \"6.7\"", "must be before"),
        (
            "module = \"vxlan\"",
            "module = \"vx-lan\"",
            "tunnel: VXLAN: a module's name has letters, digits and `_`",
        ),
        (
            "only-with = \"MODULES\"",
            "only-with = \"CONFIG_MODULES\"",
            "quiet: SIGNED: write `only-with` without",
        ),
        ("feature.quiet", "feature.\"qui et\"", "qui et: a name has small letters, digits and `-`"),
        ("\"base.all\"", "\"base.al\"", "tunnel: there is no kernel feature `base.al`"),
    ] {
        let text = NET.replace(from, to);
        let error = contracts(&[("net", &text), ("base", BASE)]).unwrap_err().to_string();
        assert!(error.starts_with("images/kernel/net.toml: ") && error.contains(word), "{error}");
    }
}

#[test]
fn a_change_of_a_demand_changes_the_digest_and_a_change_elsewhere_does_not() {
    let features = ["net.tunnel".to_owned()];
    let digest = |net: &str| contracts(&[("net", net), ("base", BASE)]).unwrap().digest(&features).unwrap();
    assert_ne!(digest(NET), digest(&NET.replace("the tunnel", "a tunnel")));
    assert_eq!(digest(NET), digest(&NET.replace("fast devices", "devices")));
    assert_eq!(digest(NET), digest(&format!("# a comment\n{NET}")));
}

#[test]
fn kernels_differ_by_features_first_and_then_by_symbols() {
    let [a, b] = [
        config("CONFIG_NET=y\nCONFIG_DISK=y\nCONFIG_VXLAN=m\nCONFIG_NETKIT=y\n# CONFIG_X is not set\n"),
        config("CONFIG_NET=y\nCONFIG_DISK=m\nCONFIG_DEBUG=y\nCONFIG_NETKIT=y\n"),
    ];
    let offer = |config, version: &str| Offer {
        config,
        version: version.parse().unwrap(),
        arch: Arch::Amd64,
        modules: None,
    };
    let difference = diff(&both(), offer(&a, "6.12"), offer(&b, "6.6")).unwrap();
    insta::assert_snapshot!(difference.lines(["ours", "theirs"], 2).join("\n"), @"
    features that ours has and theirs lacks: 3
      net.netkit: fast devices
        it lacks a later Linux
      net.quiet: no debugging
        it lacks DEBUG=n
      net.tunnel: packets in packets
        it lacks VXLAN
    symbols that differ: 3
      DEBUG: - -> y
      DISK: y -> m
      … and 1 more; --all lists them
    ");
    let text = serde_json::to_string(&difference).unwrap();
    assert_eq!(serde_json::from_str::<super::diff::KernelDiff>(&text).unwrap(), difference);
    let same = diff(&both(), offer(&a, "6.12"), offer(&a, "6.12")).unwrap();
    assert!(same.same && same.lines(["a", "b"], 9).join("").contains("the same"));
}

#[test]
fn the_script_for_a_node_asks_for_each_symbol_once_and_quotes_what_people_write() {
    let features = ["net.netkit".to_owned(), "net.tunnel".to_owned(), "net.quiet".to_owned()];
    let script = probe_script(&both(), &features, Arch::Amd64).unwrap();
    let generated = script.split_once("\nread_config ").unwrap().1;
    insta::assert_snapshot!(generated, @r#"
    DEBUG DISK MODULES NET NETKIT SIGNED VXLAN
    want base.all DISK 'y m' 'disk'
    want base.all NET 'y' ''
    linux net.netkit 6 8
    want net.netkit NETKIT 'y' ''
    want net.quiet DEBUG 'n' ''
    [ "${value_MODULES:-n}" = n ] || want net.quiet SIGNED 'y' ''
    want net.tunnel VXLAN 'y m' 'vxlan'
    begin
    why=$(exec 2>&1 </dev/null; cd "$folder"; set -e
    device netkit
    ip link show 'kiln-probe'
    )
    end $? net.netkit 'a pair that isn'\''t veth' 'device netkit
    ip link show '\''kiln-probe'\'''
    exit $failed
    "#);
    assert!(probe_script(&both(), &["net.nothing".to_owned()], Arch::Amd64).is_err());
    let finding = |ok, text: &str| Finding { ok, feature: "net.quiet".to_owned(), text: text.to_owned() };
    assert_eq!(Finding::parse("ok net.quiet CONFIG_DEBUG=n"), Some(finding(true, "CONFIG_DEBUG=n")));
    assert_eq!(Finding::parse("no net.quiet a, b: c"), Some(finding(false, "a, b: c")));
    for other in ["", "ok", "ok net.quiet", "modprobe: FATAL: x", "okay net.quiet x"] {
        assert_eq!(Finding::parse(other), None, "{other}");
    }
}

/// A value that a .config can hold.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Yes),
        Just(Value::Module),
        Just(Value::No),
        any::<i64>().prop_map(|n| Value::Number(n.to_string())),
        any::<u64>().prop_map(|n| Value::Number(format!("{n:#x}"))),
        "[^\\r\\n]*".prop_map(Value::Text),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(values in proptest::collection::btree_map("[A-Z0-9_]{1,12}", value(), 0..20)) {
        let mut config = Config::default();
        for (symbol, value) in &values {
            config.set(symbol, value.clone());
        }
        prop_assert_eq!(Config::parse(&config.to_string()), Ok(config));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(CONFIG_|# |is not set|[=\"\\\\xym0-9\\n]|\\PC){0,60}") {
        Config::parse(&text).ok();
        text.parse::<Version>().ok();
    }
}
