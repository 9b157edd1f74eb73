//! One connection and its transactions. Every call has a deadline; every transaction sets the settings it depends on; a
//! connection on which a call failed without an answer of the server is never used again.
//!
//! A session uses only unnamed statements (`query_typed`) and settings that are local to the transaction. Nothing lasts
//! longer than the transaction, so a pooler in transaction mode may use another server connection for each. COPY is the
//! exception: tokio-postgres names its statement, and closes it before the transaction ends.

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

/// The time limits of statements and locks, and the access of the session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) statement: Duration,
    pub(crate) lock: Duration,
    /// With `Access::Read` the session works on a standby too.
    pub(crate) access: Access,
}

impl Limits {
    /// After this time a call is given up. A session whose call still runs then belongs to a program that has stopped.
    pub(crate) fn silence(self) -> Duration {
        self.statement + SERVER_TIMEOUT_GRACE
    }
}

/// How long the client waits after the server's own statement_timeout, so that the server's answer, which contains the
/// reason, normally arrives first.
const SERVER_TIMEOUT_GRACE: Duration = Duration::from_secs(2);

/// The server ends a transaction that sends nothing for this long: a stopped daemon (SIGSTOP, a lost host) must not
/// hold the locks of its half-written batch.
pub(crate) const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(10);

pub(crate) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// A connection, possibly with an open transaction. A session that is dropped with an open transaction closes its
/// connection.
pub(crate) struct Session {
    lease: Option<Lease>,
    limits: Limits,
    in_transaction: bool,
    /// A call got no answer from the server: it is unknown to which call a later answer belongs.
    is_broken: AtomicBool,
    /// A statement was sent, and its answer has not arrived yet.
    is_running: AtomicBool,
}

/// Which plans the planner may choose for a transaction's statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plans {
    Any,
    /// No sequential scan if there is a suitable index.
    ByIndex,
    /// Reads one table in the order of an index and looks other rows up by key, independently of the statistics.
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

/// Why a transaction has no confirmed commit.
pub(crate) enum CommitFailure {
    /// The answer to COMMIT did not arrive or did not contain the result: the transaction may be committed.
    Unknown(PgError),
    /// The server refused COMMIT: the transaction is rolled back.
    Refused(PgError),
}

impl CommitFailure {
    /// For transactions that may be run again whether or not they were committed.
    pub(crate) fn into_error(self) -> PgError {
        match self {
            Self::Unknown(error) | Self::Refused(error) => error,
        }
    }
}

