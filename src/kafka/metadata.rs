//! Queries to Kafka that read no messages: which partitions a topic has, and where their logs begin and end.
//!
//! The queries have their own clients, so that a query never waits behind fetched messages. Each call has a deadline
//! and runs on a blocking thread. One request per broker and kind (`ListOffsets`) asks for all partitions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};

use super::client::{self, Context, Isolation};
use super::{SourceError, ffi};
use crate::config::KafkaConfig;
use crate::model::offset::{NextOffset, Watermarks};
use crate::model::topic::{Retention, Topic, TopicIdentity, TopicPartition, TopicSettings, TopicSnapshot};

/// How long one query may take.
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends the queries. Cheap to clone.
#[derive(Clone)]
pub struct Observer {
    clients: Arc<Mutex<Clients>>,
    kafka: Arc<KafkaConfig>,
    topic: Topic,
}

/// One client for each isolation level. Both are created again after files with secrets were rotated.
#[derive(Clone)]
struct Clients {
    committed: Arc<BaseConsumer<Context>>,
    uncommitted: Arc<BaseConsumer<Context>>,
}

impl Clients {
    fn new(kafka: &KafkaConfig) -> Result<Self, SourceError> {
        Ok(Self {
            committed: Arc::new(client::asker(kafka, Isolation::ReadCommitted)?),
            uncommitted: Arc::new(client::asker(kafka, Isolation::ReadUncommitted)?),
        })
    }

    fn each(&self) -> [&BaseConsumer<Context>; 2] {
        [&self.committed, &self.uncommitted]
    }

    /// Polls the error events. Without this they would accumulate in an outage; their callbacks also record the reason.
    fn drain(&self) {
        for client in self.each() {
            while client.poll(Duration::ZERO).is_some() {}
        }
    }
}

impl Observer {
    pub fn new(kafka: &KafkaConfig) -> Result<Self, SourceError> {
        Ok(Self {
            clients: Arc::new(Mutex::new(Clients::new(kafka)?)),
            kafka: Arc::new(kafka.clone()),
            topic: kafka.topic.clone(),
        })
    }

