//! Packages that want to do harm, by the whole way from mirror to step. The rules one by one are tested in src/debian.

use crate::common::archive::{Archive, header, tarball, xz};
use crate::common::mirror::Mirror;
use crate::common::run::{Env, files_below};
use tar::EntryType;

fn refused(data: &[u8], words: &[&str]) {
    let mut archive = Archive::sample();
    archive.add_raw("trojan", "1.0", "", data);
    archive.publish();
    let (env, mirror) = (Env::new(), Mirror::serve(&archive.files));
    env.mirrors(&[&mirror.base]);
    Archive::project(&env, &["trojan"]);
    env.kiln(&["update"]).ok();
    env.kiln(&["build", "--profile", "server"])
        .fails(1, &["trojan 1.0 amd64 cannot be unpacked"])
        .fails(1, words);
    let steps = files_below(&env.store().join("steps"));
    assert!(!steps.iter().any(|path| path.contains("trojan")), "{steps:?}");
    assert_eq!(env.leftovers(), [""; 0]);
    for place in ["home", "tmp", "project/out"] {
        assert_eq!(files_below(&env.path(place)), [""; 0], "{place}");
    }
}

fn link(path: &str, kind: EntryType, target: &str) -> tar::Header {
    let mut header = header(path, kind, 0);
    header.set_link_name_literal(target).unwrap();
    header.set_cksum();
    header
}

#[test]
fn a_path_that_leaves_the_package_is_refused() {
    for path in ["../../home/x", "./usr/../../x", "/../x"] {
        refused(&tarball(&[(header(path, EntryType::Regular, 1), b"x")]), &[path]);
    }
}

#[test]
fn a_file_through_a_link_is_refused() {
    let out = link("./usr/share/out", EntryType::Symlink, "/tmp");
    let through = header("./usr/share/out/x", EntryType::Regular, 1);
    refused(&tarball(&[(out, b""), (through, b"x")]), &["usr/share/out"]);
}

#[test]
fn a_hard_link_to_a_file_of_the_host_is_refused() {
    refused(&tarball(&[(link("./usr/shadow", EntryType::Link, "/etc/shadow"), b"")]), &["shadow"]);
}

#[test]
fn a_size_that_is_not_there_is_refused() {
    refused(&tarball(&[(header("./huge", EntryType::Regular, 8 << 30), b"x")]), &["huge"]);
}

#[test]
fn folders_a_thousand_deep_are_refused() {
    let deep = format!("./{}", "d/".repeat(5000));
    // A PAX record, since a header has room for 100 bytes only.
    let record = {
        let body = format!(" path={deep}\n");
        let mut length = body.len() + 4;
        length = body.len() + length.to_string().len();
        format!("{length}{body}")
    };
    let pax = header("./PaxHeaders/x", EntryType::XHeader, record.len() as u64);
    refused(&tarball(&[(pax, record.as_bytes()), (header("./x", EntryType::Directory, 0), b"")]), &["d/d/d"]);
}

#[test]
fn a_package_that_is_cut_off_is_refused_wherever_the_cut_is() {
    let mut archive = Archive::sample();
    let path = archive.add("trojan", "1.0", "", &[("usr/share/x", &[7; 5000])]);
    let whole = archive.files[&path].clone();
    for part in 1..8 {
        let cut = &whole[..whole.len() * part / 8];
        let mut archive = Archive::sample();
        archive.add_bytes("trojan", "1.0", cut.to_vec());
        archive.publish();
        let (env, mirror) = (Env::new(), Mirror::serve(&archive.files));
        env.mirrors(&[&mirror.base]);
        Archive::project(&env, &["trojan"]);
        env.kiln(&["update"]).ok();
        env.kiln(&["build", "--profile", "server"]).fails(1, &["trojan 1.0 amd64 cannot be unpacked"]);
    }
}

#[test]
fn a_payload_that_unpacks_to_gigabytes_of_nothing_is_refused_before_it_fills_the_disk() {
    // 64 MiB of zeros a time, far more than the header says: the reader stops at the end of the tar archive's entries.
    let mut data = tarball(&[(header("./x", EntryType::Regular, 1), b"x")]);
    data.resize(512 << 20, 0);
    let packed = xz(&data);
    assert!(packed.len() < 1 << 20, "a bomb is small");
    let mut archive = Archive::sample();
    archive.add_raw("trojan", "1.0", "", &data);
    archive.publish();
    let (env, mirror) = (Env::new(), Mirror::serve(&archive.files));
    env.mirrors(&[&mirror.base]);
    Archive::project(&env, &["trojan"]);
    env.kiln(&["update"]).ok();
    env.kiln(&["build", "--profile", "server"]);
    let bytes: u64 = files_below(&env.store().join("steps"))
        .iter()
        .map(|f| fs_err::metadata(env.store().join("steps").join(f)).unwrap().len())
        .sum();
    assert!(bytes < 16 << 20, "{bytes} bytes were written");
}

#[test]
fn a_package_that_is_another_than_the_index_says_is_refused() {
    let mut archive = Archive::sample();
    let other = archive.add("other", "1.0", "", &[]);
    let bytes = archive.files[&other].clone();
    archive.add_bytes("trojan", "1.0", bytes);
    archive.publish();
    let (env, mirror) = (Env::new(), Mirror::serve(&archive.files));
    env.mirrors(&[&mirror.base]);
    Archive::project(&env, &["trojan"]);
    env.kiln(&["update"]).ok();
    env.kiln(&["build", "--profile", "server"]).fails(1, &["trojan 1.0 amd64 holds other amd64"]);
}
