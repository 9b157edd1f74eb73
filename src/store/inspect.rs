//! The ledger held against itself, for `gapless verify`: in one snapshot, while the daemon runs.
//!
//! Coverage is one pass over outcomes and gaps in offset order: each must begin where those before
//! end. Links are anti-joins: what should be there and is not. Only flaws come back, as ranges.

use std::collections::HashMap;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::connect::Store;
use super::error::StoreError;
use super::session::Session;
use crate::position::{NextOffset, Offset, OffsetRange};
use crate::record::Digest;
use crate::source::observer::Life;

/// One partition of one life of the topic, with its counts.
#[derive(Debug, Clone)]
pub struct Inspected {
    pub position_id: i32,
    pub generation: i32,
    pub life: Life,
    pub partition: i32,
    pub start: NextOffset,
    pub next: NextOffset,
}

/// What can be wrong with a range of offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flaw {
    /// Neither outcome nor gap.
    Unaccounted,
    /// More than one of them.
    Overlap,
    /// The outcome is `stored`, but no event was brought by this message.
    EventMissing,
    /// The outcome names an event that is not there.
    DanglingEvent,
    /// A conflict names a winner that is not there.
    DanglingConflict,
    /// An event, conflict or dead letter without the outcome of the message that brought it.
    OutcomeMissing,
    /// A dead letter whose message is not `rejected`, or one that was replayed and still is; an event
    /// whose message is not `stored` (or `removed`, if it came as a removal).
    OutcomeDiffers,
    /// Rejected, but its bytes are not in `dead_letters`.
    DeadLetterMissing,
}

impl Flaw {
    pub fn name(self) -> &'static str {
        match self {
            Self::Unaccounted => "unaccounted",
            Self::Overlap => "overlap",
            Self::EventMissing => "event_missing",
            Self::DanglingEvent => "dangling_event",
            Self::DanglingConflict => "dangling_conflict",
            Self::OutcomeMissing => "outcome_missing",
            Self::OutcomeDiffers => "outcome_differs",
            Self::DeadLetterMissing => "dead_letter_missing",
        }
    }
}

/// Flaws of a partition: the first of each kind, and how many more ranges there are.
#[derive(Debug, Default)]
pub struct Flaws {
    pub ranges: Vec<(Flaw, OffsetRange)>,
    pub more: u64,
}

impl Flaws {
    /// Rows begin with a range and with how many of them there are in all.
    fn add(&mut self, rows: &[Row], flaw: impl Fn(&Row) -> Flaw) {
        let total: i64 = rows.first().map_or(0, |row| row.get(2));
        self.more += u64::try_from(total).unwrap_or(0).saturating_sub(rows.len() as u64);
        self.ranges.extend(rows.iter().filter_map(|row| Some((flaw(row), range(row.get(0), row.get(1))?))));
    }
}

const GENERATION: &str = "-- inspect_generation
select max(generation) from gapless.sources where topic = $1";

const PARTITIONS: &str = "-- inspect_partitions
select p.id, s.generation, s.cluster_id, s.topic_id, p.partition_id, p.start_offset, p.next_offset
from gapless.positions p join gapless.sources s on s.id = p.source_id
where s.topic = $1
order by s.generation, p.partition_id";

/// A running maximum tells how far the parts before reach: a later part leaves a hole behind it, or
/// repeats what is covered. Among parts that begin together the order changes nothing. Repeated ranges
/// that touch become one (`island`).
const COVERAGE: &str = "-- inspect_coverage
with parts as (
    select $2::int8 as lo, $2::int8 as hi
    union all
    select \"offset\", \"offset\" + 1 from gapless.outcomes
    where position_id = $1 and \"offset\" >= $2 and \"offset\" < $3
    union all
    select greatest(lower(r), $2), least(upper(r), $3)
    from gapless.gaps cross join lateral unnest(ranges) as r
    where position_id = $1 and lower(r) < $3 and upper(r) > $2
    union all
    select $3, $3
), reached as (
    select lo, hi, max(hi) over (order by lo rows between unbounded preceding and 1 preceding) as max_hi from parts
), flawed as (
    select lo < max_hi as overlap, least(lo, max_hi) as low, case when lo < max_hi then least(hi, max_hi) else lo end as high
    from reached where lo > max_hi or (lo < max_hi and lo < hi)
), islands as (
    select overlap, low, high, low > max(high) over (
        partition by overlap order by low, high rows between unbounded preceding and 1 preceding) as begins
    from flawed
), numbered as (
    select overlap, low, high, count(*) filter (where begins) over (partition by overlap order by low, high) as island
    from islands
)
select min(low), max(high), count(*) over (), overlap from numbered group by overlap, island order by 1 limit $4";

