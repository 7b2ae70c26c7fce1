//! Scenarios: clusters of the baked images, driven step by step, with faults.
//!
//! ```text
//! qemu/NAME.toml ── spec        what the file says, each name resolved            [spec::Scenario]
//!      ├── check                does it fit the project, its images, this machine?
//!      ├── calibrate            how much slower are guests here?                  [calibrate::Calibration]
//!      ├── plan                 what will be done, what it takes, how long        [plan::Plan]
//!      ├── checks               the built-in ones: what nodes are asked, what follows
//!      ├── damage               which byte of an image is flipped
//!      ├── seeded               everything random, from the seed
//!      ├── identity             who a node is, as credentials
//!      └── edge                 what the machine beside the cluster serves, as credentials
//! ```

pub mod calibrate;
pub mod check;
pub mod checks;
pub mod damage;
pub mod edge;
pub mod identity;
pub mod plan;
pub mod problems;
pub mod seeded;
pub mod spec;
