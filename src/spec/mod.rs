//! Stage 0, what is wanted: the TOML files of a project, read, checked and merged.
//!
//! ```text
//! images/debian.toml     where packages come from: suites, signing keys              [Archive]
//! images/tools.toml      sets of packages that kiln runs or takes EFI programs from  [Tools]
//! images/*.toml          layers: packages, files, units, kernel, disk                [Layer]
//! profiles/*.toml        a role: a layer that `extends` others                       [Profile]
//! images/kernel/sources/ what a kernel built from source is asked to be             [KernelSource]
//! images/containers/     container images that nodes bring along                   [ContainerSpec]
//! qemu/machines/*.toml   a machine of scenarios, as a profile but without a role     [Profile]
//! cluster.toml           the real cluster that the images are for                    [cluster::Cluster]
//! ```
//!
//! Merging: the layers named in `extends` are merged in the order they stand there, each after its own `extends`; the file
//! itself comes last. Of two scalars the later wins; tables are merged key by key; lists are joined, each item once. A
//! package in `packages.remove` is taken from what earlier layers install.
//!
//! A machine of scenarios is never a product: `all` does not mean it. It is a machine that no profile describes (`edge`), or,
//! extending `profiles/NAME`, a variant of a profile with another kernel ([`Project::variant`]).

mod cilium;
pub mod cluster;
mod container;
mod diagnose;
mod host;
mod k3s;
mod kernel;
mod layer;
mod project;
pub mod registries;
pub mod ssh;
pub mod yaml;

pub use cilium::{Cilium, CiliumBgp, Encryption};
pub use container::ContainerSpec;
pub use diagnose::parse;
pub(crate) use diagnose::{check_schema, nearest, place};
pub use host::Host;
pub use k3s::{Cni, K3s, Release, ReleaseFile, WantedWay};
pub use kernel::{Base, KernelSource};
pub use layer::{
    Checks, Disk, Drop, FileSpec, Files, Firmware, Flavour, Initrd, KernelSpec, Layer, ModuleFilter,
    Packages, Role, Size,
};
pub use project::{Archive, Asked, Key, Profile, Project, Suite, ToolSet, Tools};

/// The folders of a project; `qemu` may be missing.
pub const FOLDERS: [&str; 3] = ["images", "profiles", "qemu"];

/// The version of the TOML files' shape that this kiln reads.
pub const SCHEMA: u32 = 1;
