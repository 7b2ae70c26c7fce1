//! Images put into Debian's own registry and taken from there: whole, in parts, with and without a password, and damaged.

use std::path::PathBuf;

use kiln::digest::Digest;
use kiln::oci::types::{DOCKER_INDEX, DOCKER_MANIFEST, INDEX, MANIFEST};

use super::common::registry::{Door, Manner, PASSWORD, Registry, USER};
use super::common::run::{Env, Run, files_below};
use super::{archives, only, sha256, tools};

const REPOSITORY: &str = "a/b";

/// What was put into a registry.
struct Pushed {
    index: Digest,
    /// amd64, arm64.
    manifests: [Digest; 2],
    /// Of amd64.
    layer: Digest,
}

/// Puts the toolbox of both machines there, with an index.
fn push(registry: &Registry) -> Pushed {
    let mut descriptors = Vec::new();
    let mut layer = None;
    for arch in ["amd64", "arm64"] {
        let (layout, found) = only(&archives().join(format!("toolbox-{arch}.tar")));
        for blob in [&found.manifest.config].into_iter().chain(&found.manifest.layers) {
            let mut bytes = Vec::new();
            layout.copy(blob, &mut bytes).unwrap();
            registry.push_blob(REPOSITORY, &bytes);
        }
        layer = layer.or(Some(found.manifest.layers[0].digest));
        let bytes = serde_json::to_vec(&found.manifest).unwrap();
        assert_eq!(registry.push_manifest(REPOSITORY, MANIFEST, &bytes), found.digest());
        descriptors.push((found.digest(), bytes.len(), arch));
    }
    let entry = |(digest, size, arch): &(Digest, usize, &str)| {
        serde_json::json!({
            "mediaType": MANIFEST, "digest": format!("sha256:{digest}"), "size": size, "platform": {"architecture": arch, "os": "linux"}
        })
    };
    let manifests: Vec<_> = descriptors.iter().map(entry).collect();
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let index = registry.push_manifest(REPOSITORY, INDEX, &serde_json::to_vec(&index).unwrap());
    Pushed { index, manifests: [descriptors[0].0, descriptors[1].0], layer: layer.unwrap() }
}

/// Pulls `host/a/b@digest` in `env`, on the network of this machine alone.
fn pull(env: &Env, host: &str, digest: Digest, more: &[&str]) -> Run {
    let reference = format!("{host}/{REPOSITORY}:1@sha256:{digest}");
    let mut kiln = env.command();
    kiln.args(["container", "pull", &reference, "--out"]).arg(env.path("out")).args(more);
    Run::of(&kiln.output().unwrap())
}

fn out(env: &Env, arch: &str) -> PathBuf {
    env.path("out").join(format!("b-{arch}.tar"))
}

/// A credentials file for `host`, where Docker has its own.
fn password(env: &Env, host: &str, password: &str) {
    let auths = serde_json::json!({"auths": {host: {"username": USER, "password": password}}});
    env.write("home/.docker/config.json", auths.to_string());
}

#[test]
fn an_image_comes_back_as_it_was_put_there_for_each_machine() {
    let registry = Registry::start(tools(), false);
    let pushed = push(&registry);
    let env = Env::new();
    for (arch, digest) in ["amd64", "arm64"].into_iter().zip(pushed.manifests) {
        // By the index, and by the manifest itself.
        for by in [pushed.index, digest] {
            let run = pull(&env, &registry.host, by, &["--arch", arch, "--json"]).ok();
            assert_eq!(run.json()["digest"], digest.to_string(), "{}", run.text());
            let (_, found) = only(&out(&env, arch));
            assert_eq!((found.digest(), found.config.architecture.as_str()), (digest, arch));
            assert_eq!(found.name, Some(format!("{}/{REPOSITORY}:1", registry.host)));
        }
    }
    pull(&env, &registry.host, pushed.manifests[1], &[])
        .fails(1, &["is for linux/arm64, not for linux/amd64"]);
    // What is in the store is not asked for again.
    let first = sha256(&out(&env, "amd64"));
    let host = registry.host.clone();
    drop(registry);
    pull(&env, &host, pushed.index, &[]).ok();
    assert_eq!(sha256(&out(&env, "amd64")), first);
    assert_eq!(env.leftovers(), [""; 0]);
}

