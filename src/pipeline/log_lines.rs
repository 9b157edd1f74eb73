//! The log lines about partitions, with their events and fields.

use super::event::LogLine;
use crate::model::offset::NextOffset;
use crate::model::partition_state::Halt;
use crate::model::topic::TopicPartition;

/// Logs that a partition halts.
pub(super) fn halted(partition: &TopicPartition, offset: NextOffset, halt: &Halt) {
    tracing::error!(
        event = "partition_halted",
        kafka.partition = partition.partition,
        kafka.offset = offset.get(),
        halt.reason = halt.reason.name(),
        halt.range = halt.range.map(|range| range.to_string()),
        "partition halted: {}; {}",
        halt.detail,
        halt.remedy(partition)
    );
}

pub(super) fn log(line: LogLine) {
    match line {
        LogLine::Suspended { partition, offset, reason, is_new: false } => {
            tracing::debug!(
                kafka.partition = partition.partition,
                kafka.offset = offset.get(),
                "still suspended: {reason}"
            );
        }
        LogLine::Suspended { partition, offset, reason, is_new: true } => tracing::warn!(
            event = "partition_suspended",
            kafka.partition = partition.partition,
            kafka.offset = offset.get(),
            "partition suspended, it is tried again: {reason}"
        ),
        LogLine::Resumed { partition, offset, after } => tracing::info!(
            event = "partition_resumed",
            kafka.partition = partition.partition,
            kafka.offset = offset.get(),
            duration_ms = after.as_millis() as u64,
            "partition resumed: it is read again"
        ),
        LogLine::DeliveredTwice { partition, offset } => {
            tracing::debug!(
                kafka.partition = partition.partition,
                kafka.offset = offset.get(),
                "delivered twice; the second delivery is ignored"
            );
        }
        LogLine::Parked { partition } => {
            tracing::debug!(kafka.partition = partition.partition, "gives up memory while it waits for a proof");
        }
        LogLine::MessagePassedOver { partition, offset } => tracing::error!(
            event = "committed_message_skipped",
            kafka.partition = partition.partition,
            kafka.offset = offset.get(),
            "the Kafka client skipped a committed message; reading again from the offset before it"
        ),
        LogLine::PositionReplaced { partition, remembered, stored } => tracing::warn!(
            event = "position_reloaded",
            kafka.partition = partition.partition,
            position.remembered = remembered.get(),
            position.stored = stored.get(),
            "the position in memory is not the stored one; reading continues from the stored position"
        ),
        LogLine::NewPartition { partition, offset } => {
            tracing::info!(
                event = "partition_added",
                kafka.partition = partition.partition,
                kafka.offset = offset.get(),
                "new partition"
            );
        }
        LogLine::RetentionNear { partition, offset, warning } => tracing::warn!(
            event = "retention_risk",
            kafka.partition = partition.partition,
            kafka.offset = offset.get(),
            "{warning}"
        ),
        LogLine::TransactionOpen { partition, offset, warning } => tracing::warn!(
            event = "last_stable_offset_stalled",
            kafka.partition = partition.partition,
            kafka.offset = offset.get(),
            "{warning}"
        ),
    }
}
