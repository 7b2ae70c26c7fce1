//! Credentials as files, `NAME.cred`, for places that systemd does not trust: the ESP, what comes by the network.
//!
//! systemd takes credentials from there only in its own encrypted form (systemd-stub(7), systemd-creds(1)), so they get that form, with
//! the key that everybody has (`--with-key=null`): it keeps nothing secret and proves nothing. A key of the node's TPM or of its
//! `/var/lib/systemd/credential.secret` can be used by that node alone, and it does not run yet: where one is wanted, the node puts its
//! secrets under it at its first boot ([`super::seal`]). A node with TPM 2.0 and Secure Boot takes no such credential.
//!
//! ```text
//! id[16] key_size block_size iv_size tag_size iv[12] 0[4]     in the clear, authenticated
//! timestamp not_after name_size name 0…                       encrypted, padded to 8 bytes
//! value                                                       encrypted
//! tag[16]
//! ```
//!
//! All numbers are little-endian, sizes 32 and times 64 bits wide. Source: `src/shared/creds-util.c` of systemd 252 to 257.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce};
use base64::Engine as _;

use super::Credential;
use crate::digest::Digest;

/// `CRED_AES256_GCM_BY_NULL`.
const BY_NULL: [u8; 16] =
    [0x05, 0x84, 0x69, 0xda, 0xf6, 0xf5, 0x43, 0x24, 0x80, 0x05, 0x49, 0xda, 0x0f, 0x8e, 0xa2, 0xfb];
/// AES-256-GCM as OpenSSL counts it: key, block, IV and tag in bytes.
const SIZES: [u32; 4] = [32, 1, 12, 16];
const IV: usize = 12;

/// The content of `NAME.cred`, base64 as `systemd-creds encrypt` writes it; the same for the same credential.
pub fn seal(credential: &Credential) -> Vec<u8> {
    let value = credential.value.expose();
    // The key is known to all, so an IV from what is said gives nothing away that the file does not; and a disk that is flashed twice
    // has the same bytes.
    let seed = [credential.name.as_bytes(), b"\0", value].concat();
    let iv = Digest::of(&seed).as_bytes()[..IV].to_vec();

    let mut header = BY_NULL.to_vec();
    header.extend(SIZES.iter().flat_map(|size| size.to_le_bytes()));
    header.extend(&iv);
    header.resize(header.len().next_multiple_of(8), 0);

    let mut text = Vec::new();
    // No time of sealing, and no end: a node's clock may be wrong when it boots.
    text.extend([u64::MAX, u64::MAX].iter().flat_map(|time| time.to_le_bytes()));
    text.extend((credential.name.len() as u32).to_le_bytes());
    text.extend(credential.name.as_bytes());
    text.resize(text.len().next_multiple_of(8), 0);
    text.extend(value);

    // The key is the hash of a key of no bytes.
    let cipher = Aes256Gcm::new(Digest::of(b"").as_bytes().into());
    let payload = Payload { msg: &text, aad: &header };
    let sealed = cipher.encrypt(Nonce::from_slice(&iv), payload).expect("AES-GCM takes up to 64 GiB");
    let mut base64 = base64::engine::general_purpose::STANDARD.encode([header, sealed].concat()).into_bytes();
    base64.push(b'\n');
    base64
}

/// What was sealed in a file of `size` bytes: systemd passes over the ends of lines.
pub fn padded(mut sealed: Vec<u8>, size: usize) -> Vec<u8> {
    sealed.resize(size.max(sealed.len()), b'\n');
    sealed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::secret::Value;

    fn credential(name: &str, value: &[u8]) -> Credential {
        Credential { name: name.to_owned(), value: Value::new(value), secret: true }
    }

    #[test]
    fn sealing_has_one_outcome_per_credential() {
        let sealed = seal(&credential("k3s.token", b"open-sesame"));
        assert_eq!(sealed, seal(&credential("k3s.token", b"open-sesame")));
        assert_ne!(sealed, seal(&credential("k3s.tokem", b"open-sesame")));
        assert!(sealed.starts_with(b"BYRp2vb1QySABUnaD46i+"), "{}", String::from_utf8_lossy(&sealed));
    }
}
