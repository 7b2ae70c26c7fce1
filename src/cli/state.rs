//! `kiln state`, on a machine that `kiln pxe` runs diskless.

use anyhow::Result;

use super::Context;
use super::install::Server;
use crate::deploy::diskless::prepare;
use crate::deploy::flash::device::Machine;

/// Arguments of `kiln state`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    server: Server,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let place = prepare(&Machine::this(), &args.server.open()?, &|word, text| context.ui.status(word, text))?;
    context.ui.status("State", place.to_string());
    // For the initrd, which goes on with it.
    context.ui.result(place.partition.to_string_lossy());
    Ok(())
}
