//! What a machine that hangs was doing.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::console::Console;
use super::door::{Door, Ending};
use super::qmp::Qmp;

/// The name of the jobs' text.
pub const JOBS: &str = "jobs";
/// The name of the failed units' text.
pub const FAILED: &str = "failed units";

/// A text about a machine, such as the jobs systemd waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Text {
    /// What it is.
    pub name: &'static str,
    /// The text, or why there is none.
    pub text: String,
}

/// What is asked through the door. systemctl and journalctl may hang with what they ask: each has its own time.
const LOOKS: [(&str, &str); 6] = [
    ("jobs", "systemctl list-jobs --no-pager"),
    (
        "failed units",
        "systemctl list-units --state=failed --no-legend --plain | while read -r unit rest; do \
         systemctl status --no-pager --full --lines=20 -- \"$unit\"; done; \
         systemctl list-units --state=auto-restart --no-legend --plain",
    ),
    ("blocked tasks", BLOCKED),
    ("load", "cat /proc/loadavg /proc/pressure/* /proc/meminfo 2>/dev/null | head -n 20"),
    ("processes", "systemctl status --no-pager --lines=0 || ps -eo pid,stat,wchan:30,etime,args"),
    ("journal", "journalctl -b --no-pager -n 60"),
];

/// Blocked tasks and what runs on each processor (sysrq w and l, admin-guide/sysrq.rst), out of the kernel's log. The console is kept
/// out of it: a serial line takes long for it, and it would look like a crash.
const BLOCKED: &str = r#"mark="kiln looks $$ $(cat /proc/uptime)"
read -r level rest </proc/sys/kernel/printk
echo "<6>$mark" >/dev/kmsg
echo 1 >/proc/sys/kernel/printk
echo w >/proc/sysrq-trigger
echo l >/proc/sysrq-trigger
sleep 1
echo "$level" >/proc/sys/kernel/printk
dmesg | while read -r line; do
  case $line in *"$mark"*) found=1 ;; *) [ -z "$found" ] || echo "$line" ;; esac
done"#;

/// Looks at a machine from inside if its `door` answers, and from outside through `qmp`; `console` gives its last lines. All ends within
/// about `limit`, and the time that one QMP command may take.
pub fn look(door: Option<&Door>, qmp: &mut Qmp, console: &Console, limit: Duration) -> Vec<Text> {
    let mut texts = vec![Text { name: "console", text: console.last_lines(40) }];
    texts.extend(outside(qmp));
    if let Some(door) = door {
        texts.extend(inside(door, limit));
    }
    texts
}

fn inside(door: &Door, limit: Duration) -> Vec<Text> {
    let end = Instant::now() + limit;
    let share = limit / (u32::try_from(LOOKS.len()).unwrap_or(u32::MAX) + 1);
    if let Err(failure) = door.connect(share) {
        return vec![Text { name: "door", text: failure.to_string() }];
    }
    let mut texts = Vec::new();
    for (name, command) in LOOKS {
        let left = end.saturating_duration_since(Instant::now()).min(share);
        let text = match door.run(command, left) {
            Ok(output) => {
                let mut text = output.text();
                if output.ending != Ending::Done {
                    text += &format!("\n(no end within {:.0} s)", left.as_secs_f64());
                }
                text
            }
            Err(failure) => {
                // A door that broke tells nothing more.
                texts.push(Text { name, text: failure.to_string() });
                break;
            }
        };
        texts.push(Text { name, text });
    }
    texts
}

/// The state of the machine and of its processors, twice: whether they move.
fn outside(qmp: &mut Qmp) -> Vec<Text> {
    let status = match qmp.status() {
        Ok(status) => status,
        Err(error) => return vec![Text { name: "machine", text: error.to_string() }],
    };
    let mut texts = vec![Text { name: "machine", text: status }];
    for name in ["processors", "processors a second later"] {
        if texts.len() > 1 {
            std::thread::sleep(Duration::from_secs(1));
        }
        let answer = qmp.execute("human-monitor-command", json!({"command-line": "info registers -a"}));
        let text = match answer {
            Ok(answer) => places(answer.as_str().unwrap_or_default()),
            Err(error) => error.to_string(),
        };
        texts.push(Text { name, text });
    }
    texts
}

/// Of all registers, the line of each processor and the one with its instruction pointer.
fn places(registers: &str) -> String {
    let wanted = |line: &&str| {
        line.starts_with("CPU#") || line.contains("RIP=") || line.trim_start().starts_with("PC=")
    };
    registers.lines().map(str::trim_end).filter(wanted).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_registers_the_place_of_each_processor_is_kept() {
        let text = "\r\nCPU#0\r\nRAX=1 RBX=2\r\nRIP=ffffffff81c0 RFL=00000246 [---Z-P-] CPL=0\r\nCR0=8\r\n\r\nCPU#1\r\nRIP=01 RFL=2\r\n";
        assert_eq!(places(text), "CPU#0\nRIP=ffffffff81c0 RFL=00000246 [---Z-P-] CPL=0\nCPU#1\nRIP=01 RFL=2");
        assert_eq!(places(" PC=ffff800080 X00=1\nX01=2"), " PC=ffff800080 X00=1");
    }
}
