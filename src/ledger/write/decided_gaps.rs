//! Gaps that an operator decides, of kind `skipped` or `lost`: a start with `--allow-skip`, `accept-loss` and `rebase`
//! record them.

use tokio_postgres::types::Type;

use crate::ledger::error::LedgerError;
use crate::model::offset::OffsetRange;
use crate::postgres::session::{Param, Session};

/// A gap that an operator has decided.
pub(crate) struct DecidedGap<'a> {
    pub(crate) source_id: i32,
    pub(crate) partition: i32,
    pub(crate) range: OffsetRange,
    pub(crate) kind: DecidedKind,
    pub(crate) proof: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DecidedKind {
    Skipped,
    Lost,
}

impl DecidedKind {
    fn name(self) -> &'static str {
        match self {
            Self::Skipped => "skipped",
            Self::Lost => "lost",
        }
    }
}

/// The parts of a range that have neither outcome nor gap. After a rewind, most of a range may have one.
const UNACCOUNTED: &str = "-- ranges_without_outcome_or_gap
select p.id, u.ranges::text, isempty(u.ranges)
from gapless.positions p
cross join lateral (select int8multirange(int8range($3, $4))
    - coalesce((select range_agg(int8range(o.\"offset\", o.\"offset\" + 1)) from gapless.outcomes o
                 where o.position_id = p.id and o.\"offset\" >= $3 and o.\"offset\" < $4), '{}')
    - coalesce((select range_agg(r) from gapless.gaps g cross join lateral unnest(g.ranges) as r
                 where g.position_id = p.id and g.to_offset > $3 and g.from_offset < $4), '{}') as ranges) as u
where p.source_id = $1 and p.partition_id = $2";

const RECORD: &str = "-- record_decided_gap
insert into gapless.gaps (position_id, from_offset, to_offset, kind, ranges, proof)
values ($1, $2, $3, $4::text::gapless.gap_kind, $5::text::int8multirange, $6)";

/// Records the gap over those parts of its range that have neither outcome nor gap. Returns the number of inserted
/// rows: 0 if there is no such part, otherwise 1.
pub(crate) async fn record_gap(session: &Session, gap: &DecidedGap<'_>) -> Result<u64, LedgerError> {
    let (from, to, kind) = (gap.range.from().get(), gap.range.to().get(), gap.kind.name());
    let params: [Param<'_>; 4] =
        [(&gap.source_id, Type::INT4), (&gap.partition, Type::INT4), (&from, Type::INT8), (&to, Type::INT8)];
    let row = session.one(UNACCOUNTED, &params).await?;
    if row.get(2) {
        return Ok(0);
    }
    let (position_id, ranges): (i32, &str) = (row.get(0), row.get(1));
    let params: [Param<'_>; 6] = [
        (&position_id, Type::INT4),
        (&from, Type::INT8),
        (&to, Type::INT8),
        (&kind, Type::TEXT),
        (&ranges, Type::TEXT),
        (&gap.proof, Type::TEXT),
    ];
    session.write(RECORD, &params, 1).await?;
    Ok(1)
}
