//! The retention risk of a partition: how much time is left until retention may delete unread messages, and how long an
//! open transaction has held back the last stable offset. Pure: the caller passes the current time.
//!
//! Kafka deletes whole segments, the oldest first, when all their messages are older than `retention.ms` or when the
//! log is larger than `retention.bytes`. The moment at which a message's age allows its deletion is known exactly. The
//! moment at which the log's size allows it is estimated from the speed at which the log start has moved.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::model::offset::{NextOffset, Watermarks};
use crate::model::topic::Retention;

/// The log start moves in jumps of one segment, so a speed is computed only after this observation time.
const MIN_OBSERVATION: Duration = Duration::from_secs(60);
/// The log start is sampled once a minute.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(60);
/// The speed is the average over the last hour.
const OBSERVATION_WINDOW: Duration = Duration::from_secs(3600);
/// An alarm is raised again only after the value was good for this long, because a value close to the threshold crosses
/// it often.
const ALARM_CALM: Duration = Duration::from_secs(60);

/// How far a partition is from losing unread messages.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Headroom {
    /// Position minus log start, at least 0.
    pub offsets: i64,
    /// Seconds until retention may delete the next unread message. Infinite if no message is unread, if the topic
    /// deletes nothing, or if the time is not known.
    pub seconds: f64,
}

/// The inputs of the headroom computation.
#[derive(Debug, Clone, Copy)]
pub struct RetentionInputs {
    pub position: NextOffset,
    pub marks: Watermarks,
    /// The time at which the next unread message was written, or an earlier time; milliseconds since 1970.
    pub unread_ms: Option<i64>,
    pub now_ms: i64,
    /// The speed of the log start in offsets per second.
    pub speed: Option<f64>,
}

impl RetentionInputs {
    pub fn headroom(&self, retention: Retention) -> Headroom {
        let distance = self.position.get() - self.marks.log_start.get();
        Headroom { offsets: distance.max(0), seconds: self.seconds(distance, retention) }
    }

    fn seconds(&self, distance: i64, retention: Retention) -> f64 {
        if distance < 0 {
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
        let by_speed = self.speed.map_or(f64::INFINITY, |speed| distance as f64 / speed);
        by_age.min(by_speed).max(0.0)
    }
}

/// Observations of a partition's watermarks over time.
#[derive(Debug, Default)]
pub struct LogObservations {
    log_starts: VecDeque<(Instant, NextOffset)>,
    /// The last stable offset while it is below the log end, and the time since when it has not moved.
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
        let unmoved = self.held.filter(|(at, _)| *at == marks.last_stable);
        self.held = (marks.last_stable < marks.log_end).then_some(unmoved.unwrap_or((marks.last_stable, now)));
    }

    /// The speed of the log start in offsets per second. `None` if it does not move or was observed for too short a
    /// time.
    pub fn speed(&self, now: Instant, log_start: NextOffset) -> Option<f64> {
        let (since, from) = self.log_starts.front()?;
        let (time, moved) = (now.duration_since(*since), log_start.get() - from.get());
        (time >= MIN_OBSERVATION && moved > 0).then(|| moved as f64 / time.as_secs_f64())
    }

    /// How long the last stable offset has been below the log end without moving.
    pub fn stalled(&self, now: Instant) -> Duration {
        self.held.map_or(Duration::ZERO, |(_, since)| now.duration_since(since))
    }
}

/// The alarms of a partition.
#[derive(Debug, Default)]
pub struct Alarms {
    pub headroom: Alarm,
    pub stalled: Alarm,
}

/// Reports that a value became bad, and not that it still is.
#[derive(Debug, Default)]
pub struct Alarm {
    bad_at: Option<Instant>,
}

