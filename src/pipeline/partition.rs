//! What the pipeline knows of one partition while it runs: what is committed, what is read but not
//! yet written, and whether it is being read at all. No waiting, no servers.
//!
//! ```text
//!            watermarks and anchor are as they should be
//! Troubled ----------------------------------------------> Reading ---> (records, ends)
//!    ^  |                                                    |  |
//!    |  +-- a loss, a difference --> Halted <----------------+  |
//!    +------------------- fetching failed ----------------------+
//! ```
//!
//! A partition begins troubled: it is read once its last stored message was found in the log. A halted
//! one forgets what was read and not yet launched; PostgreSQL says where it stands.

use std::time::{Duration, Instant};

use super::silence::{Heard, Silence};
use super::suspension::Suspension;
use super::unwritten::{Draft, Share, Unwritten};
use crate::kafka::reader::Assignment;
use crate::ledger::start::positions::Position;
use crate::model::batch::Slice;
use crate::model::headroom::{Alarms, Watched};
use crate::model::offset::{NextOffset, OffsetRange, Watermarks};
use crate::model::partition_state::{Halt, PartitionState};
use crate::model::record::{Epoch, Record};

/// Within this time after a commit the next message is taken for about as old as the last stored one.
const FLOWING: Duration = Duration::from_secs(60);

/// What an untaken record was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
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
    epoch: Epoch,
    state: PartitionState,
    /// In which epoch its last stored message was asked for.
    asked_in: Option<Epoch>,
    pub(super) unwritten: Unwritten,
    silence: Silence,
    /// Failures in a row, and when the first was.
    failures: u32,
    failing_since: Option<Instant>,
    /// Why Kafka does not let it be read, in its own words; until something of it is heard again.
    refusal: Option<String>,
    /// The assignment that was tried after that, and when it began.
    trial: Option<(Epoch, Instant)>,
    /// As they were seen last.
    pub(super) marks: Option<Watermarks>,
    /// Whether the last look at Kafka showed them.
    marks_are_current: bool,
    suspension: Suspension,
    pub(super) watched: Watched,
    pub(super) alarms: Alarms,
    /// When the message at the position was written, and when the last stored one was.
    next_ms: Option<i64>,
    stored_ms: Option<i64>,
}

/// Also the words that tests and operators wait for.
const NO_LEADER: &str = "no leader answers for it; start the brokers that lead it, or elect a leader \
                         (kafka-leader-election.sh)";