#[test]
fn a_container_of_a_project_is_pulled_and_named_as_its_file_says() {
    let registry = Registry::start(tools(), false);
    let pushed = push(&registry);
    let dir = tempfile::tempdir_in(super::images::folder()).unwrap();
    for part in ["images", "profiles", "qemu"] {
        super::images::copy(&super::images::project().join(part), &dir.path().join(part));
    }
    let image = format!("{}/{REPOSITORY}@sha256:{}", registry.host, pushed.index);
    let text = format!(
        "schema = 1\ndescription = \"a test\"\nreference = \"r.example.org/b:7\"\nimage = \"{image}\"\n"
    );
    fs_err::write(dir.path().join("images/containers/b.toml"), text).unwrap();
    let mut kiln = super::images::kiln();
    let run =
        Run::of(&kiln.args(["container", "build", "b", "--json", "-C"]).arg(dir.path()).output().unwrap())
            .ok();
    let (_, found) = only(run.json()[0]["path"].as_str().unwrap().as_ref());
    assert_eq!((found.name.as_deref(), found.digest()), (Some("r.example.org/b:7"), pushed.manifests[0]));
}

#[test]
fn a_connection_that_is_cut_is_taken_up_where_it_ended() {
    let registry = Registry::start(tools(), false);
    let pushed = push(&registry);
    let door = Door::before(&registry, Manner::Open);
    let env = Env::new();
    pull(&env, &door.host, pushed.manifests[0], &[]).ok();
    let whole = sha256(&out(&env, "amd64"));
    assert!(door.asked("/blobs/").iter().all(|asked| asked.range.is_none()));

    // Once the config, which is small, then the layer: whichever is cut first.
    let door = Door::before(&registry, Manner::CutOnce(100));
    let env = Env::new();
    pull(&env, &door.host, pushed.manifests[0], &[]).ok();
    assert!(
        door.asked("/blobs/").iter().any(|asked| asked.range.as_deref() == Some("bytes=100-")),
        "{door:?}"
    );
    let (_, found) = only(&out(&env, "amd64"));
    assert_eq!(found.digest(), pushed.manifests[0]);

    // What an earlier kiln left is taken up too.
    let env = Env::new();
    let blob = fs_err::read(registry.blob(pushed.layer)).unwrap();
    env.write(&format!("store/partial/{}", pushed.layer), &blob[..500_000]);
    let door = Door::before(&registry, Manner::Open);
    pull(&env, &door.host, pushed.manifests[0], &[]).ok();
    let ranges: Vec<_> = door.asked(&pushed.layer.to_string()).into_iter().map(|asked| asked.range).collect();
    assert_eq!(ranges, [Some("bytes=500000-".to_owned())]);
    let (_, found) = only(&out(&env, "amd64"));
    assert_eq!(
        (found.digest(), sha256(&out(&env, "amd64")) == whole),
        (pushed.manifests[0], false),
        "another host, another name"
    );
}

#[test]
fn what_was_damaged_in_the_registry_is_refused() {
    let registry = Registry::start(tools(), false);
    let pushed = push(&registry);
    let env = Env::new();
    pull(&env, &registry.host, Digest::of(b"nothing"), &[]).fails(4, &["404 Not Found"]);
    let damage = |digest: Digest| {
        let path = registry.blob(digest);
        let mut bytes = fs_err::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs_err::write(&path, bytes).unwrap();
    };
    damage(pushed.layer);
    pull(&env, &registry.host, pushed.manifests[0], &[]).fails(4, &["wrong digest", &pushed.layer.short()]);
    assert!(!out(&env, "amd64").exists());
    assert_eq!(files_below(&env.store().join("partial")).len(), 1, "an empty file to begin again with");
    // The registry looks at manifests itself; the door does not, so it serves another one under this name.
    damage(pushed.manifests[1]);
    let run = pull(&env, &registry.host, pushed.manifests[1], &["--arch", "arm64"]);
    assert_eq!(run.code, 4, "{}", run.text());
    assert_eq!(env.leftovers(), [""; 0]);
}

