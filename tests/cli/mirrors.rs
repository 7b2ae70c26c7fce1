//! Mirrors that fail while packages are fetched.

use crate::common::archive::Archive;
use crate::common::mirror::{Manner, Mirror};
use crate::common::run::{Env, files_below};

const DEB: &str = "pool/main/hello_1.0-1_amd64.deb";

/// A locked project and two mirrors that have everything.
fn locked() -> (Env, Archive, Mirror, Mirror) {
    let mut archive = Archive::sample();
    archive.publish();
    let (first, second) = (Mirror::serve(&archive.files), Mirror::serve(&archive.files));
    let env = Env::new();
    env.mirrors(&[&first.base, &second.base]);
    Archive::project(&env, &["hello"]);
    env.kiln(&["update"]).ok();
    (env, archive, first, second)
}

/// A build of these packages, which get as far as the search for a kernel that the hand-made one is not.
fn fetched(env: &Env) {
    env.kiln(&["build", "--profile", "server"]).fails(1, &["no package of the profile holds a kernel"]);
}

fn objects(env: &Env) -> usize {
    files_below(&env.store().join("objects")).len()
}

#[test]
fn a_package_is_fetched_from_the_first_mirror_and_only_once() {
    let (env, _, first, second) = locked();
    let before = objects(&env);
    fetched(&env);
    assert_eq!(objects(&env), before + 4);
    fetched(&env);
    assert_eq!(first.asked(DEB).len(), 1);
    assert_eq!(second.asked("pool").len(), 0);
}

#[test]
fn the_next_mirror_is_asked_when_one_does_not_have_it_or_is_broken_or_lies() {
    for manner in [Manner::Missing, Manner::Broken, Manner::Flipped, Manner::Shorter, Manner::Longer] {
        let (env, _, first, second) = locked();
        first.answer(DEB, manner);
        fetched(&env);
        assert!(!first.asked(DEB).is_empty(), "{manner:?}");
        assert_eq!(second.asked(DEB).len(), 1, "{manner:?}");
        assert_eq!(files_below(&env.store().join("partial")), [""; 0], "{manner:?}");
    }
}

#[test]
fn a_download_that_broke_off_is_resumed_where_it_was() {
    let (env, archive, first, second) = locked();
    let (half, whole) = (archive.files[DEB].len() / 2, archive.files[DEB].len());
    first.answer(DEB, Manner::CutOnce(half));
    fetched(&env);
    let asked = first.asked(DEB);
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!(asked[0].1, None);
    let from: usize =
        asked[1].1.as_deref().unwrap().trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
    assert!(from > 0 && from <= half && half < whole, "{asked:?}");
    assert!(second.asked(DEB).is_empty());
}

#[test]
fn a_download_that_failed_is_resumed_by_the_next_run() {
    let (env, archive, first, second) = locked();
    let half = archive.files[DEB].len() / 2;
    first.answer(DEB, Manner::Missing).answer(DEB, Manner::CutOnce(half));
    second.answer(DEB, Manner::Missing);
    env.kiln(&["build", "--profile", "server"]).fails(4, &["hello 1.0-1 amd64"]);
    assert_eq!(files_below(&env.store().join("partial")).len(), 1, "what came is kept");
    first.answer(DEB, Manner::Good);
    fetched(&env);
    assert!(first.asked(DEB).last().unwrap().1.is_some(), "{:?}", first.asked(DEB));
    assert_eq!(files_below(&env.store().join("partial")), [""; 0]);
}

#[test]
fn a_mirror_that_stalls_is_left_for_the_next() {
    let (env, _, first, second) = locked();
    first.answer(DEB, Manner::Stall(1000));
    let begun = std::time::Instant::now();
    fetched(&env);
    assert!(begun.elapsed().as_secs() < 50, "{:?}", begun.elapsed());
    assert!(
        second.asked(DEB).iter().any(|(_, range)| range.is_some()),
        "the second goes on: {:?}",
        second.asked(DEB)
    );
}

#[test]
fn wrong_bytes_from_every_mirror_are_an_error_that_names_both_digests_and_nothing_is_kept() {
    let (env, _, first, second) = locked();
    first.answer(DEB, Manner::Flipped);
    second.answer(DEB, Manner::Flipped);
    let before = objects(&env);
    env.kiln(&["build", "--profile", "server"]).fails(
        4,
        &["hello 1.0-1 amd64 could not be fetched", "wrong digest: ", "is wanted, these bytes have"],
    );
    assert!(objects(&env) <= before + 1, "only the other package of the profile may be there");
    assert!(!files_below(&env.store().join("steps")).iter().any(|f| f.contains("hello")));
}

#[test]
fn a_package_that_every_mirror_dropped_is_named_with_what_is_offered_now_and_the_way_on() {
    let (env, mut archive, first, second) = locked();
    archive.remove("hello");
    archive.add("hello", "1.2-1", "", &[]);
    archive.publish();
    first.replace(&archive.files);
    second.replace(&archive.files);
    env.kiln(&["build", "--profile", "server"]).fails(
        4,
        &["hello 1.0-1 amd64", "gone from every mirror", "1.2-1 is offered now", "kiln update debian"],
    );
    env.kiln(&["update", "debian"]).ok();
    fetched(&env);
}

#[test]
fn without_any_mirror_the_error_says_where_mirrors_come_from() {
    let (env, ..) = locked();
    env.write("apt/sources.list", "");
    env.kiln(&["update"]).fails(4, &["apt sources", "KILN_DEBIAN_MIRROR"]);
}

#[test]
fn a_mirror_of_the_environment_is_asked_too() {
    let (env, _, first, _) = locked();
    env.write("apt/sources.list", "");
    let base = first.base.trim_end_matches("/debian").to_owned();
    let run = env
        .command()
        .env("KILN_DEBIAN_MIRROR", base)
        .args(["build", "--profile", "server"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&run.stderr).contains("holds a kernel"), "{run:?}");
    assert_eq!(first.asked(DEB).len(), 1);
}
