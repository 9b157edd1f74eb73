//! Why the verification of a broker's certificate failed: unknown CA, another host name, or expired.
//!
//! librdkafka says only "certificate verify failed". gapless makes its own handshake with the same CA to distinguish
//! the three. It sends nothing after the handshake, and makes it only after librdkafka's handshake failed.

use std::io::ErrorKind;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, ClientConnection, RootCertStore};

use super::connect_failure::ConnectFailureKind as Kind;
use crate::config::KafkaConfig;

/// The timeout of the connection, and of each read and write.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the certificate at `host:port` is not accepted: its kind and a detail; `None` if the reason is not found.
pub(crate) fn examine(address: &str, kafka: &KafkaConfig) -> Option<(Kind, String)> {
    let error = handshake(address, kafka).err()?;
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::InvalidCertificate(error) = error else { return None };
    Some(match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            let end = i64::try_from(not_after.as_secs()).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
            (Kind::ExpiredCertificate, end.map_or_else(|| error.to_string(), |end| format!("it was valid until {end}")))
        }
        CertificateError::Expired => (Kind::ExpiredCertificate, String::new()),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            (Kind::OtherHostName, error.to_string())
        }
        // `BadSignature`: a CA of the same name with another key signed the certificate.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (Kind::UntrustedCertificate, String::new()),
        _ => (Kind::BadCertificate, error.to_string()),
    })
}

fn handshake(address: &str, kafka: &KafkaConfig) -> std::io::Result<()> {
    let other = |error: String| std::io::Error::other(error);
    let (host, _) = address.rsplit_once(':').ok_or(ErrorKind::InvalidInput)?;
    let host = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|e| other(e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| other(e.to_string()))?
        .with_root_certificates(roots(kafka).ok_or(ErrorKind::InvalidData)?)
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), host).map_err(|e| other(e.to_string()))?;
    let socket = address.to_socket_addrs()?.next().ok_or(ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&socket, HANDSHAKE_TIMEOUT)?;
    stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
    stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
    connection.complete_io(&mut stream).map(drop)
}

/// The same CAs that librdkafka uses.
fn roots(kafka: &KafkaConfig) -> Option<RootCertStore> {
    let option = |name: &str| kafka.options.iter().find(|(key, _)| key == name).map(|(_, value)| value.reveal());
    let mut roots = RootCertStore::empty();
    if let Some(pem) = option("ssl.ca.pem") {
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem.as_bytes()).flatten());
    } else if let Some(file) = option("ssl.ca.location") {
        roots.add_parsable_certificates(CertificateDer::pem_file_iter(file).ok()?.flatten());
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    Some(roots)
}
