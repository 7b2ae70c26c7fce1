//! Credentials of registries, where Docker and Podman keep them.
//!
//! | place | whose |
//! |---|---|
//! | the file that `KILN_REGISTRY_AUTH` or `REGISTRY_AUTH_FILE` names, and then no other | kiln's, Podman's |
//! | `DOCKER_AUTH_CONFIG`, the text of such a file | Docker's, GitLab's |
//! | `$DOCKER_CONFIG/config.json` | Docker's |
//! | `$XDG_RUNTIME_DIR/containers/auth.json`, `/run/containers/UID/auth.json` without that variable | Podman's |
//! | `$XDG_CONFIG_HOME/containers/auth.json`, `~/.config/containers/auth.json` | Podman's |
//! | `~/.docker/config.json`, `~/.dockercfg` | Docker's |
//!
//! All have the form of Docker's file: `auths` with credentials, `credHelpers` and `credsStore` with names of programs that know them
//! ([docker-credential-helpers](https://github.com/docker/docker-credential-helpers): `docker-credential-NAME get`, the registry on stdin,
//! `{"ServerURL", "Username", "Secret"}` on stdout). Keys are registries as containers-auth.json(5) has them: `host[:port]`, with a path that
//! begins a repository's name, or a URL as Docker writes it. Programs run only when a registry asks for credentials.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use base64::Engine;
use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use fs_err as fs;
use serde::Deserialize;

use crate::error::{Failure, Kind};
use crate::exec::{Error, Tool, on_path};
use crate::oci::reference::Reference;

/// Variable with the path of a credentials file.
pub(super) const VARIABLE: &str = "KILN_REGISTRY_AUTH";
/// Podman's.
const PODMAN_VARIABLE: &str = "REGISTRY_AUTH_FILE";
/// The text of a file.
const TEXT_VARIABLE: &str = "DOCKER_AUTH_CONFIG";
/// How long a helper may take: a person may have to unlock a keychain.
const LIMIT: Duration = Duration::from_secs(60);
/// Docker's own registry, by all the names that it has.
const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// What Docker's programs call it.
const HUB_URL: &str = "https://index.docker.io/v1/";
/// What helpers say of a registry that they do not know (docker-credential-helpers, credentials/error.go).
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The user of a secret that is an identity token (Docker's documentation, "Credential helper protocol").
const TOKEN_USER: &str = "<token>";

/// What opens a registry. It has no `Debug`: none of it may be shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credential {
    /// For HTTP's Basic.
    Password {
        /// Whose.
        user: String,
        /// The password.
        password: String,
    },
    /// A refresh token (OAuth 2), for the place that gives tokens.
    Identity(String),
    /// A token for the registry itself.
    Bearer(String),
}

/// A credential, and where it was found.
pub(super) struct Found {
    pub(super) credential: Credential,
    /// A file, or a program and the file that names it.
    pub(super) from: String,
}

impl Found {
    /// What it is called.
    pub(super) fn word(&self) -> &'static str {
        match self.credential {
            Credential::Password { .. } => "password",
            Credential::Identity(_) => "identity token",
            Credential::Bearer(_) => "token",
        }
    }
}

/// Where a credential may be.
enum Source {
    /// It is known.
    Entry(Found),
    /// A program knows it.
    Helper(Helper),
}

/// A program that knows credentials.
struct Helper {
    /// What stands behind `docker-credential-`.
    name: String,
    /// `credsStore` or `credHelpers`, and the file.
    named_by: String,
    /// What the registry may be called there.
    servers: Vec<String>,
}

/// The credentials of one repository, as far as they can be known without starting a program.
pub(super) struct Keychain {
    sources: Vec<Source>,
    /// Files that were read.
    files: Vec<String>,
}

/// A credentials file; other keys are passed over.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct File {
    auths: Option<BTreeMap<String, Option<Auth>>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
