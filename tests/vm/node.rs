//! A machine of a test, and what it is asked once it is up.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use kiln::arch::Arch;
use kiln::error::Failure;
use kiln::qemu::accel::{self, Accel};
use kiln::qemu::config::{Boot, Bus, Disk, Format, Link, MachineConfig, Netboot, Nic, NicModel, Sectors};
use kiln::qemu::firmware::Firmware;
use kiln::qemu::machine::Machine;
use kiln::qemu::tpm::Tpm;
use kiln::qemu::{door, ready};

use super::common::images;
use super::common::run::skipped;

/// Processors of a machine.
pub(super) const CPUS: u32 = 1;

/// Machines at once. Their processors are busy under TCG; where more are emulated than the host has, they wait for each other.
const SLOTS: usize = 2;

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// The right to run a machine.
#[derive(Debug)]
pub(super) struct Slot(());

impl Slot {
    pub(super) fn wait() -> Self {
        let taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut taken =
            FREED.wait_while(taken, |t| *t >= SLOTS).unwrap_or_else(std::sync::PoisonError::into_inner);
        *taken += 1;
        Slot(())
    }

    /// The right to run as many machines as one wants: everybody else waits.
    pub(super) fn all() -> Vec<Self> {
        // One at a time takes its slots, or two could wait for each other.
        static TAKING: Mutex<()> = Mutex::new(());
        let _taking = TAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        (0..SLOTS).map(|_| Slot::wait()).collect()
    }

    pub(super) fn now() -> Option<Self> {
        let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        (*taken < SLOTS).then(|| {
            *taken += 1;
            Slot(())
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}

/// Whether the calling test, or the part of it that asks, is left out: it belongs to the full run (`KILN_TESTS=full`), and this is
/// not one. `cargo test` alone is the run of every change; the full run also has what takes many minutes and fails seldom.
///
/// # Panics
/// `KILN_TESTS` has another value than `full`.
pub(super) fn only_in_full() -> bool {
    match std::env::var("KILN_TESTS").as_deref() {
        Ok("full") => return false,
        Ok("") | Err(std::env::VarError::NotPresent) => {}
        other => panic!("KILN_TESTS is {other:?}; it can be `full`, or not be set"),
    }
    // The harness names the thread of a test after it.
    let thread = std::thread::current();
    skipped(&format!(
        "only with KILN_TESTS=full, in whole or in part: {}",
        thread.name().unwrap_or("a test")
    ));
    true
}

/// The port on which a node is asked.
const PORT: &str = "kiln.check";

const UNIT: &str = "[Unit]
Description=Answer the questions of a test
[Service]
Type=exec
ExecStart=/bin/sh /run/credentials/@system/kiln.check
StandardOutput=null
";

/// Comes with the unit that reports readiness, which comes with multi-user.target.
const DROPIN: &str = "[Unit]
Wants=kiln-check.service
";

/// Waits for a word, then says one fact per line: a name, a blank, the value.
const SCRIPT: &str = r#"
port=/dev/virtio-ports/kiln.check
until [ -c "$port" ]; do sleep 0.1; done
exec 3<>"$port"
read -r word <&3 || exit 0
say() { echo "$*" >&3; }
try() { if (eval "$2") >/dev/null 2>&1; then say "write-$1 yes"; else say "write-$1 no"; fi; }
say
try root 'echo x >/kiln-test'
try etc 'echo x >/etc/kiln-test'
try usr 'echo x >/usr/kiln-test'
try remount 'mount -o remount,rw / && echo x >/kiln-test'
[ -b /dev/dm-0 ] && try device 'dd if=/dev/zero of=/dev/dm-0 bs=4096 count=1 conv=fsync,notrunc'
try var 'echo x >/var/kiln-test'
say "verity $(dmsetup status root)"
say "cmdline $(cat /proc/cmdline)"
lsblk -bnro NAME,TYPE,SIZE | while read -r name kind size; do
  [ "$kind" = part ] && say "partition $name $size"
done
say "var $(findmnt -bnro SOURCE,FSTYPE,SIZE /var)"
say "authorized $(cat /root/.ssh/authorized_keys)"
while IFS=: read -r name hash rest; do
  case $name,$hash in root,*) say "shadow $hash";; *,\**|*,!*) ;; *) say "open-account $name";; esac
done </etc/shadow
n=0
until [ "$(systemctl is-active ssh.service)" = active ] || [ $n = 30 ]; do n=$((n + 1)); sleep 1; done
say "ssh $(systemctl is-active ssh.service)"
[ $n = 30 ] && journalctl -b -u ssh.service --no-pager -n 30 | while read -r line; do say "log $line"; done
say "host-key $(cat /var/lib/ssh/ssh_host_ed25519_key.pub)"
say "marker $(cat /var/lib/kiln-marker)"
echo was here >/var/lib/kiln-marker
sync
say end
"#;

/// What a node said of itself.
#[derive(Debug)]
pub(super) struct Facts(Vec<(String, String)>);

impl Facts {
    pub(super) fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    }

    #[track_caller]
    pub(super) fn one(&self, name: &str) -> &str {
        match self.all(name).as_slice() {
            [one] => one,
            _ => panic!("`{name}` is not there once: {self:?}"),
        }
    }
}

