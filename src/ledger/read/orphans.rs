//! Rows whose position does not exist, for `gapless verify`: no view shows them, but their identities still prevent the
//! same events from being stored again.

use super::consistency::Inspector;
use crate::ledger::error::LedgerError;

/// Rows of one table with a position id that does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphans {
    pub table: String,
    pub position_id: i32,
}

/// Finds the distinct position ids of each table with one index look-up per id.
macro_rules! orphans {
    ($($table:literal),+) => {
        concat!("-- orphans\nselect * from (select '', 0 where false", $(
            " union all (with recursive p(id) as (select min(position_id) from gapless.", $table,
            " union all select (select min(t.position_id) from gapless.", $table, " t where t.position_id > p.id)
              from p where p.id is not null)
            select '", $table, "', id from p where id is not null)"
        ),+, ") as there(table_name, id) where not exists (select from gapless.positions q where q.id = there.id) order by 1, 2")
    };
}

const ORPHANS: &str =
    orphans!("stored_events", "outcomes", "conflicting_events", "rejected_messages", "gaps", "late_offsets");

impl Inspector {
    pub async fn orphans(&self) -> Result<Vec<Orphans>, LedgerError> {
        let rows = self.session().query(ORPHANS, &[]).await?;
        Ok(rows.iter().map(|row| Orphans { table: row.get(0), position_id: row.get(1) }).collect())
    }
}
