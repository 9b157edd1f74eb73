//! Compares the rows of a message with the message, field by field. Pure: `compare` reads both.
//!
//! The expected rows come from the functions that write them ([`crate::ledger::write::event_rows`],
//! [`crate::ledger::write::outcome_rows`]), so that one place defines them.
//! Ids are not compared, because the ledger allocates them; their references are checked instead. The status of an
//! occurrence depends on other messages too, so a status that differs from its own message's is only a suspect here.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use tokio_postgres::Row;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{FromSql, Type};

use crate::ledger::write::effects::{MessageOutcome, event_number};
use crate::ledger::write::{event_rows, outcome_rows};
use crate::model::decoded_batch::Message;
use crate::model::event::{ContractEvent, Decoded, Outcome, Reason, Status};
use crate::model::event_numbers::{EventNumbers, inserted_events};
use crate::model::offset::Offset;
use crate::model::record::Digest;
use crate::postgres::field::{Field, RowSink};

/// Columns of events and conflicts as `event_rows::encode` writes them. The first column is an event's id, or for a
/// conflict the id of the event with the same identity.
macro_rules! event_names {
    ($relation:literal) => {
        [
            concat!($relation, ".event_id"),
            concat!($relation, ".offset"),
            concat!($relation, ".block_number"),
            concat!($relation, ".event_capture_time"),
            concat!($relation, ".partition_id"),
            concat!($relation, ".event_no"),
            concat!($relation, ".log_index"),
            concat!($relation, ".status"),
            concat!($relation, ".identity"),
            concat!($relation, ".content_digest"),
            concat!($relation, ".txn"),
            concat!($relation, ".event_type"),
            concat!($relation, ".block_hash"),
            concat!($relation, ".address"),
            concat!($relation, ".event_info"),
            concat!($relation, ".event_raw"),
        ]
    };
}

const EVENT_COLUMNS: [&str; 16] = event_names!("events");
const CONFLICT_COLUMNS: [&str; 16] = event_names!("event_conflicts");
const ID: usize = 0;
const EVENT_NO: usize = 5;
const STATUS: usize = 7;
const IDENTITY: usize = 8;
const INFO: usize = 14;

/// Columns of outcomes as `outcome_rows::encode_outcome` writes them.
const OUTCOME_COLUMNS: [&str; 6] = [
    "kafka_events_received.offset",
    "kafka_events_received.event_id",
    "kafka_events_received.message_time",
    "kafka_events_received.partition_id",
    "kafka_events_received.handling_state",
    "kafka_events_received.payload_digest",
];
const EVENT_ID: usize = 1;
const STATE: usize = 4;

/// Columns of dead letters as `outcome_rows::encode_dead_letter` writes them.
const DEAD_LETTER_COLUMNS: [&str; 4] =
    ["dead_letters.message_key", "dead_letters.payload", "dead_letters.headers", "dead_letters.message_time"];
const REASON: &str = "dead_letters.reason";
const DETAIL: &str = "dead_letters.detail";
const FORMAT: &str = "format_history.format";
/// The column of the table, which no view shows.
const INSERTED: &str = "outcomes.inserted";

/// Fields, as `relation.column`, that differ from the message or contradict other rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fields(BTreeSet<&'static str>);

impl Fields {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns true if rows could not be compared, because this program does not know the format that wrote them.
    pub fn are_of_unknown_format(&self) -> bool {
        self.0.contains(FORMAT)
    }

    /// Returns true if the only difference is an event that no message inserted according to the outcomes that were
    /// compared. The restoration of lost events may explain it.
    pub fn are_of_lost_event(&self) -> bool {
        self.0.iter().eq([&INSERTED])
    }

    /// A value that stands for all fields of these relations.
    pub fn of_relations(relations: &[&'static str]) -> Self {
        Self(relations.iter().copied().collect())
    }

    /// Returns true if a field of this relation is among them.
    pub fn touches(&self, relation: &str) -> bool {
        self.0.iter().any(|field| field.split('.').next() == Some(relation))
    }

    pub(crate) fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    pub(crate) fn add(&mut self, field: &'static str) {
        self.0.insert(field);
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().copied().collect::<Vec<_>>().join(", "))
    }
}

impl FromIterator<&'static str> for Fields {
    fn from_iter<I: IntoIterator<Item = &'static str>>(fields: I) -> Self {
        Self(fields.into_iter().collect())
    }
}

/// An occurrence whose status differs from its own message's: another message must have changed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspect {
    pub position_id: i32,
    pub offset: Offset,
    pub(crate) relation: Relation,
    /// The id of the event with its identity.
    pub(crate) existing_id: i64,
    /// The status that its own message gives it.
    pub(crate) own: Status,
}

