//! One connection and its transactions: every call has a deadline, every transaction sets what it
//! relies on itself, and a connection on which anything went wrong is never used again.
//!
//! Only unnamed statements (`query_typed`) and settings local to the transaction: nothing outlives
//! it, so a pooler in transaction mode may give each transaction another server connection. COPY is
//! the exception: tokio-postgres gives its statement a name, which is taken back before the
//! transaction ends.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::cancel;
use super::connector::{Access, Connection};
use super::copy::Rows;
use super::error::PgError;
use super::pool::Lease;

/// How long statements and locks are waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) statement: Duration,
    pub(crate) lock: Duration,
    /// A program that only reads works on a standby too.
    pub(crate) access: Access,
}

impl Limits {
    /// After this a call is given up, and a session that is still in the middle of one has nobody who would end it.
    pub(crate) fn silence(self) -> Duration {
        self.statement + SERVER_TIMEOUT_GRACE
    }
}

/// What the client waits beyond the server's own statement_timeout, so that the server's answer
/// (which says what happened) normally comes first.
const SERVER_TIMEOUT_GRACE: Duration = Duration::from_secs(2);

/// The server ends a transaction of ours that says nothing for this long: a stopped daemon
/// (SIGSTOP, a lost host) must not hold the locks of its half-written batch.
pub(crate) const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(10);

pub(crate) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// A connection, perhaps with an open transaction. Dropped with one open, it is closed.
pub(crate) struct Session {
    lease: Option<Lease>,
    limits: Limits,
    in_transaction: bool,
    /// A call came to no answer of the server's: what it would be the answer to is not known any more.
    is_broken: AtomicBool,
    /// A statement was sent whose answer is not there yet.
    is_running: AtomicBool,
}

/// Which plans a transaction's statements may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plans {
    Any,
    /// No scans of whole tables where there is an index.
    ByIndex,
    /// Rows of one table in the order of an index, and others looked up by key: what statistics say changes nothing.
    InKeyOrder,
}

impl Plans {
    fn settings(self) -> &'static str {
        match self {
            Self::Any => "set_config('enable_seqscan', 'on', true)",
            Self::ByIndex => "set_config('enable_seqscan', 'off', true)",
            Self::InKeyOrder => {
                "set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), \
                 set_config('enable_sort', 'off', true), set_config('enable_hashjoin', 'off', true), \
                 set_config('enable_mergejoin', 'off', true), set_config('enable_nestloop', 'on', true), \
                 set_config('enable_indexscan', 'on', true), set_config('enable_indexonlyscan', 'on', true), \
                 set_config('max_parallel_workers_per_gather', '0', true), set_config('jit', 'off', true)"
            }
        }
    }
}

/// The answer to COMMIT did not come or did not say: it may have been applied.
pub(crate) enum CommitFailure {
    Unknown(PgError),
    /// The server refused: nothing of the transaction is left.
    Refused(PgError),
}

impl CommitFailure {
    /// For transactions that may simply be run again.
    pub(crate) fn into_error(self) -> PgError {
        match self {
            Self::Unknown(error) | Self::Refused(error) => error,
        }
    }
}

/// Where row security would hide rows from this role, statements fail: what is hidden is neither missing nor proven.
const ALL_ROWS: &str = "-- all_rows_or_an_error
select set_config('row_security', 'off', true)";

impl Session {
    pub(crate) fn new(lease: Lease, limits: Limits) -> Self {
        Self {
            lease: Some(lease),
            limits,
            in_transaction: false,
            is_broken: AtomicBool::new(false),
            is_running: AtomicBool::new(false),
        }
    }

    fn connection(&self) -> &Connection {
        self.lease.as_ref().expect("present until dropped").connection()
    }

    /// With what it keeps from one use to the next.
    pub(crate) fn connection_mut(&mut self) -> &mut Connection {
        self.lease.as_mut().expect("present until dropped").connection_mut()
    }

    fn client(&self) -> &Client {
        &self.connection().client
    }

    /// What may go on being used, with a transaction begun anew.
    pub(crate) fn is_sound(&self) -> bool {
        !self.is_broken.load(Ordering::Relaxed) && !self.client().is_closed()
    }

