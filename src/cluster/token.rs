//! Tokens by which nodes join a K3s cluster.
//!
//! K3s takes two forms (docs.k3s.io/cli/token): the short one is the password alone; the secure one,
//! `K10<SHA-256 of the CA's certificates>::server:<password>`, also says which server is meant. The CA is made when a server starts for
//! the first time, so a token that is made before has the short form.

use std::io::{Read as _, Write as _};
use std::path::Path;

use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;

use super::secret::Value;
use crate::digest::Digest;
use crate::error::{Failure, Kind};

/// Bytes of a password. K3s makes 16 of its own; 32 are as strong as the CA's key.
const BYTES: usize = 32;
const RANDOM: &str = "/dev/urandom";

/// A new token, 64 hexadecimal digits from the kernel's random source (random(4)); with `ca`, the bytes of /cacerts of a server, in the
/// secure form.
///
/// # Errors
/// [`Kind::Input`]: `ca` is no certificate. An I/O error of the random source.
pub fn new(ca: Option<&[u8]>) -> anyhow::Result<Value> {
    let mut bytes = [0; BYTES];
    fs::File::open(RANDOM)?.read_exact(&mut bytes)?;
    let password = hex::encode(bytes);
    let Some(ca) = ca else { return Ok(Value::new(password)) };
    if !ca.starts_with(b"-----BEGIN CERTIFICATE-----") {
        return Err(Failure::new(Kind::Input, "the CA is no certificate in PEM")
            .hint("give /var/lib/rancher/k3s/server/tls/server-ca.crt of the server, or what it answers at /cacerts")
            .into());
    }
    Ok(Value::new(format!("K10{}::server:{password}", hex::encode(Digest::of(ca).as_bytes()))))
}

/// Writes a token into the new file `path` that its owner alone may read, mode 0600.
///
/// # Errors
/// [`Kind::Input`]: something is there already; it is left as it is. An I/O error leaves no file.
pub fn write(path: &Path, token: &Value) -> anyhow::Result<()> {
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = match opened {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::new(
                Kind::Input,
                format!("{} is there already: it was not touched", path.display()),
            )
            .hint("name another file; nodes that have the old token could not join with a new one")
            .into());
        }
        other => other?,
    };
    let mut text = token.expose().to_vec();
    text.push(b'\n');
    let written = file.write_all(&text).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half a token is worse than none.
        fs::remove_file(path).ok();
        return Err(error.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn tokens_differ_and_have_256_bits() {
        let tokens: BTreeSet<Vec<u8>> = (0..100).map(|_| new(None).unwrap().expose().to_vec()).collect();
        assert_eq!(tokens.len(), 100);
        let text: Vec<u8> = tokens.into_iter().flatten().collect();
        assert_eq!(text.len(), 6400);
        // Of 6400 digits each of the 16 is there 400 times, within six standard deviations of 19.4.
        for digit in b"0123456789abcdef" {
            let count = text.iter().filter(|b| *b == digit).count();
            assert!((284..=516).contains(&count), "{digit} {count}");
        }
    }

    #[test]
    fn the_secure_form_names_the_ca() {
        let ca = b"-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n";
        let token = String::from_utf8(new(Some(ca)).unwrap().expose().to_vec()).unwrap();
        let (hash, password) = token.strip_prefix("K10").unwrap().split_once("::server:").unwrap();
        assert_eq!(hash, hex::encode(Digest::of(ca).as_bytes()));
        assert_eq!(password.len(), 64);
        assert!(new(Some(b"x")).is_err());
    }

    #[test]
    fn a_file_is_for_its_owner_alone_and_never_overwritten() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write(&path, &Value::new("one")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write(&path, &Value::new("two")).unwrap_err().to_string().contains("there already"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\n");
    }
}
