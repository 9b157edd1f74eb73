//! Rows of `gapless.positions`: the compare-and-set that moves the positions with a batch.

use tokio_postgres::types::Type;

use crate::ledger::error::LedgerError;
use crate::model::batch::Slice;
use crate::model::record::Record;
use crate::postgres::composite::Composites;
use crate::postgres::field::RowSink;
use crate::postgres::session::Session;

const ADVANCE: &str = "-- advance_positions
select gapless.advance($1, $2)";

/// The moves of the positions as an array of `gapless.position_move`.
pub(crate) fn moves(slices: &[Slice]) -> Composites {
    let mut moves = Composites::default();
    // All transactions lock positions in the order of their ids.
    let mut slices: Vec<&Slice> = slices.iter().collect();
    slices.sort_unstable_by_key(|slice| slice.position_id);
    for slice in slices {
        let anchor = slice.records.last().map(Record::anchor);
        moves.begin_row(6);
        moves.put(slice.position_id);
        moves.put(slice.range.from().get());
        moves.put(slice.range.to().get());
        moves.put(anchor.map(|a| a.offset.get()));
        moves.put(anchor.map(|a| a.digest));
        moves.put(anchor.and_then(|a| a.leader_epoch));
    }
    moves
}

/// Moves each position that has its expected offset and this fence. Returns the number of moved positions.
pub(crate) async fn advance(session: &Session, slices: &[Slice], fence: i64) -> Result<usize, LedgerError> {
    let moves = moves(slices);
    let moved: i64 = session.one(ADVANCE, &[moves.param(), (&fence, Type::INT8)]).await?.get(0);
    Ok(usize::try_from(moved).unwrap_or(0))
}
