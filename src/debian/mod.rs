//! Debian's formats, without any policy: versions, control files, relations, archive indexes, signatures, packages and
//! the solver over them.
//!
//! Nothing here opens a file, asks the clock or the network, or knows a spec, the store or the command line: bytes and
//! parameters come in, values or errors go out. What comes in is outside data, so every entry point returns an error for
//! whatever it is given and never panics.
//!
//! ```text
//!   InRelease --openpgp::verify--> Verified{release} --sha256--> Packages --index::parse--> PackageRecord
//!                                                                                             |
//!   .deb --deb::read--> entries of a tree + Control        Solution <--solve-- Universe <-----+
//! ```

pub mod control;
pub mod deb;
pub mod index;
pub mod openpgp;
pub mod relation;
pub mod release;
pub mod solve;
mod tarball;
pub mod version;

/// Whether `name` is a package name by Debian Policy 5.6.1: at least two characters of `a-z 0-9 + - .`, the first a
/// letter or a digit. Such a name is also safe as a file name.
pub fn is_package_name(name: &str) -> bool {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.');
    name.len() >= 2
        && name.len() <= 200
        && name.bytes().all(ok)
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
}

/// Whether `name` is spelled as an architecture name is (Debian Policy 11.1): `a-z 0-9 -`, the first a letter or digit.
pub fn is_architecture_name(name: &str) -> bool {
    name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_folder_are_no_package_names() {
        for good in ["libstdc++6", "0ad", "k3s", "python3.13"] {
            assert!(is_package_name(good), "{good}");
        }
        for bad in ["", "a", "..", "../x", "A", "a/b", "+a", "a b", "a\n"] {
            assert!(!is_package_name(bad), "{bad:?}");
        }
        assert!(
            is_architecture_name("kfreebsd-amd64")
                && !is_architecture_name("-x")
                && !is_architecture_name("a/b")
        );
    }
}
