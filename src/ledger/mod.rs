//! All code that knows gapless's tables. Connections and sessions come from [`crate::postgres`].
//!
//! - [`start`]: the start of a daemon and its plan: migrations, rights, the ledger's own row, start orders, positions.
//! - [`mod@write`]: a batch in one transaction, written in parallel to others and committed in their order.
//! - [`read`]: status, receipts, dead letters, and the checks of `verify`.
//! - [`repair`]: changes that an operator requests: losses, new generations, replay, backfill.
//! - [`catalogue`]: compares tables, keys, indexes, views and functions with those that this version needs.
//! - [`format_history`]: the format that decoded each range of messages.
//! - [`positions`], [`source`], [`decision`]: rows that several of them use; `migrations`: the embedded SQL.
//! - [`connect`]: the ledger's database; [`error`]: why it could not be read or written.

pub mod catalogue;
pub mod connect;
pub mod decision;
pub mod error;
pub mod format_history;
mod migrations;
pub mod positions;
pub mod read;
pub mod repair;
pub mod source;
pub mod start;
pub mod write;
