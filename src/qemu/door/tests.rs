use super::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const SOON: Duration = Duration::from_secs(30);
const FIRST: &str = "00000000-0000-0000-0000-000000000001.7";
const SECOND: &str = "00000000-0000-0000-0000-000000000002.8";

/// A guest that says `hello` when greeted and runs commands with the sh of this machine; the commands that are one word in capitals
/// do what breaks doors.
struct Guest {
    stream: UnixStream,
    session: String,
    /// How many more parts of output were asked for.
    mores: usize,
    output: Vec<u8>,
}

impl Guest {
    fn serve(mut self) -> usize {
        let mut reader = BufReader::new(self.stream.try_clone().unwrap());
        let mut line = String::new();
        loop {
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return self.mores;
            }
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match words.as_slice() {
                ["hello", _] => self.say(&format!("hello {} kiln\n", self.session)),
                ["run", session, id, _, bytes, text @ ..] => {
                    let mut input = vec![0; bytes.parse().unwrap()];
                    reader.read_exact(&mut input).unwrap();
                    if *session == self.session
                        && !self.run(id, &unescape(text), &STANDARD.decode(input).unwrap())
                    {
                        return self.mores;
                    }
                }
                ["more", session, id, "out", offset] if *session == self.session => {
                    self.mores += 1;
                    let part = self.output[offset.parse().unwrap()..].chunks(CHUNK as usize).next().unwrap();
                    self.say(&format!("out {id} {}\nend {id}\n", STANDARD.encode(part)));
                }
                _ => {}
            }
        }
    }

    fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn run(&mut self, id: &str, command: &str, input: &[u8]) -> bool {
        match command {
            "DIE" => return false,
            "HANG" => return true,
            "REBOOT" => {
                self.session = SECOND.to_owned();
                self.say(&format!("answer {id} 0 do\nhello {SECOND}\n"));
                return true;
            }
            "LATE" => {
                self.say(&format!("answer {id} 137 late 1.00 3.50 0 0\nend {id}\n"));
                return true;
            }
            _ => {}
        }
        #[expect(clippy::disallowed_methods, reason = "stands for a guest")]
        let mut child = Command::new("/bin/sh")
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).ok();
        let output = child.wait_with_output().unwrap();
        let status = output.status.code().unwrap();
        let rubbish = "\u{1}rubbish\nanswer 0 9 done 0 0 0 0\nout 0 AAAA\nend 0\nanswer x\n";
        let mut text = rubbish.to_owned();
        text +=
            &format!("answer {id} {status} done 1.00 1.25 {} {}\n", output.stdout.len(), output.stderr.len());
        for (name, bytes) in [("out", &output.stdout), ("err", &output.stderr)] {
            let part = bytes.chunks(CHUNK as usize).next().unwrap_or_default();
            text += &format!("{name} {id} {}\n", STANDARD.encode(part));
        }
        self.output = output.stdout;
        self.say(&(text + rubbish + &format!("end {id}\n")));
        true
    }
}

/// What printf %b makes of it.
fn unescape(words: &[&str]) -> String {
    let text = words.first().copied().unwrap_or_default();
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'\\' {
            bytes.push(u8::from_str_radix(std::str::from_utf8(&tail[1..4]).unwrap(), 8).unwrap());
            rest = &tail[4..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).unwrap()
}

struct Fixture {
    door: Door,
    folder: tempfile::TempDir,
    guest: Option<std::thread::JoinHandle<usize>>,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let log = folder.path().join("port.log");
    let port = Console::attach_port("door of n1", near, &log, Instant::now()).unwrap();
    let guest = Guest { stream: far, session: FIRST.to_owned(), mores: 0, output: Vec::new() };
    let guest = std::thread::spawn(move || guest.serve());
    Fixture { door: Door::new(Arc::new(port)), folder, guest: Some(guest) }
}

#[test]
fn a_command_gives_status_and_both_streams_whatever_stands_between() {
    let Fixture { door, .. } = fixture();
    let output = door.run_with("cat; printf '\\377\\n' >&2; exit 3", b"a\0b\n", SOON).unwrap();
    assert_eq!((output.status, output.ending), (3, Ending::Done));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"a\0b\n"[..], &b"\xff\n"[..]));
    assert_eq!(output.elapsed, Duration::from_millis(250));
    assert!(!output.is_good());
    let failure = door.succeed("echo why >&2; false", SOON).unwrap_err();
    assert!(failure.hints()[0].contains("why"), "{failure:?}");
    assert_eq!(door.boot().unwrap(), "00000000-0000-0000-0000-000000000001");
}

#[test]
fn a_command_that_was_killed_is_not_good() {
    let Fixture { door, .. } = fixture();
    let output = door.run("LATE", SOON).unwrap();
    assert_eq!((output.ending, output.elapsed), (Ending::TimedOut, Duration::from_millis(2500)));
    assert!(!output.is_good() && output.describe().contains("killed after 2.5 s"));
}

#[test]
fn a_reboot_fails_the_command_in_flight_and_the_next_one_runs_in_the_new_boot() {
    let Fixture { door, .. } = fixture();
    let failure = door.run("REBOOT", SOON).unwrap_err();
    assert_eq!(failure.to_string(), "door of n1 was started anew while it ran `REBOOT`");
    assert_eq!(door.run("echo back", SOON).unwrap().text(), "back");
    assert!(door.boot().unwrap().ends_with('2'));
}

