//! An image is the same for every cluster, so it holds nothing that only one may know: every byte of it is searched.

use regex_automata::meta::Regex;

use super::{extracted, from_initrd, image, part};
use crate::common::run::files_below;

/// How secrets look: K3s' secure token (docs.k3s.io/cli/token), a private key with its first line, a password's hash (crypt(5)), a kubeconfig's key.
const SECRETS: [&str; 4] = [
    r"K10[0-9a-f]{64}::",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----\r?\n[A-Za-z0-9+/]{20}",
    r"\$(?:y|gy|7|2b|6|5)\$[./A-Za-z0-9]+\$(?:[./A-Za-z0-9]+\$)?[./A-Za-z0-9]{40}",
    r"client-key-data: [A-Za-z0-9+/]{20}",
];

/// A key for the library's test of itself, which everybody has.
const KNOWN: &str = "usr/lib/x86_64-linux-gnu/libgnutls.so.";

fn found(secrets: &Regex, bytes: &[u8]) -> Option<String> {
    let at = secrets.find(bytes)?;
    Some(String::from_utf8_lossy(&bytes[at.range()]).into_owned())
}

#[test]
fn no_partition_and_no_initrd_holds_a_token_a_key_or_a_password() {
    let secrets = Regex::new_many(&SECRETS).unwrap();
    let token = format!("x K10{}::server:secret", "0a".repeat(32));
    for known in [
        token.as_str(),
        "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIrYSSNQFaA2Hwf1",
        "root:$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7:1",
        "    client-key-data: LS0tLS1CRUdJTiBFQyBQUklW",
    ] {
        assert!(found(&secrets, known.as_bytes()).is_some(), "{known} would not be found");
    }

    let mut all = Vec::new();
    for name in ["esp", "verity-"] {
        all.extend(
            found(&secrets, &fs_err::read(part(name).path()).unwrap()).map(|what| (name.to_owned(), what)),
        );
    }
    let (_folder, initrd) = from_initrd();
    all.extend(found(&secrets, &fs_err::read(initrd).unwrap()).map(|what| ("the initrd".to_owned(), what)));
    let root = extracted().join("root");
    for path in files_below(&root) {
        let file = root.join(&path);
        if file.is_file() && !file.is_symlink() && !path.starts_with(KNOWN) {
            all.extend(found(&secrets, &fs_err::read(&file).unwrap()).map(|what| (path, what)));
        }
    }
    assert!(all.is_empty(), "{all:#?}");

    // Where a node's own secrets will lie, the image has nothing at all.
    let files = kiln::manifest::read_files(&image().0.with_extension("json")).unwrap();
    for place in [
        "/etc/rancher/k3s/",
        "/etc/rancher/node/",
        "/etc/credstore/",
        "/var/lib/rancher/",
        "/etc/ssh/ssh_host_",
    ] {
        let there: Vec<_> = files.keys().filter(|path| path.starts_with(place)).collect();
        assert!(there.is_empty(), "{there:?}");
    }
}
