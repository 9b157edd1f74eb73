//! Inconsistencies between the rows of a position, found offset by offset. Pure: `consistency` reads the tables and
//! hands over the rows of each offset in order.

use crate::model::event::Outcome;
use crate::model::event_numbers::{EventNumbers, inserted_events};
use crate::model::offset::{NextOffset, Offset, OffsetRange};

/// A kind of inconsistency of a range of offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Inconsistency {
    /// The offset has neither outcome nor gap.
    Unaccounted,
    /// The offset has several outcomes or gaps.
    Overlap,
    /// `events` lacks an event that the message inserted according to its outcome.
    EventMissing,
    /// The outcome references an event that does not exist.
    DanglingEvent,
    /// A conflict references an event that does not exist.
    DanglingConflict,
    /// An event, conflict or dead letter whose message has no outcome.
    OutcomeMissing,
    /// A dead letter whose message is not `rejected`, or one that was replayed while its message still is `rejected`;
    /// an event that its message did not insert according to its outcome, or several rows of one event.
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
    pub ranges: Vec<InconsistentRange>,
    pub more: u64,
    /// Outcomes, and offsets of gaps, between start and position.
    pub outcomes: u64,
    pub gap_offsets: u64,
    /// Messages whose outcome is `removed`.
    pub removals: u64,
}

/// A range of offsets with an inconsistency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InconsistentRange {
    pub inconsistency: Inconsistency,
    pub range: OffsetRange,
    /// The events of each message of the range that the inconsistency is about; `None` if it is about the message, or
    /// about the only event of a message.
    pub events: Option<EventNumbers>,
}

/// Ranges of one inconsistency. Adjacent and overlapping ranges of the same events are merged.
#[derive(Debug, Default)]
struct Islands {
    ranges: Vec<(OffsetRange, Option<EventNumbers>)>,
    /// The number of all ranges, also of those beyond the limit.
    count: u64,
    last: Option<(OffsetRange, Option<EventNumbers>)>,
}

impl Islands {
    /// Adds a range. It must not begin before the previous one.
    fn add(&mut self, range: OffsetRange, events: Option<EventNumbers>, max_ranges: usize) {
        match &mut self.last {
            Some((last, of)) if range.from() <= last.to() && *of == events => {
                *last = OffsetRange::new(last.from(), last.to().max(range.to())).expect("it is not shorter");
                if self.count <= max_ranges as u64
                    && let Some((kept, _)) = self.ranges.last_mut()
                {
                    *kept = *last;
                }
            }
            _ => {
                self.last = Some((range, events.clone()));
                self.count += 1;
                if self.count <= max_ranges as u64 {
                    self.ranges.push((range, events));
                }
            }
        }
    }
}

/// A row of the table of outcomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OutcomeRow {
    pub(crate) state: Option<Outcome>,
    pub(crate) event_id: Option<i64>,
    /// The column `inserted`.
    pub(crate) inserted: Option<EventNumbers>,
}

impl OutcomeRow {
    /// The events that the message inserted; `None` if the outcome does not say it.
    fn inserted_events(&self) -> Option<EventNumbers> {
        match self.state {
            Some(state) => inserted_events(state, self.inserted.clone()),
            None => Some(self.inserted.clone().unwrap_or_default()),
        }
    }
}

/// The rows of an offset in `events`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FoundEvents {
    pub(crate) count: usize,
    /// Their numbers, sorted, if they were read.
    pub(crate) numbers: Option<Vec<i32>>,
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
    pub(crate) events: FoundEvents,
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
        self.add_events(inconsistency, range, None);
    }

    fn add_events(&mut self, inconsistency: Inconsistency, range: OffsetRange, events: Option<EventNumbers>) {
        let max_ranges = self.max_ranges;
        self.found_of(inconsistency).add(range, events, max_ranges);
    }

    fn found_of(&mut self, inconsistency: Inconsistency) -> &mut Islands {
        let at = Inconsistency::ALL.iter().position(|f| *f == inconsistency).expect("each is in the list");
        &mut self.found[at]
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
        let AtOffset { outcome, events, conflict_event_ids, dead_letter } = found;
        match outcome {
            None => self.add_at(Inconsistency::OutcomeMissing, at),
            Some(outcome) => self.outcome(at, &outcome, &events, dead_letter),
        }
        self.references.extend(conflict_event_ids.into_iter().map(|id| Reference {
            inconsistency: Inconsistency::DanglingConflict,
            at,
            event_id: Some(id),
        }));
    }

    /// Whether the numbers of a message's events must be read: there are more or fewer than its outcome says, and the
    /// finding would name them.
    pub(crate) fn must_number(&mut self, outcome: &OutcomeRow, count: usize) -> bool {
        let differs = outcome.inserted_events().is_some_and(|inserted| inserted.count() != count);
        let has_several = outcome.inserted.is_some() || count > 1;
        let max_ranges = self.max_ranges as u64;
        let has_room = |islands: &Islands| islands.count < max_ranges;
        differs
            && count > 0
            && has_several
            && (has_room(self.found_of(Inconsistency::EventMissing))
                || has_room(self.found_of(Inconsistency::OutcomeDiffers)))
    }

    /// Compares the events of a message with its outcome.
    fn events(&mut self, at: Offset, outcome: &OutcomeRow, found: &FoundEvents) {
        let Some(inserted) = outcome.inserted_events() else { return };
        if (outcome.state == Some(Outcome::Stored)) == inserted.is_empty() && outcome.state != Some(Outcome::Removed) {
            self.add_at(Inconsistency::OutcomeDiffers, at);
        }
        if let Some(numbers) = &found.numbers {
            let all: EventNumbers = numbers.iter().copied().collect();
            let repeated = numbers.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
            let surplus = numbers.iter().copied().filter(|number| !inserted.contains(*number)).chain(repeated);
            let mut surplus: Vec<i32> = surplus.collect();
            surplus.sort_unstable();
            let (missing, surplus): (_, EventNumbers) = (inserted.without(&all), surplus.into_iter().collect());
            for (inconsistency, events) in
                [(Inconsistency::EventMissing, missing), (Inconsistency::OutcomeDiffers, surplus)]
            {
                if !events.is_empty() {
                    self.add_events(inconsistency, one(at), Some(events));
                }
            }
        } else if found.count < inserted.count() {
            let lost = outcome.inserted.is_some() && found.count == 0;
            self.add_events(Inconsistency::EventMissing, one(at), lost.then_some(inserted));
        } else if found.count > inserted.count() {
            self.add_at(Inconsistency::OutcomeDiffers, at);
        }
    }

    fn outcome(
        &mut self,
        at: Offset,
        outcome: &OutcomeRow,
        events: &FoundEvents,
        dead_letter: Option<DeadLetterState>,
    ) {
        if at.at() < self.start {
            self.add_at(Inconsistency::BelowStart, at);
        } else if at.next() <= self.next {
            self.outcomes += 1;
            self.account(one(at));
        }
        let OutcomeRow { state, event_id, .. } = *outcome;
        self.removals += u64::from(state == Some(Outcome::Removed));
        let is_rejected = state == Some(Outcome::Rejected);
        self.events(at, outcome, events);
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
            let ranges = islands.ranges.into_iter();
            inconsistencies.ranges.extend(ranges.map(|(range, events)| InconsistentRange {
                inconsistency,
                range,
                events,
            }));
        }
        inconsistencies
    }
}

pub(crate) fn one(at: Offset) -> OffsetRange {
    OffsetRange::new(at.at(), at.next()).expect("an offset is not empty")
}

#[cfg(test)]
mod tests;
