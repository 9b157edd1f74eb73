//! Positions and fences. The positions in PostgreSQL alone decide where reading resumes.

use std::collections::BTreeMap;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;
use crate::ledger::format_history;
use crate::model::offset::{NextOffset, Offset, OffsetRange};
use crate::model::record::{Anchor, Digest};
use crate::model::topic::{Topic, TopicPartition};
use crate::postgres::session::Session;

/// A partition's position as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub id: i32,
    pub partition: TopicPartition,
    pub start: NextOffset,
    pub next: NextOffset,
    pub fence: i64,
    /// No offset from here on has an outcome or gap. It is above `next` only after the position was rewound.
    pub recorded_to: NextOffset,
    /// The last stored message, if there is one.
    pub anchor: Option<Anchor>,
    /// The highest observed end of the log.
    pub log_end: Option<NextOffset>,
}

impl Position {
    /// The range that the log is known to have had and that was not read. Everything below `read_to` counts as read.
    pub fn unread_from(&self, read_to: NextOffset) -> Option<OffsetRange> {
        OffsetRange::new(self.recorded_to.max(self.next).max(read_to), self.log_end?)
    }
}

/// One start: its number, and a random token. The token distinguishes it from a start with the same number in another
/// history of the database (before a restore, on the other side of a failover).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FencingToken {
    pub fence: i64,
    pub token: Digest,
}

/// The newest start: only it may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceHolder {
    pub token: FencingToken,
    /// The topic's newest generation.
    pub source_id: i32,
    pub instance: String,
    pub since: String,
}

