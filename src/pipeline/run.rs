//! The loop of the daemon. It waits for fetched records, commits, answers and observations, gives each to the partition
//! set as an event, and carries out the actions that follow. Only this module awaits them. It decides nothing about a
//! partition.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::committer::{CommittedBatch, Committer, CommitterEvent, Ledger};
use super::decoder::Decoder;
use super::event::{Action, Event, FetchFailure, Now};
use super::gap_proofs::GapProofs;
use super::log_end_recorder::LogEndRecorder;
use super::log_lines;
use super::monitor::{Monitor, Observation};
use super::ownership::Ownership;
use super::partition;
use super::partition_buffer::MemoryPermit;
use super::partition_set::{BACKLOG_ROWS, Ended, PartitionSet, Settings};
use super::reporter::Reporter;
use super::stall_detector::DeliveryCount;
use super::state_recorder::StateRecorder;
use super::topic_settings::TopicSettingsCache;
use super::until::Until;
use crate::config::{BatchLimits, KafkaConfig};
use crate::failpoints::{self, Failpoint};
use crate::formats::Format;
use crate::kafka::SourceError;
use crate::kafka::anchors::Anchors;
use crate::kafka::gap_prover::Prover;
use crate::kafka::metadata::Observer;
use crate::kafka::reader::{Chunk, FetchError, Fetched, Reader};
use crate::ledger::catalogue::Differences;
use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;
use crate::ledger::positions::FenceHolder;
use crate::ledger::start::Started;
use crate::ledger::write::writer::Writer;
use crate::model::partition_state::{Halt, HaltReason};
use crate::model::topic::{Compaction, Retention, TopicSnapshot};
use crate::observe::health::Health;
use crate::observe::progress::Progress;

/// The longest wait of the loop for an event.
const TICK_INTERVAL: Duration = Duration::from_millis(500);
/// See [`Settings::believe_after`].
const BELIEVE_AFTER: Duration = Duration::from_secs(30);
/// How long batches in flight may take to finish after a stop is asked for.
const FINAL_COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the loop waits for connections to PostgreSQL before it starts with a backlog.
const OPEN_CONNECTIONS_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the reading client may take to close.
const CLOSE_READER_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the loop ended.
#[derive(Debug)]
pub enum Stop {
    /// A signal.
    Asked,
    /// `--until-end`: every partition is at its end.
    Finished,
    /// `--until-end`: some partitions are halted, the others at their end.
    Halted,
    /// A newer daemon took the positions over.
    TakenOver(FenceHolder),
    /// The fencing token of this start is not in the database (restored or failed over): start again.
    LedgerChanged,
    /// An operator began a new generation of the topic: start again with that generation.
    Rebased,
    /// The ledger differs from what this version needs, so that even the positions cannot be read.
    SchemaDiffers(String),
}

/// The parts of the loop.
pub struct Parts {
    pub reader: Reader,
    pub fetched: mpsc::Receiver<Fetched>,
    pub prover: Prover,
    pub anchors: Anchors,
    pub observer: Observer,
    pub store: LedgerStore,
    pub format: Format,
    pub writer: Writer,
    pub max_in_flight: usize,
    pub started: Started,
    pub snapshot: TopicSnapshot,
    pub limits: BatchLimits,
    /// How often the ledger's tables are checked.
    pub catalogue_check_interval: Duration,
    pub compaction: Compaction,
    pub retention: Retention,
    pub kafka: KafkaConfig,
    pub health: Health,
    pub progress: Progress,
    pub stop: CancellationToken,
    pub until: Until,
}

/// Reads and writes until there is a reason to stop. Every wait in the loop is finite.
pub async fn run(parts: Parts) -> Stop {
    let (mut run, actions) = Run::new(parts);
    run.execute(actions);
    let stop = run.until_stop().await;
    run.finish(&stop).await;
    stop
}

struct Run {
    reader: Reader,
    fetched: mpsc::Receiver<Fetched>,
    /// The number of deliveries that were taken from the reader.
    deliveries: u64,
    set: PartitionSet,
    proofs: GapProofs,
    committer: Committer,
    monitor: Monitor,
    ownership: Ownership,
    kafka: KafkaConfig,
    health: Health,
    states: StateRecorder,
    log_ends: LogEndRecorder,
    reporter: Reporter,
    stop: CancellationToken,
    /// Set when the ledger differs from what this version needs: whether its repair was logged.
    unusable: Option<SchemaRepair>,
}

/// Whether the log says that the ledger is again as this version needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SchemaRepair {
    NotLogged,
    Logged,
}

