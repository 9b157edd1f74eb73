//! When a run ends by itself.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::offset::{NextOffset, Watermarks};
use crate::model::topic::TopicSnapshot;

#[derive(Debug, Clone)]
pub enum Until {
    Stopped,
    /// Each partition has reached its last stable offset as seen at the start.
    End {
        ends: BTreeMap<i32, NextOffset>,
        /// Partitions without a leader: their ends are known when they have one, and the run waits for that.
        awaited: BTreeSet<i32>,
    },
}

impl Until {
    /// The end of everything as Kafka shows it now.
    pub fn end(snapshot: &TopicSnapshot) -> Self {
        let ends = snapshot.partitions.iter().map(|(partition, marks)| (*partition, marks.last_stable)).collect();
        Self::End { ends, awaited: snapshot.leaderless.iter().copied().collect() }
    }

    pub fn ends(&self) -> Option<&BTreeMap<i32, NextOffset>> {
        match self {
            Self::Stopped => None,
            Self::End { ends, .. } => Some(ends),
        }
    }

    /// A partition has a leader; one whose end was awaited is read to where that is now.
    pub(super) fn seen(&mut self, partition: i32, marks: Watermarks) {
        if let Self::End { ends, awaited } = self
            && awaited.remove(&partition)
        {
            ends.insert(partition, marks.last_stable);
        }
    }
}
