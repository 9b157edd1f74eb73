//! Batches that could not be committed, written again one after the other, with nothing in flight beside them, until
//! each is known to be in the ledger or void. A batch that fails because of one partition is split, so that the others'
//! commits go on; while PostgreSQL itself is away, all wait.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::committer::{CommittedBatch, CommitterEvent, InFlight, InFlightBatch, Ledger, Recovered};
use super::run::Stop;
use crate::ledger::catalogue::Differences;
use crate::ledger::error::LedgerError;
use crate::ledger::start::positions::Position;
use crate::ledger::write::sequencer::{CommitSlot, merge_breakers};
use crate::ledger::write::writer::CommitError;
use crate::model::batch::{Batch, Slice};
use crate::model::breaker::BreakerTrip;
use crate::model::error_class::Class;
use crate::model::offset::{NextOffset, Offset, OffsetRange};
use crate::model::partition_state::{Halt, HaltReason};
use crate::model::write_report::{Breakers, WriteReport};
use crate::retry::Backoff;

/// Batches in a row that the ledger may reject without an outage before their partitions halt.
const MAX_REFUSED_COMMITS: u32 = 3;

/// What became of a batch whose COMMIT had no answer.
enum Resolved {
    /// It was committed.
    Applied,
    /// Everything stands where it stood: write it again.
    Unchanged,
    /// Positions had moved: the batch is void.
    Moved,
}

/// Someone was faster: another daemon, a verb, or an earlier attempt of ours that was committed late.
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
    /// Batches behind the one that is written again.
    behind: VecDeque<InFlightBatch>,
    /// Partitions whose slices are given up.
    void: BTreeSet<i32>,
    /// The ledger's tables are not as this version needs them: nothing is written any more.
    is_unusable: bool,
}

impl Recovery {
    pub(super) fn new(
        ledger: Ledger,
        says: mpsc::UnboundedSender<Recovered>,
        breakers: Breakers,
        rejected_in_a_row: u32,
    ) -> Self {
        let (behind, void) = (VecDeque::new(), BTreeSet::new());
        Self { ledger, events: says, breakers, rejected_in_a_row, behind, void, is_unusable: false }
    }

