//! The server's side of NBD: fixed newstyle negotiation and simple replies.
//!
//! Specification: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>. All numbers are big-endian. Whatever a client
//! sends that the specification forbids ends the connection; nothing it sends makes the server use more memory than one
//! request of [`LONGEST`] bytes.

use std::io::{BufReader, Error, ErrorKind, Read, Result, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;

use super::Refusal;

/// What is served.
pub(super) trait Disk {
    /// Bytes.
    fn size(&self) -> u64;
    /// The smallest unit of a request in bytes.
    fn block_size(&self) -> u32;
    /// `NBD_CMD_READ`; the range lies in the disk, here and below.
    fn read(&self, offset: u64, into: &mut [u8]) -> std::result::Result<(), Refusal>;
    /// `NBD_CMD_WRITE`
    fn write(&self, offset: u64, data: &[u8], fua: bool) -> std::result::Result<(), Refusal>;
    /// `NBD_CMD_TRIM` and `NBD_CMD_WRITE_ZEROES`
    fn zero(&self, range: Range<u64>, fua: bool) -> std::result::Result<(), Refusal>;
    /// `NBD_CMD_FLUSH`
    fn flush(&self) -> std::result::Result<(), Refusal>;
}

const INIT: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
const OPTION: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

/// Handshake flags: fixed newstyle, and no padding after the export's size if the client agrees.
const HANDSHAKE: u16 = 1 | NO_ZEROES;
const NO_ZEROES: u16 = 2;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 1 << 31 | 1;
const REP_ERR_INVALID: u32 = 1 << 31 | 3;
const REP_ERR_UNKNOWN: u32 = 1 << 31 | 6;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flags: has flags, flush, FUA, trim, write zeroes.
const TRANSMISSION: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_WRITE_ZEROES: u16 = 6;

const FLAG_FUA: u16 = 1;
/// Zeroes must take space: a hint about speed later on, which a sparse file has no use for.
const FLAG_NO_HOLE: u16 = 2;

const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// The largest read or write: what the specification lets clients assume.
const LONGEST: u32 = 32 << 20;
/// The largest option: a name of 4096 bytes and a list of every kind of information fit.
const LONGEST_OPTION: u32 = 64 << 10;
/// A buffer beyond this is given back after the request.
const BUFFER_KEPT: usize = 2 << 20;
/// Cookie and error stand before the data of a reply.
const REPLY_HEADER: usize = 16;

/// Serves `disk` to one client until it leaves.
///
/// # Errors
/// The socket broke, or the client broke the protocol.
pub(super) fn serve(stream: &mut UnixStream, disk: &impl Disk) -> Result<()> {
    let mut reader = BufReader::with_capacity(64 << 10, stream.try_clone()?);
    if negotiate(&mut reader, stream, disk)? { transmit(&mut reader, stream, disk) } else { Ok(()) }
}

/// True when the client wants to go on to transmission.
fn negotiate(reader: &mut impl Read, writer: &mut impl Write, disk: &impl Disk) -> Result<bool> {
    writer.write_all(&message(&[&INIT.to_be_bytes(), &OPTION.to_be_bytes(), &HANDSHAKE.to_be_bytes()]))?;
    let flags = u32::from_be_bytes(take(reader)?);
    if flags & !u32::from(HANDSHAKE) != 0 {
        return broken(format!("client flags {flags:#x}"));
    }
    loop {
        if u64::from_be_bytes(take(reader)?) != OPTION {
            return broken("no option where one must be");
        }
        let (option, length) = (u32::from_be_bytes(take(reader)?), u32::from_be_bytes(take(reader)?));
        if length > LONGEST_OPTION {
            return broken(format!("an option of {length} bytes"));
        }
        let mut data = Vec::new();
        reader.take(u64::from(length)).read_to_end(&mut data)?;
        if data.len() != length as usize {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut reply = |kind: u32, data: &[u8]| {
            let length = u32::try_from(data.len()).unwrap_or(0);
            writer.write_all(&message(&[
                &OPTION_REPLY.to_be_bytes(),
                &option.to_be_bytes(),
                &kind.to_be_bytes(),
                &length.to_be_bytes(),
                data,
            ]))
        };
        match option {
            OPT_EXPORT_NAME if data.is_empty() => {
                let padding = if flags & u32::from(NO_ZEROES) == 0 { 124 } else { 0 };
                let (size, padding) = (disk.size(), vec![0; padding]);
                writer.write_all(&message(&[&size.to_be_bytes(), &TRANSMISSION.to_be_bytes(), &padding]))?;
                return Ok(true);
            }
            OPT_EXPORT_NAME => return broken("another export's name"),
            OPT_ABORT => {
                // The client need not wait for the answer.
                let _ = reply(REP_ACK, &[]);
                return Ok(false);
            }
            OPT_LIST if data.is_empty() => {
                reply(REP_SERVER, &0_u32.to_be_bytes())?;
                reply(REP_ACK, &[])?;
            }
            OPT_LIST => reply(REP_ERR_INVALID, b"a list takes no data")?,
            OPT_INFO | OPT_GO => match export_name(&data) {
                None => reply(REP_ERR_INVALID, b"the option's lengths do not fit")?,
                Some([]) => {
                    let (size, sizes) = (disk.size(), [disk.block_size(), 4096, LONGEST]);
                    let sizes: Vec<u8> = sizes.into_iter().flat_map(u32::to_be_bytes).collect();
                    let about =
                        [&INFO_EXPORT.to_be_bytes(), &size.to_be_bytes()[..], &TRANSMISSION.to_be_bytes()];
                    reply(REP_INFO, &message(&about))?;
                    reply(REP_INFO, &message(&[&INFO_BLOCK_SIZE.to_be_bytes(), &sizes]))?;
                    reply(REP_ACK, &[])?;
                    if option == OPT_GO {
                        return Ok(true);
                    }
                }
                Some(_) => reply(REP_ERR_UNKNOWN, b"the export has an empty name")?,
            },
            _ => reply(REP_ERR_UNSUP, &[])?,
        }
    }
}

/// The name in the data of `NBD_OPT_INFO` and `NBD_OPT_GO`: its length, itself, the count of the kinds of information asked for, and
/// them. The kinds are passed over: the client gets what there is.
fn export_name(data: &[u8]) -> Option<&[u8]> {
    let (length, rest) = data.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let (count, kinds) = rest.split_first_chunk()?;
    (kinds.len() == 2 * usize::from(u16::from_be_bytes(*count))).then_some(name)
}

fn transmit(reader: &mut impl Read, writer: &mut impl Write, disk: &impl Disk) -> Result<()> {
    // Holds a reply's header and behind it the data of a read, so that both are sent at once; or the data of a write.
    let mut buffer = Vec::new();
    loop {
        if u32::from_be_bytes(take(reader)?) != REQUEST {
            return broken("no request where one must be");
        }
        let flags = u16::from_be_bytes(take(reader)?);
        let command = u16::from_be_bytes(take(reader)?);
        let cookie: [u8; 8] = take(reader)?;
        let offset = u64::from_be_bytes(take(reader)?);
        let length = u32::from_be_bytes(take(reader)?);
        let range = offset..offset.saturating_add(u64::from(length));
        let inside = range.end <= disk.size();
        let data = if matches!(command, CMD_READ | CMD_WRITE) { length } else { 0 };
        if data > LONGEST {
            return broken(format!("a request of {length} bytes"));
        }
        let needed = REPLY_HEADER + data as usize;
        if buffer.len() < needed {
            buffer.resize(needed, 0);
        }
        let (header, space) = buffer.split_at_mut(REPLY_HEADER);
        let space = space.get_mut(..data as usize).unwrap_or_default();
        if command == CMD_WRITE {
            reader.read_exact(space)?;
        }
        let (fua, known) = (flags & FLAG_FUA != 0, FLAG_FUA | FLAG_NO_HOLE);
        let verdict = match command {
            CMD_DISC => return Ok(()),
            _ if flags & !known != 0 => Err(EINVAL),
            CMD_READ if inside => disk.read(offset, space).map_err(number),
            CMD_WRITE if inside => disk.write(offset, space, fua).map_err(number),
            CMD_TRIM | CMD_WRITE_ZEROES if inside => disk.zero(range, fua).map_err(number),
            CMD_FLUSH => disk.flush().map_err(number),
            CMD_WRITE | CMD_WRITE_ZEROES => Err(ENOSPC),
            _ => Err(EINVAL),
        };
        let error = verdict.err().unwrap_or(0);
        header.copy_from_slice(&message(&[&REPLY.to_be_bytes(), &error.to_be_bytes(), &cookie]));
        let sent = if command == CMD_READ && error == 0 { needed } else { REPLY_HEADER };
        writer.write_all(buffer.get(..sent).unwrap_or_default())?;
        if buffer.len() > BUFFER_KEPT {
            buffer = Vec::new();
        }
    }
}

fn number(refusal: Refusal) -> u32 {
    match refusal {
        Refusal::Io => EIO,
        Refusal::NoSpace => ENOSPC,
    }
}

fn message(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn take<const N: usize>(reader: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn broken<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidData, what.into()))
}
