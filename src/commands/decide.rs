//! `gapless accept-loss` and `gapless rebase`: decisions of an operator, each with its reason.

use tokio::task::JoinSet;

use super::{failed, ledger_to_change, print};
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::kafka::SourceError;
use crate::kafka::anchors::{Anchors, Found};
use crate::kafka::metadata::Observer;
use crate::ledger::read::old_generation::OldPartition;
use crate::ledger::repair::decisions::{DecisionError, Loss};
use crate::ledger::repair::rebase::{Rebase, Rebased};
use crate::model::generation::{NewGeneration, Unread};
use crate::model::offset::{NextOffset, OffsetRange};
use crate::model::topic::{Topic, TopicSnapshot};

pub async fn accept_loss(config: &Config, partition: i32, from: i64, to: i64, reason: &str) -> Result<Exit, Failure> {
    let range = NextOffset::new(from).zip(NextOffset::new(to)).and_then(|(from, to)| OffsetRange::new(from, to));
    let range = range.ok_or_else(|| Failure::usage(format!("[{from}, {to}) is not a range: FROM must be below TO")))?;
    // Only offsets that Kafka no longer has can be accepted as lost.
    let snapshot = Observer::new(&config.kafka).map_err(failed)?.snapshot().await.map_err(failed)?;
    let lost_of = config.kafka.topic.partition(partition);
    let Some(marks) = snapshot.partitions.get(&lost_of) else {
        return Err(match snapshot.leaderless.contains(&lost_of) {
            true => failed(SourceError::NoLeader { partitions: 1, failure: None }),
            false => Failure::usage(format!(
                "Kafka has no partition {partition} of topic {}, which has {} partitions",
                config.kafka.topic,
                snapshot.count()
            )),
        });
    };
    let store = ledger_to_change(config).await?;
    let loss = Loss { partition: &lost_of, range, log: *marks, reason };
    store.accept_loss(&snapshot.identity, &loss).await.map_err(not_decided)?;
    print(&format!("{range} is recorded as lost; the partition continues at {}", range.to()))?;
    Ok(Exit::Done)
}

pub async fn rebase(config: &Config, kind: NewGeneration, accepted: &[Unread], reason: &str) -> Result<Exit, Failure> {
    let topic = &config.kafka.topic;
    let observer = Observer::new(&config.kafka).map_err(failed)?;
    let snapshot = observer.snapshot().await.map_err(failed)?;
    let store = ledger_to_change(config).await?;
    let old = store.old_generation(topic, kind, &snapshot.identity).await.map_err(not_decided)?;
    let gone = match kind {
        NewGeneration::LogReplaced => match replaced_logs(config, &observer, &snapshot, &old).await? {
            gone if gone.is_empty() => {
                let seen = as_it_was_read(topic, &snapshot, &old);
                return Err(not_decided(DecisionError::NotReplaced { topic: topic.to_string(), seen }));
            }
            gone => gone,
        },
        NewGeneration::Recreated | NewGeneration::ClusterChanged => old.iter().map(|p| p.partition).collect(),
    };
    let asked = Rebase { topic, kind, found: &snapshot.identity, gone: &gone, accepted, reason };
    let Rebased { generation, old } = store.rebase(&asked).await.map_err(not_decided)?;
    old.iter().try_for_each(|p| print(&ended(p)))?;
    print(&format!(
        "generation {generation} begins: a running daemon begins it within seconds, else the next start; it reads the topic from its beginning"
    ))?;
    Ok(Exit::Done)
}

/// A line about the end of a partition of the old generation.
fn ended(p: &OldPartition) -> String {
    let OldPartition { partition, next, .. } = p;
    let end = match &p.log_end {
        Some((end, at)) => format!("its log ended at {end} when it was last seen ({at})"),
        None => "the end of its log was never recorded, so it is not known whether it had more messages".to_owned(),
    };
    let lost = p.unread.map(|range| format!(": {range} is recorded as lost")).unwrap_or_default();
    format!("partition {partition} was read to {next}, {end}{lost}")
}

/// The partitions whose log is not the one that was read. Of the other partitions the new generation reads the unread
/// offsets.
async fn replaced_logs(
    config: &Config,
    observer: &Observer,
    snapshot: &TopicSnapshot,
    old: &[OldPartition],
) -> Result<Vec<i32>, Failure> {
    let anchors = Anchors::start(&config.kafka).map_err(failed)?;
    let (mut replaced, mut asked) = (Vec::new(), JoinSet::new());
    for p in old {
        let partition = config.kafka.topic.partition(p.partition);
        let seen_end = p.log_end.as_ref().map_or(p.next, |(end, _)| p.next.max(*end));
        let marks = snapshot.partitions.get(&partition).filter(|marks| marks.log_end >= seen_end);
        match (marks, p.anchor) {
            _ if p.is_of_another_log => replaced.push(p.partition),
            (None, _) if snapshot.leaderless.contains(&partition) => {
                return Err(failed(SourceError::NoLeader { partitions: 1, failure: None }));
            }
            (None, _) => replaced.push(p.partition),
            (Some(marks), Some(anchor)) if anchor.offset.at() >= marks.log_start => {
                let anchors = anchors.clone();
                let number = p.partition;
                asked.spawn(async move { (number, anchor, anchors.message(partition, anchor.offset).await) });
            }
            // Nothing is left to compare, and the watermarks fit the position.
            (Some(_), _) => {}
        }
    }
    // Compaction may have removed the last stored message, so its absence is no evidence on a compacted topic.
    let loses = observer.is_compacted(&config.kafka).await.unwrap_or(true);
    for (partition, anchor, found) in asked.join_all().await {
        match found.map_err(failed)? {
            Found::Message(digest) if digest == anchor.digest => {}
            Found::Message(_) => replaced.push(partition),
            Found::NoMessage if !loses => replaced.push(partition),
            // Retention or compaction has deleted the message meanwhile.
            Found::NoMessage | Found::OutOfRange => {}
        }
    }
    Ok(replaced)
}

/// The evidence, for each partition, that its log is the one that was read.
fn as_it_was_read(topic: &Topic, snapshot: &TopicSnapshot, old: &[OldPartition]) -> String {
    let seen = |p: &OldPartition| {
        let (log_start, log_end) = match snapshot.partitions.get(&topic.partition(p.partition)) {
            Some(marks) => (marks.log_start, marks.log_end),
            None => (p.next, p.next),
        };
        let last = match p.anchor {
            Some(anchor) if anchor.offset.at() >= log_start => {
                format!("the last stored message is still at offset {}", anchor.offset)
            }
            Some(anchor) => format!("Kafka no longer has the last stored message, of offset {}", anchor.offset),
            None => "no message was stored of it".to_owned(),
        };
        format!(
            "partition {} was read to {}, its log [{log_start}, {log_end}) reaches as far, {last}",
            p.partition, p.next
        )
    };
    old.iter().map(seen).collect::<Vec<_>>().join("; ")
}

fn not_decided(error: DecisionError) -> Failure {
    match error {
        DecisionError::Store(error) => failed(error),
        DecisionError::NoPartition { .. } | DecisionError::NeverRead { .. } => Failure::usage(error),
        DecisionError::NotLost { .. }
        | DecisionError::SameGeneration { .. }
        | DecisionError::OtherKind { .. }
        | DecisionError::NotAccepted { .. }
        | DecisionError::NotReplaced { .. }
        | DecisionError::OtherGeneration { .. } => Failure::decide(error),
    }
}
