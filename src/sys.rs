//! The only place for `unsafe`, and for system calls that have no safe wrapper in std.
pub fn check_interrupt() -> Result<(), crate::error::Failure> {
    Ok(())
}
