//! `kiln init`.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use super::Context;
use crate::init::init;

/// Arguments of `kiln init`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder for the project; it must be empty or not there yet
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// What `--json` says.
#[derive(Serialize)]
struct Report {
    folder: PathBuf,
    files: Vec<String>,
    next: Vec<String>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let files = init(&args.dir)?;
    let dir = args.dir.display();
    let next =
        vec![format!("kiln -C {dir} build --profile server"), format!("kiln -C {dir} run --profile server")];
    if context.ui.json() {
        return context.ui.result_json(&Report { folder: args.dir.clone(), files, next });
    }
    context.ui.status("Wrote", format!("{} files into {dir}", files.len()));
    context.ui.status("Next", next.join("\n             "));
    Ok(())
}
