//! Stage 4, image: pure writers of the formats on a disk. A tree or bytes come in, bytes go out.

pub mod cpio;
pub mod disk;
pub mod erofs;
pub mod fat;
pub mod gpt;
pub mod qcow2;
mod sparse;
pub mod uki;
pub mod verity;
pub mod zst;

pub(crate) use sparse::is_zero;
