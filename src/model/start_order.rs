//! Start orders: parses `--offset` and decides its effect on one partition. Pure.
//!
//! Each refusal names the exact range that would be skipped or does not exist, and a command that works instead.

use std::fmt;

use jiff::Timestamp;

use crate::model::offset::{NextOffset, OffsetRange, Watermarks};
use crate::model::topic::TopicPartition;

/// Where the daemon is ordered to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartOrder {
    /// Resume at the stored positions.
    FromDb,
    /// The text of `--offset` as it was given, and the parsed request.
    Offset { text: String, ask: PartitionRequest },
}

/// The start points that `--offset` requests, by partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartitionRequest {
    /// A bare number: the only partition of a one-partition topic.
    Only(NextOffset),
    Every(Point),
    /// Partitions that are not named resume.
    Named(Vec<(i32, Point)>),
}

/// A start point in a partition's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    Offset(NextOffset),
    /// The log start.
    Earliest,
    /// The last stable offset.
    Latest,
    /// The first message whose broker timestamp is at this time or later.
    Time(Timestamp),
}

/// The forms of `--offset`, for error messages.
pub const FORMS: &str =
    "N (one-partition topics), 0:1500,3:earliest (per partition), earliest, latest, time:2026-11-20T12:00:00Z";

/// An `--offset` that cannot be parsed, or that does not fit the topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    #[error("--offset {0:?} is none of: {FORMS}")]
    Syntax(String),
    #[error("--offset names partition {0} twice")]
    Twice(i32),
    #[error("--offset {offset} is for a topic with one partition, this one has {partitions}: write {}", named(*partitions, *offset))]
    ManyPartitions { offset: NextOffset, partitions: usize },
    #[error("--offset names partition {partition}, the topic has 0 to {last}")]
    NoPartition { partition: i32, last: i32 },
}

fn named(partitions: usize, offset: NextOffset) -> String {
    (0..partitions.min(3)).map(|p| format!("{p}:{offset}")).collect::<Vec<_>>().join(",")
}

impl StartOrder {
    /// Parses the text of `--offset`.
    pub fn parse(text: &str) -> Result<Self, OrderError> {
        let text = text.trim();
        let syntax = || OrderError::Syntax(text.to_owned());
        let number = text.parse::<i64>().ok().and_then(NextOffset::new);
        let ask = match (number, Point::parse(text)) {
            (Some(offset), _) => PartitionRequest::Only(offset),
            (None, Some(point)) => PartitionRequest::Every(point),
            (None, None) => {
                let mut named: Vec<(i32, Point)> = Vec::new();
                for item in text.split(',') {
                    let (partition, point) = item.trim().split_once(':').ok_or_else(syntax)?;
                    let partition: i32 = partition.parse().ok().filter(|p| *p >= 0).ok_or_else(syntax)?;
                    if named.iter().any(|(p, _)| *p == partition) {
                        return Err(OrderError::Twice(partition));
                    }
                    named.push((partition, Point::parse(point).ok_or_else(syntax)?));
                }
                PartitionRequest::Named(named)
            }
        };
        Ok(Self::Offset { text: text.to_owned(), ask })
    }
}

impl PartitionRequest {
    /// The start point requested for this partition; `None` means that it resumes.
    pub fn point(&self, partition: i32) -> Option<Point> {
        match self {
            Self::Only(offset) => Some(Point::Offset(*offset)),
            Self::Every(point) => Some(*point),
            Self::Named(points) => points.iter().find(|(p, _)| *p == partition).map(|(_, point)| *point),
        }
    }

    /// Checks that the order fits a topic with partitions `0..partitions`.
    pub fn check(&self, partitions: usize) -> Result<(), OrderError> {
        match self {
            Self::Only(offset) if partitions != 1 => Err(OrderError::ManyPartitions { offset: *offset, partitions }),
            Self::Named(points) => {
                let last = i32::try_from(partitions).unwrap_or(i32::MAX) - 1;
                match points.iter().find(|(p, _)| *p > last) {
                    Some((partition, _)) => Err(OrderError::NoPartition { partition: *partition, last }),
                    None => Ok(()),
                }
            }
            Self::Only(_) | Self::Every(_) => Ok(()),
        }
    }

