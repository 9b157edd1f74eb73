//! What the ledger holds of some messages, read beside them and compared: by `gapless verify`, in its snapshot. Where Kafka
//! no longer has the messages, events are decoded again from their own text.

use std::collections::{BTreeMap, HashSet};

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::consistency::{Inspector, PartitionSnapshot};
use super::contents::{self, Fields, Judged, Relation, Rows, StoredRows, Suspect};
use crate::formats::{Format, decode};
use crate::ledger::error::LedgerError;
use crate::ledger::format_history::{Candidates, History};
use crate::model::batch::Slice;
use crate::model::decoded_batch::Message;
use crate::model::event::{ContractEvent, Decoded, Status};
use crate::model::offset::{Offset, OffsetRange};
use crate::model::record::{AssignmentEpoch, Digest, Record};
use crate::postgres::session::Param;

/// Rows with their text that are asked for at once; they are taken one by one as they come.
const TEXTS_PER_STATEMENT: i64 = 5_000;
/// Outcomes that are looked through at once.
const MESSAGES_PER_STATEMENT: i64 = 50_000;

/// How a piece of a log differs from the ledger.
#[derive(Debug, Default)]
pub struct Compared {
    /// Kafka has a message where the ledger has no outcome.
    pub not_recorded: Vec<Offset>,
    /// The message is not the one that was recorded.
    pub differs: Vec<Offset>,
    /// An outcome without a message.
    pub no_message: Vec<Offset>,
    /// An event with other content than the one of its identity is kept nowhere.
    pub conflict_missing: Vec<Offset>,
    /// Rows that do not hold what the message says.
    pub altered: Vec<(Offset, Fields)>,
    pub suspects: Vec<Suspect>,
}

macro_rules! event_columns {
    ($id:literal) => {
        concat!(
            "select ",
            $id,
            ", \"offset\", block_number, event_capture_time, position_id, event_no, log_index, status::text, identity,
       content_digest, txn, event_type, block_hash, address, event_info::text, event_raw"
        )
    };
}

const OUTCOMES: &str = "-- outcomes_to_compare
select \"offset\", event_id, message_time, position_id, state::text, payload_digest from gapless.outcomes
where position_id = $1 and \"offset\" >= $2 and \"offset\" < $3 order by \"offset\"";

const EVENTS: &str = concat!(
    "-- events_to_compare\n",
    event_columns!("id"),
    "\nfrom gapless.stored_events where position_id = $1 and \"offset\" >= $2 and \"offset\" < $3 order by \"offset\""
);

const CONFLICTS: &str = concat!(
    "-- conflicts_to_compare\n",
    event_columns!("event_id"),
    "\nfrom gapless.conflicting_events where position_id = $1 and \"offset\" >= $2 and \"offset\" < $3 order by \"offset\""
);

const LETTERS: &str = "-- dead_letters_to_compare
select message_key, payload, headers::text, message_time, reason, \"offset\", detail from gapless.rejected_messages
where position_id = $1 and \"offset\" >= $2 and \"offset\" < $3 order by \"offset\"";

const WINNERS: &str = "-- winners_to_compare
select identity, id, content_digest from gapless.stored_events where identity = any($1::uuid[])";

const NAMED: &str = "-- named_events
select id, identity from gapless.stored_events where id = any($1::int8[])";

const KEPT_CONFLICTS: &str = "-- kept_conflicts
select identity, content_digest from gapless.conflicting_events where identity = any($1::uuid[])";

