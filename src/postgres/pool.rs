//! A pool of connections that opens no more of them than the server allows.
//!
//! deadpool keeps the connections. It opens as many connections as its size allows, and fails if the server allows
//! fewer. A gate in front of it prevents this: if PostgreSQL or a pooler refuses a further connection (max_connections,
//! a role's limit) while the pool has open connections, the gate is reduced to that number, and a caller waits until
//! one of the open connections is returned.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult};
use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore};

use super::connect_error::ConnectError;
use super::connector::{Connection, Connector};
use super::error::PgError;

/// After this time the pool tries to open one more connection than before.
const LIMIT_RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// How long a server may still count a connection after its end.
const COUNTED_AFTER_END: Duration = Duration::from_secs(1);
/// The time between two attempts while the server may still count an ended connection.
const COUNTED_CHECK: Duration = Duration::from_millis(50);

/// Opens the connections for deadpool.
struct Manager {
    connector: Connector,
    state: Mutex<ManagerState>,
    /// Has one additional reference for each open connection.
    open: Arc<()>,
    /// Locked for reading while a connection is being opened.
    opening: RwLock<()>,
}

/// A connection, counted from the moment at which it was opened.
struct CountedConnection {
    connection: Connection,
    _open: Arc<()>,
}

struct ManagerState {
    /// The server has ended a connection that was idle for this long; connections idle for half of it are not used
    /// again.
    longest_idle: Duration,
    closed_at: Option<Instant>,
}

impl managed::Manager for Manager {
    type Type = CountedConnection;
    type Error = ConnectError;

    async fn create(&self) -> Result<CountedConnection, ConnectError> {
        let begun = Instant::now();
        loop {
            match self.open_one().await {
                Err(error) if error.is_full() => {
                    // Connections that are being opened at the same time count too: wait until they are open or
                    // refused.
                    drop(self.opening.write().await);
                    if !self.closed_lately(begun) {
                        return Err(error);
                    }
                    tokio::time::sleep(COUNTED_CHECK).await;
                }
                opened => return opened,
            }
        }
    }

    /// A connection is used again unless it has ended, or the server may soon end it.
    async fn recycle(&self, counted: &mut CountedConnection, _: &Metrics) -> RecycleResult<ConnectError> {
        let connection = &counted.connection;
        let age = connection.idle_since.elapsed();
        let mut state = locked(&self.state);
        if connection.timed_out.load(Ordering::Relaxed) {
            // The server ended it after this idle time or earlier.
            state.longest_idle = state.longest_idle.min(age);
        }
        match !connection.client.is_closed() && age < state.longest_idle / 2 {
            true => Ok(()),
            false => Err(RecycleError::message("the connection has ended, or the server may soon end it")),
        }
    }
}

impl Manager {
    async fn open_one(&self) -> Result<CountedConnection, ConnectError> {
        let _opening = self.opening.read().await;
        let connection = Box::pin(self.connector.connect()).await?;
        Ok(CountedConnection { connection, _open: Arc::clone(&self.open) })
    }

    /// Returns true if the server may still count one of the pool's ended connections.
    fn closed_lately(&self, begun: Instant) -> bool {
        let is_recent = |at: Instant| at.elapsed() < COUNTED_AFTER_END;
        begun.elapsed() < COUNTED_AFTER_END && locked(&self.state).closed_at.is_some_and(is_recent)
    }

    fn closed(&self) {
        locked(&self.state).closed_at = Some(Instant::now());
    }
}

/// Limits the connections to the number that the server has allowed.
struct ConnectGate {
    /// The number of permits that were removed because the server refused a connection.
    withheld: usize,
    try_more_at: Instant,
    is_explained: bool,
}

pub(crate) struct Pool {
    connections: managed::Pool<Manager>,
    /// One permit for each connection that may be open.
    permits: Arc<Semaphore>,
    gate: Mutex<ConnectGate>,
}

/// A connection that is in use. Dropping it returns it to the pool.
pub(crate) struct Lease {
    connection: Option<Object<Manager>>,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(crate) fn new(connector: Connector, size: usize) -> Arc<Self> {
        let state = Mutex::new(ManagerState { longest_idle: Duration::MAX, closed_at: None });
        let manager = Manager { connector, state, open: Arc::new(()), opening: RwLock::new(()) };
        // Last returned, first used: the server may end connections that stay idle.
        let builder = managed::Pool::builder(manager).max_size(size).queue_mode(managed::QueueMode::Lifo);
        let connections = builder.build().expect("without timeouts a pool needs no runtime");
        let gate = Mutex::new(ConnectGate { withheld: 0, try_more_at: Instant::now(), is_explained: false });
        Arc::new(Self { connections, permits: Arc::new(Semaphore::new(size)), gate })
    }

