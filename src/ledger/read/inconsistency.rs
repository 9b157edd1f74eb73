//! Inconsistencies between the rows of a position, found offset by offset. Pure: `consistency` reads the tables and
//! hands over the rows of each offset in order.

use crate::model::event::Outcome;
use crate::model::offset::{NextOffset, Offset, OffsetRange};

/// A kind of inconsistency of a range of offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Inconsistency {
    /// The offset has neither outcome nor gap.
    Unaccounted,
    /// The offset has several outcomes or gaps.
    Overlap,
    /// The outcome is `stored`, but `events` has no event of this message.
    EventMissing,
    /// The outcome references an event that does not exist.
    DanglingEvent,
    /// A conflict references an event that does not exist.
    DanglingConflict,
    /// An event, conflict or dead letter whose message has no outcome.
    OutcomeMissing,
    /// A dead letter whose message is not `rejected`, or one that was replayed while its message still is `rejected`;
    /// an event whose message is not `stored` (or `removed`, if the event was inserted as a removal).
    OutcomeDiffers,
    /// The outcome is `rejected`, but the message has no dead letter.
    DeadLetterMissing,
    /// An outcome or a gap below the position's `start_offset`. Only a start below it changes `start_offset`, to a
    /// lower offset.
    BelowStart,
}

impl Inconsistency {
    const ALL: [Self; 9] = [
        Self::Overlap,
        Self::Unaccounted,
        Self::EventMissing,
        Self::DanglingEvent,
        Self::DanglingConflict,
        Self::OutcomeMissing,
        Self::OutcomeDiffers,
        Self::DeadLetterMissing,
        Self::BelowStart,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Unaccounted => "unaccounted",
            Self::Overlap => "overlap",
            Self::EventMissing => "event_missing",
            Self::DanglingEvent => "dangling_event",
            Self::DanglingConflict => "dangling_conflict",
            Self::OutcomeMissing => "outcome_missing",
            Self::OutcomeDiffers => "outcome_differs",
            Self::DeadLetterMissing => "dead_letter_missing",
            Self::BelowStart => "below_start",
        }
    }
}

/// The inconsistencies of a partition: the first ranges of each kind, and the number of further ranges.
#[derive(Debug, Default)]
pub struct Inconsistencies {
    pub ranges: Vec<(Inconsistency, OffsetRange)>,
    pub more: u64,
    /// Outcomes, and offsets of gaps, between start and position.
    pub outcomes: u64,
    pub gap_offsets: u64,
    /// Messages whose outcome is `removed`.
    pub removals: u64,
}

/// Ranges of one inconsistency. Adjacent and overlapping ranges are merged.
#[derive(Debug, Default)]
struct Islands {
    ranges: Vec<OffsetRange>,
    /// The number of all ranges, also of those beyond the limit.
    count: u64,
    last: Option<OffsetRange>,
}

impl Islands {
    /// Adds a range. It must not begin before the previous one.
    fn add(&mut self, range: OffsetRange, max_ranges: usize) {
        match self.last {
            Some(last) if range.from() <= last.to() => {
                let both = OffsetRange::new(last.from(), last.to().max(range.to())).expect("it is not shorter");
                self.last = Some(both);
                if self.count <= max_ranges as u64
                    && let Some(kept) = self.ranges.last_mut()
                {
                    *kept = both;
                }
            }
            _ => {
                self.last = Some(range);
                self.count += 1;
                if self.count <= max_ranges as u64 {
                    self.ranges.push(range);
                }
            }
        }
    }
}

/// A row of the table of outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutcomeRow {
    pub(crate) state: Option<Outcome>,
    pub(crate) event_id: Option<i64>,
}

/// Whether a dead letter was replayed with success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeadLetterState {
    Replayed,
    Kept,
}

