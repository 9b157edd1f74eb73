//! The line: batches are written side by side and commit one after the other, in the order they were made.
//!
//! A batch waits for its turn before it moves a position, and gets it only from the one ahead of it, once
//! that one is known to be in the ledger. If that one fails, its own transaction is given up.
//!
//! Two batches in flight never hold the same identity: the later one would hold its key in PostgreSQL and
//! wait here for its turn, while the earlier one waits in PostgreSQL for the key, and neither side sees
//! the circle. So a batch says in the line what it brings; one behind it that brings the same waits for its
//! turn before it writes anything. (`lock_timeout` is the net below.)
//!
//! For the same reason a batch takes a connection only once the one ahead of it has its own, for as long as it needs
//! it: of fewer connections than batches (a role's limit, a pooler's pool) the batch at the front always has one.

use std::sync::{Arc, Weak};

use tokio::sync::oneshot;

use super::writer::CommitError;
use crate::model::record::DigestSet;
use crate::model::write_report::Breakers;

/// What the batches ahead bring; each holds its own until it is in the ledger or given up.
type InFlightIdentities = Vec<Weak<DigestSet>>;

/// What a batch hears from the one ahead of it.
pub struct Predecessor {
    brings: oneshot::Receiver<InFlightIdentities>,
    connected: Option<oneshot::Receiver<()>>,
    committed: oneshot::Receiver<Breakers>,
}

/// A batch's place in the line.
pub struct CommitSlot {
    waits: SlotState,
    mine: Arc<DigestSet>,
    brings: Option<oneshot::Sender<InFlightIdentities>>,
    connected: Option<oneshot::Sender<()>>,
    committed: oneshot::Sender<Breakers>,
}

enum SlotState {
    For(Predecessor),
    /// It is this batch's slot.
    No(Breakers),
}

impl CommitSlot {
    /// The first of a line, which may write and commit at once.
    pub fn first(breakers: Breakers) -> (Self, Predecessor) {
        Self::waiting(SlotState::No(breakers))
    }

    /// The next one of a line.
    pub fn after(ahead: Predecessor) -> (Self, Predecessor) {
        Self::waiting(SlotState::For(ahead))
    }

    fn waiting(waits: SlotState) -> (Self, Predecessor) {
        let (brings, heard) = oneshot::channel();
        let (connected, seen) = oneshot::channel();
        let (committed, known) = oneshot::channel();
        (
            Self { waits, mine: Arc::default(), brings: Some(brings), connected: Some(connected), committed },
            Predecessor { brings: heard, connected: Some(seen), committed: known },
        )
    }

    /// Tells those behind what this batch brings. Whether a batch ahead that may still be in flight brings
    /// some of the same.
    pub(crate) async fn publish_identities(&mut self, mine: DigestSet) -> Result<bool, CommitError> {
        let mut all = match &mut self.waits {
            SlotState::For(ahead) => (&mut ahead.brings).await.map_err(|_| CommitError::AheadFailed)?,
            SlotState::No(_) => Vec::new(),
        };
        all.retain(|theirs| theirs.strong_count() > 0);
        let in_flight = all.iter().filter_map(Weak::upgrade);
        let shared = in_flight.into_iter().any(|theirs| mine.iter().any(|identity| theirs.contains(identity)));
        self.mine = Arc::new(mine);
        all.push(Arc::downgrade(&self.mine));
        if let Some(brings) = self.brings.take() {
            // With nobody behind there is nobody to tell.
            let _ = brings.send(all);
        }
        Ok(shared)
    }

    /// Waits until the batch ahead has its connection for good, or needs none any more.
    pub(crate) async fn wait_for_connection_ahead(&mut self) {
        if let SlotState::For(Predecessor { connected, .. }) = &mut self.waits
            && let Some(ahead) = connected
        {
            // An error means that it was committed or given up, which `come` tells apart.
            let _ = ahead.await;
            *connected = None;
        }
    }

    /// Tells those behind that this batch has its connection until it is committed. One that does not say so has
    /// it when it is committed.
    pub(crate) fn has_connection(&mut self) {
        if let Some(connected) = self.connected.take() {
            let _ = connected.send(());
        }
    }

    /// Whether a batch ahead may still be in flight.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.waits, SlotState::For(_))
    }

    /// Waits until everything ahead is in the ledger.
    pub(crate) async fn wait_for_predecessor(&mut self) -> Result<&Breakers, CommitError> {
        if let SlotState::For(ahead) = &mut self.waits {
            let breakers = (&mut ahead.committed).await.map_err(|_| CommitError::AheadFailed)?;
            self.waits = SlotState::No(breakers);
        }
        match &self.waits {
            SlotState::No(breakers) => Ok(breakers),
            SlotState::For(_) => unreachable!("it has just come"),
        }
    }

    /// This batch is known to be in the ledger, with what was counted of it: the next one's slot.
    pub(crate) fn mark_committed(self, counted: &Breakers) {
        if let SlotState::No(mut breakers) = self.waits {
            merge_breakers(&mut breakers, counted);
            let _ = self.committed.send(breakers);
        }
    }
}

/// A batch is in the ledger: what was counted with it takes the place of what was before.
pub fn merge_breakers(breakers: &mut Breakers, counted: &Breakers) {
    breakers.extend(counted.iter().map(|(partition, breaker)| (*partition, breaker.clone())));
}
