//! Findings that are known and let pass, each until a date.

use std::sync::atomic::{AtomicUsize, Ordering};

use regex::Regex;

use crate::error::{Failure, Kind};
use crate::lock::time;

/// An entry of the allow-list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// A regular expression for the console line.
    pub pattern: String,
    /// The only machine it counts for.
    pub node: Option<String>,
    /// Why it is let pass.
    pub reason: String,
    /// The last day it counts, as `2027-06-30` (UTC).
    pub until: String,
}

/// Why an entry is itself at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// Its date is over; it lets nothing pass.
    Expired,
    /// Nothing matched it.
    Unused,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Problem::Expired => "is over: it lets nothing pass any more",
            Problem::Unused => "was not needed: nothing matched it",
        })
    }
}

/// All entries of a run, for all its machines.
#[derive(Debug, Default)]
pub struct AllowList(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    allow: Allow,
    pattern: Regex,
    expired: bool,
    hits: AtomicUsize,
}

impl AllowList {
    /// Compiles the entries.
    ///
    /// # Errors
    /// [`Kind::Input`] for a pattern that is no regular expression, or a date that is none.
    pub fn new(entries: Vec<Allow>) -> Result<Self, Failure> {
        AllowList::at(entries, time::now())
    }

    fn at(entries: Vec<Allow>, now: i64) -> Result<Self, Failure> {
        let entry = |allow: Allow| {
            let pattern = Regex::new(&allow.pattern).map_err(|error| {
                let what =
                    format!("the pattern `{}` of the allow-list is no regular expression", allow.pattern);
                Failure::new(Kind::Input, what).because(error)
            })?;
            let day = time::parse_iso(&format!("{}T00:00:00Z", allow.until)).ok_or_else(|| {
                Failure::new(Kind::Input, format!("`{}` in the allow-list is no date", allow.until))
                    .hint("write the last day it counts, as 2027-06-30")
            })?;
            let expired = now >= day + 86_400;
            Ok(Entry { allow, pattern, expired, hits: AtomicUsize::new(0) })
        };
        entries.into_iter().map(entry).collect::<Result<_, _>>().map(AllowList)
    }

    /// The reason why `line` of `node` is let pass.
    pub(super) fn find(&self, node: &str, line: &str) -> Option<String> {
        let mut reason = None;
        for entry in &self.0 {
            let here = entry.allow.node.as_deref().is_none_or(|only| only == node);
            if here && entry.pattern.is_match(line) {
                entry.hits.fetch_add(1, Ordering::Relaxed);
                if !entry.expired && reason.is_none() {
                    reason = Some(entry.allow.reason.clone());
                }
            }
        }
        reason
    }

    /// The entries that are over, known from the start, and at the end of a run those that nothing matched.
    pub fn problems(&self, ended: bool) -> Vec<(Allow, Problem)> {
        let problem = |entry: &Entry| {
            if entry.expired {
                Some((entry.allow.clone(), Problem::Expired))
            } else if ended && entry.hits.load(Ordering::Relaxed) == 0 {
                Some((entry.allow.clone(), Problem::Unused))
            } else {
                None
            }
        };
        self.0.iter().filter_map(problem).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(pattern: &str, node: Option<&str>, until: &str) -> Allow {
        Allow {
            pattern: pattern.to_owned(),
            node: node.map(str::to_owned),
            reason: format!("because of {pattern}"),
            until: until.to_owned(),
        }
    }

    #[test]
    fn an_entry_counts_up_to_the_end_of_its_day_and_then_is_an_error_itself() {
        let now = time::parse_iso("2027-06-30T23:59:59Z").unwrap();
        let entries = || vec![allow("I/O error", None, "2027-06-30")];
        let list = AllowList::at(entries(), now).unwrap();
        assert_eq!(list.find("a", "I/O error, dev vda").as_deref(), Some("because of I/O error"));
        assert_eq!(list.problems(true), []);
        let list = AllowList::at(entries(), now + 1).unwrap();
        assert_eq!(list.find("a", "I/O error, dev vda"), None);
        assert_eq!(list.problems(false), [(entries().remove(0), Problem::Expired)]);
    }

    #[test]
    fn an_entry_for_another_node_lets_nothing_pass_and_is_unused() {
        let list =
            AllowList::at(vec![allow("x", Some("a"), "2027-06-30"), allow("x", None, "2027-06-30")], 0);
        let list = list.unwrap();
        assert!(list.find("b", "x").is_some());
        let unused = list.problems(true);
        assert_eq!(unused, [(allow("x", Some("a"), "2027-06-30"), Problem::Unused)]);
        assert_eq!(list.problems(false), [], "a run that goes on may still use it");
    }

    #[test]
    fn wrong_patterns_and_dates_are_refused() {
        for (pattern, until, word) in
            [("(", "2027-06-30", "`(`"), ("x", "30.6.2027", "30.6.2027"), ("x", "2027-02-30", "2027-02-30")]
        {
            let failure = AllowList::at(vec![allow(pattern, None, until)], 0).unwrap_err();
            assert_eq!(failure.kind, Kind::Input);
            assert!(failure.to_string().contains(word), "{failure}");
        }
    }
}
