//! What a node is told so that it puts its secrets under a key of its own: this machine cannot, a TPM is used by its own machine alone.
//!
//! The credential [`NAME`] has the word of systemd-creds(1) for the key, then the names of the credentials that are secret, a line each.
//! images/files/seal does it, at the node's first boot. It writes over the files on the ESP in place and never makes one, so room is left
//! for the longer form ([`room`]), and there is a spare file ([`SPARE`]) for the moment in which a file is half written.

use super::Credential;
use super::secret::Value;
use crate::error::{Failure, Kind};
use crate::spec::cluster::{Node, Seal};

/// The credential that says what to seal and how.
pub const NAME: &str = "kiln.seal";
/// The file beside those of the secrets, by its name as a credential.
pub const SPARE: &str = "kiln.seal-spare";
/// What seals on a node.
const UNIT: &str = "kiln-seal.service";
/// More than systemd adds to a value: what the TPM gives for a key is less than 1 KiB, with its public key, policy and header.
const ADDED: usize = 4096;
/// Files are of whole such blocks, so that the room is there whatever the file system's clusters are.
const BLOCK: usize = 4096;

/// What a node is told that is to seal the credentials with these names; `None` if that is nothing.
pub fn order<'a>(seal: Seal, names: impl IntoIterator<Item = &'a str>) -> Option<Credential> {
    let names: Vec<&str> = names.into_iter().collect();
    if seal == Seal::Null || names.is_empty() {
        return None;
    }
    let text = format!("{seal}\n{}\n", names.join("\n"));
    Some(Credential { name: NAME.to_owned(), value: Value::new(text), secret: false })
}

/// The names of the credentials that the node with this identity is to seal.
pub fn names(identity: &[Credential]) -> Vec<String> {
    let order = identity.iter().find(|credential| credential.name == NAME);
    let text = order.map(|order| String::from_utf8_lossy(order.value.expose()).into_owned());
    text.unwrap_or_default().lines().skip(1).map(str::to_owned).collect()
}

/// Refuses an image of an older kiln, whose node would pass over what it is told: `units` are those that its manifest names.
///
/// # Errors
/// [`Kind::Input`], naming node and profile.
pub fn check(node: &Node, units: &[String]) -> Result<(), Failure> {
    if node.seal == Seal::Null || units.iter().any(|unit| unit == UNIT) {
        return Ok(());
    }
    let (name, profile) = (&node.name, &node.profile);
    let text = format!("{name} is to seal its secrets (`seal = \"{}\"`), and its image cannot", node.seal);
    Err(Failure::new(Kind::Input, text).hint(format!("run `kiln build --profile {profile}` again")))
}

/// Bytes of a file that has room for a value of so many bytes under any key: base64 in lines.
pub fn room(value: usize) -> usize {
    ((value + ADDED) * 3 / 2).next_multiple_of(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_told_the_key_and_the_names_of_its_secrets_or_nothing() {
        let order_of = |seal| order(seal, ["k3s.token", "k3s.registries"]);
        let told = order_of(Seal::HostTpm2).unwrap();
        assert_eq!(told.value.expose(), b"host+tpm2\nk3s.token\nk3s.registries\n");
        assert!(!told.secret);
        assert_eq!(names(&[told]), ["k3s.token", "k3s.registries"]);
        assert_eq!(order_of(Seal::Null), None);
        assert_eq!(order(Seal::Tpm2, []), None);
        assert_eq!(names(&[]), [""; 0]);
    }

    #[test]
    fn room_is_left_in_whole_blocks() {
        assert_eq!(room(0), 8192);
        assert!(room(70_000) >= (70_000 + ADDED) * 4 / 3 * 77 / 76 && room(70_000).is_multiple_of(BLOCK));
    }
}
