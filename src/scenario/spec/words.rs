//! The words of scenario files: names, durations, rates, addresses, patterns. Each is checked when it is read and then right.

use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// serde by way of `FromStr` and `Display`.
macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
as_text!(Name, Span, Rate, Mac, Subnet, Pattern, Day);

/// The name of a node, a network or a saved text: a DNS label (RFC 1035) of at most [`Name::LONGEST`] bytes, since it becomes a
/// host name, a part of socket paths and a process name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(with = "String")]
pub struct Name(String);

impl Name {
    /// Socket paths have 107 bytes in all.
    pub const LONGEST: usize = 32;

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = text.len() <= Self::LONGEST
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && !text.ends_with('-')
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if fits {
            return Ok(Name(text.to_owned()));
        }
        Err(format!(
            "`{}` is no name: write a small letter, then small letters, digits and -, at most {} in all",
            text.escape_debug(),
            Self::LONGEST
        ))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

/// A length of time, at most [`Span::LONGEST`]: `250ms`, `5s`, `2min`, `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, JsonSchema)]
#[schemars(with = "String")]
pub struct Span(Duration);

impl Span {
    /// A run of thousands of power cuts takes days.
    pub const LONGEST: Span = Span::hours(24 * 14);

    /// So many milliseconds.
    pub const fn millis(n: u64) -> Self {
        Span(Duration::from_millis(n))
    }

    /// So many seconds.
    pub const fn secs(n: u64) -> Self {
        Span(Duration::from_secs(n))
    }

    /// So many hours.
    pub const fn hours(n: u64) -> Self {
        Span(Duration::from_secs(n * 3600))
    }

    /// As the standard library has it.
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// Longer by `more`, whole milliseconds; even longer than [`Span::LONGEST`].
    pub fn longer(self, more: Duration) -> Self {
        Span(
            self.0.saturating_add(Duration::from_millis(u64::try_from(more.as_millis()).unwrap_or(u64::MAX))),
        )
    }

    /// `factor` times as long, for limits under a slower accelerator.
    pub fn scaled(self, factor: f64) -> Duration {
        Duration::try_from_secs_f64(self.0.as_secs_f64() * factor).unwrap_or(Duration::MAX)
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{}` is no length of time: write a whole number and a unit, such as \"250ms\", \"5s\", \"2min\" or \"1h\"",
                text.escape_debug()
            )
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = match unit {
            "ms" => 1,
            "s" => 1000,
            "min" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        match number.checked_mul(unit).map(Span::millis) {
            Some(span) if span <= Self::LONGEST => Ok(span),
            _ => Err(format!("`{text}` is longer than {}", Self::LONGEST)),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let (number, unit) = match millis {
            0 => (0, "s"),
            n if n % 3_600_000 == 0 => (n / 3_600_000, "h"),
            n if n % 60_000 == 0 => (n / 60_000, "min"),
            n if n % 1000 == 0 => (n / 1000, "s"),
            n => (n, "ms"),
        };
        write!(f, "{number}{unit}")
    }
}

/// A data rate in bits per second, at least 1 kbit/s: `64kbit`, `10Mbit`, `1Gbit`; units are powers of ten, as in tc(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct Rate(u64);

impl Rate {
    /// Bits per second.
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{}` is no data rate: write a whole number and a unit, such as \"64kbit\", \"10Mbit\" or \"1Gbit\"",
                text.escape_debug()
            )
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit: u64 = match unit {
            "kbit" => 1_000,
            "Mbit" => 1_000_000,
            "Gbit" => 1_000_000_000,
            _ => return Err(wrong()),
        };
        number.checked_mul(unit).filter(|bits| *bits > 0).map(Rate).ok_or_else(wrong)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n % 1_000_000_000 == 0 => write!(f, "{}Gbit", n / 1_000_000_000),
            n if n % 1_000_000 == 0 => write!(f, "{}Mbit", n / 1_000_000),
            n => write!(f, "{}kbit", n / 1000),
        }
    }
}

/// A share of frames, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, JsonSchema)]
#[schemars(with = "f64")]
#[serde(transparent)]
pub struct Fraction(f64);

impl Fraction {
    /// `share` if it is one.
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Fraction(share))
    }

    /// 0 to 1.
    pub fn share(self) -> f64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Fraction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let share = f64::deserialize(deserializer)?;
        Fraction::new(share).ok_or_else(|| {
            serde::de::Error::custom(format!("{share} is no share: write a number from 0 to 1"))
        })
    }
}

/// An Ethernet hardware address of one card: not a group's, not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(with = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// Its bytes, in the order of the wire.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// The address with these bytes, if it is one of a card.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        // The lowest bit of the first byte marks groups (IEEE 802, 8.2.2).
        (bytes != [0; 6] && bytes[0] & 1 == 0).then_some(Mac(bytes))
    }

    /// QEMU's prefix, locally administered by habit, and three bytes that tell cards apart.
    pub(super) fn qemu(low: [u8; 3]) -> Self {
        Mac([0x52, 0x54, 0x00, low[0], low[1], low[2]])
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{}` is no hardware address of a card: write 52:54:00:12:34:56", text.escape_debug());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(part.ok_or_else(wrong)?, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Mac::new(bytes).ok_or_else(wrong)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The addresses of a network: `10.77.0.0/24`, `fd00:77::/64`. Bits of the host are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct Subnet(IpNet);

impl Subnet {
    /// As ipnet has it.
    pub fn net(self) -> IpNet {
        self.0
    }

    /// Bits of the network.
    pub fn prefix(self) -> u8 {
        self.0.prefix_len()
    }

    /// Whether `address` may be a host's here: inside, and neither the network's own nor its broadcast address.
    pub fn has_host(self, address: IpAddr) -> bool {
        self.0.contains(&address)
            && address != self.0.network()
            && (address.is_ipv6() || address != self.0.broadcast())
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net: IpNet = text.parse().map_err(|_| {
            format!("`{}` is no subnet: write one such as \"10.77.0.0/24\"", text.escape_debug())
        })?;
        if net.trunc() != net {
            return Err(format!("`{text}` has bits of a host: the subnet is \"{}\"", net.trunc()));
        }
        if net.max_prefix_len() - net.prefix_len() < 2 {
            return Err(format!("`{text}` has no room for two nodes"));
        }
        Ok(Subnet(net))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A regular expression as the crate `regex` has them: it matches in linear time, whatever a guest writes.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(with = "String")]
pub struct Pattern(Regex);

impl Pattern {
    /// Whether it is found somewhere in `text`.
    pub fn is_in(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// To search with.
    pub fn regex(&self) -> &Regex {
        &self.0
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty pattern is in every text".to_owned());
        }
        Regex::new(text).map(Pattern).map_err(|error| {
            // The crate draws carets of its own; its last line has the reason.
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default();
            format!("not a regular expression: {}", reason.strip_prefix("error: ").unwrap_or(reason))
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A day, as 2027-06-30.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct Day(String);

impl Day {
    /// As text, which sorts as days do.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Day {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() == 10 && crate::lock::time::parse_iso(&format!("{text}T00:00:00Z")).is_some() {
            return Ok(Day(text.to_owned()));
        }
        Err(format!("`{}` is no day: write one such as \"2027-06-30\"", text.escape_debug()))
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
