//! A tree as the tar archive that a layer is (image-spec, layer.md): in the order of paths, every time the same, nothing of this machine.

use std::io::{self, Write};

use tar::{Builder, EntryType, Header};

use crate::tree::{Entry, Kind, Tree};

/// Writes `tree` with `epoch` (seconds since 1970) as the time of everything.
///
/// A directory comes before what is in it. Two files with the same bytes are written twice: container tools keep layers as they are,
/// and the root that carries them stores equal blocks once.
pub fn write(tree: &Tree, epoch: i64, out: impl Write) -> io::Result<()> {
    let mut builder = Builder::new(out);
    for (path, entry) in tree.iter() {
        let mut header = header(entry, epoch)?;
        let pax =
            entry.meta.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice()));
        let pax: Vec<(String, &[u8])> = pax.collect();
        if !pax.is_empty() {
            builder.append_pax_extensions(pax.iter().map(|(name, value)| (name.as_str(), *value)))?;
        }
        match &entry.kind {
            Kind::File(content) => builder.append_data(&mut header, path.as_str(), content.reader())?,
            Kind::Symlink { target } => builder.append_link(&mut header, path.as_str(), target)?,
            // Tools tell folders by the slash as well as by the type.
            Kind::Dir => builder.append_data(&mut header, format!("{path}/"), io::empty())?,
            Kind::Char { .. } | Kind::Block { .. } | Kind::Fifo => {
                builder.append_data(&mut header, path.as_str(), io::empty())?;
            }
        }
    }
    builder.into_inner()?.flush()
}

fn header(entry: &Entry, epoch: i64) -> io::Result<Header> {
    let mut header = Header::new_gnu();
    header.set_mode(entry.meta.mode & 0o7777);
    header.set_uid(entry.meta.uid.into());
    header.set_gid(entry.meta.gid.into());
    header.set_mtime(u64::try_from(epoch).unwrap_or(0));
    header.set_size(0);
    let mut device = |kind, major, minor| {
        header.set_entry_type(kind);
        header.set_device_major(major)?;
        header.set_device_minor(minor)
    };
    match &entry.kind {
        Kind::Dir => header.set_entry_type(EntryType::Directory),
        Kind::Symlink { .. } => header.set_entry_type(EntryType::Symlink),
        Kind::Fifo => header.set_entry_type(EntryType::Fifo),
        Kind::Char { major, minor } => device(EntryType::Char, *major, *minor)?,
        Kind::Block { major, minor } => device(EntryType::Block, *major, *minor)?,
        Kind::File(content) => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(content.size());
        }
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::tree::TreePath;

    #[test]
    fn a_layer_is_read_back_as_it_was_and_is_the_same_every_time() {
        let long = format!("usr/{}/x", "d".repeat(150));
        let mut tree = Tree::new();
        let mut put =
            |path: &str, entry: Entry| drop(tree.insert(TreePath::new(path).unwrap(), entry).unwrap());
        put("bin/sh", Entry::symlink("busybox", "t"));
        put("bin/busybox", Entry::file(0o755, "program", "t"));
        put("tmp", Entry::dir(0o1777, "t"));
        put(&long, Entry::file(0o644, "deep", "t"));
        put("dev/null", Entry { kind: Kind::Char { major: 1, minor: 3 }, ..Entry::dir(0o666, "t") });
        let mut able = Entry::file(0o755, "ping", "t");
        able.meta.xattrs.insert("security.capability".to_owned(), vec![1, 0, 2, 255]);
        put("bin/ping", able);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        write(&tree, 1_700_000_000, &mut first).unwrap();
        write(&tree, 1_700_000_000, &mut second).unwrap();
        assert!(first == second);
        let mut seen = Vec::new();
        let mut archive = tar::Archive::new(first.as_slice());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let found = tree.get(name.trim_end_matches('/')).unwrap();
            assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (1_700_000_000, 0));
            assert_eq!(entry.header().mode().unwrap(), found.meta.mode, "{name}");
            if let Some(content) = found.content() {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                assert_eq!(bytes, content.read().unwrap());
            }
            if name == "bin/ping" {
                let pax = entry.pax_extensions().unwrap().unwrap().map(Result::unwrap).collect::<Vec<_>>();
                assert_eq!(pax[0].value_bytes(), [1, 0, 2, 255]);
            }
            if let Kind::Symlink { target } = &found.kind {
                assert_eq!(entry.link_name().unwrap().unwrap().to_str(), Some(target.as_str()));
            }
            seen.push(name);
        }
        assert_eq!(seen.len(), tree.len());
        assert_eq!(seen[0], "bin/");
    }
}
