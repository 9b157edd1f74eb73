//! The cost of a run: CPU and memory of a program, CPU of PostgreSQL, from /proc.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::server::Server;

/// Interval between two observations of a running program.
const OBSERVATION_INTERVAL: Duration = Duration::from_millis(20);
/// `sysconf(_SC_CLK_TCK)` on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// The resources that a program has used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Used {
    pub(crate) cpu_seconds: f64,
    pub(crate) rss_mb: f64,
}

/// Runs a program to its end. Returns its output, standard error last, and the used resources.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<(String, Used)> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("starting")?;
    let (out, err) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let mut used = Used::default();
    let status = loop {
        observe(&child, &mut used);
        match child.try_wait()? {
            Some(status) => break status,
            None => std::thread::sleep(OBSERVATION_INTERVAL),
        }
    };
    let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
    ensure!(status.success(), "{command:?} ended with {status}:\n{err}");
    Ok((out + &err, used))
}

/// A program that is killed when this is dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // If the program has ended, the kill fails and the wait returns at once.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_string(&mut text);
        }
        text
    })
}

/// Updates the resources that a running program has used so far.
pub(crate) fn observe(child: &Child, used: &mut Used) {
    let Some(stat) = stat(child.id()) else { return };
    used.cpu_seconds = used.cpu_seconds.max(stat.own);
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    used.rss_mb = peak.map_or(used.rss_mb, |kb| kb / 1024.0);
}

struct Stat {
    parent: u32,
    own: f64,
    ended_children: f64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0) / TICKS_PER_SECOND;
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        own: ticks(11) + ticks(12),
        ended_children: ticks(13) + ticks(14),
    })
}

/// CPU seconds of a process and of all its children, including those that have ended.
pub(crate) fn tree_cpu(root: u32) -> f64 {
    let Some(top) = stat(root) else { return 0.0 };
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let children = pids.filter_map(|entry| stat(entry.file_name().to_str()?.parse().ok()?));
    top.own + top.ended_children + children.filter(|s| s.parent == root).map(|s| s.own).sum::<f64>()
}

/// CPU time of all cores since the boot, in ticks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuTime {
    /// Time that the host gave to other machines while a program here was ready to run.
    stolen: f64,
    all: f64,
}

impl CpuTime {
    pub(crate) fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let of_all_cores = stat.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = of_all_cores.split_whitespace().skip(1).take(8).filter_map(|t| t.parse().ok()).collect();
        Self { stolen: ticks.get(7).copied().unwrap_or_default(), all: ticks.iter().sum() }
    }

    /// The share of the CPU time since `self` that the host gave to other machines, in percent.
    pub(crate) fn stolen_percent(self) -> f64 {
        let now = Self::now();
        (now.stolen - self.stolen) / (now.all - self.all) * 100.0
    }
}

/// The median time of one fdatasync after a write of 8 KB, in milliseconds.
pub(crate) fn fsync_ms(folder: &Path) -> anyhow::Result<f64> {
    let path = folder.join("fsync");
    let mut file = std::fs::File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..200 {
        file.write_all(&[1; 8192])?;
        let begun = Instant::now();
        file.sync_data()?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    std::fs::remove_file(path)?;
    Ok(median(&times))
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The median of a value of each element.
pub(crate) fn median_of<T>(all: &[T], value: impl Fn(&T) -> f64) -> f64 {
    median(&all.iter().map(value).collect::<Vec<_>>())
}

/// The process id of the postmaster, the parent of all server processes.
pub(crate) fn postmaster(server: &Server) -> anyhow::Result<u32> {
    let backend = u32::try_from(server.number("select pg_backend_pid()::int8")?)?;
    Ok(stat(backend).context("PostgreSQL runs on this machine")?.parent)
}
