//! From a request to its answer: the table of paths.

use std::net::Ipv4Addr;
use std::ops::Range;

use serde::Deserialize;

use super::request::{Head, Nothing, range};
use crate::deploy::pxe::board::{Board, Tone, Withheld};
use crate::deploy::pxe::content::Content;
use crate::deploy::pxe::net;
use crate::deploy::pxe::site::{Mode, Node, Site};
use crate::error::report;
use crate::lock::time;
use crate::scenario::spec::Mac;
use crate::ui;

/// Characters of what a node says that are shown.
const DETAIL: usize = 300;

/// What is sent behind the headers.
#[derive(Debug)]
pub enum Body<'a> {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A stretch of a content.
    Content(&'a Content, Range<u64>),
}

/// An answer.
#[derive(Debug)]
pub struct Answer<'a> {
    /// Status code.
    pub status: u16,
    /// Header lines but those that every answer has.
    pub headers: Vec<(&'static str, String)>,
    /// What follows; for HEAD its length is told and it is left out.
    pub body: Body<'a>,
    /// The node that it is for: the bytes are counted there.
    pub node: Option<&'a Node>,
}

impl<'a> Answer<'a> {
    fn text(status: u16, text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.push('\n');
        Self::bytes(status, "text/plain; charset=utf-8", text.into_bytes())
    }

    fn bytes(status: u16, kind: &str, bytes: Vec<u8>) -> Self {
        let headers = vec![("Content-Type", kind.to_owned()), ("Cache-Control", "no-store".to_owned())];
        Answer { status, headers, body: Body::Bytes(bytes), node: None }
    }

    /// An error that is told before anything was understood.
    pub fn refusal(status: u16, text: &str) -> Self {
        Self::text(status, text)
    }

    fn content(content: &'a Content, head: &Head) -> Self {
        let tag = format!("\"{}\"", content.digest);
        let mut headers = vec![
            ("Content-Type", "application/octet-stream".to_owned()),
            ("Accept-Ranges", "bytes".to_owned()),
            ("ETag", tag.clone()),
        ];
        // What was begun of another image is not gone on with.
        let same = head.if_range.as_ref().is_none_or(|wanted| *wanted == tag);
        let (status, body) = match range(head.range.as_deref().filter(|_| same), content.len) {
            Ok(None) => (200, Body::Content(content, 0..content.len)),
            Ok(Some(range)) => {
                headers.push((
                    "Content-Range",
                    format!("bytes {}-{}/{}", range.start, range.end - 1, content.len),
                ));
                (206, Body::Content(content, range))
            }
            Err(Nothing) => {
                headers.push(("Content-Range", format!("bytes */{}", content.len)));
                (416, Body::Bytes(Vec::new()))
            }
        };
        Answer { status, headers, body, node: None }
    }

    fn of(mut self, node: &'a Node) -> Self {
        self.node = Some(node);
        self
    }
}

/// What a node reports.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    event: Stage,
    #[serde(default)]
    detail: Option<String>,
    #[serde(default)]
    receipt: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stage {
    Booted,
    Installing,
    Installed,
    Joined,
    Failed,
}