struct Auth {
    /// `user:password` in base64.
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// What a helper prints.
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username", default)]
    user: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// A variable that is set and not empty.
fn set(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

impl Keychain {
    /// For the repository of `reference` on this machine.
    ///
    /// # Errors
    /// [`Kind::Input`]: a file cannot be read, or is none; what is in it is not shown.
    pub(super) fn of(reference: &Reference) -> Result<Self> {
        let mut keychain = Keychain { sources: Vec::new(), files: Vec::new() };
        if let Some(file) = set(VARIABLE).or_else(|| set(PODMAN_VARIABLE)) {
            keychain.add_file(&file, reference)?;
            return Ok(keychain);
        }
        if let Some(text) = set(TEXT_VARIABLE) {
            let shown = format!("the variable {TEXT_VARIABLE}");
            keychain.add(&shown, text.to_string_lossy().as_bytes(), false, reference)?;
        }
        let user = rustix::process::getuid().as_raw();
        let home = set("HOME");
        let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
        let runtime = match set("XDG_RUNTIME_DIR") {
            Some(folder) => folder.join("containers/auth.json"),
            None => format!("/run/containers/{user}/auth.json").into(),
        };
        let places = [
            set("DOCKER_CONFIG").map(|folder| folder.join("config.json")),
            Some(runtime),
            set("XDG_CONFIG_HOME").or_else(|| in_home(".config")).map(|f| f.join("containers/auth.json")),
            in_home(".docker/config.json").filter(|_| set("DOCKER_CONFIG").is_none()),
            in_home(".dockercfg"),
        ];
        for file in places.into_iter().flatten().filter(|file| file.is_file()) {
            keychain.add_file(&file, reference)?;
        }
        Ok(keychain)
    }

    fn add_file(&mut self, file: &Path, reference: &Reference) -> Result<()> {
        let bytes = fs::read(file).map_err(|e| {
            Failure::new(Kind::Input, "the file with the credentials of registries cannot be read")
                .hint(format!("{VARIABLE} names it, else {PODMAN_VARIABLE}; without those it is ~/.docker/config.json or Podman's auth.json"))
                .because(e)
        })?;
        let old = file.file_name().is_some_and(|name| name == ".dockercfg");
        self.add(&file.display().to_string(), &bytes, old, reference)
    }

    /// Adds what the text of a file has for `reference`; `old` files are their own `auths`.
    fn add(&mut self, shown: &str, bytes: &[u8], old: bool, reference: &Reference) -> Result<()> {
        let refuse = |why: &str| {
            Failure::new(Kind::Input, format!("{shown}: {why}"))
                .hint("it has Docker's form: {\"auths\": {\"registry.example.org\": {\"auth\": \"<base64 of user:password>\"}}}")
        };
        self.files.push(shown.to_owned());
        // Serde's error would quote the text.
        let none = |_| refuse("this is not a credentials file");
        let file = if bytes.trim_ascii().is_empty() {
            File::default()
        } else if old {
            File { auths: Some(serde_json::from_slice(bytes).map_err(none)?), ..File::default() }
        } else {
            serde_json::from_slice(bytes).map_err(none)?
        };
        let auths = file.auths.unwrap_or_default();
        let entry = best(&auths, reference);
        let helpers = file.cred_helpers.unwrap_or_default();
        let mut servers = vec![reference.host.clone()];
        if HUB.contains(&reference.host.as_str()) {
            servers.insert(0, HUB_URL.to_owned());
        }
        if let Some((key, _)) = entry
            && !servers.iter().any(|server| server == key)
        {
            servers.push(key.to_owned());
        }
        let own = best(&helpers, reference).map(|(_, name)| (name.as_str(), "credHelpers"));
        let all = file.creds_store.as_deref().map(|name| (name, "credsStore"));
        for (name, key) in [own, all].into_iter().flatten().filter(|(name, _)| !name.is_empty()) {
            self.sources.push(Source::Helper(Helper {
                name: name.to_owned(),
                named_by: format!("`{key}` of {shown}"),
                servers: servers.clone(),
            }));
        }
        let Some((_, Some(auth))) = entry else { return Ok(()) };
        let credential = credential(auth).map_err(|why| refuse(&format!("{why} of {}", reference.host)))?;
        let found = |credential| Source::Entry(Found { credential, from: shown.to_owned() });
        self.sources.extend(credential.map(found));
        Ok(())
    }

    /// The first credential that there is. `None` if nobody knows any.
    ///
    /// # Errors
    /// In words: a helper could not be asked, and nobody else knows any.
    pub(super) fn find(self) -> Result<Option<Found>, String> {
        let mut trouble = None;
        for source in self.sources {
            match source {
                Source::Entry(found) => return Ok(Some(found)),
                Source::Helper(helper) => match helper.ask() {
                    Ok(Some(found)) => return Ok(Some(found)),
                    Ok(None) => {}
                    Err(why) => {
                        tracing::debug!(why, "credential helper");
                        trouble.get_or_insert(why);
                    }
                },
            }
        }
        trouble.map_or(Ok(None), Err)
    }

    /// The programs and files that were asked, as text for messages; empty if there are none.
    pub(super) fn asked(&self) -> Option<String> {
        let helpers = self.sources.iter().filter_map(|source| match source {
            Source::Helper(helper) => Some(helper.shown()),
            Source::Entry(_) => None,
        });
        let helpers: Vec<String> = helpers.collect();
        let asked = if helpers.is_empty() { &self.files } else { &helpers };
        (!asked.is_empty()).then(|| asked.join(" and "))
    }
}

/// The value whose key fits `reference` best: that with the longest path.
fn best<'a, T>(table: &'a BTreeMap<String, T>, reference: &Reference) -> Option<(&'a str, &'a T)> {
    let fits = table.iter().filter_map(|(key, value)| Some((fits(key, reference)?, key.as_str(), value)));
    fits.max_by_key(|(length, key, _)| (*length, !key.contains("://"))).map(|(_, key, value)| (key, value))
}

/// The length of the path of `key` if it is of this repository; see containers-auth.json(5). Docker's URLs have a path that means nothing.
fn fits(key: &str, reference: &Reference) -> Option<usize> {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let (host, path) = bare.unwrap_or(key).split_once('/').unwrap_or((bare.unwrap_or(key), ""));
    let path = path.trim_matches('/');
    let path = if bare.is_some() || ["v1", "v2"].contains(&path) { "" } else { path };
    let hub = |host: &str| HUB.iter().any(|name| name.eq_ignore_ascii_case(host));
    let same = host.eq_ignore_ascii_case(&reference.host) || (hub(host) && hub(&reference.host));
    if !same {
        return None;
    }
    let below = reference.repository.strip_prefix(path)?;
    (path.is_empty() || below.is_empty() || below.starts_with('/')).then_some(path.len())
}

/// The credential of an entry; `None` if it says only that one is somewhere else.
///
/// # Errors
/// In words, without the text that is wrong.
fn credential(auth: &Auth) -> Result<Option<Credential>, String> {
    let full = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if let Some(token) = full(&auth.registrytoken) {
        return Ok(Some(Credential::Bearer(token)));
    }
    if let Some(token) = full(&auth.identitytoken) {
        return Ok(Some(Credential::Identity(token)));
    }
    if let Some(text) = full(&auth.auth) {
        let pair = decode(&text).and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = pair.as_deref().and_then(|pair| pair.split_once(':'));
        let (user, password) = pair.ok_or("`auth` is not the base64 of user:password")?;
        let password = password.trim_end_matches('\0').to_owned();
        return Ok(Some(Credential::Password { user: user.to_owned(), password }));
    }
    match (full(&auth.username), &auth.password) {
        // RFC 7617, 2: the first colon ends the user.
        (Some(user), _) if user.contains(':') => {
            Err("`username` has a colon, which HTTP cannot carry".to_owned())
        }
        (Some(user), Some(password)) => Ok(Some(Credential::Password { user, password: password.clone() })),
        _ => Ok(None),
    }
}

/// Base64 as people and programs leave it: with or without `=` in the end, with the letters of URLs, with the end of a line.
fn decode(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let of = |alphabet: &Alphabet| GeneralPurpose::new(alphabet, config).decode(text.trim()).ok();
    of(&STANDARD).or_else(|| of(&URL_SAFE))
}

impl Helper {
    fn program(&self) -> String {
        format!("docker-credential-{}", self.name.escape_debug().take(60).collect::<String>())
    }

