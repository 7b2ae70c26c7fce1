//! What kiln composes is what others read, and the same everywhere.

use std::path::Path;

use kiln::exec::{Command, Tool};

use super::common::images;
use super::common::run::{Run, command, program};
use super::{archives, only, sha256, tools};

fn judge(program: &str) -> Command {
    Tool::from_tree(tools(), program).unwrap().command()
}

fn json(command: &Command) -> serde_json::Value {
    serde_json::from_slice(&command.read().unwrap_or_else(|e| panic!("{e}"))).unwrap()
}

/// skopeo would have refused an index, manifest or config that breaks the specification, and a digest that does not fit.
#[test]
fn skopeo_reads_the_archive_as_ocis_and_as_dockers() {
    let tmp = tempfile::tempdir_in(images::folder()).unwrap();
    for (name, tag) in [("pause", "3.10"), ("toolbox", "1"), ("nfs", "1")] {
        for arch in ["amd64", "arm64"] {
            let path = archives().join(format!("{name}-{arch}.tar"));
            let (_, found) = only(&path);
            let look = |kind: &str, more: &str| {
                let mut skopeo = judge("usr/bin/skopeo").env("TMPDIR", tmp.path());
                skopeo = skopeo.args(["--override-arch", arch, "inspect"]);
                json(&skopeo.arg(format!("{kind}:{}{more}", path.display())))
            };
            let said = look("oci-archive", &format!(":{tag}"));
            assert_eq!(said["Digest"], format!("sha256:{}", found.digest()), "{said}");
            assert_eq!((said["Architecture"].as_str(), said["Os"].as_str()), (Some(arch), Some("linux")));
            assert_eq!(said["Layers"][0], format!("sha256:{}", found.manifest.layers[0].digest));
            let said = look("docker-archive", &format!(":kiln.invalid/{name}:{tag}"));
            assert_eq!(said["Architecture"], arch, "{said}");
        }
    }
}

/// umoci would have seen a layer whose bytes are not what the config says, and entries that no tar tool unpacks.
#[test]
fn umoci_unpacks_the_root_and_its_programs_run_in_it() {
    let out = tempfile::tempdir_in(images::folder()).unwrap();
    for (name, tag) in [("pause", "3.10"), ("toolbox", "1"), ("nfs", "1")] {
        let mut kiln = images::kiln();
        kiln.args(["container", "build", name, "--layout", "--out"]).arg(out.path()).arg("-C");
        Run::of(&kiln.arg(images::project()).output().unwrap()).ok();
        let layout = out.path().join(format!("{name}-amd64"));
        let (_, found) = only(&layout);
        assert_eq!(found.digest(), only(&archives().join(format!("{name}-amd64.tar"))).1.digest());
        let image = format!("{}:{tag}", layout.display());
        judge("usr/bin/umoci").args(["stat", "--json", "--image", &image]).run().unwrap();
        let root = out.path().join(name);
        let mut unpack = judge("usr/bin/umoci").args(["raw", "unpack", "--rootless", "--image", &image]);
        unpack = unpack.arg(&root);
        unpack.run().unwrap_or_else(|e| panic!("{e}"));
        // A static program runs anywhere; one with libraries needs the root as its own.
        let busybox = root.join("usr/bin/busybox");
        if name == "pause" {
            Run::of(&command(root.join("usr/bin/catatonit")).arg("-V").output().unwrap()).ok();
            continue;
        }
        let list = Run::of(&command(&busybox).arg("--list").output().unwrap()).ok().stdout;
        let mut links = 0;
        for entry in fs_err::read_dir(root.join("usr/bin")).unwrap() {
            let entry = entry.unwrap();
            let applet = entry.file_name().into_string().unwrap();
            if entry.path().is_symlink() {
                assert_eq!(fs_err::read_link(entry.path()).unwrap(), Path::new("busybox"));
                assert!(list.lines().any(|known| known == applet), "busybox has no {applet}");
                links += 1;
            }
        }
        assert!(links > 80);
        let mode = |path: &str| {
            use std::os::unix::fs::PermissionsExt;
            fs_err::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777
        };
        assert_eq!((mode("tmp"), mode("root"), mode("usr/bin/busybox")), (0o1777, 0o700, 0o755));
        if name == "nfs" {
            let program = Tool::from_tree(&root, "usr/sbin/mount.nfs").unwrap();
            let said = program.command().arg("-V").read().unwrap();
            assert!(String::from_utf8_lossy(&said).contains("nfs-utils"));
            assert_eq!(mode("usr/bin/mount"), 0o755, "no set-id bit");
        }
    }
}

