//! Rules of the source tree that the compiler does not know: who may use what, and that no test is forgotten.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy spares only the functions marked #[test]"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &str, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut todo = vec![here().join(folder)];
    while let Some(folder) = todo.pop() {
        for entry in fs_err::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                // The fuzz targets are a workspace of their own, with its own target folder.
                if !path.ends_with("target") {
                    todo.push(path);
                }
            } else if path.extension().is_some_and(|e| e == extension) {
                let name = path.strip_prefix(here()).unwrap().display().to_string();
                found.push((name, fs_err::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(found.len() > 3, "{folder} was not read");
    found
}

/// The code of a file: without comments, and without its tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// Only files for which `may` holds use `word`; and somebody does, or the rule would watch over nothing.
#[track_caller]
fn only(word: &str, may: impl Fn(&str) -> bool) {
    let users: Vec<String> = files_below("src", "rs")
        .into_iter()
        .filter(|(name, text)| !name.ends_with("tests.rs") && code(text).contains(word))
        .map(|(name, _)| name)
        .collect();
    assert!(users.iter().any(|u| may(u)), "nobody uses `{word}`: is the rule out of date?");
    let others: Vec<&String> = users.iter().filter(|u| !may(u)).collect();
    assert!(others.is_empty(), "`{word}` is not for {others:?}");
}

#[test]
fn children_are_made_in_exec_only() {
    only("Command::new(", |file| file.starts_with("src/exec/"));
}

#[test]
fn the_streams_are_written_in_ui_only() {
    // rustix' stdio::stdout() too; a sandbox only hands it to the shell in it.
    only("io::stdout(", |file| file == "src/ui.rs" || file == "src/sandbox/inner.rs");
    only("anstream::", |file| file == "src/ui.rs");
    for (name, text) in files_below("src", "rs") {
        for word in ["println!", "eprintln!", "dbg!", "print!("] {
            assert!(!code(&text).contains(word) || name == "src/ui.rs", "{name} uses {word}");
        }
    }
}

#[test]
fn only_the_style_of_the_report_is_not_escaped() {
    only("PreEscaped(", |file| file == "src/scenario/report/html/mod.rs");
    let page = fs_err::read_to_string(here().join("src/scenario/report/html/mod.rs")).unwrap();
    assert_eq!(code(&page).matches("PreEscaped(").count(), 1);
}

#[test]
fn unsafe_code_is_in_sys_only() {
    only("unsafe {", |file| file == "src/sys.rs");
    only("allow(unsafe_code)", |file| file == "src/sys.rs");
}

#[test]
fn the_network_is_in_fetch_only() {
    only("reqwest", |file| file.starts_with("src/fetch/"));
    only("rustls", |file| file.starts_with("src/fetch/"));
}

#[test]
fn machines_are_served_by_sockets_of_one_file() {
    only("socket2::", |file| file == "src/deploy/pxe/net.rs");
    only("UdpSocket::bind(", |file| file == "src/deploy/pxe/net.rs");
    only("smoltcp::", |file| file == "src/qemu/forward.rs");
    for (name, text) in files_below("src", "rs") {
        // An ending in `_tests.rs` is a file of tests, as `tests.rs` is. A kept cluster is reached on 127.0.0.1.
        let may = ["src/deploy/pxe/net.rs", "src/qemu/forward.rs"].contains(&name.as_str());
        let other = !name.ends_with("tests.rs") && !may;
        assert!(!other || !code(&text).contains("TcpListener::bind("), "{name} listens");
    }
}

#[test]
fn the_clock_is_asked_in_lock_only() {
    only("SystemTime::now", |file| file.starts_with("src/lock/"));
}

#[test]
fn format_code_knows_nothing_of_policy() {
    for (name, text) in files_below("src", "rs") {
        let oci = ["layer", "read", "reference", "types", "write"].map(|file| format!("src/oci/{file}.rs"));
        if !["src/debian/", "src/tree/", "src/image/"].iter().any(|folder| name.starts_with(folder))
            && !oci.contains(&name)
        {
            continue;
        }
        for module in ["spec", "cli", "ui", "store", "fetch", "lock", "pipeline", "qemu"] {
            let word = format!("crate::{module}");
            assert!(!code(&text).contains(&word), "{name} uses {word}");
        }
    }
}

#[test]
fn no_file_is_longer_than_800_lines() {
    for folder in ["src", "tests"] {
        for (name, text) in files_below(folder, "rs") {
            let lines = text.lines().count();
            assert!(lines <= 800, "{name} has {lines} lines: split it by what it does");
        }
    }
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_to_do() {
    // Put together here, so that this file does not find itself.
    let words = [
        ["#[ign", "ore"].concat(),
        ["todo", "!("].concat(),
        ["unimpl", "emented!("].concat(),
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
    ];
    for folder in ["src", "tests"] {
        for (name, text) in files_below(folder, "rs") {
            for word in &words {
                assert!(!text.contains(word), "{name} has {word}");
            }
        }
    }
}

#[test]
fn every_file_in_tests_belongs_to_a_test_binary() {
    let manifest = fs_err::read_to_string(here().join("Cargo.toml")).unwrap();
    for entry in fs_err::read_dir(here().join("tests")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            let known = ["common", "fixtures", "fuzz"].contains(&name);
            let main = format!("path = \"tests/{name}/main.rs\"");
            assert!(known || manifest.contains(&main), "tests/{name} is in no [[test]] of Cargo.toml");
            // Each file of a folder is a module of it.
            if path.join("main.rs").exists() {
                let main = fs_err::read_to_string(path.join("main.rs")).unwrap();
                for file in fs_err::read_dir(&path).unwrap() {
                    let file = file.unwrap().path();
                    let stem = file.file_stem().unwrap().to_str().unwrap();
                    let is_code = file.extension().is_some_and(|e| e == "rs");
                    assert!(
                        !is_code || stem == "main" || main.contains(&format!("mod {stem};")),
                        "{} is no module",
                        file.display()
                    );
                }
            }
        } else {
            assert!(manifest.contains(&format!("path = \"tests/{name}\"")), "tests/{name} is in no [[test]]");
        }
    }
}

#[test]
fn every_fixture_is_described_in_the_index() {
    let folder = here().join("tests/fixtures");
    let index = fs_err::read_to_string(folder.join("INDEX")).unwrap();
    let patterns: Vec<globset::GlobMatcher> = index
        .lines()
        .flat_map(|line| line.split("  ").next().unwrap().split(", "))
        .filter(|pattern| !pattern.is_empty())
        .map(|pattern| globset::Glob::new(pattern.trim()).unwrap().compile_matcher())
        .collect();
    for entry in fs_err::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            for file in fs_err::read_dir(&path).unwrap() {
                let name = file.unwrap().path().strip_prefix(&folder).unwrap().to_owned();
                assert!(patterns.iter().any(|p| p.is_match(&name)), "{} is not in INDEX", name.display());
            }
        }
    }
}

