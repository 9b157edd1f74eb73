//! What the ledger says about itself: for `gapless status`, and for `gapless_unaccounted_offsets`.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio_postgres::types::Type;

use super::connect::Store;
use super::error::StoreError;
use super::positions;
use crate::position::NextOffset;

/// The ledger in one snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct LedgerStatus {
    pub partitions: Vec<PartitionStatus>,
    pub owner: Option<String>,
    pub open_dead_letters: i64,
    pub conflicts: i64,
}

/// One partition's position and accounting.
#[derive(Debug, Clone, Serialize)]
pub struct PartitionStatus {
    pub topic: String,
    pub generation: i32,
    pub partition: i32,
    pub start_offset: i64,
    pub next_offset: i64,
    /// Messages with an outcome in `[start_offset, next_offset)`.
    pub outcomes: i64,
    /// Offsets proven to hold no message in the same range.
    pub gap_offsets: i64,
    /// Must be 0.
    pub unaccounted_offsets: i64,
}

const PARTITIONS: &str = "-- partition_status
select s.topic, s.generation, p.partition_id, p.start_offset, p.next_offset,
       (select count(*) from gapless.outcomes o
         where o.position_id = p.id and o.\"offset\" >= p.start_offset and o.\"offset\" < p.next_offset) as outcomes,
       (select coalesce(sum(upper(r) - lower(r)), 0)::int8
          from gapless.gaps g
          cross join lateral unnest(g.ranges * int8multirange(int8range(p.start_offset, p.next_offset))) as r
         where g.position_id = p.id and g.from_offset < p.next_offset and g.to_offset > p.start_offset) as gap_offsets
from gapless.positions p join gapless.sources s on s.id = p.source_id
where s.topic = $1
order by s.generation, p.partition_id";

const TOTALS: &str = "-- totals
select (select format('%s since %s', instance, to_char(started_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'))
          from gapless.writers where topic = $1 order by fence desc limit 1),
       (select count(*) from gapless.rejected_messages where state = 'open'),
       (select count(*) from gapless.conflicting_events)";

/// How much of a range is accounted for: only what was added since the last look, and at most a
/// million offsets of it, is counted at once.
const UNACCOUNTED: &str = "-- unaccounted
select p.partition_id, t.until,
       t.until - u.since
       - (select count(*) from gapless.outcomes o
           where o.position_id = p.id and o.\"offset\" >= u.since and o.\"offset\" < t.until)
       - (select coalesce(sum(upper(r) - lower(r)), 0)::int8
            from gapless.gaps g
            cross join lateral unnest(g.ranges * int8multirange(int8range(u.since, t.until))) as r
           where g.position_id = p.id and g.from_offset < t.until and g.to_offset > u.since)
from unnest($2::int4[], $3::int8[]) as u(partition_id, since)
join gapless.positions p on p.source_id = $1 and p.partition_id = u.partition_id
cross join lateral (select least(p.next_offset, u.since + 1000000) as until) as t
where p.next_offset > u.since";

/// A running count of offsets below the positions that have neither outcome nor gap.
#[derive(Debug)]
pub struct Audit {
    source_id: i32,
    /// Per partition: up to where it was counted, and how many were missing.
    counted: BTreeMap<i32, (i64, i64)>,
}

impl Audit {
    pub fn new(source_id: i32) -> Self {
        Self { source_id, counted: BTreeMap::new() }
    }

    /// Offsets unaccounted for so far, per partition.
    pub fn missing(&self) -> impl Iterator<Item = (i32, i64)> {
        self.counted.iter().map(|(partition, (_, missing))| (*partition, *missing))
    }
}

impl Store {
    /// Counts what was committed since the last call, in one snapshot. `from` names the partitions
    /// and where the count of a new one begins.
    ///
    /// Returns the source's positions at that moment.
    pub async fn audit(
        &self,
        audit: &mut Audit,
        from: &BTreeMap<i32, NextOffset>,
    ) -> Result<BTreeMap<i32, NextOffset>, StoreError> {
        for (partition, next) in from {
            audit.counted.entry(*partition).or_insert((next.get(), 0));
        }
        let (partitions, since): (Vec<i32>, Vec<i64>) =
            audit.counted.iter().map(|(p, (since, _))| (*p, *since)).unzip();
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        let params = [
            (&audit.source_id as _, Type::INT4),
            (&partitions as _, Type::INT4_ARRAY),
            (&since as _, Type::INT8_ARRAY),
        ];
        let rows = session.query(UNACCOUNTED, &params).await?;
        let positions = positions::peek(&session, audit.source_id).await?;
        session.rollback().await?;
        for row in &rows {
            if let Some((since, missing)) = audit.counted.get_mut(&row.get(0)) {
                *since = row.get(1);
                *missing += row.get::<_, i64>(2);
            }
        }
        // Counted again from there, should a position have been set back.
        for (partition, position) in &positions {
            let (since, _) = audit.counted.entry(*partition).or_insert((position.next.get(), 0));
            *since = (*since).min(position.next.get());
        }
        Ok(positions.into_iter().map(|(partition, position)| (partition, position.next)).collect())
    }

    /// Counts everything of a topic, in one snapshot.
    pub async fn ledger_status(&self, topic: &str) -> Result<LedgerStatus, StoreError> {
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        let rows = session.query(PARTITIONS, &[(&topic, Type::TEXT)]).await?;
        let totals = session.query(TOTALS, &[(&topic, Type::TEXT)]).await?;
        session.rollback().await?;
        let partitions = rows.iter().map(|row| {
            let (start, next, outcomes, gaps): (i64, i64, i64, i64) = (row.get(3), row.get(4), row.get(5), row.get(6));
            PartitionStatus {
                topic: row.get(0),
                generation: row.get(1),
                partition: row.get(2),
                start_offset: start,
                next_offset: next,
                outcomes,
                gap_offsets: gaps,
                unaccounted_offsets: next - start - outcomes - gaps,
            }
        });
        let total = totals.first().ok_or(StoreError::Rows { statement: "totals", expected: 1, got: 0 })?;
        Ok(LedgerStatus {
            partitions: partitions.collect(),
            owner: total.get(0),
            open_dead_letters: total.get(1),
            conflicts: total.get(2),
        })
    }
}
