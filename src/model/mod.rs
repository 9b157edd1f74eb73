//! Plain values and their rules. Nothing here reads a clock, a server or a file.

pub mod batch;
pub mod breaker;
pub mod decoded_batch;
pub mod error_class;
pub mod event;
pub mod event_numbers;
pub mod generation;
pub mod headroom;
pub mod offset;
pub mod partition_state;
pub mod record;
pub mod start_order;
pub mod topic;
pub mod write_report;
