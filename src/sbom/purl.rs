//! Package URLs (github.com/package-url/purl-spec), by which scanners find what is known about a package.

use super::Part;
use crate::inventory::Container;
use crate::manifest::{Os, PackageInfo};

/// Percent-encodes all but what purl leaves as it is. The colon stays too, as the specification says.
fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:".contains(&b);
    let mut out = String::new();
    for b in text.bytes() {
        if plain(b) { out.push(char::from(b)) } else { out.push_str(&format!("%{b:02X}")) }
    }
    out
}

/// `@1.2`, or nothing.
fn at(version: &str) -> String {
    if version.is_empty() { String::new() } else { format!("@{}", encoded(version)) }
}

/// `pkg:deb/debian/libc6@2.41-12?arch=amd64&distro=debian-13&upstream=glibc%402.41-12`. The distribution is written as os-release(5) has
/// it, and the source package, by which Debian's advisories go, as syft and trivy write it.
pub(super) fn debian(name: &str, info: &PackageInfo, os: &Os) -> String {
    let (source, version) = info.source(name);
    let distro = [os.id.as_str(), os.version.as_str()].map(encoded);
    let distro = distro.join("-");
    format!(
        "pkg:deb/{}/{}{}?arch={}&distro={}&upstream={}",
        encoded(&os.id),
        encoded(name),
        at(&info.version),
        encoded(&info.arch),
        distro.trim_end_matches('-'),
        encoded(&format!("{source}@{version}")),
    )
}

/// `pkg:golang/github.com/coredns/coredns@v1.12.1`. The type has no capital letters in its paths.
pub(super) fn golang(path: &str, version: &str) -> String {
    let path = path.to_ascii_lowercase();
    let path: Vec<String> = path.split('/').map(encoded).collect();
    format!("pkg:golang/{}{}", path.join("/"), at(version))
}

/// `pkg:oci/coredns@sha256:…?arch=amd64&repository_url=kiln.invalid%2Fcoredns&tag=1.12.1`: the digest is the manifest's.
pub(super) fn oci(container: &Container, arch: &str) -> String {
    let repository = container.repository();
    let name = repository.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let digest = format!("sha256:{}", container.digest);
    let mut purl = format!(
        "pkg:oci/{}{}?arch={}&repository_url={}",
        encoded(&name),
        at(&digest),
        encoded(arch),
        encoded(repository)
    );
    if !container.tag().is_empty() {
        purl.push_str(&format!("&tag={}", encoded(container.tag())));
    }
    purl
}

/// `pkg:generic/k3s@v1.33.3%2Bk3s1?…`, for what no package manager has: with the file of a release and its digest, or with the commit that
/// was built.
pub(super) fn generic(part: &Part) -> String {
    let mut purl = format!("pkg:generic/{}{}", encoded(&part.name), at(&part.version));
    let mut qualifiers = Vec::new();
    match (&part.download, &part.commit) {
        (Some(vcs), Some(_)) => qualifiers.push(format!("vcs_url={}", encoded(vcs))),
        (Some(url), None) => {
            qualifiers.extend(part.sha256.map(|sha256| format!("checksum=sha256:{sha256}")));
            qualifiers.push(format!("download_url={}", encoded(url)));
        }
        (None, _) => {}
    }
    if !qualifiers.is_empty() {
        purl.push_str(&format!("?{}", qualifiers.join("&")));
    }
    purl
}

#[cfg(test)]
mod tests {
    use super::super::Sort;
    use super::*;
    use crate::built::tests::{coredns, package};
    use crate::digest::Digest;

    #[test]
    fn purls_are_encoded_and_have_distribution_and_source() {
        let os = Os { id: "debian".to_owned(), version: "13".to_owned() };
        let mut info = package("1:4.2+dfsg-1~deb13u1", "", "");
        assert_eq!(
            debian("libstdc++6", &info, &os),
            "pkg:deb/debian/libstdc%2B%2B6@1:4.2%2Bdfsg-1~deb13u1?arch=amd64&distro=debian-13&upstream=libstdc%2B%2B6%401:4.2%2Bdfsg-1~deb13u1"
        );
        info.source = "gcc-14".to_owned();
        assert!(debian("x", &info, &os).ends_with("&upstream=gcc-14%401:4.2%2Bdfsg-1~deb13u1"));
        info.source = "gcc-14 (14.2.0-19)".to_owned();
        assert!(debian("x", &info, &os).ends_with("&upstream=gcc-14%4014.2.0-19"));
        let sid = Os { version: String::new(), ..os };
        assert!(debian("x", &info, &sid).contains("&distro=debian&"));
        assert_eq!(
            golang("github.com/BurntSushi/toml", "v2.0.0+incompatible"),
            "pkg:golang/github.com/burntsushi/toml@v2.0.0%2Bincompatible"
        );
        assert_eq!(golang("stdlib", ""), "pkg:golang/stdlib");
        let digest = coredns().digest;
        assert_eq!(
            oci(&coredns(), "amd64"),
            format!(
                "pkg:oci/coredns@sha256:{digest}?arch=amd64&repository_url=kiln.invalid%2Fcoredns&tag=1.12.1"
            )
        );
    }

    #[test]
    fn what_no_package_manager_has_says_where_it_is_from() {
        let mut part = Part::new(Sort::Application, "k3s", "v1.2.3+k3s1");
        assert_eq!(generic(&part), "pkg:generic/k3s@v1.2.3%2Bk3s1");
        part.download = Some("https://example.org/k3s".to_owned());
        part.sha256 = Some(Digest::of(b"k3s"));
        assert_eq!(
            generic(&part),
            format!(
                "pkg:generic/k3s@v1.2.3%2Bk3s1?checksum=sha256:{}&download_url=https:%2F%2Fexample.org%2Fk3s",
                Digest::of(b"k3s")
            )
        );
        part.download = Some("git+https://example.org/k3s@abc".to_owned());
        part.commit = Some("abc".to_owned());
        assert_eq!(
            generic(&part),
            "pkg:generic/k3s@v1.2.3%2Bk3s1?vcs_url=git%2Bhttps:%2F%2Fexample.org%2Fk3s%40abc"
        );
    }
}
