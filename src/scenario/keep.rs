//! Runs whose machines are left up: where others find them.
//!
//! As long as the run holds its machines, the report's folder has a file [`FILE`] with the process and the sockets of all shells.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::engine::Attach;
use crate::error::{Failure, Kind};

/// The file in the report's folder.
pub const FILE: &str = "cluster.json";

/// A run that holds its machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The scenario's name.
    pub scenario: String,
    /// The process that holds them.
    pub process: u32,
    /// Where the shells are.
    pub nodes: Vec<Shell>,
}

/// The shell of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shell {
    /// The node.
    pub node: String,
    /// The unix socket that is its terminal.
    pub socket: PathBuf,
}

/// The file while it is there; removed on drop.
#[derive(Debug)]
pub struct Notice(PathBuf);

impl Notice {
    /// Tells others of the machines of a run whose report is in `report`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn put(report: &Path, scenario: &str, shells: &[Attach]) -> Result<Self> {
        let nodes = shells.iter().map(|a| Shell { node: a.node.clone(), socket: a.socket.clone() }).collect();
        let kept = Kept { scenario: scenario.to_owned(), process: std::process::id(), nodes };
        let path = report.join(FILE);
        fs::write(&path, serde_json::to_vec_pretty(&kept)?)?;
        Ok(Notice(path))
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        // Whoever removed it first did the same.
        let _ = fs::remove_file(&self.0);
    }
}

/// The shell of `node` in a run whose report is in a folder of `reports` (or is `reports` itself); of `scenario`, if several have it.
///
/// # Errors
/// [`Kind::Input`] when there is none, or more than one.
pub fn find(reports: &Path, scenario: Option<&str>, node: &str) -> Result<Shell> {
    let mut folders = vec![reports.to_owned()];
    if let Ok(entries) = fs::read_dir(reports) {
        folders.extend(entries.flatten().map(|entry| entry.path()));
    }
    folders.sort();
    let mut runs: Vec<Kept> = Vec::new();
    for folder in folders {
        let Ok(bytes) = fs::read(folder.join(FILE)) else { continue };
        let Ok(kept) = serde_json::from_slice::<Kept>(&bytes) else { continue };
        // A run that was killed leaves its file behind; its machines died with it.
        if kept.nodes.iter().any(|shell| shell.socket.exists()) && scenario.is_none_or(|s| s == kept.scenario)
        {
            runs.push(kept);
        }
    }
    let mut found: Vec<(&str, &Shell)> = Vec::new();
    for run in &runs {
        found.extend(
            run.nodes.iter().filter(|shell| shell.node == node).map(|shell| (run.scenario.as_str(), shell)),
        );
    }
    match found.as_slice() {
        [(_, shell)] => Ok((*shell).clone()),
        [] if runs.is_empty() => {
            let what = format!("no run holds its machines in {}", reports.display());
            Err(Failure::new(Kind::Input, what)
                .hint("`kiln test --keep` leaves them up when its steps are over")
                .into())
        }
        [] => {
            let nodes = runs.iter().flat_map(|run| run.nodes.iter().map(|shell| shell.node.as_str()));
            let known = nodes.collect::<Vec<_>>().join(", ");
            Err(Failure::new(Kind::Input, format!("no run holds a node `{node}`"))
                .hint(format!("nodes: {known}"))
                .into())
        }
        several => {
            let names: Vec<&str> = several.iter().map(|(scenario, _)| *scenario).collect();
            let what = format!("{} runs hold a node `{node}`: {}", several.len(), names.join(", "));
            Err(Failure::new(Kind::Input, what).hint("say which with `--scenario NAME`").into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(folder: &Path, node: &str) -> Attach {
        let socket = folder.join(format!("{node}.sock"));
        fs::write(&socket, "").unwrap();
        Attach { node: node.to_owned(), socket }
    }

    #[test]
    fn a_node_is_found_by_its_name_while_its_run_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        fs::create_dir_all(&one).unwrap();
        fs::create_dir_all(&two).unwrap();
        assert!(
            find(folder.path(), None, "server")
                .unwrap_err()
                .to_string()
                .contains("no run holds its machines")
        );
        let first = Notice::put(&one, "one", &[shell(&one, "server"), shell(&one, "agent-1")]).unwrap();
        assert_eq!(find(folder.path(), None, "server").unwrap().socket, one.join("server.sock"));
        assert!(find(folder.path(), None, "agent-2").unwrap_err().to_string().contains("agent-2"));
        let second = Notice::put(&two, "two", &[shell(&two, "server")]).unwrap();
        assert!(find(folder.path(), None, "server").unwrap_err().to_string().contains("one, two"));
        assert_eq!(find(folder.path(), Some("two"), "server").unwrap().socket, two.join("server.sock"));
        drop(first);
        assert_eq!(find(folder.path(), None, "server").unwrap().socket, two.join("server.sock"));
        drop(second);
        assert!(find(folder.path(), None, "server").is_err());
    }

    #[test]
    fn the_file_of_a_killed_run_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let attach = shell(folder.path(), "server");
        let notice = Notice::put(folder.path(), "one", std::slice::from_ref(&attach)).unwrap();
        fs::remove_file(&attach.socket).unwrap();
        assert!(find(folder.path(), None, "server").is_err());
        drop(notice);
    }
}
