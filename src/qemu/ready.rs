//! How a machine tells that its boot has ended, without anything of it being in the image.
//!
//! [`credentials`] are handed over by firmware (SMBIOS type 11). systemd's debug generator makes a unit and a drop-in of two of
//! them (`systemd.extra-unit.NAME` and `systemd.unit-dropin.NAME`, systemd-debug-generator(8), since 256); the third is the
//! script the unit runs out of /run/credentials/@system. The unit is of type `exec`: its own start job is done at once, so
//! `systemctl is-system-running` can see an empty job queue while the script waits for just that. It writes to the
//! virtio-serial port [`PORT`]:
//!
//! ```text
//! boot 01234567-89ab-cdef-0123-456789abcdef      the id of the boot, first of all
//! job 123 dev-disk-foo.device start running      every 10 s while boot goes on
//! restart k3s.service 4 auto-restart             a service that is started again and again, and what it said last
//! why ...
//! jobs-end
//! state running                                  or degraded, maintenance
//! FinishTimestampMonotonic=12345678              systemctl show
//! failed nfs-mountd.service
//! log    ...                                     systemctl status of each failed unit
//! hostname server-1
//! end
//! ```
//!
//! A boot has ended when no job is left and no service is being started again. systemd calls a machine `running` while a service
//! of it waits for its next start, since such a service has not failed. So a service that was started again has to stay up for
//! 30 seconds first; one that was started once is taken as it is, and delays nothing. A unit that failed ends the boot at once.
//!
//! Each boot of a machine reports again. Besides, the script takes an order: `poweroff` ([`power_off`]), so that ending in order
//! needs neither logind nor a power button's driver in the image, or `timeline` ([`timeline`]), which costs the guest some
//! seconds when it is emulated and so is no part of the report.
//!
//! vsock with `vmm.notify_socket` would need no script, but needs vhost-vsock on the host, which containers and CI seldom have.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::console::Position;
use super::machine::Machine;
use super::timeline::{Marks, Timeline};
use crate::error::{Failure, Kind};

/// The virtio-serial port of the report.
pub const PORT: &str = "kiln.ready";

/// The unit. It is wanted by multi-user.target, see [`DROPIN`].
const UNIT: &str = "[Unit]
Description=Tell kiln that boot has ended
[Service]
Type=exec
ExecStart=/bin/sh /run/credentials/@system/kiln.ready
StandardOutput=null
";

const DROPIN: &str = "[Unit]
Wants=kiln-ready.service
";

/// A function of the shell, `restarting`: a line `restart UNIT TIMES STATE` for each service that systemd is starting again, or has started
/// again and that is not up for 30 s yet. Who logs out ends the service of a terminal; kiln's own units in the guest do not count either.
pub const RESTARTING: &str = r#"
restarting() {
  read -r now rest </proc/uptime
  { systemctl show --type=service -p Id,NRestarts,ActiveState,SubState,ActiveEnterTimestampMonotonic '*'; echo; } | {
    id= times=0 active= sub= since=0
    while read -r line; do
      case $line in
        Id=*) id=${line#*=} ;;
        NRestarts=*) times=${line#*=} ;;
        ActiveState=*) active=${line#*=} ;;
        SubState=*) sub=${line#*=} ;;
        ActiveEnterTimestampMonotonic=*) since=${line#*=} ;;
        '')
          case $id in *getty@*|kiln-door.service|kiln-shell.service|kiln-ready.service) times=0 sub= ;; esac
          case $sub in
            auto-restart*) echo "restart $id $times $sub" ;;
            *)
              [ "$times" -gt 0 ] && case $active in
                active) [ $((${now%.*} - since / 1000000)) -lt 30 ] && echo "restart $id $times $sub" ;;
                activating|reloading|deactivating) echo "restart $id $times $sub" ;;
              esac
              ;;
          esac
          id= times=0 active= sub= since=0
          ;;
      esac
    done
  }
}
"#;

