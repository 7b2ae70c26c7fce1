//! `kiln why`.

use std::path::PathBuf;

use anyhow::Result;

use super::Context;
use crate::arch::Arch;
use crate::built::Built;
use crate::error::{Failure, Kind};
use crate::why::{unknown, why};

/// Arguments of `kiln why`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An absolute path in the image; a Debian package; K3s or another program from a recipe; a container image; a Go module
    #[arg(value_name = "PATH|NAME")]
    what: String,

    /// Profile whose image is asked; default: every image in the output folder
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,

    /// Machine of the image
    #[arg(long, value_enum, default_value = "amd64", requires = "profile")]
    arch: Arch,

    /// Folder with the images; default: `out` in the project
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let project = context.project()?;
    let out = context.out(args.out.as_ref());
    let names = match &args.profile {
        Some(name) => {
            let profile = project.profile(name)?;
            vec![crate::pipeline::Target { profile, arch: args.arch, out: &out }.stem()]
        }
        None => Built::names(&out),
    };
    if names.is_empty() {
        return Err(Failure::new(Kind::Input, format!("there is no image in {}", out.display()))
            .hint("run `kiln build --profile NAME` first")
            .into());
    }
    let images = names.iter().map(|name| Built::find(name, &out)).collect::<Result<Vec<_>>>()?;
    let mut answers = Vec::new();
    for built in &images {
        answers.extend(why(&project, built, &args.what)?);
    }
    if answers.is_empty() {
        return Err(unknown(&images, &args.what).into());
    }
    if context.ui.json() {
        return context.ui.result_json(&answers);
    }
    for line in answers.iter().flat_map(|answer| answer.lines()) {
        context.ui.result(line);
    }
    Ok(())
}
