//! `gapless replay`: decodes dead letters again with the current decoder. With `--offsets` it reads a range below the
//! position again and fills in rows that `gapless verify` found missing; an existing outcome is kept.

use std::str::FromStr;
use std::time::Duration;

use super::{failed, ledger_to_change, print};
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::kafka::SourceError;
use crate::kafka::metadata::Observer;
use crate::kafka::reader::{Assignment, Fetched, Reader};
use crate::ledger::connect::LedgerStore;
use crate::ledger::read::consistency::PartitionSnapshot;
use crate::ledger::read::dead_letters::Selector;
use crate::ledger::repair::backfill::{BackfillOrder, BackfillReport, ChangedOccurrences};
use crate::ledger::repair::replay::Replayed;
use crate::ledger::start::StartError;
use crate::ledger::write::writer::CommitError;
use crate::model::offset::{NextOffset, OffsetRange};
use crate::model::record::{AssignmentEpoch, Record};
use crate::model::topic::{Topic, TopicPartition};
use crate::observe::progress::OffsetProgress;

/// Kafka counts as not answering if nothing is delivered for this long.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const READ_AGAIN: &str = "read the range again from Kafka";

/// A range of one partition: `TOPIC:PARTITION:FROM-TO`, the end exclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offsets {
    pub partition: TopicPartition,
    pub range: OffsetRange,
}

impl Offsets {
    /// The command that replays a range of the same partition.
    fn command(&self, range: OffsetRange) -> String {
        let TopicPartition { topic, partition } = &self.partition;
        format!("gapless replay --offsets {topic}:{partition}:{}-{}", range.from(), range.to())
    }
}

impl FromStr for Offsets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut parts = text.split(':');
            let (topic, partition, range) = (parts.next()?, parts.next()?, parts.next()?);
            let (from, to) = range.split_once('-')?;
            let offset = |text: &str| text.parse().ok().and_then(NextOffset::new);
            let range = OffsetRange::new(offset(from)?, offset(to)?)?;
            let partition = partition.parse().ok().filter(|p| *p >= 0)?;
            parts.next().is_none().then(|| Self { partition: Topic::from(topic).partition(partition), range })
        };
        parse().ok_or_else(|| format!("{text:?} is not TOPIC:PARTITION:FROM-TO with FROM below TO"))
    }
}

pub async fn offsets(config: &Config, offsets: &Offsets, reason: Option<&str>) -> Result<Exit, Failure> {
    let topic = &offsets.partition.topic;
    if *topic != config.kafka.topic {
        let message = format!("--offsets names topic {topic:?}, the configured one is {:?}", config.kafka.topic);
        return Err(Failure::usage(message));
    }
    let store = open(config).await?;
    let p = partition(&store, offsets).await?;
    check_log(config, &store, &p, offsets).await?;
    let report = fill(config, &store, &p, offsets.range, reason).await?;
    let BackfillReport { outcomes, events, conflicts, dead_letters, references, dangling } = report;
    print(&format!(
        "{outcomes} outcomes written, {events} events stored, {references} references repaired, {conflicts} conflicts and {dead_letters} dead letters kept again"
    ))?;
    if dangling > 0 {
        eprintln!(
            "gapless: {dangling} messages still refer to an event that is not there: replay the range of the message that contains it, then this range"
        );
    }
    Ok(Exit::Done)
}

pub async fn dead_letters(config: &Config, selector: &Selector, reason: Option<&str>) -> Result<Exit, Failure> {
    let store = open(config).await?;
    let bar = OffsetProgress::new(store.count_open_dead_letters(selector).await.map_err(failed)?, "dead letters");
    let replayed = store.replay_dead_letters(&config.format, selector, config.batch, reason, &bar).await;
    let replayed = replayed.map_err(not_written)?;
    bar.finish();
    let Replayed { accepted, still_rejected, skipped } = replayed;
    for (partition, offset) in skipped {
        eprintln!(
            "gapless: partition {} offset {offset}: skipped, because its outcome is missing or is not rejected; `gapless verify` shows which, `gapless replay --offsets` restores a missing one",
            partition.partition
        );
    }
    print(&format!("{accepted} dead letters accepted, {still_rejected} still rejected"))?;
    match still_rejected {
        0 => Ok(Exit::Done),
        n => Err(Failure::decide(format!(
            "{n} messages are still rejected; `gapless dead-letters list` says why, `gapless dead-letters discard` gives them up"
        ))),
    }
}

/// The ledger, if its identity fields are those of this configuration. With others the same event would be stored a
/// second time.
async fn open(config: &Config) -> Result<LedgerStore, Failure> {
    let store = ledger_to_change(config).await?;
    store.check_belongs(&config.kafka.group, &config.format.identity).await.map_err(failed)?;
    Ok(store)
}

/// The partition in the newest generation of the topic, if the range is accounted for.
async fn partition(store: &LedgerStore, offsets: &Offsets) -> Result<PartitionSnapshot, Failure> {
    let inspector = store.inspector().await.map_err(failed)?;
    let partitions = inspector.partitions(&offsets.partition.topic).await.map_err(failed)?;
    let newest = partitions.iter().map(|p| p.generation).max();
    let found = partitions.into_iter().find(|p| Some(p.generation) == newest && p.partition == offsets.partition);
    let Some(p) = found else {
        let TopicPartition { topic, partition } = &offsets.partition;
        let known = inspector.overview().await.map_err(failed)?;
        return Err(Failure::usage(format!("the ledger has no partition {partition} of topic {topic:?}; {known}")));
    };
    let range = offsets.range;
    if range.from() < p.start || range.to() > p.next {
        let inside = OffsetRange::new(range.from().max(p.start), range.to().min(p.next));
        let instead = match inside.or(OffsetRange::new(p.start, p.next)) {
            Some(inside) => format!("`{}`", offsets.command(inside)),
            None => "nothing of it was read yet: start gapless".to_owned(),
        };
        let message = format!("{range} is not within the ledger's range [{}, {}); {instead}", p.start, p.next);
        return Err(Failure::usage(message));
    }
    Ok(p)
}

