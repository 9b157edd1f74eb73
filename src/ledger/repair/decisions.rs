//! Decisions that only an operator may take: that a range is lost.

use crate::ledger::error::LedgerError;
use serde_json::json;
use tokio_postgres::types::Type;

use crate::ledger::connect::LedgerStore;
use crate::ledger::decision::Decision;
use crate::ledger::read::known::LedgerOverview;
use crate::ledger::read::old_generation;
use crate::ledger::source::{SOURCE, known_source};
use crate::ledger::start::ADVANCE;
use crate::ledger::write::decided_gaps::{DecidedGap, DecidedKind, record_gap};
use crate::model::generation::NewGeneration;
use crate::model::offset::{NextOffset, OffsetRange, Watermarks};
use crate::model::partition_state::{Halt, HaltReason};
use crate::model::topic::{IdentityMismatch, TopicIdentity, TopicPartition};
use crate::postgres::error::PgError;
use crate::postgres::session::{Param, Session};

/// Why a decision was not taken.
#[derive(Debug, thiserror::Error)]
pub enum DecisionError {
    #[error(transparent)]
    Store(#[from] LedgerError),
    #[error("the ledger knows no partition {partition} of topic {topic:?}; {known}")]
    NoPartition { topic: String, partition: i32, known: LedgerOverview },
    /// Only a range that begins at the position can be given up: no offset before it is missing, and nothing is known
    /// about a range after it.
    #[error(
        "partition {partition} stands at {position}, its log begins at {} and ends at {}: {range} is not the lost range; {instead}",
        .log.log_start,
        .log.log_end
    )]
    NotLost { range: OffsetRange, partition: i32, position: NextOffset, log: Watermarks, instead: String },
    /// A loss in another log says nothing about the log that was read.
    #[error("{difference}: this is not the log whose offsets the ledger knows; if that is so: `{command}`")]
    OtherGeneration { difference: IdentityMismatch, command: String },
    #[error("the ledger has not read topic {topic:?} yet: there is no generation to end; {known}")]
    NeverRead { topic: String, known: LedgerOverview },
    #[error(
        "topic {topic:?} is the one that was read so far (id {id}); if the log of a partition was truncated or replaced, say so: `{}`",
        NewGeneration::LogReplaced.command(topic, &[])
    )]
    SameGeneration { topic: String, id: String },
    /// The operator named another kind of new generation than Kafka shows.
    #[error("{difference}; if that is so: `{command}`")]
    OtherKind { difference: IdentityMismatch, command: String },
    /// Kafka and the ledger agree about the log; `seen` lists the observations.
    #[error(
        "nothing shows that the log of topic {topic:?} was replaced, so no generation begins: {seen}; `gapless status` names \
         the remedy of a partition that is halted, `gapless --offset earliest` reads all messages in Kafka again"
    )]
    NotReplaced { topic: String, seen: String },
    /// Unread ranges are given up only when the operator names them exactly.
    #[error("{found}; to begin a new generation: `{command}`")]
    NotAccepted { found: String, command: String },
}

impl From<PgError> for DecisionError {
    fn from(error: PgError) -> Self {
        Self::Store(error.into())
    }
}

/// A range that an operator gives up.
#[derive(Debug, Clone, Copy)]
pub struct Loss<'a> {
    pub partition: &'a TopicPartition,
    pub range: OffsetRange,
    /// The offsets that Kafka has of the partition.
    pub log: Watermarks,
    pub reason: &'a str,
}

/// The command that would be accepted. Where nothing is lost, the command that reads on.
fn finished_command(loss: &Loss<'_>, position: NextOffset) -> String {
    let Loss { partition, range, log, .. } = *loss;
    match OffsetRange::new(position, log.log_start) {
        Some(range) => Halt::new(HaltReason::Expired, Some(range), "").remedy(partition),
        None if range.to() > position && range.to() <= log.log_end => format!(
            "nothing that is to be read is lost, and a start reads on from {position}; to skip messages that Kafka has: \
             `gapless --offset {}:{} --allow-skip`",
            partition.partition,
            range.to()
        ),
        None => format!("nothing that is to be read is lost: `gapless --from-db` reads on from {position}"),
    }
}

const POSITION: &str = "-- position_to_move
select next_offset from gapless.positions where source_id = $1 and partition_id = $2 for update";

impl LedgerStore {
    /// Accepts that Kafka has lost a range: records a gap of kind `lost` and moves the position to its end. A running
    /// daemon reads on from there by itself.
    pub async fn accept_loss(&self, found: &TopicIdentity, loss: &Loss<'_>) -> Result<(), DecisionError> {
        let Loss { partition: lost_of, range, log, reason } = *loss;
        let (topic, partition) = (lost_of.topic.as_str(), lost_of.partition);
        let mut session = self.session().await?;
        session.begin().await?;
        let source = session.query(SOURCE, &[(&topic, Type::TEXT)]).await?;
        let Some((source_id, identity)) = source.first().map(known_source) else {
            return Err(no_partition(&session, topic, partition).await?);
        };
        if let Some(difference) = identity.mismatch(found) {
            let kind = difference.generation_kind();
            let command = kind.command(topic, &old_generation::unread(&session, source_id).await?);
            return Err(DecisionError::OtherGeneration { difference, command });
        }
        let key: [Param<'_>; 2] = [(&source_id, Type::INT4), (&partition, Type::INT4)];
        let rows = session.query(POSITION, &key).await?;
        let Some(position) = rows.first().and_then(|row| NextOffset::new(row.get(0))) else {
            return Err(no_partition(&session, topic, partition).await?);
        };
        if position != range.from() || range.to() > log.log_start {
            let instead = finished_command(loss, position);
            return Err(DecisionError::NotLost { range, partition, position, log, instead });
        }
        let (from, to) = (range.from().get(), range.to().get());
        let proof = format!("lost, accepted by the operator: {reason}");
        let gap = DecidedGap { source_id, partition, range, kind: DecidedKind::Lost, proof: &proof };
        let gaps = record_gap(&session, &gap).await?;
        session.write(ADVANCE, &[key[0].clone(), key[1].clone(), (&to as _, Type::INT8)], 1).await?;
        let subject = format!("{lost_of} {range}");
        let arguments = json!({ "topic": topic, "partition": partition, "from": from, "to": to });
        // The position, and a gap unless every offset of the range already has an outcome or a gap.
        let rows_changed = 1 + gaps;
        let decision =
            Decision { verb: "accept-loss", subject: &subject, reason: Some(reason), arguments, rows_changed };
        decision.record(&session).await?;
        Ok(session.commit().await.map_err(|failure| failure.into_error())?)
    }
}

async fn no_partition(session: &Session, topic: &str, partition: i32) -> Result<DecisionError, LedgerError> {
    let known = LedgerOverview::read(session).await?;
    Ok(DecisionError::NoPartition { topic: topic.to_owned(), partition, known })
}
