//! The commit: one function writes a batch, all of it or nothing.
//!
//! One transaction holds events, conflicts, outcomes, dead letters, gaps and positions. Its last
//! statement before COMMIT moves the positions by compare-and-set (expected position and fence) and
//! must touch every slice: a stale writer's transaction leaves nothing. Every statement's result is
//! awaited and checked. What a failure means is returned as a type; nothing is retried here but the
//! isolation of rows that PostgreSQL refuses.

use std::collections::HashMap;

use super::connect::Store;
use super::error::{Class, StoreError};
use super::events;
use super::merge::{self, Effects, EventAt, Known, NewConflict, Winner};
use super::rows;
use super::session::{CommitFailure, Session};
use crate::batch::{Batch, Message, Slice};
use crate::breaker::{Breaker, Limits, Trip};
use crate::decode::Format;
use crate::event::{ContractEvent, Decoded, IdentityRecipe, Outcome, Reason, Rejection};
use crate::failpoints::{self, Failpoint};
use crate::position::{Coverage, Offset};
use crate::record::Digest;

/// What a batch did, for metrics and logs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub outcomes: HashMap<Outcome, u64>,
    pub events_stored: u64,
    pub conflicting_events: u64,
    pub rejections: HashMap<Reason, u64>,
    /// What is counted of each partition with this batch: [`Writer::committed`] keeps it.
    breakers: HashMap<i32, Breaker>,
}

/// A batch is not in the ledger, or not known to be.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Nothing was committed; the error's class says what to do.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// COMMIT was sent and its answer lost: look the positions up before anything else.
    #[error("the outcome of a commit is unknown: {0}")]
    Unknown(StoreError, Box<Report>),
    /// Some position is not where it was expected, or a newer start owns it. Nothing was committed.
    #[error("positions moved")]
    Stale,
    /// A message that was read again is not the one that has an outcome. Nothing was committed.
    #[error("partition {partition}: the message at offset {offset} is not the one recorded there")]
    Differs { partition: i32, offset: Offset },
    /// With this batch too many messages would be rejected. Nothing was committed.
    #[error("partition {partition}: {trip}")]
    TooManyRejected { partition: i32, trip: Trip },
}

/// How one attempt ended without being committed.
pub(super) enum Failed {
    Error(CommitError),
    /// These messages cannot be stored; the rest can.
    Refused(Vec<(usize, Rejection)>),
}

impl<E: Into<CommitError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// The one writer: a connection kept between batches, and the fence it writes under.
pub struct Writer {
    store: Store,
    session: Option<Session>,
    fence: i64,
    format: Format,
    limits: Limits,
    /// Of what is in the ledger since the start, per partition.
    breakers: HashMap<i32, Breaker>,
}

impl Writer {
    pub fn new(store: Store, fence: i64, format: Format, limits: Limits) -> Self {
        Self { store, session: None, fence, format, limits, breakers: HashMap::new() }
    }

    /// The batch of this report is known to be in the ledger: its rejected messages count.
    pub fn committed(&mut self, report: &Report) {
        self.breakers.extend(report.breakers.iter().map(|(partition, breaker)| (*partition, breaker.clone())));
    }

    /// Writes a batch. On any error the connection is closed; the next call takes a new one.
    pub async fn commit(&mut self, batch: &Batch) -> Result<Report, CommitError> {
        let mut messages = batch.messages(&self.format);
        loop {
            let mut session = match self.session.take() {
                Some(session) => session,
                None => self.store.session().await?,
            };
            match attempt(self, &mut session, batch, &messages).await {
                Ok(report) => {
                    self.session = Some(session);
                    return Ok(report);
                }
                Err(Failed::Error(error)) => return Err(error),
                Err(Failed::Refused(refused)) => {
                    // Each round rejects at least one message, so this ends.
                    for (index, rejection) in refused {
                        messages[index].decoded = Decoded::Rejected(rejection);
                    }
                }
            }
        }
    }

