//! Offsets, ranges of offsets and sets of offsets of one partition: the arithmetic on which "exactly once" depends.
//!
//! Pure values; nothing here knows Kafka or PostgreSQL. Positions, missing offsets and proven gaps are computed only
//! with these types, so an off-by-one error can only occur here. Used by every other layer.

use std::fmt;

/// The offset of one record of a partition, never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(i64);

/// A position: the next offset to read of a partition. It has its own type because it differs from an [`Offset`] by
/// one, and confusing the two loses or doubles exactly one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextOffset(i64);

impl Offset {
    /// `None` for a negative number: Kafka's logical offsets (-1, -2, -1001) name no record.
    pub fn new(offset: i64) -> Option<Self> {
        (offset >= 0).then_some(Self(offset))
    }

    pub fn get(self) -> i64 {
        self.0
    }

    /// The position after this record. The program adds 1 to an offset only here.
    pub fn next(self) -> NextOffset {
        NextOffset(self.0 + 1)
    }

    /// The position at which this record would be read.
    pub fn at(self) -> NextOffset {
        NextOffset(self.0)
    }
}

impl NextOffset {
    /// The beginning of every log, although retention may have deleted it.
    pub const ZERO: Self = Self(0);

    /// `None` for a negative number.
    pub fn new(offset: i64) -> Option<Self> {
        (offset >= 0).then_some(Self(offset))
    }

