//! The credentials of a connection: connection string, password and certificates. They are read again from their files
//! for each new connection, so that a rotation needs no restart.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_postgres_rustls::MakeRustlsConnect;

use super::conninfo::Parameters;
use super::error::PgError;
use super::target::{Encryption, Target};
use super::tls::{self, TlsFiles};
use crate::config::{DatabaseConfig, Secret};

/// The parsed target and TLS configuration for the next connection.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) target: Arc<Target>,
    /// `None` if TLS is never used.
    pub(crate) tls: Option<MakeRustlsConnect>,
}

/// The content that was read last, to compare it with the present content of the files.
struct Known {
    url: Secret,
    password: Option<Secret>,
    files: TlsFiles,
    credentials: Credentials,
    /// The last error of reading, which is logged once.
    unreadable: Option<String>,
}

/// Reads the credentials from their files.
pub(crate) struct CredentialSource {
    database: DatabaseConfig,
    known: Mutex<Known>,
}

fn unusable(error: impl std::fmt::Display) -> PgError {
    PgError::Url(error.to_string())
}

impl CredentialSource {
    pub(crate) fn new(database: &DatabaseConfig) -> Result<Self, PgError> {
        let (url, password) = (database.url.clone(), database.password.clone());
        let (files, credentials) = make(&url, password.as_ref(), database.statement_timeout)?;
        let known = Known { url, password, files, credentials, unreadable: None };
        Ok(Self { database: database.clone(), known: Mutex::new(known) })
    }

    /// The present credentials of the files. While a file cannot be used, the credentials that were read before.
    pub(crate) fn current(&self) -> Credentials {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match self.read_again(&mut known) {
            Ok(changed) if changed.is_empty() => {}
            Ok(changed) => tracing::info!(
                event = "database_credentials_reread",
                "{} changed: new connections to PostgreSQL use the new content",
                changed.join(", ")
            ),
            Err(error) => {
                let error = error.to_string();
                if known.unreadable.as_ref() != Some(&error) {
                    tracing::warn!(
                        event = "database_credentials_unreadable",
                        "{error}; new connections to PostgreSQL use the values that were read before"
                    );
                    known.unreadable = Some(error);
                }
            }
        }
        known.credentials.clone()
    }

    /// Reads the files again. Returns the names of the settings whose content has changed.
    fn read_again(&self, known: &mut Known) -> Result<Vec<&'static str>, PgError> {
        let url = read("database.url_file", self.database.url_file.as_deref())?.unwrap_or_else(|| known.url.clone());
        let password =
            read("database.password_file", self.database.password_file.as_deref())?.or_else(|| known.password.clone());
        let mut changed = Vec::new();
        let same_text = url == known.url && password == known.password;
        let (files, credentials) = match same_text {
            true => {
                let settings = &known.credentials.target.tls;
                let uses_tls = known.credentials.tls.is_some();
                let files = if uses_tls { TlsFiles::read(settings).map_err(unusable)? } else { TlsFiles::default() };
                if files == known.files {
                    known.unreadable = None;
                    return Ok(changed);
                }
                let tls = Some(MakeRustlsConnect::new(tls::client_config(settings, &files).map_err(unusable)?));
                (files, Credentials { target: Arc::clone(&known.credentials.target), tls })
            }
            false => make(&url, password.as_ref(), self.database.statement_timeout)?,
        };
        changed.extend((url != known.url).then_some("database.url_file"));
        changed.extend((password != known.password).then_some("database.password_file"));
        changed.extend(files.changed_since(&known.files));
        *known = Known { url, password, files, credentials, unreadable: None };
        Ok(changed)
    }
}

fn read(key: &str, file: Option<&Path>) -> Result<Option<Secret>, PgError> {
    let read = |path: &Path| Secret::read(path).map_err(|e| unusable(format!("{key} {}: {e}", path.display())));
    file.map(read).transpose()
}

fn make(
    url: &Secret,
    password: Option<&Secret>,
    tcp_user_timeout: Duration,
) -> Result<(TlsFiles, Credentials), PgError> {
    let parameters = Parameters::parse(url.reveal()).map_err(unusable)?;
    let mut target = Target::of(&parameters, tcp_user_timeout).map_err(unusable)?;
    if let Some(password) = password {
        target.config.password(password.reveal());
    }
    // If every server is reached by a Unix socket, no certificate is needed.
    if target.encryption == Encryption::Never || target.endpoints.iter().all(|endpoint| !endpoint.is_tcp()) {
        target.encryption = Encryption::Never;
        return Ok((TlsFiles::default(), Credentials { target: Arc::new(target), tls: None }));
    }
    let files = TlsFiles::read(&target.tls).map_err(unusable)?;
    let tls = Some(MakeRustlsConnect::new(tls::client_config(&target.tls, &files).map_err(unusable)?));
    Ok((files, Credentials { target: Arc::new(target), tls }))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificate() -> String {
        let params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").pem()
    }

    #[test]
    fn the_next_connection_uses_changed_files_and_a_missing_file_keeps_the_content_read_before() {
        let directory = std::env::temp_dir().join(format!("gapless-credentials-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).expect("a file");
        let root = directory.join("root.crt").display().to_string();
        let url = |database: &str| format!("postgres://u@h/{database}?sslmode=verify-ca&sslrootcert={root}");
        let limit = Duration::from_secs(1);
        write("root.crt", &certificate());
        write("url", &url("first"));
        let database = DatabaseConfig {
            url: Secret::new(url("first")),
            url_file: Some(directory.join("url")),
            password: None,
            password_file: None,
            writers: 1,
            connect_timeout: limit,
            statement_timeout: limit,
            lock_timeout: limit,
            catalogue_check: limit,
        };
        let source = CredentialSource::new(&database).expect("usable credentials");
        let read_again = || source.read_again(&mut source.known.lock().expect("no panic")).map_err(|e| e.to_string());
        assert_eq!(read_again(), Ok(vec![]));
        write("root.crt", &certificate());
        assert_eq!(read_again(), Ok(vec!["sslrootcert"]));
        assert_eq!(read_again(), Ok(vec![]), "a change is reported once");
        write("url", &url("second"));
        assert_eq!(read_again(), Ok(vec!["database.url_file"]));
        assert_eq!(source.current().target.config.get_dbname(), Some("second"));
        write("url", "no connection string");
        assert!(read_again().is_err());
        std::fs::remove_file(&root).expect("the file is there");
        assert_eq!(source.current().target.config.get_dbname(), Some("second"), "the content read before is used");
        std::fs::remove_dir_all(&directory).expect("the directory is there");
    }
}
