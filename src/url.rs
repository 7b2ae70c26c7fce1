//! URLs that may hold secrets: [`Url`] shows itself without them.
//!
//! A password in a URL, a token in its query: whoever prints a URL prints a [`Url`], and what a program or a library said is run
//! through [`scrub`]. Only the code that speaks to the network asks for [`Url::exposed`].

use std::fmt;

/// What stands in the place of a secret.
const HIDDEN: &str = "***";

/// A URL. `Display` and `Debug` leave out user, password, query and fragment.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url(String);

impl Url {
    /// Any text; what is no URL fails where it is used.
    pub fn new(text: impl Into<String>) -> Self {
        Url(text.into())
    }

    /// The whole of it, secrets included: for the network, never for people.
    pub fn exposed(&self) -> &str {
        &self.0
    }

    /// What stands before the colon: `http`, `mirror+file`; nothing without a colon.
    pub fn scheme(&self) -> &str {
        self.0.split_once(':').map_or("", |(scheme, _)| scheme)
    }

    /// The URL of `path` below this one.
    #[must_use]
    pub fn below(&self, path: &str) -> Self {
        Url(format!("{}/{path}", self.0.trim_end_matches('/')))
    }

    /// Scheme, host and port, in lower case: what is down when one place of it is.
    pub fn site(&self) -> String {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("", &self.0));
        let (authority, _) = split_authority(rest);
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        format!("{scheme}://{host}").to_ascii_lowercase()
    }

    /// The path of the file that a URL `file:` or `copy:` names, its percent signs decoded; `None` for any other URL, and for one of a
    /// file on another machine.
    pub fn file(&self) -> Option<String> {
        let rest = ["file:", "copy:"].iter().find_map(|scheme| self.0.strip_prefix(scheme))?;
        let path = match rest.strip_prefix("//") {
            Some(rest) => rest.strip_prefix("localhost").unwrap_or(rest),
            None => rest,
        };
        path.starts_with('/').then(|| decode(path))
    }
}

