//! Where the time of a boot goes: stages, units, and the chain of units that it waited for.
//!
//! No clock covers all of a boot. What comes before the kernel is seen from outside, by the times of console lines ([`Marks`]):
//! firmware under QEMU says nothing of its own time (no FPDT, and no `LoaderTimeInitUSec` without a calibrated counter). From then on
//! the guest's clock counts, which starts with the kernel: printk's times of the lines, and systemd's of the units, which the guest
//! tells on asking ([`super::ready::timeline`]). The two meet in the moment the kernel's clock was 0: no line can be seen before it was
//! printed, so the earliest of (seen − printed) is it.

use std::time::Duration;

use serde::Serialize;

/// A part of a boot; times in milliseconds since power-on or reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// `firmware`, `loader`, `kernel`, `initrd` or `userspace`.
    pub name: &'static str,
    /// When it began.
    pub start: u64,
    /// When it ended.
    pub end: u64,
}

/// A unit; times in milliseconds since power-on or reset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// When it began to start.
    pub start: u64,
    /// When it was active; `None` if it never was.
    pub end: Option<u64>,
}

/// A boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// The stages that are known, in order.
    pub stages: Vec<Stage>,
    /// The units that were started before multi-user was reached, by start.
    pub units: Vec<Unit>,
    /// The last unit first: each waited for the next one, which ended last of those that are ordered before it.
    pub chain: Vec<Unit>,
}

/// The moments of a boot that its console tells, since power-on of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// Power-on or reset.
    pub begin: Duration,
    /// The firmware started the boot loader.
    pub loader: Option<Duration>,
    /// The kernel's clock was 0.
    pub kernel: Option<Duration>,
    /// By the kernel's clock: it started the first process.
    pub initrd: Option<Duration>,
}
