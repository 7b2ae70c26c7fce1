//! Stage 2, fetch: bytes from outside into the store, by digest.
//!
//! A [`Request`] names bytes by digest and length and says where they may be had. [`Fetcher::fetch`] tries the places in
//! turn, resumes what an earlier try left in the store's `partial` folder, hashes while the bytes stream in, and publishes only
//! what has the right digest. A place that cannot be reached is not asked again in the same run.
//!
//! The other half of the network, signed metadata for `kiln update`, uses [`Fetcher::get`]. A fetcher of one container registry
//! ([`Fetcher::of_registry`]) also logs in where it is asked to, and one of Debian's archives ([`Fetcher::of_mirrors`]) has apt's proxies,
//! certificates and passwords. Places are URLs of HTTP servers or of files of this machine. Nothing that is said of one shows its secrets.

mod apt;
mod list;
mod mirrors;
mod network;
mod node;
mod proxy;
mod registry;

pub use apt::LeftOut;
pub use mirrors::{For, Mirror, Mirrors, SNAPSHOT, Wanted};
pub use node::NodeServer;
pub use registry::Login;

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use fs_err as fs;
use reqwest::blocking::{Client, ClientBuilder, Response};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, HeaderName, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, StatusCode};

use crate::digest::{Digest, Hasher};
use crate::error::{Failure, Kind, Place, WritesTo};
use crate::store::Store;
use crate::sys;
use crate::ui::{Ui, human_bytes, human_time};
use crate::url::{Url, scrub};
use network::Network;

/// No byte for so long: the place counts as stalled and the next one is asked.
const STALL: Duration = Duration::from_secs(20);
/// No connection for so long: the place counts as unreachable.
const CONNECT: Duration = Duration::from_secs(10);
/// Downloads at once. Mirrors serve one connection at tens of MB/s; a few hide the latency of many small packages.
const CONNECTIONS: usize = 6;
/// Tries per place when it breaks off in the middle.
const TRIES: u32 = 3;
/// Redirects of one question, as many as apt and reqwest follow.
const REDIRECTS: usize = 10;

/// Bytes that are wanted.
#[derive(Debug, Clone)]
pub struct Request {
    /// What people call it.
    pub name: String,
    /// Their digest.
    pub sha256: Digest,
    /// Their length.
    pub size: u64,
    /// Where they may be had, the best place first.
    pub urls: Vec<Url>,
}

/// Why a request was not served by any place; found in the error chain by who knows a remedy.
#[derive(Debug, thiserror::Error)]
#[error("{name} could not be fetched")]
pub struct NotFetched {
    /// What was wanted.
    pub name: String,
    /// Every place that could be asked said that it does not have it (any more), and at least one could be asked.
    pub gone: bool,
    /// A place sent other bytes than those that were wanted.
    pub wrong: bool,
}

/// A connection pool with memory of which hosts are down.
#[derive(Debug)]
pub struct Fetcher<'a> {
    store: &'a Store,
    ui: &'a Ui,
    network: Network,
    down: Mutex<BTreeMap<String, String>>,
    login: Option<Login>,
}

/// Why there is no answer to look at.
#[derive(Debug)]
struct NoAnswer {
    why: String,
    /// Another try may do better.
    again: bool,
}

impl NoAnswer {
    /// No try will do better.
    fn last(why: impl Into<String>) -> Self {
        NoAnswer { why: why.into(), again: false }
    }
}

/// What one place answered.
enum Answer {
    Done,
    /// It does not have it: 404 or 410.
    Gone(String),
    /// Try the next place; the text says why.
    Failed(String),
    /// It sent other bytes.
    Wrong(String),
}

impl<'a> Fetcher<'a> {
    /// A fetcher that puts things in `store`.
    pub fn new(store: &'a Store, ui: &'a Ui) -> Result<Self> {
        Ok(Self::with(store, ui, Network::new(None), None))
    }

    /// A fetcher of what Debian's archives have, with apt's settings for the way there.
    pub fn of_mirrors(store: &'a Store, ui: &'a Ui, mirrors: &Mirrors) -> Result<Self> {
        Ok(Self::with(store, ui, Network::new(Some(mirrors.apt())), None))
    }

