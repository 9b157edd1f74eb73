//! The measured works: topics of several kinds, each read by gapless and by the other systems alternately.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::measure::{self, CpuTime, Running, Used};
use crate::report::{Report, Sample};
use crate::server::{self, Server};
use crate::{Run, latency};

/// Settings for speed, for both sides of every comparison.
const TUNED: [(&str, &str); 2] = [("shared_buffers", "1GB"), ("max_wal_size", "8GB")];
/// The defaults of PostgreSQL.
const DEFAULTS: [(&str, &str); 2] = [("shared_buffers", "128MB"), ("max_wal_size", "1GB")];

/// The work whose messages hold several events. Its rate in events is that in messages times their number.
const SEVERAL: &str = "several-1";

struct Work {
    name: &'static str,
    partitions: u32,
    messages: u64,
    /// Options of `produce`.
    options: Vec<String>,
    /// Connections of the COPY baselines that write into the ledger's tables.
    baselines: &'static [usize],
}

fn works(run: &Run) -> Vec<Work> {
    let n = run.messages;
    let events = |events: u64, more: &str| -> Vec<String> {
        format!("--events {events} {more}").split_whitespace().map(str::to_owned).collect()
    };
    let work = |name, partitions, messages, options, baselines| Work { name, partitions, messages, options, baselines };
    let mut works = vec![
        work("clean-1", 1, n, events(n, ""), &[1, 2, 3, 4]),
        work("clean-4", 4, n, events(n, ""), &[4]),
        work("duplicates-1", 1, n, events(n / 2, "--duplicates 1 --of-any"), &[]),
        work("duplicates-4", 4, n, events(n / 2, "--duplicates 1 --of-any --partition-spread"), &[]),
        work("odd-1", 1, n, events(n * 100 / 101, "--odd 0.010001"), &[]),
        work("transactions-1", 1, n / 4, events(n / 4, "--transactions 1 --producers 16"), &[]),
        work("200-bytes-1", 1, n * 2, events(n * 2, "--size 200"), &[2, 3, 4]),
        work("10-kb-1", 1, n / 10, events(n / 10, "--size 10240"), &[2, 4]),
        work("1-mb-1", 1, n / 1000, events(n / 1000, "--size 990000"), &[]),
    ];
    if run.events_per_message > 1 {
        let lists = format!("--events-per-message {}", run.events_per_message);
        works.push(work(SEVERAL, 1, n.div_ceil(run.events_per_message), events(n, &lists), &[]));
    }
    works
}

pub(crate) fn run(run: &Run) -> anyhow::Result<()> {
    std::fs::create_dir_all(&run.out)?;
    server::restart_with(&run.database_url, &TUNED)?;
    let works: Vec<Work> = works(run).into_iter().filter(|w| w.name.contains(&run.only)).collect();
    let mut sent = BTreeMap::new();
    for work in &works {
        sent.insert(work.name, produce(run, &topic(work.name), work.partitions, &work.options)?);
    }
    let mut report = Report::new(measure::fsync_ms(&run.out)?);
    // Not counted: right after the filling, the broker's code is not compiled yet and its disk is still busy.
    for work in &works {
        eprintln!("warming up: {}", work.name);
        gapless(run, &topic(work.name), sent[work.name])?;
    }
    for round in 1..=run.rounds {
        for work in &works {
            eprintln!("round {round}: {}", work.name);
            let mut systems = systems(run, work);
            // The disk may still be busy with the writes of the previous system, so no system may always follow the
            // same one: a rotation alone would keep the neighbours.
            let first = (round - 1) % systems.len();
            if round % 2 == 0 {
                systems.reverse();
            }
            systems.rotate_left(first);
            for system in systems {
                let (name, sample) = system.measure(run, work, sent[work.name])?;
                report.add(work.name, &name, sample);
            }
        }
    }
    if "latency".contains(&run.only) {
        report.latency = Some(latency::run(run)?);
    }
    if "defaults".contains(&run.only) && sent.contains_key("clean-1") {
        server::restart_with(&run.database_url, &DEFAULTS)?;
        report.add("clean-1, default settings", "gapless", gapless(run, &topic("clean-1"), sent["clean-1"])?);
        server::restart_with(&run.database_url, &TUNED)?;
    }
    if "growth".contains(&run.only) && run.growth > 0 {
        // The growth run takes most of the disk: the report is written before, in case the space is not enough.
        report.write(&run.out)?;
        grow(run, &mut report)?;
    }
    report.write(&run.out)
}