    /// The broker timestamp to look up for this partition, in milliseconds since 1970; `None` if no time is requested.
    pub fn time_ms(&self, partition: i32) -> Option<i64> {
        match self.point(partition)? {
            Point::Time(time) => Some(time.as_millisecond()),
            _ => None,
        }
    }
}

impl Point {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "earliest" => Some(Self::Earliest),
            "latest" => Some(Self::Latest),
            _ => match text.strip_prefix("time:") {
                Some(time) => time.parse().ok().map(Self::Time),
                None => text.parse().ok().and_then(NextOffset::new).map(Self::Offset),
            },
        }
    }
}

/// The state of a partition before a start.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    pub partition: i32,
    /// The stored `(start_offset, next_offset)`; `None` if the partition has no position.
    pub stored: Option<(NextOffset, NextOffset)>,
    pub topic: Known,
    pub marks: Watermarks,
    /// The first offset at or after the requested time; `None` if no time is requested or no message is that late.
    pub at_time: Option<NextOffset>,
}

/// Whether the ledger has positions of this generation of the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// The first start: gapless never promised the messages that Kafka deleted before it.
    New,
    /// There was a start before. A partition without a position appeared after it and begins at offset 0.
    Read,
}

/// The effect of a start on a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Continues at the stored position.
    Resume,
    /// Begins at this offset; there is no position yet.
    Begin(NextOffset),
    /// Begins after this range, which starts at offset 0 and which the operator allowed to skip; there is no position
    /// yet.
    BeginBehind(OffsetRange),
    /// Reads again from this earlier offset.
    Rewind(NextOffset),
    /// Skips this range, as the operator allowed.
    Skip(OffsetRange),
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resume => write!(f, "resumes"),
            Self::Begin(at) => write!(f, "begins at {at}"),
            Self::BeginBehind(range) => write!(f, "begins at {}, skips {range}", range.to()),
            Self::Rewind(to) => write!(f, "goes back to {to}"),
            Self::Skip(range) => write!(f, "skips {range}"),
        }
    }
}

/// Why an order is not carried out. An operator must decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    BelowLogStart { partition: i32, range: OffsetRange },
    BeyondLogEnd { partition: i32, range: OffsetRange },
    WouldSkip { partition: i32, range: OffsetRange },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BelowLogStart { partition, range } => write!(
                f,
                "partition {partition}: Kafka no longer has {range}; its log starts at {to}; order that offset or a later one, `gapless --offset {partition}:{to}`",
                to = range.to()
            ),
            Self::BeyondLogEnd { partition, range } => write!(
                f,
                "partition {partition}: {range} is not written yet; the log ends at {from}; order that offset or an earlier one, `gapless --offset {partition}:{from}`",
                from = range.from()
            ),
            Self::WouldSkip { partition, range } => write!(
                f,
                "partition {partition}: would skip {range}, {} offsets not yet stored; resume with `gapless --from-db`, or skip them for good with `gapless --offset {partition}:{} --allow-skip`",
                range.count(),
                range.to()
            ),
        }
    }
}

