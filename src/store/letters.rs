//! Dead letters: listing them, showing one, giving them up, and taking them through today's decoder in
//! the same way as a message that just came.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::commit::{CommitError, Failed, candidates, store_conflicts, store_events};
use super::connect::Store;
use super::decisions::decided;
use super::error::StoreError;
use super::merge::{self, Told};
use super::session::{Param, Session};
use super::{events, rows};
use crate::batch::{Message, Slice};
use crate::decode::{Format, decode};
use crate::event::{Decoded, Outcome};
use crate::position::{Offset, OffsetRange};
use crate::record::{Epoch, Record};

/// Letters taken through the decoder in one transaction.
const PIECE: i64 = 500;

/// Which letters of a topic; what is `None` does not narrow.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    pub topic: String,
    pub reason: Option<String>,
    /// (partition, offset)
    pub at: Option<(i32, i64)>,
    /// When the message was first rejected, half-open.
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

/// One dead letter, without its bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Letter {
    pub generation: i32,
    pub partition: i32,
    pub offset: i64,
    pub reason: String,
    pub detail: String,
    pub bytes: i64,
    pub attempts: i32,
    pub first_seen: String,
    pub last_seen: String,
    pub state: String,
}

/// A letter's bytes.
#[derive(Debug, Clone)]
pub struct Bytes {
    pub letter: Letter,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: String,
}

/// What a replay came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replayed {
    pub accepted: u64,
    pub still_rejected: u64,
}