/// The answer to a request that came from `peer`.
pub fn answer<'a>(site: &'a Site, board: &Board, peer: Ipv4Addr, head: &Head, body: &[u8]) -> Answer<'a> {
    let parts: Vec<&str> = head.path.split('/').skip(1).collect();
    let reads = matches!(head.method.as_str(), "GET" | "HEAD");
    let nothing = || Answer::text(404, "there is nothing here");
    let wrong_method = |allowed: &str| {
        let mut answer = Answer::text(405, format!("only {allowed} is served here"));
        answer.headers.push(("Allow", allowed.to_owned()));
        answer
    };
    let (mac, name) = match parts[..] {
        ["ipxe", name] if reads => {
            return site.programs.get(name).map_or_else(nothing, |content| Answer::content(content, head));
        }
        ["kiln"] if reads => {
            return site.kiln.as_ref().map_or_else(nothing, |(_, content)| Answer::content(content, head));
        }
        ["boot", mac, name] => (mac, name),
        ["v1", "node", mac, name] => (mac, name),
        _ if !reads => return wrong_method("GET, HEAD"),
        _ => return nothing(),
    };
    let boots = parts[0] == "boot";
    let known = mac.parse::<Mac>().ok().and_then(|mac| Some((mac, site.nodes.get(&mac)?)));
    let Some((mac, node)) = known else {
        return Answer::text(404, "no node of cluster.toml has this hardware address");
    };
    match (boots, name, head.method.as_str()) {
        (false, "event", "POST") => event(board, peer, mac, node, body),
        (false, "event", _) => wrong_method("POST"),
        // HEAD would spend the one release, or tell whether it was spent.
        (false, "credentials", "GET") => credentials(site, board, peer, mac, node),
        (false, "credentials", _) => wrong_method("GET"),
        _ if !reads => wrong_method("GET, HEAD"),
        _ => read(site, board, (mac, node), boots, name, head).of(node),
    }
}

fn read<'a>(
    site: &'a Site,
    board: &Board,
    (mac, node): (Mac, &'a Node),
    boots: bool,
    name: &str,
    head: &Head,
) -> Answer<'a> {
    let seen = board.seen(mac);
    match (boots, name) {
        (true, "script.ipxe") => {
            return Answer::bytes(
                200,
                "text/plain; charset=utf-8",
                site.script(mac, node, &seen).into_bytes(),
            );
        }
        (false, "plan") => {
            let mut bytes = site.plan(mac, node, &seen).to_string().into_bytes();
            bytes.push(b'\n');
            return Answer::bytes(200, "application/json", bytes);
        }
        (false, "plan.env") => {
            return Answer::bytes(
                200,
                "text/plain; charset=utf-8",
                site.plan_env(mac, node, &seen).into_bytes(),
            );
        }
        _ => {}
    }
    let content = site.image(node, &seen).and_then(|image| match (boots, name) {
        (true, "uki.efi") => Some(&image.uki),
        (true, "linux") => Some(&image.linux),
        (true, part) => image.initrds.iter().find(|(name, _)| *name == part).map(|(_, content)| content),
        (false, "image.raw") => Some(&image.raw),
        (false, "image.raw.zst") => image.zst.as_ref(),
        (false, "root.img") => Some(&image.root),
        (false, "verity.img") => Some(&image.verity),
        _ => None,
    });
    let Some(content) = content else { return Answer::text(404, "there is nothing here") };
    if site.mode(node, &seen) == Mode::Local {
        return Answer::text(
            409,
            format!("{} boots from its disk: `kiln pxe reinstall {}` changes that", node.name, node.name),
        );
    }
    Answer::content(content, head)
}

/// Whether a request in the name of `mac` comes from where that card is. What the neighbour table says is decisive; for machines behind
/// a router the addresses are that DHCP told, and where nothing is known nothing can be held against them.
fn is_from(board: &Board, peer: Ipv4Addr, mac: Mac, node: &Node) -> bool {
    if let Some(card) = net::neighbour(peer) {
        return card == mac;
    }
    let known = board.seen(mac).addresses;
    known.is_empty() || node.address == Some(peer) || known.contains(&peer)
}

