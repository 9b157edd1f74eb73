//! A writer's connection to PostgreSQL, with the state that it keeps between batches.

use std::ops::Range;

use tokio::task::JoinSet;
use tokio_postgres::types::Type;

use super::writer::Writer;
use crate::ledger::catalogue;
use crate::ledger::catalogue::sequences::Sequences;
use crate::ledger::connect::LedgerStore;
use crate::ledger::error::LedgerError;
use crate::postgres::copy::Rows;
use crate::postgres::session::Session;

/// The increment of sequence `gapless.event_ids`.
const ID_BLOCK_SIZE: i64 = 64;

const BLOCKS: &str = "-- event_ids
select nextval('gapless.event_ids') from generate_series(1, $1)";

/// The state that a connection keeps between batches.
#[derive(Default)]
pub(crate) struct KeptState {
    rows: Rows,
    ids: Range<i64>,
    is_checked: bool,
}

pub(crate) struct WriterConnection {
    pub(crate) session: Session,
    pub(crate) rows: Rows,
    /// The unused rest of the last block of event ids. It is discarded with the connection, because a server that was
    /// restored or failed over may give the same ids again.
    ids: Range<i64>,
    /// The catalogue of the ledger was checked on this connection.
    is_checked: bool,
}

impl LedgerStore {
    /// Leases a connection for a batch. A new connection may reach another server than the last one, so its ledger's
    /// catalogue is checked before anything is written.
    pub(crate) async fn writer_connection(&self) -> Result<WriterConnection, LedgerError> {
        let mut connection = WriterConnection::on(self.session().await?);
        if !connection.is_checked {
            catalogue::check_in_own_transaction(&mut connection.session, Sequences::MoveForward).await?.required()?;
            connection.is_checked = true;
        }
        Ok(connection)
    }
}

impl Drop for WriterConnection {
    fn drop(&mut self) {
        let Self { rows, ids, is_checked, .. } = self;
        let kept = KeptState { rows: std::mem::take(rows), ids: std::mem::take(ids), is_checked: *is_checked };
        self.session.connection_mut().kept = Some(Box::new(kept));
    }
}

impl Writer {
    /// Opens connections before batches need them. A failure is ignored here: the batch that needs the connection
    /// reports it.
    pub async fn open(&self, connections: usize) {
        let mut opening = JoinSet::new();
        for _ in 0..connections {
            let store = self.store.clone();
            opening.spawn(async move {
                let lease = store.pool.lease_another().await?;
                let mut session = Session::new(lease, store.limits());
                // The server fills its catalogue caches now instead of in the first batch.
                session.begin_batch().await.ok()?;
                session.rollback().await.ok()?;
                Some(session)
            });
        }
        // All connections stay leased until the last one is open. A returned one would be leased again instead of a new
        // one.
        drop(opening.join_all().await);
    }

    /// Closes unused connections and discards their event ids.
    pub fn close_idle(&self) {
        self.store.pool.close_idle();
    }
}

impl WriterConnection {
    fn on(mut session: Session) -> Self {
        let kept = session.connection_mut().kept.take().and_then(|kept| kept.downcast::<KeptState>().ok());
        let KeptState { rows, ids, is_checked } = kept.map(|kept| *kept).unwrap_or_default();
        Self { session, rows, ids, is_checked }
    }

    /// Allocates `count` event ids that no other connection has.
    pub(crate) async fn allocate_ids(&mut self, count: usize) -> Result<Vec<i64>, LedgerError> {
        let mut ids: Vec<i64> = self.ids.by_ref().take(count).collect();
        let blocks = (count - ids.len()).div_ceil(ID_BLOCK_SIZE as usize);
        if blocks > 0 {
            let blocks = i32::try_from(blocks).expect("a batch has fewer than 2^31 events");
            for row in self.session.query(BLOCKS, &[(&blocks, Type::INT4)]).await? {
                let first: i64 = row.get(0);
                self.ids = first..first + ID_BLOCK_SIZE;
                ids.extend(self.ids.by_ref().take(count - ids.len()));
            }
        }
        Ok(ids)
    }

    /// Discards the unused ids, after an id of this connection may have been in use already.
    pub(crate) fn discard_ids(&mut self) {
        self.ids = 0..0;
    }
}
