//! The load of a campaign: a stream of every kind of message. Its account of the sent messages is the oracle.
//!
//! Codecs, keys, tombstones, duplicates, conflicts, removals, poison, committed and aborted transactions are drawn from
//! the seed. A record whose acknowledgement was lost is `Unknown`: the log may have it or not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use crate::support::{Event, Random, Topic};

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
/// A load sends at most this many records.
const MAX_RECORDS: usize = 5_000;
/// After this time without an answer the delivery of a record is unknown.
const ACK_TIMEOUT: Duration = Duration::from_secs(20);

/// The class of a record, which determines its possible outcomes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Class {
    /// Contains an event: new, a duplicate, or in conflict with an earlier one.
    Event,
    Removal,
    Poison,
    Tombstone,
}

impl Class {
    pub(crate) fn outcomes(self) -> &'static [&'static str] {
        match self {
            Self::Event => &["stored", "processed"],
            Self::Removal => &["removed"],
            Self::Poison => &["rejected"],
            Self::Tombstone => &["ignored"],
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Delivery {
    /// The broker has the record at this offset.
    Acknowledged(i64),
    Unknown,
    /// The producer never sent the record, or its transaction was aborted: no consumer may ever read it.
    Never,
}

/// One record of the account.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) partition: i32,
    pub(crate) class: Class,
    pub(crate) value: Option<Vec<u8>>,
    /// Transaction hash and event name, if the record has an identity.
    pub(crate) identity: Option<(String, String)>,
    pub(crate) delivery: Delivery,
}

/// All records, by the number in their header `uid`.
#[derive(Default)]
pub(crate) struct Account {
    pub(crate) sent: BTreeMap<u64, Sent>,
}

impl Account {
    pub(crate) fn aborted(&self) -> usize {
        self.sent.values().filter(|sent| sent.delivery == Delivery::Never).count()
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.sent.values().filter(|sent| matches!(sent.delivery, Delivery::Acknowledged(_))).count()
    }
}

/// The properties of a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// The approximate size of an event in bytes.
    pub(crate) size: usize,
    /// The share of bursts that are transactions, 0 to 1.
    pub(crate) transactions: f64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { size: 600, transactions: 0.2 }
    }
}

/// A load that runs until it is stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    partitions: Arc<AtomicI32>,
    most: Arc<AtomicU64>,
    thread: JoinHandle<Account>,
}

impl Load {
    pub(crate) fn start(topic: &Topic, partitions: i32, seed: u64, shape: Shape) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let partitions = Arc::new(AtomicI32::new(partitions));
        let most = Arc::new(AtomicU64::new(MAX_RECORDS as u64));
        let source = Source {
            random: Random::new(seed),
            seed,
            shape,
            partitions: Arc::clone(&partitions),
            most: Arc::clone(&most),
            brokers: topic.brokers.clone(),
            topic: topic.name.clone(),
            account: Account::default(),
            events: Vec::new(),
            count: Arc::clone(&count),
        };
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || source.run(&stop)
        });
        Self { stop, count, partitions, most, thread }
    }

    /// The number of records made so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Whether the load has sent its maximum of records.
    pub(crate) fn is_full(&self) -> bool {
        self.count() >= self.most.load(Ordering::SeqCst)
    }

    /// Sends to this number of partitions from now on, and raises the maximum of records for them.
    pub(crate) fn spread_to(&self, partitions: i32) {
        self.most.fetch_add(MAX_RECORDS as u64 / 2, Ordering::SeqCst);
        self.partitions.store(partitions, Ordering::SeqCst);
    }

    /// Ends the load after the delivery of each record is known or has timed out.
    pub(crate) fn stop(self) -> Account {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the thread of the load")
    }
}

struct Source {
    random: Random,
    seed: u64,
    shape: Shape,
    partitions: Arc<AtomicI32>,
    most: Arc<AtomicU64>,
    brokers: String,
    topic: String,
    account: Account,
    events: Vec<Event>,
    count: Arc<AtomicU64>,
}

type DeliveryReports = Arc<Mutex<Vec<(u64, Delivery)>>>;

impl Source {
    fn run(mut self, stop: &AtomicBool) -> Account {
        let reports = DeliveryReports::default();
        let mut transactional = None;
        let mut plain = CODECS.map(|codec| self.producer(&reports, codec, &[]));
        while !stop.load(Ordering::SeqCst) {
            if self.account.sent.len() as u64 >= self.most.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            if self.random.chance(self.shape.transactions) {
                let producer = match transactional.take() {
                    Some(producer) => producer,
                    None => match self.transactional(&reports) {
                        Some(producer) => producer,
                        None => continue,
                    },
                };
                transactional = self.transaction(producer, &reports);
            } else {
                let index = self.random.below(plain.len() as u64) as usize;
                let uids = self.send(&plain[index], 60);
                wait_for_acknowledgements(&plain[index]);
                self.apply_reports(&uids, &reports);
                if plain[index].client().fatal_error().is_some() {
                    plain[index] = self.producer(&reports, CODECS[index], &[]);
                }
            }
            std::thread::sleep(Duration::from_millis(self.random.below(8)));
        }
        self.account
    }

    fn transactional(&mut self, reports: &DeliveryReports) -> Option<BaseProducer<Deliveries>> {
        let id = format!("{}-{:x}", self.topic, self.random.next());
        let settings = [("transactional.id", id.as_str()), ("transaction.timeout.ms", "10000")];
        let codec = CODECS[self.random.below(CODECS.len() as u64) as usize];
        let producer = self.producer(reports, codec, &settings);
        producer.init_transactions(ACK_TIMEOUT).ok().map(|()| producer)
    }

