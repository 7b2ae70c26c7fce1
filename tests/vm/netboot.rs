//! Blank machines boot by a network on which `kiln pxe` serves: from the first DHCP question to a node that is Ready in its cluster.
//!
//! The network is a switch of `kiln test`, and the cluster's server is plugged into it, too. Servers are plugged in with a namespace of their own each, whose one interface is a tap that a QEMU
//! without a machine joins to the switch; making one takes root.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln::arch::Arch;
use kiln::cluster::credentials;
use kiln::cluster::secret::Keeper;
use kiln::exec::Tool;
use kiln::qemu::accel::{self, Accel};
use kiln::qemu::config::{Boot, Bus, Disk, Format, Link, MachineConfig, Netboot, Nic, NicModel};
use kiln::qemu::door::{self, Door};
use kiln::qemu::firmware::Firmware;
use kiln::qemu::machine::Machine;
use kiln::qemu::switch::Switch;
use kiln::spec::Project;
use kiln::spec::cluster::Cluster;
use rustix::process::{Pid, Signal, kill_process_group};

use super::common::images;
use super::common::run::{Run, command, is_root, skipped};
use super::node::{Slot, only_in_full};

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
[node.agent-2]
role = "agent"
mac = "52:54:00:00:50:12"
address = "192.168.50.112"
disk = { serial = "none-is-taken" }
[node.agent-3]
role = "agent"
mac = "52:54:00:00:50:13"
address = "192.168.50.113"
disk = { serial = "state" }
diskless-state = "disk"
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

/// A machine and the way into it.
struct Node {
    machine: Machine,
    door: Door,
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

    /// A machine that boots by the network, and is entered by a door once it is up.
    fn machine(&self, boot: Boot, netboot: Netboot, mac: &str, disks: Vec<Disk>) -> Node {
        self.node(boot, netboot, mac, disks, 2560, Vec::new())
    }

    fn node(
        &self,
        boot: Boot,
        netboot: Netboot,
        mac: &str,
        disks: Vec<Disk>,
        memory: u32,
        mut credentials: Vec<(String, Vec<u8>)>,
    ) -> Node {
        let accel = accel::prove(&self.qemu, Arch::Amd64).unwrap().accel;
        credentials.extend(door::credentials());
        let config = MachineConfig {
            name: format!("node-{}", &mac[15..]),
            arch: Arch::Amd64,
            memory,
            // The server's K3s has work for two; more than these five are too many for a small host.
            cpus: if netboot == Netboot::Off { 2 } else { 1 },
            accel,
            boot,
            disks,
            nics: vec![Nic {
                model: NicModel::Virtio,
                mac: mac.to_owned(),
                link: Link::Stream(self.port(&format!("node-{}", mac.replace(':', "")))),
                netboot,
            }],
            credentials,
            cmdline_extra: None,
            ports: vec![door::PORT.to_owned()],
            clock: None,
            no_reboot: false,
            uuid: None,
            screen: false,
            shell: false,
            tpm: None,
        };
        let machine = Machine::start(&self.qemu, &config, None).unwrap();
        let door = Door::new(Arc::clone(&machine.ports[0]));
        Node { machine, door }
    }

    fn uefi(&self) -> Boot {
        Boot::Firmware(Firmware::find(&self.qemu, Arch::Amd64).unwrap())
    }

    /// The cluster's server: the built image, and what `kiln cluster show` says of its node.
    fn server(&self) -> Node {
        let project = Project::load(images::project()).unwrap();
        let cluster = Cluster::read(&self.path("cluster.toml"), &project).unwrap();
        let list =
            credentials(&cluster, cluster.node("server").unwrap(), &mut Keeper::new(&cluster)).unwrap();
        let mut list: Vec<(String, Vec<u8>)> = list
            .into_iter()
            .map(|credential| (credential.name, credential.value.expose().to_vec()))
            .collect();
        let config = list.iter_mut().find(|(name, _)| name == "k3s.config").unwrap();
        // Emulated processors miss deadlines that real ones keep.
        config.1.extend(b"kube-controller-manager-arg: [node-monitor-grace-period=120s]\n");
        let image = images::image("server", "amd64");
        let disk = Disk::overlay(image, Format::Raw, Some(12 << 30), Bus::VirtioBlk, "of-the-server");
        self.node(self.uefi(), Netboot::Off, "52:54:00:00:50:10", vec![disk], 3072, list)
    }

