//! `kiln update k3s`, the release's part of it: from a server of the test to images/k3s.toml, or nothing at all.

use std::collections::BTreeMap;

use kiln::digest::Digest;

use crate::common::archive::Archive;
use crate::common::k3s;
use crate::common::mirror::{Manner, Mirror};
use crate::common::run::{Env, Run};

const OLD: &str = "v1.33.3+k3s1";
const NEW: &str = "v1.33.4+k3s1";
const LAYER: &str = "project/images/k3s.toml";

struct Case {
    env: Env,
    mirror: Mirror,
}

impl Case {
    /// A project with [`OLD`], and a server that has that, [`NEW`], and the release after the next minor.
    fn new() -> Self {
        let env = Env::new();
        let mirror = Mirror::serve(&Self::files());
        Archive::project(&env, &["hello"]);
        env.write(LAYER, k3s::layer(&mirror, OLD));
        Case { env, mirror }
    }

    fn files() -> BTreeMap<String, Vec<u8>> {
        let mut files = k3s::release(OLD, "v2.0.5-k3s1", "1.12.1");
        files.extend(k3s::release(NEW, "v2.0.6-k3s1", "1.12.3"));
        files.extend(k3s::release("v1.35.0+k3s1", "v2.1.0-k3s1", "1.13.0"));
        files.extend(k3s::release("v1.33.2+k3s1", "v2.0.4-k3s1", "1.12.1"));
        let channels =
            [("stable", NEW), ("v1.33", NEW), ("v1.32", "v1.32.9+k3s1"), ("v1.35", "v1.35.0+k3s1")];
        files.insert("channels".to_owned(), k3s::channels(&channels));
        files
    }

    /// Without the source, whose part needs a sandbox and is proven in tests/recipe.
    fn update(&self, args: &[&str]) -> Run {
        self.env.kiln(&[&["update", "k3s", "--no-source"], args].concat())
    }

    fn layer(&self) -> String {
        self.env.read(LAYER)
    }

    /// It fails, and nothing is written or left behind.
    #[track_caller]
    fn refuses(&self, args: &[&str], code: i32, words: &[&str]) {
        let before = self.layer();
        self.update(args).fails(code, words);
        assert_eq!(self.layer(), before);
        self.clean();
    }

    #[track_caller]
    fn clean(&self) {
        assert_eq!(self.env.leftovers(), Vec::<String>::new());
        let images = fs_err::read_dir(self.env.path("project/images")).unwrap();
        let hidden = images.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
        assert_eq!(hidden.count(), 0);
    }
}

fn digest(version: &str, arch: &str, containerd: &str) -> Digest {
    Digest::of(&k3s::program(version, arch, containerd))
}

#[test]
fn the_newest_of_the_channel_is_pinned_with_digests_of_bytes_that_were_seen() {
    let case = Case::new();
    let old = case.layer();
    let run = case.update(&[]).ok();
    let expected = old
        .replace(&format!("version = \"{OLD}\""), &format!("version = \"{NEW}\""))
        .replace(&format!("\"K3s {OLD}\""), &format!("\"K3s {NEW}\""))
        .replace(&format!("mirror/{OLD}"), &format!("mirror/{NEW}"))
        .replace("v1.33.3%2Bk3s1", "v1.33.4%2Bk3s1")
        .replace("source = [\"k3s\"]   # where nobody has the release\n", "")
        .replace(
            &digest(OLD, "amd64", "v2.0.5-k3s1").to_string(),
            &digest(NEW, "amd64", "v2.0.6-k3s1").to_string(),
        )
        .replace(
            &digest(OLD, "arm64", "v2.0.5-k3s1").to_string(),
            &digest(NEW, "arm64", "v2.0.6-k3s1").to_string(),
        );
    assert_eq!(case.layer(), expected, "comments and order stay");
    assert_eq!(
        run.stdout,
        "K3s v1.33.3+k3s1 -> v1.33.4+k3s1\nKubernetes v1.33.3 -> v1.33.4\ncontainerd (none known) -> v2.0.6-k3s1\n\
         runc (none known) -> v1.2.6\nCoreDNS 1.12.1 -> 1.12.3\n"
    );
    assert!(
        run.stderr.contains("Wrote images/k3s.toml") && !run.stderr.contains("warning"),
        "{}",
        run.text()
    );
    for file in ["v1.33.4%2Bk3s1/k3s", "v1.33.4%2Bk3s1/k3s-arm64"] {
        assert!(case.mirror.asked(file).iter().any(|(path, _)| path == file), "{file} was downloaded");
    }
    case.clean();

    // The release that is pinned now lies in the store, so the next step knows what it had.
    let run = case.update(&["--to", "v1.35.0+k3s1", "--json"]).ok();
    let report = run.json();
    assert_eq!((report["old"].as_str(), report["new"].as_str()), (Some(NEW), Some("v1.35.0+k3s1")));
    assert_eq!(report["files"], serde_json::json!(["images/k3s.toml"]));
    let components = report["components"].as_array().unwrap();
    let containerd = components.iter().find(|c| c["name"] == "containerd").unwrap();
    assert_eq!(
        (containerd["old"].as_str(), containerd["new"].as_str()),
        (Some("v2.0.6-k3s1"), Some("v2.1.0-k3s1"))
    );
    assert!(run.stderr.contains("skips a minor") && run.stderr.contains("v1.34 first"), "{}", run.text());
    assert!(report["warnings"][0].as_str().unwrap().contains("servers before agents"));
}

