//! The state of all partitions while they are read, and every decision about them. Pure: it takes events and returns
//! actions; it has no clock, no server, and awaits nothing.
//!
//! - `partition_set`: fetched records become batches; commits move positions.
//! - [`validation`]: whether a log may be read; snapshots, gap proofs, anchor checks.
//! - [`risk`]: warnings about retention and open transactions.

mod batch_size;
mod risk;
mod validation;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use self::batch_size::RowsPerMessage;
use super::event::{Action, CommittedSlice, Event, FetchFailure, LogLine, Now};
use super::partition::{ChunkResult, Partition};
use super::partition_buffer::MemoryPermit;
use super::until::Until;
use crate::config::BatchLimits;
use crate::kafka::unpacked::{NotUnpacked, Refusal};
use crate::ledger::positions::Position;
use crate::model::batch::Batch;
use crate::model::generation::Unread;
use crate::model::offset::{NextOffset, OffsetRange};
use crate::model::partition_state::{Halt, HaltReason};
use crate::model::record::{AssignmentEpoch, Record};
use crate::model::topic::{Retention, Topic, TopicIdentity, TopicPartition, TopicSnapshot};

/// Messages with this many events are submitted as a batch although another one is in flight.
pub(super) const BACKLOG_ROWS: usize = 1000;
/// A tail without records is proven this long after its end was reached, unless the run ends there.
const TAIL_COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// A partition whose proof takes longer than this leaves its memory to the others.
const PAUSE_AFTER: Duration = Duration::from_secs(1);

/// The settings by which the set decides.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// The limits of one batch, and of the records that are buffered for it.
    pub(super) limits: BatchLimits,
    /// A position beyond the log end or a damaged batch halts a partition only after this time: while brokers restart,
    /// they report too low offsets for a moment.
    pub(super) believe_after: Duration,
    pub(super) headroom_warning: Duration,
}

/// The rest of a delivery that was taken in part, because the next batch is full.
#[derive(Debug)]
struct PartialChunk {
    /// The partition of the record that was taken last. It is reused, so that no record needs a key of its own.
    partition: TopicPartition,
    records: std::vec::IntoIter<Record>,
    permit: MemoryPermit,
}

/// All partitions of the topic.
#[derive(Debug)]
pub(super) struct PartitionSet {
    settings: Settings,
    rows_per_message: RowsPerMessage,
    partitions: BTreeMap<TopicPartition, Partition>,
    /// The identity of the topic whose offsets the positions are.
    identity: TopicIdentity,
    retention: Retention,
    until: Until,
    /// It is taken before any newer delivery.
    partial: Option<PartialChunk>,
    /// The halt of every partition for good, because the ledger cannot be used.
    unusable: Option<Halt>,
    /// The halt of every partition while Kafka shows another topic than the one that was read.
    other_topic: Option<Halt>,
    out: Vec<Action>,
}

impl PartitionSet {
    /// A set with the positions of a start, and its first actions: the logs are validated. `snapshot`: the topic as the
    /// start saw it.
    pub(super) fn new(
        settings: Settings,
        (identity, retention, until): (TopicIdentity, Retention, Until),
        positions: impl IntoIterator<Item = Position>,
        snapshot: &TopicSnapshot,
        now: Now,
    ) -> (Self, Vec<Action>) {
        let partition = |position: Position| {
            let marks = snapshot.partitions.get(&position.partition).copied();
            (position.partition.clone(), Partition::new(position, marks, now.instant))
        };
        let mut set = Self {
            settings,
            rows_per_message: RowsPerMessage::default(),
            partitions: positions.into_iter().map(partition).collect(),
            identity,
            retention,
            until,
            partial: None,
            unusable: None,
            other_topic: None,
            out: Vec::new(),
        };
        set.begin(snapshot, now);
        let actions = std::mem::take(&mut set.out);
        (set, actions)
    }

