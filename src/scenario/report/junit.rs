//! `junit.xml`: the report for CI systems.
//!
//! There is no standard, only three schemas in use: those of Jenkins' xUnit plugin (junit-10.xsd), of Jenkins before it (junit-4.xsd)
//! and of Ant (windyroad's JUnit.xsd). The file is valid for all three, which is why it is as plain as it is: no attributes at the
//! root, the reason of a skip as text, output only at the end of the suite, a time without a zone (it is UTC).
//!
//! ```text
//! testsuite three-node
//!   properties                    accelerator, seed, digests of images …
//!   testcase three-node.steps       one per step; its evidence is the text of a failure
//!   testcase three-node.run         one per incident, as an error
//!   testcase three-node.invariants  one per invariant
//!   testcase three-node.health      one per node: what its console said
//!   testcase three-node.images      one per image: that nobody wrote to it
//!   system-out                    the last lines of every console
//!   system-err                    what failed, one line each
//! ```

use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use crate::scenario::result::{Evidence, Finding, Outcome, Run, text};

/// So many lines of each console.
const TAIL: usize = 100;
/// So many bytes of the text of one failure.
const DETAIL: usize = 64 << 10;

/// So many failures, one line each.
const FAILURES: usize = 1000;

/// One `testcase`.
struct Case {
    /// The last part of `classname`.
    class: &'static str,
    name: String,
    ms: u64,
    outcome: Outcome,
    /// An incident is an `error`: not a check that failed, but something that kept checks from being made.
    error: bool,
    detail: String,
}

/// The text of `junit.xml`, of a run that went through [`super::clean`].
///
/// # Errors
/// None that a writer into memory could meet.
pub(super) fn render(run: &Run) -> io::Result<String> {
    let cases = cases(run);
    let count = |test: &dyn Fn(&Case) -> bool| cases.iter().filter(|case| test(case)).count().to_string();
    let scenario = &run.scenario.name;
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    writer.create_element("testsuites").write_inner_content(|writer| {
        writer
            .create_element("testsuite")
            .with_attribute(("id", "0"))
            .with_attribute(("package", "kiln"))
            .with_attribute(("name", scenario.as_str()))
            .with_attribute(("timestamp", run.started.trim_end_matches('Z')))
            .with_attribute(("hostname", "localhost"))
            .with_attribute(("tests", cases.len().to_string().as_str()))
            .with_attribute(("failures", count(&|case| case.outcome.is_failed() && !case.error).as_str()))
            .with_attribute(("errors", count(&|case| case.outcome.is_failed() && case.error).as_str()))
            .with_attribute(("skipped", count(&|case| case.outcome.is_skipped()).as_str()))
            .with_attribute(("time", seconds(run.duration_ms).as_str()))
            .write_inner_content(|writer| {
                properties(run, writer)?;
                for case in &cases {
                    write_case(scenario, case, writer)?;
                }
                writer.create_element("system-out").write_text_content(BytesText::new(&consoles(run)))?;
                let failures =
                    run.verdict.failures.iter().take(FAILURES).cloned().collect::<Vec<_>>().join("\n");
                writer.create_element("system-err").write_text_content(BytesText::new(&failures))?;
                Ok(())
            })?;
        Ok(())
    })?;
    let mut bytes = writer.into_inner();
    bytes.push(b'\n');
    String::from_utf8(bytes).map_err(io::Error::other)
}

fn cases(run: &Run) -> Vec<Case> {
    let mut cases = Vec::new();
    let width = run.steps.len().to_string().len();
    for step in &run.steps {
        let mut detail = format!("on {}, {} attempts\n", step.nodes.join(", "), step.attempts);
        for evidence in &step.evidence {
            detail.push_str(&answer(evidence));
        }
        for excerpt in &step.console {
            detail.push_str(&format!("\nconsole of {}:\n", excerpt.node));
            for line in &excerpt.lines {
                detail.push_str(&format!("[{:>9}] {}\n", seconds(line.at_ms), line.text));
            }
        }
        cases.push(Case {
            class: "steps",
            // Viewers sort by name.
            name: format!("{:0width$} {}", step.number, step.name),
            ms: step.duration_ms,
            outcome: step.outcome.clone(),
            error: false,
            detail,
        });
    }
    for incident in &run.incidents {
        cases.push(Case {
            class: "run",
            name: incident.node.clone().unwrap_or_else(|| "whole run".to_owned()),
            ms: 0,
            outcome: Outcome::failed(&incident.what),
            error: true,
            detail: format!("at {} s\n{}", seconds(incident.at_ms), incident.detail),
        });
    }
    for invariant in &run.invariants {
        cases.push(Case {
            class: "invariants",
            name: invariant.name.clone(),
            ms: 0,
            outcome: invariant.outcome.clone(),
            error: false,
            detail: invariant.evidence.iter().map(answer).collect(),
        });
    }
    for node in &run.nodes {
        let bad: Vec<&Finding> = run.findings.iter().filter(|f| f.node == node.name && f.counts()).collect();
        cases.push(Case {
            class: "health",
            name: format!("console of {}", node.name),
            ms: 0,
            outcome: match bad.first() {
                None => Outcome::Passed,
                Some(first) => Outcome::failed(format!("{}: {}", first.rule, first.line)),
            },
            error: false,
            detail: bad
                .iter()
                .map(|f| format!("[{:>9}] {}: {}\n", seconds(f.at_ms), f.rule, f.line))
                .collect(),
        });
    }
    for image in &run.images {
        let detail = format!(
            "before {}\nafter  {}",
            image.sha256_before,
            image.sha256_after.as_deref().unwrap_or("unknown")
        );
        cases.push(Case {
            class: "images",
            name: format!("{} is unchanged", image.file),
            ms: 0,
            outcome: image.outcome(),
            error: false,
            detail,
        });
    }
    // A run that failed is never green here, whatever it failed for.
    if run.verdict.outcome.is_failed() && !cases.iter().any(|case| case.outcome.is_failed()) {
        cases.push(Case {
            class: "run",
            name: "verdict".to_owned(),
            ms: 0,
            outcome: run.verdict.outcome.clone(),
            error: true,
            detail: String::new(),
        });
    }
    cases
}

