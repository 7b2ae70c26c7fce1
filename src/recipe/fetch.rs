//! Inputs from the network: the only builds that have one, and the only ones whose result is known before.
//!
//! `go-modules`: `go mod vendor` in a sandbox with the host's network, on a copy of the recipe's module. go.sum pins every module, and the
//! digest of the vendored tree pins the result. Proxies, passwords, checksum database and certificates are this machine's own: what its `go`
//! and its environment say ([`gonet`]), its resolv.conf, its authorities. None of that can change the result.
//!
//! [`ask`] has the same network for questions whose answer is not known before; nothing of it is built upon until it has a digest.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;
use fs_err::os::unix::fs::{OpenOptionsExt as _, chown};

use super::gonet::{self, Need};
use super::key::{epoch, host};
use super::output::{OutputTree, Paths, publish};
use super::root;
use super::run::{Circumstances, Job, Site};
use super::spec::{Recipe, RecipeFile, Source};
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::packages::Work;
use crate::sandbox::outside_id;
use crate::store::{Staging, StepKey};

/// Version of this step's code.
const VERSION: u32 = 1;

/// Where systems keep their bundle of authorities, as Go itself looks for it (crypto/x509, root_linux.go).
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The copy is there because Go writes into the folder it works on, and compared because it must not have changed anything.
const SCRIPT: &str = r#"
cp -r "/inputs/recipe/$KILN_MODULE" /build/module
cd /build/module
rmdir /build/out
go mod vendor -o /build/out
mkdir -p /build/out
for file in go.mod go.sum; do
  if ! cmp -s "$file" "/inputs/recipe/$KILN_MODULE/$file"; then
    echo "$file does not name all that is needed: run 'go mod tidy' where you edit the module"
    exit 1
  fi
done
"#;

/// The step that holds the modules of input `name`.
///
/// # Errors
/// No digest, no go.mod or no go.sum.
pub(super) fn key(recipe: &Recipe, name: &str, folder: &str, sha256: Option<Digest>) -> Result<StepKey> {
    let missing = |what: &str| {
        Failure::new(Kind::Input, format!("{}: input `{name}`: {what}", recipe.shown().display()))
    };
    let sha256 = sha256.ok_or_else(|| {
        missing("it has no `sha256`")
            .hint(format!("`kiln recipe hash {}` fetches and prints it", recipe.name))
    })?;
    let mut key = StepKey::new("fetch", &step_name(recipe, name), VERSION).input("sha256", sha256);
    for file in ["go.mod", "go.sum"] {
        let path = if folder.is_empty() { file.to_owned() } else { format!("{folder}/{file}") };
        let found = recipe
            .files
            .get(&path)
            .ok_or_else(|| missing(&format!("there is no {path} in the recipe's folder")))?;
        key = key.input(file, Digest::of(&found.bytes));
    }
    Ok(key)
}

fn step_name(recipe: &Recipe, name: &str) -> String {
    format!("{}-{name}", recipe.name)
}

/// The folder with the modules of input `name`, fetched if it is not in the store.
///
/// # Errors
/// [`Kind::Fetch`] if Go cannot get them; [`Kind::Input`] with both digests if they are not those of the recipe.
pub(super) fn go_modules(
    work: &Work<'_>,
    recipe: &Recipe,
    name: &str,
    folder: &str,
    sha256: Option<Digest>,
) -> Result<PathBuf> {
    let key = key(recipe, name, folder, sha256)?;
    let outcome = work.store.step(
        &key,
        |miss| work.ui.status("Fetching", format!("Go modules `{name}` of recipe {}: {miss}", recipe.name)),
        |staging| {
            let got = fetch(work, recipe, name, folder, &staging.file("out"))?.digest();
            if Some(got) == sha256 {
                return Ok(vec![]);
            }
            let wanted = sha256.map(|d| d.to_string()).unwrap_or_default();
            let text = format!(
                "input `{name}` of recipe {} is not what the recipe says\n  got    {got}\n  wanted {wanted}",
                recipe.name
            );
            Err(Failure::new(Kind::Input, text)
                .hint(format!(
                    "if the modules changed on purpose, set sha256 = \"{got}\" in {}",
                    recipe.shown().display()
                ))
                .into())
        },
    )?;
    Ok(outcome.dir.file("out"))
}