    pub fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NextOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A non-empty half-open range of offsets, `[from, to)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OffsetRange {
    from: NextOffset,
    to: NextOffset,
}

impl OffsetRange {
    /// `None` if the range would be empty.
    pub fn new(from: NextOffset, to: NextOffset) -> Option<Self> {
        (from < to).then_some(Self { from, to })
    }

    pub fn from(self) -> NextOffset {
        self.from
    }

    pub fn to(self) -> NextOffset {
        self.to
    }

    /// The number of offsets in the range, at least 1.
    pub fn count(self) -> u64 {
        self.to.0.abs_diff(self.from.0)
    }

    pub fn contains(self, offset: Offset) -> bool {
        self.from <= offset.at() && offset.next() <= self.to
    }
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.from, self.to)
    }
}

/// The watermarks of one partition's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// The first offset Kafka still has.
    pub log_start: NextOffset,
    /// Every transaction below it is decided: committed or aborted.
    pub last_stable: NextOffset,
    /// The high watermark: every record below it is replicated.
    pub log_end: NextOffset,
}

/// A set of offsets as sorted, disjoint, non-touching ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage(Vec<OffsetRange>);

impl Coverage {
    /// The offsets of `[from, to)` that are not among `present`.
    ///
    /// `present` must be strictly increasing and lie within the range. Otherwise the caller has a bug, and this
    /// function panics instead of hiding it.
    pub fn missing_between(from: NextOffset, to: NextOffset, present: impl IntoIterator<Item = Offset>) -> Self {
        let mut missing = Vec::new();
        let mut expected = from;
        for offset in present {
            assert!(offset.at() >= expected, "offset {offset} read where {expected} or later was expected");
            missing.extend(OffsetRange::new(expected, offset.at()));
            expected = offset.next();
        }
        assert!(expected <= to, "records reach {expected}, beyond the end {to} of their range");
        missing.extend(OffsetRange::new(expected, to));
        Self(missing)
    }

    /// Adds a range and merges it with the ranges that touch or overlap it.
    pub fn insert(&mut self, range: OffsetRange) {
        let start = self.0.partition_point(|r| r.to < range.from);
        let end = self.0.partition_point(|r| r.from <= range.to);
        let merged = self.0[start..end]
            .iter()
            .fold(range, |acc, r| OffsetRange { from: acc.from.min(r.from), to: acc.to.max(r.to) });
        self.0.splice(start..end, [merged]);
    }

    pub fn contains(&self, offset: Offset) -> bool {
        let at = self.0.partition_point(|r| r.to < offset.next());
        self.0.get(at).is_some_and(|r| r.contains(offset))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of offsets in the set.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|r| r.count()).sum()
    }

    /// The number of offsets that are in both sets.
    pub fn count_of(&self, other: &Self) -> u64 {
        let (mut shared, mut ours) = (0, self.0.iter().peekable());
        for theirs in &other.0 {
            while ours.next_if(|r| r.to <= theirs.from).is_some() {}
            let mut within = ours.clone();
            while let Some(r) = within.next_if(|r| r.from < theirs.to) {
                shared += OffsetRange::new(r.from.max(theirs.from), r.to.min(theirs.to)).map_or(0, OffsetRange::count);
            }
        }
        shared
    }

    pub fn ranges(&self) -> &[OffsetRange] {
        &self.0
    }

    /// The offsets of the set that lie in a range.
    pub fn within(&self, range: OffsetRange) -> Self {
        let part = |r: &OffsetRange| OffsetRange::new(r.from.max(range.from), r.to.min(range.to));
        Self(self.0.iter().filter_map(part).collect())
    }

    /// The smallest range that contains the whole set; `None` if the set is empty.
    pub fn span(&self) -> Option<OffsetRange> {
        OffsetRange::new(self.0.first()?.from, self.0.last()?.to)
    }

    /// The text form of a PostgreSQL `int8multirange`: `{[3,5),[9,10)}`.
    pub fn to_multirange(&self) -> String {
        let ranges: Vec<_> = self.0.iter().map(|r| format!("[{},{})", r.from, r.to)).collect();
        format!("{{{}}}", ranges.join(","))
    }
}

impl FromIterator<OffsetRange> for Coverage {
    fn from_iter<I: IntoIterator<Item = OffsetRange>>(ranges: I) -> Self {
        let mut set = Self::default();
        ranges.into_iter().for_each(|r| set.insert(r));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn at(n: i64) -> NextOffset {
        NextOffset::new(n).expect("not negative")
    }

    fn range(from: i64, to: i64) -> OffsetRange {
        OffsetRange::new(at(from), at(to)).expect("not empty")
    }

    fn offsets(set: &Coverage) -> BTreeSet<i64> {
        set.ranges().iter().flat_map(|r| r.from().get()..r.to().get()).collect()
    }

    #[test]
    fn an_empty_range_cannot_be_made() {
        assert_eq!(OffsetRange::new(at(5), at(5)), None);
        assert_eq!(OffsetRange::new(at(6), at(5)), None);
        assert_eq!(Offset::new(-1), None);
    }

    #[test]
    fn a_gap_at_the_end_of_a_range_is_found() {
        let missing = Coverage::missing_between(at(0), at(3), [Offset(0), Offset(1)]);
        assert_eq!(missing.ranges(), [range(2, 3)]);
        assert_eq!(missing.to_multirange(), "{[2,3)}");
    }

    #[test]
    #[should_panic(expected = "expected")]
    fn a_repeated_offset_in_a_range_is_refused() {
        Coverage::missing_between(at(0), at(3), [Offset(1), Offset(1)]);
    }

    proptest! {
        #[test]
        fn records_and_missing_offsets_tile_their_range(from in 0i64..50, present in prop::collection::btree_set(0i64..60, 0..40)) {
            let present: BTreeSet<i64> = present.into_iter().map(|o| o + from).collect();
            let to = from + 70;
            let missing = Coverage::missing_between(at(from), at(to), present.iter().map(|o| Offset(*o)));
            let empty = offsets(&missing);
            prop_assert!(empty.is_disjoint(&present));
            prop_assert_eq!(empty.len() + present.len(), 70);
            prop_assert_eq!(missing.count() as usize, empty.len());
            for offset in from..to {
                prop_assert_eq!(missing.contains(Offset(offset)), empty.contains(&offset));
            }
        }

        #[test]
        fn a_coverage_contains_exactly_the_offsets_of_its_ranges(
            ranges in prop::collection::vec((0i64..60, 1i64..8), 0..20),
        ) {
            let set: Coverage = ranges.iter().map(|(from, n)| range(*from, from + n)).collect();
            let model: BTreeSet<i64> = ranges.iter().flat_map(|(from, n)| *from..from + n).collect();
            prop_assert_eq!(offsets(&set), model.clone());
            let part: BTreeSet<i64> = model.into_iter().filter(|o| (10..40).contains(o)).collect();
            prop_assert_eq!(offsets(&set.within(range(10, 40))), part);
            for pair in set.ranges().windows(2) {
                prop_assert!(pair[0].to() < pair[1].from(), "touching ranges are merged");
            }
        }
    }
}
