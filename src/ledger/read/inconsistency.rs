//! What can be wrong with a position's rows, found offset by offset. Pure: `inspect` walks the tables and hands over
//! what there is at each offset, in order.

use crate::model::event::Outcome;
use crate::model::offset::{NextOffset, Offset, OffsetRange};

/// What can be wrong with a range of offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Inconsistency {
    /// Neither outcome nor gap.
    Unaccounted,
    /// More than one of them.
    Overlap,
    /// The outcome is `stored`, but no event was brought by this message.
    EventMissing,
    /// The outcome names an event that is not there.
    DanglingEvent,
    /// A conflict names a winner that is not there.
    DanglingConflict,
    /// An event, conflict or dead letter without the outcome of the message that brought it.
    OutcomeMissing,
    /// A dead letter whose message is not `rejected`, or one that was replayed and still is; an event
    /// whose message is not `stored` (or `removed`, if it came as a removal).
    OutcomeDiffers,
    /// Rejected, but its bytes are not in `dead_letters`.
    DeadLetterMissing,
    /// An outcome or a gap below the position's `start_offset`, which an earlier start lowers and nothing raises.
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

/// Flaws of a partition: the first of each kind, and how many more ranges there are.
#[derive(Debug, Default)]
pub struct Inconsistencies {
    pub ranges: Vec<(Inconsistency, OffsetRange)>,
    pub more: u64,
    /// Outcomes, and offsets of gaps, between start and position.
    pub outcomes: u64,
    pub gap_offsets: u64,
    /// Messages that took something back.
    pub removals: u64,
}

/// Ranges of one inconsistency; those that touch or overlap are one.
#[derive(Debug, Default)]
struct Islands {
    ranges: Vec<OffsetRange>,
    /// Of all, also those that are not kept.
    count: u64,
    last: Option<OffsetRange>,
}

impl Islands {
    /// Adds a range that begins where the one before began, or later.
    fn add(&mut self, range: OffsetRange, most: usize) {
        match self.last {
            Some(last) if range.from() <= last.to() => {
                let both = OffsetRange::new(last.from(), last.to().max(range.to())).expect("it is not shorter");
                self.last = Some(both);
                if self.count <= most as u64
                    && let Some(kept) = self.ranges.last_mut()
                {
                    *kept = both;
                }
            }
            _ => {
                self.last = Some(range);
                self.count += 1;
                if self.count <= most as u64 {
                    self.ranges.push(range);
                }
            }
        }
    }
}

/// What a table says of an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutcomeRow {
    pub(crate) state: Option<Outcome>,
    pub(crate) event_id: Option<i64>,
}

/// Whether a dead letter was taken through the decoder with success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LetterState {
    Replayed,
    Kept,
}

/// All that there is at an offset.
#[derive(Debug, Default)]
pub(crate) struct AtOffset {
    pub(crate) outcome: Option<OutcomeRow>,
    pub(crate) has_event: bool,
    /// The winners of its conflicts.
    pub(crate) winners: Vec<i64>,
    pub(crate) letter: Option<LetterState>,
}

/// Which reference to an event is to be looked up, and what it is if the event is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) inconsistency: Inconsistency,
    pub(crate) at: Offset,
    /// `None`: it should name one, and names none.
    pub(crate) event_id: Option<i64>,
}

/// Goes along a position's offsets.
#[derive(Debug)]
pub(crate) struct PartitionScan {
    start: NextOffset,
    next: NextOffset,
    /// How far what begins before reaches.
    reached: NextOffset,
    outcomes: u64,
    gap_offsets: u64,
    removals: u64,
    most: usize,
    found: [Islands; Inconsistency::ALL.len()],
    references: Vec<Reference>,
}

impl PartitionScan {
    /// Along the offsets accounted for, keeping the first `most` ranges of each inconsistency.
    pub(crate) fn new(start: NextOffset, next: NextOffset, most: usize) -> Self {
        Self {
            start,
            next,
            reached: start,
            outcomes: 0,
            gap_offsets: 0,
            removals: 0,
            most: most.max(1),
            found: Default::default(),
            references: Vec::new(),
        }
    }