    /// For people: the program and where it is named.
    fn shown(&self) -> String {
        format!("{}, which {} names,", self.program(), self.named_by)
    }

    /// What it knows of the registry.
    fn ask(&self) -> Result<Option<Found>, String> {
        let missing = || {
            format!(
                "{} is not on PATH: install it{}, take its name out of the file, or name another file by {VARIABLE}",
                self.shown(),
                package(&self.name)
            )
        };
        // The name is part of a program's name, as Docker has it, and no path.
        let plain = self.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c));
        let path = plain.then(|| on_path(&format!("docker-credential-{}", self.name))).flatten();
        let path = path.ok_or_else(missing)?;
        for server in &self.servers {
            if let Some(credential) = self.ask_about(&path, server)? {
                let from = format!("{} ({})", self.program(), self.named_by);
                return Ok(Some(Found { credential, from }));
            }
        }
        Ok(None)
    }

    fn ask_about(&self, path: &Path, server: &str) -> Result<Option<Credential>, String> {
        let call = Tool::host(path).command().arg("get").as_person().input(server).limit(LIMIT);
        let failed = |why: String| format!("{} failed: {why}", self.shown());
        let (said, ended) = call.answer().map_err(|error| failed(error.to_string()))?;
        let said = String::from_utf8_lossy(&said);
        if let Err(error) = ended {
            if said.trim() == NOT_FOUND {
                return Ok(None);
            }
            return Err(failed(match error {
                Error::Exit { code, stderr, .. } => format!("code {code}{}", words(&said, &stderr)),
                Error::Timeout { limit, .. } => format!("it did not end within {} s", limit.as_secs()),
                Error::Signal { signal, .. } => format!("it was killed by signal {signal}"),
                // No command line: what was asked for does not matter.
                other => other.to_string(),
            }));
        }
        // Serde's error would quote the secret.
        let answer: Answer = serde_json::from_str(&said)
            .map_err(|_| failed("it prints no JSON with Username and Secret".to_owned()))?;
        let Answer { user, secret } = answer;
        Ok(match user.as_str() {
            "" if secret.is_empty() => None,
            TOKEN_USER => Some(Credential::Identity(secret)),
            _ if user.contains(':') => {
                return Err(failed("its user has a colon, which HTTP cannot carry".to_owned()));
            }
            _ => Some(Credential::Password { user, password: secret }),
        })
    }
}