fn credentials<'a>(site: &Site, board: &Board, peer: Ipv4Addr, mac: Mac, node: &'a Node) -> Answer<'a> {
    let refuse = |board: &Board, why: &str, remedy: String| {
        let text = format!("the credentials of {} were not given to {peer}: {why}", node.name);
        let line = if remedy.is_empty() { text } else { format!("{text}; {remedy}") };
        board.lock().note("withheld", Tone::Bad, Some(&node.name), Some(mac), line);
        let remedy = if remedy.is_empty() { remedy } else { format!(" ({remedy})") };
        Answer::text(403, format!("{why}{remedy}"))
    };
    if !is_from(board, peer, mac, node) {
        return refuse(board, "the request does not come from that node's card", String::new());
    }
    if site.mode(node, &board.seen(mac)) == Mode::Local {
        return refuse(board, "it boots from its disk", format!("kiln pxe reinstall {}", node.name));
    }
    match board.release(mac) {
        Ok(Ok(())) => {
            let text = format!("the credentials of {} went to {peer}", node.name);
            board.lock().note("released", Tone::Good, Some(&node.name), Some(mac), text);
            Answer::bytes(200, "application/x-tar", node.credentials.expose().to_vec()).of(node)
        }
        Ok(Err(Withheld::Closed)) => {
            refuse(board, "no window is open", format!("kiln pxe open, or kiln pxe release {}", node.name))
        }
        Ok(Err(Withheld::Had)) => {
            refuse(board, "they were released already", format!("kiln pxe release {}", node.name))
        }
        Err(error) => {
            let why = report(&error).chain.join(": ");
            refuse(board, &format!("the release could not be recorded: {why}"), String::new())
        }
    }
}

fn event<'a>(board: &Board, peer: Ipv4Addr, mac: Mac, node: &'a Node, body: &[u8]) -> Answer<'a> {
    let event: Event = match serde_json::from_slice(body) {
        Ok(event) => event,
        Err(error) => return Answer::text(400, format!("this is no event: {error}")),
    };
    if !is_from(board, peer, mac, node) {
        let text = format!(
            "an event in the name of {} came from {peer}, which is not its card: it was ignored",
            node.name
        );
        board.lock().note("ignored", Tone::Bad, Some(&node.name), Some(mac), text);
        return Answer::text(403, "the request does not come from that node's card");
    }
    if event.event == Stage::Installed && node.mode != Mode::Install {
        return Answer::text(409, format!("{} was not to be installed", node.name));
    }
    let mut said: String =
        ui::plain(event.detail.as_deref().unwrap_or_default()).chars().take(DETAIL).collect();
    said = said.replace('\n', " ");
    let mut kept = String::new();
    if let Some(receipt) = &event.receipt {
        match board.keep_receipt(mac, &node.name, receipt) {
            Ok(path) => kept = format!(", receipt {}", path.display()),
            Err(error) => {
                let why = report(&error).chain.join(": ");
                board.lock().note("error", Tone::Bad, Some(&node.name), Some(mac), why.clone());
                return Answer::text(507, why);
            }
        }
    }
    let now = Some(time::now());
    let mut inner = board.lock();
    let seen = inner.node(mac);
    if event.event != Stage::Failed {
        seen.failed = None;
    }
    let (word, tone) = match event.event {
        Stage::Booted => {
            seen.booted = now;
            ("booted", Tone::Good)
        }
        Stage::Installing => {
            seen.installing = now;
            ("installing", Tone::Good)
        }
        Stage::Installed => {
            seen.installed = now;
            ("installed", Tone::Good)
        }
        Stage::Joined => {
            seen.joined = now;
            ("joined", Tone::Good)
        }
        Stage::Failed => {
            seen.failed = Some(said.clone());
            ("failed", Tone::Bad)
        }
    };
    let detail = if said.is_empty() { String::new() } else { format!(": {said}") };
    inner.note(word, tone, Some(&node.name), Some(mac), format!("{}{detail}{kept}", node.name));
    drop(inner);
    // An installed node must not be installed again because the server was switched off.
    if let Err(error) = board.save() {
        let why = report(&error).chain.join(": ");
        board.lock().note("error", Tone::Bad, None, None, why.clone());
        return Answer::text(507, why);
    }
    Answer { status: 204, headers: Vec::new(), body: Body::Bytes(Vec::new()), node: None }
}