    /// The number of open connections, idle or in use.
    fn open(&self) -> usize {
        Arc::strong_count(&self.connections.manager().open) - 1
    }

    /// An idle connection, a new one, or the next one that is returned within the time `wait`.
    pub(crate) async fn lease(self: &Arc<Self>, wait: Duration) -> Result<Lease, PgError> {
        self.try_more();
        loop {
            let permits = Arc::clone(&self.permits);
            let permit = match tokio::time::timeout(wait, permits.acquire_owned()).await {
                Ok(permit) => permit.expect("the semaphore is never closed"),
                Err(_) => return Err(PgError::Busy { connections: self.open(), after: wait }),
            };
            match self.connection().await {
                Ok(connection) => return Ok(self.leased(connection, permit)),
                Err(error) if error.is_full() && self.refuse_attempts(&error) => permit.forget(),
                Err(error) => return Err(PgError::Connect(error)),
            }
        }
    }

    /// A connection if one is available without waiting; for a caller that uses several connections at the same time.
    pub(crate) async fn lease_another(self: &Arc<Self>) -> Option<Lease> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        match self.connection().await {
            Ok(connection) => Some(self.leased(connection, permit)),
            Err(error) => {
                if error.is_full() && self.refuse_attempts(&error) {
                    permit.forget();
                }
                None
            }
        }
    }

    fn leased(self: &Arc<Self>, connection: Object<Manager>, permit: OwnedSemaphorePermit) -> Lease {
        Lease { connection: Some(connection), pool: Arc::clone(self), _permit: permit }
    }

    /// An idle connection or a new one. A caller with a permit does not wait for other callers.
    async fn connection(&self) -> Result<Object<Manager>, ConnectError> {
        self.connections.get().await.map_err(|error| match error {
            PoolError::Backend(error) => error,
            other => unreachable!("a pool without timeouts and hooks, which is never closed, returned {other:?}"),
        })
    }

    /// Reduces the gate after the server refused a connection. Returns true if the pool has other open connections to
    /// wait for.
    fn refuse_attempts(&self, error: &ConnectError) -> bool {
        let open = self.open();
        if open == 0 {
            return false;
        }
        let mut gate = locked(&self.gate);
        gate.withheld += 1;
        gate.try_more_at = Instant::now() + LIMIT_RETRY_INTERVAL;
        if !std::mem::replace(&mut gate.is_explained, true) {
            tracing::warn!(
                event = "connections_limited",
                connections = open,
                "{error}; gapless continues with its open connections, more slowly if there are fewer than \
                 database.writers; to allow more, raise the limit of the role, the pooler or the server"
            );
        }
        true
    }

    /// Returns true if the server allows fewer connections than the pool's size.
    pub(crate) fn is_limited(&self) -> bool {
        locked(&self.gate).withheld > 0
    }

    fn try_more(&self) {
        let mut gate = locked(&self.gate);
        if gate.withheld > 0 && Instant::now() >= gate.try_more_at {
            gate.withheld -= 1;
            gate.try_more_at = Instant::now() + LIMIT_RETRY_INTERVAL;
            self.permits.add_permits(1);
        }
    }

    /// Closes the idle connections: after a failover they may lead to a server that is no longer the primary.
    pub(crate) fn close_idle(&self) {
        drop(self.connections.retain(|_, _| false));
        self.connections.manager().closed();
    }
}

impl Lease {
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection.as_ref().expect("present until dropped").connection
    }

    pub(crate) fn connection_mut(&mut self) -> &mut Connection {
        &mut self.connection.as_mut().expect("present until dropped").connection
    }

    /// Closes the connection, even with a statement in flight. It is never used again.
    pub(crate) fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(Object::take(connection));
            self.pool.connections.manager().closed();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.connection.as_ref().is_some_and(|counted| counted.connection.client.is_closed()) {
            return self.end();
        }
        if let Some(counted) = &mut self.connection {
            counted.connection.idle_since = Instant::now();
        }
        // The connection is returned before its permit, so that the next caller with the permit finds it.
        drop(self.connection.take());
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
