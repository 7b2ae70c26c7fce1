//! What upstream publishes about its releases: the channels, the digests, and what a release brings.

use std::collections::BTreeMap;

use anyhow::Result;
use memchr::memmem;
use serde::Deserialize;

use super::version::Version;
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::fetch::Fetcher;
use crate::spec::nearest;
use crate::sys;
use crate::url::Url;

/// The most that a list may have, bytes; those of 2025 have 30 kB.
const LARGEST: u64 = 4 << 20;

/// What surrounds the list of modules in a Go program (cmd/go/internal/modload/build.go).
const BEFORE: [u8; 16] =
    [0x30, 0x77, 0xaf, 0x0c, 0x92, 0x74, 0x08, 0x02, 0x41, 0xe1, 0xc1, 0x07, 0xe6, 0xd6, 0x18, 0xe6];
const AFTER: [u8; 16] =
    [0xf9, 0x32, 0x43, 0x31, 0x86, 0x18, 0x20, 0x72, 0x00, 0x82, 0x42, 0x10, 0x41, 0x16, 0xd8, 0xf2];

/// Answer of a channel server.
#[derive(Deserialize)]
struct Channels {
    data: Vec<Channel>,
}

#[derive(Deserialize)]
struct Channel {
    id: String,
    /// Not there for a channel without a release.
    #[serde(default)]
    latest: Option<String>,
}

/// The newest release of the channel `name`, as the server at `url` says.
///
/// # Errors
/// [`Kind::Fetch`] if it does not say so; [`Kind::Input`] if it knows no such channel.
pub(super) fn newest(fetcher: &Fetcher<'_>, url: &str, name: &str) -> Result<Version> {
    let bytes = fetcher.get_as(url, &["application/json"], LARGEST).map_err(|error| {
        Failure::new(Kind::Fetch, format!("nobody says which K3s is the newest of channel `{name}`"))
            .hint("a version can be named: `--to v1.33.4+k3s1`")
            .because(error)
    })?;
    read_channels(&bytes, name).map_err(|failure| {
        Failure::new(failure.kind, format!("the channel server {} does not help", Url::from(url)))
            .because(failure)
            .into()
    })
}

fn read_channels(bytes: &[u8], name: &str) -> Result<Version, Failure> {
    let channels: Channels = serde_json::from_slice(bytes)
        .map_err(|error| Failure::new(Kind::Fetch, "its answer is no list of channels").because(error))?;
    let Some(channel) = channels.data.iter().find(|channel| channel.id == name) else {
        let mut failure = Failure::new(Kind::Input, format!("there is no channel `{name}`"));
        if let Some(near) = nearest(name, channels.data.iter().map(|channel| channel.id.as_str())) {
            failure = failure.hint(format!("did you mean `{near}`?"));
        }
        return Err(failure.hint("a version can be named too: `--to v1.33.4+k3s1`"));
    };
    let wrong = |why: String| Failure::new(Kind::Fetch, why);
    let latest = channel.latest.as_deref().filter(|latest| !latest.is_empty());
    let latest = latest.ok_or_else(|| wrong(format!("its channel `{name}` has no release")))?;
    latest.parse().map_err(|error| wrong(format!("its channel `{name}`: {error}")))
}

/// A small text of a release, from the first of the folders `urls` that has it.
///
/// # Errors
/// [`Kind::Fetch`] with what each of them said.
pub(super) fn text(fetcher: &Fetcher<'_>, urls: &[String], file: &str) -> Result<String> {
    let mut answers = Vec::new();
    for url in urls {
        let url = format!("{}/{file}", url.trim_end_matches('/'));
        match fetcher.get_as(&url, &["*/*"], LARGEST) {
            Ok(bytes) => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => answers.push(format!("{error:#}")),
        }
        sys::check_interrupt()?;
    }
    Err(Failure::new(Kind::Fetch, format!("{file} cannot be had"))
        .because(anyhow::anyhow!(answers.join("\n             ")))
        .into())
}

/// The digest of the file `name` in a list of sha256sum(1).
///
/// # Errors
/// It is not in the list, or what stands there is none.
pub(super) fn digest(list: &str, name: &str) -> Result<Digest, String> {
    let mut lines = list.lines().filter_map(|line| line.trim_end().split_once(' '));
    // A star stands for bytes as they are, which is all there is on Linux.
    let named = |file: &str| file.trim_start().trim_start_matches('*').trim_start_matches("./") == name;
    let (digest, _) =
        lines.find(|(_, file)| named(file)).ok_or_else(|| format!("it does not name `{name}`"))?;
    digest.parse().map_err(|error| format!("`{name}`: {error}"))
}

/// Container images of a release, by name, with their tags: `docker.io/rancher/mirrored-coredns-coredns:1.12.1` is `coredns`.
pub(super) fn images(list: &str) -> BTreeMap<String, String> {
    let of_line = |line: &str| {
        let (path, tag) = line.trim().rsplit_once(':')?;
        let name = path.rsplit('/').next()?;
        let name = name.trim_start_matches("mirrored-").trim_start_matches("library-");
        // Upstream's copies are called by project and image, which are often the same word.
        let name = match name.split_once('-') {
            Some((project, image)) if project == image => image,
            _ => name,
        };
        let plain = |text: &str| !text.is_empty() && !text.contains(['/', ' ', '<']);
        (plain(name) && plain(tag)).then(|| (name.to_owned(), tag.to_owned()))
    };
    list.lines().filter_map(of_line).collect()
}