impl Run {
    fn new(parts: Parts) -> (Self, Vec<Action>) {
        let cache = TopicSettingsCache::new(parts.observer.clone(), parts.kafka.clone(), parts.compaction);
        let began = parts.started.positions.values().map(|p| (p.partition.clone(), p.next)).collect();
        let monitor = Monitor::start(&parts, cache.clone(), began);
        let unchecked = partition::unchecked();
        let states = StateRecorder::start(&parts, parts.started.positions.keys().map(|p| (p, &unchecked)));
        let log_ends = LogEndRecorder::start(&parts);
        let ownership = Ownership { source_id: parts.started.source_id, token: parts.started.token };
        let ledger = Ledger {
            decoder: Decoder::new(parts.format),
            max_rows: parts.limits.max_messages,
            writer: parts.writer.into(),
            store: parts.store,
            topic: parts.kafka.topic.clone(),
            ownership,
            health: parts.health.clone(),
            stop: parts.stop.clone(),
        };
        let settings = Settings {
            limits: parts.limits.within(parts.kafka.drafted_bytes(), parts.max_in_flight),
            // A test may shorten it.
            believe_after: failpoints::scaled(BELIEVE_AFTER),
            headroom_warning: parts.kafka.headroom_warning,
        };
        let basis = (parts.started.identity, parts.retention, parts.until);
        let positions = parts.started.positions.into_values();
        let (set, actions) = PartitionSet::new(settings, basis, positions, &parts.snapshot, now());
        let run = Self {
            set,
            monitor,
            states,
            log_ends,
            ownership,
            proofs: GapProofs::new(parts.prover, parts.anchors, cache),
            committer: Committer::new(ledger, parts.max_in_flight),
            reader: parts.reader,
            fetched: parts.fetched,
            deliveries: 0,
            reporter: Reporter::new(parts.health.clone(), parts.progress, parts.kafka.group.clone()),
            kafka: parts.kafka,
            health: parts.health,
            stop: parts.stop,
            unusable: None,
        };
        (run, actions)
    }

    async fn until_stop(&mut self) -> Stop {
        if self.set.backlog() >= BACKLOG_ROWS as i64 {
            // Kafka answers its first requests meanwhile. A slower server is waited for with the first batch.
            tokio::select! {
                () = self.stop.cancelled() => {}
                _ = tokio::time::timeout(OPEN_CONNECTIONS_TIMEOUT, self.committer.open()) => {}
            }
        }
        loop {
            if let Err(stop) = self.iterate().await {
                return stop;
            }
        }
    }

    /// One iteration of the loop: waits for an event, takes all events that are ready, submits batches.
    async fn iterate(&mut self) -> Result<(), Stop> {
        self.health.beat();
        failpoints::hit(Failpoint::LoopTurn).await.ok();
        if self.stop.is_cancelled() {
            return Err(Stop::Asked);
        }
        if !self.health.has_started() && !self.set.is_asking() {
            self.health.started();
        }
        self.reporter.tick(&self.set, &self.reader);
        match self.set.end() {
            Some(Ended::AllRead) => return Err(Stop::Finished),
            Some(Ended::SomeHalted) => return Err(Stop::Halted),
            None => {}
        }
        let mut woken = Wakeup::Nothing;
        // No wait is needed if the rest of a delivery can be taken now.
        if !self.set.can_go_on() {
            let wants_more = self.set.wants_more();
            woken = tokio::select! {
                () = self.stop.cancelled() => return Err(Stop::Asked),
                Some(fetched) = self.fetched.recv(), if wants_more => Wakeup::Fetched(fetched),
                event = self.committer.next() => Wakeup::Committer(event),
                answer = self.proofs.next() => Wakeup::Proof(answer),
                seen = self.monitor.next() => Wakeup::Observation(seen),
                () = tokio::time::sleep(TICK_INTERVAL) => Wakeup::Nothing,
            };
        }
        self.take_all(woken).await?;
        self.tick();
        Ok(())
    }

    /// Takes the event that ended the wait, then the others that are ready: commits and answers, then fetched records,
    /// then observations. Observations come last because they judge a partition by its deliveries.
    async fn take_all(&mut self, woken: Wakeup) -> Result<(), Stop> {
        let mut seen = None;
        match woken {
            Wakeup::Fetched(fetched) => self.on_fetched(fetched),
            Wakeup::Committer(event) => self.on_committer(event)?,
            Wakeup::Proof(event) => self.on_event(event),
            Wakeup::Observation(observation) => seen = Some(observation),
            Wakeup::Nothing => {}
        }
        while let Some(event) = self.committer.next().now_or_never() {
            self.on_committer(event)?;
        }
        while let Some(event) = self.proofs.next().now_or_never() {
            self.on_event(event);
        }
        while self.set.wants_more()
            && let Ok(fetched) = self.fetched.try_recv()
        {
            self.on_fetched(fetched);
        }
        while let Some(observation) = seen.take().or_else(|| self.monitor.ready()) {
            self.on_observation(observation).await?;
        }
        Ok(())
    }

