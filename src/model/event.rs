//! The content of a message: contract events with their identity and content digest, and the message's outcome.
//!
//! Pure values: `formats` makes them and `ledger` stores them.

use std::borrow::Cow;

use crate::model::record::{Digest, Digester, lower_case};

/// The outcome of a message. Every message that is read gets exactly one, and it is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The message contains at least one event that was not stored before.
    Stored,
    /// All events of the message were already stored by other messages.
    Processed,
    /// The message could not be decoded or stored; its bytes are kept as a dead letter.
    Rejected,
    /// The message was decoded and contains no event.
    Ignored,
    /// The message takes an event back (a chain reorganisation).
    Removed,
}

impl Outcome {
    pub const ALL: [Self; 5] = [Self::Stored, Self::Processed, Self::Rejected, Self::Ignored, Self::Removed];

    /// The name in `kafka_events_received.handling_state` and in `gapless_messages_total{outcome}`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Processed => "processed",
            Self::Rejected => "rejected",
            Self::Ignored => "ignored",
            Self::Removed => "removed",
        }
    }
}

/// The status of an occurrence of an event. No format has `unconfirmed` events yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Confirmed,
    Removed,
}

impl Status {
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Confirmed, Self::Removed].into_iter().find(|status| status.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Removed => "removed",
        }
    }
}

/// Why a message was rejected: the bounded set of values of `dead_letters.reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The value has zero bytes. A null value is a tombstone and is ignored.
    EmptyValue,
    InvalidUtf8,
    /// The JSON text ends in the middle of its value.
    Truncated,
    NotJson,
    /// Nested deeper than 128 levels.
    TooDeep,
    /// The text is JSON but not an event of the configured format.
    NotAnEvent,
    /// The event has no transaction hash.
    MissingTransaction,
    /// The event has no event name, no signature and no first topic.
    MissingEventType,
    /// A field that `identity.fields` names is absent.
    MissingIdentityField,
    /// A field has a value of the wrong type or out of range.
    BadField,
    /// The value is longer than `kafka.max_message_bytes`.
    TooLarge,
    /// PostgreSQL refused the row (SQLSTATE class 22 or 54).
    RefusedByPostgres,
    /// Another event has the same 16-byte identity digest. This is not expected to happen.
    IdentityCollision,
}

impl Reason {
    pub const ALL: [Self; 13] = [
        Self::EmptyValue,
        Self::InvalidUtf8,
        Self::Truncated,
        Self::NotJson,
        Self::TooDeep,
        Self::NotAnEvent,
        Self::MissingTransaction,
        Self::MissingEventType,
        Self::MissingIdentityField,
        Self::BadField,
        Self::TooLarge,
        Self::RefusedByPostgres,
        Self::IdentityCollision,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::EmptyValue => "empty_value",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::Truncated => "truncated",
            Self::NotJson => "not_json",
            Self::TooDeep => "too_deep",
            Self::NotAnEvent => "not_an_event",
            Self::MissingTransaction => "missing_transaction",
            Self::MissingEventType => "missing_event_type",
            Self::MissingIdentityField => "missing_identity_field",
            Self::BadField => "bad_field",
            Self::TooLarge => "too_large",
            Self::RefusedByPostgres => "refused_by_postgres",
            Self::IdentityCollision => "identity_collision",
        }
    }
}

/// Why a message could not be decoded or stored; `detail` describes the problem in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub reason: Reason,
    pub detail: String,
}

impl Rejection {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// The result of decoding a message. It borrows from the record.
#[derive(Debug, Clone)]
pub enum Decoded<'a> {
    Events(Vec<ContractEvent<'a>>),
    /// The message contains no event: a tombstone or an empty list.
    Nothing,
    Rejected(Rejection),
}

impl<'a> Decoded<'a> {
    /// The events of the message; none if it was rejected.
    pub fn events(&self) -> &[ContractEvent<'a>] {
        match self {
            Self::Events(events) => events,
            Self::Nothing | Self::Rejected(_) => &[],
        }
    }

    /// The number of rows that the message takes in the largest table: of its events, or its outcome.
    pub fn rows(&self) -> usize {
        self.events().len().max(1)
    }
}

/// The event's JSON text exactly as the producer wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventText<'a> {
    /// A cast to `jsonb` succeeds.
    Json(&'a str),
    /// Valid JSON that `jsonb` refuses: `event_raw` holds its bytes, and `event_info` is null.
    Raw(&'a str),
}

/// The fields of an event from which an identity can be computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields<'a> {
    /// Transaction hash as the producer wrote it; hashes are compared in lower case.
    pub txn: Cow<'a, str>,
    pub event_type: Cow<'a, str>,
    pub block_number: Option<i64>,
    pub block_hash: Option<Cow<'a, str>>,
    pub log_index: Option<i32>,
    pub address: Option<Cow<'a, str>>,
}

/// When the monitor saw an event: microseconds since 1970, the resolution of PostgreSQL's timestamptz. jiff's Timestamp
/// is not used because it ends one day before the end of the year 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureTime(i64);

impl CaptureTime {
    pub fn from_microseconds(since_1970: i64) -> Self {
        Self(since_1970)
    }

