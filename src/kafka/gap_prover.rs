//! Proves why an offset has no record, so that a position may pass it.
//!
//! The reader received records with gaps between them. A second client reads the span of the gaps at
//! `read_uncommitted`. An offset at which this client sees no record holds a transaction marker, or its record was
//! compacted away. A record that this client sees should belong to an aborted transaction: a third client then reads
//! the same span at `read_committed` and must see no record in the gaps either. If it does see one, the reader lost
//! that record: the position does not pass the gap, and the reader must be created again.
//!
//! One scan per batch proves all its gaps: a topic with one message per transaction has a marker after each message.
//! Scans of consecutive batches continue where the last one stopped. A scan may take any time while it makes progress:
//! at `read_committed` no record of an aborted region is delivered, however large the region is.

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
use crate::model::topic::{Topic, TopicPartition};

/// How long a scan may make no progress before it is given up. The caller tries again.
const PROOF_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes each proving client may read ahead.
const READ_AHEAD_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of a response: few enough that it arrives complete, and counts as progress, on a slow connection.
const PARTITION_BYTES: usize = 1024 * 1024;

/// The result of a proof for a set of gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// No gap contains a committed record. `aborted`: the offsets of records of aborted transactions.
    Empty { aborted: Coverage },
    /// A committed record lies in a gap: the reader skipped it.
    Record(Offset),
    /// The log does not contain the first gap now: it begins later, or ends before it at this moment.
    OutOfRange,
}

/// Sends requests to the proving thread. Dropping it stops the thread.
#[derive(Clone)]
pub struct Prover {
    requests: requests::Sender<Request>,
}

struct Request {
    partition: TopicPartition,
    gaps: Coverage,
    answer: oneshot::Sender<Result<Finding, SourceError>>,
}

impl Prover {
    pub fn start(kafka: &KafkaConfig) -> Result<Self, SourceError> {
        let uncommitted = RangeScanner::new(kafka, Isolation::ReadUncommitted)?;
        let committed = RangeScanner::new(kafka, Isolation::ReadCommitted)?;
        let (tx, rx) = requests::channel::<Request>();
        std::thread::Builder::new()
            .name("kafka-prove".into())
            .spawn(move || {
                let (mut uncommitted, mut committed) = (uncommitted, committed);
                for Request { partition, gaps, answer } in rx {
                    // A closed channel: the caller gave up, because the partition is read from another offset now.
                    if !answer.is_closed() {
                        let _ = answer.send(prove(&mut uncommitted, &mut committed, &partition, &gaps));
                    }
                }
            })
            .map_err(|error| SourceError::thread(&error))?;
        Ok(Self { requests: tx })
    }

    /// Proves the gaps of a partition, which must lie below its last stable offset. After an error nothing is known,
    /// and the caller asks again.
    pub async fn prove(&self, partition: TopicPartition, gaps: Coverage) -> Result<Finding, SourceError> {
        let (answer, finding) = oneshot::channel();
        // The thread ends early only by a panic, and a panic ends the process.
        let _ = self.requests.send(Request { partition, gaps, answer });
        finding.await.unwrap_or(Err(late()))
    }
}

fn prove(
    uncommitted: &mut RangeScanner,
    committed: &mut RangeScanner,
    partition: &TopicPartition,
    gaps: &Coverage,
) -> Result<Finding, SourceError> {
    let Some(span) = gaps.span() else { return Ok(Finding::Empty { aborted: Coverage::default() }) };
    let ScanResult::Read(seen) = uncommitted.offsets(partition, span, gaps)? else { return Ok(Finding::OutOfRange) };
    if seen.is_empty() {
        return Ok(Finding::Empty { aborted: Coverage::default() });
    }
    let ScanResult::Read(lost) = committed.offsets(partition, span, gaps)? else { return Ok(Finding::OutOfRange) };
    Ok(match lost.ranges().first().and_then(|range| Offset::new(range.from().get())) {
        Some(offset) => Finding::Record(offset),
        None => Finding::Empty { aborted: seen },
    })
}

fn late() -> SourceError {
    SourceError::Timeout { operation: "read from Kafka for a proof", seconds: PROOF_TIMEOUT.as_secs() }
}

enum ScanResult {
    /// The offsets of records in the gaps, after reading to the end of the span. Consecutive offsets are one range.
    Read(Coverage),
    OutOfRange,
}

enum Step {
    Record(Record),
    /// The end of the partition, at or below `RangeScanner::at`.
    End,
    OutOfRange,
}

