//! A batch: consecutive offsets of one or more partitions. Each offset has a record or belongs to a proven gap.
//!
//! [`Batch::new`] refuses a slice whose records and gap do not tile its range, and `ledger` commits only slices.
//! So rows are never stored without progress, and progress is never stored without rows.

use crate::model::offset::{Coverage, OffsetRange};
use crate::model::record::Record;
use crate::model::topic::TopicPartition;

/// Why there is no message at some offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapKind {
    /// Transaction markers and aborted transactions.
    Transaction,
    /// Removed by log compaction, or a transaction marker: a compacted topic does not show which of the two it was.
    Compacted,
}

impl GapKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Compacted => "compacted",
        }
    }
}

/// Offsets that are proven to hold no message, with the proof.
#[derive(Debug, Clone)]
pub struct Gap {
    pub kind: GapKind,
    pub offsets: Coverage,
    pub proof: String,
}

/// The part of a batch that belongs to one partition: the range by which the position moves, and the records and the
/// gap that account for each offset of the range.
#[derive(Debug, Clone)]
pub struct Slice {
    pub position_id: i32,
    pub partition: TopicPartition,
    pub range: OffsetRange,
    pub records: Vec<Record>,
    pub gap: Option<Gap>,
    /// The position was set back, so offsets of the range may be accounted for already.
    pub reread: bool,
}

impl Slice {
    /// Panics unless records and gap tile the range exactly: completeness depends on it.
    pub fn assert_tiled(&self) {
        let missing =
            Coverage::missing_between(self.range.from(), self.range.to(), self.records.iter().map(|r| r.offset));
        let proven = self.gap.as_ref().map(|gap| &gap.offsets);
        assert!(
            proven.map_or(missing.is_empty(), |p| *p == missing),
            "partition {}: the offsets {} of {} have no record and are not the proven gap",
            self.partition.partition,
            missing.to_multirange(),
            self.range,
        );
    }

    /// Splits the slice behind its first `records` records. Each part has a record.
    fn split_at(self, records: usize) -> (Self, Self) {
        let Self { position_id, partition, range, records: mut first, gap, reread } = self;
        let behind = first.split_off(records);
        let end = first.last().map_or(range.from(), |record| record.offset.next());
        let part = |from, to, records| {
            let range = OffsetRange::new(from, to).expect("a range with a record is not empty");
            let gap = gap.as_ref().map(|gap| Gap { offsets: gap.offsets.within(range), ..gap.clone() });
            let gap = gap.filter(|gap| !gap.offsets.is_empty());
            Self { position_id, partition: partition.clone(), range, records, gap, reread }
        };
        (part(range.from(), end, first), part(end, range.to(), behind))
    }
}

/// At least one slice, and at most one for each partition.
#[derive(Debug, Clone)]
pub struct Batch {
    slices: Vec<Slice>,
}

impl Batch {
    /// `None` if there are no slices.
    pub fn new(slices: Vec<Slice>) -> Option<Self> {
        slices.iter().for_each(Slice::assert_tiled);
        (!slices.is_empty()).then_some(Self { slices })
    }

    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// Drops the slice of one partition; `None` if no slice is left.
    pub fn without(self, partition: &TopicPartition) -> Option<Self> {
        self.only(|slice| slice.partition != *partition)
    }

    /// Keeps the slices for which `holds` returns true; `None` if no slice is left.
    pub fn only(self, holds: impl Fn(&Slice) -> bool) -> Option<Self> {
        Self::new(self.slices.into_iter().filter(holds).collect())
    }

    /// Splits the batch into one batch for each partition.
    pub fn split(self) -> impl Iterator<Item = Self> {
        self.slices.into_iter().map(|slice| Self { slices: vec![slice] })
    }

    /// Splits the batch behind its first `messages` messages, of which there must be at least one and fewer than all.
    pub fn split_at(self, messages: usize) -> (Self, Self) {
        let (mut first, mut behind, mut left) = (Vec::new(), Vec::new(), messages);
        for slice in self.slices {
            match slice.records.len() {
                _ if left == 0 => behind.push(slice),
                records if records <= left => {
                    left -= records;
                    first.push(slice);
                }
                _ => {
                    let (part, rest) = slice.split_at(left);
                    left = 0;
                    first.push(part);
                    behind.push(rest);
                }
            }
        }
        let batch = |slices| Self::new(slices).expect("both parts have a message");
        (batch(first), batch(behind))
    }

    pub fn message_count(&self) -> usize {
        self.slices.iter().map(|s| s.records.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::offset::NextOffset;
    use crate::model::topic::Topic;

    fn range(from: i64, to: i64) -> OffsetRange {
        let at = |n| NextOffset::new(n).expect("not negative");
        OffsetRange::new(at(from), at(to)).expect("not empty")
    }

    fn slice(records: &[i64], gap: Option<OffsetRange>) -> Slice {
        let gap =
            gap.map(|r| Gap { kind: GapKind::Transaction, offsets: [r].into_iter().collect(), proof: String::new() });
        let records = records.iter().map(|o| Record::tombstone(*o)).collect();
        let partition = Topic::from("events").partition(0);
        Slice { position_id: 1, partition, range: range(0, 3), records, gap, reread: false }
    }

    #[test]
    fn a_batch_has_at_least_one_slice() {
        assert!(Batch::new(vec![]).is_none());
    }

    #[test]
    fn records_and_a_proven_gap_make_a_batch() {
        assert!(Batch::new(vec![slice(&[0, 1], Some(range(2, 3)))]).is_some());
    }

    #[test]
    #[should_panic(expected = "not the proven gap")]
    fn a_slice_with_an_unproven_gap_is_refused() {
        Batch::new(vec![slice(&[0, 2], None)]);
    }

    #[test]
    fn the_parts_of_a_batch_account_for_the_same_offsets() {
        let other = Slice { partition: Topic::from("events").partition(1), ..slice(&[0, 1, 2], None) };
        let batch = Batch::new(vec![slice(&[0, 2], Some(range(1, 2))), other]).expect("slices");
        let shown = |batch: &Batch| -> Vec<String> {
            let slice = |s: &Slice| {
                let gap = s.gap.as_ref().map(|gap| gap.offsets.to_multirange()).unwrap_or_default();
                format!("{}:{}{gap} {}", s.partition.partition, s.range, s.records.len())
            };
            batch.slices().iter().map(slice).collect()
        };
        let parts = |messages| {
            let (first, behind) = batch.clone().split_at(messages);
            (shown(&first), shown(&behind))
        };
        let text = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
        assert_eq!(parts(1), (text(&["0:[0, 1) 1"]), text(&["0:[1, 3){[1,2)} 1", "1:[0, 3) 3"])));
        assert_eq!(parts(2), (text(&["0:[0, 3){[1,2)} 2"]), text(&["1:[0, 3) 3"])));
        assert_eq!(parts(4), (text(&["0:[0, 3){[1,2)} 2", "1:[0, 2) 2"]), text(&["1:[2, 3) 1"])));
    }

    #[test]
    #[should_panic(expected = "not the proven gap")]
    fn a_gap_that_covers_a_record_is_refused() {
        Batch::new(vec![slice(&[0, 1, 2], Some(range(1, 2)))]);
    }
}
