//! Compares the ledger with the log, offset by offset and field by field.
//!
//! Reads the log again with a client of its own, decodes each message again and compares it with its rows: every
//! message (`--deep`), or samples of each partition. Rows of messages that Kafka no longer has are compared with the
//! text that is stored in them. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::config::KafkaConfig;
use crate::findings::Finding;
use crate::kafka::SourceError;
use crate::kafka::metadata::Observer;
use crate::kafka::reader::{Assignment, FetchError, Fetched, Reader};
use crate::ledger::error::LedgerError;
use crate::ledger::format_history::History;
use crate::ledger::read::consistency::{Inspector, PartitionSnapshot};
use crate::ledger::read::contents::{Fields, Suspect};
use crate::model::offset::{Coverage, NextOffset, Offset, OffsetRange, Watermarks};
use crate::model::record::{AssignmentEpoch, Record};
use crate::model::topic::TopicPartition;
use crate::observe::progress::OffsetProgress;
use crate::postgres::error::PgError;

/// The most messages and bytes of a partition that are compared at once. Their rows need about as much memory again.
const MESSAGES_PER_COMPARISON: usize = 5_000;
const BYTES_PER_COMPARISON: usize = 8 * 1024 * 1024;
/// The most bytes of messages that wait for their comparison, over all partitions.
const MAX_WAITING_BYTES: usize = 32 * 1024 * 1024;
/// The most suspects that are kept before they are looked up. A look-up reads all outcomes.
const MAX_SUSPECTS: usize = 100_000;
/// The most differing ranges that are kept for a partition. Further ones are only counted.
const MAX_MISMATCHES: usize = 1_000;
/// The number of samples of a partition, and of offsets in each, without `--deep`.
const SAMPLES: i64 = 20;
const SAMPLE_MESSAGES: i64 = 100;
/// Kafka counts as not answering if nothing is delivered for this long.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How the log differs from the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// Kafka has a message, and the ledger has no outcome of it.
    NotRecorded,
    /// The message is not the one that was recorded.
    Differs,
    /// The ledger has an outcome, and Kafka has no message. Only compaction or retention explains it.
    NoMessage,
    /// An event has other content than the stored event with its identity, and is not among the conflicts.
    ConflictMissing,
    /// These fields of the rows differ from their message.
    Altered(Fields),
    /// This program does not know the format that wrote the rows, so they were not compared.
    FormatUnknown,
}

impl Mismatch {
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotRecorded => "not_recorded",
            Self::Differs => "differs",
            Self::NoMessage => "no_message",
            Self::ConflictMissing => "conflict_missing",
            Self::Altered(_) => "altered",
            Self::FormatUnknown => "format_unknown",
        }
    }

    fn of_fields(fields: Fields) -> Self {
        if fields.are_of_unknown_format() { Self::FormatUnknown } else { Self::Altered(fields) }
    }
}

/// The result of the comparison of one partition.
#[derive(Debug, Default)]
pub struct Compared {
    pub messages: u64,
    pub mismatches: Vec<(Mismatch, OffsetRange)>,
    /// The number of differing ranges that are not in `mismatches`.
    pub more: u64,
}

impl Compared {
    fn add(&mut self, more: Self) {
        self.messages += more.messages;
        self.more += more.more;
        more.mismatches.into_iter().for_each(|(mismatch, range)| self.note(mismatch, range));
    }

