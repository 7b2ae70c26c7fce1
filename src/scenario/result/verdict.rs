//! What came of a check, and of a whole run.

use serde::{Deserialize, Serialize};

use super::{Run, text};

/// What came of a check. There is no fourth, and no skip without a reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Outcome {
    /// It was done and it was right.
    Passed,
    /// It was not right.
    Failed {
        /// What was wrong: one sentence, or lines with the sentence first.
        why: String,
    },
    /// It was not done.
    Skipped {
        /// Why not.
        why: String,
    },
}

impl Default for Outcome {
    /// What nobody has looked at is skipped, never passed.
    fn default() -> Self {
        Outcome::skipped("not reached")
    }
}

impl Outcome {
    /// [`Outcome::Failed`].
    pub fn failed(why: impl Into<String>) -> Self {
        Outcome::Failed { why: why.into() }
    }

    /// [`Outcome::Skipped`].
    pub fn skipped(why: impl Into<String>) -> Self {
        Outcome::Skipped { why: why.into() }
    }

    /// Whether it passed.
    pub fn is_passed(&self) -> bool {
        matches!(self, Outcome::Passed)
    }

    /// Whether it failed.
    pub fn is_failed(&self) -> bool {
        matches!(self, Outcome::Failed { .. })
    }

    /// Whether it was skipped.
    pub fn is_skipped(&self) -> bool {
        matches!(self, Outcome::Skipped { .. })
    }

    /// Why it failed or was skipped; empty if it passed.
    pub fn why(&self) -> &str {
        match self {
            Outcome::Passed => "",
            Outcome::Failed { why } | Outcome::Skipped { why } => why,
        }
    }

    /// `passed`, `failed` or `skipped`.
    pub fn word(&self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Failed { .. } => "failed",
            Outcome::Skipped { .. } => "skipped",
        }
    }
}

/// What came of a whole run; see [`Run::judge`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The verdict.
    pub outcome: Outcome,
    /// Checks that passed: steps, invariants and images.
    pub passed: u32,
    /// Checks that failed; findings that are not allowed and incidents are among them.
    pub failed: u32,
    /// Checks that were skipped.
    pub skipped: u32,
    /// What failed, one line each, by time: the first is mostly the reason of the others.
    pub failures: Vec<String>,
}

