//! How long to wait before trying again: exponential with jitter, bounded. Pure but for the jitter.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Attempts are never further apart than this, so that a server's return is noticed soon.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Delays that double from the first to ten seconds, each cut by up to a half at random so that
/// many daemons do not come back at once.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    pub fn starting_at(first: Duration) -> Self {
        Self { next: first }
    }

    /// The delay before the next attempt.
    pub fn delay(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(MAX_PAUSE);
        full / 2 + full.mul_f64(random_fraction() / 2.0)
    }
}

/// A number below this one, for choices that need no more than to differ; 0 of nothing.
pub fn random_below(end: usize) -> usize {
    (random_fraction() * end as f64) as usize % end.max(1)
}

/// The standard library's hasher keys are random per value: enough for jitter, no crate needed.
fn random_fraction() -> f64 {
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_ten_seconds_and_no_further() {
        let mut backoff = Backoff::starting_at(Duration::from_millis(100));
        let delays: Vec<_> = (0..12).map(|_| backoff.delay()).collect();
        assert!(delays[0] >= Duration::from_millis(50) && delays[0] <= Duration::from_millis(100));
        assert!(delays.iter().all(|d| *d <= MAX_PAUSE));
        assert!(delays[11] >= MAX_PAUSE / 2);
    }
}