/// With what its outcome has as digest of the message: zeros where it has none, null where there is no outcome.
macro_rules! texts {
    ($name:literal, $id:literal, $table:literal) => {
        concat!(
            "-- ",
            $name,
            "\n",
            event_columns!($id),
            ",
       (select coalesce(o.payload_digest, '00000000-0000-0000-0000-000000000000'::uuid) from gapless.outcomes o
         where o.position_id = x.position_id and o.\"offset\" = x.\"offset\")
from gapless.",
            $table,
            " x where position_id = $1 and \"offset\" >= $2 and \"offset\" < $3
order by \"offset\" fetch first $4 rows with ties"
        )
    };
}

const EVENT_TEXTS: &str = texts!("texts_of_events", "id", "stored_events");
const CONFLICT_TEXTS: &str = texts!("texts_of_conflicts", "event_id", "conflicting_events");

const LETTER_BYTES: &str = "-- bytes_of_dead_letters
select \"offset\", payload,
       (select coalesce(o.payload_digest, '00000000-0000-0000-0000-000000000000'::uuid) from gapless.outcomes o
         where o.position_id = d.position_id and o.\"offset\" = d.\"offset\")
from gapless.rejected_messages d where position_id = $1 and \"offset\" >= $2 and \"offset\" < $3
order by \"offset\" fetch first $4 rows with ties";

const POSITIONS: &str = "-- positions_of_ledger
select id from gapless.positions order by id";

/// Which of these events other messages removed or contained again, by a page of outcomes; and where the page ends. An outcome
/// with an event or a conflict of its own is left out: it says nothing about the row of another message.
const OTHERS: &str = "-- outcomes_of_suspects
select max(\"offset\"), count(*),
       coalesce(array_agg(event_id) filter (where state = 'removed' and event_id = any($3::int8[]) and not exists (
           select from gapless.stored_events e where e.position_id = $1 and e.\"offset\" = page.\"offset\" and e.event_no = 0) and not exists (
           select from gapless.conflicting_events c where c.position_id = $1 and c.\"offset\" = page.\"offset\" and c.event_no = 0)), '{}'),
       coalesce(array_agg(event_id) filter (where state = 'processed' and event_id = any($3::int8[]) and not exists (
           select from gapless.conflicting_events c where c.position_id = $1 and c.\"offset\" = page.\"offset\" and c.event_no = 0)), '{}')
from (select \"offset\", state, event_id from gapless.outcomes where position_id = $1 and \"offset\" >= $2
      order by \"offset\" fetch first $4 rows with ties) as page";

impl Inspector {
    pub async fn history(&self, p: &PartitionSnapshot) -> Result<History, LedgerError> {
        History::read(&self.session, p.position_id).await
    }

    /// Compares a piece of a partition's log with the ledger: `records` are all messages that Kafka has of the range.
    pub async fn compare(
        &self,
        p: &PartitionSnapshot,
        range: OffsetRange,
        records: Vec<Record>,
        history: &History,
    ) -> Result<Compared, LedgerError> {
        let (from, to) = (range.from().get(), range.to().get());
        let params = [(&p.position_id as _, Type::INT4), (&from as _, Type::INT8), (&to as _, Type::INT8)];
        let outcomes = self.session.query(OUTCOMES, &params).await?;
        let events = self.session.query(EVENTS, &params).await?;
        let conflicts = self.session.query(CONFLICTS, &params).await?;
        let letters = self.session.query(LETTERS, &params).await?;
        let mut rows: BTreeMap<Offset, Rows<'_>> = BTreeMap::new();
        outcomes.iter().for_each(|row| rows.entry(at(row, 0)).or_default().outcome = Some(row));
        events.iter().for_each(|row| rows.entry(at(row, 1)).or_default().events.push(row));
        conflicts.iter().for_each(|row| rows.entry(at(row, 1)).or_default().conflicts.push(row));
        letters.iter().for_each(|row| rows.entry(at(row, 5)).or_default().letter = Some(row));

        let mut compared = Compared::default();
        let slice =
            Slice { position_id: p.position_id, partition: p.partition, range, records, gap: None, reread: true };
        let mut readings = Vec::new();
        for record in &slice.records {
            let recorded = rows.remove(&record.offset).filter(|rows| rows.outcome.is_some());
            let Some(rows) = recorded else {
                compared.not_recorded.push(record.offset);
                continue;
            };
            if digest(&rows) != record.payload_digest() {
                compared.differs.push(record.offset);
                continue;
            }
            let candidates = history.at(record.offset);
            let decoded = candidates.formats.iter().map(|format| decode(format, record)).collect();
            readings.push(Reading { record, rows, candidates, decoded });
        }
        let held = self.held(&readings).await?;
        for reading in readings {
            let offset = reading.record.offset;
            let judged = reading.judge(&slice, &held);
            compared.note(offset, judged);
        }
        for (offset, rows) in rows.iter().filter(|(_, rows)| rows.outcome.is_some()) {
            compared.no_message.push(*offset);
            for (relation, row) in occurrences(rows) {
                compared.note(*offset, by_text(&slice, relation, row, Some(digest(rows)), history));
            }
        }
        Ok(compared)
    }

    /// Looks up what messages name without having brought it.
    async fn held(&self, readings: &[Reading<'_>]) -> Result<StoredRows, LedgerError> {
        let (mut identities, mut named) = (HashSet::<Digest>::new(), HashSet::<i64>::new());
        for reading in readings {
            for decoded in &reading.decoded {
                let (events, event_id) = contents::needed_rows(&reading.rows, decoded);
                identities.extend(events.into_iter().map(|event: &ContractEvent<'_>| event.identity));
                named.extend(event_id);
            }
        }
        let mut held = StoredRows::default();
        if !identities.is_empty() {
            let identities: Vec<Digest> = identities.into_iter().collect();
            let params: [Param<'_>; 1] = [(&identities, Type::UUID_ARRAY)];
            let rows = self.session.query(WINNERS, &params).await?;
            held.winners = rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
            let rows = self.session.query(KEPT_CONFLICTS, &params).await?;
            held.conflicts = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        }
        if !named.is_empty() {
            let named: Vec<i64> = named.into_iter().collect();
            let rows = self.session.query(NAMED, &[(&named, Type::INT8_ARRAY)]).await?;
            held.identities = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        }
        Ok(held)
    }

    /// Compares rows of messages that Kafka no longer has with what their own text says, and its digest with that of the
    /// message. One row at a time is in memory; `found` is called with what differs of it.
    pub async fn check_texts(
        &self,
        p: &PartitionSnapshot,
        range: OffsetRange,
        history: &History,
        mut found: impl FnMut(Offset, Fields, Vec<Suspect>),
    ) -> Result<(), LedgerError> {
        let (partition, position_id) = (p.partition, p.position_id);
        let slice = Slice { position_id, partition, range, records: Vec::new(), gap: None, reread: true };
        for (relation, sql) in [(Relation::Events, EVENT_TEXTS), (Relation::Conflicts, CONFLICT_TEXTS)] {
            self.each_page(p, range, sql, |row| {
                let recorded: Option<Digest> = row.get(16);
                let judged = by_text(&slice, relation, row, recorded.map(Some), history);
                found(at(row, 1), judged.fields, judged.suspects);
                at(row, 1)
            })
            .await?;
        }
        self.each_page(p, range, LETTER_BYTES, |row| {
            let (payload, recorded): (Option<&[u8]>, Option<Digest>) = (row.get(1), row.get(2));
            let is_other = recorded.is_some_and(|recorded| payload.map_or(NO_DIGEST, Digest::of) != recorded);
            let fields = if is_other { contents::other_payload() } else { Fields::default() };
            found(at(row, 0), fields, Vec::new());
            at(row, 0)
        })
        .await
    }

    /// All rows of a range, page by page; `take` returns a row's offset.
    async fn each_page(
        &self,
        p: &PartitionSnapshot,
        range: OffsetRange,
        sql: &'static str,
        mut take: impl FnMut(&Row) -> Offset,
    ) -> Result<(), LedgerError> {
        let (mut from, to) = (range.from(), range.to().get());
        loop {
            let begin = from.get();
            let params = [
                (&p.position_id as _, Type::INT4),
                (&begin as _, Type::INT8),
                (&to as _, Type::INT8),
                (&TEXTS_PER_STATEMENT as _, Type::INT8),
            ];
            let mut count = 0;
            self.session
                .each(sql, &params, |row| {
                    from = take(row).next();
                    count += 1;
                })
                .await?;
            if count < TEXTS_PER_STATEMENT {
                return Ok(());
            }
        }
    }

    /// Occurrences whose status no other message explains: none took back what is `removed`, or brought again what is
    /// not. (Whether it came in the right order is not looked at.)
    pub async fn unexplained(&self, suspects: Vec<Suspect>) -> Result<Vec<Suspect>, LedgerError> {
        if suspects.is_empty() {
            return Ok(suspects);
        }
        let ids: Vec<i64> = suspects.iter().map(|s| s.winner_id).collect::<HashSet<_>>().into_iter().collect();
        let (mut taken_back, mut brought) = (HashSet::<i64>::new(), HashSet::<i64>::new());
        for position in self.session.query(POSITIONS, &[]).await? {
            let position_id: i32 = position.get(0);
            let mut from = 0_i64;
            loop {
                let params = [
                    (&position_id as _, Type::INT4),
                    (&from as _, Type::INT8),
                    (&ids as _, Type::INT8_ARRAY),
                    (&MESSAGES_PER_STATEMENT as _, Type::INT8),
                ];
                let page = self.session.one(OTHERS, &params).await?;
                let (last, count): (Option<i64>, i64) = (page.get(0), page.get(1));
                taken_back.extend(page.get::<_, Vec<i64>>(2));
                brought.extend(page.get::<_, Vec<i64>>(3));
                let Some(last) = last.filter(|_| count >= MESSAGES_PER_STATEMENT) else { break };
                from = Offset::new(last).map_or(last, |last| last.next().get());
            }
        }
        let is_explained = |s: &Suspect| match s.own {
            Status::Confirmed => taken_back.contains(&s.winner_id),
            Status::Removed => brought.contains(&s.winner_id),
        };
        Ok(suspects.into_iter().filter(|s| !is_explained(s)).collect())
    }
}

/// As the statements have it where a message has no digest.
const NO_DIGEST: Digest = Digest([0; 16]);

/// One message, as each of the formats reads it that may have written its rows.
struct Reading<'a> {
    record: &'a Record,
    rows: Rows<'a>,
    candidates: Candidates<'a>,
    decoded: Vec<Decoded<'a>>,
}

impl Reading<'_> {
    /// As the format reads it that its rows agree with; where they agree with none, as the likeliest, if all are known.
    fn judge(self, slice: &Slice, held: &StoredRows) -> Judged {
        let (record, payload_digest) = (self.record, self.record.payload_digest());
        let mut likeliest = None;
        for decoded in self.decoded {
            let message = Message { slice, record, decoded, payload_digest };
            let judged = contents::judge(&message, &self.rows, held, self.candidates.is_this_program);
            if judged.fields.is_empty() {
                return judged;
            }
            likeliest.get_or_insert(judged);
        }
        likeliest.filter(|_| !self.candidates.has_unknown).unwrap_or_else(of_unknown_format)
    }
}

impl Compared {
    fn note(&mut self, offset: Offset, judged: Judged) {
        let Judged { fields, suspects, lacks_conflict } = judged;
        if !fields.is_empty() {
            match self.altered.last_mut() {
                Some((last, before)) if *last == offset => before.extend(fields),
                _ => self.altered.push((offset, fields)),
            }
        }
        if lacks_conflict {
            self.conflict_missing.push(offset);
        }
        self.suspects.extend(suspects);
    }
}

fn at(row: &Row, column: usize) -> Offset {
    Offset::new(row.get(column)).expect("no negative offset was ever stored")
}

fn digest(rows: &Rows<'_>) -> Option<Digest> {
    rows.outcome.and_then(|row| row.get(5))
}

fn occurrences<'a>(rows: &'a Rows<'_>) -> impl Iterator<Item = (Relation, &'a Row)> {
    let events = rows.events.iter().map(|row| (Relation::Events, *row));
    events.chain(rows.conflicts.iter().map(|row| (Relation::Conflicts, *row)))
}

/// `recorded`: the digest of the message in its outcome, if there is an outcome.
fn by_text(
    slice: &Slice,
    relation: Relation,
    row: &Row,
    recorded: Option<Option<Digest>>,
    history: &History,
) -> Judged {
    let Some(text) = contents::text(row) else {
        return Judged { fields: contents::no_text(relation), ..Judged::default() };
    };
    let record = from_text(slice, at(row, 1), text);
    let candidates = history.at(record.offset);
    let read = |format: &Format| {
        let payload_digest = record.payload_digest();
        let message = Message { slice, record: &record, decoded: decode(format, &record), payload_digest };
        contents::judge_text(&message, relation, row, recorded.unwrap_or(payload_digest))
    };
    let mut judged: Vec<Judged> = candidates.formats.iter().map(|format| read(format)).collect();
    match judged.iter().position(|judged| judged.fields.is_empty()) {
        Some(agreeing) => judged.swap_remove(agreeing),
        None if candidates.has_unknown => of_unknown_format(),
        None => judged.into_iter().next().unwrap_or_default(),
    }
}

fn of_unknown_format() -> Judged {
    Judged { fields: contents::unknown_format(), ..Judged::default() }
}

fn from_text(slice: &Slice, offset: Offset, text: Vec<u8>) -> Record {
    Record {
        partition: slice.partition,
        offset,
        epoch: AssignmentEpoch::default(),
        timestamp_ms: None,
        leader_epoch: None,
        key: None,
        value: Some(text),
        headers: Vec::new(),
    }
}
