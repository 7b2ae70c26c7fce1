use super::*;
use fs_err as fs;

fn pair() -> (tempfile::TempDir, Console, UnixStream) {
    let folder = tempfile::tempdir().unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let console = Console::attach("node", near, &folder.path().join("log"), Instant::now()).unwrap();
    (folder, console, far)
}

const SOON: Duration = Duration::from_secs(20);

#[test]
fn waiting_returns_the_text_before_and_uses_it_up() {
    let (_folder, console, mut far) = pair();
    far.write_all(b"one two th").unwrap();
    far.write_all(b"ree four\n").unwrap();
    assert_eq!(console.wait_for("three", SOON).unwrap(), "one two ");
    assert_eq!(console.next_line(SOON).unwrap(), " four");
    console.send(b"typed").unwrap();
    let mut typed = [0; 5];
    far.read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"typed");
}

#[test]
fn a_closed_console_ends_the_wait_at_once_with_the_last_lines() {
    let (_folder, console, mut far) = pair();
    far.write_all(b"Kernel panic\r\n").unwrap();
    drop(far);
    let failure = console.wait_for("login:", Duration::from_secs(3600)).unwrap_err();
    assert_eq!(failure.kind, Kind::Test);
    assert!(failure.hints()[0].contains("Kernel panic"));
    assert_eq!(console.seen(&["oops", "Kernel panic"]), Some("Kernel panic"));
}

#[test]
fn the_log_has_every_line_with_its_time() {
    let (folder, console, mut far) = pair();
    far.write_all(b"\x1b[2J\x1b[01;01H\x1b[=3hfirst\r\n\x1b[0;1;31msec\x1b[0mond\n\x1bcno end\x1b[").unwrap();
    drop(far);
    assert!(console.wait_for("never", SOON).is_err());
    drop(console);
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    let lines: Vec<&str> = log.lines().map(|line| line.split_once("] ").unwrap().1).collect();
    assert_eq!(lines, ["first", "second", "no end"]);
    assert!(log.starts_with("[    0.0"), "{log}");
}

/// What an observer was told.
fn told(console: &Console) -> Arc<Mutex<Vec<String>>> {
    let told = Arc::new(Mutex::new(Vec::new()));
    let theirs = Arc::clone(&told);
    console.observe(Box::new(move |_, line| theirs.lock().unwrap().push(line.to_owned())));
    told
}

#[test]
fn an_observer_is_told_every_line_once_whenever_it_comes() {
    let (_folder, console, mut far) = pair();
    far.write_all(b"one\n[    2.000] two\n\nthr").unwrap();
    console.wait_for("thr", SOON).unwrap();
    let late = told(&console);
    assert_eq!(*late.lock().unwrap(), ["one", "[    2.000] two", ""]);
    far.write_all(b"\x1b[1mee\r\nfour").unwrap();
    drop(far);
    assert!(console.wait_for("never", SOON).is_err());
    assert_eq!(*late.lock().unwrap(), ["one", "[    2.000] two", "", "three", "four"]);
    assert_eq!(*told(&console).lock().unwrap(), *late.lock().unwrap());
}

#[test]
fn a_line_without_end_is_told_in_pieces_and_takes_no_memory() {
    let (_folder, console, mut far) = pair();
    let seen = told(&console);
    let writer = std::thread::spawn(move || far.write_all(&vec![b'x'; 3 << 20]));
    writer.join().unwrap().unwrap();
    assert!(console.wait_for("never", SOON).is_err());
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().map(String::len).sum::<usize>(), 3 << 20);
    assert!(seen.iter().all(|line| line.len() <= 16 << 10), "{:?}", seen.iter().map(String::len).max());
    assert!(console.last_lines(10_000).len() <= 80 << 10);
}

#[test]
fn the_log_of_a_port_shortens_what_programs_say() {
    let folder = tempfile::tempdir().unwrap();
    let (near, mut far) = UnixStream::pair().unwrap();
    let log = folder.path().join("log");
    let port = Console::attach_port("port", near, &log, Instant::now()).unwrap();
    let long = "y".repeat(5000);
    far.write_all(format!("{long}\nshort\n").as_bytes()).unwrap();
    assert_eq!(port.next_line(SOON).unwrap(), long, "who listens gets all of it");
    assert_eq!(port.next_line(SOON).unwrap(), "short");
    drop(port);
    let log = fs::read_to_string(log).unwrap();
    assert!(log.len() < 500 && log.contains("yyy… (5000 bytes)") && log.contains("] short"), "{log}");
}

#[test]
fn a_regular_expression_finds_whole_lines_and_prompts() {
    let (_folder, console, mut far) = pair();
    let wait = |pattern: &str| console.wait_for_regex(&Regex::new(pattern).unwrap(), SOON).unwrap();
    far.write_all(b"address 10.0.0.").unwrap();
    let writer = std::thread::spawn(move || {
        far.write_all(b"17 is up\nnode login: ").unwrap();
        far
    });
    assert_eq!(wait(r"^address [\d.]+"), "address 10.0.0.17 is up", "half a line does not match");
    assert_eq!(wait("login: $"), "node login: ");
    let mut far = writer.join().unwrap();
    far.write_all(b"a\nb\n").unwrap();
    drop(far);
    let failure = console.wait_for_regex(&Regex::new("^c").unwrap(), Duration::from_secs(3600)).unwrap_err();
    assert!(failure.to_string().contains("`^c`") && failure.hints()[0].ends_with("a\nb"), "{failure:?}");
    assert_eq!(console.next_line(SOON).unwrap(), "a", "what did not match is not used up");
}

#[test]
fn what_stood_before_a_position_is_not_seen_after_it() {
    let (_folder, console, mut far) = pair();
    far.write_all(b"Kernel panic\n").unwrap();
    while console.seen(&["panic\n"]).is_none() {
        std::thread::yield_now();
    }
    let position = console.position();
    assert_eq!(console.seen_since(position, &["panic"]), None);
    far.write_all(b"login\n").unwrap();
    console.wait_for("login", SOON).unwrap();
    assert_eq!(console.seen_since(position, &["panic"]), None);
    far.write_all(b"panic again\n").unwrap();
    while console.seen_since(position, &["panic again"]).is_none() {
        std::thread::yield_now();
    }
}

#[test]
fn a_machine_that_was_off_goes_on_in_the_same_log_and_its_old_text_is_not_waited_for() {
    let (folder, console, mut far) = pair();
    far.write_all(b"Kernel panic\nlast word").unwrap();
    drop(far);
    let (near, mut far) = UnixStream::pair().unwrap();
    console.reattach(near, "---- again ----").unwrap();
    far.write_all(b"Booting\n").unwrap();
    assert_eq!(console.next_line(SOON).unwrap(), "Booting");
    assert_eq!(console.seen(&["Kernel panic"]), None);
    console.send(b"typed").unwrap();
    let mut typed = [0; 5];
    far.read_exact(&mut typed).unwrap();
    drop(console);
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    let lines: Vec<&str> = log.lines().map(|line| line.split_once("] ").unwrap().1).collect();
    assert_eq!(lines, ["Kernel panic", "last word", "---- again ----", "Booting"]);
}
