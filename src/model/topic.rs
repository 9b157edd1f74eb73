//! A topic as Kafka shows it: its identity, its partitions, and what its configuration says of its messages.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::generation::NewGeneration;
use super::offset::Watermarks;

/// Which topic of which cluster: an offset means something within one identity only. `None` where it is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicIdentity {
    pub cluster_id: Option<String>,
    /// KIP-516; another one after the topic was deleted and created again.
    pub topic_id: Option<String>,
}

/// How one identity is not another: what was known, what is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityMismatch {
    Cluster { known: String, found: String },
    Topic { known: String, found: String },
}

impl TopicIdentity {
    /// How `found` is another topic; `None` if it is the same, as far as can be told.
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
    /// What begins where the operator says that it is so.
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

/// The topic as Kafka shows it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSnapshot {
    pub identity: TopicIdentity,
    pub partitions: BTreeMap<i32, Watermarks>,
    /// Partitions whose leader did not answer: they are not among `partitions`.
    pub leaderless: Vec<i32>,
}

impl TopicSnapshot {
    /// How many partitions the topic has.
    pub fn count(&self) -> usize {
        self.partitions.len() + self.leaderless.len()
    }
}

/// What the topic's configuration says of how long its messages are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicSettings {
    /// Deletes events that share a key.
    pub compacts: bool,
    pub retention: Retention,
}

/// What deletes a topic's messages by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// The right to ask is missing.
    Unknown,
    Unlimited,
    /// By size, or by age, or both. `age`: older messages may be deleted.
    Limited {
        age: Option<Duration>,
    },
}

impl Retention {
    /// From the topic's `cleanup.policy`, `retention.ms` and `retention.bytes` (-1: no limit).
    pub fn of(policy: &str, retention_ms: Option<&str>, retention_bytes: Option<&str>) -> Self {
        let limit = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
        let (ms, bytes) = (limit(retention_ms), limit(retention_bytes));
        match policy.contains("delete") && (ms.is_some() || bytes.is_some()) {
            true => Self::Limited { age: ms.map(Duration::from_millis) },
            false => Self::Unlimited,
        }
    }

    /// Below which headroom to warn: as asked, but a topic that keeps its messages only for a short time
    /// is not in danger all the time.
    pub fn threshold(self, asked: Duration) -> Duration {
        match self {
            Self::Limited { age: Some(age) } => asked.min(age / 2),
            _ => asked,
        }
    }
}

/// Whether the topic's `cleanup.policy` compacts: then holes cannot be told from markers, and the last
/// stored message may be gone for good reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compaction {
    Yes,
    No,
    /// The right to ask is missing.
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
