//! The records of a partition that were read and are not in the ledger yet. No waiting, no servers.
//!
//! ```text
//! position        submitted            (end of) pending            expected
//!    |--- in flight ---|--- a draft, pending ---|--- records read ---|
//!                       for the proof of its
//!                       gaps, then for a connection
//! ```

use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

use crate::ledger::positions::Position;
use crate::model::batch::{Gap, Slice};
use crate::model::offset::{Coverage, NextOffset, OffsetRange};
use crate::model::record::Record;

/// A permit of the byte budget. The bytes are free again when it is dropped.
#[derive(Debug, Default)]
pub(super) struct MemoryPermit(Option<OwnedSemaphorePermit>);

impl MemoryPermit {
    pub(super) fn of(permit: OwnedSemaphorePermit) -> Self {
        Self(Some(permit))
    }

    /// Splits off this many bytes, or all that are left: a message larger than the whole budget has a permit of the
    /// whole budget.
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

/// Consecutive offsets of one partition. Each offset has a record or lies in a gap.
#[derive(Debug)]
pub(super) struct Draft {
    range: OffsetRange,
    records: Vec<Record>,
    bytes: usize,
    gaps: Coverage,
    /// The proof that no message lies in the gaps.
    proven: Option<Gap>,
    permit: MemoryPermit,
}

impl Draft {
    /// A draft of a range with its records, which are in offset order and inside the range.
    fn new(range: OffsetRange, records: Vec<Record>, bytes: usize, permit: MemoryPermit) -> Self {
        let gaps = Coverage::missing_between(range.from(), range.to(), records.iter().map(|r| r.offset));
        Self { range, records, bytes, gaps, proven: None, permit }
    }

    /// The gaps that must be proven empty before the draft may be written; `None` without gaps, or with a proof.
    pub(super) fn unproven(&self) -> Option<&Coverage> {
        (self.proven.is_none() && !self.gaps.is_empty()).then_some(&self.gaps)
    }

    /// The draft with the proof of its gaps.
    pub(super) fn proven(self, gap: impl FnOnce(Coverage) -> Gap) -> Self {
        Self { proven: Some(gap(self.gaps.clone())), ..self }
    }

    pub(super) fn first_gap(&self) -> Option<OffsetRange> {
        self.gaps.ranges().first().copied()
    }

    /// The part before the first gap, which needs no proof; `None` if the draft begins with the gap.
    pub(super) fn before_first_gap(mut self) -> Option<Self> {
        let gap = self.first_gap()?;
        self.records.truncate(self.records.partition_point(|r| r.offset.at() < gap.from()));
        let bytes = self.records.iter().map(Record::footprint).sum();
        Some(Self::new(OffsetRange::new(self.range.from(), gap.from())?, self.records, bytes, self.permit))
    }

    /// Cuts the draft behind the first records that fit into this many bytes; it keeps at least one record. The open
    /// proof is valid for the gaps that are left.
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

    /// The slice of a batch. `reread`: some of its offsets may be accounted for already.
    fn into_slice(self, position: &Position, reread: bool) -> (Slice, MemoryPermit) {
        let Self { range, records, proven, permit, .. } = self;
        let (position_id, partition) = (position.id, position.partition.clone());
        (Slice { position_id, partition, range, records, gap: proven, reread }, permit)
    }
}

/// The three ranges of offsets behind the position: in flight, pending, read.
#[derive(Debug)]
pub(super) struct PartitionBuffer {
    /// Everything below is in the ledger or in flight.
    submitted: NextOffset,
    pending: Option<Draft>,
    /// The number of the last proof that was requested, and the time of the request.
    proof_id: u64,
    proving_since: Option<Instant>,
    /// The records behind the pending draft were given up and must be read again.
    parked: bool,
    read: Vec<Record>,
    read_bytes: usize,
    permit: MemoryPermit,
    /// Everything below this offset was delivered, as is known since this time.
    end: Option<(NextOffset, Instant)>,
}

impl PartitionBuffer {
    /// An empty buffer behind a position.
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

