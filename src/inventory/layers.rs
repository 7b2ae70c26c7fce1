//! The files of a container image, as its layers give them one over the other (image-spec, layer.md).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufReader, Read, Seek};

use anyhow::{Context, Result, bail};
use fs_err as fs;

use super::Program;
use super::go;
use crate::digest::Digest;
use crate::oci::Archive;
use crate::oci::read::Layout;
use crate::store::Store;

/// The longest program that is looked into, bytes. K3s, the largest known, has 190 MB.
const LARGEST: u64 = 1 << 30;
/// What a layer puts beside a file to remove it.
const REMOVED: &str = ".wh.";
/// What a layer puts into a folder to remove all that was in it.
const EMPTIED: &str = ".wh..wh..opq";

/// What is in an image.
#[derive(Debug, Default)]
pub(super) struct Inside {
    /// Paths of all files and links, without the first slash.
    pub(super) files: BTreeSet<String>,
    /// Its ELF programs and libraries that may be executed, by path.
    pub(super) programs: Vec<Program>,
}

/// Reads the image in an archive of the store, every blob checked against its digest.
pub(super) fn read(store: &Store, archive: &Archive) -> Result<Inside> {
    let layout = Layout::open(&archive.path)?;
    let images = layout.images()?;
    let image = images.iter().find(|image| image.digest() == archive.digest);
    let image = image.context("the archive does not have its image")?;
    let (mut files, mut programs) = (BTreeSet::new(), BTreeMap::new());
    for layer in &image.manifest.layers {
        let staging = store.staging()?;
        let path = staging.file("layer");
        let mut out = io::BufWriter::with_capacity(1 << 20, fs::File::create_new(&path)?);
        layout.copy(layer, &mut out)?;
        io::Write::flush(&mut out)?;
        drop(out);
        let mut file = BufReader::with_capacity(1 << 20, fs::File::open(&path)?);
        let mut magic = [0; 4];
        let long = file.get_ref().metadata()?.len() >= 4;
        if long {
            file.read_exact(&mut magic)?;
            file.rewind()?;
        }
        // By their first bytes, since media types of Docker and OCI have many spellings.
        let unpacked: Box<dyn Read> = match magic {
            [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::with_buffer(file)?),
            _ => Box::new(file),
        };
        add(unpacked, &mut files, &mut programs)?;
    }
    Ok(Inside { files, programs: programs.into_values().collect() })
}

fn add(
    layer: impl Read,
    files: &mut BTreeSet<String>,
    programs: &mut BTreeMap<String, Program>,
) -> Result<()> {
    let mut gone = |path: &str, files: &mut BTreeSet<String>, below_only: bool| {
        let below = format!("{path}/");
        let goes = |other: &String| (!below_only && other == path) || other.starts_with(&below);
        files.retain(|other| !goes(other));
        programs.retain(|other, _| !goes(other));
    };
    let mut added: Vec<(String, Option<Program>)> = Vec::new();
    for entry in tar::Archive::new(layer).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.display().to_string();
        let path = path.trim_start_matches("./").trim_matches('/').to_owned();
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
        if name == EMPTIED {
            gone(folder, files, true);
            continue;
        }
        if let Some(name) = name.strip_prefix(REMOVED) {
            gone(format!("{folder}/{name}").trim_start_matches('/'), files, false);
            continue;
        }
        let kind = entry.header().entry_type();
        if !kind.is_file() {
            if !kind.is_dir() {
                added.push((path, None));
            }
            continue;
        }
        let executable = entry.header().mode()? & 0o111 != 0;
        let mut magic = Vec::new();
        (&mut entry).take(4).read_to_end(&mut magic)?;
        let program = if executable && magic == b"\x7fELF" {
            if entry.size() > LARGEST {
                bail!("/{path} has {} bytes", entry.size());
            }
            let mut bytes = magic;
            entry.read_to_end(&mut bytes)?;
            Some(Program { path: format!("/{path}"), sha256: Digest::of(&bytes), go: go::read(&bytes) })
        } else {
            None
        };
        added.push((path, program));
    }
    // What a layer removes is of the layers below it, wherever in the layer that stands.
    for (path, program) in added {
        match program {
            Some(program) => drop(programs.insert(path.clone(), program)),
            None => drop(programs.remove(&path)),
        }
        files.insert(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(files: &[(&str, u32, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, mode, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(*mode);
            tar.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn upper_layers_remove_and_replace_what_is_in_lower_ones() {
        let (mut files, mut programs) = (BTreeSet::new(), BTreeMap::new());
        let lower = layer(&[
            ("usr/bin/a", 0o755, "\x7fELF a"),
            ("usr/bin/b", 0o755, "\x7fELF b"),
            ("usr/bin/text", 0o755, "#!/bin/sh"),
            ("opt/x/c", 0o755, "\x7fELF c"),
            ("opt/x/data", 0o644, "\x7fELF no program"),
        ]);
        add(lower.as_slice(), &mut files, &mut programs).unwrap();
        assert_eq!(programs.keys().collect::<Vec<_>>(), ["opt/x/c", "usr/bin/a", "usr/bin/b"]);
        let upper = layer(&[
            ("usr/bin/.wh.a", 0o644, ""),
            ("usr/bin/b", 0o755, "now a script"),
            ("opt/x/d", 0o755, "\x7fELF d"),
            ("opt/x/.wh..wh..opq", 0o644, ""),
        ]);
        add(upper.as_slice(), &mut files, &mut programs).unwrap();
        assert_eq!(programs.keys().collect::<Vec<_>>(), ["opt/x/d"]);
        assert_eq!(programs["opt/x/d"].path, "/opt/x/d");
        assert_eq!(files.iter().collect::<Vec<_>>(), ["opt/x/d", "usr/bin/b", "usr/bin/text"]);
    }
}
