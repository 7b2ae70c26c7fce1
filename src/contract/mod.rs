//! The kernel contract: what the features of a node need of a kernel, and whether a kernel holds it.
//!
//! ```text
//! images/kernel/*.toml                 feature -> symbol -> y, m, y|m or n, with source and reason     [data]
//! `kernel.features` of a profile       chooses features: `cilium.wireguard`
//! /boot/config-RELEASE of the package  what the kernel was built with                                  [config]
//! the modules that the filter keeps    what the image can load
//!       |
//! one row per feature and symbol       ok, missing, dropped, unknown, gone                             [check], [show]
//! a script for a node                  the same, seen on the running kernel                            [probe]
//! ```
//!
//! All but [`stage`] and [`named`] is pure: texts and lists come in, tables and texts go out. A symbol that stands in a .config neither as set nor as
//! `is not set` is hidden by an option it depends on, or the kernel's version does not know it; a .config cannot tell which. So the
//! contracts carry the versions: `known-since` and `absent-since` of a symbol, each checked against the kernel's own Kconfig files
//! when it was written down.

pub mod check;
pub mod config;
pub mod data;
pub mod diff;
pub mod fragment;
pub mod kconfig;
pub mod named;
pub mod probe;
pub mod show;
pub mod stage;

pub use check::{Dropped, ModuleSet, Offer, Row, Table, Verdict, check};
pub use config::{Config, Value, Version};
pub use data::{Component, Contracts, Demand, Feature, Probe, Want};
pub use probe::{Finding, probe_script};

#[cfg(test)]
mod tests;
