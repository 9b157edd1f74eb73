//! The JSON rules of PostgreSQL: decides whether a cast to `jsonb` accepts a valid JSON text, and has the types of text
//! fields. The type of number fields is in `quantity`.
//!
//! `jsonb` refuses three things that `json` and RFC 8259 allow: the escape `\u0000`, surrogate escapes without a
//! partner, and numbers outside the range of `numeric`. [`event_text`] checks the whole text of an event for them, not
//! only the fields that a format reads, so that neither the insert nor a cast by a reader can fail. The check takes 0.3
//! µs for 1 KB; `object` makes it unnecessary for most events.

use std::borrow::Cow;
use std::fmt;

use memchr::memchr2;
use serde::de::{Deserialize, Deserializer, Error, Visitor};

use super::object::Castability;
use crate::model::event::{EventText, Reason, Rejection};

/// The largest number of digits after the decimal point in `numeric` (`NUMERIC_DSCALE_MASK`).
const NUMERIC_MAX_SCALE: i64 = 16_383;
/// The largest power of ten of the leading digit: `numeric` holds 131,072 digits before the point.
const NUMERIC_MAX_POWER: i64 = 131_071;
/// `numeric_in` refuses exponents from half of the largest `int` on, before it reads the digits.
const NUMERIC_MAX_EXPONENT: i64 = i32::MAX as i64 / 2;

/// For more pairs than this, or for twice as many elements, PostgreSQL would allocate an array of more than 1 GiB while
/// it parses the text, and it refuses to (`MaxAllocSize`). A text with this many commas or more is stored raw, whether
/// they separate pairs or elements.
const MANY_VALUES: usize = 1 << 23;

/// The largest number of bytes of a string, list or object in `jsonb` (`JENTRY_OFFLENMASK`). A longer text is stored
/// raw, also if each of its values is short.
const MAX_JSONB_BYTES: usize = 0x0FFF_FFFF;

/// The largest accepted depth of nesting: far more than any event has, and far less than the depth at which
/// PostgreSQL's parser runs out of stack.
const MAX_DEPTH: usize = 128;

/// Decides whether `jsonb` accepts a text. The text must be valid JSON. `Err` if it is nested too deep.
pub(crate) fn event_text(text: &str) -> Result<EventText<'_>, Rejection> {
    let (castable, depth) = scan(text.as_bytes());
    if depth > MAX_DEPTH {
        return Err(Rejection::new(Reason::TooDeep, format!("nested deeper than {MAX_DEPTH} levels")));
    }
    Ok(if castable && has_room(text.as_bytes()) { EventText::Json(text) } else { EventText::Raw(text) })
}

/// Returns whether every string and number of the text can be cast to `jsonb`, and how deep the text is nested.
fn scan(text: &[u8]) -> (bool, usize) {
    let (mut castable, mut depth, mut deepest) = (true, 0_usize, 0);
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        at += match byte {
            b'"' => {
                let string = string(&text[at..]);
                castable &= string.castable;
                string.length
            }
            b'-' | b'0'..=b'9' => {
                let length = number_length(&text[at..]);
                castable &= is_numeric(&text[at..at + length]);
                length
            }
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
                1
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                1
            }
            _ => 1,
        };
    }
    (castable, deepest)
}

/// Returns true if the text fits into `jsonb`, and if PostgreSQL can allocate the values of each array or object while
/// it parses the text.
fn has_room(text: &[u8]) -> bool {
    if text.len() > MAX_JSONB_BYTES {
        return false;
    }
    text.len() < MANY_VALUES || text.iter().filter(|byte| **byte == b',').count() < MANY_VALUES
}

/// A string of a JSON text: its length in bytes with both quotes, and whether `jsonb` accepts it.
struct JsonString {
    length: usize,
    castable: bool,
}

/// Reads the string at the beginning of `text`.
fn string(text: &[u8]) -> JsonString {
    let (mut at, mut castable) = (1, true);
    // Jumps from one quote or backslash to the next: most bytes are between them and need no check.
    while let Some(skipped) = text.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += skipped;
        match (text[at], text.get(at + 1)) {
            (b'"', _) => return JsonString { length: at + 1, castable },
            (_, Some(b'u')) => {
                let (length, is_castable) = unicode_escape(text, at);
                castable &= is_castable;
                at += length;
            }
            _ => at += 2,
        }
    }
    JsonString { length: text.len(), castable: false }
}

/// The length of the escape `\uXXXX`, or of a surrogate pair of escapes, at `at`, and whether `jsonb` accepts it.
fn unicode_escape(text: &[u8], at: usize) -> (usize, bool) {
    match code_unit(text, at) {
        None | Some(0 | 0xDC00..=0xDFFF) => (6, false),
        Some(0xD800..=0xDBFF) => match code_unit(text, at + 6) {
            Some(0xDC00..=0xDFFF) => (12, true),
            _ => (6, false),
        },
        Some(_) => (6, true),
    }
}

