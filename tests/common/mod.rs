//! What the test binaries share: running the program ([`run`]), real images of this project ([`images`]), an archive
//! of hand-made packages ([`archive`]) behind a mirror that misbehaves on order ([`mirror`]), Debian's container registry ([`registry`]), and
//! releases of K3s ([`k3s`]).
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses a part of it")]

pub mod archive;
pub mod images;
pub mod k3s;
pub mod mirror;
pub mod registry;
pub mod run;
