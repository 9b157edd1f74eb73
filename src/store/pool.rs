//! Connections that are used again, and no more of them than the server gives.
//!
//! Where PostgreSQL or a pooler refuses a further connection (max_connections, a role's limit) while some of ours are
//! open, the daemon works with those: whoever needs one waits for one of ours to come back. (deadpool cannot shrink to
//! what a server gives.)

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connect_error::ConnectError;
use super::connector::{Connection, Connector};
use super::error::StoreError;

/// After this a further connection is tried once more.
const TRY_MORE_AFTER: Duration = Duration::from_secs(60);
/// A server counts a connection for a moment after its end.
const COUNTED_AFTER_END: Duration = Duration::from_secs(1);
const COUNTED_CHECK: Duration = Duration::from_millis(50);

struct Idle {
    connection: Connection,
    since: Instant,
}

struct State {
    idle: Vec<Idle>,
    /// Connections that are open, idle or in use.
    open: usize,
    /// Permits that were taken away since the server refused a connection.
    withheld: usize,
    try_more_at: Instant,
    /// An idle connection of this age was ended by the server: those that come near it are not used again.
    longest_idle: Duration,
    closed_at: Option<Instant>,
    is_explained: bool,
}

pub(super) struct Pool {
    connector: Connector,
    /// One permit for each connection that may be open.
    permits: Arc<Semaphore>,
    state: Mutex<State>,
}

/// A connection that is in use; it goes back to the others when dropped.
pub(super) struct Lease {
    connection: Option<Connection>,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(super) fn new(connector: Connector, size: usize) -> Arc<Self> {
        let state = State {
            idle: Vec::new(),
            open: 0,
            withheld: 0,
            try_more_at: Instant::now(),
            longest_idle: Duration::MAX,
            closed_at: None,
            is_explained: false,
        };
        Arc::new(Self { connector, permits: Arc::new(Semaphore::new(size)), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection: an idle one, a new one, or the next that comes back within this time.
    pub(super) async fn lease(self: &Arc<Self>, wait: Duration) -> Result<Lease, StoreError> {
        self.try_more();
        loop {
            let permits = Arc::clone(&self.permits);
            let permit = match tokio::time::timeout(wait, permits.acquire_owned()).await {
                Ok(permit) => permit.expect("the semaphore is never closed"),
                Err(_) => return Err(StoreError::Busy { connections: self.state().open, after: wait }),
            };
            if let Some(connection) = self.idle() {
                return Ok(self.leased(connection, permit));
            }
            match self.open().await {
                Ok(connection) => return Ok(self.leased(connection, permit)),
                Err(error) if error.is_full() && self.withhold(&error) => permit.forget(),
                Err(error) => return Err(StoreError::Connect(error)),
            }
        }
    }

    /// A connection more, where the server gives it at once; for those who want several at a time.
    pub(super) async fn lease_another(self: &Arc<Self>) -> Option<Lease> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        if let Some(connection) = self.idle() {
            return Some(self.leased(connection, permit));
        }
        match self.open().await {
            Ok(connection) => Some(self.leased(connection, permit)),
            Err(error) => {
                if error.is_full() && self.withhold(&error) {
                    permit.forget();
                }
                None
            }
        }
    }

    fn leased(self: &Arc<Self>, connection: Connection, permit: OwnedSemaphorePermit) -> Lease {
        Lease { connection: Some(connection), pool: Arc::clone(self), _permit: permit }
    }

    /// One that did not end meanwhile, and will not soon.
    fn idle(&self) -> Option<Connection> {
        let mut state = self.state();
        while let Some(Idle { connection, since }) = state.idle.pop() {
            let age = since.elapsed();
            if connection.timed_out.load(Ordering::Relaxed) {
                // It ended at this age or earlier.
                state.longest_idle = state.longest_idle.min(age);
            }
            if !connection.client.is_closed() && age < state.longest_idle / 2 {
                return Some(connection);
            }
            state.open -= 1;
        }
        None
    }

    async fn open(&self) -> Result<Connection, ConnectError> {
        let begun = Instant::now();
        loop {
            match Box::pin(self.connector.connect()).await {
                Ok(connection) => {
                    self.state().open += 1;
                    return Ok(connection);
                }
                Err(error) if error.is_full() && self.closed_lately(begun) => {
                    tokio::time::sleep(COUNTED_CHECK).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the server may still count one of ours that has ended.
    fn closed_lately(&self, begun: Instant) -> bool {
        let lately = |at: Instant| at.elapsed() < COUNTED_AFTER_END;
        begun.elapsed() < COUNTED_AFTER_END && self.state().closed_at.is_some_and(lately)
    }

    /// The server gives no further connection: whether there are others of ours to wait for.
    fn withhold(&self, error: &ConnectError) -> bool {
        let mut state = self.state();
        if state.open == 0 {
            return false;
        }
        state.withheld += 1;
        state.try_more_at = Instant::now() + TRY_MORE_AFTER;
        if !std::mem::replace(&mut state.is_explained, true) {
            tracing::warn!(
                event = "connections_limited",
                connections = state.open,
                "{error}; gapless goes on with the connections it has, more slowly if that is fewer than \
                 database.writers; to give it more, raise the limit of the role, the pooler or the server"
            );
        }
        true
    }

    /// Whether the server gives fewer connections than were asked for.
    pub(super) fn is_limited(&self) -> bool {
        self.state().withheld > 0
    }

    fn try_more(&self) {
        let mut state = self.state();
        if state.withheld > 0 && Instant::now() >= state.try_more_at {
            state.withheld -= 1;
            state.try_more_at = Instant::now() + TRY_MORE_AFTER;
            self.permits.add_permits(1);
        }
    }

    /// Those that nobody uses are closed: they may lead to a server that is no longer the one.
    pub(super) fn close_idle(&self) {
        let mut state = self.state();
        state.open -= state.idle.len();
        state.idle.clear();
        state.closed_at = Some(Instant::now());
    }
}

impl Lease {
    pub(super) fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("present until dropped")
    }

    pub(super) fn connection_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("present until dropped")
    }

    /// Never used again, whatever is in flight on it.
    pub(super) fn close(mut self) {
        let mut state = self.pool.state();
        state.open -= 1;
        state.closed_at = Some(Instant::now());
        drop(state);
        self.connection = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            let mut state = self.pool.state();
            if connection.client.is_closed() {
                state.open -= 1;
                state.closed_at = Some(Instant::now());
            } else {
                state.idle.push(Idle { connection, since: Instant::now() });
            }
        }
    }
}
