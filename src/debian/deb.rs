//! Reads binary packages: an `ar` archive of three members, two of them compressed tar archives.
//!
//! ```text
//!   !<arch>\n
//!   debian-binary            "2.0\n"
//!   control.tar[.gz|.xz|.zst]  control file, conffiles, names of scripts
//!   data.tar[.gz|.xz|.zst]     the files
//! ```
//!
//! [`read`] streams: a package of any size needs the memory of its decompressor and of one entry. Maintainer scripts are
//! named, never run. The reader is read to its end, so a caller that hashes below it has the digest of the whole file.
//! Sources: deb(5), ar(5), dpkg's lib/dpkg/ar.c for the spelling of member names.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

use liblzma::stream::{MtStreamBuilder, Stream};

use super::control::Stanzas;
use super::tarball;
use super::version::DebVersion;
use super::{is_architecture_name, is_package_name};
use crate::tree::{Meta, TreePath};

/// Bounds for what a package may ask of the machine. The defaults pass every package of Debian 13.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest single file, in bytes.
    pub max_file: u64,
    /// Largest data archive after decompression, in bytes. This is the guard against decompression bombs.
    pub max_total: u64,
    /// Largest control archive after decompression, in bytes.
    pub max_control: u64,
    /// Entries of the data archive.
    pub max_entries: u64,
    /// Levels of directories.
    pub max_depth: usize,
    /// Memory of the xz decoder, in bytes; an archive that needs more is refused. `xz -9` needs 65 MiB, dpkg's default 9.
    pub xz_memory: u64,
    /// Threads for xz payloads of several blocks (dpkg cuts blocks of 24 MiB). 1 decodes in the calling thread. What is
    /// read does not depend on it.
    pub threads: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_file: 4 << 30,
            max_total: 16 << 30,
            max_control: 64 << 20,
            max_entries: 1 << 20,
            max_depth: 64,
            xz_memory: 256 << 20,
            threads: 1,
        }
    }
}

/// What stands at a path of a package.
pub enum Node<'a> {
    /// A directory. It may have been named before, by this or another package.
    Dir,
    /// A regular file.
    File {
        /// Length of the content in bytes.
        size: u64,
        /// Exactly `size` bytes. What is left unread is skipped.
        reader: &'a mut dyn Read,
    },
    /// Another name of a file that this package named before.
    HardLink {
        /// The earlier name.
        target: TreePath,
    },
    /// A symbolic link.
    Symlink {
        /// As it stands in the package: absolute or relative, 1 to 4095 bytes.
        target: String,
    },
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

impl fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Dir => f.write_str("Dir"),
            Node::File { size, .. } => f.debug_struct("File").field("size", size).finish_non_exhaustive(),
            Node::HardLink { target } => f.debug_struct("HardLink").field("target", target).finish(),
            Node::Symlink { target } => f.debug_struct("Symlink").field("target", target).finish(),
            Node::Char { major, minor } => write!(f, "Char {major}:{minor}"),
            Node::Block { major, minor } => write!(f, "Block {major}:{minor}"),
            Node::Fifo => f.write_str("Fifo"),
        }
    }
}

