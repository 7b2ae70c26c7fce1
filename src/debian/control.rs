//! Stanzas of `Field: value` lines: control files of packages, Packages and Release files.
//!
//! ```text
//! Package: dash                 one field a line, names without regard to case
//! Description: POSIX shell
//!  more of the same value       a line that starts with space or tab continues the value
//!                               an empty line ends the stanza
//! ```
//!
//! [`Stanzas`] reads one stanza at a time into a buffer that it uses again, so that an index of any length needs the
//! memory of its longest stanza. Source: deb822(5), Debian Policy 5.1.

use std::io::{self, BufRead};
use std::ops::Range;

/// Why a stanza could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A line that is neither a field nor a continuation.
    #[error("line {line}: {reason}")]
    Line {
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A stanza over the limit.
    #[error("line {line}: a stanza is longer than {limit} bytes")]
    TooLong {
        /// Where the limit was passed.
        line: u64,
        /// In bytes.
        limit: usize,
    },
    /// The reader below failed.
    #[error("reading stanzas")]
    Read(#[source] io::Error),
}

/// The longest stanza that is read: the Release file of a whole suite has 140 KB, everything else much less.
pub const MAX_STANZA: usize = 8 << 20;

/// What [`Stanzas::lenient`] puts in the place of a byte that is not UTF-8: SUB, the substitute character of US-ASCII.
pub const NOT_UTF8: u8 = 0x1a;

/// The most fields that a stanza may have: the longest of Debian's indexes have about 40.
const MAX_FIELDS: usize = 256;

/// Reads stanzas one after the other; see the module comment.
#[derive(Debug)]
pub struct Stanzas<R> {
    reader: R,
    line: u64,
    lenient: bool,
    /// The rest of a stanza that was refused is passed over first.
    skip: bool,
    buffer: Vec<u8>,
    spans: Vec<(Range<usize>, Range<usize>)>,
}

/// One stanza; borrowed from the reader's buffer.
#[derive(Debug, Clone, Copy)]
pub struct Stanza<'a> {
    text: &'a str,
    spans: &'a [(Range<usize>, Range<usize>)],
    line: u64,
}

impl<R: BufRead> Stanzas<R> {
    /// Nothing read yet.
    pub fn new(reader: R) -> Self {
        Stanzas { reader, line: 0, lenient: false, skip: false, buffer: Vec::new(), spans: Vec::new() }
    }

    /// As [`Stanzas::new`], for files in which one bad stanza must not hide the others, as apt reads them: after a
    /// [`ControlError::Line`] the next stanza can be read, and a byte that is not UTF-8 becomes [`NOT_UTF8`].
    pub fn lenient(reader: R) -> Self {
        Stanzas { lenient: true, ..Self::new(reader) }
    }

    /// The value of a field of the stanza that was refused, as far as it was read.
    pub fn refused(&self, name: &str) -> Option<String> {
        let text = |range: &Range<usize>| {
            String::from_utf8_lossy(self.buffer.get(range.clone()).unwrap_or_default())
        };
        let (_, value) = self.spans.iter().find(|(field, _)| text(field).eq_ignore_ascii_case(name))?;
        Some(text(value).into_owned())
    }

    /// Passes over the rest of a refused stanza, a line at a time and none of them longer than the limit.
    fn pass_over(&mut self) -> Result<(), ControlError> {
        while std::mem::take(&mut self.skip) {
            self.buffer.clear();
            let n = io::Read::take(&mut self.reader, MAX_STANZA as u64 + 1)
                .read_until(b'\n', &mut self.buffer)
                .map_err(ControlError::Read)?;
            if self.buffer.len() > MAX_STANZA {
                return Err(ControlError::TooLong { line: self.line + 1, limit: MAX_STANZA });
            }
            self.line += u64::from(n > 0);
            self.skip = n > 0 && !self.buffer.iter().all(|b| matches!(b, b'\n' | b'\r' | b' ' | b'\t'));
        }
        Ok(())
    }

