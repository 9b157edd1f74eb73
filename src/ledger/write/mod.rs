//! Writes a batch in one transaction: events, outcomes, dead letters, conflicts, gaps and positions.

pub mod bisect;
pub mod connection;
pub mod decided_gaps;
pub mod effects;
pub mod event_paths;
pub mod event_rows;
pub mod gap_rows;
pub mod late_changes;
pub mod outcome_rows;
pub mod partition_states;
pub mod position_rows;
pub mod sequencer;
pub mod single_statement;
pub mod stale_sessions;
pub mod statistics;
pub mod strategy;
pub mod writer;
