//! Terminates sessions that a daemon abandoned in the middle of a batch.
//!
//! The server ends a transaction that is idle for some seconds, and a statement that takes too long. Neither limit
//! applies while the server waits for the rest of a COPY: a stopped process (SIGSTOP, a frozen machine) or a network
//! that drops all packets would keep the keys of the batch's rows locked as long as the connection exists. The
//! statement limit does not apply to a single-statement batch whose daemon has given it up either. A session that waits
//! for its synchronous standby is not terminated: otherwise its rows would become visible before the standby has them.
//!
//! The first line of a writer's statement identifies it and has the time after which its daemon gives it up. The
//! application name cannot identify it, because the user sets it, and another daemon may have other limits.

use tokio_postgres::types::Type;

use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;

const END_SILENT_WRITERS: &str = "-- end_silent_writers
select count(*) filter (where pg_terminate_backend(pid)) from (
    select pid, query_start, wait_event, query,
        substring(query from '^-- (?:copy_[a-z_]+|write_few) gives_up_after_ms=([0-9]{1,9})\n')::float8 / 1000 as limit_s,
        -- The first line in earlier versions.
        application_name = 'gapless' and query ~ '^-- (copy_[a-z_]+|write_few)\n' as is_older
    from pg_stat_activity
    where datname = current_database() and usename = current_user and state = 'active' and pid <> pg_backend_pid()
) writers
where (limit_s is not null or is_older)
    and (wait_event = 'ClientRead' and query like '-- copy\\_%' or query like '-- write\\_few%'
        and wait_event is distinct from 'SyncRep')
    and query_start < now() - make_interval(secs => coalesce(limit_s, $1))";

impl LedgerStore {
    /// Terminates the sessions whose daemon would have given the batch up by now if it were alive. Returns their
    /// number.
    pub async fn terminate_stale_sessions(&self) -> Result<i64, LedgerError> {
        let mut session = self.session().await?;
        session.begin().await?;
        let seconds = self.call_timeout().as_secs_f64();
        let ended = session.one(END_SILENT_WRITERS, &[(&seconds, Type::FLOAT8)]).await?.get(0);
        session.rollback().await?;
        Ok(ended)
    }
}
