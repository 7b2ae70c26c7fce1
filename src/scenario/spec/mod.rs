//! Scenario files: what a cluster is made of and what is done to it.
//!
//! ```toml
//! schema = 1
//! description = "two agents share a folder"
//! limit = "5min"                  # of the whole run
//!
//! [network.lan]                   # a switch
//! subnet = "10.77.0.0/24"
//!
//! [node.agent-1]                  # a machine that boots the image of a profile
//! profile = "agent"
//! nics = [{ network = "lan", address = "10.77.0.21" }]
//!
//! [node.edge]                     # the machine beside the cluster, which serves others
//! profile = "edge"
//! nics = [{ network = "lan", address = "10.77.0.1" }]
//! serves = { dns = true, nfs = ["/srv/nfs/a"] }
//!
//! [[step]]                        # one action; those that wait end as soon as they can
//! name = "the agent sees what edge exports"
//! on = ["agent-1"]                # or "all" (who has a product profile and is up), which is the default, or "every" (edge too)
//! run = "showmount -e edge.cluster.test"
//! matches = "/srv/nfs/a"
//!
//! [[fault]]                       # beside the steps
//! at = "30s"
//! node = "agent-1"
//! kind = "power_cut"
//! ```
//!
//! Every key is described in [`mod@file`], which `kiln dev schema scenario` prints as a JSON schema for editors. The shipped files in
//! qemu/ are the longer examples.
//!
//! [`model`] has the types that the rest of kiln works with. They come from a file in two moves: serde reads its shape
//! ([`file::File`]), then every name in it is resolved, and what can be known to be wrong is told, all of it at once and
//! each thing with its line. A step that speaks with a node nobody has waited for gets a step `ready` in front of it.
//!
//! A scenario ends with its last step. A fault whose time has not come then does not happen.

pub mod file;
mod load;
mod lower;
pub mod model;
pub mod text;
pub mod words;

pub use model::{
    Action, Address, Allow, Bgp, BootWhen, Cable, Check, Conditions, Cut, DamagedPart, Dhcp, Disk, Expect,
    Fault, FaultKind, Invariant, Link, Network, Nic, Node, Nodes, PowerCuts, Run, Scenario, Serves, Step,
    When,
};
pub use text::{Saved, Text};
pub use words::{Day, Fraction, Mac, Name, Pattern, Rate, Span, Subnet};

#[cfg(test)]
mod tests;
