//! Rows of `gapless.stored_events` and `gapless.conflicting_events`: written and looked up with set-based statements,
//! all rows at once as arrays or by COPY.

use std::collections::HashMap;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::effects::{Effects, EventAt, ExistingEvent, ExistingEvents, NewConflict, event_number};
use super::late_changes::{LateChanges, positions_of};
use crate::ledger::error::LedgerError;
use crate::model::decoded_batch::Message;
use crate::model::event::{ContractEvent, Decoded, EventText, Fields, IdentityRecipe, Status};
use crate::model::offset::Offset;
use crate::model::record::Digest;
use crate::postgres::composite::Composites;
use crate::postgres::copy::Rows;
use crate::postgres::field::RowSink;
use crate::postgres::session::Session;

const INSERT_EVENTS: &str = "-- insert_events
insert into gapless.stored_events (id, \"offset\", block_number, event_capture_time, position_id, event_no, log_index,
    status, identity, content_digest, txn, event_type, block_hash, address, event_info, event_raw)
select id, \"offset\", block_number, event_capture_time, position_id, event_no, log_index,
    status::gapless.event_status, identity, content_digest, txn, event_type, block_hash, address, event_info::json, event_raw
from unnest($1::gapless.new_event[])
on conflict (identity) do nothing
returning identity, id";

const COPY_EVENTS: &str = "-- copy_events
copy gapless.stored_events (id, \"offset\", block_number, event_capture_time, position_id, event_no, log_index, status,
    identity, content_digest, txn, event_type, block_hash, address, event_info, event_raw) from stdin (format binary)";

/// A conflict's `event_id` is the id of the existing event with its identity.
const INSERT_CONFLICTS: &str = "-- insert_conflicts
insert into gapless.conflicting_events (event_id, \"offset\", block_number, event_capture_time, position_id, event_no,
    log_index, status, identity, content_digest, txn, event_type, block_hash, address, event_info, event_raw)
select id, \"offset\", block_number, event_capture_time, position_id, event_no, log_index,
    status::gapless.event_status, identity, content_digest, txn, event_type, block_hash, address, event_info::json, event_raw
from unnest($1::gapless.new_event[])";

const EXISTING_EVENTS: &str = "-- existing_events
select identity, id, content_digest, status::text, txn, event_type, block_number, block_hash, log_index, address,
       position_id, \"offset\", event_no
from gapless.stored_events where identity = any($1::uuid[])";

const OCCURRENCES: &str = "-- occurrences
select identity, content_digest, status::text from gapless.conflicting_events where identity = any($1::uuid[])";

const EVENT_STATUS: &str = "-- event_status
update gapless.stored_events e set status = u.status::gapless.event_status
from unnest($1::int8[], $2::text[]) as u(id, status) where e.id = u.id
returning e.position_id, e.\"offset\"";

const CONFLICT_STATUS: &str = "-- conflict_status
update gapless.conflicting_events c set status = u.status::gapless.event_status
from unnest($1::uuid[], $2::uuid[], $3::text[]) as u(identity, content, status)
where c.identity = u.identity and c.content_digest = u.content
returning c.position_id, c.\"offset\"";

const REPAIR_CONFLICTS: &str = "-- repair_conflicts
update gapless.conflicting_events c set event_id = u.event_id
from unnest($1::uuid[], $2::int8[]) as u(identity, event_id)
where c.identity = u.identity and c.event_id <> u.event_id
returning c.position_id, c.\"offset\"";

pub(crate) fn event<'a>(messages: &'a [Message<'a>], at: EventAt) -> &'a ContractEvent<'a> {
    match &messages[at.message].decoded {
        Decoded::Events(events) => &events[at.event],
        other => unreachable!("an EventAt refers to an event, not to {other:?}"),
    }
}

