//! kiln bakes node images: from TOML files and one lock to a bootable, verified disk image per role of a K3s cluster.

pub mod arch;
pub mod cli;
pub mod config;
pub mod debian;
pub mod digest;
pub mod error;
pub mod exec;
pub mod fetch;
pub mod image;
pub mod kernel;
pub mod lock;
pub mod manifest;
pub mod packages;
pub mod pipeline;
pub mod qemu;
pub mod rootfs;
pub mod spec;
pub mod squeeze;
pub mod store;
pub mod sys;
pub mod tools;
pub mod tree;
pub mod ui;
pub mod unpack;