    /// The next stanza, or `None` at the end. Not named `next`: the value borrows from `self`, as no iterator's may.
    pub fn read(&mut self) -> Result<Option<Stanza<'_>>, ControlError> {
        self.pass_over()?;
        self.buffer.clear();
        self.spans.clear();
        let mut first = self.line;
        loop {
            let start = self.buffer.len();
            // One byte over the limit is read and refused, so a file without newlines cannot fill the memory.
            let room = (MAX_STANZA - start) as u64 + 1;
            let n = io::Read::take(&mut self.reader, room)
                .read_until(b'\n', &mut self.buffer)
                .map_err(ControlError::Read)?;
            if n == 0 {
                break;
            }
            self.line += 1;
            if self.buffer.len() > MAX_STANZA {
                return Err(ControlError::TooLong { line: self.line, limit: MAX_STANZA });
            }
            let mut end = self.buffer.len();
            while end > start && matches!(self.buffer[end - 1], b'\n' | b'\r' | b' ' | b'\t') {
                end -= 1;
            }
            let (line, lenient) = (self.line, self.lenient);
            let refuse = |reason| Err(ControlError::Line { line, reason });
            match self.buffer[start] {
                _ if end == start => {
                    // A line of blanks ends a stanza as an empty one does (deb822(5)); several together are one end.
                    self.buffer.truncate(start);
                    if self.spans.is_empty() {
                        continue;
                    }
                    break;
                }
                b' ' | b'\t' => match self.spans.last_mut() {
                    Some((_, value)) => value.end = end,
                    None => {
                        self.skip = lenient;
                        return refuse("a continuation line without a field before it");
                    }
                },
                _ => {
                    if self.spans.is_empty() {
                        first = self.line;
                    }
                    let line = &self.buffer[start..end];
                    let Some(colon) = line.iter().position(|b| *b == b':') else {
                        self.skip = lenient;
                        return refuse("no colon: a line must be `Field: value`");
                    };
                    // deb822(5): US-ASCII without controls, space and colon; not starting with # or -.
                    if colon == 0
                        || matches!(line[0], b'#' | b'-')
                        || !line[..colon].iter().all(u8::is_ascii_graphic)
                    {
                        self.skip = lenient;
                        return refuse("the field name is empty or holds a character that no name has");
                    }
                    let blank = line[colon + 1..].iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
                    if self.spans.len() == MAX_FIELDS {
                        self.skip = lenient;
                        return refuse("the stanza has more than 256 fields");
                    }
                    self.spans.push((start..start + colon, start + colon + 1 + blank..end));
                }
            }
        }
        if self.spans.is_empty() {
            return Ok(None);
        }
        if self.lenient {
            replace_not_utf8(&mut self.buffer);
        }
        let text = std::str::from_utf8(&self.buffer).map_err(|_| ControlError::Line {
            line: first,
            reason: "the stanza that starts here is not UTF-8",
        })?;
        Ok(Some(Stanza { text, spans: &self.spans, line: first }))
    }
}

/// Makes the text UTF-8 without changing its length, so that the fields stay where they are.
fn replace_not_utf8(bytes: &mut [u8]) {
    let mut from = 0;
    while let Err(error) = std::str::from_utf8(&bytes[from..]) {
        let at = from + error.valid_up_to();
        bytes[at] = NOT_UTF8;
        from = at + 1;
    }
}

