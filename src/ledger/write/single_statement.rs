//! Writes a small batch that only inserts new events and their outcomes: the whole batch in one statement, which is a
//! transaction of its own. One round trip instead of six shortens the latency while there is no backlog.
//!
//! A batch with any other effect (dead letters, gaps, conflicts, a changed status, messages that have an outcome
//! already) or with an existing event is written by several statements.

use crate::model::batch::Slice;
use tokio_postgres::types::Type;

use super::connection::WriterConnection;
use super::effects::{self, Effects, EventAt, ExistingEvents};
use super::event_paths::{classify_failure, inserted_event};
use super::writer::{CommitError, Failed, FallbackReason};
use super::{event_rows, outcome_rows, position_rows};
use crate::ledger::error::LedgerError;
use crate::model::decoded_batch::Message;
use crate::model::event::{Decoded, Outcome};
use crate::model::write_report::WriteStrategy;
use crate::postgres::session::{CommitFailure, Param};

const WRITE_SMALL_BATCH: &str = "-- write_few
select gapless.write_few($1, $2, $3, $4, $5, $6)";

const WRITE_SMALL_BATCH_OF_EVENTS: &str = "-- write_small_batch
select gapless.write_small_batch($1, $2, $3, $4, $5, $6)";

/// SQLSTATE of the function: a position does not have its expected offset or fence.
const POSITION_CONFLICT: &str = "GL001";
/// SQLSTATE of the function: the role's default transaction settings do not meet the batch's requirements.
const INCOMPATIBLE_SETTINGS: &str = "GL003";

/// A small batch with the ids of its events and its effects, ready to be sent.
pub(crate) struct SmallBatch {
    candidates: Vec<EventAt>,
    ids: Vec<i64>,
    pub(crate) effects: Effects,
}

/// Allocates ids for the events and decides the effects. Returns `None` if the batch has any effect besides new events
/// and their outcomes.
pub(crate) async fn plan(
    connection: &mut WriterConnection,
    slices: &[Slice],
    messages: &[Message<'_>],
    skip: &[bool],
    candidates: Vec<EventAt>,
) -> Result<Option<SmallBatch>, LedgerError> {
    let rejects = messages.iter().any(|m| matches!(m.decoded, Decoded::Rejected(_)));
    if rejects || slices.iter().any(|slice| slice.reread || slice.gap.is_some()) {
        return Ok(None);
    }
    let ids = connection.allocate_ids(candidates.len()).await?;
    let mut known = ExistingEvents::default();
    candidates.iter().zip(&ids).for_each(|(at, id)| inserted_event(messages, *at, *id, &mut known));
    let effects = effects::decide(messages, skip, known);
    let plain = effects.conflicts.is_empty()
        && effects.event_status.is_empty()
        && effects
            .outcomes
            .iter()
            .all(|t| matches!(t.outcome, Outcome::Stored | Outcome::Processed | Outcome::Ignored));
    Ok(plain.then_some(SmallBatch { candidates, ids, effects }))
}

/// Writes and commits the batch. All preceding batches must be committed.
pub(crate) async fn write_small_batch(
    connection: &mut WriterConnection,
    slices: &[Slice],
    messages: &[Message<'_>],
    small: &SmallBatch,
    fence: i64,
) -> Result<(), CommitFailure> {
    let events = event_rows::composites(messages, &small.candidates, &small.ids);
    let outcomes = outcome_rows::outcomes(messages, &small.effects);
    let moves = position_rows::moves(slices);
    let [statement, lock, _] = connection.session.limits_ms();
    let params: [Param<'_>; 6] = [
        events.param(),
        outcomes.param(),
        moves.param(),
        (&fence, Type::INT8),
        (&statement, Type::INT4),
        (&lock, Type::INT4),
    ];
    let write = if small.effects.record_event_numbers() { WRITE_SMALL_BATCH_OF_EVENTS } else { WRITE_SMALL_BATCH };
    connection.session.execute_autocommit(write, &params).await
}

/// The consequence of an error of the statement: nothing of the batch was committed.
pub(crate) fn refused(connection: &mut WriterConnection, error: LedgerError) -> Failed {
    match error.sqlstate() {
        Some(state) if state.code() == POSITION_CONFLICT => CommitError::Stale.into(),
        Some(state) if state.code() == INCOMPATIBLE_SETTINGS => {
            Failed::FallBack(WriteStrategy::Merge, FallbackReason::Closed(error))
        }
        _ => classify_failure(connection, WriteStrategy::SingleStatement, error),
    }
}
