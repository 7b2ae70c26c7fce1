//! The only place that prints: status and progress to stderr, results to stdout.
//!
//! On a terminal, steps under way are drawn as live lines below the finished ones; elsewhere only plain lines come, and no
//! control codes. With `--quiet` only errors come. Results (`--json` too) go to stdout and are never mixed with progress.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::error::{Failure, Kind, Report, report};
use crate::url::scrub;

/// Width of the word in front of a status line; cargo's.
const WORD: usize = 12;

/// How much is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Only errors.
    Quiet,
    /// What a person wants to know.
    Normal,
    /// Every step with its reason.
    Verbose,
}

/// The door to the terminal. Shared by all threads of a run; clones are the same door.
#[derive(Debug, Clone)]
pub struct Ui {
    verbosity: Verbosity,
    json: bool,
    live: bool,
    bars: MultiProgress,
    /// Where lines go in tests instead of stderr.
    #[cfg(test)]
    kept: Option<std::sync::Arc<std::sync::Mutex<String>>>,
}

impl Ui {
    /// `json`: results are one JSON object, and so are errors.
    pub fn new(verbosity: Verbosity, json: bool) -> Self {
        let live = std::io::stderr().is_terminal() && verbosity != Verbosity::Quiet;
        let target = if live { ProgressDrawTarget::stderr_with_hz(12) } else { ProgressDrawTarget::hidden() };
        Ui {
            verbosity,
            json,
            live,
            bars: MultiProgress::with_draw_target(target),
            #[cfg(test)]
            kept: None,
        }
    }

    /// One that keeps its lines, as they look where nothing understands colours, and draws no live lines.
    #[cfg(test)]
    pub(crate) fn kept(verbosity: Verbosity, live: bool) -> (Self, std::sync::Arc<std::sync::Mutex<String>>) {
        let lines = std::sync::Arc::default();
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        (Ui { verbosity, json: false, live, bars, kept: Some(std::sync::Arc::clone(&lines)) }, lines)
    }

    /// Whether results are asked for as JSON.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether a person watches a terminal.
    pub fn live(&self) -> bool {
        self.live
    }

    /// A finished or beginning step: a word (`Fetched`) and what it was about.
    pub fn status(&self, word: &str, text: impl AsRef<str>) {
        if self.verbosity != Verbosity::Quiet {
            self.line(word, AnsiColor::Green, text.as_ref());
        }
    }

    /// As [`Ui::status`], only with `-v`.
    pub fn detail(&self, word: &str, text: impl AsRef<str>) {
        if self.verbosity == Verbosity::Verbose {
            self.line(word, AnsiColor::Cyan, text.as_ref());
        }
    }

    /// Something that a person should know although the work goes on.
    pub fn warn(&self, text: impl AsRef<str>) {
        if self.verbosity != Verbosity::Quiet {
            self.line("warning", AnsiColor::Yellow, text.as_ref());
        }
    }

    /// Something that went wrong although the work goes on: as [`Ui::status`] in red.
    pub fn bad(&self, word: &str, text: impl AsRef<str>) {
        if self.verbosity != Verbosity::Quiet {
            self.line(word, AnsiColor::Red, text.as_ref());
        }
    }

    /// Something that a person should notice: as [`Ui::status`] in yellow.
    pub fn notice(&self, word: &str, text: impl AsRef<str>) {
        if self.verbosity != Verbosity::Quiet {
            self.line(word, AnsiColor::Yellow, text.as_ref());
        }
    }

    /// Lines that belong to the status above them, such as what a program answered.
    pub fn quote(&self, text: impl AsRef<str>) {
        if self.verbosity != Verbosity::Quiet {
            let dim = Style::new().dimmed();
            for line in visible(&scrub(text.as_ref())).lines() {
                self.to_stderr(&format!("{:>WORD$} {dim}| {line}{dim:#}", ""));
            }
        }
    }

