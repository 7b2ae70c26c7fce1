//! Where the time of a boot goes: stages, units, and the chain of units that it waited for.
//!
//! No clock covers all of a boot. What comes before the kernel is seen from outside, by the times of console lines ([`Marks`]):
//! firmware under QEMU says nothing of its own time (no FPDT, and systemd-boot's `LoaderTimeInitUSec` needs a counter that was
//! calibrated). From then on the guest's clock counts, which starts with the kernel: printk's times of the lines, and systemd's of the
//! units, which the guest tells on asking ([`super::ready::timeline`]). The two meet in the moment the kernel's clock was 0: no line is
//! seen before it was printed, so the earliest of (seen − printed) is nearest to it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use fs_err as fs;
use serde::Serialize;

use super::console::log_line;

/// A part of a boot; times in milliseconds since power-on or reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// `firmware`, `loader`, `kernel`, `initrd` or `userspace`.
    pub name: &'static str,
    /// When it began.
    pub start: u64,
    /// When it ended.
    pub end: u64,
}

/// A unit; times in milliseconds since power-on or reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// When it began to start.
    pub start: u64,
    /// When it was active; `None` if it never was.
    pub end: Option<u64>,
}

/// A boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// The stages that are known, in order.
    pub stages: Vec<Stage>,
    /// The units that were started before multi-user was reached, by start.
    pub units: Vec<Unit>,
    /// The last unit first: each waited for the next one, which ended last of those that are ordered before it.
    pub chain: Vec<Unit>,
}

/// The moments of a boot that its console tells, since power-on of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// Power-on or reset.
    pub begin: Duration,
    /// The firmware started the boot loader.
    pub loader: Option<Duration>,
    /// The kernel's clock was 0.
    pub kernel: Option<Duration>,
    /// By the kernel's clock: it started the first process.
    pub initrd: Option<Duration>,
}

impl Marks {
    /// Reads the log of a console from `begin` on.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn read(log: &Path, begin: Duration) -> std::io::Result<Self> {
        let mut marks = Marks { begin, ..Marks::default() };
        for line in BufReader::new(fs::File::open(log)?).split(b'\n') {
            let line = line?;
            if let Some((time, text)) = log_line(&String::from_utf8_lossy(&line)) {
                marks.line(time, text);
            }
        }
        Ok(marks)
    }

    fn line(&mut self, seen: Duration, text: &str) {
        if seen < self.begin {
            return;
        }
        // edk2, MdeModulePkg/Universal/BdsDxe; it may try several.
        if text.contains("BdsDxe: starting ") && self.kernel.is_none() {
            self.loader = Some(seen);
        }
        let Some((printed, message)) = stamp(text) else { return };
        // kernel/reboot.c and kernel/panic.c: here ends the boot before.
        if message.starts_with("reboot: Restarting system") {
            self.begin = seen;
        } else if let Some(delay) = message.strip_prefix("Rebooting in ") {
            let seconds = delay.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
            self.begin = seen + Duration::from_secs(seconds);
        }
        // The lines before it are of the boot before, on its way down.
        if message.starts_with("Linux version ") && self.kernel.is_none() {
            self.kernel = Some(seen.saturating_sub(printed));
        } else if let Some(kernel) = &mut self.kernel {
            *kernel = (*kernel).min(seen.saturating_sub(printed)).max(self.loader.unwrap_or(self.begin));
        }
        // init/main.c, run_init_process.
        if self.initrd.is_none() && self.kernel.is_some() && message.starts_with("Run /init as init process")
        {
            self.initrd = Some(printed);
        }
    }
}

/// The time and the text of a kernel line, `[   12.345678] text`, and whatever stands before it.
fn stamp(line: &str) -> Option<(Duration, &str)> {
    let mut rest = line;
    loop {
        let (_, after) = rest.split_once('[')?;
        rest = after;
        let Some((number, message)) = after.split_once("] ") else { continue };
        let Some((seconds, micros)) = number.trim_start().split_once('.') else { continue };
        if micros.len() == 6
            && let (Ok(seconds), Ok(micros)) = (seconds.parse(), micros.parse::<u64>())
        {
            return Some((Duration::from_secs(seconds) + Duration::from_micros(micros), message));
        }
    }
}

