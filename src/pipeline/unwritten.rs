//! What was read of a partition and is not in the ledger yet. No waiting, no servers.
//!
//! ```text
//! position        launched            (end of) held            expected
//!    |--- in flight ---|--- a draft, held ---|--- records read ---|
//!                       for the proof of its
//!                       holes, then for a lane
//! ```

use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

use crate::ledger::start::positions::Position;
use crate::model::batch::{Gap, Slice};
use crate::model::offset::{Coverage, NextOffset, OffsetRange};
use crate::model::record::Record;

/// A share of the byte budget, given back when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Share(Option<OwnedSemaphorePermit>);

impl Share {
    pub(super) fn of(permit: OwnedSemaphorePermit) -> Self {
        Self(Some(permit))
    }

    /// So many bytes of it, or what is left: a message larger than the whole budget has a share of just that.
    pub(super) fn split(&mut self, bytes: usize) -> Self {
        Self(self.0.as_mut().and_then(|mine| mine.split(bytes.min(mine.num_permits()))))
    }

    fn add(&mut self, more: Self) {
        match (&mut self.0, more.0) {
            (Some(mine), Some(more)) => mine.merge(more),
            (None, Some(more)) => self.0 = Some(more),
            (_, None) => {}
        }
    }
}

/// Consecutive offsets of one partition, each a record or in a hole.
#[derive(Debug)]
pub(super) struct Draft {
    range: OffsetRange,
    records: Vec<Record>,
    bytes: usize,
    holes: Coverage,
    /// That no message lies in the holes.
    gap: Option<Gap>,
    share: Share,
}

impl Draft {
    /// What was read of a range; records in offset order, all of them inside.
    fn new(range: OffsetRange, records: Vec<Record>, bytes: usize, share: Share) -> Self {
        let holes = Coverage::holes(range.from(), range.to(), records.iter().map(|r| r.offset));
        Self { range, records, bytes, holes, gap: None, share }
    }

    /// The offsets to be proven empty before it may be written; none if there are none, or they are.
    pub(super) fn unproven(&self) -> Option<&Coverage> {
        (self.gap.is_none() && !self.holes.is_empty()).then_some(&self.holes)
    }

    /// With the proof that made its holes a gap.
    pub(super) fn proven(self, gap: impl FnOnce(Coverage) -> Gap) -> Self {
        Self { gap: Some(gap(self.holes.clone())), ..self }
    }

    pub(super) fn first_hole(&self) -> Option<OffsetRange> {
        self.holes.ranges().first().copied()
    }

    /// The part before the first hole, which needs no proof.
    pub(super) fn before_first_hole(mut self) -> Option<Self> {
        let hole = self.first_hole()?;
        self.records.truncate(self.records.partition_point(|r| r.offset.at() < hole.from()));
        let bytes = self.records.iter().map(Record::footprint).sum();
        Some(Self::new(OffsetRange::new(self.range.from(), hole.from())?, self.records, bytes, self.share))
    }

    /// Cuts it behind the first records, as far as they fit into so many bytes, but not before the first one. What was
    /// asked about its holes is an answer for those that are left.
    fn cut_to(mut self, bytes: usize) -> Self {
        let mut kept_bytes = 0;
        let fits = self.records.iter().take_while(|record| {
            kept_bytes += record.footprint();
            kept_bytes <= bytes
        });
        let keep = fits.count().max(1);
        if keep >= self.records.len() {
            return self;
        }
        self.records.truncate(keep);
        let end = self.records.last().map_or(self.range.to(), |record| record.offset.next());
        let kept_bytes = self.records.iter().map(Record::footprint).sum();
        let share = self.share.split(kept_bytes);
        let range = OffsetRange::new(self.range.from(), end).expect("it holds a record");
        Self::new(range, self.records, kept_bytes, share)
    }

    pub(super) fn messages(&self) -> usize {
        self.records.len()
    }

    /// As part of a batch. `reread`: some of its offsets may have been accounted for before.
    fn into_slice(self, position: &Position, reread: bool) -> (Slice, Share) {
        let Self { range, records, gap, share, .. } = self;
        (Slice { position_id: position.id, partition: position.partition, range, records, gap, reread }, share)
    }
}

/// The three stretches behind the position.
#[derive(Debug)]
pub(super) struct Unwritten {
    /// Everything below is in the ledger or on its way there.
    launched: NextOffset,
    held: Option<Draft>,
    /// Of the draft that was held last, and when it was held.
    ticket: u64,
    held_at: Instant,
    /// What lies behind the held draft was given back, and is to be read again.
    parked: bool,
    read: Vec<Record>,
    read_bytes: usize,
    share: Share,
    /// Up to where everything was delivered, and since when that is known.
    end: Option<(NextOffset, Instant)>,
}

