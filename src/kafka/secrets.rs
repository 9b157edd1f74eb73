//! The files with secrets and certificates for Kafka, as they were when a client was created.
//!
//! librdkafka reads the files once. After a rotation, brokers refuse a client that read the old files. The client is
//! then created again, and no restart is needed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::config::KafkaConfig;

type Digest = [u8; 32];

/// The shortest time between two reads of the files while Kafka refuses a client.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The digest of the last logged rotation: every client detects a rotation by itself, but it is logged once.
static ANNOUNCED: Mutex<Option<Digest>> = Mutex::new(None);

/// The files that a client read.
#[derive(Clone)]
pub(crate) struct SecretFiles {
    paths: Vec<PathBuf>,
    read: Digest,
    /// When the files were checked last, and whether they had changed.
    checked: Arc<Mutex<Option<(Instant, bool)>>>,
}

impl SecretFiles {
    pub(crate) fn of(kafka: &KafkaConfig) -> Self {
        let locations = kafka.options.iter().filter(|(key, _)| key.ends_with(".location"));
        let locations = locations.map(|(_, path)| PathBuf::from(path.reveal()));
        let paths: Vec<PathBuf> = locations.chain(kafka.password_file.clone()).collect();
        Self { read: digest(&paths), paths, checked: Arc::default() }
    }

    /// Returns true if a file has changed since it was read. Reads the files at most once per interval.
    pub(crate) fn have_changed(&self) -> bool {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        match *checked {
            Some((at, has_changed)) if at.elapsed() < CHECK_INTERVAL => has_changed,
            _ => checked.insert((Instant::now(), digest(&self.paths) != self.read)).1,
        }
    }

    /// Logs, once per rotation, that the files are read again because Kafka refused their earlier content.
    pub(crate) fn log_reload(&self) {
        let now = digest(&self.paths);
        let mut announced = ANNOUNCED.lock().unwrap_or_else(PoisonError::into_inner);
        if announced.replace(now) != Some(now) {
            let files: Vec<String> = self.paths.iter().map(|path| path.display().to_string()).collect();
            tracing::info!(
                event = "secrets_reloaded",
                "Kafka refused the connection and files with secrets have changed: they are read again ({})",
                files.join(", ")
            );
        }
    }
}

/// The digest of all files. A file that cannot be read counts as a different content.
fn digest(paths: &[PathBuf]) -> Digest {
    let mut hash = Sha256::new();
    for path in paths {
        match std::fs::read(path) {
            Ok(content) => {
                hash.update(content.len().to_be_bytes());
                hash.update(&content);
            }
            Err(_) => hash.update([0]),
        }
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_changed_file_is_reported() {
        let path = std::env::temp_dir().join(format!("gapless-secret-{}", std::process::id()));
        std::fs::write(&path, "one").expect("a file in the temporary directory");
        let paths = vec![path.clone()];
        let read = digest(&paths);
        let have_changed = || SecretFiles { read, paths: paths.clone(), checked: Arc::default() }.have_changed();
        assert!(!have_changed());
        std::fs::write(&path, "two").expect("the same file");
        assert!(have_changed());
        std::fs::remove_file(&path).expect("the same file");
        assert!(have_changed());
    }
}