#[test]
fn a_machine_that_ends_fails_the_command_in_flight_and_all_to_come() {
    let Fixture { door, .. } = fixture();
    for command in ["DIE", "true"] {
        let failure = door.run(command, Duration::from_secs(3600)).unwrap_err();
        assert!(failure.to_string().contains("the machine is gone"), "{failure}");
    }
}

#[test]
fn a_breaker_fails_the_command_in_flight_up_to_the_next_boot() {
    let Fixture { door, .. } = fixture();
    door.connect(SOON).unwrap();
    let breaker = door.breaker();
    let failure = std::thread::scope(|scope| {
        let command = scope.spawn(|| door.run("HANG", Duration::from_secs(3600)));
        breaker.trip("kernel panic");
        command.join().unwrap().unwrap_err()
    });
    assert!(failure.to_string().contains("is lost (kernel panic)"), "{failure}");
    assert!(door.run("true", SOON).is_err(), "nothing is asked of a lost machine");
    // The guest of the tests says hello of its second session only on this word.
    door.port.send(format!("run {FIRST} 9 1 0 REBOOT\n").as_bytes()).unwrap();
    door.forget();
    assert_eq!(door.run("echo back", SOON).unwrap().text(), "back");
}

#[test]
fn a_forgotten_boot_does_not_come_back() {
    let Fixture { door, .. } = fixture();
    door.connect(SOON).unwrap();
    door.forget();
    let failure = door.connect(Duration::from_millis(300)).unwrap_err();
    assert!(failure.to_string().contains("did not answer"), "{failure}");
    assert_eq!(door.boot(), None);
}

#[test]
fn a_command_waits_its_turn_and_no_longer() {
    let Fixture { door, .. } = fixture();
    std::thread::scope(|scope| {
        let hang = scope.spawn(|| door.run("HANG", Duration::from_secs(3600)));
        while door.turn.try_lock().is_ok() {
            std::thread::yield_now();
        }
        let failure = door.run("true", Duration::from_millis(50)).unwrap_err();
        assert!(failure.to_string().contains("still busy"), "{failure}");
        door.forget();
        assert!(hang.join().unwrap().is_err());
    });
}

#[test]
fn of_a_large_output_the_first_and_the_last_part_come() {
    let Fixture { door, guest, .. } = fixture();
    let count = 300_000;
    let output = door.run(&format!("seq 1 {count}"), SOON).unwrap();
    let whole: String = (1..=count).map(|n| format!("{n}\n")).collect();
    let half = usize::try_from(OUTPUT / 2).unwrap();
    let note = format!("\n[… {} bytes left out …]\n", whole.len() - 2 * half);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, format!("{}{note}{}", &whole[..half], &whole[whole.len() - half..]));
    drop(door);
    assert_eq!(guest.unwrap().join().unwrap(), 3, "two parts of each half, the first one came unasked");
}

#[test]
fn files_go_in_and_come_out_whatever_their_bytes_and_names() {
    let Fixture { door, folder, .. } = fixture();
    let bytes: Vec<u8> = (0..700_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let path = folder.path().join("new folder/it's \"$x\" ä");
    let name = path.to_str().unwrap();
    door.put(&bytes, name, 0o640, SOON).unwrap();
    assert_eq!(fs_err::read(&path).unwrap(), bytes);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs_err::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o640);
    assert_eq!(door.get(name, SOON).unwrap(), bytes);
    door.put(b"", name, 0o600, SOON).unwrap();
    assert_eq!(door.get(name, SOON).unwrap(), b"");
    assert!(door.get("/nowhere/at all", SOON).unwrap_err().to_string().contains("/nowhere/at all"));
}

#[test]
fn waiting_tries_once_more_when_the_time_is_over() {
    let Fixture { door, folder, .. } = fixture();
    let count = folder.path().join("count");
    let command = |n| format!("echo >>{0}; [ $(wc -l <{0}) = {n} ] && echo there", count.display());
    assert_eq!(door.wait_until_succeeds(&command(3), SOON).unwrap().text(), "there");
    // The second try is after the end, however short the time is.
    let soon = Duration::from_millis(1);
    assert_eq!(door.wait_until_succeeds(&command(5), soon).unwrap().text(), "there");
    let failure = door.wait_until_succeeds("echo not yet; false", Duration::ZERO).unwrap_err();
    assert!(failure.hints()[0].contains("not yet"), "{failure:?}");
}

#[test]
fn the_escaped_command_is_one_word_that_a_shell_undoes() {
    let command: String = (1..=0xff_u8).map(char::from).chain("%s \\c \\0101 'ä€' $(x)\n".chars()).collect();
    let word = wire::escape(&command);
    assert!(!word.contains(char::is_whitespace) && word.is_ascii());
    let shell = crate::exec::Tool::host("/bin/sh");
    let output = shell.command().args(["-c", "printf %b \"$1\"", "sh", &word]).read().unwrap();
    assert_eq!(String::from_utf8(output).unwrap(), command);
    assert_eq!(unescape(&[&word]), command);
}

#[test]
fn the_script_is_one_that_a_shell_reads() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("door.sh");
    fs_err::write(&file, SCRIPT).unwrap();
    crate::exec::Tool::host("/bin/sh").command().arg("-n").arg(&file).run().unwrap();
    assert!(SCRIPT.contains(&format!("chunk={CHUNK}\n")), "both ends cut output alike");
    assert!(SCRIPT.contains(&format!("= {PORT} ]")));
}
