//! What is known of each machine so far, and what is told about it: the only state of the server that changes.
//!
//! ```text
//! STATE/state.json       what is known of each machine: seen, leased, released, installed; written anew on change
//! STATE/receipts/        what machines reported of their disks, a file each
//! STATE/control          a unix socket, mode 0600: what `kiln pxe open` speaks to
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::site::Firmware;
use crate::error::{Failure, Kind};
use crate::lock::time;
use crate::scenario::spec::Mac;

const SCHEMA: u32 = 1;
const RECEIPT_FOLDER: &str = "receipts";
/// Strangers that are kept: whoever invents addresses pushes the oldest out.
const STRANGERS: usize = 256;
/// Lines that wait to be shown.
const NOTES: usize = 10_000;
/// Receipts that a node may leave behind.
const RECEIPTS: u32 = 100;
/// How soon the same complaint about a machine is told again.
const AGAIN: Duration = Duration::from_secs(60);
/// Addresses of a node that are remembered.
const ADDRESSES: usize = 8;

/// What is known of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    /// Its kind, option 93.
    pub arch: Option<u16>,
    /// Addresses that it was given, or asked others for.
    pub addresses: Vec<Ipv4Addr>,
    /// What it was leased of the range.
    pub lease: Option<Lease>,
    /// When it asked last; this and all moments below in seconds since 1970.
    pub asked: Option<i64>,
    /// When the initrd came up.
    pub booted: Option<i64>,
    /// When the installer began.
    pub installing: Option<i64>,
    /// When its disk was done.
    pub installed: Option<i64>,
    /// When it joined the cluster.
    pub joined: Option<i64>,
    /// What it said when it failed.
    pub failed: Option<String>,
    /// When its credentials were released.
    pub released: Option<i64>,
    /// How many receipts it left.
    pub receipts: u32,
}

impl Seen {
    /// What it started by, if it said so.
    pub fn firmware(&self) -> Option<Firmware> {
        self.arch.map(Firmware::from_code)
    }

    /// The last thing that happened.
    pub fn stage(&self) -> &'static str {
        if self.failed.is_some() {
            return "failed";
        }
        // An installed node says once that it joined: that it started since then, and asked on its way, takes nothing back.
        let asked = self.asked.filter(|_| self.installed.is_none() || self.joined < self.installed);
        let stages = [
            (self.joined, "joined"),
            (self.installed, "installed"),
            (self.installing, "installing"),
            (self.booted, "booted"),
            (asked, "asked"),
        ];
        // Of two in the same second the later stage counts, which stands first.
        let mut last = ("waiting", i64::MIN);
        for (at, word) in stages {
            if let Some(at) = at.filter(|at| *at > last.1) {
                last = (word, at);
            }
        }
        last.0
    }

    /// Remembers an address.
    pub fn at(&mut self, address: Ipv4Addr) {
        self.addresses.retain(|known| *known != address);
        self.addresses.push(address);
        if self.addresses.len() > ADDRESSES {
            self.addresses.remove(0);
        }
    }
}

/// An address on loan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// When it may be given to another, seconds since 1970.
    pub until: i64,
}

/// A machine that is not in cluster.toml.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stranger {
    /// Its kind, option 93.
    pub arch: Option<u16>,
    /// Its vendor class, printable.
    pub class: String,
    /// Its UUID, option 97.
    pub uuid: Option<String>,
    /// When it asked first, seconds since 1970.
    pub first: i64,
    /// When it asked last.
    pub last: i64,
}

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tone {
    /// As it should be.
    Good,
    /// Worth a look.
    Notice,
    /// Wrong.
    Bad,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// UTC.
    pub time: String,
    /// What kind of thing: `asked`, `sent`, `booted`, `refused` …
    pub event: &'static str,
    /// How it looks.
    pub tone: Tone,
    /// The node, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The card, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// For people.
    pub text: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    schema: u32,
    #[serde(default)]
    nodes: BTreeMap<String, Seen>,
    #[serde(default)]
    strangers: BTreeMap<String, Stranger>,
}

