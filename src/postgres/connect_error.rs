//! Why a connection failed: each kind of failure with its own text and remedy, and the server that it is about.

use std::error::Error as _;
use std::time::Duration;

use rustls::CertificateError;

use super::error::meaning;
use super::tls::CertificateFault;

/// No server accepted the connection. Contains one failure for each server, in the order of the attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectError {
    attempts: Vec<Attempt>,
}

/// One server that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// Host and port, or the socket.
    pub(crate) server: String,
    pub(crate) why: ConnectFailure,
}

/// Why the connection to one server failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConnectFailure {
    NameNotFound,
    NothingListens,
    NoSocket,
    Unreachable(String),
    NoAnswer(Duration),
    /// The connection was accepted, but the program did not answer in PostgreSQL's protocol.
    OtherProtocol,
    NoTls,
    Certificate(String),
    UnknownAuthority,
    Tls(String),
    /// PostgreSQL or a pooler refused the login.
    Refused {
        state: String,
        message: String,
    },
    /// The session does not have the required attributes (`target_session_attrs`).
    OtherSession(&'static str),
    /// The server asks for a password, and none is configured.
    NoPassword,
    Other(String),
}

impl std::fmt::Display for ConnectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cannot connect to PostgreSQL")?;
        for (at, Attempt { server, why }) in self.attempts.iter().enumerate() {
            write!(f, "{} at {server}: {why}", if at == 0 { "" } else { ";" })?;
        }
        Ok(())
    }
}

impl std::fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NameNotFound => f.write_str("the host name does not resolve to an address"),
            Self::NothingListens => f.write_str("nothing listens on this port (connection refused)"),
            Self::NoSocket => f.write_str("there is no such socket"),
            Self::Unreachable(why) => write!(f, "the host is not reachable ({why})"),
            Self::NoAnswer(after) => write!(f, "no answer within {} ms", after.as_millis()),
            Self::OtherProtocol => f.write_str("the program on this port does not speak PostgreSQL's protocol"),
            Self::NoTls => f.write_str("the server does not offer TLS (SSL), which sslmode asks for"),
            Self::UnknownAuthority => {
                f.write_str("the server's certificate is not signed by an authority that sslrootcert names")
            }
            Self::Certificate(why) => f.write_str(why),
            Self::Tls(why) => write!(f, "the TLS handshake failed ({why})"),
            Self::Refused { state, message } => write!(f, "{message} (SQLSTATE {state})"),
            Self::OtherSession(mismatch) => write!(f, "{mismatch}, and target_session_attrs asks for another server"),
            Self::NoPassword => f.write_str("the server asks for a password and none is given"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

impl ConnectFailure {
    /// What the operator can do.
    fn remedy(&self) -> &'static str {
        match self {
            Self::NameNotFound => "correct the host in database.url, or the name service",
            Self::NothingListens => "start PostgreSQL, or correct host and port in database.url",
            Self::NoSocket => {
                "start PostgreSQL, or give its unix_socket_directories as host in database.url (host=/directory)"
            }
            Self::Unreachable(_) => "check the network and the host in database.url",
            Self::NoAnswer(_) => {
                "check host, port and the firewalls between, or raise database.connect_timeout_ms if the server is slow"
            }
            Self::OtherProtocol => {
                "correct host and port in database.url: another program listens there, or a proxy that has no server"
            }
            Self::NoTls => "set ssl = on in the server, or sslmode=disable where the network may be trusted",
            Self::UnknownAuthority => "give the certificate of the authority that signed the server's as sslrootcert",
            Self::Certificate(_) => "see docs/deployment.md, \"Certificates\", for the certificates that are accepted",
            Self::Tls(_) => {
                "check the server's TLS settings, and sslcert and sslkey if it asks for a client certificate"
            }
            Self::Refused { state, .. } => refusal_remedy(state),
            Self::OtherSession(_) => {
                "add such a server (for writing: the primary) to the hosts of database.url, or correct target_session_attrs"
            }
            Self::NoPassword => "give it in database.url, or by database.password_file",
            Self::Other(_) => "check database.url and that PostgreSQL is up",
        }
    }

    /// Returns true if the server answered, so that its host and port are correct.
    fn is_answered(&self) -> bool {
        !matches!(
            self,
            Self::NameNotFound | Self::NothingListens | Self::NoSocket | Self::Unreachable(_) | Self::NoAnswer(_)
        )
    }

    /// Returns true if the server or a pooler allows no further connection now.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            // PgBouncer uses 08P01 for this and for other refusals; only its text distinguishes them.
            Self::Refused { state, message } => {
                state == "53300"
                    || state == "08P01"
                        && (message.contains("no more connections") || message.contains("query_wait_timeout"))
            }
            _ => false,
        }
    }

    /// Returns true if the server may accept a connection without TLS after this failure (for libpq's `prefer`).
    pub(crate) fn may_be_due_to_tls(&self) -> bool {
        match self {
            Self::Tls(_) => true,
            Self::Refused { state, .. } => state == "28000",
            _ => false,
        }
    }

    /// The kind of an error of tokio-postgres.
    pub(crate) fn of(error: &tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            return Self::Refused { state: db.code().code().to_owned(), message: db.message().to_owned() };
        }
        let cause = error.source();
        if let Some(io) = cause.and_then(|cause| cause.downcast_ref::<std::io::Error>()) {
            return Self::of_io(io);
        }
        // tokio-postgres exposes no kinds of errors, only these texts.
        let (kind, cause) = (error.to_string(), cause.map(ToString::to_string).unwrap_or_default());
        match (kind.as_str(), cause.as_str()) {
            (_, "server does not support TLS") => Self::NoTls,
            (_, "password missing") => Self::NoPassword,
            ("error performing TLS handshake", why) => Self::Tls(why.to_owned()),
            ("error parsing response from server" | "unexpected message from server", _) => Self::OtherProtocol,
            _ if error.is_closed() => Self::OtherProtocol,
            (kind, "") => Self::Other(format!("the login failed ({kind})")),
            (_, why) => Self::Other(format!("the login failed ({why})")),
        }
    }

    pub(crate) fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Self::of_tls(tls);
        }
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::NothingListens,
            ErrorKind::NotFound => Self::NoSocket,
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::OtherProtocol,
            // The message is not one of PostgreSQL's protocol.
            ErrorKind::InvalidInput | ErrorKind::InvalidData => Self::OtherProtocol,
            _ => Self::Unreachable(plain(error)),
        }
    }

    fn of_tls(error: &rustls::Error) -> Self {
        use rustls::Error::{InvalidCertificate, InvalidMessage};
        match error {
            // `BadSignature`: another authority with the same name signed the certificate.
            InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                Self::UnknownAuthority
            }
            InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                Self::Certificate("the server's certificate has expired".to_owned())
            }
            InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
                Self::Certificate("the server's certificate is not valid yet".to_owned())
            }
            InvalidCertificate(CertificateError::Other(other)) => match other.0.downcast_ref::<CertificateFault>() {
                Some(fault) => Self::Certificate(fault.to_string()),
                None => Self::Certificate(format!("the server's certificate cannot be verified ({other})")),
            },
            InvalidCertificate(other) => {
                Self::Certificate(format!("the server's certificate cannot be verified ({other})"))
            }
            // The program answered the SSLRequest with an S, but then sent no TLS.
            InvalidMessage(_) => Self::OtherProtocol,
            other => Self::Tls(other.to_string()),
        }
    }
}

