//! All metrics with their names and help texts. Only this module uses the crate prometheus.
//!
//! Names and labels are part of the contract: they change only with an entry in CHANGELOG.md. A value of 0 is published as 0, so every label value that is known
//! beforehand is published from the start.

use std::time::Duration;

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::model::error_class::Class;
use crate::model::event::{Outcome, Reason};
use crate::model::headroom::Headroom;
use crate::model::offset::{NextOffset, Watermarks};
use crate::model::partition_state::PartitionState;
use crate::model::topic::TopicPartition;
use crate::model::write_report::WriteReport;
use crate::model::write_report::WriteStrategy;

/// The metrics of the program; registered once, cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    messages: IntCounterVec,
    events_stored: IntCounter,
    event_conflicts: IntCounter,
    dead_letters: IntCounterVec,
    batches: IntCounterVec,
    batch_messages: Histogram,
    batch_commit_seconds: Histogram,
    end_to_end_seconds: Histogram,
    position: IntGaugeVec,
    log_start_offset: IntGaugeVec,
    last_stable_offset: IntGaugeVec,
    log_end_offset: IntGaugeVec,
    lag: IntGaugeVec,
    open_transaction_offsets: IntGaugeVec,
    log_start_headroom_offsets: IntGaugeVec,
    log_start_headroom_seconds: GaugeVec,
    last_stable_offset_stalled_seconds: GaugeVec,
    unaccounted_offsets: IntGaugeVec,
    partition_state: IntGaugeVec,
    commit_unknown: IntCounter,
    offset_commit_failures: IntCounter,
    retries: IntCounterVec,
    database_up: IntGauge,
    kafka_up: IntGauge,
}

struct Maker(Registry);