    /// The end of an iteration: buffered records become batches.
    fn tick(&mut self) {
        self.on_event(Event::Tick {
            in_flight: self.committer.in_flight(),
            has_capacity: self.committer.has_capacity(),
            out_of_memory: self.reader.is_out_of_budget(),
        });
    }

    fn on_event(&mut self, event: Event) {
        let actions = self.set.on_event(event, now());
        self.execute(actions);
    }

    // ---- fetched records

    fn on_fetched(&mut self, fetched: Fetched) {
        self.deliveries += 1;
        match fetched {
            Fetched::Records(Chunk { topic, records, permit }) => {
                self.on_event(Event::Fetched(topic, records, MemoryPermit::of(permit)));
            }
            Fetched::End { partition, epoch, offset } => {
                self.on_event(Event::ReachedEnd(partition, epoch, offset));
            }
            Fetched::Advanced(partitions) => self.on_event(Event::Progressed(partitions)),
            Fetched::Failed(error) => {
                let failure = fetch_failure(&error, &self.kafka);
                self.on_event(Event::FetchFailed(error.partition, error.epoch, failure));
            }
            Fetched::SecretsChanged => {
                let reason = "files with secrets for Kafka have changed; the Kafka client was replaced";
                self.replace_reader(reason.to_owned());
            }
            Fetched::Trouble { code, message } => {
                tracing::debug!(kafka.code = ?code, "kafka: {message}");
                self.monitor.take_snapshot_now();
            }
        }
    }

    fn delivered(&self) -> DeliveryCount {
        let unread = u64::from(self.set.has_partial_chunk());
        DeliveryCount { read: self.deliveries - unread, delivered: self.deliveries + self.fetched.len() as u64 }
    }

    fn replace_reader(&mut self, reason: String) {
        match Reader::start(&self.kafka) {
            Ok((reader, fetched)) => {
                let replaced = std::mem::replace(&mut self.reader, reader);
                self.fetched = fetched;
                // Nothing waits for the end of the old reader, because its thread may hang.
                tokio::spawn(replaced.stop(CLOSE_READER_TIMEOUT));
            }
            Err(error) => {
                tracing::warn!(event = "kafka_client_not_made", error = %error, "cannot make a new Kafka client");
            }
        }
        self.on_event(Event::ReaderReplaced(reason));
    }

    // ---- answers of the ledger

    fn on_committer(&mut self, event: CommitterEvent) -> Result<(), Stop> {
        match event {
            CommitterEvent::Committed(batch) => self.on_committed(batch),
            CommitterEvent::Refused(partition, halt) => self.on_event(Event::Refused(partition, halt)),
            CommitterEvent::Positions { positions, void, asked_at } => {
                self.on_event(Event::LedgerPositions { positions, void, asked_at });
            }
            CommitterEvent::NothingInFlight => self.on_event(Event::NothingInFlight),
            CommitterEvent::PartitionAdded(position, marks) => {
                self.on_event(Event::PartitionAdded(position, marks));
            }
            CommitterEvent::LedgerUnusable(differences) => self.on_ledger_unusable(&differences),
            CommitterEvent::Stop(stop) => return Err(stop),
        }
        Ok(())
    }

    /// The batch is in the ledger: only now the positions in memory move.
    fn on_committed(&mut self, mut batch: CommittedBatch) {
        self.on_event(Event::Committed(std::mem::take(&mut batch.slices)));
        self.on_event(Event::Written { messages: batch.messages, rows: batch.report.rows as usize });
        self.reporter.committed(&batch, &self.set, now().unix_ms);
    }

    /// Halts every partition for good, also partitions that appear later.
    fn on_ledger_unusable(&mut self, differences: &Differences) {
        differences.log();
        self.unusable = Some(SchemaRepair::NotLogged);
        let halt = Halt::new(HaltReason::SchemaChanged, None, differences.to_string());
        self.on_event(Event::LedgerUnusable(halt));
    }

    // ---- observations

    async fn on_observation(&mut self, observation: Observation) -> Result<(), Stop> {
        match observation {
            Observation::Owner(Ok(owner)) => {
                self.ownership.check(owner)?;
                self.health.database(None);
            }
            Observation::Owner(Err(error)) => self.health.database(Some(error.explained())),
            Observation::Audit(Ok(audit)) => {
                for (partition, offsets) in audit.unaccounted {
                    self.health.metrics().unaccounted(&partition, offsets);
                }
                self.on_event(Event::PositionsSeen { positions: audit.positions, asked_at: audit.asked_at });
            }
            Observation::Audit(Err(error)) => tracing::debug!(error = %error, "cannot audit the ledger now"),
            Observation::Settings(settings) => self.on_event(Event::RetentionChanged(settings.retention)),
            Observation::Catalogue(result) => self.on_catalogue(result).await,
            Observation::Snapshot(Err(error)) => self.on_no_snapshot(&error),
            Observation::Snapshot(Ok(snapshot)) => {
                self.health.kafka(None);
                // During a recovery the buffer may be full, so that no records are taken from the reader.
                let reader_is_blocked = self.committer.is_recovering();
                let delivered = self.delivered();
                self.on_event(Event::Snapshot { snapshot, delivered, reader_is_blocked });
            }
        }
        Ok(())
    }

