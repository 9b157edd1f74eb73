//! The content of a connection string as types: the servers to try, the session, TLS. Pure. It is created from the
//! parameters of [`crate::postgres::conninfo`]; each value is either supported or refused.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustls::ProtocolVersion;
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, SslMode, SslNegotiation};

use super::conninfo::{ConninfoError, Parameters};
use super::tls::{Check, TlsSettings};

/// One server to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) place: Place,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A host name or an address. If `hostaddr` is given, the name is not resolved.
    Host { name: String, address: Option<IpAddr> },
    /// A directory with a Unix socket. TLS is never used there, as in libpq.
    Socket(PathBuf),
    /// The directory where this system's PostgreSQL creates its sockets.
    DefaultSocket,
}

impl Endpoint {
    pub(crate) fn is_tcp(&self) -> bool {
        matches!(self.place, Place::Host { .. })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.place {
            Place::Host { name, address: Some(address) } if name.is_empty() => {
                write!(f, "{}", std::net::SocketAddr::new(*address, self.port))
            }
            Place::Host { name, .. } if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Place::Host { name, .. } => write!(f, "{name}:{}", self.port),
            Place::Socket(directory) => write!(f, "{}/.s.PGSQL.{}", directory.display(), self.port),
            Place::DefaultSocket => write!(f, "the default socket, port {}", self.port),
        }
    }
}

/// The required attributes of the session (libpq's `target_session_attrs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionAttrs {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    /// A standby if one of the servers is a standby, else any server.
    PreferStandby,
}

/// Whether TLS is used with a server at a TCP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encryption {
    Never,
    /// With TLS, or without TLS if that fails: libpq's `prefer`. Also used for `allow`, because it is at least as
    /// secure.
    Preferred,
    Required,
}

/// The settings of a connection string.
pub(crate) struct Target {
    pub(crate) endpoints: Vec<Endpoint>,
    /// Each connection begins with a random endpoint.
    pub(crate) balanced: bool,
    /// The timeout of each attempt; `None`: the configuration's timeout.
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) session: Option<SessionAttrs>,
    pub(crate) encryption: Encryption,
    pub(crate) tls: TlsSettings,
    /// The session's parameters; servers and TLS are added for each attempt.
    pub(crate) config: Config,
}

fn refuse<T>(text: impl Into<String>) -> Result<T, ConninfoError> {
    Err(ConninfoError(text.into()))
}

/// The value of a parameter with a fixed set of values; `None` if it is not given. The error lists the values.
fn one_of<T: Copy>(found: &Parameters, key: &str, choices: &[(&str, T)]) -> Result<Option<T>, ConninfoError> {
    let Some(value) = found.get(key) else { return Ok(None) };
    match choices.iter().find(|(name, _)| *name == value) {
        Some((_, choice)) => Ok(Some(*choice)),
        None => {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            refuse(format!("{key} is {value:?}; write {}", names.join(" or ")))
        }
    }
}

fn number(found: &Parameters, key: &str) -> Result<Option<u32>, ConninfoError> {
    let parse = |value: &str| value.trim().parse().or_else(|_| refuse(format!("{key} is {value:?}; write a number")));
    found.get(key).map(parse).transpose()
}

fn seconds(found: &Parameters, key: &str) -> Result<Option<Duration>, ConninfoError> {
    // 0 means the operating system's value, as in libpq.
    Ok(number(found, key)?.filter(|n| *n > 0).map(|n| Duration::from_secs(n.into())))
}

