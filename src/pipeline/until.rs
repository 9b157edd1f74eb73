//! The condition under which a run ends by itself.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::offset::{NextOffset, Watermarks};
use crate::model::topic::{TopicPartition, TopicSnapshot};

/// When a run ends.
#[derive(Debug, Clone)]
pub enum Until {
    /// When it is stopped.
    Stopped,
    /// When each partition has reached the last stable offset that the start saw.
    End {
        ends: BTreeMap<TopicPartition, NextOffset>,
        /// Partitions without a leader. Their ends are known when they have a leader; the run waits for that.
        awaited: BTreeSet<TopicPartition>,
    },
}

impl Until {
    /// The last stable offsets that the snapshot shows.
    pub fn end(snapshot: &TopicSnapshot) -> Self {
        let ends =
            snapshot.partitions.iter().map(|(partition, marks)| (partition.clone(), marks.last_stable)).collect();
        Self::End { ends, awaited: snapshot.leaderless.iter().cloned().collect() }
    }

    pub fn ends(&self) -> Option<&BTreeMap<TopicPartition, NextOffset>> {
        match self {
            Self::Stopped => None,
            Self::End { ends, .. } => Some(ends),
        }
    }

    /// Notes that a partition has a leader. If its end was awaited, the end is now its last stable offset.
    pub(super) fn seen(&mut self, partition: &TopicPartition, marks: Watermarks) {
        if let Self::End { ends, awaited } = self
            && awaited.remove(partition)
        {
            ends.insert(partition.clone(), marks.last_stable);
        }
    }
}
