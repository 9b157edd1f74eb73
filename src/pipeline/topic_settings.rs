//! The topic's settings as they are now: an operator may change `cleanup.policy` and retention while a daemon runs.
//! Looked at every minute, and before a gap is judged or a missing message is. Where the answer is missing, what was
//! known last counts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::KafkaConfig;
use crate::kafka::SourceError;
use crate::kafka::metadata::Observer;
use crate::model::topic::{Compaction, TopicSettings};

/// Settings this old are asked for again before something is judged by them. Each look opens a connection of its
/// own, and a busy transactional topic has many gaps a second.
const MAX_AGE: Duration = Duration::from_secs(10);

/// What a topic that compacts means for its reader.
pub const COMPACTED: &str = "the topic's cleanup.policy compacts: Kafka deletes events that share a key with later ones; set cleanup.policy=delete on the topic";

/// Asks for the settings, and remembers them. Cheap to clone.
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

    /// Asks Kafka now.
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

    /// Whether the topic is compacted, as was known last.
    pub(super) fn known_compaction(&self) -> Compaction {
        self.last().compaction
    }

    /// Whether the topic is compacted, as far as is known; not longer ago than [`FRESH`], where Kafka says.
    pub(super) async fn compaction(&self) -> Compaction {
        let is_old = self.last().asked_at.elapsed() >= MAX_AGE;
        if is_old && let Err(error) = self.refresh().await {
            tracing::debug!(error = %error, "cannot see the topic's settings now");
        }
        self.last().compaction
    }

    fn last(&self) -> MutexGuard<'_, LastSnapshot> {
        // Nothing panics while holding it, and a panic ends the process anyway.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
