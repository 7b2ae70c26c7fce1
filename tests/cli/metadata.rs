//! Signed metadata: what `kiln update` believes.

use crate::common::archive::Archive;
use crate::common::mirror::{Manner, Mirror};
use crate::common::run::Env;

fn refused(archive: &mut Archive, words: &[&str]) {
    archive.publish();
    let (env, mirror) = (Env::new(), Mirror::serve(&archive.files));
    env.mirrors(&[&mirror.base]);
    Archive::project(&env, &["hello"]);
    env.kiln(&["update"]).fails(4, &["no mirror has usable metadata of trixie"]).fails(4, words);
    assert!(!env.path("project/images/kiln.lock").exists(), "nothing is locked on bad metadata");
    assert!(mirror.asked("Packages").is_empty(), "nothing else is asked of a mirror that lies");
}

#[test]
fn a_release_that_has_expired_is_refused() {
    refused(
        &mut Archive { age: -30 * 86_400, valid: -86_400, ..Archive::sample() },
        &["was valid until", "the mirror is stale or the clock is wrong"],
    );
}

#[test]
fn a_release_signed_by_another_key_is_refused() {
    refused(&mut Archive { signed_by: 1, ..Archive::sample() }, &["no good signature by a pinned key"]);
}

#[test]
fn the_release_of_another_suite_is_refused() {
    refused(&mut Archive { codename: "bookworm".to_owned(), ..Archive::sample() }, &["bookworm"]);
}

#[test]
fn a_release_of_the_future_is_refused() {
    refused(&mut Archive { age: 3 * 86_400, ..Archive::sample() }, &["is the clock right?"]);
}

#[test]
fn a_release_whose_text_was_changed_or_cut_is_refused() {
    let mut archive = Archive::sample();
    archive.publish();
    let path = "dists/trixie/InRelease";
    let good = String::from_utf8(archive.files[path].clone()).unwrap();
    for bad in [
        good.replace("Label: Debian", "Label: Debiam"),
        good[..good.len() - 100].to_owned(),
        "hello\n".to_owned(),
    ] {
        let (env, mirror) = (Env::new(), Mirror::serve(&archive.files));
        let mut files = archive.files.clone();
        files.insert(path.to_owned(), bad.into_bytes());
        mirror.replace(&files);
        env.mirrors(&[&mirror.base]);
        Archive::project(&env, &["hello"]);
        env.kiln(&["update"]).fails(4, &["no mirror has usable metadata of trixie"]);
    }
}

#[test]
fn a_mirror_that_shows_an_older_state_than_the_lock_is_refused() {
    let mut archive = Archive::sample();
    archive.publish();
    let (env, mirror) = (Env::new(), Mirror::serve(&archive.files));
    env.mirrors(&[&mirror.base]);
    Archive::project(&env, &["hello"]);
    env.kiln(&["update"]).ok();
    let lock = env.read("project/images/kiln.lock");
    archive.age = -10 * 86_400;
    archive.publish();
    mirror.replace(&archive.files);
    env.kiln(&["update"]).fails(4, &["older than the locked state"]);
    assert_eq!(env.read("project/images/kiln.lock"), lock);
}

#[test]
fn a_bad_mirror_is_passed_over_for_a_good_one() {
    let (mut bad, mut good) = (Archive { signed_by: 1, ..Archive::sample() }, Archive::sample());
    bad.publish();
    good.publish();
    let (env, bad, good) = (Env::new(), Mirror::serve(&bad.files), Mirror::serve(&good.files));
    env.mirrors(&[&bad.base, &good.base]);
    Archive::project(&env, &["hello"]);
    env.kiln(&["update"]).ok();
    assert_eq!(bad.asked("InRelease").len(), 1);
    assert_eq!(good.asked("InRelease").len(), 1);
}

#[test]
fn an_index_that_does_not_have_the_digest_of_the_release_is_refused() {
    for manner in [Manner::Flipped, Manner::Shorter, Manner::Longer, Manner::Missing] {
        let mut archive = Archive::sample();
        archive.publish();
        let (env, mirror) = (Env::new(), Mirror::serve(&archive.files));
        mirror.answer("Packages.xz", manner);
        env.mirrors(&[&mirror.base]);
        Archive::project(&env, &["hello"]);
        env.kiln(&["update"]).fails(4, &["trixie/main index for amd64 could not be fetched"]);
    }
}
