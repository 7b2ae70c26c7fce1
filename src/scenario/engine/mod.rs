//! The engine: makes the machines of a scenario, moves them step by step, and writes down what came of it.
//!
//! ```text
//! run ── machines   disks, credentials, QEMU's arguments
//!     ├─ cluster    all of it, with the switches of [`net`]
//!     │    └─ node  one machine through all its boots; watch: what is known of it
//!     ├─ reach      ways into a run that is kept
//!     ├─ steps      scripts, checks, power cuts: each on all its nodes at once
//!     └─ faults     beside the steps, each in a thread of its own
//! ```
//!
//! Threads: one that watches all machines, one per fault, and while a step runs one per node of it. All end with [`run`]; no
//! process, socket or file is left but those in the report's folder.

mod checks;
mod cluster;
mod context;
mod cuts;
mod faults;
mod machines;
mod net;
mod node;
mod progress;
mod reach;
mod script;
mod shell;
mod steps;
mod watch;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use fs_err as fs;

use self::cluster::Cluster;
pub use self::cluster::{Image, Images};
use self::context::{Context, millis};
use self::net::Net;
pub use self::reach::Api;
pub(crate) use self::reach::KUBECONFIG;
use crate::digest::Digest;
use crate::qemu::accel::Choice;
use crate::qemu::config::Bus;
use crate::qemu::health::{Allow, AllowList};
use crate::scenario::calibrate::Calibration;
use crate::scenario::plan::peak;
use crate::scenario::report::Events;
use crate::scenario::result::{self, Outcome, Run};
use crate::scenario::spec::{self, Action, BootWhen, Check, Nodes, Scenario, Span, Step};

/// Everything a run needs.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    /// What is to be done.
    pub scenario: &'a Scenario,
    /// The image of every profile and flavour in it.
    pub images: &'a Images,
    /// The tool tree with QEMU.
    pub tools: &'a Path,
    /// The project's folder.
    pub project: &'a Path,
    /// The report's folder: logs, captures and files of nodes are put there. It is there already.
    pub report: &'a Path,
    /// How guest code is run.
    pub accel: crate::qemu::accel::Accel,
    /// Why so.
    pub choice: &'a Choice,
    /// How slow that is.
    pub calibration: &'a Calibration,
    /// Record every cable.
    pub capture_all: bool,
    /// Give each node the shell of `kiln test attach`.
    pub shells: bool,
    /// Who is told what happens.
    pub events: &'a dyn Events,
    /// Called with the judged run while the machines are still up, if they are to be kept; returns when they may go.
    pub hold: Option<Hold<'a>>,
}

impl std::fmt::Debug for Setup<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup")
            .field("scenario", &self.scenario.name)
            .field("seed", &self.scenario.seed)
            .finish_non_exhaustive()
    }
}

/// Who keeps the machines up, and until when.
pub type Hold<'a> = &'a dyn Fn(&Run, &Kept);

/// How people get into a run that is kept.
#[derive(Debug)]
pub struct Kept {
    /// The shell of each node.
    pub shells: Vec<Attach>,
    /// The API of its server, if it has one that answers.
    pub api: Result<Option<Api>>,
}

/// Where the shell of a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The node.
    pub node: String,
    /// The unix socket that is its terminal.
    pub socket: PathBuf,
}

/// How long a machine of a failed run may take to say what it was doing, under KVM.
const LAST_WORDS: Span = Span::secs(10);
/// The check at the end of every run.
const AT_THE_END: &str = "no unit has failed in the end";

