//! The verbs that look into images, on the images of this project; bills of materials are judged by programs of others.
//!
//! The judges are the reference implementations in Python: spdx-tools of the SPDX project and cyclonedx-python-lib, which has CycloneDX' own
//! JSON schemas; packageurl-python reads purls. They are installed by pip with pinned versions, once, into the folder of the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::common::images::{self, folder, kiln};
use crate::common::run::{Run, command, skipped};
use crate::common::tools::tool;

/// The judges, and with them all that they need.
const JUDGES: [&str; 3] =
    ["spdx-tools==0.8.5", "cyclonedx-python-lib[json-validation]==11.12.0", "packageurl-python==0.17.6"];

/// Reads bills named by its arguments: says for each what is wrong with it, and ends with 1 if something is.
const JUDGE: &str = r#"
import json, sys
from packageurl import PackageURL
bad = 0
def wrong(path, text):
    global bad
    bad += 1
    print(path, text)
for path in sys.argv[1:]:
    bill = json.load(open(path))
    if "spdxVersion" in bill:
        from spdx_tools.spdx.parser.parse_anything import parse_file
        from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document
        for message in validate_full_spdx_document(parse_file(path), "SPDX-2.3"):
            wrong(path, message.validation_message)
        purls = [r["referenceLocator"] for p in bill["packages"] for r in p.get("externalRefs", [])]
    else:
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator
        for error in JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(path).read(), all_errors=True) or []:
            wrong(path, str(error)[:500])
        purls = [c["purl"] for c in bill["components"] if "purl" in c]
    if len(purls) < 100:
        wrong(path, "has %d purls only" % len(purls))
    for text in purls:
        purl = PackageURL.from_string(text)
        again = PackageURL.from_string(purl.to_string())
        if purl != again:
            wrong(path, "%s is read in two ways" % text)
        q = purl.qualifiers
        if purl.type == "deb" and not (q.get("distro") == "debian-13" and q.get("arch") and "@" in q.get("upstream", "")):
            wrong(path, "%s lacks a qualifier" % text)
sys.exit(1 if bad else 0)
"#;

/// A Python with the judges; `None`, said aloud, where there is none and none can be made.
fn python() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER
        .get_or_init(|| install().map_err(|why| skipped(&format!("no judge of bills: {why}"))).ok())
        .as_deref()
}

/// Installs the judges into a folder, which is renamed when it is whole: another test binary may do the same.
fn install() -> Result<PathBuf, String> {
    let version: String =
        JUDGES.concat().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '.').collect();
    let to = folder().join(format!("judges-{version}"));
    if to.is_dir() {
        return Ok(to);
    }
    let staged = tempfile::tempdir_in(folder()).unwrap();
    let run = |program: &mut Command| match program.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(Run::of(&output).text()),
        Err(error) => Err(error.to_string()),
    };
    let pip = |pip: &Path| {
        let mut python = tool("python3");
        python.arg(pip).args(["install", "--quiet", "--no-input", "--disable-pip-version-check", "--target"]);
        run(python.arg(staged.path().join("site")).args(JUDGES))
    };
    // Debian's python3 comes without pip. Its package of pip's wheel needs nothing and runs from where it lies.
    pip(Path::new("-mpip")).or_else(|first| {
        let get = "apt-get -q download python3-pip-whl && dpkg-deb -x python3-pip-whl_*.deb wheel";
        run(command("sh").args(["-c", get]).current_dir(staged.path()))
            .map_err(|why| first.clone() + &why)?;
        let wheels = fs_err::read_dir(staged.path().join("wheel/usr/share/python-wheels")).unwrap();
        let mut wheels = wheels.map(|wheel| wheel.unwrap().path());
        let wheel = wheels.find(|path| path.to_string_lossy().contains("/pip-")).ok_or(first)?;
        pip(&wheel.join("pip"))
    })?;
    match fs_err::rename(staged.path(), &to) {
        Err(error) if !to.is_dir() => Err(error.to_string()),
        _ => Ok(to),
    }
}

/// What the judges say of bills; empty if they are right.
fn verdict(python: &Path, bills: &[PathBuf]) -> String {
    let mut judge = tool("python3");
    judge.args(["-c", JUDGE]).args(bills).env("PYTHONPATH", python.join("site"));
    // A parser of spdx-tools writes tables into the folder that it runs in.
    let run = Run::of(&judge.current_dir(python).output().unwrap());
    assert!(run.code == 0 || !run.stdout.is_empty(), "{}", run.text());
    run.stdout
}

