//! What was read of a partition and is not in the ledger yet. No waiting, no servers.
//!
//! ```text
//! position        submitted            (end of) pending            expected
//!    |--- in flight ---|--- a draft, pending ---|--- records read ---|
//!                       for the proof of its
//!                       holes, then for a connection
//! ```

use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

use crate::ledger::start::positions::Position;
use crate::model::batch::{Gap, Slice};
use crate::model::offset::{Coverage, NextOffset, OffsetRange};
use crate::model::record::Record;

/// A permit of the byte budget, given back when it is dropped.
#[derive(Debug, Default)]
pub(super) struct MemoryPermit(Option<OwnedSemaphorePermit>);

impl MemoryPermit {
    pub(super) fn of(permit: OwnedSemaphorePermit) -> Self {
        Self(Some(permit))
    }

    /// So many bytes of it, or what is left: a message larger than the whole budget has a permit of just that.
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
    permit: MemoryPermit,
}

impl Draft {
    /// What was read of a range; records in offset order, all of them inside.
    fn new(range: OffsetRange, records: Vec<Record>, bytes: usize, permit: MemoryPermit) -> Self {
        let holes = Coverage::missing_between(range.from(), range.to(), records.iter().map(|r| r.offset));
        Self { range, records, bytes, holes, gap: None, permit }
    }

    /// The offsets to be proven empty before it may be written; none if there are none, or they are.
    pub(super) fn unproven(&self) -> Option<&Coverage> {
        (self.gap.is_none() && !self.holes.is_empty()).then_some(&self.holes)
    }

    /// With the proof that made its holes a gap.
    pub(super) fn proven(self, gap: impl FnOnce(Coverage) -> Gap) -> Self {
        Self { gap: Some(gap(self.holes.clone())), ..self }
    }

    pub(super) fn first_gap(&self) -> Option<OffsetRange> {
        self.holes.ranges().first().copied()
    }

    /// The part before the first hole, which needs no proof.
    pub(super) fn before_first_hole(mut self) -> Option<Self> {
        let hole = self.first_gap()?;
        self.records.truncate(self.records.partition_point(|r| r.offset.at() < hole.from()));
        let bytes = self.records.iter().map(Record::footprint).sum();
        Some(Self::new(OffsetRange::new(self.range.from(), hole.from())?, self.records, bytes, self.permit))
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
        let permit = self.permit.split(kept_bytes);
        let range = OffsetRange::new(self.range.from(), end).expect("it holds a record");
        Self::new(range, self.records, kept_bytes, permit)
    }

    pub(super) fn messages(&self) -> usize {
        self.records.len()
    }

    /// As part of a batch. `reread`: some of its offsets may have been accounted for before.
    fn into_slice(self, position: &Position, reread: bool) -> (Slice, MemoryPermit) {
        let Self { range, records, gap, permit, .. } = self;
        (Slice { position_id: position.id, partition: position.partition, range, records, gap, reread }, permit)
    }
}

/// The three stretches behind the position.
#[derive(Debug)]
pub(super) struct PartitionBuffer {
    /// Everything below is in the ledger or on its way there.
    submitted: NextOffset,
    pending: Option<Draft>,
    /// Of the draft that was pending last, and when it was pending.
    proof_id: u64,
    proving_since: Option<Instant>,
    /// What lies behind the pending draft was given back, and is to be read again.
    parked: bool,
    read: Vec<Record>,
    read_bytes: usize,
    permit: MemoryPermit,
    /// Up to where everything was delivered, and since when that is known.
    end: Option<(NextOffset, Instant)>,
}

impl PartitionBuffer {
    /// Nothing is read from there on.
    pub(super) fn from(position: NextOffset) -> Self {
        Self {
            submitted: position,
            pending: None,
            proof_id: 0,
            proving_since: None,
            parked: false,
            read: Vec::new(),
            read_bytes: 0,
            permit: MemoryPermit::default(),
            end: None,
        }
    }

    pub(super) fn submitted(&self) -> NextOffset {
        self.submitted
    }

    /// Where the next record is expected.
    pub(super) fn expected(&self) -> NextOffset {
        let behind = self.pending.as_ref().map_or(self.submitted, |pending| pending.range.to());
        self.read.last().map_or(behind, |r| r.offset.next())
    }

