//! Remedies for findings of `gapless verify`: a replay from Kafka if Kafka still has the messages, else a backup.

use crate::kafka::SourceError;
use crate::ledger::error::LedgerError;
use crate::ledger::read::consistency::{Inspector, PartitionSnapshot};
use crate::ledger::read::contents::Fields;
use crate::ledger::read::inconsistency::{Inconsistency, InconsistentRange};
use crate::ledger::start::StartError;
use crate::model::offset::{NextOffset, OffsetRange};
use crate::model::topic::{Topic, TopicSnapshot};

/// The offsets that Kafka still has of a partition's generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetainedRange {
    /// None: the generation has ended.
    Nothing,
    /// From the log start on.
    From(NextOffset),
    /// Kafka gave no answer.
    Unknown,
}

impl RetainedRange {
    pub(super) fn of(
        p: &PartitionSnapshot,
        newest: Option<i32>,
        snapshot: Result<&TopicSnapshot, &SourceError>,
    ) -> Self {
        match snapshot {
            _ if Some(p.generation) != newest => Self::Nothing,
            Ok(snapshot) if p.identity.mismatch(&snapshot.identity).is_some() => Self::Nothing,
            Ok(snapshot) => snapshot.partitions.get(&p.partition).map_or(Self::Unknown, |m| Self::From(m.log_start)),
            Err(_) => Self::Unknown,
        }
    }

    /// The accounted offsets that Kafka no longer has.
    pub(super) fn unavailable_range(self, p: &PartitionSnapshot) -> Option<OffsetRange> {
        match self {
            Self::Nothing | Self::Unknown => OffsetRange::new(p.start, p.next),
            Self::From(log_start) => OffsetRange::new(p.start, log_start.min(p.next)),
        }
    }
}

/// The difference and the finished command that begins a new generation, if the topic is not the one that was read.
pub(super) async fn topic_identity_mismatch(
    inspector: &Inspector,
    topic: &Topic,
    p: &PartitionSnapshot,
    snapshot: &TopicSnapshot,
) -> Result<Option<String>, LedgerError> {
    let Some(difference) = p.identity.mismatch(&snapshot.identity) else { return Ok(None) };
    let unread = inspector.unread(topic).await?;
    Ok(Some(super::line(StartError::OtherTopicIdentity { topic: topic.clone(), difference, unread })))
}

/// The remedy for an inconsistency: a command of gapless if one helps, else a hint.
pub(super) fn of_inconsistency(
    found: &InconsistentRange,
    p: &PartitionSnapshot,
    topic: &str,
    retained: RetainedRange,
) -> String {
    let (inconsistency, r) = (found.inconsistency, found.range);
    let backup = "restore it from a backup of the database";
    let examine = "a bug, or rows written by hand: examine";
    match inconsistency {
        Inconsistency::Overlap => return format!("{examine} offset_gaps and kafka_events_received"),
        // The log shows which events the message has, and both are written again.
        Inconsistency::OutcomeDiffers if found.events.is_some() => {
            let both = Fields::of_relations(&["events", "kafka_events_received"]);
            return of_altered(&both, p, r, topic, retained);
        }
        Inconsistency::OutcomeDiffers => return format!("{examine} kafka_events_received, dead_letters and events"),
        Inconsistency::DanglingConflict => {
            return format!(
                "the event that it conflicts with is missing: follow the remedy of the finding event_missing; else {backup}"
            );
        }
        Inconsistency::BelowStart => {
            return format!(
                "start_offset was raised by hand; in psql: update gapless.positions set start_offset = least(start_offset, {}) \
                 where id = {}; then gapless verify",
                r.from(),
                p.position_id
            );
        }
        Inconsistency::Unaccounted
        | Inconsistency::EventMissing
        | Inconsistency::DanglingEvent
        | Inconsistency::OutcomeMissing
        | Inconsistency::DeadLetterMissing => {}
    }
    from_kafka(p, r, retained, |r| {
        let replay = replay(topic, p, r);
        match inconsistency {
            // Only the log shows whether an outcome or a gap is lost.
            Inconsistency::Unaccounted => {
                format!(
                    "{replay}; the offsets that are still unaccounted then hold no message: gapless --offset {}:{} --again proves that again",
                    p.partition.partition,
                    r.from()
                )
            }
            _ => replay,
        }
    })
}

/// `remedy` for the part of the range that Kafka still has, and a backup for the rest.
pub(super) fn from_kafka(
    p: &PartitionSnapshot,
    r: OffsetRange,
    retained: RetainedRange,
    remedy: impl Fn(OffsetRange) -> String,
) -> String {
    let backup = "restore it from a backup of the database";
    let log_start = match retained {
        RetainedRange::Nothing => return format!("it belongs to a generation that has ended: {backup}"),
        RetainedRange::From(log_start) => log_start.max(r.from()),
        RetainedRange::Unknown => r.from(),
    };
    if r.from() < p.start || r.to() > p.next {
        return "the range is not accounted for yet: start gapless, which continues to read, then verify again"
            .to_owned();
    }
    let gone = OffsetRange::new(r.from(), log_start.min(r.to()));
    let gone = gone.map(|gone| format!("Kafka no longer has {gone}: {backup}"));
    let rest = OffsetRange::new(log_start, r.to()).map(remedy);
    gone.into_iter().chain(rest).collect::<Vec<_>>().join("; ")
}

pub(super) fn replay(topic: &str, p: &PartitionSnapshot, r: OffsetRange) -> String {
    format!("gapless replay --offsets {topic}:{}:{}-{}", p.partition.partition, r.from(), r.to())
}

/// The remedy for altered rows: they are deleted and replayed, because a replay adds rows and never changes one. An
/// event gets another id, and the status of the last message that is replayed. So the replay of events goes up to the
/// position: later messages then refer to the new id and set the status.
pub(super) fn of_altered(
    fields: &Fields,
    p: &PartitionSnapshot,
    r: OffsetRange,
    topic: &str,
    retained: RetainedRange,
) -> String {
    const TABLES: [(&str, &str); 5] = [
        // Columns that no view shows.
        ("outcomes", "outcomes"),
        ("events", "stored_events"),
        ("event_conflicts", "conflicting_events"),
        ("kafka_events_received", "outcomes"),
        ("dead_letters", "rejected_messages"),
    ];
    from_kafka(p, r, retained, |r| {
        let tables = TABLES.iter().filter(|(relation, _)| fields.touches(relation)).map(|(_, table)| {
            let (id, from, to) = (p.position_id, r.from(), r.to());
            format!(
                r#"delete from gapless.{table} where position_id = {id} and "offset" >= {from} and "offset" < {to}"#
            )
        });
        let delete = tables.collect::<Vec<_>>().join("; ");
        let is_occurrence = fields.touches("events") || fields.touches("event_conflicts");
        let end = if is_occurrence { p.next } else { r.to() };
        let range = OffsetRange::new(r.from(), end).unwrap_or(r);
        format!("find out who wrote it; in psql: {delete}; then {}", replay(topic, p, range))
    })
}