/// The remedy for a SQLSTATE of a login. For most states it is the same as for a statement.
fn refusal_remedy(state: &str) -> &'static str {
    match state {
        "28P01" => {
            "correct the password (database.password_file, or in database.url) or the role's name: PostgreSQL gives the same answer for a role that does not exist"
        }
        "28000" => "create the role, or allow its login: see pg_hba.conf, and sslmode if it asks for TLS",
        "08P01" => "check the pooler's log, its users, databases and limits",
        _ => meaning(state).1,
    }
}

/// The operating system's text without its error number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

impl ConnectError {
    /// `attempts` has at least one entry.
    pub(crate) fn new(attempts: Vec<Attempt>) -> Self {
        debug_assert!(!attempts.is_empty(), "an error needs at least one attempt");
        Self { attempts }
    }

    /// The remedy for the last server that answered, if any: the others may be standbys that are not running.
    pub(crate) fn remedy(&self) -> &'static str {
        let answered = self.attempts.iter().rev().find(|attempt| attempt.why.is_answered());
        answered.or(self.attempts.last()).map_or("", |attempt| attempt.why.remedy())
    }

    pub(crate) fn is_full(&self) -> bool {
        self.attempts.iter().any(|attempt| attempt.why.is_full())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(state: &str, message: &str) -> ConnectFailure {
        ConnectFailure::Refused { state: state.to_owned(), message: message.to_owned() }
    }

    #[test]
    fn each_server_is_named_with_its_reason_and_the_remedy_is_for_the_server_that_answered() {
        let attempts = vec![
            Attempt { server: "a:1".to_owned(), why: refused("3D000", "database \"x\" does not exist") },
            Attempt { server: "b:2".to_owned(), why: ConnectFailure::NothingListens },
        ];
        let error = ConnectError::new(attempts);
        let expected = "cannot connect to PostgreSQL at a:1: database \"x\" does not exist (SQLSTATE 3D000); at b:2: nothing \
            listens on this port (connection refused)";
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.remedy(), meaning("3D000").1);
    }

    #[test]
    fn every_refusal_of_a_further_connection_is_recognised() {
        for (state, message) in [
            ("53300", "sorry, too many clients already"),
            ("53300", "too many connections for role \"r\""),
            ("08P01", "no more connections allowed (max_client_conn)"),
            ("08P01", "query_wait_timeout"),
        ] {
            assert!(refused(state, message).is_full(), "{message}");
        }
        assert!(!refused("08P01", "no such user").is_full());
        assert!(!refused("28P01", "password authentication failed").is_full());
    }
}
