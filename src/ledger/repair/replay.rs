//! The replay of dead letters: they are decoded with the current format and written like new messages, one chunk per
//! transaction.

use crate::formats::decode_slice;
use std::collections::HashMap;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::config::BatchLimits;
use crate::formats::Format;
use crate::ledger::connect::LedgerStore;
use crate::ledger::decision::Decision;
use crate::ledger::error::LedgerError;
use crate::ledger::format_history::Decoding;
use crate::ledger::read::dead_letters::{Selector, selected};
use crate::ledger::write::connection::WriterConnection;
use crate::ledger::write::effects::{self, MessageOutcome};
use crate::ledger::write::event_paths::{candidates, store_conflicts, store_events};
use crate::ledger::write::late_changes::LateChanges;
use crate::ledger::write::writer::{CommitError, Failed};
use crate::ledger::write::{event_rows, outcome_rows};
use crate::model::batch::Slice;
use crate::model::decoded_batch::Message;
use crate::model::event::{Decoded, Outcome, Rejection};
use crate::model::event_numbers::EventNumbers;
use crate::model::offset::{Offset, OffsetRange};
use crate::model::record::{AssignmentEpoch, Record};
use crate::model::topic::{Topic, TopicPartition};
use crate::model::write_report::WriteStrategy;
use crate::observe::progress::OffsetProgress;
use crate::postgres::session::Session;

/// The result of a replay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replayed {
    pub accepted: u64,
    pub still_rejected: u64,
    /// Partition and offset of dead letters that were not replayed: their outcome is missing or is not `rejected`.
    pub skipped: Vec<(TopicPartition, Offset)>,
}

/// The next dead letters within the limits of a batch. The first one is selected even if it exceeds them.
const NEXT: &str = selected!(
    "next_dead_letters",
    "select position_id, partition_id, \"offset\" from (
    select k.*, sum(bytes) over w as total, row_number() over w as n from (
        select d.position_id, p.partition_id, d.\"offset\", coalesce(length(d.payload), 0)::int8 as bytes",
    " and d.state = 'open' and (d.position_id, d.\"offset\") > ($7, $8)
        order by d.position_id, d.\"offset\" limit $9
    ) as k window w as (order by position_id, \"offset\")
) as x where total <= $10 or n = 1 order by position_id, \"offset\""
);

/// Selects the dead letters that are still open (another replay may have taken some), and whether their outcome is
/// `rejected`.
const LOCK_DEAD_LETTERS: &str = "-- hold_dead_letters
select d.\"offset\", d.payload, coalesce(o.state = 'rejected', false)
from gapless.rejected_messages d
left join gapless.outcomes o on o.position_id = d.position_id and o.\"offset\" = d.\"offset\"
where d.position_id = $1 and d.\"offset\" = any($2::int8[]) and d.state = 'open'
order by d.\"offset\" for update of d";

const MOVE_OUTCOMES: &str = "-- move_outcomes
update gapless.outcomes o set state = u.state::gapless.handling_state, event_id = u.event_id, update_time = now(),
    inserted = u.inserted::int4multirange
