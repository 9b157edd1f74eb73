//! What brings back what `gapless verify` found missing or altered: from Kafka where it still has the messages, and
//! what else where it has not.

use crate::kafka::SourceError;
use crate::ledger::error::LedgerError;
use crate::ledger::read::consistency::{Inspector, PartitionSnapshot};
use crate::ledger::read::contents::Fields;
use crate::ledger::read::inconsistency::Inconsistency;
use crate::ledger::start::StartError;
use crate::model::offset::{NextOffset, OffsetRange};
use crate::model::topic::TopicSnapshot;

/// What Kafka still has of a partition's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetainedRange {
    /// The life has ended: nothing.
    Nothing,
    From(NextOffset),
    /// It did not say.
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

    /// What was accounted for and Kafka no longer has.
    pub(super) fn unavailable_range(self, p: &PartitionSnapshot) -> Option<OffsetRange> {
        match self {
            Self::Nothing | Self::Unknown => OffsetRange::new(p.start, p.next),
            Self::From(log_start) => OffsetRange::new(p.start, log_start.min(p.next)),
        }
    }
}

/// Of a topic that is not the one that was read: how it is not, and the finished command that begins a new generation.
pub(super) async fn topic_identity_mismatch(
    inspector: &Inspector,
    topic: &str,
    p: &PartitionSnapshot,
    snapshot: &TopicSnapshot,
) -> Result<Option<String>, LedgerError> {
    let Some(difference) = p.identity.mismatch(&snapshot.identity) else { return Ok(None) };
    let unread = inspector.unread(topic).await?;
    Ok(Some(super::line(StartError::AnotherLife { topic: topic.to_owned(), difference, unread })))
}

/// What helps, and where nothing of ours does, what else.
pub(super) fn of_inconsistency(
    inconsistency: Inconsistency,
    p: &PartitionSnapshot,
    r: OffsetRange,
    topic: &str,
    reach: RetainedRange,
) -> String {
    let backup = "restore it from a backup of the database";
    let look = "a bug, or rows written by hand: look at";
    match inconsistency {
        Inconsistency::Overlap => return format!("{look} offset_gaps and kafka_events_received"),
        Inconsistency::OutcomeDiffers => return format!("{look} kafka_events_received, dead_letters and events"),
        Inconsistency::DanglingConflict => {
            return format!("its winner is gone, of the message named event_missing; else {backup}");
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
    from_kafka(p, r, reach, |r| {
        let replay = replay(topic, p, r);
        match inconsistency {
            // Nothing tells a lost outcome from a lost gap before the log is read.
            Inconsistency::Unaccounted => {
                format!(
                    "{replay}; what that leaves holds no message: gapless --offset {}:{} --again proves it anew",
                    p.partition,
                    r.from()
                )
            }
            _ => replay,
        }
    })
}

/// What helps where Kafka still has the messages, and that only a backup does where it has not.
pub(super) fn from_kafka(
    p: &PartitionSnapshot,
    r: OffsetRange,
    reach: RetainedRange,
    remedy: impl Fn(OffsetRange) -> String,
) -> String {
    let backup = "restore it from a backup of the database";
    let log_start = match reach {
        RetainedRange::Nothing => return format!("of a topic identity that has ended: {backup}"),
        RetainedRange::From(log_start) => log_start.max(r.from()),
        RetainedRange::Unknown => r.from(),
    };
    if r.from() < p.start || r.to() > p.next {
        return "it lies outside of what is accounted for: start gapless, which reads on, and verify again".to_owned();
    }
    let gone = OffsetRange::new(r.from(), log_start.min(r.to()));
    let gone = gone.map(|gone| format!("Kafka no longer has {gone}: {backup}"));
    let rest = OffsetRange::new(log_start, r.to()).map(remedy);
    gone.into_iter().chain(rest).collect::<Vec<_>>().join("; ")
}

pub(super) fn replay(topic: &str, p: &PartitionSnapshot, r: OffsetRange) -> String {
    format!("gapless replay --offsets {topic}:{}:{}-{}", p.partition, r.from(), r.to())
}

/// Rows are brought back, never changed: what is altered is deleted first. An event comes back under another id, and
/// with the status of the last message that is replayed: up to the position, so that later messages name it and set
/// that.
pub(super) fn of_altered(
    fields: &Fields,
    p: &PartitionSnapshot,
    r: OffsetRange,
    topic: &str,
    reach: RetainedRange,
) -> String {
    const TABLES: [(&str, &str); 4] = [
        ("events", "stored_events"),
        ("event_conflicts", "conflicting_events"),
        ("kafka_events_received", "outcomes"),
        ("dead_letters", "rejected_messages"),
    ];
    from_kafka(p, r, reach, |r| {
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
