//! Connections that are used again, and no more of them than the server gives.
//!
//! deadpool keeps the connections. It opens as many as its size says, and fails where the server gives fewer; so there is a
//! gate before it: where PostgreSQL or a pooler refuses a further connection (max_connections, a role's limit) while some
//! of ours are open, the gate becomes as narrow as that, and whoever needs one waits for one of ours to come back.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult};
use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore};

use super::connect_error::ConnectError;
use super::connector::{Connection, Connector};
use super::error::PgError;

/// After this a further connection is tried once more.
const LIMIT_RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// A server counts a connection for a moment after its end.
const COUNTED_AFTER_END: Duration = Duration::from_secs(1);
const COUNTED_CHECK: Duration = Duration::from_millis(50);

/// What deadpool asks for connections.
struct Manager {
    connector: Connector,
    state: Mutex<ManagerState>,
    /// One further reference for each connection that is open.
    open: Arc<()>,
    /// Read while a connection is being opened.
    opening: RwLock<()>,
}

/// A connection, counted from the moment at which the server gave it.
struct CountedConnection {
    connection: Connection,
    _open: Arc<()>,
}

struct ManagerState {
    /// An idle connection of this age was ended by the server: those that come near it are not used again.
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
                    // Those that are being opened at the same time may be the ones that the server gave: they count.
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

    /// A connection is used again if it did not end meanwhile, and will not soon.
    async fn recycle(&self, counted: &mut CountedConnection, _: &Metrics) -> RecycleResult<ConnectError> {
        let connection = &counted.connection;
        let age = connection.idle_since.elapsed();
        let mut state = locked(&self.state);
        if connection.timed_out.load(Ordering::Relaxed) {
            // It ended at this age or earlier.
            state.longest_idle = state.longest_idle.min(age);
        }
        match !connection.client.is_closed() && age < state.longest_idle / 2 {
            true => Ok(()),
            false => Err(RecycleError::message("it ended, or the server is about to end it")),
        }
    }
}

impl Manager {
    async fn open_one(&self) -> Result<CountedConnection, ConnectError> {
        let _opening = self.opening.read().await;
        let connection = Box::pin(self.connector.connect()).await?;
        Ok(CountedConnection { connection, _open: Arc::clone(&self.open) })
    }

    /// Whether the server may still count one of ours that has ended.
    fn closed_lately(&self, begun: Instant) -> bool {
        let lately = |at: Instant| at.elapsed() < COUNTED_AFTER_END;
        begun.elapsed() < COUNTED_AFTER_END && locked(&self.state).closed_at.is_some_and(lately)
    }

    fn closed(&self) {
        locked(&self.state).closed_at = Some(Instant::now());
    }
}

/// How many connections the server was seen to give.
struct ConnectGate {
    /// Permits that were taken away since the server refused a connection.
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

/// A connection that is in use; it goes back to the others when dropped.
pub(crate) struct Lease {
    connection: Option<Object<Manager>>,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(crate) fn new(connector: Connector, size: usize) -> Arc<Self> {
        let state = Mutex::new(ManagerState { longest_idle: Duration::MAX, closed_at: None });
        let manager = Manager { connector, state, open: Arc::new(()), opening: RwLock::new(()) };
        // The last one that came back is taken first: the others may be ended by the server.
        let builder = managed::Pool::builder(manager).max_size(size).queue_mode(managed::QueueMode::Lifo);
        let connections = builder.build().expect("without timeouts a pool needs no runtime");
        let gate = Mutex::new(ConnectGate { withheld: 0, try_more_at: Instant::now(), is_explained: false });
        Arc::new(Self { connections, permits: Arc::new(Semaphore::new(size)), gate })
    }

    /// Connections that are open, idle or in use.
    fn open(&self) -> usize {
        Arc::strong_count(&self.connections.manager().open) - 1
    }

    /// A connection: an idle one, a new one, or the next that comes back within this time.
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

    /// A connection more, where the server gives it at once; for those who want several at a time.
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

    /// An idle connection or a new one; whoever holds a permit does not wait for anybody.
    async fn connection(&self) -> Result<Object<Manager>, ConnectError> {
        self.connections.get().await.map_err(|error| match error {
            PoolError::Backend(error) => error,
            other => unreachable!("a pool without timeouts and hooks, which is never closed, says: {other:?}"),
        })
    }

    /// The server gives no further connection: whether there are others of ours to wait for.
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
                "{error}; gapless goes on with the connections it has, more slowly if that is fewer than \
                 database.writers; to give it more, raise the limit of the role, the pooler or the server"
            );
        }
        true
    }

    /// Whether the server gives fewer connections than were asked for.
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

    /// Those that nobody uses are closed: they may lead to a server that is no longer the one.
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

    /// Never used again, whatever is in flight on it.
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
        // Back before the permit, so that whoever gets that finds it.
        drop(self.connection.take());
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
