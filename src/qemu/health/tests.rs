use super::*;
use crate::lock::time;

/// Lines as their source prints them, and the rule that must find them.
const SICK: &[(&str, &str)] = &[
    (
        "kernel-panic",
        "[   12.1] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
    ),
    ("kernel-panic", "[   99.5] Kernel panic - not syncing: sysrq triggered crash"),
    ("kernel-panic", "[    9.5] Kernel panic - not syncing: dm-verity device corrupted"),
    ("verity", "[    7.2] device-mapper: verity: 254:0: metadata block 1 is corrupted"),
    ("verity", "[    7.2] device-mapper: verity: 254:0: data block 81 is corrupted"),
    ("initrd", "[    7.2] kiln: cannot boot: no disk has the partitions root-0123 and verity-0123"),
    ("boot-loader", "BdsDxe: No bootable option or device was found."),
    ("boot-loader", "EFI stub: ERROR: Failed to decompress kernel"),
    ("init-crash", "[   20.5] systemd[1]: Freezing execution."),
    ("init-crash", "[   20.4] systemd[1]: Caught <ABRT>, dumped core as pid 411."),
    ("emergency", "You are in emergency mode. After logging in, type \"journalctl -xb\" to view"),
    ("emergency", "[  OK  ] Reached target emergency.target - Emergency Mode."),
    ("emergency", "Cannot open access to console, the root account is locked."),
    ("soft-lockup", "[  140.2] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [kworker/1:0:17]"),
    ("hard-lockup", "[  140.2] NMI watchdog: Watchdog detected hard LOCKUP on cpu 0"),
    ("rcu-stall", "[   81.0] rcu: INFO: rcu_preempt self-detected stall on CPU"),
    ("rcu-stall", "[   81.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"),
    (
        "rcu-stall",
        "[   81.0] rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 1-... } 21 jiffies",
    ),
    (
        "rcu-stall",
        "[   81.0] rcu: rcu_preempt kthread starved for 5250 jiffies! g137 f0x0 RCU_GP_WAIT_FQS(5)",
    ),
    (
        "program-crash",
        "[   31.2] iptables[812]: segfault at 0 ip 00007f0 sp 00007ffc error 4 in libc.so.6[7f0+15d000]",
    ),
    (
        "program-crash",
        "[   31.2] traps: bird[900] general protection fault ip:55d sp:7ff error:0 in bird[55d+9000]",
    ),
    ("program-crash", "[   31.2] systemd-coredump[901]: Process 900 (bird) of user 0 dumped core."),
    ("kernel-oops", "[   42.0] Oops: 0002 [#1] PREEMPT SMP NOPTI"),
    (
        "kernel-oops",
        "[   42.0] Oops: general protection fault, probably for non-canonical address 0x6b6b: 0000 [#1] PREEMPT SMP",
    ),
    ("kernel-oops", "[   42.0] Internal error: Oops: 0000000096000004 [#1] SMP"),
    (
        "kernel-oops",
        "[   42.0] Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008",
    ),
    ("kernel-bug", "[   42.0] kernel BUG at fs/ext4/inode.c:2787!"),
    ("kernel-bug", "[   42.0] BUG: kernel NULL pointer dereference, address: 0000000000000008"),
    ("kernel-bug", "[   42.0] BUG: scheduling while atomic: swapper/0/0/0x00000002"),
    ("kernel-sanitizer", "[   42.0] UBSAN: array-index-out-of-bounds in drivers/net/x.c:12:3"),
    ("kernel-warning", "[   42.0] WARNING: CPU: 0 PID: 1 at kernel/rcu/tree.c:2100 rcu_do_batch+0x1/0x2"),
    ("hardware-error", "[   42.0] mce: [Hardware Error]: CPU 0: Machine Check: 0 Bank 5: be00000000800400"),
    (
        "oom-kill",
        "[   88.1] Out of memory: Killed process 512 (k3s-server) total-vm:1048576kB, anon-rss:900000kB",
    ),
    (
        "oom-kill",
        "[   88.1] Memory cgroup out of memory: Killed process 512 (stress) total-vm:104kB, anon-rss:90kB",
    ),
    ("page-allocation", "[   88.1] swapper/0: page allocation failure: order:4, mode:0x40cc0(GFP_KERNEL)"),
    ("hung-task", "[  242.7] INFO: task jbd2/vda6-8:241 blocked for more than 120 seconds."),
    ("nfs-silent", "[  242.7] nfs: server 10.77.0.1 not responding, still trying"),
    (
        "io-error",
        "[   55.0] I/O error, dev vda, sector 2048 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 2",
    ),
    ("io-error", "[   55.0] Buffer I/O error on dev dm-0, logical block 0, async page read"),
    ("io-error", "[   55.0] nvme nvme0: I/O tag 4 (1004) QID 1 timeout, aborting req_op:READ(0) size:4096"),
    ("io-error", "[   55.0] ata1.00: failed command: READ FPDMA QUEUED"),
    ("read-only-remount", "[   55.1] EXT4-fs (vda6): Remounting filesystem read-only"),
    (
        "ext4-error",
        "[   55.1] EXT4-fs error (device vda6): ext4_lookup:1855: inode #2: comm ls: iget: checksum invalid",
    ),
    ("ext4-error", "[   55.1] Aborting journal on device vda6-8."),
    ("ext4-error", "[   55.1] JBD2: Detected IO errors while flushing file data on vda6-8"),
    ("erofs-error", "[   55.1] erofs (device dm-0): cannot find valid erofs superblock"),
    (
        "erofs-error",
        "[   55.1] erofs (device dm-0): z_erofs_lz4_decompress_mem: failed to decompress -5 in[46, 4050] out[9000]",
    ),
    (
        "file-system-damage",
        "[   55.1] FAT-fs (vda1): error, fat_get_cluster: invalid start cluster (i_pos 0, start 0)",
    ),
    ("file-system-damage", "/dev/vda6: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY."),
    (
        "fat-not-clean",
        "[   12.0] FAT-fs (vda1): Volume was not properly unmounted. Some data may be corrupt. Please run fsck.",
    ),
    (
        "journal-not-clean",
        "[   12.0] systemd-journald[231]: File /var/log/journal/0/system.journal corrupted or uncleanly shut down, renaming and replacing.",
    ),
    ("ordering-cycle", "[   12.0] systemd[1]: sysinit.target: Found ordering cycle on local-fs.target/start"),
    ("ordering-cycle", "[ SKIP ] Ordering cycle found, skipping local-fs.target"),
    (
        "generator-failed",
        "[   12.0] (sd-exec-strv)[210]: /usr/lib/systemd/system-generators/systemd-fstab-generator failed with exit status 1.",
    ),
    ("unit-failed", "[FAILED] Failed to start systemd-networkd.service - Network Configuration."),
    ("unit-failed", "[DEPEND] Dependency failed for var.mount - /var."),
    ("unit-failed", "[ TIME ] Timed out waiting for device dev-kiln-var.device - /dev/kiln/var."),
    ("unit-failed", "[   12.0] systemd[1]: Failed to start k3s.service - Lightweight Kubernetes."),
    (
        "unit-restarts",
        "kiln: k3s.service was started again 2 times in 96 s and does not stay up; it said last: Unable to find default route",
    ),
    ("module-missing", "[   12.0] systemd-modules-load[230]: Failed to find module 'br_netfilter'"),
    (
        "module-missing",
        "[   12.0] foo: module verification failed: signature and/or required key missing - tainting kernel",
    ),
    ("conntrack-full", "[   12.0] nf_conntrack: nf_conntrack: table full, dropping packet"),
    (
        "network-device-leak",
        "[   12.0] unregister_netdevice: waiting for lxc1 to become free. Usage count = 2",
    ),
    ("network-transmit", "[   12.0] NETDEV WATCHDOG: CPU: 1: transmit queue 0 timed out 5120 ms"),
    ("service-watchdog", "[   12.0] systemd[1]: systemd-udevd.service: Watchdog timeout (limit 3min)!"),
];

