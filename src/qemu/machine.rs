//! One running machine: a QEMU process, its run folder, its sockets. Nothing of it is left after drop.

use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fs_err as fs;

use super::config::{Backing, Boot, Format, MachineConfig, Places};
use super::console::Console;
use super::qmp::{self, Qmp};
use super::tpm;
use crate::error::{Failure, Kind, Place, WritesTo};
use crate::exec::{Child, Tool};

/// How long QEMU may take to open its sockets; it needs some tens of milliseconds on an idle host.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long QEMU may take to answer a command.
const QMP_LIMIT: Duration = Duration::from_secs(30);
/// How long a QEMU whose control socket closed may take to be gone: it writes nothing, but a busy host is slow.
const GONE_LIMIT: Duration = Duration::from_secs(5);

/// A machine, from the first time that it was switched on; it may be off now.
#[derive(Debug)]
pub struct Machine {
    // Fields drop in this order: the process first, so that the threads see the end, then the folder.
    child: Child,
    /// The TPM beside QEMU, which ends by itself after it.
    tpm: Option<Child>,
    /// The control connection; a new one after each [`Machine::power_on`].
    pub qmp: Qmp,
    /// The serial line; the same through restarts.
    pub console: Arc<Console>,
    /// The virtio-serial ports, in the order of the configuration; the same through restarts.
    pub ports: Vec<Arc<Console>>,
    started: Instant,
    epoch: Instant,
    starts: u32,
    /// Whether [`Machine::power_cut`] ended the process that is in `child`.
    cut: bool,
    root: PathBuf,
    emulator: Tool,
    config: MachineConfig,
    places: Places,
    folder: RunFolder,
}

/// The run folder; removed on drop unless [`Machine::keep`] was called.
#[derive(Debug)]
struct RunFolder(Option<tempfile::TempDir>, PathBuf);

/// A QEMU whose guest waits for the first command.
struct Session {
    child: Child,
    tpm: Option<Child>,
    qmp: Qmp,
    console: UnixStream,
    ports: Vec<UnixStream>,
}

impl Machine {
    /// Switches a machine on: makes its folder under `parent` (or the system's folder for temporary files), the overlays, the
    /// variable store and the SMBIOS strings, then starts QEMU out of the tool tree at `root`.
    ///
    /// # Errors
    /// [`Kind::Input`] for an impossible configuration, [`Kind::Tool`] when QEMU does not start (with what it said).
    pub fn start(root: &Path, config: &MachineConfig, parent: Option<&Path>) -> anyhow::Result<Self> {
        config.validate()?;
        let root = std::path::absolute(root)?;
        let emulator = Tool::from_tree(&root, super::emulator(config.arch)).map_err(Failure::from)?;
        let mut builder = tempfile::Builder::new();
        let prefix = format!("kiln-{}-", config.name);
        builder.prefix(&prefix);
        let folder = match parent {
            Some(parent) => builder.tempdir_in(std::path::absolute(parent)?),
            None => builder.tempdir(),
        };
        let folder = folder.writes_to(Place::Temp, parent.unwrap_or(&std::env::temp_dir()))?;
        let places = Places { folder: folder.path().to_owned(), share: root.join("usr/share") };
        let sockets = [places.console(), places.tpm()];
        for socket in config.ports.iter().map(|port| places.port(port)).chain(sockets) {
            super::check_socket(&socket)?;
        }
        let folder = RunFolder(Some(folder), places.folder.clone());
        prepare(&root, config, &places).writes_to(Place::Temp, &places.folder)?;

        let started = Instant::now();
        let session = Session::start(&root, &emulator, config, &places)?;
        let name = &config.name;
        let log = |name: &str| places.folder.join(format!("{name}.log"));
        let console = Arc::new(Console::attach(
            &format!("console of {name}"),
            session.console,
            &log("console"),
            started,
        )?);
        let mut ports = Vec::new();
        for (port, stream) in config.ports.iter().zip(session.ports) {
            let name = format!("port {port} of {name}");
            ports.push(Arc::new(Console::attach_port(&name, stream, &log(port), started)?));
        }
        let mut machine = Machine {
            child: session.child,
            tpm: session.tpm,
            qmp: session.qmp,
            console,
            ports,
            started,
            epoch: started,
            starts: 1,
            cut: false,
            root,
            emulator,
            config: config.clone(),
            places,
            folder,
        };
        machine.resume()?;
        Ok(machine)
    }

