//! Receipts: the outcome of one message, or the events of one transaction, read in one snapshot.

use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::ledger::connect::LedgerReader;
use crate::ledger::error::LedgerError;

/// Events or conflicts that one statement searches for a transaction. There is no index over transactions, because
/// every stored event would pay for it, and a statement must end within its timeout.
const MESSAGES_PER_STATEMENT: i64 = 200_000;

/// The receipt of an offset in one generation of the topic.
#[derive(Debug, Clone, Serialize)]
pub struct MessageReceipt {
    pub topic: String,
    pub generation: i32,
    pub partition: i32,
    pub offset: i64,
    /// The partition's range that must be accounted for, `next_offset` exclusive.
    pub start_offset: i64,
    pub next_offset: i64,
    #[serde(flatten)]
    pub fate: OffsetDisposition,
    /// Events and conflicts that this message inserted, and the existing event that its outcome references.
    pub occurrences: Vec<Occurrence>,
}

/// The disposition of an offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "fate", rename_all = "snake_case")]
pub enum OffsetDisposition {
    /// A message was read at this offset; this is its outcome.
    Message(Outcome),
    /// A gap covers the offset.
    Gap { kind: String, proof: String },
    /// The offset is at or above the position.
    NotWritten,
    /// The offset is below the partition's start offset.
    BeforeStart,
    /// The offset is below the position but has neither outcome nor gap. `gapless verify` reports such offsets too.
    Missing,
}

/// The outcome of a message, with its dead letter if it has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub handling_state: String,
    pub event_id: Option<i64>,
    /// Hexadecimal.
    pub payload_digest: Option<String>,
    /// The timestamp of the Kafka record.
    pub message_time: Option<String>,
    /// When the outcome was committed, exact to the second or better.
    pub update_time: String,
    pub dead_letter: Option<DeadLetter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    pub state: String,
    pub reason: String,
    pub detail: String,
}

/// A row of `events` or of `event_conflicts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Occurrence {
    /// `event` or `conflict`.
    pub kind: String,
    /// The event's id. For a conflict: the id of the event with the same identity.
    pub event_id: i64,
    pub txn: String,
    pub event_type: String,
    pub block_number: Option<i64>,
    pub block_hash: Option<String>,
    pub log_index: Option<i32>,
    pub address: Option<String>,
    pub status: String,
    pub topic: String,
    pub generation: i32,
    pub partition: i32,
    pub offset: i64,
    pub event_no: i32,
}

macro_rules! occurrences {
    ($kind:literal, $id:literal, $from:literal) => {
        concat!(
            "select '",
            $kind,
            "', x.",
            $id,
            ", x.txn, x.event_type, x.block_number, x.block_hash, x.log_index, x.address, x.status,
       x.topic, x.generation, x.partition_id, x.\"offset\", x.event_no\nfrom ",
            $from
        )
    };
}

macro_rules! at_utc {
    ($column:literal) => {
        concat!("to_char(", $column, " at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')")
    };
}

const MESSAGE: &str = concat!(
    "-- receipt_of_message
select s.generation, p.start_offset, p.next_offset, o.state::text, o.event_id, encode(uuid_send(o.payload_digest), 'hex'), ",
    at_utc!("o.message_time"),
    ", ",
    at_utc!("o.update_time"),
    ", d.state, d.reason, d.detail, g.kind, g.proof
from gapless.sources s
join gapless.positions p on p.source_id = s.id and p.partition_id = $2
left join gapless.outcomes o on o.position_id = p.id and o.\"offset\" = $3
left join gapless.rejected_messages d on d.position_id = p.id and d.\"offset\" = $3
left join lateral (
    select g.kind::text as kind, g.proof from gapless.gaps g
    where g.position_id = p.id and g.from_offset <= $3 and g.to_offset > $3 and g.ranges @> $3 limit 1
) g on true
where s.topic = $1
order by s.generation desc"
);

const EVENTS_OF_MESSAGE: &str = concat!(
    "-- occurrences_of_message\n",
    occurrences!("event", "id", "gapless.events x where x.topic = $1 and x.partition_id = $2 and x.\"offset\" = $3"),
    "\nunion all\n",
    occurrences!(
        "conflict",
        "event_id",
        "gapless.event_conflicts x where x.topic = $1 and x.partition_id = $2 and x.\"offset\" = $3"
    ),
    "\norder by 11, 14, 1 desc"
);

const BY_ID: &str =
    concat!("-- occurrences_by_id\n", occurrences!("event", "id", "gapless.events x where x.id = any($1)"));

const IDS: &str = "-- ids_of_events
select coalesce(min(id), 1), coalesce(max(id), 0) from gapless.stored_events";

const OF_TXN: &str = concat!(
    "-- occurrences_of_transaction\n",
    occurrences!("event", "id", "gapless.events x where x.txn = $1 and x.id >= $2 and x.id < $3"),
);

const CONFLICT_IDS: &str = "-- ids_of_conflicts
select coalesce(min(id), 1), coalesce(max(id), 0) from gapless.conflicting_events";

