//! The tar archives inside a .deb, entry by entry, with hostile input in mind.
//!
//! The `tar` crate takes the format apart (GNU long names, PAX records); this file decides what is let through. Nothing is
//! ever unpacked to disk here. What a reader of a package must be able to rely on:
//!
//! - every path is a clean [`TreePath`] and never goes through a symbolic link of the same archive;
//! - a file delivers exactly the size it announced, or the walk ends with an error;
//! - memory for headers, names and records is bounded, whatever lengths they claim;
//! - what cannot be kept (sparse files, unknown types and PAX records) is refused, not lost.

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::rc::Rc;

use tar::EntryType;

use super::deb::{DebError, Limits, Node, Sink};
use crate::tree::{Meta, TreePath};

/// Bytes of headers, long names and PAX records that one entry may have. PATH_MAX twice and the 64 KiB that an extended
/// attribute may have in Linux (`XATTR_SIZE_MAX`), a few times over.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// Counts what comes out of a decompressor and stops at a limit. The budget is shared with the walk, which sets it before
/// the `tar` crate reads headers: that crate reads records of any claimed length into memory.
struct Metered<R> {
    inner: R,
    total: u64,
    limit: u64,
    state: Rc<MeterState>,
}

#[derive(Default)]
struct MeterState {
    header_budget: Cell<Option<u64>>,
    tripped: Cell<Option<&'static str>>,
}

const TOO_BIG: &str = "its unpacked size is over the limit";
const HEADER_TOO_BIG: &str = "the header of an entry is over the limit";

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.total += n as u64;
        let mut tripped = (self.total > self.limit).then_some(TOO_BIG);
        if let Some(budget) = self.state.header_budget.get() {
            match budget.checked_sub(n as u64) {
                Some(left) => self.state.header_budget.set(Some(left)),
                None => tripped = Some(HEADER_TOO_BIG),
            }
        }
        if let Some(reason) = tripped {
            self.state.tripped.set(Some(reason));
            return Err(io::Error::other(reason));
        }
        Ok(n)
    }
}

/// The bytes of one file: exactly as many as announced. Remembers its own failure, so that the walk can tell a damaged
/// package from a sink that could not write.
struct Exact<'a, R> {
    inner: &'a mut R,
    left: u64,
    failed: Option<String>,
}

impl<R: Read> Read for Exact<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buf.is_empty() {
            return Ok(0);
        }
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        match self.inner.read(&mut buf[..want]) {
            Ok(0) => {
                self.failed = Some("the archive ends inside its content".to_owned());
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Ok(n) => {
                self.left -= n as u64;
                Ok(n)
            }
            Err(e) => {
                if e.kind() != io::ErrorKind::Interrupted {
                    self.failed = Some(e.to_string());
                }
                Err(e)
            }
        }
    }
}