/// Runs a scenario. What fails in it is in the result; an error is what kept it from being run at all.
///
/// # Errors
/// A machine cannot be made: no room, a wrong configuration, an image that is not what its manifest says.
pub fn run(setup: &Setup<'_>) -> Result<Run> {
    let scenario = setup.scenario;
    // What baking the images took is not what a run takes.
    crate::sys::release_memory();
    crate::sys::reset_peak_memory();
    let most = peak(scenario).nodes;
    let context = Context::new(setup.events, scenario.seed, setup.calibration, most, scenario.limit);
    let mut told = begin(setup)?;
    let allow = Arc::new(AllowList::new(allowed(scenario))?);
    let folder = tempfile::Builder::new().prefix("kiln-test-").tempdir()?;
    let net = Net::new(scenario, scenario.seed, folder.path(), setup.report, setup.capture_all)?;
    let nodes = machines::make(setup, &net, folder.path(), &allow)?;
    let cluster = Cluster::new(setup, net, nodes);
    told.invariants = scenario.invariants.iter().map(invariant).collect();

    std::thread::scope(|scope| {
        scope.spawn(|| cluster.watch(&context, setup.calibration, most));
        for index in 0..scenario.faults.len() {
            // What goes wrong in there ends the run and is told as an incident.
            scope.spawn({
                let (context, cluster) = (&context, &cluster);
                move || drop(faults::play(context, cluster, scenario, index))
            });
        }
        play(&context, &cluster, setup, &mut told);
        let failed = told.steps.iter().any(|step| step.outcome.is_failed()) || context.check().is_err();
        let stuck = if failed { last_words(&context, &cluster) } else { Vec::new() };
        let up: Vec<_> = cluster.nodes().collect();
        cluster.each(&up, |node| {
            node.ask_units(context.limit(LAST_WORDS));
            Ok(())
        });
        finish(&context, &cluster, setup, &mut told, stuck);
        // Of a run that ended early it is not known what it would have needed.
        for (entry, problem) in allow.problems(told.verdict.outcome.is_passed()) {
            told.warnings
                .push(format!("the allow-list's `{}` (until {}) {problem}", entry.pattern, entry.until));
        }
        if let Some(hold) = setup.hold {
            let shells = cluster.nodes().filter_map(|node| {
                Some(Attach { node: node.name().to_owned(), socket: node.socket(SHELL)? })
            });
            hold(&told, &Kept { shells: shells.collect(), api: reach::open(&context, &cluster) });
        }
        context.finish();
    });
    Ok(told)
}

/// The name of the shell's socket in a machine's folder.
pub(crate) const SHELL: &str = "shell";

/// The run as it stands before anything was started.
fn begin(setup: &Setup<'_>) -> Result<Run> {
    let scenario = setup.scenario;
    let now = crate::lock::time::iso(crate::lock::time::now());
    let about = result::Scenario {
        name: scenario.name.clone(),
        description: scenario.description.clone(),
        file: scenario.file.clone(),
        sha256: Digest::of(scenario.text.as_bytes()).to_string(),
    };
    let mut told = Run::new(about, scenario.seed, now);
    told.host = result::Host {
        cpus: u32::try_from(crate::cli::threads(None)).unwrap_or(u32::MAX),
        memory_mib: crate::sys::memory_total().unwrap_or(0) >> 20,
        kernel: crate::sys::kernel_release(),
    };
    told.accelerator = result::Accelerator {
        name: setup.accel.word().to_owned(),
        reason: setup.choice.reason.clone(),
        calibration: setup.calibration.factor(peak(scenario).nodes),
    };
    let used: BTreeSet<_> = scenario.nodes().map(|node| (node.profile.clone(), node.flavour)).collect();
    for ((profile, flavour), image) in setup.images.iter().filter(|(key, _)| used.contains(key)) {
        let (digest, _) = Digest::of_reader(fs::File::open(&image.path)?)?;
        if digest != image.manifest.disk.sha256 {
            let what = format!("{} is not the image that its manifest describes", image.path.display());
            return Err(crate::error::Failure::new(crate::error::Kind::Input, what)
                .hint(format!("run `kiln build --profile {profile}` again"))
                .into());
        }
        told.images.push(result::Image {
            profile: profile.clone(),
            flavour: flavour.map(|flavour| flavour.to_string()),
            file: image.path.display().to_string(),
            sha256_before: digest.to_string(),
            sha256_after: None,
            root_hash: image.manifest.root_hash.to_string(),
            kernel: image.manifest.kernel.clone(),
        });
    }
    Ok(told)
}

