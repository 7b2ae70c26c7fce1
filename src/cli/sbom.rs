//! `kiln sbom`.

use std::path::PathBuf;

use anyhow::Result;

use super::Context;
use crate::arch::Arch;
use crate::built;
use crate::error::{Place, WritesTo};
use crate::manifest;
use crate::sbom::{self, Format};

/// Arguments of `kiln sbom`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Profile whose image in the output folder is described
    #[arg(long, value_name = "NAME", required_unless_present = "manifest")]
    profile: Option<String>,

    /// A manifest to describe in its place
    #[arg(long, value_name = "FILE", conflicts_with = "profile")]
    manifest: Option<PathBuf>,

    /// Machine of the image
    #[arg(long, value_enum, default_value = "amd64")]
    arch: Arch,

    /// Format of the bill of materials
    #[arg(long, value_enum)]
    format: Format,

    /// Write to this file; default: stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let path = match (&args.manifest, &args.profile) {
        (Some(path), _) => path.clone(),
        (None, profile) => {
            let stem = match args.arch {
                Arch::Amd64 => profile.clone().unwrap_or_default(),
                arch => format!("{}-{arch}", profile.as_deref().unwrap_or_default()),
            };
            built::locate(&stem, &context.out(None))?
        }
    };
    let bill = sbom::write(&manifest::read(&path)?, args.format)?;
    match &args.out {
        None => context.ui.raw(&bill),
        Some(out) => {
            manifest::write_file(out, &bill).writes_to(Place::Out, out)?;
            context.ui.status("Wrote", out.display().to_string());
        }
    }
    Ok(())
}
