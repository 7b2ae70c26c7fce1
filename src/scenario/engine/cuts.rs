//! Pulling the plug again and again: what was flushed must be there, and the node must come up, each time.

use std::time::Duration;

use super::context::{Context, Trouble};
use super::node::Node;
use super::script::{self, Job};
use crate::scenario::result::Evidence;
use crate::scenario::seeded;
use crate::scenario::spec::{Expect, PowerCuts};

/// All rounds of the step `name` (its number: `number`) on one node, each within `limit`. The evidence says what each cut did to the disk.
pub(super) fn run(
    context: &Context<'_>,
    node: &Node<'_>,
    (number, name): (u32, &str),
    cuts: &PowerCuts,
    limit: Duration,
) -> Result<Vec<Evidence>, Trouble> {
    let count = cuts.count;
    let mut rounds: Vec<Evidence> = Vec::new();
    for round in 1..=count {
        let moment = seeded::cut(context.seed, name, node.name(), round - 1, cuts.within);
        let blame = |mut trouble: Trouble| {
            trouble.why = format!("round {round} of {count}: {}", trouble.why);
            trouble.evidence.splice(0..0, rounds.iter().cloned());
            trouble
        };
        let script = cuts.write.fill(node.name(), &context.record().saved);
        let script = script.map_err(|name| Trouble::new(format!("`{{{name}}}` is not known")))?;
        let cut = node.cut_while(context, &script, moment).map_err(blame)?;
        node.wait_ready(context, limit).map_err(blame)?;
        let expect = Expect::default();
        let job = Job { script: &cuts.verify, expect: &expect, until: false, limit, number };
        let answer = script::run(context, node, &job).map_err(blame)?;
        rounds.push(Evidence {
            node: node.name().to_owned(),
            command: format!(
                "round {round}: the plug was pulled {} ms after the script began",
                moment.as_millis()
            ),
            stdout: format!(
                "unflushed blocks of 4 KiB: {} lost, {} kept, {} torn\n{}",
                cut.dropped, cut.kept, cut.torn, answer.stdout
            ),
            ..Evidence::default()
        });
        context.events.note("Survived", &format!("{}: power cut {round} of {count}", node.name()));
    }
    Ok(rounds)
}
