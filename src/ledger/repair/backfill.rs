//! The backfill of `gapless replay --offsets`: below a stored position, it inserts missing outcomes and the missing
//! events of recorded outcomes. It uses the same building blocks as a commit. It moves no position and takes no fence,
//! because the daemon writes only at its position. It locks positions last, as a commit does.

use crate::formats::decode_slice;
use std::collections::HashMap;

use serde_json::json;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::formats::Format;
use crate::ledger::connect::LedgerStore;
use crate::ledger::decision::Decision;
use crate::ledger::error::LedgerError;
use crate::ledger::format_history::Decoding;
use crate::ledger::read::consistency::PartitionSnapshot;
use crate::ledger::write::connection::WriterConnection;
use crate::ledger::write::effects::{self, EventAt, ExistingEvents, Role, event_number};
use crate::ledger::write::event_paths::{all_events, candidates, store_conflicts, store_events};
use crate::ledger::write::late_changes::LateChanges;
use crate::ledger::write::writer::{CommitError, Failed, newly_rejected, reject};
use crate::ledger::write::{event_rows, gap_rows, outcome_rows};
use crate::model::batch::Slice;
use crate::model::decoded_batch::Message;
use crate::model::event::{ContractEvent, Decoded, IdentityRecipe, Outcome, Reason, Rejection};
use crate::model::event_numbers::{self, EventNumbers};
use crate::model::offset::{Coverage, Offset, OffsetRange};
use crate::model::record::{Digest, OccurrenceSet, Record};
use crate::model::topic::TopicPartition;
use crate::model::write_report::WriteStrategy;
use crate::postgres::session::Session;

/// The number of rows that a backfill changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackfillReport {
    /// Messages that had no outcome before.
    pub outcomes: u64,
    /// Events inserted, restored ones included.
    pub events: u64,
    /// Conflicts inserted, restored ones included.
    pub conflicts: u64,
    /// Dead letters inserted for `rejected` outcomes that had none.
    pub dead_letters: u64,
    /// Outcomes that reference another event than before.
    pub references: u64,
    /// Outcomes that still reference no existing event: another message had inserted that event.
    pub dangling: u64,
}

impl std::ops::AddAssign for BackfillReport {
    fn add_assign(&mut self, more: Self) {
        self.outcomes += more.outcomes;
        self.events += more.events;
        self.conflicts += more.conflicts;
        self.dead_letters += more.dead_letters;
        self.references += more.references;
        self.dangling += more.dangling;
    }
}

/// The backfill that an operator requested, as recorded in `gapless.decisions`.
#[derive(Debug)]
pub struct BackfillOrder<'a> {
    pub range: OffsetRange,
    pub reason: Option<&'a str>,
}

impl BackfillOrder<'_> {
    async fn record(
        &self,
        session: &Session,
        partition: &TopicPartition,
        filled: &BackfillReport,
    ) -> Result<(), LedgerError> {
        let BackfillReport { outcomes, events, conflicts, dead_letters, references, dangling: _ } = filled;
        let rows_changed = outcomes + events + conflicts + dead_letters + references;
        if rows_changed == 0 {
            return Ok(());
        }
        let Self { range, reason } = *self;
        let subject = format!("{partition} {range}");
        let TopicPartition { topic, partition } = partition;
        let arguments = json!({ "offsets": format!("{topic}:{partition}:{}-{}", range.from(), range.to()) });
        Decision { verb: "replay", subject: &subject, reason, arguments, rows_changed }.record(session).await
    }
}

/// Occurrences that this replay restored, by identity and content digest. Later messages of the replay set their
/// status.
#[derive(Debug, Clone, Default)]
pub struct ChangedOccurrences(OccurrenceSet);

/// An outcome as it was before the backfill.
struct StoredOutcome {
    digest: Option<Digest>,
    state: Option<Outcome>,
    /// The events that the message inserted.
    inserted: EventNumbers,
    /// The outcome references no existing event.
    dangling: bool,
    has_dead_letter: bool,
}