    /// A fetcher of what a repository of a container registry has; see [`Login`].
    pub fn of_registry(store: &'a Store, ui: &'a Ui, login: Login) -> Result<Self> {
        Ok(Self::with(store, ui, Network::new(None), Some(login)))
    }

    fn with(store: &'a Store, ui: &'a Ui, network: Network, login: Option<Login>) -> Self {
        Fetcher { store, ui, network, down: Mutex::default(), login }
    }

    /// What of the way to a place is not as usual: its proxy and who says so, certificates, that there is a password. For people.
    pub fn way(&self, url: &Url) -> Vec<String> {
        if url.file().is_some() { Vec::new() } else { self.network.describe(url) }
    }

    /// URL of the repository that this is a fetcher of.
    pub fn base(&self) -> Option<&str> {
        self.login.as_ref().map(Login::base)
    }

    /// Brings everything in `requests` that the store does not have yet, several at once. All are tried even if one fails;
    /// the first failure in the order of `requests` is the error.
    pub fn fetch(&self, requests: &[Request]) -> Result<()> {
        let missing: Vec<&Request> =
            requests.iter().filter(|r| self.store.object(r.sha256, r.size).is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let started = std::time::Instant::now();
        let total: u64 = missing.iter().map(|r| r.size).sum();
        let bar = self.ui.bytes_bar("Fetching", total);
        let next = AtomicUsize::new(0);
        let failures = Mutex::new(BTreeMap::new());
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS.min(missing.len()) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(request) = missing.get(index) else { break };
                        bar.message(request.name.clone());
                        if let Err(error) = self.one(request, &|n| bar.inc(n)) {
                            failures.lock().expect("no holder panics").insert(index, error);
                        }
                    }
                });
            }
        });
        drop(bar);
        let failures = failures.into_inner().expect("no holder panics");
        let failed = failures.len();
        if let Some((_, error)) = failures.into_iter().next() {
            sys::check_interrupt()?;
            return Err(if failed > 1 {
                error.context(format!("{failed} of {} downloads failed", missing.len()))
            } else {
                error
            });
        }
        let (size, time) = (human_bytes(total), human_time(started.elapsed()));
        self.ui.status("Fetched", format!("{} files, {size} in {time}", missing.len()));
        Ok(())
    }

    /// Brings bytes whose length nobody wrote down, at most `limit`: the digest settles whether what a place says of it is true.
    pub fn fetch_unsized(&self, name: &str, sha256: Digest, urls: &[Url], limit: u64) -> Result<()> {
        let mut answers = Vec::new();
        let mut gone = true;
        for (i, url) in urls.iter().enumerate() {
            sys::check_interrupt()?;
            match self.length(url) {
                Ok(Some(size)) if size <= limit => {
                    let urls = urls[i..].to_vec();
                    return self.fetch(&[Request { name: name.to_owned(), sha256, size, urls }]);
                }
                Ok(Some(size)) => {
                    gone = false;
                    answers
                        .push(format!("{url}: it has {size} bytes, more than the {limit} that are allowed"));
                }
                Ok(None) => answers.push(format!("{url}: it is not there")),
                Err(why) => {
                    gone = false;
                    answers.push(format!("{url}: {why}"));
                }
            }
        }
        let error = NotFetched { name: name.to_owned(), gone, wrong: false };
        Err(Failure::new(Kind::Fetch, answers.join("\n             ")).because(error).into())
    }

    /// Bytes at `url`; `None` if nothing is there.
    fn length(&self, url: &Url) -> Result<Option<u64>, String> {
        if let Some(path) = url.file() {
            return Ok(local(&path).map_err(|error| error.to_string())?.map(|(_, size)| size));
        }
        let response = self.send(&Method::HEAD, url, &[], None).map_err(|no| no.why)?;
        match response.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
            status if !status.is_success() => return Err(self.refusal(status, url)),
            _ => {}
        }
        let length =
            response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        length.map(Some).ok_or_else(|| "it does not say how long it is".to_owned())
    }

    fn one(&self, request: &Request, progress: &dyn Fn(u64)) -> Result<()> {
        let _lock = self.store.object_lock(request.sha256)?;
        if self.store.object(request.sha256, request.size).is_some() {
            progress(request.size);
            return Ok(());
        }
        let mut answers = Vec::new();
        let (mut gone, mut failed, mut wrong) = (false, false, false);
        for url in &request.urls {
            sys::check_interrupt()?;
            if let Some(why) = self.down.lock().expect("no holder panics").get(&url.site()) {
                answers.push(format!("{url}: {why}"));
                continue;
            }
            let mut tries = 0;
            loop {
                tries += 1;
                let (why, lies) =
                    match self.from(request, url, progress).writes_to(Place::Store, self.store.root())? {
                        Answer::Done => return Ok(()),
                        Answer::Gone(why) => {
                            gone = true;
                            answers.push(format!("{url}: {why}"));
                            break;
                        }
                        Answer::Failed(why) => (why, false),
                        Answer::Wrong(why) => (why, true),
                    };
                sys::check_interrupt()?;
                tracing::debug!(%url, why, tries, "download failed");
                let down = self.down.lock().expect("no holder panics").contains_key(&url.site());
                if tries < TRIES && !down {
                    continue;
                }
                // A place that is down cannot say whether it has it; one that breaks off does have it.
                failed |= !down;
                wrong |= lies;
                answers.push(format!("{url}: {why}"));
                break;
            }
        }
        if request.urls.is_empty() {
            answers.push("no place to fetch it from is known".to_owned());
        }
        let error = NotFetched { name: request.name.clone(), gone: gone && !failed, wrong };
        Err(Failure::new(Kind::Fetch, answers.join("\n             ")).because(error).into())
    }

    /// One try at one place. Only trouble with the store is an `Err`.
    fn from(&self, request: &Request, url: &Url, progress: &dyn Fn(u64)) -> Result<Answer> {
        let path = self.store.partial_path(request.sha256);
        let mut file = fs::OpenOptions::new().create(true).read(true).append(true).open(&path)?;
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 128 * 1024];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        if hasher.len() >= request.size
            && (hasher.len() > request.size || hasher.clone().finish() != request.sha256)
        {
            restart(&mut file, &mut hasher)?;
        }
        if hasher.len() < request.size {
            let mut body: Box<dyn Read> = if let Some(path) = url.file() {
                match local(&path) {
                    Ok(Some((mut found, size))) => {
                        if size < hasher.len() {
                            restart(&mut file, &mut hasher)?;
                        }
                        found.seek(io::SeekFrom::Start(hasher.len()))?;
                        Box::new(found)
                    }
                    Ok(None) => return Ok(Answer::Gone("it is not there".to_owned())),
                    Err(why) => return Ok(Answer::Failed(why.to_string())),
                }
            } else {
                let range = (!hasher.is_empty()).then(|| (RANGE, format!("bytes={}-", hasher.len())));
                let response = match self.ask(url, range.as_slice()) {
                    Ok(response) => response,
                    Err(NoAnswer { why, .. }) => return Ok(Answer::Failed(why)),
                };
                match response.status() {
                    StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(hasher.len()) => {}
                    StatusCode::OK => restart(&mut file, &mut hasher)?,
                    StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT => {
                        restart(&mut file, &mut hasher)?;
                        return Ok(Answer::Failed("it could not resume the download".to_owned()));
                    }
                    status @ (StatusCode::NOT_FOUND | StatusCode::GONE) => {
                        return Ok(Answer::Gone(format!("{status}")));
                    }
                    status => return Ok(Answer::Failed(self.refusal(status, url))),
                }
                Box::new(response)
            };
            let mut longer = false;
            while hasher.len() < request.size {
                sys::check_interrupt()?;
                match body.read(&mut buffer) {
                    Ok(0) => {
                        let (got, want) = (hasher.len(), request.size);
                        return Ok(Answer::Failed(format!("it broke off after {got} of {want} bytes")));
                    }
                    Ok(n) => {
                        let room = usize::try_from(request.size - hasher.len()).unwrap_or(usize::MAX);
                        longer = n > room;
                        let n = n.min(room);
                        file.write_all(&buffer[..n])?;
                        hasher.update(&buffer[..n]);
                        progress(n as u64);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        let inner = error.get_ref().and_then(|e| e.downcast_ref::<reqwest::Error>());
                        if error.kind() == io::ErrorKind::TimedOut
                            || inner.is_some_and(reqwest::Error::is_timeout)
                        {
                            let why = format!("no byte came for {} s", STALL.as_secs());
                            self.down.lock().expect("no holder panics").insert(url.site(), why.clone());
                            return Ok(Answer::Failed(why));
                        }
                        return Ok(Answer::Failed(scrub(&format!("reading stopped: {error}"))));
                    }
                }
            }
            // One byte more than is wanted is another file, whatever its beginning hashes to.
            if longer || matches!(body.read(&mut buffer[..1]), Ok(n) if n > 0) {
                restart(&mut file, &mut hasher)?;
                return Ok(Answer::Wrong(format!(
                    "it sends more than the {} bytes that are wanted",
                    request.size
                )));
            }
        }
        let found = hasher.clone().finish();
        if found != request.sha256 {
            restart(&mut file, &mut hasher)?;
            let (want, got) = (request.sha256.short(), found.short());
            return Ok(Answer::Wrong(format!("wrong digest: {want}… is wanted, these bytes have {got}…")));
        }
        drop(file);
        self.store.publish_object(request.sha256, &path)?;
        Ok(Answer::Done)
    }

    /// Asks a place, and logs in if it wants that and this is a fetcher of a registry. A place where nobody is, is noted as down.
    fn ask(&self, url: &Url, fields: &[(HeaderName, String)]) -> Result<Response, NoAnswer> {
        let Some(login) = &self.login else { return self.send(&Method::GET, url, fields, None) };
        let response = self.send(&Method::GET, url, fields, login.header())?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let client = |url: &Url| self.network.client(url);
        let header = login.answer(&client, &response).map_err(NoAnswer::last)?;
        let response = self.send(&Method::GET, url, fields, Some(header))?;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(NoAnswer::last(login.refused())),
            _ => Ok(response),
        }
    }

    /// Asks once, and again where the answer sends to. `header` is for the place itself only; a password of a URL or of apt's auth.conf
    /// is for the place that it is about.
    fn send(
        &self,
        method: &Method,
        url: &Url,
        fields: &[(HeaderName, String)],
        header: Option<HeaderValue>,
    ) -> Result<Response, NoAnswer> {
        let mut at = url.clone();
        for hop in 0..=REDIRECTS {
            let say = |why: String| if hop == 0 { why } else { format!("it redirects to {at}: {why}") };
            let client = self.network.client(&at).map_err(|why| NoAnswer::last(say(why)))?;
            let target = reqwest::Url::parse(at.exposed())
                .map_err(|error| NoAnswer::last(say(format!("it is no URL: {error}"))))?;
            let named = !target.username().is_empty() || target.password().is_some();
            let mut query = client.request(method.clone(), target.clone());
            for (name, value) in fields {
                query = query.header(name, value);
            }
            if let Some(header) = header.as_ref().filter(|_| at.site() == url.site()) {
                query = query.header(AUTHORIZATION, header);
            } else if let (false, apt::Answer::Login(login)) = (named, self.network.login(&at)) {
                query = query.basic_auth(&login.user, Some(&login.password));
            }
            let proxy = self.network.proxy(&at);
            let response = query.send().map_err(|error| {
                let down = error.is_connect() || error.is_timeout();
                let mut why = scrub(&reason(&error));
                if let Some(proxy) = &proxy {
                    why = format!("{why} ({proxy} is between)");
                }
                if down {
                    self.down.lock().expect("no holder panics").insert(url.site(), say(why.clone()));
                }
                NoAnswer { why: say(why), again: !down }
            })?;
            if let (StatusCode::PROXY_AUTHENTICATION_REQUIRED, Some(proxy)) = (response.status(), &proxy) {
                let why = say(format!("{proxy} wants a password"));
                self.down.lock().expect("no holder panics").insert(url.site(), why.clone());
                return Err(NoAnswer::last(why));
            }
            // 303 is for forms, and 304 and others send nowhere.
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let to = response.headers().get(LOCATION).and_then(|to| target.join(to.to_str().ok()?).ok());
            let to = to.ok_or_else(|| NoAnswer::last(say("it redirects to nowhere".to_owned())))?;
            let to = Url::new(to);
            let plain = to.scheme() != "https";
            let refused = match &self.login {
                Some(login) => login.must_not_follow(&to),
                None => (plain && target.scheme() == "https") || !matches!(to.scheme(), "http" | "https"),
            };
            if refused {
                return Err(NoAnswer::last(say(format!("it redirects to a place without TLS, {to}"))));
            }
            at = to;
        }
        Err(NoAnswer::last("it redirects too often"))
    }

    /// Why a place did not do what it was asked for, by its status.
    fn refusal(&self, status: StatusCode, url: &Url) -> String {
        let mut why = status.to_string();
        if let Some(proxy) = self.network.proxy(url).filter(|_| status.is_server_error()) {
            why = format!("{why} ({proxy} is between)");
        }
        if let (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, apt::Answer::NotEncrypted(at)) =
            (status, self.network.login(url))
        {
            why = format!("{why}; {}", network::not_encrypted(at, url));
        }
        why
    }

    /// A small text by URL, for signed metadata: nothing is trusted because of where it came from. At most `limit` bytes.
    pub fn get(&self, url: impl Into<Url>, limit: u64) -> Result<Vec<u8>> {
        let url = url.into();
        let found = self.find(&url, limit)?;
        found.ok_or_else(|| {
            Failure::new(Kind::Fetch, format!("{url}: it is not there (404 Not Found)")).into()
        })
    }

    /// As [`Fetcher::get`]; `None` if the place says that it does not have it.
    pub fn find(&self, url: &Url, limit: u64) -> Result<Option<Vec<u8>>> {
        self.read(url, &[], limit)
            .map_err(|no| Failure::new(Kind::Fetch, format!("{url}: {}", no.why)).into())
    }

    /// As [`Fetcher::get`], asking for one of these media types, and again if the answer breaks off.
    pub fn get_as(&self, url: impl Into<Url>, types: &[&str], limit: u64) -> Result<Vec<u8>> {
        let url = url.into();
        let accept = [(ACCEPT, types.join(", "))];
        let failed = |why: &str| Err(Failure::new(Kind::Fetch, format!("{url}: {why}")).into());
        let mut tries = 1;
        loop {
            match self.read(&url, &accept, limit) {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => return failed("404 Not Found"),
                Err(no) if no.again && tries < TRIES => tries += 1,
                Err(no) => return failed(&no.why),
            }
            sys::check_interrupt()?;
        }
    }

    fn read(
        &self,
        url: &Url,
        fields: &[(HeaderName, String)],
        limit: u64,
    ) -> Result<Option<Vec<u8>>, NoAnswer> {
        let fail = |why: String, again| Err(NoAnswer { why, again });
        if let Some(why) = self.down.lock().expect("no holder panics").get(&url.site()) {
            return fail(why.clone(), false);
        }
        let body: Box<dyn Read> = if let Some(path) = url.file() {
            match local(&path) {
                Ok(Some((file, _))) => Box::new(file),
                Ok(None) => return Ok(None),
                Err(why) => return fail(why.to_string(), false),
            }
        } else {
            let response = self.ask(url, fields)?;
            match response.status() {
                StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
                status if !status.is_success() => return fail(self.refusal(status, url), false),
                _ => Box::new(response),
            }
        };
        let mut bytes = Vec::new();
        if let Err(error) = body.take(limit + 1).read_to_end(&mut bytes) {
            return fail(scrub(&format!("reading stopped: {error}")), true);
        }
        if bytes.len() as u64 > limit {
            return fail(format!("it sends more than {limit} bytes"), false);
        }
        Ok(Some(bytes))
    }
}

/// A file of this machine and its size; `None` if it is not there.
fn local(path: &str) -> io::Result<Option<(fs::File, u64)>> {
    match fs::metadata(path) {
        // Anything else might never end.
        Ok(found) if !found.is_file() => Err(io::Error::other("it is not a regular file")),
        Ok(found) => Ok(Some((fs::File::open(path)?, found.len()))),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn client() -> ClientBuilder {
    // A second call finds the provider installed already, which is as good.
    rustls::crypto::ring::default_provider().install_default().ok();
    Client::builder()
        .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .timeout(STALL)
}

fn restart(file: &mut fs::File, hasher: &mut Hasher) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    *hasher = Hasher::new();
    Ok(())
}

/// The innermost cause: reqwest's own words repeat the URL.
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Where a 206 answer starts, from `Content-Range: bytes 5-9/10`.
fn range_start(response: &Response) -> Option<u64> {
    let value = response.headers().get("content-range")?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
