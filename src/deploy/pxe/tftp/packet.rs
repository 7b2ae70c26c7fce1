//! TFTP packets: requests by RFC 1350 and 2347, options by RFC 2348 (block size), 2349 (time-out, size) and 7440 (window).

/// The block size of RFC 1350.
pub const BLOCK: usize = 512;
/// What fits into an Ethernet frame beside the headers of IP, UDP and TFTP; larger blocks would travel in fragments, which many
/// firmwares cannot put together.
pub const LARGEST_BLOCK: usize = 1468;
/// Packets on the way at once: more overrun the receive buffers of firmware.
pub const LARGEST_WINDOW: u16 = 16;
/// RFC 2347: a request has at most so many bytes.
const LONGEST: usize = 512;

/// Codes of errors, RFC 1350 and 2347.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// See the text.
    Undefined = 0,
    /// No such name.
    NotFound = 1,
    /// Not allowed.
    Access = 2,
    /// No TFTP.
    Illegal = 4,
    /// An option's value is none.
    Option = 8,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// The name as it was sent, but for what is not UTF-8: each such byte is U+FFFD, which no name that is served has.
    pub name: String,
    /// The block size that was negotiated.
    pub block: Option<usize>,
    /// Whether the client asks for the size.
    pub size: bool,
    /// Seconds to wait for an acknowledgement.
    pub timeout: Option<u8>,
    /// Blocks per acknowledgement.
    pub window: Option<u16>,
}

/// A client's packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// A request to read.
    Read(Read),
    /// All blocks up to this one have come.
    Ack(u16),
    /// The client gives up.
    Error,
}

/// Why a packet is refused: the code and the text of the answer.
pub type Refusal = (Code, &'static str);

/// Reads a client's packet. `Ok(None)` is what gets no answer: the packet of a server, or noise.
///
/// # Errors
/// What the client is to be told.
pub fn parse(bytes: &[u8]) -> Result<Option<Packet>, Refusal> {
    let Some((opcode, rest)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
    match u16::from_be_bytes(*opcode) {
        1 => read(bytes.len(), rest).map(|read| Some(Packet::Read(read))),
        2 => Err((Code::Access, "nothing can be written here")),
        4 => Ok(rest.first_chunk::<2>().map(|number| Packet::Ack(u16::from_be_bytes(*number)))),
        5 => Ok(Some(Packet::Error)),
        _ => Ok(None),
    }
}

fn read(length: usize, rest: &[u8]) -> Result<Read, Refusal> {
    let illegal = (Code::Illegal, "the request is malformed");
    if length > LONGEST {
        return Err(illegal);
    }
    let text = rest.strip_suffix(b"\0").ok_or(illegal)?;
    // No field has to be UTF-8: a name that is not is one that is not here, and an option is one that is not known.
    let mut fields = text.split(|b| *b == 0);
    let name = String::from_utf8_lossy(fields.next().ok_or(illegal)?).into_owned();
    let mode = fields.next().ok_or(illegal)?;
    if !mode.eq_ignore_ascii_case(b"octet") {
        return Err((Code::Undefined, "only the mode octet is served"));
    }
    let mut read = Read { name, block: None, size: false, timeout: None, window: None };
    while let Some(option) = fields.next() {
        // Firmware that sends its whole buffer sends zeros in the end.
        if option.is_empty() {
            break;
        }
        let (option, value) = (option.to_ascii_lowercase(), fields.next().ok_or(illegal)?);
        // Signs and blanks are no digits.
        let number = || {
            let digits = std::str::from_utf8(value).ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()))?;
            digits.parse::<u64>().ok()
        };
        match option.as_slice() {
            b"blksize" => {
                let asked = number().filter(|n| (8..=65_464).contains(n));
                let asked = asked.ok_or((Code::Option, "blksize is from 8 to 65464"))?;
                read.block = Some(usize::try_from(asked).unwrap_or(BLOCK).min(LARGEST_BLOCK));
            }
            b"tsize" => read.size = true,
            b"timeout" => {
                let asked = number().and_then(|n| u8::try_from(n).ok()).filter(|n| *n > 0);
                read.timeout = Some(asked.ok_or((Code::Option, "timeout is from 1 to 255"))?);
            }
            b"windowsize" => {
                let asked = number().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
                let asked = asked.ok_or((Code::Option, "windowsize is from 1 to 65535"))?;
                read.window = Some(asked.min(LARGEST_WINDOW));
            }
            // What is not known is not acknowledged (RFC 2347).
            _ => {}
        }
    }
    Ok(read)
}

/// The acknowledgement of the options of `read`, for a file of `size` bytes; `None` if there are none.
pub fn options(read: &Read, size: u64) -> Option<Vec<u8>> {
    let pairs = [
        ("blksize", read.block.map(|n| n.to_string())),
        ("tsize", read.size.then(|| size.to_string())),
        ("timeout", read.timeout.map(|n| n.to_string())),
        ("windowsize", read.window.map(|n| n.to_string())),
    ];
    let mut bytes = vec![0, 6];
    for (name, value) in pairs {
        let Some(value) = value else { continue };
        bytes.extend(name.as_bytes());
        bytes.push(0);
        bytes.extend(value.as_bytes());
        bytes.push(0);
    }
    (bytes.len() > 2).then_some(bytes)
}

