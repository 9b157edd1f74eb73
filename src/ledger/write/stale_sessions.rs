//! Sessions that a daemon left behind in the middle of a batch.
//!
//! The server ends a transaction that is idle for some seconds, and a statement that takes too long. Neither
//! counts while it waits for the rest of a COPY: a stopped process (SIGSTOP, a frozen machine) or a network that
//! swallows everything would keep the keys of its rows locked for as long as the connection lives. Nor does the
//! second count for the statement that is a whole batch, whose daemon gave it up. (One that waits for its synchronous
//! standby is left alone: ended there, its rows would be seen before the standby has them.)
//!
//! Which sessions are a writer's, and when it has given its statement up, stands in the statement's own first line: the
//! application's name is the user's, and another daemon may have other limits.

use tokio_postgres::types::Type;

use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;

const END_SILENT_WRITERS: &str = "-- end_silent_writers
select count(*) filter (where pg_terminate_backend(pid)) from (
    select pid, query_start, wait_event, query,
        substring(query from '^-- (?:copy_[a-z_]+|write_few) gives_up_after_ms=([0-9]{1,9})\n')::float8 / 1000 as said,
        -- As earlier versions wrote it.
        application_name = 'gapless' and query ~ '^-- (copy_[a-z_]+|write_few)\n' as is_older
    from pg_stat_activity
    where datname = current_database() and usename = current_user and state = 'active' and pid <> pg_backend_pid()
) writers
where (said is not null or is_older)
    and (wait_event = 'ClientRead' and query like '-- copy\\_%' or query like '-- write\\_few%'
        and wait_event is distinct from 'SyncRep')
    and query_start < now() - make_interval(secs => coalesce(said, $1))";

impl LedgerStore {
    /// Ends those whose daemon, were it alive, would have given the batch up itself by now; how many.
    pub async fn terminate_stale_sessions(&self) -> Result<i64, LedgerError> {
        let mut session = self.session().await?;
        session.begin().await?;
        let seconds = self.call_timeout().as_secs_f64();
        let ended = session.one(END_SILENT_WRITERS, &[(&seconds, Type::FLOAT8)]).await?.get(0);
        session.rollback().await?;
        Ok(ended)
    }
}
