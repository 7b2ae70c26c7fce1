//! An HTTP server on 127.0.0.1 that misbehaves as it is told.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How a path is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As it should be, ranges too.
    Good,
    /// 404.
    Missing,
    /// 500.
    Broken,
    /// So many bytes of the answer, then the connection is closed; the next request of the path is answered well.
    CutOnce(usize),
    /// So many bytes, then silence.
    Stall(usize),
    /// One byte is another.
    Flipped,
    /// The last byte is not there, and the length says so.
    Shorter,
    /// One byte more, and the length says so.
    Longer,
}

/// What was asked for: the path, and the Range header if there was one.
pub type Asked = (String, Option<String>);

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    manners: Vec<(String, Manner)>,
    log: Vec<Asked>,
    heads: Vec<String>,
}

/// The server; its threads end with the test's process.
#[derive(Debug, Clone)]
pub struct Mirror {
    state: Arc<Mutex<State>>,
    /// Base URL of the archive `debian`.
    pub base: String,
}

impl Mirror {
    pub fn serve(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}/debian", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { files: files.clone(), ..State::default() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || while answer(&stream, &state).unwrap_or(false) {});
            }
        });
        Mirror { state, base }
    }

    /// Other files from now on.
    pub fn replace(&self, files: &BTreeMap<String, Vec<u8>>) {
        self.state.lock().unwrap().files.clone_from(files);
    }

    /// Paths that contain `part` are answered in this manner from now on.
    pub fn answer(&self, part: &str, manner: Manner) -> &Self {
        self.state.lock().unwrap().manners.insert(0, (part.to_owned(), manner));
        self
    }

    /// The header fields of all requests whose path contains `part`, a text a request.
    pub fn heads(&self, part: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let asked = state.log.iter().zip(&state.heads);
        asked.filter(|((path, _), _)| path.contains(part)).map(|(_, head)| head.clone()).collect()
    }

    /// `host:port`, with the scheme in front: what a proxy is named by.
    pub fn origin(&self) -> String {
        self.base.trim_end_matches("/debian").to_owned()
    }

    /// What was asked for whose path contains `part`, in order.
    pub fn asked(&self, part: &str) -> Vec<Asked> {
        self.state.lock().unwrap().log.iter().filter(|(path, _)| path.contains(part)).cloned().collect()
    }
}

/// Serves one request; whether another may follow on the connection.
fn answer(mut stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<bool> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(false);
    }
    let head_only = line.starts_with("HEAD ");
    let target = line.split(' ').nth(1).unwrap_or_default();
    // A proxy is asked with the whole URL.
    let path = target
        .strip_prefix("http://")
        .and_then(|rest| rest.find('/').map(|at| &rest[at..]))
        .unwrap_or(target);
    let path = path.trim_start_matches("/debian/").to_owned();
    let (mut range, mut head) = (None, String::new());
    loop {
        let mut field = String::new();
        if reader.read_line(&mut field)? == 0 || field.trim().is_empty() {
            break;
        }
        head.push_str(&field);
        if let Some((name, value)) = field.split_once(':')
            && name.eq_ignore_ascii_case("range")
        {
            range = Some(value.trim().to_owned());
        }
    }
    let (file, manner) = {
        let mut state = state.lock().unwrap();
        state.log.push((path.clone(), range.clone()));
        state.heads.push(head);
        let at = state.manners.iter().position(|(part, _)| path.contains(part.as_str()));
        let manner = at.map_or(Manner::Good, |at| state.manners[at].1);
        if let (Some(at), Manner::CutOnce(_)) = (at, manner) {
            state.manners.remove(at);
        }
        (state.files.get(&path).cloned(), manner)
    };
    let plain = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
    let mut bytes = match (manner, file) {
        (Manner::Broken, _) => {
            return stream.write_all(plain("500 Internal Server Error").as_bytes()).map(|()| true);
        }
        (Manner::Missing, _) | (_, None) => {
            return stream.write_all(plain("404 Not Found").as_bytes()).map(|()| true);
        }
        (_, Some(bytes)) => bytes,
    };
    match manner {
        Manner::Flipped => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        Manner::Shorter => {
            bytes.pop();
        }
        Manner::Longer => bytes.push(0),
        _ => {}
    }
    let total = bytes.len();
    let start = range
        .as_deref()
        .and_then(|r| r.strip_prefix("bytes="))
        .and_then(|r| r.split('-').next())
        .and_then(|s| s.parse::<usize>().ok())
        .filter(|start| *start < total);
    let head = match start {
        Some(start) => format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{total}\r\nContent-Length: {}\r\n\r\n",
            total - 1,
            total - start
        ),
        None => format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n"),
    };
    stream.write_all(head.as_bytes())?;
    if head_only {
        return Ok(true);
    }
    let body = &bytes[start.unwrap_or(0)..];
    match manner {
        Manner::CutOnce(count) => {
            stream.write_all(&body[..count.min(body.len())])?;
            stream.flush()?;
            stream.shutdown(std::net::Shutdown::Write)?;
            Ok(false)
        }
        Manner::Stall(count) => {
            stream.write_all(&body[..count.min(body.len())])?;
            stream.flush()?;
            std::thread::sleep(Duration::from_secs(120));
            Ok(false)
        }
        _ => {
            stream.write_all(body)?;
            Ok(true)
        }
    }
}
