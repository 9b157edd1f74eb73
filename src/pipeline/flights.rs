//! Batches on their way into the ledger: several are written at once, and they land in the order they
//! were launched. What a landing means is decided in [`super::write`].

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinHandle;

use super::decoder::Decoder;
use super::unwritten::Share;
use crate::ledger::write::sequencer::{Ahead, Turn, keep};
use crate::ledger::write::writer::{CommitError, Writer};
use crate::model::batch::Batch;
use crate::model::write_report::Breakers;
use crate::model::write_report::WriteReport;

/// A batch and its share of the byte budget.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) batch: Batch,
    pub(super) shares: Vec<Share>,
}

struct Flight {
    batch: Arc<Batch>,
    shares: Vec<Share>,
    begun: Instant,
    task: JoinHandle<Result<WriteReport, CommitError>>,
}

/// How the batch at the front ended.
pub(super) struct Landed {
    pub(super) load: Load,
    pub(super) begun: Instant,
    pub(super) result: Result<WriteReport, CommitError>,
}

pub(super) struct Flights {
    decoder: Decoder,
    writer: Arc<Writer>,
    lanes: usize,
    queue: VecDeque<Flight>,
    /// What the next batch hears from the last one launched.
    ahead: Option<Ahead>,
    /// Of what is known to be in the ledger.
    breakers: Breakers,
}

impl Flights {
    pub(super) fn new(decoder: Decoder, writer: Writer, lanes: usize) -> Self {
        let writer = Arc::new(writer);
        Self { decoder, writer, lanes, queue: VecDeque::new(), ahead: None, breakers: Breakers::new() }
    }

    /// Opens the connections that a backlog will need.
    pub(super) async fn open(&self) {
        self.writer.open(self.lanes).await;
    }

    /// Closes the connections that wait for a batch.
    pub(super) fn close_idle(&self) {
        self.writer.close_idle();
    }

    pub(super) fn has_free_lane(&self) -> bool {
        self.queue.len() < self.lanes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn launch(&mut self, load: Load) {
        let (turn, ahead) = match self.ahead.take() {
            Some(ahead) => Turn::behind(ahead),
            None => Turn::first(self.breakers.clone()),
        };
        self.ahead = Some(ahead);
        let batch = Arc::new(load.batch);
        let (decoder, writer, carried) = (self.decoder.clone(), Arc::clone(&self.writer), Arc::clone(&batch));
        let task = tokio::spawn(async move { writer.write(decoder.decode(&carried).await, turn).await });
        self.queue.push_back(Flight { batch, shares: load.shares, begun: Instant::now(), task });
    }

    /// The end of the batch at the front; for ever where nothing is in flight. May be given up and asked
    /// for again.
    pub(super) async fn landing(&mut self) -> Landed {
        let Some(front) = self.queue.front_mut() else { return std::future::pending().await };
        let result = (&mut front.task).await.expect("a panic ends the process, and the front is not aborted");
        let flight = self.queue.pop_front().expect("it was there a moment ago");
        Landed { begun: flight.begun, load: flight.into_load(), result }
    }

    /// Gives up what is in flight; returns it in order. None of it is in the ledger if the batch ahead of
    /// the first is not.
    pub(super) async fn recall(&mut self) -> Vec<Load> {
        self.ahead = None;
        let mut recalled = Vec::new();
        for mut flight in std::mem::take(&mut self.queue) {
            flight.task.abort();
            // Its connection is closed and the batch ours again.
            let _ = (&mut flight.task).await;
            recalled.push(flight.into_load());
        }
        recalled
    }

    /// Writes a batch with nothing in flight beside it.
    pub(super) fn alone<'a>(
        &self,
        batch: &'a Batch,
    ) -> impl Future<Output = Result<WriteReport, CommitError>> + use<'a> {
        assert!(self.queue.is_empty(), "a batch written alone has nothing ahead of it");
        let (decoder, writer) = (self.decoder.clone(), Arc::clone(&self.writer));
        let (turn, _) = Turn::first(self.breakers.clone());
        async move { Box::pin(writer.write(decoder.decode(batch).await, turn)).await }
    }

    /// The batch of this report is known to be in the ledger: its rejected messages count.
    pub(super) fn committed(&mut self, report: &WriteReport) {
        keep(&mut self.breakers, &report.breakers);
    }
}

impl Flight {
    fn into_load(self) -> Load {
        Load { batch: Arc::into_inner(self.batch).expect("its task has ended"), shares: self.shares }
    }
}

impl Drop for Flights {
    fn drop(&mut self) {
        self.queue.iter().for_each(|flight| flight.task.abort());
    }
}
