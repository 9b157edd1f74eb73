//! Batches in flight: several are written at once, and they commit in the order in which they were submitted. When a
//! batch fails, it and its successors are written again one after the other, until each is known to be in the ledger or
//! void ([`super::recovery`]). No new batch is submitted meanwhile.

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
use crate::ledger::positions::Position;
use crate::ledger::write::sequencer::{CommitSlot, Predecessor, merge_breakers};
use crate::ledger::write::writer::{CommitError, Writer};
use crate::model::batch::{Batch, Slice};
use crate::model::offset::{NextOffset, Watermarks};
use crate::model::partition_state::Halt;
use crate::model::record::Record;
use crate::model::topic::{Topic, TopicPartition};
use crate::model::write_report::{Breakers, WriteReport};
use crate::observe::health::Health;

/// Results of batches, and answers to the questions beside them.
#[derive(Debug)]
pub(super) enum CommitterEvent {
    Committed(CommittedBatch),
    /// The ledger refuses a slice of this partition: the partition halts.
    Refused(TopicPartition, Halt),
    /// The stored positions, read at `asked_at` or later. Slices of `void` partitions are given up.
    Positions {
        positions: BTreeMap<TopicPartition, Position>,
        void: Vec<TopicPartition>,
        asked_at: Instant,
    },
    /// No batch is in flight any more.
    NothingInFlight,
    PartitionAdded(Position, Watermarks),
    /// The ledger's tables differ from what this version needs.
    LedgerUnusable(Box<Differences>),
    Stop(Stop),
}

/// A batch that is in the ledger.
#[derive(Debug)]
pub(super) struct CommittedBatch {
    pub(super) slices: Vec<CommittedSlice>,
    pub(super) messages: usize,
    /// The timestamps of its messages, set by producer or broker (milliseconds since 1970).
    pub(super) timestamps_ms: Vec<i64>,
    pub(super) report: WriteReport,
    pub(super) begun: Instant,
}

