//! Which proxy leads to a place: apt's settings and the variables of the environment.
//!
//! For Debian's archives as apt combines them (`HttpServerState::Open` in methods/http.cc): `Acquire::SCHEME::Proxy::HOST`, then
//! `Acquire::SCHEME::Proxy`, where `https` falls back to what is set for `http`; `DIRECT` means none; then `http_proxy`, which
//! `https_proxy` overrides for TLS; `no_proxy` is above all of them. What apt does not read and other programs do comes after that: the
//! same names in capitals, and `all_proxy`. For other places apt's settings are not looked at, and `http_proxy` is for plain HTTP alone.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::apt::{Conf, host};
use crate::url::Url;

/// A proxy, and who says so: a variable, or an option with `file:line`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Proxy {
    pub(super) url: Url,
    pub(super) from: String,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the proxy {} of {}", self.url, self.from)
    }
}

impl Proxy {
    fn new(text: &str, from: String) -> Self {
        let text = text.trim();
        // Without a scheme it is an HTTP proxy, as everywhere.
        let url = if text.contains("://") { Url::new(text) } else { Url::new(format!("http://{text}")) };
        Proxy { url, from }
    }

    /// Why kiln cannot use it.
    pub(super) fn unusable(&self) -> Option<String> {
        let known = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"];
        let scheme = self.url.scheme().to_ascii_lowercase();
        (!known.contains(&scheme.as_str()))
            .then(|| format!("{self} is of a kind that kiln does not know; it knows {}", known.join(", ")))
    }
}

/// The proxy for `url`; `apt` for Debian's archives. `env` reads a variable.
pub(super) fn choose(url: &Url, apt: Option<&Conf>, env: &dyn Fn(&str) -> Option<String>) -> Option<Proxy> {
    let tls = url.scheme().eq_ignore_ascii_case("https");
    let host = host(url);
    if bypassed(&host, apt.is_some(), env) {
        return None;
    }
    if let Some(conf) = apt {
        let methods: &[&str] = if tls { &["https", "http"] } else { &["http"] };
        for suffix in [format!("::{host}"), String::new()] {
            for method in methods {
                let option = format!("Acquire::{method}::Proxy{suffix}");
                if let Some(value) = conf.find(&option) {
                    let direct = value.text == "DIRECT";
                    return (!direct).then(|| Proxy::new(&value.text, format!("{option} ({})", value.at)));
                }
            }
        }
    }
    let mut names = if tls { vec!["https_proxy", "HTTPS_PROXY"] } else { vec!["http_proxy"] };
    if !tls && env("REQUEST_METHOD").is_none() {
        // In a CGI program this variable is a header that anybody sends (CVE-2016-5385).
        names.push("HTTP_PROXY");
    }
    if tls && apt.is_some() {
        names.push("http_proxy");
    }
    names.extend(["all_proxy", "ALL_PROXY"]);
    // A variable that is set to nothing says that there is no proxy.
    let (name, value) = names.iter().find_map(|name| Some((name, env(name)?)))?;
    (!value.trim().is_empty()).then(|| Proxy::new(&value, (*name).to_owned()))
}