    /// Adds a range, and joins it with the previous range of the same mismatch if they are adjacent.
    fn note(&mut self, mismatch: Mismatch, range: OffsetRange) {
        let kept = self.mismatches.len();
        let previous = self.mismatches.iter_mut().rev().find(|(m, _)| *m == mismatch);
        let previous = previous.filter(|(_, r)| r.to() == range.from());
        match previous.and_then(|(_, r)| Some((OffsetRange::new(r.from(), range.to())?, r))) {
            Some((both, previous)) => *previous = both,
            None if kept < MAX_MISMATCHES => self.mismatches.push((mismatch, range)),
            None => self.more += 1,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Store(#[from] LedgerError),
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl From<PgError> for VerifyError {
    fn from(error: PgError) -> Self {
        Self::Store(error.into())
    }
}

impl From<VerifyError> for Finding {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Source(error) => error.into(),
            VerifyError::Store(error) => error.into(),
        }
    }
}

/// The ranges of a partition that are compared: everything if `deep` or if it is small, else samples.
pub fn sample_ranges(p: &PartitionSnapshot, marks: Watermarks, deep: bool) -> Vec<OffsetRange> {
    let from = p.start.max(marks.log_start);
    let Some(all) = OffsetRange::new(from, p.next.min(marks.log_end)) else { return vec![] };
    let length = all.to().get() - from.get();
    if deep || length <= SAMPLES * SAMPLE_MESSAGES {
        return vec![all];
    }
    // Evenly spread; the first and the last offsets are included.
    let step = (length - SAMPLE_MESSAGES) / (SAMPLES - 1);
    let sample = |n: i64| {
        let begin = NextOffset::new(from.get() + n * step)?;
        OffsetRange::new(begin, NextOffset::new(begin.get() + SAMPLE_MESSAGES)?)
    };
    (0..SAMPLES).filter_map(sample).collect()
}

/// Compares ranges of partitions with the log: several partitions at once, one range of each at a time. Offsets that
/// retention deletes meanwhile are left out.
///
/// Returns the results by position id, also if an error ended the comparison early.
pub async fn compare(
    kafka: &KafkaConfig,
    observer: &Observer,
    inspector: &Inspector,
    ranges: Vec<(PartitionSnapshot, Vec<OffsetRange>)>,
    bar: &OffsetProgress,
) -> (BTreeMap<i32, Compared>, Result<(), VerifyError>) {
    // librdkafka needs a group; nothing is committed under it.
    let kafka = KafkaConfig { group: format!("{}-verify", kafka.group), ..kafka.clone() };
    let (reader, fetched) = match Reader::start(&kafka) {
        Ok(started) => started,
        Err(error) => return (BTreeMap::new(), Err(error.into())),
    };
    let (open, done) = (BTreeMap::new(), BTreeMap::new());
    let mut comparing = Comparing { reader, observer, inspector, open, done, suspects: Vec::new() };
    let mut result = comparing.begin(ranges).await;
    if result.is_ok() {
        result = comparing.run(fetched, bar).await;
    }
    let Comparing { reader, open, mut done, suspects, .. } = comparing;
    for c in open.into_values() {
        done.entry(c.partition.position_id).or_default().add(c.compared);
    }
    let resolved = note_unexplained(inspector, suspects, &mut done).await;
    let result = result.and(resolved.map_err(Into::into));
    reader.stop(Duration::from_secs(1)).await;
    (done, result)
}

/// Compares rows of messages that Kafka no longer has with the text that is stored in them. Returns the results by
/// position id.
pub async fn compare_texts(
    inspector: &Inspector,
    ranges: Vec<(PartitionSnapshot, Vec<OffsetRange>)>,
    bar: &OffsetProgress,
) -> Result<BTreeMap<i32, Compared>, LedgerError> {
    let (mut done, mut suspects) = (BTreeMap::<i32, Compared>::new(), Vec::new());
    for (p, ranges) in ranges {
        let history = inspector.history(&p).await?;
        let compared = done.entry(p.position_id).or_default();
        for range in ranges {
            let mut reached = range.from();
            let found = |offset: Offset, fields: Fields, of_it: Vec<Suspect>| {
                if !fields.is_empty() {
                    OffsetRange::new(offset.at(), offset.next())
                        .into_iter()
                        .for_each(|r| compared.note(Mismatch::of_fields(fields.clone()), r));
                }
                suspects.extend(of_it);
                bar.advance(OffsetRange::new(reached, offset.next()).map_or(0, OffsetRange::count));
                reached = reached.max(offset.next());
            };
            inspector.check_texts(&p, range, &history, found).await?;
            bar.advance(OffsetRange::new(reached, range.to()).map_or(0, OffsetRange::count));
        }
        if suspects.len() >= MAX_SUSPECTS {
            note_unexplained(inspector, std::mem::take(&mut suspects), &mut done).await?;
        }
    }
    note_unexplained(inspector, suspects, &mut done).await?;
    Ok(done)
}

/// Adds a mismatch for each occurrence whose status no message explains.
async fn note_unexplained(
    inspector: &Inspector,
    suspects: Vec<Suspect>,
    done: &mut BTreeMap<i32, Compared>,
) -> Result<(), LedgerError> {
    let mut unexplained = inspector.unexplained(suspects).await?;
    unexplained.sort_unstable_by_key(|s| (s.position_id, s.offset));
    for suspect in unexplained {
        let range = OffsetRange::new(suspect.offset.at(), suspect.offset.next()).expect("an offset is not empty");
        done.entry(suspect.position_id).or_default().note(Mismatch::Altered(suspect.fields()), range);
    }
    Ok(())
}

/// The partitions under comparison.
struct Comparing<'a> {
    reader: Reader,
    observer: &'a Observer,
    inspector: &'a Inspector,
    /// By partition.
    open: BTreeMap<TopicPartition, Comparison>,
    /// By position.
    done: BTreeMap<i32, Compared>,
    suspects: Vec<Suspect>,
}

impl Comparing<'_> {
    async fn begin(&mut self, ranges: Vec<(PartitionSnapshot, Vec<OffsetRange>)>) -> Result<(), VerifyError> {
        for (partition, ranges) in ranges {
            let history = self.inspector.history(&partition).await?;
            if let Some(comparison) = Comparison::begin(partition, ranges, history) {
                self.reader.add(comparison.assignment());
                self.open.insert(comparison.partition.partition.clone(), comparison);
            }
        }
        Ok(())
    }

