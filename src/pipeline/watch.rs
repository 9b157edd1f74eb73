//! What is looked at beside the stream: Kafka's watermarks and partitions, and whether a newer
//! daemon has taken the positions over. One task asks, the loop judges.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::admit::topic_identity_mismatch;
use super::partition::Partition;
use super::settings::Settings;
use super::{Parts, Pipeline, Stop, beating, believe_after};
use crate::kafka::SourceError;
use crate::kafka::reader::Reader;
use crate::ledger::catalogue::sequences::Sequences;
use crate::ledger::connect::Store;
use crate::ledger::error::LedgerError;
use crate::ledger::read::audit::Audit;
use crate::ledger::start::positions::Owner;
use crate::model::offset::{NextOffset, OffsetRange, Watermarks};
use crate::model::partition_state::{Halt, HaltReason, PartitionState};
use crate::model::topic::{TopicSettings, TopicSnapshot};

/// How often watermarks are asked for: lag and new partitions are this old at most.
const SURVEY_EVERY: Duration = Duration::from_secs(2);
/// How often the ledger is looked at: an idle daemon notices within this long that it was taken
/// over (the promise is 10 s).
const LEDGER_EVERY: Duration = Duration::from_secs(4);
/// How often the topic's settings are asked for: by a connection of its own each time, so not often.
const SETTINGS_EVERY: Duration = Duration::from_secs(60);
/// How often tables are looked at that may have outgrown their statistics: a load of an hour shows within seconds.
const STATISTICS_EVERY: Duration = Duration::from_secs(5);

/// One look at a server.
pub(super) enum Glance {
    Kafka(Result<TopicSnapshot, SourceError>),
    /// The topic's settings, as they are now.
    Settings(TopicSettings),
    Owner(Result<Option<Owner>, LedgerError>),
    Ledger(Result<Ledger, LedgerError>),
    /// Whether the ledger's tables are as this version needs them.
    Catalogue(Result<(), LedgerError>),
}

/// Where the ledger's positions are, and how many offsets are unaccounted for.
pub(super) struct Ledger {
    asked_at: Instant,
    positions: BTreeMap<i32, NextOffset>,
    unaccounted: Vec<(i32, i64)>,
}

/// The asking task; it ends with its handle.
pub(super) struct Watch {
    glances: mpsc::Receiver<Glance>,
    now: Arc<Notify>,
    tasks: [JoinHandle<()>; 5],
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Watch {
    /// `from`: where this daemon began to write, per partition.
    pub(super) fn start(parts: &Parts, settings: Settings, from: BTreeMap<i32, NextOffset>) -> Self {
        let (observer, store, source_id) = (parts.observer.clone(), parts.store.clone(), parts.started.source_id);
        let tenure = parts.started.tenure;
        // One of each kind waits at most; the loop never falls behind for long.
        let (tx, glances) = mpsc::channel(2);
        let now = Arc::new(Notify::new());
        let (asked, to_loop) = (Arc::clone(&now), tx.clone());
        let settings = tokio::spawn(watch_settings(settings, tx.clone()));
        let statistics = tokio::spawn(keep_statistics(parts.store.clone()));
        let every = parts.look_at_catalogue_every;
        let catalogue = tokio::spawn(watch_catalogue(parts.store.clone(), every, tx.clone()));
        let survey = tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(SURVEY_EVERY) => {}
                    // Once a second at most, however often it is asked for.
                    () = async { asked.notified().await; tokio::time::sleep(SURVEY_EVERY / 4).await } => {}
                }
                if to_loop.send(Glance::Kafka(observer.survey().await)).await.is_err() {
                    return;
                }
            }
        });
        let ledger = tokio::spawn(async move {
            let mut audit = Audit::new(source_id, tenure);
            loop {
                tokio::time::sleep(LEDGER_EVERY).await;
                // By itself: that another start owns the ledger must be told, whatever else fails.
                if tx.send(Glance::Owner(store.owner(source_id).await)).await.is_err() {
                    return;
                }
                let asked_at = Instant::now();
                let look = async {
                    let positions = store.audit(&mut audit, &from).await?;
                    Ok(Ledger { asked_at, positions, unaccounted: audit.missing().collect() })
                };
                if tx.send(Glance::Ledger(look.await)).await.is_err() {
                    return;
                }
            }
        });
        Self { glances, now, tasks: [survey, ledger, settings, statistics, catalogue] }
    }

    /// The next look.
    pub(super) async fn next(&mut self) -> Glance {
        self.glances.recv().await.expect("the tasks run as long as the watch")
    }

    pub(super) fn ready(&mut self) -> Option<Glance> {
        self.glances.try_recv().ok()
    }

    /// Asks Kafka soon.
    pub(super) fn look_now(&self) {
        self.now.notify_one();
    }
}

