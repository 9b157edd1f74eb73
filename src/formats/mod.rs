//! Decodes Kafka records into events. Pure: no clock, no network, no state, and no panic.
//!
//! A record that cannot be decoded becomes a value ([`Decoded::Rejected`]) and is never skipped with a warning, because
//! every offset must have an outcome. Decoding is all or nothing: one event that cannot be decoded rejects its message.
//! Called for each batch, and by `replay`.
//!
//! A format declares the fields that it knows; [`object::read`] reads them in one pass, without building a tree, and
//! skips the others. Two functions, shared by all JSON formats, decide whether PostgreSQL's `jsonb` accepts the whole
//! text of an event: [`object::read`] if it is certain, otherwise [`json::event_text`].

mod json;
mod object;
mod quantity;
mod time;
mod web3;
#[cfg(feature = "failpoints")]
mod web3_list;

use crate::model::batch::{Batch, Slice};
use crate::model::decoded_batch::{DecodedBatch, Message};
use crate::model::event::{Decoded, IdentityRecipe, Reason, Rejection};
use crate::model::record::Record;

/// A message format; each producer has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Event logs as web3.js 1.x returns them, one in each message, with an additional `capture_time`.
    Web3,
    /// For tests only: lists of such event logs.
    #[cfg(feature = "failpoints")]
    Web3List,
}

impl Preset {
    const ALL: &[Self] = &[
        Self::Web3,
        #[cfg(feature = "failpoints")]
        Self::Web3List,
    ];

    /// The name in the configuration and in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Web3 => "web3",
            #[cfg(feature = "failpoints")]
            Self::Web3List => "web3_list",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|preset| preset.name() == name)
    }

    /// Whether a message has one event at most, so that the stored text of the event is the whole message.
    pub fn has_one_event(self) -> bool {
        match self {
            Self::Web3 => true,
            #[cfg(feature = "failpoints")]
            Self::Web3List => false,
        }
    }

    /// The names of the presets whose messages have one event at most.
    pub fn names_with_one_event() -> Vec<&'static str> {
        Self::ALL.iter().filter(|preset| preset.has_one_event()).map(|preset| preset.name()).collect()
    }
}

impl TryFrom<String> for Preset {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let names = Self::ALL.iter().map(|preset| preset.name()).collect::<Vec<_>>().join(", ");
        Self::from_name(&name).ok_or_else(|| format!("{name:?} is no preset; write one of {names}"))
    }
}

/// How messages are decoded; built once from the configuration.
#[derive(Debug, Clone)]
pub struct Format {
    pub preset: Preset,
    pub identity: IdentityRecipe,
    /// A longer value is rejected, and its bytes are kept as a dead letter.
    pub max_message_bytes: usize,
}

/// Decodes the messages of a slice, in offset order.
pub fn decode_slice<'a>(format: &Format, slice: &'a Slice) -> impl Iterator<Item = Message<'a>> {
    slice.records.iter().map(move |record| {
        // Decodes and hashes together while the value's bytes are in the CPU cache.
        let (decoded, payload_digest) = (decode(format, record), record.payload_digest());
        Message { slice, record, decoded, payload_digest }
    })
}

/// Decodes a batch if its messages have up to `max_rows` rows together, or if it is a single message. Otherwise returns
/// how many of its first messages do, at least one: the others were not decoded.
pub fn decode_within<'a>(format: &Format, batch: &'a Batch, max_rows: usize) -> Result<DecodedBatch<'a>, usize> {
    let (mut messages, mut rows) = (Vec::with_capacity(batch.message_count()), 0);
    for message in batch.slices().iter().flat_map(|slice| decode_slice(format, slice)) {
        rows += message.decoded.rows();
        if rows > max_rows && !messages.is_empty() {
            return Err(messages.len());
        }
        messages.push(message);
    }
    Ok(DecodedBatch { slices: batch.slices(), messages })
}