    /// Frees memory: compares the waiting messages, and looks up the suspects, if they exceed their limits.
    async fn relieve(&mut self) -> Result<(), LedgerError> {
        if self.open.values().map(|c| c.bytes).sum::<usize>() >= MAX_WAITING_BYTES {
            for comparison in self.open.values_mut() {
                self.suspects.extend(comparison.compare(self.inspector).await?);
            }
        }
        if self.suspects.len() >= MAX_SUSPECTS {
            note_unexplained(self.inspector, std::mem::take(&mut self.suspects), &mut self.done).await?;
        }
        Ok(())
    }

    async fn run(&mut self, mut fetched: mpsc::Receiver<Fetched>, bar: &OffsetProgress) -> Result<(), VerifyError> {
        while !self.open.is_empty() {
            let next = tokio::time::timeout(READ_TIMEOUT, fetched.recv()).await;
            let Ok(Some(next)) = next else {
                let seconds = READ_TIMEOUT.as_secs();
                return Err(SourceError::Timeout { operation: "read the log again", seconds }.into());
            };
            let mut changed = BTreeSet::new();
            match next {
                Fetched::Records(chunk) => {
                    bar.advance(chunk.records.len() as u64);
                    let mut partition = chunk.topic.partition(0);
                    for record in chunk.records {
                        partition.partition = record.partition;
                        if !changed.contains(&partition) {
                            changed.insert(partition.clone());
                        }
                        if let Some(comparison) = self.open.get_mut(&partition) {
                            comparison.take(record);
                        }
                    }
                }
                Fetched::End { partition, epoch, offset } => {
                    if let Some(comparison) = self.open.get_mut(&partition).filter(|c| c.epoch == epoch) {
                        comparison.read_to = comparison.read_to.max(offset);
                    }
                    changed.insert(partition);
                }
                Fetched::Failed(error) => self.fetch_failed(error).await?,
                Fetched::Advanced(_) | Fetched::SecretsChanged | Fetched::Trouble { .. } => {}
            }
            for partition in changed {
                let Some(comparison) = self.open.get_mut(&partition) else { continue };
                let (finished, suspects) = comparison.settle(self.inspector).await?;
                self.suspects.extend(suspects);
                if finished {
                    self.continue_reading(partition);
                }
            }
            self.relieve().await?;
        }
        Ok(())
    }

    /// A fetch failed. If retention has deleted the offsets, the comparison continues at the new log start.
    async fn fetch_failed(&mut self, error: FetchError) -> Result<(), VerifyError> {
        let partition = error.partition.clone();
        let Some(comparison) = self.open.get_mut(&partition).filter(|c| c.epoch == error.epoch) else {
            return Ok(());
        };
        let failed = |message: String| SourceError::Log { partition: partition.clone(), message };
        if error.not_unpacked.is_some() {
            return Err(error.into_error("read from Kafka").into());
        }
        if !error.is_out_of_range() {
            return Err(failed(error.message).into());
        }
        let snapshot = self.observer.snapshot().await?;
        if let Some(difference) = comparison.partition.identity.mismatch(&snapshot.identity) {
            return Err(failed(difference.to_string()).into());
        }
        let log_start = snapshot.partitions.get(&partition).map(|marks| marks.log_start);
        let Some(log_start) = log_start.filter(|start| *start >= comparison.read_to) else {
            return Err(failed(error.message).into());
        };
        self.suspects.extend(comparison.compare(self.inspector).await?);
        comparison.log_start = log_start;
        self.continue_reading(partition);
        Ok(())
    }

    /// The next range of a partition, or its end.
    fn continue_reading(&mut self, partition: TopicPartition) {
        match self.open.get_mut(&partition).and_then(Comparison::next_range) {
            Some(assignment) => self.reader.add(assignment),
            None => {
                if let Some(c) = self.open.remove(&partition) {
                    self.done.entry(c.partition.position_id).or_default().add(c.compared);
                }
                self.reader.remove(partition);
            }
        }
    }
}

/// One partition under comparison.
struct Comparison {
    partition: PartitionSnapshot,
    ranges: std::vec::IntoIter<OffsetRange>,
    range: OffsetRange,
    epoch: AssignmentEpoch,
    /// The log start, as far as it is known.
    log_start: NextOffset,
    /// Everything of `range` below `read_to` was delivered; everything below `settled` was compared.
    read_to: NextOffset,
    settled: NextOffset,
    read: Vec<Record>,
    /// The size of `read`.
    bytes: usize,
    compared: Compared,
    history: History,
}