/// Gives every entry of the tar archive `reader` (member `member` of a .deb) to `sink`, then reads to the end.
/// `max_total` bounds the unpacked archive, headers included.
pub(super) fn walk<R: Read>(
    reader: R,
    member: &str,
    limits: &Limits,
    max_total: u64,
    sink: &mut dyn Sink,
) -> Result<(), DebError> {
    let state = Rc::new(MeterState::default());
    let metered = Metered { inner: reader, total: 0, limit: max_total, state: state.clone() };
    let damaged = |e: &io::Error| DebError::Member {
        member: member.to_owned(),
        reason: state.tripped.get().map_or_else(|| e.to_string(), str::to_owned),
    };
    let mut archive = tar::Archive::new(metered);
    let mut entries = archive.entries().map_err(|e| damaged(&e))?;
    let mut links: HashSet<TreePath> = HashSet::new();
    let mut count: u64 = 0;
    let mut scratch = vec![0; 64 << 10];
    loop {
        state.header_budget.set(Some(MAX_HEADER_BYTES));
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(|e| damaged(&e))?;
        state.header_budget.set(None);
        count += 1;
        if count > limits.max_entries {
            let reason = format!("it has more than {} entries", limits.max_entries);
            return Err(DebError::Member { member: member.to_owned(), reason });
        }
        let shown =
            || String::from_utf8_lossy(&entry.path_bytes()).escape_debug().take(300).collect::<String>();
        let refuse = |reason: String| DebError::Entry { member: member.to_owned(), path: shown(), reason };

        let path = clean_path(&entry.path_bytes(), limits).map_err(&refuse)?;
        let kind = entry.header().entry_type();
        let Some(path) = path else {
            if !kind.is_dir() || entry.size() != 0 {
                return Err(refuse("the root of the package is not a plain directory".to_owned()));
            }
            continue;
        };
        if !links.is_empty()
            && let Some(link) = path.ancestors().find(|a| links.contains(*a))
        {
            return Err(refuse(format!("it goes through the symbolic link /{link} of the same package")));
        }
        let meta = read_meta(&mut entry).map_err(|reason| DebError::Entry {
            member: member.to_owned(),
            path: format!("/{path}"),
            reason,
        })?;
        let refuse =
            |reason: String| DebError::Entry { member: member.to_owned(), path: format!("/{path}"), reason };
        let size = entry.size();
        if kind.is_file() {
            if size > limits.max_file {
                return Err(refuse(format!(
                    "its size of {size} bytes is over the limit of {}",
                    limits.max_file
                )));
            }
            if entry.path_bytes().ends_with(b"/") {
                return Err(refuse("a regular file whose name ends with a slash".to_owned()));
            }
            let mut content = Exact { inner: &mut entry, left: size, failed: None };
            let node = Node::File { size, reader: &mut content };
            let done = sink.entry(path.clone(), meta, node);
            // What the sink did not read is read here, so that the next header is found and damage is noticed.
            while content.failed.is_none() && content.left > 0 {
                match content.read(&mut scratch) {
                    Err(e) if e.kind() != io::ErrorKind::Interrupted => break,
                    _ => {}
                }
            }
            if let Some(reason) = content.failed {
                return Err(refuse(state.tripped.get().map_or(reason, str::to_owned)));
            }
            done.map_err(|source| DebError::Sink { path: path.to_string(), source })?;
            continue;
        }
        if size != 0 {
            return Err(refuse("only a regular file can have content".to_owned()));
        }
        let link = || -> Result<String, DebError> {
            let bytes =
                entry.link_name_bytes().ok_or_else(|| refuse("a link without a target".to_owned()))?;
            let target = String::from_utf8(bytes.into_owned())
                .map_err(|_| refuse("the target of the link is not UTF-8".to_owned()))?;
            match target.len() {
                1..=4095 if !target.contains('\0') => Ok(target),
                _ => Err(refuse(
                    "the target of the link is empty, longer than 4095 bytes or holds a NUL".to_owned(),
                )),
            }
        };
        let device = || -> Result<(u32, u32), DebError> {
            let number = |n: io::Result<Option<u32>>| n.ok().flatten();
            match (number(entry.header().device_major()), number(entry.header().device_minor())) {
                (Some(major), Some(minor)) => Ok((major, minor)),
                _ => Err(refuse("a device without numbers".to_owned())),
            }
        };
        let node = match kind {
            EntryType::Directory => Node::Dir,
            EntryType::Symlink => {
                links.insert(path.clone());
                Node::Symlink { target: link()? }
            }
            EntryType::Link => {
                let target = link()?;
                let target = clean_path(target.as_bytes(), limits)
                    .map_err(|e| refuse(format!("the target of the hard link: {e}")))?
                    .ok_or_else(|| refuse("a hard link to the root".to_owned()))?;
                Node::HardLink { target }
            }
            EntryType::Char => device().map(|(major, minor)| Node::Char { major, minor })?,
            EntryType::Block => device().map(|(major, minor)| Node::Block { major, minor })?,
            EntryType::Fifo => Node::Fifo,
            other => {
                let byte = char::from(other.as_byte());
                return Err(refuse(format!("an entry of type {byte:?}, which no package has")));
            }
        };
        sink.entry(path.clone(), meta, node)
            .map_err(|source| DebError::Sink { path: path.to_string(), source })?;
    }
    state.header_budget.set(None);
    // tar pads with zero blocks behind the end mark; anything else would be content that some other reader may show.
    let mut rest = archive.into_inner();
    loop {
        match rest.read(&mut scratch) {
            Ok(0) => return Ok(()),
            Ok(n) if scratch[..n].iter().all(|b| *b == 0) => {}
            Ok(_) => {
                let reason = "there is data behind the end of the archive".to_owned();
                return Err(DebError::Member { member: member.to_owned(), reason });
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(damaged(&e)),
        }
    }
}

/// The path of an entry; `None` is the root.
fn clean_path(bytes: &[u8], limits: &Limits) -> Result<Option<TreePath>, String> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| "the path is not UTF-8 (Debian Policy 10.10)".to_owned())?;
    if text.starts_with('/') {
        return Err("the path is absolute".to_owned());
    }
    let path = TreePath::from_archive(text).map_err(|e| e.to_string())?;
    if let Some(path) = &path {
        let depth = path.bytes().filter(|b| *b == b'/').count() + 1;
        if depth > limits.max_depth {
            return Err(format!("it lies {depth} levels deep, the limit is {}", limits.max_depth));
        }
    }
    Ok(path)
}

