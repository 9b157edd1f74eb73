//! The only row of `gapless.ledger`: the consumer group and the identity fields. Each start, every verb that writes
//! events and `verify` read it, and compare it with the identity fields in `gapless.format_history`.

use tokio_postgres::Row;

use crate::ledger::error::LedgerError;
use crate::ledger::read::consistency::Inspector;
use crate::model::offset::{NextOffset, OffsetRange};
use crate::postgres::session::Session;

const ROW: &str = "-- ledger_row
select l.consumer_group, l.identity_fields, exists (select from gapless.sources)
from (select) as one left join gapless.ledger l on true";

/// The identity fields that were used to write rows, the newest last.
const WRITTEN: &str = "-- identity_fields_of_rows
select identity_fields from gapless.format_history group by identity_fields order by max(id)";

/// The ranges whose messages were decoded with other identity fields than the ledger's.
const OTHERS: &str = "-- rows_of_other_identity_fields
select h.position_id, h.from_offset, least(coalesce(h.to_offset, p.next_offset), p.next_offset), h.identity_fields
from gapless.format_history h
join gapless.positions p on p.id = h.position_id
cross join gapless.ledger l
where h.identity_fields <> l.identity_fields and h.from_offset < p.next_offset
order by 1, 2";

/// The content of the row.
#[derive(Debug)]
pub(crate) struct LedgerRow {
    pub(crate) group: String,
    pub(crate) identity_fields: String,
}

/// Returns the row, or `None` if nothing was read yet. An error if the row was deleted, or if no rows were written with
/// its identity fields although others were used.
pub(crate) async fn read(session: &Session, group: &str, fields: &str) -> Result<Option<LedgerRow>, LedgerError> {
    let row = session.one(ROW, &[]).await?;
    let written: Vec<String> = session.query(WRITTEN, &[]).await?.iter().map(|row| row.get(0)).collect();
    check_row(ledger_row(&row), row.get(2), &written, group, fields)
}

/// Returns the row of a ledger of an older version, which has no format history to compare it with.
pub(crate) async fn read_alone(session: &Session) -> Result<Option<LedgerRow>, LedgerError> {
    Ok(ledger_row(&session.one(ROW, &[]).await?))
}

fn ledger_row(row: &Row) -> Option<LedgerRow> {
    Some(LedgerRow { group: row.get::<_, Option<_>>(0)?, identity_fields: row.get(1) })
}

fn check_row(
    row: Option<LedgerRow>,
    has_sources: bool,
    written: &[String],
    group: &str,
    fields: &str,
) -> Result<Option<LedgerRow>, LedgerError> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    match (row, written.last()) {
        (None, _) if !has_sources => Ok(None),
        (None, newest) => Err(LedgerError::LedgerRow {
            found: "gapless.ledger has lost its only row, which names the consumer group and the identity fields"
                .to_owned(),
            sql: format!(
                "insert into gapless.ledger (consumer_group, identity_fields) values ({}, {})",
                quoted(group),
                quoted(newest.map_or(fields, String::as_str))
            ),
        }),
        (Some(row), Some(newest)) if !written.contains(&row.identity_fields) => Err(LedgerError::LedgerRow {
            found: format!(
                "gapless.ledger has identity_fields {:?}, and its events were identified by {newest:?} (gapless.format_history)",
                row.identity_fields
            ),
            sql: format!("update gapless.ledger set identity_fields = {}", quoted(newest)),
        }),
        (Some(row), _) => Ok(Some(row)),
    }
}

/// A range whose messages were decoded with other identity fields than the ledger's.
#[derive(Debug)]
pub struct OtherIdentity {
    pub position_id: i32,
    pub range: OffsetRange,
    pub identity_fields: String,
}

impl Inspector {
    /// An error if the row is missing, or if its identity fields are not those that rows were written with.
    pub async fn check_ledger_row(&self, group: &str, fields: &str) -> Result<(), LedgerError> {
        read(self.session(), group, fields).await.map(drop)
    }

    pub async fn other_identities(&self) -> Result<Vec<OtherIdentity>, LedgerError> {
        let rows = self.session().query(OTHERS, &[]).await?;
        let other = |row: &Row| {
            let range = OffsetRange::new(NextOffset::new(row.get(1))?, NextOffset::new(row.get(2))?)?;
            Some(OtherIdentity { position_id: row.get(0), range, identity_fields: row.get(3) })
        };
        Ok(rows.iter().filter_map(other).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(row: Option<&str>, has_sources: bool, written: &[&str]) -> Option<String> {
        let row = row.map(|fields| LedgerRow { group: "g".into(), identity_fields: fields.into() });
        let written: Vec<String> = written.iter().map(ToString::to_string).collect();
        match check_row(row, has_sources, &written, "it's", "txn") {
            Ok(_) => None,
            Err(LedgerError::LedgerRow { sql, .. }) => Some(sql),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn the_remedy_for_a_lost_row_names_the_identity_fields_that_rows_were_written_with() {
        let insert = "insert into gapless.ledger (consumer_group, identity_fields) values ('it''s', ";
        assert_eq!(sql(None, false, &[]), None, "nothing was read yet");
        assert_eq!(sql(None, true, &["a", "b"]), Some(format!("{insert}'b')")));
        assert_eq!(sql(None, true, &[]), Some(format!("{insert}'txn')")));
    }

    #[test]
    fn the_remedy_for_identity_fields_that_no_row_was_written_with_restores_the_used_ones() {
        assert_eq!(sql(Some("a"), true, &["a"]), None);
        assert_eq!(sql(Some("a"), true, &[]), None, "an older version kept no format history");
        assert_eq!(sql(Some("a"), true, &["a", "b"]), None, "other fields are reported range by range");
        assert_eq!(sql(Some("a"), true, &["b"]), Some("update gapless.ledger set identity_fields = 'b'".into()));
    }
}