/// Needs sh, sleep and systemctl of the image, and journalctl for what a service said. `--wait` saves the polling where the bus is up
/// already. [`RESTARTING`] stands before it.
const SCRIPT: &str = r#"port=/dev/virtio-ports/kiln.ready
report() {
read -r line </proc/sys/kernel/random/boot_id
echo
echo "boot $line"
(while sleep 10; do
  systemctl list-jobs --no-legend --plain | while read -r line; do echo "job $line"; done
  restarting | while read -r word unit rest; do
    echo "restart $unit $rest"
    journalctl -b --quiet --no-pager -o cat -n 6 _SYSTEMD_UNIT="$unit" | while read -r line; do echo "why $line"; done
  done
  echo jobs-end
done) &
watch=$!
while :; do
  state=$(systemctl is-system-running --wait)
  case $state in
    ''|initializing|starting|offline|unknown) sleep 0.3 ;;
    running) [ -n "$(restarting)" ] || break; sleep 1 ;;
    *) break ;;
  esac
done
kill "$watch"
echo
echo "state $state"
systemctl show -p FirmwareTimestampMonotonic -p LoaderTimestampMonotonic -p InitRDTimestampMonotonic \
  -p UserspaceTimestampMonotonic -p FinishTimestampMonotonic
systemctl list-units --state=failed --no-legend --plain | while read -r unit rest; do
  echo "failed $unit"
  systemctl status --no-pager --full --lines=20 "$unit" | while read -r line; do echo "log $line"; done
done
read -r line </proc/sys/kernel/hostname; echo "hostname $line"
read -r line </etc/machine-id; echo "machine-id $line"
read -r line </proc/sys/kernel/osrelease; echo "kernel $line"
while read -r device where kind options rest; do
  [ "$where" = / ] && echo "root $kind $device $options"
done </proc/mounts
for uuid in /sys/block/dm-*/dm/uuid; do
  [ -r "$uuid" ] && read -r line <"$uuid" && echo "mapper $line"
done
echo end
}
n=0
until [ -c "$port" ]; do
  n=$((n + 1)); [ "$n" -gt 1200 ] && exit 1
  sleep 0.1
done
exec 3<>"$port" >&3 2>/dev/null
report &
set -f
while :; do
  if ! read -r order <&3; then
    sleep 1
    continue
  fi
  case $order in
    poweroff) systemctl poweroff --no-block ;;
    timeline)
      show="systemctl show -p Id,InactiveExitTimestampMonotonic,ActiveEnterTimestampMonotonic,After"
      units=$($show --type=service,target,mount,socket,device '*')
      printf '%s\n\n' "$units"
      # Links of /dev have units that no list shows.
      devices=$(for word in $units; do
        case ${word#After=} in dev-*.device) printf '%s\n' "${word#After=}" ;; esac
      done)
      [ -z "$devices" ] || $show $devices
      echo
      echo timeline-end
      ;;
  esac
done
"#;

/// The credentials that make a machine report.
pub fn credentials() -> Vec<(String, Vec<u8>)> {
    [
        ("systemd.extra-unit.kiln-ready.service", UNIT.to_owned()),
        ("systemd.unit-dropin.multi-user.target", DROPIN.to_owned()),
        ("kiln.ready", format!("{RESTARTING}{SCRIPT}")),
    ]
    .map(|(name, text)| (name.to_owned(), text.into_bytes()))
    .to_vec()
}

/// The stages of a boot in milliseconds. What the guest does not know of itself, as it is on most virtual machines, is taken from
/// the console ([`Marks`]); 0 where that tells nothing either.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stages {
    /// Power-on to boot loader.
    pub firmware: u64,
    /// Boot loader and stub.
    pub loader: u64,
    /// Kernel to the first process.
    pub kernel: u64,
    /// The initrd.
    pub initrd: u64,
    /// The root's first process to the end of the initial jobs.
    pub userspace: u64,
}

