//! `kiln pxe` on 127.0.0.1: the whole way of a machine, packets that nobody should send, and a thousand machines at once.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kiln::digest::Digest;

use crate::common::run::{Run, command, is_root, program, skipped};
use crate::pxe_lab::{
    CMDLINE, Lab, Server, address, boot_file, card, dhcp, executable, has, part, split, text_of, uki,
};

const DISCOVER: u8 = 1;
const UEFI: [(u8, &[u8]); 3] =
    [(60, b"PXEClient:Arch:00007:UNDI:003000"), (93, &[0, 7]), (55, &[1, 3, 66, 67])];

/// What a server answers to a packet of agent `n`, within a second.
fn ask_dhcp(server: &Server<'_>, n: usize, packet: &[u8], wait: u64) -> Option<Vec<u8>> {
    let socket = server.udp(address(n), server.lab.dhcp + 1);
    socket.set_read_timeout(Some(Duration::from_secs(wait))).unwrap();
    socket.send_to(packet, ("127.0.0.1", server.lab.dhcp)).unwrap();
    let mut buffer = [0; 2000];
    let length = socket.recv(&mut buffer).ok()?;
    Some(buffer[..length].to_vec())
}

fn discover(n: usize, options: &[(u8, &[u8])]) -> Vec<u8> {
    dhcp(DISCOVER, card(n), address(n), options)
}

fn event(server: &Server<'_>, n: usize, body: &str) -> u16 {
    let line = format!("POST /v1/node/{}/event", text_of(card(n)));
    server.ask(address(n), &line, "", body.as_bytes()).0
}