    fn add(&mut self, inconsistency: Inconsistency, range: OffsetRange) {
        let at = Inconsistency::ALL.iter().position(|f| *f == inconsistency).expect("each is in the list");
        self.found[at].add(range, self.most);
    }

    fn add_at(&mut self, inconsistency: Inconsistency, at: Offset) {
        self.add(inconsistency, one(at));
    }

    /// A part of what is accounted for. Parts come in the order in which they begin.
    fn part(&mut self, range: OffsetRange) {
        let hole = OffsetRange::new(self.reached, range.from());
        let twice = OffsetRange::new(range.from(), range.to().min(self.reached));
        hole.into_iter().for_each(|hole| self.add(Inconsistency::Unaccounted, hole));
        twice.into_iter().for_each(|twice| self.add(Inconsistency::Overlap, twice));
        self.reached = self.reached.max(range.to());
    }

    /// A range of a gap.
    pub(crate) fn gap(&mut self, range: OffsetRange) {
        let below = OffsetRange::new(range.from(), range.to().min(self.start));
        below.into_iter().for_each(|below| self.add(Inconsistency::BelowStart, below));
        if let Some(within) = OffsetRange::new(range.from().max(self.start), range.to().min(self.next)) {
            self.gap_offsets += within.count();
            self.part(within);
        }
    }

    /// What there is at an offset.
    pub(crate) fn at(&mut self, at: Offset, found: AtOffset) {
        let AtOffset { outcome, has_event, winners, letter } = found;
        match outcome {
            None => self.add_at(Inconsistency::OutcomeMissing, at),
            Some(outcome) => self.outcome(at, outcome, has_event, letter),
        }
        self.references.extend(winners.into_iter().map(|id| Reference {
            inconsistency: Inconsistency::DanglingConflict,
            at,
            event_id: Some(id),
        }));
    }

