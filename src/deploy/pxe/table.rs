//! What a person sees: lines of what happened, and on a terminal a row for each node below them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;

use super::board::{Board, Note, Seen, Stranger, Tone};
use super::site::{Firmware, Mode, Site};
use crate::lock::time;
use crate::scenario::spec::Mac;
use crate::ui::{Bar, Ui, human_bytes, human_time, json_text};

/// The event of a machine that is not in cluster.toml.
pub const UNKNOWN: &str = "unknown";
/// Rows on a terminal; a cluster with more shows those that did something last.
const ROWS: usize = 30;
/// How often rows are drawn anew.
const PERIOD: Duration = Duration::from_millis(500);

/// The table.
#[derive(Debug)]
pub struct Table<'a> {
    ui: &'a Ui,
    site: &'a Site,
    rows: Vec<Bar>,
    /// Bytes of each node when the rows were drawn last.
    sent: BTreeMap<Mac, u64>,
    drawn: Instant,
}

impl<'a> Table<'a> {
    /// An empty one.
    pub fn new(ui: &'a Ui, site: &'a Site) -> Self {
        Table { ui, site, rows: Vec::new(), sent: BTreeMap::new(), drawn: Instant::now() }
    }

    /// Shows what happened since the last call.
    pub fn refresh(&mut self, board: &Board) {
        let notes = board.lock().take_notes();
        for note in &notes {
            self.line(note);
        }
        if self.ui.live() && !self.ui.json() && (self.rows.is_empty() || self.drawn.elapsed() >= PERIOD) {
            self.draw(board);
        }
    }

    fn line(&self, note: &Note) {
        if self.ui.json() {
            self.ui.result(json_text(&serde_json::to_string(note).unwrap_or_default()));
            return;
        }
        let mut word = note.event.to_owned();
        word[..1].make_ascii_uppercase();
        match note.tone {
            Tone::Good => self.ui.status(&word, &note.text),
            Tone::Notice => self.ui.notice(&word, &note.text),
            Tone::Bad => self.ui.bad(&word, &note.text),
        }
        if let Some(mac) = note.mac.as_ref().filter(|_| note.event == UNKNOWN) {
            self.ui.quote(format!("to adopt it, write into cluster.toml:\n{}", stanza(mac)));
        }
    }

    fn draw(&mut self, board: &Board) {
        let elapsed = self.drawn.elapsed().as_secs_f64().max(0.001);
        self.drawn = Instant::now();
        let mut lines: Vec<(i64, String, String)> = Vec::new();
        let inner = board.lock();
        let width = self.site.nodes.values().map(|node| node.name.len()).max().unwrap_or(0);
        for (mac, node) in &self.site.nodes {
            let seen = inner.nodes.get(mac).cloned().unwrap_or_default();
            let sent = node.sent.load(Ordering::Relaxed);
            let before = self.sent.insert(*mac, sent).unwrap_or(sent);
            let rate = (sent - before) as f64 / elapsed;
            let mode = self.site.mode(node, &seen);
            let mut row = format!("{:width$}  {mac}  {}", node.name, columns(&seen, mode));
            // What it needs matters until it has come up with it.
            let came = seen.booted.max(seen.installing) >= seen.asked && seen.asked.is_some();
            let image = self.site.image(node, &seen).filter(|_| mode != Mode::Local && !came);
            if let Some(why) = self.site.refusal(node, &seen).or(seen.failed.clone()) {
                row.push_str(&format!("  {why}"));
            } else if rate > 0.0 {
                row.push_str(&format!("  got {} at {}/s", human_bytes(sent), human_bytes(rate as u64)));
            } else if sent > 0 {
                row.push_str(&format!("  got {}", human_bytes(sent)));
            } else if let Some(image) = image {
                let bytes = human_bytes(image.memory(self.site.state(node, mode)));
                row.push_str(&format!("  needs {bytes} of memory"));
            }
            lines.push((seen.asked.unwrap_or(0), seen.stage().to_owned(), row.trim_end().to_owned()));
        }
        if lines.len() > ROWS {
            lines.sort_by_key(|(asked, ..)| std::cmp::Reverse(*asked));
            lines.truncate(ROWS);
        }
        let unknown = inner.strangers.len();
        let strangers = inner.strangers.iter().rev().take(5).map(|(mac, stranger)| {
            (
                "unknown".to_owned(),
                format!("{mac}  {}  {}", stranger.class, stranger.uuid.as_deref().unwrap_or("")),
            )
        });
        let mut rows: Vec<(String, String)> = lines.into_iter().map(|(_, word, row)| (word, row)).collect();
        rows.extend(strangers);
        if unknown > 5 {
            rows.push(("unknown".to_owned(), format!("and {} more", unknown - 5)));
        }
        if let Some(left) = inner.window() {
            rows.push(("window".to_owned(), format!("credentials are released for {}", human_time(left))));
        }
        drop(inner);
        self.rows.truncate(rows.len());
        while self.rows.len() < rows.len() {
            self.rows.push(self.ui.plain_line());
        }
        for (bar, (word, row)) in self.rows.iter().zip(rows) {
            bar.word(word);
            bar.message(row);
        }
    }
}