impl Partition {
    pub(super) fn new(position: Position, marks: Option<Watermarks>) -> Self {
        let mut watched = Watched::default();
        marks.into_iter().for_each(|marks| watched.saw(Instant::now(), marks));
        Self {
            asked_in: None,
            unwritten: Unwritten::from(position.next),
            position,
            moved_at: Instant::now(),
            epoch: Epoch(1),
            state: PartitionState::Troubled("the last stored message is not checked yet".into()),
            silence: Silence::default(),
            failures: 0,
            failing_since: None,
            refusal: None,
            trial: None,
            marks_are_current: marks.is_some(),
            marks,
            suspension: Suspension::default(),
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

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Where the next record is expected: behind everything read so far.
    pub(super) fn expected(&self) -> NextOffset {
        self.unwritten.expected()
    }

    fn assignment(&self) -> Assignment {
        let from = self.expected();
        // Only the epoch of the record just before counts: a marker behind it may be of a later one.
        let before = self.position.anchor.filter(|a| a.offset.next() == from && self.failures == 0);
        let leader_epoch = before.and_then(|a| a.leader_epoch);
        Assignment { partition: self.position.partition, from, epoch: self.epoch, leader_epoch }
    }

    /// The watermarks as Kafka shows them now.
    pub(super) fn seen(&mut self, marks: Watermarks) {
        self.marks = Some(marks);
        self.marks_are_current = true;
        self.watched.saw(Instant::now(), marks);
        self.note_log_end();
    }

    /// What its log is known to have had beyond what was read; what is in flight counts as read.
    pub(super) fn unread(&self) -> Option<OffsetRange> {
        let next = self.position.next.max(self.unwritten.launched());
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

    /// When the next unread message was written, or a moment before that. The last stored one tells
    /// only while the stream flows: after an idle week it says nothing about the next.
    pub(super) fn unread_ms(&self) -> Option<i64> {
        self.next_ms.or(self.stored_ms.filter(|_| self.moved_at.elapsed() < FLOWING))
    }

    /// Kafka did not show its watermarks this time.
    pub(super) fn unseen(&mut self) {
        self.marks_are_current = false;
    }

    /// The watermarks, unless the last look at Kafka did not show them.
    pub(super) fn current_marks(&self) -> Option<Watermarks> {
        self.marks.filter(|_| self.marks_are_current)
    }

    /// Last stable offset less position, as far as is known.
    pub(super) fn lag(&self) -> Option<i64> {
        Some((self.current_marks()?.last_stable.get() - self.position.next.get()).max(0))
    }

    /// For how long the client has been silent about it, although there is more.
    pub(super) fn silent_for(&mut self, marks: Watermarks, heard: Heard) -> Duration {
        let waits =
            self.is_written() && self.state == PartitionState::Reading && self.position.next < marks.last_stable;
        self.silence.lasts(waits, heard)
    }

    /// Its silence begins anew: the loop did not listen for a while, or the client gets on without a word.
    pub(super) fn unheard(&mut self) {
        self.silence = Silence::default();
    }

    /// Takes a record if it is the one to come.
    pub(super) fn take(&mut self, record: Record, share: Share) -> Taken {
        if record.epoch != self.epoch || self.state.is_halted() {
            return Taken::Stale;
        }
        if record.offset.at() < self.expected() {
            return Taken::Twice;
        }
        self.recovered();
        if self.unwritten.is_empty() {
            self.next_ms = record.timestamp_ms;
        }
        self.unwritten.push(record, share);
        Taken::Yes
    }

    /// Everything below `end` was delivered.
    pub(super) fn reached(&mut self, end: NextOffset, epoch: Epoch) {
        if epoch == self.epoch && !self.state.is_halted() {
            self.recovered();
            self.unwritten.reached(end);
        }
    }

    fn recovered(&mut self) {
        self.silence = Silence::default();
        if let PartitionState::Troubled(_) = self.state {
            self.state = PartitionState::Reading;
        }
        self.failures = 0;
        self.failing_since = None;
        self.refusal = None;
        self.suspension.end(self.position.partition, self.expected());
    }

    fn suspend(&mut self, why: &str) {
        self.state = PartitionState::Troubled(why.to_owned());
        self.suspension.begin(self.position.partition, self.expected(), why);
    }

    /// Fetching failed; returns for how long it has, without a break. Ignores an earlier epoch. What was read is
    /// kept, what still comes is not: the client goes on by itself, perhaps in another life of the topic.
    pub(super) fn failed(&mut self, epoch: Epoch, why: &str) -> Option<Duration> {
        if epoch != self.epoch || self.state.is_halted() {
            return None;
        }
        self.end_epoch();
        self.failures += 1;
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        self.refusal = Some(why.to_owned());
        self.suspend(why);
        Some(since.elapsed())
    }

    /// Whether its last stored message is to be asked for now, and not on its way already.
    pub(super) fn asks(&mut self) -> bool {
        self.asked_in.replace(self.epoch) != Some(self.epoch)
    }

    /// Whether an answer is awaited that decides whether it is read.
    pub(super) fn is_asking(&self) -> bool {
        self.asked_in == Some(self.epoch)
    }

    /// Whether what was asked for in that epoch still decides whether it is read.
    pub(super) fn answered(&mut self, epoch: Epoch) -> bool {
        self.asked_in.take_if(|asked| *asked == epoch).is_some() && epoch == self.epoch && !self.state.is_halted()
    }

    /// Its log was looked at and may not be read, for now; what was read is read again.
    pub(super) fn not_admitted(&mut self, why: &str) {
        self.forget();
        self.suspend(why);
        self.failures += 1;
        self.failing_since.get_or_insert_with(Instant::now);
    }

    /// To be admitted anew, though nothing was wrong with it; what was read is read again.
    pub(super) fn set_aside(&mut self, why: &str) {
        self.forget();
        self.state = PartitionState::Troubled(why.to_owned());
    }

    /// No broker leads it now: it is admitted anew when one does.
    pub(super) fn without_leader(&mut self) {
        self.unseen();
        self.forget();
        self.suspend(NO_LEADER);
    }

    /// How long fetching has failed without a break.
    pub(super) fn failing_for(&self) -> Duration {
        self.failing_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Stops for good. What was read and not yet launched is forgotten; what is in flight may land.
    pub(super) fn halt(&mut self, halt: Halt) {
        self.forget();
        self.suspension.begin_silently();
        self.state = PartitionState::Halted(halt);
        self.note_log_end();
    }

    /// Reads on from behind what is launched, as a new assignment. One that Kafka refused to let be read is only tried:
    /// it is not being read before something of it is heard, and the clock of a silent client does not judge it.
    pub(super) fn assign_anew(&mut self) -> Assignment {
        self.forget();
        self.silence = Silence::default();
        match &self.refusal {
            Some(why) => {
                self.state = PartitionState::Troubled(why.clone());
                self.trial = Some((self.epoch, Instant::now()));
            }
            None => self.state = PartitionState::Reading,
        }
        self.note_log_end();
        self.assignment()
    }

    /// Whether it was assigned after a refusal, not longer ago than this, and neither word nor error came since.
    pub(super) fn is_tried(&self, patience: Duration) -> bool {
        self.trial.is_some_and(|(epoch, begun)| epoch == self.epoch && begun.elapsed() < patience)
    }

    /// Forgets everything in memory: PostgreSQL says where the partition stands.
    pub(super) fn reset(&mut self, position: Position) {
        let log_end = self.position.log_end.max(position.log_end);
        self.position = Position { log_end, ..position };
        self.unwritten.start_over(position.next);
        self.moved_at = Instant::now();
        (self.next_ms, self.stored_ms) = (None, None);
        // What failed before was another stretch of the log.
        (self.failures, self.failing_since, self.refusal) = (0, None, None);
        self.silence = Silence::default();
        // Also out of a halt: an operator may have moved the position past what was lost.
        self.state = PartitionState::Troubled("the stored position was moved".into());
        self.end_epoch();
    }

    /// Drops what was read and not yet launched, and what still comes.
    fn forget(&mut self) {
        self.unwritten.forget();
        self.end_epoch();
    }

    /// What still comes of this assignment has no effect.
    fn end_epoch(&mut self) {
        self.epoch = Epoch(self.epoch.0 + 1);
    }

    /// Whether something of it is on its way into the ledger.
    pub(super) fn is_in_flight(&self) -> bool {
        self.position.next < self.unwritten.launched()
    }

    /// Gives back what it holds beyond its share while it waits for a proof; what was given back is read again later.
    /// Returns whether it is to be read no further.
    pub(super) fn park(&mut self, share_bytes: usize) -> bool {
        let parked = self.unwritten.park(share_bytes);
        if parked {
            self.end_epoch();
        }
        parked
    }

    /// Reads on behind what it kept, once nothing of it waits for a proof.
    pub(super) fn read_on(&mut self) -> Option<Assignment> {
        if self.state != PartitionState::Reading || !self.unwritten.read_on() {
            return None;
        }
        self.end_epoch();
        Some(self.assignment())
    }

    /// Whether everything that was read is in the ledger.
    pub(super) fn is_written(&self) -> bool {
        self.unwritten.is_empty() && !self.is_in_flight()
    }

    /// What was on its way was given up; what was read behind it goes with it.
    pub(super) fn did_not_land(&mut self) {
        self.unwritten.start_over(self.position.next);
        self.end_epoch();
    }

    /// On its way into the ledger from now on, as part of a batch.
    pub(super) fn launch(&mut self, draft: Draft) -> (Slice, Share) {
        self.unwritten.launch(draft, &self.position)
    }

    /// Whether the position has stood still since before `then`, and is not about to move.
    pub(super) fn unmoved_since(&self, then: Instant) -> bool {
        self.moved_at < then && !self.is_in_flight()
    }

    /// PostgreSQL holds everything below `to`; `last` is the last record stored with it.
    pub(super) fn committed(&mut self, to: NextOffset, last: Option<&Record>) {
        self.position.next = to;
        self.unwritten.committed(to);
        self.moved_at = Instant::now();
        self.next_ms = self.unwritten.first_ms();
        self.stored_ms = last.and_then(|r| r.timestamp_ms).or(self.stored_ms);
        self.position.anchor = last.map(Record::anchor).or(self.position.anchor);
        self.position.recorded_to = self.position.recorded_to.max(to);
    }
}

#[cfg(test)]
mod tests;
