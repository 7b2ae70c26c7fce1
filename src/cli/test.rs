//! `kiln test`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;

use super::Context;
use super::run::AccelArg;
use super::ways::Ways;
use crate::error::{Failure, Kind};
use crate::qemu::console::Console;
use crate::qemu::terminal::{self, End};
use crate::scenario::keep;
use crate::scenario::prove::{self, Options};
use crate::scenario::spec::Scenario;

/// Arguments of `kiln test`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Option<TestVerb>,

    /// Scenarios to run one after the other: names of files in qemu/ without `.toml`, or paths of files
    #[arg(value_name = "SCENARIO", default_value = "three-node")]
    scenarios: Vec<String>,

    /// Run the very cluster of this file, such as cluster.toml: its names, its addresses, what its nodes will be told
    #[arg(long, value_name = "FILE", conflicts_with_all = ["scenarios", "list"])]
    cluster: Option<PathBuf>,

    /// List the scenarios of the project
    #[arg(long, conflicts_with_all = ["plan", "keep"])]
    list: bool,

    /// Check the scenarios, say what they need and how long they take; start nothing
    #[arg(long)]
    plan: bool,

    /// Seed of everything random; the same seed replays the same faults
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Rounds of each step that cuts the power again and again
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cuts: Option<u32>,

    /// Leave out the steps that the files call long, such as reboots of a whole cluster
    #[arg(long)]
    short: bool,

    /// Leave the machines up when the steps are over, until Ctrl-C; `kiln test attach NODE` gives a shell, a file `kubeconfig` in the report
    /// leads to their API
    #[arg(long)]
    keep: bool,

    #[command(flatten)]
    ways: Ways,

    /// Folder for the reports, one per scenario; default: `out/test` in the project
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,

    /// Record what goes over every cable
    #[arg(long)]
    pcap: bool,

    /// Use this accelerator; default: KVM if a test guest runs under it, else TCG
    #[arg(long, value_enum)]
    accel: Option<AccelArg>,

    /// Boot the images that are in the output folder, and fail if one is missing
    #[arg(long)]
    no_build: bool,

    /// Folder with the images; default: `out` in the project
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum TestVerb {
    /// Open a shell on a node of a run that was left up with --keep; Ctrl-A X leaves it
    Attach(AttachArgs),
}

#[derive(Debug, clap::Args)]
struct AttachArgs {
    /// The node
    #[arg(value_name = "NODE")]
    node: String,

    /// Its scenario, if several runs hold such a node
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,

    /// Folder with the reports; default: `out/test` in the project
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// A line of `--list`.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    file: String,
    description: String,
    nodes: usize,
    steps: usize,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    if let Some(TestVerb::Attach(args)) = &args.verb {
        return attach(context, args);
    }
    if args.list {
        return list(context);
    }
    let (mut project, locked) = context.locked()?;
    args.ways.apply(&mut project);
    let store = context.store()?;
    let work = context.work(&project, &locked, &store);
    let mut scenarios: Vec<Scenario> = match &args.cluster {
        Some(file) => {
            let cluster = super::cluster::read(context, Some(file))?;
            for text in crate::cluster::scenario::left_out(&cluster)? {
                context.ui.status("Left out", text);
            }
            vec![crate::cluster::scenario::scenario(&cluster, &project.machines.keys().cloned().collect())?]
        }
        None => {
            args.scenarios.iter().map(|name| Scenario::load(&project.dir, name)).collect::<Result<_>>()?
        }
    };
    if args.short {
        scenarios.iter_mut().for_each(Scenario::leave_out_long);
    }
    let options = Options {
        out: context.out(args.out.as_ref()),
        reports: args.report.clone().unwrap_or_else(|| project.dir.join("out/test")),
        seed: args.seed,
        cuts: args.cuts,
        keep: args.keep,
        capture_all: args.pcap,
        accel: args.accel.map(Into::into),
        build: !args.no_build,
    };
    if args.plan {
        let plans = scenarios
            .iter()
            .map(|scenario| prove::plan(&work, scenario, &options))
            .collect::<Result<Vec<_>>>()?;
        if context.ui.json() {
            return context.ui.result_json(&plans);
        }
        plans.iter().for_each(|plan| context.ui.result(plan.lines().join("\n")));
        return Ok(());
    }
    let proofs = prove::all(&work, &scenarios, &options)?;
    if context.ui.json() {
        context.ui.result_json(&proofs.iter().map(|proof| &proof.run).collect::<Vec<_>>())?;
    }
    prove::verdict(&proofs)
}

fn list(context: &Context) -> Result<()> {
    let project = context.project()?;
    let mut listed = Vec::new();
    for (name, scenario) in Scenario::list(&project.dir) {
        match scenario {
            Ok(scenario) => listed.push(Listed {
                name,
                file: scenario.file.clone(),
                description: scenario.description.clone(),
                nodes: scenario.nodes.len(),
                steps: scenario.steps.len(),
            }),
            Err(error) => context.ui.warn(format!("{name}: {error:#}")),
        }
    }
    if context.ui.json() {
        return context.ui.result_json(&listed);
    }
    let width = listed.iter().map(|scenario| scenario.name.len()).max().unwrap_or(0);
    for scenario in &listed {
        let nodes = scenario.nodes;
        context.ui.result(format!("{:width$}  {nodes} machines  {}", scenario.name, scenario.description));
    }
    Ok(())
}

fn attach(context: &Context, args: &AttachArgs) -> Result<()> {
    let reports = match &args.report {
        Some(folder) => folder.clone(),
        None => context.project_dir()?.join("out/test"),
    };
    let shell = keep::find(&reports, args.scenario.as_deref(), &args.node)?;
    let stream = std::os::unix::net::UnixStream::connect(&shell.socket).map_err(|error| {
        let what = format!("the shell of {} cannot be reached", shell.node);
        Failure::new(Kind::Test, what)
            .hint("somebody else may be attached to it: a node has one shell")
            .because(error)
    })?;
    let log = tempfile::NamedTempFile::new()?;
    let console =
        Console::attach(&format!("shell of {}", shell.node), stream, log.path(), std::time::Instant::now())?;
    context.ui.status("Attached", format!("to {}; Ctrl-A X leaves, Ctrl-A Ctrl-A sends Ctrl-A", shell.node));
    // The shell said its prompt before anybody listened.
    console.send(b"\r")?;
    let end = terminal::join(&console, &mut || Ok(console.is_closed()))?;
    if end == End::Gone {
        context.ui.status("Ended", format!("{} is gone", shell.node));
    }
    Ok(())
}