/// A key that is dropped makes no statement fail: only a look at the catalogue finds it.
async fn watch_catalogue(store: Store, every: Duration, to_loop: mpsc::Sender<Glance>) {
    loop {
        tokio::time::sleep(every).await;
        let looked = store.require_catalogue(Sequences::MoveForward).await;
        if to_loop.send(Glance::Catalogue(looked)).await.is_err() {
            return;
        }
    }
}

/// Operators change retention while a daemon runs, most of all when it is behind, and `cleanup.policy` too.
async fn watch_settings(settings: Settings, to_loop: mpsc::Sender<Glance>) {
    loop {
        tokio::time::sleep(SETTINGS_EVERY).await;
        match settings.look().await {
            Ok(settings) if to_loop.send(Glance::Settings(settings)).await.is_err() => return,
            Ok(_) => {}
            // Told at the start where the right is missing; what was known last counts.
            Err(error) => tracing::debug!(error = %error, "cannot see the topic's settings now"),
        }
    }
}

/// A courtesy to readers: whatever fails is tried again, and nothing waits for it.
async fn keep_statistics(store: Store) {
    loop {
        tokio::time::sleep(STATISTICS_EVERY).await;
        match store.keep_statistics().await {
            Ok(tables) if tables.is_empty() => {}
            Ok(tables) => {
                tracing::info!(event = "tables_analyzed", tables = ?tables, "tables have grown, analyzed them")
            }
            Err(error) => tracing::debug!(error = %error, "cannot analyze the ledger's tables now"),
        }
    }
}

impl Pipeline {
    pub(super) async fn look(&mut self, glance: Glance) -> Result<(), Stop> {
        match glance {
            Glance::Owner(Ok(owner)) => {
                self.still_ours(owner)?;
                self.health.database(None);
            }
            Glance::Owner(Err(error)) => self.health.database(Some(error.explained())),
            Glance::Ledger(Ok(ledger)) => self.judge(ledger).await?,
            Glance::Ledger(Err(error)) => tracing::debug!(error = %error, "cannot audit the ledger now"),
            Glance::Settings(settings) => self.retention = settings.retention,
            Glance::Catalogue(looked) => self.catalogue_seen(looked).await,
            Glance::Kafka(Err(error)) => self.kafka_away(&error),
            Glance::Kafka(Ok(survey)) => {
                self.health.kafka(None);
                if let Some(halt) = topic_identity_mismatch(&self.identity, &survey.identity) {
                    self.halt_all(&halt);
                    return Ok(());
                }
                self.without_leader(&survey);
                for (partition, marks) in survey.partitions {
                    self.partition_seen(partition, marks).await?;
                }
            }
        }
        Ok(())
    }

    async fn judge(&mut self, ledger: Ledger) -> Result<(), Stop> {
        for (partition, offsets) in ledger.unaccounted {
            self.health.metrics().unaccounted(partition, offsets);
        }
        // Only of a position that stood still meanwhile can another value be told from an older one.
        let moved = self.partitions.iter().any(|(partition, p)| {
            let stored = ledger.positions.get(partition);
            p.unmoved_since(ledger.asked_at) && stored.is_some_and(|stored| *stored != p.position().next)
        });
        if moved { self.reload().await } else { Ok(()) }
    }

    async fn partition_seen(&mut self, partition: i32, marks: Watermarks) -> Result<(), Stop> {
        self.until.seen(partition, marks);
        let heard = self.heard();
        let Some(p) = self.partitions.get_mut(&partition) else {
            let halted = self.schema_halt.is_some();
            return if halted { Ok(()) } else { self.take_up(partition, marks).await };
        };
        p.seen(marks);
        self.ends.note(p.position().id, p.position().log_end);
        if p.silent_for(marks, heard) >= believe_after() {
            self.stalled(partition, marks);
        }
        let Some(p) = self.partitions.get(&partition) else { return Ok(()) };
        let troubled = matches!(p.state(), PartitionState::Troubled(_));
        if troubled && !p.is_tried(believe_after()) {
            self.admit(partition);
        }
        self.show(partition);
        self.foresee(partition);
        Ok(())
    }

