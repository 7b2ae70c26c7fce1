//! `kiln diff`.

use std::path::PathBuf;

use anyhow::Result;

use super::Context;
use crate::built::Built;
use crate::diff::diff;
use crate::error::{Failure, Kind};

/// Files that are listed without `--all`.
const FILES: usize = 40;

/// Arguments of `kiln diff`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The first image: a profile, a manifest (out/server.json), or an image beside its manifest
    old: String,

    /// The image it is compared with
    new: String,

    /// Folder with the images of profiles; default: `out` in the project
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// List every file that differs, however many
    #[arg(long)]
    all: bool,

    /// End with exit code 7 if the images differ
    #[arg(long)]
    exit_code: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let out = context.out(args.out.as_ref());
    let (old, new) = (Built::find(&args.old, &out)?, Built::find(&args.new, &out)?);
    let difference = diff(&old, &new);
    if context.ui.json() {
        context.ui.result_json(&difference)?;
    } else {
        for line in difference.lines(if args.all { usize::MAX } else { FILES }) {
            context.ui.result(line);
        }
    }
    if args.exit_code && !difference.same {
        return Err(Failure::new(Kind::Test, format!("{} and {} differ", args.old, args.new)).into());
    }
    Ok(())
}
