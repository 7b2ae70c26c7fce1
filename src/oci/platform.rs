//! Which machine an image is for, and which of several images a machine takes.
//!
//! The rules are those of [containerd's package](https://github.com/containerd/platforms) (Normalize, Only): names of architectures have
//! aliases, `amd64/v1` and `arm64/v8` say no more than `amd64` and `arm64`, and a processor runs what is made for older ones of its kind.
//! Which processor a node will have is not known here, so the image that asks for least is taken.

use super::types::{CONFIG, DOCKER_CONFIG, Descriptor, Manifest, Platform};
use crate::arch::Arch;

/// Annotation by which Docker's BuildKit marks what is about an image and none itself (BuildKit, docs/attestations/attestation-storage.md).
const REFERENCE: &str = "vnd.docker.reference.type";
/// What old versions of Docker wrote in the place of a config's media type; moby takes these too (distribution/manifest.go).
const OLD_CONFIGS: [&str; 2] = ["application/octet-stream", "text/html"];

/// What an image asks of a processor: 0 is what every one of its architecture can do.
pub type Demand = u32;

/// What an image for `platform` asks of a machine `arch` with Linux; `None` if it does not run there.
pub fn demand(platform: &Platform, arch: Arch) -> Option<Demand> {
    let is = |text: &str, words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    let names: &[&str] = match arch {
        Arch::Amd64 => &["amd64", "x86_64", "x86-64"],
        Arch::Arm64 => &["arm64", "aarch64"],
    };
    if !is(&platform.os, &["linux"]) || !is(&platform.architecture, names) {
        return None;
    }
    let variant = platform.variant.as_deref().unwrap_or_default().to_ascii_lowercase();
    if variant.is_empty() {
        return Some(0);
    }
    let (major, minor) =
        variant.trim_start_matches('v').split_once('.').unwrap_or((variant.trim_start_matches('v'), "0"));
    let number = |text: &str| text.parse::<u32>().ok().filter(|n| *n < 100);
    let (major, minor) = (number(major)?, number(minor)?);
    let first = match arch {
        Arch::Amd64 => 1,
        Arch::Arm64 => 8,
    };
    Some(major.checked_sub(first)? * 100 + minor)
}

/// As people write it: `linux/arm64/v8`, fit for a terminal.
pub fn shown(platform: &Platform) -> String {
    let words = [Some(&platform.os), Some(&platform.architecture), platform.variant.as_ref()];
    let words = words.into_iter().flatten().filter(|word| !word.is_empty());
    words.map(|word| word.escape_debug().take(40).collect::<String>()).collect::<Vec<_>>().join("/")
}

/// The platform that an index gives; `None` if it gives none, or an empty one.
pub fn named(entry: &Descriptor) -> Option<&Platform> {
    entry.platform.as_ref().filter(|p| !(p.os.is_empty() && p.architecture.is_empty()))
}

/// Whether an entry of an index is about an image (a signature, a bill of materials) instead of being one.
pub fn is_about_another(entry: &Descriptor) -> bool {
    let unknown = |p: &Platform| p.os == "unknown" && p.architecture == "unknown";
    entry.annotations.contains_key(REFERENCE) || entry.platform.as_ref().is_some_and(unknown)
}

/// Whether a manifest is that of an image to run; others have the same form (image-spec, manifest.md, "Guidelines for Artifact Usage").
pub fn is_image(manifest: &Manifest) -> bool {
    let kind = manifest.config.media_type.as_str();
    kind == CONFIG || kind == DOCKER_CONFIG || OLD_CONFIGS.contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Platform {
        let mut words = text.split('/').map(str::to_owned);
        let (os, architecture) = (words.next().unwrap(), words.next().unwrap());
        Platform { architecture, os, variant: words.next() }
    }

    #[test]
    fn the_older_processor_asks_for_less() {
        for (text, amd64, arm64) in [
            ("linux/amd64", Some(0), None),
            ("linux/amd64/", Some(0), None),
            ("linux/amd64/v1", Some(0), None),
            ("linux/amd64/v2", Some(100), None),
            ("linux/amd64/v3", Some(200), None),
            ("linux/amd64/3", Some(200), None),
            ("Linux/x86_64", Some(0), None),
            ("linux/amd64/v0", None, None),
            ("linux/amd64/haswell", None, None),
            ("linux/amd64/v4294967296", None, None),
            ("linux/arm64", None, Some(0)),
            ("linux/arm64/v8", None, Some(0)),
            ("linux/aarch64/8", None, Some(0)),
            ("linux/arm64/v8.2", None, Some(2)),
            ("linux/arm64/v9", None, Some(100)),
            ("linux/arm64/v7", None, None),
            ("linux/arm/v7", None, None),
            ("windows/amd64", None, None),
            ("unknown/unknown", None, None),
        ] {
            assert_eq!(
                (demand(&of(text), Arch::Amd64), demand(&of(text), Arch::Arm64)),
                (amd64, arm64),
                "{text}"
            );
        }
        assert_eq!(shown(&of("linux/arm64/v8")), "linux/arm64/v8");
        assert_eq!(shown(&of("linux/\u{1b}[31m")), "linux/\\u{1b}[31m");
    }
}
