//! The way from source: the recipe's Go module follows the release, for both ways must lead to the same K3s.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::edit::Edit;
use super::gomod::{GoMod, K3S};
use super::version::Version;
use crate::error::{self, Failure, Kind};
use crate::linux;
use crate::lock::time;
use crate::packages::Work;
use crate::recipe::{self, Recipe, RecipeSpec, Source};
use crate::spec::{self, K3s};

/// Variables of the recipe that say what it builds.
const VERSION: &str = "K3S_VERSION";
const COMMIT: &str = "K3S_COMMIT";

/// Asks for a revision of K3s' module. The module proxy may have it or not; what it answers is checked when modules are fetched.
const RESOLVE: &str = r#"
cd /build
rmdir out
mkdir out module
cd module
go mod init kiln.invalid/update
if ! go mod download -json "$KILN_MODULE@$KILN_QUERY" >../answer; then
  sed -n 's/^\t"Error": //p' ../answer
  exit 1
fi
field() { sed -n "s/^\t\"$1\": \"\(.*\)\",*$/\1/p" ../answer; }
cp "$(field Info)" ../out/info
cp "$(field GoMod)" ../out/go.mod
"#;

/// Lets Go find out what the module needs at the versions that its new go.mod names.
const TIDY: &str = r#"
cp -r "/inputs/recipe/$KILN_MODULE" /build/module
cd /build/module
go mod tidy
rmdir /build/out
mkdir /build/out
cp go.mod go.sum /build/out
"#;

/// A revision of K3s' source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Revision {
    /// Version of the Go module.
    pub version: String,
    /// The commit, or the beginning of it.
    pub commit: String,
    /// When that was committed.
    pub time: String,
}

/// What a module proxy says about a version (<https://go.dev/ref/mod#goproxy-protocol>).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    version: String,
    time: String,
    /// Not every proxy tells it.
    origin: Option<Origin>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Origin {
    hash: Option<String>,
}

/// The recipe that builds a project's K3s.
pub(super) struct Module<'a> {
    work: Work<'a>,
    recipe: Recipe,
    /// Its input from the network, and the folder with its go.mod.
    input: String,
    folder: String,
    ours: GoMod,
}

impl<'a> Module<'a> {
    /// The recipe of `k3s.source` that builds K3s itself.
    ///
    /// # Errors
    /// There is none, it is of another version than `k3s`, or it has no module.
    pub(super) fn find(work: Work<'a>, k3s: &K3s) -> Result<Self> {
        let recipes = linux::recipes(work.project)?;
        let mut found = None;
        for name in &k3s.source {
            let recipe = recipes.get(name)?;
            if let Some(version) = recipe.spec.env.get(VERSION) {
                found = Some((recipe.clone(), version.clone()));
            }
        }
        let Some((recipe, version)) = found else {
            let text = format!("no recipe of `k3s.source` has {VERSION} in its [env]");
            return Err(Failure::new(Kind::Input, text)
                .hint("that is how a recipe says which K3s it builds; or leave the source out: `--no-source`")
                .into());
        };
        let refuse = |why: String| Failure::new(Kind::Input, format!("{}: {why}", recipe.shown().display()));
        if version != k3s.version() {
            let why = format!("`env.{VERSION}` is {version}, and images/k3s.toml has {}", k3s.version());
            return Err(refuse(why).hint("release and source must be the same K3s").into());
        }
        let modules = recipe.inputs().find_map(|(name, source)| match source {
            Source::GoModules { folder, .. } => Some((name.to_owned(), folder.to_owned())),
            _ => None,
        });
        let (input, folder) = modules.ok_or_else(|| refuse("it has no input `go-modules`".to_owned()))?;
        let path = join(&folder, "go.mod");
        let bytes = recipe.files.get(&path).map(|file| file.bytes.clone());
        let bytes = bytes.ok_or_else(|| refuse(format!("there is no {path} in its folder")))?;
        let ours = read(&format!("{path} of recipe {}", recipe.name), &bytes, Kind::Input)?;
        Ok(Module { work, recipe, input, folder, ours })
    }

