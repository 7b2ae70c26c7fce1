//! Who kiln is to a container registry: nobody, or the person of a credentials file.
//!
//! The [token flow](https://distribution.github.io/distribution/spec/auth/token/): a request without a token is answered 401 and
//! `WWW-Authenticate: Bearer realm=…,service=…,scope=…`; the realm gives a token, to anybody or for a password (RFC 7617), and the request
//! is made again with it. A registry that asks for `Basic` gets the password itself. Passwords and tokens are never printed, and leave over
//! TLS only, unless the registry is on this machine.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fs_err as fs;
use reqwest::blocking::{Client, Response};
use reqwest::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::reason;
use crate::error::{Failure, Kind};
use crate::oci::reference::{Reference, is_loopback};
use crate::url::{Url, scrub};

/// Variable with the path of a credentials file.
const VARIABLE: &str = "KILN_REGISTRY_AUTH";
/// The longest answer of a token service.
const TOKEN_BYTES: u64 = 1 << 20;
/// Finds the client for a place.
type Clients<'a> = &'a dyn Fn(&Url) -> Result<Client, String>;

/// A user and a password.
struct Secret {
    user: String,
    password: String,
}

/// What opens a repository of a registry, found out when the registry asks for it.
pub struct Login {
    registry: String,
    base: String,
    repository: String,
    local: bool,
    secret: Option<Secret>,
    /// Where credentials were looked for.
    file: Option<PathBuf>,
    header: Mutex<Option<HeaderValue>>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("base", &self.base)
            .field("repository", &self.repository)
            .field("secret", &self.secret.is_some())
            .finish_non_exhaustive()
    }
}

/// A credentials file in Docker's form (`~/.docker/config.json`); other keys are passed over.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    /// `user:password` in base64.
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Login {
    /// For the repository of `reference`: credentials are those of the file that `KILN_REGISTRY_AUTH` names, else of Docker's own
    /// (`$DOCKER_CONFIG` or `~/.docker`, config.json) if there is one.
    ///
    /// # Errors
    /// [`Kind::Input`]: the file cannot be read; what is in it is not shown.
    pub fn of(reference: &Reference) -> Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let named = set(VARIABLE);
        let usual = || {
            let folder = set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker")))?;
            Some(folder.join("config.json")).filter(|file| file.is_file())
        };
        let file = named.or_else(usual);
        let secret = match &file {
            Some(file) => secret(file, &reference.host)?,
            None => None,
        };
        Ok(Self::with(reference, secret, file))
    }

    fn with(reference: &Reference, secret: Option<Secret>, file: Option<PathBuf>) -> Self {
        let local = reference.is_loopback();
        let scheme = if local { "http" } else { "https" };
        // Docker's own registry answers under another name than the one it is known by.
        let host = if reference.host == "docker.io" { "registry-1.docker.io" } else { &reference.host };
        Login {
            registry: reference.host.clone(),
            base: format!("{scheme}://{host}/v2/{}", reference.repository),
            repository: reference.repository.clone(),
            local,
            secret,
            file,
            header: Mutex::default(),
        }
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
            let secret = self.secret.as_ref().ok_or_else(|| self.refused())?;
            basic(secret)?
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
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = challenge.get("service") {
                query.append_pair("service", service);
            }
            query.append_pair("scope", challenge.get("scope").unwrap_or(&pull));
        }
        let client = clients(&Url::new(url.as_str())).map_err(|why| format!("no token: {why}"))?;
        let mut query = client.get(url);
        if let Some(secret) = &self.secret {
            query = query.header(AUTHORIZATION, basic(secret)?);
        }
        let response = query.send().map_err(|e| format!("no token: {}", scrub(&reason(&e))))?;
        match response.status() {
            status if status.is_success() => {}
            status if status.as_u16() == 401 || status.as_u16() == 403 => return Err(self.refused()),
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
        let file = self.file.as_ref().map(|f| f.display().to_string());
        match (&self.secret, file) {
            (Some(_), Some(file)) => format!("it refuses the password of {} in {file}", self.registry),
            (_, Some(file)) => format!("it wants a password, and {file} has none for {}", self.registry),
            (_, None) => {
                format!("it wants a password: {VARIABLE} can name a file that has it, in Docker's form")
            }
        }
    }
}

