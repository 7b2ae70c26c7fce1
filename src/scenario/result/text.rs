//! Text that guests wrote, made fit to be kept.

/// At most so many bytes of an output are kept in a [`super::Run`].
pub const EXCERPT: usize = 8 << 10;

/// An output as text: bytes that are no UTF-8 become U+FFFD, and of a long one only the first quarter and the last three
/// quarters of [`EXCERPT`] bytes are kept, with a line between them that says so.
pub fn excerpt(bytes: &[u8]) -> String {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if bytes.len() <= EXCERPT {
        return lossy(bytes);
    }
    let (head, rest) = bytes.split_at(EXCERPT / 4);
    let (left_out, tail) = rest.split_at(bytes.len() - EXCERPT);
    format!("{}\n[… {} bytes left out …]\n{}", lossy(head), left_out.len(), lossy(tail))
}

/// The first line of a text, trimmed.
pub fn first_line(text: &str) -> &str {
    text.trim().lines().next().unwrap_or("").trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_output_keeps_its_beginning_and_its_end_and_says_what_is_missing() {
        let mut bytes = b"begin".to_vec();
        // Cuts fall between the bytes of these characters.
        bytes.extend("äß\u{1f980}".repeat(100_000).into_bytes());
        bytes.extend(b"\xff\xfeend");
        let text = excerpt(&bytes);
        assert!(text.starts_with("beginäß") && text.ends_with("\u{fffd}\u{fffd}end"));
        let left_out = format!("[… {} bytes left out …]", bytes.len() - EXCERPT);
        assert!(text.contains(&left_out), "{left_out}");
        assert!(text.len() < EXCERPT + 100);
        assert!(!excerpt(&bytes[..EXCERPT]).contains("left out"));
        assert_eq!(excerpt(b""), "");
    }
}