    fn outcome(&mut self, at: Offset, outcome: OutcomeRow, has_event: bool, letter: Option<LetterState>) {
        if at.at() < self.start {
            self.add_at(Inconsistency::BelowStart, at);
        } else if at.next() <= self.next {
            self.outcomes += 1;
            self.part(one(at));
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
        match letter {
            Some(letter) if is_rejected != (letter == LetterState::Kept) => {
                self.add_at(Inconsistency::OutcomeDiffers, at)
            }
            None if is_rejected => self.add_at(Inconsistency::DeadLetterMissing, at),
            _ => {}
        }
        let names_one = matches!(state, Some(Outcome::Stored | Outcome::Processed | Outcome::Removed));
        if names_one || event_id.is_some() {
            self.references.push(Reference { inconsistency: Inconsistency::DanglingEvent, at, event_id });
        }
    }

    /// References that are to be looked up, once there are many, or all of them.
    pub(crate) fn references(&mut self, at_least: usize) -> Vec<Reference> {
        if self.references.len() < at_least { Vec::new() } else { std::mem::take(&mut self.references) }
    }

    /// A reference to an event that is not there.
    pub(crate) fn dangling(&mut self, reference: Reference) {
        self.add_at(reference.inconsistency, reference.at);
    }

    /// How much of what is to be accounted for was passed.
    pub(crate) fn passed(&self) -> u64 {
        OffsetRange::new(self.start, self.reached).map_or(0, OffsetRange::count)
    }

    pub(crate) fn finish(mut self) -> Inconsistencies {
        OffsetRange::new(self.reached, self.next)
            .into_iter()
            .for_each(|hole| self.add(Inconsistency::Unaccounted, hole));
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

    fn sweep(most: usize) -> PartitionScan {
        PartitionScan::new(offset(0).at(), offset(10).at(), most)
    }

    #[test]
    fn what_is_not_covered_is_unaccounted_up_to_the_position() {
        let mut sweep = sweep(10);
        sweep.at(offset(1), stored());
        sweep.gap(range(2, 4));
        sweep.at(offset(7), stored());
        let inconsistencies = sweep.finish();
        let holes = [range(0, 1), range(4, 7), range(8, 10)].map(|r| (Inconsistency::Unaccounted, r));
        assert_eq!((inconsistencies.ranges.as_slice(), inconsistencies.more), (holes.as_slice(), 0));
        assert_eq!((inconsistencies.outcomes, inconsistencies.gap_offsets), (2, 2));
    }

    #[test]
    fn an_outcome_within_a_gap_is_an_overlap_and_makes_no_hole_behind_it() {
        let mut sweep = sweep(10);
        sweep.gap(range(0, 8));
        [3, 4, 6].into_iter().for_each(|n| sweep.at(offset(n), stored()));
        sweep.gap(range(7, 10));
        let inconsistencies = sweep.finish();
        assert_eq!(inconsistencies.ranges, [range(3, 5), range(6, 8)].map(|r| (Inconsistency::Overlap, r)));
    }

    #[test]
    fn what_lies_below_the_start_is_named_as_one_range() {
        let mut sweep = PartitionScan::new(offset(5).at(), offset(7).at(), 10);
        [0, 1].into_iter().for_each(|n| sweep.at(offset(n), stored()));
        sweep.gap(range(2, 6));
        sweep.at(offset(6), stored());
        let inconsistencies = sweep.finish();
        assert_eq!(inconsistencies.ranges, [(Inconsistency::BelowStart, range(0, 5))]);
        assert_eq!((inconsistencies.outcomes, inconsistencies.gap_offsets), (1, 1));
    }

    #[test]
    fn offsets_that_follow_each_other_are_one_range_wherever_pages_and_lookups_end() {
        let mut sweep = sweep(10);
        for n in 0..10 {
            sweep.at(offset(n), AtOffset { has_event: n == 5, ..stored() });
            // As after each look-up of references.
            sweep.references(1).into_iter().for_each(|r| sweep.dangling(r));
        }
        let inconsistencies = sweep.finish();
        let missing = [range(0, 5), range(6, 10)].map(|r| (Inconsistency::EventMissing, r));
        let expected: Vec<_> = missing.into_iter().chain([(Inconsistency::DanglingEvent, range(0, 10))]).collect();
        assert_eq!(inconsistencies.ranges, expected);
    }

    #[test]
    fn ranges_beyond_those_kept_are_counted_and_do_not_lengthen_the_last_one_kept() {
        let mut sweep = sweep(1);
        [1, 3, 4].into_iter().for_each(|n| sweep.at(offset(n), stored()));
        let inconsistencies = sweep.finish();
        assert_eq!(
            (inconsistencies.ranges.as_slice(), inconsistencies.more),
            ([(Inconsistency::Unaccounted, range(0, 1))].as_slice(), 2)
        );
    }

    #[test]
    fn each_row_must_have_those_that_belong_to_it() {
        let row = |state, event_id| Some(OutcomeRow { state: Some(state), event_id });
        let letter = |letter| AtOffset { letter: Some(letter), ..AtOffset::default() };
        let cases = [
            (
                AtOffset { outcome: row(Outcome::Rejected, None), ..AtOffset::default() },
                vec![Inconsistency::DeadLetterMissing],
            ),
            (AtOffset { outcome: row(Outcome::Rejected, None), ..letter(LetterState::Kept) }, vec![]),
            (
                AtOffset { outcome: row(Outcome::Rejected, None), ..letter(LetterState::Replayed) },
                vec![Inconsistency::OutcomeDiffers],
            ),
            (
                AtOffset { outcome: row(Outcome::Ignored, None), ..letter(LetterState::Kept) },
                vec![Inconsistency::OutcomeDiffers],
            ),
            (letter(LetterState::Kept), vec![Inconsistency::OutcomeMissing]),
            (AtOffset { has_event: true, ..AtOffset::default() }, vec![Inconsistency::OutcomeMissing]),
            (AtOffset { outcome: row(Outcome::Removed, Some(1)), has_event: true, ..AtOffset::default() }, vec![]),
            (
                AtOffset { outcome: row(Outcome::Processed, Some(1)), has_event: true, ..AtOffset::default() },
                vec![Inconsistency::OutcomeDiffers],
            ),
        ];
        for (found, expected) in cases {
            let shown = format!("{found:?}");
            let mut sweep = PartitionScan::new(offset(4).at(), offset(4).at(), 10);
            sweep.at(offset(4), found);
            let inconsistencies: Vec<Inconsistency> =
                sweep.finish().ranges.into_iter().map(|(inconsistency, _)| inconsistency).collect();
            assert_eq!(inconsistencies, expected, "{shown}");
        }
    }
}
