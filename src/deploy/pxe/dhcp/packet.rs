//! DHCP packets (RFC 2131, options by RFC 2132, 3396 and 4578), read with every length checked and written with nothing left open.
//!
//! ```text
//! 0 op, htype, hlen, hops    12 ciaddr    28 chaddr (16)    108 file (128)
//! 4 xid                      16 yiaddr    44 sname (64)     236 cookie 63 82 53 63
//! 8 secs, flags              20 siaddr, 24 giaddr           240 options: code, length, bytes; 0 pads, 255 ends
//! ```

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::scenario::spec::Mac;

/// Bytes before the options, cookie included.
const FIXED: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// What RFC 951 promised of a message; some clients drop shorter ones.
const LEAST: usize = 300;
/// No client sends more; RFC 2131 asks for 576 only.
const LONGEST: usize = 4096;

/// Codes of options.
pub mod option {
    #![expect(missing_docs, reason = "the names are those of the RFCs")]
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const DOMAIN: u8 = 15;
    pub const NTP: u8 = 42;
    pub const VENDOR: u8 = 43;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const PARAMETERS: u8 = 55;
    pub const CLASS: u8 = 60;
    pub const TFTP_SERVER: u8 = 66;
    pub const BOOT_FILE: u8 = 67;
    pub const USER_CLASS: u8 = 77;
    pub const RELAY: u8 = 82;
    pub const ARCH: u8 = 93;
    pub const UUID: u8 = 97;
    /// iPXE's own options, which nobody else sends.
    pub const IPXE: u8 = 175;
}

/// Option 53.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A client looks for servers.
    Discover,
    /// An answer to it.
    Offer,
    /// A client takes an offer, or asks for its address again.
    Request,
    /// The address is in use by another.
    Decline,
    /// Granted.
    Ack,
    /// Refused.
    Nak,
    /// The address is given back.
    Release,
    /// A client that has an address asks for options.
    Inform,
}

impl Message {
    fn from_code(code: u8) -> Option<Self> {
        use Message::{Ack, Decline, Discover, Inform, Nak, Offer, Release, Request};
        let all = [Discover, Offer, Request, Decline, Ack, Nak, Release, Inform];
        all.get(usize::from(code).checked_sub(1)?).copied()
    }
}

/// A client's packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it is.
    pub message: Message,
    /// The client's hardware address.
    pub mac: Mac,
    /// Relays that it went through.
    pub hops: u8,
    /// By which the client knows the answer.
    pub xid: u32,
    /// The flags as they came; the highest bit asks for a broadcast.
    pub flags: u16,
    /// The address that the client has, or 0.0.0.0.
    pub ciaddr: Ipv4Addr,
    /// The relay that passed it on, or 0.0.0.0.
    pub giaddr: Ipv4Addr,
    options: BTreeMap<u8, Vec<u8>>,
}

/// Why bytes are no request of a client; such packets are dropped without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

