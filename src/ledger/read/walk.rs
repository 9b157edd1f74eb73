//! Reads the rows of one table and position in offset order, page by page. `verify` reads whole tables this way.
//!
//! Each page is one statement that follows an index from a key on, so that neither its plan nor its duration depends on
//! statistics or on the size of the table. The session's transaction must have been begun by `Session::begin_walk`.

use std::collections::{BinaryHeap, VecDeque};

use std::cmp::Reverse;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::ledger::error::LedgerError;
use crate::model::offset::{NextOffset, Offset, OffsetRange};
use crate::postgres::session::Session;

/// Rows per page of narrow tables: a page takes some megabytes.
const ROWS_PER_PAGE: i64 = 20_000;
/// Rows of gaps per page: each may contain thousands of ranges.
const GAPS_PER_PAGE: i64 = 200;
/// Rows of gaps per page if only their extent is read.
const EXTENTS_PER_PAGE: i64 = 50_000;

/// A table's rows in offset order, each as a value that `read` makes of it.
pub(crate) struct MergedScan<'a, T> {
    session: &'a Session,
    /// Parameters: `$1` position id, `$2` first offset, `$3` number of rows. The first column is the offset. Rows of
    /// one offset must be on one page (`with ties`).
    sql: &'static str,
    position_id: i32,
    read: fn(&Row) -> T,
    from: NextOffset,
    page: VecDeque<(Offset, T)>,
    is_at_end: bool,
}

impl<'a, T> MergedScan<'a, T> {
    pub(crate) fn new(session: &'a Session, position_id: i32, sql: &'static str, read: fn(&Row) -> T) -> Self {
        let from = NextOffset::new(0).expect("zero is an offset");
        Self { session, sql, position_id, read, from, page: VecDeque::new(), is_at_end: false }
    }

    /// The offset of the next row.
    pub(crate) async fn offset(&mut self) -> Result<Option<Offset>, LedgerError> {
        if self.page.is_empty() && !self.is_at_end {
            let from = self.from.get();
            let params =
                [(&self.position_id as _, Type::INT4), (&from as _, Type::INT8), (&ROWS_PER_PAGE as _, Type::INT8)];
            let rows = self.session.query(self.sql, &params).await?;
            self.page.extend(rows.iter().map(|row| (offset(row), (self.read)(row))));
            self.is_at_end = (rows.len() as i64) < ROWS_PER_PAGE;
            self.from = self.page.back().map_or(self.from, |(last, _)| last.next());
        }
        Ok(self.page.front().map(|(offset, _)| *offset))
    }

    /// The next row, if it has this offset. [`Self::offset`] must have been called before.
    pub(crate) fn take(&mut self, at: Offset) -> Option<T> {
        match self.page.front() {
            Some((offset, _)) if *offset == at => self.page.pop_front().map(|(_, row)| row),
            _ => None,
        }
    }
}

/// An offset in a row's first column.
pub(crate) fn offset(row: &Row) -> Offset {
    Offset::new(row.get(0)).expect("no negative offset was ever stored")
}

const EXTENTS: &str = "-- gap_extents
select max(to_offset), max(to_offset - from_offset), count(*) from (
    select from_offset, to_offset from gapless.gaps where position_id = $1 and to_offset > $2
    order by to_offset fetch first $3 rows with ties) as page";

const GAPS: &str = "-- walk_gaps
select page.to_offset, array_agg(lower(r)), array_agg(upper(r)) from (
    select id, to_offset, ranges from gapless.gaps where position_id = $1 and to_offset > $2
    order by to_offset fetch first $3 rows with ties) as page
cross join lateral unnest(page.ranges) as r
group by page.id, page.to_offset";

/// A position's gaps as ranges in the order in which they begin. The only index is over the end of a row. A row that is
/// read later ends later, so it begins after the end of the last read row minus the extent of the longest row.
pub(crate) struct GapWalk<'a> {
    session: &'a Session,
    position_id: i32,
    longest: i64,
    read_to: i64,
    is_at_end: bool,
    waiting: BinaryHeap<Reverse<(i64, i64)>>,
}

impl<'a> GapWalk<'a> {
    pub(crate) async fn begin(session: &'a Session, position_id: i32) -> Result<Self, LedgerError> {
        let (mut longest, mut read_to) = (0, -1_i64);
        loop {
            let row = session.one(EXTENTS, &params(&position_id, &read_to, &EXTENTS_PER_PAGE)).await?;
            let Some(last) = row.get::<_, Option<i64>>(0) else { break };
            read_to = last;
            longest = row.get::<_, i64>(1).max(longest);
            if row.get::<_, i64>(2) < EXTENTS_PER_PAGE {
                break;
            }
        }
        Ok(Self { session, position_id, longest, read_to: -1, is_at_end: false, waiting: BinaryHeap::new() })
    }

    /// The range that begins next.
    pub(crate) async fn peek(&mut self) -> Result<Option<OffsetRange>, LedgerError> {
        while !self.is_at_end && !self.is_first_known() {
            self.read().await?;
        }
        Ok(self.waiting.peek().map(|Reverse((from, to))| range(*from, *to)))
    }

    pub(crate) fn pop(&mut self) {
        self.waiting.pop();
    }

    /// Returns true if no unread row can begin before the first waiting range.
    fn is_first_known(&self) -> bool {
        self.waiting.peek().is_some_and(|Reverse((from, _))| *from <= self.read_to.saturating_sub(self.longest))
    }

    async fn read(&mut self) -> Result<(), LedgerError> {
        let rows = self.session.query(GAPS, &params(&self.position_id, &self.read_to, &GAPS_PER_PAGE)).await?;
        self.is_at_end = (rows.len() as i64) < GAPS_PER_PAGE;
        for row in &rows {
            self.read_to = row.get::<_, i64>(0).max(self.read_to);
            let (from, to): (Vec<i64>, Vec<i64>) = (row.get(1), row.get(2));
            self.waiting.extend(from.into_iter().zip(to).map(Reverse));
        }
        Ok(())
    }
}

fn params<'a>(position_id: &'a i32, after: &'a i64, page: &'a i64) -> [crate::postgres::session::Param<'a>; 3] {
    [(position_id, Type::INT4), (after, Type::INT8), (page, Type::INT8)]
}

/// A range of a multirange: it is never empty.
fn range(from: i64, to: i64) -> OffsetRange {
    let offset = |n| NextOffset::new(n).expect("no negative offset was ever stored");
    OffsetRange::new(offset(from), offset(to)).expect("no range of a multirange is empty")
}
