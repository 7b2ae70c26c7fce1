//! The initrd's part for machines that were booted over the network, run by this machine's shell: everything outside of it is made up.

use crate::common::run::{Run, command};

/// What the script finds around it: the rest of the initrd, programs, and a server. Everything that is done is noted in `log`.
const AROUND: &str = r#"
netboot=http://192.0.2.1/ net=52:54:00:00:50:13,192.0.2.13,255.255.255.0, loadable=1 var_on=memory
note() { echo "$*" >>log; }
say() { note "say $*"; }
die() {
  note "die $*"
  exit 1
}
# Some device of every machine has no driver, and then modprobe fails.
coldplug() {
  note coldplug
  return 1
}
modprobe() { :; }
ifconfig() { note "ifconfig $*"; }
sleep() { [ "$1" = 0.1 ] || note "sleep $*"; }
reboot() {
  note reboot
  exit 1
}
mount() { :; }
umount() { :; }
losetup() { case $1 in -f) echo /dev/loop9 ;; esac; }
chroot() {
  note "kiln $3"
  echo /dev/vdb1
  return "$STATE"
}
wget() {
  to=
  while [ $# -gt 1 ]; do
    [ "$1" = -O ] && to=$2
    [ "$1" = --post-data ] && note "post $2"
    shift
  done
  case $1 in
    */plan.env) printf "MODE='%s'\nNODE='agent-3'\nIMAGE_SIZE='4096'\nLAYOUT_SIZE='4096'\nSTATE_SIZE='4096'\nSTATE='%s'\n" "$MODE" "$LIES" ;;
    */image.raw) head -c 4096 /dev/zero >"$to" ;;
    */kiln) : >"$to" ;;
    */credentials)
      note "fetch credentials"
      tar -c -f - k3s.token
      ;;
  esac
}
"#;

/// Runs the script for a node in `mode` whose /var lies in `lies`, where `kiln state` ends with `state`; says what was done.
fn boots(mode: &str, lies: &str, state: u8) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    };
    put("sys/class/net/eth0/address", "52:54:00:00:50:13\n");
    put("proc/meminfo", "MemTotal: 4000000 kB\n");
    put("k3s.token", "secret");
    put("run/none", "");
    // Nothing of this machine is touched.
    let mut script = kiln::rootfs::initrd::NETBOOT.replace("/dev/kmsg", "kmsg");
    for folder in ["/run/", "/sys/class/", "/proc/meminfo", "/sysroot"] {
        script = script.replace(folder, &format!("{}{folder}", dir.path().display()));
    }
    // As the rest of the initrd goes on, when it has mounted the root.
    let whole = format!("{AROUND}\n{script}\n[ \"$var_on\" = disk ] && state_disk\nnote systemd\n");
    let output = command("sh")
        .args(["-c", &whole])
        .current_dir(dir.path())
        .env("MODE", mode)
        .env("LIES", lies)
        .env("STATE", state.to_string())
        .output()
        .unwrap();
    let log = fs_err::read_to_string(dir.path().join("log")).unwrap_or_default();
    let token = dir.path().join("run/credentials/@initrd/k3s.token").exists();
    assert_eq!(token, log.contains("fetch credentials"), "{log}{}", Run::of(&output).text());
    log.lines().filter(|line| !line.starts_with("say fetching")).map(str::to_owned).collect()
}

const UP: &str = "ifconfig eth0 192.0.2.13 netmask 255.255.255.0 up";
const DOWN: &str = "ifconfig eth0 0.0.0.0 down";
const BOOTED: &str = r#"post {"event":"booted"}"#;

#[test]
fn a_diskless_node_asks_for_its_credentials_once_and_only_when_it_has_a_var() {
    let credentials = "fetch credentials";
    assert_eq!(boots("diskless", "memory", 0), ["coldplug", UP, credentials, BOOTED, DOWN, "systemd"]);
    let begin = ["coldplug", UP, "say /var is on a disk"];
    // Drivers are asked for twice, whatever came of the first time; the server is told by `kiln state`.
    let drivers = ["coldplug", "sleep 1", "coldplug", "kiln state"];
    let found = [&begin[..], &drivers, &[credentials, DOWN, "systemd"]].concat();
    assert_eq!(boots("diskless", "disk", 0), found);
    // The disk is somebody else's: nobody has to release them again for the next boot.
    let stops = [&begin[..], &drivers, &["sleep 600", "reboot"]].concat();
    assert_eq!(boots("diskless", "disk", 6), stops);
}

#[test]
fn a_node_that_is_installed_gets_them_from_the_system() {
    assert_eq!(boots("install", "memory", 0), ["coldplug", UP, BOOTED, DOWN, "systemd"]);
}
