//! JSON as PostgreSQL sees it: which valid texts a cast to `jsonb` refuses, and types for the texts of
//! fields. (Numbers: `quantity`.)
//!
//! `jsonb` refuses three things that `json` and RFC 8259 allow: the escape `\u0000`, surrogate
//! escapes that do not pair, and numbers outside `numeric`. The check is done here, once, so that
//! neither ingest nor a reader's cast ever meets a surprise.

use std::borrow::Cow;
use std::fmt;

use memchr::{memchr, memchr_iter};
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::event::{EventText, Reason, Rejection};

/// Largest number of digits after the decimal point that `numeric` holds (`NUMERIC_DSCALE_MASK`).
const NUMERIC_MAX_SCALE: i64 = 16_383;
/// Largest power of ten of a leading digit: `numeric` holds 131,072 digits before the point.
const NUMERIC_MAX_POWER: i64 = 131_071;
/// `numeric_in` refuses exponents of half an `int` and more before it looks at the digits.
const NUMERIC_MAX_EXPONENT: i64 = i32::MAX as i64 / 2;

/// A number that a double holds, other than zero, has no more decimals than its text has characters, plus 324.
const USUAL_LENGTH: usize = NUMERIC_MAX_SCALE as usize - 324;

/// Of more pairs, or of twice as many elements, PostgreSQL would make an array of more than 1 GiB while it reads
/// them, and refuses (`MaxAllocSize`). A text with so many commas is kept raw, whichever it holds.
const MANY_VALUES: usize = 1 << 23;

/// `jsonb` holds no string, list or object of more bytes (`JENTRY_OFFLENMASK`). A longer text is kept raw, whatever it holds.
const MAX_JSONB_BYTES: usize = 0x0FFF_FFFF;

/// Levels of nesting that are taken: far more than any event has, far fewer than make PostgreSQL's
/// parser run out of stack.
const MAX_DEPTH: usize = 128;

/// Sorts a JSON text (already known to be valid) by whether `jsonb` takes it.
pub(super) fn event_text(text: &str) -> Result<EventText<'_>, Rejection> {
    let bytes = text.as_bytes();
    // Few brackets are not deep, wherever they stand.
    if brackets(bytes) > MAX_DEPTH && depth(bytes) > MAX_DEPTH {
        return Err(Rejection::new(Reason::TooDeep, format!("nested deeper than {MAX_DEPTH} levels")));
    }
    Ok(if all_castable(bytes) && has_room(bytes) { EventText::Json(text) } else { EventText::Raw(text) })
}

/// Reads a text as `T`, which takes what it does not look at as [`Castable`]: what comes of it need not be looked at by
/// [`event_text`]. `None` says nothing of the text: it may still be an event, and castable.
pub(super) fn usual<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    let is_usual = text.len() <= USUAL_LENGTH && memchr(b'\\', text.as_bytes()).is_none();
    is_usual.then(|| serde_json::from_str(text).ok()).flatten()
}

/// A value that `jsonb` surely takes, in a text that is not longer than [`USUAL_LENGTH`] and has no escapes: any but a number
/// that may have too many digits, which each zero with a point or exponent is taken for. serde_json stops at 127 levels,
/// below our limit. (It must give numbers as numbers: not with its feature `arbitrary_precision`.)
#[derive(Debug, PartialEq)]
pub(super) struct Castable;

