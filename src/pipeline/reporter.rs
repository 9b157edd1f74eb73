//! Reports about the stream as a whole: metrics and log lines of commits, progress, and offsets committed to Kafka for
//! lag tools.

use std::time::{Duration, Instant};

use super::committer::CommittedBatch;
use super::partition_set::PartitionSet;
use crate::kafka::access::is_denied;
use crate::kafka::reader::Reader;
use crate::observe::health::Health;
use crate::observe::progress::Progress;

/// How often positions are committed to Kafka for lag tools and progress is logged.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct Reporter {
    health: Health,
    progress: Progress,
    /// The consumer group.
    group: String,
    last_report: Instant,
    conflict_explained: bool,
    commit_refusal_logged: bool,
}

impl Reporter {
    pub(super) fn new(health: Health, progress: Progress, group: String) -> Self {
        let (conflict_explained, commit_refusal_logged) = (false, false);
        Self { health, progress, group, last_report: Instant::now(), conflict_explained, commit_refusal_logged }
    }

    /// Reports a committed batch. `PartitionSet` has its positions already. `now_ms`: milliseconds since 1970.
    pub(super) fn committed(&mut self, batch: &CommittedBatch, set: &PartitionSet, now_ms: i64) {
        let CommittedBatch { messages, timestamps_ms, report, begun, .. } = batch;
        let ages = timestamps_ms.iter().map(|ms| Duration::from_millis(now_ms.saturating_sub(*ms).max(0) as u64));
        self.health.metrics().batch(report, *messages, begun.elapsed(), ages);
        if report.conflicting_events > 0 && !std::mem::replace(&mut self.conflict_explained, true) {
            tracing::warn!(
                event = "event_conflicts_found",
                batch.conflicts = report.conflicting_events,
                "events with the same identity but other content are kept in gapless.event_conflicts; a fuller identity \
                 (identity.fields, e.g. with log_index) on a new database would keep them as events"
            );
        }
        tracing::debug!(
            batch.messages = messages,
            batch.events = report.events_stored,
            duration_ms = begun.elapsed().as_millis() as u64,
            "batch committed"
        );
        self.progress.committed(*messages, |partition| set.position(partition));
    }

    /// Reports once per [`REPORT_INTERVAL`].
    pub(super) fn tick(&mut self, set: &PartitionSet, reader: &Reader) {
        if self.last_report.elapsed() >= REPORT_INTERVAL {
            self.report(set, reader);
        }
    }

    /// Reports the positions to lag tools and the progress to the log.
    fn report(&mut self, set: &PartitionSet, reader: &Reader) {
        self.last_report = Instant::now();
        reader.commit_hint(set.positions().map(|p| (p.partition.clone(), p.next)).collect());
        self.progress.report(set.lag());
        self.report_refused_commits(reader);
    }

    /// Counts the offset commits that Kafka refused, and logs a missing right once. Offsets in Kafka are a courtesy to
    /// lag tools; an outage or a deleted topic has log lines of its own.
    fn report_refused_commits(&mut self, reader: &Reader) {
        let refused = reader.refused_commits();
        if refused.is_empty() {
            return;
        }
        self.health.metrics().offset_commits_failed(refused.len() as u64);
        let Some(code) = refused.iter().find(|code| is_denied(**code)) else { return };
        if !std::mem::replace(&mut self.commit_refusal_logged, true) {
            tracing::warn!(
                event = "offset_commit_refused",
                kafka.code = ?code,
                kafka.group = self.group,
                "Kafka refuses the offset commits, which are only for lag tools; nothing is lost; grant Read on the consumer group to gapless's user"
            );
        }
    }

    /// Reports for the last time, at the end of a run.
    pub(super) fn finish(&mut self, set: &PartitionSet, reader: &Reader) {
        self.report(set, reader);
        self.progress.finish();
    }
}