    /// The version of a module that it is built with now.
    pub(super) fn version(&self, module: &str) -> Option<String> {
        self.ours.version(module).map(str::to_owned)
    }

    /// Asks for the source of `release`: of the revision `commit`, or else of what upstream tagged so.
    ///
    /// # Errors
    /// [`Kind::Fetch`] with what can be done if no module proxy of this machine has it.
    pub(super) fn resolve(&self, release: &Version, commit: Option<&str>) -> Result<(Revision, GoMod)> {
        let query = commit.unwrap_or(release.as_str());
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._+/".contains(c);
        if query.starts_with('-') || !query.chars().all(plain) {
            let text = format!("`{}` is no revision", query.escape_debug());
            return Err(Failure::new(Kind::Input, text).hint("name a commit by its digits").into());
        }
        let what = format!("asking for K3s' module at {query}");
        let env = [("KILN_MODULE", K3S), ("KILN_QUERY", query)].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let files = recipe::ask(&self.work, &self.recipe, &what, RESOLVE, env.into())
            .map_err(|error| out_of_reach(release, commit, error))?;
        let part = |name: &str| files.get(name).map(Vec::as_slice).unwrap_or_default();
        let revision = revision(part("info"), query)?;
        let upstream = read(&format!("K3s' go.mod at {query}"), part("go.mod"), Kind::Fetch)?;
        Ok((revision, upstream))
    }

    /// Moves the module to what [`Module::resolve`] found, and fetches all that it needs. Gives the files that change, and the module as it
    /// will be.
    ///
    /// # Errors
    /// A module cannot be had, or a value of recipe.toml is not where it should be.
    pub(super) fn move_to(
        &self,
        old: &Version,
        release: &Version,
        (revision, upstream): &(Revision, GoMod),
        commit: Option<&str>,
    ) -> Result<(Vec<Edit>, GoMod)> {
        let dir = &self.work.project.dir;
        let file =
            |name: &str| format!("{}/{}/{}", recipe::FOLDER, self.recipe.name, join(&self.folder, name));
        let moved = self.ours.moved(upstream, &revision.version, release);
        let mut recipe = self.recipe.clone();
        let put = |recipe: &mut Recipe, name: &str, bytes: &[u8]| {
            if let Some(file) = recipe.files.get_mut(&join(&self.folder, name)) {
                file.bytes = bytes.to_vec();
            }
        };
        put(&mut recipe, "go.mod", moved.text().as_bytes());
        self.work.ui.status("Moving", format!("Go module of recipe {} to K3s {release}", recipe.name));
        let what = format!("finding out what K3s {release} needs");
        let env = BTreeMap::from([("KILN_MODULE".to_owned(), self.folder.clone())]);
        let away = |error| out_of_reach(release, commit, error);
        let tidy = recipe::ask(&self.work, &recipe, &what, TIDY, env).map_err(away)?;
        let mut edits = Vec::new();
        for name in ["go.mod", "go.sum"] {
            let bytes = tidy.get(name).map(Vec::as_slice).unwrap_or_default();
            put(&mut recipe, name, bytes);
            let mut edit = Edit::open(dir, &file(name))?;
            edit.put(bytes);
            edits.push(edit);
        }
        let moved =
            read(&file("go.mod"), tidy.get("go.mod").map(Vec::as_slice).unwrap_or_default(), Kind::Fetch)?;
        let toml = self.recipe.shown().display().to_string();
        let mut edit = Edit::open(dir, &toml)?;
        edit.set(&["env", VERSION], release.as_str())?;
        edit.set(&["env", COMMIT], &revision.commit)?;
        if recipe.spec.description.contains(old.as_str()) {
            edit.replace(&["description"], old, release)?;
        }
        if recipe.spec.time.is_some() {
            edit.set(&["time"], &revision.time)?;
            recipe.spec.time = Some(revision.time.clone());
        }
        let hashes = recipe::hashes(&self.work, &recipe).map_err(away)?;
        for (input, digest) in &hashes {
            edit.set(&["inputs", input, "sha256"], &digest.to_string())?;
        }
        // What was written must be read again as what was meant.
        let read: RecipeSpec = spec::parse(&toml, edit.text()?)?;
        let written = read.inputs.get(&self.input).and_then(|input| input.sha256);
        if read.env.get(VERSION).map(String::as_str) != Some(release.as_str())
            || written != hashes.get(&self.input).copied()
        {
            let text = format!("{toml} did not become what it should; nothing is written");
            return Err(Failure::new(Kind::Internal, text).into());
        }
        edits.push(edit);
        Ok((edits, moved))
    }

