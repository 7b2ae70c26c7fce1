//! Tests of all formats on the same made-up runs.

use super::clean::clean;
use super::live::Progress;
use super::sample::{HOSTILE, hostile, large, rich};
use super::{Files, html, json, junit};
use crate::scenario::result::{Outcome, Run, Scenario};
use crate::ui::{Ui, Verbosity};

/// The most that a page may be, in bytes.
const PAGE: usize = 2_000_000;

#[test]
fn the_json_of_a_run_keeps_its_shape() {
    let text = json::render(&rich()).unwrap();
    insta::assert_snapshot!("report.json", text);
    let back: Run = serde_json::from_str(&text).unwrap();
    assert_eq!(back, rich());
}

#[test]
fn the_junit_of_a_run_keeps_its_shape() {
    insta::assert_snapshot!("junit.xml", junit::render(&clean(&rich())).unwrap());
}

/// The events of a document; panics where it is not well-formed.
fn events(xml: &str) -> Vec<quick_xml::events::Event<'_>> {
    let mut reader = quick_xml::Reader::from_str(xml);
    reader.config_mut().check_end_names = true;
    let mut all = Vec::new();
    loop {
        match reader.read_event().unwrap() {
            quick_xml::events::Event::Eof => return all,
            event => all.push(event),
        }
    }
}

#[test]
fn junit_counts_what_it_lists_and_hostile_text_makes_no_elements() {
    use quick_xml::events::Event;
    for run in [rich(), hostile()] {
        let xml = junit::render(&clean(&run)).unwrap();
        let mut count = std::collections::BTreeMap::new();
        for event in events(&xml) {
            if let Event::Start(e) | Event::Empty(e) = event {
                *count.entry(e.name().as_ref().to_owned()).or_insert(0) += 1;
            }
        }
        let names: Vec<&str> = count.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "error",
                "failure",
                "properties",
                "property",
                "skipped",
                "system-err",
                "system-out",
                "testcase",
                "testsuite",
                "testsuites"
            ]
        );
        for (attribute, element) in
            [("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")]
        {
            assert!(
                xml.contains(&format!(" {attribute}=\"{}\"", count[element])),
                "{attribute} of {count:?}"
            );
        }
        // XML 1.0, 2.2: the characters a document may have.
        let fit =
            |c: char| matches!(c, '\t' | '\n' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
        assert!(xml.chars().all(fit), "{:?}", xml.chars().find(|c| !fit(*c)));
    }
}

/// The tags of a page, each with its attributes, as a browser would see them.
fn tags(page: &str) -> Vec<&str> {
    let mut tags = Vec::new();
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        rest = &rest[at..];
        let end = rest.find('>').unwrap() + 1;
        let tag = &rest[..end];
        rest = &rest[end..];
        tags.push(tag);
        if tag == "<style>" {
            rest = &rest[rest.find("</style>").unwrap()..];
        }
    }
    tags
}

#[test]
fn hostile_text_stays_text_in_the_page() {
    let tame = html::render(&clean(&rich()));
    let page = html::render(&clean(&hostile()));
    let names = |page: &str| {
        let name =
            |tag: &&str| tag.trim_start_matches(['<', '/']).split([' ', '>']).next().unwrap().to_owned();
        tags(page).iter().map(name).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names(&page), names(&tame), "text became an element");
    for tag in tags(&page) {
        assert!(!tag.contains("onerror") || tag.contains("&lt;img") || tag.contains("%3Cimg"), "{tag}");
        assert!(!tag.contains(" style="), "the page's policy forbids it: {tag}");
        if let Some((_, url)) = tag.split_once(" href=\"") {
            let url = url.split('"').next().unwrap();
            let fit = ["./", "#", "data:image/svg+xml,", "report.json", "junit.xml"];
            assert!(fit.iter().any(|start| url.starts_with(start)), "{url}");
        }
    }
    assert!(page.contains("&lt;img src=x onerror=alert(1)&gt;"), "it is shown as it was written");
    for c in ['\0', '\u{7}', '\u{1b}', '\u{202e}', '\u{9b}', '\u{fffe}'] {
        assert!(!page.contains(c), "{c:?}");
    }
    assert!(!page.contains(HOSTILE));
}

