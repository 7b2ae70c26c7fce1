//! When what happened: a lane for the steps and one per node, as inline SVG.
//!
//! Places are percentages of the run, sizes of marks and text are pixels: the plot fits every width and its text never shrinks.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::{Page, percent, seconds};
use crate::scenario::report::problems::problems;
use crate::scenario::result::{Boot, Node, NodeState, Step};

/// Distances between ticks that people read easily, in milliseconds.
const TICKS: [u64; 14] = [
    500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000, 3_600_000,
    7_200_000, 21_600_000,
];
/// More ticks than this do not fit on a phone.
const MOST_TICKS: u64 = 8;
/// The resolution of a lane. Nothing shorter than one of so many parts of the run is drawn: it is a fraction of a pixel.
const COLUMNS: u64 = 4000;
/// What is shorter than one of so many parts of the run is drawn together with its kind: it is too small to be pointed at.
const BLOCKS: u64 = 200;
/// Marks that stand in the same one of so many parts of the run are one mark: they would cover each other.
const MARKS: u64 = 250;
/// At most so many faults of a node are shown with their length.
const HELD: usize = 500;

/// What a stretch of a node's lane is, with its class and words.
const KINDS: [(&str, &str); 8] = [
    ("firmware", "firmware"),
    ("loader", "boot loader"),
    ("kernel", "kernel"),
    ("initrd", "initrd"),
    ("userspace", "services"),
    ("ready", "ready"),
    ("paused", "paused"),
    ("down", "down"),
];

/// A stretch of time in which a node did one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stretch {
    /// One of [`KINDS`].
    pub(super) kind: &'static str,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// The words for a kind of stretch.
pub(super) fn words(kind: &str) -> &str {
    KINDS.iter().find(|(known, _)| *known == kind).map_or(kind, |(_, words)| words)
}