#[test]
fn another_folder_umask_zone_and_store_give_the_same_bytes() {
    archives();
    let dir = tempfile::Builder::new().prefix("another, ").tempdir_in(images::folder()).unwrap();
    for part in ["images", "profiles", "qemu"] {
        images::copy(&images::project().join(part), &dir.path().join("project").join(part));
    }
    // Another store, with the same objects: links, since nobody writes to them.
    let (from, to) = (images::store().join("objects"), dir.path().join("store/objects"));
    fs_err::create_dir_all(to.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(from, to).unwrap();
    let mut build = command("sh");
    build
        .args(["-c", "umask 077; exec \"$0\" \"$@\""])
        .arg(program())
        .args(["container", "build", "pause", "toolbox", "nfs", "-C", "project", "--out", "out"])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", dir.path())
        .env("KILN_STORE", dir.path().join("store"))
        .env("TZ", "Asia/Kathmandu")
        .env("LC_ALL", "tr_TR.UTF-8")
        .env("SOURCE_DATE_EPOCH", "1")
        .current_dir(dir.path());
    Run::of(&build.output().unwrap()).ok();
    for name in ["pause", "toolbox", "nfs"] {
        let file = format!("{name}-amd64.tar");
        assert_eq!(sha256(&archives().join(&file)), sha256(&dir.path().join("out").join(&file)), "{name}");
    }
}

/// A project in which `images/containers/x.toml` says `text`; what kiln says of it.
fn with(text: &str) -> Run {
    let dir = tempfile::tempdir_in(images::folder()).unwrap();
    for part in ["images", "profiles", "qemu"] {
        images::copy(&images::project().join(part), &dir.path().join(part));
    }
    let text = format!("schema = 1\ndescription = \"a test\"\n{text}");
    fs_err::write(dir.path().join("images/containers/x.toml"), text).unwrap();
    let mut kiln = images::kiln();
    Run::of(&kiln.args(["container", "build", "x", "-C"]).arg(dir.path()).output().unwrap())
}

#[test]
fn what_is_wrong_with_a_container_is_named() {
    let name = "reference = \"kiln.invalid/x:1\"\n";
    for (text, words) in [
        (
            "reference = \"x:1\"\nset = \"container-pause\"\n".to_owned(),
            &["`reference`", "is no name of a container image"][..],
        ),
        (
            "reference = \"kiln.invalid/x\"\nset = \"container-pause\"\n".to_owned(),
            &["has a tag and no digest"],
        ),
        (
            "reference = \"kiln.invalid/nfs:1\"\nset = \"container-pause\"\n".to_owned(),
            &["have the same `reference`"],
        ),
        (name.to_owned(), &["either put together"]),
        (
            format!("{name}set = \"container-pouse\"\n"),
            &["no tool set `container-pouse`", "did you mean `container-pause`?"],
        ),
        (format!("{name}image = \"r.example.org/a:1\"\n"), &["has no digest"]),
        (
            format!("{name}set = \"container-pause\"\nkeep = [\"/bin/catatonit\"]\n"),
            &["nothing of the packages is `/bin/catatonit`", "/usr/bin and not /bin"],
        ),
        (
            format!("{name}set = \"container-nfs\"\nkeep = [\"/usr/sbin/mount.nfs\"]\n"),
            &["lacks what its programs need", "/usr/sbin/mount.nfs"],
        ),
        (format!("{name}recipe = \"nosuch\"\n"), &["nosuch"]),
        (format!("{name}set = \"container-pause\"\nfiles.\"/a\" = {{}}\n"), &["exactly one of"]),
    ] {
        with(&text).fails(1, words);
    }
}

#[test]
fn a_list_says_what_there_is() {
    archives();
    let mut kiln = images::kiln();
    let run =
        Run::of(&kiln.args(["container", "list", "--json", "-C"]).arg(images::project()).output().unwrap())
            .ok();
    let rows = run.json();
    let pause = rows.as_array().unwrap().iter().find(|row| row["name"] == "pause").unwrap();
    assert_eq!(
        (pause["reference"].as_str(), pause["built"].as_bool()),
        (Some("kiln.invalid/pause:3.10"), Some(true))
    );
    let shown = Run::of(
        &images::kiln().args(["container", "show"]).arg(archives().join("pause-arm64.tar")).output().unwrap(),
    )
    .ok();
    assert!(shown.stdout.contains("kiln.invalid/pause:3.10  linux/arm64  sha256:"), "{}", shown.text());
}

/// A copy of the project with a recipe `hello` that leaves a text and a program of this machine, and the container `x`.
fn with_recipe(text: &str, arch: &str) -> Run {
    let dir = tempfile::tempdir_in(images::folder()).unwrap();
    for part in ["images", "profiles", "qemu"] {
        images::copy(&images::project().join(part), &dir.path().join(part));
    }
    let write = |name: &str, text: &str| {
        let path = dir.path().join("images").join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    };
    let head = "schema = 1\ndescription = \"a test\"\n";
    write(
        "recipes/hello/recipe.toml",
        &format!("{head}tools = \"build-c\"\nscript = \"build.sh\"\noutputs = [\"etc\", \"opt\"]\n"),
    );
    write(
        "recipes/hello/build.sh",
        "mkdir -p $KILN_OUT/etc $KILN_OUT/opt\necho hello > $KILN_OUT/etc/hello\ncp /usr/bin/true $KILN_OUT/opt/true\n",
    );
    write(
        "containers/x.toml",
        &format!("{head}reference = \"kiln.invalid/x:1\"\nrecipe = \"hello\"\n{text}"),
    );
    let mut kiln = images::kiln();
    kiln.args(["container", "build", "x", "--arch", arch, "-C"]);
    Run::of(&kiln.arg(dir.path()).output().unwrap())
}

#[test]
fn what_a_recipe_builds_is_put_in_and_a_program_of_another_machine_is_refused() {
    let text = "set = \"container-toolbox\"\nkeep = [\"/usr/bin/busybox\", \"/etc/*\"]\n";
    let run = with_recipe(text, "arm64").ok();
    let (layout, found) = only(run.stdout.trim().as_ref());
    let mut layer = Vec::new();
    layout.copy(&found.manifest.layers[0], &mut layer).unwrap();
    let mut archive = tar::Archive::new(layer.as_slice());
    let entries = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        (entry.path().unwrap().display().to_string(), entry.header().uid().unwrap())
    });
    let entries: Vec<(String, u64)> = entries.collect();
    let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["bin", "etc/", "etc/hello", "usr/", "usr/bin/", "usr/bin/busybox"]);
    assert!(entries.iter().all(|(_, uid)| *uid == 0));
    with_recipe("", "arm64").fails(1, &["/opt/true: it is a program for another machine than arm64"]);
    with_recipe("", "amd64").fails(1, &["/opt/true", "add the package to its tool set"]);
}