impl Suspect {
    pub fn fields(self) -> Fields {
        self.relation.status()
    }
}

/// The relation of an occurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    Events,
    Conflicts,
}

impl Relation {
    pub(crate) fn status(self) -> Fields {
        Fields::from_iter([self.names()[STATUS]])
    }

    fn names(self) -> &'static [&'static str; 16] {
        match self {
            Self::Events => &EVENT_COLUMNS,
            Self::Conflicts => &CONFLICT_COLUMNS,
        }
    }
}

/// All rows of one message. Events and conflicts have the columns of [`EVENT_COLUMNS`], outcomes those of
/// [`OUTCOME_COLUMNS`], then `inserted`. Dead letters have those of [`DEAD_LETTER_COLUMNS`], then reason, offset and detail.
#[derive(Debug, Default)]
pub(crate) struct Rows<'a> {
    pub(crate) outcome: Option<&'a Row>,
    pub(crate) events: Vec<&'a Row>,
    pub(crate) conflicts: Vec<&'a Row>,
    pub(crate) dead_letter: Option<&'a Row>,
}

/// The ledger's rows for identities and ids that messages reference without having inserted them.
#[derive(Debug, Default)]
pub(crate) struct StoredRows {
    /// Id and content digest of events, by identity.
    pub(crate) events: HashMap<Digest, (i64, Digest)>,
    /// Identities of the events that outcomes reference, by id.
    pub(crate) identities: HashMap<i64, Digest>,
    /// Identity and content digest of conflicts.
    pub(crate) conflicts: HashSet<(Digest, Digest)>,
}

/// The differences of one message's rows.
#[derive(Debug, Default)]
pub(crate) struct RowDifferences {
    pub(crate) fields: Fields,
    pub(crate) suspects: Vec<Suspect>,
    /// An event of the message has other content than the existing event of its identity, and no conflict was recorded.
    pub(crate) lacks_conflict: bool,
}

/// A value in PostgreSQL's binary format.
struct Raw<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

fn raw(row: &Row, column: usize) -> Option<&[u8]> {
    row.get::<_, Option<Raw<'_>>>(column).map(|raw| raw.0)
}

/// An encoded row that is compared with a stored one.
#[derive(Default)]
struct ExpectedRow {
    buffer: BytesMut,
    fields: Vec<Option<Range<usize>>>,
}

impl RowSink for ExpectedRow {
    fn begin_row(&mut self, _: i16) {
        self.buffer.clear();
        self.fields.clear();
    }

    fn put<F: Field>(&mut self, field: F) {
        let at = self.buffer.len() + size_of::<i32>();
        field.put(&mut self.buffer);
        let is_null = self.buffer[at - size_of::<i32>()..at] == (-1_i32).to_be_bytes();
        self.fields.push((!is_null).then(|| at..self.buffer.len()));
    }
}

impl ExpectedRow {
    fn get(&self, column: usize) -> Option<&[u8]> {
        self.fields[column].clone().map(|range| &self.buffer[range])
    }

    /// The columns in which the stored row differs.
    fn differing<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = usize> + 'a {
        (0..self.fields.len()).filter(|column| raw(row, *column) != self.get(*column))
    }
}

/// The events of a message whose identities must be looked up, and the id of the event that its outcome references, if
/// that is not one of its own events.
pub(crate) fn needed_rows<'a>(rows: &Rows<'_>, decoded: &'a Decoded<'_>) -> (Vec<&'a ContractEvent<'a>>, Option<i64>) {
    let own: HashSet<i32> = rows.events.iter().map(|row| row.get(EVENT_NO)).collect();
    let named: Option<i64> = rows.outcome.and_then(|row| row.get(EVENT_ID));
    let is_own = rows.events.iter().any(|row| named == Some(row.get(ID)));
    let Decoded::Events(events) = decoded else { return (Vec::new(), named.filter(|_| !is_own)) };
    let elsewhere =
        events.iter().enumerate().filter(|(no, _)| !own.contains(&event_number(*no))).map(|(_, event)| event);
    (elsewhere.collect(), named.filter(|_| !is_own))
}

