//! The script by which a node seals its secrets, on folders in place of the ESP and of systemd's credentials. systemd-creds of the lock does
//! the work, with a key in a file; `dd`, by which all is written, can lose the power.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use kiln::cluster::secret::Value;
use kiln::cluster::{Credential, seal, sealed};
use kiln::exec::Tool;
use kiln::spec::cluster::Seal;

use super::images;
use crate::common::run::{Run, command};

const SECRETS: [(&str, &str); 2] =
    [("k3s.token", "open-sesame"), ("passwd.hashed-password.root", "$6$salt$hash")];
/// Writes half of what it should at its call number `$KILN_CUT`, and takes the script with it.
const DD: &str = r#"#!/bin/sh
calls=$(($(cat "$KILN_CALLS") + 1))
echo "$calls" >"$KILN_CALLS"
[ "$calls" = "$KILN_CUT" ] || exec /bin/dd "$@"
for word; do
  case $word in if=*) from=${word#*=} ;; of=*) to=${word#*=} ;; esac
done
[ -z "$from" ] || head -c $(($(stat -c %s "$from") / 2)) "$from" | /bin/dd of="$to" conv=notrunc status=none
kill -9 $PPID
"#;

struct Node(tempfile::TempDir);

impl Node {
    /// One that was flashed and never booted.
    fn flashed(key: Seal) -> Self {
        let node = Node(tempfile::tempdir_in(images::folder()).unwrap());
        let creds = Tool::from_tree(&images::tools("judges"), "usr/bin/systemd-creds").unwrap().command();
        node.program("systemd-creds", &format!("#!/bin/sh\nexec env {} \"$@\"\n", creds.line()));
        node.program("dd", DD);
        node.put("uuid", b"6b696c6e-0000-4000-8000-00000000000f\n");
        let order = seal::order(key, SECRETS.map(|(name, _)| name)).unwrap();
        node.put(&format!("esp/loader/credentials/{}.cred", order.name), &sealed::seal(&order));
        let mut spare = 0;
        for (name, value) in SECRETS {
            let credential = Credential { name: name.to_owned(), value: Value::new(value), secret: true };
            let room = seal::room(value.len());
            spare = spare.max(room);
            let bytes = sealed::padded(sealed::seal(&credential), room);
            node.put(&format!("esp/loader/credentials/{name}.cred"), &bytes);
        }
        let bytes = sealed::padded(Vec::new(), spare);
        node.put(&format!("esp/loader/credentials/{}.cred", seal::SPARE), &bytes);
        node
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        fs_err::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs_err::write(self.path(path), bytes).unwrap();
    }

    fn program(&self, name: &str, text: &str) {
        self.put(&format!("bin/{name}"), text.as_bytes());
        let all = std::fs::Permissions::from_mode(0o755);
        fs_err::set_permissions(self.path(&format!("bin/{name}")), all).unwrap();
    }

    /// As boot loader and initrd do, then the script; the power goes at the call number `cut` of `dd`.
    fn boot(&self, cut: usize) -> Run {
        for folder in ["encrypted", "store", "run"] {
            fs_err::remove_dir_all(self.path(folder)).ok();
        }
        for entry in fs_err::read_dir(self.path("esp/loader/credentials")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            self.put(&format!("encrypted/{name}"), &fs_err::read(&path).unwrap());
        }
        self.put("calls", b"0\n");
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display());
        let output = command("sh")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("images/files/seal"))
            .env("PATH", path)
            .env("KILN_ENCRYPTED", self.path("encrypted"))
            .env("KILN_OPENED", self.path("store"))
            .env("KILN_RUN", self.path("run"))
            .env("KILN_ESP", self.path("esp"))
            .env("KILN_TPM", self.path("no-tpm"))
            .env("KILN_UUID", self.path("uuid"))
            .env("KILN_IDENTITY", "true")
            .env("KILN_CALLS", self.path("calls"))
            .env("KILN_CUT", cut.to_string())
            .env("SYSTEMD_CREDENTIAL_SECRET", self.path("var/credential.secret"))
            .output()
            .unwrap();
        Run::of(&output)
    }

    fn calls(&self) -> usize {
        fs_err::read_to_string(self.path("calls")).unwrap().trim().parse().unwrap()
    }

    /// What units are given.
    fn given(&self, name: &str) -> Option<String> {
        fs_err::read_to_string(self.path("store").join(name)).ok()
    }

    #[track_caller]
    fn has_all(&self, run: &Run) {
        for (name, value) in SECRETS {
            assert_eq!(self.given(name).as_deref(), Some(value), "{name}\n{}", run.text());
        }
    }

    fn esp(&self, name: &str) -> Vec<u8> {
        fs_err::read(self.path(&format!("esp/loader/credentials/{name}.cred"))).unwrap()
    }

    #[track_caller]
    fn is_sealed(&self, run: &Run) {
        for (name, value) in SECRETS {
            let file = self.esp(name);
            assert!(!file.starts_with(b"BYRp2vb1QySABUnaD46i+"), "{name} is open\n{}", run.text());
            assert_eq!(file.len(), seal::room(value.len()));
        }
        assert!(self.esp(seal::SPARE).iter().all(|byte| *byte == b'\n'), "{}", run.text());
    }
}

