//! Boots one image: `kiln run`, and the smoke test after a build.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::accel::{self, Accel, Choice};
use super::config::{Boot, Bus, Disk, Format, Link, MachineConfig, Netboot, Nic, NicModel};
use super::firmware::Firmware;
use super::machine::Machine;
use super::ready;
use super::terminal::{self, End};
use crate::arch::Arch;
use crate::error::{Failure, Kind};

/// When a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When the person or the guest ends it; the console is on this terminal.
    Ended,
    /// When the node is up; fails if a unit failed.
    Ready,
}

/// How to boot an image.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name of the machine.
    pub name: String,
    /// The image's architecture.
    pub arch: Arch,
    /// The image's layout.
    pub format: Format,
    /// Memory in MiB.
    pub memory: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// The size in bytes of the disk the guest sees; the image fills its beginning.
    pub disk: u64,
    /// A fixed accelerator; `None` lets a test guest decide.
    pub accel: Option<Accel>,
    /// TCP ports on 127.0.0.1, and those of the node that they lead to.
    pub forward: Vec<(u16, u16)>,
    /// Credentials beyond kiln's own.
    pub credentials: Vec<(String, Vec<u8>)>,
    /// Words added to the kernel's command line.
    pub cmdline_extra: Option<String>,
    /// When to end.
    pub until: Until,
    /// The time for getting ready under KVM; TCG gets [`TCG_FACTOR`] times as much.
    pub limit: Duration,
    /// Whether a node that got ready is switched off in order, which proves that it can be; else the plug is pulled.
    pub power_off: bool,
    /// Leave the run folder (console log, overlay) when the run fails.
    pub keep: bool,
}

/// How much longer everything may take under TCG.
pub const TCG_FACTOR: u32 = 6;

impl Options {
    /// A node as small as they come: 2 GiB, 2 CPUs, a disk of 8 GiB, 60 s to get ready.
    pub fn new(arch: Arch) -> Self {
        Options {
            name: "node".to_owned(),
            arch,
            format: Format::Raw,
            memory: 2048,
            cpus: 2,
            disk: 8 << 30,
            accel: None,
            forward: Vec::new(),
            credentials: Vec::new(),
            cmdline_extra: None,
            until: Until::Ready,
            limit: Duration::from_secs(60),
            power_off: true,
            keep: false,
        }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The accelerator it ran under.
    pub accel: Choice,
    /// The node's report, if it was waited for.
    pub ready: Option<ready::Ready>,
    /// Whether the node switched itself off in order; `None` if nobody asked.
    pub powered_off: Option<bool>,
    /// The run folder, if it was kept.
    pub folder: Option<PathBuf>,
}

/// Boots `image` with the QEMU of the tool tree at `tools`, telling `say` one line per event. The image is not written.
///
/// # Errors
/// [`Kind::Tool`] when QEMU cannot do it, [`Kind::Test`] when the node does not get ready or a unit failed.
pub fn boot(tools: &Path, image: &Path, options: &Options, say: &dyn Fn(&str)) -> anyhow::Result<Outcome> {
    let accel = match options.accel {
        Some(accel) => Choice { accel, reason: "as asked".to_owned() },
        None => accel::prove(tools, options.arch)?,
    };
    say(&accel.to_string());
    let config = machine_config(tools, image, options, accel.accel)?;
    let mut machine = Machine::start(tools, &config, None)?;
    tracing::debug!(folder = %machine.folder().display(), "run folder");
    let mut outcome = Outcome { accel, ready: None, powered_off: None, folder: None };
    let result = match options.until {
        Until::Ended => interact(&mut machine, say),
        Until::Ready => until_ready(&mut machine, options, &mut outcome, say),
    };
    if let Err(error) = result {
        if !options.keep {
            return Err(error);
        }
        let folder = machine.keep();
        return Err(error.context(format!("run folder kept: {}", folder.display())));
    }
    Ok(outcome)
}

fn machine_config(
    tools: &Path,
    image: &Path,
    options: &Options,
    accel: Accel,
) -> anyhow::Result<MachineConfig> {
    let mut credentials = options.credentials.clone();
    let mut ports = Vec::new();
    if options.until == Until::Ready {
        credentials.extend(ready::credentials());
        ports.push(ready::PORT.to_owned());
    }
    Ok(MachineConfig {
        name: options.name.clone(),
        arch: options.arch,
        memory: options.memory,
        cpus: options.cpus,
        accel,
        boot: Boot::Firmware(Firmware::find(&std::path::absolute(tools)?, options.arch)?),
        disks: vec![Disk::overlay(
            image.to_owned(),
            options.format,
            Some(options.disk),
            Bus::VirtioBlk,
            "root",
        )],
        nics: vec![Nic {
            model: NicModel::Virtio,
            mac: "52:54:00:6b:00:01".to_owned(),
            link: Link::User { forward: options.forward.clone() },
            netboot: Netboot::Off,
        }],
        credentials,
        cmdline_extra: options.cmdline_extra.clone(),
        ports,
        clock: None,
        no_reboot: options.until == Until::Ready,
        uuid: None,
        screen: false,
        shell: false,
        tpm: None,
    })
}

fn until_ready(
    machine: &mut Machine,
    options: &Options,
    outcome: &mut Outcome,
    say: &dyn Fn(&str),
) -> anyhow::Result<()> {
    let factor = if outcome.accel.accel == Accel::Tcg { TCG_FACTOR } else { 1 };
    let limit = options.limit * factor;
    let report = ready::wait(machine, 0, limit)?;
    let stages = &report.stages;
    let seconds = |ms: u64| ms as f64 / 1000.0;
    // What firmware and boot loader say of themselves is missing on most virtual machines; the clock outside is not.
    let inside = stages.kernel + stages.initrd + stages.userspace;
    say(&format!(
        "{}: {} after {:.1} s (before the kernel {:.1}, kernel {:.1}, initrd {:.1}, userspace {:.1})",
        options.name,
        report.state,
        seconds(report.total),
        seconds(report.total.saturating_sub(inside)),
        seconds(stages.kernel),
        seconds(stages.initrd),
        seconds(stages.userspace),
    ));
    let good = report.is_good();
    let verdict = Failure::new(
        Kind::Test,
        format!("node is {}: failed units: {}", report.state, report.failed.join(", ")),
    )
    .hint(report.log.join("\n"));
    outcome.ready = Some(report);
    if !good {
        return Err(verdict.into());
    }
    if options.power_off {
        ready::power_off(machine, 0)?;
        let by_itself = machine.ended(limit)?;
        outcome.powered_off = Some(by_itself);
        if !by_itself {
            let what =
                format!("the node did not switch off within {} s of the power button", limit.as_secs());
            return Err(Failure::new(Kind::Test, what).hint(machine.console.last_lines(20)).into());
        }
    }
    Ok(())
}

/// Joins this terminal and the console until the guest or the person ends it.
fn interact(machine: &mut Machine, say: &dyn Fn(&str)) -> anyhow::Result<()> {
    say("console on this terminal; Ctrl-A X ends the machine, Ctrl-A Ctrl-A sends Ctrl-A");
    let console = Arc::clone(&machine.console);
    let mut status = None;
    let end = terminal::join(&console, &mut || {
        status = machine.wait(Duration::ZERO)?;
        Ok(status.is_some())
    })?;
    match status {
        Some(status) if end == End::Gone && !status.success() => Err(machine
            .check_alive()
            .err()
            .map_or_else(|| anyhow::anyhow!("QEMU ended with {status}"), Into::into)),
        _ => Ok(()),
    }
}
