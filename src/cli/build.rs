//! `kiln build`.

use anyhow::Result;

use super::Context;

/// Arguments of `kiln build`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: &Context, _: &Args) -> Result<()> {
    Ok(())
}
