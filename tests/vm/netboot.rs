//! Blank machines boot by a network on which `kiln pxe` serves: from the first DHCP question to a login.
//!
//! The network is a switch of `kiln test`. Servers are plugged in with a namespace of their own each, whose one interface is a tap that a QEMU
//! without a machine joins to the switch; making one takes root.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use kiln::arch::Arch;
use kiln::exec::Tool;
use kiln::qemu::accel::{self, Accel};
use kiln::qemu::config::{Boot, Bus, Disk, Format, Link, MachineConfig, Nic, NicModel};
use kiln::qemu::firmware::Firmware;
use kiln::qemu::machine::Machine;
use kiln::qemu::switch::Switch;
use rustix::process::{Pid, Signal, kill_process_group};

use super::common::images;
use super::common::run::{Run, command, is_root, skipped};
use super::node::Slot;

const CLUSTER: &str = r#"
schema = 1
name = "netboot"
[network.lan]
subnet = "192.168.50.0/24"
gateway = "192.168.50.1"
[node.server]
role = "server"
mac = "52:54:00:00:50:10"
address = "192.168.50.100"
disk = { serial = "of-the-server" }
[node.agent-1]
role = "agent"
mac = "52:54:00:00:50:11"
address = "192.168.50.111"
disk = { serial = "right" }
[secret]
token = { file = "token" }
"#;

/// A program with a network namespace, ended with all that it started when the test ends.
struct Host {
    child: Child,
    log: PathBuf,
}

impl Host {
    fn says(&self) -> String {
        fs_err::read_to_string(&self.log).unwrap_or_default()
    }

