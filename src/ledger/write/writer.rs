//! The commit of a batch: all of it is written, or nothing.
//!
//! One transaction writes events, conflicts, outcomes, dead letters, gaps and positions. Its last statement before
//! COMMIT moves the positions by compare-and-set (expected position and fence). It must move the position of every
//! slice, so that a stale writer's transaction is rolled back. Every statement's result is awaited and checked. A
//! failure is returned as a type. The writer retries only to fall back to another strategy, and to isolate rows that
//! PostgreSQL refuses.

use crate::model::decoded_batch::DecodedBatch;
use crate::model::event::IdentityRecipe;
use crate::model::write_report::WriteReport;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

use tokio_postgres::error::SqlState;

use super::connection::WriterConnection;
use super::effects::{self, Effects};
use super::event_paths::{self, candidates, store_conflicts, store_events};
use super::late_changes::LateChanges;
use super::sequencer::CommitSlot;
use super::strategy::StrategySelector;
use super::{event_rows, gap_rows, outcome_rows, position_rows, single_statement};
use crate::failpoints::{self, Failpoint};
use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;
use crate::model::batch::Slice;
use crate::model::breaker::{Breaker, BreakerTrip, Limits};
use crate::model::decoded_batch::Message;
use crate::model::event::{Decoded, Outcome, Rejection};
use crate::model::offset::Offset;
use crate::model::record::{Digest, DigestSet};
use crate::model::topic::TopicPartition;
use crate::model::write_report::Breakers;
use crate::model::write_report::WriteStrategy;
use crate::postgres::error::PgError;
use crate::postgres::session::{CommitFailure, IDLE_IN_TRANSACTION, Session};

/// A batch is not committed, or it is not known whether it is.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Nothing was committed. The error's class decides how to continue.
    #[error(transparent)]
    Store(#[from] LedgerError),
    /// COMMIT was sent and its reply was lost: the positions must be looked up before anything else.
    #[error("the outcome of a commit is unknown: {0}")]
    Unknown(LedgerError, Box<WriteReport>),
    /// A position is not the expected one, or a newer start has the fence. Nothing was committed.
    #[error("positions moved")]
    Stale,
    /// A message that was read again differs from the message whose outcome is recorded. Nothing was committed.
    #[error("partition {}: the message at offset {offset} is not the one recorded there", .partition.partition)]
    Differs { partition: TopicPartition, offset: Offset },
    /// With this batch too many messages would be rejected. Nothing was committed.
    #[error("partition {}: {trip}", .partition.partition)]
    TooManyRejected { partition: TopicPartition, trip: BreakerTrip },
    /// The predecessor was not committed. Nothing was committed.
    #[error("the predecessor of this batch was not committed")]
    PredecessorFailed,
}

impl From<PgError> for CommitError {
    fn from(error: PgError) -> Self {
        Self::Store(error.into())
    }
}

/// The result of an attempt that was not committed.
pub(crate) enum Failed {
    Error(CommitError),
    /// These messages (by index) cannot be stored; the others can.
    Refused(Vec<(usize, Rejection)>),
    /// The batch must be written with this strategy instead.
    FallBack(WriteStrategy, FallbackReason),
}

/// Why a strategy was given up.
pub(crate) enum FallbackReason {
    /// An event that was assumed to be new exists already.
    Duplicate,
    /// The strategy cannot write this batch, or the batch contains a row that PostgreSQL refuses.
    Unsupported,
    /// The strategy does not work with this server at all.
    Closed(LedgerError),
}

impl<E: Into<CommitError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Writes batches under one fence, several in parallel; each batch's [`CommitSlot`] orders the commits.
pub struct Writer {
    pub(crate) store: LedgerStore,
    fence: i64,
    identity: IdentityRecipe,
    limits: Limits,
    selector: Mutex<StrategySelector>,
    exhaustion: PoolExhaustion,
}

