//! Warnings about risks: retention that may delete unread messages soon, and a transaction that stays open. They are
//! published with each snapshot and logged once when they begin. They never stop a partition.

use std::time::Duration;

use crate::model::headroom::{Headroom, RetentionInputs};
use crate::model::topic::{Retention, TopicPartition};
use crate::observe::health::RetentionRisk;
use crate::pipeline::event::{Action, LogLine, Now};
use crate::pipeline::partition::Partition;
use crate::pipeline::partition_set::PartitionSet;

/// The producers' default of `transaction.timeout.ms`. A transaction that is open for longer is unusual.
const OPEN_TRANSACTION_WARNING: Duration = Duration::from_secs(60);

impl PartitionSet {
    pub(super) fn update_risk(&mut self, partition: &TopicPartition, now: Now) {
        let (retention, asked) = (self.retention, self.settings.headroom_warning);
        let Some(p) = self.partitions.get_mut(partition) else { return };
        let Some(inputs) = inputs(p, now) else { return };
        let (headroom, stalled) = (inputs.headroom(retention), p.watched.stalled(now.instant));
        // A loss halts the partition, and the halt says more than a warning.
        let is_lost = inputs.position < inputs.marks.log_start;
        let is_low = !is_lost && headroom.seconds < retention.threshold(asked).as_secs_f64();
        let is_held = stalled >= OPEN_TRANSACTION_WARNING;
        let low_is_new = p.alarms.headroom.is_new(is_low, now.instant);
        let held_is_new = p.alarms.stalled.is_new(is_held, now.instant);
        let low = is_low.then(|| about_to_be_lost(&inputs, headroom, retention));
        let held = is_held.then(|| held_back(&inputs, stalled));
        let warnings = low.iter().chain(&held).cloned().collect();
        self.out.push(Action::PublishRisk(
            partition.clone(),
            RetentionRisk { headroom: Some(headroom), stalled, warnings },
        ));
        // Logged after it is published: a reader of the log finds the warning in /health.
        if let Some(warning) = low.filter(|_| low_is_new) {
            let offset = inputs.position;
            self.out.push(Action::Log(LogLine::RetentionNear { partition: partition.clone(), offset, warning }));
        }
        if let Some(warning) = held.filter(|_| held_is_new) {
            let offset = inputs.marks.last_stable;
            self.out.push(Action::Log(LogLine::TransactionOpen { partition: partition.clone(), offset, warning }));
        }
    }
}

fn inputs(p: &Partition, now: Now) -> Option<RetentionInputs> {
    let marks = p.marks?;
    let speed = p.watched.speed(now.instant, marks.log_start);
    let unread_ms = p.unread_ms(now.instant);
    Some(RetentionInputs { position: p.position().next, marks, unread_ms, now_ms: now.unix_ms, speed })
}

fn about_to_be_lost(inputs: &RetentionInputs, headroom: Headroom, retention: Retention) -> String {
    let kept = match retention {
        Retention::Limited { age: Some(age) } => format!("retention.ms is {}", age.as_millis()),
        Retention::Limited { age: None } => "retention.bytes deletes".to_owned(),
        Retention::Unknown | Retention::Unlimited => "the topic's retention is not known".to_owned(),
    };
    format!(
        "retention may delete the next unread message in {:.0} s: position {}, log start {} ({} offsets before it, moving {:.1} a second), {} offsets unread, {kept}; raise the topic's retention (kafka-configs.sh --alter --add-config retention.ms=…) until the cause of the delay is removed",
        headroom.seconds,
        inputs.position,
        inputs.marks.log_start,
        headroom.offsets,
        inputs.speed.unwrap_or(0.0),
        inputs.marks.last_stable.get() - inputs.position.get(),
    )
}

fn held_back(inputs: &RetentionInputs, stalled: Duration) -> String {
    format!(
        "an open transaction has held back the last stable offset {} for {} s, {} offsets wait behind it; if its producer is gone, find it with kafka-transactions.sh find-hanging and end it with kafka-transactions.sh abort",
        inputs.marks.last_stable,
        stalled.as_secs(),
        inputs.marks.log_end.get() - inputs.marks.last_stable.get(),
    )
}