/// Flawed offsets as ranges: of neighbours, offset less rank is the same.
macro_rules! flawed {
    ($name:literal, $offsets:literal) => {
        concat!(
            "-- ",
            $name,
            "\nselect min(\"offset\"), max(\"offset\") + 1, count(*) over () from (
                select \"offset\", \"offset\" - dense_rank() over (order by \"offset\") as island from (",
            $offsets,
            ") as flawed) as islands group by island order by 1 limit $2"
        )
    };
}

const EVENT_MISSING: &str = flawed!(
    "inspect_event_missing",
    "select \"offset\" from gapless.outcomes o where o.position_id = $1 and o.state = 'stored' and not exists (
        select from gapless.stored_events e where e.position_id = o.position_id and e.\"offset\" = o.\"offset\")"
);

const DANGLING_EVENT: &str = flawed!(
    "inspect_dangling_event",
    "select \"offset\" from gapless.outcomes o where o.position_id = $1 and o.event_id is not null
        and not exists (select from gapless.stored_events e where e.id = o.event_id)
     union all
     select \"offset\" from gapless.outcomes o
      where o.position_id = $1 and o.event_id is null and o.state in ('stored', 'processed', 'removed')"
);

const DANGLING_CONFLICT: &str = flawed!(
    "inspect_dangling_conflict",
    "select \"offset\" from gapless.conflicting_events c where c.position_id = $1
        and not exists (select from gapless.stored_events e where e.id = c.event_id)"
);

const OUTCOME_MISSING: &str = flawed!(
    "inspect_outcome_missing",
    "select \"offset\" from gapless.stored_events e where e.position_id = $1 and not exists (
        select from gapless.outcomes o where o.position_id = e.position_id and o.\"offset\" = e.\"offset\")
     union all
     select \"offset\" from gapless.conflicting_events c where c.position_id = $1 and not exists (
        select from gapless.outcomes o where o.position_id = c.position_id and o.\"offset\" = c.\"offset\")
     union all
     select \"offset\" from gapless.rejected_messages d where d.position_id = $1 and not exists (
        select from gapless.outcomes o where o.position_id = d.position_id and o.\"offset\" = d.\"offset\")"
);

/// `replay` changes an outcome together with its letter; a message that brought an event stored it.
const OUTCOME_DIFFERS: &str = flawed!(
    "inspect_outcome_differs",
    "select d.\"offset\" from gapless.rejected_messages d
     join gapless.outcomes o on o.position_id = d.position_id and o.\"offset\" = d.\"offset\"
     where d.position_id = $1 and (o.state = 'rejected') <> (d.state <> 'replayed')
     union all
     select e.\"offset\" from gapless.stored_events e
     join gapless.outcomes o on o.position_id = e.position_id and o.\"offset\" = e.\"offset\"
     where e.position_id = $1 and o.state not in ('stored', 'removed')"
);

const DEAD_LETTER_MISSING: &str = flawed!(
    "inspect_dead_letter_missing",
    "select \"offset\" from gapless.outcomes o where o.position_id = $1 and o.state = 'rejected' and not exists (
        select from gapless.rejected_messages d where d.position_id = o.position_id and d.\"offset\" = o.\"offset\")"
);

const DIGESTS: &str = "-- inspect_digests
select \"offset\", payload_digest from gapless.outcomes where position_id = $1 and \"offset\" >= $2 and \"offset\" < $3";

