//! The format history: the format that decoded each range of messages. Every transaction that decodes messages into the
//! ledger records it, and `verify` reads it to decode them again.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::formats::{Format, Preset};
use crate::ledger::error::LedgerError;
use crate::model::event::IdentityRecipe;
use crate::model::offset::{Offset, OffsetRange};
use crate::model::record::Digest;
use crate::postgres::session::{Param, Session};

/// Part of the history, because another version may decode differently after a bug fix.
const PROGRAM_VERSION: &str = env!("CARGO_PKG_VERSION");

/// No format has a mapping yet.
const NO_MAPPING: Option<Digest> = None;

/// Inserts a row that is valid from each position of a source on, unless the last row already has these values.
const KEEP: &str = "-- keep_format
insert into gapless.format_history (position_id, from_offset, format, mapping_digest, identity_fields, program_version)
select p.id, p.next_offset, $2, $3, $4, $5
from gapless.positions p
left join lateral (
    select * from gapless.format_history h
    where h.position_id = p.id and h.to_offset is null order by h.id desc limit 1
) last on true
where p.source_id = $1 and (last.id is null or last.from_offset > p.next_offset
    or (last.format, last.mapping_digest, last.identity_fields, last.program_version) is distinct from ($2, $3, $4, $5))";

/// A partition that is added while the daemon runs gets the format of the source's other partitions.
const KEEP_FOR_ADDED_PARTITION: &str = "-- keep_format_of_partition
insert into gapless.format_history (position_id, from_offset, format, mapping_digest, identity_fields, program_version)
select p.id, p.next_offset, h.format, h.mapping_digest, h.identity_fields, h.program_version
from gapless.positions p
cross join lateral (
    select h.* from gapless.format_history h join gapless.positions o on o.id = h.position_id
    where o.source_id = $1 and h.to_offset is null order by h.id desc limit 1
) h
where p.source_id = $1 and p.partition_id = $2
  and not exists (select from gapless.format_history x where x.position_id = p.id)";

/// Extends the row of a replay's previous chunk.
const EXTEND: &str = "-- extend_format
update gapless.format_history h set to_offset = $3
where h.id = (
    select max(x.id) from gapless.format_history x
    where x.position_id = $1 and x.to_offset is not null and x.from_offset <= $2 and x.to_offset <= $3
      and (x.format, x.mapping_digest, x.identity_fields, x.program_version) is not distinct from ($4, $5, $6, $7))";

const KEEP_RANGE: &str = "-- keep_format_of_range
insert into gapless.format_history
    (position_id, from_offset, to_offset, format, mapping_digest, identity_fields, program_version)
values ($1, $2, $3, $4, $5, $6, $7)";

const COVERED: &str = "-- is_format_kept
select exists (
    select from gapless.format_history x
    where x.position_id = $1 and x.from_offset <= $2 and coalesce(x.to_offset >= $3, true)
      and (x.format, x.mapping_digest, x.identity_fields, x.program_version) is not distinct from ($4, $5, $6, $7))";

const HISTORY: &str = "-- format_history
select from_offset, to_offset, format, mapping_digest is not null, identity_fields, program_version
from gapless.format_history where position_id = $1 order by id desc";

const LEDGER_FIELDS: &str = "-- identity_of_ledger
select identity_fields from gapless.ledger";

/// The decoding settings that a start records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoding {
    pub preset: Preset,
    pub identity_fields: String,
}

impl Decoding {
    pub fn of(format: &Format) -> Self {
        Self { preset: format.preset, identity_fields: format.identity.text() }
    }

    /// Records the format for every position of the source.
    pub(crate) async fn keep(&self, session: &Session, source_id: i32) -> Result<(), LedgerError> {
        let format = self.preset.name();
        let [format, mapping, identity, program] = values(&format, &self.identity_fields);
        Ok(session.execute(KEEP, &[(&source_id, Type::INT4), format, mapping, identity, program]).await.map(drop)?)
    }

    /// Records the format for a range whose messages are decoded again.
    pub(crate) async fn keep_range(
        &self,
        session: &Session,
        position_id: i32,
        range: OffsetRange,
    ) -> Result<(), LedgerError> {
        let (from, to, name) = (range.from().get(), range.to().get(), self.preset.name());
        let [format, mapping, identity, program] = values(&name, &self.identity_fields);
        let key = [(&position_id as _, Type::INT4), (&from as _, Type::INT8), (&to as _, Type::INT8)];
        let params: Vec<Param<'_>> = key.into_iter().chain([format, mapping, identity, program]).collect();
        if session.one(COVERED, &params).await?.get(0) || session.execute(EXTEND, &params).await? > 0 {
            return Ok(());
        }
        Ok(session.write(KEEP_RANGE, &params, 1).await?)
    }
}

fn values<'a>(format: &'a &'static str, identity_fields: &'a String) -> [Param<'a>; 4] {
    [(format, Type::TEXT), (&NO_MAPPING, Type::UUID), (identity_fields, Type::TEXT), (&PROGRAM_VERSION, Type::TEXT)]
}

