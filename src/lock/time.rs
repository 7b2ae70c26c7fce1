//! The clock of this machine; moments as text are in [`crate::utc`].

pub(crate) use crate::utc::{compact, iso, parse_iso};

/// Now, seconds since 1970 by the clock of this machine: signatures expire by it. The one place that asks; nothing of it reaches an
/// image.
#[expect(clippy::disallowed_methods, reason = "the one door to the clock")]
pub(crate) fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX)
}

/// Now, since 1970, as exactly as this machine knows: for the times in logs and captures of runs.
#[expect(clippy::disallowed_methods, reason = "the one door to the clock")]
pub(crate) fn precise() -> std::time::Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