/// What systemd says of a unit; times in microseconds of its clock, 0 for never.
#[derive(Debug, Default)]
struct Shown {
    start: u64,
    end: u64,
    after: Vec<String>,
}

/// Reads `systemctl show` of many units: properties line by line, an empty line between units.
fn shown(text: &str) -> BTreeMap<String, Shown> {
    let mut all = BTreeMap::new();
    for block in text.split("\n\n") {
        let (mut name, mut unit) = (None, Shown::default());
        for (key, value) in block.lines().filter_map(|line| line.split_once('=')) {
            match key {
                "Id" => name = Some(value.to_owned()),
                "InactiveExitTimestampMonotonic" => unit.start = value.parse().unwrap_or(0),
                "ActiveEnterTimestampMonotonic" => unit.end = value.parse().unwrap_or(0),
                "After" => unit.after = value.split(' ').map(str::to_owned).collect(),
                _ => {}
            }
        }
        if let Some(name) = name {
            all.insert(name, unit);
        }
    }
    all
}

/// The unit whose end is the end of a boot.
const GOAL: &str = "multi-user.target";

impl Timeline {
    /// Puts together what the console and the guest say: `userspace` and `finished` in microseconds of the guest's clock, `units` as
    /// `systemctl show` prints them.
    pub(super) fn new(marks: &Marks, userspace: u64, finished: u64, units: &str) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let origin = marks.kernel.map_or(0, |kernel| micros(kernel.saturating_sub(marks.begin)));
        let at = |time: u64| (origin + time) / 1000;
        let loader = marks.loader.map(|loader| micros(loader.saturating_sub(marks.begin)) / 1000);
        let kernel = marks.kernel.map(|_| at(0));
        let initrd = marks.initrd.map(|initrd| at(micros(initrd)));
        let borders = [
            ("firmware", Some(0), loader.or(kernel)),
            ("loader", loader, kernel),
            ("kernel", kernel, initrd.or(Some(at(userspace)))),
            ("initrd", initrd, Some(at(userspace))),
            ("userspace", Some(at(userspace)), Some(at(finished))),
        ];
        let stage = |(name, start, end): (&'static str, Option<u64>, Option<u64>)| {
            let (start, end) = (start?, end?);
            (start <= end).then_some(Stage { name, start, end })
        };
        let shown = shown(units);
        let unit = |name: &str, unit: &Shown| Unit {
            name: name.to_owned(),
            start: at(unit.start),
            end: (unit.end > 0).then(|| at(unit.end)),
        };
        let mut all: Vec<(&String, &Shown)> =
            shown.iter().filter(|(_, unit)| (1..=finished).contains(&unit.start)).collect();
        all.sort_by_key(|(name, unit)| (unit.start, *name));
        Timeline {
            stages: borders.into_iter().filter_map(stage).collect(),
            units: all.into_iter().map(|(name, shown)| unit(name, shown)).collect(),
            chain: chain(&shown).into_iter().filter_map(|name| Some(unit(name, shown.get(name)?))).collect(),
        }
    }
}

