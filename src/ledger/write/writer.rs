//! The commit: a batch is written, all of it or nothing.
//!
//! One transaction holds events, conflicts, outcomes, dead letters, gaps and positions. Its last
//! statement before COMMIT moves the positions by compare-and-set (expected position and fence) and
//! must touch every slice: a stale writer's transaction leaves nothing. Every statement's result is
//! awaited and checked. What a failure means is returned as a type; nothing is retried here but the
//! isolation of rows that PostgreSQL refuses.

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
use crate::model::write_report::Breakers;
use crate::model::write_report::WriteStrategy;
use crate::postgres::error::PgError;
use crate::postgres::session::{CommitFailure, IDLE_IN_TRANSACTION, Session};

/// A batch is not in the ledger, or not known to be.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Nothing was committed; the error's class says what to do.
    #[error(transparent)]
    Store(#[from] LedgerError),
    /// COMMIT was sent and its answer lost: look the positions up before anything else.
    #[error("the outcome of a commit is unknown: {0}")]
    Unknown(LedgerError, Box<WriteReport>),
    /// Some position is not where it was expected, or a newer start owns it. Nothing was committed.
    #[error("positions moved")]
    Stale,
    /// A message that was read again is not the one that has an outcome. Nothing was committed.
    #[error("partition {partition}: the message at offset {offset} is not the one recorded there")]
    Differs { partition: i32, offset: Offset },
    /// With this batch too many messages would be rejected. Nothing was committed.
    #[error("partition {partition}: {trip}")]
    TooManyRejected { partition: i32, trip: BreakerTrip },
    /// A batch ahead of it was not committed. Nothing was committed.
    #[error("a batch ahead of this one was not committed")]
    AheadFailed,
}

impl From<PgError> for CommitError {
    fn from(error: PgError) -> Self {
        Self::Store(error.into())
    }
}

/// How one attempt ended without being committed.
pub(crate) enum Failed {
    Error(CommitError),
    /// These messages cannot be stored; the rest can.
    Refused(Vec<(usize, Rejection)>),
    /// Another way has to be taken.
    FallBack(WriteStrategy, FallbackReason),
}

/// Why the way chosen first is not taken to its end.
pub(crate) enum FallbackReason {
    /// An event that was taken for new is there.
    Duplicate,
    /// The batch does more than that way can, or holds a row that PostgreSQL refuses.
    Unsupported,
    /// That way does not work with this server at all.
    Closed(LedgerError),
}

impl<E: Into<CommitError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Writes batches under one fence, several at a time; [`Turn`] puts their commits into one line.
pub struct Writer {
    pub(crate) store: LedgerStore,
    fence: i64,
    identity: IdentityRecipe,
    limits: Limits,
    selector: Mutex<StrategySelector>,
    starved: PoolExhaustion,
}

/// Batches in a row that began only when the one ahead of them had ended: by then it is no accident.
const EXHAUSTED_AFTER: u32 = 20;

/// How often a pooler gave a batch no connection while another one had its own.
#[derive(Default)]
struct PoolExhaustion(AtomicU32);

impl PoolExhaustion {
    fn on_connection(&self) {
        if self.0.load(Ordering::Relaxed) < EXHAUSTED_AFTER {
            self.0.store(0, Ordering::Relaxed);
        }
    }

    fn waited(&self) {
        if self.0.load(Ordering::Relaxed) < EXHAUSTED_AFTER
            && self.0.fetch_add(1, Ordering::Relaxed) + 1 == EXHAUSTED_AFTER
        {
            tracing::warn!(
                event = "connections_limited",
                "a pooler gives gapless fewer connections than database.writers: batches wait for each other's; raise its \
                 pool size, or lower database.writers"
            );
        }
    }
}

impl Writer {
    pub fn new(store: LedgerStore, fence: i64, identity: IdentityRecipe, limits: Limits) -> Self {
        Self { store, fence, identity, limits, selector: Mutex::default(), starved: PoolExhaustion::default() }
    }

