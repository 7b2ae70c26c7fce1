//! What the nodes of a real cluster are told: from [`crate::spec::cluster`] to systemd credentials.
//!
//! [`credentials()`] is the one function for all ways of giving a node its identity, so that what is flashed is what was tested:
//!
//! ```text
//! cluster.toml ── flash     credentials on the ESP of the disk
//!              ── pxe       credentials released to the node's MAC
//!              └─ test      credentials of the machine's firmware    [scenario]
//! ```
//!
//! Secrets are asked for here and no earlier ([`secret::Keeper`]), and are kept out of whatever is printed ([`secret::Value`]).

mod credentials;
mod judge;
pub mod scenario;
pub mod seal;
pub mod sealed;
pub mod secret;
pub mod token;

pub use self::credentials::{Credential, credentials, plain};
pub use self::judge::credential as judge_credential;
