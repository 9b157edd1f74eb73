//! Reads the rows of messages and compares them with the messages, for `gapless verify` and in its snapshot. If Kafka
//! no longer has a message, its events are decoded again from their stored text.

use std::collections::{BTreeMap, HashSet};

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::consistency::{Inspector, PartitionSnapshot};
use super::contents::{self, Fields, Relation, RowDifferences, Rows, StoredRows, Suspect};
use crate::formats::{Format, decode};
use crate::ledger::error::LedgerError;
use crate::ledger::format_history::{Candidates, History};
use crate::model::batch::Slice;
use crate::model::decoded_batch::Message;
use crate::model::event::{ContractEvent, Decoded, Status};
use crate::model::offset::{Offset, OffsetRange};
use crate::model::record::{AssignmentEpoch, Digest, Record};
use crate::postgres::session::Param;

/// Rows with their text that one statement returns. They are processed one by one as they arrive.
const TEXTS_PER_STATEMENT: i64 = 5_000;
/// Outcomes that one statement searches.
const MESSAGES_PER_STATEMENT: i64 = 50_000;

/// The differences between a range of a log and the ledger.
#[derive(Debug, Default)]
pub struct Compared {
    /// Kafka has a message where the ledger has no outcome.
    pub not_recorded: Vec<Offset>,
    /// The message is not the one that was recorded.
    pub differs: Vec<Offset>,
    /// The ledger has an outcome where Kafka has no message.
    pub no_message: Vec<Offset>,
    /// An event has other content than the existing event of its identity, and no conflict was recorded.
    pub conflict_missing: Vec<Offset>,
    /// Fields that differ from the message.
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
select \"offset\", event_id, message_time, position_id, state::text, payload_digest, inserted::text from gapless.outcomes
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

const DEAD_LETTERS: &str = "-- dead_letters_to_compare
select message_key, payload, headers::text, message_time, reason, \"offset\", detail from gapless.rejected_messages
where position_id = $1 and \"offset\" >= $2 and \"offset\" < $3 order by \"offset\"";

const EXISTING_EVENTS: &str = "-- existing_events_to_compare
select identity, id, content_digest from gapless.stored_events where identity = any($1::uuid[])";

const REFERENCED: &str = "-- referenced_events
select id, identity from gapless.stored_events where id = any($1::int8[])";

const KEPT_CONFLICTS: &str = "-- kept_conflicts
select identity, content_digest from gapless.conflicting_events where identity = any($1::uuid[])";

/// Rows with the message's digest in their outcome: zeros if the outcome has none, null if there is no outcome.
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

const DEAD_LETTER_BYTES: &str = "-- bytes_of_dead_letters
select \"offset\", payload,
       (select coalesce(o.payload_digest, '00000000-0000-0000-0000-000000000000'::uuid) from gapless.outcomes o
         where o.position_id = d.position_id and o.\"offset\" = d.\"offset\")
from gapless.rejected_messages d where position_id = $1 and \"offset\" >= $2 and \"offset\" < $3
order by \"offset\" fetch first $4 rows with ties";

const POSITIONS: &str = "-- positions_of_ledger
select id from gapless.positions order by id";

/// The last offset and the size of a page of outcomes, and which of the events `$3` other messages of the page removed
/// or contained again. An outcome whose message has an event or a conflict of its own is left out, because it has no
/// effect on the row of another message.
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

    /// Compares a range of a partition's log with the ledger. `records` are all messages that Kafka has of the range.
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
        let dead_letters = self.session.query(DEAD_LETTERS, &params).await?;
        let mut rows: BTreeMap<Offset, Rows<'_>> = BTreeMap::new();
        outcomes.iter().for_each(|row| rows.entry(at(row, 0)).or_default().outcome = Some(row));
        events.iter().for_each(|row| rows.entry(at(row, 1)).or_default().events.push(row));
        conflicts.iter().for_each(|row| rows.entry(at(row, 1)).or_default().conflicts.push(row));
        dead_letters.iter().for_each(|row| rows.entry(at(row, 5)).or_default().dead_letter = Some(row));

        let mut compared = Compared::default();
        let (position_id, partition) = (p.position_id, p.partition.clone());
        let slice = Slice { position_id, partition, range, records, gap: None, reread: true };
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
        let existing = self.existing_rows(&readings).await?;
        for reading in readings {
            let offset = reading.record.offset;
            let differences = reading.compare(&slice, &existing);
            compared.note(offset, differences);
        }
        for (offset, rows) in rows.iter().filter(|(_, rows)| rows.outcome.is_some()) {
            compared.no_message.push(*offset);
            for (relation, row) in occurrences(rows) {
                compared.note(*offset, by_text(&slice, relation, row, Some(digest(rows)), history));
            }
        }
        Ok(compared)
    }

