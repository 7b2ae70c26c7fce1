//! image
pub mod cpio;
pub mod fat;
pub mod gpt;
mod sparse;
pub mod uki;
pub mod verity;
pub mod zst;
