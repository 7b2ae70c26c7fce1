//! rootfs

pub mod elf;
pub mod ldcache;
pub mod step;