fn basic(secret: &Secret) -> Result<HeaderValue, String> {
    let text = STANDARD.encode(format!("{}:{}", secret.user, secret.password));
    let mut header = HeaderValue::from_str(&format!("Basic {text}")).map_err(|e| e.to_string())?;
    header.set_sensitive(true);
    Ok(header)
}

/// The credentials of `host` in a file.
fn secret(file: &Path, host: &str) -> Result<Option<Secret>> {
    let refuse = |why: &str| {
        Failure::new(Kind::Input, format!("{}: {why}", file.display()))
            .hint("it has Docker's form: {\"auths\": {\"registry.example.org\": {\"auth\": \"<base64 of user:password>\"}}}")
    };
    let bytes = fs::read(file).map_err(|e| {
        Failure::new(Kind::Input, "the file with the credentials of registries cannot be read")
            .hint(format!("{VARIABLE} names it; without that it is ~/.docker/config.json"))
            .because(e)
    })?;
    // Serde's error would quote the text.
    let read: File = serde_json::from_slice(&bytes).map_err(|_| refuse("this is no file of credentials"))?;
    // Docker writes its own registry, and old ones, as URLs.
    let old = "https://index.docker.io/v1/";
    let is = |key: &str| {
        let bare = key.strip_prefix("https://").unwrap_or(key);
        bare.split('/').next() == Some(host) || (host == "docker.io" && key == old)
    };
    let Some((_, auth)) = read.auths.iter().find(|(key, _)| is(key)) else { return Ok(None) };
    if let (Some(user), Some(password)) = (&auth.username, &auth.password) {
        return Ok(Some(Secret { user: user.clone(), password: password.clone() }));
    }
    let Some(text) = auth.auth.as_ref().filter(|text| !text.is_empty()) else { return Ok(None) };
    let pair = STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = pair.as_deref().and_then(|pair| pair.split_once(':'));
    let (user, password) =
        pair.ok_or_else(|| refuse(&format!("`auth` of {host} is no base64 of user:password")))?;
    Ok(Some(Secret { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() }))
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

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

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
    fn credentials_are_found_by_host_and_never_shown() {
        let good = file(
            r#"{"auths":{"r.example.org:5000":{"auth":"bWU6aHVzaDpodXNo"},"https://index.docker.io/v1/":{"username":"u","password":"p"},
                "empty.example.org":{}},"credsStore":"desktop"}"#,
        );
        let found = secret(good.path(), "r.example.org:5000").unwrap().unwrap();
        assert_eq!((found.user.as_str(), found.password.as_str()), ("me", "hush:hush"));
        assert_eq!(secret(good.path(), "docker.io").unwrap().unwrap().user, "u");
        assert!(secret(good.path(), "r.example.org").unwrap().is_none());
        assert!(secret(good.path(), "empty.example.org").unwrap().is_none());
        for text in [r#"{"auths":{"h":{"auth":"hush"}}}"#, r#"{"auths":"hush"}"#, "hush"] {
            let broken = file(text);
            let error = format!("{:#}", secret(broken.path(), "h").err().unwrap());
            assert!(!error.contains("hush"), "{error}");
        }
        let reference: Reference = "r.example.org:5000/a:1".parse().unwrap();
        let login = Login::with(&reference, Some(found), None);
        assert!(!format!("{login:?}").contains("hush"));
        assert_eq!(login.base(), "https://r.example.org:5000/v2/a");
        let local: Reference = "127.0.0.1:5000/a:1".parse().unwrap();
        assert_eq!(Login::with(&local, None, None).base(), "http://127.0.0.1:5000/v2/a");
    }

    proptest! {
        #[test]
        fn any_challenge_is_read_or_not(text in "(Bearer )?[ -~]{0,60}") {
            let _ = parameters(&text, "bearer");
        }
    }
}
