//! A limit on bytes per second that all connections share. It must not sleep: it says how long.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What may pass at once after a silence.
const BURST: Duration = Duration::from_millis(200);

/// A limit on bytes per second.
#[derive(Debug)]
pub(super) struct Throttle {
    bytes_per_second: u64,
    /// When all bytes so far will have been allowed.
    paid: Mutex<Instant>,
}

impl Throttle {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid: Mutex::new(Instant::now()) }
    }

    /// Counts bytes, and says how long to wait before the next ones.
    pub(super) fn take(&self, bytes: u64) -> Duration {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let now = Instant::now();
        let mut paid = self.paid.lock().expect("nothing panics while it holds the lock");
        *paid = (*paid).max(now.checked_sub(BURST).unwrap_or(now)) + cost;
        paid.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cost_time_whoever_takes_them() {
        let throttle = Throttle::new(1000);
        let waits: Vec<Duration> = (0..4).map(|_| throttle.take(500)).collect();
        // Four times half a second, less the burst and what the test itself took.
        assert!(waits[3] <= Duration::from_secs(2) && waits[3] >= Duration::from_millis(1500), "{waits:?}");
        assert!(waits.windows(2).all(|pair| pair[0] < pair[1]), "{waits:?}");
    }
}
