//! What PostgreSQL says, when memory cannot be trusted: after a commit of unknown outcome, after a
//! compare-and-set that missed, after the stored positions were seen to be others than ours.

use std::collections::BTreeMap;
use std::time::Duration;

use super::partition::Partition;
use super::{Pipeline, Stop};
use crate::ledger::error::LedgerError;
use crate::ledger::start::positions::Position;
use crate::ledger::write::writer::CommitError;
use crate::model::batch::{Batch, Slice};
use crate::model::error_class::Class;
use crate::model::offset::NextOffset;
use crate::retry::Backoff;

/// What became of a batch.
pub(super) enum Resolved {
    /// It had been committed.
    Applied,
    /// Everything stands where it stood: write it again.
    Unchanged,
    /// Positions had moved; the partitions read on from there, the batch is void.
    Moved,
}

/// Someone was faster: another daemon, a verb, or an earlier attempt of ours that landed late.
pub(super) fn finds_position_moved(error: &CommitError) -> bool {
    match error {
        CommitError::Stale => true,
        CommitError::Store(error) => error.class() == Class::Moved,
        _ => false,
    }
}

impl Pipeline {
    /// Asks PostgreSQL where a batch's partitions stand.
    pub(super) async fn resolve(&mut self, batch: &Batch) -> Result<Resolved, Stop> {
        let positions = self.look_up().await?;
        let stands_at = |s: &Slice| positions.get(&s.partition).map(|p| p.next);
        let all_at = |end: fn(&Slice) -> NextOffset| batch.slices().iter().all(|s| stands_at(s) == Some(end(s)));
        if all_at(|s| s.range.to()) {
            return Ok(Resolved::Applied);
        }
        if all_at(|s| s.range.from()) {
            return Ok(Resolved::Unchanged);
        }
        self.set_all_to(batch, &positions)?;
        Ok(Resolved::Moved)
    }

    /// Gives a batch up, with nothing in the air: its partitions read on from what PostgreSQL says, and so do all
    /// that stand elsewhere than in memory. What waits behind the batch is then not refused in its turn.
    pub(super) async fn read_on_from_stored(&mut self, batch: &Batch) -> Result<(), Stop> {
        let positions = self.look_up().await?;
        self.set_all_to(batch, &positions)?;
        self.set_moved(&positions, |_| true)
    }

    /// Also those that have not moved: their records are in the void batch.
    fn set_all_to(&mut self, batch: &Batch, positions: &BTreeMap<i32, Position>) -> Result<(), Stop> {
        for slice in batch.slices() {
            self.set_to(slice.partition, positions)?;
        }
        Ok(())
    }

    /// Reads on from the stored positions wherever they are not the ones in memory: the database was
    /// restored or failed over to one that lacks the last commits, or a verb moved a position.
    pub(super) async fn reload(&mut self) -> Result<(), Stop> {
        let positions = self.look_up().await?;
        self.set_moved(&positions, |p| !p.is_in_flight())
    }

    fn set_moved(
        &mut self,
        positions: &BTreeMap<i32, Position>,
        which: impl Fn(&Partition) -> bool,
    ) -> Result<(), Stop> {
        let moved: Vec<i32> = self
            .partitions
            .iter()
            .filter(|(_, p)| which(p))
            .filter(|(partition, p)| positions.get(partition).map(|stored| stored.next) != Some(p.position().next))
            .map(|(partition, _)| *partition)
            .collect();
        for partition in moved {
            self.set_to(partition, positions)?;
        }
        Ok(())
    }

    /// The stored positions, all under our fence. The answer waits for a commit that is under way.
    async fn look_up(&mut self) -> Result<BTreeMap<i32, Position>, Stop> {
        let mut backoff = Backoff::starting_at(Duration::from_millis(100));
        let (positions, owner) = loop {
            let (store, source_id) = (self.store.clone(), self.source_id);
            let looked_up = self
                .while_beating(async {
                    let positions = store.positions(source_id).await?;
                    Ok::<_, LedgerError>((positions, store.owner(source_id).await?))
                })
                .await?;
            match looked_up {
                Ok(found) => break found,
                Err(error) => {
                    if self.schema_explains(&error).await?
                        && let Some(halt) = self.schema_halt.take()
                    {
                        return Err(Stop::SchemaDiffers(halt.detail));
                    }
                    self.health.metrics().retried(error.class());
                    self.database_away(&error);
                    self.pause(backoff.delay()).await?;
                }
            }
        };
        self.still_ours(owner)?;
        match positions.values().all(|p| p.fence == self.tenure.fence) {
            true => Ok(positions),
            false => Err(Stop::LedgerChanged),
        }
    }

    fn set_to(&mut self, partition: i32, positions: &BTreeMap<i32, Position>) -> Result<(), Stop> {
        let Some(position) = positions.get(&partition) else { return Err(Stop::LedgerChanged) };
        let Some(p) = self.partitions.get_mut(&partition) else { return Ok(()) };
        tracing::warn!(
            event = "position_reloaded",
            kafka.partition = partition,
            position.remembered = p.position().next.get(),
            position.stored = position.next.get(),
            "the position in memory is not the stored one; reading continues from the stored position"
        );
        p.reset(*position);
        self.admit(partition);
        self.halt_all_for_schema();
        Ok(())
    }
}
