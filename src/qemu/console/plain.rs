//! Terminal output as plain text: control sequences are left out, also when they come in pieces.

/// Where in a control sequence the next byte stands (ECMA-48).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Text,
    /// After `ESC`.
    Escape,
    /// After `ESC [`: parameters and intermediates are 0x20..=0x3f, the first byte beyond them ends it.
    Control,
    /// In an operating system command or another string; `BEL` or `ESC \` ends it, and a line end too, for it was no string then.
    String,
    /// After an `ESC` in a string.
    StringEscape,
}

/// Leaves out control sequences and control characters but line feeds and tabs.
#[derive(Debug, Default)]
pub(super) struct Plain(Place);

impl Plain {
    /// Appends what of `bytes` is text to `out`.
    pub(super) fn add(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for &byte in bytes {
            self.0 = match (self.0, byte) {
                (Place::Text | Place::String | Place::StringEscape, b'\n') => {
                    out.push(byte);
                    Place::Text
                }
                (Place::Text, b'\t' | 0x20..=0x7e | 0x80..) => {
                    out.push(byte);
                    Place::Text
                }
                (Place::Text | Place::Escape | Place::Control, 0x1b) => Place::Escape,
                (Place::Text, _) => Place::Text,
                (Place::Escape, b'[') => Place::Control,
                (Place::Escape, b']' | b'P' | b'X' | b'^' | b'_') => Place::String,
                (Place::Escape, 0x20..=0x2f) => Place::Escape,
                (Place::Control, 0x20..=0x3f) => Place::Control,
                (Place::Escape | Place::Control, _) => Place::Text,
                (Place::String, 0x07) => Place::Text,
                (Place::String | Place::StringEscape, 0x1b) => Place::StringEscape,
                (Place::StringEscape, b'\\') => Place::Text,
                (Place::String | Place::StringEscape, _) => Place::String,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCREEN: &[u8] = b"\x1b[2J\x1b[01;01H\x1b[=3hfirst\r\n\x1b[0;1;31msec\x1b[0mond\x07\n\
        \x1b]3008;start=1\x1b\\third\x1b]0;title\x07 is\x1b(B here\n\x1b]no end\nlast\tone \xc3\xa4\x1b[";

    #[test]
    fn sequences_vanish_wherever_the_bytes_are_cut() {
        for cut in 0..SCREEN.len() {
            let (mut plain, mut out) = (Plain::default(), Vec::new());
            plain.add(&SCREEN[..cut], &mut out);
            plain.add(&SCREEN[cut..], &mut out);
            assert_eq!(
                String::from_utf8(out).unwrap(),
                "first\nsecond\nthird is here\n\nlast\tone ä",
                "{cut}"
            );
        }
    }
}
