//! The partitions that are not being read, each with its reason: the daemon writes them, `gapless status` reads them.
//!
//! The rows belong to the newest start. The daemon of an older start writes nothing; if a statement of it is late, the
//! next confirmation by the newest start overwrites its rows.

use tokio_postgres::types::Type;

use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;
use crate::ledger::positions::FencingToken;
use crate::model::offset::OffsetRange;

/// A partition that is not being read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedState {
    pub partition: i32,
    /// `suspended` or `halted`.
    pub state: &'static str,
    /// One of a fixed set of reasons.
    pub reason: &'static str,
    pub detail: String,
    pub range: Option<OffsetRange>,
    pub remedy: String,
}

/// Replaces all states of a source. A partition that is not named is being read, and the states of the topic's earlier
/// generations are deleted. `since` does not change if state and reason are the same as before.
const RECORD: &str = "-- record_partition_states
with mine as (
    select p.id, p.partition_id from gapless.positions p where p.source_id = $1 and p.fence = $2
), given as (
    select * from unnest($3::int4[], $4::text[], $5::text[], $6::text[], $7::int8[], $8::int8[], $9::text[])
        as t(partition_id, state, reason, detail, from_offset, to_offset, remedy)
), cleared as (
    delete from gapless.recorded_states r
    using gapless.positions p join gapless.sources s on s.id = p.source_id
    where r.position_id = p.id and r.fence <= $2 and exists (select from mine)
      and s.topic = (select topic from gapless.sources where id = $1)
      and not exists (
          select from given t join mine on mine.partition_id = t.partition_id where mine.id = r.position_id)
)
insert into gapless.recorded_states as r (position_id, fence, state, reason, detail, from_offset, to_offset, remedy)
select mine.id, $2, t.state, t.reason, t.detail, t.from_offset, t.to_offset, t.remedy
from given t join mine on mine.partition_id = t.partition_id
on conflict (position_id) do update set
    since = case when (r.state, r.reason) = (excluded.state, excluded.reason)
        then r.since else excluded.since end,
    fence = excluded.fence, state = excluded.state, reason = excluded.reason, detail = excluded.detail,
    from_offset = excluded.from_offset, to_offset = excluded.to_offset, remedy = excluded.remedy, updated_at = now()
where r.fence <= excluded.fence";

impl LedgerStore {
    /// Replaces the recorded states of a source's partitions, if this start is still the newest one.
    pub async fn record_states(
        &self,
        source_id: i32,
        token: FencingToken,
        states: &[RecordedState],
    ) -> Result<(), LedgerError> {
        let partitions: Vec<i32> = states.iter().map(|s| s.partition).collect();
        let names: Vec<&str> = states.iter().map(|s| s.state).collect();
        let reasons: Vec<&str> = states.iter().map(|s| s.reason).collect();
        let details: Vec<&str> = states.iter().map(|s| s.detail.as_str()).collect();
        let from: Vec<Option<i64>> = states.iter().map(|s| s.range.map(|r| r.from().get())).collect();
        let to: Vec<Option<i64>> = states.iter().map(|s| s.range.map(|r| r.to().get())).collect();
        let remedies: Vec<&str> = states.iter().map(|s| s.remedy.as_str()).collect();
        let params = [
            (&source_id as _, Type::INT4),
            (&token.fence as _, Type::INT8),
            (&partitions as _, Type::INT4_ARRAY),
            (&names as _, Type::TEXT_ARRAY),
            (&reasons as _, Type::TEXT_ARRAY),
            (&details as _, Type::TEXT_ARRAY),
            (&from as _, Type::INT8_ARRAY),
            (&to as _, Type::INT8_ARRAY),
            (&remedies as _, Type::TEXT_ARRAY),
        ];
        let mut session = self.session().await?;
        session.begin().await?;
        session.execute(RECORD, &params).await?;
        Ok(session.commit().await.map_err(|failure| failure.into_error())?)
    }
}