macro_rules! positions {
    ($name:literal, $lock:literal) => {
        concat!(
            "-- ",
            $name,
            "
select p.id, p.partition_id, p.start_offset, p.next_offset, p.fence,
       greatest(p.next_offset, p.announced_to,
                (select o.\"offset\" + 1 from gapless.outcomes o
                  where o.position_id = p.id order by o.\"offset\" desc limit 1),
                (select max(g.to_offset) from gapless.gaps g where g.position_id = p.id)),
       p.anchor_offset, p.anchor_digest, p.leader_epoch, l.log_end
from gapless.positions p left join gapless.log_ends l on l.position_id = p.id
where p.source_id = $1
order by p.id
",
            $lock
        )
    };
}

/// Waits for a commit that is in progress.
const POSITIONS: &str = positions!("positions", "for share of p");
const POSITIONS_UNLOCKED: &str = positions!("positions_unlocked", "");

const OWNER: &str = "-- owner
select w.fence, w.instance, to_char(w.started_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')
, w.token,
       (select n.id from gapless.sources n where n.topic = s.topic order by n.generation desc limit 1)
from gapless.writers w join gapless.sources s on s.topic = w.topic
where s.id = $1 order by w.fence desc limit 1";

const TAKE_UP: &str = "-- take_up_partition
insert into gapless.positions as p (source_id, partition_id, start_offset, next_offset, fence)
select $1, $2, $3, $3, $4
where $4 = (select max(w.fence) from gapless.writers w join gapless.sources s on s.topic = w.topic where s.id = $1)
on conflict (source_id, partition_id) do update set fence = excluded.fence where p.fence < excluded.fence";

const LOG_ENDS: &str = "-- note_log_ends
insert into gapless.log_ends as l (position_id, log_end)
select p.id, u.log_end from unnest($1::int4[], $2::int8[]) as u(position_id, log_end)
join gapless.positions p on p.id = u.position_id and p.fence = $3
on conflict (position_id) do update set log_end = excluded.log_end, seen_at = now() where l.log_end < excluded.log_end";

impl LedgerStore {
    /// Records the observed log ends, keyed by position id. Changes nothing unless `fence` is the current one.
    pub async fn note_log_ends(&self, ends: &BTreeMap<i32, NextOffset>, fence: i64) -> Result<(), LedgerError> {
        let (ids, ends): (Vec<i32>, Vec<i64>) = ends.iter().map(|(id, end)| (*id, end.get())).unzip();
        let params = [(&ids as _, Type::INT4_ARRAY), (&ends as _, Type::INT8_ARRAY), (&fence as _, Type::INT8)];
        let mut session = self.session().await?;
        session.begin().await?;
        session.execute(LOG_ENDS, &params).await?;
        Ok(session.commit().await.map_err(|failure| failure.into_error())?)
    }

    /// All positions of a source, keyed by partition; `topic` is the topic of the source. Waits for a commit that is in
    /// progress. A batch whose statements have not reached the server may still be committed afterwards; its
    /// compare-and-set of the position then fails.
    pub async fn positions(
        &self,
        source_id: i32,
        topic: &Topic,
    ) -> Result<BTreeMap<TopicPartition, Position>, LedgerError> {
        let mut session = self.session().await?;
        session.begin().await?;
        let positions = read_locked(&session, source_id, topic).await?;
        session.rollback().await?;
        Ok(positions)
    }

    /// The newest start.
    pub async fn fence_holder(&self, source_id: i32) -> Result<Option<FenceHolder>, LedgerError> {
        let mut session = self.session().await?;
        session.begin().await?;
        let rows = session.query(OWNER, &[(&source_id, Type::INT4)]).await?;
        session.rollback().await?;
        Ok(rows.first().map(|row| FenceHolder {
            token: FencingToken { fence: row.get(0), token: row.get(3) },
            instance: row.get(1),
            since: row.get(2),
            source_id: row.get(4),
        }))
    }

    /// Stores the position of a partition that was added while the daemon runs, before anything is fetched from it,
    /// and returns it. Returns `None` unless `fence` is the newest start's.
    pub async fn add_partition(
        &self,
        source_id: i32,
        partition: &TopicPartition,
        from: NextOffset,
        fence: i64,
    ) -> Result<Option<Position>, LedgerError> {
        let mut session = self.session().await?;
        session.begin().await?;
        let TopicPartition { topic, partition: number } = partition;
        let params = [
            (&source_id as _, Type::INT4),
            (number as _, Type::INT4),
            (&from.get() as _, Type::INT8),
            (&fence as _, Type::INT8),
        ];
        session.execute(TAKE_UP, &params).await?;
        format_history::keep_for_added_partition(&session, source_id, *number).await?;
        let position = read_locked(&session, source_id, topic).await?.remove(partition);
        session.commit().await.map_err(|failure| failure.into_error())?;
        Ok(position.filter(|p| p.fence == fence))
    }
}

/// The positions of a source in the session's snapshot, keyed by partition. Takes no lock and waits for nothing.
pub(crate) async fn read_unlocked(
    session: &Session,
    source_id: i32,
    topic: &Topic,
) -> Result<BTreeMap<TopicPartition, Position>, LedgerError> {
    let rows = session.query(POSITIONS_UNLOCKED, &[(&source_id, Type::INT4)]).await?;
    Ok(rows.iter().map(|row| position(row, topic)).map(|p| (p.partition.clone(), p)).collect())
}

/// The positions of a source, keyed by partition, each locked against updates until the session's transaction ends.
pub(crate) async fn read_locked(
    session: &Session,
    source_id: i32,
    topic: &Topic,
) -> Result<BTreeMap<TopicPartition, Position>, LedgerError> {
    let rows = session.query(POSITIONS, &[(&source_id, Type::INT4)]).await?;
    Ok(rows.iter().map(|row| position(row, topic)).map(|p| (p.partition.clone(), p)).collect())
}

fn position(row: &Row, topic: &Topic) -> Position {
    let offset = |column| NextOffset::new(row.get(column)).expect("the table's checks refuse a negative offset");
    Position {
        id: row.get(0),
        partition: topic.partition(row.get(1)),
        start: offset(2),
        next: offset(3),
        fence: row.get(4),
        recorded_to: offset(5),
        anchor: anchor(row),
        log_end: row.get::<_, Option<i64>>(9).and_then(NextOffset::new),
    }
}

fn anchor(row: &Row) -> Option<Anchor> {
    let offset = Offset::new(row.get::<_, Option<i64>>(6)?)?;
    Some(Anchor { offset, digest: row.get::<_, Option<_>>(7)?, leader_epoch: row.get(8) })
}
