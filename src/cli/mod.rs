//! The command line: a table of verbs. Each verb is a file with its arguments and a `run`; nothing is decided here.

mod build;
mod cluster;
mod container;
mod dev;
mod diff;
mod doctor;
mod flash;
mod init;
mod install;
mod kernel;
mod kubeconfig;
mod lock;
mod pxe;
mod recipe;
mod run;
mod sbom;
mod state;
mod store;
mod test;
mod ways;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::error::Kind;
use crate::lock::{Lock, Locked};
use crate::packages::Work;
use crate::spec::Project;
use crate::store::Store;
use crate::ui::{self, Ui, Verbosity};
use crate::{sandbox, sys};

/// Bake bootable, verified node images for a K3s cluster from TOML and one lock
#[derive(Debug, Parser)]
#[command(name = "kiln", version, max_term_width = 100, help_expected = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,

    /// Folder of the project; default: the current folder or the nearest above it that is one
    #[arg(short = 'C', long, global = true, value_name = "DIR")]
    project: Option<PathBuf>,

    /// Folder of the store
    #[arg(long, global = true, value_name = "DIR", env = "KILN_STORE", hide_env_values = true)]
    store: Option<PathBuf>,

    /// Say every step and its reason; twice: the developer's log
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,

    /// Print only results and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,

    /// Print the result as one JSON object
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Bake the disk image of a profile from the lock
    Build(build::Args),
    /// Boot a baked image in QEMU, console on this terminal
    Run(run::Args),
    /// Prove a cluster of the baked images in QEMU
    Test(test::Args),
    /// Look at the real cluster that cluster.toml describes
    Cluster(cluster::Args),
    /// Serve the images of the cluster to machines that start by the network
    Pxe(Box<pxe::Args>),
    /// Write this machine's image to its own disk; a machine that `kiln pxe` booted starts this by itself
    #[command(hide = true)]
    Install(install::Args),
    /// Make ready the disk with the state of this machine, which `kiln pxe` runs diskless; its initrd starts this
    #[command(hide = true)]
    State(state::Args),
    /// Make tokens by which nodes join a cluster
    Token(cluster::TokenArgs),
    /// Write images onto disks, so that it is the right disk and holds the right bytes
    Flash(flash::Args),
    /// Resolve packages again and rewrite images/kiln.lock
    Update(lock::UpdateArgs),
    /// Show what `kiln update` would change
    Outdated(lock::OutdatedArgs),
    /// Build from source, in a sealed sandbox
    Recipe(recipe::Args),
    /// Make container images that nodes bring along, and look at them
    Container(container::Args),
    /// Look at the store and keep it in order
    Store(store::Args),
    /// Show what differs between two images
    Diff(diff::Args),
    /// Say why a file or a package is in an image
    Why(why::Args),
    /// Fetch the administrator's kubeconfig from a running server
    Kubeconfig(kubeconfig::Args),
    /// Look at kernels: do they have what the features of a node need
    Kernel(kernel::Args),
    /// Write the software bill of materials of an image
    Sbom(sbom::Args),
    /// Check that this machine and this project are fit for work
    Doctor(doctor::Args),
    /// Write a new project into a folder
    Init(init::Args),
    /// For developers: completions, man pages, schemas, measurements
    Dev(dev::Args),
}

/// What every verb is given.
pub(crate) struct Context {
    pub(crate) ui: Ui,
    project: Option<PathBuf>,
    store: Option<PathBuf>,
}

impl Context {
    /// The project of `-C`, or of the current folder.
    pub(crate) fn project(&self) -> Result<Project> {
        Project::load(&self.project_dir()?)
    }

    pub(crate) fn project_dir(&self) -> Result<PathBuf> {
        Project::find(self.project.as_deref().unwrap_or(std::path::Path::new(".")))
    }

    /// The project and its lock, if that fits.
    pub(crate) fn locked(&self) -> Result<(Project, Locked)> {
        let project = self.project()?;
        let locked = Lock::load(&project.dir)?.check(&project)?;
        Ok((project, locked))
    }

    /// The folder with the images: as asked, else `out` in the project, else `out` here.
    pub(crate) fn out(&self, asked: Option<&PathBuf>) -> PathBuf {
        let default = || self.project_dir().unwrap_or_default().join("out");
        asked.cloned().unwrap_or_else(default)
    }

