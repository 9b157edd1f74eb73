//! Numbers of events within their message: the events that the message inserted, or those that `gapless verify` misses.

use std::fmt;
use std::ops::Range;

use super::event::Outcome;

/// Event numbers as sorted, disjoint, non-touching ranges. The number of an event is its index in its message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct EventNumbers(Vec<Range<i32>>);

impl EventNumbers {
    /// Only event 0: what a message of one event inserts.
    pub fn first() -> Self {
        std::iter::once(0).collect()
    }

    /// Adds a number that is larger than every number of the set, or already its largest.
    fn push(&mut self, number: i32) {
        match self.0.last_mut() {
            Some(last) if number < last.end => debug_assert_eq!(number + 1, last.end, "numbers come in order"),
            Some(last) if number == last.end => last.end += 1,
            _ => self.0.push(number..number + 1),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn count(&self) -> usize {
        self.0.iter().map(ExactSizeIterator::len).sum()
    }

    pub fn contains(&self, number: i32) -> bool {
        let at = self.0.partition_point(|range| range.end <= number);
        self.0.get(at).is_some_and(|range| range.contains(&number))
    }

    pub fn iter(&self) -> impl Iterator<Item = i32> + '_ {
        self.0.iter().cloned().flatten()
    }

    /// The numbers of this set that are not in the other one.
    pub fn without(&self, other: &Self) -> Self {
        self.iter().filter(|number| !other.contains(*number)).collect()
    }

    pub fn ranges(&self) -> &[Range<i32>] {
        &self.0
    }

    /// Parses the text form of a PostgreSQL `int4multirange`: `{[0,1),[3,5)}`.
    pub fn parse(text: &str) -> Option<Self> {
        let inner = text.strip_prefix('{')?.strip_suffix('}')?;
        if inner.is_empty() {
            return Some(Self::default());
        }
        let range = |text: &str| {
            let (from, to) = text.strip_prefix('[')?.split_once(',')?;
            Some(from.parse().ok()?..to.parse().ok()?)
        };
        let ranges: Option<Vec<Range<i32>>> = inner
            .split_inclusive(')')
            .map(|part| range(part.strip_prefix(',').unwrap_or(part).strip_suffix(')')?))
            .collect();
        ranges.map(Self)
    }

    /// The numbers of a stored text; none if it is not one that gapless writes.
    pub fn parse_or_none(text: &str) -> Self {
        Self::parse(text).unwrap_or_default()
    }

    /// The text that [`Self::parse`] reads.
    pub fn to_multirange(&self) -> String {
        let ranges: Vec<_> = self.0.iter().map(|range| format!("[{},{})", range.start, range.end)).collect();
        format!("{{{}}}", ranges.join(","))
    }
}

/// Sorted numbers; a repeated number counts once.
impl FromIterator<i32> for EventNumbers {
    fn from_iter<I: IntoIterator<Item = i32>>(numbers: I) -> Self {
        let mut set = Self::default();
        numbers.into_iter().for_each(|number| set.push(number));
        set
    }
}

impl fmt::Display for EventNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |range: &Range<i32>| match range.len() {
            1 => range.start.to_string(),
            _ => format!("{} to {}", range.start, range.end - 1),
        };
        let ranges: Vec<String> = self.0.iter().map(range).collect();
        write!(f, "event{} {}", if self.count() == 1 { "" } else { "s" }, ranges.join(", "))
    }
}

/// Collects the events that a message inserts. Allocates nothing for a message with one event.
#[derive(Debug, Default)]
pub struct InsertedEvents {
    has_first: bool,
    /// All numbers, if there is another one than 0.
    numbers: EventNumbers,
}

impl InsertedEvents {
    /// Adds an event. Events come in the order of their numbers.
    pub fn add(&mut self, number: i32) {
        if number == 0 {
            self.has_first = true;
            return;
        }
        if self.has_first && self.numbers.is_empty() {
            self.numbers.push(0);
        }
        self.numbers.push(number);
    }

