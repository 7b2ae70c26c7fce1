//! Verbs, flags, streams.

use std::io::Read;
use std::process::Stdio;

use crate::common::archive::Archive;
use crate::common::mirror::Mirror;
use crate::common::run::{Env, Run};

const VERBS: [&str; 15] = [
    "build",
    "flash",
    "run",
    "update",
    "outdated",
    "recipe",
    "container",
    "store",
    "diff",
    "why",
    "kernel",
    "sbom",
    "doctor",
    "init",
    "dev",
];

#[test]
fn help_of_the_program_lists_every_verb() {
    let run = Env::new().kiln(&["--help"]).ok();
    for verb in VERBS {
        assert!(
            run.stdout.lines().any(|l| l.trim_start().starts_with(&format!("{verb} "))),
            "{}",
            run.text()
        );
    }
    assert_eq!(run.stderr, "");
}

#[test]
fn help_of_every_verb_says_how_to_use_it_in_lines_of_at_most_100_columns() {
    let env = Env::new();
    for verb in VERBS {
        for flag in ["--help", "-h"] {
            let run = env.kiln(&[verb, flag]).ok();
            assert!(run.stdout.contains(&format!("Usage: kiln {verb}")), "{}", run.text());
            for line in run.stdout.lines() {
                assert!(line.chars().count() <= 100, "{verb}: {line}");
            }
        }
    }
}

#[test]
fn wrong_usage_is_code_2_and_names_the_near_word() {
    let env = Env::new();
    let run = env.kiln(&["biuld"]);
    assert_eq!(run.code, 2, "{}", run.text());
    assert!(run.stderr.contains("build"), "{}", run.text());
    for args in [
        &["build", "--profil", "server"][..],
        &["build"],
        &["build", "--profile", "x", "--arch", "mips"],
        &[],
    ] {
        let run = env.kiln(args);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{args:?}: {}", run.text());
    }
}

#[test]
fn version_is_printed_on_stdout() {
    let run = Env::new().kiln(&["--version"]).ok();
    assert_eq!(run.stdout, format!("kiln {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn outside_a_project_the_error_names_the_way_to_one() {
    Env::new().kiln(&["build", "--profile", "server"]).fails(1, &["no kiln project in", "kiln init"]);
}

#[test]
fn an_error_with_json_is_one_object_with_kind_and_remedy() {
    let run = Env::new().kiln(&["build", "--profile", "server", "--json"]);
    assert_eq!(run.code, 1);
    let text = if run.stdout.is_empty() { &run.stderr } else { &run.stdout };
    let value: serde_json::Value =
        serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {}", run.text()));
    assert!(value.to_string().contains("\"input\""), "{value}");
    assert!(value.to_string().contains("no kiln project"), "{value}");
    assert!(value.to_string().contains("kiln init"), "{value}");
}

pub(super) fn project() -> (Env, Mirror) {
    let (env, mut archive) = (Env::new(), Archive::sample());
    archive.publish();
    let mirror = Mirror::serve(&archive.files);
    env.mirrors(&[&mirror.base]);
    Archive::project(&env, &["hello"]);
    (env, mirror)
}

#[test]
fn away_from_a_terminal_there_are_plain_lines_and_no_control_codes() {
    let (env, _mirror) = project();
    let run = env.kiln(&["update"]).ok();
    assert!(
        run.stderr.contains("Locked") && !run.stderr.contains('\x1b') && !run.stderr.contains('\r'),
        "{}",
        run.text()
    );
    assert_eq!(run.stdout, "");
}

#[test]
fn quiet_prints_nothing_when_all_is_well_and_errors_when_not() {
    let (env, _mirror) = project();
    let run = env.kiln(&["update", "--quiet"]).ok();
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
    env.kiln(&["--quiet", "build", "--profile", "nobody"]).fails(1, &["nobody"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (env, _mirror) = project();
    env.kiln(&["update"]).ok();
    // A pipe whose far end is closed before the program says anything.
    for args in [&["store", "ls"][..], &["--help"], &["outdated", "--json"]] {
        let mut child =
            env.command().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        assert!(!said.contains("panicked") && !said.contains("Broken pipe"), "{args:?}: {said}");
        assert!(status.success(), "{args:?}: {status} {said}");
    }
}

#[test]
fn a_project_is_found_from_a_folder_below_it() {
    let (env, _mirror) = project();
    let run =
        Run::of(&env.command().current_dir(env.path("project/images/keys")).arg("update").output().unwrap());
    run.ok();
    assert!(env.path("project/images/kiln.lock").is_file());
}
