//! Notifies systemd of the start's progress, of readiness, liveness and the stop. Only this module uses the crate
//! sd-notify. It does nothing without `NOTIFY_SOCKET`.
//!
//! `READY=1` is sent when the positions are stored and the partitions are assigned for the first time, so a unit that
//! is ordered after this one finds a daemon that both servers have answered. It is not sent earlier, with the wait as a
//! `STATUS=`, because then `systemctl start` would succeed for a daemon that has never reached its servers. While the
//! servers are away the start timeout is extended again and again, so `TimeoutStartSec` ends only a daemon that hangs.
//! Extensions and watchdog pings are sent only while `/livez` would answer 200.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::observe::health::{Health, Report};

/// How often readiness and status are checked.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Each extension of the start timeout. It is many check intervals long, so that a slow machine does not exceed it.
const EXTENSION: Duration = Duration::from_secs(30);
/// A manager that does not read its socket delays the end of the process only for this long.
const FINAL_NOTICE_TIMEOUT: Duration = Duration::from_secs(1);
/// `systemctl status` shows one line.
const STATUS_CHARS: usize = 300;

/// Waits until the last notification was sent, at most for one second.
pub async fn finish(notifier: JoinHandle<()>) {
    if tokio::time::timeout(FINAL_NOTICE_TIMEOUT, notifier).await.is_err() {
        tracing::warn!(
            event = "systemd_notify_failed",
            "systemd did not take the last notification within {} s; the process ends without it",
            FINAL_NOTICE_TIMEOUT.as_secs()
        );
    }
}

/// Notifies systemd until `stop` is cancelled, then sends `STOPPING=1` and ends.
pub fn start(health: Health, stop: CancellationToken) -> JoinHandle<()> {
    let notifier = Notifier { health, ready: false, status: String::new(), refused: false };
    tokio::spawn(async move {
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            notifier.run(&stop).await;
        }
    })
}

struct Notifier {
    health: Health,
    /// Whether `READY=1` was sent; it is sent once.
    ready: bool,
    /// The last status that was sent.
    status: String,
    /// Whether the failure to notify was logged.
    refused: bool,
}

impl Notifier {
    async fn run(mut self, stop: &CancellationToken) {
        let watchdog = sd_notify::watchdog_enabled();
        // Half of the time that systemd waits for a ping, as sd_watchdog_enabled(3) advises.
        let half = watchdog.map_or(STATUS_INTERVAL, |period| period / 2);
        let mut ping = interval(half.max(Duration::from_millis(1)));
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut check = interval(STATUS_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ping.tick(), if watchdog.is_some() => {
                    if self.health.is_live() {
                        self.notify(&[NotifyState::Watchdog]);
                    }
                }
                _ = check.tick() => self.update(),
            }
        }
        // A short run sends READY=1 before it ends, because systemd considers a stop without it a failed start.
        self.notify_ready();
        self.notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    }

    fn update(&mut self) {
        self.notify_ready();
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

    fn notify_ready(&mut self) {
        if !self.ready && self.health.has_started() {
            self.ready = true;
            self.notify(&[NotifyState::Ready]);
        }
    }

    fn notify(&mut self, states: &[NotifyState<'_>]) {
        // The call blocks while systemd's queue is full. Other tasks of this thread must not wait for it.
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

/// The status line that `systemctl status` shows.
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
        let health = Health::new("t", Metrics::new("2"));
        health.starting(format!("first\nsecond {}", "x".repeat(1000)));
        let status = status(&health.report());
        assert!(status.starts_with("not ready: first second xxx"), "{status}");
        assert_eq!((status.lines().count(), status.len()), (1, STATUS_CHARS));
    }
}
