//! Measures gapless beside plain binary COPY (the COPY baseline): the same topics, the same PostgreSQL, in turn, in one
//! session. Machines are noisy, so only ratios of medians count; no test depends on them.
//!
//! `make bench` runs it on servers that it starts; it writes report.json and table.md below target/bench.

// Linked for the functions that stand before librdkafka's unpacking (`build.rs`).
use gapless as _;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[path = "bench/baseline.rs"]
mod baseline;
#[path = "integration/support/events.rs"]
#[allow(dead_code)] // The tests use more of it.
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
    /// Everything, in rounds.
    Run(Run),
    /// Moves a topic into two tables by plain binary COPY, with no promise but one transaction a batch.
    Baseline(baseline::Options),
}

#[derive(clap::Args)]
struct Run {
    #[arg(long, env = "KAFKA_BROKERS")]
    brokers: String,
    /// A superuser: PostgreSQL is set up for speed, and databases come and go.
    #[arg(long, env = "DATABASE_URL")]
    database_url: String,
    /// Where gapless, produce and this program were built.
    #[arg(long, default_value = "target/release")]
    programs: PathBuf,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Messages of a topic of 1 KB events; others have as many as suits them.
    #[arg(long, default_value_t = 400_000)]
    messages: u64,
    /// Millions of messages of the growth run; 0: none.
    #[arg(long, default_value_t = 10)]
    growth: u64,
    /// Only works whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Also this peer, through tests/bench/peers; may be given more than once.
    #[arg(long)]
    peer: Vec<String>,
    /// Also the yardstick of another tree, built: it takes the arguments TOPIC PARTITIONS CONNECTIONS BATCH TOTAL KEY
    /// JSON and the environment PG and BROKERS.
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