fn answer(evidence: &Evidence) -> String {
    let mut said = format!("\n{}: {}\n", evidence.node, evidence.command.trim());
    if let Some(status) = evidence.status {
        said.push_str(&format!("exit {status}\n"));
    }
    let expected = evidence.expected.as_deref().unwrap_or_default();
    for (name, text) in [("expected", expected), ("stdout", &evidence.stdout), ("stderr", &evidence.stderr)] {
        if !text.trim().is_empty() {
            said.push_str(&format!("{name}:\n{}\n", text.trim_end()));
        }
    }
    said
}

fn properties(run: &Run, writer: &mut Writer<Vec<u8>>) -> io::Result<()> {
    let mut all = vec![
        ("scenario.file".to_owned(), run.scenario.file.clone()),
        ("scenario.sha256".to_owned(), run.scenario.sha256.clone()),
        ("seed".to_owned(), run.seed.to_string()),
        ("started".to_owned(), run.started.clone()),
        ("kiln".to_owned(), run.kiln_version.clone()),
        ("accelerator".to_owned(), run.accelerator.name.clone()),
        ("accelerator.reason".to_owned(), run.accelerator.reason.clone()),
        ("accelerator.calibration".to_owned(), format!("{:.2}", run.accelerator.calibration)),
        (
            "host".to_owned(),
            format!("{} CPUs, {} MiB, {}", run.host.cpus, run.host.memory_mib, run.host.kernel),
        ),
    ];
    for image in &run.images {
        all.push((format!("image {}", image.file), image.sha256_before.clone()));
    }
    for node in &run.nodes {
        all.push((
            format!("node {}", node.name),
            format!("{}, {} MiB, {} CPUs", node.profile, node.memory_mib, node.cpus),
        ));
    }
    writer.create_element("properties").write_inner_content(|writer| {
        for (name, value) in &all {
            writer
                .create_element("property")
                .with_attribute(("name", name.as_str()))
                .with_attribute(("value", value.as_str()))
                .write_empty()?;
        }
        Ok(())
    })?;
    Ok(())
}

fn write_case(scenario: &str, case: &Case, writer: &mut Writer<Vec<u8>>) -> io::Result<()> {
    let element = writer
        .create_element("testcase")
        .with_attribute(("classname", format!("{scenario}.{}", case.class).as_str()))
        .with_attribute(("name", case.name.as_str()))
        .with_attribute(("time", seconds(case.ms).as_str()));
    match &case.outcome {
        Outcome::Passed => element.write_empty()?,
        Outcome::Skipped { why } => element.write_inner_content(|writer| {
            writer.create_element("skipped").write_text_content(BytesText::new(why))?;
            Ok(())
        })?,
        Outcome::Failed { why } => element.write_inner_content(|writer| {
            let detail = format!("{why}\n{}", case.detail);
            let detail = detail.get(..detail.floor_char_boundary(DETAIL)).unwrap_or(&detail);
            writer
                .create_element(if case.error { "error" } else { "failure" })
                .with_attribute(("message", text::first_line(why)))
                .with_attribute(("type", case.class))
                .write_text_content(BytesText::new(detail))?;
            Ok(())
        })?,
    };
    Ok(())
}

fn consoles(run: &Run) -> String {
    let mut all = String::new();
    for node in &run.nodes {
        let log = node.console_log.as_deref().unwrap_or("nowhere");
        all.push_str(&format!("--- console of {}, whole in {log}\n", node.name));
        for line in node.console_tail.iter().skip(node.console_tail.len().saturating_sub(TAIL)) {
            all.push_str(&format!("[{:>9}] {}\n", seconds(line.at_ms), line.text));
        }
    }
    all
}

/// `83.104`: seconds, as all readers of JUnit take them.
fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}