/// Compares a message's rows with the message. `is_exact`: this version wrote the rows, so it decides as it did then.
pub(crate) fn compare_message(
    message: &Message<'_>,
    rows: &Rows<'_>,
    existing: &StoredRows,
    is_exact: bool,
) -> RowDifferences {
    let mut differences = RowDifferences::default();
    let Some(outcome) = rows.outcome else { return differences };
    let name: &str = outcome.get(STATE);
    let Some(state) = Outcome::ALL.into_iter().find(|outcome| outcome.name() == name) else {
        differences.fields.add(OUTCOME_COLUMNS[STATE]);
        return differences;
    };
    let recorded = MessageOutcome { message: 0, outcome: state, event_id: outcome.get(EVENT_ID), inserted: None };
    let mut wanted = ExpectedRow::default();
    outcome_rows::encode_outcome(&mut wanted, std::slice::from_ref(message), &recorded);
    wanted.differing(outcome).for_each(|column| differences.fields.add(OUTCOME_COLUMNS[column]));
    if let Some(dead_letter) = rows.dead_letter {
        outcome_rows::encode_dead_letter(&mut wanted, message.record);
        wanted.differing(dead_letter).for_each(|column| differences.fields.add(DEAD_LETTER_COLUMNS[column]));
    }
    match &message.decoded {
        Decoded::Events(events) => compare_events(message, events, state, rows, existing, is_exact, &mut differences),
        Decoded::Nothing | Decoded::Rejected(_) => {
            rows.conflicts.iter().for_each(|_| differences.fields.add(CONFLICT_COLUMNS[EVENT_NO]));
            if is_exact {
                compare_without_events(&message.decoded, state, rows, &mut differences.fields);
            }
        }
    }
    differences
}

/// Returns true for a reason of a dead letter that the decoder alone cannot give.
fn is_beyond_decoder(reason: &str) -> bool {
    [Reason::TooLarge, Reason::RefusedByPostgres, Reason::IdentityCollision].iter().any(|r| r.name() == reason)
}

fn inserted_column(rows: &Rows<'_>) -> Option<EventNumbers> {
    let column: Option<&str> = rows.outcome.and_then(|row| row.get(OUTCOME_COLUMNS.len()));
    column.map(EventNumbers::parse_or_none)
}

fn reason<'a>(rows: &Rows<'a>) -> Option<&'a str> {
    rows.dead_letter.map(|dead_letter| dead_letter.get(DEAD_LETTER_COLUMNS.len()))
}

fn compare_without_events(decoded: &Decoded<'_>, state: Outcome, rows: &Rows<'_>, fields: &mut Fields) {
    let expected = if matches!(decoded, Decoded::Nothing) { Outcome::Ignored } else { Outcome::Rejected };
    let too_large = state == Outcome::Rejected && reason(rows) == Some(Reason::TooLarge.name());
    if state != expected && !too_large {
        fields.add(OUTCOME_COLUMNS[STATE]);
    }
    let (Decoded::Rejected(rejection), Outcome::Rejected, Some(dead_letter)) = (decoded, state, rows.dead_letter)
    else {
        return;
    };
    if too_large {
        return;
    }
    if dead_letter.get::<_, &str>(DEAD_LETTER_COLUMNS.len()) != rejection.reason.name() {
        fields.add(REASON);
    } else if dead_letter.get::<_, &str>(DEAD_LETTER_COLUMNS.len() + 2) != outcome_rows::storable(&rejection.detail) {
        fields.add(DETAIL);
    }
}

