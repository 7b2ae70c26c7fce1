//! Debian's container registry on loopback, a door before it that misbehaves as it is told, and just enough HTTP to fill it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use kiln::digest::Digest;
use kiln::exec::{Child, Tool};

/// The user that the registry lets in.
pub const USER: &str = "kiln";
/// That user's password.
pub const PASSWORD: &str = "open sesame";
/// The identity token that a door may want.
pub const IDENTITY: &str = "1dentity+/=";
/// bcrypt(3) of it, with a fixed salt: `perl -e 'print crypt("open sesame", "\$2y\$05\$kilnkilnkilnkilnkilnkO")'`.
const HASH: &str = "$2y$05$kilnkilnkilnkilnkilnkOoQFfuOWMs2A8BB1uQOrhl5t88M3PQDq";

/// `user:password` as the Authorization header has it.
pub fn basic(password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{password}")))
}

/// A running registry; it ends with this.
#[derive(Debug)]
pub struct Registry {
    _child: Child,
    dir: tempfile::TempDir,
    /// `127.0.0.1:port`.
    pub host: String,
    authorization: Option<String>,
}

impl Registry {
    /// Starts `docker-registry` out of `tools`; with a password if `closed`.
    pub fn start(tools: &Path, closed: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        // Somebody may take the port between this and the registry's start: then it is another one's turn.
        for _ in 0..5 {
            let host = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
            let mut config = format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{host}'}}\n",
                at("data")
            );
            if closed {
                fs_err::write(at("htpasswd"), format!("{USER}:{HASH}\n")).unwrap();
                config += &format!("auth: {{htpasswd: {{realm: kiln, path: {}}}}}\n", at("htpasswd"));
            }
            fs_err::write(at("config.yml"), config).unwrap();
            let tool = Tool::from_tree(tools, "usr/bin/docker-registry").unwrap();
            let mut child = tool.command().args(["serve", &at("config.yml")]).spawn().unwrap();
            for _ in 0..300 {
                if TcpStream::connect(&host).is_ok() {
                    let authorization = closed.then(|| basic(PASSWORD));
                    return Registry { _child: child, dir, host, authorization };
                }
                if child.wait(Duration::from_millis(100)).unwrap().is_some() {
                    break;
                }
            }
        }
        panic!("docker-registry does not start");
    }

    /// Where it keeps its blobs.
    pub fn blob(&self, digest: Digest) -> std::path::PathBuf {
        let hex = digest.to_string();
        let blobs = self.dir.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(&hex).join("data")
    }

    fn request(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        let authorization = self.authorization.as_ref().map(|a| format!("Authorization: {a}\r\n"));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{}Content-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.host,
            authorization.unwrap_or_default(),
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let text = String::from_utf8_lossy(&answer).into_owned();
        (text.split(' ').nth(1).unwrap().parse().unwrap(), text)
    }

    /// Puts a blob into a repository (distribution-spec, "POST then PUT").
    pub fn push_blob(&self, repository: &str, bytes: &[u8]) {
        let (code, text) = self.request(
            "POST",
            &format!("/v2/{repository}/blobs/uploads/"),
            "application/octet-stream",
            b"",
        );
        assert_eq!(code, 202, "{text}");
        let location = text.lines().find_map(|l| l.strip_prefix("Location: ")).unwrap().trim();
        let path = location.split_once(&self.host).unwrap().1;
        let path = format!("{path}&digest=sha256:{}", Digest::of(bytes));
        let (code, text) = self.request("PUT", &path, "application/octet-stream", bytes);
        assert_eq!(code, 201, "{text}");
    }

    /// Puts a manifest or an index into a repository, named by its digest, which the registry must find too.
    pub fn push_manifest(&self, repository: &str, kind: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = format!("/v2/{repository}/manifests/sha256:{digest}");
        let (code, text) = self.request("PUT", &path, kind, bytes);
        assert_eq!(code, 201, "{text}");
        digest
    }
}

