//! The files that hold secrets and certificates for Kafka, as they were when a client was made.
//!
//! librdkafka reads them once. After a rotation, brokers refuse a client that read the old ones: it is made anew then, and
//! no restart is needed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::config::KafkaConfig;

type Digest = [u8; 32];

/// Files are read so often at most while Kafka refuses a client.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// One rotation is told once, although each client meets it by itself.
static ANNOUNCED: Mutex<Option<Digest>> = Mutex::new(None);

/// What a client read.
#[derive(Clone)]
pub(crate) struct SecretFiles {
    paths: Vec<PathBuf>,
    read: Digest,
    /// When they were looked at last, and what was found.
    looked: Arc<Mutex<Option<(Instant, bool)>>>,
}

impl SecretFiles {
    pub(crate) fn of(kafka: &KafkaConfig) -> Self {
        let locations = kafka.options.iter().filter(|(key, _)| key.ends_with(".location"));
        let locations = locations.map(|(_, path)| PathBuf::from(path.reveal()));
        let paths: Vec<PathBuf> = locations.chain(kafka.password_file.clone()).collect();
        Self { read: digest(&paths), paths, looked: Arc::default() }
    }

    /// Looks once in a while, however often it is asked.
    pub(crate) fn have_changed(&self) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        match *looked {
            Some((at, found)) if at.elapsed() < CHECK_INTERVAL => found,
            _ => looked.insert((Instant::now(), digest(&self.paths) != self.read)).1,
        }
    }

    /// They were read again because the ones before were refused.
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

/// A file that cannot be read now differs from one that can.
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
    fn a_file_that_changed_is_noticed_and_one_that_did_not_is_not() {
        let path = std::env::temp_dir().join(format!("gapless-secret-{}", std::process::id()));
        std::fs::write(&path, "one").expect("a file in the temporary directory");
        let paths = vec![path.clone()];
        let read = digest(&paths);
        let have_changed = || SecretFiles { read, paths: paths.clone(), looked: Arc::default() }.have_changed();
        assert!(!have_changed());
        std::fs::write(&path, "two").expect("the same file");
        assert!(have_changed());
        std::fs::remove_file(&path).expect("the same file");
        assert!(have_changed());
    }
}
