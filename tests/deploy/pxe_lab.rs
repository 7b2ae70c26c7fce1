//! A `kiln pxe` that runs on 127.0.0.1 with a small image, and the packets of clients.
#![allow(unreachable_pub, missing_docs, reason = "as in tests/common")]

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln::digest::Digest;
use kiln::image::disk::{self, Architecture};
use kiln::image::fat::{self, FileSystem, Source};
use kiln::image::verity::RootHash;
use kiln::tree::TreePath;
use serde_json::json;

use crate::common::run::{Run, command, program};

pub const CMDLINE: &str = "roothash=00ff ro";

/// A PE file with the sections of a UKI that matter here (Microsoft PE format): headers, a table, the bytes.
pub fn uki() -> Vec<u8> {
    let kernel: Vec<u8> = (0..300_000_u32).map(|i| (i * 7) as u8).collect();
    let sections: [(&str, &[u8]); 3] =
        [(".cmdline", CMDLINE.as_bytes()), (".linux", &kernel), (".initrd", b"an initrd")];
    let mut out = vec![0; 1024];
    out[..2].copy_from_slice(b"MZ");
    out[0x3C] = 0x40;
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x40, b"PE\0\0\x64\x86\x03\0");
    put(0x44 + 16, &240_u16.to_le_bytes());
    put(0x58, &0x20B_u16.to_le_bytes());
    put(0x58 + 32, &4096_u32.to_le_bytes());
    put(0x58 + 36, &512_u32.to_le_bytes());
    put(0x58 + 60, &1024_u32.to_le_bytes());
    let mut raw = 1024_u32;
    for (number, (name, bytes)) in sections.iter().enumerate() {
        let at = 0x58 + 240 + 40 * number;
        let size = bytes.len() as u32;
        put(at, name.as_bytes());
        for (field, value) in [(8, size), (12, 4096), (16, size.next_multiple_of(512)), (20, raw)] {
            put(at + field, &value.to_le_bytes());
        }
        raw += size.next_multiple_of(512);
    }
    for (_, bytes) in sections {
        out.extend(bytes);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out
}

/// `out/agent.raw` with its manifest: a real partition table, an ESP with [`uki`], 4 MiB of root.
fn image(dir: &Path) -> Vec<u8> {
    let out = dir.join("out");
    fs_err::create_dir(&out).unwrap();
    let part = |name: &str| dir.join(name);
    let files: BTreeMap<TreePath, Source> =
        [(TreePath::new("EFI/Linux/kiln_1+3.efi").unwrap(), Source::Bytes(uki()))].into();
    let fs = FileSystem { size: 40 << 20, sector: 512, serial: 1, label: "ESP".to_owned(), epoch: 0, files };
    let mut esp = fs_err::File::create(part("esp")).unwrap();
    fat::write(&fs, &mut esp).unwrap();
    let root: Vec<u8> = (0..4_u64 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs_err::write(part("root"), &root).unwrap();
    fs_err::write(part("verity"), vec![5; 64 << 10]).unwrap();
    let root_hash = RootHash::new(Digest::of(b"root"));
    let (guid, slots) = disk::node_slots(&disk::Node {
        architecture: Architecture::X86_64,
        root_hash,
        esp: part("esp"),
        verity: part("verity"),
        root: part("root"),
        verity_size: 0,
        root_size: 0,
    });
    let raw = fs_err::File::create(out.join("agent.raw")).unwrap();
    let written = disk::write(guid, 512, &slots, raw.file()).unwrap();
    let manifest = json!({
        "schema": 1, "kiln": "0.1.0", "profile": "agent", "role": "agent", "arch": "amd64", "version": "20260912-test",
        "epoch": 0, "root_hash": Digest::of(b"root"), "uki": Digest::of(&uki()), "cmdline": [], "kernel": "6.12", "modules": 0,
        "disk": { "file": "agent.raw", "size": written.table.size, "sha256": written.digest, "partitions": [] },
        "sizes": { "root": 0, "root_metadata": 0, "files": 0, "uki": 0, "initrd": 0 },
        "packages": {}, "boot": {}, "suites": {}, "units": [], "steps": {}, "notes": [],
    });
    fs_err::write(out.join("agent.json"), manifest.to_string()).unwrap();
    ["esp", "root", "verity"].into_iter().for_each(|name| fs_err::remove_file(part(name)).unwrap());
    root
}

/// The card of agent number `n`.
pub fn card(n: usize) -> [u8; 6] {
    [0xbc, 0x24, 0x11, 1, (n >> 8) as u8, n as u8]
}

pub fn text_of(card: [u8; 6]) -> String {
    card.map(|byte| format!("{byte:02x}")).join(":")
}

/// An address of 127.0.0.0/8 for agent number `n`.
pub fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 1, (n >> 8) as u8, n as u8)
}

