//! Version numbers of Debian packages and their order.
//!
//! A version is `[epoch:]upstream[-revision]`. Epochs compare as numbers; upstream and revision compare by turns as runs
//! of non-digits, where `~` sorts before the end, the end before letters and letters before everything else, and as runs
//! of digits by value. Two spellings can be equal (`1.0` and `1.00`, `1` and `1-0`), which is why [`DebVersion`] has no
//! `Hash`.
//!
//! Sources: [Debian Policy 5.6.12](https://www.debian.org/doc/debian-policy/ch-controlfields.html#version), deb-version(7).

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A checked version that keeps its spelling.
#[derive(Clone)]
pub struct DebVersion {
    text: Box<str>,
    epoch: u32,
    /// Where the upstream part begins: after the colon, or 0.
    upstream: usize,
    /// Where the upstream part ends: at the last hyphen, or at the end.
    end: usize,
}

/// Text that is no version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a Debian version: {reason}")]
pub struct VersionError {
    text: String,
    reason: &'static str,
}

/// The longest version that is read; real ones stay below 100 bytes, and error messages and file names carry them.
const MAX_LEN: usize = 255;

impl DebVersion {
    /// Checks `text`, spaces around it not allowed.
    pub fn new(text: &str) -> Result<Self, VersionError> {
        let refuse = |reason| Err(VersionError { text: text.escape_debug().take(100).collect(), reason });
        if text.is_empty() {
            return refuse("it is empty");
        }
        if text.len() > MAX_LEN {
            return refuse("it is longer than 255 bytes");
        }
        let (epoch, upstream) = match text.find(':') {
            None => (0, 0),
            Some(at) => {
                let digits = &text[..at];
                if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return refuse("its epoch is not a number");
                }
                // dpkg keeps epochs in an int.
                match digits.parse::<u32>() {
                    Ok(epoch) if epoch <= i32::MAX as u32 => (epoch, at + 1),
                    _ => return refuse("its epoch is too big"),
                }
            }
        };
        let end = match text[upstream..].rfind('-') {
            Some(at) if upstream + at + 1 == text.len() => return refuse("its revision is empty"),
            Some(at) => upstream + at,
            None => text.len(),
        };
        if end == upstream {
            return refuse("its upstream part is empty");
        }
        if !text.as_bytes()[upstream].is_ascii_digit() {
            return refuse("its upstream part does not start with a digit");
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'~');
        if !text[upstream..end].bytes().all(|b| plain(b) || matches!(b, b'-' | b':')) {
            return refuse("its upstream part may hold only letters, digits and . + - ~ :");
        }
        if !text[end..].bytes().skip(1).all(plain) {
            return refuse("its revision may hold only letters, digits and . + ~");
        }
        Ok(DebVersion { text: text.into(), epoch, upstream, end })
    }

    /// As it was spelled.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The number before the colon, 0 if there is none.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Between the colon and the last hyphen.
    pub fn upstream(&self) -> &str {
        &self.text[self.upstream..self.end]
    }

    /// After the last hyphen; empty if there is none, which compares as `0`.
    pub fn revision(&self) -> &str {
        self.text.get(self.end + 1..).unwrap_or("")
    }
}

/// The weight of a byte inside a run of non-digits; a digit or the end weighs 0.
fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        Some(b'~') => -1,
        None => 0,
        Some(b) if b.is_ascii_digit() => 0,
        Some(b) if b.is_ascii_alphabetic() => i32::from(*b),
        Some(b) => i32::from(*b) + 256,
    }
}

