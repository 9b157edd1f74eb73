//! Measures for how long the Kafka client has delivered nothing of a partition that has more to read. A slow database
//! or a long queue is no stall: the clock starts only after the loop has read everything that was in our own buffers at
//! the first check.

use std::time::{Duration, Instant};

/// Deliveries of the client for all partitions, counted since the start.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeliveryCount {
    /// Deliveries that the loop has read to their end.
    pub(super) read: u64,
    /// Those, and the deliveries in our buffers.
    pub(super) delivered: u64,
}

#[derive(Debug, Default)]
pub(super) struct StallDetector {
    /// The number of deliveries at the first check: the clock starts when these are read.
    delivered_at_first: Option<u64>,
    since: Option<Instant>,
}

impl StallDetector {
    /// How long the stall has lasted. `is_waiting`: the client must still deliver records of the partition.
    pub(super) fn stalled_for(&mut self, is_waiting: bool, count: DeliveryCount, now: Instant) -> Duration {
        if !is_waiting {
            *self = Self::default();
        } else if count.read >= *self.delivered_at_first.get_or_insert(count.delivered) {
            return now.saturating_duration_since(*self.since.get_or_insert(now));
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn deliveries_in_our_own_buffers_are_no_stall_of_the_client() {
        let mut detector = StallDetector::default();
        let count = |read, delivered| DeliveryCount { read, delivered };
        let begin = Instant::now();
        assert_eq!(detector.stalled_for(true, count(5, 7), begin), Duration::ZERO, "two chunks may hold its records");
        assert_eq!(detector.stalled_for(true, count(6, 9), begin + MINUTE), Duration::ZERO);
        assert_eq!(detector.stalled_for(true, count(7, 7), begin + MINUTE * 2), Duration::ZERO, "the clock starts now");
        assert_eq!(detector.stalled_for(true, count(7, 7), begin + MINUTE * 3), MINUTE);
        assert_eq!(detector.stalled_for(false, count(7, 7), begin + MINUTE * 3), Duration::ZERO);
        assert_eq!(
            detector.stalled_for(true, count(7, 7), begin + MINUTE * 4),
            Duration::ZERO,
            "the clock starts again"
        );
    }

    #[test]
    fn a_stalled_partition_beside_one_with_a_backlog_is_noticed() {
        let mut detector = StallDetector::default();
        let begin = Instant::now();
        detector.stalled_for(true, DeliveryCount { read: 0, delivered: 1000 }, begin);
        detector.stalled_for(true, DeliveryCount { read: 1000, delivered: 2000 }, begin);
        let stalled = detector.stalled_for(true, DeliveryCount { read: 1500, delivered: 2500 }, begin + MINUTE);
        assert_eq!(stalled, MINUTE, "none of the thousand deliveries was of this partition");
    }
}
