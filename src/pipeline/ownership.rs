//! Checks that the ledger still belongs to this start of the daemon.

use std::collections::BTreeMap;

use super::committer::Ledger;
use super::run::Stop;
use crate::ledger::error::LedgerError;
use crate::ledger::positions::{FenceHolder, FencingToken, Position};
use crate::model::topic::TopicPartition;

/// The source and the fencing token of this start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ownership {
    pub(super) source_id: i32,
    pub(super) token: FencingToken,
}

impl Ownership {
    /// Checks that this start is the newest one in the database, and that its generation is the topic's newest.
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
    /// The stored positions, if all have our fencing token. The query waits for a commit that is in progress. `None` if
    /// PostgreSQL gives no answer now.
    pub(super) async fn stored_positions(&self) -> Result<Option<BTreeMap<TopicPartition, Position>>, Stop> {
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
    ) -> Result<(BTreeMap<TopicPartition, Position>, Option<FenceHolder>), LedgerError> {
        let positions = self.store.positions(self.ownership.source_id, &self.topic).await?;
        Ok((positions, self.store.fence_holder(self.ownership.source_id).await?))
    }

    pub(super) fn owned(
        &self,
        (positions, owner): (BTreeMap<TopicPartition, Position>, Option<FenceHolder>),
    ) -> Result<BTreeMap<TopicPartition, Position>, Stop> {
        self.ownership.check(owner)?;
        match positions.values().all(|p| p.fence == self.ownership.token.fence) {
            true => Ok(positions),
            false => Err(Stop::LedgerChanged),
        }
    }
}
