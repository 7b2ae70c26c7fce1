//! What is served and to whom: everything that does not change while the server runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::atomic::AtomicU64;

use ipnet::Ipv4Net;
use serde::Serialize;
use serde_json::json;

use super::board::Seen;
use super::content::Content;
use super::image::Image;
use crate::arch::Arch;
use crate::cluster::secret::Value;
use crate::deploy::flash::proof::Proof;
use crate::scenario::spec::Mac;
use crate::spec::Role;
use crate::spec::cluster::{DisklessState, Network};

/// What a machine that boots over the network is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Write its image to its disk, then boot from there
    Install,
    /// Run from memory; its disk is left alone
    Diskless,
    /// Boot from its disk: it gets no answer
    #[value(skip)]
    Local,
}

impl Mode {
    /// The word in plans.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Install => "install",
            Mode::Diskless => "diskless",
            Mode::Local => "local",
        }
    }
}

/// What asks: a machine's firmware, by option 93 (IANA, "Processor Architecture Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// The BIOS of PCs.
    Bios,
    /// UEFI by TFTP.
    Efi(Arch),
    /// UEFI by HTTP.
    Http(Arch),
    /// One that nothing is built for, such as UEFI of 32 bits.
    Other(u16),
}

impl Firmware {
    /// By its number.
    pub fn from_code(code: u16) -> Self {
        match code {
            0 => Firmware::Bios,
            // 9 is what x64 firmware sent before the registry's erratum, and some still does.
            7 | 9 => Firmware::Efi(Arch::Amd64),
            11 => Firmware::Efi(Arch::Arm64),
            16 => Firmware::Http(Arch::Amd64),
            19 => Firmware::Http(Arch::Arm64),
            other => Firmware::Other(other),
        }
    }

    /// The machine behind it.
    pub fn arch(self) -> Option<Arch> {
        match self {
            Firmware::Bios => Some(Arch::Amd64),
            Firmware::Efi(arch) | Firmware::Http(arch) => Some(arch),
            Firmware::Other(_) => None,
        }
    }

    /// The iPXE that it is sent.
    pub fn program(self) -> Option<&'static str> {
        match (self, self.arch()?) {
            (Firmware::Bios, _) => Some("undionly.kpxe"),
            (_, Arch::Amd64) => Some("snponly.efi"),
            (_, Arch::Arm64) => Some("ipxe-arm64.efi"),
        }
    }
}

impl std::fmt::Display for Firmware {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Firmware::Bios => f.pad("BIOS"),
            Firmware::Efi(arch) => f.pad(&format!("UEFI {arch}")),
            Firmware::Http(arch) => f.pad(&format!("UEFI {arch}, HTTP")),
            Firmware::Other(6 | 15) => f.pad("UEFI of 32 bits"),
            Firmware::Other(code) => f.pad(&format!("architecture {code}")),
        }
    }
}

/// The iPXE programs that are served, and where they lie in Debian's package `ipxe`.
pub const PROGRAMS: [(&str, &str); 4] = [
    ("undionly.kpxe", "usr/lib/ipxe/undionly.kpxe"),
    ("snponly.efi", "usr/lib/ipxe/snponly.efi"),
    ("ipxe.efi", "usr/lib/ipxe/ipxe-amd64.efi"),
    ("ipxe-arm64.efi", "usr/lib/ipxe/ipxe-arm64.efi"),
];

/// A machine of cluster.toml.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What it does in the cluster.
    pub role: Role,
    /// Whose image it gets.
    pub profile: String,
    /// Its network.
    pub network: Option<Network>,
    /// The address that it always has.
    pub address: Option<Ipv4Addr>,
    /// The disk contract, as `kiln cluster show --json` has it.
    pub contract: serde_json::Value,
    /// What was asked for it.
    pub mode: Mode,
    /// Where its /var lies if it runs diskless.
    pub state: DisklessState,
    /// What proved its image, for a node that is to be installed.
    pub proof: Option<Proof>,
    /// What of its disk may be lost, see [`MEMBERS`](crate::deploy::flash::claim::MEMBERS).
    pub overwrite: Vec<String>,
    /// All its credentials: a tar archive (POSIX ustar), each a file of mode 0600.
    pub credentials: Value,
    /// Bytes that it was sent.
    pub sent: AtomicU64,
}