/// Firmware and mode of a node, in columns.
fn columns(seen: &Seen, mode: Mode) -> String {
    let firmware = seen.firmware().map_or("-".to_owned(), |firmware| firmware.to_string());
    format!("{firmware:16}  {:8}", mode.word())
}

/// The same for programs.
pub fn report(site: &Site, board: &Board) -> serde_json::Value {
    let inner = board.lock();
    let nodes = site.nodes.iter().map(|(mac, node)| {
        let seen = inner.nodes.get(mac).cloned().unwrap_or_default();
        json!({
            "node": node.name,
            "mac": mac.to_string(),
            "firmware": seen.firmware().map(|firmware| firmware.to_string()),
            "mode": site.mode(node, &seen),
            "stage": seen.stage(),
            "sent": node.sent.load(Ordering::Relaxed),
            "refused": site.refusal(node, &seen),
            "seen": seen,
        })
    });
    let nodes: Vec<serde_json::Value> = nodes.collect();
    let strangers: BTreeMap<String, &Stranger> =
        inner.strangers.iter().map(|(mac, stranger)| (mac.to_string(), stranger)).collect();
    json!({ "nodes": nodes, "strangers": strangers })
}

/// What became of every node, and who else asked, as `kiln pxe status` prints it.
pub fn status(site: &Site, board: &Board) -> String {
    let inner = board.lock();
    let mut lines = Vec::new();
    let width = site.nodes.values().map(|node| node.name.len()).max().unwrap_or(0);
    for (mac, node) in &site.nodes {
        let seen = inner.nodes.get(mac).cloned().unwrap_or_default();
        let why = site.refusal(node, &seen).or(seen.failed.clone()).unwrap_or_default();
        let (columns, stage) = (columns(&seen, site.mode(node, &seen)), seen.stage());
        let sent = human_bytes(node.sent.load(Ordering::Relaxed));
        let line = format!("{:width$}  {mac}  {columns}  {stage:10}  {sent}  {why}", node.name);
        lines.push(line.trim_end().to_owned());
    }
    for (mac, stranger) in &inner.strangers {
        let firmware = stranger.arch.map_or("-".to_owned(), |arch| Firmware::from_code(arch).to_string());
        let (first, last) = (time::iso(stranger.first), time::iso(stranger.last));
        let uuid = stranger.uuid.as_deref().unwrap_or("-");
        lines.push(format!(
            "\nunknown {mac}: {firmware}, {}, UUID {uuid}, first {first}, last {last}",
            stranger.class
        ));
        lines.extend(stanza(&mac.to_string()).lines().map(|line| format!("  {line}")));
    }
    lines.join("\n")
}

/// Lines for cluster.toml by which a machine that asked becomes a node.
fn stanza(mac: &str) -> String {
    let name = mac.replace(':', "");
    format!(
        "[node.agent-{name}]\nrole = \"agent\"\nmac = \"{mac}\"\naddress = \"dhcp\"\ndisk = {{ min-size = \"30GiB\" }}   # better its serial: `lsblk -o NAME,SERIAL,SIZE`"
    )
}
