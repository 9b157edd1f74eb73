//! What PostgreSQL's refusals mean: SQLSTATE to class and remedy, in one table.
//!
//! The list of what is tried again is short and explicit. A state that is not in it stops the
//! partition: guessing "skip" loses, guessing "retry" spins.

use std::time::Duration;

use tokio_postgres::error::{DbError, SqlState};

use super::connect_error::ConnectError;
use crate::failpoints::Injected;
use crate::ledger::catalogue::Differences;
use crate::ledger::catalogue::expected::{UniqueKey, is_our_function, unique_key};

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The server is away or not as it should be: wait and try again, never a dead letter.
    Environment,
    /// Another transaction was in the way: try again at once.
    Contention,
    /// What we assumed is no longer so: read the positions again.
    Moved,
    /// One row cannot be stored: find it and keep it as a dead letter.
    Data,
    /// A bug or a changed schema: stop the partition and say so.
    Halt,
}

impl Class {
    pub const ALL: [Self; 5] = [Self::Environment, Self::Contention, Self::Moved, Self::Data, Self::Halt];

    pub fn name(self) -> &'static str {
        match self {
            Self::Environment => "environment",
            Self::Contention => "contention",
            Self::Moved => "moved",
            Self::Data => "data",
            Self::Halt => "halt",
        }
    }
}

/// SQLSTATE or its two-character class, longest match first; what it is, what the operator can do.
const STATES: [(&str, Class, &str); 30] = [
    // Also 08P01, by which PgBouncer says that it has no server for its client.
    ("08", Class::Environment, "check the network, that PostgreSQL is up, and the log of a pooler between"),
    ("0A000", Class::Environment, "a table was altered while running; gapless reconnects"),
    ("22", Class::Data, "see dead_letters"),
    ("54", Class::Data, "see dead_letters"),
    ("23", Class::Halt, "drop the constraint named here, which gapless did not make"),
    ("23505", Class::Moved, "another transaction wrote this batch; gapless reads the positions again"),
    ("25006", Class::Environment, "the server is read-only (a standby?); give the primary's address"),
    ("25P03", Class::Environment, "the server ended an idle transaction; gapless reconnects"),
    ("25P04", Class::Environment, "the server ended a long transaction; raise transaction_timeout"),
    ("28", Class::Environment, "check user, password and pg_hba.conf"),
    ("3D000", Class::Environment, "create the database, or correct its name in the URL"),
    ("3F000", Class::Environment, "run `gapless migrate`"),
    ("40001", Class::Contention, "nothing to do"),
    ("40P01", Class::Contention, "nothing to do"),
    (
        "42501",
        Class::Environment,
        "`gapless check` names the right that is missing and its grant; docs/deployment.md, \"PostgreSQL: roles\", has them all",
    ),
    ("42P01", Class::Environment, "a table of schema gapless is missing; restore it or run `gapless migrate`"),
    ("53100", Class::Environment, "the server's disk is full"),
    ("53200", Class::Environment, "the server is out of memory"),
    ("53300", Class::Environment, "raise max_connections or the role's connection limit, or use a pooler"),
    ("53", Class::Environment, "the server lacks resources"),
    ("55000", Class::Environment, "the server does not take this now"),
    ("55P03", Class::Contention, "another session holds a lock on gapless's tables"),
    ("57014", Class::Environment, "a statement was cancelled or exceeded statement_timeout"),
    ("57P01", Class::Environment, "the server ended the connection; gapless reconnects"),
    ("57P02", Class::Environment, "the server crashed and restarts"),
    ("57P03", Class::Environment, "the server is starting up"),
    ("57P04", Class::Environment, "the database was dropped; restore it or correct its name in the URL"),
    ("57P05", Class::Environment, "the server ended an idle session; gapless reconnects"),
    ("58030", Class::Environment, "the server has an input/output error; look at its log and disk"),
    ("58P01", Class::Environment, "the server lost a file; look at its log and disk"),
];

/// What a SQLSTATE means and what the operator can do.
pub(crate) fn meaning(state: &str) -> (Class, &'static str) {
    let known = STATES.iter().filter(|(prefix, ..)| state.starts_with(prefix));
    known
        .max_by_key(|(prefix, ..)| prefix.len())
        .map_or((Class::Halt, "look at PostgreSQL's log"), |(_, class, remedy)| (*class, remedy))
}