/// If row security would hide rows from this role, statements fail: hidden rows must not count as missing.
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

    /// The connection, with the value that a writer stores in it.
    pub(crate) fn connection_mut(&mut self) -> &mut Connection {
        self.lease.as_mut().expect("present until dropped").connection_mut()
    }

    fn client(&self) -> &Client {
        &self.connection().client
    }

    /// Returns true if the connection can be used for a new transaction.
    pub(crate) fn is_sound(&self) -> bool {
        !self.is_broken.load(Ordering::Relaxed) && !self.client().is_closed()
    }

    /// Runs one call with a deadline. If its caller is dropped before the answer, the statement is cancelled.
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

    /// Runs one call with a deadline, but without cancellation, for the end of a transaction. COMMIT may wait for a
    /// standby; a server that receives a cancellation then only ends the wait, and has committed.
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

    /// Opens a transaction and sets, only for this transaction, all settings that it depends on. Its statements use
    /// indexes, even with the outdated statistics of a table that grows by thousands of rows per second.
    pub(crate) async fn begin(&mut self) -> Result<(), PgError> {
        self.open(self.mode(), IDLE_IN_TRANSACTION, Plans::ByIndex).await
    }

    fn mode(&self) -> &'static str {
        match self.limits.access {
            Access::Write => "read committed read write",
            Access::Read => "read committed read only",
        }
    }

    /// As [`Self::begin`], for one step of a long operation: the next rows are read in key order, however many follow.
    pub(crate) async fn begin_piece(&mut self) -> Result<(), PgError> {
        self.open(self.mode(), IDLE_IN_TRANSACTION, Plans::InKeyOrder).await
    }

    /// As [`Self::begin`], for a batch: the settings are set by a function of the ledger, whose plan the server caches.
    pub(crate) async fn begin_batch(&mut self) -> Result<(), PgError> {
        let [statement, lock, idle] = self.limits_ms();
        let sql = format!(
            "{}begin isolation level read committed read write; select gapless.enter({statement}, {lock}, {idle}){}",
            self.rollback_prefix(),
            self.without_transaction_timeout(),
        );
        self.in_transaction = true;
        self.within("begin", self.client().batch_execute(&sql)).await
    }

    /// Ends the open transaction, if there is one, in the same message as the next begin: so a pooler cannot give the
    /// server connection to another client in between.
    fn rollback_prefix(&self) -> &'static str {
        if self.in_transaction { "rollback; " } else { "" }
    }

    /// Turns the server's transaction_timeout off: gapless limits statements, and a transaction may take long because
    /// it waits for an earlier batch, or reads a whole ledger.
    fn without_transaction_timeout(&self) -> &'static str {
        // The setting exists since PostgreSQL 17.
        if self.connection().server_major >= 17 { ", set_config('transaction_timeout', '0', true)" } else { "" }
    }

    /// Runs `select 1`, so that the server does not end a transaction that waits for something else as idle.
    pub(crate) async fn ping(&self) -> Result<(), PgError> {
        self.within("ping", self.client().batch_execute("select 1")).await
    }

    /// Opens a transaction for reading the catalogue, in which each statement sees everything that is committed by
    /// then. It may write if both the caller and the session's limits allow writing.
    pub(crate) async fn begin_looking(&mut self, asked: Access) -> Result<(), PgError> {
        let mode = match (asked, self.limits.access) {
            (Access::Write, Access::Write) => "read committed read write",
            (Access::Read, _) | (_, Access::Read) => "read committed read only",
        };
        self.open(mode, IDLE_IN_TRANSACTION, Plans::Any).await
    }

    /// Opens a read-only transaction with one snapshot for all its statements.
    pub(crate) async fn begin_snapshot(&mut self) -> Result<(), PgError> {
        self.open("repeatable read read only", IDLE_IN_TRANSACTION, Plans::Any).await
    }

    /// As [`Self::begin_snapshot`], for statements that read whole tables in key order, piece by piece. The caller may
    /// take any time between two statements: the transaction holds no lock that another session waits for.
    pub(crate) async fn begin_walk(&mut self) -> Result<(), PgError> {
        self.open("repeatable read read only", Duration::ZERO, Plans::InKeyOrder).await?;
        self.query(ALL_ROWS, &[]).await.map(drop)
    }

    /// Opens a transaction. With `idle` of `Duration::ZERO` it may be idle without a limit.
    async fn open(&mut self, mode: &str, idle: Duration, plans: Plans) -> Result<(), PgError> {
        let sql = format!(
            "{}begin isolation level {mode}; \
             select set_config('synchronous_commit', \
                 case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true), \
                 set_config('statement_timeout', '{}', true), set_config('lock_timeout', '{}', true), \
                 set_config('idle_in_transaction_session_timeout', '{}', true), set_config('search_path', '', true), \
                 {}, set_config('client_min_messages', 'warning', true){}",
            self.rollback_prefix(),
            self.limits.statement.as_millis(),
            self.limits.lock.as_millis(),
            idle.as_millis(),
            plans.settings(),
            self.without_transaction_timeout(),
        );
        self.in_transaction = true;
        self.within("begin", self.client().batch_execute(&sql)).await
    }

    /// Runs one statement and returns all its rows once it has ended.
    pub(crate) async fn query(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, PgError> {
        self.within(name(sql), self.client().query_typed(sql, params)).await
    }

    /// Runs the text of a migration without a time limit. `name` is for errors.
    pub(crate) async fn execute_text(&self, name: &'static str, sql: &str) -> Result<(), PgError> {
        self.client().batch_execute(sql).await.map_err(|source| PgError::Statement { statement: name, source })
    }

    /// Runs a statement that a library created. `name` is for errors.
    pub(crate) async fn query_text(&self, name: &'static str, sql: &str) -> Result<Vec<Row>, PgError> {
        self.within(name, self.client().query_typed(sql, &[])).await
    }

    /// Runs one statement and passes each row to `take` as it arrives, for many rows or large ones.
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

    /// Runs one statement that must affect exactly `expected` rows.
    pub(crate) async fn write(&self, sql: &'static str, params: &[Param<'_>], expected: usize) -> Result<(), PgError> {
        let affected = self.within(name(sql), self.client().execute_typed(sql, params)).await?;
        all_affected(sql, affected, expected)
    }

    /// As [`Self::write`], for a statement that returns the rows that it affected.
    pub(crate) async fn write_returning(
        &self,
        sql: &'static str,
        params: &[Param<'_>],
        expected: usize,
    ) -> Result<Vec<Row>, PgError> {
        let rows = self.query(sql, params).await?;
        all_affected(sql, rows.len() as u64, expected)?;
        Ok(rows)
    }

    /// Copies rows into a table, one row for each item. Rows are encoded while the server processes earlier ones.
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
        let affected = self.within(name(sql), copy).await?;
        all_affected(sql, affected, expected)
    }

    /// Runs one statement and returns the number of affected rows.
    pub(crate) async fn execute(&self, sql: &'static str, params: &[Param<'_>]) -> Result<u64, PgError> {
        self.within(name(sql), self.client().execute_typed(sql, params)).await
    }

    /// Runs one statement as its own transaction, which is applied completely or not at all. The statement itself sets
    /// the settings that it depends on. If its answer is lost, it may be committed already, or be committed later.
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

    /// Adds to a statement the time after which this program has given it up. Another writer may have to end the
    /// statement's session: see [`crate::ledger::write::stale_sessions`].
    fn with_limit(&self, sql: &'static str) -> String {
        let limit = self.limits.silence().as_millis();
        match sql.split_once('\n') {
            Some((name, rest)) => format!("{name} gives_up_after_ms={limit}\n{rest}"),
            None => sql.to_owned(),
        }
    }

    /// The limits of a batch in milliseconds: of a statement, of a lock, and of idle time in a transaction.
    pub(crate) fn limits_ms(&self) -> [i32; 3] {
        [self.limits.statement, self.limits.lock, IDLE_IN_TRANSACTION]
            .map(|limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX))
    }

    /// Classifies the answer to the end of a transaction.
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

    /// Commits. tokio-postgres does not check the command tag, and a server answers COMMIT of a failed transaction with
    /// ROLLBACK and no error. So no error of a statement may be dropped before this call; each function here returns
    /// it.
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

fn all_affected(sql: &'static str, affected: u64, expected: usize) -> Result<(), PgError> {
    match usize::try_from(affected) {
        Ok(got) if got == expected => Ok(()),
        got => Err(PgError::Rows { statement: name(sql), expected, got: got.unwrap_or(usize::MAX) }),
    }
}

/// Returns true if the server ended the session or the statement with this state: the answer does not say whether
/// COMMIT was applied.
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
            // The connection may have a statement in flight, so it must not return to the pool.
            lease.close();
        }
    }
}

/// Each statement begins with a comment that names it.
fn name(sql: &'static str) -> &'static str {
    let line = sql.trim_start().lines().next().unwrap_or_default();
    line.trim_start_matches("--").trim()
}
