//! Inputs from the network: the only builds that have one, and the only ones whose result is known before.
//!
//! `go-modules`: `go mod vendor` in a sandbox with the host's network, on a copy of the recipe's module. go.sum pins every module, and the
//! digest of the vendored tree pins the result. Proxies, checksum database and certificates are this machine's own: what its `go` and its
//! environment say ([`SETTINGS`], `go env -w`), its resolv.conf, its bundle of authorities. None of that can change the result.
//!
//! [`ask`] has the same network for questions whose answer is not known before; nothing of it is built upon until it has a digest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;

use super::key::{epoch, host};
use super::output::{OutputTree, Paths, publish};
use super::root;
use super::run::{Circumstances, Job, Site};
use super::spec::{Recipe, Source};
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::packages::Work;
use crate::store::{Staging, StepKey};

/// Version of this step's code.
const VERSION: u32 = 1;

/// Variables of this machine that say how Go gets modules (`go help environment`) and how anybody gets out.
const SETTINGS: [&str; 16] = [
    "GOFLAGS",
    "GOINSECURE",
    "GONOPROXY",
    "GONOSUMCHECK",
    "GONOSUMDB",
    "GOPRIVATE",
    "GOPROXY",
    "GOSUMDB",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
];

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
    let mut env = settings(|name| std::env::var(name).ok(), &go_env_file().unwrap_or_default());
    env.extend(own);
    // Another version of Go than the locked one would be one more thing from the network.
    env.insert("GOTOOLCHAIN".to_owned(), "local".to_owned());
    env.insert("CGO_ENABLED".to_owned(), "0".to_owned());
    let mut inputs = BTreeMap::new();
    let bundle = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    if let Some(bundle) = bundle.into_iter().chain(BUNDLES.map(PathBuf::from)).find(|path| path.is_file()) {
        inputs.insert("authorities".to_owned(), bundle);
        env.insert("SSL_CERT_FILE".to_owned(), "/inputs/authorities".to_owned());
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
    })?;
    work.store.forget_failed(step)?;
    Ok(site)
}

/// What this machine says about getting modules; a variable of the environment wins over the file.
fn settings(env: impl Fn(&str) -> Option<String>, file: &str) -> BTreeMap<String, String> {
    let set = |line: &str| {
        let (name, value) = line.split_once('=')?;
        SETTINGS.contains(&name).then(|| (name.to_owned(), value.to_owned()))
    };
    let mut settings: BTreeMap<String, String> = file.lines().filter_map(set).collect();
    settings.extend(SETTINGS.iter().filter_map(|name| Some(((*name).to_owned(), env(name)?))));
    settings
}

/// The file that `go env -w` writes (`go help env`).
fn go_env_file() -> Option<String> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let path = match set("GOENV") {
        Some(path) => path,
        None => set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?.join("go/env"),
    };
    fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_those_about_getting_modules_and_the_environment_wins() {
        let file = "GOPROXY=https://file.example\nGOOS=plan9\n# comment\nGONOSUMDB=a,b\n";
        let env =
            |name: &str| (name == "GOPROXY" || name == "GOARCH").then(|| "https://env.example".to_owned());
        let found = settings(env, file);
        let expected = [("GONOSUMDB", "a,b"), ("GOPROXY", "https://env.example")];
        assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }
}