    /// Takes an event and returns the actions that follow.
    pub(super) fn on_event(&mut self, event: Event, now: Now) -> Vec<Action> {
        match event {
            Event::Fetched(topic, records, permit) => self.on_fetched(&topic, records, permit, now),
            Event::ReachedEnd(partition, epoch, end) => {
                if let Some(p) = self.partitions.get_mut(&partition) {
                    p.reached(end, epoch, now.instant, &mut self.out);
                }
            }
            Event::Progressed(partitions) => self.on_progressed(&partitions),
            Event::FetchFailed(partition, epoch, failure) => self.on_fetch_failed(&partition, epoch, &failure, now),
            Event::GapProof { partition, proof_id, result } => self.on_gap_proof(&partition, proof_id, result, now),
            Event::AnchorCheck { partition, epoch, anchor, result } => {
                self.on_anchor_check(&partition, epoch, anchor, result, now);
            }
            Event::Snapshot { snapshot, delivered, reader_is_blocked } => {
                self.on_snapshot(snapshot, delivered, reader_is_blocked, now);
            }
            Event::NoSnapshot => self.on_no_snapshot(now),
            Event::RetentionChanged(retention) => self.retention = retention,
            Event::Committed(slices) => self.on_committed(&slices, now),
            Event::Written { messages, rows } => self.rows_per_message.on_written(messages, rows),
            Event::NothingInFlight => self.give_up_in_flight(now),
            Event::Refused(partition, halt) => self.halt(&partition, halt, now),
            Event::LedgerPositions { positions, void, asked_at } => {
                self.on_ledger_positions(&positions, &void, asked_at, now);
            }
            Event::PositionsSeen { positions, asked_at } => self.on_positions_seen(&positions, asked_at),
            Event::PartitionAdded(position, marks) => self.on_partition_added(position, marks, now),
            Event::LedgerUnusable(halt) => {
                self.unusable = Some(halt);
                self.halt_where_unusable(now);
            }
            Event::ReaderReplaced(reason) => self.on_reader_replaced(&reason),
            Event::Tick { in_flight, has_capacity, out_of_memory } => {
                self.on_tick(in_flight, has_capacity, out_of_memory, now.instant);
            }
        }
        std::mem::take(&mut self.out)
    }

    // ---- queries

    /// Whether one more delivery can be taken.
    pub(super) fn wants_more(&self) -> bool {
        self.partial.is_none() && self.has_room()
    }

    /// Whether the last delivery was taken only in part.
    pub(super) fn has_partial_chunk(&self) -> bool {
        self.partial.is_some()
    }

    /// Whether the rest of the last delivery can be taken now.
    pub(super) fn can_go_on(&self) -> bool {
        self.partial.is_some() && self.has_room()
    }

    /// Whether an anchor check is open that decides whether a partition is read.
    pub(super) fn is_asking(&self) -> bool {
        self.partitions.values().any(Partition::is_asking)
    }

    /// The stored position of each partition, with the highest log end that was seen.
    pub(super) fn positions(&self) -> impl Iterator<Item = &Position> {
        self.partitions.values().map(Partition::position)
    }

    pub(super) fn position(&self, partition: &TopicPartition) -> Option<NextOffset> {
        self.partitions.get(partition).map(|p| p.position().next)
    }

    /// The lag of all partitions together, in offsets; `None` if it is not known of each.
    pub(super) fn lag(&self) -> Option<i64> {
        self.partitions.values().map(Partition::lag).sum()
    }

    /// The known lag of the partitions that are not halted, in offsets.
    pub(super) fn backlog(&self) -> i64 {
        let reading = self.partitions.values().filter(|p| !p.state().is_halted());
        reading.filter_map(Partition::lag).sum()
    }

    /// How the run ends, if each partition is at its end or halted; `None` if it does not end.
    pub(super) fn end(&self) -> Option<Ended> {
        let Until::End { ends, awaited } = &self.until else { return None };
        let halted = |p: &Partition| p.state().is_halted() && p.is_written();
        let all = ends.iter().filter_map(|(partition, end)| Some((self.partitions.get(partition)?, end)));
        if !awaited.is_empty() || !all.clone().all(|(p, end)| p.has_read_to(*end) || halted(p)) {
            return None;
        }
        Some(if all.clone().any(|(p, _)| halted(p)) { Ended::SomeHalted } else { Ended::AllRead })
    }