/// Lines of healthy boots that hold words of the rules.
const WELL: &[&str] = &[
    "[    0.1] Kernel command line: panic=10 systemd.gpt_auto=no",
    "[    0.0] rcu: Preemptible hierarchical RCU implementation.",
    "[    0.0] rcu: RCU calculated value of scheduler-enlistment delay is 100 jiffies.",
    "[    0.3] rcu: Hierarchical SRCU implementation.",
    "[    0.4] NMI watchdog: Perf NMI watchdog permanently disabled",
    "[    0.4] mce: CPU supports 10 MCE banks",
    "[    0.4] Spectre V1 : Mitigation: usercopy/swapgs barriers and __user pointer sanitization",
    "[    1.5] device-mapper: verity: sha256 using shash \"sha256-ni\"",
    "[    1.6] erofs (device dm-0): mounted with root inode @ nid 36.",
    "[    1.7] EXT4-fs (vda6): mounted filesystem 7c2c r/w with ordered data mode. Quota mode: none.",
    "[    1.7] EXT4-fs (vda6): recovery complete",
    "[    1.7] EXT4-fs (vda6): resizing filesystem from 1015035 to 1015035 blocks",
    "[    1.7] EXT4-fs (vda6): re-mounted 7c2c ro.",
    "[    5.0] systemd[1]: systemd-rescue is here: Reached target rescue-not.target",
    "[  OK  ] Stopped target sysinit.target - System Initialization.",
    "[   80.0] kvm_amd: Nested Virtualization enabled",
    "[   80.0] workqueue: drm_fb_helper_damage_work hogged CPU for >10000us 4 times, consider switching to WQ_UNBOUND",
    "[   80.0] clocksource: timekeeping watchdog on CPU1: hpet wd-tsc-wd excessive read-back delay",
    "[   80.0] ata1: SATA link down (SStatus 0 SControl 300)",
    "[   80.0] sysrq: Show Blocked State",
    "[   80.0] debug: a word like debugging BUGS",
    "systemd-oomd.service - Userspace Out-Of-Memory (OOM) Killer",
];

