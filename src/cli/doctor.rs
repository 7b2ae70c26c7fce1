//! `kiln doctor`.

use anyhow::Result;

use super::Context;
use crate::doctor::{Patient, State, examine};
use crate::error::{Failure, Kind};

/// Arguments of `kiln doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Do not ask mirrors
    #[arg(long)]
    offline: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let patient = Patient {
        project: context.project_dir(),
        store: context.store_path(),
        online: !args.offline,
        ui: &context.ui,
    };
    let findings = examine(&patient);
    if context.ui.json() {
        context.ui.result_json(&findings)?;
    } else {
        for finding in &findings {
            context.ui.result(format!("{:4}  {}: {}", finding.state.word(), finding.check, finding.text));
            if let Some(remedy) = &finding.remedy {
                context.ui.result(format!("      -> {remedy}"));
            }
        }
    }
    let failed: Vec<&str> =
        findings.iter().filter(|f| f.state == State::Fail).map(|f| f.check.as_str()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Kind::Input, format!("not fit for work: {}", failed.join(", "))).into())
}
