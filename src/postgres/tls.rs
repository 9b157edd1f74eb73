//! TLS to PostgreSQL by rustls. As libpq does, it also accepts certificates without verification, certificates that are
//! in `sslrootcert` themselves, and certificates with their host name only in the common name.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, ProtocolVersion, RootCertStore, SignatureScheme,
};

use super::certificate::Certificate;

/// How the server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// The connection is encrypted, but the certificate is not verified (libpq's `prefer` and `require`).
    Nothing,
    /// The certificate must be signed by a known authority; its host name is not checked (`verify-ca`).
    Authority,
    /// The certificate must be signed by a known authority, for the host of the connection string (`verify-full`).
    Full,
}

/// The TLS settings of a connection string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsSettings {
    pub(crate) check: Check,
    /// The file of root certificates, or `system`; `None` means the system's too.
    pub(crate) root: Option<String>,
    /// The files of the client certificate and of its key.
    pub(crate) client: Option<(String, String)>,
    /// The client sends the server's name (SNI).
    pub(crate) sni: bool,
    /// TLS begins without an SSLRequest.
    pub(crate) direct: bool,
    pub(crate) oldest: Option<ProtocolVersion>,
    pub(crate) newest: Option<ProtocolVersion>,
}

/// The content of the files in [`TlsSettings`] when they were read.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct TlsFiles {
    root: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

impl TlsFiles {
    pub(crate) fn read(settings: &TlsSettings) -> Result<Self, String> {
        let read =
            |name: &str, path: &str| std::fs::read(path).map_err(|e| format!("{name} {path} cannot be read: {e}"));
        let root = settings.root.as_deref().filter(|path| *path != "system" && settings.check != Check::Nothing);
        let client = settings.client.as_ref();
        Ok(Self {
            root: root.map(|path| read("sslrootcert", path)).transpose()?,
            client: client
                .map(|(certificate, key)| Ok::<_, String>((read("sslcert", certificate)?, read("sslkey", key)?)))
                .transpose()?,
        })
    }

    /// The names of the parameters whose files have changed.
    pub(crate) fn changed_since(&self, before: &Self) -> Vec<&'static str> {
        let root = (self.root != before.root).then_some("sslrootcert");
        root.into_iter().chain((self.client != before.client).then_some("sslcert and sslkey")).collect()
    }
}

/// The TLS configuration of the client.
pub(crate) fn client_config(settings: &TlsSettings, files: &TlsFiles) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let allowed = |version: &&rustls::SupportedProtocolVersion| {
        let number = u16::from(version.version);
        settings.oldest.is_none_or(|oldest| number >= u16::from(oldest))
            && settings.newest.is_none_or(|newest| number <= u16::from(newest))
    };
    let versions: Vec<_> = rustls::ALL_VERSIONS.iter().copied().filter(allowed).collect();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .map_err(|e| format!("ssl_min_protocol_version and ssl_max_protocol_version: {e}"))?;
    let (authority, pinned) = match settings.check {
        Check::Nothing => (None, Vec::new()),
        Check::Authority | Check::Full => authority(settings, files, &provider)?,
    };
    let verifier = Verifier { provider, check: settings.check, authority, pinned };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match (&settings.client, &files.client) {
        (Some((certificate, key)), Some((certificate_text, key_text))) => {
            let chain = CertificateDer::pem_slice_iter(certificate_text)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| format!("sslcert {certificate}: {e}"))?;
            let unusable = "write it as unencrypted PEM";
            let private =
                PrivateKeyDer::from_pem_slice(key_text).map_err(|e| format!("sslkey {key}: {e}; {unusable}"))?;
            let built = builder.with_client_auth_cert(chain, private);
            built.map_err(|e| format!("sslcert {certificate} and sslkey {key}: {e}"))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.enable_sni = settings.sni;
    if settings.direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(config)
}