#[test]
fn a_password_opens_a_closed_registry_and_a_wrong_one_is_said_and_never_shown() {
    let registry = Registry::start(tools(), true);
    let pushed = push(&registry);
    let env = Env::new();
    pull(&env, &registry.host, pushed.index, &[]).fails(4, &["it wants a password", "KILN_REGISTRY_AUTH"]);
    password(&env, &registry.host, "guess me not");
    let run = pull(&env, &registry.host, pushed.index, &["-vv"]);
    let run = run.fails(4, &["it refuses the password of", ".docker/config.json"]);
    assert!(!run.text().contains("guess me not"), "{}", run.text());
    password(&env, "other.example.org", PASSWORD);
    pull(&env, &registry.host, pushed.index, &[]).fails(4, &["has none for"]);
    password(&env, &registry.host, PASSWORD);
    pull(&env, &registry.host, pushed.index, &[]).ok();
    assert_eq!(only(&out(&env, "amd64")).1.digest(), pushed.manifests[0]);

    // A file of one's own, which must be there once it is named.
    let env = Env::new();
    let reference = format!("{}/{REPOSITORY}@sha256:{}", registry.host, pushed.index);
    let with = |file: PathBuf| {
        let mut kiln = env.command();
        kiln.args(["container", "pull", &reference, "--out"])
            .arg(env.path("out"))
            .env("KILN_REGISTRY_AUTH", file);
        Run::of(&kiln.output().unwrap())
    };
    with(env.path("nowhere")).fails(1, &["cannot be read", "KILN_REGISTRY_AUTH names it"]);
    env.write("auth.json", "{\"auths\": {\"x\": 5}} hush");
    let run = with(env.path("auth.json")).fails(1, &["not a credentials file", "Docker's form"]);
    assert!(!run.text().contains("hush"), "{}", run.text());
    password(&env, &registry.host, PASSWORD);
    with(env.path("home/.docker/config.json")).ok();
    // Without a tag the image is known by its digest.
    assert_eq!(only(&out(&env, "amd64")).1.name, Some(reference.clone()));
}

#[test]
fn a_registry_that_wants_a_token_gets_the_one_that_its_service_gives() {
    let registry = Registry::start(tools(), false);
    let pushed = push(&registry);
    let door = Door::before(&registry, Manner::AnonymousToken);
    let env = Env::new();
    pull(&env, &door.host, pushed.index, &[]).ok();
    let asked = door.asked("/token?");
    assert_eq!(asked.len(), 1, "one token serves all: {asked:?}");
    assert!(
        asked[0].path.contains("service=door") && asked[0].path.contains("scope=repository%3Aa%2Fb%3Apull"),
        "{asked:?}"
    );
    assert_eq!(asked[0].authorization, None);

    let door = Door::before(&registry, Manner::Token);
    let env = Env::new();
    pull(&env, &door.host, pushed.index, &[]).fails(4, &["it wants a password"]);
    password(&env, &door.host, "guess me not");
    pull(&env, &door.host, pushed.index, &[]).fails(4, &["it refuses the password of"]);
    password(&env, &door.host, PASSWORD);
    pull(&env, &door.host, pushed.index, &[]).ok();
    assert_eq!(only(&out(&env, "amd64")).1.digest(), pushed.manifests[0]);
    // The password went to the token service and nowhere else.
    let shown = door.asked("/v2/").into_iter().filter_map(|asked| asked.authorization).collect::<Vec<_>>();
    assert!(!shown.is_empty() && shown.iter().all(|header| header == "Bearer T0KEN"), "{shown:?}");
}