from unnest($2::int8[], $3::text[], $4::int8[], $5::text[]) as u(\"offset\", state, event_id, inserted)
where o.position_id = $1 and o.\"offset\" = u.\"offset\" and o.state = 'rejected'";

const TRIED: &str = "-- tried_again
update gapless.rejected_messages d
set attempts = d.attempts + 1, last_seen = now(), state = u.state, reason = coalesce(u.reason, d.reason),
    detail = coalesce(u.detail, d.detail)
from unnest($2::int8[], $3::text[], $4::text[], $5::text[]) as u(\"offset\", state, reason, detail)
where d.position_id = $1 and d.\"offset\" = u.\"offset\"";

impl LedgerStore {
    /// Decodes and writes open dead letters again. `bar` advances by one per dead letter.
    pub async fn replay_dead_letters(
        &self,
        format: &Format,
        selector: &Selector,
        limits: BatchLimits,
        reason: Option<&str>,
        bar: &OffsetProgress,
    ) -> Result<Replayed, CommitError> {
        let (mut total, mut after) = (Replayed::default(), (0_i32, -1_i64));
        while let Some((last, replayed)) = self.replay_chunk(format, selector, limits, reason, after).await? {
            after = last;
            bar.advance(replayed.accepted + replayed.still_rejected + replayed.skipped.len() as u64);
            total.accepted += replayed.accepted;
            total.still_rejected += replayed.still_rejected;
            total.skipped.extend(replayed.skipped);
        }
        Ok(total)
    }

    async fn replay_chunk(
        &self,
        format: &Format,
        selector: &Selector,
        limits: BatchLimits,
        reason: Option<&str>,
        after: (i32, i64),
    ) -> Result<Option<((i32, i64), Replayed)>, CommitError> {
        let count = i64::try_from(limits.max_messages).unwrap_or(i64::MAX);
        let bytes = i64::try_from(limits.max_bytes).unwrap_or(i64::MAX);
        // The key is position id and offset, because each attempt selects the dead letters again.
        let mut refused: HashMap<(i32, Offset), Rejection> = HashMap::new();
        loop {
            let mut connection = self.writer_connection().await?;
            let session = &mut connection.session;
            session.begin_piece().await?;
            let mut params = selector.params().to_vec();
            params.extend([(&after.0 as _, Type::INT4), (&after.1 as _, Type::INT8)]);
            params.extend([(&count as _, Type::INT8), (&bytes as _, Type::INT8)]);
            let next = session.query(NEXT, &params).await?;
            let Some(first) = next.first() else { return Ok(None) };
            // A chunk contains one position only; the next chunk contains the others.
            let position_id: i32 = first.get(0);
            let partition = Topic::from(selector.topic.as_str()).partition(first.get(1));
            let offsets: Vec<i64> =
                next.iter().take_while(|row| row.get::<_, i32>(0) == position_id).map(|row| row.get(2)).collect();
            let last = (position_id, offsets.last().copied().unwrap_or(after.1));
            let locked =
                session.query(LOCK_DEAD_LETTERS, &[(&position_id, Type::INT4), (&offsets, Type::INT8_ARRAY)]).await?;
            let (ours, others): (Vec<&Row>, Vec<&Row>) = locked.iter().partition(|row| row.get(2));
            let skipped = others.into_iter().map(|row| (partition.clone(), offset(row))).collect();
            let Some(slice) = slice(position_id, partition, &ours) else {
                session.rollback().await?;
                return Ok(Some((last, Replayed { skipped, ..Replayed::default() })));
            };
            let mut messages: Vec<Message<'_>> = decode_slice(format, &slice).collect();
            for m in &mut messages {
                if let Some(rejection) = refused.get(&(position_id, m.record.offset)) {
                    m.decoded = Decoded::Rejected(rejection.clone());
                }
            }
            let subject = selector.to_string();
            let (arguments, rows_changed) = (selector.arguments(), messages.len() as u64);
            let decision = Decision { verb: "replay", subject: &subject, reason, arguments, rows_changed };
            match attempt(&mut connection, format, &slice, &messages, decision).await {
                Ok((accepted, still_rejected)) => {
                    return Ok(Some((last, Replayed { accepted, still_rejected, skipped })));
                }
                Err(Failed::Error(error)) => return Err(error),
                Err(Failed::FallBack(..)) => unreachable!("write strategy Merge never falls back"),
                Err(Failed::Refused(more)) => {
                    let key = |index: usize| (position_id, messages[index].record.offset);
                    let more: Vec<_> = more.into_iter().map(|(index, rejection)| (key(index), rejection)).collect();
                    // Of several events of a message, the first reason is kept.
                    for (key, rejection) in more {
                        refused.entry(key).or_insert(rejection);
                    }
                }
            }
        }
    }
}

fn offset(row: &Row) -> Offset {
    Offset::new(row.get(0)).expect("no negative offset was ever stored")
}

fn slice(position_id: i32, partition: TopicPartition, rows: &[&Row]) -> Option<Slice> {
    let record = |row: &&Row| Record {
        partition: partition.partition,
        offset: offset(row),
        epoch: AssignmentEpoch::default(),
        timestamp_ms: None,
        leader_epoch: None,
        key: None,
        value: row.get(1),
        headers: Vec::new(),
    };
    let records: Vec<Record> = rows.iter().map(record).collect();
    let range = OffsetRange::new(records.first()?.offset.at(), records.last()?.offset.next())?;
    Some(Slice { position_id, partition, range, records, gap: None, reread: true })
}

async fn attempt(
    connection: &mut WriterConnection,
    format: &Format,
    slice: &Slice,
    messages: &[Message<'_>],
    decision: Decision<'_>,
) -> Result<(u64, u64), Failed> {
    let all = vec![false; messages.len()];
    let (first_events, collisions) = candidates(messages, &all, &format.identity);
    if !collisions.is_empty() {
        return Err(Failed::Refused(collisions));
    }
    let known = store_events(connection, WriteStrategy::Merge, &format.identity, messages, &all, &first_events).await?;
    let effects = effects::decide(messages, &all, known);
    store_conflicts(connection, messages, &effects.conflicts).await?;
    let session = &mut connection.session;
    let mut late = LateChanges::default();
    event_rows::update_status(session, &effects, &mut late).await?;
    let accepted: Vec<&MessageOutcome> = effects.outcomes.iter().filter(|t| t.outcome != Outcome::Rejected).collect();
    move_outcomes(session, slice.position_id, messages, &accepted).await?;
    tried(session, slice.position_id, messages).await?;
    Decoding::of(format).keep_range(session, slice.position_id, slice.range).await?;
    late.extend(accepted.iter().map(|outcome| (slice.position_id, messages[outcome.message].record.offset)));
    // The dead letters, and the outcomes and events of the accepted ones.
    let rows_changed = decision.rows_changed + accepted.len() as u64 + effects.events_stored;
    Decision { rows_changed, ..decision }.record(session).await?;
    late.note(session, &[]).await?;
    session.commit().await.map_err(|failure| failure.into_error())?;
    let still_rejected = (messages.len() - accepted.len()) as u64;
    Ok((accepted.len() as u64, still_rejected))
}

async fn move_outcomes(
    session: &Session,
    position_id: i32,
    messages: &[Message<'_>],
    accepted: &[&MessageOutcome],
) -> Result<(), LedgerError> {
    let offset: Vec<i64> = accepted.iter().map(|t| messages[t.message].record.offset.get()).collect();
    let state: Vec<&str> = accepted.iter().map(|t| t.outcome.name()).collect();
    let event: Vec<Option<i64>> = accepted.iter().map(|t| t.event_id).collect();
    let inserted: Vec<Option<String>> =
        accepted.iter().map(|t| t.inserted.as_ref().map(EventNumbers::to_multirange)).collect();
    let params = [
        (&position_id as _, Type::INT4),
        (&offset as _, Type::INT8_ARRAY),
        (&state as _, Type::TEXT_ARRAY),
        (&event as _, Type::INT8_ARRAY),
        (&inserted as _, Type::TEXT_ARRAY),
    ];
    Ok(session.write(MOVE_OUTCOMES, &params, accepted.len()).await?)
}

async fn tried(session: &Session, position_id: i32, messages: &[Message<'_>]) -> Result<(), LedgerError> {
    let rejection = |m: &Message<'_>| match &m.decoded {
        Decoded::Rejected(rejection) => Some((rejection.reason.name(), outcome_rows::storable(&rejection.detail))),
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
    Ok(session.write(TRIED, &params, messages.len()).await?)
}
