//! Whether a machine is healthy, by what its console says.
//!
//! A [`Watch`] is told each line ([`Watch::observer`]) and keeps a [`Finding`] for each that a [`Rule`] matches: the line, its time and
//! what stood around it. What is known and let pass stands in an [`AllowList`], whose entries end at a date; what a step brought about
//! itself is announced by [`Watch::expect`].

mod allow;
mod rules;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::console::Observer;
use super::door::Breaker;
pub use allow::{Allow, AllowList, Problem};
pub use rules::{RULES, Rule};

/// How many lines before and after a finding are kept.
const AROUND: usize = 5;
/// Findings of one rule that are kept whole; more are counted.
const KEPT: usize = 10;
/// A line longer than this is cut in an excerpt.
const LONGEST: usize = 500;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth a look; the run goes on and may pass.
    Warning,
    /// The run fails.
    Error,
    /// The machine is lost: waiting for it is useless.
    Fatal,
}

/// What a step does to a machine on purpose, so that the findings it brings count as expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// The kernel is made to panic; the boot after it finds what was left open.
    Crash,
    /// The plug is pulled; the boot after it finds what was left open.
    PowerCut,
    /// The image is damaged, or the machine was given something else that it must refuse.
    Damage,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// The machine.
    pub node: String,
    /// Since its power-on.
    pub at: Duration,
    /// The name of the rule.
    pub rule: &'static str,
    /// How bad it is under this accelerator.
    pub severity: Severity,
    /// What the rule finds.
    pub about: &'static str,
    /// What a person should look at.
    pub look: &'static str,
    /// The line.
    pub line: String,
    /// The lines before it.
    pub before: Vec<String>,
    /// The lines after it.
    pub after: Vec<String>,
    /// Brought about on purpose.
    pub expected: Option<Expected>,
    /// The reason of the entry of the allow-list that lets it pass.
    pub allowed: Option<String>,
}

impl Finding {
    /// Whether it makes the run fail.
    pub fn is_bad(&self) -> bool {
        self.severity >= Severity::Error && self.expected.is_none() && self.allowed.is_none()
    }
}

/// The health of one machine. Clones watch the same one.
#[derive(Debug, Clone)]
pub struct Watch(Arc<Mutex<Scanner>>);

impl Watch {
    /// Watches `node`; `tcg` tells that it is emulated, where time-outs of the kernel say more about the host than about the image.
    pub fn new(node: &str, tcg: bool, allow: Arc<AllowList>) -> Self {
        Watch(Arc::new(Mutex::new(Scanner {
            node: node.to_owned(),
            tcg,
            allow,
            before: VecDeque::new(),
            findings: Vec::new(),
            counts: vec![0; RULES.len()],
            left_out: 0,
            expected: None,
            booted: false,
            breakers: Vec::new(),
        })))
    }

    /// What a console is to tell its lines to.
    pub fn observer(&self) -> Observer {
        let watch = self.clone();
        Box::new(move |at, line| watch.line(at, line))
    }

    /// A kernel panic, expected or not, is to trip `breaker`.
    pub fn trips(&self, breaker: Breaker) {
        self.lock().breakers.push(breaker);
    }

    /// Takes one line, without its end and without control sequences.
    pub fn line(&self, at: Duration, line: &str) {
        self.lock().line(at, line);
    }

    /// From now on, what comes of `what` is expected. A panic is so only up to the start of the next kernel.
    pub fn expect(&self, what: Expected) {
        let mut scanner = self.lock();
        scanner.expected = Some(what);
        scanner.booted = false;
    }

    /// Nothing is expected any more.
    pub fn expect_nothing(&self) {
        self.lock().expected = None;
    }

    /// What was found so far, in order.
    pub fn findings(&self) -> Vec<Finding> {
        self.lock().findings.clone()
    }

    /// How many findings were counted but not kept, since there were many of their rule.
    pub fn left_out(&self) -> usize {
        self.lock().left_out
    }

    /// The first finding that makes the run fail.
    pub fn first_bad(&self) -> Option<Finding> {
        self.lock().findings.iter().find(|f| f.is_bad()).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Scanner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Scanner {
    node: String,
    tcg: bool,
    allow: Arc<AllowList>,
    before: VecDeque<String>,
    findings: Vec<Finding>,
    counts: Vec<usize>,
    left_out: usize,
    expected: Option<Expected>,
    /// A kernel started since something was expected.
    booted: bool,
    breakers: Vec<Breaker>,
}

impl Scanner {
    fn line(&mut self, at: Duration, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        let text = cut(line);
        for finding in self.findings.iter_mut().rev().take(KEPT) {
            if finding.after.len() < AROUND {
                finding.after.push(text.to_owned());
            }
        }
        // The first line of Linux (init/main.c, linux_banner).
        if line.contains("Linux version ") {
            self.booted = true;
        }
        if let Some((index, rule)) = rules::find(line) {
            self.found(at, text, index, rule, line);
        }
        self.before.push_back(text.to_owned());
        if self.before.len() > AROUND {
            self.before.pop_front();
        }
    }

    fn found(&mut self, at: Duration, text: &str, index: usize, rule: &'static Rule, line: &str) {
        if rule.name == rules::PANIC {
            self.breakers.iter().for_each(|breaker| breaker.trip(text));
        }
        let allowed = self.allow.find(&self.node, line);
        let expected = self.expected.filter(|&what| rule.is_expected(what, self.booted));
        let severity = if self.tcg { rule.under_tcg } else { rule.severity };
        let count = self.counts.get_mut(index).map_or(0, |count| {
            *count += 1;
            *count
        });
        let finding = Finding {
            node: self.node.clone(),
            at,
            rule: rule.name,
            severity,
            about: rule.about,
            look: rule.look,
            line: text.to_owned(),
            before: self.before.iter().cloned().collect(),
            after: Vec::new(),
            expected,
            allowed,
        };
        // Many that pass may not hide one that does not.
        let first_bad = finding.is_bad() && !self.findings.iter().any(|f| f.rule == rule.name && f.is_bad());
        if count > KEPT && !first_bad {
            self.left_out += 1;
        } else {
            self.findings.push(finding);
        }
    }
}

fn cut(line: &str) -> &str {
    line.char_indices().nth(LONGEST).map_or(line, |(at, _)| line.get(..at).unwrap_or(line))
}

#[cfg(test)]
mod tests;
