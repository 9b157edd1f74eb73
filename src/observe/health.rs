//! The current state of the daemon: the pipeline writes it, and the HTTP server reads it.
//!
//! The state is in memory only, so no read ever waits for Kafka or PostgreSQL.

mod outage;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use self::outage::{Name, ObservedBy, Server};
use crate::model::headroom::Headroom;
use crate::model::offset::{NextOffset, Watermarks};
use crate::model::partition_state::PartitionState;
use crate::model::topic::TopicPartition;
use crate::observe::metrics::Metrics;

/// The loop of the daemon turns at least once a second. It is stuck if it does not turn for this long.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// One partition as `/health` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct PartitionHealth {
    pub partition: i32,
    pub position: i64,
    pub log_start_offset: Option<i64>,
    pub last_stable_offset: Option<i64>,
    pub log_end_offset: Option<i64>,
    pub lag: Option<i64>,
    pub state: &'static str,
    pub reason: Option<String>,
    /// The offsets `[from, to)` that a halt names.
    pub range: Option<(i64, i64)>,
    #[serde(flatten)]
    pub retention_risk: RetentionRisk,
}

/// The retention risk of a partition.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RetentionRisk {
    /// `None` before the first observation. An infinite number of seconds is null in JSON.
    #[serde(rename = "log_start_headroom")]
    pub headroom: Option<Headroom>,
    /// How long an open transaction has held back the last stable offset.
    #[serde(rename = "last_stable_offset_stalled_seconds", serialize_with = "seconds")]
    pub stalled: Duration,
    /// Warnings for the operator. They do not make the daemon unready.
    pub warnings: Vec<String>,
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}

struct Inner {
    beat: Option<Instant>,
    /// Why the daemon does not read yet; `None` after the start.
    starting: Option<String>,
    database: Server,
    kafka: Server,
    partitions: BTreeMap<TopicPartition, PartitionHealth>,
}

/// The state that the pipeline and the HTTP server share; cheap to clone.
#[derive(Clone)]
pub struct Health {
    inner: Arc<Mutex<Inner>>,
    metrics: Metrics,
    topic: String,
}

/// The response of `/health`.
#[derive(Debug, Serialize)]
pub struct Report {
    pub live: bool,
    pub ready: bool,
    pub reasons: Vec<String>,
    pub topic: String,
    pub database_up: bool,
    pub kafka_up: bool,
    pub partitions: Vec<PartitionHealth>,
}

