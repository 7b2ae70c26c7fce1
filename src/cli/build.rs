//! `kiln build`.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::Context;
use super::ways::Ways;
use crate::arch::Arch;
use crate::formats::{self, Written};
use crate::manifest::Manifest;
use crate::packages::Work;
use crate::pipeline::{self, Target};
use crate::rebuild::{self, Verdict};
use crate::sys;
use crate::ui::{human_bytes, human_time};

/// Arguments of `kiln build`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Profile to bake: a file name in profiles/ or qemu/machines/ without
    /// `.toml`; `all`: those in profiles/
    #[arg(long, value_name = "NAME")]
    profile: String,

    /// Machine to bake for
    #[arg(long, value_enum, default_value = "amd64")]
    arch: Arch,

    /// Formats of the disk, separated by commas; the raw disk is always written
    #[arg(long, value_enum, value_delimiter = ',', default_value = "raw", value_name = "FORMAT")]
    format: Vec<Format>,

    /// Folder for the images; default: `out` in the project
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Bake a second time from nothing and compare; exit code 7 and the place if they differ
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    ways: Ways,

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

impl Format {
    /// The writer behind it; `None` for the raw disk, which a build makes anyway.
    fn writer(self) -> Option<formats::Format> {
        match self {
            Format::Raw => None,
            Format::RawZst => Some(formats::Format::RawZst),
            Format::Qcow2 => Some(formats::Format::Qcow2),
        }
    }
}

/// What `--json` says of each profile.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    /// Whether the disk had to be made.
    pub(super) built: bool,
    /// From start to end, the check left out.
    pub(super) seconds: f64,
    /// Processor time of this process so far, all threads.
    pub(super) cpu_seconds: Option<f64>,
    /// Peak resident memory of this process so far, bytes.
    pub(super) peak_memory: Option<u64>,
    /// Files in other formats.
    pub(super) formats: Vec<Written>,
    /// The second build, with `--check`.
    pub(super) check: Option<Verdict>,
    /// The manifest.
    pub(super) manifest: Manifest,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let started = std::time::Instant::now();
    let (mut project, locked) = context.locked()?;
    args.ways.apply(&mut project);
    let store = context.store()?;
    let out = args.out.clone().unwrap_or_else(|| project.dir.join("out"));
    let work = Work { threads: super::threads(args.threads), ..context.work(&project, &locked, &store) };
    let names: Vec<&str> = match args.profile.as_str() {
        "all" => project.profiles.keys().map(String::as_str).collect(),
        name => vec![name],
    };
    let wanted: BTreeSet<formats::Format> = args.format.iter().filter_map(|f| f.writer()).collect();
    let wanted: Vec<formats::Format> = wanted.into_iter().collect();
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
        let mut formats = Vec::new();
        for format in &wanted {
            let begun = std::time::Instant::now();
            let written = formats::write(&work, &target, &manifest, *format)?;
            let text = format!(
                "{} ({}, sha256 {}…) in {}",
                format.path(&target).display(),
                human_bytes(written.size),
                written.sha256.short(),
                human_time(begun.elapsed())
            );
            context.ui.status(if written.written { "Wrote" } else { "Unchanged" }, text);
            formats.push(written);
        }
        let seconds = begun.elapsed().as_secs_f64();
        let check = if args.check { Some(check(context, &work, &target, &wanted)?) } else { None };
        reports.push(Report {
            built,
            seconds,
            cpu_seconds: sys::cpu_time().map(|time| time.as_secs_f64()),
            peak_memory: sys::peak_memory(),
            formats,
            check,
            manifest,
        });
    }
    tracing::debug!(seconds = started.elapsed().as_secs_f64(), "build");
    if context.ui.json() {
        return context.ui.result_json(&reports);
    }
    Ok(())
}

fn check(
    context: &Context,
    work: &Work<'_>,
    target: &Target<'_>,
    wanted: &[formats::Format],
) -> Result<Verdict> {
    let begun = std::time::Instant::now();
    let verdict = rebuild::check(work, target, wanted)?;
    if context.ui.json() && !verdict.same {
        context.ui.result_json(&verdict)?;
    }
    let verdict = verdict.into_result(target)?;
    let text = format!(
        "{}: two builds from nothing have the same bytes, in {}",
        target.stem(),
        human_time(begun.elapsed())
    );
    context.ui.status("Reproduced", text);
    Ok(verdict)
}
