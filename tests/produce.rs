//! Fills a topic as a monitor would, for the demo, the benchmarks and manual checks: real messages from a file, then
//! generated ones with duplicates, conflicts, poison and aborted transactions, the same for the same seed.
//! It prints one line of JSON with the number of sent messages and the expected outcomes.
//!
//! `cargo run --release --example produce -- --brokers 127.0.0.1:9092 --topic monitor --events 400000`

// Linked because gapless has the functions that wrap librdkafka's decompression (`build.rs`).
use gapless as _;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use clap::Parser;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

#[path = "integration/support/events.rs"]
#[allow(dead_code)] // The integration tests use the rest of this file.
mod events;
#[path = "produce/plan.rs"]
mod plan;

use plan::{End, Message, Plan};

/// A broker that does not answer within this time is considered down.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Options {
    #[arg(long, env = "KAFKA_BROKERS")]
    brokers: String,
    #[arg(long)]
    topic: String,
    /// Partitions of the topic if it has to be created.
    #[arg(long, default_value_t = 1)]
    partitions: i32,
    /// The lines of this file are sent first, unchanged; may be given more than once.
    #[arg(long, value_name = "NDJSON")]
    file: Vec<PathBuf>,
    /// Number of distinct generated events.
    #[arg(long, default_value_t = 0)]
    events: u64,
    /// Events of a message of generated events. With more than one, the message is a list.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    events_per_message: u64,
    /// Bytes of a generated event; below 400 the event has only the fields of the ledger's columns, about 200 bytes.
    #[arg(long, default_value_t = events::USUAL_SIZE)]
    size: usize,
    /// Probability that an event is followed by a duplicate of an earlier one.
    #[arg(long, default_value_t = 0.0)]
    duplicates: f64,
    /// Duplicates and conflicts refer to any earlier event, not only to one of the last 8000.
    #[arg(long)]
    of_any: bool,
    /// Probability that an event is followed by an odd one: half of these cannot be decoded, half are valid JSON that
    /// jsonb refuses.
    #[arg(long, default_value_t = 0.0)]
    odd: f64,
    /// Probability that an event is followed by one with the same identity and other content.
    #[arg(long, default_value_t = 0.0)]
    conflicts: f64,
    /// Probability that an event is followed by poison: broken text, an empty value, a tombstone, a NUL character.
    #[arg(long, default_value_t = 0.0)]
    poison: f64,
    /// Messages per transaction; 0 sends without transactions.
    #[arg(long, default_value_t = 0)]
    transactions: usize,
    /// Share of transactions that are aborted. Their events have the name `Aborted` and must never be stored.
    #[arg(long, default_value_t = 0.0)]
    aborts: f64,
    /// Number of producers that have a transaction open at the same time.
    #[arg(long, default_value_t = 1)]
    producers: usize,
    /// Distribute the messages over all partitions; otherwise those of one chain transaction share a partition.
    #[arg(long)]
    partition_spread: bool,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    ensure!(options.aborts < 1.0, "with --aborts 1 no transaction would be committed");
    ensure!(options.aborts == 0.0 || options.transactions > 0, "--aborts needs --transactions");
    let partitions = create_topic(&options)?;
    let mut plan = Plan::new(&options, partitions)?;
    if options.transactions == 0 {
        let sender = Sender::connect(&options, 0)?;
        while let Some(message) = plan.next_message() {
            sender.send(&message)?;
        }
        sender.finish()?;
    } else {
        let shared = Mutex::new(plan);
        send_in_transactions(&shared, &options)?;
        plan = shared.into_inner().map_err(|_| anyhow!("a producer panicked"))?;
    }
    println!("{}", plan.summary(&options.topic));
    Ok(())
}

/// Each producer takes the next transaction of the plan as soon as it has ended one: with several producers the
/// transactions are interleaved in the log.
fn send_in_transactions(plan: &Mutex<Plan>, options: &Options) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let producers: Vec<_> = (0..options.producers)
            .map(|number| scope.spawn(move || send_transactions(plan, &Sender::connect(options, number)?)))
            .collect();
        producers.into_iter().try_for_each(|producer| match producer.join() {
            Ok(result) => result,
            Err(_) => bail!("a producer panicked"),
        })
    })
}

