//! The two sides of [`super::partition_set`]: the events that it is given, and the actions that it asks for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::partition_buffer::MemoryPermit;
use super::stall_detector::DeliveryCount;
use crate::kafka::anchors::Found;
use crate::kafka::gap_prover::Finding;
use crate::kafka::reader::Assignment;
use crate::kafka::unpacked::NotUnpacked;
use crate::ledger::start::positions::Position;
use crate::model::batch::Batch;
use crate::model::offset::{Coverage, NextOffset, Offset, Watermarks};
use crate::model::partition_state::{Halt, PartitionState};
use crate::model::record::{Anchor, AssignmentEpoch, Record};
use crate::model::topic::{Compaction, Retention, TopicSnapshot};
use crate::observe::health::RetentionRisk;

/// The moment of an event, by the clock that only goes forward and by the calendar's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) instant: Instant,
    /// Milliseconds since 1970.
    pub(super) unix_ms: i64,
}

/// Why fetching a partition failed.
#[derive(Debug, Clone)]
pub(super) enum FetchFailure {
    /// The reason, which names the right where one is missing.
    Unavailable(String),
    /// The log itself is damaged, as it seems.
    Damaged(String),
    /// A sound batch takes more memory unpacked than is allowed or there; and the reason as a text.
    NotUnpacked(NotUnpacked, String),
}

/// The outcome of reading offsets again that must be proven empty.
#[derive(Debug)]
pub(super) enum GapProof {
    Found(Finding, Compaction),
    /// There was no answer, and why.
    Failed(String),
}

/// The outcome of reading the last stored message of a partition back.
#[derive(Debug)]
pub(super) enum AnchorCheck {
    Found(Found, Compaction),
    /// The batch that holds it is sound, and takes more memory unpacked than is allowed or there.
    NotUnpacked(NotUnpacked),
    Failed(String),
}

/// A slice that is in the ledger.
#[derive(Debug, Clone)]
pub(super) struct CommittedSlice {
    pub(super) partition: i32,
    pub(super) to: NextOffset,
    /// The last message stored with it, and when it was written (milliseconds since 1970).
    pub(super) anchor: Option<Anchor>,
    pub(super) timestamp_ms: Option<i64>,
}

/// What happened outside the set.
#[derive(Debug)]
pub(super) enum Event {
    /// Records in the order in which the client delivered them, with their part of the memory budget.
    Fetched(Vec<Record>, MemoryPermit),
    /// Everything below the offset was delivered.
    ReachedEnd(i32, AssignmentEpoch, NextOffset),
    /// The client goes forward with these partitions, though it may deliver nothing.
    Progressed(Vec<(i32, AssignmentEpoch)>),
    FetchFailed(i32, AssignmentEpoch, FetchFailure),
    GapProof {
        partition: i32,
        proof_id: u64,
        result: GapProof,
    },
    AnchorCheck {
        partition: i32,
        epoch: AssignmentEpoch,
        anchor: Anchor,
        result: AnchorCheck,
    },
    /// Kafka shows the topic. `reader_is_blocked`: the client is not asked for more at present.
    Snapshot {
        snapshot: TopicSnapshot,
        delivered: DeliveryCount,
        reader_is_blocked: bool,
    },
    /// Kafka cannot be asked.
    NoSnapshot,
    RetentionChanged(Retention),
    Committed(Vec<CommittedSlice>),
    /// Nothing is in flight any more; slices that were and are not committed are given up.
    NothingInFlight,
    /// The ledger refuses a slice of this partition.
    Refused(i32, Halt),
    /// The stored positions, asked for at `asked_at`. Those of `void` partitions replace what is in memory in any case.
    LedgerPositions {
        positions: BTreeMap<i32, Position>,
        void: Vec<i32>,
        asked_at: Instant,
    },
    /// The positions as an audit saw them.
    PositionsSeen {
        positions: BTreeMap<i32, NextOffset>,
        asked_at: Instant,
    },
    /// A partition that appeared has its position in the ledger.
    PartitionAdded(Position, Watermarks),
    /// The ledger's tables are not as this version needs them: no partition is read any more.
    LedgerUnusable(Halt),
    /// The reading client was made anew, and why.
    ReaderReplaced(String),
    /// The end of a turn: batches may be made.
    Tick {
        in_flight: usize,
        has_capacity: bool,
        out_of_memory: bool,
    },
}

/// What is to be done outside the set.
#[derive(Debug)]
pub(super) enum Action {
    Assign(Assignment),
    Unassign(i32),
    /// Read these offsets again and prove that they hold no message.
    ProveGap {
        partition: i32,
        proof_id: u64,
        gaps: Coverage,
    },
    /// Read the last stored message back.
    CheckAnchor {
        partition: i32,
        epoch: AssignmentEpoch,
        anchor: Anchor,
    },
    SubmitBatch(Batch, Vec<MemoryPermit>),
    /// A partition stops for good; its log end is kept at once.
    Halt {
        partition: i32,
        offset: NextOffset,
        halt: Halt,
    },
    /// How far a log was seen to reach, by position id.
    RecordLogEnd(i32, NextOffset),
    /// A partition's state for health, metrics and the ledger.
    Publish {
        partition: i32,
        next: NextOffset,
        marks: Option<Watermarks>,
        state: PartitionState,
    },
    PublishRisk(i32, RetentionRisk),
    /// Ask Kafka for a snapshot soon.
    TakeSnapshot,
    /// Make a new reading client, and why.
    ReplaceReader(String),
    /// Store the position of a partition that appeared.
    AddPartition(i32, Watermarks),
    ReloadPositions,
    Log(LogLine),
}

/// A line for the log, of one partition.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LogLine {
    Suspended {
        partition: i32,
        offset: NextOffset,
        reason: String,
        is_new: bool,
    },
    Resumed {
        partition: i32,
        offset: NextOffset,
        after: Duration,
    },
    DeliveredTwice {
        partition: i32,
        offset: Offset,
    },
    /// It gives up memory while it waits for a proof.
    Parked {
        partition: i32,
    },
    MessagePassedOver {
        partition: i32,
        offset: Offset,
    },
    PositionReplaced {
        partition: i32,
        remembered: NextOffset,
        stored: NextOffset,
    },
    NewPartition {
        partition: i32,
        offset: NextOffset,
    },
    RetentionNear {
        partition: i32,
        offset: NextOffset,
        warning: String,
    },
    TransactionOpen {
        partition: i32,
        offset: NextOffset,
        warning: String,
    },
}