    fn line(&self, word: &str, color: AnsiColor, text: &str) {
        let style = Style::new().bold().fg_color(Some(color.into()));
        self.to_stderr(&format!("{style}{word:>WORD$}{style:#} {}", visible(&scrub(text))));
    }

    /// Status that cannot be written to stderr is lost: there is no other place to say so.
    fn to_stderr(&self, line: &str) {
        #[cfg(test)]
        if let Some(kept) = &self.kept {
            let line = anstream::adapter::strip_str(line).to_string();
            kept.lock().unwrap().push_str(&format!("{line}\n"));
            return;
        }
        self.bars.suspend(|| {
            let mut stderr = anstream::stderr().lock();
            writeln!(stderr, "{line}").ok();
        });
    }

    /// A line of result text, to stdout. If it cannot be written, [`written`] says so at the end of the run.
    pub fn result(&self, text: impl AsRef<str>) {
        let text = text.as_ref();
        // Names of files go to other programs as they are.
        let text = if io::stdout().is_terminal() { visible(text) } else { text.into() };
        self.bars.suspend(|| Stdout.print(format!("{text}\n").as_bytes()));
    }

    /// Raw bytes of a result (bill of materials, completion script, console), to stdout, as [`Ui::result`].
    pub fn raw(&self, bytes: &[u8]) {
        Stdout.print(bytes);
    }

    /// A result as JSON, one object, to stdout.
    pub fn result_json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.result(json_text(&serde_json::to_string_pretty(value)?));
        Ok(())
    }

    /// Prints an error: `error:`, the causes, the remedies. Returns what was printed as data.
    pub fn error(&self, error: &anyhow::Error) -> Report {
        let report = report(error);
        let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
        let cyan = Style::new().bold().fg_color(Some(AnsiColor::Cyan.into()));
        let mut chain = report.chain.iter();
        self.to_stderr(&format!(
            "{red}error{red:#}: {}",
            visible(chain.next().map_or("unknown", String::as_str))
        ));
        for cause in chain {
            self.to_stderr(&format!("  caused by: {}", visible(cause)));
        }
        for hint in &report.hints {
            self.to_stderr(&format!("{cyan}hint{cyan:#}: {}", visible(hint)));
        }
        if self.json {
            #[derive(Serialize)]
            struct Object<'a> {
                error: &'a [String],
                kind: &'a str,
                hints: &'a [String],
            }
            let object = Object { error: &report.chain, kind: report.kind.word(), hints: &report.hints };
            self.result(json_text(&serde_json::to_string(&object).unwrap_or_default()));
        }
        report
    }

    /// Asks a person on the terminal and says what they typed; `None` if there is no terminal, or they ended the input.
    pub fn ask(&self, question: &str) -> Option<String> {
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return None;
        }
        self.line("Confirm", AnsiColor::Yellow, question);
        let mut answer = String::new();
        let n = std::io::stdin().read_line(&mut answer).ok()?;
        (n > 0).then(|| answer.trim().to_owned())
    }

    /// A live line for something with a known amount of bytes; vanishes when dropped.
    pub fn bytes_bar(&self, word: &str, total: u64) -> Bar {
        let template = format!(
            "{{prefix:>{WORD}.bold.cyan}} [{{bar:28.cyan/dim}}] {{bytes}}/{{total_bytes}} {{bytes_per_sec}} {{wide_msg:.dim}}"
        );
        self.bar(word, total, &template)
    }

    /// A live line for a number of items; vanishes when dropped.
    pub fn count_bar(&self, word: &str, total: u64) -> Bar {
        let template =
            format!("{{prefix:>{WORD}.bold.cyan}} [{{bar:28.cyan/dim}}] {{pos}}/{{len}} {{wide_msg:.dim}}");
        self.bar(word, total, &template)
    }

    /// A live line for a step of unknown length; vanishes when dropped.
    pub fn spinner(&self, word: &str, message: impl Into<Cow<'static, str>>) -> Bar {
        let bar = self.bar(
            word,
            0,
            &format!("{{prefix:>{WORD}.bold.cyan}} {{spinner}} {{elapsed}} {{wide_msg:.dim}}"),
        );
        bar.message(message);
        bar.inner.enable_steady_tick(Duration::from_millis(120));
        bar
    }

    /// A live line for something that goes through states: how long it is in this one, and a message that is cut to the width
    /// of the terminal; vanishes when dropped.
    pub fn state_line(&self, word: &str) -> Bar {
        let bar =
            self.bar(word, 0, &format!("{{prefix:>{WORD}.bold.cyan}} {{elapsed:>4.dim}}  {{wide_msg}}"));
        bar.inner.enable_steady_tick(Duration::from_secs(1));
        bar
    }

    /// A row of a live table: a word that may change and a message that is cut to the width of the terminal; vanishes when dropped.
    pub fn plain_line(&self) -> Bar {
        self.bar("", 0, &format!("{{prefix:>{WORD}.bold.cyan}} {{wide_msg}}"))
    }

    fn bar(&self, word: &str, total: u64, template: &str) -> Bar {
        let style = ProgressStyle::with_template(template)
            .expect("the templates of ui are valid")
            .progress_chars("=> ");
        let bar =
            self.bars.add(ProgressBar::new(total).with_style(style).with_prefix(visible(word).into_owned()));
        bar.tick();
        Bar { inner: bar }
    }
}