/// Licences that this project's own (MIT or Apache-2.0) goes with, as SPDX spells them.
const LICENCES: [&str; 15] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unlicense",
    "0BSD",
    "CC0-1.0",
    "Unicode-3.0",
    "BSL-1.0",
    "MIT-0",
    "MPL-2.0",
    "CDLA-Permissive-2.0",
];

fn metadata() -> serde_json::Value {
    #[expect(clippy::disallowed_methods, reason = "the program that builds this test")]
    let mut cargo = std::process::Command::new(env!("CARGO"));
    let output =
        cargo.args(["metadata", "--format-version", "1", "--locked"]).current_dir(here()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Whether an SPDX expression leaves a choice that is allowed: each part of an AND must, one part of an OR is enough.
fn allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let expression = expression.trim();
    // The only nesting in use is one level of brackets around a choice.
    let parts = |text: &str, word: &str| -> Vec<String> {
        let (mut parts, mut depth, mut part) = (Vec::new(), 0, Vec::new());
        for token in text.replace('(', "( ").replace(')', " )").split_whitespace() {
            depth += i32::from(token == "(") - i32::from(token == ")");
            if token == word && depth == 0 {
                parts.push(std::mem::take(&mut part).join(" "));
            } else {
                part.push(token.to_owned());
            }
        }
        parts.push(part.join(" "));
        parts
    };
    let or = parts(expression, "OR");
    if or.len() > 1 {
        return or.iter().any(|part| allowed(part));
    }
    let and = parts(expression, "AND");
    if and.len() > 1 {
        return and.iter().all(|part| allowed(part));
    }
    match expression.strip_prefix('(').and_then(|e| e.trim().strip_suffix(')')) {
        Some(inner) => allowed(inner),
        None => LICENCES.contains(&expression),
    }
}

#[test]
fn licences_are_read_as_spdx_means_them() {
    for yes in [
        "MIT",
        "MIT OR GPL-3.0",
        "(MIT OR GPL-3.0) AND Unicode-3.0",
        "MIT/Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(allowed(yes), "{yes}");
    }
    for no in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "", "Apache-2.0 WITH other"] {
        assert!(!allowed(no), "{no}");
    }
}

#[test]
fn every_dependency_has_a_fitting_licence_comes_from_the_registry_and_digests_are_of_one_kind() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let mut sha2 = BTreeSet::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        if name == "kiln" {
            continue;
        }
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(allowed(licence), "{name} is under `{licence}`");
        let source = package["source"].as_str().unwrap_or("a path");
        assert!(source.starts_with("registry+"), "{name} comes from {source}");
        if name == "sha2" {
            sha2.insert(package["version"].as_str().unwrap());
        }
        assert!(
            !["openssl-sys", "native-tls", "aws-lc-sys", "tokio-native-tls"].contains(&name),
            "{name}: TLS is rustls with ring"
        );
    }
    assert_eq!(sha2.len(), 1, "two versions of the digest: {sha2:?}");
}
