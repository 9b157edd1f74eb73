//! The poll thread: one consumer with explicit assignments, which sends records in chunks.
//!
//! One OS thread owns the consumer. It only executes commands and polls, and each wait is finite. It makes no
//! decisions: records, ends and errors go to the pipeline in librdkafka's order. When the byte budget is used up,
//! because the pipeline is slower, it stops polling; without a group protocol this has no effect on the assignment. It
//! uses no subscribe, seek, pause, stream or rebalance callback: each of them is known to lose an explicit offset or a
//! wake-up.

use std::collections::BTreeMap;
use std::sync::mpsc as commands;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::SourceError;
use super::client::{self, Context, Fetch, Isolation};
use super::ffi::{self, ConsumerQueue, KafkaEvent};
use super::statistics::Fetching;
use super::unpacked::NotUnpacked;
use crate::config::KafkaConfig;
use crate::failpoints::{self, Failpoint};
use crate::model::offset::NextOffset;
use crate::model::record::{AssignmentEpoch, Record};
use crate::model::topic::{Topic, TopicPartition};

/// How long the thread waits for an event before it checks its commands again. It bounds the delay of a command, and
/// costs ten wake-ups a second while the thread is idle.
const POLL: Duration = Duration::from_millis(100);
/// The maximum number of records in a chunk: few enough for a short delay, enough to make the cost of sending
/// negligible.
const CHUNK_RECORDS: usize = 256;
/// A chunk ends with the record that reaches this size.
const CHUNK_BYTES: usize = 256 * 1024;

/// A partition, the offset to read from, and the epoch of this assignment.
#[derive(Debug, Clone)]
pub struct Assignment {
    pub partition: TopicPartition,
    pub from: NextOffset,
    pub epoch: AssignmentEpoch,
    /// The leader epoch of the record just before `from`, if known: librdkafka asks the leader whether its log still
    /// contains that epoch.
    pub leader_epoch: Option<i32>,
}

/// Why fetching a partition stopped.
#[derive(Debug, Clone)]
pub struct FetchError {
    pub partition: TopicPartition,
    pub epoch: AssignmentEpoch,
    pub code: RDKafkaErrorCode,
    pub message: String,
    /// Why a batch that is not damaged was not unpacked.
    pub not_unpacked: Option<NotUnpacked>,
}

impl FetchError {
    /// For a caller that does not try again: the same error with the remedy of a `SourceError`.
    pub fn into_error(self, operation: &'static str) -> SourceError {
        if let Some(batch) = self.not_unpacked {
            return SourceError::NotUnpacked { partition: self.partition, batch };
        }
        match self.is_damage() {
            true => SourceError::Log { partition: self.partition, message: self.message },
            false => SourceError::Call { operation, source: KafkaError::MessageConsumption(self.code) },
        }
    }

    /// Why the partition cannot be fetched, with librdkafka's text in parentheses, and the remedy.
    pub fn why(&self) -> String {
        if let Some(batch) = self.not_unpacked {
            return format!("{batch}; gapless tries again");
        }
        let (cause, remedy) = match self.code {
            _ if self.is_out_of_range() => {
                ("Kafka does not have the next offset", "gapless checks now whether messages are lost")
            }
            _ if self.is_damage() => {
                ("a batch cannot be read", "check the broker's log file and the partition's segments")
            }
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => (
                "Kafka does not know the partition",
                "check whether the topic was deleted; gapless waits until the partition exists again",
            ),
            _ => (
                "the partition cannot be fetched",
                "check that its leader is up and answers; gapless tries again until it does",
            ),
        };
        format!("{cause} ({}); {remedy}", self.message)
    }

    /// Returns true if the log starts after the requested offset or ends before it.
    pub fn is_out_of_range(&self) -> bool {
        matches!(self.code, RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)
    }

    /// Returns true if the log itself is damaged (checksum, format), not the connection to the broker.
    pub fn is_damage(&self) -> bool {
        self.not_unpacked.is_none()
            && matches!(
                self.code,
                RDKafkaErrorCode::BadMessage
                    | RDKafkaErrorCode::InvalidMessage
                    | RDKafkaErrorCode::BadCompression
                    | RDKafkaErrorCode::NotImplemented
            )
    }
}

