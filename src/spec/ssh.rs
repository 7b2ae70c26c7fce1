//! Public keys of ssh as sshd reads them from authorized_keys: a line that sshd would pass over is refused here, with the reason. On a node
//! whose root is locked such a line is a node that nobody can log in to.
//!
//! The grammar of lines and options is that of OpenSSH 10.0, which the images have (sshd(8), AUTHORIZED_KEYS FILE FORMAT; `sshkey_read` and
//! `sshauthopt_parse` of its source); what a key is, the crate ssh-key knows.

use std::fmt;

use base64::Engine as _;
use ssh_key::PublicKey;
use ssh_key::public::KeyData;

/// Why a line is not a key, and what to do. It quotes nothing that may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The line, from 1 on.
    pub line: usize,
    /// The reason, half a sentence.
    pub why: String,
    /// What to do about it.
    pub hint: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

impl std::error::Error for Refusal {}

/// The words of key types that sshd takes and the type that their keys name themselves by. The signature algorithms stand for their keys.
const TYPES: [(&str, &str); 10] = [
    ("ssh-ed25519", "ssh-ed25519"),
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256"),
    ("ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384"),
    ("ecdsa-sha2-nistp521", "ecdsa-sha2-nistp521"),
    ("sk-ssh-ed25519@openssh.com", "sk-ssh-ed25519@openssh.com"),
    ("sk-ecdsa-sha2-nistp256@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"),
    ("webauthn-sk-ecdsa-sha2-nistp256@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"),
    ("ssh-rsa", "ssh-rsa"),
    ("rsa-sha2-256", "ssh-rsa"),
    ("rsa-sha2-512", "ssh-rsa"),
];
const DSA: &str = "ssh-dss";
/// Sizes of RSA keys in bits: the default of RequiredRSASize (sshd_config(5)), and the most that OpenSSL verifies with.
const RSA_BITS: std::ops::RangeInclusive<usize> = 1024..=16384;
/// Options that are there or not; those with `true` may have `no-` in front.
const FLAGS: [(&str, bool); 9] = [
    ("restrict", false),
    ("cert-authority", false),
    ("port-forwarding", true),
    ("agent-forwarding", true),
    ("x11-forwarding", true),
    ("touch-required", true),
    ("verify-required", true),
    ("pty", true),
    ("user-rc", true),
];
/// Options with a value in quotes.
const VALUES: [&str; 8] =
    ["command", "principals", "from", "expiry-time", "environment", "permitopen", "permitlisten", "tunnel"];

const GIVE: &str = "give the public half, one line such as \"ssh-ed25519 AAAA… me@home\"; `ssh-keygen -t ed25519` makes a pair";
const AGAIN: &str =
    "copy the whole line of the .pub file again: `ssh-keygen -lf FILE` shows whether it is a key";

/// What every private key has in it somewhere: PEM, PuTTY, and the body of OpenSSH's own form ("openssh-key-v1" in base64).
const PRIVATE: [&str; 3] = ["PRIVATE KEY", "PuTTY-User-Key-File", "b3BlbnNzaC1rZXktdjE"];

/// Whether a private key, or a part of one, is in `text`.
pub fn is_private(text: &str) -> bool {
    PRIVATE.iter().any(|mark| text.contains(mark))
}

/// Why a private key is refused.
pub fn private() -> Refusal {
    Refusal {
        line: 1,
        why: "this is the private half of a key, which must stay with its owner".to_owned(),
        hint: "give the public half: the file beside it that ends in .pub, or what `ssh-keygen -y -f FILE` prints"
            .to_owned(),
    }
}

/// The keys of a text in the form of authorized_keys: each as one line, without what editors add (a byte order mark, CR, tabs, comments in
/// Latin-1). Empty lines and those that begin with `#` are passed over; a text without any key has none.
///
/// # Errors
/// The first line that sshd would pass over.
pub fn keys(bytes: &[u8]) -> Result<Vec<String>, Refusal> {
    let refuse = |line: usize, why: &str, hint: &str| {
        Err(Refusal { line, why: why.to_owned(), hint: hint.to_owned() })
    };
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return refuse(1, "the text is UTF-16, as some programs of Windows save it", "save it as UTF-8");
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    // Latin-1 has the first 256 characters of Unicode. Only a comment can have them, and sshd does not read it.
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    };
    if is_private(&text) {
        return Err(private());
    }
    if text.contains("BEGIN SSH2 PUBLIC KEY") {
        return refuse(
            1,
            "this is a public key in the form of RFC 4716, which sshd does not read",
            "`ssh-keygen -i -f FILE` writes it as one line",
        );
    }
    if text.contains("BEGIN PUBLIC KEY") || text.contains("BEGIN RSA PUBLIC KEY") {
        return refuse(
            1,
            "this is a public key in PEM, which sshd does not read",
            "`ssh-keygen -i -m PKCS8 -f FILE` writes it as one line (`-m PEM` for BEGIN RSA PUBLIC KEY)",
        );
    }
    if text.contains("-----BEGIN") {
        return refuse(1, "this is PEM, and not a public key of ssh", GIVE);
    }
    let mut keys = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_matches(|c: char| c.is_ascii_whitespace());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = entry(line).map_err(|(why, hint)| Refusal { line: index + 1, why, hint })?;
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Ok(keys)
}