    // ---- fetched records

    fn on_fetched(&mut self, topic: &Topic, records: Vec<Record>, permit: MemoryPermit, now: Now) {
        debug_assert!(self.partial.is_none(), "one delivery at a time");
        self.partial = Some(PartialChunk { partition: topic.partition(0), records: records.into_iter(), permit });
        self.take_partial_chunk(now.instant);
    }

    fn take_partial_chunk(&mut self, now: Instant) {
        let Some(mut chunk) = self.partial.take() else { return };
        while self.has_room() {
            let Some(record) = chunk.records.next() else { return };
            let permit = chunk.permit.split(record.footprint());
            let offset = record.offset;
            chunk.partition.partition = record.partition;
            let Some(p) = self.partitions.get_mut(&chunk.partition) else { continue };
            if p.take(record, permit, now, &mut self.out) == ChunkResult::Duplicate {
                let partition = chunk.partition.clone();
                self.out.push(Action::Log(LogLine::DeliveredTwice { partition, offset }));
            }
        }
        self.partial = (chunk.records.len() > 0).then_some(chunk);
    }

    fn on_progressed(&mut self, partitions: &[(TopicPartition, AssignmentEpoch)]) {
        for (partition, epoch) in partitions {
            if let Some(p) = self.partitions.get_mut(partition).filter(|p| p.epoch() == *epoch) {
                p.reset_stall();
            }
        }
    }

    /// librdkafka stops fetching a partition after an error and reports the error once. The watermarks show whether
    /// offsets are lost, so a snapshot is taken at once.
    fn on_fetch_failed(
        &mut self,
        partition: &TopicPartition,
        epoch: AssignmentEpoch,
        failure: &FetchFailure,
        now: Now,
    ) {
        let Some(p) = self.partitions.get_mut(partition) else { return };
        let Some(since) = p.failed(epoch, failure.reason(), now.instant, &mut self.out) else { return };
        let expected = p.expected();
        let range = p.marks.and_then(|marks| OffsetRange::new(expected, marks.last_stable));
        match failure {
            // Memory may be available again soon.
            FetchFailure::NotUnpacked(batch, _)
                if batch.why == Refusal::TooLarge || since >= self.settings.believe_after =>
            {
                return self.halt_not_unpacked(partition, *batch, now);
            }
            FetchFailure::Damaged(message) if since >= self.settings.believe_after => {
                let detail = format!(
                    "the log cannot be read at offset {expected}: {message}; restore the broker's segment or its replica, then restart"
                );
                return self.halt(partition, Halt::new(HaltReason::Unreadable, range, detail), now);
            }
            _ => {}
        }
        self.publish(partition);
        self.out.push(Action::TakeSnapshot);
    }

    /// Halts a partition whose next batch needs more memory than is allowed or available.
    fn halt_not_unpacked(&mut self, partition: &TopicPartition, batch: NotUnpacked, now: Now) {
        let Some(p) = self.partitions.get(partition) else { return };
        let expected = p.expected();
        let range = p.marks.and_then(|marks| OffsetRange::new(expected, marks.last_stable));
        let needed = batch.size.needed();
        let reason = match batch.why {
            Refusal::TooLarge => HaltReason::UnpackedTooLarge { needed },
            Refusal::NoMemory | Refusal::Later => HaltReason::OutOfMemory { needed },
        };
        self.halt(partition, Halt::new(reason, range, format!("at offset {expected}, {batch}")), now);
    }

    /// All partitions drop the records that are not submitted, and are validated again.
    fn on_reader_replaced(&mut self, reason: &str) {
        self.partial = None;
        for partition in self.not_halted() {
            if let Some(p) = self.partitions.get_mut(&partition) {
                p.revalidate(reason);
            }
            self.publish(&partition);
        }
        self.out.push(Action::TakeSnapshot);
    }