    /// Looks up the events and conflicts that messages reference without having inserted them.
    async fn existing_rows(&self, readings: &[Reading<'_>]) -> Result<StoredRows, LedgerError> {
        let (mut identities, mut referenced) = (HashSet::<Digest>::new(), HashSet::<i64>::new());
        for reading in readings {
            for decoded in &reading.decoded {
                let (events, event_id) = contents::needed_rows(&reading.rows, decoded);
                identities.extend(events.into_iter().map(|event: &ContractEvent<'_>| event.identity));
                referenced.extend(event_id);
            }
        }
        let mut existing = StoredRows::default();
        if !identities.is_empty() {
            let identities: Vec<Digest> = identities.into_iter().collect();
            let params: [Param<'_>; 1] = [(&identities, Type::UUID_ARRAY)];
            let rows = self.session.query(EXISTING_EVENTS, &params).await?;
            existing.events = rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
            let rows = self.session.query(KEPT_CONFLICTS, &params).await?;
            existing.conflicts = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        }
        if !referenced.is_empty() {
            let referenced: Vec<i64> = referenced.into_iter().collect();
            let rows = self.session.query(REFERENCED, &[(&referenced, Type::INT8_ARRAY)]).await?;
            existing.identities = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        }
        Ok(existing)
    }

    /// Compares the rows of messages that Kafka no longer has with their stored text, and the text's digest with the
    /// message's. One row at a time is in memory; `found` is called with the row's differences.
    pub async fn check_texts(
        &self,
        p: &PartitionSnapshot,
        range: OffsetRange,
        history: &History,
        mut found: impl FnMut(Offset, Fields, Vec<Suspect>),
    ) -> Result<(), LedgerError> {
        let (partition, position_id) = (p.partition.clone(), p.position_id);
        let slice = Slice { position_id, partition, range, records: Vec::new(), gap: None, reread: true };
        for (relation, sql) in [(Relation::Events, EVENT_TEXTS), (Relation::Conflicts, CONFLICT_TEXTS)] {
            self.each_page(p, range, sql, |row| {
                let recorded: Option<Digest> = row.get(16);
                let differences = by_text(&slice, relation, row, recorded.map(Some), history);
                found(at(row, 1), differences.fields, differences.suspects);
                at(row, 1)
            })
            .await?;
        }
        self.each_page(p, range, DEAD_LETTER_BYTES, |row| {
            let (payload, recorded): (Option<&[u8]>, Option<Digest>) = (row.get(1), row.get(2));
            let is_other = recorded.is_some_and(|recorded| payload.map_or(NO_DIGEST, Digest::of) != recorded);
            let fields = if is_other { contents::other_payload() } else { Fields::default() };
            found(at(row, 0), fields, Vec::new());
            at(row, 0)
        })
        .await
    }

    /// Passes all rows of a range to `take`, page by page; `take` returns the row's offset.
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

    /// Suspects whose status no other message explains, in a ledger of messages with one event: an outcome does not say
    /// which events of several its message removed. No other message removed the `removed` ones, and none added the
    /// others again. The order of the messages is not checked here.
    pub async fn unexplained(&self, suspects: Vec<Suspect>) -> Result<Vec<Suspect>, LedgerError> {
        if suspects.is_empty() || self.has_several_events_a_message().await? {
            return Ok(Vec::new());
        }
        let ids: Vec<i64> = suspects.iter().map(|s| s.existing_id).collect::<HashSet<_>>().into_iter().collect();
        let (mut removed, mut added) = (HashSet::<i64>::new(), HashSet::<i64>::new());
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
                removed.extend(page.get::<_, Vec<i64>>(2));
                added.extend(page.get::<_, Vec<i64>>(3));
                let Some(last) = last.filter(|_| count >= MESSAGES_PER_STATEMENT) else { break };
                from = Offset::new(last).map_or(last, |last| last.next().get());
            }
        }
        let is_explained = |s: &Suspect| match s.own {
            Status::Confirmed => removed.contains(&s.existing_id),
            Status::Removed => added.contains(&s.existing_id),
        };
        Ok(suspects.into_iter().filter(|s| !is_explained(s)).collect())
    }
}

/// The digest that the statements return if an outcome has none.
const NO_DIGEST: Digest = Digest([0; 16]);

/// One message, decoded with each of the formats that may have written its rows.
struct Reading<'a> {
    record: &'a Record,
    rows: Rows<'a>,
    candidates: Candidates<'a>,
    decoded: Vec<Decoded<'a>>,
}

impl Reading<'_> {
    /// No differences if the rows agree with one of the formats. Otherwise the differences from the most likely format,
    /// or an unknown format if one of the formats is not known.
    fn compare(self, slice: &Slice, existing: &StoredRows) -> RowDifferences {
        let (record, payload_digest) = (self.record, self.record.payload_digest());
        let mut most_likely = None;
        for decoded in self.decoded {
            let message = Message { slice, record, decoded, payload_digest };
            let differences =
                contents::compare_message(&message, &self.rows, existing, self.candidates.is_this_program);
            if differences.fields.is_empty() {
                return differences;
            }
            most_likely.get_or_insert(differences);
        }
        most_likely.filter(|_| !self.candidates.has_unknown).unwrap_or_else(of_unknown_format)
    }
}

