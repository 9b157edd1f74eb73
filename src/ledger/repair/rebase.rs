//! `gapless rebase`: a new generation of a topic begins. The unread ranges of the old generation are named, given up
//! only when the operator accepts them, and recorded as `lost` in the old generation. Its other rows do not change.

use crate::ledger::error::LedgerError;
use serde_json::json;
use tokio_postgres::types::Type;

use super::decisions::DecisionError;
use crate::ledger::connect::LedgerStore;
use crate::ledger::decision::Decision;
use crate::ledger::read::known::LedgerOverview;
use crate::ledger::read::old_generation::{HOLD_OLD_PARTITIONS, OLD_PARTITIONS, OldPartition, old_partitions};
use crate::ledger::source::{SOURCE, known_source};
use crate::ledger::start::ADVANCE;
use crate::ledger::write::decided_gaps::{DecidedGap, DecidedKind, record_gap};
use crate::model::generation::{NewGeneration, Unread};
use crate::model::topic::{IdentityMismatch, TopicIdentity};
use crate::postgres::session::{Param, Session};

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

const NEXT_GENERATION: &str = "-- next_generation
insert into gapless.sources (topic, cluster_id, topic_id, generation)
select $1, $2, $3, max(generation) + 1 from gapless.sources where topic = $1
returning generation";

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

async fn newest(session: &Session, topic: &str) -> Result<(i32, TopicIdentity), DecisionError> {
    let rows = session.query(SOURCE, &[(&topic, Type::TEXT)]).await?;
    match rows.first().map(known_source) {
        Some(newest) => Ok(newest),
        None => Err(DecisionError::NeverRead { topic: topic.to_owned(), known: LedgerOverview::read(session).await? }),
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
