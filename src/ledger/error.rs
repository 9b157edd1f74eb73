//! Errors of the ledger: an error of PostgreSQL, classified with the knowledge of which functions and keys are the
//! ledger's own, or a ledger that is not as this version needs it.

use tokio_postgres::error::{DbError, SqlState};

use super::catalogue::Differences;
use super::catalogue::expected::{is_our_function, unique_key};
use crate::failpoints::Injected;
use crate::model::error_class::Class;
use crate::postgres::error::{OwnObjects, PgError, UniqueKey, meaning};

/// The functions and keys that the migrations create.
const OWN: OwnObjects = OwnObjects { is_own_function: is_our_function, unique_key };

/// A failed operation on the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("{}", described(.0))]
    Postgres(PgError),
    /// Tables, keys, indexes, views or functions are not what this version needs: nothing may be written.
    #[error("the ledger is not as this version needs it: {0}")]
    Schema(Box<Differences>),
    /// The row of `gapless.ledger` is missing, or does not have the identity fields that rows were written with:
    /// nothing may be written.
    #[error("{found}; restore it with: {sql}")]
    LedgerRow { found: String, sql: String },
}

impl From<PgError> for LedgerError {
    fn from(error: PgError) -> Self {
        Self::Postgres(error)
    }
}

impl From<Injected> for LedgerError {
    fn from(injected: Injected) -> Self {
        Self::Postgres(injected.into())
    }
}

fn described(error: &PgError) -> String {
    match error.foreign_function(OWN) {
        Some(function) => format!("{error}, raised in function {function}"),
        None => error.to_string(),
    }
}

/// Returns true if the owner of the tables lacks a right. PostgreSQL checks a foreign key with a statement of its own,
/// as the role that owns the table.
fn is_denied_to_owner(error: &DbError) -> bool {
    *error.code() == SqlState::INSUFFICIENT_PRIVILEGE
        && error.where_().is_some_and(|context| context.contains(" FROM ONLY "))
}

impl LedgerError {
    /// The statement changed fewer or more rows than it must.
    pub(crate) fn rows(statement: &'static str, expected: usize, got: usize) -> Self {
        Self::Postgres(PgError::Rows { statement, expected, got })
    }

    fn postgres(&self) -> Option<&PgError> {
        match self {
            Self::Postgres(error) => Some(error),
            Self::Schema(_) | Self::LedgerRow { .. } => None,
        }
    }

    /// The error's class, which alone decides about retries.
    pub fn class(&self) -> Class {
        self.postgres().map_or(Class::Halt, |error| error.class(OWN))
    }

    /// The operator's remedy; empty if there is none.
    pub fn remedy(&self) -> &'static str {
        let error = match self {
            Self::Postgres(error) => error,
            Self::Schema(_) => {
                return "nothing is written until then; do it again when `gapless check` finds no difference; \
                     see docs/operations.md#refused-ledger";
            }
            Self::LedgerRow { .. } => return "",
        };
        let halts = error.class(OWN) == Class::Halt;
        match error.database_error() {
            Some(db) if is_denied_to_owner(db) => {
                "grant usage on schema gapless to the role that owns its tables: foreign keys are checked as the owner; `gapless check` names it"
            }
            Some(_) if halts && error.foreign_function(OWN).is_some() => {
                "make the function work for gapless, which calls it with an empty search_path (qualify names, or `alter \
                 function ... set search_path`), or drop its trigger"
            }
            Some(db) if halts && *db.code() == SqlState::UNIQUE_VIOLATION => meaning("23").1,
            _ => error.remedy(),
        }
    }

    /// The error with its remedy, in one line.
    pub fn explained(&self) -> String {
        match self.remedy() {
            "" => self.to_string(),
            remedy => format!("{self}; {remedy}"),
        }
    }

    /// Returns true if a right is missing; [`crate::ledger::connect::LedgerReader::missing_rights`] names it.
    pub fn is_denied(&self) -> bool {
        self.sqlstate() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
    }

    /// The user's function that raised the error.
    pub(crate) fn foreign_function(&self) -> Option<&str> {
        self.postgres().and_then(|error| error.foreign_function(OWN))
    }

    /// Returns true if a statement inserted fewer rows than were sent, although PostgreSQL refused none.
    pub(crate) fn lacks_rows(&self) -> bool {
        matches!(self, Self::Postgres(PgError::Rows { .. }))
            || self.sqlstate().is_some_and(|state| state.code() == "GL002")
    }

    fn met(&self) -> Option<UniqueKey> {
        self.postgres().and_then(|error| error.met(OWN))
    }

    /// Returns true if a row with the same contents already exists.
    pub(crate) fn is_duplicate(&self) -> bool {
        self.met() == Some(UniqueKey::Contents)
    }

    /// Returns true if a sequence gave a number that it, or another server, had given before.
    pub fn finds_number_taken(&self) -> bool {
        self.met() == Some(UniqueKey::Number)
    }

    /// Returns true if the ledger may lack an object that this version needs: a statement of gapless names an object
    /// that is missing or has changed.
    pub fn points_at_schema(&self) -> bool {
        let lacks = |state: &SqlState| state.code().starts_with("42") && *state != SqlState::INSUFFICIENT_PRIVILEGE;
        self.finds_number_taken()
            || matches!(self, Self::Schema(_))
            || (self.foreign_function().is_none() && self.sqlstate().is_some_and(lacks))
    }

    /// The objects that raised the error, if PostgreSQL names them: the operator may have to undo a change of them. Of
    /// the error's context only the function is included, because the rest may quote data.
    pub fn raised_by(&self) -> Option<String> {
        let db = self.postgres()?.database_error()?;
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
        self.postgres().and_then(PgError::sqlstate)
    }
}