impl<'a> Stanza<'a> {
    /// The value of the first field called `name` (case does not matter), continuation lines included as they are.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All fields in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let text = self.text;
        self.spans.iter().map(move |(name, value)| {
            // Spans end at ASCII bytes, so they are always whole characters of a text that is UTF-8.
            (text.get(name.clone()).unwrap_or(""), text.get(value.clone()).unwrap_or(""))
        })
    }

    /// The line on which the stanza starts, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// The name of a field that occurs twice, which deb822(5) forbids.
    pub fn repeated(&self) -> Option<&'a str> {
        // Every pair, since a stanza has few fields and this is asked for each of the 68,000 of an index.
        let names: Vec<&str> = self.iter().map(|(name, _)| name).collect();
        let twice = |at: &usize| names[..*at].iter().any(|other| other.eq_ignore_ascii_case(names[*at]));
        (1..names.len()).find(twice).map(|at| names[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(text: &str) -> Result<Vec<Vec<(String, String)>>, ControlError> {
        let mut reader = Stanzas::new(text.as_bytes());
        let mut out = Vec::new();
        while let Some(stanza) = reader.read()? {
            out.push(stanza.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect());
        }
        Ok(out)
    }

    #[test]
    fn reads_stanzas_with_continuations_and_any_blank_lines_between() {
        let text = "\n\nPackage: a\nDescription: short\n long\n .\n more\n\n \nPACKAGE:b\r\nEmpty:\n\n";
        let stanzas = all(text).unwrap();
        assert_eq!(stanzas.len(), 2);
        assert_eq!(stanzas[0][1], ("Description".to_owned(), "short\n long\n .\n more".to_owned()));
        assert_eq!(stanzas[1], [("PACKAGE".into(), "b".into()), ("Empty".into(), String::new())]);
    }

    #[test]
    fn a_field_is_found_whatever_its_case_and_knows_its_line() {
        let mut reader = Stanzas::new(&b"a: 1\n\npackage: x\nA: \xc3\xa9\n"[..]);
        reader.read().unwrap();
        let stanza = reader.read().unwrap().unwrap();
        assert_eq!((stanza.get("PackAge"), stanza.get("a"), stanza.get("b")), (Some("x"), Some("é"), None));
        assert_eq!(stanza.line(), 3);
        assert_eq!(stanza.repeated(), None);
    }

    #[test]
    fn refuses_broken_lines_with_their_number() {
        for (bad, says) in [
            ("a: 1\nb\n", "line 2: no colon"),
            (" x\n", "line 1: a continuation line"),
            ("a: 1\n\n x\n", "line 3: a continuation line"),
            ("a b: 1\n", "line 1: the field name"),
            (": 1\n", "line 1: the field name"),
            ("#a: 1\n", "line 1: the field name"),
        ] {
            let error = all(bad).unwrap_err().to_string();
            assert!(error.starts_with(says), "{bad:?}: {error}");
        }
        let many: String = (0..257).map(|n| format!("f{n}: x\n")).collect();
        assert_eq!(all(&many).unwrap_err().to_string(), "line 257: the stanza has more than 256 fields");
        let mut latin1 = Stanzas::new(&b"a: \xe9\n"[..]);
        assert!(latin1.read().unwrap_err().to_string().contains("not UTF-8"));
        let mut twice = Stanzas::new(&b"Size: 1\nsize: 2\n"[..]);
        assert_eq!(twice.read().unwrap().unwrap().repeated(), Some("size"));
    }

    #[test]
    fn lenient_reading_goes_on_behind_a_bad_stanza() {
        let text = b"Package: bad\nno colon\nPackage: of the same\n\n x\nA: 1\n\nPackage: b\nD: caf\xe9\n";
        let mut reader = Stanzas::lenient(&text[..]);
        assert!(reader.read().unwrap_err().to_string().starts_with("line 2: no colon"));
        assert_eq!(reader.refused("package").as_deref(), Some("bad"));
        assert!(reader.read().unwrap_err().to_string().starts_with("line 5: a continuation"));
        let stanza = reader.read().unwrap().unwrap();
        assert_eq!(
            (stanza.line(), stanza.get("Package"), stanza.get("d")),
            (8, Some("b"), Some("caf\u{1a}"))
        );
        assert!(reader.read().unwrap().is_none());
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_limit() {
        let mut reader = Stanzas::new(io::BufReader::new(io::repeat(b'x')));
        assert!(matches!(reader.read(), Err(ControlError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b':'), Just(b' '), any::<u8>()], 0..200)) {
            let mut reader = Stanzas::new(&bytes[..]);
            while let Ok(Some(stanza)) = reader.read() {
                let _ = (stanza.get("a"), stanza.repeated());
            }
        }
    }
}
