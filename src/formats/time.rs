//! The capture time of an event: RFC 3339, or the same without a zone, which then means UTC.
//!
//! Called by the formats. The column stores microseconds, so further digits are cut off; the event's text keeps them.

use jiff::civil::DateTime;
use jiff::fmt::temporal::Pieces;
use jiff::tz::Offset;

use crate::model::event::{CaptureTime, Reason, Rejection};

/// jiff parses at most nine fraction digits (nanoseconds); RFC 3339 allows any number of digits.
const MAX_FRACTION_DIGITS: usize = 9;
/// How many characters of a refused time its dead letter shows.
const SHOWN_CHARS: usize = 60;

/// Parses `capture_time`.
pub(crate) fn capture_time(text: &str) -> Result<CaptureTime, Rejection> {
    instant(text)
        .or_else(|| instant(&with_short_fraction(text)?))
        .filter(|_| !text.contains('['))
        .ok_or_else(|| refused(text))
}

/// Parses a time with at most [`MAX_FRACTION_DIGITS`]; `None` if the text is not a valid time.
fn instant(text: &str) -> Option<CaptureTime> {
    const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
    let pieces = Pieces::parse(text).ok()?;
    let written = pieces.date().to_datetime(pieces.time().unwrap_or_default());
    // RFC 3339 has years of four digits. PostgreSQL cannot store every year that jiff parses.
    if !(0..=9999).contains(&written.year()) {
        return None;
    }
    let offset = pieces.to_numeric_offset().unwrap_or(Offset::UTC);
    // jiff's Timestamp is not used because it ends one day before the end of the year 9999.
    let since_epoch = written.duration_since(EPOCH);
    let seconds = since_epoch.as_secs() - i64::from(offset.seconds());
    let microseconds = i64::from(since_epoch.subsec_nanos().div_euclid(1000));
    Some(CaptureTime::from_microseconds(seconds * 1_000_000 + microseconds))
}

/// The same text with at most as many fraction digits as jiff parses; `None` if it already has no more.
fn with_short_fraction(text: &str) -> Option<String> {
    let begin = text.find('.')? + 1;
    let digits = text[begin..].bytes().take_while(u8::is_ascii_digit).count();
    let surplus = begin + MAX_FRACTION_DIGITS..begin + digits;
    (!surplus.is_empty()).then(|| [&text[..surplus.start], &text[surplus.end..]].concat())
}

fn refused(text: &str) -> Rejection {
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    let why = match text.contains('[') {
        true => "has a suffix in brackets, which RFC 3339 does not know: publish the offset alone",
        false => "is no RFC 3339 time",
    };
    Rejection::new(Reason::BadField, format!("capture_time {shown:?} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use proptest::prelude::*;

    fn microseconds(text: &str) -> Option<i64> {
        capture_time(text).ok().map(CaptureTime::as_microseconds)
    }

    #[test]
    fn a_capture_time_is_rfc_3339_with_or_without_a_zone() {
        for (text, expected) in [
            ("2018-11-07T12:34:56.78Z", Some("2018-11-07T12:34:56.78Z")),
            ("2018-11-07T12:34:56+02:00", Some("2018-11-07T10:34:56Z")),
            ("2018-11-07T12:34:56-00:00", Some("2018-11-07T12:34:56Z")),
            ("2018-11-07t12:34:56z", Some("2018-11-07T12:34:56Z")),
            ("2018-11-07 12:34:56", Some("2018-11-07T12:34:56Z")),
            ("2018-11-07", Some("2018-11-07T00:00:00Z")),
            ("2016-12-31T23:59:60Z", Some("2016-12-31T23:59:59Z")),
            ("2018-13-07T12:34:56", None),
            ("2018-11-07T25:34:56Z", None),
            ("12:34:56", None),
            ("-009999-11-07T12:34:56Z", None),
            ("+010000-01-01T00:00:00Z", None),
            ("2018-11-07T12:34:56.", None),
            ("2018-11-07T12:34:56.Z", None),
            ("", None),
        ] {
            let expected = expected.map(|time| time.parse::<Timestamp>().expect("a time").as_microsecond());
            assert_eq!(microseconds(text), expected, "{text}");
        }
    }

    #[test]
    fn the_whole_range_of_rfc_3339_is_accepted() {
        assert_eq!(microseconds("9999-12-31T23:59:59Z"), Some(253_402_300_799_000_000));
        assert_eq!(microseconds("9999-12-31T23:59:59.999999999-23:59"), Some(253_402_387_139_999_999));
        assert_eq!(microseconds("0000-01-01T00:00:00Z"), Some(-62_167_219_200_000_000));
        assert_eq!(microseconds("0000-01-01T00:00:00+23:59"), Some(-62_167_305_540_000_000));
    }

    #[test]
    fn digits_beyond_microseconds_are_cut_off() {
        let second = 1_541_594_096_000_000;
        assert_eq!(microseconds("2018-11-07T12:34:56.123456789012Z"), Some(second + 123_456));
        assert_eq!(microseconds("2018-11-07T12:34:56.999999999999+00:00"), Some(second + 999_999));
        assert_eq!(microseconds(&format!("2018-11-07T12:34:56.{}Z", "9".repeat(500))), Some(second + 999_999));
        assert_eq!(microseconds("1969-12-31T23:59:59.9999999Z"), Some(-1), "before 1970 too");
    }

    #[test]
    fn the_rejection_of_a_suffix_in_brackets_names_it() {
        for text in [
            "2018-11-07T12:34:56+01:00[Europe/Berlin]",
            "2018-11-07T12:34:56[Europe/Berlin]",
            "2018-11-07T12:34:56Z[u-ca=hebrew]",
            "2018-11-07T12:34:56.123456789012Z[!u-ca=iso8601]",
        ] {
            let rejection = capture_time(text).expect_err(text);
            assert_eq!(rejection.reason, Reason::BadField);
            assert!(rejection.detail.contains("suffix in brackets"), "{}", rejection.detail);
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            let _ = capture_time(&text);
        }

        #[test]
        fn parsing_never_panics_on_text_similar_to_a_time(text in "[-+0-9]{0,8}-?[0-9]{0,2}-?[0-9é]{0,2}[Tt ]?[0-9:]{0,8}[.,]?[0-9]{0,15}[-+Zz0-9:]{0,8}(\\[[A-Za-z/=!-]*\\])?") {
            let _ = capture_time(&text);
        }

        /// Compares the result with jiff's Timestamp where jiff can parse the time.
        #[test]
        fn every_rfc_3339_time_is_parsed_to_its_instant(
            year in 0..=9999, month in 1..=12, day in 1..=28, hour in 0..=23, minute in 0..=59, second in 0..=59,
            fraction in "(\\.[0-9]{1,15})?", zone in "Z|[+-](0[0-9]|1[0-9]|2[0-3]):[0-5][0-9]",
        ) {
            let date = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
            let found = microseconds(&format!("{date}{fraction}{zone}"));
            let fraction: i64 = format!("{:0<6.6}", fraction.trim_start_matches('.')).parse().expect("digits");
            prop_assert!(found.is_some());
            if let Ok(whole) = format!("{date}{zone}").parse::<Timestamp>() {
                prop_assert_eq!(found, Some(whole.as_microsecond() + fraction));
            }
        }

        #[test]
        fn a_time_without_a_zone_is_utc(seconds in -62_135_596_800_i64..253_402_207_200) {
            let time = Timestamp::from_second(seconds).expect("within jiff's range").to_string();
            prop_assert_eq!(microseconds(time.trim_end_matches('Z')), Some(seconds * 1_000_000));
        }
    }
}
