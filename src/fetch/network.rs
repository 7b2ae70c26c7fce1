//! HTTP clients: one for each way to a place, which is its proxy and what TLS is to be like there.
//!
//! Redirects are followed here and not by reqwest, since each step may have another proxy, another certificate and other credentials.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use fs_err as fs;
use reqwest::blocking::Client;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Identity, Proxy as HttpProxy};

use super::apt::{Answer, Apt, host, is_false};
use super::client;
use super::proxy::{self, Proxy};
use crate::url::Url;

/// What TLS is to be like: files in PEM format, and what is not looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Tls {
    authorities: Option<Setting>,
    certificate: Option<Setting>,
    key: Option<Setting>,
    revoked: Option<Setting>,
    any_certificate: bool,
    any_name: bool,
}

/// A file and the option that names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Setting {
    file: String,
    from: String,
}

type Way = (Option<Proxy>, Tls);

/// The clients of a fetcher.
#[derive(Debug, Default)]
pub(super) struct Network {
    /// apt's settings, for a fetcher of Debian's archives.
    pub(super) apt: Option<Arc<Apt>>,
    clients: Mutex<BTreeMap<Way, Client>>,
}

impl Network {
    pub(super) fn new(apt: Option<Arc<Apt>>) -> Self {
        Network { apt, clients: Mutex::default() }
    }

    /// The proxy that leads to `url`.
    pub(super) fn proxy(&self, url: &Url) -> Option<Proxy> {
        proxy::choose(url, self.apt.as_ref().map(|apt| &apt.conf), &|name| std::env::var(name).ok())
    }

    /// Who to be at `url`, which has no user itself.
    pub(super) fn login(&self, url: &Url) -> Answer<'_> {
        self.apt.as_ref().map_or(Answer::Nobody, |apt| apt.auth.of(url))
    }

    /// The client for `url`; the text of an error is for people.
    pub(super) fn client(&self, url: &Url) -> Result<Client, String> {
        let way = (self.proxy(url), self.tls(url));
        if let Some(why) = way.0.as_ref().and_then(Proxy::unusable) {
            return Err(why);
        }
        let mut clients = self.clients.lock().expect("no holder panics");
        if let Some(client) = clients.get(&way) {
            return Ok(client.clone());
        }
        let client = self.build(&way).map_err(|error| crate::url::scrub(&format!("{error:#}")))?;
        clients.insert(way, client.clone());
        Ok(client)
    }

    fn build(&self, (proxy, tls): &Way) -> Result<Client> {
        // The environment's proxies are looked at above.
        let mut builder = client().redirect(Policy::none()).no_proxy();
        if let Some(proxy) = proxy {
            let mut http =
                HttpProxy::all(proxy.url.exposed()).map_err(|_| anyhow::anyhow!("{proxy} is no URL"))?;
            if let Answer::Login(login) = self.login(&proxy.url)
                && !proxy.url.exposed().contains('@')
            {
                http = http.basic_auth(&login.user, &login.password);
            }
            builder = builder.proxy(http);
        }
        if let Some(authorities) = &tls.authorities {
            let list =
                Certificate::from_pem_bundle(&authorities.read()?).with_context(|| authorities.no_pem())?;
            anyhow::ensure!(!list.is_empty(), authorities.no_pem());
            builder = builder.tls_certs_only(list);
        }
        if let Some(certificate) = &tls.certificate {
            let mut pem = certificate.read()?;
            if let Some(key) = &tls.key {
                pem.push(b'\n');
                pem.extend(key.read()?);
            }
            builder = builder
                .identity(Identity::from_pem(&pem).map_err(|_| anyhow::anyhow!(certificate.no_pem()))?);
        }
        if let Some(revoked) = &tls.revoked {
            let list = reqwest::tls::CertificateRevocationList::from_pem_bundle(&revoked.read()?)
                .with_context(|| revoked.no_pem())?;
            builder = builder.tls_crls_only(list);
        }
        if tls.any_certificate {
            builder = builder.tls_danger_accept_invalid_certs(true);
        } else if tls.any_name {
            builder = builder.tls_danger_accept_invalid_hostnames(true);
        }
        builder.build().context("setting up the HTTP client")
    }

    fn tls(&self, url: &Url) -> Tls {
        let Some(apt) = self.apt.as_ref().filter(|_| url.scheme().eq_ignore_ascii_case("https")) else {
            return Tls::default();
        };
        let host = host(url);
        // The manual puts the host behind the option and the code of apt (`ConfigFind` in methods/aptmethod.h) before it.
        let find = |option: &str| {
            [format!("::{host}::{option}"), format!("::{option}::{host}"), format!("::{option}")]
                .iter()
                .flat_map(|end| ["https", "http"].map(|method| format!("Acquire::{method}{end}")))
                .find_map(|name| Some((apt.conf.find(&name)?, name)))
                .map(|(value, name)| (value.text.clone(), format!("{name} ({})", value.at)))
        };
        let file = |option: &str| find(option).map(|(file, from)| Setting { file, from });
        let off = |option: &str| find(option).is_some_and(|(text, _)| is_false(&text));
        Tls {
            authorities: file("CaInfo"),
            certificate: file("SslCert"),
            key: file("SslKey"),
            revoked: file("CrlFile"),
            any_certificate: off("Verify-Peer"),
            any_name: off("Verify-Host"),
        }
    }

    /// What of the way to `url` is not as usual, for people; nothing in it is secret.
    pub(super) fn describe(&self, url: &Url) -> Vec<String> {
        let mut out: Vec<String> = self.proxy(url).iter().map(|proxy| format!("through {proxy}")).collect();
        let tls = self.tls(url);
        let files = [&tls.authorities, &tls.certificate, &tls.key, &tls.revoked];
        out.extend(
            files.into_iter().flatten().map(|setting| format!("with {} of {}", setting.file, setting.from)),
        );
        if tls.any_certificate {
            out.push("its certificate is not looked at, since Verify-Peer is false".to_owned());
        }
        match self.login(url) {
            Answer::Login(_) => out.push("with a password of auth.conf".to_owned()),
            _ if url.to_string().contains("***@") => out.push("with the password of its URL".to_owned()),
            Answer::NotEncrypted(at) => out.push(not_encrypted(at, url)),
            Answer::Nobody => {}
        }
        out
    }
}

/// Why an entry of auth.conf is not used.
pub(super) fn not_encrypted(at: &str, url: &Url) -> String {
    format!(
        "the password of {at} is not sent without TLS: write `machine http://{}` there to allow it",
        host(url)
    )
}

impl Setting {
    fn read(&self) -> Result<Vec<u8>> {
        fs::read(Path::new(&self.file)).with_context(|| format!("the file of {} cannot be read", self.from))
    }

    fn no_pem(&self) -> String {
        format!("{}, of {}, is not what it should be in PEM format", self.file, self.from)
    }
}
