//! Keys and references to secrets.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use fs_err as fs;

use crate::error::Failure;
use crate::scenario::problems::{Part, Problem, Problems, spot};
use crate::scenario::spec::Name;
use crate::spec::cluster::file::{File, SecretFile};
use crate::spec::cluster::secret::{TABLE, WAYS};
use crate::spec::cluster::{Found, Look, Node, Seal, Secret, Secrets};
use crate::spec::{Role, ssh};

/// Lines of authorized_keys, those of files included.
pub(super) fn ssh_keys(shape: &File, folder: &Path, problems: &mut Problems<'_>) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for (index, entry) in shape.ssh_keys.iter().enumerate() {
        let spot = || spot!["ssh-keys", index];
        let file = entry.trim_start_matches('\u{feff}').strip_prefix('@');
        let bytes = match file {
            None => entry.as_bytes().to_vec(),
            Some(path) => match key_file(path, folder) {
                Ok(bytes) => bytes,
                Err((why, hint)) => {
                    problems.add(spot(), why).hint(hint);
                    continue;
                }
            },
        };
        // What `mask` took for a private key.
        let masked = !entry.trim().is_empty() && entry.bytes().all(|b| b == b'*' || b.is_ascii_whitespace());
        let read = if masked { Err(ssh::private()) } else { ssh::keys(&bytes) };
        match read {
            Ok(read) if read.is_empty() => {
                problems.add(spot(), "there is no key").hint("leave it out, or give the line of a .pub file");
            }
            Ok(read) => read.into_iter().for_each(|key| {
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }),
            Err(refusal) => {
                let line = file.map(|_| format!("line {} of the file: ", refusal.line)).unwrap_or_default();
                problems.add(spot(), format!("{line}{}", refusal.why)).hint(refusal.hint);
            }
        }
    }
    keys
}

/// The bytes of a file of keys; else why not, and what to do.
fn key_file(path: &str, folder: &Path) -> Result<Vec<u8>, (String, String)> {
    let below = "a path is relative to the folder of this file; `~/` is your home folder".to_owned();
    let whole = match path.strip_prefix('~') {
        None if path.starts_with('$') => {
            return Err(("variables are not read in the path of a key".to_owned(), below));
        }
        None => folder.join(path),
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).ok_or_else(|| {
                let why = "the key cannot be read: `~` is the folder in HOME, and that variable is not set";
                (why.to_owned(), "write the whole path".to_owned())
            })?;
            Path::new(&home).join(rest.trim_start_matches('/'))
        }
        Some(_) => {
            let why = "the home folders of other people are not known here: only `~/` is";
            return Err((why.to_owned(), "write the whole path".to_owned()));
        }
    };
    fs::read(whole).map_err(|error| (format!("the key cannot be read: {error}"), below))
}

pub(super) fn secrets(
    shape: &File,
    folder: &Path,
    nodes: &BTreeMap<Name, Node>,
    look: Option<&Look<'_>>,
    problems: &mut Problems<'_>,
    warnings: &mut Problems<'_>,
) -> Secrets {
    let file = &shape.secret;
    let mut read = |key: &'static str, secret: &Option<SecretFile>| {
        let secret = reference(key, secret.as_ref()?, folder, problems)?;
        readable(key, &secret, warnings);
        match look.map(|look| look(key, &secret, folder)) {
            None | Some(Found::Good) => {}
            // `readable` has said so of a file.
            Some(Found::Missing(_)) if matches!(secret, Secret::File(_)) => {}
            Some(Found::Missing(failure)) => {
                tell(warnings.add(spot![TABLE, key], failure.to_string()), &failure);
            }
            Some(Found::Wrong(failure)) => {
                tell(problems.add(spot![TABLE, key], failure.to_string()), &failure);
            }
        }
        Some(secret)
    };
    let secrets = Secrets {
        token: read("token", &file.token),
        root_password: read("root-password", &file.root_password),
        registries: read("registries", &file.registries),
    };
    let agent = nodes.values().find(|node| node.role == Role::Agent);
    if let (Some(agent), None) = (agent, &file.token) {
        problems
            .add(
                spot!["node", Part::Name(agent.name.to_string())],
                format!("`{}` is an agent, and there is no token by which it could join", agent.name),
            )
            .hint("`kiln token new --out secrets/token`, then write `[secret]` with `token = { file = \"secrets/token\" }`");
    }
    sealed(shape, nodes, warnings);
    secrets
}

