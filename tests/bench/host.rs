//! What the host leaves of the machine while something runs here: the CPU time it gives to others, and how fast the
//! cores are. Where it lets two machines share a core, a second of CPU time does about half as much while the other one
//! is busy, and no counter of the kernel tells. What runs here shares caches and memory with the look at the pace, and so
//! lowers it too: the pace tells runs under the same load apart, and is no share of the host alone.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::events::{Event, USUAL_SIZE};
use crate::measure::{median, median_of};

/// Between two looks at the pace, each of which takes some 0.1 ms of a core.
const EVERY: Duration = Duration::from_millis(50);
/// Of so many steps the fastest counts: another thread that takes the core meanwhile lengthens the others.
const STEPS: usize = 4;
/// Events read in one step.
const EVENTS: usize = 4;

/// Nanoseconds of the fastest step since the program began.
static FASTEST: AtomicU64 = AtomicU64::new(u64::MAX);

/// Looks at the host until it is asked what it saw.
pub(crate) struct Watch {
    before: (f64, f64),
    stop: mpsc::Sender<()>,
    steps: JoinHandle<Vec<f64>>,
}

/// What the host left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host {
    /// Percent of the machine's CPU time that others got while a program here wanted to run.
    pub(crate) stolen: f64,
    /// Nanoseconds of one step, the median.
    step: f64,
}

impl Watch {
    pub(crate) fn begin() -> Self {
        let (stop, stopped) = mpsc::channel();
        let steps = std::thread::spawn(move || {
            let event = Event::numbered(1, 1).sized(USUAL_SIZE).json();
            let mut steps = vec![fastest_step(&event)];
            while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(EVERY) {
                steps.push(fastest_step(&event));
            }
            steps
        });
        Self { before: ticks(), stop, steps }
    }

    pub(crate) fn end(self) -> Host {
        let ((stolen, all), (stolen_before, all_before)) = (ticks(), self.before);
        drop(self.stop);
        let steps = self.steps.join().expect("looking does not panic");
        Host { stolen: (stolen - stolen_before) / (all - all_before) * 100.0, step: median(&steps) }
    }
}

impl Host {
    pub(crate) fn median(seen: &[Self]) -> Self {
        Self { stolen: median_of(seen, |h| h.stolen), step: median_of(seen, |h| h.step) }
    }

    /// How fast the cores were, in percent of the fastest they were seen to be since the program began.
    pub(crate) fn pace(&self) -> f64 {
        FASTEST.load(Ordering::Relaxed) as f64 / self.step * 100.0
    }
}

/// Nanoseconds of the step that all paces are told of, if there was one: what compares two machines, or two days of one.
pub(crate) fn full_pace() -> Option<u64> {
    Some(FASTEST.load(Ordering::Relaxed)).filter(|fastest| *fastest < u64::MAX)
}

/// In nanoseconds.
fn fastest_step(event: &str) -> f64 {
    let step = || {
        let begun = Instant::now();
        for _ in 0..EVENTS {
            black_box(serde_json::from_str::<Value>(black_box(event)).is_ok());
        }
        begun.elapsed().as_nanos() as u64
    };
    let fastest = (0..STEPS).map(|_| step()).min().unwrap_or(u64::MAX);
    FASTEST.fetch_min(fastest, Ordering::Relaxed);
    fastest as f64
}

/// CPU time of all cores: what was stolen, and all.
fn ticks() -> (f64, f64) {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let of_all_cpus = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = of_all_cpus.split_whitespace().skip(1).take(8).filter_map(|t| t.parse().ok()).collect();
    (ticks.get(7).copied().unwrap_or_default(), ticks.iter().sum())
}
