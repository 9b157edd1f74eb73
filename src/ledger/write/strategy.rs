//! Selects the strategy that writes a batch's events. Pure; the only place that decides it.
//!
//! The strategies that assume that every event is new are the fastest, but one existing identity fails the whole
//! attempt. So they are tried only while no duplicate is expected, and each failure makes the next attempt rarer: a
//! topic full of duplicates costs one failed attempt in total, not one per batch.
//!
//! Why merge is not the only strategy: for large batches in which every second event exists already, merge wrote half
//! as many messages per second as lookup did (0.48 to 0.54 of the rate, in five pairs of runs with 200,000 messages of
//! 1 KB, and no more with the outcomes by COPY).

use crate::model::record::Digest;
use crate::model::write_report::WriteStrategy;

/// A batch with fewer rows, of events or of outcomes, is small: the round trips of a COPY take longer than writing its rows.
const SMALL_BATCH_MAX: usize = 64;
/// The number of recent identities that are remembered: 8 bytes each, 1 MiB in total.
const RECENT_IDENTITIES: usize = 1 << 17;
/// The longest wait, in batches without a duplicate, before events are assumed to be new again.
const MAX_BATCHES_TO_RETRY: u32 = 256;

/// The observations on the stream so far.
pub(crate) struct StrategySelector {
    /// Tags of recently stored identities, each in the slot that the identity's bits select. A newer identity replaces
    /// an older one in its slot.
    recent: Box<[u64]>,
    /// The number of batches without a duplicate until events are assumed to be new again.
    wait: u32,
    /// The value of `wait` after the last failure; each success halves it.
    penalty: u32,
    copy_works: bool,
    /// A batch that used COPY is committed.
    copy_is_proven: bool,
    single_statement_works: bool,
}

impl Default for StrategySelector {
    fn default() -> Self {
        Self {
            recent: vec![0; RECENT_IDENTITIES].into(),
            wait: 0,
            penalty: 0,
            copy_works: true,
            copy_is_proven: false,
            single_statement_works: true,
        }
    }
}

impl StrategySelector {
    /// Selects the strategy for a batch with these identities. `rows`: of its events or of its outcomes, whichever are more.
    pub(crate) fn choose(&self, rows: usize, mut identities: impl Iterator<Item = Digest>) -> WriteStrategy {
        let fastest = match rows < SMALL_BATCH_MAX {
            true if self.single_statement_works => WriteStrategy::SingleStatement,
            false if self.copy_works => WriteStrategy::Copy,
            _ => return WriteStrategy::Merge,
        };
        let expects_duplicate = self.wait > 0 || identities.any(|identity| self.seen_recently(identity));
        if expects_duplicate { fastest.fallback() } else { fastest }
    }

    fn seen_recently(&self, identity: Digest) -> bool {
        let (slot, tag) = slot_and_tag(identity);
        self.recent[slot] == tag
    }

    /// A batch with this strategy is committed. `duplicates`: some of its events existed before.
    pub(crate) fn succeeded(
        &mut self,
        strategy: WriteStrategy,
        duplicates: bool,
        identities: impl Iterator<Item = Digest>,
    ) {
        for identity in identities {
            let (slot, tag) = slot_and_tag(identity);
            self.recent[slot] = tag;
        }
        self.copy_is_proven |= matches!(strategy, WriteStrategy::Copy | WriteStrategy::Lookup);
        match strategy {
            WriteStrategy::Copy | WriteStrategy::SingleStatement => self.penalty /= 2,
            WriteStrategy::Lookup | WriteStrategy::Merge if duplicates => self.wait = self.penalty,
            WriteStrategy::Lookup | WriteStrategy::Merge => self.wait = self.wait.saturating_sub(1),
        }
    }

    /// Returns true if the batch keeps its connection until its end. COPY may turn out not to work on this connection
    /// to the server, and then the connection is closed.
    pub(crate) fn keeps_connection(&self, strategy: WriteStrategy) -> bool {
        match strategy {
            WriteStrategy::SingleStatement => false,
            WriteStrategy::Merge => true,
            WriteStrategy::Copy | WriteStrategy::Lookup => self.copy_is_proven,
        }
    }

