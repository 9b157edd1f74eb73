//! The delay before a retry: exponential, with jitter and a maximum. Pure except for the jitter.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The longest delay between two attempts, so that the return of a server is noticed soon.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Delays that double from the first one up to ten seconds. Each is shortened by a random part of up to a half, so that
/// many daemons do not retry at the same moment.
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

/// A random number below `end`, or 0 if `end` is 0. Good enough for choices that only have to differ.
pub fn random_below(end: usize) -> usize {
    (random_fraction() * end as f64) as usize % end.max(1)
}

/// A random number from 0 to 1. The standard library creates each hasher with random keys, which is enough for jitter
/// and needs no crate.
fn random_fraction() -> f64 {
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_ten_seconds_at_most() {
        let mut backoff = Backoff::starting_at(Duration::from_millis(100));
        let delays: Vec<_> = (0..12).map(|_| backoff.delay()).collect();
        assert!(delays[0] >= Duration::from_millis(50) && delays[0] <= Duration::from_millis(100));
        assert!(delays.iter().all(|d| *d <= MAX_PAUSE));
        assert!(delays[11] >= MAX_PAUSE / 2);
    }
}
