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
