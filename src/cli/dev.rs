//! `kiln dev`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Subcommand, ValueEnum};
use clap_complete::Shell;
use fs_err as fs;

use super::Context;
use crate::arch::Arch;
use crate::bench;
use crate::config::Config;
use crate::contract::Component;
use crate::error::{Failure, Kind};
use crate::packages::Work;
use crate::recipe::RecipeSpec;
use crate::scenario::report;
use crate::scenario::result::Run;
use crate::spec::{Archive, Layer, Tools};

/// Arguments of `kiln dev`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print the completion script of a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: CompletionShell,
    },
    /// Write a man page for kiln and for each of its verbs
    Man {
        /// Folder for the pages; made if it is not there
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Print the JSON schema of a TOML file, for editors
    ///
    /// Editors with a TOML language server complete and check a file that names its schema in its first line, such as
    /// `#:schema layer.schema.json`. Write the schema with `kiln dev schema layer > images/layer.schema.json`.
    Schema {
        /// Which file
        #[arg(value_enum)]
        file: SchemaFile,
    },
    /// Make a sandbox and run a program in it; kiln calls itself so
    #[command(hide = true)]
    Sandbox {
        /// File with the plan
        plan: PathBuf,
    },
    /// Write the report of a test run again, from its report.json
    ///
    /// For runs whose page was not kept, and for work on the page itself.
    Report {
        /// The report.json of the run
        #[arg(value_name = "FILE")]
        file: PathBuf,

        /// Folder for the report; made if it is not there
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Measure whole builds, the switch between machines, or writing onto disks
    ///
    /// `builds`: cold, with nothing to do, and after one changed line. `switch`: what the network between machines carries and how
    /// long a frame takes, without machines; it needs no project. `flash`: how quickly `kiln flash` writes and reads back, beside dd,
    /// on the disk of a folder; it needs no project either.
    Bench {
        /// What to measure
        #[arg(value_enum, default_value = "builds")]
        what: Bench,

        /// Profile to build
        #[arg(long, value_name = "NAME", default_value = "server")]
        profile: String,

        /// Machine to build for
        #[arg(long, value_enum, default_value = "amd64")]
        arch: Arch,

        /// Runs of each build, of which the median counts; seconds for each length of frames
        #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u16).range(1..=1000))]
        runs: u16,

        /// Threads of each build
        #[arg(long, value_name = "N")]
        threads: Option<std::num::NonZeroUsize>,

        /// Folder on the disk that is written; nothing of it stays
        #[arg(long, value_name = "DIR", default_value = ".")]
        folder: PathBuf,

        /// Size of the image that is written; three times as much room is needed
        #[arg(long, value_name = "MIB", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
        size: u32,
    },
}

impl Args {
    /// The plan of a sandbox that this process is to make.
    pub(super) fn sandbox(&self) -> Option<&Path> {
        match &self.verb {
            Verb::Sandbox { plan } => Some(plan),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Bench {
    /// Builds of a profile
    Builds,
    /// The network between machines
    Switch,
    /// Writing onto disks
    Flash,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompletionShell {
    /// GNU bash
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SchemaFile {
    /// images/debian.toml
    Debian,
    /// images/tools.toml
    Tools,
    /// recipe.toml of a recipe
    Recipe,
    /// Any other file in images/, and those in profiles/ and qemu/machines/
    Layer,
    /// A scenario in qemu/
    Scenario,
    /// cluster.toml
    Cluster,
    /// images/kernel/*.toml
    Contract,
    /// images/kernel/sources/*.toml
    Kernel,
    /// images/containers/*.toml
    Container,
    /// The user's own config.toml
    Config,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    match &args.verb {
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            let shell = match shell {
                CompletionShell::Bash => Shell::Bash,
                CompletionShell::Zsh => Shell::Zsh,
                CompletionShell::Fish => Shell::Fish,
            };
            clap_complete::generate(shell, &mut super::command(), "kiln", &mut script);
            context.ui.raw(&script);
            Ok(())
        }
        Verb::Man { dir } => {
            fs::create_dir_all(dir)?;
            clap_mangen::generate_to(super::command(), dir)
                .with_context(|| format!("writing man pages into {}", dir.display()))?;
            context.ui.status("Wrote", format!("man pages into {}", dir.display()));
            Ok(())
        }
        // main() sees to it before anything else.
        Verb::Sandbox { .. } => Ok(()),
        Verb::Schema { file } => context.ui.result_json(&schema(*file)),
        Verb::Report { file, out } => {
            let run: Run = serde_json::from_slice(&fs::read(file)?).map_err(|error| {
                Failure::new(Kind::Input, format!("{} is no report of kiln test", file.display()))
                    .because(error)
            })?;
            let files = report::write(&run, out)?;
            context.ui.status("Wrote", files.html.display().to_string());
            Ok(())
        }
        Verb::Bench { what: Bench::Switch, runs, .. } => {
            let results = bench::switch::bench(Duration::from_secs(u64::from(*runs)) / 2)?;
            if context.ui.json() {
                return context.ui.result_json(&results);
            }
            for line in results.lines() {
                context.ui.result(line);
            }
            Ok(())
        }
        Verb::Bench { what: Bench::Flash, runs, folder, size, .. } => {
            let results = bench::flash::bench(folder, u64::from(*size), usize::from(*runs))?;
            if context.ui.json() {
                return context.ui.result_json(&results);
            }
            for line in results.lines() {
                context.ui.result(line);
            }
            Ok(())
        }
        Verb::Bench { what: Bench::Builds, profile, arch, runs, threads, .. } => {
            let (project, locked) = context.locked()?;
            let store = context.store()?;
            let work = Work { threads: super::threads(*threads), ..context.work(&project, &locked, &store) };
            let program = std::env::current_exe().context("finding this program")?;
            let results = bench::bench(&work, &program, profile, *arch, usize::from(*runs))?;
            if context.ui.json() {
                return context.ui.result_json(&results);
            }
            for line in results.lines() {
                context.ui.result(line);
            }
            Ok(())
        }
    }
}

fn schema(file: SchemaFile) -> schemars::Schema {
    match file {
        SchemaFile::Debian => schemars::schema_for!(Archive),
        SchemaFile::Tools => schemars::schema_for!(Tools),
        SchemaFile::Recipe => schemars::schema_for!(RecipeSpec),
        SchemaFile::Layer => schemars::schema_for!(Layer),
        SchemaFile::Scenario => schemars::schema_for!(crate::scenario::spec::file::File),
        SchemaFile::Cluster => schemars::schema_for!(crate::spec::cluster::file::File),
        SchemaFile::Contract => schemars::schema_for!(Component),
        SchemaFile::Kernel => schemars::schema_for!(crate::spec::KernelSource),
        SchemaFile::Container => schemars::schema_for!(crate::spec::ContainerSpec),
        SchemaFile::Config => schemars::schema_for!(Config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_describes_its_keys_and_refuses_others() {
        for (file, key) in [
            (SchemaFile::Debian, "suite"),
            (SchemaFile::Tools, "set"),
            (SchemaFile::Recipe, "outputs"),
            (SchemaFile::Layer, "packages"),
            (SchemaFile::Scenario, "step"),
            (SchemaFile::Cluster, "node"),
            (SchemaFile::Contract, "feature"),
            (SchemaFile::Kernel, "fragments"),
            (SchemaFile::Container, "reference"),
            (SchemaFile::Config, "mirrors"),
        ] {
            let schema = serde_json::to_value(schema(file)).unwrap();
            assert!(schema["properties"][key].is_object(), "{file:?}");
            assert_eq!(schema["additionalProperties"], false, "{file:?}");
        }
    }

    #[test]
    fn man_pages_of_all_verbs_are_written() {
        let dir = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(super::super::command(), dir.path()).unwrap();
        for name in ["kiln", "kiln-build", "kiln-store-gc", "kiln-dev-bench"] {
            let page = fs::read_to_string(dir.path().join(format!("{name}.1"))).unwrap();
            assert!(page.contains(".SH SYNOPSIS"), "{name}");
        }
    }
}
