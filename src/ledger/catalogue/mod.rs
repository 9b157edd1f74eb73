//! Compares the ledger's tables, keys, indexes, views and functions with those that this version needs.
//!
//! The proof depends on them: without its unique key, `stored_events` accepts an event twice, and no statement
//! fails. So each start, each new connection of a writer, `verify`, and the running daemon at intervals read the
//! catalogue ([`actual`]), compare it with the catalogue that the migrations create ([`expected`], [`compare`]) and
//! report each difference with the SQL that repairs it ([`remedy`]). Objects that users added are no difference. They
//! are listed, and named where they may be the cause of a failure ([`suspects`]). The [`sequences`] must be ahead of
//! their tables, and no [`settings`] may turn triggers and foreign keys off.

pub mod actual;
pub mod compare;
pub mod expected;
pub mod remedy;
pub mod sequences;
pub mod settings;
pub mod suspects;
pub mod text;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use tokio_postgres::types::Type;

pub use self::sequences::Sequences;
use super::connect::{LedgerReader, LedgerStore};
use super::migrations::known_version;
use crate::ledger::error::LedgerError;
use crate::postgres::connector::Access;
use crate::postgres::session::Session;

/// The properties of an object in the server's catalogue, by property name.
type Properties = BTreeMap<String, String>;

type Catalogue = BTreeMap<Key, Properties>;

/// One object of schema `gapless`. Keys are ordered as the objects can be created.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Key {
    kind: Kind,
    /// The table of the object, or an empty text.
    table: String,
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Type,
    Sequence,
    Table,
    Column,
    Constraint,
    Index,
    Function,
    View,
    Trigger,
    Rule,
    Policy,
    RowSecurity,
    Grant,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::Type,
        Self::Sequence,
        Self::Table,
        Self::Column,
        Self::Constraint,
        Self::Index,
        Self::Function,
        Self::View,
        Self::Trigger,
        Self::Rule,
        Self::Policy,
        Self::RowSecurity,
        Self::Grant,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Sequence => "sequence",
            Self::Table => "table",
            Self::Column => "column",
            Self::Constraint => "constraint",
            Self::Index => "index",
            Self::Function => "function",
            Self::View => "view",
            Self::Trigger => "trigger",
            Self::Rule => "rule",
            Self::Policy => "policy",
            Self::RowSecurity => "row security",
            Self::Grant => "grant",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Grants are the operator's, so the migrations' grants are not expected.
    fn is_made_by_migrations(self) -> bool {
        self != Self::Grant
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, table, name } = self;
        match kind {
            Kind::Column => write!(out, "column {table}.{name}"),
            Kind::Constraint | Kind::Index | Kind::Trigger | Kind::Rule | Kind::Policy => {
                write!(out, "{} {name} on {table}", kind.name())
            }
            Kind::RowSecurity => write!(out, "row security on {name}"),
            Kind::Grant => write!(out, "grant to {name}"),
            _ => write!(out, "{} {name}", kind.name()),
        }
    }
}

/// An object that is not as this version needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub object: String,
    /// The predicate of a sentence whose subject is the object, for example `is missing`.
    pub difference: String,
    /// SQL, with a comment if the SQL alone does not repair the difference.
    pub remedy: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.object, self.difference)
    }
}

/// One or more differences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Differences(Vec<Difference>);

impl Differences {
    /// Logs each difference with its SQL.
    pub fn log(&self) {
        for difference in &self.0 {
            tracing::error!(
                event = "schema_differs",
                schema.object = difference.object,
                schema.difference = difference.difference,
                schema.remedy = difference.remedy,
                "the ledger is not as this version needs it: {difference}"
            );
        }
    }
}

/// The first difference with its SQL, and the number of the others.
impl fmt::Display for Differences {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = &self.0[0];
        write!(out, "{first}; repair it with: {}", first.remedy)?;
        match self.0.len() {
            1 => Ok(()),
            n => write!(out, " (and {} more differences; `gapless check` lists all with their SQL)", n - 1),
        }
    }
}

