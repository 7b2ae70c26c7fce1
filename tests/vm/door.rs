//! The door into a node: what it carries, what it outlives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln::qemu::accel::Accel;
use kiln::qemu::door::{Door, Ending};
use kiln::qemu::health::{AllowList, Expected, Watch};
use kiln::qemu::ready::{self, Boot};
use kiln::qemu::stuck;

use super::common::images;
use super::node::{CPUS, Node, Setup, only_in_full};

/// For what takes a moment on any host.
const MOMENT: Duration = Duration::from_secs(120);

#[expect(clippy::print_stdout, reason = "figures for the person who runs the tests")]
fn say(text: &str) {
    println!("{text}");
}

#[test]
fn a_door_opens_in_early_boot_carries_commands_and_files_and_outlives_time_outs_daemons_and_reboots() {
    if only_in_full() {
        return;
    }
    let image = images::image("bare", "amd64");
    let mut node = Setup { door: true, no_reboot: false, ..Setup::of(&image) }.boot();
    let watch = Watch::new("test", node.accel == Accel::Tcg, Arc::new(AllowList::default()));
    node.machine.console.observe(watch.observer());
    let door = node.door();
    watch.trips(door.breaker());

    door.connect(node.limit()).unwrap();
    let open = node.machine.started().elapsed();
    // Long before anything else could be asked.
    let early =
        door.succeed("test -e /run/systemd/system && ! mountpoint -q /var && echo before /var", MOMENT);
    let first = Boot::first(&node.machine);
    let up = node.ready();
    say(&format!("door after {:.1} s, ready after {:.1} s", open.as_secs_f64(), up.total as f64 / 1000.0));
    assert_eq!(early.unwrap().text(), "before /var");
    assert!(up.is_good(), "{up:?}");
    assert_eq!(door.boot().unwrap(), up.boot);

    let begin = Instant::now();
    for _ in 0..10 {
        assert!(door.run("true", MOMENT).unwrap().is_good());
    }
    say(&format!("`true` takes {:.0} ms there and back", begin.elapsed().as_secs_f64() * 100.0));

    streams_and_statuses(&door);
    time_outs_and_daemons(&door, &node);
    files(&door);
    waiting(&door);
    looking(&door, &mut node);
    let timeline = ready::timeline(&mut node.machine, 0, &first, &up, MOMENT).unwrap();
    let stages: Vec<&str> = timeline.stages.iter().map(|stage| stage.name).collect();
    assert_eq!(stages, ["firmware", "loader", "kernel", "initrd", "userspace"], "{timeline:?}");
    assert_eq!(timeline.chain[0].name, "multi-user.target", "{:?}", timeline.chain);
    assert!(timeline.chain.len() > 3 && timeline.units.len() > 30, "{timeline:?}");
    assert!(timeline.stages[4].end <= up.total, "the inner clock fits in the outer one: {timeline:?}");
    say(&format!("{:?}\n{:?}", timeline.stages, timeline.chain));
    assert_eq!(watch.first_bad(), None);

    // In order; then by a panic as soon as the next boot can be told so. What was written stays.
    door.succeed("echo kept >/var/lib/kiln-mark", MOMENT).unwrap();
    door.reboot().unwrap();
    let limit = node.limit();
    door.connect(limit).unwrap();
    assert_ne!(door.boot().unwrap(), up.boot);
    assert_eq!(watch.first_bad(), None);
    watch.expect(Expected::Crash);
    let before = door.boot();
    door.crash().unwrap();
    node.machine.console.wait_for("Rebooting in 10 seconds", MOMENT).unwrap();
    let third = Boot::next(&node.machine, before);
    let up = ready::wait_boot(&mut node.machine, 0, &third, limit).unwrap();
    assert!(up.is_good(), "{up:?}");
    watch.expect_nothing();
    assert_eq!(door.succeed("cat /var/lib/kiln-mark", MOMENT).unwrap().text(), "kept");
    assert_eq!(door.boot().unwrap(), up.boot);
    assert_eq!(watch.first_bad(), None);
    let findings = watch.findings();
    say(&format!("{:?}", findings.iter().map(|f| (f.rule, &f.line)).collect::<Vec<_>>()));
    assert_eq!(findings.iter().filter(|f| f.rule == "kernel-panic").count(), 1, "{findings:?}");

    // A panic under a command that would run for an hour.
    watch.expect(Expected::Crash);
    let begin = Instant::now();
    let failure = door.run("echo c >/proc/sysrq-trigger; sleep 3000", Duration::from_secs(3600)).unwrap_err();
    assert!(failure.to_string().contains("is lost ([") && begin.elapsed() < MOMENT, "{failure}");
    assert!(failure.to_string().contains("Kernel panic"), "{failure}");
    node.machine.qmp.quit().unwrap();
    let failure = door.run("true", limit).unwrap_err();
    assert!(failure.to_string().contains("is gone") || failure.to_string().contains("is lost"), "{failure}");
}

