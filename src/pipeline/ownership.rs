//! Whether the ledger still belongs to this start of the daemon.

use std::collections::BTreeMap;

use super::committer::Ledger;
use super::run::Stop;
use crate::ledger::error::LedgerError;
use crate::ledger::start::positions::{FenceHolder, FencingToken, Position};

/// Which start this is, of which generation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ownership {
    pub(super) source_id: i32,
    pub(super) token: FencingToken,
}

impl Ownership {
    /// Whether this start still is the newest one that the database knows, and its generation the topic's newest.
    pub(super) fn check(&self, owner: Option<FenceHolder>) -> Result<(), Stop> {
        match owner {
            Some(owner) if owner.token == self.token && owner.source_id != self.source_id => Err(Stop::Rebased),
            Some(owner) if owner.token == self.token => Ok(()),
            Some(owner) if owner.token.fence > self.token.fence => Err(Stop::TakenOver(owner)),
            _ => Err(Stop::LedgerChanged),
        }
    }
}

impl Ledger {
    /// The stored positions, all under our fencing token; the answer waits for a commit that is under way. `None` where
    /// PostgreSQL cannot be asked now.
    pub(super) async fn stored_positions(&self) -> Result<Option<BTreeMap<i32, Position>>, Stop> {
        match self.ask_for_positions().await {
            Ok(answer) => self.owned(answer).map(Some),
            Err(error) => {
                tracing::debug!(error = %error, "cannot ask for the stored positions now");
                Ok(None)
            }
        }
    }

    pub(super) async fn ask_for_positions(
        &self,
    ) -> Result<(BTreeMap<i32, Position>, Option<FenceHolder>), LedgerError> {
        let positions = self.store.positions(self.ownership.source_id).await?;
        Ok((positions, self.store.fence_holder(self.ownership.source_id).await?))
    }

    pub(super) fn owned(
        &self,
        (positions, owner): (BTreeMap<i32, Position>, Option<FenceHolder>),
    ) -> Result<BTreeMap<i32, Position>, Stop> {
        self.ownership.check(owner)?;
        match positions.values().all(|p| p.fence == self.ownership.token.fence) {
            true => Ok(positions),
            false => Err(Stop::LedgerChanged),
        }
    }
}
