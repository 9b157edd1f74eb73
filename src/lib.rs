//! Stores every contract event that a monitor publishes to Kafka in PostgreSQL exactly once. The architecture document
//! follows; each module documents its purpose.
#![doc = include_str!("../docs/architecture.md")]

// A service that depends on this library uses `model`. The other modules belong to the daemon: the feature `daemon`
// (default) compiles them, and they are public for the binary and the tests only. `make doc` shows them.

pub mod model;

#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod cli;
#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod commands;
#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod config;
#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod daemon;
#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod exit;
#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod failpoints;
#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod findings;
#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod formats;
#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod http;
#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod kafka;
#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod ledger;
#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod observe;
#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod pipeline;
#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod postgres;
#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod retry;
#[cfg(feature = "daemon")]
#[cfg_attr(not(gapless_internals), doc(hidden))]
pub mod shutdown;
