//! A topic of one test, with the operations of producers and operators.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::events::Event;
use super::servers::{self, RUNTIME};
use super::wait::{DEADLINE, unique, until};

/// One Kafka record to send. The value `None` is a tombstone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970; without it the producer's clock counts.
    pub(crate) timestamp: Option<i64>,
}

impl Record {
    pub(crate) fn tombstone() -> Self {
        Self { key: Some(b"key".to_vec()), ..Self::default() }
    }

    pub(crate) fn to(mut self, partition: i32) -> Self {
        self.partition = partition;
        self
    }

    pub(crate) fn at(mut self, timestamp: i64) -> Self {
        self.timestamp = Some(timestamp);
        self
    }
}

impl From<&Event> for Record {
    fn from(event: &Event) -> Self {
        event.json().into()
    }
}

impl From<Event> for Record {
    fn from(event: Event) -> Self {
        event.json().into()
    }
}

impl From<String> for Record {
    fn from(value: String) -> Self {
        value.into_bytes().into()
    }
}

impl From<&str> for Record {
    fn from(value: &str) -> Self {
        value.as_bytes().to_vec().into()
    }
}

impl From<Vec<u8>> for Record {
    fn from(value: Vec<u8>) -> Self {
        Self { value: Some(value), ..Self::default() }
    }
}

pub(crate) struct Topic {
    pub(crate) name: String,
    pub(crate) brokers: String,
}

impl Topic {
    pub(crate) fn new(partitions: i32) -> Self {
        Self::on(&servers::brokers(), partitions, &[])
    }

    pub(crate) fn configured(partitions: i32, config: &[(&str, &str)]) -> Self {
        Self::on(&servers::brokers(), partitions, config)
    }

    pub(crate) fn on(brokers: &str, partitions: i32, config: &[(&str, &str)]) -> Self {
        let topic = Self { name: unique("topic"), brokers: brokers.to_owned() };
        // Retention must not delete records by age: some tests choose the timestamps.
        let new = NewTopic::new(&topic.name, partitions, TopicReplication::Fixed(1)).set("retention.ms", "-1");
        let new = config.iter().fold(new, |new, (key, value)| new.set(key, value));
        for result in RUNTIME.block_on(topic.admin().create_topics([&new], &limits())).expect("asking for a topic") {
            result.expect("creating a topic");
        }
        topic.wait_for_partitions(partitions);
        topic
    }

    /// Replaces the topic's own settings by these.
    pub(crate) fn configure(&self, config: &[(&str, &str)]) {
        let new = AlterConfig::new(ResourceSpecifier::Topic(&self.name)).set("retention.ms", "-1");
        let new = config.iter().fold(new, |new, (key, value)| new.set(key, value));
        for result in RUNTIME.block_on(self.admin().alter_configs([&new], &limits())).expect("asking for settings") {
            result.expect("setting them");
        }
    }

    /// Sends events, text or bytes to partition 0.
    pub(crate) fn send<R: Into<Record>>(&self, records: impl IntoIterator<Item = R>) -> Vec<i64> {
        self.send_to(0, records)
    }

    pub(crate) fn send_to<R: Into<Record>>(&self, partition: i32, records: impl IntoIterator<Item = R>) -> Vec<i64> {
        self.send_records(records.into_iter().map(|record| record.into().to(partition)))
    }

    /// Sends records and waits until the broker has all of them. Returns the offsets in the order of the records.
    pub(crate) fn send_records(&self, records: impl IntoIterator<Item = Record>) -> Vec<i64> {
        let producer = TestProducer::connect(self, &[]);
        let count = producer.enqueue(records);
        producer.flush();
        producer.offsets(count)
    }

    /// Sends all records to partition 0 as one batch, compressed by gzip, snappy, lz4 or zstd.
    pub(crate) fn send_packed(&self, codec: &str, records: impl ExactSizeIterator<Item = Record>) -> Vec<i64> {
        // The batch is full, and sent, with the last record: a flush may come too early to end librdkafka's wait for
        // more.
        let count = records.len().to_string();
        let settings = [
            ("compression.type", codec),
            ("linger.ms", "60000"),
            ("batch.num.messages", &count),
            ("batch.size", "500000000"),
            ("message.max.bytes", "500000000"),
        ];
        let producer = TestProducer::connect(self, &settings);
        let count = producer.enqueue(records);
        producer.0.flush(DEADLINE).expect("the broker takes the batch");
        producer.offsets(count)
    }

