//! What can still go wrong beside the stream, and when: how far a partition is from losing unread
//! messages to retention, and how long an open transaction has held it back. Pure: moments come in as
//! values.
//!
//! Kafka deletes whole segments, oldest first, once all of their messages are older than
//! `retention.ms` or the log is larger than `retention.bytes`. When a message's age allows that is
//! known exactly; when the size does is judged by how fast the log start has moved.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::model::offset::{NextOffset, Watermarks};
use crate::model::topic::Retention;

/// A log start moves in jumps of a segment: its speed means nothing before this time.
const MIN_OBSERVATION: Duration = Duration::from_secs(60);
/// The speed is that of the last hour, from a sample a minute.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(60);
const OBSERVATION_WINDOW: Duration = Duration::from_secs(3600);
/// An alarm is raised anew only after it was calm for this long: a reader at the edge of a threshold
/// crosses it all the time.
const ALARM_CALM: Duration = Duration::from_secs(60);

/// How far a partition is from a loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Headroom {
    /// Position less log start, 0 at worst.
    pub offsets: i64,
    /// Until retention may delete the next unread message; infinite if nothing is unread, nothing is
    /// ever deleted, or nothing can be told.
    pub seconds: f64,
}

/// What headroom is computed from.
#[derive(Debug, Clone, Copy)]
pub struct RetentionInputs {
    pub position: NextOffset,
    pub marks: Watermarks,
    /// When the next unread message was written, or a moment before that; milliseconds since 1970.
    pub unread_ms: Option<i64>,
    pub now_ms: i64,
    /// Of the log start, in offsets a second.
    pub speed: Option<f64>,
}

impl RetentionInputs {
    pub fn headroom(&self, retention: Retention) -> Headroom {
        let ahead = self.position.get() - self.marks.log_start.get();
        Headroom { offsets: ahead.max(0), seconds: self.seconds(ahead, retention) }
    }

    fn seconds(&self, ahead: i64, retention: Retention) -> f64 {
        if ahead < 0 {
            return 0.0;
        }
        if self.position >= self.marks.last_stable || retention == Retention::Unlimited {
            return f64::INFINITY;
        }
        let by_age = match (retention, self.unread_ms) {
            (Retention::Limited { age: Some(age) }, Some(written)) => {
                age.as_secs_f64() - self.now_ms.saturating_sub(written) as f64 / 1000.0
            }
            _ => f64::INFINITY,
        };
        let by_speed = self.speed.map_or(f64::INFINITY, |speed| ahead as f64 / speed);
        by_age.min(by_speed).max(0.0)
    }
}

/// What was seen of a partition's watermarks over time.
#[derive(Debug, Default)]
pub struct LogObservations {
    log_starts: VecDeque<(Instant, NextOffset)>,
    /// The last stable offset while it is below the log end, and since when it has stood there.
    held: Option<(NextOffset, Instant)>,
}

impl LogObservations {
    pub fn observe(&mut self, now: Instant, marks: Watermarks) {
        if self.log_starts.back().is_none_or(|(at, _)| now.duration_since(*at) >= SAMPLE_INTERVAL) {
            self.log_starts.push_back((now, marks.log_start));
        }
        while self.log_starts.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= OBSERVATION_WINDOW) {
            self.log_starts.pop_front();
        }
        let stood = self.held.filter(|(at, _)| *at == marks.last_stable);
        self.held = (marks.last_stable < marks.log_end).then_some(stood.unwrap_or((marks.last_stable, now)));
    }

    /// Offsets a second by which the log start moves; `None` if it does not, or not for long enough.
    pub fn speed(&self, now: Instant, log_start: NextOffset) -> Option<f64> {
        let (since, from) = self.log_starts.front()?;
        let (time, moved) = (now.duration_since(*since), log_start.get() - from.get());
        (time >= MIN_OBSERVATION && moved > 0).then(|| moved as f64 / time.as_secs_f64())
    }

    /// How long the last stable offset has stood below the log end: since it moved last.
    pub fn stalled(&self, now: Instant) -> Duration {
        self.held.map_or(Duration::ZERO, |(_, since)| now.duration_since(since))
    }
}

/// What was told of a partition.
#[derive(Debug, Default)]
pub struct Alarms {
    pub headroom: Alarm,
    pub stalled: Alarm,
}

/// Tells a crossing from a state.
#[derive(Debug, Default)]
pub struct Alarm {
    bad_at: Option<Instant>,
}

