//! The state of one partition while the pipeline runs: its position, its records that are read and not written yet, and
//! whether it is being read at all. It has no clock, no server, and awaits nothing.
//!
//! ```text
//!              watermarks and anchor are as expected
//! Troubled ----------------------------------------------> Reading ---> (records, ends)
//!    ^  |                                                    |  |
//!    |  +-- a loss, a difference --> Halted <----------------+  |
//!    +------------------- fetching failed ----------------------+
//! ```
//!
//! A partition begins suspended (`Troubled`): it is read after its last stored message was found in the log. A halted
//! partition drops the records that are not submitted yet; its position is in PostgreSQL.

use std::time::{Duration, Instant};

use super::event::{Action, CommittedSlice, LogLine};
use super::partition_buffer::{Draft, MemoryPermit, PartitionBuffer};
use super::stall_detector::{DeliveryCount, StallDetector};
use crate::kafka::reader::Assignment;
use crate::ledger::positions::Position;
use crate::model::batch::Slice;
use crate::model::headroom::{Alarms, LogObservations};
use crate::model::offset::{NextOffset, OffsetRange, Watermarks};
use crate::model::partition_state::{Halt, PartitionState};
use crate::model::record::{AssignmentEpoch, Record};

/// For this long after a commit we assume that the next unread message is about as old as the last stored one.
const RECENT_COMMIT_WINDOW: Duration = Duration::from_secs(60);

const NO_LEADER: &str = "no leader answers for it; start the brokers that lead it, or elect a leader \
                         (kafka-leader-election.sh)";

/// The first state of each partition.
pub(super) fn unchecked() -> PartitionState {
    PartitionState::Troubled("the last stored message is not checked yet".into())
}

/// The result of a delivered record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ChunkResult {
    Accepted,
    /// The record is of an earlier assignment, or the partition is halted.
    Stale,
    /// The offset was read already: librdkafka delivered the record twice.
    Duplicate,
}

/// The state of one partition.
#[derive(Debug)]
pub(super) struct Partition {
    position: Position,
    moved_at: Instant,
    epoch: AssignmentEpoch,
    state: PartitionState,
    /// The epoch in which the anchor check was requested; `None` without an open check.
    asked_in: Option<AssignmentEpoch>,
    pub(super) buffer: PartitionBuffer,
    stall: StallDetector,
    /// The number of failures in a row, and the time of the first one.
    failures: u32,
    failing_since: Option<Instant>,
    /// Kafka's reason for the last failed fetch, until something of the partition is delivered again.
    refusal: Option<String>,
    /// The assignment after a refusal, and the time of its begin.
    trial: Option<(AssignmentEpoch, Instant)>,
    /// The watermarks of the last snapshot that showed them.
    pub(super) marks: Option<Watermarks>,
    /// Whether the last snapshot showed the watermarks.
    marks_are_current: bool,
    /// The begin of a suspension that was logged.
    suspended_since: Option<Instant>,
    pub(super) watched: LogObservations,
    pub(super) alarms: Alarms,
    /// The timestamps of the message at the position and of the last stored message (milliseconds since 1970).
    next_ms: Option<i64>,
    stored_ms: Option<i64>,
}

impl Partition {
    pub(super) fn new(position: Position, marks: Option<Watermarks>, now: Instant) -> Self {
        let mut watched = LogObservations::default();
        marks.into_iter().for_each(|marks| watched.observe(now, marks));
        Self {
            asked_in: None,
            buffer: PartitionBuffer::from(position.next),
            position,
            moved_at: now,
            epoch: AssignmentEpoch(1),
            state: unchecked(),
            stall: StallDetector::default(),
            failures: 0,
            failing_since: None,
            refusal: None,
            trial: None,
            marks_are_current: marks.is_some(),
            marks,
            suspended_since: None,
            watched,
            alarms: Alarms::default(),
            next_ms: None,
            stored_ms: None,
        }
    }

    pub(super) fn position(&self) -> &Position {
        &self.position
    }

    pub(super) fn state(&self) -> &PartitionState {
        &self.state
    }

