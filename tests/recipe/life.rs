//! Keys, logs, order, interruptions: the life of builds.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::images;
use crate::common::run::{Run, command, files_below, is_root, program, skipped};
use crate::lab::{Lab, processes_with};

#[test]
fn a_recipe_is_built_once_and_again_only_for_what_shows_in_it() {
    let lab = Lab::of("once", "cat /inputs/recipe/word > \"$KILN_OUT/result\"", "");
    lab.file("once", "word", "one");
    assert_eq!(lab.result("once"), "one");
    let reason = || lab.kiln(&["build", "once", "--json"]).ok().json()[0]["built"].clone();
    assert_eq!(reason(), serde_json::Value::Null);
    lab.file(
        "once",
        "recipe.toml",
        lab.read("once", "recipe.toml").replace("a test", "other words") + "[limits]\nmemory = \"1GiB\"\n",
    );
    assert_eq!(reason(), serde_json::Value::Null, "what is said about a build is not said to it");
    lab.file("once", ".word.swp", "left by an editor");
    lab.file("once", "word~", "left by an editor");
    assert_eq!(reason(), serde_json::Value::Null);
    lab.file("once", "word", "two");
    assert_eq!(reason(), "file word changed");
    assert_eq!(lab.result("once"), "two");
    assert_eq!(lab.state("once"), "built");
    lab.file(
        "once",
        "recipe.toml",
        lab.read("once", "recipe.toml").replace("[env]", "time = \"2001-02-03T04:05:06Z\"\n[env]"),
    );
    assert_eq!(reason(), "time changed");
}

#[test]
fn recipes_get_the_outputs_of_others_and_share_the_processors() {
    // Of a few processors each build gets all, one after the other; of many, two that can begin at once share them.
    let built = |jobs: &str| {
        let lab = Lab::new();
        // The store is every test's: the same recipe would not be built again.
        for name in ["left", "right"] {
            lab.recipe(
                name,
                &format!("# Of {jobs}.\necho {name} $KILN_JOBS$(test $KILN_JOBS -gt 1 || nproc) > \"$KILN_OUT/result\""),
                "",
            );
        }
        let script = "{ cat /inputs/a/result /inputs/b/result; echo top $KILN_JOBS; } > \"$KILN_OUT/result\"";
        lab.recipe("top", script, "[inputs.a]\nrecipe = \"left\"\n[inputs.b]\nrecipe = \"right\"\n");
        let run = lab.kiln(&["build", "top", "--jobs", jobs]).ok();
        (lab, run)
    };
    let (lab, run) = built("8");
    assert_eq!(lab.result("top"), "left 4\nright 4\ntop 8\n", "{}", run.text());
    let (lab, run) = built("1");
    assert_eq!(lab.result("top"), "left 11\nright 11\ntop 1\n", "{}", run.text());
    let (lab, run) = built("2");
    assert_eq!(lab.result("top"), "left 2\nright 2\ntop 2\n", "{}", run.text());
    let at = |word: &str| run.stderr.find(word).unwrap_or_else(|| panic!("{word}: {}", run.text()));
    assert!(
        at("Built recipe left").max(at("Built recipe right")) < at("Building recipe top"),
        "{}",
        run.text()
    );
    // A change below is a change above.
    lab.file("left", "more", "x");
    assert_eq!(lab.kiln(&["build", "top", "--json"]).ok().json()[0]["built"], "input a changed");
}

#[test]
fn the_first_failure_is_told_and_what_did_not_need_it_is_kept() {
    let lab = Lab::new();
    lab.recipe("good", "touch \"$KILN_OUT/result\"", "");
    lab.recipe("bad", "echo 'int main(void) { return x; }' > a.c; cc a.c", "");
    lab.recipe("above", "touch \"$KILN_OUT/result\"", "[inputs.bad]\nrecipe = \"bad\"\n");
    // Of so many processors both begin at once.
    let run = lab.kiln(&["build", "above", "good", "--jobs", "8"]);
    let run = run.fails(
        5,
        &["recipe bad failed with code 1", "error: ‘x’ undeclared", "| a.c:1:25:", "the whole log: "],
    );
    assert!(!run.stderr.contains("Building recipe above"), "{}", run.text());
    assert_eq!(lab.kiln(&["build", "good", "--json"]).ok().json()[0]["built"], serde_json::Value::Null);
    let log = run.stderr.split("the whole log: ").nth(1).unwrap().trim();
    assert!(fs_err::read_to_string(log).unwrap().contains("undeclared"));
    assert!(lab.kiln(&["log", "bad"]).ok().stdout.contains("undeclared"));
    lab.file("bad", "build.sh", "echo 'it works now'; touch \"$KILN_OUT/result\"");
    lab.kiln(&["build", "above"]).ok();
    assert_eq!(lab.kiln(&["log", "bad"]).ok().stdout, "it works now\n");
}

