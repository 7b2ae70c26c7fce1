//! `kiln update k3s` where K3s can be built from source: the recipe's Go module moves with the release, or neither does.
//!
//! Release, module proxy and channel server are one server of the test; K3s and Kubernetes are modules of a few lines.

use std::collections::BTreeMap;

use kiln::digest::Digest;

use super::lab::Lab;
use super::modules::zip;
use crate::common::images;
use crate::common::k3s;
use crate::common::mirror::{Manner, Mirror};
use crate::common::run::{Run, command, files_below, program};

const OLD: &str = "v1.33.3+k3s1";
const NEW: &str = "v1.33.4+k3s1";
/// What a proxy makes of upstream's tag, which is no version of a Go module.
const PSEUDO: &str = "v1.33.4-0.20250830101112-0123456789ab";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const K3S_MOD: &str = "module github.com/k3s-io/k3s

go 1.24

replace k8s.io/kubernetes => github.com/k3s-io/kubernetes v1.33.2-k3s1 // behind its release

require (
	github.com/containerd/containerd/v2 v2.0.6
	k8s.io/kubernetes v1.33.2
)
";

/// A module on a proxy (<https://go.dev/ref/mod#goproxy-protocol>), with one package in it.
fn module(name: &str, version: &str, go_mod: &str, package: &str, code: &str) -> Vec<(String, Vec<u8>)> {
    let inside = |file: &str| format!("{name}@{version}/{file}");
    let files = [(inside("go.mod"), go_mod.as_bytes()), (inside(package), code.as_bytes())];
    let info = format!("{{\"Version\":\"{version}\",\"Time\":\"2025-08-30T10:11:12Z\"}}");
    [("info", info.into_bytes()), ("mod", go_mod.into()), ("zip", zip(&files))]
        .map(|(kind, bytes)| (format!("{name}/@v/{version}.{kind}"), bytes))
        .into()
}

fn server() -> Mirror {
    let mut files = k3s::release(OLD, "v2.0.5-k3s1", "1.12.1");
    files.extend(k3s::release(NEW, "v2.0.6-k3s1", "1.12.3"));
    files.insert("channels".to_owned(), k3s::channels(&[("v1.33", NEW)]));
    let hello = "package hello\n\nimport (\n\t\"github.com/containerd/containerd/v2/word\"\n\t\"k8s.io/kubernetes/version\"\n)\n\n\
                 const Word = \"K3s with \" + version.Word + \" and \" + word.Word\n";
    files.extend(module("github.com/k3s-io/k3s", PSEUDO, K3S_MOD, "hello/hello.go", hello));
    let tag = format!(
        "{{\"Version\":\"{PSEUDO}\",\"Time\":\"2025-08-30T10:11:12Z\",\"Origin\":{{\"Hash\":\"{COMMIT}\"}}}}"
    );
    files.insert(format!("github.com/k3s-io/k3s/@v/{NEW}.info"), tag.into_bytes());
    let version = "package version\n\nconst Word = \"1.33.4\"\n";
    let go_mod = "module k8s.io/kubernetes\n\ngo 1.24\n";
    files.extend(module(
        "github.com/k3s-io/kubernetes",
        "v1.33.4-k3s1",
        go_mod,
        "version/version.go",
        version,
    ));
    let word = "package word\n\nconst Word = \"containerd\"\n";
    let go_mod = "module github.com/containerd/containerd/v2\n\ngo 1.24\n";
    files.extend(module("github.com/containerd/containerd/v2", "v2.0.6", go_mod, "word/word.go", word));
    Mirror::serve(&files)
}

