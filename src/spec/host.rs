//! A host on the network: by its address or by its name.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::Serialize;

use crate::scenario::identity::is_domain;

/// A host: an IPv4 address, an IPv6 address or a name that DNS knows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// Its address.
    Address(IpAddr),
    /// Its name, in small letters and without a dot at its end.
    Name(String),
}

impl Host {
    /// Its address, if it is one of IPv4.
    pub fn v4(&self) -> Option<Ipv4Addr> {
        match self {
            Host::Address(IpAddr::V4(address)) => Some(*address),
            _ => None,
        }
    }

    /// Whether it is an address of IPv6.
    pub fn is_v6(&self) -> bool {
        matches!(self, Host::Address(IpAddr::V6(_)))
    }

    /// As it stands in front of a `:`, where an IPv6 address is in brackets (nfs(5)).
    pub fn bracketed(&self) -> String {
        match self {
            Host::Address(IpAddr::V6(address)) => format!("[{address}]"),
            other => other.to_string(),
        }
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(text).parse::<IpAddr>()
            && (bare.is_none() || address.is_ipv6())
        {
            return Ok(Host::Address(address));
        }
        let refuse = |why: &str| Err(format!("`{}` {why}", text.escape_debug()));
        let name = text.strip_suffix('.').unwrap_or(text);
        if let Some((_, rest)) = text.split_once("://") {
            return refuse(&format!("is a URL: write the host alone, such as \"{}\"", host_of(rest)));
        }
        if text.contains('%') {
            return refuse(
                "names a network card, whose names differ between machines: write an address without `%`",
            );
        }
        if text.contains('/') {
            return refuse("has a prefix or a path: write the host alone");
        }
        // The last part of a name is never a number (RFC 1123, 2.1): what looks so was meant as an address.
        let number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        if !is_domain(name) || number {
            return refuse(
                "is neither an address nor a host name: write one such as \"192.168.50.1\", \"fd00::1\" or \"nas.lan\"",
            );
        }
        Ok(Host::Name(name.to_ascii_lowercase()))
    }
}

/// The host of what follows `://`, for a hint.
fn host_of(rest: &str) -> String {
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default();
    host.escape_debug().to_string()
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Address(address) => f.pad(&address.to_string()),
            Host::Name(name) => f.pad(name),
        }
    }
}

impl Serialize for Host {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<Ipv4Addr> for Host {
    fn from(address: Ipv4Addr) -> Self {
        Host::Address(IpAddr::V4(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_read_and_what_only_looks_like_one_is_refused() {
        for (text, shown, bracketed) in [
            ("192.168.50.1", "192.168.50.1", "192.168.50.1"),
            ("FD00::1", "fd00::1", "[fd00::1]"),
            ("[fd00::1]", "fd00::1", "[fd00::1]"),
            ("0.Debian.pool.ntp.org.", "0.debian.pool.ntp.org", "0.debian.pool.ntp.org"),
            ("nas", "nas", "nas"),
        ] {
            let host: Host = text.parse().unwrap();
            assert_eq!((host.to_string().as_str(), host.bracketed().as_str()), (shown, bracketed));
        }
        for (text, part) in [
            ("", "neither"),
            ("192.168.50.256", "neither"),
            ("192.168.50", "neither"),
            ("[192.168.50.1]", "neither"),
            ("nas:2049", "neither"),
            ("a b", "neither"),
            ("-a", "neither"),
            ("a..b", "neither"),
            ("a\nb", "a\\nb"),
            ("192.168.50.1/24", "prefix"),
            ("fe80::1%eth0", "card"),
            ("https://me@nas.lan/x", "\"nas.lan\""),
        ] {
            let why = text.parse::<Host>().unwrap_err();
            assert!(why.contains(part), "{why}");
        }
    }
}
