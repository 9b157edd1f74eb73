//! A certificate authority for tests, and the server certificates that it signs.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::wait::unique;

/// An authority whose certificate is in a file; dropping the authority removes the file.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) file: PathBuf,
}

/// Certificate and private key of a server, as PEM.
pub(crate) struct ServerCertificate {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        // OpenSSL treats a certificate as self-signed if its subject equals its issuer, so each authority has a unique
        // name.
        params.distinguished_name.push(DnType::CommonName, unique("authority"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate of an authority");
        let file = std::env::temp_dir().join(unique("gapless-authority"));
        std::fs::write(&file, certificate.pem()).expect("writing a certificate");
        Self { issuer: Issuer::new(params, key), file }
    }

    /// Signs a certificate for a server with this name or address.
    pub(crate) fn certify(&self, name: &str) -> ServerCertificate {
        self.certify_until(name, 2090)
    }

    /// The same as [`Self::certify`], valid until the beginning of `year`.
    pub(crate) fn certify_until(&self, name: &str, year: i32) -> ServerCertificate {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a valid name");
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate of a server");
        ServerCertificate { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}
