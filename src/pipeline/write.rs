//! From drafts to the ledger: one batch of all partitions written, its outcome known.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::flights::{Landed, Load};
use super::resolve::{Resolved, finds_position_moved};
use super::{FINISH_WITHIN, Pipeline, Stop, TAIL_AFTER, Until, beating};
use crate::ledger::error::LedgerError;
use crate::ledger::write::writer::CommitError;
use crate::model::batch::{Batch, Slice};
use crate::model::breaker::Trip;
use crate::model::error_class::Class;
use crate::model::offset::{Offset, OffsetRange};
use crate::model::partition_state::{Halt, HaltReason};
use crate::model::write_report::WriteReport;
use crate::retry::Backoff;

/// So many messages are written beside batches in flight.
pub(super) const BACKLOG: usize = 1000;
/// Batches in a row that the ledger may refuse without an outage before its partitions halt.
const REFUSALS: u32 = 3;

impl Pipeline {
    /// Launches all that can be written, if a lane is free, and has holes proven of what can't be yet.
    pub(super) fn write(&mut self) {
        if self.schema_halt.is_some() || !(self.flights.is_empty() || self.is_backlog()) {
            return;
        }
        if self.flights.has_free_lane() {
            self.launch();
        }
        let tail_after = self.tail_after();
        for (partition, p) in &mut self.partitions {
            if let Some((ticket, holes)) = p.unwritten.hold_back(tail_after) {
                self.proofs.ask_about_holes(*partition, ticket, holes);
            }
        }
    }

    fn launch(&mut self) {
        let tail_after = self.tail_after();
        let (mut slices, mut shares, mut messages) = (Vec::new(), Vec::new(), 0);
        for p in self.partitions.values_mut() {
            let has_room = messages == 0 || messages + p.unwritten.waiting().0 <= self.limits.max_messages;
            let Some(draft) = has_room.then(|| p.unwritten.ready(tail_after)).flatten() else { continue };
            messages += draft.messages();
            let (slice, share) = p.launch(draft);
            slices.push(slice);
            shares.push(share);
        }
        if let Some(batch) = Batch::new(slices) {
            self.flights.launch(Load { batch, shares });
        }
    }

    fn tail_after(&self) -> Duration {
        match self.until {
            Until::Stopped => TAIL_AFTER,
            Until::End { .. } => Duration::ZERO,
        }
    }

    /// Whether what is there is worth a batch beside those in flight. A few messages would only wait for their
    /// turn; meanwhile more of them may come, and share one commit.
    fn is_backlog(&self) -> bool {
        let (messages, bytes) = self.waiting();
        messages >= BACKLOG.min(self.limits.max_messages) || bytes >= self.limits.max_bytes / 4
    }

    /// The batch at the front is in the ledger, or it is written now, alone; what was in flight behind it
    /// follows, as far as it still is what comes next.
    pub(super) async fn land(&mut self, landed: Landed) -> Result<(), Stop> {
        let Landed { load, begun, result } = landed;
        let error = match result {
            Ok(report) => {
                self.applied(&load.batch, &report, begun);
                return Ok(());
            }
            Err(error) => error,
        };
        let behind = self.flights.recall().await;
        self.commit(load.batch, Some(error)).await?;
        // In the ledger, or given up: no batch waits for PostgreSQL now.
        self.health.batches(None);
        for load in behind {
            let comes_next = |slice: &Slice| {
                self.partitions.get(&slice.partition).is_some_and(|p| p.position().next == slice.range.from())
            };
            if let Some(batch) = load.batch.only(comes_next) {
                self.commit(batch, None).await?;
            }
        }
        self.read_again_what_did_not_land();
        Ok(())
    }

    pub(super) fn read_again_what_did_not_land(&mut self) {
        let missing: Vec<i32> =
            self.partitions.iter().filter(|(_, p)| p.is_in_flight()).map(|(partition, _)| *partition).collect();
        for partition in missing {
            let Some(p) = self.partitions.get_mut(&partition) else { continue };
            p.did_not_land();
            if !p.state().is_halted() {
                self.not_yet(partition, "what was in flight was given up and is read again");
            }
        }
    }