#[test]
fn warnings_stand_in_the_page_and_on_the_terminal_and_fail_nothing() {
    let run = Run { warnings: vec!["the allow-list's `x<y` is over".to_owned()], ..rich() };
    assert!(html::render(&clean(&run)).contains("the allow-list's `x&lt;y` is over"));
    assert!(!html::render(&clean(&rich())).contains("Warnings"));
    let (ui, lines) = Ui::kept(Verbosity::Normal, false);
    let files = Files { folder: "r".into(), json: "r/j".into(), junit: "r/u".into(), html: "r/h".into() };
    Progress::new(&ui, &[], 1).finish(&run, &files);
    assert!(lines.lock().unwrap().contains("warning the allow-list's `x<y` is over"));
}

#[test]
fn the_page_asks_for_nothing_from_outside() {
    let page = html::render(&clean(&rich()));
    for word in ["http://", "https://", "<script", "@import", "<img", "<iframe", "<object"] {
        // The name space of SVG in the icon is a name, not an address.
        let text = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains(word), "{word}");
    }
    // The only `url()` is the pattern of the plot.
    assert_eq!(page.matches("url(").count(), page.matches("url(#hatch)").count());
}

#[test]
fn the_style_is_the_one_its_policy_allows() {
    use base64::Engine as _;
    let page = html::render(&clean(&rich()));
    let style = page.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
    let digest = crate::digest::Digest::of(style.as_bytes());
    let digest = base64::prelude::BASE64_STANDARD.encode(digest.as_bytes());
    assert!(
        page.contains(&format!("style-src &#39;sha256-{digest}&#39;"))
            || page.contains(&format!("style-src 'sha256-{digest}'"))
    );
}

#[test]
fn a_large_run_makes_no_large_page_and_keeps_its_failures() {
    let run = clean(&large());
    let page = html::render(&run);
    let sections = page.split("<section ").map(|s| (s.split('>').next().unwrap(), s.len()));
    assert!(page.len() < PAGE, "{} bytes: {:?}", page.len(), sections.skip(1).collect::<Vec<_>>());
    assert!(page.contains("What failed") && page.contains("Kernel panic"));
    let xml = junit::render(&run).unwrap();
    assert!(xml.len() < 8 * PAGE, "{} bytes", xml.len());
}

#[test]
fn every_node_and_step_is_in_the_page() {
    let run = rich();
    let page = html::render(&clean(&run));
    for word in run.nodes.iter().map(|n| &n.name).chain(run.steps.iter().map(|s| &s.name)) {
        assert!(page.contains(word.as_str()), "{word}");
    }
    for word in
        ["Stale file handle", "Kernel panic - not syncing", "rpc_wait_bit_killable", "step 11 failed", "TCG"]
    {
        assert!(page.contains(word), "{word}");
    }
}

#[test]
fn a_run_without_steps_is_failed_everywhere() {
    let mut run = Run::new(Scenario::default(), 1, "2026-11-22T19:31:07Z".to_owned());
    run.judge();
    assert!(run.verdict.outcome.is_failed());
    let xml = junit::render(&run).unwrap();
    assert!(xml.contains("errors=\"1\""), "{xml}");
    assert!(html::render(&run).contains("<header class=\"failed\">"));
}

#[test]
fn a_run_of_skips_is_neither_passed_nor_silent() {
    let mut run = rich();
    run.findings.clear();
    run.incidents.clear();
    run.invariants.clear();
    for node in &mut run.nodes {
        node.stuck = None;
    }
    for step in &mut run.steps {
        step.outcome = Outcome::skipped("this host has no KVM");
    }
    run.judge();
    assert!(run.verdict.outcome.is_skipped(), "{:?}", run.verdict);
    // The steps, and the image that was not read again.
    assert_eq!((run.verdict.failed, run.verdict.skipped), (0, 15));
    let page = html::render(&clean(&run));
    assert!(page.contains("What was skipped") && page.contains("this host has no KVM"));
    let xml = junit::render(&clean(&run)).unwrap();
    assert!(xml.contains("skipped=\"15\"") && xml.contains("<skipped>this host has no KVM</skipped>"));
}

#[test]
fn all_files_of_a_report_are_written_and_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("new/er");
    for run in [rich(), hostile()] {
        let files = super::write(&run, &folder).unwrap();
        let back: Run = serde_json::from_str(&fs_err::read_to_string(&files.json).unwrap()).unwrap();
        assert_eq!(back, run, "JSON has what the guests wrote, byte for byte");
        assert!(fs_err::read_to_string(&files.html).unwrap().starts_with("<!DOCTYPE html>"));
        assert!(fs_err::read_to_string(&files.junit).unwrap().starts_with("<?xml"));
    }
}
