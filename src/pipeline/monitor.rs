//! Observations beside the stream: Kafka's watermarks, partitions and topic settings; the ledger's owner, positions and
//! tables. The tasks here observe; the run decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::run::Parts;
use super::topic_settings::TopicSettingsCache;
use crate::kafka::SourceError;
use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;
use crate::ledger::positions::FenceHolder;
use crate::ledger::read::audit::Audit;
use crate::model::offset::NextOffset;
use crate::model::topic::{TopicPartition, TopicSettings, TopicSnapshot};

/// How often watermarks are read. Lag and new partitions are at most this old.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(2);
/// How often the ledger is checked: an idle daemon notices within this time that a newer daemon has taken over (the
/// contract promises 10 s).
const LEDGER_CHECK_INTERVAL: Duration = Duration::from_secs(4);
/// How often the topic's settings are read. Each read opens a connection, so it is rare.
const SETTINGS_INTERVAL: Duration = Duration::from_secs(60);
/// How often the sizes of tables are compared with their statistics: a bulk load is noticed within seconds.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(5);

/// One observation of a server.
pub(super) enum Observation {
    Snapshot(Result<TopicSnapshot, SourceError>),
    /// The topic's current settings.
    Settings(TopicSettings),
    Owner(Result<Option<FenceHolder>, LedgerError>),
    Audit(Result<LedgerAudit, LedgerError>),
    /// Whether the ledger's tables are what this version needs.
    Catalogue(Result<(), LedgerError>),
}

/// The stored positions, and the number of unaccounted offsets by partition.
pub(super) struct LedgerAudit {
    pub(super) asked_at: Instant,
    pub(super) positions: BTreeMap<TopicPartition, NextOffset>,
    pub(super) unaccounted: Vec<(TopicPartition, i64)>,
}

/// The handle of the observing tasks. They end when it is dropped.
pub(super) struct Monitor {
    observations: mpsc::Receiver<Observation>,
    now: Arc<Notify>,
    tasks: [JoinHandle<()>; 5],
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Monitor {
    /// Starts the tasks. `from`: the position at which this daemon began to write, by partition.
    pub(super) fn start(
        parts: &Parts,
        settings: TopicSettingsCache,
        from: BTreeMap<TopicPartition, NextOffset>,
    ) -> Self {
        let (observer, store, source_id) = (parts.observer.clone(), parts.store.clone(), parts.started.source_id);
        let (topic, token) = (parts.kafka.topic.clone(), parts.started.token);
        // A task waits while the loop is busy, so observations do not accumulate.
        let (tx, observations) = mpsc::channel(2);
        let now = Arc::new(Notify::new());
        let (asked, to_loop) = (Arc::clone(&now), tx.clone());
        let settings = tokio::spawn(observe_settings(settings, tx.clone()));
        let statistics = tokio::spawn(keep_statistics(parts.store.clone()));
        let every = parts.catalogue_check_interval;
        let catalogue = tokio::spawn(observe_catalogue(parts.store.clone(), every, tx.clone()));
        let snapshot = tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(SNAPSHOT_INTERVAL) => {}
                    // The delay limits how often requests lead to a snapshot.
                    () = async { asked.notified().await; tokio::time::sleep(SNAPSHOT_INTERVAL / 4).await } => {}
                }
                if to_loop.send(Observation::Snapshot(observer.snapshot().await)).await.is_err() {
                    return;
                }
            }
        });
        let ledger = tokio::spawn(async move {
            let mut audit = Audit::new(source_id, topic, token);
            loop {
                tokio::time::sleep(LEDGER_CHECK_INTERVAL).await;
                // In a statement of its own: the loop must know the owner even if the audit fails.
                if tx.send(Observation::Owner(store.fence_holder(source_id).await)).await.is_err() {
                    return;
                }
                let asked_at = Instant::now();
                let result = async {
                    let positions = store.audit(&mut audit, &from).await?;
                    Ok(LedgerAudit { asked_at, positions, unaccounted: audit.missing().collect() })
                };
                if tx.send(Observation::Audit(result.await)).await.is_err() {
                    return;
                }
            }
        });
        Self { observations, now, tasks: [snapshot, ledger, settings, statistics, catalogue] }
    }

    /// The next observation.
    pub(super) async fn next(&mut self) -> Observation {
        self.observations.recv().await.expect("the tasks run as long as the monitor")
    }

    pub(super) fn ready(&mut self) -> Option<Observation> {
        self.observations.try_recv().ok()
    }

    /// Takes a snapshot soon.
    pub(super) fn take_snapshot_now(&self) {
        self.now.notify_one();
    }
}

/// Checks the catalogue. No statement fails when a key was dropped: only this check finds it.
async fn observe_catalogue(store: LedgerStore, every: Duration, to_loop: mpsc::Sender<Observation>) {
    loop {
        tokio::time::sleep(every).await;
        let result = store.require_catalogue().await;
        if to_loop.send(Observation::Catalogue(result)).await.is_err() {
            return;
        }
    }
}

/// Reads the topic's settings: an operator may change retention or `cleanup.policy` while a daemon runs.
async fn observe_settings(settings: TopicSettingsCache, to_loop: mpsc::Sender<Observation>) {
    loop {
        tokio::time::sleep(SETTINGS_INTERVAL).await;
        match settings.refresh().await {
            Ok(settings) if to_loop.send(Observation::Settings(settings)).await.is_err() => return,
            Ok(_) => {}
            // The last known settings stay valid. The start has logged a missing right.
            Err(error) => tracing::debug!(error = %error, "cannot see the topic's settings now"),
        }
    }
}

/// Keeps the tables' statistics fresh for queries of users. A failure is tried again, and nothing waits for it.
async fn keep_statistics(store: LedgerStore) {
    loop {
        tokio::time::sleep(STATISTICS_INTERVAL).await;
        match store.keep_statistics().await {
            Ok(tables) if tables.is_empty() => {}
            Ok(tables) => {
                tracing::info!(event = "tables_analyzed", tables = ?tables, "tables have grown, analyzed them")
            }
            Err(error) => tracing::debug!(error = %error, "cannot analyze the ledger's tables now"),
        }
    }
}