/// The one way to stdout, without a buffer. After a write that failed nothing is written any more: a result that ends too soon is
/// better than one with a hole.
#[derive(Debug, Clone, Copy)]
pub struct Stdout;

/// The first write to stdout that failed. Of the process, as stdout is.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

impl Stdout {
    fn failed() -> MutexGuard<'static, Option<io::Error>> {
        FAILED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Writes all bytes; [`written`] says whether that failed.
    pub fn print(self, bytes: &[u8]) {
        let mut failed = Self::failed();
        if failed.is_none() {
            *failed = write_to(rustix::stdio::stdout(), bytes).err();
        }
    }
}

/// For consoles, which take any writer: what cannot be written is kept for [`written`], and the console goes on.
impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.print(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes all bytes to a file descriptor, not by std's stdout: that takes a descriptor that cannot be written to for one that nobody
/// listens to (EBADF), and fails on a pipe that is full and does not block (EAGAIN).
fn write_to(out: impl std::os::fd::AsFd, mut bytes: &[u8]) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::Errno;
    while !bytes.is_empty() {
        match rustix::io::write(&out, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&out, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether everything that was to go to stdout is there.
///
/// # Errors
/// [`Kind::Store`] with the reason of the first write that failed. A closed pipe is none.
pub fn written() -> Result<(), Failure> {
    match &*Stdout::failed() {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(not_written(error)),
        _ => Ok(()),
    }
}

/// The reason is text here and no I/O error below: the remedies of a full store would be wrong for the place where results go.
fn not_written(error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space there",
        _ => "send it to a file or a terminal that can be written",
    };
    let text = format!("the result could not be written to standard output, so it is not complete: {error}");
    Failure::new(Kind::Store, text).hint(format!("{remedy}, then run the same command again"))
}

/// Prints what clap has to say: help and version are results and go to stdout, wrong usage goes to stderr. Words of the command line
/// are shown as [`visible`] does.
pub fn usage(error: &clap::Error) {
    let text = error.render();
    let own = std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"KILN_"));
    let mut given = std::env::args_os().chain(own.map(|(_, value)| value));
    // clap's own colours stay where nothing else could be taken for them.
    let harmless = given.all(|word| matches!(visible(&word.to_string_lossy()), Cow::Borrowed(_)));
    let coloured = anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never;
    match (error.use_stderr(), harmless) {
        // There is no other place to say that stderr cannot be written.
        (true, true) => drop(error.print()),
        (true, false) => drop(write!(io::stderr().lock(), "{}", visible(&text.to_string()))),
        (false, true) if coloured => Stdout.print(text.ansi().to_string().as_bytes()),
        (false, _) => Stdout.print(visible(&text.to_string()).as_bytes()),
    }
}

