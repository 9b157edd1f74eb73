//! The running count behind the metric `gapless_unaccounted_offsets`: each call adds the offsets committed since the
//! last call.
//!
//! The daemon calls it at intervals, and the count is recorded in the ledger for `gapless status`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_postgres::types::Type;

use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;
use crate::ledger::positions::{self, FencingToken};
use crate::model::offset::NextOffset;
use crate::model::topic::{Topic, TopicPartition};

/// Counts the unaccounted offsets since the last call, at most a million offsets at once.
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

/// The interval at which the running count is recorded.
const RECORD_INTERVAL: Duration = Duration::from_secs(30);

const AUDITS: &str = "-- kept_audits
select p.partition_id, a.counted_from, a.counted_to, a.missing
from gapless.audits a join gapless.positions p on p.id = a.position_id
where p.source_id = $1";

const KEEP_AUDITS: &str = "-- keep_audits
insert into gapless.audits as a (position_id, counted_from, counted_to, missing)
select p.id, t.counted_from, t.counted_to, t.missing
from unnest($3::int4[], $4::int8[], $5::int8[], $6::int8[]) as t(partition_id, counted_from, counted_to, missing)
join gapless.positions p on p.source_id = $1 and p.partition_id = t.partition_id and p.fence = $2
on conflict (position_id) do update set counted_from = excluded.counted_from, counted_to = excluded.counted_to,
    missing = excluded.missing, counted_at = now()";

/// A running count of the offsets below the positions that have neither outcome nor gap. It continues the counts of
/// earlier starts, so that in time it covers the whole ledger without ever counting it at once.
#[derive(Debug)]
pub struct Audit {
    source_id: i32,
    topic: Topic,
    fence: i64,
    counted: BTreeMap<TopicPartition, Running>,
    /// When the count was last recorded; `None` until the recorded count was loaded.
    kept_at: Option<Instant>,
}

/// The count of one partition: `missing` offsets of `[from, to)` are unaccounted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Running {
    from: i64,
    to: i64,
    missing: i64,
}

impl Running {
    fn at(next: i64) -> Self {
        Self { from: next, to: next, missing: 0 }
    }

    /// Continues a recorded count, as far as it lies below the position.
    fn continued(self, next: i64) -> Self {
        match self {
            _ if self.from > next => Self::at(next),
            // A backfill may have inserted the missing outcomes, so the range is counted again.
            Self { from, missing: 1.., .. } => Self::at(from),
            Self { from, to, missing } => Self { from, to: to.min(next), missing },
        }
    }

    /// Limits the count to the offsets below `next`, because the position may have been rewound.
    fn not_beyond(&mut self, next: i64) {
        self.from = self.from.min(next);
        self.to = self.to.min(next);
    }
}

impl Audit {
    pub fn new(source_id: i32, topic: Topic, token: FencingToken) -> Self {
        Self { source_id, topic, fence: token.fence, counted: BTreeMap::new(), kept_at: None }
    }

    /// The number of unaccounted offsets so far, per partition.
    pub fn missing(&self) -> impl Iterator<Item = (TopicPartition, i64)> {
        self.counted.iter().map(|(partition, running)| (partition.clone(), running.missing))
    }
}

impl LedgerStore {
    /// Counts the offsets that were committed since the last call, in one snapshot. `from` has the partitions, each
    /// with the offset at which the count of a new one begins.
    ///
    /// Returns the source's positions in that snapshot.
    pub async fn audit(
        &self,
        audit: &mut Audit,
        from: &BTreeMap<TopicPartition, NextOffset>,
    ) -> Result<BTreeMap<TopicPartition, NextOffset>, LedgerError> {
        if audit.kept_at.is_none() {
            audit.kept_at = Some(Instant::now());
            if let Err(error) = self.load(audit, from).await {
                tracing::debug!(error = %error, "earlier counts cannot be read; counting begins anew");
            }
        }
        for (partition, next) in from {
            audit.counted.entry(partition.clone()).or_insert(Running::at(next.get()));
        }
        let (partitions, since): (Vec<i32>, Vec<i64>) = audit.counted.iter().map(|(p, c)| (p.partition, c.to)).unzip();
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        let params = [
            (&audit.source_id as _, Type::INT4),
            (&partitions as _, Type::INT4_ARRAY),
            (&since as _, Type::INT8_ARRAY),
        ];
        let rows = session.query(UNACCOUNTED, &params).await?;
        let positions = positions::read_unlocked(&session, audit.source_id, &audit.topic).await?;
        session.rollback().await?;
        for row in &rows {
            if let Some(running) = audit.counted.get_mut(&audit.topic.partition(row.get(0))) {
                running.to = row.get(1);
                running.missing += row.get::<_, i64>(2);
            }
        }
        for (partition, position) in &positions {
            let next = position.next.get();
            audit.counted.entry(partition.clone()).or_insert(Running::at(next)).not_beyond(next);
        }
        if audit.kept_at.is_some_and(|kept| kept.elapsed() >= RECORD_INTERVAL) {
            audit.kept_at = Some(Instant::now());
            if let Err(error) = self.keep(audit).await {
                tracing::debug!(error = %error, "the count cannot be recorded now");
            }
        }
        Ok(positions.into_iter().map(|(partition, position)| (partition, position.next)).collect())
    }

    async fn load(&self, audit: &mut Audit, from: &BTreeMap<TopicPartition, NextOffset>) -> Result<(), LedgerError> {
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        let rows = session.query(AUDITS, &[(&audit.source_id, Type::INT4)]).await?;
        session.rollback().await?;
        for row in &rows {
            let partition = audit.topic.partition(row.get(0));
            let kept = Running { from: row.get(1), to: row.get(2), missing: row.get(3) };
            if let Some(next) = from.get(&partition) {
                audit.counted.insert(partition, kept.continued(next.get()));
            }
        }
        Ok(())
    }

    async fn keep(&self, audit: &Audit) -> Result<(), LedgerError> {
        let partitions: Vec<i32> = audit.counted.keys().map(|p| p.partition).collect();
        let column = |value: fn(&Running) -> i64| audit.counted.values().map(value).collect::<Vec<i64>>();
        let (from, to, missing) = (column(|c| c.from), column(|c| c.to), column(|c| c.missing));
        let params = [
            (&audit.source_id as _, Type::INT4),
            (&audit.fence as _, Type::INT8),
            (&partitions as _, Type::INT4_ARRAY),
            (&from as _, Type::INT8_ARRAY),
            (&to as _, Type::INT8_ARRAY),
            (&missing as _, Type::INT8_ARRAY),
        ];
        let mut session = self.session().await?;
        session.begin().await?;
        session.execute(KEEP_AUDITS, &params).await?;
        Ok(session.commit().await.map_err(|failure| failure.into_error())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_count_is_continued_and_never_exceeds_the_position() {
        let kept = Running { from: 10, to: 50, missing: 0 };
        assert_eq!(kept.continued(80), kept, "later offsets are counted next");
        assert_eq!(kept.continued(30), Running { from: 10, to: 30, missing: 0 }, "the position was rewound");
        assert_eq!(kept.continued(5), Running::at(5));
        assert_eq!(Running { missing: 2, ..kept }.continued(80), Running::at(10), "a backfill may have inserted them");
    }
}
