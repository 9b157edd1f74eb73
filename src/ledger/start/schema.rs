//! Applies the migrations in order, by one process at a time.

use refinery::{AsyncMigrate, Migration, Report};
use refinery_core::traits::r#async::{AsyncQuery, AsyncTransaction};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_postgres::Row;
use tokio_postgres::error::{DbError, SqlState};

use crate::failpoints::{self, Failpoint};
use crate::ledger::connect::{LedgerReader, LedgerStore};
use crate::ledger::decision::Decision;
use crate::ledger::error::LedgerError;
use crate::ledger::migrations::{self, known_version};
use crate::model::error_class::Class;
use crate::postgres::error::{PgError, describe, meaning};
use crate::postgres::session::{CommitFailure, Session};

/// In schema `gapless` like everything else that gapless creates.
const HISTORY: &str = "gapless.refinery_schema_history";

const LOCK: &str = "-- lock_migrations
select pg_advisory_xact_lock(hashtext('gapless'), hashtext('migrations'))";

const AS_LONG_AS_IT_TAKES: &str = "-- migrate_as_long_as_it_takes
select set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true),
       set_config('idle_in_transaction_session_timeout', '0', true), set_config('enable_seqscan', 'on', true)";

const INSPECT: &str = "-- inspect_server
select current_setting('server_version_num')::int, current_setting('server_encoding'), pg_is_in_recovery(),
       to_regnamespace('gapless') is not null,
       to_regclass('gapless.refinery_schema_history') is not null,
       to_regclass('gapless.stored_events') is not null";

const APPLIED: &str = "-- applied_migrations
select coalesce(max(version), 0)::int from gapless.refinery_schema_history";

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error(transparent)]
    Store(#[from] LedgerError),
    #[error("PostgreSQL is version {0}, gapless needs 15 or newer")]
    Version(i32),
    #[error("the database's encoding is {0}, gapless needs UTF8: create it with `encoding 'UTF8' template template0`")]
    Encoding(String),
    #[error("the schema is at version {found}, this gapless knows {known}: start a newer gapless")]
    Newer { found: i32, known: i32 },
    /// It is not known which migrations were applied: they would all be applied again, over existing tables.
    #[error(
        "table gapless.refinery_schema_history is missing or empty beside a ledger; restore it from a backup or from the \
         dump (pg_restore -t refinery_schema_history)"
    )]
    NoHistory,
    /// The schema is older than the program and the role may not change it.
    #[error(
        "the schema needs migrating and this role may not: {0}; run `gapless migrate` as a role that may create in the database"
    )]
    NotAllowed(String),
    /// The transaction was rolled back, and the migration may be run again.
    #[error("the migration was cut short: {0}")]
    CutShort(String),
    #[error("migration failed: {0}")]
    Failed(String),
}

impl From<PgError> for MigrateError {
    fn from(error: PgError) -> Self {
        Self::Store(error.into())
    }
}

/// The version of the schema compared with this program's. A newer schema is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchemaState {
    /// There is no ledger in this database.
    Absent,
    /// Some migrations are not applied yet.
    Older {
        found: i32,
        known: i32,
    },
    Current,
}

/// The origin of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationRequest {
    ByStart,
    /// `gapless migrate`. It is recorded as a decision, like each verb that changes something.
    ByVerb,
}

struct Server {
    in_recovery: bool,
    has_schema: bool,
    version: i32,
}

impl LedgerStore {
    /// Applies the missing migrations and returns their names.
    ///
    /// A second process that migrates at the same time waits for the first one, and then applies nothing. Lock and
    /// migrations are in one transaction, so that all migrations are applied or none, also through a connection pooler.
    pub async fn migrate(&self, asked: MigrationRequest) -> Result<Vec<String>, MigrateError> {
        if self.read_server_state().await?.version == known_version() {
            return Ok(vec![]);
        }
        let mut session = self.session().await?;
        session.begin().await?;
        session.query(LOCK, &[]).await?;
        // Read the version again: with the lock held, no other process migrates.
        let server = server_state(&session).await?;
        if server.version == known_version() {
            session.rollback().await?;
            return Ok(vec![]);
        }
        if server.in_recovery {
            return Err(PgError::Standby.into());
        }
        // The migrations must not run into the session's timeouts, and may need sequential scans.
        session.query(AS_LONG_AS_IT_TAKES, &[]).await?;
        let applied = apply(&mut session, &server).await?;
        let applied: Vec<String> = applied.applied_migrations().iter().map(ToString::to_string).collect();
        // `applied` is empty if the version above was read from an outdated catalogue cache and another process had
        // already applied everything.
        if asked == MigrationRequest::ByVerb && !applied.is_empty() {
            record_decision(&session, server.version, &applied).await?;
        }
        failpoints::hit(Failpoint::Migration).await.map_err(LedgerError::from)?;
        // If the reply of the commit is lost, the next attempt reads the version and sees the result.
        session.commit().await.map_err(CommitFailure::into_error)?;
        Ok(applied)
    }
}