    /// One call; where its caller goes away before the answer, the statement is cancelled.
    async fn within<T>(
        &self,
        statement: &'static str,
        call: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, PgError> {
        self.is_running.store(true, Ordering::Relaxed);
        let result = self.answer(statement, call).await;
        let is_over = !matches!(result, Err(PgError::Timeout { .. }));
        self.is_running.store(!is_over, Ordering::Relaxed);
        result
    }

    /// The same for what ends a transaction, which nothing cancels: COMMIT may wait for a standby, and a server that
    /// is told to stop waiting has committed all the same.
    async fn answer<T>(
        &self,
        statement: &'static str,
        call: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, PgError> {
        let after = self.limits.silence();
        let result = match tokio::time::timeout(after, call).await {
            Ok(result) => result.map_err(|source| {
                tracing::debug!(statement, "a statement failed");
                PgError::Statement { statement, source }
            }),
            Err(_) => {
                tracing::debug!(statement, "a statement had no answer");
                Err(PgError::Timeout { statement, after })
            }
        };
        if result.as_ref().is_err_and(|error| error.sqlstate().is_none()) {
            self.is_broken.store(true, Ordering::Relaxed);
        }
        result
    }

    /// Opens a transaction and sets, for it alone, everything it relies on. Each of its questions is one
    /// for an index, whatever the statistics of a table that grows by thousands of rows a second say.
    pub(crate) async fn begin(&mut self) -> Result<(), PgError> {
        self.open(self.mode(), IDLE_IN_TRANSACTION, Plans::ByIndex).await
    }

    fn mode(&self) -> &'static str {
        match self.limits.access {
            Access::Write => "read committed read write",
            Access::Read => "read committed read only",
        }
    }

    /// The same for a piece of a long work: what comes next is found in key order, however much comes after it.
    pub(crate) async fn begin_piece(&mut self) -> Result<(), PgError> {
        self.open(self.mode(), IDLE_IN_TRANSACTION, Plans::InKeyOrder).await
    }

    /// The same for a batch, by a function whose plan the server keeps.
    pub(crate) async fn begin_batch(&mut self) -> Result<(), PgError> {
        let [statement, lock, idle] = self.limits_ms();
        let sql = format!(
            "{}begin isolation level read committed read write; select gapless.enter({statement}, {lock}, {idle}){}",
            self.anew(),
            self.without_transaction_timeout(),
        );
        self.in_transaction = true;
        self.within("begin", self.client().batch_execute(&sql)).await
    }

    /// Ends the transaction before, if there is one, in the same message: a pooler gives the connection to nobody else
    /// in between.
    fn anew(&self) -> &'static str {
        if self.in_transaction { "rollback; " } else { "" }
    }

