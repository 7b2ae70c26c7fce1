//! Whether a secret is what its key in cluster.toml says: what K3s or the login of a node would not take is refused before a node has it.
//!
//! No message has any of a secret's text: places and kinds of mistakes alone.

use super::secret::Value;
use crate::error::{Failure, Kind};
use crate::spec::cluster::Secret;
use crate::spec::{registries, yaml};

/// Judges the secret `key` from `secret`.
///
/// # Errors
/// [`Kind::Input`], naming where the secret is, the reason and the remedy.
pub(super) fn judge(key: &str, secret: &Secret, value: &Value) -> Result<(), Failure> {
    let bytes = value.expose();
    let (why, hint) = match key {
        "token" => match token(bytes) {
            Ok(()) => return Ok(()),
            Err(why) => (why, "`kiln token new` makes one"),
        },
        "root-password" => match hash(bytes) {
            Ok(()) => return Ok(()),
            Err(why) => (why, "`mkpasswd` makes one: one line that begins with $y$ or $6$"),
        },
        "registries" => match registries::check(bytes) {
            Ok(()) => return Ok(()),
            Err(problem) => (
                format!("is not a registries.yaml of K3s: {problem}"),
                "docs.k3s.io/installation/private-registry has its keys and an example",
            ),
        },
        _ => return Ok(()),
    };
    Err(Failure::new(Kind::Input, format!("the secret `{key}` from {secret} {why}")).hint(hint))
}

/// Judges a credential that a person gives a node by its name, such as `k3s.config` (`kiln run --credential`). One that kiln knows
/// nothing of is left to its reader.
///
/// # Errors
/// [`Kind::Input`], naming the credential, the reason and the remedy.
pub fn credential(name: &str, bytes: &[u8]) -> Result<(), Failure> {
    // Files end with a line end, which readers on the node leave out.
    let word = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let (why, hint) = match name {
        "k3s.config" => match config(bytes) {
            Ok(()) => return Ok(()),
            Err(problem) => (
                format!("is not a configuration of K3s: {problem}"),
                "write one setting a line, such as `node-name: rack-1` (docs.k3s.io/installation/configuration)",
            ),
        },
        "k3s.registries" => match registries::check(bytes) {
            Ok(()) => return Ok(()),
            Err(problem) => (
                format!("is not a registries.yaml of K3s: {problem}"),
                "docs.k3s.io/installation/private-registry has its keys and an example",
            ),
        },
        "k3s.token" => match token(word) {
            Ok(()) => return Ok(()),
            Err(why) => (why, "`kiln token new` makes one"),
        },
        "passwd.hashed-password.root" => match hash(word) {
            Ok(()) => return Ok(()),
            Err(why) => (why, "`mkpasswd` makes one: one line that begins with $y$ or $6$"),
        },
        _ => return Ok(()),
    };
    Err(Failure::new(Kind::Input, format!("the credential {name} {why}")).hint(hint))
}

/// Whether `bytes` are keys with values; their meaning is judged on the node, by the program k3s-config.
fn config(bytes: &[u8]) -> Result<(), yaml::Problem> {
    let root = yaml::read(bytes)?;
    match root.value {
        yaml::Value::Null | yaml::Value::Map(_) => Ok(()),
        _ => Err(root.problem("it has no keys")),
    }
}

/// Whether `bytes` may be the token of a cluster, by which servers and agents join (docs.k3s.io/cli/token; `parseToken` of K3s'
/// pkg/clientaccess): a password, or `K10<SHA-256 of the CA>::<user>:<password>`. It is one word that fits in a line of curl's configuration.
fn token(bytes: &[u8]) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("is not a token of K3s: {why}"));
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return refuse(
            "it begins with a byte order mark, which an editor put there: save it as UTF-8 without one",
        );
    }
    let Some(text) = std::str::from_utf8(bytes).ok().filter(|text| text.is_ascii()) else {
        return refuse("it has characters that are not ASCII");
    };
    if text.contains(['\n', '\r']) {
        return refuse("it has more than one line");
    }
    if text.starts_with(['"', '\'']) && text.ends_with(['"', '\'']) {
        return refuse("it stands in quotes: leave them out");
    }
    let name = text.strip_prefix("export ").unwrap_or(text).split_once(['=', ':']);
    if name.is_some_and(|(name, value)| is_variable(name) && !value.is_empty() && !value.starts_with('=')) {
        return refuse("it begins with a name and `=` or `:`: write the value alone");
    }
    if text.contains(|c: char| c.is_ascii_whitespace()) {
        return refuse("it must be one word without blanks");
    }
    if !text.bytes().all(|b| b.is_ascii_graphic() && !b"\"\\".contains(&b)) {
        return refuse("it has quotes, backslashes or control characters");
    }
    let Some(secure) = text.strip_prefix("K10") else {
        return if is_bootstrap(text) { refuse(BOOTSTRAP) } else { Ok(()) };
    };
    // Without `::`, all of it is user and password.
    let (hash, rest) = secure.split_once("::").unwrap_or(("", secure));
    let digest = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    if !hash.is_empty() && !digest {
        return refuse("between `K10` and `::` there are not the 64 hexadecimal digits of the CA's SHA-256");
    }
    if is_bootstrap(rest) {
        return refuse(BOOTSTRAP);
    }
    match rest.split_once(':') {
        Some((_, password)) if !password.is_empty() => Ok(()),
        _ => refuse(
            "it begins with `K10`, and is not K10<64 hexadecimal digits>::server:<password>: it is cut off",
        ),
    }
}