/// The code unit of the escape `\uXXXX` at `at`; `None` if there is no such escape.
fn code_unit(text: &[u8], at: usize) -> Option<u32> {
    let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// The length of the number at the beginning of `text`.
fn number_length(text: &[u8]) -> usize {
    text.iter().take_while(|b| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')).count()
}

/// Returns true if PostgreSQL's `numeric` can hold a JSON number, by the rules of its function `numeric_in`.
fn is_numeric(number: &[u8]) -> bool {
    let digits_end = number.iter().position(|b| matches!(b, b'e' | b'E')).unwrap_or(number.len());
    let exponent = match number.get(digits_end + 1..) {
        None => 0,
        Some(text) => match std::str::from_utf8(text).ok().and_then(|t| t.parse::<i64>().ok()) {
            Some(exponent) if exponent.abs() < NUMERIC_MAX_EXPONENT => exponent,
            _ => return false,
        },
    };
    let mantissa = number[..digits_end].strip_prefix(b"-").unwrap_or(&number[..digits_end]);
    let point = mantissa.iter().position(|b| *b == b'.').unwrap_or(mantissa.len());
    let decimals = mantissa.len().saturating_sub(point + 1) as i64;
    let leading_power = mantissa.iter().position(|b| matches!(b, b'1'..=b'9')).map(|at| {
        let power = if at < point { point - at - 1 } else { at - point };
        if at < point { power as i64 } else { -(power as i64) }
    });
    (decimals - exponent).max(0) <= NUMERIC_MAX_SCALE
        && leading_power.is_none_or(|power| power + exponent <= NUMERIC_MAX_POWER)
}

/// Maps an error of serde_json to a rejection with a reason of the bounded set.
pub(crate) fn rejection(text: &str, error: &serde_json::Error) -> Rejection {
    use serde_json::error::Category;
    let reason = match error.classify() {
        Category::Eof => Reason::Truncated,
        // A lone surrogate in a field that is stored in a column. The text is valid JSON nevertheless.
        Category::Syntax if error.to_string().contains("hex escape") => Reason::BadField,
        Category::Data if text.trim_start().starts_with('{') => Reason::BadField,
        Category::Data => Reason::NotAnEvent,
        Category::Syntax | Category::Io if error.to_string().starts_with("recursion limit") => Reason::TooDeep,
        Category::Syntax | Category::Io => Reason::NotJson,
    };
    Rejection::new(reason, error.to_string())
}

/// A string that PostgreSQL's `text` can hold; borrowed if it has no escapes.
#[derive(Debug, PartialEq)]
pub(crate) struct Text<'a>(pub Cow<'a, str>);

impl Castability for Text<'_> {
    fn is_certainly_castable(&self) -> bool {
        true
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Cow<'de, str>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string without NUL characters")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(text))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                // Only an escape can produce a NUL, and a string with escapes is never borrowed.
                if text.contains('\0') {
                    return Err(E::invalid_value(serde::de::Unexpected::Str("text with \\u0000"), &self));
                }
                Ok(Cow::Owned(text.to_owned()))
            }
        }
        deserializer.deserialize_str(TextVisitor).map(Text)
    }
}

/// A value that is only compared, as its JSON text. No column stores it, so it may contain characters that PostgreSQL's
/// `text` cannot hold.
#[derive(Debug, PartialEq)]
pub(crate) struct Opaque<'a>(pub &'a str);

impl<'de: 'a, 'a> Deserialize<'de> for Opaque<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&'de serde_json::value::RawValue>::deserialize(deserializer).map(|raw| Self(raw.get()))
    }
}

impl Castability for Opaque<'_> {
    /// True for a string, the form of topics and data. Any other value may contain any number, at any depth.
    fn is_certainly_castable(&self) -> bool {
        self.0.starts_with('"')
    }
}

