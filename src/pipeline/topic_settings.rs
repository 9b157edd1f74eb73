//! The topic's current settings: an operator may change `cleanup.policy` and retention while a daemon runs. They are
//! read every minute, and before a gap or a missing message is judged by them. Without an answer the last known
//! settings count.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::KafkaConfig;
use crate::kafka::SourceError;
use crate::kafka::metadata::Observer;
use crate::model::topic::{Compaction, TopicSettings};

/// Older settings are read again before a decision depends on them. Each read opens a connection, and a busy
/// transactional topic has many gaps a second.
const MAX_AGE: Duration = Duration::from_secs(10);

/// The warning about a compacted topic.
pub const COMPACTED: &str = "the topic's cleanup.policy compacts: Kafka deletes events that share a key with later ones; set cleanup.policy=delete on the topic";

/// Reads the settings and keeps the last answer. Cheap to clone.
#[derive(Clone)]
pub(super) struct TopicSettingsCache {
    observer: Observer,
    kafka: Arc<KafkaConfig>,
    last: Arc<Mutex<LastSnapshot>>,
}

struct LastSnapshot {
    compaction: Compaction,
    asked_at: Instant,
}

impl TopicSettingsCache {
    pub(super) fn new(observer: Observer, kafka: KafkaConfig, compaction: Compaction) -> Self {
        let last = LastSnapshot { compaction, asked_at: Instant::now() };
        Self { observer, kafka: Arc::new(kafka), last: Arc::new(Mutex::new(last)) }
    }

    pub(super) fn kafka(&self) -> &KafkaConfig {
        &self.kafka
    }

    /// Reads the settings from Kafka now.
    pub(super) async fn refresh(&self) -> Result<TopicSettings, SourceError> {
        let answer = self.observer.settings(&self.kafka).await;
        let mut last = self.last();
        last.asked_at = Instant::now();
        if let Ok(settings) = &answer {
            let before = std::mem::replace(&mut last.compaction, Compaction::of(settings));
            if before != last.compaction && last.compaction == Compaction::Yes {
                tracing::warn!(event = "topic_compacted", "{COMPACTED}");
            }
        }
        answer
    }

    /// Whether the topic is compacted, by the last answer.
    pub(super) fn known_compaction(&self) -> Compaction {
        self.last().compaction
    }

    /// Whether the topic is compacted, by an answer not older than [`MAX_AGE`]; without one, by the last answer.
    pub(super) async fn compaction(&self) -> Compaction {
        let is_old = self.last().asked_at.elapsed() >= MAX_AGE;
        if is_old && let Err(error) = self.refresh().await {
            tracing::debug!(error = %error, "cannot see the topic's settings now");
        }
        self.last().compaction
    }

    fn last(&self) -> MutexGuard<'_, LastSnapshot> {
        // A panic ends the process, so the lock is never poisoned.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
