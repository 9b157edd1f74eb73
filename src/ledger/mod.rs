//! Everything that knows gapless's tables. Connections and sessions come from [`crate::postgres`].
//!
//! - [`start`]: what a start does, would do and may do: migrations, rights, the ledger's own row, orders, positions.
//! - [`mod@write`]: a batch in one transaction, side by side with others and committed in their order.
//! - [`read`]: what the ledger says: status, receipts, dead letters, and the proof.
//! - [`repair`]: what an operator decides and carries out: losses, new generations, replay, back-fill.
//! - [`catalogue`]: tables, keys, indexes, views and functions, held against what this version needs.
//! - [`format_history`]: which format wrote the rows of which messages.
//! - [`connect`]: the ledger's database; [`error`]: why it could not be read or written.

pub mod catalogue;
pub mod connect;
pub mod error;
pub mod format_history;
pub mod read;
pub mod repair;
pub mod start;
pub mod write;
