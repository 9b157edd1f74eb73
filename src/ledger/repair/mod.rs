//! Changes the ledger beside the stream, by an operator's word: decisions, replay, back-fill, new generations.

pub mod backfill;
pub mod decisions;
pub mod rebase;
pub mod replay;