/// What the machine said of itself when boot had ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Ready {
    /// `running`, `degraded` (a unit failed), `maintenance` …
    pub state: String,
    /// The boot's id (/proc/sys/kernel/random/boot_id).
    pub boot: String,
    /// The failed units.
    pub failed: Vec<String>,
    /// `systemctl status` of them.
    pub log: Vec<String>,
    /// Times by stage.
    pub stages: Stages,
    /// Seen from outside: switched on to this report, in milliseconds.
    pub total: u64,
    /// When the kernel handed over to systemd, in microseconds of the guest's clock.
    pub userspace_at: u64,
    /// When the initial jobs were done, likewise.
    pub finished_at: u64,
    /// The host name.
    pub hostname: String,
    /// /etc/machine-id.
    pub machine_id: String,
    /// `uname -r`.
    pub kernel: String,
    /// File system type, device and options of the root.
    pub root: String,
    /// Whether a dm-verity device is set up.
    pub verity: bool,
}

impl Ready {
    /// Whether the node is up with no failed unit.
    pub fn is_good(&self) -> bool {
        self.state == "running" && self.failed.is_empty()
    }

    /// Puts in the stages what the guest does not know of itself.
    fn fill(&mut self, marks: &Marks) {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let stages = &mut self.stages;
        if let Some(initrd) = marks.initrd
            && stages.initrd == 0
        {
            stages.initrd = stages.kernel.saturating_sub(ms(initrd));
            stages.kernel -= stages.initrd;
        }
        if stages.firmware + stages.loader == 0 {
            let loader = marks.loader.or(marks.kernel).unwrap_or(marks.begin);
            stages.firmware = ms(loader.saturating_sub(marks.begin));
            stages.loader = marks.kernel.map_or(0, |kernel| ms(kernel.saturating_sub(loader)));
        }
    }
}

/// What a line of [`RESTARTING`] says, without its first word.
pub fn unsettled(line: &str) -> String {
    let mut words = line.splitn(3, ' ');
    let [unit, times, state] = [(); 3].map(|()| words.next().unwrap_or_default());
    let often = if times == "1" { "once".to_owned() } else { format!("{times} times") };
    format!("{unit} does not stay up: started again {often}, now {state}")
}

/// Reads a report; `None` before its `end` line came. Unknown lines are passed over, so that a newer script may say more.
#[derive(Debug, Default)]
pub struct Parser {
    ready: Ready,
    times: BTreeMap<String, u64>,
    jobs: Vec<String>,
    jobs_whole: bool,
}

