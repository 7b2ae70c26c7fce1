//! Secrets, once they are known.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err as fs;

use crate::error::{Failure, Kind};
use crate::exec::Tool;
use crate::spec::cluster::{Cluster, Found, Secret};

/// How long a command may take: a person may have to touch a key or type a PIN.
const LIMIT: Duration = Duration::from_secs(60);
/// The longest secret: a credential of systemd may be so long (systemd.exec(5), LoadCredential=), and nothing here is near it.
const LONGEST: usize = 1 << 20;

/// Bytes that are shown nowhere: `Debug` says how many there are.
#[derive(Clone, PartialEq, Eq)]
pub struct Value(Vec<u8>);

impl Value {
    /// These bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Value(bytes.into())
    }

    /// The bytes themselves, for where they belong.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} secret bytes>", self.0.len())
    }
}

/// Asks for each secret of a cluster when it is first needed, and only once: a command may want a finger on a key.
#[derive(Debug)]
pub struct Keeper<'a> {
    cluster: &'a Cluster,
    known: BTreeMap<&'static str, Value>,
}

impl<'a> Keeper<'a> {
    /// Nothing has been asked for yet.
    pub fn new(cluster: &'a Cluster) -> Self {
        Keeper { cluster, known: BTreeMap::new() }
    }

    /// The secret that cluster.toml calls `key`.
    ///
    /// # Errors
    /// [`Kind::Input`], naming where it should be: it is not there, or it is empty. [`Kind::Tool`]: its command failed, or took longer
    /// than a minute.
    pub fn get(&mut self, key: &'static str, secret: &Secret) -> Result<Value, Failure> {
        if let Some(value) = self.known.get(key) {
            return Ok(value.clone());
        }
        let value = resolve(key, secret, &self.cluster.folder)?;
        self.known.insert(key, value.clone());
        Ok(value)
    }
}

fn resolve(key: &str, secret: &Secret, folder: &Path) -> Result<Value, Failure> {
    whole(key, secret, &fetch(key, secret, folder)?)
}

/// The bytes as they are where the secret is.
fn fetch(key: &str, secret: &Secret, folder: &Path) -> Result<Vec<u8>, Failure> {
    let missing = |why: String| Failure::new(Kind::Input, format!("the secret `{key}` is not there: {why}"));
    match secret {
        Secret::File(path) => fs::read(path).map_err(|error| {
            missing(error.to_string()).hint(format!("put it into {}, mode 0600", path.display()))
        }),
        Secret::Env(name) => {
            std::env::var_os(name).map(std::os::unix::ffi::OsStringExt::into_vec).ok_or_else(|| {
                missing(format!("the variable {name} is not set"))
                    .hint(format!("set {name}, such as by `read -rs {name}; export {name}`"))
            })
        }
        Secret::Command(words) => run(key, words, folder),
    }
}

/// The secret in these bytes, without the end of its line.
fn whole(key: &str, secret: &Secret, bytes: &[u8]) -> Result<Value, Failure> {
    // Editors, echo and password managers end a line.
    let end = bytes.iter().rposition(|b| !b"\r\n".contains(b)).map_or(0, |last| last + 1);
    let bytes = &bytes[..end];
    let refuse = |why: &str| Failure::new(Kind::Input, format!("the secret `{key}` from {secret} {why}"));
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(refuse("is empty").hint("look at what it is made by; nothing was given to any node"));
    }
    if bytes.len() > LONGEST {
        return Err(refuse(&format!("has {} bytes, {LONGEST} is the most", bytes.len())));
    }
    Ok(Value::new(bytes))
}

/// Looks into a secret for `kiln cluster check`, which knows no node yet: commands run in `folder`, as they do for a node.
pub fn look(key: &'static str, secret: &Secret, folder: &Path) -> Found {
    let bytes = match fetch(key, secret, folder) {
        Ok(bytes) => bytes,
        Err(failure) => return Found::Missing(failure),
    };
    match whole(key, secret, &bytes).and_then(|value| super::judge::judge(key, secret, &value)) {
        Ok(()) => Found::Good,
        Err(failure) => Found::Wrong(failure),
    }
}

fn run(key: &str, words: &[String], folder: &Path) -> Result<Vec<u8>, Failure> {
    let (program, arguments) =
        words.split_first().map_or(("", words), |(first, rest)| (first.as_str(), rest));
    let path = find(program, folder).ok_or_else(|| {
        Failure::new(Kind::Input, format!("the secret `{key}` is not there: there is no program `{program}`"))
            .hint("install it, or write its whole path")
    })?;
    let output = Tool::host(path).command().args(arguments).folder(folder).as_person().limit(LIMIT).read();
    output.map_err(|error| {
        let failure = Failure::from(error);
        let kind = failure.kind;
        Failure::new(kind, format!("the secret `{key}` is not there: its command failed"))
            .hint("run the command by hand: it must print the secret and end with code 0")
            .because(failure)
    })
}

/// The program that a shell would take for `name`: with a slash, a path from `folder`; else the first of PATH.
fn find(name: &str, folder: &Path) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(folder.join(name)).filter(runs);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Secret {
        Secret::Command(["sh", "-c", script].map(str::to_owned).to_vec())
    }

    #[test]
    fn what_a_file_or_a_command_says_is_taken_without_the_end_of_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        fs::write(&file, "sesame\r\n").unwrap();
        let get = |secret: &Secret| resolve("token", secret, dir.path()).unwrap().expose().to_vec();
        assert_eq!(get(&Secret::File(file)), b"sesame");
        assert_eq!(get(&sh("cat token")), b"sesame");
        // A program of the person finds what the person's programs find.
        assert_eq!(get(&sh("test -n \"$HOME\" && echo ok")), b"ok");
    }

    #[test]
    fn a_secret_that_is_not_there_or_empty_is_an_error_that_names_where_it_should_be() {
        let dir = tempfile::tempdir().unwrap();
        let error = |secret: &Secret| resolve("token", secret, dir.path()).unwrap_err().to_string();
        assert!(error(&Secret::File(dir.path().join("no"))).contains("/no"));
        assert!(error(&Secret::Env("KILN_NO_SUCH_SECRET".to_owned())).contains("KILN_NO_SUCH_SECRET"));
        assert!(error(&sh("echo")).contains("is empty"));
        assert!(error(&sh("echo sesame; exit 3")).contains("command failed"));
        assert!(error(&Secret::Command(vec!["no-such-program".to_owned()])).contains("no-such-program"));
    }

    #[test]
    fn debug_does_not_show_it() {
        assert_eq!(format!("{:?}", Value::new("sesame")), "<6 secret bytes>");
    }
}
