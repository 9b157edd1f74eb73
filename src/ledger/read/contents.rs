//! Rows held against the message that brought them, field by field. Pure: `compare` reads both and asks here.
//!
//! What a row must hold is said by the functions that write it ([`crate::ledger::write::event_rows`],
//! [`crate::ledger::write::outcome_rows`]), so that there is one place for that.
//! Ids are the ledger's own and prove themselves by what they name; the status of an occurrence depends on other
//! messages, so one that is not its own message's is only noted here.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use tokio_postgres::Row;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{FromSql, Type};

use crate::ledger::write::effects::MessageOutcome;
use crate::ledger::write::{event_rows, outcome_rows};
use crate::model::decoded_batch::Message;
use crate::model::event::{ContractEvent, Decoded, Outcome, Reason, Status};
use crate::model::offset::Offset;
use crate::model::record::Digest;
use crate::postgres::field::{Field, RowSink};

/// Columns of events and conflicts as `event_rows::encode` writes them; an event's first is its id, a conflict's its winner's.
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

/// Columns of dead letters as `outcome_rows::encode_letter` writes them.
const DEAD_LETTER_COLUMNS: [&str; 4] =
    ["dead_letters.message_key", "dead_letters.payload", "dead_letters.headers", "dead_letters.message_time"];
const REASON: &str = "dead_letters.reason";
const DETAIL: &str = "dead_letters.detail";
const FORMAT: &str = "format_history.format";

/// Which fields of which relations are not what the message says, or what the ledger says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fields(BTreeSet<&'static str>);

impl Fields {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether rows could not be compared, because this program does not know the format that wrote them.
    pub fn are_of_unknown_format(&self) -> bool {
        self.0.contains(FORMAT)
    }

    /// What stands for all fields of these relations.
    pub fn of_relations(relations: &[&'static str]) -> Self {
        Self(relations.iter().copied().collect())
    }

    /// Whether a field of this relation is among them.
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

/// An occurrence with another status than its own message gives it: some other message must have changed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspect {
    pub position_id: i32,
    pub offset: Offset,
    pub(crate) relation: Relation,
    /// The event that holds the identity.
    pub(crate) winner_id: i64,
    /// What its own message gives it.
    pub(crate) own: Status,
}

impl Suspect {
    pub fn fields(self) -> Fields {
        self.relation.status()
    }
}

/// Where an occurrence is kept.
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

/// All rows of one message. Events and conflicts have the columns of [`EVENTS`], outcomes those of [`OUTCOMES`], letters
/// those of [`LETTERS`], the reason, the offset and the detail.
#[derive(Debug, Default)]
pub(crate) struct Rows<'a> {
    pub(crate) outcome: Option<&'a Row>,
    pub(crate) events: Vec<&'a Row>,
    pub(crate) conflicts: Vec<&'a Row>,
    pub(crate) letter: Option<&'a Row>,
}

/// What the ledger holds under identities that messages name without having brought them.
#[derive(Debug, Default)]
pub(crate) struct StoredRows {
    /// By identity: id and content.
    pub(crate) winners: HashMap<Digest, (i64, Digest)>,
    /// By id, of events that outcomes name.
    pub(crate) identities: HashMap<i64, Digest>,
    pub(crate) conflicts: HashSet<(Digest, Digest)>,
}

/// What was found of one message.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    pub(crate) fields: Fields,
    pub(crate) suspects: Vec<Suspect>,
    /// Some event of it has other content than its winner, and is kept nowhere.
    pub(crate) lacks_conflict: bool,
}

/// A value as it came over the wire.
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

/// Takes one row, to be compared with what is stored.
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

    /// The columns in which a row differs.
    fn differing<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = usize> + 'a {
        (0..self.fields.len()).filter(|column| raw(row, *column) != self.get(*column))
    }
}

/// Identities of a message's events, and events that its outcome names, which must be looked up.
pub(crate) fn needed_rows<'a>(rows: &Rows<'_>, decoded: &'a Decoded<'_>) -> (Vec<&'a ContractEvent<'a>>, Option<i64>) {
    let own: HashSet<i32> = rows.events.iter().map(|row| row.get(EVENT_NO)).collect();
    let named: Option<i64> = rows.outcome.and_then(|row| row.get(EVENT_ID));
    let is_own = rows.events.iter().any(|row| named == Some(row.get(ID)));
    let Decoded::Events(events) = decoded else { return (Vec::new(), named.filter(|_| !is_own)) };
    let elsewhere = events.iter().enumerate().filter(|(no, _)| !own.contains(&number(*no))).map(|(_, event)| event);
    (elsewhere.collect(), named.filter(|_| !is_own))
}

