//! Scenarios: clusters of the baked images, driven step by step, with faults.
//!
//! ```text
//! qemu/NAME.toml ── spec        what the file says, each name resolved     [spec::Scenario]
//! ```

pub mod edge;
pub mod identity;
pub mod problems;
pub mod spec;
