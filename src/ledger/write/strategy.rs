//! Which way a batch's events take into the ledger. Pure; the one place that decides it.
//!
//! Taking all events for new is the fastest way, and fails as a whole on the first identity that is there
//! already. So it is tried only while nothing speaks against it, and a failure makes the next tries rarer: a
//! topic full of duplicates pays for one failed attempt, not for one a batch.
//!
//! Why not merge alone, which would be one way less: of large batches in which every second event is there already, it
//! wrote half as many messages a second as a look-up and COPY did (0.48 to 0.54 in five pairs of runs of 200,000 messages
//! of 1 KB, and no more with the outcomes by COPY).

use crate::model::record::Digest;
use crate::model::write_report::WriteStrategy;

/// Fewer messages than this are a few: the round trips of a COPY take longer than their rows.
const SMALL_BATCH_MAX: usize = 64;
/// Identities that are remembered, at most: 1 MiB.
const RECENT_IDENTITIES: usize = 1 << 17;
/// Batches without a duplicate after which events are taken for new again, at most.
const MAX_BATCHES_TO_RETRY: u32 = 256;

/// What is known of the stream so far.
pub(crate) struct StrategySelector {
    /// Identities stored of late, each at the place its own bits name; a newer one takes the place.
    recent: Box<[u64]>,
    /// Batches without a duplicate to come before events are taken for new.
    wait: u32,
    /// What `wait` was after the last failure; halved by each success.
    penalty: u32,
    copy_works: bool,
    /// A batch that went by COPY is in the ledger.
    copy_is_proven: bool,
    few_works: bool,
}

impl Default for StrategySelector {
    fn default() -> Self {
        Self {
            recent: vec![0; RECENT_IDENTITIES].into(),
            wait: 0,
            penalty: 0,
            copy_works: true,
            copy_is_proven: false,
            few_works: true,
        }
    }
}

impl StrategySelector {
    /// For a batch of so many messages that brings these identities.
    pub(crate) fn choose(&self, messages: usize, mut identities: impl Iterator<Item = Digest>) -> WriteStrategy {
        let blind = match messages < SMALL_BATCH_MAX {
            true if self.few_works => WriteStrategy::SingleStatement,
            false if self.copy_works => WriteStrategy::Copy,
            _ => return WriteStrategy::Merge,
        };
        let doubtful = self.wait > 0 || identities.any(|identity| self.seen_recently(identity));
        if doubtful { blind.fallback() } else { blind }
    }

    fn seen_recently(&self, identity: Digest) -> bool {
        let (place, mark) = slot_and_tag(identity);
        self.recent[place] == mark
    }

    /// A batch took its way and is in the ledger; `duplicates` of its events were there before.
    pub(crate) fn succeeded(
        &mut self,
        path: WriteStrategy,
        duplicates: bool,
        identities: impl Iterator<Item = Digest>,
    ) {
        for identity in identities {
            let (place, mark) = slot_and_tag(identity);
            self.recent[place] = mark;
        }
        self.copy_is_proven |= matches!(path, WriteStrategy::Copy | WriteStrategy::Lookup);
        match path {
            WriteStrategy::Copy | WriteStrategy::SingleStatement => self.penalty /= 2,
            WriteStrategy::Lookup | WriteStrategy::Merge if duplicates => self.wait = self.penalty,
            WriteStrategy::Lookup | WriteStrategy::Merge => self.wait = self.wait.saturating_sub(1),
        }
    }

    /// Whether a transaction that was begun for this way is kept to its end, whatever else becomes of the batch: COPY may
    /// turn out not to work on this way to the server, and then takes its connection with it.
    pub(crate) fn keeps_connection(&self, path: WriteStrategy) -> bool {
        match path {
            WriteStrategy::SingleStatement => false,
            WriteStrategy::Merge => true,
            WriteStrategy::Copy | WriteStrategy::Lookup => self.copy_is_proven,
        }
    }

    /// A blind batch met an identity that is there.
    pub(crate) fn on_duplicate(&mut self) {
        self.penalty = (self.penalty * 2).clamp(1, MAX_BATCHES_TO_RETRY);
        self.wait = self.penalty;
    }

    /// A way turned out not to work with this server at all; whether that is news.
    pub(crate) fn disable(&mut self, path: WriteStrategy) -> bool {
        let works = match path {
            WriteStrategy::SingleStatement => &mut self.few_works,
            WriteStrategy::Copy | WriteStrategy::Lookup | WriteStrategy::Merge => &mut self.copy_works,
        };
        std::mem::replace(works, false)
    }
}

fn slot_and_tag(identity: Digest) -> (usize, u64) {
    let (place, mark) = identity.halves();
    (place as usize % RECENT_IDENTITIES, mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(n: u8) -> impl Iterator<Item = Digest> {
        [Digest([n; 16])].into_iter()
    }

    #[test]
    fn a_few_messages_are_never_copied() {
        assert_eq!(StrategySelector::default().choose(SMALL_BATCH_MAX - 1, one(1)), WriteStrategy::SingleStatement);
        assert_eq!(StrategySelector::default().choose(SMALL_BATCH_MAX, one(1)), WriteStrategy::Copy);
    }

    #[test]
    fn an_identity_stored_a_moment_ago_is_not_copied_blindly() {
        let mut selector = StrategySelector::default();
        selector.succeeded(WriteStrategy::Copy, false, one(1));
        assert_eq!(selector.choose(SMALL_BATCH_MAX, one(1)), WriteStrategy::Lookup);
        assert_eq!(selector.choose(1, one(1)), WriteStrategy::Merge);
        assert_eq!(selector.choose(SMALL_BATCH_MAX, one(2)), WriteStrategy::Copy);
    }

    #[test]
    fn a_topic_full_of_duplicates_pays_for_one_failed_copy() {
        let mut selector = StrategySelector::default();
        selector.on_duplicate();
        for _ in 0..10_000 {
            assert_eq!(selector.choose(SMALL_BATCH_MAX, one(2)), WriteStrategy::Lookup);
            selector.succeeded(WriteStrategy::Lookup, true, one(1));
        }
    }

    #[test]
    fn each_failure_makes_the_next_try_rarer_and_successes_make_up_for_it() {
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
    fn where_copy_does_not_work_it_is_not_tried_again() {
        let mut selector = StrategySelector::default();
        assert!(selector.disable(WriteStrategy::Copy) && !selector.disable(WriteStrategy::Lookup));
        assert_eq!(selector.choose(5000, one(1)), WriteStrategy::Merge);
        assert_eq!(selector.choose(1, one(1)), WriteStrategy::SingleStatement);
    }

    #[test]
    fn where_a_statement_cannot_be_a_whole_batch_it_is_not_tried_again() {
        let mut selector = StrategySelector::default();
        assert!(selector.disable(WriteStrategy::SingleStatement) && !selector.disable(WriteStrategy::SingleStatement));
        assert_eq!(selector.choose(1, one(1)), WriteStrategy::Merge);
        assert_eq!(selector.choose(5000, one(1)), WriteStrategy::Copy);
    }
}
