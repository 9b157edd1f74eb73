//! Reads single messages back, to check that the log is still the same one ([`Anchor`]).
//!
//! One client is assigned every requested partition, each at its own offset. So a restart with many partitions requests
//! all messages at once, and each partition begins as soon as its own answer arrives. Proofs of gaps have their own
//! clients ([`crate::kafka::gap_prover`]): neither waits for the other.
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
use crate::model::topic::{Topic, TopicPartition};

const OPERATION: &str = "read the last stored message back";
/// An answer is late after this long without any event. The caller then asks again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the thread waits for an event before it checks for new requests.
const POLL: Duration = Duration::from_millis(20);
/// Bytes that the client may read ahead, for all partitions. Of each partition only one message is needed.
const READ_AHEAD_BYTES: usize = 4 * 1024 * 1024;
/// Bytes that a fetch requests from each partition: usually one batch.
const PARTITION_BYTES: usize = 64 * 1024;

/// The result of reading one offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A message with this anchor digest.
    Message(Digest),
    /// The log continues beyond the offset but has no record there.
    NoMessage,
    /// The log does not contain the offset: it begins later or ends before.
    OutOfRange,
}

type Answer = oneshot::Sender<Result<Found, SourceError>>;

struct Request {
    partition: TopicPartition,
    offset: Offset,
    answer: Answer,
}

/// Sends requests to the thread that reads messages back. Dropping all clones stops the thread.
#[derive(Clone)]
pub struct Anchors {
    requests: requests::Sender<Request>,
}

impl Anchors {
    pub fn start(kafka: &KafkaConfig) -> Result<Self, SourceError> {
        // librdkafka requires a group id; no offset is committed under it.
        let group = format!("{}-proof", kafka.group);
        let fetch = Fetch { buffer_bytes: READ_AHEAD_BYTES, partition_bytes: PARTITION_BYTES };
        let settings = kafka.clone();
        let make = move || client::consumer(&settings, &group, Isolation::ReadUncommitted, fetch);
        let client = RenewableConsumer::new(make)?;
        let (tx, rx) = requests::channel();
        let mut thread =
            AnchorThread { client, topic: kafka.topic.clone(), open: BTreeMap::new(), last_event_at: Instant::now() };
        std::thread::Builder::new()
            .name("kafka-anchors".into())
            .spawn(move || thread.run(&rx))
            .map_err(|error| SourceError::thread(&error))?;
        Ok(Self { requests: tx })
    }

