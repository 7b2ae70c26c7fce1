//! The headers of a PE32+ file: read with every number checked, and written with more sections.

use super::UkiError;

const SECTION: usize = 40;
/// PE32+, the only form that 64-bit firmware loads.
const MAGIC: u16 = 0x20B;
const NX_COMPATIBLE: u16 = 0x100;
/// Data directory of the signatures.
const SECURITY: usize = 4;

/// A section of a PE file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section<'a> {
    /// Its name, without the NULs behind it.
    pub name: String,
    /// Where it is loaded, from the start of the image.
    pub address: u32,
    /// Length in memory.
    pub size: u32,
    /// Its bytes in the file, without the padding behind them.
    pub bytes: &'a [u8],
}

/// A section that is to be added.
pub(super) struct New<'a> {
    pub(super) name: &'static str,
    pub(super) bytes: &'a [u8],
    pub(super) characteristics: u32,
}

/// What [`Headers::append`] makes.
pub(super) struct Image {
    /// Changed headers and the bytes of the file so far, filled up to where the first new section begins.
    pub(super) start: Vec<u8>,
    /// Zeros behind each new section.
    pub(super) padding: Vec<usize>,
}

/// The headers as far as they matter here.
pub(super) struct Headers<'a> {
    pub(super) machine: u16,
    pub(super) sections: Vec<Section<'a>>,
    /// Offset of the COFF header, behind `PE\0\0`.
    coff: usize,
    /// Offset of the section table.
    table: usize,
    section_alignment: u32,
    file_alignment: u32,
    headers: u32,
    characteristics: u16,
    data_size: u32,
    signed: bool,
    /// The first byte in the file that belongs to a section.
    first_raw: usize,
}

impl<'a> Headers<'a> {
    /// Offset of the optional header.
    fn optional(&self) -> usize {
        self.coff + 20
    }

    pub(super) fn nx_compatible(&self) -> bool {
        self.characteristics & NX_COMPATIBLE != 0
    }

    /// Reads the headers of `bytes`; `what` names the file in errors.
    pub(super) fn parse(bytes: &'a [u8], what: &'static str) -> Result<Self, UkiError> {
        let refuse = |reason| UkiError::Pe { what, reason };
        let short = || refuse("it ends inside its headers");
        let u16_at = |at: usize| -> Result<u16, UkiError> {
            let field = bytes.get(at..at.saturating_add(2)).ok_or_else(short)?;
            Ok(u16::from_le_bytes(field.try_into().expect("2 bytes")))
        };
        let u32_at = |at: usize| -> Result<u32, UkiError> {
            let field = bytes.get(at..at.saturating_add(4)).ok_or_else(short)?;
            Ok(u32::from_le_bytes(field.try_into().expect("4 bytes")))
        };
        if !bytes.starts_with(b"MZ") {
            return Err(refuse("it does not begin with `MZ`"));
        }
        let pe = u32_at(0x3C)? as usize;
        if bytes.get(pe..pe.saturating_add(4)) != Some(b"PE\0\0") {
            return Err(refuse("the signature `PE` is missing"));
        }
        let coff = pe + 4;
        let optional = coff + 20;
        if u16_at(optional)? != MAGIC {
            return Err(refuse("it is not PE32+, the 64-bit form"));
        }
        let table = optional + usize::from(u16_at(coff + 16)?);
        let (section_alignment, file_alignment) = (u32_at(optional + 32)?, u32_at(optional + 36)?);
        if !section_alignment.is_power_of_two() || !file_alignment.is_power_of_two() {
            return Err(refuse("its alignments are no powers of two"));
        }
        let directories = u32_at(optional + 108)? as usize;
        let signed = directories > SECURITY && u32_at(optional + 112 + 8 * SECURITY)? != 0;
        let mut sections = Vec::new();
        let mut first_raw = bytes.len();
        for number in 0..usize::from(u16_at(coff + 2)?) {
            let at = table + number * SECTION;
            let entry = bytes.get(at..at + SECTION).ok_or_else(short)?;
            let name = entry[..8].iter().take_while(|b| **b != 0).map(|b| char::from(*b)).collect();
            let (size, address) = (u32_at(at + 8)?, u32_at(at + 12)?);
            let (raw_size, raw) = (u32_at(at + 16)? as usize, u32_at(at + 20)? as usize);
            let data = if raw_size == 0 {
                &[][..]
            } else {
                first_raw = first_raw.min(raw);
                let end = raw.checked_add(raw_size).ok_or_else(|| refuse("a section is too long"))?;
                bytes.get(raw..end).ok_or_else(|| refuse("a section lies outside of the file"))?
            };
            let data = &data[..data.len().min(size as usize)];
            sections.push(Section { name, address, size, bytes: data });
        }
        Ok(Headers {
            machine: u16_at(coff)?,
            sections,
            coff,
            table,
            section_alignment,
            file_alignment,
            headers: u32_at(optional + 60)?,
            characteristics: u16_at(optional + 70)?,
            data_size: u32_at(optional + 8)?,
            signed,
            first_raw,
        })
    }