/// From the goal back: of what a unit is ordered after, the one that ended last before the unit began.
fn chain(units: &BTreeMap<String, Shown>) -> Vec<&str> {
    let mut chain: Vec<&str> = Vec::new();
    let mut next = units.get_key_value(GOAL);
    while let Some((name, unit)) = next {
        chain.push(name);
        next = unit
            .after
            .iter()
            .filter(|before| !chain.contains(&before.as_str()))
            .filter_map(|before| units.get_key_value(before))
            .filter(|(_, before)| before.end > 0 && before.end <= unit.start)
            .max_by_key(|(_, before)| before.end);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const LOG: [(u64, &str); 9] = [
        (900, "BdsDxe: loading Boot0001"),
        (1_000, "BdsDxe: starting Boot0001 \"UEFI Misc Device\""),
        (2_000, "EFI stub: Loaded initrd"),
        // The serial line comes up late: the first lines are seen long after they were printed.
        (5_000, "[    0.000000] Linux version 6.12"),
        (5_001, "[    1.500000] printk: console [ttyS0] enabled"),
        (6_100, "[    2.600000] Run /init as init process"),
        (6_600, "M[   ] job[    3.000000] kiln: root is /dev/vda3"),
        (7_600, "[    4.000000] systemd[1]: systemd 257 running"),
        (7_700, "a [b] c"),
    ];

    fn marks() -> Marks {
        let mut marks = Marks::default();
        LOG.iter().for_each(|(seen, text)| marks.line(ms(*seen), text));
        marks
    }

    #[test]
    fn the_kernels_clock_is_found_by_the_line_that_was_seen_soonest() {
        assert_eq!(
            marks(),
            Marks { begin: ms(0), loader: Some(ms(1_000)), kernel: Some(ms(3_500)), initrd: Some(ms(2_600)) }
        );
    }

    #[test]
    fn a_second_boot_does_not_count_the_end_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut text =
            String::from("[    1.000] BdsDxe: starting\n[   20.000] [    0.000000] Linux version 6\n");
        text += "[   99.000] [   90.000000] reboot: Restarting system\n";
        for (seen, line) in LOG {
            text += &format!("[{:9.3}] {line}\n", (ms(seen) + ms(98_000)).as_secs_f64());
        }
        fs::write(&log, text).unwrap();
        let marks = Marks::read(&log, ms(98_000)).unwrap();
        assert_eq!((marks.loader, marks.kernel), (Some(ms(99_000)), Some(ms(101_500))));
    }

    const UNITS: &str = "Id=multi-user.target\nInactiveExitTimestampMonotonic=9000000\nActiveEnterTimestampMonotonic=9000000\nAfter=basic.target slow.service late.service\n\n\
        Id=slow.service\nInactiveExitTimestampMonotonic=5000000\nActiveEnterTimestampMonotonic=8900000\nAfter=basic.target never.service\n\n\
        Id=basic.target\nInactiveExitTimestampMonotonic=4800000\nActiveEnterTimestampMonotonic=4800000\nAfter=multi-user.target\n\n\
        Id=late.service\nInactiveExitTimestampMonotonic=8000000\nActiveEnterTimestampMonotonic=9500000\n\n\
        Id=never.service\nInactiveExitTimestampMonotonic=0\nActiveEnterTimestampMonotonic=0\n\n";

    #[test]
    fn stages_units_and_chain_stand_on_one_scale() {
        let timeline = Timeline::new(&marks(), 4_000_000, 9_000_000, UNITS);
        let stages: Vec<_> = timeline.stages.iter().map(|s| (s.name, s.start, s.end)).collect();
        assert_eq!(
            stages,
            [
                ("firmware", 0, 1_000),
                ("loader", 1_000, 3_500),
                ("kernel", 3_500, 6_100),
                ("initrd", 6_100, 7_500),
                ("userspace", 7_500, 12_500)
            ]
        );
        let units: Vec<_> = timeline.units.iter().map(|u| (u.name.as_str(), u.start, u.end)).collect();
        assert_eq!(
            units,
            [
                ("basic.target", 8_300, Some(8_300)),
                ("slow.service", 8_500, Some(12_400)),
                ("late.service", 11_500, Some(13_000)),
                ("multi-user.target", 12_500, Some(12_500))
            ]
        );
        let chain: Vec<_> = timeline.chain.iter().map(|u| u.name.as_str()).collect();
        assert_eq!(chain, ["multi-user.target", "slow.service", "basic.target"]);
    }

    #[test]
    fn nothing_known_is_an_empty_timeline() {
        let timeline = Timeline::new(&Marks::default(), 0, 0, "rubbish\n\nId=x\nAfter");
        assert_eq!((timeline.units.len(), timeline.chain.len()), (0, 0));
        assert!(timeline.stages.iter().all(|stage| stage.end == 0), "{timeline:?}");
    }
}
