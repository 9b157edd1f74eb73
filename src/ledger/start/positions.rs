//! Reading positions and fences: what PostgreSQL says is the only truth about where to resume.

use std::collections::BTreeMap;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;
use crate::ledger::format_history;
use crate::model::offset::{NextOffset, Offset, OffsetRange};
use crate::model::record::{Anchor, Digest};
use crate::postgres::session::Session;

/// A partition's position as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub id: i32,
    pub partition: i32,
    pub start: NextOffset,
    pub next: NextOffset,
    pub fence: i64,
    /// Above this no offset of the partition has an outcome or gap. Beyond `next` only after the
    /// position was set back.
    pub recorded_to: NextOffset,
    /// The last stored message, if there is one.
    pub anchor: Option<Anchor>,
    /// The highest end that the log was seen to have.
    pub log_end: Option<NextOffset>,
}

impl Position {
    /// What the log is known to have had, and has not been read.
    pub fn unread(&self) -> Option<OffsetRange> {
        OffsetRange::new(self.recorded_to.max(self.next), self.log_end?)
    }
}

/// One start: its number, and what tells it from a start of the same number in another history of the
/// database (before a restore, on the other side of a failover).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FencingToken {
    pub fence: i64,
    pub token: Digest,
}

/// Who may write: the newest start.
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

/// Waits for a commit under way.
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
    /// Notes how far logs were seen to reach, by position id. Only the newest start may.
    pub async fn note_log_ends(&self, ends: &BTreeMap<i32, NextOffset>, fence: i64) -> Result<(), LedgerError> {
        let (ids, ends): (Vec<i32>, Vec<i64>) = ends.iter().map(|(id, end)| (*id, end.get())).unzip();
        let params = [(&ids as _, Type::INT4_ARRAY), (&ends as _, Type::INT8_ARRAY), (&fence as _, Type::INT8)];
        let mut session = self.session().await?;
        session.begin().await?;
        session.execute(LOG_ENDS, &params).await?;
        Ok(session.commit().await.map_err(|failure| failure.into_error())?)
    }

    /// All positions of a source. Waits for a commit that is under way. Only one whose request has not reached
    /// the server's transaction yet may still happen after this; it meets the compare-and-set.
    pub async fn positions(&self, source_id: i32) -> Result<BTreeMap<i32, Position>, LedgerError> {
        let mut session = self.session().await?;
        session.begin().await?;
        let positions = read_locked(&session, source_id).await?;
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

    /// Stores the position of a partition that appeared while running, before anything is fetched
    /// from it, and returns it. Only the newest start may; an older one gets none.
    pub async fn add_partition(
        &self,
        source_id: i32,
        partition: i32,
        from: NextOffset,
        fence: i64,
    ) -> Result<Option<Position>, LedgerError> {
        let mut session = self.session().await?;
        session.begin().await?;
        let params = [
            (&source_id as _, Type::INT4),
            (&partition as _, Type::INT4),
            (&from.get() as _, Type::INT8),
            (&fence as _, Type::INT8),
        ];
        session.execute(TAKE_UP, &params).await?;
        format_history::keep_for_added_partition(&session, source_id, partition).await?;
        let position = read_locked(&session, source_id).await?.remove(&partition);
        session.commit().await.map_err(|failure| failure.into_error())?;
        Ok(position.filter(|p| p.fence == fence))
    }
}

/// The positions in the session's snapshot, without waiting for anything.
pub(crate) async fn read_unlocked(session: &Session, source_id: i32) -> Result<BTreeMap<i32, Position>, LedgerError> {
    let rows = session.query(POSITIONS_UNLOCKED, &[(&source_id, Type::INT4)]).await?;
    Ok(rows.iter().map(position).map(|p| (p.partition, p)).collect())
}

/// The positions as the session's transaction sees them.
pub(crate) async fn read_locked(session: &Session, source_id: i32) -> Result<BTreeMap<i32, Position>, LedgerError> {
    let rows = session.query(POSITIONS, &[(&source_id, Type::INT4)]).await?;
    Ok(rows.iter().map(position).map(|p| (p.partition, p)).collect())
}

fn position(row: &Row) -> Position {
    let offset = |column| NextOffset::new(row.get(column)).expect("the table's checks refuse a negative offset");
    Position {
        id: row.get(0),
        partition: row.get(1),
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