/// Everything that is served.
#[derive(Debug)]
pub struct Site {
    /// Name of the cluster.
    pub cluster: String,
    /// Our address.
    pub address: Ipv4Addr,
    /// Its network.
    pub subnet: Ipv4Net,
    /// Port of HTTP.
    pub http_port: u16,
    /// Addresses to give away, first and last; `None` beside another DHCP server.
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Addresses that are never given away: those of cluster.toml and our own.
    pub reserved: Vec<Ipv4Addr>,
    /// The network of the file that is ours, with its router and its servers.
    pub network: Option<Network>,
    /// Machines by the address of their card.
    pub nodes: BTreeMap<Mac, Node>,
    /// Images by profile and machine.
    pub images: BTreeMap<(String, Arch), Image>,
    /// iPXE by name.
    pub programs: BTreeMap<&'static str, Content>,
    /// This very program, and for what machine it is.
    pub kiln: Option<(Arch, Content)>,
}

impl Site {
    /// `http://ADDRESS:PORT/`.
    pub fn base(&self) -> String {
        format!("http://{}:{}/", self.address, self.http_port)
    }

    /// The image for a node: that of the machine that asked, else the one there is.
    pub fn image(&self, node: &Node, seen: &Seen) -> Option<&Image> {
        let of = |arch: Arch| self.images.get(&(node.profile.clone(), arch));
        match seen.firmware().and_then(Firmware::arch) {
            Some(arch) => of(arch),
            None => Arch::ALL.into_iter().find_map(of),
        }
    }

    /// What a node is to do now.
    pub fn mode(&self, node: &Node, seen: &Seen) -> Mode {
        let refused = self.refusal(node, seen).is_some();
        if refused || (node.mode == Mode::Install && seen.installed.is_some()) {
            Mode::Local
        } else {
            node.mode
        }
    }

    /// Where a node's /var lies while it is run so: a machine that is installed has one in memory until then.
    pub fn state(&self, node: &Node, mode: Mode) -> DisklessState {
        if mode == Mode::Diskless { node.state } else { DisklessState::Memory }
    }

    /// Whether its firmware gets an answer: something to boot, or a script that says why there is nothing.
    pub fn answers(&self, node: &Node, seen: &Seen) -> bool {
        let told = seen.firmware() == Some(Firmware::Bios) && self.refusal(node, seen).is_some();
        told || self.mode(node, seen) != Mode::Local
    }

    /// Why a machine cannot have what was asked for it.
    pub fn refusal(&self, node: &Node, seen: &Seen) -> Option<String> {
        if node.mode == Mode::Local {
            return None;
        }
        match seen.firmware() {
            Some(Firmware::Bios) if node.mode == Mode::Install => Some(BIOS_INSTALL.to_owned()),
            Some(firmware @ Firmware::Other(_)) => Some(format!("there is no image for {firmware}")),
            Some(firmware) if self.image(node, seen).is_none() => Some(format!(
                "{} has no image for {firmware}: kiln build --profile {}",
                node.profile, node.profile
            )),
            _ => None,
        }
    }

    /// The path of a node's plan, without `.env`.
    fn path(mac: Mac, name: &str) -> String {
        format!("/v1/node/{mac}/{name}")
    }

    /// The plan of a node as JSON. What a node in mode `local` gets says no more than that.
    pub fn plan(&self, mac: Mac, node: &Node, seen: &Seen) -> serde_json::Value {
        let mode = self.mode(node, seen);
        let mut plan = json!({
            "mode": mode,
            "node": node.name,
            "role": node.role,
            "profile": node.profile,
        });
        let Some(image) = self.image(node, seen).filter(|_| mode != Mode::Local) else { return plan };
        let (name, content) = match &image.zst {
            Some(zst) => ("image.raw.zst", zst),
            None => ("image.raw", &image.raw),
        };
        let part = |name: &str, content: &Content| json!({ "path": Self::path(mac, name), "size": content.len, "sha256": content.digest });
        plan["arch"] = json!(image.arch);
        plan["version"] = json!(image.version);
        plan["uki_sha256"] = json!(image.uki.digest);
        plan["image"] = json!({
            "path": Self::path(mac, name),
            "compressed": image.zst.is_some(),
            "transfer_size": content.len,
            "size": image.raw.len,
            "sha256": image.raw.digest,
        });
        plan["raw"] = part("image.raw", &image.raw);
        plan["root"] = part("root.img", &image.root);
        plan["root"]["roothash"] = json!(image.root_hash);
        plan["verity"] = part("verity.img", &image.verity);
        plan["layout_size"] = json!(image.layout_size);
        plan["state_size"] = json!(image.state_size);
        let state = self.state(node, mode);
        plan["memory"] = json!(image.memory(state));
        plan["contract"] = node.contract.clone();
        if state == DisklessState::Disk {
            plan["state"] = json!({ "cluster": self.cluster });
        }
        if mode == Mode::Install {
            plan["install"] = json!({
                "cluster": self.cluster,
                "overwrite": node.overwrite,
                "proof": node.proof,
                "manifest": image.manifest,
            });
        }
        plan
    }

