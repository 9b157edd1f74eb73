//! From what is fetched to what is committed.
//!
//! ```text
//! kafka::reader ── Fetched ──┐                      ┌── Assign, Unassign ──> kafka::reader
//! gap_proofs ── GapProof ────┤     ┌────────────┐   ├── ProveGap, CheckAnchor ──> gap_proofs
//! monitor ── Snapshot, … ────┼───> │partition_set│──┼── SubmitBatch ──> committer (decoder, ledger::write)
//! committer ── Committed, … ─┘     └────────────┘   └── Halt, Publish, Log ──> health, ledger, log
//! ```
//!
//! - [`mod@run`]: the loop; waits, feeds the set with events and carries out its actions.
//! - [`partition_set`]: every decision about partitions, pure; [`event`] is what it is given and asks for.
//! - [`partition`], [`partition_buffer`], [`stall_detector`]: what is known of one partition.
//! - [`committer`], [`recovery`]: batches in flight, and those that are written again; [`decoder`] goes before them.
//! - [`gap_proofs`]: what a second client is asked to read again.
//! - [`monitor`], [`topic_settings`], [`ownership`]: observations of Kafka and of the ledger.
//! - [`state_recorder`], [`log_end_recorder`], [`log_lines`], [`reporter`]: what is said of partitions and of the stream, in
//!   the ledger, in the log and to Kafka.
//! - [`validate_log`]: what watermarks and identities say of a position.
//! - [`until`]: when a run ends by itself.
//!
//! Memory is a cache of what PostgreSQL said; after anything unknown or unexpected the positions are read again and the
//! partitions assigned anew from there.

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