    fn producer(&self, reports: &DeliveryReports, codec: &str, settings: &[(&str, &str)]) -> BaseProducer<Deliveries> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("linger.ms", "1")
            .set("compression.type", codec)
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "10000")
            .set("socket.timeout.ms", "10000")
            .set("topic.metadata.refresh.interval.ms", "1000")
            .set("reconnect.backoff.max.ms", "500");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        config.create_with_context(Deliveries(Arc::clone(reports))).expect("a producer")
    }

    /// Sends one transaction. Returns the producer unless it can no longer be used.
    fn transaction(
        &mut self,
        producer: BaseProducer<Deliveries>,
        reports: &DeliveryReports,
    ) -> Option<BaseProducer<Deliveries>> {
        producer.begin_transaction().ok()?;
        let uids = self.send(&producer, 20);
        let aborts = self.random.chance(0.3);
        wait_for_acknowledgements(&producer);
        let ended = match aborts {
            true => producer.abort_transaction(ACK_TIMEOUT),
            false => producer.commit_transaction(ACK_TIMEOUT),
        };
        self.apply_reports(&uids, reports);
        for uid in uids {
            let sent = self.account.sent.get_mut(&uid).expect("a record of this transaction");
            match (&ended, aborts) {
                (Ok(()), true) => sent.delivery = Delivery::Never,
                (Ok(()), false) => {}
                // It is unknown whether the coordinator commits or aborts the transaction.
                (Err(_), _) => sent.delivery = Delivery::Unknown,
            }
        }
        ended.ok().map(|()| producer)
    }

    fn send(&mut self, producer: &BaseProducer<Deliveries>, most: u64) -> Vec<u64> {
        let partition = self.random.below(self.partitions.load(Ordering::SeqCst) as u64) as i32;
        let mut uids = Vec::new();
        let most = if self.shape.size > 100_000 { 4 } else { most };
        for _ in 0..=self.random.below(most) {
            let uid = self.account.sent.len() as u64;
            let sent = self.draw(partition);
            let text = uid.to_string();
            let headers = OwnedHeaders::new().insert(Header { key: "uid", value: Some(&text) });
            let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&self.topic, uid as usize)
                .partition(partition)
                .headers(headers);
            let key = self.random.hex(8);
            if sent.class == Class::Tombstone || self.random.chance(0.5) {
                record = record.key(key.as_bytes());
            }
            if let Some(value) = &sent.value {
                record = record.payload(value);
            }
            let queued = producer.send(record).is_ok();
            self.account
                .sent
                .insert(uid, Sent { delivery: if queued { Delivery::Unknown } else { Delivery::Never }, ..sent });
            self.count.fetch_add(1, Ordering::SeqCst);
            uids.push(uid);
        }
        uids
    }

    fn apply_reports(&mut self, uids: &[u64], reports: &DeliveryReports) {
        let mut reports = reports.lock().unwrap_or_else(PoisonError::into_inner);
        for (uid, delivery) in reports.drain(..) {
            if uids.contains(&uid) {
                self.account.sent.get_mut(&uid).expect("a record of this account").delivery = delivery;
            }
        }
    }

    fn draw(&mut self, partition: i32) -> Sent {
        let sent = |class, value: Option<Vec<u8>>, identity| Sent {
            partition,
            class,
            value,
            identity,
            delivery: Delivery::Unknown,
        };
        let of = |class, event: &Event| sent(class, Some(event.json().into_bytes()), Some(identity(event)));
        let earlier = match self.events.len() as u64 {
            0 => None,
            count => Some(self.events[self.random.below(count) as usize].clone()),
        };
        match (self.random.below(100), earlier) {
            (0..10, Some(event)) => of(Class::Event, &event),
            (10..14, Some(event)) => of(Class::Event, &event.conflicting()),
            (14..17, Some(mut event)) => {
                event.removed = true;
                of(Class::Removal, &event)
            }
            (17..19, _) => sent(Class::Tombstone, None, None),
            (19..23, _) => {
                let event = self.next();
                sent(Class::Poison, Some(self.poison(&event)), None)
            }
            // Values that jsonb refuses and a text column accepts.
            (23..25, _) => {
                let mut event = self.next();
                event.memo = ["\"\\u0000\"", "\"\\ud800\"", "1e400000"][self.random.below(3) as usize].to_owned();
                of(Class::Event, &event)
            }
            _ => {
                let event = self.next();
                let message = of(Class::Event, &event);
                self.events.push(event);
                message
            }
        }
    }

    fn next(&mut self) -> Event {
        // The number of records only grows, so no number is used twice.
        Event::numbered(self.seed, self.account.sent.len() as u64).sized(self.shape.size)
    }

    fn poison(&mut self, event: &Event) -> Vec<u8> {
        let text = event.json().into_bytes();
        match self.random.below(6) {
            0 => Vec::new(),
            1 => text[..text.len() / 2].to_vec(),
            2 => [&text[..10], b"\0", &text[10..]].concat(),
            3 => [&text[..10], b"\xff\xfe", &text[10..]].concat(),
            4 => b"<xml/>".to_vec(),
            _ => b"{\"no\":\"event\"}".to_vec(),
        }
    }
}

fn identity(event: &Event) -> (String, String) {
    (event.txn().to_owned(), event.name.clone().unwrap_or_default())
}

/// Waits until no record is in flight, at most [`ACK_TIMEOUT`].
fn wait_for_acknowledgements(producer: &BaseProducer<Deliveries>) {
    let start = Instant::now();
    while producer.in_flight_count() > 0 && start.elapsed() < ACK_TIMEOUT {
        producer.poll(Duration::from_millis(1));
    }
}

struct Deliveries(DeliveryReports);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, uid: usize) {
        let delivery = match result {
            Ok(message) => Delivery::Acknowledged(message.offset()),
            Err(_) => Delivery::Unknown,
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((uid as u64, delivery));
    }
}
