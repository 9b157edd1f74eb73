//! The planner's statistics of the tables that grow: analyzed when they have grown by an order of magnitude.
//!
//! gapless itself relies on none; readers do, and autovacuum comes once a minute at most, if it is on. Only where the
//! daemon's role owns the table: nobody else may. Called by the daemon, beside its writers.

use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;

/// `n_mod_since_analyze` counts what came since, and `relpages` is the size then: counters may be lost in a crash of the
/// server, and VACUUM moves `relpages` without looking at the contents. Small tables change nothing.
const OUTGROWN: &str = "-- outgrown_statistics
select c.relname::text from pg_catalog.pg_class c
left join pg_catalog.pg_stat_all_tables t on t.relid = c.oid
where c.relnamespace = to_regnamespace('gapless') and c.relkind = 'r'
  and c.relname in ('stored_events', 'outcomes', 'conflicting_events', 'rejected_messages', 'gaps')
  and pg_catalog.pg_has_role(c.relowner, 'USAGE')
  and (coalesce(t.n_live_tup, 0) >= 1000 and t.n_mod_since_analyze >= 0.9 * t.n_live_tup
       or pg_catalog.pg_relation_size(c.oid) / current_setting('block_size')::int8 >= 10 * greatest(c.relpages, 32))";

impl LedgerStore {
    /// Analyzes the tables that have outgrown their statistics, each in a transaction of its own; returns their names.
    pub async fn keep_statistics(&self) -> Result<Vec<&'static str>, LedgerError> {
        if self.pool.is_limited() {
            // The writers need those that there are.
            return Ok(Vec::new());
        }
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        let rows = session.query(OUTGROWN, &[]).await?;
        session.rollback().await?;
        let outgrown: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
        let mut analyzed = Vec::new();
        for (table, sql) in ANALYZE.iter().filter(|(table, _)| outgrown.contains(table)) {
            session.begin().await?;
            session.execute(sql, &[]).await?;
            session.commit().await.map_err(|failure| failure.into_error())?;
            analyzed.push(*table);
        }
        Ok(analyzed)
    }
}

const ANALYZE: [(&str, &str); 5] = [
    ("stored_events", "-- analyze_events\nanalyze gapless.stored_events"),
    ("outcomes", "-- analyze_outcomes\nanalyze gapless.outcomes"),
    ("conflicting_events", "-- analyze_conflicts\nanalyze gapless.conflicting_events"),
    ("rejected_messages", "-- analyze_dead_letters\nanalyze gapless.rejected_messages"),
    ("gaps", "-- analyze_gaps\nanalyze gapless.gaps"),
];