    /// Switches a machine that is off on again: the same disks, variable store and logs, a new process.
    ///
    /// # Errors
    /// [`Kind::Test`] when it is on, [`Kind::Tool`] when QEMU does not start.
    pub fn power_on(&mut self) -> anyhow::Result<()> {
        if self.is_on()? {
            return Err(
                Failure::new(Kind::Test, format!("machine {} is on already", self.config.name)).into()
            );
        }
        // It holds its state, which the next one goes on with.
        self.tpm = None;
        let session = Session::start(&self.root, &self.emulator, &self.config, &self.places)?;
        self.starts += 1;
        let mark = format!("---- switched on again (start {}) ----", self.starts);
        self.console.reattach(session.console, &mark)?;
        for (port, stream) in self.ports.iter().zip(session.ports) {
            port.reattach(stream, &mark)?;
        }
        self.child = session.child;
        self.tpm = session.tpm;
        self.qmp = session.qmp;
        self.cut = false;
        self.started = Instant::now();
        self.resume()?;
        Ok(())
    }

    /// Pulls the plug: QEMU is killed at once. What the guest wrote and did not flush is still in the disks: that is for
    /// [`super::disk::Export::power_cut`] to decide, before [`Machine::power_on`].
    pub fn power_cut(&mut self) {
        self.cut = true;
        self.child.kill();
    }

    /// Whether QEMU runs.
    ///
    /// # Errors
    /// Ctrl-C.
    pub fn is_on(&mut self) -> Result<bool, Failure> {
        Ok(self.wait(Duration::ZERO)?.is_none())
    }

    /// Presses the reset button: memory is lost, disks keep their caches.
    ///
    /// # Errors
    /// QEMU is gone, see [`Machine::check_alive`], or refuses.
    pub fn reset(&mut self) -> Result<(), Failure> {
        let answer = self.qmp.system_reset();
        self.answered(answer)
    }

    /// Stops the guest's processors: for the guest time goes on, for its peers it is gone.
    ///
    /// # Errors
    /// As [`Machine::reset`].
    pub fn pause(&mut self) -> Result<(), Failure> {
        let answer = self.qmp.stop();
        self.answered(answer)
    }

    /// Lets the guest's processors run again.
    ///
    /// # Errors
    /// As [`Machine::reset`].
    pub fn resume(&mut self) -> Result<(), Failure> {
        let answer = self.qmp.cont();
        self.answered(answer)
    }

    /// Sends a non-maskable interrupt, as the button of a server's front panel does. Linux panics from it only with the sysctl
    /// `kernel.unknown_nmi_panic`.
    ///
    /// # Errors
    /// As [`Machine::reset`]; ARM machines have no such button.
    pub fn nmi(&mut self) -> Result<(), Failure> {
        let answer = self.qmp.inject_nmi();
        self.answered(answer)
    }

    /// Writes what is on the screen to `path`, as PNG.
    ///
    /// # Errors
    /// As [`Machine::reset`]; QEMU refuses when [`MachineConfig::screen`] was not set.
    pub fn screenshot(&mut self, path: &Path) -> Result<(), Failure> {
        let path = std::path::absolute(path)
            .map_err(|error| Failure::new(Kind::Input, path.display().to_string()).because(error))?;
        let answer = self.qmp.screendump(&path);
        self.answered(answer)
    }

    /// The configuration it was started with.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// When it was last switched on.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// When it was first switched on: the times in its logs count from then.
    pub fn epoch(&self) -> Instant {
        self.epoch
    }

    /// How often it was switched on.
    pub fn starts(&self) -> u32 {
        self.starts
    }

    /// QEMU's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// QEMU's command line, for pasting.
    pub fn line(&self) -> &str {
        self.child.line()
    }

    /// The folder with overlays, sockets and logs.
    pub fn folder(&self) -> &Path {
        &self.folder.1
    }