fn watch(tcg: bool, allow: Vec<Allow>) -> Watch {
    Watch::new("n1", tcg, Arc::new(AllowList::new(allow).unwrap()))
}

fn tell(watch: &Watch, lines: &[&str]) {
    let mut observer = watch.observer();
    for (second, line) in (0..).zip(lines) {
        observer(Duration::from_secs(second), line);
    }
}

fn names(watch: &Watch) -> Vec<&'static str> {
    watch.findings().iter().map(|f| f.rule).collect()
}

#[test]
fn each_sick_line_is_found_by_its_rule_and_each_rule_has_a_line() {
    for (name, line) in SICK {
        let watch = watch(false, vec![]);
        tell(&watch, &[line]);
        assert_eq!(names(&watch), [*name], "{line}");
    }
    for rule in RULES {
        assert!(SICK.iter().any(|(name, _)| name == &rule.name), "{} has no example", rule.name);
        assert_eq!(RULES.iter().filter(|r| r.name == rule.name).count(), 1, "{} is there twice", rule.name);
    }
}

#[test]
fn healthy_lines_are_no_findings() {
    for line in WELL {
        let watch = watch(false, vec![]);
        tell(&watch, &[line]);
        assert_eq!(names(&watch), [""; 0], "{line}");
    }
}

#[test]
fn a_finding_has_its_time_and_the_lines_around_it() {
    let watch = watch(false, vec![]);
    let lines: Vec<String> = (0..20).map(|n| format!("line {n}")).collect();
    let mut lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    lines[8] = "Kernel panic - not syncing: x";
    tell(&watch, &lines);
    let finding = watch.first_bad().unwrap();
    assert_eq!((finding.node.as_str(), finding.at), ("n1", Duration::from_secs(8)));
    assert_eq!(finding.line, lines[8]);
    assert_eq!(finding.before, lines[3..8]);
    assert_eq!(finding.after, lines[9..14]);
}

