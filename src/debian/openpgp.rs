//! Checks who signed an InRelease file, or a Release file with its signature in Release.gpg.
//!
//! rPGP (the `pgp` crate) does the packets and the arithmetic; it has no opinion on what a good signature is. The policy is
//! here, and every rule of it has a test:
//!
//! - only keys whose primary fingerprint is pinned count, and only what their own self-signatures say;
//! - a subkey needs a binding by the primary key and, to sign, a binding back by itself;
//! - key and subkey must be marked for signing, be neither expired nor revoked, and RSA has 2048 bits at least;
//! - every signature that is relied on uses SHA-256 or better, is not of the future and not expired;
//! - nothing may stand before or behind the signed text, and one good signature is needed;
//! - the text's own `Valid-Until` has not passed.
//!
//! Certifications by other keys are not looked at, nor are revocations by third parties (`Revocation Key` subpackets).
//! The time is a parameter: a caller that checks an old snapshot gives the snapshot's time. Source: RFC 9580 (sections
//! 5.2, 7, 10.1), RFC 4880 for version 4 keys.

use std::fmt;
use std::str::FromStr;

use pgp::composed::{
    CleartextSignedMessage, Deserializable, DetachedSignature, SignedPublicKey, SignedPublicSubKey,
};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType};
use pgp::ser::Serialize as _;
use pgp::types::{KeyDetails, KeyVersion, PublicParams, RsaPublicParams, Tag};

use super::release::{Release, ReleaseError};
use crate::digest::Digest;
use crate::utc::{distance, human};

/// How far ahead of the given time a signature or a Release file may be: clocks of machines differ.
const MAX_SKEW: i64 = 3600;
/// The biggest InRelease that is read. Debian's has 140 KB.
const MAX_IN_RELEASE: usize = 16 << 20;
/// The least length of an RSA modulus, as gpgv and apt have it.
const MIN_RSA_BITS: usize = 2048;

/// The fingerprint of a primary key: 40 hexadecimal digits (version 4) or 64 (version 6), upper case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(String);

impl FromStr for Fingerprint {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Fingerprint(text.to_ascii_uppercase()))
        } else {
            Err(KeyError::NotAFingerprint(text.escape_debug().take(80).collect()))
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a file is not the key that it should be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// Text that is no fingerprint.
    #[error("`{0}` is not an OpenPGP fingerprint: 40 or 64 hexadecimal digits are needed")]
    NotAFingerprint(String),
    /// The file holds no readable public keys.
    #[error("no OpenPGP public key can be read: {0}")]
    Unreadable(String),
    /// A key that nobody asked for.
    #[error("the file holds the key {0}, which is not pinned")]
    NotPinned(Fingerprint),
    /// A fingerprint without its key.
    #[error("the file does not hold the pinned key {0}")]
    Missing(Fingerprint),
}

/// Public keys that were named by fingerprint. Only [`PinnedKeys::read`] makes them.
#[derive(Debug, Clone, Default)]
pub struct PinnedKeys(Vec<SignedPublicKey>);

impl PinnedKeys {
    /// Reads armored or binary public keys, which must be exactly those of `pinned`.
    pub fn read(file: &[u8], pinned: &[Fingerprint]) -> Result<Self, KeyError> {
        let unreadable = |e: pgp::errors::Error| KeyError::Unreadable(e.to_string());
        let (found, _) = SignedPublicKey::from_reader_many_buf(file).map_err(unreadable)?;
        let keys = found.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
        if keys.is_empty() {
            return Err(KeyError::Unreadable("the file is empty".to_owned()));
        }
        let prints: Vec<Fingerprint> = keys.iter().map(|k| fingerprint(&k.primary_key)).collect();
        if let Some(stranger) = prints.iter().find(|p| !pinned.contains(p)) {
            return Err(KeyError::NotPinned(stranger.clone()));
        }
        if let Some(missing) = pinned.iter().find(|p| !prints.contains(p)) {
            return Err(KeyError::Missing(missing.clone()));
        }
        Ok(PinnedKeys(keys))
    }

    /// Adds the keys of another file.
    pub fn extend(&mut self, other: PinnedKeys) {
        self.0.extend(other.0);
    }
}

fn fingerprint(key: &impl KeyDetails) -> Fingerprint {
    Fingerprint(hex::encode_upper(key.fingerprint().as_bytes()))
}