/// What the lock guards.
#[derive(Debug, Default)]
pub struct Inner {
    /// Machines of cluster.toml.
    pub nodes: BTreeMap<Mac, Seen>,
    /// The others.
    pub strangers: BTreeMap<Mac, Stranger>,
    /// Leased addresses that turned out to be somebody else's, and until when they rest.
    pub declined: BTreeMap<Ipv4Addr, i64>,
    /// Until when credentials are released to whoever had none yet.
    window: Option<Instant>,
    /// Nodes that may have them once, and until when.
    grants: BTreeMap<Mac, Instant>,
    notes: VecDeque<Note>,
    /// The last line of each machine that asks in vain, and when it was told.
    vain: BTreeMap<Mac, (Instant, String)>,
    dirty: bool,
}

/// The board.
#[derive(Debug)]
pub struct Board {
    /// Where it is written.
    folder: PathBuf,
    /// The same for people.
    shown: PathBuf,
    inner: Mutex<Inner>,
}

/// Why credentials are not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withheld {
    /// No window is open, and none was granted.
    Closed,
    /// It had them already.
    Had,
}

impl Board {
    /// The board of the folder `folder`, as it was when a server ended there.
    ///
    /// # Errors
    /// The state file is damaged: nobody should guess what was installed.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("state.json");
        let wrong = |why: String| {
            Failure::new(Kind::Input, format!("{} cannot be used: {why}", path.display())).hint(
                "put it aside; without it every node is new: one in mode install is installed again when it asks",
            )
        };
        let file = match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<File>(&text).map_err(|e| wrong(e.to_string()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                File { schema: SCHEMA, ..File::default() }
            }
            Err(error) => return Err(wrong(error.to_string()).into()),
        };
        if file.schema != SCHEMA {
            return Err(wrong(format!("it has schema {}, this kiln reads {SCHEMA}", file.schema)).into());
        }
        let mut inner = Inner::default();
        for (mac, seen) in file.nodes {
            inner.nodes.insert(mac.parse().map_err(wrong)?, seen);
        }
        for (mac, stranger) in file.strangers {
            inner.strangers.insert(mac.parse().map_err(wrong)?, stranger);
        }
        Ok(Board { folder: folder.to_owned(), shown: folder.to_owned(), inner: Mutex::new(inner) })
    }

    /// Makes the state folder the current folder of this process, and writes there from now on: a user who may not pass the folders above
    /// it can still write in it.
    ///
    /// # Errors
    /// It cannot be entered.
    pub fn enter(&mut self) -> Result<()> {
        std::env::set_current_dir(&self.folder)
            .with_context(|| format!("entering {}", self.folder.display()))?;
        self.folder = PathBuf::from(".");
        Ok(())
    }

    /// The state folder, as people know it.
    pub fn shown(&self) -> &Path {
        &self.shown
    }

    /// All of it, for a look or a change.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is whole when it is made, so what another thread left behind can be used.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of what is known of a node.
    pub fn seen(&self, mac: Mac) -> Seen {
        self.lock().nodes.get(&mac).cloned().unwrap_or_default()
    }

    /// Writes the state, if it changed.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self) -> Result<()> {
        // The lock is held: of two writers the later has the newer state.
        let mut inner = self.lock();
        inner.save(&self.folder)
    }

    /// Releases credentials to a node, if it may have them: it is remembered on disk before anything is sent.
    ///
    /// # Errors
    /// The state cannot be written: then nothing is released.
    pub fn release(&self, mac: Mac) -> Result<Result<(), Withheld>> {
        let mut inner = self.lock();
        let now = Instant::now();
        let had = inner.nodes.get(&mac).is_some_and(|seen| seen.released.is_some());
        let granted = inner.grants.get(&mac).is_some_and(|until| *until > now);
        if !granted && had {
            return Ok(Err(Withheld::Had));
        }
        if !granted && inner.window.is_none_or(|until| until <= now) {
            return Ok(Err(Withheld::Closed));
        }
        let before = inner.nodes.entry(mac).or_default().released.replace(time::now());
        inner.dirty = true;
        if let Err(error) = inner.save(&self.folder) {
            inner.nodes.entry(mac).or_default().released = before;
            return Err(error);
        }
        inner.grants.remove(&mac);
        Ok(Ok(()))
    }

    /// Keeps a receipt in a file of its own.
    ///
    /// # Errors
    /// It left too many already ([`Kind::Input`]), or the file cannot be written.
    pub fn keep_receipt(&self, mac: Mac, node: &str, receipt: &serde_json::Value) -> Result<PathBuf> {
        let number = {
            let mut inner = self.lock();
            let seen = inner.nodes.entry(mac).or_default();
            if seen.receipts >= RECEIPTS {
                return Err(Failure::new(Kind::Input, format!("{node} left {RECEIPTS} receipts already"))
                    .hint(format!("`kiln pxe reinstall {node}` lets it begin anew"))
                    .into());
            }
            seen.receipts += 1;
            inner.dirty = true;
            inner.nodes[&mac].receipts
        };
        fs::create_dir_all(self.folder.join(RECEIPT_FOLDER))?;
        let path =
            Path::new(RECEIPT_FOLDER).join(format!("{node}-{}-{number}.json", time::compact(time::now())));
        crate::manifest::write_json(&self.folder.join(&path), receipt).context("keeping a receipt")?;
        Ok(self.shown.join(path))
    }
}