/// The modules that a Go program was made of, with the versions of what stands in their places: `go version -m` shows the same. Nothing
/// if it does not say.
pub(super) fn modules(program: &[u8]) -> BTreeMap<String, String> {
    let lists = memmem::find_iter(program, &BEFORE).filter_map(|at| {
        let rest = &program[at + BEFORE.len()..];
        Some(String::from_utf8_lossy(&rest[..memmem::find(rest, &AFTER)?]).into_owned())
    });
    // A program that reads other programs has these bytes in it once more.
    lists.map(|list| read_modules(&list)).find(|modules| !modules.is_empty()).unwrap_or_default()
}

fn read_modules(list: &str) -> BTreeMap<String, String> {
    let mut modules = BTreeMap::new();
    let mut last = None;
    for line in list.lines() {
        let mut fields = line.split('\t');
        match (fields.next(), fields.next(), fields.next()) {
            (Some("dep"), Some(module), Some(version)) => {
                modules.insert(module.to_owned(), version.to_owned());
                last = Some(module.to_owned());
            }
            (Some("=>"), Some(_), Some(version)) => {
                modules.extend(last.take().map(|module| (module, version.to_owned())));
            }
            _ => {}
        }
    }
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNELS: &str = r#"{"type":"collection","links":{},"data":[
        {"id":"stable","type":"channel","name":"stable","latest":"v1.33.4+k3s1","latestRegexp":".*"},
        {"id":"v1.33","latest":"v1.33.4+k3s1"},{"id":"testing"},{"id":"odd","latest":"1.2"}]}"#;

    #[test]
    fn a_channel_names_its_newest_release() {
        assert_eq!(read_channels(CHANNELS.as_bytes(), "v1.33").unwrap().as_str(), "v1.33.4+k3s1");
    }

    #[test]
    fn an_answer_that_does_not_help_says_why() {
        let half = &CHANNELS.as_bytes()[..CHANNELS.len() / 2];
        for (bytes, name, kind, why) in [
            (CHANNELS.as_bytes(), "v1.34", Kind::Input, "there is no channel `v1.34`"),
            (CHANNELS.as_bytes(), "testing", Kind::Fetch, "`testing` has no release"),
            (CHANNELS.as_bytes(), "odd", Kind::Fetch, "`1.2` is no version"),
            (half, "stable", Kind::Fetch, "no list of channels"),
            (b"<html>", "stable", Kind::Fetch, "no list of channels"),
        ] {
            let failure = read_channels(bytes, name).unwrap_err();
            assert_eq!(failure.kind, kind);
            assert!(failure.to_string().contains(why), "{failure}");
        }
    }

    #[test]
    fn a_digest_is_found_by_the_whole_name() {
        let (one, other) = (Digest::of(b"1"), Digest::of(b"2"));
        let list = format!(
            "{one}  k3s-airgap-images-amd64.tar\n{other} *k3s\r\nnone  k3s-arm64\n{one}  ./k3s-armhf\n"
        );
        assert_eq!(digest(&list, "k3s"), Ok(other));
        assert_eq!(digest(&list, "k3s-armhf"), Ok(one));
        assert!(digest(&list, "k3s-s390x").unwrap_err().contains("does not name"));
        assert!(digest(&list, "k3s-arm64").unwrap_err().contains("64 hexadecimal digits"));
        assert!(digest(&format!("{}  k3s", &one.to_string()[1..]), "k3s").is_err());
    }

    #[test]
    fn images_are_called_by_what_is_in_them() {
        let list = "docker.io/rancher/klipper-helm:v0.9.8-build20250709\ndocker.io/rancher/mirrored-coredns-coredns:1.12.1\n\
                    docker.io/rancher/mirrored-library-traefik:3.3.6\ndocker.io/rancher/mirrored-metrics-server:v0.8.0\n\
                    docker.io/rancher/local-path-provisioner:v0.0.31\n\nlocalhost:5000/none\n<html>no: list</html>\n";
        let found = images(list);
        let expected = [
            ("coredns", "1.12.1"),
            ("klipper-helm", "v0.9.8-build20250709"),
            ("local-path-provisioner", "v0.0.31"),
            ("metrics-server", "v0.8.0"),
            ("traefik", "3.3.6"),
        ];
        assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn a_program_names_its_modules() {
        let text = "path\tgithub.com/k3s-io/k3s/cmd/server\nmod\tgithub.com/k3s-io/k3s\t(devel)\t\n\
                    dep\tgithub.com/containerd/containerd/v2\tv2.0.5\n=>\tgithub.com/k3s-io/containerd/v2\tv2.0.5-k3s2\th1:x=\n\
                    dep\tgithub.com/k3s-io/kine\tv0.13.17\th1:y=\nbuild\t-trimpath=true\n";
        let (before, after): (&[u8], &[u8]) = (&BEFORE, &AFTER);
        let program = [b"\x7fELF noise", before, text.as_bytes(), after, b"noise"].concat();
        let expected =
            [("github.com/containerd/containerd/v2", "v2.0.5-k3s2"), ("github.com/k3s-io/kine", "v0.13.17")];
        assert_eq!(modules(&program), expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert!(modules(b"no program").is_empty() && modules(before).is_empty());
    }
}
