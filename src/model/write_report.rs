//! The result of writing a batch, for metrics and logs.

use std::collections::{BTreeMap, HashMap};

use super::breaker::Breaker;
use super::event::{Outcome, Reason};
use super::topic::TopicPartition;

/// The breaker of each partition, with the counts up to its last committed batch.
pub type Breakers = BTreeMap<TopicPartition, Breaker>;

/// How a batch is written; the label `path` of `gapless_batches_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WriteStrategy {
    /// Inserts all events by COPY and assumes that all are new; a unique violation shows that one is not.
    Copy,
    /// Writes a small batch in one statement and assumes that all events are new.
    SingleStatement,
    /// Looks up the existing events first and inserts the others by COPY.
    Lookup,
    /// `INSERT … ON CONFLICT DO NOTHING`: for a small batch with existing events, and where COPY is not available.
    Merge,
}

impl WriteStrategy {
    pub const ALL: [Self; 4] = [Self::Copy, Self::SingleStatement, Self::Lookup, Self::Merge];

    /// The strategy after a duplicate event was found.
    pub fn fallback(self) -> Self {
        match self {
            Self::Copy => Self::Lookup,
            Self::SingleStatement | Self::Lookup | Self::Merge => Self::Merge,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::SingleStatement => "single_statement",
            Self::Lookup => "lookup",
            Self::Merge => "merge",
        }
    }
}

/// The counts of one written batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteReport {
    pub path: WriteStrategy,
    /// The sum of the messages' rows: of events, or one of a message without events.
    pub rows: u64,
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Inserted events.
    pub events_stored: u64,
    /// Identities of the batch whose event existed before.
    pub events_existing: u64,
    pub conflicting_events: u64,
    pub rejections: HashMap<Reason, u64>,
    /// The breakers of the batch's partitions, with this batch counted.
    pub breakers: Breakers,
}

impl std::ops::AddAssign for WriteReport {
    /// Adds the part of a batch that was written next.
    fn add_assign(&mut self, next: Self) {
        let Self { path, rows, outcomes, events_stored, events_existing, conflicting_events, rejections, breakers } =
            next;
        self.path = path;
        self.rows += rows;
        self.events_stored += events_stored;
        self.events_existing += events_existing;
        self.conflicting_events += conflicting_events;
        outcomes.into_iter().for_each(|(outcome, count)| *self.outcomes.entry(outcome).or_default() += count);
        rejections.into_iter().for_each(|(reason, count)| *self.rejections.entry(reason).or_default() += count);
        self.breakers.extend(breakers);
    }
}
