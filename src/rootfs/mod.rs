//! Stage 3, compose.

pub mod elf;
pub mod step;
