//! A project with recipes of a test, on the shared store: tool sets are unpacked once for all tests.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::images;
use crate::common::run::{Run, command, program};

pub(crate) struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("recipe-").tempdir_in(images::folder()).unwrap();
        for part in ["images", "profiles", "qemu"] {
            images::copy(&images::project().join(part), &dir.path().join("project").join(part));
        }
        fs_err::create_dir_all(dir.path().join("project/images/recipes")).unwrap();
        Lab { dir }
    }

    /// With a recipe of tests/fixtures.
    pub(crate) fn with(fixture: &str) -> Self {
        let lab = Self::new();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/recipes").join(fixture);
        images::copy(&from, &lab.folder(fixture));
        let text = lab.read(fixture, "recipe.toml");
        lab.file(fixture, "recipe.toml", lab.fresh(&text));
        lab
    }

    /// With a recipe `name` of one script, which makes `result`.
    pub(crate) fn of(name: &str, script: &str, more: &str) -> Self {
        let lab = Self::new();
        lab.recipe(name, script, more);
        lab
    }

    pub(crate) fn recipe(&self, name: &str, script: &str, more: &str) {
        let head = "schema = 1\ndescription = \"a test\"\ntools = \"build-c\"\nscript = \"build.sh\"\n";
        self.file(name, "recipe.toml", self.fresh(&format!("{head}outputs = [\"result\"]\n{more}")));
        self.file(name, "build.sh", script);
    }

    /// With a word in the environment that no run before had: what an earlier run built does not count.
    fn fresh(&self, toml: &str) -> String {
        let word = self.dir.path().file_name().unwrap().to_str().unwrap();
        if toml.contains("[env]\n") {
            toml.replacen("[env]\n", &format!("[env]\nRUN = \"{word}\"\n"), 1)
        } else {
            format!("{toml}\n[env]\nRUN = \"{word}\"\n")
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn folder(&self, recipe: &str) -> PathBuf {
        self.path("project/images/recipes").join(recipe)
    }

    pub(crate) fn file(&self, recipe: &str, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.folder(recipe).join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, bytes).unwrap();
    }

    pub(crate) fn read(&self, recipe: &str, name: &str) -> String {
        fs_err::read_to_string(self.folder(recipe).join(name)).unwrap()
    }

    /// kiln on this project, with nothing of this machine's environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.command_of(&program(), args)
    }

    /// The same with another program in the place of kiln, which gets kiln's command line.
    pub(crate) fn command_of(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = command(program);
        command
            .env_clear()
            .env("HOME", self.dir.path())
            .env("PATH", "/usr/bin:/bin")
            .env("KILN_STORE", images::store())
            .arg("-C")
            .arg(self.path("project"))
            .arg("recipe")
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn kiln(&self, args: &[&str]) -> Run {
        Run::of(&self.command(args).output().unwrap())
    }

    /// What `kiln recipe list` says of a recipe: `built`, `missing`, `error`.
    pub(crate) fn state(&self, recipe: &str) -> String {
        let list = self.kiln(&["list", "--json"]).ok().json();
        let row = list.as_array().unwrap().iter().find(|row| row["name"] == recipe).unwrap();
        row["state"].as_str().unwrap().to_owned()
    }

    pub(crate) fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    /// Builds a recipe that passes; its `result`.
    #[track_caller]
    pub(crate) fn result(&self, name: &str) -> String {
        let run = self.kiln(&["build", name]).ok();
        fs_err::read_to_string(Path::new(run.stdout.trim()).join("result")).unwrap()
    }

    /// Builds a recipe whose script notes what it tried in `result`, line by line, and must have come to exactly this.
    #[track_caller]
    pub(crate) fn comes_to(&self, name: &str, expected: &[&str]) {
        let result = self.result(name);
        let found: Vec<&str> = result.lines().collect();
        assert_eq!(found, expected, "{}", self.kiln(&["log", name]).stdout);
    }
}

/// Noting what was tried, for scripts: `try NAME COMMAND…` adds `NAME: no` or `NAME: YES`.
pub(crate) const TRY: &str = r#"
try() {
  name=$1; shift
  if "$@" 2> error > output; then echo "$name: YES"; else cat error >&2; echo "$name: no"; fi >> "$KILN_OUT/result"
}
"#;

/// Host processes with `word` in their command line, kiln's own left out.
pub(crate) fn processes_with(word: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let Ok(line) = fs_err::read(path.join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(word) && !line.contains("recipe build") {
            found.push(format!("{}: {line}", path.display()));
        }
    }
    found
}
