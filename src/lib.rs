//! # gapless: the map
//!
//! Takes every contract event a monitor publishes to Kafka and stores each one in PostgreSQL exactly
//! once, with its received-state row in the same transaction.
//!
//! ## The guarantee
//!
//! Every message readable from the start position on ends in exactly one outcome row; an identity is
//! in `events` once; events, outcomes, dead letters, conflicts, gaps and positions of a batch commit
//! together or not at all; an offset without a message is passed only after it was shown to hold none.
//!
//! ## The path
//!
//! ```text
//!                   start positions (read once per assignment)
//!         +------------------------------------------------------------------+
//!         v                                                                  |
//! Kafka -> source ----> decode ----> batch ----> store::commit, one tx --> PostgreSQL
//!          (thread)     (pure)       (pure)      events · outcomes · dead letters · conflicts · gaps
//!          Record       Decoded      Batch       position from -> to, by compare-and-set
//!                                                COMMIT -> metrics, readiness, Kafka offset hint
//! main -> cli -> config -> app     builds the parts once, hands them to pipeline::run, then only waits
//! ```
//!
//! Follow one record: [`kafka::reader`] polls it on its own thread, stamps it with the epoch of its
//! assignment and hands it over; [`pipeline`] takes it into its partition's draft,
//! has holes before it proven ([`kafka::gap_prover`]) and makes a [`model::batch`], which is launched; the batch
//! [`formats`]s it into events; [`ledger`] writes the events, decides what the message did, writes its
//! outcome, waits for its turn, moves the position and commits; when the batch lands, memory moves.
//!
//! Beside the stream, each look at Kafka also tells how near retention is ([`model::headroom`]), and [`observe::systemd`]
//! is told what `/livez` would say.
//!
//! What keeps a start from taking place, or a partition from being read, is said in one place with its remedy
//! ([`findings`]): the daemon waits or is refused by it, `check` lists it, and verbs fail with the same line.
//!
//! ## Invariants
//!
//! - The only `+ 1` on an offset stands in [`model::offset::Offset::next`].
//! - A batch whose records and proven gaps do not tile its range cannot be made ([`model::batch`]).
//! - Positions move by compare-and-set on position and fence, as the last statement before COMMIT.
//! - Too many rejections halt their partition ([`model::breaker`]); the batch that would show it is not written.
//! - Memory is a cache: after anything unknown the positions are read from PostgreSQL again.
//! - Batches are written side by side and commit in the order they were made; one that brings an
//!   identity that is in flight waits before it writes anything (`store::turn`).
//! - Deliberately absent: subscribe, seek, pause, rebalance callbacks, offsets read from Kafka, named
//!   prepared statements (but COPY's own), session settings, a warning followed by `continue`.
//!
//! ## The modules, in reading order

// L0: values.

// L1: pure.
pub mod retry;

// L2: the edges, each with its own external crate.
pub mod cli;
pub mod config;
pub mod exit;
pub mod failpoints;
pub mod shutdown;

// L3 and L4: the loop, the proof, what builds them, and the verbs.
pub mod commands;
pub mod daemon;
pub mod findings;
pub mod formats;
pub mod http;
pub mod kafka;
pub mod ledger;
pub mod model;
pub mod observe;
pub mod pipeline;
pub mod postgres;