/// Checks that Kafka still has the range, in the log that was read: nothing else can be filled in.
async fn check_log(
    config: &Config,
    store: &LedgerStore,
    p: &PartitionSnapshot,
    offsets: &Offsets,
) -> Result<(), Failure> {
    let snapshot = Observer::new(&config.kafka).map_err(failed)?.snapshot().await.map_err(failed)?;
    if let Some(difference) = p.identity.mismatch(&snapshot.identity) {
        let unread = store.unread(&offsets.partition.topic).await.map_err(failed)?;
        return Err(failed(StartError::OtherTopicIdentity {
            topic: offsets.partition.topic.clone(),
            difference,
            unread,
        }));
    }
    let Some(marks) = snapshot.partitions.get(&p.partition) else {
        return Err(failed(SourceError::NoLeader { partitions: 1, failure: None }));
    };
    let range = offsets.range;
    let Some(gone) = OffsetRange::new(range.from(), marks.log_start.min(range.to())) else { return Ok(()) };
    let rest = OffsetRange::new(marks.log_start, range.to());
    let rest = rest.map(|rest| format!("; for the rest: `{}`", offsets.command(rest))).unwrap_or_default();
    Err(Failure::decide(format!(
        "Kafka no longer has {gone}, its log starts at {}: restore it from a backup of the database{rest}",
        marks.log_start
    )))
}

async fn fill(
    config: &Config,
    store: &LedgerStore,
    p: &PartitionSnapshot,
    range: OffsetRange,
    reason: Option<&str>,
) -> Result<BackfillReport, Failure> {
    let order = BackfillOrder { range, reason };
    let mut kafka = config.kafka.clone();
    // librdkafka needs a group; nothing is committed under it.
    kafka.group = format!("{}-replay", kafka.group);
    let (reader, mut fetched) = Reader::start(&kafka).map_err(failed)?;
    let epoch = AssignmentEpoch(1);
    reader.add(Assignment { partition: p.partition.clone(), from: range.from(), epoch, leader_epoch: None });
    let bar = OffsetProgress::new(range.count(), "offsets");
    let (mut total, mut changed) = (BackfillReport::default(), ChangedOccurrences::default());
    // The records are divided by the limits of the daemon's batches.
    let (limits, mut records, mut bytes) = (config.batch, Vec::<Record>::new(), 0);
    let mut read_to = range.from();
    while read_to < range.to() {
        match tokio::time::timeout(READ_TIMEOUT, fetched.recv()).await {
            Ok(Some(Fetched::Records(chunk))) => {
                let previous = read_to;
                read_to = chunk.records.last().map_or(read_to, |r| r.offset.next());
                bar.advance(OffsetRange::new(previous, read_to).map_or(0, OffsetRange::count));
                for record in chunk.records.into_iter().filter(|r| range.contains(r.offset)) {
                    let sum = bytes + record.footprint();
                    if !records.is_empty() && (records.len() >= limits.max_messages || sum > limits.max_bytes) {
                        let full = std::mem::take(&mut records);
                        total +=
                            store.backfill(&config.format, p, full, &order, &mut changed).await.map_err(not_written)?;
                        bytes = 0;
                    }
                    bytes += record.footprint();
                    records.push(record);
                }
            }
            Ok(Some(Fetched::End { offset, .. })) => read_to = read_to.max(offset),
            Ok(Some(Fetched::Failed(error))) => return Err(failed(error.into_error(READ_AGAIN))),
            Ok(Some(Fetched::Advanced(_) | Fetched::SecretsChanged | Fetched::Trouble { .. })) => {}
            Ok(None) | Err(_) => {
                return Err(failed(SourceError::Timeout { operation: READ_AGAIN, seconds: READ_TIMEOUT.as_secs() }));
            }
        }
    }
    total += store.backfill(&config.format, p, records, &order, &mut changed).await.map_err(not_written)?;
    bar.finish();
    reader.stop(Duration::from_secs(1)).await;
    Ok(total)
}

fn not_written(error: CommitError) -> Failure {
    match error {
        CommitError::Differs { .. } | CommitError::TooManyRejected { .. } => Failure::decide(error),
        CommitError::Stale => Failure::decide("the position was set back meanwhile; the daemon reads this range again"),
        CommitError::Store(error) => failed(error),
        CommitError::Unknown(..) | CommitError::PredecessorFailed => Failure::failed(format!("{error}; run it again")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_topic_partition_and_two_offsets() {
        let offsets: Offsets = "contract-events:3:10-12".parse().expect("valid");
        assert_eq!((offsets.partition.to_string().as_str(), offsets.range.count()), ("contract-events[3]", 2));
        for text in ["", "t:0", "t:0:5", "t:0:5-5", "t:0:6-5", "t:-1:0-5", "t:0:0-5:x", "t:x:0-5"] {
            assert!(text.parse::<Offsets>().is_err(), "{text}");
        }
    }
}
