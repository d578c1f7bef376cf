//! How many blocks one request asks for: enough that waiting for answers does not matter, and no more, because what is on its way is lost when the
//! process is killed. It must not know what is asked for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::record::BLOCK;

/// Blocks of the first requests.
const FIRST: usize = 4;

/// Most blocks of a request: the digest should not be far behind.
const MOST: usize = 4;

/// The time in which bytes come should be this many times the time in which nothing comes.
const BUSY: f64 = 16.0;

/// The length of requests, learned from those that went before.
#[derive(Debug)]
pub(super) struct Pace {
    blocks: AtomicUsize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { blocks: AtomicUsize::new(FIRST) }
    }
}

impl Pace {
    /// Blocks that the next request should ask for.
    pub(super) fn blocks(&self) -> usize {
        self.blocks.load(Ordering::Relaxed)
    }

    /// A request for `bytes` was answered after `waited`, and its bytes came in `came`.
    pub(super) fn learn(&self, waited: Duration, came: Duration, bytes: u64) {
        let rate = bytes as f64 / came.as_secs_f64().max(1e-6);
        let wanted = (BUSY * waited.as_secs_f64() * rate / BLOCK as f64).ceil().clamp(1.0, MOST as f64) as usize;
        // Half of the old value, so that one odd answer does not decide; rounded towards the new one.
        let old = self.blocks();
        let next = if wanted > old { (old + wanted).div_ceil(2) } else { (old + wanted) / 2 };
        self.blocks.store(next, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_long_where_answers_are_slow_and_short_where_they_are_not() {
        let after = |waited, came| {
            let pace = Pace::default();
            (0..8).for_each(|_| pace.learn(Duration::from_micros(waited), Duration::from_micros(came), BLOCK));
            pace.blocks()
        };
        // A tenth of a second away, at 20 MB/s.
        assert_eq!(after(100_000, 50_000), MOST);
        // The same machine, held to 25 MB/s.
        assert_eq!(after(500, 40_000), 1);
        assert_eq!(after(500, 2_000), 4);
    }
}
