//! Progress on standard error: a bar on a terminal for a verb and with `--until-end`; otherwise a log line at most
//! every ten seconds.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::model::offset::{NextOffset, OffsetRange};
use crate::model::topic::TopicPartition;

/// The least time between two progress lines, so that the log of a busy daemon stays readable.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The progress of a verb in offsets: a bar on a terminal, otherwise lines in the log.
pub struct OffsetProgress {
    unit: String,
    total: u64,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
    /// There is no work to show, or the daemon logs its progress itself.
    Nothing,
}

struct Lines {
    done: u64,
    reported_at: Instant,
}

impl OffsetProgress {
    pub fn new(total: u64, unit: &str) -> Self {
        let shown = match (total, std::io::stderr().is_terminal()) {
            (0, _) => Shown::Nothing,
            (_, true) => Shown::Bar(bar(total, unit)),
            (_, false) => Shown::Lines(Mutex::new(Lines { done: 0, reported_at: Instant::now() })),
        };
        Self { unit: unit.to_owned(), total, shown }
    }

    /// Shows a bar on a terminal and nothing elsewhere.
    fn on_terminal(total: u64, unit: &str) -> Self {
        let is_shown = total > 0 && std::io::stderr().is_terminal();
        let shown = if is_shown { Shown::Bar(bar(total, unit)) } else { Shown::Nothing };
        Self { unit: unit.to_owned(), total, shown }
    }

    pub fn advance(&self, by: u64) {
        match &self.shown {
            Shown::Bar(bar) => bar.inc(by),
            Shown::Lines(lines) => self.line(&mut lines.lock().expect("no panic while it is held"), by),
            Shown::Nothing => {}
        }
    }

    fn line(&self, lines: &mut Lines, by: u64) {
        lines.done += by;
        if lines.reported_at.elapsed() >= LINE_INTERVAL {
            lines.reported_at = Instant::now();
            tracing::info!(event = "verb_progress", "{} of {} {}", lines.done, self.total, self.unit);
        }
    }

    /// Sets how much of the total remains.
    fn set_remaining(&self, remaining: u64) {
        if let Shown::Bar(bar) = &self.shown {
            bar.set_position(self.total.saturating_sub(remaining));
        }
    }

    pub fn finish(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish();
        }
    }
}

fn bar(total: u64, unit: &str) -> ProgressBar {
    let style = format!("{{bar:40}} {{pos}}/{{len}} {unit}, {{per_sec}}, {{eta}} left");
    ProgressBar::new(total).with_style(ProgressStyle::with_template(&style).expect("a valid template"))
}

/// The progress of the daemon.
pub struct Progress {
    bar: OffsetProgress,
    ends: BTreeMap<TopicPartition, NextOffset>,
    messages: u64,
    started_at: Instant,
    /// When the last line was logged, and the number of messages at that time.
    last_report: (Instant, u64),
}

impl Progress {
    /// `ends` are the end offsets with `--until-end`; empty for a daemon that runs without an end.
    pub fn new<'a>(
        ends: BTreeMap<TopicPartition, NextOffset>,
        positions: impl Iterator<Item = (&'a TopicPartition, NextOffset)>,
    ) -> Self {
        let total: u64 = positions.filter_map(|(partition, next)| Some(behind(next, *ends.get(partition)?))).sum();
        let bar = OffsetProgress::on_terminal(total, "offsets");
        Self { bar, ends, messages: 0, started_at: Instant::now(), last_report: (Instant::now(), 0) }
    }

    /// Counts a committed batch; `next` returns the current position of a partition.
    pub fn committed(&mut self, messages: usize, next: impl Fn(&TopicPartition) -> Option<NextOffset>) {
        self.messages += messages as u64;
        let remaining = self.ends.iter().filter_map(|(partition, end)| Some(behind(next(partition)?, *end)));
        self.bar.set_remaining(remaining.sum());
    }

    /// Logs a progress line if messages were committed since the last line. `lag`: `None` while it is not known.
    pub fn report(&mut self, lag: Option<i64>) {
        let (at, before) = self.last_report;
        let (elapsed, new) = (at.elapsed(), self.messages - before);
        if elapsed < LINE_INTERVAL || new == 0 {
            return;
        }
        self.last_report = (Instant::now(), self.messages);
        let rate = (new as f64 / elapsed.as_secs_f64()).round() as u64;
        match lag {
            Some(lag) => {
                tracing::info!(event = "progress", messages = self.messages, rate_per_s = rate, lag, "progress")
            }
            None => tracing::info!(
                event = "progress",
                messages = self.messages,
                rate_per_s = rate,
                lag = "unknown",
                "progress"
            ),
        }
    }

    /// Logs the end of the run.
    pub fn finish(&self) {
        self.bar.finish();
        let (messages, seconds) = (self.messages, self.started_at.elapsed().as_secs_f64());
        tracing::info!(
            event = "run_finished",
            messages,
            duration_ms = (seconds * 1000.0) as u64,
            "stopped reading; everything committed is kept"
        );
    }
}

fn behind(next: NextOffset, end: NextOffset) -> u64 {
    OffsetRange::new(next, end).map_or(0, OffsetRange::count)
}
