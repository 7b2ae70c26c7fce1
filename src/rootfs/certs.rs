//! The trusted certificate authorities in one file, as `update-ca-certificates` makes it.
//!
//! Every `.crt` below `/usr/share/ca-certificates` and `/usr/local/share/ca-certificates` goes into
//! `/etc/ssl/certs/ca-certificates.crt`, and gets a link `/etc/ssl/certs/NAME.pem`. The links named by a hash of the subject are
//! not made: programs that look up single certificates in that folder by hash are not part of a node, all others read the file.

use crate::rootfs::step::{StepError, put, text};
use crate::tree::{Entry, Tree};

/// Owner of what this step makes.
const STEP: &str = "kiln:certs";

/// Writes the bundle; returns the number of certificates in it. No certificate at all is an error: every pull of a container
/// image would fail on the node.
pub fn certs(tree: &mut Tree) -> Result<usize, StepError> {
    let mut found = Vec::new();
    for folder in ["usr/share/ca-certificates", "usr/local/share/ca-certificates"] {
        let paths = tree.below(folder).filter(|(p, e)| p.ends_with(".crt") && e.content().is_some());
        found.extend(paths.map(|(p, _)| p.clone()));
    }
    if found.is_empty() {
        let what = "a certificate in /usr/share/ca-certificates".to_owned();
        return Err(StepError::Missing { what, remedy: "add package ca-certificates".to_owned() });
    }
    let mut bundle = String::new();
    for path in &found {
        let pem = text(tree, path)?.unwrap_or_default();
        bundle.push_str(pem.trim_end_matches('\n'));
        bundle.push('\n');
        // The tool's own rule for names: blanks and brackets would need quoting in scripts.
        let name = path.name().trim_end_matches(".crt").replace(' ', "_").replace(['(', ')'], "=");
        let name = name.replace(',', "_");
        put(tree, &format!("etc/ssl/certs/{name}.pem"), Entry::symlink(format!("/{path}"), STEP))?;
    }
    put(tree, "etc/ssl/certs/ca-certificates.crt", Entry::file(0o644, bundle, STEP))?;
    Ok(found.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_certificates_in_order_each_ending_in_one_newline() {
        let mut tree = Tree::new();
        for (name, text) in [("b/Z (1).crt", "ZZ"), ("a/Y.crt", "YY\n\n"), ("a/readme", "no")] {
            put(&mut tree, &format!("usr/share/ca-certificates/{name}"), Entry::file(0o644, text, "ca"))
                .unwrap();
        }
        assert_eq!(certs(&mut tree).unwrap(), 2);
        assert_eq!(text(&tree, "etc/ssl/certs/ca-certificates.crt").unwrap().unwrap(), "YY\nZZ\n");
        assert_eq!(text(&tree, "etc/ssl/certs/Z_=1=.pem").unwrap().unwrap(), "ZZ");
    }

    #[test]
    fn refuses_a_root_without_certificates() {
        assert!(certs(&mut Tree::new()).unwrap_err().to_string().contains("add package ca-certificates"));
    }
}
