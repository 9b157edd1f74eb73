//! How long a client says nothing of a partition that has more to be read. A slow database or a long queue
//! is no silence: the clock runs only once everything was read that lay in our own buffers when it began.

use std::time::{Duration, Instant};

/// What the client handed over, of whatever partition, counted since the start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    /// What was read to its end.
    pub(super) read: u64,
    /// That, and what lies in our buffers.
    pub(super) delivered: u64,
}

#[derive(Debug, Default)]
pub(super) struct Silence {
    /// What had been delivered when it was first looked at.
    behind: Option<u64>,
    since: Option<Instant>,
}

impl Silence {
    /// How long it lasts; `waits` is whether there is something to be heard now.
    pub(super) fn lasts(&mut self, waits: bool, heard: Heard) -> Duration {
        if !waits {
            *self = Self::default();
        } else if heard.read >= *self.behind.get_or_insert(heard.delivered) {
            return self.since.get_or_insert_with(Instant::now).elapsed();
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_our_own_buffers_is_no_silence_of_the_client() {
        let mut silence = Silence::default();
        let heard = |read, delivered| Heard { read, delivered };
        silence.lasts(true, heard(5, 7));
        assert_eq!(silence.since, None, "two chunks may hold what it waits for");
        silence.lasts(true, heard(6, 9));
        assert_eq!(silence.since, None);
        assert!(silence.lasts(true, heard(7, 7)) < Duration::from_secs(1), "the clock starts when it is looked at");
        silence.since = Instant::now().checked_sub(Duration::from_secs(60));
        assert!(silence.lasts(true, heard(7, 7)) >= Duration::from_secs(60));
        assert_eq!(silence.lasts(false, heard(7, 7)), Duration::ZERO);
        assert!(silence.lasts(true, heard(7, 7)) < Duration::from_secs(1), "it starts anew");
    }

    #[test]
    fn a_partition_that_stalled_beside_one_with_a_backlog_was_never_noticed() {
        let mut silence = Silence::default();
        silence.lasts(true, Heard { read: 0, delivered: 1000 });
        silence.lasts(true, Heard { read: 1000, delivered: 2000 });
        assert!(silence.since.is_some(), "of the thousand that lay there none was of this partition");
    }
}
