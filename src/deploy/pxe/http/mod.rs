//! HTTP/1.1 (RFC 9110, 9112) for firmware, iPXE, initrds and installers: a fixed table of paths, ranges, and limits on everything.
//!
//! | path | |
//! |---|---|
//! | `/ipxe/NAME` | iPXE, for UEFI HTTP Boot |
//! | `/boot/MAC/script.ipxe` | what iPXE does there |
//! | `/boot/MAC/uki.efi`, `linux`, `initrd`, `ucode` | the UKI of the disk image, and its sections for BIOS |
//! | `/v1/node/MAC/plan`, `plan.env` | what the node is to do, as JSON and for a shell |
//! | `/v1/node/MAC/image.raw`, `image.raw.zst` | the disk |
//! | `/v1/node/MAC/root.img`, `verity.img` | two of its partitions |
//! | `/v1/node/MAC/credentials` | a tar archive, once |
//! | `/v1/node/MAC/event` | POST: what happened there |
//! | `/kiln` | this program, for machines of its architecture |

pub mod request;
pub mod route;
pub mod serve;
