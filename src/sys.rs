//! The only place for `unsafe`, and for system calls that have no safe wrapper in std.
