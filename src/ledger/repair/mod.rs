//! Changes of the ledger that an operator requests, outside the stream: decisions, replay, backfill, new generations.

pub mod backfill;
pub mod decisions;
pub mod discard;
pub mod rebase;
pub mod replay;
