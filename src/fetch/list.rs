//! Lists of mirrors, apt-transport-mirror(1): a URL a line, and behind a tab what the mirror is for.

use std::io::Read;

use super::apt::{LeftOut, unusable};
use super::mirrors::Wanted;
use crate::url::Url;

/// The longest list that is read, as apt has it.
pub(super) const MAX_LIST: u64 = 1 << 20;

/// A mirror of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) url: Url,
    /// `list:line`.
    pub(super) at: String,
    /// The lowest is asked first.
    priority: u64,
    tags: Vec<(String, String)>,
}

impl Entry {
    /// Whether it has what is wanted: of each kind of tag that it has, one must fit.
    fn fits(&self, wanted: &Wanted<'_>) -> bool {
        let fits = |names: &[&str], value: &str| {
            let mut values = self.tags.iter().filter(|(name, _)| names.contains(&name.as_str())).peekable();
            value.is_empty() || values.peek().is_none() || values.any(|(_, tag)| tag == value)
        };
        let arch =
            wanted.architectures.is_empty() || wanted.architectures.iter().any(|arch| fits(&["arch"], arch));
        arch && fits(&["type"], wanted.kind.word())
            && fits(&["component"], wanted.component)
            && fits(&["codename", "suite"], wanted.suite)
    }
}

/// The location of the list that a source `mirror:` or `mirror+…:` names; `None` for any other source.
pub(super) fn location(url: &Url) -> Option<Url> {
    match url.exposed().strip_prefix("mirror")? {
        rest if rest.starts_with(':') => Some(Url::new(format!("http{rest}"))),
        rest => rest.strip_prefix('+').map(Url::new),
    }
}

/// Unpacks a list by the ending of its name, as apt does.
pub(super) fn unpack(location: &Url, bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let path = location.exposed().split(['?', '#']).next().unwrap_or_default();
    let mut out = Vec::new();
    let reader: Box<dyn Read + '_> = match path.rsplit_once('.').map(|(_, end)| end) {
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(bytes.as_slice())),
        Some("xz") => Box::new(liblzma::bufread::XzDecoder::new(bytes.as_slice())),
        Some("zst") => Box::new(zstd::Decoder::new(bytes.as_slice())?),
        _ => return Ok(bytes),
    };
    reader.take(MAX_LIST).read_to_end(&mut out)?;
    Ok(out)
}

/// Reads a list. One that came over the network may name places in the network only.
pub(super) fn parse(text: &str, location: &Url, left_out: &mut Vec<LeftOut>) -> Vec<Entry> {
    let local = location.file().is_some();
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = format!("{location}:{}", number + 1);
        let (url, metadata) = line.split_once('\t').unwrap_or((line, ""));
        let url = Url::new(url.trim_end().trim_end_matches('/'));
        let tags: Vec<(String, String)> = metadata
            .split_whitespace()
            .filter_map(|tag| tag.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let why = if url.exposed().contains(' ') {
            Some("a URL holds no blank; a tab parts it from what the mirror is for".to_owned())
        } else if url.scheme().starts_with("mirror") {
            Some("a list names no other list".to_owned())
        } else if !local && url.file().is_some() {
            Some("a list from the network names no files of this machine".to_owned())
        } else {
            unusable(&url)
        };
        if let Some(why) = why {
            left_out.push(LeftOut::new(at, format!("{url}: {why}")));
            continue;
        }
        // As strtoul reads it: anything but a number is 0.
        let priority = tags.iter().rev().find(|(name, _)| name == "priority");
        let priority = priority.map_or(u64::MAX, |(_, value)| value.parse().unwrap_or(0));
        entries.push(Entry { url, at, priority, tags });
    }
    entries
}

/// The mirrors of a list for what is wanted, in the order in which they are asked. apt shuffles those of one priority to share the load
/// among mirrors of a whole distribution; here the order of the list counts, so that two runs do the same.
pub(super) fn choose<'a>(entries: &'a [Entry], wanted: &Wanted<'_>) -> Vec<&'a Entry> {
    let mut chosen: Vec<&Entry> = entries.iter().filter(|entry| entry.fits(wanted)).collect();
    chosen.sort_by_key(|entry| entry.priority);
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::mirrors::For;

    /// The example of apt-transport-mirror(1).
    const LIST: &str = "# a comment\n\nfile:/srv/local/debian/mirror/\tpriority:1 type:index\r\n\
        http://partial.example.org/mirror/\tpriority:2 arch:amd64 arch:all type:deb\n\
        http://us.example.org/debian/\ttype:deb\nhttps://main.example.org/debian/\n\
        ftp://old.example.org/debian\nhttp://x.example.org/debian priority:1\nmirror+http://x.example.org/list\n";

    fn asked(list: &str, location: &str, kind: For, arch: &str) -> Vec<String> {
        let entries = parse(list, &Url::new(location), &mut Vec::new());
        let wanted =
            Wanted { kind, architectures: &[arch], suite: "trixie", component: "main", ..Wanted::default() };
        choose(&entries, &wanted).iter().map(|e| e.url.exposed().to_owned()).collect()
    }

    #[test]
    fn mirrors_are_chosen_as_the_manual_says() {
        let of = |kind, arch| asked(LIST, "file:/l", kind, arch);
        let (local, partial, us, deb) = (
            "file:/srv/local/debian/mirror",
            "http://partial.example.org/mirror",
            "http://us.example.org/debian",
            "https://main.example.org/debian",
        );
        assert_eq!(of(For::Index, "amd64"), [local, deb]);
        assert_eq!(of(For::Package, "amd64"), [partial, us, deb]);
        assert_eq!(of(For::Package, "i386"), [us, deb]);
        assert_eq!(asked(LIST, "http://h/l", For::Index, "amd64"), [deb], "no files of this machine");
        let list =
            "http://a/\tcodename:sid\nhttp://b/\tsuite:trixie component:main\nhttp://c/\tcomponent:contrib";
        assert_eq!(asked(list, "file:/l", For::Index, "amd64"), ["http://b"]);
    }

    #[test]
    fn what_is_left_out_of_a_list_has_its_line() {
        let mut left_out = Vec::new();
        parse(LIST, &Url::new("http://bob:s3cr3t@h/l"), &mut left_out);
        let said: Vec<String> = left_out.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 4, "{said:?}");
        assert!(
            said[1].starts_with("http://***@h/l:7: ftp://old.example.org/debian: kiln does not fetch by"),
            "{said:?}"
        );
    }

    #[test]
    fn lists_are_found_and_unpacked() {
        for (url, list) in [
            ("mirror://h/l", Some("http://h/l")),
            ("mirror+https://h/l", Some("https://h/l")),
            ("mirror+file:/l", Some("file:/l")),
            ("http://mirror/l", None),
        ] {
            assert_eq!(location(&Url::new(url)).map(|u| u.exposed().to_owned()).as_deref(), list);
        }
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gz, b"http://a/").unwrap();
        let bytes = gz.finish().unwrap();
        assert_eq!(unpack(&Url::new("file:/l.gz"), bytes.clone()).unwrap(), b"http://a/");
        assert_eq!(unpack(&Url::new("file:/l"), bytes.clone()).unwrap(), bytes);
        assert!(unpack(&Url::new("file:/l.xz"), bytes).is_err());
    }
}