/// The rows of one offset.
#[derive(Debug, Default)]
pub(crate) struct AtOffset {
    pub(crate) outcome: Option<OutcomeRow>,
    pub(crate) has_event: bool,
    /// The events that its conflicts reference.
    pub(crate) conflict_event_ids: Vec<i64>,
    pub(crate) dead_letter: Option<DeadLetterState>,
}

/// A reference to an event that must be looked up, and the inconsistency if the event does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) inconsistency: Inconsistency,
    pub(crate) at: Offset,
    /// `None` if a required reference is null.
    pub(crate) event_id: Option<i64>,
}

/// Checks the rows of a position in offset order.
#[derive(Debug)]
pub(crate) struct PartitionScan {
    start: NextOffset,
    next: NextOffset,
    /// The end of the offsets that are accounted for so far.
    reached: NextOffset,
    outcomes: u64,
    gap_offsets: u64,
    removals: u64,
    max_ranges: usize,
    found: [Islands; Inconsistency::ALL.len()],
    references: Vec<Reference>,
}

impl PartitionScan {
    /// Begins a scan of the offsets from `start` to `next`. It keeps the first `max_ranges` ranges of each
    /// inconsistency.
    pub(crate) fn new(start: NextOffset, next: NextOffset, max_ranges: usize) -> Self {
        Self {
            start,
            next,
            reached: start,
            outcomes: 0,
            gap_offsets: 0,
            removals: 0,
            max_ranges: max_ranges.max(1),
            found: Default::default(),
            references: Vec::new(),
        }
    }

    fn add(&mut self, inconsistency: Inconsistency, range: OffsetRange) {
        let at = Inconsistency::ALL.iter().position(|f| *f == inconsistency).expect("each is in the list");
        self.found[at].add(range, self.max_ranges);
    }

    fn add_at(&mut self, inconsistency: Inconsistency, at: Offset) {
        self.add(inconsistency, one(at));
    }

    /// Counts a range as accounted for. Ranges must be ordered by their beginning.
    fn account(&mut self, range: OffsetRange) {
        let unaccounted = OffsetRange::new(self.reached, range.from());
        let overlap = OffsetRange::new(range.from(), range.to().min(self.reached));
        unaccounted.into_iter().for_each(|range| self.add(Inconsistency::Unaccounted, range));
        overlap.into_iter().for_each(|range| self.add(Inconsistency::Overlap, range));
        self.reached = self.reached.max(range.to());
    }

    /// Checks a range of a gap.
    pub(crate) fn gap(&mut self, range: OffsetRange) {
        let below = OffsetRange::new(range.from(), range.to().min(self.start));
        below.into_iter().for_each(|below| self.add(Inconsistency::BelowStart, below));
        if let Some(within) = OffsetRange::new(range.from().max(self.start), range.to().min(self.next)) {
            self.gap_offsets += within.count();
            self.account(within);
        }
    }

    /// Checks the rows of an offset.
    pub(crate) fn at(&mut self, at: Offset, found: AtOffset) {
        let AtOffset { outcome, has_event, conflict_event_ids, dead_letter } = found;
        match outcome {
            None => self.add_at(Inconsistency::OutcomeMissing, at),
            Some(outcome) => self.outcome(at, outcome, has_event, dead_letter),
        }
        self.references.extend(conflict_event_ids.into_iter().map(|id| Reference {
            inconsistency: Inconsistency::DanglingConflict,
            at,
            event_id: Some(id),
        }));
    }

