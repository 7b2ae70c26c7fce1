//! Versions of K3s: Kubernetes' own and a number for K3s' part, `v1.33.3+k3s1`; before a release, `v1.34.0-rc1+k3s1`.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A version of K3s. Sorts as its releases followed each other within a minor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    text: String,
    major: u64,
    minor: u64,
    patch: u64,
    /// `rc1` as its word and its number.
    before: Option<(String, u64)>,
    build: u64,
}

/// Text that is no version of K3s.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no version of K3s")]
pub(super) struct NoVersion(String);

impl FromStr for Version {
    type Err = NoVersion;

    fn from_str(text: &str) -> Result<Self, NoVersion> {
        parse(text).ok_or_else(|| NoVersion(text.chars().take(80).collect()))
    }
}

fn parse(text: &str) -> Option<Version> {
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if plain { text.parse::<u64>().ok() } else { None }
    };
    let (kubernetes, build) = text.strip_prefix('v')?.split_once("+k3s")?;
    let (numbers, before) = match kubernetes.split_once('-') {
        Some((numbers, before)) => (numbers, Some(before)),
        None => (kubernetes, None),
    };
    let before = match before {
        Some(before) => {
            let word = before.trim_end_matches(|c: char| c.is_ascii_digit());
            if word.is_empty() || !word.bytes().all(|b| b.is_ascii_lowercase()) {
                return None;
            }
            Some((word.to_owned(), number(&before[word.len()..])?))
        }
        None => None,
    };
    let mut numbers = numbers.split('.').map(number);
    let version = Version {
        text: text.to_owned(),
        major: numbers.next()??,
        minor: numbers.next()??,
        patch: numbers.next()??,
        before,
        build: number(build)?,
    };
    numbers.next().is_none().then_some(version)
}

impl Version {
    /// As upstream writes it.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// As it stands in URLs, where a plus sign may mean a blank.
    pub(super) fn encoded(&self) -> String {
        self.text.replace('+', "%2B")
    }

    /// As modules of K3s' own Kubernetes are called, since versions of Go modules have no plus sign.
    pub(super) fn tag(&self) -> String {
        self.text.replace('+', "-")
    }

    /// The Kubernetes in it, `v1.33.3`.
    pub(super) fn kubernetes(&self) -> &str {
        self.text.split('+').next().unwrap_or_default()
    }

    /// The channel of its minor, `v1.33`.
    pub(super) fn channel(&self) -> String {
        format!("v{}.{}", self.major, self.minor)
    }

    /// The first minor that a step to `later` leaves out, as a channel.
    pub(super) fn skipped(&self, later: &Version) -> Option<String> {
        let next = self.minor + 1;
        (later.major > self.major || later.minor > next).then(|| format!("v{}.{next}", self.major))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |v: &Version| (v.major, v.minor, v.patch, v.before.is_none(), v.before.clone(), v.build);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn versions_sort_as_numbers_and_candidates_come_before_their_release() {
        let sorted = [
            "v1.9.9+k3s1",
            "v1.33.3-rc2+k3s1",
            "v1.33.3-rc10+k3s1",
            "v1.33.3+k3s1",
            "v1.33.3+k3s2",
            "v1.33.3+k3s10",
            "v1.33.10+k3s1",
            "v1.34.0+k3s1",
        ];
        assert!(sorted.windows(2).all(|pair| version(pair[0]) < version(pair[1])));
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in [
            "",
            "1.33.3+k3s1",
            "v1.33.3",
            "v1.33.3-k3s1",
            "v1.33+k3s1",
            "v1.33.3.4+k3s1",
            "v1.33.x+k3s1",
            "v1.33.3+k3s",
            "v1.33.3+k3s1\n",
            "v1.33.3-+k3s1",
            "v1.33.3-rc+k3s1",
            "v1.33.3+k3s1/../..",
            "v+1.33.3+k3s1",
        ] {
            assert_eq!(text.parse::<Version>(), Err(NoVersion(text.to_owned())));
        }
    }

    #[test]
    fn it_knows_its_other_spellings_and_which_minor_a_step_leaves_out() {
        let old = version("v1.33.3+k3s1");
        assert_eq!((old.encoded().as_str(), old.tag().as_str()), ("v1.33.3%2Bk3s1", "v1.33.3-k3s1"));
        assert_eq!((old.kubernetes(), old.channel().as_str()), ("v1.33.3", "v1.33"));
        assert_eq!(old.skipped(&version("v1.34.9+k3s1")), None);
        assert_eq!(old.skipped(&version("v1.35.0+k3s1")), Some("v1.34".to_owned()));
        assert_eq!(old.skipped(&version("v1.32.0+k3s1")), None);
    }
}