    /// A disk with nothing on it but `begin`.
    fn disk(&self, serial: &str, bus: Bus, gib: u64, begin: &[u8]) -> Disk {
        let path = self.path(&format!("{serial}.raw"));
        fs_err::File::create(&path).unwrap().set_len(gib << 30).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, begin, 0).unwrap();
        Disk::overlay(path, Format::Raw, None, bus, serial)
    }

    /// How long each thing may take: four machines are emulated at once.
    fn limit(&self) -> Duration {
        let tcg = accel::prove(&self.qemu, Arch::Amd64).unwrap().accel == Accel::Tcg;
        Duration::from_secs(if tcg { 1800 } else { 300 })
    }

    /// Whether a disk of a machine that is gone was never written, as the layer over it shows.
    fn untouched(&self, overlay: &Path) -> bool {
        let map = Tool::from_tree(&self.qemu, "usr/bin/qemu-img").unwrap().command();
        let map = map.args(["map", "--output=json"]).arg(overlay).read().unwrap();
        let map: serde_json::Value = serde_json::from_slice(&map).unwrap();
        map.as_array().unwrap().iter().all(|run| run["depth"] != 0)
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
    let lan = Lan::new();
    // A namespace has no way out to fetch it.
    images::tools("pxe");
    Some(lan)
}

/// A DHCP server that knows nothing of booting.
fn dnsmasq(lan: &Lan) -> Host {
    let dnsmasq = Tool::from_tree(&images::tools("judges"), "usr/sbin/dnsmasq").unwrap().command();
    let dnsmasq =
        dnsmasq.args(["--no-daemon", "--port=0", "--user=root", "--conf-file=/dev/null", "--log-dhcp"]);
    let dnsmasq =
        dnsmasq.args(["--dhcp-range=192.168.50.150,192.168.50.199", "--interface=lan", "--bind-dynamic"]);
    let dnsmasq = dnsmasq.arg(format!("--dhcp-leasefile={}", lan.path("leases").display()));
    let mut dhcp = lan.host("dhcp", "192.168.50.1", &dnsmasq.line());
    dhcp.wait_for("DHCP, IP range", Duration::from_secs(60));
    dhcp
}

/// A blank machine with UEFI firmware asks by PXE beside another DHCP server, is installed on the right disk, boots from it and joins.
fn installed(lan: &Lan) -> Node {
    let dhcp = dnsmasq(lan);
    let mut pxe = lan.host("pxe-1", "192.168.50.2", &lan.pxe("--install agent-1 --unproven test"));
    pxe.wait_for("http://192.168.50.2:8067/", Duration::from_secs(120));
    let limit = lan.limit();
    let disks =
        vec![lan.disk("wrong", Bus::VirtioBlk, 16, b"precious"), lan.disk("right", Bus::Nvme, 8, b"old")];
    let agent = lan.machine(lan.uefi(), Netboot::Any, "52:54:00:00:50:11", disks);
    // Nobody opened the window yet.
    pxe.wait_for("the credentials of agent-1 were not given", limit);
    assert!(pxe.says().contains("Installing agent-1: /dev/nvme0n1 (right)"), "{}", pxe.says());
    lan.ask("release agent-1");
    pxe.wait_for("Installed agent-1: on /dev/nvme0n1 (serial right)", limit);
    // The address came from the other server; this one only said what to boot.
    assert!(dhcp.says().contains("DHCPACK"), "{}", dhcp.says());
    // It reboots by itself, is left to its disk, and is the node that it was told to be.
    pxe.wait_for("agent-1 (UEFI amd64): it boots from its disk", limit);
    let (kept, server) = (lan.kept("52:54:00:00:50:11"), lan.kept("52:54:00:00:50:10"));
    assert!(
        kept["installed"].is_i64() && kept["released"].is_i64() && server["released"].is_null(),
        "{kept} {server}"
    );
    let receipts: Vec<PathBuf> =
        fs_err::read_dir(lan.path("state/receipts")).unwrap().map(|e| e.unwrap().path()).collect();
    let receipt: serde_json::Value = serde_json::from_slice(&fs_err::read(&receipts[0]).unwrap()).unwrap();
    let manifest = images::manifest("agent", "amd64");
    assert_eq!(receipt["image"]["sha256"], manifest.disk.sha256.to_string());
    assert_eq!((&receipt["device"]["serial"], &receipt["node"]), (&"right".into(), &"agent-1".into()));
    assert!(!pxe.says().contains("of-a-test"), "the token is in a log");
    agent
}

/// On a disk of its own, whose image is in memory: where /var is, and what a second boot must find on it.
fn state_of(agent: &Node, limit: Duration) -> String {
    let look = "until mountpoint -q /var; do sleep 1; done; lsblk -dno SERIAL \"/dev/$(lsblk -no PKNAME \"$(findmnt -no SOURCE /var)\")\"; findmnt -no FSTYPE /var; \
        cat /var/lib/rancher/node/password; cat /var/lib/kiln-marker || echo none";
    agent.door.succeed(look, limit).unwrap().text()
}

/// Whether none of the disks that no contract means was written by `node`, which is switched off for it.
#[track_caller]
fn kept_off(lan: &Lan, mut node: Node) {
    let folder = node.machine.keep();
    node.machine.power_cut();
    assert!(lan.untouched(&folder.join("disk0.qcow2")), "the wrong disk was written");
    fs_err::remove_dir_all(folder).unwrap();
}