/// Holds a message's rows against it. `is_exact`: they were written by this very program, which decides today as it did.
pub(crate) fn judge(message: &Message<'_>, rows: &Rows<'_>, held: &StoredRows, is_exact: bool) -> Judged {
    let mut judged = Judged::default();
    let Some(outcome) = rows.outcome else { return judged };
    let name: &str = outcome.get(STATE);
    let Some(state) = Outcome::ALL.into_iter().find(|outcome| outcome.name() == name) else {
        judged.fields.add(OUTCOME_COLUMNS[STATE]);
        return judged;
    };
    let told = MessageOutcome { message: 0, outcome: state, event_id: outcome.get(EVENT_ID) };
    let mut wanted = ExpectedRow::default();
    outcome_rows::encode_outcome(&mut wanted, std::slice::from_ref(message), &told);
    wanted.differing(outcome).for_each(|column| judged.fields.add(OUTCOME_COLUMNS[column]));
    if let Some(letter) = rows.letter {
        outcome_rows::encode_letter(&mut wanted, message.record);
        wanted.differing(letter).for_each(|column| judged.fields.add(DEAD_LETTER_COLUMNS[column]));
    }
    match &message.decoded {
        Decoded::Events(events) => judge_events(message, events, state, rows, held, is_exact, &mut judged),
        Decoded::Nothing | Decoded::Rejected(_) => {
            rows.conflicts.iter().for_each(|_| judged.fields.add(CONFLICT_COLUMNS[EVENT_NO]));
            if is_exact {
                not_an_event(&message.decoded, state, rows, &mut judged.fields);
            }
        }
    }
    judged
}

/// The reason for which a letter is kept, which a decoder alone cannot give.
fn is_beyond_decoder(reason: &str) -> bool {
    [Reason::TooLarge, Reason::RefusedByPostgres, Reason::IdentityCollision].iter().any(|r| r.name() == reason)
}

fn reason<'a>(rows: &Rows<'a>) -> Option<&'a str> {
    rows.letter.map(|letter| letter.get(DEAD_LETTER_COLUMNS.len()))
}

fn not_an_event(decoded: &Decoded<'_>, state: Outcome, rows: &Rows<'_>, fields: &mut Fields) {
    let expected = if matches!(decoded, Decoded::Nothing) { Outcome::Ignored } else { Outcome::Rejected };
    let too_large = state == Outcome::Rejected && reason(rows) == Some(Reason::TooLarge.name());
    if state != expected && !too_large {
        fields.add(OUTCOME_COLUMNS[STATE]);
    }
    let (Decoded::Rejected(rejection), Outcome::Rejected, Some(letter)) = (decoded, state, rows.letter) else { return };
    if too_large {
        return;
    }
    if letter.get::<_, &str>(DEAD_LETTER_COLUMNS.len()) != rejection.reason.name() {
        fields.add(REASON);
    } else if letter.get::<_, &str>(DEAD_LETTER_COLUMNS.len() + 2) != outcome_rows::storable(&rejection.detail) {
        fields.add(DETAIL);
    }
}