impl Run {
    /// Counts what came of everything and sets the verdict: failed if anything failed; skipped if no step was executed; else
    /// passed, with the skips counted. A scenario without a single step is failed: it proves nothing.
    pub fn judge(&mut self) -> &Verdict {
        let mut verdict = Verdict::default();
        let mut failures: Vec<(u64, String)> = Vec::new();
        let mut count = |outcome: &Outcome, at_ms: u64, whose: &str| match outcome {
            Outcome::Passed => verdict.passed += 1,
            Outcome::Skipped { .. } => verdict.skipped += 1,
            Outcome::Failed { why } => {
                verdict.failed += 1;
                failures.push((at_ms, format!("{whose}{}", text::first_line(why))));
            }
        };
        for step in &self.steps {
            let whose = format!("step {}, {}: ", step.number, step.name);
            count(&step.outcome, step.began_ms + step.duration_ms, &whose);
        }
        for incident in &self.incidents {
            let whose = incident.node.as_deref().map(|node| format!("{node}: ")).unwrap_or_default();
            count(&Outcome::failed(&incident.what), incident.at_ms, &whose);
        }
        for invariant in &self.invariants {
            let at_ms = invariant.broken_ms.unwrap_or(self.duration_ms);
            count(&invariant.outcome, at_ms, &format!("invariant, {}: ", invariant.name));
        }
        for finding in self.findings.iter().filter(|finding| finding.counts()) {
            let whose = format!("console of {}, {}: ", finding.node, finding.rule);
            count(&Outcome::failed(&finding.line), finding.at_ms, &whose);
        }
        for image in &self.images {
            count(&image.outcome(), self.duration_ms, "");
        }
        failures.sort_by_key(|(at_ms, _)| *at_ms);
        verdict.failures = failures.into_iter().map(|(_, failure)| failure).collect();
        verdict.outcome = if let Some(first) = verdict.failures.first() {
            Outcome::failed(match verdict.failed {
                1 => first.clone(),
                more => format!("{first}, and {} more", more - 1),
            })
        } else if self.steps.is_empty() {
            Outcome::failed("the scenario has no step, so it proves nothing")
        } else if self.steps.iter().all(|step| step.outcome.is_skipped()) {
            let first = self.steps.first().map_or("", |step| step.outcome.why());
            Outcome::skipped(format!("no step was executed: {}", text::first_line(first)))
        } else {
            Outcome::Passed
        };
        self.verdict = verdict;
        &self.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::result::{Finding, Image, Incident, Invariant, Scenario, Severity, Step};

    fn run(outcomes: &[Outcome]) -> Run {
        let mut run = Run::new(Scenario::default(), 1, "2026-11-22T19:31:07Z".to_owned());
        for (number, outcome) in (1..).zip(outcomes) {
            let (began_ms, outcome) = (u64::from(number) * 1000, outcome.clone());
            run.steps.push(Step { number, name: "s".to_owned(), began_ms, outcome, ..Step::default() });
        }
        run
    }

    #[test]
    fn a_verdict_is_passed_only_if_something_passed_and_nothing_failed() {
        let (good, bad) = (Outcome::Passed, Outcome::failed("x"));
        let skip = Outcome::skipped("no KVM");
        for (outcomes, want) in [
            (vec![good.clone(), good.clone()], "passed"),
            (vec![good.clone(), skip.clone()], "passed"),
            (vec![skip.clone(), skip.clone()], "skipped"),
            (vec![skip, bad, good], "failed"),
            (vec![], "failed"),
        ] {
            assert_eq!(run(&outcomes).judge().outcome.word(), want, "{outcomes:?}");
        }
    }

    #[test]
    fn a_step_that_nobody_looked_at_is_skipped_and_not_passed() {
        assert!(Step::default().outcome.is_skipped());
        assert!(run(&[Outcome::default()]).judge().outcome.is_skipped());
    }

    #[test]
    fn everything_that_goes_wrong_fails_a_run_of_good_steps_and_is_told_by_time() {
        let mut run = run(&[Outcome::Passed]);
        run.duration_ms = 9000;
        let image = Image { file: "out/a.raw".to_owned(), ..Image::default() };
        let changed = Image { sha256_before: "1".to_owned(), sha256_after: Some("2".to_owned()), ..image };
        run.images = vec![changed];
        run.invariants = vec![Invariant {
            name: "i".to_owned(),
            broken_ms: Some(300),
            outcome: Outcome::failed("gone\nmore"),
            ..Invariant::default()
        }];
        run.findings = vec![
            Finding {
                node: "a".to_owned(),
                rule: "oops".to_owned(),
                line: "Oops".to_owned(),
                at_ms: 200,
                ..Finding::default()
            },
            Finding { allowed_by: Some("known".to_owned()), at_ms: 100, ..Finding::default() },
            Finding { severity: Severity::Warning, at_ms: 100, ..Finding::default() },
        ];
        run.incidents = vec![Incident {
            at_ms: 400,
            what: "QEMU ended".to_owned(),
            node: Some("b".to_owned()),
            ..Incident::default()
        }];
        let verdict = run.judge();
        assert_eq!(
            verdict.failures,
            [
                "console of a, oops: Oops",
                "invariant, i: gone",
                "b: QEMU ended",
                "out/a.raw was changed by the run"
            ]
        );
        assert_eq!((verdict.passed, verdict.failed, verdict.skipped), (1, 4, 0));
        assert_eq!(verdict.outcome.why(), "console of a, oops: Oops, and 3 more");
        let once = verdict.clone();
        assert_eq!(run.judge(), &once, "judging twice counts once");
    }
}
