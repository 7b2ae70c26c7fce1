//! Proof: machines that boot an image in QEMU, watched and driven from outside.
//!
//! ```text
//! run::boot ── accel::prove      does this host's KVM run a guest at all?
//!     └── machine::Machine       one QEMU process and its folder; nothing is left after drop
//!           ├── config           what the machine is, and the arguments that say so
//!           ├── firmware         OVMF / AAVMF out of the tool tree
//!           ├── qmp              the control socket
//!           ├── console          serial line: full log with times, waiting, this terminal
//!           └── ready            a unit handed in by firmware that says when boot has ended, and how
//! ```
//!
//! The image file is never written: a machine works on a qcow2 overlay in its run folder. Nothing in the image knows of
//! this module: it enters through SMBIOS credentials alone. Everything is threads and blocking calls.

pub mod accel;
pub mod config;
pub mod console;
pub mod firmware;
pub mod machine;
pub mod qmp;
pub mod ready;
pub mod run;

use std::fmt;

/// The architecture of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// PC: `q35`, OVMF, serial line `ttyS0`.
    X86_64,
    /// ARM: `virt`, AAVMF, serial line `ttyAMA0`.
    Aarch64,
}

impl Arch {
    /// The host's architecture, if kiln knows it.
    pub fn host() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Arch::X86_64),
            "aarch64" => Some(Arch::Aarch64),
            _ => None,
        }
    }

    /// The emulator, as a path in the tool tree.
    pub fn emulator(self) -> &'static str {
        match self {
            Arch::X86_64 => "usr/bin/qemu-system-x86_64",
            Arch::Aarch64 => "usr/bin/qemu-system-aarch64",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        })
    }
}
