//! Who kiln is to a registry: passwords and tokens of Docker's and Podman's files, and of the programs that those name.

use super::common::registry::{Door, IDENTITY, Manner, PASSWORD, Registry, USER};
use super::common::run::{Env, Run};
use super::tools;
use kiln::oci::types::MANIFEST;

const REPOSITORY: &str = "a/b";

/// A registry with one small image, and the digest of that.
fn registry(closed: bool) -> (Registry, String) {
    let registry = Registry::start(tools(), closed);
    let (layout, found) = super::only(&super::archives().join("pause-amd64.tar"));
    for blob in [&found.manifest.config].into_iter().chain(&found.manifest.layers) {
        let mut bytes = Vec::new();
        layout.copy(blob, &mut bytes).unwrap();
        registry.push_blob(REPOSITORY, &bytes);
    }
    let bytes = serde_json::to_vec(&found.manifest).unwrap();
    let digest = registry.push_manifest(REPOSITORY, MANIFEST, &bytes).to_string();
    (registry, digest)
}

/// Pulls the image with these variables, into a store without it.
fn pull(env: &Env, host: &str, digest: &str, variables: &[(&str, &str)]) -> Run {
    let _ = fs_err::remove_dir_all(env.store());
    let reference = format!("{host}/{REPOSITORY}:1@sha256:{digest}");
    let mut kiln = env.command();
    kiln.args(["-vv", "container", "pull", &reference, "--out"]).arg(env.path("out"));
    kiln.env("PATH", format!("{}:/usr/bin:/bin", env.path("bin").display()));
    for (name, value) in variables {
        kiln.env(name, value);
    }
    let run = Run::of(&kiln.output().unwrap());
    // Not in an error, and not in the developer's log.
    for secret in [PASSWORD, IDENTITY, "guess me not", "T0KEN"] {
        assert!(!run.text().contains(secret), "{}", run.text());
    }
    run
}