impl Page<'_> {
    pub(super) fn timeline(&self) -> Markup {
        let run = self.run;
        let whole = self.span();
        let mut moments: Vec<u64> = problems(run).iter().filter_map(|problem| problem.at_ms).collect();
        moments.sort_unstable();
        moments.dedup_by_key(|at| *at * MARKS / whole);
        html! {
            section #timeline {
                h2 { "Timeline" }
                div.plot {
                    div.lane.axis {
                        span.label { "seconds" }
                        svg height="22" role="presentation" {
                            defs {
                                pattern #hatch width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                                    rect width="2" height="6" {}
                                }
                            }
                            @for tick in ticks(whole) {
                                line x1=(percent(tick, whole)) x2=(percent(tick, whole)) y1="16" y2="22" {}
                                text x=(percent(tick, whole)) y="11" { (tick_label(tick)) }
                            }
                        }
                    }
                    div.lane.steplane {
                        span.label { "steps" }
                        svg height="28" role="img" aria-label="steps over time" {
                            (grid(whole)) (moment_lines(&moments, whole))
                            @for step in &run.steps { (step_block(step, whole)) }
                        }
                    }
                    @for node in &run.nodes { (self.lane(node, whole, &moments)) }
                }
                (legend())
            }
        }
    }

    /// The length of the plot: to the end of the last thing, whatever the run's own length says.
    fn span(&self) -> u64 {
        let run = self.run;
        let steps = run.steps.iter().map(|step| step.began_ms + step.duration_ms);
        let states = run.nodes.iter().flat_map(|node| &node.states).map(|change| change.at_ms);
        steps.chain(states).chain([run.duration_ms, 1]).max().unwrap_or(1)
    }

    fn lane(&self, node: &Node, whole: u64, moments: &[u64]) -> Markup {
        let stretches = thinned(stretches(node, whole), whole);
        let (blocks, small): (Vec<_>, Vec<_>) =
            stretches.iter().partition(|stretch| (stretch.to - stretch.from) * BLOCKS >= whole);
        let faults = || self.run.faults.iter().filter(|fault| fault.node == node.name);
        let findings = || self.run.findings.iter().filter(|finding| finding.node == node.name);
        html! {
            div.lane {
                span.label { (node.name) }
                svg height="36" role="img" aria-label=(format!("{} over time", node.name)) {
                    (grid(whole))
                    line.base x1="0" x2="100%" y1="18" y2="18" {}
                    (many(&small, whole))
                    @for stretch in &blocks { (block(stretch, whole)) }
                    (moment_lines(moments, whole))
                    @for (fault, until) in faults().filter_map(|fault| Some((fault, fault.until_ms?))).take(HELD) {
                        rect.held x=(percent(fault.at_ms, whole)) y="8" height="20"
                            width=(percent(until.saturating_sub(fault.at_ms), whole)) {
                            title { (fault.kind.replace('_', " ")) " " (fault.detail) ": " (seconds(fault.at_ms)) " to " (seconds(until)) }
                        }
                    }
                    @for (fault, more) in grouped(faults(), |fault| fault.at_ms, whole) {
                        svg.mark x=(percent(fault.at_ms, whole)) {
                            path.fault d="M-5.5 0 L5.5 0 L0 9 Z" {
                                title { "fault at " (seconds(fault.at_ms)) ": " (fault.kind.replace('_', " ")) " " (fault.detail) (more) }
                            }
                        }
                    }
                    @for allowed in [true, false] {
                        @for (finding, more) in grouped(findings().filter(|f| f.counts() != allowed), |f| f.at_ms, whole) {
                            svg.mark x=(percent(finding.at_ms, whole)) {
                                path.finding.allowed[allowed] d="M0 25 L5 30.5 L0 36 L-5 30.5 Z" {
                                    title { (finding.rule) " at " (seconds(finding.at_ms)) ": " (finding.line) (more) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// One of those that stand in the same place, and how many more do, in words.
fn grouped<'a, T>(
    all: impl Iterator<Item = &'a T>,
    at: impl Fn(&T) -> u64,
    whole: u64,
) -> Vec<(&'a T, String)> {
    let mut places: BTreeMap<u64, (&T, usize)> = BTreeMap::new();
    for one in all {
        places.entry(at(one).saturating_mul(MARKS) / whole).or_insert((one, 0)).1 += 1;
    }
    let words =
        |count: usize| if count > 1 { format!(", and {} more here", count - 1) } else { String::new() };
    places.into_values().map(|(one, count)| (one, words(count))).collect()
}

/// Small stretches, one path for each kind: a thousand boots are some ten thousand of them.
fn many(stretches: &[&Stretch], whole: u64) -> Markup {
    if stretches.is_empty() {
        return html! {};
    }
    let place = |ms: u64| ms.min(whole).saturating_mul(COLUMNS) / whole;
    html! {
        svg y="10" width="100%" height="16" viewBox=(format!("0 0 {COLUMNS} 1")) preserveAspectRatio="none" {
            @for (kind, _) in KINDS {
                @let path: String = stretches.iter().filter(|stretch| stretch.kind == kind).map(|stretch| {
                    let (from, to) = (place(stretch.from), place(stretch.to));
                    format!("M{from} 0h{}v1h-{}z", to - from, to - from)
                }).collect();
                @if !path.is_empty() { path class=(kind) d=(path) {} }
            }
        }
    }
}

fn legend() -> Markup {
    html! {
        p.legend {
            @for (kind, words) in KINDS {
                span { svg width="14" height="12" aria-hidden="true" { rect class=(kind) width="14" height="12" rx="2" {} } (words) }
            }
            span { svg width="12" height="12" aria-hidden="true" { path.fault d="M0.5 1.5 L11.5 1.5 L6 10.5 Z" {} } "fault" }
            span { svg width="14" height="12" aria-hidden="true" { rect.held width="14" height="12" {} } "until healed" }
            span { svg width="12" height="12" aria-hidden="true" { path.finding d="M6 0.5 L11 6 L6 11.5 L1 6 Z" {} } "on the console" }
            span { svg width="6" height="12" aria-hidden="true" { line.moment x1="3" x2="3" y1="0" y2="12" {} } "failure" }
        }
    }
}

fn grid(whole: u64) -> Markup {
    html! {
        @for tick in ticks(whole) {
            line.grid x1=(percent(tick, whole)) x2=(percent(tick, whole)) y1="0" y2="100%" {}
        }
    }
}

fn moment_lines(moments: &[u64], whole: u64) -> Markup {
    html! {
        @for &at in moments {
            line.moment x1=(percent(at, whole)) x2=(percent(at, whole)) y1="0" y2="100%" {}
        }
    }
}

fn step_block(step: &Step, whole: u64) -> Markup {
    if step.attempts == 0 && step.outcome.is_skipped() {
        return html! {};
    }
    let why = match step.outcome.why() {
        "" => String::new(),
        why => format!(": {why}"),
    };
    html! {
        svg x=(percent(step.began_ms, whole)) width=(percent(step.duration_ms.max(whole / 400), whole)) height="28" {
            title { "step " (step.number) ", " (step.name) ", " (seconds(step.duration_ms)) ", " (step.outcome.word()) (why) }
            rect.step.(step.outcome.word()) y="3" width="100%" height="22" {}
            // Where it does not fit it is cut off: the title has it.
            @if step.duration_ms * 45 > whole { text x="50%" y="18" { (step.number) } }
        }
    }
}

fn block(stretch: &Stretch, whole: u64) -> Markup {
    let length = stretch.to.saturating_sub(stretch.from);
    let (x, width) = (percent(stretch.from, whole), percent(length, whole));
    html! {
        svg x=(x) width=(width) height="36" {
            title { (words(stretch.kind)) " " (seconds(length)) ", from " (seconds(stretch.from)) " to " (seconds(stretch.to)) }
            rect class=(stretch.kind) y="10" width="100%" height="16" {}
            @if length * 9 > whole { text class=(format!("on-{}", stretch.kind)) x="5" y="22" { (words(stretch.kind)) } }
        }
    }
}

/// What a node did over the run, by time and without overlaps: its states, and in boots that told of them the stages.
fn stretches(node: &Node, end: u64) -> Vec<Stretch> {
    let known: Vec<Stretch> = node.boots.iter().flat_map(stages).collect();
    let mut all = known.clone();
    for (index, change) in node.states.iter().enumerate() {
        let kind = match change.state {
            NodeState::Off => continue,
            NodeState::Firmware => "firmware",
            NodeState::Kernel => "kernel",
            NodeState::Userspace => "userspace",
            NodeState::Ready => "ready",
            NodeState::Paused => "paused",
            NodeState::Down => "down",
        };
        let to = node.states.get(index + 1).map_or(end, |next| next.at_ms);
        // What the stages tell of is cut out.
        let mut from = change.at_ms;
        let mut around: Vec<&Stretch> = known.iter().filter(|s| s.to > from && s.from < to).collect();
        around.sort_by_key(|s| s.from);
        for stage in around {
            if stage.from > from {
                all.push(Stretch { kind, from, to: stage.from });
            }
            from = from.max(stage.to);
        }
        if to > from {
            all.push(Stretch { kind, from, to });
        }
    }
    all.sort_by_key(|stretch| stretch.from);
    all
}

/// The stages of a boot that told of them. What is not accounted for before the kernel is the firmware's: most virtual
/// machines' firmware does not tell how long it took.
pub(super) fn stages(boot: &Boot) -> Vec<Stretch> {
    let Some(timeline) = &boot.timeline else { return Vec::new() };
    let inside = timeline.kernel_ms + timeline.initrd_ms + timeline.userspace_ms;
    let told = timeline.firmware_ms + timeline.loader_ms + inside;
    let total = boot.ready_ms.map_or(told, |ready| ready.saturating_sub(boot.began_ms));
    let before = total.saturating_sub(inside);
    let loader = timeline.loader_ms.min(before);
    let mut from = boot.began_ms;
    let mut all = Vec::new();
    for (kind, length) in [
        ("firmware", before - loader),
        ("loader", loader),
        ("kernel", timeline.kernel_ms),
        ("initrd", timeline.initrd_ms),
        ("userspace", timeline.userspace_ms),
    ] {
        if length > 0 {
            all.push(Stretch { kind, from, to: from + length });
        }
        from += length;
    }
    all
}

/// Leaves out what is too short to be seen, and closes the gaps.
fn thinned(stretches: Vec<Stretch>, whole: u64) -> Vec<Stretch> {
    let least = whole / COLUMNS;
    let mut drawn = 0;
    let mut all: Vec<Stretch> = Vec::new();
    for mut stretch in stretches {
        if stretch.to < drawn + least.max(1) {
            continue;
        }
        if stretch.from < drawn + least {
            stretch.from = drawn;
        }
        drawn = stretch.to;
        match all.last_mut() {
            Some(last) if last.kind == stretch.kind && last.to == stretch.from => last.to = stretch.to,
            _ => all.push(stretch),
        }
    }
    all
}

fn ticks(whole: u64) -> Vec<u64> {
    let last = TICKS.last().copied().unwrap_or(1);
    let step = TICKS.into_iter().find(|step| whole / step <= MOST_TICKS).unwrap_or_else(|| {
        // Longer than two days: whole multiples of the longest distance.
        last * (whole / last / MOST_TICKS + 1)
    });
    // A label at the very end would stand half outside.
    (0..=whole / step).map(|n| n * step).filter(|tick| tick * 100 <= whole * 97).collect()
}

fn tick_label(ms: u64) -> String {
    if ms.is_multiple_of(1000) { (ms / 1000).to_string() } else { format!("{:.1}", ms as f64 / 1000.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::result::{StateChange, Timeline};

    fn stretch(kind: &'static str, from: u64, to: u64) -> Stretch {
        Stretch { kind, from, to }
    }

    #[test]
    fn stages_fill_the_time_to_ready_and_what_nobody_tells_of_is_the_firmwares() {
        let timeline =
            Timeline { loader_ms: 500, kernel_ms: 2000, userspace_ms: 6000, ..Timeline::default() };
        let boot =
            Boot { began_ms: 1000, ready_ms: Some(11_000), timeline: Some(timeline), ..Boot::default() };
        let all = stages(&boot);
        assert_eq!(
            all,
            [
                stretch("firmware", 1000, 2500),
                stretch("loader", 2500, 3000),
                stretch("kernel", 3000, 5000),
                stretch("userspace", 5000, 11_000),
            ]
        );
    }

    #[test]
    fn a_guest_whose_clock_ran_ahead_does_not_make_time_negative() {
        let timeline = Timeline { loader_ms: 900, kernel_ms: 5000, ..Timeline::default() };
        let boot = Boot { ready_ms: Some(4000), timeline: Some(timeline), ..Boot::default() };
        assert_eq!(stages(&boot), [stretch("kernel", 0, 5000)]);
    }

    #[test]
    fn stages_take_the_place_of_states_and_nothing_overlaps() {
        let timeline = Timeline { kernel_ms: 3000, userspace_ms: 5000, ..Timeline::default() };
        let boot = Boot { number: 1, ready_ms: Some(10_000), timeline: Some(timeline), ..Boot::default() };
        let states = [
            (0, NodeState::Firmware),
            (4000, NodeState::Userspace),
            (10_000, NodeState::Ready),
            (20_000, NodeState::Down),
            (22_000, NodeState::Firmware),
        ];
        let states = states.map(|(at_ms, state)| StateChange { at_ms, state }).to_vec();
        let node = Node { boots: vec![boot], states, ..Node::default() };
        let all = stretches(&node, 30_000);
        assert_eq!(
            all,
            [
                stretch("firmware", 0, 2000),
                stretch("kernel", 2000, 5000),
                stretch("userspace", 5000, 10_000),
                stretch("ready", 10_000, 20_000),
                stretch("down", 20_000, 22_000),
                stretch("firmware", 22_000, 30_000),
            ]
        );
    }

    #[test]
    fn stretches_far_below_a_pixel_are_left_out_and_leave_no_gap() {
        let kind = |n: u64| ["firmware", "kernel", "ready"][n as usize % 3];
        let thin = thinned((0..20_000).map(|n| stretch(kind(n), n * 10, n * 10 + 10)).collect(), 200_000);
        assert!(thin.len() as u64 <= COLUMNS + 1, "{}", thin.len());
        assert!(thin[0].from == 0 && thin.last().unwrap().to > 199_900);
        assert!(thin.windows(2).all(|pair| pair[0].to == pair[1].from));
        // A thousand boots of a minute in stages of seconds are not below a pixel: all are there.
        let boots: Vec<_> = (0..4000).map(|n| stretch(kind(n), n * 15_000, n * 15_000 + 15_000)).collect();
        assert_eq!(thinned(boots, 60_000_000).len(), 4000);
    }

    #[test]
    fn marks_in_one_place_are_one_and_say_how_many_and_none_is_left_out_at_the_end() {
        let times: Vec<u64> = (0..1000).collect();
        let marks = grouped(times.iter(), |at| *at, 1000);
        assert_eq!(marks.len() as u64, MARKS);
        assert_eq!(marks[249], (&996, ", and 3 more here".to_owned()));
        assert_eq!(grouped([7, 900].iter(), |at| *at, 1000), [(&7, String::new()), (&900, String::new())]);
    }

    #[test]
    fn ticks_are_few_round_and_inside() {
        for whole in [1, 900, 12_345, 61_000, 372_000, 5_000_000, 90_000_000, 10_000_000_000] {
            let ticks = ticks(whole);
            assert!(ticks.len() <= 10 && ticks[0] == 0, "{whole}: {ticks:?}");
            assert!(ticks.last().unwrap() <= &whole);
        }
        assert_eq!(ticks(372_000), [0, 60_000, 120_000, 180_000, 240_000, 300_000, 360_000]);
    }
}