    /// The offset at which the next record is expected.
    pub(super) fn expected(&self) -> NextOffset {
        let behind = self.pending.as_ref().map_or(self.submitted, |pending| pending.range.to());
        self.read.last().map_or(behind, |r| r.offset.next())
    }

    /// Whether all records that were read are submitted.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_none() && self.read.is_empty()
    }

    /// The timestamp of the first message that is not submitted (milliseconds since 1970).
    pub(super) fn first_ms(&self) -> Option<i64> {
        let pending = self.pending.iter().flat_map(|pending| &pending.records);
        pending.chain(&self.read).next().and_then(|r| r.timestamp_ms)
    }

    /// Messages and bytes that count against the limits of the next batch. A draft that waits for its proof does not
    /// count, because the other partitions need the room meanwhile. Records behind it do count, so that they never
    /// become more than a batch may hold.
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

    /// Notes that everything below `end` was delivered.
    pub(super) fn reached(&mut self, end: NextOffset, now: Instant) {
        self.end = Some((end, now));
    }

    /// Takes the draft that can be written now: the pending draft if it is proven, else the records that were read if
    /// they have no gap. A tail without records (transaction markers) belongs to it if its end is known for
    /// `tail_after`: on a busy topic the next record covers the tail.
    pub(super) fn take_ready(&mut self, tail_after: Duration, now: Instant) -> Option<Draft> {
        if self.pending.is_some() {
            return self.pending.take_if(|pending| pending.unproven().is_none());
        }
        let to = self.read_to(tail_after, now);
        if self.has_gaps(to) { None } else { self.draft(to) }
    }

