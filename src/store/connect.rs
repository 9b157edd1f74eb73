//! Connections: the pool, and TLS by rustls in libpq's spellings.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::StoreError;
use super::session::{Limits, Session};
use crate::config::DatabaseConfig;

/// Connections besides the writers': the fence check, the audit, one to spare.
const BESIDE_WRITERS: usize = 3;

/// How long one statement of `gapless verify` may take: some minutes for hundreds of millions of rows.
const WHOLE_LEDGER: Duration = Duration::from_secs(3600);

/// The ledger's database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    limits: Limits,
    connect_timeout: Duration,
}

impl Store {
    /// Prepares the pool; connects only when a connection is needed.
    pub fn new(database: &DatabaseConfig) -> Result<Self, StoreError> {
        let (mut config, tls) = parse(database.url.reveal())?;
        if let Some(password) = &database.password {
            config.password(password.reveal());
        }
        config
            .application_name("gapless")
            .connect_timeout(database.connect_timeout)
            .tcp_user_timeout(database.statement_timeout)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .target_session_attrs(tokio_postgres::config::TargetSessionAttrs::Any);
        // Every error discards its connection (session.rs), so a recycled one is sound.
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(config, MakeRustlsConnect::new(tls), recycling);
        let pool = Pool::builder(manager)
            .max_size(database.writers + BESIDE_WRITERS)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(database.connect_timeout))
            .create_timeout(Some(database.connect_timeout))
            .recycle_timeout(Some(database.connect_timeout))
            .build()
            .map_err(|e| StoreError::Connect(e.to_string()))?;
        let limits = Limits { statement: database.statement_timeout, lock: database.lock_timeout };
        Ok(Self { pool, limits, connect_timeout: database.connect_timeout })
    }

    /// How long a call of a batch is waited for.
    pub(super) fn patience(&self) -> Duration {
        self.limits.silence()
    }

    /// A connection, within the connect timeout.
    pub(super) async fn session(&self) -> Result<Session, StoreError> {
        self.session_within(self.limits).await
    }

    /// A connection whose statements may take as long as reading a whole ledger takes.
    pub(super) async fn patient_session(&self) -> Result<Session, StoreError> {
        self.session_within(Limits { statement: WHOLE_LEDGER, ..self.limits }).await
    }

    async fn session_within(&self, limits: Limits) -> Result<Session, StoreError> {
        use deadpool_postgres::PoolError;
        // The pool's own timeouts bound each step; this one bounds the sum.
        match tokio::time::timeout(2 * self.connect_timeout, self.pool.get()).await {
            Ok(Ok(object)) => Ok(Session::new(object, limits)),
            Ok(Err(PoolError::Backend(error))) => Err(StoreError::Connect(super::error::describe(&error))),
            Ok(Err(error)) => Err(StoreError::Connect(error.to_string())),
            Err(_) => Err(StoreError::Connect(format!("no answer within {} ms", 2 * self.connect_timeout.as_millis()))),
        }
    }
}

/// TLS settings as libpq names them.
#[derive(Debug, Default, PartialEq, Eq)]
struct TlsOptions {
    mode: Option<String>,
    root_cert: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

/// How the server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    /// Encrypted, but by whom is not asked (libpq's `prefer` and `require`).
    Nothing,
    /// Signed by a known authority, whatever its name (`verify-ca`).
    Authority,
    /// Signed, and for the host we called (`verify-full`).
    Full,
}

fn parse(url: &str) -> Result<(tokio_postgres::Config, ClientConfig), StoreError> {
    let (plain, options) = split_tls_options(url);
    let mut config = tokio_postgres::Config::from_str(&plain).map_err(|e| {
        let cause = std::error::Error::source(&e).map(|c| format!(": {c}")).unwrap_or_default();
        StoreError::Url(format!("{e}{cause}; write postgres://USER:PASSWORD@HOST:PORT/DATABASE"))
    })?;
    let (mode, check) = match (options.mode.as_deref(), &options.root_cert) {
        (Some("disable"), _) => (SslMode::Disable, Check::Nothing),
        (None | Some("prefer" | "allow"), None) => (SslMode::Prefer, Check::Nothing),
        // A root certificate was given to be used; falling back to plain text would ignore it.
        (None | Some("prefer" | "allow" | "require"), Some(_)) => (SslMode::Require, Check::Authority),
        (Some("require"), None) => (SslMode::Require, Check::Nothing),
        (Some("verify-ca"), _) => (SslMode::Require, Check::Authority),
        (Some("verify-full"), _) => (SslMode::Require, Check::Full),
        (Some(other), _) => {
            return Err(StoreError::Url(format!(
                "sslmode is {other:?}; write disable, prefer, require, verify-ca or verify-full"
            )));
        }
    };
    config.ssl_mode(mode);
    Ok((config, tls(check, &options)?))
}

