//! Stage 3, compose.

pub mod accounts;
pub mod alternatives;
pub mod certs;
pub mod check;
pub mod depmod;
pub mod elf;
pub mod files;
pub mod initrd;
pub mod ldcache;
pub mod merge;
pub mod pam;
pub mod state;
pub mod step;
pub mod sysusers;
pub mod units;