    /// Whether every offset below `end` is in the ledger. Only for a partition that is being read: a position beyond
    /// the log end is no end.
    pub(super) fn has_read_to(&self, end: NextOffset) -> bool {
        self.state == PartitionState::Reading && self.position.next >= end
    }

    pub(super) fn epoch(&self) -> AssignmentEpoch {
        self.epoch
    }

    /// The offset at which the next record is expected: behind everything read so far.
    pub(super) fn expected(&self) -> NextOffset {
        self.buffer.expected()
    }

    fn assignment(&self) -> Assignment {
        let from = self.expected();
        // The leader epoch is known only if the last stored message lies just before: a marker may have a later epoch.
        let previous = self.position.anchor.filter(|a| a.offset.next() == from && self.failures == 0);
        let leader_epoch = previous.and_then(|a| a.leader_epoch);
        Assignment { partition: self.position.partition.clone(), from, epoch: self.epoch, leader_epoch }
    }

    /// Takes the watermarks of a snapshot.
    pub(super) fn set_watermarks(&mut self, marks: Watermarks, now: Instant) {
        self.marks = Some(marks);
        self.marks_are_current = true;
        self.watched.observe(now, marks);
        self.note_log_end();
    }

    /// The offsets that the log is known to have had and that were never read. Offsets in flight count as read.
    pub(super) fn unread(&self) -> Option<OffsetRange> {
        self.position.unread_from(self.buffer.submitted())
    }

    /// Keeps the highest log end, if the log is known to be the one that is read.
    fn note_log_end(&mut self) {
        let is_known = match &self.state {
            PartitionState::Reading => true,
            PartitionState::Troubled(_) => false,
            PartitionState::Halted(halt) => !halt.reason.is_of_another_log(),
        };
        if let Some(marks) = self.marks.filter(|_| is_known) {
            self.position.log_end = self.position.log_end.max(Some(marks.log_end));
        }
    }

    /// The timestamp of the next unread message, or an earlier one (milliseconds since 1970). The timestamp of the last
    /// stored message is an estimate only while messages are committed: after an idle week it says nothing.
    pub(super) fn unread_ms(&self, now: Instant) -> Option<i64> {
        let is_flowing = now.saturating_duration_since(self.moved_at) < RECENT_COMMIT_WINDOW;
        self.next_ms.or(self.stored_ms.filter(|_| is_flowing))
    }

    /// Notes that the last snapshot did not show the watermarks.
    pub(super) fn unseen(&mut self) {
        self.marks_are_current = false;
    }

    /// The watermarks, unless the last snapshot did not show them.
    pub(super) fn current_marks(&self) -> Option<Watermarks> {
        self.marks.filter(|_| self.marks_are_current)
    }

    /// The last stable offset less the position, in offsets; `None` if the last snapshot did not show the partition.
    pub(super) fn lag(&self) -> Option<i64> {
        Some((self.current_marks()?.last_stable.get() - self.position.next.get()).max(0))
    }

    /// For how long the client has delivered nothing of the partition although the log has more.
    pub(super) fn stalled_for(&mut self, marks: Watermarks, count: DeliveryCount, now: Instant) -> Duration {
        let is_waiting =
            self.is_written() && self.state == PartitionState::Reading && self.position.next < marks.last_stable;
        self.stall.stalled_for(is_waiting, count, now)
    }

    /// Restarts the clock of a stall: the loop took no records for a while, or the fetch position moved without a
    /// delivery.
    pub(super) fn reset_stall(&mut self) {
        self.stall = StallDetector::default();
    }

