//! Stage 1, exact: `images/kiln.lock` names every package of every profile and tool by digest.
//!
//! `kiln update` writes it ([`resolve`], the only user of the network besides [`crate::fetch`]); everything else reads it
//! ([`Lock::load`]) and stops if it does not fit the TOML files ([`Lock::check`]). The file is TOML in a stable order and carries
//! the digest of its own text, so a hand that edits it is noticed.

mod changes;
mod check;
mod file;
mod resolve;
pub(crate) mod time;
mod wanted;

pub use changes::{Change, changes};
pub use check::Locked;
pub use file::{Lock, LockedPackage, LockedSet, LockedSuite};
pub use resolve::{Metadata, Scope};
pub use wanted::{SetId, SetKind, Want, wants};