/// A server's own token is what its data is encrypted by, and K3s takes no other there (`NormalizeToken` of K3s' pkg/util).
const BOOTSTRAP: &str = "it is one of `k3s token create`, by which agents join and no server starts: give the one of the first server, \
     /var/lib/rancher/k3s/server/token";

/// `<6 characters>.<16 characters>` (kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens).
fn is_bootstrap(text: &str) -> bool {
    let fits = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    text.split_once('.').is_some_and(|(id, secret)| fits(id, 6) && fits(secret, 16))
}

/// Whether what stands before a `=` was a name, and no part of a token: a shell's variable or a key of K3s' configuration.
fn is_variable(name: &str) -> bool {
    let shell = name.bytes().next().is_some_and(|b| b.is_ascii_uppercase())
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        && (name.contains('_') || name.ends_with("TOKEN"));
    shell || ["token", "agent-token", "k3s_token"].contains(&name.to_ascii_lowercase().as_str())
}

/// Characters of hashes: those of crypt(3)'s own base64.
fn of_crypt(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b"./".contains(&b))
}

/// Whether `bytes` is a hash of a method that the login of Debian 13 has (crypt(5)) and that is whole.
fn hash(bytes: &[u8]) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("is not a password hash: {why}"));
    let Some(text) = std::str::from_utf8(bytes).ok().filter(|text| text.is_ascii()) else {
        return refuse("it has characters that no hash has");
    };
    if text.contains(['\n', '\r']) {
        return refuse("it has more than one line");
    }
    if text.starts_with(['"', '\'']) {
        return refuse("it stands in quotes: leave them out");
    }
    if text.matches(':').count() >= 2 {
        return refuse("it is a whole line of /etc/shadow: write its second field alone");
    }
    if text.starts_with(['!', '*']) {
        return refuse(
            "it begins with a mark that locks the account: leave it out, or leave `root-password` out",
        );
    }
    if !text.starts_with('$') {
        return refuse("it must begin with $");
    }
    if text.contains(|c: char| c == ':' || !c.is_ascii_graphic()) {
        return refuse("it has blanks, control characters or `:`");
    }
    let parts: Vec<&str> = text.split('$').skip(1).collect();
    let last = parts.last().copied().unwrap_or_default();
    // crypt(5): how many parts there are, without and with a number of rounds, and how long the hash itself is.
    let (counts, length): (&[usize], usize) = match parts[0] {
        "y" | "gy" => (&[4], 43),
        "7" => (&[3], 43),
        "2a" | "2b" | "2x" | "2y" => (&[3], 53),
        "6" => (&[3, 4], 86),
        "5" => (&[3, 4], 43),
        "1" => (&[3], 22),
        _ => {
            return refuse(
                "its method, between the first two `$`, is not one of crypt(5) that logins are made by",
            );
        }
    };
    if !counts.contains(&parts.len()) || last.len() != length || !of_crypt(last) {
        return refuse("it is cut off or changed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(key: &str, text: &[u8]) -> Option<String> {
        judge(key, &Secret::Env("S".to_owned()), &Value::new(text)).err().map(|failure| failure.to_string())
    }

    #[test]
    fn tokens_are_words_that_k3s_takes() {
        let hash = "0123456789abcdef".repeat(4);
        for good in [
            "open-sesame",
            "c2VzYW1l=",
            "QUJDREVG==",
            "ABC=",
            "it's",
            "a:b",
            &hash,
            &format!("K10{hash}::server:open-sesame"),
            &format!("K10{hash}::node:a:b"),
            "K10::server:open-sesame",
        ] {
            assert_eq!(said("token", good.as_bytes()), None, "{good}");
        }
        for (bad, part) in [
            ("\"sesame\"", "in quotes"),
            ("'sesame'", "in quotes"),
            ("TOKEN=sesame", "begins with a name"),
            ("K3S_TOKEN=\"sesame\"", "begins with a name"),
            ("export K3S_TOKEN=sesame", "begins with a name"),
            ("token: sesame", "begins with a name"),
            ("token=sesame", "begins with a name"),
            ("open sesame", "without blanks"),
            ("sesame ", "without blanks"),
            ("sesame\r\nsesame", "more than one line"),
            ("ses\"ame", "quotes"),
            ("\u{feff}sesame", "byte order mark"),
            ("s\u{e9}same", "not ASCII"),
            ("sesame\u{1b}", "control"),
            ("K10sesame", "cut off"),
            ("K10sesame::server:x", "64 hexadecimal digits"),
            (&format!("K10{hash}::server:"), "cut off"),
            (&format!("K10{hash}"), "cut off"),
            (&format!("K10{}::server:x", "g".repeat(64)), "64 hexadecimal digits"),
            ("abcdef.0123456789abcdef", "k3s token create"),
            (&format!("K10{hash}::abcdef.0123456789abcdef"), "k3s token create"),
        ] {
            let why = said("token", bad.as_bytes()).unwrap_or_else(|| panic!("{bad} is taken"));
            assert!(why.contains(part) && !why.contains("sesame"), "{bad:?}: {why}");
        }
    }

    #[test]
    fn credentials_are_judged_by_their_names() {
        for (name, good) in [
            ("k3s.config", "server: https://10.0.0.1:6443 # the NUC\r\n"),
            ("k3s.config", r#"{"server": "https://10.0.0.1:6443"}"#),
            ("k3s.config", ""),
            ("k3s.token", "open-sesame\n"),
            ("network.network.50-lan", "[Match]\n"),
        ] {
            credential(name, good.as_bytes()).unwrap();
        }
        for (name, bad, part) in [
            ("k3s.config", "server: https://10.0.0.1\n\ttoken: sesame\n", "a tab"),
            ("k3s.config", "- sesame\n", "it has no keys"),
            ("k3s.config", "server: a\nserver: sesame\n", "line 2"),
            ("k3s.registries", "mirror: {}\n", "line 1"),
            ("k3s.token", "TOKEN=sesame", "name and `=`"),
            ("passwd.hashed-password.root", "sesame", "must begin with $"),
        ] {
            let failure = credential(name, bad.as_bytes()).unwrap_err();
            let text = failure.to_string();
            assert!(text.contains(name) && text.contains(part) && !text.contains("sesame"), "{text}");
            assert_eq!(failure.hints().len(), 1);
        }
    }

    #[test]
    fn hashes_are_whole_and_of_a_known_method() {
        for good in [
            format!("$y$j9T$F5Jx5fExrKuPp53xLKQ..1${}", "a".repeat(43)),
            format!("$6$rounds=656000$saltsalt${}", "a".repeat(86)),
            format!("$6$saltsalt${}", "a".repeat(86)),
            format!("$5$saltsalt${}", "/".repeat(43)),
            format!("$2b$05${}", ".".repeat(53)),
            format!("$1$salt${}", "a".repeat(22)),
        ] {
            assert_eq!(said("root-password", good.as_bytes()), None, "{good}");
        }
        for (bad, part) in [
            ("sesame".to_owned(), "must begin with $"),
            ("$sesame".to_owned(), "its method"),
            ("$6$salt$sesame".to_owned(), "cut off"),
            (format!("$6$salt${} ", "a".repeat(86)), "blanks"),
            (format!("$y$j9T${}", "a".repeat(43)), "cut off"),
            (format!("root:$6$salt${}:19000:0:::::", "a".repeat(86)), "second field"),
            (format!("!$6$salt${}", "a".repeat(86)), "locks the account"),
            (format!("'$6$salt${}'", "a".repeat(86)), "in quotes"),
            ("$6$sesame\n$6$sesame".to_owned(), "more than one line"),
            (String::new(), "must begin with $"),
            ("$".to_owned(), "its method"),
        ] {
            let why = said("root-password", bad.as_bytes()).unwrap_or_else(|| panic!("{bad} is taken"));
            assert!(why.contains(part) && !why.contains("sesame"), "{bad:?}: {why}");
        }
    }
}
