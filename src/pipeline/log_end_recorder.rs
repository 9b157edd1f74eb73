//! Writes the highest log end of each partition to the ledger, so that the unread offsets of a log are known even after
//! the log is gone. Nothing waits for this task; a failed write is repeated with the next change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::run::Parts;
use crate::ledger::connect::LedgerStore;
use crate::model::offset::NextOffset;

/// The shortest time between two writes.
const WRITE_INTERVAL: Duration = Duration::from_secs(4);
/// How long the end of a run waits until the last ends are written.
const FINISH_TIMEOUT: Duration = Duration::from_secs(3);

/// By position id.
type LogEnds = BTreeMap<i32, NextOffset>;

/// The loop's handle of the task.
pub(super) struct LogEndRecorder {
    seen: watch::Sender<LogEnds>,
    now: Arc<Notify>,
    task: JoinHandle<()>,
}

impl LogEndRecorder {
    pub(super) fn start(parts: &Parts) -> Self {
        let (seen, ends) = watch::channel(LogEnds::new());
        let now = Arc::new(Notify::new());
        let fence = parts.started.token.fence;
        let task = tokio::spawn(write(parts.store.clone(), fence, ends, Arc::clone(&now)));
        Self { seen, now, task }
    }

    /// Notes the end of a log, for the next write.
    pub(super) fn note(&self, position_id: i32, end: Option<NextOffset>) {
        let Some(end) = end else { return };
        self.seen.send_if_modified(|ends| ends.insert(position_id, end) != Some(end));
    }

    /// Writes without delay: an operator may need the ends at once, after a halt.
    pub(super) fn write_now(&self) {
        self.now.notify_one();
    }

    /// Waits until the last ends are written, at most [`FINISH_TIMEOUT`].
    pub(super) async fn finish(self) {
        drop(self.seen);
        self.now.notify_one();
        let _ = tokio::time::timeout(FINISH_TIMEOUT, self.task).await;
    }
}

/// Writes log ends until the sender is dropped and the last ends are written.
async fn write(store: LedgerStore, fence: i64, mut seen: watch::Receiver<LogEnds>, now: Arc<Notify>) {
    while seen.changed().await.is_ok() {
        let ends = seen.borrow_and_update().clone();
        if let Err(error) = store.note_log_ends(&ends, fence).await {
            tracing::debug!(error = %error, "cannot write the log ends now");
            if seen.has_changed().is_ok() {
                seen.mark_changed();
            }
        }
        tokio::select! {
            () = tokio::time::sleep(WRITE_INTERVAL) => {}
            () = now.notified() => {}
        }
    }
}
