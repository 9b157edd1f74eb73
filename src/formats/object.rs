//! Reads the members of a JSON object that a format knows, in one pass and without building a tree. Every JSON format
//! uses it.
//!
//! While it skips the other members it records whether `jsonb` certainly accepts them. This is enough for nearly every
//! text. Only for a text in doubt, [`event_text`](crate::formats::json::event_text) checks the text again.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use memchr::memchr;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The members of an object that a format knows.
pub(crate) trait Members<'de>: Default {
    const EXPECTED: &'static str;

    /// Reads the value of a member into the field of that name, or skips it.
    fn member<A: MapAccess<'de>>(&mut self, name: &str, value: Value<'_, A>) -> Result<(), A::Error>;

    /// Handles a list in the place of the object.
    fn from_list<A: SeqAccess<'de>>(_: A, _: &JsonbCheck) -> Result<Self, A::Error> {
        Err(A::Error::invalid_type(serde::de::Unexpected::Seq, &Self::EXPECTED))
    }
}

/// A member that an object may have once. A null counts as an occurrence but has no value.
#[derive(Debug)]
pub(crate) struct Member<T> {
    seen: bool,
    pub(crate) value: Option<T>,
}

impl<T> Default for Member<T> {
    fn default() -> Self {
        Self { seen: false, value: None }
    }
}

impl<T> From<Option<T>> for Member<T> {
    fn from(value: Option<T>) -> Self {
        Self { seen: true, value }
    }
}

/// A value that a format reads. `is_certainly_castable` is true if `jsonb` certainly accepts the value, provided that
/// the text is short and has no escapes.
pub(crate) trait Castability {
    fn is_certainly_castable(&self) -> bool;
}

impl Castability for bool {
    fn is_certainly_castable(&self) -> bool {
        true
    }
}

impl<T: Castability> Castability for Vec<T> {
    fn is_certainly_castable(&self) -> bool {
        self.iter().all(T::is_certainly_castable)
    }
}

impl<T: Castability> Castability for Option<T> {
    fn is_certainly_castable(&self) -> bool {
        self.as_ref().is_none_or(T::is_certainly_castable)
    }
}

/// Records, while a text is read, whether `jsonb` may refuse a part of it.
#[derive(Debug)]
pub(crate) struct JsonbCheck {
    /// Whether skipped values are checked; otherwise they are in doubt.
    checks_skipped_values: bool,
    in_doubt: Cell<bool>,
}

/// Only texts up to this length (in bytes) are checked while they are read: no number in them can have more digits than
/// `numeric` holds. A number that fits a double and is not zero has at most 324 more decimals than its text has
/// characters, and `numeric` holds 16,383 decimals.
const MAX_CHECKED_LENGTH: usize = 16_383 - 324;

impl JsonbCheck {
    pub(crate) fn value(&self, value: &impl Castability) {
        if !value.is_certainly_castable() {
            self.in_doubt.set(true);
        }
    }
}

/// Reads a text that is one object. The second value is true if `jsonb` certainly accepts the whole text; if it is
/// false, `jsonb` may accept the text or refuse it.
pub(crate) fn read<'a, T: Members<'a>>(text: &'a str) -> Result<(T, bool), serde_json::Error> {
    let read = |check: &JsonbCheck| {
        let mut json = serde_json::Deserializer::from_str(text);
        let fields = Object::seed(check).deserialize(&mut json)?;
        json.end().map(|()| (fields, !check.in_doubt.get()))
    };
    if text.len() <= MAX_CHECKED_LENGTH && memchr(b'\\', text.as_bytes()).is_none() {
        // A failure here does not mean that the text is invalid: to check a skipped value, serde_json must read it, and
        // it fails at a number beyond a double.
        if let Ok(read) = read(&JsonbCheck { checks_skipped_values: true, in_doubt: Cell::new(false) }) {
            return Ok(read);
        }
    }
    read(&JsonbCheck { checks_skipped_values: false, in_doubt: Cell::new(true) })
}

/// The unread value of one member.
pub(crate) struct Value<'j, A> {
    object: &'j mut A,
    check: &'j JsonbCheck,
    name: &'j str,
}

impl<'de, A: MapAccess<'de>> Value<'_, A> {
    pub(crate) fn read<T: Deserialize<'de> + Castability>(self, member: &mut Member<T>) -> Result<(), A::Error> {
        self.first(member)?;
        member.value = self.object.next_value()?;
        self.check.value(&member.value);
        Ok(())
    }

    pub(crate) fn read_object<T: Members<'de>>(self, member: &mut Member<T>) -> Result<(), A::Error> {
        self.first(member)?;
        member.value = self.object.next_value_seed(Nullable(Object::seed(self.check)))?;
        Ok(())
    }

    /// Skips the value of a member that the format does not know.
    pub(crate) fn pass_over(self) -> Result<(), A::Error> {
        match self.check.checks_skipped_values {
            true => self.object.next_value_seed(JsonbSafe(self.check)),
            false => self.object.next_value::<IgnoredAny>().map(drop),
        }
    }

    fn first<T>(&self, member: &mut Member<T>) -> Result<(), A::Error> {
        match std::mem::replace(&mut member.seen, true) {
            true => Err(A::Error::custom(format_args!("duplicate field `{}`", self.name))),
            false => Ok(()),
        }
    }
}

/// A member's name; copied only if it has escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

struct Object<'j, T> {
    check: &'j JsonbCheck,
    fields: std::marker::PhantomData<T>,
}

impl<'j, T> Object<'j, T> {
    fn seed(check: &'j JsonbCheck) -> Self {
        Self { check, fields: std::marker::PhantomData }
    }
}

impl<'de, T: Members<'de>> DeserializeSeed<'de> for Object<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_struct("", &[], self)
    }
}

impl<'de, T: Members<'de>> Visitor<'de> for Object<'_, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<T, A::Error> {
        let mut fields = T::default();
        while let Some(Name(name)) = object.next_key()? {
            fields.member(&name, Value { object: &mut object, check: self.check, name: &name })?;
        }
        Ok(fields)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::from_list(list, self.check)
    }
}

/// An object or null.
struct Nullable<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Nullable<S> {
    type Value = Option<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for Nullable<S> {
    type Value = Option<S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or null")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.0.deserialize(deserializer).map(Some)
    }
}

/// Skips a value and records whether `jsonb` may refuse it. A zero with a point or an exponent is in doubt, because it
/// may have any number of decimals. Any other number that fits a double has its first digit less than 325 places from
/// the point. serde_json fails at numbers beyond a double and at 128 levels. Its feature `arbitrary_precision` must
/// stay off, because it does not deliver numbers as numbers.
#[derive(Clone, Copy)]
struct JsonbSafe<'j>(&'j JsonbCheck);

impl<'de> DeserializeSeed<'de> for JsonbSafe<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for JsonbSafe<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        if number == 0.0 {
            self.0.in_doubt.set(true);
        }
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        while object.next_key::<IgnoredAny>()?.is_some() {
            object.next_value_seed(self)?;
        }
        Ok(())
    }
}
