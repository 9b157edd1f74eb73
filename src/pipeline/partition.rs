//! What the pipeline knows of one partition while it runs: what is committed, what is read but not yet written, and
//! whether it is being read at all. No waiting, no servers, no clock.
//!
//! ```text
//!            watermarks and anchor are as they should be
//! Troubled ----------------------------------------------> Reading ---> (records, ends)
//!    ^  |                                                    |  |
//!    |  +-- a loss, a difference --> Halted <----------------+  |
//!    +------------------- fetching failed ----------------------+
//! ```
//!
//! A partition begins troubled: it is read once its last stored message was found in the log. A halted partition
//! forgets what was read and not yet submitted; PostgreSQL says where it stands.

use std::time::{Duration, Instant};

use super::event::{Action, CommittedSlice, LogLine};
use super::partition_buffer::{Draft, MemoryPermit, PartitionBuffer};
use super::stall_detector::{DeliveryCount, StallDetector};
use crate::kafka::reader::Assignment;
use crate::ledger::start::positions::Position;
use crate::model::batch::Slice;
use crate::model::headroom::{Alarms, LogObservations};
use crate::model::offset::{NextOffset, OffsetRange, Watermarks};
use crate::model::partition_state::{Halt, PartitionState};
use crate::model::record::{AssignmentEpoch, Record};

/// For this long after a commit we assume that the next unread message is about as old as the last stored one.
const RECENT_COMMIT_WINDOW: Duration = Duration::from_secs(60);

const NO_LEADER: &str = "no leader answers for it; start the brokers that lead it, or elect a leader \
                         (kafka-leader-election.sh)";

/// How each partition begins.
pub(super) fn unchecked() -> PartitionState {
    PartitionState::Troubled("the last stored message is not checked yet".into())
}

/// What became of a record that was delivered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ChunkResult {
    Yes,
    /// Of an earlier assignment, or the partition is not being read.
    Stale,
    /// Below what was read already: librdkafka delivered it twice.
    Twice,
}

/// One partition.
#[derive(Debug)]
pub(super) struct Partition {
    position: Position,
    moved_at: Instant,
    epoch: AssignmentEpoch,
    state: PartitionState,
    /// In which epoch its last stored message was asked for.
    asked_in: Option<AssignmentEpoch>,
    pub(super) buffer: PartitionBuffer,
    stall: StallDetector,
    /// Failures in a row, and when the first was.
    failures: u32,
    failing_since: Option<Instant>,
    /// Why Kafka does not let it be read, in its own words; until something of it is delivered again.
    refusal: Option<String>,
    /// The assignment that was tried after a refusal, and when it began.
    trial: Option<(AssignmentEpoch, Instant)>,
    /// As they were seen last.
    pub(super) marks: Option<Watermarks>,
    /// Whether the last snapshot showed them.
    marks_are_current: bool,
    /// Since when it is not being read, once that was said.
    suspended_since: Option<Instant>,
    pub(super) watched: LogObservations,
    pub(super) alarms: Alarms,
    /// When the message at the position was written, and when the last stored one was.
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

    /// Whether all below `end` is in the ledger. A position beyond the log end is at the end of nothing: only a
    /// partition that is being read can be there.
    pub(super) fn has_read_to(&self, end: NextOffset) -> bool {
        self.state == PartitionState::Reading && self.position.next >= end
    }

    pub(super) fn epoch(&self) -> AssignmentEpoch {
        self.epoch
    }

    /// Where the next record is expected: behind everything read so far.
    pub(super) fn expected(&self) -> NextOffset {
        self.buffer.expected()
    }

    fn assignment(&self) -> Assignment {
        let from = self.expected();
        // Only the epoch of the record just before counts: a marker behind it may be of a later one.
        let before = self.position.anchor.filter(|a| a.offset.next() == from && self.failures == 0);
        let leader_epoch = before.and_then(|a| a.leader_epoch);
        Assignment { partition: self.position.partition, from, epoch: self.epoch, leader_epoch }
    }

    /// The watermarks as Kafka shows them now.
    pub(super) fn set_watermarks(&mut self, marks: Watermarks, now: Instant) {
        self.marks = Some(marks);
        self.marks_are_current = true;
        self.watched.observe(now, marks);
        self.note_log_end();
    }

