//! The newest generation of a topic as it would end: its positions, and what of its log was never read.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::consistency::Inspector;
use crate::ledger::connect::LedgerReader;
use crate::ledger::error::LedgerError;
use crate::ledger::source::{SOURCE, known_source};
use crate::model::generation::Unread;
use crate::model::offset::{NextOffset, Offset, OffsetRange};
use crate::model::record::{Anchor, Digest};
use crate::postgres::session::{Param, Session};

/// A partition of the generation that ends.
#[derive(Debug, Clone)]
pub struct OldPartition {
    pub partition: i32,
    /// The position: the next offset that would have been read.
    pub next: NextOffset,
    /// The highest observed log end, and when it was observed; `None` in a ledger of an older version.
    pub log_end: Option<(NextOffset, String)>,
    /// The range that the log had and that was not read.
    pub unread: Option<OffsetRange>,
    /// The highest end of the log that is known from any source.
    pub(crate) end: NextOffset,
    pub anchor: Option<Anchor>,
    /// The daemon halted the partition because its log is not the log that was read.
    pub is_of_another_log: bool,
}

impl OldPartition {
    pub(crate) fn unread(&self) -> Option<Unread> {
        Some(Unread { partition: self.partition, range: self.unread? })
    }
}

macro_rules! old_partitions {
    ($name:literal, $lock:literal) => {
        concat!(
            "-- ",
            $name,
            "
select p.partition_id, p.next_offset, l.log_end, to_char(l.seen_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
       lower(u.ranges), upper(u.ranges), k.known_to, p.anchor_offset, p.anchor_digest, p.leader_epoch,
       coalesce(r.state = 'halted' and r.reason = any($2), false)
from gapless.positions p
left join gapless.log_ends l on l.position_id = p.id
left join gapless.recorded_states r on r.position_id = p.id
cross join lateral (select greatest(p.next_offset, p.announced_to, coalesce(l.log_end, 0)) as known_to) as k
cross join lateral (select int8multirange(int8range(p.next_offset, k.known_to))
    - coalesce((select range_agg(int8range(o.\"offset\", o.\"offset\" + 1)) from gapless.outcomes o
                 where o.position_id = p.id and o.\"offset\" >= p.next_offset and o.\"offset\" < k.known_to), '{}')
    - coalesce((select range_agg(g.span) from (select unnest(x.ranges) as span from gapless.gaps x
                 where x.position_id = p.id and x.to_offset > p.next_offset and x.from_offset < k.known_to) as g), '{}')
    as ranges) as u
where p.source_id = $1
order by p.id
",
            $lock
        )
    };
}

pub(crate) const OLD_PARTITIONS: &str = old_partitions!("old_partitions", "");

/// The row locks keep a running daemon's batch from moving a position before this transaction ends.
pub(crate) const HOLD_OLD_PARTITIONS: &str = old_partitions!("hold_old_partitions", "for no key update of p");

/// Halt reasons that mean "the log was replaced", as the daemon records them.
const LOG_REPLACED_REASONS: [&str; 3] = ["beyond_log_end", "differs", "replaced"];

async fn unread_of(session: &Session, topic: &str) -> Result<Vec<Unread>, LedgerError> {
    let rows = session.query(SOURCE, &[(&topic, Type::TEXT)]).await?;
    match rows.first().map(known_source) {
        Some((source_id, _)) => unread(session, source_id).await,
        None => Ok(Vec::new()),
    }
}

/// The unread ranges of a generation, as far as they are known.
pub(crate) async fn unread(session: &Session, source_id: i32) -> Result<Vec<Unread>, LedgerError> {
    let old = old_partitions(session, OLD_PARTITIONS, source_id).await?;
    Ok(old.iter().filter_map(OldPartition::unread).collect())
}

pub(crate) async fn old_partitions(
    session: &Session,
    sql: &'static str,
    source_id: i32,
) -> Result<Vec<OldPartition>, LedgerError> {
    let params: [Param<'_>; 2] = [(&source_id, Type::INT4), (&LOG_REPLACED_REASONS.as_slice(), Type::TEXT_ARRAY)];
    Ok(session.query(sql, &params).await?.iter().map(old_partition).collect())
}

fn old_partition(row: &Row) -> OldPartition {
    let offset = |column| row.get::<_, Option<i64>>(column).and_then(NextOffset::new);
    let next = offset(1).expect("the table's checks refuse a negative offset");
    let anchor = || {
        let digest: Digest = row.get::<_, Option<_>>(8)?;
        Some(Anchor { offset: Offset::new(row.get::<_, Option<i64>>(7)?)?, digest, leader_epoch: row.get(9) })
    };
    OldPartition {
        partition: row.get(0),
        next,
        log_end: offset(2).zip(row.get(3)),
        unread: offset(4).zip(offset(5)).and_then(|(from, to)| OffsetRange::new(from, to)),
        end: offset(6).unwrap_or(next),
        anchor: anchor(),
        is_of_another_log: row.get(10),
    }
}

impl LedgerReader {
    /// The unread ranges of a topic's newest generation, as far as they are known.
    pub async fn unread(&self, topic: &str) -> Result<Vec<Unread>, LedgerError> {
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        let unread = unread_of(&session, topic).await?;
        session.rollback().await?;
        Ok(unread)
    }
}

impl Inspector {
    /// The unread ranges of a topic's newest generation, as far as they are known.
    pub async fn unread(&self, topic: &str) -> Result<Vec<Unread>, LedgerError> {
        unread_of(self.session(), topic).await
    }
}
