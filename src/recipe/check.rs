//! A recipe built a second time under other circumstances, and where the two outputs differ.
//!
//! Other are the number of processors, the umask, the time since boot, and the time of day, which has gone on. Host name, user, paths,
//! locale and environment cannot be other: no build sees anything but the sandbox's.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use fs_err as fs;

use super::build::{Built, Options, others, run, take};
use super::key::epoch;
use super::output::{Node, OutputTree};
use super::run::Circumstances;
use super::spec::Recipes;
use crate::error::{Failure, Kind};
use crate::packages::Work;
use crate::rebuild::Finding;

/// Differences that an error shows; `--json` has all.
const SHOWN: usize = 20;
/// Bytes around the first one that differs.
const AROUND: usize = 16;

/// Builds what `built` is once more; gives the differences, none if the recipe is reproducible.
///
/// # Errors
/// As for a build.
pub fn check(work: &Work<'_>, recipes: &Recipes, built: &Built, options: Options) -> Result<Vec<Finding>> {
    let recipe = recipes.get(&built.name)?;
    let how = Circumstances::usual(options.jobs).other();
    let plural = if how.cores == 1 { "" } else { "s" };
    work.ui.status("Checking", format!("recipe {} again, with {} core{plural}", recipe.name, how.cores));
    let others = others(work, recipes, recipe)?;
    let (site, _) = run(work, recipe, &others, how, options.keep_failed)?;
    let staging = work.store.staging()?;
    let out = staging.file("out");
    let tree = take(recipe, &site, &out, epoch(work, recipe))
        .with_context(|| format!("taking the output of the second build of recipe {}", recipe.name))?;
    compare(&recipe.name, (&built.tree, &built.out()), (&tree, &out))
}

/// A failed test that shows `findings`, if there are any.
pub fn verdict(name: &str, findings: &[Finding]) -> Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    let mut text = format!("recipe {name} is not reproducible: two builds of the same inputs differ");
    for finding in findings.iter().take(SHOWN) {
        text.push_str(&format!("\n  {finding}"));
    }
    if findings.len() > SHOWN {
        text.push_str(&format!("\n  … and {} more, all with --json", findings.len() - SHOWN));
    }
    Err(Failure::new(Kind::Test, text)
        .hint("look at the first difference for a time, a number of processors, an order of files or threads, or chance")
        .into())
}

/// Where two outputs differ, by path.
fn compare(name: &str, first: (&OutputTree, &Path), second: (&OutputTree, &Path)) -> Result<Vec<Finding>> {
    let paths: BTreeSet<&String> = first.0.0.keys().chain(second.0.0.keys()).collect();
    let mut findings = Vec::new();
    for path in paths {
        let mut add = |field: &str, a: String, b: String| {
            if a != b {
                findings.push(Finding {
                    step: "recipe".to_owned(),
                    name: name.to_owned(),
                    file: path.clone(),
                    field: field.to_owned(),
                    first: a,
                    second: b,
                });
            }
        };
        match (first.0.0.get(path), second.0.0.get(path)) {
            (
                Some(Node::File { executable: xa, size: sa, sha256: da }),
                Some(Node::File { executable: xb, size: sb, sha256: db }),
            ) => {
                add("executable", xa.to_string(), xb.to_string());
                add("size", sa.to_string(), sb.to_string());
                if da != db {
                    let (at, a, b) = first_difference(&first.1.join(path), &second.1.join(path))?;
                    add(&format!("bytes from {at} on:"), a, b);
                }
            }
            (a, b) => add("what it is:", word(a), word(b)),
        }
    }
    Ok(findings)
}

fn word(node: Option<&Node>) -> String {
    match node {
        None => "missing".to_owned(),
        Some(Node::Dir) => "a folder".to_owned(),
        Some(Node::File { .. }) => "a file".to_owned(),
        Some(Node::Link { target }) => format!("a link to {target}"),
    }
}

/// Offset of the first byte that differs, and some bytes from there on in both files, readable where they are text.
fn first_difference(first: &Path, second: &Path) -> Result<(u64, String, String)> {
    const CHUNK: usize = 64 << 10;
    let (mut a, mut b) = (fs::File::open(first)?, fs::File::open(second)?);
    let mut at = 0;
    loop {
        let (mut x, mut y) = (Vec::new(), Vec::new());
        a.by_ref().take(CHUNK as u64).read_to_end(&mut x)?;
        b.by_ref().take(CHUNK as u64).read_to_end(&mut y)?;
        let same = x.iter().zip(&y).take_while(|(x, y)| x == y).count();
        if same < CHUNK {
            let show = |bytes: &[u8]| {
                let bytes = bytes.get(same..).unwrap_or_default();
                bytes.iter().take(AROUND).flat_map(|b| b.escape_ascii()).map(char::from).collect::<String>()
            };
            return Ok((at + same as u64, format!("\"{}\"", show(&x)), format!("\"{}\"", show(&y))));
        }
        at += same as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn differences_name_the_file_and_the_first_byte() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str, text: &[u8]| {
            let folder = dir.path().join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("a"), text).unwrap();
            let file = |bytes: &[u8], executable| Node::File {
                executable,
                size: bytes.len() as u64,
                sha256: Digest::of(bytes),
            };
            let mut tree = OutputTree::default();
            tree.0.insert("a".into(), file(text, name == "one"));
            tree.0.insert("same".into(), file(b"x", false));
            tree.0.insert("l".into(), Node::Link { target: name.into() });
            if name == "two" {
                tree.0.insert("more".into(), Node::Dir);
            }
            (tree, folder)
        };
        let long = vec![b'.'; 70_000];
        let (one, two) = ([&long[..], b"12:00\n"].concat(), [&long[..], b"12:01"].concat());
        let (one, two) = (place("one", &one), place("two", &two));
        let found = compare("x", (&one.0, &one.1), (&two.0, &two.1)).unwrap();
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "step recipe, x, a: executable true -> false",
                "step recipe, x, a: size 70006 -> 70005",
                "step recipe, x, a: bytes from 70004 on: \"0\\n\" -> \"1\"",
                "step recipe, x, l: what it is: a link to one -> a link to two",
                "step recipe, x, more: what it is: missing -> a folder",
            ]
        );
        let error = verdict("x", &found).unwrap_err();
        assert_eq!(crate::error::report(&error).kind, Kind::Test);
        verdict("x", &compare("x", (&one.0, &one.1), (&one.0, &one.1)).unwrap()).unwrap();
    }
}
