//! Scenarios: what a cluster in QEMU is made of and what happens to it.

pub mod edge;
pub mod identity;
