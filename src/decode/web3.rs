//! Messages of the monitor application: one web3.js 1.x event log each, plus `capture_time`.
//!
//! `capture_time` is cut to two fraction digits and carries no zone; it is UTC and may be absent.
//! Unknown fields are kept, because the whole text is.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use super::json::{self, Castable, Opaque, Text};
use super::quantity::{PlainQuantity, Quantity};
use super::time;
use crate::event::{ContractEvent, Decoded, EventText, Fields, IdentityRecipe, Reason, Rejection, Status};
use crate::record::{Digest, Digester};

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Log<'a> {
    #[serde(borrow)]
    transaction_hash: Option<Text<'a>>,
    #[serde(borrow)]
    event: Option<Text<'a>>,
    #[serde(borrow)]
    signature: Option<Text<'a>>,
    #[serde(borrow)]
    address: Option<Text<'a>>,
    #[serde(borrow)]
    block_hash: Option<Text<'a>>,
    block_number: Option<Quantity>,
    log_index: Option<Quantity>,
    #[serde(default)]
    removed: Option<bool>,
    #[serde(borrow, rename = "capture_time")]
    capture_time: Option<Text<'a>>,
    #[serde(borrow)]
    raw: Option<Raw<'a>>,
    // A plain log (web3.eth.getPastLogs) has them at the top.
    #[serde(borrow)]
    topics: Option<Vec<Opaque<'a>>>,
    #[serde(borrow)]
    data: Option<Opaque<'a>>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    topics: Option<Vec<Opaque<'a>>>,
    #[serde(borrow)]
    data: Option<Opaque<'a>>,
}

/// The same log, read from a text that `jsonb` surely takes, as nearly all are: judged while it is parsed, which costs
/// less than to look at the text again.
struct Usual<'a>(Log<'a>);

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Key {
    TransactionHash,
    Event,
    Signature,
    Address,
    BlockHash,
    BlockNumber,
    LogIndex,
    Removed,
    #[serde(rename = "capture_time")]
    CaptureTime,
    Raw,
    Topics,
    Data,
    #[serde(other)]
    Other,
}

/// What else is in it would be taken unseen.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UsualRaw<'a> {
    #[serde(borrow)]
    topics: Option<Vec<Opaque<'a>>>,
    #[serde(borrow)]
    data: Option<Opaque<'a>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Usual<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UsualVisitor;
        impl<'de> Visitor<'de> for UsualVisitor {
            type Value = Usual<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event log")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
                let (mut log, mut seen) = (Log::default(), 0_u16);
                while let Some(key) = object.next_key::<Key>()? {
                    let bit = 1 << key as u16;
                    if key != Key::Other && seen & bit != 0 {
                        return Err(A::Error::custom("a field that is there twice"));
                    }
                    seen |= bit;
                    match key {
                        Key::TransactionHash => log.transaction_hash = object.next_value()?,
                        Key::Event => log.event = object.next_value()?,
                        Key::Signature => log.signature = object.next_value()?,
                        Key::Address => log.address = object.next_value()?,
                        Key::BlockHash => log.block_hash = object.next_value()?,
                        Key::BlockNumber => log.block_number = plain(&mut object)?,
                        Key::LogIndex => log.log_index = plain(&mut object)?,
                        Key::Removed => log.removed = object.next_value()?,
                        Key::CaptureTime => log.capture_time = object.next_value()?,
                        Key::Raw => {
                            let raw: Option<UsualRaw> = object.next_value()?;
                            log.raw = raw.map(|UsualRaw { topics, data }| Raw { topics, data });
                        }
                        Key::Topics => log.topics = object.next_value()?,
                        Key::Data => log.data = object.next_value()?,
                        Key::Other => {
                            object.next_value::<Castable>()?;
                        }
                    }
                }
                if !log.opaque().all(Opaque::is_text) {
                    return Err(A::Error::custom("topics or data that may hold any value"));
                }
                Ok(Usual(log))
            }
        }
        deserializer.deserialize_map(UsualVisitor)
    }
}

