//! The script by which a node seals its secrets, on folders in place of the ESP, of /sys and of systemd's credentials. systemd-creds of the
//! lock does the work, with a key in a file; `dd`, by which all is written, can lose the power or end the script.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use kiln::cluster::secret::Value;
use kiln::cluster::{Credential, seal, sealed};
use kiln::exec::Tool;
use kiln::spec::cluster::Seal;

use super::images;
use crate::common::run::{Run, command};

const SECRETS: [(&str, &str); 2] =
    [("k3s.token", long(&[b't'; 1000])), ("passwd.hashed-password.root", long(&[b'$'; 1000]))];
/// So long that what is sealed of it takes more than one sector: a shorter one is never half written.
const fn long(bytes: &'static [u8; 1000]) -> &'static str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) => panic!(),
    }
}
/// What a disk writes at once, or not at all.
const SECTOR: usize = 512;
const FOLDER: &str = "esp/loader/credentials";

/// At its write number `$KILN_CUT` it does the sectors that `$KILN_TEAR` says, and ends the script by `$KILN_SIGNAL`. A call without `if=`
/// writes nothing.
const DD: &str = r#"#!/bin/sh
case "$*" in *if=*) ;; *) exec /bin/dd "$@" ;; esac
echo >>"$KILN_NODE/writes"
[ "$(wc -l <"$KILN_NODE/writes")" = "$KILN_CUT" ] || exec /bin/dd "$@"
for word; do
  case $word in if=*) from=${word#*=} ;; of=*) to=${word#*=} ;; esac
done
case $KILN_TEAR in
  head) /bin/dd if="$from" of="$to" bs=512 count=1 conv=notrunc status=none ;;
  tail) /bin/dd if="$from" of="$to" bs=512 skip=1 seek=1 conv=notrunc status=none ;;
esac
kill -"$KILN_SIGNAL" $PPID
"#;
/// What is mounted is moved there, so that whoever removes what is below the mount point removes the ESP.
const MOUNT: &str = r#"#!/bin/sh
[ ! -e "$KILN_NODE/broken" ] || { echo "mount: no such disk" >&2; exit 32; }
for point; do :; done
rmdir "$point" && mv "$KILN_NODE/esp" "$point"
"#;
const UMOUNT: &str = r#"#!/bin/sh
[ ! -e "$KILN_NODE/busy" ] || { echo "umount: target is busy" >&2; exit 32; }
mv "$1" "$KILN_NODE/esp" && mkdir "$1"
"#;
const MOUNTPOINT: &str = "#!/bin/sh\n[ -e \"$2/loader\" ]\n";
/// After so many seconds as the file `late` says, the TPM is there.
const SLEEP: &str = r#"#!/bin/sh
echo >>"$KILN_NODE/slept"
[ "$(wc -l <"$KILN_NODE/slept")" != "$(cat "$KILN_NODE/late" 2>/dev/null)" ] || ln -s /dev/null "$KILN_NODE/tpm"
"#;
/// Where the key is the TPM's, the one in the file plays it, and is there while the TPM is.
const TPM: &str = r#"[ -c "$KILN_NODE/tpm" ] || SYSTEMD_CREDENTIAL_SECRET=$KILN_NODE/none/none
for word; do
  shift
  [ "$word" != --with-key=tpm2 ] || word=--with-key=host
  set -- "$@" "$word"
done
"#;

/// Where the script is ended.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// The number of the write, from 1.
    write: usize,
    /// Which sectors of it are on the disk: none, the first (`head`) or all others (`tail`).
    tear: &'static str,
    signal: &'static str,
}

/// The power goes: every way for one write.
fn cuts(write: usize) -> [Cut; 3] {
    ["none", "head", "tail"].map(|tear| Cut { write, tear, signal: "KILL" })
}

struct Node(tempfile::TempDir);