/// The number of consecutive batches without a connection until their predecessor had ended: after so many, the pool is
/// too small.
const EXHAUSTED_AFTER: u32 = 20;

/// Counts the consecutive batches that got no connection from a pooler while another batch had one.
#[derive(Default)]
struct PoolExhaustion(AtomicU32);

impl PoolExhaustion {
    fn on_connection(&self) {
        if self.0.load(Ordering::Relaxed) < EXHAUSTED_AFTER {
            self.0.store(0, Ordering::Relaxed);
        }
    }

    fn on_wait(&self) {
        if self.0.load(Ordering::Relaxed) < EXHAUSTED_AFTER
            && self.0.fetch_add(1, Ordering::Relaxed) + 1 == EXHAUSTED_AFTER
        {
            tracing::warn!(
                event = "connections_limited",
                "a pooler gives gapless fewer connections than database.writers: batches wait for each other's connections; \
                 raise its pool size, or lower database.writers"
            );
        }
    }
}

impl Writer {
    pub fn new(store: LedgerStore, fence: i64, identity: IdentityRecipe, limits: Limits) -> Self {
        Self { store, fence, identity, limits, selector: Mutex::default(), exhaustion: PoolExhaustion::default() }
    }

    /// Writes a batch and commits it after its predecessor. On any error its connection is closed; the next call takes
    /// a new one.
    pub async fn write(&self, batch: DecodedBatch<'_>, mut slot: CommitSlot) -> Result<WriteReport, CommitError> {
        let DecodedBatch { slices, mut messages } = batch;
        let rows = row_count(&messages);
        let mut own = DigestSet::with_capacity_and_hasher(rows, Default::default());
        own.extend(identities(&messages));
        let is_shared = slot.publish_identities(own).await?;
        let reread = slices.iter().any(|s| s.reread);
        if is_shared || reread {
            // This batch must see the rows of the preceding batches.
            slot.wait_for_predecessor().await?;
        }
        let chosen = self.selector().choose(rows, identities(&messages));
        let mut strategy = if reread { chosen.fallback() } else { chosen };
        slot.wait_for_predecessor_connection().await;
        // The connection is kept for the next attempt: a returned one might be leased by a batch that waits for this
        // one.
        let mut kept: Option<WriterConnection> = None;
        loop {
            let mut connection = match kept.take().filter(|connection| connection.session.is_sound()) {
                Some(connection) => connection,
                None => self.store.writer_connection().await?,
            };
            let attempt = match strategy {
                WriteStrategy::SingleStatement => {
                    self.attempt_single_statement(&mut connection, slices, &messages, &mut slot).await
                }
                _ => self.attempt(&mut connection, strategy, slices, &messages, &mut slot).await,
            };
            match attempt {
                Ok(report) => {
                    self.selector().succeeded(strategy, report.events_existing > 0, identities(&messages));
                    drop(connection);
                    slot.mark_committed(&report.breakers);
                    return Ok(report);
                }
                Err(Failed::Error(error)) => return Err(error),
                Err(Failed::Refused(refused)) => {
                    // Each attempt rejects at least one message, so the loop ends.
                    refused.into_iter().for_each(|(index, rejection)| reject(&mut messages[index], rejection));
                    kept = Some(connection);
                }
                Err(Failed::FallBack(to, why)) => {
                    let tried = std::mem::replace(&mut strategy, to);
                    match why {
                        FallbackReason::Closed(error) => self.fall_back(tried, &error),
                        FallbackReason::Duplicate => {
                            self.selector().on_duplicate();
                            kept = Some(connection);
                        }
                        FallbackReason::Unsupported => kept = Some(connection),
                    }
                }
            }
        }
    }

