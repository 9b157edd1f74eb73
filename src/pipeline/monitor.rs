//! What is looked at beside the stream: Kafka's watermarks and partitions, and whether a newer
//! daemon has taken the positions over. One task asks, the run judges.

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
use crate::ledger::read::audit::Audit;
use crate::ledger::start::positions::FenceHolder;
use crate::model::offset::NextOffset;
use crate::model::topic::{TopicSettings, TopicSnapshot};

/// How often watermarks are asked for: lag and new partitions are this old at most.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(2);
/// How often the ledger is looked at: an idle daemon notices within this long that it was taken
/// over (the promise is 10 s).
const LEDGER_CHECK_INTERVAL: Duration = Duration::from_secs(4);
/// How often the topic's settings are asked for: by a connection of its own each time, so not often.
const SETTINGS_INTERVAL: Duration = Duration::from_secs(60);
/// How often tables are looked at that may have outgrown their statistics: a load of an hour shows within seconds.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(5);

/// One look at a server.
pub(super) enum Observation {
    Snapshot(Result<TopicSnapshot, SourceError>),
    /// The topic's settings, as they are now.
    Settings(TopicSettings),
    Owner(Result<Option<FenceHolder>, LedgerError>),
    Audit(Result<LedgerAudit, LedgerError>),
    /// Whether the ledger's tables are as this version needs them.
    Catalogue(Result<(), LedgerError>),
}

/// Where the ledger's positions are, and how many offsets are unaccounted for.
pub(super) struct LedgerAudit {
    pub(super) asked_at: Instant,
    pub(super) positions: BTreeMap<i32, NextOffset>,
    pub(super) unaccounted: Vec<(i32, i64)>,
}

/// The asking task; it ends with its handle.
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
    /// `from`: where this daemon began to write, per partition.
    pub(super) fn start(parts: &Parts, settings: TopicSettingsCache, from: BTreeMap<i32, NextOffset>) -> Self {
        let (observer, store, source_id) = (parts.observer.clone(), parts.store.clone(), parts.started.source_id);
        let token = parts.started.token;
        // One of each kind waits at most; the loop never falls behind for long.
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
                    // Once a second at most, however often it is asked for.
                    () = async { asked.notified().await; tokio::time::sleep(SNAPSHOT_INTERVAL / 4).await } => {}
                }
                if to_loop.send(Observation::Snapshot(observer.snapshot().await)).await.is_err() {
                    return;
                }
            }
        });
        let ledger = tokio::spawn(async move {
            let mut audit = Audit::new(source_id, token);
            loop {
                tokio::time::sleep(LEDGER_CHECK_INTERVAL).await;
                // By itself: that another start owns the ledger must be told, whatever else fails.
                if tx.send(Observation::Owner(store.fence_holder(source_id).await)).await.is_err() {
                    return;
                }
                let asked_at = Instant::now();
                let look = async {
                    let positions = store.audit(&mut audit, &from).await?;
                    Ok(LedgerAudit { asked_at, positions, unaccounted: audit.missing().collect() })
                };
                if tx.send(Observation::Audit(look.await)).await.is_err() {
                    return;
                }
            }
        });
        Self { observations, now, tasks: [snapshot, ledger, settings, statistics, catalogue] }
    }

    /// The next look.
    pub(super) async fn next(&mut self) -> Observation {
        self.observations.recv().await.expect("the tasks run as long as the watch")
    }

    pub(super) fn ready(&mut self) -> Option<Observation> {
        self.observations.try_recv().ok()
    }

    /// Asks Kafka soon.
    pub(super) fn take_snapshot_now(&self) {
        self.now.notify_one();
    }
}

/// A key that is dropped makes no statement fail: only a look at the catalogue finds it.
async fn observe_catalogue(store: LedgerStore, every: Duration, to_loop: mpsc::Sender<Observation>) {
    loop {
        tokio::time::sleep(every).await;
        let looked = store.require_catalogue().await;
        if to_loop.send(Observation::Catalogue(looked)).await.is_err() {
            return;
        }
    }
}

/// Operators change retention while a daemon runs, most of all when it is behind, and `cleanup.policy` too.
async fn observe_settings(settings: TopicSettingsCache, to_loop: mpsc::Sender<Observation>) {
    loop {
        tokio::time::sleep(SETTINGS_INTERVAL).await;
        match settings.refresh().await {
            Ok(settings) if to_loop.send(Observation::Settings(settings)).await.is_err() => return,
            Ok(_) => {}
            // Told at the start where the right is missing; what was known last counts.
            Err(error) => tracing::debug!(error = %error, "cannot see the topic's settings now"),
        }
    }
}

/// A courtesy to readers: whatever fails is tried again, and nothing waits for it.
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
