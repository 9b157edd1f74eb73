//! Batches in flight: several are written at once, and they are committed in the order in which they were submitted.
//! What could not be committed is written again, one batch after the other, until it is known to be in the ledger or
//! void ([`super::recovery`]); nothing new is submitted meanwhile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::decoder::Decoder;
use super::event::CommittedSlice;
use super::ownership::Ownership;
use super::partition_buffer::MemoryPermit;
use super::recovery::Recovery;
use super::run::Stop;
use crate::ledger::catalogue::Differences;
use crate::ledger::connect::LedgerStore;
use crate::ledger::start::positions::Position;
use crate::ledger::write::sequencer::{CommitSlot, Predecessor, merge_breakers};
use crate::ledger::write::writer::{CommitError, Writer};
use crate::model::batch::{Batch, Slice};
use crate::model::offset::{NextOffset, Watermarks};
use crate::model::partition_state::Halt;
use crate::model::record::Record;
use crate::model::write_report::{Breakers, WriteReport};
use crate::observe::health::Health;

/// What became of batches, and of what the ledger was asked beside them.
#[derive(Debug)]
pub(super) enum CommitterEvent {
    Committed(CommittedBatch),
    /// The ledger refuses a slice of this partition, for good.
    Refused(i32, Halt),
    /// The stored positions. Slices of `void` partitions are given up.
    Positions {
        positions: BTreeMap<i32, Position>,
        void: Vec<i32>,
        asked_at: Instant,
    },
    /// Nothing is in flight any more.
    NothingInFlight,
    PartitionAdded(Position, Watermarks),
    /// The ledger's tables are not as this version needs them.
    LedgerUnusable(Box<Differences>),
    Stop(Stop),
}

/// A batch that is in the ledger.
#[derive(Debug)]
pub(super) struct CommittedBatch {
    pub(super) slices: Vec<CommittedSlice>,
    pub(super) messages: usize,
    /// When its messages were written, as their producers or brokers say (milliseconds since 1970).
    pub(super) timestamps_ms: Vec<i64>,
    pub(super) report: WriteReport,
    pub(super) begun: Instant,
}

impl CommittedBatch {
    pub(super) fn new(batch: &Batch, report: WriteReport, begun: Instant) -> Self {
        let slice = |slice: &Slice| {
            let last = slice.records.last();
            CommittedSlice {
                partition: slice.partition,
                to: slice.range.to(),
                anchor: last.map(Record::anchor),
                timestamp_ms: last.and_then(|record| record.timestamp_ms),
            }
        };
        let records = batch.slices().iter().flat_map(|slice| &slice.records);
        Self {
            slices: batch.slices().iter().map(slice).collect(),
            messages: batch.message_count(),
            timestamps_ms: records.filter_map(|record| record.timestamp_ms).collect(),
            report,
            begun,
        }
    }
}

/// What writing batches takes. Cheap to clone.
#[derive(Clone)]
pub(super) struct Ledger {
    pub(super) decoder: Decoder,
    pub(super) writer: Arc<Writer>,
    pub(super) store: LedgerStore,
    pub(super) ownership: Ownership,
    pub(super) health: Health,
    pub(super) stop: CancellationToken,
}

/// A batch and its part of the memory budget.
#[derive(Debug)]
pub(super) struct InFlightBatch {
    pub(super) batch: Batch,
    pub(super) permits: Vec<MemoryPermit>,
}

pub(super) struct InFlight {
    batch: Arc<Batch>,
    permits: Vec<MemoryPermit>,
    begun: Instant,
    task: Task<Result<WriteReport, CommitError>>,
}

/// A task that ends with its handle.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl InFlight {
    /// Its task has ended.
    fn into_batch(self) -> InFlightBatch {
        let Self { batch, permits, .. } = self;
        InFlightBatch { batch: Arc::into_inner(batch).expect("its task has ended"), permits }
    }

    /// Gives it up. It is not in the ledger if its predecessor is not.
    pub(super) async fn cancel(mut self) -> InFlightBatch {
        self.task.0.abort();
        // Its connection is closed and the batch ours again.
        let _ = (&mut self.task.0).await;
        self.into_batch()
    }
}