fn tell(problem: &mut Problem, failure: &Failure) {
    for hint in failure.hints() {
        problem.hint(hint);
    }
}

/// A key for secrets where there are none was meant for something else.
fn sealed(shape: &File, nodes: &BTreeMap<Name, Node>, warnings: &mut Problems<'_>) {
    let file = &shape.secret;
    if file.token.is_some() || file.root_password.is_some() || file.registries.is_some() {
        return;
    }
    if let Some(node) = nodes.values().find(|node| node.seal != Seal::Null) {
        let spot =
            if shape.seal.is_some() { spot!["seal"] } else { spot!["node", node.name.as_str(), "seal"] };
        warnings.add(spot, "nothing is sealed: this file names no secret");
    }
}

fn reference(key: &str, file: &SecretFile, folder: &Path, problems: &mut Problems<'_>) -> Option<Secret> {
    let here = || spot![TABLE, key];
    let remedy = "write where it is: { file = \"PATH\" }, { env = \"NAME\" } or { command = [\"PROGRAM\", \"ARGUMENT\"] }";
    let SecretFile::Reference(file) = file else {
        problems
            .add(here(), format!("`{key}` is no reference: no secret stands in this file"))
            .hint(remedy)
            .hint("if it was a secret that counts, make a new one: files like this end in Git");
        return None;
    };
    let mut found = Vec::new();
    if let Some(path) = &file.file {
        if path.is_empty() {
            problems.add([here(), spot!["file"]].concat(), "the path is empty");
        }
        found.push(Secret::File(folder.join(path)));
    }
    if let Some(name) = &file.env {
        // environ(7): anything without `=`; POSIX names are what a shell can set.
        let fits = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && name.bytes().next().is_some_and(|b| !b.is_ascii_digit());
        if !fits {
            problems
                .add(
                    [here(), spot!["env"]].concat(),
                    format!("`{}` is no name of a variable", name.escape_debug()),
                )
                .hint("write the name alone, such as \"K3S_TOKEN\"");
        }
        found.push(Secret::Env(name.clone()));
    }
    if let Some(words) = &file.command {
        if words.first().is_none_or(|program| program.is_empty())
            || words.iter().any(|word| word.contains('\0'))
        {
            problems
                .add([here(), spot!["command"]].concat(), "there is no program")
                .hint("write the program and its arguments, such as [\"pass\", \"show\", \"homelab/token\"]");
        }
        found.push(Secret::Command(words.clone()));
    }
    match found.len() {
        1 => found.pop(),
        count => {
            let how = if count == 0 { "says nowhere" } else { "says more than once" };
            problems
                .add(here(), format!("`{key}` {how} where it is: give exactly one of {}", WAYS.join(", ")))
                .hint(remedy);
            None
        }
    }
}

/// Whether others may read a file of a secret, or nobody.
fn readable(key: &str, secret: &Secret, warnings: &mut Problems<'_>) {
    let Secret::File(path) = secret else { return };
    let spot = spot![TABLE, key, "file"];
    let shown = path.display();
    match fs::File::open(path).and_then(|file| file.metadata()) {
        Err(error) => {
            warnings.add(spot, format!("the secret cannot be read: {error}")).hint(match key {
                "token" => format!("`kiln token new --out {shown}` makes a token"),
                _ => "no node can be given it until it can".to_owned(),
            });
        }
        Ok(meta) if !meta.is_file() => {
            warnings.add(spot, format!("the secret cannot be read: {shown} is no file"));
        }
        Ok(meta) if meta.permissions().mode() & 0o044 != 0 => {
            let mode = meta.permissions().mode() & 0o777;
            warnings
                .add(spot, format!("others may read the secret: {shown} has mode {mode:04o}"))
                .hint(format!("chmod 600 {shown}"));
        }
        Ok(_) => {}
    }
}
