//! `kiln build`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use super::Context;
use crate::arch::Arch;
use crate::manifest::Manifest;
use crate::packages::Work;
use crate::pipeline::{self, Target};
use crate::ui::{human_bytes, human_time};

/// Arguments of `kiln build`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Profile to bake: a file name in profiles/ without `.toml`, or `all`
    #[arg(long, value_name = "NAME")]
    profile: String,

    /// Machine to bake for
    #[arg(long, value_enum, default_value = "amd64")]
    arch: Arch,

    /// Formats of the disk to write; the raw disk is always written
    #[arg(long, value_enum, value_delimiter = ',', default_value = "raw")]
    format: Vec<Format>,

    /// Folder for the images; default: `out` in the project
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Bake a second time in an empty store and compare; on a difference say where
    #[arg(long)]
    check: bool,

    /// Threads to use; the image does not depend on it
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// The disk as it is
    Raw,
    /// The disk in one zstd frame
    #[value(name = "raw.zst")]
    RawZst,
    /// QEMU's format, compressed
    Qcow2,
}

#[derive(Serialize)]
struct Report {
    built: bool,
    seconds: f64,
    manifest: Manifest,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let started = std::time::Instant::now();
    let (project, locked) = context.locked()?;
    let store = context.store()?;
    let out = args.out.clone().unwrap_or_else(|| project.dir.join("out"));
    let work = Work {
        project: &project,
        locked: &locked,
        store: &store,
        ui: &context.ui,
        threads: super::threads(args.threads),
    };
    let names: Vec<&str> = match args.profile.as_str() {
        "all" => project.profiles.keys().map(String::as_str).collect(),
        name => vec![name],
    };
    let mut reports = Vec::new();
    for name in names {
        let begun = std::time::Instant::now();
        let target = Target { profile: project.profile(name)?, arch: args.arch, out: &out };
        let (manifest, built) = pipeline::build(&work, &target)?;
        let word = if built { "Baked" } else { "Unchanged" };
        let size = human_bytes(manifest.disk.size);
        let text = format!(
            "{} ({size}, sha256 {}…) in {}",
            target.raw().display(),
            manifest.disk.sha256.short(),
            human_time(begun.elapsed())
        );
        context.ui.status(word, text);
        reports.push(Report { built, seconds: begun.elapsed().as_secs_f64(), manifest });
    }
    tracing::debug!(seconds = started.elapsed().as_secs_f64(), "build");
    if context.ui.json() {
        return context.ui.result_json(&reports);
    }
    Ok(())
}
