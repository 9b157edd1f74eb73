//! Tells the ledger how far logs were seen to reach, so that what was never read of a log can be told after it is gone.
//! Beside the stream: nothing waits for it, and what could not be written is written with the next change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::run::Parts;
use crate::ledger::connect::LedgerStore;
use crate::model::offset::NextOffset;

/// How often ends are written while they move.
const WRITE_INTERVAL: Duration = Duration::from_secs(4);
/// How long the end of a run waits for the last ends to be written.
const FINISH_TIMEOUT: Duration = Duration::from_secs(3);

/// By position id.
type LogEnds = BTreeMap<i32, NextOffset>;

/// What the loop keeps of the task.
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

    /// How far a log was seen to reach.
    pub(super) fn note(&self, position_id: i32, end: Option<NextOffset>) {
        let Some(end) = end else { return };
        self.seen.send_if_modified(|ends| ends.insert(position_id, end) != Some(end));
    }

    /// An operator may ask for them at once.
    pub(super) fn write_now(&self) {
        self.now.notify_one();
    }

    /// Lets the last ends be written, for a moment.
    pub(super) async fn finish(self) {
        drop(self.seen);
        self.now.notify_one();
        let _ = tokio::time::timeout(FINISH_TIMEOUT, self.task).await;
    }
}

/// LogEndRecorder when nobody tells of ends any more and the last ones are written.
async fn write(store: LedgerStore, fence: i64, mut seen: watch::Receiver<LogEnds>, now: Arc<Notify>) {
    while seen.changed().await.is_ok() {
        let ends = seen.borrow_and_update().clone();
        if let Err(error) = store.note_log_ends(&ends, fence).await {
            tracing::debug!(error = %error, "cannot note the log ends now");
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