#[test]
fn stalls_of_an_emulated_processor_only_warn() {
    let line = "rcu: INFO: rcu_preempt self-detected stall on CPU";
    for (tcg, bad) in [(true, false), (false, true)] {
        let watch = watch(tcg, vec![]);
        tell(&watch, &[line]);
        assert_eq!(watch.first_bad().is_some(), bad);
        assert_eq!(names(&watch), ["rcu-stall"]);
    }
}

#[test]
fn a_crash_on_purpose_is_expected_up_to_the_next_kernel_and_its_traces_after() {
    let watch = watch(false, vec![]);
    watch.expect(Expected::Crash);
    tell(
        &watch,
        &[
            "Kernel panic - not syncing: sysrq triggered crash",
            "[    0.000000] Linux version 6.12",
            "FAT-fs (vda1): Volume was not properly unmounted.",
        ],
    );
    assert!(watch.findings().iter().all(|f| f.expected == Some(Expected::Crash)), "{:?}", watch.findings());
    tell(&watch, &["Kernel panic - not syncing: again"]);
    assert_eq!(watch.first_bad().unwrap().line, "Kernel panic - not syncing: again");
}

#[test]
fn what_no_step_brings_about_is_never_expected() {
    for what in [Expected::Crash, Expected::PowerCut, Expected::Damage] {
        let watch = watch(false, vec![]);
        watch.expect(what);
        tell(
            &watch,
            &["INFO: task x:1 blocked for more than 120 seconds.", "EXT4-fs error (device vda6): x"],
        );
        assert_eq!(watch.findings().iter().filter(|f| f.is_bad()).count(), 2, "{what:?}");
    }
    let watch = watch(false, vec![]);
    watch.expect(Expected::PowerCut);
    tell(&watch, &["Kernel panic - not syncing: x"]);
    assert!(watch.first_bad().is_some(), "a power cut makes no kernel panic");
    watch.expect_nothing();
    tell(&watch, &["FAT-fs (vda1): Volume was not properly unmounted."]);
    assert_eq!(watch.findings()[1].expected, None);
}

#[test]
fn an_allowed_finding_is_kept_with_its_reason_and_is_not_bad() {
    let allow = Allow {
        pattern: "segfault at 0 .* in libfoo".to_owned(),
        node: Some("n1".to_owned()),
        reason: "known upstream".to_owned(),
        until: time::iso(time::now() + 86_400)[..10].to_owned(),
    };
    let watch = watch(false, vec![allow]);
    tell(&watch, &["x[1]: segfault at 0 ip 1 in libfoo.so", "x[1]: segfault at 0 ip 1 in libbar.so"]);
    let findings = watch.findings();
    assert_eq!(findings[0].allowed.as_deref(), Some("known upstream"));
    assert_eq!(watch.first_bad().unwrap(), findings[1]);
}

#[test]
fn a_flood_of_one_rule_is_bounded_and_hides_nothing() {
    let watch = watch(false, vec![]);
    watch.expect(Expected::Damage);
    tell(&watch, &vec!["I/O error, dev vda, sector 1"; 10_000]);
    assert_eq!((watch.findings().len(), watch.left_out()), (KEPT, 10_000 - KEPT));
    watch.expect_nothing();
    tell(&watch, &["I/O error, dev vda, sector 2", "[FAILED] Failed to start x"]);
    assert_eq!(watch.first_bad().unwrap().line, "I/O error, dev vda, sector 2");
    assert_eq!(names(&watch).last(), Some(&"unit-failed"));
}

#[test]
fn a_panic_fails_the_door_and_an_emergency_shell_does_not() {
    let watch = watch(false, vec![]);
    let breaker = Breaker::default();
    watch.trips(breaker.clone());
    tell(&watch, &["You are in emergency mode."]);
    assert_eq!(breaker.tripped(), None, "a door is open in emergency mode");
    watch.expect(Expected::Crash);
    tell(&watch, &["[   1.0] Kernel panic - not syncing: sysrq triggered crash"]);
    assert!(breaker.tripped().unwrap().contains("sysrq triggered crash"));
}