impl CommittedBatch {
    pub(super) fn new(batch: &Batch, report: WriteReport, begun: Instant) -> Self {
        let slice = |slice: &Slice| {
            let last = slice.records.last();
            CommittedSlice {
                partition: slice.partition.clone(),
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

/// The parts that write batches. Cheap to clone.
#[derive(Clone)]
pub(super) struct Ledger {
    pub(super) decoder: Decoder,
    /// The most rows of events, or outcomes, of one transaction. A message with more events is a transaction alone.
    pub(super) max_rows: usize,
    pub(super) writer: Arc<Writer>,
    pub(super) store: LedgerStore,
    pub(super) topic: Topic,
    pub(super) ownership: Ownership,
    pub(super) health: Health,
    pub(super) stop: CancellationToken,
}

/// A batch without a task, with its part of the memory budget.
#[derive(Debug)]
pub(super) struct InFlightBatch {
    pub(super) batch: Batch,
    pub(super) permits: Vec<MemoryPermit>,
}

/// A batch whose task writes it now.
pub(super) struct InFlight {
    batch: Arc<Batch>,
    permits: Vec<MemoryPermit>,
    begun: Instant,
    task: Task<Result<WriteReport, CommitError>>,
}

/// A task that is aborted when its handle is dropped.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl InFlight {
    /// The batch of a task that has ended.
    fn into_batch(self) -> InFlightBatch {
        let Self { batch, permits, .. } = self;
        InFlightBatch { batch: Arc::into_inner(batch).expect("its task has ended"), permits }
    }

    /// Aborts the task. The batch is not in the ledger if its predecessor is not.
    pub(super) async fn cancel(mut self) -> InFlightBatch {
        self.task.0.abort();
        // The task drops its connection and its reference to the batch.
        let _ = (&mut self.task.0).await;
        self.into_batch()
    }
}

/// The task that writes failed batches again, and its reports.
struct Recovering {
    events: mpsc::UnboundedReceiver<Recovered>,
    task: Task<()>,
}

/// A report of a recovery.
pub(super) enum Recovered {
    Event(CommitterEvent),
    /// The recovery has ended: no batch is in flight.
    Done {
        breakers: Breakers,
        rejected_in_a_row: u32,
    },
}

pub(super) struct Committer {
    ledger: Ledger,
    max_in_flight: usize,
    queue: VecDeque<InFlight>,
    /// The batch that was submitted last: the next one waits for its commit.
    predecessor: Option<Predecessor>,
    /// The breakers after the last committed batch.
    breakers: Breakers,
    /// The number of batches that the ledger rejected since the last commit.
    rejected_in_a_row: u32,
    recovering: Option<Recovering>,
    /// Commits of a cancelled recovery that were not reported yet.
    unread: VecDeque<CommitterEvent>,
    /// Questions to PostgreSQL beside the batches; each kind is asked once at a time.
    questions: JoinSet<(Question, Option<CommitterEvent>)>,
    asked: BTreeSet<Question>,
}

/// A question to PostgreSQL beside the batches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Question {
    /// The stored positions.
    Positions,
    /// Stores the position of a new partition.
    Partition(TopicPartition),
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

    /// The number of batches in flight. All batches of a recovery count as one.
    pub(super) fn in_flight(&self) -> usize {
        self.queue.len() + usize::from(self.recovering.is_some())
    }

    pub(super) fn is_recovering(&self) -> bool {
        self.recovering.is_some()
    }

    /// Writes a batch beside those in flight. It commits after them.
    pub(super) fn submit(&mut self, batch: Batch, permits: Vec<MemoryPermit>) {
        assert!(self.has_capacity(), "a batch is submitted only where there is capacity");
        let (slot, next) = match self.predecessor.take() {
            Some(predecessor) => CommitSlot::after(predecessor),
            None => CommitSlot::first(self.breakers.clone()),
        };
        self.predecessor = Some(next);
        let batch = Arc::new(batch);
        let (ledger, written) = (self.ledger.clone(), Arc::clone(&batch));
        let task = tokio::spawn(async move { ledger.write(&written, slot).await });
        self.queue.push_back(InFlight { batch, permits, begun: Instant::now(), task: Task(task) });
    }

    /// Reads the stored positions.
    pub(super) fn reload_positions(&mut self) {
        let ledger = self.ledger.clone();
        self.ask(Question::Positions, async move {
            let asked_at = Instant::now();
            match ledger.stored_positions().await {
                Ok(Some(positions)) => Some(CommitterEvent::Positions { positions, void: Vec::new(), asked_at }),
                // The next audit asks again.
                Ok(None) => None,
                Err(stop) => Some(CommitterEvent::Stop(stop)),
            }
        });
    }

    /// Stores the position of a new partition, which begins at offset 0.
    pub(super) fn add_partition(&mut self, partition: TopicPartition, marks: Watermarks) {
        let Ledger { store, ownership, .. } = self.ledger.clone();
        self.ask(Question::Partition(partition.clone()), async move {
            match store.add_partition(ownership.source_id, &partition, NextOffset::ZERO, ownership.token.fence).await {
                Ok(Some(position)) => Some(CommitterEvent::PartitionAdded(position, marks)),
                // A newer daemon owns the ledger; the next check of the owner ends this one.
                Ok(None) => None,
                Err(error) => {
                    tracing::warn!(
                        event = "add_partition_failed",
                        kafka.partition = partition.partition,
                        error = %error,
                        "cannot store the position of a new partition; the next snapshot of Kafka tries again"
                    );
                    None
                }
            }
        });
    }

    fn ask(&mut self, question: Question, answer: impl Future<Output = Option<CommitterEvent>> + Send + 'static) {
        if self.asked.insert(question.clone()) {
            self.questions.spawn(async move { (question, answer.await) });
        }
    }

    /// The next event. Never returns while no batch is in flight and no question is open. Cancel safe.
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
                report = recovered(&mut self.recovering), if self.recovering.is_some() => match report {
                    Recovered::Event(event) => {
                        if let CommitterEvent::Stop(_) = event {
                            // The recovery reports nothing after a stop.
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
                    let flight = self.queue.pop_front().expect("the batch whose task has ended");
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

    /// The first batch failed: it is written again alone, then its successors one by one.
    fn recover(&mut self, failed: InFlightBatch, error: CommitError, begun: Instant) {
        self.predecessor = None;
        let (reports, events) = mpsc::unbounded_channel();
        let behind = std::mem::take(&mut self.queue);
        let breakers = std::mem::take(&mut self.breakers);
        let recovery = Recovery::new(self.ledger.clone(), reports, breakers, self.rejected_in_a_row);
        let task = Task(tokio::spawn(recovery.run(failed, error, begun, behind)));
        self.recovering = Some(Recovering { events, task });
    }

    /// Gives up all batches in flight. Their transactions roll back with their connections. Only a COMMIT that was sent
    /// already may still be applied.
    pub(super) async fn cancel_all(&mut self) {
        self.predecessor = None;
        if let Some(Recovering { mut task, mut events }) = self.recovering.take() {
            task.0.abort();
            let _ = (&mut task.0).await;
            // Its commits that were not read yet are reported later.
            while let Ok(Recovered::Event(event)) = events.try_recv() {
                if let CommitterEvent::Committed(_) = event {
                    self.unread.push_back(event);
                }
            }
        }
        for flight in std::mem::take(&mut self.queue) {
            drop(flight.cancel().await);
        }
        // No batch waits for PostgreSQL any more.
        self.ledger.health.batches(None);
    }
}

async fn recovered(recovering: &mut Option<Recovering>) -> Recovered {
    let Some(recovering) = recovering else { return std::future::pending().await };
    recovering.events.recv().await.expect("a recovery reports its end, and a panic ends the process")
}

/// The result of the first batch.
async fn front(queue: &mut VecDeque<InFlight>) -> Result<WriteReport, CommitError> {
    let Some(front) = queue.front_mut() else { return std::future::pending().await };
    (&mut front.task.0).await.expect("a panic ends the process, and the front is not aborted")
}
