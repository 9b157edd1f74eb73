//! Reads single messages back: whether the log is the one we know ([`Anchor`]).
//!
//! One client is assigned every partition that is asked about, each at its own offset, so that a restart on many
//! partitions asks for all of them at once and each begins as soon as its own answer is there. Proofs of holes have
//! clients of their own ([`crate::kafka::gap_prover`]): neither waits for the other.
//!
//! [`Anchor`]: crate::model::record::Anchor

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc as requests;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tokio::sync::oneshot;

use super::SourceError;
use super::client::{self, Fetch, Isolation};
use super::ffi::KafkaEvent;
use super::renewable::RenewableConsumer;
use crate::config::KafkaConfig;
use crate::model::offset::Offset;
use crate::model::record::Digest;

const OPERATION: &str = "read the last stored message back";
/// How long nothing may come before an answer is late; the question is asked again then.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the thread waits for an event before it looks for questions again.
const POLL: Duration = Duration::from_millis(20);
/// Bytes the client may read ahead, for all partitions. Of each only one message is wanted.
const READ_AHEAD_BYTES: usize = 4 * 1024 * 1024;
/// Bytes that a fetch asks of each partition: one batch, in general.
const PARTITION_BYTES: usize = 64 * 1024;

/// What lies at one offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A message with this anchor digest.
    Message(Digest),
    /// The log reaches further but has no record there.
    NoMessage,
    /// The log does not reach there: it begins later or ends before.
    OutOfRange,
}

type Answer = oneshot::Sender<Result<Found, SourceError>>;

struct Request {
    partition: i32,
    offset: Offset,
    answer: Answer,
}

/// Asks the thread that reads messages back. Dropping all of them stops it.
#[derive(Clone)]
pub struct Anchors {
    requests: requests::Sender<Request>,
}

impl Anchors {
    pub fn start(kafka: &KafkaConfig) -> Result<Self, SourceError> {
        // A group id only because librdkafka asks for one; nothing is committed under it.
        let group = format!("{}-proof", kafka.group);
        let fetch = Fetch { buffer_bytes: READ_AHEAD_BYTES, partition_bytes: PARTITION_BYTES };
        let settings = kafka.clone();
        let make = move || client::consumer(&settings, &group, Isolation::ReadUncommitted, fetch);
        let client = RenewableConsumer::new(make)?;
        let (tx, rx) = requests::channel();
        let mut thread =
            AnchorThread { client, topic: kafka.topic.clone(), open: BTreeMap::new(), heard_at: Instant::now() };
        std::thread::Builder::new()
            .name("kafka-anchors".into())
            .spawn(move || thread.run(&rx))
            .map_err(|error| SourceError::thread(&error))?;
        Ok(Self { requests: tx })
    }

    /// Reads back what lies at an offset. A later question about the partition takes the place of this one. An error
    /// says that nothing could be told, and the question is to be asked again.
    pub async fn message(&self, partition: i32, offset: Offset) -> Result<Found, SourceError> {
        let (answer, found) = oneshot::channel();
        // A thread that is gone has panicked, and a panic ends the process.
        let _ = self.requests.send(Request { partition, offset, answer });
        found.await.unwrap_or(Err(late()))
    }
}

fn late() -> SourceError {
    SourceError::Timeout { operation: OPERATION, seconds: ANSWER_TIMEOUT.as_secs() }
}

fn failed(source: KafkaError) -> SourceError {
    SourceError::Call { operation: OPERATION, source }
}

/// A question that waits for its answer.
struct Open {
    offset: Offset,
    asked_at: Instant,
    answer: Answer,
}

impl Open {
    /// What an event of its partition says; `None` if it does not answer the question.
    fn answered_by(&self, event: &KafkaEvent) -> Option<Result<Found, SourceError>> {
        match event {
            KafkaEvent::Record(record) if record.offset < self.offset => None,
            KafkaEvent::Record(record) if record.offset == self.offset => {
                Some(Ok(Found::Message(record.anchor_digest())))
            }
            KafkaEvent::Record(_) => Some(Ok(Found::NoMessage)),
            KafkaEvent::End { offset, .. } if *offset > self.offset.get() => Some(Ok(Found::NoMessage)),
            KafkaEvent::End { .. } => Some(Ok(Found::OutOfRange)),
            KafkaEvent::PartitionError { partition, not_unpacked: Some(batch), .. } => {
                Some(Err(SourceError::NotUnpacked { partition: *partition, batch: *batch }))
            }
            KafkaEvent::PartitionError { code, .. } => Some(match code {
                RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => Ok(Found::OutOfRange),
                code => Err(failed(KafkaError::MessageConsumption(*code))),
            }),
            KafkaEvent::ClientError { .. } | KafkaEvent::CommitAnswered(_) | KafkaEvent::Statistics(_) => None,
        }
    }
}

