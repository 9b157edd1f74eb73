//! Opens one connection. It tries each server in order, and each of a server's addresses, with a timeout for each
//! attempt, until a server accepts the connection and its session has the required attributes.

use std::any::Any;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use deadpool_postgres::ClientWrapper;
use tokio::net::TcpStream;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::connect_error::{Attempt, ConnectError, ConnectFailure};
use super::credentials::{CredentialSource, Credentials};
use super::error::{PgError, describe};
use super::target::{Encryption, Endpoint, Place, SessionAttrs};
use crate::config::DatabaseConfig;

/// The socket directories: the one of Linux packages, and PostgreSQL's own default.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// How long a program that did not answer has to show that it is not PostgreSQL.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

const SESSION_STATE: &str = "-- session_state
select pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'";

/// What a program's sessions do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// They write. Of several servers, the one that accepts writes is used.
    Write,
    /// They only read. A standby is accepted.
    Read,
}

/// An open connection.
pub(crate) struct Connection {
    pub(crate) client: ClientWrapper,
    /// The TLS configuration of the connection, which a cancellation uses too; `None` without TLS.
    pub(crate) tls: Option<MakeRustlsConnect>,
    /// PostgreSQL's major version, also behind a pooler; 0 if unknown.
    pub(crate) server_major: u32,
    /// True after the server ended the connection because it was idle (`idle_session_timeout`).
    pub(crate) timed_out: Arc<AtomicBool>,
    /// A value that a writer stores with the connection.
    pub(crate) kept: Option<Box<dyn Any + Send + Sync>>,
    /// When the connection was returned to the pool last.
    pub(crate) idle_since: Instant,
}

pub(crate) struct Connector {
    source: CredentialSource,
    access: Access,
    connect_timeout: Duration,
}

impl Connector {
    pub(crate) fn new(database: &DatabaseConfig, access: Access) -> Result<Self, PgError> {
        let source = CredentialSource::new(database)?;
        Ok(Self { source, access, connect_timeout: database.connect_timeout })
    }

    pub(crate) async fn connect(&self) -> Result<Connection, ConnectError> {
        let credentials = self.source.current();
        let target = &credentials.target;
        let timeout = target.connect_timeout.unwrap_or(self.connect_timeout);
        let mut endpoints: Vec<&Endpoint> = target.endpoints.iter().collect();
        if target.balanced {
            // Each endpoint may be first; the order of the others is less important.
            endpoints.rotate_left(crate::retry::random_below(target.endpoints.len()));
        }
        let wanted = match (target.session, self.access) {
            (Some(wanted), _) => wanted,
            // Not libpq's default `any`: with it, a daemon would never leave a standby.
            (None, Access::Write) if endpoints.len() > 1 => SessionAttrs::ReadWrite,
            (None, _) => SessionAttrs::Any,
        };
        let rounds: &[SessionAttrs] = match wanted {
            SessionAttrs::PreferStandby => &[SessionAttrs::Standby, SessionAttrs::Any],
            _ => std::slice::from_ref(&wanted),
        };
        let mut attempts = Vec::new();
        for wanted in rounds {
            attempts.clear();
            for endpoint in &endpoints {
                match connect_to(&credentials, endpoint, *wanted, timeout).await {
                    Ok(connection) => return Ok(connection),
                    Err(attempt) => attempts.push(attempt),
                }
            }
        }
        Err(ConnectError::new(attempts))
    }
}

/// Tries one server at each of its addresses.
async fn connect_to(
    credentials: &Credentials,
    endpoint: &Endpoint,
    wanted: SessionAttrs,
    timeout: Duration,
) -> Result<Connection, Attempt> {
    let failed = |why| Attempt { server: endpoint.to_string(), why };
    let places = addresses(endpoint, timeout).await.map_err(failed)?;
    let mut last = ConnectFailure::NameNotFound;
    for address in places {
        let attempt = async {
            let connection = log_in(credentials, endpoint, &address).await?;
            is_wanted(&connection.client, wanted).await?;
            Ok(connection)
        };
        match tokio::time::timeout(timeout, attempt).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(why)) => last = why,
            Err(_) if is_other_protocol(&address).await => last = ConnectFailure::OtherProtocol,
            Err(_) => last = ConnectFailure::NoAnswer(timeout),
        }
    }
    Err(failed(last))
}