/// The result of a check of the catalogue.
#[derive(Debug, Default)]
pub struct Findings {
    pub differences: Vec<Difference>,
    /// Descriptions of the objects that users added.
    pub additions: Vec<String>,
}

impl Findings {
    /// An error if there are differences.
    pub fn required(self) -> Result<(), LedgerError> {
        match self.differences {
            differences if differences.is_empty() => Ok(()),
            differences => Err(LedgerError::Schema(Box::new(Differences(differences)))),
        }
    }
}

impl LedgerStore {
    /// An error if the ledger is not as this version needs it, so that nothing may be written into it. Sequences that
    /// are behind their tables are moved forward, if the role has the right.
    pub async fn require_catalogue(&self) -> Result<(), LedgerError> {
        check_in_own_transaction(&mut self.session().await?, Sequences::MoveForward).await?.required()
    }
}

impl LedgerReader {
    /// Compares the catalogue with the one that this version needs, and changes nothing. Without a ledger, there are no
    /// differences.
    pub async fn check_catalogue(&self) -> Result<Findings, LedgerError> {
        check_in_own_transaction(&mut self.session().await?, Sequences::Name).await
    }

    /// The text of `expected.jsonl`, from a newly migrated database.
    #[doc(hidden)]
    pub async fn catalogue_file(&self) -> Result<String, LedgerError> {
        let mut session = self.session().await?;
        session.begin_looking(Access::Read).await?;
        Ok(expected::write(actual::read(&session).await?))
    }
}

/// Checks the catalogue in transactions of its own. A difference counts only if a second check finds it too: while
/// REINDEX CONCURRENTLY swaps an index, one statement may see half of the change.
pub(crate) async fn check_in_own_transaction(
    session: &mut Session,
    sequences: Sequences,
) -> Result<Findings, LedgerError> {
    let first = Box::pin(check_once(session, sequences)).await?;
    if first.differences.is_empty() { Ok(first) } else { Box::pin(check_once(session, sequences)).await }
}

async fn check_once(session: &mut Session, sequences: Sequences) -> Result<Findings, LedgerError> {
    session.begin_looking(sequences.access()).await?;
    let findings = check(session, sequences).await?;
    // The check changes only sequences, and a rollback does not undo that.
    session.rollback().await?;
    Ok(findings)
}

/// Checks the catalogue in the caller's transaction.
pub(crate) async fn check(session: &Session, sequences: Sequences) -> Result<Findings, LedgerError> {
    let actual = actual::read(session).await?;
    let expected = expected::catalogue();
    if !actual.keys().any(|key| key.kind == Kind::Table) || is_newer(session, &actual).await? {
        return Ok(Findings::default());
    }
    let mut differences = compare::differences(expected, &actual);
    differences.extend(settings::check(session).await?);
    differences.extend(sequences::check(session, &actual, sequences).await?);
    Ok(Findings { differences, additions: compare::additions(expected, &actual) })
}

const NEWER: &str = "-- newer_schema
select coalesce(max(version), 0) > $1 from gapless.refinery_schema_history";

/// Returns true if a newer version has migrated the ledger while this daemon runs. Only that version knows the expected
/// catalogue, and it checks the catalogue too. A start of this version would be refused.
async fn is_newer(session: &Session, actual: &Catalogue) -> Result<bool, LedgerError> {
    let history = Key { kind: Kind::Table, table: String::new(), name: "gapless.refinery_schema_history".to_owned() };
    if !actual.contains_key(&history) {
        return Ok(false);
    }
    let is_newer = session.one(NEWER, &[(&known_version(), Type::INT4)]).await?.get(0);
    if is_newer {
        tracing::debug!("a newer version has migrated the ledger, so its tables are not compared");
    }
    Ok(is_newer)
}