    /// Leaves the folder behind for a person to look at; returns it.
    pub fn keep(&mut self) -> PathBuf {
        if let Some(folder) = self.folder.0.take() {
            return folder.keep();
        }
        self.folder.1.clone()
    }

    /// Waits for QEMU's end, at most `limit`; `None` when it still runs.
    ///
    /// # Errors
    /// Ctrl-C.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>, Failure> {
        Ok(self.child.wait(limit)?)
    }

    /// Fails when QEMU does not run, and says why.
    ///
    /// # Errors
    /// [`Kind::Test`] when the machine is off by its own will or by [`Machine::power_cut`]; [`Kind::Tool`] when QEMU failed or
    /// was killed from outside, with the command line and its last words.
    pub fn check_alive(&mut self) -> Result<(), Failure> {
        let Some(status) = self.wait(Duration::ZERO)? else { return Ok(()) };
        let name = &self.config.name;
        Err(self.broken(status).unwrap_or_else(|| {
            let how = if self.cut { "is off: its plug was pulled" } else { "switched itself off" };
            Failure::new(Kind::Test, format!("machine {name} {how}"))
        }))
    }

    /// Waits for the guest to switch itself off; after `limit` pulls the plug. True when the guest went by itself.
    ///
    /// # Errors
    /// Ctrl-C, or QEMU failed meanwhile as [`Machine::check_alive`] tells it.
    pub fn ended(&mut self, limit: Duration) -> Result<bool, Failure> {
        match self.wait(limit)? {
            Some(status) => self.broken(status).map_or(Ok(true), Err),
            None => {
                self.power_cut();
                Ok(false)
            }
        }
    }

    /// What is wrong with QEMU's end, if something is.
    fn broken(&self, status: ExitStatus) -> Option<Failure> {
        if self.cut {
            return None;
        }
        let qemu = format!("QEMU of machine {} (process {})", self.config.name, self.id());
        end_of(&qemu, status, &self.child.stderr(), self.line())
    }

    /// Tells a closed control socket by what became of QEMU.
    fn answered<T>(&mut self, answer: Result<T, qmp::Error>) -> Result<T, Failure> {
        let error = match answer {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if matches!(error, qmp::Error::Closed(_)) {
            self.wait(GONE_LIMIT)?;
            self.check_alive()?;
        }
        let what = format!("machine {}: {error}", self.config.name);
        Err(Failure::new(Kind::Tool, what).hint(self.child.stderr()))
    }
}

/// What is wrong with a QEMU that ended so, if something is. A QEMU that gets SIGTERM ends with code 0, and tells of it.
fn end_of(qemu: &str, status: ExitStatus, stderr: &str, line: &str) -> Option<Failure> {
    use rustix::process::Signal;
    let stderr = stderr.trim_end();
    let failure = |what: String| Failure::new(Kind::Tool, what);
    // For a fault of QEMU itself: what it said, and how to see it again.
    let fault = |what: String| {
        let failure = failure(what).hint(format!("its command line was\n{line}"));
        if stderr.is_empty() { failure } else { failure.hint(format!("it said\n{stderr}")) }
    };
    if let Some(told) = stderr.lines().rev().find_map(|line| line.split_once("terminating on signal ")) {
        return Some(failure(format!("{qemu} was ended from outside by signal {}", told.1)));
    }
    let Some(signal) = status.signal() else {
        return (!status.success()).then(|| fault(format!("{qemu} failed with {status}")));
    };
    let name = signal_hook::low_level::signal_name(signal).unwrap_or("unknown");
    let own = [Signal::ILL, Signal::ABORT, Signal::BUS, Signal::FPE, Signal::SEGV];
    if own.iter().any(|own| own.as_raw() == signal) {
        return Some(fault(format!("{qemu} crashed with signal {signal} ({name})")));
    }
    let failure = failure(format!("{qemu} was killed from outside by signal {signal} ({name})"));
    let memory = signal == Signal::KILL.as_raw();
    Some(if memory { failure.hint("the kernel does so when memory runs out, see dmesg") } else { failure })
}