#[cfg(test)]
mod tests {
    use super::super::request::parse;
    use super::*;
    use crate::deploy::pxe::site::tests::{card, site};
    use std::time::Duration;

    const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
    const NODE: &str = "/v1/node/bc:24:11:00:00:11";

    struct Lab {
        _dir: tempfile::TempDir,
        site: Site,
        board: Board,
    }

    impl Lab {
        fn new(mode: Mode) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let board = Board::open(dir.path()).unwrap();
            Lab { _dir: dir, site: site(mode), board }
        }

        fn ask(&self, line: &str, headers: &str, body: &str) -> (u16, Vec<(&'static str, String)>, Vec<u8>) {
            let (head, _) =
                parse(format!("{line} HTTP/1.1\r\nHost: a\r\n{headers}\r\n").as_bytes()).unwrap().unwrap();
            let answer = answer(&self.site, &self.board, PEER, &head, body.as_bytes());
            let bytes = match answer.body {
                Body::Bytes(bytes) => bytes,
                Body::Content(content, range) => {
                    let mut bytes = vec![0; (range.end - range.start) as usize];
                    content.read_at(&mut bytes, range.start).unwrap();
                    bytes
                }
            };
            (answer.status, answer.headers, bytes)
        }

        fn status(&self, line: &str) -> u16 {
            self.ask(line, "", "").0
        }

        fn event(&self, body: &str) -> u16 {
            self.ask(&format!("POST {NODE}/event"), "", body).0
        }
    }

    #[test]
    fn only_paths_of_the_table_are_there() {
        let lab = Lab::new(Mode::Diskless);
        for path in [
            "/kiln",
            "/ipxe/snponly.efi",
            "/boot/bc:24:11:00:00:11/uki.efi",
            "/boot/BC:24:11:00:00:11/script.ipxe",
        ] {
            assert_eq!(lab.status(&format!("GET {path}")), 200, "{path}");
        }
        for name in ["plan", "plan.env", "image.raw", "root.img", "verity.img"] {
            assert_eq!(lab.status(&format!("GET {NODE}/{name}")), 200, "{name}");
        }
        for path in [
            "/",
            "//kiln",
            "/kiln/",
            "/../../etc/passwd",
            "/ipxe/../kiln",
            "/ipxe/%2e%2e/%2e%2e/etc/passwd",
            "/ipxe/",
            "/boot/bc:24:11:00:00:12/uki.efi",
            "/boot/bc:24:11:00:00:11/image.raw",
            "/v1/node/bc:24:11:00:00:11/uki.efi",
            "/v1/node/bc:24:11:00:00:11/image.raw.zst",
            "/v1/node/bc:24:11:00:00:11/plan/",
            "/v1/node/x/plan",
            "/v2/node",
            "/v1/node/bc:24:11:00:00:11/../../../etc/passwd",
            "/%00",
            "/state.json",
        ] {
            assert_eq!(lab.status(&format!("GET {path}")), 404, "{path}");
        }
        for line in [
            format!("POST {NODE}/plan"),
            "DELETE /kiln".to_owned(),
            format!("GET {NODE}/event"),
            format!("HEAD {NODE}/credentials"),
        ] {
            assert_eq!(lab.status(&line), 405, "{line}");
        }
    }