    #[track_caller]
    fn wait_for(&mut self, words: &str, limit: Duration) {
        let end = Instant::now() + limit;
        while !self.says().contains(words) {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended\n{}", self.says());
            assert!(Instant::now() < end, "no `{words}`\n{}", self.says());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        kill_process_group(Pid::from_child(&self.child), Signal::KILL).ok();
        self.child.wait().ok();
    }
}

/// A segment with what is plugged into it.
struct Lan {
    folder: tempfile::TempDir,
    switch: Switch,
    qemu: PathBuf,
}

impl Lan {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("kiln-net-").tempdir_in("/tmp").unwrap();
        fs_err::write(folder.path().join("cluster.toml"), CLUSTER).unwrap();
        fs_err::write(folder.path().join("token"), "of-a-test").unwrap();
        Lan { folder, switch: Switch::new("lan", 1).unwrap(), qemu: images::tools("qemu") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn port(&self, name: &str) -> PathBuf {
        let path = self.path(&format!("{name}.sock"));
        self.switch.port(name, &path).unwrap();
        path
    }

    /// Runs `line`, a shell's, in a namespace whose interface `lan` has `address`.
    fn host(&self, name: &str, address: &str, line: &str) -> Host {
        let busybox = images::tools("initrd").join("usr/bin/busybox");
        let hub = Tool::from_tree(&self.qemu, "usr/bin/qemu-system-x86_64").unwrap().command();
        let hub = hub.args(["-machine", "none", "-nodefaults", "-display", "none"]);
        let hub = hub.args(["-netdev", "tap,id=tap,ifname=lan,script=no,downscript=no", "-netdev"]);
        let hub = hub
            .arg(format!("stream,id=port,server=off,addr.type=unix,addr.path={}", self.port(name).display()));
        let hub = hub.args([
            "-netdev",
            "hubport,id=a,hubid=0,netdev=tap",
            "-netdev",
            "hubport,id=b,hubid=0,netdev=port",
        ]);
        let script = format!(
            "set -e\nbb={}\n$bb ifconfig lo up\n$bb tunctl -t lan >/dev/null\n$bb ifconfig lan {address} netmask 255.255.255.0 up\n{} &\nexec env {line}\n",
            busybox.display(),
            hub.line()
        );
        let log = self.path(&format!("{name}.log"));
        let out = fs_err::File::create(&log).unwrap().into_file();
        let mut unshare = command(&busybox);
        unshare.args(["unshare", "-n", "--", "/bin/sh", "-c", &script]);
        std::os::unix::process::CommandExt::process_group(&mut unshare, 0);
        let child =
            unshare.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
        Host { child, log }
    }

    /// A command line of `kiln pxe` for the shell, with the state in this folder.
    fn pxe(&self, args: &str) -> String {
        format!(
            "env KILN_STORE={} {} -C {} pxe {args} --cluster {} --state {} --out {}",
            images::store().display(),
            super::common::run::program().display(),
            images::project().display(),
            self.path("cluster.toml").display(),
            self.path("state").display(),
            images::folder().join("out").display(),
        )
    }

    /// Asks the server that runs.
    fn ask(&self, args: &str) -> String {
        let line = format!(
            "env KILN_STORE={} {} pxe {args} --state {}",
            images::store().display(),
            super::common::run::program().display(),
            self.path("state").display()
        );
        Run::of(&command("/bin/sh").args(["-c", &line]).output().unwrap()).ok().text()
    }

    /// What the server keeps of the machine with this card.
    fn kept(&self, mac: &str) -> serde_json::Value {
        let state = fs_err::read(self.path("state/state.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&state).unwrap()["nodes"][mac].clone()
    }

    fn machine(&self, boot: Boot, mac: &str, disks: Vec<Disk>) -> (Machine, Duration) {
        let accel = accel::prove(&self.qemu, Arch::Amd64).unwrap().accel;
        let config = MachineConfig {
            name: "blank".to_owned(),
            arch: Arch::Amd64,
            memory: 2560,
            cpus: 2,
            accel,
            boot,
            disks,
            nics: vec![Nic {
                model: NicModel::Virtio,
                mac: mac.to_owned(),
                link: Link::Stream(self.port(&format!("blank-{}", mac.replace(':', "")))),
                netboot: true,
            }],
            credentials: Vec::new(),
            cmdline_extra: None,
            ports: Vec::new(),
            no_reboot: false,
            uuid: None,
            screen: false,
            shell: false,
            tpm: None,
        };
        let limit = Duration::from_secs(if accel == Accel::Tcg { 900 } else { 180 });
        (Machine::start(&self.qemu, &config, None).unwrap(), limit)
    }

    fn disk(&self, serial: &str, bus: Bus, gib: u64) -> Disk {
        let path = self.path(&format!("{serial}.raw"));
        fs_err::File::create(&path).unwrap().set_len(gib << 30).unwrap();
        std::os::unix::fs::FileExt::write_all_at(
            &std::fs::OpenOptions::new().write(true).open(&path).unwrap(),
            b"precious",
            0,
        )
        .unwrap();
        Disk::overlay(path, Format::Raw, None, bus, serial)
    }
}

/// What the parts of a test need; `None`, and it is said why, where that cannot be.
fn lan() -> Option<Lan> {
    if !is_root() {
        skipped("namespaces with a tap are made by root");
        return None;
    }
    if !Path::new("/dev/net/tun").exists() {
        skipped("there is no /dev/net/tun");
        return None;
    }
    images::image("agent", "amd64");
    images::image("server", "amd64");
    let lan = Lan::new();
    // A namespace has no way out to fetch it.
    images::tools("pxe");
    Some(lan)
}

#[test]
fn a_blank_machine_is_installed_beside_another_dhcp_server_on_the_right_disk_and_boots_from_it() {
    let _slot = Slot::wait();
    let Some(lan) = lan() else { return };
    let judges = images::tools("judges");
    let dnsmasq = Tool::from_tree(&judges, "usr/sbin/dnsmasq").unwrap().command();
    let dnsmasq =
        dnsmasq.args(["--no-daemon", "--port=0", "--user=root", "--conf-file=/dev/null", "--log-dhcp"]);
    let dnsmasq =
        dnsmasq.args(["--dhcp-range=192.168.50.150,192.168.50.199", "--interface=lan", "--bind-dynamic"]);
    let dnsmasq = dnsmasq.arg(format!("--dhcp-leasefile={}", lan.path("leases").display()));
    let mut dhcp = lan.host("dhcp", "192.168.50.1", &dnsmasq.line());
    dhcp.wait_for("DHCP, IP range", Duration::from_secs(60));
    let mut pxe = lan.host("pxe", "192.168.50.2", &lan.pxe("--mode install --unproven test"));
    pxe.wait_for("http://192.168.50.2:8067/", Duration::from_secs(120));

    let disks = vec![lan.disk("wrong", Bus::VirtioBlk, 16), lan.disk("right", Bus::Nvme, 8)];
    let boot = || Boot::Firmware(Firmware::find(&lan.qemu, Arch::Amd64).unwrap());
    let (mut machine, limit) = lan.machine(boot(), "52:54:00:00:50:11", disks);
    // Nobody opened the window yet.
    pxe.wait_for("the credentials of agent-1 were not given", limit);
    assert!(pxe.says().contains("Installing agent-1: /dev/nvme0n1 (right)"), "{}", pxe.says());
    lan.ask("release agent-1");
    pxe.wait_for("Installed agent-1: on /dev/nvme0n1 (serial right)", limit);
    // The address came from the other server; this one only said what to boot.
    assert!(dhcp.says().contains("DHCPACK"), "{}", dhcp.says());

    // It reboots by itself, is left to its disk, and is the node that it was told to be.
    pxe.wait_for("agent-1 (UEFI amd64): it boots from its disk", limit);
    machine.console.wait_for("agent-1 login:", limit).unwrap();
    let (agent, server) = (lan.kept("52:54:00:00:50:11"), lan.kept("52:54:00:00:50:10"));
    assert!(
        agent["installed"].is_i64() && agent["released"].is_i64() && server["released"].is_null(),
        "{agent} {server}"
    );
    let receipts: Vec<PathBuf> =
        fs_err::read_dir(lan.path("state/receipts")).unwrap().map(|e| e.unwrap().path()).collect();
    let receipt: serde_json::Value = serde_json::from_slice(&fs_err::read(&receipts[0]).unwrap()).unwrap();
    let manifest = images::manifest("agent", "amd64");
    assert_eq!(receipt["image"]["sha256"], manifest.disk.sha256.to_string());
    assert_eq!((&receipt["device"]["serial"], &receipt["node"]), (&"right".into(), &"agent-1".into()));
    let log = fs_err::read_to_string(machine.console.log()).unwrap();
    assert!(!log.contains("of-a-test") && !pxe.says().contains("of-a-test"), "the token is in a log");
    let folder = machine.keep();
    machine.power_cut();
    // Nothing was written to the disk that no contract means.
    let overlay = Tool::from_tree(&lan.qemu, "usr/bin/qemu-img").unwrap().command();
    let map = overlay.args(["map", "--output=json"]).arg(folder.join("disk0.qcow2")).read().unwrap();
    let map: serde_json::Value = serde_json::from_slice(&map).unwrap();
    assert!(map.as_array().unwrap().iter().all(|run| run["depth"] != 0), "the wrong disk was written: {map}");
    fs_err::remove_dir_all(folder).unwrap();
}

#[test]
fn a_machine_with_a_bios_runs_from_memory_and_strangers_get_nothing() {
    let _slot = Slot::wait();
    let Some(lan) = lan() else { return };
    let args = "--mode diskless --window 1h --dhcp-range 192.168.50.200-192.168.50.220";
    let mut pxe = lan.host("pxe", "192.168.50.2", &lan.pxe(args));
    pxe.wait_for("http://192.168.50.2:8067/", Duration::from_secs(120));

    let (stranger, limit) = lan.machine(Boot::Bios, "52:54:00:00:50:99", Vec::new());
    pxe.wait_for("52:54:00:00:50:99", limit);
    drop(stranger);
    let (machine, limit) = lan.machine(Boot::Bios, "52:54:00:00:50:11", Vec::new());
    machine.console.wait_for("agent-1 login:", limit).unwrap();
    assert!(pxe.says().contains("agent-1 (iPXE): diskless"), "{}", pxe.says());
    assert!(pxe.says().contains("Booted agent-1") && !pxe.says().contains("of-a-test"), "{}", pxe.says());
    // The stranger is there to be adopted, and got no packet more.
    assert!(lan.ask("status").contains("52:54:00:00:50:99"));
    assert!(lan.kept("52:54:00:00:50:11")["booted"].is_i64() && lan.kept("52:54:00:00:50:99").is_null());
}