    fn outcome(&mut self, at: Offset, outcome: OutcomeRow, has_event: bool, dead_letter: Option<DeadLetterState>) {
        if at.at() < self.start {
            self.add_at(Inconsistency::BelowStart, at);
        } else if at.next() <= self.next {
            self.outcomes += 1;
            self.account(one(at));
        }
        let OutcomeRow { state, event_id } = outcome;
        self.removals += u64::from(state == Some(Outcome::Removed));
        let is_rejected = state == Some(Outcome::Rejected);
        if has_event != (state == Some(Outcome::Stored)) {
            match (has_event, state) {
                (false, _) => self.add_at(Inconsistency::EventMissing, at),
                (true, Some(Outcome::Removed)) => {}
                (true, _) => self.add_at(Inconsistency::OutcomeDiffers, at),
            }
        }
        match dead_letter {
            Some(state) if is_rejected != (state == DeadLetterState::Kept) => {
                self.add_at(Inconsistency::OutcomeDiffers, at)
            }
            None if is_rejected => self.add_at(Inconsistency::DeadLetterMissing, at),
            _ => {}
        }
        let must_reference = matches!(state, Some(Outcome::Stored | Outcome::Processed | Outcome::Removed));
        if must_reference || event_id.is_some() {
            self.references.push(Reference { inconsistency: Inconsistency::DanglingEvent, at, event_id });
        }
    }

    /// Takes the references that must be looked up. Returns none while there are fewer than `at_least`.
    pub(crate) fn references(&mut self, at_least: usize) -> Vec<Reference> {
        if self.references.len() < at_least { Vec::new() } else { std::mem::take(&mut self.references) }
    }

    /// Records a reference to an event that does not exist.
    pub(crate) fn dangling(&mut self, reference: Reference) {
        self.add_at(reference.inconsistency, reference.at);
    }

    /// The number of offsets checked so far.
    pub(crate) fn passed(&self) -> u64 {
        OffsetRange::new(self.start, self.reached).map_or(0, OffsetRange::count)
    }

    pub(crate) fn finish(mut self) -> Inconsistencies {
        OffsetRange::new(self.reached, self.next)
            .into_iter()
            .for_each(|range| self.add(Inconsistency::Unaccounted, range));
        let (outcomes, gap_offsets, removals) = (self.outcomes, self.gap_offsets, self.removals);
        let mut inconsistencies = Inconsistencies { outcomes, gap_offsets, removals, ..Inconsistencies::default() };
        for (inconsistency, islands) in Inconsistency::ALL.into_iter().zip(self.found) {
            inconsistencies.more += islands.count - islands.ranges.len() as u64;
            inconsistencies.ranges.extend(islands.ranges.into_iter().map(|range| (inconsistency, range)));
        }
        inconsistencies
    }
}

