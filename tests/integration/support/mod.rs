//! Shared helpers of the tests. One file, one purpose; no helper depends on the internals of gapless.

pub(crate) mod bouncer;
pub(crate) mod certificates;
pub(crate) mod daemon;
pub(crate) mod database;
pub(crate) mod events;
pub(crate) mod http;
pub(crate) mod ledger;
pub(crate) mod proxy;
pub(crate) mod raw_produce;
pub(crate) mod remedy;
pub(crate) mod servers;
pub(crate) mod topic;
pub(crate) mod wait;
pub(crate) mod wire;

pub(crate) use daemon::{Ended, Gapless, Running};
pub(crate) use database::Database;
pub(crate) use events::{Event, Random};
pub(crate) use ledger::Ledger;
pub(crate) use topic::{Record, Topic};