fn plain<'de, A: MapAccess<'de>>(object: &mut A) -> Result<Option<Quantity>, A::Error> {
    Ok(object.next_value::<Option<PlainQuantity>>()?.map(|PlainQuantity(quantity)| quantity))
}

impl<'a> Log<'a> {
    fn opaque(&self) -> impl Iterator<Item = &Opaque<'a>> {
        let (raw_topics, raw_data) = self.raw.as_ref().map_or((None, None), |r| (r.topics.as_ref(), r.data.as_ref()));
        let topics = raw_topics.into_iter().chain(&self.topics).flatten();
        topics.chain(raw_data).chain(&self.data)
    }
}

pub(super) fn decode<'a>(text: &'a str, recipe: &IdentityRecipe) -> Result<Decoded<'a>, Rejection> {
    match text.trim_start().as_bytes().first() {
        Some(b'{') => event(text, recipe).map(|event| Decoded::Events(vec![event])),
        _ => no_object(text),
    }
}

/// An empty list holds no event; any other JSON text, and any other text, is a mistake.
fn no_object(text: &str) -> Result<Decoded<'_>, Rejection> {
    let value: &serde_json::value::RawValue =
        serde_json::from_str(text).map_err(|error| json::rejection(text, &error))?;
    let inner = value.get().strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    match inner {
        Some(items) if items.trim().is_empty() => Ok(Decoded::Nothing),
        _ => Err(Rejection::new(Reason::NotAnEvent, "the value is JSON but not an object")),
    }
}

fn event<'a>(text: &'a str, recipe: &IdentityRecipe) -> Result<ContractEvent<'a>, Rejection> {
    let (log, is_castable): (Log<'a>, bool) = match json::usual(text) {
        Some(Usual(log)) => (log, true),
        None => (serde_json::from_str(text).map_err(|error| json::rejection(text, &error))?, false),
    };
    let (topics, data) = match log.raw {
        Some(raw) => (raw.topics.or(log.topics), raw.data.or(log.data)),
        None => (log.topics, log.data),
    };
    let fields = Fields {
        txn: filled(log.transaction_hash)
            .ok_or_else(|| Rejection::new(Reason::MissingTransaction, "no transactionHash"))?,
        event_type: filled(log.event)
            .or_else(|| filled(log.signature))
            .or_else(|| filled(topics.as_ref()?.first()?.text()))
            .ok_or_else(|| Rejection::new(Reason::MissingEventType, "no event, signature or topics[0]"))?,
        block_number: log.block_number.map(|q| q.0),
        block_hash: log.block_hash.map(|t| t.0),
        log_index: log.log_index.map(|q| log_index(q.0)).transpose()?,
        address: log.address.map(|t| t.0),
    };
    let identity = recipe.identity(&fields).map_err(|field| {
        Rejection::new(Reason::MissingIdentityField, format!("identity.fields asks for {}", field.name()))
    })?;
    Ok(ContractEvent {
        identity,
        content: content(&fields, topics.as_deref(), data.as_ref()),
        captured_at: log.capture_time.map(|t| time::capture_time(&t.0)).transpose()?,
        status: if log.removed == Some(true) { Status::Removed } else { Status::Confirmed },
        text: if is_castable { EventText::Json(text) } else { json::event_text(text)? },
        fields,
    })
}

