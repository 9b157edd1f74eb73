//! The ledger's database: sessions from a pool, each with its time limits.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::config::DatabaseConfig;
use crate::ledger::error::LedgerError;
use crate::postgres::connector::{Access, Connector};
use crate::postgres::pool::Pool;
use crate::postgres::session::{Limits, Session};

/// Connections besides those of the writers: the fence check, the audit, the statistics, and a spare one.
const EXTRA_CONNECTIONS: usize = 4;

/// Connections of a program that only reads the ledger.
const READ_CONNECTIONS: usize = 2;

/// The timeout of one statement of `gapless verify`. Statements take some minutes for hundreds of millions of rows.
const FULL_SCAN_TIMEOUT: Duration = Duration::from_secs(3600);

/// Reads the ledger, with a pool and limits of its own. A standby suffices. Cheap to clone.
#[derive(Clone)]
pub struct LedgerReader {
    pub(crate) pool: Arc<Pool>,
    limits: Limits,
}

/// Reads and writes the ledger. Cheap to clone.
#[derive(Clone)]
pub struct LedgerStore {
    /// Uses the writers' pool, so that a writer reads the rows that it has written.
    reader: LedgerReader,
}

impl LedgerReader {
    /// Connects when the first connection is needed.
    pub fn new(database: &DatabaseConfig) -> Result<Self, LedgerError> {
        Self::with_access(database, Access::Read, READ_CONNECTIONS)
    }

    fn with_access(database: &DatabaseConfig, access: Access, connections: usize) -> Result<Self, LedgerError> {
        let pool = Pool::new(Connector::new(database, access)?, connections);
        let limits = Limits { statement: database.statement_timeout, lock: database.lock_timeout, access };
        Ok(Self { pool, limits })
    }

    /// How long a batch waits for a reply of the server.
    pub(crate) fn call_timeout(&self) -> Duration {
        self.limits.silence()
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Leases a connection: a new one, within the connect timeout of each server, or an open one as soon as it is free.
    pub(crate) async fn session(&self) -> Result<Session, LedgerError> {
        self.session_within(self.limits).await
    }

    /// Leases a connection whose statements may read the whole ledger.
    pub(crate) async fn whole_ledger_session(&self) -> Result<Session, LedgerError> {
        self.session_within(Limits { statement: FULL_SCAN_TIMEOUT, ..self.limits }).await
    }

    async fn session_within(&self, limits: Limits) -> Result<Session, LedgerError> {
        Ok(Session::new(self.pool.lease(self.call_timeout()).await?, limits))
    }
}

impl LedgerStore {
    /// Connects when the first connection is needed.
    pub fn new(database: &DatabaseConfig) -> Result<Self, LedgerError> {
        let connections = database.writers + EXTRA_CONNECTIONS;
        Ok(Self { reader: LedgerReader::with_access(database, Access::Write, connections)? })
    }
}

impl Deref for LedgerStore {
    type Target = LedgerReader;

    fn deref(&self) -> &LedgerReader {
        &self.reader
    }
}