impl Parser {
    /// Takes one line; gives the report once it is whole.
    pub fn line(&mut self, line: &str) -> Option<Ready> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.to_owned();
        match word {
            "job" => self.waits(rest),
            "restart" => {
                self.waits(format!("{}; it said last:", unsettled(&rest)));
            }
            "why" => self.waits(format!("  {}", crate::ui::plain(&rest))),
            "jobs-end" => {
                // Twice in a row: it waits for nothing any more.
                if std::mem::replace(&mut self.jobs_whole, true) {
                    self.jobs.clear();
                }
            }
            "boot" => *self = Parser { ready: Ready { boot: rest, ..Ready::default() }, ..Parser::default() },
            "state" => self.ready.state = rest,
            "failed" => self.ready.failed.push(rest),
            "log" => self.ready.log.push(rest),
            "hostname" => self.ready.hostname = rest,
            "machine-id" => self.ready.machine_id = rest,
            "kernel" => self.ready.kernel = rest,
            "root" => self.ready.root = rest,
            "mapper" => self.ready.verity |= rest.starts_with("CRYPT-VERITY-"),
            "end" => {
                self.ready.stages = self.stages();
                self.ready.userspace_at = self.at("Userspace");
                self.ready.finished_at = self.at("Finish");
                return Some(std::mem::take(&mut self.ready));
            }
            _ => {
                if let Some((name, value)) = line.split_once('=')
                    && let Ok(micros) = value.parse()
                {
                    self.times.insert(name.to_owned(), micros);
                }
            }
        }
        None
    }

    /// The jobs that the guest last said it was waiting for, and the services that do not stay up.
    pub fn jobs(&self) -> &[String] {
        &self.jobs
    }

    /// One more line of what it waits for; the first one after `jobs-end` begins a new list.
    fn waits(&mut self, line: String) {
        if std::mem::take(&mut self.jobs_whole) {
            self.jobs.clear();
        }
        self.jobs.push(line);
    }

    fn at(&self, name: &str) -> u64 {
        self.times.get(&format!("{name}TimestampMonotonic")).copied().unwrap_or(0)
    }

    /// Firmware and loader times count backwards from the kernel's start, the others forwards (systemd's manager interface).
    fn stages(&self) -> Stages {
        let (firmware, loader, initrd) = (self.at("Firmware"), self.at("Loader"), self.at("InitRD"));
        let (userspace, finish) = (self.at("Userspace"), self.at("Finish"));
        let first = if initrd > 0 { initrd } else { userspace };
        Stages {
            firmware: firmware.saturating_sub(loader) / 1000,
            loader: loader / 1000,
            kernel: first / 1000,
            initrd: userspace.saturating_sub(first) / 1000,
            userspace: finish.saturating_sub(userspace) / 1000,
        }
    }
}

/// Tells the script to switch the machine off in order; then [`Machine::ended`] waits for it.
///
/// # Errors
/// [`Kind::Test`] when the port is closed already.
pub fn power_off(machine: &Machine, port: usize) -> Result<(), Failure> {
    order(machine, port, "poweroff")
}

fn order(machine: &Machine, port: usize, word: &str) -> Result<(), Failure> {
    let sent = machine.ports.get(port).map_or(Ok(()), |port| port.send(format!("{word}\n").as_bytes()));
    sent.map_err(|error| Failure::new(Kind::Test, "the machine closed its report's port").because(error))
}

/// Console lines after which no report will come.
pub const LOST: [&str; 6] = [
    "Kernel panic - not syncing",
    "You are in emergency mode",
    "Entering emergency mode",
    // What emergency mode says where root has no password.
    "Cannot open access to console",
    "BdsDxe: No bootable option or device was found",
    "EFI stub: ERROR",
];

/// The boot whose report is waited for.
#[derive(Debug, Clone)]
pub struct Boot {
    /// When it began: power-on, or the reset.
    pub begin: Instant,
    /// Where in the console's text it begins; what stands before, such as a panic, is of the boot before.
    pub console: Position,
    /// The boot before: its report, if it still comes, is passed over.
    pub before: Option<String>,
}

impl Boot {
    /// The boot after power-on.
    pub fn first(machine: &Machine) -> Self {
        Boot { begin: machine.started(), console: Position::default(), before: None }
    }

    /// The boot that begins about now, after the one with the id `before`.
    pub fn next(machine: &Machine, before: Option<String>) -> Self {
        Boot { begin: Instant::now(), console: machine.console.position(), before }
    }
}

/// Waits for the report of the first boot of a machine that was started with [`credentials`] and [`PORT`] as its port number
/// `port`.
///
/// # Errors
/// See [`wait_boot`].
pub fn wait(machine: &mut Machine, port: usize, limit: Duration) -> Result<Ready, Failure> {
    let boot = Boot::first(machine);
    wait_boot(machine, port, &boot, limit)
}

