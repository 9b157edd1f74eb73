//! Rows of `gapless.outcomes` and `gapless.rejected_messages` (dead letters): all rows of a batch in one statement.

use std::collections::HashMap;

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::effects::{Effects, MessageOutcome};
use crate::ledger::error::LedgerError;
use crate::model::batch::Slice;
use crate::model::decoded_batch::Message;
use crate::model::event::Decoded;
use crate::model::offset::Offset;
use crate::model::record::{Digest, Header, Record};
use crate::postgres::composite::Composites;
use crate::postgres::copy::Rows;
use crate::postgres::field::RowSink;
use crate::postgres::session::Session;

const INSERT_OUTCOMES: &str = "-- insert_outcomes
insert into gapless.outcomes (\"offset\", event_id, message_time, position_id, state, payload_digest)
select \"offset\", event_id, message_time, position_id, state::gapless.handling_state, payload_digest
from unnest($1::gapless.new_outcome[])";

const COPY_OUTCOMES: &str = "-- copy_outcomes
copy gapless.outcomes (\"offset\", event_id, message_time, position_id, state, payload_digest)
from stdin (format binary)";

const INSERT_OUTCOMES_OF_EVENTS: &str = "-- insert_outcomes_of_events
insert into gapless.outcomes (\"offset\", event_id, message_time, position_id, state, payload_digest, inserted)
select \"offset\", event_id, message_time, position_id, state::gapless.handling_state, payload_digest, inserted
from unnest($1::gapless.new_outcome_of_events[])";

const COPY_OUTCOMES_OF_EVENTS: &str = "-- copy_outcomes_of_events
copy gapless.outcomes (\"offset\", event_id, message_time, position_id, state, payload_digest, inserted)
from stdin (format binary)";

/// The dead letter may exist already if only the outcome was lost. A discarded one stays discarded.
const INSERT_REJECTED: &str = "-- insert_rejected
insert into gapless.rejected_messages as r (position_id, \"offset\", message_key, payload, headers, message_time, reason, detail)
select position_id, \"offset\", key, payload, headers::json, at, reason, detail
from unnest($1::int4[], $2::int8[], $3::bytea[], $4::bytea[], $5::text[], $6::timestamptz[], $7::text[], $8::text[])
    as u(position_id, \"offset\", key, payload, headers, at, reason, detail)
on conflict (position_id, \"offset\") do update
set attempts = r.attempts + 1, last_seen = now(), reason = excluded.reason, detail = excluded.detail,
    state = case r.state when 'replayed' then 'open' else r.state end";

const RECORDED: &str = "-- recorded_outcomes
select o.position_id, o.\"offset\", o.payload_digest
from unnest($1::int4[], $2::int8[]) as u(position_id, \"offset\")
join gapless.outcomes o on o.position_id = u.position_id and o.\"offset\" = u.\"offset\"";

const REPAIR_REFERENCES: &str = "-- repair_references
update gapless.outcomes o set event_id = u.event_id, update_time = now()
from unnest($2::int8[], $3::int8[]) as u(\"offset\", event_id)
where o.position_id = $1 and o.\"offset\" = u.\"offset\"";

/// Inserts one outcome per message.
pub(crate) async fn insert_outcomes(
    session: &Session,
    messages: &[Message<'_>],
    effects: &Effects,
) -> Result<(), LedgerError> {
    if effects.outcomes.is_empty() {
        return Ok(());
    }
    let insert = if effects.record_event_numbers() { INSERT_OUTCOMES_OF_EVENTS } else { INSERT_OUTCOMES };
    Ok(session.write(insert, &[outcomes(messages, effects).param()], effects.outcomes.len()).await?)
}

/// The outcomes as an array of `gapless.new_outcome`, or of `gapless.new_outcome_of_events` if one of them records event
/// numbers.
pub(crate) fn outcomes(messages: &[Message<'_>], effects: &Effects) -> Composites {
    let mut rows = Composites::default();
    let encode = if effects.record_event_numbers() { encode_outcome_of_events } else { encode_outcome };
    effects.outcomes.iter().for_each(|outcome| encode(&mut rows, messages, outcome));
    rows
}

/// Inserts one outcome per message by COPY.
pub(crate) async fn copy_outcomes(
    session: &Session,
    rows: &mut Rows,
    messages: &[Message<'_>],
    effects: &Effects,
) -> Result<(), LedgerError> {
    let outcomes = effects.outcomes.iter();
    if effects.record_event_numbers() {
        let encode = |row: &mut Rows, outcome: &MessageOutcome| encode_outcome_of_events(row, messages, outcome);
        Ok(session.copy(COPY_OUTCOMES_OF_EVENTS, rows, outcomes, encode).await?)
    } else {
        let encode = |row: &mut Rows, outcome: &MessageOutcome| encode_outcome(row, messages, outcome);
        Ok(session.copy(COPY_OUTCOMES, rows, outcomes, encode).await?)
    }
}

/// Encodes the columns in the order of [`COPY_OUTCOMES`] and `gapless.new_outcome`.
pub(crate) fn encode_outcome(row: &mut impl RowSink, messages: &[Message<'_>], outcome: &MessageOutcome) {
    row.begin_row(6);
    put_outcome(row, messages, outcome);
}

/// Encodes the columns in the order of [`COPY_OUTCOMES_OF_EVENTS`] and `gapless.new_outcome_of_events`.
fn encode_outcome_of_events(row: &mut impl RowSink, messages: &[Message<'_>], outcome: &MessageOutcome) {
    row.begin_row(7);
    put_outcome(row, messages, outcome);
    row.put(outcome.inserted.as_ref());
}

fn put_outcome(row: &mut impl RowSink, messages: &[Message<'_>], outcome: &MessageOutcome) {
    let Message { slice, record, payload_digest, .. } = &messages[outcome.message];
    row.put(record.offset.get());
    row.put(outcome.event_id);
    row.put(message_time(record));
    row.put(slice.position_id);
    row.put(outcome.outcome.name());
    row.put(*payload_digest);
}

/// Inserts dead letters: the bytes of rejected messages.
pub(crate) async fn insert_rejected(session: &Session, messages: &[&Message<'_>]) -> Result<(), LedgerError> {
    let records = || messages.iter().map(|m| m.record);
    let position: Vec<i32> = messages.iter().map(|m| m.slice.position_id).collect();
    let offset: Vec<i64> = records().map(|r| r.offset.get()).collect();
    let key: Vec<Option<&[u8]>> = records().map(|r| r.key.as_deref()).collect();
    let payload: Vec<Option<&[u8]>> = records().map(|r| r.value.as_deref()).collect();
    let headers: Vec<String> = records().map(|r| headers_json(&r.headers)).collect();
    let time: Vec<Option<Timestamp>> = records().map(message_time).collect();
    let (mut reason, mut detail) = (Vec::new(), Vec::new());
    for message in messages {
        let Decoded::Rejected(rejection) = &message.decoded else {
            unreachable!("the caller passes rejected messages only")
        };
        reason.push(rejection.reason.name());
        detail.push(storable(&rejection.detail));
    }
    let params = [
        (&position as _, Type::INT4_ARRAY),
        (&offset as _, Type::INT8_ARRAY),
        (&key as _, Type::BYTEA_ARRAY),
        (&payload as _, Type::BYTEA_ARRAY),
        (&headers as _, Type::TEXT_ARRAY),
        (&time as _, Type::TIMESTAMPTZ_ARRAY),
        (&reason as _, Type::TEXT_ARRAY),
        (&detail as _, Type::TEXT_ARRAY),
    ];
    Ok(session.write(INSERT_REJECTED, &params, messages.len()).await?)
}

/// The payload digests of recorded outcomes, by position id and offset, of the messages in these slices. Outcomes of
/// other offsets are not read, because a range may contain any number of outcomes whose messages were compacted away
/// since.
pub(crate) async fn recorded(
    session: &Session,
    slices: &[&Slice],
) -> Result<HashMap<(i32, Offset), Option<Digest>>, LedgerError> {
    let records = slices.iter().flat_map(|slice| slice.records.iter().map(|r| (slice.position_id, r.offset.get())));
    let (position, offsets): (Vec<i32>, Vec<i64>) = records.unzip();
    let params = [(&position as _, Type::INT4_ARRAY), (&offsets as _, Type::INT8_ARRAY)];
    let rows = session.query(RECORDED, &params).await?;
    let offset = |row: &Row| Offset::new(row.get(1)).expect("no negative offset was ever stored");
    Ok(rows.iter().map(|row| ((row.get(0), offset(row)), row.get(2))).collect())
}

/// Makes outcomes reference the event that has their identity now.
pub(crate) async fn repair_references(
    session: &Session,
    position_id: i32,
    repaired: &[(Offset, i64)],
) -> Result<(), LedgerError> {
    let (offsets, ids): (Vec<i64>, Vec<i64>) = repaired.iter().map(|(offset, id)| (offset.get(), *id)).unzip();
    let params = [(&position_id as _, Type::INT4), (&offsets as _, Type::INT8_ARRAY), (&ids as _, Type::INT8_ARRAY)];
    Ok(session.write(REPAIR_REFERENCES, &params, repaired.len()).await?)
}

/// Replaces NUL characters, which PostgreSQL's text cannot contain; a detail may quote the message.
pub(crate) fn storable(detail: &str) -> String {
    detail.replace('\0', "\\0")
}

/// The record's timestamp, if PostgreSQL can store it (4713 BC to 9999 AD); producers may write any number.
fn message_time(record: &Record) -> Option<Timestamp> {
    const EARLIEST_MS: i64 = -210_863_520_000_000;
    record.timestamp_ms.filter(|ms| *ms >= EARLIEST_MS).and_then(|ms| Timestamp::from_millisecond(ms).ok())
}

/// Encodes the columns that a dead letter has of its message.
pub(crate) fn encode_dead_letter(row: &mut impl RowSink, record: &Record) {
    row.begin_row(4);
    row.put(record.key.as_deref());
    row.put(record.value.as_deref());
    row.put(headers_json(&record.headers).as_str());
    row.put(message_time(record));
}

/// Headers as JSON, byte-exact: names and values as text if they are valid text, otherwise as hexadecimal.
fn headers_json(headers: &[Header]) -> String {
    let value = |key: &str, bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => (key.to_owned(), text.to_owned()),
        _ => (format!("{key}_hex"), bytes.iter().map(|b| format!("{b:02x}")).collect()),
    };
    let list: Vec<serde_json::Value> = headers
        .iter()
        .map(|header| {
            let (name_key, name) = value("name", &header.name);
            let mut object = serde_json::Map::from_iter([(name_key, name.into())]);
            match &header.value {
                Some(bytes) => {
                    let (key, text) = value("value", bytes);
                    object.insert(key, text.into());
                }
                None => {
                    object.insert("value".into(), serde_json::Value::Null);
                }
            }
            object.into()
        })
        .collect();
    serde_json::Value::Array(list).to_string()
}
