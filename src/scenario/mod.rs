//! Scenarios: clusters of the baked images, driven step by step, with faults and a report.
//!
//! ```text
//! qemu/NAME.toml ── spec        what the file says, each name resolved     [spec::Scenario]
//!                     └ engine  machines, disks and switches, moved by the steps
//!                         └ result    what came of it, as plain data       [result::Run]
//!                             └ report   terminal, JSON, JUnit, HTML
//! ```

pub mod calibrate;
pub mod check;
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
