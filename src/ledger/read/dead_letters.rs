//! Reads dead letters that a [`Selector`] selects, as a list or with their bytes.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::ledger::connect::LedgerReader;
use crate::ledger::error::LedgerError;
use crate::postgres::session::Param;

/// Selects dead letters of a topic. A field that is `None` selects all.
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
pub struct DeadLetter {
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

/// A dead letter with its bytes.
#[derive(Debug, Clone)]
pub struct DeadLetterContent {
    pub letter: DeadLetter,
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: String,
}

macro_rules! dead_letter_columns {
    ($more:literal) => {
        concat!(
            "select s.generation, p.partition_id, d.\"offset\", d.reason, d.detail, coalesce(length(d.payload), 0)::int8,
       d.attempts, to_char(d.first_seen at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
       to_char(d.last_seen at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), d.state",
            $more
        )
    };
}

/// A statement over the dead letters that a [`Selector`] selects.
macro_rules! selected {
    ($name:literal, $before:expr, $after:literal) => {
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
  and ($3::int4 is null or (p.partition_id = $3 and d.\"offset\" = $4
      and s.generation = (select max(n.generation) from gapless.sources n where n.topic = $1)))
  and ($5::timestamptz is null or d.first_seen >= $5) and ($6::timestamptz is null or d.first_seen < $6)",
            $after
        )
    };
}

pub(crate) use selected;

const LIST: &str = selected!(
    "list_dead_letters",
    dead_letter_columns!(""),
    "\norder by s.generation, p.partition_id, d.\"offset\" limit $7"
);

const SHOW: &str = selected!(
    "show_dead_letters",
    dead_letter_columns!(", d.message_key, d.payload, d.headers::text"),
    "\norder by s.generation, p.partition_id, d.\"offset\""
);

const COUNT_OPEN: &str = selected!("count_open_dead_letters", "select count(*)", " and d.state = 'open'");

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
    /// The selector as arguments of a decision, for `gapless.decisions`.
    pub(crate) fn arguments(&self) -> Value {
        json!({
            "topic": self.topic,
            "rejected_for": self.reason,
            "id": self.at.map(|(partition, offset)| format!("{partition}:{offset}")),
            "since": self.since.map(|time| time.to_string()),
            "until": self.until.map(|time| time.to_string()),
        })
    }

    /// The parameters `$1` to `$6` of the [`selected`] statements.
    pub(crate) fn params(&self) -> [Param<'_>; 6] {
        // Partition and offset are two parameters of one condition.
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

impl LedgerReader {
    /// At most `limit` dead letters, ordered by generation, partition and offset.
    pub async fn dead_letters(&self, selector: &Selector, limit: i64) -> Result<Vec<DeadLetter>, LedgerError> {
        let mut params = selector.params().to_vec();
        params.push((&limit, Type::INT8));
        Ok(self.select(LIST, &params).await?.iter().map(dead_letter).collect())
    }

    /// Dead letters with their bytes.
    pub async fn dead_letter_contents(&self, selector: &Selector) -> Result<Vec<DeadLetterContent>, LedgerError> {
        let bytes = |row: &Row| DeadLetterContent {
            letter: dead_letter(row),
            key: row.get(10),
            payload: row.get(11),
            headers: row.get(12),
        };
        Ok(self.select(SHOW, &selector.params()).await?.iter().map(bytes).collect())
    }

    /// The number of open dead letters.
    pub async fn count_open_dead_letters(&self, selector: &Selector) -> Result<u64, LedgerError> {
        let count = self.select(COUNT_OPEN, &selector.params()).await?;
        Ok(count.first().map_or(0, |row| row.get::<_, i64>(0).unsigned_abs()))
    }

    async fn select(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, LedgerError> {
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        let rows = session.query(sql, params).await?;
        session.rollback().await?;
        Ok(rows)
    }
}

fn dead_letter(row: &Row) -> DeadLetter {
    DeadLetter {
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
    }
}