/// Decodes `%41`. What is no such sequence stays.
pub fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let byte = after.get(..2).filter(|_| *first == b'%').and_then(|two| {
            two.iter()
                .all(u8::is_ascii_hexdigit)
                .then(|| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok())?
        });
        match byte {
            Some(byte) => {
                out.push(byte);
                rest = &after[2..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Parts what follows `scheme://` into user, password, host and port, and the rest.
///
/// A password that somebody forgot to encode may hold `/`, `?` or `#`: where the text before the first of these ends in no port, and an `@`
/// follows, all up to the last `@` is taken for user and password.
fn split_authority(rest: &str) -> (&str, &str) {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, after) = rest.split_at(end);
    // A host has one colon, before its port, unless it is an address of IPv6 in brackets.
    let odd = authority.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.starts_with('[') && (host.ends_with(']') || port.ends_with(']'));
        !bracketed && (host.contains(':') || !port.bytes().all(|b| b.is_ascii_digit()))
    });
    match after.rfind('@') {
        Some(at) if odd && !authority.contains('@') => {
            let end = rest[end + at..].find(['/', '?', '#']).map_or(rest.len(), |more| end + at + more);
            rest.split_at(end)
        }
        _ => (authority, after),
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |text: &str| -> String {
            text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
        };
        let (scheme, rest) = match self.0.split_once("://") {
            Some((scheme, rest)) => (format!("{scheme}://"), rest),
            // A proxy may come without a scheme; the path of a local file has no user.
            None if self.0.contains('@')
                && !["file:", "copy:", "mirror+file:", "cdrom:"].iter().any(|s| self.0.starts_with(s)) =>
            {
                (String::new(), self.0.as_str())
            }
            None => return f.write_str(&plain(&self.0)),
        };
        let (authority, after) = split_authority(rest);
        let (user, host) = authority.rsplit_once('@').map_or(("", authority), |(_, host)| ("@", host));
        let (path, more) = after.split_at(after.find(['?', '#']).unwrap_or(after.len()));
        let hidden = |there: bool| if there { HIDDEN } else { "" };
        write!(f, "{}{}{user}{}{}", plain(&scheme), hidden(!user.is_empty()), plain(host), plain(path))?;
        write!(f, "{}{}", more.get(..1).unwrap_or_default(), hidden(!more.is_empty()))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<&str> for Url {
    fn from(text: &str) -> Self {
        Url::new(text)
    }
}

impl From<String> for Url {
    fn from(text: String) -> Self {
        Url::new(text)
    }
}

impl From<&String> for Url {
    fn from(text: &String) -> Self {
        Url::new(text)
    }
}

impl From<&Url> for Url {
    fn from(url: &Url) -> Self {
        url.clone()
    }
}

/// Text of others, such as a library's error or a line of somebody's file, with user and password of every URL in it left out.
pub fn scrub(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        // Quotes and brackets may be part of a password; better too much is hidden than too little.
        let end = after.find(char::is_whitespace).unwrap_or(after.len());
        let word = &after[..end];
        let (authority, _) = split_authority(word);
        match authority.rfind('@') {
            Some(at) => {
                out.push_str(HIDDEN);
                rest = &after[at..];
            }
            None => {
                out.push_str(authority);
                rest = &after[authority.len()..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_in_a_url_is_not_shown() {
        for (url, shown) in [
            ("http://bob:s3cr3t@h.test:80/debian", "http://***@h.test:80/debian"),
            ("https://t0ken-s3cr3t@h.test", "https://***@h.test"),
            ("http://bob:s3@cr3t@h.test/x@y", "http://***@h.test/x@y"),
            ("http://bob:s3/cr3t@h.test/debian", "http://***@h.test/debian"),
            ("http://bob:s3?cr#3t@h.test/debian", "http://***@h.test/debian"),
            ("http://bob:s3cr3t:1/2@h.test/debian", "http://***@h.test/debian"),
            ("https://[::1]:443/@x", "https://[::1]:443/@x"),
            ("mirror+https://bob:s3cr3t@h.test/l", "mirror+https://***@h.test/l"),
            ("bob:s3cr3t@proxy:3128", "***@proxy:3128"),
            ("socks5h://bob:s3cr3t@[::1]:1080", "socks5h://***@[::1]:1080"),
            ("https://h.test/a?token=s3cr3t#s3cr3t", "https://h.test/a?***"),
            ("https://h.test:8080/@scope/x", "https://h.test:8080/@scope/x"),
            ("https://[fe80::1]/@scope/x", "https://[fe80::1]/@scope/x"),
            ("file:/srv/a@b", "file:/srv/a@b"),
            ("http://h.test/\u{1b}[31m", "http://h.test/\u{fffd}[31m"),
            ("", ""),
        ] {
            assert_eq!(Url::new(url).to_string(), shown);
            assert_eq!(format!("{:?}", Some(Url::new(url))), format!("Some({shown})"));
        }
    }

    #[test]
    fn text_of_others_is_scrubbed() {
        for (text, shown) in [
            ("a http://bob:s3cr3t@h/x b https://c/d@e", "a http://***@h/x b https://c/d@e"),
            ("mirrors = [\"http://bob:s3cr3t@h\", \"x\"]", "mirrors = [\"http://***@h\", \"x\"]"),
            ("://", "://"),
            ("http://bob:s3/cr3t@h/x", "http://***@h/x"),
            ("no URL: a@b", "no URL: a@b"),
        ] {
            assert_eq!(scrub(text), shown);
        }
    }

    #[test]
    fn parts_of_urls_are_found() {
        assert_eq!(Url::new("HTTP://bob:x@H.test:80/d").site(), "http://h.test:80");
        for (url, file) in [
            ("file:/srv/m", Some("/srv/m")),
            ("file:///srv/a%20b", Some("/srv/a b")),
            ("copy:/srv/100%", Some("/srv/100%")),
            ("file://localhost/srv", Some("/srv")),
            ("file://other/srv", None),
            ("file:srv", None),
            ("http://h/srv", None),
        ] {
            assert_eq!(Url::new(url).file().as_deref(), file, "{url}");
        }
        assert_eq!(Url::new("file:/srv/m/").below("dists/x").exposed(), "file:/srv/m/dists/x");
    }

    proptest::proptest! {
        #[test]
        fn no_url_shows_its_password(user in "[a-z]{1,5}", password in "SECRET[!-~]{0,8}", path in "[a-z/]{0,8}") {
            // A slash at once after a port is the one case that cannot be told from a path.
            let url = format!("http://{user}:{password}@h.test/{path}");
            proptest::prop_assert!(!Url::new(url.clone()).to_string().contains("SECRET"));
            proptest::prop_assert!(!scrub(&url).contains("SECRET"));
        }
    }
}
