//! image
pub mod cpio;
pub mod disk;
pub mod fat;
pub mod gpt;
pub mod qcow2;
mod sparse;
pub mod uki;
pub mod verity;
pub mod zst;