impl Inner {
    /// What is known of a node, to be changed.
    pub fn node(&mut self, mac: Mac) -> &mut Seen {
        self.dirty = true;
        self.nodes.entry(mac).or_default()
    }

    /// Somebody asked who is not in the file. Says whether this is the first time.
    pub fn stranger(&mut self, mac: Mac, mut stranger: Stranger) -> bool {
        self.dirty = true;
        if let Some(known) = self.strangers.get_mut(&mac) {
            stranger.first = known.first;
            *known = stranger;
            return false;
        }
        if self.strangers.len() >= STRANGERS {
            let oldest = self.strangers.iter().min_by_key(|(_, s)| s.last).map(|(mac, _)| *mac);
            oldest.map(|mac| self.strangers.remove(&mac));
        }
        self.strangers.insert(mac, stranger);
        true
    }

    /// Opens the window for so long from now; `None` closes it, and takes all grants back.
    pub fn open_window(&mut self, time: Option<Duration>) {
        self.window = time.map(|time| Instant::now() + time);
        if time.is_none() {
            self.grants.clear();
        }
    }

    /// How long the window is still open.
    pub fn window(&self) -> Option<Duration> {
        self.window.and_then(|until| until.checked_duration_since(Instant::now()))
    }

    /// Lets one node have its credentials once more, within so long from now.
    pub fn grant(&mut self, mac: Mac, time: Duration) {
        self.grants.insert(mac, Instant::now() + time);
    }

    /// Forgets what a node did: it is installed again when it asks. What it was released stays in its receipts.
    pub fn forget(&mut self, mac: Mac) {
        let seen = self.node(mac);
        let (arch, addresses, lease) = (seen.arch, std::mem::take(&mut seen.addresses), seen.lease);
        *seen = Seen { arch, addresses, lease, ..Seen::default() };
    }

    /// Adds a line.
    pub fn note(
        &mut self,
        event: &'static str,
        tone: Tone,
        node: Option<&str>,
        mac: Option<Mac>,
        text: String,
    ) {
        if self.notes.len() >= NOTES {
            self.notes.pop_front();
        }
        // A machine that waits to be let in asks every few seconds.
        if let Some(mac) = mac.filter(|_| tone == Tone::Bad) {
            let same = |(at, told): &(Instant, String)| at.elapsed() < AGAIN && *told == text;
            if self.vain.get(&mac).is_some_and(same) {
                return;
            }
            self.vain.insert(mac, (Instant::now(), text.clone()));
        }
        self.notes.push_back(Note {
            time: time::iso(time::now()),
            event,
            tone,
            node: node.map(str::to_owned),
            mac: mac.map(|mac| mac.to_string()),
            text,
        });
    }

    /// The lines since the last call.
    pub fn take_notes(&mut self) -> Vec<Note> {
        self.notes.drain(..).collect()
    }

