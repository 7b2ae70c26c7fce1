//! UEFI firmware out of the tool tree: Debian's `ovmf` and `qemu-efi-aarch64` packages.
//!
//! Code is mapped read-only; the variable store is copied into the run folder, so each run starts with an empty one.

use std::path::{Path, PathBuf};

use crate::arch::Arch;
use crate::error::{Failure, Kind};

/// The two flash images of a UEFI machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// The program, read-only.
    pub code: PathBuf,
    /// A fresh variable store, to be copied before use.
    pub vars: PathBuf,
}

impl Firmware {
    /// Finds the firmware without Secure Boot keys for `arch` under `root`.
    ///
    /// # Errors
    /// [`Kind::Tool`] when the package is not in the tree.
    pub fn find(root: &Path, arch: Arch) -> Result<Self, Failure> {
        let (package, code, vars) = match arch {
            Arch::Amd64 => ("ovmf", "OVMF/OVMF_CODE_4M.fd", "OVMF/OVMF_VARS_4M.fd"),
            // AAVMF_CODE.fd is the Secure Boot build; its keys would be in a VARS file that kiln does not use.
            Arch::Arm64 => ("qemu-efi-aarch64", "AAVMF/AAVMF_CODE.no-secboot.fd", "AAVMF/AAVMF_VARS.fd"),
        };
        let share = root.join("usr/share");
        let firmware = Firmware { code: share.join(code), vars: share.join(vars) };
        for path in [&firmware.code, &firmware.vars] {
            if !path.is_file() {
                return Err(Failure::new(Kind::Tool, format!("firmware {} is missing", path.display()))
                    .hint(format!("package {package} must be among the tools in the lock")));
            }
        }
        Ok(firmware)
    }
}