/// What the network gives now for each input of `recipe` that comes from it. Kept in the store, so that a build that names these digests
/// does not fetch again.
pub fn hashes(work: &Work<'_>, recipe: &Recipe) -> Result<BTreeMap<String, Digest>> {
    let mut hashes = BTreeMap::new();
    for (name, source) in recipe.inputs() {
        let Source::GoModules { folder, .. } = source else { continue };
        let staging: Staging = work.store.staging()?;
        let got = fetch(work, recipe, name, folder, &staging.file("out"))?.digest();
        let key = key(recipe, name, folder, Some(got))?;
        let keep = |to: &Staging| Ok(fs::rename(staging.file("out"), to.file("out")).map(|()| vec![])?);
        work.store.step(&key, |_| {}, keep)?;
        hashes.insert(name.to_owned(), got);
    }
    Ok(hashes)
}

/// Small files that a script left in /build/out when it asked Go's network something with the tools of `recipe`: for what is about its
/// modules before there is a digest. `env` is added to the environment; `what` says what it is about.
///
/// # Errors
/// [`Kind::Fetch`] if the script fails, with the end of what it said.
pub(crate) fn ask(
    work: &Work<'_>,
    recipe: &Recipe,
    what: &str,
    script: &str,
    env: BTreeMap<String, String>,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let site = online(work, recipe, &format!("{}-update", recipe.name), what, script, env)?;
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(site.out())? {
        let entry = entry?;
        // A link could lead out of the folder.
        if entry.file_type()?.is_file() {
            files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
        }
    }
    Ok(files)
}

fn fetch(work: &Work<'_>, recipe: &Recipe, name: &str, folder: &str, to: &Path) -> Result<OutputTree> {
    let env = BTreeMap::from([("KILN_MODULE".to_owned(), folder.to_owned())]);
    let title = format!("fetching Go modules `{name}` of recipe {}", recipe.name);
    let site = online(work, recipe, &step_name(recipe, name), &title, SCRIPT, env)?;
    publish(&site.out(), to, epoch(work, recipe), Paths::Any)
        .with_context(|| format!("taking input `{name}` of recipe {}", recipe.name))
}

