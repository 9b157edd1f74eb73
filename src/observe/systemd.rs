//! What systemd is told: how the start goes, ready, alive, stopping. sd-notify has no other home.
//! Silent where there is no `NOTIFY_SOCKET`.
//!
//! `READY=1` is said when positions are stored and the partitions were assigned for the first time: a
//! unit ordered behind this one finds a daemon that both servers have answered. Why not at once, with
//! the wait as a `STATUS=`: `systemctl start` would succeed for a daemon that has never reached its
//! servers. While they are away the start is extended time and again, so `TimeoutStartSec` ends only a
//! daemon that hangs: extensions, like watchdog pings, are sent only while `/livez` would answer 200.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::observe::health::{Health, Report};

/// How old readiness and status may be.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// By this much a start is extended each time: many looks, so that a busy machine is no reason.
const EXTENSION: Duration = Duration::from_secs(30);
/// A manager that does not listen does not hold up the end of the process.
const FINAL_NOTICE_TIMEOUT: Duration = Duration::from_secs(1);
/// `systemctl status` shows one line.
const STATUS_CHARS: usize = 300;

/// Waits until the end of the run was told, but not for long.
pub async fn finish(teller: JoinHandle<()>) {
    if tokio::time::timeout(FINAL_NOTICE_TIMEOUT, teller).await.is_err() {
        tracing::warn!(
            event = "systemd_notify_failed",
            "systemd did not take the last notification within {} s; the process ends without it",
            FINAL_NOTICE_TIMEOUT.as_secs()
        );
    }
}

/// Tells systemd until `stop`, then says so and ends.
pub fn start(health: Health, stop: CancellationToken) -> JoinHandle<()> {
    let teller = Notifier { health, ready: false, status: String::new(), refused: false };
    tokio::spawn(async move {
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            teller.run(&stop).await;
        }
    })
}

struct Notifier {
    health: Health,
    /// Whether readiness was told, which is done once.
    ready: bool,
    /// What was told last.
    status: String,
    /// Whether it was logged that nobody listens.
    refused: bool,
}

impl Notifier {
    async fn run(mut self, stop: &CancellationToken) {
        let watchdog = sd_notify::watchdog_enabled();
        // Half of what systemd waits for, as sd_watchdog_enabled(3) advises.
        let half = watchdog.map_or(STATUS_INTERVAL, |period| period / 2);
        let mut ping = interval(half.max(Duration::from_millis(1)));
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = interval(STATUS_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ping.tick(), if watchdog.is_some() => {
                    if self.health.is_live() {
                        self.notify(&[NotifyState::Watchdog]);
                    }
                }
                _ = look.tick() => self.update(),
            }
        }
        // A run that was short must not end unready: systemd would take that for a failed start.
        self.say_ready();
        self.notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    }

    fn update(&mut self) {
        self.say_ready();
        let report = self.health.report();
        if !self.ready && report.live {
            self.notify(&[NotifyState::ExtendTimeoutUsec(EXTENSION.as_micros() as u32)]);
        }
        let status = status(&report);
        if status != self.status {
            self.notify(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    fn say_ready(&mut self) {
        if !self.ready && self.health.has_started() {
            self.ready = true;
            self.notify(&[NotifyState::Ready]);
        }
    }

    fn notify(&mut self, states: &[NotifyState<'_>]) {
        // It blocks while systemd's queue is full; the other tasks of this thread must not wait for that.
        match tokio::task::block_in_place(|| sd_notify::notify(states)) {
            Ok(()) => self.refused = false,
            Err(error) if !self.refused => {
                self.refused = true;
                tracing::warn!(
                    event = "systemd_notify_failed",
                    error = %error,
                    "cannot notify systemd; gapless keeps trying: check NOTIFY_SOCKET and NotifyAccess of the unit"
                );
            }
            Err(_) => {}
        }
    }
}

/// One line on how it goes.
fn status(report: &Report) -> String {
    let line = match report.ready {
        true => {
            let lag: Option<i64> = report.partitions.iter().map(|p| p.lag).sum();
            let lag = lag.map_or("unknown".to_owned(), |lag| lag.to_string());
            format!("reading {} partitions, lag {lag}", report.partitions.len())
        }
        false => format!("not ready: {}", report.reasons.join("; ")),
    };
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(STATUS_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::Metrics;

    #[test]
    fn a_status_is_one_line_of_bounded_length() {
        let health = Health::new("t", Metrics::new("t", "2"));
        health.starting(format!("first\nsecond {}", "x".repeat(1000)));
        let status = status(&health.report());
        assert!(status.starts_with("not ready: first second xxx"), "{status}");
        assert_eq!((status.lines().count(), status.len()), (1, STATUS_CHARS));
    }
}