    // ---- batches

    /// A free connection writes all buffered messages at once. While all are busy, messages accumulate into larger
    /// batches.
    fn on_tick(&mut self, in_flight: usize, has_capacity: bool, out_of_memory: bool, now: Instant) {
        self.relieve(out_of_memory, now);
        self.take_partial_chunk(now);
        if self.unusable.is_some() || !(in_flight == 0 || self.is_backlog()) {
            return;
        }
        if has_capacity {
            self.submit(now);
        }
        let tail_after = self.tail_commit_interval();
        for (partition, p) in &mut self.partitions {
            if let Some((proof_id, gaps)) = p.buffer.take_for_proof(tail_after, now) {
                self.out.push(Action::ProveGap { partition: partition.clone(), proof_id, gaps });
            }
        }
    }

    fn submit(&mut self, now: Instant) {
        let (max_messages, tail_after) = (self.max_messages(), self.tail_commit_interval());
        let (mut slices, mut permits, mut messages) = (Vec::new(), Vec::new(), 0);
        for p in self.partitions.values_mut() {
            let has_room = messages == 0 || messages + p.buffer.waiting().0 <= max_messages;
            let Some(draft) = has_room.then(|| p.buffer.take_ready(tail_after, now)).flatten() else { continue };
            messages += draft.messages();
            let (slice, permit) = p.submit(draft);
            slices.push(slice);
            permits.push(permit);
        }
        if let Some(batch) = Batch::new(slices) {
            self.out.push(Action::SubmitBatch(batch, permits));
        }
    }

    fn tail_commit_interval(&self) -> Duration {
        match self.until {
            Until::Stopped => TAIL_COMMIT_INTERVAL,
            Until::End { .. } => Duration::ZERO,
        }
    }

    /// Frees memory. If there is no room, a partition that waits for a proof gives up the records beyond its share, and
    /// reads them again after the proof.
    fn relieve(&mut self, out_of_memory: bool, now: Instant) {
        let is_full = out_of_memory || !self.has_room();
        let share_bytes = self.settings.limits.max_bytes / self.partitions.len().max(1);
        let alone = self.partitions.len() < 2;
        for (partition, p) in &mut self.partitions {
            if let Some(assignment) = p.resume() {
                self.out.push(Action::Assign(assignment));
            } else if is_full && !alone && p.buffer.proving_for(now) >= PAUSE_AFTER && p.pause_beyond_share(share_bytes)
            {
                self.out.push(Action::Log(LogLine::Parked { partition: partition.clone() }));
                self.out.push(Action::Unassign(partition.clone()));
            }
        }
    }

    // ---- answers of the ledger

    fn on_committed(&mut self, slices: &[CommittedSlice], now: Now) {
        for slice in slices {
            if let Some(p) = self.partitions.get_mut(&slice.partition)
                && !p.committed(slice, now.instant)
            {
                self.out.push(Action::Unassign(slice.partition.clone()));
                self.out.push(Action::TakeSnapshot);
            }
            self.publish(&slice.partition);
        }
    }

    /// Offsets that were submitted and are not committed are read again.
    fn give_up_in_flight(&mut self, now: Now) {
        let missing: Vec<TopicPartition> =
            self.partitions.iter().filter(|(_, p)| p.is_in_flight()).map(|(n, _)| n.clone()).collect();
        for partition in missing {
            let Some(p) = self.partitions.get_mut(&partition) else { continue };
            p.give_up_in_flight();
            if !p.state().is_halted() {
                self.suspend(&partition, "the batches in flight were given up; their messages are read again", now);
            }
        }
    }

    /// Reloads the positions if a stored one differs from memory. A position that moved since `asked_at` is no
    /// evidence: the stored value may be older.
    fn on_positions_seen(&mut self, positions: &BTreeMap<TopicPartition, NextOffset>, asked_at: Instant) {
        let moved = self.partitions.iter().any(|(partition, p)| {
            let stored = positions.get(partition);
            p.unmoved_since(asked_at) && stored.is_some_and(|stored| *stored != p.position().next)
        });
        if moved {
            self.out.push(Action::ReloadPositions);
        }
    }