    /// A transactional producer; two of them may have open transactions at the same time.
    pub(crate) fn transactions(&self) -> Transactions<'_> {
        let id = unique("transactions");
        let producer = TestProducer::connect(self, &[("transactional.id", &id), ("transaction.timeout.ms", "300000")]);
        producer.0.init_transactions(DEADLINE).expect("preparing transactions");
        Transactions { topic: self, producer }
    }

    /// Deletes the records before an offset, as retention does.
    pub(crate) fn delete_before(&self, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.name, partition, Offset::Offset(offset)).expect("a valid offset");
        RUNTIME.block_on(self.admin().delete_records(&list, &limits())).expect("deleting records");
        until("the log start to move", || match self.log_start(partition) {
            start if start >= offset => Ok(()),
            start => Err(start.to_string()),
        });
    }

    /// Deletes the topic and creates one with the same name: its offsets begin at 0 again.
    pub(crate) fn recreate(&self, partitions: i32) {
        self.delete();
        self.create_again(partitions);
    }

    pub(crate) fn delete(&self) {
        for result in
            RUNTIME.block_on(self.admin().delete_topics(&[&self.name], &limits())).expect("asking for a deletion")
        {
            result.expect("deleting a topic");
        }
    }

    /// Creates a topic with the same name after [`Self::delete`].
    pub(crate) fn create_again(&self, partitions: i32) {
        let new = NewTopic::new(&self.name, partitions, TopicReplication::Fixed(1));
        until("the topic to be created again", || {
            let made =
                RUNTIME.block_on(self.admin().create_topics([&new], &limits())).map_err(|error| error.to_string())?;
            made.into_iter().try_for_each(|result| result.map(drop).map_err(|(_, code)| code.to_string()))
        });
        self.wait_for_partitions(partitions);
    }

    /// Commits an offset for a consumer group, as a consumer of that group would.
    pub(crate) fn commit_for(&self, group: &str, partition: i32, offset: i64) {
        let consumer: BaseConsumer = self.client().set("group.id", group).create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.name, partition, Offset::Offset(offset)).expect("a valid offset");
        until("an offset to be committed", || {
            consumer.commit(&list, CommitMode::Sync).map_err(|error| error.to_string())
        });
    }

    pub(crate) fn committed_for(&self, group: &str, partition: i32) -> Option<i64> {
        let consumer: BaseConsumer = self.client().set("group.id", group).create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.name, partition);
        let found = consumer.committed_offsets(list, DEADLINE).expect("the committed offsets");
        found.elements()[0].offset().to_raw().filter(|offset| *offset >= 0)
    }

    pub(crate) fn grow_to(&self, partitions: i32) {
        let count = usize::try_from(partitions).expect("a positive count");
        let more = NewPartitions::new(&self.name, count);
        for result in
            RUNTIME.block_on(self.admin().create_partitions([&more], &limits())).expect("asking for partitions")
        {
            result.expect("adding partitions");
        }
        self.wait_for_partitions(partitions);
    }

    pub(crate) fn log_start(&self, partition: i32) -> i64 {
        self.watermarks(partition, "read_uncommitted").0
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        let all = self.admin().inner().fetch_metadata(None, DEADLINE).expect("the list of topics");
        all.topics().iter().any(|topic| topic.name() == name)
    }

    /// The offsets of all committed messages, according to an independent consumer.
    pub(crate) fn visible(&self, partition: i32) -> Vec<i64> {
        let consumer: BaseConsumer = self
            .client()
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create()
            .expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.name, partition, Offset::Beginning).expect("a valid offset");
        consumer.assign(&list).expect("assigning a partition");
        let mut offsets = Vec::new();
        loop {
            match consumer.poll(DEADLINE).expect("a message or the end") {
                Ok(message) => offsets.push(message.offset()),
                Err(KafkaError::PartitionEOF(_)) => return offsets,
                Err(error) => panic!("reading {}: {error}", self.name),
            }
        }
    }

    /// The high watermark: the offset after the last record of any kind.
    pub(crate) fn log_end(&self, partition: i32) -> i64 {
        self.watermarks(partition, "read_uncommitted").1
    }

    /// The last stable offset: the offset after the last record before any open transaction.
    pub(crate) fn last_stable(&self, partition: i32) -> i64 {
        self.watermarks(partition, "read_committed").1
    }

    fn watermarks(&self, partition: i32, isolation: &str) -> (i64, i64) {
        let consumer: BaseConsumer = self.client().set("isolation.level", isolation).create().expect("a consumer");
        until("the offsets of a partition", || {
            consumer.fetch_watermarks(&self.name, partition, Duration::from_secs(10)).map_err(|error| error.to_string())
        })
    }

    fn wait_for_partitions(&self, partitions: i32) {
        let count = usize::try_from(partitions).expect("a positive count");
        let admin = self.admin();
        until("all partitions to have a leader", || {
            let metadata = admin
                .inner()
                .fetch_metadata(Some(&self.name), Duration::from_secs(10))
                .map_err(|error| error.to_string())?;
            let found = &metadata.topics()[0];
            let led = found.partitions().iter().filter(|partition| partition.leader() >= 0).count();
            if found.error().is_none() && led == count { Ok(()) } else { Err(format!("{led} of {count}")) }
        });
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().expect("an admin client")
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", "gapless-tests")
            .set("enable.auto.commit", "false");
        config
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        // Only tidies up a Kafka that outlives the tests; no test depends on it.
        let _ = RUNTIME.block_on(self.admin().delete_topics(&[&self.name], &limits()));
    }
}

