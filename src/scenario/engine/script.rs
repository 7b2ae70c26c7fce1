//! Scripts on nodes, and whether what came of them is what was expected.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::context::{Context, Trouble};
use super::node::Node;
use crate::qemu::door::Output;
use crate::scenario::result::{Evidence, text};
use crate::scenario::spec::{Expect, Text};

/// How long to wait between two tries: a guest under TCG needs a good part of a second to start a program.
const PAUSE: Duration = Duration::from_millis(500);
/// And at most: a slow machine is left in peace for as long as the last try took, for one that is asked without rest does little else.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// What a script gave on one node.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// The trimmed output.
    pub(super) stdout: String,
    /// The last try.
    pub(super) evidence: Evidence,
    /// How often it was tried.
    pub(super) attempts: u32,
}

/// What a script is to do on a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) script: &'a Text,
    pub(super) expect: &'a Expect,
    /// Whether to try again.
    pub(super) until: bool,
    pub(super) limit: Duration,
    /// The step's number, for who watches.
    pub(super) number: u32,
}

/// Runs a script on `node` until it is as expected or may not be tried again.
pub(super) fn run(context: &Context<'_>, node: &Node<'_>, job: &Job<'_>) -> Result<Answer, Trouble> {
    let (name, end) = (node.name(), Instant::now() + job.limit);
    let fill = |text: &Text| {
        text.fill(name, &context.record().saved).map_err(|name| {
            Trouble::new(format!("`{{{name}}}` is not known: no earlier step saved it for this node"))
        })
    };
    let script = fill(job.script)?;
    let wanted = job.expect.stdout.as_ref().map(fill).transpose()?;
    let mut attempts = 0;
    loop {
        attempts += 1;
        // Also the last try, begun at the last moment, has some time: a command needs longer than nothing.
        let left =
            end.saturating_duration_since(Instant::now()).max(job.limit / 10).max(Duration::from_secs(1));
        let begun = Instant::now();
        let tried = node
            .run(context, &script, left)
            .and_then(|output| judge(name, &script, &output, job.expect, wanted.as_deref()));
        match tried {
            Ok(evidence) => {
                let stdout = evidence.stdout.trim().to_owned();
                return Ok(Answer { stdout, evidence, attempts });
            }
            Err(mut trouble) => {
                if trouble.over || !job.until {
                    return Err(trouble);
                }
                if Instant::now() > end {
                    let seconds = job.limit.as_secs();
                    trouble.why = format!("{} ({attempts} tries in {seconds} s)", trouble.why);
                    return Err(trouble);
                }
                context.events.step_retry(job.number, attempts, text::first_line(&trouble.why));
                context.sleep(begun.elapsed().clamp(PAUSE, LONGEST_PAUSE))?;
            }
        }
    }
}

/// Whether `output` is as expected, and the evidence.
fn judge(
    node: &str,
    script: &str,
    output: &Output,
    expect: &Expect,
    wanted: Option<&str>,
) -> Result<Evidence, Trouble> {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let mut evidence = Evidence {
        node: node.to_owned(),
        command: script.trim().to_owned(),
        status: Some(output.status),
        stdout: text::excerpt(&output.stdout),
        stderr: text::excerpt(&output.stderr),
        expected: None,
        failed: false,
    };
    let mut wrong = |why: String, expected: String| {
        evidence.expected = Some(expected);
        evidence.failed = true;
        Err(Trouble::new(format!("{node}: {why}")).with(evidence.clone()))
    };
    if expect.fails && output.status == 0 {
        return wrong(
            "it succeeded and should have failed".to_owned(),
            "an exit code other than 0".to_owned(),
        );
    }
    if !expect.fails && output.status != 0 {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().lines().last().map(|line| format!(": {line}")).unwrap_or_default();
        return wrong(format!("it ended with code {}{said}", output.status), "exit code 0".to_owned());
    }
    if let Some(wanted) = wanted
        && stdout.trim() != wanted.trim()
    {
        return wrong(format!("it said `{}`, not `{}`", brief(&stdout), brief(wanted)), wanted.to_owned());
    }
    if let Some(pattern) = &expect.matches
        && !pattern.is_in(stdout.trim())
    {
        return wrong(
            format!("`{pattern}` is not in what it said: `{}`", brief(&stdout)),
            format!("output with `{pattern}` in it"),
        );
    }
    Ok(evidence)
}

