//! From drafts to the ledger: holes proven, one batch of all partitions written, its outcome known.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::flights::{Landed, Load};
use super::partition::Draft;
use super::resolve::{Resolved, finds_position_moved};
use super::{Compaction, FINISH_WITHIN, Pipeline, Stop, TAIL_AFTER, Until, beating};
use crate::batch::{Batch, Gap, GapKind, Slice};
use crate::breaker::Trip;
use crate::failpoints::{self, Failpoint};
use crate::position::{Coverage, Offset, OffsetRange};
use crate::record::Record;
use crate::retry::Backoff;
use crate::source::holes::Finding;
use crate::state::{Halt, HaltReason};
use crate::store::{Class, CommitError, Report, StoreError};

/// So many messages are written beside batches in flight.
const BACKLOG: usize = 1000;
/// Batches in a row that the ledger may refuse without an outage before its partitions halt.
const REFUSALS: u32 = 3;

impl Pipeline {
    /// Launches all that is there and can be written, if a lane is free.
    pub(super) async fn write(&mut self) -> Result<(), Stop> {
        if !self.flights.has_free_lane() || !(self.flights.is_empty() || self.is_backlog()) {
            return Ok(());
        }
        let tail_after = match self.until {
            Until::Stopped => TAIL_AFTER,
            Until::End(_) => Duration::ZERO,
        };
        let drafts: Vec<(i32, Draft)> =
            self.partitions.iter_mut().filter_map(|(partition, p)| Some((*partition, p.draft(tail_after)?))).collect();
        let mut slices = Vec::new();
        for (partition, draft) in drafts {
            slices.extend(self.prove(partition, draft).await?);
        }
        let permits = std::mem::take(&mut self.permits);
        if let Some(batch) = Batch::new(slices) {
            for slice in batch.slices() {
                if let Some(p) = self.partitions.get_mut(&slice.partition) {
                    p.launched(slice.range.to());
                }
            }
            self.flights.launch(Load { batch, permits });
        }
        Ok(())
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

    fn read_again_what_did_not_land(&mut self) {
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

    /// Has a draft's holes proven. What lies behind one that can't be is dropped and read again.
    async fn prove(&mut self, partition: i32, draft: Draft) -> Result<Option<Slice>, Stop> {
        let Some(first_hole) = draft.holes.ranges().first().copied() else {
            return Ok(self.slice(partition, draft.range, draft.records, None));
        };
        let finding = {
            let prove = async {
                failpoints::hit(Failpoint::HoleProof).await.ok();
                self.prover.prove(partition, draft.holes.clone()).await
            };
            beating(&self.health, &self.stop, prove).await?
        };
        match finding {
            Ok(Finding::Empty { aborted }) => {
                let gap = self.gap(draft.holes, aborted);
                Ok(self.slice(partition, draft.range, draft.records, Some(gap)))
            }
            Ok(Finding::Record(offset)) => {
                tracing::error!(
                    kafka.partition = partition,
                    kafka.offset = offset.get(),
                    "the client passed over a committed message; reading again from before it"
                );
                let slice = self.up_to(partition, draft, first_hole);
                self.not_yet(partition, "a committed message was passed over");
                Ok(slice)
            }
            Ok(Finding::OutOfRange) => {
                let slice = self.up_to(partition, draft, first_hole);
                self.hole_out_of_range(partition, first_hole).await?;
                Ok(slice)
            }
            Err(error) => {
                self.health.kafka(Some(error.to_string()));
                let slice = self.up_to(partition, draft, first_hole);
                self.not_yet(partition, &format!("cannot prove {first_hole} empty now: {error}"));
                Ok(slice)
            }
        }
    }

    /// A log that begins behind a hole keeps its secret for ever; anything else passes.
    async fn hole_out_of_range(&mut self, partition: i32, hole: OffsetRange) -> Result<(), Stop> {
        let survey = beating(&self.health, &self.stop, self.observer.survey()).await?;
        let log_start = survey.ok().and_then(|s| s.partitions.get(&partition).map(|marks| marks.log_start));
        match log_start.and_then(|log_start| OffsetRange::new(hole.from(), log_start)) {
            Some(range) => {
                let detail = format!(
                    "Kafka no longer has offsets {range}; the reader was shown no message in {hole}, but that nothing is lost there can't be proven any more; see the README, \"A partition halts\""
                );
                self.halt(partition, Halt { reason: HaltReason::Expired, range: Some(range), detail });
            }
            None => self.not_yet(partition, &format!("{hole} cannot be read for a proof")),
        }
        Ok(())
    }

    /// The part of a draft before a hole; what lies behind is read again.
    fn up_to(&self, partition: i32, draft: Draft, hole: OffsetRange) -> Option<Slice> {
        let mut records = draft.records;
        records.truncate(records.partition_point(|r| r.offset.at() < hole.from()));
        let range = OffsetRange::new(draft.range.from(), hole.from())?;
        self.slice(partition, range, records, None)
    }

    fn slice(&self, partition: i32, range: OffsetRange, records: Vec<Record>, gap: Option<Gap>) -> Option<Slice> {
        let p = self.partitions.get(&partition)?;
        let reread = p.may_be_recorded(range.from());
        Some(Slice { position_id: p.position().id, partition, range, records, gap, reread })
    }

    fn gap(&self, offsets: Coverage, aborted: u64) -> Gap {
        let unseen = offsets.count() - aborted;
        let kind = match self.compaction {
            Compaction::Yes => GapKind::Compacted,
            Compaction::No | Compaction::Unknown => GapKind::Transaction,
        };
        let policy = self.compaction.policy();
        let proof = format!(
            "read again by a second client: {aborted} records of aborted transactions, {unseen} offsets without any record (cleanup.policy {policy})"
        );
        Gap { kind, offsets, proof }
    }

    /// Writes a batch, with nothing else in flight, until it is known to be in the ledger or void; `failed`
    /// is how it ended before.
    async fn commit(&mut self, mut batch: Batch, mut failed: Option<CommitError>) -> Result<(), Stop> {
        let begun = Instant::now();
        let mut backoff = Backoff::starting_at(Duration::from_millis(100));
        // Of an attempt that may still land after it was looked up.
        let mut late: Option<Box<Report>> = None;
        loop {
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
                tracing::info!("the commit was applied late");
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
                    tracing::warn!(error = %cause, "the reply to a commit was lost, looking it up");
                    match self.resolve(&batch).await? {
                        Resolved::Applied => {
                            tracing::info!("the commit had been applied");
                            self.applied(&batch, &report, begun);
                            return Ok(());
                        }
                        Resolved::Unchanged => {
                            tracing::info!("the commit is not there, writing the batch again");
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
                    self.health.metrics().retried(error.class());
                    match error.class() {
                        Class::Environment | Class::Contention => {
                            self.make_way(&error).await?;
                            self.pause(backoff.delay()).await?;
                        }
                        Class::Moved => return self.start_over(batch, &error.to_string()).await,
                        Class::Data | Class::Halt => return self.one_by_one(batch, &error).await,
                    }
                }
            }
        }
    }

    /// Before the next attempt: what is in the way may be a half-sent batch of a daemon that is gone.
    async fn make_way(&mut self, error: &StoreError) -> Result<(), Stop> {
        self.database_away(error);
        if error.class() != Class::Contention {
            return Ok(());
        }
        let store = self.store.clone();
        match beating(&self.health, &self.stop, store.end_silent_writers()).await? {
            Ok(0) => {}
            Ok(sessions) => tracing::warn!(
                sessions,
                "ended sessions of a daemon that went silent in the middle of a batch: their rows were in the way"
            ),
            Err(error) => tracing::debug!(error = %error, "cannot look for sessions that went silent"),
        }
        Ok(())
    }

    /// The batch is in the ledger: only now does memory move.
    fn applied(&mut self, batch: &Batch, report: &Report, begun: Instant) {
        self.health.database(None);
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

    pub(super) fn database_away(&self, error: &StoreError) {
        tracing::warn!(error = %error, remedy = error.remedy(), class = error.class().name(), "PostgreSQL: trying again");
        self.health.database(Some(error.to_string()));
    }

    fn halt_differs(&mut self, partition: i32, offset: Offset) {
        let detail = format!(
            "the message at offset {offset} is not the one that has an outcome: the log was replaced or rewritten; compare kafka_events_received.payload_digest"
        );
        let range = OffsetRange::new(offset.at(), offset.next());
        self.halt(partition, Halt { reason: HaltReason::Differs, range, detail });
    }

    /// The position stays before the batch that showed it, so that nothing more becomes a dead letter.
    fn halt_too_many_rejected(&mut self, batch: &Batch, partition: i32, trip: &Trip) {
        let waits = batch.slices().iter().find(|s| s.partition == partition).map(|s| s.range.to_string());
        let detail = format!(
            "{trip}; {} waits, unwritten. Mend format.preset or the producer, or raise the key, then restart; dead letters written already: `gapless replay`",
            waits.unwrap_or_default()
        );
        self.halt(partition, Halt { reason: HaltReason::TooManyRejected, range: Some(trip.range), detail });
    }

    /// Nothing was committed and the reason is no outage: what PostgreSQL says counts. Once or twice
    /// that mends it; a ledger that keeps refusing is not as it should be.
    async fn start_over(&mut self, batch: Batch, why: &str) -> Result<(), Stop> {
        tracing::warn!("a batch was not taken ({why}), looking at the stored positions");
        self.refused_in_a_row += 1;
        if self.refused_in_a_row < REFUSALS {
            return self.read_on_from_stored(&batch).await;
        }
        if batch.slices().len() == 1 {
            let detail = format!(
                "{why}, {REFUSALS} times in a row; look for rows, triggers or policies on schema gapless that gapless did not make; then restart"
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
    async fn one_by_one(&mut self, batch: Batch, error: &StoreError) -> Result<(), Stop> {
        if batch.slices().len() == 1 {
            self.halt_slices(&batch, &format!("{error}; {}; then restart", error.remedy()));
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
            let halt = Halt { reason: HaltReason::Database, range: Some(slice.range), detail: detail.to_owned() };
            self.halt(slice.partition, halt);
        }
    }
}