/// What the reader sends, in librdkafka's order.
#[derive(Debug)]
pub enum Fetched {
    Records(Chunk),
    /// Everything below `offset` was delivered, and the partition has no more records for now.
    End {
        partition: TopicPartition,
        epoch: AssignmentEpoch,
        offset: NextOffset,
    },
    Failed(FetchError),
    /// The client made progress with these partitions, though it may have delivered no record of them.
    Advanced(Vec<(TopicPartition, AssignmentEpoch)>),
    /// Kafka refuses this client's secrets, and their files have changed since: a new client must be created.
    SecretsChanged,
    /// An error that is not about one partition. librdkafka tries again by itself.
    Trouble {
        code: RDKafkaErrorCode,
        message: String,
    },
}

/// Records of one topic and their permit of the byte budget, which is released when the chunk is dropped.
#[derive(Debug)]
pub struct Chunk {
    pub topic: Topic,
    pub records: Vec<Record>,
    pub permit: OwnedSemaphorePermit,
}

enum Command {
    /// Assigns one partition, or assigns it again at another offset; the other partitions are read without
    /// interruption.
    Add(Assignment),
    Remove(TopicPartition),
    CommitHint(Vec<(TopicPartition, NextOffset)>),
}

/// The pipeline's handle of the poll thread. Dropping it stops the thread.
pub struct Reader {
    commands: commands::Sender<Command>,
    thread: Option<JoinHandle<()>>,
    budget: Arc<Semaphore>,
    refusals: Arc<Refusals>,
}

/// The error codes of refused offset commits, until they are read. Only lag tools use committed offsets.
type Refusals = Mutex<Vec<RDKafkaErrorCode>>;

impl Reader {
    /// Starts the thread. The receiver gets everything that it fetches.
    pub fn start(kafka: &KafkaConfig) -> Result<(Self, mpsc::Receiver<Fetched>), SourceError> {
        let fetch = Fetch::ahead(kafka.client_bytes());
        let consumer = client::consumer(kafka, &kafka.group, Isolation::ReadCommitted, fetch)?;
        let (command_tx, command_rx) = commands::channel();
        // The byte budget bounds the records; the channel's capacity only bounds events without records.
        let (fetched_tx, fetched_rx) = mpsc::channel(1024);
        let budget_bytes = kafka.drafted_bytes().min(Semaphore::MAX_PERMITS);
        let budget = Arc::new(Semaphore::new(budget_bytes));
        let consumer = Arc::new(consumer);
        let refusals = Arc::new(Refusals::default());
        let thread = PollThread {
            queue: ConsumerQueue::new(&consumer),
            consumer,
            topic: kafka.topic.clone(),
            epochs: BTreeMap::new(),
            fetching: Fetching::default(),
            fetched: fetched_tx,
            budget: Arc::clone(&budget),
            budget_bytes,
            refusals: Arc::clone(&refusals),
        };
        let thread = std::thread::Builder::new()
            .name("kafka-poll".into())
            .spawn(move || thread.run(&command_rx))
            .map_err(|error| SourceError::thread(&error))?;
        Ok((Self { commands: command_tx, thread: Some(thread), budget, refusals }, fetched_rx))
    }

    /// Assigns one more partition, or assigns a partition again at another offset.
    pub fn add(&self, assignment: Assignment) {
        self.command(Command::Add(assignment));
    }

    /// Stops reading one partition.
    pub fn remove(&self, partition: TopicPartition) {
        self.command(Command::Remove(partition));
    }

    /// Commits PostgreSQL's positions to Kafka, for lag tools; does not wait for the answer.
    pub fn commit_hint(&self, positions: Vec<(TopicPartition, NextOffset)>) {
        self.command(Command::CommitHint(positions));
    }

    /// Returns true if fetched records wait because the byte budget is used up.
    pub fn is_out_of_budget(&self) -> bool {
        self.budget.available_permits() < CHUNK_BYTES
    }

