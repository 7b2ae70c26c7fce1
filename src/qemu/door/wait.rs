//! Waiting for something to become true in a guest.

use std::time::{Duration, Instant};

use super::{Door, Output, short};
use crate::error::{Failure, Kind};

/// The shortest and the longest time between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// What one look at the state of a unit or port may take.
const LOOK: Duration = Duration::from_secs(30);

/// Sleeps, seeing Ctrl-C.
fn pause(time: Duration) -> Result<(), Failure> {
    let end = Instant::now() + time;
    loop {
        crate::sys::check_interrupt()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

/// Calls `look` until it gives a value, and once more after `limit`; `None` if it never does.
fn until<T>(
    limit: Duration,
    mut look: impl FnMut(Duration) -> Result<Option<T>, Failure>,
) -> Result<Option<T>, Failure> {
    let end = Instant::now() + limit;
    let mut wait = PAUSES.0;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let last = left.is_zero();
        // A try that hangs may not eat all the time of a long wait for ever; the last one gets a fair chance.
        if let Some(value) = look(left.max(LOOK.min(limit)))? {
            return Ok(Some(value));
        }
        if last {
            return Ok(None);
        }
        pause(wait.min(end.saturating_duration_since(Instant::now())))?;
        wait = (wait * 3 / 2).min(PAUSES.1);
    }
}

/// The words of `systemctl show` for one unit.
fn property<'t>(text: &'t str, name: &str) -> &'t str {
    let value = |line: &'t str| line.strip_prefix(name)?.strip_prefix('=');
    text.lines().find_map(value).unwrap_or_default()
}

/// What the properties of a unit say: up, still coming, or never (and why).
fn judge(text: &str) -> Result<bool, &'static str> {
    match property(text, "ActiveState") {
        "active" | "reloading" | "refreshing" => Ok(true),
        "failed" => Err("it failed"),
        "inactive" if property(text, "LoadState") == "not-found" => Err("there is no such unit"),
        "inactive" if property(text, "LoadState") == "masked" => Err("it is masked"),
        "inactive" if matches!(property(text, "Job"), "" | "0") => {
            Err("it is inactive and nothing is about to start it")
        }
        _ => Ok(false),
    }
}

impl Door {
    /// Runs `command` again and again until it succeeds; one last time when `limit` is over.
    ///
    /// # Errors
    /// As [`Door::succeed`], with what the last try said.
    pub fn wait_until_succeeds(&self, command: &str, limit: Duration) -> Result<Output, Failure> {
        let mut last = None;
        let found = until(limit, |left| {
            let output = self.run(command, left)?;
            let good = output.is_good();
            Ok(if good { Some(output) } else { last.replace(output).and(None) })
        })?;
        found.ok_or_else(|| {
            let name = self.port.name();
            let what =
                format!("`{}` did not succeed within {:.0} s on {name}", short(command), limit.as_secs_f64());
            let said = last.map(|output: Output| output.describe()).unwrap_or_default();
            Failure::new(Kind::Test, what).hint(format!("the last try: {said}"))
        })
    }

    /// Waits until the unit is active.
    ///
    /// # Errors
    /// [`Kind::Test`] at once when it failed, is not there, or is inactive with no job that would start it; else after `limit`.
    pub fn wait_for_unit(&self, unit: &str, limit: Duration) -> Result<(), Failure> {
        let name = super::files::quote(unit);
        let command = format!("systemctl show -p LoadState,ActiveState,SubState,Job,Result -- {name}");
        let mut state = String::new();
        let refuse = |why: &str| -> Failure {
            let what = format!("{unit} did not get active on {}: {why}", self.port.name());
            let status = format!("systemctl status --no-pager --full --lines=30 -- {name}");
            let said = self.run(&status, LOOK).map(|output| output.text()).unwrap_or_default();
            Failure::new(Kind::Test, what).hint(said)
        };
        let found = until(limit, |_| {
            let output = self.run(&command, LOOK)?;
            // A bus that is not up yet says nothing.
            if !output.is_good() {
                state = output.describe();
                return Ok(None);
            }
            state = output.text();
            judge(&state).map(|up| up.then_some(())).map_err(refuse)
        })?;
        found.ok_or_else(|| {
            refuse(&format!(
                "after {:.0} s it is {} ({})",
                limit.as_secs_f64(),
                property(&state, "ActiveState"),
                property(&state, "SubState")
            ))
        })
    }

    /// Waits until somebody in the guest listens on TCP `port`, over IPv4 or IPv6.
    ///
    /// # Errors
    /// [`Kind::Test`] after `limit`.
    pub fn wait_for_port(&self, port: u16, limit: Duration) -> Result<(), Failure> {
        // Local address and state; 0A is TCP_LISTEN (include/net/tcp_states.h).
        let command = format!(
            "for table in /proc/net/tcp /proc/net/tcp6; do [ -r $table ] && while read -r slot local remote state rest; do \
             case $state,$local in 0A,*:{port:04X}) exit 0 ;; esac; done <$table; done; exit 1"
        );
        let found = until(limit, |_| Ok(self.run(&command, LOOK)?.is_good().then_some(())))?;
        found.ok_or_else(|| {
            let what = format!(
                "nobody listens on TCP port {port} of {} after {:.0} s",
                self.port.name(),
                limit.as_secs_f64()
            );
            Failure::new(Kind::Test, what)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_judged_by_state_and_job() {
        let judged = |load: &str, active: &str, job: &str| {
            judge(&format!("LoadState={load}\nActiveState={active}\nSubState=x\nJob={job}\n"))
        };
        assert_eq!(judged("loaded", "active", ""), Ok(true));
        assert_eq!(judged("loaded", "activating", "17"), Ok(false));
        assert_eq!(judged("loaded", "inactive", "17"), Ok(false));
        for (load, active, job) in [
            ("loaded", "failed", ""),
            ("loaded", "inactive", ""),
            ("loaded", "inactive", "0"),
            ("not-found", "inactive", ""),
            ("masked", "inactive", ""),
        ] {
            assert!(judged(load, active, job).is_err(), "{load} {active} {job}");
        }
        assert_eq!(
            judge("ActiveState=inactive\nLoadState=loaded\nSubState=dead"),
            judged("loaded", "inactive", "")
        );
    }
}
