//! Decides whether a partition may be read: the position is valid only for a log that still holds the last stored
//! message. This is checked before every assignment.

use crate::kafka::anchors::Found;
use crate::kafka::gap_prover::Finding;
use crate::kafka::unpacked::{NotUnpacked, Refusal};
use crate::ledger::positions::Position;
use crate::model::batch::{Gap, GapKind};
use crate::model::offset::{Coverage, OffsetRange, Watermarks};
use crate::model::partition_state::{Halt, HaltReason, PartitionState};
use crate::model::record::{Anchor, AssignmentEpoch, Digest};
use crate::model::topic::{Compaction, TopicPartition, TopicSnapshot};
use crate::pipeline::event::{Action, AnchorCheck, GapProof, LogLine, Now};
use crate::pipeline::partition::Partition;
use crate::pipeline::partition_set::PartitionSet;
use crate::pipeline::stall_detector::DeliveryCount;
use crate::pipeline::validate_log::{lost, topic_identity_mismatch};

impl PartitionSet {
    /// Validates all logs. Halts all partitions if the topic is not the one that was read so far.
    pub(super) fn begin(&mut self, snapshot: &TopicSnapshot, now: Now) {
        self.other_topic = topic_identity_mismatch(&self.identity, &snapshot.identity);
        if let Some(halt) = self.other_topic.clone() {
            self.halt_all(&halt, now);
        }
        let partitions: Vec<TopicPartition> = self.partitions.keys().cloned().collect();
        for partition in partitions {
            if self.partitions.get(&partition).is_some_and(|p| p.marks.is_none()) {
                self.wait_for_leader(&partition, now);
                continue;
            }
            self.validate(&partition, now);
            self.update_risk(&partition, now);
        }
    }

    /// Validates the log of a partition that is not being read: requests the anchor check, assigns the partition, halts
    /// it, or leaves it to the next snapshot.
    pub(super) fn validate(&mut self, partition: &TopicPartition, now: Now) {
        let Some(p) = self.partitions.get_mut(partition) else { return };
        // Records that were read before are written first: Kafka may not have them any more.
        if p.state().is_halted() || !p.is_written() {
            return;
        }
        if let Some(halt) = p.marks.and_then(|marks| lost(p.expected(), marks)) {
            if halt.reason == HaltReason::Expired || p.failing_for(now.instant) >= self.settings.believe_after {
                self.halt(partition, halt, now);
            } else {
                self.suspend(partition, &halt.detail, now);
            }
            return;
        }
        match p.position().anchor {
            // An anchor below the log start is not checked: it was deleted with the log before it.
            Some(anchor) if p.marks.is_none_or(|marks| anchor.offset.at() >= marks.log_start) => {
                if p.request_anchor_check() {
                    let epoch = p.epoch();
                    self.out.push(Action::CheckAnchor { partition: partition.clone(), epoch, anchor });
                }
            }
            _ => self.assign(partition, now),
        }
        self.publish(partition);
    }

    /// Decides by the message that the log has at the offset of the last stored message.
    pub(super) fn on_anchor_check(
        &mut self,
        partition: &TopicPartition,
        epoch: AssignmentEpoch,
        anchor: Anchor,
        result: AnchorCheck,
        now: Now,
    ) {
        if !self.partitions.get_mut(partition).is_some_and(|p| p.answered(epoch)) {
            return;
        }
        match result {
            AnchorCheck::Found(Found::Message(digest), _) if digest == anchor.digest => self.assign(partition, now),
            AnchorCheck::Found(Found::Message(digest), _) => {
                self.halt_replaced(partition, anchor, Some(digest), now);
            }
            AnchorCheck::Found(Found::NoMessage, compaction) if compaction != Compaction::No => {
                self.assign(partition, now);
            }
            AnchorCheck::Found(Found::NoMessage, _) => self.halt_replaced(partition, anchor, None, now),
            AnchorCheck::Found(Found::OutOfRange, _) => self.anchor_out_of_range(partition, anchor, now),
            AnchorCheck::NotUnpacked(batch) => self.anchor_not_unpacked(partition, batch, now),
            AnchorCheck::Failed(reason) => {
                self.suspend(partition, &format!("cannot read the last stored message back: {reason}"), now);
            }
        }
        self.publish(partition);
    }

    /// The batch of the anchor is too large: memory may be available again soon, a limit stays.
    fn anchor_not_unpacked(&mut self, partition: &TopicPartition, batch: NotUnpacked, now: Now) {
        let Some(p) = self.partitions.get(partition) else { return };
        if batch.why == Refusal::TooLarge || p.failing_for(now.instant) >= self.settings.believe_after {
            return self.halt_not_unpacked(partition, batch, now);
        }
        self.suspend(partition, &format!("{batch}; it is tried again"), now);
    }