impl<'a> Opaque<'a> {
    /// The string, if the value is one.
    pub(crate) fn text(&self) -> Option<Text<'a>> {
        serde_json::from_str(self.0).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_text_that_jsonb_refuses_is_kept_raw() {
        let digits = "9".repeat(131_072);
        let decimals = "1".repeat(16_383);
        for (text, castable) in [
            (r#"{"a":[1,-2,3.5,-4e-7,5E+9,true,null,"x"],"b":{"c":[]}}"#.to_string(), true),
            (r#"{"a":"\u0000"}"#.to_string(), false),
            (r#"{"a":"\\u0000"}"#.to_string(), true),
            (r#"{"a":"\\\u0000"}"#.to_string(), false),
            (r#"{"\u0000":1}"#.to_string(), false),
            (r#"["\n\"\\"]"#.to_string(), true),
            (r#"["\u0001\u00e9\uFFFF"]"#.to_string(), true),
            (r#"["\ud83d\ude00"]"#.to_string(), true),
            (r#"["\ud83d"]"#.to_string(), false),
            (r#"["\ud83dx\ude00"]"#.to_string(), false),
            (r#"["\ud83d\n"]"#.to_string(), false),
            (r#"["\ude00"]"#.to_string(), false),
            (r#"["\ud83d\ud83d\ude00"]"#.to_string(), false),
            (r#"["1e131072","[0e-16384]"]"#.to_string(), true),
            ("[18446744073709551616]".to_string(), true),
            ("[1e309,4.9e-324,-0.0]".to_string(), true),
            ("[1e131071]".to_string(), true),
            ("[1e131072]".to_string(), false),
            ("[0e131072]".to_string(), true),
            ("[1e-16383]".to_string(), true),
            ("[1e-16384]".to_string(), false),
            ("[0e-16384]".to_string(), false),
            ("[1.5e-16383]".to_string(), false),
            ("[0.0001e131075]".to_string(), true),
            ("[0.0001e131076]".to_string(), false),
            ("[1e99999999999999999999]".to_string(), false),
            (format!("[{digits}]"), true),
            (format!("[{digits}0]"), false),
            (format!("[-0.{decimals}]"), true),
            (format!("[-0.{decimals}1]"), false),
        ] {
            let shown = &text[..text.len().min(60)];
            let expected = if castable { EventText::Json(&text) } else { EventText::Raw(&text) };
            assert_eq!(event_text(&text), Ok(expected), "{shown}");
        }
    }

    #[test]
    fn a_text_with_more_values_than_postgresql_can_parse_is_kept_raw() {
        let text = format!("[{}1]", "1,".repeat(MANY_VALUES));
        assert!(matches!(event_text(&text), Ok(EventText::Raw(_))));
        assert!(!has_room(&vec![0; MAX_JSONB_BYTES + 1]));
    }

    #[test]
    fn a_text_of_128_levels_is_accepted_and_one_of_129_is_too_deep() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(event_text(&nested(128)).is_ok());
        assert_eq!(event_text(&nested(129)).expect_err("too deep").reason, Reason::TooDeep);
        let objects = r#"{"a":"#.repeat(128) + "1" + &"}".repeat(128);
        assert!(event_text(&objects).is_ok());
        assert!(event_text(&format!("[{objects}]")).is_err());
        assert!(event_text(&format!("[{}1]", "[],".repeat(1000))).is_ok(), "many lists, but only two levels");
    }

    #[test]
    fn brackets_in_strings_do_not_count_as_nesting() {
        assert!(event_text(&format!("[\"{}\"]", "[".repeat(1000))).is_ok());
        assert_eq!(scan(br#"{"a":"[[[\"[[","b":[[]]}"#), (true, 3));
    }

    /// A JSON value, whether `jsonb` accepts it, and how deep it is nested.
    fn value() -> impl Strategy<Value = (String, bool, usize)> {
        let castable = prop_oneof![
            Just(r#""\\u0000""#.to_owned()),
            Just(r#""\ud83d\ude00\n""#.to_owned()),
            "\"[\\[{\\]}0-9e+.,:é-]{0,20}\"",
            "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,30})?([eE][-+]?[0-9]{1,4})?",
            "true|false|null|\\[ \\]",
        ];
        let refused = prop_oneof![
            Just(r#""a\\\u0000""#.to_owned()),
            Just(r#""\udc00""#.to_owned()),
            Just(r#"{"\ud800 ":1}"#.to_owned()),
            Just("-1.5e131072".to_owned()),
            Just("0E-16384".to_owned()),
        ];
        let flat = |taken| {
            move |text: String| {
                let depth = usize::from(text.starts_with(['[', '{']));
                (text, taken, depth)
            }
        };
        let leaf = prop_oneof![8 => castable.prop_map(flat(true)), 1 => refused.prop_map(flat(false))];
        leaf.prop_recursive(6, 40, 5, |inner| {
            prop::collection::vec(("[a-z\\]\\[]{0,12}", inner), 0..5).prop_map(|fields| {
                let texts: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{}", value.0)).collect();
                let taken = fields.iter().all(|(_, value)| value.1);
                let depth = fields.iter().map(|(_, value)| value.2).max().unwrap_or_default();
                (format!("{{{}}}", texts.join(", ")), taken, depth + 1)
            })
        })
    }

    proptest! {
        #[test]
        fn a_text_is_castable_if_each_of_its_values_is((text, castable, depth) in value()) {
            prop_assert!(serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok(), "{}", text);
            prop_assert_eq!(scan(text.as_bytes()), (castable, depth), "{}", text);
        }

        #[test]
        fn the_scan_never_panics(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'"'), Just(b'\\'), Just(b'u')], 0..60)) {
            scan(&bytes);
        }
    }
}
