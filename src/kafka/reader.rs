//! The poll thread: one consumer, explicit assignments, records out in chunks.
//!
//! One OS thread owns the consumer and does nothing but carry out commands and poll, each wait
//! finite. It never decides anything: records, ends and errors go to the pipeline in the order
//! librdkafka gave them. When the pipeline is behind (byte budget used up) it stops polling; with no
//! group protocol nobody minds. No subscribe, seek, pause, stream or rebalance callback: each is
//! known to lose an explicit offset or a wake-up.

use std::collections::HashMap;
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

/// How long the thread waits for an event before it looks at its commands again: bounds the delay
/// of a command, costs ten wake-ups a second when idle.
const POLL: Duration = Duration::from_millis(100);
/// Records of one hand-over. Small enough to be soon, large enough that handing over costs nothing.
const CHUNK_RECORDS: usize = 256;
const CHUNK_BYTES: usize = 256 * 1024;

/// Where to read a partition from, and which assignment that is.
#[derive(Debug, Clone, Copy)]
pub struct Assignment {
    pub partition: i32,
    pub from: NextOffset,
    pub epoch: AssignmentEpoch,
    /// Of the record just before `from`, where that is known: the leader is asked whether its log
    /// still agrees.
    pub leader_epoch: Option<i32>,
}

/// Why fetching a partition stopped.
#[derive(Debug, Clone)]
pub struct FetchError {
    pub partition: i32,
    pub epoch: AssignmentEpoch,
    pub code: RDKafkaErrorCode,
    pub message: String,
    /// The batch is sound: why it was not unpacked.
    pub not_unpacked: Option<NotUnpacked>,
}

impl FetchError {
    /// For a caller that gives up: with the remedy that Kafka's errors have.
    pub fn into_error(self, operation: &'static str) -> SourceError {
        if let Some(batch) = self.not_unpacked {
            return SourceError::NotUnpacked { partition: self.partition, batch };
        }
        match self.is_damage() {
            true => SourceError::Log { partition: self.partition, message: self.message },
            false => SourceError::Call { operation, source: KafkaError::MessageConsumption(self.code) },
        }
    }

    /// What keeps the partition from being fetched, with the remedy; librdkafka's words in brackets.
    pub fn why(&self) -> String {
        if let Some(batch) = self.not_unpacked {
            return format!("{batch}; it is tried again");
        }
        let (what, remedy) = match self.code {
            _ if self.is_out_of_range() => {
                ("Kafka does not have the offset that comes next", "whether it is lost is looked up now")
            }
            _ if self.is_damage() => ("a batch cannot be read", "look at the broker's log and segment"),
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => (
                "Kafka does not know the partition",
                "look whether the topic was deleted; it is looked for until it is there again",
            ),
            _ => ("it cannot be fetched", "see that its leader is up and answers; it is tried again until it does"),
        };
        format!("{what} ({}); {remedy}", self.message)
    }

    /// The log begins behind what was asked for, or ends before.
    pub fn is_out_of_range(&self) -> bool {
        matches!(self.code, RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)
    }