/// How a machine is to be set up.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    /// The image, or the socket of a disk that is served.
    pub(super) image: PathBuf,
    pub(super) served: bool,
    pub(super) format: Format,
    pub(super) arch: Arch,
    /// Size that the node sees; `None`: the image's own.
    pub(super) disk: Option<u64>,
    /// What the disk hangs on.
    pub(super) bus: Bus,
    pub(super) sectors: Sectors,
    pub(super) credentials: Vec<(String, Vec<u8>)>,
    /// Whether the node is asked to report.
    pub(super) report: bool,
    /// Whether it is given a door.
    pub(super) door: bool,
    /// Whether QEMU ends where the node would boot anew.
    pub(super) no_reboot: bool,
    pub(super) tpm: Option<Tpm>,
    /// The UUID in its firmware, of which it makes its machine id.
    pub(super) uuid: Option<uuid::Uuid>,
}

impl Setup {
    pub(super) fn of(image: &Path) -> Self {
        Setup {
            image: image.to_owned(),
            served: false,
            format: Format::Raw,
            arch: Arch::Amd64,
            disk: Some(12 << 30),
            bus: Bus::VirtioBlk,
            sectors: Sectors::default(),
            credentials: Vec::new(),
            report: true,
            door: false,
            no_reboot: true,
            tpm: None,
            uuid: None,
        }
    }

    pub(super) fn of_export(socket: &Path) -> Self {
        Setup { served: true, ..Setup::of(socket) }
    }

    /// Waits for a slot and switches the machine on.
    pub(super) fn boot(&self) -> Node {
        let slot = Slot::wait();
        let tools = images::tools("qemu");
        let accel = accel::prove(&tools, self.arch).unwrap().accel;
        let mut credentials = self.credentials.clone();
        if self.report {
            credentials.extend(ready::credentials());
            for (name, text) in [
                ("systemd.extra-unit.kiln-check.service", UNIT),
                ("systemd.unit-dropin.kiln-ready.service", DROPIN),
                (PORT, SCRIPT),
            ] {
                credentials.push((name.to_owned(), text.as_bytes().to_vec()));
            }
        }
        if self.door {
            credentials.extend(door::credentials());
        }
        let image = self.image.clone();
        let disk = if self.served {
            Disk::export(image, self.bus, "root")
        } else {
            Disk::overlay(image, self.format, self.disk, self.bus, "root")
        };
        let config = MachineConfig {
            name: "test".to_owned(),
            arch: self.arch,
            memory: 2048,
            cpus: CPUS,
            accel,
            boot: Boot::Firmware(Firmware::find(&tools, self.arch).unwrap()),
            disks: vec![Disk { sectors: self.sectors, ..disk }],
            nics: vec![Nic {
                model: NicModel::Virtio,
                mac: "52:54:00:6b:00:01".to_owned(),
                link: Link::User { forward: Vec::new() },
                netboot: Netboot::Off,
            }],
            credentials,
            cmdline_extra: None,
            // They are there in any case: it is the credentials that make the node listen.
            ports: vec![ready::PORT.to_owned(), PORT.to_owned(), door::PORT.to_owned()],
            clock: None,
            no_reboot: self.no_reboot,
            uuid: self.uuid,
            screen: false,
            shell: false,
            tpm: self.tpm,
        };
        Node { machine: Machine::start(&tools, &config, None).unwrap(), accel, _slot: slot }
    }
}

/// A machine that was switched on.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) machine: Machine,
    pub(super) accel: Accel,
    _slot: Slot,
}

impl Node {
    /// How long anything may take: a busy host under TCG needs a minute for a boot.
    pub(super) fn limit(&self) -> Duration {
        Duration::from_secs(if self.accel == Accel::Tcg { 600 } else { 120 })
    }

    /// The near end of the door.
    pub(super) fn door(&self) -> door::Door {
        door::Door::new(Arc::clone(&self.machine.ports[2]))
    }

    pub(super) fn try_ready(&mut self) -> Result<ready::Ready, Failure> {
        let limit = self.limit();
        ready::wait(&mut self.machine, 0, limit)
    }

    #[track_caller]
    pub(super) fn ready(&mut self) -> ready::Ready {
        self.try_ready().unwrap_or_else(|error| panic!("{error}\n{}", error.hints().join("\n")))
    }

    /// Asks all questions.
    #[track_caller]
    pub(super) fn facts(&mut self) -> Facts {
        let port = &self.machine.ports[1];
        port.send(b"go\n").unwrap();
        let end = std::time::Instant::now() + self.limit();
        let mut facts = Vec::new();
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            let Some(line) = port.next_line(left) else {
                panic!("no end of the facts: {facts:?}\n{}", self.machine.console.last_lines(20))
            };
            match line.split_once(' ') {
                _ if line == "end" => return Facts(facts),
                Some((name, value)) => facts.push((name.to_owned(), value.to_owned())),
                None => facts.push((line, String::new())),
            }
        }
    }

    /// Switches the node off in order; its folder, with the disk as it is now, is the caller's to remove.
    #[track_caller]
    pub(super) fn power_off(mut self) -> PathBuf {
        ready::power_off(&self.machine, 0).unwrap();
        let limit = self.limit();
        assert!(self.machine.ended(limit).unwrap(), "{}", self.machine.console.last_lines(20));
        self.machine.keep()
    }
}