    /// The client says nothing of a partition whose brokers are all away; it waits for them.
    fn without_leader(&mut self, survey: &TopicSnapshot) {
        let absent = |partition: &i32, p: &Partition| {
            *p.state() == PartitionState::Reading && !survey.partitions.contains_key(partition)
        };
        let absent: Vec<i32> = self.partitions.iter().filter(|(n, p)| absent(n, p)).map(|(n, _)| *n).collect();
        for partition in absent {
            self.wait_for_leader(partition);
            self.reader.remove(partition);
        }
    }

    /// Its position stands; it is admitted when its leader is seen.
    pub(super) fn wait_for_leader(&mut self, partition: i32) {
        if let Some(p) = self.partitions.get_mut(&partition) {
            p.without_leader();
        }
        self.show(partition);
    }

    /// librdkafka can stop without a word: a lost wake-up, or a batch that it cannot parse. There is more to
    /// read, as the second client says, and nothing comes. The reading client is made anew, twice at most;
    /// if that brings nothing either, the log cannot be read.
    fn stalled(&mut self, partition: i32, marks: Watermarks) {
        let Some(p) = self.partitions.get(&partition) else { return };
        if p.failing_for() < believe_after() * 2 {
            return self.rebuild_reader(partition);
        }
        let next = p.position().next;
        let range = OffsetRange::new(next, marks.last_stable);
        let detail = format!(
            "nothing is delivered from offset {next} on although the log goes on; look at the broker's log and segment, then restart"
        );
        self.halt(partition, Halt::new(HaltReason::Unreadable, range, detail));
    }

    /// All partitions lose what was read and not written, and are admitted anew.
    fn rebuild_reader(&mut self, silent: i32) {
        let why = "nothing was delivered for 30 s although the log goes on; the Kafka client was made anew";
        self.replace_reader(why);
        self.not_yet(silent, why);
    }

    /// The same because Kafka refuses what the reading client had read from files that have changed since.
    pub(super) fn renew_reader(&mut self) {
        self.replace_reader("files with secrets for Kafka have changed; the Kafka client was made anew");
        self.watch.look_now();
    }

    pub(super) fn replace_reader(&mut self, why: &str) {
        match Reader::start(&self.kafka) {
            Ok((reader, fetched)) => {
                let before = std::mem::replace(&mut self.reader, reader);
                self.fetched = fetched;
                self.rest = None;
                // Its thread may hang, and its end is nobody's business any more.
                tokio::spawn(before.stop(Duration::from_secs(2)));
            }
            Err(error) => {
                tracing::warn!(event = "kafka_client_not_made", error = %error, "cannot make a new Kafka client");
            }
        }
        for partition in self.not_halted() {
            self.set_aside(partition, why);
        }
    }

    /// What was seen last is not how it is now.
    pub(super) fn kafka_away(&mut self, error: &SourceError) {
        self.health.kafka(Some(format!("{error}; {}", error.remedy())));
        self.partitions.values_mut().for_each(Partition::unseen);
        self.partitions.keys().for_each(|partition| self.show(*partition));
        self.foresee_all();
    }

    pub(super) fn not_halted(&self) -> Vec<i32> {
        self.partitions.iter().filter(|(_, p)| !p.state().is_halted()).map(|(partition, _)| *partition).collect()
    }

    fn set_aside(&mut self, partition: i32, why: &str) {
        if let Some(p) = self.partitions.get_mut(&partition) {
            p.set_aside(why);
        }
        self.show(partition);
    }

    /// A partition that appeared while running begins at offset 0, stored before it is read. Where Kafka no longer
    /// has that, it halts.
    async fn take_up(&mut self, partition: i32, marks: Watermarks) -> Result<(), Stop> {
        let taking = self.store.take_up(self.source_id, partition, NextOffset::ZERO, self.tenure.fence);
        match beating(&self.health, &self.stop, taking).await? {
            Ok(Some(position)) => {
                tracing::info!(kafka.partition = partition, kafka.offset = position.next.get(), "new partition");
                self.partitions.insert(partition, Partition::new(position, Some(marks)));
                self.admit(partition);
            }
            // A newer daemon has it; the next look at the owner ends this one.
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(
                    event = "add_partition_failed",
                    kafka.partition = partition,
                    error = %error,
                    "cannot store the position of a new partition; the next look at Kafka tries again"
                );
            }
        }
        Ok(())
    }
}