type Trusted = (Option<Arc<WebPkiServerVerifier>>, Vec<CertificateDer<'static>>);

/// The verifier of signatures, and the certificates that are trusted themselves: the given ones, or the system's.
fn authority(settings: &TlsSettings, files: &TlsFiles, provider: &Arc<CryptoProvider>) -> Result<Trusted, String> {
    let path = settings.root.as_deref().unwrap_or("system");
    let certificates = match &files.root {
        Some(text) => CertificateDer::pem_slice_iter(text)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| format!("sslrootcert {path}: {e}"))?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    if certificates.is_empty() {
        return Err(format!("sslrootcert {path}: no certificate found; give the authority's certificate as PEM"));
    }
    let mut store = RootCertStore::empty();
    if store.add_parsable_certificates(certificates.iter().cloned()).0 == 0 {
        return Ok((None, certificates));
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider)).build();
    Ok((Some(verifier.map_err(|e| format!("sslrootcert {path}: {e}"))?), certificates))
}

/// Faults of a certificate for which rustls has no error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CertificateFault {
    #[error("the server's certificate is not for {called} but for {names}")]
    OtherName { called: String, names: String },
    #[error(
        "the server's certificate is of X.509 version 1, which can be verified only if it is itself in sslrootcert"
    )]
    Version1,
    #[error(
        "the server uses an authority's certificate as its own, which can be verified only if it is itself in sslrootcert"
    )]
    AuthorityAsServer,
    #[error("the server's certificate cannot be read")]
    Unreadable,
}

impl From<CertificateFault> for rustls::Error {
    fn from(fault: CertificateFault) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(fault))))
    }
}

/// Verifies the server's certificate as libpq does.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    check: Check,
    authority: Option<Arc<WebPkiServerVerifier>>,
    /// Certificates that are trusted themselves, with any version and purpose: a self-signed certificate is its own
    /// root.
    pinned: Vec<CertificateDer<'static>>,
}

impl Verifier {
    /// Checks that the certificate is signed by a trusted authority or trusted itself, and that it is valid now.
    fn verify_trust(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let certificate = Certificate::read(end_entity).ok_or(CertificateFault::Unreadable)?;
        if self.pinned.iter().any(|pinned| pinned == end_entity) {
            return certificate.valid_at(now);
        }
        if certificate.is_version_1() {
            return Err(CertificateFault::Version1.into());
        }
        let Some(authority) = &self.authority else { return Err(CertificateError::UnknownIssuer.into()) };
        match authority.verify_server_cert(end_entity, intermediates, server_name, ocsp, now) {
            // rustls checks the name last, so all other checks have passed.
            Ok(_)
            | Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(()),
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))) if certificate.is_authority() => {
                Err(CertificateFault::AuthorityAsServer.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Checks the host name against the alternative names, or against the common name if there are no alternative
    /// names.
    fn verify_name(end_entity: &CertificateDer<'_>, server_name: &ServerName<'_>) -> Result<(), rustls::Error> {
        let matches = |parsed: &ParsedCertificate<'_>| verify_server_name(parsed, server_name).is_ok();
        if ParsedCertificate::try_from(end_entity).as_ref().is_ok_and(matches) {
            return Ok(());
        }
        let certificate = Certificate::read(end_entity).ok_or(CertificateFault::Unreadable)?;
        let called = server_name.to_str().into_owned();
        if !certificate.has_alternative_names() && certificate.common_name_is_for(&called) {
            return Ok(());
        }
        Err(CertificateFault::OtherName { called, names: certificate.names() }.into())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.check != Check::Nothing {
            self.verify_trust(end_entity, intermediates, server_name, ocsp, now)?;
        }
        if self.check == Check::Full {
            Self::verify_name(end_entity, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        match Certificate::read(cert).filter(Certificate::is_version_1) {
            Some(old) => old.verify_tls12_signature(message, signed, algorithms),
            None => rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        match Certificate::read(cert).filter(Certificate::is_version_1) {
            Some(old) => {
                let key = old.public_key().ok_or(CertificateFault::Unreadable)?;
                rustls::crypto::verify_tls13_signature_with_raw_key(message, &key, signed, algorithms)
            }
            None => rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