/// A project whose release and recipe are [`OLD`].
fn lab(mirror: &Mirror) -> Lab {
    let script = "cp -r /inputs/recipe/module src\nln -s /inputs/modules src/vendor\ncd src\n\
                  go build -mod=vendor -trimpath -o hello .\n./hello 2>\"$KILN_OUT/result\"\n\
                  echo \"$K3S_VERSION $K3S_COMMIT\" >>\"$KILN_OUT/result\"\n";
    let env = format!(
        "# Moves with images/k3s.toml.\n[env]\nCGO_ENABLED = \"0\"\nGOCACHE = \"/build/cache\"\nGOPROXY = \"off\"\nGOTOOLCHAIN = \"local\"\n\
         K3S_VERSION = \"{OLD}\" # of the release\nK3S_COMMIT = \"fedcba9876543210\"\n"
    );
    let inputs =
        format!("[inputs]\nmodules = {{ go-modules = \"module\", sha256 = \"{}\" }}\n", Digest::of(b"old"));
    let lab = Lab::of("toy-k3s", script, &format!("time = \"2025-07-26T02:08:27Z\"\n{env}{inputs}"));
    let text = lab.read("toy-k3s", "recipe.toml");
    lab.file(
        "toy-k3s",
        "recipe.toml",
        text.replace("build-c", "build-go").replace("a test", &format!("K3s {OLD}")),
    );
    let require = "github.com/containerd/containerd/v2 v2.0.5 // indirect\n\tgithub.com/k3s-io/k3s v1.33.3\n\texample.test/gone v1.0.0 // indirect";
    lab.file(
        "toy-k3s",
        "module/go.mod",
        format!("module kiln.invalid/toy\n\ngo 1.24\n\nrequire (\n\t{require}\n)\n"),
    );
    lab.file("toy-k3s", "module/go.sum", "");
    let main =
        "package main\n\nimport \"github.com/k3s-io/k3s/hello\"\n\nfunc main() {\n\tprintln(hello.Word)\n}\n";
    lab.file("toy-k3s", "module/main.go", main);
    // Of the project's own layer, only what is about the release.
    let path = lab.path("project/images/k3s.toml");
    let layer = k3s::layer(mirror, OLD);
    let release = layer.split_once("\n\n[k3s.release]\n").unwrap().1;
    let own = fs_err::read_to_string(&path).unwrap();
    let (head, rest) = own.split_once("[k3s.release]\n").unwrap();
    let rest = rest.split_once("\n\n").unwrap().1;
    let head = head.lines().map(|line| match line.split(' ').next() {
        Some("version") => format!("version = \"{OLD}\"\n"),
        Some("source") => "source = [\"toy-k3s\"]   # where nobody has it\n".to_owned(),
        _ => format!("{line}\n"),
    });
    fs_err::write(path, format!("{}[k3s.release]\n{release}\n{rest}", head.collect::<String>())).unwrap();
    lab
}

fn update(lab: &Lab, proxy: &str, args: &[&str]) -> Run {
    let mut command = command(program());
    command
        .env_clear()
        .env("HOME", lab.path(""))
        .env("PATH", "/usr/bin:/bin")
        .env("KILN_STORE", images::store());
    command.env("GOPROXY", proxy).env("GONOSUMDB", "*").arg("-C").arg(lab.path("project"));
    Run::of(&command.args(["update", "k3s"]).args(args).output().unwrap())
}

/// Every file of the project's images/ with its bytes.
fn files(lab: &Lab) -> BTreeMap<String, Vec<u8>> {
    let folder = lab.path("project/images");
    files_below(&folder)
        .into_iter()
        .map(|name| (name.clone(), fs_err::read(folder.join(name)).unwrap()))
        .collect()
}

