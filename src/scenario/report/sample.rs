//! Made-up runs for the tests: one with all kinds of things in it, one that is hostile, one that is large.

use crate::scenario::result::{
    Accelerator, Boot, BootEnd, ConsoleExcerpt, ConsoleLine, Disk, Evidence, Fault, Finding, Host, Image,
    Incident, Invariant, Link, Nic, Node, NodeState, Outcome, Run, Scenario, Severity, StateChange, Step,
    Stuck, Timeline, Traffic, Unit,
};

fn lines(from: u64, texts: &[&str]) -> Vec<ConsoleLine> {
    let line =
        |(n, text): (usize, &&str)| ConsoleLine { at_ms: from + n as u64 * 317, text: (*text).to_owned() };
    texts.iter().enumerate().map(line).collect()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// What Debian's systemd starts on a node, with times as seen under TCG, in milliseconds since the kernel's start.
const UNITS: [(&str, u64, u64); 26] = [
    ("systemd-journald.service", 14_210, 15_730),
    ("systemd-udev-trigger.service", 14_260, 15_120),
    ("systemd-modules-load.service", 14_270, 14_890),
    ("systemd-remount-fs.service", 14_300, 14_620),
    ("kmod-static-nodes.service", 14_250, 14_410),
    ("systemd-sysctl.service", 14_900, 15_160),
    ("systemd-udevd.service", 15_150, 16_480),
    ("systemd-repart.service", 15_730, 17_310),
    ("dev-disk-by\\x2dpartlabel-var.device", 14_200, 18_020),
    ("systemd-makefs@dev-disk-by\\x2dpartlabel-var.service", 18_030, 21_870),
    ("var.mount", 21_880, 22_210),
    ("systemd-growfs@var.service", 22_220, 22_640),
    ("systemd-random-seed.service", 22_230, 22_360),
    ("systemd-tmpfiles-setup.service", 22_650, 24_080),
    ("systemd-journal-flush.service", 22_250, 23_190),
    ("systemd-resolved.service", 24_100, 26_940),
    ("systemd-timesyncd.service", 24_110, 25_680),
    ("dbus.service", 25_000, 25_610),
    ("systemd-logind.service", 25_620, 27_430),
    ("systemd-networkd.service", 16_500, 19_210),
    ("systemd-networkd-wait-online.service", 19_220, 26_150),
    ("nfs-client.target", 26_160, 26_160),
    ("rpc-statd-notify.service", 26_170, 26_420),
    ("serial-getty@ttyS0.service", 27_440, 27_460),
    ("systemd-user-sessions.service", 27_000, 27_210),
    ("multi-user.target", 27_470, 27_470),
];

fn timeline(stretch: u64) -> Timeline {
    let unit = |&(name, start, end): &(&str, u64, u64)| Unit {
        name: name.to_owned(),
        start_ms: start * stretch / 100,
        end_ms: end * stretch / 100,
    };
    Timeline {
        firmware_ms: 0,
        loader_ms: 1140 * stretch / 100,
        kernel_ms: 6120 * stretch / 100,
        initrd_ms: 8010 * stretch / 100,
        userspace_ms: 13_340 * stretch / 100,
        units: Timeline::slowest(UNITS.iter().map(unit).collect()),
        critical_chain: [25, 23, 18, 17, 13, 11, 10, 9, 8]
            .iter()
            .filter_map(|&n| UNITS.get(n))
            .map(unit)
            .collect(),
    }
}

fn boot(number: u32, began_ms: u64, ready_ms: u64, ended: BootEnd, ended_ms: Option<u64>) -> Boot {
    Boot {
        number,
        began_ms,
        ready_ms: Some(ready_ms),
        ended_ms,
        ended,
        timeline: Some(timeline((ready_ms - began_ms) * 100 / 31_500)),
    }
}

fn states(changes: &[(u64, NodeState)]) -> Vec<StateChange> {
    changes.iter().map(|&(at_ms, state)| StateChange { at_ms, state }).collect()
}

fn node(name: &str, profile: &str, number: u8) -> Node {
    Node {
        name: name.to_owned(),
        profile: profile.to_owned(),
        role: if profile == "edge" { "edge" } else { "product" }.to_owned(),
        memory_mib: if profile == "server" { 2048 } else { 1024 },
        cpus: 2,
        disks: vec![
            Disk { bus: "virtio".to_owned(), size: 12 << 30 },
            Disk { bus: "nvme".to_owned(), size: 1 << 30 },
        ],
        nics: vec![Nic {
            network: "lan".to_owned(),
            model: "virtio".to_owned(),
            mac: format!("52:54:00:6b:00:{number:02x}"),
            address: format!("10.77.0.{number}"),
        }],
        console_log: Some(format!("consoles/{name}.log")),
        console_tail: lines(
            350_100,
            &[
                "[   31.204512] systemd[1]: Reached target multi-user.target - Multi-User System.",
                "[   31.260003] systemd[1]: Startup finished in 6.120s (kernel) + 8.010s (initrd) + 13.340s (userspace) = 27.470s.",
                "Debian GNU/Linux 13 node ttyS0",
            ],
        ),
        ..Node::default()
    }
}

fn step(number: u32, name: &str, kind: &str, nodes: &[&str], began_ms: u64, duration_ms: u64) -> Step {
    Step {
        number,
        name: name.to_owned(),
        nodes: names(nodes),
        kind: kind.to_owned(),
        began_ms,
        duration_ms,
        limit_ms: Some(840_000),
        attempts: 1,
        outcome: Outcome::Passed,
        ..Step::default()
    }
}

fn answer(node: &str, command: &str, stdout: &str) -> Evidence {
    Evidence {
        node: node.to_owned(),
        command: command.to_owned(),
        status: Some(0),
        stdout: stdout.to_owned(),
        ..Evidence::default()
    }
}

/// A run of three nodes and edge in which two things failed, with at least one of everything.
pub(super) fn rich() -> Run {
    let scenario = Scenario {
        name: "three-node".to_owned(),
        description: "One server and two agents from the same bytes, beside a machine that serves NFS, DHCP, DNS and time.".to_owned(),
        file: "qemu/three-node.toml".to_owned(),
        sha256: "5f2c9b0f1ac1a9b8d3f16e7f0b7a2f6f0d6f3a1e0cd1fb57b4f7bd2c7d0a5e91".to_owned(),
    };
    let mut run = Run::new(scenario, 7, "2026-11-22T19:31:07Z".to_owned());
    // Of another time than the tests'.
    run.kiln_version = "0.1.0".to_owned();
    run.duration_ms = 372_480;
    run.host = Host { cpus: 2, memory_mib: 15_990, kernel: "Linux 6.12.48+deb13-amd64".to_owned() };
    run.accelerator = Accelerator {
        name: "TCG".to_owned(),
        reason: "the test guest did not answer under KVM within 5 s".to_owned(),
        calibration: 14.2,
    };
    run.peak_memory_kib = 61_236;
    let image = |profile: &str, digit: char| Image {
        profile: profile.to_owned(),
        flavour: None,
        file: format!("out/{profile}.raw"),
        sha256_before: digit.to_string().repeat(64),
        sha256_after: Some(digit.to_string().repeat(64)),
        root_hash: "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9".to_owned(),
        kernel: "6.12.48+deb13-cloud-amd64".to_owned(),
    };
    run.images = vec![image("server", '1'), image("agent", '2'), image("edge", '3')];
    if let Some(edge) = run.images.last_mut() {
        edge.sha256_after = None;
    }
    nodes(&mut run);
    steps(&mut run);
    happenings(&mut run);
    run.judge();
    run
}

fn nodes(run: &mut Run) {
    use NodeState::{Down, Firmware, Kernel, Off, Paused, Ready, Userspace};
    let mut server = node("server", "server", 11);
    server.boots = vec![boot(1, 800, 62_300, BootEnd::Off, Some(371_000))];
    server.states = states(&[
        (0, Off),
        (800, Firmware),
        (9100, Kernel),
        (36_000, Userspace),
        (62_300, Ready),
        (371_000, Off),
    ]);
    let mut first = node("agent-1", "agent", 12);
    first.boots = vec![
        boot(1, 900, 71_800, BootEnd::Cut, Some(142_000)),
        boot(2, 144_200, 203_900, BootEnd::Off, Some(371_200)),
    ];
    first.states = states(&[
        (0, Off),
        (900, Firmware),
        (11_000, Kernel),
        (41_000, Userspace),
        (71_800, Ready),
        (142_000, Down),
        (144_200, Firmware),
        (152_000, Kernel),
        (179_000, Userspace),
        (203_900, Ready),
        (371_200, Off),
    ]);
    let mut second = node("agent-2", "agent", 13);
    second.nics.push(Nic {
        network: "storage".to_owned(),
        model: "e1000e".to_owned(),
        mac: "52:54:00:6b:01:0d".to_owned(),
        address: "dhcp".to_owned(),
    });
    second.boots = vec![
        boot(1, 1000, 69_100, BootEnd::Panic, Some(262_400)),
        Boot {
            number: 2,
            began_ms: 264_000,
            ended_ms: Some(371_900),
            ended: BootEnd::Hung,
            ..Boot::default()
        },
    ];
    second.states = states(&[
        (0, Off),
        (1000, Firmware),
        (10_000, Kernel),
        (40_000, Userspace),
        (69_100, Ready),
        (226_000, Paused),
        (236_000, Ready),
        (262_400, Down),
        (264_000, Firmware),
        (272_500, Kernel),
        (301_000, Userspace),
        (371_900, Off),
    ]);
    second.stuck = Some(Stuck {
        jobs: names(&["112 mnt-a.mount start running", "64 multi-user.target start waiting"]),
        failed_units: names(&["systemd-networkd-wait-online.service"]),
        stacks: names(&[
            "mount.nfs4 D 0 812 811",
            " rpc_wait_bit_killable+0x11/0x80 [sunrpc]",
            " __rpc_execute+0x108/0x3f0 [sunrpc]",
            " nfs4_proc_get_root+0x9a/0x120 [nfsv4]",
        ]),
    });
    second.console_tail = lines(
        361_000,
        &[
            "[   88.120011] systemd[1]: mnt-a.mount: Mounting timed out. Terminating.",
            "[   88.993120] nfs: server 10.77.0.2 not responding, still trying",
            "A start job is running for /mnt/a (1min 12s / 1min 30s)",
        ],
    );
    let mut edge = node("edge", "edge", 2);
    edge.disks.truncate(1);
    edge.boots = vec![boot(1, 700, 58_000, BootEnd::Off, Some(370_400))];
    edge.states = states(&[
        (0, Off),
        (700, Firmware),
        (8000, Kernel),
        (33_000, Userspace),
        (58_000, Ready),
        (370_400, Off),
    ]);
    run.nodes = vec![server, first, second, edge];
}

fn steps(run: &mut Run) {
    let all = ["server", "agent-1", "agent-2"];
    let every = ["server", "agent-1", "agent-2", "edge"];
    let mut ready = step(1, "every node gets ready", "ready", &every, 0, 71_900);
    ready.evidence = vec![
        answer("server", "boot has ended", "running\n"),
        answer("agent-1", "boot has ended", "running\n"),
    ];
    let mut failed_units = step(2, "no unit failed", "run", &every, 71_950, 2140);
    failed_units.evidence = vec![answer("server", "systemctl list-units --state=failed --no-legend", "")];
    let mut ids = step(3, "machine ids are distinct", "run", &all, 74_120, 1830);
    ids.evidence = vec![
        answer("server", "cat /etc/machine-id", "8f14e45fceea467f8f14e45fceea467f\n"),
        answer("agent-1", "cat /etc/machine-id", "45c48cce2e2d7fbd45c48cce2e2d7fbd\n"),
        answer("agent-2", "cat /etc/machine-id", "c9f0f895fb98ab91c9f0f895fb98ab91\n"),
    ];
    let identity =
        step(4, "host name, addresses and keys are those of the scenario", "check", &all, 76_000, 3200);
    let mut time = step(5, "time is synchronised", "run", &all, 79_300, 24_600);
    time.attempts = 9;
    time.evidence = vec![answer("agent-2", "timedatectl show -p NTPSynchronized --value", "yes\n")];
    let port = step(6, "the server's API port answers", "port", &["server"], 104_000, 900);
    let mounts = step(7, "NFS 4.2 mounts on every agent", "run", &["agent-1", "agent-2"], 105_000, 8700);
    let mut picture = step(8, "a picture of the console", "screenshot", &["server"], 113_900, 600);
    picture.files = names(&["screenshots/server console.png"]);
    let power = step(9, "agent-1 loses its power", "power_cut", &["agent-1"], 142_000, 300);
    let again = step(10, "agent-1 comes back with its data", "ready", &["agent-1"], 144_200, 59_700);
    let mut data = step(
        11,
        "data written on one agent is read on the other",
        "run",
        &["agent-1", "agent-2"],
        240_100,
        22_400,
    );
    data.attempts = 4;
    data.outcome = Outcome::failed("agent-2: exit 1, expected the line that agent-1 wrote");
    data.evidence = vec![
        answer("agent-1", "echo \"written by $(hostname)\" > /mnt/a/proof && sync", ""),
        Evidence {
            node: "agent-2".to_owned(),
            command: "cat /mnt/a/proof".to_owned(),
            status: Some(1),
            stdout: String::new(),
            stderr: "cat: /mnt/a/proof: Stale file handle\n".to_owned(),
            expected: Some("written by agent-1".to_owned()),
            failed: true,
        },
    ];
    data.console = vec![ConsoleExcerpt {
        node: "agent-2".to_owned(),
        lines: lines(
            258_400,
            &[
                "[  248.100341] nfs: server 10.77.0.2 not responding, still trying",
                "[  254.812050] nfs: server 10.77.0.2 OK",
                "[  255.000771] NFS: server 10.77.0.2 error: fileid changed",
                "[  255.000802] fsid 0:47: expected fileid 0x2a, got 0x1f",
            ],
        ),
    }];
    let rest = [
        (12, "locks are held across agents", "run"),
        (13, "the NFS server restarts and mounts go on", "reboot"),
        (14, "a cut cable is survived", "link"),
    ];
    run.steps = vec![ready, failed_units, ids, identity, time, port, mounts, picture, power, again, data];
    for (number, name, kind) in rest {
        let mut skipped = step(number, name, kind, &all, 0, 0);
        skipped.attempts = 0;
        skipped.outcome = Outcome::skipped("step 11 failed");
        run.steps.push(skipped);
    }
}

fn happenings(run: &mut Run) {
    let fault = |at_ms, until_ms, node: &str, kind: &str, detail: &str| Fault {
        at_ms,
        until_ms,
        node: node.to_owned(),
        kind: kind.to_owned(),
        detail: detail.to_owned(),
    };
    run.faults = vec![
        fault(101_800, None, "edge", "link", "lan: loss 0.1 both ways"),
        fault(142_000, None, "agent-1", "power_cut", ""),
        fault(160_000, Some(189_000), "server", "link", "lan: cut inwards"),
        fault(226_000, Some(236_000), "agent-2", "pause", ""),
    ];
    run.invariants = vec![
        Invariant {
            name: "the root is read-only".to_owned(),
            nodes: names(&["server", "agent-1", "agent-2"]),
            checked: 11,
            outcome: Outcome::Passed,
            ..Invariant::default()
        },
        Invariant {
            name: "NFS answers".to_owned(),
            nodes: names(&["edge"]),
            checked: 11,
            broken_ms: Some(262_450),
            outcome: Outcome::failed("edge: exit 1 before step 12"),
            evidence: vec![Evidence {
                node: "edge".to_owned(),
                command: "rpcinfo -T tcp 127.0.0.1 nfs 4".to_owned(),
                status: Some(1),
                stderr: "rpcinfo: RPC: Timed out\nprogram 100003 version 4 is not available\n".to_owned(),
                failed: true,
                ..Evidence::default()
            }],
        },
        Invariant {
            name: "the clock goes right".to_owned(),
            nodes: names(&["edge"]),
            ..Invariant::default()
        },
    ];
    let panic = "[  255.020113] Kernel panic - not syncing: Fatal exception in interrupt";
    run.findings = vec![
        Finding {
            node: "agent-1".to_owned(),
            at_ms: 148_000,
            rule: "unclean-journal".to_owned(),
            severity: Severity::Warning,
            line: "[    9.102210] EXT4-fs (vda4): recovery complete".to_owned(),
            ..Finding::default()
        },
        Finding {
            node: "server".to_owned(),
            at_ms: 191_200,
            rule: "hung-task".to_owned(),
            severity: Severity::Error,
            line: "[  190.411882] INFO: task kworker/u4:2:61 blocked for more than 120 seconds.".to_owned(),
            allowed_by: Some("its cable is cut on purpose for longer than that".to_owned()),
            ..Finding::default()
        },
        Finding {
            node: "agent-2".to_owned(),
            at_ms: 262_400,
            rule: "panic".to_owned(),
            severity: Severity::Fatal,
            line: panic.to_owned(),
            excerpt: lines(
                261_132,
                &[
                    "[  254.990002] BUG: unable to handle page fault for address: ffffffffc0a81234",
                    "[  255.001117] RIP: 0010:nfs4_update_inode_attributes+0x1d2/0x3a0 [nfsv4]",
                    "[  255.010001] Call Trace:  <IRQ>  nfs_revalidate_inode+0x41/0x90 [nfs]",
                    "[  255.019998] ---[ end trace 0000000000000000 ]---",
                    panic,
                    "[  255.021000] Kernel Offset: disabled",
                ],
            ),
            ..Finding::default()
        },
    ];
    run.incidents = vec![Incident {
        at_ms: 371_900,
        node: Some("agent-2".to_owned()),
        what: "it did not get ready again within 107 s".to_owned(),
        detail: "boot 2 began at 264.0 s, after the panic".to_owned(),
        ..Incident::default()
    }];
    let link = |node: &str, network: &str, frames: u64, lost: u64| Link {
        node: node.to_owned(),
        network: network.to_owned(),
        sent: Traffic { frames, bytes: frames * 911, lost, dropped: 0 },
        received: Traffic {
            frames: frames * 3 / 2,
            bytes: frames * 1388,
            lost: lost * 2,
            dropped: lost / 40,
        },
        pcap: None,
    };
    run.links = vec![
        link("server", "lan", 18_204, 312),
        link("agent-1", "lan", 9120, 0),
        link("agent-2", "lan", 12_377, 0),
        link("agent-2", "storage", 0, 0),
        link("edge", "lan", 1_204_611, 1201),
    ];
    if let Some(link) = run.links.get_mut(2) {
        link.pcap = Some("pcap/agent-2.lan.pcapng".to_owned());
    }
}

/// Text that a guest would write to harm who reads the report.
pub(super) const HOSTILE: &str = "</script></style></title><img src=x onerror=alert(1)>\"'`&amp;<!-- ]]> \u{1b}[31mred\u{1b}[0m \u{1b}]0;title\u{7} nul\0bell\u{7} \u{202e}turned \u{9b}31m \u{fffe}";

/// A run in which every text is [`HOSTILE`], whatever its field.
pub(super) fn hostile() -> Run {
    fn spoil(value: &mut serde_json::Value, key: &str) {
        use serde_json::Value;
        // These are words of kiln, not text.
        if ["is", "severity", "state", "ended"].contains(&key) {
            return;
        }
        match value {
            Value::String(text) => *text = HOSTILE.to_owned(),
            Value::Array(items) => items.iter_mut().for_each(|item| spoil(item, "")),
            Value::Object(fields) => fields.iter_mut().for_each(|(key, value)| spoil(value, key)),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(rich()).unwrap();
    spoil(&mut value, "");
    let mut run: Run = serde_json::from_value(value).unwrap();
    run.judge();
    run
}

/// A long run of power cuts: six nodes with 400 boots each, 600 steps that say much, a console of 10 MB.
pub(super) fn large() -> Run {
    let mut run = rich();
    let noise = "x".repeat(40_000);
    let pattern = run.nodes.clone();
    run.nodes.clear();
    for (number, name) in ["server", "agent-1", "agent-2", "agent-3", "agent-4", "edge"].iter().enumerate() {
        let mut node = pattern[number % pattern.len()].clone();
        node.name = (*name).to_owned();
        node.boots = (0..400u64)
            .map(|n| {
                boot(n as u32 + 1, n * 40_000, n * 40_000 + 31_000, BootEnd::Cut, Some(n * 40_000 + 39_000))
            })
            .collect();
        node.states = (0..400u64)
            .flat_map(|n| {
                [(0, NodeState::Firmware), (31_000, NodeState::Ready), (39_000, NodeState::Down)]
                    .map(|(at, state)| StateChange { at_ms: n * 40_000 + at, state })
            })
            .collect();
        let lines = if number == 0 { 10_000 } else { 100 };
        node.console_tail =
            (0..lines).map(|n| ConsoleLine { at_ms: n, text: format!("{n} {}", &noise[..1000]) }).collect();
        run.nodes.push(node);
    }
    run.duration_ms = 16_000_000;
    let pattern = run.steps.clone();
    run.steps = (0..600u32)
        .map(|n| {
            let mut step = pattern[n as usize % pattern.len()].clone();
            step.number = n + 1;
            for evidence in &mut step.evidence {
                evidence.stdout = noise.clone();
                evidence.stderr = noise.clone();
            }
            step
        })
        .collect();
    run.findings = (0..5000).map(|n| Finding { at_ms: n * 3000, ..run.findings[2].clone() }).collect();
    run.faults = (0..2000).map(|n| Fault { at_ms: n * 8000, ..run.faults[3].clone() }).collect();
    run.judge();
    run
}