/// The last line of what a helper that failed says of it: on stdout by the protocol, else on stderr. An answer in JSON is not shown, since
/// there may be a secret in it.
fn words(stdout: &str, stderr: &str) -> String {
    let line = |text: &str| {
        let text = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
        (!text.contains(['{', '}', '"'])).then(|| text.escape_debug().take(300).collect::<String>())
    };
    line(stdout).or_else(|| line(stderr)).map(|line| format!(", {line}")).unwrap_or_default()
}

/// Where a helper comes from, for those that many have.
fn package(name: &str) -> &'static str {
    match name {
        "pass" | "secretservice" => " (Debian's package golang-docker-credential-helpers)",
        "desktop" | "osxkeychain" | "wincred" => " (it is part of Docker Desktop)",
        "ecr-login" => " (Debian's package amazon-ecr-credential-helper)",
        "gcloud" | "gcr" => " (it is part of Google's Cloud SDK)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(text: &str, reference: &str) -> Result<Keychain> {
        let mut keychain = Keychain { sources: Vec::new(), files: Vec::new() };
        keychain.add("a/file", text.as_bytes(), false, &reference.parse().unwrap())?;
        Ok(keychain)
    }

    fn found(text: &str, reference: &str) -> Option<Credential> {
        sources(text, reference).unwrap().find().ok().unwrap().map(|found| found.credential)
    }

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password { user: user.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn credentials_are_found_by_host_and_never_shown() {
        let good = r#"{"auths":{"r.example.org:5000":{"auth":"bWU6aHVzaDpodXNo"},"https://index.docker.io/v1/":{"username":"u","password":"p"},
                "empty.example.org":{}, "null.example.org":null}, "HttpHeaders":{"a":"b"}}"#;
        assert!(found(good, "r.example.org:5000/a:1") == password("me", "hush:hush"));
        assert!(found(good, "docker.io/library/busybox:1") == password("u", "p"));
        for other in ["r.example.org/a", "r.example.org:5001/a", "empty.example.org/a", "null.example.org/a"]
        {
            assert!(found(good, other).is_none(), "{other}");
        }
        for text in [
            r#"{"auths":{"h.test":{"auth":"hush"}}}"#,
            r#"{"auths":"hush"}"#,
            "hush",
            r#"{"auths":{"h.test":{"username":"a:hush","password":"x"}}}"#,
        ] {
            let error = format!("{:#}", sources(text, "h.test/a").err().unwrap());
            assert!(!error.contains("hush") && error.contains("a/file"), "{error}");
        }
        for none in ["", " \n", "{}", r#"{"auths":null,"credHelpers":null,"credsStore":""}"#] {
            assert!(found(none, "h.test/a").is_none());
        }
    }

    #[test]
    fn keys_are_those_that_docker_and_podman_write() {
        let fits = |key: &str, reference: &str| fits(key, &reference.parse().unwrap());
        for (key, reference, length) in [
            ("r.example.org", "r.example.org/a/b:1", Some(0)),
            ("R.Example.org", "r.example.org/a/b:1", Some(0)),
            ("https://r.example.org", "r.example.org/a", Some(0)),
            ("https://r.example.org/v2/", "r.example.org/a", Some(0)),
            ("http://r.example.org:80/", "r.example.org:80/a", Some(0)),
            ("r.example.org/v1/", "r.example.org/a", Some(0)),
            ("r.example.org/a", "r.example.org/a/b", Some(1)),
            ("r.example.org/a/b", "r.example.org/a/b", Some(3)),
            ("r.example.org/a/b", "r.example.org/a/bc", None),
            ("r.example.org/c", "r.example.org/a/b", None),
            ("r.example.org", "r.example.org:5000/a", None),
            ("https://index.docker.io/v1/", "docker.io/library/a", Some(0)),
            ("index.docker.io", "docker.io/library/a", Some(0)),
            ("docker.io", "docker.io/library/a", Some(0)),
            ("docker.io/library", "docker.io/library/a", Some(7)),
            ("registry-1.docker.io", "docker.io/library/a", Some(0)),
        ] {
            assert_eq!(fits(key, reference), length, "{key} {reference}");
        }
        let text = r#"{"auths":{"r.test":{"auth":"YTpob3N0"},"r.test/team":{"auth":"YTp0ZWFt"},"r.test/team/app":{"auth":"YTphcHA="}}}"#;
        assert!(found(text, "r.test/other") == password("a", "host"));
        assert!(found(text, "r.test/team/x") == password("a", "team"));
        assert!(found(text, "r.test/team/app") == password("a", "app"));
    }

    #[test]
    fn base64_is_read_as_it_is_found_and_tokens_come_first() {
        // "a:b??>" in both alphabets, with and without padding.
        for text in ["YTpiPz8+", "YTpiPz8-"] {
            assert_eq!(decode(text).unwrap(), b"a:b??>");
        }
        for text in ["YTpi", "YTpiYg==", "YTpiYg", "YTpiYmI=", "YTpiYmI", " YTpi\n"] {
            assert!(decode(text).unwrap().starts_with(b"a:b"), "{text}");
        }
        assert_eq!(decode("?"), None);
        let of = |entry: &str| found(&format!(r#"{{"auths":{{"h.test":{entry}}}}}"#), "h.test/a");
        assert!(of(r#"{"auth":"YTpi","identitytoken":"id"}"#) == Some(Credential::Identity("id".to_owned())));
        assert!(
            of(r#"{"identitytoken":"id","registrytoken":"reg"}"#)
                == Some(Credential::Bearer("reg".to_owned()))
        );
        assert!(of(r#"{"auth":"YTpi","username":"x","password":"y"}"#) == password("a", "b"));
        assert!(of(r#"{"auth":"YTo=","identitytoken":""}"#) == password("a", ""));
    }

    #[test]
    fn what_a_helper_says_is_shown_without_what_may_be_a_secret() {
        assert_eq!(words("no pinentry\n", "x"), ", no pinentry");
        assert_eq!(words("", "a\nb\x1b[0m\n"), ", b\\u{1b}[0m");
        assert_eq!(words("{\"Secret\":\"hush\"}", ""), "");
        assert_eq!(words("", ""), "");
    }
}