/// Why an InRelease file is not believed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VerifyError {
    /// It is not one signed text and nothing else.
    #[error("the InRelease file is not a signed text: {0}")]
    Format(String),
    /// The signature beside a Release file cannot be read.
    #[error("the Release.gpg file is not a signature: {0}")]
    Signature(String),
    /// No signature by a pinned key holds.
    #[error("no good signature by a pinned key: {}", .0.join("; "))]
    NoGoodSignature(Vec<String>),
    /// The signed text is no Release file.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// Its time is over.
    #[error(
        "the Release file of {suite} was valid until {}, {}: the mirror is stale or the clock is wrong",
        human(*.until), distance(*.until, *.now)
    )]
    Expired {
        /// Its suite.
        suite: String,
        /// Its `Valid-Until`.
        until: i64,
        /// The time that was given.
        now: i64,
    },
    /// Its time has not come.
    #[error(
        "the Release file of {suite} is dated {}, but now it is {}: is the clock right?",
        human(*.date), human(*.now)
    )]
    Future {
        /// Its suite.
        suite: String,
        /// Its `Date`.
        date: i64,
        /// The time that was given.
        now: i64,
    },
}

/// A Release file signed by a pinned key. Only [`verify`] and [`verify_detached`] make one.
#[derive(Debug, Clone)]
pub struct Verified {
    release: Release,
    signers: Vec<Fingerprint>,
    digest: Digest,
}

impl Verified {
    /// What was signed.
    pub fn release(&self) -> &Release {
        &self.release
    }

    /// Primary fingerprints of the pinned keys with a good signature, sorted; at least one.
    pub fn signers(&self) -> &[Fingerprint] {
        &self.signers
    }

    /// Digest of the whole InRelease file, signatures included; of the Release file where the signature lies beside it.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// Checks an InRelease file against `keys` at the time `now` (seconds since 1970 UTC); see the module comment for the rules.
pub fn verify(in_release: &[u8], keys: &PinnedKeys, now: i64) -> Result<Verified, VerifyError> {
    let message = read_message(in_release)?;
    // What is parsed is what was signed: dash escapes undone, blanks at line ends gone. Its line ends are CRLF.
    let signed = message.signed_text();
    let release = signed.replace("\r\n", "\n");
    judge(message.signatures().iter(), signed.as_bytes(), &release, keys, now, Digest::of(in_release))
}

/// Checks a Release file by the signatures of the Release.gpg file beside it, by the same rules as [`verify`]. The digest of
/// what comes out is that of the Release file.
///
/// # Errors
/// As [`verify`].
pub fn verify_detached(
    release: &[u8],
    signature: &[u8],
    keys: &PinnedKeys,
    now: i64,
) -> Result<Verified, VerifyError> {
    let refuse = |reason: &str| VerifyError::Signature(reason.to_owned());
    if release.len() > MAX_IN_RELEASE || signature.len() > MAX_IN_RELEASE {
        return Err(refuse("it or the Release file is longer than 16 MiB"));
    }
    let text = std::str::from_utf8(release)
        .map_err(|_| VerifyError::Release(ReleaseError::Stanza("it is not UTF-8".to_owned())))?;
    // rPGP's own words may hold bytes of the file.
    let broken = |_| refuse("its packets cannot be read");
    let (found, _) = DetachedSignature::from_reader_many_buf(signature).map_err(broken)?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(broken)?;
    let signatures = found.iter().map(|one| &one.signature);
    judge(signatures, release, text, keys, now, Digest::of(release))
}

/// Believes `text`, whose signed form is `signed`, if one of `signatures` is good and its time is right.
fn judge<'a>(
    signatures: impl Iterator<Item = &'a Signature>,
    signed: &[u8],
    text: &str,
    keys: &PinnedKeys,
    now: i64,
    digest: Digest,
) -> Result<Verified, VerifyError> {
    let mut signers = Vec::new();
    let mut reasons = Vec::new();
    for signature in signatures {
        match check_signature(signature, signed, keys, now) {
            Ok(signer) => signers.push(signer),
            Err(reason) => reasons.push(reason),
        }
    }
    if signers.is_empty() {
        if reasons.is_empty() {
            reasons.push("there is no signature".to_owned());
        }
        return Err(VerifyError::NoGoodSignature(reasons));
    }
    signers.sort();
    signers.dedup();
    let release = Release::parse(text)?;
    let suite = release.codename.clone();
    if let Some(until) = release.valid_until.filter(|until| *until < now) {
        return Err(VerifyError::Expired { suite, until, now });
    }
    if release.date > now + MAX_SKEW {
        return Err(VerifyError::Future { suite, date: release.date, now });
    }
    Ok(Verified { release, signers, digest })
}