impl LedgerReader {
    /// The state of the schema.
    pub async fn schema_state(&self) -> Result<SchemaState, MigrateError> {
        let known = known_version();
        Ok(match self.read_server_state().await?.version {
            0 => SchemaState::Absent,
            found if found < known => SchemaState::Older { found, known },
            _ => SchemaState::Current,
        })
    }

    async fn read_server_state(&self) -> Result<Server, MigrateError> {
        let mut session = self.session().await?;
        session.begin().await?;
        let server = server_state(&session).await?;
        session.rollback().await?;
        Ok(server)
    }
}

async fn server_state(session: &Session) -> Result<Server, MigrateError> {
    let row = session.one(INSPECT, &[]).await?;
    let (version, encoding): (i32, String) = (row.get(0), row.get(1));
    if version < 150_000 {
        return Err(MigrateError::Version(version / 10_000));
    }
    if encoding != "UTF8" {
        return Err(MigrateError::Encoding(encoding));
    }
    let schema_version = match row.get::<_, bool>(4) {
        true => session.query(APPLIED, &[]).await?.first().map_or(0, |row| row.get(0)),
        false => 0,
    };
    if schema_version == 0 && row.get::<_, bool>(5) {
        return Err(MigrateError::NoHistory);
    }
    let known = known_version();
    if schema_version > known {
        return Err(MigrateError::Newer { found: schema_version, known });
    }
    Ok(Server { in_recovery: row.get(2), has_schema: row.get(3), version: schema_version })
}

/// Applies the missing migrations within the session's transaction.
async fn apply(session: &mut Session, server: &Server) -> Result<Report, MigrateError> {
    if !server.has_schema {
        // `if not exists` requires the right to create even if the schema exists, so it is executed only when needed.
        session.execute_text("create_schema", "create schema if not exists gapless").await.map_err(refused)?;
    }
    let mut runner = migrations::runner().set_grouped(true);
    runner.set_migration_table_name(HISTORY);
    let applied = runner.run_async(&mut InTransaction(session)).await;
    applied.map_err(|error| match postgres_error(&error) {
        Some(PgError::Statement { source, .. }) => match source.as_db_error() {
            Some(db) => refused_migration(db),
            None => MigrateError::CutShort(describe(source)),
        },
        Some(other) => MigrateError::CutShort(format!("{other}; {}", other.remedy())),
        None => MigrateError::Failed(error.to_string()),
    })
}

async fn record_decision(session: &Session, found: i32, applied: &[String]) -> Result<(), LedgerError> {
    let arguments = json!({ "from_version": found, "to_version": known_version(), "applied": applied });
    let rows_changed = applied.len() as u64;
    Decision { verb: "migrate", subject: "schema gapless", reason: None, arguments, rows_changed }.record(session).await
}

fn refused_migration(db: &DbError) -> MigrateError {
    if *db.code() == SqlState::INSUFFICIENT_PRIVILEGE {
        return MigrateError::NotAllowed(db.message().to_owned());
    }
    let description = format!("{} (SQLSTATE {})", db.message(), db.code().code());
    match meaning(db.code().code()) {
        (Class::Environment | Class::Contention, remedy) => MigrateError::CutShort(format!("{description}; {remedy}")),
        (Class::Moved | Class::Data | Class::Halt, _) => MigrateError::Failed(description),
    }
}

/// A session for the migration library that begins no transaction of its own: the caller's transaction has the lock.
struct InTransaction<'a>(&'a Session);

impl AsyncTransaction for InTransaction<'_> {
    type Error = PgError;

    async fn execute<'a, T: Iterator<Item = &'a str> + Send + 'a>(&'a mut self, queries: T) -> Result<usize, PgError> {
        let mut count = 0;
        for sql in queries {
            self.0.execute_text("migration", sql).await?;
            count += 1;
        }
        Ok(count)
    }
}

impl AsyncQuery<Vec<Migration>> for InTransaction<'_> {
    async fn query<'a>(&'a mut self, sql: &'a str) -> Result<Vec<Migration>, PgError> {
        let rows = self.0.query_text("migrations_applied", sql).await?;
        let migration = |row: &Row| {
            let (applied_on, checksum): (&str, &str) = (row.get(2), row.get(3));
            let applied_on = OffsetDateTime::parse(applied_on, &Rfc3339).expect("the library wrote it");
            let checksum = checksum.parse().expect("the library wrote it");
            Migration::applied(row.get(0), row.get(1), applied_on, checksum)
        };
        Ok(rows.iter().map(migration).collect())
    }
}

impl AsyncMigrate for InTransaction<'_> {}

fn refused(error: PgError) -> MigrateError {
    match error.sqlstate() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => MigrateError::NotAllowed(error.to_string()),
        _ => error.into(),
    }
}

fn postgres_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a PgError> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref())
}
