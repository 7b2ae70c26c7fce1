//! kiln bakes node images: from TOML files and one lock to a bootable, verified disk image per role of a K3s cluster.
//!
//! # The way of the data
//!
//! Modules stand in the order of a build, and data never goes back:
//!
//! ```text
//! images/*.toml profiles/*.toml   wanted      [spec]
//!       | kiln update (network)
//! images/kiln.lock                exact       [lock]
//!       | (network, by digest)
//! objects in the store            verified    [fetch], [store]
//!       |                                     no network from here on
//! one tree per package            trees       [debian], [tree], [unpack], [packages]
//!       |
//! one root tree                   composed    [kernel], [contract], [rootfs]
//!       |
//! erofs, verity, UKI, ESP, GPT    bytes       [squeeze], [image], [pipeline], [manifest]
//!       |
//! a machine                       proven      [tools], [qemu]
//!
//! cluster.toml                    identity    [cluster]: what each real node is told, and the scenario of that very cluster
//!       |
//! a disk of a machine             put there   [deploy]
//!
//! images/recipes/*                built       [recipe], [sandbox]: what no package has, from source
//! images/kernel/sources/*         a package   [linux]: a kernel of its own
//! images/containers/*             an archive  [oci]: container images, so that nodes need no registry
//! ```
//!
//! [`pipeline::build`] is the recipe of a build on one page: read it first.
//!
//! # Promises, and what keeps them
//!
//! - *Same lock, same bytes.* No stage asks the clock, the locale, the user or the order of a directory: trees are sorted maps,
//!   owners and modes are data, every file has the lock's time. Threads only share out work whose order is fixed.
//! - *No program in a build.* Every format is written by kiln itself ([`image`]); no maintainer script and no tool is run. That is
//!   what makes a build rootless, quick and the same for a foreign architecture. Compilers run for recipes alone, each in a
//!   [`sandbox`] that holds nothing but packages of the lock.
//! - *Nothing unverified.* Metadata counts by an OpenPGP signature of a pinned key, everything below by digest. Objects are
//!   hashed when they are fetched and again when they are unpacked.
//! - *One door each.* The network is used by [`lock`] and [`fetch`] (and by Go, for modules that a recipe names by digest, or that
//!   `kiln update k3s` moves), and served in [`deploy::pxe`], whose sockets are opened in its `net`; children are made by [`exec`], `unsafe` is in [`sys`], and printing in [`ui`]. A test reads the sources and
//!   sees to it.
//!
//! # Format modules
//!
//! [`debian`], [`tree`] and [`image`] know nothing of TOML, the store or the command line: bytes come in, values or errors go out.

pub mod arch;
pub mod bench;
pub mod built;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod contract;
pub mod debian;
pub mod deploy;
pub mod diff;
pub mod digest;
pub mod doctor;
pub mod error;
pub mod exec;
pub mod fetch;
pub mod formats;
pub mod graph;
pub mod image;
pub mod init;
pub mod inventory;
pub mod k3s;
pub mod kernel;
pub mod kubeconfig;
pub mod linux;
pub mod lock;
pub mod manifest;
pub mod oci;
pub mod packages;
pub mod pipeline;
pub mod qemu;
pub mod rebuild;
pub mod recipe;
pub mod rootfs;
pub mod sandbox;
pub mod sbom;
pub mod scenario;
pub mod spec;
pub mod squeeze;
pub mod store;
pub mod sys;
pub mod tools;
pub mod tree;
pub mod ui;
pub mod unpack;
pub mod why;