/// Mode, owner, time and attributes, from the header and the PAX records before it.
fn read_meta<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Meta, String> {
    let header = entry.header();
    let id = |what: &str, n: io::Result<u64>| -> Result<u32, String> {
        let n = n.map_err(|e| e.to_string())?;
        // The highest number means "no change" to chown(2).
        u32::try_from(n)
            .ok()
            .filter(|n| *n != u32::MAX)
            .ok_or_else(|| format!("its {what} {n} is no 32-bit number"))
    };
    let mode = header.mode().map_err(|e| e.to_string())? & 0o7777;
    let (uid, gid) = (id("owner", header.uid())?, id("group", header.gid())?);
    let mut mtime = i64::try_from(header.mtime().map_err(|e| e.to_string())?)
        .map_err(|_| "its time is out of range".to_owned())?;
    let header_size = header.entry_size().map_err(|e| e.to_string())?;
    let size = entry.size();
    let mut xattrs = BTreeMap::new();
    if let Some(records) = entry.pax_extensions().map_err(|e| e.to_string())? {
        for record in records {
            let record = record.map_err(|_| "a PAX record is malformed".to_owned())?;
            let key = record.key().map_err(|_| "the key of a PAX record is not UTF-8".to_owned())?;
            if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                xattrs.insert(name.to_owned(), record.value_bytes().to_vec());
                continue;
            }
            let number = || record.value().ok().and_then(|v| v.parse::<u64>().ok());
            match key {
                "path" | "linkpath" | "uname" | "gname" | "atime" | "ctime" | "comment" => {}
                // The crate has put these in the header; a value that it could not read would be ignored there.
                "uid" | "gid" if number().is_some() => {}
                // Two readers that believe different sizes see different archives. 8 GiB is what the header can say.
                "size" if number() == Some(size) && (header_size == size || size >= 8 << 30) => {}
                "mtime" => {
                    let text = record.value().unwrap_or_default();
                    let whole = text.split_once('.').map_or(text, |(whole, _)| whole);
                    mtime = whole.parse().map_err(|_| "the PAX record `mtime` is no number".to_owned())?;
                }
                _ => {
                    let key: String = key.escape_debug().take(100).collect();
                    return Err(format!("the PAX record `{key}` is unknown or contradicts the header"));
                }
            }
        }
    }
    Ok(Meta { mode, uid, gid, mtime, xattrs })
}
