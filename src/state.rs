//! How a partition stands: being read, troubled, or halted with a reason and a range.
//!
//! Made by `pipeline`, shown by `health` and `metrics`.

use crate::position::OffsetRange;

/// Why a partition stopped; an operator must decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halt {
    pub reason: HaltReason,
    pub range: Option<OffsetRange>,
    /// What happened and what to do, in a sentence.
    pub detail: String,
}

impl Halt {
    /// What the operator can do, with the command to copy where there is one.
    pub fn remedy(&self, topic: &str, partition: i32) -> String {
        match (self.reason, self.range) {
            (HaltReason::Expired, Some(range)) => format!(
                "restore the range from elsewhere, or give it up: `gapless accept-loss {topic} {partition} {} {} --reason \"WHY\"`; a running daemon then goes on",
                range.from(),
                range.to()
            ),
            (HaltReason::Expired, None) => format!("give the range up with `gapless accept-loss {topic} {partition}`"),
            (HaltReason::Recreated, _) => {
                format!("read the new topic from its beginning: `gapless rebase {topic} --reason \"WHY\"`, then restart")
            }
            (HaltReason::OtherCluster, _) => format!(
                "correct kafka.brokers; if the topic moved to this cluster: `gapless rebase {topic} --cluster-changed --reason \"WHY\"`, then restart"
            ),
            (HaltReason::BeyondLogEnd | HaltReason::Differs | HaltReason::Replaced, _) => format!(
                "find out what happened to the broker's log; to read what is there now as a new generation: `gapless rebase {topic} --log-replaced --reason \"WHY\"`, then restart"
            ),
            (HaltReason::Unreadable, _) => {
                "look at the broker's log and restore the segment or the replica, then restart".to_owned()
            }
            (HaltReason::Database, _) => "undo what the message names, then restart".to_owned(),
            (HaltReason::TooManyRejected, _) => {
                "mend format.preset or the producer, or raise the key, then restart; dead letters written already: `gapless replay`"
                    .to_owned()
            }
        }
    }
}

/// The bounded set of reasons to halt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HaltReason {
    /// Kafka no longer has what must be read next.
    Expired,
    /// The position lies beyond the end of the log.
    BeyondLogEnd,
    /// A message differs from the one recorded at its offset.
    Differs,
    /// The topic's id is another one: it was deleted and created again.
    Recreated,
    /// The brokers belong to another cluster.
    OtherCluster,
    /// The last stored message is not in the log any more: truncated and grown again, or replaced.
    Replaced,
    /// librdkafka cannot read the log.
    Unreadable,
    /// PostgreSQL refuses the batch, and not because of a row.
    Database,
    /// More messages than allowed cannot be understood or stored: the producer or the format changed.
    TooManyRejected,
}

impl HaltReason {
    pub fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::BeyondLogEnd => "beyond_log_end",
            Self::Differs => "differs",
            Self::Recreated => "recreated",
            Self::OtherCluster => "other_cluster",
            Self::Replaced => "replaced",
            Self::Unreadable => "unreadable",
            Self::Database => "database",
            Self::TooManyRejected => "too_many_rejected",
        }
    }
}

/// Whether a partition is being read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartitionState {
    Reading,
    /// Fetching failed and is tried again; the text says why.
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
}