impl<'de> Deserialize<'de> for Castable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CastableVisitor;
        impl<'de> Visitor<'de> for CastableVisitor {
            type Value = Castable;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value that jsonb surely takes")
            }
            fn visit_unit<E: Error>(self) -> Result<Castable, E> {
                Ok(Castable)
            }
            fn visit_bool<E: Error>(self, _: bool) -> Result<Castable, E> {
                Ok(Castable)
            }
            fn visit_u64<E: Error>(self, _: u64) -> Result<Castable, E> {
                Ok(Castable)
            }
            fn visit_i64<E: Error>(self, _: i64) -> Result<Castable, E> {
                Ok(Castable)
            }
            // What a double holds has its first digit less than 325 places from the point. Zero may be written with any
            // exponent, and so may what is too small for a double.
            fn visit_f64<E: Error>(self, number: f64) -> Result<Castable, E> {
                match number == 0.0 {
                    true => Err(E::invalid_value(serde::de::Unexpected::Float(number), &self)),
                    false => Ok(Castable),
                }
            }
            fn visit_str<E: Error>(self, _: &str) -> Result<Castable, E> {
                Ok(Castable)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Castable, A::Error> {
                while list.next_element::<Castable>()?.is_some() {}
                Ok(Castable)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Castable, A::Error> {
                while object.next_entry::<IgnoredAny, Castable>()?.is_some() {}
                Ok(Castable)
            }
        }
        deserializer.deserialize_any(CastableVisitor)
    }
}

/// Opening ones, those in strings too: counted many bytes at a time.
fn brackets(text: &[u8]) -> usize {
    memchr_iter(b'{', text).count() + memchr_iter(b'[', text).count()
}

fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
    }
    deepest
}

/// Whether `jsonb` has room for the text, and PostgreSQL for the values of one array or object while it reads them.
fn has_room(text: &[u8]) -> bool {
    if text.len() > MAX_JSONB_BYTES {
        return false;
    }
    text.len() < MANY_VALUES || text.iter().filter(|byte| **byte == b',').count() < MANY_VALUES
}

/// Whether each string and number is castable, however it is written.
fn all_castable(text: &[u8]) -> bool {
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        at += match byte {
            b'"' => match string_length(&text[at..]) {
                Some(length) => length,
                None => return false,
            },
            b'-' | b'0'..=b'9' => {
                let length = text[at..]
                    .iter()
                    .take_while(|b| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9'))
                    .count();
                if !is_numeric(&text[at..at + length]) {
                    return false;
                }
                length
            }
            _ => 1,
        };
    }
    true
}

/// Length of the string that `text` begins with, quotes included; `None` if `jsonb` refuses it.
fn string_length(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' if text.get(at + 1) == Some(&b'u') => {
                let unit = code_unit(text, at)?;
                at += 6;
                match unit {
                    0 | 0xDC00..=0xDFFF => return None,
                    0xD800..=0xDBFF => {
                        let paired =
                            text.get(at..at + 2) == Some(b"\\u") && matches!(code_unit(text, at)?, 0xDC00..=0xDFFF);
                        if !paired {
                            return None;
                        }
                        at += 6;
                    }
                    _ => {}
                }
            }
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn code_unit(text: &[u8], at: usize) -> Option<u32> {
    let digits = std::str::from_utf8(text.get(at + 2..at + 6)?).ok()?;
    u32::from_str_radix(digits, 16).ok()
}

/// Whether PostgreSQL's `numeric` holds a JSON number, by the rules of its `numeric_in`.
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

/// Turns serde's complaint into a reason that an operator can count by.
pub(super) fn rejection(text: &str, error: &serde_json::Error) -> Rejection {
    use serde_json::error::Category;
    let reason = match error.classify() {
        Category::Eof => Reason::Truncated,
        // A lone surrogate in a field whose text a column needs: the text is JSON all the same.
        Category::Syntax if error.to_string().contains("hex escape") => Reason::BadField,
        Category::Data if text.trim_start().starts_with('{') => Reason::BadField,
        Category::Data => Reason::NotAnEvent,
        Category::Syntax | Category::Io if error.to_string().starts_with("recursion limit") => Reason::TooDeep,
        Category::Syntax | Category::Io => Reason::NotJson,
    };
    Rejection::new(reason, error.to_string())
}

/// A text that PostgreSQL can hold, borrowed where it has no escapes.
#[derive(Debug, PartialEq)]
pub(super) struct Text<'a>(pub Cow<'a, str>);

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
                // Only an escape can bring a NUL, and a text with escapes is never borrowed.
                if text.contains('\0') {
                    return Err(E::invalid_value(serde::de::Unexpected::Str("text with \\u0000"), &self));
                }
                Ok(Cow::Owned(text.to_owned()))
            }
        }
        deserializer.deserialize_str(TextVisitor).map(Text)
    }
}

