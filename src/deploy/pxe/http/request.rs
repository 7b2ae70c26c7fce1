//! The head of a request, and ranges.

use std::ops::Range;

/// Bytes of request line and headers.
pub const LONGEST_HEAD: usize = 8192;
/// Header lines.
const HEADERS: usize = 64;
/// Bytes of a body.
pub const LONGEST_BODY: u64 = 64 * 1024;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// As it was sent: `GET`, `HEAD`, `POST` …
    pub method: String,
    /// The path with its escapes undone, without a query.
    pub path: String,
    /// Whether the connection stays open behind the answer.
    pub keep: bool,
    /// Bytes of the body.
    pub length: u64,
    /// Whether the client waits for leave to send the body.
    pub expects: bool,
    /// The header `Range`.
    pub range: Option<String>,
    /// The header `If-Range`.
    pub if_range: Option<String>,
}

/// Why there is no answer but an error, after which the connection is closed: status and text.
pub type Refusal = (u16, &'static str);

/// Reads the head at the start of `bytes`, and says how long it is. `None` when it is not all there yet.
///
/// # Errors
/// It is no HTTP/1, too long, or leaves open where the request ends.
pub fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let size = match request.parse(bytes) {
        Ok(httparse::Status::Complete(size)) if size <= LONGEST_HEAD => size,
        Ok(httparse::Status::Partial) if bytes.len() < LONGEST_HEAD => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err((431, "the headers are too long")),
        Err(httparse::Error::Version) => return Err((505, "only HTTP/1 is spoken here")),
        Err(_) => return Err((400, "this is no request")),
    };
    let old = request.version == Some(0);
    let mut head = Head {
        method: request.method.unwrap_or_default().to_owned(),
        path: String::new(),
        keep: !old,
        length: 0,
        expects: false,
        range: None,
        if_range: None,
    };
    let (mut hosts, mut length) = (0, None);
    for header in request.headers {
        let Ok(value) = std::str::from_utf8(header.value) else { continue };
        let value = value.trim();
        match header.name.to_ascii_lowercase().as_str() {
            "host" => hosts += 1,
            "connection" => {
                for word in value.split(',').map(|word| word.trim().to_ascii_lowercase()) {
                    match word.as_str() {
                        "close" => head.keep = false,
                        "keep-alive" if old => head.keep = true,
                        _ => {}
                    }
                }
            }
            // Two opinions on where a body ends are how requests are smuggled (RFC 9112, 11.2).
            "transfer-encoding" => return Err((501, "bodies in pieces are not understood")),
            "content-length" => {
                let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
                let number = value.parse::<u64>().ok().filter(|_| digits);
                let number = number.ok_or((400, "the length of the body is no number"))?;
                if length.replace(number).is_some_and(|other| other != number) {
                    return Err((400, "the body has two lengths"));
                }
            }
            "expect" if value.eq_ignore_ascii_case("100-continue") => head.expects = true,
            "range" => head.range = Some(value.to_owned()),
            "if-range" => head.if_range = Some(value.to_owned()),
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && !old) {
        return Err((400, "there must be one header Host"));
    }
    head.length = length.unwrap_or(0);
    if head.length > LONGEST_BODY {
        return Err((413, "the body is longer than 64 KiB"));
    }
    head.path = path(request.path.unwrap_or_default()).ok_or((400, "the path is none"))?;
    Ok(Some((head, size)))
}

/// The path of a request target, in its two forms for servers (RFC 9112, 3.2.1 and 3.2.2), with its escapes undone.
fn path(target: &str) -> Option<String> {
    let target = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    let target = target.split(['?', '#']).next()?;
    if !target.starts_with('/') {
        return None;
    }
    let mut bytes = Vec::with_capacity(target.len());
    let mut rest = target.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: u8| char::from(b).to_digit(16);
        bytes.push((digit(rest.next()?)? * 16 + digit(rest.next()?)?) as u8);
    }
    String::from_utf8(bytes).ok()
}

/// Nothing of a range is there: status 416.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the range begins behind the end")]
pub struct Nothing;

