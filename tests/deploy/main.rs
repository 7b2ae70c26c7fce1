//! Images put onto machines: onto loop devices, and over the network on 127.0.0.1 and in network namespaces of their own. Where a part
//! needs root it says that it was skipped.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy spares only the functions marked #[test]"
)]

#[path = "../common/mod.rs"]
mod common;

mod disk;
mod flash;
mod pxe;
mod pxe_lab;
mod refuse;
mod signature;
mod state;