#[test]
fn a_name_without_a_digest_or_a_manifest_that_is_none_is_refused() {
    let registry = Registry::start(tools(), false);
    let env = Env::new();
    for (reference, word) in
        [("busybox", "is no name of a container image"), ("r.example.org/a:1", "has no digest")]
    {
        env.kiln(&["container", "pull", reference, "--out", "out"]).fails(1, &[word]);
    }
    // An image with a layer in Docker's words, and an index for machines that there are not.
    let (layout, found) = only(&archives().join("pause-amd64.tar"));
    for blob in [&found.manifest.config].into_iter().chain(&found.manifest.layers) {
        let mut bytes = Vec::new();
        layout.copy(blob, &mut bytes).unwrap();
        registry.push_blob(REPOSITORY, &bytes);
    }
    let mut docker = found.manifest;
    docker.media_type = Some(DOCKER_MANIFEST.to_owned());
    docker.config.media_type = kiln::oci::types::DOCKER_CONFIG.to_owned();
    docker.layers[0].media_type = "application/vnd.docker.image.rootfs.diff.tar.gzip".to_owned();
    let bytes = serde_json::to_vec(&docker).unwrap();
    let digest = registry.push_manifest(REPOSITORY, DOCKER_MANIFEST, &bytes);
    pull(&env, &registry.host, digest, &[]).ok();
    assert_eq!(only(&out(&env, "amd64")).1.digest(), digest);
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {"mediaType": DOCKER_MANIFEST, "digest": format!("sha256:{digest}"), "size": bytes.len(), "platform": {"architecture": "s390x", "os": "linux"}}
    ]});
    let index = registry.push_manifest(REPOSITORY, INDEX, &serde_json::to_vec(&index).unwrap());
    pull(&env, &registry.host, index, &[])
        .fails(1, &["has no image for linux/amd64", "its index has: linux/s390x"]);
}

/// Puts the image of an archive there with another platform in its config; digest and length of its manifest.
fn push_for(registry: &Registry, platform: &serde_json::Value) -> (Digest, usize) {
    let (layout, found) = only(&archives().join("pause-amd64.tar"));
    for layer in &found.manifest.layers {
        let mut bytes = Vec::new();
        layout.copy(layer, &mut bytes).unwrap();
        registry.push_blob(REPOSITORY, &bytes);
    }
    let mut config = serde_json::to_value(&found.config).unwrap();
    for (key, value) in platform.as_object().unwrap() {
        config[key] = value.clone();
    }
    let config = serde_json::to_vec(&config).unwrap();
    registry.push_blob(REPOSITORY, &config);
    let mut manifest = found.manifest;
    (manifest.config.digest, manifest.config.size) = (Digest::of(&config), config.len() as u64);
    let bytes = serde_json::to_vec(&manifest).unwrap();
    (registry.push_manifest(REPOSITORY, MANIFEST, &bytes), bytes.len())
}

/// An entry of an index, with these further keys.
fn entry((digest, size): (Digest, usize), kind: &str, more: serde_json::Value) -> serde_json::Value {
    let mut entry =
        serde_json::json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": size});
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

fn push_index(registry: &Registry, kind: &str, entries: &[serde_json::Value]) -> (Digest, usize) {
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries});
    let bytes = serde_json::to_vec(&index).unwrap();
    (registry.push_manifest(REPOSITORY, kind, &bytes), bytes.len())
}