/// The folder with both images, built if they are not there.
fn out() -> &'static Path {
    static OUT: OnceLock<PathBuf> = OnceLock::new();
    OUT.get_or_init(|| {
        for profile in PROFILES {
            images::image(profile, "amd64");
        }
        folder().join("out")
    })
}

const PROFILES: [&str; 2] = ["server", "agent"];

fn verb(args: &[&str]) -> Command {
    let mut command = kiln();
    command.arg("-C").arg(images::project()).args(args);
    command
}

#[track_caller]
fn ok(args: &[&str]) -> Run {
    Run::of(&verb(args).output().unwrap()).ok()
}

fn bill(profile: &str, format: &str) -> Value {
    let manifest = out().join(format!("{profile}.json"));
    ok(&["sbom", "--manifest", manifest.to_str().unwrap(), "--format", format]).json()
}

#[test]
fn bills_of_both_images_are_right_for_their_judges() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir_in(folder()).unwrap();
    let mut bills = Vec::new();
    for profile in PROFILES {
        for (format, end) in [("spdx", "spdx.json"), ("cyclonedx", "cdx.json")] {
            let path = dir.path().join(format!("{profile}.{end}"));
            fs_err::write(&path, bill(profile, format).to_string()).unwrap();
            bills.push(path);
        }
    }
    assert_eq!(verdict(python, &bills), "");

    // A bill with a fault is refused: a relation to nothing, a type that there is not, a purl without its source.
    for (path, fault, becomes) in [
        (&bills[0], "\"relatedSpdxElement\":\"SPDXRef-bash", "\"relatedSpdxElement\":\"SPDXRef-nothing"),
        (&bills[1], "\"type\":\"container\"", "\"type\":\"crate\""),
        (&bills[1], "&upstream=bash", "&upstram=bash"),
    ] {
        let text = fs_err::read_to_string(path).unwrap();
        assert!(text.contains(fault), "{fault}");
        let broken = dir.path().join(format!("broken-{}", path.file_name().unwrap().display()));
        fs_err::write(&broken, text.replace(fault, becomes)).unwrap();
        assert!(verdict(python, &[broken]).contains("broken-"), "{becomes} is not seen");
    }
}

#[test]
fn a_bill_leads_from_the_image_over_k3s_to_its_modules_and_leaves_nothing_out() {
    for profile in PROFILES {
        let bill = bill(profile, "cyclonedx");
        let manifest = images::manifest(profile, "amd64");
        let parts: BTreeMap<&str, &Value> = bill["components"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| (c["bom-ref"].as_str().unwrap(), c))
            .collect();
        let edges: BTreeMap<&str, BTreeSet<&str>> = bill["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| {
                let on = d["dependsOn"].as_array().unwrap().iter().map(|on| on.as_str().unwrap());
                (d["ref"].as_str().unwrap(), on.collect())
            })
            .collect();
        let image = bill["metadata"]["component"]["bom-ref"].as_str().unwrap();
        let of = |kind: &str, name: &str| {
            let found = parts.iter().find(|(_, part)| part["type"] == kind && part["name"] == name);
            *found.unwrap_or_else(|| panic!("{profile} has no {kind} {name}")).0
        };
        for (kind, name, inner) in [
            ("application", "k3s", &["github.com/k3s-io/k3s", "github.com/k3s-io/kine", "stdlib"][..]),
            ("application", "cni-flannel", &["github.com/containernetworking/cni"]),
            ("container", "coredns", &["github.com/coredns/coredns", "stdlib"]),
            ("container", "local-path-provisioner", &["github.com/rancher/local-path-provisioner"]),
            ("container", "metrics-server", &["sigs.k8s.io/metrics-server"]),
            ("container", "toolbox", &["busybox-static"]),
            ("container", "pause", &["catatonit"]),
        ] {
            let part = of(kind, name);
            assert!(edges[image].contains(part), "{name}");
            for inner in inner {
                assert!(edges[part].contains(of("library", inner)), "{name} has {inner}");
            }
        }
        let k3s = parts[of("application", "k3s")];
        assert_eq!(k3s["version"], manifest.k3s.as_ref().unwrap().version.as_str());
        if let Some(commit) = &manifest.k3s.as_ref().unwrap().commit {
            assert_eq!(k3s["pedigree"]["commits"][0]["uid"], commit.as_str());
        }
        let program = parts[of("file", "/usr/bin/k3s")];
        let files = kiln::manifest::read_files(&out().join(format!("{profile}.json"))).unwrap();
        let digest = files["/usr/bin/k3s"].sha256.unwrap().to_string();
        assert_eq!(program["hashes"][0]["content"], digest.as_str());
        // All of it is reached from the image, and all Debian packages are there with the digest of their .deb.
        let (mut seen, mut todo) = (BTreeSet::new(), vec![image]);
        while let Some(next) = todo.pop() {
            if seen.insert(next) {
                todo.extend(&edges[next]);
            }
        }
        assert_eq!(seen.len(), parts.len() + 1);
        for (name, info) in manifest.packages.iter().chain(&manifest.boot) {
            let part = parts[of("library", name)];
            assert_eq!(part["hashes"][0]["content"], info.sha256.to_string().as_str(), "{name}");
        }
        let system = parts[of("operating-system", "debian")];
        assert_eq!(system["version"], "13");
        // The other format has the same parts.
        let spdx = self::bill(profile, "spdx");
        assert_eq!(spdx["packages"].as_array().unwrap().len(), parts.len() + 1);
    }
}