impl Health {
    pub fn new(topic: &str, metrics: Metrics) -> Self {
        let inner = Inner {
            beat: Some(Instant::now()),
            starting: Some("starting".into()),
            database: Server::new(Name::Postgres),
            kafka: Server::new(Name::Kafka),
            partitions: BTreeMap::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), metrics, topic: topic.to_owned() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code panics while it holds the lock, and a panic ends the process anyway.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Records that the loop turned.
    pub fn beat(&self) {
        self.lock().beat = Some(Instant::now());
    }

    /// Records why the daemon does not read yet.
    pub fn starting(&self, why: impl Into<String>) {
        let mut inner = self.lock();
        inner.beat = Some(Instant::now());
        inner.starting = Some(why.into());
    }

    /// Records that reading begins: the start positions are stored and the partitions are assigned.
    pub fn started(&self) {
        self.lock().starting = None;
    }

    pub fn has_started(&self) -> bool {
        self.lock().starting.is_none()
    }

    /// Records whether PostgreSQL answered a query; `trouble` is the reason if it did not.
    pub fn database(&self, trouble: Option<String>) {
        self.note(|inner| inner.database.note(ObservedBy::Question, trouble));
    }

    /// Records whether PostgreSQL committed a batch; `trouble` is the reason if it did not.
    pub fn batches(&self, trouble: Option<String>) {
        self.note(|inner| inner.database.note(ObservedBy::Batch, trouble));
    }

    /// Records whether Kafka answered; `trouble` is the reason if it did not.
    pub fn kafka(&self, trouble: Option<String>) {
        self.note(|inner| inner.kafka.note(ObservedBy::Question, trouble));
    }

    fn note(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        change(&mut inner);
        self.metrics.servers(inner.database.problem().is_none(), inner.kafka.problem().is_none());
    }

    /// Records position, watermarks and state of a partition. `marks` is `None` while the watermarks are not known.
    pub fn partition(
        &self,
        partition: &TopicPartition,
        position: NextOffset,
        marks: Option<Watermarks>,
        state: &PartitionState,
    ) {
        self.metrics.partition(partition, position, marks, state);
        let (reason, range) = match state {
            PartitionState::Reading => (None, None),
            PartitionState::Troubled(why) => (Some(why.clone()), None),
            PartitionState::Halted(halt) => {
                let range = halt.range.map(|r| (r.from().get(), r.to().get()));
                let remedy = halt.remedy(partition);
                (Some(format!("{}: {}; {remedy}", halt.reason.name(), halt.detail)), range)
            }
        };
        let shown = PartitionHealth {
            partition: partition.partition,
            position: position.get(),
            log_start_offset: marks.map(|m| m.log_start.get()),
            last_stable_offset: marks.map(|m| m.last_stable.get()),
            log_end_offset: marks.map(|m| m.log_end.get()),
            lag: marks.map(|m| (m.last_stable.get() - position.get()).max(0)),
            state: state.name(),
            reason,
            range,
            retention_risk: RetentionRisk::default(),
        };
        let mut inner = self.lock();
        let risk = inner.partitions.remove(partition).map(|earlier| earlier.retention_risk).unwrap_or_default();
        inner.partitions.insert(partition.clone(), PartitionHealth { retention_risk: risk, ..shown });
    }

    /// Records the retention risk of a partition. Ignored by `/health` until [`Self::partition`] was called for it.
    pub fn retention_risk(&self, partition: &TopicPartition, risk: RetentionRisk) {
        self.metrics.retention_risk(partition, risk.headroom, risk.stalled);
        if let Some(shown) = self.lock().partitions.get_mut(partition) {
            shown.retention_risk = risk;
        }
    }

    /// Returns true if the loop turns.
    pub fn is_live(&self) -> bool {
        self.lock().beat.is_some_and(|beat| beat.elapsed() < STUCK_AFTER)
    }

    /// The complete state, read from memory.
    pub fn report(&self) -> Report {
        let live = self.is_live();
        let inner = self.lock();
        let mut reasons: Vec<String> = Vec::new();
        reasons.extend((!live).then(|| "the loop is stuck".to_owned()));
        reasons.extend(inner.starting.clone());
        reasons.extend(inner.database.problem().map(|why| format!("postgresql: {why}")));
        reasons.extend(inner.kafka.problem().map(|why| format!("kafka: {why}")));
        for p in inner.partitions.values() {
            if let Some(reason) = &p.reason {
                reasons.push(format!("partition {} {}: {reason}", p.partition, p.state));
            }
        }
        Report {
            live,
            ready: reasons.is_empty(),
            reasons,
            topic: self.topic.clone(),
            database_up: inner.database.problem().is_none(),
            kafka_up: inner.kafka.problem().is_none(),
            partitions: inner.partitions.values().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::offset::OffsetRange;
    use crate::model::partition_state::{Halt, HaltReason};
    use crate::model::topic::Topic;

    #[test]
    fn a_halted_partition_makes_the_daemon_unready_with_its_reason() {
        let health = Health::new("t", Metrics::new("2"));
        health.started();
        health.database(None);
        health.kafka(None);
        assert!(health.report().ready);
        let at = |n| NextOffset::new(n).expect("not negative");
        let halt = Halt::new(HaltReason::Expired, OffsetRange::new(at(5), at(9)), "gone");
        health.partition(&Topic::from("t").partition(2), at(5), None, &PartitionState::Halted(halt));
        let report = health.report();
        assert!(report.live && !report.ready);
        let [reason] = &report.reasons[..] else { panic!("one reason: {:?}", report.reasons) };
        assert!(reason.starts_with("partition 2 halted: expired: gone; "), "{reason}");
        assert!(reason.contains("gapless accept-loss t 2 5 9"), "the remedy, ready to copy: {reason}");
        assert_eq!(report.partitions[0].range, Some((5, 9)));
    }

    #[test]
    fn an_outage_makes_the_daemon_unready_but_live() {
        let health = Health::new("t", Metrics::new("2"));
        health.started();
        health.kafka(None);
        health.database(Some("connection refused".into()));
        let report = health.report();
        assert!(report.live && !report.ready && !report.database_up);
    }
}