/// The task that writes again what failed, and what it says.
struct Recovering {
    events: mpsc::UnboundedReceiver<Recovered>,
    task: Task<()>,
}

/// What a recovery says.
pub(super) enum Recovered {
    Event(CommitterEvent),
    /// It is over.
    Done {
        breakers: Breakers,
        rejected_in_a_row: u32,
    },
}

pub(super) struct Committer {
    ledger: Ledger,
    max_in_flight: usize,
    queue: VecDeque<InFlight>,
    /// What the next batch waits for: the last one submitted.
    predecessor: Option<Predecessor>,
    /// Of what is known to be in the ledger.
    breakers: Breakers,
    /// Batches that the ledger rejected, since the last one it took.
    rejected_in_a_row: u32,
    recovering: Option<Recovering>,
    /// Commits of a recovery that was given up, not told yet.
    unread: VecDeque<CommitterEvent>,
    /// Questions beside the batches, one of each at a time.
    questions: JoinSet<(Question, Option<CommitterEvent>)>,
    asked: BTreeSet<Question>,
}

/// What PostgreSQL is asked beside the batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Question {
    Positions,
    /// To store the position of a partition.
    Partition(i32),
}

impl Committer {
    pub(super) fn new(ledger: Ledger, max_in_flight: usize) -> Self {
        Self {
            ledger,
            max_in_flight,
            queue: VecDeque::new(),
            predecessor: None,
            breakers: Breakers::new(),
            rejected_in_a_row: 0,
            recovering: None,
            unread: VecDeque::new(),
            questions: JoinSet::new(),
            asked: BTreeSet::new(),
        }
    }

    /// Opens the connections that a backlog will need.
    pub(super) async fn open(&self) {
        self.ledger.writer.open(self.max_in_flight).await;
    }

    pub(super) fn has_capacity(&self) -> bool {
        self.recovering.is_none() && self.queue.len() < self.max_in_flight
    }

    /// How many batches are in flight; those that are written again count as one.
    pub(super) fn in_flight(&self) -> usize {
        self.queue.len() + usize::from(self.recovering.is_some())
    }

    pub(super) fn is_recovering(&self) -> bool {
        self.recovering.is_some()
    }

    /// Writes a batch beside those in flight; it is committed after them.
    pub(super) fn submit(&mut self, batch: Batch, permits: Vec<MemoryPermit>) {
        assert!(self.has_capacity(), "a batch is submitted only where there is capacity");
        let (slot, next) = match self.predecessor.take() {
            Some(predecessor) => CommitSlot::after(predecessor),
            None => CommitSlot::first(self.breakers.clone()),
        };
        self.predecessor = Some(next);
        let batch = Arc::new(batch);
        let (ledger, written) = (self.ledger.clone(), Arc::clone(&batch));
        let task = tokio::spawn(async move {
            let decoded = ledger.decoder.decode(&written).await;
            ledger.writer.write(decoded, slot).await
        });
        self.queue.push_back(InFlight { batch, permits, begun: Instant::now(), task: Task(task) });
    }

    /// Asks for the stored positions.
    pub(super) fn reload_positions(&mut self) {
        let ledger = self.ledger.clone();
        self.ask(Question::Positions, async move {
            let asked_at = Instant::now();
            match ledger.stored_positions().await {
                Ok(Some(positions)) => Some(CommitterEvent::Positions { positions, void: Vec::new(), asked_at }),
                // Asked for again with the next audit.
                Ok(None) => None,
                Err(stop) => Some(CommitterEvent::Stop(stop)),
            }
        });
    }

    /// Stores the position of a partition that appeared, from offset 0 on.
    pub(super) fn add_partition(&mut self, partition: i32, marks: Watermarks) {
        let Ledger { store, ownership, .. } = self.ledger.clone();
        self.ask(Question::Partition(partition), async move {
            match store.add_partition(ownership.source_id, partition, NextOffset::ZERO, ownership.token.fence).await {
                Ok(Some(position)) => Some(CommitterEvent::PartitionAdded(position, marks)),
                // A newer daemon has it; the next look at the owner ends this one.
                Ok(None) => None,
                Err(error) => {
                    tracing::warn!(
                        event = "add_partition_failed",
                        kafka.partition = partition,
                        error = %error,
                        "cannot store the position of a new partition; the next look at Kafka tries again"
                    );
                    None
                }
            }
        });
    }