fn brief(text: &str) -> String {
    let line = text::first_line(text);
    if line.chars().count() > 120 { line.chars().take(120).chain(['…']).collect() } else { line.to_owned() }
}

/// Whether the outputs of the nodes are all the same (`equal`) or all different.
pub(super) fn compare(outputs: &BTreeMap<String, String>, equal: bool) -> Result<(), Trouble> {
    let mut by_text: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (node, text) in outputs {
        by_text.entry(text).or_default().push(node);
    }
    let clash = by_text.iter().find(|(_, nodes)| nodes.len() > 1);
    let why = match (equal, clash) {
        (true, _) if by_text.len() > 1 => {
            let said: Vec<String> = by_text
                .iter()
                .map(|(text, nodes)| format!("{}: `{}`", nodes.join(", "), brief(text)))
                .collect();
            format!("the nodes differ: {}", said.join("; "))
        }
        (false, Some((text, nodes))) => format!("{} say the same: `{}`", nodes.join(" and "), brief(text)),
        _ => return Ok(()),
    };
    Err(Trouble::new(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::door::Ending;

    fn output(status: i32, stdout: &str, stderr: &str) -> Output {
        Output {
            status,
            stdout: stdout.into(),
            stderr: stderr.into(),
            elapsed: Duration::ZERO,
            ending: Ending::Done,
        }
    }

    fn why(output: &Output, expect: &Expect, wanted: Option<&str>) -> Option<String> {
        judge("n1", "true", output, expect, wanted).err().map(|trouble| {
            assert!(trouble.evidence.iter().all(|e| e.failed && e.expected.is_some()));
            trouble.why
        })
    }

    #[test]
    fn a_script_is_judged_by_its_code_its_output_and_a_pattern() {
        let plain = Expect::default();
        assert_eq!(why(&output(0, "x", ""), &plain, None), None);
        // Every command ends its line, so `$` is before that.
        let whole = Expect { matches: Some("^6[.]12$".parse().unwrap()), ..Expect::default() };
        assert_eq!(why(&output(0, "6.12\n", ""), &whole, None), None);
        assert!(why(&output(0, "6.12.1\n", ""), &whole, None).is_some());
        assert_eq!(
            why(&output(3, "", "a\nno such file\n"), &plain, None).unwrap(),
            "n1: it ended with code 3: no such file"
        );
        assert_eq!(why(&output(0, " a \n", ""), &plain, Some("a")), None);
        assert_eq!(why(&output(0, "b", ""), &plain, Some("a")).unwrap(), "n1: it said `b`, not `a`");
        let fails = Expect { fails: true, ..plain.clone() };
        assert_eq!(why(&output(1, "", ""), &fails, None), None);
        assert!(why(&output(0, "", ""), &fails, None).unwrap().contains("should have failed"));
        let matches = Expect { matches: Some("^a+$".parse().unwrap()), ..plain };
        assert_eq!(why(&output(0, "aaa", ""), &matches, None), None);
        assert!(why(&output(0, "b", ""), &matches, None).unwrap().contains("`^a+$` is not in"));
    }

    #[test]
    fn outputs_of_nodes_are_compared_both_ways() {
        let of =
            |texts: &[(&str, &str)]| texts.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())).collect();
        let (same, mixed) = (of(&[("a", "1"), ("b", "1")]), of(&[("a", "1"), ("b", "2")]));
        assert!(compare(&same, true).is_ok() && compare(&mixed, false).is_ok());
        assert_eq!(compare(&same, false).unwrap_err().why, "a and b say the same: `1`");
        assert_eq!(compare(&mixed, true).unwrap_err().why, "the nodes differ: a: `1`; b: `2`");
    }
}
