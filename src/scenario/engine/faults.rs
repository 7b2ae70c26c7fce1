//! Faults: what happens beside the steps, at its time.

use std::time::{Duration, Instant};

use super::cluster::Cluster;
use super::context::{Context, Trouble, millis};
use super::net;
use crate::scenario::result;
use crate::scenario::seeded::{self, Moment};
use crate::scenario::spec::{Fault, FaultKind, Scenario, Span};

/// A node that was restarted by a fault has as long as this under KVM to be ready again.
const BACK: Span = Span::secs(120);

/// The clock of faults: when it started, and which steps have passed.
#[derive(Debug)]
pub(super) struct Gate {
    /// When all nodes were ready.
    pub(super) ready: Option<Instant>,
    /// Steps that passed, by index.
    pub(super) passed: Vec<bool>,
}

impl Gate {
    pub(super) fn new(steps: usize) -> Self {
        Gate { ready: None, passed: vec![false; steps] }
    }
}

/// Waits for the moments of the scenario's fault number `index` and injects it each time. Returns when it has happened for the
/// last time, or the run ends.
pub(super) fn play(
    context: &Context<'_>,
    cluster: &Cluster<'_>,
    scenario: &Scenario,
    index: usize,
) -> Result<(), Trouble> {
    let strikes = seeded::strikes(scenario, context.seed);
    for strike in strikes.iter().filter(|strike| strike.index == index) {
        let (start, after) = loop {
            context.check_fault()?;
            let gate = cluster.gate();
            let open = match strike.moment {
                Moment::After(step) if gate.passed.get(step).copied().unwrap_or(false) => {
                    Some((Instant::now(), Duration::ZERO))
                }
                Moment::After(_) => None,
                Moment::At(after) => gate.ready.map(|ready| (ready, after)),
            };
            drop(gate);
            if let Some(open) = open {
                break open;
            }
            std::thread::sleep(super::context::STEP);
        };
        let left = (start + after).saturating_duration_since(Instant::now());
        context.sleep_while(left, &|| context.check_fault())?;
        inject(context, cluster, strike.fault)?;
    }
    Ok(())
}

fn inject(context: &Context<'_>, cluster: &Cluster<'_>, fault: &Fault) -> Result<(), Trouble> {
    let (kind, detail) = match &fault.kind {
        FaultKind::PowerCut => ("power_cut", "the plug was pulled".to_owned()),
        FaultKind::Reboot => ("reboot", "restarted in order".to_owned()),
        FaultKind::Crash => ("crash", "its kernel was made to panic".to_owned()),
        FaultKind::Pause { lasts } => ("pause", format!("its CPUs stopped for {lasts}")),
        FaultKind::Link { cable, conditions, lasts } => {
            ("link", format!("{}: {} for {lasts}", cable.network, net::words(conditions)))
        }
    };
    let mut told = result::Fault {
        at_ms: context.now(),
        until_ms: None,
        node: fault.node.to_string(),
        kind: kind.to_owned(),
        detail,
    };
    context.events.fault(&told);
    let place = {
        let mut record = context.record();
        record.faults.push(told.clone());
        record.faults.len() - 1
    };
    let node = cluster.node(&fault.node)?;
    let back = context.limit(BACK);
    let done = match &fault.kind {
        FaultKind::PowerCut => node.power_cut(context).and_then(|_| node.wait_ready(context, back)),
        FaultKind::Reboot => node.reboot(context, back),
        FaultKind::Crash => node.crash(context, back),
        FaultKind::Pause { lasts } => {
            node.pause(context)?;
            let slept = context.sleep(lasts.duration());
            node.resume(context).and(slept)
        }
        FaultKind::Link { cable, conditions, lasts } => {
            cluster.net.set(cable, conditions).map_err(Trouble::from)?;
            let slept = context.sleep(lasts.duration());
            cluster.net.heal(cable).map_err(Trouble::from).and(slept)
        }
    };
    if let Err(trouble) = done {
        if !trouble.over {
            let console = vec![node.console_now(context)];
            let what = format!("it did not come back from the fault `{kind}`: {}", trouble.why);
            context.incident(Some(&fault.node), what, String::new(), console);
        }
        return Err(trouble);
    }
    told.until_ms = Some(millis(context.started.elapsed()));
    context.events.healed(&told);
    if let Some(kept) = context.record().faults.get_mut(place) {
        *kept = told;
    }
    Ok(())
}
