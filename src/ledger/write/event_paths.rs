//! Writes a batch's events with one of the strategies of [`WriteStrategy`]. All strategies have the same result.
//!
//! If a strategy does not work, the batch begins its transaction again with the next one: [`Failed::FallBack`]. Copy
//! falls back to lookup or merge, and the other strategies to merge, so this ends.

use tokio_postgres::error::SqlState;

use super::bisect::isolate;
use super::connection::WriterConnection;
use super::effects::{EventAt, ExistingEvent, ExistingEvents, NewConflict};
use super::event_rows;
use super::writer::{Failed, FallbackReason};
use crate::ledger::error::LedgerError;
use crate::model::decoded_batch::Message;
use crate::model::error_class::Class;
use crate::model::event::{ContractEvent, IdentityRecipe, Reason, Rejection};
use crate::model::record::{Digest, DigestMap};
use crate::model::write_report::WriteStrategy;

/// The first event of each identity, and the rejections of messages with an event whose digest collides with another
/// event's.
pub(crate) fn candidates(
    messages: &[Message<'_>],
    skip: &[bool],
    recipe: &IdentityRecipe,
) -> (Vec<EventAt>, Vec<(usize, Rejection)>) {
    let mut first: DigestMap<EventAt> = DigestMap::with_capacity_and_hasher(messages.len(), Default::default());
    let (mut candidates, mut collisions) = (Vec::with_capacity(messages.len()), Vec::new());
    for (at, event) in all_events(messages, skip) {
        match first.get(&event.identity) {
            None => {
                first.insert(event.identity, at);
                candidates.push(at);
            }
            Some(earlier) if recipe.same(&event.fields, &event_rows::event(messages, *earlier).fields) => {}
            Some(_) => collisions.push((at.message, collision(messages, at))),
        }
    }
    (candidates, collisions)
}

pub(crate) fn all_events<'a>(
    messages: &'a [Message<'a>],
    skip: &'a [bool],
) -> impl Iterator<Item = (EventAt, &'a ContractEvent<'a>)> {
    messages.iter().enumerate().filter(|(index, _)| !skip[*index]).flat_map(|(message, m)| {
        m.decoded.events().iter().enumerate().map(move |(event, e)| (EventAt { message, event }, e))
    })
}