fn send_transactions(plan: &Mutex<Plan>, sender: &Sender) -> anyhow::Result<()> {
    sender.producer.init_transactions(LIMIT)?;
    loop {
        let next = plan.lock().map_err(|_| anyhow!("another producer panicked"))?.next_transaction();
        let Some(transaction) = next else {
            return sender.finish();
        };
        sender.producer.begin_transaction()?;
        for message in &transaction.messages {
            sender.send(message)?;
        }
        // An abort would purge the queue, and the log would not have the aborted records.
        sender.drain()?;
        match transaction.end {
            End::Commit => sender.producer.commit_transaction(LIMIT)?,
            End::Abort => sender.producer.abort_transaction(LIMIT)?,
        }
    }
}

/// Creates the topic if it does not exist. Returns its number of partitions.
fn create_topic(options: &Options) -> anyhow::Result<i32> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &options.brokers).create()?;
    let topic = NewTopic::new(&options.topic, options.partitions, TopicReplication::Fixed(1));
    let limits = AdminOptions::new().operation_timeout(Some(LIMIT)).request_timeout(Some(LIMIT));
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for result in runtime.block_on(admin.create_topics([&topic], &limits))? {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => bail!("topic {name} could not be created: {code}"),
        }
    }
    // The metadata may show the new topic a moment later.
    let begun = Instant::now();
    loop {
        let metadata = admin.inner().fetch_metadata(Some(&options.topic), LIMIT)?;
        let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        if partitions > 0 {
            return Ok(i32::try_from(partitions)?);
        }
        ensure!(begun.elapsed() < LIMIT, "topic {} was created and has no partitions", options.topic);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One idempotent producer. The program fails if a message is not delivered, since the summary must be true.
struct Sender {
    producer: BaseProducer<Failures>,
    topic: String,
}

impl Sender {
    fn connect(options: &Options, number: usize) -> anyhow::Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &options.brokers)
            .set("enable.idempotence", "true")
            .set("batch.size", "1000000")
            .set("queue.buffering.max.kbytes", "131072")
            // A transaction is flushed at its end anyway; elsewhere a few milliseconds make full batches.
            .set("linger.ms", if options.transactions > 0 { "0" } else { "20" });
        if options.transactions > 0 {
            let process = std::process::id();
            config.set("transactional.id", format!("produce-{}-{process}-{number}", options.topic));
        }
        let producer = config.create_with_context(Failures::default()).context("connecting to Kafka")?;
        Ok(Self { producer, topic: options.topic.clone() })
    }

    fn send(&self, message: &Message) -> anyhow::Result<()> {
        let mut record = BaseRecord::<(), [u8]>::to(&self.topic).partition(message.partition);
        if let Some(value) = &message.value {
            record = record.payload(value);
        }
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    self.producer.poll(Duration::from_millis(20));
                    record = back;
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }

    /// Waits until the broker has all messages. `flush` takes a tenth of a second whenever it has to wait.
    fn drain(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        while self.producer.in_flight_count() > 0 {
            ensure!(start.elapsed() < LIMIT, "the broker did not take what was sent within {LIMIT:?}");
            self.producer.poll(Duration::ZERO);
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    fn finish(&self) -> anyhow::Result<()> {
        self.drain()?;
        let failures = self.producer.context().0.lock().map_err(|_| anyhow!("a delivery callback panicked"))?;
        match failures.front() {
            Some(first) => bail!("{} messages were not delivered, the first because: {first}", failures.len()),
            None => Ok(()),
        }
    }
}

#[derive(Default)]
struct Failures(Mutex<VecDeque<String>>);

impl ClientContext for Failures {}

impl ProducerContext for Failures {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let (Err((error, _)), Ok(mut failures)) = (result, self.0.lock()) {
            failures.push_back(error.to_string());
        }
    }
}
