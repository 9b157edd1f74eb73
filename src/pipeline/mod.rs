//! The way of a message from the fetch to the commit.
//!
//! ```text
//! kafka::reader ── Fetched ──┐                      ┌── Assign, Unassign ──> kafka::reader
//! gap_proofs ── GapProof ────┤     ┌────────────┐   ├── ProveGap, CheckAnchor ──> gap_proofs
//! monitor ── Snapshot, … ────┼───> │partition_set│──┼── SubmitBatch ──> committer (decoder, ledger::write)
//! committer ── Committed, … ─┘     └────────────┘   └── Halt, Publish, Log ──> health, ledger, log
//! ```
//!
//! - [`mod@run`]: the loop. It waits, gives events to the set and carries out its actions.
//! - [`partition_set`]: every decision about partitions, pure. [`event`] has its events and actions.
//! - [`partition`], [`partition_buffer`], [`stall_detector`]: the state of one partition.
//! - [`committer`], [`recovery`]: batches in flight, and batches that are written again. [`decoder`] decodes both.
//! - [`gap_proofs`]: questions that a second client answers by reading the log again.
//! - [`monitor`], [`topic_settings`], [`ownership`]: observations of Kafka and of the ledger.
//! - [`state_recorder`], [`log_end_recorder`], [`log_lines`], [`reporter`]: reports about partitions and the stream to
//!   the ledger, the log, the metrics and Kafka.
//! - [`validate_log`]: whether identity and watermarks of a log fit a position.
//! - [`until`]: when a run ends by itself.
//!
//! Memory is a cache of the positions in PostgreSQL. After an unknown or unexpected result the positions are read
//! again, and the partitions are assigned again from there.

mod committer;
mod decoder;
mod event;
mod gap_proofs;
mod log_end_recorder;
mod log_lines;
mod monitor;
mod ownership;
mod partition;
mod partition_buffer;
mod partition_set;
mod recovery;
mod reporter;
pub mod run;
mod stall_detector;
mod state_recorder;
pub mod topic_settings;
pub mod until;
pub mod validate_log;
mod write_batch;
