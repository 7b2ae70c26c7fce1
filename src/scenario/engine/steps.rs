//! Steps: each on all its nodes at the same time, then judged over all of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use fs_err as fs;

use super::checks;
use super::cluster::Cluster;
use super::context::{Context, Trouble, millis};
use super::cuts;
use super::node::Node;
use super::script::{self, Job};
use crate::scenario::result::{self, Evidence, Outcome};
use crate::scenario::spec::{Action, Invariant, Step};

/// What a step left.
#[derive(Debug, Default)]
struct Done {
    evidence: Vec<Evidence>,
    attempts: u32,
    files: Vec<String>,
}

impl Done {
    fn of(evidence: Evidence) -> Self {
        Done { evidence: vec![evidence], attempts: 1, files: Vec::new() }
    }
}

/// Does step `number` (from 1) and writes down what came of it.
pub(super) fn run(context: &Context<'_>, cluster: &Cluster<'_>, number: u32, step: &Step) -> result::Step {
    let names: Vec<String> = step.on.iter().map(ToString::to_string).collect();
    context.events.step_began(number, &step.name, &names);
    let began = Instant::now();
    let mut told = result::Step {
        number,
        name: step.name.clone(),
        nodes: names,
        kind: step.action.word().to_owned(),
        began_ms: context.now(),
        limit_ms: Some(millis(context.limit(step.limit))),
        attempts: 1,
        ..result::Step::default()
    };
    let nodes: Result<Vec<&Node<'_>>, Trouble> = step.on.iter().map(|name| cluster.node(name)).collect();
    context.step_begins(patience(step));
    let mut done = nodes.and_then(|nodes| act(context, cluster, number, step, &nodes));
    if let Some(why) = context.step_ends() {
        cluster.nodes().for_each(|node| node.go_on(&why));
        // What it was in the middle of when it was given up says less.
        if let Err(trouble) = &mut done {
            let limit = context.limit(step.limit).as_secs();
            let meanwhile = if trouble.why == why { String::new() } else { format!("\n{}", trouble.why) };
            trouble.why = format!("{why}; given up before the limit of {limit} s{meanwhile}");
            trouble.over = false;
        }
    }
    match done {
        Ok(done) => {
            told.outcome = Outcome::Passed;
            told.attempts = done.attempts.max(1);
            told.evidence = done.evidence;
            told.files = done.files;
        }
        Err(trouble) => {
            told.outcome = Outcome::failed(trouble.why);
            told.evidence = trouble.evidence;
            let struck = |name: &&crate::scenario::spec::Name| {
                told.evidence.is_empty() || told.evidence.iter().any(|e| e.failed && e.node == ***name)
            };
            let nodes = step.on.iter().filter(struck).filter_map(|name| cluster.node(name).ok());
            told.console = nodes.map(|node| node.console_now(context)).collect();
        }
    }
    told.duration_ms = millis(began.elapsed());
    context.events.step_ended(&told);
    told
}

/// How long a step waits for machines that do nothing: as long as its file says, for what waits is no faster anywhere. `None` for one that
/// waits on purpose.
fn patience(step: &Step) -> Option<std::time::Duration> {
    match &step.action {
        Action::Wait(_) => None,
        Action::PowerCuts(cuts) => Some(step.limit.duration() + cuts.within.duration()),
        _ => Some(step.limit.duration()),
    }
}