/// kiln with a store of these tests: all that is in it is iPXE, which is fetched once.
fn kiln() -> Command {
    let mut command = command(program());
    command.env("KILN_STORE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("deploy-store"));
    command
}

/// A folder with a project, a cluster of so many agents, and an image.
pub struct Lab {
    dir: tempfile::TempDir,
    /// The bytes of the image's root.
    pub root: Vec<u8>,
    pub dhcp: u16,
    pub boot: u16,
    pub tftp: u16,
    pub http: u16,
}

/// A server that runs; it is ended when this is dropped.
pub struct Server<'a> {
    pub lab: &'a Lab,
    child: Child,
}

impl Lab {
    pub fn new(agents: usize) -> Self {
        let dir = tempfile::Builder::new().prefix("kiln-pxe-").tempdir().unwrap();
        let project = dir.path().join("project");
        Run::of(&kiln().arg("init").arg(&project).output().unwrap()).ok();
        let mut text = "schema = 1\nname = \"lab\"\n[network.lan]\nsubnet = \"192.168.50.0/24\"\ngateway = \"192.168.50.1\"\n\
            [node.server]\nrole = \"server\"\naddress = \"192.168.50.100\"\ndisk = { serial = \"s\" }\n[secret]\ntoken = { file = \"token\" }\n"
            .to_owned();
        for n in 0..agents {
            text.push_str(&format!(
                "[node.agent-{n}]\nrole = \"agent\"\nmac = \"{}\"\naddress = \"dhcp\"\ndisk = {{ serial = \"d{n}\" }}\n",
                text_of(card(n))
            ));
        }
        fs_err::write(project.join("cluster.toml"), text).unwrap();
        let token = project.join("token");
        fs_err::write(&token, "open-sesame-of-the-lab\n").unwrap();
        fs_err::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let root = image(dir.path());
        let free = || {
            // The clients' port is the next one.
            let udp = |port| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
            loop {
                let first = udp(0).unwrap();
                let port = first.local_addr().unwrap().port();
                if port < u16::MAX && udp(port + 1).is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok()
                {
                    return port;
                }
            }
        };
        let (dhcp, boot, tftp, http) = (free(), free(), free(), free());
        Lab { dir, root, dhcp, boot, tftp, http }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What was said on both streams so far.
    pub fn said(&self) -> String {
        let read = |name: &str| fs_err::read_to_string(self.path(name)).unwrap_or_default();
        format!("{}{}", read("stdout"), read("stderr"))
    }

    pub fn kiln(&self) -> Command {
        let mut command = kiln();
        command.arg("-C").arg(self.path("project"));
        command
    }

    /// `kiln pxe` with these arguments, on ports of this lab; the program and its place may be changed.
    pub fn command(&self, args: &[&str], address: &str, ports: bool) -> Command {
        let mut command = self.kiln();
        command.args(["pxe", "--address", address, "--json"]).arg("--out").arg(self.path("out"));
        if ports {
            for (option, port) in [
                ("--dhcp-port", self.dhcp),
                ("--boot-port", self.boot),
                ("--tftp-port", self.tftp),
                ("--http-port", self.http),
            ] {
                command.args([option, &port.to_string()]);
            }
        }
        command.args(args);
        command
    }

    pub fn serve(&self, args: &[&str]) -> Server<'_> {
        let stream = |name: &str| {
            let file = fs_err::OpenOptions::new().create(true).append(true).open(self.path(name)).unwrap();
            Stdio::from(file.into_file())
        };
        let child = self
            .command(&[args, &["--unproven", "a test"]].concat(), "127.0.0.1", true)
            .stdout(stream("stdout"))
            .stderr(stream("stderr"))
            .spawn()
            .unwrap();
        let mut server = Server { lab: self, child };
        // The port is open before anything is served; the first answer says that all is ready.
        let end = Instant::now() + Duration::from_secs(120);
        while TcpStream::connect(("127.0.0.1", self.http)).is_err() {
            assert!(server.child.try_wait().unwrap().is_none() && Instant::now() < end, "{}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(server.get("/").0, 404, "{}", self.said());
        server
    }
}

impl Server<'_> {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn status(&self, key: &str) -> String {
        let text = fs_err::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        text.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned()
    }

    /// An order such as `open`, to this server.
    pub fn order(&self, args: &[&str]) -> Run {
        let mut command = self.lab.kiln();
        command.arg("pxe").args(args).arg("--out").arg(self.lab.path("out"));
        Run::of(&command.output().unwrap())
    }

