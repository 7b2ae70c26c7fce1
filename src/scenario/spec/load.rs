//! Where scenarios come from: the folder qemu/ of a project, or any file.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use fs_err as fs;

use super::lower;
use super::model::Scenario;
use crate::error::{Failure, Kind};
use crate::spec::{nearest, text};

/// The folder of scenarios in a project.
const FOLDER: &str = "qemu";
/// The machines in it that are no product: profiles that only scenarios use.
const MACHINES: &str = "qemu/machines";

impl Scenario {
    /// Reads the scenario `name` from `text`, which people know as `file`. `machines` are the profiles that are no product.
    ///
    /// # Errors
    /// [`Kind::Input`] with everything that is wrong, each thing with its line.
    pub fn parse(name: &str, file: &str, text: &str, machines: &BTreeSet<String>) -> Result<Self> {
        lower::read(name, file, text, machines)
    }

    /// Reads what `wanted` means: the name of a file in qemu/ of the project `dir`, without `.toml`, or the path of any file.
    ///
    /// # Errors
    /// [`Kind::Input`]: there is no such scenario (with near names), or what is wrong with it.
    pub fn load(dir: &Path, wanted: &str) -> Result<Self> {
        let machines = stems(&dir.join(MACHINES)).into_iter().collect();
        if wanted.ends_with(".toml") || wanted.contains('/') {
            let path = Path::new(wanted);
            let text = text::read(path).map_err(|e| {
                Failure::new(Kind::Input, format!("the scenario {wanted} cannot be read")).because(e)
            })?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            check_name(&name, wanted)?;
            return Self::parse(&name, wanted, &text, &machines);
        }
        let file = format!("{FOLDER}/{wanted}.toml");
        let known = stems(&dir.join(FOLDER));
        if !known.iter().any(|name| name == wanted) {
            let mut failure =
                Failure::new(Kind::Input, format!("there is no scenario `{wanted}` in {FOLDER}/"));
            if let Some(near) = nearest(wanted, known.iter().map(String::as_str)) {
                failure = failure.hint(format!("did you mean `{near}`?"));
            }
            let list = match known.len() {
                0 => format!("{FOLDER}/ has no scenario; `kiln init DIR` writes some"),
                _ => format!("scenarios: {}; or the path of a file", known.join(", ")),
            };
            return Err(failure.hint(list).into());
        }
        check_name(wanted, &file)?;
        Self::parse(wanted, &file, &text::read(&dir.join(&file))?, &machines)
    }

    /// All scenarios in qemu/ of the project `dir`, by name; those that cannot be used, too.
    pub fn list(dir: &Path) -> Vec<(String, Result<Self>)> {
        stems(&dir.join(FOLDER))
            .into_iter()
            .map(|name| {
                let scenario = Self::load(dir, &name);
                (name, scenario)
            })
            .collect()
    }
}

/// A scenario's name becomes the name of folders, and machine ids follow from it.
fn check_name(name: &str, file: &str) -> Result<(), Failure> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if !name.is_empty() && name.len() <= 64 && name.bytes().all(fits) {
        return Ok(());
    }
    let text = format!("{} cannot be the name of a scenario", file.escape_debug());
    Err(Failure::new(Kind::Input, text)
        .hint("write letters, digits, `.`, `_` and `-`, at most 64, and `.toml`"))
}

/// The names of the TOML files in `folder`, without the ending, sorted.
fn stems(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut stems: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .filter_map(|name| name.strip_suffix(".toml").map(str::to_owned))
        .collect();
    stems.sort();
    stems
}