    fn ask(&mut self, question: Question, answer: impl Future<Output = Option<CommitterEvent>> + Send + 'static) {
        if self.asked.insert(question) {
            self.questions.spawn(async move { (question, answer.await) });
        }
    }

    /// The next event; for ever where nothing is in flight and nothing asked. May be given up and asked for again.
    pub(super) async fn next(&mut self) -> CommitterEvent {
        if let Some(event) = self.unread.pop_front() {
            return event;
        }
        loop {
            tokio::select! {
                Some(answer) = self.questions.join_next(), if !self.questions.is_empty() => {
                    let (question, event) = answer.expect("a panic ends the process, and none is aborted");
                    self.asked.remove(&question);
                    if let Some(event) = event {
                        return event;
                    }
                }
                said = recovered(&mut self.recovering), if self.recovering.is_some() => match said {
                    Recovered::Event(event) => {
                        if let CommitterEvent::Stop(_) = event {
                            // Its last word.
                            self.recovering = None;
                        }
                        return event;
                    }
                    Recovered::Done { breakers, rejected_in_a_row } => {
                        (self.breakers, self.rejected_in_a_row) = (breakers, rejected_in_a_row);
                        self.recovering = None;
                        return CommitterEvent::NothingInFlight;
                    }
                },
                result = front(&mut self.queue), if !self.queue.is_empty() => {
                    let flight = self.queue.pop_front().expect("it was there a moment ago");
                    let begun = flight.begun;
                    let batch = flight.into_batch();
                    match result {
                        Ok(report) => return self.committed(&batch.batch, report, begun),
                        Err(error) => self.recover(batch, error, begun),
                    }
                }
                else => return std::future::pending().await,
            }
        }
    }

    fn committed(&mut self, batch: &Batch, report: WriteReport, begun: Instant) -> CommitterEvent {
        merge_breakers(&mut self.breakers, &report.breakers);
        self.rejected_in_a_row = 0;
        self.ledger.health.database(None);
        self.ledger.health.batches(None);
        CommitterEvent::Committed(CommittedBatch::new(batch, report, begun))
    }

    /// The batch at the front failed: it is written again by itself, and those behind it follow.
    fn recover(&mut self, failed: InFlightBatch, error: CommitError, begun: Instant) {
        self.predecessor = None;
        let (says, events) = mpsc::unbounded_channel();
        let behind = std::mem::take(&mut self.queue);
        let breakers = std::mem::take(&mut self.breakers);
        let recovery = Recovery::new(self.ledger.clone(), says, breakers, self.rejected_in_a_row);
        let task = Task(tokio::spawn(recovery.run(failed, error, begun, behind)));
        self.recovering = Some(Recovering { events, task });
    }

    /// Gives up everything in flight. None of it is committed afterwards: its transactions roll back with their
    /// connections, but for a COMMIT that is on its way.
    pub(super) async fn cancel_all(&mut self) {
        self.predecessor = None;
        if let Some(Recovering { mut task, mut events }) = self.recovering.take() {
            task.0.abort();
            let _ = (&mut task.0).await;
            // What it had committed is told all the same.
            while let Ok(Recovered::Event(event)) = events.try_recv() {
                if let CommitterEvent::Committed(_) = event {
                    self.unread.push_back(event);
                }
            }
        }
        for flight in std::mem::take(&mut self.queue) {
            drop(flight.cancel().await);
        }
        // No batch waits for PostgreSQL now.
        self.ledger.health.batches(None);
    }
}

async fn recovered(recovering: &mut Option<Recovering>) -> Recovered {
    let Some(recovering) = recovering else { return std::future::pending().await };
    recovering.events.recv().await.expect("a recovery says when it is done, and a panic ends the process")
}

/// The result of the batch at the front.
async fn front(queue: &mut VecDeque<InFlight>) -> Result<WriteReport, CommitError> {
    let Some(front) = queue.front_mut() else { return std::future::pending().await };
    (&mut front.task.0).await.expect("a panic ends the process, and the front is not aborted")
}
