//! The code of the daemon `gapless`. Its own documentation begins here; each module says what it is for.
#![doc = include_str!("../docs/architecture.md")]

// Lower layers first.
pub mod exit;
pub mod failpoints;
pub mod retry;
pub mod shutdown;

pub mod model;

pub mod config;
pub mod formats;
pub mod observe;

pub mod kafka;
pub mod postgres;

pub mod ledger;

pub mod pipeline;

pub mod http;

pub mod cli;
pub mod commands;
pub mod daemon;
pub mod findings;
