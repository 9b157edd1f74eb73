//! The status of a topic in the ledger, for `gapless status`: positions, accounting, and the reason why a partition is
//! not being read.

use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::ledger::connect::LedgerReader;
use crate::ledger::error::LedgerError;
use crate::ledger::source::{SOURCE, known_source};
use crate::model::partition_state::HaltReason;
use crate::model::topic::TopicIdentity;

/// The status of a topic, read in one snapshot.
#[derive(Debug, Clone)]
pub struct LedgerStatus {
    pub partitions: Vec<PartitionStatus>,
    /// The identity of the newest generation; `None` if the topic was never read.
    pub identity: Option<TopicIdentity>,
    pub owner: Option<String>,
    pub open_dead_letters: AtLeast,
    pub conflicts: AtLeast,
}

/// A count with an upper limit: beyond it, only a minimum is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtLeast {
    pub count: i64,
    pub is_minimum: bool,
}

impl AtLeast {
    /// Counting stops here.
    pub const MAX_COUNTED: i64 = 10_000;

    fn of(counted: i64) -> Self {
        Self { count: counted.min(Self::MAX_COUNTED), is_minimum: counted > Self::MAX_COUNTED }
    }
}

/// One partition's position and accounting.
#[derive(Debug, Clone, Serialize)]
pub struct PartitionStatus {
    pub topic: String,
    pub generation: i32,
    pub partition: i32,
    pub start_offset: i64,
    pub next_offset: i64,
    /// Messages with an outcome in `[start_offset, next_offset)`; null if counting them would take too long.
    pub outcomes: Option<i64>,
    /// Offsets of gaps in the same range; null if counting them would take too long.
    pub gap_offsets: Option<i64>,
    /// Must be 0. Null if nothing was counted yet.
    pub unaccounted_offsets: Option<i64>,
    /// Range and time of the daemon's count, if `unaccounted_offsets` is from that count.
    pub unaccounted_as_of: Option<Counted>,
    /// Why the partition is not being read, as the daemon recorded it; `None` if the daemon recorded no state.
    #[serde(skip)]
    recorded: Option<Recorded>,
}

impl PartitionStatus {
    /// Why the partition is not being read, as the daemon recorded it. `None` for a loss that an operator has accepted
    /// since: the record is outdated until a daemon runs again.
    pub fn recorded_problem(&self) -> Option<&Recorded> {
        let is_over = |r: &Recorded| {
            r.reason == HaltReason::Expired.name() && r.range.is_some_and(|(_, to)| self.next_offset >= to)
        };
        self.recorded.as_ref().filter(|recorded| !is_over(recorded))
    }
}

/// The range that the daemon's running count has covered.
#[derive(Debug, Clone, Serialize)]
pub struct Counted {
    pub from: i64,
    pub to: i64,
    pub at: String,
}

/// A state that a daemon recorded.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub state: String,
    pub reason: String,
    pub detail: String,
    pub range: Option<(i64, i64)>,
    pub remedy: String,
    pub since: String,
    /// When the state was last confirmed.
    pub updated_at: String,
    pub instance: Option<String>,
}

/// Up to this number of offsets, outcomes and gaps are counted exactly. For more offsets, the daemon's running count is
/// shown.
const COUNTED_AT_ONCE: i64 = 1_000_000;