/// Why, and what to do.
type Why = (String, String);

fn why<T>(why: impl Into<String>, hint: impl Into<String>) -> Result<T, Why> {
    Err((why.into(), hint.into()))
}

/// One line.
fn entry(line: &str) -> Result<String, Why> {
    let (first, _) = word(line);
    if is_type(first) {
        return key(line);
    }
    let (options, rest) = options(line)?;
    if rest.is_empty() {
        return why("this is not a public key of ssh", GIVE);
    }
    if !is_type(word(rest).0) {
        return why("no key follows where one must stand: sshd does not know its type", GIVE);
    }
    Ok(format!("{options} {}", key(rest)?))
}

/// The first word, and what follows it behind blanks.
fn word(text: &str) -> (&str, &str) {
    let end = text.find([' ', '\t']).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    (word, rest.trim_start_matches([' ', '\t']))
}

/// Whether a word means that a key follows, be it one that sshd refuses.
fn is_type(word: &str) -> bool {
    TYPES.iter().any(|(name, _)| *name == word) || word == DSA || word.ends_with("-cert-v01@openssh.com")
}

/// A key without options: its type, itself in base64, and a comment.
fn key(text: &str) -> Result<String, Why> {
    let (kind, rest) = word(text);
    let (blob, comment) = word(rest);
    if kind == DSA {
        return why(
            "OpenSSH takes no DSA keys any more (ssh-dss)",
            "`ssh-keygen -t ed25519` makes a new pair",
        );
    }
    if kind.contains("-cert-v01@") {
        return why(
            "this is a certificate: sshd takes it from the client and not from authorized_keys",
            "give the key that signs the certificates, as `cert-authority ssh-ed25519 AAAA…`, or the public key itself",
        );
    }
    let Some((_, own)) = TYPES.iter().find(|(name, _)| *name == kind) else {
        return why("this is not a public key of ssh", GIVE);
    };
    if blob.is_empty() {
        return why(format!("behind `{kind}` there is no key"), AGAIN);
    }
    if let Some(place) = blob.bytes().position(|b| !b.is_ascii_alphanumeric() && !b"+/=".contains(&b)) {
        let text = format!("the key has a character that base64 does not have, the {} of it", nth(place + 1));
        return why(text, AGAIN);
    }
    let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(blob) else {
        return why("the key is cut off or changed: its base64 is not whole", AGAIN);
    };
    // RFC 4253, 6.6: it begins with its type, after the length of that.
    let length = bytes.first_chunk().map(|length| u32::from_be_bytes(*length) as usize);
    let named = length.and_then(|length| bytes.get(4..4 + length.min(64))).unwrap_or_default();
    if named != own.as_bytes() {
        let known = TYPES.iter().find(|(name, _)| name.as_bytes() == named);
        return match known {
            Some((name, _)) => why(
                format!("the line says `{kind}`, and the key itself is `{name}`"),
                format!("write `{name}` in front of it, or copy the whole line of the .pub file again"),
            ),
            None => why("the key is cut off or changed: it does not begin with its type", AGAIN),
        };
    }
    let whole = PublicKey::from_bytes(&bytes).ok().filter(|key| key.to_bytes().is_ok_and(|own| own == bytes));
    let Some(whole) = whole else { return why("the key is cut off or changed", AGAIN) };
    sound(whole.key_data())?;
    let comment: String =
        comment.chars().map(|c| if c == '\t' { ' ' } else { c }).filter(|c| !c.is_control()).collect();
    Ok(format!("{kind} {blob} {}", comment.trim()).trim_end().to_owned())
}

