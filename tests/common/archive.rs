//! A Debian archive of a few hand-made packages, signed by a key that is made for the test.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::OnceLock;

use kiln::digest::Digest;
use pgp::composed::{
    ArmorOptions, CleartextSignedMessage, DetachedSignature, KeyType, SecretKeyParamsBuilder,
    SignedPublicKey, SignedSecretKey,
};
use pgp::crypto::hash::HashAlgorithm;
use pgp::types::{KeyDetails, Password};

use super::run::Env;

/// A file of a hand-made package: path and bytes.
pub type Files<'a> = &'a [(&'a str, &'a [u8])];

pub fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        out.extend(
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, bytes.len()).bytes(),
        );
        out.extend(*bytes);
        if bytes.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

pub fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A tar header with a path that the tar crate's own setters might refuse.
pub fn header(path: &str, kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    header
}

/// The bytes of a tar archive with these headers and contents.
pub fn tarball(entries: &[(tar::Header, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (header, content) in entries {
        out.extend(header.as_bytes());
        out.extend(*content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// A whole .deb whose files are in the tar archive `data`.
pub fn deb(control: &str, data: &[u8]) -> Vec<u8> {
    let control =
        tarball(&[(header("./control", tar::EntryType::Regular, control.len() as u64), control.as_bytes())]);
    ar(&[("debian-binary", b"2.0\n"), ("control.tar.xz", &xz(&control)), ("data.tar.xz", &xz(data))])
}

fn data(files: Files<'_>) -> Vec<u8> {
    let entries: Vec<_> = files
        .iter()
        .map(|(path, bytes)| {
            (header(&format!("./{path}"), tar::EntryType::Regular, bytes.len() as u64), *bytes)
        })
        .collect();
    tarball(&entries)
}

/// A key that signs archives: one per run, since making keys takes time and which one it is does not matter.
pub fn key(number: usize) -> &'static SignedSecretKey {
    static KEYS: [OnceLock<SignedSecretKey>; 2] = [OnceLock::new(), OnceLock::new()];
    KEYS[number].get_or_init(|| {
        let mut parameters = SecretKeyParamsBuilder::default();
        parameters
            .key_type(KeyType::Ed25519Legacy)
            .can_certify(true)
            .can_sign(true)
            .primary_user_id(format!("archive {number} of a test"));
        parameters.build().unwrap().generate(rand::thread_rng()).unwrap()
    })
}

/// What an archive has and says of itself.
#[derive(Debug, Clone)]
pub struct Archive {
    /// Path below the archive's base to bytes.
    pub files: BTreeMap<String, Vec<u8>>,
    pub packages: Vec<String>,
    pub codename: String,
    /// Seconds from now to the Release's date.
    pub age: i64,
    /// Seconds from now to the end of its validity.
    pub valid: i64,
    pub signed_by: usize,
    /// Whether it says that indexes lie under their digests; they do not.
    pub by_hash: bool,
    /// The endings of the Packages files that it lists; the mirror has the last of them only.
    pub packings: &'static [&'static str],
    /// Release with Release.gpg instead of InRelease.
    pub detached: bool,
    /// Further bytes of the Packages file.
    pub junk: Vec<u8>,
}

impl Default for Archive {
    fn default() -> Self {
        Archive {
            files: BTreeMap::new(),
            packages: Vec::new(),
            codename: "trixie".to_owned(),
            age: -3600,
            valid: 7 * 86_400,
            signed_by: 0,
            by_hash: false,
            packings: &[".xz"],
            detached: false,
            junk: Vec::new(),
        }
    }
}

impl Archive {
    /// With one package of some size, and what every project needs to have locked.
    pub fn sample() -> Self {
        let mut archive = Self::default();
        // Marsaglia's xorshift: bytes that no compression makes smaller, so that half of the package is a lot.
        let mut state = 0x2545_f491_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[1]
        })
        .take(300_000)
        .collect();
        archive.add("hello", "1.0-1", "", &[("usr/share/hello", &noise)]);
        for name in ["linux-image-cloud-amd64", "systemd-boot-efi", "busybox-static"] {
            archive.add(name, "6.0-1", "", &[("usr/share/x", b"not the real thing")]);
        }
        archive
    }

    /// Adds a package with files; `fields` are further lines of its control file.
    pub fn add(&mut self, name: &str, version: &str, fields: &str, files: Files<'_>) -> String {
        self.add_raw(name, version, fields, &data(files))
    }

    /// Adds a package whose data.tar is `data`. Returns its path.
    pub fn add_raw(&mut self, name: &str, version: &str, fields: &str, data: &[u8]) -> String {
        let control = format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody\nDescription: test\n{fields}"
        );
        let bytes = deb(&control, data);
        self.put(name, version, &control, bytes)
    }

    /// Adds any bytes in the place of a package.
    pub fn add_bytes(&mut self, name: &str, version: &str, bytes: Vec<u8>) -> String {
        let control = format!("Package: {name}\nVersion: {version}\nArchitecture: amd64\n");
        self.put(name, version, &control, bytes)
    }

    fn put(&mut self, name: &str, version: &str, control: &str, bytes: Vec<u8>) -> String {
        let path = format!("pool/main/{name}_{version}_amd64.deb");
        self.packages.push(format!(
            "{control}Filename: {path}\nSize: {}\nSHA256: {}\n",
            bytes.len(),
            Digest::of(&bytes)
        ));
        self.files.insert(path.clone(), bytes);
        path
    }

    /// Drops a package from the archive, as the archive does when it is superseded.
    pub fn remove(&mut self, name: &str) {
        self.packages.retain(|stanza| !stanza.starts_with(&format!("Package: {name}\n")));
        self.files.retain(|path, _| !path.starts_with(&format!("pool/main/{name}_")));
    }

    /// Writes and signs the metadata.
    pub fn publish(&mut self) {
        let mut packages = self.packages.join("\n").into_bytes();
        packages.extend(&self.junk);
        let dists = format!("dists/{}", "trixie");
        let by_hash = if self.by_hash { "Acquire-By-Hash: yes\n" } else { "" };
        let mut release = format!(
            "Origin: Debian\nLabel: Debian\nSuite: stable\nCodename: {}\nDate: {}\nValid-Until: {}\n{by_hash}Architectures: all amd64\n\
             Components: main\nSHA256:\n",
            self.codename,
            rfc822(now() + self.age),
            rfc822(now() + self.valid),
        );
        for packing in self.packings {
            let index = match *packing {
                ".xz" => xz(&packages),
                ".zst" => zstd::encode_all(packages.as_slice(), 1).unwrap(),
                ".gz" => gz(&packages),
                _ => packages.clone(),
            };
            let path = format!("main/binary-amd64/Packages{packing}");
            release.push_str(&format!(" {} {} {path}\n", Digest::of(&index), index.len()));
            if self.packings.last() == Some(packing) {
                self.files.insert(format!("{dists}/{path}"), index);
            }
        }
        let (key, armor) = (&key(self.signed_by).primary_key, ArmorOptions::default());
        if self.detached {
            let signed = DetachedSignature::sign_binary_data(
                rand::thread_rng(),
                key,
                &Password::empty(),
                HashAlgorithm::Sha256,
                release.as_bytes(),
            )
            .unwrap();
            self.files.insert(format!("{dists}/Release.gpg"), signed.to_armored_bytes(armor).unwrap());
            self.files.insert(format!("{dists}/Release"), release.into_bytes());
        } else {
            let signed =
                CleartextSignedMessage::sign(rand::thread_rng(), &release, key, &Password::empty()).unwrap();
            let text = signed.to_armored_string(armor).unwrap();
            self.files.insert(format!("{dists}/InRelease"), text.into_bytes());
        }
    }

    /// Writes the files below `folder`, as a mirror on this machine has them.
    pub fn write_to(&self, folder: &std::path::Path) {
        for (path, bytes) in &self.files {
            let path = folder.join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, bytes).unwrap();
        }
    }

    /// Writes a project into `env` that trusts key 0 and asks for `packages`.
    pub fn project(env: &Env, packages: &[&str]) {
        let public = SignedPublicKey::from(key(0).clone());
        env.write("project/images/keys/test.asc", public.to_armored_string(ArmorOptions::default()).unwrap());
        env.write(
            "project/images/debian.toml",
            format!(
                "schema = 1\narchitectures = [\"amd64\"]\n\n[[key]]\nfile = \"test.asc\"\nfingerprint = \"{}\"\n\n\
                 [[suite]]\nname = \"trixie\"\narchive = \"debian\"\ncomponents = [\"main\"]\n",
                hex::encode_upper(key(0).fingerprint().as_bytes())
            ),
        );
        let set = |name: &str, package: &str| {
            format!(
                "[set.{name}]\ndescription = \"\"\npackages = [\"{package}\"]\narchitectures = [\"amd64\"]\ndependencies = false\n"
            )
        };
        env.write(
            "project/images/tools.toml",
            format!("schema = 1\n{}{}", set("boot", "systemd-boot-efi"), set("initrd", "busybox-static")),
        );
        env.write(
            "project/profiles/server.toml",
            format!(
                "schema = 1\nrole = \"server\"\n\n[packages]\ninstall = {packages:?}\n\n[kernel]\nflavour = \"cloud\"\n"
            ),
        );
    }
}

pub fn now() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "signatures are made for the time at which the test runs")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

/// `Sat, 12 Sep 2026 07:55:41 UTC`; the day of the week is not looked at.
fn rfc822(seconds: i64) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    // Howard Hinnant, days to civil.
    let days = seconds.div_euclid(86_400) + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let rest = seconds.rem_euclid(86_400);
    format!(
        "Thu, {:02} {} {} {:02}:{:02}:{:02} UTC",
        day - (153 * shifted + 2) / 5 + 1,
        MONTHS[usize::try_from(month - 1).unwrap()],
        year + era * 400 + i64::from(month <= 2),
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}