/// A value that is only compared, as its JSON text: no column holds it, so it may be what PostgreSQL's
/// text can't hold.
#[derive(Debug, PartialEq)]
pub(super) struct Opaque<'a>(pub &'a str);

impl<'de: 'a, 'a> Deserialize<'de> for Opaque<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&'de serde_json::value::RawValue>::deserialize(deserializer).map(|raw| Self(raw.get()))
    }
}

impl<'a> Opaque<'a> {
    /// Whether it is a text, as topics and data are. Anything else may hold any number, at any depth.
    pub(super) fn is_text(&self) -> bool {
        self.0.starts_with('"')
    }

    /// The text, where the value is one.
    pub(super) fn text(&self) -> Option<Text<'a>> {
        serde_json::from_str(self.0).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_jsonb_refuses_is_known_beforehand() {
        let digits = "9".repeat(131_072);
        let decimals = "1".repeat(16_383);
        for (text, castable) in [
            (r#"{"a":"\u0000"}"#.to_string(), false),
            (r#"{"a":"\\u0000"}"#.to_string(), true),
            (r#"{"a":"\\\u0000"}"#.to_string(), false),
            (r#"{"\u0000":1}"#.to_string(), false),
            (r#"["\ud83d\ude00"]"#.to_string(), true),
            (r#"["\ud83d"]"#.to_string(), false),
            (r#"["\ud83dx\ude00"]"#.to_string(), false),
            (r#"["\ude00"]"#.to_string(), false),
            (r#"["\ud83d\ud83d\ude00"]"#.to_string(), false),
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
            assert_eq!(all_castable(text.as_bytes()), castable, "{shown}");
            assert_eq!(matches!(event_text(&text), Ok(EventText::Json(_))), castable, "{shown}");
        }
    }

    #[test]
    fn more_values_than_postgresql_has_room_for_are_kept_raw() {
        let text = format!("[{}1]", "1,".repeat(MANY_VALUES));
        assert!(matches!(event_text(&text), Ok(EventText::Raw(_))));
        assert!(!has_room(&vec![0; MAX_JSONB_BYTES + 1]));
    }

    #[test]
    fn what_is_taken_as_castable_is_what_jsonb_takes() {
        let long = |digits: usize| format!("[0.{}e-300]", "1".repeat(digits));
        for (text, taken) in [
            (r#"{"a":[1,-2,3.5,-4e-7,5E+9,true,null,"x"],"b":{"c":[]}}"#.to_string(), true),
            ("[18446744073709551616]".to_string(), true),
            ("[1.7e308]".to_string(), true),
            ("[4.9e-324]".to_string(), true),
            ("[1e309]".to_string(), false),
            ("[1e-16384]".to_string(), false),
            ("[0e-16384]".to_string(), false),
            ("[-0.0]".to_string(), false),
            (r#"["\n"]"#.to_string(), false),
            (r#"{"\u0000":1}"#.to_string(), false),
            ("[".repeat(127) + &"]".repeat(127), true),
            ("[".repeat(128) + &"]".repeat(128), false),
            (long(USUAL_LENGTH - 9), true),
            (long(USUAL_LENGTH - 8), false),
        ] {
            let shown = &text[..text.len().min(60)];
            assert_eq!(usual::<Castable>(&text), taken.then_some(Castable), "{shown}");
            assert!(!taken || matches!(event_text(&text), Ok(EventText::Json(_))), "{shown}");
        }
    }

    #[test]
    fn brackets_in_strings_are_no_nesting() {
        let is_deep = |text: String| event_text(&text).is_err();
        assert!(!is_deep(format!("[\"{}\"]", "[".repeat(1000))));
        assert!(is_deep("[".repeat(129)));
        assert_eq!(depth(br#"{"a":"[[[\"[[","b":[[]]}"#), 3);
    }
}
