//! The ledger's tables while the daemon runs: where they are not as this version needs them, nothing more is written.
//!
//! They are looked at now and then ([`super::watch`]), at each new connection of a writer, and at once when an error
//! of PostgreSQL points at them. A restart looks too, so it does not go on past a difference either.

use super::{Pipeline, Stop};
use crate::ledger::catalogue::Differences;
use crate::ledger::catalogue::sequences::Sequences;
use crate::ledger::error::LedgerError;
use crate::model::partition_state::{Halt, HaltReason};

impl Pipeline {
    /// Whether the error comes from tables that are not as this version needs them; then every partition is halted.
    /// Sequences that are behind are moved forward, where the role may.
    pub(super) async fn schema_explains(&mut self, error: &LedgerError) -> Result<bool, Stop> {
        if !error.points_at_schema() {
            return Ok(false);
        }
        if error.finds_number_taken() {
            self.flights.close_idle();
        }
        let store = self.store.clone();
        match self.while_beating(async move { store.require_catalogue(Sequences::MoveForward).await }).await? {
            Err(LedgerError::Schema(differences)) => {
                self.halt_for_schema(&differences);
                Ok(true)
            }
            // Not known now: the next look tells.
            Ok(()) | Err(_) => Ok(false),
        }
    }

    /// What users added to the ledger and may be the cause of an error, or of a batch that was not taken; in brackets.
    pub(super) async fn suspects(&mut self, error: Option<&LedgerError>) -> Result<String, Stop> {
        let store = self.store.clone();
        let suspects = self.while_beating(store.suspects(error)).await?;
        Ok(suspects.map(|suspects| format!(" ({suspects})")).unwrap_or_default())
    }

    /// What the look that is taken now and then found.
    pub(super) async fn catalogue_seen(&mut self, looked: Result<(), LedgerError>) {
        match looked {
            Err(LedgerError::Schema(_)) if self.schema_halt.is_some() => {}
            Err(LedgerError::Schema(differences)) => {
                // None of it may land: its transactions roll back with their connections.
                drop(self.flights.recall().await);
                self.halt_for_schema(&differences);
                self.read_again_what_did_not_land();
            }
            Ok(()) if self.schema_halt.is_some() && !self.schema_mended => {
                self.schema_mended = true;
                tracing::warn!(
                    event = "schema_mended",
                    "the ledger is as this version needs it again: restart the daemon, it goes on"
                );
            }
            Ok(()) => {}
            Err(error) => tracing::debug!(error = %error, "cannot look at the ledger's tables now"),
        }
    }

    /// Halts every partition for good, also those that appear later.
    pub(super) fn halt_for_schema(&mut self, differences: &Differences) {
        differences.log();
        let detail = differences.to_string();
        self.schema_halt = Some(Halt::new(HaltReason::SchemaChanged, None, detail));
        self.halt_all_for_schema();
    }

    /// Where the schema differs, no partition is read, whatever else let it go on.
    pub(super) fn halt_all_for_schema(&mut self) {
        if let Some(halt) = self.schema_halt.clone() {
            self.halt_all(&halt);
        }
    }
}
