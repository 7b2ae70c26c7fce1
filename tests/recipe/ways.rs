//! The two ways of K3s into an image: a release by digest from a server on loopback, and a recipe.
//!
//! Release and recipe are toys, so that neither upstream nor a quarter of an hour is needed; what is made of them is a whole image.

use std::collections::BTreeMap;

use kiln::digest::Digest;
use kiln::k3s::Way;
use kiln::manifest::{self, Manifest};

use super::lab::Lab;
use crate::common::images;
use crate::common::mirror::{Manner, Mirror};
use crate::common::run::Run;

const VERSION: &str = "v1.33.3+k3s1";

/// As upstream's is: a program with a compressed archive of programs in it.
fn release() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for name in ["./bin/k3s", "./bin/containerd-shim-runc-v2"] {
        let text = format!("#!/bin/sh\n# of the release {VERSION}\n");
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    let archive = zstd::encode_all(tar.into_inner().unwrap().as_slice(), 3).unwrap();
    // Another in each run: what an earlier one left in the store does not count.
    let run = tempfile::tempdir().unwrap().path().display().to_string();
    [b"\x7fELF the wrapper ", run.as_bytes(), &archive, b" and its constants"].concat()
}

/// A project whose release lies at `url` and should have `digest`, and whose recipe for K3s takes a moment.
fn lab(url: &str, digest: Digest) -> Lab {
    let lab = Lab::of(
        "toy-k3s",
        "mkdir -p $KILN_OUT/usr/bin; cd $KILN_OUT/usr/bin\n\
         printf '#!/bin/sh\\n# from source\\n' >k3s; chmod 755 k3s; cp k3s containerd-shim-runc-v2\n\
         for name in containerd crictl ctr kubectl; do ln -s k3s $name; done\n",
        "[env]\nK3S_COMMIT = \"0123456789abcdef\"\n",
    );
    let recipe =
        lab.read("toy-k3s", "recipe.toml").replace("outputs = [\"result\"]", "outputs = [\"usr/bin\"]");
    lab.file("toy-k3s", "recipe.toml", recipe);
    let path = lab.path("project/images/k3s.toml");
    let mut text = String::new();
    for line in fs_err::read_to_string(&path).unwrap().lines() {
        let line = match line.split(' ').next().unwrap() {
            "source" => "source = [\"toy-k3s\"]".to_owned(),
            "urls" => format!("urls = [\"{url}\"]"),
            "amd64" => format!("amd64 = {{ name = \"k3s\", sha256 = \"{digest}\" }}"),
            _ => line.to_owned(),
        };
        text.push_str(&format!("{line}\n"));
    }
    fs_err::write(path, text).unwrap();
    lab
}

fn build(lab: &Lab, args: &[&str]) -> Run {
    let mut command = images::kiln();
    command.args(["build", "--profile", "server", "-C"]).arg(lab.path("project"));
    command.arg("--out").arg(lab.path("out")).args(args);
    Run::of(&command.output().unwrap())
}

fn baked(lab: &Lab) -> (Manifest, String) {
    let path = lab.path("out/server.json");
    let files = manifest::read_files(&path).unwrap();
    let program = files["/usr/bin/k3s"].sha256.unwrap();
    (manifest::read(&path).unwrap(), program.to_string())
}

fn mirror(release: &[u8]) -> Mirror {
    Mirror::serve(&BTreeMap::from([("k3s".to_owned(), release.to_vec())]))
}

#[test]
fn a_release_goes_into_the_image_by_its_digest_and_is_fetched_once() {
    let release = release();
    let mirror = mirror(&release);
    let lab = lab(&mirror.base, Digest::of(&release));
    build(&lab, &[]).ok();
    let (manifest, program) = baked(&lab);
    let origin = manifest.k3s.unwrap();
    assert_eq!((origin.way, origin.version.as_str(), origin.commit), (Way::Binary, VERSION, None));
    assert_eq!(origin.sha256, Digest::of(&release));
    assert_eq!(
        program,
        Digest::of(format!("#!/bin/sh\n# of the release {VERSION}\n").as_bytes()).to_string()
    );
    assert_eq!(manifest.components["k3s"].version, VERSION);
    let asked = mirror.asked("k3s").len();
    let run = build(&lab, &["--no-fallback", "--check"]).ok();
    assert!(run.stderr.contains("Unchanged") && run.stderr.contains("Reproduced"), "{}", run.text());
    assert_eq!(mirror.asked("k3s").len(), asked, "it is in the store");

    // The other way makes another image, and leads back again.
    build(&lab, &["--source", "k3s"]).ok();
    let (manifest, other) = baked(&lab);
    let origin = manifest.k3s.unwrap();
    assert_eq!((origin.way, origin.commit.as_deref()), (Way::Source, Some("0123456789abcdef")));
    assert_ne!(program, other);
}