/// Runs a script with the tools of `recipe` and this machine's network for Go. `step` is the name for what a failure leaves.
fn online(
    work: &Work<'_>,
    recipe: &Recipe,
    step: &str,
    title: &str,
    script: &str,
    own: BTreeMap<String, String>,
) -> Result<Site> {
    let set = work.project.tools.set.get(&recipe.spec.tools);
    let git = set.is_some_and(|set| set.packages.iter().any(|package| package == "git"));
    let modules: Vec<&str> = modules(&recipe.files).into_iter().collect();
    let need = Need { tools: &recipe.spec.tools, git, modules: &modules };
    let plan = gonet::plan(&gonet::settings(), need)?;
    for left_out in &plan.left_out {
        work.ui.detail("Leaving out", left_out);
    }
    // What is lent to the sandbox is gone with this.
    let lent = work.store.staging()?;
    let mut env = plan.env;
    env.extend(own);
    // Another version of Go than the locked one would be one more thing from the network.
    env.insert("GOTOOLCHAIN".to_owned(), "local".to_owned());
    env.insert("CGO_ENABLED".to_owned(), "0".to_owned());
    let mut inputs = plan.folders;
    if let Some(bytes) = authorities() {
        inputs.insert("authorities".to_owned(), lend(&lent, "authorities", &bytes)?);
        env.insert("SSL_CERT_FILE".to_owned(), "/inputs/authorities".to_owned());
        env.insert("GIT_SSL_CAINFO".to_owned(), "/inputs/authorities".to_owned());
    }
    if let Some(netrc) = &plan.netrc {
        let bytes = fs::read(netrc).map_err(|e| {
            Failure::new(Kind::Input, "Go's passwords cannot be read")
                .hint("GOAUTH=off does without; NETRC names another file")
                .because(e)
        })?;
        inputs.insert("netrc".to_owned(), lend(&lent, "netrc", &bytes)?);
        env.insert("NETRC".to_owned(), "/inputs/netrc".to_owned());
    }
    let covers = ["/etc/resolv.conf", "/etc/hosts"].map(|path| (path.to_owned(), PathBuf::from(path)));
    let covers = covers.into_iter().filter(|(_, path)| path.is_file()).collect();
    let job = Job {
        title: title.to_owned(),
        name: step,
        kind: Kind::Fetch,
        root: root::folder(work, &recipe.spec.tools, host()?)?.0,
        files: &recipe.files,
        inputs,
        covers,
        command: ["/bin/bash", "-e", "-u", "-c", script].map(str::to_owned).to_vec(),
        env,
        epoch: epoch(work, recipe),
        network: true,
        limits: &recipe.spec.limits,
    };
    let bar = work.ui.spinner("Fetching", step.to_owned());
    let site = job.run(work, Circumstances::usual(work.threads), false, &|line| {
        bar.message(format!("{step} {line}"));
    });
    let site = site.map_err(|error| match error.downcast::<Failure>() {
        // It may have been what was missing.
        Ok(failure) => {
            plan.left_out.iter().fold(failure, |f, left| f.hint(format!("left out: {left}"))).into()
        }
        Err(error) => error,
    })?;
    work.store.forget_failed(step)?;
    Ok(site)
}

/// The modules that a recipe's files name in a go.sum.
fn modules(files: &BTreeMap<String, RecipeFile>) -> BTreeSet<&str> {
    let sums = files.iter().filter(|(path, _)| *path == "go.sum" || path.ends_with("/go.sum"));
    let lines = sums.filter_map(|(_, file)| std::str::from_utf8(&file.bytes).ok()).flat_map(str::lines);
    lines.filter_map(|line| line.split_whitespace().next()).collect()
}

/// The certificates that this machine's Go trusts: of its bundle, and of the folders that SSL_CERT_DIR names (crypto/x509, root_unix.go).
fn authorities() -> Option<Vec<u8>> {
    let bundle = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let files = bundle.into_iter().chain(BUNDLES.map(PathBuf::from));
    let mut all = files.filter(|path| path.is_file()).find_map(|path| fs::read(path).ok());
    let folders = std::env::var_os("SSL_CERT_DIR").unwrap_or_default();
    for folder in std::env::split_paths(&folders).filter(|folder| !folder.as_os_str().is_empty()) {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        for bytes in files.iter().filter(|path| path.is_file()).filter_map(|path| fs::read(path).ok()) {
            let all = all.get_or_insert_default();
            all.extend(bytes);
            all.push(b'\n');
        }
    }
    all
}

/// A file that nobody but the sandbox's user can read.
fn lend(staging: &Staging, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = staging.file(name);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(bytes)?;
    let (user, group) = outside_id();
    chown(&path, Some(user), Some(group))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_the_first_words_of_go_sum() {
        let file = |text: &str| RecipeFile { bytes: text.as_bytes().to_vec(), executable: false };
        let files = BTreeMap::from([
            (
                "a/go.sum".to_owned(),
                file("x.test/a v1.0.0 h1:x=\nx.test/a v1.0.0/go.mod h1:y=\n\nx.test/b v2.0.0/go.mod h1:z=\n"),
            ),
            ("a/go.mod".to_owned(), file("module x.test/c\n")),
            ("go.sum".to_owned(), file("x.test/d v1.0.0 h1:x=")),
        ]);
        assert_eq!(modules(&files).into_iter().collect::<Vec<_>>(), ["x.test/a", "x.test/b", "x.test/d"]);
    }
}
