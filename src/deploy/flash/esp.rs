//! The ESP of a node: that of the image, and the node's credentials on it.
//!
//! systemd-stub hands `/loader/credentials/*.cred` to the initrd (systemd-stub(7)), which hands them on to systemd. The file system is
//! made anew from its files, so that its digest is known before a byte of it is written.

use std::collections::BTreeMap;
use std::io::Cursor;

use crate::cluster::{Credential, seal, sealed};
use crate::error::{Failure, Kind};
use crate::image::fat::{self, FatError, FileSystem, Reader, Source};
use crate::tree::TreePath;

/// The folder that systemd-stub looks into, whatever kernel it starts.
const FOLDER: &str = "loader/credentials";

/// The ESP `image` in a file system of `size` bytes and `sector`, with `identity`; credentials that an image should not have are dropped.
pub(super) fn compose(
    image: &[u8],
    size: u64,
    sector: u32,
    epoch: i64,
    identity: &[Credential],
) -> Result<Vec<u8>, Failure> {
    let fail = |error: FatError| {
        let hint = match error {
            FatError::Full { .. } => "make esp larger in [disk] of the profile",
            _ => "build the image again with this kiln",
        };
        Failure::new(Kind::Input, format!("the ESP of the image cannot hold this node's identity: {error}"))
            .hint(hint)
    };
    let mut reader = Reader::new(Cursor::new(image)).map_err(fail)?;
    let mut files = BTreeMap::new();
    let path =
        |path: &str| TreePath::new(path).map_err(|error| fail(FatError::Io(std::io::Error::other(error))));
    for node in reader.list().map_err(fail)? {
        if !node.directory && !node.path.starts_with(FOLDER) {
            files.insert(path(&node.path)?, Source::Bytes(reader.read(&node.path).map_err(fail)?));
        }
    }
    let to_seal = seal::names(identity);
    let mut spare = 0;
    for credential in identity {
        let mut bytes = sealed::seal(credential);
        if to_seal.contains(&credential.name) {
            let room = seal::room(credential.value.expose().len());
            spare = spare.max(room);
            bytes = sealed::padded(bytes, room);
        }
        files.insert(path(&format!("{FOLDER}/{}.cred", credential.name))?, Source::Bytes(bytes));
    }
    if spare > 0 {
        let bytes = sealed::padded(Vec::new(), spare);
        files.insert(path(&format!("{FOLDER}/{}.cred", seal::SPARE))?, Source::Bytes(bytes));
    }
    let system =
        FileSystem { size, sector, serial: reader.serial, label: reader.label.clone(), epoch, files };
    let mut out = Cursor::new(vec![0; usize::try_from(size).unwrap_or(0)]);
    fat::write(&system, &mut out).map_err(fail)?;
    Ok(out.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::secret::Value;

    #[test]
    fn an_esp_gets_the_credentials_and_keeps_all_else() {
        let file = |path: &str, bytes: &[u8]| (TreePath::new(path).unwrap(), Source::Bytes(bytes.to_vec()));
        let uki = vec![7; 3 << 20];
        let fs = FileSystem {
            size: 64 << 20,
            sector: 512,
            serial: 5,
            label: "ESP".to_owned(),
            epoch: 1_700_000_000,
            files: BTreeMap::from([
                file("EFI/Linux/kiln_1+3.efi", &uki),
                file("loader/loader.conf", b"timeout 0\n"),
                file("loader/credentials/left.cred", b"over"),
            ]),
        };
        let mut image = Cursor::new(vec![0; 64 << 20]);
        fat::write(&fs, &mut image).unwrap();
        let image = image.into_inner();
        let token = Credential { name: "k3s.token".to_owned(), value: Value::new("secret"), secret: true };
        let sealed = sealed::seal(&token);
        for (size, sector) in [(64 << 20, 512), (260 << 20, 4096)] {
            let esp = compose(&image, size, sector, fs.epoch, std::slice::from_ref(&token)).unwrap();
            assert_eq!(esp.len() as u64, size);
            let mut reader = Reader::new(Cursor::new(&esp)).unwrap();
            let files: Vec<_> =
                reader.list().unwrap().into_iter().filter(|n| !n.directory).map(|n| n.path).collect();
            assert_eq!(
                files,
                ["EFI/Linux/kiln_1+3.efi", "loader/credentials/k3s.token.cred", "loader/loader.conf"]
            );
            assert!(reader.read("EFI/Linux/kiln_1+3.efi").unwrap() == uki);
            assert!(reader.read("loader/credentials/k3s.token.cred").unwrap() == sealed);
        }
        // What is to be sealed has room, and there is a spare file as large as the largest.
        let long =
            Credential { name: "k3s.registries".to_owned(), value: Value::new([7; 9000]), ..token.clone() };
        let order = seal::order(crate::spec::cluster::Seal::Tpm2, ["k3s.token", "k3s.registries"]).unwrap();
        let host = Credential { name: "system.hostname".to_owned(), value: Value::new("a"), secret: false };
        let identity = [token.clone(), long, host.clone(), order];
        let esp = compose(&image, 64 << 20, 512, fs.epoch, &identity).unwrap();
        let mut reader = Reader::new(Cursor::new(&esp)).unwrap();
        let mut read = |name: &str| reader.read(&format!("loader/credentials/{name}.cred")).unwrap();
        let padded = read("k3s.token");
        assert_eq!((padded.len(), read("k3s.registries").len()), (seal::room(6), seal::room(9000)));
        assert!(padded.starts_with(&sealed) && padded[sealed.len()..].iter().all(|byte| *byte == b'\n'));
        assert_eq!(read(seal::SPARE), vec![b'\n'; seal::room(9000)]);
        assert_eq!(read("system.hostname"), sealed::seal(&host));

        let large = Credential { value: Value::new(vec![1; 61 << 20]), ..token };
        let error = compose(&image, 64 << 20, 512, 0, &[large]).unwrap_err();
        assert!(
            error.to_string().contains("cannot hold") && error.hints()[0].contains("esp larger"),
            "{error}"
        );
        assert!(compose(&[1; 4096], 64 << 20, 512, 0, &[]).is_err());
    }
}
