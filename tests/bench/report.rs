//! The report: medians, ratios and the thresholds of the project, as JSON and as a table.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::latency::{Latencies, Latency, Quantiles};
use crate::measure::{median, median_of};

/// The result of one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) messages: u64,
    pub(crate) seconds: f64,
    /// CPU time of all threads of the program itself.
    pub(crate) cpu_seconds: f64,
    pub(crate) postgres_cpu_seconds: f64,
    pub(crate) rss_mb: f64,
    pub(crate) wal_bytes: i64,
    pub(crate) table_bytes: i64,
    pub(crate) index_bytes: i64,
    /// The share of the CPU time that the host gave to other machines meanwhile, in percent.
    pub(crate) stolen: f64,
}

impl Sample {
    /// Messages per second.
    fn rate(&self) -> f64 {
        self.messages as f64 / self.seconds
    }

    /// The program's own CPU time per message, in microseconds.
    fn own_cpu(&self) -> f64 {
        self.cpu_seconds / self.messages as f64 * 1e6
    }
}

pub(crate) struct Report {
    fsync_ms: f64,
    /// The samples by work and system, in the order of the runs.
    samples: Vec<((String, String), Vec<Sample>)>,
    pub(crate) latency: Option<Latencies>,
    /// Messages per second of each million.
    pub(crate) growth: Vec<f64>,
    pub(crate) growth_rss_mb: f64,
    pub(crate) start_seconds: Option<f64>,
}

impl Report {
    pub(crate) fn new(fsync_ms: f64) -> Self {
        Self {
            fsync_ms,
            samples: Vec::new(),
            latency: None,
            growth: Vec::new(),
            growth_rss_mb: 0.0,
            start_seconds: None,
        }
    }

    pub(crate) fn add(&mut self, work: &str, system: &str, sample: Sample) {
        eprintln!("  {system}: {:.0} messages/s, {:.1} % stolen", sample.rate(), sample.stolen);
        let key = (work.to_owned(), system.to_owned());
        match self.samples.iter_mut().find(|(k, _)| *k == key) {
            Some((_, samples)) => samples.push(sample),
            None => self.samples.push((key, vec![sample])),
        }
    }

    fn of(&self, work: &str, system: &str, value: impl Fn(&Sample) -> f64) -> Option<f64> {
        let found = self.samples.iter().find(|((w, s), _)| w == work && s == system)?;
        Some(median_of(&found.1, value))
    }

    fn rate(&self, work: &str, system: &str) -> Option<f64> {
        self.of(work, system, Sample::rate)
    }

    /// The best median of the systems whose name begins with `kind`.
    fn best(&self, work: &str, kind: &str) -> Option<f64> {
        let systems = self.samples.iter().filter(|((w, s), _)| w == work && s.starts_with(kind));
        systems.filter_map(|((w, s), _)| self.rate(w, s)).max_by(f64::total_cmp)
    }

    /// The thresholds of speed: description, measured number, threshold, and whether the threshold is a minimum.
    fn bars(&self) -> Vec<(String, f64, f64, bool)> {
        let mut bars = Vec::new();
        let own = |work: &str| self.rate(work, "gapless");
        let mut at_least = |what: &str, number: Option<f64>, base: Option<f64>, bar: f64| {
            if let (Some(number), Some(base)) = (number, base) {
                bars.push((what.to_owned(), number / base, bar, true));
            }
        };
        at_least("clean-1 / COPY baseline", own("clean-1"), self.best("clean-1", "COPY baseline"), 0.9);
        at_least("clean-1 / yardstick", own("clean-1"), self.best("clean-1", "yardstick"), 0.9);
        at_least("clean-1 / plain COPY baseline", own("clean-1"), self.best("clean-1", "plain"), 1.5);
        at_least("clean-1 / debezium", own("clean-1"), self.best("clean-1", "debezium"), 1.8);
        at_least("clean-4 / COPY baseline", own("clean-4"), self.best("clean-4", "COPY baseline"), 0.9);
        at_least("clean-4 / yardstick", own("clean-4"), self.best("clean-4", "yardstick"), 0.9);
        at_least("clean-4 / debezium", own("clean-4"), self.best("clean-4", "debezium"), 1.6);
        at_least("duplicates-1 / clean-1", own("duplicates-1"), own("clean-1"), 0.7);
        at_least("duplicates-4 / clean-4", own("duplicates-4"), own("clean-4"), 0.7);
        at_least("odd-1 / clean-1", own("odd-1"), own("clean-1"), 0.85);
        at_least("transactions-1 / clean-1", own("transactions-1"), own("clean-1"), 0.5);
        at_least("200-bytes-1 / COPY baseline", own("200-bytes-1"), self.best("200-bytes-1", "COPY baseline"), 0.85);
        at_least("200-bytes-1 / yardstick", own("200-bytes-1"), self.best("200-bytes-1", "yardstick"), 0.85);
        at_least("growth: last million / first", self.growth.last().copied(), self.growth.first().copied(), 0.75);
        let mut at_most = |what: &str, number: Option<f64>, bar: f64| {
            if let Some(number) = number {
                bars.push((what.to_owned(), number, bar, false));
            }
        };
        let rss = |work: &str| self.of(work, "gapless", |s| s.rss_mb);
        at_most("RSS with 1 KB, MB", rss("clean-1"), 96.0);
        at_most("RSS with 1 MB, MB", rss("1-mb-1"), 256.0);
        at_most("own CPU a message, microseconds", self.of("clean-1", "gapless", Sample::own_cpu), 8.0);
        let latency = self.latency.as_ref().map(|l| l.gapless.from_send);
        at_most("latency p50, ms", latency.map(|l| l.p50), 1.0 + 2.0 * self.fsync_ms);
        at_most("latency p99, ms", latency.map(|l| l.p99), 6.0 + 2.0 * self.fsync_ms);
        at_most("latency p99.9, ms", latency.map(|l| l.p999), 20.0);
        at_most("start on the grown ledger, s", self.start_seconds, 1.0);
        bars
    }

