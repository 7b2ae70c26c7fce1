//! Moments as text, UTC only. Moments are seconds since 1970.

/// `2026-09-12T07:55:41Z`. Sorts as text as it does in time.
pub(crate) fn iso(seconds: i64) -> String {
    let (y, m, d, rest) = civil(seconds);
    format!("{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// `20260912T075541Z`, as the snapshot archive spells it.
pub(crate) fn compact(seconds: i64) -> String {
    iso(seconds).replace(['-', ':'], "")
}

/// Seconds since 1970 of what [`iso`] wrote; `None` for any other text.
pub(crate) fn parse_iso(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (y, m, d) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let (y, shifted) = if m > 2 { (y, m - 3) } else { (y - 1, m + 9) };
    let day_of_era = y.rem_euclid(400) * 365 + y.rem_euclid(400) / 4 - y.rem_euclid(400) / 100
        + (153 * shifted + 2) / 5
        + d
        - 1;
    let seconds =
        (y.div_euclid(400) * 146_097 + day_of_era - 719_468) * 86_400 + hour * 3600 + minute * 60 + second;
    (iso(seconds) == text).then_some(seconds)
}

/// Year, month, day and seconds of the day; Howard Hinnant's days-to-civil algorithm (howardhinnant.github.io/date_algorithms.html).
fn civil(seconds: i64) -> (i64, i64, i64, i64) {
    let days = seconds.div_euclid(86_400) + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day, seconds.rem_euclid(86_400))
}

/// For people: `2026-12-01 02:03:24 UTC`.
pub(crate) fn human(seconds: i64) -> String {
    iso(seconds).replace('T', " ").replace('Z', " UTC")
}

/// How far `seconds` is from `now`, for people: `3 days ago`, `in 2 hours`.
pub(crate) fn distance(seconds: i64, now: i64) -> String {
    let far = now.saturating_sub(seconds);
    if far == 0 {
        return "now".to_owned();
    }
    let size = far.saturating_abs();
    let (count, unit) = match size {
        0..60 => (size, "second"),
        60..7200 => (size / 60, "minute"),
        7200..172_800 => (size / 3600, "hour"),
        _ => (size / 86_400, "day"),
    };
    let text = format!("{count} {unit}{}", if count == 1 { "" } else { "s" });
    if far > 0 { format!("{text} ago") } else { format!("in {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_spelled_right_across_leap_days() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_789_199_741, "2026-09-12T07:55:41Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!(iso(seconds), text);
            assert_eq!(parse_iso(text), Some(seconds));
        }
        for wrong in ["", "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "yesterday"] {
            assert_eq!(parse_iso(wrong), None, "{wrong}");
        }
        assert_eq!(compact(1_789_199_741), "20260912T075541Z");
    }

    #[test]
    fn moments_for_people_are_dates_with_the_time_between() {
        assert_eq!(human(1_796_090_604), "2026-12-01 02:03:24 UTC");
        for (seconds, text) in [
            (0, "now"),
            (-1, "1 second ago"),
            (-59, "59 seconds ago"),
            (-61, "1 minute ago"),
            (-7_200, "2 hours ago"),
            (-90_000, "25 hours ago"),
            (-259_200, "3 days ago"),
            (3 * 86_400, "in 3 days"),
            (5_400, "in 90 minutes"),
        ] {
            assert_eq!(distance(1_000_000 + seconds, 1_000_000), text);
        }
        assert_eq!(distance(i64::MIN, i64::MAX), format!("{} days ago", i64::MAX / 86_400));
    }
}