    /// Disables the strategy that was tried. The caller drops the connection, because a COPY that is refused before its
    /// data leaves tokio-postgres with one reply more than it expects.
    fn fall_back(&self, tried: WriteStrategy, error: &LedgerError) {
        if !self.selector().disable(tried) {
            return;
        }
        if tried == WriteStrategy::SingleStatement {
            tracing::info!(
                event = "single_statement_unavailable",
                error = %error,
                "small batches take several statements on this connection to PostgreSQL, and so more round trips"
            );
            return;
        }
        tracing::warn!(
            event = "copy_unavailable",
            error = %error,
            "COPY does not work on this connection to PostgreSQL, so batches are inserted, which is slower; for PgBouncer set \
             max_prepared_statements, see docs/deployment.md, \"PgBouncer\""
        );
    }

    fn selector(&self) -> MutexGuard<'_, StrategySelector> {
        self.selector.lock().expect("no panic while it is held")
    }

    /// Writes the batch in a single statement, or falls back if the batch does not allow that.
    async fn attempt_single_statement(
        &self,
        connection: &mut WriterConnection,
        slices: &[Slice],
        messages: &[Message<'_>],
        slot: &mut CommitSlot,
    ) -> Result<WriteReport, Failed> {
        let skip = vec![false; messages.len()];
        let (candidates, collisions) = candidates(messages, &skip, &self.identity);
        if !collisions.is_empty() {
            return Err(Failed::Refused(collisions));
        }
        let small = match single_statement::plan(connection, slices, messages, &skip, candidates).await {
            Ok(Some(small)) => small,
            Ok(None) => return Err(Failed::FallBack(WriteStrategy::Merge, FallbackReason::Unsupported)),
            // The role's transactions are read-only by default: only a transaction that gapless begins itself can write
            // (on a standby, none can).
            Err(error) if error.sqlstate() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
                return Err(Failed::FallBack(WriteStrategy::Merge, FallbackReason::Closed(error)));
            }
            Err(error) => return Err(error.into()),
        };
        let counted = slot.wait_for_predecessor().await?;
        let breakers = count(self.limits, counted, messages, &small.effects)?;
        for failpoint in [Failpoint::TxOpen, Failpoint::EventsWritten, Failpoint::BeforeCas, Failpoint::BeforeCommit] {
            failpoints::hit(failpoint).await.map_err(LedgerError::from)?;
        }
        let report = report(WriteStrategy::SingleStatement, &small.effects, &[], breakers);
        match single_statement::write_small_batch(connection, slices, messages, &small, self.fence).await {
            Err(CommitFailure::Refused(error)) => Err(single_statement::refused(connection, error.into())),
            committed => commit_result(committed, report).await,
        }
    }

    /// Begins the batch's transaction. Behind a pooler, this may wait until another batch's connection is free.
    async fn begin(
        &self,
        connection: &mut WriterConnection,
        strategy: WriteStrategy,
        slot: &mut CommitSlot,
    ) -> Result<(), CommitError> {
        if slot.is_waiting() {
            let mut begun = std::pin::pin!(connection.session.begin_batch());
            tokio::select! {
                biased;
                begun = &mut begun => {
                    begun?;
                    self.exhaustion.on_connection();
                }
                committed = slot.wait_for_predecessor() => {
                    committed?;
                    self.exhaustion.on_wait();
                    begun.await?;
                }
            }
        } else {
            connection.session.begin_batch().await?;
        }
        if self.selector().keeps_connection(strategy) {
            slot.has_connection();
        }
        Ok(())
    }

    async fn attempt(
        &self,
        connection: &mut WriterConnection,
        strategy: WriteStrategy,
        slices: &[Slice],
        messages: &[Message<'_>],
        slot: &mut CommitSlot,
    ) -> Result<WriteReport, Failed> {
        let recipe = &self.identity;
        self.begin(connection, strategy, slot).await?;
        failpoints::hit(Failpoint::TxOpen).await.map_err(LedgerError::from)?;
        let reread: Vec<&Slice> = slices.iter().filter(|s| s.reread).collect();
        let recorded = if reread.is_empty() {
            HashMap::new()
        } else {
            outcome_rows::recorded(&connection.session, &reread).await?
        };
        let skip = already_recorded(messages, &recorded)?;

        let (candidates, collisions) = candidates(messages, &skip, recipe);
        if !collisions.is_empty() {
            return Err(Failed::Refused(collisions));
        }
        let known = store_events(connection, strategy, recipe, messages, &skip, &candidates).await?;
        failpoints::hit(Failpoint::EventsWritten).await.map_err(LedgerError::from)?;
        let effects = effects::decide(messages, &skip, known);
        store_outcomes(connection, strategy, messages, &effects).await?;
        store_conflicts(connection, messages, &effects.conflicts).await?;
        let mut late = LateChanges::default();
        event_rows::update_status(&connection.session, &effects, &mut late).await?;
        let session = &mut connection.session;
        let rejected: Vec<&Message<'_>> = newly_rejected(messages, &effects).collect();
        if !rejected.is_empty() {
            outcome_rows::insert_rejected(session, &rejected).await?;
        }
        if !reread.is_empty() {
            gap_rows::clear_gaps(session, &reread).await?;
            late.extend(reread_positions(messages, &effects));
        }
        gap_rows::insert_gaps(session, slices).await?;

        wait_for_slot(session, slot).await?;
        let counted = slot.wait_for_predecessor().await?;
        let breakers = count(self.limits, counted, messages, &effects)?;
        let moving: Vec<i32> = slices.iter().map(|s| s.position_id).collect();
        late.note(session, &moving).await?;
        failpoints::hit(Failpoint::BeforeCas).await.map_err(LedgerError::from)?;
        if position_rows::advance(session, slices, self.fence).await? != slices.len() {
            return Err(CommitError::Stale.into());
        }
        failpoints::hit(Failpoint::BeforeCommit).await.map_err(LedgerError::from)?;
        let report = report(strategy, &effects, &rejected, breakers);
        commit_result(session.commit().await, report).await
    }
}

