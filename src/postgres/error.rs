//! PostgreSQL's errors: one table maps a SQLSTATE to its class and remedy.
//!
//! The table lists every state that is retried. A state that is not in the table halts the partition: skipping its
//! batch could lose messages, and retrying it could loop without end.

use std::time::Duration;

use tokio_postgres::error::{DbError, SqlState};

use super::connect_error::ConnectError;
use crate::failpoints::Injected;
use crate::model::error_class::Class;

/// A SQLSTATE or its two-character class, its class in gapless, and what the operator can do. The longest match counts.
const STATES: [(&str, Class, &str); 30] = [
    // Also 08P01, which PgBouncer returns if it has no server for its client.
    ("08", Class::Environment, "check the network, that PostgreSQL is up, and the log of the pooler, if there is one"),
    ("0A000", Class::Environment, "a table was altered while running; gapless reconnects"),
    ("22", Class::Data, "see dead_letters"),
    ("54", Class::Data, "see dead_letters"),
    ("23", Class::Halt, "drop the constraint named here, which gapless did not make"),
    ("23505", Class::Moved, "another transaction wrote this batch; gapless reloads the stored positions"),
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
    ("55000", Class::Environment, "the server cannot carry this out in its present state"),
    ("55P03", Class::Contention, "another session holds a lock on gapless's tables"),
    ("57014", Class::Environment, "a statement was cancelled or exceeded statement_timeout"),
    ("57P01", Class::Environment, "the server ended the connection; gapless reconnects"),
    ("57P02", Class::Environment, "the server crashed and restarts"),
    ("57P03", Class::Environment, "the server is starting up"),
    ("57P04", Class::Environment, "the database was dropped; restore it or correct its name in the URL"),
    ("57P05", Class::Environment, "the server ended an idle session; gapless reconnects"),
    ("58030", Class::Environment, "the server has an input/output error; check its log and disk"),
    ("58P01", Class::Environment, "the server lost a file; check its log and disk"),
];

/// The class of a SQLSTATE, and what the operator can do.
pub(crate) fn meaning(state: &str) -> (Class, &'static str) {
    let known = STATES.iter().filter(|(prefix, ..)| state.starts_with(prefix));
    known
        .max_by_key(|(prefix, ..)| prefix.len())
        .map_or((Class::Halt, "check PostgreSQL's log"), |(_, class, remedy)| (*class, remedy))
}

/// The purpose of a unique key, for a writer whose row violates it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UniqueKey {
    /// The content of the rows: a row that violates the key exists already.
    Contents,
    /// A number from a sequence.
    Number,
    /// A key that a user created.
    NotOurs,
}

/// Which functions and keys of the database are the writer's own, by name. The class of an error depends on whether a
/// user's function or key raised it.
#[derive(Debug, Clone, Copy)]
pub struct OwnObjects {
    pub is_own_function: fn(&str) -> bool,
    pub unique_key: fn(&str) -> UniqueKey,
}

/// A failed operation on PostgreSQL.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// A failure to connect, which is always of the environment.
    #[error("{0}")]
    Connect(ConnectError),
    /// Every connection that PostgreSQL allows is in use.
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
    /// The statement affected fewer or more rows than expected: a trigger or rule suppresses rows.
    #[error(
        "{statement} affected {got} rows, expected {expected}; is there a trigger, rule or policy on schema gapless?"
    )]
    Rows { statement: &'static str, expected: usize, got: usize },
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// The server's message with its SQLSTATE. It contains no statement parameters, which may contain payloads.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
        None if error.is_closed() => "the connection to PostgreSQL ended".to_owned(),
        None => match std::error::Error::source(error) {
            Some(cause) if cause.is::<std::io::Error>() => format!("the connection to PostgreSQL broke ({cause})"),
            Some(cause) => format!("PostgreSQL's client library failed ({error}: {cause})"),
            None => format!("PostgreSQL's client library failed ({error})"),
        },
    }
}