impl Unwritten {
    /// Nothing is read from there on.
    pub(super) fn from(position: NextOffset) -> Self {
        Self {
            launched: position,
            held: None,
            ticket: 0,
            held_at: Instant::now(),
            parked: false,
            read: Vec::new(),
            read_bytes: 0,
            share: Share::default(),
            end: None,
        }
    }

    pub(super) fn launched(&self) -> NextOffset {
        self.launched
    }

    /// Where the next record is expected.
    pub(super) fn expected(&self) -> NextOffset {
        let behind = self.held.as_ref().map_or(self.launched, |held| held.range.to());
        self.read.last().map_or(behind, |r| r.offset.next())
    }

    /// Whether all that was read is launched.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_none() && self.read.is_empty()
    }

    /// When the first message that is not launched was written.
    pub(super) fn first_ms(&self) -> Option<i64> {
        let held = self.held.iter().flat_map(|held| &held.records);
        held.chain(&self.read).next().and_then(|r| r.timestamp_ms)
    }

    /// Records and bytes that take the room of the next batch. What is being proven does not: the other partitions
    /// need it meanwhile. What was read behind it does, or it would become more than a batch may hold.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let ready = self.held.as_ref().filter(|held| held.unproven().is_none());
        let (messages, bytes) = ready.map_or((0, 0), |held| (held.records.len(), held.bytes));
        (messages + self.read.len(), bytes + self.read_bytes)
    }

    pub(super) fn push(&mut self, record: Record, share: Share) {
        self.end = None;
        self.share.add(share);
        self.read_bytes += record.footprint();
        self.read.push(record);
    }

    /// Everything below `end` was delivered.
    pub(super) fn reached(&mut self, end: NextOffset) {
        self.end = Some((end, Instant::now()));
    }

    /// What can be written as it is: what was held, once it is proven, else what was read since, if no hole is in
    /// it. An idle tail behind the last record (transaction markers) counts once its end is known for `tail_after`:
    /// on a busy topic the next record covers it anyway.
    pub(super) fn ready(&mut self, tail_after: Duration) -> Option<Draft> {
        if self.held.is_some() {
            return self.held.take_if(|held| held.unproven().is_none());
        }
        let to = self.read_to(tail_after);
        if self.has_holes(to) { None } else { self.draft(to) }
    }

    /// Holds what was read if there are holes in it: these are to be proven, and the proof is to come with the
    /// ticket.
    pub(super) fn hold_back(&mut self, tail_after: Duration) -> Option<(u64, Coverage)> {
        let to = self.read_to(tail_after);
        if self.held.is_some() || !self.has_holes(to) {
            return None;
        }
        self.held = self.draft(to);
        self.ticket += 1;
        self.held_at = Instant::now();
        self.held.as_ref().map(|held| (self.ticket, held.holes.clone()))
    }

    fn read_to(&self, tail_after: Duration) -> NextOffset {
        let tail = self.end.filter(|(_, since)| since.elapsed() >= tail_after).map(|(end, _)| end);
        self.expected().max(tail.unwrap_or(self.launched))
    }

    fn has_holes(&self, to: NextOffset) -> bool {
        to.get() - self.launched.get() > self.read.len() as i64
    }

    fn draft(&mut self, to: NextOffset) -> Option<Draft> {
        let range = OffsetRange::new(self.launched, to)?;
        let (records, bytes) = (std::mem::take(&mut self.read), std::mem::take(&mut self.read_bytes));
        Some(Draft::new(range, records, bytes, std::mem::take(&mut self.share)))
    }

    /// Nothing behind it is launched before it.
    pub(super) fn hold(&mut self, draft: Draft) {
        self.held = Some(draft);
    }

    /// What was held for the proof that comes with this ticket; nothing if it was forgotten since.
    pub(super) fn release(&mut self, ticket: u64) -> Option<Draft> {
        self.held.take_if(|held| held.unproven().is_some() && ticket == self.ticket)
    }

    /// How long the draft that is held has waited for its proof; zero if none does.
    pub(super) fn is_proving_for(&self) -> Duration {
        let is_proving = self.held.as_ref().is_some_and(|held| held.unproven().is_some());
        if is_proving { self.held_at.elapsed() } else { Duration::ZERO }
    }

    /// Keeps at most so many bytes of the held draft and nothing behind it; what is given up is to be read again.
    /// Returns whether something was.
    pub(super) fn park(&mut self, bytes: usize) -> bool {
        let Some(held) = self.held.take() else { return false };
        let (held_bytes, behind_bytes) = (held.bytes, self.read_bytes);
        if self.parked || held_bytes + behind_bytes <= bytes {
            self.held = Some(held);
            return false;
        }
        self.held = Some(held.cut_to(bytes));
        (self.read, self.read_bytes, self.share, self.end) = (Vec::new(), 0, Share::default(), None);
        self.parked = true;
        true
    }

    /// Whether what was given up is to be read now: nothing waits for a proof any more.
    pub(super) fn read_on(&mut self) -> bool {
        let is_proving = self.held.as_ref().is_some_and(|held| held.unproven().is_some());
        !is_proving && std::mem::take(&mut self.parked)
    }

    pub(super) fn launch(&mut self, draft: Draft, position: &Position) -> (Slice, Share) {
        self.launched = draft.range.to();
        // Offsets of before a rewind may have outcomes or gaps.
        let reread = draft.range.from() < position.recorded_to;
        draft.into_slice(position, reread)
    }

    /// Everything below is in the ledger.
    pub(super) fn committed(&mut self, to: NextOffset) {
        self.launched = self.launched.max(to);
    }

    /// Drops what is not launched.
    pub(super) fn forget(&mut self) {
        self.start_over(self.launched);
    }

    /// Drops everything. No ticket is ever given twice: an earlier proof may still come.
    pub(super) fn start_over(&mut self, position: NextOffset) {
        *self = Self { ticket: self.ticket, ..Self::from(position) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::batch::GapKind;

    fn at(n: i64) -> NextOffset {
        NextOffset::new(n).expect("not negative")
    }

    fn position() -> Position {
        Position {
            id: 7,
            partition: 0,
            start: at(0),
            next: at(5),
            fence: 1,
            recorded_to: at(5),
            anchor: None,
            log_end: None,
        }
    }

    fn from(position: i64, offsets: impl IntoIterator<Item = i64>) -> Unwritten {
        let mut unwritten = Unwritten::from(at(position));
        offsets.into_iter().for_each(|offset| unwritten.push(Record::tombstone(offset), Share::default()));
        unwritten
    }

    /// Two records with a hole between them, which is being proven, and one behind.
    fn proving() -> Unwritten {
        let mut unwritten = from(5, [5, 7]);
        assert!(unwritten.ready(Duration::ZERO).is_none());
        assert_eq!(unwritten.hold_back(Duration::ZERO).expect("a hole").1.to_multirange(), "{[6,7)}");
        unwritten.push(Record::tombstone(8), Share::default());
        unwritten
    }

    fn gap(offsets: Coverage) -> Gap {
        Gap { kind: GapKind::Transaction, offsets, proof: String::new() }
    }

    #[test]
    fn what_is_read_behind_a_proof_waits_for_it() {
        let mut unwritten = proving();
        assert!(unwritten.ready(Duration::ZERO).is_none() && unwritten.hold_back(Duration::ZERO).is_none());
        assert_eq!((unwritten.waiting().0, unwritten.expected()), (1, at(9)));
        let held = unwritten.release(1).expect("being proven").proven(gap);
        unwritten.hold(held);
        assert_eq!(unwritten.waiting().0, 3);
        let proven = unwritten.ready(Duration::ZERO).expect("it is");
        let (slice, _) = unwritten.launch(proven, &position());
        slice.assert_tiled();
        assert_eq!((slice.range.to_string(), unwritten.launched()), ("[5, 8)".to_owned(), at(8)));
        assert_eq!(unwritten.ready(Duration::ZERO).expect("what was behind").messages(), 1);
    }

    #[test]
    fn what_is_proven_is_not_released_for_another_proof() {
        let mut unwritten = proving();
        let held = unwritten.release(1).expect("being proven").proven(gap);
        unwritten.hold(held);
        assert!(unwritten.release(1).is_none());
    }

    #[test]
    fn a_proof_of_what_was_forgotten_since_proves_nothing() {
        let mut unwritten = proving();
        unwritten.start_over(at(5));
        unwritten.push(Record::tombstone(7), Share::default());
        assert_eq!(unwritten.hold_back(Duration::ZERO).expect("a hole").0, 2);
        assert!(unwritten.release(1).is_none());
        assert!(unwritten.release(2).is_some());
    }

    #[test]
    fn what_lies_before_a_hole_is_written_without_a_proof_and_what_lies_behind_is_read_again() {
        let mut unwritten = proving();
        let held = unwritten.release(1).expect("being proven");
        unwritten.forget();
        unwritten.hold(held.before_first_hole().expect("a record"));
        assert_eq!(unwritten.expected(), at(6));
        let before = unwritten.ready(Duration::ZERO).expect("nothing keeps it");
        let (slice, _) = unwritten.launch(before, &position());
        slice.assert_tiled();
        assert_eq!(slice.range.to_string(), "[5, 6)");
    }

    #[test]
    fn what_begins_with_a_hole_has_nothing_before_it() {
        let mut unwritten = from(5, [6]);
        assert_eq!(unwritten.hold_back(Duration::ZERO).expect("a hole").1.to_multirange(), "{[5,6)}");
        assert!(unwritten.release(1).expect("being proven").before_first_hole().is_none());
    }

    #[test]
    fn a_tail_behind_the_last_record_is_a_hole_once_its_end_is_known_for_long_enough() {
        let mut unwritten = from(5, [5]);
        unwritten.reached(at(8));
        assert!(unwritten.hold_back(Duration::from_secs(60)).is_none());
        assert_eq!(unwritten.hold_back(Duration::ZERO).expect("a hole").1.to_multirange(), "{[6,8)}");
        assert_eq!(unwritten.expected(), at(8));
    }

    #[test]
    fn an_end_that_was_reached_before_is_forgotten_when_a_record_follows() {
        let mut unwritten = from(5, []);
        unwritten.reached(at(8));
        unwritten.push(Record::tombstone(9), Share::default());
        assert_eq!(unwritten.hold_back(Duration::ZERO).expect("a hole").1.to_multirange(), "{[5,9)}");
    }

    #[test]
    fn nothing_to_write_is_no_draft() {
        let mut unwritten = from(5, []);
        for end in [5, 3] {
            unwritten.reached(at(end));
            assert!(unwritten.ready(Duration::ZERO).is_none() && unwritten.hold_back(Duration::ZERO).is_none());
        }
    }

    #[test]
    fn while_a_proof_takes_long_its_partition_keeps_no_more_than_its_share() {
        let budget = Arc::new(tokio::sync::Semaphore::new(1 << 20));
        let size = Record::tombstone(0).footprint();
        let mut unwritten = Unwritten::from(at(5));
        let read = |unwritten: &mut Unwritten, offset| {
            let permit = Arc::clone(&budget).try_acquire_many_owned(size as u32).expect("there is enough");
            unwritten.push(Record::tombstone(offset), Share::of(permit));
        };
        [6, 7, 9, 10].into_iter().for_each(|offset| read(&mut unwritten, offset));
        unwritten.hold_back(Duration::ZERO).expect("two holes");
        [11, 12].into_iter().for_each(|offset| read(&mut unwritten, offset));
        assert!(!unwritten.park(6 * size), "it has no more than its share");
        assert!(unwritten.park(2 * size) && !unwritten.park(2 * size));
        assert_eq!(budget.available_permits(), (1 << 20) - 2 * size);
        assert_eq!((unwritten.expected(), unwritten.waiting().0), (at(8), 0));
        assert!(!unwritten.read_on(), "its proof is still to come");
        let held = unwritten.release(1).expect("being proven").proven(gap);
        unwritten.hold(held);
        assert!(unwritten.read_on() && !unwritten.read_on());
        let proven = unwritten.ready(Duration::ZERO).expect("it is");
        let (slice, _) = unwritten.launch(proven, &position());
        slice.assert_tiled();
        assert_eq!(slice.range.to_string(), "[5, 8)");
    }

    #[test]
    fn what_is_cut_before_its_first_hole_needs_no_proof_and_is_read_on_behind() {
        let mut unwritten = from(5, [5, 6, 8]);
        unwritten.hold_back(Duration::ZERO).expect("a hole");
        assert!(unwritten.park(2 * Record::tombstone(0).footprint()));
        assert!(unwritten.read_on());
        assert_eq!((unwritten.expected(), unwritten.is_proving_for()), (at(7), Duration::ZERO));
    }

    #[test]
    fn a_share_of_the_byte_budget_is_kept_until_its_records_are_written_or_dropped() {
        let budget = Arc::new(tokio::sync::Semaphore::new(10));
        let mut chunk = Share::of(Arc::clone(&budget).try_acquire_many_owned(10).expect("all of it"));
        let (mut one, mut other) = (Unwritten::from(at(5)), Unwritten::from(at(5)));
        one.push(Record::tombstone(5), chunk.split(2));
        other.push(Record::tombstone(6), chunk.split(3));
        // Larger than all that is left.
        other.push(Record::tombstone(7), chunk.split(1_000_000));
        drop(chunk);
        let ready = one.ready(Duration::ZERO).expect("a record");
        let launched = one.launch(ready, &position());
        assert_eq!(budget.available_permits(), 0);
        drop(launched);
        assert_eq!(budget.available_permits(), 2);
        other.hold_back(Duration::ZERO).expect("a hole");
        assert_eq!(budget.available_permits(), 2);
        other.forget();
        assert_eq!(budget.available_permits(), 10);
    }
}
