//! What the test binaries share: running the program ([`run`]), real images of this project ([`images`]), an archive
//! of hand-made packages ([`archive`]) behind a mirror that misbehaves on order ([`mirror`]), Debian's container registry ([`registry`]),
//! releases of K3s ([`k3s`]), and programs of this machine or of the lock ([`tools`]).
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses a part of it")]

pub mod archive;
pub mod images;
pub mod k3s;
pub mod mirror;
pub mod registry;
pub mod run;
pub mod tools;