#[test]
fn a_blank_machine_is_installed_by_pxe_on_the_disk_that_is_meant_and_left_to_it() {
    let _slot = Slot::wait();
    let Some(lan) = lan() else { return };
    let agent = installed(&lan);
    // Its firmware tries four more ways of the network before its disk, a minute each.
    if !only_in_full() {
        agent.machine.console.wait_for("agent-1 login:", lan.limit()).unwrap();
        agent.door.succeed("mountpoint /var", lan.limit()).unwrap();
    }
    kept_off(&lan, agent);
}

#[test]
fn blank_machines_boot_by_pxe_and_http_with_uefi_and_bios_and_join_a_cluster_as_they_were_told() {
    if only_in_full() {
        return;
    }
    let _slots = Slot::all();
    let Some(lan) = lan() else { return };
    let limit = lan.limit();
    let server = lan.server();
    // A server that is emulated takes seconds to check a token: who asks while it starts, or two at once, are not answered in time.
    server.door.wait_until_succeeds("kubectl get node server --no-headers | grep -w Ready", limit).unwrap();
    let first = installed(&lan);

    // Another server takes the place of the first, which is now the DHCP server, too.
    let args = "--diskless agent-2 --diskless agent-3 --window 2h --dhcp-range 192.168.50.200-192.168.50.220";
    let mut pxe = lan.host("pxe-2", "192.168.50.2", &lan.pxe(args));
    pxe.wait_for("http://192.168.50.2:8067/", Duration::from_secs(120));
    let joined = |pxe: &mut Host, name: &str| pxe.wait_for(&format!("Joined {name}: Ready, v1."), limit);
    joined(&mut pxe, "agent-1");
    // A stranger is there to be adopted, and gets no packet.
    let stranger = lan.machine(Boot::Bios, Netboot::Any, "52:54:00:00:50:99", Vec::new());
    pxe.wait_for("52:54:00:00:50:99", limit);
    drop(stranger);
    assert!(lan.ask("status").contains("52:54:00:00:50:99") && lan.kept("52:54:00:00:50:99").is_null());
    // A BIOS runs it from memory.
    let second = lan.machine(Boot::Bios, Netboot::Any, "52:54:00:00:50:12", Vec::new());
    pxe.wait_for("Booted agent-2", limit);
    assert!(pxe.says().contains("agent-2 (iPXE): diskless"), "{}", pxe.says());
    joined(&mut pxe, "agent-2");
    // A UEFI that knows HTTP Boot alone does so, too, and keeps its state on the disk that is meant; it has memory for the image alone.
    let disks =
        vec![lan.disk("beside", Bus::VirtioBlk, 8, b"precious"), lan.disk("state", Bus::VirtioBlk, 8, b"")];
    let third = lan.node(lan.uefi(), Netboot::Http, "52:54:00:00:50:13", disks, 2048, Vec::new());
    pxe.wait_for("Booted agent-3: /var is on /dev/vdb (serial state), made now", limit);
    assert!(pxe.says().contains("agent-3 (UEFI amd64, HTTP)"), "{}", pxe.says());

    // The API says of each that it is Ready, and each said so of itself.
    for name in ["agent-1", "agent-2", "agent-3"] {
        joined(&mut pxe, name);
        let ready = format!("kubectl get node {name} --no-headers | grep -w Ready");
        server.door.wait_until_succeeds(&ready, limit).unwrap();
    }
    assert!(lan.ask("status").contains("joined"), "{}", lan.ask("status"));
    for mac in ["52:54:00:00:50:11", "52:54:00:00:50:12", "52:54:00:00:50:13"] {
        assert!(lan.kept(mac)["joined"].is_i64(), "{}", lan.kept(mac));
    }
    assert_eq!(first.door.succeed("uname -n", limit).unwrap().text(), "agent-1");
    let log = fs_err::read_to_string(first.machine.console.log()).unwrap();
    assert!(!log.contains("of-a-test") && !pxe.says().contains("of-a-test"), "the token is in a log");
    let memory = second.door.succeed("findmnt -no SOURCE /var", limit).unwrap().text();
    assert!(memory.starts_with("/dev/loop0p"), "{memory}");
    drop((server, second));

    // Nothing was written to the disks that no contract means.
    kept_off(&lan, first);

    // The state survives a boot, and the disk is not made again.
    let before = state_of(&third, limit);
    assert!(before.starts_with("state\next4\n") && before.ends_with("\nnone"), "{before}");
    third.door.succeed("echo kept >/var/lib/kiln-marker; sync", limit).unwrap();
    lan.ask("release agent-3");
    third.door.reboot().unwrap();
    pxe.wait_for("Booted agent-3: /var is on /dev/vdb (serial state), as it was left", limit);
    assert_eq!(state_of(&third, limit), before.replace("\nnone", "\nkept"));
    kept_off(&lan, third);
}