macro_rules! selected {
    ($name:literal, $before:literal, $after:literal) => {
        concat!(
            "-- ",
            $name,
            "\n",
            $before,
            "
from gapless.rejected_messages d
join gapless.positions p on p.id = d.position_id
join gapless.sources s on s.id = p.source_id
where s.topic = $1 and ($2::text is null or d.reason = $2)
  and ($3::int4 is null or (p.partition_id = $3 and d.\"offset\" = $4))
  and ($5::timestamptz is null or d.first_seen >= $5) and ($6::timestamptz is null or d.first_seen < $6)",
            $after
        )
    };
}

const LIST: &str = selected!(
    "list_dead_letters",
    "select s.generation, p.partition_id, d.\"offset\", d.reason, d.detail, coalesce(length(d.payload), 0)::int8,
       d.attempts, to_char(d.first_seen at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
       to_char(d.last_seen at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), d.state,
       d.message_key, d.payload, d.headers::text",
    "\norder by s.generation, p.partition_id, d.\"offset\" limit $7"
);

const DISCARD: &str = selected!(
    "discard_dead_letters",
    "update gapless.rejected_messages t set state = 'discarded' from (select d.position_id, d.\"offset\"",
    " and d.state = 'open') as x where t.position_id = x.position_id and t.\"offset\" = x.\"offset\""
);

/// The letters of one position that come next; locked, so that two replays share the work.
const NEXT: &str = selected!(
    "next_dead_letters",
    "select d.position_id, p.partition_id, d.\"offset\", d.payload",
    " and d.state = 'open' and (d.position_id, d.\"offset\") > ($7, $8)
order by d.position_id, d.\"offset\" limit $9 for update of d"
);

const MOVE_OUTCOMES: &str = "-- move_outcomes
update gapless.outcomes o set state = u.state::gapless.handling_state, event_id = u.event_id, update_time = now()
from unnest($2::int8[], $3::text[], $4::int8[]) as u(\"offset\", state, event_id)
where o.position_id = $1 and o.\"offset\" = u.\"offset\" and o.state = 'rejected'";

const TRIED: &str = "-- tried_again
update gapless.rejected_messages d
set attempts = d.attempts + 1, last_seen = now(), state = u.state, reason = coalesce(u.reason, d.reason),
    detail = coalesce(u.detail, d.detail)
from unnest($2::int8[], $3::text[], $4::text[], $5::text[]) as u(\"offset\", state, reason, detail)
where d.position_id = $1 and d.\"offset\" = u.\"offset\"";

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.topic)?;
        self.at.map_or(Ok(()), |(partition, offset)| write!(f, "[{partition}] offset {offset}"))?;
        self.reason.as_ref().map_or(Ok(()), |reason| write!(f, ", rejected for {reason}"))?;
        self.since.map_or(Ok(()), |since| write!(f, ", since {since}"))?;
        self.until.map_or(Ok(()), |until| write!(f, ", until {until}"))
    }
}

impl Selector {
    /// `$1` to `$6` of the statements above.
    fn params(&self) -> [Param<'_>; 6] {
        // A position is two parameters of one condition.
        let at = self.at.as_ref();
        [
            (&self.topic, Type::TEXT),
            (&self.reason, Type::TEXT),
            at.map_or((&None::<i32> as _, Type::INT4), |(partition, _)| (partition as _, Type::INT4)),
            at.map_or((&None::<i64> as _, Type::INT8), |(_, offset)| (offset as _, Type::INT8)),
            (&self.since, Type::TIMESTAMPTZ),
            (&self.until, Type::TIMESTAMPTZ),
        ]
    }
}

impl Store {
    /// At most `limit` letters with their bytes, in offset order.
    pub async fn letters(&self, selector: &Selector, limit: i64) -> Result<Vec<Bytes>, StoreError> {
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        let mut params = selector.params().to_vec();
        params.push((&limit, Type::INT8));
        let rows = session.query(LIST, &params).await?;
        session.rollback().await?;
        Ok(rows.iter().map(letter).collect())
    }

    /// Gives letters up: they stay, but are not open any more. Returns how many.
    pub async fn discard_letters(&self, selector: &Selector, reason: &str) -> Result<u64, StoreError> {
        let mut session = self.session().await?;
        session.begin().await?;
        let discarded = session.execute(DISCARD, &selector.params()).await?;
        decided(&session, "dead-letters discard", &format!("{discarded} letters: {selector}"), reason).await?;
        session.commit().await.map_err(|failure| failure.into_error())?;
        Ok(discarded)
    }

    /// Takes open letters through the decoder again, piece by piece.
    pub async fn replay_letters(&self, format: &Format, selector: &Selector) -> Result<Replayed, CommitError> {
        let (mut total, mut after) = (Replayed::default(), (0_i32, -1_i64));
        loop {
            match self.replay_piece(format, selector, after).await? {
                None => return Ok(total),
                Some((last, replayed)) => {
                    after = last;
                    total.accepted += replayed.accepted;
                    total.still_rejected += replayed.still_rejected;
                }
            }
        }
    }

    async fn replay_piece(
        &self,
        format: &Format,
        selector: &Selector,
        after: (i32, i64),
    ) -> Result<Option<((i32, i64), Replayed)>, CommitError> {
        let mut refused: Vec<(usize, crate::event::Rejection)> = Vec::new();
        loop {
            let mut session = self.session().await?;
            session.begin().await?;
            let mut params = selector.params().to_vec();
            params.extend([(&after.0 as _, Type::INT4), (&after.1 as _, Type::INT8), (&PIECE as _, Type::INT8)]);
            let found = session.query(NEXT, &params).await?;
            let Some(first) = found.first() else { return Ok(None) };
            // One position at a time; the rest comes with the next piece.
            let position_id: i32 = first.get(0);
            let slice = slice(position_id, found.iter().take_while(|row| row.get::<_, i32>(0) == position_id));
            let mut messages: Vec<Message<'_>> = slice
                .records
                .iter()
                .map(|record| Message { slice: &slice, record, decoded: decode(format, record) })
                .collect();
            for (index, rejection) in &refused {
                messages[*index].decoded = Decoded::Rejected(rejection.clone());
            }
            let last = (position_id, slice.records.last().map_or(after.1, |r| r.offset.get()));
            match attempt(&mut session, format, &slice, &messages).await {
                Ok(replayed) => return Ok(Some((last, replayed))),
                Err(Failed::Error(error)) => return Err(error),
                Err(Failed::Refused(more)) => refused.extend(more),
            }
        }
    }
}

fn letter(row: &Row) -> Bytes {
    let letter = Letter {
        generation: row.get(0),
        partition: row.get(1),
        offset: row.get(2),
        reason: row.get(3),
        detail: row.get(4),
        bytes: row.get(5),
        attempts: row.get(6),
        first_seen: row.get(7),
        last_seen: row.get(8),
        state: row.get(9),
    };
    Bytes { letter, key: row.get(10), payload: row.get(11), headers: row.get(12) }
}

fn slice<'a>(position_id: i32, rows: impl Iterator<Item = &'a Row>) -> Slice {
    let record = |row: &Row| Record {
        partition: row.get(1),
        offset: Offset::new(row.get(2)).expect("no negative offset was ever stored"),
        epoch: Epoch::default(),
        timestamp_ms: None,
        leader_epoch: None,
        key: None,
        value: row.get(3),
        headers: Vec::new(),
    };
    let records: Vec<Record> = rows.map(record).collect();
    let (first, last) = (records.first().expect("at least one"), records.last().expect("at least one"));
    let range = OffsetRange::new(first.offset.at(), last.offset.next()).expect("in offset order");
    Slice { position_id, partition: first.partition, range, records, gap: None, reread: true }
}

async fn attempt(
    session: &mut Session,
    format: &Format,
    slice: &Slice,
    messages: &[Message<'_>],
) -> Result<Replayed, Failed> {
    let all = vec![false; messages.len()];
    let (first_events, collisions) = candidates(messages, &all, &format.identity);
    if !collisions.is_empty() {
        return Err(Failed::Refused(collisions));
    }
    let known = store_events(session, &format.identity, messages, &all, &first_events).await?;
    let effects = merge::decide(messages, &all, known);
    store_conflicts(session, messages, &effects.conflicts).await?;
    events::update_status(session, &effects).await?;
    let accepted: Vec<&Told> = effects.told.iter().filter(|t| t.outcome != Outcome::Rejected).collect();
    move_outcomes(session, slice.position_id, messages, &accepted).await?;
    tried(session, slice.position_id, messages).await?;
    session.commit().await.map_err(|failure| failure.into_error())?;
    let still_rejected = (messages.len() - accepted.len()) as u64;
    Ok(Replayed { accepted: accepted.len() as u64, still_rejected })
}

async fn move_outcomes(
    session: &Session,
    position_id: i32,
    messages: &[Message<'_>],
    accepted: &[&Told],
) -> Result<(), StoreError> {
    let offset: Vec<i64> = accepted.iter().map(|t| messages[t.message].record.offset.get()).collect();
    let state: Vec<&str> = accepted.iter().map(|t| t.outcome.name()).collect();
    let event: Vec<Option<i64>> = accepted.iter().map(|t| t.event_id).collect();
    let params = [
        (&position_id as _, Type::INT4),
        (&offset as _, Type::INT8_ARRAY),
        (&state as _, Type::TEXT_ARRAY),
        (&event as _, Type::INT8_ARRAY),
    ];
    session.write(MOVE_OUTCOMES, &params, accepted.len()).await
}

async fn tried(session: &Session, position_id: i32, messages: &[Message<'_>]) -> Result<(), StoreError> {
    let rejection = |m: &Message<'_>| match &m.decoded {
        Decoded::Rejected(rejection) => Some((rejection.reason.name(), rows::storable(&rejection.detail))),
        Decoded::Events(_) | Decoded::Nothing => None,
    };
    let rejections: Vec<_> = messages.iter().map(rejection).collect();
    let offset: Vec<i64> = messages.iter().map(|m| m.record.offset.get()).collect();
    let state: Vec<&str> = rejections.iter().map(|r| if r.is_some() { "open" } else { "replayed" }).collect();
    let reason: Vec<Option<&str>> = rejections.iter().map(|r| r.as_ref().map(|(reason, _)| *reason)).collect();
    let detail: Vec<Option<&str>> = rejections.iter().map(|r| r.as_ref().map(|(_, detail)| detail.as_str())).collect();
    let params = [
        (&position_id as _, Type::INT4),
        (&offset as _, Type::INT8_ARRAY),
        (&state as _, Type::TEXT_ARRAY),
        (&reason as _, Type::TEXT_ARRAY),
        (&detail as _, Type::TEXT_ARRAY),
    ];
    session.write(TRIED, &params, messages.len()).await
}