/// Inserts events by COPY. If one of their identities exists already, the statement fails with SQLSTATE 23505.
pub(crate) async fn copy_events(
    session: &Session,
    rows: &mut Rows,
    messages: &[Message<'_>],
    events: &[EventAt],
    ids: &[i64],
) -> Result<(), LedgerError> {
    let numbered = events.iter().zip(ids);
    Ok(session.copy(COPY_EVENTS, rows, numbered, |row, (at, id)| encode_new(row, messages, *at, *id)).await?)
}

/// New events as an array of `gapless.new_event`.
pub(crate) fn composites(messages: &[Message<'_>], events: &[EventAt], ids: &[i64]) -> Composites {
    let mut rows = Composites::default();
    for (at, id) in events.iter().zip(ids) {
        encode_new(&mut rows, messages, *at, *id);
    }
    rows
}

fn encode_new(row: &mut impl RowSink, messages: &[Message<'_>], at: EventAt, id: i64) {
    encode(row, messages, at, event(messages, at).status, id);
}

/// Encodes the row that an event of a message must have, with the status that its own message gives it.
pub(crate) fn encode_expected(row: &mut impl RowSink, message: &Message<'_>, no: usize, id: i64) {
    encode_new(row, std::slice::from_ref(message), EventAt { message: 0, event: no }, id);
}

/// Encodes the columns in the order of [`COPY_EVENTS`] and `gapless.new_event`. `id` is the event's own id, or for a
/// conflict the id of the existing event with its identity.
fn encode(row: &mut impl RowSink, messages: &[Message<'_>], at: EventAt, status: Status, id: i64) {
    let (message, event) = (&messages[at.message], event(messages, at));
    row.begin_row(16);
    row.put(id);
    row.put(message.record.offset.get());
    row.put(event.fields.block_number);
    row.put(event.captured_at);
    row.put(message.slice.position_id);
    row.put(event_number(at.event));
    row.put(event.fields.log_index);
    row.put(status.name());
    row.put(event.identity);
    row.put(event.content);
    row.put(&*event.fields.txn);
    row.put(&*event.fields.event_type);
    row.put(event.fields.block_hash.as_deref());
    row.put(event.fields.address.as_deref());
    let (info, raw) = info_or_raw(event.text);
    row.put(info);
    row.put(raw);
}

/// Encodes the first event of each message as COPY sends it, chunk by chunk, and returns the number of bytes. For the
/// benchmarks.
pub fn encoded_bytes(messages: &[Message<'_>]) -> usize {
    let mut rows = Rows::default();
    rows.begin();
    let mut bytes = 0;
    for (message, m) in messages.iter().enumerate() {
        if matches!(&m.decoded, Decoded::Events(events) if !events.is_empty()) {
            encode_new(&mut rows, messages, EventAt { message, event: 0 }, message as i64);
            bytes += rows.full_piece().map_or(0, |piece| piece.len());
        }
    }
    bytes + rows.last_piece().len()
}

/// The columns `event_info` and `event_raw`, of which exactly one has a value.
fn info_or_raw(text: EventText<'_>) -> (Option<&str>, Option<&[u8]>) {
    match text {
        EventText::Json(text) => (Some(text), None),
        EventText::Raw(text) => (None, Some(text.as_bytes())),
    }
}

/// Inserts the events whose identity is free. Returns their ids by identity.
pub(crate) async fn insert_events(
    session: &Session,
    messages: &[Message<'_>],
    events: &[EventAt],
    ids: &[i64],
) -> Result<HashMap<Digest, i64>, LedgerError> {
    let rows = session.query(INSERT_EVENTS, &[composites(messages, events, ids).param()]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Looks up the existing events of identities that exist already; an error if one is missing. Returns the events of the
/// batch whose digest collides with another event's.
pub(crate) async fn load_existing_events(
    session: &Session,
    recipe: &IdentityRecipe,
    messages: &[Message<'_>],
    candidates: &[EventAt],
    known: &mut ExistingEvents,
) -> Result<Vec<EventAt>, LedgerError> {
    let collisions = find_existing_events(session, recipe, messages, candidates, known).await?;
    let is_known = |at: &&EventAt| known.events.contains_key(&event(messages, **at).identity);
    let (expected, got) = (candidates.len(), candidates.iter().filter(is_known).count());
    if got == expected { Ok(collisions) } else { Err(LedgerError::rows("existing_events", expected, got)) }
}

/// The look-up of [`load_existing_events`] for identities of which some may not exist.
pub(crate) async fn find_existing_events(
    session: &Session,
    recipe: &IdentityRecipe,
    messages: &[Message<'_>],
    candidates: &[EventAt],
    known: &mut ExistingEvents,
) -> Result<Vec<EventAt>, LedgerError> {
    let identities: Vec<Digest> = candidates.iter().map(|at| event(messages, *at).identity).collect();
    let rows = session.query(EXISTING_EVENTS, &[(&identities, Type::UUID_ARRAY)]).await?;
    let asked: HashMap<Digest, EventAt> = identities.iter().copied().zip(candidates.iter().copied()).collect();
    let mut collisions = Vec::new();
    for row in &rows {
        let identity: Digest = row.get(0);
        if !recipe.same(&fields(row), &event(messages, asked[&identity]).fields) {
            collisions.push(asked[&identity]);
        }
        let source_position =
            (row.get(10), Offset::new(row.get(11)).expect("no negative offset was ever stored"), row.get(12));
        let status = status(row.get(3));
        let existing = ExistingEvent {
            id: row.get(1),
            content: row.get(2),
            status,
            stored_status: status,
            inserted_as: None,
            source_position: Some(source_position),
        };
        known.events.insert(identity, existing);
    }
    Ok(collisions)
}

/// Loads the status of the recorded conflicts with these identities.
pub(crate) async fn load_occurrences(
    session: &Session,
    identities: &[Digest],
    known: &mut ExistingEvents,
) -> Result<(), LedgerError> {
    let rows = session.query(OCCURRENCES, &[(&identities, Type::UUID_ARRAY)]).await?;
    known.occurrences.extend(rows.iter().map(|row| ((row.get(0), row.get(1)), status(row.get(2)))));
    Ok(())
}

fn fields(row: &Row) -> Fields<'_> {
    Fields {
        txn: row.get::<_, &str>(4).into(),
        event_type: row.get::<_, &str>(5).into(),
        block_number: row.get(6),
        block_hash: row.get::<_, Option<&str>>(7).map(Into::into),
        log_index: row.get(8),
        address: row.get::<_, Option<&str>>(9).map(Into::into),
    }
}

/// The status with `unconfirmed` as `confirmed`: both are additions, and only other formats write `unconfirmed`.
fn status(name: &str) -> Status {
    if name == Status::Removed.name() { Status::Removed } else { Status::Confirmed }
}

pub(crate) async fn insert_conflicts(
    session: &Session,
    messages: &[Message<'_>],
    conflicts: &[NewConflict],
) -> Result<(), LedgerError> {
    let mut rows = Composites::default();
    for conflict in conflicts {
        encode(&mut rows, messages, conflict.at, conflict.status, conflict.existing_id);
    }
    Ok(session.write(INSERT_CONFLICTS, &[rows.param()], conflicts.len()).await?)
}

/// Makes the conflicts of restored events reference these events.
pub(crate) async fn repair_conflicts(
    session: &Session,
    restored: &[(Digest, i64)],
    late: &mut LateChanges,
) -> Result<(), LedgerError> {
    let (identities, ids): (Vec<Digest>, Vec<i64>) = restored.iter().copied().unzip();
    let params = [(&identities as _, Type::UUID_ARRAY), (&ids as _, Type::INT8_ARRAY)];
    late.extend(positions_of(&session.query(REPAIR_CONFLICTS, &params).await?));
    Ok(())
}

/// Writes the status of occurrences that were removed or added again.
pub(crate) async fn update_status(
    session: &Session,
    effects: &Effects,
    late: &mut LateChanges,
) -> Result<(), LedgerError> {
    if !effects.event_status.is_empty() {
        let (ids, status): (Vec<i64>, Vec<&str>) = effects.event_status.iter().map(|(id, s)| (*id, s.name())).unzip();
        let params = [(&ids as _, Type::INT8_ARRAY), (&status as _, Type::TEXT_ARRAY)];
        late.extend(positions_of(&session.write_returning(EVENT_STATUS, &params, ids.len()).await?));
    }
    if !effects.conflict_status.is_empty() {
        let (keys, status): (Vec<_>, Vec<&str>) = effects.conflict_status.iter().map(|(k, s)| (*k, s.name())).unzip();
        let (identity, content): (Vec<Digest>, Vec<Digest>) = keys.into_iter().unzip();
        let params =
            [(&identity as _, Type::UUID_ARRAY), (&content as _, Type::UUID_ARRAY), (&status as _, Type::TEXT_ARRAY)];
        late.extend(positions_of(&session.write_returning(CONFLICT_STATUS, &params, status.len()).await?));
    }
    Ok(())
}
