use super::super::types::{CONFIG, Execution, LAYER, MANIFEST, Platform, RootFs};
use super::super::write::{self, Blob, Image};
use super::*;
use proptest::prelude::*;

fn image() -> Image {
    let layer = Blob::of(b"not a real layer".repeat(100));
    let config = ImageConfig {
        created: None,
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        config: Some(Execution { entrypoint: Some(vec!["/x".to_owned()]), ..Execution::default() }),
        rootfs: RootFs { kind: "layers".to_owned(), diff_ids: vec![format!("sha256:{}", layer.digest)] },
    };
    let config = Blob::of(serde_json::to_vec(&config).unwrap());
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(MANIFEST.to_owned()),
        config: config.descriptor(CONFIG),
        layers: vec![layer.descriptor(LAYER)],
    };
    Image {
        name: "r.example.org/a:1".to_owned(),
        tag: Some("1".to_owned()),
        platform: Platform { architecture: "amd64".to_owned(), os: "linux".to_owned(), variant: None },
        manifest: serde_json::to_vec(&manifest).unwrap(),
        blobs: vec![config, layer],
    }
}

fn archive() -> (Vec<u8>, Digest) {
    let mut bytes = Vec::new();
    let digest = write::archive(&image(), &mut bytes).unwrap();
    (bytes, digest)
}

fn opened(bytes: &[u8]) -> Result<Vec<Found>, LayoutError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let layout = Layout::open(file.path())?;
    let images = layout.images()?;
    images.iter().try_for_each(|image| layout.verify(image))?;
    Ok(images)
}

/// An archive of these members, names as they are.
fn of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

const VERSION: (&str, &[u8]) = ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);

#[test]
fn what_is_written_is_read() {
    let (bytes, digest) = archive();
    let images = opened(&bytes).unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!((images[0].name.as_deref(), images[0].digest()), (Some("r.example.org/a:1"), digest));
    assert_eq!(images[0].config.config.as_ref().unwrap().entrypoint, Some(vec!["/x".to_owned()]));
    assert_eq!(archive().0, bytes, "the same every time");
}

#[test]
fn a_writer_does_not_write_a_blob_that_was_damaged_since() {
    let mut wrong = image();
    wrong.blobs[1].bytes = write::Bytes::Memory(vec![0; 1600]);
    let error = write::archive(&wrong, io::sink()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    wrong.blobs.pop();
    assert!(write::archive(&wrong, io::sink()).unwrap_err().to_string().contains("not at hand"));
}

#[test]
fn a_folder_with_a_link_in_the_place_of_a_blob_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, _) = archive();
    tar::Archive::new(bytes.as_slice()).unpack(dir.path()).unwrap();
    let layout = Layout::open(dir.path()).unwrap();
    let found = layout.images().unwrap().remove(0);
    layout.verify(&found).unwrap();
    let blob = dir.path().join(blob_path(found.manifest.layers[0].digest));
    fs::rename(&blob, dir.path().join("aside")).unwrap();
    fs::os::unix::fs::symlink(dir.path().join("aside"), &blob).unwrap();
    assert!(layout.verify(&found).unwrap_err().to_string().contains("no plain file"));
}

#[test]
fn names_that_lead_out_or_come_twice_and_foreign_versions_are_refused() {
    for (members, word) in [
        (vec![VERSION, ("../../etc/passwd", &b"x"[..])], "`..` component"),
        (vec![VERSION, ("a//b", b"x")], "empty component"),
        (vec![VERSION, VERSION], "twice"),
        (vec![("oci-layout", &br#"{"imageLayoutVersion":"2.0.0"}"#[..])], "2.0.0"),
        (vec![("oci-layout", b"{}")], "oci-layout"),
        (vec![("index.json", b"{}")], "no oci-layout"),
        (vec![VERSION, ("index.json", b"[]")], "index.json"),
        (vec![VERSION], "no index.json"),
    ] {
        let error = opened(&of(&members)).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn headers_that_change_a_member_or_have_no_end_are_refused() {
    let with = |kind: tar::EntryType, bytes: &[u8]| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        builder.append(&header, bytes).unwrap();
        let mut all = builder.into_inner().unwrap();
        all.truncate(all.len() - 1024);
        all.extend(archive().0);
        opened(&all).map_err(|e| e.to_string())
    };
    let pax = tar::EntryType::XHeader;
    assert_eq!(with(pax, b"20 mtime=1700000000\n").unwrap().len(), 1);
    assert!(with(pax, b"12 path=../x\n").unwrap_err().contains("changes the name"));
    assert!(with(pax, b"19 size=9999999999\n").unwrap_err().contains("changes the name"));
    assert!(
        with(tar::EntryType::XGlobalHeader, &vec![b'x'; 70_000]).unwrap_err().contains("changes the name")
    );
    assert!(with(tar::EntryType::GNULongName, b"blobs/x").unwrap_err().contains("longer name"));
}

#[test]
fn an_index_that_holds_itself_or_names_too_much_ends() {
    // Each index in the next: no digest can hold itself, so depth is what a stranger can make.
    let mut inner = Blob::of(br#"{"schemaVersion":2,"manifests":[]}"#.to_vec());
    let mut members = vec![(VERSION.0.to_owned(), VERSION.1.to_vec())];
    for _ in 0..6 {
        let write::Bytes::Memory(bytes) = inner.bytes.clone() else { unreachable!("made in memory") };
        members.push((blob_path(inner.digest), bytes));
        let index = Index { schema_version: 2, media_type: None, manifests: vec![inner.descriptor("x")] };
        inner = Blob::of(serde_json::to_vec(&index).unwrap());
    }
    let write::Bytes::Memory(bytes) = inner.bytes else { unreachable!("made in memory") };
    members.push(("index.json".to_owned(), bytes));
    let members: Vec<(&str, &[u8])> = members.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    assert!(opened(&of(&members)).unwrap_err().to_string().contains("too deep"));
}

#[test]
fn a_flipped_bit_anywhere_in_a_blob_is_found() {
    let (bytes, _) = archive();
    let at = bytes.windows(16).position(|w| w == b"not a real layer").unwrap();
    let mut broken = bytes;
    broken[at + 5] ^= 1;
    assert!(opened(&broken).unwrap_err().to_string().contains("has the digest"));
}

proptest! {
    #[test]
    fn damaged_archives_never_panic(at in 0_usize..12_000, value: u8, cut in 0_usize..13_000) {
        let (mut bytes, _) = archive();
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes.truncate(cut);
        let _ = opened(&bytes);
    }
}
