//! TFTP, for firmware that knows nothing better: a table of names, read only (RFC 1350).

pub mod packet;
pub mod serve;