    /// Ends it by SIGTERM, and says its code.
    pub fn end(mut self) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < end, "it does not end: {}", self.lab.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn lives(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "the server ended: {}", self.lab.said());
    }

    /// A connection from `from`.
    pub fn connect(&self, from: Ipv4Addr) -> TcpStream {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        let server = SocketAddr::from(([127, 0, 0, 1], self.lab.http));
        socket.connect(&server.into()).unwrap();
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// A request on a connection of its own: status, head and body.
    pub fn ask(&self, from: Ipv4Addr, line: &str, headers: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = self.connect(from);
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        write!(stream, "{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{length}{headers}\r\n").unwrap();
        stream.write_all(body).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        split(&bytes)
    }

    pub fn get(&self, path: &str) -> (u16, Vec<u8>) {
        let (status, _, body) = self.ask(Ipv4Addr::LOCALHOST, &format!("GET {path}"), "", b"");
        (status, body)
    }

    pub fn udp(&self, from: Ipv4Addr, port: u16) -> UdpSocket {
        let socket = UdpSocket::bind((from, port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket
    }

    /// Fetches a file by TFTP as firmware does; lost packets are waited for.
    pub fn tftp(&self, from: Ipv4Addr, name: &str, options: &str) -> Result<Vec<u8>, String> {
        let socket = self.udp(from, 0);
        let request = [b"\0\x01", name.as_bytes(), b"\0octet\0", options.as_bytes()].concat();
        let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.lab.tftp);
        socket.send_to(&request, server).unwrap();
        let (mut file, mut block, mut window) = (Vec::new(), 512, 1);
        let (mut buffer, mut last, mut since) = (vec![0; 66_000], 0_u16, 0);
        loop {
            let (length, peer) = match socket.recv_from(&mut buffer) {
                Ok(got) => got,
                // With a time-out it is not begun again by itself (signal(7)), as when the machine is frozen for a moment.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.to_string()),
            };
            let bytes = &buffer[..length];
            let number = u16::from_be_bytes([bytes[2], bytes[3]]);
            match bytes[1] {
                3 if number == last.wrapping_add(1) => {
                    file.extend_from_slice(&bytes[4..]);
                    last = number;
                    since += 1;
                    let end = length - 4 < block;
                    if end || since == window {
                        since = 0;
                        socket.send_to(&[&[0, 4][..], &number.to_be_bytes()].concat(), peer).unwrap();
                    }
                    if end {
                        return Ok(file);
                    }
                }
                3 => {
                    since = 0;
                    socket.send_to(&[&[0, 4][..], &last.to_be_bytes()].concat(), peer).unwrap();
                }
                5 => return Err(format!("{number} {}", String::from_utf8_lossy(&bytes[4..length - 1]))),
                6 => {
                    let fields: Vec<&str> = std::str::from_utf8(&bytes[2..]).unwrap().split('\0').collect();
                    let value = |name| {
                        fields.iter().position(|f| *f == name).map(|at| fields[at + 1].parse().unwrap())
                    };
                    block = value("blksize").unwrap_or(512);
                    window = value("windowsize").unwrap_or(1);
                    socket.send_to(&[0, 4, 0, 0], peer).unwrap();
                }
                other => return Err(format!("packet {other}")),
            }
        }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub fn split(bytes: &[u8]) -> (u16, String, Vec<u8>) {
    let at = bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(bytes)));
    let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, bytes[at + 4..].to_vec())
}

/// A DHCP request; `at` is the address that it says it has.
pub fn dhcp(message: u8, card: [u8; 6], at: Ipv4Addr, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut out = vec![0; 240];
    out[..4].copy_from_slice(&[1, 1, 6, 0]);
    out[4..8].copy_from_slice(&card[2..]);
    out[12..16].copy_from_slice(&at.octets());
    out[28..34].copy_from_slice(&card);
    out[236..240].copy_from_slice(&[99, 130, 83, 99]);
    out.extend([53, 1, message]);
    for (code, bytes) in options {
        out.extend([*code, bytes.len() as u8]);
        out.extend(*bytes);
    }
    out.push(255);
    out
}

/// The boot file in a server's packet.
pub fn boot_file(packet: &[u8]) -> String {
    String::from_utf8(packet[108..236].iter().copied().take_while(|b| *b != 0).collect()).unwrap()
}

/// The part of a file.
pub fn part(path: &Path, offset: u64, length: usize) -> Vec<u8> {
    let mut file = fs_err::File::open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes).unwrap();
    bytes
}

/// A program of this machine, if it has it.
pub fn has(name: &str) -> bool {
    let mut which = command("sh");
    which
        .args(["-c", &format!("command -v {name}")])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

pub fn executable() -> Vec<u8> {
    fs_err::read(program()).unwrap()
}