/// Go's own reader of what is in its programs; only where there is a Go.
#[test]
fn modules_are_those_that_go_reads_out_of_the_program() {
    let go = ["/usr/local/go/bin/go", "/usr/bin/go"].map(Path::new).into_iter().find(|go| go.is_file());
    let Some(go) = go else { return skipped("this machine has no Go to compare modules with") };
    let manifest = images::manifest("server", "amd64");
    let root = super::extracted().join("root");
    for program in manifest.components.values().flat_map(|component| &component.programs) {
        let ours = program.go.as_ref().unwrap();
        let run = Run::of(
            &command(go).args(["version", "-m"]).arg(root.join(&program.path[1..])).output().unwrap(),
        );
        let said = run.ok().stdout;
        assert!(said.lines().next().unwrap().ends_with(&format!(": {}", ours.version)), "{said}");
        let mut theirs: Vec<(String, String)> = Vec::new();
        for line in said.lines().map(|line| line.trim().split('\t').collect::<Vec<_>>()) {
            match line.as_slice() {
                ["dep", path, version, ..] => theirs.push(((*path).to_owned(), (*version).to_owned())),
                ["=>", path, version, ..] => {
                    *theirs.last_mut().unwrap() = ((*path).to_owned(), (*version).to_owned());
                }
                _ => {}
            }
        }
        theirs.sort();
        theirs.dedup();
        let ours: Vec<_> = ours.modules.iter().map(|m| (m.path.clone(), m.version.clone())).collect();
        assert_eq!(ours, theirs, "{}", program.path);
    }
}

#[test]
fn why_knows_every_kind_of_thing_in_both_images() {
    let out = out().to_str().unwrap();
    for profile in PROFILES {
        let manifest = images::manifest(profile, "amd64");
        let k3s = manifest.k3s.as_ref().unwrap();
        let way = match &k3s.commit {
            Some(commit) => format!("of the commit {commit}"),
            None => k3s.sha256.to_string(),
        };
        let coredns = &manifest.containers["coredns"];
        for (what, words) in [
            ("/usr/bin/bash", &["from the package bash"][..]),
            ("runc", &["a Debian package", "images/k3s.toml installs runc"]),
            ("k3s", &["images/k3s.toml chooses in [k3s] the version", &way, "/usr/bin/k3s (go1."]),
            ("/usr/bin/kubectl", &["(link to k3s) is from k3s v1.", &way]),
            (
                "cni-flannel",
                &["images/k3s.toml names in `k3s.recipes`", "recipe images/recipes/cni-flannel builds"],
            ),
            (
                "coredns",
                &[
                    "a container image",
                    "has nodes bring by `k3s.containers`",
                    "recipe images/recipes/coredns",
                ],
            ),
            (&coredns.reference, &["coredns 1.12.1, a container image"]),
            (&coredns.file, &["is the container image coredns", "sha256:"]),
            ("pause", &["packages of the tool set container-pause", "catatonit"]),
            ("catatonit", &["images/containers/pause.toml", "in the container images: pause"]),
            ("busybox-static", &["images/tools.toml", "in the container images: toolbox"]),
            ("github.com/coredns/coredns", &["a Go module", "/coredns is linked with"]),
            ("/usr/share/kiln/k3s/config.yaml", &["made by kiln:k3s"]),
        ] {
            let args = ["why", what, "--profile", profile, "--out", out];
            let said = ok(&args).stdout;
            for word in words {
                assert!(said.contains(word), "{what}: `{word}` is not said:\n{said}");
            }
            let json = ok(&[&args[..], &["--json"]].concat()).json();
            assert_eq!(json[0]["profile"], profile, "{what}");
        }
        for (wrong, near) in
            [("k3", "k3s"), ("corends", "coredns"), ("cni-flanel", "cni-flannel"), ("bsah", "bash")]
        {
            Run::of(&verb(&["why", wrong, "--profile", profile, "--out", out]).output().unwrap())
                .fails(1, &[wrong, &format!("did you mean `{near}`?")]);
        }
    }
}