    /// Reads the message at an offset back. A later request for the same partition replaces this one. After an error
    /// nothing is known, and the caller asks again.
    pub async fn message(&self, partition: TopicPartition, offset: Offset) -> Result<Found, SourceError> {
        let (answer, found) = oneshot::channel();
        // The thread ends early only by a panic, and a panic ends the process.
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

/// A request that waits for its answer.
struct Open {
    offset: Offset,
    asked_at: Instant,
    answer: Answer,
}

impl Open {
    /// The answer that an event of its partition contains; `None` if it contains none.
    fn answered_by(&self, partition: &TopicPartition, event: &KafkaEvent) -> Option<Result<Found, SourceError>> {
        match event {
            KafkaEvent::Record(record) if record.offset < self.offset => None,
            KafkaEvent::Record(record) if record.offset == self.offset => {
                Some(Ok(Found::Message(record.anchor_digest())))
            }
            KafkaEvent::Record(_) => Some(Ok(Found::NoMessage)),
            KafkaEvent::End { offset, .. } if *offset > self.offset.get() => Some(Ok(Found::NoMessage)),
            KafkaEvent::End { .. } => Some(Ok(Found::OutOfRange)),
            KafkaEvent::PartitionError { not_unpacked: Some(batch), .. } => {
                Some(Err(SourceError::NotUnpacked { partition: partition.clone(), batch: *batch }))
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
    topic: Topic,
    open: BTreeMap<TopicPartition, Open>,
    /// When the last event arrived: while events arrive, no answer is late.
    last_event_at: Instant,
}

impl AnchorThread {
    fn run(&mut self, requests: &requests::Receiver<Request>) {
        client::learn_leaders(&self.client.consumer, &self.topic);
        loop {
            let mut received = Vec::new();
            if self.open.is_empty() {
                match requests.recv() {
                    Ok(request) => received.push(request),
                    Err(requests::RecvError) => return,
                }
            }
            received.extend(requests.try_iter());
            if self.client.renew_if_outdated() {
                self.ask_again();
            }
            self.ask(received);
            self.listen();
            self.give_up();
        }
    }

    /// Assigns all requested partitions in one call.
    fn ask(&mut self, requests: Vec<Request>) {
        let (mut again, mut partitions) = (BTreeSet::new(), BTreeSet::new());
        for Request { partition, offset, answer } in requests {
            // A closed channel: the caller gave up, because the partition is read from another offset now.
            if answer.is_closed() {
                continue;
            }
            debug_assert_eq!(partition.topic, self.topic, "a client fetches one topic");
            let open = Open { offset, asked_at: Instant::now(), answer };
            if self.open.insert(partition.clone(), open).is_some() && !partitions.contains(&partition) {
                again.insert(partition.clone());
            }
            partitions.insert(partition);
        }
        if let Err(error) = self.unassign(&again).and_then(|()| self.assign(&partitions)) {
            for partition in partitions {
                self.answer(&partition, Err(failed(error.clone())));
            }
        }
    }

    /// Assigns all open requests to a new client, which has no assignment yet.
    fn ask_again(&mut self) {
        let partitions: BTreeSet<TopicPartition> = self.open.keys().cloned().collect();
        if let Err(error) = self.assign(&partitions) {
            for partition in partitions {
                self.answer(&partition, Err(failed(error.clone())));
            }
        }
    }

    /// Processes all events that are ready; waits up to `POLL` for the first.
    fn listen(&mut self) {
        let mut answered = BTreeSet::new();
        let mut timeout = POLL;
        while let Some(event) = self.client.queue.poll(timeout) {
            timeout = Duration::ZERO;
            let Some(partition) = event.partition().map(|number| self.topic.partition(number)) else { continue };
            self.last_event_at = Instant::now();
            if let Some(found) = self.open.get(&partition).and_then(|open| open.answered_by(&partition, &event)) {
                self.answer(&partition, found);
                answered.insert(partition);
            }
        }
        self.forget(&answered);
    }

    /// Ends requests whose answer is late, or whose caller gave up.
    fn give_up(&mut self) {
        let is_late = |open: &Open| open.asked_at.max(self.last_event_at).elapsed() >= ANSWER_TIMEOUT;
        let given_up = self.open.iter().filter(|(_, open)| is_late(open) || open.answer.is_closed());
        let given_up: BTreeSet<TopicPartition> = given_up.map(|(partition, _)| partition.clone()).collect();
        for partition in &given_up {
            self.answer(partition, Err(late()));
        }
        self.forget(&given_up);
    }

    fn answer(&mut self, partition: &TopicPartition, found: Result<Found, SourceError>) {
        if let Some(open) = self.open.remove(partition) {
            let _ = open.answer.send(found);
        }
    }

    /// Ends the assignment of partitions whose requests are answered.
    fn forget(&self, partitions: &BTreeSet<TopicPartition>) {
        if let Err(error) = self.unassign(partitions) {
            tracing::debug!(error = %error, "cannot end an assignment that is no longer needed");
        }
    }

    fn assign(&self, partitions: &BTreeSet<TopicPartition>) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        for (TopicPartition { topic, partition }, open) in self.open.iter().filter(|(p, _)| partitions.contains(p)) {
            list.add_partition_offset(topic, *partition, KafkaOffset::Offset(open.offset.get()))?;
        }
        if list.count() == 0 { Ok(()) } else { self.client.consumer.incremental_assign(&list) }
    }

    fn unassign(&self, partitions: &BTreeSet<TopicPartition>) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        for TopicPartition { topic, partition } in partitions {
            list.add_partition(topic, *partition);
        }
        if list.count() == 0 { Ok(()) } else { self.client.consumer.incremental_unassign(&list) }
    }
}
