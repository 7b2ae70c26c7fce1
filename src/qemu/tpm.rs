//! A TPM 2.0 for a machine: a process of swtpm beside QEMU, with its state in the run folder.

use std::path::Path;
use std::time::{Duration, Instant};

use fs_err as fs;

use super::config::Places;
use crate::error::{Failure, Kind};
use crate::exec::{Child, Tool};

/// How long it may take to open its socket; a new one makes its seeds before.
const START_LIMIT: Duration = Duration::from_secs(30);
/// `SO_ACCEPTCON` among the flags of /proc/net/unix: somebody listens.
const LISTENS: &str = "00010000";

/// How a guest talks to its TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tpm {
    /// The registers of a chip on a bus (TIS).
    Tis,
    /// The buffer of one in the firmware (CRB), which ARM machines do not have.
    Crb,
}

/// Starts the TPM of a machine, new if it has no state yet; it ends with the machine that connects to it.
///
/// # Errors
/// [`Kind::Tool`] when it does not start.
pub(super) fn start(root: &Path, places: &Places, machine: &str) -> Result<Child, Failure> {
    let (state, socket) = (places.tpm_state(), places.tpm());
    let broken = |what: String| Failure::new(Kind::Tool, format!("the TPM of machine {machine}: {what}"));
    fs::create_dir_all(&state).map_err(|error| broken(error.to_string()))?;
    // Of a process that was killed.
    fs::remove_file(&socket).ok();
    let mut child = Tool::from_tree(root, "usr/bin/swtpm")
        .map_err(Failure::from)?
        .command()
        .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
        .arg(format!("dir={}", state.display()))
        .arg("--ctrl")
        .arg(format!("type=unixio,path={}", socket.display()))
        .spawn()
        .map_err(Failure::from)?;
    let end = Instant::now() + START_LIMIT;
    // The first who connects is the machine, so nobody may try.
    while !listening(&socket) {
        if let Some(status) = child.wait(Duration::from_millis(10))? {
            child.judge(status)?;
            return Err(broken("it ended before the machine began".to_owned()));
        }
        if Instant::now() > end {
            return Err(broken(format!("it opened no socket {}", socket.display())).hint(child.stderr()));
        }
    }
    Ok(child)
}

/// Whether somebody listens on a socket, asked without connecting.
fn listening(socket: &Path) -> bool {
    let Some(path) = socket.to_str() else { return false };
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    table.lines().any(|line| line.ends_with(path) && line.split(' ').any(|word| word == LISTENS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_heard_of_only_when_somebody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(!listening(&path));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(listening(&path));
        drop(listener);
        assert!(path.exists() && !listening(&path));
    }
}