impl Alarm {
    /// Whether this is to be told: it is bad now, and was not within the last minute.
    pub fn is_new(&mut self, bad: bool, now: Instant) -> bool {
        if !bad {
            return false;
        }
        self.bad_at.replace(now).is_none_or(|before| now.duration_since(before) >= ALARM_CALM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: i64) -> NextOffset {
        NextOffset::new(n).expect("not negative")
    }

    fn marks(log_start: i64, last_stable: i64, log_end: i64) -> Watermarks {
        Watermarks { log_start: at(log_start), last_stable: at(last_stable), log_end: at(log_end) }
    }

    fn sight(position: i64, unread_ms: Option<i64>, speed: Option<f64>) -> RetentionInputs {
        RetentionInputs { position: at(position), marks: marks(100, 900, 900), unread_ms, now_ms: 1_000_000, speed }
    }

    const HOUR: Duration = Duration::from_secs(3600);
    const AN_HOUR: Retention = Retention::Limited { age: Some(HOUR) };
    const BY_SIZE: Retention = Retention::Limited { age: None };

    #[test]
    fn a_topic_s_settings_say_what_deletes() {
        assert_eq!(Retention::of("delete", Some("3600000"), Some("-1")), AN_HOUR);
        assert_eq!(Retention::of("delete", Some("-1"), Some("1000")), BY_SIZE);
        assert_eq!(Retention::of("compact,delete", Some("3600000"), Some("1000")), AN_HOUR);
        assert_eq!(Retention::of("delete", Some("-1"), Some("-1")), Retention::Unlimited);
        assert_eq!(Retention::of("compact", Some("3600000"), Some("-1")), Retention::Unlimited);
    }

    #[test]
    fn the_smaller_of_what_age_and_speed_leave_counts() {
        let written = Some(1_000_000 - 600_000);
        let seconds = |sight: RetentionInputs, retention| sight.headroom(retention).seconds;
        assert_eq!(seconds(sight(200, written, None), AN_HOUR), 3000.0);
        assert_eq!(seconds(sight(200, written, Some(0.5)), AN_HOUR), 200.0);
        assert_eq!(seconds(sight(200, written, Some(0.5)), BY_SIZE), 200.0);
        assert_eq!(seconds(sight(200, written, Some(0.5)), Retention::Unknown), 200.0, "falls back to the speed");
        assert_eq!(seconds(sight(200, Some(-9_000_000), None), AN_HOUR), 0.0, "older than what is kept");
        assert_eq!(seconds(sight(100, written, Some(0.5)), AN_HOUR), 0.0, "the next jump takes it");
    }

    #[test]
    fn it_is_infinite_if_nothing_is_unread_ever_deleted_or_known() {
        let written = Some(0);
        let seconds = |sight: RetentionInputs, retention| sight.headroom(retention).seconds;
        assert_eq!(seconds(sight(900, written, Some(0.5)), AN_HOUR), f64::INFINITY);
        assert_eq!(seconds(sight(200, written, Some(0.5)), Retention::Unlimited), f64::INFINITY);
        assert_eq!(seconds(sight(200, None, None), AN_HOUR), f64::INFINITY);
    }

    #[test]
    fn what_is_lost_already_has_no_headroom() {
        assert_eq!(sight(90, None, None).headroom(Retention::Unlimited), Headroom { offsets: 0, seconds: 0.0 });
        assert_eq!(sight(150, None, None).headroom(Retention::Unlimited).offsets, 50);
    }

    #[test]
    fn a_topic_with_short_retention_is_not_always_in_danger() {
        let short = Retention::Limited { age: Some(HOUR / 6) };
        assert_eq!(short.threshold(HOUR), HOUR / 12);
        assert_eq!(Retention::Unknown.threshold(HOUR), HOUR);
    }

    #[test]
    fn the_speed_is_that_of_the_last_hour_and_not_told_too_soon() {
        let begun = Instant::now();
        let mut watched = LogObservations::default();
        watched.observe(begun, marks(100, 900, 900));
        assert_eq!(watched.speed(begun + MIN_OBSERVATION / 2, at(400)), None, "one jump is no speed");
        assert_eq!(watched.speed(begun + MIN_OBSERVATION, at(100)), None, "it stands still");
        assert_eq!(watched.speed(begun + MIN_OBSERVATION, at(400)), Some(5.0));
        for minute in 1..=180 {
            watched.observe(begun + SAMPLE_INTERVAL * minute, marks(if minute > 100 { 700 } else { 100 }, 900, 900));
        }
        assert_eq!(watched.speed(begun + SAMPLE_INTERVAL * 180, at(700)), None, "it has not moved for an hour");
        assert!(watched.log_starts.len() <= 62, "bounded");
    }

    #[test]
    fn a_last_stable_offset_that_moves_is_not_stalled() {
        let begun = Instant::now();
        let second = Duration::from_secs(1);
        let mut watched = LogObservations::default();
        for (time, marks, stalled) in [
            (0, marks(0, 5, 5), 0),
            (1, marks(0, 5, 8), 0),
            (4, marks(0, 5, 12), 3),
            (5, marks(0, 9, 12), 0),
            (7, marks(0, 9, 12), 2),
            (8, marks(0, 12, 12), 0),
        ] {
            watched.observe(begun + second * time, marks);
            assert_eq!(watched.stalled(begun + second * time), second * stalled, "after {time} s");
        }
    }

    #[test]
    fn an_alarm_tells_a_crossing_once_and_anew_after_a_calm_minute() {
        let begun = Instant::now();
        let mut alarm = Alarm::default();
        let mut tells = |bad, seconds| alarm.is_new(bad, begun + Duration::from_secs(seconds));
        let told = [tells(false, 0), tells(true, 1), tells(true, 50), tells(false, 60), tells(true, 100)];
        assert_eq!(told, [false, true, false, false, false]);
        assert!(!tells(false, 159) && tells(true, 160));
    }
}
