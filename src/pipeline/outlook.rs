//! What may go wrong next: retention that is about to win, a transaction that nobody ends. Shown with
//! each look at Kafka, and told once when it crosses its limit. Never a reason to stop.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::admit::topic_identity_mismatch;
use super::partition::Partition;
use super::watch::Glance;
use super::{Pipeline, Stop, beating};
use crate::ledger::error::LedgerError;
use crate::model::headroom::{Headroom, Sight};
use crate::model::topic::Retention;
use crate::observe::health::Outlook;

/// Producers' default `transaction.timeout.ms`: a transaction that is open longer is not usual.
const STALLED: Duration = Duration::from_secs(60);

impl Pipeline {
    /// Waits, and goes on looking at Kafka meanwhile: a long outage of PostgreSQL is when retention
    /// wins. What the looks mean for the stream is decided when the loop turns again.
    pub(super) async fn pause(&mut self, delay: Duration) -> Result<(), Stop> {
        let end = tokio::time::Instant::now() + delay;
        self.partitions.values_mut().for_each(Partition::unheard);
        loop {
            let glance = beating(&self.health, &self.stop, tokio::time::timeout_at(end, self.watch.next()));
            let seen = tokio::select! {
                seen = glance => seen?,
                // Nothing is in flight during a pause, so there is nothing to finish.
                () = self.stop.cancelled() => return Err(Stop::Asked),
            };
            match seen {
                Ok(glance) => self.look_in_passing(glance)?,
                Err(_) => return Ok(()),
            }
        }
    }

    fn look_in_passing(&mut self, glance: Glance) -> Result<(), Stop> {
        match glance {
            Glance::Kafka(Ok(survey)) if topic_identity_mismatch(&self.identity, &survey.identity).is_none() => {
                self.health.kafka(None);
                for (partition, marks) in survey.partitions {
                    if let Some(p) = self.partitions.get_mut(&partition) {
                        p.seen(marks);
                        self.show(partition);
                        self.foresee(partition);
                    }
                }
            }
            Glance::Kafka(Err(error)) => self.kafka_away(&error),
            Glance::Settings(settings) => self.retention = settings.retention,
            Glance::Catalogue(Err(LedgerError::Schema(differences))) => self.halt_for_schema(&differences),
            Glance::Owner(Ok(owner)) => self.still_ours(owner)?,
            // The next one comes within seconds.
            Glance::Kafka(Ok(_)) | Glance::Owner(Err(_)) | Glance::Ledger(_) | Glance::Catalogue(_) => {}
        }
        Ok(())
    }

    /// With the watermarks as they were seen last: while Kafka is away, messages grow old there.
    pub(super) fn foresee_all(&mut self) {
        let partitions: Vec<i32> = self.partitions.keys().copied().collect();
        partitions.into_iter().for_each(|partition| self.foresee(partition));
    }

    pub(super) fn foresee(&mut self, partition: i32) {
        let (retention, asked) = (self.retention, self.kafka.headroom_warning);
        let Some(p) = self.partitions.get_mut(&partition) else { return };
        let Some(sight) = sight(p) else { return };
        let now = Instant::now();
        let (headroom, stalled) = (sight.headroom(retention), p.watched.stalled(now));
        // What is lost already halts the partition, which says more.
        let lost = sight.position < sight.marks.log_start;
        let near = !lost && headroom.seconds < retention.threshold(asked).as_secs_f64();
        let held = stalled >= STALLED;
        let near_is_new = p.alarms.headroom.is_new(near, now);
        let held_is_new = p.alarms.stalled.is_new(held, now);
        let near = near.then(|| about_to_be_lost(&sight, headroom, retention));
        let held = held.then(|| held_back(&sight, stalled));
        let warnings = near.iter().chain(&held).cloned().collect();
        self.health.outlook(partition, Outlook { headroom: Some(headroom), stalled, warnings });
        // Whoever reads it in the log finds it in /health.
        if let Some(warning) = near.filter(|_| near_is_new) {
            let position = sight.position.get();
            tracing::warn!(event = "retention_risk", kafka.partition = partition, kafka.offset = position, "{warning}");
        }
        if let Some(warning) = held.filter(|_| held_is_new) {
            tracing::warn!(
                event = "last_stable_offset_stalled",
                kafka.partition = partition,
                kafka.offset = sight.marks.last_stable.get(),
                "{warning}"
            );
        }
    }
}

fn sight(p: &Partition) -> Option<Sight> {
    let marks = p.marks?;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
    let speed = p.watched.speed(Instant::now(), marks.log_start);
    Some(Sight { position: p.position().next, marks, unread_ms: p.unread_ms(), now_ms, speed })
}

fn about_to_be_lost(sight: &Sight, headroom: Headroom, retention: Retention) -> String {
    let kept = match retention {
        Retention::Limited { age: Some(age) } => format!("retention.ms is {}", age.as_millis()),
        Retention::Limited { age: None } => "retention.bytes deletes".to_owned(),
        Retention::Unknown | Retention::Unlimited => "the topic's retention is not known".to_owned(),
    };
    format!(
        "retention may delete the next unread message in {:.0} s: position {}, log start {} ({} offsets before it, moving {:.1} a second), {} offsets unread, {kept}; raise the topic's retention (kafka-configs.sh --alter --add-config retention.ms=…) until what holds up the reading is mended",
        headroom.seconds,
        sight.position,
        sight.marks.log_start,
        headroom.offsets,
        sight.speed.unwrap_or(0.0),
        sight.marks.last_stable.get() - sight.position.get(),
    )
}

fn held_back(sight: &Sight, stalled: Duration) -> String {
    format!(
        "an open transaction has held back the last stable offset {} for {} s, {} offsets wait behind it; if its producer is gone, find it with kafka-transactions.sh find-hanging and end it with kafka-transactions.sh abort",
        sight.marks.last_stable,
        stalled.as_secs(),
        sight.marks.log_end.get() - sight.marks.last_stable.get(),
    )
}
