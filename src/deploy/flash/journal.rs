//! How far a write came, kept on the machine that writes: `DEVICE.json` in the state folder, gone when the disk is done.
//!
//! What the journal says was written is read and compared before it is left out, so a journal that is wrong costs time and nothing else.
//! With `--keep-state` it also holds the disk's old table: that is wiped before the first byte is written, and without it nobody would
//! know where `/var` begins.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::medium::{Aligned, Medium};
use super::source::{Facts, HEAD};
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::image::gpt::{self, Table};

const SCHEMA: u32 = 1;

/// What is kept of a write that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    schema: u32,
    /// SHA-256 of the image.
    image: Digest,
    /// Bytes of the disk.
    size: u64,
    /// Bytes of its sectors.
    sector: u32,
    /// The disk holds what it should from its first MiB up to here, as far as was flushed.
    pub written: u64,
    /// The first sectors of the table that the disk had, in base64, if its state is kept.
    table: Option<String>,
}

/// The journal of one disk.
#[derive(Debug)]
pub struct Journal {
    path: Option<PathBuf>,
    restart: bool,
    record: Option<Record>,
}

impl Journal {
    /// One that is forgotten with the process: where there is no place to keep it.
    pub fn none() -> Self {
        Journal { path: None, restart: false, record: None }
    }

    /// The journal of the disk that `device` tells from others, in `folder`. With `restart` nothing is resumed.
    ///
    /// # Errors
    /// [`Kind::Store`]: the folder cannot be used, or what is there is no journal.
    pub fn open(folder: &Path, device: &str, restart: bool) -> Result<Self, Failure> {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
        let path = folder.join(format!("{}.json", device.chars().map(plain).collect::<String>()));
        fs::create_dir_all(folder).map_err(|error| unusable(&path, error))?;
        let record = match fs::read(&path) {
            Ok(text) => Some(serde_json::from_slice(&text).map_err(|error| unusable(&path, error.into()))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(unusable(&path, error)),
        };
        if record.as_ref().is_some_and(|record: &Record| record.schema != SCHEMA) {
            return Err(unusable(&path, io::Error::other("another kiln wrote it")));
        }
        Ok(Journal { path: Some(path), restart, record })
    }

    /// What an earlier run left.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// The table of a disk whose state is to be kept: its own, or that which an interrupted run took away.
    pub(super) fn old_table(&self, medium: &dyn Medium, name: &str) -> Result<Table, Failure> {
        let mut head = Aligned::new(usize::try_from(HEAD).unwrap_or(0));
        medium.read_all(&mut head, 0).map_err(|error| {
            Failure::new(Kind::Store, format!("reading the partition table of {name} failed")).because(error)
        })?;
        let own = gpt::read_primary(&head, medium.sector());
        let kept = self.record.as_ref().filter(|record| record.size == medium.size()).and_then(|record| {
            let bytes = BASE64.decode(record.table.as_ref()?).ok()?;
            gpt::read_primary(&bytes, record.sector).ok()
        });
        own.or_else(|error| kept.ok_or(error)).map_err(|error| {
            Failure::new(Kind::Store, format!("the state on {name} cannot be kept: {error}"))
                .hint("without --keep-state the whole disk is written anew")
        })
    }

    /// A write begins; says up to where the disk may hold what it should.
    pub(super) fn begin(
        &mut self,
        image: &Facts,
        medium: &dyn Medium,
        keep: Option<&Table>,
    ) -> Result<u64, Failure> {
        let same = |record: &&Record| {
            (record.size, record.sector) == (medium.size(), medium.sector()) && record.image == image.digest
        };
        let kept = self.record.as_ref().is_some_and(|record| record.table.is_some());
        if kept && keep.is_none() && !self.restart {
            let text = "an interrupted flash of this disk was to keep the state on it";
            return Err(Failure::new(Kind::Store, text)
                .hint("--keep-state goes on with that; --restart begins anew and loses what is on /var"));
        }
        let old = self.record.as_ref().filter(same).filter(|_| !self.restart && kept == keep.is_some());
        let written = old.map_or(0, |record| record.written);
        let table = keep.map(|table| BASE64.encode(table.primary()));
        let (size, sector) = (medium.size(), medium.sector());
        self.record = Some(Record { schema: SCHEMA, image: image.digest, size, sector, written, table });
        self.save()?;
        Ok(written)
    }

    /// Everything below `written` is flushed.
    pub(super) fn mark(&mut self, written: u64) -> Result<(), Failure> {
        if let Some(record) = &mut self.record {
            record.written = record.written.max(written);
        }
        self.save()
    }

    /// The disk is done.
    pub(super) fn finished(&mut self) -> Result<(), Failure> {
        self.record = None;
        match self.path.as_ref().map(fs::remove_file) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                Err(unusable(self.path.as_deref().unwrap_or(Path::new("")), error))
            }
            _ => Ok(()),
        }
    }

    /// On the disk of this machine before anything is written to the other one.
    fn save(&self) -> Result<(), Failure> {
        let (Some(path), Some(record)) = (&self.path, &self.record) else { return Ok(()) };
        let write = || -> io::Result<()> {
            let folder = path.parent().unwrap_or(Path::new("."));
            let mut temp = tempfile::Builder::new().prefix(".kiln.").tempfile_in(folder)?;
            temp.write_all(&serde_json::to_vec_pretty(record)?)?;
            temp.as_file().sync_all()?;
            temp.persist(path).map_err(|error| error.error)?;
            fs::File::open(folder)?.sync_all()
        };
        write().map_err(|error| unusable(path, error))
    }
}

fn unusable(path: &Path, error: io::Error) -> Failure {
    Failure::new(Kind::Store, format!("the journal {} cannot be used", path.display()))
        .hint("set XDG_STATE_HOME to a folder that can be written, or remove the file, and with it what it knows of an interrupted flash")
        .because(error)
}