/// Decodes a record. The result borrows the record's bytes.
pub fn decode<'a>(format: &Format, record: &'a Record) -> Decoded<'a> {
    match &record.value {
        None => Decoded::Nothing,
        Some(value) => decode_value(format, value).unwrap_or_else(Decoded::Rejected),
    }
}

fn decode_value<'a>(format: &Format, value: &'a [u8]) -> Result<Decoded<'a>, Rejection> {
    if value.is_empty() {
        return Err(Rejection::new(Reason::EmptyValue, "the value has no bytes"));
    }
    if value.len() > format.max_message_bytes {
        let detail = format!("{} bytes, kafka.max_message_bytes is {}", value.len(), format.max_message_bytes);
        return Err(Rejection::new(Reason::TooLarge, detail));
    }
    // Checks the whole text, not only the fields that are read, because PostgreSQL stores the whole text.
    let text = simdutf8::compat::from_utf8(value).map_err(|e| Rejection::new(Reason::InvalidUtf8, e.to_string()))?;
    match format.preset {
        Preset::Web3 => web3::decode(text, &format.identity),
        #[cfg(feature = "failpoints")]
        Preset::Web3List => web3_list::decode(text, &format.identity),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn format() -> Format {
        Format { preset: Preset::Web3, identity: IdentityRecipe::default(), max_message_bytes: 1 << 20 }
    }

    fn record(value: Option<&[u8]>) -> Record {
        Record { value: value.map(<[u8]>::to_vec), ..Record::tombstone(0) }
    }

    fn reason(value: &[u8]) -> Option<Reason> {
        match decode(&format(), &record(Some(value))) {
            Decoded::Rejected(rejection) => Some(rejection.reason),
            _ => None,
        }
    }

    #[test]
    fn a_tombstone_contains_no_event_and_an_empty_value_is_rejected() {
        assert!(matches!(decode(&format(), &record(None)), Decoded::Nothing));
        assert_eq!(reason(b""), Some(Reason::EmptyValue));
    }

    #[test]
    fn bytes_that_are_not_json_are_rejected_with_the_kind_of_the_error() {
        assert_eq!(reason(b"\xff\xfe"), Some(Reason::InvalidUtf8));
        assert_eq!(
            reason(b"{\"transactionHash\":\"0x1\",\"event\":\"A\",\"x\":\"\xc3\x28\"}"),
            Some(Reason::InvalidUtf8)
        );
        assert_eq!(reason(b"{\"transactionHash\":\"0x"), Some(Reason::Truncated));
        assert_eq!(reason(b"<xml/>"), Some(Reason::NotJson));
        assert_eq!(reason(b"{\"a\":\"\0\"}"), Some(Reason::NotJson));
        assert_eq!(reason(b"{} {}"), Some(Reason::NotJson));
        assert_eq!(reason("\u{feff}{}".as_bytes()), Some(Reason::NotJson));
        let deep = format!(
            "{{\"transactionHash\":\"0x1\",\"event\":\"A\",\"x\":{}{}}}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        assert_eq!(reason(deep.as_bytes()), Some(Reason::TooDeep));
        assert_eq!(reason(&vec![b' '; (1 << 20) + 1]), Some(Reason::TooLarge));
    }

    proptest! {
        #[test]
        fn the_decoder_never_panics_on_random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            decode(&format(), &record(Some(&bytes)));
        }

        #[test]
        fn the_decoder_never_panics_on_text_similar_to_an_event(
            field in "transactionHash|event|blockNumber|logIndex|raw|removed|capture_time",
            value in "null|true|-1|1e400|\"\"|\"0x\"|\"\\\\u0000\"|\\[\\]|\\{\\}|\"[a-z0-9:.-]{0,30}\"",
        ) {
            let text = format!("{{\"transactionHash\":\"0x1\",\"{field}_\":1,\"{field}\":{value}}}");
            decode(&format(), &record(Some(text.as_bytes())));
        }
    }
}
