//! Keys and references to secrets.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use fs_err as fs;

use crate::scenario::problems::{Part, Problems, spot};
use crate::scenario::spec::Name;
use crate::spec::Role;
use crate::spec::cluster::file::{File, SecretFile};
use crate::spec::cluster::secret::{TABLE, WAYS};
use crate::spec::cluster::{Node, Seal, Secret, Secrets};

/// Types of public keys that sshd of Debian 13 takes (sshd_config(5), PubkeyAcceptedAlgorithms).
const KEY_TYPES: [&str; 6] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];
/// Its keys are as long as their owner chose, so it is no word of the list above.
const RSA: &str = "ssh-rsa";

/// Lines of authorized_keys, those of files included.
pub(super) fn ssh_keys(shape: &File, folder: &Path, problems: &mut Problems<'_>) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for (index, entry) in shape.ssh_keys.iter().enumerate() {
        let spot = || spot!["ssh-keys", index];
        let text = match entry.strip_prefix('@') {
            None => entry.clone(),
            Some(path) => match fs::read_to_string(folder.join(path)) {
                Ok(text) => text,
                Err(error) => {
                    problems
                        .add(spot(), format!("the key cannot be read: {error}"))
                        .hint("the path is relative to the folder of this file");
                    continue;
                }
            },
        };
        let lines: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        if lines.is_empty() {
            problems.add(spot(), "there is no key");
        }
        for line in lines {
            match public_key(line) {
                Ok(()) if keys.iter().any(|key| key == line) => {}
                Ok(()) => keys.push(line.to_owned()),
                Err(why) => {
                    problems
                        .add(spot(), why)
                        .hint("give the public half, one line such as \"ssh-ed25519 AAAA… me@home\"; `ssh-keygen -t ed25519` makes a pair");
                    break;
                }
            }
        }
    }
    keys
}

/// Whether `line` is a key of authorized_keys(5). Options before the key are let be.
fn public_key(line: &str) -> Result<(), String> {
    if line.contains("PRIVATE KEY") {
        return Err("this is the private half of a key, which belongs to nobody else".to_owned());
    }
    if line.contains(char::is_control) {
        return Err("a key has no control characters".to_owned());
    }
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let place = words.iter().position(|word| KEY_TYPES.contains(word) || *word == RSA);
    let blob = place.and_then(|place| words.get(place + 1));
    // RFC 4253, 6.6: the blob begins with the length of the type, which is less than 2^24, so with three bytes of zero or nearly so.
    match blob {
        Some(blob) if blob.starts_with("AAAA") && blob.len() >= 40 => Ok(()),
        Some(_) => Err("the key is cut off or changed".to_owned()),
        None => Err("this is no public key of ssh".to_owned()),
    }
}

pub(super) fn secrets(
    shape: &File,
    folder: &Path,
    nodes: &BTreeMap<Name, Node>,
    problems: &mut Problems<'_>,
    warnings: &mut Problems<'_>,
) -> Secrets {
    let file = &shape.secret;
    let mut read = |key: &'static str, secret: &Option<SecretFile>| {
        let secret = reference(key, secret.as_ref()?, folder, problems)?;
        look(key, &secret, warnings);
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
fn look(key: &str, secret: &Secret, warnings: &mut Problems<'_>) {
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