    /// Makes the records that were read the pending draft if they have gaps. Returns the gaps to be proven and the id
    /// that the proof must have.
    pub(super) fn take_for_proof(&mut self, tail_after: Duration, now: Instant) -> Option<(u64, Coverage)> {
        let to = self.read_to(tail_after, now);
        if self.pending.is_some() || !self.has_gaps(to) {
            return None;
        }
        self.pending = self.draft(to);
        self.proof_id += 1;
        self.proving_since = Some(now);
        self.pending.as_ref().map(|pending| (self.proof_id, pending.gaps.clone()))
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

    /// Makes a draft the pending one again. Nothing behind it is submitted before it.
    pub(super) fn put_back(&mut self, draft: Draft) {
        self.pending = Some(draft);
    }

    /// Takes the draft that waits for the proof with this id; `None` if the draft was dropped meanwhile.
    pub(super) fn take_proven(&mut self, proof_id: u64) -> Option<Draft> {
        self.pending.take_if(|pending| pending.unproven().is_some() && proof_id == self.proof_id)
    }

    /// How long the pending draft has waited for its proof; zero if none waits.
    pub(super) fn proving_for(&self, now: Instant) -> Duration {
        let is_proving = self.pending.as_ref().is_some_and(|pending| pending.unproven().is_some());
        self.proving_since.filter(|_| is_proving).map_or(Duration::ZERO, |since| now.duration_since(since))
    }

    /// Keeps at most this many bytes of the pending draft and nothing behind it. The rest must be read again. Returns
    /// whether something was given up.
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

    /// Whether the records that were given up must be read now. Returns true once, when no draft waits for a proof.
    pub(super) fn resume(&mut self) -> bool {
        let is_proving = self.pending.as_ref().is_some_and(|pending| pending.unproven().is_some());
        !is_proving && std::mem::take(&mut self.parked)
    }

    pub(super) fn submit(&mut self, draft: Draft, position: &Position) -> (Slice, MemoryPermit) {
        self.submitted = draft.range.to();
        // After a rewind, these offsets may have outcomes or gaps.
        let reread = draft.range.from() < position.recorded_to;
        draft.into_slice(position, reread)
    }

    /// Drops everything that is not submitted.
    pub(super) fn forget(&mut self) {
        self.restart_at(self.submitted);
    }

    /// Drops everything. The counter of proofs stays: the answer to an earlier proof may still come.
    pub(super) fn restart_at(&mut self, position: NextOffset) {
        *self = Self { proof_id: self.proof_id, ..Self::from(position) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::batch::GapKind;
    use crate::model::topic::Topic;

    fn at(n: i64) -> NextOffset {
        NextOffset::new(n).expect("not negative")
    }

    fn now() -> Instant {
        Instant::now()
    }

    fn position() -> Position {
        Position {
            id: 7,
            partition: Topic::from("events").partition(0),
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

    /// Two records with a gap between them, whose proof is open, and one record behind.
    fn proving() -> PartitionBuffer {
        let mut buffer = from(5, [5, 7]);
        assert!(buffer.take_ready(Duration::ZERO, now()).is_none());
        assert_eq!(buffer.take_for_proof(Duration::ZERO, now()).expect("a gap").1.to_multirange(), "{[6,7)}");
        buffer.push(Record::tombstone(8), MemoryPermit::default());
        buffer
    }

    fn gap(offsets: Coverage) -> Gap {
        Gap { kind: GapKind::Transaction, offsets, proof: String::new() }
    }

    #[test]
    fn records_behind_an_open_proof_wait_for_it() {
        let mut buffer = proving();
        assert!(
            buffer.take_ready(Duration::ZERO, now()).is_none()
                && buffer.take_for_proof(Duration::ZERO, now()).is_none()
        );
        assert_eq!((buffer.waiting().0, buffer.expected()), (1, at(9)));
        let pending = buffer.take_proven(1).expect("its proof is open").proven(gap);
        buffer.put_back(pending);
        assert_eq!(buffer.waiting().0, 3);
        let proven = buffer.take_ready(Duration::ZERO, now()).expect("it is proven");
        let (slice, _) = buffer.submit(proven, &position());
        slice.assert_tiled();
        assert_eq!((slice.range.to_string(), buffer.submitted()), ("[5, 8)".to_owned(), at(8)));
        assert_eq!(buffer.take_ready(Duration::ZERO, now()).expect("the record behind").messages(), 1);
    }

    #[test]
    fn a_proven_draft_is_not_taken_for_another_proof() {
        let mut buffer = proving();
        let pending = buffer.take_proven(1).expect("its proof is open").proven(gap);
        buffer.put_back(pending);
        assert!(buffer.take_proven(1).is_none());
    }

    #[test]
    fn a_proof_of_a_dropped_draft_has_no_effect() {
        let mut buffer = proving();
        buffer.restart_at(at(5));
        buffer.push(Record::tombstone(7), MemoryPermit::default());
        assert_eq!(buffer.take_for_proof(Duration::ZERO, now()).expect("a gap").0, 2);
        assert!(buffer.take_proven(1).is_none());
        assert!(buffer.take_proven(2).is_some());
    }

    #[test]
    fn records_before_an_unproven_gap_are_written_and_records_behind_it_are_read_again() {
        let mut buffer = proving();
        let pending = buffer.take_proven(1).expect("its proof is open");
        buffer.forget();
        buffer.put_back(pending.before_first_gap().expect("a record"));
        assert_eq!(buffer.expected(), at(6));
        let before = buffer.take_ready(Duration::ZERO, now()).expect("it needs no proof");
        let (slice, _) = buffer.submit(before, &position());
        slice.assert_tiled();
        assert_eq!(slice.range.to_string(), "[5, 6)");
    }

    #[test]
    fn a_draft_that_begins_with_a_gap_has_no_part_before_it() {
        let mut buffer = from(5, [6]);
        assert_eq!(buffer.take_for_proof(Duration::ZERO, now()).expect("a gap").1.to_multirange(), "{[5,6)}");
        assert!(buffer.take_proven(1).expect("its proof is open").before_first_gap().is_none());
    }

    #[test]
    fn a_tail_behind_the_last_record_is_a_gap_after_its_end_is_known_for_long_enough() {
        let mut buffer = from(5, [5]);
        buffer.reached(at(8), now());
        assert!(buffer.take_for_proof(Duration::from_secs(60), now()).is_none());
        assert_eq!(buffer.take_for_proof(Duration::ZERO, now()).expect("a gap").1.to_multirange(), "{[6,8)}");
        assert_eq!(buffer.expected(), at(8));
    }

    #[test]
    fn a_record_replaces_the_end_that_was_reached_before_it() {
        let mut buffer = from(5, []);
        buffer.reached(at(8), now());
        buffer.push(Record::tombstone(9), MemoryPermit::default());
        assert_eq!(buffer.take_for_proof(Duration::ZERO, now()).expect("a gap").1.to_multirange(), "{[5,9)}");
    }

    #[test]
    fn an_empty_buffer_makes_no_draft() {
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
    fn a_partition_keeps_no_more_than_its_share_while_a_proof_takes_long() {
        let budget = Arc::new(tokio::sync::Semaphore::new(1 << 20));
        let size = Record::tombstone(0).footprint();
        let mut buffer = PartitionBuffer::from(at(5));
        let read = |buffer: &mut PartitionBuffer, offset| {
            let permit = Arc::clone(&budget).try_acquire_many_owned(size as u32).expect("there is enough");
            buffer.push(Record::tombstone(offset), MemoryPermit::of(permit));
        };
        [6, 7, 9, 10].into_iter().for_each(|offset| read(&mut buffer, offset));
        buffer.take_for_proof(Duration::ZERO, now()).expect("two gaps");
        [11, 12].into_iter().for_each(|offset| read(&mut buffer, offset));
        assert!(!buffer.give_up_reservation(6 * size), "it has no more than its permit");
        assert!(buffer.give_up_reservation(2 * size) && !buffer.give_up_reservation(2 * size));
        assert_eq!(budget.available_permits(), (1 << 20) - 2 * size);
        assert_eq!((buffer.expected(), buffer.waiting().0), (at(8), 0));
        assert!(!buffer.resume(), "its proof is still open");
        let pending = buffer.take_proven(1).expect("its proof is open").proven(gap);
        buffer.put_back(pending);
        assert!(buffer.resume() && !buffer.resume());
        let proven = buffer.take_ready(Duration::ZERO, now()).expect("it is proven");
        let (slice, _) = buffer.submit(proven, &position());
        slice.assert_tiled();
        assert_eq!(slice.range.to_string(), "[5, 8)");
    }

    #[test]
    fn a_draft_that_is_cut_before_its_first_gap_needs_no_proof() {
        let mut buffer = from(5, [5, 6, 8]);
        buffer.take_for_proof(Duration::ZERO, now()).expect("a gap");
        assert!(buffer.give_up_reservation(2 * Record::tombstone(0).footprint()));
        assert!(buffer.resume());
        assert_eq!((buffer.expected(), buffer.proving_for(now())), (at(7), Duration::ZERO));
    }

    #[test]
    fn a_permit_of_the_byte_budget_is_kept_until_its_records_are_written_or_dropped() {
        let budget = Arc::new(tokio::sync::Semaphore::new(10));
        let mut chunk = MemoryPermit::of(Arc::clone(&budget).try_acquire_many_owned(10).expect("all of it"));
        let (mut one, mut other) = (PartitionBuffer::from(at(5)), PartitionBuffer::from(at(5)));
        one.push(Record::tombstone(5), chunk.split(2));
        other.push(Record::tombstone(6), chunk.split(3));
        // Larger than all that is left.
        other.push(Record::tombstone(7), chunk.split(1_000_000));
        drop(chunk);
        let draft = one.take_ready(Duration::ZERO, now()).expect("a record");
        let submitted = one.submit(draft, &position());
        assert_eq!(budget.available_permits(), 0);
        drop(submitted);
        assert_eq!(budget.available_permits(), 2);
        other.take_for_proof(Duration::ZERO, now()).expect("a gap");
        assert_eq!(budget.available_permits(), 2);
        other.forget();
        assert_eq!(budget.available_permits(), 10);
    }
}
