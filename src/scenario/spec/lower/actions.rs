//! One step by itself: its action, and modifiers that fit it.

use std::collections::BTreeSet;

use super::conditions;
use crate::scenario::problems::{Part, Problems, spot};
use crate::scenario::spec::file::StepFile;
use crate::scenario::spec::model::{Action, Expect, PowerCuts, Run};
use crate::scenario::spec::text::{NODE, Text};
use crate::scenario::spec::words::Span;

/// Limits of steps that say none. A node boots in some six seconds under KVM; ten times that is no slowness but a fault.
const BOOT: Span = Span::secs(60);
/// A boot, and a shutdown or a file system check before it.
const REBOOT: Span = Span::secs(90);
const SCRIPT: Span = Span::secs(30);
/// One round of [`Action::PowerCuts`]: writing, a boot, a script.
const ROUND: Span = Span::secs(120);
/// The plug is pulled at most so long after writing began.
const WITHIN: Span = Span::secs(5);
const LEAST_WITHIN: Span = Span::millis(100);
const MOST_CUTS: u32 = 1_000_000;

/// The action without its nodes.
pub(super) fn action(
    index: usize,
    file: &StepFile,
    word: &str,
    saves: &BTreeSet<&str>,
    problems: &mut Problems<'_>,
) -> Option<Action> {
    let at = |key: &str| spot!["step", index, key];
    let text = |source: &str| Text::new(source, &|name| saves.contains(name));
    Some(match word {
        "start" => Action::Start,
        "ready" => Action::Ready,
        "reboot" => Action::Reboot,
        "crash" => Action::Crash,
        "power_cut" => Action::PowerCut,
        "power_off" => Action::PowerOff,
        "pause" => Action::Pause,
        "resume" => Action::Resume,
        "heal" => Action::Heal { cables: Vec::new() },
        "run" => {
            let script = file.run.as_deref()?;
            is_script(script, at("run"), problems);
            if file.save.as_ref().is_some_and(|name| *name == *NODE) {
                problems.add(
                    at("save"),
                    format!("`{{{NODE}}}` is the name of the node; save it as something else"),
                );
            }
            Action::Run(Run {
                script: text(script),
                expect: Expect {
                    fails: file.fails,
                    stdout: file.stdout.as_deref().map(&text),
                    matches: file.matches.clone(),
                    equal: (file.equal || file.distinct).then_some(file.equal),
                },
                until: file.until,
                save: file.save.clone(),
            })
        }
        "unit" => {
            let unit = file.unit.clone()?;
            const KINDS: [&str; 9] =
                ["service", "socket", "target", "mount", "automount", "timer", "path", "device", "swap"];
            let fits =
                unit.rsplit_once('.').is_some_and(|(stem, kind)| !stem.is_empty() && KINDS.contains(&kind));
            if !fits
                || unit.starts_with('-')
                || unit.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/')
            {
                problems
                    .add(at("unit"), format!("`{}` is no unit of systemd", unit.escape_debug()))
                    .hint("write its whole name, such as \"ssh.service\"");
            }
            Action::Unit(unit)
        }
        "port" => {
            let port = file.port?;
            if port == 0 {
                problems.add(at("port"), "0 is no TCP port");
            }
            Action::Port(port)
        }
        "console" => Action::Console(file.console.clone()?),
        "refused" => Action::Refused(file.refused.clone()?),
        "screenshot" => {
            let name = file.screenshot.clone()?;
            file_name(&name, at("screenshot"), problems);
            Action::Screenshot(name)
        }
        "copy" => {
            let copy = file.copy.as_ref()?;
            absolute(&copy.to, spot!["step", index, "copy", "to"], problems);
            not_empty(&copy.from, spot!["step", index, "copy", "from"], problems);
            Action::Copy { from: copy.from.clone().into(), to: copy.to.clone() }
        }
        "fetch" => {
            let fetch = file.fetch.as_ref()?;
            absolute(&fetch.from, spot!["step", index, "fetch", "from"], problems);
            file_name(&fetch.to, spot!["step", index, "fetch", "to"], problems);
            Action::Fetch { from: fetch.from.clone(), to: fetch.to.clone() }
        }
        "link" => {
            let conditions = conditions(file.link.as_ref()?, &at("link"), problems);
            Action::Link { cables: Vec::new(), conditions }
        }
        "check" => Action::Check { check: file.check?, until: file.until },
        "power_cuts" => {
            let cuts = file.power_cuts.as_ref()?;
            let within = cuts.within.unwrap_or(WITHIN);
            let inner = |key: &str| spot!["step", index, "power_cuts", key];
            is_script(&cuts.write, inner("write"), problems);
            is_script(&cuts.verify, inner("verify"), problems);
            if within < LEAST_WITHIN {
                problems.add(
                    inner("within"),
                    format!("{within} is too short to write anything: give at least {LEAST_WITHIN}"),
                );
            }
            if !(1..=MOST_CUTS).contains(&cuts.count) {
                problems.add(inner("count"), format!("{} power cuts: give 1 to {MOST_CUTS}", cuts.count));
            }
            Action::PowerCuts(PowerCuts {
                count: cuts.count,
                write: text(&cuts.write),
                verify: text(&cuts.verify),
                within,
            })
        }
        _ => Action::Wait(file.wait?),
    })
}

