//! Release files: which indexes a suite has, of which size and digest, and how long the file may be believed.
//!
//! [`Release::parse`] reads the text; it says nothing about who wrote it. Only [`super::openpgp::verify`] makes a
//! [`super::openpgp::Verified`] of it. Source: the Debian wiki's RepositoryFormat.

use std::collections::BTreeMap;

use super::control::Stanzas;
use super::index::is_clean_path;
use crate::digest::Digest;

/// An index of the suite, by its path below `dists/SUITE/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexFile {
    /// Length in bytes.
    pub size: u64,
    /// Digest of the bytes.
    pub sha256: Digest,
}

/// What a Release file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// `Debian`, or whoever runs the archive.
    pub origin: String,
    /// `Debian`, `Debian-Security`.
    pub label: String,
    /// `stable`, `stable-security`: changes its meaning with time.
    pub suite: String,
    /// `trixie`, `trixie-security`: does not. The suite's name where the archive has no code name.
    pub codename: String,
    /// When it was made, seconds since 1970 UTC.
    pub date: i64,
    /// Until when it may be believed, seconds since 1970 UTC. A stable release has none.
    pub valid_until: Option<i64>,
    /// As written: the security archive says `updates/main` for what lies under `main/`.
    pub components: Vec<String>,
    /// Architectures, mostly with `all`.
    pub architectures: Vec<String>,
    /// Whether indexes can be fetched by their digest ([`Release::by_hash`]), which no update of the mirror can race.
    pub acquire_by_hash: bool,
    /// The indexes of its `SHA256` list; MD5 and SHA-1 are not read.
    pub files: BTreeMap<String, IndexFile>,
}

/// Why the text is no Release file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReleaseError {
    /// It is not one stanza.
    #[error("the Release file is not one stanza: {0}")]
    Stanza(String),
    /// A field that is missing or makes no sense.
    #[error("the Release file has no usable field {field}: {reason}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl Release {
    /// Reads the text inside an InRelease file, or that of a Release file.
    pub fn parse(text: &str) -> Result<Self, ReleaseError> {
        let stanza_error = |e: super::control::ControlError| ReleaseError::Stanza(e.to_string());
        let mut stanzas = Stanzas::new(text.as_bytes());
        let stanza = stanzas
            .read()
            .map_err(stanza_error)?
            .ok_or_else(|| ReleaseError::Stanza("it is empty".to_owned()))?;
        if let Some(name) = stanza.repeated() {
            return Err(ReleaseError::Stanza(format!("the field {name} stands there twice")));
        }
        let words = |name| stanza.get(name).unwrap_or("").split_whitespace().map(str::to_owned).collect();
        let text_of = |name| stanza.get(name).unwrap_or("").to_owned();
        let date_of = |field: &'static str| match stanza.get(field) {
            None => Ok(None),
            Some(text) => parse_date(text).map(Some).ok_or_else(|| ReleaseError::Field {
                field,
                reason: format!(
                    "`{}` is not a date like `Sat, 12 Sep 2026 07:55:41 UTC`",
                    text.escape_debug()
                ),
            }),
        };
        let missing = |field| ReleaseError::Field { field, reason: "it is missing".to_owned() };
        let release = Release {
            origin: text_of("Origin"),
            label: text_of("Label"),
            suite: text_of("Suite"),
            // An archive without one has its suite's name only; apt wants either.
            codename: stanza.get("Codename").or(stanza.get("Suite")).unwrap_or("").to_owned(),
            date: date_of("Date")?.ok_or_else(|| missing("Date"))?,
            valid_until: date_of("Valid-Until")?,
            components: words("Components"),
            architectures: words("Architectures"),
            acquire_by_hash: stanza
                .get("Acquire-By-Hash")
                .is_some_and(|word| word.eq_ignore_ascii_case("yes")),
            files: parse_files(stanza.get("SHA256").ok_or_else(|| missing("SHA256"))?)?,
        };
        match stanzas.read() {
            Ok(None) => Ok(release),
            Ok(Some(_)) => Err(ReleaseError::Stanza("there is a second one".to_owned())),
            Err(e) => Err(stanza_error(e)),
        }
    }

    /// Where the index `path` lies by its digest, below `dists/SUITE/`; `None` if the list has no such index.
    pub fn by_hash(&self, path: &str) -> Option<String> {
        let file = self.files.get(path)?;
        let folder = path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        Some(format!("{folder}by-hash/SHA256/{}", file.sha256))
    }
}