/// An error.
pub fn error((code, text): Refusal) -> Vec<u8> {
    let mut bytes = vec![0, 5, 0, code as u8];
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rrq(text: &str) -> Result<Option<Packet>, Refusal> {
        parse(&[b"\0\x01", text.as_bytes()].concat())
    }

    fn of(text: &str) -> Read {
        match rrq(text).unwrap().unwrap() {
            Packet::Read(read) => read,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_are_negotiated_down_and_answered() {
        let read = of(
            "snponly.efi\x00octet\x00blksize\x008192\x00tsize\x000\x00TIMEOUT\x003\x00windowsize\x0065535\x00multicast\x00\x00",
        );
        assert_eq!((read.name.as_str(), read.block, read.window), ("snponly.efi", Some(1468), Some(16)));
        let answer = options(&read, 173_792).unwrap();
        assert_eq!(answer, b"\0\x06blksize\x001468\0tsize\x00173792\0timeout\x003\0windowsize\x0016\0");
        assert_eq!(options(&of("a\0OCTET\0"), 1), None);
        assert_eq!(of("a\0octet\0blksize\08\0").block, Some(8));
    }

    #[test]
    fn bytes_that_are_no_text_make_no_request_malformed() {
        let of = |bytes: &[u8]| match parse(&[b"\0\x01", bytes].concat()).unwrap().unwrap() {
            Packet::Read(read) => read,
            other => panic!("{other:?}"),
        };
        // Firmware that took option 67 for a C string sends what stands behind it.
        for (name, read) in [
            (&b"snponly.efi\xff"[..], "snponly.efi\u{fffd}"),
            (b"snponly.efi\xff\xff", "snponly.efi\u{fffd}\u{fffd}"),
            (b"snponly.efi<\x09PXEClient", "snponly.efi<\x09PXEClient"),
            (b"\xc3\xa4\xe4", "ä\u{fffd}"),
            (b"", ""),
        ] {
            assert_eq!(of(&[name, b"\0octet\0"].concat()).name, read);
        }
        assert_eq!(of(b"a\0octet\0blksi\xffe\x00512\0blksize\x001024\0").block, Some(1024));
        assert!(of(b"a\0octet\0tsize\0\xff\0").size);
        assert_eq!(of(b"a\0OcTeT\0BLKSIZE\x00512\0\0\0\0\0").block, Some(512));
        assert_eq!(of(b"a\0octet\0\0\0"), of(b"a\0octet\0"));
        assert_eq!(parse(b"\0\x01a\0octet\0blksize\0\xff\0").unwrap_err().0, Code::Option);
        assert_eq!(parse(b"\0\x01a\0\xff\0").unwrap_err().0, Code::Undefined);
        assert_eq!(parse(b"\0\x01a\0\0").unwrap_err().0, Code::Undefined, "no mode");
    }

    #[test]
    fn what_is_no_request_is_refused_with_the_code_of_the_rfc() {
        for (text, code) in [
            ("a\0octet", Code::Illegal),
            ("a\0", Code::Illegal),
            ("", Code::Illegal),
            ("a\0octet\0blksize\0", Code::Illegal),
            ("a\0netascii\0", Code::Undefined),
            ("a\0mail\0", Code::Undefined),
            ("a\x00octet\x00blksize\x000\x00", Code::Option),
            ("a\x00octet\x00blksize\x007\x00", Code::Option),
            ("a\x00octet\x00blksize\x0065535\x00", Code::Option),
            ("a\0octet\0blksize\0-512\0", Code::Option),
            ("a\0octet\0blksize\0+512\0", Code::Option),
            ("a\0octet\0blksize\0\0", Code::Option),
            ("a\x00octet\x00timeout\x000\x00", Code::Option),
            ("a\x00octet\x00timeout\x00256\x00", Code::Option),
            ("a\x00octet\x00windowsize\x000\x00", Code::Option),
            ("a\x00octet\x00windowsize\x0065536\x00", Code::Option),
        ] {
            assert_eq!(rrq(text).unwrap_err().0, code, "{text:?}");
        }
        assert_eq!(rrq(&format!("{}\0octet\0", "a".repeat(600))).unwrap_err().0, Code::Illegal);
        assert_eq!(parse(b"\0\x02a\0octet\0").unwrap_err().0, Code::Access);
        assert_eq!(parse(b"\0\x03\0\x01data"), Ok(None));
        assert_eq!(parse(b"\0"), Ok(None));
        assert_eq!(parse(b"\0\x04\0"), Ok(None));
        assert_eq!(parse(b"\0\x04\x01\x02"), Ok(Some(Packet::Ack(258))));
    }

    proptest! {
        #[test]
        fn nothing_makes_the_reader_panic_and_blocks_are_never_too_large(
            bytes in proptest::collection::vec(any::<u8>(), 0..600), value in "[0-9]{0,24}",
        ) {
            let _ = parse(&bytes);
            if let Ok(Some(Packet::Read(read))) = rrq(&format!("a\0octet\0blksize\0{value}\0")) {
                let block = read.block.unwrap();
                assert!((8..=LARGEST_BLOCK).contains(&block));
            }
        }
    }
}