#[test]
fn release_and_source_move_together_and_what_was_fetched_is_built() {
    let mirror = server();
    let lab = lab(&mirror);
    let before = files(&lab);
    let run = update(&lab, &mirror.base, &["--json"]).ok();
    let report = run.json();
    assert_eq!(report["source"]["version"], PSEUDO, "{}", run.text());
    assert_eq!(report["source"]["commit"], COMMIT);
    let after = files(&lab);
    let changed: Vec<&str> = after
        .iter()
        .filter(|(name, bytes)| before.get(*name) != Some(bytes))
        .map(|(name, _)| name.as_str())
        .collect();
    let recipe = "recipes/toy-k3s";
    assert_eq!(
        changed,
        [
            "k3s.toml",
            &format!("{recipe}/module/go.mod"),
            &format!("{recipe}/module/go.sum"),
            &format!("{recipe}/recipe.toml")
        ]
    );
    assert_eq!(before.len(), after.len());
    let go_mod = lab.read("toy-k3s", "module/go.mod");
    for line in [
        "replace k8s.io/kubernetes => github.com/k3s-io/kubernetes v1.33.4-k3s1",
        &format!("require github.com/k3s-io/k3s {PSEUDO}"),
        "github.com/containerd/containerd/v2 v2.0.6 // indirect",
        "k8s.io/kubernetes v1.33.4 // indirect",
    ] {
        let flat = go_mod.replace("(\n\t", "").replace("\n)", "");
        assert!(flat.contains(line), "`{line}` is not in\n{go_mod}");
    }
    assert!(!go_mod.contains("example.test/gone"), "{go_mod}");
    let toml = lab.read("toy-k3s", "recipe.toml");
    for line in [
        "# Moves with images/k3s.toml.\n",
        &format!("description = \"K3s {NEW}\"\n"),
        "time = \"2025-08-30T10:11:12Z\"\n",
        &format!("K3S_VERSION = \"{NEW}\" # of the release\nK3S_COMMIT = \"{COMMIT}\"\n"),
    ] {
        assert!(toml.contains(line), "`{line}` is not in\n{toml}");
    }

    // The digest is that of what was fetched, which is not fetched again.
    let asked = mirror.asked("").len();
    assert_eq!(lab.result("toy-k3s"), format!("K3s with 1.33.4 and containerd\n{NEW} {COMMIT}\n"));
    assert_eq!(mirror.asked("").len(), asked);
    let run = update(&lab, &mirror.base, &[]).ok();
    assert!(run.stdout.contains("is up to date"), "{}", run.text());
}

#[test]
fn without_its_source_nothing_moves_unless_the_source_may_go() {
    let mirror = server();
    let lab = lab(&mirror);
    let before = files(&lab);
    let gone = [
        "the source of K3s v1.33.4+k3s1 cannot be had as Go modules",
        "--commit REV",
        "--no-source",
        "nothing was written",
    ];
    update(&lab, "http://127.0.0.1:9", &[]).fails(4, &gone);
    // The release is there, K3s' module too, and one that it needs is not.
    mirror.answer("containerd/v2/@v/v2.0.6.zip", Manner::Missing);
    update(&lab, &mirror.base, &[])
        .fails(4, &["finding out what K3s v1.33.4+k3s1 needs", "404", "--no-source"]);
    mirror.answer("v1.33.4+k3s1.info", Manner::Missing);
    update(&lab, &mirror.base, &[]).fails(4, &gone);
    update(&lab, &mirror.base, &["--commit", "$(touch x)"]).fails(1, &["is no revision"]);
    assert_eq!(files(&lab), before);
    // Another revision that the proxy has, which nobody but the person can know to be the same.
    mirror.answer("v2.0.6.zip", Manner::Good);
    let run = update(&lab, &mirror.base, &["--commit", PSEUDO]).ok();
    assert!(run.stdout.contains("containerd v2.0.5 -> v2.0.6-k3s1"), "{}", run.text());
    assert!(lab.read("toy-k3s", "recipe.toml").contains("K3S_COMMIT = \"0123456789ab\""));
}

#[test]
fn a_recipe_of_another_version_is_named() {
    let mirror = server();
    let lab = lab(&mirror);
    let text = lab
        .read("toy-k3s", "recipe.toml")
        .replace(&format!("K3S_VERSION = \"{OLD}\""), "K3S_VERSION = \"v1.33.1+k3s1\"");
    lab.file("toy-k3s", "recipe.toml", &text);
    let before = files(&lab);
    update(&lab, &mirror.base, &[])
        .fails(1, &["images/recipes/toy-k3s/recipe.toml: `env.K3S_VERSION` is v1.33.1+k3s1", "the same K3s"]);
    lab.file("toy-k3s", "recipe.toml", text.replace("K3S_VERSION = ", "OTHER = "));
    update(&lab, &mirror.base, &[]).fails(1, &["no recipe of `k3s.source` has K3S_VERSION", "--no-source"]);
    lab.file("toy-k3s", "recipe.toml", &text);
    assert_eq!(files(&lab), before);
}
