//! Writing an image onto a disk, so that it is the right disk and holds the right bytes.
//!
//! ```text
//! sysfs, proc   what disks there are   [device]
//!      |        what is on them        [signature]
//!      |        which one is meant     [claim]     by contract or by name; refused if anything on it is in use or of value
//! image ────►   written, read back     [write](fn@write), past the page cache, first MiB last
//!      |
//! journal, receipt                     [journal], [receipt]
//! ```
//!
//! [`job::install`] is the way of whoever has chosen a disk and has an image as a stream; [`job::flash`] that of the command line. [`state`]
//! puts no image on a disk that was chosen so, only the `/var` of a node that runs diskless.

pub mod claim;
pub mod device;
mod esp;
#[cfg(test)]
mod fake;
pub mod job;
pub mod journal;
mod layout;
mod medium;
mod probe;
pub mod proof;
pub mod receipt;
pub mod signature;
mod source;
pub mod state;
mod write;

pub use self::medium::{BlockDevice, Medium};
pub use self::source::{Facts, Source};
pub use self::write::{Options, Phase, Watch, Written, write};