/// The keys of actions that a step has.
fn actions(file: &StepFile) -> Vec<&'static str> {
    [
        ("start", file.start),
        ("ready", file.ready),
        ("run", file.run.is_some()),
        ("unit", file.unit.is_some()),
        ("port", file.port.is_some()),
        ("console", file.console.is_some()),
        ("copy", file.copy.is_some()),
        ("fetch", file.fetch.is_some()),
        ("reboot", file.reboot),
        ("crash", file.crash),
        ("power_cut", file.power_cut),
        ("power_off", file.power_off),
        ("pause", file.pause),
        ("resume", file.resume),
        ("screenshot", file.screenshot.is_some()),
        ("link", file.link.is_some()),
        ("heal", file.heal),
        ("check", file.check.is_some()),
        ("refused", file.refused.is_some()),
        ("power_cuts", file.power_cuts.is_some()),
        ("wait", file.wait.is_some()),
    ]
    .into_iter()
    .filter_map(|(word, there)| there.then_some(word))
    .collect()
}

pub(super) fn only_action(
    index: usize,
    file: &StepFile,
    problems: &mut Problems<'_>,
) -> Option<&'static str> {
    let words = actions(file);
    if let [word] = words[..] {
        return Some(word);
    }
    match words.get(1) {
        None => {
            problems.add(spot!["step", index], format!("the step `{}` does nothing", file.name.escape_debug())).hint(
                "give it one action, such as `ready = true`, `run = \"…\"`, `unit = \"…\"`, `check = \"…\"` or `reboot = true`",
            );
        }
        Some(second) => {
            let all = words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(" and ");
            problems
                .add(
                    spot!["step", index, Part::Name((*second).to_owned())],
                    format!("a step has one action, this one has {all}"),
                )
                .hint("make a step of each");
        }
    }
    None
}

