//! Stage 6, put: images that were proven go onto machines.
//!
//! ```text
//! out/server.raw[.zst] ─┐
//! cluster.toml ─ identity ─ flash ── a disk of this machine, verified, with a receipt    [flash]
//!                       └── pxe ──── machines that boot by the network                   [pxe]
//!                                      └─ install: flash on the machine itself           [install]
//!                                      └─ diskless: /var on a disk, if that is wanted        [diskless]
//! ```

pub mod diskless;
pub mod flash;
pub mod install;
pub mod pxe;