#[test]
fn every_verb_that_looks_answers_in_words_and_json_and_says_when_nobody_can_read_it() {
    let out = out();
    let [server, agent] = PROFILES.map(|profile| out.join(format!("{profile}.json")).display().to_string());
    let folder = tempfile::tempdir_in(folder()).unwrap();
    let at = folder.path().to_str().unwrap();
    let archive = ok(&["container", "build", "coredns", "--out", at]).stdout.trim().to_owned();
    let object = ok(&["store", "ls", "--json"]).json()[0]["path"].as_str().unwrap().to_owned();
    let out = out.to_str().unwrap();
    let verbs: [&[&str]; 15] = [
        &["diff", &server, &agent],
        &["diff", &server, &server],
        &["why", "k3s", "--out", out],
        &["why", "/usr/bin/bash", "--out", out],
        &["why", "coredns", "--out", out],
        &["kernel", "check"],
        &["kernel", "check", "--profile", "server"],
        &["kernel", "check", "--profile", "agent"],
        &["kernel", "diff", "server", &agent],
        &["kernel", "diff", &server, "agent"],
        &["container", "list"],
        &["container", "show", &archive],
        &["store", "why", &object],
        &["store", "du"],
        &["recipe", "list"],
    ];
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    for args in verbs {
        let said = ok(args).stdout;
        assert!(!said.trim().is_empty(), "{args:?} says nothing");
        let json = [args, &["--json"]].concat();
        ok(&json).json();
        for args in [args, json.as_slice()] {
            let run = Run::of(&verb(args).stdout(full()).stderr(Stdio::piped()).output().unwrap());
            assert_eq!(run.code, 6, "{args:?}: {}", run.text());
            assert!(run.stderr.contains("the result could not be written"), "{args:?}: {}", run.text());
        }
    }
    for format in ["spdx", "cyclonedx"] {
        let args = ["sbom", "--manifest", &server, "--format", format];
        let run = Run::of(&verb(&args).stdout(full()).stderr(Stdio::piped()).output().unwrap());
        assert_eq!(run.code, 6, "{format}: {}", run.text());
        let file = folder.path().join(format);
        ok(&[&args[..], &["--out", file.to_str().unwrap()]].concat());
        assert_eq!(fs_err::read_to_string(file).unwrap(), ok(&args).stdout);
    }
    let said = ok(&["diff", &server, &agent]).stdout;
    assert!(said.contains("profile: server -> agent") && !said.contains("packages:"), "{said}");
}

/// A manifest of before kinds were told apart: `flash` and `diff` still take it, and who needs the kinds says what to do.
#[test]
fn a_manifest_of_an_older_kiln_is_refused_with_the_way_out() {
    let folder = tempfile::tempdir_in(folder()).unwrap();
    let old = folder.path().join("server.json");
    let mut manifest: Value =
        serde_json::from_slice(&fs_err::read(out().join("server.json")).unwrap()).unwrap();
    manifest["schema"] = 1.into();
    for new in ["os", "components", "containers"] {
        manifest.as_object_mut().unwrap().remove(new);
    }
    fs_err::write(&old, manifest.to_string()).unwrap();
    fs_err::copy(out().join("server.files.json"), folder.path().join("server.files.json")).unwrap();
    let at = folder.path().to_str().unwrap();
    let words = ["is of an older kiln", "kiln build --profile server"];
    for args in [
        &["sbom", "--manifest", old.to_str().unwrap(), "--format", "spdx"][..],
        &["why", "bash", "--profile", "server", "--out", at],
    ] {
        Run::of(&verb(args).output().unwrap()).fails(1, &words);
    }
    ok(&["diff", old.to_str().unwrap(), out().join("server.json").to_str().unwrap()]);
}