const COUNTS: &str = "-- inspect_counts
select (select count(*) from gapless.outcomes where position_id = $1 and \"offset\" >= $2 and \"offset\" < $3),
       (select coalesce(sum(upper(r) - lower(r)), 0)::int8
          from gapless.gaps cross join lateral unnest(ranges * int8multirange(int8range($2, $3))) as r
         where position_id = $1 and from_offset < $3 and to_offset > $2)";

/// One snapshot of the ledger; ends when dropped.
pub struct Inspector {
    session: Session,
}

impl Store {
    pub async fn inspect(&self) -> Result<Inspector, StoreError> {
        let mut session = self.patient_session().await?;
        // The log is read between two questions, and Kafka may pause.
        session.begin_lasting_snapshot().await?;
        Ok(Inspector { session })
    }
}

impl Inspector {
    /// The newest life of the topic: after `gapless rebase` it has no position before the next start.
    pub async fn generation(&self, topic: &str) -> Result<Option<i32>, StoreError> {
        let rows = self.session.query(GENERATION, &[(&topic, Type::TEXT)]).await?;
        Ok(rows.first().and_then(|row| row.get(0)))
    }

    /// Every partition of every life of the topic.
    pub async fn partitions(&self, topic: &str) -> Result<Vec<Inspected>, StoreError> {
        let rows = self.session.query(PARTITIONS, &[(&topic, Type::TEXT)]).await?;
        let next =
            |row: &Row, column| NextOffset::new(row.get(column)).expect("the table's checks refuse a negative offset");
        Ok(rows
            .iter()
            .map(|row| Inspected {
                position_id: row.get(0),
                generation: row.get(1),
                life: Life { cluster_id: row.get(2), topic_id: row.get(3) },
                partition: row.get(4),
                start: next(row, 5),
                next: next(row, 6),
            })
            .collect())
    }

    /// Outcomes, and offsets of gaps, between start and position.
    pub async fn counts(&self, p: &Inspected) -> Result<(i64, i64), StoreError> {
        let (start, next) = (p.start.get(), p.next.get());
        let params = [(&p.position_id as _, Type::INT4), (&start as _, Type::INT8), (&next as _, Type::INT8)];
        let rows = self.session.query(COUNTS, &params).await?;
        Ok(rows.first().map_or((0, 0), |row| (row.get(0), row.get(1))))
    }

    /// Everything that is wrong with a partition's rows, as ranges: some `most` of each flaw, the others
    /// counted.
    pub async fn flaws(&self, p: &Inspected, most: usize) -> Result<Flaws, StoreError> {
        let (start, next) = (p.start.get(), p.next.get());
        // None at all would not say how many there are.
        let most = i64::try_from(most.max(1)).unwrap_or(i64::MAX);
        let limit = (&most as _, Type::INT8);
        let position = (&p.position_id as _, Type::INT4);
        let mut flaws = Flaws::default();
        let params = [position.clone(), (&start as _, Type::INT8), (&next as _, Type::INT8), limit.clone()];
        let rows = self.session.query(COVERAGE, &params).await?;
        flaws.add(&rows, |row| if row.get(3) { Flaw::Overlap } else { Flaw::Unaccounted });
        for (flaw, sql) in [
            (Flaw::EventMissing, EVENT_MISSING),
            (Flaw::DanglingEvent, DANGLING_EVENT),
            (Flaw::DanglingConflict, DANGLING_CONFLICT),
            (Flaw::OutcomeMissing, OUTCOME_MISSING),
            (Flaw::OutcomeDiffers, OUTCOME_DIFFERS),
            (Flaw::DeadLetterMissing, DEAD_LETTER_MISSING),
        ] {
            let rows = self.session.query(sql, &[position.clone(), limit.clone()]).await?;
            flaws.add(&rows, |_| flaw);
        }
        Ok(flaws)
    }

    /// The digests of the messages recorded in a range.
    pub async fn digests(&self, p: &Inspected, r: OffsetRange) -> Result<HashMap<Offset, Option<Digest>>, StoreError> {
        let (from, to) = (r.from().get(), r.to().get());
        let params = [(&p.position_id as _, Type::INT4), (&from as _, Type::INT8), (&to as _, Type::INT8)];
        let rows = self.session.query(DIGESTS, &params).await?;
        let offset = |row: &Row| Offset::new(row.get(0)).expect("no negative offset was ever stored");
        Ok(rows.iter().map(|row| (offset(row), row.get(1))).collect())
    }
}

fn range(from: i64, to: i64) -> Option<OffsetRange> {
    OffsetRange::new(NextOffset::new(from)?, NextOffset::new(to)?)
}
