//! Whether the machines of a run still do anything.
//!
//! A limit is as long as a slow machine may take for work, and much longer where guests are emulated: for what only waits, that is idle
//! time. A machine that waits for the time that the scenario's file gives a step, and computes, writes, sends and says nothing
//! meanwhile, would have failed under KVM as well, and is given up then.

use std::time::Duration;

/// How often it is looked.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
/// No step is given up before: units have 90 s to start (systemd-system.conf(5)), and a node waits up to 20 s for a time server.
pub(super) const LEAST: Duration = Duration::from_secs(180);

/// What is no work, of each machine in a second: an idle Linux looks at its clocks, writes a line to its journal and asks for the time.
const IDLE_CPU: f64 = 0.1;
const IDLE_REQUESTS: f64 = 4.0;
const IDLE_FRAMES: f64 = 6.0;

/// What all machines that are on have done since they were made.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Activity {
    /// How many of them are on.
    pub(super) machines: usize,
    /// Lines on their consoles.
    pub(super) lines: u64,
    /// CPU time that they had or would have had: one that others keep from the CPU is not idle.
    pub(super) cpu: Duration,
    /// Requests to their disks.
    pub(super) requests: u64,
    /// Frames on their cables.
    pub(super) frames: u64,
}

/// What they did in a while.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Done {
    pub(super) time: Duration,
    pub(super) lines: u64,
    pub(super) cpu: Duration,
    pub(super) requests: u64,
    pub(super) frames: u64,
}

impl Done {
    fn between(time: Duration, before: &Activity, now: &Activity) -> Self {
        Done {
            time,
            lines: now.lines.saturating_sub(before.lines),
            cpu: now.cpu.saturating_sub(before.cpu),
            requests: now.requests.saturating_sub(before.requests),
            frames: now.frames.saturating_sub(before.frames),
        }
    }

    /// Whether `machines` did nothing but be there.
    fn is_idle(&self, machines: usize) -> bool {
        let each = self.time.as_secs_f64() * machines as f64;
        self.lines == 0
            && self.cpu.as_secs_f64() < IDLE_CPU * each
            && (self.requests as f64) < IDLE_REQUESTS * each
            && (self.frames as f64) < IDLE_FRAMES * each
    }

    /// For people: what was seen.
    pub(super) fn text(&self) -> String {
        format!(
            "in {} s no line on a console, {:.1} s of CPU time, {} disk requests and {} network frames, of all machines together",
            self.time.as_secs(),
            self.cpu.as_secs_f64(),
            self.requests,
            self.frames
        )
    }
}

/// Sees since when nothing was done.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// When it was looked last, and what there was.
    last: Option<(Duration, Activity)>,
    /// The same, when the present silence began.
    silence: Option<(Duration, Activity)>,
}

impl Progress {
    /// Looks at `at`, on any clock, that of all calls.
    pub(super) fn see(&mut self, at: Duration, now: Activity) {
        if let Some((before_at, before)) = self.last {
            let done = Done::between(at.saturating_sub(before_at), &before, &now);
            // One that is switched on or off does something, whatever it had done when it went.
            let idle = now.machines > 0 && now.machines == before.machines && done.is_idle(now.machines);
            self.silence = if idle { self.silence.or(Some((before_at, before))) } else { None };
        }
        self.last = Some((at, now));
    }

    /// What was done since `from` up to the last look, if that was nothing for `patience`.
    pub(super) fn stuck(&self, from: Duration, patience: Duration) -> Option<Done> {
        let ((at, now), (since, before)) = (self.last.as_ref()?, self.silence.as_ref()?);
        let silent = at.saturating_sub((*since).max(from));
        (silent >= patience).then(|| Done { time: silent, ..Done::between(silent, before, now) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    /// Machines that do the same in each second.
    fn steady(progress: &mut Progress, from: u64, to: u64, machines: usize, each: (u64, u64, u64, u64)) {
        for at in (from..=to).step_by(10) {
            let (lines, cpu_ms, requests, frames) = each;
            let activity = Activity {
                machines,
                lines: 1000 + at * lines,
                cpu: Duration::from_millis(500_000 + at * cpu_ms),
                requests: 5000 + at * requests,
                frames: 800 + at * frames,
            };
            progress.see(second(at), activity);
        }
    }

    #[test]
    fn a_machine_that_does_nothing_is_stuck_after_the_time_that_the_step_has() {
        let mut progress = Progress::default();
        // `sleep infinity` in a node under TCG: the clock ticks, the time is asked for.
        steady(&mut progress, 0, 290, 1, (0, 30, 1, 1));
        assert_eq!(progress.stuck(second(0), second(300)), None);
        steady(&mut progress, 300, 300, 1, (0, 30, 1, 1));
        let done = progress.stuck(second(0), second(300)).unwrap();
        assert_eq!((done.time, done.lines, done.cpu, done.requests), (second(300), 0, second(9), 300));
        assert!(
            done.text().starts_with("in 300 s no line on a console, 9.0 s of CPU time"),
            "{}",
            done.text()
        );
        // A step that began later has its own time.
        assert_eq!(progress.stuck(second(200), second(300)), None);
    }

    #[test]
    fn a_paused_machine_does_nothing_at_all() {
        let mut progress = Progress::default();
        steady(&mut progress, 0, 200, 1, (0, 0, 0, 0));
        assert!(progress.stuck(second(0), LEAST).is_some());
    }

    #[test]
    fn whoever_computes_says_writes_or_sends_goes_on() {
        for each in [(1, 0, 0, 0), (0, 900, 0, 0), (0, 0, 50, 0), (0, 0, 0, 100), (0, 120, 0, 0)] {
            let mut progress = Progress::default();
            steady(&mut progress, 0, 4000, 1, each);
            assert_eq!(progress.stuck(second(0), LEAST), None, "{each:?}");
        }
    }

    #[test]
    fn one_of_several_that_works_is_enough_and_what_idle_ones_do_together_is_no_work() {
        let mut progress = Progress::default();
        steady(&mut progress, 0, 1000, 4, (0, 1000, 0, 0));
        assert_eq!(progress.stuck(second(0), LEAST), None, "one of four computes");
        let mut progress = Progress::default();
        steady(&mut progress, 0, 1000, 4, (0, 200, 4, 8));
        assert!(progress.stuck(second(0), LEAST).is_some());
    }

    #[test]
    fn a_word_in_between_begins_the_silence_again() {
        let mut progress = Progress::default();
        let quiet = Activity { machines: 1, ..Activity::default() };
        for at in 0..100 {
            // A service that is tried again each 48 s is something that happens.
            let lines = at * 10 / 48;
            progress.see(second(at * 10), Activity { lines, ..quiet });
        }
        assert_eq!(progress.stuck(second(0), LEAST), None);
        // A machine that goes away, too.
        let mut progress = Progress::default();
        progress.see(second(0), Activity { machines: 2, ..quiet });
        progress.see(second(100), Activity { machines: 2, ..quiet });
        progress.see(second(110), quiet);
        progress.see(second(280), quiet);
        assert_eq!(progress.stuck(second(0), LEAST), None);
        progress.see(second(290), quiet);
        assert!(progress.stuck(second(0), LEAST).is_some());
        // And with none that is on there is nobody to be stuck.
        let mut progress = Progress::default();
        steady(&mut progress, 0, 1000, 0, (0, 0, 0, 0));
        assert_eq!(progress.stuck(second(0), LEAST), None);
    }
}