    pub fn as_microseconds(self) -> i64 {
        self.0
    }
}

/// One contract event.
#[derive(Debug, Clone)]
pub struct ContractEvent<'a> {
    pub fields: Fields<'a>,
    pub captured_at: Option<CaptureTime>,
    /// `Removed` if the message takes the event back.
    pub status: Status,
    pub text: EventText<'a>,
    pub identity: Digest,
    pub content: Digest,
}

/// A field that can be part of an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdentityField {
    Txn,
    EventType,
    BlockNumber,
    BlockHash,
    LogIndex,
    Address,
}

impl IdentityField {
    pub const ALL: [Self; 6] =
        [Self::Txn, Self::EventType, Self::BlockNumber, Self::BlockHash, Self::LogIndex, Self::Address];

    pub fn name(self) -> &'static str {
        match self {
            Self::Txn => "txn",
            Self::EventType => "event_type",
            Self::BlockNumber => "block_number",
            Self::BlockHash => "block_hash",
            Self::LogIndex => "log_index",
            Self::Address => "address",
        }
    }

    /// The field's canonical text: hex digits in lower case, numbers in decimal; `None` if the event lacks the field.
    fn text<'a>(self, fields: &'a Fields<'_>) -> Option<Cow<'a, str>> {
        match self {
            Self::Txn => Some(lower_case(&fields.txn)),
            Self::EventType => Some(Cow::Borrowed(&fields.event_type)),
            Self::BlockNumber => fields.block_number.map(|n| n.to_string().into()),
            Self::BlockHash => fields.block_hash.as_deref().map(lower_case),
            Self::LogIndex => fields.log_index.map(|n| n.to_string().into()),
            Self::Address => fields.address.as_deref().map(lower_case),
        }
    }
}

/// The fields that form an event's identity, in order. A ledger has one recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityRecipe(Vec<IdentityField>);

impl IdentityRecipe {
    /// `None` if the list is empty, names a field twice or lacks `txn`: without the transaction hash, events of
    /// different transactions would have the same identity.
    pub fn new(fields: Vec<IdentityField>) -> Option<Self> {
        let twice = fields.iter().enumerate().any(|(at, f)| fields[..at].contains(f));
        (fields.contains(&IdentityField::Txn) && !twice).then_some(Self(fields))
    }

    /// Parses the text that [`Self::text`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| IdentityField::ALL.into_iter().find(|field| field.name() == name);
        Self::new(text.split(',').map(field).collect::<Option<_>>()?)
    }

    /// The identity digest of an event; `Err` is the field that the event lacks.
    pub fn identity(&self, fields: &Fields<'_>) -> Result<Digest, IdentityField> {
        let mut digester = Digester::default();
        for field in &self.0 {
            let text = field.text(fields).ok_or(*field)?;
            digester.part(Some(text.as_bytes()));
        }
        Ok(digester.finish())
    }

    /// Returns true if two events with the same identity digest also have the same field texts.
    pub fn same(&self, one: &Fields<'_>, other: &Fields<'_>) -> bool {
        self.0.iter().all(|field| field.text(one) == field.text(other))
    }

    /// The form in which the ledger stores its recipe, e.g. `txn,event_type`.
    pub fn text(&self) -> String {
        self.0.iter().map(|f| f.name()).collect::<Vec<_>>().join(",")
    }
}

impl Default for IdentityRecipe {
    /// `(txn, event_type)`, the rule of the first user.
    fn default() -> Self {
        Self(vec![IdentityField::Txn, IdentityField::EventType])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields<'a>(txn: &'a str, event_type: &'a str, log_index: Option<i32>) -> Fields<'a> {
        Fields {
            txn: txn.into(),
            event_type: event_type.into(),
            block_number: None,
            block_hash: None,
            log_index,
            address: None,
        }
    }

    /// A message of small events takes several times its size: this, for each event, is the larger part.
    #[test]
    fn a_decoded_event_takes_at_most_240_bytes_beside_its_text() {
        assert!(size_of::<ContractEvent<'_>>() <= 240, "{} bytes", size_of::<ContractEvent<'_>>());
    }

    #[test]
    fn a_transaction_hash_is_compared_in_lower_case() {
        let recipe = IdentityRecipe::default();
        let (lower, upper) = (fields("0xab", "Won", None), fields("0XAB", "Won", None));
        assert_eq!(recipe.identity(&lower), recipe.identity(&upper));
        assert!(recipe.same(&lower, &upper));
    }

    #[test]
    fn event_names_are_compared_with_their_case() {
        let recipe = IdentityRecipe::default();
        assert_ne!(recipe.identity(&fields("0xab", "won", None)), recipe.identity(&fields("0xab", "Won", None)));
    }

    #[test]
    fn an_event_without_a_field_of_the_recipe_has_no_identity() {
        let recipe = IdentityRecipe::new(vec![IdentityField::Txn, IdentityField::LogIndex]).expect("valid");
        assert_eq!(recipe.identity(&fields("0xab", "Won", None)), Err(IdentityField::LogIndex));
        assert!(recipe.identity(&fields("0xab", "Won", Some(3))).is_ok());
    }

    #[test]
    fn a_recipe_without_the_transaction_is_refused() {
        assert_eq!(IdentityRecipe::new(vec![IdentityField::LogIndex]), None);
        assert_eq!(IdentityRecipe::new(vec![IdentityField::Txn, IdentityField::Txn]), None);
    }
}
