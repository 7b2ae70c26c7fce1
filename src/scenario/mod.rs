//! Scenarios: clusters of the baked images, driven step by step, with faults and a report.
//!
//! ```text
//! qemu/NAME.toml ── spec        what the file says, each name resolved     [spec::Scenario]
//!                ── check       what can be wrong before anything starts
//!                ── plan        what it needs, and how long it takes here  [calibrate::Calibration]
//!                └─ engine      machines, disks and switches, moved by the steps
//!                    │  edge, identity   what machines are told by firmware
//!                    │  checks, damage, seeded   what is asked, broken and random
//!                    └─ result  what came of it, as plain data             [result::Run]
//!                        └─ report   terminal, JSON, JUnit, HTML
//! ```
//!
//! [`prove::all`] is the way through all of it.

pub mod calibrate;
pub mod check;
pub mod checks;
pub mod damage;
pub mod edge;
pub mod engine;
pub mod identity;
pub mod keep;
pub mod plan;
pub mod problems;
pub mod prove;
pub mod report;
pub mod result;
pub mod seeded;
pub mod spec;