fn allowed(scenario: &Scenario) -> Vec<Allow> {
    let entry = |allow: &spec::Allow| Allow {
        pattern: allow.pattern.as_str().to_owned(),
        node: allow.node.as_ref().map(ToString::to_string),
        reason: allow.reason.clone(),
        until: allow.until.to_string(),
    };
    scenario.allow.iter().map(entry).collect()
}

fn invariant(invariant: &spec::Invariant) -> result::Invariant {
    result::Invariant {
        name: invariant.name.clone(),
        nodes: invariant.on.iter().map(ToString::to_string).collect(),
        ..result::Invariant::default()
    }
}

/// Switches on what is to be on, then does step after step until one fails or the run ends.
fn play(context: &Context<'_>, cluster: &Cluster<'_>, setup: &Setup<'_>, told: &mut Run) {
    let scenario = setup.scenario;
    let auto: Vec<_> = cluster.nodes().filter(|node| node.spec().boot == BootWhen::Auto).collect();
    for (node, started) in auto.iter().zip(cluster.each(&auto, |node| node.start(context))) {
        if let Err(trouble) = started
            && !trouble.over
        {
            let what = format!("it could not be switched on: {}", result::text::first_line(&trouble.why));
            context.incident(Some(node.name()), what, trouble.why, Vec::new());
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Faults count their time from here; the steps do not wait for it.
        scope.spawn(|| {
            let mut waited: Vec<_> = auto.iter().filter(|node| !node.spec().doomed).collect();
            while !over.load(Ordering::SeqCst) {
                waited.retain(|node| node.told().ready().is_none());
                if waited.is_empty() {
                    cluster.gate().ready = Some(std::time::Instant::now());
                    return;
                }
                std::thread::sleep(context::STEP);
            }
        });
        let mut why = None;
        for (index, step) in scenario.steps.iter().enumerate() {
            let number = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1);
            if why.is_none()
                && !steps::invariants(context, cluster, &scenario.invariants, &mut told.invariants, step)
            {
                why = Some("an invariant was broken".to_owned());
            }
            if let Err(trouble) = context.check() {
                why.get_or_insert(trouble.why);
            }
            let done = match &why {
                None => steps::run(context, cluster, number, step),
                Some(why) => skipped(context, number, step, why),
            };
            if done.outcome.is_failed() {
                why.get_or_insert_with(|| format!("step {number} failed"));
            }
            if let Some(passed) = cluster.gate().passed.get_mut(index) {
                *passed = done.outcome.is_passed();
            }
            told.steps.push(done);
        }
        if let Some(step) = at_the_end(cluster) {
            let number = u32::try_from(scenario.steps.len()).unwrap_or(u32::MAX).saturating_add(1);
            let done = match &why {
                None => steps::run(context, cluster, number, &step),
                Some(why) => skipped(context, number, &step, why),
            };
            told.steps.push(done);
        }
        for step in &scenario.left_out {
            let number = u32::try_from(told.steps.len()).unwrap_or(u32::MAX).saturating_add(1);
            told.steps.push(skipped(context, number, step, "the run is a short one"));
        }
        over.store(true, Ordering::SeqCst);
    });
    context.calm();
}

/// The step that every run ends with: a unit that failed meanwhile is a failure of the run.
fn at_the_end(cluster: &Cluster<'_>) -> Option<Step> {
    let up: BTreeSet<spec::Name> = cluster
        .nodes()
        .filter(|node| node.told().ready().is_some())
        .map(|node| node.spec().name.clone())
        .collect();
    Some(Step {
        name: AT_THE_END.to_owned(),
        on: Nodes::new(up.iter().cloned())?,
        action: Action::Check { check: Check::Units, until: false },
        limit: Span::secs(30),
        implied: true,
        long: false,
        up,
    })
}

fn skipped(context: &Context<'_>, number: u32, step: &Step, why: &str) -> result::Step {
    let told = result::Step {
        number,
        name: step.name.clone(),
        nodes: step.on.iter().map(ToString::to_string).collect(),
        kind: step.action.word().to_owned(),
        outcome: Outcome::skipped(why),
        ..result::Step::default()
    };
    context.events.step_ended(&told);
    told
}