#[test]
fn where_nobody_has_the_release_it_is_built_from_source_or_not_at_all() {
    let release = release();
    let mirror = mirror(&release);
    mirror.answer("k3s", Manner::Missing);
    let lab = lab(&mirror.base, Digest::of(&release));
    build(&lab, &["--no-fallback"])
        .fails(4, &["K3s v1.33.3+k3s1 (k3s) cannot be had", "it is not there", "--source k3s"]);
    let run = build(&lab, &[]).ok();
    assert!(run.stderr.contains("out of reach, so it is built from source"), "{}", run.text());
    assert_eq!(baked(&lab).0.k3s.unwrap().way, Way::Source);
    // What was built is taken from now on, without asking.
    let asked = mirror.asked("k3s").len();
    let run = build(&lab, &[]).ok();
    assert!(!run.stderr.contains("out of reach"), "{}", run.text());
    assert_eq!(mirror.asked("k3s").len(), asked);
}

#[test]
fn where_nobody_has_the_release_nor_the_modules_of_its_source_one_screen_says_so() {
    let release = release();
    let mirror = mirror(&release);
    mirror.answer("k3s", Manner::Missing);
    let lab = lab(&mirror.base, Digest::of(&release));
    let recipe = lab.read("toy-k3s", "recipe.toml").replace("build-c", "build-go");
    lab.file(
        "toy-k3s",
        "recipe.toml",
        format!("{recipe}[inputs.modules]\ngo-modules = \"program\"\nsha256 = \"{}\"\n", "0".repeat(64)),
    );
    lab.file(
        "toy-k3s",
        "program/go.mod",
        "module example.test/k3s\n\ngo 1.24\n\nrequire example.test/of-k3s v1.0.0\n",
    );
    let sum = format!("h1:{}=", "A".repeat(43));
    let sums = format!("example.test/of-k3s v1.0.0 {sum}\nexample.test/of-k3s v1.0.0/go.mod {sum}\n");
    lab.file("toy-k3s", "program/go.sum", sums);
    lab.file(
        "toy-k3s",
        "program/main.go",
        "package main\n\nimport _ \"example.test/of-k3s\"\n\nfunc main() {}\n",
    );
    // A port on which nobody listens.
    let proxy = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = images::kiln();
    command.args(["build", "--profile", "server", "-C"]).arg(lab.path("project"));
    command.arg("--out").arg(lab.path("out")).env("GOPROXY", format!("http://{proxy}")).env("GONOSUMDB", "*");
    let run =
        Run::of(&command.output().unwrap()).fails(4, &["example.test/of-k3s", "k3s", &proxy.to_string()]);
    assert!(run.stderr.lines().count() <= 24, "{}", run.text());
    assert!(!lab.path("out/server.raw").exists());
}

#[test]
fn a_release_with_other_bytes_is_no_reason_to_go_the_other_way() {
    let release = release();
    let mirror = mirror(&release);
    mirror.answer("k3s", Manner::Flipped);
    let lab = lab(&mirror.base, Digest::of(&release));
    let run = build(&lab, &[]);
    run.fails(4, &["cannot be had", "wrong digest", "nothing is put in their place"]);
    assert!(!lab.path("out/server.raw").exists());
    assert_eq!(lab.state("toy-k3s"), "missing", "nothing was built in its place");
}

#[test]
fn a_release_that_holds_no_k3s_or_another_is_refused() {
    let bytes = b"<html>this is no release</html>".to_vec();
    let mirror = mirror(&bytes);
    build(&lab(&mirror.base, Digest::of(&bytes)), &[])
        .fails(1, &["is not what it should be", "no archive of programs in it"]);
}
