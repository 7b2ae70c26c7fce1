//! What comes out of a build: canonical, the same twice, or refused.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::common::images;
use crate::common::run::{Run, command, is_root, program, skipped};
use crate::lab::Lab;

#[test]
fn a_c_program_has_the_same_bytes_twice_and_runs() {
    let lab = Lab::with("hello-c");
    let run = lab.kiln(&["build", "hello-c", "--check", "--json"]).ok();
    let report = &run.json()[0];
    assert_eq!(report["check"].as_array().unwrap().len(), 0, "{report}");
    let out = Path::new(report["out"].as_str().unwrap());
    let greeting = fs_err::read_to_string(out.join("share/greeting")).unwrap();
    assert!(greeting.starts_with("hello from main.c, built ") && greeting.ends_with(": 6\n"), "{greeting}");
    let hello = fs_err::metadata(out.join("bin/hello")).unwrap();
    assert_eq!(hello.mode() & 0o7777, 0o555);
    let lock = kiln::lock::Lock::load(&lab.path("project")).unwrap();
    for path in ["", "bin", "bin/hello", "share/greeting"] {
        assert_eq!(fs_err::metadata(out.join(path)).unwrap().mtime(), lock.epoch(), "{path}");
    }
}

#[test]
fn a_go_program_has_the_same_bytes_twice() {
    let lab = Lab::with("hello-go");
    let run = lab.kiln(&["build", "hello-go", "--check", "--json"]).ok();
    assert_eq!(run.json()[0]["check"].as_array().unwrap().len(), 0, "{}", run.text());
}

#[test]
fn a_build_that_depends_on_processors_or_chance_is_caught_and_the_place_is_named() {
    let lab = Lab::with("unsteady");
    let run = lab.kiln(&["build", "unsteady", "--check", "--jobs", "2"]);
    let words = [
        "recipe unsteady is not reproducible",
        "recipe, unsteady, deep/chance: bytes from 0 on:",
        "recipe, unsteady, jobs: bytes from 9 on: \"2\\n\" -> \"1\\n\"",
    ];
    let run = run.fails_with_result(7, &words);
    assert!(!run.stderr.contains("unsteady, same"), "{}", run.text());
}

#[test]
fn an_ordinary_user_gets_the_same_bytes_as_root() {
    if !is_root() {
        skipped("root and another user are needed; all other tests ran as this one");
        return;
    }
    const USER: u32 = 51_966;
    let lab = Lab::with("hello-c");
    let sha256 = lab.kiln(&["build", "hello-c", "--json"]).ok().json()[0]["sha256"].clone();
    // The user has nothing but read access to the packages: as it would be after a download.
    let objects = lab.path("store/objects");
    images::copy(&lab.path("project"), &lab.path("theirs"));
    let lock = kiln::lock::Lock::load(&lab.path("project")).unwrap();
    let set = lock.set.iter().find(|set| set.id.name == "build-c").unwrap();
    for package in lock.packages(set) {
        let name = package.sha256.to_string();
        let folder = objects.join(&name[..2]);
        fs_err::create_dir_all(&folder).unwrap();
        fs_err::hard_link(images::store().join("objects").join(&name[..2]).join(&name), folder.join(&name))
            .unwrap();
    }
    let mut give = command("chown");
    give.arg("--recursive").arg("--no-dereference").arg(format!("{USER}:{USER}"));
    for folder in ["store", "theirs"] {
        // The packages themselves are links into the shared store and stay root's.
        let find = format!("find '{}' -type d -exec chown {USER}:{USER} {{}} +", lab.path(folder).display());
        Run::of(&command("sh").args(["-c", &find]).output().unwrap()).ok();
    }
    let mut open = command("chmod");
    Run::of(&open.arg("755").arg(lab.path("")).output().unwrap()).ok();
    fs_err::copy(program(), lab.path("theirs/kiln")).unwrap();
    let mut setpriv = command("setpriv");
    setpriv
        .env_clear()
        .env("HOME", lab.path("theirs"))
        .env("PATH", "/usr/bin:/bin")
        .env("KILN_STORE", lab.path("store"))
        .args([format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".to_owned()])
        .arg(lab.path("theirs/kiln"))
        .arg("-C")
        .arg(lab.path("theirs"))
        .args(["recipe", "build", "hello-c", "--json", "--check"]);
    let run = Run::of(&setpriv.output().unwrap()).ok();
    assert_eq!(run.json()[0]["sha256"], sha256, "{}", run.text());
}

#[test]
fn outputs_that_mean_something_else_elsewhere_are_refused() {
    let lab = Lab::new();
    let result = "touch \"$KILN_OUT/result\"\n";
    for (name, script, words) in [
        ("absolute", "ln -s /etc/passwd out/link", &["out/link: this link leads to `/etc/passwd`"][..]),
        ("upwards", "mkdir out/d; ln -s ../../x out/d/link", &["out/d/link: this link leads to `../../x`"]),
        ("set-id", "touch out/su; chmod 4755 out/su", &["out/su: it has a set-id bit"]),
        ("pipe", "mkfifo out/pipe", &["out/pipe: it is a named pipe"]),
        (
            "socket",
            "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); bind(S, sockaddr_un(\"out/socket\")) or die'",
            &["out/socket: it is a socket"],
        ),
        ("stranger", "touch out/more", &["the build made `more`, which is no output", "`outputs`"]),
        (
            "own-path",
            "echo 'see /build/src/x.c' > out/text",
            &["out/text: it holds the path of the build folder", "-trimpath"],
        ),
        ("no-out", "rm -r out; ln -s / out", &["out: the build put something else in its place"]),
        // Deeper than a path can name: the folder must still go, and the store still open.
        (
            "maze",
            // Bash would spell out the whole path each time.
            "perl -e 'chdir q(out); for (1..3000) { mkdir q(dd) or die; chdir q(dd) or die } chmod 0, q(.)'",
            &["out/dd: it is more than 100 folders deep"],
        ),
        ("missing", "rm out/result", &["the build made no `result`"]),
    ] {
        lab.recipe(name, &format!("{result}{script}\n"), "");
        lab.kiln(&["build", name]).fails(1, words);
    }
}

#[test]
fn modes_and_owners_that_a_script_sets_do_not_show() {
    let script = r#"
        cd "$KILN_OUT"
        mkdir -p result/closed
        echo x > result/closed/file
        printf '#!/bin/sh\n' > result/run
        chmod 0100 result/run
        chmod 0000 result/closed/file
        chmod 0000 result/closed
        ln result/run result/twin
        ln -s closed/file result/link
        touch -d 2001-01-01 result
    "#;
    let lab = Lab::of("modes", script, "");
    let run = lab.kiln(&["build", "modes", "--check", "--json"]).ok();
    let out = Path::new(run.json()[0]["out"].as_str().unwrap()).join("result");
    let mode = |name: &str| fs_err::metadata(out.join(name)).unwrap().mode() & 0o7777;
    assert_eq!(
        [mode("closed"), mode("closed/file"), mode("run"), mode("twin")],
        [0o755, 0o444, 0o555, 0o555]
    );
    let owner = fs_err::metadata(out.join("run")).unwrap();
    assert_eq!(owner.uid(), rustix::process::geteuid().as_raw());
    assert_eq!(owner.nlink(), 1);
}
