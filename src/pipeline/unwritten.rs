//! What was read of a partition and is not in the ledger yet. No waiting, no servers.
//!
//! ```text
//! position        launched            (end of) held            expected
//!    |--- in flight ---|--- a draft, held ---|--- records read ---|
//!                       for the proof of its
//!                       holes, then for a lane
//! ```

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::batch::{Gap, Slice};
use crate::position::{Coverage, NextOffset, OffsetRange};
use crate::record::Record;
use crate::store::Position;

/// A share of the byte budget. Records of one turn have it together, and it is given back with the last of them.
pub(super) type Permits = Arc<Vec<OwnedSemaphorePermit>>;

/// Consecutive offsets of one partition, each a record or in a hole.
#[derive(Debug)]
pub(super) struct Draft {
    range: OffsetRange,
    records: Vec<Record>,
    bytes: usize,
    holes: Coverage,
    /// That no message lies in the holes.
    gap: Option<Gap>,
    permits: Permits,
}

impl Draft {
    /// What was read of a range; records in offset order, all of them inside.
    fn new(range: OffsetRange, records: Vec<Record>, bytes: usize, permits: &Permits) -> Self {
        let holes = Coverage::holes(range.from(), range.to(), records.iter().map(|r| r.offset));
        Self { range, records, bytes, holes, gap: None, permits: Arc::clone(permits) }
    }

    /// The offsets to be proven empty before it may be written; none if there are none, or they are.
    pub(super) fn unproven(&self) -> Option<&Coverage> {
        (self.gap.is_none() && !self.holes.is_empty()).then_some(&self.holes)
    }

    /// With the proof that made its holes a gap.
    pub(super) fn proven(self, gap: impl FnOnce(Coverage) -> Gap) -> Self {
        Self { gap: Some(gap(self.holes.clone())), ..self }
    }

    /// The part before the first hole, which needs no proof.
    pub(super) fn before(mut self, hole: OffsetRange) -> Option<Self> {
        self.records.truncate(self.records.partition_point(|r| r.offset.at() < hole.from()));
        let bytes = self.records.iter().map(Record::footprint).sum();
        Some(Self::new(OffsetRange::new(self.range.from(), hole.from())?, self.records, bytes, &self.permits))
    }

    pub(super) fn messages(&self) -> usize {
        self.records.len()
    }

    /// As part of a batch. `reread`: some of its offsets may have been accounted for before.
    fn into_slice(self, position: &Position, reread: bool) -> (Slice, Permits) {
        let Self { range, records, gap, permits, .. } = self;
        (Slice { position_id: position.id, partition: position.partition, range, records, gap, reread }, permits)
    }
}

/// The three stretches behind the position.
#[derive(Debug)]
pub(super) struct Unwritten {
    /// Everything below is in the ledger or on its way there.
    launched: NextOffset,
    held: Option<Draft>,
    read: Vec<Record>,
    read_bytes: usize,
}

impl Unwritten {
    /// Nothing is read from there on.
    pub(super) fn from(position: NextOffset) -> Self {
        Self { launched: position, held: None, read: Vec::new(), read_bytes: 0 }
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
        let records = self.held.as_ref().map_or(&self.read, |held| &held.records);
        records.first().and_then(|r| r.timestamp_ms)
    }

