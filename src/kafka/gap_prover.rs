//! Proves what an offset without a record is, so that a position may pass it.
//!
//! The reader saw records with holes between them. A second client reads the span of the holes at
//! `read_uncommitted`: an offset at which even that sees nothing holds a transaction marker or was
//! compacted away. One at which it sees a record should be part of an aborted transaction; a third
//! client then reads the same span at `read_committed`, and must see nothing there either. A record
//! that does appear is one the reader lost: the hole is not passed, the reader is to be rebuilt.
//!
//! One pass a batch, whatever the number of holes: a topic with one message a transaction has a
//! marker after each. Passes of consecutive batches continue where the last one stopped. A pass takes as long as it
//! gets on: at `read_committed` nothing is delivered of an aborted region, however large.

use std::sync::mpsc as requests;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tokio::sync::oneshot;

use super::SourceError;
use super::client::{self, Fetch, Isolation};
use super::ffi::KafkaEvent;
use super::renewable::RenewableConsumer;
use super::statistics::Fetching;
use crate::config::KafkaConfig;
use crate::failpoints;
use crate::model::offset::{Coverage, NextOffset, Offset, OffsetRange};
use crate::model::record::Record;

/// How long a pass may stand still before it is given up and tried again.
const PROOF_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes each proving client may read ahead.
const READ_AHEAD_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of an answer: small enough to come whole, and count as progress, on a slow line.
const PARTITION_BYTES: usize = 1024 * 1024;

/// What a set of holes turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// No record in any of them. `aborted`: the offsets that hold a record of an aborted transaction.
    Empty { aborted: Coverage },
    /// A committed record lies in a hole: the reader skipped it.
    Record(Offset),
    /// The log does not reach the first hole now: it begins later, or is not whole at this moment.
    OutOfRange,
}

/// Asks the proving thread. Dropping it stops the thread.
#[derive(Clone)]
pub struct Prover {
    requests: requests::Sender<Request>,
}

struct Request {
    partition: i32,
    holes: Coverage,
    answer: oneshot::Sender<Result<Finding, SourceError>>,
}

impl Prover {
    pub fn start(kafka: &KafkaConfig) -> Result<Self, SourceError> {
        let uncommitted = Scanner::new(kafka, Isolation::ReadUncommitted)?;
        let committed = Scanner::new(kafka, Isolation::ReadCommitted)?;
        let (tx, rx) = requests::channel::<Request>();
        std::thread::Builder::new()
            .name("kafka-prove".into())
            .spawn(move || {
                let (mut uncommitted, mut committed) = (uncommitted, committed);
                for Request { partition, holes, answer } in rx {
                    // Else nobody waits for the answer: the partition is read from elsewhere by now.
                    if !answer.is_closed() {
                        let _ = answer.send(prove(&mut uncommitted, &mut committed, partition, &holes));
                    }
                }
            })
            .map_err(|error| SourceError::thread(&error))?;
        Ok(Self { requests: tx })
    }

    /// What the holes of a partition are. They must lie below its last stable offset; an error says
    /// that nothing could be told, and the question is to be asked again.
    pub async fn prove(&self, partition: i32, holes: Coverage) -> Result<Finding, SourceError> {
        let (answer, finding) = oneshot::channel();
        // A thread that is gone has panicked, and a panic ends the process.
        let _ = self.requests.send(Request { partition, holes, answer });
        finding.await.unwrap_or(Err(late()))
    }
}

fn prove(
    uncommitted: &mut Scanner,
    committed: &mut Scanner,
    partition: i32,
    holes: &Coverage,
) -> Result<Finding, SourceError> {
    let Some(span) = holes.span() else { return Ok(Finding::Empty { aborted: Coverage::default() }) };
    let RangeScanner::Read(seen) = uncommitted.offsets(partition, span, holes)? else { return Ok(Finding::OutOfRange) };
    if seen.is_empty() {
        return Ok(Finding::Empty { aborted: Coverage::default() });
    }
    let RangeScanner::Read(lost) = committed.offsets(partition, span, holes)? else { return Ok(Finding::OutOfRange) };
    Ok(match lost.ranges().first().and_then(|range| Offset::new(range.from().get())) {
        Some(offset) => Finding::Record(offset),
        None => Finding::Empty { aborted: seen },
    })
}

fn late() -> SourceError {
    SourceError::Timeout { operation: "read from Kafka for a proof", seconds: PROOF_TIMEOUT.as_secs() }
}

enum RangeScanner {
    /// To the end of the span: the records at offsets of the holes. Neighbours are one range, however many they are.
    Read(Coverage),
    OutOfRange,
}

enum Step {
    Record(Record),
    /// The end of the partition, at `Scanner::at` or before it.
    End,
    OutOfRange,
}