/// A system that reads the topic of a work.
enum System<'a> {
    Gapless,
    Baseline { connections: usize, tables: &'static str },
    Peer(&'a str),
    Yardstick { program: &'a Path, connections: usize },
}

fn systems<'a>(run: &'a Run, work: &Work) -> Vec<System<'a>> {
    let mut systems = vec![System::Gapless];
    let connections = || work.baselines.iter().copied();
    systems.extend(connections().map(|connections| System::Baseline { connections, tables: "ledger" }));
    if work.name == "clean-1" {
        systems.push(System::Baseline { connections: 1, tables: "plain" });
    }
    if work.name.starts_with("clean") {
        systems.extend(run.peer.iter().map(|name| System::Peer(name)));
    }
    if let Some(program) = &run.yardstick {
        systems.extend(connections().map(|connections| System::Yardstick { program, connections }));
    }
    systems
}

impl System<'_> {
    /// Runs the system. Returns its name in the report and the result.
    fn measure(self, run: &Run, work: &Work, messages: u64) -> anyhow::Result<(String, Sample)> {
        let named = |name: &str, connections: usize| match connections {
            1 => format!("{name}, 1 connection"),
            _ => format!("{name}, {connections} connections"),
        };
        match self {
            Self::Gapless => Ok(("gapless".to_owned(), gapless(run, &topic(work.name), messages)?)),
            Self::Baseline { connections, tables } => {
                let name = if tables == "plain" { "plain COPY baseline" } else { "COPY baseline" };
                Ok((named(name, connections), baseline(run, work, connections, tables)?))
            }
            Self::Peer(name) => peer(run, name, work),
            Self::Yardstick { program, connections } => {
                Ok((named("yardstick", connections), yardstick(run, program, work, connections)?))
            }
        }
    }
}

/// A topic name of this run; earlier runs may have left topics behind.
pub(crate) fn topic(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

/// Fills a topic. Returns its number of messages, without transaction markers.
pub(crate) fn produce(run: &Run, topic: &str, partitions: u32, options: &[String]) -> anyhow::Result<u64> {
    eprintln!("filling topic {topic}");
    let mut command = Command::new(run.programs.join("examples/produce"));
    command.args(["--brokers", &run.brokers, "--topic", topic, "--partitions", &partitions.to_string()]).args(options);
    let (out, _) = measure::run(&mut command)?;
    let summary: Value = serde_json::from_str(out.lines().last().unwrap_or_default()).context("produce's summary")?;
    summary["messages"].as_u64().context("produce prints the number of its messages")
}

/// Runs gapless to the end of a topic, into a new ledger.
fn gapless(run: &Run, topic: &str, messages: u64) -> anyhow::Result<Sample> {
    let url = server::new_database(&run.database_url, "bench")?;
    migrate(run, topic, &url)?;
    let sample = measured(run, &url, || {
        let (log, used) = measure::run(daemon(run, topic, &url).arg("--until-end"))?;
        let last = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            Some((line["fields"]["messages"].as_u64()?, line["fields"]["duration_ms"].as_f64()?))
        };
        let (read, ms) = log.lines().rev().find_map(last).context("gapless logs its duration")?;
        ensure!(read == messages, "{topic}: gapless read {read} of {messages} messages");
        Ok((messages, ms / 1000.0, used))
    })?;
    let outcomes = Server::connect(&url)?.number("select count(*) from gapless.outcomes")?;
    ensure!(outcomes as u64 == messages, "{topic}: {outcomes} outcomes of {messages} messages");
    Ok(sample)
}

pub(crate) fn daemon(run: &Run, topic: &str, url: &str) -> Command {
    let mut command = Command::new(run.programs.join("gapless"));
    command.args(["--brokers", &run.brokers, "--topic", topic, "--database-url", url, "--log-format", "json"]);
    command.env("GAPLESS__SERVER__BIND", "127.0.0.1:0").stdin(Stdio::null());
    if topic.starts_with(SEVERAL) {
        command.env("GAPLESS__FORMAT__PRESET", &run.list_preset);
    }
    command
}

pub(crate) fn migrate(run: &Run, topic: &str, url: &str) -> anyhow::Result<()> {
    measure::run(daemon(run, topic, url).arg("migrate")).map(drop)
}

fn baseline(run: &Run, work: &Work, connections: usize, tables: &str) -> anyhow::Result<Sample> {
    let (url, topic) = (server::new_database(&run.database_url, "bench")?, topic(work.name));
    migrate(run, &topic, &url)?;
    measured(run, &url, || {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["baseline", "--brokers", &run.brokers, "--topic", &topic, "--database-url", &url]);
        command.args(["--partitions", &work.partitions.to_string(), "--connections", &connections.to_string()]);
        command.args(["--messages", &work.messages.to_string(), "--tables", tables]);
        let (out, used) = measure::run(&mut command)?;
        let result: Value = serde_json::from_str(&out).context("the baseline's result")?;
        Ok((work.messages, result["seconds"].as_f64().context("seconds")?, used))
    })
}

