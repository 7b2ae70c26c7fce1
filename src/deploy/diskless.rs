//! The `/var` of a machine that `kiln pxe` runs diskless, where its node keeps its state on a disk: the initrd runs this when the verified
//! root is mounted, and mounts nothing itself.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::flash::claim::Wish;
use super::flash::device::Machine;
use super::flash::state::{self, Place};
use super::install::{Event, Plan};
use crate::error::{Failure, Kind};
use crate::fetch::NodeServer;
use crate::spec::cluster::DiskContract;
use crate::sys;

/// The kernel finds disks one after the other: so long there must be no new one before one is picked.
const SETTLED: Duration = Duration::from_secs(3);
/// So long a disk of the contract is waited for.
const LONGEST: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(250);
/// What the partition tables take beside `/var`.
const TABLES: u64 = 2 << 20;

/// Finds the disk of the plan's contract, or makes it ready, and tells the server; `said` hears a word and a line for people.
///
/// # Errors
/// The plan is another one; as [`state::ready`].
pub fn prepare(machine: &Machine, server: &NodeServer, said: &dyn Fn(&str, String)) -> Result<Place> {
    let result = Plan::ask(server).and_then(|plan| work(machine, &plan));
    let (event, detail) = match &result {
        Ok(place) => ("booted", place.to_string()),
        Err(error) => ("failed", format!("{error:#}")),
    };
    let event = Event { event, detail: Some(detail), receipt: None };
    if let Err(error) = server.post("event", &serde_json::to_vec(&event)?) {
        // The node is none the worse for it.
        said("Unheard", format!("{error:#}"));
    }
    result
}

fn work(machine: &Machine, plan: &Plan) -> Result<Place> {
    let Some(order) = &plan.state else {
        let text = format!("the server plans no state on a disk for {} (mode {})", plan.node, plan.mode);
        let hint = format!("`diskless-state = \"disk\"` below [node.{}] in cluster.toml", plan.node);
        return Err(Failure::new(Kind::Input, text).hint(hint).into());
    };
    settle(machine, &plan.contract)?;
    let least = plan.state_size + TABLES;
    let wish = Wish { contract: plan.contract.clone(), least, ..Wish::default() };
    Ok(state::ready(machine, &wish, state::guid(&order.cluster, &plan.node))?)
}

/// Waits until no more disks come up, and one of the contract is among them; what is missing in the end is told by who looks for it.
fn settle(machine: &Machine, contract: &DiskContract) -> Result<()> {
    let begun = Instant::now();
    let (mut known, mut since) = (Vec::new(), begun);
    while begun.elapsed() < LONGEST {
        sys::check_interrupt()?;
        let disks = machine.disks();
        let fits = disks.iter().any(|disk| disk.misfit(contract).is_none());
        let now: Vec<_> = disks.into_iter().map(|disk| (disk.name, disk.size, disk.serials)).collect();
        if now != known {
            (known, since) = (now, Instant::now());
        }
        if fits && since.elapsed() >= SETTLED {
            break;
        }
        std::thread::sleep(STEP);
    }
    Ok(())
}
