//! Mistakes in TOML files.

use crate::common::archive::Archive;
use crate::common::mirror::Mirror;
use crate::common::run::Env;

fn project() -> Env {
    let env = Env::new();
    Archive::project(&env, &["hello"]);
    env
}

#[test]
fn an_unknown_key_is_shown_with_file_line_and_the_near_key() {
    let env = project();
    env.edit("project/profiles/server.toml", "install", "instal");
    env.kiln(&["build", "--profile", "server"])
        .fails(1, &["profiles/server.toml:5:1", "unknown field `instal`", "did you mean `install`?"]);
}

#[test]
fn a_wrong_type_is_shown_with_file_and_line() {
    let env = project();
    env.edit("project/profiles/server.toml", "install = [\"hello\"]", "install = 3");
    env.kiln(&["build", "--profile", "server"])
        .fails(1, &["profiles/server.toml:5:11", "expected a sequence"]);
}

#[test]
fn an_unknown_word_for_a_choice_lists_the_choices() {
    let env = project();
    env.edit("project/profiles/server.toml", "\"cloud\"", "\"clod\"");
    env.kiln(&["build", "--profile", "server"])
        .fails(1, &["profiles/server.toml:8", "did you mean `cloud`?"]);
}

#[test]
fn toml_that_ends_in_the_middle_is_an_error_at_its_place() {
    let env = project();
    env.write("project/images/debian.toml", "schema = 1\narchitectures = [\"amd64\"");
    env.kiln(&["build", "--profile", "server"]).fails(1, &["images/debian.toml:2"]);
}

#[test]
fn a_file_of_another_schema_is_refused() {
    let env = project();
    env.edit("project/profiles/server.toml", "schema = 1", "schema = 2");
    env.kiln(&["build", "--profile", "server"])
        .fails(1, &["profiles/server.toml has schema 2", "reads schema 1"]);
}

#[test]
fn layers_that_extend_each_other_or_nothing_are_named() {
    let env = project();
    env.edit("project/profiles/server.toml", "schema = 1", "schema = 1\nextends = [\"a\"]");
    env.kiln(&["update"]).fails(1, &["images/a.toml", "profiles/server.toml extends it"]);
    env.write("project/images/a.toml", "schema = 1\nextends = [\"b\"]\n");
    env.write("project/images/b.toml", "schema = 1\nextends = [\"a\"]\n");
    env.kiln(&["update"]).fails(1, &["images/a.toml extends images/b.toml", "a circle"]);
}

#[test]
fn a_file_of_a_profile_that_would_leave_the_root_is_refused() {
    let env = project();
    for (path, word) in [("/etc/../../x", ".."), ("etc/x", "absolute")] {
        Archive::project(&env, &["hello"]);
        let text = env.read("project/profiles/server.toml");
        env.write(
            "project/profiles/server.toml",
            format!("{text}\n[files]\n\"{path}\" = {{ text = \"x\" }}\n"),
        );
        env.kiln(&["update"]).fails(1, &["profiles/server.toml", path, word]);
    }
}

#[test]
fn an_unknown_profile_names_the_near_one_and_all() {
    let env = project();
    let mut archive = Archive::sample();
    archive.publish();
    let mirror = Mirror::serve(&archive.files);
    env.mirrors(&[&mirror.base]);
    env.kiln(&["update"]).ok();
    env.kiln(&["build", "--profile", "sever"])
        .fails(1, &["there is no profile `sever`", "did you mean `server`?", "profiles: server"]);
}

#[test]
fn a_project_without_profiles_says_what_to_write() {
    let env = project();
    fs_err::remove_file(env.path("project/profiles/server.toml")).unwrap();
    env.kiln(&["update"]).fails(1, &["has no profile", "kiln init"]);
}

/// A machine of scenarios beside the profile `server`.
fn machine(text: &str) -> Env {
    let env = project();
    env.write("project/qemu/machines/outside.toml", format!("schema = 1\n{text}"));
    env
}

#[test]
fn a_machine_of_scenarios_needs_no_role_is_locked_and_is_named_among_what_can_be_built() {
    let env = machine("[packages]\ninstall = [\"hello\"]\n\n[kernel]\nflavour = \"cloud\"\n");
    let mut archive = Archive::sample();
    archive.publish();
    let mirror = Mirror::serve(&archive.files);
    env.mirrors(&[&mirror.base]);
    env.kiln(&["update"]).ok();
    let lock = env.read("project/images/kiln.lock");
    assert_eq!(lock.matches("name = \"outside\"").count(), 1, "{lock}");
    env.kiln(&["build", "--profile", "outsde"]).fails(
        1,
        &[
            "there is no profile `outsde`",
            "did you mean `outside`?",
            "profiles: server",
            "machines of scenarios: outside",
        ],
    );
    fs_err::remove_file(env.path("project/qemu/machines/outside.toml")).unwrap();
    env.kiln(&["build", "--profile", "server"])
        .fails(3, &["profile outside (amd64) is locked and not wanted any more", "kiln update"]);
}