/// Returns true if a program other than PostgreSQL listens at the address. Such a program (Kafka, for example) may read
/// PostgreSQL's SSLRequest as the beginning of a longer message and wait for the rest. After a few more bytes it
/// refuses the message; a slow PostgreSQL still does not answer.
async fn is_other_protocol(address: &Address) -> bool {
    /// The SSLRequest of eight bytes, and four more: a program that reads 8 as the length of the rest then has all of
    /// it.
    const QUESTION: [u8; 12] = [0, 0, 0, 8, 4, 210, 22, 47, 0, 0, 0, 0];
    let Address::Tcp(address) = address else { return false };
    let ask = async {
        let Ok(stream) = TcpStream::connect(address).await else { return false };
        if stream.writable().await.is_err() || stream.try_write(&QUESTION).is_err() {
            return false;
        }
        let mut answer = [0];
        loop {
            if stream.readable().await.is_err() {
                return true;
            }
            return match stream.try_read(&mut answer) {
                Ok(1) => !b"SNE".contains(&answer[0]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                // The program closed the connection.
                Ok(_) | Err(_) => true,
            };
        }
    };
    tokio::time::timeout(PROBE_TIMEOUT, ask).await.unwrap_or(false)
}

/// An address to connect to.
enum Address {
    Tcp(SocketAddr),
    Socket(PathBuf),
}

async fn addresses(endpoint: &Endpoint, timeout: Duration) -> Result<Vec<Address>, ConnectFailure> {
    let port = endpoint.port;
    match &endpoint.place {
        Place::Socket(directory) => Ok(vec![Address::Socket(directory.clone())]),
        Place::DefaultSocket => {
            let exists = |directory: &&str| Path::new(directory).join(format!(".s.PGSQL.{port}")).exists();
            let found = SOCKET_DIRECTORIES.iter().copied().find(exists).unwrap_or(SOCKET_DIRECTORIES[0]);
            Ok(vec![Address::Socket(found.into())])
        }
        Place::Host { address: Some(address), .. } => Ok(vec![Address::Tcp((*address, port).into())]),
        Place::Host { name, address: None } => {
            match tokio::time::timeout(timeout, tokio::net::lookup_host((name.as_str(), port))).await {
                Ok(Ok(found)) => Ok(found.map(Address::Tcp).collect()),
                Ok(Err(_)) => Err(ConnectFailure::NameNotFound),
                Err(_) => Err(ConnectFailure::NoAnswer(timeout)),
            }
        }
    }
}

/// Logs in with TLS, without TLS, or first with and then without, as libpq's sslmode defines. A Unix socket has no TLS.
async fn log_in(
    credentials: &Credentials,
    endpoint: &Endpoint,
    address: &Address,
) -> Result<Connection, ConnectFailure> {
    let target = &credentials.target;
    let mut config = target.config.clone();
    config.port(endpoint.port);
    match (address, &endpoint.place) {
        (Address::Socket(directory), _) => config.host_path(directory),
        (Address::Tcp(address), Place::Host { name, .. }) if !name.is_empty() => {
            config.host(name).hostaddr(address.ip())
        }
        (Address::Tcp(address), _) => config.host(address.ip().to_string()).hostaddr(address.ip()),
    };
    let mut plain = config.clone();
    plain.ssl_mode(tokio_postgres::config::SslMode::Disable);
    let (Address::Tcp(_), Some(tls)) = (address, &credentials.tls) else {
        return open(&plain, NoTls, None).await;
    };
    config.ssl_mode(target.encryption.mode());
    match open(&config, tls.clone(), Some(tls)).await {
        Err(why) if target.encryption == Encryption::Preferred && why.may_be_due_to_tls() => {
            // If both attempts fail, the first error says more.
            open(&plain, NoTls, None).await.map_err(|_| why)
        }
        opened => opened,
    }
}

async fn open<T>(config: &Config, tls: T, cancel_tls: Option<&MakeRustlsConnect>) -> Result<Connection, ConnectFailure>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    let (client, connection) = config.connect(tls).await.map_err(|error| ConnectFailure::of(&error))?;
    let version = connection.parameter("server_version").unwrap_or_default();
    let major = version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let server_major = major.parse().unwrap_or_default();
    let driver: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(connection);
    let timed_out = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&timed_out);
    let task = tokio::spawn(async move {
        // A caller that uses the connection gets the error itself; the end of an idle connection is only logged.
        if let Err(error) = driver.await {
            ended.store(error.code() == Some(&SqlState::IDLE_SESSION_TIMEOUT), Ordering::Relaxed);
            tracing::debug!(error = describe(&error), "a connection to PostgreSQL ended");
        }
    });
    let client = ClientWrapper::new(client, task);
    let (kept, idle_since) = (None, Instant::now());
    Ok(Connection { client, tls: cancel_tls.cloned(), server_major, timed_out, kept, idle_since })
}

/// Checks that the session has the attributes of `target_session_attrs`.
async fn is_wanted(client: &Client, wanted: SessionAttrs) -> Result<(), ConnectFailure> {
    if wanted == SessionAttrs::Any {
        return Ok(());
    }
    let answer = client.simple_query(SESSION_STATE).await.map_err(|error| ConnectFailure::of(&error))?;
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let is = |column| row.and_then(|row| row.get(column)) == Some("t");
    let (in_recovery, read_only) = (is(0), is(1));
    let mismatch = match wanted {
        SessionAttrs::ReadWrite if in_recovery => "the server is a standby and read-only",
        SessionAttrs::ReadWrite if read_only => "the session is read-only (default_transaction_read_only)",
        SessionAttrs::ReadOnly if !read_only => "the session is not read-only",
        SessionAttrs::Primary if in_recovery => "the server is a standby and read-only",
        SessionAttrs::Standby if !in_recovery => "the server is no standby",
        _ => return Ok(()),
    };
    Err(ConnectFailure::OtherSession(mismatch))
}