impl Request {
    /// Reads a packet. An option that comes several times is one whose parts are joined (RFC 3396).
    ///
    /// # Errors
    /// Anything that a client of Ethernet would not send: too short or too long, an answer, another kind of hardware, no cookie, options
    /// that are longer than the packet, no message type.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() < FIXED {
            return Err(Malformed("it is shorter than the fixed part"));
        }
        if bytes.len() > LONGEST {
            return Err(Malformed("it is longer than any client's"));
        }
        if bytes[0] != 1 {
            return Err(Malformed("it is no request"));
        }
        if bytes[1] != 1 || bytes[2] != 6 {
            return Err(Malformed("it does not come from Ethernet"));
        }
        if bytes[236..FIXED] != COOKIE {
            return Err(Malformed("it has not the cookie of DHCP"));
        }
        let mut chaddr = [0; 6];
        chaddr.copy_from_slice(&bytes[28..34]);
        let mac = mac(chaddr).ok_or(Malformed("its hardware address is that of no card"))?;
        let mut options = BTreeMap::new();
        collect(&bytes[FIXED..], &mut options)?;
        // The fields for names may hold options, too (RFC 2132, 9.3), in this order (RFC 3396, 5).
        let overload = options.get(&option::OVERLOAD).and_then(|o: &Vec<u8>| o.first().copied()).unwrap_or(0);
        if overload & 1 != 0 {
            collect(&bytes[108..236], &mut options)?;
        }
        if overload & 2 != 0 {
            collect(&bytes[44..108], &mut options)?;
        }
        let message = match options.get(&option::MESSAGE_TYPE).map(Vec::as_slice) {
            Some([code]) => Message::from_code(*code).ok_or(Malformed("its message type is unknown"))?,
            _ => return Err(Malformed("it has no message type")),
        };
        let address = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
        Ok(Request {
            message,
            mac,
            hops: bytes[3],
            xid: u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            flags: u16::from_be_bytes([bytes[10], bytes[11]]),
            ciaddr: address(12),
            giaddr: address(24),
            options,
        })
    }

    /// An option's bytes.
    pub fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.get(&code).map(Vec::as_slice)
    }

    /// An option that is one address.
    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = self.option(code)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    }

    /// Whether the client asks for this option.
    pub fn asks_for(&self, code: u8) -> bool {
        self.option(option::PARAMETERS).is_some_and(|list| list.contains(&code))
    }

    /// The kind of machine and firmware, the first that the client names (RFC 4578, 2.1). Firmware that is older than that option names
    /// it in its class alone: `PXEClient:Arch:00007:UNDI:003016` (PXE 2.1, 2.2.3).
    pub fn arch(&self) -> Option<u16> {
        if let Some([high, low, ..]) = self.option(option::ARCH) {
            return Some(u16::from_be_bytes([*high, *low]));
        }
        let class = std::str::from_utf8(self.option(option::CLASS)?).ok()?;
        let digits =
            class.strip_prefix("PXEClient:Arch:").or_else(|| class.strip_prefix("HTTPClient:Arch:"))?;
        digits.get(..5).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
    }

    /// The machine's UUID as SMBIOS and people write it (RFC 4578, 2.3: type 0, then 16 bytes, the first fields in the order of PCs).
    pub fn uuid(&self) -> Option<uuid::Uuid> {
        let bytes: [u8; 17] = self.option(option::UUID)?.try_into().ok()?;
        let (kind, uuid) = bytes.split_first()?;
        let uuid: [u8; 16] = uuid.try_into().ok()?;
        (*kind == 0).then(|| uuid::Uuid::from_bytes_le(uuid))
    }

    /// The vendor class as text fit for a terminal, at most 64 characters.
    pub fn class(&self) -> String {
        let bytes = self.option(option::CLASS).unwrap_or_default();
        bytes.iter().map(|b| if (b' '..=b'~').contains(b) { char::from(*b) } else { '.' }).take(64).collect()
    }

    /// Whether iPXE sent it, which wants a script and no boot program.
    pub fn is_ipxe(&self) -> bool {
        let user_class = self.option(option::USER_CLASS).unwrap_or_default();
        // Plain, or behind its length as RFC 3004 has it.
        user_class == b"iPXE" || user_class == b"\x04iPXE" || self.option(option::IPXE).is_some()
    }
}

/// The address of a card, if these bytes are one.
pub fn mac(bytes: [u8; 6]) -> Option<Mac> {
    let text: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    text.join(":").parse().ok()
}

fn collect(field: &[u8], options: &mut BTreeMap<u8, Vec<u8>>) -> Result<(), Malformed> {
    let mut at = 0;
    while let Some(&code) = field.get(at) {
        at += 1;
        match code {
            0 => continue,
            255 => break,
            _ => {}
        }
        let short = Malformed("an option is longer than the packet");
        let length = usize::from(*field.get(at).ok_or(short)?);
        let bytes = field.get(at + 1..at + 1 + length).ok_or(short)?;
        options.entry(code).or_default().extend_from_slice(bytes);
        at += 1 + length;
    }
    Ok(())
}