/// What each machine that is on is doing; for a run that has failed.
fn last_words(context: &Context<'_>, cluster: &Cluster<'_>) -> Vec<(String, result::Stuck)> {
    let limit = context.limit(LAST_WORDS);
    std::thread::scope(|scope| {
        let threads: Vec<_> = cluster
            .nodes()
            .map(|node| (node.name().to_owned(), scope.spawn(move || node.stuck(limit))))
            .collect();
        threads.into_iter().filter_map(|(name, thread)| Some((name, thread.join().ok()??))).collect()
    })
}

/// Writes down all that is known at the end, and judges.
fn finish(
    context: &Context<'_>,
    cluster: &Cluster<'_>,
    setup: &Setup<'_>,
    told: &mut Run,
    mut stuck: Vec<(String, result::Stuck)>,
) {
    for node in cluster.nodes() {
        node.look(context);
        let spec = node.spec();
        let (boots, states) = node.told().history();
        told.findings.extend(node.told().findings());
        let log = format!("logs/{}.console.log", node.name());
        let saved = fs::create_dir_all(setup.report.join("logs"))
            .and_then(|()| node.save_log(&setup.report.join(&log)));
        let console_log = match saved {
            Ok(true) => Some(log),
            Ok(false) => None,
            Err(error) => {
                context.incident(
                    Some(node.name()),
                    format!("its console log was not kept: {error}"),
                    String::new(),
                    vec![],
                );
                None
            }
        };
        told.nodes.push(result::Node {
            name: node.name().to_owned(),
            profile: spec.profile.clone(),
            flavour: spec.flavour.map(|flavour| flavour.to_string()),
            role: if spec.product { "product" } else { "edge" }.to_owned(),
            memory_mib: spec.memory.bytes() >> 20,
            cpus: spec.cpus,
            disks: spec
                .disks
                .iter()
                .map(|d| result::Disk { bus: bus_word(d.bus).to_owned(), size: d.size.bytes() })
                .collect(),
            nics: spec.nics.iter().map(nic).collect(),
            boots,
            states,
            console_log,
            console_tail: node.told().tail(),
            stuck: stuck.iter().position(|(name, _)| name == node.name()).map(|at| stuck.swap_remove(at).1),
        });
    }
    told.findings.sort_by_key(|finding| finding.at_ms);
    told.links = cluster.net.links();
    for image in &mut told.images {
        let read = fs::File::open(&image.file).map_err(anyhow::Error::from);
        let digest = read.and_then(|file| Ok(Digest::of_reader(file)?.0));
        image.sha256_after = digest.ok().map(|digest| digest.to_string());
    }
    if crate::sys::interrupted() {
        context.incident(None, "interrupted".to_owned(), String::new(), Vec::new());
    }
    {
        let record = context.record();
        told.faults.clone_from(&record.faults);
        told.incidents.clone_from(&record.incidents);
    }
    told.faults.sort_by_key(|fault| fault.at_ms);
    told.peak_memory_kib = crate::sys::peak_memory().unwrap_or(0) >> 10;
    told.duration_ms = millis(context.started.elapsed());
    told.judge();
}

fn bus_word(bus: Bus) -> &'static str {
    match bus {
        Bus::VirtioBlk => "virtio",
        Bus::Nvme => "nvme",
        Bus::Ahci => "ahci",
        Bus::UsbStorage => "usb",
    }
}

fn nic(nic: &spec::Nic) -> result::Nic {
    use crate::qemu::config::NicModel;
    let model = match nic.model {
        NicModel::Virtio => "virtio",
        NicModel::E1000e => "e1000e",
        NicModel::Igb => "igb",
    };
    let address = match nic.address {
        spec::Address::None => "none".to_owned(),
        spec::Address::Dhcp => "dhcp".to_owned(),
        spec::Address::Fixed { ip, .. } => ip.to_string(),
    };
    result::Nic {
        network: nic.network.to_string(),
        model: model.to_owned(),
        mac: nic.mac.to_string(),
        address,
    }
}
