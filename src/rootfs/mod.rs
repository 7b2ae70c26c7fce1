//! rootfs

pub mod depmod;
pub mod elf;
pub mod ldcache;
pub mod step;