fn yardstick(run: &Run, program: &Path, work: &Work, connections: usize) -> anyhow::Result<Sample> {
    let url = server::new_database(&run.database_url, "bench")?;
    measured(run, &url, || {
        let numbers = [u64::from(work.partitions), connections as u64, 5000, work.messages].map(|n| n.to_string());
        let mut command = Command::new(program);
        command.arg(topic(work.name)).args(numbers).args(["hash", "json"]);
        command.env("PG", &url).env("BROKERS", &run.brokers).env("NARROW", "1");
        let (out, used) = measure::run(&mut command)?;
        let seconds = out.split_whitespace().find_map(|word| word.strip_prefix("secs=")?.parse().ok());
        Ok((work.messages, seconds.context("the yardstick prints its seconds")?, used))
    })
}

fn peer(run: &Run, name: &str, work: &Work) -> anyhow::Result<(String, Sample)> {
    let url = server::new_database(&run.database_url, "bench")?;
    let mut system = String::new();
    let sample = measured(run, &url, || {
        let mut command = Command::new("tests/bench/peers");
        command.args([name, &topic(work.name), &work.partitions.to_string(), &work.messages.to_string()]);
        command.env("KAFKA_BROKERS", &run.brokers).env("PEERS_DATABASE_URL", &url).stderr(Stdio::inherit());
        let out = command.output()?;
        ensure!(out.status.success(), "the peer {name} ended with {}", out.status);
        let result: Value = serde_json::from_slice(&out.stdout).context("the peer's result")?;
        let number = |key: &str| result[key].as_f64().with_context(|| format!("the peer prints {key}"));
        system = result["peer"].as_str().unwrap_or(name).to_owned();
        let cpu_seconds = number("cpu_us_per_message")? * work.messages as f64 / 1e6;
        Ok((work.messages, number("seconds")?, Used { cpu_seconds, rss_mb: number("rss_mb")? }))
    })?;
    Ok((system, sample))
}

/// Adds the resources of PostgreSQL to the result of a run: messages, seconds and the program's own resources.
fn measured(run: &Run, url: &str, work: impl FnOnce() -> anyhow::Result<(u64, f64, Used)>) -> anyhow::Result<Sample> {
    let server = Server::connect(&run.database_url)?;
    let postmaster = measure::postmaster(&server)?;
    let cpu_time = CpuTime::now();
    let (cpu, wal) = (measure::tree_cpu(postmaster), server.wal_bytes()?);
    let (messages, seconds, used) = work()?;
    let (wal, stolen) = (server.wal_bytes()? - wal, cpu_time.stolen_percent());
    let sizes = |function: &str| {
        Server::connect(url)?.number(&format!(
            "select coalesce(sum({function}(oid)), 0)::int8 from pg_class
             where relkind = 'r' and relnamespace in (to_regnamespace('gapless'), to_regnamespace('plain'), to_regnamespace('public'))"
        ))
    };
    Ok(Sample {
        messages,
        seconds,
        cpu_seconds: used.cpu_seconds,
        postgres_cpu_seconds: measure::tree_cpu(postmaster) - cpu,
        rss_mb: used.rss_mb,
        wal_bytes: wal,
        table_bytes: sizes("pg_table_size")?,
        index_bytes: sizes("pg_indexes_size")?,
        stolen,
    })
}

/// Measures the rate of each million messages, and the duration of a start on the resulting ledger.
fn grow(run: &Run, report: &mut Report) -> anyhow::Result<()> {
    let (total, topic) = (run.growth * 1_000_000, topic("growth"));
    produce(run, &topic, 1, &["--events".into(), total.to_string()])?;
    let url = server::new_database(&run.database_url, "bench")?;
    migrate(run, &topic, &url)?;
    let server = Server::connect(&url)?;
    let mut child = Running(daemon(run, &topic, &url).arg("--until-end").stderr(Stdio::null()).spawn()?);
    let (mut used, mut reached) = (Used::default(), Vec::new());
    let mut first = None;
    loop {
        measure::observe(&child.0, &mut used);
        let next = server.number("select coalesce(sum(next_offset), 0)::int8 from gapless.positions")? as u64;
        if next > 0 {
            let begun = *first.get_or_insert_with(|| (Instant::now(), next));
            while reached.len() < (next / 1_000_000) as usize {
                reached.push((Instant::now() - begun.0).as_secs_f64());
            }
        }
        if let Some(status) = child.0.try_wait()? {
            ensure!(status.success() && next == total, "the growth run ended with {status} at {next}");
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let begun_at = first.map_or(0, |(_, next)| next);
    let mut before = 0.0;
    for (at, seconds) in reached.iter().enumerate() {
        let messages = if at == 0 { 1_000_000 - begun_at } else { 1_000_000 };
        report.growth.push(messages as f64 / (seconds - before));
        before = *seconds;
    }
    report.growth_rss_mb = used.rss_mb;
    produce(run, &topic, 1, &["--events".into(), "1".into(), "--seed".into(), "2".into()])?;
    let begun = Instant::now();
    measure::run(daemon(run, &topic, &url).arg("--until-end"))?;
    report.start_seconds = Some(begun.elapsed().as_secs_f64());
    Ok(())
}