    /// Its TOML file, for messages.
    pub(super) fn shown(&self) -> String {
        self.recipe.shown().display().to_string()
    }
}

/// The network has not all of the source: what a person can do.
fn out_of_reach(release: &Version, commit: Option<&str>, error: anyhow::Error) -> anyhow::Error {
    if error::report(&error).kind != Kind::Fetch {
        return error;
    }
    let text = format!("the source of K3s {release} cannot be had as Go modules, so nothing was written");
    let mut failure = Failure::new(Kind::Fetch, text);
    if commit.is_none() {
        failure =
            failure.hint("`--commit REV` takes another revision that the proxy has; it must be the same K3s");
    }
    failure
        .hint("`--no-source` takes the source out of images/k3s.toml: then nodes get the release or nothing")
        .hint("or give this machine a way to a module proxy that has it (GOPROXY)")
        .because(error)
        .into()
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn read(name: &str, bytes: &[u8], kind: Kind) -> Result<GoMod> {
    GoMod::parse(&String::from_utf8_lossy(bytes))
        .map_err(|why| Failure::new(kind, format!("{name} cannot be used: {why}")).into())
}

/// What a proxy answered to `query`.
fn revision(info: &[u8], query: &str) -> Result<Revision> {
    let wrong =
        |why: &str| Failure::new(Kind::Fetch, format!("the answer about K3s' module at {query}: {why}"));
    let info: Info =
        serde_json::from_slice(info).map_err(|error| wrong("it cannot be read").because(error))?;
    if time::parse_iso(&info.time).is_none() {
        return Err(wrong("it has no time in whole seconds").into());
    }
    let is_hash =
        |text: &&str| (12..=40).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    // A version without a tag ends with the beginning of its commit.
    let tail = info.version.rsplit('-').next().filter(is_hash);
    let origin = info.origin.as_ref().and_then(|origin| origin.hash.as_deref()).filter(is_hash);
    // Where the proxy is silent, the person's own word for the same commit is longer than the version's.
    let asked = Some(query).filter(is_hash).filter(|query| tail.is_some_and(|tail| query.starts_with(tail)));
    let commit = origin.or(asked).or(tail).ok_or_else(|| {
        wrong("it does not say of which commit it is").hint("name that with `--commit`, by all its digits")
    })?;
    Ok(Revision { version: info.version.clone(), commit: commit.to_owned(), time: info.time.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_answer_names_version_commit_and_time() {
        let hash = "ec165b106313a7906d04c4e5ba3913f893a43002";
        let base = r#""Version":"v1.33.0-rc1.0.20250715012353-ec165b106313","Time":"2025-07-15T01:23:53Z""#;
        let full = format!(r#"{{{base},"Origin":{{"VCS":"git","Hash":"{hash}"}}}}"#);
        let short = format!("{{{base}}}");
        for (info, query, commit) in [
            (&full, "main", hash),
            (&short, hash, hash),
            (&short, "main", &hash[..12]),
            (&short, "abc", &hash[..12]),
        ] {
            let found = revision(info.as_bytes(), query).unwrap();
            assert_eq!((found.commit.as_str(), found.time.as_str()), (commit, "2025-07-15T01:23:53Z"));
        }
        for (info, why) in [
            (r#"{"Version":"v1.33.4","Time":"2025-07-15T01:23:53Z"}"#, "of which commit"),
            (r#"{"Version":"v1.33.4","Time":"yesterday"}"#, "no time"),
            ("<html>", "cannot be read"),
            ("", "cannot be read"),
        ] {
            let error = revision(info.as_bytes(), "main").unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
