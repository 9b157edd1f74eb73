//! One way into PostgreSQL: a connection with what it keeps between batches.

use std::ops::Range;

use tokio::task::JoinSet;
use tokio_postgres::types::Type;

use super::commit::Writer;
use super::connect::Store;
use super::copy::Rows;
use super::error::StoreError;
use super::session::Session;

/// What `gapless.event_ids` is incremented by.
const BLOCK: i64 = 64;

const BLOCKS: &str = "-- event_ids
select nextval('gapless.event_ids') from generate_series(1, $1)";

/// What a connection keeps between batches.
#[derive(Default)]
pub(super) struct Kept {
    rows: Rows,
    ids: Range<i64>,
}

pub(super) struct Lane {
    pub(super) session: Session,
    pub(super) rows: Rows,
    /// The rest of the last block of event numbers taken. It goes with the connection: a server that was
    /// restored, or failed over, may give the same numbers again.
    ids: Range<i64>,
}

impl Store {
    pub(super) async fn lane(&self) -> Result<Lane, StoreError> {
        Ok(Lane::on(self.session().await?))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let kept = Kept { rows: std::mem::take(&mut self.rows), ids: std::mem::take(&mut self.ids) };
        self.session.connection_mut().kept = kept;
    }
}

impl Writer {
    /// Opens connections before there are batches to be written side by side. Where that fails, the batch that needs
    /// one says so.
    pub async fn open(&self, lanes: usize) {
        let mut opening = JoinSet::new();
        for _ in 0..lanes {
            let store = self.store.clone();
            opening.spawn(async move {
                let lease = store.pool.lease_another().await?;
                let mut session = Session::new(lease, store.limits());
                // The server looks up now what it would in the first batch.
                session.begin_batch().await.ok()?;
                session.rollback().await.ok()?;
                Some(session)
            });
        }
        // None goes back to the pool before all are there: it would be taken again instead of a further one.
        drop(opening.join_all().await);
    }
}

impl Lane {
    fn on(mut session: Session) -> Self {
        let Kept { rows, ids } = std::mem::take(&mut session.connection_mut().kept);
        Self { session, rows, ids }
    }

    /// So many event numbers that nobody else has.
    pub(super) async fn ids(&mut self, count: usize) -> Result<Vec<i64>, StoreError> {
        let mut ids: Vec<i64> = self.ids.by_ref().take(count).collect();
        let blocks = (count - ids.len()).div_ceil(BLOCK as usize);
        if blocks > 0 {
            let blocks = i32::try_from(blocks).expect("a batch holds fewer than 2^31 events");
            for row in self.session.query(BLOCKS, &[(&blocks, Type::INT4)]).await? {
                let first: i64 = row.get(0);
                self.ids = first..first + BLOCK;
                ids.extend(self.ids.by_ref().take(count - ids.len()));
            }
        }
        Ok(ids)
    }

    /// A number that was ours turned out to be taken, perhaps: none of the rest is used.
    pub(super) fn forget_ids(&mut self) {
        self.ids = 0..0;
    }
}
