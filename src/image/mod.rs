//! image
pub mod cpio;
pub mod gpt;
mod sparse;
pub mod verity;
pub mod zst;