fn judge_events(
    message: &Message<'_>,
    events: &[ContractEvent<'_>],
    state: Outcome,
    rows: &Rows<'_>,
    held: &StoredRows,
    is_exact: bool,
    judged: &mut Judged,
) {
    let has_events = matches!(state, Outcome::Stored | Outcome::Processed | Outcome::Removed);
    if !has_events {
        let is_explained = state == Outcome::Rejected && reason(rows).is_none_or(is_beyond_decoder);
        if is_exact && !is_explained {
            judged.fields.add(OUTCOME_COLUMNS[STATE]);
        }
        return;
    }
    for (relation, stored) in [(Relation::Events, &rows.events), (Relation::Conflicts, &rows.conflicts)] {
        for row in stored {
            match usize::try_from(row.get::<_, i32>(EVENT_NO)).ok().filter(|no| *no < events.len()) {
                Some(no) => occurrence(message, no, &events[no], relation, row, held, judged),
                None => judged.fields.add(relation.names()[EVENT_NO]),
            }
        }
    }
    let kept: HashSet<i32> = rows.events.iter().chain(&rows.conflicts).map(|row| row.get(EVENT_NO)).collect();
    for (_, event) in events.iter().enumerate().filter(|(no, _)| !kept.contains(&number(*no))) {
        let differs = held.winners.get(&event.identity).is_some_and(|(_, content)| *content != event.content);
        judged.lacks_conflict |= differs && !held.conflicts.contains(&(event.identity, event.content));
    }
    let brought: Vec<i64> = rows
        .events
        .iter()
        .filter(|row| events.get(row.get::<_, i32>(EVENT_NO) as usize).is_some_and(|e| e.status == Status::Confirmed))
        .map(|row| row.get(ID))
        .collect();
    state_and_reference(events, state, &brought, rows, held, judged);
}

/// A message that brought an event is `stored`, else one that takes one back is `removed`, else it is `processed`. It
/// names an event that it brought, else one of an identity of its own. (That there is none is told of otherwise.)
fn state_and_reference(
    events: &[ContractEvent<'_>],
    state: Outcome,
    brought: &[i64],
    rows: &Rows<'_>,
    held: &StoredRows,
    judged: &mut Judged,
) {
    let takes_back = events.iter().any(|event| event.status == Status::Removed);
    let expected = match (brought.is_empty(), takes_back) {
        (false, _) => Outcome::Stored,
        (true, true) => Outcome::Removed,
        (true, false) => Outcome::Processed,
    };
    if state != expected && !(state == Outcome::Stored && rows.events.is_empty()) {
        judged.fields.add(OUTCOME_COLUMNS[STATE]);
    }
    let Some(named) = rows.outcome.and_then(|row| row.get::<_, Option<i64>>(EVENT_ID)) else { return };
    let own_identity = rows.events.iter().find(|row| row.get::<_, i64>(ID) == named).map(|row| row.get(IDENTITY));
    let identity: Option<Digest> = own_identity.or_else(|| held.identities.get(&named).copied());
    let is_own = identity.is_none_or(|identity| events.iter().any(|event| event.identity == identity));
    if !is_own || (identity.is_some() && !brought.is_empty() && !brought.contains(&named)) {
        judged.fields.add(OUTCOME_COLUMNS[EVENT_ID]);
    }
}

fn occurrence(
    message: &Message<'_>,
    no: usize,
    event: &ContractEvent<'_>,
    relation: Relation,
    row: &Row,
    held: &StoredRows,
    judged: &mut Judged,
) {
    let (id, names) = (row.get::<_, i64>(ID), relation.names());
    let mut wanted = ExpectedRow::default();
    event_rows::encode_expected(&mut wanted, message, no, id);
    wanted.differing(row).filter(|column| *column != STATUS).for_each(|column| judged.fields.add(names[column]));
    if relation == Relation::Conflicts && held.winners.get(&event.identity).is_some_and(|(winner, _)| *winner != id) {
        judged.fields.add(names[ID]);
    }
    let (position_id, offset) = (message.slice.position_id, message.record.offset);
    let own = event.status;
    match Status::from_name(row.get(STATUS)) {
        Some(status) if status == own => {}
        Some(_) => judged.suspects.push(Suspect { position_id, offset, relation, winner_id: id, own }),
        None => judged.fields.add(names[STATUS]),
    }
}

/// A row whose message Kafka no longer has, held against the event's own text: `message` is decoded from that.
pub(crate) fn judge_text(message: &Message<'_>, relation: Relation, row: &Row, recorded: Option<Digest>) -> Judged {
    let mut judged = Judged::default();
    let names = relation.names();
    match &message.decoded {
        Decoded::Events(events) if !events.is_empty() => {
            occurrence(message, 0, &events[0], relation, row, &StoredRows::default(), &mut judged);
        }
        _ => judged.fields.add(names[INFO]),
    }
    // The text of the only event of a message is the message.
    if recorded != message.payload_digest {
        judged.fields.add(names[INFO]);
    }
    judged
}

/// The text of an event as it is stored.
pub(crate) fn text(row: &Row) -> Option<Vec<u8>> {
    raw(row, INFO).or_else(|| raw(row, INFO + 1)).map(<[u8]>::to_vec)
}

fn number(no: usize) -> i32 {
    i32::try_from(no).expect("a message holds fewer than 2^31 events")
}

/// What is altered of a relation's text that cannot even be read.
pub(crate) fn no_text(relation: Relation) -> Fields {
    Fields::from_iter([relation.names()[INFO]])
}

/// What was written in a format that this program does not know: nothing can be said of it.
pub(crate) fn unknown_format() -> Fields {
    Fields::from_iter([FORMAT])
}

/// A dead letter whose bytes are not those of its message's digest.
pub(crate) fn other_payload() -> Fields {
    Fields::from_iter([DEAD_LETTER_COLUMNS[1]])
}
