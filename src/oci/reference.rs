//! Names of container images: `host[:port]/repository[:tag][@sha256:…]`.
//!
//! The grammar is that of the
//! [distribution project](https://github.com/distribution/reference/blob/main/reference.go), less its short forms: the host must be
//! written, since which registry `busybox` comes from is a setting of whoever reads it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::LazyLock;

use regex::Regex;

use crate::digest::Digest;

/// The longest host and repository together (distribution/reference: `NameTotalLengthMax`).
const NAME_BYTES: usize = 255;

static GRAMMAR: LazyLock<Regex> = LazyLock::new(|| {
    let label = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?";
    let part = "[a-z0-9]+(?:(?:[.]|__?|-+)[a-z0-9]+)*";
    Regex::new(&format!(
        r"^(?<host>(?:{label}(?:\.{label})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?)/(?<repository>{part}(?:/{part})*)(?::(?<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?(?:@sha256:(?<digest>[0-9a-f]{{64}}))?$"
    ))
    .expect("a fixed pattern")
});

/// A name that says which registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Host, with the port if there is one.
    pub host: String,
    /// The path on that host.
    pub repository: String,
    /// The tag.
    pub tag: Option<String>,
    /// Digest of a manifest or an index.
    pub digest: Option<Digest>,
}

/// Why text is no [`Reference`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is no name of a container image: write host/repository:tag or host/repository@sha256:…, the host with a dot or a port"
)]
pub struct NotAReference(String);

impl FromStr for Reference {
    type Err = NotAReference;

    fn from_str(text: &str) -> Result<Self, NotAReference> {
        let wrong = || NotAReference(text.escape_debug().take(200).collect());
        let found = GRAMMAR.captures(text).ok_or_else(wrong)?;
        let (host, repository) = (&found["host"], &found["repository"]);
        // As everywhere in the world of containers: `library/busybox` names no host.
        let is_host = host.contains(['.', ':']) || host == "localhost";
        if !is_host || host.len() + repository.len() + 1 > NAME_BYTES {
            return Err(wrong());
        }
        let digest = found.name("digest").map(|d| d.as_str().parse()).transpose().map_err(|_| wrong())?;
        Ok(Reference {
            host: host.to_owned(),
            repository: repository.to_owned(),
            tag: found.name("tag").map(|t| t.as_str().to_owned()),
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match self.digest {
            Some(digest) => write!(f, "@sha256:{digest}"),
            None => Ok(()),
        }
    }
}

impl Reference {
    /// The name that containerd shall know the image by: with the tag if there is one, else with the digest.
    pub fn name(&self) -> String {
        let digest = if self.tag.is_some() { None } else { self.digest };
        Reference { digest, ..self.clone() }.to_string()
    }

    /// Whether the registry is on this machine: then, and only then, it is spoken to without TLS.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }
}

/// Whether `host`, with or without a port, is this machine.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, _)) => name,
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_read_and_written_as_they_were() {
        let digest = Digest::of(b"x");
        for text in [
            "kiln.invalid/pause:3.10".to_owned(),
            "localhost/a".to_owned(),
            "127.0.0.1:5000/a/b_c/d--e".to_owned(),
            "[::1]:5000/a:b".to_owned(),
            format!("registry.example.org/a.b/c:1.0@sha256:{digest}"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }
        let both: Reference = format!("r.example.org/a:1@sha256:{digest}").parse().unwrap();
        assert_eq!((both.name().as_str(), both.digest), ("r.example.org/a:1", Some(digest)));
        let one: Reference = format!("r.example.org/a@sha256:{digest}").parse().unwrap();
        assert_eq!(one.name(), one.to_string());
    }

    #[test]
    fn what_names_no_host_or_leaves_the_grammar_is_refused() {
        let long = format!("r.example.org/{}", "a".repeat(250));
        for wrong in [
            "",
            "busybox",
            "library/busybox:1",
            "r.example.org/",
            "r.example.org/A",
            "r.example.org/a/../b",
            "r.example.org/a:",
            "r.example.org/a@sha256:12",
            "r.example.org/a@sha512:00",
            "https://r.example.org/a",
            "r.example.org/a?b",
            "r.example.org//a",
            "user@r.example.org/a",
            "r.example.org/a\n",
            "r.example.org/a___b",
            &long,
        ] {
            assert!(wrong.parse::<Reference>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for host in ["localhost", "localhost:1", "127.0.0.1", "127.3.2.1:5000", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["localhost.example.org", "127.0.0.1.example.org:80", "10.0.0.1:5000", "[fe80::1]:5000", ""]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string(), text);
            }
        }
    }
}
