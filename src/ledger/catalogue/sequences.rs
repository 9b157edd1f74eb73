//! Checks that each sequence is ahead of its table. Logical replication and some restores copy rows without their
//! sequences: then the sequence gives numbers that rows already have.

use tokio_postgres::types::Type;

use super::{Catalogue, Difference, Key, Kind, expected};
use crate::ledger::error::LedgerError;
use crate::postgres::connector::Access;
use crate::postgres::session::Session;

/// How to handle a sequence that is behind its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequences {
    /// Move the sequence forward if the role has the right; otherwise report it.
    MoveForward,
    /// Report the sequence.
    Name,
}

impl Sequences {
    pub(crate) fn access(self) -> Access {
        match self {
            Self::MoveForward => Access::Write,
            Self::Name => Access::Read,
        }
    }
}

const STATE: &str = "-- sequences
select u.name, s.seqstart, s.seqincrement, pg_sequence_last_value(s.seqrelid), has_sequence_privilege(s.seqrelid, 'update'),
       has_sequence_privilege(s.seqrelid, 'select')
from unnest($1::text[]) as u(name) join pg_sequence s on s.seqrelid = to_regclass(u.name)
where has_sequence_privilege(s.seqrelid, 'usage, select')";

/// Compares and moves in one statement, so that it cannot set a sequence back that another daemon has just moved.
const MOVE: &str = "-- move_sequence
select setval(to_regclass($1), $2) where coalesce(pg_sequence_last_value(to_regclass($1)), 0) < $2";

/// A sequence, the column that it numbers, and the highest number in that column.
struct Numbered {
    sequence: &'static str,
    table: &'static str,
    column: &'static str,
    highest: i64,
}

pub(crate) async fn check(
    session: &Session,
    actual: &Catalogue,
    sequences: Sequences,
) -> Result<Vec<Difference>, LedgerError> {
    // Read the highest numbers before the sequences: rows that others insert in between have moved the sequence too.
    let numbered = highest(session, actual).await?;
    let names: Vec<&str> = numbered.iter().map(|n| n.sequence).collect();
    let mut behind = Vec::new();
    for row in session.query(STATE, &[(&names, Type::TEXT_ARRAY)]).await? {
        let (name, start, increment, last): (&str, i64, i64, Option<i64>) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        let next = match last {
            Some(last) => last.saturating_add(increment),
            // The sequence gave no number since it was created or restarted, and a restart may use any number.
            None if row.get(5) => restarted_at(session, name).await?,
            None => start,
        };
        let Some(n) = numbered.iter().find(|n| n.sequence == name && n.highest >= next) else { continue };
        if sequences == Sequences::MoveForward && row.get(4) {
            session.query(MOVE, &[(&n.sequence, Type::TEXT), (&n.highest, Type::INT8)]).await?;
            tracing::warn!(
                event = "sequence_moved",
                sequence = n.sequence,
                highest = n.highest,
                "a sequence was behind its table and was moved forward"
            );
            continue;
        }
        behind.push(Difference {
            object: format!("sequence {}", n.sequence),
            difference: format!("gives {next} next, and {}.{} goes up to {}", n.table, n.column, n.highest),
            remedy: format!("select setval('{}', {})", n.sequence, n.highest),
        });
    }
    Ok(behind)
}

async fn restarted_at(session: &Session, sequence: &str) -> Result<i64, LedgerError> {
    let rows = session.query_text("sequence_restarted_at", &format!("select last_value from {sequence}")).await?;
    let row = rows.first().ok_or(LedgerError::rows("sequence_restarted_at", 1, 0))?;
    Ok(row.get(0))
}

/// The highest number of each numbered column that has its key. Without the key's index, the whole table would be read.
async fn highest(session: &Session, actual: &Catalogue) -> Result<Vec<Numbered>, LedgerError> {
    let has_key = |(sequence, table, column): &(&'static str, &'static str, &'static str)| {
        let key = |kind, table: &str, name: &str| Key { kind, table: table.to_owned(), name: name.to_owned() };
        let indexed = actual.iter().any(|(k, properties)| {
            k.kind == Kind::Constraint
                && k.table == *table
                && properties.get("definition").is_some_and(|d| *d == format!("PRIMARY KEY ({column})"))
                && properties.get("index").is_some_and(|index| index == "valid")
        });
        indexed && actual.contains_key(&key(Kind::Sequence, "", sequence))
    };
    let numbered: Vec<_> = expected::numbered_columns().filter(has_key).collect();
    if numbered.is_empty() {
        return Ok(Vec::new());
    }
    let columns: Vec<String> =
        numbered.iter().map(|(_, table, column)| format!("(select max({column})::int8 from {table})")).collect();
    let rows = session.query_text("highest_numbers", &format!("select {}", columns.join(", "))).await?;
    let row = rows.first().ok_or(LedgerError::rows("highest_numbers", 1, 0))?;
    let found = numbered.into_iter().enumerate().filter_map(|(at, (sequence, table, column))| {
        Some(Numbered { sequence, table, column, highest: row.get::<_, Option<i64>>(at)? })
    });
    Ok(found.collect())
}