    /// Records and bytes that could be launched now. What waits for its proof is not among them: the other
    /// partitions need its room.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let ready = self.held.as_ref().filter(|held| held.unproven().is_none());
        let (messages, bytes) = ready.map_or((0, 0), |held| (held.records.len(), held.bytes));
        (messages + self.read.len(), bytes + self.read_bytes)
    }

    pub(super) fn push(&mut self, record: Record) {
        self.read_bytes += record.footprint();
        self.read.push(record);
    }

    /// What is to be written next: what was held, once it is proven, else what was read since, and with it the
    /// tail up to `tail`, where nothing was.
    pub(super) fn draft(&mut self, tail: Option<NextOffset>, permits: &Permits) -> Option<Draft> {
        if self.held.is_some() {
            return self.held.take_if(|held| held.unproven().is_none());
        }
        let to = self.expected().max(tail.unwrap_or(self.launched));
        let range = OffsetRange::new(self.launched, to)?;
        let (records, bytes) = (std::mem::take(&mut self.read), std::mem::take(&mut self.read_bytes));
        Some(Draft::new(range, records, bytes, permits))
    }

    /// Nothing behind it is launched before it.
    pub(super) fn hold(&mut self, draft: Draft) {
        self.held = Some(draft);
    }

    /// What was held for its proof.
    pub(super) fn release(&mut self) -> Option<Draft> {
        self.held.take_if(|held| held.unproven().is_some())
    }

    pub(super) fn launch(&mut self, draft: Draft, position: &Position) -> (Slice, Permits) {
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
        *self = Self::from(self.launched);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::GapKind;
    use crate::position::Offset;
    use crate::record::Epoch;

    fn at(n: i64) -> NextOffset {
        NextOffset::new(n).expect("not negative")
    }

    fn position() -> Position {
        Position { id: 7, partition: 0, start: at(0), next: at(5), fence: 1, recorded_to: at(5), anchor: None }
    }

    fn record(offset: i64) -> Record {
        Record {
            partition: 0,
            offset: Offset::new(offset).expect("not negative"),
            epoch: Epoch(1),
            timestamp_ms: None,
            leader_epoch: None,
            key: None,
            value: None,
            headers: vec![],
        }
    }

    fn draft(unwritten: &mut Unwritten) -> Option<Draft> {
        unwritten.draft(None, &Permits::default())
    }

    /// Two records with a hole between them, which is being proven, and one behind.
    fn proving() -> Unwritten {
        let mut unwritten = Unwritten::from(at(5));
        unwritten.push(record(5));
        unwritten.push(record(7));
        let held = draft(&mut unwritten).expect("two records");
        assert_eq!(held.unproven().expect("a hole").to_multirange(), "{[6,7)}");
        unwritten.hold(held);
        unwritten.push(record(8));
        unwritten
    }

    fn gap(offsets: Coverage) -> Gap {
        Gap { kind: GapKind::Transaction, offsets, proof: String::new() }
    }

    #[test]
    fn what_is_read_behind_a_proof_waits_for_it() {
        let mut unwritten = proving();
        assert!(draft(&mut unwritten).is_none());
        assert_eq!((unwritten.waiting().0, unwritten.expected()), (1, at(9)));
        let held = unwritten.release().expect("being proven").proven(gap);
        unwritten.hold(held);
        assert_eq!(unwritten.waiting().0, 3);
        let proven = draft(&mut unwritten).expect("it is");
        let (slice, _) = unwritten.launch(proven, &position());
        slice.assert_tiled();
        assert_eq!((slice.range.to_string(), unwritten.launched()), ("[5, 8)".to_owned(), at(8)));
        assert_eq!(draft(&mut unwritten).expect("what was behind").messages(), 1);
    }

    #[test]
    fn what_is_proven_is_not_released_for_another_proof() {
        let mut unwritten = proving();
        let held = unwritten.release().expect("being proven").proven(gap);
        unwritten.hold(held);
        assert!(unwritten.release().is_none());
    }

    #[test]
    fn what_lies_before_a_hole_is_written_without_a_proof_and_what_lies_behind_is_read_again() {
        let mut unwritten = proving();
        let held = unwritten.release().expect("being proven");
        let hole = held.unproven().expect("a hole").ranges()[0];
        unwritten.forget();
        unwritten.hold(held.before(hole).expect("a record"));
        assert_eq!(unwritten.expected(), at(6));
        let before = draft(&mut unwritten).expect("nothing keeps it");
        let (slice, _) = unwritten.launch(before, &position());
        slice.assert_tiled();
        assert_eq!(slice.range.to_string(), "[5, 6)");
    }

    #[test]
    fn nothing_to_write_is_no_draft() {
        let mut unwritten = Unwritten::from(at(5));
        assert!(unwritten.draft(Some(at(5)), &Permits::default()).is_none());
    }

    #[test]
    fn a_draft_that_begins_with_a_hole_has_nothing_before_it() {
        let mut unwritten = Unwritten::from(at(5));
        unwritten.push(record(6));
        let draft = draft(&mut unwritten).expect("a hole and a record");
        let hole = draft.unproven().expect("a hole").ranges()[0];
        assert!(draft.before(hole).is_none());
    }

    #[test]
    fn the_byte_budget_is_given_back_with_the_last_that_has_a_share() {
        let (first, second) = (&mut Unwritten::from(at(5)), &mut Unwritten::from(at(5)));
        let budget = Arc::new(tokio::sync::Semaphore::new(10));
        let permits = Permits::new(vec![Arc::clone(&budget).try_acquire_many_owned(10).expect("all of it")]);
        first.push(record(6));
        second.push(record(5));
        let held = first.draft(None, &permits).expect("a hole and a record");
        first.hold(held);
        let ready = second.draft(None, &permits).expect("a record");
        drop(permits);
        drop(second.launch(ready, &position()));
        assert_eq!(budget.available_permits(), 0);
        first.forget();
        assert_eq!(budget.available_permits(), 10);
    }
}