/// Waits for the predecessor after all rows are written. The server ends a transaction that is idle for some seconds,
/// so that a stopped daemon holds no locks. So a waiting batch sends a statement at intervals.
async fn wait_for_slot(session: &Session, slot: &mut CommitSlot) -> Result<(), CommitError> {
    loop {
        match tokio::time::timeout(IDLE_IN_TRANSACTION / 4, slot.wait_for_predecessor()).await {
            Ok(committed) => return committed.map(drop),
            Err(_) => session.ping().await?,
        }
    }
}

/// Position id and offset of the messages that were read again and get their first outcome in this batch.
fn reread_positions(messages: &[Message<'_>], effects: &Effects) -> impl Iterator<Item = (i32, Offset)> {
    let messages = effects.outcomes.iter().map(|t| &messages[t.message]);
    messages.filter(|m| m.slice.reread).map(|m| (m.slice.position_id, m.record.offset))
}

/// The result of a batch after its COMMIT was sent.
async fn commit_result(committed: Result<(), CommitFailure>, report: WriteReport) -> Result<WriteReport, Failed> {
    match (committed, failpoints::hit(Failpoint::AfterCommit).await) {
        (Ok(()), Ok(())) => Ok(report),
        (Ok(()), Err(injected)) => Err(CommitError::Unknown(injected.into(), Box::new(report)).into()),
        (Err(CommitFailure::Unknown(error)), _) => Err(CommitError::Unknown(error.into(), Box::new(report)).into()),
        (Err(CommitFailure::Refused(error)), _) => Err(error.into()),
    }
}

/// The number of rows of a batch.
fn row_count(messages: &[Message<'_>]) -> usize {
    messages.iter().map(|message| message.decoded.rows()).sum()
}

/// Rejects a message with all its events. The first reason is kept.
pub(crate) fn reject(message: &mut Message<'_>, rejection: Rejection) {
    if !matches!(message.decoded, Decoded::Rejected(_)) {
        message.decoded = Decoded::Rejected(rejection);
    }
}

fn identities<'a>(messages: &'a [Message<'a>]) -> impl Iterator<Item = Digest> + 'a {
    messages.iter().flat_map(|message| message.decoded.events()).map(|event| event.identity)
}

async fn store_outcomes(
    connection: &mut WriterConnection,
    strategy: WriteStrategy,
    messages: &[Message<'_>],
    effects: &Effects,
) -> Result<(), Failed> {
    if strategy == WriteStrategy::Merge {
        return Ok(outcome_rows::insert_outcomes(&connection.session, messages, effects).await?);
    }
    match outcome_rows::copy_outcomes(&connection.session, &mut connection.rows, messages, effects).await {
        Err(error) if event_paths::is_copy_closed(&error) => {
            Err(Failed::FallBack(WriteStrategy::Merge, FallbackReason::Closed(error)))
        }
        result => Ok(result?),
    }
}

/// Counts the batch's rejected messages, whether the decoder or PostgreSQL rejected them. Messages that have an outcome
/// already were counted before.
fn count(
    limits: Limits,
    counted: &Breakers,
    messages: &[Message<'_>],
    effects: &Effects,
) -> Result<Breakers, CommitError> {
    let mut breakers = Breakers::new();
    for outcome in &effects.outcomes {
        let Message { slice, record, decoded, .. } = &messages[outcome.message];
        let partition = &slice.partition;
        let rejected = if let Decoded::Rejected(rejection) = decoded { Some(rejection.reason) } else { None };
        // The key is cloned once for each partition, not for each message.
        let breaker: &mut Breaker = match breakers.get_mut(partition) {
            Some(breaker) => breaker,
            None => {
                let so_far = counted.get(partition).cloned().unwrap_or_else(|| Breaker::new(limits));
                breakers.entry(partition.clone()).or_insert(so_far)
            }
        };
        let tripped = |trip| CommitError::TooManyRejected { partition: partition.clone(), trip };
        breaker.count(record.offset, rejected).map_err(tripped)?;
    }
    Ok(breakers)
}

/// For each message, whether it has an outcome from before the position was rewound. Its effects are not repeated. An
/// error if a message differs from the recorded one: the log was replaced.
fn already_recorded(
    messages: &[Message<'_>],
    recorded: &HashMap<(i32, Offset), Option<Digest>>,
) -> Result<Vec<bool>, CommitError> {
    if recorded.is_empty() {
        return Ok(vec![false; messages.len()]);
    }
    let is_recorded = |m: &Message<'_>| match recorded.get(&(m.slice.position_id, m.record.offset)) {
        None => Ok(false),
        Some(digest) if *digest == m.payload_digest => Ok(true),
        Some(_) => Err(CommitError::Differs { partition: m.slice.partition.clone(), offset: m.record.offset }),
    };
    messages.iter().map(is_recorded).collect()
}

pub(crate) fn newly_rejected<'a>(
    messages: &'a [Message<'a>],
    effects: &'a Effects,
) -> impl Iterator<Item = &'a Message<'a>> {
    effects.outcomes.iter().filter(|t| t.outcome == Outcome::Rejected).map(|t| &messages[t.message])
}

fn report(strategy: WriteStrategy, effects: &Effects, rejected: &[&Message<'_>], breakers: Breakers) -> WriteReport {
    let mut report = WriteReport {
        path: strategy,
        rows: effects.rows,
        outcomes: BTreeMap::new(),
        events_stored: effects.events_stored,
        events_existing: effects.events_existing,
        conflicting_events: effects.conflicting_events,
        rejections: HashMap::new(),
        breakers,
    };
    for outcome in &effects.outcomes {
        *report.outcomes.entry(outcome.outcome).or_default() += 1;
    }
    for message in rejected {
        if let Decoded::Rejected(rejection) = &message.decoded {
            *report.rejections.entry(rejection.reason).or_default() += 1;
        }
    }
    report
}
