//! Kconfig files that are small enough to read.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::contract::fragment::{Asked, FragmentError};

const ROOT: &str = r#"
mainmenu "Test"
MACRO := $(shell,echo yes)
source "arch/$(SRCARCH)/Kconfig"

config MODULES
	bool "Modules"
	modules

menu "Networking"
	depends on NET

config VXLAN
	tristate "VXLAN"
	depends on INET && \
		(IPV6 || !IPV6)
	select UDP_TUNNEL if INET
	help
	  config FAKE
	    not a symbol, however it looks

	  depends on NOTHING

config UDP_TUNNEL
	tristate

endmenu

config NET
	bool "Net"

if NET
config INET
	bool "Inet" if EXPERT
	default y

source "drivers/Kconfig"
endif

config EXPERT
	bool "Expert" if "$(ARCH)" = "x86"

config IPV6
	tristate "v6"
	depends on INET

choice
	prompt "Size"
config BIG
	bool "Big"
config SMALL
	bool "Small"
	depends on SIZE < 0x10
endchoice

config SIZE
	int "Size"
	range 1 100
	default 64
"#;

const DRIVERS: &str = "menuconfig USB\n\tbool \"USB\"\n\tdepends on HAS_USB\n\nif USB\nmenu \"Storage\"\n\tvisible if !EMBEDDED\n\
    config UAS\n\ttristate \"UAS\"\n\tdepends on SCSI\n\tdepends on USB_STORAGE\nconfig USB_STORAGE\n\ttristate \"Storage\"\nendmenu\nendif\n\
    config SCSI\n\ttristate \"SCSI\"\nconfig EMBEDDED\n\tbool \"small\"\nconfig HAS_USB\n\tbool\n";

fn files(root: &str) -> BTreeMap<String, String> {
    [
        ("Kconfig", root),
        (
            "arch/x86/Kconfig",
            "config X86\n\tdef_bool y\n\tselect HAS_USB if PCI\nconfig PCI\n\tbool \"PCI\"\n",
        ),
        ("drivers/Kconfig", DRIVERS),
    ]
    .map(|(path, text)| (path.to_owned(), text.to_owned()))
    .into()
}

fn kconfig(root: &str) -> Result<Kconfig, KconfigError> {
    let files = files(root);
    read("Kconfig", &[("SRCARCH", "x86")], &mut |path| files.get(path).cloned())
}

fn config(text: &str) -> Config {
    Config::parse(text).unwrap()
}

fn explain(symbol: &str, asked: &str, result: &str) -> Vec<String> {
    kconfig(ROOT).unwrap().explain(symbol, &asked.parse().unwrap(), &config(result))
}

#[test]
fn symbols_are_found_in_all_files_and_help_texts_are_passed_over() {
    let kconfig = kconfig(ROOT).unwrap();
    let names: Vec<&str> = kconfig.names().collect();
    assert_eq!(
        names,
        [
            "BIG",
            "EMBEDDED",
            "EXPERT",
            "HAS_USB",
            "INET",
            "IPV6",
            "MODULES",
            "NET",
            "PCI",
            "SCSI",
            "SIZE",
            "SMALL",
            "UAS",
            "UDP_TUNNEL",
            "USB",
            "USB_STORAGE",
            "VXLAN",
            "X86"
        ]
    );
    let vxlan = &kconfig.get("VXLAN").unwrap().definitions[0];
    assert_eq!(vxlan.place, "Kconfig:13");
    let depends: Vec<String> = vxlan.depends.iter().map(ToString::to_string).collect();
    assert_eq!(depends, ["NET", "INET && (IPV6 || !IPV6)"]);
    let uas = &kconfig.get("UAS").unwrap().definitions[0];
    let depends: Vec<String> = uas.depends.iter().map(ToString::to_string).collect();
    assert_eq!(depends, ["NET", "USB", "SCSI", "USB_STORAGE"]);
    assert_eq!(uas.prompt.as_ref().unwrap()[0].to_string(), "!EMBEDDED");
    assert!(kconfig.get("UDP_TUNNEL").unwrap().definitions[0].prompt.is_none());
}

