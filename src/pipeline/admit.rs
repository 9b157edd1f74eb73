//! Whether a partition may be read: only a log that still holds the last stored message is the one
//! whose offsets the position means. Asked at every assignment, whatever led to it.

use super::{Pipeline, believe_after};
use crate::kafka::SourceError;
use crate::kafka::anchors::Found;
use crate::model::offset::{NextOffset, OffsetRange, Watermarks};
use crate::model::partition_state::{Halt, HaltReason};
use crate::model::record::{Anchor, Digest, Epoch};
use crate::model::topic::{Compaction, IdentityMismatch, TopicIdentity};

/// Why what Kafka shows is not what was read so far.
pub fn topic_identity_mismatch(known: &TopicIdentity, found: &TopicIdentity) -> Option<Halt> {
    known.mismatch(found).as_ref().map(mismatch_halt)
}

/// What a difference of that kind halts every partition for.
pub fn mismatch_halt(difference: &IdentityMismatch) -> Halt {
    let reason = match difference {
        IdentityMismatch::Cluster { .. } => HaltReason::OtherCluster,
        IdentityMismatch::Topic { .. } => HaltReason::Recreated,
    };
    Halt::new(reason, None, difference.to_string())
}

impl Pipeline {
    /// Looks at the log of a partition that is in trouble; assigns it, halts it, or leaves it to
    /// the next look.
    pub(super) fn admit(&mut self, partition: i32) {
        let Some(p) = self.partitions.get_mut(&partition) else { return };
        // What was read before the trouble is written first: Kafka may not have it any more.
        if p.state().is_halted() || !p.is_written() {
            return;
        }
        if let Some(halt) = p.marks.and_then(|marks| lost(p.expected(), marks)) {
            if halt.reason == HaltReason::Expired || p.failing_for() >= believe_after() {
                self.halt(partition, halt);
            } else {
                self.not_yet(partition, &halt.detail);
            }
            return;
        }
        match p.position().anchor {
            // With the log start behind it, its absence is explained.
            Some(anchor) if p.marks.is_none_or(|marks| anchor.offset.at() >= marks.log_start) => {
                if p.asks() {
                    self.proofs.ask_for_anchor(partition, p.epoch(), anchor);
                }
            }
            _ => self.assign(partition),
        }
        self.show(partition);
    }

    /// What lies where the last stored message of a partition should be.
    pub(super) fn anchor_found(
        &mut self,
        partition: i32,
        epoch: Epoch,
        anchor: Anchor,
        found: Result<Found, SourceError>,
        compaction: Compaction,
    ) {
        if !self.partitions.get_mut(&partition).is_some_and(|p| p.answered(epoch)) {
            return;
        }
        match found {
            Ok(Found::Message(digest)) if digest == anchor.digest => self.assign(partition),
            Ok(Found::Message(digest)) => self.halt_replaced(partition, anchor, Some(digest)),
            Ok(Found::NoMessage) if compaction != Compaction::No => self.assign(partition),
            Ok(Found::NoMessage) => self.halt_replaced(partition, anchor, None),
            Ok(Found::OutOfRange) => self.anchor_out_of_range(partition, anchor),
            Err(SourceError::NotUnpacked { batch, .. }) => self.halt_not_unpacked(partition, batch),
            Err(error) => {
                let why = error.missing_right(&self.kafka).unwrap_or_else(|| format!("{error}; {}", error.remedy()));
                self.not_yet(partition, &format!("cannot read the last stored message back: {why}"));
            }
        }
        self.show(partition);
    }

    /// Where its watermarks reach further, the log is not truncated: the client cannot read it.
    fn anchor_out_of_range(&mut self, partition: i32, anchor: Anchor) {
        let p = self.partitions.get(&partition);
        let (failing, marks) = p.map_or((believe_after(), None), |p| (p.failing_for(), p.marks));
        let at = anchor.offset;
        let (reason, detail) = match marks.filter(|marks| marks.log_end >= at.next()) {
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
        if failing < believe_after() {
            return self.not_yet(partition, &detail);
        }
        self.halt(partition, Halt::new(reason, OffsetRange::new(at.at(), at.next()), detail));
    }

    fn assign(&mut self, partition: i32) {
        if let Some(p) = self.partitions.get_mut(&partition) {
            let assignment = p.assign_anew();
            self.reader.add(assignment);
        }
    }

    /// Looked at again with the next watermarks.
    pub(super) fn not_yet(&mut self, partition: i32, why: &str) {
        let Some(p) = self.partitions.get_mut(&partition) else { return };
        p.not_admitted(why);
        self.reader.remove(partition);
        self.show(partition);
        self.watch.look_now();
    }

    fn halt_replaced(&mut self, partition: i32, anchor: Anchor, found: Option<Digest>) {
        let found = found.map_or("no message".to_owned(), |digest| format!("a message with digest {digest}"));
        let detail = format!(
            "the last stored message, at offset {}, had digest {}; the log has {found} there: truncated and grown again, or replaced",
            anchor.offset, anchor.digest
        );
        let range = OffsetRange::new(anchor.offset.at(), anchor.offset.next());
        self.halt(partition, Halt::new(HaltReason::Replaced, range, detail));
    }
}

/// What must be read next and is not in the log.
pub fn lost(expected: NextOffset, marks: Watermarks) -> Option<Halt> {
    if let Some(range) = OffsetRange::new(expected, marks.log_start) {
        let detail = format!(
            "Kafka no longer has offsets {range} ({} offsets), its log starts at {}: retention or delete-records was faster",
            range.count(),
            range.to()
        );
        return Some(Halt::new(HaltReason::Expired, Some(range), detail));
    }
    let range = OffsetRange::new(marks.log_end, expected)?;
    let detail = format!(
        "the position {expected} lies beyond the log end {}: the log was truncated, or the topic re-created",
        marks.log_end
    );
    Some(Halt::new(HaltReason::BeyondLogEnd, Some(range), detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: i64) -> NextOffset {
        NextOffset::new(n).expect("not negative")
    }

    #[test]
    fn a_log_start_at_the_position_is_no_loss() {
        let marks = Watermarks { log_start: at(5), last_stable: at(5), log_end: at(5) };
        assert_eq!(lost(at(5), marks), None);
        assert_eq!(lost(at(4), marks).expect("lost").range.expect("a range").to_string(), "[4, 5)");
        assert_eq!(lost(at(7), marks).expect("beyond").reason, HaltReason::BeyondLogEnd);
    }
}