/// How the door lets requests through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As they are.
    Open,
    /// The first answer whose path contains `blobs` ends after so many bytes.
    CutOnce(usize),
    /// Only with a token, which its own `/token` gives: to the right password, and to nobody else.
    Token,
    /// Only with a token, which anybody gets.
    AnonymousToken,
    /// Only with a token, which its own `/token` gives for the identity token [`IDENTITY`] (OAuth 2), and for nothing else.
    IdentityToken,
}

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    pub body: String,
}

/// A door before a registry.
#[derive(Debug, Clone)]
pub struct Door {
    /// `127.0.0.1:port`.
    pub host: String,
    state: Arc<Mutex<(Manner, Vec<Asked>)>>,
}

impl Door {
    pub fn before(registry: &Registry, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new((manner, Vec::new())));
        let door = Door { host, state };
        let (served, behind) = (door.clone(), registry.host.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (door, behind) = (served.clone(), behind.clone());
                std::thread::spawn(move || door.answer(&stream, &behind));
            }
        });
        door
    }

    /// What was asked for whose path contains `part`.
    pub fn asked(&self, part: &str) -> Vec<Asked> {
        self.state.lock().unwrap().1.iter().filter(|asked| asked.path.contains(part)).cloned().collect()
    }

    fn answer(&self, mut stream: &TcpStream, behind: &str) -> std::io::Result<()> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read(&mut byte)? == 0 {
                return Ok(());
            }
            head.extend(byte);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let field = |name: &str| {
            let mut fields = head.lines().filter_map(|line| line.split_once(": "));
            fields.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
        };
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let length = field("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        let asked = Asked { path, range: field("range"), authorization: field("authorization"), body };
        let manner = {
            let mut state = self.state.lock().unwrap();
            state.1.push(asked.clone());
            let manner = state.0;
            if matches!(manner, Manner::CutOnce(_)) && asked.path.contains("/blobs/") {
                state.0 = Manner::Open;
            }
            manner
        };
        let plain = |status: &str, field: &str, body: &str| {
            format!(
                "HTTP/1.1 {status}\r\n{field}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
        };
        if matches!(manner, Manner::Token | Manner::AnonymousToken | Manner::IdentityToken) {
            let known = manner == Manner::AnonymousToken || asked.authorization == Some(basic(PASSWORD));
            let words =
                ["grant_type=refresh_token", "refresh_token=1dentity%2B%2F%3D", "service=door", "client_id="];
            let answer = if manner == Manner::IdentityToken && asked.path == "/token" {
                match words.iter().all(|word| asked.body.contains(word)) {
                    true => plain("200 OK", "", r#"{"access_token":"T0KEN","expires_in":300}"#),
                    false => plain("400 Bad Request", "", r#"{"error":"invalid_grant"}"#),
                }
            } else if manner != Manner::IdentityToken && asked.path.starts_with("/token?") && known {
                plain("200 OK", "", r#"{"token":"T0KEN","expires_in":300}"#)
            } else if asked.path.starts_with("/token?") {
                plain("401 Unauthorized", "", "")
            } else if asked.authorization.as_deref() != Some("Bearer T0KEN") {
                let challenge = format!(
                    "WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"door\",scope=\"repository:a/b:pull\"\r\n",
                    self.host
                );
                plain("401 Unauthorized", &challenge, "")
            } else {
                String::new()
            };
            if !answer.is_empty() {
                return stream.write_all(answer.as_bytes());
            }
        }
        let mut registry = TcpStream::connect(behind)?;
        let kept = head.trim_end().lines().filter(|line| !line.starts_with("authorization: Bearer"));
        let sent: String = kept.map(|line| format!("{line}\r\n")).collect();
        registry.write_all(format!("{sent}Connection: close\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        registry.read_to_end(&mut answer)?;
        match manner {
            Manner::CutOnce(count) if asked.path.contains("/blobs/") => {
                let body = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(0) + 4;
                stream.write_all(&answer[..(body + count).min(answer.len())])?;
            }
            _ => stream.write_all(&answer)?,
        }
        stream.shutdown(Shutdown::Write)
    }
}