fn filled(text: Option<Text<'_>>) -> Option<Cow<'_, str>> {
    text.map(|t| t.0).filter(|t| !t.is_empty())
}

fn log_index(index: i64) -> Result<i32, Rejection> {
    i32::try_from(index).map_err(|_| Rejection::new(Reason::BadField, format!("logIndex {index} exceeds 32 bits")))
}

/// Block hash, log index, address, topics and data; nothing else makes two occurrences differ.
fn content(fields: &Fields<'_>, topics: Option<&[Opaque<'_>]>, data: Option<&Opaque<'_>>) -> Digest {
    let mut digester = Digester::default();
    digester.lower_case(fields.block_hash.as_deref());
    digester.part(fields.log_index.map(|n| n.to_string()).as_deref().map(str::as_bytes));
    digester.lower_case(fields.address.as_deref()).lower_case(data.map(|d| d.0));
    for topic in topics.unwrap_or_default() {
        digester.lower_case(Some(topic.0));
    }
    digester.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::CaptureTime;
    use proptest::prelude::*;

    fn decoded(text: &str) -> Result<ContractEvent<'_>, Rejection> {
        match decode(text, &IdentityRecipe::default())? {
            Decoded::Events(mut events) => Ok(events.pop().expect("one event")),
            other => panic!("no event: {other:?}"),
        }
    }

    fn reason(text: &str) -> Reason {
        decoded(text).expect_err("rejected").reason
    }

    const BASE: &str = r#"{"transactionHash":"0xAb","event":"Won","blockNumber":"0x1000","logIndex":"7","capture_time":"2018-11-07T12:34:56.78","raw":{"data":"0x","topics":["0x01"]},"more":[1]"#;

    #[test]
    fn messages_of_the_monitor_are_understood() {
        for line in include_str!("../../tests/data/web3-lottery-events.ndjson").lines() {
            let event = decoded(line).expect("an event of the monitor");
            assert_eq!(event.fields.event_type, "RedeemedLotttery");
            assert_eq!(event.fields.log_index, Some(2));
            assert_eq!(event.captured_at, None);
            assert_eq!(event.text, EventText::Json(line));
        }
    }

    #[test]
    fn a_capture_time_without_a_zone_is_utc_and_numbers_may_be_text() {
        let text = format!("{BASE}}}");
        let event = decoded(&text).expect("an event");
        let captured_at = event.captured_at.map(CaptureTime::as_microseconds);
        assert_eq!(captured_at, Some(1_541_594_096_780_000));
        assert_eq!((event.fields.block_number, event.fields.log_index), (Some(4096), Some(7)));
        assert_eq!(event.fields.txn, "0xAb", "stored as it came");
    }

    #[test]
    fn content_is_block_log_address_topics_and_data_only() {
        let content = |extra: &str| decoded(&format!("{BASE}{extra}}}")).expect("an event").content;
        assert_eq!(content(""), content(r#","lottery_sig":"0x1","removed":true"#));
        assert_ne!(content(""), content(r#","blockHash":"0x1""#));
        assert_ne!(content(""), content(r#","address":"0x1""#));
        assert_eq!(content(r#","address":"0xAA""#), content(r#","address":"0xaa""#));
    }

    #[test]
    fn an_event_without_a_name_goes_by_signature_then_by_first_topic() {
        let event = decoded(r#"{"transactionHash":"0x1","signature":"0x5","topics":["0x6"]}"#).expect("an event");
        assert_eq!(event.fields.event_type, "0x5");
        let event = decoded(r#"{"transactionHash":"0x1","event":null,"topics":["0x6"]}"#).expect("an event");
        assert_eq!(event.fields.event_type, "0x6");
    }

    #[test]
    fn what_is_no_event_is_rejected_by_kind() {
        assert_eq!(reason(r#"{"event":"A"}"#), Reason::MissingTransaction);
        assert_eq!(reason(r#"{"transactionHash":"","event":"A"}"#), Reason::MissingTransaction);
        assert_eq!(reason(r#"{"transactionHash":"0x1"}"#), Reason::MissingEventType);
        assert_eq!(reason(r#"{"transactionHash":1,"event":"A"}"#), Reason::BadField);
        assert_eq!(reason(r#"{"transactionHash":"0x1","event":"A","logIndex":4294967296}"#), Reason::BadField);
        assert_eq!(reason(r#"{"transactionHash":"0x1","event":"A\u0000"}"#), Reason::BadField);
        assert_eq!(
            reason(r#"{"transactionHash":"0x1","event":"A","capture_time":"+300000-01-01T00:00:00"}"#),
            Reason::BadField
        );
        assert_eq!(reason(r#"[{"transactionHash":"0x1","event":"A"}]"#), Reason::NotAnEvent);
        assert_eq!(reason("17"), Reason::NotAnEvent);
    }

    #[test]
    fn an_empty_list_holds_nothing() {
        assert!(matches!(decode(" [ ] ", &IdentityRecipe::default()), Ok(Decoded::Nothing)));
    }

    #[test]
    fn valid_json_that_jsonb_refuses_is_an_event_kept_raw() {
        let text = format!(r#"{BASE},"note":"\u0000"}}"#);
        assert_eq!(decoded(&text).expect("an event").text, EventText::Raw(&text));
        let text = r#"{"transactionHash":"0x1","event":"A","raw":{"data":"\ud800","topics":["\u0000"]}}"#;
        assert_eq!(decoded(text).expect("no column holds data or topics").text, EventText::Raw(text));
        assert_eq!(reason(r#"{"transactionHash":"0x1","event":"A","address":"\ud800"}"#), Reason::BadField);
    }

    /// What is read in one go, after it was compared with what a second look finds.
    fn read_at_once(text: &str) -> Option<Log<'_>> {
        let Usual(log) = json::usual(text)?;
        assert_eq!(serde_json::from_str::<Log<'_>>(text).expect(text), log, "{text}");
        assert_eq!(json::event_text(text).expect(text), EventText::Json(text));
        Some(log)
    }

    #[test]
    fn events_of_the_monitor_need_no_second_look() {
        for line in include_str!("../../tests/data/web3-lottery-events.ndjson").lines() {
            assert!(read_at_once(line).is_some(), "{line}");
        }
        for extra in ["", r#","price":-1.5e-7"#, r#","a":[[{"b":[]}]],"a":null"#, r#","topics":["0x6"],"data":"0x7""#] {
            assert!(read_at_once(&format!("{BASE}{extra}}}")).is_some(), "{extra}");
        }
        assert!(read_at_once(r#"{"raw":[["0x1"],"0x"]}"#).is_some(), "serde takes a list for a struct");
    }

    #[test]
    fn what_jsonb_may_refuse_and_what_stands_twice_gets_a_second_look() {
        for extra in [
            r#""n":1e400"#,
            r#""n":0e-20000"#,
            r#""n":"\n""#,
            r#""topics":[1e400]"#,
            r#""data":[[]]"#,
            r#""event":"B""#,
        ] {
            assert!(read_at_once(&format!("{BASE},{extra}}}")).is_none(), "{extra}");
        }
        assert!(read_at_once(r#"{"raw":{"n":1e400}}"#).is_none());
    }

    const NAMES: &str = "transactionHash|event|signature|address|blockHash|blockNumber|logIndex|removed|capture_time|\
        raw|topics|data|returnValues|id|transaction_hash";
    const VALUES: &str = "null|true|1|-1|0\\.0|1\\.5|1e400|1e-400|0e-20000|12345678901234567890123|\"\"|\"0x[0-9a-fA-F]{0,9}\"|\
        \"[0-9]{1,3}\"|\"1e400\"|\"\\\\n\"|\"\\\\u0000\"|\\[\\]|\\[\"0x1\"\\]|\\[1e400\\]|\\{\\}|\\{\"data\":\"0x1\"\\}|\
        \\{\"topics\":\\[\"0x1\"\\]\\}|\\{\"n\":1e400\\}";

    proptest! {
        #[test]
        fn to_read_at_once_finds_what_a_second_look_finds(fields in prop::collection::vec((NAMES, VALUES), 0..6)) {
            let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            read_at_once(&format!("{{{}}}", fields.join(",")));
        }
    }
}