    /// The error codes of offset commits that Kafka refused since the last call, one for each commit.
    pub fn refused_commits(&self) -> Vec<RDKafkaErrorCode> {
        std::mem::take(&mut *self.refusals.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn command(&self, command: Command) {
        // The thread ends early only by a panic, and a panic ends the process.
        let _ = self.commands.send(command);
    }

    /// Ends the thread and waits for it at most `timeout`: closing a consumer whose broker hangs may take without
    /// limit, and the consumer holds nothing that must be saved. Other tasks run meanwhile.
    pub async fn stop(mut self, timeout: Duration) {
        self.budget.close();
        drop(std::mem::replace(&mut self.commands, commands::channel().0));
        let deadline = Instant::now() + timeout;
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

struct PollThread {
    queue: ConsumerQueue,
    consumer: Arc<BaseConsumer<Context>>,
    /// The topic of all records that this client fetches.
    topic: Topic,
    epochs: BTreeMap<TopicPartition, AssignmentEpoch>,
    fetching: Fetching,
    fetched: mpsc::Sender<Fetched>,
    budget: Arc<Semaphore>,
    budget_bytes: usize,
    refusals: Arc<Refusals>,
}

/// The receiver was dropped: the daemon stops.
struct ReceiverGone;

impl PollThread {
    fn run(mut self, commands: &commands::Receiver<Command>) {
        client::learn_leaders(&self.consumer, &self.topic);
        loop {
            match commands.try_recv() {
                Ok(command) => self.carry_out(command),
                Err(commands::TryRecvError::Empty) => match self.fetch().and_then(|()| self.check_not_outdated()) {
                    Ok(()) => {}
                    Err(ReceiverGone) => return,
                },
                Err(commands::TryRecvError::Disconnected) => return,
            }
        }
    }

    fn check_not_outdated(&self) -> Result<(), ReceiverGone> {
        if self.consumer.context().is_outdated() { self.send(Fetched::SecretsChanged) } else { Ok(()) }
    }

    fn carry_out(&mut self, command: Command) {
        let result = match command {
            Command::Add(assignment) => self.add(assignment),
            Command::Remove(partition) => self.remove(&partition),
            Command::CommitHint(positions) => {
                // A refused commit affects lag tools only.
                let _ = self.queue.commit(&list(positions.iter().map(|(partition, next)| (partition, *next))));
                Ok(())
            }
        };
        // librdkafka refuses an assignment only because of a bug in this program.
        result.expect("librdkafka accepts an explicit assignment");
    }

    fn add(&mut self, assignment: Assignment) -> rdkafka::error::KafkaResult<()> {
        let Assignment { partition, from, epoch, leader_epoch } = assignment;
        debug_assert_eq!(partition.topic, self.topic, "a client fetches one topic");
        self.remove(&partition)?;
        let list = list([(&partition, from)]);
        if let Some(epoch) = leader_epoch {
            ffi::set_leader_epoch(&list, &partition, epoch);
        }
        self.epochs.insert(partition, epoch);
        self.consumer.incremental_assign(&list)
    }

    fn remove(&mut self, partition: &TopicPartition) -> rdkafka::error::KafkaResult<()> {
        if self.epochs.remove(partition).is_none() {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        list.add_partition(&partition.topic, partition.partition);
        self.consumer.incremental_unassign(&list)
    }

    /// Polls until a chunk is full or no further event is ready, and sends the chunk.
    fn fetch(&mut self) -> Result<(), ReceiverGone> {
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut timeout = POLL;
        let mut key = self.topic.partition(0);
        while let Some(event) = self.queue.poll(timeout) {
            timeout = Duration::ZERO;
            match self.translate(event, &mut key) {
                Some(Ok(record)) => {
                    bytes += record.footprint();
                    records.push(record);
                }
                // The records before this event must be sent before it.
                Some(Err(other)) => {
                    self.hand_over(std::mem::take(&mut records), std::mem::take(&mut bytes))?;
                    self.send(other)?;
                }
                None => {}
            }
            if records.len() >= CHUNK_RECORDS || bytes >= CHUNK_BYTES {
                break;
            }
        }
        self.hand_over(records, bytes)
    }

    /// Adds topic and epoch of the assignment to an event; `None` if the partition is no longer assigned. `key` names a
    /// partition of the topic, any one; it is reused, so that no record needs a key of its own.
    fn translate(&mut self, event: KafkaEvent, key: &mut TopicPartition) -> Option<Result<Record, Fetched>> {
        let (topic, epochs, fetching) = (&self.topic, &self.epochs, &mut self.fetching);
        let epoch = |partition: &TopicPartition| epochs.get(partition).copied();
        Some(match event {
            KafkaEvent::Record(mut record) => {
                failpoints::hit_sync(Failpoint::SourceRecord).ok()?;
                key.partition = record.partition;
                record.epoch = epoch(key)?;
                Ok(record)
            }
            KafkaEvent::End { partition, offset } => {
                let partition = topic.partition(partition);
                Err(Fetched::End { epoch: epoch(&partition)?, partition, offset: NextOffset::new(offset)? })
            }
            KafkaEvent::PartitionError { partition, code, message, not_unpacked } => {
                let partition = topic.partition(partition);
                let epoch = epoch(&partition)?;
                Err(Fetched::Failed(FetchError { partition, epoch, code, message, not_unpacked }))
            }
            KafkaEvent::Statistics(report) => {
                let advanced = fetching.advanced(&report).into_iter();
                let advanced: Vec<_> = advanced.filter_map(|p| epoch(&p).map(|epoch| (p, epoch))).collect();
                if advanced.is_empty() {
                    return None;
                }
                Err(Fetched::Advanced(advanced))
            }
            KafkaEvent::CommitAnswered(refused) => {
                // Commits are sent every few seconds, so this list stays short.
                self.refusals.lock().unwrap_or_else(PoisonError::into_inner).extend(refused);
                return None;
            }
            KafkaEvent::ClientError { code, message } => Err(Fetched::Trouble { code, message }),
        })
    }

    fn hand_over(&self, records: Vec<Record>, bytes: usize) -> Result<(), ReceiverGone> {
        if records.is_empty() {
            return Ok(());
        }
        let permits = u32::try_from(bytes.min(self.budget_bytes)).unwrap_or(u32::MAX);
        let permit = loop {
            match Arc::clone(&self.budget).try_acquire_many_owned(permits) {
                Ok(permit) => break permit,
                Err(tokio::sync::TryAcquireError::Closed) => return Err(ReceiverGone),
                // The pipeline is slower. It frees bytes batch by batch, so polling the budget is enough.
                Err(tokio::sync::TryAcquireError::NoPermits) => {
                    // These events would accumulate. Dropping them is safe: the fetched records wait here.
                    while self.queue.poll_aside().is_some() {}
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        };
        self.send(Fetched::Records(Chunk { topic: self.topic.clone(), records, permit }))
    }

    fn send(&self, fetched: Fetched) -> Result<(), ReceiverGone> {
        self.fetched.blocking_send(fetched).map_err(|_| ReceiverGone)
    }
}

fn list<'a>(positions: impl IntoIterator<Item = (&'a TopicPartition, NextOffset)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (TopicPartition { topic, partition }, next) in positions {
        list.add_partition_offset(topic, *partition, KafkaOffset::Offset(next.get()))
            .expect("a non-negative offset is valid");
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stopping_a_reader_whose_thread_hangs_lets_other_tasks_run() {
        let (release, hangs) = commands::channel::<()>();
        let thread = std::thread::spawn(move || {
            let _ = hangs.recv();
        });
        let budget = Arc::new(Semaphore::new(1));
        let reader = Reader { commands: commands::channel().0, thread: Some(thread), budget, refusals: Arc::default() };
        let mut stopped = std::pin::pin!(reader.stop(Duration::from_secs(3600)));
        tokio::select! {
            biased;
            () = &mut stopped => panic!("stop did not wait for its thread"),
            () = tokio::task::yield_now() => {}
        }
        // The runtime has one thread. This line is reached only because `stop` yields it.
        drop(release);
        stopped.await;
    }
}
