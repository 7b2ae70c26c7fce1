//! Images put onto machines: onto loop devices, which need root; without it these tests say so and pass.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy spares only the functions marked #[test]"
)]

#[path = "../common/mod.rs"]
mod common;

mod disk;
mod flash;
mod refuse;
mod signature;
