//! What the TOML files bring: files, sysctl settings, the identity of the image.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::step::{StepError, put, text};
use crate::spec::{FileSpec, Layer, Profile};
use crate::tree::{Entry, Tree};

/// Owner of what this step makes.
const OWNER: &str = "kiln:files";

/// Puts the profile's files in, replacing what packages brought at the same paths.
pub fn files(tree: &mut Tree, profile: &Profile) -> Result<(), StepError> {
    put_files(tree, &profile.layer.files, &profile.sources)
}

/// Puts `files` in, by absolute path; `sources` has the bytes of those that are files of the project.
pub fn put_files(
    tree: &mut Tree,
    files: &BTreeMap<String, FileSpec>,
    sources: &BTreeMap<String, Vec<u8>>,
) -> Result<(), StepError> {
    for (path, spec) in files {
        let mode =
            |default| spec.mode.as_deref().map_or(default, |m| u32::from_str_radix(m, 8).unwrap_or(default));
        let entry = if let Some(target) = &spec.link {
            Entry::symlink(target, OWNER)
        } else if spec.dir == Some(true) {
            Entry::dir(mode(0o755), OWNER)
        } else if let Some(bytes) = sources.get(path) {
            Entry::file(mode(0o644), bytes.clone(), OWNER)
        } else {
            Entry::file(mode(0o644), spec.text.clone().unwrap_or_default(), OWNER)
        };
        put(tree, path, entry)?;
    }
    Ok(())
}

/// Writes the profile's kernel parameters where systemd-sysctl reads them (sysctl.d(5)).
pub fn sysctl(tree: &mut Tree, layer: &Layer) -> Result<(), StepError> {
    if layer.sysctl.is_empty() {
        return Ok(());
    }
    let mut out = String::from("# From [sysctl] in the image's TOML files.\n");
    for (name, value) in &layer.sysctl {
        writeln!(out, "{name} = {value}").expect("writing to a String cannot fail");
    }
    put(tree, "usr/lib/sysctl.d/90-kiln.conf", Entry::file(0o644, out, OWNER))
}

/// Adds to os-release(5) which image this is and which kiln made it, so that an update knows what it finds. `version` sorts by the age of the lock, so that systemd-boot, which sorts UKIs by
/// it, takes the newer image first.
pub fn os_release(tree: &mut Tree, profile: &str, version: &str) -> Result<String, StepError> {
    let old = text(tree, "usr/lib/os-release")?.ok_or_else(|| StepError::Missing {
        what: "/usr/lib/os-release".to_owned(),
        remedy: "the package base-files brings it".to_owned(),
    })?;
    let ours: BTreeMap<&str, String> = [
        ("IMAGE_ID", format!("kiln-{profile}")),
        ("IMAGE_VERSION", version.to_owned()),
        ("KILN_VERSION", super::KILN.to_owned()),
        ("DEFAULT_HOSTNAME", "node".to_owned()),
    ]
    .into();
    let mut out: String = old
        .lines()
        .filter(|line| !ours.keys().any(|key| line.split('=').next() == Some(*key)))
        .map(|line| format!("{line}\n"))
        .collect();
    for (key, value) in ours {
        writeln!(out, "{key}={value}").expect("writing to a String cannot fail");
    }
    put(tree, "usr/lib/os-release", Entry::file(0o644, out.clone(), "kiln:os-release"))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::TreePath;

    #[test]
    fn os_release_says_which_image_it_is_once() {
        let mut tree = Tree::new();
        let old = "NAME=Debian\nIMAGE_ID=old\n";
        tree.insert(TreePath::new("usr/lib/os-release").unwrap(), Entry::file(0o644, old, "base-files"))
            .unwrap();
        let text = os_release(&mut tree, "server", "20260912-abc").unwrap();
        assert_eq!(
            text,
            format!(
                "NAME=Debian\nDEFAULT_HOSTNAME=node\nIMAGE_ID=kiln-server\nIMAGE_VERSION=20260912-abc\nKILN_VERSION={}\n",
                env!("CARGO_PKG_VERSION")
            )
        );
    }
}
