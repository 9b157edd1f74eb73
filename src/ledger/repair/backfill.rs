//! Fills in below a position: outcomes that are missing, and events of outcomes that are there, for
//! `gapless replay --offsets`. The same building blocks as a commit; no position moves and no fence is
//! taken, for the daemon writes at its position only. Positions are locked last, as by a commit.

use crate::formats::decode_slice;
use std::collections::HashMap;

use serde_json::json;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::decisions::Decision;
use crate::formats::Format;
use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;
use crate::ledger::format_history::Decoding;
use crate::ledger::read::consistency::PartitionSnapshot;
use crate::ledger::write::connection::WriterConnection;
use crate::ledger::write::effects::{self, EventAt, ExistingEvents, Role};
use crate::ledger::write::event_paths::{all_events, candidates, store_conflicts, store_events};
use crate::ledger::write::late_changes::LateChanges;
use crate::ledger::write::writer::{CommitError, Failed, newly_rejected};
use crate::ledger::write::{event_rows, outcome_rows};
use crate::model::batch::Slice;
use crate::model::decoded_batch::Message;
use crate::model::event::{ContractEvent, Decoded, IdentityRecipe, Outcome, Reason, Rejection};
use crate::model::offset::{Coverage, Offset, OffsetRange};
use crate::model::record::{Digest, OccurrenceSet, Record};
use crate::model::write_report::WriteStrategy;
use crate::postgres::session::Session;

/// What a fill changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackfillReport {
    /// Messages that had no outcome and have one now.
    pub outcomes: u64,
    /// Events that are there again, or now.
    pub events: u64,
    /// The same of conflicts.
    pub conflicts: u64,
    /// Dead letters of outcomes that were there without one.
    pub letters: u64,
    /// Outcomes that name another event than before.
    pub references: u64,
    /// Outcomes that still name no event that is there: another message brought it.
    pub dangling: u64,
}

impl std::ops::AddAssign for BackfillReport {
    fn add_assign(&mut self, more: Self) {
        self.outcomes += more.outcomes;
        self.events += more.events;
        self.conflicts += more.conflicts;
        self.letters += more.letters;
        self.references += more.references;
        self.dangling += more.dangling;
    }
}

/// What an operator asked to have filled in, for `gapless.decisions`.
#[derive(Debug)]
pub struct BackfillOrder<'a> {
    pub topic: &'a str,
    pub range: OffsetRange,
    pub reason: Option<&'a str>,
}

impl BackfillOrder<'_> {
    async fn record(&self, session: &Session, partition: i32, filled: &BackfillReport) -> Result<(), LedgerError> {
        let BackfillReport { outcomes, events, conflicts, letters, references, dangling: _ } = filled;
        let rows_changed = outcomes + events + conflicts + letters + references;
        if rows_changed == 0 {
            return Ok(());
        }
        let Self { topic, range, reason } = *self;
        let subject = format!("{topic}[{partition}] {range}");
        let arguments = json!({ "offsets": format!("{topic}:{partition}:{}-{}", range.from(), range.to()) });
        Decision { verb: "replay", subject: &subject, reason, arguments, rows_changed }.record(session).await
    }
}

/// Occurrences that came back in this replay, by identity and content: later messages set their status.
#[derive(Debug, Clone, Default)]
pub struct ChangedOccurrences(OccurrenceSet);

/// An outcome as it was found.
struct StoredOutcome {
    digest: Option<Digest>,
    state: Option<Outcome>,
    /// It names no event that is there.
    dangling: bool,
    /// It has a dead letter.
    letter: bool,
}

/// (One look-up by key each, which no planner turns into a join.)
const BEFORE: &str = "-- outcomes_before
select o.\"offset\", o.payload_digest, o.state::text,
       (select e.id from gapless.stored_events e where e.id = o.event_id) is null,
       (select d.\"offset\" from gapless.rejected_messages d
         where d.position_id = o.position_id and d.\"offset\" = o.\"offset\") is not null
from gapless.outcomes o where o.position_id = $1 and o.\"offset\" >= $2 and o.\"offset\" < $3";

/// Where the daemon stands: it writes from there on.
const NEXT: &str = "-- position_above_fill
select next_offset from gapless.positions where id = $1";

/// The same, and no rewind of this partition before the fill is committed.
const LOCK_POSITION: &str = "-- hold_position
select next_offset from gapless.positions where id = $1 for no key update";

impl LedgerStore {
    /// Fills in from the messages of a partition, read again from Kafka, in offset order.
    pub async fn fill(
        &self,
        format: &Format,
        p: &PartitionSnapshot,
        records: Vec<Record>,
        asked: &BackfillOrder<'_>,
        touched: &mut ChangedOccurrences,
    ) -> Result<BackfillReport, CommitError> {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return Ok(BackfillReport::default()) };
        let range = OffsetRange::new(first.offset.at(), last.offset.next()).expect("records are in offset order");
        let slice =
            Slice { position_id: p.position_id, partition: p.partition, range, records, gap: None, reread: true };
        let mut messages: Vec<Message<'_>> = decode_slice(format, &slice).collect();
        loop {
            let mut connection = self.writer_connection().await?;
            let mut after = touched.clone();
            match attempt(&mut connection, format, &slice, &messages, asked, &mut after).await {
                Ok(filled) => {
                    *touched = after;
                    return Ok(filled);
                }
                Err(Failed::Error(error)) => return Err(error),
                Err(Failed::FallBack(..)) => unreachable!("an insert takes no other way"),
                Err(Failed::Refused(refused)) => {
                    for (index, rejection) in refused {
                        messages[index].decoded = Decoded::Rejected(rejection);
                    }
                }
            }
        }
    }
}

