//! Where boot time went: every boot as a bar of its stages, all on one scale, which opens to its slowest units.

use maud::{Markup, html};

use super::timeline::{Stretch, stages, words};
use super::{Page, percent, seconds};
use crate::scenario::result::{Boot, BootEnd, Node, Unit};

/// So many of a boot's units are shown, slowest first.
const UNITS: usize = 16;
/// A node with more boots than this shows its first and last ones, and those in between that are worth a look.
const BOOTS: usize = 24;

impl Page<'_> {
    pub(super) fn boots(&self) -> Markup {
        let longest = self.run.nodes.iter().flat_map(|node| &node.boots).map(length).max().unwrap_or(1);
        html! {
            section #boots {
                h2 { "Boots" }
                div.rows.boots {
                    @for node in &self.run.nodes { (self.boots_of(node, longest)) }
                }
            }
        }
    }

    fn boots_of(&self, node: &Node, longest: u64) -> Markup {
        let shown = chosen(&node.boots);
        html! {
            @for boot in &shown { (self.boot(&node.name, boot, longest)) }
            @if shown.len() < node.boots.len() {
                p.note {
                    (node.boots.len() - shown.len()) " more boots of " (node.name) " are in report.json; \
                    the first, the last, the slowest and those that did not get ready are here."
                }
            }
        }
    }

    fn boot(&self, node: &str, boot: &Boot, longest: u64) -> Markup {
        let stages = stages(boot);
        let row = html! {
            span.node { (node) }
            span.name { "boot " (boot.number) }
            span.bar { (bar(boot, &stages, longest)) }
            span.number { @if boot.ready_ms.is_some() { (seconds(length(boot))) } @else { "not ready" } }
            span.note.ended { (boot.ended.words()) }
        };
        let class = if boot.ready_ms.is_none() && boot.ended != BootEnd::Refused { "late" } else { "fine" };
        // A waterfall of units is about 5 kB of page.
        match &boot.timeline {
            Some(timeline) if !timeline.units.is_empty() && self.afford(5000) => html! {
                details.boot.(class) {
                    summary.row { (row) }
                    div.inside {
                        p.stages {
                            @for stage in &stages {
                                span { svg width="12" height="12" aria-hidden="true" { rect class=(stage.kind) width="12" height="12" rx="2" {} }
                                    (words(stage.kind)) " " strong { (seconds(stage.to - stage.from)) } }
                            }
                        }
                        (units(&timeline.units))
                        (chain(&timeline.critical_chain))
                    }
                }
            },
            _ => html! { div.boot.row.(class) { (row) } },
        }
    }
}

/// Switched on to ready, or to its end.
fn length(boot: &Boot) -> u64 {
    let end = boot.ready_ms.or(boot.ended_ms).unwrap_or(boot.began_ms);
    end.saturating_sub(boot.began_ms)
}

/// The boots that are shown of a node, in order.
fn chosen(boots: &[Boot]) -> Vec<&Boot> {
    if boots.len() <= BOOTS {
        return boots.iter().collect();
    }
    let third = BOOTS / 3;
    let mut slowest: Vec<u64> = boots.iter().map(length).collect();
    slowest.sort_unstable_by(|a, b| b.cmp(a));
    let slow = slowest.get(third).copied().unwrap_or(u64::MAX);
    let worth = |index: usize, boot: &Boot| {
        index < third || index >= boots.len() - third || boot.ready_ms.is_none() || length(boot) > slow
    };
    boots
        .iter()
        .enumerate()
        .filter(|(index, boot)| worth(*index, boot))
        .map(|(_, boot)| boot)
        .take(4 * BOOTS)
        .collect()
}

fn bar(boot: &Boot, stages: &[Stretch], longest: u64) -> Markup {
    let whole;
    let blocks = if stages.is_empty() {
        whole = [Stretch { kind: "unknown", from: boot.began_ms, to: boot.began_ms + length(boot) }];
        &whole
    } else {
        stages
    };
    html! {
        svg height="14" role="img" aria-label="stages" {
            @for block in blocks {
                @let length = block.to.saturating_sub(block.from);
                rect class=(block.kind) x=(percent(block.from.saturating_sub(boot.began_ms), longest)) width=(percent(length, longest)) height="14" {
                    title { (words(block.kind)) " " (seconds(length)) }
                }
            }
        }
    }
}

/// The slowest units, each where it stood in the boot.
fn units(units: &[Unit]) -> Markup {
    let from = units.iter().map(|unit| unit.start_ms).min().unwrap_or(0);
    let to = units.iter().map(|unit| unit.end_ms).max().unwrap_or(0);
    let whole = to.saturating_sub(from).max(1);
    html! {
        h4 { "Slowest units" span.note { " from " (seconds(from)) " to " (seconds(to)) " after the kernel's start" } }
        div.units {
            @for unit in units.iter().take(UNITS) {
                span.name title=(unit.name) { (unit.name) }
                span.number { (seconds(unit.took_ms())) }
                span.bar {
                    svg height="12" role="presentation" {
                        rect.rail width="100%" height="12" {}
                        rect.unit x=(percent(unit.start_ms - from, whole)) width=(percent(unit.took_ms().max(whole / 300), whole)) height="12" {
                            title { (unit.name) ": " (seconds(unit.start_ms)) " to " (seconds(unit.end_ms)) }
                        }
                    }
                }
            }
        }
    }
}

fn chain(chain: &[Unit]) -> Markup {
    if chain.is_empty() {
        return html! {};
    }
    html! {
        h4 { "Critical chain" span.note { " what the end of boot waited for, last one first" } }
        ol.chain {
            @for unit in chain.iter().take(UNITS) {
                li {
                    span.name { (unit.name) } " "
                    span.note { "active at " (seconds(unit.end_ms)) @if unit.took_ms() > 0 { ", took " (seconds(unit.took_ms())) } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_thousand_boots_the_ends_the_slowest_and_the_broken_are_shown() {
        let mut boots: Vec<Boot> = (0..1000)
            .map(|n| Boot { number: n + 1, ready_ms: Some(u64::from(1000 + n % 7)), ..Boot::default() })
            .collect();
        boots[500].ready_ms = None;
        boots[700].ready_ms = Some(9000);
        let shown: Vec<u32> = chosen(&boots).iter().map(|boot| boot.number).collect();
        assert!(shown.len() <= 4 * BOOTS, "{}", shown.len());
        for number in [1, 8, 501, 701, 993, 1000] {
            assert!(shown.contains(&number), "{number} of {shown:?}");
        }
        assert!(shown.is_sorted());
        assert_eq!(chosen(&boots[..24]).len(), 24);
    }
}