impl Target {
    /// `tcp_user_timeout` is used if the connection string sets none.
    pub(crate) fn of(found: &Parameters, tcp_user_timeout: Duration) -> Result<Self, ConninfoError> {
        refuse_unsupported_values(found)?;
        let endpoints = endpoints(found)?;
        let (encryption, tls) = encryption(found)?;
        if tls.check == Check::Full
            && endpoints.iter().any(|e| matches!(&e.place, Place::Host { name, .. } if name.is_empty()))
        {
            return refuse("sslmode=verify-full compares the server's name: give host beside hostaddr");
        }
        let session = one_of(
            found,
            "target_session_attrs",
            &[
                ("any", SessionAttrs::Any),
                ("read-write", SessionAttrs::ReadWrite),
                ("read-only", SessionAttrs::ReadOnly),
                ("primary", SessionAttrs::Primary),
                ("standby", SessionAttrs::Standby),
                ("prefer-standby", SessionAttrs::PreferStandby),
            ],
        )?;
        let balanced = one_of(found, "load_balance_hosts", &[("disable", false), ("random", true)])?.unwrap_or(false);
        let connect_timeout = match number(found, "connect_timeout")? {
            Some(0) => {
                return refuse(
                    "connect_timeout=0 waits without a limit, which gapless never does; write seconds, or leave it out",
                );
            }
            // libpq waits at least two seconds.
            given => given.map(|n| Duration::from_secs(u64::from(n.max(2)))),
        };
        let mut config = session_config(found, tcp_user_timeout)?;
        if tls.direct {
            config.ssl_negotiation(SslNegotiation::Direct);
        }
        Ok(Self { endpoints, balanced, connect_timeout, session, encryption, tls, config })
    }
}

/// Refuses the values that gapless does not support.
fn refuse_unsupported_values(found: &Parameters) -> Result<(), ConninfoError> {
    one_of(found, "client_encoding", &[("UTF8", ()), ("utf8", ()), ("UTF-8", ()), ("utf-8", ()), ("auto", ())])?;
    one_of(found, "gssencmode", &[("disable", ()), ("prefer", ())])?;
    one_of(found, "replication", &[("false", ()), ("off", ()), ("no", ()), ("0", ())])?;
    one_of(found, "sslcompression", &[("0", ())])?;
    one_of(found, "min_protocol_version", &[("3.0", ())])?;
    one_of(found, "max_protocol_version", &[("3.0", ()), ("3.2", ()), ("latest", ())])?;
    Ok(())
}

/// The session's settings: all parameters except servers and TLS.
fn session_config(found: &Parameters, tcp_user_timeout: Duration) -> Result<Config, ConninfoError> {
    let mut config = Config::new();
    let name = found.get("application_name").or_else(|| found.get("fallback_application_name"));
    config.application_name(name.unwrap_or("gapless"));
    if let Some(user) = found.get("user") {
        config.user(user);
    }
    if let Some(password) = found.get("password") {
        config.password(password);
    }
    if let Some(database) = found.get("dbname") {
        config.dbname(database);
    }
    if let Some(options) = found.get("options") {
        config.options(options);
    }
    let binding =
        one_of(found, "channel_binding", &[("disable", ChannelBinding::Disable), ("prefer", ChannelBinding::Prefer)])?;
    config.channel_binding(binding.unwrap_or(ChannelBinding::Prefer));
    let user_timeout = match number(found, "tcp_user_timeout")? {
        None => Some(tcp_user_timeout),
        Some(0) => None,
        Some(ms) => Some(Duration::from_millis(ms.into())),
    };
    if let Some(user_timeout) = user_timeout {
        config.tcp_user_timeout(user_timeout);
    }
    config
        .keepalives(one_of(found, "keepalives", &[("0", false), ("1", true)])?.unwrap_or(true))
        .keepalives_idle(seconds(found, "keepalives_idle")?.unwrap_or(Duration::from_secs(10)))
        .keepalives_interval(seconds(found, "keepalives_interval")?.unwrap_or(Duration::from_secs(5)))
        .keepalives_retries(number(found, "keepalives_count")?.filter(|n| *n > 0).unwrap_or(3));
    Ok(config)
}