/// A program `docker-credential-NAME` that notes what it was asked and runs `script`.
fn helper(env: &Env, name: &str, script: &str) {
    let path = format!("bin/docker-credential-{name}");
    let seen = env.path("seen").display().to_string();
    env.write(&path, format!("#!/bin/sh\nread -r server\necho \"{name} $* $server\" >> {seen}\n{script}\n"));
    fs_err::set_permissions(env.path(&path), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

fn config(env: &Env, value: &serde_json::Value) {
    env.write("home/.docker/config.json", value.to_string());
}

/// What a helper prints for a user with a secret.
fn says(user: &str, secret: &str) -> String {
    format!("echo '{{\"ServerURL\":\"x\",\"Username\":\"{user}\",\"Secret\":\"{secret}\"}}'")
}

#[test]
fn a_program_that_dockers_file_names_knows_the_password() {
    use serde_json::json;
    let (registry, digest) = registry(true);
    let host = registry.host.as_str();
    let env = Env::new();
    helper(&env, "all", &says(USER, PASSWORD));
    helper(&env, "other", "exit 1");
    config(&env, &json!({"auths": {host: {}}, "credsStore": "all"}));
    pull(&env, host, &digest, &[]).ok();
    assert_eq!(env.read("seen"), format!("all get {host}\n"), "asked once, by the protocol");
    // One for this registry goes before that for all.
    helper(&env, "own", &says(USER, PASSWORD));
    config(&env, &json!({"credHelpers": {"r.example.org": "other", host: "own"}, "credsStore": "other"}));
    env.write("seen", "");
    pull(&env, host, &digest, &[]).ok();
    assert_eq!(env.read("seen"), format!("own get {host}\n"));
    // What is in the file itself serves where the program knows nothing, or is not there.
    let auths = json!({host: {"username": USER, "password": PASSWORD}});
    helper(&env, "nothing", "echo 'credentials not found in native keychain'; exit 1");
    for name in ["nothing", "gone"] {
        config(&env, &json!({"auths": auths, "credsStore": name}));
        pull(&env, host, &digest, &[]).ok();
    }
}

#[test]
fn a_program_that_does_not_help_is_named_with_its_file_and_what_to_do() {
    use serde_json::json;
    let (registry, digest) = registry(true);
    let host = registry.host.as_str();
    let env = Env::new();
    let file = env.path("home/.docker/config.json").display().to_string();
    let json = says(USER, "guess me not");
    for (name, script, words) in [
        ("desktop", "", &["is not on PATH", "Docker Desktop", "KILN_REGISTRY_AUTH"][..]),
        ("nothing", "echo 'credentials not found in native keychain'; exit 1", &["has none for"]),
        ("empty", &says("", ""), &["has none for"]),
        ("broken", "echo 'pinentry: no terminal'; exit 2", &["failed", "code 2, pinentry: no terminal"]),
        ("quiet", "echo 'no session' >&2; exit 3", &["failed", "code 3, no session"]),
        ("loud", &format!("{json}; exit 1"), &["failed", "code 1"]),
        ("odd", "echo guess me not", &["failed", "prints no JSON"]),
        ("colon", &says("a:b", "guess me not"), &["failed", "colon"]),
        ("wrong", &json, &["it refuses the password of"]),
        ("token", &says("<token>", IDENTITY), &["it wants a password", "identity token"]),
        ("../../tmp/x", "", &["is not on PATH"]),
    ] {
        if !script.is_empty() {
            helper(&env, name, script);
        }
        config(&env, &json!({"credsStore": name}));
        let run = pull(&env, host, &digest, &[]);
        run.fails(4, &[&[&format!("docker-credential-{name}"), "`credsStore`", &file][..], words].concat());
    }
}

#[test]
fn who_is_not_asked_for_a_password_starts_no_program() {
    use serde_json::json;
    let (registry, digest) = registry(false);
    let env = Env::new();
    helper(&env, "all", "exit 1");
    config(&env, &json!({"credsStore": "all"}));
    pull(&env, &registry.host, &digest, &[]).ok();
    assert!(!env.path("seen").exists());
    // A registry whose token everybody gets is open without the program, too.
    let door = Door::before(&registry, Manner::AnonymousToken);
    config(&env, &json!({"credsStore": "gone"}));
    pull(&env, &door.host, &digest, &[]).ok();
}

#[test]
fn identity_tokens_are_exchanged_and_tokens_for_the_registry_are_shown_to_it() {
    use serde_json::json;
    let (registry, digest) = registry(false);
    let door = Door::before(&registry, Manner::IdentityToken);
    let host = door.host.as_str();
    let env = Env::new();
    helper(&env, "id", &says("<token>", IDENTITY));
    for file in
        [json!({"auths": {host: {"auth": "MDA6", "identitytoken": IDENTITY}}}), json!({"credsStore": "id"})]
    {
        config(&env, &file);
        pull(&env, host, &digest, &[]).ok();
    }
    let asked = door.asked("/token");
    assert!(
        asked.len() == 2 && asked.iter().all(|a| a.path == "/token" && a.authorization.is_none()),
        "{asked:?}"
    );
    assert!(asked[0].body.contains("scope=repository%3Aa%2Fb%3Apull"), "{asked:?}");
    config(&env, &json!({"auths": {host: {"identitytoken": "guess me not"}}}));
    pull(&env, host, &digest, &[]).fails(4, &["it refuses the identity token of", ".docker/config.json"]);

    let door = Door::before(&registry, Manner::Token);
    config(&env, &json!({"auths": {&door.host: {"registrytoken": "T0KEN"}}}));
    pull(&env, &door.host, &digest, &[]).ok();
    assert!(door.asked("/token").is_empty());
    config(&env, &json!({"auths": {&door.host: {"registrytoken": "guess me not"}}}));
    pull(&env, &door.host, &digest, &[]).fails(4, &["it refuses the token of"]);
}

#[test]
fn files_are_those_of_docker_and_podman_and_a_named_one_is_alone() {
    use serde_json::json;
    let (registry, digest) = registry(true);
    let host = registry.host.as_str();
    let of = |password: &str| json!({"auths": {host: {"username": USER, "password": password}}}).to_string();
    let at = |env: &Env, name: &str| env.path(name).display().to_string();
    for place in [
        "home/.docker/config.json",
        "home/.config/containers/auth.json",
        "run/containers/auth.json",
        "xdg/containers/auth.json",
        "docker/config.json",
    ] {
        let env = Env::new();
        env.write("home/.docker/config.json", "{}");
        env.write(place, of(PASSWORD));
        let variables = [
            ("XDG_RUNTIME_DIR", at(&env, "run")),
            ("XDG_CONFIG_HOME", at(&env, "xdg")),
            ("DOCKER_CONFIG", at(&env, "docker")),
        ];
        let folder = place.split('/').next().unwrap();
        let variables: Vec<_> = variables
            .iter()
            .filter(|(_, path)| path.ends_with(folder))
            .map(|(name, path)| (*name, path.as_str()))
            .collect();
        pull(&env, host, &digest, &variables).ok();
    }
    let env = Env::new();
    env.write("home/.docker/config.json", of("guess me not"));
    env.write("podman.json", of(PASSWORD));
    env.write("kiln.json", "{}");
    pull(&env, host, &digest, &[]).fails(4, &["it refuses the password of"]);
    let podman = at(&env, "podman.json");
    pull(&env, host, &digest, &[("REGISTRY_AUTH_FILE", &podman)]).ok();
    pull(&env, host, &digest, &[("DOCKER_AUTH_CONFIG", &of(PASSWORD))]).ok();
    pull(
        &env,
        host,
        &digest,
        &[("REGISTRY_AUTH_FILE", &podman), ("KILN_REGISTRY_AUTH", &at(&env, "kiln.json"))],
    )
    .fails(4, &["has none for", "kiln.json"]);
    pull(&env, host, &digest, &[("REGISTRY_AUTH_FILE", &at(&env, "nowhere"))])
        .fails(1, &["cannot be read", "REGISTRY_AUTH_FILE"]);
    // Keys as they are written: a namespace goes before its registry, and base64 may lack its padding.
    let auth = |password: &str| {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD_NO_PAD.encode(format!("{USER}:{password}"))
    };
    env.write("kiln.json", json!({"auths": {host: {"auth": auth("guess me not")}, format!("{host}/a"): {"auth": auth(PASSWORD)}, format!("{host}/c"): {"auth": auth("x")}}}).to_string());
    pull(&env, host, &digest, &[("KILN_REGISTRY_AUTH", &at(&env, "kiln.json"))]).ok();
}