    /// Takes a record, unless it is stale or was read already.
    pub(super) fn take(
        &mut self,
        record: Record,
        permit: MemoryPermit,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> ChunkResult {
        if record.epoch != self.epoch || self.state.is_halted() {
            return ChunkResult::Stale;
        }
        if record.offset.at() < self.expected() {
            return ChunkResult::Duplicate;
        }
        self.recovered(now, out);
        if self.buffer.is_empty() {
            self.next_ms = record.timestamp_ms;
        }
        self.buffer.push(record, permit);
        ChunkResult::Accepted
    }

    /// Notes that everything below `end` was delivered.
    pub(super) fn reached(&mut self, end: NextOffset, epoch: AssignmentEpoch, now: Instant, out: &mut Vec<Action>) {
        if epoch == self.epoch && !self.state.is_halted() {
            self.recovered(now, out);
            self.buffer.reached(end, now);
        }
    }

    fn recovered(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.reset_stall();
        if let PartitionState::Troubled(_) = self.state {
            self.state = PartitionState::Reading;
        }
        self.failures = 0;
        self.failing_since = None;
        self.refusal = None;
        if let Some(since) = self.suspended_since.take() {
            let (partition, offset) = (self.position.partition.clone(), self.expected());
            let after = now.saturating_duration_since(since);
            out.push(Action::Log(LogLine::Resumed { partition, offset, after }));
        }
    }

    fn suspend(&mut self, reason: &str, now: Instant, out: &mut Vec<Action>) {
        self.state = PartitionState::Troubled(reason.to_owned());
        // Further reasons of the same suspension are not logged as a warning again.
        let is_new = self.suspended_since.is_none();
        self.suspended_since.get_or_insert(now);
        let (partition, offset) = (self.position.partition.clone(), self.expected());
        out.push(Action::Log(LogLine::Suspended { partition, offset, reason: reason.to_owned(), is_new }));
    }

    /// Suspends the partition after a failed fetch. Returns for how long fetching has failed without a break; `None` if
    /// the failure is of an earlier epoch or the partition is halted. Records that were read are kept. Later records of
    /// the assignment are not: the client continues by itself, perhaps with another topic of the same name.
    pub(super) fn failed(
        &mut self,
        epoch: AssignmentEpoch,
        reason: &str,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Option<Duration> {
        if epoch != self.epoch || self.state.is_halted() {
            return None;
        }
        self.end_epoch();
        self.failures += 1;
        let since = *self.failing_since.get_or_insert(now);
        self.refusal = Some(reason.to_owned());
        self.suspend(reason, now, out);
        Some(now.saturating_duration_since(since))
    }

    /// Requests the anchor check of this epoch. Returns false if it was requested already.
    pub(super) fn request_anchor_check(&mut self) -> bool {
        self.asked_in.replace(self.epoch) != Some(self.epoch)
    }

    /// Whether an anchor check is open that decides whether the partition is read.
    pub(super) fn is_asking(&self) -> bool {
        self.asked_in == Some(self.epoch)
    }

    /// Closes the anchor check of that epoch. Returns whether its result still decides about the partition.
    pub(super) fn answered(&mut self, epoch: AssignmentEpoch) -> bool {
        self.asked_in.take_if(|asked| *asked == epoch).is_some() && epoch == self.epoch && !self.state.is_halted()
    }

    /// Suspends the partition: its log may not be read now. Records that are not submitted are read again later.
    pub(super) fn not_validated(&mut self, reason: &str, now: Instant, out: &mut Vec<Action>) {
        self.forget();
        self.suspend(reason, now, out);
        self.failures += 1;
        self.failing_since.get_or_insert(now);
    }

    /// Suspends the partition until its log is validated again, without a failure of its own. Records that are not
    /// submitted are read again later.
    pub(super) fn revalidate(&mut self, reason: &str) {
        self.forget();
        self.state = PartitionState::Troubled(reason.to_owned());
    }

    /// Suspends the partition until it has a leader; its log is validated again then.
    pub(super) fn without_leader(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.unseen();
        self.forget();
        self.suspend(NO_LEADER, now, out);
    }

    /// How long fetching has failed without a break.
    pub(super) fn failing_for(&self, now: Instant) -> Duration {
        self.failing_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Halts the partition. Records that are not submitted are dropped; slices in flight may still be committed.
    pub(super) fn halt(&mut self, halt: Halt, now: Instant) {
        self.forget();
        self.suspended_since.get_or_insert(now);
        self.state = PartitionState::Halted(halt);
        self.note_log_end();
    }

    /// Assigns the partition again, behind the submitted offsets. An assignment after a refusal is a trial: the
    /// partition stays suspended until something of it is delivered, and no stall is measured.
    pub(super) fn assign_again(&mut self, now: Instant) -> Assignment {
        self.forget();
        self.reset_stall();
        match &self.refusal {
            Some(reason) => {
                self.state = PartitionState::Troubled(reason.clone());
                self.trial = Some((self.epoch, now));
            }
            None => self.state = PartitionState::Reading,
        }
        self.note_log_end();
        self.assignment()
    }

    /// Whether the partition was assigned after a refusal within `window`, and neither a record nor an error came
    /// since.
    pub(super) fn is_on_trial(&self, window: Duration, now: Instant) -> bool {
        self.trial.is_some_and(|(epoch, begun)| epoch == self.epoch && now.saturating_duration_since(begun) < window)
    }

    /// Drops everything in memory and takes the stored position.
    pub(super) fn reset(&mut self, position: Position, now: Instant) {
        let log_end = self.position.log_end.max(position.log_end);
        self.position = Position { log_end, ..position };
        self.buffer.restart_at(position.next);
        self.moved_at = now;
        (self.next_ms, self.stored_ms) = (None, None);
        // Earlier failures belong to other offsets of the log.
        (self.failures, self.failing_since, self.refusal) = (0, None, None);
        self.reset_stall();
        // This also ends a halt: an operator may have moved the position behind a loss.
        self.state = PartitionState::Troubled("the stored position was moved".into());
        self.end_epoch();
    }

    /// Drops the records that are not submitted, and ignores later records of the assignment.
    fn forget(&mut self) {
        self.buffer.forget();
        self.end_epoch();
    }

    /// From now on, records of the current assignment have no effect.
    fn end_epoch(&mut self) {
        self.epoch = AssignmentEpoch(self.epoch.0 + 1);
    }

    /// Whether a slice of the partition is in flight.
    pub(super) fn is_in_flight(&self) -> bool {
        self.position.next < self.buffer.submitted()
    }

    /// Gives up the records beyond the partition's share of the memory while it waits for a proof; they are read again
    /// later. Returns true if some were given up: the partition must be unassigned then.
    pub(super) fn pause_beyond_share(&mut self, share_bytes: usize) -> bool {
        let parked = self.buffer.give_up_reservation(share_bytes);
        if parked {
            self.end_epoch();
        }
        parked
    }

    /// Assigns the partition again behind the records that it kept, if no draft waits for a proof any more.
    pub(super) fn resume(&mut self) -> Option<Assignment> {
        if self.state != PartitionState::Reading || !self.buffer.resume() {
            return None;
        }
        self.end_epoch();
        Some(self.assignment())
    }

    /// Whether all records that were read are in the ledger.
    pub(super) fn is_written(&self) -> bool {
        self.buffer.is_empty() && !self.is_in_flight()
    }

    /// Gives up the slices in flight, and all records that were read behind them.
    pub(super) fn give_up_in_flight(&mut self) {
        self.buffer.restart_at(self.position.next);
        self.end_epoch();
    }

    /// Makes a draft the slice of a batch. It is in flight from now on.
    pub(super) fn submit(&mut self, draft: Draft) -> (Slice, MemoryPermit) {
        self.buffer.submit(draft, &self.position)
    }

    /// Whether the position has not moved since `then`, and no slice in flight will move it.
    pub(super) fn unmoved_since(&self, then: Instant) -> bool {
        self.moved_at < then && !self.is_in_flight()
    }

    /// Moves the position behind a committed slice. Returns whether memory knew the slice as in flight. If it did not,
    /// the records in memory are dropped and read again behind the slice.
    pub(super) fn committed(&mut self, slice: &CommittedSlice, now: Instant) -> bool {
        let was_in_flight = slice.to <= self.buffer.submitted();
        if !was_in_flight {
            self.buffer.restart_at(slice.to);
            self.end_epoch();
            if !self.state.is_halted() {
                self.state = PartitionState::Troubled(
                    "the stored position is ahead of the one in memory; reading continues from the stored position"
                        .into(),
                );
            }
        }
        self.position.next = slice.to;
        self.moved_at = now;
        self.next_ms = self.buffer.first_ms();
        self.stored_ms = slice.timestamp_ms.or(self.stored_ms);
        self.position.anchor = slice.anchor.or(self.position.anchor);
        self.position.recorded_to = self.position.recorded_to.max(slice.to);
        was_in_flight
    }
}
