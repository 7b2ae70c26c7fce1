//! The program as a person meets it: what it says, how it ends, and what it leaves behind when things go wrong.
//!
//! Each test has a home, a store and a project of its own ([`common::run::Env`]); what looks like the network is a mirror on
//! 127.0.0.1 with a hand-made archive. Exit codes: 1 input, 2 usage, 3 lock, 4 fetch, 5 tool, 6 store, 7 test, 130 interrupted.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy spares only the functions marked #[test]"
)]

#[path = "../common/mod.rs"]
mod common;

mod cluster;
mod faults;
mod hostile;
mod k3s;
mod kernel;
mod lock;
mod metadata;
mod mirrors;
mod netboot;
mod results;
mod spec;
mod update_k3s;
mod usage;