    /// Our own limits are those of statements; a transaction may wait for its turn, or read a whole ledger.
    fn without_transaction_timeout(&self) -> &'static str {
        // It came with PostgreSQL 17.
        if self.connection().server_major >= 17 { ", set_config('transaction_timeout', '0', true)" } else { "" }
    }

    /// Lets the server hear of a transaction that waits for something else.
    pub(crate) async fn ping(&self) -> Result<(), PgError> {
        self.within("ping", self.client().batch_execute("select 1")).await
    }

    /// Opens a transaction for looking at the catalogue, in which each statement sees what is committed by then. It may
    /// write where both the caller and the session's limits say so.
    pub(crate) async fn begin_looking(&mut self, asked: Access) -> Result<(), PgError> {
        let mode = match (asked, self.limits.access) {
            (Access::Write, Access::Write) => "read committed read write",
            (Access::Read, _) | (_, Access::Read) => "read committed read only",
        };
        self.open(mode, IDLE_IN_TRANSACTION, Plans::Any).await
    }

    /// Opens a transaction that sees one moment.
    pub(crate) async fn begin_snapshot(&mut self) -> Result<(), PgError> {
        self.open("repeatable read read only", IDLE_IN_TRANSACTION, Plans::Any).await
    }

    /// The same for statements that walk whole tables in key order, piece by piece, and for one who does other work
    /// between two of them, however long: it holds no lock that anybody waits for.
    pub(crate) async fn begin_walk(&mut self) -> Result<(), PgError> {
        self.open("repeatable read read only", Duration::ZERO, Plans::InKeyOrder).await?;
        self.query(ALL_ROWS, &[]).await.map(drop)
    }

    /// Idle for `Duration::ZERO` means without a limit.
    async fn open(&mut self, mode: &str, idle: Duration, plans: Plans) -> Result<(), PgError> {
        let sql = format!(
            "{}begin isolation level {mode}; \
             select set_config('synchronous_commit', \
                 case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true), \
                 set_config('statement_timeout', '{}', true), set_config('lock_timeout', '{}', true), \
                 set_config('idle_in_transaction_session_timeout', '{}', true), set_config('search_path', '', true), \
                 {}, set_config('client_min_messages', 'warning', true){}",
            self.anew(),
            self.limits.statement.as_millis(),
            self.limits.lock.as_millis(),
            idle.as_millis(),
            plans.settings(),
            self.without_transaction_timeout(),
        );
        self.in_transaction = true;
        self.within("begin", self.client().batch_execute(&sql)).await
    }

    /// Runs one statement and returns all its rows, awaited to the end.
    pub(crate) async fn query(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, PgError> {
        self.within(name(sql), self.client().query_typed(sql, params)).await
    }

    /// Runs the text of a migration, however long it takes; `name` is for errors.
    pub(crate) async fn execute_text(&self, name: &'static str, sql: &str) -> Result<(), PgError> {
        self.client().batch_execute(sql).await.map_err(|source| PgError::Statement { statement: name, source })
    }

    /// Runs a statement that a library put together; `name` is for errors.
    pub(crate) async fn query_text(&self, name: &'static str, sql: &str) -> Result<Vec<Row>, PgError> {
        self.within(name, self.client().query_typed(sql, &[])).await
    }

    /// Runs one statement and takes its rows one by one, as they come: many, or large ones.
    pub(crate) async fn each(
        &self,
        sql: &'static str,
        params: &[Param<'_>],
        mut take: impl FnMut(&Row),
    ) -> Result<(), PgError> {
        let rows = async {
            let params = params.iter().map(|(value, kind)| (*value, kind.clone()));
            let mut rows = std::pin::pin!(self.client().query_typed_raw(sql, params).await?);
            while let Some(row) = rows.try_next().await? {
                take(&row);
            }
            Ok(())
        };
        self.within(name(sql), rows).await
    }

    /// Runs one statement that returns one row.
    pub(crate) async fn one(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Row, PgError> {
        let rows = self.query(sql, params).await?;
        let got = rows.len();
        match <[Row; 1]>::try_from(rows) {
            Ok([row]) => Ok(row),
            Err(_) => Err(PgError::Rows { statement: name(sql), expected: 1, got }),
        }
    }

    /// Runs one statement that must touch exactly `expected` rows.
    pub(crate) async fn write(&self, sql: &'static str, params: &[Param<'_>], expected: usize) -> Result<(), PgError> {
        let touched = self.within(name(sql), self.client().execute_typed(sql, params)).await?;
        all_touched(sql, touched, expected)
    }

    /// The same for a statement that returns the rows it touched.
    pub(crate) async fn write_returning(
        &self,
        sql: &'static str,
        params: &[Param<'_>],
        expected: usize,
    ) -> Result<Vec<Row>, PgError> {
        let rows = self.query(sql, params).await?;
        all_touched(sql, rows.len() as u64, expected)?;
        Ok(rows)
    }

    /// Copies rows into a table, one an item, each encoded while the server takes the ones before.
    pub(crate) async fn copy<T>(
        &self,
        sql: &'static str,
        rows: &mut Rows,
        items: impl ExactSizeIterator<Item = T>,
        mut encode: impl FnMut(&mut Rows, T),
    ) -> Result<(), PgError> {
        let expected = items.len();
        let copy = async {
            let mut sink = std::pin::pin!(self.client().copy_in::<_, Bytes>(self.with_limit(sql).as_str()).await?);
            rows.begin();
            for item in items {
                encode(rows, item);
                if let Some(piece) = rows.full_piece() {
                    sink.send(piece).await?;
                }
            }
            sink.send(rows.last_piece()).await?;
            sink.finish().await
        };
        let touched = self.within(name(sql), copy).await?;
        all_touched(sql, touched, expected)
    }

    /// Runs one statement that touches as many rows as there are.
    pub(crate) async fn execute(&self, sql: &'static str, params: &[Param<'_>]) -> Result<u64, PgError> {
        self.within(name(sql), self.client().execute_typed(sql, params)).await
    }

    /// Runs one statement that does all or nothing, as a transaction of its own: what it relies on it sets itself.
    /// Where its answer is lost, it may have been committed, or may be later.
    pub(crate) async fn execute_autocommit(
        &mut self,
        sql: &'static str,
        params: &[Param<'_>],
    ) -> Result<(), CommitFailure> {
        self.in_transaction = true;
        let done = self.answer(name(sql), self.client().query_typed(&self.with_limit(sql), params)).await;
        let ended = self.classify_commit_result(done.map(drop));
        self.in_transaction = matches!(ended, Err(CommitFailure::Unknown(_)));
        ended
    }

    /// A statement that other programs may have to end says after which time this one has given it up itself: see
    /// [`crate::ledger::write::stale_sessions`].
    fn with_limit(&self, sql: &'static str) -> String {
        let limit = self.limits.silence().as_millis();
        match sql.split_once('\n') {
            Some((name, rest)) => format!("{name} gives_up_after_ms={limit}\n{rest}"),
            None => sql.to_owned(),
        }
    }

    /// Of a batch: a statement, a lock, idle in a transaction.
    pub(crate) fn limits_ms(&self) -> [i32; 3] {
        [self.limits.statement, self.limits.lock, IDLE_IN_TRANSACTION]
            .map(|limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX))
    }

    /// What the end of a transaction came to.
    fn classify_commit_result(&mut self, answer: Result<(), PgError>) -> Result<(), CommitFailure> {
        match answer {
            Ok(()) => {
                self.in_transaction = false;
                Ok(())
            }
            Err(error @ PgError::Statement { .. }) if error.sqlstate().is_some_and(|s| !ended_connection(s.code())) => {
                Err(CommitFailure::Refused(error))
            }
            Err(error) => Err(CommitFailure::Unknown(error)),
        }
    }

    /// Commits. tokio-postgres does not look at the command tag, and a server answers COMMIT of a
    /// failed transaction with ROLLBACK and no error: so no statement's error may ever be dropped
    /// before this call. Each one here returns it.
    pub(crate) async fn commit(&mut self) -> Result<(), CommitFailure> {
        self.classify_commit_result(self.answer("commit", self.client().batch_execute("commit")).await)
    }

    pub(crate) async fn rollback(&mut self) -> Result<(), PgError> {
        if !self.in_transaction {
            return Ok(());
        }
        self.within("rollback", self.client().batch_execute("rollback")).await?;
        self.in_transaction = false;
        Ok(())
    }

    pub(crate) async fn savepoint(&self) -> Result<(), PgError> {
        self.within("savepoint", self.client().batch_execute("savepoint rows")).await
    }

    pub(crate) async fn rollback_to_savepoint(&self) -> Result<(), PgError> {
        self.within(
            "rollback to savepoint",
            self.client().batch_execute("rollback to savepoint rows; release savepoint rows"),
        )
        .await
    }
}

fn all_touched(sql: &'static str, touched: u64, expected: usize) -> Result<(), PgError> {
    match usize::try_from(touched) {
        Ok(got) if got == expected => Ok(()),
        got => Err(PgError::Rows { statement: name(sql), expected, got: got.unwrap_or(usize::MAX) }),
    }
}

/// With these the server ends the session; whether COMMIT had been carried out is not said.
fn ended_connection(sqlstate: &str) -> bool {
    sqlstate.starts_with("57P") || sqlstate.starts_with("08") || sqlstate == "57014"
}

impl Drop for Session {
    fn drop(&mut self) {
        let is_running = *self.is_running.get_mut();
        if let Some(lease) = self.lease.take()
            && (self.in_transaction || is_running || *self.is_broken.get_mut())
        {
            if is_running {
                cancel::cancel(lease.connection());
            }
            // Not back into the pool, whatever was in flight on it.
            lease.close();
        }
    }
}

/// Each statement begins with a comment that names it.
fn name(sql: &'static str) -> &'static str {
    let line = sql.trim_start().lines().next().unwrap_or_default();
    line.trim_start_matches("--").trim()
}