fn compare_events(
    message: &Message<'_>,
    events: &[ContractEvent<'_>],
    state: Outcome,
    rows: &Rows<'_>,
    existing: &StoredRows,
    is_exact: bool,
    differences: &mut RowDifferences,
) {
    let has_events = matches!(state, Outcome::Stored | Outcome::Processed | Outcome::Removed);
    if !has_events {
        let is_explained = state == Outcome::Rejected && reason(rows).is_none_or(is_beyond_decoder);
        if is_exact && !is_explained {
            differences.fields.add(OUTCOME_COLUMNS[STATE]);
        }
        return;
    }
    for (relation, stored) in [(Relation::Events, &rows.events), (Relation::Conflicts, &rows.conflicts)] {
        for row in stored {
            match usize::try_from(row.get::<_, i32>(EVENT_NO)).ok().filter(|no| *no < events.len()) {
                Some(no) => occurrence(message, no, true, relation, row, existing, differences),
                None => differences.fields.add(relation.names()[EVENT_NO]),
            }
        }
    }
    let kept: HashSet<i32> = rows.events.iter().chain(&rows.conflicts).map(|row| row.get(EVENT_NO)).collect();
    let inserted = inserted_events(state, inserted_column(rows)).unwrap_or_default();
    for (no, event) in events.iter().enumerate().filter(|(no, _)| !kept.contains(&event_number(*no))) {
        let existing_event = existing.events.get(&event.identity);
        let differs = existing_event.is_some_and(|(_, content)| *content != event.content);
        differences.lacks_conflict |= differs && !existing.conflicts.contains(&(event.identity, event.content));
        // An event that the outcome records is reported as missing elsewhere. Of a message with one event, the reference
        // of its outcome is.
        if events.len() > 1 && existing_event.is_none() && !inserted.contains(event_number(no)) {
            differences.fields.add(INSERTED);
        }
    }
    let inserted: Vec<i64> = rows
        .events
        .iter()
        .filter(|row| events.get(row.get::<_, i32>(EVENT_NO) as usize).is_some_and(|e| e.status == Status::Confirmed))
        .map(|row| row.get(ID))
        .collect();
    state_and_reference(events, state, &inserted, rows, existing, differences);
}

/// A message that inserted an event must be `stored`; otherwise a message with a removal must be `removed`, and any
/// other `processed`. Its outcome must reference an event that it inserted, otherwise an event with one of its
/// identities. A reference to a missing event is another inconsistency, which is reported elsewhere.
fn state_and_reference(
    events: &[ContractEvent<'_>],
    state: Outcome,
    inserted: &[i64],
    rows: &Rows<'_>,
    existing: &StoredRows,
    differences: &mut RowDifferences,
) {
    let has_removal = events.iter().any(|event| event.status == Status::Removed);
    let expected = match (inserted.is_empty(), has_removal) {
        (false, _) => Outcome::Stored,
        (true, true) => Outcome::Removed,
        (true, false) => Outcome::Processed,
    };
    if state != expected && !(state == Outcome::Stored && rows.events.is_empty()) {
        differences.fields.add(OUTCOME_COLUMNS[STATE]);
    }
    let Some(named) = rows.outcome.and_then(|row| row.get::<_, Option<i64>>(EVENT_ID)) else { return };
    let own_identity = rows.events.iter().find(|row| row.get::<_, i64>(ID) == named).map(|row| row.get(IDENTITY));
    let identity: Option<Digest> = own_identity.or_else(|| existing.identities.get(&named).copied());
    let is_own = identity.is_none_or(|identity| events.iter().any(|event| event.identity == identity));
    if !is_own || (identity.is_some() && !inserted.is_empty() && !inserted.contains(&named)) {
        differences.fields.add(OUTCOME_COLUMNS[EVENT_ID]);
    }
}

/// Compares an occurrence with an event of the message. `has_number`: its number must be the event's index.
fn occurrence(
    message: &Message<'_>,
    no: usize,
    has_number: bool,
    relation: Relation,
    row: &Row,
    existing: &StoredRows,
    differences: &mut RowDifferences,
) {
    let (id, names, event) = (row.get::<_, i64>(ID), relation.names(), &message.decoded.events()[no]);
    let mut wanted = ExpectedRow::default();
    event_rows::encode_expected(&mut wanted, message, no, id);
    let is_compared = |column: &usize| *column != STATUS && (has_number || *column != EVENT_NO);
    wanted.differing(row).filter(is_compared).for_each(|column| differences.fields.add(names[column]));
    if relation == Relation::Conflicts
        && existing.events.get(&event.identity).is_some_and(|(existing_id, _)| *existing_id != id)
    {
        differences.fields.add(names[ID]);
    }
    let (position_id, offset) = (message.slice.position_id, message.record.offset);
    let own = event.status;
    match Status::from_name(row.get(STATUS)) {
        Some(status) if status == own => {}
        Some(_) => differences.suspects.push(Suspect { position_id, offset, relation, existing_id: id, own }),
        None => differences.fields.add(names[STATUS]),
    }
}

/// Compares a row whose message Kafka no longer has with the event's stored text; `message` is decoded from that text.
/// `is_whole`: a message of this format is the text of its only event, so its digest must be that of the text.
pub(crate) fn compare_text(
    message: &Message<'_>,
    relation: Relation,
    row: &Row,
    recorded: Option<Digest>,
    is_whole: bool,
) -> RowDifferences {
    let mut differences = RowDifferences::default();
    let names = relation.names();
    match message.decoded.events() {
        [] if is_whole => differences.fields.add(names[INFO]),
        // The fields of an event may stand around it in its message, which is gone.
        [] => {}
        [..] => occurrence(message, 0, is_whole, relation, row, &StoredRows::default(), &mut differences),
    }
    if is_whole && recorded != message.payload_digest {
        differences.fields.add(names[INFO]);
    }
    differences
}

/// The stored text of an event.
pub(crate) fn text(row: &Row) -> Option<Vec<u8>> {
    raw(row, INFO).or_else(|| raw(row, INFO + 1)).map(<[u8]>::to_vec)
}

/// The altered fields of a row that has no text.
pub(crate) fn no_text(relation: Relation) -> Fields {
    Fields::from_iter([relation.names()[INFO]])
}

/// The fields of rows that cannot be compared, because this program does not know the format that wrote them.
pub(crate) fn unknown_format() -> Fields {
    Fields::from_iter([FORMAT])
}

/// The altered fields of a dead letter whose bytes do not have its message's digest.
pub(crate) fn other_payload() -> Fields {
    Fields::from_iter([DEAD_LETTER_COLUMNS[1]])
}