fn collision(messages: &[Message<'_>], at: EventAt) -> Rejection {
    rejection(messages, at, Reason::IdentityCollision, "another event has the same 16-byte identity")
}

/// The rejection of a message because of one of its events. If the message has several, the detail names the event.
pub(crate) fn rejection(messages: &[Message<'_>], at: EventAt, reason: Reason, detail: &str) -> Rejection {
    let detail = match messages[at.message].decoded.events() {
        [_] => detail.to_owned(),
        _ => format!("event {}: {detail}", at.event),
    };
    Rejection::new(reason, detail)
}

/// Inserts the new events and looks up the existing ones.
pub(crate) async fn store_events(
    connection: &mut WriterConnection,
    strategy: WriteStrategy,
    recipe: &IdentityRecipe,
    messages: &[Message<'_>],
    skip: &[bool],
    candidates: &[EventAt],
) -> Result<ExistingEvents, Failed> {
    let mut known = ExistingEvents::default();
    if candidates.is_empty() {
        return Ok(known);
    }
    let collisions = match strategy {
        WriteStrategy::Copy => {
            copy(connection, strategy, messages, candidates, &mut known).await?;
            Vec::new()
        }
        WriteStrategy::SingleStatement => {
            unreachable!("single_statement::write_small_batch writes the whole batch")
        }
        WriteStrategy::Lookup => {
            let collisions =
                event_rows::find_existing_events(&connection.session, recipe, messages, candidates, &mut known).await?;
            let is_new = |at: &&EventAt| !known.events.contains_key(&event_rows::event(messages, **at).identity);
            let new: Vec<EventAt> = candidates.iter().filter(is_new).copied().collect();
            if collisions.is_empty() {
                copy(connection, strategy, messages, &new, &mut known).await?;
            }
            collisions
        }
        WriteStrategy::Merge => insert(connection, recipe, messages, candidates, &mut known).await?,
    };
    if !collisions.is_empty() {
        // Every message of the batch with the colliding identity is rejected.
        let keys: Vec<Digest> = collisions.iter().map(|at| event_rows::event(messages, *at).identity).collect();
        let all = all_events(messages, skip).filter(|(_, e)| keys.contains(&e.identity));
        return Err(Failed::Refused(all.map(|(at, _)| (at.message, collision(messages, at))).collect()));
    }
    // A backfill does not know an event that neither exists nor may be inserted.
    let conflicting =
        |e: &ContractEvent<'_>| known.events.get(&e.identity).is_some_and(|existing| existing.content != e.content);
    let identities: Vec<Digest> =
        all_events(messages, skip).filter(|(_, e)| conflicting(e)).map(|(_, e)| e.identity).collect();
    if !identities.is_empty() {
        event_rows::load_occurrences(&connection.session, &identities, &mut known).await?;
    }
    Ok(known)
}

/// Inserts events by COPY, assuming that all are new. If one is not, the unique key fails the statement.
async fn copy(
    connection: &mut WriterConnection,
    strategy: WriteStrategy,
    messages: &[Message<'_>],
    new: &[EventAt],
    known: &mut ExistingEvents,
) -> Result<(), Failed> {
    if new.is_empty() {
        return Ok(());
    }
    let ids = connection.allocate_ids(new.len()).await?;
    match event_rows::copy_events(&connection.session, &mut connection.rows, messages, new, &ids).await {
        Ok(()) => {}
        Err(error) => return Err(classify_failure(connection, strategy, error)),
    }
    known.events.reserve(new.len());
    for (at, id) in new.iter().zip(ids) {
        inserted_event(messages, *at, id, known);
    }
    Ok(())
}

/// The consequence of an error while events were written.
pub(crate) fn classify_failure(
    connection: &mut WriterConnection,
    strategy: WriteStrategy,
    error: LedgerError,
) -> Failed {
    match error.class() {
        _ if error.is_duplicate() => {
            connection.discard_ids();
            Failed::FallBack(strategy.fallback(), FallbackReason::Duplicate)
        }
        _ if strategy != WriteStrategy::SingleStatement && is_copy_closed(&error) => {
            Failed::FallBack(WriteStrategy::Merge, FallbackReason::Closed(error))
        }
        // Merge finds the rows that PostgreSQL refuses.
        Class::Data => Failed::FallBack(WriteStrategy::Merge, FallbackReason::Unsupported),
        _ => error.into(),
    }
}

/// Returns true if COPY cannot be used at all on this connection to the server.
pub(crate) fn is_copy_closed(error: &LedgerError) -> bool {
    const CLOSED: [&SqlState; 3] = [
        // A pooler used the name of gapless's prepared statement for another client, or on another server.
        &SqlState::DUPLICATE_PSTATEMENT,
        &SqlState::INVALID_SQL_STATEMENT_NAME,
        // The table has a row-level security policy.
        &SqlState::FEATURE_NOT_SUPPORTED,
    ];
    error.sqlstate().is_some_and(|state| CLOSED.contains(&state))
}

/// Inserts the events whose identity is free and looks up the others. Returns the events whose digest collides with
/// another event's.
async fn insert(
    connection: &mut WriterConnection,
    recipe: &IdentityRecipe,
    messages: &[Message<'_>],
    candidates: &[EventAt],
    known: &mut ExistingEvents,
) -> Result<Vec<EventAt>, Failed> {
    let ids = connection.allocate_ids(candidates.len()).await?;
    let inserted = match event_rows::insert_events(&connection.session, messages, candidates, &ids).await {
        Ok(inserted) => inserted,
        Err(error) if error.class() == Class::Data => {
            return Err(isolate(connection, error, messages, candidates).await);
        }
        Err(error) => return Err(error.into()),
    };
    let mut taken = Vec::new();
    for at in candidates {
        match inserted.get(&event_rows::event(messages, *at).identity) {
            Some(id) => inserted_event(messages, *at, *id, known),
            None => taken.push(*at),
        }
    }
    match taken.is_empty() {
        true => Ok(Vec::new()),
        false => Ok(event_rows::load_existing_events(&connection.session, recipe, messages, &taken, known).await?),
    }
}

/// Adds an inserted event of the batch to the known events.
pub(crate) fn inserted_event(messages: &[Message<'_>], at: EventAt, id: i64, known: &mut ExistingEvents) {
    let event = event_rows::event(messages, at);
    let (content, status) = (event.content, event.status);
    let existing =
        ExistingEvent { id, content, status, stored_status: status, inserted_as: Some(at), source_position: None };
    known.events.insert(event.identity, existing);
}

pub(crate) async fn store_conflicts(
    connection: &mut WriterConnection,
    messages: &[Message<'_>],
    conflicts: &[NewConflict],
) -> Result<(), Failed> {
    if conflicts.is_empty() {
        return Ok(());
    }
    match event_rows::insert_conflicts(&connection.session, messages, conflicts).await {
        Ok(()) => Ok(()),
        Err(error) if error.class() == Class::Data => Err(isolate(connection, error, messages, conflicts).await),
        Err(error) => Err(error.into()),
    }
}