    /// Counts the batch's rejected messages, whoever rejected them; those that were read again have
    /// been counted or decided about before.
    fn count(&self, messages: &[Message<'_>], effects: &Effects) -> Result<HashMap<i32, Breaker>, CommitError> {
        let mut breakers = HashMap::new();
        for told in &effects.told {
            let Message { slice, record, decoded } = &messages[told.message];
            let partition = slice.partition;
            let counted = || self.breakers.get(&partition).cloned().unwrap_or_else(|| Breaker::new(self.limits));
            let rejected = if let Decoded::Rejected(rejection) = decoded { Some(rejection.reason) } else { None };
            let breaker: &mut Breaker = breakers.entry(partition).or_insert_with(counted);
            breaker.count(record.offset, rejected).map_err(|trip| CommitError::TooManyRejected { partition, trip })?;
        }
        Ok(breakers)
    }
}

async fn attempt(
    writer: &Writer,
    session: &mut Session,
    batch: &Batch,
    messages: &[Message<'_>],
) -> Result<Report, Failed> {
    let recipe = &writer.format.identity;
    session.begin().await?;
    failpoints::hit(Failpoint::TxOpen).await.map_err(StoreError::from)?;
    let reread: Vec<&Slice> = batch.slices().iter().filter(|s| s.reread).collect();
    let recorded = if reread.is_empty() { HashMap::new() } else { rows::recorded(session, &reread).await? };
    let skip = already_told(messages, &recorded)?;

    let (candidates, collisions) = candidates(messages, &skip, recipe);
    if !collisions.is_empty() {
        return Err(Failed::Refused(collisions));
    }
    let known = store_events(session, recipe, messages, &skip, &candidates).await?;
    failpoints::hit(Failpoint::EventsWritten).await.map_err(StoreError::from)?;
    let effects = merge::decide(messages, &skip, known);
    let breakers = writer.count(messages, &effects)?;
    store_conflicts(session, messages, &effects.conflicts).await?;
    events::update_status(session, &effects).await?;
    rows::insert_outcomes(session, messages, &effects).await?;
    let rejected: Vec<&Message<'_>> = newly_rejected(messages, &effects).collect();
    if !rejected.is_empty() {
        rows::insert_rejected(session, &rejected).await?;
    }
    if !reread.is_empty() {
        rows::clear_gaps(session, &reread).await?;
    }
    rows::insert_gaps(session, &gaps(batch, &recorded)).await?;

    failpoints::hit(Failpoint::BeforeCas).await.map_err(StoreError::from)?;
    if rows::advance(session, batch.slices(), writer.fence).await? != batch.slices().len() as u64 {
        return Err(CommitError::Stale.into());
    }
    failpoints::hit(Failpoint::BeforeCommit).await.map_err(StoreError::from)?;
    let report = Report { breakers, ..report(&effects, &rejected) };
    let committed = session.commit().await;
    match (committed, failpoints::hit(Failpoint::AfterCommit).await) {
        (Ok(()), Ok(())) => Ok(report),
        (Ok(()), Err(injected)) => Err(CommitError::Unknown(injected.into(), Box::new(report)).into()),
        (Err(CommitFailure::Unknown(error)), _) => Err(CommitError::Unknown(error, Box::new(report)).into()),
        (Err(CommitFailure::Refused(error)), _) => Err(error.into()),
    }
}

/// Which messages have an outcome already, from before the position was set back. Their effects are
/// not repeated. A message that is not the one recorded stops everything: its log is another one.
fn already_told(
    messages: &[Message<'_>],
    recorded: &HashMap<(i32, Offset), Option<Digest>>,
) -> Result<Vec<bool>, CommitError> {
    if recorded.is_empty() {
        return Ok(vec![false; messages.len()]);
    }
    let told = |m: &Message<'_>| match recorded.get(&(m.slice.position_id, m.record.offset)) {
        None => Ok(false),
        Some(digest) if *digest == m.record.payload_digest() => Ok(true),
        Some(_) => Err(CommitError::Differs { partition: m.slice.partition, offset: m.record.offset }),
    };
    messages.iter().map(told).collect()
}

/// The first event of each identity, and messages whose event only shares a key with an earlier one.
pub(super) fn candidates(
    messages: &[Message<'_>],
    skip: &[bool],
    recipe: &IdentityRecipe,
) -> (Vec<EventAt>, Vec<(usize, Rejection)>) {
    let mut first: HashMap<Digest, EventAt> = HashMap::new();
    let (mut candidates, mut collisions) = (Vec::new(), Vec::new());
    for (at, event) in all_events(messages, skip) {
        match first.get(&event.identity) {
            None => {
                first.insert(event.identity, at);
                candidates.push(at);
            }
            Some(earlier) if recipe.same(&event.fields, &events::event(messages, *earlier).fields) => {}
            Some(_) => collisions.push((at.message, collision())),
        }
    }
    (candidates, collisions)
}

pub(super) fn all_events<'a>(
    messages: &'a [Message<'a>],
    skip: &'a [bool],
) -> impl Iterator<Item = (EventAt, &'a ContractEvent<'a>)> {
    messages.iter().enumerate().filter(|(index, _)| !skip[*index]).flat_map(|(message, m)| {
        let events: &[_] = match &m.decoded {
            Decoded::Events(events) => events,
            Decoded::Nothing | Decoded::Rejected(_) => &[],
        };
        events.iter().enumerate().map(move |(event, e)| (EventAt { message, event }, e))
    })
}

fn collision() -> Rejection {
    Rejection::new(Reason::IdentityCollision, "another event has the same 16-byte identity")
}

/// Inserts what is new and looks up what was there.
pub(super) async fn store_events(
    session: &mut Session,
    recipe: &IdentityRecipe,
    messages: &[Message<'_>],
    skip: &[bool],
    candidates: &[EventAt],
) -> Result<Known, Failed> {
    let mut known = Known::default();
    if candidates.is_empty() {
        return Ok(known);
    }
    let inserted = match events::insert_events(session, messages, candidates).await {
        Ok(inserted) => inserted,
        Err(error) if error.class() == Class::Data => {
            let attempt =
                async |s: &Session, part: &[EventAt]| events::insert_events(s, messages, part).await.map(drop);
            return Err(isolate(session, error, candidates, |at| at.message, attempt).await);
        }
        Err(error) => return Err(error.into()),
    };
    let mut taken = Vec::new();
    for at in candidates {
        let event = events::event(messages, *at);
        match inserted.get(&event.identity) {
            Some(id) => {
                let winner = Winner {
                    id: *id,
                    content: event.content,
                    status: event.status,
                    brought_by: Some(*at),
                    place: None,
                };
                known.winners.insert(event.identity, winner);
            }
            None => taken.push(*at),
        }
    }
    if !taken.is_empty() {
        let collisions = events::load_winners(session, recipe, messages, &taken, &mut known).await?;
        if !collisions.is_empty() {
            // Every message of the batch that has the colliding identity is rejected with it.
            let keys: Vec<Digest> = collisions.iter().map(|at| events::event(messages, *at).identity).collect();
            let all = all_events(messages, skip).filter(|(_, e)| keys.contains(&e.identity));
            return Err(Failed::Refused(all.map(|(at, _)| (at.message, collision())).collect()));
        }
    }
    let conflicting = |e: &ContractEvent<'_>| known.winners[&e.identity].content != e.content;
    let identities: Vec<Digest> =
        all_events(messages, skip).filter(|(_, e)| conflicting(e)).map(|(_, e)| e.identity).collect();
    if !identities.is_empty() {
        events::load_occurrences(session, &identities, &mut known).await?;
    }
    Ok(known)
}

pub(super) async fn store_conflicts(
    session: &mut Session,
    messages: &[Message<'_>],
    conflicts: &[NewConflict],
) -> Result<(), Failed> {
    if conflicts.is_empty() {
        return Ok(());
    }
    match events::insert_conflicts(session, messages, conflicts).await {
        Ok(()) => Ok(()),
        Err(error) if error.class() == Class::Data => {
            let attempt = async |s: &Session, part: &[NewConflict]| events::insert_conflicts(s, messages, part).await;
            Err(isolate(session, error, conflicts, |c| c.at.message, attempt).await)
        }
        Err(error) => Err(error.into()),
    }
}

/// Finds the rows that PostgreSQL refuses, by halving, in a transaction that is rolled back. Returns
/// the messages they came from; the batch is then written without them, from the start.
async fn isolate<T: Copy>(
    session: &mut Session,
    cause: StoreError,
    rows: &[T],
    message: impl Fn(&T) -> usize,
    attempt: impl AsyncFn(&Session, &[T]) -> Result<(), StoreError>,
) -> Failed {
    match refused_rows(session, rows, attempt).await {
        // Not refused again: whatever it was, it is not one row's fault.
        Ok(refused) if refused.is_empty() => cause.into(),
        Ok(refused) => Failed::Refused(
            refused
                .into_iter()
                .map(|(row, error)| (message(&row), Rejection::new(Reason::RefusedByPostgres, error.to_string())))
                .collect(),
        ),
        Err(error) => error.into(),
    }
}

async fn refused_rows<T: Copy>(
    session: &mut Session,
    rows: &[T],
    attempt: impl AsyncFn(&Session, &[T]) -> Result<(), StoreError>,
) -> Result<Vec<(T, StoreError)>, StoreError> {
    session.rollback().await?;
    session.begin().await?;
    let mut refused = Vec::new();
    let mut parts = vec![rows];
    while let Some(part) = parts.pop() {
        session.savepoint().await?;
        let result = attempt(session, part).await;
        session.rollback_to_savepoint().await?;
        match result {
            Err(error) if error.class() == Class::Data => match part {
                [row] => refused.push((*row, error)),
                _ => {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([right, left]);
                }
            },
            result => result?,
        }
    }
    session.rollback().await?;
    Ok(refused)
}

/// The gaps to record: what was proven empty, less what has an outcome from before (a message that
/// was compacted away since).
fn gaps<'a>(
    batch: &'a Batch,
    recorded: &HashMap<(i32, Offset), Option<Digest>>,
) -> Vec<(i32, Coverage, &'a crate::batch::Gap)> {
    let mut gaps = Vec::new();
    for slice in batch.slices() {
        let Some(gap) = &slice.gap else { continue };
        let mut offsets = gap.offsets.clone();
        recorded.keys().filter(|(id, _)| *id == slice.position_id).for_each(|(_, offset)| offsets.remove(*offset));
        if !offsets.is_empty() {
            gaps.push((slice.position_id, offsets, gap));
        }
    }
    gaps
}

pub(super) fn newly_rejected<'a>(
    messages: &'a [Message<'a>],
    effects: &'a Effects,
) -> impl Iterator<Item = &'a Message<'a>> {
    effects.told.iter().filter(|t| t.outcome == Outcome::Rejected).map(|t| &messages[t.message])
}

fn report(effects: &Effects, rejected: &[&Message<'_>]) -> Report {
    let mut report = Report {
        events_stored: effects.events_stored,
        conflicting_events: effects.conflicting_events,
        ..Report::default()
    };
    for told in &effects.told {
        *report.outcomes.entry(told.outcome).or_default() += 1;
    }
    for message in rejected {
        if let Decoded::Rejected(rejection) = &message.decoded {
            *report.rejections.entry(rejection.reason).or_default() += 1;
        }
    }
    report
}