/// A client that reads spans of one partition at a time.
struct Scanner {
    client: RenewableConsumer,
    topic: String,
    knows_leaders: bool,
    fetching: Fetching,
    /// Where the client stands: everything of `partition` below was delivered.
    at: Option<(i32, NextOffset)>,
}

impl Scanner {
    fn new(kafka: &KafkaConfig, isolation: Isolation) -> Result<Self, SourceError> {
        // A group id only because librdkafka asks for one; nothing is committed under it.
        let group = format!("{}-proof", kafka.group);
        let fetch = Fetch { buffer_bytes: READ_AHEAD_BYTES, partition_bytes: PARTITION_BYTES };
        let settings = kafka.clone();
        Ok(Self {
            client: RenewableConsumer::new(move || client::consumer(&settings, &group, isolation, fetch))?,
            topic: kafka.topic.clone(),
            knows_leaders: false,
            fetching: Fetching::default(),
            at: None,
        })
    }

    /// Reads `span` to its end and tells at which offsets of `holes` there is a record.
    fn offsets(&mut self, partition: i32, span: OffsetRange, holes: &Coverage) -> Result<RangeScanner, SourceError> {
        if !self.can_continue(partition, span) {
            self.assign(partition, span.from())?;
        }
        let mut seen = Coverage::default();
        while self.at.is_some_and(|(_, at)| at < span.to()) {
            match self.next(partition)? {
                Step::Record(record) if holes.contains(record.offset) => {
                    OffsetRange::new(record.offset.at(), record.offset.next())
                        .into_iter()
                        .for_each(|one| seen.insert(one));
                }
                Step::Record(_) | Step::End => {}
                Step::OutOfRange => return Ok(RangeScanner::OutOfRange),
            }
        }
        Ok(RangeScanner::Read(seen))
    }

    /// The next thing that happens in the partition being read.
    fn next(&mut self, partition: i32) -> Result<Step, SourceError> {
        let patience = failpoints::scaled(PROOF_TIMEOUT);
        let mut deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            match self.client.queue.poll(Duration::from_millis(100)) {
                Some(KafkaEvent::Statistics(report)) if self.fetching.advanced(&report).contains(&partition) => {
                    deadline = Instant::now() + patience;
                }
                Some(KafkaEvent::Record(record)) if self.belongs_to_scan(&record) => {
                    self.at = Some((partition, record.offset.next()));
                    return Ok(Step::Record(record));
                }
                Some(KafkaEvent::End { partition: p, offset }) if p == partition => {
                    // An end below the position is of an earlier moment; the next one comes.
                    self.at = self.at.map(|(p, at)| (p, NextOffset::new(offset).map_or(at, |end| at.max(end))));
                    return Ok(Step::End);
                }
                Some(KafkaEvent::PartitionError { partition: p, code, not_unpacked, .. }) if p == partition => {
                    self.at = None;
                    if let Some(batch) = not_unpacked {
                        return Err(SourceError::NotUnpacked { partition, batch });
                    }
                    return match code {
                        RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => Ok(Step::OutOfRange),
                        code => Err(SourceError::Call {
                            operation: "read from Kafka for a proof",
                            source: rdkafka::error::KafkaError::MessageConsumption(code),
                        }),
                    };
                }
                // The next question finds another client.
                Some(KafkaEvent::ClientError { .. }) if self.client.is_outdated() => break,
                _ => {}
            }
        }
        self.at = None;
        Err(late())
    }

    /// A record below the position, or of another partition, is of an earlier assignment.
    fn belongs_to_scan(&self, record: &Record) -> bool {
        self.at.is_some_and(|(partition, at)| partition == record.partition && at <= record.offset.at())
    }

    /// Whether the client stands at or shortly before the span, so that reading on is cheaper than
    /// starting anew.
    fn can_continue(&self, partition: i32, span: OffsetRange) -> bool {
        const MAX_SKIP: i64 = 20_000;
        self.at.is_some_and(|(p, at)| p == partition && at <= span.from() && span.from().get() - at.get() <= MAX_SKIP)
    }

    fn assign(&mut self, partition: i32, from: NextOffset) -> Result<(), SourceError> {
        if self.client.renew_if_outdated() || !std::mem::replace(&mut self.knows_leaders, true) {
            client::learn_leaders(&self.client.consumer, &self.topic);
        }
        let call = |source| SourceError::Call { operation: "read from Kafka for a proof", source };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, partition, KafkaOffset::Offset(from.get())).map_err(call)?;
        self.client.consumer.assign(&list).map_err(call)?;
        self.fetching.forget();
        self.at = Some((partition, from));
        Ok(())
    }
}