/// Whether `no_proxy` names the host.
fn bypassed(host: &str, apt: bool, env: &dyn Fn(&str) -> Option<String>) -> bool {
    let Some(list) = env("no_proxy").or_else(|| env("NO_PROXY")) else { return false };
    let host = host.to_ascii_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    list.split(',').any(|item| {
        let item = item.trim().to_ascii_lowercase();
        if item.is_empty() {
            return false;
        }
        if let (Some(address), Ok(net)) = (address, item.parse::<IpNet>()) {
            return net.contains(&address);
        }
        let name = item.trim_start_matches('.');
        // apt looks at the end of the name alone, wherever it begins.
        item == "*" || host == name || host.ends_with(&format!(".{name}")) || (apt && host.ends_with(&item))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn chosen(url: &str, conf: Option<&str>, env: &[(&str, &str)]) -> String {
        let conf = conf.map(|text| Conf::of_text(text, Path::new("f")));
        let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        choose(&Url::new(url), conf.as_ref(), &env)
            .map_or_else(|| "none".to_owned(), |p| format!("{} {}", p.url.exposed(), p.from))
    }

    const HTTP: &str = "http://h.example/d";
    const TLS: &str = "https://h.example/d";

    #[test]
    fn apt_and_the_environment_are_combined_as_apt_does() {
        let conf = "Acquire::http::Proxy \"http://p:1\";\nAcquire::http::Proxy::h.example \"http://q:2\";";
        for (url, conf, env, want) in [
            (HTTP, conf, &[][..], "http://q:2 Acquire::http::Proxy::h.example (f:2)"),
            ("http://g.example/", conf, &[], "http://p:1 Acquire::http::Proxy (f:1)"),
            (TLS, "Acquire::http::Proxy \"http://p:1\";", &[], "http://p:1 Acquire::http::Proxy (f:1)"),
            (
                TLS,
                "Acquire::http::Proxy \"http://p:1\"; Acquire::https::Proxy \"DIRECT\";",
                &[("https_proxy", "http://e")],
                "none",
            ),
            (HTTP, "Acquire::http::Proxy::h.example \"DIRECT\";", &[("http_proxy", "http://e")], "none"),
            (
                "http://g.example/",
                "Acquire::http::Proxy::h.example \"DIRECT\";",
                &[("http_proxy", "http://e")],
                "http://e http_proxy",
            ),
            (HTTP, conf, &[("http_proxy", "http://e")], "http://q:2 Acquire::http::Proxy::h.example (f:2)"),
            (HTTP, conf, &[("no_proxy", "x,h.example")], "none"),
            (HTTP, conf, &[("no_proxy", "mple")], "none"),
            (HTTP, "", &[("http_proxy", "p:3128")], "http://p:3128 http_proxy"),
            (TLS, "", &[("http_proxy", "http://e")], "http://e http_proxy"),
            (TLS, "", &[("http_proxy", "http://e"), ("https_proxy", "http://s")], "http://s https_proxy"),
            (TLS, "", &[("http_proxy", "http://e"), ("https_proxy", "")], "none"),
            (TLS, "", &[("HTTPS_PROXY", "http://s")], "http://s HTTPS_PROXY"),
            (TLS, "", &[("all_proxy", "socks5://s:1")], "socks5://s:1 all_proxy"),
        ] {
            assert_eq!(chosen(url, Some(conf), env), want, "{url} {conf} {env:?}");
        }
    }

    #[test]
    fn other_places_have_the_environment_alone() {
        for (url, env, want) in [
            (TLS, &[("http_proxy", "http://e")][..], "none"),
            (HTTP, &[("HTTP_PROXY", "http://e")], "http://e HTTP_PROXY"),
            (HTTP, &[("HTTP_PROXY", "http://e"), ("REQUEST_METHOD", "GET")], "none"),
            (HTTP, &[("ALL_PROXY", "socks5h://s")], "socks5h://s ALL_PROXY"),
            (TLS, &[("https_proxy", "http://e"), ("NO_PROXY", "*")], "none"),
            (TLS, &[("https_proxy", "http://e"), ("no_proxy", ".example")], "none"),
            (TLS, &[("https_proxy", "http://e"), ("no_proxy", "mple")], "http://e https_proxy"),
            ("https://10.1.2.3/", &[("https_proxy", "http://e"), ("no_proxy", "10.0.0.0/8")], "none"),
        ] {
            assert_eq!(chosen(url, None, env), want, "{url} {env:?}");
        }
    }

    #[test]
    fn a_proxy_of_an_unknown_kind_is_named_without_its_password() {
        let proxy = Proxy::new("ftp://bob:s3cr3t@h", "http_proxy".to_owned());
        let why = proxy.unusable().unwrap();
        assert!(why.contains("the proxy ftp://***@h of http_proxy") && !why.contains("s3cr3t"), "{why}");
        assert_eq!(Proxy::new("socks5://h", String::new()).unusable(), None);
    }
}