/// What sshd looks at in the numbers of a key.
fn sound(key: &KeyData) -> Result<(), Why> {
    match key {
        KeyData::Rsa(rsa) => {
            let bytes = rsa.n.as_positive_bytes().unwrap_or_default();
            let zeros = bytes.first().map_or(0, |first| first.leading_zeros() as usize);
            let bits = (bytes.len() * 8).saturating_sub(zeros);
            if !RSA_BITS.contains(&bits) {
                let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
                return why(
                    format!("sshd refuses an RSA key of {bits} bits: it takes {least} to {most}"),
                    "`ssh-keygen -t ed25519` makes a new pair",
                );
            }
            Ok(())
        }
        KeyData::Ecdsa(key) => on_curve(key.as_sec1_bytes()),
        KeyData::SkEcdsaSha2NistP256(key) => on_curve(key.ec_point().as_bytes()),
        _ => Ok(()),
    }
}

/// Whether a point, without compression as RFC 5656 has it here, is on its curve, which is known by the point's length.
fn on_curve(point: &[u8]) -> Result<(), Why> {
    let known = point.first() == Some(&4)
        && match point.len() {
            65 => p256::ecdsa::VerifyingKey::from_sec1_bytes(point).is_ok(),
            97 => p384::ecdsa::VerifyingKey::from_sec1_bytes(point).is_ok(),
            133 => p521::ecdsa::VerifyingKey::from_sec1_bytes(point).is_ok(),
            _ => false,
        };
    if known { Ok(()) } else { why("the key is cut off or changed: its point is not on the curve", AGAIN) }
}

/// Splits a line into its options, which are looked at, and what follows them.
fn options(line: &str) -> Result<(&str, &str), Why> {
    let bytes = line.as_bytes();
    let (mut at, mut quoted) = (0, false);
    while at < bytes.len() && (quoted || !b" \t".contains(&bytes[at])) {
        match bytes[at] {
            b'\\' if bytes.get(at + 1) == Some(&b'"') => at += 1,
            b'"' => quoted = !quoted,
            _ => {}
        }
        at += 1;
    }
    let remedy = "options are described in sshd(8), AUTHORIZED_KEYS FILE FORMAT; without any, the line begins with the type of the key";
    if quoted {
        return why("the options in front of the key have a quote that does not end", remedy);
    }
    let (options, rest) = line.split_at(at.min(line.len()));
    if rest.is_empty() {
        return why("this is not a public key of ssh", GIVE);
    }
    let mut left = options;
    loop {
        left = option(left).map_err(|why| (why, remedy.to_owned()))?;
        match left.strip_prefix(',') {
            Some("") => return why("the options in front of the key end in a comma", remedy),
            Some(more) => left = more,
            None if left.is_empty() => break,
            None => return why("a comma is missing between the options in front of the key", remedy),
        }
    }
    Ok((options, rest.trim_start_matches([' ', '\t'])))
}

/// Takes one option from the front; what is left.
fn option(text: &str) -> Result<&str, String> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let small = name.to_ascii_lowercase();
    let flag = FLAGS.iter().any(|(flag, both)| {
        small == *flag || (*both && small.strip_prefix("no-").is_some_and(|positive| positive == *flag))
    });
    if flag {
        return Ok(rest);
    }
    if !VALUES.contains(&small.as_str()) {
        // A short word is named; anything else may be a part of a key.
        let shown = if (1..=24).contains(&name.len()) { format!(" (`{name}`)") } else { String::new() };
        return Err(format!(
            "the line begins neither with a type of key nor with an option that sshd knows{shown}"
        ));
    }
    let value =
        rest.strip_prefix("=\"").ok_or_else(|| format!("the option `{small}` has no value in quotes"))?;
    let bytes = value.as_bytes();
    let mut at = 0;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' && bytes.get(at + 1) == Some(&b'"') { 2 } else { 1 };
    }
    let (value, rest) = value.split_at(at.min(value.len()));
    if small == "expiry-time" && !is_time(value) {
        return Err(
            "the option `expiry-time` takes YYYYMMDD, YYYYMMDDHHMM or YYYYMMDDHHMMSS, with Z for UTC"
                .to_owned(),
        );
    }
    if small == "environment" && !value.split_once('=').is_some_and(|(name, _)| is_variable(name)) {
        return Err("the option `environment` takes NAME=VALUE".to_owned());
    }
    rest.strip_prefix('"').ok_or_else(|| format!("the value of the option `{small}` does not end"))
}