    /// `error` is how the first batch ended; `behind` is what was in flight behind it.
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
                // The run ends; until it does, nothing more is said.
                std::future::pending().await
            }
        }
    }

    async fn recover(&mut self, failed: InFlightBatch, error: CommitError, begun: Instant) -> Result<(), Stop> {
        self.commit(failed.batch, Some(error), begun).await?;
        drop(failed.permits);
        // In the ledger, or given up: no batch waits for PostgreSQL now.
        self.ledger.health.batches(None);
        while let Some(InFlightBatch { batch, permits }) = self.behind.pop_front() {
            self.commit(batch, None, Instant::now()).await?;
            drop(permits);
        }
        Ok(())
    }

    fn report(&self, event: CommitterEvent) {
        // Nobody listens where the run has ended.
        let _ = self.events.send(Recovered::Event(event));
    }

    /// Writes a batch until it is known to be in the ledger or void; `failed` is how it ended before.
    async fn commit(&mut self, batch: Batch, mut failed: Option<CommitError>, begun: Instant) -> Result<(), Stop> {
        // What was given up is read again: it is not committed as well.
        let Some(mut batch) = batch.only(|slice| !self.void.contains(&slice.partition)) else { return Ok(()) };
        let mut backoff = Backoff::starting_at(Duration::from_millis(100));
        // Of an attempt that may still be committed after it was looked up.
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
                    self.refuse(partition, differs(offset));
                    let Some(rest) = batch.without(partition) else { return Ok(()) };
                    batch = rest;
                }
                CommitError::TooManyRejected { partition, trip } => {
                    self.refuse(partition, too_many_rejected(&batch, partition, &trip));
                    let Some(rest) = batch.without(partition) else { return Ok(()) };
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
                CommitError::AheadFailed => {}
                CommitError::Stale => {
                    return self.rejected(batch, "the compare-and-set of the position missed", begun).await;
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

    /// Whether an attempt that had no answer settles the batch after all: it was committed late, or the batch is void.
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

    /// Writes a batch with nothing in flight beside it.
    async fn write_exclusive(&self, batch: &Batch) -> Result<WriteReport, CommitError> {
        let (slot, _) = CommitSlot::first(self.breakers.clone());
        let decoded = self.ledger.decoder.decode(batch).await;
        Box::pin(self.ledger.writer.write(decoded, slot)).await
    }

    fn committed(&mut self, batch: &Batch, report: WriteReport, begun: Instant) {
        merge_breakers(&mut self.breakers, &report.breakers);
        self.rejected_in_a_row = 0;
        self.ledger.health.database(None);
        self.ledger.health.batches(None);
        self.report(CommitterEvent::Committed(CommittedBatch::new(batch, report, begun)));
    }

    fn refuse(&mut self, partition: i32, halt: Halt) {
        self.void.insert(partition);
        self.report(CommitterEvent::Refused(partition, halt));
    }

    /// Nothing of these partitions is skipped or tried blindly.
    fn refuse_all(&mut self, batch: &Batch, detail: &str) {
        for slice in batch.slices() {
            self.refuse(slice.partition, Halt::new(HaltReason::Database, Some(slice.range), detail));
        }
    }

    /// Waits before the next attempt; a stop ends the wait.
    async fn pause(&self, delay: Duration) -> Result<(), Stop> {
        tokio::select! {
            () = tokio::time::sleep(delay) => Ok(()),
            () = self.ledger.stop.cancelled() => Err(Stop::Asked),
        }
    }

    /// Before the next attempt: what is in the way may be a half-sent batch of a daemon that is gone.
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

    /// Logged once an outage, by `health`.
    fn postgres_is_away(&self, error: &LedgerError) {
        tracing::debug!(error = %error, class = error.class().name(), "PostgreSQL: trying again");
        self.ledger.health.batches(Some(error.explained()));
    }

    // ---- what PostgreSQL says, where memory cannot be trusted

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

    /// Asks PostgreSQL where a batch's partitions stand.
    async fn resolve(&mut self, batch: &Batch) -> Result<Resolved, Stop> {
        let asked_at = Instant::now();
        let positions = self.stored_positions().await?;
        let stands_at = |s: &Slice| positions.get(&s.partition).map(|p| p.next);
        let all_at = |end: fn(&Slice) -> NextOffset| batch.slices().iter().all(|s| stands_at(s) == Some(end(s)));
        if all_at(|s| s.range.to()) {
            return Ok(Resolved::Applied);
        }
        if all_at(|s| s.range.from()) {
            return Ok(Resolved::Unchanged);
        }
        self.give_up(batch, positions, asked_at)?;
        Ok(Resolved::Moved)
    }

    /// Gives a batch up: its partitions read on from what PostgreSQL says. What waits behind it is given up too where
    /// it does not come next any more, and is then not rejected in its slot.
    fn give_up(&mut self, batch: &Batch, positions: BTreeMap<i32, Position>, asked_at: Instant) -> Result<(), Stop> {
        if batch.slices().iter().any(|slice| !positions.contains_key(&slice.partition)) {
            return Err(Stop::LedgerChanged);
        }
        // Not those that were given up before: one that is halted stays halted.
        let mut void: BTreeSet<i32> = batch.slices().iter().map(|slice| slice.partition).collect();
        let mut seen: BTreeSet<i32> = self.void.union(&void).copied().collect();
        for slice in self.behind.iter().flat_map(|behind| behind.batch.slices()) {
            let stored = positions.get(&slice.partition).map(|p| p.next);
            // Only the first slice of a partition says where the ledger must stand.
            if seen.insert(slice.partition) && stored != Some(slice.range.from()) {
                void.insert(slice.partition);
            }
        }
        self.void.extend(&void);
        self.report(CommitterEvent::Positions { positions, void: void.into_iter().collect(), asked_at });
        Ok(())
    }

    /// The stored positions, asked for until there is an answer.
    async fn stored_positions(&mut self) -> Result<BTreeMap<i32, Position>, Stop> {
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

    // ---- what is no outage

    /// Nothing was committed and the reason is no outage: what PostgreSQL says counts. Once or twice that mends it; a
    /// ledger that keeps rejecting is not as it should be.
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
                "{reason}, {MAX_REFUSED_COMMITS} times in a row; look for rows, triggers, rules or policies on schema gapless that gapless did not make{suspects}"
            );
            self.refuse_all(&batch, &detail);
            return Ok(());
        }
        for single in batch.split() {
            // The one whose fault it is has no further attempts.
            self.rejected_in_a_row = MAX_REFUSED_COMMITS;
            Box::pin(self.commit(single, None, begun)).await?;
        }
        self.rejected_in_a_row = 0;
        Ok(())
    }

    /// Not one row's fault and not an outage: of several partitions those that fail alone halt.
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

    /// What users added to the ledger and may be the cause of an error, or of a batch that was rejected; in brackets.
    async fn suspects(&self, error: Option<&LedgerError>) -> String {
        let suspects = self.ledger.store.suspects(error).await;
        suspects.map(|suspects| format!(" ({suspects})")).unwrap_or_default()
    }

    /// Whether the error comes from tables that are not as this version needs them; then nothing more is written.
    async fn ledger_explains(&mut self, error: &LedgerError) -> bool {
        let Some(differences) = self.ledger_differs(error).await else { return false };
        self.is_unusable = true;
        self.report(CommitterEvent::LedgerUnusable(differences));
        true
    }

    /// How the tables differ from what this version needs, where the error points at them. Sequences that are behind
    /// are moved forward, where the role may.
    async fn ledger_differs(&self, error: &LedgerError) -> Option<Box<Differences>> {
        if !error.points_at_schema() {
            return None;
        }
        if error.finds_number_taken() {
            self.ledger.writer.close_idle();
        }
        match self.ledger.store.require_catalogue().await {
            Err(LedgerError::Schema(differences)) => Some(differences),
            // Not known now: the next look tells.
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

/// The position stays before the batch that showed it, so that nothing more becomes a dead letter.
fn too_many_rejected(batch: &Batch, partition: i32, trip: &BreakerTrip) -> Halt {
    let waits = batch.slices().iter().find(|s| s.partition == partition).map(|s| s.range.to_string());
    let detail = format!("{trip}; {} waits, unwritten", waits.unwrap_or_default());
    Halt::new(HaltReason::TooManyRejected, Some(trip.range), detail)
}
