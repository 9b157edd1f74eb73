//! Section `[database]`.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, MissingKey, Secret};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDatabase {
    url: String,
    url_file: String,
    password_file: String,
    writers: usize,
    connect_timeout_ms: u64,
    statement_timeout_ms: u64,
    lock_timeout_ms: u64,
    catalogue_check_ms: u64,
}

/// How to connect to PostgreSQL, and the timeouts.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    pub url: Secret,
    /// The file with the URL; read again for each connection.
    pub url_file: Option<PathBuf>,
    /// Overrides the URL's password.
    pub password: Option<Secret>,
    /// The file with the password; read again for each connection.
    pub password_file: Option<PathBuf>,
    /// The number of batches that are written at the same time, each on its own connection.
    pub writers: usize,
    pub connect_timeout: Duration,
    pub statement_timeout: Duration,
    pub lock_timeout: Duration,
    /// How often the running daemon compares the ledger's schema with the schema that this version needs.
    pub catalogue_check: Duration,
}

impl RawDatabase {
    /// The only required key of the section, if neither the key nor the file is set.
    pub(super) fn missing(&self) -> Option<MissingKey> {
        let is_missing = self.url.trim().is_empty() && self.url_file.is_empty();
        is_missing.then_some(MissingKey { key: "database.url", flag: "--database-url URL" })
    }

    pub(super) fn check(self) -> Result<DatabaseConfig, ConfigError> {
        let url = Secret::inline_or_file("database.url", self.url, &self.url_file)?;
        if url.is_empty() {
            let problem = "is not set; give --database-url postgres://USER@HOST/DATABASE, the environment variable or the file's key";
            return Err(ConfigError::key("database.url", problem));
        }
        for (key, value) in [
            ("database.connect_timeout_ms", self.connect_timeout_ms),
            ("database.statement_timeout_ms", self.statement_timeout_ms),
            ("database.lock_timeout_ms", self.lock_timeout_ms),
            ("database.catalogue_check_ms", self.catalogue_check_ms),
        ] {
            if !(100..=3_600_000).contains(&value) {
                return Err(ConfigError::key(key, format!("is {value}; write 100 to 3600000")));
            }
        }
        if !(1..=16).contains(&self.writers) {
            return Err(ConfigError::key("database.writers", format!("is {}; write 1 to 16", self.writers)));
        }
        let password = match self.password_file.as_str() {
            "" => None,
            file => Some(Secret::inline_or_file("database.password_file", String::new(), file)?),
        };
        let file = |path: String| Some(PathBuf::from(path)).filter(|path| !path.as_os_str().is_empty());
        Ok(DatabaseConfig {
            url,
            url_file: file(self.url_file),
            password,
            password_file: file(self.password_file),
            writers: self.writers,
            connect_timeout: Duration::from_millis(self.connect_timeout_ms),
            statement_timeout: Duration::from_millis(self.statement_timeout_ms),
            lock_timeout: Duration::from_millis(self.lock_timeout_ms),
            catalogue_check: Duration::from_millis(self.catalogue_check_ms),
        })
    }
}
