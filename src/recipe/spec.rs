//! `images/recipes/NAME/recipe.toml`, read and checked.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use fs_err as fs;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::lock::time;
use crate::spec::text::{is_left_behind, refuse_crlf};
use crate::spec::{self, SCHEMA, Size, nearest, parse};
use crate::tree::TreePath;

/// Folder of the recipes in a project.
pub const FOLDER: &str = "images/recipes";
/// Name of the TOML file in a recipe's folder.
pub(super) const FILE: &str = "recipe.toml";

/// What a `recipe.toml` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RecipeSpec {
    /// Version of this file's shape; 1.
    pub schema: u32,
    /// What it builds, in one line.
    pub description: String,
    /// Tool set of images/tools.toml that is the root file system of the sandbox: compiler, shell and all.
    pub tools: String,
    /// File of the recipe's folder that bash runs, with -e -u and pipefail, in /build.
    pub script: String,
    /// What the script must leave in /build/out: files or folders, relative. Nothing else may lie there.
    pub outputs: Vec<String>,
    /// The time that builds see as SOURCE_DATE_EPOCH and outputs get, `2026-09-12T07:55:41Z`. Default: the lock's; a fixed one keeps an
    /// expensive output when a new lock moves other packages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// Further variables of the environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What lies in /inputs, by name. The recipe's own files are there anyway, as /inputs/recipe.
    #[serde(default)]
    pub inputs: BTreeMap<String, Input>,
    /// What a build may use.
    #[serde(default)]
    pub limits: Limits,
    /// Beginnings of paths that outputs may hold although they lie in /build, the build's own folder: names that mean something else to
    /// the program. All other ones are refused, for they would differ elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign_paths: Vec<String>,
}

/// One thing in /inputs; exactly one of `set`, `recipe` and `go-modules`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Input {
    /// Files of a tool set of images/tools.toml, unpacked: for sources that come as packages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// Outputs of another recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
    /// Folder of the recipe with go.mod, go.sum and the Go files: the modules that they import, as `go mod vendor` lays them out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub go_modules: Option<String>,
    /// Digest of a tree that comes from the network; `kiln recipe hash` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub sha256: Option<Digest>,
}

/// An [`Input`] whose fields were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// A tool set, laid out.
    Set(&'a str),
    /// Outputs of a recipe.
    Recipe(&'a str),
    /// Go modules from the network.
    GoModules {
        /// Folder with go.mod in the recipe's; empty for the recipe's folder itself.
        folder: &'a str,
        /// What they must be.
        sha256: Option<Digest>,
    },
}

/// What a build may use. Beyond it the build is ended and the error says which limit it was. No part of the step's key: a build that
/// passed is not made again because it may use more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory of all processes together.
    pub memory: Size,
    /// Processes and threads at one time.
    pub processes: u32,
    /// Disk space of /build and /tmp together.
    pub disk: Size,
    /// Length of one file.
    pub file: Size,
    /// From start to end: `90s`, `30m`, `2h`.
    pub time: Span,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            memory: Size::mib(8 << 10),
            processes: 1024,
            disk: Size::mib(16 << 10),
            file: Size::mib(4 << 10),
            time: Span(2 * 3600),
        }
    }
}

/// A length of time in whole seconds: `90s`, `30m`, `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct Span(u64);

impl Span {
    /// So many hours.
    pub const fn hours(hours: u64) -> Self {
        Span(hours * 3600)
    }

    /// As std knows it.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is no length of time: write whole seconds, minutes or hours, such as \"90m\"")
        };
        let unit = text.chars().last().ok_or_else(wrong)?;
        let factor: u64 = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            _ => return Err(wrong()),
        };
        let number: u64 = text.trim_end_matches(unit).parse().map_err(|_| wrong())?;
        number.checked_mul(factor).filter(|n| *n > 0).map(Span).ok_or_else(wrong)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n % 3600 == 0 => write!(f, "{}h", n / 3600),
            n if n % 60 == 0 => write!(f, "{}m", n / 60),
            n => write!(f, "{n}s"),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A recipe with the bytes of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Name of its folder.
    pub name: String,
    /// What its TOML file says.
    pub spec: RecipeSpec,
    /// Its other files, relative to its folder: bytes, and whether they can be run. Code may add some, such as a configuration that
    /// it wrote; they are /inputs/recipe in the sandbox and part of the key like the others.
    pub files: BTreeMap<String, RecipeFile>,
}