/// Modifiers, whether the step has them, and with which actions they go.
pub(super) fn fitting_modifiers(index: usize, file: &StepFile, word: &str, problems: &mut Problems<'_>) {
    const WAITING: &[&str] = &[
        "ready",
        "run",
        "unit",
        "port",
        "console",
        "copy",
        "fetch",
        "reboot",
        "crash",
        "power_cut",
        "power_off",
        "check",
        "refused",
        "power_cuts",
    ];
    const RUN: &[&str] = &["run"];
    let modifiers: [(&str, bool, &[&str]); 8] = [
        ("limit", file.limit.is_some(), WAITING),
        ("until", file.until, &["run", "check"]),
        ("fails", file.fails, RUN),
        ("stdout", file.stdout.is_some(), RUN),
        ("matches", file.matches.is_some(), RUN),
        ("equal", file.equal, RUN),
        ("distinct", file.distinct, RUN),
        ("save", file.save.is_some(), RUN),
    ];
    for (key, there, fits) in modifiers {
        if there && !fits.contains(&word) {
            let with = fits.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ");
            problems
                .add(
                    spot!["step", index, Part::Name(key.to_owned())],
                    format!("`{key}` does not go with `{word}`"),
                )
                .hint(format!("it goes with {with}"));
        }
    }
    let spot = |key: &str| spot!["step", index, Part::Name(key.to_owned())];
    if file.on.is_some() && word == "wait" {
        problems.add(spot("on"), "`on` does not go with `wait`, which is for no node");
    }
    if file.equal && file.distinct {
        problems.add(spot("distinct"), "outputs cannot be both `equal` and `distinct`");
    }
    if file.limit == Some(Span::default()) {
        problems.add(spot!["step", index, "limit"], "a limit of 0 is over before it begins");
    }
}

pub(super) fn default_limit(action: &Action) -> Span {
    match action {
        Action::Run(_) | Action::Copy { .. } | Action::Fetch { .. } | Action::Check { .. } => SCRIPT,
        Action::Reboot | Action::Crash | Action::PowerCut => REBOOT,
        Action::PowerCuts(_) => ROUND,
        Action::Wait(span) => *span,
        _ => BOOT,
    }
}

pub(super) fn not_empty(text: &str, spot: Vec<Part>, problems: &mut Problems<'_>) {
    if text.trim().is_empty() {
        problems.add(spot, "this is empty");
    } else if text.contains('\0') {
        problems.add(spot, "this has a zero byte in it");
    }
}

/// A script is run with `set -e`, which a command behind `!` never ends (POSIX.1-2024, XCU 2.15, set): only as the last one does it count.
pub(super) fn is_script(text: &str, spot: Vec<Part>, problems: &mut Problems<'_>) {
    not_empty(text, spot.clone(), problems);
    let mut commands = commands(text);
    commands.pop();
    let mut before = "";
    for command in commands {
        // Behind `||` it is answered for, and as a condition it is asked.
        let counts = command.contains("||") || ["if", "elif", "while", "until"].contains(&before);
        if command.starts_with("! ") && !counts {
            problems
                .add(
                    spot.clone(),
                    format!("`{}` lets the script go on, whatever comes of it", command.escape_debug()),
                )
                .hint("make it the last line, or write: if COMMAND; then exit 1; fi");
        }
        before = command;
    }
}

/// The lines of a script with which a command begins.
fn commands(text: &str) -> Vec<&str> {
    let mut lines = text.lines().map(str::trim);
    let (mut commands, mut goes_on) = (Vec::new(), false);
    while let Some(line) = lines.next() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if !goes_on {
            commands.push(line);
        }
        goes_on = ["|", "&&", "\\"].iter().any(|end| line.ends_with(end));
        // A text for a command's input, which is nobody's command; what is no such text (`1 << 20`) has no end.
        if let Some((_, word)) = line.split_once("<<") {
            let word = word.trim_start_matches('-').trim_start().trim_start_matches(['\'', '"']);
            let length = word.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
            let (word, mut rest) = (word.get(..length).unwrap_or_default(), lines.clone());
            if !word.is_empty() && rest.any(|line| line == word) {
                lines = rest;
            }
        }
    }
    commands
}

fn absolute(path: &str, spot: Vec<Part>, problems: &mut Problems<'_>) {
    let inner = path.strip_prefix('/');
    if inner.is_none_or(|inner| crate::tree::TreePath::new(inner).is_err()) {
        problems.add(spot, format!("`{}` is no absolute path in a node", path.escape_debug()));
    }
}

/// What may be a file beside the report.
fn file_name(name: &str, spot: Vec<Part>, problems: &mut Problems<'_>) {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.bytes().all(fits) {
        problems
            .add(spot, format!("`{}` is no file name", name.escape_debug()))
            .hint("write letters, digits, `.`, `_` and `-`, no folder");
    }
}
