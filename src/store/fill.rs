//! Fills in below a position: outcomes that are missing, and events of outcomes that are there, for
//! `gapless replay --offsets`. The same building blocks as a commit; no position moves and no fence is
//! taken, for the daemon writes at its position only.

use std::collections::HashMap;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::commit::{Failed, candidates, newly_rejected, store_conflicts, store_events};
use super::connect::Store;
use super::error::StoreError;
use super::merge;
use super::session::Session;
use super::{CommitError, Inspected, events, rows};
use crate::batch::{Message, Slice};
use crate::decode::{Format, decode};
use crate::event::Decoded;
use crate::position::{Coverage, Offset, OffsetRange};
use crate::record::{Digest, Record};

/// What a fill changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filled {
    /// Messages that had no outcome and have one now.
    pub outcomes: u64,
    /// Events that are there again, or now.
    pub events: u64,
    /// Outcomes that name another event than before.
    pub references: u64,
}

/// An outcome as it was found.
struct Before {
    digest: Option<Digest>,
    /// Its message holds events as far as the ledger is concerned.
    has_events: bool,
    /// It names no event that is there.
    dangling: bool,
}

const BEFORE: &str = "-- outcomes_before
select o.\"offset\", o.payload_digest, o.state in ('stored', 'processed', 'removed'),
       o.event_id is null or not exists (select from gapless.stored_events e where e.id = o.event_id)
from gapless.outcomes o where o.position_id = $1 and o.\"offset\" >= $2 and o.\"offset\" < $3";

/// No rewind or commit of this partition meanwhile.
const HOLD: &str = "-- hold_position
select next_offset from gapless.positions where id = $1 for share";

impl Store {
    /// Fills in from the messages of a partition, read again from Kafka, in offset order.
    pub async fn fill(&self, format: &Format, p: &Inspected, records: Vec<Record>) -> Result<Filled, CommitError> {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return Ok(Filled::default()) };
        let range = OffsetRange::new(first.offset.at(), last.offset.next()).expect("records are in offset order");
        let slice =
            Slice { position_id: p.position_id, partition: p.partition, range, records, gap: None, reread: true };
        let mut messages: Vec<Message<'_>> = slice
            .records
            .iter()
            .map(|record| Message { slice: &slice, record, decoded: decode(format, record) })
            .collect();
        loop {
            let mut session = self.session().await?;
            match attempt(&mut session, format, &slice, &messages).await {
                Ok(filled) => return Ok(filled),
                Err(Failed::Error(error)) => return Err(error),
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
    session: &mut Session,
    format: &Format,
    slice: &Slice,
    messages: &[Message<'_>],
) -> Result<Filled, Failed> {
    session.begin().await?;
    let held = session.query(HOLD, &[(&slice.position_id, Type::INT4)]).await?;
    let next: i64 = held.first().map_or(0, |row| row.get(0));
    if slice.range.to().get() > next {
        return Err(CommitError::Stale.into());
    }
    let before = before(session, slice).await?;
    let found = |m: &Message<'_>| before.get(&m.record.offset);
    for m in messages {
        if found(m).is_some_and(|b| b.digest != m.record.payload_digest()) {
            return Err(CommitError::Differs { partition: slice.partition, offset: m.record.offset }.into());
        }
    }
    // A message that was rejected or ignored stays so: only `replay` of the dead letter changes that.
    let without_events: Vec<bool> = messages.iter().map(|m| found(m).is_some_and(|b| !b.has_events)).collect();
    let told: Vec<bool> = messages.iter().map(|m| found(m).is_some()).collect();

    let (first_events, collisions) = candidates(messages, &without_events, &format.identity);
    if !collisions.is_empty() {
        return Err(Failed::Refused(collisions));
    }
    let known = store_events(session, &format.identity, messages, &without_events, &first_events).await?;
    let mended: Vec<(Offset, i64)> = messages
        .iter()
        .filter(|m| found(m).is_some_and(|b| b.has_events && b.dangling))
        .filter_map(|m| match &m.decoded {
            Decoded::Events(list) => Some((m.record.offset, known.winners.get(&list.first()?.identity)?.id)),
            Decoded::Nothing | Decoded::Rejected(_) => None,
        })
        .collect();
    let effects = merge::decide(messages, &told, known);
    store_conflicts(session, messages, &effects.conflicts).await?;
    events::update_status(session, &effects).await?;
    rows::insert_outcomes(session, messages, &effects).await?;
    let rejected: Vec<&Message<'_>> = newly_rejected(messages, &effects).collect();
    if !rejected.is_empty() {
        rows::insert_rejected(session, &rejected).await?;
    }
    if !mended.is_empty() {
        rows::mend_references(session, slice.position_id, &mended).await?;
    }
    let filled: Coverage = effects.told.iter().filter_map(|t| one(messages[t.message].record.offset)).collect();
    rows::shrink_gaps(session, slice.position_id, &filled).await?;
    let filled =
        Filled { outcomes: effects.told.len() as u64, events: effects.events_stored, references: mended.len() as u64 };
    session.commit().await.map_err(|failure| failure.into_error())?;
    Ok(filled)
}

fn one(offset: Offset) -> Option<OffsetRange> {
    OffsetRange::new(offset.at(), offset.next())
}

async fn before(session: &Session, slice: &Slice) -> Result<HashMap<Offset, Before>, StoreError> {
    let (from, to) = (slice.range.from().get(), slice.range.to().get());
    let params = [(&slice.position_id as _, Type::INT4), (&from as _, Type::INT8), (&to as _, Type::INT8)];
    let rows = session.query(BEFORE, &params).await?;
    let offset = |row: &Row| Offset::new(row.get(0)).expect("no negative offset was ever stored");
    let before = |row: &Row| Before { digest: row.get(1), has_events: row.get(2), dangling: row.get(3) };
    Ok(rows.iter().map(|row| (offset(row), before(row))).collect())
}
