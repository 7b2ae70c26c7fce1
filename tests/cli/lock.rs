//! The lock: made, moved, refused.

use crate::common::archive::Archive;
use crate::common::mirror::Mirror;
use crate::common::run::Env;

const LOCK: &str = "project/images/kiln.lock";

fn with(archive: &mut Archive, wants: &[&str]) -> (Env, Mirror) {
    archive.publish();
    let (env, mirror) = (Env::new(), Mirror::serve(&archive.files));
    env.mirrors(&[&mirror.base]);
    Archive::project(&env, wants);
    (env, mirror)
}

#[test]
fn update_writes_a_lock_and_says_nothing_new_the_second_time() {
    let (env, _mirror) = with(&mut Archive::sample(), &["hello"]);
    env.kiln(&["update"]).ok();
    let first = env.read(LOCK);
    assert!(first.contains("pool/main/hello_1.0-1_amd64.deb"), "{first}");
    let run = env.kiln(&["update"]).ok();
    assert!(run.stdout.contains("nothing to update"), "{}", run.text());
    assert_eq!(env.read(LOCK), first);
}

#[test]
fn update_shows_old_and_new_and_outdated_only_looks() {
    let mut archive = Archive::sample();
    let (env, mirror) = with(&mut archive, &["hello"]);
    env.kiln(&["update"]).ok();
    let first = env.read(LOCK);
    archive.remove("hello");
    archive.add("hello", "1.1-1", "", &[]);
    archive.publish();
    mirror.replace(&archive.files);
    let line = "hello:amd64 1.0-1 -> 1.1-1 [server]";
    let run = env.kiln(&["outdated"]).ok();
    assert!(run.stdout.contains(line), "{}", run.text());
    assert_eq!(env.read(LOCK), first, "outdated writes nothing");
    let run = env.kiln(&["update"]).ok();
    assert!(run.stdout.contains(line), "{}", run.text());
    assert!(env.read(LOCK).contains("hello 1.1-1"));
}

#[test]
fn update_with_a_name_moves_only_that() {
    let mut archive = Archive::sample();
    let (env, mirror) = with(&mut archive, &["hello"]);
    env.kiln(&["update"]).ok();
    for name in ["hello", "linux-image-cloud-amd64"] {
        archive.add(name, "9.0-1", "", &[]);
    }
    archive.publish();
    mirror.replace(&archive.files);
    let run = env.kiln(&["update", "hello"]).ok();
    assert!(
        run.stdout.contains("hello:amd64 1.0-1 -> 9.0-1") && !run.stdout.contains("linux"),
        "{}",
        run.text()
    );
    env.kiln(&["update", "helo"]).fails(1, &["`helo` is not in images/kiln.lock", "did you mean `hello`?"]);
}

#[test]
fn an_unknown_package_is_named_with_the_near_one_and_who_asks_for_it() {
    let (env, _mirror) = with(&mut Archive::sample(), &["helo"]);
    env.kiln(&["update"]).fails(1, &["helo", "hello", "profile server"]);
    assert!(!env.path(LOCK).exists(), "a failed update writes no lock");
}

#[test]
fn a_set_that_cannot_be_is_explained_as_a_chain() {
    let mut archive = Archive::sample();
    archive.add("app", "2.0", "Depends: libold (<< 2), hello\n", &[]);
    archive.add("libold", "2.5", "", &[]);
    let (env, _mirror) = with(&mut archive, &["app"]);
    env.kiln(&["update"])
        .fails(1, &["profile server (amd64) cannot be resolved", "app", "libold (<< 2)", "2.5"]);

    let mut archive = Archive::sample();
    archive.add("left", "1", "Conflicts: right\n", &[]);
    archive.add("right", "1", "", &[]);
    archive.add("app", "1", "Depends: right\n", &[]);
    let (env, _mirror) = with(&mut archive, &["left", "app"]);
    env.kiln(&["update"])
        .fails(1, &["left 1", "cannot stand beside right", "app needs right", "profile server"]);
}

#[test]
fn build_without_a_lock_names_the_command_that_makes_it() {
    let env = Env::new();
    Archive::project(&env, &["hello"]);
    env.kiln(&["build", "--profile", "server"]).fails(3, &["images/kiln.lock is missing", "kiln update"]);
}

#[test]
fn build_with_a_stale_lock_says_what_changed_and_names_the_command() {
    let (env, mirror) = with(&mut Archive::sample(), &["hello"]);
    env.kiln(&["update"]).ok();
    let asked = mirror.asked("").len();
    env.edit("project/profiles/server.toml", "[\"hello\"]", "[\"hello\", \"bash\"]");
    env.kiln(&["build", "--profile", "server"]).fails(
        3,
        &["does not fit the TOML files", "profile server (amd64) asks for bash now", "kiln update"],
    );
    assert_eq!(mirror.asked("").len(), asked, "build never resolves");
}

#[test]
fn an_edited_lock_is_refused() {
    let (env, _mirror) = with(&mut Archive::sample(), &["hello"]);
    env.kiln(&["update"]).ok();
    let good = env.read(LOCK);
    for (from, to) in
        [("hello_1.0-1", "hello_1.0-2"), ("schema = 1", "schema = 2"), ("sha256 = \"", "sha256 = \"0")]
    {
        env.write(LOCK, good.replacen(from, to, 1));
        env.kiln(&["build", "--profile", "server"]).fails(3, &["edited by hand", "kiln update"]);
    }
    env.write(LOCK, &good[..good.len() / 2]);
    env.kiln(&["build", "--profile", "server"]).fails(3, &["images/kiln.lock", "kiln update"]);
    // Merge markers of git.
    env.write(LOCK, format!("<<<<<<< ours\n{good}=======\n{good}>>>>>>> theirs\n"));
    env.kiln(&["build", "--profile", "server"]).fails(3, &["kiln update"]);
    // And the way out works.
    env.kiln(&["update"]).ok();
    assert_eq!(env.read(LOCK), good);
}
