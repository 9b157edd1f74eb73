//! Late changes: offsets below the position whose outcome or events were inserted or changed. They are numbered in the
//! order of their commits, for programs that read the ledger by position. One of the last statements of the transaction
//! records them.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::ledger::error::LedgerError;
use crate::model::offset::Offset;
use crate::postgres::session::Session;

const RECORD: &str = "-- record_late_changes
select late, recorded from gapless.record_late_changes($1, $2, $3)";

/// Offsets whose rows a transaction inserted or changed. The locked positions decide which of them are late.
#[derive(Debug, Default)]
pub(crate) struct LateChanges {
    position_ids: Vec<i32>,
    offsets: Vec<i64>,
}

impl LateChanges {
    pub(crate) fn add(&mut self, position_id: i32, offset: Offset) {
        self.position_ids.push(position_id);
        self.offsets.push(offset.get());
    }

    /// Records and numbers the late changes. `moving` are the positions that the transaction moves afterwards: all
    /// positions are locked in one order, so that no two transactions deadlock. An error if a late change was not
    /// recorded, because a reader would never see that change.
    pub(crate) async fn note(&self, session: &Session, moving: &[i32]) -> Result<(), LedgerError> {
        if self.offsets.is_empty() {
            return Ok(());
        }
        let params = [
            (&self.position_ids as _, Type::INT4_ARRAY),
            (&self.offsets as _, Type::INT8_ARRAY),
            (&moving as _, Type::INT4_ARRAY),
        ];
        let row = session.one(RECORD, &params).await?;
        let [expected, got] = [0, 1].map(|column| usize::try_from(row.get::<_, i64>(column)).unwrap_or(usize::MAX));
        if got == expected { Ok(()) } else { Err(LedgerError::rows("record_late_changes", expected, got)) }
    }
}

impl Extend<(i32, Offset)> for LateChanges {
    fn extend<T: IntoIterator<Item = (i32, Offset)>>(&mut self, changes: T) {
        changes.into_iter().for_each(|(position_id, offset)| self.add(position_id, offset));
    }
}

/// Position id and offset from the first two columns of rows.
pub(crate) fn positions_of(rows: &[Row]) -> impl Iterator<Item = (i32, Offset)> {
    rows.iter().map(|row| (row.get(0), Offset::new(row.get(1)).expect("no negative offset was ever stored")))
}
