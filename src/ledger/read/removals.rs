//! Compares statuses with the order of effects, for `gapless verify`: an occurrence whose last effect is a removal must
//! be `removed`, and one whose last effect is an addition must not. It uses the ledger alone.
//!
//! Effects follow the order in which messages were processed. If that may differ from the order of the log (a rewind, a
//! replay, several partitions), either status is accepted. An outcome whose message has no row in `events` or
//! `event_conflicts` references the event of its identity, but not one of its occurrences: it may be the effect on any
//! earlier occurrence.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::consistency::{Inspector, PartitionSnapshot};
use super::contents::{Fields, Relation};
use super::doubles::PLANS;
use super::inconsistency::one;
use crate::ledger::error::LedgerError;
use crate::model::offset::{Offset, OffsetRange};

/// An occurrence whose status differs from its last effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnappliedRemoval {
    pub position_id: i32,
    pub range: OffsetRange,
    pub fields: Fields,
}

/// `own` is the effect of the message that inserted an occurrence. Effects of other messages before the second
/// occurrence belong to the first occurrence. `removal` and `addition` are the last effects of other messages; they may
/// belong to any earlier occurrence. Only ledgers of messages with one event are compared, because an outcome references
/// one event.
const UNAPPLIED_REMOVALS: &str = "-- statuses_against_effects
with affected as materialized (
    select distinct event_id as existing_id from gapless.outcomes where state = 'removed' and event_id is not null
), occurrences as materialized (
    select o.*, row_number() over of_it as n, lead(\"offset\") over of_it as second,
           min(position_id) over of_all = max(position_id) over of_all and max(event_no) over of_all = 0 as is_clear
    from (
        select false as is_conflict, e.id as existing_id, e.position_id, e.\"offset\", e.event_no, e.status
        from gapless.stored_events e join affected t on t.existing_id = e.id
        union all
        select true, c.event_id, c.position_id, c.\"offset\", c.event_no, c.status
        from gapless.conflicting_events c join affected t on t.existing_id = c.event_id
    ) as o window of_it as (partition by existing_id order by \"offset\"), of_all as (partition by existing_id)
), effects as materialized (
    select o.event_id as existing_id, o.position_id, o.\"offset\", o.state = 'removed' as removes,
           x.existing_id is not null as is_own,
           o.update_time < lag(o.update_time) over (partition by o.event_id order by o.\"offset\") as is_late
    from gapless.outcomes o join affected t on t.existing_id = o.event_id
    left join occurrences x
        on x.existing_id = o.event_id and x.position_id = o.position_id and x.\"offset\" = o.\"offset\"
    where o.state in ('stored', 'processed', 'removed')
), clear as materialized (
    select f.existing_id, max(f.\"offset\") filter (where f.removes and not f.is_own) as removal,
           max(f.\"offset\") filter (where not f.removes and not f.is_own) as addition
    from effects f
    left join (select distinct position_id, \"offset\" from gapless.late_offsets) as l
        on not f.is_own and l.position_id = f.position_id and l.\"offset\" = f.\"offset\"
    group by f.existing_id
    having min(f.position_id) = max(f.position_id) and not bool_or(coalesce(f.is_late, false))
           and bool_and(l.position_id is null)
), firsts as (
    select x.existing_id, (array_agg(f.removes order by f.\"offset\" desc))[1] as removes
    from occurrences x join effects f on f.existing_id = x.existing_id
    where x.n = 1 and f.\"offset\" >= x.\"offset\" and (x.second is null or f.\"offset\" < x.second)
    group by x.existing_id
), compared as (
    select x.is_conflict, x.position_id, x.\"offset\", x.status = 'removed' as is_removed,
           case x.n when 1 then first.removes else own.removes end as removes,
           case x.n when 1 then coalesce(x.second, 9223372036854775807) else x.\"offset\" end as certain_to,
           c.removal, c.addition
    from occurrences x
    join clear c on c.existing_id = x.existing_id
    join firsts first on first.existing_id = x.existing_id
    join effects own
        on own.existing_id = x.existing_id and own.position_id = x.position_id and own.\"offset\" = x.\"offset\"
    where x.is_clear
)
select is_conflict, position_id, \"offset\", count(*) over () from compared
where position_id = any($1)
  and (is_removed and not removes and coalesce(removal < certain_to, true)
       or not is_removed and removes and coalesce(addition < certain_to, true))
order by 2, 3 limit $2";

impl Inspector {
    /// The occurrences of these partitions whose status differs from their last effect: at most `limit` of them, and
    /// the number of the others.
    pub async fn undone(
        &self,
        partitions: &[PartitionSnapshot],
        limit: usize,
    ) -> Result<(Vec<UnappliedRemoval>, u64), LedgerError> {
        if self.has_several_events_a_message().await? {
            return Ok((Vec::new(), 0));
        }
        let positions: Vec<i32> = partitions.iter().map(|p| p.position_id).collect();
        let limit = i64::try_from(limit.max(1)).unwrap_or(i64::MAX);
        // The settings end with the savepoint.
        self.session().savepoint().await?;
        self.session().query(PLANS, &[]).await?;
        let rows =
            self.session().query(UNAPPLIED_REMOVALS, &[(&positions, Type::INT4_ARRAY), (&limit, Type::INT8)]).await;
        self.session().rollback_to_savepoint().await?;
        let rows = rows?;
        let total: i64 = rows.first().map_or(0, |row| row.get(3));
        let more = u64::try_from(total).unwrap_or(0).saturating_sub(rows.len() as u64);
        Ok((rows.iter().filter_map(undone).collect(), more))
    }
}

fn undone(row: &Row) -> Option<UnappliedRemoval> {
    let relation = if row.get(0) { Relation::Conflicts } else { Relation::Events };
    Some(UnappliedRemoval { position_id: row.get(1), range: one(Offset::new(row.get(2))?), fields: relation.status() })
}
