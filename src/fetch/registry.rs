//! Who kiln is to a container registry: nobody, or the person of a credentials file.
//!
//! The [token flow](https://distribution.github.io/distribution/spec/auth/token/): a request without a token is answered 401 and
//! `WWW-Authenticate: Bearer realm=…,service=…,scope=…`; the realm gives a token, to anybody, for a password (RFC 7617) or for an identity
//! token ([OAuth 2](https://distribution.github.io/distribution/spec/auth/oauth/)), and the request is made again with it. A registry that
//! asks for `Basic` gets the password itself. Passwords and tokens are never printed, and leave over TLS only, unless the registry is on
//! this machine.

mod credentials;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, OnceLock};

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::blocking::{Client, Response};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;

use self::credentials::{Credential, Found, Keychain, VARIABLE};
use super::reason;
use crate::oci::reference::{Reference, is_loopback};
use crate::url::{Url, scrub};

/// The longest answer of a token service.
const TOKEN_BYTES: u64 = 1 << 20;
/// Finds the client for a place.
type Clients<'a> = &'a dyn Fn(&Url) -> Result<Client, String>;

/// What opens a repository of a registry, found out when the registry asks for it.
pub struct Login {
    registry: String,
    base: String,
    repository: String,
    local: bool,
    /// Where a credential is looked for when the registry asks for one, taken then.
    keychain: Mutex<Option<Keychain>>,
    /// Those who are looked at, for people.
    asked: Option<String>,
    /// What was found, or why somebody could not be asked.
    found: OnceLock<Result<Option<Found>, String>>,
    header: Mutex<Option<HeaderValue>>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("base", &self.base)
            .field("repository", &self.repository)
            .field("asked", &self.asked)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Login {
    /// For the repository of `reference`, with the credentials that this machine has for it: in the file that `KILN_REGISTRY_AUTH` names,
    /// else in Docker's and Podman's files, or with the program that such a file names.
    ///
    /// # Errors
    /// [`Kind::Input`](crate::error::Kind::Input): a file cannot be read; what is in it is not shown.
    pub fn of(reference: &Reference) -> Result<Self> {
        let keychain = Keychain::of(reference)?;
        let asked = keychain.asked();
        Ok(Self::with(reference, Some(keychain), asked))
    }

    fn with(reference: &Reference, keychain: Option<Keychain>, asked: Option<String>) -> Self {
        let local = reference.is_loopback();
        let scheme = if local { "http" } else { "https" };
        // Docker's own registry answers under another name than the one it is known by.
        let host = if reference.host == "docker.io" { "registry-1.docker.io" } else { &reference.host };
        Login {
            registry: reference.host.clone(),
            base: format!("{scheme}://{host}/v2/{}", reference.repository),
            repository: reference.repository.clone(),
            local,
            keychain: Mutex::new(keychain),
            asked,
            found: OnceLock::new(),
            header: Mutex::default(),
        }
    }

    /// The credential for the registry. The first call may start a program, and wait for its person.
    fn found(&self) -> Result<Option<&Found>, &String> {
        let find = || {
            let keychain = self.keychain.lock().expect("no holder panics").take();
            keychain.map_or(Ok(None), Keychain::find)
        };
        self.found.get_or_init(find).as_ref().map(Option::as_ref)
    }

    /// URL of the repository in the registry's API, without a slash at its end.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Whether a redirect is not followed: registries send to where blobs lie, but never from TLS to plain HTTP.
    pub(super) fn must_not_follow(&self, to: &Url) -> bool {
        let to: Option<reqwest::Url> = to.exposed().parse().ok();
        to.is_none_or(|to| {
            let here = self.local && to.host_str().is_some_and(is_loopback);
            to.scheme() != "https" && !(here && to.scheme() == "http")
        })
    }

    /// What opened the repository last.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        self.header.lock().expect("no holder panics").clone()
    }