/// Takes the file apart. Text outside the signed part is refused: a careless reader might believe it.
fn read_message(bytes: &[u8]) -> Result<CleartextSignedMessage, VerifyError> {
    let refuse = |reason: &str| VerifyError::Format(reason.to_owned());
    if bytes.len() > MAX_IN_RELEASE {
        return Err(refuse("it is longer than 16 MiB"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| refuse("it is not UTF-8"))?;
    if !text.starts_with("-----BEGIN PGP SIGNED MESSAGE-----") {
        return Err(refuse("it does not start with `-----BEGIN PGP SIGNED MESSAGE-----`"));
    }
    const END: &str = "\n-----END PGP SIGNATURE-----";
    let text = text.trim_end();
    if text.find(END).is_none_or(|at| at + END.len() != text.len()) {
        return Err(refuse("it does not end with its one `-----END PGP SIGNATURE-----`"));
    }
    match CleartextSignedMessage::from_string(&format!("{text}\n")) {
        Ok((message, _)) => Ok(message),
        // rPGP's own words for this hold the rest of the file, byte by byte.
        Err(_) => Err(refuse("its headers or the packets of its signature cannot be read")),
    }
}

/// The primary fingerprint of the pinned key that made `signature`, or why it does not count.
fn check_signature(
    signature: &Signature,
    text: &[u8],
    keys: &PinnedKeys,
    now: i64,
) -> Result<Fingerprint, String> {
    let issuer = issuer_name(signature);
    let mut last = format!("the signature by {issuer} is by no pinned key");
    for key in &keys.0 {
        let primary = &key.primary_key;
        let subkey = key.public_subkeys.iter().find(|s| made_by(signature, &s.key));
        let by_primary = made_by(signature, primary);
        if !by_primary && subkey.is_none() {
            continue;
        }
        // The cheap questions come first; rPGP refuses some weak hashes by itself and would not say why.
        let checked = check_time_and_hash(signature, now)
            .and_then(|()| check_data_signature(signature))
            .and_then(|()| {
                match subkey {
                    Some(subkey) if !by_primary => signature.verify(&subkey.key, text),
                    _ => signature.verify(primary, text),
                }
                .map_err(|_| "it does not fit the text".to_owned())
            })
            .and_then(|()| check_key(key, subkey.filter(|_| !by_primary), now));
        match checked {
            Ok(()) => return Ok(fingerprint(primary)),
            Err(reason) => last = format!("the signature by {issuer} does not count: {reason}"),
        }
    }
    Err(last)
}

fn issuer_name(signature: &Signature) -> String {
    match (signature.issuer_fingerprint().first(), signature.issuer_key_id().first()) {
        (Some(print), _) => hex::encode_upper(print.as_bytes()),
        (None, Some(id)) => id.to_string().to_uppercase(),
        (None, None) => "an unnamed key".to_owned(),
    }
}

/// Whether the signature says that `key` made it. One that names no key counts for none.
fn made_by(signature: &Signature, key: &impl KeyDetails) -> bool {
    signature.issuer_fingerprint().iter().any(|print| **print == key.fingerprint())
        || signature.issuer_key_id().iter().any(|id| **id == key.legacy_key_id())
}

fn check_data_signature(signature: &Signature) -> Result<(), String> {
    match signature.typ() {
        Some(SignatureType::Text | SignatureType::Binary) => Ok(()),
        other => Err(format!("it is of type {other:?}, not one over a document")),
    }
}

/// SHA-256 or better, made in the past, not expired.
fn check_time_and_hash(signature: &Signature, now: i64) -> Result<(), String> {
    match signature.hash_alg() {
        Some(
            HashAlgorithm::Sha256
            | HashAlgorithm::Sha384
            | HashAlgorithm::Sha512
            | HashAlgorithm::Sha3_256
            | HashAlgorithm::Sha3_512,
        ) => {}
        Some(weak) => return Err(format!("it uses {weak}, at least SHA256 is needed")),
        None => return Err("its hash is unknown".to_owned()),
    }
    let Some(created) = signature.created().map(|t| i64::from(t.as_secs())) else {
        return Err("it does not say when it was made".to_owned());
    };
    if created > now + MAX_SKEW {
        return Err(format!("it is of the future: made at {}, now it is {}", human(created), human(now)));
    }
    match signature.signature_expiration_time().map_or(0, |d| i64::from(d.as_secs())) {
        0 => Ok(()),
        seconds if created + seconds > now => Ok(()),
        seconds => {
            Err(format!("it expired at {}, {}", human(created + seconds), distance(created + seconds, now)))
        }
    }
}

/// Whether `key` (or its `subkey`) may sign at the time `now`.
fn check_key(key: &SignedPublicKey, subkey: Option<&SignedPublicSubKey>, now: i64) -> Result<(), String> {
    let primary = &key.primary_key;
    check_strength(primary)?;
    // A revocation counts however weak its hash is: when in doubt, the key is not believed.
    if key.details.revocation_signatures.iter().any(|s| s.verify_key(primary).is_ok()) {
        return Err(format!("the key {} is revoked", fingerprint(primary)));
    }
    let binding = newest(self_signatures(key), now)
        .ok_or_else(|| format!("the key {} has no valid signature by itself", fingerprint(primary)))?;
    check_expiry(primary, binding, now)?;
    let Some(subkey) = subkey else {
        return if binding.key_flags().sign() {
            Ok(())
        } else {
            Err(format!("the key {} is not marked for signing", fingerprint(primary)))
        };
    };
    let name = fingerprint(&subkey.key);
    check_strength(&subkey.key)?;
    let genuine = |s: &&Signature| s.verify_subkey_binding(primary, &subkey.key).is_ok();
    let of_type = |wanted| subkey.signatures.iter().filter(move |s| s.typ() == Some(wanted)).filter(genuine);
    if of_type(SignatureType::SubkeyRevocation).next().is_some() {
        return Err(format!("the subkey {name} is revoked"));
    }
    let binding = newest(of_type(SignatureType::SubkeyBinding), now)
        .ok_or_else(|| format!("the subkey {name} is not bound to its primary key"))?;
    check_expiry(&subkey.key, binding, now)?;
    if !binding.key_flags().sign() {
        return Err(format!("the subkey {name} is not marked for signing"));
    }
    // Without the binding back, a thief of attention could claim somebody else's signing key as a subkey of his own.
    match binding.embedded_signature() {
        Some(back) if back.verify_primary_key_binding(&subkey.key, primary).is_ok() => {
            check_time_and_hash(back, now)
        }
        _ => Err(format!("the subkey {name} has not signed that it belongs to its primary key")),
    }
}

/// Signatures of the primary key over itself and its user names, those over revoked names left out.
fn self_signatures(key: &SignedPublicKey) -> impl Iterator<Item = &Signature> {
    let primary = &key.primary_key;
    let direct = key.details.direct_signatures.iter().filter(|s| s.verify_key(primary).is_ok());
    let names = key.details.users.iter().flat_map(move |user| {
        let genuine = |s: &&Signature| s.verify_certification(primary, Tag::UserId, &user.id).is_ok();
        let revoked = user
            .signatures
            .iter()
            .filter(|s| s.typ() == Some(SignatureType::CertRevocation))
            .any(|s| genuine(&s));
        let count = if revoked { 0 } else { usize::MAX };
        user.signatures.iter().filter(|s| s.is_certification()).filter(genuine).take(count)
    });
    direct.chain(names)
}

/// The newest signature that is strong and in time: it says what holds for the key.
fn newest<'a>(signatures: impl Iterator<Item = &'a Signature>, now: i64) -> Option<&'a Signature> {
    signatures
        .filter(|s| check_time_and_hash(s, now).is_ok())
        .max_by_key(|s| s.created().map(|t| t.as_secs()))
}

