//! Non-negative integers in the forms that producers write: a JSON number, a decimal string or a `0x` string.
//!
//! The value of a JSON number decides whether it is an integer, not its spelling: `17173049.0` and `1.7173049e7` are
//! the same integer. The number is parsed from its digits and never as a double, because a double changes integers
//! above 2^53.

use std::borrow::Cow;

use serde::de::{Deserialize, Deserializer, Error, Unexpected};
use serde_json::value::RawValue;

use super::object::Castability;

const EXPECTED: &str = "a non-negative 64-bit integer, its decimal text or its 0x text";
/// How many characters of a refused value its dead letter shows.
const SHOWN_CHARS: usize = 60;

/// A quantity in any spelling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Quantity {
    pub(crate) value: i64,
    /// Only digits, or a string, so there is no exponent that `numeric` may refuse.
    is_plain: bool,
}

impl Castability for Quantity {
    fn is_certainly_castable(&self) -> bool {
        self.is_plain
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = <&RawValue>::deserialize(deserializer)?.get();
        let plain = |value| Self { value, is_plain: true };
        let read = match value.as_bytes().first() {
            Some(b'"') => text(value).and_then(|text| of_text(&text)).map(plain),
            Some(b'-' | b'0'..=b'9') => match value.parse::<u64>() {
                Ok(digits) => i64::try_from(digits).ok().map(plain),
                Err(_) => of_number(value).map(|value| Self { value, is_plain: false }),
            },
            _ => None,
        };
        read.ok_or_else(|| {
            let shown: String = value.chars().take(SHOWN_CHARS).collect();
            D::Error::invalid_value(Unexpected::Other(&shown), &EXPECTED)
        })
    }
}

/// The content of a JSON string; copied only if it has escapes.
fn text(string: &str) -> Option<Cow<'_, str>> {
    match string.trim_matches('"') {
        within if !within.contains(['\\', '"']) => Some(Cow::Borrowed(within)),
        _ => serde_json::from_str(string).ok().map(Cow::Owned),
    }
}

fn of_text(text: &str) -> Option<i64> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // from_str_radix alone would accept a sign.
    let plain = digits.bytes().all(|b| b.is_ascii_alphanumeric());
    plain.then(|| i64::from_str_radix(digits, radix).ok()).flatten()
}

/// The value of a JSON number; `None` if it is no integer or does not fit.
fn of_number(number: &str) -> Option<i64> {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let magnitude = mantissa.trim_start_matches('-');
    let (whole, fraction) = magnitude.split_once('.').unwrap_or((magnitude, ""));
    let digits = [whole, fraction].concat();
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        // Zero, with any sign and exponent.
        return Some(0);
    }
    if magnitude.len() < mantissa.len() {
        return None;
    }
    // The value is the significant digits times this power of ten. A negative power means a fraction.
    let zeros = (digits.len() - significant.len()) as i64;
    let power = exponent.parse::<i64>().ok()?.checked_add(zeros - fraction.len() as i64)?;
    let factor = 10_i64.checked_pow(u32::try_from(power).ok()?)?;
    significant.parse::<i64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quantity(text: &str) -> Option<i64> {
        serde_json::from_str::<Quantity>(text).ok().map(|q| q.value)
    }

    #[test]
    fn numbers_and_strings_are_quantities() {
        for (text, expected) in [("\"0x10\"", 16), ("\"17\"", 17), ("18", 18), ("\"0X1f\"", 31)] {
            assert_eq!(quantity(text), Some(expected), "{text}");
        }
        for text in ["-1", "1.5", "\"\"", "\"0x\"", "\"+5\"", "\"-5\"", "9223372036854775808", "true", "\"1_000\""] {
            assert_eq!(quantity(text), None, "{text}");
        }
        assert_eq!(quantity(r#""\u0031\u0037""#), Some(17), "escapes are decoded");
    }

    #[test]
    fn the_value_and_not_the_spelling_decides_whether_a_number_is_an_integer() {
        for (text, expected) in [
            ("17173049.0", Some(17_173_049)),
            ("1.7173049e7", Some(17_173_049)),
            ("1.7173049E+07", Some(17_173_049)),
            ("171730490e-1", Some(17_173_049)),
            ("17173049.000000000000000000000000000000000000", Some(17_173_049)),
            ("0.0", Some(0)),
            ("-0", Some(0)),
            ("-0.0e5", Some(0)),
            ("0e99999999999999999999", Some(0)),
            ("1e18", Some(1_000_000_000_000_000_000)),
            // A double cannot represent these two.
            ("9007199254740993.0", Some(9_007_199_254_740_993)),
            ("9.223372036854775807e18", Some(i64::MAX)),
            ("9223372036854775807.00", Some(i64::MAX)),
            ("9223372036854775808.0", None),
            ("17173049.00000000000000000000000000000000001", None),
            ("17173049.5", None),
            ("1e-1", None),
            ("1e19", None),
            ("1e99999999999999999999", None),
            ("1e-99999999999999999999", None),
            ("-17.0", None),
        ] {
            assert_eq!(quantity(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "-?[0-9]{0,30}(\\.[0-9]{0,30})?([eE][-+]?[0-9]{0,25})?|\"\\PC{0,20}\"|true|null|\\[[0-9]\\]") {
            let _ = quantity(&text);
        }

        #[test]
        fn an_integer_has_the_same_value_in_every_spelling(n in 0..=i64::MAX, zeros in 0..20_usize, shift in 0..19_usize) {
            let (digits, pad) = (n.to_string(), "0".repeat(zeros));
            let point = digits.len().saturating_sub(shift).max(1);
            let (whole, fraction) = digits.split_at(point);
            for text in [
                format!("{n}"),
                format!("{n}.0{pad}"),
                format!("{whole}.{fraction}0{pad}e{}", fraction.len()),
                format!("{whole}.{fraction}0{pad}E+0{}", fraction.len()),
                format!("{n}{pad}e-{zeros}"),
                format!("\"{n}\""),
                format!("\"0x{n:x}\""),
                format!("\"0X{n:X}\""),
            ] {
                prop_assert_eq!(quantity(&text), Some(n), "{}", text);
            }
        }

        #[test]
        fn a_fraction_or_a_negative_number_is_refused(n in 0..i64::MAX, fraction in "[0-9]{0,20}[1-9]", zeros in 0..20_usize) {
            prop_assert_eq!(quantity(&format!("{n}.{fraction}{}", "0".repeat(zeros))), None);
            prop_assert_eq!(quantity(&format!("-{n}1.0")), None);
        }
    }
}