fn act(
    context: &Context<'_>,
    cluster: &Cluster<'_>,
    number: u32,
    step: &Step,
    nodes: &[&Node<'_>],
) -> Result<Done, Trouble> {
    let limit = context.limit(step.limit);
    let each = |work: &(dyn Fn(&Node<'_>) -> Result<Done, Trouble> + Sync)| {
        gather(cluster.each(nodes, |node| work(node)))
    };
    let plain = |work: &(dyn Fn(&Node<'_>) -> Result<(), Trouble> + Sync)| {
        each(&|node| work(node).map(|()| Done::default()))
    };
    match &step.action {
        Action::Start => plain(&|node| node.start(context)),
        Action::Ready => plain(&|node| node.wait_ready(context, limit)),
        Action::Run(run) => {
            let job = Job { script: &run.script, expect: &run.expect, until: run.until, limit, number };
            let answers = cluster.each(nodes, |node| script::run(context, node, &job));
            let mut outputs = BTreeMap::new();
            let mut done = Vec::new();
            for (node, answer) in nodes.iter().zip(answers) {
                done.push(answer.map(|answer| {
                    outputs.insert(node.name().to_owned(), answer.stdout);
                    Done { evidence: vec![answer.evidence], attempts: answer.attempts, files: Vec::new() }
                }));
            }
            let done = gather(done)?;
            if let Some(equal) = run.expect.equal {
                script::compare(&outputs, equal)
                    .map_err(|trouble| Trouble { evidence: blamed(done.evidence.clone()), ..trouble })?;
            }
            if let Some(name) = &run.save {
                let mut record = context.record();
                outputs.iter().for_each(|(node, text)| record.saved.set(name, node, text));
            }
            Ok(done)
        }
        Action::Unit(unit) => plain(&|node| node.wait_for_unit(context, unit, limit)),
        Action::Port(port) => plain(&|node| node.wait_for_port(context, *port, limit)),
        Action::Console(pattern) => each(&|node| {
            let line = node.wait_for_console(context, pattern, limit)?;
            Ok(Done::of(seen(node, "console", line)))
        }),
        Action::Copy { from, to } => {
            let path = cluster.project.join(from);
            let bytes = fs::read(&path).map_err(|error| Trouble::new(error.to_string()))?;
            plain(&|node| node.put(context, &bytes, to, limit))
        }
        Action::Fetch { from, to } => each(&|node| {
            let bytes = node.get(context, from, limit)?;
            keep(cluster.report, node, "files", to, &bytes)
        }),
        Action::Reboot => plain(&|node| node.reboot(context, limit)),
        Action::Crash => plain(&|node| node.crash(context, limit)),
        Action::PowerCut => each(&|node| {
            let cut = node.power_cut(context)?;
            node.wait_ready(context, limit)?;
            let text = format!(
                "unflushed blocks of 4 KiB: {} lost, {} kept, {} torn",
                cut.dropped, cut.kept, cut.torn
            );
            Ok(Done::of(seen(node, "power cut", text)))
        }),
        Action::PowerOff => plain(&|node| node.power_off(context, limit)),
        Action::Pause => plain(&|node| node.pause(context)),
        Action::Resume => plain(&|node| node.resume(context)),
        Action::Screenshot(name) => each(&|node| {
            let folder = cluster.report.join("screenshots");
            fs::create_dir_all(&folder).map_err(|error| Trouble::new(error.to_string()))?;
            let file = format!("{}-{name}.png", node.name());
            node.screenshot(&folder.join(&file))?;
            Ok(Done { files: vec![format!("screenshots/{file}")], ..Done::default() })
        }),
        Action::Link { cables, conditions } => {
            cables.iter().try_for_each(|cable| cluster.net.set(cable, conditions))?;
            Ok(Done::default())
        }
        Action::Heal { cables } => {
            cables.iter().try_for_each(|cable| cluster.net.heal(cable))?;
            Ok(Done::default())
        }
        Action::Check { check, until } => {
            let end = Instant::now() + limit;
            let mut attempts = 0;
            loop {
                attempts += 1;
                match checks::run(context, cluster, nodes, &step.up, *check, limit) {
                    Ok(evidence) => return Ok(Done { evidence, attempts, files: Vec::new() }),
                    Err(trouble) if trouble.over || !until || Instant::now() > end => return Err(trouble),
                    Err(trouble) => {
                        context.events.step_retry(number, attempts, result::text::first_line(&trouble.why));
                        context.sleep(std::time::Duration::from_secs(1))?;
                    }
                }
            }
        }
        Action::Refused(pattern) => each(&|node| {
            let line = node.wait_refused(context, pattern, limit)?;
            Ok(Done::of(seen(node, "console", line)))
        }),
        Action::PowerCuts(cuts) => each(&|node| {
            let evidence = cuts::run(context, node, (number, &step.name), cuts, limit)?;
            Ok(Done { evidence, attempts: 1, files: Vec::new() })
        }),
        Action::Wait(time) => context.sleep(time.duration()).map(|()| Done::default()),
    }
}

/// One answer of many: what was done everywhere, or what was wrong anywhere, with everybody's evidence.
fn gather(answers: Vec<Result<Done, Trouble>>) -> Result<Done, Trouble> {
    let (mut all, mut wrong, mut over) = (Done::default(), Vec::new(), false);
    for answer in answers {
        match answer {
            Ok(done) => {
                all.evidence.extend(done.evidence);
                all.attempts = all.attempts.max(done.attempts);
                all.files.extend(done.files);
            }
            Err(trouble) => {
                over |= trouble.over;
                all.evidence.extend(trouble.evidence);
                // When the run ends, all nodes say the same.
                if !wrong.contains(&trouble.why) {
                    wrong.push(trouble.why);
                }
            }
        }
    }
    if wrong.is_empty() {
        Ok(all)
    } else {
        Err(Trouble { why: wrong.join("\n"), evidence: all.evidence, over })
    }
}

fn blamed(mut evidence: Vec<Evidence>) -> Vec<Evidence> {
    evidence.iter_mut().for_each(|e| e.failed = true);
    evidence
}

fn seen(node: &Node<'_>, what: &str, text: String) -> Evidence {
    Evidence { node: node.name().to_owned(), command: what.to_owned(), stdout: text, ..Evidence::default() }
}

/// Writes a file of a node into the report's folder.
fn keep(report: &Path, node: &Node<'_>, kind: &str, name: &str, bytes: &[u8]) -> Result<Done, Trouble> {
    let relative = format!("{kind}/{}/{name}", node.name());
    let path = report.join(&relative);
    let folder = path.parent().unwrap_or(report);
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(&path, bytes));
    written.map_err(|error| Trouble::new(error.to_string()))?;
    Ok(Done { files: vec![relative], ..Done::default() })
}

/// Asks whether everything that must hold before a step does. False ends the run's steps.
pub(super) fn invariants(
    context: &Context<'_>,
    cluster: &Cluster<'_>,
    all: &[Invariant],
    told: &mut [result::Invariant],
    before: &Step,
) -> bool {
    let mut whole = true;
    for (invariant, told) in all.iter().zip(told) {
        let names = invariant.on.iter().filter(|name| before.up.contains(*name));
        let nodes: Vec<&Node<'_>> = names.filter_map(|name| cluster.node(name).ok()).collect();
        if nodes.is_empty() || told.outcome.is_failed() {
            continue;
        }
        let limit = context.limit(invariant.limit);
        let job = Job { script: &invariant.run, expect: &invariant.expect, until: true, limit, number: 0 };
        context.step_begins(Some(invariant.limit.duration()));
        let answers = cluster.each(&nodes, |node| script::run(context, node, &job));
        told.checked += 1;
        let mut wrong: Vec<Trouble> = answers.into_iter().filter_map(Result::err).collect();
        if let Some(why) = context.step_ends() {
            cluster.nodes().for_each(|node| node.go_on(&why));
            wrong.iter_mut().for_each(|trouble| trouble.over = false);
        }
        if wrong.iter().any(|trouble| trouble.over) {
            return false;
        }
        if wrong.is_empty() {
            told.outcome = Outcome::Passed;
            continue;
        }
        whole = false;
        told.broken_ms = Some(context.now());
        let why: Vec<String> = wrong.iter().map(|trouble| trouble.why.clone()).collect();
        told.outcome = Outcome::failed(format!("before step `{}`: {}", before.name, why.join("\n")));
        told.evidence = wrong.into_iter().flat_map(|trouble| trouble.evidence).collect();
        context.events.broken(told);
    }
    whole
}
