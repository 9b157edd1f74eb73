//! Migrations: embedded, applied in order, one program at a time.

use refinery::Report;

use super::connect::Store;
use super::error::{Class, StoreError, meaning};
use crate::failpoints::{self, Failpoint};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// In schema `gapless` like everything else that gapless creates.
const HISTORY: &str = "gapless.refinery_schema_history";

const LOCK: &str = "-- lock_migrations
select pg_advisory_xact_lock(hashtext('gapless'), hashtext('migrations'))";

const KEEP_LOCK: &str = "-- keep_migration_lock
select set_config('idle_in_transaction_session_timeout', '0', true)";

const INSPECT: &str = "-- inspect_server
select current_setting('server_version_num')::int, current_setting('server_encoding'), pg_is_in_recovery(),
       to_regnamespace('gapless') is not null,
       to_regclass('gapless.refinery_schema_history') is not null";

const APPLIED: &str = "-- applied_migrations
select coalesce(max(version), 0)::int from gapless.refinery_schema_history";

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("PostgreSQL is version {0}, gapless needs 15 or newer")]
    Version(i32),
    #[error("the database's encoding is {0}, gapless needs UTF8: create it with `encoding 'UTF8' template template0`")]
    Encoding(String),
    #[error("the schema is at version {found}, this gapless knows {known}: start a newer gapless")]
    Newer { found: i32, known: i32 },
    /// The schema is older than the program and the role may not change it.
    #[error(
        "the schema needs migrating and this role may not: {0}; run `gapless migrate` as a role that may create in the database"
    )]
    NotAllowed(String),
    /// Nothing of it is left, and it may be run again.
    #[error("the migration was cut short: {0}")]
    CutShort(String),
    #[error("migration failed: {0}")]
    Failed(String),
}

struct Server {
    in_recovery: bool,
    has_schema: bool,
    version: i32,
}

/// The version that this program's migrations lead to.
fn known_version() -> i32 {
    embedded::migrations::runner().get_migrations().iter().map(refinery::Migration::version).max().unwrap_or(0)
}

impl Store {
    /// Brings the schema up to date; returns the names of the migrations applied.
    ///
    /// A second program that starts meanwhile waits for the first, then finds nothing to do. The
    /// lock belongs to a transaction on a connection of its own, which a pooler keeps together.
    pub async fn migrate(&self) -> Result<Vec<String>, MigrateError> {
        if self.look_at_server().await?.version == known_version() {
            return Ok(vec![]);
        }
        let mut lock = self.session().await?;
        lock.begin().await?;
        lock.query(LOCK, &[]).await?;
        // However long the migration takes on the other connection.
        lock.query(KEEP_LOCK, &[]).await?;
        // Again, now that nobody else is at it.
        let server = self.look_at_server().await?;
        if server.version == known_version() {
            return Ok(vec![]);
        }
        let report = self.apply(&server).await?;
        failpoints::hit(Failpoint::Migration).await.map_err(StoreError::from)?;
        lock.rollback().await?;
        Ok(report.applied_migrations().iter().map(ToString::to_string).collect())
    }

    /// Whether the schema is the one this program needs.
    pub async fn schema_is_current(&self) -> Result<bool, MigrateError> {
        Ok(self.look_at_server().await?.version == known_version())
    }

    async fn look_at_server(&self) -> Result<Server, MigrateError> {
        let mut session = self.session().await?;
        session.begin().await?;
        let rows = session.query(INSPECT, &[]).await?;
        let row = rows.first().ok_or(StoreError::Rows { statement: "inspect_server", expected: 1, got: 0 })?;
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
        session.rollback().await?;
        let known = known_version();
        if schema_version > known {
            return Err(MigrateError::Newer { found: schema_version, known });
        }
        Ok(Server { in_recovery: row.get(2), has_schema: row.get(3), version: schema_version })
    }

    async fn apply(&self, server: &Server) -> Result<Report, MigrateError> {
        if server.in_recovery {
            return Err(StoreError::Connect("the server is a standby and read-only".into()).into());
        }
        let mut session = self.session().await?;
        if !server.has_schema {
            // `if not exists` still asks for the right to create, so it is only asked for when needed.
            let created = session.raw().batch_execute("create schema if not exists gapless").await;
            created.map_err(|source| refused(StoreError::Statement { statement: "create_schema", source }))?;
        }
        let mut runner = embedded::migrations::runner().set_grouped(true);
        runner.set_migration_table_name(HISTORY);
        runner.run_async(session.raw()).await.map_err(|error| match pg_error(&error) {
            Some(db) if db.code() == &tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE => {
                MigrateError::NotAllowed(db.message().to_owned())
            }
            Some(db) => {
                let what = format!("{} (SQLSTATE {})", db.message(), db.code().code());
                match meaning(db.code().code()) {
                    (Class::Environment | Class::Contention, remedy) => {
                        MigrateError::CutShort(format!("{what}; {remedy}"))
                    }
                    (Class::Moved | Class::Data | Class::Halt, _) => MigrateError::Failed(what),
                }
            }
            None => match error.kind() {
                refinery::error::Kind::Connection(..) => StoreError::Connect(error.to_string()).into(),
                _ => MigrateError::Failed(error.to_string()),
            },
        })
    }
}

fn refused(error: StoreError) -> MigrateError {
    match &error {
        StoreError::Statement { .. }
            if error.class() == Class::Environment && error.sqlstate().is_some_and(|s| s.code() == "42501") =>
        {
            MigrateError::NotAllowed(error.to_string())
        }
        _ => error.into(),
    }
}

fn pg_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a tokio_postgres::error::DbError> {
    let mut at = Some(error);
    while let Some(e) = at {
        if let Some(pg) = e.downcast_ref::<tokio_postgres::Error>() {
            return pg.as_db_error();
        }
        at = e.source();
    }
    None
}