    /// Whether all that was read is submitted.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_none() && self.read.is_empty()
    }

    /// When the first message that is not submitted was written.
    pub(super) fn first_ms(&self) -> Option<i64> {
        let pending = self.pending.iter().flat_map(|pending| &pending.records);
        pending.chain(&self.read).next().and_then(|r| r.timestamp_ms)
    }

    /// Records and bytes that take the room of the next batch. What is being proven does not: the other partitions
    /// need it meanwhile. What was read behind it does, or it would become more than a batch may put_back.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let ready = self.pending.as_ref().filter(|pending| pending.unproven().is_none());
        let (messages, bytes) = ready.map_or((0, 0), |pending| (pending.records.len(), pending.bytes));
        (messages + self.read.len(), bytes + self.read_bytes)
    }

    pub(super) fn push(&mut self, record: Record, permit: MemoryPermit) {
        self.end = None;
        self.permit.add(permit);
        self.read_bytes += record.footprint();
        self.read.push(record);
    }

    /// Everything below `end` was delivered.
    pub(super) fn reached(&mut self, end: NextOffset, now: Instant) {
        self.end = Some((end, now));
    }

    /// What can be written as it is: what was pending, once it is proven, else what was read since, if no hole is in
    /// it. An idle tail behind the last record (transaction markers) counts once its end is known for `tail_after`:
    /// on a busy topic the next record covers it anyway.
    pub(super) fn take_ready(&mut self, tail_after: Duration, now: Instant) -> Option<Draft> {
        if self.pending.is_some() {
            return self.pending.take_if(|pending| pending.unproven().is_none());
        }
        let to = self.read_to(tail_after, now);
        if self.has_gaps(to) { None } else { self.draft(to) }
    }

    /// Holds what was read if there are holes in it: these are to be proven, and the proof is to come with the
    /// proof_id.
    pub(super) fn take_for_proof(&mut self, tail_after: Duration, now: Instant) -> Option<(u64, Coverage)> {
        let to = self.read_to(tail_after, now);
        if self.pending.is_some() || !self.has_gaps(to) {
            return None;
        }
        self.pending = self.draft(to);
        self.proof_id += 1;
        self.proving_since = Some(now);
        self.pending.as_ref().map(|pending| (self.proof_id, pending.holes.clone()))
    }

    fn read_to(&self, tail_after: Duration, now: Instant) -> NextOffset {
        let tail = self.end.filter(|(_, since)| now.duration_since(*since) >= tail_after).map(|(end, _)| end);
        self.expected().max(tail.unwrap_or(self.submitted))
    }

    fn has_gaps(&self, to: NextOffset) -> bool {
        to.get() - self.submitted.get() > self.read.len() as i64
    }

    fn draft(&mut self, to: NextOffset) -> Option<Draft> {
        let range = OffsetRange::new(self.submitted, to)?;
        let (records, bytes) = (std::mem::take(&mut self.read), std::mem::take(&mut self.read_bytes));
        Some(Draft::new(range, records, bytes, std::mem::take(&mut self.permit)))
    }

    /// Nothing behind it is submitted before it.
    pub(super) fn put_back(&mut self, draft: Draft) {
        self.pending = Some(draft);
    }

    /// What was pending for the proof that comes with this proof_id; nothing if it was forgotten since.
    pub(super) fn take_proven_without_gaps(&mut self, proof_id: u64) -> Option<Draft> {
        self.pending.take_if(|pending| pending.unproven().is_some() && proof_id == self.proof_id)
    }

    /// How long the draft that is pending has waited for its proof; zero if none does.
    pub(super) fn proving_for(&self, now: Instant) -> Duration {
        let is_proving = self.pending.as_ref().is_some_and(|pending| pending.unproven().is_some());
        self.proving_since.filter(|_| is_proving).map_or(Duration::ZERO, |since| now.duration_since(since))
    }

    /// Keeps at most so many bytes of the pending draft and nothing behind it; what is given up is to be read again.
    /// Returns whether something was.
    pub(super) fn give_up_reservation(&mut self, bytes: usize) -> bool {
        let Some(pending) = self.pending.take() else { return false };
        let (held_bytes, behind_bytes) = (pending.bytes, self.read_bytes);
        if self.parked || held_bytes + behind_bytes <= bytes {
            self.pending = Some(pending);
            return false;
        }
        self.pending = Some(pending.cut_to(bytes));
        (self.read, self.read_bytes, self.permit, self.end) = (Vec::new(), 0, MemoryPermit::default(), None);
        self.parked = true;
        true
    }

    /// Whether what was given up is to be read now: nothing waits for a proof any more.
    pub(super) fn resume(&mut self) -> bool {
        let is_proving = self.pending.as_ref().is_some_and(|pending| pending.unproven().is_some());
        !is_proving && std::mem::take(&mut self.parked)
    }

    pub(super) fn submit(&mut self, draft: Draft, position: &Position) -> (Slice, MemoryPermit) {
        self.submitted = draft.range.to();
        // Offsets of before a rewind may have outcomes or gaps.
        let reread = draft.range.from() < position.recorded_to;
        draft.into_slice(position, reread)
    }

    /// Drops what is not submitted.
    pub(super) fn forget(&mut self) {
        self.restart_at(self.submitted);
    }

    /// Drops everything. No proof_id is ever given twice: an earlier proof may still come.
    pub(super) fn restart_at(&mut self, position: NextOffset) {
        *self = Self { proof_id: self.proof_id, ..Self::from(position) };
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

    fn now() -> Instant {
        Instant::now()
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

    fn from(position: i64, offsets: impl IntoIterator<Item = i64>) -> PartitionBuffer {
        let mut buffer = PartitionBuffer::from(at(position));
        offsets.into_iter().for_each(|offset| buffer.push(Record::tombstone(offset), MemoryPermit::default()));
        buffer
    }

    /// Two records with a hole between them, which is being proven, and one behind.
    fn proving() -> PartitionBuffer {
        let mut buffer = from(5, [5, 7]);
        assert!(buffer.take_ready(Duration::ZERO, now()).is_none());
        assert_eq!(buffer.take_for_proof(Duration::ZERO, now()).expect("a hole").1.to_multirange(), "{[6,7)}");
        buffer.push(Record::tombstone(8), MemoryPermit::default());
        buffer
    }

    fn gap(offsets: Coverage) -> Gap {
        Gap { kind: GapKind::Transaction, offsets, proof: String::new() }
    }

    #[test]
    fn what_is_read_behind_a_proof_waits_for_it() {
        let mut buffer = proving();
        assert!(
            buffer.take_ready(Duration::ZERO, now()).is_none()
                && buffer.take_for_proof(Duration::ZERO, now()).is_none()
        );
        assert_eq!((buffer.waiting().0, buffer.expected()), (1, at(9)));
        let pending = buffer.take_proven_without_gaps(1).expect("being proven").proven(gap);
        buffer.put_back(pending);
        assert_eq!(buffer.waiting().0, 3);
        let proven = buffer.take_ready(Duration::ZERO, now()).expect("it is");
        let (slice, _) = buffer.submit(proven, &position());
        slice.assert_tiled();
        assert_eq!((slice.range.to_string(), buffer.submitted()), ("[5, 8)".to_owned(), at(8)));
        assert_eq!(buffer.take_ready(Duration::ZERO, now()).expect("what was behind").messages(), 1);
    }

    #[test]
    fn what_is_proven_is_not_released_for_another_proof() {
        let mut buffer = proving();
        let pending = buffer.take_proven_without_gaps(1).expect("being proven").proven(gap);
        buffer.put_back(pending);
        assert!(buffer.take_proven_without_gaps(1).is_none());
    }

    #[test]
    fn a_proof_of_what_was_forgotten_since_proves_nothing() {
        let mut buffer = proving();
        buffer.restart_at(at(5));
        buffer.push(Record::tombstone(7), MemoryPermit::default());
        assert_eq!(buffer.take_for_proof(Duration::ZERO, now()).expect("a hole").0, 2);
        assert!(buffer.take_proven_without_gaps(1).is_none());
        assert!(buffer.take_proven_without_gaps(2).is_some());
    }

    #[test]
    fn what_lies_before_a_hole_is_written_without_a_proof_and_what_lies_behind_is_read_again() {
        let mut buffer = proving();
        let pending = buffer.take_proven_without_gaps(1).expect("being proven");
        buffer.forget();
        buffer.put_back(pending.before_first_hole().expect("a record"));
        assert_eq!(buffer.expected(), at(6));
        let before = buffer.take_ready(Duration::ZERO, now()).expect("nothing keeps it");
        let (slice, _) = buffer.submit(before, &position());
        slice.assert_tiled();
        assert_eq!(slice.range.to_string(), "[5, 6)");
    }

    #[test]
    fn what_begins_with_a_hole_has_nothing_before_it() {
        let mut buffer = from(5, [6]);
        assert_eq!(buffer.take_for_proof(Duration::ZERO, now()).expect("a hole").1.to_multirange(), "{[5,6)}");
        assert!(buffer.take_proven_without_gaps(1).expect("being proven").before_first_hole().is_none());
    }

    #[test]
    fn a_tail_behind_the_last_record_is_a_hole_once_its_end_is_known_for_long_enough() {
        let mut buffer = from(5, [5]);
        buffer.reached(at(8), now());
        assert!(buffer.take_for_proof(Duration::from_secs(60), now()).is_none());
        assert_eq!(buffer.take_for_proof(Duration::ZERO, now()).expect("a hole").1.to_multirange(), "{[6,8)}");
        assert_eq!(buffer.expected(), at(8));
    }

    #[test]
    fn an_end_that_was_reached_before_is_forgotten_when_a_record_follows() {
        let mut buffer = from(5, []);
        buffer.reached(at(8), now());
        buffer.push(Record::tombstone(9), MemoryPermit::default());
        assert_eq!(buffer.take_for_proof(Duration::ZERO, now()).expect("a hole").1.to_multirange(), "{[5,9)}");
    }

    #[test]
    fn nothing_to_write_is_no_draft() {
        let mut buffer = from(5, []);
        for end in [5, 3] {
            buffer.reached(at(end), now());
            assert!(
                buffer.take_ready(Duration::ZERO, now()).is_none()
                    && buffer.take_for_proof(Duration::ZERO, now()).is_none()
            );
        }
    }

    #[test]
    fn while_a_proof_takes_long_its_partition_keeps_no_more_than_its_share() {
        let budget = Arc::new(tokio::sync::Semaphore::new(1 << 20));
        let size = Record::tombstone(0).footprint();
        let mut buffer = PartitionBuffer::from(at(5));
        let read = |buffer: &mut PartitionBuffer, offset| {
            let permit = Arc::clone(&budget).try_acquire_many_owned(size as u32).expect("there is enough");
            buffer.push(Record::tombstone(offset), MemoryPermit::of(permit));
        };
        [6, 7, 9, 10].into_iter().for_each(|offset| read(&mut buffer, offset));
        buffer.take_for_proof(Duration::ZERO, now()).expect("two holes");
        [11, 12].into_iter().for_each(|offset| read(&mut buffer, offset));
        assert!(!buffer.give_up_reservation(6 * size), "it has no more than its permit");
        assert!(buffer.give_up_reservation(2 * size) && !buffer.give_up_reservation(2 * size));
        assert_eq!(budget.available_permits(), (1 << 20) - 2 * size);
        assert_eq!((buffer.expected(), buffer.waiting().0), (at(8), 0));
        assert!(!buffer.resume(), "its proof is still to come");
        let pending = buffer.take_proven_without_gaps(1).expect("being proven").proven(gap);
        buffer.put_back(pending);
        assert!(buffer.resume() && !buffer.resume());
        let proven = buffer.take_ready(Duration::ZERO, now()).expect("it is");
        let (slice, _) = buffer.submit(proven, &position());
        slice.assert_tiled();
        assert_eq!(slice.range.to_string(), "[5, 8)");
    }

    #[test]
    fn what_is_cut_before_its_first_hole_needs_no_proof_and_is_read_on_behind() {
        let mut buffer = from(5, [5, 6, 8]);
        buffer.take_for_proof(Duration::ZERO, now()).expect("a hole");
        assert!(buffer.give_up_reservation(2 * Record::tombstone(0).footprint()));
        assert!(buffer.resume());
        assert_eq!((buffer.expected(), buffer.proving_for(now())), (at(7), Duration::ZERO));
    }

    #[test]
    fn a_share_of_the_byte_budget_is_kept_until_its_records_are_written_or_dropped() {
        let budget = Arc::new(tokio::sync::Semaphore::new(10));
        let mut chunk = MemoryPermit::of(Arc::clone(&budget).try_acquire_many_owned(10).expect("all of it"));
        let (mut one, mut other) = (PartitionBuffer::from(at(5)), PartitionBuffer::from(at(5)));
        one.push(Record::tombstone(5), chunk.split(2));
        other.push(Record::tombstone(6), chunk.split(3));
        // Larger than all that is left.
        other.push(Record::tombstone(7), chunk.split(1_000_000));
        drop(chunk);
        let take_ready = one.take_ready(Duration::ZERO, now()).expect("a record");
        let submitted = one.submit(take_ready, &position());
        assert_eq!(budget.available_permits(), 0);
        drop(submitted);
        assert_eq!(budget.available_permits(), 2);
        other.take_for_proof(Duration::ZERO, now()).expect("a hole");
        assert_eq!(budget.available_permits(), 2);
        other.forget();
        assert_eq!(budget.available_permits(), 10);
    }
}