    /// What its log is known to have had beyond what was read; what is in flight counts as read.
    pub(super) fn unread(&self) -> Option<OffsetRange> {
        let next = self.position.next.max(self.buffer.submitted());
        Position { next, ..self.position }.unread()
    }

    /// Keeps the highest end of the log, as long as it is the one that is read.
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

    /// When the next unread message was written, or a moment before that. The last stored one tells only while the
    /// stream flows: after an idle week it says nothing about the next.
    pub(super) fn unread_ms(&self, now: Instant) -> Option<i64> {
        let is_flowing = now.saturating_duration_since(self.moved_at) < RECENT_COMMIT_WINDOW;
        self.next_ms.or(self.stored_ms.filter(|_| is_flowing))
    }

    /// Kafka did not show its watermarks this time.
    pub(super) fn unseen(&mut self) {
        self.marks_are_current = false;
    }

    /// The watermarks, unless the last snapshot did not show them.
    pub(super) fn current_marks(&self) -> Option<Watermarks> {
        self.marks.filter(|_| self.marks_are_current)
    }

    /// Last stable offset less position, as far as is known.
    pub(super) fn lag(&self) -> Option<i64> {
        Some((self.current_marks()?.last_stable.get() - self.position.next.get()).max(0))
    }

    /// For how long the client has delivered nothing of it, although there is more.
    pub(super) fn stalled_for(&mut self, marks: Watermarks, count: DeliveryCount, now: Instant) -> Duration {
        let is_waiting =
            self.is_written() && self.state == PartitionState::Reading && self.position.next < marks.last_stable;
        self.stall.stalled_for(is_waiting, count, now)
    }

    /// The clock of a stall begins anew: nobody asked the client for a while, or it goes forward without a delivery.
    pub(super) fn reset_stall(&mut self) {
        self.stall = StallDetector::default();
    }