async fn attempt(
    connection: &mut WriterConnection,
    format: &Format,
    slice: &Slice,
    messages: &[Message<'_>],
    asked: &BackfillOrder<'_>,
    touched: &mut ChangedOccurrences,
) -> Result<BackfillReport, Failed> {
    connection.session.begin_piece().await?;
    is_below(&connection.session, NEXT, slice).await?;
    let before = stored_outcomes(&connection.session, slice).await?;
    let found: Vec<Option<&StoredOutcome>> = messages.iter().map(|m| before.get(&m.record.offset)).collect();
    for (m, found) in messages.iter().zip(&found) {
        if found.is_some_and(|b| b.digest != m.payload_digest) {
            return Err(CommitError::Differs { partition: slice.partition, offset: m.record.offset }.into());
        }
    }
    let roles: Vec<Role> = found.iter().map(|found| found.map_or(Role::New, role)).collect();
    let known = known(connection, &format.identity, messages, &found, &roles).await?;
    let offset = |index: usize| messages[index].record.offset;
    let place = |index: usize| (slice.position_id, offset(index));
    let mut late = LateChanges::default();
    let (mut restored, mut brought) = (Vec::<(Digest, i64)>::new(), Vec::new());
    for (key, winner) in &known.events {
        if let Some(at) = winner.inserted_as {
            restored.push((*key, winner.id));
            brought.push(place(at.message));
        }
    }
    late.extend(brought);
    let effects = effects::decide_with_roles(messages, &roles, &mut touched.0, known);
    store_conflicts(connection, messages, &effects.conflicts).await?;
    let session = &mut connection.session;
    event_rows::update_status(session, &effects, &mut late).await?;
    if !restored.is_empty() {
        event_rows::repair_conflicts(session, &restored, &mut late).await?;
    }
    outcome_rows::insert_outcomes(session, messages, &effects).await?;
    let lost = lost_letters(messages, &found);
    let rejected: Vec<&Message<'_>> = newly_rejected(messages, &effects).chain(&lost).collect();
    if !rejected.is_empty() {
        outcome_rows::insert_rejected(session, &rejected).await?;
    }
    let is_dangling = |index: usize| found[index].is_some_and(|b| has_events(b) && b.dangling);
    let mended: Vec<(Offset, i64)> = effects
        .recomputed
        .iter()
        .filter(|told| is_dangling(told.message))
        .filter_map(|told| Some((offset(told.message), told.event_id?)))
        .collect();
    if !mended.is_empty() {
        outcome_rows::repair_references(session, slice.position_id, &mended).await?;
    }
    let filled: Coverage = effects.outcomes.iter().filter_map(|t| one(offset(t.message))).collect();
    outcome_rows::shrink_gaps(session, slice.position_id, &filled).await?;
    let dangling = (0..messages.len()).filter(|index| is_dangling(*index)).count();
    let filled = BackfillReport {
        outcomes: effects.outcomes.len() as u64,
        events: effects.events_stored,
        conflicts: effects.conflicts.len() as u64,
        letters: lost.len() as u64,
        references: mended.len() as u64,
        dangling: (dangling - mended.len()) as u64,
    };
    asked.record(session, slice.partition, &filled).await?;
    Decoding::of(format).keep_range(session, slice.position_id, slice.range).await?;
    late.extend(effects.outcomes.iter().map(|told| place(told.message)));
    late.extend(effects.conflicts.iter().map(|conflict| place(conflict.at.message)));
    late.extend(mended.iter().map(|(offset, _)| (slice.position_id, *offset)));
    late.note(session, &[slice.position_id]).await?;
    is_below(session, LOCK_POSITION, slice).await?;
    session.commit().await.map_err(|failure| failure.into_error())?;
    Ok(filled)
}

/// The daemon writes at its position only; what lies below is left to the fill, unless the position is set back.
async fn is_below(session: &Session, position: &'static str, slice: &Slice) -> Result<(), CommitError> {
    let rows = session.query(position, &[(&slice.position_id, Type::INT4)]).await?;
    let next: i64 = rows.first().map_or(0, |row| row.get(0));
    if slice.range.to().get() > next { Err(CommitError::Stale) } else { Ok(()) }
}

fn one(offset: Offset) -> Option<OffsetRange> {
    OffsetRange::new(offset.at(), offset.next())
}

fn has_events(before: &StoredOutcome) -> bool {
    matches!(before.state, Some(Outcome::Stored | Outcome::Processed | Outcome::Removed))
}

/// A message that was rejected or ignored stays so: only `replay` of the dead letter changes that.
fn role(before: &StoredOutcome) -> Role {
    if has_events(before) { Role::AlreadyRecorded } else { Role::Skipped }
}

/// Stores what is lost, and looks up the rest. A message that has an outcome may store an event only if it
/// is the one that had brought it: `processed` means that another one had.
async fn known(
    connection: &mut WriterConnection,
    recipe: &IdentityRecipe,
    messages: &[Message<'_>],
    found: &[Option<&StoredOutcome>],
    roles: &[Role],
) -> Result<ExistingEvents, Failed> {
    let skipped: Vec<bool> = roles.iter().map(|role| *role == Role::Skipped).collect();
    let (_, collisions) = candidates(messages, &skipped, recipe);
    if !collisions.is_empty() {
        return Err(Failed::Refused(collisions));
    }
    let brought = |b: &StoredOutcome| match b.state {
        Some(Outcome::Stored) => true,
        Some(Outcome::Removed) => b.dangling,
        _ => false,
    };
    let barred: Vec<bool> = found.iter().map(|found| found.is_some_and(|b| !brought(b))).collect();
    // The ledger says of a `stored` message that it brought an event; of the others the first did.
    let mut first: HashMap<Digest, EventAt> = HashMap::new();
    let said = |at: EventAt| found[at.message].is_some_and(|b| b.state == Some(Outcome::Stored));
    for (at, event) in all_events(messages, &barred) {
        let chosen = first.entry(event.identity).or_insert(at);
        if said(at) && !said(*chosen) {
            *chosen = at;
        }
    }
    let mut chosen: Vec<EventAt> = first.values().copied().collect();
    chosen.sort_unstable_by_key(|at| (at.message, at.event));
    let mut known = store_events(connection, WriteStrategy::Merge, recipe, messages, &barred, &chosen).await?;

    let mut asked: HashMap<Digest, EventAt> = HashMap::new();
    for (at, event) in all_events(messages, &skipped).filter(|(_, e)| !known.events.contains_key(&e.identity)) {
        asked.entry(event.identity).or_insert(at);
    }
    if !asked.is_empty() {
        let asked: Vec<EventAt> = asked.into_values().collect();
        for at in event_rows::find_winners(&connection.session, recipe, messages, &asked, &mut known).await? {
            known.events.remove(&event_rows::event(messages, at).identity);
        }
    }
    let conflicting = |(_, e): &(EventAt, &ContractEvent<'_>)| {
        known.events.get(&e.identity).is_some_and(|winner| winner.content != e.content)
    };
    let identities: Vec<Digest> = all_events(messages, &skipped).filter(conflicting).map(|(_, e)| e.identity).collect();
    if !identities.is_empty() {
        event_rows::load_occurrences(&connection.session, &identities, &mut known).await?;
    }
    Ok(known)
}

/// Rejected messages whose bytes are kept no more.
fn lost_letters<'a>(messages: &'a [Message<'a>], found: &[Option<&StoredOutcome>]) -> Vec<Message<'a>> {
    let lost = |b: &StoredOutcome| b.state == Some(Outcome::Rejected) && !b.letter;
    let letter = |m: &'a Message<'a>| {
        let rejection = match &m.decoded {
            Decoded::Rejected(rejection) => rejection.clone(),
            Decoded::Events(_) | Decoded::Nothing => {
                let detail = "the dead letter was lost; today the message is understood: replay it";
                Rejection::new(Reason::RefusedByPostgres, detail)
            }
        };
        Message { decoded: Decoded::Rejected(rejection), ..*m }
    };
    messages.iter().zip(found).filter(|(_, found)| found.is_some_and(lost)).map(|(m, _)| letter(m)).collect()
}

async fn stored_outcomes(session: &Session, slice: &Slice) -> Result<HashMap<Offset, StoredOutcome>, LedgerError> {
    let (from, to) = (slice.range.from().get(), slice.range.to().get());
    let params = [(&slice.position_id as _, Type::INT4), (&from as _, Type::INT8), (&to as _, Type::INT8)];
    let rows = session.query(BEFORE, &params).await?;
    let offset = |row: &Row| Offset::new(row.get(0)).expect("no negative offset was ever stored");
    let before = |row: &Row| StoredOutcome {
        digest: row.get(1),
        state: Outcome::ALL.into_iter().find(|outcome| outcome.name() == row.get::<_, &str>(2)),
        dangling: row.get(3),
        letter: row.get(4),
    };
    Ok(rows.iter().map(|row| (offset(row), before(row))).collect())
}
