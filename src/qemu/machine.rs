//! One running machine: a QEMU process, its run folder, its sockets. Nothing of it is left after drop.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fs_err as fs;

use super::config::{Boot, MachineConfig, Places};
use super::console::Console;
use super::qmp::Qmp;
use crate::error::{Failure, Kind};
use crate::exec::{Child, Tool};

/// How long QEMU may take to open its sockets; it needs some tens of milliseconds on an idle host.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long QEMU may take to answer a command.
const QMP_LIMIT: Duration = Duration::from_secs(30);
/// `sun_path` of unix(7), less the closing zero.
const LONGEST_SOCKET: usize = 107;

/// A machine that was switched on.
#[derive(Debug)]
pub struct Machine {
    // Fields drop in this order: the process first, so that the threads see the end, then the folder.
    child: Child,
    /// The control connection.
    pub qmp: Qmp,
    /// The serial line.
    pub console: Console,
    /// The virtio-serial ports, in the order of the configuration.
    pub ports: Vec<Arc<Console>>,
    started: Instant,
    folder: RunFolder,
}

/// The run folder; removed on drop unless [`Machine::keep`] was called.
#[derive(Debug)]
struct RunFolder(Option<tempfile::TempDir>, PathBuf);

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
        }?;
        let places = Places { folder: folder.path().to_owned(), share: root.join("usr/share") };
        let sockets = config.ports.iter().map(|port| places.port(port)).chain([places.console()]);
        if let Some(long) = sockets.max_by_key(|path| path.as_os_str().len())
            && long.as_os_str().len() > LONGEST_SOCKET
        {
            let what = format!("{} is too long for a socket (limit {LONGEST_SOCKET} bytes)", long.display());
            return Err(Failure::new(Kind::Input, what).hint("set TMPDIR to a shorter path").into());
        }
        let folder = RunFolder(Some(folder), places.folder.clone());
        prepare(&root, config, &places)?;

        let started = Instant::now();
        let mut child = emulator.command().args(config.to_args(&places)).spawn().map_err(Failure::from)?;
        let log = |name: &str| places.folder.join(format!("{name}.log"));
        let stream = connect(&mut child, &places.console(), &config.name)?;
        let console =
            Console::attach(&format!("console of {}", config.name), stream, &log("console"), started)?;
        let mut ports = Vec::new();
        for port in &config.ports {
            let stream = connect(&mut child, &places.port(port), &config.name)?;
            let name = format!("port {port} of {}", config.name);
            ports.push(Arc::new(Console::attach_port(&name, stream, &log(port), started)?));
        }
        let stream = connect(&mut child, &places.qmp(), &config.name)?;
        let answer = Qmp::over(stream, QMP_LIMIT).and_then(|mut qmp| qmp.cont().map(|()| qmp));
        let qmp = answer.map_err(|error| {
            Failure::new(Kind::Tool, format!("machine {}: {error}", config.name)).hint(child.stderr())
        })?;
        Ok(Machine { child, qmp, console, ports, started, folder })
    }

    /// When it was switched on.
    pub fn started(&self) -> Instant {
        self.started
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

    /// Fails with QEMU's last words if it has ended other than by its own will.
    ///
    /// # Errors
    /// [`Kind::Tool`] with the command line and stderr.
    pub fn check_alive(&mut self) -> Result<(), Failure> {
        match self.wait(Duration::ZERO)? {
            None => Ok(()),
            Some(status) => {
                self.child.judge(status)?;
                Err(Failure::new(Kind::Test, "the machine switched itself off"))
            }
        }
    }

    /// Waits for the guest to switch itself off; after `limit` pulls the plug. True when the guest went by itself.
    ///
    /// # Errors
    /// Ctrl-C, or QEMU crashed meanwhile.
    pub fn ended(&mut self, limit: Duration) -> Result<bool, Failure> {
        match self.wait(limit)? {
            Some(status) => {
                self.child.judge(status)?;
                Ok(true)
            }
            None => {
                self.child.kill();
                Ok(false)
            }
        }
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
    if config.disks.is_empty() {
        return Ok(());
    }
    let tool = Tool::from_tree(root, "usr/bin/qemu-img").map_err(Failure::from)?;
    for (index, disk) in config.disks.iter().enumerate() {
        let image = fs::canonicalize(&disk.path)?;
        let bytes = fs::metadata(&image)?.len();
        if disk.format == super::config::Format::Raw && disk.size.is_some_and(|size| size < bytes) {
            let what = format!(
                "disk {} of {bytes} bytes does not fit in {} bytes",
                image.display(),
                disk.size.unwrap_or(0)
            );
            return Err(Failure::new(Kind::Input, what).hint("give the machine a larger disk").into());
        }
        let mut command = tool
            .command()
            .limit(START_LIMIT)
            .args(["create", "-q", "-f", "qcow2", "-F", disk.format.word(), "-b"])
            .arg(&image)
            .arg(places.overlay(index));
        if let Some(size) = disk.size {
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
