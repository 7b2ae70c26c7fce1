//! A node's questions to the `kiln pxe` that booted it: plain HTTP on its own network.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context as _, Result};
use reqwest::StatusCode;
use reqwest::blocking::{Client, Response};

use crate::error::{Failure, Kind};

/// Tries of a question, with a pause between them: a link may be down for a moment.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_secs(3);

/// The server, as one node sees it.
#[derive(Debug)]
pub struct NodeServer {
    client: Client,
    base: String,
}

impl NodeServer {
    /// The server at `url`, `http://ADDRESS:PORT/`, for the node with the card `mac`.
    ///
    /// # Errors
    /// [`Kind::Input`]: that is no such URL.
    pub fn new(url: &str, mac: &str) -> Result<Self> {
        let Some(base) = url.strip_suffix('/').filter(|url| url.starts_with("http://")) else {
            return Err(Failure::new(
                Kind::Input,
                format!("`{url}` is no server: write http://ADDRESS:PORT/"),
            )
            .into());
        };
        let client = super::client().build().context("setting up the HTTP client")?;
        Ok(NodeServer { client, base: format!("{base}/v1/node/{mac}") })
    }

    /// Where it is asked for `what`.
    pub fn url(&self, what: &str) -> String {
        format!("{}/{what}", self.base)
    }

    fn send(&self, what: &str, body: Option<&[u8]>) -> Result<Response, Failure> {
        let url = self.url(what);
        let mut last = None;
        for round in 0..TRIES {
            if round > 0 {
                std::thread::sleep(PAUSE);
            }
            let request = match body {
                None => self.client.get(&url),
                Some(body) => {
                    self.client.post(&url).header("content-type", "application/json").body(body.to_vec())
                }
            };
            match request.send() {
                Ok(response) if !response.status().is_server_error() => return Ok(response),
                Ok(response) => last = Some(anyhow::anyhow!("it answered {}", response.status())),
                Err(error) => last = Some(error.without_url().into()),
            }
        }
        let last = last.unwrap_or_else(|| anyhow::anyhow!("it was not asked"));
        Err(Failure::new(Kind::Fetch, format!("{url} does not answer")).because(last))
    }

    /// What it answers to `what`, at most `limit` bytes.
    ///
    /// # Errors
    /// [`Kind::Fetch`]: it does not answer, or refuses.
    pub fn get(&self, what: &str, limit: u64) -> Result<Vec<u8>> {
        self.ask(what, limit)?
            .ok_or_else(|| Failure::new(Kind::Fetch, format!("{}/{what} is refused", self.base)).into())
    }

    /// The same; `None` if it refuses for now (403).
    ///
    /// # Errors
    /// As [`NodeServer::get`].
    pub fn ask(&self, what: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let response = self.send(what, None)?;
        if response.status() == StatusCode::FORBIDDEN {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        let response = self.judged(what, response)?;
        response
            .take(limit)
            .read_to_end(&mut bytes)
            .with_context(|| format!("reading {}/{what}", self.base))?;
        Ok(Some(bytes))
    }

    fn judged(&self, what: &str, response: Response) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let mut words = String::new();
        let why = response.take(1024).read_to_string(&mut words).map_or("", |_| words.trim());
        Err(Failure::new(Kind::Fetch, format!("{}/{what}: {status}: {}", self.base, crate::ui::plain(why))))
    }

    /// What it answers to `what`, as it comes.
    ///
    /// # Errors
    /// As [`NodeServer::get`].
    pub fn stream(&self, what: &str) -> Result<impl Read + Send + use<>> {
        Ok(self.judged(what, self.send(what, None)?)?)
    }

    /// Tells it something.
    ///
    /// # Errors
    /// As [`NodeServer::get`].
    pub fn post(&self, what: &str, body: &[u8]) -> Result<()> {
        self.judged(what, self.send(what, Some(body))?)?;
        Ok(())
    }
}