/// Takes libpq's TLS settings out of a URL or key=value text: tokio-postgres knows only three modes.
fn split_tls_options(text: &str) -> (String, TlsOptions) {
    let mut options = TlsOptions::default();
    let mut keep = |pair: &str| {
        let Some((key, value)) = pair.split_once('=') else { return true };
        let slot = match key {
            "sslmode" => &mut options.mode,
            "sslrootcert" => &mut options.root_cert,
            "sslcert" => &mut options.cert,
            "sslkey" => &mut options.key,
            _ => return true,
        };
        *slot = Some(percent_decoded(value.trim_matches('\'')));
        false
    };
    let plain = match text.split_once('?') {
        Some((base, query)) if text.contains("://") => {
            let rest: Vec<_> = query.split('&').filter(|pair| keep(pair)).collect();
            if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) }
        }
        _ if text.contains("://") => text.to_owned(),
        _ => text.split_whitespace().filter(|pair| keep(pair)).collect::<Vec<_>>().join(" "),
    };
    (plain, options)
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn tls(check: Check, options: &TlsOptions) -> Result<ClientConfig, StoreError> {
    let unreadable = |what: &str, path: &str, e: &dyn std::fmt::Display| StoreError::Url(format!("{what} {path}: {e}"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring knows the default versions");
    let verifier: Arc<dyn ServerCertVerifier> = match check {
        Check::Nothing => Arc::new(Lenient { provider, authority: None }),
        Check::Authority | Check::Full => {
            let roots = Arc::new(roots(options.root_cert.as_deref())?);
            let full = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                .build()
                .map_err(|e| StoreError::Url(format!("sslrootcert: {e}")))?;
            match check {
                Check::Full => full,
                _ => Arc::new(Lenient { provider, authority: Some(full) }),
            }
        }
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    match (&options.cert, &options.key) {
        (Some(cert), Some(key)) => {
            let chain = CertificateDer::pem_file_iter(cert)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|e| unreadable("sslcert", cert, &e))?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|e| unreadable("sslkey", key, &e))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| unreadable("sslcert", cert, &e))
        }
        (None, None) => Ok(builder.with_no_client_auth()),
        _ => Err(StoreError::Url("give sslcert and sslkey together".into())),
    }
}

/// The given certificates, or the system's.
fn roots(path: Option<&str>) -> Result<RootCertStore, StoreError> {
    let certificates = match path {
        Some(path) if path != "system" => CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|e| StoreError::Url(format!("sslrootcert {path}: {e}")))?,
        _ => rustls_native_certs::load_native_certs().certs,
    };
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(certificates);
    match added {
        0 => Err(StoreError::Url("sslrootcert: no usable certificate found".into())),
        _ => Ok(store),
    }
}

/// libpq's weaker checks: none, or everything but the name.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    authority: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        match authority.verify_server_cert(end_entity, intermediates, server_name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libpq_spellings_are_taken_out_of_the_url() {
        let (plain, options) =
            split_tls_options("postgres://u:p@h/db?sslmode=verify-full&connect_timeout=3&sslrootcert=/etc/my%20ca.pem");
        assert_eq!(plain, "postgres://u:p@h/db?connect_timeout=3");
        assert_eq!(options.mode.as_deref(), Some("verify-full"));
        assert_eq!(options.root_cert.as_deref(), Some("/etc/my ca.pem"));
        let (plain, options) = split_tls_options("host=h user=u sslmode=require");
        assert_eq!((plain.as_str(), options.mode.as_deref()), ("host=h user=u", Some("require")));
    }

    #[test]
    fn an_unknown_sslmode_is_refused_with_the_choices() {
        let error = parse("postgres://h/db?sslmode=full").expect_err("refused").to_string();
        assert!(error.contains("verify-full"), "{error}");
    }
}
