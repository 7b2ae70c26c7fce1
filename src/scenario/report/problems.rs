//! What went wrong in a run, whatever it was, by time.

use crate::scenario::result::{ConsoleExcerpt, ConsoleLine, Evidence, Outcome, Run, Stuck};

/// One thing that went wrong.
#[derive(Debug, Default)]
pub(super) struct Problem<'a> {
    /// What it happened to: `Step 3`, `Console of agent-1`.
    pub(super) subject: String,
    /// Its name, if it has one.
    pub(super) name: &'a str,
    /// The nodes.
    pub(super) nodes: Vec<&'a str>,
    /// When.
    pub(super) at_ms: Option<u64>,
    /// What was wrong; may have lines, the sentence first.
    pub(super) why: &'a str,
    /// What shows it; that which failed comes first.
    pub(super) evidence: Vec<&'a Evidence>,
    /// The consoles around it.
    pub(super) console: Vec<(&'a str, &'a [ConsoleLine])>,
    /// The line of the console to point at.
    pub(super) line: Option<&'a str>,
    /// What the node was doing.
    pub(super) stuck: Option<&'a Stuck>,
    /// Files that belong to it.
    pub(super) files: &'a [String],
}

/// The problems of a run by time: failed steps, incidents, broken invariants, findings; then changed images and nodes that hung.
pub(super) fn problems(run: &Run) -> Vec<Problem<'_>> {
    let mut all = Vec::new();
    for step in run.steps.iter().filter(|step| step.outcome.is_failed()) {
        all.push(Problem {
            subject: format!("Step {}", step.number),
            name: &step.name,
            nodes: step.nodes.iter().map(String::as_str).collect(),
            at_ms: Some(step.began_ms + step.duration_ms),
            why: step.outcome.why(),
            evidence: worst_first(&step.evidence),
            console: excerpts(&step.console),
            files: &step.files,
            ..Problem::default()
        });
    }
    for incident in &run.incidents {
        all.push(Problem {
            subject: incident.node.clone().unwrap_or_else(|| "The run".to_owned()),
            name: &incident.what,
            nodes: incident.node.iter().map(String::as_str).collect(),
            at_ms: Some(incident.at_ms),
            why: &incident.detail,
            console: excerpts(&incident.console),
            ..Problem::default()
        });
    }
    for invariant in run.invariants.iter().filter(|invariant| invariant.outcome.is_failed()) {
        all.push(Problem {
            subject: "Invariant".to_owned(),
            name: &invariant.name,
            nodes: invariant.nodes.iter().map(String::as_str).collect(),
            at_ms: invariant.broken_ms,
            why: invariant.outcome.why(),
            evidence: worst_first(&invariant.evidence),
            ..Problem::default()
        });
    }
    for finding in run.findings.iter().filter(|finding| finding.counts()) {
        all.push(Problem {
            subject: format!("Console of {}", finding.node),
            name: &finding.rule,
            nodes: vec![&finding.node],
            at_ms: Some(finding.at_ms),
            why: &finding.line,
            console: vec![(&finding.node, &finding.excerpt)],
            line: Some(&finding.line),
            ..Problem::default()
        });
    }
    for (image, outcome) in run.images.iter().map(|image| (image, image.outcome())) {
        if outcome.is_failed() {
            all.push(Problem {
                subject: "Image".to_owned(),
                name: &image.file,
                why: "the run changed the file, which must never be written",
                ..Problem::default()
            });
        }
    }
    // The first thing that went wrong is mostly the reason of the others.
    all.sort_by_key(|problem| problem.at_ms.unwrap_or(u64::MAX));
    for node in &run.nodes {
        let Some(stuck) = &node.stuck else { continue };
        // It belongs to what says that the node was given up.
        let known = all
            .iter_mut()
            .rev()
            .find(|problem| problem.at_ms.is_some() && problem.nodes.contains(&&*node.name));
        match known {
            Some(problem) => {
                problem.stuck = Some(stuck);
                if problem.console.is_empty() {
                    problem.console = vec![(&node.name, &node.console_tail)];
                }
            }
            None => all.push(Problem {
                subject: node.name.clone(),
                name: "what it was doing",
                nodes: vec![&node.name],
                why: "the run gave up on it",
                console: vec![(&node.name, &node.console_tail)],
                stuck: Some(stuck),
                ..Problem::default()
            }),
        }
    }
    all
}

/// What was not done, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Skip {
    /// `step`, `invariant` or `image check`, in the plural if there are several.
    pub(super) what: String,
    /// The reason.
    pub(super) why: String,
    /// How many share it.
    pub(super) count: usize,
    /// Their names.
    pub(super) names: Vec<String>,
}

/// Everything that was skipped, by reason, in order of the first.
pub(super) fn skips(run: &Run) -> Vec<Skip> {
    let mut all: Vec<Skip> = Vec::new();
    let mut add = |what: &str, name: &str, outcome: &Outcome| {
        if !outcome.is_skipped() {
            return;
        }
        match all.iter_mut().find(|skip| skip.what == what && skip.why == outcome.why()) {
            Some(skip) => {
                skip.count += 1;
                skip.names.push(name.to_owned());
            }
            None => all.push(Skip {
                what: what.to_owned(),
                why: outcome.why().to_owned(),
                count: 1,
                names: vec![name.to_owned()],
            }),
        }
    };
    for step in &run.steps {
        add("step", &format!("{} {}", step.number, step.name), &step.outcome);
    }
    for invariant in &run.invariants {
        add("invariant", &invariant.name, &invariant.outcome);
    }
    for image in &run.images {
        add("image check", &image.file, &image.outcome());
    }
    for skip in &mut all {
        if skip.count > 1 {
            skip.what.push('s');
        }
    }
    all
}

fn worst_first(evidence: &[Evidence]) -> Vec<&Evidence> {
    let (bad, good): (Vec<_>, Vec<_>) = evidence.iter().partition(|evidence| evidence.failed);
    bad.into_iter().chain(good).collect()
}

fn excerpts(console: &[ConsoleExcerpt]) -> Vec<(&str, &[ConsoleLine])> {
    console.iter().map(|excerpt| (excerpt.node.as_str(), excerpt.lines.as_slice())).collect()
}