#[test]
fn what_an_image_depends_on_is_known_without_anything_being_there() {
    let project = kiln::spec::Project::load(images::project()).unwrap();
    let locked = kiln::lock::Lock::load(&project.dir).unwrap().check(&project).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = kiln::store::Store::open(dir.path()).unwrap();
    let ui = kiln::ui::Ui::new(kiln::ui::Verbosity::Quiet, false);
    let of = |project: &kiln::spec::Project, name: &str, arch| {
        let work = kiln::packages::Work { project, locked: &locked, store: &store, ui: &ui, threads: 1 };
        kiln::oci::digest(&work, name, arch).unwrap()
    };
    let (amd64, arm64) = (kiln::arch::Arch::Amd64, kiln::arch::Arch::Arm64);
    let pause = of(&project, "pause", amd64);
    assert_eq!(pause, of(&project, "pause", amd64));
    assert_ne!(pause, of(&project, "pause", arm64));
    assert_ne!(of(&project, "toolbox", amd64), of(&project, "nfs", amd64));
    let mut other = project.clone();
    let spec = other.containers.get_mut("pause").unwrap();
    spec.description = "said otherwise".to_owned();
    assert_eq!(of(&other, "pause", amd64), pause);
    other.containers.get_mut("pause").unwrap().user = None;
    assert_ne!(of(&other, "pause", amd64), pause);
    assert_eq!(super::common::run::files_below(&dir.path().join("steps")), [""; 0]);
}
