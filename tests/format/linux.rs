//! Kernels from source: what is wrong with a fragment or a patch is said before anything is compiled.

use std::path::Path;

use super::common::images;
use super::common::run::Run;

/// Runs `kiln` in a copy of the project that `edit` has changed.
fn in_copy(edit: impl FnOnce(&Path), args: &[&str]) -> Run {
    let dir = tempfile::tempdir_in(images::folder()).unwrap();
    for part in ["images", "profiles", "qemu"] {
        images::copy(&images::project().join(part), &dir.path().join(part));
    }
    edit(dir.path());
    Run::of(&images::kiln().args(args).arg("-C").arg(dir.path()).output().unwrap())
}

/// Adds lines to the fragment of the kernel `vm`.
fn ask(dir: &Path, lines: &str) {
    let path = dir.join("images/kernel/fragments/vm.config");
    let text = fs_err::read_to_string(&path).unwrap();
    fs_err::write(&path, format!("{text}{lines}")).unwrap();
}

const BUILD: [&str; 3] = ["recipe", "build", "linux-vm"];

#[test]
fn fragments_that_contradict_each_other_are_both_named() {
    in_copy(|dir| ask(dir, "# CONFIG_EROFS_FS is not set\n"), &BUILD).fails(
        1,
        &[
            "CONFIG_EROFS_FS is asked to be y in images/kernel/fragments/base.config:",
            "and n in images/kernel/fragments/vm.config:",
            "take one of both lines out",
        ],
    );
}

#[test]
fn a_line_that_is_none_is_named() {
    in_copy(|dir| ask(dir, "CONFIG_NFS_FS = y\n"), &BUILD)
        .fails(1, &["images/kernel/fragments/vm.config:", "a fragment has lines such as"]);
}

#[test]
fn a_symbol_that_linux_does_not_have_is_named_with_the_near_one() {
    in_copy(|dir| ask(dir, "CONFIG_VIRTOI_BLK=y\n"), &BUILD).fails(
        1,
        &[
            "the kernel has no CONFIG_VIRTOI_BLK (images/kernel/fragments/vm.config:",
            "did you mean CONFIG_VIRTIO_BLK?",
        ],
    );
}

#[test]
fn a_symbol_that_kconfig_does_not_grant_is_named_with_the_dependency_that_stopped_it() {
    in_copy(|dir| ask(dir, "CONFIG_BTRFS_FS_POSIX_ACL=y\nCONFIG_SND_HDA_INTEL=y\n"), &BUILD).fails(
        1,
        &[
            "Kconfig did not grant 2 symbols that the kernel vm asks for",
            "CONFIG_BTRFS_FS_POSIX_ACL is hidden, not y",
            "BTRFS_FS",
            "CONFIG_SND_HDA_INTEL is hidden, not y",
            "SOUND",
        ],
    );
}

#[test]
fn a_patch_that_does_not_apply_is_named() {
    let patched = |dir: &Path| {
        fs_err::create_dir(dir.join("images/kernel/patches")).unwrap();
        let patch =
            "--- a/Makefile\n+++ b/Makefile\n@@ -1,2 +1,2 @@\n-VERSION = 2\n+VERSION = 3\n PATCHLEVEL = 6\n";
        fs_err::write(dir.join("images/kernel/patches/01-old.patch"), patch).unwrap();
        let path = dir.join("images/kernel/sources/vm.toml");
        let text = fs_err::read_to_string(&path).unwrap();
        fs_err::write(&path, format!("{text}patches = [\"01-old.patch\"]\n")).unwrap();
    };
    in_copy(patched, &BUILD).fails(5, &["the patch 01-old.patch does not apply to this Linux", "log"]);
}

#[test]
fn a_kernel_that_there_is_not_or_that_is_for_another_machine_is_refused() {
    let choose = |source: &'static str| {
        move |dir: &Path| {
            let path = dir.join("profiles/agent.toml");
            let text = fs_err::read_to_string(&path).unwrap();
            fs_err::write(&path, text.replace("flavour = \"cloud\"", &format!("source = \"{source}\"")))
                .unwrap();
        }
    };
    let build = ["build", "--profile", "agent", "--out", "/nowhere"];
    in_copy(choose("vmm"), &build)
        .fails(1, &["there is no images/kernel/sources/vmm.toml", "did you mean `vm`?"]);
    in_copy(choose("vm\"\nflavour = \"cloud"), &build).fails(1, &["chooses two kernels"]);
    // The lock does not fit a profile that wants another package; another kernel changes that.
    let run = in_copy(choose("vm"), &["update"]);
    run.ok();
    let arm = |dir: &Path| {
        choose("vm")(dir);
        Run::of(&images::kiln().args(["update", "-C"]).arg(dir).output().unwrap()).ok();
    };
    in_copy(arm, &["build", "--profile", "agent", "--arch", "arm64", "--out", "/nowhere"])
        .fails(1, &["the kernel vm is for amd64, not for arm64"]);
}

#[test]
fn kernels_are_compared_without_being_compiled() {
    let run = in_copy(|_| {}, &["kernel", "diff", "linux-vm", "linux-node", "--json"]).ok();
    assert_eq!(run.json()["same"], false, "{}", run.text());
    assert!(run.text().contains("machine.nic-realtek"), "{}", run.text());
}
