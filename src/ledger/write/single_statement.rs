//! A few messages that bring new events and nothing else: the whole batch in one statement, which is a transaction
//! of its own. One round trip instead of six is what latency is made of while there is no backlog.
//!
//! What else a batch may do (dead letters, gaps, conflicts, a status taken back, offsets told before) takes
//! the longer way, and so does a batch of which some event is there already.

use crate::model::batch::Slice;
use tokio_postgres::types::Type;

use super::connection::WriterConnection;
use super::effects::{self, Effects, EventAt, ExistingEvents};
use super::event_paths::{divert, inserted_event};
use super::writer::{CommitError, Failed, FallbackReason};
use super::{event_rows, outcome_rows, position_rows};
use crate::ledger::error::LedgerError;
use crate::model::decoded_batch::Message;
use crate::model::event::{Decoded, Outcome};
use crate::model::write_report::WriteStrategy;
use crate::postgres::session::{CommitFailure, Param};

const WRITE_FEW: &str = "-- write_few
select gapless.write_few($1, $2, $3, $4, $5, $6)";

/// SQLSTATEs of the function: a position is not where it was expected,
const POSITION_CONFLICT: &str = "GL001";
/// and transactions that nobody began do not begin as a batch's must.
const INCOMPATIBLE_SETTINGS: &str = "GL003";

/// A batch as far as it is known before it is sent.
pub(crate) struct SmallBatch {
    candidates: Vec<EventAt>,
    ids: Vec<i64>,
    pub(crate) effects: Effects,
}

/// Numbers the events and decides; `None` if the batch does anything but bring events.
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

/// Writes, and by that commits. The caller's turn has come.
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
    connection.session.execute_autocommit(WRITE_FEW, &params).await
}

/// What follows from a refusal: nothing of the batch is in the ledger.
pub(crate) fn refused(connection: &mut WriterConnection, error: LedgerError) -> Failed {
    match error.sqlstate() {
        Some(state) if state.code() == POSITION_CONFLICT => CommitError::Stale.into(),
        Some(state) if state.code() == INCOMPATIBLE_SETTINGS => {
            Failed::FallBack(WriteStrategy::Merge, FallbackReason::Closed(error))
        }
        _ => divert(connection, WriteStrategy::SingleStatement, error),
    }
}
