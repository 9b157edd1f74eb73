//! `gapless rebase`: a new generation of a topic begins. The unread ranges of the old generation are named, given up
//! only when the operator accepts them, and recorded as `lost` in the old generation. Its other rows do not change.

use crate::ledger::error::LedgerError;
use serde_json::json;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::decisions::{Decision, DecisionError};
use crate::ledger::connect::{LedgerReader, LedgerStore};
use crate::ledger::read::consistency::Inspector;
use crate::ledger::read::known::LedgerOverview;
use crate::ledger::start::{ADVANCE, SOURCE, known_source};
use crate::ledger::write::decided_gaps::{DecidedGap, DecidedKind, record_gap};
use crate::model::generation::{NewGeneration, Unread};
use crate::model::offset::{NextOffset, OffsetRange};
use crate::model::record::{Anchor, Digest};
use crate::model::topic::{IdentityMismatch, TopicIdentity};
use crate::postgres::session::{Param, Session};

/// A partition of the generation that ends.
#[derive(Debug, Clone)]
pub struct OldPartition {
    pub partition: i32,
    /// The position: the next offset that would have been read.
    pub next: NextOffset,
    /// The highest observed log end, and when it was observed; `None` in a ledger of an older version.
    pub log_end: Option<(NextOffset, String)>,
    /// The range that the log had and that was not read.
    pub unread: Option<OffsetRange>,
    /// The highest end of the log that is known from any source.
    end: NextOffset,
    pub anchor: Option<Anchor>,
    /// The daemon halted the partition because its log is not the log that was read.
    pub is_of_another_log: bool,
}

impl OldPartition {
    fn unread(&self) -> Option<Unread> {
        Some(Unread { partition: self.partition, range: self.unread? })
    }
}

/// A new generation that an operator requested.
#[derive(Debug)]
pub struct Rebase<'a> {
    pub topic: &'a str,
    pub kind: NewGeneration,
    /// The topic as Kafka shows it.
    pub found: &'a TopicIdentity,
    /// Partitions whose log is gone. Of the other partitions, the new generation reads the unread messages.
    pub gone: &'a [i32],
    /// The unread ranges that may be given up.
    pub accepted: &'a [Unread],
    pub reason: &'a str,
}

/// A generation that began.
#[derive(Debug)]
pub struct Rebased {
    pub generation: i32,
    pub old: Vec<OldPartition>,
}