/// Takes the entries of a package in the package's order; the root directory is left out.
pub trait Sink {
    /// One entry. An error ends the reading and comes back as [`DebError::Sink`].
    fn entry(&mut self, path: TreePath, meta: Meta, node: Node<'_>) -> io::Result<()>;
}

/// What the control archive of a package says.
#[derive(Debug, Clone)]
pub struct Control {
    /// The package's name.
    pub package: String,
    /// Its version.
    pub version: DebVersion,
    /// `all` or the name of an architecture.
    pub architecture: String,
    /// All fields of the control file in their order, values with their continuation lines.
    pub fields: Vec<(String, String)>,
    /// The files that an administrator may change (deb-conffiles(5)).
    pub conffiles: Vec<TreePath>,
    /// Names of the maintainer scripts, sorted: of `config`, `postinst`, `postrm`, `preinst`, `prerm`. Never run.
    pub scripts: Vec<String>,
    /// The text of the triggers file (deb-triggers(5)), if there is one.
    pub triggers: Option<String>,
}

impl Control {
    /// The value of the field called `name`, whatever the case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// Why a package could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// The outer archive.
    #[error("not a readable .deb: {0}")]
    Ar(String),
    /// A member that is damaged, over a limit, or of a kind that is not read.
    #[error("{member}: {reason}")]
    Member {
        /// Its name in the outer archive.
        member: String,
        /// What is wrong.
        reason: String,
    },
    /// An entry of a member that is refused.
    #[error("{member}: {path}: {reason}")]
    Entry {
        /// `control.tar.xz` or `data.tar.xz`, or as the package spells it.
        member: String,
        /// The path, from the root if it is a clean one, else as the package spells it.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The control file does not say what it must.
    #[error("control file: {0}")]
    Control(String),
    /// The bytes could not be read.
    #[error("reading the .deb")]
    Read(#[source] io::Error),
    /// Whoever takes the entries failed.
    #[error("taking /{path} from the .deb")]
    Sink {
        /// The entry.
        path: String,
        /// Its error.
        #[source]
        source: io::Error,
    },
}

/// Big enough that a read costs little beside decompression, small enough for several packages at once.
const BUFFER: usize = 256 << 10;
const AR_MAGIC: &[u8; 8] = b"!<arch>\n";
const AR_HEADER: usize = 60;

/// Reads the package `deb`: entries of its data archive go to `sink`, what its control archive says is returned.
pub fn read<R: Read>(deb: R, limits: &Limits, sink: &mut dyn Sink) -> Result<Control, DebError> {
    let mut deb = BufReader::with_capacity(BUFFER, deb);
    let mut magic = [0; 8];
    if fill(&mut deb, &mut magic)? != magic.len() || &magic != AR_MAGIC {
        return Err(DebError::Ar("it does not start with the magic of an ar archive".to_owned()));
    }
    let mut control = None;
    let mut version_seen = false;
    let mut data_seen = false;
    while let Some((name, size)) = member_header(&mut deb)? {
        let mut member = (&mut deb).take(size);
        if !version_seen {
            if name != "debian-binary" {
                return Err(DebError::Ar(format!("the first member is `{name}`, not `debian-binary`")));
            }
            let mut text = Vec::new();
            (&mut member).take(64).read_to_end(&mut text).map_err(DebError::Read)?;
            // deb(5): the first line is the version; minor numbers are compatible, other lines are for the future.
            if !text.starts_with(b"2.") || !text.contains(&b'\n') {
                return Err(DebError::Ar("its format version is not 2.x".to_owned()));
            }
            version_seen = true;
        } else if control.is_none() && name.starts_with("control.tar") {
            let mut parts = ControlParts::default();
            unpack(&mut member, &name, limits, limits.max_control, &mut parts)?;
            control = Some(parts.finish()?);
        } else if !data_seen && name.starts_with("data.tar") {
            if control.is_none() {
                return Err(DebError::Ar("its data comes before its control archive".to_owned()));
            }
            unpack(&mut member, &name, limits, limits.max_total, sink)?;
            data_seen = true;
        } else if name.starts_with('_') || data_seen {
            // deb(5): members whose name starts with an underscore, and all behind the data, are to be ignored.
            io::copy(&mut member, &mut io::sink()).map_err(DebError::Read)?;
        } else {
            return Err(DebError::Ar(format!("the member `{name}` has no place here")));
        }
        io::copy(&mut member, &mut io::sink()).map_err(DebError::Read)?;
        if member.limit() > 0 {
            return Err(DebError::Ar(format!("it ends inside the member `{name}`")));
        }
        let mut pad = [0];
        if size % 2 == 1 && (fill(&mut deb, &mut pad)? != 1 || pad != *b"\n") {
            return Err(DebError::Ar(format!("the padding behind the member `{name}` is missing")));
        }
    }
    match control {
        Some(control) if data_seen => Ok(control),
        Some(_) => Err(DebError::Ar("it has no data.tar".to_owned())),
        None => Err(DebError::Ar("it has no control.tar".to_owned())),
    }
}

/// Reads until `buf` is full or the input ends; says how many bytes there were.
fn fill(reader: &mut impl Read, buf: &mut [u8]) -> Result<usize, DebError> {
    let mut at = 0;
    while at < buf.len() {
        match reader.read(&mut buf[at..]) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(DebError::Read(e)),
        }
    }
    Ok(at)
}

/// Name and size of the next member: name in 16 bytes, date 12, owner 6, group 6, mode 8, size 10, then "`\n".
fn member_header(deb: &mut impl Read) -> Result<Option<(String, u64)>, DebError> {
    let mut header = [0; AR_HEADER];
    match fill(deb, &mut header)? {
        0 => return Ok(None),
        AR_HEADER if header[58..] == *b"`\n" => {}
        AR_HEADER => return Err(DebError::Ar("there is garbage where a member should start".to_owned())),
        _ => return Err(DebError::Ar("it ends inside the header of a member".to_owned())),
    }
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(|t| t.trim_end_matches(' ').to_owned());
    // GNU ar ends names with a slash, dpkg does not.
    let name = text(&header[..16]).map(|n| n.strip_suffix('/').unwrap_or(&n).to_owned());
    let size =
        text(&header[48..58]).filter(|s| s.bytes().all(|b| b.is_ascii_digit())).and_then(|s| s.parse().ok());
    match (name, size) {
        (Some(name), Some(size)) if !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(Some((name, size)))
        }
        _ => Err(DebError::Ar("the header of a member has no readable name and size".to_owned())),
    }
}

/// Decompresses the tar archive `member`, named `name`, and walks it.
fn unpack(
    member: &mut impl BufRead,
    name: &str,
    limits: &Limits,
    max_total: u64,
    sink: &mut dyn Sink,
) -> Result<(), DebError> {
    let refuse = |reason: String| DebError::Member { member: name.to_owned(), reason };
    let suffix = name.split_once(".tar").map_or("", |(_, suffix)| suffix);
    let mut plain: Box<dyn Read + '_> = match suffix {
        "" => Box::new(&mut *member),
        ".gz" => Box::new(flate2::bufread::MultiGzDecoder::new(&mut *member)),
        ".xz" => Box::new(liblzma::bufread::XzDecoder::new_stream(
            &mut *member,
            xz_stream(limits).map_err(|e| refuse(e.to_string()))?,
        )),
        ".zst" => Box::new(zstd::Decoder::with_buffer(&mut *member).map_err(|e| refuse(e.to_string()))?),
        ".bz2" | ".lzma" => {
            return Err(refuse(format!(
                "compression `{suffix}` is not read (dpkg has not written it for ten years); repack it with `dpkg-deb -Zxz`"
            )));
        }
        _ => return Err(refuse(format!("unknown compression `{suffix}`"))),
    };
    // The tar reader asks for 512 bytes at a time; a decompressor wants bigger bites.
    tarball::walk(BufReader::with_capacity(BUFFER, &mut plain), name, limits, max_total, sink)?;
    drop(plain);
    match member.fill_buf() {
        Ok([]) => Ok(()),
        Ok(_) => Err(refuse("there is data behind the end of the compressed stream".to_owned())),
        Err(e) => Err(DebError::Read(e)),
    }
}

