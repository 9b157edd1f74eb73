//! A batch: consecutive offsets of some partitions, each offset either a record or a proven gap.
//!
//! Rows without progress, and progress without rows, cannot be written down: a slice that does not
//! tile its range is refused when it is made, and `store` commits nothing but slices.

use crate::model::offset::{Coverage, OffsetRange};
use crate::model::record::Record;

/// Why there is no message at some offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapKind {
    /// Transaction markers and aborted transactions.
    Transaction,
    /// Removed by log compaction (or a marker: in a compacted topic the two look alike).
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

/// Offsets proven to hold no message, and how that was shown.
#[derive(Debug, Clone)]
pub struct Gap {
    pub kind: GapKind,
    pub offsets: Coverage,
    pub proof: String,
}

/// What a batch does to one partition: from where to where its position moves, and why each offset
/// in between is accounted for.
#[derive(Debug)]
pub struct Slice {
    pub position_id: i32,
    pub partition: i32,
    pub range: OffsetRange,
    pub records: Vec<Record>,
    pub gap: Option<Gap>,
    /// Some offsets of the range may have been accounted for before: the position was set back.
    pub reread: bool,
}

impl Slice {
    /// Ends the process if records and gap do not tile the range exactly: everything rests on it.
    pub fn assert_tiled(&self) {
        let holes =
            Coverage::missing_between(self.range.from(), self.range.to(), self.records.iter().map(|r| r.offset));
        let proven = self.gap.as_ref().map(|gap| &gap.offsets);
        assert!(
            proven.map_or(holes.is_empty(), |p| *p == holes),
            "partition {}: holes {} of {} are not the proven gap",
            self.partition,
            holes.to_multirange(),
            self.range,
        );
    }
}

/// At least one slice, at most one a partition.
#[derive(Debug)]
pub struct Batch {
    slices: Vec<Slice>,
}

impl Batch {
    /// `None` if there is nothing to write.
    pub fn new(slices: Vec<Slice>) -> Option<Self> {
        slices.iter().for_each(Slice::assert_tiled);
        (!slices.is_empty()).then_some(Self { slices })
    }

    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// The batch without one partition; `None` if nothing is left.
    pub fn without(self, partition: i32) -> Option<Self> {
        self.only(|slice| slice.partition != partition)
    }

    /// The slices for which this holds; `None` if nothing is left.
    pub fn only(self, holds: impl Fn(&Slice) -> bool) -> Option<Self> {
        Self::new(self.slices.into_iter().filter(holds).collect())
    }

    /// One batch a partition.
    pub fn split(self) -> impl Iterator<Item = Self> {
        self.slices.into_iter().map(|slice| Self { slices: vec![slice] })
    }

    pub fn message_count(&self) -> usize {
        self.slices.iter().map(|s| s.records.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::offset::NextOffset;

    fn range(from: i64, to: i64) -> OffsetRange {
        let at = |n| NextOffset::new(n).expect("not negative");
        OffsetRange::new(at(from), at(to)).expect("not empty")
    }

    fn slice(records: &[i64], gap: Option<OffsetRange>) -> Slice {
        let gap =
            gap.map(|r| Gap { kind: GapKind::Transaction, offsets: [r].into_iter().collect(), proof: String::new() });
        let records = records.iter().map(|o| Record::tombstone(*o)).collect();
        Slice { position_id: 1, partition: 0, range: range(0, 3), records, gap, reread: false }
    }

    #[test]
    fn a_batch_of_nothing_is_no_batch() {
        assert!(Batch::new(vec![]).is_none());
    }

    #[test]
    fn records_and_a_proven_gap_make_a_batch() {
        assert!(Batch::new(vec![slice(&[0, 1], Some(range(2, 3)))]).is_some());
    }

    #[test]
    #[should_panic(expected = "not the proven gap")]
    fn progress_over_an_unproven_hole_cannot_be_made() {
        Batch::new(vec![slice(&[0, 2], None)]);
    }

    #[test]
    #[should_panic(expected = "not the proven gap")]
    fn a_gap_over_a_record_cannot_be_made() {
        Batch::new(vec![slice(&[0, 1, 2], Some(range(1, 2)))]);
    }
}