    /// The anchor is out of range. If the watermarks include its offset, the log is not truncated but unreadable.
    fn anchor_out_of_range(&mut self, partition: &TopicPartition, anchor: Anchor, now: Now) {
        let Some(p) = self.partitions.get(partition) else { return };
        let at = anchor.offset;
        let (reason, detail) = match p.marks.filter(|marks| marks.log_end >= at.next()) {
            Some(Watermarks { log_end, .. }) => (
                HaltReason::Unreadable,
                format!(
                    "the last stored message, at offset {at}, cannot be read back though the log ends at {log_end}"
                ),
            ),
            None => (
                HaltReason::BeyondLogEnd,
                format!("the log does not reach the last stored message at offset {at}: truncated or re-created"),
            ),
        };
        if p.failing_for(now.instant) < self.settings.believe_after {
            return self.suspend(partition, &detail, now);
        }
        self.halt(partition, Halt::new(reason, OffsetRange::new(at.at(), at.next()), detail), now);
    }

    fn assign(&mut self, partition: &TopicPartition, now: Now) {
        if let Some(p) = self.partitions.get_mut(partition) {
            let assignment = p.assign_again(now.instant);
            self.out.push(Action::Assign(assignment));
        }
    }

    /// Suspends a partition until the next snapshot allows to read it.
    pub(super) fn suspend(&mut self, partition: &TopicPartition, reason: &str, now: Now) {
        let Some(p) = self.partitions.get_mut(partition) else { return };
        p.not_validated(reason, now.instant, &mut self.out);
        self.out.push(Action::Unassign(partition.clone()));
        self.publish(partition);
        self.out.push(Action::TakeSnapshot);
    }

    fn halt_replaced(&mut self, partition: &TopicPartition, anchor: Anchor, found: Option<Digest>, now: Now) {
        let found = found.map_or("no message".to_owned(), |digest| format!("a message with digest {digest}"));
        let detail = format!(
            "the last stored message, at offset {}, had digest {}; the log has {found} there: truncated and grown again, or replaced",
            anchor.offset, anchor.digest
        );
        let range = OffsetRange::new(anchor.offset.at(), anchor.offset.next());
        self.halt(partition, Halt::new(HaltReason::Replaced, range, detail), now);
    }

    // ---- gap proofs

    /// Takes the proof of a draft. If its gaps are empty, the draft may be written. If not, the part before the first
    /// gap may be written; the rest is dropped and read again, unless the next snapshot shows that it is lost.
    pub(super) fn on_gap_proof(&mut self, partition: &TopicPartition, proof_id: u64, result: GapProof, now: Now) {
        let Some(p) = self.partitions.get_mut(partition) else { return };
        let Some(draft) = p.buffer.take_proven(proof_id) else { return };
        let first = draft.first_gap().map_or(String::new(), |range| range.to_string());
        match result {
            GapProof::Found(Finding::Empty { aborted }, compaction) => {
                p.buffer.put_back(draft.proven(|offsets| gap(compaction, offsets, &aborted)));
                return;
            }
            GapProof::Found(Finding::Record(offset), _) => {
                self.out.push(Action::Log(LogLine::MessagePassedOver { partition: partition.clone(), offset }));
                self.suspend(partition, "the Kafka client skipped a committed message", now);
            }
            GapProof::Found(Finding::OutOfRange, _) => {
                self.suspend(partition, &format!("the gap {first} cannot be read again for its proof"), now);
            }
            // The snapshots show whether Kafka is away.
            GapProof::Failed(reason) => {
                self.suspend(partition, &format!("cannot prove now that the gap {first} is empty: {reason}"), now);
            }
        }
        if let (Some(p), Some(before)) = (self.partitions.get_mut(partition), draft.before_first_gap()) {
            p.buffer.put_back(before);
        }
    }

    // ---- snapshots

    pub(super) fn on_snapshot(
        &mut self,
        snapshot: TopicSnapshot,
        delivered: DeliveryCount,
        reader_is_blocked: bool,
        now: Now,
    ) {
        self.other_topic = topic_identity_mismatch(&self.identity, &snapshot.identity);
        if let Some(halt) = self.other_topic.clone() {
            return self.halt_all(&halt, now);
        }
        if reader_is_blocked {
            self.partitions.values_mut().for_each(Partition::reset_stall);
        }
        self.wait_for_absent_leaders(&snapshot, now);
        for (partition, marks) in snapshot.partitions {
            if self.partitions.contains_key(&partition) {
                self.until.seen(&partition, marks);
                self.on_watermarks(&partition, marks, delivered, now);
            } else if self.unusable.is_none() {
                self.out.push(Action::AddPartition(partition, marks));
            }
        }
    }

