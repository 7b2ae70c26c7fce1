//! Frames as QEMU's `stream` network back end sends them over a socket, and the part of an Ethernet header that a switch reads.
//!
//! On the wire each frame follows its length as 32 bits big-endian (QEMU, net/stream_data.c `net_stream_data_receive`). This back
//! end has no virtio-net header, so QEMU takes checksum and segmentation offload from the guest (hw/net/virtio-net.c
//! `virtio_net_get_features`) and cuts up itself what e1000e and igb segment: a frame is never longer than the guest's MTU allows.

/// The longest frame in bytes: QEMU ends the connection when it gets a longer one (`NET_BUFSIZE` of its include/net/net.h, 64 KiB
/// of segmented data and 4 KiB for headers).
pub const MAX_FRAME: usize = 65536 + 4096;

/// The bytes of the length that precedes a frame.
pub(super) const PREFIX: usize = 4;

/// 802.1Q and 802.1ad: the types that announce a VLAN tag.
const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];

/// A length that no frame can have; what follows on the connection cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes was announced, the limit is {MAX_FRAME}")]
pub(super) struct Oversize(u32);

/// The first frame in `bytes`; `None` when more bytes are needed. It used up its length and [`PREFIX`].
///
/// # Errors
/// The length is beyond [`MAX_FRAME`].
pub(super) fn first(bytes: &[u8]) -> Result<Option<&[u8]>, Oversize> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else { return Ok(None) };
    let length = u32::from_be_bytes(*prefix);
    match usize::try_from(length) {
        Ok(length) if length <= MAX_FRAME => Ok(rest.get(..length)),
        _ => Err(Oversize(length)),
    }
}

/// Appends `frame` with its length to `out`. `frame` has at most [`MAX_FRAME`] bytes.
pub(super) fn append(out: &mut Vec<u8>, frame: &[u8]) {
    debug_assert!(frame.len() <= MAX_FRAME);
    // The limit is far below 4 GiB.
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(frame);
}

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// What a switch reads of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Whom it is for.
    pub(super) to: Mac,
    /// Whom it is from.
    pub(super) from: Mac,
    /// The VLAN of the outer tag; 0 without one, and for a tag that carries only a priority.
    pub(super) vlan: u16,
}

impl Header {
    /// Reads the start of `frame`. `None` for what is no Ethernet frame: too short, or from nobody or from a group (a bridge drops
    /// these too: Linux, net/bridge/br_input.c `br_handle_frame`).
    pub(super) fn read(frame: &[u8]) -> Option<Header> {
        let (to, rest) = frame.split_first_chunk::<6>()?;
        let (from, rest) = rest.split_first_chunk::<6>()?;
        let (kind, rest) = rest.split_first_chunk::<2>()?;
        if is_group(from) || *from == [0; 6] {
            return None;
        }
        let tag = if TAGS.contains(kind) { rest.first_chunk::<2>() } else { None };
        let vlan = tag.map_or(0, |tag| u16::from_be_bytes(*tag) & 0x0fff);
        Some(Header { to: *to, from: *from, vlan })
    }

    /// For many: broadcast or multicast.
    pub(super) fn is_flooded(&self) -> bool {
        is_group(&self.to)
    }

    /// For the neighbour on the cable alone, such as a pause, LACP or LLDP: 01-80-C2-00-00-00 to -0F are never relayed (IEEE
    /// 802.1Q-2018, table 8-1).
    pub(super) fn is_link_local(&self) -> bool {
        matches!(self.to, [0x01, 0x80, 0xc2, 0, 0, 0..=0x0f])
    }
}

/// The I/G bit (IEEE 802-2014, 8.2.2): set in addresses of groups.
fn is_group(mac: &Mac) -> bool {
    mac[0] & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_header_has_the_vlan_of_the_outer_tag() {
        let read = |tail: &[u8]| {
            let frame = [&[0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2], tail].concat();
            Header::read(&frame).map(|header| header.vlan)
        };
        assert_eq!(read(&[0x08, 0x00]), Some(0));
        assert_eq!(read(&[0x81, 0x00, 0xe0, 0x07, 0x08, 0x00]), Some(7));
        assert_eq!(read(&[0x81, 0x00, 0xa0, 0x00, 0x08, 0x00]), Some(0), "a priority alone is no VLAN");
        assert_eq!(read(&[0x88, 0xa8, 0x0f, 0xfe, 0x81, 0x00, 0, 5]), Some(4094));
        assert_eq!(read(&[0x81, 0x00]), Some(0), "a tag that is cut off");
        assert_eq!(read(&[0x08]), None);
    }

    #[test]
    fn nobody_and_a_group_send_nothing() {
        for from in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            let frame = [&[0x52, 0x54, 0, 0, 0, 1], &from[..], &[8, 0]].concat();
            assert_eq!(Header::read(&frame), None);
        }
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_and_a_part_is_no_frame(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            cut in 0usize..40,
        ) {
            let mut wire = Vec::new();
            for frame in &frames {
                append(&mut wire, frame);
            }
            let mut rest = &wire[..];
            for frame in &frames {
                let found = first(rest).unwrap().unwrap();
                prop_assert_eq!(found, &frame[..]);
                let all = PREFIX + found.len();
                prop_assert_eq!(first(&rest[..all.saturating_sub(1 + cut)]), Ok(None));
                rest = &rest[all..];
            }
            prop_assert_eq!(first(rest), Ok(None));
        }

        #[test]
        fn any_bytes_are_a_frame_a_part_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            match first(&bytes) {
                Ok(Some(frame)) => prop_assert!(frame.len() + PREFIX <= bytes.len()),
                Ok(None) => {}
                Err(Oversize(length)) => prop_assert!(length as usize > MAX_FRAME),
            }
            let _ = Header::read(&bytes);
        }
    }
}
