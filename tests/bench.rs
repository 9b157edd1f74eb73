//! Measures gapless beside its limit: the same topics, the same PostgreSQL, in turn, in one session. Machines are noisy,
//! so what counts are ratios of medians; no test depends on them.
//!
//! `make bench` runs it on servers that it starts; report.json, table.md and plot.svg come out below target/bench.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[path = "integration/support/events.rs"]
#[allow(dead_code)] // The tests use more of it.
mod events;
#[path = "bench/host.rs"]
mod host;
#[path = "bench/latency.rs"]
mod latency;
#[path = "bench/limit.rs"]
mod limit;
#[path = "bench/measure.rs"]
mod measure;
#[path = "bench/plot.rs"]
mod plot;
#[path = "bench/report.rs"]
mod report;
#[path = "bench/server.rs"]
mod server;
#[path = "bench/work.rs"]
mod work;
#[path = "bench/writeback.rs"]
mod writeback;

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
    Limit(limit::Options),
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
    /// How the kernel writes back while latency is measured.
    #[arg(long, value_enum, default_value = "as-it-is")]
    writeback: writeback::Writeback,
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    match Options::parse().command {
        Command::Run(run) => work::run(&run),
        Command::Limit(options) => limit::run(&options),
    }
}