fn streams_and_statuses(door: &Door) {
    let output =
        door.run_with("read -r line; echo \"$line\"; printf '\\000\\377' >&2; exit 7", b"in put\n", MOMENT);
    let output = output.unwrap();
    assert_eq!((output.status, output.ending), (7, Ending::Done));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"in put\n"[..], &b"\0\xff"[..]));
    // A fresh shell each time, deaf to no signal.
    assert_eq!(door.run("kill -INT $$", MOMENT).unwrap().status, 130);
    assert_eq!(door.succeed("pwd; yes | head -n 1; cat", MOMENT).unwrap().text(), "/\ny");
    // More than is kept, and more than there is room for.
    let output = door.run("seq 1 400000", MOMENT).unwrap();
    let text = output.text();
    assert!(text.starts_with("1\n2\n") && text.ends_with("\n400000") && text.contains("bytes left out"));
    let output = door.run("yes", MOMENT).unwrap();
    assert_eq!((output.status, output.ending), (1, Ending::Done), "{}", output.describe());
    assert!(door.run("echo fine", MOMENT).unwrap().is_good());
}

fn time_outs_and_daemons(door: &Door, node: &Node) {
    let sleeps = || door.run("pgrep -a sleep", MOMENT).unwrap().text();
    let begin = Instant::now();
    let command = "trap '' TERM INT HUP; sleep 9871 & setsid sleep 9872 & (setsid sleep 9873 &); sleep 9874";
    let output = door.run(command, Duration::from_secs(2)).unwrap();
    assert_eq!(output.ending, Ending::TimedOut);
    assert!(begin.elapsed() < MOMENT);
    assert!(!sleeps().contains("987"), "all of it is killed: {}", sleeps());
    // Who keeps the output open holds nothing up, and is not taken for a part of the next command.
    let output = door.run("setsid sleep 9875 & echo started", MOMENT).unwrap();
    assert_eq!((output.text().as_str(), output.ending), ("started", Ending::Done));
    assert_eq!(door.run("sleep 9876", Duration::from_secs(1)).unwrap().ending, Ending::TimedOut);
    assert!(sleeps().contains("9875") && !sleeps().contains("9876"), "{}", sleeps());
    // Half requests, rubbish, and one from a boot long ago.
    let session = "00000000-0000-0000-0000-000000000000.1";
    node.machine.ports[2].send(format!("\u{1}\u{ff}\n\nrun\nrun {session} 1 5 0 touch\\0040/run/wrong\nmore x\nhello\nrun {session} 2").as_bytes()).unwrap();
    assert_eq!(door.run("ls /run/wrong; echo here", MOMENT).unwrap().text(), "here");
    // The shell behind the door may be killed.
    let failure = door.run("systemctl kill --signal=KILL kiln-door.service; sleep 60", MOMENT).unwrap_err();
    assert!(failure.to_string().contains("started anew"), "{failure}");
    assert_eq!(door.run("echo again", MOMENT).unwrap().text(), "again");
}

