//! Writes failed batches again, one after the other and with no other batch in flight, until each is known to be in the
//! ledger or void. A batch that fails because of one partition is split, so that the other partitions commit. While
//! PostgreSQL is away, all wait.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::committer::{CommittedBatch, CommitterEvent, InFlight, InFlightBatch, Ledger, Recovered};
use super::run::Stop;
use crate::ledger::catalogue::Differences;
use crate::ledger::error::LedgerError;
use crate::ledger::positions::Position;
use crate::ledger::write::sequencer::{CommitSlot, merge_breakers};
use crate::ledger::write::writer::CommitError;
use crate::model::batch::{Batch, Slice};
use crate::model::breaker::BreakerTrip;
use crate::model::error_class::Class;
use crate::model::offset::{NextOffset, Offset, OffsetRange};
use crate::model::partition_state::{Halt, HaltReason};
use crate::model::topic::TopicPartition;
use crate::model::write_report::{Breakers, WriteReport};
use crate::retry::Backoff;

/// The number of batches in a row that the ledger may reject without an outage, before their partitions halt.
const MAX_REFUSED_COMMITS: u32 = 3;

/// The result of a look-up of a COMMIT without an answer.
enum Resolved {
    /// The batch was committed.
    Applied,
    /// The positions have not moved: the batch must be written again.
    Unchanged,
    /// Positions have moved otherwise: the batch is void.
    Moved,
}

/// Whether the position had moved already: by another daemon, a verb, or an earlier attempt that committed late.
fn is_position_conflict(error: &CommitError) -> bool {
    match error {
        CommitError::Stale => true,
        CommitError::Store(error) => error.class() == Class::Moved,
        _ => false,
    }
}

pub(super) struct Recovery {
    ledger: Ledger,
    events: mpsc::UnboundedSender<Recovered>,
    breakers: Breakers,
    rejected_in_a_row: u32,
    /// The batches behind the one that is written again.
    behind: VecDeque<InFlightBatch>,
    /// The partitions whose slices are given up.
    void: BTreeSet<TopicPartition>,
    /// The ledger's tables differ from what this version needs: nothing is written any more.
    is_unusable: bool,
}

impl Recovery {
    pub(super) fn new(
        ledger: Ledger,
        reports: mpsc::UnboundedSender<Recovered>,
        breakers: Breakers,
        rejected_in_a_row: u32,
    ) -> Self {
        let (behind, void) = (VecDeque::new(), BTreeSet::new());
        Self { ledger, events: reports, breakers, rejected_in_a_row, behind, void, is_unusable: false }
    }

    /// Writes `failed` and then the batches `behind` it. `error`: how the first attempt of `failed` ended.
    pub(super) async fn run(
        mut self,
        failed: InFlightBatch,
        error: CommitError,
        begun: Instant,
        behind: VecDeque<InFlight>,
    ) {
        for flight in behind {
            let batch = flight.cancel().await;
            self.behind.push_back(batch);
        }
        match self.recover(failed, error, begun).await {
            Ok(()) => {
                let (breakers, rejected_in_a_row) = (self.breakers, self.rejected_in_a_row);
                let _ = self.events.send(Recovered::Done { breakers, rejected_in_a_row });
            }
            Err(stop) => {
                let _ = self.events.send(Recovered::Event(CommitterEvent::Stop(stop)));
                // The run ends after a stop, so nothing more is reported.
                std::future::pending().await
            }
        }
    }

    async fn recover(&mut self, failed: InFlightBatch, error: CommitError, begun: Instant) -> Result<(), Stop> {
        self.commit(failed.batch, Some(error), begun).await?;
        drop(failed.permits);
        // The batch is in the ledger or given up: no batch waits for PostgreSQL now.
        self.ledger.health.batches(None);
        while let Some(InFlightBatch { batch, permits }) = self.behind.pop_front() {
            self.commit(batch, None, Instant::now()).await?;
            drop(permits);
        }
        Ok(())
    }

    fn report(&self, event: CommitterEvent) {
        // The receiver is gone if the run has ended.
        let _ = self.events.send(Recovered::Event(event));
    }