/// A server's packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    message: Message,
    yiaddr: Ipv4Addr,
    siaddr: Ipv4Addr,
    file: String,
    options: Vec<(u8, Vec<u8>)>,
}

impl Reply {
    /// An answer that gives nothing yet.
    pub fn new(message: Message) -> Self {
        Reply {
            message,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            file: String::new(),
            options: Vec::new(),
        }
    }

    /// The client gets this address.
    #[must_use]
    pub fn your_address(mut self, address: Ipv4Addr) -> Self {
        self.yiaddr = address;
        self
    }

    /// The server of the boot file.
    #[must_use]
    pub fn next_server(mut self, address: Ipv4Addr) -> Self {
        self.siaddr = address;
        self
    }

    /// The boot file, in its own field; one that is too long for it is left out there.
    #[must_use]
    pub fn file(mut self, name: &str) -> Self {
        if name.len() < 128 {
            name.clone_into(&mut self.file);
        }
        self
    }

    /// Adds an option of up to 255 bytes; longer or empty ones are left out, since no client could read them.
    #[must_use]
    pub fn option(mut self, code: u8, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        if !bytes.is_empty() && bytes.len() <= 255 {
            self.options.push((code, bytes.to_vec()));
        }
        self
    }

    /// Adds an option of text that ends with a NUL, as firmware wants names: RFC 2132 (2) asks clients to do without it and not to mind
    /// it, but old UEFI firmware and ROMs of Intel's cards copy the bytes as a C string and then ask TFTP for `snponly.efi\xff…`. dnsmasq
    /// does the same for options 66 and 67. iPXE and UEFI's HTTP Boot end the text at the NUL.
    #[must_use]
    pub fn text(self, code: u8, text: &str) -> Self {
        let bytes = if text.is_empty() { Vec::new() } else { [text.as_bytes(), b"\0"].concat() };
        self.option(code, bytes)
    }

    /// Adds an option with addresses, if there are any.
    #[must_use]
    pub fn addresses(self, code: u8, addresses: &[Ipv4Addr]) -> Self {
        let bytes: Vec<u8> = addresses.iter().take(8).flat_map(|address| address.octets()).collect();
        self.option(code, bytes)
    }

    /// The address that the client gets.
    pub fn yiaddr(&self) -> Ipv4Addr {
        self.yiaddr
    }

    /// What it is.
    pub fn message(&self) -> Message {
        self.message
    }

    /// The bytes of an option.
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(c, _)| *c == code).map(|(_, bytes)| bytes.as_slice())
    }

    /// The boot file.
    pub fn boot_file(&self) -> &str {
        &self.file
    }

    /// The packet for the client of `request`. What the relay added is given back to it, last (RFC 3046, 2.2).
    pub fn bytes(&self, request: &Request) -> Vec<u8> {
        let mut out = vec![0; FIXED];
        out[..4].copy_from_slice(&[2, 1, 6, 0]);
        out[4..8].copy_from_slice(&request.xid.to_be_bytes());
        out[10..12].copy_from_slice(&request.flags.to_be_bytes());
        out[12..16].copy_from_slice(&request.ciaddr.octets());
        out[16..20].copy_from_slice(&self.yiaddr.octets());
        out[20..24].copy_from_slice(&self.siaddr.octets());
        out[24..28].copy_from_slice(&request.giaddr.octets());
        out[28..34].copy_from_slice(&request.mac.bytes());
        out[108..108 + self.file.len()].copy_from_slice(self.file.as_bytes());
        out[236..FIXED].copy_from_slice(&COOKIE);
        out.extend([option::MESSAGE_TYPE, 1, self.message as u8 + 1]);
        let relay = request.option(option::RELAY).filter(|bytes| bytes.len() <= 255);
        let relay = relay.map(|bytes| (option::RELAY, bytes.to_vec()));
        for (code, bytes) in self.options.iter().chain(&relay) {
            out.extend([*code, bytes.len() as u8]);
            out.extend(bytes);
        }
        out.push(255);
        out.resize(out.len().max(LEAST), 0);
        out
    }
}

