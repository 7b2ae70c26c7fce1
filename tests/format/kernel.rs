//! The contracts of images/kernel/ against the kernels that Debian builds.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use kiln::arch::Arch;
use kiln::contract::fragment::Asked;
use kiln::contract::{Config, Contracts, Offer, Want, check, stage};
use kiln::lock::{Lock, SetKind};
use kiln::packages::Work;
use kiln::spec::Project;
use kiln::store::Store;
use kiln::ui::{Ui, Verbosity};

use crate::common::{images, run::Run};

/// All .configs that Debian has for the two architectures, by name: `amd64`, `cloud-amd64`, `rt-amd64` …
fn configs() -> (Contracts, BTreeMap<String, (Arch, Config)>) {
    let project = Project::load(images::project()).unwrap();
    let locked = Lock::load(&project.dir).unwrap().check(&project).unwrap();
    let (store, ui) = (Store::open(&images::store()).unwrap(), Ui::new(Verbosity::Quiet, false));
    let work = Work { project: &project, locked: &locked, store: &store, ui: &ui, threads: 2 };
    let mut configs = BTreeMap::new();
    for arch in Arch::ALL {
        for package in work.set(SetKind::Tool, "kernel-configs", arch).unwrap() {
            for (path, entry) in package.tree.iter() {
                let Some(name) = path.name().strip_prefix(&format!("config.{arch}_")) else { continue };
                let (set, flavour) = name.strip_suffix(".xz").unwrap().split_once('_').unwrap();
                let name = if set == "none" { flavour.to_owned() } else { format!("{set}-{flavour}") };
                let mut text = Vec::new();
                let packed = entry.content().unwrap().read().unwrap();
                liblzma::read::XzDecoder::new(packed.as_slice()).read_to_end(&mut text).unwrap();
                let (config, version) = stage::config(&name, &text, Some("6.12")).unwrap();
                assert_eq!(version.to_string(), "6.12");
                configs.insert(name, (arch, config));
            }
        }
    }
    (project.contracts.clone(), configs)
}

/// The flavours that a profile can have.
const FLAVOURS: [&str; 4] = ["amd64", "arm64", "cloud-amd64", "cloud-arm64"];