fn compare_part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    let digit = |s: &[u8]| s.first().is_some_and(u8::is_ascii_digit);
    while !a.is_empty() || !b.is_empty() {
        while (!a.is_empty() && !digit(a)) || (!b.is_empty() && !digit(b)) {
            match weight(a.first()).cmp(&weight(b.first())) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
            a = a.get(1..).unwrap_or_default();
            b = b.get(1..).unwrap_or_default();
        }
        let number = |s: &mut &[u8]| -> (usize, usize) {
            let zeros = s.iter().take_while(|b| **b == b'0').count();
            *s = &s[zeros..];
            (zeros, s.iter().take_while(|b| b.is_ascii_digit()).count())
        };
        let ((_, len_a), (_, len_b)) = (number(&mut a), number(&mut b));
        // Without leading zeros the longer run is the bigger number, and equal lengths compare as text.
        match len_a.cmp(&len_b).then_with(|| a[..len_a].cmp(&b[..len_b])) {
            Ordering::Equal => {}
            unequal => return unequal,
        }
        (a, b) = (&a[len_a..], &b[len_b..]);
    }
    Ordering::Equal
}

impl Ord for DebVersion {
    fn cmp(&self, other: &Self) -> Ordering {
        self.epoch
            .cmp(&other.epoch)
            .then_with(|| compare_part(self.upstream().as_bytes(), other.upstream().as_bytes()))
            .then_with(|| compare_part(self.revision().as_bytes(), other.revision().as_bytes()))
    }
}

impl PartialOrd for DebVersion {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for DebVersion {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for DebVersion {}

impl FromStr for DebVersion {
    type Err = VersionError;

    fn from_str(s: &str) -> Result<Self, VersionError> {
        DebVersion::new(s)
    }
}

impl fmt::Display for DebVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for DebVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

impl Serialize for DebVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for DebVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        DebVersion::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v(text: &str) -> DebVersion {
        DebVersion::new(text).unwrap()
    }

    #[test]
    fn orders_the_examples_of_policy() {
        // Ascending; the tilde chain is Policy's own: ~~, ~~a, ~, the empty part, a.
        let ascending = [
            "1~~",
            "1~~a",
            "1~",
            "1",
            "1a",
            "1.0",
            "1.0+b1",
            "1.2~rc1-1",
            "1.2-1",
            "1.2-1+deb13u1",
            "1.2-1.1",
            "1.2-2",
            "1.10",
            "9",
            "10",
            "1:0.1",
            "2:0",
        ];
        for pair in ascending.windows(2) {
            assert!(v(pair[0]) < v(pair[1]), "{} < {}", pair[0], pair[1]);
        }
        for (a, b) in [("1.0", "1.00"), ("1", "1-0"), ("0:1", "1"), ("1.", "1.0")] {
            assert_eq!(v(a), v(b));
        }
    }

    #[test]
    fn parts_are_split_at_the_first_colon_and_the_last_hyphen() {
        let version = v("2:1.0-rc1-3");
        assert_eq!((version.epoch(), version.upstream(), version.revision()), (2, "1.0-rc1", "3"));
        assert_eq!(v("1.0").revision(), "");
    }

    #[test]
    fn refuses_what_is_no_version_and_says_why() {
        for (bad, reason) in [
            ("", "empty"),
            (":1", "epoch"),
            ("a:1", "epoch"),
            ("4294967296:1", "too big"),
            ("1-", "revision is empty"),
            ("1:", "upstream part is empty"),
            ("-1", "upstream part is empty"),
            ("a1", "start with a digit"),
            ("1 2", "only letters"),
            ("1_2", "only letters"),
            ("1-2_3", "revision may hold"),
            ("1é", "only letters"),
        ] {
            let error = DebVersion::new(bad).unwrap_err().to_string();
            assert!(error.contains(reason), "{bad:?}: {error}");
        }
        assert!(DebVersion::new(&"1".repeat(256)).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = DebVersion::new(&text);
        }

        #[test]
        fn order_agrees_with_debversion(
            a in "([0-2]:)?[0-9][0-9a-c.+~]{0,6}(-[0-9a-c.+~]{1,4})?",
            b in "([0-2]:)?[0-9][0-9a-c.+~]{0,6}(-[0-9a-c.+~]{1,4})?",
        ) {
            let judge = |s: &str| s.parse::<debversion::Version>().unwrap();
            prop_assert_eq!(v(&a).cmp(&v(&b)), judge(&a).cmp(&judge(&b)), "{} {}", a, b);
        }
    }
}