#[test]
fn the_image_of_a_machine_is_found_by_variant_by_config_and_in_inner_indexes() {
    use serde_json::json;
    let registry = Registry::start(tools(), false);
    let platform = |arch: &str, variant: &str| json!({"platform": {"os": "linux", "architecture": arch, "variant": variant}});
    let of = |arch: &str, variant: &str| json!({"os": "linux", "architecture": arch, "variant": variant});
    let plain = push_for(&registry, &json!({}));
    let v2 = push_for(&registry, &of("amd64", "v2"));
    let v3 = push_for(&registry, &of("amd64", "v3"));
    let arm = push_for(&registry, &of("arm64", "v8"));
    let windows = push_for(&registry, &json!({"os": "windows"}));
    // What BuildKit puts beside an image, and a signature.
    let about = push_for(&registry, &json!({"os": "unknown", "architecture": "unknown"}));
    registry.push_blob(REPOSITORY, b"{}");
    let artifact = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.example.signature",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": format!("sha256:{}", Digest::of(b"{}")), "size": 2},
        "layers": [{"mediaType": "text/plain", "digest": format!("sha256:{}", Digest::of(b"{}")), "size": 2}],
    }))
    .unwrap();
    let artifact = (registry.push_manifest(REPOSITORY, MANIFEST, &artifact), artifact.len());
    let noise = [
        entry(
            about,
            MANIFEST,
            json!({
                "platform": {"os": "unknown", "architecture": "unknown"},
                "annotations": {"vnd.docker.reference.type": "attestation-manifest"}
            }),
        ),
        entry(about, MANIFEST, json!({"annotations": {"vnd.docker.reference.type": "attestation-manifest"}})),
        entry(artifact, MANIFEST, json!({})),
        entry(
            windows,
            MANIFEST,
            json!({"platform": {"os": "windows", "architecture": "amd64", "os.version": "10.0.17763.1"}}),
        ),
    ];
    let index = |kind: &str, entries: Vec<serde_json::Value>| {
        push_index(&registry, kind, &[&noise[..], &entries].concat())
    };
    let inner = push_index(
        &registry,
        INDEX,
        &[entry(v3, MANIFEST, platform("amd64", "v3")), entry(plain, MANIFEST, json!({}))],
    );
    let none = json!({});
    for (name, index, arch, wanted, warning) in [
        (
            "v3 before v2",
            index(
                INDEX,
                vec![
                    entry(v3, MANIFEST, platform("amd64", "v3")),
                    entry(v2, MANIFEST, platform("amd64", "v2")),
                ],
            ),
            "amd64",
            v2,
            "linux/amd64/v2",
        ),
        (
            "all",
            index(
                INDEX,
                vec![
                    entry(v3, MANIFEST, platform("amd64", "v3")),
                    entry(plain, MANIFEST, platform("amd64", "v1")),
                ],
            ),
            "amd64",
            plain,
            "",
        ),
        (
            "v3 alone",
            index(INDEX, vec![entry(v3, MANIFEST, platform("amd64", "v3"))]),
            "amd64",
            v3,
            "linux/amd64/v3",
        ),
        (
            "no platform",
            index(INDEX, vec![entry(arm, MANIFEST, none.clone()), entry(plain, MANIFEST, none.clone())]),
            "amd64",
            plain,
            "",
        ),
        (
            "no platform, arm64",
            index(INDEX, vec![entry(plain, MANIFEST, none.clone()), entry(arm, MANIFEST, none.clone())]),
            "arm64",
            arm,
            "",
        ),
        (
            "empty platform, variants",
            index(
                INDEX,
                vec![
                    entry(v3, MANIFEST, json!({"platform": {}})),
                    entry(v2, MANIFEST, json!({"platform": {}})),
                ],
            ),
            "amd64",
            v2,
            "v2",
        ),
        (
            "uname's names",
            index(INDEX, vec![entry(arm, MANIFEST, platform("aarch64", "8"))]),
            "arm64",
            arm,
            "",
        ),
        ("an index inside", index(INDEX, vec![entry(inner, INDEX, none.clone())]), "amd64", v3, "v3"),
        (
            "an index inside, named",
            index(INDEX, vec![entry(inner, INDEX, platform("amd64", ""))]),
            "amd64",
            v3,
            "v3",
        ),
    ] {
        let env = Env::new();
        let run = pull(&env, &registry.host, index.0, &["--arch", arch]).ok();
        assert_eq!(only(&out(&env, arch)).1.digest(), wanted.0, "{name}: {}", run.text());
        let warned = run.stderr.contains("older processor");
        assert!(warned != warning.is_empty() && run.stderr.contains(warning), "{name}: {}", run.text());
    }
    let env = Env::new();
    let index =
        index(DOCKER_INDEX, vec![entry(arm, MANIFEST, platform("arm64", "v8")), entry(arm, MANIFEST, none)]);
    let run = pull(&env, &registry.host, index.0, &[])
        .fails(1, &["has no image for linux/amd64", "its index has: windows/amd64, linux/arm64/v8"]);
    assert!(!run.stderr.contains("unknown"), "{}", run.text());
    let deep = (0..5).fold(inner, |inner, _| push_index(&registry, INDEX, &[entry(inner, INDEX, json!({}))]));
    pull(&env, &registry.host, deep.0, &[]).fails(4, &["too deep"]);
    pull(&env, &registry.host, artifact.0, &[]).fails(1, &["is not a container image", "oci.empty"]);
}