    /// The run ends: what is in flight has a little time left to land.
    pub(super) async fn let_land(&mut self) {
        let deadline = tokio::time::Instant::now() + FINISH_WITHIN;
        while !self.flights.is_empty() {
            match tokio::time::timeout_at(deadline, self.flights.landing()).await {
                Ok(Landed { load, begun, result: Ok(report) }) => self.applied(&load.batch, &report, begun),
                // Whether it was committed, the next start finds in PostgreSQL.
                Ok(Landed { result: Err(_), .. }) | Err(_) => return,
            }
        }
    }

    /// Writes a batch, with nothing else in flight, until it is known to be in the ledger or void; `failed`
    /// is how it ended before.
    async fn commit(&mut self, mut batch: Batch, mut failed: Option<CommitError>) -> Result<(), Stop> {
        let begun = Instant::now();
        let mut backoff = Backoff::starting_at(Duration::from_millis(100));
        // Of an attempt that may still land after it was looked up.
        let mut late: Option<Box<WriteReport>> = None;
        // Also what waits behind a batch that found it out.
        while self.schema_halt.is_none() {
            let error = match failed.take() {
                Some(error) => error,
                None => match beating(&self.health, &self.stop, self.flights.alone(&batch)).await? {
                    Ok(report) => {
                        self.applied(&batch, &report, begun);
                        return Ok(());
                    }
                    Err(error) => error,
                },
            };
            if finds_position_moved(&error)
                && let Some(report) = late.take()
                && matches!(self.resolve(&batch).await?, Resolved::Applied)
            {
                tracing::info!(event = "commit_applied_late", "the commit was applied after it had been looked up");
                self.applied(&batch, &report, begun);
                return Ok(());
            }
            match error {
                CommitError::Differs { partition, offset } => {
                    self.halt_differs(partition, offset);
                    let Some(rest) = batch.without(partition) else { return Ok(()) };
                    batch = rest;
                }
                CommitError::TooManyRejected { partition, trip } => {
                    self.halt_too_many_rejected(&batch, partition, &trip);
                    let Some(rest) = batch.without(partition) else { return Ok(()) };
                    batch = rest;
                }
                CommitError::Unknown(cause, report) => {
                    self.health.metrics().commit_unknown();
                    tracing::warn!(event = "commit_unknown", error = %cause, "no reply to a COMMIT; looking up whether it was applied");
                    match self.resolve(&batch).await? {
                        Resolved::Applied => {
                            tracing::info!(event = "commit_found", "the commit was applied");
                            self.applied(&batch, &report, begun);
                            return Ok(());
                        }
                        Resolved::Unchanged => {
                            tracing::info!(
                                event = "commit_not_found",
                                "the commit was not applied; writing the batch again"
                            );
                            late = Some(report);
                            self.pause(backoff.delay()).await?;
                        }
                        Resolved::Moved => return Ok(()),
                    }
                }
                CommitError::AheadFailed => {}
                CommitError::Stale => {
                    return self.start_over(batch, "the compare-and-set of the position missed").await;
                }
                CommitError::Store(error) => {
                    if self.schema_explains(&error).await? {
                        return Ok(());
                    }
                    self.health.metrics().retried(error.class());
                    match error.class() {
                        Class::Environment | Class::Contention => self.make_way(&error, backoff.delay()).await?,
                        Class::Moved => return self.start_over(batch, &error.to_string()).await,
                        Class::Data | Class::Halt => return self.one_by_one(batch, &error).await,
                    }
                }
            }
        }
        Ok(())
    }

    /// Before the next attempt: what is in the way may be a half-sent batch of a daemon that is gone.
    async fn make_way(&mut self, error: &LedgerError, delay: Duration) -> Result<(), Stop> {
        self.database_away(error);
        if error.class() == Class::Contention {
            self.end_silent_writers().await?;
        }
        self.pause(delay).await
    }

    async fn end_silent_writers(&mut self) -> Result<(), Stop> {
        let store = self.store.clone();
        match beating(&self.health, &self.stop, store.end_silent_writers()).await? {
            Ok(0) => {}
            Ok(sessions) => tracing::warn!(
                event = "stale_sessions_terminated",
                sessions,
                "terminated database sessions of a daemon that stopped in the middle of a batch: they held locks that this batch needs"
            ),
            Err(error) => tracing::debug!(error = %error, "cannot look for sessions that went silent"),
        }
        Ok(())
    }

