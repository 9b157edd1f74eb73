//! The parts of an X.509 certificate that rustls does not read: version 1 certificates, and the common name.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct};
use x509_cert::Version;
use x509_cert::der::oid::db::rfc4519::CN;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, SubjectAltName};

pub(crate) struct Certificate(x509_cert::Certificate);

impl Certificate {
    pub(crate) fn read(der: &CertificateDer<'_>) -> Option<Self> {
        x509_cert::Certificate::from_der(der.as_ref()).ok().map(Self)
    }

    pub(crate) fn is_version_1(&self) -> bool {
        self.0.tbs_certificate.version == Version::V1
    }

    pub(crate) fn is_authority(&self) -> bool {
        matches!(self.0.tbs_certificate.get::<BasicConstraints>(), Ok(Some((_, constraints))) if constraints.ca)
    }

    pub(crate) fn valid_at(&self, now: UnixTime) -> Result<(), rustls::Error> {
        let validity = &self.0.tbs_certificate.validity;
        let at = |time: &x509_cert::time::Time| time.to_unix_duration().as_secs();
        if now.as_secs() < at(&validity.not_before) {
            return Err(CertificateError::NotValidYet.into());
        }
        if now.as_secs() > at(&validity.not_after) {
            return Err(CertificateError::Expired.into());
        }
        Ok(())
    }

    fn alternative_names(&self) -> Vec<String> {
        let Ok(Some((_, SubjectAltName(names)))) = self.0.tbs_certificate.get::<SubjectAltName>() else {
            return Vec::new();
        };
        let text = |name: &GeneralName| match name {
            GeneralName::DnsName(name) => Some(name.to_string()),
            GeneralName::IpAddress(bytes) => match bytes.as_bytes() {
                four if four.len() == 4 => {
                    <[u8; 4]>::try_from(four).ok().map(|b| std::net::IpAddr::from(b).to_string())
                }
                more => <[u8; 16]>::try_from(more).ok().map(|b| std::net::IpAddr::from(b).to_string()),
            },
            _ => None,
        };
        names.iter().filter_map(text).collect()
    }

    pub(crate) fn has_alternative_names(&self) -> bool {
        !self.alternative_names().is_empty()
    }

    fn common_names(&self) -> Vec<String> {
        let attributes = self.0.tbs_certificate.subject.0.iter().flat_map(|part| part.0.iter());
        let common = attributes.filter(|attribute| attribute.oid == CN);
        common.filter_map(|attribute| String::from_utf8(attribute.value.value().to_vec()).ok()).collect()
    }

    /// Compares the common name as libpq does: the complete name, or `*` for the first label.
    pub(crate) fn common_name_is_for(&self, called: &str) -> bool {
        let is_for = |name: &String| match name.strip_prefix("*.") {
            Some(rest) => called.split_once('.').is_some_and(|(first, tail)| {
                !first.is_empty() && rest.contains('.') && tail.eq_ignore_ascii_case(rest)
            }),
            None => name.eq_ignore_ascii_case(called),
        };
        self.common_names().iter().any(is_for)
    }

    /// The names of the certificate, for messages.
    pub(crate) fn names(&self) -> String {
        let names = match self.alternative_names() {
            names if names.is_empty() => self.common_names(),
            names => names,
        };
        if names.is_empty() { "no name".to_owned() } else { names.join(", ").escape_debug().to_string() }
    }

    pub(crate) fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'static>> {
        self.0.tbs_certificate.subject_public_key_info.to_der().ok().map(SubjectPublicKeyInfoDer::from)
    }

    pub(crate) fn verify_tls12_signature(
        &self,
        message: &[u8],
        signed: &DigitallySignedStruct,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let info = &self.0.tbs_certificate.subject_public_key_info;
        let algorithm = info.algorithm.to_der().map_err(|_| CertificateError::BadEncoding)?;
        let known = algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let fitting = known.into_iter().flat_map(|(_, known)| known.iter()).filter(|known| {
            // `algorithm` begins with its DER header (a sequence and its length), the identifier of rustls does not.
            let identifier = known.public_key_alg_id();
            algorithm.len() == identifier.as_ref().len() + 2 && algorithm.ends_with(identifier.as_ref())
        });
        let key = info.subject_public_key.raw_bytes();
        let mut fitting = fitting.map(|known| known.verify_signature(key, message, signed.signature()));
        match fitting.any(|verified| verified.is_ok()) {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }
}
