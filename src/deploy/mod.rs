//! Stage 6, put: images that were proven go onto machines.
//!
//! ```text
//! out/server.raw[.zst] ─┐
//! cluster.toml ─ identity ─ flash ── a disk of this machine, verified, with a receipt    [flash]
//! ```

pub mod flash;