impl Maker {
    fn keep<C: prometheus::core::Collector + Clone + 'static>(&self, collector: Result<C, prometheus::Error>) -> C {
        let collector = collector.expect("names and labels are constants");
        self.0.register(Box::new(collector.clone())).expect("each name is registered once");
        collector
    }

    fn opts(name: &str, help: &str) -> Opts {
        Opts::new(name, help).namespace("gapless")
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.keep(IntCounter::with_opts(Self::opts(name, help)))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.keep(IntCounterVec::new(Self::opts(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.keep(IntGauge::with_opts(Self::opts(name, help)))
    }

    fn by_partition(&self, name: &str, help: &str) -> IntGaugeVec {
        self.keep(IntGaugeVec::new(Self::opts(name, help), &["topic", "partition"]))
    }

    fn seconds_by_partition(&self, name: &str, help: &str) -> GaugeVec {
        self.keep(GaugeVec::new(Self::opts(name, help), &["topic", "partition"]))
    }

    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
        let opts = HistogramOpts { common_opts: Self::opts(name, help), buckets };
        self.keep(Histogram::with_opts(opts))
    }
}

impl Metrics {
    /// `librdkafka` is the version of librdkafka.
    pub fn new(librdkafka: &str) -> Self {
        let make = Maker(Registry::new());
        let seconds = |from, steps| prometheus::exponential_buckets(from, 2.0, steps).expect("valid buckets");
        let metrics = Self {
            messages: make.counters("messages_total", "Messages by outcome.", &["outcome"]),
            events_stored: make.counter("events_stored_total", "Events stored for the first time."),
            event_conflicts: make
                .counter("event_conflicts_total", "Events with the identity of a stored event and other content."),
            dead_letters: make.counters("dead_letters_total", "Messages rejected, by reason.", &["reason"]),
            batches: make.counters("batches_total", "Batches committed, by the strategy that wrote them.", &["path"]),
            batch_messages: make.histogram("batch_messages", "Messages of a batch.", seconds(1.0, 14)),
            batch_commit_seconds: make.histogram(
                "batch_commit_seconds",
                "Time from the completion of a batch to its commit.",
                seconds(0.0005, 16),
            ),
            end_to_end_seconds: make.histogram(
                "end_to_end_seconds",
                "Time from the broker timestamp of a message to its commit.",
                seconds(0.001, 20),
            ),
            position: make.by_partition("position", "The next offset to read."),
            log_start_offset: make.by_partition("log_start_offset", "The first offset Kafka still has."),
            last_stable_offset: make.by_partition("last_stable_offset", "Last stable offset: every transaction below it is decided."),
            log_end_offset: make.by_partition("log_end_offset", "High watermark."),
            lag: make.by_partition("lag", "Last stable offset minus position."),
            open_transaction_offsets: make
                .by_partition("open_transaction_offsets", "High watermark minus last stable offset."),
            log_start_headroom_offsets: make
                .by_partition("log_start_headroom_offsets", "Position minus log start; at least 0."),
            log_start_headroom_seconds: make.seconds_by_partition(
                "log_start_headroom_seconds",
                "Time until retention may delete the next unread message; +Inf if none is unread or the time is not known.",
            ),
            last_stable_offset_stalled_seconds: make.seconds_by_partition(
                "last_stable_offset_stalled_seconds",
                "How long an open transaction has held back the last stable offset.",
            ),
            unaccounted_offsets: make.by_partition(
                "unaccounted_offsets",
                "Offsets passed since the start without outcome or gap, at the last check; must be 0.",
            ),
            partition_state: make.keep(IntGaugeVec::new(
                Maker::opts("partition_state", "1 for the state a partition is in."),
                &["topic", "partition", "state"],
            )),
            commit_unknown: make
                .counter("commit_unknown_total", "Commits whose reply was lost and whose result was looked up."),
            offset_commit_failures: make.counter(
                "offset_commit_failures_total",
                "Offset commits that Kafka refused: lag tools show old offsets, nothing is lost.",
            ),
            retries: make.counters("retries_total", "Batches retried, by class of error.", &["class"]),
            database_up: make.gauge("database_up", "1 if PostgreSQL can be used, else 0."),
            kafka_up: make.gauge("kafka_up", "1 if Kafka can be used, else 0."),
            registry: make.0.clone(),
        };
        let build = IntGaugeVec::new(
            Maker::opts("build_info", "Version of the program; always 1."),
            &["version", "librdkafka"],
        );
        make.keep(build).with_label_values(&[env!("CARGO_PKG_VERSION"), librdkafka]).set(1);
        metrics.publish_zeros();
        metrics
    }

    fn publish_zeros(&self) {
        Outcome::ALL.iter().for_each(|o| drop(self.messages.with_label_values(&[o.name()])));
        Reason::ALL.iter().for_each(|r| drop(self.dead_letters.with_label_values(&[r.name()])));
        Class::ALL.iter().for_each(|c| drop(self.retries.with_label_values(&[c.name()])));
        WriteStrategy::ALL.iter().for_each(|p| drop(self.batches.with_label_values(&[p.name()])));
    }

    /// Counts a committed batch. `ages` are the ages of its messages at the commit.
    pub fn batch(&self, report: &WriteReport, messages: usize, took: Duration, ages: impl Iterator<Item = Duration>) {
        report.outcomes.iter().for_each(|(o, n)| self.messages.with_label_values(&[o.name()]).inc_by(*n));
        report.rejections.iter().for_each(|(r, n)| self.dead_letters.with_label_values(&[r.name()]).inc_by(*n));
        self.events_stored.inc_by(report.events_stored);
        self.event_conflicts.inc_by(report.conflicting_events);
        self.batches.with_label_values(&[report.path.name()]).inc();
        self.batch_messages.observe(messages as f64);
        self.batch_commit_seconds.observe(took.as_secs_f64());
        let seconds = self.end_to_end_seconds.local();
        ages.for_each(|age| seconds.observe(age.as_secs_f64()));
    }

    pub fn retried(&self, class: Class) {
        self.retries.with_label_values(&[class.name()]).inc();
    }

    pub fn commit_unknown(&self) {
        self.commit_unknown.inc();
    }

    pub fn offset_commits_failed(&self, times: u64) {
        self.offset_commit_failures.inc_by(times);
    }

    pub fn servers(&self, database_up: bool, kafka_up: bool) {
        self.database_up.set(database_up.into());
        self.kafka_up.set(kafka_up.into());
    }

    pub fn partition(
        &self,
        TopicPartition { topic, partition }: &TopicPartition,
        position: NextOffset,
        marks: Option<Watermarks>,
        state: &PartitionState,
    ) {
        let number = partition.to_string();
        let labels = [topic.as_str(), &number];
        self.position.with_label_values(&labels).set(position.get());
        self.unaccounted_offsets.with_label_values(&labels);
        for name in PartitionState::NAMES {
            self.partition_state.with_label_values(&[labels[0], labels[1], name]).set((state.name() == name).into());
        }
        let Some(marks) = marks else {
            // A value that is not known is absent: an old log end would make the lag 0.
            let unknown = [
                &self.log_start_offset,
                &self.last_stable_offset,
                &self.log_end_offset,
                &self.lag,
                &self.open_transaction_offsets,
            ];
            unknown.iter().for_each(|gauge| drop(gauge.remove_label_values(&labels)));
            return;
        };
        self.log_start_offset.with_label_values(&labels).set(marks.log_start.get());
        self.last_stable_offset.with_label_values(&labels).set(marks.last_stable.get());
        self.log_end_offset.with_label_values(&labels).set(marks.log_end.get());
        // The watermarks are slightly older than the position, so the difference can be negative.
        self.lag.with_label_values(&labels).set((marks.last_stable.get() - position.get()).max(0));
        self.open_transaction_offsets
            .with_label_values(&labels)
            .set((marks.log_end.get() - marks.last_stable.get()).max(0));
    }

    pub fn retention_risk(
        &self,
        TopicPartition { topic, partition }: &TopicPartition,
        headroom: Option<Headroom>,
        stalled: Duration,
    ) {
        let number = partition.to_string();
        let labels = [topic.as_str(), &number];
        if let Some(headroom) = headroom {
            self.log_start_headroom_offsets.with_label_values(&labels).set(headroom.offsets);
            self.log_start_headroom_seconds.with_label_values(&labels).set(headroom.seconds);
        }
        self.last_stable_offset_stalled_seconds.with_label_values(&labels).set(stalled.as_secs_f64());
    }

    pub fn unaccounted(&self, TopicPartition { topic, partition }: &TopicPartition, offsets: i64) {
        self.unaccounted_offsets.with_label_values(&[topic.as_str(), &partition.to_string()]).set(offsets);
    }

    /// All metrics in the Prometheus text format.
    pub fn text(&self) -> String {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather()).expect("writing to memory");
        // The encoder writes `inf`, as Rust does; the format requires `+Inf`.
        text.replace(" inf\n", " +Inf\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_zero_is_published() {
        let text = Metrics::new("2").text();
        for line in [
            "gapless_messages_total{outcome=\"stored\"} 0",
            "gapless_dead_letters_total{reason=\"not_json\"} 0",
            "gapless_retries_total{class=\"environment\"} 0",
            "gapless_commit_unknown_total 0",
            "gapless_offset_commit_failures_total 0",
            "gapless_database_up 0",
        ] {
            assert!(text.contains(line), "{line} is missing");
        }
    }
}