#[cfg(test)]
pub(in super::super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A request with these options behind the message type.
    pub(in super::super) fn packet(message: u8, mac: [u8; 6], options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = vec![0; FIXED];
        out[..4].copy_from_slice(&[1, 1, 6, 0]);
        out[4..8].copy_from_slice(&[0xDE, 0xAD, 0xBE, 0xEF]);
        out[28..34].copy_from_slice(&mac);
        out[236..FIXED].copy_from_slice(&COOKIE);
        out.extend([53, 1, message]);
        for (code, bytes) in options {
            out.extend([*code, bytes.len() as u8]);
            out.extend(*bytes);
        }
        out.push(255);
        out
    }

    const CARD: [u8; 6] = [0xbc, 0x24, 0x11, 0, 0, 0x11];

    #[test]
    fn a_discover_of_firmware_is_read() {
        let mut uuid = vec![0];
        uuid.extend(uuid::uuid!("6f0b4b4e-2f0c-4a7e-9a54-0d7a1c3b9e21").to_bytes_le());
        let bytes = packet(
            1,
            CARD,
            &[
                (60, b"PXEClient:Arch:00007:UNDI:003016"),
                (93, &[0, 7]),
                (97, &uuid),
                (55, &[1, 3, 67]),
                (50, &[192, 168, 50, 111]),
            ],
        );
        let request = Request::parse(&bytes).unwrap();
        assert_eq!((request.message, request.xid, request.arch()), (Message::Discover, 0xDEAD_BEEF, Some(7)));
        assert_eq!(request.mac.to_string(), "bc:24:11:00:00:11");
        assert_eq!(request.uuid().unwrap().to_string(), "6f0b4b4e-2f0c-4a7e-9a54-0d7a1c3b9e21");
        assert!(request.asks_for(67) && !request.asks_for(66) && !request.is_ipxe());
        assert_eq!(request.address(50), Some(Ipv4Addr::new(192, 168, 50, 111)));
        assert_eq!(request.class(), "PXEClient:Arch:00007:UNDI:003016");
        assert!(Request::parse(&packet(1, CARD, &[(77, b"iPXE")])).unwrap().is_ipxe());
    }

    #[test]
    fn firmware_without_option_93_names_its_kind_in_its_class() {
        for (options, arch) in [
            (&[(60, &b"PXEClient:Arch:00000:UNDI:002001"[..])][..], Some(0)),
            (&[(60, b"PXEClient:Arch:00007")], Some(7)),
            (&[(60, b"HTTPClient:Arch:00016:UNDI:003001")], Some(16)),
            (&[(60, b"PXEClient:Arch:00000"), (93, &[0, 7])], Some(7)),
            (&[(60, b"PXEClient")], None),
            (&[(60, b"PXEClient:Arch:7")], None),
            (&[(60, b"PXEClient:Arch:+0007")], None),
            (&[(60, b"PXEClient:Arch:99999")], None),
            (&[(60, b"PXEClient:Arch:0000\xff"), (93, &[0])], None),
        ] {
            assert_eq!(Request::parse(&packet(1, CARD, options)).unwrap().arch(), arch, "{options:?}");
        }
    }

    #[test]
    fn names_in_options_end_with_a_nul_and_no_name_is_no_option() {
        let request = Request::parse(&packet(1, CARD, &[])).unwrap();
        let reply = Reply::new(Message::Ack).text(66, "192.168.50.2").text(67, "").text(67, "snponly.efi");
        let bytes = reply.bytes(&request);
        let options = b"\x35\x01\x05\x42\x0d192.168.50.2\0\x43\x0csnponly.efi\0\xff";
        assert_eq!(&bytes[240..240 + options.len()], options);
        assert_eq!(Reply::new(Message::Ack).text(67, &"x".repeat(255)).get(67), None);
        assert_eq!(Reply::new(Message::Ack).text(67, &"x".repeat(254)).get(67).unwrap().len(), 255);
    }

    #[test]
    fn options_go_on_in_the_fields_of_names_and_in_parts() {
        let mut bytes = packet(1, CARD, &[(60, b"PXE"), (52, &[3]), (60, b"Cli")]);
        bytes[108..113].copy_from_slice(&[60, 2, b'e', b'n', 255]);
        bytes[44..48].copy_from_slice(&[60, 1, b't', 255]);
        assert_eq!(Request::parse(&bytes).unwrap().class(), "PXEClient");
        // A field that says that options go on in itself is read once.
        bytes[108..112].copy_from_slice(&[52, 1, 3, 255]);
        assert!(Request::parse(&bytes).is_ok());
        bytes[44..46].copy_from_slice(&[60, 200]);
        assert_eq!(Request::parse(&bytes), Err(Malformed("an option is longer than the packet")));
    }

    #[test]
    fn what_no_client_would_send_is_dropped() {
        let good = packet(1, CARD, &[]);
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            Request::parse(&bytes).unwrap_err().0
        };
        assert!(refused(&|b| b.truncate(239)).contains("shorter"));
        assert!(refused(&|b| b.resize(5000, 0)).contains("longer than any"));
        assert!(refused(&|b| b[0] = 2).contains("no request"));
        assert!(refused(&|b| b[2] = 255).contains("Ethernet"));
        assert!(refused(&|b| b[236] = 0).contains("cookie"));
        assert!(refused(&|b| b[28] = 0xFF).contains("no card"));
        assert!(refused(&|b| b[242] = 99).contains("message type"));
        assert!(refused(&|b| b.truncate(242)).contains("longer than the packet"));
        assert!(refused(&|b| b.truncate(241)).contains("longer than the packet"));
        assert!(refused(&|b| b.truncate(240)).contains("no message type"));
        // Without an end the packet's own end is one.
        let mut open = good.clone();
        open.pop();
        assert!(Request::parse(&open).is_ok());
    }

    #[test]
    fn a_reply_has_its_fields_in_their_places_and_its_relay_in_the_end() {
        let mut bytes = packet(1, CARD, &[(82, &[1, 2, 3, 4])]);
        bytes[24..28].copy_from_slice(&[192, 168, 3, 1]);
        let request = Request::parse(&bytes).unwrap();
        let reply = Reply::new(Message::Offer)
            .your_address(Ipv4Addr::new(192, 168, 3, 100))
            .next_server(Ipv4Addr::new(192, 168, 50, 2))
            .file("snponly.efi")
            .option(60, "PXEClient")
            .option(67, "x".repeat(256));
        let bytes = reply.bytes(&request);
        assert_eq!(bytes.len(), LEAST);
        assert_eq!(bytes[..8], [2, 1, 6, 0, 0xDE, 0xAD, 0xBE, 0xEF]);
        assert_eq!(bytes[16..24], [192, 168, 3, 100, 192, 168, 50, 2]);
        assert_eq!(&bytes[108..120], b"snponly.efi\0");
        let options = b"\x35\x01\x02\x3c\x09PXEClient\x52\x04\x01\x02\x03\x04\xff";
        assert_eq!(&bytes[240..240 + options.len()], options);
    }

    proptest! {
        #[test]
        fn nothing_makes_the_reader_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            options in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let _ = Request::parse(&bytes);
            let mut packet = packet(1, CARD, &[]);
            packet.truncate(243);
            packet.extend(&options);
            if let Ok(request) = Request::parse(&packet) {
                let _ = (request.class(), request.uuid(), request.arch(), request.is_ipxe());
                assert!(Reply::new(Message::Offer).bytes(&request).len() >= LEAST);
            }
        }
    }
}
