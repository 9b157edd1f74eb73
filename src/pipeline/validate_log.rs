//! Whether a log is the one that was read so far, and still has the offset that comes next: decided by identity and
//! watermarks. Pure; `gapless check`, `plan` and `status` use it too.

use crate::model::offset::{NextOffset, OffsetRange, Watermarks};
use crate::model::partition_state::{Halt, HaltReason};
use crate::model::topic::{IdentityMismatch, TopicIdentity};

/// The halt, if the topic that Kafka shows is not the one that was read so far.
pub fn topic_identity_mismatch(known: &TopicIdentity, found: &TopicIdentity) -> Option<Halt> {
    known.mismatch(found).as_ref().map(mismatch_halt)
}

/// The halt of every partition for a mismatch of identities.
pub fn mismatch_halt(mismatch: &IdentityMismatch) -> Halt {
    let reason = match mismatch {
        IdentityMismatch::Cluster { .. } => HaltReason::OtherCluster,
        IdentityMismatch::Topic { .. } => HaltReason::Recreated,
    };
    Halt::new(reason, None, mismatch.to_string())
}

/// The halt, if the log does not have the offset that must be read next: it is below the log start or beyond the end.
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