    fn clients(&self) -> Clients {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All partitions with their watermarks, and the ids of cluster and topic.
    pub async fn snapshot(&self) -> Result<TopicSnapshot, SourceError> {
        self.blocking(Self::snapshot_blocking).await
    }

    /// Returns true if this user may read the topic; `None` if the broker does not say.
    pub async fn may_read(&self) -> Result<Option<bool>, SourceError> {
        self.blocking(|this, clients| Ok(ffi::may_read(&clients.committed, &this.topic, METADATA_TIMEOUT))).await
    }

    /// For each partition the first offset whose broker timestamp is at or after `time_ms` (milliseconds since 1970);
    /// `None` for a partition without such an offset. Times before 1970 count as 1970.
    pub async fn offsets_for_time(
        &self,
        partitions: Vec<TopicPartition>,
        time_ms: i64,
    ) -> Result<BTreeMap<TopicPartition, Option<NextOffset>>, SourceError> {
        self.blocking(move |this, clients| {
            this.list_offsets(&clients.committed, &partitions, KafkaOffset::Offset(time_ms.max(0)))
        })
        .await
    }

    /// Returns true if the topic's `cleanup.policy` contains `compact`. Compaction deletes messages that share a key.
    pub async fn is_compacted(&self, kafka: &KafkaConfig) -> Result<bool, SourceError> {
        Ok(self.settings(kafka).await?.compacts)
    }

    /// The topic's configuration. Needs the right DescribeConfigs.
    pub async fn settings(&self, kafka: &KafkaConfig) -> Result<TopicSettings, SourceError> {
        let call = |source| SourceError::Call { operation: "read the topic's configuration", source };
        let admin = client::admin(kafka)?;
        let topic = ResourceSpecifier::Topic(&self.topic);
        let options = AdminOptions::new().request_timeout(Some(METADATA_TIMEOUT));
        let results = admin.describe_configs([&topic], &options).await;
        // Dropping the client waits for its thread.
        tokio::task::spawn_blocking(move || drop(admin));
        let results = results.map_err(call)?;
        let resource = results.into_iter().next().ok_or(SourceError::NoTopic(self.topic.to_string()))?;
        let resource = resource.map_err(|code| call(KafkaError::AdminOp(code)))?;
        let value = |name| resource.get(name).and_then(|entry| entry.value.as_deref());
        // rust-rdkafka drops the error of a resource: without the right, the resource comes without settings.
        let policy = value("cleanup.policy").ok_or(SourceError::NoSettings)?;
        let retention = Retention::of(policy, value("retention.ms"), value("retention.bytes"));
        Ok(TopicSettings { compacts: policy.contains("compact"), retention })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Self, &Clients) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let this = self.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let clients = this.clients();
            let answer = ask(&this, &clients);
            clients.drain();
            answer.map_err(|error| this.explain(error, &clients))
        });
        // librdkafka keeps its own deadlines in general; a call that hangs must not stop the daemon.
        match tokio::time::timeout(4 * METADATA_TIMEOUT, answer).await {
            Ok(answer) => answer.expect("the blocking task neither panics nor is cancelled"),
            Err(_) => Err(SourceError::Timeout { operation: "ask Kafka", seconds: 4 * METADATA_TIMEOUT.as_secs() }),
        }
    }

    /// Adds the reason that librdkafka passed to its callbacks. Clients that read outdated secrets are created again.
    fn explain(&self, error: SourceError, clients: &Clients) -> SourceError {
        if clients.each().iter().any(|client| client.context().is_outdated()) {
            self.renew();
        }
        match clients.committed.context().failures.explain() {
            Some(failure) if error.is_unanswered() => SourceError::Unreachable(Box::new(failure)),
            _ => error,
        }
    }

    fn renew(&self) {
        match Clients::new(&self.kafka) {
            Ok(new) => *self.clients.lock().unwrap_or_else(PoisonError::into_inner) = new,
            Err(error) => tracing::debug!(error = %error, "cannot create a client with the present secrets"),
        }
    }

    fn snapshot_blocking(&self, clients: &Clients) -> Result<TopicSnapshot, SourceError> {
        let Clients { committed, uncommitted } = clients;
        // Each client has its own metadata cache. A partition that is missing there does not exist for that client.
        let all = self.partitions(committed)?;
        self.partitions(uncommitted)?;
        // A query for a partition without a leader would wait for one, and the other partitions would wait with it.
        let partitions: Vec<TopicPartition> =
            all.iter().filter(|(_, leader)| leader.is_some()).map(|(p, _)| p.clone()).collect();
        let starts = self.list_offsets(committed, &partitions, KafkaOffset::Beginning)?;
        // The high watermark is queried last, so that the last stable offset is never above it.
        let stable = self.list_offsets(committed, &partitions, KafkaOffset::End)?;
        let ends = self.list_offsets(uncommitted, &partitions, KafkaOffset::End)?;
        let cluster_id = committed.client().fetch_cluster_id(METADATA_TIMEOUT);
        let known =
            |map: &BTreeMap<TopicPartition, Option<NextOffset>>, p: &TopicPartition| map.get(p).copied().flatten();
        let partitions = partitions.into_iter().filter_map(|p| {
            let marks = Watermarks {
                log_start: known(&starts, &p)?,
                last_stable: known(&stable, &p)?,
                log_end: known(&ends, &p)?,
            };
            Some((p, marks))
        });
        let partitions: BTreeMap<TopicPartition, Watermarks> = partitions.collect();
        let leaderless: Vec<TopicPartition> = all.into_keys().filter(|p| !partitions.contains_key(p)).collect();
        if leaderless.is_empty() {
            clients.each().iter().for_each(|client| client.context().failures.clear());
        }
        let topic_id = ffi::topic_id(committed, &self.topic, METADATA_TIMEOUT);
        Ok(TopicSnapshot { identity: TopicIdentity { cluster_id, topic_id }, partitions, leaderless })
    }

    /// The error for partitions without a leader that answers, with the last connection failure as a possible reason.
    pub fn no_leader(&self, partitions: usize) -> SourceError {
        let clients = self.clients();
        let failure = clients.each().iter().find_map(|client| client.context().failures.last());
        SourceError::NoLeader { partitions, failure: failure.map(Box::new) }
    }

    /// Each partition with the broker id of its leader; `None` without a leader.
    fn partitions(&self, client: &BaseConsumer<Context>) -> Result<BTreeMap<TopicPartition, Option<i32>>, SourceError> {
        let operation = "read the topic's metadata";
        let call = |source| SourceError::Call { operation, source };
        let metadata = client.fetch_metadata(Some(&self.topic), METADATA_TIMEOUT).map_err(call)?;
        let topic = metadata.topics().iter().find(|t| t.name() == &*self.topic);
        let Some(topic) = topic else { return Err(SourceError::NoTopic(self.topic.to_string())) };
        match topic.error().map(RDKafkaErrorCode::from) {
            None => {}
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                return Err(SourceError::NoTopic(self.topic.to_string()));
            }
            Some(code) => return Err(call(KafkaError::MetadataFetch(code))),
        }
        let leader = |leader: i32| (leader >= 0).then_some(leader);
        let partitions: BTreeMap<TopicPartition, Option<i32>> =
            topic.partitions().iter().map(|p| (self.topic.partition(p.id()), leader(p.leader()))).collect();
        if partitions.is_empty() { Err(SourceError::NoTopic(self.topic.to_string())) } else { Ok(partitions) }
    }

    fn list_offsets(
        &self,
        consumer: &BaseConsumer<Context>,
        partitions: &[TopicPartition],
        queried: KafkaOffset,
    ) -> Result<BTreeMap<TopicPartition, Option<NextOffset>>, SourceError> {
        let operation = "list the topic's offsets";
        let call = |source| SourceError::Call { operation, source };
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for TopicPartition { topic, partition } in partitions {
            // The offset field carries the request's timestamp. Kafka's codes for "earliest" (-2) and "latest" (-1) are
            // librdkafka's codes for beginning and end.
            list.add_partition_offset(topic, *partition, queried).map_err(call)?;
        }
        let answer = consumer.offsets_for_times(list, METADATA_TIMEOUT).map_err(call)?;
        let mut offsets = BTreeMap::new();
        for element in answer.elements() {
            // -1, which librdkafka returns as "end", means that no record has such a late timestamp.
            let offset = match (element.error(), element.offset()) {
                (Ok(()), KafkaOffset::Offset(offset)) => NextOffset::new(offset),
                // A partition without a leader does not make the query fail for the others.
                _ => None,
            };
            offsets.insert(self.topic.partition(element.partition()), offset);
        }
        Ok(offsets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::topic::IdentityMismatch;

    #[test]
    fn a_mismatch_of_the_topic_id_names_both_values() {
        let identity = |cluster: &str, topic: Option<&str>| TopicIdentity {
            cluster_id: Some(cluster.to_owned()),
            topic_id: topic.map(ToOwned::to_owned),
        };
        let known = identity("c", Some("one"));
        assert_eq!(known.mismatch(&known), None);
        assert_eq!(known.mismatch(&identity("c", None)), None, "an unknown topic id is no mismatch");
        let text = known.mismatch(&identity("c", Some("two"))).expect("re-created").to_string();
        assert!(text.contains("one") && text.contains("two"), "{text}");
        assert!(matches!(known.mismatch(&identity("d", Some("one"))), Some(IdentityMismatch::Cluster { .. })));
    }
}