fn endpoints(found: &Parameters) -> Result<Vec<Endpoint>, ConninfoError> {
    let list = |key| found.get(key).map(|text| text.split(',').map(str::trim).collect::<Vec<_>>());
    let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = addresses.as_ref().or(hosts.as_ref()).map_or(1, Vec::len);
    for (key, given) in [("host", &hosts), ("port", &ports)] {
        let fits = given.as_ref().is_none_or(|given| given.len() == count || key == "port" && given.len() == 1);
        if !fits {
            let given = given.as_ref().map_or(0, Vec::len);
            return refuse(format!("it names {count} servers, but {key} has {given} entries; give one for each"));
        }
    }
    (0..count)
        .map(|at| {
            let of = |list: &Option<Vec<&str>>| {
                list.as_ref().and_then(|l| l.get(at).or(if l.len() == 1 { l.first() } else { None }).copied()).unwrap_or("").to_owned()
            };
            let address = match of(&addresses) {
                text if text.is_empty() => None,
                text => Some(text.parse().or_else(|_| refuse(format!("hostaddr {text:?} is no IP address; give a name as host")))?),
            };
            let port = match of(&ports) {
                text if text.is_empty() => 5432,
                text => text.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
                    ConninfoError("a port is no number from 1 to 65535 (or an unescaped character of the password ends the user's part: write %2F for /, %3A for :)".into())
                })?,
            };
            Ok(Endpoint { place: place(of(&hosts), address)?, port })
        })
        .collect()
}

fn place(host: String, address: Option<IpAddr>) -> Result<Place, ConninfoError> {
    match (host.chars().next(), address) {
        (Some('@'), _) => {
            refuse("an abstract socket (host begins with @) is not supported; give the socket's directory")
        }
        (Some('/'), None) => Ok(Place::Socket(host.into())),
        (None, None) => Ok(Place::DefaultSocket),
        _ => Ok(Place::Host { name: host, address }),
    }
}

/// The TLS settings of libpq's parameters.
fn encryption(found: &Parameters) -> Result<(Encryption, TlsSettings), ConninfoError> {
    let text = |key| found.get(key).map(str::to_owned);
    let root = text("sslrootcert");
    let mode = found.get("sslmode");
    let (encryption, check) = match (mode, &root) {
        (Some("disable"), _) => (Encryption::Never, Check::Nothing),
        (None | Some("prefer" | "allow"), None) => (Encryption::Preferred, Check::Nothing),
        // A root certificate is given: an attempt without TLS would ignore it.
        (None | Some("prefer" | "allow" | "require"), Some(_)) => (Encryption::Required, Check::Authority),
        (Some("require"), None) => (Encryption::Required, Check::Nothing),
        (Some("verify-ca"), _) => (Encryption::Required, Check::Authority),
        (Some("verify-full"), _) => (Encryption::Required, Check::Full),
        (Some(other), _) => {
            return refuse(format!(
                "sslmode is {other:?}; write disable, allow, prefer, require, verify-ca or verify-full"
            ));
        }
    };
    let versions = [
        ("TLSv1", None),
        ("TLSv1.1", None),
        ("TLSv1.2", Some(ProtocolVersion::TLSv1_2)),
        ("TLSv1.3", Some(ProtocolVersion::TLSv1_3)),
    ];
    let oldest = one_of(found, "ssl_min_protocol_version", &versions)?.flatten();
    let newest = one_of(found, "ssl_max_protocol_version", &versions[2..])?.flatten();
    if (oldest, newest) == (Some(ProtocolVersion::TLSv1_3), Some(ProtocolVersion::TLSv1_2)) {
        return refuse("ssl_min_protocol_version is above ssl_max_protocol_version");
    }
    let client = match one_of(found, "sslcertmode", &[("disable", false), ("allow", true)])?.unwrap_or(true) {
        false => None,
        true => match (text("sslcert"), text("sslkey")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return refuse("give sslcert and sslkey together"),
        },
    };
    let direct = one_of(found, "sslnegotiation", &[("postgres", false), ("direct", true)])?.unwrap_or(false);
    if direct && encryption != Encryption::Required {
        return refuse("sslnegotiation=direct needs sslmode=require, verify-ca or verify-full");
    }
    let sni = one_of(found, "sslsni", &[("0", false), ("1", true)])?.unwrap_or(true);
    Ok((encryption, TlsSettings { check, root, client, sni, direct, oldest, newest }))
}

impl Encryption {
    /// The mode of tokio-postgres for an attempt with TLS.
    pub(crate) fn mode(self) -> SslMode {
        match self {
            Self::Never => SslMode::Disable,
            Self::Preferred => SslMode::Prefer,
            Self::Required => SslMode::Require,
        }
    }
}

#[cfg(test)]
mod tests;