const PARTITIONS: &str = "-- partition_status
select s.topic, s.generation, p.partition_id, p.start_offset, p.next_offset, a.counted_from, a.counted_to, a.missing,
       to_char(a.counted_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
       r.state, r.reason, r.detail, r.from_offset, r.to_offset, r.remedy,
       to_char(r.since at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
       to_char(r.updated_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), w.instance
from gapless.positions p join gapless.sources s on s.id = p.source_id
left join gapless.audits a on a.position_id = p.id
left join gapless.recorded_states r on r.position_id = p.id
left join gapless.writers w on w.fence = r.fence
where s.topic = $1
order by s.generation, p.partition_id";

/// In the order of [`PARTITIONS`].
const COUNTS: &str = "-- partition_counts
select (select count(*) from gapless.outcomes o
         where o.position_id = p.id and o.\"offset\" >= p.start_offset and o.\"offset\" < p.next_offset) as outcomes,
       (select coalesce(sum(upper(r) - lower(r)), 0)::int8
          from gapless.gaps g
          cross join lateral unnest(g.ranges * int8multirange(int8range(p.start_offset, p.next_offset))) as r
         where g.position_id = p.id and g.from_offset < p.next_offset and g.to_offset > p.start_offset) as gap_offsets
from gapless.positions p join gapless.sources s on s.id = p.source_id
where s.topic = $1
order by s.generation, p.partition_id";

/// The counts must use indexes whatever the planner's statistics are, so that only the counted rows are read.
const BY_INDEX: &str = "-- count_by_index
select set_config('enable_seqscan', 'off', true)";

const TOTALS: &str = "-- totals
select (select format('%s since %s', instance, to_char(started_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'))
          from gapless.writers where topic = $1 order by fence desc limit 1),
       (select count(*) from (select from gapless.rejected_messages where state = 'open' limit $2) as open),
       (select count(*) from (select from gapless.conflicting_events limit $2) as conflicts)";

impl LedgerReader {
    /// The status of a topic, in one snapshot. No statement counts the rows of a large ledger.
    pub async fn ledger_status(&self, topic: &str) -> Result<LedgerStatus, LedgerError> {
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        session.query(BY_INDEX, &[]).await?;
        let source = session.query(SOURCE, &[(&topic, Type::TEXT)]).await?;
        let rows = session.query(PARTITIONS, &[(&topic, Type::TEXT)]).await?;
        let mut partitions: Vec<PartitionStatus> = rows.iter().map(partition_status).collect();
        if partitions.iter().map(|p| p.next_offset - p.start_offset).sum::<i64>() <= COUNTED_AT_ONCE {
            let counts = session.query(COUNTS, &[(&topic, Type::TEXT)]).await?;
            partitions.iter_mut().zip(&counts).for_each(|(p, row)| set_exact_counts(p, row));
        }
        let limit = AtLeast::MAX_COUNTED.saturating_add(1);
        let total = session.one(TOTALS, &[(&topic, Type::TEXT), (&limit, Type::INT8)]).await?;
        session.rollback().await?;
        Ok(LedgerStatus {
            partitions,
            identity: source.first().map(|row| known_source(row).1),
            owner: total.get(0),
            open_dead_letters: AtLeast::of(total.get(1)),
            conflicts: AtLeast::of(total.get(2)),
        })
    }
}

fn partition_status(row: &Row) -> PartitionStatus {
    let counted = |from: i64| Counted { from, to: row.get(6), at: row.get(8) };
    let recorded = |state: String| Recorded {
        state,
        reason: row.get(10),
        detail: row.get(11),
        range: row.get::<_, Option<i64>>(12).zip(row.get(13)),
        remedy: row.get(14),
        since: row.get(15),
        updated_at: row.get(16),
        instance: row.get(17),
    };
    PartitionStatus {
        topic: row.get(0),
        generation: row.get(1),
        partition: row.get(2),
        start_offset: row.get(3),
        next_offset: row.get(4),
        outcomes: None,
        gap_offsets: None,
        unaccounted_offsets: row.get(7),
        unaccounted_as_of: row.get::<_, Option<i64>>(5).map(counted),
        recorded: row.get::<_, Option<String>>(9).map(recorded),
    }
}

/// Replaces the numbers of the running count by exact ones.
fn set_exact_counts(p: &mut PartitionStatus, row: &Row) {
    let (outcomes, gaps): (i64, i64) = (row.get(0), row.get(1));
    (p.outcomes, p.gap_offsets) = (Some(outcomes), Some(gaps));
    p.unaccounted_offsets = Some(p.next_offset - p.start_offset - outcomes - gaps);
    p.unaccounted_as_of = None;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_beyond_the_limit_is_marked_as_a_minimum() {
        assert_eq!(AtLeast::of(3), AtLeast { count: 3, is_minimum: false });
        assert_eq!(AtLeast::of(AtLeast::MAX_COUNTED + 1), AtLeast { count: AtLeast::MAX_COUNTED, is_minimum: true });
    }
}