/// Waits for the report of `boot`, up to `limit` after it began.
///
/// # Errors
/// [`Kind::Test`] with the jobs it waited for and the console's last lines when the report does not come within `limit`, or
/// cannot come any more.
pub fn wait_boot(machine: &mut Machine, port: usize, boot: &Boot, limit: Duration) -> Result<Ready, Failure> {
    let end = boot.begin + limit;
    let mut parser = Parser::default();
    let lost = |kind, why: String, machine: &Machine, parser: &Parser| {
        let mut failure = Failure::new(kind, why);
        if !parser.jobs().is_empty() {
            failure = failure.hint(format!("it was waiting for:\n{}", parser.jobs().join("\n")));
        }
        failure.hint(format!("the console's last lines:\n{}", machine.console.last_lines(20)))
    };
    loop {
        crate::sys::check_interrupt()?;
        let line = machine.ports.get(port).and_then(|port| port.next_line(Duration::from_millis(200)));
        if let Some(line) = line {
            if let Some(mut ready) = parser.line(&line)
                && boot.before.as_ref() != Some(&ready.boot)
            {
                complete(machine, boot, &mut ready);
                return Ok(ready);
            }
            continue;
        }
        if let Err(failure) = machine.check_alive() {
            if failure.kind == Kind::Interrupted {
                return Err(failure);
            }
            let why = format!("the machine ended before it was ready: {failure}");
            return Err(lost(failure.kind, why, machine, &parser));
        }
        if let Some(pattern) = machine.console.seen_since(boot.console, &LOST) {
            let why = format!("the machine will not get ready: its console says `{pattern}`");
            return Err(lost(Kind::Test, why, machine, &parser));
        }
        if Instant::now() > end {
            let why = format!("the machine was not ready after {} s", limit.as_secs());
            return Err(lost(Kind::Test, why, machine, &parser));
        }
    }
}

/// What the console tells of `boot`.
fn marks(machine: &Machine, boot: &Boot) -> Marks {
    let begin = boot.begin.saturating_duration_since(machine.epoch());
    Marks::read(machine.console.log(), begin).unwrap_or_default()
}

