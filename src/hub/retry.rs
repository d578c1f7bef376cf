//! When a request is tried again, and how long to wait before. It must not know what is requested.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::error::Interrupted;
use crate::progress::Control;

/// The first wait; it doubles with every further failure.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// The longest wait that is not the server's own wish.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The longest wait that a server is granted.
pub(super) const LONGEST_GRANTED: Duration = Duration::from_secs(600);

/// Between two looks at the stop flag.
const LOOK: Duration = Duration::from_millis(50);

/// How long to wait after the failure number `failures` (from 1), if the server does not say: exponential, and up to half shorter by
/// chance, so that a thousand clients that failed together do not come back together.
pub(super) fn wait_after(failures: u32) -> Duration {
    let longest = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_WAIT);
    // The hasher's seed is the standard library's source of chance.
    let chance = RandomState::new().hash_one(failures) % 1024;
    longest.mul_f64(1.0 - chance as f64 / 2048.0)
}

/// Sleeps, unless the caller asks to stop meanwhile.
pub(super) fn pause(time: Duration, control: &Control<'_>) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        if control.stop_requested() {
            return Err(Interrupted.into());
        }
        match end.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return Ok(()),
            left => std::thread::sleep(left.min(LOOK)),
        }
    }
}

/// What a server wants to be waited for: `Retry-After` in seconds or as a date (RFC 9110, 10.2.3), which is taken against the answer's own
/// `Date`; or the `t` of the hub's `RateLimit: "api";r=0;t=55`.
pub(super) fn granted(retry_after: Option<&str>, date: Option<&str>, rate_limit: Option<&str>) -> Option<Duration> {
    let seconds = |text: &str| text.trim().parse().ok().map(Duration::from_secs);
    let until = |text: &str| Some(Duration::from_secs(http_date(text)?.saturating_sub(http_date(date?)?)));
    let header = retry_after.and_then(|text| seconds(text).or_else(|| until(text)));
    header.or_else(|| rate_limit?.split(';').find_map(|part| seconds(part.trim().strip_prefix("t=")?)))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` in seconds since 1970.
fn http_date(text: &str) -> Option<u64> {
    let parts: Vec<&str> = text.split_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = parts[..] else { return None };
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|name| *name == month)? as u64;
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    // Years that begin in March: the leap day is then the last of its year, and months have a regular pattern.
    let (year, month) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    let since_1970 = days.checked_sub(719_469)?;
    let clock: Vec<u64> = time.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = clock[..] else { return None };
    Some(since_1970 * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_vary() {
        for (failures, longest) in [(1, 200), (2, 400), (5, 3200), (9, 30_000), (u32::MAX, 30_000)] {
            let waits: Vec<u128> = (0..50).map(|_| wait_after(failures).as_millis()).collect();
            assert!(waits.iter().all(|wait| (longest / 2 - 1..=longest).contains(wait)), "{failures}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]), "{failures}");
        }
    }

    #[test]
    fn servers_say_how_long_in_three_ways() {
        // From `date -u -d 'Sun, 06 Nov 1994 08:49:37 GMT' +%s`, and of a leap day.
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:01 GMT"), Some(1));
        assert_eq!(http_date("yesterday"), None);
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(granted(Some("7"), None, Some("\"api\";r=0;t=55")), seconds(7));
        assert_eq!(granted(None, None, Some("\"api\";r=0;t=55")), seconds(55));
        let dates = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:30 GMT");
        assert_eq!(granted(Some(dates.0), Some(dates.1), None), seconds(7));
        assert_eq!(granted(Some("soon"), None, None), None);
    }
}