    fn table(&self) -> String {
        let mut text = String::from(
            "| work | who | messages/s (each run) | stolen % | own CPU µs | PostgreSQL CPU µs | RSS MB | WAL, table, index bytes a message |\n|---|---|---|---|---|---|---|---|\n",
        );
        for ((work, system), samples) in &self.samples {
            let mut runs: Vec<f64> = samples.iter().map(Sample::rate).collect();
            let rate = median(&runs);
            runs.sort_by(f64::total_cmp);
            let each = |value: fn(&Sample) -> f64| median_of(samples, |s| value(s) / s.messages as f64);
            let _ = writeln!(
                text,
                "| {work} | {system} | **{rate:.0}** ({}) | {:.1} | {:.1} | {:.1} | {:.0} | {:.0}, {:.0}, {:.0} |",
                short(&runs),
                median_of(samples, |s| s.stolen),
                median_of(samples, Sample::own_cpu),
                each(|s| s.postgres_cpu_seconds * 1e6),
                median_of(samples, |s| s.rss_mb),
                each(|s| s.wal_bytes as f64),
                each(|s| s.table_bytes as f64),
                each(|s| s.index_bytes as f64),
            );
        }
        let _ = writeln!(text, "\nfdatasync of 8 KB: {:.2} ms\n", self.fsync_ms);
        if !self.growth.is_empty() {
            let _ = writeln!(text, "each million: {} (RSS {:.0} MB)\n", short(&self.growth), self.growth_rss_mb);
        }
        if let Some(Latencies { gapless, plainest }) = &self.latency {
            for (who, latency) in [("gapless", gapless), ("the plainest program", plainest)] {
                let _ = writeln!(text, "latency of {who}: {latency}\n");
            }
        }
        text.push_str("| what | measured | bar | |\n|---|---|---|---|\n");
        for (what, number, bar, at_least) in self.bars() {
            let (sign, holds) = if at_least { ('≥', number >= bar) } else { ('≤', number <= bar) };
            let _ = writeln!(
                text,
                "| {what} | {number:.2} | {sign} {bar:.2} | {} |",
                if holds { "holds" } else { "MISSED" }
            );
        }
        text
    }

    fn json(&self) -> Value {
        let sample = |s: &Sample| {
            json!({
                "messages": s.messages, "seconds": s.seconds, "cpu_seconds": s.cpu_seconds,
                "postgres_cpu_seconds": s.postgres_cpu_seconds, "rss_mb": s.rss_mb,
                "wal_bytes": s.wal_bytes, "table_bytes": s.table_bytes, "index_bytes": s.index_bytes,
                "stolen_percent": s.stolen,
            })
        };
        let runs: Vec<Value> = self
            .samples
            .iter()
            .map(|((work, system), samples)| {
                json!({ "work": work, "system": system, "rate": self.rate(work, system),
                        "runs": samples.iter().map(sample).collect::<Vec<_>>() })
            })
            .collect();
        let bars: Vec<Value> = self
            .bars()
            .into_iter()
            .map(|(what, number, bar, least)| {
                json!({ "what": what, "measured": number, "bar": bar, "is": if least { "at least" } else { "at most" } })
            })
            .collect();
        json!({
            "fsync_ms": self.fsync_ms, "runs": runs, "bars": bars, "growth": self.growth,
            "growth_rss_mb": self.growth_rss_mb, "start_seconds": self.start_seconds,
            "latency_ms": self.latency.as_ref().map(|Latencies { gapless, plainest }| {
                let of = |l: &Latency| {
                    let Quantiles { p50, p99, p999 } = l.from_send;
                    let due = l.from_due;
                    json!({ "p50": p50, "p99": p99, "p99.9": p999, "within": l.within,
                            "from_due": { "p50": due.p50, "p99": due.p99, "p99.9": due.p999 },
                            "stolen_percent": l.stolen })
                };
                json!({ "gapless": of(gapless), "plainest": of(plainest) })
            }),
        })
    }

    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let table = self.table();
        std::fs::write(folder.join("report.json"), serde_json::to_string_pretty(&self.json())?)?;
        std::fs::write(folder.join("table.md"), &table)?;
        println!("{table}");
        Ok(())
    }
}

/// Rates in a short form for a table.
fn short(rates: &[f64]) -> String {
    let one = |rate: &f64| if *rate < 1000.0 { format!("{rate:.0}") } else { format!("{:.1}k", rate / 1000.0) };
    rates.iter().map(one).collect::<Vec<_>>().join(" ")
}