#[test]
fn a_machine_goes_the_whole_way_and_is_installed_once() {
    let lab = Lab::new(1);
    let server = lab.serve(&["--mode", "install"]);
    let mac = text_of(card(0));
    let uefi = discover(0, &UEFI);

    let offer = ask_dhcp(&server, 0, &uefi, 20).unwrap();
    assert_eq!(boot_file(&offer), "snponly.efi");
    // As options too, with the NUL without which old firmware reads on.
    for option in [&b"\x43\x0csnponly.efi\0"[..], b"\x42\x0a127.0.0.1\0"] {
        assert!(offer.windows(option.len()).any(|bytes| bytes == option), "{option:?} in {offer:?}");
    }
    let ipxe = server
        .tftp(address(0), "snponly.efi", "blksize\x001400\x00windowsize\x004\x00tsize\x000\x00")
        .unwrap();
    assert!(ipxe.starts_with(b"MZ") && ipxe.len() > 100_000, "{} bytes", ipxe.len());
    assert_eq!(server.get("/ipxe/snponly.efi").1, ipxe);
    let offer = ask_dhcp(&server, 0, &discover(0, &[UEFI[0], UEFI[1], (77, b"iPXE")]), 20).unwrap();
    let script = format!("http://127.0.0.1:{}/boot/{mac}/script.ipxe", lab.http);
    assert_eq!(boot_file(&offer), script);

    let (_, text) = server.get(&format!("/boot/{mac}/script.ipxe"));
    let text = String::from_utf8(text).unwrap();
    let words = format!("{CMDLINE} kiln.netboot=http://127.0.0.1:{}/ kiln.net=", lab.http);
    assert!(
        text.starts_with("#!ipxe\n") && text.contains(&words) && text.contains("kiln-install.target"),
        "{text}"
    );
    assert!(server.get(&format!("/boot/{mac}/uki.efi")).1 == uki(), "the UKI is that of the ESP");
    assert_eq!(server.tftp(address(0), &format!("{mac}/uki.efi"), "").unwrap().len(), uki().len());
    assert_eq!(server.get(&format!("/boot/{mac}/initrd")).1, b"an initrd");

    let (_, plan) = server.get(&format!("/v1/node/{mac}/plan"));
    let plan: serde_json::Value = serde_json::from_slice(&plan).unwrap();
    assert_eq!((plan["mode"].as_str(), plan["node"].as_str()), (Some("install"), Some("agent-0")));
    assert_eq!(plan["uki_sha256"], Digest::of(&uki()).to_string());
    assert_eq!(plan["contract"]["serial"], "d0");
    let raw = fs_err::read(lab.path("out/agent.raw")).unwrap();
    assert_eq!(plan["image"]["sha256"], Digest::of(&raw).to_string());
    assert!(server.get(plan["image"]["path"].as_str().unwrap()).1 == raw);
    assert!(server.get(plan["root"]["path"].as_str().unwrap()).1 == lab.root);
    let (status, head, bytes) =
        server.ask(address(0), &format!("GET /v1/node/{mac}/root.img"), "Range: bytes=-100\r\n", b"");
    assert!(status == 206 && bytes == lab.root[lab.root.len() - 100..], "{head}");
    assert!(server.get("/kiln").1 == executable());

    // Another judge reads the same.
    if has("curl") {
        let mut curl = command("curl");
        curl.args(["-fsS", "-m", "20", "-r", "1000000-1999999", "--output", "-"]);
        let output =
            curl.arg(format!("http://127.0.0.1:{}/v1/node/{mac}/image.raw", lab.http)).output().unwrap();
        assert!(
            output.status.success()
                && output.stdout == part(&lab.path("out/agent.raw"), 1_000_000, 1_000_000)
        );
    } else {
        skipped("there is no curl here to judge ranges");
    }

    assert_eq!(event(&server, 0, r#"{"event":"installed","detail":"done","receipt":{"device":"d0"}}"#), 204);
    assert!(ask_dhcp(&server, 0, &uefi, 1).is_none(), "an installed node boots from its disk");
    assert!(server.tftp(address(0), &format!("{mac}/uki.efi"), "").unwrap_err().starts_with('1'));
    assert_eq!(server.end(), 0, "{}", lab.said());
    assert!(!lab.path("out/pxe/control").exists());
    assert_eq!(fs_err::read_dir(lab.path("out/pxe/receipts")).unwrap().count(), 1);

    // The next server knows it.
    let server = lab.serve(&["--mode", "install"]);
    assert!(ask_dhcp(&server, 0, &uefi, 1).is_none());
    assert!(
        String::from_utf8(server.get(&format!("/v1/node/{mac}/plan.env")).1)
            .unwrap()
            .starts_with("MODE='local'")
    );
    // It boots from its disk, and says so when it has joined; asking on its way takes nothing back.
    assert_eq!(event(&server, 0, r#"{"event":"joined","detail":"Ready, v1.33.3+k3s1"}"#), 204);
    assert!(ask_dhcp(&server, 0, &uefi, 1).is_none());
    let status = server.order(&["status"]).ok().stdout;
    assert!(status.contains("local     joined"), "{status}");
    assert!(lab.said().contains("agent-0: Ready, v1.33.3+k3s1"), "{}", lab.said());
    server.order(&["reinstall", "agent-0"]).ok();
    assert_eq!(boot_file(&ask_dhcp(&server, 0, &uefi, 20).unwrap()), "snponly.efi");
    let status = server.order(&["status"]).ok().stdout;
    assert!(status.contains("agent-0") && status.contains("install"), "{status}");
}

#[test]
fn credentials_are_given_once_while_a_person_lets_them_be_and_are_in_no_log() {
    let lab = Lab::new(2);
    let server = lab.serve(&["--mode", "diskless"]);
    let ask =
        |n: usize| server.ask(address(n), &format!("GET /v1/node/{}/credentials", text_of(card(n))), "", b"");
    let (status, _, body) = ask(0);
    assert!(status == 403 && String::from_utf8(body).unwrap().contains("kiln pxe release agent-0"));
    server.order(&["open", "--for", "5m"]).ok();
    let (status, head, body) = ask(0);
    assert!(status == 200 && head.contains("Cache-Control: no-store"), "{head}");
    let mut archive = tar::Archive::new(&body[..]);
    let names: Vec<String> =
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
    assert!(
        names.contains(&"k3s.token".to_owned()) && names.contains(&"system.hostname".to_owned()),
        "{names:?}"
    );
    assert!(body.windows(22).any(|w| w == b"open-sesame-of-the-lab"));
    assert_eq!(ask(0).0, 403);
    server.order(&["close"]).ok();
    assert_eq!(ask(1).0, 403);
    server.order(&["release", "agent-1"]).ok();
    assert_eq!((ask(1).0, ask(1).0), (200, 403));
    server.order(&["release", "nobody"]).fails(1, &["nobody", "agent-0"]);
    // A machine that is known at another address.
    let request = dhcp(3, card(0), address(0), &[(60, b"PXEClient"), (93, &[0, 7])]);
    ask_dhcp(&server, 0, &request, 1);
    server.order(&["release", "agent-0"]).ok();
    let line = format!("GET /v1/node/{}/credentials", text_of(card(0)));
    assert_eq!(server.ask(address(9), &line, "", b"").0, 403);
    let told = format!("POST /v1/node/{}/event", text_of(card(0)));
    assert_eq!(server.ask(address(9), &told, "", br#"{"event":"joined"}"#).0, 403);
    assert_eq!(ask(0).0, 200);
    assert_eq!(server.end(), 0);
    let said = lab.said();
    assert!(
        said.contains("\"released\"") && said.contains("\"withheld\"") && !said.contains("sesame"),
        "{said}"
    );
    let state = fs_err::read_to_string(lab.path("out/pxe/state.json")).unwrap();
    assert!(!state.contains("sesame"));
    lab.kiln()
        .args(["pxe", "open", "--out"])
        .arg(lab.path("out"))
        .output()
        .map(|o| Run::of(&o))
        .unwrap()
        .fails(1, &["no `kiln pxe` can be asked"]);
}

#[test]
fn packets_that_nobody_should_send_get_no_answer_and_do_no_harm() {
    let lab = Lab::new(1);
    let mut server = lab.serve(&["--mode", "diskless"]);
    let socket = server.udp(address(0), lab.dhcp + 1);
    let good = discover(0, &UEFI);
    let with = |at: usize, bytes: &[u8]| {
        let mut packet = good.clone();
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        packet
    };
    let mut hostile = vec![
        Vec::new(),
        vec![0; 239],
        vec![255; 1500],
        vec![1; 4097],
        with(0, &[2]),
        with(1, &[32]),
        with(2, &[255]),
        with(2, &[0]),
        with(3, &[255]),
        with(236, &[0; 4]),
        with(24, &[127, 0, 0, 1]),
        with(24, &[255; 4]),
        with(12, &[224, 0, 0, 1]),
        with(28, &[255; 6]),
        good[..good.len() - 10].to_vec(),
        discover(0, &[(52, &[3]), (60, b"PXEClient")])[..250].to_vec(),
        [&good[..240], &[60, 255, 1]].concat(),
        [&good[..240], &[53; 60]].concat(),
        [&good[..240], &[53, 1, 200, 255]].concat(),
        [&good[..240], &[0; 3000]].concat(),
        [&good[..240], &[7, 0].repeat(1500), &[255]].concat(),
        dhcp(2, card(0), address(0), &UEFI),
        dhcp(5, card(0), address(0), &UEFI),
    ];
    let mut overload = discover(0, &[(52, &[3])]);
    overload[44..46].copy_from_slice(&[60, 255]);
    hostile.push(overload);
    for packet in &hostile {
        for port in [lab.dhcp, lab.boot] {
            socket.send_to(packet, ("127.0.0.1", port)).unwrap();
        }
    }
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut buffer = [0; 2000];
    let answered = socket.recv(&mut buffer);
    assert!(answered.is_err(), "an answer to nonsense: {:?}", &buffer[..answered.unwrap()]);
    drop(socket);
    server.lives();
    let stranger = dhcp(DISCOVER, [2, 0, 0, 0, 0, 9], address(0), &UEFI);
    assert!(ask_dhcp(&server, 0, &stranger, 1).is_none());
    assert_eq!(boot_file(&ask_dhcp(&server, 0, &good, 20).unwrap()), "snponly.efi");
    // Who asks without end is answered for a while.
    let socket = server.udp(address(0), lab.dhcp + 1);
    for _ in 0..200 {
        socket.send_to(&good, ("127.0.0.1", lab.dhcp)).unwrap();
    }
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let answers = std::iter::from_fn(|| socket.recv(&mut buffer).ok()).count();
    assert!((1..=30).contains(&answers), "{answers} answers");
    let status = server.order(&["status"]).ok().stdout;
    assert!(status.contains("unknown 02:00:00:00:00:09: UEFI amd64, PXEClient:Arch:00007"), "{status}");
    assert!(status.contains("mac = \"02:00:00:00:00:09\""), "{status}");
}

#[test]
fn tftp_has_its_names_and_nothing_else() {
    let lab = Lab::new(1);
    let mut server = lab.serve(&["--mode", "diskless"]);
    let refused = |name: &str, options: &str| server.tftp(address(0), name, options).unwrap_err();
    for name in [
        "../../etc/passwd",
        "/etc/passwd",
        "/snponly.efi",
        "snponly.efi/",
        "",
        "..",
        "state.json",
        "\\snponly.efi",
    ] {
        assert_eq!(refused(name, ""), "1 there is no such file here", "{name}");
    }
    for size in ["0", "1", "7", "65465", "65535", "-1", "x", "99999999999999999999"] {
        assert!(refused("snponly.efi", &format!("blksize\0{size}\0")).starts_with("8 blksize"), "{size}");
    }
    let whole = server.tftp(address(0), "undionly.kpxe", "").unwrap();
    for size in [8, 9, 512, 1468, 65_464] {
        let got = server.tftp(address(0), "undionly.kpxe", &format!("blksize\0{size}\0windowsize\0{}\0", 3));
        assert!(got.unwrap() == whole, "{size}");
    }
    let raw = |bytes: &[u8]| {
        let socket = server.udp(address(0), 0);
        socket.send_to(bytes, ("127.0.0.1", lab.tftp)).unwrap();
        let mut buffer = [0; 600];
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        socket.recv(&mut buffer).map(|length| buffer[..length].to_vec()).ok()
    };
    assert_eq!(raw(b"\0\x02snponly.efi\0octet\0").unwrap()[..4], [0, 5, 0, 2], "nothing is written");
    assert_eq!(raw(b"\0\x01snponly.efi\0netascii\0").unwrap()[..4], [0, 5, 0, 0]);
    assert_eq!(raw(b"\0\x01snponly.efi\0octet").unwrap()[..4], [0, 5, 0, 4]);
    // Firmware that reads option 67 past its end asks for such names; they are not there, and nothing is wrong with the request.
    for name in [&b"snponly.efi\xff"[..], b"snponly.efi\xff\xff\xff", b"\xe4.efi", b"\xff"] {
        let request = [b"\0\x01", name, b"\0octet\0tsize\x000\0"].concat();
        assert_eq!(raw(&request).unwrap()[..4], [0, 5, 0, 1], "{name:?}");
    }
    assert_eq!(raw(b"\0\x01snponly.efi\0OCTET\0TSIZE\x000\0\0\0").unwrap()[..2], [0, 6], "zeros in the end");
    for noise in [&b""[..], b"\0", b"\0\x03\0\x01data", b"\0\x04\0\x01", b"\0\x05\0\0\0", b"\xff\xff\xff"] {
        assert_eq!(raw(noise), None, "{noise:?}");
    }
    // A client that never answers holds no more than its share.
    let silent = server.udp(address(5), 0);
    let sockets: Vec<UdpSocket> = (0..6).map(|_| server.udp(address(5), 0)).collect();
    for socket in &sockets {
        socket.send_to(b"\0\x01snponly.efi\0octet\0", ("127.0.0.1", lab.tftp)).unwrap();
    }
    let mut buffer = [0; 600];
    let kinds: Vec<u8> = sockets
        .iter()
        .map(|socket| {
            socket.recv(&mut buffer).unwrap();
            buffer[1]
        })
        .collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == 3).count(), 4, "{kinds:?}");
    drop(silent);
    server.lives();
    if has("curl") {
        let url = format!("tftp://127.0.0.1:{}/undionly.kpxe", lab.tftp);
        let output = command("curl").args(["-fsS", "-m", "30", "--output", "-", &url]).output().unwrap();
        assert!(output.stdout == whole, "{}", String::from_utf8_lossy(&output.stderr));
    } else {
        skipped("there is no curl here to judge TFTP");
    }
}

#[test]
fn http_answers_what_is_well_formed_and_ends_what_is_not() {
    let lab = Lab::new(1);
    let mut server = lab.serve(&["--mode", "diskless"]);
    let mac = text_of(card(0));
    let raw = |from: Ipv4Addr, bytes: &[u8]| {
        let mut stream = server.connect(from);
        // The server may have closed before it read all of it.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    };
    let me = address(0);
    for path in
        ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/boot/../kiln", "/state.json"]
    {
        let answer =
            raw(me, format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes());
        assert_eq!(split(&answer).0, 404, "{path}");
    }
    let huge = [b"GET / HTTP/1.1\r\nHost: a\r\nX: ".to_vec(), vec![b'a'; 100_000]].concat();
    let answer = raw(me, &huge);
    assert!(answer.is_empty() || split(&answer).0 == 431);
    assert_eq!(split(&raw(me, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n")).0, 400, "TLS is no request");
    assert_eq!(
        split(&raw(me, b"POST /kiln HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")).0,
        501
    );
    let event = format!("POST /v1/node/{mac}/event HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n");
    assert_eq!(split(&raw(me, event.as_bytes())).0, 413);
    let range = |text: &str| {
        server.ask(me, &format!("GET /v1/node/{mac}/root.img"), &format!("Range: bytes={text}\r\n"), b"").0
    };
    assert_eq!(["0-0", "5-3", "99999999-", "-0", "0-1,5-6", "x"].map(range), [206, 200, 416, 416, 200, 200]);

    // Three requests in one piece, the client's half closed behind them: three answers in their order.
    let mut stream = server.connect(me);
    let three = format!(
        "GET /boot/{mac}/initrd HTTP/1.1\r\nHost: a\r\n\r\nHEAD /kiln HTTP/1.1\r\nHost: a\r\n\r\nGET /boot/{mac}/initrd HTTP/1.1\r\nHost: a\r\n\r\n"
    );
    stream.write_all(three.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert_eq!(
        (text.matches("HTTP/1.1 200 OK").count(), text.matches("an initrd").count()),
        (3, 2),
        "{text}"
    );
    assert!(text.contains(&format!("Content-Length: {}\r\n", executable().len())), "HEAD tells the length");

    // One address has its share of connections, and others are served meanwhile.
    let held: Vec<_> = (0..32).map(|_| server.connect(address(7))).collect();
    std::thread::sleep(Duration::from_millis(300));
    let answer = raw(address(7), b"");
    assert_eq!(split(&answer).0, 429);
    assert_eq!(server.get("/ipxe/undionly.kpxe").0, 200);
    drop(held);

    // Who sends a byte now and then is not waited for, and neither is who does not read.
    let mut drip = server.connect(address(8));
    let mut lazy = server.connect(address(9));
    let begun = Instant::now();
    write!(lazy, "GET /v1/node/{mac}/image.raw HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    drip.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let closed = loop {
        let sent = drip.write_all(b"G");
        let mut byte = [0];
        match drip.read(&mut byte) {
            Ok(0) => break true,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && sent.is_ok() => {}
            _ => break true,
        }
        if begun.elapsed() > Duration::from_secs(20) {
            break false;
        }
    };
    assert!(closed && begun.elapsed() >= Duration::from_secs(9), "{:?}", begun.elapsed());
    // The buffers of the kernel fill at first, which is progress; nothing comes after it.
    let end = Instant::now() + Duration::from_secs(80);
    while !lab.said().contains("took too little") {
        assert!(Instant::now() < end, "who does not read is still served: {}", lab.said());
        std::thread::sleep(Duration::from_millis(500));
    }
    server.lives();
}

#[test]
fn a_thousand_machines_at_once_are_served_without_a_failure() {
    const MACHINES: usize = 1000;
    const PIECE: usize = 1 << 20;
    let lab = Lab::new(MACHINES);
    let mut server = lab.serve(&["--mode", "diskless"]);
    let ipxe = server.tftp(address(0), "undionly.kpxe", "blksize\x001468\x00").unwrap();
    let raw = part(&lab.path("out/agent.raw"), 41 << 20, PIECE);
    let before = server.status("VmHWM:");
    let begun = Instant::now();
    let bytes = AtomicU64::new(0);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let (server, ipxe, raw, bytes) = (&server, &ipxe, &raw, &bytes);
        let machine = move |n: usize| -> Result<(), String> {
            let bios: [(u8, &[u8]); 2] = [(60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &[0, 0])];
            // Firmware asks again until it hears something.
            let offer =
                (0..10).find_map(|_| ask_dhcp(server, n, &discover(n, &bios), 4)).ok_or("no offer")?;
            if boot_file(&offer) != "undionly.kpxe" {
                return Err(format!("offered {}", boot_file(&offer)));
            }
            let got = server.tftp(address(n), "undionly.kpxe", "blksize\x001468\x00windowsize\x004\x00")?;
            if got != *ipxe {
                return Err("another iPXE".to_owned());
            }
            let mac = text_of(card(n));
            let at = 41 << 20;
            let range = format!("Range: bytes={at}-{}\r\n", at + PIECE - 1);
            let (status, _, body) =
                server.ask(address(n), &format!("GET /v1/node/{mac}/image.raw"), &range, b"");
            if status != 206 || body != *raw {
                return Err(format!("status {status}, {} bytes", body.len()));
            }
            bytes.fetch_add((got.len() + body.len()) as u64, Ordering::Relaxed);
            match event(server, n, r#"{"event":"booted"}"#) {
                204 => Ok(()),
                status => Err(format!("event: {status}")),
            }
        };
        let spawn = |n| {
            std::thread::Builder::new().stack_size(512 << 10).spawn_scoped(scope, move || machine(n)).unwrap()
        };
        let threads: Vec<_> = (0..MACHINES).map(spawn).collect();
        let ends = threads.into_iter().enumerate().map(|(n, thread)| (n, thread.join()));
        ends.filter_map(|(n, end)| match end {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(format!("{n}: {why}")),
            Err(_) => Some(format!("{n}: panicked")),
        })
        .collect()
    });
    let (time, bytes) = (begun.elapsed().as_secs_f64(), bytes.into_inner());
    server.lives();
    let after = server.status("VmHWM:");
    tell(&format!(
        "{MACHINES} machines in {time:.1} s: {:.0} MB, {:.0} MB/s, {:.0} machines/s; peak memory of the server {before} before, {after} after",
        bytes as f64 / 1e6,
        bytes as f64 / 1e6 / time,
        MACHINES as f64 / time
    ));
    assert!(failures.is_empty(), "{} failed: {:?}", failures.len(), &failures[..failures.len().min(10)]);
    let peak: u64 = after.split(' ').next().unwrap().parse().unwrap();
    assert!(peak < 256 << 10, "{peak} KiB");
    assert_eq!(server.end(), 0);
    let state = fs_err::read_to_string(lab.path("out/pxe/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let booted =
        state["nodes"].as_object().unwrap().values().filter(|node| !node["booted"].is_null()).count();
    assert_eq!(booted, MACHINES);
}

#[expect(clippy::print_stderr, reason = "the figures are for the person who runs the tests")]
fn tell(text: &str) {
    eprintln!("{text}");
}

#[test]
fn root_is_given_up_once_the_ports_are_open() {
    if !is_root() {
        skipped("only root has something to give up");
        return;
    }
    let lab = Lab::new(1);
    let server = lab.serve(&["--mode", "diskless", "--window", "5m"]);
    assert_eq!(server.status("Uid:"), "65534\t65534\t65534\t65534");
    assert_eq!(server.status("Gid:"), "65534\t65534\t65534\t65534");
    assert_eq!(server.status("Groups:"), "");
    for sets in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(server.status(sets), "0000000000000000", "{sets}");
    }
    assert_eq!(server.status("NoNewPrivs:"), "1");
    // The folders above the state are closed to that user, and what happens is kept all the same.
    assert_eq!(event(&server, 0, r#"{"event":"booted","receipt":{}}"#), 204);
    assert_eq!(server.end(), 0, "{}", lab.said());
    assert!(lab.path("out/pxe/state.json").exists());
}

#[test]
fn what_cannot_be_served_is_said_before_anything_is() {
    let lab = Lab::new(1);
    let fails = |args: &[&str], address: &str, ports: bool, words: &[&str]| {
        let run = Run::of(&lab.command(args, address, ports).output().unwrap());
        assert_eq!(run.code, 1, "{}", run.text());
        words.iter().for_each(|word| assert!(run.stderr.contains(word), "`{word}`: {}", run.text()));
    };
    let help = Run::of(&lab.kiln().args(["pxe", "--help"]).output().unwrap()).ok().stdout;
    assert!(help.contains("Examples:") && help.contains("kiln pxe release agent-1"), "{help}");
    fails(&[], "127.0.0.1", true, &["nothing says what the nodes are to do", "--mode install"]);
    fails(&["--install", "agent-9"], "127.0.0.1", true, &["agent-9"]);
    fails(&["--install", "server"], "127.0.0.1", true, &["has no `mac`"]);
    fails(&["--install", "agent-0", "--diskless", "agent-0"], "127.0.0.1", true, &["at once"]);
    fails(
        &["--mode", "install"],
        "192.0.2.1",
        true,
        &["192.0.2.1 is no address of this machine", "ip -4 address"],
    );
    fails(
        &["--mode", "install", "--dhcp-range", "10.0.0.1-10.0.0.9"],
        "127.0.0.1",
        true,
        &["is none in 127.0.0.0/8"],
    );
    let taken = UdpSocket::bind(("0.0.0.0", lab.tftp)).unwrap();
    fails(&["--mode", "install"], "127.0.0.1", true, &["another program has the port", "ss -lnp"]);
    drop(taken);
    let server = lab.serve(&["--mode", "install"]);
    fails(&["--mode", "install"], "127.0.0.1", true, &["another program has the port"]);
    drop(server);
    let run = Run::of(&lab.command(&["--mode", "install"], "127.0.0.1", true).output().unwrap());
    assert!(run.code == 7 && run.text().contains("is not proven"), "{}", run.text());
    fs_err::write(lab.path("out/agent.raw"), b"another image").unwrap();
    fails(
        &["--mode", "install"],
        "127.0.0.1",
        true,
        &["not those of its manifest", "kiln build --profile agent"],
    );
}

/// Two network namespaces with a cable between them; they go when this is dropped.
struct Cable(String);

impl Cable {
    fn new() -> Option<Self> {
        let cable = Cable(format!("kilnpxe{}", std::process::id()));
        let [server, client] = cable.ends();
        let steps = [
            format!("netns add {server}"),
            format!("netns add {client}"),
            format!("link add v0 netns {server} type veth peer name v0 netns {client}"),
            format!("-n {client} link set v0 address {}", text_of(card(0))),
            format!("-n {server} address add 192.168.50.2/24 dev v0"),
            format!("-n {server} link set v0 up"),
            format!("-n {server} link set lo up"),
            format!("-n {client} link set v0 up"),
        ];
        for step in steps {
            let output = command("ip").args(step.split(' ')).output().ok()?;
            if !output.status.success() {
                skipped(&format!("`ip {step}`: {}", String::from_utf8_lossy(&output.stderr)));
                return None;
            }
        }
        Some(cable)
    }

    fn ends(&self) -> [String; 2] {
        [format!("{}s", self.0), format!("{}c", self.0)]
    }

    fn inside(&self, end: usize) -> Command {
        let mut command = command("ip");
        command.args(["netns", "exec", &self.ends()[end]]);
        command
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for end in self.ends() {
            command("ip").args(["netns", "delete", &end]).output().ok();
        }
    }
}

#[test]
fn another_dhcp_client_gets_its_lease_by_broadcast() {
    if !is_root() || !has("ip") || !has("busybox") {
        skipped("it takes root, ip and busybox to lay a cable between two networks");
        return;
    }
    let Some(cable) = Cable::new() else { return };
    let lab = Lab::new(1);
    // The same command line, inside.
    let plain = lab.command(
        &["--mode", "diskless", "--dhcp-range", "192.168.50.50-192.168.50.60"],
        "192.168.50.2",
        false,
    );
    let mut inside = cable.inside(0);
    inside.arg(program()).args(plain.get_args());
    for (key, value) in plain.get_envs() {
        inside.env(key, value.unwrap_or_default());
    }
    let file = fs_err::File::create(lab.path("stderr")).unwrap().into_file();
    let mut server = inside.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();

    let script = lab.path("script");
    fs_err::write(&script, "#!/bin/sh\nenv | sed \"s/^/$1 /\"\n").unwrap();
    fs_err::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut udhcpc = cable.inside(1);
    udhcpc.args([
        "busybox",
        "udhcpc",
        "-f",
        "-q",
        "-n",
        "-i",
        "v0",
        "-t",
        "30",
        "-T",
        "1",
        "-V",
        "kiln-node",
        "-O",
        "bootfile",
        "-s",
    ]);
    let output = udhcpc.arg(&script).output().unwrap();
    let said = format!(
        "{}{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        lab.said()
    );
    let pid = rustix::process::Pid::from_child(&server);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let code = server.wait().unwrap().code();
    for line in [
        "bound ip=192.168.50.50",
        "bound subnet=255.255.255.0",
        "bound router=192.168.50.1",
        "bound serverid=192.168.50.2",
        "http://192.168.50.2:8067/",
    ] {
        assert!(said.contains(line), "`{line}` is missing: {said}");
    }
    assert_eq!(code, Some(0), "{said}");
}