struct AnchorThread {
    client: RenewableConsumer,
    topic: String,
    open: BTreeMap<i32, Open>,
    /// When the last event came: while answers come in, those that are still to come are not late.
    heard_at: Instant,
}

impl AnchorThread {
    fn run(&mut self, requests: &requests::Receiver<Request>) {
        client::learn_leaders(&self.client.consumer, &self.topic);
        loop {
            let mut asked = Vec::new();
            if self.open.is_empty() {
                match requests.recv() {
                    Ok(request) => asked.push(request),
                    Err(requests::RecvError) => return,
                }
            }
            asked.extend(requests.try_iter());
            if self.client.renew_if_outdated() {
                self.ask_again();
            }
            self.ask(asked);
            self.listen();
            self.give_up();
        }
    }

    /// Assigns all partitions that are asked about at once.
    fn ask(&mut self, asked: Vec<Request>) {
        let (mut again, mut partitions) = (BTreeSet::new(), BTreeSet::new());
        for Request { partition, offset, answer } in asked {
            // Nobody waits for the answer: the partition is read from elsewhere by now.
            if answer.is_closed() {
                continue;
            }
            let open = Open { offset, asked_at: Instant::now(), answer };
            if self.open.insert(partition, open).is_some() && !partitions.contains(&partition) {
                again.insert(partition);
            }
            partitions.insert(partition);
        }
        if let Err(error) = self.unassign(&again).and_then(|()| self.assign(&partitions)) {
            for partition in partitions {
                self.answer(partition, Err(failed(error.clone())));
            }
        }
    }

    /// Of another client, to which nothing is assigned yet.
    fn ask_again(&mut self) {
        let partitions: BTreeSet<i32> = self.open.keys().copied().collect();
        if let Err(error) = self.assign(&partitions) {
            for partition in partitions {
                self.answer(partition, Err(failed(error.clone())));
            }
        }
    }

    /// Takes the events that are there, and waits a moment for the first.
    fn listen(&mut self) {
        let mut answered = BTreeSet::new();
        let mut timeout = POLL;
        while let Some(event) = self.client.queue.poll(timeout) {
            timeout = Duration::ZERO;
            let Some(partition) = event.partition() else { continue };
            self.heard_at = Instant::now();
            if let Some(found) = self.open.get(&partition).and_then(|open| open.answered_by(&event)) {
                self.answer(partition, found);
                answered.insert(partition);
            }
        }
        self.forget(&answered);
    }

    /// Answers that are late, or that nobody waits for any more.
    fn give_up(&mut self) {
        let is_late = |open: &Open| open.asked_at.max(self.heard_at).elapsed() >= ANSWER_TIMEOUT;
        let given_up = self.open.iter().filter(|(_, open)| is_late(open) || open.answer.is_closed());
        let given_up: BTreeSet<i32> = given_up.map(|(partition, _)| *partition).collect();
        for partition in &given_up {
            self.answer(*partition, Err(late()));
        }
        self.forget(&given_up);
    }

    fn answer(&mut self, partition: i32, found: Result<Found, SourceError>) {
        if let Some(open) = self.open.remove(&partition) {
            let _ = open.answer.send(found);
        }
    }

    /// Of these partitions nothing more is wanted.
    fn forget(&self, partitions: &BTreeSet<i32>) {
        if let Err(error) = self.unassign(partitions) {
            tracing::debug!(error = %error, "cannot end an assignment that is of no use any more");
        }
    }

    fn assign(&self, partitions: &BTreeSet<i32>) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        for (partition, open) in self.open.iter().filter(|(partition, _)| partitions.contains(partition)) {
            list.add_partition_offset(&self.topic, *partition, KafkaOffset::Offset(open.offset.get()))?;
        }
        if list.count() == 0 { Ok(()) } else { self.client.consumer.incremental_assign(&list) }
    }

    fn unassign(&self, partitions: &BTreeSet<i32>) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, *partition);
        }
        if list.count() == 0 { Ok(()) } else { self.client.consumer.incremental_unassign(&list) }
    }
}
