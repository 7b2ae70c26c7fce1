//! What processes have of the host's CPUs, and what they would have if they were alone.

use std::time::Duration;

use fs_err as fs;

/// CPU time of a process, all its threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// It ran for so long.
    pub ran: Duration,
    /// It could have run for so long, and others had the CPUs.
    pub waited: Duration,
}

impl Usage {
    /// That of the process `pid` so far (`/proc/PID/task/TID/schedstat`, Documentation/scheduler/sched-stats.rst: nanoseconds on a CPU and
    /// in a run queue); `None` if it is gone or the kernel does not count.
    pub fn of(pid: u32) -> Option<Self> {
        let mut usage = Usage::default();
        for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
            // A thread that ended meanwhile is not missed.
            let Ok(text) = fs::read_to_string(task.ok()?.path().join("schedstat")) else { continue };
            usage = usage.plus(parse(&text)?);
        }
        (usage != Usage::default()).then_some(usage)
    }

    /// What came to it since `before`. Threads that ended took theirs along.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Usage { ran: self.ran.saturating_sub(before.ran), waited: self.waited.saturating_sub(before.waited) }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Usage { ran: self.ran + other.ran, waited: self.waited + other.waited }
    }

    /// How long it would have run on a machine of its own.
    pub fn wanted(self) -> Duration {
        self.ran + self.waited
    }

    /// How many times as long everything took as on a machine of its own; at least 1.
    pub fn stretch(self) -> f64 {
        let ran = self.ran.as_secs_f64();
        if ran > 0.0 { (self.wanted().as_secs_f64() / ran).max(1.0) } else { 1.0 }
    }
}

fn parse(text: &str) -> Option<Usage> {
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    let (ran, waited) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(Usage { ran: Duration::from_nanos(ran), waited: Duration::from_nanos(waited) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_shares_its_cpu_knows_what_it_waited_for() {
        let usage = parse("3000000000 9000000000 42\n").unwrap();
        assert_eq!(usage, Usage { ran: Duration::from_secs(3), waited: Duration::from_secs(9) });
        assert!((usage.stretch() - 4.0).abs() < 1e-9);
        assert_eq!(parse(""), None);
        assert!((Usage::default().stretch() - 1.0).abs() < 1e-9);
        assert_eq!(usage.since(usage).wanted(), Duration::ZERO);
    }

    #[test]
    fn this_process_is_counted_and_one_that_is_not_there_is_not() {
        let before = Usage::of(std::process::id()).unwrap();
        let sum = (0..20_000_000_u64).fold(0, |a, b| a ^ std::hint::black_box(b));
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.wanted() > before.wanted(), "{sum}");
        assert_eq!(Usage::of(u32::MAX), None);
    }
}
