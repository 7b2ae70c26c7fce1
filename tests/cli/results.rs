//! A result that cannot be written is an error, whichever verb prints it; tests/format has the verbs that need a real image.

use std::fs::File;
use std::process::Stdio;

use crate::cluster::homelab;
use crate::common::run::{Env, Run, command, is_root, program, skipped};
use crate::usage::project;

/// Verbs that need no image and no network.
const OFFLINE: &[&[&str]] = &[
    &["--help"],
    &["-h"],
    &["--version"],
    &["flash", "--help"],
    &["cluster", "show", "--help"],
    &["dev", "completions", "bash"],
    &["dev", "completions", "zsh"],
    &["dev", "completions", "fish"],
    &["dev", "schema", "layer"],
    &["dev", "schema", "scenario", "--json"],
    &["cluster", "check", "--json"],
    &["cluster", "show"],
    &["cluster", "show", "--json"],
    &["cluster", "show", "--node", "agent-1"],
    &["cluster", "show", "--node", "agent-1", "--json"],
    &["token", "new"],
    &["container", "list"],
    &["container", "list", "--json"],
    &["recipe", "list"],
    &["recipe", "list", "--json"],
    &["kernel", "features"],
    &["kernel", "features", "--json"],
    &["flash", "--list"],
    &["flash", "--list", "--json"],
    &["test", "--list"],
    &["test", "--list", "--json"],
    &["store", "ls", "--json"],
    &["store", "du"],
    &["store", "du", "--json"],
    &["store", "gc"],
    &["store", "gc", "--json"],
    &["store", "verify", "--json"],
    &["init", "../another", "--json"],
];

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

fn to(env: &Env, args: &[&str], stdout: Stdio) -> Run {
    Run::of(&env.command().args(args).stdout(stdout).output().unwrap())
}

#[track_caller]
fn is_told(args: &[&str], run: &Run) {
    assert_eq!(run.code, 6, "{args:?}: {}", run.text());
    for word in ["error: the result could not be written", "No space left on device", "hint: free some space"]
    {
        assert!(run.stderr.contains(word), "{args:?}: {}", run.text());
    }
    assert!(!run.stderr.contains("panicked") && !run.stderr.contains("store gc"), "{args:?}: {}", run.text());
}

#[test]
fn every_verb_without_room_for_its_result_is_code_6() {
    let env = homelab();
    for args in OFFLINE {
        is_told(args, &to(&env, args, full()));
        fs_err::remove_dir_all(env.path("another")).ok();
    }
}

#[test]
fn verbs_that_look_at_mirrors_and_the_store_are_code_6_too() {
    let (env, _mirror) = project();
    env.kiln(&["update"]).ok();
    let object = env.kiln(&["store", "ls", "--json"]).ok().json()[0]["path"].as_str().unwrap().to_owned();
    for args in [
        &["outdated"][..],
        &["outdated", "--json"],
        &["store", "ls"],
        &["store", "why", &object],
        &["store", "why", &object, "--json"],
    ] {
        is_told(args, &to(&env, args, full()));
    }
}

#[test]
fn an_error_of_the_verb_keeps_its_code_and_both_are_told() {
    let env = homelab();
    env.edit("project/cluster.toml", "role = \"server\"", "role = \"sever\"");
    let run = to(&env, &["cluster", "show", "--json"], full());
    assert_eq!(run.code, 1, "{}", run.text());
    assert!(run.stderr.contains("sever") && run.stderr.contains("could not be written"), "{}", run.text());
    // Where nothing goes to stdout, a full one does not matter.
    assert_eq!(to(&env, &["no-such-verb"], full()).code, 2);
    let run = to(&env, &["dev", "man", "pages"], full()).ok();
    assert!(run.stderr.contains("Wrote"), "{}", run.text());
}

#[test]
fn a_stdout_that_cannot_be_written_to_at_all_is_an_error() {
    let env = homelab();
    for args in [&["--version"][..], &["cluster", "show"], &["dev", "schema", "layer"]] {
        let read_only = fs_err::File::open("/dev/null").unwrap().into_file();
        let run = to(&env, args, read_only.into());
        assert_eq!(run.code, 6, "{args:?}: {}", run.text());
        assert!(run.stderr.contains("Bad file descriptor"), "{args:?}: {}", run.text());
    }
}

/// A page of room: the first bytes of a result go in, and the file that is left is not whole.
#[test]
fn a_result_that_fits_in_part_only_is_code_6() {
    let env = homelab();
    let allowed = command("unshare").args(["-m", "true"]).output().is_ok_and(|o| o.status.success());
    if !is_root() || !allowed {
        return skipped("this test mounts a small file system, which needs root");
    }
    fs_err::create_dir(env.path("full")).unwrap();
    let script = r#"
        mount -t tmpfs -o size=4k none "$FULL"
        cd "$FULL"
        code=0
        "$KILN" dev schema layer > schema || code=$?
        [ "$(stat -c %s schema)" = 4096 ]
        exit $code
    "#;
    let mut shell = command("unshare");
    shell.args(["-m", "sh", "-e", "-c", script]).env("KILN", program()).env("FULL", env.path("full"));
    is_told(&["dev", "schema", "layer"], &Run::of(&shell.output().unwrap()));
}