macro_rules! old_partitions {
    ($name:literal, $lock:literal) => {
        concat!(
            "-- ",
            $name,
            "
select p.partition_id, p.next_offset, l.log_end, to_char(l.seen_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
       lower(u.ranges), upper(u.ranges), k.known_to, p.anchor_offset, p.anchor_digest, p.leader_epoch,
       coalesce(r.state = 'halted' and r.reason = any($2), false)
from gapless.positions p
left join gapless.log_ends l on l.position_id = p.id
left join gapless.recorded_states r on r.position_id = p.id
cross join lateral (select greatest(p.next_offset, p.announced_to, coalesce(l.log_end, 0)) as known_to) as k
cross join lateral (select int8multirange(int8range(p.next_offset, k.known_to))
    - coalesce((select range_agg(int8range(o.\"offset\", o.\"offset\" + 1)) from gapless.outcomes o
                 where o.position_id = p.id and o.\"offset\" >= p.next_offset and o.\"offset\" < k.known_to), '{}')
    - coalesce((select range_agg(g.span) from (select unnest(x.ranges) as span from gapless.gaps x
                 where x.position_id = p.id and x.to_offset > p.next_offset and x.from_offset < k.known_to) as g), '{}')
    as ranges) as u
where p.source_id = $1
order by p.id
",
            $lock
        )
    };
}

const OLD_PARTITIONS: &str = old_partitions!("old_partitions", "");
/// The row locks keep a running daemon's batch from moving a position before this transaction ends.
const HOLD_OLD_PARTITIONS: &str = old_partitions!("hold_old_partitions", "for no key update of p");

const NEXT_GENERATION: &str = "-- next_generation
insert into gapless.sources (topic, cluster_id, topic_id, generation)
select $1, $2, $3, max(generation) + 1 from gapless.sources where topic = $1
returning generation";

/// Halt reasons that mean "the log was replaced", as the daemon records them.
const LOG_REPLACED_REASONS: [&str; 3] = ["beyond_log_end", "differs", "replaced"];

impl LedgerStore {
    /// The partitions of the generation that would end. An error if Kafka does not show the kind of change that the
    /// operator named.
    pub async fn old_generation(
        &self,
        topic: &str,
        kind: NewGeneration,
        found: &TopicIdentity,
    ) -> Result<Vec<OldPartition>, DecisionError> {
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        let (source_id, known) = newest(&session, topic).await?;
        let old = old_partitions(&session, OLD_PARTITIONS, source_id).await?;
        session.rollback().await?;
        check_kind(topic, kind, &known, known.mismatch(found), &old)?;
        Ok(old)
    }

    /// Begins the next generation. A running daemon, or the next start, reads it from its beginning.
    pub async fn rebase(&self, asked: &Rebase<'_>) -> Result<Rebased, DecisionError> {
        let topic = asked.topic;
        let mut session = self.session().await?;
        session.begin().await?;
        let (source_id, known) = newest(&session, topic).await?;
        let mut old = old_partitions(&session, HOLD_OLD_PARTITIONS, source_id).await?;
        check_kind(topic, asked.kind, &known, known.mismatch(asked.found), &old)?;
        old.retain(|p| asked.gone.contains(&p.partition));
        let unread: Vec<Unread> = old.iter().filter_map(OldPartition::unread).collect();
        let is_accepted = unread.iter().all(|u| asked.accepted.contains(u));
        if !is_accepted || unread.len() != asked.accepted.len() {
            return Err(not_accepted(asked, &old, &unread));
        }
        for p in old.iter().filter(|p| p.end > p.next) {
            give_up(&session, source_id, p, asked.reason).await?;
        }
        let params = [
            (&topic as _, Type::TEXT),
            (&asked.found.cluster_id as _, Type::TEXT),
            (&asked.found.topic_id as _, Type::TEXT),
        ];
        let generation: i32 = session.one(NEXT_GENERATION, &params).await?.get(0);
        let unknown: Vec<i32> = old.iter().filter(|p| p.log_end.is_none()).map(|p| p.partition).collect();
        let arguments = json!({
            "flag": asked.kind.flag(),
            "accept_unread": unread.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "end_never_seen": unknown,
            "generation": generation,
            "cluster_id": asked.found.cluster_id,
            "topic_id": asked.found.topic_id,
        });
        let subject = format!("{topic}: generation {generation}");
        let rows_changed = 1 + unread.len() as u64;
        let decision =
            Decision { verb: "rebase", subject: &subject, reason: Some(asked.reason), arguments, rows_changed };
        decision.record(&session).await?;
        session.commit().await.map_err(|failure| failure.into_error())?;
        Ok(Rebased { generation, old })
    }
}

impl LedgerReader {
    /// The unread ranges of a topic's newest generation, as far as they are known.
    pub async fn unread(&self, topic: &str) -> Result<Vec<Unread>, LedgerError> {
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        let unread = unread_of(&session, topic).await?;
        session.rollback().await?;
        Ok(unread)
    }
}

impl Inspector {
    /// The unread ranges of a topic's newest generation, as far as they are known.
    pub async fn unread(&self, topic: &str) -> Result<Vec<Unread>, LedgerError> {
        unread_of(self.session(), topic).await
    }
}

async fn unread_of(session: &Session, topic: &str) -> Result<Vec<Unread>, LedgerError> {
    let rows = session.query(SOURCE, &[(&topic, Type::TEXT)]).await?;
    match rows.first().map(known_source) {
        Some((source_id, _)) => unread(session, source_id).await,
        None => Ok(Vec::new()),
    }
}

/// The unread ranges of a generation, as far as they are known.
pub(crate) async fn unread(session: &Session, source_id: i32) -> Result<Vec<Unread>, LedgerError> {
    let old = old_partitions(session, OLD_PARTITIONS, source_id).await?;
    Ok(old.iter().filter_map(OldPartition::unread).collect())
}

async fn newest(session: &Session, topic: &str) -> Result<(i32, TopicIdentity), DecisionError> {
    let rows = session.query(SOURCE, &[(&topic, Type::TEXT)]).await?;
    match rows.first().map(known_source) {
        Some(newest) => Ok(newest),
        None => Err(DecisionError::NeverRead { topic: topic.to_owned(), known: LedgerOverview::read(session).await? }),
    }
}

async fn old_partitions(
    session: &Session,
    sql: &'static str,
    source_id: i32,
) -> Result<Vec<OldPartition>, LedgerError> {
    let params: [Param<'_>; 2] = [(&source_id, Type::INT4), (&LOG_REPLACED_REASONS.as_slice(), Type::TEXT_ARRAY)];
    Ok(session.query(sql, &params).await?.iter().map(old_partition).collect())
}

fn old_partition(row: &Row) -> OldPartition {
    let offset = |column| row.get::<_, Option<i64>>(column).and_then(NextOffset::new);
    let next = offset(1).expect("the table's checks refuse a negative offset");
    let anchor = || {
        let digest: Digest = row.get::<_, Option<_>>(8)?;
        Some(Anchor {
            offset: crate::model::offset::Offset::new(row.get::<_, Option<i64>>(7)?)?,
            digest,
            leader_epoch: row.get(9),
        })
    };
    OldPartition {
        partition: row.get(0),
        next,
        log_end: offset(2).zip(row.get(3)),
        unread: offset(4).zip(offset(5)).and_then(|(from, to)| OffsetRange::new(from, to)),
        end: offset(6).unwrap_or(next),
        anchor: anchor(),
        is_of_another_log: row.get(10),
    }
}

/// An error if Kafka does not show the kind of change that the operator named.
fn check_kind(
    topic: &str,
    asked: NewGeneration,
    known: &TopicIdentity,
    difference: Option<IdentityMismatch>,
    old: &[OldPartition],
) -> Result<(), DecisionError> {
    let topic = topic.to_owned();
    let needed = match (&difference, asked) {
        (None, NewGeneration::Recreated | NewGeneration::ClusterChanged) => {
            let id = known.topic_id.clone().unwrap_or_else(|| "not known".to_owned());
            return Err(DecisionError::SameGeneration { topic, id });
        }
        (None, NewGeneration::LogReplaced) => NewGeneration::LogReplaced,
        (Some(difference), _) => difference.generation_kind(),
    };
    match difference {
        Some(difference) if needed != asked => {
            let unread: Vec<Unread> = old.iter().filter_map(OldPartition::unread).collect();
            Err(DecisionError::OtherKind { difference, command: needed.command(&topic, &unread) })
        }
        _ => Ok(()),
    }
}

fn not_accepted(asked: &Rebase<'_>, old: &[OldPartition], unread: &[Unread]) -> DecisionError {
    let named = old.iter().filter_map(|p| {
        let end = match &p.log_end {
            Some((end, at)) => format!("its log ended at {end} when it was last seen ({at})"),
            None => "the end of its log was never noted".to_owned(),
        };
        Some(format!("partition {} was read to {}, {end}: {} was never read", p.partition, p.next, p.unread?))
    });
    let found = match named.collect::<Vec<_>>() {
        named if named.is_empty() => "every partition was read to the end that was last seen of its log".to_owned(),
        named => named.join("; "),
    };
    DecisionError::NotAccepted { found, command: asked.kind.command(asked.topic, unread) }
}

/// Ends the old generation of a partition at the highest known log end, and records its unread range as lost.
async fn give_up(session: &Session, source_id: i32, p: &OldPartition, reason: &str) -> Result<(), LedgerError> {
    let key: [Param<'_>; 2] = [(&source_id, Type::INT4), (&p.partition, Type::INT4)];
    let end = p.end.get();
    if let Some(range) = p.unread {
        let proof = format!("lost with its log, accepted by the operator: {reason}");
        let (partition, kind) = (p.partition, DecidedKind::Lost);
        record_gap(session, &DecidedGap { source_id, partition, range, kind, proof: &proof }).await?;
    }
    Ok(session.write(ADVANCE, &[key[0].clone(), key[1].clone(), (&end, Type::INT8)], 1).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_generation_begins_only_by_the_flag_that_names_the_change_in_kafka() {
        use NewGeneration::{ClusterChanged, LogReplaced, Recreated};
        let known = TopicIdentity { cluster_id: Some("c".into()), topic_id: Some("one".into()) };
        let check = |asked, difference| check_kind("events", asked, &known, difference, &[]).map_err(|e| e.to_string());
        let topic = || Some(IdentityMismatch::Topic { known: "one".into(), found: "two".into() });
        let cluster = || Some(IdentityMismatch::Cluster { known: "c".into(), found: "d".into() });
        for (asked, difference) in [(LogReplaced, None), (Recreated, topic()), (ClusterChanged, cluster())] {
            assert_eq!(check(asked, difference), Ok(()));
        }
        assert!(check(Recreated, None).is_err_and(|e| e.contains("--log-replaced")));
        assert!(check(ClusterChanged, None).is_err_and(|e| e.contains("--log-replaced")));
        assert!(check(Recreated, cluster()).is_err_and(|e| e.contains("gapless rebase events --cluster-changed")));
        assert!(check(LogReplaced, cluster()).is_err_and(|e| e.contains("--cluster-changed")));
        assert!(check(LogReplaced, topic()).is_err_and(|e| e.contains("gapless rebase events --reason")));
    }
}