pub(crate) fn one(at: Offset) -> OffsetRange {
    OffsetRange::new(at.at(), at.next()).expect("an offset is not empty")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(n: i64) -> Offset {
        Offset::new(n).expect("not negative")
    }

    fn range(from: i64, to: i64) -> OffsetRange {
        OffsetRange::new(offset(from).at(), offset(to).at()).expect("not empty")
    }

    fn stored() -> AtOffset {
        let outcome = OutcomeRow { state: Some(Outcome::Stored), event_id: Some(1) };
        AtOffset { outcome: Some(outcome), has_event: true, ..AtOffset::default() }
    }

    fn scan(max_ranges: usize) -> PartitionScan {
        PartitionScan::new(offset(0).at(), offset(10).at(), max_ranges)
    }

    #[test]
    fn offsets_without_outcome_or_gap_are_unaccounted_up_to_the_position() {
        let mut scan = scan(10);
        scan.at(offset(1), stored());
        scan.gap(range(2, 4));
        scan.at(offset(7), stored());
        let inconsistencies = scan.finish();
        let unaccounted = [range(0, 1), range(4, 7), range(8, 10)].map(|r| (Inconsistency::Unaccounted, r));
        assert_eq!((inconsistencies.ranges.as_slice(), inconsistencies.more), (unaccounted.as_slice(), 0));
        assert_eq!((inconsistencies.outcomes, inconsistencies.gap_offsets), (2, 2));
    }

    #[test]
    fn an_outcome_within_a_gap_is_an_overlap_and_leaves_no_unaccounted_range_after_it() {
        let mut scan = scan(10);
        scan.gap(range(0, 8));
        [3, 4, 6].into_iter().for_each(|n| scan.at(offset(n), stored()));
        scan.gap(range(7, 10));
        let inconsistencies = scan.finish();
        assert_eq!(inconsistencies.ranges, [range(3, 5), range(6, 8)].map(|r| (Inconsistency::Overlap, r)));
    }

    #[test]
    fn outcomes_and_gaps_below_the_start_are_reported_as_one_range() {
        let mut scan = PartitionScan::new(offset(5).at(), offset(7).at(), 10);
        [0, 1].into_iter().for_each(|n| scan.at(offset(n), stored()));
        scan.gap(range(2, 6));
        scan.at(offset(6), stored());
        let inconsistencies = scan.finish();
        assert_eq!(inconsistencies.ranges, [(Inconsistency::BelowStart, range(0, 5))]);
        assert_eq!((inconsistencies.outcomes, inconsistencies.gap_offsets), (1, 1));
    }

    #[test]
    fn adjacent_offsets_are_one_range_wherever_pages_and_lookups_end() {
        let mut scan = scan(10);
        for n in 0..10 {
            scan.at(offset(n), AtOffset { has_event: n == 5, ..stored() });
            // `verify` looks references up after every page.
            scan.references(1).into_iter().for_each(|r| scan.dangling(r));
        }
        let inconsistencies = scan.finish();
        let missing = [range(0, 5), range(6, 10)].map(|r| (Inconsistency::EventMissing, r));
        let expected: Vec<_> = missing.into_iter().chain([(Inconsistency::DanglingEvent, range(0, 10))]).collect();
        assert_eq!(inconsistencies.ranges, expected);
    }

    #[test]
    fn ranges_beyond_the_limit_are_counted_and_do_not_extend_the_last_kept_range() {
        let mut scan = scan(1);
        [1, 3, 4].into_iter().for_each(|n| scan.at(offset(n), stored()));
        let inconsistencies = scan.finish();
        assert_eq!(
            (inconsistencies.ranges.as_slice(), inconsistencies.more),
            ([(Inconsistency::Unaccounted, range(0, 1))].as_slice(), 2)
        );
    }

    #[test]
    fn each_row_requires_the_rows_that_belong_to_it() {
        let row = |state, event_id| Some(OutcomeRow { state: Some(state), event_id });
        let dead_letter = |state| AtOffset { dead_letter: Some(state), ..AtOffset::default() };
        let cases = [
            (
                AtOffset { outcome: row(Outcome::Rejected, None), ..AtOffset::default() },
                vec![Inconsistency::DeadLetterMissing],
            ),
            (AtOffset { outcome: row(Outcome::Rejected, None), ..dead_letter(DeadLetterState::Kept) }, vec![]),
            (
                AtOffset { outcome: row(Outcome::Rejected, None), ..dead_letter(DeadLetterState::Replayed) },
                vec![Inconsistency::OutcomeDiffers],
            ),
            (
                AtOffset { outcome: row(Outcome::Ignored, None), ..dead_letter(DeadLetterState::Kept) },
                vec![Inconsistency::OutcomeDiffers],
            ),
            (dead_letter(DeadLetterState::Kept), vec![Inconsistency::OutcomeMissing]),
            (AtOffset { has_event: true, ..AtOffset::default() }, vec![Inconsistency::OutcomeMissing]),
            (AtOffset { outcome: row(Outcome::Removed, Some(1)), has_event: true, ..AtOffset::default() }, vec![]),
            (
                AtOffset { outcome: row(Outcome::Processed, Some(1)), has_event: true, ..AtOffset::default() },
                vec![Inconsistency::OutcomeDiffers],
            ),
        ];
        for (found, expected) in cases {
            let shown = format!("{found:?}");
            let mut scan = PartitionScan::new(offset(4).at(), offset(4).at(), 10);
            scan.at(offset(4), found);
            let inconsistencies: Vec<Inconsistency> =
                scan.finish().ranges.into_iter().map(|(inconsistency, _)| inconsistency).collect();
            assert_eq!(inconsistencies, expected, "{shown}");
        }
    }
}