impl Comparison {
    fn begin(partition: PartitionSnapshot, ranges: Vec<OffsetRange>, history: History) -> Option<Self> {
        let mut ranges = ranges.into_iter();
        let range = ranges.next()?;
        Some(Self {
            partition,
            ranges,
            range,
            epoch: AssignmentEpoch(1),
            log_start: range.from(),
            read_to: range.from(),
            settled: range.from(),
            read: Vec::new(),
            bytes: 0,
            compared: Compared::default(),
            history,
        })
    }

    fn assignment(&self) -> Assignment {
        let (partition, from) = (self.partition.partition.clone(), self.range.from());
        Assignment { partition, from, epoch: self.epoch, leader_epoch: None }
    }

    /// The rest of this range that Kafka still has, or else of the next range.
    fn next_range(&mut self) -> Option<Assignment> {
        loop {
            if let Some(rest) = OffsetRange::new(self.read_to.max(self.log_start), self.range.to()) {
                (self.range, self.read_to, self.settled) = (rest, rest.from(), rest.from());
                self.epoch = AssignmentEpoch(self.epoch.0 + 1);
                return Some(self.assignment());
            }
            self.range = self.ranges.next()?;
            self.read_to = self.range.from();
        }
    }

    fn take(&mut self, record: Record) {
        if record.epoch != self.epoch || record.offset.at() < self.read_to {
            return;
        }
        self.read_to = record.offset.next();
        if self.range.contains(record.offset) {
            self.bytes += record.footprint();
            self.read.push(record);
        }
    }

    /// Compares the records that were read, if they are enough for one comparison or the range ends. Returns whether
    /// the range is finished.
    async fn settle(&mut self, inspector: &Inspector) -> Result<(bool, Vec<Suspect>), LedgerError> {
        let finished = self.read_to >= self.range.to();
        let is_due = finished || self.read.len() >= MESSAGES_PER_COMPARISON || self.bytes >= BYTES_PER_COMPARISON;
        let suspects = if is_due { self.compare(inspector).await? } else { Vec::new() };
        Ok((finished, suspects))
    }

    /// Compares the records that were read. Returns the occurrences whose status other messages must explain.
    async fn compare(&mut self, inspector: &Inspector) -> Result<Vec<Suspect>, LedgerError> {
        let Some(range) = OffsetRange::new(self.settled, self.read_to.min(self.range.to())) else {
            return Ok(Vec::new());
        };
        self.compared.messages += self.read.len() as u64;
        let records = std::mem::take(&mut self.read);
        let found = inspector.compare(&self.partition, range, records, &self.history).await?;
        for (mismatch, offsets) in [
            (Mismatch::NotRecorded, found.not_recorded),
            (Mismatch::Differs, found.differs),
            (Mismatch::NoMessage, found.no_message),
            (Mismatch::ConflictMissing, found.conflict_missing),
        ] {
            let offsets: Coverage = offsets.into_iter().filter_map(|o| OffsetRange::new(o.at(), o.next())).collect();
            offsets.ranges().iter().for_each(|r| self.compared.note(mismatch.clone(), *r));
        }
        for (offset, fields) in found.altered {
            let range = OffsetRange::new(offset.at(), offset.next());
            range.into_iter().for_each(|r| self.compared.note(Mismatch::of_fields(fields.clone()), r));
        }
        (self.settled, self.bytes) = (range.to(), 0);
        Ok(found.suspects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::topic::{Topic, TopicIdentity};

    fn at(n: i64) -> NextOffset {
        NextOffset::new(n).expect("not negative")
    }

    #[test]
    fn samples_include_the_first_and_the_last_messages_and_a_small_log_is_read_completely() {
        let identity = TopicIdentity { cluster_id: None, topic_id: None };
        let p = PartitionSnapshot {
            position_id: 1,
            generation: 1,
            identity,
            partition: Topic::from("events").partition(0),
            start: at(50),
            next: at(1_000_050),
        };
        let marks = Watermarks { log_start: at(100), last_stable: at(2_000_000), log_end: at(2_000_000) };
        let samples = sample_ranges(&p, marks, false);
        assert_eq!(samples.len(), 20);
        assert_eq!(samples[0].from(), at(100), "expired offsets are left out");
        assert!(samples[19].to() <= at(1_000_050) && samples[19].to() > at(1_000_000));
        assert_eq!(sample_ranges(&p, marks, true), [OffsetRange::new(at(100), at(1_000_050)).expect("a range")]);
        let small = PartitionSnapshot { next: at(200), ..p };
        assert_eq!(sample_ranges(&small, marks, false).len(), 1);
    }
}