impl Node {
    /// One that was flashed and never booted.
    fn flashed(key: Seal) -> Self {
        let node = Node(tempfile::tempdir_in(images::folder()).unwrap());
        let creds = Tool::from_tree(&images::tools("judges"), "usr/bin/systemd-creds").unwrap().command();
        let tpm = if key == Seal::Tpm2 { TPM } else { "" };
        node.program("systemd-creds", &format!("#!/bin/sh\n{tpm}exec env {} \"$@\"\n", creds.line()));
        for (name, text) in
            [("dd", DD), ("mount", MOUNT), ("umount", UMOUNT), ("mountpoint", MOUNTPOINT), ("sleep", SLEEP)]
        {
            node.program(name, text);
        }
        node.put("sys/class/dmi/id/product_uuid", b"6b696c6e-0000-4000-8000-00000000000f\n");
        let order = seal::order(key, SECRETS.map(|(name, _)| name)).unwrap();
        node.put(&format!("{FOLDER}/{}.cred", order.name), &sealed::seal(&order));
        let mut spare = 0;
        for (name, value) in SECRETS {
            let credential = Credential { name: name.to_owned(), value: Value::new(value), secret: true };
            let room = seal::room(value.len());
            spare = spare.max(room);
            let bytes = sealed::padded(sealed::seal(&credential), room);
            node.put(&format!("{FOLDER}/{name}.cred"), &bytes);
        }
        let bytes = sealed::padded(Vec::new(), spare);
        node.put(&format!("{FOLDER}/{}.cred", seal::SPARE), &bytes);
        node
    }

    /// One more with all that this one has.
    fn twin(&self) -> Self {
        let twin = Node(tempfile::tempdir_in(images::folder()).unwrap());
        images::copy(self.0.path(), twin.0.path());
        twin
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        fs_err::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs_err::write(self.path(path), bytes).unwrap();
    }

    fn remove(&self, path: &str) {
        fs_err::remove_file(self.path(path)).unwrap();
    }

    fn program(&self, name: &str, text: &str) {
        self.put(&format!("bin/{name}"), text.as_bytes());
        let all = std::fs::Permissions::from_mode(0o755);
        fs_err::set_permissions(self.path(&format!("bin/{name}")), all).unwrap();
    }

    fn is_mounted(&self) -> bool {
        self.path("run/seal-esp/loader").exists()
    }

    /// The machine is switched on: nothing is mounted any more and memory is empty. Boot loader and initrd do their part, then the
    /// script is started.
    fn boot(&self, cut: Option<Cut>) -> Run {
        if self.is_mounted() {
            fs_err::rename(self.path("run/seal-esp"), self.path("esp")).unwrap();
        }
        for folder in ["encrypted", "store", "run"] {
            fs_err::remove_dir_all(self.path(folder)).ok();
        }
        for entry in fs_err::read_dir(self.path(FOLDER)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            self.put(&format!("encrypted/{name}"), &fs_err::read(&path).unwrap());
        }
        self.start(cut)
    }

