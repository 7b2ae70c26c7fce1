//! Names: the short one of eight and three characters that every entry has, and the long one in UTF-16 before it.

use std::collections::BTreeSet;

/// A short name as it stands in an entry: eight characters and three, filled up with spaces.
pub(super) type Short = [u8; 11];

/// UTF-16 units in one entry of a long name.
pub(super) const UNITS: usize = 13;
/// Where they stand in the entry.
pub(super) const PLACES: [usize; UNITS] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
/// The most units of a long name.
const MAX_UNITS: usize = 255;

/// Why `name` cannot stand in a FAT directory, if so.
pub(super) fn objection(name: &str) -> Option<&'static str> {
    if name.chars().any(|c| c < ' ' || c == '\x7f' || "\"*/:<>?\\|".contains(c)) {
        return Some("FAT names cannot hold control characters or any of \" * / : < > ? \\ |");
    }
    if name.ends_with(['.', ' ']) {
        return Some("FAT names cannot end with a dot or a space");
    }
    if name.encode_utf16().count() > MAX_UNITS {
        return Some("FAT names cannot be longer than 255 UTF-16 units");
    }
    None
}

/// The form in which two names are the same for FAT.
pub(super) fn folded(name: &str) -> String {
    name.to_uppercase()
}

/// The characters of a short name besides letters and digits.
fn is_short_char(c: char) -> bool {
    c.is_ascii_uppercase() || c.is_ascii_digit() || "$%'-_@~`!(){}^#&".contains(c)
}

/// The short name that says `name` in full, whatever its case, if there is one.
fn plain(name: &str) -> Option<Short> {
    let upper = name.to_ascii_uppercase();
    let (base, extension) = upper.split_once('.').unwrap_or((&upper, ""));
    let fits = |part: &str, most: usize| part.len() <= most && part.chars().all(is_short_char);
    let no_empty_extension = !upper.ends_with('.');
    (!base.is_empty() && fits(base, 8) && fits(extension, 3) && no_empty_extension)
        .then(|| join(base.as_bytes(), extension.as_bytes()))
}

fn join(base: &[u8], extension: &[u8]) -> Short {
    let mut short = [b' '; 11];
    short[..base.len()].copy_from_slice(base);
    short[8..8 + extension.len()].copy_from_slice(extension);
    short
}

/// The short names of all names in a directory, in their order. A name that is a short one but for its case keeps it; the others
/// get a number behind `~`, as in `KILN_1~1.EFI`. `None` if the numbers run out.
pub(super) fn short_names(names: &[&str]) -> Option<Vec<Short>> {
    let mut taken: BTreeSet<Short> = names.iter().filter_map(|name| plain(name)).collect();
    names
        .iter()
        .map(|name| {
            if let Some(short) = plain(name) {
                return Some(short);
            }
            let clean = |part: &str| -> Vec<u8> {
                let kept = part.chars().filter(|c| *c != ' ' && *c != '.');
                kept.map(|c| c.to_ascii_uppercase())
                    .map(|c| if is_short_char(c) { c as u8 } else { b'_' })
                    .collect()
            };
            let (base, extension) = name.trim_start_matches('.').rsplit_once('.').unwrap_or((name, ""));
            let (base, mut extension) = (clean(base), clean(extension));
            extension.truncate(3);
            (1..1_000_000).find_map(|number| {
                let tail = format!("~{number}");
                let mut numbered = base[..base.len().min(8 - tail.len())].to_vec();
                numbered.extend(tail.as_bytes());
                let short = join(&numbered, &extension);
                taken.insert(short).then_some(short)
            })
        })
        .collect()
}

/// Whether the short name alone says `name`, so that no long one is needed.
pub(super) fn says(short: &Short, name: &str) -> bool {
    spelled(short) == name
}

/// A short name as people write it.
pub(super) fn spelled(short: &Short) -> String {
    let text = |bytes: &[u8]| bytes.iter().map(|b| char::from(*b)).collect::<String>().trim_end().to_owned();
    let (base, extension) = (text(&short[..8]), text(&short[8..]));
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

/// Joins the entries of a long name to the short name behind them.
pub(super) fn checksum(short: &Short) -> u8 {
    short.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_the_ones_that_other_systems_make() {
        let names = [
            "BOOTX64.EFI",
            "kiln_1.0+3.efi",
            "kiln_1.0+4.efi",
            "loader.conf",
            "entries.srel",
            "loader",
            "KILN_1~1.EFI",
            ".hidden",
            "a b",
            "ä",
            "two.dots.x",
        ];
        let short: Vec<String> = short_names(&names).unwrap().iter().map(spelled).collect();
        let wanted = [
            "BOOTX64.EFI",
            "KILN_1~2.EFI",
            "KILN_1~3.EFI",
            "LOADER~1.CON",
            "ENTRIE~1.SRE",
            "LOADER",
            "KILN_1~1.EFI",
            "HIDDEN~1",
            "AB~1",
            "_~1",
            "TWODOT~1.X",
        ];
        assert_eq!(short, wanted);
    }

    #[test]
    fn ten_and_more_of_a_kind_get_longer_numbers() {
        let names: Vec<String> = (0..120).map(|i| format!("credential number {i}.cred")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let short = short_names(&names).unwrap();
        assert_eq!(
            (spelled(&short[9]), spelled(&short[119])),
            ("CREDE~10.CRE".into(), "CRED~120.CRE".into())
        );
        assert_eq!(short.iter().collect::<BTreeSet<_>>().len(), 120);
    }
}