    /// Plans `new` sections behind those of `file`, which these headers were read from. `nx` says whether the kernel can live with
    /// memory that is either writable or executable; the image must not promise more than it can. `sbat` takes the place of the
    /// stub's own, unless it is empty.
    pub(super) fn append(
        &self,
        file: &[u8],
        new: &[New<'_>],
        sbat: &[u8],
        nx: bool,
    ) -> Result<Image, UkiError> {
        if self.signed {
            return Err(UkiError::Signed);
        }
        if let Some(taken) = new.iter().find(|n| self.sections.iter().any(|s| s.name == n.name)) {
            return Err(UkiError::Taken(taken.name));
        }
        let end = self.table + self.sections.len() * SECTION;
        let room = (self.headers as usize).min(self.first_raw).saturating_sub(end) / SECTION;
        if room < new.len() {
            return Err(UkiError::Headers { room, needed: new.len() });
        }
        let too_large = || UkiError::TooLarge;
        let align = |value: u32, to: u32| value.checked_next_multiple_of(to).ok_or_else(too_large);
        let mut raw = align(u32::try_from(file.len()).map_err(|_| too_large())?, self.file_alignment)?;
        let mut start = file.to_vec();
        start.resize(raw as usize, 0);

        if let Some(number) = self.sections.iter().position(|s| s.name == ".sbat" && !sbat.is_empty()) {
            let entry = self.table + number * SECTION;
            let field =
                |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("4 bytes")) as usize;
            let (room, at) = (field(entry + 16), field(entry + 20));
            // In memory, too, it must end before the page of the next section.
            let room = room.min(self.section_alignment as usize);
            if sbat.len() > room {
                return Err(UkiError::Sbat { room, needed: sbat.len() });
            }
            start[entry + 8..entry + 12].copy_from_slice(&(sbat.len() as u32).to_le_bytes());
            start[at..at + room].fill(0);
            start[at..at + sbat.len()].copy_from_slice(sbat);
        }
        let mut next = 0;
        for section in &self.sections {
            next = next.max(section.address.checked_add(section.size).ok_or_else(too_large)?);
        }
        let mut data_size = self.data_size;
        let mut padding = Vec::with_capacity(new.len());
        for (section, at) in new.iter().zip((end..).step_by(SECTION)) {
            let size = u32::try_from(section.bytes.len()).map_err(|_| too_large())?;
            let raw_size = align(size, self.file_alignment)?;
            let address = align(next, self.section_alignment)?;
            let entry = &mut start[at..at + SECTION];
            entry.fill(0);
            entry[..section.name.len()].copy_from_slice(section.name.as_bytes());
            for (place, value) in
                [(8, size), (12, address), (16, raw_size), (20, raw), (36, section.characteristics)]
            {
                entry[place..place + 4].copy_from_slice(&value.to_le_bytes());
            }
            padding.push((raw_size - size) as usize);
            raw = raw.checked_add(raw_size).ok_or_else(too_large)?;
            next = address.checked_add(size).ok_or_else(too_large)?;
            data_size = data_size.wrapping_add(size);
        }
        let image = align(next, self.section_alignment)?;
        let flags = if nx { self.characteristics } else { self.characteristics & !NX_COMPATIBLE };
        let count = (self.sections.len() + new.len()) as u16;
        let optional = self.optional();
        let mut put = |at: usize, bytes: &[u8]| start[at..at + bytes.len()].copy_from_slice(bytes);
        put(self.coff + 2, &count.to_le_bytes());
        put(optional + 8, &data_size.to_le_bytes());
        put(optional + 56, &image.to_le_bytes());
        put(optional + 64, &[0; 4]); // the checksum: firmware does not look at it
        put(optional + 70, &flags.to_le_bytes());
        Ok(Image { start, padding })
    }
}
