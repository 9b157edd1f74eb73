//! Reads the members of a JSON object that a format knows, in one pass and without a tree; the reader of every format
//! that is JSON.
//!
//! While it passes over the other members it notes whether `jsonb` surely takes them. Nearly every text is judged by
//! that alone; only where it is in doubt, [`event_text`](crate::formats::json::event_text) looks at the text again.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use memchr::memchr;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What a format knows of an object.
pub(crate) trait Members<'de>: Default {
    const EXPECTED: &'static str;

    /// Reads the value of a member into the field of that name, or passes over it.
    fn member<A: MapAccess<'de>>(&mut self, name: &str, value: Value<'_, A>) -> Result<(), A::Error>;

    /// What to make of a list in the object's place.
    fn from_list<A: SeqAccess<'de>>(_: A, _: &Judge) -> Result<Self, A::Error> {
        Err(A::Error::invalid_type(serde::de::Unexpected::Seq, &Self::EXPECTED))
    }
}

/// A member that may stand in an object once. A null is as good as none, but counts.
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

/// A value that a format reads, and whether `jsonb` surely takes it, in a text that is short and has no escapes.
pub(crate) trait Judged {
    fn is_surely_castable(&self) -> bool;
}

impl Judged for bool {
    fn is_surely_castable(&self) -> bool {
        true
    }
}

impl<T: Judged> Judged for Vec<T> {
    fn is_surely_castable(&self) -> bool {
        self.iter().all(T::is_surely_castable)
    }
}

impl<T: Judged> Judged for Option<T> {
    fn is_surely_castable(&self) -> bool {
        self.as_ref().is_none_or(T::is_surely_castable)
    }
}

/// Notes while a text is read whether `jsonb` may refuse a part of it.
#[derive(Debug)]
pub(crate) struct Judge {
    /// Whether unread values are judged; else they are in doubt.
    judges: bool,
    doubts: Cell<bool>,
}

/// A judged text is no longer: no number in it can have more digits than `numeric` holds. (A number that a double
/// holds, other than zero, has no more decimals than its text has characters, plus 324, and 16,383 are allowed.)
const MAX_JUDGED_LENGTH: usize = 16_383 - 324;

impl Judge {
    pub(crate) fn see(&self, value: &impl Judged) {
        if !value.is_surely_castable() {
            self.doubts.set(true);
        }
    }
}

/// Reads a text that is one object; whether `jsonb` surely takes the whole text. (If not, it may all the same.)
pub(crate) fn read<'a, T: Members<'a>>(text: &'a str) -> Result<(T, bool), serde_json::Error> {
    let read = |judge: &Judge| {
        let mut json = serde_json::Deserializer::from_str(text);
        let fields = Object::seed(judge).deserialize(&mut json)?;
        json.end().map(|()| (fields, !judge.doubts.get()))
    };
    if text.len() <= MAX_JUDGED_LENGTH && memchr(b'\\', text.as_bytes()).is_none() {
        // What fails here may be sound: serde_json judges a value by reading it, and has no number beyond a double.
        if let Ok(read) = read(&Judge { judges: true, doubts: Cell::new(false) }) {
            return Ok(read);
        }
    }
    read(&Judge { judges: false, doubts: Cell::new(true) })
}

/// The value of one member, still to be read.
pub(crate) struct Value<'j, A> {
    object: &'j mut A,
    judge: &'j Judge,
    name: &'j str,
}

impl<'de, A: MapAccess<'de>> Value<'_, A> {
    pub(crate) fn read<T: Deserialize<'de> + Judged>(self, member: &mut Member<T>) -> Result<(), A::Error> {
        self.first(member)?;
        member.value = self.object.next_value()?;
        self.judge.see(&member.value);
        Ok(())
    }

    pub(crate) fn read_object<T: Members<'de>>(self, member: &mut Member<T>) -> Result<(), A::Error> {
        self.first(member)?;
        member.value = self.object.next_value_seed(Nullable(Object::seed(self.judge)))?;
        Ok(())
    }

    /// For a member that the format does not know.
    pub(crate) fn pass_over(self) -> Result<(), A::Error> {
        match self.judge.judges {
            true => self.object.next_value_seed(JsonbSafe(self.judge)),
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

/// A name, copied only where it has escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

struct Object<'j, T> {
    judge: &'j Judge,
    fields: std::marker::PhantomData<T>,
}

impl<'j, T> Object<'j, T> {
    fn seed(judge: &'j Judge) -> Self {
        Self { judge, fields: std::marker::PhantomData }
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
            fields.member(&name, Value { object: &mut object, judge: self.judge, name: &name })?;
        }
        Ok(fields)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::from_list(list, self.judge)
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

/// Passes over a value and notes where `jsonb` may refuse it: at a zero with a point or exponent, which may have any
/// number of decimals. What a double holds otherwise has its first digit less than 325 places from the point. serde_json
/// fails beyond doubles and at 128 levels. (It must give numbers as numbers: not with its feature `arbitrary_precision`.)
#[derive(Clone, Copy)]
struct JsonbSafe<'j>(&'j Judge);

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
            self.0.doubts.set(true);
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