pub(crate) struct Transactions<'topic> {
    topic: &'topic Topic,
    producer: TestProducer,
}

impl Transactions<'_> {
    pub(crate) fn commit<R: Into<Record>>(&self, records: impl IntoIterator<Item = R>) -> Vec<i64> {
        self.begin(records).commit()
    }

    pub(crate) fn abort<R: Into<Record>>(&self, records: impl IntoIterator<Item = R>) -> Vec<i64> {
        self.begin(records).abort()
    }

    /// Sends records and leaves the transaction open.
    pub(crate) fn begin<R: Into<Record>>(&self, records: impl IntoIterator<Item = R>) -> OpenTransaction<'_> {
        let records: Vec<Record> = records.into_iter().map(Into::into).collect();
        let partitions = records.iter().map(|record| record.partition).collect();
        self.producer.0.begin_transaction().expect("beginning a transaction");
        let count = self.producer.enqueue(records);
        self.producer.flush();
        OpenTransaction {
            partitions,
            offsets: self.producer.offsets(count),
            producer: &self.producer,
            topic: self.topic,
        }
    }
}

/// A transaction whose records are in the log, neither committed nor aborted.
pub(crate) struct OpenTransaction<'producer> {
    partitions: Vec<i32>,
    offsets: Vec<i64>,
    producer: &'producer TestProducer,
    topic: &'producer Topic,
}

impl OpenTransaction<'_> {
    pub(crate) fn commit(self) -> Vec<i64> {
        self.producer.0.commit_transaction(DEADLINE).expect("committing a transaction");
        self.ended()
    }

    pub(crate) fn abort(self) -> Vec<i64> {
        self.producer.0.abort_transaction(DEADLINE).expect("aborting a transaction");
        self.ended()
    }

    /// Waits for the markers: the coordinator answers before they are in the log, and tests count offsets.
    fn ended(self) -> Vec<i64> {
        let last: BTreeMap<_, _> = self.partitions.iter().zip(&self.offsets).collect();
        for (partition, last) in last {
            until("the marker of a transaction", || match self.topic.log_end(*partition) {
                end if end > last + 1 => Ok(()),
                end => Err(end.to_string()),
            });
        }
        self.offsets
    }
}

/// A producer that records the offset of each record.
struct TestProducer(BaseProducer<Deliveries>, String, mpsc::Receiver<(usize, Result<i64, String>)>);

impl TestProducer {
    fn connect(topic: &Topic, settings: &[(&str, &str)]) -> Self {
        let mut config = topic.client();
        config.remove("group.id");
        config.remove("enable.auto.commit");
        config.set("linger.ms", "2").set("enable.idempotence", "true").set("message.max.bytes", "20000000");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        let (sender, receiver) = mpsc::channel();
        let producer = config.create_with_context(Deliveries(sender)).expect("a producer");
        Self(producer, topic.name.clone(), receiver)
    }

    fn enqueue(&self, records: impl IntoIterator<Item = Record>) -> usize {
        let mut count = 0;
        for record in records {
            let mut sent = BaseRecord::with_opaque_to(&self.1, Box::new(count)).partition(record.partition);
            if let Some(key) = &record.key {
                sent = sent.key(key);
            }
            if let Some(value) = &record.value {
                sent = sent.payload(value);
            }
            if let Some(timestamp) = record.timestamp {
                sent = sent.timestamp(timestamp);
            }
            if !record.headers.is_empty() {
                let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                    headers.insert(Header { key, value: value.as_ref() })
                });
                sent = sent.headers(headers);
            }
            self.0.send::<Vec<u8>, Vec<u8>>(sent).map_err(|(error, _)| error).expect("a place in the producer's queue");
            count += 1;
        }
        count
    }

    /// Replaces `Producer::flush`, which takes a tenth of a second whenever it has to wait.
    fn flush(&self) {
        let start = Instant::now();
        while self.0.in_flight_count() > 0 {
            assert!(start.elapsed() < DEADLINE, "the broker did not take what was sent within {DEADLINE:?}");
            self.0.poll(Duration::ZERO);
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    fn offsets(&self, count: usize) -> Vec<i64> {
        let mut offsets = vec![-1; count];
        for (index, offset) in self.2.try_iter() {
            offsets[index] = offset.expect("the broker to take a record");
        }
        assert!(!offsets.contains(&-1), "the broker did not return the offset of each record");
        offsets
    }
}

struct Deliveries(mpsc::Sender<(usize, Result<i64, String>)>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<usize>;

    fn delivery(&self, result: &DeliveryResult<'_>, index: Box<usize>) {
        let outcome = match result {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.to_string()),
        };
        let _ = self.0.send((*index, outcome));
    }
}

fn limits() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(DEADLINE)).request_timeout(Some(DEADLINE))
}