impl Compared {
    fn note(&mut self, offset: Offset, differences: RowDifferences) {
        let RowDifferences { fields, suspects, lacks_conflict } = differences;
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

/// Compares a row with its stored text. `recorded` is the message's digest in its outcome, if there is an outcome.
fn by_text(
    slice: &Slice,
    relation: Relation,
    row: &Row,
    recorded: Option<Option<Digest>>,
    history: &History,
) -> RowDifferences {
    let Some(text) = contents::text(row) else {
        return RowDifferences { fields: contents::no_text(relation), ..RowDifferences::default() };
    };
    let record = from_text(slice, at(row, 1), text);
    let candidates = history.at(record.offset);
    let read = |format: &Format| {
        let payload_digest = record.payload_digest();
        let message = Message { slice, record: &record, decoded: decode(format, &record), payload_digest };
        let is_whole = format.preset.has_one_event();
        contents::compare_text(&message, relation, row, recorded.unwrap_or(payload_digest), is_whole)
    };
    let mut differences: Vec<RowDifferences> = candidates.formats.iter().map(|format| read(format)).collect();
    match differences.iter().position(|differences| differences.fields.is_empty()) {
        Some(agreeing) => differences.swap_remove(agreeing),
        None if candidates.has_unknown => of_unknown_format(),
        None => differences.into_iter().next().unwrap_or_default(),
    }
}

fn of_unknown_format() -> RowDifferences {
    RowDifferences { fields: contents::unknown_format(), ..RowDifferences::default() }
}

fn from_text(slice: &Slice, offset: Offset, text: Vec<u8>) -> Record {
    Record {
        partition: slice.partition.partition,
        offset,
        epoch: AssignmentEpoch::default(),
        timestamp_ms: None,
        leader_epoch: None,
        key: None,
        value: Some(text),
        headers: Vec::new(),
    }
}
