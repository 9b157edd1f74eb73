//! Reads the ledger for `status`, receipts, lists and `verify`. Nothing here changes a row that a commit wrote.

pub mod audit;
pub mod compare;
pub mod consistency;
pub mod contents;
pub mod dead_letters;
pub mod doubles;
pub mod inconsistency;
pub mod known;
pub mod old_generation;
pub mod orphans;
pub mod receipt;
pub mod removals;
pub mod status;
pub mod walk;