    /// The value of `gapless.outcomes.inserted` for a message with this outcome.
    pub fn into_column(self, outcome: Outcome) -> Option<EventNumbers> {
        match (outcome, self.has_first) {
            _ if !self.numbers.is_empty() => Some(self.numbers),
            (Outcome::Stored, true) => None,
            (_, true) => Some(EventNumbers::first()),
            (Outcome::Removed, false) => Some(EventNumbers::default()),
            (_, false) => None,
        }
    }
}

/// The events that a message inserted, according to its outcome and the value of `gapless.outcomes.inserted`. `None` if
/// the outcome does not say it: `removed` by an earlier version, where the message inserted event 0 or none.
pub fn inserted_events(outcome: Outcome, column: Option<EventNumbers>) -> Option<EventNumbers> {
    match (outcome, column) {
        (_, Some(numbers)) => Some(numbers),
        (Outcome::Stored, None) => Some(EventNumbers::first()),
        (Outcome::Removed, None) => None,
        (Outcome::Processed | Outcome::Rejected | Outcome::Ignored, None) => Some(EventNumbers::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set(numbers: &[i32]) -> EventNumbers {
        numbers.iter().copied().collect()
    }

    #[test]
    fn event_numbers_are_shown_as_ranges() {
        assert_eq!(set(&[1]).to_string(), "event 1");
        assert_eq!(set(&[0, 2, 3, 4, 7]).to_string(), "events 0, 2 to 4, 7");
    }

    #[test]
    fn a_repeated_number_counts_once() {
        assert_eq!(set(&[1, 1, 2]), set(&[1, 2]));
    }

    #[test]
    fn text_that_is_no_multirange_is_refused() {
        for text in ["", "{", "{[1,2}", "{[1,x)}", "[1,2)", "{(1,2)}"] {
            assert_eq!(EventNumbers::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_message_with_one_event_has_no_value_in_the_column() {
        let column = |outcome, numbers: &[i32]| {
            let mut inserted = InsertedEvents::default();
            numbers.iter().for_each(|number| inserted.add(*number));
            inserted.into_column(outcome)
        };
        for (outcome, numbers) in [(Outcome::Stored, vec![0]), (Outcome::Processed, vec![]), (Outcome::Ignored, vec![])]
        {
            assert_eq!(column(outcome, &numbers), None, "{outcome:?}");
            assert_eq!(inserted_events(outcome, None), Some(set(&numbers)));
        }
        for (outcome, numbers) in [
            (Outcome::Stored, vec![0, 1]),
            (Outcome::Stored, vec![2]),
            (Outcome::Removed, vec![0]),
            (Outcome::Removed, vec![]),
            (Outcome::Removed, vec![1]),
        ] {
            let value = column(outcome, &numbers);
            assert_eq!(value, Some(set(&numbers)), "{outcome:?}");
            assert_eq!(inserted_events(outcome, value), Some(set(&numbers)));
        }
        assert_eq!(inserted_events(Outcome::Removed, None), None, "an earlier version did not record it");
    }

    proptest! {
        #[test]
        fn a_set_contains_exactly_its_numbers_and_its_text_is_read_again(
            ours in prop::collection::btree_set(0i32..40, 0..20),
            theirs in prop::collection::btree_set(0i32..40, 0..20),
        ) {
            let numbers: EventNumbers = ours.iter().copied().collect();
            prop_assert_eq!(numbers.iter().collect::<BTreeSet<i32>>(), ours.clone());
            prop_assert_eq!(numbers.count(), ours.len());
            prop_assert!((0..45).all(|n| numbers.contains(n) == ours.contains(&n)));
            prop_assert_eq!(EventNumbers::parse(&numbers.to_multirange()), Some(numbers.clone()));
            let others: EventNumbers = theirs.iter().copied().collect();
            let rest: BTreeSet<i32> = numbers.without(&others).iter().collect();
            prop_assert_eq!(rest, ours.difference(&theirs).copied().collect::<BTreeSet<i32>>());
        }
    }
}
