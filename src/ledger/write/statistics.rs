//! The planner's statistics of the growing tables: a table is analyzed when it has grown by an order of magnitude.
//!
//! gapless itself relies on no statistics. Readers do, and autovacuum runs at most once a minute, if it is on. Only
//! tables that the daemon's role owns are analyzed, because only the owner may. The daemon calls this in parallel to
//! its writers.

use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;

/// `n_mod_since_analyze` counts the changed rows since the last ANALYZE, and `relpages` is the size at that time. Both
/// are needed: a crash of the server may lose the counters, and VACUUM updates `relpages` without new statistics. Small
/// tables are ignored.
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
            // The connections are limited, and the writers need them.
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
