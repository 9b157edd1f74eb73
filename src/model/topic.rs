//! A topic as Kafka shows it: name, identity, partitions and retention settings.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::generation::NewGeneration;
use super::offset::Watermarks;

/// The name of a topic. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Topic(Arc<str>);

impl Topic {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The partition of this topic that has this number.
    pub fn partition(&self, number: i32) -> TopicPartition {
        TopicPartition { topic: self.clone(), partition: number }
    }
}

impl From<&str> for Topic {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<String> for Topic {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl Deref for Topic {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// By name. Clones of one name are not compared letter by letter: a key with a topic is looked up for each record.
impl Ord for Topic {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl PartialOrd for Topic {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// The quoted name.
impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// One log of Kafka: a topic and the number of one of its partitions. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    pub topic: Topic,
    pub partition: i32,
}

/// `orders[3]`, as `gapless.decisions` names a partition. Messages about the topic that is read say `partition 3`.
impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

/// The topic id and the cluster id of a topic. Offsets are comparable only within one identity. `None`: not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicIdentity {
    pub cluster_id: Option<String>,
    /// The topic id of KIP-516; it changes when the topic is deleted and created again.
    pub topic_id: Option<String>,
}

/// How two topic identities differ: the known value and the value that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityMismatch {
    Cluster { known: String, found: String },
    Topic { known: String, found: String },
}

impl TopicIdentity {
    /// How `found` differs from this identity; `None` if all values that both have are equal.
    pub fn mismatch(&self, found: &Self) -> Option<IdentityMismatch> {
        let differ = |known: &Option<String>, found: &Option<String>| match (known, found) {
            (Some(known), Some(found)) if known != found => Some((known.clone(), found.clone())),
            _ => None,
        };
        if let Some((known, found)) = differ(&self.cluster_id, &found.cluster_id) {
            return Some(IdentityMismatch::Cluster { known, found });
        }
        differ(&self.topic_id, &found.topic_id).map(|(known, found)| IdentityMismatch::Topic { known, found })
    }
}

impl IdentityMismatch {
    /// The kind of generation that begins when the operator confirms the change.
    pub fn generation_kind(&self) -> NewGeneration {
        match self {
            Self::Cluster { .. } => NewGeneration::ClusterChanged,
            Self::Topic { .. } => NewGeneration::Recreated,
        }
    }
}

impl fmt::Display for IdentityMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster { known, found } => {
                write!(f, "positions belong to cluster {known}, kafka.brokers leads to cluster {found}")
            }
            Self::Topic { known, found } => write!(
                f,
                "positions belong to the topic with id {known}, Kafka has one with id {found}: it was deleted and re-created, and nothing of the new one is stored"
            ),
        }
    }
}

/// The topic at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSnapshot {
    pub identity: TopicIdentity,
    pub partitions: BTreeMap<TopicPartition, Watermarks>,
    /// Partitions whose leader did not answer. They are not in `partitions`.
    pub leaderless: Vec<TopicPartition>,
}

impl TopicSnapshot {
    /// The number of partitions of the topic, with those that have no leader.
    pub fn count(&self) -> usize {
        self.partitions.len() + self.leaderless.len()
    }
}

/// The topic's settings that decide how long its messages are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicSettings {
    /// Log compaction deletes older messages with the same key.
    pub compacts: bool,
    pub retention: Retention,
}

/// How retention deletes a topic's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// gapless has no right to read the topic's configuration.
    Unknown,
    Unlimited,
    /// Messages are deleted by size, by age or by both. Messages older than `age` may be deleted.
    Limited {
        age: Option<Duration>,
    },
}

impl Retention {
    /// Derives the retention from the topic's `cleanup.policy`, `retention.ms` and `retention.bytes` (-1: no limit).
    pub fn of(policy: &str, retention_ms: Option<&str>, retention_bytes: Option<&str>) -> Self {
        let limit = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
        let (ms, bytes) = (limit(retention_ms), limit(retention_bytes));
        match policy.contains("delete") && (ms.is_some() || bytes.is_some()) {
            true => Self::Limited { age: ms.map(Duration::from_millis) },
            false => Self::Unlimited,
        }
    }

    /// The headroom below which a warning is logged: the configured time, but at most half of the retention time, so
    /// that a topic with a short retention does not cause warnings all the time.
    pub fn threshold(self, configured: Duration) -> Duration {
        match self {
            Self::Limited { age: Some(age) } => configured.min(age / 2),
            _ => configured,
        }
    }
}

/// Whether the topic's `cleanup.policy` compacts the log. In a compacted log, a compacted message cannot be
/// distinguished from a transaction marker, and the last stored message may be compacted away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compaction {
    Yes,
    No,
    /// gapless has no right to read the topic's configuration.
    Unknown,
}

impl Compaction {
    pub fn of(settings: &TopicSettings) -> Self {
        if settings.compacts { Self::Yes } else { Self::No }
    }

    pub fn policy(self) -> &'static str {
        match self {
            Self::Yes => "compact",
            Self::No => "delete",
            Self::Unknown => "not known",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_ordered_by_topic_and_then_by_number() {
        let (a, b) = (Topic::from("a"), Topic::from("b"));
        let mut partitions = [b.partition(0), a.partition(10), a.partition(2), Topic::from("a").partition(3)];
        partitions.sort();
        assert_eq!(partitions.map(|p| p.to_string()), ["a[2]", "a[3]", "a[10]", "b[0]"]);
        assert_eq!(a, Topic::from("a".to_owned()));
    }
}
