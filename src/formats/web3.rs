//! Messages of the monitor application: one web3.js 1.x event log in each message, with an additional `capture_time`.
//!
//! The monitor writes `capture_time` with two fraction digits and without a zone; it is UTC and may be absent. Unknown
//! fields are kept, because the event's whole text is stored.

use std::borrow::Cow;

use serde::de::{Error, MapAccess, SeqAccess};

use super::json::{self, Opaque, Text};
use super::object::{self, JsonbCheck, Member, Members, Value};
use super::quantity::Quantity;
use super::time;
use crate::model::event::{ContractEvent, Decoded, EventText, Fields, IdentityRecipe, Reason, Rejection, Status};
use crate::model::record::{Digest, Digester};

#[derive(Debug, Default)]
struct Log<'a> {
    transaction_hash: Member<Text<'a>>,
    event: Member<Text<'a>>,
    signature: Member<Text<'a>>,
    address: Member<Text<'a>>,
    block_hash: Member<Text<'a>>,
    block_number: Member<Quantity>,
    log_index: Member<Quantity>,
    removed: Member<bool>,
    capture_time: Member<Text<'a>>,
    raw: Member<Raw<'a>>,
    // A plain log (web3.eth.getPastLogs) has topics and data at the top level.
    topics: Member<Vec<Opaque<'a>>>,
    data: Member<Opaque<'a>>,
}

#[derive(Debug, Default)]
struct Raw<'a> {
    topics: Member<Vec<Opaque<'a>>>,
    data: Member<Opaque<'a>>,
}

impl<'de> Members<'de> for Log<'de> {
    const EXPECTED: &'static str = "an event log";

    fn member<A: MapAccess<'de>>(&mut self, name: &str, value: Value<'_, A>) -> Result<(), A::Error> {
        match name {
            "transactionHash" => value.read(&mut self.transaction_hash),
            "event" => value.read(&mut self.event),
            "signature" => value.read(&mut self.signature),
            "address" => value.read(&mut self.address),
            "blockHash" => value.read(&mut self.block_hash),
            "blockNumber" => value.read(&mut self.block_number),
            "logIndex" => value.read(&mut self.log_index),
            "removed" => value.read(&mut self.removed),
            "capture_time" => value.read(&mut self.capture_time),
            "raw" => value.read_object(&mut self.raw),
            "topics" => value.read(&mut self.topics),
            "data" => value.read(&mut self.data),
            _ => value.pass_over(),
        }
    }
}

impl<'de> Members<'de> for Raw<'de> {
    const EXPECTED: &'static str = "an object with topics and data";

    fn member<A: MapAccess<'de>>(&mut self, name: &str, value: Value<'_, A>) -> Result<(), A::Error> {
        match name {
            "topics" => value.read(&mut self.topics),
            "data" => value.read(&mut self.data),
            _ => value.pass_over(),
        }
    }

    /// Accepts a list of topics and data, in this order.
    fn from_list<A: SeqAccess<'de>>(mut list: A, check: &JsonbCheck) -> Result<Self, A::Error> {
        let missing = |at| A::Error::invalid_length(at, &"a list of topics and data");
        let topics: Option<Vec<Opaque<'de>>> = list.next_element()?.ok_or_else(|| missing(0))?;
        let data: Option<Opaque<'de>> = list.next_element()?.ok_or_else(|| missing(1))?;
        check.value(&topics);
        check.value(&data);
        Ok(Self { topics: topics.into(), data: data.into() })
    }
}

pub(crate) fn decode<'a>(text: &'a str, recipe: &IdentityRecipe) -> Result<Decoded<'a>, Rejection> {
    match text.trim_start().as_bytes().first() {
        Some(b'{') => event(text, recipe).map(|event| Decoded::Events(vec![event])),
        _ => no_object(text),
    }
}

/// An empty list contains no event; every other text is rejected.
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
    let (log, is_castable): (Log<'a>, bool) = object::read(text).map_err(|error| json::rejection(text, &error))?;
    let (topics, data) = match log.raw.value {
        Some(raw) => (raw.topics.value.or(log.topics.value), raw.data.value.or(log.data.value)),
        None => (log.topics.value, log.data.value),
    };
    let fields = Fields {
        txn: non_empty(log.transaction_hash.value)
            .ok_or_else(|| Rejection::new(Reason::MissingTransaction, "no transactionHash"))?,
        event_type: non_empty(log.event.value)
            .or_else(|| non_empty(log.signature.value))
            .or_else(|| non_empty(topics.as_ref()?.first()?.text()))
            .ok_or_else(|| Rejection::new(Reason::MissingEventType, "no event, signature or topics[0]"))?,
        block_number: log.block_number.value.map(|q| q.value),
        block_hash: log.block_hash.value.map(|t| t.0),
        log_index: log.log_index.value.map(|q| log_index(q.value)).transpose()?,
        address: log.address.value.map(|t| t.0),
    };
    let identity = recipe.identity(&fields).map_err(|field| {
        Rejection::new(Reason::MissingIdentityField, format!("identity.fields asks for {}", field.name()))
    })?;
    Ok(ContractEvent {
        identity,
        content: content(&fields, topics.as_deref(), data.as_ref()),
        captured_at: log.capture_time.value.map(|t| time::capture_time(&t.0)).transpose()?,
        status: if log.removed.value == Some(true) { Status::Removed } else { Status::Confirmed },
        text: if is_castable { EventText::Json(text) } else { json::event_text(text)? },
        fields,
    })
}