/// A file of a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipeFile {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Whether its owner may run it.
    pub executable: bool,
}

/// All recipes of a project, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipes(pub BTreeMap<String, Recipe>);

impl Recipes {
    /// Reads and checks all recipes of the project in `dir`; none is fine.
    ///
    /// # Errors
    /// A mistake in a TOML file with its place, a missing script, an input that does not exist, recipes that need each other in a circle.
    pub fn load(dir: &Path) -> Result<Self> {
        let mut recipes = Recipes::default();
        let entries = match fs::read_dir(dir.join(FOLDER)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(recipes),
            Err(e) => return Err(e.into()),
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() && !is_left_behind(&name) {
                recipes.0.insert(name.clone(), Recipe::load(&entry.path(), &name)?);
            }
        }
        recipes.check()?;
        Ok(recipes)
    }

    /// The recipe `name`, with near names if there is none.
    pub fn get(&self, name: &str) -> Result<&Recipe> {
        self.0.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            let mut failure = Failure::new(Kind::Input, format!("there is no recipe `{name}` in {FOLDER}/"));
            if let Some(near) = nearest(name, known.iter().copied()) {
                failure = failure.hint(format!("did you mean `{near}`?"));
            }
            failure
                .hint(format!("a recipe is a folder with a {FILE}; there are: {}", known.join(", ")))
                .into()
        })
    }

    /// `names` and all recipes whose outputs they need, each after those that it needs.
    ///
    /// # Errors
    /// A name that does not exist.
    pub fn closure(&self, names: &[&str]) -> Result<Vec<&Recipe>> {
        fn add<'a>(all: &'a Recipes, name: &str, done: &mut Vec<&'a Recipe>) -> Result<()> {
            let recipe = all.get(name)?;
            if !done.iter().any(|d| d.name == name) {
                for need in recipe.needs() {
                    add(all, need, done)?;
                }
                done.push(recipe);
            }
            Ok(())
        }
        let mut order = Vec::new();
        for name in names {
            add(self, name, &mut order)?;
        }
        Ok(order)
    }

    /// Inputs exist, and no recipe needs itself.
    fn check(&self) -> Result<()> {
        fn visit<'a>(all: &'a Recipes, name: &'a str, stack: &mut Vec<&'a str>) -> Result<()> {
            if let Some(at) = stack.iter().position(|n| *n == name) {
                let circle = stack.iter().skip(at).copied().chain([name]).collect::<Vec<_>>().join(" needs ");
                return Err(Failure::new(Kind::Input, format!("recipes in a circle: {circle}")).into());
            }
            let recipe = all.get(name).with_context(|| {
                let from = stack.last().copied().unwrap_or_default();
                format!("{FOLDER}/{from}/{FILE} has it as an input")
            })?;
            stack.push(name);
            for need in recipe.needs() {
                visit(all, need, stack)?;
            }
            stack.pop();
            Ok(())
        }
        self.0.keys().try_for_each(|name| visit(self, name, &mut Vec::new()))
    }
}

/// Variables that every build has and no recipe can set.
pub(crate) const OWN_ENV: [&str; 12] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TMPDIR",
    "LC_ALL",
    "TZ",
    "SOURCE_DATE_EPOCH",
    "KILN_JOBS",
    "KILN_OUT",
    "PWD",
];

impl Recipe {
    /// Reads the recipe in `folder`. Hidden files and those that editors leave behind (`name~`, `#name#`) are no part of it.
    fn load(folder: &Path, name: &str) -> Result<Self> {
        let shown = format!("{FOLDER}/{name}/{FILE}");
        let refuse = |why: String| Failure::new(Kind::Input, why);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_+".contains(c);
        if !name.chars().all(plain) {
            let text = format!("{FOLDER}/{name}: a recipe's name has small letters, digits and . - _ + only");
            return Err(refuse(text).into());
        }
        let text = spec::text::read(&folder.join(FILE))
            .map_err(|e| refuse(format!("{shown} cannot be read")).because(e))?;
        let spec: RecipeSpec = parse(&shown, &text)?;
        let mut files = BTreeMap::new();
        read_files(folder, Path::new(""), &mut files).with_context(|| format!("reading recipe {name}"))?;
        for (path, file) in &files {
            // The script is one whatever it is called.
            let to = (*path == spec.script).then_some("build.sh");
            refuse_crlf(&format!("{FOLDER}/{name}/{path}"), to, &file.bytes)?;
        }
        let recipe = Recipe { name: name.to_owned(), spec, files };
        recipe.check().map_err(|why| refuse(format!("{shown}: {why}")))?;
        Ok(recipe)
    }