    /// Makes a header that answers the 401 in `response`; the text of an error is for people.
    pub(super) fn answer(&self, clients: Clients<'_>, response: &Response) -> Result<HeaderValue, String> {
        let asked: Vec<&str> =
            response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok()).collect();
        let of = |scheme: &str| asked.iter().find_map(|challenge| parameters(challenge, scheme));
        let mut header = if let Some(bearer) = of("Bearer") {
            let token = self.token(clients, &bearer)?;
            HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| "its token is no text".to_owned())?
        } else if of("Basic").is_some() {
            let found = self.found().ok().flatten().ok_or_else(|| self.refused())?;
            let Credential::Password { user, password } = &found.credential else {
                return Err(format!(
                    "it wants a password, and {} has none but an {}",
                    found.from,
                    found.word()
                ));
            };
            basic(user, password)?
        } else {
            return Err("it asks for a way to log in that kiln does not know".to_owned());
        };
        header.set_sensitive(true);
        *self.header.lock().expect("no holder panics") = Some(header.clone());
        Ok(header)
    }

    fn token(&self, clients: Clients<'_>, challenge: &BTreeMap<String, String>) -> Result<String, String> {
        let realm = challenge.get("realm").ok_or("it names no place that gives tokens")?;
        let mut url: reqwest::Url =
            realm.parse().map_err(|_| "the place that gives tokens is no URL".to_owned())?;
        let here = self.local && url.host_str().is_some_and(is_loopback);
        if url.scheme() != "https" && !(here && url.scheme() == "http") {
            return Err("the place that gives tokens has no TLS".to_owned());
        }
        let pull = format!("repository:{}:pull", self.repository);
        let service = challenge.get("service").map(|service| ("service", service));
        let words = service.into_iter().chain([("scope", challenge.get("scope").unwrap_or(&pull))]);
        // Without a helper that works, what is open to everybody still is.
        let credential = self.found().ok().flatten().map(|found| &found.credential);
        let client = clients(&Url::new(url.as_str())).map_err(|why| format!("no token: {why}"))?;
        let posted = matches!(credential, Some(Credential::Identity(_)));
        let query = match credential {
            Some(Credential::Bearer(token)) => return Ok(token.clone()),
            Some(Credential::Identity(token)) => {
                let mut form = url.clone();
                form.query_pairs_mut()
                    .clear()
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("client_id", "kiln")
                    .append_pair("refresh_token", token)
                    .extend_pairs(words);
                let form = form.query().unwrap_or_default().to_owned();
                client.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
            }
            Some(Credential::Password { user, password }) => {
                url.query_pairs_mut().extend_pairs(words);
                client.get(url).header(AUTHORIZATION, basic(user, password)?)
            }
            None => {
                url.query_pairs_mut().extend_pairs(words);
                client.get(url)
            }
        };
        let response = query.send().map_err(|e| format!("no token: {}", scrub(&reason(&e))))?;
        match response.status() {
            status if status.is_success() => {}
            status if status.as_u16() == 401 || status.as_u16() == 403 => return Err(self.refused()),
            // OAuth 2 says 400 of a token that is not valid (RFC 6749, 5.2).
            status if status.as_u16() == 400 && posted => return Err(self.refused()),
            status => return Err(format!("no token: {status}")),
        }
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(response, TOKEN_BYTES), &mut bytes)
            .map_err(|e| format!("no token: {e}"))?;
        // Serde's error would quote the text.
        let token: Token =
            serde_json::from_slice(&bytes).map_err(|_| "no token: the answer is none".to_owned())?;
        token.token.or(token.access_token).ok_or_else(|| "no token in the answer".to_owned())
    }

    /// Why the registry does not let kiln in, with the file to look at.
    pub(super) fn refused(&self) -> String {
        match (self.found(), &self.asked) {
            (Ok(Some(found)), _) => {
                format!("it refuses the {} of {} in {}", found.word(), self.registry, found.from)
            }
            (Err(trouble), _) => format!("it wants a password, and {trouble}"),
            (Ok(None), Some(asked)) => {
                format!("it wants a password, and {asked} has none for {}", self.registry)
            }
            (Ok(None), None) => {
                format!("it wants a password: {VARIABLE} can name a file that has it, in Docker's form")
            }
        }
    }
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, String> {
    let text = STANDARD.encode(format!("{user}:{password}"));
    let mut header = HeaderValue::from_str(&format!("Basic {text}")).map_err(|e| e.to_string())?;
    header.set_sensitive(true);
    Ok(header)
}

/// The parameters of a challenge of `scheme` (RFC 9110, section 11.2): `Bearer realm="…",service="…"`. `None` for another scheme.
fn parameters(challenge: &str, scheme: &str) -> Option<BTreeMap<String, String>> {
    let (found, mut rest) = challenge.trim().split_once(' ').unwrap_or((challenge.trim(), ""));
    if !found.eq_ignore_ascii_case(scheme) {
        return None;
    }
    let mut parameters = BTreeMap::new();
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
        let value;
        (value, rest) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        parameters.insert(name, value.trim().to_owned());
    }
    Some(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_are_read_with_commas_in_their_scopes() {
        let text = r#"Bearer realm="https://a.example.org/token",service="r.example.org",scope="repository:a/b:pull,push""#;
        let found = parameters(text, "bearer").unwrap();
        assert_eq!(found["realm"], "https://a.example.org/token");
        assert_eq!(found["scope"], "repository:a/b:pull,push");
        assert_eq!(parameters("Basic realm=x", "basic").unwrap()["realm"], "x");
        assert_eq!(parameters(text, "basic"), None);
        assert_eq!(parameters("Bearer realm=\"open", "bearer"), None);
    }

    #[test]
    fn a_login_shows_no_secret_and_speaks_tls_but_to_this_machine() {
        let credential = Credential::Password { user: "me".to_owned(), password: "hush".to_owned() };
        let of = |text: &str| Login::with(&text.parse().unwrap(), None, None);
        let login = of("r.example.org:5000/a:1");
        assert!(login.found.set(Ok(Some(Found { credential, from: "a/file".to_owned() }))).is_ok());
        assert!(!format!("{login:?} {}", login.refused()).contains("hush"));
        assert_eq!(login.base(), "https://r.example.org:5000/v2/a");
        assert_eq!(of("127.0.0.1:5000/a:1").base(), "http://127.0.0.1:5000/v2/a");
        assert_eq!(of("docker.io/library/a:1").base(), "https://registry-1.docker.io/v2/library/a");
    }

    proptest! {
        #[test]
        fn any_challenge_is_read_or_not(text in "(Bearer )?[ -~]{0,60}") {
            let _ = parameters(&text, "bearer");
        }
    }
}