    /// Writes a batch until it is known to be in the ledger or void. `failed`: how an earlier attempt ended.
    async fn commit(&mut self, batch: Batch, mut failed: Option<CommitError>, begun: Instant) -> Result<(), Stop> {
        // Slices that were given up are read again, so they must not be committed here.
        let Some(mut batch) = batch.only(|slice| !self.void.contains(&slice.partition)) else { return Ok(()) };
        let mut backoff = Backoff::starting_at(Duration::from_millis(100));
        // The report of an attempt that may still commit after its look-up.
        let mut late: Option<Box<WriteReport>> = None;
        while !self.is_unusable {
            let error = match failed.take() {
                Some(error) => error,
                None => match self.write_exclusive(&batch).await {
                    Ok(report) => {
                        self.committed(&batch, report, begun);
                        return Ok(());
                    }
                    Err(error) => error,
                },
            };
            if is_position_conflict(&error)
                && let Some(report) = late.take()
                && self.is_settled(&batch, report, begun).await?
            {
                return Ok(());
            }
            match error {
                CommitError::Differs { partition, offset } => {
                    self.refuse(partition.clone(), differs(offset));
                    let Some(rest) = batch.without(&partition) else { return Ok(()) };
                    batch = rest;
                }
                CommitError::TooManyRejected { partition, trip } => {
                    self.refuse(partition.clone(), too_many_rejected(&batch, &partition, &trip));
                    let Some(rest) = batch.without(&partition) else { return Ok(()) };
                    batch = rest;
                }
                CommitError::Unknown(cause, report) => match self.look_up_commit(&batch, &cause).await? {
                    Resolved::Applied => {
                        self.committed(&batch, *report, begun);
                        return Ok(());
                    }
                    Resolved::Unchanged => {
                        late = Some(report);
                        self.pause(backoff.delay()).await?;
                    }
                    Resolved::Moved => return Ok(()),
                },
                CommitError::PredecessorFailed => {}
                CommitError::Stale => {
                    return self.rejected(batch, "the compare-and-set of the position failed", begun).await;
                }
                CommitError::Store(error) => {
                    if self.ledger_explains(&error).await {
                        return Ok(());
                    }
                    self.ledger.health.metrics().retried(error.class());
                    match error.class() {
                        Class::Environment | Class::Contention => {
                            self.wait_for_postgres(&error, backoff.delay()).await?;
                        }
                        Class::Moved => return self.rejected(batch, &error.to_string(), begun).await,
                        Class::Data | Class::Halt => return self.retry_per_partition(batch, &error, begun).await,
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether an attempt without an answer settles the batch: it committed late, or the batch is void.
    async fn is_settled(&mut self, batch: &Batch, report: Box<WriteReport>, begun: Instant) -> Result<bool, Stop> {
        Ok(match self.resolve(batch).await? {
            Resolved::Applied => {
                tracing::info!(event = "commit_applied_late", "the commit was applied after it had been looked up");
                self.committed(batch, *report, begun);
                true
            }
            Resolved::Moved => true,
            Resolved::Unchanged => false,
        })
    }

    /// Writes a batch while no other batch is in flight.
    async fn write_exclusive(&self, batch: &Batch) -> Result<WriteReport, CommitError> {
        let (slot, _) = CommitSlot::first(self.breakers.clone());
        Box::pin(self.ledger.write(batch, slot)).await
    }

    fn committed(&mut self, batch: &Batch, report: WriteReport, begun: Instant) {
        merge_breakers(&mut self.breakers, &report.breakers);
        self.rejected_in_a_row = 0;
        self.ledger.health.database(None);
        self.ledger.health.batches(None);
        self.report(CommitterEvent::Committed(CommittedBatch::new(batch, report, begun)));
    }

    fn refuse(&mut self, partition: TopicPartition, halt: Halt) {
        self.void.insert(partition.clone());
        self.report(CommitterEvent::Refused(partition, halt));
    }

    /// Halts all partitions of a batch: nothing is skipped, and no write is repeated without a check.
    fn refuse_all(&mut self, batch: &Batch, detail: &str) {
        for slice in batch.slices() {
            self.refuse(slice.partition.clone(), Halt::new(HaltReason::Database, Some(slice.range), detail));
        }
    }

    /// Waits before the next attempt. A stop ends the wait.
    async fn pause(&self, delay: Duration) -> Result<(), Stop> {
        tokio::select! {
            () = tokio::time::sleep(delay) => Ok(()),
            () = self.ledger.stop.cancelled() => Err(Stop::Asked),
        }
    }

    /// Waits before the next attempt. The half-sent batch of a dead daemon may hold the locks that this batch needs, so
    /// its session is terminated.
    async fn wait_for_postgres(&self, error: &LedgerError, delay: Duration) -> Result<(), Stop> {
        self.postgres_is_away(error);
        if error.class() == Class::Contention {
            match self.ledger.store.terminate_stale_sessions().await {
                Ok(0) => {}
                Ok(sessions) => tracing::warn!(
                    event = "stale_sessions_terminated",
                    sessions,
                    "terminated database sessions of a daemon that stopped in the middle of a batch: they held locks that this batch needs"
                ),
                Err(error) => tracing::debug!(error = %error, "cannot look for stale sessions"),
            }
        }
        self.pause(delay).await
    }

    /// Reports that PostgreSQL is away. `health` logs it once per outage.
    fn postgres_is_away(&self, error: &LedgerError) {
        tracing::debug!(error = %error, class = error.class().name(), "PostgreSQL: trying again");
        self.ledger.health.batches(Some(error.explained()));
    }

    // ---- stored positions, when memory may be wrong

    async fn look_up_commit(&mut self, batch: &Batch, cause: &LedgerError) -> Result<Resolved, Stop> {
        self.ledger.health.metrics().commit_unknown();
        tracing::warn!(event = "commit_unknown", error = %cause, "no reply to a COMMIT; looking up whether it was applied");
        let resolved = self.resolve(batch).await?;
        match resolved {
            Resolved::Applied => tracing::info!(event = "commit_found", "the commit was applied"),
            Resolved::Unchanged => {
                tracing::info!(event = "commit_not_found", "the commit was not applied; writing the batch again");
            }
            Resolved::Moved => {}
        }
        Ok(resolved)
    }

    /// Compares a batch with the stored positions of its partitions.
    async fn resolve(&mut self, batch: &Batch) -> Result<Resolved, Stop> {
        let asked_at = Instant::now();
        let positions = self.stored_positions().await?;
        let stored_at = |s: &Slice| positions.get(&s.partition).map(|p| p.next);
        let all_at = |end: fn(&Slice) -> NextOffset| batch.slices().iter().all(|s| stored_at(s) == Some(end(s)));
        if all_at(|s| s.range.to()) {
            return Ok(Resolved::Applied);
        }
        if all_at(|s| s.range.from()) {
            return Ok(Resolved::Unchanged);
        }
        self.give_up(batch, positions, asked_at)?;
        Ok(Resolved::Moved)
    }

    /// Gives a batch up: its partitions continue from the stored positions. Of the batches behind it, the
    /// partitions whose next slice does not begin at the stored position any more are given up too, so that their
    /// slices are not rejected later.
    fn give_up(
        &mut self,
        batch: &Batch,
        positions: BTreeMap<TopicPartition, Position>,
        asked_at: Instant,
    ) -> Result<(), Stop> {
        if batch.slices().iter().any(|slice| !positions.contains_key(&slice.partition)) {
            return Err(Stop::LedgerChanged);
        }
        // Partitions that were given up before are left out: a halted partition stays halted.
        let mut void: BTreeSet<TopicPartition> = batch.slices().iter().map(|slice| slice.partition.clone()).collect();
        let mut seen: BTreeSet<TopicPartition> = self.void.union(&void).cloned().collect();
        for slice in self.behind.iter().flat_map(|behind| behind.batch.slices()) {
            let stored = positions.get(&slice.partition).map(|p| p.next);
            // Only the first slice of a partition must begin at the stored position.
            if seen.insert(slice.partition.clone()) && stored != Some(slice.range.from()) {
                void.insert(slice.partition.clone());
            }
        }
        self.void.extend(void.iter().cloned());
        self.report(CommitterEvent::Positions { positions, void: void.into_iter().collect(), asked_at });
        Ok(())
    }

    /// The stored positions. Repeats the query until there is an answer.
    async fn stored_positions(&mut self) -> Result<BTreeMap<TopicPartition, Position>, Stop> {
        let mut backoff = Backoff::starting_at(Duration::from_millis(100));
        loop {
            match self.ledger.ask_for_positions().await {
                Ok(answer) => return self.ledger.owned(answer),
                Err(error) => {
                    if let Some(differences) = self.ledger_differs(&error).await {
                        differences.log();
                        return Err(Stop::SchemaDiffers(differences.to_string()));
                    }
                    self.ledger.health.metrics().retried(error.class());
                    self.postgres_is_away(&error);
                    self.pause(backoff.delay()).await?;
                }
            }
        }
    }

    // ---- failures without an outage

    /// The batch was not committed, and the reason is no outage: the stored positions are reloaded. This usually helps
    /// at once. A ledger that rejects [`MAX_REFUSED_COMMITS`] batches in a row is not as it should be: partitions halt.
    async fn rejected(&mut self, batch: Batch, reason: &str, begun: Instant) -> Result<(), Stop> {
        tracing::warn!(event = "batch_rejected", "batch rejected ({reason}); reloading the stored positions");
        self.rejected_in_a_row += 1;
        if self.rejected_in_a_row < MAX_REFUSED_COMMITS {
            let asked_at = Instant::now();
            let positions = self.stored_positions().await?;
            return self.give_up(&batch, positions, asked_at);
        }
        if batch.slices().len() == 1 {
            let suspects = self.suspects(None).await;
            let detail = format!(
                "{reason}, {MAX_REFUSED_COMMITS} times in a row; look in the schema gapless for rows, triggers, rules or policies that gapless did not create{suspects}"
            );
            self.refuse_all(&batch, &detail);
            return Ok(());
        }
        for single in batch.split() {
            // The partition that causes it must halt at its first rejection.
            self.rejected_in_a_row = MAX_REFUSED_COMMITS;
            Box::pin(self.commit(single, None, begun)).await?;
        }
        self.rejected_in_a_row = 0;
        Ok(())
    }

    /// The cause is neither a single row nor an outage: each partition is tried alone, and those that fail halt.
    async fn retry_per_partition(&mut self, batch: Batch, error: &LedgerError, begun: Instant) -> Result<(), Stop> {
        if batch.slices().len() == 1 {
            let suspects = self.suspects(Some(error)).await;
            let raised_by = error.raised_by().map(|by| format!(", {by}")).unwrap_or_default();
            self.refuse_all(&batch, &format!("{error}{raised_by}{suspects}; {}", error.remedy()));
            return Ok(());
        }
        for single in batch.split() {
            Box::pin(self.commit(single, None, begun)).await?;
        }
        Ok(())
    }

    /// Objects that users added to the ledger and that may be the cause of an error or a rejection; in brackets.
    async fn suspects(&self, error: Option<&LedgerError>) -> String {
        let suspects = self.ledger.store.suspects(error).await;
        suspects.map(|suspects| format!(" ({suspects})")).unwrap_or_default()
    }

    /// Whether the error comes from tables that differ from what this version needs. Then nothing more is written.
    async fn ledger_explains(&mut self, error: &LedgerError) -> bool {
        let Some(differences) = self.ledger_differs(error).await else { return false };
        self.is_unusable = true;
        self.report(CommitterEvent::LedgerUnusable(differences));
        true
    }

    /// How the tables differ from what this version needs, if the error may come from them. Sequences that are behind
    /// are moved forward if the role may do so.
    async fn ledger_differs(&self, error: &LedgerError) -> Option<Box<Differences>> {
        if !error.points_at_schema() {
            return None;
        }
        if error.finds_number_taken() {
            self.ledger.writer.close_idle();
        }
        match self.ledger.store.require_catalogue().await {
            Err(LedgerError::Schema(differences)) => Some(differences),
            // No difference, or not known now: the next check will find one.
            Ok(()) | Err(_) => None,
        }
    }
}

fn differs(offset: Offset) -> Halt {
    let detail = format!(
        "the message at offset {offset} is not the one that has an outcome: the log was replaced or rewritten; compare kafka_events_received.payload_digest"
    );
    Halt::new(HaltReason::Differs, OffsetRange::new(offset.at(), offset.next()), detail)
}

/// The halt for too many rejections. The position stays before the batch, so that no further message becomes a dead
/// letter.
fn too_many_rejected(batch: &Batch, partition: &TopicPartition, trip: &BreakerTrip) -> Halt {
    let waiting = batch.slices().iter().find(|s| s.partition == *partition).map(|s| s.range.to_string());
    let detail = format!("{trip}; {} is not written", waiting.unwrap_or_default());
    Halt::new(HaltReason::TooManyRejected, Some(trip.range), detail)
}