#[test]
fn a_symbol_that_was_not_granted_names_the_dependency_and_what_keeps_that_off() {
    assert_eq!(
        explain("UAS", "y", "CONFIG_NET=y\nCONFIG_SCSI=m\n"),
        [
            "it depends on USB, which is n",
            "USB depends on HAS_USB, which is n",
            "it depends on SCSI, which is m",
            "it depends on USB_STORAGE, which is n",
            "USB_STORAGE depends on USB, which is n",
        ]
    );
    assert_eq!(
        explain(
            "UAS",
            "m",
            "CONFIG_NET=y\nCONFIG_USB=y\nCONFIG_SCSI=m\nCONFIG_USB_STORAGE=y\nCONFIG_EMBEDDED=y\n"
        ),
        ["it depends on !EMBEDDED, where EMBEDDED is y"]
    );
    assert_eq!(
        explain("VXLAN", "y", "CONFIG_NET=y\nCONFIG_INET=y\nCONFIG_IPV6=m\n"),
        ["it depends on IPV6 || !IPV6, where IPV6 is m"]
    );
    assert_eq!(explain("SMALL", "y", "CONFIG_SIZE=64\n"), ["it depends on SIZE < 0x10, where SIZE is 64"]);
    assert!(
        explain("SMALL", "y", "CONFIG_SIZE=9\n").is_empty(),
        "a choice took the other one: nothing is unmet"
    );
}

#[test]
fn a_symbol_without_a_prompt_names_who_selects_it_and_one_that_is_on_who_holds_it() {
    assert_eq!(
        explain("UDP_TUNNEL", "y", "CONFIG_NET=y\n"),
        ["it cannot be chosen: it is selected by VXLAN"]
    );
    assert_eq!(explain("X86", "m", ""), ["it cannot be chosen: only its default counts"]);
    assert_eq!(
        explain("UDP_TUNNEL", "n", "CONFIG_NET=y\nCONFIG_INET=y\nCONFIG_VXLAN=m\nCONFIG_UDP_TUNNEL=m\n"),
        ["VXLAN selects it"]
    );
    assert_eq!(explain("X86", "n", "CONFIG_X86=y\n"), ["it cannot be chosen: its default is not n"]);
    assert_eq!(explain("TELEPORT", "y", ""), ["this Linux has no such symbol"]);
}

