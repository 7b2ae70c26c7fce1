//! The control socket: how `kiln pxe open` and its like speak to a server that runs. One JSON object in a line each way; the socket has mode
//! 0600, so only the user whose server it is can connect, and root.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::board::{Board, Tone};
use super::site::Site;
use super::table;
use crate::error::{Failure, Kind, report};

/// The socket's name in the state folder.
pub const SOCKET: &str = "control";
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a line; that of `status` grows with the cluster.
const LONGEST: u64 = 4 << 20;

/// What is asked of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Order {
    /// Release credentials to every node that had none, for so many seconds.
    Open {
        /// From now.
        seconds: u64,
    },
    /// Release no more.
    Close,
    /// Release them to one node once more.
    Release {
        /// Its name.
        node: String,
        /// From now.
        seconds: u64,
    },
    /// Say what became of every node.
    Status,
    /// Forget that a node was installed.
    Reinstall {
        /// Its name.
        node: String,
    },
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Whether it was done.
    pub ok: bool,
    /// What was done, or why not.
    pub text: String,
    /// What became of every node, if that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub board: Option<serde_json::Value>,
}

impl Reply {
    fn of(ok: bool, text: String) -> Self {
        Reply { ok, text, board: None }
    }
}

/// Makes the socket of `folder`, for `owner` if this process is to become that user.
///
/// # Errors
/// [`Kind::Input`]: another server runs there. Otherwise the socket cannot be made.
pub fn listen(folder: &Path, owner: Option<(u32, u32)>) -> Result<UnixListener> {
    let path = folder.join(SOCKET);
    if UnixStream::connect(&path).is_ok() {
        return Err(Failure::new(
            Kind::Input,
            format!("another `kiln pxe` runs with the state in {}", folder.display()),
        )
        .hint("end it first, or give this one a folder of its own: --state DIR")
        .into());
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(|error| {
        let text = format!("the control socket {} cannot be made", path.display());
        Failure::new(Kind::Store, text)
            .hint("the path of a socket has at most 107 bytes: --state DIR")
            .because(error)
    })?;
    fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    if let Some((user, group)) = owner {
        std::os::unix::fs::chown(&path, Some(user), Some(group))?;
    }
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Does what is asked on `listener` until `stop`.
pub fn serve(site: &Site, board: &Board, listener: &UnixListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = one(site, board, stream) {
                    tracing::debug!(%error, "control");
                }
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn one(site: &Site, board: &Board, mut stream: UnixStream) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = String::new();
    BufReader::new((&stream).take(LONGEST)).read_line(&mut line)?;
    let reply = match serde_json::from_str::<Order>(&line) {
        Ok(order) => obey(site, board, &order),
        Err(error) => Reply::of(false, format!("this is no order: {error}")),
    };
    let mut text = serde_json::to_vec(&reply)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    Ok(())
}

fn obey(site: &Site, board: &Board, order: &Order) -> Reply {
    let refuse = |text: String| Reply::of(false, text);
    let find = |name: &str| site.nodes.iter().find(|(_, node)| node.name == name).map(|(mac, _)| *mac);
    let unknown = |name: &str| {
        let names: Vec<&str> = site.nodes.values().map(|node| node.name.as_str()).collect();
        refuse(format!("there is no node `{name}` with a hardware address; nodes: {}", names.join(", ")))
    };
    let minutes = |seconds: u64| crate::ui::human_time(Duration::from_secs(seconds));
    let (event, node, text) = match order {
        Order::Status => {
            let (text, report) = (table::status(site, board), table::report(site, board));
            return Reply { ok: true, text, board: Some(report) };
        }
        Order::Open { seconds } => {
            board.lock().open_window(Some(Duration::from_secs(*seconds)));
            (
                "window",
                None,
                format!("credentials are released, once to each node, for {}", minutes(*seconds)),
            )
        }
        Order::Close => {
            board.lock().open_window(None);
            ("window", None, "credentials are released no more".to_owned())
        }
        Order::Release { node, seconds } => {
            let Some(mac) = find(node) else { return unknown(node) };
            board.lock().grant(mac, Duration::from_secs(*seconds));
            (
                "window",
                Some(node),
                format!("the credentials of {node} are released once more, within {}", minutes(*seconds)),
            )
        }
        Order::Reinstall { node } => {
            let Some(mac) = find(node) else { return unknown(node) };
            board.lock().forget(mac);
            if let Err(error) = board.save() {
                return refuse(report(&error).chain.join(": "));
            }
            (
                "reinstall",
                Some(node),
                format!("{node} is new: what was asked for it is done again when it boots"),
            )
        }
    };
    board.lock().note(event, Tone::Notice, node.map(String::as_str), None, text.clone());
    Reply::of(true, text)
}

/// Asks the server whose state is in `folder`. Its reply says what it did.
///
/// # Errors
/// [`Kind::Input`]: no server runs there, this user may not ask it, or it refused.
pub fn ask(folder: &Path, order: &Order) -> Result<Reply> {
    let path = folder.join(SOCKET);
    let mut stream = UnixStream::connect(&path).map_err(|error| {
        let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
        let hint = if denied {
            "ask as the user who started it, or with sudo"
        } else {
            "start it with `kiln pxe`; if its state is elsewhere, say --state DIR"
        };
        Failure::new(Kind::Input, format!("no `kiln pxe` can be asked at {}", path.display()))
            .hint(hint)
            .because(error)
    })?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut text = serde_json::to_vec(order)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST)).read_line(&mut line)?;
    let reply: Reply = serde_json::from_str(&line)?;
    if reply.ok { Ok(reply) } else { Err(Failure::new(Kind::Input, reply.text).into()) }
}