    /// The script is started, for the first time in this boot or once more.
    fn start(&self, cut: Option<Cut>) -> Run {
        for count in ["writes", "slept"] {
            self.put(count, b"");
        }
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display());
        let cut = cut.unwrap_or(Cut { write: 0, tear: "none", signal: "KILL" });
        let output = command("sh")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("images/files/seal"))
            .env("PATH", path)
            .env("KILN_NODE", self.0.path())
            .env("KILN_ENCRYPTED", self.path("encrypted"))
            .env("KILN_OPENED", self.path("store"))
            .env("KILN_RUN", self.path("run"))
            .env("KILN_TPM", self.path("tpm"))
            .env("KILN_SYS", self.path("sys"))
            .env("KILN_IDENTITY", "true")
            .env("KILN_CUT", cut.write.to_string())
            .env("KILN_TEAR", cut.tear)
            .env("KILN_SIGNAL", cut.signal)
            .env("SYSTEMD_CREDENTIAL_SECRET", self.path("var/credential.secret"))
            .output()
            .unwrap();
        Run::of(&output)
    }

    /// How often something was written, or a second waited, since the script was started.
    fn count(&self, what: &str) -> usize {
        fs_err::read(self.path(what)).unwrap().len()
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

    /// A file of the ESP, mounted or not.
    fn esp(&self, name: &str) -> Vec<u8> {
        let folder = if self.is_mounted() { "run/seal-esp/loader/credentials" } else { FOLDER };
        fs_err::read(self.path(&format!("{folder}/{name}.cred"))).unwrap()
    }

    fn secrets(&self) -> [Vec<u8>; 2] {
        SECRETS.map(|(name, _)| self.esp(name))
    }

    /// The files of secrets that cannot be opened with this node's key.
    fn torn(&self) -> Vec<&'static str> {
        let opens = |name: &str| {
            self.put("torn", &self.esp(name));
            let mut creds = command(self.path("bin/systemd-creds"));
            creds.arg(format!("--name={name}")).arg("decrypt").arg(self.path("torn")).arg(self.path("whole"));
            creds.env("KILN_NODE", self.0.path());
            creds.env("SYSTEMD_CREDENTIAL_SECRET", self.path("var/credential.secret"));
            creds.output().unwrap().status.success()
        };
        SECRETS.map(|(name, _)| name).into_iter().filter(|name| !opens(name)).collect()
    }

    #[track_caller]
    fn is_sealed(&self, run: &Run) {
        for (name, value) in SECRETS {
            let file = self.esp(name);
            assert!(!file.starts_with(b"BYRp2vb1QySABUnaD46i+"), "{name} is open\n{}", run.text());
            assert_eq!(file.len(), seal::room(value.len()));
            assert!(file.trim_ascii_end().len() > SECTOR, "{name} is never half written");
        }
        assert_eq!(self.torn(), [""; 0], "{}", run.text());
        assert!(self.esp(seal::SPARE).iter().all(|byte| *byte == b'\n'), "{}", run.text());
        assert!(!self.is_mounted() && !self.path("run/seal").exists(), "{}", run.text());
    }
}

/// What the first boot writes: each secret to the spare file and to its own, and at last the spare file is emptied.
const WRITES: usize = 5;

#[test]
fn a_node_that_loses_power_at_any_point_has_its_secrets_and_seals_them_at_a_later_boot() {
    let node = Node::flashed(Seal::Host);
    let run = node.boot(None).ok();
    node.has_all(&run);
    node.is_sealed(&run);
    assert_eq!(node.count("writes"), WRITES);
    let kept = node.secrets();
    let run = node.boot(None).ok();
    node.has_all(&run);
    assert_eq!((node.count("writes"), node.secrets()), (0, kept), "it is done once");

    let mut torn = Vec::new();
    for cut in (1..=WRITES).flat_map(cuts) {
        let first = Node::flashed(Seal::Host);
        let run = first.boot(Some(cut));
        assert_eq!(run.code, 128 + 9, "{cut:?}: {}", run.text());
        torn.extend(first.torn());
        // The next boot may be cut as well, wherever it writes; then a third one has to mend what two left.
        for then in (1..).flat_map(cuts) {
            let node = first.twin();
            let run = node.boot(Some(then));
            if run.code != 128 + 9 {
                // It had less to write.
                let run = run.ok();
                node.has_all(&run);
                node.is_sealed(&run);
                break;
            }
            let run = node.boot(None);
            assert_eq!(run.code, 0, "{cut:?}, {then:?}: {}", run.text());
            node.has_all(&run);
            node.is_sealed(&run);
        }
    }
    let [(token, _), (hash, _)] = SECRETS;
    assert_eq!(torn, [token, token, hash, hash], "half of a file is no file");
}

#[test]
fn a_start_in_the_same_boot_goes_on_where_the_one_before_was_ended() {
    for cut in (1..=WRITES).flat_map(cuts) {
        for signal in ["KILL", "TERM"] {
            let node = Node::flashed(Seal::Host);
            let run = node.boot(Some(Cut { signal, ..cut }));
            if signal == "TERM" {
                assert_eq!(run.code, 128 + 15, "{cut:?}: {}", run.text());
                assert!(!node.is_mounted() && !node.path("run/seal").exists(), "{cut:?}: {}", run.text());
            } else {
                assert_eq!(run.code, 128 + 9, "{cut:?}: {}", run.text());
                assert!(node.is_mounted(), "nobody could take it away");
            }
            let run = node.start(None);
            assert_eq!(run.code, 0, "{cut:?}, {signal}: {}", run.text());
            node.has_all(&run);
            node.is_sealed(&run);
            let run = node.boot(None).ok();
            node.has_all(&run);
            assert_eq!(node.count("writes"), 0, "{cut:?}, {signal}");
        }
    }
}