#[test]
fn conditions_are_read_and_valued_as_kconfig_does() {
    let under = config("CONFIG_A=y\nCONFIG_M=m\nCONFIG_T=\"x86\"\nCONFIG_V=120000\n");
    for (text, level) in [
        ("A", Level::Yes),
        ("B", Level::No),
        ("A && M", Level::Module),
        ("B || M", Level::Module),
        ("!M", Level::Module),
        ("!B && (A || B)", Level::Yes),
        ("A = y", Level::Yes),
        ("M != n", Level::Yes),
        ("T = \"x86\"", Level::Yes),
        ("T=\"arm\"", Level::No),
        ("V >= 110000", Level::Yes),
        ("V<0x10", Level::No),
        ("m", Level::Module),
        ("$(cc-option,-mfoo (x)) && A", Level::Yes),
        ("A # a comment", Level::Yes),
    ] {
        let expr = Expr::parse(text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(expr.level(&under), level, "{text}");
        assert_eq!(Expr::parse(&expr.to_string()).unwrap(), expr, "{text} and {expr}");
    }
    for wrong in [
        "",
        "A &&",
        "(A",
        "A)",
        "A B",
        "= y",
        "A = ",
        "A = (B)",
        "\"x",
        "$(x",
        "A & B",
        &"!".repeat(999),
        &"(".repeat(9999),
    ] {
        assert!(Expr::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn files_that_are_no_kconfig_are_an_error_with_its_place() {
    for (text, error) in [
        ("config A-B\n", "Kconfig:1: `A-B` is no name of a symbol"),
        ("\nif A\n", "Kconfig:2: `endif` is missing"),
        ("menu \"x\"\nendif\n", "Kconfig:2: `endif` closes nothing"),
        ("endmenu\n", "Kconfig:1: `endmenu` closes nothing"),
        ("source \"nowhere\"\n", "Kconfig:1: there is no file nowhere"),
        ("source nowhere\n", "Kconfig:1: `nowhere` is no path in quotes"),
        ("source \"Kconfig\"\n", "Kconfig:1: Kconfig is sourced twice"),
        ("config A\n\tbool \"a\"\n\tdepends on (B\n", "Kconfig:3: `(B` is no condition"),
        ("config A\n\tdepends B\n", "Kconfig:2: `depends` without `on`"),
    ] {
        assert_eq!(kconfig(text).unwrap_err().to_string(), error);
    }
    kconfig("osource \"nowhere\"\n").unwrap();
}

fn asked(files: &[(&str, &str)]) -> Result<Asked, FragmentError> {
    let mut asked = Asked::default();
    for (file, text) in files {
        asked.add(file, text)?;
    }
    Ok(asked)
}

#[test]
fn fragments_replace_the_base_and_may_repeat_but_not_contradict_each_other() {
    let base = config("CONFIG_NET=m\nCONFIG_PCI=y\n");
    let both = asked(&[
        ("base.config", "# why\nCONFIG_NET=y\n"),
        ("vm.config", "CONFIG_NET=y\n# CONFIG_USB is not set\n"),
    ])
    .unwrap();
    assert_eq!(both.over(&base).to_string(), "CONFIG_NET=y\nCONFIG_PCI=y\n# CONFIG_USB is not set\n");
    let error = asked(&[("base.config", "\nCONFIG_USB=y\n"), ("vm.config", "# CONFIG_USB is not set\n")])
        .unwrap_err();
    assert_eq!(error.to_string(), "CONFIG_USB is asked to be y in base.config:2 and n in vm.config:1");
    assert!(
        asked(&[("a.config", "CONFIG_USB=y\nCONFIG_USB=m\n")])
            .unwrap_err()
            .to_string()
            .contains("a.config:1 and m in a.config:2")
    );
    let error = asked(&[("a.config", "CONFIG_USB=yes\n")]).unwrap_err().to_string();
    assert!(error.starts_with("a.config:1: `yes` is neither"), "{error}");
}

#[test]
fn a_typo_in_a_fragment_names_its_line_and_the_symbol_that_was_meant() {
    let asked = asked(&[("a.config", "CONFIG_NET=y\nCONFIG_VXLNA=y\n# CONFIG_QQQQ is not set\n")]).unwrap();
    let error = asked.known(&kconfig(ROOT).unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel has no CONFIG_QQQQ (a.config:3), no CONFIG_VXLNA (a.config:2, did you mean CONFIG_VXLAN?)"
    );
}

#[test]
fn what_kconfig_did_not_grant_is_listed_with_place_and_reason() {
    let asked = asked(&[(
        "a.config",
        "CONFIG_NET=y\nCONFIG_USB=y\nCONFIG_SIZE=200\n# CONFIG_INET is not set\n# CONFIG_PCI is not set\n",
    )])
    .unwrap();
    let result = config("CONFIG_NET=y\nCONFIG_SIZE=64\nCONFIG_INET=y\n");
    let lost: Vec<String> =
        asked.lost(&result, &kconfig(ROOT).unwrap()).iter().map(ToString::to_string).collect();
    assert_eq!(
        lost.join("\n"),
        "a.config:4: CONFIG_INET is y, not n\n\
         a.config:3: CONFIG_SIZE is 64, not 200\n\
         a.config:2: CONFIG_USB is hidden, not y\n    it depends on HAS_USB, which is n"
    );
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(config|menu|if|endif|endmenu|choice|endchoice|source|depends on|bool|select|help|visible if|[A-C]| |\t|\n|\"|\\\\|&&|\\|\\||!|=|\\(|\\)|\\$\\(|#|\\PC){0,60}") {
        kconfig(&text).ok();
        Expr::parse(&text).ok();
    }
}

#[test]
fn the_fragments_of_the_project_fit_together() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("images/kernel/fragments");
    let mut seen = BTreeSet::new();
    for parts in [
        &["base", "x86", "node", "node-x86"][..],
        &["base", "x86", "vm", "vm-x86"],
        &["base", "arm64", "node"],
        &["base", "arm64", "vm"],
    ] {
        let mut asked = Asked::default();
        for part in parts {
            seen.insert(format!("{part}.config"));
            let name = format!("{part}.config");
            asked.add(&name, &fs_err::read_to_string(folder.join(&name)).unwrap()).unwrap();
        }
        assert!(asked.iter().count() > 350);
        let merged = asked.over(&Config::default());
        for (symbol, value) in
            [("EROFS_FS", "y"), ("DM_VERITY", "y"), ("MODULES", "n"), ("DEBUG_INFO", "n"), ("SOUND", "n")]
        {
            assert_eq!(merged.get(symbol).unwrap().to_string(), value, "{parts:?}: {symbol}");
        }
    }
    let there = fs_err::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(there.filter(|name| name.ends_with(".config")).collect::<BTreeSet<_>>(), seen);
}