impl Session {
    fn start(root: &Path, emulator: &Tool, config: &MachineConfig, places: &Places) -> Result<Self, Failure> {
        let tpm = config.tpm.map(|_| tpm::start(root, places, &config.name)).transpose()?;
        let command = emulator.command().args(config.to_args(places));
        let env = config.accel.env().iter();
        let command = env.fold(command, |command, (name, value)| command.env(name, value));
        let mut child = command.spawn().map_err(Failure::from)?;
        let console = connect(&mut child, &places.console(), &config.name)?;
        let mut ports = Vec::new();
        for port in &config.ports {
            ports.push(connect(&mut child, &places.port(port), &config.name)?);
        }
        let stream = connect(&mut child, &places.qmp(), &config.name)?;
        let qmp = Qmp::over(stream, QMP_LIMIT).map_err(|error| {
            Failure::new(Kind::Tool, format!("machine {}: {error}", config.name)).hint(child.stderr())
        })?;
        Ok(Session { child, tpm, qmp, console, ports })
    }
}

/// Makes what QEMU expects in the run folder.
fn prepare(root: &Path, config: &MachineConfig, places: &Places) -> anyhow::Result<()> {
    if let Boot::Firmware(firmware) = &config.boot {
        // Written anew instead of copied: the store's files are read-only, and a copy would be too.
        fs::write(places.vars(), fs::read(&firmware.vars)?)?;
    }
    for (index, text) in config.smbios_strings().iter().enumerate() {
        fs::write(places.smbios(index), text)?;
    }
    for (index, disk) in config.disks.iter().enumerate() {
        let Backing::Overlay { path, format, size } = &disk.backing else { continue };
        let image = fs::canonicalize(path)?;
        let bytes = fs::metadata(&image)?.len();
        if *format == Format::Raw && size.is_some_and(|size| size < bytes) {
            let what = format!(
                "disk {} of {bytes} bytes does not fit in {} bytes",
                image.display(),
                size.unwrap_or(0)
            );
            return Err(Failure::new(Kind::Input, what).hint("give the machine a larger disk").into());
        }
        let mut command = Tool::from_tree(root, "usr/bin/qemu-img")
            .map_err(Failure::from)?
            .command()
            .limit(START_LIMIT)
            .args(["create", "-q", "-f", "qcow2", "-F", format.word(), "-b"])
            .arg(&image)
            .arg(places.overlay(index));
        if let Some(size) = size {
            command = command.arg(size.to_string());
        }
        command.run().map_err(Failure::from)?;
    }
    Ok(())
}

/// Connects to a socket that QEMU is about to open; a QEMU that ended first gives its stderr.
fn connect(child: &mut Child, path: &Path, machine: &str) -> Result<UnixStream, Failure> {
    let end = Instant::now() + START_LIMIT;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > end => {
                let what = format!("QEMU of machine {machine} opened no socket {}: {error}", path.display());
                return Err(Failure::new(Kind::Tool, what).hint(child.stderr()));
            }
            Err(_) => {}
        }
        if let Some(status) = child.wait(Duration::from_millis(10))? {
            child.judge(status)?;
            return Err(Failure::new(Kind::Tool, format!("QEMU of machine {machine} ended before it began")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_qemu_is_told_by_who_brought_it_about() {
        let exit = |code: i32| ExitStatus::from_raw(code << 8);
        let signal = ExitStatus::from_raw;
        let table = [
            (signal(9), "", "q was killed from outside by signal 9 (SIGKILL)", "when memory runs out"),
            (signal(2), "", "q was killed from outside by signal 2 (SIGINT)", ""),
            (signal(6), "g_assert", "q crashed with signal 6 (SIGABRT)", "it said\ng_assert"),
            (exit(1), "no such device\n", "q failed with exit status: 1", "its command line was\nqemu -x"),
            (
                exit(0),
                "warning: x\nqemu: terminating on signal 15 from pid 7 (kill)\n",
                "q was ended from outside by signal 15 from pid 7 (kill)",
                "",
            ),
        ];
        for (status, stderr, what, hint) in table {
            let failure = end_of("q", status, stderr, "qemu -x").unwrap();
            assert_eq!((failure.to_string().as_str(), failure.kind), (what, Kind::Tool));
            assert!(failure.hints().join("\n").contains(hint), "{what}: {:?}", failure.hints());
        }
        assert!(end_of("q", exit(0), "warning: x\n", "qemu -x").is_none());
    }
}