fn files(door: &Door) {
    let bytes: Vec<u8> = (0..1_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let begin = Instant::now();
    door.put(&bytes, "/var/lib/kiln test/it's here", 0o750, MOMENT).unwrap();
    let there = begin.elapsed();
    assert_eq!(door.get("/var/lib/kiln test/it's here", MOMENT).unwrap(), bytes);
    let back = begin.elapsed() - there;
    say(&format!("1 MiB in {:.1} s there, {:.1} s back", there.as_secs_f64(), back.as_secs_f64()));
    let mode = door.succeed("stat -c %a \"/var/lib/kiln test/it's here\"; ls '/var/lib/kiln test'", MOMENT);
    assert_eq!(mode.unwrap().text(), "750\nit's here");
    let failure = door.put(b"x", "/usr/lib/x", 0o644, MOMENT).unwrap_err();
    assert!(failure.hints()[0].contains("Read-only"), "{failure:?}");
}

fn waiting(door: &Door) {
    door.wait_for_unit("multi-user.target", MOMENT).unwrap();
    let long = Duration::from_secs(3600);
    let failure = door.wait_for_unit("nosuch.service", long).unwrap_err();
    assert!(failure.to_string().contains("no such unit"), "{failure}");
    let failure = door.wait_for_unit("rescue.service", long).unwrap_err();
    assert!(failure.to_string().contains("nothing is about to start it"), "{failure}");
    door.run("systemd-run --unit=kiln-bad --property=RemainAfterExit=yes false", MOMENT).unwrap();
    let failure = door.wait_for_unit("kiln-bad.service", long).unwrap_err();
    assert!(failure.hints()[0].contains("kiln-bad.service"), "{failure:?}");
    door.succeed("systemctl reset-failed kiln-bad.service", MOMENT).unwrap();
    assert!(door.wait_for_port(7777, Duration::ZERO).is_err());
    door.succeed("systemd-run --unit=kiln-port socat TCP-LISTEN:7777,fork /dev/null", MOMENT).unwrap();
    door.wait_for_port(7777, MOMENT).unwrap();
    door.wait_until_succeeds("echo >>/run/tries; [ $(wc -l </run/tries) = 3 ]", MOMENT).unwrap();
}

fn looking(door: &Door, node: &mut Node) {
    door.succeed("systemd-run --no-block --unit=kiln-slow --property=Type=oneshot sleep 9877", MOMENT)
        .unwrap();
    let texts = stuck::look(Some(door), &mut node.machine.qmp, &node.machine.console, MOMENT * 4);
    let text = |name: &str| {
        let found = texts.iter().find(|text| text.name == name);
        &found.unwrap_or_else(|| panic!("no {name}: {texts:?}")).text
    };
    assert!(text("console").contains("login:"), "{texts:?}");
    assert_eq!(text("machine"), "running");
    let processors = text("processors");
    for cpu in 0..CPUS {
        assert!(processors.contains(&format!("CPU#{cpu}")), "{texts:?}");
    }
    assert!(processors.contains("RIP="), "{texts:?}");
    assert!(text("jobs").contains("kiln-slow.service"), "{texts:?}");
    assert!(text("blocked tasks").contains("sysrq: Show Blocked State"), "{texts:?}");
    assert!(text("blocked tasks").contains("NMI backtrace for cpu"), "{texts:?}");
    assert!(text("processes").contains("systemd-networkd"), "{texts:?}");
    door.succeed("systemctl stop kiln-slow.service", MOMENT).unwrap();
    // A machine that stands still is told from outside.
    node.machine.qmp.stop().unwrap();
    let texts = stuck::look(None, &mut node.machine.qmp, &node.machine.console, MOMENT);
    assert!(texts.iter().any(|text| text.name == "machine" && text.text == "paused"), "{texts:?}");
    node.machine.qmp.cont().unwrap();
}