    /// What the types do not say.
    fn check(&self) -> Result<(), String> {
        let spec = &self.spec;
        if spec.schema != SCHEMA {
            return Err(format!("it has schema {}, this kiln reads schema {SCHEMA}", spec.schema));
        }
        if !self.files.contains_key(&spec.script) {
            return Err(format!("the script `{}` is not in the folder", spec.script));
        }
        if spec.outputs.is_empty() {
            return Err("`outputs` is empty: a recipe makes something".to_owned());
        }
        for output in &spec.outputs {
            TreePath::new(output).map_err(|e| format!("output `{output}`: {e}"))?;
        }
        if spec.time.as_ref().is_some_and(|t| time::parse_iso(t).is_none()) {
            return Err("`time` is no moment such as \"2026-09-12T07:55:41Z\"".to_owned());
        }
        for (name, value) in &spec.env {
            if OWN_ENV.contains(&name.as_str()) {
                return Err(format!("env `{name}`: kiln sets it itself"));
            }
            let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
            if !first || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') || value.contains('\0')
            {
                return Err(format!("env `{name}`: this cannot be a variable"));
            }
        }
        for (name, input) in &spec.inputs {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
            if name.is_empty() || name == "recipe" || !name.chars().all(plain) {
                return Err(format!(
                    "input `{name}`: names have letters, digits, - and _, and `recipe` is taken"
                ));
            }
            input.source().map_err(|why| format!("input `{name}`: {why}"))?;
        }
        if spec.limits.processes < 16 {
            return Err("limits.processes: no build gets along with fewer than 16".to_owned());
        }
        Ok(())
    }

    /// The recipes whose outputs it needs.
    pub fn needs(&self) -> impl Iterator<Item = &str> {
        self.spec.inputs.values().filter_map(|input| input.recipe.as_deref())
    }

    /// Its inputs by name.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, Source<'_>)> {
        // check() made sure that every input is one of the kinds.
        self.spec.inputs.iter().filter_map(|(name, input)| Some((name.as_str(), input.source().ok()?)))
    }

    /// Where its TOML file lies in a project, for messages.
    pub fn shown(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name).join(FILE)
    }
}

impl Input {
    fn source(&self) -> Result<Source<'_>, String> {
        match (&self.set, &self.recipe, &self.go_modules, self.sha256) {
            (Some(set), None, None, None) => Ok(Source::Set(set)),
            (None, Some(recipe), None, None) => Ok(Source::Recipe(recipe)),
            (None, None, Some(folder), sha256) => {
                let folder = if folder == "." { "" } else { folder };
                if !folder.is_empty() {
                    TreePath::new(folder).map_err(|e| e.to_string())?;
                }
                Ok(Source::GoModules { folder, sha256 })
            }
            (.., Some(_)) => Err("`sha256` goes with `go-modules` only".to_owned()),
            _ => Err("exactly one of `set`, `recipe` and `go-modules` must be there".to_owned()),
        }
    }
}

fn read_files(folder: &Path, below: &Path, files: &mut BTreeMap<String, RecipeFile>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(folder.join(below))? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(text) = name.to_str() else { continue };
        if is_left_behind(text) || (below.as_os_str().is_empty() && text == FILE) {
            continue;
        }
        let path = below.join(text);
        let kind = entry.file_type()?;
        if kind.is_dir() {
            read_files(folder, &path, files)?;
        } else if kind.is_file() {
            let bytes = fs::read(entry.path())?;
            let executable = entry.metadata()?.permissions().mode() & 0o100 != 0;
            files.insert(path.display().to_string(), RecipeFile { bytes, executable });
        } else {
            let text = format!("{} is neither a file nor a folder", entry.path().display());
            return Err(Failure::new(Kind::Input, text).into());
        }
    }
    Ok(())
}