/// A failed operation on PostgreSQL.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Whatever is said while connecting is about the environment.
    #[error("{0}")]
    Connect(ConnectError),
    /// Every connection that PostgreSQL gives is in use.
    #[error("none of gapless's {connections} connections to PostgreSQL became free within {} ms", after.as_millis())]
    Busy { connections: usize, after: Duration },
    #[error("the server is a standby and read-only")]
    Standby,
    #[error("database.url: {0}")]
    Url(String),
    #[error("PostgreSQL: {}", describe(source))]
    Statement { statement: &'static str, source: tokio_postgres::Error },
    #[error("PostgreSQL gave no answer within {} ms", after.as_millis())]
    Timeout { statement: &'static str, after: Duration },
    /// Fewer or more rows than the statement must touch: a trigger or rule swallows rows.
    #[error(
        "{statement} touched {got} rows, expected {expected}; is there a trigger, rule or policy on schema gapless?"
    )]
    Rows { statement: &'static str, expected: usize, got: usize },
    /// Tables, keys, indexes, views or functions are not what this version needs: nothing may be written.
    #[error("the ledger is not as this version needs it: {0}")]
    Schema(Box<Differences>),
    /// What the ledger says of itself is gone, or is not what it was written by: nothing may be written.
    #[error("{found}; restore it with: {sql}")]
    LedgerRow { found: String, sql: String },
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// The server's message with its SQLSTATE; no statement parameters, which hold payloads.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => {
            let code = db.code().code();
            match foreign_function(db) {
                Some(function) => format!("{} (SQLSTATE {code}), raised in function {function}", db.message()),
                None => format!("{} (SQLSTATE {code})", db.message()),
            }
        }
        None if error.is_closed() => "the connection to PostgreSQL ended".to_owned(),
        None => match std::error::Error::source(error) {
            Some(cause) if cause.is::<std::io::Error>() => format!("the connection to PostgreSQL broke ({cause})"),
            Some(cause) => format!("PostgreSQL's client library failed ({error}: {cause})"),
            None => format!("PostgreSQL's client library failed ({error})"),
        },
    }
}

/// PostgreSQL checks a foreign key by a statement of its own, as the role that owns the table.
fn is_denied_to_owner(error: &tokio_postgres::Error) -> bool {
    let of_foreign_key = |db: &DbError| {
        db.code() == &SqlState::INSUFFICIENT_PRIVILEGE
            && db.where_().is_some_and(|context| context.contains(" FROM ONLY "))
    };
    error.as_db_error().is_some_and(of_foreign_key)
}

/// The function that raised an error within one of our statements, where it is not one of ours: of a user's trigger, say.
/// (The context has a line for each call, the innermost first; whatever language the server speaks, the line begins with
/// the function's language, and its name stands before a parenthesis or in quotes.)
fn foreign_function(error: &DbError) -> Option<&str> {
    let calls = error.where_()?.lines().filter(|line| line.starts_with("PL/") || line.starts_with("SQL function "));
    let name = |line| match str::split_once(line, '(') {
        Some((before, _)) => before.rsplit(' ').next(),
        None => line.split('"').nth(1),
    };
    calls.filter_map(name).find(|name| !is_our_function(name))
}

/// Whether an error that a user's function raised passes by itself, as it would had we raised it.
fn passes(state: &str) -> bool {
    ["08", "0A000", "25", "40", "53", "55P03", "57", "58"].iter().any(|prefix| state.starts_with(prefix))
}

/// An SQLSTATE is judged by whose statement raised it: what our rows do in a user's function, or in a key that a user
/// made, is no fault of a row, and does not pass.
fn class_of(error: &DbError) -> Class {
    let state = error.code().code();
    if foreign_function(error).is_some() && !passes(state) {
        return Class::Halt;
    }
    match error.constraint().map(unique_key) {
        Some(UniqueKey::NotOurs) if *error.code() == SqlState::UNIQUE_VIOLATION => Class::Halt,
        _ => meaning(state).0,
    }
}

impl StoreError {
    /// The one decision about retry.
    pub fn class(&self) -> Class {
        match self {
            Self::Connect(_) | Self::Busy { .. } | Self::Standby | Self::Timeout { .. } | Self::Injected(_) => {
                Class::Environment
            }
            Self::Url(_) | Self::Rows { .. } | Self::Schema(_) | Self::LedgerRow { .. } => Class::Halt,
            Self::Statement { source, .. } if source.as_db_error().is_some() => {
                source.as_db_error().map_or(Class::Halt, class_of)
            }
            // Without a SQLSTATE the connection broke.
            Self::Statement { source, .. } => match source.code() {
                Some(state) => meaning(state.code()).0,
                None if source.is_closed()
                    || std::error::Error::source(source).is_some_and(|s| s.is::<std::io::Error>()) =>
                {
                    Class::Environment
                }
                None => Class::Halt,
            },
        }
    }

