//! `kiln install`, on a machine that `kiln pxe` booted.

use anyhow::Result;

use super::Context;
use crate::deploy::flash::device::Machine;
use crate::deploy::flash::{Phase, Watch};
use crate::deploy::install::install;
use crate::fetch::NodeServer;
use crate::scenario::spec::Mac;
use crate::ui::{Ui, human_bytes};

/// Arguments of `kiln install`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    server: Server,
}

/// Who booted this machine.
#[derive(Debug, clap::Args)]
pub(super) struct Server {
    /// The server that booted this machine, as http://ADDRESS:PORT/
    #[arg(long, value_name = "URL")]
    server: String,

    /// Hardware address of the card by which it was booted
    #[arg(long, value_name = "MAC")]
    mac: Mac,
}

impl Server {
    pub(super) fn open(&self) -> Result<NodeServer> {
        NodeServer::new(&self.server, &self.mac.to_string())
    }
}

/// A person who stands before the machine sees lines, not bars.
struct Lines<'a>(&'a Ui);

impl Watch for Lines<'_> {
    fn begin(&self, phase: Phase, bytes: u64) {
        let (word, what) = match phase {
            Phase::Preparing => ("Preparing", "the disk".to_owned()),
            Phase::Writing => ("Writing", human_bytes(bytes)),
            Phase::Verifying => ("Verifying", human_bytes(bytes)),
            Phase::Finishing => ("Finishing", "what makes it boot".to_owned()),
        };
        self.0.status(word, what);
    }

    fn advance(&self, _: u64) {}
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let server = args.server.open()?;
    let receipt =
        install(&Machine::this(), &server, &Lines(&context.ui), &|word, text| context.ui.status(word, text))?;
    let (device, image) = (&receipt.device, &receipt.image);
    context
        .ui
        .status("Installed", format!("{} {} on {}", image.profile, image.version, device.path.display()));
    Ok(())
}