    /// The plan as assignments of a shell, `KEY='value'` each.
    pub fn plan_env(&self, mac: Mac, node: &Node, seen: &Seen) -> String {
        let mode = self.mode(node, seen);
        let mut text = String::new();
        let mut line = |key: &str, value: &str| {
            let _ = writeln!(text, "{key}='{}'", value.replace('\'', "'\\''"));
        };
        line("MODE", mode.word());
        line("NODE", &node.name);
        let Some(image) = self.image(node, seen).filter(|_| mode != Mode::Local) else { return text };
        let base = self.base();
        let url = |name: &str| format!("{}{}", base.trim_end_matches('/'), Self::path(mac, name));
        let number = |n: u64| n.to_string();
        let state = self.state(node, mode);
        for (key, value) in [
            ("ROLE", node.role.to_string()),
            ("PROFILE", node.profile.clone()),
            ("ARCH", image.arch.to_string()),
            ("VERSION", image.version.clone()),
            ("UKI_SHA256", image.uki.digest.to_string()),
            ("IMAGE_URL", url("image.raw")),
            ("IMAGE_SIZE", number(image.raw.len)),
            ("IMAGE_SHA256", image.raw.digest.to_string()),
            ("LAYOUT_SIZE", number(image.layout_size)),
            ("STATE_SIZE", number(image.state_size)),
            ("STATE", state.word().to_owned()),
            ("MEMORY", number(image.memory(state))),
            ("ROOT_URL", url("root.img")),
            ("ROOT_SIZE", number(image.root.len)),
            ("ROOT_SHA256", image.root.digest.to_string()),
            ("ROOTHASH", image.root_hash.to_string()),
            ("HASH_URL", url("verity.img")),
            ("HASH_SIZE", number(image.verity.len)),
            ("HASH_SHA256", image.verity.digest.to_string()),
        ] {
            line(key, &value);
        }
        text
    }

    /// What iPXE does on the node. Words for our part of the initrd stand behind those of the UKI: what iPXE passes to the boot stub takes
    /// the place of the UKI's own command line (systemd-stub(7)).
    pub fn script(&self, mac: Mac, node: &Node, seen: &Seen) -> String {
        let name = &node.name;
        let from_disk = |why: &str| {
            // UEFI goes on with its next boot option when a program fails.
            format!("#!ipxe\necho kiln: {name} {why}\niseq ${{platform}} efi || exit\nexit 1\n")
        };
        if let Some(why) = self.refusal(node, seen) {
            return format!(
                "#!ipxe\necho kiln: {name} is not served: {why}\nsleep 60\niseq ${{platform}} efi || exit\nexit 1\n"
            );
        }
        let mode = self.mode(node, seen);
        let Some(image) = self.image(node, seen).filter(|_| mode != Mode::Local) else {
            return from_disk("boots from its disk");
        };
        let base = self.base();
        let words = format!(
            "{} kiln.netboot={base} kiln.net=${{netX/mac}},${{netX/ip}},${{netX/netmask}},${{netX/gateway}}",
            image.cmdline
        );
        let mut out = format!("#!ipxe\necho kiln: {name}, {}, image {}\n", mode.word(), image.version);
        let folder = format!("{base}boot/{mac}");
        if mode == Mode::Install {
            let _ = writeln!(out, "iseq ${{platform}} efi && goto efi ||");
            let _ = writeln!(out, "echo kiln: {name} is not served: {BIOS_INSTALL}\nsleep 60\nexit");
            let words = format!("{words} systemd.unit=kiln-install.target");
            let _ = writeln!(out, ":efi\nkernel --name uki.efi {folder}/uki.efi {words} || goto failed");
        } else {
            let _ = writeln!(out, "iseq ${{platform}} efi && goto efi ||");
            let _ = writeln!(out, "kernel --name linux {folder}/linux {words} || goto failed");
            for (part, _) in &image.initrds {
                let _ = writeln!(out, "initrd --name {part} {folder}/{part} || goto failed");
            }
            let _ = writeln!(out, "boot || goto failed");
            let _ = writeln!(out, ":efi\nkernel --name uki.efi {folder}/uki.efi {words} || goto failed");
        }
        let _ = write!(
            out,
            "boot || goto failed\n:failed\necho kiln: {name} could not be booted from {base}\nsleep 20\nexit 1\n"
        );
        out
    }
}

