//! Everything that touches PostgreSQL; tokio-postgres has no other home.
//!
//! - [`crate::postgres::error`]: SQLSTATE to class and remedy, the one place that decides about retry.
//! - [`connect`]: sessions of a [`crate::postgres::pool`]. [`crate::postgres::connector`] opens a connection: what [`crate::postgres::conninfo`] read from libpq's connection
//!   strings and [`crate::postgres::target`] understood, with [`crate::postgres::credentials`] read anew, over [`crate::postgres::tls`] ([`crate::postgres::certificate`]);
//!   [`crate::postgres::connect_error`] says why there is none. [`crate::postgres::session`]: one connection, its transactions and deadlines.
//! - [`start::schema`]: migrations. [`start`]: what a start does, [`start::plan`]: what it would do. [`start::ledger_row`]: whose ledger it is. [`start::positions`]: reading positions and fences.
//! - [`catalogue`]: tables, keys, indexes, views and functions held against what this version needs.
//! - [`read::consistency`]: the ledger held against itself, by [`read::walk`]s in key order; [`read::inconsistency`] judges, [`read::doubles`] counts, [`read::removals`]
//!   orders, [`read::orphans`] names what no view shows, [`repair::backfill`] mends what they find.
//!   [`read::compare`] reads rows beside their messages, which [`read::contents`] holds against them by the format of [`format_history`].
//! - [`crate::postgres::cancel`]: what a caller that went away left running.
//! - [`repair::decisions`]: what only an operator may decide; [`write::decided_gaps`]: ranges given up so; [`repair::rebase`]: that a topic begins a new
//!   generation. [`read::known`]: what the ledger has, for whoever names something else.
//! - [`read::audit`]: offsets unaccounted for, counted as they come. [`read::status`]: what the ledger says about a topic; [`write::partition_states`]: which partitions are not being read, and why.
//! - [`write::statistics`]: what readers' plans are made by.
//! - [`start::rights`]: what the role may do.
//! - [`read::receipt`]: what became of one message or transaction.
//! - [`write::late_changes`]: what changed behind the back of whoever reads by position.
//! - [`read::dead_letters`]: dead letters; [`repair::replay`]: their way back.
//! - [`write::writer`]: the one function that writes a batch; [`write::sequencer`] puts the commits of several into one line.
//!   [`write::strategy`] chooses the way that its events take, [`write::event_paths`] are the ways, [`write::single_statement`] the shortest, [`write::bisect`] finds rows that
//!   PostgreSQL refuses; [`write::effects`] decides what each message did; [`write::event_rows`] and [`write::outcome_rows`] are its
//!   set-based statements, [`crate::postgres::copy`] their binary rows, [`write::connection`] the connection they go by. [`write::stale_sessions`] ends what a
//!   stopped daemon left in the way.

pub mod format_history;
pub mod read;
pub mod repair;
pub mod write;

pub mod catalogue;
pub mod connect;
pub mod error;
pub mod start;