    /// Takes a record if it is the one to come.
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
            return ChunkResult::Twice;
        }
        self.recovered(now, out);
        if self.buffer.is_empty() {
            self.next_ms = record.timestamp_ms;
        }
        self.buffer.push(record, permit);
        ChunkResult::Yes
    }

    /// Everything below `end` was delivered.
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
            let (partition, offset) = (self.position.partition, self.expected());
            let after = now.saturating_duration_since(since);
            out.push(Action::Log(LogLine::Resumed { partition, offset, after }));
        }
    }

    fn suspend(&mut self, reason: &str, now: Instant, out: &mut Vec<Action>) {
        self.state = PartitionState::Troubled(reason.to_owned());
        // Further reasons of the same suspension are no news.
        let is_new = self.suspended_since.is_none();
        self.suspended_since.get_or_insert(now);
        let (partition, offset) = (self.position.partition, self.expected());
        out.push(Action::Log(LogLine::Suspended { partition, offset, reason: reason.to_owned(), is_new }));
    }

    /// Fetching failed; returns for how long it has, without a break. Ignores an earlier epoch. What was read is kept,
    /// what still comes is not: the client goes on by itself, perhaps with another topic of the same name.
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

    /// Whether its last stored message is to be asked for now, and is not asked for already.
    pub(super) fn request_anchor_check(&mut self) -> bool {
        self.asked_in.replace(self.epoch) != Some(self.epoch)
    }

    /// Whether an answer is awaited that decides whether it is read.
    pub(super) fn is_asking(&self) -> bool {
        self.asked_in == Some(self.epoch)
    }

    /// Whether what was asked for in that epoch still decides whether it is read.
    pub(super) fn answered(&mut self, epoch: AssignmentEpoch) -> bool {
        self.asked_in.take_if(|asked| *asked == epoch).is_some() && epoch == self.epoch && !self.state.is_halted()
    }

    /// Its log was looked at and may not be read, for now; what was read is read again.
    pub(super) fn not_validated(&mut self, reason: &str, now: Instant, out: &mut Vec<Action>) {
        self.forget();
        self.suspend(reason, now, out);
        self.failures += 1;
        self.failing_since.get_or_insert(now);
    }

    /// Its log is to be validated anew, though nothing was wrong with it; what was read is read again.
    pub(super) fn revalidate(&mut self, reason: &str) {
        self.forget();
        self.state = PartitionState::Troubled(reason.to_owned());
    }

    /// No broker leads it now: its log is validated anew when one does.
    pub(super) fn without_leader(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.unseen();
        self.forget();
        self.suspend(NO_LEADER, now, out);
    }

    /// How long fetching has failed without a break.
    pub(super) fn failing_for(&self, now: Instant) -> Duration {
        self.failing_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Stops for good. What was read and not yet submitted is forgotten; what is in flight may be committed.
    pub(super) fn halt(&mut self, halt: Halt, now: Instant) {
        self.forget();
        self.suspended_since.get_or_insert(now);
        self.state = PartitionState::Halted(halt);
        self.note_log_end();
    }

    /// Reads on from behind what is submitted, as a new assignment. An assignment after a refusal is only a trial: the
    /// partition is not being read before something of it is delivered, and the clock of a stall does not judge it.
    pub(super) fn assign_anew(&mut self, now: Instant) -> Assignment {
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

    /// Whether it was assigned after a refusal, not longer ago than this, and neither a record nor an error came since.
    pub(super) fn is_on_trial(&self, patience: Duration, now: Instant) -> bool {
        self.trial.is_some_and(|(epoch, begun)| epoch == self.epoch && now.saturating_duration_since(begun) < patience)
    }

    /// Forgets everything in memory: PostgreSQL says where the partition stands.
    pub(super) fn reset(&mut self, position: Position, now: Instant) {
        let log_end = self.position.log_end.max(position.log_end);
        self.position = Position { log_end, ..position };
        self.buffer.restart_at(position.next);
        self.moved_at = now;
        (self.next_ms, self.stored_ms) = (None, None);
        // What failed before was another stretch of the log.
        (self.failures, self.failing_since, self.refusal) = (0, None, None);
        self.reset_stall();
        // Also out of a halt: an operator may have moved the position past what was lost.
        self.state = PartitionState::Troubled("the stored position was moved".into());
        self.end_epoch();
    }

    /// Drops what was read and not yet submitted, and what still comes.
    fn forget(&mut self) {
        self.buffer.forget();
        self.end_epoch();
    }

    /// What still comes of this assignment has no effect.
    fn end_epoch(&mut self) {
        self.epoch = AssignmentEpoch(self.epoch.0 + 1);
    }

    /// Whether a slice of it is in flight.
    pub(super) fn is_in_flight(&self) -> bool {
        self.position.next < self.buffer.submitted()
    }

    /// Gives up what it holds beyond its share of the memory while it waits for a proof; what is given up is read
    /// again later. Returns whether it is to be read no further.
    pub(super) fn pause_beyond_share(&mut self, share_bytes: usize) -> bool {
        let parked = self.buffer.give_up_reservation(share_bytes);
        if parked {
            self.end_epoch();
        }
        parked
    }

    /// Reads on behind what it kept, once nothing of it waits for a proof.
    pub(super) fn resume(&mut self) -> Option<Assignment> {
        if self.state != PartitionState::Reading || !self.buffer.resume() {
            return None;
        }
        self.end_epoch();
        Some(self.assignment())
    }

    /// Whether everything that was read is in the ledger.
    pub(super) fn is_written(&self) -> bool {
        self.buffer.is_empty() && !self.is_in_flight()
    }

    /// What was in flight was given up; what was read behind it goes with it.
    pub(super) fn give_up_in_flight(&mut self) {
        self.buffer.restart_at(self.position.next);
        self.end_epoch();
    }

    /// In flight from now on, as part of a batch.
    pub(super) fn submit(&mut self, draft: Draft) -> (Slice, MemoryPermit) {
        self.buffer.submit(draft, &self.position)
    }

    /// Whether the position has stood still since before `then`, and is not about to move.
    pub(super) fn unmoved_since(&self, then: Instant) -> bool {
        self.moved_at < then && !self.is_in_flight()
    }

    /// PostgreSQL holds the slice and everything below it. Returns whether the slice was in flight, as far as memory
    /// knows; if it was not, what was read is read again behind it.
    pub(super) fn committed(&mut self, slice: &CommittedSlice, now: Instant) -> bool {
        let was_in_flight = slice.to <= self.buffer.submitted();
        if !was_in_flight {
            self.buffer.restart_at(slice.to);
            self.end_epoch();
            if !self.state.is_halted() {
                self.state =
                    PartitionState::Troubled("more is stored than memory knew; it is read again from there".into());
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
