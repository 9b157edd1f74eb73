//! The commit sequencer: batches are written in parallel and committed one after the other, in the order of their
//! slots.
//!
//! Before a batch moves a position, it waits until its predecessor is known to be committed. If the predecessor fails,
//! the batch rolls its transaction back.
//!
//! Two in-flight batches never insert the same identity. Otherwise the later batch could hold the key in PostgreSQL and
//! wait here for its predecessor, while the predecessor waits in PostgreSQL for the key; neither side would detect that
//! deadlock. So each batch publishes its identities, and a later batch with one of them waits for its predecessor
//! before it writes anything. `lock_timeout` is the last resort.
//!
//! For the same reason a batch takes a connection only after its predecessor has one that it keeps until its commit. If
//! there are fewer connections than batches (a role's limit, a pooler's pool), the first batch always has a connection.

use std::sync::{Arc, Weak};

use tokio::sync::oneshot;

use super::writer::CommitError;
use crate::model::record::DigestSet;
use crate::model::write_report::Breakers;

/// The identities of the preceding batches. Each batch owns its set until it is committed or given up.
type InFlightIdentities = Vec<Weak<DigestSet>>;

/// The signals that a batch receives from its predecessor.
pub struct Predecessor {
    identities: oneshot::Receiver<InFlightIdentities>,
    connected: Option<oneshot::Receiver<()>>,
    committed: oneshot::Receiver<Breakers>,
}

/// A batch's slot in the order of commits.
pub struct CommitSlot {
    state: SlotState,
    own_identities: Arc<DigestSet>,
    identities: Option<oneshot::Sender<InFlightIdentities>>,
    connected: Option<oneshot::Sender<()>>,
    committed: oneshot::Sender<Breakers>,
}

enum SlotState {
    /// The predecessor may still be in flight.
    Waiting(Predecessor),
    /// All preceding batches are committed.
    Reached(Breakers),
}

impl CommitSlot {
    /// The first slot: its batch may write and commit at once.
    pub fn first(breakers: Breakers) -> (Self, Predecessor) {
        Self::in_state(SlotState::Reached(breakers))
    }

    /// The slot after `predecessor`.
    pub fn after(predecessor: Predecessor) -> (Self, Predecessor) {
        Self::in_state(SlotState::Waiting(predecessor))
    }

    fn in_state(state: SlotState) -> (Self, Predecessor) {
        let (send_identities, identities) = oneshot::channel();
        let (send_connected, connected) = oneshot::channel();
        let (send_committed, committed) = oneshot::channel();
        (
            Self {
                state,
                own_identities: Arc::default(),
                identities: Some(send_identities),
                connected: Some(send_connected),
                committed: send_committed,
            },
            Predecessor { identities, connected: Some(connected), committed },
        )
    }

    /// Splits the slot for a batch that is written in two parts: the first part follows the predecessor, and the next
    /// batch follows the second part.
    pub fn split(self) -> (Self, Self) {
        let (first, predecessor) = Self::in_state(self.state);
        (first, Self { state: SlotState::Waiting(predecessor), ..self })
    }

    /// Publishes this batch's identities to later batches. Returns true if an uncommitted predecessor contains one of
    /// them.
    pub(crate) async fn publish_identities(&mut self, own: DigestSet) -> Result<bool, CommitError> {
        let mut all = match &mut self.state {
            SlotState::Waiting(predecessor) => {
                (&mut predecessor.identities).await.map_err(|_| CommitError::PredecessorFailed)?
            }
            SlotState::Reached(_) => Vec::new(),
        };
        all.retain(|other| other.strong_count() > 0);
        let in_flight = all.iter().filter_map(Weak::upgrade);
        let shared = in_flight.into_iter().any(|other| own.iter().any(|identity| other.contains(identity)));
        self.own_identities = Arc::new(own);
        all.push(Arc::downgrade(&self.own_identities));
        if let Some(identities) = self.identities.take() {
            // Sending fails if there is no later batch.
            let _ = identities.send(all);
        }
        Ok(shared)
    }

    /// Waits until the predecessor has a connection that it keeps until its commit, or needs none any more.
    pub(crate) async fn wait_for_predecessor_connection(&mut self) {
        if let SlotState::Waiting(Predecessor { connected, .. }) = &mut self.state
            && let Some(signal) = connected
        {
            // An error means that the predecessor was committed or given up; `wait_for_predecessor` finds out which.
            let _ = signal.await;
            *connected = None;
        }
    }

    /// Signals to the next batch that this batch has a connection that it keeps until its commit. Without a call of
    /// this method, the commit is the signal.
    pub(crate) fn has_connection(&mut self) {
        if let Some(connected) = self.connected.take() {
            let _ = connected.send(());
        }
    }

    /// Returns true if the predecessor may still be in flight.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.state, SlotState::Waiting(_))
    }

    /// Waits until all preceding batches are committed. Returns the breakers as of the predecessor. An error if the
    /// predecessor was given up.
    pub(crate) async fn wait_for_predecessor(&mut self) -> Result<&Breakers, CommitError> {
        if let SlotState::Waiting(predecessor) = &mut self.state {
            let breakers = (&mut predecessor.committed).await.map_err(|_| CommitError::PredecessorFailed)?;
            self.state = SlotState::Reached(breakers);
        }
        match &self.state {
            SlotState::Reached(breakers) => Ok(breakers),
            SlotState::Waiting(_) => unreachable!("the state was just set"),
        }
    }

    /// Signals to the next batch that this batch is committed. `counted` are the breakers of its partitions.
    pub(crate) fn mark_committed(self, counted: &Breakers) {
        if let SlotState::Reached(mut breakers) = self.state {
            merge_breakers(&mut breakers, counted);
            let _ = self.committed.send(breakers);
        }
    }
}

/// After a commit: the breakers counted with the batch replace the earlier ones of its partitions.
pub fn merge_breakers(breakers: &mut Breakers, counted: &Breakers) {
    breakers.extend(counted.iter().map(|(partition, breaker)| (partition.clone(), breaker.clone())));
}