const BIOS_INSTALL: &str =
    "images boot by UEFI alone, and this machine started by BIOS: switch it to UEFI, or serve it diskless";

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::digest::Digest;
    use serde_json::Map;

    pub(in super::super) const CARD: [u8; 6] = [0xbc, 0x24, 0x11, 0, 0, 0x11];
    pub(in super::super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 2);

    pub(in super::super) fn card() -> Mac {
        super::super::dhcp::packet::mac(CARD).unwrap()
    }

    fn content(bytes: &[u8]) -> Content {
        Content::kept(bytes, &std::env::temp_dir()).unwrap()
    }

    /// One node, `agent-1`, and its image.
    pub(in super::super) fn site(mode: Mode) -> Site {
        let lan = Network {
            name: "lan".parse().unwrap(),
            subnet: "192.168.50.0/24".parse().unwrap(),
            gateway: Some(Ipv4Addr::new(192, 168, 50, 1)),
            dns: vec![Ipv4Addr::new(192, 168, 50, 1).into()],
            ntp: vec![],
            domain: Some("lab.example".to_owned()),
        };
        let node = Node {
            name: "agent-1".to_owned(),
            role: Role::Agent,
            profile: "agent".to_owned(),
            network: Some(lan.clone()),
            address: None,
            contract: serde_json::Value::Object(Map::new()),
            mode,
            state: DisklessState::Memory,
            proof: None,
            overwrite: Vec::new(),
            credentials: Value::new("tar"),
            sent: AtomicU64::new(0),
        };
        let disk: Vec<u8> = (0..100_000_u32).map(|i| i as u8).collect();
        let raw = content(&disk);
        let image = Image {
            manifest: json!({ "profile": "agent" }),
            profile: "agent".to_owned(),
            arch: Arch::Amd64,
            version: "20260912-abcdef01".to_owned(),
            zst: None,
            uki: content(b"MZ uki"),
            linux: content(b"linux"),
            initrds: vec![("initrd", content(b"initrd"))],
            cmdline: "roothash=0123 ro".to_owned(),
            root: raw.part(1000, 5000).unwrap(),
            verity: raw.part(500, 500).unwrap(),
            units: Vec::new(),
            raw,
            root_hash: Digest::of(b"root"),
            layout_size: 1 << 32,
            state_size: 1 << 30,
        };
        let program = |name| (name, content(format!("{name} ").repeat(3000).as_bytes()));
        Site {
            cluster: "homelab".to_owned(),
            address: ADDRESS,
            subnet: lan.subnet,
            http_port: 8067,
            range: None,
            reserved: vec![ADDRESS, Ipv4Addr::new(192, 168, 50, 1)],
            network: Some(lan),
            nodes: [(card(), node)].into(),
            images: [(("agent".to_owned(), Arch::Amd64), image)].into(),
            programs: PROGRAMS.map(|(name, _)| program(name)).into(),
            kiln: Some((Arch::Amd64, content(b"ELF"))),
        }
    }

    fn seen(arch: u16) -> Seen {
        Seen { arch: Some(arch), ..Seen::default() }
    }

    #[test]
    fn an_installed_node_and_a_bios_that_would_install_boot_from_disk() {
        let site = site(Mode::Install);
        let node = &site.nodes[&card()];
        assert_eq!(site.mode(node, &seen(7)), Mode::Install);
        let installed = Seen { installed: Some(1), ..seen(7) };
        assert_eq!(site.mode(node, &installed), Mode::Local);
        assert!(site.script(card(), node, &installed).ends_with("exit 1\n"));
        assert_eq!(site.plan(card(), node, &installed)["mode"], "local");
        assert!(site.plan(card(), node, &installed).get("image").is_none());
        assert_eq!(site.mode(node, &seen(0)), Mode::Local);
        assert!(site.script(card(), node, &seen(0)).contains("switch it to UEFI"));
        assert!(site.refusal(node, &seen(6)).unwrap().contains("32 bits"));
        assert!(site.refusal(node, &seen(11)).unwrap().contains("kiln build --profile agent"));
    }

    #[test]
    fn the_script_passes_the_words_of_the_uki_and_ours() {
        let site = site(Mode::Diskless);
        let node = &site.nodes[&card()];
        let script = site.script(card(), node, &seen(7));
        let words = "roothash=0123 ro kiln.netboot=http://192.168.50.2:8067/ kiln.net=${netX/mac},${netX/ip},${netX/netmask},${netX/gateway}";
        let folder = "http://192.168.50.2:8067/boot/bc:24:11:00:00:11";
        for line in [
            format!("kernel --name uki.efi {folder}/uki.efi {words} || goto failed"),
            format!("kernel --name linux {folder}/linux {words} || goto failed"),
            format!("initrd --name initrd {folder}/initrd || goto failed"),
        ] {
            assert!(script.lines().any(|l| l == line), "{line}\n{script}");
        }
        let site = super::tests::site(Mode::Install);
        let script = site.script(card(), &site.nodes[&card()], &seen(7));
        assert!(
            script.contains(&format!("{words} systemd.unit=kiln-install.target || goto failed")),
            "{script}"
        );
        assert!(!script.contains("/linux"), "{script}");
    }

    #[test]
    fn the_plan_is_the_same_in_both_forms() {
        let site = site(Mode::Diskless);
        let node = &site.nodes[&card()];
        let plan = site.plan(card(), node, &seen(7));
        let env = site.plan_env(card(), node, &seen(7));
        let value = |key: &str| {
            let line = env.lines().find_map(|line| line.strip_prefix(&format!("{key}='"))).unwrap();
            line.strip_suffix('\'').unwrap().to_owned()
        };
        assert_eq!(value("MODE"), "diskless");
        assert_eq!(value("IMAGE_SIZE"), plan["image"]["size"].to_string());
        assert_eq!(value("ROOT_SHA256"), plan["root"]["sha256"].as_str().unwrap());
        assert_eq!(value("ROOTHASH"), plan["root"]["roothash"].as_str().unwrap());
        assert_eq!(
            value("HASH_URL"),
            format!("http://192.168.50.2:8067{}", plan["verity"]["path"].as_str().unwrap())
        );
        assert_eq!((value("STATE").as_str(), value("MEMORY").as_str()), ("memory", "1610712736"));
        // The image of 100000 bytes, 1 GiB for /var, and the least for the system.
        assert_eq!(plan["memory"], 1_610_712_736_u64);
        assert!(plan.get("state").is_none());
    }

    #[test]
    fn a_node_with_its_state_on_a_disk_needs_memory_for_the_image_alone() {
        for (mode, memory, lies) in
            [(Mode::Diskless, 536_970_912, "disk"), (Mode::Install, 1_610_712_736_u64, "memory")]
        {
            let mut site = site(mode);
            site.nodes.get_mut(&card()).unwrap().state = DisklessState::Disk;
            let node = &site.nodes[&card()];
            let plan = site.plan(card(), node, &seen(7));
            assert_eq!(plan["memory"], memory);
            // No word of what may be overwritten goes with it: what is on such a disk stays.
            let state = (lies == "disk").then(|| json!({ "cluster": "homelab" }));
            assert_eq!(plan.get("state"), state.as_ref(), "{plan}");
            assert!(site.plan_env(card(), node, &seen(7)).contains(&format!("STATE='{lies}'")));
        }
    }
}