    fn save(&mut self, folder: &Path) -> Result<()> {
        if !self.dirty {
            return Ok(());
        }
        let file = File {
            schema: SCHEMA,
            nodes: self.nodes.iter().map(|(mac, seen)| (mac.to_string(), seen.clone())).collect(),
            strangers: self.strangers.iter().map(|(mac, s)| (mac.to_string(), s.clone())).collect(),
        };
        crate::manifest::write_json(&folder.join("state.json"), &file)?;
        self.dirty = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::site::tests::card;
    use super::*;

    #[test]
    fn credentials_are_released_once_and_only_while_the_window_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let board = Board::open(dir.path()).unwrap();
        let ask = || board.release(card()).unwrap();
        assert_eq!(ask(), Err(Withheld::Closed));
        board.lock().open_window(Some(Duration::from_secs(60)));
        assert_eq!(ask(), Ok(()));
        assert_eq!(ask(), Err(Withheld::Had));
        // What was released is known to the next server, too, and a new window changes nothing.
        let board = Board::open(dir.path()).unwrap();
        board.lock().open_window(Some(Duration::from_secs(60)));
        assert_eq!(board.release(card()).unwrap(), Err(Withheld::Had));
        board.lock().grant(card(), Duration::from_secs(60));
        assert_eq!(board.release(card()).unwrap(), Ok(()));
        assert_eq!(board.release(card()).unwrap(), Err(Withheld::Had));
        board.lock().open_window(Some(Duration::ZERO));
        board.lock().forget(card());
        assert_eq!(board.release(card()).unwrap(), Err(Withheld::Closed));
    }

    #[test]
    fn nothing_is_released_that_cannot_be_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let board = Board::open(&dir.path().join("gone")).unwrap();
        board.lock().open_window(Some(Duration::from_secs(60)));
        assert!(board.release(card()).is_err());
        assert_eq!(board.seen(card()).released, None);
    }

    #[test]
    fn the_state_survives_and_a_damaged_one_is_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let board = Board::open(dir.path()).unwrap();
        board.lock().node(card()).installed = Some(5);
        let stranger =
            Stranger { arch: Some(7), class: "PXEClient".to_owned(), uuid: None, first: 1, last: 2 };
        assert!(board.lock().stranger(card(), stranger.clone()));
        assert!(!board.lock().stranger(card(), Stranger { first: 9, last: 9, ..stranger }));
        board.save().unwrap();
        let again = Board::open(dir.path()).unwrap();
        assert_eq!(again.seen(card()).installed, Some(5));
        let stranger = again.lock().strangers[&card()].clone();
        assert_eq!((stranger.first, stranger.last), (1, 9));
        fs::write(dir.path().join("state.json"), "{").unwrap();
        assert!(Board::open(dir.path()).unwrap_err().to_string().contains("state.json cannot be used"));
    }

    #[test]
    fn whoever_invents_addresses_fills_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let board = Board::open(dir.path()).unwrap();
        for n in 0..1000_i64 {
            let mac = super::super::dhcp::packet::mac([2, 0, 0, 0, (n >> 8) as u8, n as u8]).unwrap();
            let stranger = Stranger { arch: None, class: String::new(), uuid: None, first: n, last: n };
            board.lock().stranger(mac, stranger);
            board.lock().note("unknown", Tone::Notice, None, Some(mac), String::new());
        }
        let inner = board.lock();
        assert_eq!(inner.strangers.len(), STRANGERS);
        assert!(inner.strangers.values().all(|s| s.last >= 1000 - STRANGERS as i64));
    }

    #[test]
    fn the_stage_is_what_happened_last() {
        let mut seen = Seen { asked: Some(10), booted: Some(12), installed: Some(12), ..Seen::default() };
        assert_eq!(seen.stage(), "installed");
        seen.asked = Some(20);
        assert_eq!(seen.stage(), "asked");
        seen.joined = Some(25);
        seen.asked = Some(30);
        assert_eq!(seen.stage(), "joined", "an installed node tells it once");
        seen.installed = None;
        assert_eq!(seen.stage(), "asked", "a diskless one at each boot");
        seen.failed = Some("no disk".to_owned());
        assert_eq!(seen.stage(), "failed");
        assert_eq!(Seen::default().stage(), "waiting");
    }
}
