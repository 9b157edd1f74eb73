//! The input and output of [`super::partition_set`]: events go in, actions come out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::partition_buffer::MemoryPermit;
use super::stall_detector::DeliveryCount;
use crate::kafka::anchors::Found;
use crate::kafka::gap_prover::Finding;
use crate::kafka::reader::Assignment;
use crate::kafka::unpacked::NotUnpacked;
use crate::ledger::positions::Position;
use crate::model::batch::Batch;
use crate::model::offset::{Coverage, NextOffset, Offset, Watermarks};
use crate::model::partition_state::{Halt, PartitionState};
use crate::model::record::{Anchor, AssignmentEpoch, Record};
use crate::model::topic::{Compaction, Retention, Topic, TopicPartition, TopicSnapshot};
use crate::observe::health::RetentionRisk;

/// The time of an event, by the monotonic clock and by the system clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) instant: Instant,
    /// Milliseconds since 1970.
    pub(super) unix_ms: i64,
}

/// Why fetching a partition failed.
#[derive(Debug, Clone)]
pub(super) enum FetchFailure {
    /// With the reason. It names the missing right if a right is missing.
    Unavailable(String),
    /// The log seems to be damaged.
    Damaged(String),
    /// A sound batch needs more memory after decompression than is allowed or available. With the reason as text.
    NotUnpacked(NotUnpacked, String),
}

impl FetchFailure {
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Unavailable(reason) | Self::Damaged(reason) | Self::NotUnpacked(_, reason) => reason,
        }
    }
}

/// The result of reading a gap again, to prove that it holds no message.
#[derive(Debug)]
pub(super) enum GapProof {
    Found(Finding, Compaction),
    /// Kafka gave no answer, for this reason.
    Failed(String),
}

/// The result of reading the last stored message of a partition back.
#[derive(Debug)]
pub(super) enum AnchorCheck {
    Found(Found, Compaction),
    /// The batch that holds the message is sound, but needs more memory after decompression than is allowed or
    /// available.
    NotUnpacked(NotUnpacked),
    Failed(String),
}

/// A slice that is in the ledger.
#[derive(Debug, Clone)]
pub(super) struct CommittedSlice {
    pub(super) partition: TopicPartition,
    pub(super) to: NextOffset,
    /// The last message of the slice, and its timestamp (milliseconds since 1970).
    pub(super) anchor: Option<Anchor>,
    pub(super) timestamp_ms: Option<i64>,
}

/// An event outside the set.
#[derive(Debug)]
pub(super) enum Event {
    /// Records of one topic in the order of their delivery, with their part of the memory budget.
    Fetched(Topic, Vec<Record>, MemoryPermit),
    /// Everything below the offset was delivered.
    ReachedEnd(TopicPartition, AssignmentEpoch, NextOffset),
    /// The fetch position of these partitions has moved, perhaps without a delivery.
    Progressed(Vec<(TopicPartition, AssignmentEpoch)>),
    FetchFailed(TopicPartition, AssignmentEpoch, FetchFailure),
    GapProof {
        partition: TopicPartition,
        proof_id: u64,
        result: GapProof,
    },
    AnchorCheck {
        partition: TopicPartition,
        epoch: AssignmentEpoch,
        anchor: Anchor,
        result: AnchorCheck,
    },
    /// The topic as Kafka shows it. `reader_is_blocked`: the loop takes no records from the client at present.
    Snapshot {
        snapshot: TopicSnapshot,
        delivered: DeliveryCount,
        reader_is_blocked: bool,
    },
    /// Kafka gave no snapshot.
    NoSnapshot,
    RetentionChanged(Retention),
    Committed(Vec<CommittedSlice>),
    /// The size of a committed batch. `rows`: of its events, and one of each message without events.
    Written {
        messages: usize,
        rows: usize,
    },
    /// No batch is in flight any more. Submitted slices that are not committed are given up.
    NothingInFlight,
    /// The ledger refuses a slice of this partition.
    Refused(TopicPartition, Halt),
    /// The stored positions, read at `asked_at` or later. For `void` partitions they replace the memory in any case.
    LedgerPositions {
        positions: BTreeMap<TopicPartition, Position>,
        void: Vec<TopicPartition>,
        asked_at: Instant,
    },
    /// The stored positions, as an audit found them.
    PositionsSeen {
        positions: BTreeMap<TopicPartition, NextOffset>,
        asked_at: Instant,
    },
    /// The position of a new partition is in the ledger.
    PartitionAdded(Position, Watermarks),
    /// The ledger's tables differ from what this version needs: no partition is read any more.
    LedgerUnusable(Halt),
    /// A new reading client has replaced the old one, for this reason.
    ReaderReplaced(String),
    /// The end of a loop iteration: batches may be made.
    Tick {
        in_flight: usize,
        has_capacity: bool,
        out_of_memory: bool,
    },
}

/// A request of the set to the loop.
#[derive(Debug)]
pub(super) enum Action {
    Assign(Assignment),
    Unassign(TopicPartition),
    /// Read these offsets again and prove that they hold no message.
    ProveGap {
        partition: TopicPartition,
        proof_id: u64,
        gaps: Coverage,
    },
    /// Read the last stored message back.
    CheckAnchor {
        partition: TopicPartition,
        epoch: AssignmentEpoch,
        anchor: Anchor,
    },
    SubmitBatch(Batch, Vec<MemoryPermit>),
    /// A partition halts. Its log end is written to the ledger at once.
    Halt {
        partition: TopicPartition,
        offset: NextOffset,
        halt: Halt,
    },
    /// The highest log end that was seen, by position id.
    RecordLogEnd(i32, NextOffset),
    /// The state of a partition, for health, metrics and the ledger.
    Publish {
        partition: TopicPartition,
        next: NextOffset,
        marks: Option<Watermarks>,
        state: PartitionState,
    },
    PublishRisk(TopicPartition, RetentionRisk),
    /// Ask Kafka for a snapshot soon.
    TakeSnapshot,
    /// Replace the reading client, for this reason.
    ReplaceReader(String),
    /// Store the position of a new partition.
    AddPartition(TopicPartition, Watermarks),
    ReloadPositions,
    Log(LogLine),
}

/// A log line about one partition.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LogLine {
    Suspended {
        partition: TopicPartition,
        offset: NextOffset,
        reason: String,
        is_new: bool,
    },
    Resumed {
        partition: TopicPartition,
        offset: NextOffset,
        after: Duration,
    },
    DeliveredTwice {
        partition: TopicPartition,
        offset: Offset,
    },
    /// The partition gives up memory while it waits for a proof.
    Parked {
        partition: TopicPartition,
    },
    MessagePassedOver {
        partition: TopicPartition,
        offset: Offset,
    },
    PositionReplaced {
        partition: TopicPartition,
        remembered: NextOffset,
        stored: NextOffset,
    },
    NewPartition {
        partition: TopicPartition,
        offset: NextOffset,
    },
    RetentionNear {
        partition: TopicPartition,
        offset: NextOffset,
        warning: String,
    },
    TransactionOpen {
        partition: TopicPartition,
        offset: NextOffset,
        warning: String,
    },
}
