use super::*;
use std::time::Instant;

fn sh(script: &str) -> Command {
    Tool::host("/bin/sh").command().arg("-c").arg(script)
}

/// Whether a process still runs; one that ended and was not yet collected does not.
fn alive(pid: &str) -> bool {
    fs_err::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn the_environment_is_clean_and_stdin_is_empty() {
    let out = sh("env | grep -v -e ^PWD= -e ^SHLVL= -e ^_= | sort; cat").env("EXTRA", "1").read().unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "EXTRA=1\nLC_ALL=C.UTF-8\nPATH=/usr/bin:/bin:/usr/sbin:/sbin\nTZ=UTC\n"
    );
}

#[test]
fn a_failing_child_gives_its_code_its_last_words_and_a_line_to_paste() {
    let error = sh("i=0; while [ $i -lt 3000 ]; do echo \"noise $i\" >&2; i=$((i+1)); done; echo 'last words' >&2; exit 3")
        .run()
        .unwrap_err();
    let Error::Exit { code: 3, stderr, line, .. } = &error else { panic!("{error}") };
    assert!(stderr.ends_with("last words\n"), "{stderr}");
    assert_eq!(stderr.len(), STDERR_TAIL);
    assert!(line.starts_with("/bin/sh -c 'i=0;"), "{line}");
    assert!(line.contains(r"'\''last words'\''"), "{line}");
}

#[test]
fn a_missing_program_is_named_with_its_path() {
    let error = Tool::host("/nowhere/mkfs.none").command().run().unwrap_err();
    assert_eq!(error.to_string(), "program mkfs.none not found at /nowhere/mkfs.none");
    let error = Tool::from_tree(Path::new("/nowhere"), "usr/bin/qemu-img").unwrap_err();
    assert_eq!(error.to_string(), "program qemu-img not found at /nowhere/usr/bin/qemu-img");
}

#[test]
fn a_signal_is_told_from_a_code() {
    let error = sh("kill -TERM $$").run().unwrap_err();
    assert!(matches!(error, Error::Signal { signal: 15, .. }), "{error}");
}

#[test]
fn a_child_over_its_limit_is_killed_with_everything_it_started() {
    let pids = tempfile::NamedTempFile::new().unwrap();
    let script = format!("sleep 60 & echo $! $$ > {}; wait", pids.path().display());
    let begin = Instant::now();
    let error = sh(&script).limit(Duration::from_millis(500)).run().unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(30));
    let pids = fs_err::read_to_string(pids.path()).unwrap();
    assert_eq!(pids.split_whitespace().count(), 2);
    // The orphan is collected by init in its own time.
    let end = Instant::now() + Duration::from_secs(10);
    while pids.split_whitespace().any(alive) {
        assert!(Instant::now() < end, "still alive: {pids}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_dropped_child_is_gone() {
    let child = sh("sleep 60").spawn().unwrap();
    let pid = child.id().to_string();
    assert!(alive(&pid));
    drop(child);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_child_outlives_the_thread_that_asked_for_it() {
    let mut child = std::thread::spawn(|| sh("sleep 0.5; exit 4").spawn().unwrap()).join().unwrap();
    let error = child.finish(Some(Duration::from_secs(30))).unwrap_err();
    assert!(matches!(error, Error::Exit { code: 4, .. }), "{error}");
}

#[test]
fn quoting_survives_the_shell() {
    for word in ["plain", "", "two words", "it's", "$HOME `id`", "a\\b", "new\nline", "*"] {
        let out = sh(&format!("printf %s {}", quote(OsStr::new(word)))).read().unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), word);
    }
}

/// Runs itself as a parent that is killed while its child, in a group of its own, still runs.
#[test]
fn a_child_dies_when_its_parent_is_killed() {
    const PIDS: &str = "KILN_TEST_PIDS";
    if let Some(path) = std::env::var_os(PIDS) {
        let child = sh("sleep 60").spawn().unwrap();
        fs_err::write(path, child.id().to_string()).unwrap();
        std::process::abort();
    }
    let pids = tempfile::NamedTempFile::new().unwrap();
    let error = Tool::host(std::env::current_exe().unwrap())
        .command()
        .args(["--exact", "exec::tests::a_child_dies_when_its_parent_is_killed"])
        .env(PIDS, pids.path())
        .run()
        .unwrap_err();
    assert!(matches!(error, Error::Signal { signal: 6, .. }), "{error}");
    let pid = fs_err::read_to_string(pids.path()).unwrap();
    assert!(!pid.is_empty());
    let end = Instant::now() + Duration::from_secs(10);
    while alive(&pid) {
        assert!(Instant::now() < end, "still alive: {pid}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_child_reads_what_it_is_given_and_its_words_are_kept_when_it_fails() {
    let (said, ended) = sh("cat; exit 4").input("a question").answer().unwrap();
    assert_eq!(said, b"a question");
    assert!(matches!(ended, Err(Error::Exit { code: 4, .. })), "{ended:?}");
    assert_eq!(sh("cat").input(vec![b'x'; 1 << 20]).read().unwrap().len(), 1 << 20);
    // One that reads nothing is no failure.
    assert_eq!(sh("echo done").input(vec![b'x'; 1 << 20]).read().unwrap(), b"done\n");
}

#[test]
fn programs_are_found_where_a_shell_finds_them() {
    assert!(on_path("sh").is_some_and(|path| path.is_absolute() && path.ends_with("sh")));
    assert_eq!(on_path("no-such-program-here"), None);
}
