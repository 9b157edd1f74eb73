//! Rows of `gapless.gaps`: proven ranges of offsets without a message, set-based.

use tokio_postgres::types::Type;

use crate::ledger::error::LedgerError;
use crate::model::batch::{Gap, Slice};
use crate::model::offset::Coverage;
use crate::postgres::session::{Param, Session};

/// Deletes the recorded gaps of ranges that are read again: their gaps are proven again. An offset that has a message
/// now, or is empty for another reason, must not stay in an old gap.
const CLEAR_GAPS: &str = "-- clear_gaps
with span as (
    select * from unnest($1::int4[], $2::int8[], $3::int8[]) as u(position_id, low, high)
), emptied as (
    delete from gapless.gaps g using span
    where g.position_id = span.position_id and g.to_offset > span.low and g.from_offset < span.high
      and g.ranges <@ int8range(span.low, span.high)
    returning g.id
)
update gapless.gaps g set ranges = g.ranges - int8multirange(int8range(span.low, span.high))
from span
where g.position_id = span.position_id and g.to_offset > span.low and g.from_offset < span.high
  and not g.ranges <@ int8range(span.low, span.high)";

const INSERT_GAPS: &str = "-- insert_gaps
insert into gapless.gaps (position_id, from_offset, to_offset, kind, ranges, proof)
select position_id, low, high, kind::gapless.gap_kind, ranges::int8multirange, proof
from unnest($1::int4[], $2::int8[], $3::int8[], $4::text[], $5::text[], $6::text[])
    as u(position_id, low, high, kind, ranges, proof)";

/// For ranges that are read again: an offset of a proven gap may have an outcome, if its message was compacted away
/// since. The server excludes these offsets from the gap, because a range with a small number of messages may contain
/// any number of them. It merges adjacent offsets to ranges before it aggregates them, so that it needs little memory.
const INSERT_GAPS_AROUND_OUTCOMES: &str = "-- insert_gaps_around_outcomes
with given as (
    select position_id, low, high, kind, ranges::int8multirange as ranges, proof
    from unnest($1::int4[], $2::int8[], $3::int8[], $4::text[], $5::text[], $6::text[])
        as u(position_id, low, high, kind, ranges, proof)
), numbered as (
    select g.position_id, o.\"offset\",
        o.\"offset\" - row_number() over (partition by g.position_id order by o.\"offset\") as island
    from given g
    join gapless.outcomes o on o.position_id = g.position_id and o.\"offset\" >= g.low and o.\"offset\" < g.high
), islands as (
    select position_id, int8range(min(\"offset\"), max(\"offset\"), '[]') as range
    from numbered group by position_id, island
), taken as (
    select position_id, range_agg(range) as ranges from islands group by position_id
), rest as (
    select g.position_id, g.kind, g.ranges - coalesce(t.ranges, '{}') as ranges, g.proof
    from given g left join taken t using (position_id)
)
insert into gapless.gaps (position_id, from_offset, to_offset, kind, ranges, proof)
select position_id, lower(ranges), upper(ranges), kind::gapless.gap_kind, ranges, proof
from rest where not isempty(ranges)";

/// Removes offsets that have an outcome now from the gaps.
const SHRINK_GAPS: &str = "-- shrink_gaps
with emptied as (
    delete from gapless.gaps
    where position_id = $1 and from_offset < $3 and to_offset > $2 and ranges <@ $4::text::int8multirange
)
update gapless.gaps set ranges = ranges - $4::text::int8multirange
where position_id = $1 and from_offset < $3 and to_offset > $2
  and ranges && $4::text::int8multirange and not ranges <@ $4::text::int8multirange";

/// Deletes the recorded gaps of these slices. The gaps are proven and recorded again.
pub(crate) async fn clear_gaps(session: &Session, slices: &[&Slice]) -> Result<(), LedgerError> {
    let (position, low, high) = spans(slices);
    let params = [(&position as _, Type::INT4_ARRAY), (&low as _, Type::INT8_ARRAY), (&high as _, Type::INT8_ARRAY)];
    Ok(session.execute(CLEAR_GAPS, &params).await.map(drop)?)
}

fn spans(slices: &[&Slice]) -> (Vec<i32>, Vec<i64>, Vec<i64>) {
    let low = slices.iter().map(|s| s.range.from().get()).collect();
    let high = slices.iter().map(|s| s.range.to().get()).collect();
    (slices.iter().map(|s| s.position_id).collect(), low, high)
}

/// Records the proven gaps of a batch, one row per slice. Offsets that have an outcome from before are left out.
pub(crate) async fn insert_gaps(session: &Session, slices: &[Slice]) -> Result<(), LedgerError> {
    let gaps =
        |reread: bool| slices.iter().filter(move |s| s.reread == reread).filter_map(|s| Some((s, s.gap.as_ref()?)));
    let new: Vec<(&Slice, &Gap)> = gaps(false).collect();
    let reread: Vec<(&Slice, &Gap)> = gaps(true).collect();
    if !new.is_empty() {
        session.write(INSERT_GAPS, &GapColumns::of(&new).params(), new.len()).await?;
    }
    if !reread.is_empty() {
        session.execute(INSERT_GAPS_AROUND_OUTCOMES, &GapColumns::of(&reread).params()).await?;
    }
    Ok(())
}

/// Gaps as arrays, one per column.
struct GapColumns<'a> {
    position: Vec<i32>,
    low: Vec<i64>,
    high: Vec<i64>,
    kind: Vec<&'a str>,
    ranges: Vec<String>,
    proof: Vec<&'a str>,
}

impl<'a> GapColumns<'a> {
    fn of(gaps: &[(&'a Slice, &'a Gap)]) -> Self {
        let span = |gap: &Gap| gap.offsets.span().expect("a proven gap is not empty");
        Self {
            position: gaps.iter().map(|(slice, _)| slice.position_id).collect(),
            low: gaps.iter().map(|(_, gap)| span(gap).from().get()).collect(),
            high: gaps.iter().map(|(_, gap)| span(gap).to().get()).collect(),
            kind: gaps.iter().map(|(_, gap)| gap.kind.name()).collect(),
            ranges: gaps.iter().map(|(_, gap)| gap.offsets.to_multirange()).collect(),
            proof: gaps.iter().map(|(_, gap)| gap.proof.as_str()).collect(),
        }
    }

    fn params(&self) -> [Param<'_>; 6] {
        [
            (&self.position as _, Type::INT4_ARRAY),
            (&self.low as _, Type::INT8_ARRAY),
            (&self.high as _, Type::INT8_ARRAY),
            (&self.kind as _, Type::TEXT_ARRAY),
            (&self.ranges as _, Type::TEXT_ARRAY),
            (&self.proof as _, Type::TEXT_ARRAY),
        ]
    }
}

/// Removes the offsets `filled` from the recorded gaps of a position.
pub(crate) async fn shrink_gaps(session: &Session, position_id: i32, filled: &Coverage) -> Result<(), LedgerError> {
    let Some(span) = filled.span() else { return Ok(()) };
    let (low, high, ranges) = (span.from().get(), span.to().get(), filled.to_multirange());
    let params = [
        (&position_id as _, Type::INT4),
        (&low as _, Type::INT8),
        (&high as _, Type::INT8),
        (&ranges as _, Type::TEXT),
    ];
    Ok(session.execute(SHRINK_GAPS, &params).await.map(drop)?)
}