/// Records the format for a partition that was added while the daemon runs.
pub(crate) async fn keep_for_added_partition(
    session: &Session,
    source_id: i32,
    partition: i32,
) -> Result<(), LedgerError> {
    Ok(session
        .execute(KEEP_FOR_ADDED_PARTITION, &[(&source_id, Type::INT4), (&partition, Type::INT4)])
        .await
        .map(drop)?)
}

/// The format history of one position.
#[derive(Debug)]
pub struct History {
    /// The newest entry first.
    entries: Vec<Entry>,
    /// The format of messages that were decoded before the history existed.
    earlier: Format,
}

#[derive(Debug)]
struct Entry {
    from: i64,
    to: Option<i64>,
    /// `None` if this program does not know the format.
    format: Option<Format>,
    is_this_program: bool,
}

/// The formats that may have decoded a message, the most likely first.
#[derive(Debug)]
pub(crate) struct Candidates<'a> {
    pub(crate) formats: Vec<&'a Format>,
    /// True if only this version may have decoded the message, so that decoding gives the same result now.
    pub(crate) is_this_program: bool,
    /// True if a format that this program does not know may have decoded the message.
    pub(crate) has_unknown: bool,
}

impl History {
    pub(crate) async fn read(session: &Session, position_id: i32) -> Result<Self, LedgerError> {
        let fields = session.query(LEDGER_FIELDS, &[]).await?;
        // If the row of `gapless.ledger` is lost, `verify` reports that.
        let identity = fields.first().and_then(|row| IdentityRecipe::parse(row.get(0))).unwrap_or_default();
        let rows = session.query(HISTORY, &[(&position_id, Type::INT4)]).await?;
        Ok(Self { entries: rows.iter().map(entry).collect(), earlier: format(Preset::Web3, identity) })
    }

    pub(crate) fn at(&self, offset: Offset) -> Candidates<'_> {
        let offset = offset.get();
        let covers = |e: &&Entry| e.from <= offset && e.to.is_none_or(|to| offset < to);
        let mut candidates = Candidates { formats: Vec::new(), is_this_program: true, has_unknown: false };
        let mut covering = self.entries.iter().filter(covers).peekable();
        if covering.peek().is_none() {
            candidates.formats.push(&self.earlier);
            candidates.is_this_program = false;
        }
        for entry in covering {
            candidates.is_this_program &= entry.is_this_program;
            match &entry.format {
                Some(format) if candidates.formats.iter().any(|f| is_same(f, format)) => {}
                Some(format) => candidates.formats.push(format),
                None => candidates.has_unknown = true,
            }
        }
        candidates
    }
}

fn is_same(one: &Format, other: &Format) -> bool {
    one.preset == other.preset && one.identity == other.identity
}

fn entry(row: &Row) -> Entry {
    let (name, has_mapping, fields): (&str, bool, &str) = (row.get(2), row.get(3), row.get(4));
    let known = Preset::from_name(name).filter(|_| !has_mapping).zip(IdentityRecipe::parse(fields));
    let known = known.map(|(preset, identity)| format(preset, identity));
    let is_this_program = row.get::<_, &str>(5) == PROGRAM_VERSION;
    Entry { from: row.get(0), to: row.get(1), format: known, is_this_program }
}

/// A format without a message limit: each stored message was within the limit that was configured at the time.
fn format(preset: Preset, identity: IdentityRecipe) -> Format {
    Format { preset, identity, max_message_bytes: usize::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(from: i64, to: Option<i64>, fields: Option<&str>, is_this_program: bool) -> Entry {
        let identity = fields.map(|fields| IdentityRecipe::parse(fields).expect("a recipe"));
        Entry { from, to, format: identity.map(|identity| format(Preset::Web3, identity)), is_this_program }
    }

    fn at(history: &History, offset: i64) -> (Vec<String>, bool, bool) {
        let found = history.at(Offset::new(offset).expect("not negative"));
        let recipes = found.formats.iter().map(|f| f.identity.text()).collect();
        (recipes, found.is_this_program, found.has_unknown)
    }

    #[test]
    fn every_entry_that_covers_an_offset_is_a_candidate_and_no_entry_means_an_earlier_program() {
        let (default, fuller) = ("txn,event_type", "txn,event_type,log_index");
        let entries = vec![
            entry(5, Some(7), None, true),
            entry(20, None, Some(default), true),
            entry(15, None, Some(fuller), true),
            entry(10, None, Some(default), false),
        ];
        let history = History { entries, earlier: format(Preset::Web3, IdentityRecipe::default()) };
        assert_eq!(at(&history, 4), (vec![default.to_owned()], false, false));
        assert_eq!(at(&history, 6), (vec![], true, true));
        assert_eq!(at(&history, 7), (vec![default.to_owned()], false, false));
        assert_eq!(at(&history, 10), (vec![default.to_owned()], false, false));
        assert_eq!(at(&history, 15), (vec![fuller.to_owned(), default.to_owned()], false, false));
        assert_eq!(at(&history, 20), (vec![default.to_owned(), fuller.to_owned()], false, false));
    }
}