/// A live line; see [`Ui::bytes_bar`].
#[derive(Debug)]
pub struct Bar {
    inner: ProgressBar,
}

impl Bar {
    /// So much more is done.
    pub fn inc(&self, amount: u64) {
        self.inner.inc(amount);
    }

    /// Another amount, done from nothing.
    pub fn reset(&self, word: &str, total: u64) {
        self.inner.set_prefix(visible(word).into_owned());
        self.inner.reset();
        self.inner.set_length(total);
    }

    /// What is worked on now.
    pub fn message(&self, text: impl Into<Cow<'static, str>>) {
        self.inner.set_message(visible(&text.into()).into_owned());
    }

    /// The word in front.
    pub fn word(&self, word: impl Into<Cow<'static, str>>) {
        self.inner.set_prefix(visible(&word.into()).into_owned());
    }

    /// Lets the time of a [`Ui::state_line`] begin again.
    pub fn restart(&self) {
        self.inner.reset_elapsed();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.inner.finish_and_clear();
    }
}

/// A message, name or excerpt as a terminal may show it: what would move its cursor, change its colours or title, or turn the direction
/// of text stands there as Rust writes it (`\u{1b}`). Nothing is left out, so that a strange name can be recognised; only a carriage
/// return at the end of a line goes.
pub fn visible(text: &str) -> Cow<'_, str> {
    if text.chars().all(|c| c == '\n' || is_plain(c)) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.replace("\r\n", "\n").chars() {
        if c == '\n' || is_plain(c) {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
    }
    out.into()
}

/// JSON in which characters that serde leaves as they are and terminals obey are written as JSON's own escapes. They can stand in strings
/// only, so the value is the same.
pub fn json_text(json: &str) -> Cow<'_, str> {
    if json.chars().all(|c| c == '\n' || is_plain(c)) {
        return json.into();
    }
    let mut out = String::with_capacity(json.len() + 8);
    for c in json.chars() {
        if c == '\n' || is_plain(c) {
            out.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out.into()
}

/// Text of a guest or a child, fit for a terminal and for every text format: without control sequences (ECMA-48); a carriage
/// return becomes a line end, and characters that are invisible, turn the direction of text (UAX #9) or may not stand in XML become
/// U+FFFD. Tabs and line ends stay.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            out.push('\n');
        }
        // Lines from a serial port end in `\r\n`, or two of the first.
        for (number, part) in line.trim_end_matches('\r').split('\r').enumerate() {
            if number > 0 {
                out.push('\n');
            }
            if part.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b)) {
                out.push_str(part);
                continue;
            }
            // Line by line: a sequence that never ends must not swallow what follows.
            for visible in anstream::adapter::strip_str(part) {
                out.extend(
                    visible.chars().map(|c| if is_plain(c) { c } else { char::REPLACEMENT_CHARACTER }),
                );
            }
        }
    }
    out
}

fn is_plain(c: char) -> bool {
    c == '\t'
        || !(c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            || matches!(c, '\u{feff}' | '\u{fffe}' | '\u{ffff}' | '\u{2028}' | '\u{2029}'))
}

/// Bytes for people: `31.4 MB` (decimal, as disks are sold).
pub fn human_bytes(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string()
}