/// A client that reads spans of one partition at a time.
struct RangeScanner {
    client: RenewableConsumer,
    topic: Topic,
    knows_leaders: bool,
    fetching: Fetching,
    /// Partition and next offset: every record below was delivered.
    at: Option<(TopicPartition, NextOffset)>,
}

impl RangeScanner {
    fn new(kafka: &KafkaConfig, isolation: Isolation) -> Result<Self, SourceError> {
        // librdkafka requires a group id; no offset is committed under it.
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

    /// Reads `span` to its end and returns the offsets in `gaps` that have a record.
    fn offsets(
        &mut self,
        partition: &TopicPartition,
        span: OffsetRange,
        gaps: &Coverage,
    ) -> Result<ScanResult, SourceError> {
        if !self.can_continue(partition, span) {
            self.assign(partition, span.from())?;
        }
        let mut seen = Coverage::default();
        while self.at.as_ref().is_some_and(|(_, at)| *at < span.to()) {
            match self.next(partition)? {
                Step::Record(record) if gaps.contains(record.offset) => {
                    OffsetRange::new(record.offset.at(), record.offset.next())
                        .into_iter()
                        .for_each(|one| seen.insert(one));
                }
                Step::Record(_) | Step::End => {}
                Step::OutOfRange => return Ok(ScanResult::OutOfRange),
            }
        }
        Ok(ScanResult::Read(seen))
    }

    /// The next record, end or error of the partition being read.
    fn next(&mut self, partition: &TopicPartition) -> Result<Step, SourceError> {
        let timeout = failpoints::scaled(PROOF_TIMEOUT);
        let mut deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            match self.client.queue.poll(Duration::from_millis(100)) {
                Some(KafkaEvent::Statistics(report)) if self.fetching.advanced(&report).contains(partition) => {
                    deadline = Instant::now() + timeout;
                }
                Some(KafkaEvent::Record(record)) if self.belongs_to_scan(&record) => {
                    self.moved_to(record.offset.next());
                    return Ok(Step::Record(record));
                }
                Some(KafkaEvent::End { partition: p, offset }) if p == partition.partition => {
                    if let Some(end) = NextOffset::new(offset) {
                        self.moved_to(end);
                    }
                    return Ok(Step::End);
                }
                Some(KafkaEvent::PartitionError { partition: p, code, not_unpacked, .. })
                    if p == partition.partition =>
                {
                    self.at = None;
                    if let Some(batch) = not_unpacked {
                        return Err(SourceError::NotUnpacked { partition: partition.clone(), batch });
                    }
                    return match code {
                        RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => Ok(Step::OutOfRange),
                        code => Err(SourceError::Call {
                            operation: "read from Kafka for a proof",
                            source: rdkafka::error::KafkaError::MessageConsumption(code),
                        }),
                    };
                }
                // The next request uses a new client.
                Some(KafkaEvent::ClientError { .. }) if self.client.is_outdated() => break,
                _ => {}
            }
        }
        self.at = None;
        Err(late())
    }

    /// Everything below `to` was delivered. An end below the position is older than the position; a later end will
    /// follow.
    fn moved_to(&mut self, to: NextOffset) {
        if let Some((_, at)) = &mut self.at {
            *at = to.max(*at);
        }
    }

    /// Returns false for a record of an earlier assignment: of another partition, or below the position. The client's
    /// records are all of one topic.
    fn belongs_to_scan(&self, record: &Record) -> bool {
        self.at.as_ref().is_some_and(|(p, at)| p.partition == record.partition && *at <= record.offset.at())
    }

    /// Returns true if the client's position is at or shortly before the span, so that reading on costs less than a new
    /// assignment.
    fn can_continue(&self, partition: &TopicPartition, span: OffsetRange) -> bool {
        const MAX_SKIP: i64 = 20_000;
        let Some((p, at)) = &self.at else { return false };
        p == partition && *at <= span.from() && span.from().get() - at.get() <= MAX_SKIP
    }

    fn assign(&mut self, partition: &TopicPartition, from: NextOffset) -> Result<(), SourceError> {
        debug_assert_eq!(partition.topic, self.topic, "a client fetches one topic");
        if self.client.renew_if_outdated() || !std::mem::replace(&mut self.knows_leaders, true) {
            client::learn_leaders(&self.client.consumer, &self.topic);
        }
        let call = |source| SourceError::Call { operation: "read from Kafka for a proof", source };
        let mut list = TopicPartitionList::new();
        let TopicPartition { topic, partition: number } = partition;
        list.add_partition_offset(topic, *number, KafkaOffset::Offset(from.get())).map_err(call)?;
        self.client.consumer.assign(&list).map_err(call)?;
        self.fetching.forget();
        self.at = Some((partition.clone(), from));
        Ok(())
    }
}
