//! What writing a batch did: for metrics, logs and whoever counts.

use std::collections::{BTreeMap, HashMap};

use super::breaker::Breaker;
use super::event::{Outcome, Reason};

/// What is counted of each partition's rejected messages, of all that is in the ledger.
pub type Breakers = BTreeMap<i32, Breaker>;

/// The ways; the label of `gapless_batches_total{path}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WriteStrategy {
    /// All events by COPY, taken for new; the unique key says if one is not.
    Copy,
    /// The same for a few messages: the whole batch in one statement.
    SingleStatement,
    /// Those that are there are looked up first, the others go by COPY.
    Lookup,
    /// `INSERT … ON CONFLICT DO NOTHING`: for a few of which some are there, and where COPY does not work.
    Merge,
}

impl WriteStrategy {
    pub const ALL: [Self; 4] = [Self::Copy, Self::SingleStatement, Self::Lookup, Self::Merge];

    /// What to do where some event is there already.
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

/// What a batch did, for metrics and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteReport {
    pub path: WriteStrategy,
    pub outcomes: BTreeMap<Outcome, u64>,
    pub events_stored: u64,
    pub conflicting_events: u64,
    pub rejections: HashMap<Reason, u64>,
    /// What is counted of each partition with this batch, of those it touched.
    pub breakers: Breakers,
}