#[cfg(test)]
mod tests {
    use super::super::site::Mode;
    use super::super::site::tests::{card, site};
    use super::*;

    #[test]
    fn orders_reach_the_server_and_only_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let board = Board::open(dir.path()).unwrap();
        let site = site(Mode::Install);
        let listener = listen(dir.path(), None).unwrap();
        let mode = fs::metadata(dir.path().join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(listen(dir.path(), None).unwrap_err().to_string().contains("another `kiln pxe` runs"));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| serve(&site, &board, &listener, &stop));
            let ask = |order: &Order| ask(dir.path(), order);
            assert!(ask(&Order::Open { seconds: 600 }).unwrap().text.contains("10 m 00 s"));
            assert!(board.lock().window().is_some());
            assert!(ask(&Order::Close).is_ok() && board.lock().window().is_none());
            let node = || "agent-1".to_owned();
            ask(&Order::Release { node: node(), seconds: 60 }).unwrap();
            assert_eq!(board.release(card()).unwrap(), Ok(()));
            board.lock().node(card()).installed = Some(1);
            ask(&Order::Reinstall { node: node() }).unwrap();
            assert_eq!(board.seen(card()).installed, None);
            let reply = ask(&Order::Status).unwrap();
            assert!(reply.text.starts_with("agent-1  bc:24:11:00:00:11  -"), "{}", reply.text);
            let board = reply.board.unwrap();
            assert_eq!(
                (&board["nodes"][0]["node"], &board["nodes"][0]["stage"]),
                (&"agent-1".into(), &"waiting".into())
            );
            let error = ask(&Order::Reinstall { node: "nobody".to_owned() }).unwrap_err().to_string();
            assert!(error.contains("nobody") && error.contains("agent-1"), "{error}");
            // Noise is answered and does no harm.
            let mut stream = UnixStream::connect(dir.path().join(SOCKET)).unwrap();
            stream.write_all(b"{\"explode\":1}\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert!(text.contains("no order"), "{text}");
            stop.store(true, Ordering::Relaxed);
        });
        drop(listener);
        assert!(listen(dir.path(), None).is_ok(), "a socket that was left behind is no server");
    }
}