#[test]
fn what_is_up_to_date_stays_and_an_older_one_must_be_named() {
    let case = Case::new();
    let old = case.layer();
    let run = case.update(&["--to", OLD]).ok();
    assert!(run.stdout.contains("K3s v1.33.3+k3s1 is up to date"), "{}", run.text());
    assert_eq!((case.layer(), case.mirror.asked("").len()), (old, 0), "nobody was asked");
    case.refuses(
        &["--channel", "v1.32"],
        1,
        &["channel `v1.32` is at v1.32.9+k3s1", "which is newer", "--to v1.32.9+k3s1"],
    );
    case.refuses(&["--channel", "v1.3"], 1, &["there is no channel `v1.3`", "did you mean"]);
    let run = case.update(&["--to", "v1.33.2+k3s1"]).ok();
    assert!(run.stderr.contains("goes back") && run.stderr.contains("datastore"), "{}", run.text());
    assert!(case.layer().contains("version = \"v1.33.2+k3s1\""));
}

#[test]
fn a_release_that_is_not_whole_is_not_pinned() {
    let new = "v1.33.4%2Bk3s1";
    for (part, manner, words) in [
        (
            format!("{new}/k3s-arm64"),
            Manner::Flipped,
            &["K3s v1.33.4+k3s1 (k3s-arm64) cannot be had", "wrong digest"][..],
        ),
        (format!("{new}/k3s-arm64"), Manner::Missing, &["cannot be had", "it is not there"]),
        (format!("{new}/k3s-arm64"), Manner::Shorter, &["cannot be had", "wrong digest"]),
        (
            format!("{new}/sha256sum-arm64"),
            Manner::Missing,
            &["sha256sum-arm64.txt cannot be had", "404", "is there such a release?"],
        ),
        (format!("{new}/sha256sum-amd64"), Manner::Broken, &["sha256sum-amd64.txt cannot be had", "500"]),
        ("channels".to_owned(), Manner::Shorter, &["the channel server", "no list of channels"]),
        ("channels".to_owned(), Manner::Missing, &["nobody says which K3s is the newest", "404", "--to"]),
    ] {
        let case = Case::new();
        case.mirror.answer(&part, manner);
        case.refuses(&[], 4, words);
    }
}

#[test]
fn what_breaks_off_once_is_asked_for_again() {
    let case = Case::new();
    for part in ["channels", "v1.33.4%2Bk3s1/sha256sum-arm64", "v1.33.4%2Bk3s1/k3s-arm64"] {
        case.mirror.answer(part, Manner::CutOnce(20));
    }
    case.update(&[]).ok();
    assert!(case.layer().contains(&digest(NEW, "arm64", "v2.0.6-k3s1").to_string()));
}

