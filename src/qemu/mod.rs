//! Proof: machines that boot an image in QEMU, watched and driven from outside.
//!
//! ```text
//! run::boot ── accel::prove      does this host's KVM run a guest at all?
//!     └── machine::Machine       one QEMU process and its folder; nothing is left after drop
//!           ├── config           what the machine is, and the arguments that say so
//!           ├── disk             disks that kiln serves itself, for machines whose power is cut
//!           ├── firmware         OVMF / AAVMF out of the tool tree
//!           ├── tpm              a TPM in software beside it
//!           ├── qmp              the control socket
//!           ├── console          serial line: full log with times, waiting, this terminal
//!           ├── ready            a unit handed in by firmware that says when boot has ended, and how
//!           ├── door             a root shell that is handed in likewise: commands, files, waiting
//!           ├── health           rules that find a sick machine by its console
//!           ├── timeline         where the time of a boot goes
//!           └── stuck            what a machine that hangs was doing
//!
//! switch::Switch               an Ethernet segment between machines, with cables that can be cut and captured
//!   └── forward::Forward       a port of this machine that leads to one on the segment
//! ```
//!
//! The image file is never written: a machine works on a qcow2 overlay in its run folder, or on a disk that kiln serves. Nothing in
//! the image knows of this module: it enters through SMBIOS credentials alone. Everything is threads and blocking calls.

pub mod accel;
pub mod config;
pub mod console;
pub mod disk;
pub mod door;
pub mod firmware;
pub mod forward;
pub mod health;
pub mod machine;
pub mod qmp;
pub mod ready;
pub mod run;
pub mod stuck;
pub mod switch;
pub mod terminal;
pub mod timeline;
pub mod tpm;
pub mod usage;

use std::path::Path;

use crate::arch::Arch;
use crate::error::{Failure, Kind};

/// `sun_path` of unix(7), less the closing zero.
const LONGEST_SOCKET: usize = 107;

/// Refuses a path that no socket can have.
pub(crate) fn check_socket(path: &Path) -> Result<(), Failure> {
    if path.as_os_str().len() <= LONGEST_SOCKET {
        return Ok(());
    }
    let what = format!("{} is too long for a socket (limit {LONGEST_SOCKET} bytes)", path.display());
    Err(Failure::new(Kind::Input, what).hint("set TMPDIR to a shorter path"))
}

/// The emulator for guests of `arch`, as a path in the tool tree.
pub(crate) fn emulator(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "usr/bin/qemu-system-x86_64",
        Arch::Arm64 => "usr/bin/qemu-system-aarch64",
    }
}