/// Decides the effect of a start on one partition. `point` is `None` if the partition resumes.
pub fn decide(before: &Before, point: Option<Point>, skip_allowed: SkipAllowed) -> Result<Move, Refusal> {
    let (partition, marks) = (before.partition, before.marks);
    let Some(point) = point else {
        return Ok(match (before.stored, before.topic) {
            (Some(_), _) => Move::Resume,
            (None, Known::New) => Move::Begin(marks.log_start),
            (None, Known::Read) => Move::Begin(NextOffset::ZERO),
        });
    };
    let asked = match point {
        Point::Offset(offset) => offset,
        Point::Earliest => marks.log_start,
        Point::Latest => marks.last_stable,
        Point::Time(_) => before.at_time.unwrap_or(marks.last_stable),
    };
    if let Some(range) = OffsetRange::new(asked, marks.log_start) {
        return Err(Refusal::BelowLogStart { partition, range });
    }
    if let Some(range) = OffsetRange::new(marks.log_end, asked) {
        return Err(Refusal::BeyondLogEnd { partition, range });
    }
    let next = match (before.stored, before.topic) {
        (Some((_, next)), _) => next,
        (None, Known::New) => return Ok(Move::Begin(asked)),
        (None, Known::Read) => NextOffset::ZERO,
    };
    match (OffsetRange::new(next, asked), skip_allowed, before.stored) {
        (Some(range), SkipAllowed::No, _) => Err(Refusal::WouldSkip { partition, range }),
        (Some(range), SkipAllowed::Yes, Some(_)) => Ok(Move::Skip(range)),
        (Some(range), SkipAllowed::Yes, None) => Ok(Move::BeginBehind(range)),
        (None, _, None) => Ok(Move::Begin(asked)),
        (None, _, Some(_)) if asked == next => Ok(Move::Resume),
        (None, _, Some(_)) => Ok(Move::Rewind(asked)),
    }
}

/// The partitions without a leader for which the start must wait, because it must decide where they begin. At the
/// topic's first start these are all of them; later, those for which the order requests a start point. A partition that
/// resumes keeps its position, and a partition that appeared later is added when it has a leader.
pub fn undecided(leaderless: &[TopicPartition], ask: Option<&PartitionRequest>, topic: Known) -> Vec<TopicPartition> {
    let asked = |p: &TopicPartition| ask.is_some_and(|ask| ask.point(p.partition).is_some());
    leaderless.iter().filter(|partition| topic == Known::New || asked(partition)).cloned().collect()
}

/// Whether the order has the flag `--allow-skip`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipAllowed {
    Yes,
    No,
}

