//! Recipes in real sandboxes: those that misbehave get nowhere, those that behave give the same bytes.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy spares only the functions marked #[test]"
)]

#[path = "../common/mod.rs"]
mod common;

mod escape;
mod lab;
mod life;
mod limits;
mod modules;
mod outputs;
mod update;
mod ways;
