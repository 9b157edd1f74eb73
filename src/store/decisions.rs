//! What only an operator may decide: that a range is lost. Each verb that changes something leaves a row in
//! `gapless.decisions`.

use serde_json::{Value, json};
use tokio_postgres::types::Type;

use super::connect::Store;
use super::decided_gaps::{DecidedGap, DecidedKind, record_gap};
use super::error::StoreError;
use super::session::{Param, Session};
use super::start::{ADVANCE, SOURCE, known_source};
use crate::generation::NewGeneration;
use crate::position::{NextOffset, OffsetRange};
use crate::source::observer::{Difference, Life};

/// Why a decision was not taken.
#[derive(Debug, thiserror::Error)]
pub enum DecisionError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the ledger knows no partition {partition} of topic {topic:?}")]
    NoPartition { topic: String, partition: i32 },
    /// Only what is to be read next can be given up: nothing before is missing, nothing behind is known.
    #[error("partition {partition} stands at {position}: a loss begins there, not at {from}")]
    NotAtPosition { partition: i32, position: NextOffset, from: NextOffset },
    /// What another log has lost says nothing about the one that was read.
    #[error("{0}: this is not the log whose offsets the ledger knows")]
    OtherLife(Difference),
    #[error("the ledger has not read topic {0:?} yet: there is nothing to begin anew")]
    NeverRead(String),
    #[error(
        "topic {topic:?} is the one that was read so far (id {id}); if the log of a partition was truncated or replaced, say so: `{}`",
        NewGeneration::LogReplaced.command(topic, &[])
    )]
    SameLife { topic: String, id: String },
    /// Another kind of new generation than Kafka shows.
    #[error("{difference}; if that is so: `{command}`")]
    OtherKind { difference: Difference, command: String },
    /// What was never read is given up only by the operator's word, which names it exactly.
    #[error("{found}; to begin a new generation: `{command}`")]
    NotAccepted { found: String, command: String },
}

const POSITION: &str = "-- position_to_move
select next_offset from gapless.positions where source_id = $1 and partition_id = $2 for update";

const DECIDED: &str = "-- decided
insert into gapless.decisions (verb, subject, reason, db_role, os_user, arguments, rows_changed, program_version)
values ($1, $2, $3, session_user::text, $4, $5::text::jsonb, $6, $7)";

impl Store {
    /// Passes a range that Kafka has lost: a gap of kind `lost`, and the position behind it. A running
    /// daemon reads on from there by itself.
    pub async fn accept_loss(
        &self,
        topic: &str,
        found: &Life,
        partition: i32,
        range: OffsetRange,
        reason: &str,
    ) -> Result<(), DecisionError> {
        let no_partition = || DecisionError::NoPartition { topic: topic.to_owned(), partition };
        let mut session = self.session().await?;
        session.begin().await?;
        let source = session.query(SOURCE, &[(&topic, Type::TEXT)]).await?;
        let (source_id, known) = known_source(source.first().ok_or_else(no_partition)?);
        if let Some(difference) = known.differs(found) {
            return Err(DecisionError::OtherLife(difference));
        }
        let place: [Param<'_>; 2] = [(&source_id, Type::INT4), (&partition, Type::INT4)];
        let rows = session.query(POSITION, &place).await?;
        let row = rows.first().ok_or_else(no_partition)?;
        let position = NextOffset::new(row.get(0)).ok_or_else(no_partition)?;
        if position != range.from() {
            return Err(DecisionError::NotAtPosition { partition, position, from: range.from() });
        }
        let (from, to) = (range.from().get(), range.to().get());
        let proof = format!("lost, accepted by the operator: {reason}");
        let gap = DecidedGap { source_id, partition, range, kind: DecidedKind::Lost, proof: &proof };
        let gaps = record_gap(&session, &gap).await?;
        session.write(ADVANCE, &[place[0].clone(), place[1].clone(), (&to as _, Type::INT8)], 1).await?;
        let subject = format!("{topic}[{partition}] {range}");
        let arguments = json!({ "topic": topic, "partition": partition, "from": from, "to": to });
        // The position, and the gap if there is anything that has neither outcome nor gap.
        let rows_changed = 1 + gaps;
        let decision =
            Decision { verb: "accept-loss", subject: &subject, reason: Some(reason), arguments, rows_changed };
        decision.record(&session).await?;
        Ok(session.commit().await.map_err(|failure| failure.into_error())?)
    }
}

/// What an operator decided, as `gapless.decisions` keeps it.
pub(super) struct Decision<'a> {
    pub(super) verb: &'static str,
    pub(super) subject: &'a str,
    /// `None` where the verb asks for none and none was given.
    pub(super) reason: Option<&'a str>,
    /// What the verb was told.
    pub(super) arguments: Value,
    pub(super) rows_changed: u64,
}

impl Decision<'_> {
    /// Writes it down, in the transaction that carries it out.
    pub(super) async fn record(&self, session: &Session) -> Result<(), StoreError> {
        let (os_user, arguments) = (whoami::username().ok(), self.arguments.to_string());
        let rows_changed = i64::try_from(self.rows_changed).unwrap_or(i64::MAX);
        let params = [
            (&self.verb as _, Type::TEXT),
            (&self.subject as _, Type::TEXT),
            (&self.reason as _, Type::TEXT),
            (&os_user as _, Type::TEXT),
            (&arguments as _, Type::TEXT),
            (&rows_changed as _, Type::INT8),
            (&env!("CARGO_PKG_VERSION") as _, Type::TEXT),
        ];
        session.write(DECIDED, &params, 1).await
    }
}