/// Whether the order has the flag `--again`, which repeats an order that was already carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    Yes,
    No,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::topic::Topic;

    fn at(n: i64) -> NextOffset {
        NextOffset::new(n).expect("not negative")
    }

    fn range(from: i64, to: i64) -> OffsetRange {
        OffsetRange::new(at(from), at(to)).expect("not empty")
    }

    fn before(stored: Option<(i64, i64)>) -> Before {
        let marks = Watermarks { log_start: at(10), last_stable: at(90), log_end: at(100) };
        let topic = Known::New;
        Before { partition: 3, stored: stored.map(|(s, n)| (at(s), at(n))), topic, marks, at_time: None }
    }

    fn decided(stored: Option<(i64, i64)>, text: &str) -> Result<Move, Refusal> {
        let Ok(StartOrder::Offset { ask, .. }) = StartOrder::parse(text) else { panic!("{text} is an order") };
        decide(&before(stored), ask.point(3), SkipAllowed::No)
    }

    #[test]
    fn exactly_the_documented_forms_are_parsed() {
        let ask = |text: &str| match StartOrder::parse(text) {
            Ok(StartOrder::Offset { ask, .. }) => Ok(ask),
            Ok(StartOrder::FromDb) => panic!("not from --offset"),
            Err(error) => Err(error),
        };
        assert_eq!(ask("17"), Ok(PartitionRequest::Only(at(17))));
        assert_eq!(ask("latest"), Ok(PartitionRequest::Every(Point::Latest)));
        assert_eq!(
            ask("0:1500, 3:earliest"),
            Ok(PartitionRequest::Named(vec![(0, Point::Offset(at(1500))), (3, Point::Earliest)]))
        );
        assert!(matches!(ask("time:2026-11-20T12:00:00Z"), Ok(PartitionRequest::Every(Point::Time(_)))));
        assert!(matches!(ask("0:time:2026-11-20T12:00:00Z"), Ok(PartitionRequest::Named(_))));
        assert_eq!(ask("0:1,0:2"), Err(OrderError::Twice(0)));
        for text in ["", "-5", "newest", "0:", ":5", "0:-1", "time:yesterday", "1;2", "-1:5"] {
            assert_eq!(ask(text), Err(OrderError::Syntax(text.to_owned())));
        }
    }

    #[test]
    fn a_bare_number_is_accepted_only_for_a_topic_with_one_partition() {
        assert_eq!(PartitionRequest::Only(at(5)).check(1), Ok(()));
        let error = PartitionRequest::Only(at(5)).check(3).expect_err("refused").to_string();
        assert!(error.contains("0:5,1:5,2:5"), "{error}");
        assert!(PartitionRequest::Named(vec![(3, Point::Latest)]).check(3).is_err());
    }

    #[test]
    fn without_a_stored_position_a_partition_begins_at_the_requested_point() {
        assert_eq!(decided(None, "50"), Ok(Move::Begin(at(50))));
        assert_eq!(decided(None, "earliest"), Ok(Move::Begin(at(10))));
        assert_eq!(decided(None, "latest"), Ok(Move::Begin(at(90))));
        assert_eq!(decided(None, "0:50"), Ok(Move::Begin(at(10))), "a partition not named starts at its beginning");
        assert_eq!(decided(None, "time:2026-11-20T12:00:00Z"), Ok(Move::Begin(at(90))), "after the last message");
    }

    #[test]
    fn a_partition_that_appears_later_begins_at_offset_zero() {
        let later = Before { topic: Known::Read, ..before(None) };
        let decided = |point, skip| decide(&later, point, skip);
        assert_eq!(decided(None, SkipAllowed::No), Ok(Move::Begin(at(0))));
        let would_skip = Refusal::WouldSkip { partition: 3, range: range(0, 10) };
        assert_eq!(decided(Some(Point::Earliest), SkipAllowed::No), Err(would_skip));
        assert_eq!(decided(Some(Point::Earliest), SkipAllowed::Yes), Ok(Move::BeginBehind(range(0, 10))));
        let whole = Before { marks: Watermarks { log_start: at(0), ..later.marks }, ..later };
        assert_eq!(decide(&whole, Some(Point::Earliest), SkipAllowed::No), Ok(Move::Begin(at(0))));
    }

    #[test]
    fn a_start_waits_only_for_the_leaders_of_undecided_partitions() {
        let Ok(StartOrder::Offset { ask, .. }) = StartOrder::parse("1:40,2:earliest") else { panic!("an order") };
        let undecided = |leaderless: &[i32], ask, known| {
            let leaderless: Vec<_> = leaderless.iter().map(|number| Topic::from("events").partition(*number)).collect();
            undecided(&leaderless, ask, known).iter().map(|p| p.partition).collect::<Vec<_>>()
        };
        assert_eq!(undecided(&[0, 1], None, Known::New), [0, 1], "the first start decides where each begins");
        assert_eq!(undecided(&[0, 1], None, Known::Read), [0; 0]);
        assert_eq!(undecided(&[0, 1], Some(&ask), Known::Read), [1]);
        assert_eq!(undecided(&[], Some(&ask), Known::New), [0; 0]);
    }

    #[test]
    fn an_order_before_at_or_after_the_position_rewinds_resumes_or_is_refused() {
        assert_eq!(decided(Some((20, 60)), "30"), Ok(Move::Rewind(at(30))));
        assert_eq!(decided(Some((20, 60)), "60"), Ok(Move::Resume));
        assert_eq!(decided(Some((20, 60)), "latest"), Err(Refusal::WouldSkip { partition: 3, range: range(60, 90) }));
        assert_eq!(decided(Some((0, 5)), "earliest"), Err(Refusal::WouldSkip { partition: 3, range: range(5, 10) }));
        let allowed = decide(&before(Some((20, 60))), Some(Point::Latest), SkipAllowed::Yes);
        assert_eq!(allowed, Ok(Move::Skip(range(60, 90))));
    }

    #[test]
    fn an_offset_outside_the_log_is_refused_with_its_range() {
        assert_eq!(decided(None, "5"), Err(Refusal::BelowLogStart { partition: 3, range: range(5, 10) }));
        assert_eq!(decided(None, "101"), Err(Refusal::BeyondLogEnd { partition: 3, range: range(100, 101) }));
        assert_eq!(decided(None, "100"), Ok(Move::Begin(at(100))), "the log end is a valid position");
    }
}