fn xz_stream(limits: &Limits) -> Result<Stream, liblzma::stream::Error> {
    if limits.threads <= 1 {
        return Stream::new_stream_decoder(limits.xz_memory, 0);
    }
    // Over the threading limit the decoder falls back to one thread, over the other one it fails.
    MtStreamBuilder::new()
        .threads(limits.threads)
        .memlimit_threading(limits.xz_memory)
        .memlimit_stop(limits.xz_memory)
        .decoder()
}

/// Collects the members of the control archive that matter.
#[derive(Default)]
struct ControlParts {
    control: Option<Vec<u8>>,
    conffiles: Vec<u8>,
    triggers: Option<Vec<u8>>,
    scripts: Vec<String>,
}

impl Sink for ControlParts {
    fn entry(&mut self, path: TreePath, _: Meta, node: Node<'_>) -> io::Result<()> {
        let Node::File { size, reader } = node else { return Ok(()) };
        let mut all = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            (&mut *reader).take(size).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match path.as_str() {
            "control" => self.control = Some(all()?),
            "conffiles" => self.conffiles = all()?,
            "triggers" => self.triggers = Some(all()?),
            "config" | "postinst" | "postrm" | "preinst" | "prerm" => self.scripts.push(path.to_string()),
            _ => {}
        }
        Ok(())
    }
}

impl ControlParts {
    fn finish(mut self) -> Result<Control, DebError> {
        let refuse = |reason: String| DebError::Control(reason);
        let text = self.control.ok_or_else(|| refuse("it is missing".to_owned()))?;
        let mut stanzas = Stanzas::new(text.as_slice());
        let stanza = stanzas
            .read()
            .map_err(|e| refuse(e.to_string()))?
            .ok_or_else(|| refuse("it is empty".to_owned()))?;
        if let Some(name) = stanza.repeated() {
            return Err(refuse(format!("the field {name} stands there twice")));
        }
        let need =
            |name: &str| stanza.get(name).ok_or_else(|| refuse(format!("the field {name} is missing")));
        let (package, architecture) = (need("Package")?.to_owned(), need("Architecture")?.to_owned());
        if !is_package_name(&package) {
            return Err(refuse(format!("`{}` is not a package name", package.escape_debug())));
        }
        if !is_architecture_name(&architecture) {
            return Err(refuse(format!("`{}` is not an architecture", architecture.escape_debug())));
        }
        let version = DebVersion::new(need("Version")?).map_err(|e| refuse(e.to_string()))?;
        let fields = stanza.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let utf8 = |what: &str, bytes: Vec<u8>| {
            String::from_utf8(bytes).map_err(|_| refuse(format!("{what} is not UTF-8")))
        };
        let triggers = self.triggers.map(|bytes| utf8("the triggers file", bytes)).transpose()?;
        let mut conffiles = Vec::new();
        for line in utf8("the conffiles file", self.conffiles)?.lines().map(str::trim_end) {
            // deb-conffiles(5): a flag may stand before the path. The one flag there is names files to be removed.
            if line.is_empty() || line.starts_with("remove-on-upgrade ") {
                continue;
            }
            match TreePath::from_archive(line) {
                Ok(Some(path)) if line.starts_with('/') => conffiles.push(path),
                _ => {
                    return Err(refuse(format!(
                        "the conffile `{}` is not an absolute path",
                        line.escape_debug()
                    )));
                }
            }
        }
        self.scripts.sort();
        self.scripts.dedup();
        Ok(Control { package, version, architecture, fields, conffiles, scripts: self.scripts, triggers })
    }
}

#[cfg(test)]
#[path = "deb_tests.rs"]
mod tests;