#[test]
fn the_spare_file_is_kept_while_it_may_have_the_only_copy() {
    let torn = |write| {
        let node = Node::flashed(Seal::Host);
        node.boot(Some(Cut { write, tear: "head", signal: "KILL" }));
        assert_eq!(node.torn().len(), 1);
        node
    };
    let [(token, _), (hash, _)] = SECRETS;

    // The first start of the boot takes what the boot loader found, and fails.
    let node = torn(2);
    let spare = node.esp(seal::SPARE);
    node.put("broken", b"");
    let run = node.boot(None);
    assert_eq!(run.code, 1, "{}", run.text());
    assert!(run.stderr.contains("the ESP cannot be mounted"), "{}", run.text());
    node.has_all(&run);
    let run = node.start(None);
    assert_eq!(run.code, 1, "it is not done: {}", run.text());
    assert!(node.esp(seal::SPARE) == spare);
    node.remove("broken");
    let run = node.start(None).ok();
    node.has_all(&run);
    node.is_sealed(&run);

    // The key is away for one boot, with the second secret still open and with both sealed.
    for (write, lost) in [(2, vec![token]), (4, vec![token, hash])] {
        let node = torn(write);
        let (secrets, spare) = (node.secrets(), node.esp(seal::SPARE));
        fs_err::rename(node.path("var"), node.path("away")).unwrap();
        let run = node.boot(None);
        assert_eq!(run.code, 1, "{}", run.text());
        for (name, _) in SECRETS {
            assert_eq!(node.given(name).is_none(), lost.contains(&name), "{name}\n{}", run.text());
        }
        let told = format!("{token} cannot be opened, and the spare file on the ESP may hold it");
        assert_eq!(run.stderr.contains(&told), lost.len() == 1, "{}", run.text());
        assert!(node.secrets() == secrets && node.esp(seal::SPARE) == spare, "{}", run.text());
        fs_err::rename(node.path("away"), node.path("var")).unwrap();
        let run = node.boot(None).ok();
        node.has_all(&run);
        node.is_sealed(&run);
    }
}

#[test]
fn an_esp_that_cannot_be_taken_away_is_left_alone_and_told() {
    // It was mounted by a start that was killed.
    let node = Node::flashed(Seal::Host);
    node.boot(Some(Cut { write: 2, tear: "head", signal: "KILL" }));
    let (secrets, spare) = (node.secrets(), node.esp(seal::SPARE));
    node.put("busy", b"");
    let run = node.start(None);
    assert_eq!(run.code, 1, "{}", run.text());
    assert!(run.stderr.contains("is still mounted on"), "{}", run.text());
    assert!(node.secrets() == secrets && node.esp(seal::SPARE) == spare, "{}", run.text());
    node.remove("busy");
    let run = node.start(None).ok();
    node.has_all(&run);
    node.is_sealed(&run);

    // It cannot be taken away at the end.
    let node = Node::flashed(Seal::Host);
    node.put("busy", b"");
    let run = node.boot(None);
    assert_eq!(run.code, 1, "{}", run.text());
    assert!(run.stderr.contains("the ESP stays mounted"), "{}", run.text());
    assert!(node.is_mounted() && !node.path("run/seal").exists(), "{}", run.text());
    node.has_all(&run);
    node.remove("busy");
    let run = node.boot(None).ok();
    node.has_all(&run);
    node.is_sealed(&run);
}

