//! Text files of a project, as editors and other systems leave them.
//!
//! Line ends are LF whatever the file has: TOML lets a parser choose the line end inside of multi-line strings (TOML 1.0, String), and the same
//! project must make the same bytes wherever it was checked out. Hidden files in a folder are not read: editors and file managers put
//! locks (`.#bare.toml`, a dangling link), swap files (`.bare.toml.swp`) and attributes of macOS (`._bare.toml`) there.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use anyhow::Result;
use fs_err as fs;

use crate::error::{Failure, Kind};

/// The text of the file at `path`, with LF as its line end and without a byte order mark.
///
/// # Errors
/// It cannot be read, or it is not UTF-8.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    Ok(normal(&fs::read_to_string(path)?).into_owned())
}

/// `text` with LF as its line end and without a byte order mark.
pub(crate) fn normal(text: &str) -> Cow<'_, str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match text.contains("\r\n") {
        true => text.replace("\r\n", "\n").into(),
        false => text.into(),
    }
}

/// Whether the name of a file says that no person means it: it is hidden, or what an editor leaves beside a file.
pub(crate) fn is_left_behind(name: &str) -> bool {
    name.starts_with('.') || name.ends_with('~') || (name.starts_with('#') && name.ends_with('#'))
}

/// The names of the TOML files in `folder`, without the ending, sorted. Hidden ones are left out.
///
/// # Errors
/// The folder cannot be read; a name is not UTF-8.
pub(crate) fn stems(folder: &Path) -> Result<Vec<String>> {
    let mut stems = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().ends_with(b".toml") || name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let Some(name) = name.to_str() else {
            let text = format!("the name of {} is not UTF-8", folder.join(&name).display());
            return Err(Failure::new(Kind::Input, text).hint("rename the file").into());
        };
        stems.extend(name.strip_suffix(".toml").map(str::to_owned));
    }
    stems.sort();
    Ok(stems)
}

/// Names of files that are text, in which a CR at the end of a line becomes part of a value or of a command.
const TEXT: [&str; 23] = [
    "automount",
    "c",
    "conf",
    "config",
    "go",
    "h",
    "link",
    "mod",
    "mount",
    "netdev",
    "network",
    "path",
    "rules",
    "service",
    "sh",
    "slice",
    "socket",
    "sum",
    "swap",
    "target",
    "timer",
    "yaml",
    "yml",
];
/// Folders of an image with text for the system.
const TEXT_FOLDERS: [&str; 9] = [
    "/etc/",
    "/usr/lib/environment.d/",
    "/usr/lib/modprobe.d/",
    "/usr/lib/modules-load.d/",
    "/usr/lib/sysctl.d/",
    "/usr/lib/systemd/",
    "/usr/lib/sysusers.d/",
    "/usr/lib/tmpfiles.d/",
    "/usr/lib/udev/",
];