fn check_expiry(key: &impl KeyDetails, binding: &Signature, now: i64) -> Result<(), String> {
    let created = i64::from(key.created_at().as_secs());
    if created > now + MAX_SKEW {
        return Err(format!("the key {} is of the future", fingerprint(key)));
    }
    match binding.key_expiration_time().map_or(0, |d| i64::from(d.as_secs())) {
        0 => Ok(()),
        seconds if created + seconds > now => Ok(()),
        seconds => {
            let end = created + seconds;
            Err(format!("the key {} expired at {}, {}", fingerprint(key), human(end), distance(end, now)))
        }
    }
}

/// The length of the modulus without leading zeros.
fn rsa_bits(params: &RsaPublicParams) -> usize {
    // The serialised form is two numbers (RFC 9580, 3.2), each two bytes of bit count and then its bytes.
    match params.to_bytes().as_deref() {
        Ok([high, low, ..]) => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    }
}

/// Version 4 or later, and an algorithm that is strong enough today.
fn check_strength(key: &impl KeyDetails) -> Result<(), String> {
    if !matches!(key.version(), KeyVersion::V4 | KeyVersion::V6) {
        return Err(format!("the key {} is of an old version", fingerprint(key)));
    }
    match key.public_params() {
        PublicParams::RSA(rsa) if rsa_bits(rsa) >= MIN_RSA_BITS => Ok(()),
        PublicParams::RSA(rsa) => Err(format!(
            "the key {} is RSA of {} bits, at least {MIN_RSA_BITS} are needed",
            fingerprint(key),
            rsa_bits(rsa)
        )),
        PublicParams::ECDSA(_)
        | PublicParams::EdDSALegacy(_)
        | PublicParams::Ed25519(_)
        | PublicParams::Ed448(_) => Ok(()),
        _ => Err(format!(
            "the key {} is of the kind {:?}, which is not taken",
            fingerprint(key),
            key.algorithm()
        )),
    }
}

#[cfg(test)]
#[path = "openpgp_tests.rs"]
mod tests;
