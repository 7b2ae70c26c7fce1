//! The key under which a node keeps its secrets on its disk.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A key that only the node has, by the word of systemd-creds(1) for it (`--with-key=`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Seal {
    /// No such key: whoever holds the disk can read them.
    #[default]
    #[serde(rename = "null")]
    Null,
    /// A key of its TPM 2.0: the disk alone is worth nothing.
    #[serde(rename = "tpm2")]
    Tpm2,
    /// A key in a file on its `/var`: a copy of the EFI system partition alone is worth nothing.
    #[serde(rename = "host")]
    Host,
    /// Both.
    #[serde(rename = "host+tpm2")]
    HostTpm2,
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Seal::Null => "null",
            Seal::Tpm2 => "tpm2",
            Seal::Host => "host",
            Seal::HostTpm2 => "host+tpm2",
        })
    }
}