    /// Continues from the stored positions: of `void` partitions in any case, of the others if they differ from memory.
    /// They differ if the database was restored or failed over without the last commits, or if a verb moved a position.
    fn on_ledger_positions(
        &mut self,
        positions: &BTreeMap<TopicPartition, Position>,
        void: &[TopicPartition],
        asked_at: Instant,
        now: Now,
    ) {
        let differs = |partition: &TopicPartition, p: &Partition| {
            p.unmoved_since(asked_at) && positions.get(partition).is_some_and(|stored| stored.next != p.position().next)
        };
        let moved: Vec<TopicPartition> = self
            .partitions
            .iter()
            .filter(|(partition, p)| void.contains(partition) || differs(partition, p))
            .map(|(partition, _)| partition.clone())
            .collect();
        for partition in moved {
            let Some(position) = positions.get(&partition) else { continue };
            let Some(p) = self.partitions.get_mut(&partition) else { continue };
            let (remembered, stored) = (p.position().next, position.next);
            self.out.push(Action::Log(LogLine::PositionReplaced { partition: partition.clone(), remembered, stored }));
            p.reset(position.clone(), now.instant);
            self.validate(&partition, now);
        }
        self.halt_where_unusable(now);
    }

    // ---- halting

    /// Halts every partition if the ledger cannot be used or the topic is another one.
    fn halt_where_unusable(&mut self, now: Now) {
        if let Some(halt) = self.unusable.clone().or(self.other_topic.clone()) {
            self.halt_all(&halt, now);
        }
    }

    /// Halts every partition that is not halted yet.
    fn halt_all(&mut self, halt: &Halt, now: Now) {
        for partition in self.not_halted() {
            self.halt(&partition, halt.clone(), now);
        }
    }

    fn halt(&mut self, partition: &TopicPartition, halt: Halt, now: Now) {
        let unread = self.unread_behind(partition, halt.reason);
        let halt = Halt { unread, ..halt };
        let Some(p) = self.partitions.get_mut(partition) else { return };
        let offset = p.position().next;
        p.halt(halt.clone(), now.instant);
        // A rebase decides by the log end, and may come at once.
        let (id, end) = (p.position().id, p.position().log_end);
        self.out.extend(end.map(|end| Action::RecordLogEnd(id, end)));
        self.out.push(Action::Halt { partition: partition.clone(), offset, halt });
        self.out.push(Action::Unassign(partition.clone()));
        self.publish(partition);
    }

    /// The unread offsets that a new generation of the topic would give up: those of each log that is not the one that
    /// was read.
    fn unread_behind(&self, halting: &TopicPartition, reason: HaltReason) -> Vec<Unread> {
        let is_gone = |partition: &TopicPartition, p: &Partition| match reason {
            _ if partition.topic != halting.topic => false,
            HaltReason::Recreated | HaltReason::OtherCluster => true,
            reason if !reason.is_of_another_log() => false,
            _ => partition == halting || p.state().is_of_another_log(),
        };
        let gone = self.partitions.iter().filter(|(partition, p)| is_gone(partition, p));
        gone.filter_map(|(partition, p)| Some(Unread { partition: partition.partition, range: p.unread()? })).collect()
    }

    fn not_halted(&self) -> Vec<TopicPartition> {
        self.partitions.iter().filter(|(_, p)| !p.state().is_halted()).map(|(partition, _)| partition.clone()).collect()
    }

    /// Publishes the state of a partition.
    fn publish(&mut self, partition: &TopicPartition) {
        if let Some(p) = self.partitions.get(partition) {
            let (next, marks, state) = (p.position().next, p.current_marks(), p.state().clone());
            self.out.push(Action::Publish { partition: partition.clone(), next, marks, state });
        }
    }
}

/// The result of a run to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    AllRead,
    /// Some partitions are halted, the others are at their end.
    SomeHalted,
}