    /// A batch whose events were all assumed to be new has an identity that exists already.
    pub(crate) fn on_duplicate(&mut self) {
        self.penalty = (self.penalty * 2).clamp(1, MAX_BATCHES_TO_RETRY);
        self.wait = self.penalty;
    }

    /// Disables a strategy that does not work with this server. Returns true if it was enabled before.
    pub(crate) fn disable(&mut self, strategy: WriteStrategy) -> bool {
        let works = match strategy {
            WriteStrategy::SingleStatement => &mut self.single_statement_works,
            WriteStrategy::Copy | WriteStrategy::Lookup | WriteStrategy::Merge => &mut self.copy_works,
        };
        std::mem::replace(works, false)
    }
}

fn slot_and_tag(identity: Digest) -> (usize, u64) {
    let (slot, tag) = identity.halves();
    (slot as usize % RECENT_IDENTITIES, tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(n: u8) -> impl Iterator<Item = Digest> {
        [Digest([n; 16])].into_iter()
    }

    #[test]
    fn a_small_batch_never_uses_copy() {
        assert_eq!(StrategySelector::default().choose(SMALL_BATCH_MAX - 1, one(1)), WriteStrategy::SingleStatement);
        assert_eq!(StrategySelector::default().choose(SMALL_BATCH_MAX, one(1)), WriteStrategy::Copy);
    }

    #[test]
    fn an_identity_that_was_stored_recently_is_looked_up() {
        let mut selector = StrategySelector::default();
        selector.succeeded(WriteStrategy::Copy, false, one(1));
        assert_eq!(selector.choose(SMALL_BATCH_MAX, one(1)), WriteStrategy::Lookup);
        assert_eq!(selector.choose(1, one(1)), WriteStrategy::Merge);
        assert_eq!(selector.choose(SMALL_BATCH_MAX, one(2)), WriteStrategy::Copy);
    }

    #[test]
    fn a_topic_full_of_duplicates_costs_one_failed_copy() {
        let mut selector = StrategySelector::default();
        selector.on_duplicate();
        for _ in 0..10_000 {
            assert_eq!(selector.choose(SMALL_BATCH_MAX, one(2)), WriteStrategy::Lookup);
            selector.succeeded(WriteStrategy::Lookup, true, one(1));
        }
    }

    #[test]
    fn each_failure_doubles_the_wait_for_the_next_copy_and_each_success_halves_it() {
        let mut selector = StrategySelector::default();
        let batches_until_copy = |selector: &mut StrategySelector| {
            let mut batches = 0;
            while selector.choose(SMALL_BATCH_MAX, one(2)) == WriteStrategy::Lookup {
                selector.succeeded(WriteStrategy::Lookup, false, one(1));
                batches += 1;
            }
            batches
        };
        let waits: Vec<u32> = (0..10)
            .map(|_| {
                selector.on_duplicate();
                batches_until_copy(&mut selector)
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 256]);
        (0..9).for_each(|_| selector.succeeded(WriteStrategy::Copy, false, one(1)));
        selector.on_duplicate();
        assert_eq!(batches_until_copy(&mut selector), 1);
    }

    #[test]
    fn a_disabled_copy_is_not_tried_again() {
        let mut selector = StrategySelector::default();
        assert!(selector.disable(WriteStrategy::Copy) && !selector.disable(WriteStrategy::Lookup));
        assert_eq!(selector.choose(5000, one(1)), WriteStrategy::Merge);
        assert_eq!(selector.choose(1, one(1)), WriteStrategy::SingleStatement);
    }

    #[test]
    fn a_disabled_single_statement_is_not_tried_again() {
        let mut selector = StrategySelector::default();
        assert!(selector.disable(WriteStrategy::SingleStatement) && !selector.disable(WriteStrategy::SingleStatement));
        assert_eq!(selector.choose(1, one(1)), WriteStrategy::Merge);
        assert_eq!(selector.choose(5000, one(1)), WriteStrategy::Copy);
    }
}