    pub(crate) fn store(&self) -> Result<Store> {
        Store::open(&self.store_path()?)
    }

    /// What the library works with, on as many threads as the machine has.
    pub(crate) fn work<'a>(&'a self, project: &'a Project, locked: &'a Locked, store: &'a Store) -> Work<'a> {
        Work { project, locked, store, ui: &self.ui, threads: threads(None) }
    }

    /// The folder of the store, which need not be there yet.
    pub(crate) fn store_path(&self) -> Result<PathBuf> {
        match &self.store {
            Some(path) => Ok(std::path::absolute(path)?),
            None => Store::default_path(),
        }
    }
}

/// Threads to use: as asked, else as many as the machine has.
pub(crate) fn threads(asked: Option<std::num::NonZeroUsize>) -> usize {
    asked.or_else(|| std::thread::available_parallelism().ok()).map_or(1, std::num::NonZeroUsize::get)
}

/// The clap table, for help, man pages and completions.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// Parses the command line, does what it says, prints the error if there is one. The exit code is [`Kind::exit_code`]'s, 2
/// for wrong usage.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            ui::usage(&error);
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return ended(&Ui::new(Verbosity::Normal, false), code);
        }
    };
    // Part of a sandbox: one thread, no signal handlers, nothing to say here.
    if let Verb::Dev(args) = &cli.verb
        && let Some(plan) = args.sandbox()
    {
        return sandbox::main(plan);
    }
    if let Err(error) = sys::watch_signals() {
        tracing::debug!(%error, "signals are not watched");
    }
    log(cli.verbose);
    let verbosity = match (cli.quiet, cli.verbose) {
        (true, _) => Verbosity::Quiet,
        (false, 0) => Verbosity::Normal,
        (false, _) => Verbosity::Verbose,
    };
    let context = Context { ui: Ui::new(verbosity, cli.json), project: cli.project, store: cli.store };
    let done = match cli.verb {
        Verb::Build(args) => build::run(&context, &args),
        Verb::Run(args) => run::run(&context, &args),
        Verb::Test(args) => test::run(&context, &args),
        Verb::Cluster(args) => cluster::run(&context, &args),
        Verb::Token(args) => cluster::token(&context, &args),
        Verb::Pxe(args) => pxe::run(&context, &args),
        Verb::Install(args) => install::run(&context, &args),
        Verb::State(args) => state::run(&context, &args),
        Verb::Flash(args) => flash::run(&context, &args),
        Verb::Update(args) => lock::update(&context, &args),
        Verb::Outdated(args) => lock::outdated(&context, &args),
        Verb::Recipe(args) => recipe::run(&context, &args),
        Verb::Container(args) => container::run(&context, &args),
        Verb::Store(args) => store::run(&context, &args),
        Verb::Diff(args) => diff::run(&context, &args),
        Verb::Why(args) => why::run(&context, &args),
        Verb::Kubeconfig(args) => kubeconfig::run(&context, &args),
        Verb::Kernel(args) => kernel::run(&context, &args),
        Verb::Sbom(args) => sbom::run(&context, &args),
        Verb::Doctor(args) => doctor::run(&context, &args),
        Verb::Init(args) => init::run(&context, &args),
        Verb::Dev(args) => dev::run(&context, &args),
    };
    let code = match done {
        Ok(()) => 0,
        Err(error) => {
            let report = context.ui.error(&error);
            let kind = if sys::interrupted() { Kind::Interrupted } else { report.kind };
            kind.exit_code()
        }
    };
    ended(&context.ui, code)
}

/// The end of every run: what it printed must be there. An error of the verb itself keeps its code.
fn ended(ui: &Ui, code: u8) -> ExitCode {
    let Err(failure) = ui::written() else { return ExitCode::from(code) };
    let kind = ui.error(&failure.into()).kind;
    ExitCode::from(if code == 0 { kind.exit_code() } else { code })
}

/// The developer's log: `-vv`, or `KILN_LOG` in the syntax of tracing-subscriber's EnvFilter.
fn log(verbose: u8) {
    let filter = match std::env::var("KILN_LOG") {
        Ok(text) => tracing_subscriber::EnvFilter::new(text),
        Err(_) if verbose >= 2 => tracing_subscriber::EnvFilter::new("kiln=debug"),
        Err(_) => return,
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_of_verbs_is_sound() {
        super::command().debug_assert();
    }
}
