//! rootfs

pub mod accounts;
pub mod alternatives;
pub mod certs;
pub mod check;
pub mod depmod;
pub mod elf;
pub mod ldcache;
pub mod pam;
pub mod step;
pub mod sysusers;
pub mod units;