/// Refuses the file `file`, which is taken as it is, if it is text and has lines that end with CR LF. It is text if it begins with `#!`, has one
/// of the names above, or goes to `to` where the system reads text.
///
/// # Errors
/// [`Kind::Input`] with the first such line and the remedy.
pub(crate) fn refuse_crlf(file: &str, to: Option<&str>, bytes: &[u8]) -> Result<(), Failure> {
    let script = bytes.starts_with(b"#!");
    let named =
        |path: &str| Path::new(path).extension().is_some_and(|end| TEXT.iter().any(|text| end == *text));
    let placed = to.is_some_and(|to| named(to) || TEXT_FOLDERS.iter().any(|folder| to.starts_with(folder)));
    if !(script || placed || named(file)) || bytes.contains(&0) {
        return Ok(());
    }
    let Some(line) = bytes.split(|byte| *byte == b'\n').position(|line| line.ends_with(b"\r")) else {
        return Ok(());
    };
    // What comes after the last LF is no line that ends with CR LF.
    if line == memchr::memchr_iter(b'\n', bytes).count() {
        return Ok(());
    }
    let what = if script { "a script" } else { "a text file" };
    let why = if script {
        "Linux would look for an interpreter whose name ends with CR"
    } else {
        "programs that read it would see the CR"
    };
    let text = format!("{file} is {what} whose lines end with CR LF (line {}), not with LF: {why}", line + 1);
    Err(Failure::new(Kind::Input, text)
        .hint(format!("sed -i 's/\\r$//' {file}"))
        .hint("a line `* text=auto eol=lf` in .gitattributes keeps git from writing CR LF"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Lock;
    use crate::recipe::Recipes;
    use crate::scenario::spec::Scenario;
    use crate::spec::cluster::Cluster;
    use crate::spec::{FOLDERS, Project};

    /// Everything that is read of the project in `dir`.
    fn all(dir: &Path) -> Vec<String> {
        let project = Project::load(dir).unwrap();
        let lock = Lock::load(dir).unwrap();
        let recipes = Recipes::load(dir).unwrap();
        let cluster = Cluster::read(&dir.join("cluster.toml"), &project).unwrap();
        let scenarios = Scenario::list(dir);
        lock.clone().check(&project).unwrap();
        vec![
            format!("{project:?}"),
            format!("{lock:?}"),
            format!("{recipes:?}"),
            format!("{scenarios:?}"),
            format!("{cluster:?}"),
        ]
    }

    fn each_file(folder: &Path, work: &mut dyn FnMut(&Path)) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { each_file(&path, work) } else { work(&path) }
        }
    }

    fn project() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        crate::init::init(dir.path()).unwrap();
        let cluster = "schema = 1\nname = \"lab\"\nssh-keys = [\"\"\"\nssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqr5mK3eQ0vKq0jKb7x9bR0aXoT8oJY6v1m3kqJ8m0Y me\"\"\"]\n\
            [network.lan]\nsubnet = \"192.168.50.0/24\"\ngateway = \"192.168.50.1\"\n\
            [node.server]\nrole = \"server\"\nmac = \"bc:24:11:00:00:10\"\naddress = \"192.168.50.100\"\ndisk = { bus = \"scsi\" }\n";
        fs::write(dir.path().join("cluster.toml"), cluster).unwrap();
        dir
    }

    #[test]
    fn toml_files_with_crlf_or_a_byte_order_mark_mean_what_they_mean_with_lf() {
        let dir = project();
        let before = all(dir.path());
        let mut changed = 0;
        each_file(dir.path(), &mut |path| {
            let end = path.extension().unwrap_or_default();
            if ["toml", "lock", "config"].iter().any(|known| end == *known) {
                let text = fs::read_to_string(path).unwrap().replace('\n', "\r\n");
                let mark = if changed % 2 == 0 { "\u{feff}" } else { "" };
                fs::write(path, format!("{mark}{text}")).unwrap();
                changed += 1;
            }
        });
        assert!(changed > 40, "{changed}");
        let after = all(dir.path());
        for (before, after) in before.iter().zip(&after) {
            assert!(before == after, "{} differs", &before[..40]);
        }
        // The lock says the same, so it is not written.
        assert!(!Lock::load(dir.path()).unwrap().save(dir.path()).unwrap());
    }

    #[test]
    fn what_editors_and_file_managers_leave_in_the_folders_of_a_project_is_not_read() {
        let dir = project();
        let before = all(dir.path());
        let mut folders = FOLDERS.map(|folder| dir.path().join(folder)).to_vec();
        for folder in folders.clone() {
            each_folder(&folder, &mut folders);
        }
        assert!(folders.len() > 15);
        for folder in folders {
            std::os::unix::fs::symlink("me@host.1234:1", folder.join(".#bare.toml")).unwrap();
            fs::write(folder.join("._bare.toml"), [0, 5, 22, 7]).unwrap();
            fs::write(folder.join(".bare.toml.swp"), b"b0VIM\0").unwrap();
            fs::write(folder.join("bare.toml~"), "x = ").unwrap();
            fs::write(folder.join("#bare.toml#"), "x = ").unwrap();
            fs::write(folder.join(".toml"), "x = ").unwrap();
        }
        assert_eq!(before, all(dir.path()));
    }

    fn each_folder(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.push(path.clone());
                each_folder(&path, found);
            }
        }
    }

    #[test]
    fn a_file_that_is_named_is_taken_whatever_its_name_is() {
        let dir = project();
        fs::write(dir.path().join("images/files/.profile"), "umask 077\n").unwrap();
        let path = dir.path().join("profiles/server.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(
            &path,
            format!("{text}\n[files.\"/root/.profile\"]\nsource = \"../images/files/.profile\"\n"),
        )
        .unwrap();
        let project = Project::load(dir.path()).unwrap();
        assert_eq!(project.profiles["server"].sources["/root/.profile"], b"umask 077\n");
    }

    #[test]
    fn text_with_crlf_that_would_be_taken_as_it_is_is_refused() {
        for (file, to, bytes) in [
            ("images/files/run", None, "#!/bin/sh\r\nexit\r\n"),
            ("images/files/run", None, "#!/bin/sh\necho a\r\n"),
            ("images/files/a.service", Some("/x"), "[Unit]\r\n"),
            ("images/files/a", Some("/usr/lib/systemd/network/10-a.network"), "[Match]\r\n"),
            ("images/files/ssh", Some("/etc/ssh/sshd_config"), "UsePAM yes\r\n"),
            ("images/k3s/manifests/a.yaml", None, "a:\r\n"),
        ] {
            let error = refuse_crlf(file, to, bytes.as_bytes()).unwrap_err();
            let text = format!("{error} {:?}", error.hints());
            assert!(
                text.contains(file)
                    && text.contains("CR LF")
                    && text.contains("sed -i")
                    && text.contains(".gitattributes"),
                "{text}"
            );
        }
        for (file, to, bytes) in [
            ("images/files/run", None, "#!/bin/sh\nexit\n"),
            ("images/files/picture.bmp", Some("/usr/share/picture"), "BM\r\n"),
            ("images/files/a.conf", Some("/etc/a.conf"), "\0\r\n"),
            // A CR that no LF follows is not the end of a line.
            ("images/files/a.conf", Some("/etc/a.conf"), "a\nb\r"),
        ] {
            refuse_crlf(file, to, bytes.as_bytes()).unwrap();
        }
    }

    #[test]
    fn files_with_crlf_are_refused_wherever_a_project_takes_them() {
        for file in [
            "images/files/seal",
            "images/files/kiln-seal.service",
            "images/k3s/manifests/coredns.yaml",
            "qemu/machines/edge/exports",
            "qemu/machines/edge/dnsmasq.service",
            "images/recipes/coredns/build.sh",
            "images/recipes/coredns/module/go.mod",
        ] {
            let dir = project();
            let path = dir.path().join(file);
            fs::write(&path, fs::read_to_string(&path).unwrap().replace('\n', "\r\n")).unwrap();
            let done = Project::load(dir.path()).and_then(|_| Recipes::load(dir.path()));
            let error = format!("{:#}", done.map(drop).unwrap_err());
            assert!(error.contains("end with CR LF"), "{file}: {error}");
        }
    }
}