    /// The batch is in the ledger: only now does memory move.
    fn applied(&mut self, batch: &Batch, report: &WriteReport, begun: Instant) {
        self.health.database(None);
        self.health.batches(None);
        self.flights.committed(report);
        self.refused_in_a_row = 0;
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
        let times = batch.slices().iter().flat_map(|s| s.records.iter().filter_map(|r| r.timestamp_ms));
        let ages = times.map(|ms| Duration::from_millis(now_ms.saturating_sub(ms).max(0) as u64));
        self.health.metrics().batch(report, batch.message_count(), begun.elapsed(), ages);
        for slice in batch.slices() {
            if let Some(p) = self.partitions.get_mut(&slice.partition) {
                p.committed(slice.range.to(), slice.records.last());
            }
            self.show(slice.partition);
        }
        if report.conflicting_events > 0 && !self.conflict_explained {
            self.conflict_explained = true;
            tracing::warn!(
                event = "event_conflicts_found",
                batch.conflicts = report.conflicting_events,
                "events with the same identity but other content are kept in gapless.event_conflicts; a fuller identity \
                 (identity.fields, e.g. with log_index) on a new database would keep them as events"
            );
        }
        tracing::debug!(
            batch.messages = batch.message_count(),
            batch.events = report.events_stored,
            duration_ms = begun.elapsed().as_millis() as u64,
            "batch committed"
        );
        let next = |partition: i32| self.partitions.get(&partition).map(|p| p.position().next);
        self.progress.committed(batch.message_count(), next);
    }

    /// Told once an outage, by `health`.
    pub(super) fn database_away(&self, error: &LedgerError) {
        tracing::debug!(error = %error, class = error.class().name(), "PostgreSQL: trying again");
        self.health.batches(Some(error.explained()));
    }

    fn halt_differs(&mut self, partition: i32, offset: Offset) {
        let detail = format!(
            "the message at offset {offset} is not the one that has an outcome: the log was replaced or rewritten; compare kafka_events_received.payload_digest"
        );
        let range = OffsetRange::new(offset.at(), offset.next());
        self.halt(partition, Halt::new(HaltReason::Differs, range, detail));
    }

    /// The position stays before the batch that showed it, so that nothing more becomes a dead letter.
    fn halt_too_many_rejected(&mut self, batch: &Batch, partition: i32, trip: &Trip) {
        let waits = batch.slices().iter().find(|s| s.partition == partition).map(|s| s.range.to_string());
        let detail = format!("{trip}; {} waits, unwritten", waits.unwrap_or_default());
        self.halt(partition, Halt::new(HaltReason::TooManyRejected, Some(trip.range), detail));
    }

    /// Nothing was committed and the reason is no outage: what PostgreSQL says counts. Once or twice
    /// that mends it; a ledger that keeps refusing is not as it should be.
    async fn start_over(&mut self, batch: Batch, why: &str) -> Result<(), Stop> {
        tracing::warn!(event = "batch_rejected", "batch rejected ({why}); reloading the stored positions");
        self.refused_in_a_row += 1;
        if self.refused_in_a_row < REFUSALS {
            return self.read_on_from_stored(&batch).await;
        }
        if batch.slices().len() == 1 {
            let suspects = self.suspects(None).await?;
            let detail = format!(
                "{why}, {REFUSALS} times in a row; look for rows, triggers, rules or policies on schema gapless that gapless did not make{suspects}"
            );
            self.halt_slices(&batch, &detail);
            return Ok(());
        }
        for single in batch.split() {
            // The one whose fault it is has no further attempts.
            self.refused_in_a_row = REFUSALS;
            Box::pin(self.commit(single, None)).await?;
        }
        self.refused_in_a_row = 0;
        Ok(())
    }

    /// Not one row's fault and not an outage: of several partitions those that fail alone halt.
    async fn one_by_one(&mut self, batch: Batch, error: &LedgerError) -> Result<(), Stop> {
        if batch.slices().len() == 1 {
            let suspects = self.suspects(Some(error)).await?;
            let raised_by = error.raised_by().map(|by| format!(", {by}")).unwrap_or_default();
            self.halt_slices(&batch, &format!("{error}{raised_by}{suspects}; {}", error.remedy()));
            return Ok(());
        }
        for single in batch.split() {
            Box::pin(self.commit(single, None)).await?;
        }
        Ok(())
    }

    /// Nothing of these partitions is skipped or tried blindly.
    fn halt_slices(&mut self, batch: &Batch, detail: &str) {
        for slice in batch.slices() {
            let halt = Halt::new(HaltReason::Database, Some(slice.range), detail);
            self.halt(slice.partition, halt);
        }
    }
}