#[test]
fn debian_s_kernels_have_every_feature_but_these() {
    let (contracts, configs) = configs();
    let mut lacking = String::new();
    for name in FLAVOURS {
        let (arch, config) = &configs[name];
        let offer = Offer { config, version: "6.12".parse().unwrap(), arch: *arch, modules: None };
        let table = check(&contracts, &contracts.names(), offer).unwrap();
        assert!(table.rows.len() > 280, "{}", table.rows.len());
        let mut features: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for row in table.unmet() {
            features.entry(&row.feature).or_default().push(&row.symbol);
        }
        lacking.push_str(&format!("{name}\n"));
        for (feature, symbols) in features {
            lacking.push_str(&format!("  {feature}: {}\n", symbols.join(" ")));
        }
    }
    insta::assert_snapshot!(lacking, @r"
    amd64
      hardening.module-signing-enforced: MODULE_SIG_FORCE
      hardening.no-debug-info: DEBUG_INFO
      systemd.recommended: FW_LOADER_USER_HELPER
    arm64
      hardening.module-signing-enforced: MODULE_SIG_FORCE
      hardening.no-debug-info: DEBUG_INFO
    cloud-amd64
      hardening.module-signing-enforced: MODULE_SIG_FORCE
      hardening.no-debug-info: DEBUG_INFO
      machine.nic-broadcom: BNXT TIGON3
      machine.nic-emulated: E1000 E1000E
      machine.nic-intel: E1000E I40E IGB IGC IXGBE
      machine.nic-realtek: R8169 REALTEK_PHY USB_RTL8152
      machine.sd-card: MMC MMC_BLOCK MMC_SDHCI_PCI
      machine.usb-keyboard: USB_HID USB_XHCI_PCI
      machine.usb-storage: USB_STORAGE USB_UAS USB_XHCI_PCI
    cloud-arm64
      hardening.module-signing-enforced: MODULE_SIG_FORCE
      hardening.no-debug-info: DEBUG_INFO
      machine.nic-broadcom: BNXT TIGON3
      machine.nic-emulated: E1000 E1000E
      machine.nic-intel: E1000E I40E IGB IGC IXGBE
      machine.nic-realtek: R8169 USB_RTL8152
      machine.sd-card: MMC MMC_BLOCK MMC_SDHCI_PCI
      machine.usb-keyboard: HID_GENERIC USB_HID USB_XHCI_PCI
      machine.usb-storage: USB_STORAGE USB_UAS USB_XHCI_PCI
    ");
}

#[test]
fn every_symbol_that_linux_6_12_should_know_is_known_to_one_of_its_configs() {
    let (contracts, configs) = configs();
    let known: BTreeSet<&str> =
        configs.values().flat_map(|(_, config)| config.iter()).map(|(symbol, _)| symbol).collect();
    assert!(known.len() > 8000, "{}", known.len());
    for (feature, of) in contracts.all() {
        for (symbol, demand) in &of.symbols {
            let gone = demand.absent_since.is_some_and(|absent| absent <= "6.12".parse().unwrap());
            let here = known.contains(symbol.as_str());
            assert!(here || gone || demand.want == Want::No, "{feature}: no config mentions {symbol}");
            assert!(!(here && gone), "{feature}: {symbol} is said to be gone and is there");
        }
    }
}

#[test]
fn the_fragments_of_kernels_from_source_ask_only_for_symbols_that_linux_6_12_knows() {
    let (_, configs) = configs();
    let known: BTreeSet<&str> =
        configs.values().flat_map(|(_, config)| config.iter()).map(|(symbol, _)| symbol).collect();
    // Linux has it (drivers/md/Kconfig), but only where device-mapper is built in, and Debian builds it as a module.
    let hidden = ["DM_INIT"];
    let mut read = 0;
    for entry in fs_err::read_dir(images::project().join("images/kernel/fragments")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.ends_with(".config") {
            continue;
        }
        let mut asked = Asked::default();
        asked.add(&name, &fs_err::read_to_string(&path).unwrap()).unwrap();
        for (symbol, _, place) in asked.iter() {
            assert!(known.contains(symbol) || hidden.contains(&symbol), "{place}: {symbol}");
            read += 1;
        }
    }
    assert!(read > 450, "{read}");
}

/// Runs the verb on a copy of the project whose server has `kernel` as the end of its profile.
fn with_server(kernel: &str, args: &[&str]) -> Run {
    let dir = tempfile::tempdir_in(images::folder()).unwrap();
    for part in ["images", "profiles", "qemu"] {
        images::copy(&images::project().join(part), &dir.path().join(part));
    }
    let profile = dir.path().join("profiles/server.toml");
    let text = fs_err::read_to_string(&profile).unwrap();
    fs_err::write(&profile, format!("{text}{kernel}")).unwrap();
    Run::of(&images::kiln().args(args).arg("-C").arg(dir.path()).output().unwrap())
}

#[test]
fn the_profiles_kernels_hold_their_contract_on_both_machines() {
    for arch in ["amd64", "arm64"] {
        let run = with_server("", &["kernel", "check", "--json", "--arch", arch]).ok();
        for checked in run.json().as_array().unwrap() {
            assert_eq!(checked["met"], true, "{}", run.text());
            for feature in ["k3s.base", "cilium.wireguard", "nfs.v4-2", "boot.verity", "systemd.base"] {
                assert!(checked["features"][feature].as_u64().unwrap() > 0, "{feature}: {}", run.text());
            }
        }
    }
}

#[test]
fn a_build_with_a_feature_that_the_cloud_kernel_lacks_names_the_kernel_that_has_it() {
    let run = with_server(
        "features = [\"machine.usb-storage\"]\n",
        &["build", "--profile", "server", "--out", "/nowhere"],
    );
    run.fails(
        1,
        &[
            "machine.usb-storage (machine) needs CONFIG_USB_STORAGE=y or m: it is hidden",
            "-> `kernel.flavour = \"metal\"`: there it is m",
        ],
    );
}

#[test]
fn a_module_that_cilium_needs_cannot_be_filtered_away_unnoticed() {
    let dropped = "[kernel.modules]\ndrop = [\"kernel/drivers/net/wireguard/**\", \"xt_TPROXY\"]\n";
    with_server(dropped, &["build", "--profile", "server", "--out", "/nowhere"]).fails(
        1,
        &[
            "cilium.wireguard (Cilium 1.18) needs CONFIG_WIREGUARD=y or m",
            "take \"kernel/drivers/net/wireguard/**\" out of `kernel.modules.drop`",
            "cilium.l7-proxy (Cilium 1.18) needs CONFIG_NETFILTER_XT_TARGET_TPROXY=y or m",
            "take \"xt_TPROXY\" out of `kernel.modules.drop`",
            "(2 findings)",
        ],
    );
}

#[test]
fn an_image_s_manifest_has_the_features_and_its_kernel_can_be_compared() {
    let manifest = images::manifest("server", "amd64");
    assert_eq!(manifest.features.get("cilium.wireguard"), Some(&2), "{:?}", manifest.features);
    let image = images::image("server", "amd64");
    let image = image.to_str().unwrap();
    let run = with_server("", &["kernel", "diff", image, "server", "--json"]).ok();
    assert_eq!(run.json()["same"], true, "{}", run.text());
}