#[test]
fn a_failed_build_keeps_its_folder_only_when_asked() {
    let lab = Lab::of("kept", "echo treasure > chest; touch /tmp/lamp; exit 4", "");
    let folder = images::store().join("failed/kept");
    lab.kiln(&["build", "kept"]).fails(5, &["recipe kept failed with code 4"]);
    assert_eq!(files_below(&folder), ["log"]);
    lab.kiln(&["build", "kept", "--keep-failed"]).fails(5, &["kiln recipe enter kept"]);
    assert_eq!(files_below(&folder), ["build/chest", "log", "tmp/lamp"]);
    let mut enter = lab.command(&["enter", "kept"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let typed = b"cat chest; test -t 0 && echo a terminal; ls /tmp /inputs/recipe; echo more > chest";
    std::io::Write::write_all(&mut enter.stdin.take().unwrap(), typed).unwrap();
    let run = Run::of(&enter.wait_with_output().unwrap()).ok();
    for word in ["\ntreasure", "\na terminal", "\nlamp", "build.sh"] {
        assert!(run.stdout.replace('\r', "").contains(word), "{word}: {}", run.text());
    }
    assert_eq!(fs_err::read_to_string(folder.join("build/chest")).unwrap(), "more\n");
    lab.file("kept", "build.sh", "touch \"$KILN_OUT/result\"");
    lab.kiln(&["build", "kept"]).ok();
    lab.kiln(&["enter", "kept"]).fails(1, &["there is no folder of a failed build", "--keep-failed"]);
    assert!(!folder.exists(), "a build that passes clears what a failed one left");
}

#[test]
fn the_end_of_what_is_typed_ends_the_shell_though_a_program_runs_in_it_just_then() {
    let lab = Lab::of("typed", "exit 4", "");
    lab.kiln(&["build", "typed", "--keep-failed"]).fails(5, &["kiln recipe enter typed"]);
    let begun = images::store().join("failed/typed/build/begun");
    let mut enter = lab.command(&["enter", "typed"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut typing = enter.stdin.take().unwrap();
    std::io::Write::write_all(&mut typing, b"touch begun; sleep 1\n").unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let wait_for = |done: &mut dyn FnMut() -> bool| {
        while !done() {
            assert!(Instant::now() < end, "the shell goes on");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait_for(&mut || begun.exists());
    std::io::Write::write_all(&mut typing, b"echo the $((1 + 1))nd line").unwrap();
    drop(typing);
    wait_for(&mut || enter.try_wait().unwrap().is_some());
    let run = Run::of(&enter.wait_with_output().unwrap()).ok();
    assert!(run.stdout.contains("the 2nd line"), "{}", run.text());
}

/// Starts a build that runs for ever, and sends `signal` to kiln once its script runs.
fn disturb(name: &str, signal: Signal, code: i32) {
    let word = format!("kiln-{name}-{}", std::process::id());
    let script = format!(
        "for i in 1 2 3; do setsid bash -c 'exec -a {word} sleep 1000' & done; head -c 1M /dev/zero > file; echo started; wait"
    );
    let lab = Lab::of(name, &script, "");
    let child = lab.start(&["build", name]);
    let pid = Pid::from_child(&child);
    let end = Instant::now() + Duration::from_secs(300);
    while processes_with(&word).len() < 3 {
        assert!(Instant::now() < end, "the build never began");
        std::thread::sleep(Duration::from_millis(20));
    }
    let tmp = || -> Vec<String> {
        let all = files_below(&images::store().join("tmp"));
        all.into_iter()
            .filter(|f| f.starts_with(&format!("{}-", pid.as_raw_nonzero())) && !f.ends_with(".lock"))
            .collect()
    };
    assert!(!tmp().is_empty());
    kill_process(pid, signal).unwrap();
    let run = Run::of(&child.wait_with_output().unwrap());
    assert_eq!(run.code, code, "{}", run.text());
    if signal == Signal::INT {
        assert_eq!(processes_with(&word), [""; 0], "nothing runs when kiln has ended by itself");
        assert_eq!(tmp(), [""; 0]);
    }
    // After SIGKILL the kernel ends them, in its own time; the next kiln clears the folder.
    while !processes_with(&word).is_empty() {
        assert!(Instant::now() < end, "{:?}", processes_with(&word));
        std::thread::sleep(Duration::from_millis(20));
    }
    lab.kiln(&["list"]).ok();
    assert_eq!(tmp(), [""; 0]);
    let mounts = fs_err::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("tool-root"), "{mounts}");
    lab.file(name, "build.sh", "touch \"$KILN_OUT/result\"");
    lab.kiln(&["build", name]).ok();
}

#[test]
fn ctrl_c_ends_everything_and_the_next_build_begins_anew() {
    disturb("interrupted", Signal::INT, 130);
}

#[test]
fn kill_9_ends_everything_and_the_next_build_begins_anew() {
    disturb("killed", Signal::KILL, 128 + 9);
}

#[test]
fn a_machine_without_user_namespaces_is_told_what_to_set() {
    let mut probe = command("unshare");
    if !is_root()
        || !probe.args(["--user", "--map-root-user", "true"]).output().is_ok_and(|o| o.status.success())
    {
        skipped("this test forbids namespaces within one of its own");
        return;
    }
    let lab = Lab::of("forbidden", "true", "");
    // The tools are there already; what is left to do needs a namespace.
    lab.kiln(&["build", "forbidden"]).fails(1, &["the build made no `result`"]);
    let script =
        "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$KILN\" -C \"$PROJECT\" recipe build forbidden";
    let mut unshare = command("unshare");
    unshare
        .args(["--user", "--map-root-user", "sh", "-c", script])
        .env("KILN", program())
        .env("PROJECT", lab.path("project"))
        .env("KILN_STORE", images::store());
    let run = Run::of(&unshare.output().unwrap());
    run.fails(5, &["the sandbox cannot be made: making namespaces", "sysctl -w user.max_user_namespaces"]);
}

#[test]
fn mistakes_in_recipes_are_told_with_their_place() {
    let lab = Lab::new();
    let refused = |toml: &str, words: &[&str]| {
        lab.file("wrong", "recipe.toml", toml);
        lab.file("wrong", "build.sh", "");
        lab.kiln(&["list"]).fails(1, words);
    };
    let good =
        "schema = 1\ndescription = \"\"\ntools = \"build-c\"\nscript = \"build.sh\"\noutputs = [\"x\"]\n";
    refused(&good.replace("outputs", "output"), &["recipe.toml:5:1", "did you mean `outputs`?"]);
    refused(&good.replace("build.sh", "make.sh"), &["the script `make.sh` is not in the folder"]);
    refused(&good.replace("schema = 1", "schema = 2"), &["schema 2", "schema 1"]);
    refused(&format!("{good}[env]\nPATH = \"/\"\n"), &["env `PATH`: kiln sets it itself"]);
    refused(&format!("{good}[limits]\ntime = \"2 days\"\n"), &["`2 days` is no length of time"]);
    refused(&format!("{good}[inputs.a]\n"), &["input `a`: exactly one of `set`, `recipe` and `go-modules`"]);
    refused(
        &format!("{good}[inputs.a]\nrecipe = \"wron\"\n"),
        &["there is no recipe `wron`", "did you mean `wrong`?"],
    );
    refused(&format!("{good}[inputs.a]\nrecipe = \"wrong\"\n"), &["recipes in a circle: wrong needs wrong"]);
    refused(&good.replace("[\"x\"]", "[\"../x\"]"), &["output `../x`"]);
    fs_err::remove_dir_all(lab.folder("wrong")).unwrap();
    lab.recipe("tools", "true", "");
    lab.file("tools", "recipe.toml", lab.read("tools", "recipe.toml").replace("build-c", "build-d"));
    lab.kiln(&["build", "tools"])
        .fails(1, &["images/tools.toml has no set `build-d`", "did you mean `build-c`?"]);
    lab.kiln(&["build", "tool"]).fails(1, &["there is no recipe `tool`", "did you mean `tools`?"]);
    assert_eq!(lab.state("tools"), "error");
    assert_ne!(lab.state("linux-vm"), "error", "one that cannot be built does not hide the others");
}