/// A duration for people: `3.2 s`, `2 m 05 s`, `3 h 20 m`.
pub fn human_time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else if seconds < 3600.0 {
        format!("{} m {:02} s", time.as_secs() / 60, time.as_secs() % 60)
    } else {
        format!("{} h {:02} m", time.as_secs() / 3600, time.as_secs() / 60 % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_has_no_control_sequences_and_loses_no_line() {
        for (text, want) in [
            ("plain\ttext\n", "plain\ttext\n"),
            ("\u{1b}[1;31mred\u{1b}[0m", "red"),
            ("a\r\nb\r\r\nc\r", "a\nb\nc"),
            ("10%\r20%\r\n", "10%\n20%\n"),
            // The title that never ends takes its own line with it and no other.
            ("\u{1b}]0;title\nnext", "\nnext"),
            ("nul\0 bell\u{7} back\u{8}", "nul bell back"),
            // CSI as one character, text direction, a character that XML has not.
            ("\u{9b}31m \u{202e}x \u{ffff}", "\u{fffd}31m \u{fffd}x \u{fffd}"),
            ("grün 雪 🦀", "grün 雪 🦀"),
        ] {
            assert_eq!(plain(text), want, "{text:?}");
        }
    }

    #[test]
    fn no_character_that_a_terminal_obeys_is_printed() {
        let hostile = "a\u{1b}[2Jb\u{9b}31m\rc\u{7}\u{7f}\u{202e}d\u{2066}\0\te\r\nf";
        let shown = r"a\u{1b}[2Jb\u{9b}31m\rc\u{7}\u{7f}\u{202e}d\u{2066}\u{0}".to_owned() + "\te\nf";
        assert_eq!(visible(hostile), shown);
        let (ui, lines) = Ui::kept(Verbosity::Verbose, false);
        for say in [Ui::status, Ui::detail, Ui::bad, Ui::notice] {
            say(&ui, "Word", hostile);
        }
        ui.warn(hostile);
        ui.quote(hostile);
        let failure = crate::error::Failure::new(crate::error::Kind::Input, hostile).hint(hostile);
        ui.error(&anyhow::Error::from(failure).context(hostile));
        let lines = lines.lock().unwrap();
        assert_eq!(lines.matches(r"\u{1b}[2Jb").count(), 8, "{lines}");
        assert!(lines.chars().all(|c| c == '\n' || is_plain(c)), "{lines:?}");
    }

    #[test]
    fn json_has_no_character_that_a_terminal_obeys_and_means_the_same() {
        let hostile = "\u{1b}[2J \u{9b}31m \u{7f} \u{202e} \u{feff} 🦀\n\t\"";
        let text = serde_json::to_string_pretty(&vec![hostile]).unwrap();
        let json = json_text(&text);
        assert!(json.chars().all(|c| c == '\n' || is_plain(c)), "{json:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&json).unwrap(), [hostile]);
    }

    #[test]
    fn a_write_that_fails_is_an_error_and_one_that_would_block_waits() {
        let full = fs_err::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = write_to(full.file(), b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let failure = not_written(&error);
        assert_eq!(failure.kind.exit_code(), 6);
        assert!(!failure.hints().iter().any(|hint| hint.contains("store gc")), "{:?}", failure.hints());
        // A descriptor that is open for reading only.
        assert!(write_to(fs_err::File::open("/dev/null").unwrap().file(), b"x").is_err());

        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let bytes = vec![7; 1 << 20];
        let writer = std::thread::spawn(move || write_to(write, &bytes));
        let mut got = 0;
        let mut chunk = vec![0; 1 << 16];
        while got < 1 << 20 {
            match rustix::io::read(&read, &mut chunk) {
                Ok(n) => got += n,
                Err(rustix::io::Errno::AGAIN) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
        writer.join().unwrap().unwrap();
    }

    proptest::proptest! {
        #[test]
        fn plain_text_is_fit_for_xml_and_stays_as_it_is(text in ".{0,40}", bytes: Vec<u8>) {
            for text in [text, String::from_utf8_lossy(&bytes).into_owned()] {
                let once = plain(&text);
                assert!(once.chars().all(|c| c == '\n' || is_plain(c)), "{once:?}");
                assert_eq!(plain(&once), once);
            }
        }
    }
}