const CONFLICTS_OF_TXN: &str = concat!(
    "-- conflicts_of_transaction\n",
    occurrences!("conflict", "event_id", "gapless.event_conflicts x where x.txn = $1 and x.id >= $2 and x.id < $3"),
);

const CONFLICTS: &str = concat!(
    "-- list_conflicts\n",
    occurrences!("conflict", "event_id", "gapless.event_conflicts x where x.topic = $1"),
    "\norder by x.generation, x.partition_id, x.\"offset\", x.event_no limit $2"
);

impl LedgerReader {
    /// The receipts of an offset, one per generation, the newest first; empty if the partition was never read.
    pub async fn receipt(&self, topic: &str, partition: i32, offset: i64) -> Result<Vec<MessageReceipt>, LedgerError> {
        let mut session = self.session().await?;
        session.begin_walk().await?;
        let params = [(&topic as _, Type::TEXT), (&partition as _, Type::INT4), (&offset as _, Type::INT8)];
        let messages = session.query(MESSAGE, &params).await?;
        let inserted = occurrences(&session.query(EVENTS_OF_MESSAGE, &params).await?);
        let ids: Vec<i64> = messages.iter().filter_map(|row| row.get(4)).collect();
        let resolved = occurrences(&session.query(BY_ID, &[(&ids, Type::INT8_ARRAY)]).await?);
        session.rollback().await?;
        let receipt = |row: &Row| {
            let generation = row.get(0);
            let event_id: Option<i64> = row.get(4);
            let mut occurrences: Vec<_> = inserted.iter().filter(|o| o.generation == generation).cloned().collect();
            occurrences
                .extend(resolved.iter().filter(|o| Some(o.event_id) == event_id && !inserted.contains(o)).cloned());
            let (start_offset, next_offset) = (row.get(1), row.get(2));
            MessageReceipt {
                topic: topic.to_owned(),
                generation,
                partition,
                offset,
                start_offset,
                next_offset,
                fate: disposition(row, offset, start_offset, next_offset),
                occurrences,
            }
        };
        Ok(messages.iter().map(receipt).collect())
    }

    /// All events and conflicts of a transaction in all topics, in the order in which they were stored.
    pub async fn occurrences_of(&self, txn: &str) -> Result<Vec<Occurrence>, LedgerError> {
        let mut session = self.session().await?;
        session.begin_walk().await?;
        let mut found = Vec::new();
        for (ids, of_txn) in [(IDS, OF_TXN), (CONFLICT_IDS, CONFLICTS_OF_TXN)] {
            let ids = session.one(ids, &[]).await?;
            let (mut from, last): (i64, i64) = (ids.get(0), ids.get(1));
            while from <= last {
                let params = [
                    (&txn as _, Type::TEXT),
                    (&from as _, Type::INT8),
                    (&(from + MESSAGES_PER_STATEMENT) as _, Type::INT8),
                ];
                found.extend(occurrences(&session.query(of_txn, &params).await?));
                from += MESSAGES_PER_STATEMENT;
            }
        }
        session.rollback().await?;
        found.sort_by_key(|o| (o.event_id, o.kind == "conflict", o.offset));
        Ok(found)
    }

    /// At most `limit` conflicts of a topic, ordered by generation, partition, offset and event number.
    pub async fn conflicts(&self, topic: &str, limit: i64) -> Result<Vec<Occurrence>, LedgerError> {
        let mut session = self.session().await?;
        session.begin_walk().await?;
        let rows = session.query(CONFLICTS, &[(&topic, Type::TEXT), (&limit, Type::INT8)]).await?;
        session.rollback().await?;
        Ok(occurrences(&rows))
    }
}

fn disposition(row: &Row, offset: i64, start_offset: i64, next_offset: i64) -> OffsetDisposition {
    if let Some(handling_state) = row.get(3) {
        let dead_letter =
            row.get::<_, Option<String>>(8).map(|state| DeadLetter { state, reason: row.get(9), detail: row.get(10) });
        return OffsetDisposition::Message(Outcome {
            handling_state,
            event_id: row.get(4),
            payload_digest: row.get(5),
            message_time: row.get(6),
            update_time: row.get(7),
            dead_letter,
        });
    }
    match row.get::<_, Option<String>>(11) {
        Some(kind) => OffsetDisposition::Gap { kind, proof: row.get(12) },
        None if offset < start_offset => OffsetDisposition::BeforeStart,
        None if offset >= next_offset => OffsetDisposition::NotWritten,
        None => OffsetDisposition::Missing,
    }
}

fn occurrences(rows: &[Row]) -> Vec<Occurrence> {
    let occurrence = |row: &Row| Occurrence {
        kind: row.get(0),
        event_id: row.get(1),
        txn: row.get(2),
        event_type: row.get(3),
        block_number: row.get(4),
        block_hash: row.get(5),
        log_index: row.get(6),
        address: row.get(7),
        status: row.get(8),
        topic: row.get(9),
        generation: row.get(10),
        partition: row.get(11),
        offset: row.get(12),
        event_no: row.get(13),
    };
    rows.iter().map(occurrence).collect()
}