    #[test]
    fn parts_of_the_disk_come_by_range_and_only_of_the_same_image() {
        let lab = Lab::new(Mode::Diskless);
        let image = lab.site.images.values().next().unwrap();
        let (status, headers, bytes) = lab.ask(&format!("GET {NODE}/root.img"), "Range: bytes=10-13\r\n", "");
        // The root begins at byte 1000 of a disk that counts up.
        assert_eq!((status, &bytes[..]), (206, &[242_u8, 243, 244, 245][..]));
        assert!(headers.contains(&("Content-Range", "bytes 10-13/5000".to_owned())));
        assert!(headers.contains(&("ETag", format!("\"{}\"", image.root.digest))));
        let other = "Range: bytes=10-13\r\nIf-Range: \"other\"\r\n";
        assert_eq!(lab.ask(&format!("GET {NODE}/root.img"), other, "").0, 200);
        let same = format!("Range: bytes=10-13\r\nIf-Range: \"{}\"\r\n", image.root.digest);
        assert_eq!(lab.ask(&format!("GET {NODE}/root.img"), &same, "").0, 206);
        let (status, headers, _) = lab.ask(&format!("GET {NODE}/root.img"), "Range: bytes=5000-\r\n", "");
        assert!(status == 416 && headers.contains(&("Content-Range", "bytes */5000".to_owned())));
    }

    #[test]
    fn credentials_go_out_once_to_the_right_machine_and_into_no_line() {
        let lab = Lab::new(Mode::Install);
        let ask = || lab.ask(&format!("GET {NODE}/credentials"), "", "");
        let (status, _, text) = ask();
        assert!(status == 403 && String::from_utf8(text).unwrap().contains("kiln pxe release agent-1"));
        lab.board.lock().open_window(Some(Duration::from_secs(60)));
        assert_eq!((ask().0, ask().0), (200, 403));
        lab.board.lock().grant(card(), Duration::from_secs(60));
        lab.board.lock().node(card()).at(Ipv4Addr::new(192, 0, 2, 8));
        assert_eq!(ask().0, 403, "DHCP gave that card another address");
        lab.board.lock().node(card()).at(PEER);
        let (status, headers, bytes) = ask();
        assert_eq!((status, &bytes[..]), (200, &b"tar"[..]));
        assert!(headers.contains(&("Cache-Control", "no-store".to_owned())));
        let notes = lab.board.lock().take_notes();
        assert_eq!(notes.iter().filter(|note| note.event == "released").count(), 2);
        assert!(notes.iter().all(|note| !note.text.contains("tar")), "{notes:?}");
    }

    #[test]
    fn events_are_kept_and_an_installed_node_boots_from_its_disk() {
        let lab = Lab::new(Mode::Install);
        assert_eq!(lab.event(r#"{"event":"booted"}"#), 204);
        assert_eq!(lab.event(r#"{"event":"failed","detail":"no\ndisk \u001b[31mfits"}"#), 204);
        assert_eq!(lab.board.seen(card()).failed.as_deref(), Some("no disk fits"));
        assert_eq!(lab.event(r#"{"event":"installed","receipt":{"device":"x"}}"#), 204);
        let seen = lab.board.seen(card());
        assert!(seen.installed.is_some() && seen.failed.is_none() && seen.receipts == 1);
        let receipts: Vec<_> = fs_err::read_dir(lab.board.shown().join("receipts")).unwrap().collect();
        assert_eq!(receipts.len(), 1);
        let (_, _, plan) = lab.ask(&format!("GET {NODE}/plan.env"), "", "");
        assert_eq!(plan, b"MODE='local'\nNODE='agent-1'\n");
        assert_eq!(lab.status(&format!("GET {NODE}/image.raw")), 409);
        lab.board.lock().forget(card());
        assert_eq!(lab.status(&format!("GET {NODE}/image.raw")), 200);
        for wrong in ["", "{", "[]", r#"{"event":"exploded"}"#, r#"{"event":"booted","more":1}"#] {
            assert_eq!(lab.event(wrong), 400, "{wrong}");
        }
        assert_eq!(Lab::new(Mode::Diskless).event(r#"{"event":"installed"}"#), 409);
    }

    #[test]
    fn receipts_without_end_are_refused() {
        let lab = Lab::new(Mode::Install);
        let all: Vec<u16> = (0..101).map(|_| lab.event(r#"{"event":"failed","receipt":{}}"#)).collect();
        assert_eq!((all[99], all[100]), (204, 507));
    }
}
