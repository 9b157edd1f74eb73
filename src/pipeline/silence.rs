//! How long a client says nothing of a partition that has more to be read. A slow database or a long queue
//! is no silence: the clock runs only while nothing of it lies unread in our own buffers.

use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(super) struct Silence(Option<Instant>);

impl Silence {
    /// How long it lasts; `waits` is whether there is something to be heard now.
    pub(super) fn lasts(&mut self, waits: bool) -> Duration {
        if !waits {
            self.0 = None;
            return Duration::ZERO;
        }
        self.0.get_or_insert_with(Instant::now).elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_our_own_buffers_is_no_silence_of_the_client() {
        let mut silence = Silence::default();
        assert!(silence.lasts(true) < Duration::from_secs(1), "the clock starts when it is looked at");
        silence.0 = Instant::now().checked_sub(Duration::from_secs(60));
        assert!(silence.lasts(true) >= Duration::from_secs(60));
        assert_eq!(silence.lasts(false), Duration::ZERO);
        assert!(silence.lasts(true) < Duration::from_secs(1), "it starts anew");
    }
}
