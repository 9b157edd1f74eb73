//! What only an operator may decide: that a range is lost, that a topic begins a new life. Each leaves a
//! row in `gapless.decisions`; nothing else passes a loss.

use tokio_postgres::types::Type;

use super::connect::Store;
use super::error::StoreError;
use super::session::{Param, Session};
use super::start::{ADVANCE, SKIP, SOURCE, known_source};
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
    #[error("topic {topic:?} is the one that was read so far (id {id}): there is no new life to begin")]
    SameLife { topic: String, id: String },
}

const POSITION: &str = "-- position_to_move
select next_offset from gapless.positions where source_id = $1 and partition_id = $2 for update";

const DECIDED: &str = "-- decided
insert into gapless.decisions (verb, subject, reason) values ($1, $2, $3)";

const NEXT_GENERATION: &str = "-- next_generation
insert into gapless.sources (topic, cluster_id, topic_id, generation)
select $1, $2, $3, max(generation) + 1 from gapless.sources where topic = $1
returning generation";

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
        let gap = [
            place[0].clone(),
            place[1].clone(),
            (&from as _, Type::INT8),
            (&to as _, Type::INT8),
            (&"lost" as _, Type::TEXT),
            (&proof as _, Type::TEXT),
        ];
        session.execute(SKIP, &gap).await?;
        session.write(ADVANCE, &[place[0].clone(), place[1].clone(), (&to as _, Type::INT8)], 1).await?;
        decided(&session, "accept-loss", &format!("{topic}[{partition}] {range}"), reason).await?;
        Ok(session.commit().await.map_err(|failure| failure.into_error())?)
    }

    /// Begins the next generation of a topic that was deleted and re-created; the next start reads it
    /// from its beginning. Rows of earlier generations are not touched. Returns the generation.
    pub async fn rebase(&self, topic: &str, found: &Life, reason: &str) -> Result<i32, DecisionError> {
        let mut session = self.session().await?;
        session.begin().await?;
        let rows = session.query(SOURCE, &[(&topic, Type::TEXT)]).await?;
        let (_, known) = known_source(rows.first().ok_or_else(|| DecisionError::NeverRead(topic.to_owned()))?);
        if known.differs(found).is_none() {
            let id = known.topic_id.unwrap_or_else(|| "not known".to_owned());
            return Err(DecisionError::SameLife { topic: topic.to_owned(), id });
        }
        let params =
            [(&topic as _, Type::TEXT), (&found.cluster_id as _, Type::TEXT), (&found.topic_id as _, Type::TEXT)];
        let rows = session.query(NEXT_GENERATION, &params).await?;
        let row = rows.first().ok_or(StoreError::Rows { statement: "next_generation", expected: 1, got: 0 })?;
        let generation: i32 = row.get(0);
        decided(&session, "rebase", &format!("{topic}: generation {generation}, {found:?}"), reason).await?;
        session.commit().await.map_err(|failure| failure.into_error())?;
        Ok(generation)
    }
}

/// Writes down what was decided, in the transaction that carries it out.
pub(super) async fn decided(session: &Session, verb: &str, subject: &str, reason: &str) -> Result<(), StoreError> {
    let params = [(&verb as _, Type::TEXT), (&subject as _, Type::TEXT), (&reason as _, Type::TEXT)];
    session.write(DECIDED, &params, 1).await
}