#[test]
fn a_tpm_that_comes_up_late_is_waited_for_if_something_names_it() {
    let node = Node::flashed(Seal::Tpm2);
    node.put("late", b"3\n");
    // By the firmware of a PC.
    node.put("sys/firmware/acpi/tables/TPM2", b"");
    let run = node.boot(None).ok();
    node.has_all(&run);
    node.is_sealed(&run);
    assert_eq!(node.count("slept"), 3);
    let sealed = node.secrets();

    // By a driver that has found it, whatever the firmware.
    node.remove("tpm");
    node.remove("sys/firmware/acpi/tables/TPM2");
    let version = "sys/class/tpm/tpm0/tpm_version_major";
    node.put(version, b"2\n");
    let run = node.boot(None).ok();
    node.has_all(&run);
    assert_eq!((node.count("slept"), node.count("writes")), (3, 0));

    // It does not come up in time: then no other machine is to blame.
    node.remove("tpm");
    node.remove("late");
    let run = node.boot(None);
    assert_eq!((run.code, node.count("slept")), (1, 30), "{}", run.text());
    for (name, _) in SECRETS {
        let told =
            format!("the secret {name} is under the key `tpm2`, and the TPM 2.0 of this machine did not");
        assert!(run.stderr.contains(&told) && !run.stderr.contains("another machine"), "{}", run.text());
        assert_eq!(node.given(name), None);
    }
    assert!(node.secrets() == sealed, "{}", run.text());
    // It did later, and somebody started the unit again.
    fs_err::os::unix::fs::symlink("/dev/null", node.path("tpm")).unwrap();
    let run = node.start(None).ok();
    node.has_all(&run);

    // A TPM 1.2 is of no use, and waited for by nobody.
    node.remove("tpm");
    node.put(version, b"1\n");
    let run = node.boot(None);
    assert_eq!((run.code, node.count("slept")), (1, 0), "{}", run.text());
    assert!(run.stderr.contains("and this machine has no TPM 2.0 that Linux knows"), "{}", run.text());
}

#[test]
fn a_key_that_is_not_there_takes_nothing_away_and_is_told() {
    let node = Node::flashed(Seal::Tpm2);
    let before = node.secrets();
    let run = node.boot(None);
    assert_eq!(run.code, 1, "{}", run.text());
    assert!(run.stderr.contains("no TPM 2.0") && run.stderr.contains("can read k3s.token"), "{}", run.text());
    node.has_all(&run);
    assert_eq!(node.secrets(), before);

    // A key on /var that another machine id cannot use, and none in firmware that stays.
    let node = Node::flashed(Seal::Host);
    node.put("sys/class/dmi/id/product_uuid", b"00000000-0000-0000-0000-000000000000\n");
    let run = node.boot(None);
    assert_eq!(run.code, 1, "{}", run.text());
    assert!(run.stderr.contains("no UUID in its firmware"), "{}", run.text());
    node.has_all(&run);
    assert_eq!(node.secrets(), before);

    // A key that was lost: of another machine, or of a /var that was.
    let node = Node::flashed(Seal::Host);
    node.boot(None).ok();
    let sealed = node.secrets();
    fs_err::remove_file(node.path("var/credential.secret")).unwrap();
    let run = node.boot(None);
    assert_eq!(run.code, 1, "{}", run.text());
    for (name, _) in SECRETS {
        assert!(run.stderr.contains(&format!("the secret {name} is under the key `host`")), "{}", run.text());
        assert_eq!(node.given(name), None);
        assert!(!node.path("encrypted").join(name).exists(), "a unit that asks for it would not start");
    }
    assert_eq!(node.secrets(), sealed, "it may be found again");
}

#[test]
fn a_file_without_room_is_left_as_it_is() {
    let node = Node::flashed(Seal::Host);
    let file = "esp/loader/credentials/k3s.token.cred";
    let whole = fs_err::read(node.path(file)).unwrap();
    node.put(file, whole.trim_ascii_end());
    let run = node.boot(None);
    assert_eq!(run.code, 1, "{}", run.text());
    assert!(run.stderr.contains("cannot be written to the ESP"), "{}", run.text());
    node.has_all(&run);
    assert_eq!(node.esp("k3s.token"), whole.trim_ascii_end());
    assert!(node.esp(seal::SPARE).iter().all(|byte| *byte == b'\n'), "nothing is half written");
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
