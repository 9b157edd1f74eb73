//! How far a client has fetched, from librdkafka's periodic statistics. librdkafka skips batches of aborted
//! transactions without an event, and a large response on a slow connection takes long: in both cases the client makes
//! progress although it delivers no record. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::topic::{Topic, TopicPartition};

/// One statistics report of a client.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Statistics {
    /// Microseconds on librdkafka's own clock.
    at_us: i64,
    /// By broker id.
    brokers: BTreeMap<i32, Received>,
    partitions: BTreeMap<TopicPartition, Fetched>,
}

/// What a broker sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Received {
    /// The number of complete responses.
    answers: u64,
    /// Microseconds since the last byte; negative before the first byte.
    idle_us: i64,
}

/// The next offset to fetch of a partition, and the id of the broker it is fetched from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fetched {
    next: i64,
    broker: i32,
}

#[derive(Deserialize)]
struct Report {
    #[serde(default)]
    ts: i64,
    #[serde(default)]
    brokers: BTreeMap<String, Broker>,
    #[serde(default)]
    topics: BTreeMap<String, TopicReport>,
}

#[derive(Deserialize)]
struct Broker {
    nodeid: i32,
    rx: u64,
    rxidle: i64,
}

#[derive(Deserialize)]
struct TopicReport {
    #[serde(default)]
    partitions: BTreeMap<String, PartitionReport>,
}

#[derive(Deserialize)]
struct PartitionReport {
    partition: i32,
    broker: i32,
    next_offset: i64,
}

impl Statistics {
    /// Parses librdkafka's JSON. `None` if the JSON has another form; such a report is
    /// ignored.
    pub(crate) fn parse(json: &str) -> Option<Self> {
        let report: Report = serde_json::from_str(json).ok()?;
        let brokers = report.brokers.into_values();
        let partitions = report.topics.into_iter().flat_map(|(name, reported)| {
            let topic = Topic::from(name);
            reported.partitions.into_values().map(move |p| (topic.partition(p.partition), p))
        });
        Some(Self {
            at_us: report.ts,
            brokers: brokers.map(|b| (b.nodeid, Received { answers: b.rx, idle_us: b.rxidle })).collect(),
            partitions: partitions
                .filter(|(_, p)| p.next_offset >= 0)
                .map(|(partition, p)| (partition, Fetched { next: p.next_offset, broker: p.broker }))
                .collect(),
        })
    }
}

/// Compares each report with the one before it to find progress.
#[derive(Debug, Default)]
pub(crate) struct Fetching {
    before: Option<Statistics>,
}

impl Fetching {
    /// The partitions with progress since the previous report: the next offset is higher, or a response is being
    /// received. A partition whose responses are complete but leave the offset unchanged makes no progress.
    pub(crate) fn advanced(&mut self, now: &Statistics) -> Vec<TopicPartition> {
        let before = self.before.replace(now.clone());
        let Some(before) = before else { return Vec::new() };
        let elapsed_us = now.at_us - before.at_us;
        let in_an_answer = |broker: &i32| {
            let (Some(was), Some(is)) = (before.brokers.get(broker), now.brokers.get(broker)) else { return false };
            is.answers == was.answers && (0..elapsed_us).contains(&is.idle_us)
        };
        let further = |p: &TopicPartition, next: i64| before.partitions.get(p).is_some_and(|was| next > was.next);
        let advanced = now.partitions.iter().filter(|(p, is)| further(p, is.next) || in_an_answer(&is.broker));
        advanced.map(|(partition, _)| partition.clone()).collect()
    }

    /// Drops the previous report, because the assignment has changed.
    pub(crate) fn forget(&mut self) {
        self.before = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(second: i64, next: i64, answers: u64, idle_us: i64) -> Statistics {
        let json = format!(
            r#"{{"name":"gapless","ts":{},"brokers":{{
                "one:9092/1":{{"nodeid":1,"rx":{answers},"rxidle":{idle_us},"rtt":{{"avg":1}}}},
                "two:9092/2":{{"nodeid":2,"rx":7,"rxidle":10}}}},
                "topics":{{"t":{{"topic":"t","partitions":{{
                    "0":{{"partition":0,"broker":1,"next_offset":{next},"fetch_state":"active"}},
                    "-1":{{"partition":-1,"broker":-1,"next_offset":-1001}}}}}}}}}}"#,
            second * 1_000_000
        );
        Statistics::parse(&json).expect("librdkafka's form")
    }

    /// The partitions with progress, as text.
    fn advanced(fetching: &mut Fetching, report: &Statistics) -> Vec<String> {
        fetching.advanced(report).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_fetch_position_that_moves_is_progress_although_nothing_is_delivered() {
        let mut fetching = Fetching::default();
        assert_eq!(advanced(&mut fetching, &report(0, 5, 1, 900)), [""; 0], "the first report has no predecessor");
        assert_eq!(advanced(&mut fetching, &report(2, 900, 4, 900)), ["t[0]"]);
        assert_eq!(advanced(&mut fetching, &report(4, 900, 9, 900)), [""; 0], "responses without new records");
        fetching.forget();
        assert_eq!(advanced(&mut fetching, &report(6, 1000, 9, 900)), [""; 0]);
    }

    #[test]
    fn a_large_response_that_is_being_received_is_progress() {
        let mut fetching = Fetching::default();
        fetching.advanced(&report(0, 5, 1, 900));
        assert_eq!(advanced(&mut fetching, &report(2, 5, 1, 900)), ["t[0]"]);
        assert_eq!(advanced(&mut fetching, &report(4, 5, 1, 2_000_900)), [""; 0], "no byte since the previous report");
        assert_eq!(advanced(&mut fetching, &report(6, 5, 1, -1)), [""; 0], "a new connection");
    }

    #[test]
    fn a_text_that_is_not_json_is_ignored() {
        assert_eq!(Statistics::parse("no JSON"), None);
        assert_eq!(Statistics::parse("{}"), Some(Statistics::default()));
    }
}
