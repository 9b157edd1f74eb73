//! Decides when a partition has too many rejected messages. Many rejections mean that the producer changed its
//! format; they are not single bad messages. Pure; no other place decides it.
//!
//! Each partition has one [`Breaker`]. `ledger` gives it the outcome of each message that had no outcome before, in
//! offset order; a rejection counts whether the decoder or PostgreSQL rejected the message. The counts are zero at
//! each start, so a partition continues after a restart.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use crate::model::event::Reason;
use crate::model::offset::{Offset, OffsetRange};

/// The number of messages over which the share is computed. It is so large that single bad messages do not halt a
/// partition, and so small that a changed producer is found within seconds.
const WINDOW: u64 = 1000;

/// How many rejected messages of a partition are allowed. `None` means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    max_run: Option<u64>,
    /// Allowed rejected messages among the last [`WINDOW`] messages.
    max_in_window: Option<u64>,
}

impl Limits {
    /// `max_run`: the allowed number of rejected messages in a row. `max_share`: the allowed share (0 to 1) of
    /// rejected messages among the last 1000. 0 turns a limit off.
    pub fn new(max_run: u64, max_share: f64) -> Self {
        Self {
            max_run: (max_run > 0).then_some(max_run),
            max_in_window: (max_share > 0.0).then_some((max_share * WINDOW as f64).round() as u64),
        }
    }
}

/// Which limit was exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    Run,
    Share,
}

impl Exceeded {
    /// The configuration key of the limit.
    pub fn key(self) -> &'static str {
        match self {
            Self::Run => "format.max_rejected_run",
            Self::Share => "format.max_rejected_share",
        }
    }
}

/// A limit was exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerTrip {
    pub exceeded: Exceeded,
    /// From the first of the counted rejected messages to the last one.
    pub range: OffsetRange,
    pub rejected: u64,
    /// The number of messages among which `rejected` were counted.
    pub of: u64,
    /// The most common reason among the last [`WINDOW`] messages.
    pub mostly: Reason,
}

impl fmt::Display for BreakerTrip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rejected, of, range, key, mostly) =
            (self.rejected, self.of, self.range, self.exceeded.key(), self.mostly.name());
        match self.exceeded {
            Exceeded::Run => write!(f, "{rejected} messages in a row, offsets {range}, are rejected")?,
            Exceeded::Share => write!(f, "{rejected} of the last {of} messages, offsets {range}, are rejected")?,
        }
        write!(f, ", most often as {mostly}: more than {key} allows")
    }
}

/// A rejected message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rejected {
    /// The message's number among all counted messages; the first one has 1.
    number: u64,
    offset: Offset,
    reason: Reason,
}

/// Counts the rejected messages of one partition. Each batch counts on a copy, which replaces the breaker when the
/// batch is committed. A copy is small while few messages are rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker {
    limits: Limits,
    counted: u64,
    /// The rejected messages among the last [`WINDOW`] messages.
    rejected: VecDeque<Rejected>,
    /// The first message of the unbroken row of rejected messages that ends with the last counted message.
    run: Option<Rejected>,
}

impl Breaker {
    pub fn new(limits: Limits) -> Self {
        Self { limits, counted: 0, rejected: VecDeque::new(), run: None }
    }

    /// Counts the next message of the partition; `rejected` is the reason if the message is rejected. `Err` if a limit
    /// is now exceeded.
    pub fn count(&mut self, offset: Offset, rejected: Option<Reason>) -> Result<(), BreakerTrip> {
        self.counted += 1;
        let left = self.counted.saturating_sub(WINDOW);
        while self.rejected.front().is_some_and(|r| r.number <= left) {
            self.rejected.pop_front();
        }
        let Some(reason) = rejected else {
            self.run = None;
            return self.check();
        };
        let rejected = Rejected { number: self.counted, offset, reason };
        self.rejected.push_back(rejected);
        self.run.get_or_insert(rejected);
        self.check()
    }

    fn check(&self) -> Result<(), BreakerTrip> {
        let run = self.run.map_or(0, |first| self.counted - first.number) + u64::from(self.run.is_some());
        if let Some(first) = self.run.filter(|_| self.limits.max_run.is_some_and(|max| run > max)) {
            return Err(self.trip(Exceeded::Run, first, run, run));
        }
        let in_window = self.rejected.len() as u64;
        let too_many = self.counted >= WINDOW && self.limits.max_in_window.is_some_and(|max| in_window > max);
        match self.rejected.front().filter(|_| too_many) {
            Some(first) => Err(self.trip(Exceeded::Share, *first, in_window, WINDOW)),
            None => Ok(()),
        }
    }