    /// What the operator can do; empty where there is nothing.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Connect(error) => error.remedy(),
            Self::Busy { .. } => "raise the limit of the role, the pooler or the server; see database.writers",
            Self::Standby => meaning("25006").1,
            // With this a standby refuses to begin what is to write.
            Self::Statement { statement: "begin", source }
                if source.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) =>
            {
                meaning("25006").1
            }
            Self::Statement { source, .. } if is_denied_to_owner(source) => {
                "grant usage on schema gapless to the role that owns its tables: foreign keys are checked as the owner; `gapless check` names it"
            }
            Self::Statement { .. } if self.foreign_function().is_some() && self.class() == Class::Halt => {
                "make the function work for gapless, which calls it with an empty search_path (qualify names, or `alter \
                 function ... set search_path`), or drop its trigger"
            }
            Self::Statement { source, .. }
                if self.class() == Class::Halt && source.code() == Some(&SqlState::UNIQUE_VIOLATION) =>
            {
                meaning("23").1
            }
            Self::Statement { source, .. } => meaning(source.code().map_or("", SqlState::code)).1,
            Self::Timeout { .. } => "the server is slow or blocked; see database.statement_timeout_ms",
            Self::Rows { .. } => "remove what swallows rows, then restart",
            Self::Schema(_) => {
                "nothing is written until then; do it again when `gapless check` finds no difference; \
                 see docs/operations.md#refused-ledger"
            }
            Self::LedgerRow { .. } | Self::Url(_) | Self::Injected(_) => "",
        }
    }

    /// The error with its remedy, in one line.
    pub fn explained(&self) -> String {
        match self.remedy() {
            "" => self.to_string(),
            remedy => format!("{self}; {remedy}"),
        }
    }

    /// A right is missing; [`crate::ledger::connect::Store::missing_rights`] tells which.
    pub fn is_denied(&self) -> bool {
        self.sqlstate() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
    }

    fn database_error(&self) -> Option<&DbError> {
        match self {
            Self::Statement { source, .. } => source.as_db_error(),
            _ => None,
        }
    }

    /// The user's function that raised it.
    pub(crate) fn foreign_function(&self) -> Option<&str> {
        self.database_error().and_then(foreign_function)
    }

    /// Whether rows were written that are not there, nor refused.
    pub(crate) fn lacks_rows(&self) -> bool {
        matches!(self, Self::Rows { .. }) || self.sqlstate().is_some_and(|state| state.code() == "GL002")
    }

    /// The key of ours that a row met.
    fn met(&self) -> Option<UniqueKey> {
        let error = self.database_error().filter(|e| *e.code() == SqlState::UNIQUE_VIOLATION)?;
        if foreign_function(error).is_some() { None } else { error.constraint().map(unique_key) }
    }

    /// Whether what was written is there already.
    pub(crate) fn is_duplicate(&self) -> bool {
        self.met() == Some(UniqueKey::Contents)
    }

    /// Whether a sequence gave a number that it, or another server, had given before.
    pub fn finds_number_taken(&self) -> bool {
        self.met() == Some(UniqueKey::Number)
    }

    /// Whether the ledger may lack what this version needs: a statement of ours names something that is not there, or
    /// not as it was.
    pub fn points_at_schema(&self) -> bool {
        let lacks = |state: &SqlState| state.code().starts_with("42") && *state != SqlState::INSUFFICIENT_PRIVILEGE;
        self.finds_number_taken()
            || matches!(self, Self::Schema(_))
            || (self.foreign_function().is_none() && self.sqlstate().is_some_and(lacks))
    }

    /// What raised it, where PostgreSQL names it: what an operator has to undo. (Of the context only the function: the
    /// rest may quote data.)
    pub fn raised_by(&self) -> Option<String> {
        let db = self.database_error()?;
        let function =
            db.where_().and_then(|context| context.lines().find(|line| line.starts_with("PL/pgSQL function")));
        let object = |kind: &str, name: Option<&str>| name.map(|name| format!("{kind} {name}"));
        let table = db.table().map(|table| format!("{}.{table}", db.schema().unwrap_or("?")));
        let named = [
            object("constraint", db.constraint()),
            object("column", db.column()),
            object("table", table.as_deref()),
            function.map(ToOwned::to_owned),
        ];
        let named: Vec<String> = named.into_iter().flatten().collect();
        if named.is_empty() { None } else { Some(format!("raised by {}", named.join(", "))) }
    }

    pub(crate) fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            Self::Statement { source, .. } => source.code(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_entry_wins() {
        assert!(meaning("53300").1.starts_with("raise max_connections"));
        assert_eq!(meaning("53400"), (Class::Environment, "the server lacks resources"));
        assert_eq!(meaning("22P05").0, Class::Data);
    }

    #[test]
    fn an_unknown_state_is_neither_retried_nor_skipped() {
        for state in ["XX000", "23514", "42703", ""] {
            assert_eq!(meaning(state).0, Class::Halt, "{state}");
        }
    }
}