/// The user's function that raised an error within one of the writer's statements, for example in a trigger. The
/// error's context has a line for each call, the innermost call first. In every message language of the server, the
/// line begins with the function's programming language, and the function's name is before a parenthesis or in quotes.
fn foreign_function(error: &DbError, own: OwnObjects) -> Option<&str> {
    let calls = error.where_()?.lines().filter(|line| line.starts_with("PL/") || line.starts_with("SQL function "));
    let name = |line| match str::split_once(line, '(') {
        Some((before, _)) => before.rsplit(' ').next(),
        None => line.split('"').nth(1),
    };
    calls.filter_map(name).find(|name| !(own.is_own_function)(name))
}

/// Returns true if an error of this state passes by itself even if a user's function raised it.
fn passes(state: &str) -> bool {
    ["08", "0A000", "25", "40", "53", "55P03", "57", "58"].iter().any(|prefix| state.starts_with(prefix))
}

/// The class of a SQLSTATE depends on the object that raised it. An error of a user's function or of a user's key is no
/// fault of a row, and does not pass by itself.
fn class_of(error: &DbError, own: OwnObjects) -> Class {
    let state = error.code().code();
    if foreign_function(error, own).is_some() && !passes(state) {
        return Class::Halt;
    }
    match error.constraint().map(own.unique_key) {
        Some(UniqueKey::NotOurs) if *error.code() == SqlState::UNIQUE_VIOLATION => Class::Halt,
        _ => meaning(state).0,
    }
}

impl PgError {
    /// Decides whether and how the operation is retried. No other code decides this.
    pub fn class(&self, own: OwnObjects) -> Class {
        match self {
            Self::Connect(_) | Self::Busy { .. } | Self::Standby | Self::Timeout { .. } | Self::Injected(_) => {
                Class::Environment
            }
            Self::Url(_) | Self::Rows { .. } => Class::Halt,
            Self::Statement { source, .. } => match (source.as_db_error(), source.code()) {
                (Some(error), _) => class_of(error, own),
                (None, Some(state)) => meaning(state.code()).0,
                // Without a SQLSTATE the connection broke.
                (None, None)
                    if source.is_closed()
                        || std::error::Error::source(source).is_some_and(|s| s.is::<std::io::Error>()) =>
                {
                    Class::Environment
                }
                (None, None) => Class::Halt,
            },
        }
    }

    /// What the operator can do, by the SQLSTATE alone; empty if there is nothing to do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Connect(error) => error.remedy(),
            Self::Busy { .. } => "raise the limit of the role, the pooler or the server; see database.writers",
            Self::Standby => meaning("25006").1,
            // A standby refuses to begin a writing transaction with this state.
            Self::Statement { statement: "begin", source }
                if source.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) =>
            {
                meaning("25006").1
            }
            Self::Statement { source, .. } => meaning(source.code().map_or("", SqlState::code)).1,
            Self::Timeout { .. } => "the server is slow or blocked; see database.statement_timeout_ms",
            Self::Rows { .. } => "remove the trigger, rule or policy that suppresses rows, then restart",
            Self::Url(_) | Self::Injected(_) => "",
        }
    }

    pub(crate) fn database_error(&self) -> Option<&DbError> {
        match self {
            Self::Statement { source, .. } => source.as_db_error(),
            _ => None,
        }
    }

    /// The user's function that raised the error, if any.
    pub(crate) fn foreign_function(&self, own: OwnObjects) -> Option<&str> {
        self.database_error().and_then(|error| foreign_function(error, own))
    }

    /// The unique key that a row violated; `None` if a user's function raised the error.
    pub(crate) fn met(&self, own: OwnObjects) -> Option<UniqueKey> {
        let error = self.database_error().filter(|e| *e.code() == SqlState::UNIQUE_VIOLATION)?;
        if foreign_function(error, own).is_some() { None } else { error.constraint().map(own.unique_key) }
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
    fn the_longest_matching_entry_counts() {
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