/// The subqueries look up one key each, so that no planner turns them into a join.
const BEFORE: &str = "-- outcomes_before
select o.\"offset\", o.payload_digest, o.state::text, o.inserted::text,
       (select e.id from gapless.stored_events e where e.id = o.event_id) is null,
       (select d.\"offset\" from gapless.rejected_messages d
         where d.position_id = o.position_id and d.\"offset\" = o.\"offset\") is not null
from gapless.outcomes o where o.position_id = $1 and o.\"offset\" >= $2 and o.\"offset\" < $3";

/// The daemon's position: the daemon writes from there on.
const NEXT: &str = "-- position_above_fill
select next_offset from gapless.positions where id = $1";

/// Reads the position and locks it, so that this partition cannot be rewound before the backfill is committed.
const LOCK_POSITION: &str = "-- hold_position
select next_offset from gapless.positions where id = $1 for no key update";

impl LedgerStore {
    /// Runs the backfill of one partition. `records` were read again from Kafka and are in offset order.
    pub async fn backfill(
        &self,
        format: &Format,
        p: &PartitionSnapshot,
        records: Vec<Record>,
        asked: &BackfillOrder<'_>,
        changed: &mut ChangedOccurrences,
    ) -> Result<BackfillReport, CommitError> {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return Ok(BackfillReport::default()) };
        let range = OffsetRange::new(first.offset.at(), last.offset.next()).expect("records are in offset order");
        let (position_id, partition) = (p.position_id, p.partition.clone());
        let slice = Slice { position_id, partition, range, records, gap: None, reread: true };
        let mut messages: Vec<Message<'_>> = decode_slice(format, &slice).collect();
        loop {
            let mut connection = self.writer_connection().await?;
            let mut after = changed.clone();
            match attempt(&mut connection, format, &slice, &messages, asked, &mut after).await {
                Ok(filled) => {
                    *changed = after;
                    return Ok(filled);
                }
                Err(Failed::Error(error)) => return Err(error),
                Err(Failed::FallBack(..)) => unreachable!("write strategy Merge never falls back"),
                Err(Failed::Refused(refused)) => {
                    for (index, rejection) in refused {
                        reject(&mut messages[index], rejection);
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
    changed: &mut ChangedOccurrences,
) -> Result<BackfillReport, Failed> {
    connection.session.begin_piece().await?;
    is_below(&connection.session, NEXT, slice).await?;
    let before = stored_outcomes(&connection.session, slice).await?;
    let found: Vec<Option<&StoredOutcome>> = messages.iter().map(|m| before.get(&m.record.offset)).collect();
    for (m, found) in messages.iter().zip(&found) {
        if found.is_some_and(|b| b.digest != m.payload_digest) {
            return Err(CommitError::Differs { partition: slice.partition.clone(), offset: m.record.offset }.into());
        }
    }
    let roles: Vec<Role> = found.iter().map(|found| found.map_or(Role::New, role)).collect();
    let known = known(connection, &format.identity, messages, &found, &roles).await?;
    let offset = |index: usize| messages[index].record.offset;
    let source_position = |index: usize| (slice.position_id, offset(index));
    let mut late = LateChanges::default();
    let (mut restored, mut inserted_by) = (Vec::<(Digest, i64)>::new(), Vec::new());
    for (key, existing) in &known.events {
        if let Some(at) = existing.inserted_as {
            restored.push((*key, existing.id));
            inserted_by.push(source_position(at.message));
        }
    }
    late.extend(inserted_by);
    let effects = effects::decide_with_roles(messages, &roles, &mut changed.0, known);
    store_conflicts(connection, messages, &effects.conflicts).await?;
    let session = &mut connection.session;
    event_rows::update_status(session, &effects, &mut late).await?;
    if !restored.is_empty() {
        event_rows::repair_conflicts(session, &restored, &mut late).await?;
    }
    outcome_rows::insert_outcomes(session, messages, &effects).await?;
    let lost = lost_dead_letters(messages, &found);
    let rejected: Vec<&Message<'_>> = newly_rejected(messages, &effects).chain(&lost).collect();
    if !rejected.is_empty() {
        outcome_rows::insert_rejected(session, &rejected).await?;
    }
    let is_dangling = |index: usize| found[index].is_some_and(|b| has_events(b) && b.dangling);
    let repaired: Vec<(Offset, i64)> = effects
        .recomputed
        .iter()
        .filter(|outcome| is_dangling(outcome.message))
        .filter_map(|outcome| Some((offset(outcome.message), outcome.event_id?)))
        .collect();
    if !repaired.is_empty() {
        outcome_rows::repair_references(session, slice.position_id, &repaired).await?;
    }
    let filled: Coverage =
        effects.outcomes.iter().filter_map(|outcome| single_offset(offset(outcome.message))).collect();
    gap_rows::shrink_gaps(session, slice.position_id, &filled).await?;
    let dangling = (0..messages.len()).filter(|index| is_dangling(*index)).count();
    let filled = BackfillReport {
        outcomes: effects.outcomes.len() as u64,
        events: effects.events_stored,
        conflicts: effects.conflicts.len() as u64,
        dead_letters: lost.len() as u64,
        references: repaired.len() as u64,
        dangling: (dangling - repaired.len()) as u64,
    };
    asked.record(session, &slice.partition, &filled).await?;
    Decoding::of(format).keep_range(session, slice.position_id, slice.range).await?;
    late.extend(effects.outcomes.iter().map(|outcome| source_position(outcome.message)));
    late.extend(effects.conflicts.iter().map(|conflict| source_position(conflict.at.message)));
    late.extend(repaired.iter().map(|(offset, _)| (slice.position_id, *offset)));
    late.note(session, &[slice.position_id]).await?;
    is_below(session, LOCK_POSITION, slice).await?;
    session.commit().await.map_err(|failure| failure.into_error())?;
    Ok(filled)
}

/// The daemon writes only at its position, so the backfill may write below it. An error if the position was rewound
/// and the slice no longer lies below it.
async fn is_below(session: &Session, position: &'static str, slice: &Slice) -> Result<(), CommitError> {
    let rows = session.query(position, &[(&slice.position_id, Type::INT4)]).await?;
    let next: i64 = rows.first().map_or(0, |row| row.get(0));
    if slice.range.to().get() > next { Err(CommitError::Stale) } else { Ok(()) }
}

fn single_offset(offset: Offset) -> Option<OffsetRange> {
    OffsetRange::new(offset.at(), offset.next())
}

fn has_events(before: &StoredOutcome) -> bool {
    matches!(before.state, Some(Outcome::Stored | Outcome::Processed | Outcome::Removed))
}

/// A message that was rejected or ignored keeps its outcome: only `replay` of the dead letter changes it.
fn role(before: &StoredOutcome) -> Role {
    if has_events(before) { Role::AlreadyRecorded } else { Role::Skipped }
}

/// Inserts the lost events and looks up the others. A message that has an outcome may insert an event only if that
/// message had inserted it before: `processed` means that another message had.
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
    let barred: Vec<bool> =
        found.iter().map(|found| found.is_some_and(|b| !has_events(b) || b.inserted.is_empty())).collect();
    // An outcome records which events its message had inserted. If no outcome records an event, the first message
    // without an outcome inserts it.
    let mut first: HashMap<Digest, EventAt> = HashMap::new();
    let is_recorded = |at: EventAt| found[at.message].map(|b| b.inserted.contains(event_number(at.event)));
    for (at, event) in all_events(messages, &barred).filter(|(at, _)| is_recorded(*at) != Some(false)) {
        let chosen = first.entry(event.identity).or_insert(at);
        if is_recorded(at).is_some() && is_recorded(*chosen).is_none() {
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
        for at in event_rows::find_existing_events(&connection.session, recipe, messages, &asked, &mut known).await? {
            known.events.remove(&event_rows::event(messages, at).identity);
        }
    }
    let conflicting = |(_, e): &(EventAt, &ContractEvent<'_>)| {
        known.events.get(&e.identity).is_some_and(|existing| existing.content != e.content)
    };
    let identities: Vec<Digest> = all_events(messages, &skipped).filter(conflicting).map(|(_, e)| e.identity).collect();
    if !identities.is_empty() {
        event_rows::load_occurrences(&connection.session, &identities, &mut known).await?;
    }
    Ok(known)
}

/// Rejected messages whose dead letter is lost.
fn lost_dead_letters<'a>(messages: &'a [Message<'a>], found: &[Option<&StoredOutcome>]) -> Vec<Message<'a>> {
    let lost = |b: &StoredOutcome| b.state == Some(Outcome::Rejected) && !b.has_dead_letter;
    let dead_letter = |m: &'a Message<'a>| {
        let rejection = match &m.decoded {
            Decoded::Rejected(rejection) => rejection.clone(),
            Decoded::Events(_) | Decoded::Nothing => {
                let detail = "the dead letter was lost; today the message is understood: replay it";
                Rejection::new(Reason::RefusedByPostgres, detail)
            }
        };
        Message { decoded: Decoded::Rejected(rejection), ..*m }
    };
    messages.iter().zip(found).filter(|(_, found)| found.is_some_and(lost)).map(|(m, _)| dead_letter(m)).collect()
}

async fn stored_outcomes(session: &Session, slice: &Slice) -> Result<HashMap<Offset, StoredOutcome>, LedgerError> {
    let (from, to) = (slice.range.from().get(), slice.range.to().get());
    let params = [(&slice.position_id as _, Type::INT4), (&from as _, Type::INT8), (&to as _, Type::INT8)];
    let rows = session.query(BEFORE, &params).await?;
    let offset = |row: &Row| Offset::new(row.get(0)).expect("no negative offset was ever stored");
    let before = |row: &Row| {
        let state = Outcome::ALL.into_iter().find(|outcome| outcome.name() == row.get::<_, &str>(2));
        let (column, dangling) = (row.get::<_, Option<&str>>(3).map(EventNumbers::parse_or_none), row.get(4));
        let inserted = state.and_then(|state| event_numbers::inserted_events(state, column));
        // An earlier version did not record which removals were inserted: those that reference no other event.
        let inserted = inserted.unwrap_or(if dangling { EventNumbers::first() } else { EventNumbers::default() });
        StoredOutcome { digest: row.get(1), state, inserted, dangling, has_dead_letter: row.get(5) }
    };
    Ok(rows.iter().map(|row| (offset(row), before(row))).collect())
}