fn is_time(text: &str) -> bool {
    let digits = text.strip_suffix(['Z', 'z']).unwrap_or(text);
    [8, 12, 14].contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn nth(number: usize) -> String {
    let ending = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const ED25519: &str = "AAAAC3NzaC1lZDI1NTE5AAAAILe1Wpjme+Bad9jFbOt/iAvwYmbBinj+ARsSGtOMdGwQ";
    const P256: &str = "AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBIIdontfWHQO57XDHhSVkRxeqsDNMuv8oYF7DKO3wwlh5Ok0Gli/m9OJyY2y9Eiw2wMFXlNXVCdLdVceQFmKQtA=";
    const P384: &str = "AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBAYb/asyFlke2xQ2NiepeR3xCDc3qxmSkCr08iAdxWtbyPZ7VShW2LCwZ4exGZc7Jrr42Adjah24br3Hay7NxGNbwr1shJbZcv7QvYAQ83Kc72KbfOr4QQq5l/kEl29F9A==";
    const P521: &str = "AAAAE2VjZHNhLXNoYTItbmlzdHA1MjEAAAAIbmlzdHA1MjEAAACFBAH62+b61Ui0q3f6sPN2HUVrZ54HYt3L9T9BKGZbaPinCgL2Ya4HLU9+Jo9o3DDsovaSTJiiiyctF/cqc1dY5oYsiAAGGzZoFDGpjXRU44CvHvywR8onhP0UYuCo5eDUyD/z3na6B6tUubmeWr8E05aKBOwGvWRMZF+0SKXX+vEdtFLQ5w==";
    const RSA1024: &str = "AAAAB3NzaC1yc2EAAAADAQABAAAAgQDIeOsedLporqathTGU0Mi/zhxj37QFM5pUf4UCOlF/CZCHS00+W4oG+ngEXIC4uRznBWhfheoj+XzIwFsGeAmb9QYdntvmgvyzFi7xRsJcUKcOMg2RChQt4nIfmiVR00o2eDeUGgfqe4BKF2Dmw7UVtrxZIiD3pba+g3u2JwTkuQ==";
    const RSA768: &str = "AAAAB3NzaC1yc2EAAAADAQABAAAAYQC1/LPuvLYDysMhBDRZgcthnMx9WrlFm/bwF3WAp/EosEdVvGLDDbtpjxut63YWDr79zxgY4oHaTfMo0CSAQv+1zHobmY3F/1/k1zhhAGkCGERUij4xiJ+0D304vmGy7Sc=";

    /// A key in base64 from its parts, each after its length.
    fn blob(parts: &[&[u8]]) -> String {
        let bytes: Vec<u8> =
            parts.iter().flat_map(|part| [&(part.len() as u32).to_be_bytes()[..], part].concat()).collect();
        base64::engine::general_purpose::STANDARD.encode(bytes)
    }

    fn security_key() -> String {
        blob(&[b"sk-ssh-ed25519@openssh.com", &[7; 32], b"ssh:"])
    }

    #[test]
    fn what_sshd_takes_is_taken_and_written_as_one_plain_line() {
        let same = |line: &str| (line.to_owned(), line.to_owned());
        for (text, line) in [
            same(&format!("ssh-ed25519 {ED25519} me@home")),
            same(&format!("ssh-ed25519 {ED25519}")),
            same(&format!("ecdsa-sha2-nistp256 {P256} a b  c")),
            same(&format!("ecdsa-sha2-nistp384 {P384}")),
            same(&format!("ecdsa-sha2-nistp521 {P521}")),
            same(&format!("ssh-rsa {RSA1024} x")),
            same(&format!("rsa-sha2-512 {RSA1024} x")),
            same(&format!("sk-ssh-ed25519@openssh.com {} x", security_key())),
            same(&format!(
                "restrict,no-pty,X11-forwarding,command=\"echo \\\"a b\\\"\" ssh-ed25519 {ED25519} x"
            )),
            same(&format!("from=\"10.0.0.0/8,!10.1.1.1\",expiry-time=\"20300101\" ssh-ed25519 {ED25519}")),
            same(&format!("cert-authority,principals=\"root\" ssh-ed25519 {ED25519} ca")),
            (format!("\u{feff}ssh-ed25519 {ED25519}\tme\r\n"), format!("ssh-ed25519 {ED25519} me")),
            (format!("\n# mine\n  \t ssh-ed25519\t {ED25519}  \n"), format!("ssh-ed25519 {ED25519}")),
            (format!("ssh-ed25519 {ED25519} \u{1b}[31mred"), format!("ssh-ed25519 {ED25519} [31mred")),
        ] {
            assert_eq!(keys(text.as_bytes()).as_deref(), Ok(&[line][..]), "{text}");
        }
        let latin = [format!("ssh-ed25519 {ED25519} J").as_bytes(), b"\xfcrgen\n"].concat();
        assert_eq!(keys(&latin).unwrap(), [format!("ssh-ed25519 {ED25519} Jürgen")]);
        let several =
            format!("ssh-ed25519 {ED25519} a\r\n\r\nssh-rsa {RSA1024} b\r\nssh-ed25519 {ED25519} a\r\n");
        assert_eq!(keys(several.as_bytes()).unwrap().len(), 2);
        assert_eq!(keys(b"# none\n"), Ok(Vec::new()));
    }

    #[test]
    fn what_sshd_passes_over_is_refused_with_the_reason_and_not_shown() {
        let changed = P256.replacen("ontf", "onTf", 1);
        for (text, part) in [
            (format!("ssh-ed25519 {}", &ED25519[..60]), "cut off"),
            (format!("ssh-ed25519 {}", &ED25519[..61]), "cut off"),
            (format!("ssh-ed25519 {ED25519}AAAA"), "cut off or changed"),
            (format!("ssh-ed25519 {}", ED25519.replacen("Bad9", "Ba_9", 1)), "the 37th of it"),
            (format!("ssh-ed25519 {}", ED25519.replace("AAAAI", "AAAA…")), "base64 does not have"),
            (format!("ssh-rsa {ED25519}"), "says `ssh-rsa`, and the key itself is `ssh-ed25519`"),
            (format!("ecdsa-sha2-nistp384 {P256}"), "the key itself is `ecdsa-sha2-nistp256`"),
            (format!("ecdsa-sha2-nistp256 {changed}"), "not on the curve"),
            (format!("ssh-rsa {RSA768}"), "an RSA key of 768 bits"),
            (format!("ssh-dss {}", blob(&[b"ssh-dss", &[1; 128]])), "no DSA keys"),
            (format!("ssh-ed25519-cert-v01@openssh.com {ED25519}"), "a certificate"),
            (format!("SSH-ED25519 {ED25519}"), "(`SSH-ED25519`)"),
            (format!("github.com ssh-ed25519 {ED25519}"), "(`github`)"),
            (format!("no-such-option ssh-ed25519 {ED25519}"), "(`no-such-option`)"),
            (format!("from=10.0.0.1 ssh-ed25519 {ED25519}"), "`from` has no value in quotes"),
            (format!("from=\"10.0.0.1 ssh-ed25519 {ED25519}"), "a quote that does not end"),
            (format!("restrict, ssh-ed25519 {ED25519}"), "end in a comma"),
            (format!("expiry-time=\"tomorrow\" ssh-ed25519 {ED25519}"), "YYYYMMDD"),
            (format!("restrict {ED25519}"), "no key follows"),
            (ED25519.to_owned(), "not a public key"),
            ("ssh-ed25519".to_owned(), "there is no key"),
            ("me@home".to_owned(), "not a public key"),
            ("---- BEGIN SSH2 PUBLIC KEY ----\n".to_owned(), "RFC 4716"),
            ("-----BEGIN PUBLIC KEY-----\n".to_owned(), "in PEM"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n".to_owned(), "private half"),
            ("PuTTY-User-Key-File-3: ssh-ed25519\n".to_owned(), "private half"),
            ("b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ".to_owned(), "private half"),
        ] {
            let refusal = keys(text.as_bytes()).expect_err(&text);
            assert!(refusal.why.contains(part), "{text}: {refusal}");
            let said = format!("{} {}", refusal.why, refusal.hint);
            assert!(!said.contains(&ED25519[30..40]) && !said.contains("b3Bl"), "{said}");
        }
        assert!(keys(b"\xff\xfes\0s\0h\0").unwrap_err().why.contains("UTF-16"));
        let second = format!("ssh-ed25519 {ED25519}\nssh-ed25519 AAAA\n");
        assert_eq!(keys(second.as_bytes()).unwrap_err().line, 2);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(ssh-ed25519|restrict|from=|[a-z\",\\\\= \t\r\nA-Z0-9+/ü]){0,12}") {
            let _ = keys(text.as_bytes());
        }
    }
}