impl Alarm {
    /// Returns true if the alarm is to be raised: the value is bad now and was not bad within the last minute.
    pub fn is_new(&mut self, bad: bool, now: Instant) -> bool {
        if !bad {
            return false;
        }
        self.bad_at.replace(now).is_none_or(|last| now.duration_since(last) >= ALARM_CALM)
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

    fn inputs(position: i64, unread_ms: Option<i64>, speed: Option<f64>) -> RetentionInputs {
        RetentionInputs { position: at(position), marks: marks(100, 900, 900), unread_ms, now_ms: 1_000_000, speed }
    }

    const HOUR: Duration = Duration::from_secs(3600);
    const AN_HOUR: Retention = Retention::Limited { age: Some(HOUR) };
    const BY_SIZE: Retention = Retention::Limited { age: None };

    #[test]
    fn the_retention_follows_from_the_topics_settings() {
        assert_eq!(Retention::of("delete", Some("3600000"), Some("-1")), AN_HOUR);
        assert_eq!(Retention::of("delete", Some("-1"), Some("1000")), BY_SIZE);
        assert_eq!(Retention::of("compact,delete", Some("3600000"), Some("1000")), AN_HOUR);
        assert_eq!(Retention::of("delete", Some("-1"), Some("-1")), Retention::Unlimited);
        assert_eq!(Retention::of("compact", Some("3600000"), Some("-1")), Retention::Unlimited);
    }

    #[test]
    fn the_headroom_is_the_smaller_of_the_times_by_age_and_by_speed() {
        let written = Some(1_000_000 - 600_000);
        let seconds = |inputs: RetentionInputs, retention| inputs.headroom(retention).seconds;
        assert_eq!(seconds(inputs(200, written, None), AN_HOUR), 3000.0);
        assert_eq!(seconds(inputs(200, written, Some(0.5)), AN_HOUR), 200.0);
        assert_eq!(seconds(inputs(200, written, Some(0.5)), BY_SIZE), 200.0);
        assert_eq!(seconds(inputs(200, written, Some(0.5)), Retention::Unknown), 200.0, "falls back to the speed");
        assert_eq!(seconds(inputs(200, Some(-9_000_000), None), AN_HOUR), 0.0, "older than the retention time");
        assert_eq!(seconds(inputs(100, written, Some(0.5)), AN_HOUR), 0.0, "the next deleted segment contains it");
    }

    #[test]
    fn the_headroom_is_infinite_if_nothing_is_unread_deleted_or_known() {
        let written = Some(0);
        let seconds = |inputs: RetentionInputs, retention| inputs.headroom(retention).seconds;
        assert_eq!(seconds(inputs(900, written, Some(0.5)), AN_HOUR), f64::INFINITY);
        assert_eq!(seconds(inputs(200, written, Some(0.5)), Retention::Unlimited), f64::INFINITY);
        assert_eq!(seconds(inputs(200, None, None), AN_HOUR), f64::INFINITY);
    }

    #[test]
    fn a_position_below_the_log_start_has_no_headroom() {
        assert_eq!(inputs(90, None, None).headroom(Retention::Unlimited), Headroom { offsets: 0, seconds: 0.0 });
        assert_eq!(inputs(150, None, None).headroom(Retention::Unlimited).offsets, 50);
    }

    #[test]
    fn a_short_retention_lowers_the_warning_threshold() {
        let short = Retention::Limited { age: Some(HOUR / 6) };
        assert_eq!(short.threshold(HOUR), HOUR / 12);
        assert_eq!(Retention::Unknown.threshold(HOUR), HOUR);
    }

    #[test]
    fn the_speed_covers_the_last_hour_and_needs_a_minute_of_observation() {
        let start = Instant::now();
        let mut observations = LogObservations::default();
        observations.observe(start, marks(100, 900, 900));
        assert_eq!(observations.speed(start + MIN_OBSERVATION / 2, at(400)), None, "observed for too short a time");
        assert_eq!(observations.speed(start + MIN_OBSERVATION, at(100)), None, "the log start does not move");
        assert_eq!(observations.speed(start + MIN_OBSERVATION, at(400)), Some(5.0));
        for minute in 1..=180 {
            observations
                .observe(start + SAMPLE_INTERVAL * minute, marks(if minute > 100 { 700 } else { 100 }, 900, 900));
        }
        assert_eq!(observations.speed(start + SAMPLE_INTERVAL * 180, at(700)), None, "it has not moved for an hour");
        assert!(observations.log_starts.len() <= 62, "bounded");
    }

    #[test]
    fn a_last_stable_offset_that_moves_is_not_stalled() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut observations = LogObservations::default();
        for (time, marks, stalled) in [
            (0, marks(0, 5, 5), 0),
            (1, marks(0, 5, 8), 0),
            (4, marks(0, 5, 12), 3),
            (5, marks(0, 9, 12), 0),
            (7, marks(0, 9, 12), 2),
            (8, marks(0, 12, 12), 0),
        ] {
            observations.observe(start + second * time, marks);
            assert_eq!(observations.stalled(start + second * time), second * stalled, "after {time} s");
        }
    }

    #[test]
    fn an_alarm_is_raised_once_and_again_only_after_a_calm_minute() {
        let start = Instant::now();
        let mut alarm = Alarm::default();
        let mut raised = |bad, seconds| alarm.is_new(bad, start + Duration::from_secs(seconds));
        let observed = [raised(false, 0), raised(true, 1), raised(true, 50), raised(false, 60), raised(true, 100)];
        assert_eq!(observed, [false, true, false, false, false]);
        assert!(!raised(false, 159) && raised(true, 160));
    }
}