/// What of `length` bytes is asked for by a header `Range` (RFC 9110, 14.2): `Ok(None)` for all, if there is no range, one of another unit,
/// more than one, or one that is none.
///
/// # Errors
/// [`Nothing`] of it is there.
pub fn range(header: Option<&str>, length: u64) -> Result<Option<Range<u64>>, Nothing> {
    let Some(text) = header.and_then(|header| header.strip_prefix("bytes=")) else { return Ok(None) };
    let Some((first, last)) = text.trim().split_once('-') else { return Ok(None) };
    let number = |text: &str| -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // What does not fit in 64 bits is behind every end.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let range = match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last => return Ok(None),
        (Some(first), Some(last)) => first..last.saturating_add(1).min(length),
        (Some(first), None) if last.is_empty() => first..length,
        (None, Some(suffix)) if first.is_empty() => {
            if suffix == 0 {
                return Err(Nothing);
            }
            length.saturating_sub(suffix)..length
        }
        _ => return Ok(None),
    };
    if range.start >= length { Err(Nothing) } else { Ok(Some(range)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(line: &str, headers: &str) -> Result<Option<(Head, usize)>, Refusal> {
        parse(format!("{line}\r\nHost: a\r\n{headers}\r\n").as_bytes())
    }

    #[test]
    fn a_head_is_read_when_it_is_whole() {
        let text =
            "GET /v1/node/bc%3A24:11/plan?x=1 HTTP/1.1\r\nHost: a\r\nRange: bytes=1-2\r\n\r\nGET /next";
        let (head, size) = parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(
            (head.path.as_str(), head.keep, head.range.as_deref()),
            ("/v1/node/bc:24:11/plan", true, Some("bytes=1-2"))
        );
        assert_eq!(&text[size..], "GET /next");
        for end in 0..size {
            assert_eq!(parse(&text.as_bytes()[..end]), Ok(None), "{end}");
        }
        assert!(!get("GET / HTTP/1.1", "Connection: TE, Close\r\n").unwrap().unwrap().0.keep);
        assert!(!get("GET / HTTP/1.0", "").unwrap().unwrap().0.keep);
        assert!(get("GET / HTTP/1.0", "Connection: keep-alive\r\n").unwrap().unwrap().0.keep);
        assert_eq!(get("GET http://192.0.2.1/kiln HTTP/1.1", "").unwrap().unwrap().0.path, "/kiln");
    }

    #[test]
    fn what_leaves_open_where_it_ends_is_refused() {
        let status = |line: &str, headers: &str| get(line, headers).unwrap_err().0;
        for (line, headers, wanted) in [
            ("GET / HTTP/1.1", "Transfer-Encoding: chunked\r\n", 501),
            ("POST / HTTP/1.1", "Content-Length: 1\r\nContent-Length: 2\r\n", 400),
            ("POST / HTTP/1.1", "Content-Length: -1\r\n", 400),
            ("POST / HTTP/1.1", "Content-Length: +1\r\n", 400),
            ("POST / HTTP/1.1", "Content-Length: 65537\r\n", 413),
            ("POST / HTTP/1.1", "Content-Length: 99999999999999999999\r\n", 400),
            ("GET / HTTP/1.1", "Host: b\r\n", 400),
            ("GET / HTTP/2.0", "", 505),
            ("GET kiln HTTP/1.1", "", 400),
            ("GET /%zz HTTP/1.1", "", 400),
            ("GET /%f HTTP/1.1", "", 400),
            ("GET /%ff HTTP/1.1", "", 400),
            ("\u{1}", "", 400),
        ] {
            assert_eq!(status(line, headers), wanted, "{line} {headers}");
        }
        assert_eq!(parse(b"GET / HTTP/1.1\r\n\r\n").unwrap_err().0, 400, "no Host");
        assert_eq!(status("GET / HTTP/1.1", &format!("X: {}\r\n", "a".repeat(9000))), 431);
        assert_eq!(status("GET / HTTP/1.1", &"X: a\r\n".repeat(70)), 431);
        assert_eq!(parse(&b"G".repeat(LONGEST_HEAD)).unwrap_err().0, 431);
    }

    #[test]
    fn ranges_are_those_of_the_rfc() {
        for (text, wanted) in [
            ("bytes=0-0", Ok(Some(0..1))),
            ("bytes=0-99", Ok(Some(0..10))),
            ("bytes=3-", Ok(Some(3..10))),
            ("bytes=-3", Ok(Some(7..10))),
            ("bytes=-99", Ok(Some(0..10))),
            ("bytes=9-9", Ok(Some(9..10))),
            ("bytes=5-18446744073709551615", Ok(Some(5..10))),
            ("bytes=10-", Err(Nothing)),
            ("bytes=99999999999999999999999-", Err(Nothing)),
            ("bytes=-0", Err(Nothing)),
            ("bytes=5-3", Ok(None)),
            ("bytes=0-1,3-4", Ok(None)),
            ("bytes=", Ok(None)),
            ("bytes=-", Ok(None)),
            ("bytes=a-b", Ok(None)),
            ("bytes=--1", Ok(None)),
            ("lines=0-1", Ok(None)),
        ] {
            assert_eq!(range(Some(text), 10), wanted, "{text}");
        }
        assert_eq!(range(None, 10), Ok(None));
        assert_eq!(range(Some("bytes=0-"), 0), Err(Nothing));
    }

    proptest! {
        #[test]
        fn nothing_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,40}", length: u64) {
            let _ = parse(&bytes);
            let _ = path(&text);
            if let Ok(Some(range)) = range(Some(&format!("bytes={text}")), length) {
                assert!(range.start < range.end && range.end <= length);
            }
        }

        #[test]
        fn every_range_lies_in_the_content(a: u64, b: u64, length in 1_u64..) {
            for text in [format!("bytes={a}-{b}"), format!("bytes={a}-"), format!("bytes=-{a}")] {
                if let Ok(Some(range)) = range(Some(&text), length) {
                    assert!(range.start < range.end && range.end <= length);
                }
            }
        }
    }
}