#[test]
fn lists_and_files_that_say_something_else_are_refused() {
    let list = format!("{}  k3s-airgap-images-amd64.tar\n", Digest::of(b"-"));
    let other = k3s::program("v1.33.9+k3s1", "amd64", "v2.0.6-k3s1");
    let of_other = format!("{}  k3s\n", Digest::of(&other));
    let page = b"<html>sign in</html>".to_vec();
    let of_page = format!("{}  k3s\n", Digest::of(&page));
    for (files, code, words) in [
        (
            vec![("sha256sum-amd64.txt", list.into_bytes())],
            4,
            &["K3s v1.33.4+k3s1 for amd64 cannot be pinned", "does not name `k3s`"][..],
        ),
        (
            vec![("sha256sum-amd64.txt", b"12ab  k3s\n".to_vec())],
            4,
            &["cannot be pinned", "64 hexadecimal digits"],
        ),
        (
            vec![("sha256sum-amd64.txt", of_other.into_bytes()), ("k3s", other)],
            1,
            &["is not what it should be", "its bin/k3s is not v1.33.4+k3s1"],
        ),
        (
            vec![("sha256sum-amd64.txt", of_page.into_bytes()), ("k3s", page)],
            1,
            &["no archive of programs in it"],
        ),
    ] {
        let case = Case::new();
        let mut all = Case::files();
        all.extend(files.into_iter().map(|(name, bytes)| (format!("v1.33.4%2Bk3s1/{name}"), bytes)));
        case.mirror.replace(&all);
        case.refuses(&[], code, words);
    }
}

#[test]
fn what_nothing_is_built_upon_may_be_missing() {
    let case = Case::new();
    case.mirror.answer("k3s-images.txt", Manner::Missing);
    let run = case.update(&[]).ok();
    assert!(run.stderr.contains("which CoreDNS and other images it has is not known"), "{}", run.text());
    assert!(case.layer().contains(NEW));
}

#[test]
fn what_cannot_be_moved_is_named_with_file_and_key() {
    let case = Case::new();
    case.env.edit(LAYER, "mirror/v1.33.3+k3s1", "mirror/newest");
    case.refuses(&[], 1, &["images/k3s.toml: `k3s.release.urls.1`: it does not name v1.33.3+k3s1"]);
    let case = Case::new();
    case.env.edit(LAYER, "channels = ", "# channels = ");
    case.refuses(&[], 1, &["names no server that knows the newest release", "--to v1.33.4+k3s1"]);
    case.refuses(&["--to", "1.33.4"], 1, &["--to: `1.33.4` is no version of K3s", "v1.33.4+k3s1"]);
    case.env.edit(LAYER, "version = \"v1.33.3+k3s1\"", "version = \"v1.33\"");
    case.refuses(&["--to", NEW], 1, &["images/k3s.toml: `k3s.version`: `v1.33` is no version of K3s"]);
}

#[test]
fn k3s_and_packages_are_two_commands() {
    let case = Case::new();
    let kiln = |args: &[&str]| case.env.kiln(args);
    kiln(&["update", "k3s", "hello"]).fails(1, &["`kiln update k3s`, then `kiln update hello`"]);
    kiln(&["update", "hello", "--to", NEW]).fails(1, &["--to is about K3s"]);
    kiln(&["update", "--no-source"]).fails(1, &["--no-source is about K3s", "kiln update k3s"]);
    assert_eq!(kiln(&["update", "k3s", "--to", NEW, "--channel", "stable"]).code, 2);
    assert_eq!(kiln(&["update", "k3s", "--commit", "0123", "--no-source"]).code, 2);
    let before = case.layer();
    case.env.edit(LAYER, "source = ", "# source = ");
    kiln(&["update", "k3s", "--commit", "0123"])
        .fails(1, &["--commit is about the source", "no `k3s.source`"]);
    case.env.write(LAYER, &before);
    // With its source it needs the lock, for the tools that ask for modules.
    kiln(&["update", "k3s"]).fails(3, &["images/kiln.lock is missing"]);
    assert_eq!(case.layer(), before);
}

#[test]
fn outdated_mentions_a_newer_k3s_and_does_without() {
    let mut archive = Archive::sample();
    archive.publish();
    let (env, mirror) = (Env::new(), Mirror::serve(&archive.files));
    env.mirrors(&[&mirror.base]);
    Archive::project(&env, &["hello"]);
    env.kiln(&["update"]).ok();
    let mut files = archive.files.clone();
    files.insert("channels".to_owned(), k3s::channels(&[("v1.33", NEW)]));
    mirror.replace(&files);
    env.write(LAYER, k3s::layer(&mirror, OLD));
    let run = env.kiln(&["outdated"]).ok();
    assert!(run.stderr.contains("K3s v1.33.4+k3s1: `kiln update k3s`"), "{}", run.text());
    mirror.answer("channels", Manner::Broken);
    let run = env.kiln(&["outdated"]).ok();
    assert!(!run.stderr.contains("K3s") && !run.stderr.contains("500"), "{}", run.text());
}