#[test]
fn a_node_that_loses_power_at_any_point_has_its_secrets_and_seals_them_at_the_next_boot() {
    let node = Node::flashed(Seal::Host);
    let run = node.boot(0).ok();
    node.has_all(&run);
    node.is_sealed(&run);
    let calls = node.calls();
    assert!(calls >= 10, "each of three files is written more than once: {calls}");
    let kept = SECRETS.map(|(name, _)| node.esp(name));
    let run = node.boot(0).ok();
    node.has_all(&run);
    assert_eq!((node.calls(), SECRETS.map(|(name, _)| node.esp(name))), (0, kept), "it is done once");

    for cut in 1..=calls {
        let node = Node::flashed(Seal::Host);
        let run = node.boot(cut);
        assert_eq!(run.code, 128 + 9, "cut {cut}: {}", run.text());
        // The next boot may be cut as well, before it has mended anything.
        node.boot(1);
        let run = node.boot(0).ok();
        node.has_all(&run);
        node.is_sealed(&run);
    }
}

#[test]
fn a_key_that_is_not_there_takes_nothing_away_and_is_told() {
    let node = Node::flashed(Seal::Tpm2);
    let before = SECRETS.map(|(name, _)| node.esp(name));
    let run = node.boot(0);
    assert_eq!(run.code, 1, "{}", run.text());
    assert!(run.stderr.contains("no TPM 2.0") && run.stderr.contains("can read k3s.token"), "{}", run.text());
    node.has_all(&run);
    assert_eq!(SECRETS.map(|(name, _)| node.esp(name)), before);

    // A key on /var that another machine id cannot use, and none in firmware that stays.
    let node = Node::flashed(Seal::Host);
    node.put("uuid", b"00000000-0000-0000-0000-000000000000\n");
    let run = node.boot(0);
    assert_eq!(run.code, 1, "{}", run.text());
    assert!(run.stderr.contains("no UUID in its firmware"), "{}", run.text());
    node.has_all(&run);
    assert_eq!(SECRETS.map(|(name, _)| node.esp(name)), before);

    // A key that was lost: of another machine, or of a /var that was.
    let node = Node::flashed(Seal::Host);
    node.boot(0).ok();
    let sealed = SECRETS.map(|(name, _)| node.esp(name));
    fs_err::remove_file(node.path("var/credential.secret")).unwrap();
    let run = node.boot(0);
    assert_eq!(run.code, 1, "{}", run.text());
    for (name, _) in SECRETS {
        assert!(run.stderr.contains(&format!("the secret {name} is under the key `host`")), "{}", run.text());
        assert_eq!(node.given(name), None);
        assert!(!node.path("encrypted").join(name).exists(), "a unit that asks for it would not start");
    }
    assert_eq!(SECRETS.map(|(name, _)| node.esp(name)), sealed, "it may be found again");
}

#[test]
fn a_file_without_room_is_left_as_it_is() {
    let node = Node::flashed(Seal::Host);
    let file = "esp/loader/credentials/k3s.token.cred";
    let whole = fs_err::read(node.path(file)).unwrap();
    node.put(file, whole.trim_ascii_end());
    let run = node.boot(0);
    assert_eq!(run.code, 1, "{}", run.text());
    assert!(run.stderr.contains("cannot be written to the ESP"), "{}", run.text());
    node.has_all(&run);
    assert_eq!(node.esp("k3s.token"), whole.trim_ascii_end());
}

#[test]
fn systemd_reads_what_was_sealed_and_under_no_other_name() {
    let creds = Tool::from_tree(&images::tools("judges"), "usr/bin/systemd-creds").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let long = vec![0xA5; 70_000];
    for (name, value) in [
        ("k3s.token", b"open-sesame" as &[u8]),
        ("network.network.50-nic0", b"[Match]\n"),
        ("a", b""),
        ("x", &long),
    ] {
        let (from, other, to) = (dir.path().join(name), dir.path().join("other"), dir.path().join("out"));
        let credential = Credential { name: name.to_owned(), value: Value::new(value), secret: true };
        let sealed = sealed::padded(sealed::seal(&credential), seal::room(value.len()));
        fs_err::write(&from, sealed).unwrap();
        creds.command().arg("decrypt").arg(&from).arg(&to).run().unwrap();
        assert!(fs_err::read(&to).unwrap() == value, "{name}");
        // The name is part of it.
        fs_err::rename(&from, &other).unwrap();
        assert!(creds.command().arg("decrypt").arg(&other).arg(&to).run().is_err(), "{name}");
    }
}