/// Puts into the report of `boot` what only the console tells of it.
pub fn complete(machine: &Machine, boot: &Boot, ready: &mut Ready) {
    ready.total = u64::try_from(boot.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    ready.fill(&marks(machine, boot));
}

/// Asks a machine that reported `ready` for the timeline of `boot`.
///
/// # Errors
/// [`Kind::Test`] when it does not answer within `limit`.
pub fn timeline(
    machine: &mut Machine,
    port: usize,
    boot: &Boot,
    ready: &Ready,
    limit: Duration,
) -> Result<Timeline, Failure> {
    order(machine, port, "timeline")?;
    let end = Instant::now() + limit;
    let mut text = String::new();
    loop {
        crate::sys::check_interrupt()?;
        let line = machine.ports.get(port).and_then(|port| port.next_line(Duration::from_millis(200)));
        match line.as_deref() {
            Some("timeline-end") => break,
            Some(line) => text.extend([line, "\n"]),
            None => {
                machine.check_alive()?;
                if Instant::now() > end {
                    let what = format!("the machine did not tell its timeline within {} s", limit.as_secs());
                    return Err(Failure::new(Kind::Test, what).hint(machine.console.last_lines(20)));
                }
            }
        }
    }
    Ok(Timeline::new(&marks(machine, boot), ready.userspace_at, ready.finished_at, &text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::Tool;

    fn read(text: &str) -> (Option<Ready>, Parser) {
        let mut parser = Parser::default();
        let ready = text.lines().find_map(|line| parser.line(line));
        (ready, parser)
    }

    #[test]
    fn a_whole_report_is_read_with_stages_as_systemd_analyze_counts_them() {
        let (ready, _) = read(
            "state degraded\nFirmwareTimestampMonotonic=9000000\nLoaderTimestampMonotonic=2000000\n\
             InitRDTimestampMonotonic=3000000\nUserspaceTimestampMonotonic=7500000\nFinishTimestampMonotonic=20000000\n\
             failed a.service\nlog x\nhostname n1\nmachine-id 0123\nkernel 6.12\n\
             root erofs /dev/mapper/root ro\nmapper CRYPT-VERITY-00-root\nfuture word\nend\n",
        );
        let ready = ready.unwrap();
        let stages = Stages { firmware: 7000, loader: 2000, kernel: 3000, initrd: 4500, userspace: 12500 };
        assert_eq!(ready.stages, stages);
        assert_eq!((ready.failed.as_slice(), ready.verity), (&["a.service".to_owned()][..], true));
        assert!(!ready.is_good());
    }

    #[test]
    fn without_systemd_in_the_initrd_its_time_is_the_kernels() {
        let (ready, _) = read(
            "state running\nInitRDTimestampMonotonic=0\nUserspaceTimestampMonotonic=4000000\nFinishTimestampMonotonic=5000000\nend\n",
        );
        let ready = ready.unwrap();
        assert_eq!((ready.stages.kernel, ready.stages.initrd, ready.stages.userspace), (4000, 0, 1000));
        assert!(ready.is_good() && !ready.verity);
    }

    #[test]
    fn a_report_without_end_is_none_and_shows_the_last_jobs() {
        let (ready, parser) =
            read("job 1 a start\njobs-end\njob 2 b start\njob 3 c start\njobs-end\nstate run");
        assert_eq!(ready, None);
        assert_eq!(parser.jobs(), ["2 b start", "3 c start"]);
    }

    #[test]
    fn a_service_that_is_started_again_is_what_a_boot_waits_for_with_its_last_words() {
        let text = "job 1 a start\njobs-end\nrestart k3s.service 4 auto-restart\nwhy \u{1b}[31mUnable to find default route\njobs-end\n";
        let (ready, parser) = read(text);
        let what = [
            "k3s.service does not stay up: started again 4 times, now auto-restart; it said last:",
            "  Unable to find default route",
        ];
        assert_eq!((ready, parser.jobs()), (None, what.map(str::to_owned).as_slice()));
        // It is up, and nothing is left to wait for.
        assert!(read(&format!("{text}jobs-end\n")).1.jobs().is_empty());
    }

    /// Runs [`RESTARTING`] with a systemctl that says `units`; the machine is up for `up` seconds.
    fn restarting(units: &str, up: u32) -> String {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("uptime"), format!("{up}.20 7.00\n")).unwrap();
        // The last unit has no empty line behind it.
        fs_err::write(dir.path().join("units"), format!("{}\n", units.trim_end())).unwrap();
        let function = RESTARTING.replace("/proc/uptime", &dir.path().join("uptime").display().to_string());
        let script =
            format!("systemctl() {{ cat '{}/units'; }}\n{function}\nrestarting", dir.path().display());
        let said = Tool::host("/bin/sh").command().arg("-c").arg(&script).read().unwrap();
        String::from_utf8(said).unwrap()
    }

    #[test]
    fn services_that_are_started_again_are_not_up_until_they_stay_up() {
        let unit = |id: &str, times: u32, active: &str, sub: &str, since: u32| {
            format!(
                "NRestarts={times}\nId={id}\nActiveState={active}\nSubState={sub}\nActiveEnterTimestampMonotonic={since}000000\n\n"
            )
        };
        let good = [
            unit("a.service", 0, "active", "running", 99),
            unit("b.service", 0, "activating", "start", 0),
            unit("c.service", 3, "active", "running", 60),
            unit("d.service", 3, "inactive", "dead", 60),
            unit("getty@tty1.service", 3, "activating", "auto-restart", 99),
            unit("kiln-door.service", 3, "active", "running", 99),
        ]
        .concat();
        assert_eq!(restarting(&good, 100), "");
        let bad = [
            unit("a.service", 0, "activating", "auto-restart", 0),
            unit("k3s.service", 7, "activating", "start", 0),
            unit("x@1.service", 1, "active", "running", 80),
        ]
        .concat();
        assert_eq!(
            restarting(&(good + &bad), 100),
            "restart a.service 0 auto-restart\nrestart k3s.service 7 start\nrestart x@1.service 1 running\n"
        );
    }
}