    fn on_watermarks(&mut self, partition: &TopicPartition, marks: Watermarks, delivered: DeliveryCount, now: Now) {
        let believe_after = self.settings.believe_after;
        let Some(p) = self.partitions.get_mut(partition) else { return };
        p.set_watermarks(marks, now.instant);
        let (id, end) = (p.position().id, p.position().log_end);
        self.out.extend(end.map(|end| Action::RecordLogEnd(id, end)));
        if p.stalled_for(marks, delivered, now.instant) >= believe_after {
            // The next snapshot decides how the partition continues.
            self.on_stall(partition, marks, now);
            return self.update_risk(partition, now);
        }
        let Some(p) = self.partitions.get(partition) else { return };
        let is_troubled = matches!(p.state(), PartitionState::Troubled(_));
        if is_troubled && !p.is_on_trial(believe_after, now.instant) {
            self.validate(partition, now);
        }
        self.publish(partition);
        self.update_risk(partition, now);
    }

    /// The watermarks show more to read, and nothing is delivered. librdkafka can stop without an error: after a lost
    /// wake-up, or at a batch that it cannot parse. The reading client is replaced at most twice. If nothing is
    /// delivered then, the log is unreadable and the partition halts.
    fn on_stall(&mut self, partition: &TopicPartition, marks: Watermarks, now: Now) {
        let Some(p) = self.partitions.get(partition) else { return };
        if p.failing_for(now.instant) < self.settings.believe_after * 2 {
            let reason = "nothing was delivered for 30 s although the log has more; the Kafka client was replaced";
            // One new client is enough for all stalled partitions.
            if !self.out.iter().any(|action| matches!(action, Action::ReplaceReader(_))) {
                self.out.push(Action::ReplaceReader(reason.to_owned()));
            }
            return self.suspend(partition, reason, now);
        }
        let next = p.position().next;
        let range = OffsetRange::new(next, marks.last_stable);
        let detail = format!(
            "nothing is delivered from offset {next} on although the log has more; examine the broker's log file and segment, then restart"
        );
        self.halt(partition, Halt::new(HaltReason::Unreadable, range, detail), now);
    }

    /// Suspends the partitions without a leader. The client reports nothing about them; it waits for their brokers.
    fn wait_for_absent_leaders(&mut self, snapshot: &TopicSnapshot, now: Now) {
        let is_absent = |partition: &TopicPartition, p: &Partition| {
            *p.state() == PartitionState::Reading && !snapshot.partitions.contains_key(partition)
        };
        let absent: Vec<TopicPartition> =
            self.partitions.iter().filter(|(n, p)| is_absent(n, p)).map(|(n, _)| n.clone()).collect();
        for partition in absent {
            self.wait_for_leader(&partition, now);
            self.out.push(Action::Unassign(partition));
        }
    }

    /// Suspends a partition until it has a leader. Its position stays, and its log is validated then.
    fn wait_for_leader(&mut self, partition: &TopicPartition, now: Now) {
        if let Some(p) = self.partitions.get_mut(partition) {
            p.without_leader(now.instant, &mut self.out);
        }
        self.publish(partition);
    }

    /// Kafka gave no snapshot: the last watermarks are not current any more.
    pub(super) fn on_no_snapshot(&mut self, now: Now) {
        self.partitions.values_mut().for_each(Partition::unseen);
        let partitions: Vec<TopicPartition> = self.partitions.keys().cloned().collect();
        for partition in partitions {
            self.publish(&partition);
            // Messages grow older while Kafka is away.
            self.update_risk(&partition, now);
        }
    }

    /// Adds a partition that appeared while the daemon runs. It begins at offset 0, and halts if Kafka no longer has
    /// that offset.
    pub(super) fn on_partition_added(&mut self, position: Position, marks: Watermarks, now: Now) {
        let partition = position.partition.clone();
        if self.partitions.contains_key(&partition) {
            return;
        }
        self.out.push(Action::Log(LogLine::NewPartition { partition: partition.clone(), offset: position.next }));
        self.partitions.insert(partition.clone(), Partition::new(position, Some(marks), now.instant));
        // Not before it is in the set: a run to the end must wait for it.
        self.until.seen(&partition, marks);
        self.validate(&partition, now);
        self.halt_where_unusable(now);
    }
}

/// The proven gap. `aborted`: records of aborted transactions, perhaps also of gaps that are no longer in the draft.
pub(super) fn gap(compaction: Compaction, offsets: Coverage, aborted: &Coverage) -> Gap {
    let aborted = offsets.count_of(aborted);
    let unseen = offsets.count() - aborted;
    let kind = match compaction {
        Compaction::Yes => GapKind::Compacted,
        Compaction::No | Compaction::Unknown => GapKind::Transaction,
    };
    let policy = compaction.policy();
    let proof = format!(
        "read again by a second client: {aborted} records of aborted transactions, {unseen} offsets without any record (cleanup.policy {policy})"
    );
    Gap { kind, offsets, proof }
}
