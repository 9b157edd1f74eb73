//! The state of a partition: reading, troubled, or halted with a reason and a range.
//!
//! `pipeline` sets it; `health` and `metrics` show it.

use crate::model::generation::{NewGeneration, Unread};
use crate::model::offset::OffsetRange;
use crate::model::topic::TopicPartition;

/// The largest allowed value of `kafka.max_unpacked_bytes`: librdkafka counts a batch's bytes in 31 bits.
pub const MAX_UNPACKED_BYTES: u64 = i32::MAX as u64;

/// Why a partition halted; an operator must decide how to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halt {
    pub reason: HaltReason,
    pub range: Option<OffsetRange>,
    /// A sentence that says what happened.
    pub detail: String,
    /// The known unread ranges of the logs that no longer exist. A new generation gives them up.
    pub unread: Vec<Unread>,
}

impl Halt {
    pub fn new(reason: HaltReason, range: Option<OffsetRange>, detail: impl Into<String>) -> Self {
        Self { reason, range, detail: detail.into(), unread: Vec::new() }
    }

    /// The remedy for the operator: the command to copy, if there is one, and a link to the section of the documents.
    pub fn remedy(&self, partition: &TopicPartition) -> String {
        let action = self.action(partition);
        format!("{action}; see docs/operations.md#halt-{}", self.reason.name())
    }

    fn action(&self, TopicPartition { topic, partition }: &TopicPartition) -> String {
        let continues = "; a running daemon then continues by itself";
        let rebase = |kind: NewGeneration| format!("`{}`{continues}", kind.command(topic, &self.unread));
        match (self.reason, self.range) {
            (HaltReason::Expired, Some(range)) => format!(
                "restore the range from elsewhere, or give it up: `gapless accept-loss {topic} {partition} {} {} --reason \"WHY\"`{continues}",
                range.from(),
                range.to()
            ),
            (HaltReason::Expired, None) => format!("give the range up with `gapless accept-loss {topic} {partition}`"),
            (HaltReason::Recreated, _) => {
                format!("read the new topic from its beginning: {}", rebase(NewGeneration::Recreated))
            }
            (HaltReason::OtherCluster, _) => format!(
                "correct kafka.brokers and restart; or, if the topic moved to this cluster, read it from its beginning: {}",
                rebase(NewGeneration::ClusterChanged)
            ),
            (HaltReason::BeyondLogEnd | HaltReason::Differs | HaltReason::Replaced, _) => format!(
                "find out why the broker's log changed; to read the current log as a new generation: {}",
                rebase(NewGeneration::LogReplaced)
            ),
            (HaltReason::Unreadable, _) => {
                "check the broker's log and restore the segment or the replica, then restart".to_owned()
            }
            (HaltReason::UnpackedTooLarge { needed }, _) if needed > MAX_UNPACKED_BYTES => format!(
                "no value of kafka.max_unpacked_bytes is large enough ({MAX_UNPACKED_BYTES} at most): produce its messages again in smaller batches"
            ),
            (HaltReason::UnpackedTooLarge { needed }, _) => {
                format!("set kafka.max_unpacked_bytes = {needed}, give the process this much more memory, then restart")
            }
            (HaltReason::OutOfMemory { needed }, _) => format!(
                "give the process {needed} bytes more memory than it has now, and another 16 MiB in reserve (MemoryMax, the container's limit, ulimit -d), then restart"
            ),
            (HaltReason::Database, _) => "undo the change that the message names, then restart".to_owned(),
            (HaltReason::SchemaChanged, _) => {
                "run the SQL that the message gives (`gapless check` lists all of it), then restart".to_owned()
            }
            (HaltReason::TooManyRejected, _) => {
                "correct format.preset or the producer, or raise the key, then restart; dead letters written already: `gapless replay --all`"
                    .to_owned()
            }
        }
    }
}

/// The bounded set of reasons to halt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HaltReason {
    /// Kafka no longer has the next offset to read.
    Expired,
    /// The position lies beyond the end of the log.
    BeyondLogEnd,
    /// A message differs from the recorded message of its offset.
    Differs,
    /// The topic has another topic id: it was deleted and created again.
    Recreated,
    /// The brokers belong to another cluster.
    OtherCluster,
    /// The last stored message is no longer in the log: the log was truncated and has grown again, or it was replaced.
    Replaced,
    /// librdkafka cannot read the log.
    Unreadable,
    /// An unpacked batch needs more than `kafka.max_unpacked_bytes`.
    UnpackedTooLarge { needed: u64 },
    /// There is not enough memory to unpack a batch.
    OutOfMemory { needed: u64 },
    /// PostgreSQL refuses the batch, and the cause is not a single row.
    Database,
    /// More messages than allowed cannot be decoded or stored: the producer or the format changed.
    TooManyRejected,
    /// Tables, keys, indexes, views or functions of the ledger differ from the schema that this version needs.
    SchemaChanged,
}

impl HaltReason {
    /// Returns true if Kafka now shows another log than the one that was read. The watermarks of the new log say
    /// nothing about the old one.
    pub fn is_of_another_log(self) -> bool {
        match self {
            Self::BeyondLogEnd | Self::Differs | Self::Recreated | Self::OtherCluster | Self::Replaced => true,
            Self::Expired
            | Self::Unreadable
            | Self::UnpackedTooLarge { .. }
            | Self::OutOfMemory { .. }
            | Self::Database
            | Self::TooManyRejected
            | Self::SchemaChanged => false,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::BeyondLogEnd => "beyond_log_end",
            Self::Differs => "differs",
            Self::Recreated => "recreated",
            Self::OtherCluster => "other_cluster",
            Self::Replaced => "replaced",
            Self::Unreadable => "unreadable",
            Self::UnpackedTooLarge { .. } => "unpacked_too_large",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::Database => "database",
            Self::TooManyRejected => "too_many_rejected",
            Self::SchemaChanged => "schema_changed",
        }
    }
}

/// Whether a partition is being read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartitionState {
    Reading,
    /// Fetching failed and is retried; the text is the reason.
    Troubled(String),
    Halted(Halt),
}

impl PartitionState {
    pub const NAMES: [&'static str; 3] = ["reading", "troubled", "halted"];

    /// The label of `gapless_partition_state`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Reading => "reading",
            Self::Troubled(_) => "troubled",
            Self::Halted(_) => "halted",
        }
    }

    pub fn is_halted(&self) -> bool {
        matches!(self, Self::Halted(_))
    }

    /// Returns true if the partition halted because Kafka now shows another log than the one that was read.
    pub fn is_of_another_log(&self) -> bool {
        matches!(self, Self::Halted(halt) if halt.reason.is_of_another_log())
    }
}
