//! Scenario files: what a cluster is made of and what is done to it.
//!
//! [`model`] has the types that the rest of kiln works with. They come from a file in two moves: serde reads its shape
//! ([`file`]), then every name in it is resolved. What does not fit is told with its line.

pub mod file;
mod load;
mod lower;
pub mod model;
pub mod words;

pub use model::{
    Action, Address, Allow, Bgp, BootWhen, Cable, Check, Conditions, Cut, DamagedPart, Dhcp, Disk, Expect,
    Fault, FaultKind, Invariant, Link, Network, Nic, Node, Nodes, PowerCuts, Run, Scenario, Serves, Step,
    When,
};
pub use words::{Day, Fraction, Mac, Name, Pattern, Rate, Span, Subnet, Text};

#[cfg(test)]
mod tests;