    fn on_no_snapshot(&mut self, error: &SourceError) {
        self.health.kafka(Some(format!("{error}; {}", error.remedy())));
        self.on_event(Event::NoSnapshot);
    }

    /// Takes the result of a check of the ledger's tables. If they differ from what this version needs, nothing more is
    /// written. A start makes the same check, so a restart does not write into such a ledger either.
    async fn on_catalogue(&mut self, result: Result<(), LedgerError>) {
        match (result, self.unusable) {
            (Err(LedgerError::Schema(_)), Some(_)) => {}
            (Err(LedgerError::Schema(differences)), None) => {
                self.committer.cancel_all().await;
                self.on_ledger_unusable(&differences);
                self.on_event(Event::NothingInFlight);
            }
            (Ok(()), Some(SchemaRepair::NotLogged)) => {
                self.unusable = Some(SchemaRepair::Logged);
                tracing::warn!(
                    event = "schema_mended",
                    "the ledger is again as this version needs it: restart the daemon, which then continues"
                );
            }
            (Ok(()), _) => {}
            (Err(error), _) => tracing::debug!(error = %error, "cannot check the ledger's tables now"),
        }
    }

    // ---- actions

    fn execute(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Assign(assignment) => self.reader.add(assignment),
                Action::Unassign(partition) => self.reader.remove(partition),
                Action::ProveGap { partition, proof_id, gaps } => self.proofs.prove_gap(partition, proof_id, gaps),
                Action::CheckAnchor { partition, epoch, anchor } => {
                    self.proofs.check_anchor(partition, epoch, anchor);
                }
                Action::SubmitBatch(batch, permits) => self.committer.submit(batch, permits),
                Action::Halt { partition, offset, halt } => {
                    log_lines::halted(&partition, offset, &halt);
                    self.log_ends.write_now();
                }
                Action::RecordLogEnd(position_id, end) => self.log_ends.note(position_id, Some(end)),
                Action::Publish { partition, next, marks, state } => {
                    self.health.partition(&partition, next, marks, &state);
                    self.states.note(&partition, &state);
                }
                Action::PublishRisk(partition, risk) => self.health.retention_risk(&partition, risk),
                Action::TakeSnapshot => self.monitor.take_snapshot_now(),
                Action::ReplaceReader(reason) => self.replace_reader(reason),
                Action::AddPartition(partition, marks) => self.committer.add_partition(partition, marks),
                Action::ReloadPositions => self.committer.reload_positions(),
                Action::Log(line) => log_lines::log(line),
            }
        }
    }

    /// Ends the run. Batches in flight have [`FINAL_COMMIT_TIMEOUT`] left to commit. The next start finds in PostgreSQL
    /// whether they did.
    async fn finish(mut self, stop: &Stop) {
        if !matches!(stop, Stop::Asked | Stop::Finished | Stop::Halted) {
            // Another start owns the ledger, or the database is not the one that was written to.
            self.committer.cancel_all().await;
        }
        let deadline = tokio::time::Instant::now() + FINAL_COMMIT_TIMEOUT;
        while self.committer.in_flight() > 0 {
            match tokio::time::timeout_at(deadline, self.committer.next()).await {
                Ok(CommitterEvent::Committed(batch)) => self.on_committed(batch),
                Ok(CommitterEvent::Stop(_) | CommitterEvent::NothingInFlight) | Err(_) => break,
                Ok(_) => {}
            }
        }
        self.reporter.finish(&self.set, &self.reader);
        for position in self.set.positions() {
            self.log_ends.note(position.id, position.log_end);
        }
        tokio::join!(self.states.finish(), self.log_ends.finish());
        self.reader.stop(CLOSE_READER_TIMEOUT).await;
    }
}

/// The event that ended the wait of the loop.
enum Wakeup {
    Fetched(Fetched),
    Committer(CommitterEvent),
    Proof(Event),
    Observation(Observation),
    Nothing,
}

fn now() -> Now {
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
    Now { instant: Instant::now(), unix_ms }
}

fn fetch_failure(error: &FetchError, kafka: &KafkaConfig) -> FetchFailure {
    let reason = error.missing_right(kafka).unwrap_or_else(|| error.why());
    match error.not_unpacked {
        Some(batch) => FetchFailure::NotUnpacked(batch, reason),
        None if error.is_damage() => FetchFailure::Damaged(reason),
        None => FetchFailure::Unavailable(reason),
    }
}