    fn trip(&self, exceeded: Exceeded, first: Rejected, rejected: u64, of: u64) -> BreakerTrip {
        let last = self.rejected.back().map_or(first.offset, |r| r.offset);
        let mut counts: HashMap<Reason, u64> = HashMap::new();
        self.rejected.iter().for_each(|r| *counts.entry(r.reason).or_default() += 1);
        let mostly = Reason::ALL.into_iter().rev().max_by_key(|reason| counts.get(reason).copied().unwrap_or(0));
        let range = OffsetRange::new(first.offset.at(), last.next()).expect("the first is not behind the last");
        BreakerTrip { exceeded, range, rejected, of, mostly: mostly.unwrap_or(first.reason) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(n: usize) -> Offset {
        Offset::new(n as i64).expect("not negative")
    }

    /// Counts outcomes at offsets 0, 1, …; returns the offset at which the breaker trips, and the trip.
    fn feed(limits: Limits, outcomes: impl IntoIterator<Item = Option<Reason>>) -> Option<(usize, BreakerTrip)> {
        let mut breaker = Breaker::new(limits);
        outcomes.into_iter().enumerate().find_map(|(n, reason)| Some((n, breaker.count(at(n), reason).err()?)))
    }

    const BAD: Option<Reason> = Some(Reason::NotJson);

    #[test]
    fn a_run_trips_at_the_first_message_above_the_limit() {
        let outcomes = |bad: usize| [None, BAD, None].into_iter().chain(std::iter::repeat_n(BAD, bad));
        assert_eq!(feed(Limits::new(5, 0.0), outcomes(5)), None);
        let (n, trip) = feed(Limits::new(5, 0.0), outcomes(6)).expect("one too many");
        assert_eq!((n, trip.range.to_string(), trip.rejected, trip.exceeded), (8, "[3, 9)".into(), 6, Exceeded::Run));
    }

    #[test]
    fn a_share_is_checked_once_the_window_is_full() {
        let half = (0..5000).map(|n| if n % 2 == 0 { BAD } else { None });
        assert_eq!(feed(Limits::new(0, 0.5), half), None, "as much as allowed");
        let (n, trip) = feed(Limits::new(0, 0.5), std::iter::repeat_n(BAD, 2000)).expect("all of them");
        assert_eq!((n, trip.rejected, trip.of, trip.exceeded), (999, 1000, 1000, Exceeded::Share));
        let changed = std::iter::repeat_n(None, 3000).chain(std::iter::repeat_n(BAD, 2000));
        let (n, trip) = feed(Limits::new(0, 0.5), changed).expect("the producer changed");
        assert_eq!((n, trip.range.to_string(), trip.rejected), (3500, "[3000, 3501)".into(), 501));
    }

    #[test]
    fn zero_turns_a_limit_off() {
        assert_eq!(feed(Limits::new(0, 0.0), std::iter::repeat_n(BAD, 5000)), None);
    }

    #[test]
    fn a_trip_names_the_most_common_reason_and_the_key() {
        let reasons = [Reason::NotJson, Reason::BadField, Reason::BadField].map(Some);
        let (_, trip) = feed(Limits::new(2, 0.0), reasons).expect("one too many");
        assert_eq!(
            trip.to_string(),
            "3 messages in a row, offsets [0, 3), are rejected, most often as bad_field: more than format.max_rejected_run allows"
        );
    }

    proptest! {
        /// The breaker trips at the same message as a check that counts all messages again.
        #[test]
        fn it_trips_exactly_when_a_full_recount_exceeds_a_limit(
            blocks in prop::collection::vec((any::<bool>(), 1_usize..700), 1..12),
            max_run in 0_u64..900,
            share in 0_u64..=10,
        ) {
            let outcomes: Vec<bool> = blocks.into_iter().flat_map(|(bad, n)| std::iter::repeat_n(bad, n)).collect();
            let window = WINDOW as usize;
            let exceeded = |upto: &[bool]| {
                let run = upto.iter().rev().take_while(|bad| **bad).count() as u64;
                let share_of = |last: &[bool]| last.iter().filter(|bad| **bad).count() as u64;
                let full = upto.len() >= window;
                (max_run > 0 && run > max_run)
                    || (share > 0 && full && share_of(&upto[upto.len().saturating_sub(window)..]) > share * WINDOW / 10)
            };
            let expected = (0..outcomes.len()).find(|n| exceeded(&outcomes[..=*n]));
            let limits = Limits::new(max_run, share as f64 / 10.0);
            let found = feed(limits, outcomes.iter().map(|bad| if *bad { BAD } else { None })).map(|(n, _)| n);
            prop_assert_eq!(found, expected);
        }
    }
}
