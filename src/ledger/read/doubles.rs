//! Doubled rows of the ledger, for `gapless verify`. They are counted without relying on the keys: without its key, a
//! table accepts a row twice, and no statement fails.
//!
//! A hash aggregate over the key's columns finds whether there are doubled rows. Only then another statement finds
//! their offsets.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::consistency::{Inspector, PartitionSnapshot};
use crate::ledger::error::LedgerError;
use crate::model::offset::{NextOffset, OffsetRange};

/// The kind of a doubled row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubled {
    /// An identity in `events`. The range contains the offsets of the later copies.
    Events,
    /// An identity with the same content in `event_conflicts`.
    Conflicts,
    /// Offsets with several outcomes.
    Outcomes,
    /// Offsets with several dead letters.
    DeadLetters,
}

impl Doubled {
    const ALL: [Self; 4] = [Self::Events, Self::Conflicts, Self::Outcomes, Self::DeadLetters];

    pub fn relation(self) -> &'static str {
        match self {
            Self::Events => "stored_events",
            Self::Conflicts => "conflicting_events",
            Self::Outcomes => "outcomes",
            Self::DeadLetters => "rejected_messages",
        }
    }

    fn statements(self) -> [&'static str; 2] {
        match self {
            Self::Events => [ANY_EVENTS, EVENTS],
            Self::Conflicts => [ANY_CONFLICTS, CONFLICTS],
            Self::Outcomes => [ANY_OUTCOMES, OUTCOMES],
            Self::DeadLetters => [ANY_DEAD_LETTERS, DEAD_LETTERS],
        }
    }
}

/// Makes the planner read each row once whatever its statistics are, with memory for the identities of some million
/// events.
pub(crate) const PLANS: &str = "-- doubles_plans
select set_config('work_mem', '64MB', true), set_config('enable_seqscan', 'on', true), set_config('enable_sort', 'on', true),
       set_config('enable_hashjoin', 'on', true), set_config('enable_indexscan', 'off', true),
       set_config('enable_indexonlyscan', 'off', true)";

/// Two statements: whether there are doubled rows, and the offsets of the later copies, merged to ranges per position.
macro_rules! doubled {
    ($any:ident, $all:ident, $name:literal, $table:literal, $key:literal, $order:literal) => {
        const $any: &str = concat!(
            "-- any_doubled_",
            $name,
            "\nselect exists (select from gapless.",
            $table,
            " group by ",
            $key,
            " having count(*) > 1)"
        );
        const $all: &str = concat!(
            "-- doubled_",
            $name,
            "\nselect position_id, min(\"offset\"), max(\"offset\") + 1, count(*) over () from (
                select distinct position_id, \"offset\",
                       \"offset\" - dense_rank() over (partition by position_id order by \"offset\") as island
                from (select position_id, \"offset\", row_number() over (partition by ",
            $key,
            " order by ",
            $order,
            ", ctid) as copy from gapless.",
            $table,
            " where (",
            $key,
            ") in (select ",
            $key,
            " from gapless.",
            $table,
            " group by ",
            $key,
            " having count(*) > 1)) as copies
                where copy > 1 and position_id = any($1)
            ) as islands group by position_id, island order by 1, 2 limit $2"
        );
    };
}

doubled!(ANY_EVENTS, EVENTS, "events", "stored_events", "identity", "id");
doubled!(ANY_CONFLICTS, CONFLICTS, "conflicts", "conflicting_events", "identity, content_digest", "id");
doubled!(ANY_OUTCOMES, OUTCOMES, "outcomes", "outcomes", "position_id, \"offset\"", "update_time");
doubled!(ANY_DEAD_LETTERS, DEAD_LETTERS, "dead_letters", "rejected_messages", "position_id, \"offset\"", "first_seen");

impl Inspector {
    /// The doubled rows of these partitions as (kind, position id, range): at most `limit` ranges of each kind, and the
    /// number of further ranges.
    pub async fn doubles(
        &self,
        partitions: &[PartitionSnapshot],
        limit: usize,
    ) -> Result<(Vec<(Doubled, i32, OffsetRange)>, u64), LedgerError> {
        // The settings end with the savepoint.
        self.session().savepoint().await?;
        self.session().query(PLANS, &[]).await?;
        let found = self.doubled(partitions, limit).await;
        self.session().rollback_to_savepoint().await?;
        found
    }

    async fn doubled(
        &self,
        partitions: &[PartitionSnapshot],
        limit: usize,
    ) -> Result<(Vec<(Doubled, i32, OffsetRange)>, u64), LedgerError> {
        let positions: Vec<i32> = partitions.iter().map(|p| p.position_id).collect();
        let limit = i64::try_from(limit.max(1)).unwrap_or(i64::MAX);
        let (mut found, mut more) = (Vec::new(), 0);
        for doubled in Doubled::ALL {
            let [any, all] = doubled.statements();
            if !self.session().one(any, &[]).await?.get::<_, bool>(0) {
                continue;
            }
            let rows = self.session().query(all, &[(&positions, Type::INT4_ARRAY), (&limit, Type::INT8)]).await?;
            let total: i64 = rows.first().map_or(0, |row| row.get(3));
            more += u64::try_from(total).unwrap_or(0).saturating_sub(rows.len() as u64);
            found.extend(rows.iter().filter_map(|row| Some((doubled, row.get(0), range(row)?))));
        }
        Ok((found, more))
    }
}

fn range(row: &Row) -> Option<OffsetRange> {
    OffsetRange::new(NextOffset::new(row.get(1))?, NextOffset::new(row.get(2))?)
}