    /// The log itself is damaged (checksum, format), not the way to it.
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

/// What the reader hands over, in the order librdkafka gave it.
#[derive(Debug)]
pub enum Fetched {
    Records(Chunk),
    /// Everything below `offset` was delivered, and there is nothing more for now.
    End {
        partition: i32,
        epoch: AssignmentEpoch,
        offset: NextOffset,
    },
    Failed(FetchError),
    /// The client gets on with these partitions, though it may deliver nothing of them.
    Advanced(Vec<(i32, AssignmentEpoch)>),
    /// Kafka refuses what this client read from files that have changed since: a new one is to be made.
    SecretsChanged,
    /// Trouble that belongs to no partition; librdkafka goes on trying.
    Trouble {
        code: RDKafkaErrorCode,
        message: String,
    },
}

/// Some records and their share of the byte budget, given back when the chunk is dropped.
#[derive(Debug)]
pub struct Chunk {
    pub records: Vec<Record>,
    pub permit: OwnedSemaphorePermit,
}

enum Command {
    /// Takes up or moves one partition; the others are not disturbed.
    Add(Assignment),
    Remove(i32),
    CommitHint(Vec<(i32, NextOffset)>),
}

/// The pipeline's end of the poll thread. Dropping it stops the thread.
pub struct Reader {
    commands: commands::Sender<Command>,
    thread: Option<JoinHandle<()>>,
    budget: Arc<Semaphore>,
    refusals: Arc<Refusals>,
}

/// Commits of offsets that Kafka refused, not told yet: a loss for lag tools only.
type Refusals = Mutex<Vec<RDKafkaErrorCode>>;

impl Reader {
    /// Starts the thread. What it fetches comes out of the receiver.
    pub fn start(kafka: &KafkaConfig) -> Result<(Self, mpsc::Receiver<Fetched>), SourceError> {
        let fetch = Fetch::ahead(kafka.client_bytes());
        let consumer = client::consumer(kafka, &kafka.group, Isolation::ReadCommitted, fetch)?;
        let (command_tx, command_rx) = commands::channel();
        // The byte budget is what bounds; the count only keeps empty events from piling up.
        let (fetched_tx, fetched_rx) = mpsc::channel(1024);
        let budget_bytes = kafka.drafted_bytes().min(Semaphore::MAX_PERMITS);
        let budget = Arc::new(Semaphore::new(budget_bytes));
        let consumer = Arc::new(consumer);
        let refusals = Arc::new(Refusals::default());
        let thread = PollThread {
            queue: ConsumerQueue::new(&consumer),
            consumer,
            topic: kafka.topic.clone(),
            epochs: HashMap::new(),
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

    /// Takes up one more partition, or reads one again from another position.
    pub fn add(&self, assignment: Assignment) {
        self.command(Command::Add(assignment));
    }

    /// Stops reading one partition.
    pub fn remove(&self, partition: i32) {
        self.command(Command::Remove(partition));
    }

    /// Tells Kafka how far PostgreSQL is, for lag tools; the answer is not waited for.
    pub fn commit_hint(&self, positions: Vec<(i32, NextOffset)>) {
        self.command(Command::CommitHint(positions));
    }

    /// Whether what was fetched waits for room in the byte budget.
    pub fn is_out_of_budget(&self) -> bool {
        self.budget.available_permits() < CHUNK_BYTES
    }

    /// Why offsets were not committed since the last call, one entry a commit.
    pub fn refused_commits(&self) -> Vec<RDKafkaErrorCode> {
        std::mem::take(&mut *self.refusals.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn command(&self, command: Command) {
        // A thread that is gone has panicked, and a panic ends the process.
        let _ = self.commands.send(command);
    }

    /// Ends the thread, waiting at most `patience`: closing a consumer whose broker hangs may take
    /// for ever, and there is nothing in it to save. Other tasks go on meanwhile.
    pub async fn stop(mut self, patience: Duration) {
        self.budget.close();
        drop(std::mem::replace(&mut self.commands, commands::channel().0));
        let deadline = Instant::now() + patience;
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
    topic: String,
    epochs: HashMap<i32, AssignmentEpoch>,
    fetching: Fetching,
    fetched: mpsc::Sender<Fetched>,
    budget: Arc<Semaphore>,
    budget_bytes: usize,
    refusals: Arc<Refusals>,
}

/// The other side is gone: the daemon stops.
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
            Command::Remove(partition) => self.remove(partition),
            Command::CommitHint(positions) => {
                // Refused hints are lag tools' loss only.
                let _ = self.queue.commit(&self.list(positions));
                Ok(())
            }
        };
        // librdkafka refuses an assignment only for a reason of ours: a bug, not a condition.
        result.expect("librdkafka takes an explicit assignment");
    }

    fn add(&mut self, assignment: Assignment) -> rdkafka::error::KafkaResult<()> {
        self.remove(assignment.partition)?;
        self.epochs.insert(assignment.partition, assignment.epoch);
        self.consumer.incremental_assign(&self.assignment_list(assignment))
    }

    fn remove(&mut self, partition: i32) -> rdkafka::error::KafkaResult<()> {
        if self.epochs.remove(&partition).is_none() {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        self.consumer.incremental_unassign(&list)
    }

    fn assignment_list(&self, Assignment { partition, from, leader_epoch, .. }: Assignment) -> TopicPartitionList {
        let list = self.list([(partition, from)]);
        if let Some(epoch) = leader_epoch {
            ffi::set_leader_epoch(&list, &self.topic, partition, epoch);
        }
        list
    }

    fn list(&self, positions: impl IntoIterator<Item = (i32, NextOffset)>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (partition, next) in positions {
            list.add_partition_offset(&self.topic, partition, KafkaOffset::Offset(next.get()))
                .expect("a non-negative offset is valid");
        }
        list
    }

    /// Polls until a chunk is full or nothing is there at once, and hands it over.
    fn fetch(&mut self) -> Result<(), ReceiverGone> {
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut timeout = POLL;
        while let Some(event) = self.queue.poll(timeout) {
            timeout = Duration::ZERO;
            match self.translate(event) {
                Some(Ok(record)) => {
                    bytes += record.footprint();
                    records.push(record);
                }
                // What follows the records must not overtake them.
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

    /// Stamps an event with its assignment; `None` for a partition that is not assigned any more.
    fn translate(&mut self, event: KafkaEvent) -> Option<Result<Record, Fetched>> {
        let (epochs, fetching) = (&self.epochs, &mut self.fetching);
        let epoch = |partition| epochs.get(&partition).copied();
        Some(match event {
            KafkaEvent::Record(mut record) => {
                failpoints::hit_sync(Failpoint::SourceRecord).ok()?;
                record.epoch = epoch(record.partition)?;
                Ok(record)
            }
            KafkaEvent::End { partition, offset } => {
                Err(Fetched::End { partition, epoch: epoch(partition)?, offset: NextOffset::new(offset)? })
            }
            KafkaEvent::PartitionError { partition, code, message, not_unpacked } => {
                Err(Fetched::Failed(FetchError { partition, epoch: epoch(partition)?, code, message, not_unpacked }))
            }
            KafkaEvent::Statistics(report) => {
                let advanced = fetching.advanced(&report).into_iter();
                let advanced: Vec<_> = advanced.filter_map(|partition| Some((partition, epoch(partition)?))).collect();
                if advanced.is_empty() {
                    return None;
                }
                Err(Fetched::Advanced(advanced))
            }
            KafkaEvent::CommitAnswered(refused) => {
                // Of what is told every few seconds, never more than a few.
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
                // The pipeline is behind. It frees bytes batch by batch, so no wake-up is needed.
                Err(tokio::sync::TryAcquireError::NoPermits) => {
                    // Would pile up. Nobody misses it: what was fetched waits here.
                    while self.queue.poll_aside().is_some() {}
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        };
        self.send(Fetched::Records(Chunk { records, permit }))
    }

    fn send(&self, fetched: Fetched) -> Result<(), ReceiverGone> {
        self.fetched.blocking_send(fetched).map_err(|_| ReceiverGone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stopping_a_reader_whose_thread_hangs_leaves_the_runtime_to_others() {
        let (release, hangs) = commands::channel::<()>();
        let thread = std::thread::spawn(move || {
            let _ = hangs.recv();
        });
        let budget = Arc::new(Semaphore::new(1));
        let reader = Reader { commands: commands::channel().0, thread: Some(thread), budget, refusals: Arc::default() };
        let mut stopped = std::pin::pin!(reader.stop(Duration::from_secs(3600)));
        tokio::select! {
            biased;
            () = &mut stopped => panic!("it did not wait for its thread"),
            () = tokio::task::yield_now() => {}
        }
        // On the runtime's only thread: it comes to this only because the stop gives that thread back.
        drop(release);
        stopped.await;
    }
}