    /// Writes a batch when its turn has come. On any error its connection is closed; the next call takes
    /// a new one.
    pub async fn write(&self, batch: DecodedBatch<'_>, mut slot: CommitSlot) -> Result<WriteReport, CommitError> {
        let DecodedBatch { slices, mut messages } = batch;
        let mut brought = DigestSet::with_capacity_and_hasher(messages.len(), Default::default());
        brought.extend(identities(&messages));
        let in_flight = slot.publish_identities(brought).await?;
        let reread = slices.iter().any(|s| s.reread);
        if in_flight || reread {
            // What the batches ahead do must be seen first.
            slot.wait_for_predecessor().await?;
        }
        let chosen = self.selector().choose(messages.len(), identities(&messages));
        let mut path = if reread { chosen.fallback() } else { chosen };
        slot.wait_for_connection_ahead().await;
        // Kept from one attempt to the next: given back, it might go to a batch that waits for this one.
        let mut kept: Option<WriterConnection> = None;
        loop {
            let mut connection = match kept.take().filter(|connection| connection.session.is_sound()) {
                Some(connection) => connection,
                None => self.store.writer_connection().await?,
            };
            let attempt = match path {
                WriteStrategy::SingleStatement => {
                    self.attempt_single_statement(&mut connection, slices, &messages, &mut slot).await
                }
                _ => self.attempt(&mut connection, path, slices, &messages, &mut slot).await,
            };
            match attempt {
                Ok(report) => {
                    let duplicates = report.outcomes.contains_key(&Outcome::Processed);
                    self.selector().succeeded(path, duplicates, identities(&messages));
                    drop(connection);
                    slot.mark_committed(&report.breakers);
                    return Ok(report);
                }
                Err(Failed::Error(error)) => return Err(error),
                Err(Failed::Refused(refused)) => {
                    // Each round rejects at least one message, so this ends.
                    for (index, rejection) in refused {
                        messages[index].decoded = Decoded::Rejected(rejection);
                    }
                    kept = Some(connection);
                }
                Err(Failed::FallBack(to, why)) => {
                    let tried = std::mem::replace(&mut path, to);
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

    /// The way that was tried is not tried again. (The connection goes with it: a COPY that is refused before its data
    /// leaves tokio-postgres with one answer more than it expects.)
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

    /// The short way, where the batch turns out to be fit for it.
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
            // Read-only by default: only a transaction that we begin ourselves writes (on a standby, not even that).
            Err(error) if error.sqlstate() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
                return Err(Failed::FallBack(WriteStrategy::Merge, FallbackReason::Closed(error)));
            }
            Err(error) => return Err(error.into()),
        };
        let counted = slot.wait_for_predecessor().await?;
        let breakers = count(self.limits, counted, messages, &small.effects)?;
        for seam in [Failpoint::TxOpen, Failpoint::EventsWritten, Failpoint::BeforeCas, Failpoint::BeforeCommit] {
            failpoints::hit(seam).await.map_err(LedgerError::from)?;
        }
        let report = report(WriteStrategy::SingleStatement, &small.effects, &[], breakers);
        match single_statement::write_small_batch(connection, slices, messages, &small, self.fence).await {
            Err(CommitFailure::Refused(error)) => Err(single_statement::refused(connection, error.into())),
            committed => known_to_be(committed, report).await,
        }
    }

    /// Opens the batch's transaction. Behind a pooler this may take until a connection of ours is free.
    async fn begin(
        &self,
        connection: &mut WriterConnection,
        path: WriteStrategy,
        slot: &mut CommitSlot,
    ) -> Result<(), CommitError> {
        if slot.is_waiting() {
            let mut begun = std::pin::pin!(connection.session.begin_batch());
            tokio::select! {
                biased;
                begun = &mut begun => {
                    begun?;
                    self.starved.on_connection();
                }
                come = slot.wait_for_predecessor() => {
                    come?;
                    self.starved.waited();
                    begun.await?;
                }
            }
        } else {
            connection.session.begin_batch().await?;
        }
        if self.selector().keeps_connection(path) {
            slot.has_connection();
        }
        Ok(())
    }

    async fn attempt(
        &self,
        connection: &mut WriterConnection,
        path: WriteStrategy,
        slices: &[Slice],
        messages: &[Message<'_>],
        slot: &mut CommitSlot,
    ) -> Result<WriteReport, Failed> {
        let recipe = &self.identity;
        self.begin(connection, path, slot).await?;
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
        let known = store_events(connection, path, recipe, messages, &skip, &candidates).await?;
        failpoints::hit(Failpoint::EventsWritten).await.map_err(LedgerError::from)?;
        let effects = effects::decide(messages, &skip, known);
        store_outcomes(connection, path, messages, &effects).await?;
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
            late.extend(reread_places(messages, &effects));
        }
        gap_rows::insert_gaps(session, slices).await?;

        await_turn(session, slot).await?;
        let counted = slot.wait_for_predecessor().await?;
        let breakers = count(self.limits, counted, messages, &effects)?;
        let moving: Vec<i32> = slices.iter().map(|s| s.position_id).collect();
        late.note(session, &moving).await?;
        failpoints::hit(Failpoint::BeforeCas).await.map_err(LedgerError::from)?;
        if position_rows::advance(session, slices, self.fence).await? != slices.len() {
            return Err(CommitError::Stale.into());
        }
        failpoints::hit(Failpoint::BeforeCommit).await.map_err(LedgerError::from)?;
        let report = report(path, &effects, &rejected, breakers);
        known_to_be(session.commit().await, report).await
    }
}

/// Waits with everything written. The server ends a transaction that says nothing for some seconds, so that a stopped
/// daemon holds no locks; one that waits says something.
async fn await_turn(session: &Session, slot: &mut CommitSlot) -> Result<(), CommitError> {
    loop {
        match tokio::time::timeout(IDLE_IN_TRANSACTION / 4, slot.wait_for_predecessor()).await {
            Ok(come) => return come.map(drop),
            Err(_) => session.ping().await?,
        }
    }
}

/// Messages below a former position that have an outcome now.
fn reread_places(messages: &[Message<'_>], effects: &Effects) -> impl Iterator<Item = (i32, Offset)> {
    let told = effects.outcomes.iter().map(|t| &messages[t.message]);
    told.filter(|m| m.slice.reread).map(|m| (m.slice.position_id, m.record.offset))
}

/// What is known of a batch once its COMMIT was sent.
async fn known_to_be(committed: Result<(), CommitFailure>, report: WriteReport) -> Result<WriteReport, Failed> {
    match (committed, failpoints::hit(Failpoint::AfterCommit).await) {
        (Ok(()), Ok(())) => Ok(report),
        (Ok(()), Err(injected)) => Err(CommitError::Unknown(injected.into(), Box::new(report)).into()),
        (Err(CommitFailure::Unknown(error)), _) => Err(CommitError::Unknown(error.into(), Box::new(report)).into()),
        (Err(CommitFailure::Refused(error)), _) => Err(error.into()),
    }
}

fn identities<'a>(messages: &'a [Message<'a>]) -> impl Iterator<Item = Digest> + 'a {
    let events = |m: &'a Message<'a>| match &m.decoded {
        Decoded::Events(events) => events.as_slice(),
        Decoded::Nothing | Decoded::Rejected(_) => &[],
    };
    messages.iter().flat_map(events).map(|event| event.identity)
}

async fn store_outcomes(
    connection: &mut WriterConnection,
    path: WriteStrategy,
    messages: &[Message<'_>],
    effects: &Effects,
) -> Result<(), Failed> {
    if path == WriteStrategy::Merge {
        return Ok(outcome_rows::insert_outcomes(&connection.session, messages, effects).await?);
    }
    match outcome_rows::copy_outcomes(&connection.session, &mut connection.rows, messages, effects).await {
        Err(error) if event_paths::is_copy_closed(&error) => {
            Err(Failed::FallBack(WriteStrategy::Merge, FallbackReason::Closed(error)))
        }
        result => Ok(result?),
    }
}

/// Counts the batch's rejected messages, whoever rejected them; those that were read again have
/// been counted or decided about before.
fn count(
    limits: Limits,
    counted: &Breakers,
    messages: &[Message<'_>],
    effects: &Effects,
) -> Result<Breakers, CommitError> {
    let mut breakers = Breakers::new();
    for told in &effects.outcomes {
        let Message { slice, record, decoded, .. } = &messages[told.message];
        let partition = slice.partition;
        let so_far = || counted.get(&partition).cloned().unwrap_or_else(|| Breaker::new(limits));
        let rejected = if let Decoded::Rejected(rejection) = decoded { Some(rejection.reason) } else { None };
        let breaker: &mut Breaker = breakers.entry(partition).or_insert_with(so_far);
        breaker.count(record.offset, rejected).map_err(|trip| CommitError::TooManyRejected { partition, trip })?;
    }
    Ok(breakers)
}

/// Which messages have an outcome already, from before the position was set back. Their effects are
/// not repeated. A message that is not the one recorded stops everything: its log is another one.
fn already_recorded(
    messages: &[Message<'_>],
    recorded: &HashMap<(i32, Offset), Option<Digest>>,
) -> Result<Vec<bool>, CommitError> {
    if recorded.is_empty() {
        return Ok(vec![false; messages.len()]);
    }
    let told = |m: &Message<'_>| match recorded.get(&(m.slice.position_id, m.record.offset)) {
        None => Ok(false),
        Some(digest) if *digest == m.payload_digest => Ok(true),
        Some(_) => Err(CommitError::Differs { partition: m.slice.partition, offset: m.record.offset }),
    };
    messages.iter().map(told).collect()
}

pub(crate) fn newly_rejected<'a>(
    messages: &'a [Message<'a>],
    effects: &'a Effects,
) -> impl Iterator<Item = &'a Message<'a>> {
    effects.outcomes.iter().filter(|t| t.outcome == Outcome::Rejected).map(|t| &messages[t.message])
}

fn report(path: WriteStrategy, effects: &Effects, rejected: &[&Message<'_>], breakers: Breakers) -> WriteReport {
    let mut report = WriteReport {
        path,
        outcomes: BTreeMap::new(),
        events_stored: effects.events_stored,
        conflicting_events: effects.conflicting_events,
        rejections: HashMap::new(),
        breakers,
    };
    for told in &effects.outcomes {
        *report.outcomes.entry(told.outcome).or_default() += 1;
    }
    for message in rejected {
        if let Decoded::Rejected(rejection) = &message.decoded {
            *report.rejections.entry(rejection.reason).or_default() += 1;
        }
    }
    report
}