#[test]
fn a_machine_with_the_name_of_a_profile_is_refused() {
    let env = machine("[kernel]\nflavour = \"cloud\"\n");
    fs_err::rename(
        env.path("project/qemu/machines/outside.toml"),
        env.path("project/qemu/machines/server.toml"),
    )
    .unwrap();
    env.kiln(&["update"])
        .fails(1, &["qemu/machines/server.toml and profiles/server.toml have the same name", "rename one"]);
}

#[test]
fn only_a_machine_extends_a_profile_and_one_at_most() {
    let env = machine("extends = [\"profiles/server\", \"profiles/other\"]\n");
    env.kiln(&["update"]).fails(1, &["qemu/machines/outside.toml extends profiles/other", "one at most"]);
    let env = machine("extends = [\"profiles/sever\"]\n");
    env.kiln(&["update"]).fails(1, &["profiles/sever.toml", "qemu/machines/outside.toml extends it"]);
    let env = project();
    env.edit("project/profiles/server.toml", "schema = 1", "schema = 1\nextends = [\"profiles/other\"]");
    env.kiln(&["update"])
        .fails(1, &["profiles/server.toml extends profiles/other", "only a machine in qemu/machines/"]);
}

/// Everything that a terminal would obey: an escape sequence, C1, the direction of text.
const HOSTILE: &str = "a\u{1b}[2J\u{9b}31m\u{202e}b";

#[track_caller]
fn harmless(text: &str) {
    let bad = |c: char| (c.is_control() && !"\n\t".contains(c)) || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!text.contains(bad), "{text:?}");
}

#[test]
fn no_control_character_of_a_file_or_a_command_line_is_printed() {
    let env = project();
    env.edit("project/profiles/server.toml", "schema = 1", "schema = 1\n\"a\\u001b[2J\\u202eb\" = 1");
    let run = env.kiln(&["build", "--profile", "server"]);
    harmless(&run.stderr);
    run.fails(1, &["profiles/server.toml:2:1", r"a\u{1b}[2J\u{202e}b"]);
    Archive::project(&env, &["hello"]);
    let mut archive = Archive::sample();
    archive.publish();
    let mirror = Mirror::serve(&archive.files);
    env.mirrors(&[&mirror.base]);
    env.kiln(&["update"]).ok();
    let run = env.kiln(&["build", "--profile", HOSTILE]);
    harmless(&run.stderr);
    run.fails(1, &[r"there is no profile `a\u{1b}[2J\u{9b}31m\u{202e}b`"]);
    // A layer's name becomes a path.
    env.edit("project/profiles/server.toml", "schema = 1", "schema = 1\nextends = [\"a\\u001b[2J\"]");
    let run = env.kiln(&["update"]);
    harmless(&run.stderr);
    run.fails(1, &[r"images/a\u{1b}[2J.toml"]);
    for wrong in [&["build", HOSTILE][..], &[HOSTILE], &["build", "--arch", HOSTILE]] {
        let run = env.kiln(wrong);
        harmless(&run.stderr);
        assert!(run.stderr.contains(r"\u{9b}31m\u{202e}b"), "{}", run.text());
    }
    // JSON keeps the text and has no such character either.
    Archive::project(&env, &["hello"]);
    let run = env.kiln(&["--json", "build", "--profile", HOSTILE]);
    harmless(&run.stdout);
    assert!(run.json()["error"][0].as_str().unwrap().contains(HOSTILE), "{}", run.text());
}

#[test]
fn toml_with_crlf_and_what_editors_leave_in_folders_change_nothing() {
    let env = project();
    let mut archive = Archive::sample();
    archive.publish();
    let mirror = Mirror::serve(&archive.files);
    env.mirrors(&[&mirror.base]);
    env.kiln(&["update"]).ok();
    for folder in ["images", "profiles"] {
        env.write(&format!("project/{folder}/._bare.toml"), [0, 5, 22, 7]);
        env.write(&format!("project/{folder}/bare.toml~"), "x = ");
        std::os::unix::fs::symlink("me@host.1:2", env.path(&format!("project/{folder}/.#bare.toml")))
            .unwrap();
    }
    let lock = env.read("project/images/kiln.lock").replace('\n', "\r\n");
    for name in ["images/debian.toml", "images/tools.toml", "profiles/server.toml", "images/kiln.lock"] {
        let text = env.read(&format!("project/{name}")).replace('\n', "\r\n");
        env.write(&format!("project/{name}"), text);
    }
    // The lock fits and says the same; so it stays as it is.
    env.kiln(&["outdated"]).ok();
    env.kiln(&["update"]).ok();
    assert_eq!(env.read("project/images/kiln.lock"), lock);
}

#[test]
fn a_script_with_crlf_is_named_with_the_remedy() {
    let env = project();
    let text = env.read("project/profiles/server.toml");
    env.write("project/profiles/run", "#!/bin/sh\r\nexit 0\r\n");
    env.write(
        "project/profiles/server.toml",
        format!("{text}\n[files]\n\"/usr/bin/run\" = {{ source = \"run\", mode = \"0755\" }}\n"),
    );
    let run = env.kiln(&["update"]);
    harmless(&run.stderr);
    run.fails(
        1,
        &["profiles/run is a script whose lines end with CR LF (line 1)", "sed -i", ".gitattributes"],
    );
}