fn non_empty(text: Option<Text<'_>>) -> Option<Cow<'_, str>> {
    text.map(|t| t.0).filter(|t| !t.is_empty())
}

fn log_index(index: i64) -> Result<i32, Rejection> {
    i32::try_from(index).map_err(|_| Rejection::new(Reason::BadField, format!("logIndex {index} exceeds 32 bits")))
}

/// The content digest: block hash, log index, address, topics and data. Other fields do not make two occurrences
/// differ.
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
    use crate::model::event::CaptureTime;
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
    fn messages_of_the_monitor_are_decoded() {
        for line in include_str!("../../tests/data/web3-lottery-events.ndjson").lines() {
            let event = decoded(line).expect("an event of the monitor");
            assert_eq!(event.fields.event_type, "RedeemedLotttery");
            assert_eq!(event.fields.log_index, Some(2));
            assert_eq!(event.captured_at, None);
            assert_eq!(event.text, EventText::Json(line));
        }
    }

    #[test]
    fn a_capture_time_without_a_zone_is_utc_and_numbers_may_be_strings() {
        let text = format!("{BASE}}}");
        let event = decoded(&text).expect("an event");
        let captured_at = event.captured_at.map(CaptureTime::as_microseconds);
        assert_eq!(captured_at, Some(1_541_594_096_780_000));
        assert_eq!((event.fields.block_number, event.fields.log_index), (Some(4096), Some(7)));
        assert_eq!(event.fields.txn, "0xAb", "stored as the producer wrote it");
    }

    #[test]
    fn only_block_log_address_topics_and_data_change_the_content_digest() {
        let content = |extra: &str| decoded(&format!("{BASE}{extra}}}")).expect("an event").content;
        assert_eq!(content(""), content(r#","lottery_sig":"0x1","removed":true"#));
        assert_ne!(content(""), content(r#","blockHash":"0x1""#));
        assert_ne!(content(""), content(r#","address":"0x1""#));
        assert_eq!(content(r#","address":"0xAA""#), content(r#","address":"0xaa""#));
    }

    #[test]
    fn an_event_without_a_name_is_named_by_its_signature_or_first_topic() {
        let event = decoded(r#"{"transactionHash":"0x1","signature":"0x5","topics":["0x6"]}"#).expect("an event");
        assert_eq!(event.fields.event_type, "0x5");
        let event = decoded(r#"{"transactionHash":"0x1","event":null,"topics":["0x6"]}"#).expect("an event");
        assert_eq!(event.fields.event_type, "0x6");
    }

    #[test]
    fn a_text_that_is_not_an_event_is_rejected_with_the_kind_of_the_error() {
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
    fn an_empty_list_contains_no_event() {
        assert!(matches!(decode(" [ ] ", &IdentityRecipe::default()), Ok(Decoded::Nothing)));
    }

    #[test]
    fn an_event_that_jsonb_refuses_is_kept_raw() {
        let text = format!(r#"{BASE},"note":"\u0000"}}"#);
        assert_eq!(decoded(&text).expect("an event").text, EventText::Raw(&text));
        let text = r#"{"transactionHash":"0x1","event":"A","raw":{"data":"\ud800","topics":["\u0000"]}}"#;
        assert_eq!(decoded(text).expect("no column stores data or topics").text, EventText::Raw(text));
        assert_eq!(reason(r#"{"transactionHash":"0x1","event":"A","address":"\ud800"}"#), Reason::BadField);
    }

    #[test]
    fn a_repeated_known_field_is_rejected_and_a_repeated_unknown_field_is_kept() {
        for twice in [r#""event":"B""#, r#""transactionHash":"0xAb""#, r#""blockNumber":1"#, r#""raw":null"#] {
            let rejection = decoded(&format!("{BASE},{twice}}}")).expect_err(twice);
            assert_eq!(rejection.reason, Reason::BadField, "{twice}");
            assert!(rejection.detail.contains("duplicate field"), "{}", rejection.detail);
        }
        let text = format!(r#"{BASE},"n":1,"n":2}}"#);
        assert_eq!(decoded(&text).expect("an event").text, EventText::Json(&text));
    }

    #[test]
    fn an_integer_is_parsed_by_its_value_and_rejected_if_it_does_not_fit() {
        let with = |number: &str| format!(r#"{{"transactionHash":"0x1","event":"A","blockNumber":{number}}}"#);
        for (number, value) in
            [("17173049.0", 17_173_049), ("1.7173049e7", 17_173_049), ("9223372036854775807", i64::MAX)]
        {
            assert_eq!(decoded(&with(number)).expect(number).fields.block_number, Some(value));
        }
        for number in ["9223372036854775808", "\"0x8000000000000000\"", "1e19", "-1", "1.5", "true", "[1]", "1e131072"]
        {
            assert_eq!(reason(&with(number)), Reason::BadField, "{number}");
        }
        let log_index =
            |number: &str| with("1").replace("blockNumber", "logIndex").replace(":1}", &format!(":{number}}}"));
        assert_eq!(decoded(&log_index("2147483647.0")).expect("it fits").fields.log_index, Some(i32::MAX));
        assert_eq!(reason(&log_index("2147483648")), Reason::BadField);
    }

    #[test]
    fn large_numbers_and_nul_are_kept_raw_in_fields_without_a_column() {
        for extra in [
            r#""n":1e131072"#,
            r#""n":{"a":[0e-16384]}"#,
            r#""topics":["\u0000"]"#,
            r#""topics":[1e131072]"#,
            r#""data":"\udc00""#,
            r#""\u0000":1"#,
        ] {
            let text = format!("{BASE},{extra}}}");
            assert_eq!(decoded(&text).expect(extra).text, EventText::Raw(&text));
        }
        for column in ["address", "blockHash", "signature", "capture_time"] {
            for text in ["\\u0000", "\\ud800", "\\udc00 x"] {
                let message = format!(r#"{{"transactionHash":"0x1","event":"A","{column}":"{text}"}}"#);
                assert_eq!(reason(&message), Reason::BadField, "{message}");
            }
        }
    }

    #[test]
    fn a_message_nested_too_deep_in_any_field_is_rejected() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        for field in ["n", "data", "returnValues"] {
            assert!(decoded(&format!("{BASE},\"{field}\":{}}}", nested(127))).is_ok(), "{field}");
            assert_eq!(reason(&format!("{BASE},\"{field}\":{}}}", nested(128))), Reason::TooDeep, "{field}");
        }
    }

    #[test]
    fn a_list_in_the_place_of_raw_is_read_as_topics_and_data() {
        let list = decoded(r#"{"transactionHash":"0x1","raw":[["0x6"],"0x"]}"#).expect("an event");
        let object = decoded(r#"{"transactionHash":"0x1","raw":{"topics":["0x6"],"data":"0x"}}"#).expect("an event");
        assert_eq!((list.fields, list.content), (object.fields, object.content));
    }

    const NAMES: &str = "transactionHash|event|signature|address|blockHash|blockNumber|logIndex|removed|capture_time|\
        raw|topics|data|returnValues|id|transaction_hash";
    const VALUES: &str = "null|true|1|-1|0\\.0|1\\.5|1e400|1e131072|0e-20000|12345678901234567890123|\"\"|\"0x[0-9a-fA-F]{0,9}\"|\
        \"[0-9]{1,3}\"|\"1e400\"|\"\\\\n\"|\"\\\\u0000\"|\\[\\]|\\[\"0x1\"\\]|\\[1e400\\]|\\{\\}|\\{\"data\":\"0x1\"\\}|\
        \\{\"topics\":\\[\"0x1\"\\]\\}|\\{\"n\":1e131072\\}";

    proptest! {
        #[test]
        fn every_decoded_event_keeps_its_text(fields in prop::collection::vec((NAMES, VALUES), 0..6)) {
            let fields: Vec<String> = fields.iter().map(|(name, value)| format!(",\"{name}\":{value}")).collect();
            let text = format!("{{\"transactionHash\":\"0x1\"{}}}", fields.concat());
            if let Ok(event) = decoded(&text) {
                prop_assert_eq!(event.text, json::event_text(&text).expect("the text is not nested too deep"));
            }
            // The check during reading must give the same result as reading without it, which a long text causes.
            let long = format!("{text}{}", " ".repeat(20_000));
            match (decoded(&text), decoded(&long)) {
                (Ok(short), Ok(long)) => {
                    prop_assert_eq!((&short.fields, short.identity, short.content), (&long.fields, long.identity, long.content));
                }
                (Err(short), Err(long)) => prop_assert_eq!(short.reason, long.reason),
                (short, long) => prop_assert!(false, "{:?} and {:?}", short, long),
            }
        }
    }
}