fn parse_files(list: &str) -> Result<BTreeMap<String, IndexFile>, ReleaseError> {
    let mut files = BTreeMap::new();
    for line in list.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let refuse = |reason: &str| ReleaseError::Field {
            field: "SHA256",
            reason: format!("{reason}: `{}`", line.escape_debug().take(200).collect::<String>()),
        };
        let mut words = line.split_whitespace();
        let (Some(digest), Some(size), Some(path), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(refuse("a line is not digest, size and path"));
        };
        let sha256 = digest.parse().map_err(|_| refuse("a line does not start with a digest"))?;
        let size = size.parse().map_err(|_| refuse("a line has no size"))?;
        if !is_clean_path(path) {
            return Err(refuse("a path is not one below the suite"));
        }
        let file = IndexFile { size, sha256 };
        if files.insert(path.to_owned(), file).is_some_and(|other| other != file) {
            return Err(refuse("a path is listed twice with different digests"));
        }
    }
    Ok(files)
}

/// Reads a date as seconds since 1970, in the three forms of HTTP that apt takes (RFC 9110, 5.6.7), in UTC only:
/// `Sat, 12 Sep 2026 07:55:41 UTC`, `Saturday, 12-Sep-26 07:55:41 GMT`, `Sat Sep 12 07:55:41 2026`.
fn parse_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    let number = |text: &str, max: i64| {
        let digits = !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<i64>().ok().filter(|n| digits && *n <= max)
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let weekday = words.first()?.trim_end_matches(',');
    // Only the beginning of the day's name is looked at, as apt does: it refuses names of other languages by it.
    if !DAYS.iter().any(|day| weekday.get(..3).is_some_and(|three| three.eq_ignore_ascii_case(day))) {
        return None;
    }
    let dashed: Vec<&str> = words.get(1)?.split('-').collect();
    let (day, month, year, time, zone) = match (&words[1..], dashed.as_slice()) {
        ([_, time, zone], [day, month, year]) => {
            let year = number(year, 99)?;
            (*day, *month, year + if year < 70 { 2000 } else { 1900 }, *time, *zone)
        }
        ([month, day, time, year], [_])
            if weekday.len() == 3 && year.len() == 4 && !words[0].ends_with(',') =>
        {
            (*day, *month, number(year, 9999)?, *time, "UTC")
        }
        ([day, month, year, time, zone], [_]) => (*day, *month, number(year, 9999)?, *time, *zone),
        _ => return None,
    };
    if !matches!(zone, "UTC" | "GMT" | "Z" | "+0000" | "-0000" | "+00:00") {
        return None;
    }
    let month = i64::try_from(MONTHS.iter().position(|m| m.eq_ignore_ascii_case(month))?).ok()? + 1;
    let day = number(day, 31).filter(|d| *d > 0)?;
    let parts: Vec<&str> = time.split(':').collect();
    let [hour, minute, second] = parts[..] else { return None };
    // 60 is a leap second.
    let (hour, minute, second) = (number(hour, 23)?, number(minute, 59)?, number(second, 60)?);
    // Days since 1970 in the Gregorian calendar, counted in years that begin in March so that the leap day is the last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day
        - 1
        - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "Origin: Debian\nLabel: Debian\nSuite: stable\nCodename: trixie\nDate: Sat, 12 Sep 2026 07:55:41 UTC\nValid-Until: Sat, 19 Sep 2026 07:55:41 UTC\nAcquire-By-Hash: yes\nArchitectures: all amd64\nComponents: main contrib\nMD5Sum:\n 00 1 x\nSHA256:\n e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855        0 main/binary-amd64/Packages\n";

    #[test]
    fn reads_fields_dates_and_the_list() {
        let release = Release::parse(TEXT).unwrap();
        assert_eq!((release.suite.as_str(), release.codename.as_str()), ("stable", "trixie"));
        // `date -u -d '2026-09-12 07:55:41' +%s`
        assert_eq!((release.date, release.valid_until), (1_789_199_741, Some(1_789_804_541)));
        assert_eq!(
            (release.components.len(), release.architectures.len(), release.acquire_by_hash),
            (2, 2, true)
        );
        assert_eq!(release.files["main/binary-amd64/Packages"].sha256, Digest::of(b""));
        assert_eq!(
            release.by_hash("main/binary-amd64/Packages").unwrap(),
            "main/binary-amd64/by-hash/SHA256/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(release.by_hash("nothing"), None);
        let other = TEXT.replace("Codename: trixie\n", "").replace("By-Hash: yes", "By-Hash: Yes");
        let release = Release::parse(&other).unwrap();
        assert_eq!((release.codename.as_str(), release.acquire_by_hash), ("stable", true));
    }

    #[test]
    fn dates_are_counted_over_leap_years() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 UTC", Some(0)),
            ("Thu, 29 Feb 2024 12:00:00 +0000", Some(1_709_208_000)),
            ("Fri, 01 Mar 2024 00:00:00 GMT", Some(1_709_251_200)),
            ("Fri, 1 Mar 2024 0:00:00 Z", Some(1_709_251_200)),
            ("Friday, 01-Mar-24 00:00:00 GMT", Some(1_709_251_200)),
            ("Fri Mar  1 00:00:00 2024", Some(1_709_251_200)),
            ("fri, 01 mar 2024 00:00:00 -0000", Some(1_709_251_200)),
            ("Fri, 01 Mar 2024 01:00:00 +0100", None),
            ("ven., 01 mars 2024 00:00:00 UTC", None),
            ("Fri, 01-Mar 2024 00:00:00 UTC", None),
            ("Sat, 12 Sep 2026 07:55:41 CEST", None),
            ("12 Sep 2026 07:55:41 UTC", None),
            ("Sat, 12 Sep 2026 7:55 UTC", None),
            ("Sat, 32 Sep 2026 07:55:41 UTC", None),
            ("Sat, 12 Foo 2026 07:55:41 UTC", None),
            ("Sat, +2 Sep 2026 07:55:41 UTC", None),
        ] {
            assert_eq!(parse_date(text), seconds, "{text}");
        }
    }

    #[test]
    fn refuses_what_cannot_be_relied_on() {
        for (from, to, reason) in [
            ("Date: Sat,", "Date:", "no usable field Date: `12 Sep"),
            ("Date: Sat, 12 Sep 2026 07:55:41 UTC\n", "", "Date: it is missing"),
            ("Valid-Until: Sat, 19", "Valid-Until: Sat, x", "no usable field Valid-Until"),
            ("SHA256:", "SHA512:", "SHA256: it is missing"),
            ("main/binary-amd64/Packages", "../x", "not one below the suite"),
            ("Packages", "Packages y", "not digest, size and path"),
            ("       0", "       z", "has no size"),
            ("e3b0c4", "", "start with a digest"),
            ("MD5Sum", "SHA256", "stands there twice"),
            ("Suite", "\nSuite", "Date: it is missing"),
        ] {
            let error = match Release::parse(&TEXT.replacen(from, to, 1)) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("{to:?} was taken"),
            };
            assert!(error.contains(reason), "{to}: {error}");
        }
        assert!(
            Release::parse(&format!("{TEXT}\nSuite: other\n"))
                .unwrap_err()
                .to_string()
                .contains("a second one")
        );
        let twice = format!("{TEXT} {} 9 main/binary-amd64/Packages\n", "a".repeat(64));
        assert!(Release::parse(&twice).unwrap_err().to_string().contains("twice with different"));
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,60}", at in 0usize..300) {
            let _ = parse_date(&text);
            let mut whole = TEXT.to_owned();
            whole.insert_str(at, &text);
            let _ = Release::parse(&whole);
        }
    }
}
