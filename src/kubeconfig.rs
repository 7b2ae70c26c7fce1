//! The administrator's kubeconfig of a running server, fetched over ssh and made fit for another machine.
//!
//! K3s writes it for use on the server itself: it names the API server as 127.0.0.1 and everything else `default`.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::error::{Failure, Kind};
use crate::exec::Tool;

/// Where K3s leaves it on a server.
pub(crate) const FILE: &str = "/etc/rancher/k3s/k3s.yaml";
/// What it calls the API server.
const LOCAL: &str = "https://127.0.0.1:6443";
/// What it calls cluster, user and context.
const NAME: &str = "default";

/// Writes one to the file `path`. It is the administrator's key: made readable to its owner alone before a byte is in it, and whole or not
/// there at all.
///
/// # Errors
/// An I/O error; what was at `path` is there still.
pub fn write(path: &Path, mut text: impl Read) -> Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut work = || {
        let mut file = tempfile::Builder::new().prefix(".kubeconfig.").tempfile_in(folder)?;
        std::io::copy(&mut text, &mut file)?;
        file.persist(path).map_err(|error| error.error)
    };
    work().with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

/// How a server is reached.
#[derive(Debug, Clone)]
pub struct Server {
    /// Name or address, for ssh.
    pub host: String,
    /// Port of its sshd.
    pub port: u16,
    /// Private key, if not the one that ssh would take.
    pub key: Option<std::path::PathBuf>,
    /// Options of ssh (`-o`), as for a host key that is not known yet.
    pub options: Vec<String>,
}

/// Its kubeconfig with `address` for the API server and `name` for what K3s calls `default`.
///
/// # Errors
/// ssh's own words, or that there is no kubeconfig, with what to look at.
pub fn fetch(server: &Server, address: &str, name: &str) -> Result<String> {
    if server.host.is_empty() || server.host.starts_with('-') {
        let text = format!("`{}` is no name of a host", server.host);
        return Err(Failure::new(Kind::Input, text).into());
    }
    let mut ssh =
        Tool::host("ssh").command().args(["-o", "BatchMode=yes", "-p"]).arg(server.port.to_string());
    for option in &server.options {
        ssh = ssh.args(["-o", option]);
    }
    if let Some(key) = &server.key {
        ssh = ssh.arg("-i").arg(key);
    }
    // ssh looks for keys and known hosts at home, and for an agent.
    for variable in ["HOME", "SSH_AUTH_SOCK"] {
        if let Some(value) = std::env::var_os(variable) {
            ssh = ssh.env(variable, value);
        }
    }
    let bytes = ssh
        .args(["--", &format!("root@{}", server.host), "cat", FILE])
        .limit(Duration::from_secs(60))
        .read()
        .map_err(|error| {
            Failure::new(Kind::Fetch, format!("no kubeconfig of {}", server.host))
                .hint("the node must be a server whose K3s is up (`systemctl status k3s`), and have your key (credential ssh.authorized_keys.root)")
                .because(error)
        })?;
    let text = String::from_utf8(bytes)?;
    Ok(adapt(&text, address, name)
        .map_err(|why| Failure::new(Kind::Fetch, format!("{FILE} of {}: {why}", server.host)))?)
}

/// K3s' kubeconfig with another address and name.
pub(crate) fn adapt(text: &str, address: &str, name: &str) -> Result<String, String> {
    if !text.contains(LOCAL) {
        return Err(format!("it does not name {LOCAL}, as K3s writes it"));
    }
    let host = if address.contains(':') && !address.starts_with('[') && address.matches(':').count() > 1 {
        format!("[{address}]")
    } else {
        address.to_owned()
    };
    let url = if host.ends_with(']') || !host.contains(':') {
        format!("https://{host}:6443")
    } else {
        format!("https://{host}")
    };
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let named = line.trim_start().trim_start_matches("- ");
        let key = ["name:", "cluster:", "user:", "current-context:"]
            .into_iter()
            .find(|key| named.strip_prefix(key).is_some_and(|value| value.trim() == NAME));
        match key {
            Some(key) => {
                let (indent, _) = line.split_at(line.len() - named.len());
                out.push_str(&format!("{indent}{key} {name}"));
            }
            None => out.push_str(&line.replace(LOCAL, &url)),
        }
        out.push('\n');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: ZGVmYXVsdA==\n    server: https://127.0.0.1:6443\n  name: default\ncontexts:\n- context:\n    cluster: default\n    user: default\n  name: default\ncurrent-context: default\nkind: Config\npreferences: {}\nusers:\n- name: default\n  user:\n    client-key-data: eA==\n";

    #[test]
    fn address_and_names_are_replaced_and_nothing_else() {
        let text = adapt(TEXT, "192.0.2.7", "home").unwrap();
        assert!(text.contains("    server: https://192.0.2.7:6443\n  name: home\n"), "{text}");
        assert!(
            text.contains("    cluster: home\n    user: home\n  name: home\ncurrent-context: home\n"),
            "{text}"
        );
        assert!(text.contains("- name: home\n  user:\n"), "{text}");
        assert!(
            text.contains("certificate-authority-data: ZGVmYXVsdA==") && !text.contains("default\n"),
            "{text}"
        );
        for (address, url) in [
            ("host.example.org:8443", "https://host.example.org:8443\n"),
            ("2001:db8::1", "https://[2001:db8::1]:6443\n"),
        ] {
            let text = adapt(TEXT, address, "x").unwrap();
            assert!(text.contains(url), "{text}");
        }
        adapt("kind: Config\n", "h", "x").unwrap_err();
    }

    #[test]
    fn a_file_is_its_owners_alone_and_whole_or_what_it_was() {
        use std::os::unix::fs::PermissionsExt as _;
        /// Gives some bytes, then fails, as a disk does that is full.
        struct Fails(bool);
        impl Read for Fails {
            fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
                if std::mem::replace(&mut self.0, true) {
                    return Err(std::io::ErrorKind::StorageFull.into());
                }
                bytes[0] = b'x';
                Ok(1)
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        let there = || fs_err::read_dir(dir.path()).unwrap().count();
        let error = format!("{:#}", write(&path, Fails(false)).unwrap_err());
        assert!(error.contains("writing ") && error.contains("kubeconfig"), "{error}");
        assert_eq!(there(), 0, "half a key is left");
        write(&path, TEXT.as_bytes()).unwrap();
        assert_eq!(fs_err::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        write(&path, Fails(false)).unwrap_err();
        assert_eq!((fs_err::read_to_string(&path).unwrap().as_str(), there()), (TEXT, 1));
    }
}
