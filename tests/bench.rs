//! Compares gapless with plain binary COPY (the COPY baseline): the same topics and the same PostgreSQL, alternately,
//! in one session. Machines are noisy, so only ratios of medians count; no test depends on them.
//!
//! `make bench` runs it on servers that it starts; it writes report.json and table.md below target/bench.

// Linked because gapless has the functions that wrap librdkafka's decompression (`build.rs`).
use gapless as _;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[path = "bench/baseline.rs"]
mod baseline;
#[path = "integration/support/events.rs"]
#[allow(dead_code)] // The integration tests use the rest of this file.
mod events;
#[path = "bench/latency.rs"]
mod latency;
#[path = "bench/measure.rs"]
mod measure;
#[path = "bench/report.rs"]
mod report;
#[path = "bench/server.rs"]
mod server;
#[path = "bench/work.rs"]
mod work;

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs all measurements, in rounds.
    Run(Run),
    /// Copies a topic into two tables by plain binary COPY, one transaction per batch, without any other guarantee.
    Baseline(baseline::Options),
}

#[derive(clap::Args)]
struct Run {
    #[arg(long, env = "KAFKA_BROKERS")]
    brokers: String,
    /// The URL of a superuser: the benchmark changes server settings and creates and drops databases.
    #[arg(long, env = "DATABASE_URL")]
    database_url: String,
    /// The directory with the built programs gapless and examples/produce.
    #[arg(long, default_value = "target/release")]
    programs: PathBuf,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Messages of a topic of 1 KB events; the numbers of the other topics are derived from it.
    #[arg(long, default_value_t = 400_000)]
    messages: u64,
    /// Millions of messages of the growth run; 0 leaves the run out.
    #[arg(long, default_value_t = 10)]
    growth: u64,
    /// Adds a topic whose messages are lists of this many events, named `several-1`.
    #[arg(long, default_value_t = 1)]
    events_per_message: u64,
    /// The preset with which gapless reads these lists. The other topics are read with `web3`.
    #[arg(long, default_value = "web3_list")]
    list_preset: String,
    /// Runs only the works whose name contains this text.
    #[arg(long, default_value = "")]
    only: String,
    /// Also measures this peer, through tests/bench/peers; may be given more than once.
    #[arg(long)]
    peer: Vec<String>,
    /// Also measures this program: it takes the arguments TOPIC PARTITIONS CONNECTIONS BATCH TOTAL KEY JSON and the
    /// environment variables PG and BROKERS.
    #[arg(long)]
    yardstick: Option<PathBuf>,
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    match Options::parse().command {
        Command::Run(run) => work::run(&run),
        Command::Baseline(options) => baseline::run(&options),
    }
}
